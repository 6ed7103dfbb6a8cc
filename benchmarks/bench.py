"""What the comparisons share: public sets brought in, split by group and decoded, and scores with their intervals."""

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import timm
import torch
from numpy.typing import NDArray
from step_time import describe

from components.data.batches.loading import Samples
from components.data.batches.pixels import Pixels, load_pixels
from components.data.batches.transforms import Augmentation
from components.data.manifest import load_manifest
from components.data.store import importing, versioning
from components.domain.canvas import ImgSize
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.files import write_whole
from components.models.engine import Engine
from components.promotion.statistics import Interval, bootstrap, bootstrap_difference, score
from components.tasks.classification import measure_recall
from components.training.evaluate import hash_split
from components.workspace import Workspace

Options = Mapping[str, Any]  # of a tuner, as domain.yaml has them
Record = dict[str, Any]
Ints = NDArray[np.int64]
Answers = tuple[tuple[int, ...], ...]  # predicted classes of the test side, one tuple a seed

SHOTS = 5
#: Images of a side, no more; bccd has thousands, which would cost more than to train.
MOST_HELD_OUT = {"val": 300, "test": 500}


class Bench:
    """One data set in place: checked, split, decoded."""

    def __init__(self, workspace: Workspace, domain: Domain, img_size: ImgSize) -> None:
        self.domain = domain
        self.version = versioning.read_version(workspace, domain.name).md5
        self.manifest = load_manifest(find_manifest(workspace, domain.name), domain)
        self.split = hash_split(self.manifest)
        number = {name: k for k, name in enumerate(domain.classes)}
        self.targets: Ints = np.array([number[label] for label in self.manifest["label"]], dtype=np.int64)
        self._load: Callable[[], Pixels] = lambda: load_pixels(
            self.manifest, workspace.raw(domain.name), img_size, workspace.cache, domain.validation.max_megapixels
        )

    def rows(self, side: str) -> Ints:
        """Rows of a side; of validation and test whole groups, drawn once for all, until there are MOST_HELD_OUT."""
        rows = np.flatnonzero((self.manifest["split"] == side).to_numpy())
        most = MOST_HELD_OUT.get(side, len(rows))
        if len(rows) <= most:
            return rows
        groups = self.manifest["group"].to_numpy()[rows]
        names, sizes = np.unique(groups, return_counts=True)
        order = np.random.default_rng(0).permutation(len(names))
        kept = names[order[: np.searchsorted(sizes[order].cumsum(), most) + 1]]
        return rows[np.isin(groups, kept)]

    @cached_property
    def facts(self) -> Record:
        sides = {side: self.manifest[self.rows(side)] for side in ("train", "val", "test")}
        counts = {side: {"images": rows.height, "groups": rows["group"].n_unique()} for side, rows in sides.items()}
        return {"version": self.version, "split_sha256": self.split, **counts}

    def samples(self, side: str) -> Samples:
        rows = self.rows(side)
        return Samples(self._load(), rows, self.targets[rows], None, self.manifest["group"].to_numpy()[rows])

    def draws(self, rows: Ints, seed: int, count: int, pieces: int) -> "Draws":
        laid = lay_out(rows, count, seed)
        draws = Draws(self._load(), laid, self.targets[laid], Augmentation(self.domain.augmentation, seed), pieces)
        draws.groups = self.manifest["group"].to_numpy()[laid]
        return draws


class Draws(Samples):
    """A budget of images: one shuffled pass over the rows after another, cut into pieces the loop takes for epochs.

    So the budget is a number of steps whatever the number of images, and few images are not validated at every pass.
    """

    def __init__(
        self, pixels: Pixels, rows: Ints, targets: Ints, augmentation: Augmentation | None, pieces: int
    ) -> None:
        super().__init__(pixels, rows, targets, augmentation)
        self.pieces = pieces

    def __len__(self) -> int:
        return len(self.rows) // self.pieces

    def plain(self) -> Samples:
        rows, places = np.unique(self.rows, return_index=True)
        groups = None if self.groups is None else self.groups[places]
        return Samples(self.pixels, rows, self.targets[places], None, groups)

    def locate(self, index: int) -> int:
        return self.epoch * len(self) + index

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        draw = self.locate(index)
        row = int(self.rows[draw])
        image = np.array(self.pixels[row])
        if self.augmentation is not None:
            image = self.augmentation(image, draw, row)  # by the draw, for few images come many times an epoch
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), int(self.targets[draw])


def lay_out(rows: Ints, count: int, seed: int) -> Ints:
    """As many shuffled passes over the rows as give `count` draws."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(rows) for _ in range(math.ceil(count / len(rows)))])[:count]


def find_home(state: Path, name: str) -> Workspace:
    return Workspace(state / "workspaces" / name)


def find_manifest(workspace: Workspace, name: str) -> Path:
    return workspace.derived(name) / "manifest.parquet"


def open_bench(name: str, source: Path, state: Path, img_size: ImgSize) -> Bench:
    """Bring the set into a workspace of its own and run the data stages, as `tessera import` and `check` do."""
    workspace = find_home(state, name)
    workspace.activate()
    if not find_manifest(workspace, name).exists():
        importing.import_folder(workspace, source / name, name)
        versioning.require_repository(workspace)
        versioning.register_domain(workspace, name)
        versioning.record_version(workspace, name)
        for stage in ("manifest", "features", "validate", "split"):
            versioning.run_stage(workspace, stage, name)
    return Bench(workspace, load_domain(workspace.domain_file(name)), img_size)


def draw_subset(manifest: pl.DataFrame, share: float, seed: int) -> Ints:
    """Rows of the training side: of every class `share` of its images, and no fewer than SHOTS where there are.

    The first SHOTS images of a class come from as many groups as possible, for near duplicates are one shot; then
    groups are used up one after the other, for a tenth of the data is a tenth of the tiles, slides or patients. Each
    class is cut off at its number, so a smaller share is a part of every larger one of the same seed.
    """
    rng = np.random.default_rng(seed)
    train = manifest.with_row_index("row").filter(pl.col("split") == "train")
    groups = train["group"].unique().sort()
    place = pl.DataFrame({"group": groups, "place": rng.permutation(len(groups))})
    mixed = train.with_columns(mix=rng.permutation(train.height)).join(place, on="group").sort("place", "mix")
    turn = pl.int_range(pl.len()).over("label", "group")  # of an image among those of its class in its group
    spread = mixed.with_columns(turn=turn).sort("turn", "place", "mix")
    shots = spread.with_columns(shot=pl.int_range(pl.len()).over("label") < SHOTS)
    queue = shots.sort(pl.col("shot").not_(), "place", "turn")
    wanted = (pl.len() * share).round().cast(pl.Int64).clip(SHOTS).over("label")
    rows = queue.filter(pl.int_range(pl.len()).over("label") < wanted)["row"]
    return rows.sort().to_numpy().astype(np.int64)


def collect(records: Sequence[Record]) -> Answers:
    return tuple(tuple(map(int, record["predicted"].split())) for record in records)


def score_seeds(bench: Bench, answers: Answers) -> list[float]:
    """Balanced accuracy on the test side, seed by seed."""
    targets, groups = repeat_test(bench, 1)
    classes = len(bench.domain.classes)
    return [round(score(measure_recall(targets, np.array(answer), groups, classes)), 6) for answer in answers]


@cache
def bound_mean(bench: Bench, answers: Answers) -> Interval:
    """The mean over the seeds, and its interval: a group is drawn with what every seed said of it.

    The seeds' answers laid end to end have as recalls the means of the seeds' recalls.
    """
    targets, groups = repeat_test(bench, len(answers))
    return bootstrap(measure_recall(targets, np.concatenate(answers), groups, len(bench.domain.classes)))


@cache
def bound_difference(bench: Bench, answers: Answers, best: Answers) -> Interval:
    """How much better than the best of its cell: both are scored on the same drawn groups."""
    targets, groups = repeat_test(bench, len(answers))
    ours, theirs = (
        measure_recall(targets, np.concatenate(those), groups, len(bench.domain.classes)) for those in (answers, best)
    )
    return bootstrap_difference(ours, theirs)


def write_interval(interval: Interval) -> dict[str, float | None]:
    ends = {"mean": interval.value, "low": interval.low, "high": interval.high}
    return {name: None if end is None else round(end, 4) for name, end in ends.items()}


def repeat_test(bench: Bench, times: int) -> tuple[Ints, NDArray[np.generic]]:
    rows = bench.rows("test")
    return np.tile(bench.targets[rows], times), np.tile(bench.manifest["group"].to_numpy()[rows], times)


def describe_machine(engine: Engine) -> Record:
    return {
        "device": describe(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def save_json(results: Record, path: Path) -> None:
    write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


def load_json(path: Path) -> Record:
    """What `save_json` wrote, by an earlier run."""
    results: Record = json.loads(path.read_text()) if path.exists() else {}
    return results
