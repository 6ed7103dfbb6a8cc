"""Features of a bare backbone: computed once, kept by content, whole after a kill, and the same bits as without."""

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from test_caches import DAMAGES
from vits import create_backbone

from components.data.batches import feature_store
from components.data.batches.feature_store import FeatureStore
from components.data.batches.loading import Samples
from components.data.batches.room import lock_of, make_room
from components.models import extraction
from components.models.backbones import load_backbone
from components.models.encoders import PromptedEncoder
from components.models.engine import Engine
from components.models.extraction import FeatureSource, extract_pooled
from components.models.network import create_network
from components.models.tuners.linear import LinearTuner
from components.sealed import DAMAGED
from components.training.evaluate import predict_probabilities

FACTS = {"backbone": "b" * 64, "img_size": "32"}
KEYS = [f"{number:064x}" for number in range(12)]


def _truth(places: list[int]) -> NDArray[np.float32]:
    return np.array([[place, place / 3, -place] for place in places], np.float32)


class Computer:
    """Computes features in batches of four and remembers of which keys."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, places: list[int]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(places), 4):
            self.asked += places[start : start + 4]
            yield _truth(places[start : start + 4])


def test_features_are_computed_once_and_come_in_the_order_asked_for(tmp_path: Path) -> None:
    first, more, other = Computer(), Computer(), Computer()
    store = FeatureStore(tmp_path, FACTS)
    np.testing.assert_array_equal(store.complete(KEYS[:6], first), _truth(list(range(6))))
    assert first.asked == [0, 1, 2, 3, 4, 5]
    shuffled = [7, 3, 9, 0]
    found = FeatureStore(tmp_path, FACTS).complete(
        [KEYS[k] for k in shuffled], lambda p: more([shuffled[k] for k in p])
    )
    assert found.tobytes() == _truth(shuffled).tobytes()
    assert more.asked == [7, 9]  # new ones alone
    FeatureStore(tmp_path, FACTS | {"img_size": "48"}).complete(KEYS[:1], other)
    assert other.asked == [0]  # another set
    about = [json.loads(path.read_text()) for path in tmp_path.glob("features/*/about.json")]
    assert sorted(facts["img_size"] for facts in about) == ["32", "48"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_logged_and_computed_again(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feature_store, "KEEP_SECONDS", 0.0)
    store = FeatureStore(tmp_path, FACTS)
    store.complete(KEYS, Computer())
    parts = sorted(store.folder.glob("*.parquet"))
    assert len(parts) == 3
    parts[1].write_bytes(DAMAGES[damage](parts[1].read_bytes()))
    again, last = Computer(), Computer()
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(store.complete(KEYS, again), _truth(list(range(12))))
    assert again.asked == [4, 5, 6, 7]
    assert DAMAGED in caplog.text
    assert str(parts[1]) in caplog.text
    caplog.clear()
    store.complete(KEYS, last)
    assert last.asked == []
    assert caplog.text == ""


def _compute_slowly(folder: Path, begun: Any) -> None:
    feature_store.KEEP_SECONDS = 0.0

    def compute(places: list[int]) -> Iterator[NDArray[np.float32]]:
        for place in places:
            begun.put(place)
            yield _truth([place])
            time.sleep(60 if place == 5 else 0)

    FeatureStore(folder, FACTS).complete(KEYS, compute)


def test_a_killed_process_loses_a_part_at_most_and_leaves_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    begun = context.Queue()
    process = context.Process(target=_compute_slowly, args=(tmp_path, begun))
    process.start()
    while begun.get(timeout=60) < 5:
        pass
    asked, waits = Computer(), []

    def pause() -> None:
        if not asked.asked:  # the other one computes
            waits.append(1)
            while len(list(tmp_path.glob("features/*/*.parquet"))) < 6:
                time.sleep(0.01)
            os.kill(process.pid or 0, signal.SIGKILL)

    found = FeatureStore(tmp_path, FACTS).complete(KEYS, asked, pause)
    process.join()
    assert waits
    assert asked.asked == [6, 7, 8, 9, 10, 11]
    np.testing.assert_array_equal(found, _truth(list(range(12))))


def test_what_was_computed_before_a_stop_is_kept(tmp_path: Path) -> None:
    class Asked(Exception):  # noqa: N818
        pass

    first, again = Computer(), Computer()

    def stop() -> None:
        if len(first.asked) == 8:
            raise Asked

    with pytest.raises(Asked):
        FeatureStore(tmp_path, FACTS).complete(KEYS, first, stop)
    FeatureStore(tmp_path, FACTS).complete(KEYS, again)
    assert again.asked == [8, 9, 10, 11]


def test_sets_not_used_for_longest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [FeatureStore(tmp_path, FACTS | {"img_size": str(size)}) for size in (32, 48, 64)]
    for number, store in enumerate(stores):
        store.complete(KEYS, Computer())
        os.utime(store.folder, (number, number))
    stores[0].complete(KEYS[:1], Computer())  # read, so used last
    monkeypatch.setenv("TESSERA_CACHE_GB", str(2.5e-9 * sum(p.stat().st_size for p in stores[0].folder.iterdir())))
    make_room(tmp_path, 1, "a byte takes")
    assert [store.folder.exists() for store in stores] == [True, False, True]
    monkeypatch.setenv("TESSERA_CACHE_GB", "0")
    with stores[0]._turn(lambda: None):
        make_room(tmp_path, 1, "a byte takes")
    assert [store.folder.exists() for store in stores] == [True, False, False]
    assert lock_of(stores[0].folder).exists()


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every forward of a backbone, probes left out."""
    counts: list[int] = []
    extract = extraction.extract_pooled

    def count(encoder: Any, engine: Engine, images: Any) -> Iterator[NDArray[np.float32]]:
        for part in extract(encoder, engine, images):
            counts.append(len(part))
            yield part

    monkeypatch.setattr("components.training.evaluate.extract_pooled", count)
    return counts


def test_linear_candidates_share_features_and_have_the_bits_they_have_without(
    tmp_path: Path, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = tiny.create_domain(backbone="embedded", img_size=32)
    first = tiny.train(tmp_path, domain, {"kind": "linear"})
    once = sum(forwards)
    second = tiny.train(tmp_path, domain, {"kind": "linear"}, seed=1)
    assert once == 36  # each image, those of the test split for the predictions
    assert sum(forwards) == once
    assert len(list((tmp_path / "cache").glob("features/*/about.json"))) == 1
    monkeypatch.setattr(FeatureSource, "open", lambda *_: pytest.fail("the store is not to be used"))
    monkeypatch.setattr("components.training.run.name_samples", lambda _: None)
    third = tiny.train(tmp_path, domain, {"kind": "linear"}, seed=2)
    assert sum(forwards) == once + 24 + 24  # validation images for the solution and for the predictions
    assert first.adapter_sha256 == second.adapter_sha256 == third.adapter_sha256


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_predictions_from_features_are_those_of_the_network(tmp_path: Path, dtype: torch.dtype, apart: float) -> None:
    backbone = create_backbone()
    network = create_network(backbone, LinearTuner(), 3, 0)
    engine = Engine(torch.device("cpu"), dtype, backbone.mean, backbone.std, fused_attention=False)
    engine.prepare(network)
    with torch.no_grad():
        network.head.weight.mul_(100)  # so that predictions differ
    pixels = np.random.default_rng(0).integers(0, 256, (21, *backbone.img_size, 3), dtype=np.uint8)
    rows = np.arange(21)
    samples = Samples(pixels, rows, rows % 3, None, names=[f"{row:064x}" for row in rows])
    source = FeatureSource.of(backbone, "squash", tmp_path)
    found = predict_probabilities(network, samples, engine, 8, source)
    np.testing.assert_allclose(found, predict_probabilities(network, samples, engine, 8), atol=apart)
    assert np.ptp(found, axis=0).max() > 10 * apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_feature_does_not_depend_on_what_is_computed_beside_it(dtype: torch.dtype) -> None:
    backbone = load_backbone("embedded", 64)  # matrices of 17 x 17 scores lie unevenly in memory
    encoder = PromptedEncoder(backbone.vit, None).eval()
    engine = Engine(torch.device("cpu"), dtype, backbone.mean, backbone.std, fused_attention=False)
    encoder.prepare(backbone, dtype, engine.device, engine.fused_attention)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (21, 3, *backbone.img_size), generator=generator).byte().numpy()
    together = np.concatenate(list(extract_pooled(encoder, engine, images)))
    apart = [next(extract_pooled(encoder, engine, [image]))[0] for image in images]
    assert together.tobytes() == np.stack(apart).tobytes()
    assert np.isfinite(together).all()
    assert np.ptp(together, axis=0).max() > 0


def test_a_machine_that_computes_other_bits_has_a_set_of_its_own(tmp_path: Path) -> None:
    backbone = create_backbone()
    encoder = PromptedEncoder(backbone.vit, None).eval()
    engine = Engine(torch.device("cpu"), torch.float32, backbone.mean, backbone.std, fused_attention=False)
    encoder.prepare(backbone, engine.dtype, engine.device, engine.fused_attention)
    source = FeatureSource.of(backbone, "squash", tmp_path)
    here = source.open(encoder, engine)
    assert source.open(encoder, engine).folder == here.folder
    encoder.vit = backbone.at(torch.bfloat16, engine.device).eval()
    assert source.open(encoder, engine).folder != here.folder
    assert FeatureSource.of(backbone, "letterbox", tmp_path).open(encoder, engine).folder != here.folder
