"""Raw trees to rows: one reader a layout, and the dict that names them.

A reader only says what the tree says; whether files can be decoded is validation's business. What one file
gets wrong becomes that row's `problem` and ends in quarantine; what makes the whole tree doubtful (no images,
an unknown class, a path that leads out of raw/) is a DataError. No reader opens a file it did not find by
walking raw/ itself, so nothing outside it is ever read.
"""

import difflib
import posixpath
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from components.data.boxes import clip_boxes
from components.data.coco import read_coco
from components.data.guessing import hint_layout, refuse_layout, require_folder
from components.data.images import SUFFIXES, not_an_image, reason
from components.data.manifest import Reading, Row, SupportsDigest, Wanted, create_rows
from components.data.masks import read_instances, read_masks
from components.data.tables import read_table
from components.data.tree import walk_files
from components.data.voc import read_voc
from components.data.yolo import read_yolo
from components.domain import WITH_COLUMNS, Domain, Folders, Instances, Layout
from components.errors import DataError

Reader = Callable[[Any, Path, Wanted], Reading]


def read_rows(domain: Domain, raw: Path, digests: SupportsDigest | None = None) -> pl.DataFrame:
    """All samples of the raw folder as rows.parquet holds them, unvalidated.

    `digests` knows the hashes of files that did not change (`Digests`); without it all are read.

    Raises DataError when the tree does not fit the layout, or holds a label that is no class of the domain.
    """
    require_raw(raw)
    columns = tuple(dict.fromkeys([*([domain.group] if domain.group else []), *domain.slices]))
    if columns and domain.layout.kind not in WITH_COLUMNS:
        raise DataError(
            f"layout {domain.layout.kind}",
            expected=f"no columns for `group` and `slices`, which only the layouts {', '.join(WITH_COLUMNS)} have",
            found=", ".join(columns),
            mend="Describe the images in a table with the layout csv, or remove these keys.",
        )
    wanted = Wanted(columns, domain.classes, many=domain.task == "multilabel", digests=digests)
    rows = clip_boxes(READERS[domain.layout.kind](domain.layout, raw, wanted), raw).rows
    if not rows:
        refuse_layout(raw, domain.layout, "at least one image", "none")
    _require_known_labels(rows, domain, raw)
    return create_rows(_without_shared_masks(rows), domain, raw, digests)


def find_classes(layout: Layout, raw: Path, *, many: bool = False) -> list[str]:
    """The labels a raw folder holds, sorted: what a new domain may write as its classes."""
    require_raw(raw)
    if isinstance(layout, Instances):
        return sorted((layout.background, layout.label))
    rows = READERS[layout.kind](layout, raw, Wanted(many=many)).rows
    return sorted({label for row in rows for label in _labels(row)})


def require_raw(raw: Path) -> None:
    """Raise DataError unless there is a raw folder with something in it."""
    if raw.is_dir() and any(raw.iterdir()):
        return
    found = "an empty folder" if raw.is_dir() else "no such folder"
    mend = "Bring images in with `tessera import`, or fetch a recorded version with `dvc pull`."
    raise DataError(f"raw images {raw}", expected="a folder of images", found=found, mend=mend)


def read_folders(layout: Folders, raw: Path, _wanted: Wanted) -> Reading:
    """A row an image below a class folder. A class that has a folder of masks needs one for each image."""
    base = require_folder(raw, layout.images, layout)
    masks = _Masks(raw, require_folder(raw, layout.masks, layout)) if layout.masks else None
    rows = []
    for path in walk_files(raw, base):
        inner = posixpath.relpath(path, base or ".")
        label, _, rest = inner.partition("/")
        if masks and (path == masks.base or path.startswith(f"{masks.base}/")):
            continue
        if not rest:
            if path.lower().endswith(SUFFIXES):
                mend = "Move it into the folder of its class."
                rows.append(Row(path=path, problem=reason("an image inside a class folder", "one beside them", mend)))
            continue
        problem = not_an_image(path)
        mask = masks.find(label, rest) if masks and not problem else None
        rows.append(Row(path=path, label=label, mask=mask, problem=problem))
    if not any(row.label for row in rows):
        refuse_layout(raw, layout, f"one folder a class with images in {layout.images!r}", "no such folders")
    return Reading(rows)


READERS: dict[str, Reader] = {
    "folders": read_folders,
    "csv": read_table,
    "parquet": read_table,
    "voc": read_voc,
    "coco": read_coco,
    "yolo": read_yolo,
    "instances": read_instances,
    "masks": read_masks,
}


# Folders


class _Masks:
    """Masks by class and stem: `<base>/<class>/<same stem>.*`."""

    def __init__(self, raw: Path, base: str) -> None:
        self.base = base
        self.files = {posixpath.splitext(path)[0]: path for path in walk_files(raw, base)}
        self.labels = {posixpath.relpath(stem, base).split("/")[0] for stem in self.files}

    def find(self, label: str, rest: str) -> str | None:
        """The mask of an image; a name that is not there where it has none, for validation to say so."""
        stem = posixpath.join(self.base, label, posixpath.splitext(rest)[0])
        return self.files.get(stem, f"{stem}.png") if label in self.labels else None


def _without_shared_masks(rows: list[Row]) -> list[Row]:
    """Give a problem to pictures that claim one mask between them, as `a.jpg` and `a.png` in one folder do."""
    claims: dict[str, set[str]] = {}
    for row in rows:
        if row.mask and not row.crop:
            claims.setdefault(row.mask, set()).add(row.path)
    mend = "Rename one image and give it its own mask."
    return [
        replace(row, mask=None, boxes=(), problem=reason("its own mask", found, mend))
        if len(others := claims.get(row.mask or "", set())) > 1
        and (found := f"the mask {row.mask} shared by {', '.join(sorted(others))}")
        else row
        for row in rows
    ]


# Labels


def _labels(row: Row) -> list[str]:
    return list(row.labels) if row.labels is not None else [row.label] if row.label else []


def _require_known_labels(rows: list[Row], domain: Domain, raw: Path) -> None:
    unknown = [(label, row.path) for row in rows for label in _labels(row) if label not in domain.classes]
    if not unknown:
        return
    counts = Counter(label for label, _ in unknown)
    label, count = counts.most_common(1)[0]
    first = next(path for name, path in unknown if name == label)
    close = difflib.get_close_matches(label, domain.classes, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    hint += hint_layout(raw, domain.layout, same_kind=False)
    more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
    raise DataError(
        f"label {label!r} ({count} times, first at {first})",
        expected=f"one of the classes {', '.join(domain.classes)}",
        found=", ".join(sorted(map(repr, counts))[:10]) + more,
        mend=f"Add it to `classes` in domain.yaml, or rename or remove it.{hint}",
    )
