"""What report, card and pages say of a retrain of boxes, and the labels that its candidates speak against."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import tiny
from rich.console import Console

from components.domain.domain import Domain
from components.models.tuners import create_tuners
from components.records.boxes import OBJECTS, read_objects
from components.records.jobs import Result, load_predictions
from components.records.outcomes import Outcome
from components.reports import box_tables, card, retrain_page
from components.reports.suspects import Questioned
from components.tasks import create_task
from components.tasks.base import BoxTask
from components.tracking import candidates, pages
from components.workspace import Workspace
from flows.commands import console
from flows.steps.pages import create_card, create_report, describe_classes, score_slices
from flows.steps.suspects import question_labels, write_suspects

PLACE = (29.0, 20.0, 32.0, 24.0)  # where no tile of the toy domain shows anything


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Domain, Result]:
    """A candidate for boxes through the real training code."""
    training = {"epochs": 1, "batch_size": 8, "warmup_epochs": 0}
    facts = {"layout": {"kind": "csv", "boxes": "boxes"}, "img_size": 32, "candidates": ["pixels", "linear", "vpt"]}
    domain = tiny.create_domain(task={"kind": "detection"}, training=training, **facts)
    folder = tmp_path_factory.mktemp("boxes").resolve()
    return folder, domain, tiny.train(folder, domain, {"kind": "linear"})


def create_plan(folder: Path, domain: Domain) -> Any:
    manifest = pl.read_parquet(folder / "manifest.parquet")
    validation = tiny.create_validation(images=manifest.height, groups=36)
    workspace = Workspace(folder)
    raw = workspace.raw(domain.name)
    raw.parent.mkdir(parents=True, exist_ok=True)
    if not raw.exists():
        raw.symlink_to(folder / "raw")
    return SimpleNamespace(
        domain=domain,
        tuners=create_tuners(domain.candidates),
        code="c0ffee",
        sources=SimpleNamespace(training="c" * 64),
        folder=folder,
        workspace=workspace,
        validation_report=folder / "validation.html",
        load_validation=lambda: validation,
        load_manifest=lambda: manifest,
    )


def create_outcome(result: Result, questioned: Questioned | None) -> Outcome:
    suspicion = None if questioned is None else questioned.suspicion
    row = tiny.create_row(result).model_copy(update={"run_id": "run"})
    tuner = {
        "tuner": result.label,
        "kind": "linear",
        "seeds": (0,),
        "options": {},
        "class_scores": {},
        "search": None,
        "test": {**dict(row.test), "seeds": (row.test.value,)},
        **{name: getattr(row, name) for name in ("val", "seconds", "trainable_params", "head_params", "share")},
        "adapter_bytes": row.adapter_bytes,
        "selected": True,
    }
    return tiny.create_outcome(row, metric="map50", suspicion=suspicion, tuners=(tuner,))


def test_every_place_has_one_row_per_class(trained: tuple[Path, Domain, Result]) -> None:
    folder, domain, result = trained
    plan, task = create_plan(folder, domain), create_task(domain)
    assert isinstance(task, BoxTask)
    outcome = create_outcome(result, None)
    about = create_card(plan, outcome, result, "parent", {})
    picture = folder / "picture.png"
    picture.write_bytes(b"")
    row = tiny.create_row(result)
    places = {
        "report": retrain_page.render_html(create_report(plan, outcome, about, picture, {})),
        "card": card.render_html(about),
        "text of the card": card.render_markdown(about),
        "page of Prefect": retrain_page.render_markdown(outcome, describe_classes(about)),
        "run in MLflow": pages.describe_candidate(
            domain, result, row, task, candidates._tabulate_classes(task, domain, result)
        ),
    }
    frame = load_predictions(result.folder, "test")
    split = box_tables.measure_split(frame, task, domain.classes, about.known)
    thresholds = candidates.load_thresholds(domain, result)
    assert set(thresholds) == set(domain.classes)
    for place, text in places.items():
        assert split.summarise() in text, place
        for one in (*split.classes, *split.sizes):
            for number, cell in enumerate(one.cells):
                interval = number == 2 and one in split.classes and place == "run in MLflow"  # which has none
                assert (cell.partition(" ")[0] if interval else cell) in text, (place, cell)
        assert all(f"{limit:.2f}" in text for limit in thresholds.values())
    for place in ("report", "card"):
        for head in ("The worst answers", "Kinds of error", "Sizes", "False alarms and counts"):
            assert f"<h2>{head}</h2>" in places[place]
        assert "looked at" not in places[place]
    assert "size = small" in places["card"]
    manifest = plan.load_manifest()
    objects = [one for objects in manifest["objects"] for one in objects]
    counted = sum(one["label"] == "red" and one["kind"] == "object" for one in objects)
    assert f"red {sum('red' in labels for labels in manifest['labels'])} ({counted} objects)" in places["card"]
    assert f"none of them {(manifest['label'] == '(none)').sum()}" in places["card"]
    assert "the worst answers first" in places["run in MLflow"]


def test_a_slice_whose_objects_are_all_ignored_has_no_score(trained: tuple[Path, Domain, Result]) -> None:
    _, domain, result = trained
    frame = load_predictions(result.folder, "test")
    hidden = [
        [one | {"kind": "difficult"} for one in objects] if site == "north" else objects
        for site, objects in frame.select("site", "objects").iter_rows()
    ]
    scores = score_slices(frame.with_columns(pl.Series("objects", hidden, OBJECTS)), domain)
    assert [row.name for row in scores if row.name.startswith("site")] == ["site = south"]


def write_models(
    folder: Path, domain: Domain, result: Result, models: dict[str, Sequence[tuple[str, float]]]
) -> list[Any]:
    """A row per model, whose predictions are the annotation itself, and more boxes at PLACE in the first test image."""
    frame = pl.read_parquet(result.folder / "predictions.parquet")
    first = frame.filter(pl.col("split") == "test").sort("id")["id"][0]
    rows = []
    for name, more in models.items():
        found = []
        for image, objects in frame.select("id", "objects").iter_rows():
            boxes = [(one.label, one.box, 0.9) for one in read_objects(objects)]
            boxes += [(label, PLACE, sure) for label, sure in more if image == first]
            found.append([{"label": label, "box": list(box), "confidence": sure} for label, box, sure in boxes])
        place = folder / "models" / name
        place.mkdir(parents=True, exist_ok=True)
        answers = frame.with_columns(pl.Series("found", found, frame["found"].dtype))
        answers.write_parquet(place / "predictions.parquet")
        rows.append(SimpleNamespace(tuner=name.rpartition("-s")[0], folder=place))
    return rows


def read_terminal(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> str:
    screen = Console(file=StringIO(), width=400, highlight=False)
    monkeypatch.setattr(console, "OUT", screen)
    console.show_retrain(outcome)
    return screen.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_what_all_candidates_find_without_annotation_is_reported(
    trained: tuple[Path, Domain, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is not asked, and neither are pictures from which candidates have learned."""
    folder, domain, result = trained
    plan = create_plan(folder, domain)
    sure, nothing = [("red", 0.8)], list[tuple[str, float]]()
    models = {"pixels-s0": nothing, "linear-s0": sure, "vpt-deep-s0": [("red", 0.7)]}
    questioned = question_labels(plan, write_models(folder, domain, result, models))
    assert questioned is not None
    (one,) = questioned.suspects
    assert (one.why, one.label, one.split, one.box, one.confidence) == ("missing", "red", "test", PLACE, 0.7)
    unlearned = pl.read_parquet(folder / "manifest.parquet").filter(pl.col("split") != "train").height
    text = (
        f"1 perhaps not annotated: where 2 models agree against the annotation of {unlearned} val and test images, "
        "from which no candidate has learned."
    )
    outcome = create_outcome(result, questioned)
    assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome
    assert outcome.suspicion is not None
    assert (outcome.suspicion.missing, outcome.suspicion.text) == (1, text)
    assert f"Labels   {text}" in read_terminal(outcome, monkeypatch)
    assert f"Labels: {text}" in retrain_page.render_markdown(outcome)
    about = create_card(plan, outcome, result, "parent", {})
    (folder / "picture.png").write_bytes(b"")
    report = retrain_page.render_html(create_report(plan, outcome, about, folder / "picture.png", {}, questioned))
    assert f"<h2>Labels under suspicion</h2><p>{text}</p><h3>Perhaps objects without annotation: 1</h3>" in report
    table = pl.read_csv(write_suspects(plan, questioned.suspects))
    assert table.select("path", "why", "label", "x0", "y0", "x1", "y1").rows() == [(one.path, "missing", "red", *PLACE)]


def test_labels_are_not_questioned_by_one_candidate(trained: tuple[Path, Domain, Result]) -> None:
    folder, domain, result = trained
    plan = create_plan(folder, domain)
    rows = write_models(folder, domain, result, {"pixels-s0": [], "linear-s0": [("red", 0.9)]})
    questioned = question_labels(plan, rows)
    assert questioned is not None
    assert not questioned.suspects
    assert questioned.suspicion.text.startswith("Not questioned: that takes 2 candidates besides the control")
    seeds = write_models(folder, domain, result, {"linear-s0": [("red", 0.9)], "linear-s1": [("red", 0.9)]})
    twice = question_labels(plan, seeds)
    assert twice is not None
    assert twice.suspicion.missing == 1


def test_labels_of_other_tasks_are_not_questioned(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(domain=tiny.create_domain())
    assert question_labels(plan, []) is None
