"""Caches carry checksums: whatever happens to one is found when it is read, logged, and made again; nothing raises."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import DOMAIN, run_tessera
from samples import make_domain, write_folders

from components.data.annotations.layouts import read_rows
from components.data.batches.pixels import load_pixels
from components.data.checks.features import load_features, load_known
from components.data.checks.validation import check_rows
from components.data.manifest import load_cache, load_frame, save_frame
from components.data.stages import run_manifest
from components.data.store import digests as digests_module
from components.data.store.digests import Digests
from components.domain.canvas import ImgSize
from components.errors import DataError
from components.models.features import run_features
from components.sealed import DAMAGED, save_known
from components.sealed import load_known as load_fact
from components.workspace import Workspace

SCHEMA = {"key": pl.String, "value": pl.Int64}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "first bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "last bit": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    "cut": lambda data: data[: len(data) // 2],
    "one byte less": lambda data: data[:-1],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"\0",
    "text": lambda _: b"no such file\n",
    "zeros": lambda data: bytes(len(data)),
}


def test_every_flipped_byte_of_a_table_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    frame = pl.DataFrame({"key": [f"k{n}" for n in range(40)], "value": range(40)}, schema=SCHEMA)
    save_frame(frame, file)
    assert load_cache(file, SCHEMA).equals(frame)
    assert load_frame(file).equals(frame)
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert load_cache(file, SCHEMA).is_empty()


def test_a_damaged_table_of_a_stage_is_an_error(tmp_path: Path) -> None:
    save_frame(pl.DataFrame({"key": ["a"], "value": [1]}, schema=SCHEMA), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(DAMAGES["one bit"]((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(DataError, match="contradict their checksum"):
        load_frame(tmp_path / "a.parquet")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_or_fact_is_logged_and_nothing_is_known(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    table, fact = tmp_path / "a.parquet", tmp_path / "a.json"
    save_frame(pl.DataFrame({"key": ["a"], "value": [1]}, schema=SCHEMA), table)
    save_known(fact, {"stamp": "abc"})
    assert load_fact(fact) == {"stamp": "abc"}
    for file in (table, fact):
        file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert load_cache(table, SCHEMA).is_empty()
        assert load_fact(fact) is None
    assert [record.getMessage().count("is rebuilt") for record in caplog.records] == [1, 1]


def test_a_table_of_other_columns_is_of_another_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_frame(pl.DataFrame({"key": ["a"]}), tmp_path / "a.parquet")
    assert load_cache(tmp_path / "a.parquet", SCHEMA).is_empty()
    assert "another version" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("what", ["pixels", "sums"])
def test_damaged_pixels_are_decoded_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = write_folders(tmp_path / "raw", images=3)
    paths = sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*.png"))
    ids = [hashlib.sha256((raw / path).read_bytes()).hexdigest() for path in paths]
    manifest = pl.DataFrame({"id": ids, "path": paths}).with_columns(crop=pl.lit(None, dtype=pl.List(pl.Int64)))

    def load() -> np.ndarray:
        return np.array(load_pixels(manifest, raw, ImgSize(32, 32), tmp_path / "cache", 100))

    expected = load()
    (file,) = (tmp_path / "cache" / what).iterdir()
    file.write_bytes(damage(file.read_bytes()))
    np.testing.assert_array_equal(load(), expected)
    assert "is rebuilt" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(load(), expected)
    assert not caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["one bit", "cut", "empty"])
def test_data_stages_make_of_damaged_caches_what_a_fresh_run_makes(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hashes, features, matches and findings: the same files, byte by byte."""
    monkeypatch.setattr(digests_module, "YOUNG", 0)
    workspace, domain = Workspace(tmp_path), make_domain()
    raw = write_folders(workspace.raw("tiles"), images=4)
    folder, findings = workspace.derived("tiles"), workspace.cache / "findings"

    def run() -> dict[str, bytes]:
        run_manifest(workspace, domain)
        run_features(workspace, domain)
        assert check_rows(read_rows(domain, raw), raw, domain, cache=findings).fit.height == 8
        caches = [*folder.glob("*.parquet"), *findings.glob("*.parquet")]
        return {file.name: file.read_bytes() for file in caches}

    fresh = run()
    digests = next((workspace.cache / "digests").iterdir())
    caches = [folder / "features.parquet", folder / "matches.parquet", next(findings.iterdir()), digests]
    for file in caches:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert load_features(caches[0]).is_empty()
    assert not load_known(caches[1]).looks
    assert Digests(raw, workspace.cache).known == {}
    caplog.clear()
    assert run() == fresh
    assert caplog.text.count("is rebuilt") == len(caches)


@pytest.mark.slow
def test_a_person_hears_of_a_damaged_cache(workspace: Path) -> None:
    """The stages run in processes of their own, below DVC; what they find reaches the terminal all the same."""
    first = run_tessera(workspace, "check", DOMAIN)
    assert first.code == 0, first.stderr
    assert DAMAGED not in first.stderr
    file = Workspace(workspace).derived(DOMAIN) / "matches.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    again = run_tessera(workspace, "check", DOMAIN)
    assert again.code == 0, again.stderr
    assert f"matches.parquet {DAMAGED}" in again.stderr
    assert again.outcome["near_duplicate_pairs"] == first.outcome["near_duplicate_pairs"]
