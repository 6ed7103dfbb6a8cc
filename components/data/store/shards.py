"""Tar shards, which DVC tracks instead of single files if a set has more than some 100,000 images.

raw/ then contains only shard-0000.tar and so on. Unchanged images stay in their shard and new images get new shards, so
that a version costs only what is new in it. Images are read from an unpacked copy below .tessera/cache, in which only
changed shards are unpacked again. The copy has the same files, and therefore the same rows, groups and splits, as a
folder.
"""

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from filelock import FileLock

from components.data.sources.names import is_junk
from components.data.store.archives import unpack_tar
from components.errors import DataError
from components.files import whole_folder
from components.sealed import load_known, save_known
from components.workspace import Workspace

NAME = re.compile(r"shard-\d{4,}\.tar")
SIZE = 256_000_000  # bytes of images per shard: few enough files for DVC, small enough to send again
INDEX = ".shards.json"  # beside the unpacked images: the shard of each file, and the stamp of each shard

Index = dict[str, dict[str, Any]]  # shard to its stamp and files


def is_sharded(raw: Path) -> bool:
    """Whether a raw folder contains only shards."""
    names = [entry.name for entry in os.scandir(raw) if not is_junk(entry.name)] if raw.is_dir() else []
    return bool(names) and all(NAME.fullmatch(name) for name in names)


def open_images(workspace: Workspace, name: str) -> Path:
    """The folder from which a domain's images are read: raw/ itself, or its unpacked shards, which are updated."""
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
    """Update `folder` to the content of the shards; an update that was killed is done again."""
    known, wanted = _load_index(folder), {path.name: _stamp(path) for path in sorted(raw.glob("shard-*.tar"))}
    kept: Index = {shard: entry for shard, entry in known.items() if wanted.get(shard) == entry["stamp"]}
    if kept == known and kept.keys() == wanted.keys():
        return
    save_known(folder / INDEX, kept)
    there = {path for entry in kept.values() for path in entry["files"]}
    for path in {path for entry in known.values() for path in entry["files"]} - there:
        (folder / path).unlink(missing_ok=True)
    for shard in wanted.keys() - kept.keys():
        kept[shard] = {"stamp": wanted[shard], "files": _unpack(raw / shard, folder, there)}
        there.update(kept[shard]["files"])
    save_known(folder / INDEX, kept)


def _unpack(shard: Path, folder: Path, there: set[str]) -> list[str]:
    scratch = folder / ".unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    unpack_tar(shard, scratch)
    files = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
    if twice := there.intersection(files):
        hint = "Import the images again from a folder; `tessera import` writes the shards."
        raise DataError(str(shard), expected="each file in one shard", found=f"{min(twice)!r} in two", hint=hint)
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / path, folder / path)
    shutil.rmtree(scratch)
    return files


def pack_shards(files: Mapping[str, Path], same: Set[str], raw: Path, there: Mapping[str, Sequence[str]]) -> None:
    """Replace raw/ by shards of `files` (path below raw/ to the file with its content).

    same: paths whose content is unchanged. there: the present files of each shard (`list_packed`).
    """
    left = set(files)
    with whole_folder(raw) as fresh:
        for shard, members in there.items():
            stay = [path for path in members if path in same and path in left]
            left.difference_update(stay)
            if stay == list(members):
                _second_name(raw / shard, fresh / shard)
            elif stay:
                _write_tar(fresh / shard, {path: files[path] for path in stay})
        number = max((int(shard[6:-4]) for shard in there), default=-1)
        for part in _parts({path: files[path] for path in sorted(left)}):
            number += 1
            _write_tar(fresh / f"shard-{number:04}.tar", part)


def list_packed(workspace: Workspace, name: str) -> dict[str, list[str]]:
    """The present files of each shard; empty if raw/ is a folder of images."""
    if not is_sharded(workspace.raw(name)):
        return {}
    return {shard: entry["files"] for shard, entry in _load_index(open_images(workspace, name)).items()}


def _parts(files: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    part, size = dict[str, Path](), 0
    for path, file in files.items():
        part[path] = file
        size += file.stat().st_size
        if size >= SIZE:
            yield part
            part, size = {}, 0
    if part:
        yield part


def _write_tar(target: Path, files: Mapping[str, Path]) -> None:
    """Write a tar with names and bytes only, so that the same files give the same archive."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for path, file in files.items():
            data = file.read_bytes()
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _second_name(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _load_index(folder: Path) -> Index:
    """The index; empty if it is lost or damaged, so that all shards are unpacked again."""
    found: Index = load_known(folder / INDEX) or {}
    return found
