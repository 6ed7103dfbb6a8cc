"""The Prefect server that a command brings along; what a killed command leaves of it, test_road.py looks at."""

from pathlib import Path

import pytest

from components.errors import WorkspaceError
from components.workspace import Workspace
from flows.server.prefect_boot import OWN, EmbeddedPrefect, find_server


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace, and an environment that a test may change in vain."""
    for name in ("PREFECT_API_URL", OWN):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards, whatever is set meanwhile
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".tessera" / "prefect"))
    found = Workspace(tmp_path)
    found.activate()
    return found


def test_a_server_in_the_environment_is_used(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    server = EmbeddedPrefect(place)
    server.use()
    server.wait()
    assert server.process is None


@pytest.mark.slow
def test_a_server_in_a_profile_is_used(place: Workspace) -> None:
    """Prefect's own settings are asked by the process that has loaded Prefect."""
    profile = 'active = "team"\n[profiles.team]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    (place.state / "prefect" / "profiles.toml").write_text(profile)
    server = EmbeddedPrefect(place)
    server.use()
    server.wait()
    assert server.process is not None
    assert server.process.returncode == 0
    assert server.url == ""


@pytest.mark.slow
def test_one_that_cannot_start_is_reported(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.state / "prefect" / "prefect.db").write_text("no database " * 100)
    server = EmbeddedPrefect(place)
    server.use()
    with pytest.raises(WorkspaceError, match=r"file is not a database.*remove .*prefect and try again"):
        server.wait()
    server.stop()
    assert server.process is not None
    assert server.process.returncode is not None


def test_our_own_is_none_that_is_configured(place: Workspace) -> None:
    """Else candidates would be sent to a work pool that nobody works for."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = "http://127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: url}), pytest.MonkeyPatch.context() as patch:
        assert find_server() == url
        patch.setenv(OWN, url)
        assert find_server() is None
