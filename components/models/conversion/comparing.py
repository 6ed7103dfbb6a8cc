"""A converted network beside the original on a test picture, where the original can be run here."""

import json
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from components.errors import BackboneError
from components.models.arguments import read_arguments
from components.models.construction import create_skeleton
from components.models.conversion.keys import BESIDE, Found
from components.models.descriptions import Description
from components.records.backbones import Compared

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

#: Most by which a feature may differ, in units of the largest: float32 through forty blocks stays below, a wrong key,
#: activation or order of tokens is far above.
BOUND = 1e-4
MASK = "mask_token"
Forward = Callable[[Tensor], Tensor]  # pictures (B, 3, height, width) to tokens (B, N, D)
#: Classes of transformers whose last hidden states are the tokens that timm's network puts out.
CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "vit": "ViTModel",
}


def compare(
    vit: "VisionTransformer",
    tensors: Mapping[str, Tensor],
    found: Found,
    config: Mapping[str, Any] | None,
    said: Description,
    what: str,
) -> Compared:
    """The largest difference of the final tokens of two test pictures.

    vit: the converted network, loaded from what was written, at the size of its own positions. tensors: those of the
    original, under their own names. config: config.json of transformers. said: what was written, for originals that
    timm runs. Raises BackboneError where the two differ by more than float32 explains.
    """
    start = len(found.prefix)
    own = {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(found.prefix)}
    try:
        if found.form == "transformers":
            if reason := _why_not_run(config):
                return Compared(original="", reason=reason)
            name, original = f"transformers {version('transformers')}", _create_transformers(own, config or {}, what)
        else:
            name, original = f"timm {version('timm')}", _create_timm(vit, own, found, said, what)
    except (RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())[:160]
        return Compared(original="", reason=f"its own library does not load it ({text})")
    with torch.inference_mode():
        pictures = draw_pictures(vit.patch_embed.img_size)
        theirs, ours = original(pictures), vit.forward_features(pictures)
    scale = max(1.0, float(theirs.abs().max()))
    difference = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
    if not difference <= BOUND * scale:
        raise BackboneError(
            f"backbone {what}",
            expected=f"features equal to those of the original, run by {name}",
            found=f"a difference of {difference:.2g}, where the largest is {scale:.2g}",
            hint="Nothing was written. Name the right architecture with --architecture; if config.json is the file's "
            "own, this form is not supported.",
        )
    return Compared(original=name, difference=difference)


def draw_pictures(size: tuple[int, int]) -> Tensor:
    """Two normalised pictures (2, 3, height, width), the same on every machine: waves, and noise."""
    height, width = size
    down, across = torch.meshgrid(torch.linspace(-3, 3, height), torch.linspace(-3, 3, width), indexing="ij")
    waves = torch.stack([(3 * across).sin(), (2 * down + across).cos(), (across * down).sin()])
    return torch.stack([waves, torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))])


def _why_not_run(config: Mapping[str, Any] | None) -> str:
    """Why the original in transformers cannot be run here; '' if it can."""
    if config is None:
        return "no config.json is beside the file"
    if config.get("model_type") not in CLASSES:
        return f"transformers' model_type {config.get('model_type')!r} is not one that is compared"
    return "" if find_spec("transformers") else "transformers is not installed"


def _create_transformers(own: Mapping[str, Tensor], config: Mapping[str, Any], what: str) -> Forward:
    """The original as transformers itself loads it from a folder."""
    import transformers
    from safetensors.torch import save_file

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    name = CLASSES[config["model_type"]]
    with tempfile.TemporaryDirectory() as folder:
        tensors = {key: tensor.contiguous() for key, tensor in own.items()}
        save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
        Path(folder, "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        model, loading = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    if lost := [key for key in loading["missing_keys"] if not key.startswith("pooler")]:
        found, hint = f"no {', '.join(sorted(lost)[:3])}", "Download the file again."
        raise BackboneError(f"backbone {what}", expected=f"all tensors of {name}", found=found, hint=hint)
    model.eval()
    return lambda pictures: model(pixel_values=pictures).last_hidden_state


def _create_timm(
    vit: "VisionTransformer", own: Mapping[str, Tensor], found: Found, said: Description, what: str
) -> Forward:
    """The original as timm itself loads such a checkpoint, with its own translation of names."""
    import timm

    tensors = {name: tensor for name, tensor in own.items() if name == MASK or not BESIDE.match(name)}
    if found.form == "dinov2":
        tensors.setdefault(MASK, torch.zeros(1, vit.embed_dim))  # by which timm recognises these names
    args = read_arguments(what, type(create_skeleton(what, said)), said.model_args)
    args |= {"img_size": tuple(vit.patch_embed.img_size), "num_classes": 0}
    stored = {"state_dict": tensors, "num_classes": 0, "custom_load": False}
    architecture = said.architecture.partition(".")[0]
    model = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=stored, **args)
    forward: Forward = model.eval().forward_features
    return forward
