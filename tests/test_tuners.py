"""Every tuner on every kind of plain ViT: a table of cases times the behaviours they share."""

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from vits import EVAS, VITS, create_backbone, create_images, create_vit

from components.errors import BackboneError, DomainError
from components.models.blocks import enter_blocks, run_whole_block
from components.models.encoders import FrozenEncoder
from components.models.network import Network, create_network
from components.models.plain import require_plain_vit
from components.models.prompts import average_regions
from components.models.tokens import Needs
from components.models.tuners import TUNERS, Tuner, create_tuners
from components.tasks import CLASSIFICATION, Task
from components.tasks.base import MapTask
from components.tasks.segmentation import SegmentationTask
from components.training.fit import create_optimizer

CPU = torch.device("cpu")
#: Every member of the union with its defaults, and the variants that differ in kind.
VARIANTS: list[dict[str, Any]] = [{"kind": kind, "num_prompts": 3} for kind in ("vpt", "vapt")]
VARIANTS += [{"kind": kind} for kind in TUNERS if kind not in ("vpt", "vapt")]
VARIANTS += [{"kind": "vpt", "deep": False, "num_prompts": 3}]
VARIANTS += [{"kind": "vapt", "name": "vapt-odd", "static_blocks": 2, "kernel": 1, "bottleneck": 1, "dropout": 0.5}]
VARIANTS += [
    {"kind": kind, "name": f"{kind}-odd", "rank": 3, "alpha": 7, "dropout": 0.5, "targets": ["mlp.fc1", "attn.proj"]}
    for kind in ("lora", "dora")
]
TUNER_CASES = [pytest.param(tuner, id=tuner.label) for tuner in create_tuners(VARIANTS)]
READING_CASES = [case for case in TUNER_CASES if case.id != "pixels"]  # the backbone
FROZEN_CASES = [case for case in TUNER_CASES if case.id != "full"]
MERGED_CASES = [case for case in TUNER_CASES if case.values[0].merges]
#: Of the kinds of Eva those that are furthest apart; test_networks.py has one of every kind.
FAR_APART = ("EVA02-CLIP", "LingBot", "RoPE by head, on a tall grid", "Perception Encoder", "Sapiens2")
CASES = VITS | {name: EVAS[name] for name in FAR_APART}
VIT_CASES = [pytest.param(options, id=name) for name, options in CASES.items()]
#: Every tuner with a head of pooled features and one of tokens; `pixels` is made for the latter alone.
PAIR_CASES = [
    pytest.param(case.values[0], task, id=f"{case.id}-{task.kind}")
    for case in TUNER_CASES
    for task in (CLASSIFICATION, SegmentationTask())
    if case.id != "pixels" or isinstance(task, MapTask)
]


def create(tuner: Tuner, options: dict[str, Any], seed: int = 0, task: Task = CLASSIFICATION) -> Network:
    return create_network(create_backbone(options), tuner, num_classes=4, seed=seed, task=task)


def stir(network: Network) -> None:
    """Move every trainable parameter, so that nothing is at a start that hides what it does."""
    with torch.no_grad():
        for parameter in network.trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)


@pytest.mark.parametrize("options", VIT_CASES)
@pytest.mark.parametrize(("tuner", "task"), PAIR_CASES)
class TestWithEveryHead:
    def test_everything_that_may_learn_gets_a_gradient(self, tuner: Tuner, task: Task, options: dict[str, Any]) -> None:
        """Without it a process group would wait in vain. `pixels` has zeros for tokens, whose weights get none."""
        network = create(tuner, options, task=task)
        stir(network)
        network.eval()
        network(create_images(network.encoder.vit)).square().sum().backward()
        learns = network.trainable_parameters().items()
        assert [name for name, parameter in learns if parameter.grad is None] == []
        still = [name for name, parameter in learns if not parameter.grad.any()]
        assert still == (["head.project.weight"] if tuner.kind == "pixels" else [])
        frozen = [n for n, p in network.named_parameters() if p.grad is not None and not p.requires_grad]
        assert frozen == []

    def test_an_image_does_not_see_its_neighbours(self, tuner: Tuner, task: Task, options: dict[str, Any]) -> None:
        network = create(tuner, options, task=task)
        stir(network)
        images = create_images(network.eval().encoder.vit, count=3)
        with torch.no_grad():
            together, alone = network(images), torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", VIT_CASES)
@pytest.mark.parametrize("tuner", READING_CASES)
class TestOnEveryVit:
    def test_every_part_is_the_same_whatever_else_is_asked_for(self, tuner: Tuner, options: dict[str, Any]) -> None:
        """Pooled features, patches and layers, each alone and all at once; the last layer is the patches."""
        network = create(tuner, options)
        stir(network)
        encoder, vit = network.eval().encoder, network.encoder.vit
        images, last = create_images(vit), len(vit.blocks) - 1
        with torch.no_grad():
            whole = encoder(images, Needs(pooled=True, patches=True, layers=(0, last)))
            pairs = [
                (encoder(images).pooled, whole.pooled),
                (encoder(images, Needs(patches=True)).patches, whole.patches),
                (encoder(images, Needs(layers=(0,))).layers[0], whole.layers[0]),
                (encoder(images, Needs(pooled=True, layers=(0,))).pooled, whole.pooled),
                (whole.layers[1], whole.patches),
            ]
        for alone, together in pairs:
            torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(whole.layers[0], whole.patches, atol=1e-2)
        assert whole.grid == tuple(vit.patch_embed.grid_size)
        assert whole.patches.shape == (2, whole.grid[0] * whole.grid[1], vit.embed_dim)

    def test_only_the_blocks_that_are_asked_for_run(self, tuner: Tuner, options: dict[str, Any]) -> None:
        encoder = create(tuner, options).eval().encoder
        ran: list[int] = []
        for block in encoder.vit.blocks:
            mlp = getattr(block, "block", block).mlp
            mlp.register_forward_hook(lambda module, inputs, out: ran.append(out.shape[1]))
        images, depth = create_images(encoder.vit), len(encoder.vit.blocks)
        for needs, blocks in [(Needs(layers=(0,)), 1), (Needs(layers=(1,)), 2), (Needs(patches=True), depth)]:
            ran.clear()
            encoder(images, needs)
            assert len(ran) == blocks
        assert ran[-1] >= encoder.vit.patch_embed.num_patches
        ran.clear()
        encoder(images)
        first_alone = isinstance(encoder, FrozenEncoder) and encoder.vit.global_pool == "token"
        assert (ran[-1] == 1) == first_alone


def test_patches_lie_where_the_picture_has_them() -> None:
    """On a grid that is not square, row after row: what changes in one patch of the image changes that token most."""
    vit = create_vit({"img_size": (32, 64)})
    encoder = create_tuners([{"kind": "vpt", "num_prompts": 3}])[0].apply(vit).eval()
    images = create_images(vit)
    changed = images.clone()
    changed[:, :, 8:16, 40:48] += 5  # row 1, column 5
    before, after = (encoder(some, Needs(layers=(0,))) for some in (images, changed))
    assert before.grid == (4, 8)
    moved = (after.layers[0] - before.layers[0]).norm(dim=-1).unflatten(1, before.grid)
    assert [divmod(int(row.argmax()), 8) for row in moved] == [(1, 5)] * 2


@pytest.mark.parametrize("options", VIT_CASES)
def test_pixels_has_zeros_for_tokens_and_does_not_run_the_backbone(options: dict[str, Any]) -> None:
    (tuner,) = create_tuners([{"kind": "pixels"}])
    vit = create_vit(options)
    encoder = tuner.apply(vit)
    for module in (vit.patch_embed, *vit.blocks):
        module.register_forward_hook(lambda *_: pytest.fail("the backbone ran"))
    tokens = encoder(create_images(vit), Needs(pooled=True, patches=True, layers=(0, 1)))
    assert tokens.grid == tuple(vit.patch_embed.grid_size)
    for part in (tokens.patches, *tokens.layers):
        assert part.shape == (2, vit.patch_embed.num_patches, vit.embed_dim)
        assert not part.any()
    assert tokens.pooled.shape == (2, vit.embed_dim)


def test_a_head_gets_what_it_needs_and_nothing_else() -> None:
    with pytest.raises(ValueError, match="reads pooled features, patches or layers"):
        Needs()
    for layers in ((1, 0), (0, 0), (-1,)):
        with pytest.raises(ValueError, match="layers ascend"):
            Needs(layers=layers)
    vit = create_vit()
    for kind in ("vpt", "lora"):
        encoder = create_tuners([{"kind": kind}])[0].apply(vit).eval()
        tokens = encoder(create_images(vit), Needs(layers=(1,)))
        with pytest.raises(ValueError, match="pooled was not computed"):
            _ = tokens.pooled
        with pytest.raises(ValueError, match="patches was not computed"):
            _ = tokens.patches
        with pytest.raises(BackboneError, match="numbers below 3, the backbone's depth; found 1, 3"):
            encoder(create_images(vit), Needs(layers=(1, 3)))


@pytest.mark.parametrize("options", VIT_CASES)
@pytest.mark.parametrize("tuner", MERGED_CASES)
def test_merged_it_is_a_plain_network_that_computes_the_same(tuner: Tuner, options: dict[str, Any]) -> None:
    network = create(tuner, options)
    stir(network)
    encoder = network.encoder.eval()
    images = create_images(encoder.vit)
    before = encoder(images).pooled
    if tuner.kind == "ssf" and options.get("norm_layer") == "rmsnorm":
        with pytest.raises(BackboneError, match="RmsNorm, which has no bias"):
            encoder.merge()
        return
    merged = encoder.merge()
    require_plain_vit(merged, "merged")
    assert merged.state_dict().keys() >= create_vit(options).state_dict().keys()
    torch.testing.assert_close(merged(images), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder(images).pooled, before)
    assert not {id(tensor) for tensor in merged.parameters()} & {id(tensor) for tensor in encoder.parameters()}


def test_what_cannot_be_merged_says_so() -> None:
    (adaptformer,) = create_tuners([{"kind": "adaptformer"}])
    assert not adaptformer.merges
    with pytest.raises(TypeError, match="cannot be merged"):
        adaptformer.apply(create_vit()).merge()
    from timm.layers import RmsNorm

    (ssf,) = create_tuners([{"kind": "ssf"}])
    with pytest.raises(BackboneError, match="RmsNorm, which has no bias"):
        ssf.apply(create_vit({"norm_layer": RmsNorm})).merge()


@pytest.mark.parametrize("options", VIT_CASES)
@pytest.mark.parametrize("kind", ["full", "bitfit", "lora", "dora", "adaptformer"])
def test_at_the_start_it_is_exactly_the_backbone(kind: str, options: dict[str, Any]) -> None:
    vit = create_vit(options)
    images = create_images(vit)
    encoder = create_tuners([{"kind": kind}])[0].apply(vit).eval()
    assert torch.equal(encoder(images).pooled, vit(images))


@pytest.mark.parametrize("options", VIT_CASES)
def test_without_prompts_it_is_timms_own_forward(options: dict[str, Any]) -> None:
    vit = create_vit(options)
    images = create_images(vit)
    for kind in ("linear", "full"):
        (tuner,) = create_tuners([{"kind": kind}])
        encoder = tuner.apply(vit).eval()
        torch.testing.assert_close(encoder(images).pooled, vit(images), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("options", VIT_CASES)
def test_deep_prompts_act_as_extra_keys_and_values_only(options: dict[str, Any]) -> None:
    """Repeating a token's prompts as plain extra tokens, computed here the long way round, gives the same."""
    vit = create_vit(options)
    (tuner,) = create_tuners([{"kind": "vpt", "num_prompts": 3}])
    encoder = tuner.apply(vit).eval()
    images = create_images(vit)
    x, ropes = enter_blocks(vit, images)
    count = x.shape[1]
    for index, (block, prompts) in enumerate(zip(vit.blocks, encoder.prompts.tokens, strict=True)):
        # Prompts behind the patches instead of between: attention has no order, so only the strip may differ.
        rope = ropes.of_block(index)
        if rope is not None:
            still = torch.zeros(*rope.shape[:-2], 3, rope.shape[-1])
            still[..., rope.shape[-1] // 2 :] = 1
            rope = torch.cat([rope, still], dim=-2)
        x = run_whole_block(block, torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1), rope)[:, :count]
    expected = vit.forward_head(vit.norm(x), pre_logits=True)
    torch.testing.assert_close(encoder(images).pooled, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "avgmax", "max"])
def test_pooling_never_sees_a_prompt(pooling: str) -> None:
    """Shallow prompts reach the end: made huge on the last block's way out they still must not be averaged in."""
    vit = create_vit({"global_pool": pooling})
    encoder = create_tuners([{"kind": "vpt", "deep": False, "num_prompts": 3}])[0].apply(vit).eval()
    seen: list[int] = []
    vit.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    encoder(create_images(vit))
    assert seen == [vit.num_prefix_tokens + vit.patch_embed.num_patches]


@pytest.mark.parametrize("tuner", FROZEN_CASES)
def test_the_backbone_stays_as_it_was(tuner: Tuner) -> None:
    """In train mode, through a step of the optimiser, and shared by two networks: tensor by tensor, not by copies."""
    backbone = create_backbone({"proj_drop_rate": 0.5, "attn_drop_rate": 0.5})
    before = {name: tensor.clone() for name, tensor in backbone.vit.state_dict().items()}
    network, other = (create_network(backbone, tuner, 4, seed) for seed in (0, 1))
    its = {id(parameter) for parameter in backbone.vit.parameters()}
    for encoder in (network.encoder, other.encoder):
        assert all((id(parameter) in its) != parameter.requires_grad for parameter in encoder.parameters())
    network.train()
    optimizer = torch.optim.AdamW(network.trainable_parameters().values(), lr=0.1)
    network(create_images(backbone.vit)).square().sum().backward()
    optimizer.step()
    assert not any(module.training for module in backbone.vit.modules())
    assert network.head.training
    assert not any(parameter.requires_grad for parameter in backbone.vit.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.vit.state_dict().items())


def test_full_trains_a_copy() -> None:
    backbone = create_backbone()
    network = create_network(backbone, create_tuners([{"kind": "full"}])[0], 4, seed=0)
    assert network.encoder.vit is not backbone.vit
    assert network.encoder.vit.training
    assert not any(parameter.requires_grad for parameter in backbone.vit.parameters())
    assert network.num_trainable(with_head=False) == network.backbone_params


@pytest.mark.parametrize("tuner", TUNER_CASES)
def test_dropout_acts_in_train_mode_only(tuner: Tuner) -> None:
    # The backbone's own dropout must not act, but in a backbone that learns as a whole.
    network = create(tuner, {} if tuner.kind == "full" else {"proj_drop_rate": 0.5, "attn_drop_rate": 0.5})
    stir(network)
    images = create_images(network.encoder.vit)
    has_dropout = getattr(tuner, "dropout", 0) > 0
    with torch.no_grad():
        assert torch.equal(network.eval()(images), network.eval()(images))
        assert torch.equal(network.train()(images), network.train()(images)) != has_dropout


def test_rotary_positions_are_moved_about_only_where_all_learns() -> None:
    """DINOv3 trains with rescaled positions; a frozen backbone of it has none of that in training either."""
    for kind in ("vpt", "lora", "bitfit", "full"):
        network = create(create_tuners([{"kind": kind}])[0], CASES["LingBot"])
        images = create_images(network.encoder.vit)
        with torch.no_grad():
            still = network.eval()(images)
            assert torch.equal(network.train()(images), still) == (kind != "full")


def test_rotary_positions_stay_precise_and_other_buffers_follow() -> None:
    vits = [create_backbone(EVAS[name]).at(torch.bfloat16, CPU) for name in ("LingBot", "RoPE by head with positions")]
    assert {tensor.dtype for vit in vits for tensor in (*vit.rope.parameters(), *vit.rope.buffers())} == {torch.float32}
    assert vits[0].blocks[0].attn.k_bias.dtype == vits[0].blocks[0].attn.q_bias.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["plain", "EVA02-CLIP", "LingBot", "RoPE by head, on a tall grid"])
@pytest.mark.parametrize("tuner", TUNER_CASES)
def test_prepared_for_bfloat16_it_is_nearly_the_same(tuner: Tuner, name: str) -> None:
    backbone = create_backbone(CASES[name])
    network = create_network(backbone, tuner, 4, seed=0).eval()
    images = create_images(backbone.vit)
    with torch.no_grad():
        plain = network(images)
        network.prepare(torch.bfloat16, CPU, fused_attention=False)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network(images).float(), plain, atol=2e-3, rtol=0.05)
    assert {parameter.dtype for parameter in network.trainable_parameters().values()} == {torch.float32}
    assert {parameter.dtype for parameter in backbone.vit.parameters()} == {torch.float32}


def storages(module: torch.nn.Module) -> dict[int, int]:
    """Address -> bytes of all numbers a module holds."""
    tensors = [*module.parameters(), *module.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@pytest.mark.parametrize("name", ["plain", "LingBot", "RoPE by head, on a tall grid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tuner", FROZEN_CASES)
def test_adapters_on_one_backbone_hold_it_once(tuner: Tuner, dtype: torch.dtype, name: str) -> None:
    """N of them take one backbone, in the form they compute in, and what each learns; a further kind nothing more."""
    backbone = create_backbone(CASES[name])
    networks = [create_network(backbone, tuner, 4, seed) for seed in range(3)]
    for network in networks:
        network.prepare(dtype, CPU, fused_attention=False)
    held = [storages(network) for network in networks]
    learned = sum(4 * p.numel() for network in networks for p in network.trainable_parameters().values())
    together = sum(({**held[0], **held[1], **held[2]}).values())
    assert together - learned == sum(held[0].values()) - learned / 3
    tensors = [*backbone.vit.parameters(), *backbone.vit.buffers()]
    assert together - learned <= sum(4 * tensor.numel() for tensor in tensors)
    if dtype == torch.bfloat16 and tuner.kind != "pixels":  # which has no use for another form
        (lora,) = create_tuners([{"kind": "lora"}])
        other = create_network(backbone, lora, 4, seed=0)
        other.prepare(dtype, CPU, fused_attention=False)
        matrices = {p.untyped_storage().data_ptr() for p in other.parameters() if p.dtype == dtype}
        shared = matrices & set(held[0])
        precise = 2 * len(backbone.vit.blocks) if tuner.kind == "dora" else 0  # its targets stay float32
        assert len(shared) == len(matrices) - precise


def test_a_cast_is_freed_with_the_last_that_uses_it_and_the_loaded_weights_with_the_backbone() -> None:
    backbone = create_backbone()
    name, form = "blocks.0.mlp.fc1.weight", (torch.bfloat16, CPU)
    loaded, cast = weakref.ref(backbone.vit.get_parameter(name)), weakref.ref(backbone.tensor(name, *form))
    assert cast() is None
    networks = [create_network(backbone, create_tuners([{"kind": kind}])[0], 4, 0) for kind in ("vpt", "lora")]
    for network in networks:
        network.prepare(*form, fused_attention=False)
    cast = weakref.ref(backbone.tensor(name, *form))
    del networks[0], network
    gc.collect()
    assert cast() is not None
    del backbone
    gc.collect()
    assert loaded() is None
    with torch.autocast("cpu", torch.bfloat16):
        assert networks[0](create_images(networks[0].encoder.vit)).isfinite().all()
    with pytest.raises(ValueError, match="the network was prepared for"):
        networks[0].prepare(torch.float32, CPU, fused_attention=False)


@pytest.mark.parametrize("kind", ["bitfit", "lora", "dora", "adaptformer"])
def test_weights_held_in_bfloat16_give_what_autocast_gives(kind: str) -> None:
    backbone = create_backbone()
    encoder = create_tuners([{"kind": kind}])[0].apply(backbone.vit).eval()
    images = create_images(backbone.vit)
    encoder.prepare(backbone, torch.float32, CPU, fused_attention=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = encoder(images).pooled
        encoder.prepare(backbone, torch.bfloat16, CPU, fused_attention=False)
        assert torch.equal(encoder(images).pooled, plain)


@pytest.mark.parametrize("tuner", TUNER_CASES)
def test_a_seed_is_all_that_decides_a_start(tuner: Tuner) -> None:
    state = torch.random.get_rng_state()
    first = create(tuner, {}, seed=1).trainable_parameters()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    again, other = (create(tuner, {}, seed).trainable_parameters() for seed in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert not first["head.bias"].any()


@pytest.mark.parametrize("options", VIT_CASES)
def test_lower_layers_of_full_learn_more_slowly(options: dict[str, Any]) -> None:
    (tuner,) = create_tuners([{"kind": "full", "layer_decay": 0.5}])
    network = create(tuner, options)
    scale = {
        id(parameter): group["lr_scale"]
        for group in create_optimizer(network, tuner).param_groups
        for parameter in group["params"]
    }
    assert scale.keys() == {id(parameter) for parameter in network.parameters()}
    vit = network.encoder.vit
    parts = [vit.patch_embed, *vit.blocks, network.head]
    assert [{scale[id(p)] for p in part.parameters()} for part in parts] == [{0.5**k} for k in (4, 3, 2, 1, 0)]


def test_only_full_has_layers_of_different_rates() -> None:
    for case in FROZEN_CASES:
        (tuner,) = case.values
        groups = create_optimizer(create(tuner, {}), tuner).param_groups
        assert {group["lr_scale"] for group in groups} == {1.0}
        assert [group["weight_decay"] for group in groups] == [tuner.weight_decay, 0.0]


def test_scales_start_near_one_and_shifts_near_zero() -> None:
    vit = create_vit()
    trained = create_network(create_backbone(), create_tuners([{"kind": "ssf"}])[0], 4, seed=0).trainable_parameters()
    layers = [name for name, module in vit.named_modules() if getattr(module, "weight", None) is not None]
    assert {name.rsplit(".", 1)[0] for name in trained} - {"head"} == {f"encoder.vit.{name}" for name in layers}
    for ending, mean in (("scale", 1), ("shift", 0)):
        values = torch.cat([tensor.detach() for name, tensor in trained.items() if name.endswith(ending)])
        assert values.mean() == pytest.approx(mean, abs=0.003)
        assert values.std() == pytest.approx(0.02, rel=0.1)


def test_adaptformer_reads_the_residual_stream_before_norm2() -> None:
    encoder = create_tuners([{"kind": "adaptformer", "bottleneck": 3}])[0].apply(create_vit()).eval()
    for adapted in encoder.vit.blocks:
        torch.nn.init.normal_(adapted.bottleneck.up.weight)
    x = torch.randn(2, 17, 24)
    adapted = encoder.vit.blocks[1]
    between = x + adapted.block.attn(adapted.block.norm1(x))
    side = torch.relu(between @ adapted.bottleneck.down.weight.T) @ adapted.bottleneck.up.weight.T
    torch.testing.assert_close(adapted(x), adapted.block(x) + 0.1 * side, atol=1e-5, rtol=1e-5)


def test_static_prompts_start_within_their_bound() -> None:
    encoder = create_tuners([{"kind": "vpt", "num_prompts": 100}])[0].apply(create_vit())
    bound = (6 / (3 * 8 * 8 + 24)) ** 0.5
    assert encoder.prompts.tokens.abs().max() <= bound
    assert encoder.prompts.tokens.abs().max() > 0.99 * bound


def test_vapt_drops_whole_channels_of_an_image() -> None:
    encoder = create_tuners([{"kind": "vapt", "num_prompts": 3, "dropout": 0.5}])[0].apply(create_vit())
    projector = encoder.prompts.tokenwise[0].train()
    torch.nn.init.ones_(projector.linear.weight)
    zero = projector(torch.randn(5, 17, 24)) == 0  # (B, N, D)
    assert zero.any()
    assert (zero.all(dim=1) == zero.any(dim=1)).all()
    assert not (zero.all(dim=0) == zero.any(dim=0)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "vapt", "static_blocks": 3}, "static_blocks below 3"),
        ({"kind": "vapt", "kernel": 5}, "patch grid, 4 x 4"),
        ({"kind": "dtl", "rank": 25}, "tuner dtl: expected a rank of 24 at most"),
        ({"kind": "dtl", "first": 3}, "tuner dtl: expected first below 3"),
        ({"kind": "lora", "rank": 25}, "tuner lora: expected a rank of 24 at most"),
        ({"kind": "dora", "rank": 25}, "tuner dora: expected a rank of 24 at most"),
        ({"kind": "lora", "targets": ["mlp.fc1"]}, "targets among attn.qkv, attn.proj, .*; found mlp.fc1"),
    ],
)
def test_a_tuner_says_what_does_not_fit_the_backbone(options: dict[str, Any], message: str) -> None:
    vit = create_vit()
    if "targets" in options:
        for block in vit.blocks:  # a matrix by a name that no target means
            block.mlp.first = block.mlp.fc1
            del block.mlp.fc1
    (tuner,) = create_tuners([options])
    with pytest.raises(BackboneError, match=message):
        tuner.apply(vit)


def test_labels_and_names() -> None:
    labels = [tuner.label for tuner in create_tuners([*VARIANTS, {"kind": "vpt", "name": "vpt-wide"}])]
    alone = ["linear", "full", "bitfit", "lora", "dora", "adaptformer", "ssf", "dtl", "pixels"]
    odd = ["vpt-shallow", "vapt-odd", "lora-odd", "dora-odd", "vpt-wide"]
    assert labels == ["vpt-deep", "vapt", *alone, *odd]


@pytest.mark.parametrize("tuner", TUNER_CASES)
def test_a_tuner_survives_json(tuner: Tuner) -> None:
    assert create_tuners([tuner.model_dump(mode="json")]) == (tuner,)


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        ([{"kind": "vptt"}], ["candidates.0", ", ".join(TUNERS), "vptt", "Did you mean 'vpt'"]),
        ([{"lr": 1}], ["no kind", "linear, full, bitfit, lora, dora, adaptformer, ssf, vpt, vapt"]),
        ([{"kind": "lora", "targets": ["attn.kqv"]}], ["targets", "attn.qkv"]),
        (
            [{"kind": "linear"}, {"kind": "vpt", "num_promts": 5}],
            ["candidates.1", "num_prompts", "'num_promts'", "deep"],
        ),
        ([{"kind": "vpt", "num_prompts": 0}], ["num_prompts = 0", "greater than or equal to 1"]),
        ([{"kind": "full", "lr": -1}], ["lr = -1"]),
        ([{"kind": "vpt", "name": "Bad name!"}], ["name = 'Bad name!'"]),
        ([{"kind": "vpt"}, {"kind": "vpt", "num_prompts": 50}], ["vpt-deep more than once", "name: "]),
    ],
)
def test_mistakes_are_named_with_what_is_legal(candidates: list[dict[str, Any]], words: list[str]) -> None:
    with pytest.raises(DomainError) as caught:
        create_tuners(candidates)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("module", ["components.models.tuners", "components.models.adapter"])
def test_importing_it_imports_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'peft', 'safetensors.torch')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
def test_peft_says_nothing_and_asks_no_network() -> None:
    code = """
import socket, sys
def refuse(*_, **__): raise SystemExit("the network")
socket.socket.connect = socket.getaddrinfo = refuse
sys.path.insert(0, "tests")
from vits import create_vit
from components.models.tuners import create_tuners
for tuner in create_tuners([{"kind": "lora"}, {"kind": "dora"}]):
    tuner.apply(create_vit()).merge()
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_vapts_prompts_start_as_means_of_regions() -> None:
    (tuner,) = create_tuners([{"kind": "vapt", "num_prompts": 4, "kernel": 1}])
    projector = tuner.apply(create_vit()).prompts.tokenwise[0].eval()
    x = torch.randn(2, 17, 24)
    patches = projector.norm(x)[:, 1:].unflatten(1, (4, 4))  # (B, H, W, D)
    quarters = [patches[:, i : i + 2, j : j + 2].mean(dim=(1, 2)) for i in (0, 2) for j in (0, 2)]
    torch.testing.assert_close(projector(x), torch.stack(quarters, dim=1))


@pytest.mark.parametrize("count", [1, 7, 10, 50])
def test_regions_cover_the_grid_in_equal_parts(count: int) -> None:
    weights = average_regions(count, 4, 3)
    assert weights.shape == (count, 12)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(count))
    assert len(weights.unique(dim=0)) >= min(count, 12)


@pytest.mark.parametrize(("start", "dropout"), [("zeros", 0.0), ("zeros", 0.1), ("regions", 0.0)])
def test_from_zero_and_without_dropout_vapts_prompts_of_a_block_stay_equal(start: str, dropout: float) -> None:
    """They get the same gradient: known, and why regions are the default."""
    (tuner,) = create_tuners([{"kind": "vapt", "num_prompts": 4, "dropout": dropout, "start": start}])
    network = create_network(create_backbone(), tuner, 4, seed=0).train()
    weight = network.encoder.prompts.tokenwise[0].linear.weight
    assert bool((weight == 0).all()) == (start == "zeros")
    images = create_images(network.encoder.vit, 8)
    optimizer = torch.optim.AdamW(network.trainable_parameters().values(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), torch.arange(8) % 4).backward()
        optimizer.step()
    apart = float((weight.std(dim=0).mean() / weight.abs().mean()).detach())
    assert apart < 1e-4 if (start, dropout) == ("zeros", 0.0) else apart > 1e-3
