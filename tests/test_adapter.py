"""Adapters on disk: bit-equal round trips for every tuner, and a message of its own for every way to be wrong."""

import hashlib
import io
import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save, save_file
from test_tuners import TUNER_CASES, stir
from vits import create_backbone, create_images

from components.domain.canvas import ImgSize
from components.errors import AdapterError
from components.models import weights
from components.models.adapter import AdapterMeta, load_meta
from components.models.backbones import Backbone, load_backbone
from components.models.network import Network, create_network
from components.models.tuners import Tuner, create_tuners
from components.models.weights import load_adapter, save_adapter
from components.tasks import CLASSIFICATION, TASKS

CLASSES = ("good", "cracked", "ßpäl")


def create_adapter(tuner: Tuner, backbone: Backbone, **told: Any) -> tuple[Network, AdapterMeta]:
    network = create_network(backbone, tuner, len(CLASSES), seed=1, task=told.get("task", CLASSIFICATION))
    stir(network)
    facts: dict[str, Any] = {"data_version": "d1", "split_sha256": "s1", "git_commit": "c1", "seed": 1}
    facts |= {"classes": CLASSES, "metrics": {"val/macro_f1": 0.75}}
    return network.eval(), AdapterMeta.describe(network, backbone, tuner, **{**facts, **told})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A VPT adapter on the tiny backbone."""
    network, meta = create_adapter(create_tuners([{"kind": "vpt", "num_prompts": 3}])[0], create_backbone())
    save_adapter(tmp_path / "adapter", network, meta)
    return tmp_path / "adapter"


@pytest.mark.parametrize("tuner", TUNER_CASES)
class TestEveryTuner:
    @pytest.mark.parametrize("kind", TASKS)
    def test_the_round_trip_is_bit_equal(self, kind: str, tuner: Tuner, tmp_path: Path) -> None:
        backbone = create_backbone()
        network, meta = create_adapter(tuner, backbone, task=TASKS[kind]())
        digest = save_adapter(tmp_path / "adapter", network, meta)
        again, found = load_adapter(tmp_path / "adapter", create_backbone())
        images = create_images(backbone.vit)
        assert torch.equal(again(images), network(images))
        assert found == meta.model_copy(update={"adapter_sha256": digest})
        assert not again.training

    def test_it_holds_what_was_trained_and_nothing_else(self, tuner: Tuner, tmp_path: Path) -> None:
        network, meta = create_adapter(tuner, create_backbone())
        save_adapter(tmp_path / "adapter", network, meta)
        tensors = load_file(tmp_path / "adapter" / "adapter.safetensors")
        assert tensors.keys() == network.trainable_parameters().keys()
        count = sum(tensor.numel() for tensor in tensors.values())
        assert count == meta.trainable_params + meta.head_params
        assert meta.head_params == 3 * 24 + 3
        assert meta.share == meta.trainable_params / network.backbone_params
        assert meta.label == tuner.label


def test_the_same_weights_give_the_same_bytes(saved: Path) -> None:
    network, meta = load_adapter(saved, create_backbone())
    save_adapter(saved.with_name("again"), network, meta)
    for name in ("adapter.safetensors", "adapter.json"):
        assert (saved / name).read_bytes() == (saved.with_name("again") / name).read_bytes()


def test_saving_again_replaces_and_leaves_nothing_behind(saved: Path) -> None:
    network, meta = create_adapter(create_tuners([{"kind": "linear"}])[0], create_backbone())
    save_adapter(saved, network, meta)
    assert load_meta(saved).label == "linear"
    assert sorted(path.name for path in saved.iterdir()) == ["adapter.json", "adapter.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]
    assert stat.S_IMODE(saved.stat().st_mode) == 0o755


def test_a_failure_while_writing_keeps_the_old_adapter(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "adapter.json").read_bytes()

    def fail(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_write_flushed", fail)
    network, meta = create_adapter(create_tuners([{"kind": "linear"}])[0], create_backbone())
    with pytest.raises(AdapterError, match="No space left"):
        save_adapter(saved, network, meta)
    assert (saved / "adapter.json").read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_the_backbone_in_the_record_is_loaded_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone("embedded", 32)
    network, meta = create_adapter(create_tuners([{"kind": "linear"}])[0], backbone)
    save_adapter(tmp_path / "adapter", network, meta)
    again, found = load_adapter(tmp_path / "adapter")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(images), network(images))
    assert (found.backbone.img_size, found.backbone.trained) == (ImgSize(32, 32), True)


def test_the_record_is_read_without_torch(saved: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from components.models.adapter import load_meta
meta = load_meta(Path({str(saved)!r}))
sys.exit("torch" in sys.modules or meta.label != "vpt-deep" or meta.classes[2] != "ßpäl")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_metric_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        create_adapter(create_tuners([{"kind": "linear"}])[0], create_backbone(), metrics={"loss": float("nan")})


class Trap:
    """What a hostile pickle does when it is opened."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("opened",)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors as one who also knows to fix the digest."""
    tensors = load_file(folder / "adapter.safetensors")
    change(tensors)
    data = save(tensors)
    (folder / "adapter.safetensors").write_bytes(data)
    record(folder, adapter_sha256=hashlib.sha256(data).hexdigest())


def record(folder: Path, **changes: Any) -> None:
    path = folder / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path) -> None:
    """The last bit of the last number."""
    path = folder / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def swap_pickle(folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(pickle.dumps(Trap()))


def swap_torch_save(folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"head.weight": torch.zeros(3, 24)}, buffer)
    (folder / "adapter.safetensors").write_bytes(buffer.getvalue())


WRONGS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "shape",
        lambda f: rewrite(f, lambda t: t.update({"head.bias": torch.zeros(4)})),
        r"head.bias to be float32 \(3,\)",
    ),
    ("dtype", lambda f: rewrite(f, lambda t: t.update({"head.bias": torch.zeros(3).half()})), r"found float16 \(3,\)"),
    ("missing", lambda f: rewrite(f, lambda t: t.pop("encoder.prompts.tokens")), "the tensors encoder.prompts.tokens"),
    ("extra", lambda f: rewrite(f, lambda t: t.update({"x": torch.zeros(1)})), "found also x"),
    ("bit", flip, "other weights"),
    ("truncated", truncate, "whole safetensors file"),
    ("pickle", swap_pickle, "a pickle, which may run code"),
    ("torch.save", swap_torch_save, "a pickle, which may run code"),
    ("no weights", lambda f: (f / "adapter.safetensors").unlink(), "adapter.safetensors: expected a file"),
    ("no record", lambda f: (f / "adapter.json").unlink(), "expected a file adapter.json"),
    ("no json", lambda f: (f / "adapter.json").write_text('{"format_version":'), "JSON in adapter.json"),
    ("no text", lambda f: (f / "adapter.json").write_bytes(b"\xff\xfe\xff"), "JSON in adapter.json"),
    ("no mapping", lambda f: (f / "adapter.json").write_text("[]"), "expected format version 1"),
    ("version", lambda f: record(f, format_version=2), "expected format version 1; found version 2"),
    ("unknown key", lambda f: record(f, colour="red"), "a legal adapter.json; found colour"),
    ("unknown tuner", lambda f: record(f, tuner={"kind": "magic"}), "a legal adapter.json; found tuner.*magic"),
    ("other options", lambda f: record(f, tuner={"kind": "linear"}), "found also encoder.prompts.tokens"),
]


@pytest.mark.parametrize(("wrong", "message"), [pytest.param(w, m, id=name) for name, w, m in WRONGS])
def test_what_is_wrong_is_said(wrong: Callable[[Path], object], message: str, saved: Path) -> None:
    wrong(saved)
    with pytest.raises(AdapterError, match=message):
        load_adapter(saved, create_backbone())
    assert not Path("opened").exists()


def test_another_backbone_is_refused(saved: Path) -> None:
    other = create_backbone({"init_values": 0.5})
    with pytest.raises(AdapterError, match="the backbone it was trained on, tiny with sha256"):
        load_adapter(saved, other)


def test_another_image_size_is_refused(tmp_path: Path) -> None:
    network, meta = create_adapter(create_tuners([{"kind": "linear"}])[0], load_backbone("embedded", 32))
    save_adapter(tmp_path / "adapter", network, meta)
    with pytest.raises(AdapterError, match="img_size=32"):
        load_adapter(tmp_path / "adapter", load_backbone("embedded", 64))


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"expected a file adapter\.json"):
        load_meta(tmp_path / "adapter")
