"""The fast form and the textbook's are one function: random networks, random tuners, both modes, with gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from step_time import count, create_step
from torch import Tensor
from vits import EVAS, JOINED, VITS, create_backbone, create_images, create_vit

from components.domain.canvas import ImgSize
from components.models.attention import ImageWiseAttention, attend
from components.models.backbones import Backbone
from components.models.encoders import FORMS, PromptedEncoder, set_attention
from components.models.fast import choose_attention
from components.models.network import create_network
from components.models.tokens import POOLED, Needs, Tokens, forward_plain
from components.models.tuners import TUNERS as TUNER_KINDS
from components.models.tuners import create_tuners

CPU = torch.device("cpu")
VIT_OPTIONS = st.fixed_dictionaries(
    {
        "img_size": st.sampled_from([16, 32, (16, 40), (48, 16)]),
        "patch_size": st.sampled_from([8, (8, 4)]),
        "num_heads": st.sampled_from([1, 2, 4]),
        "depth": st.integers(2, 4),
        "reg_tokens": st.integers(0, 3),
        "class_token": st.booleans(),
        "global_pool": st.sampled_from(["token", "avg", "map", "max"]),
        "qk_norm": st.booleans(),
        "qkv_bias": st.booleans(),
        "init_values": st.sampled_from([None, 0.3]),
        "no_embed_class": st.booleans(),
        "pre_norm": st.booleans(),
    }
).filter(lambda options: options["global_pool"] != "token" or options["class_token"])
EVA_OPTIONS = st.fixed_dictionaries(
    {
        "class": st.just("Eva"),
        "img_size": st.sampled_from([16, 32, (16, 40), (48, 16)]),
        "num_heads": st.sampled_from([1, 2]),
        "depth": st.integers(2, 3),
        "num_reg_tokens": st.integers(0, 2),
        "class_token": st.booleans(),
        "global_pool": st.sampled_from(["token", "avg", "map"]),
        "qkv_bias": st.booleans(),
        "qkv_fused": st.booleans(),
        "qk_norm": st.booleans(),
        "attn_type": st.sampled_from(["eva", "rope"]),
        "use_rot_pos_emb": st.booleans(),
        "rope_type": st.sampled_from(["cat", "mixed", "dinov3"]),
        "use_abs_pos_emb": st.booleans(),
        "no_embed_class": st.booleans(),
        "scale_attn_inner": st.booleans(),
        "swiglu_mlp": st.booleans(),
        "scale_mlp": st.booleans(),
        "init_values": st.sampled_from([None, 0.3]),
        "attn_only_layer_scale": st.booleans(),
        "dynamic_img_size": st.booleans(),
    }
).filter(lambda options: options["global_pool"] != "token" or options["class_token"])
TUNERS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("vpt"), "deep": st.booleans(), "num_prompts": st.integers(1, 5)}),
    st.fixed_dictionaries(
        {
            "kind": st.just("vapt"),
            "num_prompts": st.integers(1, 5),
            "static_blocks": st.integers(1, 1),
            "kernel": st.integers(1, 2),
            "bottleneck": st.integers(1, 3),
        }
    ),
    st.just({"kind": "linear"}),
)


def create_encoder(vit: Any, options: dict[str, Any], dtype: torch.dtype) -> PromptedEncoder:
    """Away from every start that hides what a parameter does."""
    encoder: PromptedEncoder = create_tuners([options])[0].apply(vit)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return encoder.to(dtype)


def join(tokens: Tokens, needs: Needs) -> Tensor:
    """All that was asked for, as one matrix (B, ...)."""
    parts = [tokens.pooled] if needs.pooled else []
    parts += [tokens.patches] if needs.patches else []
    parts += tokens.layers
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def run(
    encoder: PromptedEncoder, images: Tensor, form: str, train: bool, needs: Needs = POOLED
) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.form = form  # type: ignore[assignment]
    encoder.train(train)
    encoder.zero_grad()
    torch.manual_seed(3)  # the same prompts and channels are dropped
    features = join(encoder(images, needs), needs)
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        (features * torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return features.detach(), gradients


@settings(max_examples=90, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    vit_options=VIT_OPTIONS | EVA_OPTIONS,
    options=TUNERS,
    fused=st.booleans(),
    train=st.booleans(),
    batch=st.integers(1, 3),
    asked=st.tuples(st.booleans(), st.booleans(), st.sets(st.integers(0, 3))),
)
@pytest.mark.parametrize(
    ("dtype", "near", "bound"), [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-5, 2e-4)], ids=["double", "single"]
)
def test_both_forms_give_the_same_tokens_and_gradients(
    dtype: torch.dtype,
    near: float,
    bound: float,
    vit_options: dict[str, Any],
    options: dict[str, Any],
    fused: bool,
    train: bool,
    batch: int,
    asked: tuple[bool, bool, set[int]],
) -> None:
    vit = create_vit(vit_options)
    pooled, patches, layers = asked[0], asked[1], tuple(n for n in sorted(asked[2]) if n < len(vit.blocks))
    needs = Needs(pooled or not (patches or layers), patches, layers)
    encoder = create_encoder(vit, options, dtype)
    set_attention(vit, fused)
    images = create_images(vit, batch).to(dtype)
    features, gradients = run(encoder, images, "fast", train, needs)
    expected, reference = run(encoder, images, "textbook", train, needs)
    scale = float(expected.abs().max())
    torch.testing.assert_close(features / scale, expected / scale, atol=near, rtol=near)
    assert gradients.keys() == reference.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, float(reference[name].abs().max()))
        torch.testing.assert_close(gradient / scale, reference[name] / scale, atol=bound, rtol=bound, msg=name)


@pytest.mark.parametrize("options", [{"img_size": (24, 56)}, {"img_size": (96, 32), "patch_size": 16}], ids=str)
@pytest.mark.parametrize("kind", TUNER_KINDS)
def test_on_a_grid_that_is_not_square_every_tuner_computes_what_its_paper_says(
    kind: str, options: dict[str, Any]
) -> None:
    """As a job computes in float32, against the textbook form, or timm's own forward, in float64."""
    needs = Needs(pooled=True, patches=True, layers=(0, 1))
    networks = [create_network(create_backbone(options), create_tuners([{"kind": kind}])[0], 3, 0) for _ in range(2)]
    for network in networks:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.trainable_parameters().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    fast, textbook = (network.eval().encoder for network in networks)
    textbook.form = "textbook"
    images = create_images(textbook.vit, 3)
    expected = join(textbook.double()(images.double(), needs), needs).detach()
    networks[0].prepare(torch.float32, CPU, fused_attention=True)
    found = join(fast(images, needs), needs).detach()
    scale = max(float(expected.abs().max()), 1)
    torch.testing.assert_close(found.double() / scale, expected / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [pytest.param(options, id=name) for name, options in (VITS | EVAS | JOINED).items()]
)
@pytest.mark.parametrize("tuner", [{"kind": "vpt", "num_prompts": 3}, {"kind": "vapt", "num_prompts": 3}])
class TestTheory:
    def test_no_prompts_change_nothing(self, tuner: dict[str, Any], options: dict[str, Any]) -> None:
        vit = create_vit(options)

        class Nobody:
            flows = False

            def __call__(self, index: int, x: Tensor) -> Tensor:
                return x[:, :0]

            answer_fast = __call__

        encoder = PromptedEncoder(vit, None)
        encoder.__dict__["prompts"] = Nobody()
        images, needs = create_images(vit), Needs(pooled=True, patches=True, layers=(0, 2))
        expected = join(forward_plain(vit, images, needs), needs)
        for form in ("fast", "textbook"):
            torch.testing.assert_close(run(encoder, images, form, False, needs)[0], expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        ("change", "bound"),
        [
            pytest.param(lambda tokens: tokens[:, [2, 0, 1]], 1e-10, id="order"),
            # The norm before attention is all that reads them: of 7 p + 3 it sees p, but for its epsilon.
            pytest.param(lambda tokens: 7 * tokens + 3, 1e-3, id="scale and shift"),
        ],
    )
    def test_deep_prompts_are_free_of(
        self, change: Callable[[Tensor], Tensor], bound: float, tuner: dict[str, Any], options: dict[str, Any]
    ) -> None:
        vit = create_vit(options)
        encoder = create_encoder(vit, tuner, torch.float64)
        images = create_images(vit).double()
        before, _ = run(encoder, images, "fast", False)
        if options.get("norm_layer") == "rmsnorm" and bound > 1e-10:
            change = partial(torch.mul, torch.tensor(7.0))  # such a norm takes out the scale alone
        static = encoder.prompts if tuner["kind"] == "vpt" else encoder.prompts.static
        with torch.no_grad():
            static.tokens.copy_(change(static.tokens))
        torch.testing.assert_close(run(encoder, images, "fast", False)[0], before, atol=bound, rtol=bound)


def test_nothing_is_kept_below_the_first_prompted_block() -> None:
    """Neither for the frozen weights nor for tokens that no gradient reaches."""
    vit = create_vit({"depth": 4})
    encoder = create_encoder(vit, {"kind": "vpt", "num_prompts": 2, "dropout": 0}, torch.float32)

    class FromThird:
        flows = False

        def answer_fast(self, index: int, x: Tensor) -> Tensor | None:
            return encoder.prompts.answer_fast(index, x) if index >= 2 else None

    kept: list[int] = []
    seen: list[int] = []
    vit.blocks[2].norm1.register_forward_pre_hook(lambda *_: seen.append(len(kept)))
    other = PromptedEncoder(vit, None)
    other.__dict__["prompts"] = FromThird()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        other(create_images(vit)).pooled.sum().backward()
    assert seen[0] == 0
    assert kept
    assert all(parameter.grad is None for parameter in vit.parameters())


@pytest.mark.parametrize("kind", ["vpt", "vapt"])
def test_less_than_half_is_kept_for_the_backward_pass(kind: str) -> None:
    """As `benchmarks/step_time.py` counts it, against the textbook's form under autocast."""
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=0).requires_grad_(False).eval()
    backbone = Backbone("tiny", vit, "", ImgSize(224, 224), (0.5,) * 3, (0.5,) * 3, trained=False, licence="")
    kept = {}
    for form in FORMS:
        network = create_network(backbone, create_tuners([{"kind": kind, "num_prompts": 50}])[0], 10, 0)
        network.encoder.form = form
        if form == "fast":
            network.prepare(torch.bfloat16, CPU, fused_attention=False)
        images, targets = torch.randn(2, 3, 224, 224), torch.tensor([0, 1])
        kept[form] = count(create_step(network, images, targets, torch.bfloat16, fused=False))[1]
    assert kept["fast"] < 0.45 * kept["textbook"]


@pytest.mark.parametrize("prompts", [None, 1, 3])
@pytest.mark.parametrize("needs", [(True, True), (False, True), (True, False)])
def test_image_wise_attention_is_attention(prompts: int | None, needs: tuple[bool, bool]) -> None:
    """Against torch's own gradients, for prompts that are one set for all (1) or an image's own (3)."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 5, 24, generator=generator, dtype=torch.float64, requires_grad=needs[0])
    pairs = None
    if prompts:
        pairs = torch.randn(prompts, 2, 16, generator=generator, dtype=torch.float64, requires_grad=needs[1])
    if not any(tensor is not None and tensor.requires_grad for tensor in (qkv, pairs)):
        pytest.skip("nothing to learn")
    assert torch.autograd.gradcheck(lambda a, b: ImageWiseAttention.apply(a, b, 2, 0.5), (qkv, pairs))
    q, k, v = qkv.chunk(3, dim=-1)
    if pairs is not None:
        k, v = (
            torch.cat([part.expand(3, -1, -1), own], 1) for part, own in zip(pairs.chunk(2, -1), (k, v), strict=True)
        )
    q, k, v = (part.reshape(3, part.shape[1], 2, 4).transpose(1, 2) for part in (q, k, v))
    expected = attend(q, k, v, 0.5, fused=False).transpose(1, 2).flatten(2)
    torch.testing.assert_close(ImageWiseAttention.apply(qkv, pairs, 2, 0.5), expected)


def test_bfloat16_stays_near_and_what_learns_stays_float32() -> None:
    backbone = create_backbone({"embed_dim": 48, "depth": 4})
    vit = backbone.vit
    encoder = create_encoder(vit, {"kind": "vapt", "num_prompts": 3}, torch.float32)
    images = create_images(vit, 4)
    exact, exact_gradients = run(encoder, images, "fast", False)
    encoder.prepare(backbone, torch.bfloat16, CPU, fused_attention=False)
    near, gradients = run(encoder, images, "fast", False)
    assert near.dtype == torch.bfloat16
    assert {p.dtype for p in encoder.parameters() if p.requires_grad} == {torch.float32}
    assert float((near - exact).norm() / exact.norm()) < 0.05
    together = [torch.cat([g[name].flatten() for name in exact_gradients]) for g in (gradients, exact_gradients)]
    assert float(torch.cosine_similarity(*together, dim=0)) > 0.98


def test_the_probe_leaves_the_dice_alone() -> None:
    state = torch.random.get_rng_state()
    choices = {choose_attention(torch.device("cpu"), torch.float32) for _ in range(3)}
    assert len(choices) == 1
    assert torch.equal(state, torch.random.get_rng_state())
