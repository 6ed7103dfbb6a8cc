"""Merges new images with those in place: what an import adds, changes and removes, and the labels of both in one file.

An import only adds. Files with the same path and other content are merged if they are lists that can be extended (a
table, a COCO file, a list of a split). Anything else would remove something and is refused unless the user allows it.
"""

import hashlib
import io
import json
import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from components.data.annotations.layouts import read_rows
from components.data.annotations.tree import walk_files
from components.data.sources.names import SUFFIXES
from components.data.store import versioning, versions
from components.data.store.digests import Digests
from components.data.store.proofs import hash_md5
from components.data.store.shards import list_packed, open_images
from components.domain.domain import Domain
from components.domain.layouts import Coco, Csv, Layout, Parquet
from components.errors import DataError, VersioningError
from components.files import settle_folder
from components.workspace import Workspace

SPLIT_LISTS = ("train.txt", "val.txt", "valid.txt", "validation.txt", "trainval.txt", "test.txt")


class Standing:
    """The files in place of a domain: `files` below `folder`, which is raw/ itself or the content of its shards."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace, self.name = workspace, name
        self.folder = open_images(workspace, name)
        self.digests = Digests(self.folder, workspace.cache)
        self.files = walk_files(self.folder) if self.folder.is_dir() else []


def find_standing(workspace: Workspace, name: str, *, replace: bool, force: bool) -> Standing:
    """The files in place; if the version that raw.dvc names is not there, it is restored first.

    Raises DataError if it cannot be restored, unless it may be dropped (see `compare`).
    """
    raw = workspace.raw(name)
    settle_folder(raw)
    if raw.with_suffix(".dvc").exists() and not (raw.is_dir() and any(raw.iterdir())):
        try:
            versioning.restore_raw(workspace, name)
        except (DataError, VersioningError) as error:
            held = [named.md5 for named in versions.list_versions(workspace, name)]
            if not replace or not (force or versioning.read_version(workspace, name).md5 in held):
                hint = "If the remote has moved, set its address with `dvc remote modify NAME url URL`; if the folder "
                hint += "is the whole set, give `--replace`" + (
                    " and `--force`: no version holds them." if replace else "."
                )
                expected = f"the images that data/{name}/raw.dvc names, to compare them with the new ones"
                raise DataError(f"import into {name}", expected=expected, found=error.found, hint=hint) from None
    return Standing(workspace, name)


@dataclass(frozen=True)
class Change:
    """Where each file of raw/ comes from, and counts of files compared with those in place.

    files: path below raw/ to the file that will be there. merged: those that hold old and new labels. same: paths whose
    content stays. overwritten: files in place that are replaced by others with the same path.
    """

    files: Mapping[str, Path]
    merged: Mapping[str, bytes]
    same: frozenset[str]
    overwritten: frozenset[str]
    added: int
    removed: int
    changed: int


def compare(
    there: Standing, source: Path, paths: list[str], wanted: Digests, layout: Layout, *, replace: bool, force: bool
) -> Change:
    """The change that importing `paths` of `source` makes to the files in place.

    replace: make raw/ identical to `source`. force: allow to drop or overwrite pictures that no named version holds.

    Raises DataError if something would be dropped or overwritten without permission.
    """
    old, new = set(there.files), set(paths)
    same = {path for path in old & new if wanted[path] and there.digests[path] == wanted[path]}
    differ = old & new - same
    files = {path: source / path for path in new - same} | {path: there.folder / path for path in same}
    added, gone = len(new - old), old - new if replace else set[str]()
    if replace:
        if not force:
            _require_held(there, differ | gone, {wanted[path] for path in new})
        return Change(files, {}, frozenset(same), frozenset(differ), added, len(gone), len(differ))
    merged = {}
    for path in sorted(differ):
        if (content := merge_labels(layout, path, there.folder / path, source / path)) is not None:
            merged[path] = content
    clashes = differ - merged.keys()
    if clashes and not force:
        raise DataError(
            f"import into {there.name}",
            expected="new files, or the same content, at paths that are in use",
            found=f"other content at {_name_some(clashes)}",
            hint="Rename the new files if they are other pictures; give `--force` to replace the old ones, or "
            "`--replace` if the folder is the whole set and everything else may be removed.",
        )
    kept = old - differ
    files |= {path: there.folder / path for path in kept}
    return Change(files, merged, frozenset(kept), frozenset(clashes), added, 0, len(differ))


def _require_held(there: Standing, leaving: set[str], staying: set[str | None]) -> None:
    """Raise DataError unless a named version holds every picture that is dropped."""
    pictures = {path for path in leaving if path.lower().endswith(SUFFIXES) and there.digests[path] not in staying}
    if not pictures:
        return
    held, unknown = versions.list_held(there.workspace, there.name)
    packed = {path: shard for shard, members in list_packed(there.workspace, there.name).items() for path in members}
    raw, known = there.workspace.raw(there.name), dict[str, str]()
    for file in {packed.get(path, path) for path in pictures}:  # DVC knows shards, not what is in them
        known[file] = hash_md5(raw / file)
    if lost := {path for path in pictures if not held & {known[packed.get(path, path)], there.digests[path] or ""}}:
        doubt = f" (the content of {', '.join(unknown)} is neither here nor on the remote)" if unknown else ""
        raise DataError(
            f"import into {there.name} with --replace",
            expected="a named version that holds the pictures which would be removed",
            found=f"none that holds {_name_some(lost)}{doubt}",
            hint=f"Leave out `--replace` to add to them, keep them with `tessera version {there.name}` first, or give "
            "`--force` as well if they may be lost for good.",
        )


def _name_some(paths: set[str]) -> str:
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return f"{', '.join(sorted(paths)[:4])}{more}"


# Labels


def require_labels_kept(there: Standing, domain: Domain, change: Change, new: pl.DataFrame, both: pl.DataFrame) -> None:
    """Raise DataError unless all old and all new pictures have in `both` the labels that they had before the merge."""
    old = _group_rows(read_rows(domain, there.folder, there.digests))
    found, added = _group_rows(both), _group_rows(new)
    replaced = {_stem(path) for path in change.overwritten}  # their labels may change to those of the new files
    wrong = [path for path, labels in old.items() if found.get(path) != labels]
    wrong = [path for path in wrong if _stem(path) not in replaced or found.get(path) != added.get(path)]
    wrong += [path for path, labels in added.items() if labels - found.get(path, Counter())]
    if not wrong:
        return
    path = min(wrong)
    texts = [" and ".join(sorted(labels.get(path, {"nothing": 1}))) for labels in (old, added, found)]
    more = f", and {len(set(wrong)) - 1} more like it" if len(set(wrong)) > 1 else ""
    raise DataError(
        f"import into {there.name}",
        expected="the same labels for a picture in both places",
        found=f"for {path} {texts[0]} in place, {texts[1]} in the folder, {texts[2]} from both{more}",
        hint="Correct one of the two, or give `--replace` if the folder is the whole set.",
    )


def _stem(path: str) -> str:
    """The part of a path that a picture shares with its mask and its annotation file."""
    return posixpath.splitext(posixpath.basename(path))[0].removesuffix("_mask")


def _group_rows(rows: pl.DataFrame) -> dict[str, Counter[str]]:
    """The annotations of each picture, counted; rows with only a problem are left out."""
    said: dict[str, Counter[str]] = {}
    names = [name for name in rows.columns if name not in ("id", "path", "problem", "stated_size")]
    for path, *values in rows.filter(pl.col("problem").is_null()).select("path", *names).iter_rows():
        facts = zip(names, values, strict=True)
        text = ", ".join(f"{name}={_show(value)}" for name, value in facts if value not in (None, []))
        said.setdefault(path, Counter())[text] += 1
    return said


def _show(value: Any) -> Any:
    """A cell as a message can hold it: of bytes and of labelled boxes, the beginning of their hash."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()[:12]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{len(value)} ({hashlib.sha256(repr(value).encode()).hexdigest()[:12]})"
    return value


def merge_labels(layout: Layout, path: str, old: Path, new: Path) -> bytes | None:
    """The merged content of two files if they are lists that can be extended; else None.

    Raises DataError if they are such lists but in different forms.
    """
    if isinstance(layout, Csv) and path == posixpath.normpath(layout.table):
        return _merge_lines(path, old.read_bytes(), new.read_bytes(), header=bool(getattr(layout, "header", True)))
    if isinstance(layout, Parquet) and path == posixpath.normpath(layout.table):
        return _merge_parquet(path, old, new)
    if isinstance(layout, Coco) and path.lower().endswith(".json"):
        return _merge_coco(path, old, new)
    if posixpath.basename(path).lower() in SPLIT_LISTS or "ImageSets" in path.split("/"):
        return _merge_lines(path, old.read_bytes(), new.read_bytes(), header=False)
    return None


def _merge_lines(path: str, old: bytes, new: bytes, *, header: bool) -> bytes:
    """The old text followed by the records of the new text that it lacks, in any encoding that contains ASCII."""
    if b"\0" in old or b"\0" in new:  # UTF-16
        raise _refuse_merge(path, "tables in UTF-8 or another encoding that contains ASCII", "UTF-16")
    first, second = (_split_records(text.removeprefix(b"\xef\xbb\xbf")) for text in (old, new))
    if header and [line.strip() for line in first[:1]] != [line.strip() for line in second[:1]]:
        heads = [b"".join(lines[:1]).decode(errors="replace") for lines in (first, second)]
        raise _refuse_merge(path, f"the columns of the table in place, {heads[0]}", heads[1])
    known, end = set(first), b"\r\n" if b"\r\n" in old else b"\n"
    more = [line for line in second if line not in known]
    text = old if not old or old.endswith(b"\n") else old + end
    return text + b"".join(line + end for line in more)


def _split_records(text: bytes) -> list[bytes]:
    """The records of a table without line ends; a quoted cell may span several lines."""
    records, open_ = list[bytes](), False
    for line in text.splitlines():
        if open_:
            records[-1] += b"\n" + line
        elif line.strip():
            records.append(line)
        open_ ^= line.count(b'"') % 2 == 1
    return records


def _merge_parquet(path: str, old: Path, new: Path) -> bytes:
    first, second = (pl.read_parquet(file, hive_partitioning=False) for file in (old, new))
    if set(first.columns) != set(second.columns):
        raise _refuse_merge(path, f"the columns {', '.join(first.columns)}", ", ".join(second.columns))
    second, known = second.select(first.columns), {repr(row) for row in first.iter_rows()}
    more = second.filter(pl.Series([repr(row) not in known for row in second.iter_rows()], dtype=pl.Boolean))
    try:
        both = pl.concat([first, more], how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise _refuse_merge(path, f"the types {first.schema}", str(error)) from None
    buffer = io.BytesIO()
    both.write_parquet(buffer)
    return buffer.getvalue()


def _merge_coco(path: str, old: Path, new: Path) -> bytes | None:
    """Merge two COCO files: pictures by file name, categories by name; new ids continue after the old ones."""
    first, second = (_load_coco(file) for file in (old, new))
    if first is None or second is None:
        return None
    categories = _match(first["categories"], second["categories"], "name")
    images = _match(first["images"], second["images"], "file_name")
    known = {_write_key(item) for item in first["annotations"]}
    number = max((item["id"] for item in first["annotations"] if isinstance(item.get("id"), int)), default=0)
    for item in second["annotations"]:
        place = {"image_id": images.get(item.get("image_id")), "category_id": categories.get(item.get("category_id"))}
        if None in place.values():
            raise _refuse_merge(path, "annotations of pictures and categories that the file lists", str(item)[:100])
        if _write_key(item | place) not in known:
            number += 1
            first["annotations"].append(item | place | {"id": number})
    return json.dumps(first, ensure_ascii=False).encode()


def _write_key(annotation: dict[str, Any]) -> str:
    """A key that is equal for annotations with the same content, whatever their ids."""
    return json.dumps({key: value for key, value in annotation.items() if key != "id"}, sort_keys=True)


def _load_coco(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_bytes())
        lists = [content[key] for key in ("images", "annotations", "categories")]
        whole = all("id" in item for items in (lists[0], lists[2]) for item in items)
        named = all("file_name" in item for item in lists[0]) and all("name" in item for item in lists[2])
        return dict(content) if whole and named else None
    except (ValueError, KeyError, TypeError):
        return None


def _match(old: list[dict[str, Any]], new: list[dict[str, Any]], key: str) -> dict[Any, Any]:
    """The ids of the new list to those of the old list, to which missing entries are added."""
    ids = {item[key]: item["id"] for item in old}
    number = max((item["id"] for item in old if isinstance(item["id"], int)), default=0)
    for item in new:
        if item[key] not in ids:
            number += 1
            ids[item[key]] = number
            old.append(item | {"id": number})
    return {item["id"]: ids[item[key]] for item in new}


def _refuse_merge(path: str, expected: str, found: str) -> DataError:
    hint = "Write both in the same form, or give `--replace` if the folder is the whole set."
    return DataError(f"{path} of the new images", expected=expected, found=found, hint=hint)
