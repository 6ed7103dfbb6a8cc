"""The class that lets an image pass: from which probability on it is answered, so that few others pass with it.

A decision names one class, such as `good`, and the largest share of the images of other classes that may be answered
this class, the escapes. Shares are averaged over the images of a group, and then over the groups: many pictures of one
part are one witness.

Shapes: N images, C classes, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from components.domain.settings import Decision
from components.errors import DataError
from components.records.decisions import PassRule
from components.tasks.base import CountEvidence, Floats, Ints, number_groups, sum_by_group
from components.tasks.calibration import TINY, Calibration

Flags = NDArray[np.bool_]
Names = NDArray[np.generic]

EVEN = 0.5
NEVER = 2.0  # a threshold that no probability reaches, of whatever precision


def decide(probabilities: Floats, classes: Sequence[str], rule: PassRule | None) -> Ints:
    """(N, C) calibrated probabilities -> (N,) the number of the class that each image is answered."""
    likeliest: Ints = probabilities.argmax(axis=1)
    if rule is None:
        return likeliest
    place = list(classes).index(rule.label)
    others = probabilities.copy()
    others[:, place] = -1.0
    return np.where(probabilities[:, place] >= rule.threshold, place, others.argmax(axis=1))


def abstains(probabilities: Floats, classes: Sequence[str], rule: PassRule | None) -> Flags:
    """(N,) which images are left to a person: the class that lets them pass is the most probable, and not enough so."""
    if rule is None or not rule.abstain:
        return np.zeros(len(probabilities), bool)
    place = list(classes).index(rule.label)
    flags: Flags = (probabilities.argmax(axis=1) == place) & (probabilities[:, place] < rule.threshold)
    return flags


def find_alternative(probabilities: Mapping[str, float]) -> str:
    """The second most probable class: what an image counts as that is left to a person because of the first."""
    first = max(probabilities, key=lambda name: probabilities[name])
    return max((name for name in probabilities if name != first), key=lambda name: probabilities[name])


def choose_decision(
    calibration: Calibration,
    decision: Mapping[str, Decision],
    targets: Ints,
    probabilities: Floats,
    groups: Names,
    classes: Sequence[str],
) -> Calibration:
    """The calibration with the rule chosen on validation, and what it reaches there; unchanged without a decision.

    targets: (N,) numbers of classes. probabilities: (N, C), calibrated. groups: (N,) names.
    """
    for label, asked in decision.items():
        place = list(classes).index(label)
        passing, chances = targets == place, probabilities[:, place]
        threshold = choose_threshold(passing, chances, groups, asked.escape)
        rule = PassRule(label=label, threshold=threshold, **asked.model_dump())
        reached = name_rates(targets, probabilities, groups, classes, rule)
        return replace(calibration, decision=rule, reason=f"{calibration.reason}. {_explain(rule, reached)}")
    return calibration


def choose_threshold(passing: Flags, chances: Floats, groups: Names, limit: float) -> float:
    """The lowest threshold with which at most this share of the images of other classes passes, (N,) each; at least one
    half.

    An image that is more probably of another class never passes: few images of validation can seem to allow it, and
    those of the next lot pay for it. Above one half the threshold lies halfway between the highest probability that
    must not pass and the next one, so that rounding changes no answer; it is NEVER where there is no next one.
    """
    names, places = np.unique(groups[~passing], return_inverse=True)
    places = places.reshape(-1)
    weights = 1 / (np.bincount(places)[places] * len(names))
    order = np.argsort(-chances[~passing], kind="stable")
    ranked, escaped = chances[~passing][order], np.cumsum(weights[order])
    ends = np.flatnonzero(np.diff(ranked, append=-1.0))  # the last image of each run of equal probabilities
    barred = ranked[ends[escaped[ends] > limit + TINY][0]]
    if barred < EVEN:
        return EVEN
    above = chances[chances > barred]
    if not len(above):
        return NEVER
    middle = float((barred + above.min()) / 2)
    return middle if middle > barred else float(above.min())


def measure_rates(
    targets: Ints, probabilities: Floats, groups: Names, classes: Sequence[str], rule: PassRule
) -> dict[str, CountEvidence]:
    """Evidence of escapes, false_alarms and abstained, and of the first two where the most probable class is answered,
    plain_escapes and plain_false_alarms. A share of no image is left out.

    escapes: share of the images of other classes that pass. false_alarms: share of those of the class itself that do
    not. abstained: share of all images that is left to a person.
    """
    place = list(classes).index(rule.label)
    passed = decide(probabilities, classes, rule) == place
    plain, passing = probabilities.argmax(axis=1) == place, targets == place
    shares = {
        "escapes": (passed, ~passing),
        "false_alarms": (~passed, passing),
        "abstained": (abstains(probabilities, classes, rule), np.ones(len(targets), bool)),
        "plain_escapes": (plain, ~passing),
        "plain_false_alarms": (~plain, passing),
    }
    return {name: measure_share(flags[of], groups[of]) for name, (flags, of) in shares.items() if of.any()}


def measure_share(flags: Flags, names: Names) -> CountEvidence:
    """Evidence of the share of images (N,) that are flagged, averaged over the images of a group (N,) and then over the
    groups."""
    groups, number = number_groups(names)
    shares = sum_by_group(flags, groups, number) / sum_by_group(np.ones(len(groups)), groups, number)
    return CountEvidence(groups, shares, np.ones_like(shares), lambda shares, groups: (shares / groups)[:, 0])


def name_rates(
    targets: Ints, probabilities: Floats, groups: Names, classes: Sequence[str], rule: PassRule
) -> dict[str, float]:
    """The shares themselves, as a run's metrics have them."""
    found = measure_rates(targets, probabilities, groups, classes, rule)
    return {name: float(evidence.own.mean()) for name, evidence in found.items()}


def require_witnesses(decision: Mapping[str, Decision], labels: Sequence[str], where: str) -> None:
    """Raise DataError where validation cannot choose a threshold. labels: the classes of its images."""
    for name in decision:
        count = sum(label == name for label in labels)
        if not 0 < count < len(labels):
            raise DataError(
                f"{where}: decision",
                expected=f"validation images of {name} and of other classes, on which its threshold is chosen",
                found=f"{count} of {name} and {len(labels) - count} of others",
                hint="Add groups of both to validation, or remove `decision`: nothing would have measured its limit.",
            )


def _explain(rule: PassRule, reached: Mapping[str, float]) -> str:
    """What the rule reaches on validation, in a sentence."""
    if rule.threshold > 1:
        return f"Never answered {rule.label}: no probability keeps the escapes within {rule.escape:.3g}"
    return (
        f"Answered {rule.label} from {rule.threshold:.3g} on: escapes {reached['escapes']:.2%} (limit "
        f"{rule.escape:.3g}), false alarms {reached['false_alarms']:.1%} on validation"
    )
