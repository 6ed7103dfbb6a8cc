"""Which ways of teaching earn their place in the loop: each changes one setting of the plain recipe.

    TESSERA_REAL_DATA=DIR python benchmarks/teaching.py --backbone DIR/backbones/vit_tiny_[...].safetensors
        [--img-size 128] [--state FOLDER] [--json FILE] [--minutes M] [--only mixup "magnetic_tile / vpt"]

Claim: teaching.json beside this file. Data, splits, draws and scores are those of methods.py: a tenth of the training
side of two sets, for prompts and for full tuning, three seeds, the best of three rounds on validation. Every way sees
the same images in the same order from the same start, so its difference to the plain recipe (class-balanced loss,
nothing else) is of pairs; the interval is a bootstrap over the test groups with all seeds' answers of a group together.

Early stopping needs no training of its own: up to where it stops it is the plain recipe, whose history is read again.
"""

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from bench import (
    Bench,
    Options,
    Record,
    bound_difference,
    collect,
    describe_machine,
    draw_subset,
    open_bench,
    save_json,
    score_seeds,
    write_interval,
)
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from components.data.batches.loading import Samples, StepOrder
from components.data.store import versioning
from components.domain.settings import Training
from components.files import write_whole
from components.models.backbones import Backbone, load_backbone
from components.models.engine import create_engine
from components.models.network import create_network
from components.models.tuners import create_tuners
from components.training.checkpoint import Tensors
from components.training.evaluate import predict_probabilities
from components.training.fit import Loop
from components.training.recipe import Recipe
from components.workspace import REPOSITORY

PLAIN = "plain"
NOWHERE = Path("no checkpoint")  # a training is short enough to begin again


class Unbalanced(Loop):
    """Every image counts the same in the loss."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.balance = torch.ones_like(self.balance)


class EvenOrder(StepOrder):
    """Every class is drawn as often as every other, with replacement."""

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        targets = self.samples.targets[[self.samples.locate(index) for index in range(len(self.samples))]]
        chances = 1 / np.bincount(targets)[targets]
        return rng.choice(len(targets), len(targets), p=chances / chances.sum())


class EvenSampling(Unbalanced):
    def create_order(self, train: Samples) -> StepOrder:
        return EvenOrder(train, self.recipe.training.batch_size, self.recipe.seed)


class Smoothed(Loop):
    """A tenth of each label is shared out among all classes (https://arxiv.org/abs/1512.00567)."""

    def measure(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits, weight = self.learner(images), self.balance.to(self.engine.device)
        labels = targets.to(self.engine.device)
        return F.cross_entropy(logits, labels, weight=weight, label_smoothing=0.1, reduction="sum")


class Mixup(Loop):
    """Two images and their losses in one, by shares from Beta(0.2, 0.2) (https://arxiv.org/abs/1710.09412)."""

    def measure(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rng = np.random.default_rng(self.draw_seed(1))
        share, other = float(rng.beta(0.2, 0.2)), torch.from_numpy(rng.permutation(len(images)))
        logits = self.learner(images.float() * share + images[other].float() * (1 - share))
        own, others = (
            F.cross_entropy(logits, labels.to(logits.device), weight=self.balance.to(logits.device), reduction="sum")
            for labels in (targets, targets[other])
        )
        return share * own + (1 - share) * others


class Averaged(Loop):
    """Judged and kept are exponential averages of the weights, over about ten steps, and fewer at the start."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.averages = {name: tensor.detach().clone() for name, tensor in self.weights.items()}

    def take_step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        super().take_step(images, targets)
        done = self.progress.epoch * len(self.order) + self.progress.step
        with torch.no_grad():
            for name, tensor in self.averages.items():
                tensor.lerp_(self.weights[name], 1 - min(0.9, (1 + done) / (10 + done)))

    def run_epoch(self) -> dict[str, float]:
        """The loop keeps the averages with which it validates, and goes on from the weights themselves."""
        held: Tensors = {}
        validate = super().validate

        def judge() -> dict[str, float]:
            held.update({name: tensor.detach().clone() for name, tensor in self.weights.items()})
            self._put(self.averages)
            return validate()

        self.validate = judge  # type: ignore[method-assign]
        row = super().run_epoch()
        self._put(held)
        return row

    def _put(self, tensors: Tensors) -> None:
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(tensors[name])


#: A way's loop; each against PLAIN.
WAYS: dict[str, type[Loop]] = {
    PLAIN: Loop,
    "loss not balanced": Unbalanced,
    "sampling balanced": EvenSampling,
    "label smoothing 0.1": Smoothed,
    "mixup 0.2": Mixup,
    "averaged weights": Averaged,
}

TUNERS: dict[str, Options] = {
    "vpt": {"kind": "vpt", "num_prompts": 10, "deep": False, "lr": 1e-2},
    "full": {"kind": "full", "lr": 3e-4},
}

STEPS = {"magnetic_tile": 80, "lc25000_lung": 30}
SHARE = 0.1
SEEDS = (1, 2, 3)
ROUNDS = 3
BATCH = 16
WARMUP = 0.1  # of the steps
PATIENCE = (1,)


@dataclass(frozen=True)
class Lesson:
    """One training."""

    data: str
    tuner: str
    way: str
    seed: int

    def __str__(self) -> str:
        return f"{self.data} / {self.tuner} / {self.way}"

    @property
    def training(self) -> Training:
        return Training(epochs=ROUNDS, batch_size=BATCH, warmup_epochs=WARMUP * ROUNDS)


LESSONS = [Lesson(data, tuner, way, seed) for seed in SEEDS for data in STEPS for tuner in TUNERS for way in WAYS]


class School:
    """All trainings, and the folder that remembers those that were done."""

    def __init__(self, backbone: Backbone, source: Path, state: Path) -> None:
        self.backbone, self.state = backbone, state
        self.engine = create_engine(backbone.mean, backbone.std)
        self.commit = versioning.git_commit()
        self.benches = {name: open_bench(name, source, state, backbone.img_size) for name in STEPS}

    def find(self, lesson: Lesson) -> Record | None:
        path = self._path(lesson)
        record: Record | None = json.loads(path.read_text()) if path.exists() else None
        return record

    def train(self, lesson: Lesson) -> Record:
        """The project's own loop, then the test side with the weights that were best on validation."""
        bench, training = self.benches[lesson.data], lesson.training
        (tuner,) = create_tuners([TUNERS[lesson.tuner]])
        classes = bench.domain.classes
        network = create_network(self.backbone, tuner, len(classes), lesson.seed)
        rows = draw_subset(bench.manifest, SHARE, lesson.seed)
        draws = bench.draws(rows, lesson.seed, STEPS[lesson.data] * BATCH, ROUNDS)
        path = self._path(lesson)
        recipe = Recipe(tuner, training.model_copy(update={"checkpoint_seconds": math.inf}), classes, lesson.seed)
        started = time.process_time()
        loop = WAYS[lesson.way](network, draws, bench.samples("val"), recipe, self.engine, NOWHERE, lambda: False)
        progress = loop.run(lambda row: None)
        seconds = time.process_time() - started
        chances = predict_probabilities(network, bench.samples("test"), self.engine, 2 * BATCH)
        record = {
            "commit": self.commit,
            "history": progress.history,
            "seconds": round(seconds, 2),
            "predicted": " ".join(map(str, chances.argmax(axis=1).tolist())),
        }
        write_whole(path, json.dumps(record).encode())
        return record

    def _path(self, lesson: Lesson) -> Path:
        bench = self.benches[lesson.data]
        facts = [
            self.backbone.sha256,
            self.backbone.img_size.plain,
            bench.version,
            bench.split,
            STEPS[lesson.data],
            SHARE,
        ]
        facts += [dict(TUNERS[lesson.tuner]), BATCH, ROUNDS, WARMUP, lesson.way, lesson.seed]
        return self.state / "teaching" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"

    # --- what came out ---

    def assemble(self) -> Record:
        places = [(data, tuner) for data in STEPS for tuner in TUNERS]
        found = {place: self._read(*place) for place in places}
        rows = [row for place in places for row in self._rows(place, found[place])]
        return {
            "backbone": {"name": Path(self.backbone.name).name, "sha256": self.backbone.sha256},
            "img_size": self.backbone.img_size.plain,
            "protocol": {"share": SHARE, "steps": STEPS, "batch_size": BATCH, "rounds": ROUNDS, "seeds": SEEDS},
            "machine": describe_machine(self.engine),
            "commits": sorted({record["commit"] for ways in found.values() for way in ways.values() for record in way}),
            "tuners": TUNERS,
            "rows": rows,
            "patience": [
                stop_early(patience, [r for ways in found.values() for r in ways.get(PLAIN, [])])
                for patience in PATIENCE
            ],
        }

    def _read(self, data: str, tuner: str) -> dict[str, list[Record]]:
        """Records by way, of those with all seeds."""
        known = {way: [self.find(Lesson(data, tuner, way, seed)) for seed in SEEDS] for way in WAYS}
        return {way: [r for r in records if r] for way, records in known.items() if all(records)}

    def _rows(self, place: tuple[str, str], ways: Mapping[str, list[Record]]) -> list[Record]:
        bench = self.benches[place[0]]
        return [
            {
                "data": place[0],
                "tuner": place[1],
                "way": way,
                "scores": score_seeds(bench, collect(records)),
                "difference": compare(bench, records, ways[PLAIN]) if PLAIN in ways else None,
                "validation": [max(row["val/balanced_accuracy"] for row in record["history"]) for record in records],
                "seconds": round(fmean(record["seconds"] for record in records), 2),
            }
            for way, records in ways.items()
        ]


def compare(bench: Bench, ours: Sequence[Record], plain: Sequence[Record]) -> dict[str, float]:
    return write_interval(bound_difference(bench, collect(ours), collect(plain)))


def stop_early(patience: int, plain: Sequence[Record]) -> Record:
    """What the plain trainings would have reached on validation with early stopping, and what it would have spared."""
    lost, spared = [], []
    for record in plain:
        scores = [(row["val/balanced_accuracy"], -row["val/loss"]) for row in record["history"]]
        end = next((n for n in range(1, len(scores)) if n - 1 - scores.index(max(scores[:n])) >= patience), len(scores))
        lost.append(max(scores)[0] - max(scores[:end])[0])
        spared.append(1 - end / len(scores))
    if not plain:
        return {"patience": patience, "trainings": 0}
    facts = {"lost_on_validation": round(fmean(lost), 4), "most_lost": round(max(lost), 4)}
    return {"patience": patience, "trainings": len(plain), **facts, "time_spared": round(fmean(spared), 4)}


def render(results: Record) -> str:
    """A line a way: its difference to the plain recipe in each place, in points, and the mean of them."""
    places = list(dict.fromkeys((row["data"], row["tuner"]) for row in results["rows"]))
    lines = [
        "| | " + " | ".join(f"{data}, {tuner}" for data, tuner in places) + " | mean |",
        "|---" * (len(places) + 2) + "|",
    ]
    for way in WAYS:
        rows = {(row["data"], row["tuner"]): row for row in results["rows"] if row["way"] == way}
        if set(places) - rows.keys() or not places:
            continue
        if way == PLAIN:
            scores = [100 * fmean(rows[place]["scores"]) for place in places]
            lines.append(f"| {way} | " + " | ".join(f"{s:.1f}" for s in scores) + f" | {fmean(scores):.1f} |")
            continue
        told = [rows[place]["difference"] for place in places]
        cells = [f"{100 * d['mean']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]" for d in told]
        lines.append(f"| {way} | " + " | ".join(cells) + f" | {100 * fmean(d['mean'] for d in told):+.1f} |")
    return "\n".join([*lines, "", *(json.dumps(row) for row in results["patience"])])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="what load_backbone knows: a file, a timm name, `embedded`")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--state", type=Path, default=REPOSITORY / ".tessera" / "methods", help="may be methods.py's")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no training after them; 0 only reports")
    parser.add_argument("--only", nargs="+", default=[""], help="train where `set / tuner / way` holds one of them")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if "TESSERA_REAL_DATA" not in os.environ:
        parser.error("TESSERA_REAL_DATA names no folder with the data sets")
    stop = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    source, backbone = Path(os.environ["TESSERA_REAL_DATA"]), load_backbone(options.backbone, options.img_size)
    school = School(backbone, source, options.state.resolve())
    for lesson in LESSONS:
        wanted = any(text in str(lesson) for text in options.only)
        if wanted and time.monotonic() < stop and school.find(lesson) is None:
            tell(lesson, school.train(lesson))
    results = school.assemble()
    save_json(results, options.json)
    print(render(results))


def tell(lesson: Lesson, record: dict[str, Any]) -> None:
    best = max(row["val/balanced_accuracy"] for row in record["history"])
    print(f"{lesson!s:50} seed {lesson.seed}  val {best:.3f}{record['seconds']:7.1f} s", flush=True)


if __name__ == "__main__":
    main()
