"""Segmentation: figures against an independent slow count, evidence, gates, calibration, answers and options."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from numpy.typing import NDArray
from samples import make_domain
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from components.data.manifest import Row, create_rows, create_schema, find_failures
from components.errors import DomainError, PromotionError
from components.promotion.evidence import require_evidence
from components.promotion.gates.base import Context, Finding
from components.promotion.gates.quality import warn_of_classes
from components.promotion.statistics import bootstrap, bootstrap_difference
from components.records.maps import IGNORE, Regions, count_pixels, decode_map, encode_map
from components.tasks import create_task
from components.tasks import pixels as parts
from components.tasks.base import Evidence
from components.tasks.calibration import Calibration, measure_gaps
from components.tasks.map_scores import count_boundaries, count_components
from components.tasks.segmentation import FURTHER, SAMPLED, SegmentationTask
from components.training.evaluate import hash_split

CLASSES = ("background", "crack", "pit")
TASK = SegmentationTask()
PLAIN = Calibration()

Map = NDArray[np.uint8]
Chances = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Case:
    """One picture: probabilities (C, H, W) before calibration and its class map."""

    chances: Chances
    truth: Map

    @property
    def known(self) -> NDArray[np.bool_]:
        return self.truth != IGNORE


def draw(
    seed: int, height: int = 20, width: int = 26, classes: int = 3, noise: float = 1.0, ignored: float = 0.1
) -> Case:
    """Probabilities that know something of a map of blobs, some of which are not labelled."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(classes, height // 4 + 1, width // 4 + 1)) + np.arange(classes)[::-1, None, None]
    logits = np.kron(coarse, np.ones((1, 4, 4)))[:, :height, :width]
    truth = logits.argmax(axis=0).astype(np.uint8)
    hidden = np.kron(rng.random((height // 4 + 1, width // 4 + 1)) < ignored, np.ones((4, 4)))[:height, :width] > 0
    truth[hidden] = IGNORE
    truth[0, 0] = 0  # one labelled pixel at least
    chances = np.exp(2 * logits + noise * rng.normal(size=logits.shape))
    return Case((chances / chances.sum(axis=0)).astype(np.float32), truth)


def frame_of(
    cases: Sequence[Case],
    groups: Sequence[str],
    classes: Sequence[str] = CLASSES,
    calibration: Calibration = PLAIN,
    sites: Sequence[str] = (),
) -> pl.DataFrame:
    """A frame of predictions as evaluation writes it."""
    rows = []
    for number, (case, group) in enumerate(zip(cases, groups, strict=True)):
        shown = TASK.annotate(Row(path="a.png", regions=Regions.of(case.truth, classes)), classes)
        row = {"id": f"{number:04}", "group": group, "split": "test"} | shown
        rows.append(row | TASK.judge(case.chances, case.truth, classes, calibration))
    types = TASK.columns() | TASK.judged()
    frame = pl.DataFrame(rows, schema_overrides=types)
    assert {name: frame.schema[name] for name in types} == types
    return frame.with_columns(pl.Series("site", sites)) if sites else frame


def flatten(cases: Sequence[Case]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Truth, answer and probabilities of all labelled pixels."""
    truth = np.concatenate([case.truth[case.known] for case in cases]).astype(np.int64)
    chances = np.concatenate([case.chances[:, case.known].T for case in cases]).astype(np.float64)
    return truth, chances.argmax(axis=1), chances


def score(evidence: Evidence) -> float:
    return float(evidence.scores(np.ones((1, int(evidence.groups.max()) + 1)))[0])


# An independent count, pixel by pixel


def list_components(flags: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    left = {(int(y), int(x)) for y, x in np.argwhere(flags)}
    found = []
    while left:
        edge, component = [left.pop()], set[tuple[int, int]]()
        while edge:
            y, x = edge.pop()
            component.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            edge += around
        found.append(component)
    return found


def count_components_slowly(truth: Map, answer: Map, number: int) -> list[int]:
    ignored = {(int(y), int(x)) for y, x in np.argwhere(truth == IGNORE)}
    true, answered = list_components(truth == number), list_components(answer == number)

    def touch(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> bool:
        other = other - ignored
        return len(one & other) > 0.1 * len(one | other)

    found = [one for one in true if any(touch(one, other) for other in answered)]
    right = [other for other in answered if any(touch(one, other) for one in true)]
    false = [other for other in answered if other not in right and 2 * len(other & ignored) <= len(other)]
    return [len(true), len(found), len(right) + len(false), len(false)]


def list_edge(classes: Map, number: int, blank: bool = False) -> list[tuple[int, int]]:
    """Pixels of the class beside one of another; pixels to ignore are none where `blank`."""
    height, width = classes.shape

    def beside(y: int, x: int) -> Iterator[int]:
        for row, column in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= row < height and 0 <= column < width:
                yield int(classes[row, column])

    spared = {number, IGNORE} if blank else {number}
    return [(int(y), int(x)) for y, x in np.argwhere(classes == number) if set(beside(y, x)) - spared]


def count_boundary_slowly(truth: Map, answer: Map, number: int) -> list[int]:
    reach = max(1.0, 0.0075 * math.hypot(*truth.shape))

    def near(place: tuple[int, int], others: Sequence[tuple[int, int]]) -> bool:
        return any(math.dist(place, other) <= reach for other in others)

    true, answered = list_edge(truth, number, blank=True), list_edge(answer, number)
    ignored = [(int(y), int(x)) for y, x in np.argwhere(truth == IGNORE)]
    matched = [place for place in true if near(place, answered)]
    labelled = [place for place in answered if truth[place] != IGNORE]
    agreed = [place for place in labelled if near(place, true)]
    counted = [place for place in labelled if place in agreed or not near(place, ignored)]
    return [len(true), len(matched), len(counted), len(agreed)]


@pytest.mark.parametrize("seed", range(100))
def test_a_hundred_random_pictures_are_counted_as_slowly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 40, 2).tolist()
    case = draw(seed, height, width, 3, noise=rng.uniform(0, 4), ignored=rng.choice([0, 0.1, 0.5]))
    answer = case.chances.argmax(axis=0).astype(np.uint8)
    components, boundary = (count(case.truth, answer, [1, 2]) for count in (count_components, count_boundaries))
    assert components.tolist() == [count_components_slowly(case.truth, answer, k) for k in (1, 2)]
    assert boundary.tolist() == [count_boundary_slowly(case.truth, answer, k) for k in (1, 2)]


def test_a_wide_tolerance_reaches_as_far_as_it_says() -> None:
    """0.75 % of a diagonal of 500 pixels are 3.75."""
    truth = np.zeros((300, 400), np.uint8)
    truth[:, 200:] = 1
    for shift, matched in ((3, 300), (4, 0)):
        answer = np.zeros_like(truth)
        answer[:, 200 + shift :] = 1
        assert count_boundaries(truth, answer, [1]).tolist() == [[300, matched, 300, matched]]


def test_ignored_pixels_hide_false_components_and_boundaries() -> None:
    truth, answer = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    truth[:, :6] = IGNORE
    answer[2:4, 2:7] = 1  # 8 of 10 pixels are ignored
    answer[10:12, 4:8] = 1  # half of its pixels are
    assert count_components(truth, answer, [1]).tolist() == [[0, 0, 1, 1]]
    truth[2:4, 6:7] = 1  # now the first one finds a component, of which nothing more is known
    assert count_components(truth, answer, [1]).tolist() == [[1, 1, 2, 1]]
    exact = np.where(truth == IGNORE, 0, truth)  # the boundary towards what is not known is no mistake
    _, _, answered, agreed = count_boundaries(truth, exact, [1])[0]
    assert answered == agreed


@pytest.mark.parametrize("seed", range(100))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = CLASSES[: rng.integers(2, 4)]
    cases = [draw(100 * seed + k, classes=len(classes), noise=rng.uniform(0, 4)) for k in range(4)]
    frame = frame_of(cases, "aabc", classes)
    truth, answer, chances = flatten(cases)
    scores = TASK.score_frame(frame, classes)
    present = np.unique(truth)
    by_class = {"average": None, "labels": present}
    for name, of_class, count in (("iou", "mean_iou", jaccard_score), ("dice", "mean_dice", f1_score)):
        expected = count(truth, answer, **by_class)
        assert [scores[f"{name}/{classes[k]}"] for k in present] == pytest.approx(expected)
        assert scores[of_class] == pytest.approx(expected.mean())
    assert scores["accuracy"] == pytest.approx((truth == answer).mean())
    hits = answer == truth
    assert scores["ece"] == scores["ece_uncalibrated"] == pytest.approx(measure_gaps(chances.max(axis=1), hits))
    of_cases = [flatten([case]) for case in cases]
    losses = [-np.log(rows[np.arange(len(of)), of]).mean() for of, _, rows in of_cases]
    assert scores["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    pooled = sum(np.array(row).reshape(-1, 4) for row in frame["components"].to_list())
    assert scores["false_components"] == pooled[:, 3].sum() / 4
    if pooled[:, 0].sum():
        assert scores["defect_recall"] == pytest.approx(pooled[:, 1].sum() / pooled[:, 0].sum())
    for case, dice in zip(cases, frame["dice"], strict=True):
        one, other, _ = flatten([case])
        shown = sorted({*one, *other} - {0})
        expected = f1_score(one, other, labels=shown, average="macro") if shown else 1.0
        assert dice == pytest.approx(expected)


def test_boundary_f1_is_the_harmonic_mean_of_pooled_shares() -> None:
    cases = [draw(seed, noise=3) for seed in range(5)]
    counts = sum(
        np.array([count_boundary_slowly(case.truth, case.chances.argmax(axis=0).astype(np.uint8), k) for k in (1, 2)])
        for case in cases
    )
    recall, precision = counts[:, 1] / counts[:, 0], counts[:, 3] / counts[:, 2]
    expected = 2 * recall * precision / (recall + precision)
    scores = TASK.score_frame(frame_of(cases, "abcde"), CLASSES)
    assert [scores["boundary_f1/crack"], scores["boundary_f1/pit"]] == pytest.approx(expected)
    assert scores["boundary_f1"] == pytest.approx(expected.mean())


def test_what_training_keeps_is_what_scores_are_made_of() -> None:
    cases = [draw(seed, noise=3) for seed in range(4)]
    chances, truth = np.stack([case.chances for case in cases]), np.stack([case.truth for case in cases])
    kept = TASK.keep(chances, truth)
    scores = TASK.score_frame(frame_of(cases, "abcd"), CLASSES)
    metrics = TASK.metrics(truth, kept, CLASSES)
    assert next(iter(metrics)) == TASK.metric
    assert metrics == pytest.approx({name: scores[name] for name in metrics})
    assert TASK.surprise(truth, kept).mean() == pytest.approx(scores["loss"])
    assert np.array_equal(np.concatenate([TASK.keep(chances[:1], truth[:1]), TASK.keep(chances[1:], truth[1:])]), kept)
    assert confusion_matrix(*flatten(cases)[:2]).reshape(-1).tolist() == kept[:, :9].sum(axis=0).tolist()
    coarse = TASK.keep(chances[:, :, ::4, ::4], truth)
    assert np.array_equal(coarse[:, -1], kept[:, -1])  # the same pixels are counted


def test_a_picture_is_judged_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw(3, noise=3)
    whole = TASK.judge(case.chances, case.truth, CLASSES, Calibration(1.7))
    monkeypatch.setattr(parts, "PART", 200)
    assert len(list(parts.cut(case.chances.shape))) == 10
    apart = TASK.judge(case.chances, case.truth, CLASSES, Calibration(1.7))
    for name, value in whole.items():
        assert apart[name] == (pytest.approx(value) if name in ("sureness", "sureness_raw", "nll") else value)


# Evidence


def test_weights_are_pictures_that_are_copied() -> None:
    rng, groups = np.random.default_rng(0), "aabbccdd"
    cases = [draw(seed, noise=3) for seed in range(8)]
    frame = frame_of(cases, groups)
    weights = rng.integers(0, 4, (20, 4)).astype(float)
    found = TASK.evidence(frame, CLASSES).scores(weights)
    for row, value in zip(weights, found, strict=True):
        times = [int(row["abcd".index(group)]) for group in groups]
        copied = [case for case, number in zip(cases, times, strict=True) for _ in range(number)]
        if not copied:
            assert math.isnan(value)
            continue
        truth, answer, _ = flatten(copied)
        assert value == pytest.approx(jaccard_score(truth, answer, average=None, labels=np.unique(truth)).mean())
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    assert TASK.evidence(shuffled, CLASSES).scores(weights) == pytest.approx(found, nan_ok=True)


def test_each_class_has_evidence_where_it_occurs() -> None:
    cases = [draw(seed, noise=3) for seed in range(6)]
    cases = [Case(case.chances, np.where(case.truth == 2, 0, case.truth).astype(np.uint8)) for case in cases]
    frame = frame_of(cases, "abcdef")
    scores = TASK.score_frame(frame, CLASSES)
    found = TASK.class_evidence(frame, CLASSES)
    assert list(found) == ["background", "crack"]
    assert {name: score(evidence) for name, evidence in found.items()} == pytest.approx(
        {name: scores[f"iou/{name}"] for name in found}
    )
    assert score(TASK.evidence(frame, CLASSES)) == pytest.approx(scores["mean_iou"])
    assert "iou/pit" not in scores
    mean = TASK.mean_evidence([frame, frame], CLASSES)
    assert score(mean) == pytest.approx(scores["mean_iou"])


def test_an_answer_without_knowledge_is_at_chance() -> None:
    cases = [draw(seed) for seed in range(4)]
    truth = np.concatenate([case.truth[case.known] for case in cases])
    commonest = int(np.bincount(truth).argmax())
    blind = np.zeros((3, 20, 26), np.float32)
    blind[commonest] = 1
    frame = frame_of([Case(blind, case.truth) for case in cases], "abcd")
    assert score(TASK.evidence(frame, CLASSES)) == pytest.approx(TASK.chance(frame, CLASSES))


def test_an_answer_at_random_is_at_each_class_s_chance() -> None:
    rng, maps = np.random.default_rng(0), []
    for _ in range(4):
        truth, answer = (rng.choice(3, (300, 300), p=[0.9, 0.08, 0.02]) for _ in range(2))
        maps.append(Case(np.eye(3, dtype=np.float32)[answer].transpose(2, 0, 1), truth.astype(np.uint8)))
    frame = frame_of(maps, "abcd")
    found = TASK.class_evidence(frame, CLASSES)
    for name in CLASSES:
        assert score(found[name]) == pytest.approx(TASK.chance(frame, CLASSES, name), abs=0.003)
    warnings, at_chance = warn_of_classes(frame, domain_of())
    assert at_chance
    assert "not surely better than answering it at random" in warnings[0]


def test_predictions_of_other_classes_are_refused() -> None:
    frame = frame_of([draw(0)], "a")
    with pytest.raises(PromotionError, match="the classes background, crack; found labels pit"):
        TASK.evidence(frame, CLASSES[:2])
    with pytest.raises(PromotionError, match="16 numbers per image in the column confusion"):
        TASK.evidence(frame, (*CLASSES, "rust"))


# Calibration


def test_a_temperature_and_a_threshold_are_found_on_pixels() -> None:
    """Probabilities that were honest before their logits were tripled, of a rare class that a threshold helps."""
    rng, cases = np.random.default_rng(0), []
    for _ in range(8):
        honest = 1 / (1 + np.exp(-2 * rng.normal(size=(40, 50)) + 2))
        truth = (rng.random((40, 50)) < honest).astype(np.uint8)
        truth[:4] = IGNORE
        sure = TASK.rescale(np.stack([1 - honest, honest]).reshape(2, -1).T, 1 / 3).T.reshape(2, 40, 50)
        cases.append(Case(sure, truth))
    batch = np.stack([case.chances for case in cases]), np.stack([case.truth for case in cases])
    targets, chances, images = TASK.sample(*batch)
    assert targets.shape == images.shape == (8 * SAMPLED * FURTHER,)
    assert set(targets.tolist()) == {0, 1}
    share = flatten(cases)[0].mean()
    assert targets.mean() == pytest.approx(share, abs=0.01)  # a rare class is as rare in the sample
    for again, once in zip(TASK.sample(*batch), (targets, chances, images), strict=True):
        assert np.array_equal(again, once)

    classes = CLASSES[:2]
    found = TASK.calibrate(targets, chances, images, classes)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert "(8 groups)" in found.reason
    frame = frame_of(cases, "abcdefgh", classes, found)
    scores = TASK.score_frame(frame, classes)
    assert scores["ece"] < 0.03 < scores["ece_uncalibrated"]
    assert scores["ece"] == pytest.approx(TASK.frame_error(frame, classes))
    truth, _, raw = flatten(cases)
    calibrated = TASK.rescale(raw, found.temperature)
    assert scores["ece"] == pytest.approx(measure_gaps(calibrated.max(axis=1), calibrated.argmax(axis=1) == truth))

    def rate(limit: float) -> float:
        return float(jaccard_score(truth, calibrated[:, 1] >= limit, average="macro"))

    assert list(found.thresholds) == ["crack"]
    limit = found.thresholds["crack"]
    assert limit < 0.45
    assert scores["mean_iou"] == pytest.approx(rate(limit), abs=1e-3)
    assert scores["mean_iou"] > rate(0.5) + 0.005
    assert scores["mean_iou"] == pytest.approx(max(rate(k / 50) for k in range(1, 50)), abs=0.005)
    for case, row in zip(cases, frame.iter_rows(named=True), strict=True):
        answer = TASK.decide(case.chances, classes, found)
        assert np.array_equal(answer, decode_map(row["answer_map"]))
        assert np.array_equal(
            answer[case.known] > 0, TASK.rescale(flatten([case])[2], found.temperature)[:, 1] >= limit
        )


def test_three_classes_have_no_threshold_and_few_groups_no_temperature() -> None:
    cases = [draw(seed) for seed in range(4)]
    found = TASK.sample(np.stack([case.chances for case in cases]), np.stack([case.truth for case in cases]))
    assert found[0].shape == (4 * SAMPLED,)
    calibration = TASK.calibrate(*found, CLASSES)
    assert not calibration.thresholds
    assert "(4 groups)" in calibration.reason
    assert "2 groups" in TASK.calibrate(found[0], found[1], found[2] // 2, CLASSES).reason
    nothing = np.full((1, 20, 26), IGNORE, np.uint8)
    assert TASK.sample(cases[0].chances[None], nothing)[0].shape == (0,)


def test_the_threshold_stays_at_one_half_where_it_says_nothing() -> None:
    ones, chances = np.ones(50, bool), np.linspace(0, 1, 50)
    assert parts.choose_limit(ones, chances) == parts.choose_limit(~ones, chances) == 0.5
    sure = np.repeat([0.05, 0.95], 25)
    assert parts.choose_limit(sure > 0.5, sure) == 0.5
    assert parts.restore_limit(0.3, 1) == pytest.approx(0.3)


def test_reliability_is_drawn_from_bins_of_pixels() -> None:
    cases = [draw(seed, noise=3) for seed in range(3)]
    mean, right, count = TASK.reliability_curve(frame_of(cases, "abc"), CLASSES)
    truth, answer, chances = flatten(cases)
    place = np.minimum((chances.max(axis=1) * 15).astype(int), 14)
    assert count.tolist() == np.bincount(place, minlength=15).tolist()
    for k in range(15):
        if count[k]:
            assert mean[k] == pytest.approx(chances.max(axis=1)[place == k].mean())
            assert right[k] == pytest.approx((truth == answer)[place == k].mean())
    assert np.isnan(mean[count == 0]).all()


# Answers


def test_a_served_answer_has_a_mask_and_the_areas_of_the_foreground() -> None:
    assert TASK.outputs(CLASSES) == {
        "label": "string",
        "mask": "string",
        **dict.fromkeys(["area_crack", "area_pit", "components_crack", "components_pit"], "double"),
    }
    assert "area_background" in SegmentationTask(background=None).outputs(CLASSES)


def test_rows_say_whether_they_are_right_and_how_sure() -> None:
    truth = np.zeros((10, 10), np.uint8)
    truth[2:5, 2:5] = 1
    right, missed, false = truth.copy(), np.zeros_like(truth), truth.copy()
    false[8, 8] = 2
    cases = [Case(np.moveaxis(0.7 * np.eye(3)[each] + 0.1, 2, 0), truth) for each in (right, missed, false)]
    frame = frame_of(cases, "abc")
    assert TASK.hits(frame).tolist() == [True, False, False]
    assert TASK.describe_answers(frame).to_list() == ["crack", "background", "crack + pit"]
    assert TASK.ease(frame).to_list() == [1, 0, 0.5]
    assert TASK.confidence(frame).to_list() == pytest.approx([0.8] * 3)
    has, answered = TASK.flags(frame, CLASSES)
    assert has.tolist() == [[True, True, False]] * 3
    assert answered.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    gap = TASK.describe_gap(frame[[0, 0]], frame[[0, 1]])
    assert gap == "answers differ at 4.50% of the pixels, and at 9.00% of one picture's"
    assert len(TASK.questions(frame, CLASSES)) == 2
    assert TASK.questions(frame, CLASSES)[1]["label"].to_list() == ["no pit"] * 3
    assert TASK.strata(TASK.targets(frame, CLASSES)).tolist() in ([0] * 3, [1] * 3)
    with pytest.raises(TypeError, match="judge"):
        TASK.answers(cases[0].chances, CLASSES, PLAIN)


# Gates


def domain_of(**changes: Any) -> Any:
    facts = {"task": "segmentation", "layout": "masks", "classes": list(CLASSES), "slices": ["site"]}
    return make_domain(**facts | changes)


def judge(challenger: pl.DataFrame, champion: pl.DataFrame | None, **gates: Any) -> Mapping[str, Finding]:
    return tiny.judge(context(challenger, champion, **gates))


def context(challenger: pl.DataFrame, champion: pl.DataFrame | None, **gates: Any) -> Context:
    return tiny.create_context(domain_of(gates=gates), challenger, champion)


def test_the_gates_compare_mean_ious() -> None:
    groups, sites = [f"g{k // 2}" for k in range(40)], ["north"] * 32 + ["south"] * 8
    pairs = [(draw(seed, noise=0.5), draw(seed, noise=6)) for seed in range(40)]
    empty = np.zeros((20, 26), np.uint8)  # at one site there is nothing but background, which has a score
    pairs[32:] = [(Case(one.chances, empty), Case(other.chances, empty)) for one, other in pairs[32:]]
    better, worse = (frame_of(side, groups, sites=sites) for side in zip(*pairs, strict=True))
    gates = judge(better, worse, costs={"crack": {"background": 9.0}}, max_cost=9, max_ece=0.9)
    names = ["floor", "improvement", "slices", "costs", "calibration", "data", "split"]
    assert {name: found.verdict for name, found in gates.items()} == {
        **dict.fromkeys(names, "PROMOTE"),
        "lineage": gates["lineage"].verdict,
    }
    assert "the mean IoU" in gates["floor"].reason
    assert "surely above answering the commonest class everywhere" in gates["floor"].reason
    scores = [TASK.score_frame(frame, CLASSES)["mean_iou"] for frame in (better, worse)]
    assert gates["improvement"].evidence["value"] == pytest.approx(scores[0] - scores[1])
    assert gates["improvement"].evidence["only_challenger_right"] > 0
    ends = {name.partition("/")[0] for name in gates["slices"].evidence} - {"margin"}
    assert ends == {"class=background", "class=crack", "class=pit", "site=north", "site=south"}
    assert gates["calibration"].evidence["ece"] == pytest.approx(TASK.score_frame(better, CLASSES)["ece"])
    assert judge(worse, better)["improvement"].verdict == judge(worse, better)["slices"].verdict == "REJECT"
    assert judge(better, None, max_ece=0.001)["calibration"].verdict == "REJECT"
    assert judge(better, None, floor=0.999)["floor"].verdict == "REJECT"


def test_mistakes_cost_per_pixel() -> None:
    truth = np.zeros((10, 10), np.uint8)
    truth[0, :5], truth[9] = 1, IGNORE
    answer = np.zeros_like(truth)
    answer[0, :2], answer[5, 5:8] = 1, 2  # three of the crack missed, three pixels of a pit that is none
    frame = frame_of([Case(np.moveaxis(np.eye(3)[answer], 2, 0), truth)] * 4, "abcd", sites=["north"] * 4)
    costs = {"crack": {"background": 20.0}, "*": {"pit": 2.0}}
    found, most = TASK.costs(frame, domain_of(gates={"costs": costs}).gates, CLASSES)
    assert found.tolist() == pytest.approx([(3 * 20 + 3 * 2) / 90] * 4)
    assert most == 20
    reason = judge(frame, None, costs=costs)["costs"].reason
    assert reason.startswith("Mistakes cost 0.733 per pixel, averaged over the images (between ")


def test_a_changed_class_map_is_other_evidence() -> None:
    cases = [draw(seed) for seed in range(4)]
    frame = frame_of(cases, "abcd")
    require_evidence(context(frame, frame))
    other = decode_map(frame["class_map"][0])
    other[tuple(np.argwhere(other == 0)[0])] = IGNORE
    changed = pl.Series("class_map", [encode_map(other), *frame["class_map"][1:]], dtype=pl.Binary)
    with pytest.raises(PromotionError, match="4 rows, of which 3 agree"):
        require_evidence(context(frame, frame.with_columns(changed)))


def test_the_name_of_a_split_depends_on_class_maps() -> None:
    plain = pl.DataFrame({"id": ["b", "a"], "label": ["x", "y"], "split": ["test", "val"]})
    rows = [("a", "y", "val"), ("b", "x", "test")]
    assert hash_split(plain) == hashlib.sha256(repr(rows).encode()).hexdigest()
    maps = [plain.with_columns(class_map=pl.Series([b"1", each], dtype=pl.Binary)) for each in (b"2", b"3")]
    assert len({hash_split(plain), *map(hash_split, maps)}) == 3


def test_intervals_of_pictures_are_exact_and_paired() -> None:
    groups = [f"g{k}" for k in range(30)]
    pairs = [(draw(seed, noise=1), draw(seed, noise=1.5)) for seed in range(30)]
    ours, theirs = (TASK.evidence(frame_of(side, groups), CLASSES) for side in zip(*pairs, strict=True))
    effect = bootstrap_difference(ours, theirs, resamples=500)
    assert effect.value == pytest.approx(score(ours) - score(theirs))
    assert effect.low is not None
    assert effect.high is not None
    alone = bootstrap(ours, resamples=500)
    assert alone.low is not None
    assert alone.high is not None
    assert effect.high - effect.low < alone.high - alone.low  # of the same pictures


# The domain and its manifest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ["sound", "crack"]}, "a background among the classes sound, crack, or null; found background: ba"),
        ({"task": {"kind": "segmentation", "background": "none"}}, "found background: none"),
        ({"classes": ["background"]}, "at least 2 classes for the task segmentation"),
        ({"classes": ["background", *map(str, range(255))]}, "at most 255 classes; found 256"),
        ({"task": {"kind": "segmentation", "head": "convolution"}}, "'conv' or 'linear'"),
        ({"task": {"kind": "segmentation", "head_lr": 0}}, "greater than 0"),
        ({"task": {"kind": "segmentation", "overlap": "larger"}}, "'later' or 'smaller'"),
        ({"layout": {"kind": "masks", "background": "crack"}}, "the background that the task names, background; found"),
        ({"layout": "voc"}, "for the task segmentation; found layout: voc"),
        ({"layout": "folders"}, "found the layout folders without masks. Add `masks: <folder>`"),
        ({"layout": "csv"}, "found the layout csv without masks. Add `mask: <column>`"),
        ({"gates": {"costs": {"scratch": {"crack": 3}}}}, "speaks of scratch"),
        ({"task": "classification", "candidates": ["linear", "pixels"]}, "candidates: expected tuners for the task cl"),
    ],
)
def test_a_domain_that_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=words):
        create_task(domain_of(**changes))


def test_options_become_a_painting() -> None:
    options = {"kind": "segmentation", "background": "crack", "unannotated": "background", "overlap": "smaller"}
    task = create_task(domain_of(task=options, candidates=["pixels"], layout={"kind": "masks", "background": "crack"}))
    assert task.painting is not None
    assert (task.painting.background, task.painting.unannotated, task.painting.overlap) == (
        "crack",
        "background",
        "smaller",
    )
    nothing = create_task(domain_of(task={"kind": "segmentation", "background": None}, classes=["crack", "pit"]))
    assert nothing.painting is not None
    assert nothing.painting.background is None


def test_a_manifest_says_what_every_pixel_shows(tmp_path: Path) -> None:
    truth = draw(0).truth
    names = ("pit", "background", "crack")  # a reader has its own numbers
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    rows = [
        Row(path="a.png", regions=Regions.of(truth, names)),
        Row(path="b.png", regions=Regions.of(np.ones((4, 5), np.uint8), names)),
    ]
    domain = domain_of(slices=[])
    frame = create_rows(rows, domain, tmp_path)
    other = np.array([2, 0, 1, *[IGNORE] * 253], np.uint8)[truth]
    assert np.array_equal(decode_map(frame["class_map"][0]), other)
    assert frame["pixels"].to_list() == [count_pixels(encode_map(other), 3), [20, 0, 0]]
    assert frame["labels"].to_list() == [list(CLASSES), ["background"]]
    assert frame["label"].to_list() == ["crack + pit", "background"]
    valid = frame.select("id", "path", *TASK.columns(), "mask", "boxes", "crop").with_columns(
        width=pl.lit(26, pl.Int64), height=pl.lit(20, pl.Int64), group=pl.col("path")
    )
    schema = create_schema(domain, split=False)
    assert not find_failures(valid, schema)
    wrong = {
        "pixels": pl.Series([[1, 2, 3], [20, 0, 0]]),
        "labels": pl.Series([["crack"], ["background"]]),
        "class_map": pl.Series([None, frame["class_map"][1]], dtype=pl.Binary),
    }
    for name, column in wrong.items():
        assert find_failures(valid.with_columns(column.alias(name)), schema), name


@pytest.mark.parametrize(
    ("pictures", "sizes", "advice"),
    [
        (107, [(320, 256)] * 5, {"img_size": [224, 288], "training": {"epochs": 50}}),
        (2000, [(1130, 460), (1130, 460), (1540, 645)], {"img_size": [160, 400], "training": {"epochs": 10}}),
        (40, [(100, 100)], {"img_size": 96, "training": {"epochs": 100}}),
        (300, [(400, 200), (200, 400), (300, 300)], {"img_size": 256, "fit": "letterbox", "training": {"epochs": 18}}),
        (300, [], {"training": {"epochs": 18}}),
    ],
)
def test_a_new_domain_begins_with_a_canvas_and_a_budget_that_suit_it(
    pictures: int, sizes: list[tuple[int, int]], advice: dict[str, Any]
) -> None:
    found = TASK.advise(pictures, sizes)
    assert found == advice | {"training": advice["training"] | {"warmup_epochs": 1, "batch_size": 8}}
    domain_of(**found)  # is legal
