"""What DVC is spared, and that nothing which changed is taken for proven: with real DVC and real stages."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
from conftest import DOMAIN, create_workspace

from components.data.store import proofs, versioning
from components.data.store.pipeline import Stages
from components.errors import CheckFailed
from components.workspace import Workspace

Asked = list[tuple[str, ...]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Workspace:
    """A workspace whose stages have run, by the code named `ours`; nobody changes it."""
    place = Workspace(create_workspace(tmp_path_factory.mktemp("proofs") / "workspace", images))
    versioning.require_repository(place)
    versioning.register_domain(place, DOMAIN)
    grow_old()
    version = versioning.record_version(place, DOMAIN)
    versioning.push_version(place, DOMAIN)
    with closing(Stages(place, DOMAIN, version.md5, "ours")) as stages:
        for stage in proofs.STAGES:
            stages.run(stage)
    return place


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What DVC was asked for; it still does it."""
    told: Asked = []
    follow = versioning._follow_python

    def tell(workspace: Workspace, arguments: list[str], extra_env: dict[str, str]) -> Iterator[str]:
        told.append(tuple(arguments[2:]))
        return (yield from follow(workspace, arguments, extra_env))

    monkeypatch.setattr(versioning, "_follow_python", tell)
    return told


def grow_old() -> None:
    """What was written a moment ago proves nothing: the system's clock is too coarse to tell a second write."""
    time.sleep(2 * proofs.YOUNG / 1e9)


def copy(made: Workspace, root: Path) -> Workspace:
    shutil.copytree(made.root, root)
    return Workspace(root)


def is_fresh(place: Workspace, code: str = "ours") -> bool:
    return proofs.are_fresh(place, DOMAIN, versioning.read_version(place, DOMAIN).md5, code)


@pytest.mark.slow
def test_nothing_changed_needs_no_dvc(made: Workspace, asked: Asked) -> None:
    version = versioning.record_version(made, DOMAIN)
    versioning.push_version(made, DOMAIN)
    stages = Stages(made, DOMAIN, version.md5, "ours")
    for stage in proofs.STAGES:
        stages.run(stage)
    assert stages.fresh
    assert asked == []


def _flip(place: Workspace) -> None:
    """One byte, the size and the time of the last change set back as they were."""
    picture = next((place.raw(DOMAIN) / "images").glob("*.jpg"))
    before, content = picture.stat(), bytearray(picture.read_bytes())
    content[-1] ^= 1
    picture.write_bytes(content)
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))


def _add(place: Workspace) -> None:
    (place.raw(DOMAIN) / "images" / "new.txt").write_text("new")


def _remove(place: Workspace) -> None:
    next((place.raw(DOMAIN) / "images").glob("*.jpg")).unlink()


def _swap(place: Workspace) -> None:
    first, second, *_ = sorted((place.raw(DOMAIN) / "images").glob("*.jpg"))
    first.rename(aside := first.with_suffix(".aside"))
    second.rename(first)
    aside.rename(second)


@pytest.mark.parametrize("change", [_flip, _add, _remove, _swap])
def test_changed_images_have_another_stamp(
    change: Callable[[Workspace], None], made: Workspace, tmp_path: Path
) -> None:
    """A flipped byte is more than DVC sees, which goes by size and time."""
    place = Workspace(tmp_path)
    shutil.copytree(made.raw(DOMAIN), place.raw(DOMAIN))
    grow_old()
    before = proofs.stamp_raw(place, DOMAIN)
    assert before is not None
    assert proofs.stamp_raw(place, DOMAIN) == before
    change(place)
    assert proofs.stamp_raw(place, DOMAIN) is None
    grow_old()
    assert proofs.stamp_raw(place, DOMAIN) not in (before, None)


def test_a_lost_object_is_missed(made: Workspace, tmp_path: Path) -> None:
    """In the cache and on the remote alike; DVC itself asks a remote for a folder's listing alone."""
    place = copy(made, tmp_path / "workspace")
    cache, remote = versioning.locate_cache(place), place.state / "dvc-remote"
    md5, stamp = versioning.read_version(place, DOMAIN).md5, "as it was"
    proofs.remember_recorded(place, DOMAIN, stamp, md5)
    assert proofs.is_recorded(place, DOMAIN, stamp, md5, cache)
    assert proofs.is_pushed(md5, remote)
    for folder in (remote, cache):
        next(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".dir").unlink()
        assert not proofs.is_pushed(md5, remote)
        assert proofs.is_recorded(place, DOMAIN, stamp, md5, cache) == (folder == remote)


def _edit_domain(place: Workspace) -> None:
    path = place.domain_file(DOMAIN)
    path.write_text(path.read_text() + "title: changed\n")


def _edit_memory(place: Workspace) -> None:
    path = place.splits(DOMAIN)
    path.write_text(path.read_text().replace("train", "test", 1))


def _spoil_output(place: Workspace) -> None:
    path = place.derived(DOMAIN) / "valid.parquet"
    pl.read_parquet(path).head(3).write_parquet(path)


def _lose_output(place: Workspace) -> None:
    (place.derived(DOMAIN) / "validation.html").unlink()


def _edit_pipeline(place: Workspace) -> None:
    path = place.root / "dvc.yaml"
    path.write_text(path.read_text().replace("validate ${item", "validate  ${item"))


def _lose_lock(place: Workspace) -> None:
    (place.root / "dvc.lock").unlink()


def _run_halfway(place: Workspace) -> None:
    proofs.forget_stages(place, DOMAIN)


@pytest.mark.parametrize(
    "change", [_edit_domain, _edit_memory, _spoil_output, _lose_output, _edit_pipeline, _lose_lock, _run_halfway]
)
def test_whatever_a_stage_depends_on_makes_it_run_again(
    change: Callable[[Workspace], None], made: Workspace, tmp_path: Path
) -> None:
    place = copy(made, tmp_path / "workspace")
    assert is_fresh(place)
    change(place)
    assert not is_fresh(place)


def test_other_code_and_other_images_make_them_run_again(made: Workspace) -> None:
    assert is_fresh(made)
    assert not is_fresh(made, "theirs")
    assert not proofs.are_fresh(made, DOMAIN, "0" * 32 + ".dir", "ours")


@pytest.mark.slow
def test_stages_are_one_process_and_agree_with_dvc(made: Workspace, tmp_path: Path, asked: Asked) -> None:
    place = copy(made, tmp_path / "workspace")
    version = versioning.record_version(place, DOMAIN)
    asked.clear()
    stages = Stages(place, DOMAIN, version.md5, "theirs")
    for stage in proofs.STAGES:
        (place.derived(DOMAIN) / "manifest.parquet").unlink(missing_ok=True)
        stages.run(stage)
    assert [words[0] for words in asked] == ["repro"]
    assert is_fresh(place, "theirs")
    assert (place.root / "dvc.lock").read_text() == (made.root / "dvc.lock").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status"], cwd=place.root, capture_output=True, text=True, check=True
    )
    assert "up to date" in done.stdout


@pytest.mark.slow
def test_a_stage_that_says_no_comes_out_as_itself_and_is_asked_again(made: Workspace, tmp_path: Path) -> None:
    place = copy(made, tmp_path / "workspace")
    path = place.domain_file(DOMAIN)
    good = path.read_text()
    path.write_text(good + "validation: {min_images_per_class: 50}\n")
    md5 = versioning.read_version(place, DOMAIN).md5
    with closing(Stages(place, DOMAIN, md5, "ours")) as stages:
        stages.run("features")
        with pytest.raises(CheckFailed, match="50"):
            stages.run("validate")
        assert stages.waiting == ["validate", "split"]
        path.write_text(good)
        stages.run("split")
    assert stages.waiting == []
