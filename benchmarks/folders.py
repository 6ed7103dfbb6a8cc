"""What a table of a folder's answers costs, against decoding the same images and one forward per batch.

    OMP_NUM_THREADS=1 python benchmarks/folders.py [--images 1000]

Both run in one process, in turns of a few hundred images, so that whatever else the machine does meets both. A turn of
the table is all that `tessera predict --out` and its child do: hashes, decoding in threads, the forward, lines of JSON,
the journal, and the file. The bare way reads and decodes each image, and calls `rack.forward`. Costs are seconds of
processor time.
"""

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fleets import CLASSES, write_adapter
from PIL import Image

from components.models.backbones import load_backbone
from components.serving.__main__ import answer_pictures
from components.serving.folders import Group, open_table
from components.serving.predictor import Predictor
from components.serving.questions import BATCH, Question
from components.serving.rows import list_columns

IMAGES, TURNS = 1000, 5
SIDE = (640, 480)


class Unwatched:
    def count(self, done: int, failed: int, *, known: bool = False) -> None: ...

    def see(self, question: Question, said: dict[str, Any]) -> None: ...

    def wants(self, question: Question) -> bool:
        return False


def measure_folder(images: int = IMAGES) -> dict[str, Any]:
    """share: the bare way's processor time per image to that of the table; milliseconds per image of both."""
    with tempfile.TemporaryDirectory() as name:
        folder, backbone = Path(name), load_backbone("embedded")
        predictor = Predictor(write_adapter(folder / "adapter", backbone, {"kind": "vpt"}), backbone)
        paths = write_photographs(folder / "images", images)
        answer_bare(predictor, paths[: 2 * BATCH])
        answer_table(predictor, paths[: 2 * BATCH], folder / "warm.csv")
        bare = table = 0.0
        part = -(-images // TURNS)
        for turn, begin in enumerate(range(0, images, part)):
            some = paths[begin : begin + part]
            bare += spend(lambda some=some: answer_bare(predictor, some))  # type: ignore[misc]
            table += spend(lambda some=some, turn=turn: answer_table(predictor, some, folder / f"{turn}.csv"))  # type: ignore[misc]
    return {
        "images": images,
        "bare_ms": round(1000 * bare / images, 2),
        "table_ms": round(1000 * table / images, 2),
        "share": round(bare / table, 3),
    }


def spend(work: Any) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def write_photographs(folder: Path, number: int) -> list[Path]:
    """JPEGs of SIDE pixels, each of other noise that is smooth as a photograph is."""
    folder.mkdir()
    dice, paths = np.random.default_rng(0), []
    for place in range(number):
        coarse = Image.fromarray(dice.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        paths.append(folder / f"{place:05}.jpg")
        coarse.resize(SIDE, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def answer_bare(predictor: Predictor, paths: Sequence[Path]) -> None:
    looks = predictor.resident.eye.look([Question(path) for path in paths])
    pixels = []
    for look in looks:
        pixels.append(look.pixels)
        if len(pixels) == BATCH:
            predictor.rack.forward(np.stack(pixels), [predictor.resident] * BATCH)  # type: ignore[arg-type]
            pixels = []
    if pixels:
        predictor.rack.forward(np.stack(pixels), [predictor.resident] * len(pixels))  # type: ignore[arg-type]


def answer_table(predictor: Predictor, paths: Sequence[Path], file: Path) -> None:
    def ask(groups: Iterator[Group]) -> Iterator[tuple[Group, dict[str, Any]]]:
        """What the child and its parent do, lines of JSON and all."""
        asked: deque[Group] = deque()

        def lines() -> Iterator[dict[str, Any]]:
            for group in groups:
                asked.append(group)
                line = {"path": str(group[0].image), "name": "", "boxes": [one.box for one in group]}
                yield json.loads(json.dumps(line))

        for reply in answer_pictures(predictor, lines(), False, ()):
            yield asked.popleft(), json.loads(json.dumps(reply))

    columns = list_columns("label", CLASSES)
    with open_table(file, columns, 1, "0" * 64) as table:
        summary = table.answer([Question(path) for path in paths], ask, Unwatched())
    assert summary.answered == len(paths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=IMAGES)
    print(json.dumps(measure_folder(parser.parse_args().images), indent=1))
