"""Unpacks archives of images without trusting them: no paths outside the folder, no links, no decompression bombs."""

import bz2
import gzip
import io
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from components.data.annotations.tree import resolve_inside
from components.data.sources.images import brief
from components.data.sources.names import is_junk
from components.errors import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PACKERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RecursionError,  # a tar with nested headers, which tarfile reads recursively
    gzip.BadGzipFile,
)
MOST_RATIO = 100  # most bytes inside per byte of the archive; photographs hardly shrink, tables and plain bitmaps do
FREE_OF_RATIO = 1_000_000_000  # bytes that any archive may contain, whatever the ratio
MOST_FILES = 2_000_000  # files and folders, created or only listed
CHUNK = 1 << 18  # bytes copied at a time
MOST_HEADER = 1 << 18  # bytes of one name, or of another header of a tar's member
MOST_LISTING = 1 << 25  # bytes of a zip's list of files, some 300,000; it takes ten times as much memory


@contextmanager
def unpacked(source: Path, scratch: Path) -> Iterator[Path]:
    """The folder itself, or the content of an archive in a folder below `scratch` until the block ends.

    If the archive contains a single folder with its own name, that folder is returned. Raises DataError for an archive
    that is damaged or not trustworthy, and for any other file.
    """
    if source.is_dir():
        yield source
        return
    form = source.name.lower()
    if not source.is_file() or not form.endswith(SUFFIXES):
        found = "another file" if source.is_file() else "nothing there"
        hint = "Name the folder or the archive that holds the images."
        raise DataError(f"import of {source}", expected=f"a folder or {', '.join(SUFFIXES)}", found=found, hint=hint)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="import-", dir=scratch) as folder:
        content = Path(folder) / "content"
        content.mkdir()
        budget = _Budget(source, content)
        try:
            if form.endswith(".zip"):
                _unpack_zip(source, content, budget)
            else:
                _unpack_tar(source, content, budget)
        except DAMAGED as error:
            raise _refusal(source, "an archive that can be read to its end", brief(error)) from None
        inner = content / source.name[: -len(next(end for end in SUFFIXES if form.endswith(end)))]
        alone = all(path == inner or is_junk(path.name) for path in content.iterdir())
        yield inner if inner.is_dir() and alone else content


def unpack_tar(source: Path, content: Path) -> None:
    """Unpack a tar into an empty folder, with the same checks as for any other archive. Raises DataError."""
    try:
        _unpack_tar(source, content, _Budget(source, content))
    except DAMAGED as error:
        raise _refusal(source, "an archive that can be read to its end", brief(error)) from None


class _Sips(io.FileIO):
    """A file that returns a limited number of bytes per read.

    zipfile reads a zip's list of files in one piece, and tarfile reads the long name of a member in one piece, however
    long they claim to be. The content of members is read in small pieces.
    """

    def __init__(self, path: Path, most: int, source: Path) -> None:
        super().__init__(path)
        self.most, self.source = most, source

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > self.most:
            raise _refusal(self.source, f"headers of at most {self.most:,} bytes", f"one of {size:,} bytes")
        return super().read(size) or b""


class _Budget:
    """The bytes and files that may still be unpacked. Unpacked bytes are counted, not the sizes stated in headers."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source = source
        self.bytes = max(FREE_OF_RATIO, MOST_RATIO * source.stat().st_size)
        self.bytes = min(self.bytes, shutil.disk_usage(target).free)
        self.files = MOST_FILES

    def spend(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0:
            expected = f"at most {MOST_RATIO} times its size or {FREE_OF_RATIO // 10**9} GB inside, and space for it"
            raise _refusal(self.source, expected, "more: a decompression bomb, or a full disk")

    def copy(self, source: IO[bytes], target: Path) -> None:
        with target.open("xb") as file:
            while data := source.read(CHUNK):
                self.spend(len(data))
                file.write(data)

    def count(self, number: int = 1) -> None:
        """Count files and folders, also those that are only listed. Raises DataError above the limit."""
        self.files -= number
        if self.files < 0:
            raise _refusal(self.source, f"at most {MOST_FILES:,} files and folders", "more")

    def place(self, content: Path, name: str) -> Path:
        """The path of a member. Raises DataError for a name that leads out of the folder or occurs twice."""
        path = content / resolve_inside(name, "", f"archive {self.source}")
        if path.exists() or path == content:
            raise _refusal(self.source, "every file once", f"{name!r} twice")
        try:
            self._make_folder(path.parent)
        except (FileExistsError, NotADirectoryError):
            raise _refusal(self.source, "every name once", f"a file where {name!r} needs a folder") from None
        return path

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            self.count()
            folder.mkdir()


def _unpack_zip(source: Path, content: Path, budget: _Budget) -> None:
    with _Sips(source, MOST_LISTING, source) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            budget.count()
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refusal(source, "plain files", f"a link or device {member.filename!r}")
            if member.flag_bits & 1:
                raise _refusal(source, "files without a password", f"the encrypted {member.filename!r}")
            if not member.is_dir():
                with archive.open(member) as packed:
                    budget.copy(packed, budget.place(content, member.filename))


def _unpack_tar(source: Path, content: Path, budget: _Budget) -> None:
    """Unpack a tar. It is first uncompressed to a plain file, in which no header can claim more than there is."""
    plain = content.parent / "archive.tar"
    with source.open("rb") as file:
        start = file.read(6)
    packer = next((opener for magic, opener in PACKERS.items() if start.startswith(magic)), None)
    if packer is not None:
        with packer(source, "rb") as packed:
            budget.copy(packed, plain)
        budget.bytes += plain.stat().st_size  # the same bytes are counted again as files
    sips = _Sips(source if packer is None else plain, MOST_HEADER, source)
    with sips, tarfile.open(fileobj=sips, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # otherwise all are kept in memory
            budget.count()
            if sum(map(len, archive.pax_headers)) + sum(map(len, archive.pax_headers.values())) > MOST_HEADER:
                raise _refusal(source, f"headers of at most {MOST_HEADER:,} bytes for all members", "more")
            if not (member.isfile() or member.isdir()):
                raise _refusal(source, "plain files", f"a link or device {member.name!r}")
            try:
                name = tarfile.data_filter(member, str(content)).name
            except tarfile.FilterError as error:
                raise _refusal(source, "paths inside the archive", str(error)) from None
            if member.isfile() and (content_of := archive.extractfile(member)) is not None:
                budget.copy(content_of, budget.place(content, posixpath.normpath(name)))


def _refusal(source: Path, expected: str, found: str) -> DataError:
    hint = "Pack the images again, or unpack the archive yourself and import the folder."
    return DataError(f"archive {source}", expected=expected, found=found, hint=hint)
