"""Pictures and tables of answered boxes: every mistake in its own colour, small objects enlarged, no frame too odd."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from components.data.batches.colours import STEPS, choose_colours, to_matplotlib
from components.records.boxes import OBJECTS, LabelledBox, to_targets, write_objects
from components.records.outcomes import Score
from components.reports import box_figures, box_tables, boxes, panels, pictures, suspects
from components.reports.words import ByClass
from components.tasks.base import name_labels
from components.tasks.calibration import Calibration
from components.tasks.detection import DetectionTask
from components.tasks.suspects import Suspect

TASK = DetectionTask()
CLASSES = ("crack", "rust")
EVEN = Calibration(thresholds={"crack": 0.5, "rust": 0.5})
Found = tuple[float, float, float, float, int, float]


def write_row(
    raw: Path,
    name: str,
    objects: Sequence[LabelledBox],
    found: Sequence[Found],
    size: tuple[int, int] = (100, 80),
    classes: Sequence[str] = CLASSES,
) -> dict[str, Any]:
    """A picture on disk and its row of a frame of predictions, judged by the task."""
    raw.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(name))
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(raw / name)
    labels = [label for label in classes if any(one.label == label for one in objects)]
    answer = np.array(found, np.float64).reshape(-1, 6)
    return {
        "id": name,
        "path": name,
        "crop": None,
        "group": name,
        "split": "test",
        "label": name_labels(labels),
        "labels": labels,
        "objects": write_objects(objects),
        **TASK.judge(answer, to_targets(objects, classes), classes, EVEN),
    }


def frame_of(*rows: dict[str, Any]) -> pl.DataFrame:
    types = {"crop": pl.List(pl.Int64), "labels": pl.List(pl.String), "objects": OBJECTS, **TASK.judged()}
    return pl.DataFrame(rows, schema_overrides=types)


#: One object per fate, each in a column of its own, and a region to ignore with a box in it.
OBJECTS_OF_ALL_FATES = [
    LabelledBox("crack", (0, 0, 10, 10)),  # found, and a duplicate of it
    LabelledBox("crack", (20, 0, 30, 10)),  # misplaced
    LabelledBox("crack", (40, 0, 50, 10)),  # other class
    LabelledBox("crack", (60, 0, 70, 10)),  # missed; a box that is not shown finds it
    LabelledBox("rust", (0, 40, 40, 80), "crowd"),
]
FOUND_OF_ALL_KINDS: list[Found] = [
    (0, 0, 10, 10, 0, 0.9),
    (0, 1, 10, 11, 0, 0.8),
    (24, 0, 34, 10, 0, 0.7),
    (40, 0, 50, 10, 1, 0.95),
    (60, 0, 70, 10, 0, 0.3),
    (80, 60, 90, 70, 1, 0.6),
    (10, 50, 20, 60, 1, 0.85),
]


def read_marks(axes: Any) -> dict[tuple[float, ...], tuple[str, Any]]:
    """What is drawn at each place: kind of line and colour, of the last one drawn there."""
    marks = {}
    for patch in axes.patches:
        assert isinstance(patch, Rectangle)
        style = "hatched" if patch.get_hatch() else "dashed" if patch.get_linestyle() != "solid" else "solid"
        corners = (*patch.get_xy(), patch.get_x() + patch.get_width(), patch.get_y() + patch.get_height())
        marks[tuple(map(float, corners))] = (style, patch.get_edgecolor()[:3])
    return marks


def test_every_mistake_has_its_line_and_colour(tmp_path: Path) -> None:
    row = write_row(tmp_path, "a.png", OBJECTS_OF_ALL_FATES, FOUND_OF_ALL_KINDS)
    figure = boxes.draw_worst(frame_of(row), TASK, CLASSES, tmp_path, "title")
    truth, answer, difference = figure.axes
    colours = {kind: pytest.approx(to_matplotlib(colour)) for kind, colour in boxes.KINDS.items()}
    assert read_marks(difference) == {
        (0, 0, 10, 10): ("solid", colours["found"]),
        (0, 1, 10, 11): ("solid", colours["duplicate"]),
        (20, 0, 30, 10): ("dashed", colours["misplaced"]),
        (24, 0, 34, 10): ("solid", colours["misplaced"]),
        (40, 0, 50, 10): ("solid", colours["other class"]),
        (60, 0, 70, 10): ("dashed", colours["missed"]),
        (80, 60, 90, 70): ("solid", colours["false"]),
        (0, 40, 40, 80): ("hatched", pytest.approx(to_matplotlib(boxes.GREY))),
    }
    crack, rust = (pytest.approx(to_matplotlib(colour)) for colour in choose_colours(CLASSES, None).values())
    assert read_marks(truth)[0, 0, 10, 10] == ("solid", crack)
    assert read_marks(truth)[0, 40, 40, 80] == ("hatched", rust)
    assert len(answer.patches) == 6, "a box below its threshold is drawn"
    assert {text.get_text() for text in answer.texts} == {".90", ".80", ".70", ".95", ".60", ".85"}
    heads = [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes]
    assert heads == [
        "1 of 1: a.png truth: 4 crack, 1 ignored",
        "answer: 3 crack, 3 rust",
        "difference: 1 missed, 1 false, 1 other class, 1 misplaced, 1 duplicate",
    ]
    legends = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert legends == {"crack", "rust", *boxes.KINDS, "ignored"}


def test_a_difference_looks_like_no_class() -> None:
    classes = choose_colours([f"class {k}" for k in range(7 * len(STEPS))], None)
    assert not set(boxes.KINDS.values()) & set(classes.values())
    assert len(set(boxes.KINDS.values())) == len(boxes.KINDS)


def test_small_boxes_are_enlarged_where_most_of_them_are_and_large_ones_are_not() -> None:
    cluster = [(700.0 + 20 * k, 500.0, 712.0 + 20 * k, 512.0) for k in range(3)]
    alone = (20.0, 30.0, 32.0, 42.0)
    x0, y0, x1, y1 = boxes.choose_window([alone, *cluster], (800, 600)) or (0, 0, 0, 0)
    assert (x1 - x0, y1 - y0) == (120, 120)
    assert all(x0 <= left and right <= x1 and y0 <= top and bottom <= y1 for left, top, right, bottom in cluster)
    assert boxes.choose_window([(20.0, 30.0, 120.0, 50.0)], (800, 600)) is None
    assert boxes.choose_window([], (800, 600)) is None


def test_what_is_wrong_decides_what_is_enlarged(tmp_path: Path) -> None:
    large, small = LabelledBox("crack", (0, 0, 300, 300)), LabelledBox("crack", (600, 500, 610, 510))
    row = write_row(tmp_path, "a.png", [large, small], [(0, 0, 300, 300, 0, 0.9)], (800, 600))
    place, truth, *_ = boxes.draw_worst(frame_of(row), TASK, CLASSES, tmp_path, "").axes
    assert place.get_title(loc="left") == "enlarged: 100 x 100 of 800 x 600 px"
    assert (truth.get_xlim(), truth.get_ylim()) == ((555, 655), (555, 455))


def test_the_worst_come_first_and_of_equal_ones_that_with_the_most_mistakes(tmp_path: Path) -> None:
    one, two = LabelledBox("crack", (0, 0, 10, 10)), LabelledBox("crack", (20, 0, 30, 10))
    right: Found = (0, 0, 10, 10, 0, 0.9)
    rows = [
        write_row(tmp_path, "best.png", [one], [right]),
        write_row(tmp_path, "missed.png", [one], []),
        write_row(tmp_path, "both.png", [one, two], []),
        write_row(tmp_path, "half.png", [one, two], [right]),
    ]
    chosen = boxes.choose_rows(frame_of(*rows), TASK, CLASSES, 8)
    assert chosen["path"].to_list() == ["both.png", "missed.png", "half.png", "best.png"]
    assert chosen["rank"].to_list() == ["worst", "2 of 4", "3 of 4", "4 of 4"]


MANY = tuple(f"class {k}" for k in range(30))
WHOLE = LabelledBox("crack", (0, 0, 1, 1))
CASES: dict[str, tuple[Sequence[LabelledBox], Sequence[Found], tuple[int, int], Sequence[str]]] = {
    "all kinds": (OBJECTS_OF_ALL_FATES, FOUND_OF_ALL_KINDS, (100, 80), CLASSES),
    "no object and none shown": ([], [], (100, 80), CLASSES),
    "no object, some shown": ([], [(0, 0, 9, 9, 0, 0.9)], (100, 80), CLASSES),
    "nothing answered": ([LabelledBox("crack", (0, 0, 9, 9))], [], (100, 80), CLASSES),
    "a strip": ([LabelledBox("crack", (0, 0, 9, 9))], [(0, 0, 9, 9, 0, 0.9)], (900, 20), CLASSES),
    "a tower": ([LabelledBox("crack", (0, 0, 9, 9))], [(0, 0, 9, 9, 0, 0.9)], (20, 900), CLASSES),
    "tiny in huge": ([LabelledBox("crack", (2900, 2100, 2904, 2103))], [], (3000, 2200), CLASSES),
    "one pixel": ([WHOLE], [(0, 0, 1, 1, 0, 0.9)], (1, 1), CLASSES),
    "one class": ([LabelledBox("crack", (0, 0, 9, 9))], [(0, 0, 9, 9, 0, 0.9)], (100, 80), CLASSES[:1]),
    "30 classes": (
        [LabelledBox(name, (k, k, k + 9, k + 9)) for k, name in enumerate(MANY)],
        [(k, k, k + 9, k + 9, k, 0.9) for k in range(30)],
        (100, 80),
        MANY,
    ),
    "nothing but what is ignored": ([LabelledBox("rust", (0, 0, 9, 9), "difficult")], [], (100, 80), CLASSES),
}


@pytest.mark.parametrize("case", CASES)
def test_no_picture_is_too_odd_to_draw(case: str, tmp_path: Path) -> None:
    objects, found, size, classes = CASES[case]
    frame = frame_of(write_row(tmp_path / "raw", "a.png", objects, found, size, classes))
    for draw in (
        lambda: pictures.draw_samples(frame, TASK, classes, tmp_path / "raw", "50 % $x$"),
        lambda: pictures.draw_mistakes(frame, TASK, classes, "50 % $x$"),
        lambda: pictures.draw_calibration(frame, TASK, classes, "50 % $x$"),
        lambda: box_figures.draw_curves(frame, TASK, classes, "50 % $x$"),
    ):
        draw().savefig(tmp_path / "figure.png", dpi=40)
    found_at = boxes.draw_found(frame, TASK, classes, tmp_path / "raw", "found", tmp_path / "f" / "found.png")
    with Image.open(found_at) as image:
        assert min(image.size) > 100
    split = box_tables.measure_split(frame, TASK, classes, ByClass())
    assert all(len(row.cells) == len(box_tables.CLASS_HEADS) for row in split.classes)
    assert all(len(row.cells) == len(box_tables.SIZE_HEADS) for row in split.sizes)
    assert all(len(row) == len(box_tables.ERROR_HEADS) for row in split.list_errors())


@pytest.mark.parametrize("draw", [pictures.draw_samples, boxes.draw_worst])
def test_an_empty_frame_is_an_empty_sheet(draw: Callable[..., Any], tmp_path: Path) -> None:
    empty = frame_of(write_row(tmp_path, "a.png", [], [])).clear()
    draw(empty, TASK, CLASSES, tmp_path, "none").savefig(tmp_path / "figure.png")


def test_the_table_counts_what_is_shown_and_scores_what_is_answered(tmp_path: Path) -> None:
    frame = frame_of(
        write_row(tmp_path, "a.png", OBJECTS_OF_ALL_FATES, FOUND_OF_ALL_KINDS),
        write_row(tmp_path, "bb.png", [LabelledBox("rust", (0, 0, 50, 50))], [(0, 0, 50, 50, 1, 0.9)]),
    )
    split = box_tables.measure_split(frame, TASK, CLASSES, ByClass(thresholds={"crack": 0.5}))
    crack, rust = split.classes
    scores = TASK.score_frame(frame, CLASSES)
    for row, name in zip((crack, rust), CLASSES, strict=True):
        precision = (f"{scores[f'ap50/{name}']:.3f}", f"{scores[f'ap/{name}']:.3f}")
        assert row.cells[:4] == (name, f"{row.objects}", *precision)
    # 1 of 4 cracks is found, and 3 are shown. 1 of 1 rust is found, and 3 are shown beside the one in the crowd.
    assert crack.cells[4:] == ("0.50", "0.250", "0.333", "0.286", "3", "1.00", "0.50")
    assert rust.cells[4:] == ("-", "1.000", "0.333", "0.500", "0", "1.00", "1.00")
    recall = scores["recall_at_0.5_fa"]
    assert split.summarise() == (
        f"Found 2 of 5 objects (40 %), with 4 false alarms, 2 per image. At 0.5 false alarms per image the recall is "
        f"{recall:.3f}. The number of objects of an image is off by {scores['count_error']:.2g} on average."
    )
    small, medium = split.sizes
    assert small.cells[:3] == ("small, up to 32 x 32 px", "1", "4")
    assert small.cells[4:] == ("0.250", "3")
    assert medium.cells[:3] == ("medium, up to 96 x 96 px", "1", "1")
    gains = {kind.partition(":")[0]: gain for kind, gain in split.list_errors()}
    assert gains == {kind: f"{scores[f'errors/{kind}']:+.3f}" for kind in box_tables.ERROR_WORDS}
    assert [float(gain) for gain in gains.values()] == sorted(map(float, gains.values()), reverse=True)


@pytest.mark.parametrize(("metric", "column"), [("map50", 2), ("map", 3)])
def test_the_interval_stands_behind_the_metric(metric: Any, column: int, tmp_path: Path) -> None:
    frame = frame_of(write_row(tmp_path, "a.png", OBJECTS_OF_ALL_FATES, FOUND_OF_ALL_KINDS))
    known = ByClass(intervals={"crack": Score(value=0.5, low=0.25, high=0.75)})
    crack, rust = box_tables.measure_split(frame, DetectionTask(metric=metric), CLASSES, known).classes
    assert [cell.endswith(" [0.25 0.75]") for cell in crack.cells] == [place == column for place in range(11)]
    assert rust.cells[2:4] == ("-", "-")


def test_confusion_has_a_row_and_a_column_for_none(tmp_path: Path) -> None:
    frame = frame_of(write_row(tmp_path, "a.png", OBJECTS_OF_ALL_FATES, FOUND_OF_ALL_KINDS))
    axes = pictures.draw_mistakes(frame, TASK, CLASSES, "title").axes[0]
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "25 %\n1", (0, 1): "25 %\n1", (0, 2): "50 %\n2", (2, 0): "2", (2, 1): "1"}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["crack (4)", "rust (0)", "no object"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["crack", "rust", "not found"]


def test_curves_mark_the_stated_number_of_false_alarms_and_the_thresholds(tmp_path: Path) -> None:
    frame = frame_of(
        write_row(tmp_path, "a.png", OBJECTS_OF_ALL_FATES, FOUND_OF_ALL_KINDS),
        write_row(tmp_path, "bb.png", [LabelledBox("rust", (0, 0, 50, 50))], [(0, 0, 50, 50, 1, 0.9)]),
    )
    task = DetectionTask(recall_at=1)
    froc, counts = box_figures.draw_curves(frame, task, CLASSES, "").axes
    points = {line.get_label(): line.get_xydata()[-1].tolist() for line in froc.lines}
    recall = task.score_frame(frame, CLASSES)["recall_at_1_fa"]
    assert points[f"{recall:.3f} at 1 per image"] == [1, recall]
    assert points["shown, at the thresholds"] == [2, 0.4]
    assert points["all"] == [2, pytest.approx(0.6)]
    assert [points[name] for name in CLASSES] == [[1, 0.5], [1, 1]]
    dots = {dot.get_label(): dot.get_offsets().tolist() for dot in counts.collections}
    shown = {name: [tuple(map(round, place)) for place in places] for name, places in dots.items()}
    assert shown == {"crack": [(0, 0), (4, 3)], "rust": [(0, 2), (1, 1)]}


def suspect_of(why: Any, number: int = 0) -> Suspect:
    answered = {"missing": "crack", "other class": "rust", "unconfirmed": None}[why]
    box = (10.0 + number, 10.0, 20.0 + number, 20.0)
    return Suspect(why, "a.png", "a.png", "val", "crack", answered, box, 0.83 if answered else 0.0, 0.97)


def test_suspects_are_drawn_with_what_is_annotated_around_them(tmp_path: Path) -> None:
    others = [LabelledBox("crack", (10, 10, 20, 20)), LabelledBox("rust", (30, 10, 40, 20))]
    write_row(tmp_path, "a.png", others, [], (400, 300))
    some = [suspect_of(why) for why in ("missing", "other class", "unconfirmed")]
    figure = suspects.draw_suspects(some, {"a.png": others}, CLASSES, tmp_path)
    heads = [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes if axes.patches]
    assert heads == ["crack .83", "crack, found: rust .83", "crack (97 % found)"]
    for axes, kind in zip(figure.axes, ("false", "other class", "missed"), strict=False):
        marks = read_marks(axes)
        assert marks[10, 10, 20, 20] == ("solid", pytest.approx(to_matplotlib(boxes.KINDS[kind])))
        assert marks[30, 10, 40, 20][0] == "dashed"
        assert axes.get_xlim() == (0, 64)


def test_of_many_suspects_every_kind_is_drawn() -> None:
    many = [suspect_of("missing", k) for k in range(30)] + [suspect_of("unconfirmed", k) for k in range(2)]
    drawn = suspects.choose_drawn(many)
    assert drawn == [*many[:22], *many[30:]]
    assert suspects.choose_drawn(many[:5]) == many[:5]


def test_a_head_is_one_line() -> None:
    assert panels.head_row("worst", "a.png") == "worst: a.png"
    assert len(panels.head_row("12 of 300", "a/very/long/folder/of/pictures/number_12.png")) == panels.LONGEST
