"""Identifies processes even though pids are reused once a process has ended.

identity = identify()           "4711@box:8f0c...:123456": pid, machine, boot, and start time
lives(identity)                 whether this very process still runs, not another one with its pid
ended_here(identity)            whether it was a process of this machine that has ended
answers(pid)                    whether any process has this pid, if no identity was recorded
find_orphans(root, marks)       processes of a workspace whose parent is gone
watch_starter(seconds)          ends this process with the one that started it
"""

import os
import signal
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

#: Environment variable of every child process: the identity of the process that started it (`identify`).
STARTER = "TESSERA_STARTER"


def identify(pid: int | None = None) -> str:
    """A text that identifies a process uniquely; without a pid, the current process."""
    number = os.getpid() if pid is None else pid
    return f"{number}@{socket.gethostname()}:{_read_start(number)}"


def read_pid(identity: str) -> int:
    return int(identity.partition("@")[0])


def lives(identity: str) -> bool:
    """Whether exactly this process runs on this machine. False for a text that is not an identity."""
    number, _, place = identity.partition("@")
    if not number.isdecimal() or int(number) < 1 or place.rpartition(":")[2] == "gone":
        return False
    return identify(int(number)) == identity


def ended_here(identity: str) -> bool:
    """Whether a process of this machine has ended; False for one of another machine, and for any other text.

    Also reads `HOST:PID`, which earlier versions recorded: there any process with this pid counts as the same.
    """
    number, at, place = identity.partition("@")
    if at:
        return place.partition(":")[0] == socket.gethostname() and not lives(identity)
    host, _, number = identity.rpartition(":")
    return host == socket.gethostname() and number.isdecimal() and not answers(int(number))


def _read_start(pid: int) -> str:
    """The boot id and the clock tick at which a process started; "gone" if there is none.

    Without /proc only the existence of a process with this pid is known.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "there" if not Path("/proc/self").exists() and answers(pid) else "gone"
    return "gone" if fields[0] in "ZX" else f"{boot}:{fields[19]}"  # a zombie has ended


def answers(pid: int) -> bool:
    """Whether any user's process has this pid; False for a number that cannot be a pid."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def find_orphans(root: Path, marks: tuple[str, ...]) -> list[int]:
    """The pids of processes of the workspace with one of the marks on their command line, whose parent is gone.

    A process without a recorded parent is an orphan if process 1 has inherited it.
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


def watch_starter(seconds: float) -> threading.Event:
    """End this process and its group when the pipe on stdin closes: orderly if the event is set, else at once."""
    serves = threading.Event()

    def watch() -> None:
        while os.read(0, 4096):
            continue
        if not serves.is_set():
            os._exit(0)
        group = os.getpgrp() == os.getpid()
        end: Callable[[int, int], None] = os.killpg if group else os.kill
        end(os.getpid(), signal.SIGTERM)
        threading.Event().wait(seconds)
        end(os.getpid(), signal.SIGKILL)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, daemon=True).start()
    return serves
