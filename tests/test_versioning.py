"""Data versions in real DVC repositories."""

import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import yaml
from conftest import DOMAIN

from components.data.store import versioning
from components.errors import DataError, VersioningError, WorkspaceError
from components.workspace import Workspace


@pytest.fixture
def place(workspace: Path) -> Workspace:
    place = Workspace(workspace)
    versioning.require_repository(place)
    return place


def test_version_follows_the_content(place: Workspace) -> None:
    first = versioning.record_version(place, DOMAIN)
    assert versioning.record_version(place, DOMAIN) == first
    picture = next((place.raw(DOMAIN) / "images").glob("*.jpg"))
    content = picture.read_bytes()
    picture.unlink()
    second = versioning.record_version(place, DOMAIN)
    assert second.md5 != first.md5
    assert second.files == first.files - 1
    picture.write_bytes(content)
    assert versioning.record_version(place, DOMAIN) == first


def test_lost_images_come_back_from_the_remote_alone(place: Workspace) -> None:
    version = versioning.record_version(place, DOMAIN)
    versioning.push_version(place, DOMAIN)
    shutil.rmtree(place.raw(DOMAIN))
    shutil.rmtree(place.root / ".dvc" / "cache")
    assert versioning.record_version(place, DOMAIN) == version
    assert len(list((place.raw(DOMAIN) / "images").iterdir())) == 96


def test_a_missing_raw_folder_says_how_to_fix_it(place: Workspace) -> None:
    shutil.rmtree(place.raw(DOMAIN))
    with pytest.raises(DataError, match="tessera import SOURCE --domain parts"):
        versioning.record_version(place, DOMAIN)


def test_domains_are_registered_once_and_comments_stay(place: Workspace) -> None:
    for name in (DOMAIN, "another", DOMAIN):
        versioning.register_domain(place, name)
    text = (place.root / "dvc.yaml").read_text()
    assert yaml.safe_load(text)["vars"][0]["domains"] == ["another", DOMAIN]
    assert text.startswith("# All files that are derived")


def test_a_repository_that_lost_its_git_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    remote = local\n")
    with pytest.raises(WorkspaceError, match="git init"):
        versioning.require_repository(Workspace(tmp_path))


def test_inside_git_the_repository_uses_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    versioning.require_repository(Workspace(tmp_path))
    assert "no_scm" not in (tmp_path / ".dvc" / "config").read_text()


def test_writers_wait_their_turn(place: Workspace) -> None:
    """DVC itself refuses the second of two writers after three seconds."""
    failures: list[Exception] = []

    def write() -> None:
        try:
            versioning.record_version(place, DOMAIN)
        except VersioningError as error:
            failures.append(error)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []


def test_a_damaged_pointer_is_reported(place: Workspace) -> None:
    versioning.record_version(place, DOMAIN)
    (place.root / "data" / DOMAIN / "raw.dvc").write_text("outs: []\n")
    with pytest.raises(VersioningError, match=r"raw\.dvc"):
        versioning.read_version(place, DOMAIN)
