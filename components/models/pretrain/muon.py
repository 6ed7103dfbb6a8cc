"""Muon: momentum, orthogonalised before each step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

For hidden matrices only; whatever is no matrix of a block belongs to AdamW. A fused qkv is three matrices.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: steep at 0, settles singular values in 0.7 .. 1.2


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, of a stack (N, rows, columns), by Newton-Schulz in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).float()
    return result


class Muon:
    """Nesterov momentum, orthogonalised; matrices of one shape go through together.

    A matrix with k times more outputs than inputs moves sqrt(k) times faster (Jordan's scaling).
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.momenta = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter, momentum in zip(self.parameters, self.momenta, strict=True):
            if parameter.grad is None:
                continue
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            update = parameter.grad.lerp(momentum, MOMENTUM)
            parts = 3 if parameter.shape[0] == 3 * parameter.shape[1] else 1
            for target, piece in zip(parameter.data.chunk(parts), update.chunk(parts), strict=True):
                by_shape.setdefault(target.shape, []).append((target, piece))
        for shape, pairs in by_shape.items():
            moves = orthogonalise(torch.stack([piece for _, piece in pairs]))
            scale = math.sqrt(max(1.0, shape[0] / shape[1]))
            for (target, _), move in zip(pairs, moves, strict=True):
                target.sub_(move, alpha=lr * scale)
