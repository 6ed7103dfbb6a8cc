"""What a retrain depends on: splits.csv belongs to it, and an override is obeyed or refused."""

from pathlib import Path

import pytest
from samples import make_domain

from components.data.splits import Line, save_memory
from components.data.store.versioning import DataVersion
from components.domain.domain import Domain
from components.errors import DomainError
from components.workspace import Workspace
from flows.plan import OVERRIDABLE, Plan, load_checked_domain, require_obeyed

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


def test_other_splits_are_another_retrain(place: Workspace) -> None:
    version = DataVersion(md5="0" * 32 + ".dir", files=1, size=1)
    plan = Plan(place, make_domain(), (), version, "code", "", base="base").settle()
    names = [plan.fingerprint]
    for memory in ({"0" * 16: Line("a", "train")}, {"0" * 16: Line("a", "test")}):
        save_memory(memory, place.splits("tiles"))
        names += [plan.settle().fingerprint]
    assert len(set(names)) == 3
    text = place.splits("tiles").read_text()
    place.splits("tiles").write_text(text.replace("\n", "\r\n"))
    assert plan.settle().fingerprint == names[-1]
    place.splits("tiles").unlink()
    assert plan.settle().fingerprint == names[0]
