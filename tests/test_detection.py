"""Detection: figures against pycocotools, evidence, kinds of error, calibration, thresholds, gates and options."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from detection_scores import (
    Boxes,
    Pictures,
    draw_corners,
    draw_picture,
    draw_set,
    read_noisy,
    score_as_coco,
    score_ours,
)
from samples import make_domain

from components.data.manifest import Row, create_rows, create_schema, find_failures
from components.errors import DomainError, PromotionError
from components.promotion.evidence import require_evidence
from components.promotion.gates.base import Context, Finding
from components.promotion.gates.quality import warn_of_classes
from components.promotion.statistics import bootstrap_difference
from components.records.boxes import KINDS, NONE, LabelledBox
from components.tasks import create_task
from components.tasks.base import Evidence
from components.tasks.box_matches import IOUS, SIZES, match_boxes, measure_overlaps, sort_found
from components.tasks.box_outcomes import count_confusion, count_errors, match_shown
from components.tasks.box_scores import trace_froc
from components.tasks.calibration import Calibration
from components.tasks.detection import DetectionTask
from components.tasks.detections import rescale_confidence

CLASSES = ("crack", "pit", "rust")
TASK = DetectionTask()
PLAIN = Calibration()
BCCD = Path(os.environ.get("TESSERA_REAL_DATA", "nowhere")).resolve() / "bccd"

OBJECT, DIFFICULT, CROWD = range(3)


def boxes(*rows: Sequence[float]) -> Boxes:
    return np.array(rows, np.float64).reshape(-1, 6)


def require_equal(pictures: Pictures, classes: int) -> Boxes:
    ours = score_ours(pictures, classes)
    np.testing.assert_allclose(ours, score_as_coco(pictures, classes), rtol=0, atol=1e-9)
    return ours


def write_frame(
    pictures: Pictures,
    groups: Sequence[str],
    calibration: Calibration = PLAIN,
    classes: Sequence[str] = CLASSES,
    sites: Sequence[str] = (),
) -> pl.DataFrame:
    """A frame of predictions as evaluation writes it."""
    rows = []
    for number, ((found, shown), group) in enumerate(zip(pictures, groups, strict=True)):
        objects = [LabelledBox(classes[int(row[4])], (*row[:4].tolist(),), KINDS[int(row[5])]) for row in shown]
        truth = TASK.annotate(Row(path="a.png", objects=objects), classes)
        row = {"id": f"{number:04}", "group": group, "split": "test"} | truth
        rows.append(row | TASK.judge(found, shown, classes, calibration))
    types = TASK.columns() | TASK.judged()
    frame = pl.DataFrame(rows, schema_overrides=types)
    assert {name: frame.schema[name] for name in types} == types
    return frame.with_columns(pl.Series("site", sites)) if sites else frame


def draw_pictures(seed: int, number: int, classes: int = 3) -> list[tuple[Boxes, Boxes]]:
    rng = np.random.default_rng(seed)
    return [draw_picture(rng, classes) for _ in range(number)]


def score(evidence: Evidence) -> float:
    return float(evidence.scores(np.ones((1, int(evidence.groups.max()) + 1)))[0])


# Against pycocotools


@pytest.mark.parametrize("seed", range(200))
def test_two_hundred_random_sets_are_scored_as_by_coco(seed: int) -> None:
    """Of all sizes, with crowds, ties, classes without truth, pictures without answers or objects."""
    require_equal(*draw_set(seed))


def test_over_a_hundred_boxes_of_a_class_are_cut_as_by_coco() -> None:
    """What is cut is more confident than the right box of another picture, and would have found an object."""
    rng = np.random.default_rng(0)
    many = np.column_stack([draw_corners(rng, 130), np.zeros(130), rng.uniform(0.5, 0.9, 130)])
    late, object_ = boxes([300, 300, 340, 340, 0, 0.4]), boxes([300, 300, 340, 340, 0, OBJECT])
    other = boxes([300, 300, 340, 340, 0, 0.3]), object_
    scores = require_equal([(np.concatenate([many, late]), object_), other], 1)
    assert scores[0, 0, 0] == pytest.approx(51 / 101 / 101)  # one right box after a hundred wrong ones
    found = np.concatenate([many, late])
    _, taken = match_boxes(sort_found(found), object_, measure_overlaps(sort_found(found), object_))
    assert taken.tolist() == [0]


@pytest.mark.parametrize(
    "pictures",
    [
        [(boxes(), boxes())],
        [(boxes(), boxes([0, 0, 10, 10, 0, OBJECT]))],
        [(boxes([0, 0, 10, 10, 0, 0.5]), boxes())],
        [(boxes([0, 0, 10, 10, 0, 0.5]), boxes([0, 0, 10, 20, 0, OBJECT]))],  # exactly one half
        [(boxes([0, 0, 10, 10, 0, 0.5], [0, 0, 10, 10, 0, 0.5]), boxes([0, 0, 10, 10, 0, OBJECT]))],  # a tie
        [(boxes([0, 0, 32, 32, 0, 0.5], [0, 0, 96, 96, 0, 0.5]), boxes([0, 0, 32, 32, 0, 0], [0, 0, 96, 96, 0, 0]))],
        [(boxes([0, 0, 5, 5, 0, 0.9], [3, 3, 9, 9, 0, 0.8]), boxes([0, 0, 50, 50, 0, CROWD]))],  # inside of a crowd
        [  # overlaps both alike, and takes the later one from the next box
            (
                boxes([0, 0, 10, 10, 0, 0.9], [0, 0, 11, 10, 0, 0.8]),
                boxes([0, 0, 10, 11, 0, OBJECT], [0, 0, 11, 10, 0, OBJECT]),
            )
        ],
        [(boxes([0, 0, 10, 10, 0, 0.9]), boxes([0, 0, 10, 10, 0, CROWD], [0, 0, 10, 15, 0, 0]))],  # a crowd comes last
    ],
)
def test_odd_pictures_are_scored_as_by_coco(pictures: Pictures) -> None:
    require_equal(pictures, 1)


@pytest.mark.parametrize("objects", [20, 25, 50, 100])
def test_recalls_are_reached_by_the_quotients_of_coco(objects: int) -> None:
    """19 of 20 are .95, which is less than COCO's threshold .95. Wrong boxes among the later ones show the step."""
    places = np.arange(objects) * 20.0
    truth = np.column_stack([places, places * 0, places + 10, places * 0 + 10, places * 0, places * 0])
    sure = np.linspace(0.9, 0.1, objects)
    right, wrong = truth.copy(), truth + np.array([0, 50, 0, 50, 0, 0])
    right[:, 5], wrong[:, 5] = sure, sure + 0.001
    require_equal([(np.concatenate([right, wrong[objects // 2 :]]), truth)], 1)


@pytest.mark.skipif(not BCCD.exists(), reason="TESSERA_REAL_DATA does not name the folder of real images")
def test_real_boxes_with_noisy_answers_are_scored_as_by_coco() -> None:
    pictures = read_noisy(BCCD)
    assert sum(len(truth) for _, truth in pictures) == 4888
    assert 0.2 < np.nanmean(require_equal(pictures, 3)) < 0.9


def test_any_number_of_answers_on_a_difficult_object_are_ignored() -> None:
    """Its IoU is the usual one: a small box inside of it is a false one, which inside of a crowd it would not be."""
    found = boxes([0, 0, 10, 10, 0, 0.9], [0, 0, 10, 9, 0, 0.8], [0, 0, 4, 4, 0, 0.7], [50, 50, 60, 60, 0, 0.6])
    truth = [0, 0, 10, 10, 0], [50, 50, 60, 60, 0, OBJECT]
    for kind, precision in ((DIFFICULT, 1 / 2), (CROWD, 1)):
        scores = score_ours([(found, boxes([*truth[0], kind], truth[1]))], 1)
        assert scores[0, 0, 0] == pytest.approx(precision)


# Scores of a frame


def test_more_than_a_hundred_objects_are_shown_and_counted() -> None:
    """Average precision stops at a hundred per class and picture, as COCO's; what people see does not."""
    places = np.arange(150) * 20.0
    truth = np.column_stack([places, places * 0, places + 10, places * 0 + 10, places * 0, places * 0])
    found = truth.copy()
    found[:, 5] = np.linspace(0.99, 0.6, 150)
    scores = TASK.score_frame(write_frame([(found, truth)] * 3, ["a", "b", "c"]), CLASSES)
    assert scores["map50"] == pytest.approx(score_as_coco([(found, truth)] * 3, 1)[0][0, 0])
    assert scores["map50"] < 0.7
    assert (scores["recall"], scores["missed"], scores["false_alarms"], scores["count_error"]) == (1, 0, 0, 0)
    assert scores["recall_at_0.5_fa"] == 1
    limit = TASK.calibrate([truth] * 3, [found] * 3, np.array(["a", "b", "c"]), CLASSES).thresholds[CLASSES[0]]
    assert limit < TASK.decide(found, CLASSES, Calibration())[0][-1, 5]


def test_the_scores_of_a_frame_are_those_of_its_evidence_and_of_what_training_keeps() -> None:
    pictures, groups = draw_pictures(1, 30), [f"g{k // 3}" for k in range(30)]
    frame = write_frame(pictures, groups)
    expected = score_as_coco(pictures, 3)
    for task, place in ((TASK, slice(0, 1)), (DetectionTask(metric="map"), slice(None))):
        scores = task.score_frame(frame, CLASSES)
        assert next(iter(scores)) == task.metric
        assert scores[task.metric] == pytest.approx(expected[0][:, place].mean(), abs=1e-9)
        assert score(task.evidence(frame, CLASSES)) == pytest.approx(scores[task.metric])
        assert task.shown in scores
        prefix = {"map50": "ap50", "map": "ap"}[task.metric]
        by_class = {name: score(each) for name, each in task.class_evidence(frame, CLASSES).items()}
        assert by_class == pytest.approx({name: scores[f"{prefix}/{name}"] for name in CLASSES})
        by_size = [score(each) for each in task.size_evidence(frame, CLASSES).values()]
        assert by_size == pytest.approx([np.nanmean(each[:, place]) for each in expected[1:]], abs=1e-9)
        assert all(math.isfinite(value) for value in scores.values())
    for size, each in zip(SIZES, expected[1:], strict=True):
        assert scores[f"map_{size}"] == pytest.approx(np.nanmean(each), abs=1e-9)
    most = max(len(truth) for _, truth in pictures)
    kept = TASK.keep(np.stack([fill(found, 100) for found, _ in pictures]),
                     np.stack([fill(truth, most) for _, truth in pictures]).astype(np.float32))  # fmt: skip
    metrics = TASK.metrics(None, kept, CLASSES)
    assert next(iter(metrics)) == "map50"
    assert metrics == pytest.approx({name: scores[name] for name in metrics})
    assert TASK.surprise(None, kept).mean() == pytest.approx(scores["loss"])


def fill(rows: Boxes, number: int) -> Boxes:
    """(number, 6), with rows that fill up among the others."""
    blank = np.tile([0.0, 0, 0, 0, NONE, 0], (number - len(rows), 1))
    return np.concatenate([blank[:1], rows, blank[1:]])


def test_nothing_found_and_nothing_shown_has_scores() -> None:
    found, truth = boxes([0, 0, 9, 9, 0, 0.9]), boxes([0, 0, 9, 9, 0, OBJECT])
    for pair, right in (((boxes(), boxes()), True), ((found, boxes()), False), ((boxes(), truth), False)):
        frame = write_frame([pair] * 2, "ab")
        scores = TASK.score_frame(frame, CLASSES)
        assert scores["map50"] == 0
        assert all(math.isfinite(value) for value in scores.values())
        assert TASK.hits(frame).tolist() == [right] * 2
    assert scores["loss"] == pytest.approx(-math.log(0.05))  # a missed object has the least confidence there is
    assert TASK.chance(frame, CLASSES) == TASK.chance(frame, CLASSES, "pit") == 0
    warnings, at_chance = warn_of_classes(frame, domain_of())
    assert at_chance == ("crack",)
    assert warnings[1] == "Class pit: no test image, so nothing is known of it."


#: A picture with all that can become of boxes and objects: name, box that is shown, object.
SCENE: tuple[tuple[str, list[float] | None, list[float] | None], ...] = (
    ("found", [0, 0, 10, 10, 0, 0.95], [0, 0, 10, 11, 0, OBJECT]),
    ("duplicate", [0, 1, 10, 11, 0, 0.94], None),
    ("other class", [20, 0, 30, 10, 1, 0.93], [20, 0, 30, 10, 0, OBJECT]),
    ("misplaced", [40, 0, 50, 10, 2, 0.92], [46, 0, 56, 10, 2, OBJECT]),
    ("false", [60, 0, 70, 10, 0, 0.91], None),
    ("missed", None, [80, 0, 90, 10, 1, OBJECT]),
    ("ignored", [0, 40, 9, 49, 1, 0.9], [0, 40, 60, 99, 1, CROWD]),
)


def test_people_see_what_became_of_each_box_and_object() -> None:
    found, truth = (boxes(*[row[place] for row in SCENE if row[place]]) for place in (1, 2))
    shown = match_shown(found, truth)
    assert shown.boxes == ("found", "duplicate", "other class", "misplaced", "false", "ignored")
    assert shown.objects == ("found", "other class", "misplaced", "missed", "ignored")
    assert shown.partners.tolist() == [0, 0, 1, 2, NONE, 4]
    turned = match_shown(found[::-1], truth)
    assert turned.boxes == shown.boxes[::-1]
    assert turned.partners.tolist() == shown.partners[::-1].tolist()
    frame = write_frame([(found, truth), (boxes(), boxes())], "ab")
    table = count_confusion(frame, CLASSES)
    assert table.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [2, 0, 1, 0]]
    assert count_errors(frame, CLASSES).tolist() == [[1, 0, 0], [0, 0, 0]]
    scores = TASK.score_frame(frame, CLASSES)
    assert (scores["recall"], scores["precision"], scores["f1"]) == (1 / 4, 1 / 5, 2 / 9)
    assert (scores["missed"], scores["false_alarms"]) == (3 / 2, 4 / 2)
    assert (scores["recall/crack"], scores["precision/crack"], scores["recall/rust"]) == (1 / 2, 1 / 3, 0)
    assert (scores["count_error"], scores["count_error/crack"]) == (1 / 2, 1 / 2)
    assert TASK.ease(frame).to_list() == [2 / 9, 1]
    assert TASK.hits(frame).tolist() == [False, True]


def test_thresholds_decide_what_is_shown() -> None:
    found = boxes([0, 0, 10, 10, 0, 0.4], [20, 0, 30, 10, 0, 0.7], [40, 0, 50, 10, 1, 0.4], [0, 0, 1, 1, NONE, 0.9])
    calibration = Calibration(thresholds={"crack": 0.5, "pit": 0.4, "rust": 0.5})
    rows, shown = TASK.decide(found, CLASSES, calibration)
    assert rows[:, 5].tolist() == [0.7, 0.4, 0.4]
    assert shown.tolist() == [True, False, True]
    row = TASK.judge(found, boxes([0, 0, 10, 10, 0, OBJECT]), CLASSES, calibration)
    assert (row["predicted"], row["answered"], row["shown"]) == ("crack + pit", ["crack", "pit"], shown.tolist())
    assert [each["confidence"] for each in row["found"]] == [0.7, 0.4, 0.4]
    assert np.array(row["confusion"]).reshape(4, 4)[3].tolist() == [1, 1, 0, 0]
    assert row["f1"] == 0


def test_a_free_response_curve_counts_false_alarms_per_picture() -> None:
    truth = [boxes([0, 0, 10, 10, 0, OBJECT], [20, 0, 30, 10, 1, OBJECT]), boxes([0, 0, 10, 10, 1, OBJECT])]
    found = [
        boxes([0, 0, 10, 10, 0, 0.9], [50, 0, 60, 10, 0, 0.8], [20, 0, 30, 10, 1, 0.7]),
        boxes([50, 0, 60, 10, 1, 0.7], [0, 0, 10, 10, 1, 0.6]),
    ]
    frame = write_frame(list(zip(found, truth, strict=True)), "ab")
    curve = trace_froc(frame, CLASSES)
    assert curve.false_alarms.tolist() == [0, 0, 0.5, 1, 1]  # of equal confidences, both are shown or none
    assert curve.recall.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1])
    for alarms, recall in ((0, 1 / 3), (0.5, 1 / 3), (1, 1)):
        task = DetectionTask(recall_at=alarms)
        assert task.score_frame(frame, CLASSES)[f"recall_at_{alarms:g}_fa"] == pytest.approx(recall)


HALF = 51 / 101  # of the recalls at which precision is read, those up to one half
GOOD = boxes([0, 0, 20, 20, 0, 0.6]), boxes([0, 0, 20, 20, 0, OBJECT])
OTHER = boxes([0, 0, 20, 20, 1, 0.6]), boxes([0, 0, 20, 20, 1, OBJECT])


@pytest.mark.parametrize(
    ("picture", "gains"),
    [
        ((boxes([0, 0, 20, 20, 0, 0.9]), boxes([0, 11, 20, 31, 0, OBJECT])), {"localisation": (1 - HALF / 2) / 2}),
        ((boxes([0, 0, 20, 20, 1, 0.9]), boxes([0, 0, 20, 20, 0, OBJECT])), {"class": (1 - HALF + 0.5) / 2}),
        ((boxes([0, 0, 20, 20, 1, 0.9]), boxes([0, 11, 20, 31, 0, OBJECT])), {"both": 0.25, "missed": (1 - HALF) / 2}),
        ((boxes([0, 0, 20, 20, 0, 0.9]), boxes()), {"background": 0.25}),
        ((boxes(), boxes([0, 0, 20, 20, 0, OBJECT])), {"missed": (1 - HALF) / 2}),
        (
            (boxes([0, 0, 20, 20, 0, 0.9], [0, 1, 20, 21, 0, 0.8]), boxes([0, 0, 20, 20, 0, OBJECT])),
            {"duplicate": (1 - HALF) / 3 / 2},
        ),
        ((boxes([0, 0, 20, 20, 0, 0.9]), boxes([0, 0, 60, 60, 0, CROWD])), {}),
    ],
)
def test_kinds_of_error_are_what_fixing_them_gains(picture: tuple[Boxes, Boxes], gains: dict[str, float]) -> None:
    """One mistake beside a right box of each class; gains are of the mean over two classes."""
    scores = TASK.score_frame(write_frame([GOOD, OTHER, picture], "abc"), CLASSES)
    found = {name.partition("/")[2]: value for name, value in scores.items() if name.startswith("errors/") and value}
    assert found == pytest.approx(gains)


def test_one_box_alone_can_fix_an_object() -> None:
    """Of two misplaced boxes at one object the more confident one is saved; none is at an object that is found."""
    missed = [60, 60, 80, 80, 0, OBJECT]
    found = boxes([0, 0, 20, 20, 0, 0.9], [0, 2, 20, 22, 0, 0.95])
    picture = found, boxes([0, 13, 20, 33, 0, OBJECT], missed)
    scores = TASK.score_frame(write_frame([GOOD, picture], "ab"), CLASSES)
    assert scores["map50"] + scores["errors/localisation"] == pytest.approx(67 / 101)  # two of three objects
    taken = boxes([0, 0, 20, 20, 0, 0.95], [0, 11, 20, 31, 0, 0.9]), boxes([0, 0, 20, 20, 0, OBJECT], missed)
    scores = TASK.score_frame(write_frame([GOOD, taken], "ab"), CLASSES)
    assert scores["map50"] + scores["errors/localisation"] == pytest.approx(67 / 101)


def test_a_class_whose_objects_are_all_missed_gains_all_of_its_score() -> None:
    pictures = [GOOD, OTHER, (boxes(), boxes([0, 0, 9, 9, 2, OBJECT]))]
    scores = TASK.score_frame(write_frame(pictures, "abc"), CLASSES)
    assert (scores["map50"], scores["errors/missed"]) == pytest.approx((2 / 3, 1 / 3))


# Evidence


def test_weights_are_pictures_that_are_copied() -> None:
    rng, groups = np.random.default_rng(0), "aabbccdd"
    pictures = [draw_picture(rng, 2) for _ in groups]
    frame = write_frame(pictures, groups)
    weights = rng.integers(0, 4, (20, 4)).astype(float)
    weights[0] = [0, 0, 0, 1]
    scores = {task: task.evidence(frame, CLASSES).scores(weights) for task in (TASK, DetectionTask(metric="map"))}
    for number, row in enumerate(weights):
        times = [int(row["abcd".index(group)]) for group in groups]
        copied = [each for each, number in zip(pictures, times, strict=True) for _ in range(number)]
        expected = score_as_coco(copied, 2)[0]
        known = expected[~np.isnan(expected[:, 0])]
        for task, ious in zip(scores, (known[:, :1], known), strict=True):
            assert scores[task][number] == pytest.approx(ious.mean() if len(ious) else math.nan, abs=1e-9, nan_ok=True)
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    assert TASK.evidence(shuffled, CLASSES).scores(weights) == pytest.approx(scores[TASK], nan_ok=True)


def test_evidence_of_some_groups_is_that_of_their_pictures() -> None:
    pictures, groups = draw_pictures(2, 12), list("abcdef" * 2)
    frame, some = write_frame(pictures, groups), np.array([4, 1, 2])
    weights = np.random.default_rng(0).integers(0, 3, (10, 3)).astype(float)
    part = frame.filter(pl.col("group").is_in(["e", "b", "c"]))
    expected = TASK.evidence(part, CLASSES).scores(weights[:, [1, 2, 0]])  # groups b, c, e
    only = TASK.evidence(frame, CLASSES).only(some)
    assert only.scores(weights) == pytest.approx(expected, nan_ok=True)
    assert sorted(set(only.groups.tolist())) == [0, 1, 2]


def test_many_resamples_are_scored_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = TASK.evidence(write_frame(draw_pictures(3, 10), "abcdefghij"), CLASSES)
    weights = np.random.default_rng(0).integers(0, 3, (50, 10)).astype(float)
    whole = evidence.scores(weights)
    monkeypatch.setattr("components.tasks.box_scores.CHUNK", 100)
    assert np.array_equal(evidence.scores(weights), whole, equal_nan=True)


def test_predictions_of_other_classes_are_refused() -> None:
    frame = write_frame([GOOD, OTHER], "ab")
    with pytest.raises(PromotionError, match="the classes crack; found label pit"):
        TASK.evidence(frame, ("crack",))
    with pytest.raises(PromotionError, match="25 numbers per image in the column confusion; found 16"):
        TASK.costs(frame, domain_of().gates, (*CLASSES, "dent"))


def test_a_changed_box_is_other_evidence() -> None:
    pictures = draw_pictures(4, 6)
    pictures[0] = (pictures[0][0], boxes([5, 5, 20, 20, 0, OBJECT]))
    frame = write_frame(pictures, "abcdef")
    require_evidence(context(frame, frame.sample(fraction=1, shuffle=True)))
    for other in ([5.5, 5, 20, 20, 0, OBJECT], [5, 5, 20, 20, 0, DIFFICULT]):
        changed = write_frame([(pictures[0][0], boxes(other)), *pictures[1:]], "abcdef")
        assert changed["label"].equals(frame["label"])
        with pytest.raises(PromotionError, match="6 rows, of which 5 agree"):
            require_evidence(context(frame, changed))


# Calibration and thresholds


def draw_confidences(seed: int, pictures: int = 40, power: float = 3.0, shift: float = 1.0) -> Pictures:
    """Boxes that are right as often as an honest confidence says, whose logits were then distorted."""
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(pictures):
        honest = rng.uniform(0.05, 0.95, 20)
        corners = np.column_stack([np.arange(20) * 20, np.zeros(20), np.arange(20) * 20 + 10, np.full(20, 10)])
        found = np.column_stack([corners, rng.integers(0, 2, 20), honest])
        truth = found[rng.random(20) < honest] * [1, 1, 1, 1, 1, 0]
        found[:, 5] = rescale_confidence(honest, 1 / power, shift)
        drawn.append((found, truth))
    return drawn


def calibrate(pictures: Pictures, groups: Sequence[str], task: DetectionTask = TASK) -> Calibration:
    targets, found = [truth for _, truth in pictures], [found for found, _ in pictures]
    return task.calibrate(targets, found, np.array(list(groups)), CLASSES)


def test_a_confidence_becomes_how_often_a_box_is_right() -> None:
    pictures, groups = draw_confidences(0), [f"g{k // 2}" for k in range(40)]
    found = calibrate(pictures, groups)
    assert found.temperature == pytest.approx(3, rel=0.15)
    assert found.offset == pytest.approx(-1 / 3, abs=0.15)
    assert "(20 groups). Thresholds of the highest F1 on validation: crack from 0." in found.reason
    frame = write_frame(pictures, groups, found)
    scores, plain = TASK.score_frame(frame, CLASSES), TASK.score_frame(write_frame(pictures, groups), CLASSES)
    assert scores["ece"] < 0.05 < 0.1 < scores["ece_uncalibrated"] == plain["ece"]
    assert scores["ece"] == TASK.frame_error(frame, CLASSES)
    assert scores["map"] == plain["map"]  # no order changes
    assert scores["loss"] == plain["loss"]
    mean, right, count = TASK.reliability_curve(frame, CLASSES)
    assert count.sum() == 40 * 20
    assert right[count > 20] == pytest.approx(mean[count > 20], abs=0.2)
    confidence, hits = TASK.reliability(np.array([1, 0]), np.array([0.9, 0.2]))
    assert (confidence.tolist(), hits.tolist()) == ([[0.9], [0.2]], [[True], [False]])


def test_confidences_stay_where_calibration_does_not_help_or_cannot_be_judged() -> None:
    honest = calibrate(draw_confidences(1, power=1, shift=0, pictures=12), [f"g{k}" for k in range(12)])
    assert (honest.temperature, honest.offset) == (1, 0)
    assert honest.reason.startswith("not calibrated, for temperature ")
    few = calibrate(draw_confidences(0, pictures=6), list("aaabbb"))
    assert (few.temperature, few.offset) == (1, 0)
    assert few.reason.startswith("not calibrated: boxes were found in 2 groups of validation, and 3 are needed")
    assert few.thresholds["rust"] == 0.5
    nothing = calibrate([(boxes(), boxes())] * 3, "abc")
    assert nothing.thresholds == dict.fromkeys(CLASSES, 0.5)
    assert "rust from 0.5, for there is none in validation" in nothing.reason
    missed = calibrate([(boxes([0, 0, 9, 9, 0, 0.9]), boxes([20, 20, 29, 29, 0, OBJECT]))] * 3, "abc")
    assert missed.thresholds["crack"] == 0.5
    assert "crack from 0.5, for no box finds one in validation" in missed.reason


def test_boxes_at_regions_to_ignore_say_nothing_of_confidences() -> None:
    pictures, groups = draw_confidences(0), [f"g{k // 2}" for k in range(40)]
    crowded = [
        (np.concatenate([found, [[0, 500, 9, 509, k, 0.99] for k in (0, 1)]]),
         np.concatenate([truth, [[0, 500, 90, 590, k, CROWD] for k in (0, 1)]]))
        for found, truth in pictures
    ]  # fmt: skip
    plain, found = calibrate(pictures, groups), calibrate(crowded, groups)
    assert (found.temperature, found.offset) == (plain.temperature, plain.offset)
    assert found.thresholds == plain.thresholds
    assert TASK.score_frame(write_frame(crowded, groups, found), CLASSES)["ece"] == pytest.approx(
        TASK.score_frame(write_frame(pictures, groups, found), CLASSES)["ece"]
    )


def measure_shown(
    pictures: Pictures, groups: Sequence[str], calibration: Calibration, name: str, limit: float
) -> tuple[float, float, float]:
    """False alarms per picture and the share missed, over pictures and then groups; and F1; by a plain count."""
    number, alarms, missed, counts = CLASSES.index(name), [], [], np.zeros(3)
    for group in sorted(set(groups)):
        wrong = objects = hits = 0
        mine = [each for each, of in zip(pictures, groups, strict=True) if of == group]
        for found, truth in mine:
            true = {tuple(row[:4]) for row in truth if row[4] == number}
            rows = found[found[:, 4] == number]
            kept = rows[rescale_confidence(rows[:, 5], calibration.temperature, calibration.offset) >= limit]
            right = sum(tuple(row[:4]) in true for row in kept)
            wrong, objects, hits = wrong + len(kept) - right, objects + len(true), hits + right
        alarms.append(wrong / len(mine))
        missed += [1 - hits / objects] if objects else []
        counts += [hits, wrong, objects]
    return float(np.mean(alarms)), float(np.mean(missed)), 2 * counts[0] / (counts[0] + counts[1] + counts[2])


def list_limits(pictures: Pictures, calibration: Calibration, name: str) -> Iterator[float]:
    """One threshold between each two confidences of a class."""
    rows = np.concatenate([found for found, _ in pictures])
    plain = np.unique(rows[rows[:, 4] == CLASSES.index(name), 5])
    values = rescale_confidence(plain, calibration.temperature, calibration.offset)
    yield from (values + np.append(0, values[:-1])) / 2


@pytest.mark.parametrize("name", CLASSES[:2])
def test_a_threshold_is_the_best_one_for_what_is_asked(name: str) -> None:
    """Groups of unequal size: the averages are over groups, which a mean over pictures would miss."""
    pictures, groups = draw_confidences(2), ["a"] * 20 + ["b"] * 5 + [f"g{k}" for k in range(15)]
    for task in (TASK, DetectionTask(false_alarms=0.5), DetectionTask(misses=0.2)):
        found = calibrate(pictures, groups, task)
        limit = found.thresholds[name]
        alarms, missed, f1 = measure_shown(pictures, groups, found, name, limit)
        others = [measure_shown(pictures, groups, found, name, each) for each in list_limits(pictures, found, name)]
        said = f"{name} from {limit:.3g}: {alarms:.3g} false alarms per picture, {missed:.1%} of the objects missed"
        assert said in found.reason
        if task.false_alarms is not None:
            assert alarms <= 0.5
            assert missed == min(each[1] for each in others if each[0] <= 0.5)
        elif task.misses is not None:
            assert missed <= 0.2
            assert alarms == min(each[0] for each in others if each[1] <= 0.2)
        else:
            assert f1 == pytest.approx(max(each[2] for each in others))


def test_no_share_is_less_than_nothing() -> None:
    """The shares of 13 groups with three objects each add up to a little more than one."""
    places = np.arange(3) * 20.0
    rows = np.column_stack([places, places * 0, places + 9, places * 0 + 9, places * 0, places * 0])
    found = calibrate([(rows + np.array([0, 0, 0, 0, 0, 0.9]), rows)] * 13, "abcdefghijklm", DetectionTask(misses=0))
    assert "0 false alarms per picture, 0.0% of the objects missed" in found.reason


def test_what_cannot_be_reached_is_said() -> None:
    picture = boxes([0, 0, 10, 10, 0, 0.8], [50, 0, 60, 10, 0, 0.9]), boxes([0, 0, 10, 10, 0, 0], [90, 0, 99, 9, 0, 0])
    found = calibrate([picture] * 2, "ab", DetectionTask(misses=0.1))
    assert found.thresholds["crack"] == pytest.approx(0.4)  # all is shown
    assert "crack from 0.4: 1 false alarms per picture, 50.0% of the objects missed, for no box finds the others" in (
        found.reason
    )
    none = calibrate([picture] * 2, "ab", DetectionTask(false_alarms=0.5))
    _, shown = TASK.decide(boxes([0, 0, 10, 10, 0, 1.0]), CLASSES, none)
    assert not shown.any()  # the most confident box is a false one


# Answers


def test_rows_say_how_sure_they_are() -> None:
    truth = boxes([0, 0, 10, 10, 0, OBJECT])
    right, false = [0, 0, 10, 10, 0, 0.8], [50, 0, 60, 10, 1, 0.9]
    pictures = [
        (boxes(right, [70, 0, 80, 10, 0, 0.2]), truth),
        (boxes(right, false), truth),
        (boxes([0, 0, 10, 10, 0, 0.3]), truth),  # missed, for it is not shown
        (boxes([0, 0, 10, 10, 0, 0.3]), boxes()),
        (boxes(), boxes()),
    ]
    frame = write_frame(pictures, "abcde")
    assert TASK.hits(frame).tolist() == [True, False, False, True, True]
    assert TASK.confidence(frame).to_list() == pytest.approx([0.8, 0.9, 0.7, 0.7, 1])
    assert TASK.ease(frame).to_list() == pytest.approx([1, 2 / 3, 0, 1, 1])
    assert TASK.describe_answers(frame).to_list() == ["crack", "crack + pit", "(none)", "(none)", "(none)"]
    has, answered = TASK.flags(frame, CLASSES)
    assert has[:, 0].tolist() == [True, True, True, False, False]
    assert answered[1].tolist() == [True, True, False]
    assert TASK.outputs(CLASSES[:1]) == {"label": "string", "objects": "string", "count_crack": "double"}


def test_two_models_boxes_are_so_far_apart() -> None:
    truth = boxes([0, 0, 10, 10, 0, OBJECT])
    then = write_frame([(boxes([0, 0, 10, 10, 0, 0.8], [50, 0, 60, 10, 1, 0.9]), truth)], "a")
    now = write_frame([(boxes([50, 0, 60, 10, 1, 0.9], [0, 0.5, 10, 10, 0, 0.7]), truth)], "a")
    assert TASK.describe_gap(then, now) == "boxes differ by at most 0.5 pixels, and confidences by 0.1"
    now = write_frame([(boxes([50, 0, 60, 10, 2, 0.9], [0, 0.5, 10, 10, 0, 0.7]), truth)], "a")
    assert TASK.describe_gap(then, now).startswith("2 of 4 boxes are one model's alone, the others differ by at most")


# Gates


def domain_of(**changes: Any) -> Any:
    facts = {"task": "detection", "layout": "coco", "classes": list(CLASSES), "slices": ["site"]}
    return make_domain(**facts | changes)


def judge(challenger: pl.DataFrame, champion: pl.DataFrame | None, **gates: Any) -> Mapping[str, Finding]:
    return tiny.judge(context(challenger, champion, **gates))


def context(challenger: pl.DataFrame, champion: pl.DataFrame | None, **gates: Any) -> Context:
    slices = ["site"] if "site" in challenger.columns else []
    return tiny.create_context(domain_of(gates=gates, slices=slices), challenger, champion)


def test_the_gates_compare_maps_by_class_size_and_site() -> None:
    """The worse model finds no small object. One site shows nothing that counts."""
    rng, better, worse = np.random.default_rng(0), [], []
    for number in range(40):
        small, large = rng.integers(8, 30, 2).tolist()
        crack, pit = number % 2, 1 - number % 2
        truth = boxes([5, 5, 5 + small, 30, crack, OBJECT], [100, 100, 220 + large, 300, pit, OBJECT])
        found = np.column_stack([truth[:, :5], rng.uniform(0.5, 1, 2)])
        if number >= 32:
            truth[:, 5] = DIFFICULT
        better.append((found, truth))
        worse.append((found[1:], truth))
    groups, sites = [f"g{k // 2}" for k in range(40)], ["north"] * 32 + ["south"] * 8
    ours, theirs = (write_frame(each, groups, sites=sites) for each in (better, worse))
    gates = judge(ours, theirs, costs={"crack": {"(none)": 9.0}}, max_cost=9, max_ece=0.9)
    names = ["floor", "improvement", "slices", "costs", "calibration", "data", "split"]
    assert {name: found.verdict for name, found in gates.items()} == {
        **dict.fromkeys(names, "PROMOTE"),
        "lineage": gates["lineage"].verdict,
    }
    assert "the mAP50 100.0 %" in gates["floor"].reason
    assert "surely above answering nothing" in gates["floor"].reason
    ends = {name.partition("/")[0] for name in gates["slices"].evidence} - {"margin"}
    assert ends == {"class=crack", "class=pit", "size=small", "size=large", "site=north"}
    back = judge(theirs, ours)
    assert back["slices"].verdict == "REJECT"
    assert "size=small -100.0 points" in back["slices"].reason
    assert "size=large" not in back["slices"].reason


def test_mistakes_cost_per_image() -> None:
    found, truth = (boxes(*[row[place] for row in SCENE if row[place]]) for place in (1, 2))
    frame = write_frame([(found, truth), (boxes(), boxes()), GOOD, OTHER], "abcd")
    costs = {"rust": {"(none)": 20.0}, "(none)": {"rust": 5.0, "crack": 2.0}, "crack": {"pit": 3.0}}
    gates = domain_of(gates={"costs": costs}).gates
    paid, most = TASK.costs(frame, gates, CLASSES)
    # a crack taken for a pit; a pit and a rust missed; false alarms: two cracks and a rust
    assert paid.tolist() == [3 + 1 + 20 + 2 * 2 + 5, 0, 0, 0]
    assert most == 3 + 3 + 1 + 20 + 300 * 5  # every object at its dearest, and as many false alarms as can be answered
    assert judge(frame, None, costs=costs)["costs"].reason.startswith("Mistakes cost 8.25 per image (between ")


def test_intervals_are_paired() -> None:
    pictures, groups = draw_pictures(5, 40), [f"g{k}" for k in range(40)]
    fewer = [(found[1:], truth) for found, truth in pictures]
    ours, theirs = (TASK.evidence(write_frame(each, groups), CLASSES) for each in (pictures, fewer))
    effect = bootstrap_difference(ours, theirs, resamples=500)
    assert effect.value == pytest.approx(score(ours) - score(theirs))
    assert effect.low is not None


# The domain and its manifest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": {"kind": "detection", "metric": "mAP"}}, "'map50' or 'map'"),
        ({"task": {"kind": "detection", "false_alarms": 1, "misses": 0.1}}, "at most one of false_alarms and misses"),
        ({"task": {"kind": "detection", "misses": 2}}, "less than or equal to 1"),
        ({"task": {"kind": "detection", "recall_at": -1}}, "greater than or equal to 0"),
        ({"layout": "folders"}, "found the layout folders without boxes or masks. Add `masks: <folder>`"),
        ({"layout": "csv"}, "found the layout csv without boxes or masks. Add `boxes: <column>`"),
        ({"gates": {"costs": {"scratch": {"crack": 3}}}}, "speaks of scratch"),
    ],
)
def test_a_domain_that_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=words):
        create_task(domain_of(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["crack"]},
        {"layout": {"kind": "csv", "boxes": "boxes"}},
        {"layout": {"kind": "parquet", "crop": ["x0", "y0", "x1", "y1"]}},
        {"layout": {"kind": "folders", "masks": "masks"}},
        {"gates": {"costs": {"crack": {"(none)": 5}, "(none)": {"crack": 1}}}},
    ],
)
def test_a_domain_of_boxes_is_legal(changes: dict[str, Any]) -> None:
    task = create_task(domain_of(**changes))
    assert (task.metric, task.metric_words, task.class_words, task.shown) == ("map50", "mAP50", "AP50", "map")
    other = create_task(domain_of(task={"kind": "detection", "metric": "map"}, **changes))
    assert (other.metric, other.metric_words, other.class_words, other.shown) == ("map", "mAP", "AP", "map50")


def test_a_manifest_says_which_objects_a_picture_shows(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    objects = [LabelledBox("pit", (0, 0, 4.5, 5)), LabelledBox("crack", (1, 1, 2, 2), "crowd")]
    domain = domain_of(slices=[])
    frame = create_rows([Row(path="a.png", objects=objects), Row(path="b.png", objects=[])], domain, tmp_path)
    assert frame["labels"].to_list() == [["pit"], []]  # a region of many is no object
    assert frame["label"].to_list() == ["pit", "(none)"]
    valid = frame.select("id", "path", *TASK.columns(), "mask", "boxes", "crop").with_columns(
        width=pl.lit(26, pl.Int64), height=pl.lit(20, pl.Int64), group=pl.col("path")
    )
    schema = create_schema(domain, split=False)
    assert not find_failures(valid, schema)
    first = frame["objects"].to_list()[0]
    wrong = {
        "label": ["crack", "(none)"],
        "labels": [["crack"], []],
        **{
            f"objects {change}": [[first[0] | change, first[1]], []]
            for change in (
                {"box": [0.0, 0.0, 0.0, 5.0]},
                {"box": [0.0, 0.0, math.nan, 5.0]},
                {"box": [0.0, 0.0, math.inf, 5.0]},
                {"box": [0.0, 5.0, 4.0, 4.0]},
                {"label": "dent"},
                {"kind": "hard"},
            )
        },
    }
    wrong["objects of no class"] = [[*first, first[0] | {"label": "dent"}], []]
    for name, column in wrong.items():
        changed = pl.Series(name.split()[0], column, dtype=valid.schema[name.split()[0]])
        assert find_failures(valid.with_columns(changed), schema), name
    assert len(TASK.questions(frame, CLASSES)) == 3
    assert TASK.strata(TASK.targets(frame, CLASSES)).tolist() == [1, 3]


def test_the_thresholds_of_the_iou_are_those_of_coco() -> None:
    from pycocotools.cocoeval import Params

    assert np.array_equal(Params(iouType="bbox").iouThrs, IOUS)
