"""Pictures of class maps: what differs is in its own colour, small objects are enlarged, and no frame is too odd."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from PIL import Image

from components.data.batches.colours import STEPS, choose_colours
from components.domain.domain import Domain
from components.records.jobs import Result, load_predictions
from components.records.maps import IGNORE, count_pixels, decode_map, encode_map
from components.reports import answers, maps, pictures, pixels, retrain_page, words
from components.reports.words import ByClass
from components.tasks import create_task
from components.tasks.base import MapTask
from components.tasks.calibration import Calibration
from components.tasks.segmentation import SegmentationTask
from components.tracking import candidates

TASK = SegmentationTask()
CLASSES = ("background", "crack", "rust")
TRUTH = np.array([[0, 0, 1, 1], [2, 2, 1, 0], [255, 255, 2, 0]], np.uint8)
ANSWER = np.array([[0, 1, 1, 0], [2, 1, 2, 0], [1, 0, 0, 2]], np.uint8)


def write_row(raw: Path, name: str, truth: Any, answer: Any, classes: Sequence[str] = CLASSES) -> dict[str, Any]:
    """A picture on disk and its row of a frame of predictions, judged by the task."""
    rng = np.random.default_rng(len(name))
    raw.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*truth.shape, 3), dtype=np.uint8)).save(raw / name)
    chances = np.stack([np.where(answer == k, 0.9, 0.1 / (len(classes) - 1)) for k in range(len(classes))])
    labels = [name for name, count in zip(classes, count_pixels(encode_map(truth), len(classes)), strict=True) if count]
    return {
        "id": name,
        "path": name,
        "crop": None,
        "group": name,
        "split": "test",
        "label": TASK.describe_labels(labels),
        "labels": labels,
        "class_map": encode_map(truth),
        **TASK.judge(chances, truth, classes, Calibration()),
    }


def frame_of(*rows: dict[str, Any]) -> pl.DataFrame:
    types = {"crop": pl.List(pl.Int64), "labels": pl.List(pl.String), **TASK.judged()}
    return pl.DataFrame(rows, schema_overrides=types)


def paint_disc(height: int, width: int, radius: float, place: tuple[float, float] = (0.5, 0.5), number: int = 1) -> Any:
    ys, xs = np.mgrid[:height, :width]
    inside = (ys - place[0] * height) ** 2 + (xs - place[1] * width) ** 2 < radius**2
    return np.where(inside, number, 0).astype(np.uint8)


def test_every_answered_pixel_is_found_missed_false_of_another_class_or_ignored() -> None:
    found, missed, false, confused, ignored = (
        maps.FOUND,
        maps.MISSED,
        maps.FALSE,
        maps.CONFUSED,
        maps.IGNORED,
    )
    expected = [[0, false, found, missed], [found, confused, confused, 0], [ignored, ignored, missed, false]]
    assert maps.compare_maps(TRUTH, ANSWER, 0).tolist() == expected
    everything = maps.compare_maps(TRUTH, ANSWER, None)  # no class is background: an answer is right or wrong
    assert set(everything[TRUTH == ANSWER]) == {found}
    assert set(everything[(TRUTH != ANSWER) & (TRUTH != IGNORE)]) == {confused}
    assert set(everything[TRUTH == IGNORE]) == {ignored}


def test_differences_have_their_colours_over_a_grey_picture() -> None:
    image = np.full((*TRUTH.shape, 3), (200, 100, 0), np.uint8)
    kinds = maps.compare_maps(TRUTH, ANSWER, 0)
    drawn = maps.draw_differences(image, kinds)
    for kind, colour in enumerate(maps.DIFFERENCES.values(), maps.FOUND):
        (shown,) = {tuple(map(int, pixel)) for pixel in drawn[kinds == kind]}
        assert shown == pytest.approx([0.75 * channel + 0.25 * 123 for channel in colour], abs=1)
    assert {tuple(map(int, pixel)) for pixel in drawn[kinds == maps.NOTHING]} == {(123, 123, 123)}
    assert {tuple(map(int, pixel)) for pixel in drawn[kinds == maps.IGNORED]} == {(123, 123, 123), maps.HATCH}
    classes = choose_colours([f"class {k}" for k in range(7 * len(STEPS))], None)
    assert not set(maps.DIFFERENCES.values()) & set(classes.values()), "a difference looks like a class"


def test_a_small_object_is_enlarged_and_a_large_one_is_not() -> None:
    small, large = paint_disc(600, 800, 12, (0.3, 0.9)), paint_disc(600, 800, 120)
    nothing = np.zeros_like(small)
    x0, y0, x1, y1 = maps.choose_window(maps.compare_maps(small, nothing, 0)) or (0, 0, 0, 0)
    assert (x1 - x0, y1 - y0) == (58, 58)
    assert small[y0:y1, x0:x1].sum() == small.sum()
    assert maps.choose_window(maps.compare_maps(large, nothing, 0)) is None
    assert maps.choose_window(maps.compare_maps(nothing, nothing, 0)) is None
    assert maps.choose_window(maps.compare_maps(np.full_like(small, IGNORE), small, 0)) is None


def test_of_several_small_objects_the_worst_is_enlarged() -> None:
    right, missed = paint_disc(600, 800, 14, (0.2, 0.2)), paint_disc(600, 800, 8, (0.8, 0.8), 2)
    x0, y0, x1, y1 = maps.choose_window(maps.compare_maps(right + missed, right, 0)) or (0, 0, 0, 0)
    assert missed[y0:y1, x0:x1].sum() == missed.sum()
    assert not right[y0:y1, x0:x1].any()


def test_the_worst_come_first_then_the_median_and_the_best(tmp_path: Path) -> None:
    truth = paint_disc(20, 30, 8)
    rows = [write_row(tmp_path, f"{k}.png", truth, paint_disc(20, 30, 8 - k)) for k in range(8)]
    chosen = maps.choose_rows(frame_of(*rows), TASK, 4)
    assert chosen["path"].to_list() == ["7.png", "6.png", "3.png", "0.png"]
    assert chosen["rank"].to_list() == ["worst", "2 of 8", "median", "best"]
    few = maps.choose_rows(frame_of(*rows[:2]), TASK, 4)
    assert few["rank"].to_list() == ["worst", "2 of 2"]
    assert maps.choose_rows(frame_of(rows[0]), TASK, 4)["rank"].to_list() == ["1 of 1"]


def test_of_equally_bad_pictures_that_with_the_most_wrong_pixels_is_the_worst(tmp_path: Path) -> None:
    nothing = np.zeros((20, 30), np.uint8)
    rows = [write_row(tmp_path, f"{k}.png", paint_disc(20, 30, k), nothing) for k in (2, 9, 5)]
    assert maps.choose_rows(frame_of(*rows), TASK, 3)["path"].to_list() == ["9.png", "5.png", "2.png"]


def test_a_sheet_says_truth_answer_and_dice_of_each_picture(tmp_path: Path) -> None:
    row = write_row(tmp_path, "a.png", TRUTH.repeat(9, 0).repeat(9, 1), ANSWER.repeat(9, 0).repeat(9, 1))
    figure = maps.draw_worst(frame_of(row), TASK, CLASSES, tmp_path, "title")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "1 of 1: a.png",
        "truth: crack + rust",
        "answer: crack + rust",
        f"difference, Dice {row['dice']:.2f}",
    ]
    legends = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert legends == {"crack", "rust", *maps.DIFFERENCES, maps.UNLABELLED}


MANY = ("background", *(f"class {k}" for k in range(30)))
CASES: dict[str, tuple[Any, Any, Sequence[str]]] = {
    "portrait": (paint_disc(90, 40, 9), paint_disc(90, 40, 12), CLASSES),
    "a strip": (paint_disc(20, 900, 6), paint_disc(20, 900, 4), CLASSES),
    "a tower": (paint_disc(900, 20, 6), paint_disc(900, 20, 4), CLASSES),
    "huge": (paint_disc(2200, 3000, 500), paint_disc(2200, 3000, 480), CLASSES),
    "tiny in huge": (paint_disc(2200, 3000, 9), paint_disc(2200, 3000, 0), CLASSES),
    "one pixel": (np.ones((1, 1), np.uint8), np.zeros((1, 1), np.uint8), CLASSES),
    "nothing answered": (paint_disc(30, 40, 9), np.zeros((30, 40), np.uint8), CLASSES),
    "sound and answered so": (np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8), CLASSES),
    "sound but for what is ignored": (np.where(np.eye(30) > 0, 255, 0).astype(np.uint8), np.eye(30), CLASSES),
    "nothing labelled": (np.full((30, 40), IGNORE, np.uint8), paint_disc(30, 40, 9), CLASSES),
    "one foreground class": (paint_disc(30, 40, 9), paint_disc(30, 40, 5), CLASSES[:2]),
    "30 classes": (np.arange(31 * 31, dtype=np.uint8).reshape(31, 31) % 31, np.zeros((31, 31), np.uint8), MANY),
}


@pytest.mark.parametrize("case", CASES)
def test_no_picture_is_too_odd_to_draw(case: str, tmp_path: Path) -> None:
    truth, answer, classes = CASES[case]
    if case == "nothing labelled":  # is quarantined; ignored pixels beside one that is labelled are not
        truth = truth.copy()
        truth[0, 0] = 0
    frame = frame_of(write_row(tmp_path / "raw", "a.png", truth, answer, classes))
    for draw in (
        lambda: pictures.draw_samples(frame, TASK, classes, tmp_path / "raw", "50 % $x$"),
        lambda: pictures.draw_mistakes(frame, TASK, classes, "50 % $x$"),
        lambda: pictures.draw_calibration(frame, TASK, classes, "50 % $x$"),
    ):
        draw().savefig(tmp_path / "figure.png", dpi=40)
    found = maps.draw_found(frame.drop("dice"), TASK, classes, tmp_path / "raw", "found", tmp_path / "f" / "found.png")
    with Image.open(found) as image:
        assert min(image.size) > 100
    assert all(len(row.cells) == len(pixels.HEADS) for row in pixels.count_classes(frame, TASK, classes))


@pytest.mark.parametrize("draw", [pictures.draw_samples, maps.draw_worst])
def test_an_empty_frame_is_an_empty_sheet(draw: Callable[..., Any], tmp_path: Path) -> None:
    empty = frame_of(write_row(tmp_path, "a.png", TRUTH, ANSWER)).clear()
    draw(empty, TASK, CLASSES, tmp_path, "none").savefig(tmp_path / "figure.png")


def test_the_table_of_classes_counts_pixels_and_objects(tmp_path: Path) -> None:
    truth = paint_disc(40, 60, 9, (0.5, 0.25)) + paint_disc(40, 60, 6, (0.5, 0.75), 2)
    answer = paint_disc(40, 60, 9, (0.5, 0.25)) + paint_disc(40, 60, 3, (0.1, 0.9), 2)
    frame = frame_of(write_row(tmp_path, "a.png", truth, answer), write_row(tmp_path, "bb.png", truth, truth))
    background, crack, rust = pixels.count_classes(frame, TASK, CLASSES)
    for row, (number, name) in zip((background, crack, rust), enumerate(CLASSES), strict=True):
        maps_of = [decode_map(data) for data in frame["answer_map"]]
        assert row.truth == 2 * (truth == number).sum()
        assert row.answered == sum((one == number).sum() for one in maps_of)
        assert row.hits == sum(((one == number) & (truth == number)).sum() for one in maps_of)
        scores = TASK.score_frame(frame, CLASSES)
        assert row.cells[1] == f"{scores[f'iou/{name}']:.3f}"
        assert row.cells[2] == f"{scores[f'dice/{name}']:.3f}"
        assert row.cells[-1] == (f"{scores[f'boundary_f1/{name}']:.3f}" if number else "-")
    assert background.cells[8:10] == ("-", "-")
    assert crack.cells[8:10] == ("2 of 2", "0")
    assert rust.cells[8:10] == ("1 of 2", "1")
    assert [row.images for row in (background, crack, rust)] == [2, 2, 2]
    dice = f"{frame['dice'].mean():.3f}"
    told = f"Found 3 of 4 objects (75 %), and 1 false, 0.5 per image. Mean Dice of an image {dice}."
    assert pixels.measure_split(frame, TASK, CLASSES).summarise() == told


def test_confusion_of_pixels_sums_over_pictures_and_leaves_out_what_is_ignored(tmp_path: Path) -> None:
    frame = frame_of(*(write_row(tmp_path, name, TRUTH, ANSWER) for name in ("a.png", "bb.png")))
    assert pixels.count_pixels(frame, CLASSES).tolist() == [[4, 2, 2], [2, 2, 2], [2, 2, 2]]
    axes = pixels.draw_confusion(frame, CLASSES, "title").axes[0]
    assert {text.get_text() for text in axes.texts} == {"50 %\n4", "25 %\n2", "33 %\n2"}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["background (8)", "crack (6)", "rust (6)"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (999_900, "1 M"), (1_234_567, "1.23 M"), (34_500_000_000, "34.5 G")],
)
def test_large_counts_are_short(number: int, text: str) -> None:
    assert words.count_short(number) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (0.0004, "<0.1 %"),
        (0.004, "0.4 %"),
        (0.934, "93 %"),
        (0.9996, ">99.9 %"),
        (0.994, "99.4 %"),
        (1, "100 %"),
    ],
)
def test_a_share_is_not_rounded_to_none_or_all(share: float, text: str) -> None:
    assert words.format_share(share) == text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Domain, Result]:
    """A candidate for class maps through the real training code."""
    task = {"kind": "segmentation", "background": "dark"}
    training = {"epochs": 1, "batch_size": 8, "warmup_epochs": 0}
    layout = {"kind": "csv", "mask": "mask"}
    domain = tiny.create_domain(task=task, layout=layout, img_size=32, candidates=["linear"], training=training)
    folder = tmp_path_factory.mktemp("maps")
    return folder, domain, tiny.train(folder, domain, {"kind": "linear"})


def test_report_card_and_description_have_one_row_per_class(trained: tuple[Path, Domain, Result]) -> None:
    folder, domain, result = trained
    task, frame = create_task(domain), load_predictions(result.folder, "test")
    assert isinstance(task, MapTask)
    picture = folder / "picture.png"
    picture.write_bytes(b"")
    outcome = tiny.create_outcome(tiny.create_row(result))
    own = (result.folder, ByClass(), folder / "raw", "c0ffee", folder / "v.html", "v.html", folder / "card.html", {})
    split = pixels.measure_split(frame, task, domain.classes)
    places = {
        "report": retrain_page.render_html(retrain_page.RetrainReport(domain, outcome, picture, *own)),
        "page of Prefect": retrain_page.render_markdown(outcome, answers.describe_classes(frame, task, domain.classes)),
        "run in MLflow": candidates._tabulate_classes(task, domain, result),
    }
    for place, text in places.items():
        assert split.summarise() in text, place
        for row in split.classes:
            for cell in row.cells:
                assert cell in text, (place, cell)
    assert "<h2>The worst answers</h2>" in places["report"]
    assert "balanced" not in places["report"]
    assert "mean IoU" in places["report"]


def test_a_table_too_long_for_a_description_is_in_the_card_alone(
    trained: tuple[Path, Domain, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, domain, result = trained
    monkeypatch.setattr(candidates, "MOST_TABLE", 100)
    text = candidates._tabulate_classes(create_task(domain), domain, result)
    assert text.endswith("The model card has one row per class.")
    assert "|" not in text
