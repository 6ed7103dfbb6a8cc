"""The server follows the registry: promotions and rollbacks, and what cannot be served or read."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from fleets import promote_adapter, write_adapter

from components.models.backbones import Backbone, load_backbone
from components.promotion import aliases, contest, versions
from components.serving.rack import Racks
from components.serving.server.champions import Champions
from components.serving.server.follow import Follower
from components.tracking.store import Store
from components.workspace import Workspace

Promote = Callable[..., versions.Version]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("embedded", 32)


@pytest.fixture
def promote(mlflow_workspace: Workspace, store: Store, backbone: Backbone, tmp_path: Path) -> Promote:
    """Promotes an adapter of its own: `promote("plates", seed=1)`."""

    def act(domain: str, seed: int = 0) -> versions.Version:
        adapter = write_adapter(tmp_path / f"{domain}-{seed}", backbone, {"kind": "linear"}, seed)
        return promote_adapter(mlflow_workspace, store, domain, adapter)

    return act


def create(workspace: Workspace, *domains: str) -> Follower:
    return Follower(Champions(), Racks("float32"), workspace, domains)


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
