"""Tasks and their heads: what each must have, and the figures of multilabel against scikit-learn's."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as npst
import numpy as np
import polars as pl
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from samples import make_domain
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score

from components.domain.settings import Gates
from components.errors import DomainError, PromotionError
from components.models.heads import HEADS, Shape, create_head
from components.models.tokens import Tokens
from components.promotion.gates.base import Finding
from components.tasks import CLASSIFICATION, TASKS, choose_kind, create_task
from components.tasks.base import DenseTask, Evidence, Task
from components.tasks.calibration import Calibration
from components.tasks.multilabel import MultilabelTask, RankEvidence, choose_thresholds
from components.training.probe import solve, standardise
from components.workspace import REPOSITORY

CLASSES = ("crack", "pit", "rust")
MULTI = MultilabelTask()
HALF = Calibration(thresholds=dict.fromkeys(CLASSES, 0.5))

#: What only a task may know of itself.
SECRETS = re.compile(
    r"\btask(_kind)?\s*[!=]=|[\"']kind[\"']\]?\s*==\s*[\"'](classification|multilabel|segmentation|detection)|\bbalanced_accuracy\b"
    r"|\bmacro_ap\b|\bmean_iou\b|\bmap50\b|[\"']predicted[\"']|[\"'](classification|multilabel)[\"']"
)
ROOMS = ("components/tasks", "components/models/heads")


def test_every_task_has_a_head_and_answers_for_one_annotation() -> None:
    assert TASKS.keys() == HEADS.keys()
    for kind, task in TASKS.items():
        assert kind == task().kind == Path(f"{kind}.py").stem
        assert (REPOSITORY / "components" / "tasks" / f"{kind}.py").is_file()
        assert (REPOSITORY / "components" / "models" / "heads" / f"{kind}.py").is_file()
        assert choose_kind(task.annotation) == kind


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"task": "clasification"},
            "a task among classification, multilabel, segmentation, detection; found clasification. Did",
        ),
        ({"task": {"kind": "multilabel", "ignore": 3}, "layout": "csv"}, "the unknown key 'ignore'"),
        ({"task": {"classes": 3}}, "a task among classification, multilabel, segmentation, detection; found no kind"),
        ({"classes": ["good"]}, "at least 2 classes for the task classification; found good"),
        (
            {"task": "multilabel"},
            "one of the layouts csv, parquet, coco, masks for the task multilabel; found layout: folders",
        ),
        ({"task": "multilabel", "layout": {"kind": "csv", "one_hot": True}}, "Remove `one_hot`"),
        ({"gates": {"costs": {"good": {"(none)": 3}}}}, r"speaks of \(none\)"),
    ],
)
def test_a_domain_that_does_not_fit_its_task_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=words):
        create_task(make_domain(**changes))


def test_a_task_is_a_name_or_a_mapping() -> None:
    costs = {"costs": {"good": {"(none)": 3}}}
    for task in ("multilabel", {"kind": "multilabel"}):
        assert create_task(make_domain(task=task, layout="csv", classes=["good"], gates=costs)) == MULTI


# Average precision


def average(truth: NDArray[np.bool_], chances: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """scikit-learn's mean over the classes with a positive of any weight, NaN without one."""
    scores = [
        average_precision_score(truth[:, k], chances[:, k], sample_weight=weights)
        for k in range(truth.shape[1])
        if (weights * truth[:, k]).sum() > 0
    ]
    return float(np.mean(scores)) if scores else float("nan")


@given(st.data())
def test_average_precision_is_that_of_scikit_learn_with_ties_and_weights(data: st.DataObject) -> None:
    images, groups = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 6))
    truth = data.draw(npst.arrays(np.bool_, (images, 3)))
    chances = data.draw(npst.arrays(np.float64, (images, 3), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])))
    places = data.draw(npst.arrays(np.int64, images, elements=st.integers(0, groups - 1)))
    weights = data.draw(npst.arrays(np.float64, (4, groups), elements=st.integers(0, 5).map(float)))
    evidence = RankEvidence.of(truth, chances, places, groups)
    expected = [average(truth, chances, row[places]) for row in weights]
    np.testing.assert_allclose(evidence.scores(weights), expected, atol=1e-12)
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, groups - 1), min_size=1))))
    kept = np.isin(places, chosen)
    alone = average(truth[kept], chances[kept], np.ones(kept.sum()))
    np.testing.assert_allclose(evidence.only(chosen).scores(np.ones((1, len(chosen)))), [alone], atol=1e-12)


def draw(images: int = 120, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64], pl.DataFrame]:
    """Targets, probabilities that know something of them, and the frame of predictions at thresholds of one half."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, 3)) < [0.6, 0.3, 0.1]).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-(2 * targets - 1) - rng.normal(size=targets.shape)))
    return targets, probabilities, frame_of(targets, probabilities)


def frame_of(targets: NDArray[np.float32], probabilities: NDArray[np.float64]) -> pl.DataFrame:
    labels = [[name for name, there in zip(CLASSES, row, strict=True) if there] for row in targets]
    rows = pl.DataFrame(
        {
            "id": [f"{k:04}" for k in range(len(targets))],
            "group": [f"g{k // 4}" for k in range(len(targets))],
            "label": [" + ".join(names) or "(none)" for names in labels],
            "labels": pl.Series(labels, dtype=pl.List(pl.String)),
        }
    )
    columns = [pl.Series(f"p_{name}", probabilities[:, k]) for k, name in enumerate(CLASSES)]
    return rows.with_columns(*MULTI.answers(probabilities, CLASSES, HALF), *columns)


def score(evidence: Evidence) -> float:
    return float(evidence.scores(np.ones((1, int(evidence.groups.max()) + 1)))[0])


def test_a_frame_says_what_the_arrays_say() -> None:
    targets, probabilities, frame = draw()
    metrics = MULTI.metrics(targets, probabilities, CLASSES, HALF)
    assert metrics["macro_ap"] == pytest.approx(average_precision_score(targets, probabilities, average="macro"))
    assert metrics["macro_f1"] == pytest.approx(f1_score(targets, probabilities >= 0.5, average="macro"))
    assert metrics["exact_match"] == pytest.approx(float(MULTI.hits(frame).mean()))
    assert score(MULTI.evidence(frame, CLASSES)) == pytest.approx(metrics["macro_ap"])
    for name, evidence in MULTI.class_evidence(frame, CLASSES).items():
        assert score(evidence) == pytest.approx(metrics[f"ap/{name}"])
    assert metrics["ece"] == pytest.approx(MULTI.frame_error(frame, CLASSES))
    np.testing.assert_array_equal(MULTI.targets(frame, CLASSES), targets)
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    assert score(MULTI.evidence(shuffled, CLASSES)) == pytest.approx(metrics["macro_ap"])
    with pytest.raises(PromotionError, match="labels rust"):
        MULTI.evidence(frame, CLASSES[:2])


def test_a_random_order_is_at_chance() -> None:
    targets, probabilities, _ = draw(4000)
    frame = frame_of(targets, np.random.default_rng(1).permuted(probabilities, axis=0))
    assert score(MULTI.evidence(frame, CLASSES)) == pytest.approx(MULTI.chance(frame, CLASSES), abs=0.03)
    for name, evidence in MULTI.class_evidence(frame, CLASSES).items():
        assert score(evidence) == pytest.approx(MULTI.chance(frame, CLASSES, name), abs=0.04)


def test_a_class_that_is_not_there_has_no_score() -> None:
    targets, probabilities, _ = draw()
    targets[:, 2] = 0
    frame = frame_of(targets, probabilities)
    assert list(MULTI.class_evidence(frame, CLASSES)) == ["crack", "pit"]
    metrics = MULTI.metrics(targets, probabilities, CLASSES, HALF)
    assert "ap/rust" not in metrics
    assert metrics["macro_ap"] == pytest.approx((metrics["ap/crack"] + metrics["ap/pit"]) / 2)
    assert MULTI.chance(frame, CLASSES) == pytest.approx(float(targets[:, :2].mean(axis=0).mean()))


# Answers


@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans())
def test_thresholds_have_the_highest_f1(seed: int, images: int, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    truth, chances = rng.random((images, 1)) < 0.5, rng.random((images, 1))
    chances = np.round(chances, 1) if coarse else chances
    (limit,) = choose_thresholds(truth.astype(np.float32), chances)
    if not truth.any():
        assert limit == 0.5
        return
    best = max(f1_score(truth, chances >= other) for other in np.unique(chances))
    assert f1_score(truth, chances >= limit) == pytest.approx(best)


def test_answers_and_their_costs() -> None:
    targets = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]], np.float32)
    chances = np.array([[0.9, 0.2, 0.1], [0.1, 0.2, 0.8], [0.5, 0.4, 0.4]])
    frame = frame_of(targets, chances)
    assert MULTI.answer(chances, CLASSES, HALF) == [{"labels": ["crack"]}, {"labels": ["rust"]}, {"labels": ["crack"]}]
    assert MULTI.describe_answers(frame).to_list() == ["crack", "rust", "crack"]
    assert MULTI.hits(frame).tolist() == [False, False, True]
    gates = Gates(costs={"pit": {"(none)": 20.0}, "(none)": {"rust": 5.0}})
    costs, most = MULTI.costs(frame, gates, CLASSES)
    assert (costs.tolist(), most) == ([20.0, 5.0, 0.0], 1 + 20 + 5)
    assert MULTI.ease(frame).to_list() == pytest.approx([0.2, 0.2, 0.5])
    assert MULTI.outputs(CLASSES) == {"labels": "strings", "p_crack": "double", "p_pit": "double", "p_rust": "double"}


def test_calibration_divides_logits_and_keeps_thresholds() -> None:
    rng = np.random.default_rng(0)
    honest = 1 / (1 + np.exp(-2 * rng.normal(size=(2000, 3))))
    targets = (rng.random((2000, 3)) < honest).astype(np.float32)
    sure = MULTI.rescale(honest, 1 / 3)
    np.testing.assert_allclose(MULTI.rescale(sure, 3), honest, atol=1e-9)
    found = MULTI.calibrate(targets, sure, np.arange(2000) // 20, CLASSES)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert list(found.thresholds) == list(CLASSES)
    calibrated = MULTI.rescale(sure, found.temperature)
    assert MULTI.calibration_error(targets, calibrated) < MULTI.calibration_error(targets, sure)
    f1 = f1_score(targets, calibrated >= np.array(list(found.thresholds.values())), average="macro")
    assert MULTI.metrics(targets, calibrated, CLASSES, found)["macro_f1"] == pytest.approx(f1)


# Gates


def judge(challenger: pl.DataFrame, champion: pl.DataFrame | None, **gates: Any) -> dict[str, Finding]:
    classes = list(CLASSES)
    domain = make_domain(task="multilabel", layout="csv", classes=classes, slices=["site"], gates=gates)
    return tiny.judge(tiny.create_context(domain, challenger, champion))


def test_the_gates_compare_average_precisions() -> None:
    targets, good, _ = draw(200)
    targets[160:] = 0  # a site without any label, which has no score
    sites = pl.Series("site", ["north"] * 160 + ["south"] * 40)
    poor = good.copy()
    poor[:, 2] = np.random.default_rng(2).random(200)
    better, worse = (
        frame_of(targets, each).with_columns(sites, pl.lit("test").alias("split")) for each in (good, poor)
    )
    gates = judge(better, worse, costs={"rust": {"(none)": 9.0}}, max_ece=0.9)
    assert {name: found.verdict for name, found in gates.items()} == {
        **dict.fromkeys(["floor", "improvement", "slices", "costs", "calibration", "data", "split"], "PROMOTE"),
        "lineage": gates["lineage"].verdict,
    }
    assert "macro average precision" in gates["floor"].reason
    assert "surely above a random order of the images" in gates["floor"].reason
    assert gates["floor"].evidence["floor"] == pytest.approx(float(targets.mean(axis=0).mean()))
    assert gates["improvement"].evidence["value"] == pytest.approx(
        average_precision_score(targets, good) - average_precision_score(targets, poor)
    )
    ends = {name.partition("/")[0] for name in gates["slices"].evidence} - {"margin"}
    assert ends == {"class=crack", "class=pit", "class=rust", "site=north"}
    assert judge(worse, better)["improvement"].verdict == "REJECT"
    assert judge(worse, better)["slices"].verdict == "REJECT"


# Heads


@pytest.mark.parametrize("kind", [kind for kind, task in TASKS.items() if not issubclass(task, DenseTask)])
def test_a_heads_loss_adds_up_over_parts_and_is_one_of_its_probabilities(kind: str) -> None:
    task: Task = TASKS[kind]()
    torch.manual_seed(0)
    head, features = create_head(task, Shape(6), 3), torch.randn(12, 6)
    targets = np.arange(12) % 3 if kind == "classification" else draw(12)[0]
    weights, truth = head.class_weights(targets), torch.from_numpy(targets)
    outputs = head(Tokens(pooled=10 * features))
    whole = head.loss(outputs, truth, weights) / head.count(truth, weights)
    parts = [slice(0, 5), slice(5, 12)]
    summed = sum(head.loss(outputs[part], truth[part], weights) for part in parts)
    counted = sum(head.count(truth[part], weights) for part in parts)
    assert float(whole) == pytest.approx(float(summed / counted), rel=1e-6)
    even = torch.ones_like(weights)
    plain = head.loss(outputs, truth, even) / 12
    chances = head.decode(outputs).double().detach().numpy()
    assert float(plain) == pytest.approx(float(task.surprise(targets, chances).mean()), rel=1e-5)
    cooler = head.decode(outputs, 2.0).double().detach().numpy()
    np.testing.assert_allclose(cooler, task.rescale(chances, 2.0), atol=1e-6)


def test_every_label_loses_one_at_the_start() -> None:
    targets = draw(400)[0]
    head = create_head(MULTI, Shape(4), 3)
    weights, shares = head.class_weights(targets), targets.mean(axis=0)
    logits = torch.from_numpy(np.log(shares / (1 - shares))).expand(400, 3)
    losses = [float(head.loss(logits[:, [k]], torch.from_numpy(targets[:, [k]]), weights[[k]])) for k in range(3)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)
    assert bool(torch.isfinite(head.class_weights(np.ones((5, 3), np.float32))).all())


def test_a_linear_probe_of_labels_is_one_regression_each() -> None:
    targets, _, _ = draw(200)
    features = np.random.default_rng(0).normal(size=(200, 5)) + targets @ np.ones((3, 5))
    head, strength = create_head(MULTI, Shape(5), 3), 0.01
    head.fill([solve(standardise(features), problem, strength) for problem in MULTI.problems(targets, 3)])
    found = head.decode(head(Tokens(pooled=torch.from_numpy(features).float()))).detach().numpy()
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    for k, truth in enumerate(targets.T):
        other = LogisticRegression(C=2 / (strength * 200), tol=1e-8, max_iter=10_000).fit(scaled, truth)
        np.testing.assert_allclose(found[:, k], other.predict_proba(scaled)[:, 1], atol=1e-3)


def list_sources() -> Sequence[Path]:
    paths = [path for room in ("components", "flows") for path in sorted((REPOSITORY / room).rglob("*.py"))]
    return [path for path in paths if not path.relative_to(REPOSITORY).as_posix().startswith(ROOMS)]


def test_no_other_module_asks_which_task_it_is() -> None:
    asking = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in list_sources()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if SECRETS.search(line)
    ]
    assert not asking, "\n".join(asking)


def test_classification_hides_nothing_of_the_same_kind() -> None:
    """The secrets are found where they may stand, so that the test above can fail."""
    own = (REPOSITORY / "components" / "tasks" / "classification.py").read_text()
    assert SECRETS.search(own)
    assert CLASSIFICATION.metric == "balanced_accuracy"
