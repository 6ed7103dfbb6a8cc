"""Tar shards: what DVC tracks instead of a file an image, where a set has more than some 100,000 of them.

raw/ then holds shard-0000.tar and so on, and nothing else. What is in place stays in its shard as long as it does not
change, and what is new gets shards of its own, so that a version costs what is new in it. Everything that reads images
reads them from a copy below .tessera/cache, where only shards that changed are unpacked again: the same files, hence
the same rows, groups and splits as from a folder.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from components.data.archives import unpack_tar
from components.data.digests import Digests
from components.data.tree import is_junk
from components.errors import DataError
from components.files import write_whole
from components.workspace import Workspace

NAME = re.compile(r"shard-\d{4,}\.tar")
SIZE = 256_000_000  # bytes of images in a shard: few enough files for DVC, little enough to send again
INDEX = ".shards.json"  # beside the unpacked images: which shard each came from, and what that looked like

Index = dict[str, dict[str, Any]]  # shard -> its stamp and files


def is_sharded(raw: Path) -> bool:
    """Whether a raw folder holds shards and nothing else."""
    names = [entry.name for entry in os.scandir(raw) if not is_junk(entry.name)] if raw.is_dir() else []
    return bool(names) and all(NAME.fullmatch(name) for name in names)


def open_images(workspace: Workspace, name: str) -> Path:
    """The folder where a domain's images are read: raw/ itself, or what its shards hold, unpacked as far as needed."""
    raw = workspace.raw(name)
    if not is_sharded(raw):
        return raw
    place = hashlib.sha256(os.path.realpath(raw).encode()).hexdigest()[:12]  # workspaces may share one cache
    folder = workspace.cache / "unpacked" / f"{name}-{place}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        _update(raw, folder)
    return folder


def _update(raw: Path, folder: Path) -> None:
    """Make `folder` hold what the shards hold; killed in between, it is done again."""
    known, wanted = _load_index(folder), {path.name: _stamp(path) for path in sorted(raw.glob("shard-*.tar"))}
    kept: Index = {shard: entry for shard, entry in known.items() if wanted.get(shard) == entry["stamp"]}
    if kept == known and kept.keys() == wanted.keys():
        return
    write_whole(folder / INDEX, json.dumps(kept).encode())
    there = {path for entry in kept.values() for path in entry["files"]}
    for path in {path for entry in known.values() for path in entry["files"]} - there:
        (folder / path).unlink(missing_ok=True)
    for shard in wanted.keys() - kept.keys():
        kept[shard] = {"stamp": wanted[shard], "files": _unpack(raw / shard, folder, there)}
        there.update(kept[shard]["files"])
    write_whole(folder / INDEX, json.dumps(kept).encode())


def _unpack(shard: Path, folder: Path, there: set[str]) -> list[str]:
    scratch = folder / ".unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    unpack_tar(shard, scratch)
    files = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
    if twice := there.intersection(files):
        mend = "Import the images again from a folder; `tessera import` writes the shards."
        raise DataError(str(shard), expected="each file in one shard", found=f"{min(twice)!r} in two", mend=mend)
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / path, folder / path)
    shutil.rmtree(scratch)
    return files


def pack_shards(source: Path, paths: Iterable[str], wanted: Digests, workspace: Workspace, name: str) -> None:
    """Put `paths` of `source` into data/<name>/raw as shards, in one move."""
    raw, partial = workspace.raw(name), workspace.raw(name).with_name(f".raw-{os.getpid()}.partial")
    old, there = _read_packed(workspace, name)
    files = set(paths)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for shard, members in old.items():
            stay = [path for path in members if path in files and there is not None and there[path] == wanted[path]]
            files.difference_update(stay)
            if stay == members:
                _second_name(raw / shard, partial / shard)
            elif stay:
                _write_tar(partial / shard, source, stay)
        number = max((int(shard[6:-4]) for shard in old), default=-1)
        for part in _parts(source, sorted(files)):
            number += 1
            _write_tar(partial / f"shard-{number:04}.tar", source, part)
        shutil.rmtree(raw, ignore_errors=True)
        os.replace(partial, raw)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_packed(workspace: Workspace, name: str) -> tuple[Mapping[str, list[str]], Digests | None]:
    """What is in which shard now, and the hashes of all that."""
    if not is_sharded(workspace.raw(name)):
        return {}, None
    folder = open_images(workspace, name)
    return {shard: entry["files"] for shard, entry in _load_index(folder).items()}, Digests(folder, workspace.cache)


def _parts(source: Path, paths: list[str]) -> Iterator[list[str]]:
    part, size = list[str](), 0
    for path in paths:
        part.append(path)
        size += (source / path).stat().st_size
        if size >= SIZE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _write_tar(target: Path, source: Path, paths: Iterable[str]) -> None:
    """Names and bytes alone: the same files give the same archive."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in paths:
            data = (source / path).read_bytes()
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _second_name(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without second names
        shutil.copyfile(source, target)


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _load_index(folder: Path) -> Index:
    """Nothing where it is lost or damaged: then all is unpacked again."""
    try:
        found: Index = json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError):
        return {}
    return found
