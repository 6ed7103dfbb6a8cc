"""Tables and sentences that the terminal, the retrain report and the card share."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.records.outcomes import CandidateRow, Score, Searched, TunerRow

HEADS = ("candidate", "seed", "trainable", "share", "val", "test [95 %]", "secs", "adapter")


def list_gains(tuners: Sequence[TunerRow]) -> list[str]:
    """A sentence per candidate on its gain over the linear probe; none of an outcome of an older version."""
    if not tuners:
        return []
    if not any(row.kind == "linear" for row in tuners):
        return ["No `linear` among the candidates: nothing says whether these are worth more than a linear probe."]
    gains = [row.over_linear.text for row in tuners if row.over_linear]
    solved = [row for row in tuners if row.kind == "linear" and len(row.seeds) > 1]
    return gains + [f"{row.tuner} is solved, not trained: its {len(row.seeds)} seeds are one head." for row in solved]


def list_searches(tuners: Sequence[TunerRow]) -> dict[str, str]:
    """What each search took and chose, as a sentence by the tuner's name; empty without searches."""
    return {row.tuner: render_search(row.search) for row in tuners if row.search}


def render_search(search: Searched) -> str:
    """What a search took and chose, in a sentence."""
    chosen = render_options(search.options) or "nothing to choose"
    rungs = ", ".join(str(epochs) for epochs in search.rungs)
    return (
        f"{chosen}: of {search.trials} trials compared after {rungs} epochs with seed {search.seed}, "
        f"in {search.seconds:.0f} s"
    )


def render_options(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in options.items()
    )


def describe_candidate(row: CandidateRow) -> tuple[str, ...]:
    """The cells of one candidate's row, as the terminal and the report show them; HEADS are above them."""
    return (mark_selected(row), str(row.seed), *describe_numbers(row))


def mark_selected(row: CandidateRow | TunerRow) -> str:
    """The name, and a sign before that of the selected one."""
    return ("► " if row.selected else "  ") + row.tuner


def describe_numbers(row: CandidateRow | TunerRow) -> tuple[str, ...]:
    """The cells of costs and scores."""
    return (
        f"{row.trainable_params:,}",
        f"{100 * row.share:.3g} %",
        f"{row.val:.3f}",
        format_score(row.test),
        f"{row.seconds:.1f}",
        format_bytes(row.adapter_bytes),
    )


def format_bytes(size: int) -> str:
    """123 kB, 4.5 MB: decimal units, as disks are sold."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def format_score(score: Score) -> str:
    """`0.912 [0.85 0.96]`, or `0.912 not known` where no interval is."""
    if score.low is None or score.high is None:
        return f"{score.value:.3f} not known"
    return f"{score.value:.3f} [{score.low:.2f} {score.high:.2f}]"
