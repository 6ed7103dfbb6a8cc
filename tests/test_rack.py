"""Adapters on one backbone: what a rack answers is what each adapter's own network answers."""

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fleets import write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vits import EVAS, JOINED, VITS, create_backbone

from components.data.batches.geometry import Pixels
from components.errors import AdapterError, DataError
from components.models.network import Network
from components.models.saliency import map_saliency
from components.models.tuners import TUNERS as KINDS
from components.models.weights import load_adapter
from components.serving.rack import EXPLAINED, Rack, Racks, Resident, decode
from components.tasks import TASKS, Task, read_task
from components.tasks.base import BoxTask

BACKBONE = create_backbone()
FORMS = VITS | EVAS | JOINED
Find = Callable[..., Path]


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
    "dtl of 2": {"kind": "dtl", "rank": 2},
    "dtl from 1": {"kind": "dtl", "first": 1},
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
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Find:
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
def test_rows_of_all_tuners_in_one_batch_answer_as_alone(adapters: Find, task: str, dtype: Any) -> None:
    rack = Rack(BACKBONE, dtype)
    names = [(name, number) for name in TUNERS for number in range(2)]
    rows = [rack.add(f"{name} {number}", adapters(name, number, task)) for name, number in names]
    Alone(rack).require([*rows, rows[0], *rows[::-3]])


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def alone(request: pytest.FixtureRequest, adapters: Find) -> Alone:
    """A rack on which adapters of every tuner and of three tasks stand, two of each."""
    rack = Rack(BACKBONE, request.param)
    for task in ("classification", "multilabel", "segmentation linear"):
        for name in TUNERS:
            for number in range(2):
                rack.add(f"{name} {number} {task}", adapters(name, number, task))
    return Alone(rack)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mixture_in_any_order_answers_as_alone(alone: Alone, data: st.DataObject) -> None:
    names = st.lists(st.sampled_from(sorted(alone.rack)), min_size=1, max_size=9)
    alone.require([alone.rack[name] for name in data.draw(names)])


@pytest.mark.parametrize("name", FORMS)
def test_backbones_of_every_form_hold_mixed_batches(tmp_path: Path, name: str) -> None:
    backbone = create_backbone(FORMS[name])
    rack = Rack(backbone, "float32")
    tasks = ("classification", "segmentation linear")
    kinds = ["vpt", "vpt shallow", "vapt", "lora everywhere", "dora", "ssf", "bitfit", "adaptformer", "dtl"]
    for number, (kind, task) in enumerate(product(kinds, tasks)):
        folder = write_adapter(tmp_path / str(number), backbone, TUNERS[kind], number, task=create_task(task))
        rack.add(str(number), folder)
    Alone(rack).require([rack[name] for name in rack])


def test_no_rows_have_no_answers() -> None:
    assert Rack(BACKBONE).answer(draw_pixels(0), []) == []


@pytest.mark.parametrize("name", ["vpt", "vapt", "vpt shallow", "lora", "dtl", "full", "pixels"])
def test_rows_in_flight_are_answered_by_the_adapter_they_asked(adapters: Find, name: str) -> None:
    """Also where it was replaced and removed meanwhile, and others came."""
    rack = Rack(BACKBONE, "float32")
    asked, pixels = rack.add("a", adapters(name)), draw_pixels(1)
    (before,) = rack.forward(pixels, [asked])
    newer = rack.replace("a", adapters(name, 1))
    assert rack["a"] is newer
    rack.remove("a")
    for number in range(6):  # more than a new pool has room for
        rack.add(str(number), adapters(name, number % 2))
    assert "a" not in rack
    assert torch.equal(rack.forward(pixels, [asked])[0], before)
    assert not torch.equal(rack.forward(pixels, [newer])[0], before)


def test_a_slot_is_free_again_once_nobody_holds_its_resident(adapters: Find) -> None:
    rack = Rack(BACKBONE, "float32")
    first = rack.add("a", adapters("vpt"))
    slot = first.place.number
    second = rack.replace("a", adapters("vpt", 1))
    assert second.place.number != slot
    del first
    gc.collect()
    assert rack.add("b", adapters("vpt")).place.number == slot
    Alone(rack).require([rack["b"], second, rack["a"]])


def test_a_pool_grows_without_moving_what_it_answers(adapters: Find) -> None:
    rack = Rack(BACKBONE, "float32")
    rows = [rack.add(str(number), adapters("lora", number % 2)) for number in range(9)]
    assert rows[0].place.pool is rows[-1].place.pool
    assert sorted(row.place.number for row in rows) == list(range(9))
    Alone(rack).require(rows)


@pytest.mark.parametrize("break_it", [b"", b"\x80", None])
def test_a_damaged_adapter_leaves_the_rack_as_it_was(adapters: Find, tmp_path: Path, break_it: bytes | None) -> None:
    racks = Racks("float32")
    folder = shutil.copytree(adapters("vpt"), tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.serving.rack.load_backbone", lambda *_: BACKBONE)
        rack, resident = racks.put("a", folder)
    weights = folder / "adapter.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if break_it is None else break_it)
    for name in ("a", "b"):
        with pytest.raises(AdapterError, match="adapter"):
            racks.put(name, folder)
    assert list(racks) == [rack]
    assert dict.fromkeys(rack) == {"a": None}
    assert rack["a"] is resident


def test_an_adapter_of_another_tuner_or_shape_is_refused_as_by_load_adapter(adapters: Find, tmp_path: Path) -> None:
    """Names and shapes of its tensors, from a record that was changed with them."""
    rack = Rack(BACKBONE, "float32")
    for number, change in enumerate((("num_prompts", 4), ("deep", False))):
        folder = shutil.copytree(adapters("vpt of 3"), tmp_path / str(number))
        record = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        record["tuner"] |= dict([change])
        (folder / "adapter.json").write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(AdapterError) as mine:
            rack.add("a", folder)
        with pytest.raises(AdapterError) as theirs:
            load_adapter(folder, BACKBONE)
        assert str(mine.value) == str(theirs.value)
        assert "prompts.tokens to be float32" in str(mine.value)
    assert not len(rack)


def test_an_adapter_of_another_backbone_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", create_backbone({"reg_tokens": 2}), {"kind": "linear"})
    with pytest.raises(AdapterError, match="the backbone it was trained on"):
        Rack(BACKBONE).add("a", folder)


def test_full_adapters_are_held_up_to_a_limit(adapters: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.serving.rack.load_backbone", lambda *_: BACKBONE)
    size = (adapters("full") / "adapter.safetensors").stat().st_size
    racks = Racks("float32", most_full_bytes=size * 3 // 2)
    rack, resident = racks.put("a", adapters("full"))
    with pytest.raises(AdapterError, match="which is the limit"):
        racks.put("b", adapters("full", 1))
    racks.put("c", adapters("linear"))  # shares the backbone
    assert set(rack) == {"a", "c"}
    assert rack["a"] is resident
    assert racks.put("a", adapters("full", 1))[1] is rack["a"]  # in the place of the one that leaves
    racks.remove("a")
    racks.put("b", adapters("full"))


@pytest.mark.parametrize("kind", ["vpt", "lora", "dtl", "pixels"])
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
