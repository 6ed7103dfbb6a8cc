"""Any number of labels per image, from training to the answer, on tiles with coloured patches."""

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import tiny
from conftest import DOMAIN as PARTS
from conftest import TINY, create_workspace, run_tessera
from PIL import Image
from sklearn.metrics import average_precision_score

from components.domain.domain import Domain
from components.models.adapter import load_meta
from components.records.jobs import Result, load_predictions
from components.serving.predictor import Predictor
from components.tasks import create_task
from components.training.saliency import choose_hardest

DOMAIN = {
    "task": "multilabel",
    "layout": "csv",
    "training": {"epochs": 4, "batch_size": 8, "warmup_epochs": 1},
}


@pytest.fixture(scope="module")
def domain() -> Domain:
    return tiny.create_domain(**DOMAIN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multilabel")


@pytest.fixture(scope="module")
def result(folder: Path, domain: Domain) -> Result:
    return tiny.train(folder, domain, {"kind": "linear"})


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_are_those_of_the_predictions(result: Result, domain: Domain, split: str) -> None:
    frame = load_predictions(result.folder, split)
    targets = create_task(domain).targets(frame, domain.classes)
    chances = frame.select(f"p_{name}" for name in domain.classes).to_numpy()
    expected = average_precision_score(targets, chances, average="macro")
    assert result.metrics[f"{split}/macro_ap"] == pytest.approx(expected)
    assert result.metrics[f"{split}/macro_ap"] > 0.8  # the patches are plain to see
    assert {f"{split}/ap/red", f"{split}/f1/red", f"{split}/recall/red", f"{split}/ece"} <= result.metrics.keys()


def test_an_image_without_labels_is_learned_from(result: Result) -> None:
    frame = load_predictions(result.folder, "test")
    assert "(none)" in frame["label"].to_list()
    assert frame.filter(pl.col("label") == "(none)")["labels"].to_list() == [[]]


def test_the_adapter_answers_as_its_training_did(result: Result, folder: Path, domain: Domain) -> None:
    meta = load_meta(result.folder / "adapter")
    assert meta.task == create_task(domain)
    assert list(meta.thresholds) == list(domain.classes)
    frame = load_predictions(result.folder, "test")
    answers = Predictor(result.folder / "adapter").predict([folder / "raw" / path for path in frame["path"]])
    assert [answer.answer["labels"] for answer in answers] == frame["predicted_labels"].to_list()
    assert [answer.label for answer in answers] == frame["predicted"].to_list()
    for answer, row in zip(answers, frame.iter_rows(named=True), strict=True):
        assert answer.probabilities == pytest.approx({name: row[f"p_{name}"] for name in domain.classes}, abs=1e-5)
        assert answer.answer["labels"] == [n for n, p in answer.probabilities.items() if p >= meta.thresholds[n]]


def test_another_threshold_is_another_adapter(result: Result, folder: Path, tmp_path: Path) -> None:
    meta = load_meta(result.folder / "adapter")
    other = meta.model_copy(update={"thresholds": dict(meta.thresholds) | {"red": 0.0}})
    assert other.answering != meta.answering


def test_the_hardest_images_are_those_of_the_least_likely_label(result: Result, domain: Domain) -> None:
    frame = pl.read_parquet(result.folder / "predictions.parquet")
    ease = create_task(domain).ease(frame)
    hardest = choose_hardest(frame, create_task(domain))
    assert {frame["split"][row] for row in hardest} == {"test"}
    assert [ease[row] for row in hardest] == sorted(ease[row] for row in hardest)


def test_a_prompted_candidate_keeps_its_best_epoch(folder: Path, domain: Domain) -> None:
    trained = tiny.train(folder, domain, {"kind": "vpt", "num_prompts": 2})
    losses = [row["train/loss"] for row in trained.history]
    assert losses[-1] < losses[0]
    best = min(trained.history, key=lambda row: (-row["val/macro_ap"], row["val/loss"]))
    assert trained.metrics["best_epoch"] == best["epoch"]
    assert all({"val/macro_ap", "val/macro_f1", "val/loss"} <= row.keys() for row in trained.history)


def test_a_search_ranks_trials_by_the_task_s_metric(tmp_path: Path, domain: Domain) -> None:
    (rung,) = tiny.climb(tmp_path, domain, {"kind": "vpt", "num_prompts": 2}, [2])
    assert 0 < rung.score <= 1


def test_an_adapter_of_an_earlier_release_names_the_task_alone(result: Result, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    record = json.loads((result.folder / "adapter" / "adapter.json").read_text())
    (folder / "adapter.json").write_text(json.dumps(record | {"task": "classification", "thresholds": {}}))
    assert load_meta(folder).task.kind == "classification"


def test_a_tile_of_one_patch_is_answered_its_label(result: Result, tmp_path: Path) -> None:
    pixels = np.full((24, 32, 3), 128, np.uint8)
    pixels[4:20, 20:29] = tiny.COLOURS["red"]
    Image.fromarray(pixels).save(tmp_path / "one.png")
    (answer,) = Predictor(result.folder / "adapter").predict([tmp_path / "one.png"])
    assert max(answer.probabilities, key=answer.probabilities.__getitem__) == "red"


def test_the_served_model_answers_a_list(result: Result, folder: Path) -> None:
    from components.serving.pyfunc import AdapterModel

    path = folder / "raw" / load_predictions(result.folder, "test")["path"][0]
    model = AdapterModel()
    model.predictor = Predictor(result.folder / "adapter")
    table = model.predict(None, pd.DataFrame({"image": [base64.b64encode(path.read_bytes()).decode()]}))
    assert list(table.columns) == ["labels", "p_dark", "p_light", "p_red"]
    (expected,) = model.predictor.predict([path])
    assert table["labels"][0] == expected.answer["labels"]


def test_seeds_are_averaged_by_score_not_by_probability(result: Result, domain: Domain) -> None:
    frame, task = load_predictions(result.folder, "test"), create_task(domain)
    other = frame.with_columns(p_red=1 - pl.col("p_red"))
    ones = np.ones((1, frame["group"].n_unique()))
    single = [task.evidence(each, domain.classes).scores(ones)[0] for each in (frame, other)]
    together = task.mean_evidence([frame, other], domain.classes)
    assert together.scores(ones)[0] == pytest.approx(np.mean(single))
    half = np.arange(ones.shape[1] // 2)
    alone = [task.evidence(each, domain.classes).only(half).scores(ones[:, half])[0] for each in (frame, other)]
    assert together.only(half).scores(ones[:, half])[0] == pytest.approx(np.mean(alone))


# The whole road, through the command line


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The domain `parts` with its defect and its surface as labels, and none where there is no defect."""
    table = pl.read_csv(images / "labels.csv")
    surfaces = sorted(set(table["surface"]))
    labels = [f"{label};{surface}" for label, surface in table.select("label", "surface").iter_rows()]
    labels = ["" if text.startswith("none;") else text for text in labels]
    place = create_workspace(
        tmp_path_factory.mktemp("road") / "workspace",
        images,
        task="multilabel",
        layout={"kind": "csv", "separator": ";"},
        classes=[*TINY["classes"][1:], *surfaces],
        candidates=["linear"],
        slices=["surface"],
    )
    table.with_columns(label=pl.Series(labels)).write_csv(place / "data" / PARTS / "raw" / "labels.csv")
    return place


@pytest.mark.slow
def test_a_domain_of_labels_is_retrained_promoted_and_reproduced(road: Path) -> None:
    retrained = run_tessera(road, "retrain", PARTS)
    assert (retrained.code, retrained.outcome["verdict"]) == (0, "PROMOTE"), retrained.stderr
    floor = next(found for found in retrained.outcome["findings"] if found["gate"] == "floor")
    assert "macro average precision" in floor["reason"]
    report = Path(retrained.outcome["report"])
    assert "The score is macro average precision" in report.read_text()
    card = (report.parent / "model_card.md").read_text()
    assert "Macro average precision" in card
    assert "class = crack" in card
    picture = next((road / "data" / PARTS / "raw" / "images").glob("*.jpg"))
    predicted = run_tessera(road, "predict", PARTS, str(picture)).outcome
    (answer,), thresholds = predicted["predictions"], predicted["thresholds"]
    assert answer["labels"] == [name for name, p in answer["probabilities"].items() if p >= thresholds[name]]
    again = run_tessera(road, "reproduce", PARTS, "1")
    assert (again.code, again.outcome["bit_equal"]) == (0, True), again.stderr
