"""Heads of class maps: their loss against a count pixel by pixel, at any size of picture, patch and backbone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from vits import DENSE_SIZES, draw_tokens, unsettle

from components.models.heads import HEADS, Head, Shape, create_head
from components.models.heads.pyramid import choose_layers
from components.models.heads.segmentation import RAREST
from components.models.tokens import Needs
from components.records.maps import IGNORE
from components.tasks import CLASSIFICATION
from components.tasks.segmentation import SegmentationTask

KINDS = ("conv", "linear")


def create(kind: str, patch: tuple[int, int] = (16, 16), depth: int = 12, classes: int = 3) -> Head:
    torch.manual_seed(1)
    head = create_head(SegmentationTask.model_validate({"head": kind}), Shape(6, depth, patch), classes)
    unsettle(head)
    return head


def draw_targets(images: int, size: tuple[int, int], classes: int = 3) -> Tensor:
    """Some pixels to ignore in each, and one class that the first image lacks."""
    rng = np.random.default_rng(3)
    maps = rng.integers(0, classes, (images, *size)).astype(np.uint8)
    maps[0][maps[0] == 1] = 0
    maps[rng.random(maps.shape) < 0.2] = IGNORE
    return torch.from_numpy(maps)


@pytest.mark.parametrize(("size", "patch"), DENSE_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_every_second_pixel_of_any_size(kind: str, size: tuple[int, int], patch: tuple[int, int]) -> None:
    head = create(kind, patch)
    logits = head(draw_tokens(head, size, patch))
    assert logits.shape[:2] == (2, 3)
    assert all(side / 2 <= found <= side / 2 + 1.5 for found, side in zip(logits.shape[2:], size, strict=True))
    chances = head.decode(logits, 2.0)
    torch.testing.assert_close(chances, F.softmax(logits / 2, dim=1))
    head.loss(logits, draw_targets(2, size), torch.ones(3)).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_answers_lie_where_their_patches_do(kind: str) -> None:
    """On a grid of 3 x 10, where rows taken for columns would mix left and right."""
    head = create(kind)
    tokens = draw_tokens(head, (48, 160), (16, 16))
    before = head(tokens)
    for layer in tokens.layers:
        layer.unflatten(1, (3, 10))[:, :, :3] += 5 * torch.randn(6, generator=torch.Generator().manual_seed(4))
    moved = (head(tokens) - before).detach().abs().mean(dim=(0, 1, 2))  # by column of 80
    assert float(moved[:16].min()) > 2 * float(moved[40:].max())


def measure_slowly(logits: NDArray[np.float64], truth: NDArray[np.uint8], weights: NDArray[np.float64]) -> float:
    """The loss of one image: logits (C, h, w), truth (h, w)."""
    chances = np.exp(logits) / np.exp(logits).sum(axis=0)
    entropy, pixels, classes = 0.0, 0, len(logits)
    shared, size, answered = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for place in np.ndindex(*truth.shape):
        target = truth[place]
        if target == IGNORE:
            continue
        here = chances[(slice(None), *place)]
        entropy -= weights[target] * np.log(here[target])
        pixels += 1
        shared[target] += here[target]
        size[target] += 1
        answered += here
    if not pixels:
        return 0.0
    dice = [(2 * shared[k] + 1) / (size[k] + answered[k] + 1) for k in range(classes) if size[k]]
    return float(entropy / pixels + 1 - np.mean(dice))


def test_the_loss_is_a_count_pixel_by_pixel_and_adds_up() -> None:
    head, size = create("conv"), (8, 12)
    logits = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(5), requires_grad=True)
    targets, weights = draw_targets(3, size), torch.tensor([1.0, 3.0, 2.0])
    targets[2] = IGNORE
    whole = head.loss(logits, targets, weights)
    slowly = [
        measure_slowly(one.double().detach().numpy(), of.numpy(), weights.double().numpy())
        for one, of in zip(logits, targets, strict=True)
    ]
    assert float(whole.detach()) == pytest.approx(sum(slowly), rel=1e-5)
    parts = [head.loss(logits[k : k + 1], targets[k : k + 1], weights).detach() for k in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole.detach())
    whole.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    ignored = (targets == IGNORE)[:, None].expand_as(logits)
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].abs().min() > 0


def test_the_count_is_of_images_with_a_labelled_pixel() -> None:
    head, targets = create("linear"), draw_targets(3, (8, 8))
    targets[2] = IGNORE
    assert float(head.count(targets, torch.ones(3))) == 2
    nothing = torch.full_like(targets, IGNORE)
    loss = head.loss(torch.zeros(3, 3, 2, 2), nothing, torch.ones(3))
    assert float(loss.detach() / head.count(nothing, torch.ones(3))) == 0


def test_a_rare_class_weighs_more_within_bounds(tmp_path: Path) -> None:
    """Also where the maps are mapped from a file, and where a class does not occur."""
    maps = np.zeros((4, 40, 40), np.uint8)
    maps[:, :10] = 1
    maps[:, 39] = IGNORE
    maps[0, 0, 0] = 3
    np.save(tmp_path / "maps.npy", maps)
    weights = create("conv", classes=5).class_weights(np.load(tmp_path / "maps.npy", mmap_mode="r"))
    assert weights.tolist() == pytest.approx([1, (4640 / 1599) ** 0.25, RAREST, RAREST, RAREST])


def test_layers_are_evenly_spaced_and_end_with_the_last() -> None:
    assert choose_layers(12) == (2, 5, 8, 11)
    assert choose_layers(24) == (5, 11, 17, 23)
    assert choose_layers(6) == (1, 2, 4, 5)
    assert [choose_layers(depth) for depth in (1, 2, 3)] == [(0,), (0, 1), (0, 1, 2)]
    assert create("conv", depth=12).needs == Needs(layers=(2, 5, 8, 11))


def test_its_size_is_the_documented_one() -> None:
    counts = {
        kind: sum(parameter.numel() for parameter in create_head(task, Shape(192), 2).parameters())
        for kind, task in ((kind, SegmentationTask.model_validate({"head": kind})) for kind in KINDS)
    }
    assert counts["linear"] == 4 * 192 * 2 + 2
    assert 0.27e6 < counts["conv"] < 0.30e6


def test_options_choose_the_head_and_its_learning_rate() -> None:
    head = create_head(SegmentationTask.model_validate({"head": "linear", "head_lr": 0.007}), Shape(6), 2)
    assert head.lr == 0.007
    assert not head.solvable
    with pytest.raises(TypeError, match="no task of classification"):
        HEADS["segmentation"].create(CLASSIFICATION, Shape(6), 2)


def test_without_pixels_it_says_so() -> None:
    head: Any = create("conv")
    tokens = draw_tokens(head, (32, 32), (16, 16))
    tokens.pixels = None
    with pytest.raises(ValueError, match="a dense head reads the pixels"):
        head(tokens)
