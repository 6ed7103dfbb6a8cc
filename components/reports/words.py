"""Tables and sentences that the terminal, the retrain report, the card and MLflow's pages share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from components.records.outcomes import CandidateRow, Finding, Gain, Score, Searched, TunerRow

HEADS = ("candidate", "seed", "trainable", "share", "val", "test [95 %]", "secs", "adapter")
MOST_SENTENCES = 6  # on gains; more are a table
CONTROL = "*"  # behind the name of the control
UNTRAINED = "The backbone is UNTRAINED (random weights): these scores show the machinery, not the methods."


@dataclass(frozen=True)
class Gains:
    """What is said of the candidates' gains: sentences, and a table in the place of those that would be too many.

    heads, rows: of the table; empty where sentences say it all.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]


def describe_gains(tuners: Sequence[TunerRow]) -> Gains:
    """The gains over the linear probe, and over the task's control where there is one."""
    compared = _list_compared(tuners)
    if sum(len(row.gains) for row in compared) <= MOST_SENTENCES:
        return Gains((), (), tuple(list_gains(tuners)))
    kinds = {
        "linear": [row.over_linear for row in compared],
        "control": [row.over_control for row in compared],
    }
    shown = {kind: gains for kind, gains in kinds.items() if any(gains)}
    names = {kind: next(gain.baseline for gain in gains if gain) for kind, gains in shown.items()}
    rows = [
        (row.tuner, *(_describe_gain(gains[place]) for gains in shown.values())) for place, row in enumerate(compared)
    ]
    heads = ("candidate", *(f"over {names[kind]} [95 %]" for kind in shown))
    return Gains(heads, tuple(rows), tuple(_list_doubts(tuners)))


def _describe_gain(gain: Gain | None) -> str:
    """`+0.051 [+0.02 +0.08] better`, as short as a terminal wants it; nothing for the baseline itself."""
    if gain is None:
        return ""
    if gain.low is None or gain.high is None:
        return f"{gain.value:+.3f} not known"
    word = "better" if gain.low > 0 else "worse" if gain.high < 0 else "not surely"
    return f"{gain.value:+.3f} [{gain.low:+.2f} {gain.high:+.2f}] {word}"


def list_gains(tuners: Sequence[TunerRow]) -> list[str]:
    """Sentences on the gains of each candidate over the linear probe, and over the task's control where there is one.

    None of an outcome of an older version.
    """
    return [gain.text for row in _list_compared(tuners) for gain in row.gains] + _list_doubts(tuners)


def _list_compared(tuners: Sequence[TunerRow]) -> list[TunerRow]:
    """All but the control: what it is beside the linear probe, the probe's own gain over the control says."""
    control = find_control(tuners)
    return [row for row in tuners if row.tuner != control]


def _list_doubts(tuners: Sequence[TunerRow]) -> list[str]:
    """What makes a comparison say less than it seems to."""
    if not tuners:
        return []
    if not any(row.kind == "linear" for row in tuners):
        missing = "No `linear` among the candidates: nothing says whether these are worth more than a linear probe."
        return [missing, *doubt_backbone(tuners)]
    solved = [row for row in tuners if row.kind == "linear" and len(row.seeds) > 1 and len(set(row.test.seeds)) == 1]
    same = [f"{row.tuner} is solved, not trained: its {len(row.seeds)} seeds are one head." for row in solved]
    return same + doubt_backbone(tuners)


def doubt_backbone(tuners: Sequence[TunerRow]) -> list[str]:
    """A sentence where no candidate is surely better than the control, which does not use the backbone."""
    over = [row.over_control for row in tuners if row.over_control]
    if not over or any(gain.low is not None and gain.low > 0 for gain in over):
        return []
    return [
        f"None is surely better than {over[0].baseline}, the same head on the pixels alone: "
        "these images do not show that the backbone helps."
    ]


def find_control(tuners: Sequence[TunerRow]) -> str | None:
    """The name of the candidate that is the task's control; None where there is none to compare with."""
    return next((row.over_control.baseline for row in tuners if row.over_control), None)


def explain_control(tuners: Sequence[TunerRow]) -> list[str]:
    """What the mark in a table of candidates stands for; nothing where none is marked."""
    return [f"{CONTROL} the control: the same head on the pixels alone, without the backbone"] * bool(
        find_control(tuners)
    )


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


def describe_candidate(row: CandidateRow, control: str | None = None) -> tuple[str, ...]:
    """The cells of one candidate's row, as the terminal and the report show them; HEADS are above them."""
    return (mark_name(row, control), str(row.seed), *describe_numbers(row))


def mark_name(row: CandidateRow | TunerRow, control: str | None = None) -> str:
    """The name, with a sign before that of the selected one and behind that of the control."""
    return ("► " if row.selected else "  ") + row.tuner + (f" {CONTROL}" if row.tuner == control else "")


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


@dataclass(frozen=True)
class ByClass:
    """What is known of classes beside predictions. intervals: the score of each with its interval. thresholds: the
    confidence from which on each is shown."""

    intervals: Mapping[str, Estimate] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)


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


def count_short(number: int) -> str:
    """`812`, `12.3 k`, `1.2 M`, `3.4 G`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def format_share(share: float) -> str:
    """`93 %`; near none and all with one more digit, so that `<0.1 %` is not none and `>99.9 %` is not all."""
    percent = 100 * share
    if 0 < percent < 0.1 or 99.9 < percent < 100:
        return "<0.1 %" if percent < 50 else ">99.9 %"
    return f"{percent:.1f} %" if 0 < percent < 1 or 99 < percent < 100 else f"{percent:.0f} %"
