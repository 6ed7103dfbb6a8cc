"""Where a training starts, measured: cold against started, and both against the linear probe solved to its optimum.

    TESSERA_REAL_DATA=DIR python benchmarks/starts.py --backbone DIR/backbones/vit_tiny_[...].safetensors
        [--img-size 128] [--state FOLDER] [--json FILE] [--minutes M] [--only vapt "bccd / 10%"]

Claim: the part `starts` of methods.json beside this file.

Cold is a random head and random prompts, as trainings began before components/training/starts.py. Both use the learning
rate that the search of methods.py chose for cold trainings, the same images, seeds and steps. Cold results that
methods.json holds are taken from there: they are of the same bits.

Intervals are of the mean difference over seeds, paired by seed and image: a resample draws groups of the test side and
seeds together. In the mean over places the places of a data set share the drawn groups, for their test side is one.
"""

import argparse
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from bench import Bench, Record, collect, load_json, repeat_test, save_json
from methods import BUDGET, Cell, Protocol, Study, Trial
from numpy.typing import NDArray

from components.models.backbones import load_backbone
from components.tasks.classification import measure_recall
from components.training.fit import Loop
from components.workspace import REPOSITORY

SEEDS = tuple(range(1, 9))
TUNERS = ("vpt-deep", "vapt", "lora", "bitfit", "adaptformer", "ssf", "dora", "full")
LONGER = 4  # times the steps, in PLACES_LONGER
PLACES_LONGER = (("bccd", "10%"), ("lc25000_lung", "5 shots"))
RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One training. times: how often the steps of the budget."""

    data: str
    fraction: str
    tuner: str
    seed: int
    start: str  # cold, started
    times: int = 1

    def __str__(self) -> str:
        return f"{self.data} / {self.fraction} / {self.tuner} / {self.start} / x{self.times} / seed {self.seed}"


class Kind(NamedTuple):
    """What is compared."""

    tuner: str
    times: int
    start: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--state", type=Path, default=REPOSITORY / ".tessera" / "methods")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("methods.json"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no training after them; 0 only reports")
    parser.add_argument("--only", nargs="+", default=[""], help="train where a run's name holds one of them")
    options = parser.parse_args()
    stop = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    earlier, backbone = load_json(options.json), load_backbone(options.backbone, options.img_size)
    study = Study(Protocol(), backbone, Path(os.environ["TESSERA_REAL_DATA"]), options.state.resolve(), earlier)
    records = recall(earlier)
    for run in plan_runs():
        if run in records or not any(text in str(run) for text in options.only):
            continue
        if time.monotonic() > stop:
            break
        records[run] = train(study, run, earlier)
        print(f"{run!s:70} val {records[run]['score']:.3f} {records[run]['seconds']:6.1f} s", flush=True)
        save_json(assemble(study, earlier, records), options.json)
    results = assemble(study, earlier, records)
    save_json(results, options.json)
    print(render(results["starts"]["rows"]))


def plan_runs() -> list[Run]:
    """Seed by seed, so that a run that is stopped leaves every place with as many."""
    places = [(data, part.name) for data, parts in BUDGET.items() for part in parts]
    runs = [
        Run(*place, tuner, seed, start)
        for seed in SEEDS
        for place in places
        for tuner in ("linear", *TUNERS)
        for start in (("started",) if tuner == "linear" else ("cold", "started"))
    ]
    longer = [
        Run(*place, tuner, seed, start, LONGER)
        for seed in SEEDS
        for place in PLACES_LONGER
        for tuner in TUNERS[:3]
        for start in ("cold", "started")
    ]
    return runs + longer


def recall(earlier: Record) -> dict[Run, Record]:
    """What methods.json holds: of this comparison, and cold trainings with the rate that their search chose."""
    found: dict[Run, Record] = {}
    for record in earlier["finals"]:
        if record["tuner"] != "linear" and record["options"] == find_options(earlier, record):
            found[Run(*(record[key] for key in ("data", "fraction", "tuner", "seed")), start="cold")] = record
    for record in earlier.get("starts", {}).get("finals", []):
        found[Run(**{key: record[key] for key in Run.__dataclass_fields__})] = record
    return found


def find_options(earlier: Record, place: Record) -> Record:
    """The configuration that the search of methods.py chose in a place."""
    keys = ("data", "fraction", "tuner")
    (options,) = (row["options"] for row in earlier["rows"] if all(row[key] == place[key] for key in keys))
    return {"kind": "linear"} if place["tuner"] == "linear" else dict(options)


def train(study: Study, run: Run, earlier: Record) -> Record:
    (part,) = (part for part in BUDGET[run.data] if part.name == run.fraction)
    options = find_options(earlier, vars(run))
    trial = Trial(Cell(run.data, replace(part, steps=run.times * part.steps), run.tuner), options, run.seed, final=True)
    if run.start == "cold":
        with patch.object(Loop, "start", lambda loop: None):
            return {**study.train(trial), **vars(run)}
    return {**study.train(trial), **vars(run)}


def assemble(study: Study, earlier: Record, records: dict[Run, Record]) -> Record:
    """methods.json with what is known of starts: a row for every place, and for the mean over places."""
    old = earlier["finals"]
    kept = ("options", "images", "score", "loss", "best_round", "seconds", "predicted")
    finals = [
        vars(run) | {key: record[key] for key in kept if key in record}
        for run, record in records.items()
        if not any(record is other for other in old)
    ]
    return earlier | {"starts": {"finals": finals, "rows": compare_all(study, records)}}


def compare_all(study: Study, records: dict[Run, Record]) -> list[Record]:
    weights = {data: draw_weights(study.bench(data)) for data in BUDGET}
    rows: list[Record] = []
    for tuner in TUNERS:
        for times in (1, LONGER):
            for ours, theirs in (("started", "cold"), ("started", "linear"), ("cold", "linear")):
                rows += compare(study, records, weights, tuner, times, ours, theirs)
    return rows


def compare(
    study: Study, records: dict[Run, Record], weights: dict[str, Floats], tuner: str, times: int, ours: str, theirs: str
) -> list[Record]:
    """Ours minus theirs, in points: every place where both have trained with two seeds, then the mean over them."""
    rows: list[Record] = []
    spread: list[Floats] = []
    said: Record = {"tuner": tuner, "times": times, "ours": ours, "theirs": theirs}
    other = Kind("linear", 1, "started") if theirs == "linear" else Kind(tuner, times, theirs)
    for place in ((data, part.name) for data, parts in BUDGET.items() for part in parts):
        sides = [find_seeds(records, *place, kind) for kind in (Kind(tuner, times, ours), other)]
        seeds = sorted(sides[0].keys() & sides[1].keys())
        if len(seeds) < 2:
            continue
        bench = study.bench(place[0])
        pair = [measure(bench, [side[seed] for seed in seeds], weights[place[0]]) for side in sides]
        means, drawn = summarise(*pair)
        spread.append(drawn)
        facts: Record = {"data": place[0], "fraction": place[1], "seeds": len(seeds), "mean": means[0], "to": means[1]}
        rows.append(said | facts | bound(drawn))
    if len(rows) > 1:
        facts = {"data": "mean", "fraction": f"{len(rows)} places", "seeds": min(row["seeds"] for row in rows)}
        means = {key: round(fmean(row[key] for row in rows), 2) for key in ("mean", "to")}
        rows.append(said | facts | means | bound(np.mean(spread, axis=0)))
    return rows


def find_seeds(records: dict[Run, Record], data: str, fraction: str, kind: Kind) -> dict[int, Record]:
    return {
        run.seed: record
        for run, record in records.items()
        if (run.data, run.fraction) == (data, fraction) and Kind(run.tuner, run.times, run.start) == kind
    }


def draw_weights(bench: Bench) -> Floats:
    """(1 + R, G): how often each test group counts; first every one once."""
    groups = len(np.unique(repeat_test(bench, 1)[1]))
    drawn = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    return np.vstack([np.ones(groups), drawn]).astype(np.float64)


def measure(bench: Bench, records: Sequence[Record], weights: Floats) -> Floats:
    """Scores (S, 1 + R) in percent."""
    targets, groups = repeat_test(bench, 1)
    classes = len(bench.domain.classes)
    evidence = [measure_recall(targets, np.array(answer), groups, classes) for answer in collect(records)]
    return 100 * np.array([each.scores(weights) for each in evidence])


def summarise(ours: Floats, theirs: Floats) -> tuple[tuple[float, float], Floats]:
    """The two means, and the mean difference as it is and in every resample of groups and seeds (1 + R,)."""
    seeds = len(ours)
    drawn = np.random.default_rng(1).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    shares = np.vstack([np.full(seeds, 1 / seeds), drawn])  # (1 + R, S)
    difference: Floats = (shares * (ours - theirs).T).sum(axis=1)
    return (round(float(ours[:, 0].mean()), 2), round(float(theirs[:, 0].mean()), 2)), difference


def bound(drawn: Floats) -> Record:
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return {"difference": round(float(drawn[0]), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def render(rows: Sequence[Record]) -> str:
    return "\n".join(
        f"{row['tuner']:12}x{row['times']} {row['ours']:8}- {row['theirs']:8}{row['data']:14}{row['fraction']:10}"
        f"{row['seeds']} seeds {row['mean']:6.1f} {row['to']:6.1f} {row['difference']:+6.1f}"
        f" [{row['low']:+.1f}, {row['high']:+.1f}]"
        for row in rows
    )


if __name__ == "__main__":
    main()
