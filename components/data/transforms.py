"""Augmentation: albumentations presets whose randomness is a function of (seed, epoch, index) alone.

Hence the same picture comes out for any number of data workers and after a resume. albumentations'
own seeding repeats one stream in every worker, and `Compose(seed=)` gives every transform the same
stream (2.0.8), so each sample sets fresh generators.
"""

import random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Preset = Literal["none", "industrial", "pathology", "xray"]


class Augmentation:
    """`augment(image, epoch, index)`: (H, W, 3) uint8 in, the same shape out."""

    def __init__(self, preset: Preset, seed: int) -> None:
        self.seed = seed
        self.pipeline = create_pipeline(preset)

    def __call__(self, image: Image, epoch: int, index: int) -> Image:
        if self.pipeline is None:
            return image
        state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(2)
        self.pipeline.set_random_state(np.random.default_rng(int(state[0])), random.Random(int(state[1])))
        augmented: Image = self.pipeline(image=image)["image"]
        return augmented


def create_pipeline(preset: Preset) -> Any:
    """An albumentations Compose, or None for `none`. What a preset may do follows from what is harmless there."""
    if preset == "none":
        return None
    import albumentations as A  # noqa: N812  seconds to import

    turns = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.RandomRotate90(p=0.5)]
    shift = A.Affine(scale=(0.9, 1.1), translate_percent=(-0.06, 0.06), rotate=(-10, 10), border_mode=4, p=0.7)
    light = A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.7)
    noise = A.GaussNoise(std_range=(0.005, 0.03), p=0.3)
    table = {
        # A part lies any way round under a lamp that ages; the camera adds noise.
        "industrial": [*turns, shift, light, noise],
        # A section has no up; stain strength differs between laboratories.
        "pathology": [*turns, shift, A.HEStain(method="random_preset", p=0.5), light],
        # A body has an up and a left: no flips.
        "xray": [shift, light, noise],
    }
    return A.Compose(table[preset])
