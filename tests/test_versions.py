"""Named data versions in real git and DVC repositories, with remotes that are really there, and kills that are real."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from conftest import clean_environment
from hypothesis import given
from hypothesis import strategies as st
from samples import save_picture, write_folders

from components.data.store import versioning
from components.data.store.objects import locate_object
from components.data.store.versions import (
    checkout_version,
    compare_annotations,
    find_version,
    list_versions,
    name_version,
)
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.errors import RemoteError, VersioningError
from components.workspace import REPOSITORY, Workspace

SSHD = Path("/usr/sbin/sshd")
SECRET = "not-for-any-eye"
Place = tuple[Workspace, Domain]


def create_place(root: Path, git: bool = True) -> Place:
    """A workspace with the domain `tiles`, four pictures in two class folders."""
    workspace = Workspace(root)
    write_folders(workspace.raw("tiles"), images=2)
    facts = {"name": "tiles", "task": "classification", "classes": ["good", "cracked"], "layout": "folders"}
    workspace.domain_file("tiles").write_text(yaml.safe_dump(facts))
    if git:
        run("git", "init", "-q", str(root))
        for key, value in (("user.name", "A"), ("user.email", "a@example.org")):
            run("git", "-C", str(root), "config", key, value)
    versioning.require_repository(workspace)
    return workspace, load_domain(workspace.domain_file("tiles"))


def run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def use_remote(workspace: Workspace, url: str, local: Mapping[str, str] = MappingProxyType({}), **options: str) -> None:
    """What `dvc remote add` and `dvc remote modify [--local]` write."""
    folder = workspace.root / ".dvc"
    core = "[core]\n    remote = team\n    no_scm = " + str(not versioning.uses_git(workspace))
    for file, facts, head in (("config", {"url": url} | options, core), ("config.local", local, "")):
        lines = "".join(f"    {key} = {value}\n" for key, value in facts.items())
        (folder / file).write_text(f"{head}\n['remote \"team\"']\n{lines}")


def contents(workspace: Workspace) -> dict[str, bytes]:
    raw = workspace.raw("tiles")
    return {path.relative_to(raw).as_posix(): path.read_bytes() for path in raw.rglob("*") if path.is_file()}


def clone(workspace: Workspace, to: Path) -> Place:
    run("git", "clone", "-q", str(workspace.root), str(to))
    copy = Workspace(to)
    return copy, load_domain(copy.domain_file("tiles"))


@pytest.mark.slow
def test_a_version_is_named_listed_and_restored(tmp_path: Path) -> None:
    workspace, domain = create_place(tmp_path / "w")
    raw, before = workspace.raw("tiles"), contents(workspace)
    first, new = name_version(workspace, domain, "the first")
    assert new
    assert (first.name, first.files, first.images, first.classes) == ("tiles@v1", 4, 4, {"cracked": 2, "good": 2})
    assert name_version(workspace, domain) == (first, False)
    (raw / "good/good00.png").unlink()
    (raw / "good/good01.png").rename(raw / "cracked/good01.png")
    (raw / "cracked/cracked00.png").rename(raw / "cracked/renamed.png")
    save_picture(raw / "good/x.png", 77)
    save_picture(raw / "good/y.png", 78)
    with pytest.raises(VersioningError, match="tessera version tiles"):
        checkout_version(workspace, domain, "tiles@v1")
    assert (raw / "good/x.png").exists()
    second, _ = name_version(workspace, domain, "more\nof them")
    assert second.difference is not None
    assert second.difference.model_dump() == {"added": 2, "removed": 1, "relabelled": 1}
    assert list_versions(workspace, "tiles") == [first, second]
    assert second.message == "more of them"
    assert checkout_version(workspace, domain, "tiles@v1") == first
    assert contents(workspace) == before
    assert versioning.read_version(workspace, "tiles").md5 == first.md5
    with pytest.raises(VersioningError, match="tiles@v1, tiles@v2"):
        find_version(workspace, "tiles@v9")
    run("git", "-C", str(workspace.root), "tag", "tiles@v7")
    by_hand = list_versions(workspace, "tiles")[2]
    assert (by_hand.name, by_hand.files, by_hand.images) == ("tiles@v7", 5, None)


@pytest.mark.slow
def test_a_clone_with_nothing_restores_from_where_the_remote_is_now(tmp_path: Path) -> None:
    """The first version's commit names a remote that has moved since; reads are by hash from today's."""
    workspace, domain = create_place(tmp_path / "w")
    use_remote(workspace, str(tmp_path / "first"))
    name_version(workspace, domain)
    before = contents(workspace)
    (tmp_path / "first").rename(tmp_path / "second")
    use_remote(workspace, str(tmp_path / "second"))
    save_picture(workspace.raw("tiles") / "good/x.png", 77)
    name_version(workspace, domain)
    copy, domain = clone(workspace, tmp_path / "clone")
    assert [named.name for named in list_versions(copy, "tiles")] == ["tiles@v1", "tiles@v2"]
    checkout_version(copy, domain, "tiles@v1")
    assert contents(copy) == before
    # A remote that lost its files is told, with the place where the version went when it was named.
    shutil.rmtree(tmp_path / "second")
    empty, domain = clone(workspace, tmp_path / "empty")
    with pytest.raises(RemoteError, match=r"first.*dvc remote modify"):
        checkout_version(empty, domain, "tiles@v1")
    assert not empty.raw("tiles").exists()


@pytest.mark.slow
def test_without_git_names_are_in_a_file_and_damage_in_the_cache_never_reaches_the_images(tmp_path: Path) -> None:
    workspace, domain = create_place(tmp_path / "w", git=False)
    name_version(workspace, domain)
    before = contents(workspace)
    assert [named["name"] for named in json.loads((tmp_path / "w/data/tiles/versions.json").read_text())] == [
        "tiles@v1"
    ]
    shutil.rmtree(workspace.raw("tiles"))
    digest = hashlib.md5(before["good/good00.png"]).hexdigest()
    cached = locate_object(versioning.locate_cache(workspace), digest)
    cached.chmod(0o644)
    cached.write_bytes(b"damaged")
    with pytest.raises(RemoteError, match="other content"):
        checkout_version(workspace, domain, "tiles@v1")
    checkout_version(workspace, domain, "tiles@v1")
    assert contents(workspace) == before


def test_git_without_a_user_is_reported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, domain = create_place(tmp_path / "w")
    for key, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "EMAIL": ""}.items():
        monkeypatch.setenv(key, value)
    for key in ("user.name", "user.email"):
        run("git", "-C", str(workspace.root), "config", "--unset", key)
    run("git", "-C", str(workspace.root), "config", "user.useConfigOnly", "true")
    with pytest.raises(VersioningError, match="git config user"):
        name_version(workspace, domain)


contents_said = st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("xyz"), min_size=1, max_size=3))


@given(old=contents_said, new=contents_said)
def test_differences_add_up(old: dict[str, list[str]], new: dict[str, list[str]]) -> None:
    change, back = compare_annotations(old, new), compare_annotations(new, old)
    sizes = [sum(map(len, said.values())) for said in (old, new)]
    assert sizes[1] - sizes[0] == change.added - change.removed
    assert (change.added, change.removed, change.relabelled) == (back.removed, back.added, back.relabelled)
    assert change.relabelled <= min(sizes)
    assert compare_annotations(old, old).model_dump() == {"added": 0, "removed": 0, "relabelled": 0}


# Remotes


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 endpoint on loopback with one bucket."""
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    import boto3

    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="images")
    yield address
    server.stop()


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Port of a real sshd on loopback and the key that opens it."""
    if not SSHD.exists():
        pytest.skip(f"no {SSHD} on this machine")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a root's sshd puts its unprivileged half
    for name in ("host", "user", "wrong"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "authorized",
        "PidFile": "none",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "yes",
        "Subsystem": "sftp internal-sftp",
    }
    (tmp_path / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    with (tmp_path / "sshd.log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=log)
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, (tmp_path / "sshd.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port, tmp_path / "user"
    finally:
        server.kill()
        server.wait()


def make_round_trip(workspace: Workspace) -> None:
    """There, lost here, and back from the remote alone."""
    version = versioning.record_version(workspace, "tiles")
    versioning.push_version(workspace, "tiles")
    shutil.rmtree(workspace.root / ".dvc/cache")
    cache = versioning.fetch_objects(workspace, [version.md5], whole=True)
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 5


@pytest.mark.slow
def test_s3_remote(tmp_path: Path, s3: str) -> None:
    workspace, _ = create_place(tmp_path / "w", git=False)
    use_remote(workspace, "s3://images/team", {"access_key_id": "a", "secret_access_key": SECRET}, endpointurl=s3)
    make_round_trip(workspace)
    import requests

    requests.post(f"{s3}/moto-api/reset-auth", data="0", timeout=10)  # from now on keys are looked at
    shutil.rmtree(workspace.root / ".dvc/cache")
    version = versioning.read_version(workspace, "tiles")
    with pytest.raises(RemoteError, match=r"credentials the remote accepts.*modify --local") as caught:
        versioning.fetch_objects(workspace, [version.md5])
    assert SECRET not in str(caught.value)


def test_ssh_remote(tmp_path: Path, sshd: tuple[int, Path]) -> None:
    port, key = sshd
    workspace, _ = create_place(tmp_path / "w", git=False)
    user = run("id", "-un").strip()
    url = f"ssh://{user}@127.0.0.1:{port}{tmp_path}/remote"
    use_remote(workspace, url, keyfile=str(key))
    make_round_trip(workspace)
    use_remote(workspace, url, keyfile=str(tmp_path / "wrong"))
    with pytest.raises(RemoteError, match="credentials the remote accepts"):
        versioning.push_version(workspace, "tiles")


@pytest.mark.slow
def test_a_remote_that_does_not_answer_is_reported_without_its_password(tmp_path: Path) -> None:
    workspace, _ = create_place(tmp_path / "w", git=False)
    use_remote(workspace, f"ssh://user:{SECRET}@127.0.0.1:9/remote")
    versioning.record_version(workspace, "tiles")
    with pytest.raises(RemoteError, match=r"a remote that answers.*dvc remote") as caught:
        versioning.push_version(workspace, "tiles")
    assert SECRET not in str(caught.value)


# Writers and kills


def test_the_second_writer_says_for_whom_it_waits(tmp_path: Path) -> None:
    workspace, _ = create_place(tmp_path / "w", git=False)
    code = (
        "import sys; from pathlib import Path; from components.workspace import Workspace;"
        "from components.data.store import versioning;"
        "print(versioning.record_version(Workspace(Path(sys.argv[1])), 'tiles').files)"
    )
    with versioning.turn(workspace, "tessera version tiles"):
        command = [sys.executable, "-c", code, str(workspace.root)]
        second = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=clean_environment()
        )
        assert second.stderr is not None
        told = second.stderr.readline()
        assert f"`tessera version tiles` of process {os.getpid()}" in told
        assert second.poll() is None
    assert second.communicate(timeout=100)[0].strip() == "4"


def start(workspace: Workspace, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flows.commands.cli", *arguments, "--workspace", str(workspace.root), "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=clean_environment(), text=True, start_new_session=True, **pipes
    )


def finish(workspace: Workspace, *arguments: str) -> dict[str, Any]:
    process = start(workspace, *arguments)
    answer, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    outcome: dict[str, Any] = json.loads(answer)
    return outcome


def killed(workspace: Workspace, delay: float, *arguments: str, whole: bool) -> None:
    """Start a command and kill it, alone (its DVC goes on as an orphan) or with all its children."""
    process = start(workspace, *arguments)
    time.sleep(delay)
    kill: Callable[[int, int], None] = os.killpg if whole else os.kill
    kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=200)


@pytest.mark.slow
def test_killed_at_any_moment_a_rerun_finishes(tmp_path: Path) -> None:
    workspace, _ = create_place(tmp_path / "w")
    started = time.monotonic()
    finish(workspace, "version", "tiles")
    took = time.monotonic() - started
    first, dice = contents(workspace), random.Random(os.environ.get("PYTEST_SEED"))
    for number in range(2):
        save_picture(workspace.raw("tiles") / f"good/more{number}.png", 100 + number)
        killed(workspace, dice.uniform(0, took), "version", "tiles", whole=bool(number % 2))
        named = finish(workspace, "version", "tiles")["version"]
        assert named["name"] == f"tiles@v{number + 2}"
        assert named["difference"] == {"added": 1, "removed": 0, "relabelled": 0}
    for number in range(2):
        killed(workspace, dice.uniform(0, took), "checkout", "tiles@v1", whole=bool(number % 2))
        finish(workspace, "checkout", "tiles@v1")
        assert contents(workspace) == first
        if number == 0:
            finish(workspace, "checkout", "tiles@v3")
    assert [named["name"] for named in finish(workspace, "versions", "tiles")["versions"]] == [
        "tiles@v1", "tiles@v2", "tiles@v3",
    ]  # fmt: skip
    copy, domain = clone(workspace, tmp_path / "clone")
    checkout_version(copy, domain, "tiles@v3")
    assert len(contents(copy)) == 6
    assert not list(workspace.raw("tiles").parent.glob(".raw*"))
