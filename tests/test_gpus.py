"""One GPU holds one training: slots of this machine, with the driver's tool as a small program in PATH."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.workspace import REPOSITORY
from flows.server.gpus import gpu_slot, list_gpus

UUIDS = ("GPU-1111", "GPU-2222")


def write_tool(folder: Path, *uuids: str) -> Path:
    """What `nvidia-smi --query-gpu=index,uuid --format=csv,noheader` prints on a machine with these GPUs."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"echo '{number}, {uuid}'\n" for number, uuid in enumerate(uuids))
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{lines}")
    tool.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, and slots of a machine of its own."""
    monkeypatch.setenv("PATH", f"{write_tool(tmp_path / 'bin', *UUIDS)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, UUIDS), ("1", ("GPU-2222",)), ("GPU-1111", ("GPU-1111",)), ("1,0", ("GPU-2222", "GPU-1111")), ("", ())],
)
def test_the_gpus_one_may_use(visible: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert tuple(list_gpus()) == expected


@pytest.mark.slow
def test_trainings_take_different_gpus_and_all_when_they_ask_for_all() -> None:
    with gpu_slot() as first, gpu_slot() as second:
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == set(UUIDS)
    with gpu_slot(2) as both:
        assert both["CUDA_VISIBLE_DEVICES"] == ",".join(UUIDS)


@pytest.mark.slow
def test_a_third_training_waits_for_the_first_to_end_even_if_it_was_killed(tmp_path: Path) -> None:
    code = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\nfrom flows.server.gpus import gpu_slot\n"
    code += "with gpu_slot(2): print('held', flush=True); input()"
    command = [sys.executable, "-c", code]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waiter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert waiter.stdout is not None
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(6)
    holder.kill()
    assert waiter.stdout.readline() == "held\n"
    waiter.communicate("\n", timeout=60)
    assert waiter.returncode == 0


def test_a_machine_without_gpus_has_no_slots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with gpu_slot(4) as env:
        assert env == {}
