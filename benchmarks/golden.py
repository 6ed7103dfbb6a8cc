"""Every form of VPT and VAPT here against tensors computed by the papers' own code.

    python benchmarks/golden.py DIR [--json FILE]

Claim: in every form, features, patch tokens and gradients differ from the reference's by no more than rounding does:
1e-5.

DIR holds golden.json and a safetensors file a case, as tests/golden does. A form is a way of computing (textbook or
fast), an attention kernel and a dtype. An error is the largest difference of the features, of the patch tokens after
the final norm, and of each parameter's gradient relative to its largest element where that is above one. Exit code 1
when one is above the bound.
"""

import argparse
import itertools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from components.models.encoders import FORMS, Form, PromptedEncoder, set_attention
from components.models.tokens import Needs
from components.models.tuners import create_tuners

BOUND = 1e-5
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Way:
    """One way of computing the same thing."""

    form: Form
    attention: str
    dtype: str


@dataclass(frozen=True)
class Errors:
    """plain: of the unprompted features, which only says that the backbone is the same."""

    features: float
    patches: float
    gradients: float
    plain: float


WAYS = tuple(itertools.starmap(Way, itertools.product(FORMS, ("fused", "plain"), DTYPES)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    record = json.loads((options.folder / "golden.json").read_text())
    rows = []
    print(
        f"{'case':28}{'form':12}{'attention':12}{'dtype':8}{'features':>12}{'patches':>12}{'gradients':>12}{'unprompted':>12}"
    )
    for name, case in record["cases"].items():
        for way in WAYS:
            errors = measure_errors(case, load_file(options.folder / case["file"]), way)
            rows.append({"case": name} | asdict(way) | asdict(errors))
            numbers = "".join(f"{value:12.1e}" for value in asdict(errors).values())
            print(f"{name:28}{way.form:12}{way.attention:12}{way.dtype:8}{numbers}")
    worst = max(row[name] for row in rows for name in ("features", "patches", "gradients"))
    print(f"worst error {worst:.1e}, bound {BOUND:.0e}")
    if options.json:
        options.json.write_text(json.dumps({"bound": BOUND, "worst": worst, "rows": rows}, indent=1) + "\n")
    return int(worst > BOUND)


def measure_errors(case: dict[str, Any], tensors: dict[str, Tensor], way: Way) -> Errors:
    """How far this way is from the case's golden numbers."""
    encoder = create_encoder(case, tensors)
    encoder.form = way.form
    set_attention(encoder.vit, way.attention == "fused")
    features = run(encoder, tensors, DTYPES[way.dtype])
    gradients = []
    for name, reference in golden_parameters(encoder, tensors, "grad.").items():
        gradient = encoder.get_parameter(name).grad
        if gradient is None:
            raise ValueError(f"{name} has a golden gradient and got none")
        gradients.append(float((gradient - reference).abs().max()) / max(1.0, float(reference.abs().max())))
    patches = measure_patches(encoder, tensors, DTYPES[way.dtype])
    encoder.prompts = None
    plain = run(encoder, tensors, DTYPES[way.dtype], learn=False)
    return Errors(
        float((features - tensors["out.cls"]).abs().max()),
        patches,
        max(gradients),
        float((plain - tensors["out.cls_unprompted"]).abs().max()),
    )


def run(encoder: PromptedEncoder, tensors: dict[str, Tensor], dtype: torch.dtype, learn: bool = True) -> Tensor:
    """Features of the golden images, and the gradients of the golden loss where asked for."""
    features: Tensor = encoder.to(dtype)(read_images(tensors, dtype)).pooled
    if learn:
        (features * tensors["loss.weight"]).sum().backward()  # type: ignore[no-untyped-call]
    return features.detach()


def measure_patches(encoder: PromptedEncoder, tensors: dict[str, Tensor], dtype: torch.dtype) -> float:
    """The largest error of the patch tokens, as patches and as the last layer; the reference's come after the prompts.

    The encoder is in `dtype` already.
    """
    expected = tensors["out.tokens"][:, -encoder.vit.patch_embed.num_patches :]
    with torch.no_grad():
        needs = Needs(patches=True, layers=(len(encoder.vit.blocks) - 1,))
        tokens = encoder(read_images(tensors, dtype), needs)
    return max(float((found - expected).abs().max()) for found in (tokens.patches, *tokens.layers))


def read_images(tensors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The golden images, normalised."""
    return (tensors["input.image_u8"].to(dtype) / 255 - 0.5) / 0.5


def create_encoder(case: dict[str, Any], tensors: dict[str, Tensor]) -> PromptedEncoder:
    """The encoder as the record configures it, in eval mode, holding the golden parameters."""
    shape = case["backbone_config"]
    vit = VisionTransformer(
        img_size=case["img_size"] if isinstance(case["img_size"], int) else tuple(case["img_size"]),
        patch_size=shape["patch_size"],
        embed_dim=shape["embed_dim"],
        depth=shape["depth"],
        num_heads=shape["num_heads"],
        mlp_ratio=shape["mlp_hidden"] / shape["embed_dim"],
        num_classes=0,
        global_pool="token",
    )
    backbone = {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    vit.load_state_dict(backbone, strict=True)
    (tuner,) = create_tuners([read_options(case["prompt_config"])])
    encoder = tuner.apply(vit.eval())
    with torch.no_grad():
        for name, tensor in golden_parameters(encoder, tensors, "").items():
            encoder.get_parameter(name).copy_(tensor)
    return encoder.eval()  # type: ignore[no-any-return]


def read_options(config: dict[str, Any]) -> dict[str, Any]:
    """The reference's configuration as a candidate's."""
    if not config.get("ADAPTIVE"):
        return {"kind": "vpt", "deep": config["DEEP"], "num_prompts": config["NUM_TOKENS"]}
    options = {"kind": "vapt", "num_prompts": config["NUM_TOKENS"], "static_blocks": config["VPT_DEPTH"]}
    return options | {"kernel": config["KERNEL"], "bottleneck": config["HIDDEN_DIM"]}


def golden_parameters(encoder: Any, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Golden prompt parameters (`prefix` '') or their gradients (`grad.`) under our names and in our shapes."""
    first = tensors[f"{prefix}prompt.first"]
    deep = [tensors[f"{prefix}prompt.deep"]] if f"{prefix}prompt.deep" in tensors else []
    static = "prompts.static.tokens" if f"{prefix}vapt.proj.up.weight" in tensors else "prompts.tokens"
    found = {static: torch.cat([first, *deep])}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}vapt."):
            found[rename(name.removeprefix(f"{prefix}vapt."))] = tensor
    expected = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    if found.keys() != expected:
        raise ValueError(f"golden parameters {sorted(found)}, but the encoder's are {sorted(expected)}")
    return found


def rename(name: str) -> str:
    """`token.0.conv.weight` -> `prompts.tokenwise.0.kernel`, and so on."""
    kind, *rest = name.split(".")
    if kind == "proj":
        return f"prompts.featurewise.{'.'.join(rest)}"
    index, *rest = rest
    inner = {"norm": "norm.", "token": ""}[kind] + ".".join(rest)
    return f"prompts.tokenwise.{index}.{inner}".replace("conv.weight", "kernel")


if __name__ == "__main__":
    sys.exit(main())
