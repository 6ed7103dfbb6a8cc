"""The loader makes batches ahead: the same ones, errors come out as themselves, and it stops when nobody listens."""

import threading

import numpy as np
import pytest
import torch

from components.data.batches.loading import AHEAD, Samples, StepOrder, create_loader
from components.data.batches.transforms import Augmentation
from components.errors import DomainError

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)


def _samples(recipe: object) -> Samples:
    return Samples(PIXELS, np.arange(40), np.arange(40) % 3, Augmentation(recipe, 0))  # type: ignore[arg-type]


def test_batches_made_ahead_are_those_made_one_by_one() -> None:
    samples = _samples("xray")
    loader = create_loader(samples, 8, order=StepOrder(samples, 8, 1))
    torch.manual_seed(5)
    ahead = [(images, targets, torch.rand(1)) for images, targets in loader]
    torch.manual_seed(5)
    inline = [(images, targets, torch.rand(1)) for images, targets in torch.utils.data.DataLoader.__iter__(loader)]
    assert len(ahead) == 5
    for one, other in zip(ahead, inline, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), "the step's random numbers, too"


def test_an_error_on_the_thread_comes_out_as_itself() -> None:
    crop = {"transform": {"__class_fullname__": "RandomCrop", "height": 16, "width": 16, "p": 1.0}}
    with pytest.raises(DomainError, match="RandomCrop"):
        next(iter(create_loader(_samples(crop), 8)))


def test_no_thread_outlives_a_loop_that_was_left_early() -> None:
    before, made = threading.active_count(), []

    class Counted(Samples):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            made.append(index)
            return super().__getitem__(index)

    samples = _samples("xray")
    batches = iter(create_loader(Counted(samples.pixels, samples.rows, samples.targets, samples.augmentation), 4))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(made) <= 4 * (1 + AHEAD)


@pytest.mark.parametrize(("batch", "steps"), [(7, [7] * 5), (8, [8] * 5), (39, [39]), (64, [40])])
def test_a_last_partial_batch_is_never_trained_on(batch: int, steps: list[int]) -> None:
    """Unless there is no other; and what it would hold changes from epoch to epoch."""
    samples = _samples("none")
    order = StepOrder(samples, batch, 0)
    assert [len(step) for step in order] == steps
    assert len(order) == len(steps)
    seen = set()
    for samples.epoch in range(6):
        seen |= {index for step in order for index in step}
    assert seen == set(range(40))
