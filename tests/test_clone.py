"""A fresh clone, as a new user has it: what the README's commands do there leaves git with nothing to say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import clean_environment

from components.data.store.versioning import git
from components.synthetic import BUNDLED
from components.workspace import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(git(REPOSITORY, "ls-files") is None, reason="these sources are in no git repository"),
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files as they are now, committed in a repository of their own."""
    place = tmp_path_factory.mktemp("clone") / "tessera"
    for name in (git(REPOSITORY, "ls-files", "-z") or "").split("\0"):
        if name and (REPOSITORY / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, place / name)
    who = ["-c", "user.name=tests", "-c", "user.email=tests@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "as it is"]):
        subprocess.run(["git", "-C", str(place), *command], check=True)
    return place


@pytest.mark.parametrize("name", BUNDLED)
def test_the_demos_data_leave_a_clean_tree(clone: Path, name: str) -> None:
    """`tessera demo` makes the bundled images, and the data stages run on them. dvc.lock and splits.csv stay as they
    are committed, so that the first lineage names a commit and not `+dirty`.

    Where this fails the stages make other files now: run `tessera check NAME`, and commit dvc.lock.
    """
    env = clean_environment() | {
        "PYTHONPATH": str(clone),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for command in (BUNDLED[name].split()[1:], ["check", name]):
        done = subprocess.run(
            [sys.executable, "-m", "flows.commands.cli", *command],
            cwd=clone,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (clone / ".tessera" / "data" / name / "manifest.parquet").exists()
    assert git(clone, "status", "--porcelain") == "", git(clone, "diff", "--", "dvc.lock")
