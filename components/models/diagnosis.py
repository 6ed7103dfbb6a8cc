"""Why the tensors of a file do not fit a network: which tensor, and which of `model_args` would make it fit.

A file shows nearly all of its network: names and shapes of its tensors against those of the network that was asked for.
Only `num_heads` and activations leave no trace.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from components.errors import BackboneError

PATCHES, LENGTH = "patch_embed.proj.weight", "pos_embed"
FC1, FC2 = "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"
MOST = 3  # names that a message lists


class Finding(NamedTuple):
    """One tensor that speaks against the network, and what of `model_args` it asks for."""

    found: str
    argument: str
    value: Any


class Trace(NamedTuple):
    """A tensor that an argument makes: the argument's value where the file has the tensor, and where it has not.

    None: no value takes back what the architecture itself has.
    """

    tensor: str
    argument: str
    there: Any
    absent: Any


_SHARED = (
    Trace("cls_token", "class_token", True, False),
    Trace("blocks.0.attn.q_norm.weight", "qk_norm", True, False),
    Trace("attn_pool.latent", "global_pool", "map", "token"),
    Trace("fc_norm.weight", "global_pool", "avg", "token"),
)
TRACES: dict[str, tuple[Trace, ...]] = {
    "VisionTransformer": (
        *_SHARED,
        Trace("blocks.0.ls1.gamma", "init_values", 1e-5, 0),
        Trace("blocks.0.attn.qkv.bias", "qkv_bias", True, False),
        Trace("blocks.0.attn.proj.bias", "proj_bias", True, False),
        Trace("blocks.0.attn.norm.weight", "scale_attn_norm", True, False),
        Trace("blocks.0.mlp.norm.weight", "scale_mlp_norm", True, False),
        Trace("norm_pre.weight", "pre_norm", True, False),
        Trace(LENGTH, "pos_embed", "learn", "none"),
    ),
    "Eva": (
        *_SHARED,
        Trace("blocks.0.gamma_1", "init_values", 1e-5, None),
        Trace("blocks.0.attn.q_bias", "qkv_bias", True, False),
        Trace("blocks.0.attn.q_proj.weight", "qkv_fused", False, True),
        Trace("blocks.0.attn.norm.weight", "scale_attn_inner", True, False),
        Trace("blocks.0.mlp.norm.weight", "scale_mlp", True, False),
        Trace("norm_pre.weight", "use_pre_transformer_norm", True, False),
        Trace(LENGTH, "use_abs_pos_emb", True, False),
        Trace("rope.freqs", "rope_type", "mixed", "cat"),
    ),
}


def explain_misfit(
    what: str, tensors: Mapping[str, Tensor], network: Any, error: Exception, where: str
) -> BackboneError:
    """The error that names tensors and arguments.

    network: the one that was asked for, without memory for its weights. error: timm's own. where: the place of
    `model_args`, for the hint.
    """
    architecture = name_architecture(network)
    if foreign := _recognise_names(tensors):
        hint = f"Run `tessera backbone add {what}`, which converts the names of known forms once."
        return BackboneError(f"backbone {what}", expected=f"the tensors of {architecture}", found=foreign, hint=hint)
    findings = list(find_misfits(tensors, network))
    if findings:
        return refuse_findings(what, architecture, findings, where)
    return BackboneError(
        f"backbone {what}",
        expected=f"the tensors of {architecture}",
        found=_compare(tensors, network) or " ".join(str(error).split())[:300],
        hint=f"Correct the architecture or model_args in {where}.",
    )


def refuse_findings(what: str, architecture: str, findings: list[Finding], where: str) -> BackboneError:
    """All that was found, and the arguments that answer it as one line of JSON."""
    args = {finding.argument: finding.value for finding in findings if finding.value is not None}
    heads = " `num_heads` leaves no trace in a file: state it too." if "embed_dim" in args else ""
    hint = f"Give these model_args in {where}: {json.dumps(args)}.{heads}"
    if len(args) < len({finding.argument for finding in findings}):
        hint = f"Correct the architecture in {where}."
    return BackboneError(
        f"backbone {what}",
        expected=f"the tensors of {architecture}",
        found="; ".join(finding.found for finding in findings),
        hint=hint,
    )


def refuse_missing(what: str, network: Any, missing: list[str], where: str) -> BackboneError:
    """Tensors that the file lacks, where timm says nothing of it."""
    return BackboneError(
        f"backbone {what}",
        expected=f"the tensors of {name_architecture(network)}",
        found=f"no {', '.join(missing[:MOST])}{_more(missing)}",
        hint=f"Correct the architecture or model_args in {where}.",
    )


def find_misfits(tensors: Mapping[str, Tensor], network: Any) -> Iterator[Finding]:
    """Whatever of the tensors an argument would explain."""
    own = network.state_dict()
    yield from find_patch_size(tensors, network)
    yield from _find_depth(tensors, network)
    if PATCHES in tensors and tensors[PATCHES].shape[0] != network.embed_dim:
        width = tensors[PATCHES].shape[0]
        yield Finding(f"{PATCHES} of {width} channels, where embed_dim is {network.embed_dim}", "embed_dim", width)
    yield from _find_registers(tensors, network)
    for trace in TRACES[type(network).__name__]:
        if (trace.tensor in tensors) != (trace.tensor in own):
            there = trace.tensor in tensors
            found = f"{trace.tensor}, which {trace.argument} makes" if there else f"no {trace.tensor}"
            yield Finding(found, trace.argument, trace.there if there else trace.absent)
    yield from _find_mlp(tensors, network, own)
    yield from _find_positions(tensors, network)


def find_patch_size(tensors: Mapping[str, Tensor], network: Any) -> Iterator[Finding]:
    """timm resamples patches of another size without a word; here it is an error."""
    kernel = tensors.get(PATCHES)
    wanted = tuple(network.patch_embed.patch_size)
    if kernel is not None and kernel.ndim == 4 and tuple(kernel.shape[-2:]) != wanted:
        height, width = kernel.shape[-2:]
        size = height if height == width else [height, width]
        yield Finding(f"{PATCHES} of {height} x {width} pixels, where patch_size is {wanted[0]}", "patch_size", size)


def _find_depth(tensors: Mapping[str, Tensor], network: Any) -> Iterator[Finding]:
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if depth and depth != len(network.blocks):
        yield Finding(f"{depth} blocks, where depth is {len(network.blocks)}", "depth", depth)


def _find_registers(tensors: Mapping[str, Tensor], network: Any) -> Iterator[Finding]:
    argument = "reg_tokens" if type(network).__name__ == "VisionTransformer" else "num_reg_tokens"
    count = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    own = 0 if network.reg_token is None else network.reg_token.shape[1]
    if count != own:
        found = f"reg_token of {count} tokens" if count else "no reg_token"
        yield Finding(f"{found}, where {argument} is {own}", argument, count)


def _find_mlp(tensors: Mapping[str, Tensor], network: Any, own: Mapping[str, Tensor]) -> Iterator[Finding]:
    """SwiGLU packed makes the outputs of fc1 twice the inputs of fc2; mlp_ratio is of the outputs of fc1."""
    if not {FC1, FC2} <= tensors.keys() & own.keys():
        return
    plain = type(network).__name__ == "VisionTransformer"
    (out, width), inner = tensors[FC1].shape, tensors[FC2].shape[1]
    own_out, own_width = own[FC1].shape
    gated, own_gated = out == 2 * inner, own_out == 2 * own[FC2].shape[1]
    shapes = f"{FC1} of {out} outputs and fc2 of {inner} inputs"
    if gated != own_gated and plain:
        yield Finding(
            f"{shapes}: {'SwiGLU, packed' if gated else 'no SwiGLU'}", "mlp_layer", "SwiGLUPacked" if gated else "Mlp"
        )
        yield Finding(f"its activation {'SiLU' if gated else 'GELU'}", "act_layer", "SiLU" if gated else "GELU")
    elif gated != own_gated:
        yield Finding(f"{shapes}: {'SwiGLU' if gated else 'no SwiGLU'}", "swiglu_mlp", gated)
    found, wanted = (out / width, own_out / own_width) if plain else (inner / width, own[FC2].shape[1] / own_width)
    if abs(found - wanted) * width >= 1:
        yield Finding(f"{shapes}, where mlp_ratio is {wanted:g}", "mlp_ratio", _round_up(found, width))


def _round_up(ratio: float, width: int) -> float:
    """A short number of which timm's int(width * number) is what it was."""
    short = round(ratio, 5)
    return short if int(width * short) == round(width * ratio) else math.ceil(ratio * 1e5) / 1e5


def _find_positions(tensors: Mapping[str, Tensor], network: Any) -> Iterator[Finding]:
    """Whether class and register tokens have positions of their own, by which count makes a square."""
    if LENGTH not in tensors or tensors[LENGTH].ndim != 3 or network.pos_embed is None:
        return
    count = tensors[LENGTH].shape[1]
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    prefix = registers + ("cls_token" in tensors)
    alone, behind = _is_square(count), _is_square(count - prefix)
    if alone != behind and prefix and network.no_embed_class != alone:
        grid = math.isqrt(count if alone else count - prefix)
        what = f"{grid} x {grid} patches" + ("" if alone else f" and {prefix} for class and register tokens")
        yield Finding(f"{LENGTH} of {count} positions, {what}", "no_embed_class", alone)


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _recognise_names(tensors: Mapping[str, Tensor]) -> str:
    """'' unless the names are those of another library."""
    if PATCHES in tensors:
        return ""
    if any("encoder.layer." in name or "embeddings.patch_embeddings" in name for name in tensors):
        return "names of Hugging Face's library transformers, as `encoder.layer.0`"
    if prefixed := [name for name in tensors if name.endswith(f".{PATCHES}")]:
        return f"names that begin with {prefixed[0].removesuffix(PATCHES)!r}"
    return ""


def _compare(tensors: Mapping[str, Tensor], network: Any) -> str:
    own = network.state_dict()
    shapes = [
        f"{name} of shape {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys() - {LENGTH})
        if tensors[name].shape != own[name].shape
    ]
    parts = (("no", sorted(own.keys() - tensors.keys())), ("also", sorted(tensors.keys() - own.keys())), ("", shapes))
    said = [f"{word} {', '.join(names[:MOST])}{_more(names)}".strip() for word, names in parts if names]
    return "; ".join(said)


def _more(names: list[str]) -> str:
    return f" and {len(names) - MOST} more" if len(names) > MOST else ""


def name_architecture(network: Any) -> str:
    """`timm's vit_large_patch16_224`."""
    config = network.pretrained_cfg
    return f"timm's {config['architecture'] if isinstance(config, dict) else config.architecture}"
