"""Heat maps: for every tuner, of the right shape, and where the picture says what it is."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from vits import create_backbone

from components.domain.canvas import Fit, ImgSize
from components.models.engine import create_engine
from components.models.network import create_network
from components.models.saliency import map_saliency
from components.models.tuners import TUNERS, create_tuners
from components.reports.pictures import draw_saliency
from components.tasks import CLASSIFICATION


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", TUNERS)
@pytest.mark.parametrize("img_size", [(32, 32), (24, 56)], ids=str)
def test_every_tuner_can_be_asked_what_it_looked_at(img_size: tuple[int, int], kind: str, dtype: str) -> None:
    backbone = create_backbone({"img_size": img_size})
    (tuner,) = create_tuners([{"kind": kind}])
    network = create_network(backbone, tuner, 3, seed=0)
    engine = create_engine(backbone.mean, backbone.std, dtype)
    engine.prepare(network)
    dice = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, *backbone.img_size), dtype=torch.uint8, generator=dice)
    before = engine.forward(network.eval(), image)
    saliency = map_saliency(network, engine, image)
    assert saliency.shape == (img_size[0] // 8, img_size[1] // 8)
    assert saliency.dtype == np.float32
    assert 0 <= saliency.min() <= saliency.max() <= 1
    assert saliency.max() == pytest.approx(0 if kind == "pixels" else 1, abs=1e-5)  # the control looks at no patch
    assert torch.equal(engine.forward(network.eval(), image), before)  # left as it was found
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_the_map_of_a_letterboxed_picture_lies_where_the_picture_was(tmp_path: Path, fit: Fit) -> None:
    Image.new("RGB", (120, 60)).save(tmp_path / "a.png")
    row = {"id": "1", "path": "a.png", "crop": None, "label": "x", "predicted": "y", "p_x": 0.2, "p_y": 0.8}
    saliency = {"1": np.zeros((4, 4), np.float32)}
    figure = draw_saliency(pl.DataFrame([row]), CLASSIFICATION, saliency, tmp_path, ImgSize(64, 64), fit)
    axes = figure.axes[1]
    assert axes.get_xlim() + axes.get_ylim() == (0, 120, 60, 0), "the picture alone is seen"
    assert list(axes.images[-1].get_extent()) == [0, 120, *((90, -30) if fit == "letterbox" else (60, 0))]
