"""An exported adapter of Tessera without Tessera: pictures to pixels, and what the network puts out to answers.

Needs numpy, Pillow and, to run the network, onnxruntime. It is the file `prepare.py` of every export, beside
`model.onnx`, `card.json` and `proofs/`.

    from prepare import Model

    model = Model("DIR")                            # the folder of this file is the default
    model.answer("photo.jpg")                       # {"label": "crack", "probabilities": {"crack": 0.98, "good": 0.02}}
    model.answer("photo.jpg", box=(40, 30, 80, 70)) # of a model that was trained on crops

    python prepare.py photo.jpg other.png           # one line of JSON per image
    python prepare.py --verify                      # answers the proofs again and compares

With another engine than onnxruntime: `look = look_at(card, "photo.jpg")`, feed `look.pixels[None]` to the graph, and
`describe(card, look, row)` makes the answer of its output.

Shapes: C classes, (H, W) pixels of the upright picture, (h, w) of the network's answer on its canvas, K boxes.
"""

import argparse
import base64
import hashlib
import io
import json
import struct
import sys
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from components.data.sources.tails import JPEG, Jpeg, find_bad_checksum

Box = tuple[int, int, int, int]
Card = Mapping[str, Any]
Floats = NDArray[np.float64]
Source = str | Path | bytes | IO[bytes]

GRAPH, INT8 = "model.onnx", "model.int8.onnx"
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "La", "RGBa")
#: Errors of Pillow's decoders for damaged bytes.
UNDECODABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, MemoryError, struct.error, zlib.error)
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
GREY = 128  # around a letterboxed picture
LOSSY = ("JPEG", "MPO", "WEBP")
NOISE = 2  # grey levels by which lossy compression changes a constant picture
EDGE = 2  # pixels by which a box may exceed its picture; it is clipped then
MIN_CROP = 24  # pixels: the smallest square around an object
LEAST, OVERLAP, MOST_FOUND = 0.05, 0.6, 300  # least confidence, IoU of suppression, and number of boxes
EVEN, NONE, TINY = 0.5, -1, 1e-12
UNLABELLED = "(none)"

CLOSE = 1e-4  # by which probabilities may differ from the proofs'
CLOSE_PIXELS = 1e-4  # the share of a mask's pixels that may differ: one class is as probable as another there
CLOSE_CORNERS = 0.1  # pixels by which corners of boxes may differ


class Unfit(ValueError):  # noqa: N818  nothing failed: the picture is refused
    """A picture or box that training would have refused: what was expected, what was found, how to fix it."""

    def __init__(self, expected: str, found: str, hint: str) -> None:
        super().__init__(f"expected {expected}; found {found}. {hint}")


@dataclass(frozen=True)
class Look:
    """What the network sees: pixels (height, width, 3) uint8 on its canvas. size: width and height of the picture."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    crop: Box | None = None


class Model:
    """The exported network with its card. `int8` takes the quantised one. threads: of the processor; 0 for all."""

    def __init__(self, folder: str | Path | None = None, *, int8: bool = False, threads: int = 0) -> None:
        import onnxruntime

        self.folder = Path(__file__).parent if folder is None else Path(folder)
        self.card: Card = json.loads((self.folder / "card.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = self.folder / (INT8 if int8 else GRAPH)
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """pixels: (B, height, width, 3) uint8. What the graph puts out, as the card's `graph` describes it."""
        (rows,) = self.session.run(None, {"pixels": pixels})
        return np.asarray(rows, np.float32)

    def answer(self, source: Source, box: Box | None = None, *, whole: bool = False) -> dict[str, Any]:
        """The answer for a picture, or for the part of it in a box (x0, y0, x1, y1 in pixels, ends exclusive).

        whole: the model was trained on crops, and the picture is such a crop already. Raises Unfit for what training
        refuses.
        """
        look = look_at(self.card, source, box, whole=whole)
        return describe(self.card, look, self.run(look.pixels[None])[0])


# Pictures


def look_at(card: Card, source: Source, box: Box | None = None, *, whole: bool = False) -> Look:
    """The pixels of a picture, or of the part of it in a box, as training prepared them."""
    _require_box(card, box, whole=whole)
    picture, wanted = open_upright(source, card["input"]), card["input"]
    crop = None if box is None else cut_box(box, picture, wanted)
    part = picture if crop is None else picture.crop(crop)
    return Look(fit_image(part, tuple(wanted["img_size"]), wanted["fit"]), part.size, crop)


def _require_box(card: Card, box: Box | None, *, whole: bool) -> None:
    kind = card["input"]["kind"]
    if kind == "crop" and box is None and not whole:
        hint = "Give `box`, or `whole=True` where the picture is such a crop already."
        raise Unfit("a box, because the model was trained on crops", "a picture without one", hint)
    if box is not None and (kind == "picture" or whole or card["annotation"] == "boxes"):
        raise Unfit("a whole picture", f"the box {' '.join(map(str, box))}", "Leave the box out.")


def open_upright(source: Source, limits: Mapping[str, Any]) -> Image.Image:
    """The upright RGB pixels of a picture file. Raises Unfit for what training refuses: a picture that is too large or
    too small, damaged, transparent, of several frames, of more than 8 bits, or of one colour."""
    data = source if isinstance(source, bytes) else None
    if isinstance(source, str | Path):
        data = Path(source).read_bytes()
    stream = _follow(source.read() if data is None else data)  # type: ignore[union-attr]  # an open file
    most, before = int(limits["max_megapixels"] * 1e6), Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = most  # a domain's own limit may be above or below Pillow's
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(stream, formats=FORMATS)
            _require_form(image, most, limits)
            image.load()
    except Image.DecompressionBombError:
        raise _too_large("far more", limits) from None
    except UnidentifiedImageError:
        found = "a file in another format, whatever its name says" if stream.getbuffer().nbytes else "an empty file"
        raise Unfit(f"an image ({', '.join(FORMATS)})", found, "Export it again.") from None
    except Unfit:
        raise
    except UNDECODABLE as error:
        raise _damaged(str(error) or type(error).__name__) from None
    finally:
        Image.MAX_IMAGE_PIXELS = before
    if loss := _find_loss(stream):
        raise _damaged(loss)
    return _make_plain(image)


def _find_loss(stream: io.BytesIO) -> str | None:
    """What a decoded file shows of lost pixels."""
    if isinstance(stream, Jpeg):
        return stream.find_loss()
    stream.seek(0)
    return find_bad_checksum(stream)


def _follow(data: bytes) -> io.BytesIO:
    """A JPEG is followed while it is read, because its decoder fills in lost pixels silently."""
    return Jpeg(data) if data.startswith(JPEG) else io.BytesIO(data)


def _require_form(image: Image.Image, most: int, limits: Mapping[str, Any]) -> None:
    """Raise Unfit for what a header shows."""
    if image.width * image.height > most:
        raise _too_large(f"{image.width} x {image.height}", limits)
    if min(image.size) < limits["min_side"]:
        expected = f"sides of at least {limits['min_side']} pixels (validation.min_side)"
        raise Unfit(expected, f"{image.width} x {image.height}", "Use a larger picture.")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a photograph and its preview
        found = f"{getattr(image, 'n_frames', 0)} frames (animated or many pages)"
        raise Unfit("one picture per file", found, "Export the frame that you need as a single image.")
    if image.mode.startswith(("I", "F")) or any(";16" in str(tile.args) for tile in getattr(image, "tile", [])):
        hint = "Convert it to 8 bits with the intensity window that you need."
        raise Unfit("8 bits per channel", f"16-bit or deeper pixels (mode {image.mode})", hint)
    if image.mode not in MODES:
        hint = "Convert it to RGB, with its colour profile applied."
        raise Unfit("a grey or RGB image", f"colour mode {image.mode}", hint)


def _make_plain(image: Image.Image) -> Image.Image:
    """The decoded picture upright and in RGB."""
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        hint = "Flatten it onto the background that it should have."
        raise Unfit("an opaque image", "transparent pixels", hint)
    turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    picture = (image if turn is None else image.transpose(turn)).convert("RGB")
    lows, highs = zip(*_measure_range(picture), strict=True)
    span = max(high - low for low, high in zip(lows, highs, strict=True))
    if span <= NOISE:
        plain = image.format in LOSSY or not span
        ids = f"only the values {min(lows)} to {max(highs)}, like the class ids of a mask"
        found = "one value in every pixel (all black, white or grey)" if plain else ids
        raise Unfit("a picture of something", found, "Export it again.")
    return picture


def _measure_range(picture: Image.Image) -> list[tuple[int, int]]:
    return [(int(low), int(high)) for low, high in picture.getextrema()]  # type: ignore[misc]  # a pair per channel


def _too_large(found: str, limits: Mapping[str, Any]) -> Unfit:
    expected = f"at most {limits['max_megapixels']:g} megapixels (validation.max_megapixels)"
    return Unfit(expected, f"{found} pixels", "Cut or shrink it.")


def _damaged(found: str) -> Unfit:
    expected = "an image that can be decoded to its end"
    return Unfit(expected, f"damaged or truncated data ({found})", "Copy or export it again.")


def cut_box(box: Box, picture: Image.Image, limits: Mapping[str, Any]) -> Box:
    """The crop that training would cut for this box. Raises Unfit where that is outside the picture, small or flat."""
    width, height = picture.size
    x0, y0, x1, y1 = box
    if min(x0, y0) >= -EDGE and x1 <= width + EDGE and y1 <= height + EDGE:
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        expected = f"a box x0 y0 x1 y1 with x0 < x1, y0 < y1 inside the {width} x {height} picture"
        raise Unfit(expected, " ".join(map(str, box)), "Correct the box.")
    crop = (x0, y0, x1, y1)
    if limits["cut"] == "square":
        side = min(max(round(1.5 * max(x1 - x0, y1 - y0)), MIN_CROP), width, height)
        left = min(max((x0 + x1 - side) // 2, 0), width - side)
        top = min(max((y0 + y1 - side) // 2, 0), height - side)
        crop = (left, top, left + side, top + side)
    if min(crop[2] - crop[0], crop[3] - crop[1]) < limits["min_side"]:
        expected = f"an object of at least {limits['min_side']} x {limits['min_side']} pixels (validation.min_side)"
        raise Unfit(expected, f"{crop[2] - crop[0]} x {crop[3] - crop[1]}", "Draw a larger box.")
    if all(high == low for low, high in _measure_range(picture.crop(crop))):
        raise Unfit("an object in the box", "one value in every pixel", "Correct the box.")
    return crop


def place(size: tuple[int, int], canvas: tuple[int, int], fit: str) -> Box:
    """Where a picture of (width, height) lies on the canvas (height, width): x0, y0, x1, y1."""
    rows, columns = canvas
    if fit == "squash":
        return 0, 0, columns, rows
    scale = min(columns / size[0], rows / size[1])
    width, height = (max(1, round(side * scale)) for side in size)
    left, top = (columns - width) // 2, (rows - height) // 2
    return left, top, left + width, top + height


def fit_image(picture: Image.Image, canvas: tuple[int, int], fit: str) -> NDArray[np.uint8]:
    """The picture on the canvas: (height, width, 3) uint8."""
    left, top, right, bottom = place(picture.size, canvas, fit)
    resized = picture.resize((right - left, bottom - top), Image.Resampling.BICUBIC, reducing_gap=3.0)
    whole = Image.new("RGB", canvas[::-1], (GREY, GREY, GREY))
    whole.paste(resized, (left, top))
    return np.asarray(whole)


# Answers


def describe(card: Card, look: Look, row: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """The answer as `tessera predict` gives it. row: what the graph puts out for this look."""
    describers = {"label": _describe_label, "labels": _describe_labels, "mask": _describe_map, "boxes": _describe_boxes}
    return describers[card["annotation"]](card, look, row.astype(np.float64))


def _describe_label(card: Card, look: Look, row: Floats) -> dict[str, Any]:
    """The most probable class; by a decision, the class that lets a picture pass only from its threshold on, and
    otherwise the most probable other one, or `None` where that is left to a person."""
    classes, rule, best = card["classes"], card["calibration"]["decision"], int(row.argmax())
    if rule is None:
        return {"label": classes[best], "probabilities": _name(card, row)}
    place = classes.index(rule["label"])
    passes = bool(row[place] >= rule["threshold"])
    if rule["abstain"] and best == place and not passes:
        return {"label": None, "abstained": True, "probabilities": _name(card, row)}
    other = int(np.where(np.arange(len(row)) == place, -1.0, row).argmax())
    return {"label": classes[place if passes else other], "probabilities": _name(card, row)}


def _describe_labels(card: Card, look: Look, row: Floats) -> dict[str, Any]:
    limits = card["calibration"]["thresholds"]
    labels = [name for name, chance in _name(card, row).items() if chance >= limits[name]]
    return {"label": _join(labels), "labels": labels, "probabilities": _name(card, row)}


def _name(card: Card, row: Floats) -> dict[str, float]:
    return dict(zip(card["classes"], row.tolist(), strict=True))


def _join(labels: Sequence[str]) -> str:
    return " + ".join(labels) or UNLABELLED


# Masks


def _describe_map(card: Card, look: Look, row: Floats) -> dict[str, Any]:
    """`mask` is (H, W) uint8, the number of each pixel's class; `components` are of every class but the background."""
    names, background = card["classes"], card["background"]
    chances = restore(row, look.size, tuple(card["input"]["img_size"]), card["input"]["fit"])
    mask = decide_pixels(card, chances)
    counts = np.bincount(mask.reshape(-1), minlength=len(names))
    shown = [name for name, count in zip(names, counts, strict=True) if count and name != background]
    components = [
        {"label": name, **found}
        for number, name in enumerate(names)
        if name in shown
        for found in find_components(card, mask, chances, number)
    ]
    areas = {name: int(count) for name, count in zip(names, counts, strict=True)}
    label = _join(shown) if shown else str(background)
    return {"label": label, "areas": areas, "components": components, "mask": mask}


def restore(row: Floats, size: tuple[int, int], canvas: tuple[int, int], fit: str) -> NDArray[np.float32]:
    """(C, h, w) of the canvas to (C, H, W) of the picture: the padding is cut, the rest is resized bilinearly."""
    x0, y0, x1, y1 = place(size, canvas, fit)
    array = row.astype(np.float32)
    for axis, part, side, wanted in ((2, (x0, x1), canvas[1], size[0]), (1, (y0, y1), canvas[0], size[1])):
        before, behind, weight = _find_cells(array.shape[axis], part, side, wanted)
        low = np.take(array, before, axis)
        array = low + (np.take(array, behind, axis) - low) * (weight[:, None] if axis == 1 else weight)
    return array


def _find_cells(
    length: int, part: tuple[int, int], side: int, wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Which of an axis's `length` cells lie before and behind each of `wanted` pixels, and the weight of the latter."""
    first, last = part[0] * length // side, -(-part[1] * length // side) - 1
    numbers = 2 * np.arange(wanted, dtype=np.int64) + 1
    whole = 2 * wanted * side
    centres = length * (2 * wanted * part[0] + numbers * (part[1] - part[0])) - wanted * side
    centres = np.clip(centres, first * whole, last * whole)
    before = centres // whole
    return before, np.minimum(before + 1, last), (centres % whole / whole).astype(np.float32)


def decide_pixels(card: Card, chances: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, H, W) -> (H, W): the most probable class; of two classes, by the threshold where there is one."""
    calibration = card["calibration"]
    if not calibration["thresholds"]:
        return np.asarray(chances.argmax(axis=0), np.uint8)
    ((name, limit),) = calibration["thresholds"].items()
    number = card["classes"].index(name)
    odds = float(np.log(limit) - np.log1p(-limit))
    limit = float(1 / (1 + np.exp(-calibration["temperature"] * odds)))
    return np.asarray(np.where(chances[number] >= limit, number, 1 - number), np.uint8)


def find_components(
    card: Card, mask: NDArray[np.uint8], chances: NDArray[np.float32], number: int
) -> list[dict[str, Any]]:
    """The 8-connected components of a class, the largest first: box, area and mean calibrated probability."""
    flags = mask == number
    rows, starts, ends, component = _join_runs(flags)
    lengths = ends - starts
    count = int(component.max()) + 1
    sure = _rescale(chances[:, flags].T.astype(np.float64), card["calibration"]["temperature"])[:, number]
    area = np.bincount(component, weights=lengths).astype(np.int64)
    total = np.bincount(np.repeat(component, lengths), weights=sure)
    low, high = np.full((2, count), max(mask.shape)), np.zeros((2, count), np.int64)
    for axis, (begin, end) in enumerate(((starts, ends), (rows, rows + 1))):
        np.minimum.at(low[axis], component, begin)
        np.maximum.at(high[axis], component, end)
    return [
        {
            "box": [int(low[0, k]), int(low[1, k]), int(high[0, k]), int(high[1, k])],
            "area": int(area[k]),
            "confidence": min(max(float(total[k] / area[k]), 0.0), 1.0),
        }
        for k in np.argsort(-area, kind="stable").tolist()
    ]


def _join_runs(flags: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    """The runs of a map (H, W), row by row: row, start, end (exclusive), and the number of the component of each.

    Components count in the order of their first pixels.
    """
    padded = np.zeros((flags.shape[0], flags.shape[1] + 2), np.int8)
    padded[:, 1:-1] = flags
    change = np.diff(padded, axis=1)
    (rows, starts), (_, ends) = np.nonzero(change == 1), np.nonzero(change == -1)
    width = flags.shape[1] + 2
    first = np.searchsorted(rows * width + ends, (rows - 1) * width + starts, "left")
    behind = np.searchsorted(rows * width + starts, (rows - 1) * width + ends, "right")
    touching = np.maximum(behind - first, 0)  # runs of the row above that touch, also at a corner
    here = np.repeat(np.arange(len(rows)), touching)
    above = np.arange(len(here)) - np.repeat(touching.cumsum() - touching, touching) + np.repeat(first, touching)
    root = np.arange(len(rows))
    while (root[here] != root[above]).any():
        low = np.minimum(root[here], root[above])
        for side in (root[here], root[above]):
            np.minimum.at(root, side, low)
        while (root != root[root]).any():
            root = root[root]
    return rows, starts, ends, np.unique(root, return_inverse=True)[1].reshape(-1)


def _rescale(probabilities: Floats, temperature: float) -> Floats:
    """(P, C) probabilities as they are with the logits divided by the temperature."""
    if temperature == 1:
        return probabilities
    scaled = np.log(np.maximum(probabilities, TINY)) / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=1, keepdims=True)
    return shares


# Boxes: rows of x0, y0, x1, y1, number of the class, confidence


def _describe_boxes(card: Card, look: Look, row: Floats) -> dict[str, Any]:
    """`objects` reach the threshold of their class, the most confident first."""
    classes, calibration = card["classes"], card["calibration"]
    rows = restore_boxes(suppress(row), look.size, tuple(card["input"]["img_size"]), card["input"]["fit"])
    rows[:, 5] = _rescale_confidence(rows[:, 5], calibration["temperature"], calibration["offset"])
    limits = np.array([calibration["thresholds"].get(name, EVEN) for name in classes])
    shown = rows[rows[:, 5] >= limits[rows[:, 4].astype(np.int64)]]
    objects = [{"label": classes[int(one[4])], "box": one[:4].tolist(), "confidence": float(one[5])} for one in shown]
    counts = {name: sum(one["label"] == name for one in objects) for name in classes}
    return {"label": _join([name for name in classes if counts[name]]), "objects": objects, "counts": counts}


def suppress(candidates: Floats) -> Floats:
    """(K, 6), the most confident first, without those that overlap a more confident one of their class too much."""
    rows = candidates[candidates[:, 5] >= LEAST]
    sides = rows[:, 2:4] - rows[:, :2]
    areas, alive = sides[:, 0] * sides[:, 1], np.ones(len(rows), np.bool_)
    for number in range(len(rows)):
        if not alive[number]:
            continue
        low = np.maximum(rows[number, :2], rows[number + 1 :, :2])
        high = np.minimum(rows[number, 2:4], rows[number + 1 :, 2:4])
        shared = np.maximum(high - low, 0).prod(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            overlap = shared / (areas[number] + areas[number + 1 :] - shared)
        alive[number + 1 :] &= (rows[number + 1 :, 4] != rows[number, 4]) | ~(overlap > OVERLAP)
    return rows[alive][:MOST_FOUND]


def restore_boxes(rows: Floats, size: tuple[int, int], canvas: tuple[int, int], fit: str) -> Floats:
    """Rows on the canvas to pixels of the picture, clipped to it; without those outside of it, and of equal ones the
    first alone."""
    left, top, right, bottom = place(size, canvas, fit)
    scale = np.array([(right - left) / size[0], (bottom - top) / size[1]] * 2)
    moved = rows.copy()
    moved[:, :4] = np.clip((rows[:, :4] - np.array([left, top] * 2, np.float64)) / scale, 0, np.array(size * 2))
    moved[(moved[:, 2] <= moved[:, 0]) | (moved[:, 3] <= moved[:, 1]), 4] = NONE
    first = np.sort(np.unique(moved[:, :5], axis=0, return_index=True)[1])
    kept: Floats = moved[first][moved[first, 4] != NONE]
    return kept


def _rescale_confidence(confidence: Floats, temperature: float, offset: float) -> Floats:
    """Confidences as they are with the logits divided by the temperature, and the offset added then."""
    if temperature == 1 and offset == 0:
        return confidence
    logits = np.log(np.maximum(confidence, TINY)) - np.log(np.maximum(1 - confidence, TINY))
    scaled: Floats = 1 / (1 + np.exp(-(logits / temperature + offset)))
    return scaled


# Proofs


def verify(folder: str | Path | None = None) -> dict[str, Any]:
    """Answers the proofs with model.onnx and compares with `proofs/expected.json`.

    Returns the number of `images`, of those whose answers are `equal` and whose `pixels` are those that Tessera saw,
    the `largest_difference` of a probability, and `problems`, a sentence each; none where the export answers as Tessera
    does. A graph that is not the one of the card is not run.
    """
    place = Path(__file__).parent if folder is None else Path(folder)
    proofs = json.loads((place / "proofs" / "expected.json").read_text(encoding="utf-8"))["proofs"]
    report: dict[str, Any] = {"images": len(proofs), "equal": 0, "pixels": 0, "largest_difference": 0.0}
    if problems := find_changes(place):
        return {**report, "problems": problems}
    model = Model(place)
    for proof in proofs:
        box = None if proof["box"] is None else tuple(proof["box"])
        look = look_at(model.card, place / "proofs" / proof["image"], box)
        answer = describe(model.card, look, model.run(look.pixels[None])[0])
        difference, same = compare(answer, proof["answer"])
        report["largest_difference"] = max(report["largest_difference"], difference)
        report["equal"] += same
        report["pixels"] += hashlib.sha256(look.pixels.tobytes()).hexdigest() == proof["pixels_sha256"]
        if not same or difference > CLOSE:
            told = f"{proof['answer']['label']!r}; found {answer['label']!r}, with probabilities {difference:.2g} apart"
            problems.append(f"{proof['image']}: expected {told}")
    return {**report, "problems": problems}


def find_changes(folder: Path) -> list[str]:
    """A sentence for each graph that is not the one that the card names."""
    card: Card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in card["files"]}
    return [
        f"{name}: expected the sha256 {sha256[:12]}; found {found[name][:12]}"
        for name, sha256 in card["files"].items()
        if found[name] != sha256
    ]


def compare(found: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[float, bool]:
    """The largest difference of a probability, and whether the answers are equal. Masks: expected as base64 PNG."""
    same = found["label"] == expected["label"]
    pairs = [(chance, expected["probabilities"][name]) for name, chance in found.get("probabilities", {}).items()]
    if "mask" in expected:
        with Image.open(io.BytesIO(base64.b64decode(expected["mask"]))) as image:
            mask = np.asarray(image)
        same = same and mask.shape == found["mask"].shape and float((mask != found["mask"]).mean()) <= CLOSE_PIXELS
        pairs += _pair(found["components"], expected["components"], ("label", "box", "area"))
    if "objects" in expected:
        same = same and found["counts"] == expected["counts"]
        for one, other in zip(found["objects"], expected["objects"], strict=False):
            same = same and bool(np.abs(np.subtract(one["box"], other["box"])).max() <= CLOSE_CORNERS)
        pairs += _pair(found["objects"], expected["objects"], ("label",))
    return max((abs(one - other) for one, other in pairs), default=0.0), same


def _pair(found: Any, expected: Any, keys: tuple[str, ...]) -> list[tuple[float, float]]:
    """Confidences of things that are the same on both sides."""
    return [
        (one["confidence"], other["confidence"])
        for one, other in zip(found, expected, strict=False)
        if all(one[key] == other[key] for key in keys)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Answers of an exported adapter of Tessera.")
    parser.add_argument("images", nargs="*", help="image files")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="a box in every image, in pixels, ends exclusive")
    parser.add_argument("--whole", action="store_true", help="every image is a crop already")
    parser.add_argument("--int8", action="store_true", help="take model.int8.onnx")
    parser.add_argument("--verify", action="store_true", help="answer the proofs again and compare")
    wanted = parser.parse_args()
    if not wanted.images and not wanted.verify:
        parser.error("name images, or --verify")
    if wanted.verify:
        report = verify()
        sys.stdout.write(json.dumps(report) + "\n")
        return int(bool(report["problems"]))
    box = read_box(parser, wanted.box)
    if wanted.int8 and not (Path(__file__).parent / INT8).is_file():
        parser.error(f"this export has no {INT8}")
    model, failed = Model(int8=wanted.int8), 0
    for name in wanted.images:
        try:
            answer = model.answer(name, box, whole=wanted.whole)
        except (Unfit, OSError) as error:
            answer, failed = {"error": str(error)}, 1
        answer.pop("mask", None)
        sys.stdout.write(json.dumps({"image": name, **answer}, ensure_ascii=False) + "\n")
    return failed


def read_box(parser: argparse.ArgumentParser, text: str | None) -> Box | None:
    if text is None:
        return None
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        parser.error(f"--box {text}: expected four whole numbers")
    return x0, y0, x1, y1


if __name__ == "__main__":
    sys.exit(main())
