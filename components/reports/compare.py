"""The picture that compares the tuners of a retrain, as a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.files import whole_file
from components.records.outcomes import Outcome, TunerRow
from components.reports.cells import MOST_ANNOTATED
from components.reports.pictures import SERIES
from components.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "comparison.png"
#: What a tuner costs: key of its line, label, and the least that is drawn.
COSTS = (
    ("trainable_params", "trainable parameters, without the head", 1),
    ("seconds", "seconds of training, mean of the seeds", 0.1),
    ("adapter_bytes", "bytes of the adapter", 1),
)


def draw_picture(outcome: Outcome, task: Task, path: Path) -> Path:
    """Draw an outcome's tuners into a PNG; returns its path."""
    with whole_file(path) as partial:
        figure = draw_comparison(outcome.tuners, task, describe_outcome(outcome, task))
        figure.savefig(partial, format="png", dpi=120)
    return path


def describe_outcome(outcome: Outcome, task: Task) -> str:
    """The picture's title: what was compared, on what, and what the intervals are of."""
    seeds = outcome.tuners[0].seeds
    number = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
    return (
        f"{outcome.domain} on {outcome.backbone.name}: {task.metric_words} on the test groups, {number}\n"
        f"bars: intervals by bootstrap over groups; dots: seeds; data version {outcome.data_version[:12]}"
    )


def draw_comparison(tuners: Sequence[TunerRow], task: Task, title: str) -> "Figure":
    """Scores with their intervals against what they cost, and those of every class below.

    A number is a tuner wherever it stands, the best first.
    """
    from matplotlib.figure import Figure

    ranked = sorted(tuners, key=lambda line: -line.test.value)
    table = 0.36 * len(ranked) + 1.3
    figure = Figure(figsize=(13, 4.4 + table), layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    grid = figure.add_gridspec(2, len(COSTS), height_ratios=[4.4, table])
    first = None
    for place, (key, label, floor) in enumerate(COSTS):
        axes = figure.add_subplot(grid[0, place], sharey=first)
        _draw_cost(axes, ranked, key, floor)
        axes.set_xlabel(label)
        if first is None:
            first = axes
            axes.set_ylabel(f"{task.metric_words}, test")
        else:
            axes.tick_params(labelleft=False)
    _draw_classes(figure.add_subplot(grid[1, :]), ranked, task)
    return figure


def _draw_cost(axes: "Axes", ranked: Sequence[TunerRow], key: str, floor: float) -> None:
    """floor: what stands for less, as a logarithm has no zero."""
    from matplotlib.ticker import NullFormatter

    places = [max(getattr(line, key), floor) for line in ranked]
    axes.set_xscale("log")
    axes.set_xlim(min(places) / 4, max(places) * 4)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    for place, line in enumerate(ranked):
        colour, x, test = SERIES[place % len(SERIES)], places[place], line.test
        if test.low is not None and test.high is not None:
            axes.vlines(x, test.low, test.high, color=colour, linewidth=1.4, alpha=0.6)
            axes.plot([x, x], [test.low, test.high], "_", color=colour, markersize=8, alpha=0.6)
        axes.plot([x] * len(test.seeds), test.seeds, ".", color=colour, markersize=5)
        axes.plot(x, test.value, "o", color=colour, markersize=14, markeredgecolor="white")
        style: dict[str, Any] = {"color": "white", "fontsize": 8, "weight": "bold", "ha": "center", "va": "center"}
        axes.annotate(str(place + 1), (x, test.value), **style)


def _draw_classes(axes: "Axes", ranked: Sequence[TunerRow], task: Task) -> None:
    """A row a tuner, a column a class; its name and number at the left, its score with them."""
    classes = list(ranked[0].class_scores)
    shares = np.array([[line.class_scores[name] for name in classes] for line in ranked])
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(classes)), classes, rotation=20, ha="right", parse_math=False)
    names = [f"{place}  {line.tuner}  {line.test.value:.3f}" for place, line in enumerate(ranked, 1)]
    axes.set_yticks(range(len(ranked)), names, parse_math=False)
    for place, label in enumerate(axes.get_yticklabels()):
        label.set_color(SERIES[place % len(SERIES)])
    axes.set_title(f"{task.class_words} by class, test", fontsize=10)
    if len(classes) <= MOST_ANNOTATED:
        for (row, column), share in np.ndenumerate(shares):
            shade = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=shade, fontsize=8.5)
