"""Adapters on one backbone: what a rack answers is what each adapter's own network answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fleets import write_adapter
from vits import create_backbone

from components.data.batches.geometry import Pixels
from components.errors import AdapterError, DataError
from components.models.network import Network
from components.models.saliency import map_saliency
from components.models.tuners import TUNERS as KINDS
from components.models.weights import load_adapter
from components.serving.rack import EXPLAINED, Rack, Resident, decode
from components.tasks import TASKS, Task, read_task
from components.tasks.base import BoxTask

BACKBONE = create_backbone()


#: Every tuner, and the options that change how its rows are computed.
TUNERS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in KINDS},
    "vpt of 3": {"kind": "vpt", "num_prompts": 3},
    "vpt shallow": {"kind": "vpt", "deep": False},
    "vpt shallow of 3": {"kind": "vpt", "deep": False, "num_prompts": 3},
    "vapt of 3, 2 static": {"kind": "vapt", "num_prompts": 3, "static_blocks": 2, "kernel": 3, "bottleneck": 4},
    "vapt from zero": {"kind": "vapt", "start": "zeros"},
    "lora everywhere": {"kind": "lora", "rank": 4, "targets": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]},
    "dora everywhere": {"kind": "dora", "rank": 4, "targets": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]},
    "adaptformer of 16": {"kind": "adaptformer", "bottleneck": 16, "scale": 0.3},
}
#: How far outputs may be from those of the adapter's own network; boxes are tens of pixels, so theirs are relative.
CLOSE = {"float32": 1e-5, "bfloat16": 0.1}


def draw_pixels(count: int, size: tuple[int, int] = (32, 32)) -> Pixels:
    return np.random.default_rng(count).integers(0, 256, (count, *size, 3), np.uint8)


def create_task(kind: str) -> Task:
    return read_task({"kind": "segmentation", "head": "linear"} if kind == "segmentation linear" else kind, "a test")


class Alone:
    """The adapters' own networks, one image at a time: what a mixed batch is measured by."""

    def __init__(self, rack: Rack) -> None:
        self.rack, self.networks = rack, dict[Path, Network]()

    def forward(self, resident: Resident, pixels: Pixels) -> torch.Tensor:
        """(1, ...) of one image (H, W, 3)."""
        if resident.folder not in self.networks:
            network, _ = load_adapter(resident.folder, self.rack.backbone)
            self.networks[resident.folder] = self.rack.engine.prepare(network)
        with torch.inference_mode():
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            return self.rack.engine.forward(self.networks[resident.folder], image)

    def require(self, rows: Sequence[Resident]) -> None:
        """A batch of these rows puts out and answers what each row's own network does."""
        pixels = draw_pixels(len(rows), self.rack.key.img_size)
        found = zip(rows, pixels, self.rack.forward(pixels, rows), self.rack.answer(pixels, rows), strict=True)
        for resident, image, output, answer in found:
            wanted = self.forward(resident, image)
            name = f"{resident.meta.label}, {resident.meta.task.kind}"
            size = max(1.0, float(wanted.abs().max())) if isinstance(resident.meta.task, BoxTask) else 1.0
            close = {"rtol": 1e-5, "atol": CLOSE[self.rack.key.dtype] * size}
            np.testing.assert_allclose(output[None], wanted, err_msg=name, **close)
            np.testing.assert_allclose(answer[None], decode(resident, wanted), err_msg=name, **close)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of adapters by tuner, number and task, each written once."""
    root = tmp_path_factory.mktemp("adapters")

    def find(name: str, number: int = 0, task: str = "classification") -> Path:
        folder = root / f"{name} {number} {task}"
        if not folder.exists():
            write_adapter(folder, BACKBONE, TUNERS[name], number + sum(map(ord, name)), task=create_task(task))
        return folder

    return find


TASK_NAMES = ["classification", "multilabel", "segmentation", "segmentation linear", "detection"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", TASK_NAMES)
def test_rows_of_all_tuners_in_one_batch_answer_as_alone(adapters: Callable[..., Path], task: str, dtype: Any) -> None:
    rack = Rack(BACKBONE, dtype)
    names = [(name, number) for name in TUNERS for number in range(2)]
    rows = [rack.add(f"{name} {number}", adapters(name, number, task)) for name, number in names]
    Alone(rack).require([*rows, rows[0], *rows[::-3]])


@pytest.mark.parametrize("kind", ["vpt", "lora", "pixels"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_explanation_is_the_saliency_of_the_adapters_own_network(tmp_path: Path, kind: str, dtype: Any) -> None:
    rack, pixels = Rack(BACKBONE, dtype), draw_pixels(1)[0]
    folder = write_adapter(tmp_path / kind, BACKBONE, {"kind": kind})
    network, _ = load_adapter(folder, BACKBONE)
    wanted = map_saliency(rack.engine.prepare(network), rack.engine, torch.from_numpy(pixels).permute(2, 0, 1)[None])
    resident = rack.add("a", folder)
    assert wanted.shape == (4, 4)
    for _ in range(2):  # with a fresh network, and with the one that was kept
        np.testing.assert_allclose(rack.explain(resident, pixels), wanted, atol=1e-6)


def test_few_networks_are_kept_for_explanations(tmp_path: Path) -> None:
    rack = Rack(BACKBONE, "float32")
    for number in range(EXPLAINED + 2):
        resident = rack.add(str(number), write_adapter(tmp_path / str(number), BACKBONE, {"kind": "vpt"}, number))
        rack.explain(resident, draw_pixels(1)[0])
    assert list(rack._explained) == [rack[str(number)] for number in range(2, EXPLAINED + 2)]


def test_an_explanation_needs_the_adapter_that_answered(tmp_path: Path) -> None:
    rack = Rack(BACKBONE)
    resident = rack.add("a", write_adapter(tmp_path / "a", BACKBONE, {"kind": "vpt"}))
    write_adapter(tmp_path / "a", BACKBONE, {"kind": "vpt"}, seed=1)
    with pytest.raises(AdapterError, match="another one in its folder"):
        rack.explain(resident, draw_pixels(1)[0])


@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_tasks_whose_answer_is_a_place_have_no_saliency(tmp_path: Path, kind: str) -> None:
    rack, task = Rack(BACKBONE), TASKS[kind]()
    resident = rack.add("a", write_adapter(tmp_path / "a", BACKBONE, {"kind": "linear"}, task=task))
    with pytest.raises(DataError, match="whose answer itself shows the places"):
        rack.explain(resident, draw_pixels(1)[0])
