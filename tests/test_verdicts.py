"""What everybody reads of a verdict: gains over the linear probe, intervals, gates and warnings, in every place."""

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import polars as pl
import pytest
import tiny
from rich.console import Console

from components.models.tuners import create_tuners
from components.promotion.evidence import score_frame
from components.promotion.gates.base import Context
from components.promotion.gates.decide import decide
from components.records.jobs import Result
from components.records.licences import CODE, Link
from components.records.outcomes import BackboneRow, Comparison, Gain, Score, TrainedCandidate, Verdict
from components.reports import card, retrain_page, shell, words
from components.reports.compare import draw_comparison
from components.tasks import CLASSIFICATION
from components.tracking import pages
from components.workspace import Workspace
from flows.commands import console
from flows.steps.compare import summarise_tuners
from flows.steps.pages import create_card, create_report

IMAGES = 60
BACKBONE = BackboneRow(name="embedded", sha256="0" * 64, trained=True)
LICENCES = (Link.of("backbone", "vit", "CC-BY-NC-4.0"), Link.of("data", "tiny", "CC0-1.0"), Link.of("code", "", CODE))
TRUTH = [tiny.CLASSES[k % 3] for k in range(IMAGES)]


def answer(wrong: set[int]) -> list[str]:
    return [tiny.CLASSES[(k + 1) % 3] if k in wrong else name for k, name in enumerate(TRUTH)]


#: Images that each candidate gets wrong.
GOOD, BAD, UGLY = set(range(0, 60, 20)), set(range(0, 60, 3)), set(range(0, 60, 2))


def write_row(folder: Path, tuner: str, seed: int, wrong: set[int], groups: int) -> TrainedCandidate:
    """A candidate's row, with its predictions on disk."""
    place = folder / f"{tuner}-s{seed}"
    place.mkdir(parents=True)
    frame = read_frame(wrong, groups)
    frame.write_parquet(place / "predictions.parquet")
    return TrainedCandidate(
        tuner=tuner,
        seed=seed,
        val=1 - len(wrong) / IMAGES,
        test=score_frame(frame, tiny.create_domain()).to_score(),
        trainable_params=5,
        head_params=9,
        share=0.01,
        seconds=2.0,
        adapter_bytes=900,
        adapter_sha256="0" * 64,
        calibration="not calibrated",
        selected=tuner == "vpt-deep" and seed == 0,
        run_id=f"run{seed}",
        backbone=BACKBONE,
        folder=place,
    )


def read_frame(wrong: set[int], groups: int) -> pl.DataFrame:
    rows = tiny.predict(TRUTH, answer(wrong), [f"lot{k * groups // IMAGES}" for k in range(IMAGES)])
    rows = rows.with_columns(site=pl.lit("north"))
    return rows.with_columns((pl.col("predicted") == name).cast(float).alias(f"p_{name}") for name in tiny.CLASSES)


def create_plan(folder: Path, kinds: list[Any]) -> Any:
    domain = tiny.create_domain(candidates=kinds)
    validation = tiny.create_validation(images=60, groups=20)
    manifest = read_frame(GOOD, 20).select("id", "label", "group", "split")
    return SimpleNamespace(
        domain=domain,
        tuners=create_tuners(domain.candidates),
        code="c0ffee",
        sources=SimpleNamespace(training="c" * 64),
        folder=folder.resolve(),
        workspace=Workspace(folder.resolve()),
        validation_report=(folder / "validation.html").resolve(),
        load_validation=lambda: validation,
        load_manifest=lambda: manifest,
    )


def create_outcome(
    folder: Path, kinds: list[Any], wrong: dict[str, set[int]], groups: int, seeds: int = 1
) -> tuple[Any, Comparison]:
    """A retrain's plan and outcome, judged by the real gates."""
    plan = create_plan(folder, kinds)
    rows = [write_row(folder, name, seed, answers, groups) for name, answers in wrong.items() for seed in range(seeds)]
    winner = read_frame(wrong.get("vpt-deep", GOOD), groups)
    facts = {"manifest": plan.load_manifest(), "validation": plan.load_validation(), "lineage": {"data": "d"}}
    facts |= {"licences": LICENCES}
    decision = decide(Context(plan.domain, winner, None, 1, **facts))
    return plan, Comparison(
        domain="tiny",
        status="held",
        data_version=tiny.DATA_VERSION,
        verdict=decision.verdict,
        reason=decision.reason,
        findings=decision.findings,
        warnings=decision.warnings,
        champion_version=None,
        challenger_version=1,
        verdict_key="f" * 64,
        metric=CLASSIFICATION.metric,
        backbone=BACKBONE,
        licences=LICENCES,
        tuners=summarise_tuners(plan, rows, {}),
        candidates=tuple(row.to_row() for row in rows),
        validation=plan.load_validation().count(),
        report=folder / "report.html",
        seconds=3.0,
        picture=folder / "comparison.png",
    )


def read_terminal(show: Callable[[Any], None], outcome: Comparison, monkeypatch: pytest.MonkeyPatch) -> str:
    screen = Console(file=StringIO(), width=400, highlight=False)
    monkeypatch.setattr(console, "OUT", screen)
    show(outcome)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    return " ".join(str(text).split())


def read_everywhere(plan: Any, outcome: Comparison, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """All places, as text on one line."""
    (folder / "picture.png").write_bytes(b"")
    result = Result(
        label="vpt-deep",
        seed=0,
        metrics={"test/ece": 0.1, "test/ece_uncalibrated": 0.2},
        trainable_params=5,
        head_params=9,
        share=0.01,
        seconds=2.0,
        adapter_bytes=900,
        adapter_sha256="0" * 64,
        split_sha256="0" * 64,
        backbone=outcome.backbone.model_dump(),
        calibration="not calibrated: validation has 2 groups, and 3 are needed to judge it",
        folder=folder / "vpt-deep-s0",
    )
    draw_comparison(outcome.tuners, CLASSIFICATION, "title").canvas.draw()
    about = create_card(plan, outcome, result, "parent", {})
    texts = {
        "retrain": read_terminal(console.show_retrain, outcome, monkeypatch),
        "compare": read_terminal(console.show_comparison, outcome, monkeypatch),
        "page of Prefect": retrain_page.render_markdown(outcome),
        "report": retrain_page.render_html(create_report(plan, outcome, about, folder / "picture.png", {})),
        "card": card.render_markdown(about),
        "page of MLflow": pages.describe_outcome(outcome, "1", "2", ()),
    }
    return {name: " ".join(text.split()) for name, text in texts.items()}


KINDS = ["linear", "vpt", "vapt"]


def test_every_place_says_who_beats_the_linear_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"linear": BAD, "vpt-deep": GOOD, "vapt": UGLY}
    plan, outcome = create_outcome(tmp_path, KINDS, wrong, 20)
    by_name = {line.tuner: line.over_linear for line in outcome.tuners}
    assert by_name["linear"] is None
    assert by_name["vpt-deep"].value == pytest.approx((len(BAD) - len(GOOD)) / IMAGES)
    assert by_name["vpt-deep"].text.startswith("vpt-deep over linear +0.283, interval +0.")
    assert by_name["vpt-deep"].text.endswith(": surely better")
    assert by_name["vapt"].text.endswith((": surely worse", ": not surely better"))
    assert by_name["vapt"].value < 0
    for place, text in read_everywhere(plan, outcome, tmp_path, monkeypatch).items():
        assert by_name["vpt-deep"].text in text, place


def with_control(outcome: Comparison, low: float) -> Comparison:
    """The same, with the linear probe as the control that the others are compared with."""
    gain = Gain(value=low + 0.1, low=low, high=low + 0.2, groups=20, baseline="linear", text="over the control: so so")
    rows = [row.model_copy(update={"over_control": row.over_linear and gain}) for row in outcome.tuners]
    return outcome.model_copy(update={"tuners": tuple(rows)})


@pytest.mark.parametrize("most", [1, 6])
def test_every_place_says_what_the_control_is_and_whether_the_backbone_helps(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MOST_SENTENCES", most)
    plan, outcome = create_outcome(tmp_path, KINDS, {"linear": BAD, "vpt-deep": GOOD, "vapt": UGLY}, 20)
    doubtful, sure = with_control(outcome, -0.01), with_control(outcome, 0.01)
    doubt = "None is surely better than linear, the same head on the pixels alone"
    for place, text in read_everywhere(plan, doubtful, tmp_path, monkeypatch).items():
        assert doubt in text, place
        if place == "card":
            continue  # of one candidate
        assert "* the control: the same head on the pixels alone, without the backbone" in text.replace("\\", ""), place
        assert re.search(r"linear(\]\(.+?\))? \\?\*", text), place
        assert ("over the control: so so" in text) == (most > 1), place
        assert ("+0.090 [-0.01 +0.19] not surely" in text) == (most == 1), place
    for place, text in read_everywhere(plan, sure, tmp_path, monkeypatch).items():
        assert doubt not in text, place
        assert ("+0.110 [+0.01 +0.21] better" in text) == (most == 1 and place != "card"), place


def test_without_a_control_none_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, outcome = create_outcome(tmp_path, KINDS, {"linear": BAD, "vpt-deep": GOOD, "vapt": UGLY}, 20)
    for place, text in read_everywhere(plan, outcome, tmp_path, monkeypatch).items():
        assert "the control" not in text, place
        assert "linear *" not in text, place


@pytest.mark.parametrize(
    ("ours", "told"), [(BAD, "not surely better"), (set(range(60)), "surely worse"), (set(), "surely better")]
)
def test_a_gain_is_called_what_its_interval_says(ours: set[int], told: str, tmp_path: Path) -> None:
    _, outcome = create_outcome(tmp_path, ["linear", "vpt"], {"linear": set(range(1, 60, 3)), "vpt-deep": ours}, 20)
    gain = next(line.over_linear for line in outcome.tuners if line.over_linear)
    assert gain.text.endswith(f": {told}")
    assert (gain.low > 0, gain.high < 0) == (told == "surely better", told == "surely worse")


def test_the_baseline_is_the_linear_probe_that_is_best_on_validation(tmp_path: Path) -> None:
    kinds = [{"kind": "linear", "name": "weak", "strength": 10}, "linear", "vpt"]
    _, outcome = create_outcome(tmp_path, kinds, {"weak": UGLY, "linear": BAD, "vpt-deep": GOOD}, 20, seeds=2)
    found = {line.tuner: line.over_linear and line.over_linear.baseline for line in outcome.tuners}
    assert found == {"linear": None, "weak": "linear", "vpt-deep": "linear"}
    gains = words.list_gains(outcome.tuners)
    assert "linear is solved, not trained: its 2 seeds are one head." in gains


def test_without_a_linear_probe_that_is_said(tmp_path: Path) -> None:
    _, outcome = create_outcome(tmp_path, ["vpt", "vapt"], {"vpt-deep": GOOD, "vapt": BAD}, 20)
    assert [line.over_linear for line in outcome.tuners] == [None, None]
    assert words.list_gains(outcome.tuners)[0].startswith("No `linear` among the candidates")
    assert words.list_gains(()) == [], "an outcome from before tuners had rows says nothing of it"


@pytest.mark.parametrize("groups", [1, 2])
def test_every_place_says_that_an_interval_is_not_known(
    groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"linear": BAD, "vpt-deep": set(), "vapt": UGLY}
    plan, outcome = create_outcome(tmp_path, KINDS, wrong, groups)
    assert outcome.verdict == "HOLD"
    assert all(line.test.low is line.test.high is None for line in outcome.tuners)
    gain = next(line.over_linear for line in outcome.tuners if line.tuner == "vpt-deep")
    known = f"not known ({groups} group{'s' * (groups - 1)})"
    assert gain.text == f"vpt-deep over linear +0.333, interval {known}: not surely better"
    for place, text in read_everywhere(plan, outcome, tmp_path, monkeypatch).items():
        assert "None" not in text.replace("None of", ""), place
        assert "1.000 not known" in text or known in text, place
    assert "fewer than three groups" in read_terminal(console.show_comparison, outcome, monkeypatch)
    for row in outcome.candidates:
        assert words.describe_candidate(row)[5].endswith("not known")
    assert words.format_score(Score(value=0.9)) == "0.900 not known"
    assert words.format_score(Score(value=0.9, low=0.81, high=0.94)) == "0.900 [0.81 0.94]"


def test_every_place_says_pass_and_names_a_class_at_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = {k for k in range(60) if TRUTH[k] == "red"}
    plan, outcome = create_outcome(tmp_path, KINDS, {"linear": BAD, "vpt-deep": never, "vapt": UGLY}, 20)
    assert outcome.verdict == "PROMOTE"
    assert outcome.reason.endswith("Not surely better than guessing: red.")
    (warning,) = outcome.warnings
    for place, text in read_everywhere(plan, outcome, tmp_path, monkeypatch).items():
        if place == "compare":
            continue
        assert warning in text.replace("&lt;", "<"), place
        assert "Not surely better than guessing: red." in text, place
        assert "pass" in text, place
        for gate in ("floor", "data", "split"):
            assert f"{gate} PROMOTE" not in text.replace("*", "").replace("</b>", "").replace(":", ""), place
    assert "Gates floor pass, improvement pass" in read_terminal(console.show_retrain, outcome, monkeypatch)


def test_every_page_of_a_retrain_says_the_licences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, outcome = create_outcome(tmp_path, ["vpt"], {"vpt-deep": GOOD}, groups=20)
    texts = read_everywhere(plan, outcome, tmp_path, monkeypatch)
    for place in ("retrain", "page of Prefect"):
        assert "backbone vit: cc-by-nc-4.0; data tiny: cc0-1.0; code: apache-2.0" in texts[place], place
    assert "licence of backbone vit</dt><dd><code>cc-by-nc-4.0</code>" in texts["report"]
    assert "- **Backbone vit**: cc-by-nc-4.0 - **Data tiny**: cc0-1.0 - **Code**: apache-2.0" in texts["card"]
    assert "Contains no weights of the backbone" in texts["card"]


def test_a_page_has_every_colour_for_light_and_for_dark_systems() -> None:
    verdicts = "".join(shell.render_verdict(verdict, "", ()) for verdict in get_args(Verdict))
    page = shell.render_page("title", verdicts)
    light, dark = (set(re.findall(r"(--\w+):", root)) for root in re.findall(r":root\{(.+?)\}", page, re.DOTALL))
    assert set(re.findall(r"var\((--\w+)\)", page)) == light == dark


@pytest.mark.parametrize(
    "part",
    [
        lambda text: shell.render_page(text, ""),
        lambda text: shell.render_verdict("HOLD", text, (text,)),
        lambda text: shell.render_section(text, [(text, text)]),
        lambda text: shell.render_row([text]),
        lambda text: shell.render_links({text: text}),
        lambda text: shell.embed_picture(b"", text),
    ],
)
def test_no_text_becomes_html(part: Callable[[str], str]) -> None:
    page = part('"><script>')
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert '"">' not in page
