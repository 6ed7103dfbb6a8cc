"""Every tuner under one budget: who recognises best, with how many parameters, and from how few images.

    TESSERA_REAL_DATA=DIR python benchmarks/methods.py --backbone DIR/backbones/vit_tiny_[...].safetensors
        [--img-size 128] [--state FOLDER] [--json FILE] [--minutes M] [--only bccd "magnetic_tile / 10%" vapt]

Claim: methods.json and methods.png beside this file, whichever method they favour.

Data: three sets, each brought in, checked and split by group by the project's own machinery. The share of the training
side differs; validation and test sides stay the same. At 128 px there are a third of the tokens of 224 px; it is not
claimed that the ranking there is the same.

Budget: in a cell (a set, a fraction) each tuner gets four configurations (SPACES) and the same number of steps (BUDGET)
on the same images. The configuration with the best balanced accuracy on validation, a tie to the lower loss, is found
with one seed and trained again with the final seeds, of which the search's is none: no lucky start is both chosen and
reported. Only what the final seeds trained is shown the test side. The linear probe is solved as the project solves it:
on features of images that are not augmented, to the optimum, whatever the steps; its configurations are strengths.

Intervals are of the mean over the final seeds, by bootstrap over the test groups (components/promotion/statistics.py).
They say how sure the score is for other groups, not for other budgets, backbones or search spaces.

The result of a training is a file of its own in the state folder, named by the hash of everything it depends on but
the code, whose commit it notes: what is there is not computed again, and processes with different `--only` may share
the folder, each bringing in sets of its own. The JSON holds all of it too: a new state folder goes on from there.
"""

import argparse
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from bench import (
    MOST_HELD_OUT,
    SHOTS,
    Bench,
    Draws,
    Options,
    Record,
    bound_difference,
    bound_mean,
    collect,
    describe_machine,
    draw_subset,
    find_home,
    find_manifest,
    load_json,
    open_bench,
    save_json,
    score_seeds,
    write_interval,
)
from methods_report import choose_defaults, describe_options, draw_results, rank, render_defaults, render_table

from components.data.batches.loading import Samples
from components.data.store import versioning
from components.domain.settings import Training
from components.errors import Diverged, DomainError
from components.files import write_whole
from components.models.adapter import WEIGHTS_FILE, AdapterMeta
from components.models.backbones import Backbone, load_backbone
from components.models.engine import create_engine
from components.models.network import Network, create_network
from components.models.tuners import TUNERS, Tuner, create_tuners
from components.models.weights import save_adapter
from components.tasks import TASKS
from components.training.evaluate import predict_probabilities
from components.training.fit import fit
from components.training.recipe import Recipe
from components.workspace import REPOSITORY


@dataclass(frozen=True)
class Fraction:
    """How much of the training side, never less than SHOTS images of a class, and for how many steps."""

    name: str
    share: float
    steps: int


def share_out(full: int, tenth: int, few: int) -> tuple[Fraction, ...]:
    return Fraction("100%", 1.0, full), Fraction("10%", 0.1, tenth), Fraction("5 shots", 0.0, few)


#: The budget, steps by set and fraction. Set after a look at validation, for deep prompts' sake: random ones turn the
#: features away from the backbone's, and on magnetic_tile, 70 % of it one class, VPT-deep (lr 3e-3) was at chance
#: after 120 steps, 0.17, at 0.48 after 240 and 0.62 after 480, while 40 were enough on bccd.
BUDGET = {
    "magnetic_tile": share_out(240, 80, 40),
    "lc25000_lung": share_out(60, 40, 30),
    "bccd": share_out(40, 30, 20),
}


#: Ten prompts without dropout: over all of lc25000_lung's 5 shots and in the demo it helped no prompts.
PROMPTS: Options = {"num_prompts": 10, "dropout": 0.0}


@dataclass(frozen=True)
class Protocol:
    """What all trainings have in common. rounds: validations a training, the best of which is kept."""

    budget: Mapping[str, tuple[Fraction, ...]] = field(default_factory=BUDGET.copy)
    batch_size: int = 16
    rounds: int = 2
    warmup: float = 0.1  # of the steps
    configurations: int = 4
    search_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)


def vary(kind: str, lr: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2), **options: Any) -> tuple[Options, ...]:
    return tuple({"kind": kind, **options, "lr": rate} for rate in lr)


#: Four learning rates, half a decade apart, the same ones but for all weights; what is not named is the default. The
#: linear probe has a strength instead, which its own default chooses by cross-validation.
SPACES: dict[str, tuple[Options, ...]] = {
    "linear": ({"kind": "linear"}, *({"kind": "linear", "strength": strength} for strength in (0.1, 0.01, 0.001))),
    "bitfit": vary("bitfit"),
    "ssf": vary("ssf"),
    "vpt-shallow": vary("vpt", deep=False, **PROMPTS),
    "vpt-deep": vary("vpt", deep=True, **PROMPTS),
    "vapt": vary("vapt", **PROMPTS),
    "vapt-zeros": vary("vapt", start="zeros", **PROMPTS),
    "lora": vary("lora"),
    "dora": vary("dora"),
    "dtl": vary("dtl", [3e-4, 1e-3, 3e-3, 1e-2]),
    "adaptformer": vary("adaptformer"),
    "full": vary("full", [1e-4, 3e-4, 1e-3, 3e-3]),
}


@dataclass(frozen=True)
class Cell:
    """One tuner's part of the comparison: a place in the table."""

    data: str
    fraction: Fraction
    tuner: str

    def __str__(self) -> str:
        return f"{self.data} / {self.fraction.name} / {self.tuner}"


@dataclass(frozen=True)
class Trial:
    """One training."""

    cell: Cell
    options: Options
    seed: int
    final: bool

    @property
    def tuner(self) -> Tuner:
        return create_tuners([self.options])[0]

    def __str__(self) -> str:
        return f"{describe_options(self.options):22}{f'seed {self.seed}' if self.final else 'search'}"


def main(arguments: Sequence[str] | None = None, protocol: Protocol | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="what load_backbone knows: a file, a timm name, `embedded`")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--state", type=Path, default=REPOSITORY / ".tessera" / "methods", help="may be shared")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="a picture comes beside")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no training after them; 0 only reports")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="train where `set / fraction / tuner` holds one of them"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if "TESSERA_REAL_DATA" not in os.environ:
        parser.error("TESSERA_REAL_DATA names no folder with the data sets")
    stop = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(options.threads)
    # A seed must mean the same bits twice, as in components/training/run.py.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    source, backbone = Path(os.environ["TESSERA_REAL_DATA"]), load_backbone(options.backbone, options.img_size)
    study = Study(protocol or Protocol(), backbone, source, options.state.resolve(), load_json(options.json))
    cells = [cell for cell in study.cells if any(text in str(cell) for text in options.only)]
    if not cells:
        parser.error(f"--only {' '.join(options.only)} fits no cell; the first one is `{study.cells[0]}`")
    for cell in cells:
        while time.monotonic() < stop and (trial := study.next_trial(cell)):
            tell_result(trial, study.train(trial))
            save_json(study.assemble(), options.json)
    show(study, options.json)


def tell_result(trial: Trial, record: Record) -> None:
    print(f"{trial.cell!s:40}{trial!s:32}val {record['score']:.3f}{record['seconds']:7.1f} s", flush=True)


def show(study: "Study", path: Path) -> None:
    """Write everything there is, and print it in short."""
    results = study.assemble()
    save_json(results, path)
    print(f"\n{len(results['rows'])} of {len(study.cells)} cells are done\n")
    if results["rows"]:
        print(render_table(results))
        print(render_defaults(results))
        draw_results(results).savefig(path.with_suffix(".png"), dpi=110, bbox_inches="tight")


#: Every tuner but the controls of dense tasks, which read no features of the backbone.
METHODS = tuple(kind for kind in TUNERS if kind not in {task.control for task in TASKS.values()})


def require_spaces(kinds: Iterable[str]) -> None:
    """Raise DomainError for a tuner that would be left out of the comparison."""
    known = {str(space[0]["kind"]) for space in SPACES.values()}
    for kind in kinds:
        if kind not in known:
            raise DomainError(
                f"tuner {kind}",
                expected="its configurations in SPACES of benchmarks/methods.py",
                found="none",
                hint=f"Add a row of {Protocol.configurations}, around the learning rates that suit it.",
            )


class Study:
    """All trainings there are to do, and the folder that remembers those that were done.

    Seconds are of the whole training: features computed beforehand and validation are part of it.
    """

    def __init__(self, protocol: Protocol, backbone: Backbone, source: Path, state: Path, earlier: Record) -> None:
        require_spaces(METHODS)
        self.protocol, self.backbone, self.source, self.state = protocol, backbone, source, state
        self.engine = create_engine(backbone.mean, backbone.std)
        self.commit = versioning.git_commit()
        self.benches: dict[str, Bench] = {}
        self.records: dict[str, Record] = {}
        places = [(data, fraction) for data, fractions in protocol.budget.items() for fraction in fractions]
        self.cells = [Cell(*place, tuner) for place in places for tuner in SPACES]
        same = all(earlier.get(key) == value for key, value in self._describe_setting().items())
        self.earlier = earlier if same else {}
        self.recalled = {place_of(record): record for record in self._recall("searches") + self._recall("finals")}

    def bench(self, name: str) -> Bench:
        if name not in self.benches:
            self.benches[name] = open_bench(name, self.source, self.state, self.backbone.img_size)
        return self.benches[name]

    def next_trial(self, cell: Cell) -> Trial | None:
        """The cell's first training without a result: those of the search, then those of what it chose."""
        searched = self.search(cell)
        trials = searched if None in map(self.find, searched) else self.finals(cell)
        return next((trial for trial in trials if self.find(trial) is None), None)

    def search(self, cell: Cell) -> list[Trial]:
        space = SPACES[cell.tuner][: self.protocol.configurations]
        return [Trial(cell, options, self.protocol.search_seed, final=False) for options in space]

    def finals(self, cell: Cell) -> list[Trial]:
        """The best configuration on validation with every final seed; nothing before the search is over."""
        searched = [(trial, self.find(trial)) for trial in self.search(cell)]
        known = [(rank(record), trial.options) for trial, record in searched if record]
        if len(known) < len(searched):
            return []
        _, options = min(known, key=lambda pair: pair[0])
        return [Trial(cell, options, seed, final=True) for seed in self.protocol.seeds]

    def find(self, trial: Trial) -> Record | None:
        """What this training gave, if it was done, by this process or another."""
        key = self.name(trial)
        path = self.state / "results" / f"{key}.json"
        if key not in self.records and path.exists():
            self.records[key] = json.loads(path.read_text())
        if key not in self.records and self.bench(trial.cell.data).facts == self._recall_data(trial.cell.data):
            place = (trial.cell.data, trial.cell.fraction.name, trial.cell.tuner)
            facts = dict(zip(PLACE, (*place, dict(trial.options), trial.seed, trial.final), strict=True))
            if record := self.recalled.get(place_of(facts)):
                self.records[key] = record
        return self.records.get(key)

    def _recall(self, kind: str) -> list[Record]:
        records: list[Record] = self.earlier.get(kind, [])
        return records

    def _recall_data(self, name: str) -> Record | None:
        found: Record | None = self.earlier.get("data", {}).get(name)
        return found

    def name(self, trial: Trial) -> str:
        """Hash of everything the result depends on but the code."""
        bench, protocol = self.bench(trial.cell.data), self.protocol
        facts = {
            "format": 2,
            "backbone": [self.backbone.sha256, self.backbone.img_size.plain],
            "data": [bench.version, bench.split, bench.domain.augmentation],
            "budget": [protocol.batch_size, protocol.rounds, protocol.warmup, SHOTS, asdict(trial.cell.fraction)],
            "tuner": trial.tuner.model_dump(mode="json"),
            "seed": [trial.seed, trial.final],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def train(self, trial: Trial) -> Record:
        """Train, look at the test side if it is a final one, and remember what came out."""
        key, bench, fraction = self.name(trial), self.bench(trial.cell.data), trial.cell.fraction
        network = create_network(self.backbone, trial.tuner, len(bench.domain.classes), trial.seed)
        rows = draw_subset(bench.manifest, fraction.share, trial.seed)
        if network.learns_head_only:  # solved: each image counts once
            train = bench.draws(rows, trial.seed, len(rows), 1)
        else:
            train = bench.draws(rows, trial.seed, fraction.steps * self.protocol.batch_size, self.protocol.rounds)
        checkpoint = self.state / "checkpoints" / f"{key}.safetensors"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        record: Record = {"data": trial.cell.data, "fraction": fraction.name, "tuner": trial.cell.tuner}
        record |= {"options": dict(trial.options), "seed": trial.seed, "final": trial.final, "commit": self.commit}
        record |= {"images": len(rows), "groups": bench.manifest[rows]["group"].n_unique()}
        record |= self._fit(trial, network, train, bench.samples("val"), checkpoint)
        if trial.final:
            record |= measure_adapter(network, self.backbone, trial, bench)
            record["predicted"] = " ".join(map(str, self._predict(network, bench.samples("test"), record)))
        write_whole(self.state / "results" / f"{key}.json", json.dumps(record).encode())
        checkpoint.unlink(missing_ok=True)
        return record

    def _fit(self, trial: Trial, network: Network, train: Draws, val: Samples, checkpoint: Path) -> Record:
        """The project's own loop. That a learning rate blows up is a result too, the worst one."""
        protocol, classes = self.protocol, self.bench(trial.cell.data).domain.classes
        training = Training(
            epochs=train.pieces, batch_size=protocol.batch_size, warmup_epochs=protocol.warmup * train.pieces
        )
        recipe = Recipe(trial.tuner, training, classes, trial.seed)
        # Of one processor core, so that other work on the machine does not count; a GPU's seconds are the clock's.
        clock = time.process_time if self.engine.device.type == "cpu" else time.monotonic
        started = clock()
        try:
            progress = fit(network, train, val, recipe, self.engine, checkpoint, lambda row: None)
        except Diverged as error:
            seconds = round(clock() - started, 2)
            return {"score": 0.0, "loss": None, "seconds": seconds, "failed": str(error)}
        best = progress.best_row
        scores = {"score": best["val/balanced_accuracy"], "loss": best["val/loss"]}
        return scores | {"best_round": progress.best_epoch, "seconds": round(clock() - started, 2)}

    def _predict(self, network: Network, test: Samples, record: Record) -> list[int]:
        """Predicted classes of the test side; a training that blew up answers with the first class, which is chance."""
        if "failed" in record:
            return [0] * len(test)
        chances = predict_probabilities(network, test, self.engine, 2 * self.protocol.batch_size)
        predicted: list[int] = chances.argmax(axis=1).tolist()
        return predicted

    # --- what came out ---

    def assemble(self) -> Record:
        """Everything known so far, as JSON: facts, finished rows, all the search's scores, suggested defaults.

        Of a set that is not in this state folder it is what the JSON says already.
        """
        opened = [name for name in self.protocol.budget if self._is_open(name)]
        cells = [cell for cell in self.cells if cell.data in opened]
        searched = {
            self.name(trial): trial for cell in cells for trial in self.search(cell)
        }  # a set's cells share them
        found = [record for trial in searched.values() if (record := self.find(trial))]
        finals = {cell: records for cell in cells if (records := self._finals(cell))}
        closed = [name for name in self.protocol.budget if name not in opened and self._recall_data(name)]
        kept = {
            kind: [record for record in self._recall(kind) if record["data"] in closed]
            for kind in ("rows", "searches", "finals")
        }
        answers = [record for records in finals.values() for record in records]
        commits = {record["commit"] for record in (*found, *answers) if "commit" in record}
        searches = [*map(strip_commit, found), *kept["searches"]]
        data = {name: self.bench(name).facts for name in opened}
        return {
            **{key: value for key, value in self.earlier.items() if key == "starts"},  # of starts.py
            **self._describe_setting(),
            "machine": describe_machine(self.engine),
            "commits": sorted(commits.union(self.earlier.get("commits", []))),
            "data": data | {name: self._recall_data(name) for name in closed},
            "rows": [self._row(cell, finals) for cell in finals] + kept["rows"],
            "searches": searches,
            "finals": [*map(strip_commit, answers), *kept["finals"]],
            "defaults": choose_defaults(searches),
        }

    def _describe_setting(self) -> Record:
        """What all results have in common, as JSON gives it back."""
        protocol = asdict(self.protocol) | {"shots": SHOTS, "most_held_out": MOST_HELD_OUT}
        backbone = {"name": Path(self.backbone.name).name, "sha256": self.backbone.sha256}
        setting = {"backbone": backbone, "img_size": self.backbone.img_size.plain, "protocol": protocol}
        again: Record = json.loads(json.dumps(setting))
        return again

    def _is_open(self, name: str) -> bool:
        """Whether the set was brought in, by this process or another."""
        return find_manifest(find_home(self.state, name), name).exists()

    def _finals(self, cell: Cell) -> list[Record]:
        """The records of the final seeds once they are all there."""
        records = [record for trial in self.finals(cell) if (record := self.find(trial))]
        return records if len(records) == len(self.protocol.seeds) else []

    def _row(self, cell: Cell, finals: Mapping[Cell, list[Record]]) -> Record:
        bench, records = self.bench(cell.data), finals[cell]
        place = (cell.data, cell.fraction)
        rivals = [collect(rows) for other, rows in finals.items() if (other.data, other.fraction) == place]
        answers = collect(records)
        best = max(rivals, key=lambda rival: fmean(score_seeds(bench, rival)))
        return {
            **{key: records[0][key] for key in ("data", "fraction", "tuner", "options", "images", "groups")},
            "steps": cell.fraction.steps,
            "scores": score_seeds(bench, answers),
            **write_interval(bound_mean(bench, answers)),
            "to_best": write_interval(bound_difference(bench, answers, best)),
            **{key: records[0][key] for key in ("trainable_params", "with_head", "share", "adapter_bytes")},
            "seconds_training": round(fmean(record["seconds"] for record in records), 2),
            "seconds_search": round(sum((self.find(trial) or {})["seconds"] for trial in self.search(cell)), 2),
        }


#: Which training a record is of.
PLACE = ("data", "fraction", "tuner", "options", "seed", "final")


def strip_commit(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != "commit"}


def place_of(record: Record) -> str:
    return json.dumps([record[key] for key in PLACE])


def measure_adapter(network: Network, backbone: Backbone, trial: Trial, bench: Bench) -> Record:
    """What learned, counted, and how many bytes the artifact on disk takes."""
    facts: dict[str, Any] = {
        "data_version": bench.version,
        "split_sha256": bench.split,
        "git_commit": "",
        "metrics": {},
    }
    meta = AdapterMeta.describe(network, backbone, trial.tuner, classes=bench.domain.classes, seed=trial.seed, **facts)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder) / "adapter", network, meta)
        size = (Path(folder) / "adapter" / WEIGHTS_FILE).stat().st_size
    tuned = meta.trainable_params
    return {
        "trainable_params": tuned,
        "with_head": tuned + meta.head_params,
        "share": meta.share,
        "adapter_bytes": size,
    }


if __name__ == "__main__":
    main()
