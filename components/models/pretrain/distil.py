"""What the student learns: the teacher's hidden states, block by block.

A student that sees only the teacher's last features learns next to nothing from images that show nothing
(pilots of 8,000 images: no better than random numbers). Told the hidden state after every block it learns at
once (hints: Romero et al. 2015, arXiv:1412.6550), and faster still when early in training each block is fed
the teacher's state instead of the student's poor one (teacher forcing: Williams and Zipser 1989).

Shapes: images (B, 3, H, W); a hidden state (B, 1+N, D), the class token first, then N patches.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

CLASS_TOKEN_WEIGHT = 8.0  # patches
CLASS_TOKEN_FLOOR = 0.2  # of the patches' mean scale
FINAL_WEIGHT, HINTS_WEIGHT = 3.0, 3.0
WHITENING_FLOOR = 1e-3  # of the mean variance, below which a direction of the patches counts as noise


class Student(nn.Module):
    """A ViT of the teacher's shape and random weights, whose patch projection sees whitened patches.

    Neighbouring pixels agree so much that the raw projection learns fine structure a thousand times slower
    than brightness; through the whitening all directions learn alike. `fold` multiplies it into the weights.
    """

    mean: Tensor
    whitener: Tensor

    def __init__(self, teacher: "VisionTransformer", mean: Tensor, whitener: Tensor, seed: int) -> None:
        super().__init__()
        vit: Any = copy.deepcopy(teacher)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vit.init_weights("")
            weight = torch.randn(vit.embed_dim, whitener.shape[0]) * (0.3 / whitener.shape[0] ** 0.5)
        self.vit = use_plain_attention(vit).requires_grad_(True)
        self.vit.patch_embed.proj.weight.requires_grad_(False)  # made by `fold`
        self.vit.patch_embed.proj.bias.requires_grad_(False)
        self.projection = nn.Parameter(weight)
        self.offset = nn.Parameter(torch.zeros(vit.embed_dim))
        self.register_buffer("mean", mean)
        self.register_buffer("whitener", whitener)

    def project(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the plain patch projection that does the same."""
        # The whitener's gains differ by hundreds: rounded to bfloat16 the strong would drown the weak.
        with torch.autocast("cpu", enabled=False):
            weight = self.projection @ self.whitener
            bias = self.offset - weight @ self.mean
        return weight.reshape(self.vit.patch_embed.proj.weight.shape), bias

    def forward(self, images: Tensor, given: Sequence[Tensor] = (), forced: Tensor | None = None) -> list[Tensor]:
        """Hidden states as `hidden_states` gives them; where forced (blocks, B) the input of a block is `given`'s."""
        weight, bias = self.project()
        embed = functional_call(self.vit.patch_embed, {"proj.weight": weight, "proj.bias": bias}, (images,))
        state = self.vit._pos_embed(embed).float()

        def feed(index: int, state: Tensor) -> Tensor:
            return state if forced is None else torch.where(forced[index][:, None, None], given[index], state)

        return _run_blocks(self.vit, state, feed)

    @torch.no_grad()
    def fold(self) -> dict[str, Tensor]:
        """The state dict of a plain ViT."""
        weight, bias = self.project()
        self.vit.patch_embed.proj.weight.copy_(weight)
        self.vit.patch_embed.proj.bias.copy_(bias)
        state: dict[str, Tensor] = self.vit.state_dict()
        return state


def hidden_states(vit: Any, images: Tensor) -> list[Tensor]:
    """The embedding, the state after every block, and last the state after the final norm: blocks + 2 tensors."""
    return _run_blocks(vit, vit._pos_embed(vit.patch_embed(images)).float(), lambda _, state: state)


def resample_patches(state: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """A hidden state on another grid: patches averaged over the area they share, the class token as it is."""
    if grid == wanted:
        return state
    patches = state[:, 1:].transpose(1, 2).reshape(len(state), -1, *grid)
    resampled = F.interpolate(patches, wanted, mode="bilinear", antialias=True)
    return torch.cat([state[:, :1], resampled.flatten(2).transpose(1, 2)], 1)


def use_plain_attention(vit: Any) -> Any:
    """Products and softmax instead of the fused kernel, with which a bfloat16 step on a CPU takes 1.7 times as long."""
    for block in vit.blocks:
        block.attn.fused_attn = False
    return vit


@dataclass(frozen=True)
class Targets:
    """How far each number of each hidden state may be off: one scale (2, D) a state, class token and patches.

    bias: (D,) mean of the features after the final norm, where the student's bias starts.
    """

    scales: tuple[Tensor, ...]
    bias: Tensor


def measure_targets(batches: Sequence[Sequence[Tensor]]) -> Targets:
    """Scales from the hidden states of some batches.

    The scale is the geometric mean of a number's spread and of the spread of what the block adds to it: by the
    first alone a few huge dimensions hide what blocks do, by the second alone their noise is learned.
    """
    states = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    scales = []
    for index, state in enumerate(states):
        spread = _spread(state)
        residual = 0 < index < len(states) - 1
        added = _spread(state - states[index - 1]) if residual else spread
        scale = (spread * added).sqrt()
        if index == 0:
            scale[0] = scale[1]  # before the first block the class token is the same for all images
        scale[0] = torch.maximum(scale[0], CLASS_TOKEN_FLOOR * scale[1].mean())  # and after it, nearly
        scales.append(scale.clamp(min=0.05 * scale.mean(1, keepdim=True)))
    return Targets(tuple(scales), states[-1].mean((0, 1)))


def distillation_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], targets: Targets) -> tuple[Tensor, Tensor]:
    """3 x the loss of the final features + 3 x the mean of the hints', and the former alone (detached)."""
    losses = [_state_loss(*triple) for triple in zip(student, teacher, targets.scales, strict=True)]
    final, hints = losses[-1], torch.stack(losses[:-1]).mean()
    return FINAL_WEIGHT * final + HINTS_WEIGHT * hints, final.detach()


def measure_whitening(patches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (P,) and whitener (P, P), symmetric (ZCA), of patches (n, P); weak directions are not blown up."""
    rows = torch.cat(list(patches))
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh((centred.T @ centred / len(rows)).double())
    gains = (values.clamp(min=0) + WHITENING_FLOOR * values.mean()).rsqrt()
    return mean, ((vectors * gains) @ vectors.T).float()


def cut_patches(images: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) to (B x N, 3 x patch x patch), in the order of a projection's weights."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)


def _run_blocks(vit: Any, state: Tensor, feed: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
    states = [state]
    for index, block in enumerate(vit.blocks):
        states.append(block(feed(index, states[-1])))
    return [*states, vit.norm(states[-1]).float()]


def _state_loss(student: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    losses = []
    for tokens, gain in ((slice(0, 1), 1 / scale[0]), (slice(1, None), 1 / scale[1])):
        losses.append(F.smooth_l1_loss(student[:, tokens] * gain, teacher[:, tokens] * gain))
    patches = student.shape[1] - 1
    return (CLASS_TOKEN_WEIGHT * losses[0] + patches * losses[1]) / (CLASS_TOKEN_WEIGHT + patches)


def _spread(state: Tensor) -> Tensor:
    """Standard deviations (2, D) of the class token over images and of patches over images and places."""
    return torch.stack([state[:, 0].std(0), state[:, 1:].flatten(0, 1).std(0)])
