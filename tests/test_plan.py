"""An override is obeyed or refused; a backbone's path is one in the workspace, and its state a part of the plan."""

from pathlib import Path

import pytest

from components.domain.domain import Domain
from components.errors import DomainError
from components.workspace import Workspace
from flows.plan import OVERRIDABLE, hash_backbone, load_checked_domain, require_obeyed

DOMAIN = "name: tiles\ntask: classification\nclasses: [good, cracked]\nlayout: folders\n"


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    workspace.domain_file("tiles").parent.mkdir(parents=True)
    workspace.domain_file("tiles").write_text(DOMAIN)
    return workspace


@pytest.mark.parametrize("key", sorted(Domain.model_fields))
def test_every_key_is_obeyed_or_refused(place: Workspace, key: str) -> None:
    """Whatever the value is: a new key is refused until somebody says that one run may change it."""
    for name in (key, f"{key}.deeper"):
        if key in OVERRIDABLE:
            require_obeyed([f"{name}=1"], place.domain_file("tiles"))
            continue
        with pytest.raises(DomainError, match=r"read from domain\.yaml") as caught:
            load_checked_domain(place, "tiles", [f"{name}=1"])
        assert str(place.domain_file("tiles")) in str(caught.value)


def test_a_typo_is_answered_with_the_key_that_was_meant(place: Workspace) -> None:
    with pytest.raises(DomainError, match="Did you mean 'layout'"):
        load_checked_domain(place, "tiles", ["layuot=folders"])


@pytest.mark.parametrize("name", ["./net", "weights/net", "net.safetensors"])
def test_a_relative_backbone_is_one_in_the_workspace(place: Workspace, name: str) -> None:
    domain = load_checked_domain(place, "tiles", [f"backbone={name}"])
    assert domain.backbone == str(place.root / name)


@pytest.mark.parametrize("name", ["embedded", "auto", "hf-hub:owner/net@v2", "vit_tiny_patch16_224.mine"])
def test_a_backbones_name_is_left_alone(place: Workspace, name: str) -> None:
    assert load_checked_domain(place, "tiles", [f"backbone={name}"]).backbone == name


def test_the_plan_knows_the_state_of_a_folder_not_its_place(place: Workspace, tmp_path: Path) -> None:
    states = []
    for name, config in (("one", "{}"), ("two", "{}"), ("three", '{"architecture": "x"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        states.append(hash_backbone(str(tmp_path / name)))
    assert (states[0] == states[1], states[0] == states[2]) == (True, False)
    (tmp_path / "one" / "model.safetensors").write_bytes(b"others")
    assert hash_backbone(str(tmp_path / "one")) != states[0]
    assert hash_backbone("vit_tiny_patch16_224.mine") == "vit_tiny_patch16_224.mine"
