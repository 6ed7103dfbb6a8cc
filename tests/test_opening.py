"""Opening one picture: upright in every format, refused where pixels are lost, within limits of size and memory."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from samples import make_domain, picture

from components.data.batches.pixels import decode_image
from components.data.checks.pictures import inspect_image
from components.data.manifest import Row, create_rows
from components.data.sources import images
from components.data.sources.images import UnfitPicture, Upright, read_picture
from components.domain.canvas import ImgSize
from components.domain.settings import Validation
from components.errors import DataError
from components.records.reasons import Reason

FORMS = {
    "jpg": ("JPEG", {}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "raw.tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
}
JPEGS = {
    "plain": {},
    "grey": {},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "full colour": {"subsampling": 0, "quality": 97},
}


def photograph(width: int = 400, height: int = 300) -> Image.Image:
    return Image.merge("RGB", [picture(seed, width, height) for seed in (1, 2, 3)])


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def problem_of(path: Path, data: bytes) -> str | None:
    path.write_bytes(data)
    short, long = (inspect_image(path, crops, Validation()).problem for crops in ((), [(0, 0, 20, 20)]))
    assert (short is None) == (long is None)
    return short and str(short)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", FORMS)
def test_sizes_and_pixels_agree_in_every_format_and_orientation(tmp_path: Path, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    path = tmp_path / f"a.{form}"
    path.write_bytes(encode(photograph(60, 40), FORMS[form][0], exif=exif, **FORMS[form][1]))
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    found, pixels = inspect_image(path, [], Validation()), np.asarray(read_picture(path))
    np.testing.assert_array_equal(pixels, expected)
    assert (found.width, found.height) == (pixels.shape[1], pixels.shape[0])
    assert found.turned == (orientation > 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_bands_give_the_bits_of_the_whole(mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BAND", 900)
    stored = photograph(301, 177).convert(mode)
    whole = stored.transpose(images.TURNS[orientation]) if orientation > 1 else stored
    upright, box = Upright(stored, orientation), (5, 9, 160, 101)
    for part, plain in ((None, whole.convert("RGB")), (box, whole.crop(box).convert("RGB"))):
        for size in ((16, 16), (128, 40), (300, 300)):
            expected = plain.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
            assert upright.shrink(size, "RGB", part).tobytes() == expected.tobytes()
        assert upright.reduce("L", (3, 3), part).tobytes() == plain.convert("L").reduce(3).tobytes()
    grey = whole.convert("RGB").convert("L").resize((32, 32), Image.Resampling.BOX)
    assert upright.average(32).tobytes() == grey.tobytes()


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_whose_tail_was_lost_is_found(tmp_path: Path, kind: str) -> None:
    image = photograph().convert("L") if kind == "grey" else photograph()
    data, path, rng = encode(image, "JPEG", **JPEGS[kind]), tmp_path / "a.jpg", np.random.default_rng(0)
    assert problem_of(path, data) is None
    for share in (0.1, 0.5, 0.9):
        lost = int(len(data) * share)
        tails = {
            "zeros": bytes(lost),
            "ones": b"\xff" * lost,
            "noise": rng.bytes(lost),
            "nothing": b"",
            "zeros and an end": bytes(lost - 2) + b"\xff\xd9",
        }
        tails |= {"an end": b"\xff\xd9"} if kind != "progressive" or share > 0.5 else {}
        for name, tail in tails.items():
            problem = problem_of(path, data[:-lost] + tail)
            assert problem, (name, share)
            assert any(words in problem for words in ("damaged or truncated", "in another format", "one value")), (
                problem
            )
    hole = int(len(data) * 0.8)
    if kind in ("plain", "grey", "optimised", "progressive"):
        assert problem_of(path, data[:hole] + bytes(512) + data[hole + 512 :])


@pytest.mark.parametrize(
    "after",
    [b"\0" * 5000, b"\xff\xd8\xff" + b"x" * 900, np.random.default_rng(0).bytes(64), b"\n"],
    ids=["zeros", "the start of another", "noise", "a line end"],
)
@pytest.mark.parametrize("kind", JPEGS)
def test_a_whole_jpeg_may_be_followed_by_anything(tmp_path: Path, kind: str, after: bytes) -> None:
    assert problem_of(tmp_path / "a.jpg", encode(photograph(), "JPEG", **JPEGS[kind]) + after) is None


def test_flat_dark_and_small_jpegs_are_whole(tmp_path: Path) -> None:
    """Optimised codes write flat parts as zeros."""
    dark = Image.new("RGB", (900, 700))
    dark.paste(photograph(60, 60), (500, 300))
    for image in (dark, photograph(16, 16), photograph(17, 33)):
        for options in JPEGS.values():
            assert problem_of(tmp_path / "a.jpg", encode(image, "JPEG", **options)) is None
    thumbnail, exif = encode(photograph(160, 120), "JPEG"), Image.Exif()
    exif[0x9286] = thumbnail
    assert problem_of(tmp_path / "a.jpg", encode(photograph(), "JPEG", exif=exif)) is None
    assert problem_of(tmp_path / "a.jpg", encode(dark, "MPO", save_all=True, append_images=[photograph()])) is None


@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_png_whose_tail_was_lost_is_found(tmp_path: Path, level: int) -> None:
    data = encode(photograph(), "PNG", compress_level=level)
    assert problem_of(tmp_path / "a.png", data) is None
    for share in (0.02, 0.1, 0.5, 0.9):
        lost = int(len(data) * share)
        for tail in (bytes(lost), b"\xff" * lost, b"", bytes(lost - 12) + data[-12:]):
            assert problem_of(tmp_path / "a.png", data[:-lost] + tail)


def test_limits_hold_wherever_a_picture_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    photograph(200, 200).save(path)
    with pytest.raises(UnfitPicture, match=r"at most 0\.03 megapixels"):
        read_picture(path, 0.03)
    with pytest.raises(DataError, match=r"at most 0\.03 megapixels"):
        decode_image(path, ImgSize(32, 32), max_megapixels=0.03)
    Image.new("RGBA", (40, 40), (9, 9, 9, 0)).save(path)
    with pytest.raises(UnfitPicture, match="transparent pixels"):
        read_picture(path)


TEXTS = st.text(max_size=30)


@given(TEXTS, TEXTS, TEXTS)
def test_the_parts_of_a_reason_stay_apart(expected: str, found: str, hint: str) -> None:
    """Also through rows.parquet, where a row without a problem has none."""
    made = Reason(expected, found, hint)
    assert str(made) == f"expected {made.expected}; found {made.found}. {made.hint}"
    assert len(str(made).splitlines()) == 1
    rows = [Row(path="a.png", problem=made), Row(path="b.png")]
    kept = create_rows(rows, make_domain(), Path("raw"), {"a.png": None, "b.png": None})["problem"].to_list()
    assert [kept[0] and Reason(**kept[0]), kept[1]] == [made, None]
    if not any(len(text.splitlines()) > 1 or text != text.strip() for text in (expected, found, hint)):
        assert [made.expected, made.found, made.hint] == [" ".join(t.splitlines()) for t in (expected, found, hint)]


MEMORY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from components.data.checks.pictures import create_thumbnail, inspect_images
from components.data.sources.images import open_picture
from components.domain.domain import Validation
folder = Path(sys.argv[1])
names = sorted(path.name for path in folder.iterdir())
found = inspect_images(folder, {name: [] for name in names}, Validation())
assert all(each.problem is None for each in found.values()), found
def view(name):
    with open_picture(folder / name) as opened:
        return opened.decode_plain().shrink((64, 64))
with ThreadPoolExecutor(8) as pool:
    list(pool.map(view, names))
create_thumbnail(folder / names[0], None, 64, 100)
# Of this program alone: getrusage counts what its parent held when it started it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_several_pictures_of_99_megapixels_take_the_memory_of_one(tmp_path: Path) -> None:
    flat = Image.new("RGB", (11_000, 9_000), (90, 120, 30))
    flat.paste(photograph(), (900, 900))
    flat.save(tmp_path / "0.png", compress_level=1)
    for number in range(1, 4):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 560e6  # one takes 396 MB of it, and the libraries 100
