"""Real images and real weights, where TESSERA_REAL_DATA names the folder that holds them."""

import os
from pathlib import Path

import jsonschema
import pytest
from conftest import run_tessera
from schemas import SCHEMAS

DATA = Path(os.environ.get("TESSERA_REAL_DATA", "nowhere")).resolve()
WEIGHTS = DATA / "backbones" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_data,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="TESSERA_REAL_DATA does not name the folder of real images"),
]


#: Fit samples, and between how many groups they lie once near duplicates are joined.
KNOWN = {
    "magnetic_tile": (1344, 235, 260),  # six exposures of each tile
    "lc25000_lung": (2091, 178, 180),  # sources 214 and 239 overlap
    "bccd": (4886, 345, 363),
    "dsb2018_stained": (8671, 107, 107),
}


def require_known(name: str, summary: dict[str, int]) -> None:
    fit, fewest, most = KNOWN[name]
    assert summary["fit"] == fit
    assert fewest <= summary["groups"] <= most


@pytest.mark.parametrize(("name", "rows"), [("bccd", 4888), ("dsb2018_stained", 8671)])
def test_boxes_and_instances_become_crops(tmp_path: Path, name: str, rows: int) -> None:
    imported = run_tessera(tmp_path, "import", str(DATA / name), "--domain", name)
    assert imported.code == 0, imported.stderr
    checked = run_tessera(tmp_path, "check", name)
    assert checked.code == 0, checked.stderr
    jsonschema.validate(checked.outcome, SCHEMAS["check"])
    assert checked.outcome["images"] == rows
    require_known(name, checked.outcome)


@pytest.mark.parametrize(("name", "layout"), [("magnetic_tile", "folders"), ("lc25000_lung", "csv")])
def test_a_real_domain_is_retrained_on_real_weights(tmp_path: Path, name: str, layout: str) -> None:
    imported = run_tessera(tmp_path, "import", str(DATA / name), "--domain", name, "--layout", layout)
    assert imported.code == 0, imported.stderr
    settings = [
        f"backbone={WEIGHTS}",
        "img_size=64",
        "training.epochs=2",
        "training.warmup_epochs=0.5",
        "candidates=[linear]",
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    answer = run_tessera(tmp_path, "retrain", name, *overrides)
    assert answer.code == 0, answer.stderr
    jsonschema.validate(answer.outcome, SCHEMAS["retrain"])
    assert answer.outcome["backbone"]["trained"]
    require_known(name, answer.outcome["validation"])
    test = answer.outcome["candidates"][0]["test"]
    assert test["low"] > 1 / {"magnetic_tile": 6, "lc25000_lung": 3}[name]
