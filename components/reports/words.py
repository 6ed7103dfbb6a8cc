"""Tables and sentences that the terminal, the retrain report, the card and MLflow's pages share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from components.records.outcomes import CandidateRow, Finding, Score, Searched, TunerRow

HEADS = ("candidate", "seed", "trainable", "share", "val", "test [95 %]", "secs", "adapter")
UNTRAINED = "The backbone is UNTRAINED (random weights): these scores show the machinery, not the methods."


def list_gains(tuners: Sequence[TunerRow]) -> list[str]:
    """Sentences on the gains of each candidate over the linear probe, and over the task's control where there is one.

    None of an outcome of an older version.
    """
    if not tuners:
        return []
    if not any(row.kind == "linear" for row in tuners):
        return ["No `linear` among the candidates: nothing says whether these are worth more than a linear probe."]
    gains = [gain.text for row in tuners for gain in row.gains]
    solved = [row for row in tuners if row.kind == "linear" and len(row.seeds) > 1 and len(set(row.test.seeds)) == 1]
    gains += [f"{row.tuner} is solved, not trained: its {len(row.seeds)} seeds are one head." for row in solved]
    return gains + doubt_backbone(tuners)


def doubt_backbone(tuners: Sequence[TunerRow]) -> list[str]:
    """A sentence where no candidate is surely better than the control, which does not use the backbone."""
    over = [row.over_control for row in tuners if row.over_control]
    if not over or any(gain.low is not None and gain.low > 0 for gain in over):
        return []
    return [
        f"None is surely better than {over[0].baseline}, the same head on the pixels alone: "
        "these images do not show that the backbone helps."
    ]


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


def without_html(markdown: str) -> str:
    """Markdown in which no user's text becomes HTML: names and descriptions are shown as they are written."""
    return markdown.replace("<", "&lt;")


class Ends(Protocol):
    """What is known of an interval: both ends or neither, and over how many groups it is."""

    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def groups(self) -> int | None: ...


class Estimate(Ends, Protocol):
    """A score with what is known of its interval."""

    @property
    def value(self) -> float: ...


def render_ends(interval: Ends, sign: str = "") -> str:
    """`0.812 to 0.934`, or `not known (2 groups)`. sign: "+" shows it."""
    if interval.low is None or interval.high is None:
        groups = interval.groups or 0
        return f"not known ({groups} group{'' if groups == 1 else 's'})"
    return f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"


def name_verdict(verdict: str) -> str:
    """A gate's verdict as shown: a gate passes, and only the verdict over all of them promotes."""
    return "pass" if verdict == "PROMOTE" else verdict


def render_gates(findings: Iterable[Finding]) -> str:
    """`floor pass, improvement HOLD`"""
    return ", ".join(f"{found.gate} {name_verdict(found.verdict)}" for found in findings)


def render_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [[f"{cell}&emsp;" for cell in cells] for cells in (heads, *lines)]
    rows.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
