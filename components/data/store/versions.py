"""Named data versions: `surface_defects@v3` names one content of data/surface_defects/raw permanently.

In a git workspace a name is an annotated tag (as gto writes them) on a commit that holds the pointer raw.dvc, the
domain file and the DVC settings of that time. The tag's text ends in one line of JSON with the counts, so that listing
needs neither images nor remote. A workspace without git keeps the same records in data/<domain>/versions.json.

A name is given last, after everything is on the remote, so every named version can be restored. Git commands run in a
session of their own, so that they end even if this process is killed.
"""

import configparser
import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from pydantic import ValidationError

from components.data.checks.boxes import compare_objects
from components.data.manifest import load_frame
from components.data.sample_keys import content_of
from components.data.store import versioning
from components.data.store.objects import load_listing, locate_object
from components.data.store.shards import NAME
from components.data.store.versioning import DataVersion, uses_git
from components.domain.domain import Domain
from components.errors import RemoteError, VersioningError
from components.files import settle_folder, write_whole
from components.records.versions import Difference, NamedVersion
from components.tasks.base import by_class
from components.workspace import Workspace


def name_version(workspace: Workspace, domain: Domain, message: str = "") -> tuple[NamedVersion, bool]:
    """Record the images as they are, push them and give them the next name; False if they have a name already."""
    doing = f"tessera version {domain.name}"
    with versioning.hold_domain(workspace, domain.name, doing), versioning.turn(workspace, doing):
        versioning.require_repository(workspace)
        _require_identity(workspace)
        versioning.register_domain(workspace, domain.name)
        version = versioning.record_version(workspace, domain.name)
        known = list_versions(workspace, domain.name)
        if same := [named for named in known if named.md5 == version.md5]:
            versioning.push_version(workspace, domain.name)  # the remote may have changed since
            return same[-1], False
        versioning.run_stage(workspace, "manifest", domain.name)
        versioning.push_version(workspace, domain.name, f"manifest@{domain.name}")
        named = _describe(workspace, domain, version, known[-1] if known else None, message)
        _keep(workspace, domain.name, named, known)
        return named, True


def list_versions(workspace: Workspace, domain: str) -> list[NamedVersion]:
    """All names of a domain's versions, oldest first."""
    if uses_git(workspace):
        found = [_read_tag(workspace, domain, tag) for tag in _tags(workspace, domain)]
    else:
        found = _read_file(_file(workspace, domain))
    return sorted(found, key=lambda named: named.number)


def find_version(workspace: Workspace, name: str) -> NamedVersion:
    """The version with this name. Raises VersioningError that lists the known names."""
    known = list_versions(workspace, name.partition("@")[0])
    for named in known:
        if named.name == name:
            return named
    hint = " In a clone, `git fetch --tags` fetches names that were given elsewhere." if uses_git(workspace) else ""
    what, doing = f"data version {name}", f"name the images here with `tessera version {name.partition('@')[0]}`.{hint}"
    if not known:
        found, hint = "no named version yet", f"{doing[0].upper()}{doing[1:]}"
    else:
        found, hint = f"only {', '.join(named.name for named in known)}", f"Choose one of these, or {doing}"
    raise VersioningError(what, expected="the name of a version", found=found, hint=hint)


def checkout_version(workspace: Workspace, domain: Domain, name: str) -> NamedVersion:
    """Replace the images by those of a named version. Raises VersioningError if the present images have no name."""
    doing = f"tessera checkout {name}"
    with versioning.hold_domain(workspace, domain.name, doing), versioning.turn(workspace, doing):
        versioning.require_repository(workspace)
        named = find_version(workspace, name)
        if _is_there(workspace, domain.name, named):
            return named
        try:
            cache = versioning.fetch_objects(workspace, [named.md5], whole=True)
        except RemoteError as error:
            raise _recall_remote(workspace, named, error) from None
        versioning.lay_out(workspace, cache, named.md5, workspace.raw(domain.name))
        _write_pointer(workspace, domain.name, named)
        versioning.record_version(workspace, domain.name)  # so that the next run need not hash them
        return named


def list_held(workspace: Workspace, domain: str) -> tuple[set[str], list[str]]:
    """The md5 of every file in a named version, and the versions whose list of files is in neither cache nor remote.

    For versions in shards, also the sha256 of the pictures in the shards.
    """
    held, unknown = set[str](), list[str]()
    for named in list_versions(workspace, domain):
        try:
            cache = versioning.fetch_objects(workspace, filter(None, [named.md5, named.labels]))
        except VersioningError:
            unknown.append(named.name)
            continue
        listing = load_listing(cache, named.md5)
        held.update(listing.values())
        if named.labels and all(NAME.fullmatch(path) for path in listing):
            rows = load_frame(locate_object(cache, named.labels))
            held.update(content_of(identity) for identity in rows["id"].drop_nulls())
    return held, unknown


# Naming


def _describe(
    workspace: Workspace, domain: Domain, version: DataVersion, before: NamedVersion | None, message: str
) -> NamedVersion:
    """The next name, with counts of the rows just read and the difference to the previous version."""
    labels = versioning.read_output(workspace, "manifest", domain.name, "rows.parquet")
    earlier = [before.md5, before.labels] if before and before.labels else []
    cache = versioning.fetch_objects(workspace, [version.md5, labels, *filter(None, earlier)])
    rows = load_frame(locate_object(cache, labels))
    said = list_annotations(rows, load_listing(cache, version.md5))
    counts = by_class(rows).drop_nulls("label").group_by("label").len().sort("label").rows()
    difference = None
    if before and before.labels:
        old = list_annotations(load_frame(locate_object(cache, before.labels)), load_listing(cache, before.md5))
        difference = compare_annotations(old, said)
    return NamedVersion(
        name=f"{domain.name}@v{before.number + 1 if before else 1}",
        md5=version.md5,
        files=version.files,
        size=version.size,
        labels=labels,
        images=sum(map(len, said.values())),
        classes=dict(counts),
        difference=difference,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        message=" ".join(message.split()),
    )


Annotations = dict[str, list[str]]  # hash of an image to the annotations of each file with that content


def list_annotations(rows: pl.DataFrame, listing: Mapping[str, str]) -> Annotations:
    """What rows.parquet says of the files of a version. listing: the hash of each file by its path."""
    files: dict[str, list[str]] = {}
    ids = {path: identity for path, identity in rows.select("path", "id").rows() if identity}
    packed = all(NAME.fullmatch(path) for path in listing)  # DVC knows only the shards; the rows name their images
    known = {path: content_of(identity) for path, identity in ids.items()} if packed else listing
    named = rows.select("path", "mask", "label", "boxes", "crop").rows()
    for (path, mask, *said), shape in zip(named, _list_shapes(rows), strict=True):
        if path in known:  # pixels and objects decide where they are known, however their mask is stored
            shown = listing.get(mask or "") if shape is None else shape
            files.setdefault(path, []).append(repr((*said, shown)))
    contents: Annotations = {}
    for path, said in files.items():
        contents.setdefault(known[path], []).append(repr(sorted(said)))
    return contents


def _list_shapes(rows: pl.DataFrame) -> list[str | None]:
    """Of each row the class map or the labelled boxes, as text; None where it has neither."""
    if "class_map" in rows.columns:
        return [None if data is None else hashlib.sha256(data).hexdigest() for data in rows["class_map"]]
    if "objects" in rows.columns:
        return [None if objects is None else repr(compare_objects(objects)) for objects in rows["objects"].to_list()]
    return [None] * rows.height


def compare_annotations(old: Annotations, new: Annotations) -> Difference:
    """Counts of added, removed and relabelled files; a renamed file is the same image."""
    before = Counter({content: len(said) for content, said in old.items()})
    after = Counter({content: len(said) for content, said in new.items()})
    same = sum((Counter(old[content]) & Counter(new[content])).total() for content in old.keys() & new.keys())
    return Difference(
        added=(after - before).total(),
        removed=(before - after).total(),
        relabelled=(before & after).total() - same,
    )


def _keep(workspace: Workspace, domain: str, named: NamedVersion, known: Sequence[NamedVersion]) -> None:
    """Store the name: a commit and a tag, or one more record in versions.json."""
    if not uses_git(workspace):
        records = [kept.model_dump(mode="json") for kept in [*known, named]]
        write_whole(_file(workspace, domain), f"{json.dumps(records, indent=1, ensure_ascii=False)}\n".encode())
        return
    folder = f"data/{domain}"
    names = ("raw.dvc", "domain.yaml", "splits.csv", ".gitignore")
    wanted = [*(f"{folder}/{name}" for name in names), "dvc.yaml", "dvc.lock"]
    wanted += [".dvc/config", ".dvc/.gitignore", ".dvcignore"]
    paths = [path for path in wanted if (workspace.root / path).exists()]
    title = f"Data version {named.name}" + (f": {named.message}" if named.message else "")
    _git(workspace, "add", "--", *paths)
    if versioning.git(workspace.root, "status", "--porcelain", "--", *paths):
        _git(workspace, "commit", "--quiet", "--only", "--message", title, "--", *paths)
    record = named.model_dump_json(exclude={"name", "message"})
    _git(workspace, "tag", "--annotate", "--message", title, "--message", record, named.name)


def _require_identity(workspace: Workspace) -> None:
    """Raise VersioningError if git has no user, before the images are hashed and sent: git would refuse the commit."""
    if uses_git(workspace) and versioning.git(workspace.root, "var", "GIT_COMMITTER_IDENT") is None:
        raise VersioningError(
            "name of a data version",
            expected="git to know who you are, since a name is a commit and a tag",
            found="no user.name and user.email",
            hint='Run `git config user.name "..."` and `git config user.email ...`, then the same command again.',
        )


# Restoring


def _is_there(workspace: Workspace, domain: str, wanted: NamedVersion) -> bool:
    """Whether the images are already the wanted ones. Raises VersioningError if the present images have no name."""
    raw = workspace.raw(domain)
    settle_folder(raw)
    if not raw.is_dir() or not any(raw.iterdir()):
        return False
    here = versioning.record_version(workspace, domain)
    if here.md5 in {named.md5 for named in list_versions(workspace, domain)}:
        return here.md5 == wanted.md5
    raise VersioningError(
        f"checkout of {wanted.name}",
        expected=f"images in {raw} that are a named version, so that they can be restored",
        found="changes that no version holds",
        hint=f"Keep them with `tessera version {domain}`, or move the folder away if they may be lost.",
    )


def restore_copy(workspace: Workspace, md5: str, target: Path) -> None:
    """Write the images of a version, given by its hash, into a new folder; raw/ stays unchanged."""
    cache = versioning.fetch_objects(workspace, [md5], whole=True)
    versioning.lay_out(workspace, cache, md5, target)


def _write_pointer(workspace: Workspace, domain: str, named: NamedVersion) -> None:
    out = {"md5": named.md5, "size": named.size, "nfiles": named.files, "hash": "md5", "path": "raw"}
    write_whole(workspace.raw(domain).with_suffix(".dvc"), yaml.safe_dump({"outs": [out]}, sort_keys=False).encode())


def _recall_remote(workspace: Workspace, named: NamedVersion, error: RemoteError) -> RemoteError:
    """Add to the error where the version was pushed to, if that is not the remote that is configured now."""
    text = versioning.git(workspace.root, "show", f"{named.name}:./.dvc/config") if uses_git(workspace) else None
    if text:
        config = configparser.RawConfigParser()
        config.read_string(text)
        then = versioning.describe_remote_of(config)
        if then != versioning.describe_remote(workspace):
            hint = f"When the version was named, its files were sent to the {then}. {error.hint}"
            return RemoteError(error.what, expected=error.expected, found=error.found, hint=hint)
    return error


# Names in git, and in a file


def _tags(workspace: Workspace, domain: str) -> list[str]:
    found = versioning.git(workspace.root, "tag", "--list", f"{domain}@v*") or ""
    return [tag for tag in found.split() if tag.rpartition("@v")[2].isdecimal()]


def _read_tag(workspace: Workspace, domain: str, tag: str) -> NamedVersion:
    """The record in the tag's text; for a tag that was created by hand, the version that raw.dvc names at the tag."""
    form = "--format=%(contents:subject)%00%(contents:body)%00%(creatordate:iso-strict)"
    subject, body, created = (versioning.git(workspace.root, "tag", "--list", form, tag) or "\0\0").split("\0")
    message = subject.removeprefix(f"Data version {tag}").removeprefix(": ")
    try:
        return NamedVersion(name=tag, message=message, **json.loads(body))
    except (json.JSONDecodeError, TypeError, ValidationError):
        text = versioning.git(workspace.root, "show", f"{tag}:./data/{domain}/raw.dvc") or ""
        version = versioning.parse_pointer(
            text, f"data/{domain}/raw.dvc at {tag}", f"Remove the tag `git tag -d {tag}`."
        )
        return NamedVersion(name=tag, message=message, created=created, **version.model_dump())


def _file(workspace: Workspace, domain: str) -> Path:
    return workspace.root / "data" / domain / "versions.json"


def _read_file(path: Path) -> list[NamedVersion]:
    try:
        records: list[Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return [NamedVersion.model_validate(record) for record in records]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValidationError) as error:
        found = " ".join(str(error).split())[:200]
        hint = "Restore the file from a copy; the images themselves are in the DVC cache and the remote."
        raise VersioningError(str(path), expected="a list of version records", found=found, hint=hint) from None


def _git(workspace: Workspace, *arguments: str) -> None:
    """Run a git command that writes. It ends even if this process is killed, so that no git lock file remains."""
    command = ["git", "-C", str(workspace.root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode != 0:
        raise VersioningError(
            f"git {arguments[0]} in {workspace.root}",
            expected="git to keep the name of a data version",
            found=" ".join((done.stderr or done.stdout).split())[:300],
            hint="Fix what git says and run the same command again; the images are recorded and pushed already.",
        )
