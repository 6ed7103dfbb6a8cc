"""Predictions of the test split as evidence: the score of one model, and the paired difference of two."""

import numpy as np
import polars as pl

from components.domain.domain import Domain
from components.errors import PromotionError
from components.promotion.gates.base import Context
from components.promotion.statistics import Interval, Ints, bootstrap_difference, bootstrap_score


def score_frame(frame: pl.DataFrame, domain: Domain) -> Interval:
    """Balanced accuracy of a predictions frame with the domain's confidence."""
    labels, predicted = encode_classes(frame["label"], domain), encode_classes(frame["predicted"], domain)
    groups = frame["group"].to_numpy()
    return bootstrap_score(labels, predicted, groups, len(domain.classes), domain.gates.confidence)


def compare_frames(challenger: pl.DataFrame, champion: pl.DataFrame, domain: Domain) -> Interval:
    """Challenger minus champion in balanced accuracy, over frames of the same images in any order."""
    ours, theirs = challenger.sort("id"), champion.sort("id")
    return bootstrap_difference(
        encode_classes(ours["label"], domain),
        encode_classes(ours["predicted"], domain),
        encode_classes(theirs["predicted"], domain),
        ours["group"].to_numpy(),
        len(domain.classes),
        domain.gates.confidence,
    )


def require_evidence(context: Context) -> None:
    ours, theirs = context.challenger, context.champion
    if ours.is_empty() or set(ours["split"]) != {"test"}:
        raise PromotionError(
            f"challenger of {context.domain.name}",
            expected="predictions of the test split alone",
            found=f"{ours.height} rows of {', '.join(sorted(set(ours['split']))) or 'no split'}",
            hint="Filter the predictions to the test split; give the domain test groups where there are none.",
        )
    same = ["id", "label", "group"]
    if theirs is not None and not ours.select(same).sort("id").equals(theirs.select(same).sort("id")):
        shared = ours.join(theirs, on=same, how="semi").height
        raise PromotionError(
            f"champion of {context.domain.name}",
            expected=f"predictions for the same {ours.height} test images, labels and groups as the challenger",
            found=f"{theirs.height} rows, of which {shared} agree",
            hint="Score the champion again on the present test split.",
        )


def encode_classes(names: pl.Series, domain: Domain) -> Ints:
    """Class names to their numbers in the domain."""
    known = {name: number for number, name in enumerate(domain.classes)}
    if strangers := sorted(set(names) - set(known)):
        raise PromotionError(
            f"predictions of {domain.name}",
            expected=f"the classes {', '.join(domain.classes)}",
            found=f"{names.name} {', '.join(map(str, strangers))}",
            hint="Score the model again with the classes of the present domain.yaml.",
        )
    return np.array([known[name] for name in names], dtype=np.int64)
