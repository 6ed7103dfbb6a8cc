"""A decision in words and rows: what passes by it and what that costs, as terminal, report, card and MLflow say it."""

from collections.abc import Sequence
from dataclasses import dataclass

from components.records.decisions import PassRule
from components.records.outcomes import PassReport, Score

HEADS = ("share of images", "validation [95 %]", "test [95 %]", "test, without it")


@dataclass(frozen=True)
class Passes:
    """rule: how an image is answered. terms: what the shares are of. origin: of how many images, and how they are made.
    rows: the shares, below HEADS. notes: what the figures do not show."""

    rule: str
    terms: str
    origin: str
    rows: Sequence[tuple[str, ...]]
    notes: Sequence[str]


def describe_decision(report: PassReport) -> Passes:
    """The table compares the decision on test with the most probable class as the answer."""
    label, val, test = report.rule.label, report.val, report.test
    rows = [
        ("escapes", show_share(val.escapes), show_share(test.escapes), show_share(test.plain_escapes)),
        (
            "false alarms",
            show_share(val.false_alarms),
            show_share(test.false_alarms),
            show_share(test.plain_false_alarms),
        ),
    ]
    if report.rule.abstain:
        rows.append(("left to a person", show_share(val.abstained), show_share(test.abstained), ""))
    terms = (
        f"Escapes: images of other classes that are answered {label}. False alarms: images of {label} that are not. "
        "Without it the most probable class is the answer."
    )
    origin = (
        f"Validation has {val.others:,} images of other classes and {val.passing:,} of {label}, test has "
        f"{test.others:,} and {test.passing:,}. Shares are averaged over the images of a group, then over the groups. "
        "The threshold was chosen on validation, so that only test shows what it keeps."
    )
    return Passes(describe_rule(report.rule), terms, origin, rows, report.notes)


def describe_rule(rule: PassRule) -> str:
    """How an image is answered."""
    limit = f"chosen for escapes of at most {100 * rule.escape:.3g} %"
    if rule.threshold > 1:
        return f"No image is answered {rule.label}, whatever its probability ({limit})."
    left = f"; where {rule.label} is the most probable one but below that, a person must look" if rule.abstain else ""
    return (
        f"An image is answered {rule.label} where its probability is at least {rule.threshold:.3g} ({limit}), else the "
        f"most probable other class{left}."
    )


def show_share(score: Score | None) -> str:
    """`0.8 % [0.2 2.1]`; `not known` in the place of an interval of too few groups, and of a share of no image."""
    if score is None:
        return "not known"
    if score.low is None or score.high is None:
        return f"{100 * score.value:.1f} % not known"
    return f"{100 * score.value:.1f} % [{100 * score.low:.1f} {100 * score.high:.1f}]"
