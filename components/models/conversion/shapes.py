"""What the shapes of a state dict say of a vision transformer, as arguments of timm's. Imports no torch."""

import math
from collections.abc import Mapping
from typing import Any

from components.errors import BackboneError

Shapes = Mapping[str, tuple[int, ...]]


def read_args(shapes: Shapes, what: str) -> dict[str, Any]:
    """The arguments of timm's VisionTransformer that shapes show. what: the source, for errors.

    Raises BackboneError where they are not those of a vision transformer for RGB images.
    """
    try:
        width, channels, *patch = shapes["patch_embed.proj.weight"]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
        hidden, _ = shapes["blocks.0.mlp.fc1.weight"]
        _ = shapes["blocks.0.attn.qkv.weight"]
    except (KeyError, ValueError) as error:
        found = f"no {error.args[0]}" if isinstance(error, KeyError) else "no blocks, or tensors of another rank"
        raise _refuse(what, "blocks of a vision transformer", found, "Choose a plain vision transformer.") from None
    if channels != 3:
        raise _refuse(what, "a network for 3 channels", f"one for {channels}", "Choose a network for RGB images.")
    args = {
        "embed_dim": width,
        "depth": depth,
        "mlp_ratio": _ratio(hidden, width),
        "patch_size": patch[0] if len(set(patch)) == 1 else tuple(patch),
        "class_token": "cls_token" in shapes,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in shapes else 0,
        "reg_tokens": shapes["reg_token"][1] if "reg_token" in shapes else 0,
        "pre_norm": "norm_pre.weight" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
    }
    return args | _read_positions(shapes, args, patch, what)


def is_gated(shapes: Shapes) -> bool:
    """Whether the MLP is a SwiGLU, whose first layer is twice as wide as what its second reads."""
    return shapes["blocks.0.mlp.fc1.weight"][0] == 2 * shapes["blocks.0.mlp.fc2.weight"][1]


def _ratio(hidden: int, width: int) -> float:
    """The mlp_ratio from which timm computes `hidden`, which it truncates to a whole number."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _read_positions(shapes: Shapes, args: Mapping[str, Any], patch: list[int], what: str) -> dict[str, Any]:
    """Positions are for patches alone (no_embed_class), or for the prefix tokens too; their number says which."""
    if "pos_embed" not in shapes:
        return {"pos_embed": "none", "img_size": None, "no_embed_class": False}
    count, prefix = shapes["pos_embed"][1], int(args["class_token"]) + args["reg_tokens"]
    for before in (0, prefix):
        side = math.isqrt(max(count - before, 0))
        if side and side * side == count - before:
            size = side * patch[0] if len(set(patch)) == 1 else (side * patch[0], side * patch[1])
            return {"pos_embed": "learn", "img_size": size, "no_embed_class": before != prefix}
    raise _refuse(
        what,
        f"positions of a square grid of patches, with or without {prefix} for the other tokens",
        f"pos_embed of {count} positions",
        "Put timm's config.json beside the file, with `architecture` and `model_args: {img_size: [H, W]}`.",
    )


def _refuse(what: str, expected: str, found: str, hint: str) -> BackboneError:
    return BackboneError(f"backbone {what}", expected=expected, found=found, hint=hint)
