"""What `methods.py` found, for a person: a table, suggested defaults and a picture, from methods.json alone."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]

#: How a picture shows them: families share colour and shape (Okabe and Ito's colours), a number names the tuner.
FAMILIES = {
    "yardsticks": ("#000000", "o", ("linear", "full")),
    "prompts": ("#0072B2", "s", ("vpt-shallow", "vpt-deep", "vapt", "vapt-zeros")),
    "low rank": ("#D55E00", "D", ("lora", "dora")),
    "biases, scales, bottlenecks, side networks": ("#009E73", "h", ("bitfit", "ssf", "adaptformer", "dtl")),
}


def rank(record: Record) -> tuple[float, float]:
    """What is sorted by: balanced accuracy on validation, best first, a tie to the lower loss."""
    return -record["score"], math.inf if record["loss"] is None else record["loss"]


def choose_defaults(searches: Sequence[Record]) -> dict[str, list[Record]]:
    """Each tuner's configurations by their mean rank on validation over the cells searched to the end, best first."""
    cells = group_by(searches, "tuner", "data", "fraction")
    complete = {tuner: max(len(found) for key, found in cells.items() if key[0] == tuner) for tuner, *_ in cells}
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for (tuner, *_), found in cells.items():
        if len(found) == complete[tuner]:
            for place, record in enumerate(sorted(found, key=rank), 1):
                places[tuner][json.dumps(record["options"])].append(place)
    return {
        tuner: sorted(map(describe_choice, found.items()), key=lambda row: row["mean_rank"])
        for tuner, found in places.items()
    }


def describe_options(options: Mapping[str, Any]) -> str:
    """What the search varies."""
    return " ".join(f"{key}={options[key]:g}" for key in ("lr", "dropout", "strength") if key in options)


def describe_choice(found: tuple[str, list[int]]) -> Record:
    options, places = found
    return {"options": json.loads(options), "mean_rank": round(fmean(places), 3), "cells": len(places)}


def group_by(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    grouped: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        grouped[tuple(record[key] for key in keys)].append(record)
    return dict(grouped)


def render_table(results: Record) -> str:
    """A line a tuner: its mean over the data sets by fraction, how often it is the best, how often level with it."""
    cells = group_by(results["rows"], "fraction", "tuner")
    fractions = list(dict.fromkeys(fraction for fraction, _ in cells))
    sets = {name: max(len(rows) for (fraction, _), rows in cells.items() if fraction == name) for name in fractions}
    lines = []
    for (tuner,), rows in group_by(results["rows"], "tuner").items():
        means = []
        for name in fractions:
            found = cells.get((name, tuner), [])
            means.append(fmean(row["mean"] for row in found) if len(found) == sets[name] else math.nan)
        wins = sum(row["to_best"]["mean"] == 0 for row in rows)
        level = sum(row["to_best"]["high"] >= 0 for row in rows)
        text = "".join(f"{mean:10.3f}" for mean in means) + f"{wins:8}{level:8}{len(rows):8}"
        lines.append((-np.nansum(means), f"{tuner:16}{text}"))
    head = f"{'':16}" + "".join(f"{name:>10}" for name in fractions) + f"{'wins':>8}{'level':>8}{'cells':>8}"
    told = (
        "Balanced accuracy, mean over the data sets. level: the interval of its difference to the cell's best holds 0."
    )
    return "\n".join([told, head, *(line for _, line in sorted(lines)), ""])


def render_defaults(results: Record) -> str:
    """What the search says of each tuner's own defaults, with all it compared, for an edge of a grid is no optimum."""
    lines = ["Suggested defaults, by mean rank on validation (of all configurations, best first):"]
    for tuner, rows in results["defaults"].items():
        shown = (f"{describe_options(row['options'])} ({row['mean_rank']:.2f})" for row in rows)
        lines.append(f"{tuner:16}" + "   ".join(shown) + f"   [{rows[0]['cells']} cells]")
    return "\n".join(lines)


def draw_results(results: Record) -> "Figure":
    """A panel a data set and fraction: score against trainable parameters; beside it the ranking, by name."""
    from matplotlib.figure import Figure

    cells = group_by(results["rows"], "data", "fraction")
    names = list(dict.fromkeys(data for data, _ in cells))
    fractions = list(dict.fromkeys(fraction for _, fraction in cells))
    sizes = {
        tuner: max(row["with_head"] for row in rows) for (tuner,), rows in group_by(results["rows"], "tuner").items()
    }
    numbers = {tuner: number for number, tuner in enumerate(sorted(sizes, key=lambda tuner: sizes[tuner]), 1)}
    figure = Figure(figsize=(5.6 * len(fractions), 3.9 * len(names) + 0.9), layout="constrained")
    figure.suptitle(describe_study(results, names), fontsize=11)
    for line, panels in zip(names, figure.subplots(len(names), len(fractions), squeeze=False), strict=True):
        for fraction, axes in zip(fractions, panels, strict=True):
            rows = cells.get((line, fraction), [])
            draw_panel(axes, rows, numbers)
            told = f": {rows[0]['images']} images, {rows[0]['steps']} steps" if rows else ""
            axes.set_title(f"{line}, {fraction}{told}", fontsize=10)
    return figure


def draw_panel(axes: "Axes", rows: Sequence[Record], numbers: Mapping[str, int]) -> None:
    styles = {tuner: (colour, shape) for colour, shape, tuners in FAMILIES.values() for tuner in tuners}
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters, head included")
    axes.grid(alpha=0.25)
    for place, row in enumerate(sorted(rows, key=lambda row: -row["mean"])):
        tuner, x, y = row["tuner"], row["with_head"], row["mean"]
        colour, shape = styles.get(tuner, ("#555555", "o"))
        axes.vlines(x, row["low"], row["high"], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(x, y, shape, color=colour, markersize=12, markeredgecolor="white")
        axes.annotate(str(numbers[tuner]), (x, y), color="white", fontsize=7.5, weight="bold", ha="center", va="center")
        told = f"{numbers[tuner]:2}  {tuner:12}{y:.3f}"
        axes.text(
            1.02, 0.96 - 0.095 * place, told, transform=axes.transAxes, color=colour, family="monospace", fontsize=8.5
        )


def describe_study(results: Record, names: Sequence[str]) -> str:
    """Data, backbone and budget; the steps are in the panels' titles."""
    protocol = results["protocol"]
    backbone = f"{results['backbone']['name']} at {results['img_size']} px"
    return (
        f"Balanced accuracy on the test groups of {', '.join(names)}: "
        f"mean of {len(protocol['seeds'])} seeds, 95 % intervals over groups\n{backbone}; "
        f"{protocol['configurations']} configurations a tuner, batches of {protocol['batch_size']}"
    )
