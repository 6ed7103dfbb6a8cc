"""Archives come from anywhere: what leads out, links, repeats or blows up is refused, and leaves nothing behind."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import write_folders

from components.data.store import archives
from components.data.store.archives import unpacked
from components.data.store.importing import import_folder
from components.errors import DataError
from components.workspace import Workspace


def zip_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tar_of(path: Path, *members: tarfile.TarInfo, data: bytes = b"", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            member.size = len(data) if member.isfile() else 0
            archive.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_with_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return path


def zip_with_password(path: Path) -> Path:
    zip_of(path, ("a.png", b"x"))
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


def tar_of_headers(path: Path, size: int, kind: bytes, number: int = 1) -> Path:
    """Long names or extended headers of so many bytes each, one after the other, and then a file."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, size
    record = b"%d comment=" % size
    content = (record + b"x" * (size - len(record) - 1) + b"\n").ljust(-(-size // 512) * 512, b"\0")
    headers = (info.tobuf(tarfile.USTAR_FORMAT) + content) * number
    path.write_bytes(headers + member("a.png").tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    return path


def tar_of_globals(path: Path, number: int) -> Path:
    """Members that each bring further headers for all that follow."""
    with path.open("wb") as file:
        for place in range(number):
            info = tarfile.TarInfo("header")
            info.type, info.size = tarfile.XGLTYPE, 512
            record = b"512 key%05d=" % place
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + record + b"x" * (511 - len(record)) + b"\n")
            file.write(member(f"{place}.png").tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1024))
    return path


@pytest.mark.parametrize("suffix", archives.SUFFIXES)
def test_an_archive_is_imported_as_its_folder_would_be(tmp_path, suffix):
    write_folders(tmp_path / "tiles")
    path = tmp_path / f"tiles{suffix}"
    if suffix == ".zip":
        names = sorted(file for file in (tmp_path / "tiles").rglob("*") if file.is_file())
        zip_of(path, *((file.relative_to(tmp_path).as_posix(), file.read_bytes()) for file in names))
    else:
        mode = {".tar": "w", ".tgz": "w:gz"}.get(suffix) or f"w:{suffix.rpartition('.')[2]}"
        with tarfile.open(path, mode) as archive:
            archive.add(tmp_path / "tiles", "tiles")
    workspace = Workspace(tmp_path / "workspace")
    domain = import_folder(workspace, path, "tiles").domain
    assert domain.classes == ("cracked", "good")
    raw = workspace.raw("tiles")
    assert {file.name for file in raw.iterdir()} == {"good", "cracked"}
    assert (raw / "good/good03.png").read_bytes() == (tmp_path / "tiles/good/good03.png").read_bytes()
    # Of the unpacked copy nothing stays, not even its hashes: the one file is about raw/.
    assert {path.name for path in workspace.state.iterdir()} == {"cache", "locks"}
    assert len([path for path in workspace.cache.rglob("*") if path.is_file()]) <= 1


HOSTILE: list[tuple[str, Callable[[Path], Path], str]] = [
    ("up.zip", lambda path: zip_of(path, ("../out.png", b"x")), "a path inside"),
    ("deep.zip", lambda path: zip_of(path, ("a/../../out.png", b"x")), "a path inside"),
    ("absolute.zip", lambda path: zip_of(path, ("/tmp/out.png", b"x")), "a path inside"),
    ("windows.zip", lambda path: zip_of(path, ("C:\\out.png", b"x")), "a path inside"),
    ("backslash.zip", lambda path: zip_of(path, ("..\\out.png", b"x")), "a path inside"),
    ("link.zip", zip_with_link, "a link or device 'link'"),
    ("secret.zip", zip_with_password, "the encrypted 'a.png'"),
    ("twice.zip", lambda path: zip_of(path, ("a.png", b"x"), ("./a.png", b"y")), "'./a.png' twice"),
    ("bomb.zip", lambda path: zip_of(path, ("a.bmp", bytes(3_000_000))), "a decompression bomb"),
    ("text.zip", lambda path: (path.write_text("no archive") and path) or path, "can be read to its end"),
    ("up.tar", lambda path: tar_of(path, member("../out.png"), data=b"x"), "paths inside the archive"),
    ("link.tar", lambda path: tar_of(path, member("a", tarfile.SYMTYPE, "/etc/passwd")), "a link or device 'a'"),
    ("hard.tar", lambda path: tar_of(path, member("a", tarfile.LNKTYPE, "../x")), "a link or device 'a'"),
    ("pipe.tar", lambda path: tar_of(path, member("a", tarfile.FIFOTYPE)), "a link or device 'a'"),
    ("bomb.tar.gz", lambda path: tar_of(path, member("a"), data=bytes(3_000_000), mode="w:gz"), "a decompression bomb"),
    ("text.tgz", lambda path: (path.write_text("no archive") and path) or path, "can be read to its end"),
    ("name.tar", lambda path: tar_of_headers(path, 400_000, tarfile.GNUTYPE_LONGNAME), "one of 400,384 bytes"),
    ("pax.tar", lambda path: tar_of_headers(path, 400_000, tarfile.XHDTYPE), "one of 400,384 bytes"),
    ("chain.tar", lambda path: tar_of_headers(path, 20, tarfile.GNUTYPE_LONGNAME, 5000), "can be read to its end"),
    ("globals.tar", lambda path: tar_of_globals(path, 600), "for all members; found more"),
    (
        "folders.tar",
        lambda path: tar_of(path, member("a/" * 400 + "b.png"), data=b"x"),
        "at most 300 files and folders",
    ),
    ("folders.zip", lambda path: zip_of(path, ("a/" * 400 + "b.png", b"x")), "at most 300 files and folders"),
    (
        "empty.tar",
        lambda path: tar_of(path, *(member(str(n), tarfile.DIRTYPE) for n in range(400))),
        "at most 300 files and folders",
    ),
    ("list.zip", lambda path: zip_of(path, *((f"{n}.png", b"x") for n in range(250))), "headers of at most 10,000"),
    ("both.zip", lambda path: zip_of(path, ("a", b"x"), ("a/b.png", b"x")), "a file where 'a/b.png' needs a folder"),
    ("pictures.rar", lambda path: (path.write_text("Rar!") and path) or path, "a folder or .zip"),
]


@pytest.mark.parametrize(("name", "write", "words"), HOSTILE, ids=[case[0] for case in HOSTILE])
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path, monkeypatch, name, write, words):
    monkeypatch.setattr(archives, "FREE_OF_RATIO", 1_000_000)
    monkeypatch.setattr(archives, "MOST_FILES", 300)
    monkeypatch.setattr(archives, "MOST_HEADER", 100_000)
    monkeypatch.setattr(archives, "MOST_LISTING", 10_000)
    source = write(tmp_path / name)
    with pytest.raises(DataError) as caught, unpacked(source, tmp_path / "scratch"):
        pass
    assert words in str(caught.value)
    assert not (tmp_path / "out.png").exists()
    assert not (tmp_path / "scratch").exists() or list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_archive_is_refused(tmp_path, share):
    for path in (zip_of(tmp_path / "a.zip", ("a.png", os.urandom(5000))), tmp_path / "a.tar.gz"):
        if path.suffix == ".gz":
            tar_of(path, member("a.png"), data=os.urandom(5000), mode="w:gz")
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match="can be read to its end"), unpacked(path, tmp_path / "scratch"):
            pass


# Folders are not to be trusted either


def test_a_source_may_be_a_link_but_may_not_link_out_or_in_circles(tmp_path):
    write_folders(tmp_path / "real")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real/good/same.png").symlink_to("good00.png")
    (tmp_path / "real/.git").mkdir()
    workspace = Workspace(tmp_path / "workspace")
    import_folder(workspace, tmp_path / "linked", "tiles")
    assert (workspace.raw("tiles") / "good/same.png").is_file()
    assert not (workspace.raw("tiles") / "good/same.png").is_symlink()
    assert not (workspace.raw("tiles") / ".git").exists()
    spoils: list[tuple[Callable[[Path], object], str]] = [
        (lambda link: link.symlink_to(tmp_path / "real"), "a link to"),
        (lambda link: link.symlink_to(link), "a link to"),
        (lambda link: link.symlink_to("/etc/passwd"), "a link to /etc/passwd"),
        (os.mkfifo, "a pipe, socket or device"),
        (lambda link: Path(os.fsdecode(os.fsencode(link) + b"\xff")).write_bytes(b"x"), "a file name in UTF-8"),
    ]
    for spoil, words in spoils:
        odd = tmp_path / "real/good/odd"
        spoil(odd)
        with pytest.raises(DataError, match=words):
            import_folder(workspace, tmp_path / "real", "tiles")
        for left in (tmp_path / "real/good").glob("odd*"):
            left.unlink()


def test_an_error_inside_an_archive_names_the_archive(tmp_path):
    path = zip_of(tmp_path / "set.zip", ("set/inner.zip", b"PK"), ("set/about.txt", b"x"))
    with pytest.raises(DataError) as caught:
        import_folder(Workspace(tmp_path / "workspace"), path, "tiles")
    assert "inner.zip, an archive" in str(caught.value)
    assert str(path) in str(caught.value)
    assert ".tessera" not in str(caught.value)
