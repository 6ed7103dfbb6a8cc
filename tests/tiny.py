"""A toy domain on disk and real candidates trained on it, for the tests of what comes after training."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from components.data.manifest import Row
from components.domain.domain import Domain
from components.domain.reading import parse_domain
from components.promotion.contest import settle
from components.promotion.gates.base import Context, Finding
from components.promotion.gates.decide import decide
from components.promotion.ledger import Record
from components.promotion.versions import Version
from components.records.boxes import LabelledBox
from components.records.images import ValidationSummary
from components.records.jobs import Job, Result, Rung, load_result, load_rung
from components.records.maps import Regions
from components.records.outcomes import CandidateRow, Outcome, Score
from components.tasks import create_task
from components.tasks.detection import DetectionTask
from components.tasks.segmentation import SegmentationTask
from components.workspace import Workspace

CLASSES = ("dark", "light", "red")
COLOURS = {"dark": (40, 40, 50), "light": (210, 205, 200), "red": (190, 60, 50)}
DATA_VERSION = "0123456789abcdef0123456789abcdef.dir"


def promote(workspace: Workspace, domain: str, version: int, *, expected: int | None, **facts: Any) -> Version:
    """Make a version the champion by a record, as after a verdict against `expected`."""
    record = Record(action="promote", from_version=expected, to_version=version, **{"verdict": "PROMOTE", **facts})
    champion = settle(workspace, domain, record)
    assert champion is not None
    return champion


def create_domain(**changes: Any) -> Domain:
    record = {
        "name": "tiny",
        "title": "Tiny tiles",
        "description": "Plain tiles of three colours, made for a test.",
        "task": "classification",
        "classes": list(CLASSES),
        "layout": "folders",
        "slices": ["site"],
        "augmentation": "none",
        "training": {"epochs": 3, "batch_size": 8, "warmup_epochs": 1},
        "candidates": ["linear", "vpt"],
        **changes,
    }
    return parse_domain(record, "tests")


def write_images(raw: Path, groups: int = 18) -> pl.DataFrame:
    """Two noisy tiles a group under `raw`, and their manifest with all three splits."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(groups):
        label = CLASSES[number % len(CLASSES)]
        for view in range(2):
            path = f"{label}/{number}_{view}.png"
            (raw / label).mkdir(parents=True, exist_ok=True)
            noise = rng.normal(0, 70, (24, 32, 3))
            pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(raw / path)
            rows.append(_row(raw, path, label, number))
    crop = pl.Series("crop", [None] * len(rows), dtype=pl.List(pl.Int64))
    return pl.DataFrame(rows).with_columns(crop).sort("path", "id")


def write_marked_images(raw: Path, groups: int = 36) -> pl.DataFrame:
    """A noisy grey tile per group, with a patch in the colour of each class that it shows, at that class's place."""
    rng = np.random.default_rng(1)
    raw.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(groups):
        shown = [name for k, name in enumerate(CLASSES) if (number % 8) >> k & 1]  # none to all three
        pixels = np.clip(rng.normal(128, 25, (24, 32, 3)), 0, 255)
        for name in shown:
            left = 10 * CLASSES.index(name)
            pixels[4:20, left : left + 9] = COLOURS[name]
        path = f"{number:02}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(raw / path)
        facts = {"label": " + ".join(shown) or "(none)", "labels": shown}
        rows.append(_row(raw, path, "", number) | {"split": ("train", "train", "val", "test")[number // 8 % 4]} | facts)
    crop = pl.Series("crop", [None] * len(rows), dtype=pl.List(pl.Int64))
    frame = pl.DataFrame(rows, schema_overrides={"labels": pl.List(pl.String)})
    return frame.with_columns(crop).sort("path", "id")


def write_masked_images(raw: Path, groups: int = 36) -> pl.DataFrame:
    """The same tiles with the class map of each, where `dark` is what lies between the patches of the others."""
    frame = write_marked_images(raw, groups)
    maps = []
    for labels in frame["labels"].to_list():
        classes = np.zeros((24, 32), np.uint8)
        for number, name in enumerate(CLASSES):
            if name != "dark" and name in labels:
                classes[4:20, 10 * number : 10 * number + 9] = number
        maps.append(Regions.of(classes, CLASSES))
    task = SegmentationTask(background="dark")
    rows = [task.annotate(Row(path="", regions=regions), CLASSES) for regions in maps]
    return frame.with_columns(
        pl.Series(name, [row[name] for row in rows], kind) for name, kind in task.columns().items()
    )


def write_boxed_images(raw: Path, groups: int = 36) -> pl.DataFrame:
    """The same tiles with a box around each patch; in every fourth with a patch, the first box is of a hard object."""
    frame = write_marked_images(raw, groups)
    lists = [
        [
            LabelledBox(name, _box_of(name), "difficult" if not (number % 4 or place) else "object")
            for place, name in enumerate(labels)
        ]
        for number, labels in enumerate(frame["labels"].to_list())
    ]
    task = DetectionTask()
    rows = [task.annotate(Row(path="", objects=objects), CLASSES) for objects in lists]
    return frame.with_columns(
        pl.Series(name, [row[name] for row in rows], kind) for name, kind in task.columns().items()
    )


def _box_of(name: str) -> tuple[float, float, float, float]:
    left = 10.0 * CLASSES.index(name)
    return left, 4.0, left + 9, 20.0


def train(folder: Path, domain: Domain, tuner: Mapping[str, Any], seed: int = 0) -> Result:
    """One candidate through the real training code, in this process."""
    from components.training.run import do_job

    job = create_job(folder, domain, tuner, seed, folder / "runs" / f"{tuner['kind']}-s{seed}")
    do_job(job, lambda event, **facts: None)
    result = load_result(job.folder)
    assert result is not None
    return result


def climb(folder: Path, domain: Domain, tuner: Mapping[str, Any], rungs: list[int]) -> list[Rung]:
    """A trial of a search, stopped at every rung."""
    from components.training.run import do_job

    left = []
    for epochs in rungs:
        job = create_job(folder, domain, tuner, 0, folder / "trial").model_copy(update={"until_epoch": epochs})
        do_job(job, lambda event, **facts: None)
        rung = load_rung(job.folder, epochs)
        assert rung is not None
        left.append(rung)
    return left


def create_job(folder: Path, domain: Domain, tuner: Mapping[str, Any], seed: int, place: Path) -> Job:
    raw, manifest = folder / "raw", folder / "manifest.parquet"
    if not manifest.exists():
        writers = {"label": write_images, "labels": write_marked_images, "mask": write_masked_images}
        writers["boxes"] = write_boxed_images
        writers[create_task(domain).annotation](raw).write_parquet(manifest)
    return Job(
        action="train",
        domain=domain,
        tuner=dict(tuner),
        seed=seed,
        manifest=manifest,
        raw=raw,
        cache=folder / "cache",
        folder=place,
        data_version=DATA_VERSION,
        git_commit="c0ffee" * 6 + "c0ff",
    )


def predict(
    truth: list[str], predicted: list[str], groups: list[str] | None = None, **slices: list[str]
) -> pl.DataFrame:
    """A predictions frame of the test split, as training writes it."""
    return pl.DataFrame(
        {
            "id": [f"{k:04}" for k in range(len(truth))],
            "path": [f"{k:04}.png" for k in range(len(truth))],
            "group": groups,
            "split": ["test"] * len(truth),
            "label": truth,
            "predicted": predicted,
            **slices,
        }
    )


def _row(raw: Path, path: str, label: str, number: int) -> dict[str, Any]:
    content = (raw / path).read_bytes()
    return {
        "id": hashlib.sha256(content).hexdigest(),
        "path": path,
        "label": label,
        "width": 32,
        "height": 24,
        "group": f"lot{number:02}",
        "site": "north" if number % 2 else "south",
        "split": ("train", "val", "test")[number // len(CLASSES) % 3],
    }


def create_validation(images: int, groups: int = 1) -> ValidationSummary:
    """What validation says of images that are all fit."""
    facts = {"domain": "tiny", "ok": True, "images": images, "fit": images, "groups": groups, "labels": None}
    lists = ("quarantined", "near_duplicate_pairs", "suspicious_labels", "problems", "warnings", "outliers")
    return ValidationSummary.model_validate(facts | {"classes": {}} | dict.fromkeys(lists, ()))


def create_context(domain: Domain, challenger: pl.DataFrame, champion: pl.DataFrame | None) -> Context:
    """What the gates are asked of two frames of predictions."""
    manifest = pl.DataFrame({"id": ["a", "b"], "group": ["x", "y"], "split": ["train", "test"]})
    return Context(domain, challenger, champion, 1000, manifest, create_validation(images=3), {"run_id": "r"}, ())


def judge(context: Context) -> dict[str, Finding]:
    """The findings of all gates, by their names."""
    return {finding.gate: finding for finding in decide(context).findings}


def create_row(result: Result) -> CandidateRow:
    """The selected candidate's row, with a score that is made up."""
    shared = ("seed", "trainable_params", "head_params", "share", "seconds", "adapter_bytes", "adapter_sha256")
    facts = {key: getattr(result, key) for key in shared}
    return CandidateRow(tuner=result.label, val=0.8, test=Score(value=0.9, low=0.7, high=0.95), selected=True, **facts)


def create_outcome(row: CandidateRow, **changes: Any) -> Outcome:
    """A retrain with one candidate."""
    facts = {
        "domain": "tiny",
        "status": "done",
        "data_version": DATA_VERSION,
        "verdict": "PROMOTE",
        "reason": "Good enough – surely.",
        "findings": (),
        "champion_version": 1,
        "challenger_version": 7,
        "metric": create_task(create_domain()).metric,
        "backbone": {"name": "embedded", "sha256": "0" * 64, "trained": True},
        "candidates": (row,),
        "validation": {"images": 60, "fit": 60, "groups": 20, "quarantined": 0},
        "report": "report.html",
        "seconds": 3.0,
    }
    return Outcome.model_validate(facts | changes)
