"""The pixel cache: named by content, whole or absent, one writer at a time, bounded, never pulled from a reader."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from components.data.batches.pixels import decode_image, load_pixels
from components.domain.canvas import ImgSize
from components.errors import DataError, WorkspaceError
from components.workspace import REPOSITORY

SIZE = 32
#: What a process of its own does: load the cache of a manifest, say what it got, and keep it until stdin closes.
LOAD = """
import hashlib, sys
from pathlib import Path
import polars as pl
from components.data.batches import pixels
from components.domain.canvas import ImgSize
folder, size = Path(sys.argv[1]), ImgSize.of(int(sys.argv[2]))
decoded = 0
def count(*arguments):
    global decoded
    decoded += 1
    return decode(*arguments)
decode, pixels._decode_file = pixels._decode_file, count
got = pixels.load_pixels(pl.read_parquet(folder / "manifest.parquet"), folder / "raw", size, folder / "cache", 100)
print(decoded, hashlib.sha256(got).hexdigest(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, images: Path) -> Path:
    """A folder with raw/ and manifest.parquet, whose cache/ is empty."""
    os.symlink(images, tmp_path / "raw")
    paths = sorted(path.relative_to(images).as_posix() for path in (images / "images").glob("*.jpg"))[:40]
    ids = [hashlib.sha256((images / path).read_bytes()).hexdigest() for path in paths]
    frame = pl.DataFrame({"id": ids, "path": paths}).with_columns(crop=pl.lit(None, dtype=pl.List(pl.Int64)))
    frame.write_parquet(tmp_path / "manifest.parquet")
    return tmp_path


def _load(place: Path, size: int = SIZE) -> np.ndarray:
    return load_pixels(
        pl.read_parquet(place / "manifest.parquet"), place / "raw", ImgSize.of(size), place / "cache", 100
    )


def _files(place: Path) -> list[Path]:
    return sorted((place / "cache" / "pixels").iterdir())


def _start(place: Path, size: int = SIZE, **env: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", LOAD, str(place), str(size)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY, env={**os.environ, **env}
    )


def test_pixels_are_decoded_once_and_named_by_content(place: Path) -> None:
    manifest = pl.read_parquet(place / "manifest.parquet")
    first = _load(place)
    assert first.shape == (manifest.height, SIZE, SIZE, 3)
    assert not first.flags.writeable
    np.testing.assert_array_equal(first[3], decode_image(place / "raw" / manifest["path"][3], ImgSize.of(SIZE)))
    (file,) = _files(place)
    made = file.stat().st_ino
    np.testing.assert_array_equal(first, _load(place))
    assert _files(place)[0].stat().st_ino == made
    _load(place, SIZE // 2)
    assert len(_files(place)) == 2
    boxed = load_pixels(manifest, place / "raw", ImgSize(SIZE, 2 * SIZE), place / "cache", 100, "letterbox")
    wide = load_pixels(manifest, place / "raw", ImgSize(SIZE, 2 * SIZE), place / "cache", 100, "squash")
    assert not np.array_equal(boxed, wide)
    assert len(_files(place)) == 4
    manifest.head(5).write_parquet(place / "manifest.parquet")
    assert _load(place).shape[0] == 5
    assert len(_files(place)) == 5


def test_crops_of_one_picture_are_what_each_alone_would_be(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(picture)
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    crops = [[0, 0, 20, 30], [10, 10, 80, 60]]
    rows = {"id": [f"{digest}#{k}" for k in range(2)], "path": ["a.png"] * 2, "crop": crops}
    pixels = load_pixels(pl.DataFrame(rows), tmp_path, ImgSize.of(SIZE), tmp_path / "cache", 100)
    for got, crop in zip(pixels, crops, strict=True):
        np.testing.assert_array_equal(got, decode_image(picture, ImgSize.of(SIZE), crop))


def test_a_file_that_is_not_whole_is_made_again(place: Path) -> None:
    expected = np.array(_load(place))
    (file,) = _files(place)
    os.truncate(file, file.stat().st_size - 1)
    np.testing.assert_array_equal(_load(place), expected)
    (file,) = _files(place)
    assert file.stat().st_size == expected.size


def test_an_image_that_changed_since_the_manifest_is_refused(place: Path, images: Path) -> None:
    manifest = pl.read_parquet(place / "manifest.parquet")
    (place / "raw").unlink()
    (place / "raw" / "images").mkdir(parents=True)
    for path in manifest["path"]:
        (place / "raw" / path).write_bytes((images / path).read_bytes())
    Image.new("RGB", (64, 64)).save(place / "raw" / manifest["path"][7])
    with pytest.raises(DataError, match="changed since"):
        _load(place)
    assert _files(place) == []


@pytest.mark.slow
def test_of_many_processes_one_decodes(place: Path) -> None:
    """And none waits for another to be done with the pixels: all answer while all of them still hold their maps."""
    processes = [_start(place) for _ in range(3)]
    answers = [process.stdout.readline().split() for process in processes if process.stdout]
    for process in processes:
        process.communicate("")
    assert sorted(int(decoded) for decoded, _ in answers) == [0, 0, 40]
    assert len({digest for _, digest in answers}) == 1
    assert [file.suffix for file in _files(place)] == [".u8"]


def test_what_a_killed_writer_left_is_cleaned_and_the_next_one_decodes(place: Path) -> None:
    slow = LOAD.replace("decoded += 1", "decoded += 1; import time; time.sleep(0.2 if decoded > 8 else 0)")
    command = [sys.executable, "-c", slow, str(place), str(SIZE)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
    folder = place / "cache" / "pixels"
    while not (folder.exists() and list(folder.glob("*.partial"))):
        assert writer.poll() is None
        time.sleep(0.01)
    waiting = _start(place)
    time.sleep(0.5)
    writer.send_signal(signal.SIGKILL)
    decoded, digest = waiting.communicate("")[0].split()
    writer.communicate()
    assert int(decoded) == 40
    assert digest == hashlib.sha256(_load(place)).hexdigest()
    assert [file.suffix for file in _files(place)] == [".u8"]


def test_a_stale_partial_of_another_file_is_cleaned(place: Path) -> None:
    folder = place / "cache" / "pixels"
    folder.mkdir(parents=True)
    (folder / "0123.partial").write_bytes(b"half")
    _load(place)
    assert [file.suffix for file in _files(place)] == [".u8"]


def test_the_least_recently_used_goes_but_nothing_in_use(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 40 * 3 * (16**2 + 24**2 + 32**2) / 1e9  # three sizes fit, a fourth does not
    monkeypatch.setenv("TESSERA_CACHE_GB", str(room))
    with _start(place, 16) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()  # it holds the oldest file from now on
        expected = np.array(_load(place, 16))
        _load(place, 24)
        _load(place, 32)
        for number, file in enumerate(sorted(_files(place), key=lambda file: file.stat().st_size)):
            os.utime(file, (number, number))
        _load(place, 20)
        assert [file.stat().st_size for file in _files(place) if file.suffix == ".u8"].count(40 * 24 * 24 * 3) == 0
        sizes = {file.stat().st_size for file in _files(place)}
        assert sizes == {40 * 3 * side**2 for side in (16, 20, 32)}
        reader.communicate("")
    monkeypatch.setenv("TESSERA_CACHE_GB", "0")
    np.testing.assert_array_equal(_load(place, 16), expected)
    _load(place, 28)
    assert [file.stat().st_size for file in _files(place)] == [40 * 28 * 28 * 3], "the one just made stays"


def test_a_limit_that_is_not_a_number_is_reported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE_GB", "plenty")
    with pytest.raises(WorkspaceError, match="gigabytes"):
        _load(place)


def test_a_full_disk_is_reported_and_leaves_nothing(place: Path) -> None:
    """A process whose files may not grow meets the same error as a full disk, in the middle of writing."""
    code = LOAD.replace(
        "got = ",
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\ngot = ",
    )
    command = [sys.executable, "-c", code, str(place), str(SIZE)]
    done = subprocess.run(command, capture_output=True, text=True, input="", check=False, cwd=REPOSITORY)
    assert "WorkspaceError" in done.stderr
    assert "Free some space" in done.stderr
    assert _files(place) == []


def test_memory_stays_flat(place: Path) -> None:
    """A set far larger than what the process grows by: pixels go to the disk as they come."""
    manifest = pl.read_parquet(place / "manifest.parquet")
    many = pl.concat([manifest] * 40).with_row_index("n")
    many.with_columns(id=pl.col("id") + "#" + pl.col("n").cast(pl.String)).drop("n").sort("path", "id").write_parquet(
        place / "manifest.parquet"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = _load(place, 256)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert pixels.nbytes > 300e6
    assert grown < pixels.nbytes / 3
