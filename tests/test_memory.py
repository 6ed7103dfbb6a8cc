"""The memory of a training: computed as it is measured; and the settings that fit a device, which the user sets."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vits import create_backbone, create_targets, create_vit

from components.domain.canvas import ImgSize
from components.domain.settings import Training
from components.errors import TrainingError
from components.models.engine import Engine
from components.models.network import Network, create_network
from components.models.process_group import ALONE
from components.models.tuners import TUNERS, create_tuners
from components.records.jobs import Job
from components.records.memory import Memory
from components.tasks import CLASSIFICATION, TASKS, Task
from components.tasks.base import BoxTask
from components.training.memory import Ledger, Rehearsal
from components.training.recipe import Recipe
from components.training.room import (
    Forecast,
    Room,
    bound_memory,
    explaining,
    find_ways,
    forecast,
    forecast_others,
    measure_free,
)
from flows.retrain import name_others

CLASSES, BATCH, SIZE = ("a", "b", "c"), 8, ImgSize(32, 32)
SETTINGS: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.float32, {}),
    (torch.float32, {"accumulate": 4}),
    (torch.bfloat16, {"gradient_checkpointing": True}),
]
PLENTY = Room(10**15, "a device")
RECIPE = Recipe(create_tuners([{"kind": "lora"}])[0], Training(batch_size=32), CLASSES, 0)


def create_engine(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Engine:
    return Engine(torch.device(device), dtype, (0.5,) * 3, (0.5,) * 3, fused_attention=device != "cpu")


def _create(kind: str, task: Task = CLASSIFICATION) -> Network:
    (tuner,) = create_tuners([{"kind": kind}])
    return create_network(create_backbone(), tuner, len(CLASSES), 0, task)


def _rehearse(kind: str, task: Task = CLASSIFICATION, **engine: Any) -> Rehearsal:
    return Rehearsal(_create(kind, task), create_engine(**engine), task, len(CLASSES), SIZE)


def _create_batch(task: Task, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    targets = create_targets(task, np.arange(images) % len(CLASSES))
    return torch.randint(0, 256, (images, 3, *SIZE), dtype=torch.uint8), torch.as_tensor(targets)


def _measure(network: Network, engine: Engine, task: Task, images: int) -> tuple[int, int]:
    """Bytes that autograd keeps, by its own hooks, and the most bytes that are alive in a part of a step."""
    pixels, targets = _create_batch(task, images)
    held = [*network.parameters(), *network.buffers(), pixels, targets]
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = weakref.ref(tensor.untyped_storage())
        return tensor

    def measure_loss() -> torch.Tensor:
        outputs = engine.forward(network, pixels)
        boxes = isinstance(task, BoxTask)
        return outputs.square().sum() if boxes else network.head.loss(outputs, targets, torch.ones(len(CLASSES)))

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = measure_loss()
    alive = [storage() for place, storage in kept.items() if place not in known]
    saved = sum(storage.nbytes() for storage in alive if storage is not None)  # not what went with a detached part
    del loss, alive
    with Ledger() as ledger:
        measure_loss().backward()  # type: ignore[no-untyped-call]
    return saved, ledger.peak


@pytest.mark.parametrize(("dtype", "settings"), SETTINGS, ids=["plain", "in-parts", "bf16-computed-again"])
@pytest.mark.parametrize("kind", sorted(TUNERS))
def test_what_is_computed_is_what_a_step_takes(kind: str, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    network, engine, training = _create(kind), create_engine(dtype), Training(batch_size=BATCH, **settings)
    rehearsal = Rehearsal(network, engine, CLASSIFICATION, len(CLASSES), SIZE)
    memory = rehearsal.measure(training)
    assert bound_memory(network, training, SIZE, len(CLASSES)) > memory.device
    assert rehearsal.trains == (kind not in {"linear", "pixels"})
    if not rehearsal.trains:
        assert memory.step == memory.kept == 0 < memory.validation
        return
    engine.prepare(network)
    network.encoder.vit.set_grad_checkpointing(training.gradient_checkpointing)
    kept, peak = _measure(network, engine, CLASSIFICATION, BATCH // training.accumulate)
    assert memory.kept == pytest.approx(kept, rel=0.05)
    assert memory.step == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    "task", [task() for name, task in TASKS.items() if name != "classification"], ids=lambda t: t.kind
)
def test_every_head_is_rehearsed(task: Task) -> None:
    network, engine, training = _create("lora", task), create_engine(), Training(batch_size=BATCH)
    memory = Rehearsal(network, engine, task, len(CLASSES), SIZE).measure(training)
    assert bound_memory(network, training, SIZE, len(CLASSES)) > memory.device
    kept, peak = _measure(engine.prepare(network), engine, task, BATCH)
    assert memory.kept == pytest.approx(kept, rel=0.05)
    assert memory.step == pytest.approx(peak, rel=0.05)


def test_the_network_stays_as_it_is_and_may_have_no_weights() -> None:
    network = _create("lora")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    memory = Rehearsal(network, create_engine(), CLASSIFICATION, 3, SIZE).measure(Training(batch_size=BATCH))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.backbone is not None
    assert not network.encoder.vit.grad_checkpointing
    backbone = create_backbone()
    with torch.device("meta"):
        backbone = replace(backbone, vit=create_vit())
        network = create_network(backbone, create_tuners([{"kind": "lora"}])[0], 3, 0)
    assert Rehearsal(network, create_engine(), CLASSIFICATION, 3, SIZE).measure(Training(batch_size=BATCH)) == memory


def test_what_settings_do() -> None:
    rehearsal = _rehearse("lora")

    def measure(**settings: Any) -> Memory:
        return rehearsal.measure(Training(batch_size=BATCH, **settings))

    plain, parts, again = measure(), measure(accumulate=4), measure(gradient_checkpointing=True)
    assert plain.kept == pytest.approx(4 * parts.kept, rel=0.01)
    assert again.kept < plain.kept / 3  # the blocks' inputs alone
    assert again.step < plain.step
    assert parts.learned == plain.learned * 5 // 4  # gradients stay from part to part
    assert measure() == plain  # what was rehearsed leaves no trace
    shared = Rehearsal(_create("lora"), replace(create_engine(), peers=replace(ALONE, size=2)), CLASSIFICATION, 3, SIZE)
    assert shared.measure(Training(batch_size=BATCH)).kept == pytest.approx(plain.kept / 2, rel=0.01)


def test_number_format_and_device() -> None:
    """In bfloat16 the frozen weights take half; a CPU holds the original beside them until all are cast."""
    training = Training(batch_size=BATCH)
    single, half = (_rehearse("vpt", dtype=dtype).measure(training) for dtype in (torch.float32, torch.bfloat16))
    assert half.weights == single.weights / 2
    assert half.loading > single.loading
    gpu = _rehearse("vpt", dtype=torch.bfloat16, device="cuda").measure(training)
    assert gpu.weights == half.weights
    assert gpu.loading < half.loading
    assert gpu.update == 2 * half.update


#: Room in hundredths of what the training takes -> the settings that are offered, the first of them recommended.
OFFERS = {
    60: ["training.accumulate=2", "training.gradient_checkpointing=true", "training.batch_size=16"],
    20: ["training.batch_size=8 and training.gradient_checkpointing=true", "training.batch_size=4"],
}


def test_settings_that_fit_are_offered_and_the_cheapest_first() -> None:
    (tuner,) = create_tuners([{"kind": "lora"}])
    network = create_network(create_backbone({"depth": 6}), tuner, len(CLASSES), 0)
    rehearsal, training = Rehearsal(network, create_engine(), CLASSIFICATION, 3, SIZE), Training(batch_size=32)
    takes = rehearsal.measure(training).device
    for share, offers in OFFERS.items():
        ways = find_ways(rehearsal, training, Room(takes * share // 100, "a device", on_gpu=True))
        assert [way.settings for way in ways] == offers, share
        assert all(way.bytes <= takes * share // 100 for way in ways)


def _forecast(share: float, recipe: Recipe = RECIPE) -> Forecast | None:
    """Where so much is free of what the training takes."""
    takes = _rehearse("lora").measure(recipe.training).machine
    return forecast(_create("lora"), recipe, create_engine(), SIZE, Room(int(takes * share), "a device"))


def test_a_training_that_cannot_fit_is_refused_with_advice() -> None:
    assert _forecast(1000) is None  # so small a part that nothing is computed
    with pytest.raises(TrainingError, match=r"memory of candidate lora.* free on a device .*Set training\.") as refused:
        _forecast(0.5)
    assert "batch_size=8 (0.0 GB; another training, with other results)" in refused.value.hint
    tight = _forecast(1.05)
    assert tight is not None
    assert "That may not suffice. Set training." in tight.describe()
    assert replace(tight, room=PLENTY).describe() == ""  # less than a gigabyte, of plenty


def test_a_device_that_runs_out_says_what_would_fit() -> None:
    for foreseen, hint in ((_forecast(1.05), r"Set training\.accumulate=2"), (None, "accumulate=4")):
        with pytest.raises(TrainingError, match=hint) as refused, explaining(RECIPE, foreseen):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total ...")
        assert refused.value.found == "no more: CUDA out of memory"


def test_free_memory_is_what_the_machine_and_its_container_leave(tmp_path: Path) -> None:
    meminfo, folder = tmp_path / "meminfo", tmp_path / "memory"
    meminfo.write_text("MemTotal: 900 kB\nMemAvailable: 600 kB\nSwapFree: 100 kB\nHugePages_Total: 0\n")
    assert measure_free(meminfo, tmp_path) == 700 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert measure_free(meminfo, tmp_path) == 700 * 1024
    (tmp_path / "memory.max").write_text("300000\n")
    (tmp_path / "memory.current").write_text("200000\n")
    (tmp_path / "memory.stat").write_text("anon 150000\ninactive_file 40000\n")
    assert measure_free(meminfo, tmp_path) == 140_000
    folder.mkdir()
    for name, text in {"memory.limit_in_bytes": "50000", "memory.usage_in_bytes": "60000", "memory.stat": ""}.items():
        (folder / name).write_text(text)
    assert measure_free(meminfo, tmp_path) == 0


def test_candidates_that_are_trained_next_are_computed_without_weights() -> None:
    backbone, tuners = create_backbone(), create_tuners([{"kind": kind} for kind in ("vpt", "full")])
    takes = {tuner.kind: _rehearse(tuner.kind).measure(RECIPE.training) for tuner in tuners}
    room = Room(int(1.05 * max(memory.machine for memory in takes.values())), "a device")
    found = list(forecast_others(backbone, tuners, RECIPE, create_engine(), room))
    assert [each.memory for each in found if each is not None] == list(takes.values())
    with pytest.raises(TrainingError, match="memory of candidate full"):
        list(forecast_others(backbone, tuners[1:], RECIPE, create_engine(), replace(room, free=10**6)))


def test_the_first_candidate_without_a_result_names_the_others(tmp_path: Path) -> None:
    jobs = {
        f"{kind}-s{seed}": Job.model_construct(tuner={"kind": kind}, seed=seed, folder=tmp_path / kind, beside=())
        for kind in ("linear", "vpt", "lora")
        for seed in (0, 1)
    }
    named = name_others(jobs)
    assert named["linear-s0"].beside == ({"kind": "vpt"}, {"kind": "lora"})
    assert all(job.beside == () for name, job in named.items() if name != "linear-s0")
