"""The comparison of tuners at toy size: its own code from images to table and picture, and that it is fair."""

import json
from pathlib import Path
from typing import Any

import methods
import methods_report
import numpy as np
import polars as pl
import pytest
import torch
from bench import SHOTS, Draws, draw_subset, lay_out
from methods import METHODS, SPACES, Fraction, Protocol, require_spaces

from components.data.batches.transforms import Augmentation
from components.errors import DomainError
from components.models.tuners import create_tuners

DATA = "parts"  # no domain that ships: its layout is guessed, and its split seed found
TOY = Protocol(
    budget={DATA: (Fraction("all", 1.0, 2), Fraction("5 shots", 0.0, 2))},
    batch_size=8,
    rounds=2,
    configurations=2,
    seeds=(1, 2),
)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, images: Path) -> list[str]:
    """What the script is called with; `images` are one data set in the folder of real ones."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "real").mkdir()
    (folder / "real" / DATA).symlink_to(images)
    told = ["--backbone", "embedded", "--img-size", "32", "--state", str(folder / "state")]
    return [*told, "--json", str(folder / "methods.json")]


def _run(arguments: list[str], *more: str) -> dict[str, Any]:
    path = Path(arguments[-1])
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_REAL_DATA", str(path.parent / "real"))
        for name in ("TESSERA_WORKSPACE", "DVC_SITE_CACHE_DIR", "PREFECT_HOME"):
            patch.setenv(name, "")  # given back after what activating a workspace sets
            patch.delenv(name)
        try:
            methods.main([*arguments, *more], TOY)
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)
    results: dict[str, Any] = json.loads(path.read_text())
    return results


@pytest.mark.slow
def test_it_compares_resumes_and_reports(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    stopped = _run(arguments, "--minutes", "0")
    assert stopped["rows"] == stopped["searches"] == []
    first = _run(arguments, "--only", "all / linear")
    assert [(row["fraction"], row["tuner"]) for row in first["rows"]] == [("all", "linear")]
    capsys.readouterr()
    results = _run(arguments, "--only", "all / linear", "all / ssf")
    trained = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" s")]
    assert len(trained) == TOY.configurations + len(TOY.seeds), "what is there is not trained again"
    assert results["rows"][0]["scores"] == first["rows"][0]["scores"]
    assert {row["tuner"] for row in results["rows"]} == {"linear", "ssf"}
    for row in results["rows"]:
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["mean"] == pytest.approx(np.mean(row["scores"]), abs=1e-4)
        assert row["with_head"] > row["trainable_params"] or row["tuner"] == "linear"
        assert row["to_best"]["mean"] <= 0
        assert row["adapter_bytes"] > 4 * row["with_head"]
    assert Path(arguments[-1]).with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_its_json_is_enough_to_go_on_from(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = _run(arguments, "--only", "all / linear")
    path = Path(arguments[-1])
    moved = [*arguments]
    moved[moved.index("--state") + 1] = str(path.parent / "another state")
    kept = _run(moved, "--minutes", "0")
    assert kept["rows"] == first["rows"], "a set that is not in the state folder is kept as it was"
    capsys.readouterr()
    again = _run(moved, "--only", "all / linear")
    assert not [line for line in capsys.readouterr().out.splitlines() if line.endswith(" s")]
    assert again == first


def test_a_filter_that_fits_nothing_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _run(arguments, "--only", "no such cell")
    assert f"{DATA} / all / linear" in capsys.readouterr().err


def test_every_tuner_has_the_same_number_of_configurations() -> None:
    require_spaces(METHODS)
    for label, space in SPACES.items():
        assert len(space) == len({json.dumps(options) for options in space}) == Protocol.configurations
        assert {create_tuners([options])[0].label for options in space} == {label}
    with pytest.raises(DomainError, match="tuner newcomer: expected its configurations in SPACES"):
        require_spaces([*METHODS, "newcomer"])


def test_every_tuner_has_its_place_in_the_picture() -> None:
    placed = [tuner for _, _, tuners in methods_report.FAMILIES.values() for tuner in tuners]
    assert sorted(placed) == sorted(SPACES)


def _manifest() -> pl.DataFrame:
    """Class a: 40 groups of 5 images; class b: 2 groups of 4; and a side that is no business of training."""
    a = [{"label": "a", "group": f"g{k % 40:02}", "split": "train"} for k in range(200)]
    b = [{"label": "b", "group": f"h{k % 2}", "split": "train"} for k in range(8)]
    return pl.DataFrame([*a, *b, *({"label": "a", "group": "t", "split": "test"} for _ in range(9))])


@pytest.mark.parametrize("seed", range(4))
def test_subsets_are_nested_and_drawn_by_group(seed: int) -> None:
    manifest = _manifest()
    shots, tenth, full = (draw_subset(manifest, share, seed) for share in (0.0, 0.1, 1.0))
    assert set(shots) < set(tenth) < set(full) == set(range(208))
    counts = {name: dict(manifest[rows]["label"].value_counts().rows()) for name, rows in (("5", shots), ("10", tenth))}
    assert counts == {"5": {"a": SHOTS, "b": SHOTS}, "10": {"a": 20, "b": SHOTS}}
    assert manifest[shots].filter(label="a")["group"].n_unique() == SHOTS, "near duplicates are one shot"
    assert manifest[tenth].filter(label="a")["group"].n_unique() == SHOTS, "groups are used up before others begin"
    assert np.array_equal(tenth, draw_subset(manifest, 0.1, seed))
    assert not np.array_equal(tenth, draw_subset(manifest, 0.1, seed + 10))


def test_few_images_come_equally_often_and_never_alike() -> None:
    rows = np.array([3, 5, 8])
    laid = lay_out(rows, 12, 0)
    assert np.unique(laid, return_counts=True)[1].tolist() == [4, 4, 4]
    pixels = np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), dtype=np.uint8)
    draws = Draws(pixels, laid, laid % 3, Augmentation("industrial", 0), pieces=2)
    seen = []
    for draws.epoch in range(2):
        seen += [draws[index] for index in range(len(draws))]
    assert [target for _, target in seen] == (laid % 3).tolist()
    assert len({image.numpy().tobytes() for image, _ in seen}) == len(laid)


def test_defaults_follow_the_mean_rank_over_finished_cells() -> None:
    def search(data: str, lr: float, score: float, loss: float | None) -> dict[str, Any]:
        options = {"kind": "linear", "lr": lr}
        return {"data": data, "fraction": "all", "tuner": "linear", "options": options, "score": score, "loss": loss}

    searches = [search("x", 0.1, 0.9, 1.0), search("x", 0.2, 0.9, 0.5), search("y", 0.1, 0.0, None)]
    searches += [search("y", 0.2, 0.7, 1.0), search("z", 0.1, 1.0, 0.1)]  # z has been searched by half
    first, second = methods_report.choose_defaults(searches)["linear"]
    assert (first["options"]["lr"], first["mean_rank"], first["cells"]) == (0.2, 1, 2)
    assert (second["options"]["lr"], second["mean_rank"]) == (0.1, 2)
