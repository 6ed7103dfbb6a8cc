"""Annotated boxes under suspicion: where several models, none of which has learned from the picture, agree against it.

A *missing* object is one that every model finds confidently where nothing is annotated. One of *another class* is
annotated as a class that no model finds there, while every model finds the same other class confidently. An
*unconfirmed* object is one where no model finds anything at any confidence: perhaps there is none, or its box is
misplaced. Only classes are asked of which the models find nearly all objects: else it is they who are at fault.

Boxes as in `components.records.boxes`, in pixels of the picture.
Shapes: C classes; M annotated and K answered boxes of a picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl

from components.records.boxes import read_objects, to_found, to_targets
from components.records.fields import Corners
from components.tasks.box_matches import OBJECT, Flags, Floats, measure_overlaps

Why = Literal["missing", "other class", "unconfirmed"]

WHYS: tuple[Why, ...] = ("missing", "other class", "unconfirmed")
FEWEST_MODELS = 2
SURE = 0.5  # calibrated confidence from which on a box speaks against an annotation
SAME = 0.5  # IoU from which on two boxes are of one object
KNOWN = 0.9  # share of a class's objects that some model finds, from which on one that none finds is suspicious
APART = 0.1  # IoU under which a box has nothing to do with an annotated one, or a region to ignore


@dataclass(frozen=True)
class Suspect:
    """One place where the models and the annotation disagree.

    id, path, split: of the picture. label: as annotated; as found where nothing is. answered: the class that every
    model finds there; None where they find nothing. box: the annotated one, or the mean of those found. confidence: the
    least of the models'; 0 where they find nothing. known: the share of the class's annotated objects that some model
    finds.
    """

    why: Why
    id: str
    path: str
    split: str
    label: str
    answered: str | None
    box: Corners
    confidence: float
    known: float = 1.0


def find_suspects(frames: Sequence[pl.DataFrame], classes: Sequence[str]) -> list[Suspect]:
    """By kind in the order of WHYS, of each kind the most suspicious first.

    frames: the predictions of each model for the same pictures, with the columns `objects` and `found`. Raises
    ValueError for fewer than FEWEST_MODELS, and for pictures that differ.
    """
    if len(frames) < FEWEST_MODELS:
        raise ValueError(f"suspicion needs {FEWEST_MODELS} models, and there are {len(frames)}")
    first, *others = (frame.sort("id") for frame in frames)
    if any(not frame["id"].equals(first["id"]) for frame in others):
        raise ValueError("suspicion needs answers for the same pictures from every model")
    answers = zip(*(frame["found"].to_list() for frame in (first, *others)), strict=True)
    suspects: list[Suspect] = []
    seen, known = np.zeros(len(classes)), np.zeros(len(classes))
    for row, answered in zip(first.iter_rows(named=True), answers, strict=True):
        truth = to_targets(read_objects(row["objects"]), classes).astype(np.float64)
        models = [to_found(found, classes) for found in answered]
        objects, ignored = truth[truth[:, 5] == OBJECT], truth[truth[:, 5] != OBJECT]
        confirmed = _find_near(objects, models, same_class=True)
        np.add.at(seen, objects[:, 4].astype(int), 1)
        np.add.at(known, objects[confirmed, 4].astype(int), 1)
        for why, label, answer, box, confidence in _doubt(objects, confirmed, ignored, models):
            name = None if answer is None else classes[answer]
            place = (row["id"], row["path"], row["split"])
            suspects.append(Suspect(why, *place, classes[label], name, box, confidence))
    shares = dict(zip(classes, (known / np.maximum(seen, 1)).tolist(), strict=True))
    rated = [replace(one, known=shares[one.label]) for one in suspects]
    return sorted((one for one in rated if one.why != "unconfirmed" or one.known >= KNOWN), key=_rank)


def _rank(one: Suspect) -> tuple[int, float, float, str]:
    x0, y0, x1, y1 = one.box
    strength = one.confidence if one.confidence else one.known
    return WHYS.index(one.why), -strength, -(x1 - x0) * (y1 - y0), one.id


def _doubt(
    objects: Floats, confirmed: Flags, ignored: Floats, models: Sequence[Floats]
) -> Iterator[tuple[Why, int, int | None, Corners, float]]:
    """Of one picture: why, the annotated class, the answered one, the box and its confidence.

    objects, ignored: the annotated boxes that count and that do not; confirmed: which of the former a model finds.
    """
    for box in _agree(models):
        overlaps = measure_overlaps(box[None], objects)[0]
        if (measure_overlaps(box[None], ignored) >= APART).any():
            continue
        if not (overlaps >= APART).any():
            yield "missing", int(box[4]), int(box[4]), _to_corners(box), float(box[5])
            continue
        place = int(overlaps.argmax())
        if overlaps[place] >= SAME and objects[place, 4] != box[4] and not confirmed[place]:
            yield "other class", int(objects[place, 4]), int(box[4]), _to_corners(objects[place]), float(box[5])
    near = _find_near(objects, models, same_class=False)
    for one in objects[~near]:
        yield "unconfirmed", int(one[4]), None, _to_corners(one), 0.0


def _agree(models: Sequence[Floats]) -> list[Floats]:
    """Boxes (6,) that every model finds confidently, of one class and in one place: their means, with the least of
    their confidences. A box of a model speaks for one of them at most."""
    first, *others = (found[found[:, 5] >= SURE] for found in models)
    free = [np.ones(len(found), bool) for found in others]
    agreed = []
    for box in first[np.argsort(-first[:, 5], kind="stable")]:
        chosen = [box]
        for found, left in zip(others, free, strict=True):
            near = measure_overlaps(found, np.array(chosen)).min(axis=1, initial=1.0)
            near = np.where(left & (found[:, 4] == box[4]), near, 0.0)
            if not len(found) or near.max() < SAME:
                break
            chosen.append(found[near.argmax()])
        else:
            for found, left, one in zip(others, free, chosen[1:], strict=True):
                left[(found == one).all(axis=1).argmax()] = False
            together = np.array(chosen)
            agreed.append(np.concatenate([together[:, :5].mean(axis=0), [together[:, 5].min()]]))
    return agreed


def _find_near(objects: Floats, models: Sequence[Floats], *, same_class: bool) -> Flags:
    """(M,) whether some model finds a box there at any confidence, of the annotated class or of any."""
    found = np.concatenate(models)
    near = measure_overlaps(found, objects).T >= SAME
    if same_class:
        near &= objects[:, None, 4] == found[None, :, 4]
    some: Flags = np.asarray(near.any(axis=1))
    return some


def _to_corners(box: Floats) -> Corners:
    x0, y0, x1, y1 = box[:4].tolist()
    return x0, y0, x1, y1
