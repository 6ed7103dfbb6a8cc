"""Which points of a detector answer for which object, and of what quality their answers should be.

Task-aligned assignment (https://arxiv.org/abs/2108.07755): an object is learned by those points inside its box that
already answer it best, in class and in place. A score is then taught to be high where the box is good, so that the box
that survives non-maximum suppression is the best one.

Shapes: B images, M annotated boxes, P points, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision.ops import box_iou

from components.records.boxes import KINDS, NONE

POINTS = 9  # at most, that learn an object


class Assignment(NamedTuple):
    """qualities: (B, P, C) what each score should be: 0 for background. boxes: (B, P, 4) what each box should be.
    taken: (B, P) whether a point answers for an object. ignored: (B, P) whether a point's scores count for nothing."""

    qualities: Tensor
    boxes: Tensor
    taken: Tensor
    ignored: Tensor


def find_objects(targets: Tensor) -> Tensor:
    """(B, M) whether a row of targets (B, M, 6) is an object that counts."""
    return (targets[..., 4] != NONE) & (targets[..., 5] == KINDS.index("object"))


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, centres: Tensor, targets: Tensor, least: float) -> Assignment:
    """Scores (B, P, C) in 0 .. 1, boxes (B, P, 4), centres (P, 2) and targets (B, M, 6) with M at least 1.

    The candidates of an object are the points whose centre its box holds; a box smaller than `least` pixels is taken as
    that large for this, so that it holds a point, too. Each object takes the best of them, by score^.5 * IoU^4. A point
    that two objects take answers for the one with the larger IoU. Qualities are in proportion to score^.5 * IoU^4, such
    that an object's best one is its best IoU.
    """
    corners, classes = targets[..., :4], targets[..., 4].long().clamp(min=0)
    objects = find_objects(targets)
    iou = box_iou(corners, boxes)  # (B, M, P), as all here until a point has one owner
    score = scores.transpose(1, 2).gather(1, classes[..., None].expand_as(iou))
    candidates = hold(widen(corners, least), centres) & objects[..., None]
    fit = score.sqrt() * iou.square().square() * candidates
    last = fit.topk(min(POINTS, fit.shape[2])).values[..., -1:]
    claims = candidates & (fit >= last)
    owner = iou.where(claims, -1.0).argmax(dim=1, keepdim=True)  # (B, 1, P)
    owned = claims & (owner == torch.arange(iou.shape[1], device=iou.device)[:, None])
    best_fit, best_iou = ((values * owned).amax(dim=2) for values in (fit, iou))  # (B, M)
    share = (best_iou / best_fit.clamp(min=torch.finfo(fit.dtype).tiny))[..., None]
    taken, owner = claims.any(dim=1), owner[:, 0]
    quality = (fit * share).gather(1, owner[:, None])[:, 0] * taken
    unknown = hold(corners, centres) & ((targets[..., 4] != NONE) & ~objects)[..., None]
    return Assignment(
        qualities=F.one_hot(classes.gather(1, owner), scores.shape[2]) * quality[..., None],
        boxes=corners.gather(1, owner[..., None].expand(-1, -1, 4)),
        taken=taken,
        ignored=unknown.any(dim=1) & ~taken,
    )


def hold(boxes: Tensor, points: Tensor) -> Tensor:
    """(B, M, P) whether boxes (B, M, 4) hold points (P, 2); ends exclusive."""
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    return ((points >= low) & (points < high)).all(dim=-1)


def widen(boxes: Tensor, least: float) -> Tensor:
    """Boxes (..., 4) about the same centres, at least `least` pixels wide and high."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    reach = (boxes[..., 2:] - boxes[..., :2]).clamp(min=least) / 2
    return torch.cat([centre - reach, centre + reach], dim=-1)
