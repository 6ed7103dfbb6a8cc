"""A contact sheet of training images: the original and its first augmented versions, with masks, boxes or classes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.batches.boxes import fit_boxes
from components.data.batches.colours import choose_colours, draw_over, to_matplotlib
from components.data.batches.geometry import Pixels, fit_image, fit_map, place
from components.data.batches.pixels import open_upright
from components.data.batches.transforms import Augmentation, Box
from components.data.sources.images import MAX_MEGAPIXELS, open_picture
from components.domain.canvas import Fit, ImgSize
from components.domain.domain import Domain
from components.records.boxes import KINDS, read_objects, to_targets
from components.records.maps import IGNORE, decode_map
from components.tasks import choose_fit, create_task

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mask = NDArray[np.uint8]
Marks = dict[int, "Artist"]  # of the legend, in the order of their numbers

EPOCHS = 6  # augmented versions of each image
TILE_INCHES = 1.6
LEGEND_INCHES = 0.3  # of a further line of the legend
MASK, BOX = "#00e5ff", "#ffd400"
HALO = [(1.9, "#00000090"), (0.8, None)]  # a dark line below a bright one is visible on any background


def choose_rows(manifest: pl.DataFrame, images: int) -> pl.DataFrame:
    """Choose `images` training images, about equally many per class; the column `row` is their place in the manifest.

    They are the first by id, so the choice is random and always the same. Where boxes are annotated, an image counts
    for every class that it shows, and images without any object are a kind of their own.
    """
    train = manifest.with_row_index("row").filter(pl.col("split") == "train").sort("id")
    if "objects" in train.columns:
        return train[_take_turns(train["labels"].to_list(), images)]
    turns = train.with_columns(turn=pl.int_range(pl.len()).over("label"))
    return turns.sort("turn", "label").head(images).sort("label", "turn").drop("turn")


def _take_turns(shown: Sequence[Sequence[str]], most: int) -> list[int]:
    """The places of at most so many images: each class takes its next image in turn, the rarest class first."""
    kinds = Counter(name for names in shown for name in names or ("",))
    queues = [
        [place for place, names in enumerate(shown) if name in (names or ("",))]
        for name, _ in sorted(kinds.items(), key=lambda kind: (kind[1], kind[0]))
    ]
    chosen: dict[int, None] = {}
    while len(chosen) < min(most, len(shown)):
        for queue in queues:
            fresh = next((place for place in queue if place not in chosen), None)
            if fresh is not None and len(chosen) < most:
                chosen[fresh] = None
    return list(chosen)


def draw_preview(rows: pl.DataFrame, raw: Path, domain: Domain, img_size: ImgSize) -> "Figure":
    """One line per image, the original first. Epochs and seed are those of training, so it sees the same pictures."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    seed = domain.training.seeds[0]
    augment = Augmentation(domain.augmentation, seed, square=img_size.is_square)
    epochs = 0 if augment.pipeline is None else EPOCHS
    width = max(1 + epochs, 3)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    tall = TILE_INCHES * img_size.height / img_size.width
    figure = Figure(figsize=(TILE_INCHES * width + 0.45, tall * rows.height + 0.95), layout=layout)
    grid = figure.subplots(rows.height, 1 + epochs, squeeze=False)
    named = domain.augmentation if isinstance(domain.augmentation, str) else "own pipeline"
    chosen = choose_fit(domain)
    fit = "" if chosen == "squash" else f", {chosen}"
    figure.suptitle(f"{domain.name}, augmentation {named}, {img_size} px{fit}, seed {seed}", fontsize=11)
    boxed = "objects" in rows.columns
    draw = _draw_map_line if "class_map" in rows.columns else _draw_box_line if boxed else _draw_line
    marks: Marks = {}
    for line, row in zip(grid, rows.iter_rows(named=True), strict=True):
        name = _count_objects(len(row["objects"])) if boxed else row["label"]
        line[0].set_ylabel(name, fontsize=9, parse_math=False)
        marks |= draw(line, row, raw, domain, img_size, augment)
    for column, axes in enumerate(grid[0]):
        axes.set_title(f"epoch {column}" if column else "as it is", fontsize=9)
    if marks:
        figure.set_figheight(figure.get_figheight() + LEGEND_INCHES * (-(-len(marks) // 5) - 1))
        place = {"loc": "outside lower center", "ncols": min(len(marks), 5), "fontsize": 9}
        figure.legend(handles=[marks[key] for key in sorted(marks)], facecolor="#505050", labelcolor="w", **place)
    return figure


def _draw_line(
    line: Sequence["Axes"], row: dict[str, Any], raw: Path, domain: Domain, img_size: ImgSize, augment: Augmentation
) -> Marks:
    """One image and its versions, outlined by mask and boxes."""
    from matplotlib.lines import Line2D

    image, mask, boxes = load_labelled(row, raw, img_size, choose_fit(domain), domain.validation.max_megapixels)
    _draw_tile(line[0], image, mask, boxes)
    for epoch, axes in enumerate(line[1:]):
        _draw_tile(axes, *augment.with_labels(image, mask, boxes, epoch, row["row"]))
    kinds = [("mask", MASK, bool(mask.any())), ("box", BOX, bool(boxes))]
    return {
        number: Line2D([], [], color=colour, label=name) for number, (name, colour, seen) in enumerate(kinds) if seen
    }


def _draw_map_line(
    line: Sequence["Axes"], row: dict[str, Any], raw: Path, domain: Domain, img_size: ImgSize, augment: Augmentation
) -> Marks:
    """One image and its versions, with the classes of their pixels in colours."""
    background = create_task(domain).background_class
    with open_upright(raw / row["path"], row["path"], domain.validation.max_megapixels) as picture:
        image = fit_image(picture, img_size, choose_fit(domain))
    classes = fit_map(decode_map(row["class_map"]), img_size, choose_fit(domain))
    versions = [(image, classes)]
    versions += [augment.with_map(image, classes, epoch, row["row"]) for epoch in range(len(line) - 1)]
    for axes, (seen, moved) in zip(line, versions, strict=True):
        _draw_tile(axes, draw_over(seen, moved, domain.classes, background), np.zeros(img_size, np.uint8), [])
    shown = {number for _, moved in versions for number in np.unique(moved).tolist()}
    return {number: _mark_class(number, domain.classes, background) for number in shown}


def _count_objects(number: int) -> str:
    return "1 object" if number == 1 else f"{number} objects" if number else "no object"


def _draw_box_line(
    line: Sequence["Axes"], row: dict[str, Any], raw: Path, domain: Domain, img_size: ImgSize, augment: Augmentation
) -> Marks:
    """One image and its versions, with their objects outlined in the colours of their classes."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    fit, classes = choose_fit(domain), domain.classes
    with open_upright(raw / row["path"], row["path"], domain.validation.max_megapixels) as picture:
        image = fit_image(picture, img_size, fit)
    size = row["width"], row["height"]
    targets = fit_boxes(to_targets(read_objects(row["objects"]), classes), size, img_size, fit)
    versions = [(image, targets)]
    versions += [augment.with_boxes(image, targets, epoch, row["row"]) for epoch in range(len(line) - 1)]
    colours = {number: to_matplotlib(colour) for number, colour in enumerate(choose_colours(classes, None).values())}
    ignored, marks = len(classes), Marks()
    for axes, (seen, moved) in zip(line, versions, strict=True):
        _draw_tile(axes, seen, np.zeros(img_size, np.uint8), [])
        for x0, y0, x1, y1, number, kind in moved.tolist():
            dashed, colour = kind != KINDS.index("object"), colours[int(number)]
            for width, edge in (HALO[0], (HALO[1][0], colour)):
                box = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=edge, linewidth=width)
                box.set_linestyle((0, (3, 3)) if dashed else "-")
                axes.add_patch(box)
            marks[int(number)] = Line2D([], [], color=colour, label=classes[int(number)])
            if dashed:
                marks[ignored] = Line2D([], [], color="w", linestyle="--", label="dashed: ignored")
    return marks


def _mark_class(number: int, classes: Sequence[str], background: str | None) -> "Artist":
    """What a class looks like on the sheet."""
    from matplotlib.patches import Patch

    if number == IGNORE:
        return Patch(facecolor="none", edgecolor="#b0b0b0", hatch="////", label="no class (ignored, or outside)")
    name = classes[number]
    if name == background:
        return Patch(facecolor="none", edgecolor="w", label=f"{name} (not coloured)")
    return Patch(facecolor=to_matplotlib(choose_colours(classes, background)[name]), label=name)


def load_labelled(
    row: dict[str, Any], raw: Path, img_size: ImgSize, fit: Fit = "squash", max_megapixels: float = MAX_MEGAPIXELS
) -> tuple[Pixels, Mask, list[Box]]:
    """The image of a row at training size, with its mask (0 or 1) and boxes, which lie where the picture does."""
    with open_upright(raw / row["path"], row["path"], max_megapixels) as picture:
        x0, y0, x1, y1 = box = tuple(row["crop"] or (0, 0, *picture.size))
        image = fit_image(picture, img_size, fit, box)
    left, top, right, bottom = place((x1 - x0, y1 - y0), img_size, fit).box
    scale = np.array([(right - left) / (x1 - x0), (bottom - top) / (y1 - y0)] * 2)
    shift = np.array([left, top] * 2)
    boxes = [tuple(map(float, (np.array(box) - [x0, y0, x0, y0]) * scale + shift)) for box in row["boxes"]]
    mask = np.zeros(img_size, np.uint8)
    if row["mask"]:
        moved = fit_map(_read_mask(raw / row["mask"], box, max_megapixels), img_size, fit)
        mask = np.where(moved == IGNORE, 0, moved).astype(np.uint8)
    return image, mask, boxes


def _read_mask(path: Path, box: tuple[int, int, int, int], max_megapixels: float) -> Mask:
    """The part of a mask (or of a map of instance ids) as 0 and 1: 1 where it is not 0."""
    with open_picture(path, max_megapixels) as opened:
        values = np.asarray(opened.decode().cut(box))
    colours = values[..., : 3 if values.shape[-1] > 2 else 1] if values.ndim == 3 else values[..., None]  # no alpha
    marked: Mask = (colours != 0).any(axis=-1).astype(np.uint8)
    return marked


def _draw_tile(axes: "Axes", image: Pixels, mask: Mask, boxes: Sequence[Box]) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(image, interpolation="nearest", aspect="equal")
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    for width, colour in HALO:
        if mask.any():
            # The mask is padded, so that an outline closes along the image's edge.
            down, across = (np.arange(-1, side + 1) for side in mask.shape)
            axes.contour(across, down, np.pad(mask, 1), [0.5], colors=[colour or MASK], linewidths=width)
        for x0, y0, x1, y1 in boxes:
            corner = (x0 - 0.5, y0 - 0.5)
            axes.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=colour or BOX, linewidth=width))
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(len(image) - 0.5, -0.5))
