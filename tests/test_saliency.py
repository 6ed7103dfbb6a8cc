"""Heat maps: for every tuner, of the right shape, and where the picture says what it is."""

import numpy as np
import pytest
import torch
from vits import create_backbone

from components.models.engine import create_engine
from components.models.network import create_network
from components.models.tuners import TUNERS, create_tuners
from components.training.saliency import map_saliency


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", TUNERS)
def test_every_tuner_can_be_asked_what_it_looked_at(kind: str, dtype: str) -> None:
    backbone = create_backbone()
    (tuner,) = create_tuners([{"kind": kind}])
    network = create_network(backbone, tuner, 3, seed=0)
    engine = create_engine(backbone.mean, backbone.std, dtype)
    engine.prepare(network)
    dice = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, *backbone.img_size), dtype=torch.uint8, generator=dice)
    before = engine.forward(network.eval(), image)
    saliency = map_saliency(network, engine, image)
    rows, columns = backbone.vit.patch_embed.grid_size
    assert saliency.shape == (rows, columns)
    assert saliency.dtype == np.float32
    assert 0 <= saliency.min() <= saliency.max() <= 1
    assert saliency.max() == pytest.approx(1, abs=1e-5)
    assert torch.equal(engine.forward(network.eval(), image), before)  # left as it was found
    assert all(parameter.grad is None for parameter in network.parameters())
