"""Reads weight files of others without running code from them, and says what is wrong with those it refuses.

    with_limits(path.stat().st_size)   first: this process may not harm the machine
    tensors = read_tensors(path)

A pickle is opened with `weights_only`, which knows tensors and plain containers and runs nothing, in a process of its
own with limits on memory, time and what it writes: a file that promises more than it holds ends that process alone.
"""

import argparse
import pickle
import resource
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from components.errors import BackboneError

GB = 1 << 30
SECONDS = 3600  # of processor time for one file, comparison included
SPARE = 4 * GB  # memory for libraries, beside COPIES times the file
COPIES = 8  # of the tensors: as read, joined, in the network, in the original, as written
SWELL = 4  # times its size that a file's tensors may take: some share their storage
DEEP = 20  # nested containers

SAFETENSORS, ZIP, PICKLE = ".safetensors", b"PK\x03\x04", b"\x80"
LFS = b"version https://git-lfs.github.com/spec"
PAGES = (b"<!doctype", b"<html", b"<?xml")


def with_limits(size: int) -> None:
    """Limit this process for a file of `size` bytes: memory, processor time, what it writes; no core dumps."""
    limits = {
        resource.RLIMIT_DATA: SPARE + COPIES * size,
        resource.RLIMIT_CPU: SECONDS,
        resource.RLIMIT_FSIZE: GB + 2 * size,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file; those in nested containers are named by their path, such as `teacher.norm.weight`.

    Raises BackboneError for a file that is no checkpoint, is cut off, promises more than it holds, or cannot be opened
    without running code from it.
    """
    head = _read_head(path)
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    if head.startswith(ZIP):
        _require_sound_zip(path)
    elif not head.startswith(PICKLE):
        raise _refuse(path, f"bytes that begin with {head[:8]!r}", "Choose the weight file, or download it again.")
    content = _unpickle(path, mmap=head.startswith(ZIP))
    tensors = dict(_flatten(content, "", 0, path))
    _require_modest(tensors, path)
    return tensors


def _read_head(path: Path) -> bytes:
    """The first bytes. Raises BackboneError for what is often found in the place of a weight file."""
    if not path.is_file():
        raise BackboneError(f"backbone {path}", expected="a file", found="no such file", hint="Correct the path.")
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        raise _refuse(path, "an empty file", "Download it again.")
    if head.startswith(LFS):
        hint = "Fetch the file itself: `git lfs pull` in the repository that it comes from."
        raise _refuse(path, "a Git LFS pointer, which only names the file", hint)
    if head.lstrip().lower().startswith(PAGES):
        hint = "Download the file itself; such a page often asks for a login or for agreement to a licence."
        raise _refuse(path, "a web page", hint)
    return head


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, OSError) as error:
        raise _refuse(path, f"a damaged safetensors file ({error})", "Download it again.") from None


def _require_sound_zip(path: Path) -> None:
    """torch writes zip files whose entries are stored as they are: what unpacks to more is no checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            names = [entry.filename for entry in archive.infolist()]
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        found = f"a file that is cut off or damaged ({error})"
        raise _refuse(path, found, "Download it again and compare its size with the original's.") from None
    size = path.stat().st_size
    if unpacked > size:
        found = f"a zip file of {size:,} bytes that unpacks to {unpacked:,}, as torch writes none"
        raise _refuse(path, found, "Do not use it, unless you know who packed it.")
    if not any(name.endswith("data.pkl") for name in names):
        hint = "If it holds a checkpoint, unpack it and add that."
        raise _refuse(path, f"a zip file of {', '.join(names[:3])}", hint)


def _unpickle(path: Path, *, mmap: bool) -> Any:
    allowed: list[Any] = [argparse.Namespace]  # options of a training, in many checkpoints; holds plain values only
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _explain_pickle(path, error) from None
    except MemoryError:
        raise too_much(path) from None
    except RecursionError:
        raise _refuse(path, "containers nested without end", "Do not use it.") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        if "allocate" in str(error):
            raise too_much(path) from None
        raise _refuse(path, f"a file that is cut off or damaged ({_brief(error)})", "Download it again.") from None


def _explain_pickle(path: Path, error: Exception) -> BackboneError:
    """Which class or function the file wants to call; naming them does not call them."""
    try:
        wanted = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path)[:5])
    except (RuntimeError, ValueError, pickle.UnpicklingError):  # older than the zip format
        wanted = ""
    return _refuse(
        path,
        f"a pickle that runs code when it is opened: it asks for {wanted or _brief(error)}",
        "Where you trust its author, open it with the project that made it, and save its state_dict with "
        "safetensors.torch.save_file; then add that file.",
    )


def _flatten(content: Any, prefix: str, depth: int, path: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors in mappings and lists, with their path as name. Raises BackboneError for strange kinds of tensors."""
    if depth > DEEP:
        raise _refuse(path, f"containers nested more than {DEEP} deep", "Save its state_dict alone.")
    if isinstance(content, Tensor):
        if content.layout != torch.strided or content.is_quantized or content.is_meta:
            raise _refuse(path, f"{prefix}, a tensor that is sparse, quantised or empty", "Save it as a plain one.")
        yield prefix, content.detach()
        return
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    items: Iterable[tuple[Any, Any]] = content.items() if isinstance(content, Mapping) else ()
    items = enumerate(content) if isinstance(content, list | tuple) else items
    for key, value in items:
        yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key), depth + 1, path)


def _require_modest(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Views can repeat a few stored numbers without end; written out, they would fill the disk."""
    claimed, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path.stat().st_size
    if claimed > SWELL * size:
        raise _refuse(path, f"tensors of {claimed:,} bytes in a file of {size:,}", "Do not use it.")


def too_much(path: Path) -> BackboneError:
    """The error for a file whose conversion takes more memory than it may."""
    limit = (SPARE + COPIES * path.stat().st_size) / 1e9
    hint = "Close other programs where it is of the size that its source states; else do not use it."
    return _refuse(path, f"one that takes more memory than there is, or than the limit of {limit:.0f} GB", hint)


def _refuse(path: Path, found: str, hint: str) -> BackboneError:
    return BackboneError(f"backbone {path}", expected="a whole checkpoint", found=found, hint=hint)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
