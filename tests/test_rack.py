"""Adapters on one backbone: what a rack answers is what each adapter's own network answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fleets import write_adapter
from vits import create_backbone

from components.data.batches.geometry import Pixels
from components.errors import AdapterError, DataError
from components.models.engine import create_engine
from components.models.saliency import map_saliency
from components.models.weights import load_adapter
from components.serving.rack import EXPLAINED, Rack
from components.tasks import TASKS

BACKBONE = create_backbone()


def draw_pixels(count: int, side: int = 32) -> Pixels:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize("kind", ["vpt", "lora", "pixels"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_explanation_is_the_saliency_of_the_adapters_own_network(tmp_path: Path, kind: str, dtype: Any) -> None:
    rack, pixels = Rack(BACKBONE, dtype), draw_pixels(1)[0]
    folder = write_adapter(tmp_path / kind, BACKBONE, {"kind": kind})
    network, _ = load_adapter(folder, BACKBONE)
    engine = create_engine(BACKBONE.mean, BACKBONE.std, dtype)
    engine.prepare(network)
    wanted = map_saliency(network, engine, torch.from_numpy(pixels).permute(2, 0, 1)[None])
    resident = rack.add("a", folder)
    assert wanted.shape == (4, 4)
    for _ in range(2):  # with a fresh network, and with the one that was kept
        np.testing.assert_allclose(rack.explain(resident, pixels), wanted, atol=1e-6)


def test_few_networks_are_kept_for_explanations(tmp_path: Path) -> None:
    rack = Rack(BACKBONE, "float32")
    for number in range(EXPLAINED + 2):
        resident = rack.add(str(number), write_adapter(tmp_path / str(number), BACKBONE, {"kind": "vpt"}, number))
        rack.explain(resident, draw_pixels(1)[0])
    assert list(rack._explained) == [rack[str(number)] for number in range(2, EXPLAINED + 2)]


def test_an_explanation_needs_the_adapter_that_answered(tmp_path: Path) -> None:
    rack = Rack(BACKBONE)
    resident = rack.add("a", write_adapter(tmp_path / "a", BACKBONE, {"kind": "vpt"}))
    write_adapter(tmp_path / "a", BACKBONE, {"kind": "vpt"}, seed=1)
    with pytest.raises(AdapterError, match="another one in its folder"):
        rack.explain(resident, draw_pixels(1)[0])


@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_tasks_whose_answer_is_a_place_have_no_saliency(tmp_path: Path, kind: str) -> None:
    rack, task = Rack(BACKBONE), TASKS[kind]()
    resident = rack.add("a", write_adapter(tmp_path / "a", BACKBONE, {"kind": "linear"}, task=task))
    with pytest.raises(DataError, match="whose answer itself shows the places"):
        rack.explain(resident, draw_pixels(1)[0])
