"""Segmentation and detection on public sets: what a backbone adds to a head that reads pixels, and what its tuners add.

    TESSERA_REAL_DATA=DIR python benchmarks/dense.py --backbone DIR/backbones/vit_tiny_[...].safetensors
        [--state FOLDER] [--json FILE] [--minutes M] [--only "bsdata / pixels" magnetic_tile] [--encoders]

Claim: dense.json beside this file, whichever row it favours.

Each set is imported, checked, split by group, trained and scored as `tessera retrain` does it, at the size of its
pictures. bsdata is split by the place of a screw that was photographed again and again as it wears. Near duplicates are
not joined there: other places look alike, too, and two groups would be left for the test. deeppcb is split by circuit
board, hence tested on boards that no training has seen; `deeppcb_random` is the same pictures split at random, as
published scores have it. `surface_boxes` is the bundled domain, at a larger size.

`pixels` is the head without a backbone and `linear` the head on a frozen one; both are trained with three seeds, the
other tuners with one and half the epochs, because their steps take up to twice as long. The budget is five CPU minutes
per row, six for detection; `long` rows see several times as many epochs, and `same steps` rows as many as `linear`. All
tuners have their defaults. A row's CPU seconds are those of a whole job: pixels decoded, training, validation after
every epoch, calibration, and the judging of every held-out picture.

--encoders measures what it costs an encoder to return the tokens of four blocks instead of pooled features: forward and
backward, without a head, in CPU time. An epoch of a dense task costs that much more than one of classification, and its
head.

Intervals are of the mean over a row's seeds, by bootstrap over the test groups; differences are paired by group.

A finished job is a folder in the state folder, named by the hash of everything it depends on but the code, whose commit
it notes: an interrupted run goes on from there, and processes with different `--only` may share the folder.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
import torch
from bench import Record, describe_machine, find_manifest, load_json, save_json, write_interval
from dense_sets import CONTROL, FROZEN, SETS, TUNERS, Set

from components.data.store import importing, versioning
from components.domain.domain import Domain
from components.domain.reading import load_domain, parse_domain
from components.files import write_whole
from components.models.backbones import load_backbone
from components.models.engine import Engine, create_engine
from components.models.heads.pyramid import choose_layers
from components.models.network import Network, create_network
from components.models.tokens import POOLED, Needs
from components.models.tuners import create_tuners
from components.models.weights import load_adapter
from components.promotion.statistics import bootstrap, bootstrap_difference
from components.records.jobs import Job, load_predictions, load_result
from components.tasks import create_task
from components.tasks.base import Evidence, MapTask, MeanEvidence, Task
from components.training.run import do_job
from components.training.usage import measure_serving
from components.workspace import REPOSITORY, Workspace

SEEDS = (0, 1, 2)
LONG = (CONTROL, FROZEN, "lora", "full")  # the rows that a set has again with a longer budget
ROUNDS, IMAGES = 5, 8  # of which the fastest is taken; per step
DECIMALS = 4


@dataclass(frozen=True)
class Row:
    """One tuner on one set. budget: `` for about the same time as `linear`, `long` or `same steps`."""

    data: Set
    tuner: str
    budget: str = ""

    @property
    def seeds(self) -> tuple[int, ...]:
        return SEEDS if self.tuner in (CONTROL, FROZEN) and not self.budget else SEEDS[:1]

    @property
    def share(self) -> float:
        """Epochs, as a multiple of those of the set."""
        cheap = self.tuner in (CONTROL, FROZEN) or self.budget == "same steps"
        return (self.data.long if self.budget == "long" else 1) * (1 if cheap else 0.5)

    def __str__(self) -> str:
        return f"{self.data.name} {self.budget}".strip() + f" / {self.tuner}"


ROWS = [Row(data, tuner) for data in SETS.values() for tuner in data.tuners]
ROWS += [Row(data, tuner, "long") for data in SETS.values() for tuner in LONG if data.long]
ROWS += [
    Row(data, tuner, "same steps")
    for data in SETS.values()
    for tuner in data.tuners
    if data.same_steps and tuner not in (CONTROL, FROZEN)
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="what load_backbone knows: a file, a timm name, `embedded`")
    parser.add_argument("--state", type=Path, default=REPOSITORY / ".tessera" / "dense", help="may be shared")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no job after them; 0 only reports")
    parser.add_argument("--only", nargs="+", default=[""], help="train where `set / tuner` holds one of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="train these seeds only")
    parser.add_argument("--encoders", action="store_true", help="measure the encoders, too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if "TESSERA_REAL_DATA" not in os.environ:
        parser.error("TESSERA_REAL_DATA names no folder with the data sets")
    torch.set_num_threads(options.threads)
    study = Study(options.backbone, Path(os.environ["TESSERA_REAL_DATA"]), options.state.resolve(), options.json)
    if options.encoders:
        save_json({"rows": measure_encoders(options.backbone)}, study.encoders)
    stop = time.monotonic() + 60 * options.minutes
    wanted = [(row, seed) for row in ROWS for seed in row.seeds if seed in options.seeds]
    for row, seed in sorted(wanted, key=lambda pair: (pair[0].budget, pair[1])):
        if time.monotonic() < stop and any(text in str(row) for text in options.only) and not study.find(row, seed):
            study.train(row, seed)
            study.report()
    print(render(study.report()))


@dataclass
class Study:
    """All jobs there are to do, and the folder that holds those that were done."""

    backbone: str
    source: Path
    state: Path
    json: Path
    homes: dict[str, tuple[Workspace, Domain]] = field(default_factory=dict)

    @property
    def encoders(self) -> Path:
        return self.state / "encoders.json"

    def home(self, data: Set) -> tuple[Workspace, Domain]:
        """The set in a workspace of its own, imported, checked and split."""
        if data.name not in self.homes:
            workspace = Workspace(self.state / "workspaces" / data.name)
            workspace.activate()
            if not find_manifest(workspace, data.name).exists():
                self._bring_in(workspace, data)
            self.homes[data.name] = workspace, load_domain(workspace.domain_file(data.name))
        return self.homes[data.name]

    def _bring_in(self, workspace: Workspace, data: Set) -> None:
        record = {"backbone": str(Path(self.backbone).resolve())} | data.domain | {"name": data.name}
        parse_domain(record, "benchmarks/dense.py")
        workspace.domain_file(data.name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(workspace.domain_file(data.name), json.dumps(record).encode())
        folder = self.source / (data.source or data.name)
        if data.arrange:
            arranged = self.state / "arranged" / data.name
            shutil.rmtree(arranged, ignore_errors=True)
            data.arrange(folder, arranged)
            folder = arranged
        importing.import_folder(workspace, folder, data.name)
        versioning.require_repository(workspace)
        versioning.register_domain(workspace, data.name)
        versioning.record_version(workspace, data.name)
        for stage in ("manifest", "features", "validate", "split"):
            versioning.run_stage(workspace, stage, data.name)

    def job(self, row: Row, seed: int) -> Job:
        workspace, domain = self.home(row.data)
        record = domain.model_dump(mode="json") | {
            key: row.data.domain[key] for key in ("training", "augmentation") if key in row.data.domain
        }
        record["training"] = record["training"] | {"epochs": math.ceil(record["training"]["epochs"] * row.share)}
        chosen = parse_domain(record, "benchmarks/dense.py")
        version = versioning.read_version(workspace, row.data.name).md5
        facts = [chosen.model_dump(mode="json", exclude={"candidates"}), dict(TUNERS[row.tuner]), seed, version]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return Job(
            action="train",
            domain=chosen,
            tuner=dict(TUNERS[row.tuner]),
            seed=seed,
            manifest=find_manifest(workspace, row.data.name),
            raw=workspace.raw(row.data.name),
            cache=workspace.cache,
            folder=self.state / "jobs" / f"{row.data.name}-{row.tuner}-{key}",
            data_version=version,
            git_commit=versioning.git_commit(),
        )

    def find(self, row: Row, seed: int) -> Record | None:
        """What this job left, if it is done."""
        if not (self.state / "workspaces" / row.data.name).exists():
            return None
        folder = self.job(row, seed).folder
        path = folder / "facts.json"
        return load_json(path) | {"folder": folder} if path.exists() else None

    def train(self, row: Row, seed: int) -> None:
        job = self.job(row, seed)
        begun = time.process_time()

        def tell(event: str, **facts: Any) -> None:
            if event == "epoch":
                spent = time.process_time() - begun
                print(
                    f"{row!s:32} seed {seed} epoch {facts['epoch']:3.0f} val {facts['score']:.4f} {spent:7.1f} s",
                    flush=True,
                )

        do_job(job, tell)
        spent = time.process_time() - begun
        network, meta = load_adapter(job.folder / "adapter")
        engine = create_engine(meta.backbone.mean, meta.backbone.std)
        served = measure_serving(engine.prepare(network), engine, meta.backbone.img_size)
        facts = {"seed": seed, "commit": job.git_commit, "cpu_seconds": round(spent, 1)}
        facts |= {"ms_per_picture": round(served["latency_ms_p50"], 1)}
        save_json(facts, job.folder / "facts.json")

    def report(self) -> Record:
        """Write everything there is; rows of jobs that are in another state folder stay as they are."""
        found = {row: [facts for seed in row.seeds if (facts := self.find(row, seed))] for row in ROWS}
        done = {row: facts for row, facts in found.items() if facts}
        before = load_json(self.json)
        known = {(one["set"], one["tuner"], one["budget"]): one for one in before.get("rows", [])}
        known |= {(row.data.name, row.tuner, row.budget): self._describe(row, done[row], done) for row in done}
        names = [(row.data.name, row.tuner, row.budget) for row in ROWS]
        rows = [known[name] for name in names if name in known]
        sets = before.get("sets", {}) | {row.data.name: self._describe_set(row.data) for row in done}
        machine = describe_machine(create_engine((0.5,) * 3, (0.5,) * 3))
        results = {"backbone": Path(self.backbone).name, "machine": machine, "sets": sets, "rows": rows}
        results["encoders"] = load_json(self.encoders).get("rows", before.get("encoders", []))
        save_json(results, self.json)
        return results

    def _describe_set(self, data: Set) -> Record:
        workspace, _ = self.home(data)
        manifest = pl.read_parquet(find_manifest(workspace, data.name))
        sides = {side: manifest.filter(split=side) for side in ("train", "val", "test")}
        counts = {side: {"images": rows.height, "groups": rows["group"].n_unique()} for side, rows in sides.items()}
        return {key: data.domain[key] for key in ("classes", "img_size", "training")} | counts

    def _describe(self, row: Row, jobs: list[Record], done: dict[Row, list[Record]]) -> Record:
        _, domain = self.home(row.data)
        task = create_task(domain)
        results = [result for facts in jobs if (result := load_result(facts["folder"]))]
        ours = read_evidence(jobs, task, domain)
        record: Record = {
            "set": row.data.name,
            "tuner": row.tuner,
            "budget": row.budget,
            "seeds": [one["seed"] for one in jobs],
        }
        record |= {"commit": sorted({one["commit"] for one in jobs}), "epochs": len(results[0].history)}
        for key in ("cpu_seconds", "ms_per_picture"):
            record[key] = round(fmean(one[key] for one in jobs), 1)
        record |= {"trainable_params": results[0].trainable_params, "head_params": results[0].head_params}
        record |= {name: write_interval(bootstrap(evidence)) for name, evidence in ours.items()}
        for name in list_scores(task, domain.classes):
            record[name] = round(fmean(one.metrics[f"test/{name}"] for one in results), DECIMALS)
        record["by_seed"] = [round(one.metrics[f"test/{task.metric}"], DECIMALS) for one in results]
        for other in (CONTROL, FROZEN):
            against = done.get(Row(row.data, other, row.budget)) or done.get(Row(row.data, other))
            if against and other != row.tuner:
                theirs = read_evidence(against, task, domain)
                record[f"minus_{other}"] = {
                    name: write_interval(bootstrap_difference(ours[name], theirs[name])) for name in ours
                }
        return record


def measure_encoders(name: str) -> list[Record]:
    """CPU milliseconds per image of each tuner's encoder at the backbone's own size, forward and backward."""
    backbone = load_backbone(name)
    engine = create_engine(backbone.mean, backbone.std)
    images = torch.zeros(IMAGES, 3, *backbone.img_size, dtype=torch.uint8)
    wanted = {"pooled": POOLED, "layers": Needs(layers=choose_layers(len(backbone.vit.blocks)))}
    rows = []
    for label, options in TUNERS.items():
        if label == CONTROL:
            continue
        network = create_network(backbone, create_tuners([options])[0], 2, 0)
        engine.prepare(network).train()
        spent = {key: measure_step(network, engine, images, needs) for key, needs in wanted.items()}
        row = {"tuner": label} | {f"{key}_ms": round(1000 * seconds / IMAGES, 2) for key, seconds in spent.items()}
        rows.append(row | {"ratio": round(spent["layers"] / spent["pooled"], 3)})
        print(rows[-1], flush=True)
    return rows


def measure_step(network: Network, engine: Engine, images: torch.Tensor, needs: Needs) -> float:
    """The fastest of some rounds, in seconds of this process; the first one warms up."""
    seconds = []
    for _ in range(1 + ROUNDS):
        begun = time.process_time()
        with engine.autocast():
            tokens = network.encoder(engine.normalise(images), needs)
        outputs = tokens.layers or (tokens.pooled,)
        if any(parameter.requires_grad for parameter in network.encoder.parameters()):
            torch.stack([output.float().sum() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
        seconds.append(time.process_time() - begun)
    return min(seconds[1:])


def read_evidence(jobs: Sequence[Record], task: Task, domain: Domain) -> dict[str, Evidence]:
    """Of the mean over the jobs: the metric, and the IoU of the class that is not background."""
    frames = [load_predictions(facts["folder"], "test") for facts in jobs]
    found: dict[str, Evidence] = {task.metric: task.mean_evidence(frames, domain.classes)}
    if isinstance(task, MapTask):
        target = domain.classes[1]
        parts = [task.class_evidence(frame, domain.classes)[target] for frame in frames]
        found[f"iou/{target}"] = MeanEvidence(tuple(parts))
    return found


def list_scores(task: Task, classes: Sequence[str]) -> list[str]:
    """What a row says beside the metric."""
    if isinstance(task, MapTask):
        names = ["mean_dice", f"dice/{classes[1]}", "picture_dice", "boundary_f1", "defect_recall", "false_components"]
    else:
        names = ["map", *(f"ap50/{name}" for name in classes), "missed", "false_alarms", "count_error"]
    return [*names, "ece", "ece_uncalibrated"]


def render(results: Record) -> str:
    """The tables of benchmarks/README.md: segmentation, detection."""
    maps = [row for row in results["rows"] if "mean_iou" in row]
    boxes = [row for row in results["rows"] if "map50" in row]
    return "\n\n".join([_render_maps(maps, results["sets"]), _render_boxes(boxes, results["sets"])])


def _render_maps(rows: Sequence[Record], sets: Record) -> str:
    lines = ["| set | tuner | seeds | epochs, CPU s | mean IoU | class IoU, Dice | - pixels | - linear | ms | params |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        target = sets[row["set"]]["classes"][1]
        scores = [show(row["mean_iou"]), show(row[f"iou/{target}"]), f"{row[f'dice/{target}']:.3f}"]
        lines.append(_render_row(row, scores, "mean_iou"))
    return "\n".join(lines)


def _render_boxes(rows: Sequence[Record], sets: Record) -> str:
    lines = ["| set | tuner | seeds | epochs, CPU s | mAP50 | mAP | AP50 | - pixels | - linear | ms | params |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        classes = ", ".join(f"{name} {row[f'ap50/{name}']:.2f}" for name in sets[row["set"]]["classes"])
        lines.append(_render_row(row, [show(row["map50"]), f"{row['map']:.3f}", classes], "map50"))
    return "\n".join(lines)


def _render_row(row: Record, scores: Sequence[str], metric: str) -> str:
    gaps = [show(row[f"minus_{name}"][metric], 100) if f"minus_{name}" in row else "" for name in (CONTROL, FROZEN)]
    cells = [row["set"], row["tuner"] + (f" ({row['budget']})" if row["budget"] else ""), str(len(row["seeds"]))]
    cells += [f"{row['epochs']}, {row['cpu_seconds']:.0f}", *scores, *gaps]
    cells += [f"{row['ms_per_picture']:.0f}", f"{row['trainable_params']:,}"]
    return f"| {' | '.join(cells)} |"


def show(interval: Record, scale: float = 1.0) -> str:
    """`0.874 [0.861, 0.886]`, a difference in points."""
    digits = 3 if scale == 1 else 1
    value, *ends = (None if interval[name] is None else scale * interval[name] for name in ("mean", "low", "high"))
    known = "" if None in ends else f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
    return f"{value:.{digits}f}{known}"


if __name__ == "__main__":
    main()
