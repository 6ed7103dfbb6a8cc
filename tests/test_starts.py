"""Where trainings start: heads that are solved, and prompts that are tokens of training images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import CLASSES, create_engine
from vits import EVAS, VITS, create_backbone, create_targets

from components.data.batches.loading import Samples
from components.domain.settings import Training
from components.models.encoders import PromptedEncoder
from components.models.network import Network, create_network
from components.models.tuners import TUNERS, create_tuners
from components.tasks import CLASSIFICATION, Task
from components.tasks.multilabel import MultilabelTask
from components.tasks.segmentation import SegmentationTask
from components.training.evaluate import predict_probabilities
from components.training.fit import fit
from components.training.recipe import Recipe
from components.training.starts import STRENGTH, start

#: Those whose encoder computes what the backbone does until it has learned.
SILENT = ("adaptformer", "bitfit", "dora", "full", "lora")
#: Prefixes, grids, pooling, rotary positions of both kinds, a norm that leaves the mean.
NETWORKS = {
    name: VITS[name] for name in ("registers", "tall grid, uneven patches", "attention pooling", "any image size")
}
NETWORKS |= {name: EVAS[name] for name in ("EVA02-CLIP", "DINOv3")}


def _samples(size: Any, task: Task = CLASSIFICATION, count: int = 24) -> Samples:
    pixels = np.random.default_rng(0).integers(0, 255, (count, size.height, size.width, 3), dtype=np.uint8)
    classes = np.arange(count) % len(CLASSES)
    pixels[classes == 1] //= 2
    return Samples(pixels, np.arange(count), create_targets(task, classes), None)


def _start(
    candidate: dict[str, Any],
    vit: Mapping[str, Any] = {},
    task: Task = CLASSIFICATION,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Network, Samples]:
    """A network where its training starts, and the images of both of its sides."""
    (tuner,), backbone, engine = create_tuners([candidate]), create_backbone(vit), create_engine(dtype)
    network = engine.prepare(create_network(backbone, tuner, len(CLASSES), seed, task))
    samples = _samples(backbone.img_size, task)
    start(network, samples, Recipe(tuner, Training(batch_size=8), CLASSES, seed, task=task), engine)
    return network, samples


@pytest.mark.parametrize("task", [CLASSIFICATION, MultilabelTask()], ids=lambda task: task.kind)
@pytest.mark.parametrize("kind", SILENT)
def test_what_has_learned_nothing_yet_answers_as_the_linear_probe(kind: str, task: Task, tmp_path: Path) -> None:
    engine = create_engine(torch.float32)
    network, samples = _start({"kind": kind}, task=task)
    (tuner,) = create_tuners([{"kind": "linear", "strength": STRENGTH}])
    probe = create_network(create_backbone(), tuner, len(CLASSES), 3, task)
    recipe = Recipe(tuner, Training(batch_size=8), CLASSES, 3, task=task)
    fit(probe, samples, samples, recipe, engine, tmp_path / "none", lambda row: None)
    answers = predict_probabilities(network, samples, engine, 8)
    assert answers.std() > 0.05
    np.testing.assert_allclose(answers, predict_probabilities(probe, samples, engine, 8), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("candidate", [{"kind": "vpt"}, {"kind": "vpt", "deep": False}, {"kind": "vapt"}], ids=str)
def test_the_head_of_prompts_is_solved_on_the_features_they_give(candidate: Any, dtype: torch.dtype) -> None:
    """At an optimum the head's bias has no gradient, and its weight pulls against the strength alone."""
    network, samples = _start(candidate, dtype=dtype)
    engine = create_engine(dtype)
    images = torch.from_numpy(samples.pixels).permute(0, 3, 1, 2)
    targets = torch.from_numpy(samples.targets)
    network.eval()
    loss = network.head.loss(engine.forward(network, images), targets, torch.ones(len(CLASSES)))
    (gradient,) = torch.autograd.grad(loss / len(samples), network.head.bias)
    assert gradient.abs().max() < (1e-5 if dtype == torch.float32 else 3e-3)
    assert network.head.weight.abs().max() > 0.05


@pytest.mark.parametrize("vit", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])
def test_prompts_start_as_patches_of_training_images_entering_their_block(vit: dict[str, Any], deep: bool) -> None:
    """More prompts than images, in more than one batch; no class token and no register is among them."""
    network, samples = _start({"kind": "vpt", "deep": deep, "num_prompts": 30}, vit)
    encoder = network.encoder
    assert isinstance(encoder, PromptedEncoder)
    entering = []
    hooks = [b.register_forward_pre_hook(lambda _, x: entering.append(x[0])) for b in encoder.vit.blocks]
    with torch.no_grad():
        images = torch.from_numpy(samples.pixels).permute(0, 3, 1, 2)
        encoder.vit.forward_features(create_engine(torch.float32).normalise(images))
    for hook in hooks:
        hook.remove()
    tokens, prefix = encoder.prompts.tokens.detach(), encoder.vit.num_prefix_tokens
    for prompts, x in zip(tokens, entering, strict=False):
        known = x[:, prefix:]
        if deep:
            prompts, known = (part / part.square().mean(dim=-1, keepdim=True).sqrt() for part in (prompts, known))
        exact = "donot_use_mm_for_euclid_dist"
        of = torch.cdist(prompts, known.flatten(0, 1), compute_mode=exact).min(dim=1)
        assert of.values.max() < 1e-3
        assert len(torch.unique(of.indices // known.shape[1])) == len(samples)  # every image has one at least


def test_deep_prompts_keep_the_size_that_learning_rates_belong_to() -> None:
    (tuner,) = create_tuners([{"kind": "vpt"}])
    random = create_network(create_backbone(), tuner, len(CLASSES), 0).encoder.prompts.tokens.detach()
    placed = _start({"kind": "vpt"})[0].encoder.prompts.tokens.detach()
    assert placed.square().mean() == pytest.approx(float(random.square().mean()), rel=1e-3)


def test_the_seed_decides_the_prompts() -> None:
    same, again, other = (_start({"kind": "vapt"}, seed=seed)[0].encoder.prompts.static.tokens for seed in (1, 1, 2))
    assert torch.equal(same, again)
    assert not torch.isclose(same, other).any()


@pytest.mark.parametrize("task", [MultilabelTask(), SegmentationTask()], ids=lambda task: task.kind)
@pytest.mark.parametrize("kind", sorted(TUNERS))
def test_nothing_else_moves(kind: str, task: Task) -> None:
    """A dense head is trained from its own start, and so is all else that learns."""
    (tuner,) = create_tuners([{"kind": kind}])
    fresh = create_network(create_backbone(), tuner, len(CLASSES), 0, task)
    started = dict(_start({"kind": kind}, task=task)[0].named_parameters())
    moved = {name for name, parameter in fresh.named_parameters() if not torch.equal(parameter, started[name])}
    prompts = {"vpt": {"encoder.prompts.tokens"}, "vapt": {"encoder.prompts.static.tokens"}}.get(kind, set())
    assert moved - {"head.weight", "head.bias"} == prompts
    assert ("head.weight" in moved) == fresh.head.solvable


def test_a_start_that_training_spoils_is_kept(tmp_path: Path) -> None:
    """It is epoch 0 on validation, for a training that goes on from a checkpoint as well."""
    candidate, engine = {"kind": "vpt", "lr": 100.0}, create_engine(torch.float32)
    started, samples = _start(candidate)
    (tuner,) = create_tuners([candidate])
    recipe = Recipe(tuner, Training(epochs=2, batch_size=8, warmup_epochs=0), CLASSES, 0)
    for until in (1, 2):
        network = create_network(create_backbone(), tuner, len(CLASSES), 0)
        path = tmp_path / "c.safetensors"
        progress = fit(network, samples, samples, recipe, engine, path, lambda row: None, until_epoch=until)
        assert (progress.best_epoch, len(progress.history)) == (0, until)
        assert progress.best_row["val/loss"] < min(row["val/loss"] for row in progress.history)
        for name, tensor in started.trainable_parameters().items():
            assert torch.equal(tensor, network.trainable_parameters()[name])
