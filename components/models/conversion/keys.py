"""Names of tensors in checkpoints of other projects, translated to timm's.

    network = find_network(tensors)       which of the tensors are one vision transformer, and in whose names
    translated = translate(tensors)       the same tensors as timm names them, and what was left out

Known names: timm's, those of the DINOv2 repository, and those of transformers (`Dinov2Model`,
`Dinov2WithRegistersModel`, `ViTModel`, as files and as the modules of its version 5), below any prefix such as
`teacher.backbone.` or `module.`. A tensor of the network that no rule explains is an error: nothing is left out
in silence.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.errors import BackboneError

Form = Literal["timm", "dinov2", "transformers"]

#: The patch projection, which every vision transformer has: its name says whose names these are.
ANCHORS: Mapping[str, Form] = {
    "patch_embed.proj.weight": "timm",
    "embeddings.patch_embeddings.projection.weight": "transformers",
}
#: Of two networks in one checkpoint, the average of many steps is the one that its authors evaluate.
AVERAGED = re.compile(r"(^|[._])(teacher|ema|momentum|target)([._]|$)")
#: What is beside the network under its own prefix: heads, and tokens that only pretraining needs.
BESIDE = re.compile(
    r"^(head|heads|head_dist|fc|classifier|pre_logits|pooler|projector|projection_head|predictor|dino_head|ibot_head"
    r"|decoder(_\w+)?|mask_token|embeddings\.mask_token|embeddings\.position_ids)(\.|$)"
)

_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
#: Parts of a block. Several names of one part: files on the hub, then modules of transformers 5.
_PARTS = {
    "attention.attention.query": "attn.0",
    "attention.attention.key": "attn.1",
    "attention.attention.value": "attn.2",
    "attention.q_proj": "attn.0",
    "attention.k_proj": "attn.1",
    "attention.v_proj": "attn.2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.gate_proj": "gate.0",
    "mlp.up_proj": "gate.1",
    "mlp.down_proj": "mlp.fc2",
}
#: Tensors that timm keeps as one, joined in the order of their numbers.
_JOINED = {"attn": ("attn.qkv", 3), "gate": ("mlp.fc1", 2)}
_BLOCK = re.compile(r"^(?:encoder\.layer|layers)\.(\d+)\.(.+)$")
_PIECE = re.compile(r"^(blocks\.\d+)\.(attn|gate)\.(\d)\.(weight|bias)$")
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")


@dataclass(frozen=True)
class Found:
    """Where in a checkpoint the network is: below `prefix`, in the names of `form`."""

    prefix: str
    form: Form


@dataclass(frozen=True)
class Translated:
    """The network's tensors in timm's names. left_out: group of tensors that are not the network's -> how many."""

    tensors: dict[str, Tensor]
    found: Found
    left_out: dict[str, int]


def find_network(names: Iterable[str], what: str) -> Found:
    """The one vision transformer among these tensors. what: the source, for errors.

    Raises BackboneError where there is none, or several of which none is called teacher, ema, momentum or target.
    """
    names = list(names)
    found = [
        Found(name.removesuffix(anchor), form)
        for anchor, form in ANCHORS.items()
        for name in names
        if name == anchor or name.endswith(f".{anchor}")
    ]
    averaged = [each for each in found if AVERAGED.search(each.prefix)]
    chosen = averaged if len(found) > 1 else found
    if len(chosen) != 1:
        prefixes = ", ".join(sorted(each.prefix or "(none)" for each in chosen or found))
        raise BackboneError(
            f"backbone {what}",
            expected=f"one vision transformer, which has a tensor called {' or '.join(ANCHORS)}",
            found=f"{len(found)} of them, below the prefixes {prefixes}" if found else _list_names(names),
            hint="Save the tensors of the one that you mean to a file of its own."
            if found
            else "Choose a vision transformer; CLIP, ConvNeXt, Swin and other networks have other tensors.",
        )
    own = {name.removeprefix(chosen[0].prefix) for name in names if name.startswith(chosen[0].prefix)}
    if chosen[0].form == "timm" and any(name == "register_tokens" or ".mlp.w12." in name for name in own):
        return Found(chosen[0].prefix, "dinov2")
    return chosen[0]


def translate(tensors: Mapping[str, Tensor], what: str, *, as_is: bool = False) -> Translated:
    """The network's tensors as timm names and shapes them. what: the source, for errors.

    as_is: the file says that it is in timm's form: only its classifier is left out, so that its hash is the one that
    adapters record which were trained on the file itself. A prefix before all names is taken off even so.

    Raises BackboneError for a tensor below the network's prefix that is neither its own nor a known head.
    """
    if as_is and not any(name.endswith(f".{anchor}") for name in tensors for anchor in ANCHORS):
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
        heads = len(tensors) - len(own)
        return Translated(own, Found("", "timm"), {"head": heads} if heads else {})
    found = find_network(tensors, what)
    left_out: Counter[str] = Counter()
    own = {}
    for name, tensor in tensors.items():
        if not name.startswith(found.prefix):
            left_out[_group(name, found.prefix)] += 1
        elif beside := BESIDE.match(short := name.removeprefix(found.prefix)):
            left_out[found.prefix + beside[1]] += 1
        else:
            own[short] = tensor
    rename = _of_transformers if found.form == "transformers" else _of_dinov2
    renamed = {rename(name, what): tensor for name, tensor in own.items()}
    return Translated(_fold_registers(_join(renamed, what)), found, dict(sorted(left_out.items())))


def _group(name: str, prefix: str) -> str:
    """The part of a name up to where it parts from the network's prefix: `student` for `teacher.backbone.`."""
    words, path = name.split("."), prefix.split(".")
    shared = next((place for place, (a, b) in enumerate(zip(words, path, strict=False)) if a != b), 0)
    return ".".join(words[: shared + 1])


def _of_transformers(name: str, what: str) -> str:
    block = _BLOCK.match(name)
    table, before, rest = (_PARTS, f"blocks.{block[1]}.", block[2]) if block else (_TOP, "", name)
    if rest in table:
        return before + table[rest]
    stem, _, kind = rest.rpartition(".")
    if stem in table and kind in ("weight", "bias"):
        return f"{before}{table[stem]}.{kind}"
    raise _unexplained(what, name)


def _of_dinov2(name: str, _: str) -> str:
    """Names of the DINOv2 repository are timm's except for the SwiGLU; its training divides blocks into chunks."""
    name = _CHUNKED.sub(r"blocks.\1.", name)
    return name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")


def _join(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Queries, keys and values as one tensor, and so the two halves of a SwiGLU, the gate first."""
    joined: dict[str, Tensor] = {}
    pieces: dict[tuple[str, str, str], dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if piece := _PIECE.match(name):
            pieces.setdefault((piece[1], piece[2], piece[4]), {})[int(piece[3])] = tensor
        else:
            joined[name] = tensor
    for (block, part, kind), parts in pieces.items():
        target, expected = _JOINED[part]
        if len(parts) != expected:
            found = f"{len(parts)} of the {expected} parts of {block}.{target}.{kind}"
            hint = "Copy or download the file again; networks that have some of these tensors only are not supported."
            raise BackboneError(f"backbone {what}", expected="all parts of a joined tensor", found=found, hint=hint)
        joined[f"{block}.{target}.{kind}"] = torch.cat([parts[number] for number in range(expected)])
    return joined


def _fold_registers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 with registers gives a position to the class token alone, timm to none of them: it is added beforehand."""
    if "register_tokens" not in tensors:
        return tensors
    folded = {name: tensor for name, tensor in tensors.items() if name != "register_tokens"}
    folded["reg_token"] = tensors["register_tokens"]
    position = tensors["pos_embed"]
    folded["cls_token"] = (tensors["cls_token"].float() + position[:, :1].float()).to(_exact(position.dtype))
    folded["pos_embed"] = position[:, 1:]
    return folded


def _exact(dtype: torch.dtype) -> torch.dtype:
    """A sum of two half-precision numbers is kept in single precision, so that nothing is rounded."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def _list_names(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:4])
    return f"{len(names)} tensors, such as {shown}" if names else "no tensor"


def _unexplained(what: str, name: str) -> BackboneError:
    return BackboneError(
        f"backbone {what}",
        expected="tensors that the vision transformers of timm, transformers and DINOv2 have",
        found=f"{name}, which none of them has",
        hint="Convert it with the project that made it, or save the tensors of the plain network alone.",
    )
