"""Saliency of the test images that a candidate found hardest, for its model card."""

from pathlib import Path

import polars as pl
import torch
from safetensors.numpy import save_file

from components.data.batches.loading import Samples
from components.models.engine import Engine
from components.models.network import Network
from components.models.saliency import map_saliency, whole_blocks
from components.records.jobs import SALIENCY_FILE
from components.tasks import Task

MOST = 12


def write_saliency(
    folder: Path, frame: pl.DataFrame, task: Task, held_out: Samples, network: Network, engine: Engine
) -> None:
    """Maps of the hardest test images, by id, for the model card; frame: their predictions, in the samples' order."""
    maps = {}
    with whole_blocks(network.encoder):
        for row in choose_hardest(frame, task):
            image, _ = held_out[row]
            maps[frame["id"][row]] = map_saliency(network, engine, torch.as_tensor(image)[None])
    save_file(maps, folder / SALIENCY_FILE)


def choose_hardest(frame: pl.DataFrame, task: Task) -> list[int]:
    """Rows of the test images whose truth got the least probability."""
    ranked = frame.with_row_index("row").with_columns(ease=task.ease(frame)).filter(pl.col("split") == "test")
    return ranked.sort("ease", "id").head(MOST)["row"].to_list()
