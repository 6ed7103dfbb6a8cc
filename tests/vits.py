"""Tiny vision transformers of every kind a tuner must serve, for tests: a row per case, behaviours tested on all."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.domain.canvas import ImgSize
from components.models.backbones import Backbone, hash_tensors
from components.models.heads import Head
from components.models.plain import require_plain_vit
from components.models.tokens import Tokens, join_mean
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

#: A pooled feature that is none of timm's own.
JOINED: dict[str, dict[str, Any]] = {
    "the mean joined to the class token": {"reg_tokens": 1, "feature": "token+mean"},
}

#: What timm's `Eva` adds, one row for every kind of published weights.
DINOV3 = {
    "num_reg_tokens": 2,
    "use_abs_pos_emb": False,
    "use_rot_pos_emb": True,
    "rope_type": "dinov3",
    "rope_rotate_half": True,
    "rope_rescale_coords": 2,
    "init_values": 0.3,
    "use_fc_norm": False,
    "dynamic_img_size": True,
}
AXIAL = {"attn_type": "rope", "global_pool": "token", "use_rot_pos_emb": True, "use_fc_norm": False}
EVAS: dict[str, dict[str, Any]] = {
    "EVA": {},
    "EVA02, tiny and small": {"use_rot_pos_emb": True, "ref_feat_shape": (2, 2), "swiglu_mlp": True},
    "EVA02": {
        "qkv_fused": False,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (2, 2),
        "swiglu_mlp": True,
        "scale_mlp": True,
    },
    "EVA02-CLIP": {
        "qkv_fused": False,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (2, 2),
        "swiglu_mlp": True,
        "scale_mlp": True,
        "scale_attn_inner": True,
        "global_pool": "token",
    },
    "DINOv3": {**DINOV3, "qkv_bias": False},
    "DINOv3 plus": {**DINOV3, "qkv_bias": False, "swiglu_mlp": True, "swiglu_align_to": 8},
    "DINOv3 with biases, on a wide grid": {**DINOV3, "img_size": (32, 64)},
    "LingBot": {**DINOV3, "global_pool": "token"},
    "RoPE": {**AXIAL, "rope_grid_indexing": "xy", "use_abs_pos_emb": False, "init_values": 0.3},
    "RoPE with positions": {**AXIAL, "rope_grid_indexing": "xy", "no_embed_class": True, "init_values": 0.3},
    "RoPE by head, on a tall grid": {
        **AXIAL,
        "rope_type": "mixed",
        "use_abs_pos_emb": False,
        "init_values": 0.3,
        "img_size": (64, 32),
    },
    "RoPE by head with positions": {**AXIAL, "rope_type": "mixed", "no_embed_class": True, "init_values": 0.3},
    "RoPE, no class token": {
        "class_token": False,
        "num_reg_tokens": 1,
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "init_values": 0.3,
    },
    "Perception Encoder": {
        **AXIAL,
        "global_pool": "map",
        "rope_grid_offset": 1.0,
        "rope_grid_indexing": "xy",
        "use_pre_transformer_norm": True,
        "use_post_transformer_norm": True,
    },
    "Perception Encoder, no class token": {
        **AXIAL,
        "class_token": False,
        "global_pool": "avg",
        "use_pre_transformer_norm": True,
        "use_post_transformer_norm": False,
        "init_values": 0.3,
    },
    "Sapiens2": {
        **DINOV3,
        "attn_type": "rope",
        "global_pool": "token",
        "qkv_fused": False,
        "num_kv_heads": (4, 2, 4),
        "num_heads": 4,
        "embed_dim": 32,
        "qk_norm": True,
        "attn_only_layer_scale": True,
        "swiglu_mlp": True,
        "norm_layer": "rmsnorm",
    },
    "GenLIP": {
        "use_rot_pos_emb": True,
        "rope_type": "mrope",
        "use_abs_pos_emb": False,
        "rope_mrope_section": (2, 2, 2),
    },
}
EVAS = {name: {"class": "Eva", **options} for name, options in EVAS.items()}


def create_vit(options: Mapping[str, Any] = {}) -> Any:
    """A frozen ViT of 3 blocks, width 24; the same numbers at every call, all parameters away from zero.

    options: of timm's `VisionTransformer`, or of its `Eva` where `class` says so; `feature` as a description says it.
    """
    from timm.layers import get_norm_layer
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    base = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    given = {**base, **options}
    feature = given.pop("feature", "own")
    network = Eva if given.pop("class", "") == "Eva" else VisionTransformer
    if isinstance(given.get("norm_layer"), str):
        given["norm_layer"] = get_norm_layer(given["norm_layer"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vit = network(**given)
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    if feature == "token+mean":
        join_mean(vit)
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
