"""The side network of dtl: what it leaves alone, and what a training therefore computes once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from fleets import write_adapter
from vits import EVAS, VITS, create_backbone, create_images, create_targets, create_vit

from components.data.batches.loading import Samples
from components.data.batches.transforms import Augmentation
from components.domain.settings import Training
from components.errors import WorkspaceError
from components.models.engine import Engine
from components.models.mixed.side import find_same
from components.models.network import Network, create_network
from components.models.side import SideEncoder
from components.models.tokens import Needs, forward_plain
from components.models.tuners import create_tuners
from components.models.tuners.dtl import DtlTuner
from components.serving.rack import Rack
from components.tasks import CLASSIFICATION, Task
from components.tasks.detection import DetectionTask
from components.tasks.segmentation import SegmentationTask
from components.training import lower
from components.training.fit import fit
from components.training.lower import Keeper, Shelf
from components.training.recipe import Recipe

CLASSES = ("a", "b", "c")
ALL = Needs(pooled=True, patches=True, layers=(0, 1, 2))
VIT_CASES = [pytest.param(options, id=name) for name, options in {**VITS, **EVAS}.items()]


def create_encoder(vit: Any, *, stirred: bool = True, **options: Any) -> SideEncoder:
    (tuner,) = create_tuners([{"kind": "dtl", **options}])
    encoder: SideEncoder = tuner.apply(vit).eval()
    if stirred:
        with torch.no_grad():
            encoder.side.up.copy_(torch.randn(encoder.side.up.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return encoder


@pytest.mark.parametrize("options", VIT_CASES)
def test_it_starts_as_the_backbone_and_never_touches_the_lower_blocks(options: dict[str, Any]) -> None:
    vit = create_vit(options)
    images, plain = create_images(vit), forward_plain(vit, create_images(vit), ALL)
    fresh, stirred = (create_encoder(vit, stirred=stirred, first=1) for stirred in (False, True))
    fresh.form = "textbook"
    with torch.no_grad():
        start, learned = fresh(images, ALL), stirred(images, ALL)
        alone = create_encoder(vit, stirred=False)(images)
    assert torch.equal(start.pooled, plain.pooled)
    assert torch.equal(start.patches, plain.patches)
    assert all(map(torch.equal, start.layers, plain.layers))
    torch.testing.assert_close(alone.pooled, plain.pooled, atol=1e-5, rtol=1e-5)  # the first token alone at the end
    assert torch.equal(learned.layers[0], plain.layers[0])
    for ours, theirs in zip(learned.layers[1:], plain.layers[1:], strict=True):
        assert not torch.allclose(ours, theirs, atol=1e-2)


def test_it_computes_what_it_says() -> None:
    """Tokens before block 1, before block 2 and behind the last one are read, and changed by all that was read."""
    vit = create_vit()
    encoder = create_encoder(vit, first=1, rank=3)
    images, side = create_images(vit), encoder.side
    x = vit.blocks[0](vit.norm_pre(vit._pos_embed(vit.patch_embed(images))))
    h = torch.zeros_like(x)
    for place in range(3):
        h = h + x @ side.down[place].T @ side.up[place]
        x = x + h * torch.sigmoid(100 * h)
        x = vit.blocks[place + 1](x) if place < 2 else x
    torch.testing.assert_close(encoder(images, Needs(patches=True)).patches, vit.norm(x)[:, 1:], atol=1e-5, rtol=1e-5)


def test_seven_twelfths_of_the_blocks_stay_untouched() -> None:
    assert [DtlTuner().choose_first(depth) for depth in (1, 2, 3, 12, 24, 40)] == [0, 1, 2, 7, 14, 23]
    assert DtlTuner(first=0).choose_first(12) == 0


class Peers:
    """Process 0 of two, whose partner agrees with it; what the partner would compute is computed here."""

    rank, size, leads = 0, 2, True

    def any(self, mine: bool) -> bool:
        return mine


class Bench:
    """A training of four epochs, with the states of the untouched blocks kept in a folder, or not."""

    def __init__(self, folder: Path, task: Task = CLASSIFICATION, dtype: torch.dtype = torch.float32) -> None:
        (self.tuner,) = create_tuners([{"kind": "dtl", "views": 2}])
        self.folder, self.task, self.notes = folder, task, list[str]()
        self.network: Network = create_network(create_backbone(), self.tuner, len(CLASSES), 0, task)
        half = (0.5, 0.5, 0.5)
        self.engine = Engine(torch.device("cpu"), dtype, half, half, fused_attention=False)
        self.shelf = Shelf(folder, "pixels", self.notes.append)

    def samples(self, augmentation: Augmentation | None) -> Samples:
        rng, classes = np.random.default_rng(0), np.arange(22) % len(CLASSES)
        pixels = rng.integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)
        return Samples(pixels, np.arange(22) + 2, create_targets(self.task, classes), augmentation)

    def keep(self, engine: Any = None) -> Keeper:
        sides = (self.samples(Augmentation("industrial", 0)), self.samples(None))
        return Keeper(self.network, self.tuner, sides, 4, engine or self.engine, self.shelf)

    def train(self, keeper: Keeper) -> list[dict[str, float]]:
        training = Training(epochs=4, batch_size=8, warmup_epochs=1, accumulate=2)
        recipe = Recipe(self.tuner, training, CLASSES, 0, task=self.task)
        self.folder.mkdir(exist_ok=True)
        return fit(self.network, *keeper.samples, recipe, self.engine, self.folder / "c", lambda _: None).history

    def files(self) -> list[str]:
        return sorted(path.suffix for path in self.folder.rglob("*") if path.is_file() and path.name != "c")


@pytest.mark.parametrize(
    ("task", "dtype"),
    [
        (CLASSIFICATION, torch.float32),
        (CLASSIFICATION, torch.bfloat16),
        (SegmentationTask(), torch.bfloat16),
        (DetectionTask(), torch.float32),
    ],
    ids=["classification-fp32", "classification-bf16", "segmentation-bf16", "detection-fp32"],
)
def test_with_kept_states_it_learns_the_same_bits_and_no_epoch_runs_the_lower_blocks(
    task: Task, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, other = Bench(tmp_path / "kept", task, dtype), Bench(tmp_path / "other", task, dtype)
    keeper = kept.keep()
    vit = kept.network.encoder.vit
    ran = list[int]()
    hook = vit.blocks[0].register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0])))
    ours = kept.train(keeper)
    hook.remove()
    assert sum(ran) == (22 if kept.network.head.solvable else 0)  # plain images, whose features the head starts on
    assert kept.files() == [".crc", ".crc", ".u8", ".u8"]
    keeper.close()
    assert (kept.files(), kept.notes) == ([], [])
    monkeypatch.setenv("TESSERA_CACHE_GB", "0.00001")
    theirs = other.train(other.keep())
    assert (other.files(), len(other.notes)) == ([], 1)
    assert "no room to keep their outputs: they take" in other.notes[0]
    assert ours == theirs
    pairs = zip(
        kept.network.trainable_parameters().values(), other.network.trainable_parameters().values(), strict=True
    )
    assert all(torch.equal(*pair) for pair in pairs)


def test_epochs_show_the_views_in_turn(tmp_path: Path) -> None:
    train, val = Bench(tmp_path).keep().samples
    seen = []
    for epoch in range(4):
        train.epoch = val.epoch = epoch
        seen.append((train[3][0].states, val[3][0].states))
    assert [torch.equal(seen[0][0], states) for states, _ in seen] == [True, False, True, False]
    assert all(torch.equal(seen[0][1], states) for _, states in seen)
    assert not torch.equal(train[4][0].states, train[3][0].states)


def test_processes_of_a_group_compute_a_share_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Bench(tmp_path / "one"), Bench(tmp_path / "two")
    computed = list[int]()
    compute = Keeper._compute
    monkeypatch.setattr(Keeper, "_compute", lambda self, part: (computed.append(len(part)), compute(self, part))[1])
    engine = SimpleNamespace(**vars(two.engine) | {"peers": Peers()}, prepare=two.engine.prepare)
    engine.normalise = two.engine.normalise
    sides = zip(one.keep().samples, two.keep(engine).samples, strict=True)
    assert computed == [44, 22, 22, 11, 22, 11]  # alone; then the own shares, then those of the partner
    for alone, shared in sides:
        for epoch in range(2):
            alone.epoch = shared.epoch = epoch
            assert all(torch.equal(alone[index][0].states, shared[index][0].states) for index in range(22))


def test_a_disk_that_fills_up_is_reported_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any) -> None:
        raise WorkspaceError("workspace w", expected="free space", found="No space left on device", hint="Free some.")

    bench = Bench(tmp_path)
    monkeypatch.setattr(lower, "load_mapped", fill)
    assert bench.keep().samples[0].states is None
    assert "No space left on device" in bench.notes[0]
    assert bench.files() == []


def test_other_tuners_train_on_what_they_are_given(tmp_path: Path) -> None:
    (vpt,) = create_tuners([{"kind": "vpt"}])
    sides = (Bench(tmp_path).samples(None),) * 2
    keeper = Keeper(create_network(create_backbone(), vpt, 3, 0), vpt, sides, 4, Bench(tmp_path).engine, None)  # type: ignore[arg-type]
    assert keeper.samples is sides


def test_a_job_removes_what_it_kept(tmp_path: Path) -> None:
    """And a trial of a search, which goes on, does not."""
    domain = tiny.create_domain(backbone="embedded", img_size=32, augmentation="industrial")
    tiny.climb(tmp_path, domain, {"kind": "dtl"}, [1])
    pixels = tmp_path / "cache" / "pixels"
    assert len(list(pixels.glob("*.u8"))) == 3
    result = tiny.train(tmp_path, domain, {"kind": "dtl"})
    assert result.trainable_params > 0
    assert len(list(pixels.glob("*.u8"))) == 1


def test_a_picture_asked_of_several_adapters_passes_the_lower_blocks_once(tmp_path: Path) -> None:
    backbone = create_backbone()
    rack = Rack(backbone, "float32")
    rows = [rack.add(str(n), write_adapter(tmp_path / str(n), backbone, {"kind": "dtl"}, n)) for n in range(3)]
    picture, another = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    sizes = list[int]()
    family: Any = rows[0].family
    family.vit.blocks[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    answers = rack.answer(np.stack([picture, another, picture, picture]), [rows[0], rows[0], *rows[1:]])
    assert sizes == [2]
    alone = [rack.answer(picture[None], [row])[0] for row in rows]
    np.testing.assert_allclose([answers[0], *answers[2:]], alone, atol=1e-6)


def test_images_are_the_same_only_where_every_pixel_is() -> None:
    a = torch.randn(3, 32, 32)
    b = a.clone()
    b[0, 0, 1] += 1  # not among the numbers that are looked at first
    assert find_same(torch.stack([a, b, a, -a, b])) == ([0, 1, 3], [0, 1, 0, 2, 1])
