"""How far new images lie from what a champion has seen: vectors of a known kind, and parts through the commands."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import DOMAIN, create_workspace, run_tessera
from PIL import Image, ImageFilter

from components.data.checks.features import FEATURES
from components.monitoring.drift import FEWEST, find_unlike, measure_drift
from components.records.operations import Status
from components.synthetic.surfaces import create_surface_defects

LOTS, MORE = 16, 24  # the session's images, and those that come later


def test_without_drift_one_in_twenty_is_unlike() -> None:
    """Whatever the number of groups, and how much the pictures of a group have in common."""
    rng = np.random.default_rng(0)
    for groups, common in ((FEWEST, 0.0), (12, 2.0), (48, 2.0)):
        shares = []
        for _ in range(200):
            centres = common * rng.normal(size=(groups + 6, 1, 8))
            vectors = (centres + rng.normal(size=(groups + 6, 5, 8))).reshape(-1, 8).astype(np.float32)
            names = np.repeat(np.arange(groups).astype(str), 5)
            shares.append(find_unlike(vectors[: 5 * groups], names, vectors[5 * groups :]).mean())
        assert 0.035 < np.mean(shares) < 0.065


def test_what_is_elsewhere_is_unlike() -> None:
    rng = np.random.default_rng(0)
    seen, new = (rng.normal(size=(count, 8)).astype(np.float32) + 3 for count in (60, 30))
    assert find_unlike(seen, np.arange(60).astype(str), new * np.float32(-1)).mean() == 1


def test_it_is_not_known_from_too_little() -> None:
    names = [f"{number:064x}" for number in range(60)]
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float16)
    rows = {"key": names, "feature": [row.tobytes() for row in vectors], "grey": [None] * 60, "backbone": ["b"] * 60}
    features = pl.DataFrame(rows, schema=FEATURES)
    labels, groups = ["a"] * 40 + ["b"] * 20, [str(number // 5) for number in range(60)]
    present = pl.DataFrame({"id": names, "crop": [None] * 60, "group": groups, "label": labels})
    seen = present.head(40)
    drift = measure_drift(seen, present, features)
    assert (drift.new, drift.images, drift.classes) == (20, 20, {"a": (1.0, 0.0), "b": (0.0, 1.0)})
    assert drift.share is not None
    assert measure_drift(seen.head(20), present, features).share is None
    assert measure_drift(seen.with_columns(group=pl.lit("one")), present, features).share is None
    assert measure_drift(seen, present, features.tail(39)).share is None  # most of what was seen is gone
    assert measure_drift(present, present, features).share is None  # nothing is new


@pytest.mark.slow
def test_status_reports_how_far_new_parts_are(tmp_path: Path, images: Path) -> None:
    place = create_workspace(tmp_path / "workspace", images, candidates=["linear"])
    more = tmp_path / "more"
    create_surface_defects(more, lots=MORE, images_per_lot=6, size=64)
    assert run_tessera(place, "retrain", DOMAIN).outcome["champion_version"] == 1
    assert _ask(place) is None
    _grow(place, more, lambda picture: picture)
    assert _ask(place) is None  # nobody has looked at them yet
    same = _check_and_ask(place)
    _grow(place, more, _spoil)
    other = _check_and_ask(place)
    assert (same["new"], other["new"], same["expected"]) == (48, 48, 0.05)
    assert same["share"] <= 0.2
    assert other["share"] >= 0.5
    shown = run_tessera(place, "status", as_json=False, COLUMNS="160").stdout
    assert f" {other['share']:.0%} " in shown
    assert "48 new" in shown


def _spoil(picture: Image.Image) -> Image.Image:
    """Out of focus, under a blue lamp."""
    light = np.array([0.5, 0.7, 1.0]) * np.asarray(picture.filter(ImageFilter.GaussianBlur(2)))
    return Image.fromarray(light.astype(np.uint8))


def _ask(place: Path) -> dict[str, float] | None:
    answer = run_tessera(place, "status")
    assert answer.code == 0, answer.stderr
    answer.read(Status)
    (row,) = answer.outcome["domains"]
    return dict(row["drift"]) if row["drift"] else None


def _check_and_ask(place: Path) -> dict[str, float]:
    assert run_tessera(place, "check", DOMAIN).code == 0
    found = _ask(place)
    assert found is not None
    assert _ask(place) == found  # what was measured is kept
    return found


def _grow(place: Path, more: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    """The later lots join, as they are or changed."""
    raw = place / "data" / DOMAIN / "raw"
    with (more / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[LOTS * 6 :]:
        with Image.open(more / row["image"]) as picture:
            change(picture.convert("RGB")).save(raw / row["image"], quality=95)
        if row["mask"]:
            shutil.copyfile(more / row["mask"], raw / row["mask"])
    shutil.copyfile(more / "labels.csv", raw / "labels.csv")
