"""Which process is meant, whatever became of its number: a pid is given to somebody else once its process is gone.

identity = identify()           "4711@box:8f0c...:123456": pid, machine, boot, and when it started
lives(identity)                 the same process, not another one under its number
answers(pid)                    some process under that number, where nothing more was written down
find_orphans(root, marks)       processes of a workspace whose starter is gone
"""

import os
import socket
from pathlib import Path

#: In the environment of every child: the process that started it, as `identify` writes it.
STARTER = "TESSERA_STARTER"


def identify(pid: int | None = None) -> str:
    """A process so that no other one is ever taken for it; this one when none is named."""
    number = os.getpid() if pid is None else pid
    return f"{number}@{socket.gethostname()}:{_read_start(number)}"


def read_pid(identity: str) -> int:
    return int(identity.partition("@")[0])


def lives(identity: str) -> bool:
    """Whether exactly this process runs on this machine. False for an identity that is no such text."""
    number, _, place = identity.partition("@")
    if not number.isdecimal() or int(number) < 1 or place.rpartition(":")[2] == "gone":
        return False
    return identify(int(number)) == identity


def _read_start(pid: int) -> str:
    """Boot and clock tick at which a process started; "gone" without one.

    Without /proc it is only known whether there is a process under that number.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "there" if not Path("/proc/self").exists() and answers(pid) else "gone"
    return "gone" if fields[0] in "ZX" else f"{boot}:{fields[19]}"  # a zombie has ended


def answers(pid: int) -> bool:
    """Whether there is a process under that number, anybody's; False for a number that no process can have."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def find_orphans(root: Path, marks: tuple[str, ...]) -> list[int]:
    """Processes of the workspace with one of the marks on their command line, whose starter is gone.

    What no starter has marked is an orphan where process 1 has inherited it.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        place = dict(pair.partition("=")[::2] for pair in pairs)
        if place.get("TESSERA_WORKSPACE") != str(root) or state in "ZX" or not any(mark in command for mark in marks):
            continue
        starter = place.get(STARTER)
        if parent == "1" if starter is None else not lives(starter):
            found.append(int(folder.name))
    return sorted(found)
