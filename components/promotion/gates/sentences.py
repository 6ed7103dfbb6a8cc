"""Intervals and numbers as the sentences of the gates write them."""

from components.promotion.statistics import FEWEST_GROUPS, Interval, count_groups


def to_evidence(interval: Interval) -> dict[str, float | str]:
    if interval.low is None or interval.high is None:
        return {"value": interval.value, "interval": f"not known ({count_groups(interval.groups)})"}
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def ask_for_groups(interval: Interval) -> str:
    """What to do about an interval that is not known."""
    lack = FEWEST_GROUPS - interval.groups
    return (
        f"An interval needs {FEWEST_GROUPS} test groups at least and there {'is' if interval.groups == 1 else 'are'} "
        f"{interval.groups}: label {lack} more, or declare the groups in domain.yaml if these are not all."
    )


def points(share: float, signed: bool = False) -> str:
    """0.0523 -> "5.2 %"; differences carry their sign and are percentage points."""
    return f"{100 * share:+.1f} points" if signed else f"{100 * share:.1f} %"


def show(interval: Interval, signed: bool = False) -> str:
    value = points(interval.value, signed)
    if interval.low is None or interval.high is None:
        return f"{value} (interval not known, {count_groups(interval.groups)})"
    return f"{value} (between {points(interval.low, signed)} and {points(interval.high, signed)})"


def list_effects(names: list[str], effects: dict[str, Interval]) -> str:
    return ", ".join(f"{name} {show(effects[name], signed=True)}" for name in names)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
