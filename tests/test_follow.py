"""The server follows the registry: promotions and rollbacks, and what cannot be served or read."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from fleets import promote_adapter, write_adapter

from components.models.backbones import Backbone, load_backbone
from components.promotion import aliases, contest, versions
from components.promotion.ledger import Record, append, load_ledger
from components.serving.rack import Rack, Racks, Resident
from components.serving.server import registry
from components.serving.server.answers import describe_champions
from components.serving.server.champions import Champions
from components.serving.server.follow import PATIENCE, Follower
from components.serving.server.registry import Registry
from components.tracking.store import Store
from components.workspace import Workspace
from flows.commands.served import find_old

Promote = Callable[..., versions.Version]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("embedded", 32)


@pytest.fixture
def promote(mlflow_workspace: Workspace, store: Store, backbone: Backbone, tmp_path: Path) -> Promote:
    """Promotes an adapter of its own: `promote("plates", seed=1)`."""

    def act(domain: str, seed: int = 0, on: str = "") -> versions.Version:
        adapter = write_adapter(tmp_path / f"{domain}-{seed}", backbone, {"kind": "linear"}, seed)
        if on:  # another backbone
            record = json.loads((adapter / "adapter.json").read_text())
            record["backbone"] |= {"name": on, "sha256": "0" * 64}
            (adapter / "adapter.json").write_text(json.dumps(record))
        return promote_adapter(mlflow_workspace, store, domain, adapter)

    return act


def create(workspace: Workspace, *domains: str, every: float = 0.0) -> Follower:
    """every: 0 tries again at the next look what could not be served; a large one, never."""
    return Follower(Champions(), Racks("float32"), workspace, domains, every)


def read(follower: Follower) -> dict[str, int]:
    """What is served; each row is on its rack under its domain's name, and no other is."""
    served = {domain: follower.champions[domain] for domain in follower.champions}
    assert all(champion.rack[domain] is champion.resident for domain, champion in served.items())
    assert {name for rack in follower.racks for name in rack} == set(served)
    return {domain: champion.version for domain, champion in served.items()}


def test_promotions_and_rollbacks_are_followed(mlflow_workspace: Workspace, promote: Promote) -> None:
    follower = create(mlflow_workspace)
    assert not follower.champions.ready
    follower.look()
    assert (follower.champions.ready, read(follower)) == (True, {})
    first = promote("plates")
    follower.look()
    assert read(follower) == {"plates": 1}
    taken = follower.champions["plates"]
    assert taken.adapter_sha256 == first.adapter_json_sha256
    promote("plates", 1)
    promote("tiles")
    follower.look()
    assert read(follower) == {"plates": 2, "tiles": 1}
    assert taken.resident.eye.meta.seed == 0  # a request that had it may go on with it
    contest.rollback(mlflow_workspace, "plates", "it was better")
    follower.look()
    assert read(follower) == {"plates": 1, "tiles": 1}
    for domain in ("plates", "tiles"):
        mlflow.MlflowClient().delete_registered_model(domain)
    follower.look()
    assert (read(follower), follower.champions.troubles) == ({}, {})


def test_a_champion_moved_by_hand_is_not_served(mlflow_workspace: Workspace, promote: Promote) -> None:
    follower = create(mlflow_workspace, "moved")
    follower.look()
    assert "moved" in follower.champions.troubles["moved"]  # asked for, and not there yet
    promote("moved")
    promote("moved", 1)
    follower.look()
    assert (read(follower), follower.champions.troubles) == ({"moved": 2}, {})
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("moved", versions.CHAMPION, "1")
    follower.look()
    assert read(follower) == {"moved": 2}
    assert "it was moved by hand. `tessera ledger restore moved`" in follower.champions.troubles["moved"]
    client.delete_registered_model_alias("moved", versions.CHAMPION)
    follower.look()
    assert read(follower) == {}
    assert "it was deleted by hand" in follower.champions.troubles["moved"]
    aliases.restore_champion(mlflow_workspace, "moved")
    follower.look()
    assert (read(follower), follower.champions.troubles) == ({"moved": 2}, {})


def test_a_move_under_way_is_waited_for(mlflow_workspace: Workspace, promote: Promote) -> None:
    """Its process died between the record and the alias: reported after some looks, served once it is completed."""
    follower = create(mlflow_workspace, "moving")
    promote("moving")
    promote("moving", 1)
    follower.look()
    append(load_ledger("moving"), Record(action="rollback", from_version=2, to_version=1, reason="for a trial"))
    mlflow.MlflowClient().set_registered_model_alias("moving", versions.CHAMPION, "2")
    follower._visits.clear()  # as after a start
    for looks in range(PATIENCE + 1):
        assert (read(follower), bool(follower.champions.troubles)) == ({"moving": 2}, False), looks
        follower.look()
    assert "its move to version 1 was begun and not completed" in follower.champions.troubles["moving"]
    aliases.complete_move(mlflow_workspace, "moving")
    follower.look()
    assert (read(follower), follower.champions.troubles) == ({"moving": 1}, {})


def test_what_cannot_be_served_keeps_nothing_else_from_it(
    mlflow_workspace: Workspace, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the old version nor other domains, whatever the reason is."""
    follower = create(mlflow_workspace, "a", "b", "c")
    for domain in "abc":
        promote(domain)
    follower.look()
    promote("a", 1, on="nobody/has-it")
    promote("b", 1)
    promote("c", 1)
    put = follower.racks.put

    def fail(name: str, folder: Path) -> tuple[Rack, Resident]:
        if name == "b":
            raise RuntimeError("out of memory")
        return put(name, folder)

    monkeypatch.setattr(follower.racks, "put", fail)
    follower.look()
    assert read(follower) == {"a": 1, "b": 1, "c": 2}
    assert "nobody/has-it" in follower.champions.troubles["a"]
    assert follower.champions.troubles["b"] == "RuntimeError: out of memory"
    assert follower.champions.ready
    contest.rollback(mlflow_workspace, "a", "it cannot be served")
    monkeypatch.undo()
    follower.look()
    assert (read(follower), follower.champions.troubles) == ({"a": 1, "b": 2, "c": 2}, {})


def test_a_failure_is_tried_again_after_a_pause_or_a_move(mlflow_workspace: Workspace, promote: Promote) -> None:
    patient, eager = create(mlflow_workspace, "torn", every=1000), create(mlflow_workspace, "torn")
    source = promote("torn", 41).source.rpartition("/")[2]
    (stored,) = mlflow_workspace.state.glob(f"mlflow/artifacts/torn/**/{source}/**/adapter.safetensors")
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1])
    for follower in (patient, eager):
        follower.look()
        assert (read(follower), follower.champions.ready) == ({}, True)
        assert "torn version 1: expected" in follower.champions.troubles["torn"]
    stored.write_bytes(whole)
    for follower in (patient, eager):
        follower.look()
    assert (read(patient), read(eager)) == ({}, {"torn": 1})
    promote("torn", 42)
    patient.look()
    assert (read(patient), patient.champions.troubles) == ({"torn": 2}, {})


def test_a_damaged_copy_is_fetched_again(mlflow_workspace: Workspace, promote: Promote) -> None:
    """As a power cut leaves it; a copy that somebody edited is not served either."""
    promote("cut", 43)
    folder = versions.fetch_adapter(aliases.require_champion("cut"), mlflow_workspace.adapters)
    weights = folder / "adapter.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"")
    follower = create(mlflow_workspace, "cut")
    follower.look()
    assert (read(follower), follower.champions.troubles) == ({"cut": 1}, {})
    assert weights.read_bytes() == whole


def test_a_look_asks_once_for_all_pages_and_only_for_what_moved(
    mlflow_workspace: Workspace, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower, fetched = create(mlflow_workspace), list[str]()
    fetch = Registry.fetch
    monkeypatch.setattr(Registry, "fetch", lambda self, domain: fetched.append(domain) or fetch(self, domain))
    monkeypatch.setattr(registry, "PAGE", 2)
    client = mlflow.MlflowClient()
    client.create_registered_model("theirs")  # somebody else's, without a ledger
    client.create_model_version("theirs", "file:///nowhere")
    client.set_registered_model_alias("theirs", versions.CHAMPION, "1")
    for domain in ("page-1", "page-2", "page-3"):
        promote(domain)
    follower.look()
    assert {"page-1", "page-2", "page-3"} <= set(read(follower))
    assert "theirs" not in {*read(follower), *follower.champions.troubles}
    fetched.clear()
    follower.look()
    assert fetched == []
    promote("page-2", 1)
    follower.look()
    assert (fetched, read(follower)["page-2"]) == (["page-2"], 2)


def test_doctor_sees_a_server_that_does_not_follow(mlflow_workspace: Workspace, promote: Promote) -> None:
    follower = create(mlflow_workspace, "left")
    promote("left")
    follower.look()
    listed = describe_champions(follower.champions)
    assert find_old(listed, {"left": 1, "other": 3}) == {}
    assert find_old(listed, None) == {}  # this process cannot read the registry
    assert list(find_old(listed, {"left": 2})) == ["left"]
    assert list(find_old(listed, {})) == ["left"]
