"""Which network a state dict belongs to: a timm architecture, and the arguments in which it differs from it.

Shapes say almost everything: patch size, width, depth, MLP, LayerScale, registers, positions. They do not say the
number of heads, the activation, or how pixels are normalised: those come from a config.json, from the architecture
that a person names, or from the published network of the same width and depth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.errors import BackboneError
from components.models.construction import create_skeleton
from components.models.conversion.shapes import Shapes, is_gated, read_args
from components.models.descriptions import Description

#: Width and depth of published networks -> the word for it in timm's names.
SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
#: Heads where width / 64 is wrong: of the published networks of this width (ViT-H, ViT-g, ViT-G, Virchow2).
HEADS = {1280: 16, 1408: 16, 1664: 16}


@dataclass(frozen=True)
class Told:
    """What is known of a network beside its shapes. architecture: '' where nobody named one."""

    architecture: str = ""
    num_heads: int | None = None
    act_layer: str = ""


@dataclass(frozen=True)
class Network:
    """A timm architecture and its arguments. guessed: sentences on what neither shapes nor a config.json say."""

    architecture: str
    model_args: dict[str, Any]
    guessed: tuple[str, ...] = ()


def recognise(shapes: Shapes, told: Told, what: str) -> Network:
    """The network whose tensors have exactly these names and shapes. what: the source, for errors.

    Raises BackboneError for shapes of no vision transformer, tensors that the network does not have or that it lacks,
    and forms that need an architecture to be named.
    """
    if told.architecture:
        base = told.architecture
    else:
        _require_common(shapes, what)
        base = _choose(read_args(shapes, what), is_gated(shapes))
    skeleton = create_skeleton(what, Description(architecture=base))
    if type(skeleton).__name__ != "VisionTransformer":  # Eva has other names, which loading checks
        return Network(base, {})
    own = read_args(shapes, what)
    theirs = read_args({name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}, what)
    args = {key: value for key, value in own.items() if theirs[key] != value}
    heads, guessed = _count_heads(own["embed_dim"], skeleton, told, what)
    if heads != skeleton.blocks[0].attn.num_heads:
        args["num_heads"] = heads
    if told.act_layer:
        args["act_layer"] = told.act_layer
    if not told.architecture:
        guessed = (f"Architecture {base}: by the shapes of its tensors.", *guessed)
    network = Network(base, dict(sorted(args.items())), guessed)
    require_fit(network, shapes, what)
    return network


def require_fit(network: Network, shapes: Shapes, what: str) -> None:
    """Raise BackboneError unless the network has exactly these tensors."""
    said = Description(architecture=network.architecture, model_args=network.model_args)
    skeleton = create_skeleton(what, said)
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    strange = [f"{name} {list(shapes[name])}, which it does not have" for name in shapes.keys() - expected.keys()]
    lost = [f"no {name} {list(expected[name])}" for name in expected.keys() - shapes.keys()]
    other = [
        f"{name} {list(shapes[name])} instead of {list(expected[name])}"
        for name in shapes.keys() & expected.keys()
        if shapes[name] != expected[name]
    ]
    if trouble := [*sorted(strange), *sorted(lost), *sorted(other)]:
        more = f" and {len(trouble) - 3} more" if len(trouble) > 3 else ""
        raise BackboneError(
            f"backbone {what}",
            expected=f"the tensors of timm's {network.architecture} with {network.model_args}",
            found="; ".join(trouble[:3]) + more,
            hint="Name the right one with --architecture, or put timm's config.json beside the file, with "
            "`architecture` and `model_args`.",
        )


def _require_common(shapes: Shapes, what: str) -> None:
    """Raise BackboneError for forms that timm has with several activations or poolings, which shapes do not show."""
    signs = {
        "norm_pre.weight": "a norm before the blocks (CLIP)",
        "blocks.0.attn.q_norm.weight": "normalised queries and keys",
        "attn_pool.latent": "attention pooling (SigLIP)",
        "fc_norm.weight": "a norm after pooling",
    }
    odd = [text for name, text in signs.items() if name in shapes]
    if "cls_token" not in shapes:
        odd.append("no class token")
    if odd:
        raise BackboneError(
            f"backbone {what}",
            expected="a network that its shapes say all of",
            found=f"{', '.join(odd)}, which timm has with several activations and poolings",
            hint="Name its architecture, for example `--architecture vit_base_patch16_clip_224`.",
        )


def _choose(own: Mapping[str, Any], gated: bool) -> str:
    """The timm architecture that comes nearest, so that few arguments differ."""
    import timm

    registers = "reg4_" if own["reg_tokens"] else ""
    if gated:
        return f"vit_giant_patch14_{registers}dinov2"  # the only plain networks of timm with a SwiGLU
    size, patch = SIZES.get((own["embed_dim"], own["depth"]), "base"), own["patch_size"]
    names = [f"vit_{size}_patch{patch}_{side}" for side in (224, 384)]
    if own["init_values"] and patch == 14:
        names = [f"vit_{size}_patch14_{registers}dinov2", *names]
    return next((name for name in names if timm.is_model(name)), f"vit_{size}_patch16_224")


def _count_heads(width: int, base: Any, told: Told, what: str) -> tuple[int, tuple[str, ...]]:
    """The number of heads, and a sentence where it was guessed."""
    if told.num_heads is not None:
        return told.num_heads, ()
    if base.embed_dim == width:
        return base.blocks[0].attn.num_heads, ()
    if width % 64 and width not in HEADS:
        raise BackboneError(
            f"backbone {what}",
            expected="a number of heads",
            found=f"none said, and a width of {width}, which is no multiple of 64",
            hint="Put timm's config.json beside the file, with `architecture` and `model_args: {num_heads: N}`.",
        )
    heads = HEADS.get(width, width // 64)
    return heads, (f"{heads} heads: as published networks of width {width} have.",)
