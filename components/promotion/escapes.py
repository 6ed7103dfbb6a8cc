"""What a domain's `decision` lets pass, and what that costs, with intervals: for the gate, the report and the card."""

import math

import polars as pl

from components.domain.domain import Domain
from components.promotion.statistics import Interval, bootstrap, bound_unseen, count_groups
from components.records.decisions import PassRule
from components.records.outcomes import PassRates, PassReport
from components.tasks.base import PREDICTED, number_names, read_probabilities
from components.tasks.decisions import measure_rates, measure_share


def measure_escapes(frame: pl.DataFrame, label: str, confidence: float) -> Interval | None:
    """The share of the images of other classes that are answered this one; None where there is no such image."""
    others = frame.filter(pl.col("label") != label).sort("id")
    if others.is_empty():
        return None
    passed = (others[PREDICTED] == label).to_numpy()
    return bootstrap(measure_share(passed, others["group"].to_numpy()), confidence)


def report_decision(rule: PassRule, val: pl.DataFrame, test: pl.DataFrame, domain: Domain) -> PassReport:
    """The shares of both splits, and in sentences what they do not show. val, test: predictions by this rule."""
    rates = {split: _measure(rule, frame, domain) for split, frame in (("validation", val), ("test", test))}
    never = f"No probability keeps the escapes of validation within {100 * rule.escape:.3g} %: every image is an alarm."
    notes = [never] * (rule.threshold > 1)
    notes += [text for split, found in rates.items() for text in _list_doubts(split, found, rule, domain)]
    return PassReport(rule=rule, val=rates["validation"], test=rates["test"], notes=tuple(notes))


def _measure(rule: PassRule, frame: pl.DataFrame, domain: Domain) -> PassRates:
    images, confidence = frame.sort("id"), domain.gates.confidence
    targets = number_names(images["label"], domain.classes)
    chances, groups = read_probabilities(images, domain.classes), images["group"].to_numpy()
    found = measure_rates(targets, chances, groups, domain.classes, rule)
    scores = {name: bootstrap(evidence, confidence).to_score() for name, evidence in found.items()}
    passing = int((images["label"] == rule.label).sum())
    return PassRates(
        passing=passing,
        others=images.height - passing,
        escapes=scores.get("escapes"),
        false_alarms=scores.get("false_alarms"),
        abstained=scores.get("abstained"),
        plain_escapes=scores.get("plain_escapes"),
        plain_false_alarms=scores.get("plain_false_alarms"),
    )


def _list_doubts(split: str, rates: PassRates, rule: PassRule, domain: Domain) -> list[str]:
    """Whether so many groups could show the limit at all, and whether the escapes are surely above it."""
    if rates.escapes is None:
        return [f"No {split} image is of another class than {rule.label}: nothing is known of its escapes."]
    groups, confidence, limit = rates.escapes.groups or 0, domain.gates.confidence, f"{100 * rule.escape:.3g} %"
    unseen, sentences = bound_unseen(confidence, groups), list[str]()
    if unseen > rule.escape:
        needed = math.ceil(math.log((1 - confidence) / 2) / math.log1p(-rule.escape))
        sentences.append(
            f"{split.capitalize()} has {rates.others:,} images of other classes in {count_groups(groups)}, too few to "
            f"show escapes of at most {limit}: even with none of them the true share may be {100 * unseen:.1f} % "
            f"(interval at {confidence:.0%}). That takes {needed:,} groups."
        )
    if rates.escapes.low is not None and rates.escapes.low > rule.escape:
        sentences.append(f"On {split} the escapes are surely above the limit of {limit}.")
    return sentences
