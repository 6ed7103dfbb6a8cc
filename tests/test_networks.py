"""Every kind of block among timm's published vision transformers, at two random blocks, with every tuner."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import describe_kind
from torch import Tensor

from components.domain.canvas import ImgSize
from components.models.adapter import AdapterMeta
from components.models.backbones import Backbone, hash_tensors
from components.models.engine import create_engine
from components.models.network import Network, create_network
from components.models.plain import require_plain_vit
from components.models.saliency import map_saliency
from components.models.tokens import Needs
from components.models.tuners import TUNERS, create_tuners
from components.models.weights import load_adapter, save_adapter
from components.tasks.segmentation import SegmentationTask
from components.workspace import REPOSITORY

KINDS: dict[str, dict[str, Any]] = json.loads((REPOSITORY / "benchmarks" / "networks.json").read_text())["kinds"]
EXAMPLES = [pytest.param(row["example"], kind, id=row["example"]) for kind, row in KINDS.items()]
#: Where an architecture names the blocks' numbers of keys.
SHARED_KEYS = {
    "vit_5b_patch16_sapiens2": {"num_kv_heads": (4, 2)},
    "vit_base_patch16_sapiens2": {"num_kv_heads": (4, 4)},
}
ALL = Needs(pooled=True, patches=True, layers=(0, 1))
TRIED = [{"kind": kind} for kind in TUNERS if kind not in ("linear", "pixels")]
TRIED += [{"kind": "vpt", "deep": False}]
TRIED += [{"kind": kind, "targets": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]} for kind in ("lora", "dora")]


@cache
def create_example(architecture: str) -> Backbone:
    """The architecture itself, narrow, at two blocks and a grid of 2 x 3, all of its parameters away from zero."""
    import timm

    small = {"depth": 2, "embed_dim": 48, "num_heads": 4, "num_classes": 0, **SHARED_KEYS.get(architecture, {})}
    with torch.device("meta"):
        patch = timm.create_model(architecture, **small).patch_embed.patch_size[0]
    size = ImgSize(2 * patch, 3 * patch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vit = timm.create_model(architecture, img_size=tuple(size), **small)
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    require_plain_vit(vit, architecture)
    half = (0.5, 0.5, 0.5)
    vit.requires_grad_(False).eval()
    return Backbone(architecture, vit, hash_tensors(vit.state_dict()), size, half, half, trained=False, licence="mit")


def create(backbone: Backbone, options: dict[str, Any]) -> Network:
    """Away from every start that hides what a parameter does."""
    network = create_network(backbone, create_tuners([options])[0], 3, seed=0, task=SegmentationTask())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def draw(backbone: Backbone) -> Tensor:
    return torch.randn(2, 3, *backbone.img_size, generator=torch.Generator().manual_seed(9))


def require_close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    scale = max(float(expected.detach().abs().max()), 1e-6)
    torch.testing.assert_close(found / scale, expected / scale, atol=bound, rtol=bound)


@pytest.mark.parametrize(("architecture", "kind"), EXAMPLES)
class TestEveryKind:
    def test_the_example_is_of_its_kind(self, architecture: str, kind: str) -> None:
        assert describe_kind(create_example(architecture).vit) == kind

    def test_every_tuner_learns_on_it(self, architecture: str, kind: str) -> None:
        """Every parameter gets a gradient; prompted forwards are the textbook's, tuned ones merge into the same."""
        backbone = create_example(architecture)
        images = draw(backbone)
        for options in TRIED:
            network = create(backbone, options)
            encoder = network.encoder
            tokens = encoder(images, ALL)
            (tokens.pooled.square().sum() + tokens.patches.square().sum()).backward()
            still = [
                n for n, p in encoder.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
            ]
            assert still == [], options
            if hasattr(encoder, "form"):
                fast = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.requires_grad}
                encoder.form = "textbook"
                encoder.zero_grad()
                again = encoder(images, ALL)
                for part, its in zip((tokens.pooled, *tokens.layers), (again.pooled, *again.layers), strict=True):
                    require_close(part, its)
                (again.pooled.square().sum() + again.patches.square().sum()).backward()
                for name, parameter in encoder.named_parameters():
                    if parameter.requires_grad:
                        require_close(fast[name], parameter.grad, 2e-4)
            elif create_tuners([options])[0].merges and not (options["kind"] == "ssf" and "RmsNorm" in kind):
                require_close(encoder.merge()(images), tokens.pooled)

    def test_gradient_checkpointing_changes_nothing(self, architecture: str, kind: str) -> None:
        backbone = create_example(architecture)
        for options in ({"kind": "vpt"}, {"kind": "lora"}, {"kind": "adaptformer"}):
            gradients = []
            for saves in (False, True):
                network = create(backbone, options)
                network.encoder.vit.set_grad_checkpointing(saves)
                network.encoder(draw(backbone), ALL).patches.square().sum().backward()
                gradients.append([p.grad for p in network.encoder.parameters() if p.grad is not None])
                network.encoder.vit.set_grad_checkpointing(False)
            assert gradients[0]
            assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))

    def test_an_adapter_binds_to_it(self, architecture: str, kind: str, tmp_path: Path) -> None:
        backbone = create_example(architecture)
        facts: dict[str, Any] = {"data_version": "d", "split_sha256": "s", "git_commit": "c", "seed": 1, "metrics": {}}
        for options in ({"kind": "bitfit"}, {"kind": "lora"}, {"kind": "vapt"}):
            network, (tuner,) = create(backbone, options), create_tuners([options])
            facts |= {"classes": ("a", "b", "c"), "task": SegmentationTask()}
            meta = AdapterMeta.describe(network, backbone, tuner, **facts)
            save_adapter(tmp_path / tuner.label, network, meta)
            again, _ = load_adapter(tmp_path / tuner.label, backbone)
            assert torch.equal(again(draw(backbone)), network(draw(backbone)))

    def test_it_says_what_it_looked_at(self, architecture: str, kind: str) -> None:
        backbone = create_example(architecture)
        engine = create_engine(backbone.mean, backbone.std, "bfloat16")
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (4, 3, *backbone.img_size), dtype=torch.uint8, generator=generator)
        for options in ({"kind": "vpt"}, {"kind": "lora"}):
            network = create_network(backbone, create_tuners([options])[0], 3, seed=0)
            engine.prepare(network)
            found = [map_saliency(network.eval(), engine, image[None]) for image in images]
            assert {saliency.shape for saliency in found} == {(2, 3)}
            assert max(saliency.max() for saliency in found) == pytest.approx(1, abs=1e-5)  # some patch spoke for it
