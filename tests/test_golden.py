"""VPT and VAPT against numbers of the papers' reference implementations (golden/README.md), and their exact facts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import BOUND, WAYS, Way, create_encoder, measure_errors, measure_patches, run
from safetensors.torch import load_file, save

from components.domain.canvas import ImgSize
from components.models.backbones import Backbone
from components.models.encoders import PromptedEncoder
from components.models.network import Network, create_network
from components.models.tuners import create_tuners

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "golden.json").read_text())
CASES = sorted(RECORD["cases"])


def load_case(name: str) -> tuple[PromptedEncoder, dict[str, torch.Tensor]]:
    """The encoder as the record configures it, holding the golden parameters, and the golden tensors."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return create_encoder(RECORD["cases"][name], tensors), tensors


# In float64 the distance is the reference's own rounding, the same on every machine: 3.5e-6 for features and
# 7.5e-6 for gradients at the worst. In float32 ours comes on top.
@pytest.mark.parametrize("way", [pytest.param(way, id=f"{way.form}-{way.attention}-{way.dtype}") for way in WAYS])
@pytest.mark.parametrize("name", CASES)
def test_every_form_is_the_references(name: str, way: Way) -> None:
    errors = measure_errors(RECORD["cases"][name], load_file(GOLDEN / f"{name}.safetensors"), way)
    assert max(errors.features, errors.patches, errors.gradients, errors.plain) <= BOUND


@pytest.mark.parametrize("name", CASES)
def test_prepared_for_float32_its_patches_are_the_references(name: str) -> None:
    """As a job computes: on the backbone's own tensors, in the fast form."""
    encoder, tensors = load_case(name)
    backbone = Backbone("golden", encoder.vit, "", 0, (0.5,) * 3, (0.5,) * 3, trained=False, licence="")
    encoder.prepare(backbone, torch.float32, torch.device("cpu"), fused_attention=False)
    assert measure_patches(encoder.eval(), tensors, torch.float32) <= BOUND


def test_the_golden_files_are_whole() -> None:
    for case in RECORD["cases"].values():
        assert hashlib.sha256((GOLDEN / case["file"]).read_bytes()).hexdigest() == case["sha256"]


def test_vapt_starts_with_adaptive_prompts_exactly_zero() -> None:
    """Only the static prompts and the token-wise projectors get gradient then.

    Their biases hardly do: a bias shifts all channels of a prompt alike, which LN1 takes out again.
    """
    encoder, tensors = load_case("vapt_init_zero_linear")
    x = torch.randn(2, 197, 48)
    assert all(not encoder.prompts(index, x).any() for index in (1, 2, 3))
    run(encoder, tensors, torch.float32)
    size = {n: float(p.grad.abs().max()) for n, p in encoder.named_parameters() if p.grad is not None}
    loud = {"prompts.static.tokens"} | {f"prompts.tokenwise.{j}.linear.weight" for j in range(3)}
    faint = {f"prompts.tokenwise.{j}.linear.bias" for j in range(3)}
    assert all(size[name] > 1e-3 for name in loud)
    assert all(size[name] < 1e-4 * size[name.replace("bias", "weight")] for name in faint)
    assert all(value == 0 for name, value in size.items() if name not in loud | faint)


def test_deep_prompts_are_free_of_scale_and_shift() -> None:
    """LN1 is all that reads them: 7p + 3 says what p says. Not so for shallow prompts, which flow on."""
    moved = {}
    for name in ("vpt_deep", "vpt_shallow"):
        encoder, tensors = load_case(name)
        images = (tensors["input.image_u8"].float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            before = encoder(images).pooled
            encoder.prompts.tokens.mul_(7).add_(3)
            moved[name] = float((encoder(images).pooled - before).abs().max())
    assert moved["vpt_deep"] < 1e-3
    assert moved["vpt_shallow"] > 1e-2


BASE_PARAMS = 85_798_656
# For the others by hand, with D = 768, 12 blocks, and outputs of a block's layers 3D (qkv), D, 4D and D = 6,912:
#   bitfit       12 (6,912 + 2 norms D) + patch projection D + last norm D
#   lora         12 (8 (D + 3D) + 8 (D + D))
#   dora         the same, and 12 (3D + D) lengths of rows
#   adaptformer  12 (64 D + 64 + 64 D + D)
#   ssf          twice (12 (6,912 + 2 D) + D + D): what bitfit has, as scales and as shifts
COUNTS = [
    ({"kind": "vpt", "num_prompts": 10}, 92_160, 0.107),
    ({"kind": "vpt", "num_prompts": 50}, 460_800, 0.537),
    ({"kind": "vpt", "num_prompts": 100}, 921_600, 1.074),
    ({"kind": "vpt", "deep": False, "num_prompts": 50}, 38_400, 0.045),
    ({"kind": "vapt", "num_prompts": 10}, 55_608, 0.065),
    ({"kind": "vapt", "num_prompts": 50}, 161_128, 0.188),
    ({"kind": "vapt", "num_prompts": 100}, 293_028, 0.342),
    ({"kind": "vapt", "num_prompts": 50, "kernel": 3}, 147_433, 0.172),
    ({"kind": "vapt", "num_prompts": 100, "kernel": 3}, 265_583, 0.310),
    ({"kind": "linear"}, 0, 0.0),
    ({"kind": "full"}, BASE_PARAMS, 100.0),
    ({"kind": "bitfit"}, 102_912, 0.120),
    ({"kind": "lora", "rank": 8}, 442_368, 0.516),
    ({"kind": "dora", "rank": 8}, 479_232, 0.559),
    ({"kind": "adaptformer", "bottleneck": 64}, 1_189_632, 1.387),
    ({"kind": "ssf"}, 205_824, 0.240),
]


def create_base_network(options: dict[str, Any], num_classes: int = 100) -> Network:
    """ViT-B/16 at 224 without memory for its weights."""
    import timm

    (tuner,) = create_tuners([options])
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0).requires_grad_(False)
        backbone = Backbone("base", vit, "", ImgSize(224, 224), (0.5,) * 3, (0.5,) * 3, trained=False, licence="")
        return create_network(backbone, tuner, num_classes, seed=0)


@pytest.mark.parametrize(("options", "count", "percent"), COUNTS)
def test_parameter_counts_are_the_papers(options: dict[str, Any], count: int, percent: float) -> None:
    network = create_base_network(options)
    assert network.backbone_params == BASE_PARAMS
    assert network.num_trainable(with_head=False) == count
    assert network.num_trainable(with_head=True) == count + 76_900
    assert round(100 * count / BASE_PARAMS, 3) == percent


def test_the_split_of_vapts_parameters() -> None:
    network = create_base_network({"kind": "vapt", "num_prompts": 10})
    split = dict.fromkeys(("static", "norm", "kernel", "linear", "featurewise"), 0)
    for name, parameter in network.encoder.prompts.named_parameters():
        split[next(part for part in split if part in name)] += parameter.numel()
    assert split == {"static": 7_680, "norm": 16_896, "kernel": 44, "linear": 18_700, "featurewise": 12_288}


def test_vapts_adapter_on_vit_b_with_50_prompts_is_under_a_megabyte() -> None:
    """In float32, with a head of 10 classes."""
    network = create_base_network({"kind": "vapt", "num_prompts": 50}, num_classes=10)
    tensors = {name: torch.zeros(p.shape, dtype=p.dtype) for name, p in network.trainable_parameters().items()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert len(save(tensors)) < 700_000
