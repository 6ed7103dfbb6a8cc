"""An override is obeyed or refused."""

from pathlib import Path

import pytest

from components.domain.domain import Domain
from components.errors import DomainError
from components.workspace import Workspace
from flows.plan import OVERRIDABLE, load_checked_domain, require_obeyed

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
