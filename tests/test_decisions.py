"""The class that lets an image pass: its threshold, what is answered by it, and what people are told of its price."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from numpy.typing import NDArray
from samples import make_domain
from served import create_service
from starlette.testclient import TestClient

from components.domain.domain import Domain
from components.errors import AdapterError, DataError, DomainError
from components.models.adapter import load_meta
from components.promotion.escapes import report_decision
from components.records.decisions import PassRule
from components.records.jobs import Result, load_predictions
from components.records.outcomes import PassReport
from components.records.predictions import Answer
from components.reports import card, retrain_page
from components.reports.decisions import show_share
from components.reports.words import ByClass
from components.serving.columns import flatten
from components.serving.predictor import Predictor
from components.serving.server.app import create_app
from components.tasks import CLASSIFICATION, create_task
from components.tasks.base import describe_answer
from components.tasks.calibration import Calibration
from components.tasks.decisions import (
    EVEN,
    NEVER,
    abstains,
    choose_decision,
    choose_threshold,
    decide,
    measure_share,
    name_rates,
    require_witnesses,
)
from components.training.run import do_job
from flows.commands import console
from flows.commands.answers import draw_answers
from flows.steps import pages

CLASSES = ("good", "crack", "pit")
PIXELS = {"kind": "segmentation", "background": "good"}


def rule(threshold: float, *, abstain: bool = False, label: str = "good") -> PassRule:
    return PassRule(label=label, threshold=threshold, escape=0.1, abstain=abstain)


def share_escaped(passing: NDArray[np.bool_], passed: NDArray[np.bool_], groups: NDArray[np.str_]) -> float:
    """By hand: averaged over the images of a group of other classes, then over these groups."""
    names = sorted(set(groups[~passing]))
    return float(np.mean([passed[~passing & (groups == name)].mean() for name in names]))


@pytest.mark.parametrize("seed", range(12))
def test_no_lower_threshold_keeps_the_limit(seed: int) -> None:
    """With ties, groups of many sizes, and groups that have images of both kinds."""
    rng = np.random.default_rng(seed)
    passing = rng.random(150) < 0.5
    chances = np.round(np.clip(rng.beta(4, 2, 150) + 0.2 * passing, 0, 1), 2 if seed % 2 else 12)
    groups = np.array([f"lot{number}" for number in rng.integers(0, rng.integers(2, 60), 150) ** 2 // 9])
    limit = (0.02, 0.1, 0.3)[seed % 3]
    threshold = choose_threshold(passing, chances, groups, limit)
    assert share_escaped(passing, chances >= threshold, groups) <= limit
    if EVEN < threshold < NEVER:
        below = chances[chances < threshold].max()
        assert share_escaped(passing, chances >= below, groups) > limit
        above = chances[chances > threshold].min()
        assert threshold == pytest.approx((below + above) / 2)  # rounding changes no answer


@pytest.mark.parametrize(
    ("good", "others", "expected"),
    [
        pytest.param([0.9, 0.95], [0.1, 0.2, 0.3], EVEN, id="an image that is more probably a defect never passes"),
        pytest.param([0.9, 0.95], [0.1, 0.2, 0.8], (0.8 + 0.9) / 2, id="between two"),
        pytest.param([0.7, 0.95], [0.1, 0.2, 0.8], (0.8 + 0.95) / 2, id="at the price of a false alarm"),
        pytest.param([0.7, 0.8], [0.1, 0.2, 0.8], NEVER, id="a tie at the top"),
        pytest.param([0.7, 0.7], [0.7, 0.7, 0.7], NEVER, id="all alike"),
        pytest.param([0.7, 0.8], [0.1, 0.2, 0.9], NEVER, id="a defect above all"),
        pytest.param([1.0, 1.0], [1.0], NEVER, id="sure of everything"),
        pytest.param([0.2, 0.3], [0.4], EVEN, id="never more probable than not"),
        pytest.param([np.nextafter(0.8, 1)], [0.8], np.nextafter(0.8, 1), id="no number in between"),
    ],
)
def test_the_threshold_by_hand(good: list[float], others: list[float], expected: float) -> None:
    passing = np.array([True] * len(good) + [False] * len(others))
    groups = np.array([str(number) for number in range(len(passing))])
    found = choose_threshold(passing, np.array(good + others), groups, 0.1)
    assert found == expected
    assert not (np.array(others) >= found).any()


def test_many_pictures_of_one_part_are_one_witness() -> None:
    """A part photographed ninety times escapes in all of them: one of ten parts, not nine of ten pictures."""
    chances = np.array([0.9] * 90 + [0.6] * 9 + [0.8])
    groups = np.array(["part"] * 90 + [f"lot{number}" for number in range(9)] + ["sound"])
    passing = groups == "sound"
    assert choose_threshold(passing, chances, groups, 0.1) == (0.6 + 0.8) / 2
    assert choose_threshold(passing, chances, np.arange(100), 0.1) == NEVER
    assert measure_share(chances[~passing] > 0.7, groups[~passing]).own.mean() == pytest.approx(0.1)


CHANCES = np.array([[0.9, 0.06, 0.04], [0.6, 0.1, 0.3], [0.4, 0.3, 0.3], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
TRUTH = np.array([0, 0, 2, 1, 1])
GROUPS = np.array(["a", "a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("by", "answers", "abstained"),
    [
        (None, ["good", "good", "good", "crack", "good"], []),
        (rule(0.9), ["good", "pit", "crack", "crack", "crack"], []),
        (rule(0.9, abstain=True), ["good", "pit", "crack", "crack", "crack"], [1, 2, 4]),
        (rule(0.3, abstain=True), ["good", "good", "good", "crack", "good"], []),
        (rule(NEVER), ["pit" if k == 1 else "crack" for k in range(5)], []),
        (rule(0.45, abstain=True, label="crack"), ["good", "good", "good", "crack", "good"], []),
    ],
)
def test_what_is_answered_is_what_is_judged(by: PassRule | None, answers: list[str], abstained: list[int]) -> None:
    """`predict`, the frame that the gates read and the scores of a run agree; an abstention counts as an alarm."""
    calibration = Calibration(decision=by)
    assert [CLASSES[number] for number in decide(CHANCES, CLASSES, by)] == answers
    assert np.flatnonzero(abstains(CHANCES, CLASSES, by)).tolist() == abstained
    expected: list[dict[str, Any]] = [{"label": name} for name in answers]
    for place in abstained:
        expected[place] = {"label": None, "abstained": True}
    assert CLASSIFICATION.answer(CHANCES, CLASSES, calibration) == expected
    assert all(describe_answer(expected[place]) == "(undecided)" for place in abstained)
    frame = frame_of(TRUTH, CHANCES, GROUPS, calibration)
    assert frame["predicted"].to_list() == answers
    scores = CLASSIFICATION.metrics(TRUTH, CHANCES, CLASSES, calibration)
    evidence = CLASSIFICATION.evidence(frame, CLASSES)
    assert scores["balanced_accuracy"] == pytest.approx(evidence.scores(np.ones((1, 4)))[0])
    plain = CLASSIFICATION.metrics(TRUTH, CHANCES, CLASSES)
    assert scores["ece"] == plain["ece"] == CLASSIFICATION.frame_error(frame, CLASSES)
    assert CLASSIFICATION.confidence(frame).to_list() == [
        CHANCES[row, CLASSES.index(name)] for row, name in enumerate(answers)
    ]


def frame_of(
    truth: NDArray[np.int64], chances: NDArray[np.float64], groups: NDArray[np.str_], calibration: Calibration
) -> pl.DataFrame:
    frame = tiny.predict([CLASSES[k] for k in truth], ["" for _ in truth], list(map(str, groups)))
    columns = [pl.Series(f"p_{name}", chances[:, k]) for k, name in enumerate(CLASSES)]
    return frame.with_columns(*CLASSIFICATION.answers(chances, CLASSES, calibration), *columns)


def test_shares_are_counted_by_group() -> None:
    """Escapes: of the groups b, c and d; false alarms: of the two pictures of a."""
    found = name_rates(TRUTH, CHANCES, GROUPS, CLASSES, rule(0.9, abstain=True))
    assert found == pytest.approx(
        {"escapes": 0, "false_alarms": 0.5, "abstained": 2.5 / 4, "plain_escapes": 2 / 3, "plain_false_alarms": 0}
    )
    sound = TRUTH == 0
    assert name_rates(TRUTH[sound], CHANCES[sound], GROUPS[sound], CLASSES, rule(0.9)).keys() == {
        "false_alarms",
        "abstained",
        "plain_false_alarms",
    }


def test_a_domain_without_decision_is_calibrated_as_ever() -> None:
    before = Calibration(1.3, "temperature 1.3")
    assert choose_decision(before, {}, TRUTH, CHANCES, GROUPS, CLASSES) is before
    asked = make_domain(classes=list(CLASSES), decision={"good": {"escape": 0.4}}).decision
    after = choose_decision(before, asked, TRUTH, CHANCES, GROUPS, CLASSES)
    assert after == replace(before, decision=PassRule(label="good", threshold=EVEN, escape=0.4), reason=after.reason)
    assert after.reason == (
        "temperature 1.3. Answered good from 0.5 on: escapes 0.00% (limit 0.4), false alarms 0.0% on validation"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decision": {"fine": {"escape": 0.01}}}, "names fine; the classes are"),
        ({"decision": {"good": {"escape": 0.01}, "crack": {"escape": 0.1}}}, "one class may let an image pass"),
        ({"decision": {"good": {"escape": 0}}}, "greater than 0; found decision.good.escape = 0"),
        ({"decision": {"good": {"escapes": 0.01}}}, "unknown key 'decision.good.escapes'"),
        ({"decision": {"good": {"escape": 0.01}}, "task": "multilabel", "layout": "csv"}, "Each label has a threshold"),
        ({"decision": {"good": {"escape": 0.01}}, "task": PIXELS, "layout": "masks"}, "`gates.costs`"),
        ({"decision": {"good": {"escape": 0.01}}, "task": "detection", "layout": "voc"}, "`misses` or `false_alarms`"),
    ],
)
def test_a_decision_that_has_no_meaning_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError) as error:
        create_task(make_domain(**({"classes": list(CLASSES)} | changes)))
    assert words in str(error.value)


@pytest.mark.parametrize("labels", [["good"] * 3, ["crack", "pit"], []])
def test_a_limit_that_validation_cannot_measure_is_refused(labels: list[str]) -> None:
    asked = make_domain(classes=list(CLASSES), decision={"good": {"escape": 0.01}}).decision
    with pytest.raises(DataError, match="validation images of good and of other classes"):
        require_witnesses(asked, labels, "domain tiles")
    require_witnesses(asked, ["good", "crack"], "domain tiles")
    require_witnesses({}, labels, "domain tiles")


# A trained adapter

ASKED = {"light": {"escape": 0.05, "abstain": True}}
FIELDS = (
    "adapter_sha256 backbone calibration classes data_version format_version git_commit head_params input metrics "
    "offset seed share split_sha256 task temperature thresholds trainable_params tuner"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decided")


@pytest.fixture(scope="module")
def domain() -> Domain:
    return tiny.create_domain(backbone="embedded", img_size=32, candidates=["linear"], decision=ASKED)


@pytest.fixture(scope="module")
def result(folder: Path, domain: Domain) -> Result:
    return tiny.train(folder, domain, {"kind": "linear"})


@pytest.fixture(scope="module")
def strict(folder: Path, domain: Domain, result: Result) -> Path:
    """A folder with the predictions of the same adapter under a threshold that half of the light images miss."""
    place = folder / "strict"
    meta = load_meta(result.folder / "adapter")
    light = load_predictions(result.folder, "test").filter(pl.col("label") == "light")["p_light"]
    changed = meta.model_copy(update={"decision": rule(float(light.median()), abstain=True, label="light")})
    (place / "adapter").mkdir(parents=True)
    for path in (result.folder / "adapter").iterdir():
        (place / "adapter" / path.name).write_bytes(path.read_bytes())
    (place / "adapter" / "adapter.json").write_text(changed.model_dump_json())
    job = tiny.create_job(folder, domain, {"kind": "linear"}, 0, place)
    do_job(job.model_copy(update={"action": "score", "adapter": place / "adapter"}), lambda event, **facts: None)
    return place


def test_an_adapter_without_decision_keeps_its_bytes(folder: Path, domain: Domain, result: Result) -> None:
    """Fields, weights and figures; adapter.json with a decision has one field more, and says what it reaches."""
    plain = tiny.train(folder, domain.model_copy(update={"decision": {}}), {"kind": "linear"}, seed=1)
    records = [json.loads((each.folder / "adapter" / "adapter.json").read_text()) for each in (plain, result)]
    without, decided = records
    assert sorted(without) == FIELDS.split()
    assert not {"val/escapes", "test/escapes"} & set(without["metrics"])
    assert "decision" not in load_meta(plain.folder / "adapter").answering
    assert decided.keys() - without.keys() == {"decision"}
    assert decided["decision"].keys() == {"label", "threshold", "escape", "abstain"}
    assert decided["adapter_sha256"] == without["adapter_sha256"]
    assert decided["calibration"].startswith(without["calibration"] + ". Answered light from 0.")
    shares = {f"{split}/{name}" for split in ("val", "test") for name in ("escapes", "false_alarms", "abstained")}
    assert shares <= result.metrics.keys()
    assert decided["metrics"]["val/escapes"] <= 0.05


def test_training_refuses_what_validation_cannot_measure(tmp_path: Path, domain: Domain) -> None:
    job = tiny.create_job(tmp_path, domain, {"kind": "linear"}, 0, tmp_path / "run")
    manifest = pl.read_parquet(job.manifest)
    kept = manifest.filter((pl.col("split") != "val") | (pl.col("label") == "light"))
    kept.write_parquet(job.manifest)
    with pytest.raises(DataError, match="0 of others"):
        do_job(job, lambda event, **facts: None)


def test_what_is_served_is_what_was_scored(folder: Path, strict: Path) -> None:
    test, predictor = load_predictions(strict, "test"), Predictor(strict / "adapter")
    answers = predictor.predict([folder / "raw" / path for path in test["path"]])
    left = [answer.answer == {"label": None, "abstained": True} for answer in answers]
    light = test["label"] == "light"
    assert 0 < sum(left) < light.sum()
    assert all(light.filter(pl.Series(left)))
    columns = list(predictor.meta.outputs)
    assert columns == ["label", "p_dark", "p_light", "p_red", "abstained"]
    rows = [flatten(answer.answer | {"probabilities": answer.probabilities}, columns) for answer in answers]
    assert [row["label"] for row in rows] == test["predicted"].to_list()
    assert [row["abstained"] for row in rows] == left


def test_the_server_says_that_a_person_must_look(folder: Path, strict: Path) -> None:
    """By its own protocol and by MLflow's."""
    test = load_predictions(strict, "test").filter(pl.col("label") == "light").sort("p_light")
    pictures = [(folder / "raw" / path).read_bytes() for path in (test["path"][0], test["path"][-1])]
    service = create_service({"tiny": strict / "adapter"})
    try:
        with TestClient(create_app(service), "http://127.0.0.1") as client:
            served = [client.post("/predict/tiny", content=picture).json() for picture in pictures]
            records = [{"image": base64.b64encode(picture).decode()} for picture in pictures]
            rows = client.post("/tiny/invocations", json={"dataframe_records": records}).json()["predictions"]
    finally:
        service.close(10)
    assert [(one["label"], one.get("abstained", False)) for one in served] == [(None, True), ("light", False)]
    assert [(row["label"], row["abstained"]) for row in rows] == [(test["predicted"][0], True), ("light", False)]


def test_a_decision_on_a_strange_class_is_no_adapter(strict: Path, tmp_path: Path) -> None:
    record = json.loads((strict / "adapter" / "adapter.json").read_text())
    record["decision"]["label"] = "green"
    (tmp_path / "adapter.json").write_text(json.dumps(record))
    with pytest.raises(AdapterError, match=r"decision\.label is green"):
        load_meta(tmp_path)


# What people see


@pytest.fixture(scope="module")
def report(domain: Domain, strict: Path) -> PassReport:
    found = pages.report_passes(SimpleNamespace(domain=domain), strict)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_the_price_is_told_with_intervals(report: PassReport, strict: Path) -> None:
    test = load_predictions(strict, "test")
    light = test["label"] == "light"
    assert (report.test.passing, report.test.others) == (int(light.sum()), int((~light).sum()))
    assert report.test.escapes is not None
    assert report.test.false_alarms is not None
    assert report.test.plain_false_alarms is not None
    assert report.test.plain_false_alarms.value < 0.5 <= report.test.false_alarms.value < 1
    assert report.test.escapes.value == 0
    assert len(report.notes) == 2
    assert "too few to show escapes of at most 10 %" in report.notes[0]


def test_report_card_terminal_and_prefect_say_the_same(
    report: PassReport, domain: Domain, result: Result, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = tiny.create_outcome(tiny.create_row(result), decision=report)
    picture = folder / "picture.png"
    picture.write_bytes(b"")
    own = (result.folder, ByClass(), folder / "raw", "c0ffee", folder / "v.html", "v.html", folder / "card.html", {})
    console.show_retrain(outcome)
    places = {
        "report": retrain_page.render_html(retrain_page.RetrainReport(domain, outcome, picture, *own)),
        "page of Prefect": retrain_page.render_markdown(outcome),
        "card": str(card._describe_passes(report)),
        "terminal": " ".join(capsys.readouterr().out.split()),
    }
    for place, text in places.items():
        assert "An image is answered light where its probability is at least" in text, place
        assert report.notes[0] in text, place
        for share in (report.val.false_alarms, report.test.false_alarms, report.test.plain_false_alarms):
            assert show_share(share) in text, place
    plain = tiny.create_outcome(tiny.create_row(result))
    assert "Decision" not in retrain_page.render_markdown(plain)


def test_a_decision_that_lets_nothing_pass_is_told(domain: Domain, strict: Path) -> None:
    frames = [load_predictions(strict, split) for split in ("val", "test")]
    never = rule(NEVER, label="light")
    assert report_decision(never, *frames, domain).notes[0].startswith("No probability keeps the escapes")
    only = frames[1].filter(pl.col("label") == "light")
    found = report_decision(never, frames[0], only, domain)
    assert found.test.escapes is None
    assert "No test image is of another class than light" in found.notes[-1]


@pytest.mark.parametrize(
    ("escaped", "groups", "limit", "verdict", "words"),
    [
        (0, 40, 0.2, "PROMOTE", "surely within the limit of 20.0 %"),
        (1, 40, 0.01, "PROMOTE", "not surely within the limit of 1.0 %"),
        (20, 40, 0.1, "REJECT", "surely over the limit of 10.0 %"),
        (1, 2, 0.6, "HOLD", "undecided. An interval needs 3 test groups"),
        (0, 0, 0.1, "HOLD", "nothing is known of escapes"),
    ],
)
def test_the_gate_on_escapes(escaped: int, groups: int, limit: float, verdict: str, words: str) -> None:
    truth = ["good"] * 8 + ["crack"] * groups
    predicted = ["good"] * (8 + escaped) + ["crack"] * (groups - escaped)
    frame = tiny.predict(truth, predicted, [f"lot{number}" for number in range(len(truth))])
    decided = make_domain(classes=list(CLASSES), decision={"good": {"escape": limit}})
    found = tiny.judge(tiny.create_context(decided, frame, None))["escapes"]
    assert (found.verdict, words in found.reason) == (verdict, True), found.reason
    free = make_domain(classes=list(CLASSES))
    assert "escapes" not in tiny.judge(tiny.create_context(free, frame, None))


def test_the_terminal_says_that_a_person_must_look(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"box": None, "crop": None, "model_version": 3, "error": None}
    row = Answer(path="a.png", label=None, probabilities={"good": 0.7, "crack": 0.3}, abstained=True, **facts)
    console.OUT.print(draw_answers("tiles version 3", [row]))
    shown = capsys.readouterr().out
    assert "(undecided)" in shown
    assert "good 0.700" in shown
    assert "no answer" not in shown
