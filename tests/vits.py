"""Tiny plain ViTs of every kind a tuner must serve, for tests: a case is a row, behaviours are tested on all."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.domain.canvas import ImgSize
from components.models.backbones import Backbone, hash_tensors
from components.models.heads import Head
from components.models.plain import require_plain_vit
from components.models.tokens import Tokens
from components.records.boxes import NONE
from components.records.maps import IGNORE
from components.tasks import Task

#: Height and width of pictures, and of a patch, at which dense heads are tested.
DENSE_SIZES = [
    ((32, 32), (16, 16)),
    ((48, 80), (16, 16)),
    ((42, 70), (14, 14)),
    ((64, 48), (8, 16)),
    ((64, 64), (32, 32)),
]

VITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide grid": {"img_size": (32, 64)},
    "tall grid, uneven patches": {"img_size": (64, 48), "patch_size": (8, 16)},
    "registers": {"reg_tokens": 4},
    "registers, no position for prefix": {"reg_tokens": 2, "no_embed_class": True},
    "mean pooling": {"global_pool": "avg"},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "no class token, but registers": {"class_token": False, "reg_tokens": 3, "global_pool": "avg"},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "layer scale": {"init_values": 0.1},
    "norm before the blocks": {"pre_norm": True},
    "no positions": {"pos_embed": "none"},
    "any image size": {"dynamic_img_size": True},
    "normalised queries and keys": {"qk_norm": True},
}


def create_vit(options: Mapping[str, Any] = {}) -> Any:
    """A frozen ViT of 3 blocks, width 24; the same numbers at every call, all parameters away from zero."""
    from timm.models.vision_transformer import VisionTransformer

    base = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vit = VisionTransformer(**{**base, **options})
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    require_plain_vit(vit, "tiny")
    return vit.requires_grad_(False).eval()


def create_images(vit: Any, count: int = 2) -> torch.Tensor:
    """Normalised images of the size the ViT is made for."""
    height, width = vit.patch_embed.img_size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(9))


def create_backbone(options: Mapping[str, Any] = {}) -> Backbone:
    vit = create_vit(options)
    half = (0.5, 0.5, 0.5)
    size = ImgSize.of(vit.patch_embed.img_size)
    return Backbone("tiny", vit, hash_tensors(vit.state_dict()), size, half, half, trained=False, licence="CC0-1.0")


def create_targets(task: Task, classes: NDArray[np.int64], side: int = 32) -> NDArray[Any]:
    """What the task's head learns of images that show one class of three each; in a class map or a box, in their
    middle. Every eighth image of boxes has one of more, to ignore."""
    if task.annotation == "label":
        return classes
    if task.annotation == "labels":
        return np.eye(3, dtype=np.float32)[classes]
    if task.annotation == "boxes":
        boxes = np.full((len(classes), 2, 6), NONE, np.float32)
        boxes[:, 0, :4], boxes[:, 0, 4], boxes[:, 0, 5] = (side / 4, side / 4, side * 3 / 4, side * 3 / 4), classes, 0
        boxes[::8, 1] = (0, 0, side / 4, side / 4, 1, 2)
        return boxes
    maps = np.zeros((len(classes), side, side), np.uint8)
    middle = slice(side // 4, -side // 4)
    maps[:, middle, middle] = classes[:, None, None]
    maps[:, : side // 8] = IGNORE
    return maps


def unsettle(head: Head) -> None:
    """Move a fresh head's weights away from zero, so that its answers differ."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)


def draw_tokens(head: Head, size: tuple[int, int], patch: tuple[int, int], images: int = 2) -> Tokens:
    """What an encoder of six channels might give a dense head, with the pixels."""
    grid = (size[0] // patch[0], size[1] // patch[1])
    generator = torch.Generator().manual_seed(2)
    layers = [torch.randn(images, grid[0] * grid[1], 6, generator=generator) for _ in head.needs.layers]
    tokens = Tokens(grid, layers=tuple(layers))
    tokens.pixels = torch.randn(images, 3, *size, generator=generator)
    return tokens
