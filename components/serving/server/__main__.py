"""`python -m components.serving.server`: the process of `tessera serve`. It has one computing thread.

It listens at once, loads torch beside that, and is ready when the registry was read once. Until then requests are
answered with 503. SIGTERM finishes what was accepted and ends it with exit code 0; a second signal ends it at once.
OMP_NUM_THREADS says how many cores one forward uses.
"""

import argparse
import ctypes
import errno
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from components.errors import TesseraError, WorkspaceError, make_visible
from components.processes import STARTER, identify, watch_starter
from components.serving.address import Address, remove_address, save_address
from components.serving.server.access import is_loopback, load_token
from components.serving.server.champions import Champions
from components.workspace import find_workspace

PORT = 8080
TRIM_SECONDS = 10.0
HEAPS, M_ARENA_MAX = 2, -8  # the second is what glibc's malloc.h calls it
BACKLOG = 512  # connections that wait to be accepted
TRIED = 100  # ports from the usual one on
END_SECONDS = 40.0  # for the requests that were accepted: longer than their deadline
SHOWN = 5  # domains of which a command line is printed

LOG = logging.getLogger("components.serving.server")


def main() -> int:
    os.umask(0o077)
    bound_heaps()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("components").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    options = read_options()
    # `tessera up` holds a pipe to its services; any other pipe on stdin, as of cron or ssh, may close at any time.
    tied = os.environ.get(STARTER) not in (None, identify())
    started = watch_starter(END_SECONDS + 5) if tied else threading.Event()
    try:
        return serve(options, started)
    except TesseraError as error:
        sys.stderr.write(f"tessera: {make_visible(str(error))}\n")
        return error.exit_code


def bound_heaps() -> None:
    """Have all threads allocate from two heaps of the C library instead of eight per core, and return what is free in
    them to the system every few seconds. Called before any other thread starts.

    What pictures of all sizes leave in a heap returns to the system late or never: over 8,500 hostile requests the
    process grew by 119 MB without this, by 78 MB with two heaps, and by 50 MB with both. The environment's
    MALLOC_ARENA_MAX goes first; other C libraries have no such heaps.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    if "MALLOC_ARENA_MAX" not in os.environ:
        library.mallopt(M_ARENA_MAX, HEAPS)

    def trim() -> None:
        while True:
            time.sleep(TRIM_SECONDS)
            library.malloc_trim(0)

    threading.Thread(target=trim, name="trim", daemon=True).start()


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tessera serve", description="Serve every domain's champion.")
    parser.add_argument("--domain", action="append", default=[], metavar="NAME", help="this one alone; repeatable")
    parser.add_argument("--host", default="127.0.0.1", help="another than loopback needs --token-file")
    parser.add_argument("--port", type=int, help=f"{PORT} or the next free one")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="its content is what requests must bring")
    parser.add_argument(
        "--full-mb",
        type=int,
        metavar="N",
        help="megabytes that champions of the tuner full may take; half of the memory",
    )
    return parser.parse_args(words)


def serve(options: argparse.Namespace, started: threading.Event) -> int:
    """Serve until a signal. Raises WorkspaceError where the port is taken or a token is missing."""
    token = require_token(options.host, options.token_file)
    door = open_door(options.host, options.port)
    workspace = find_workspace()
    for note in workspace.activate():
        LOG.warning("%s", note)
    from components.serving.server.app import create_app
    from components.serving.server.connections import Server
    from components.serving.server.service import open_service

    champions = Champions()
    service = open_service(champions)
    url = name_url(options.host, door)
    address = Address(identify(), url, str(options.token_file.absolute()) if token else "")

    def open_up() -> None:
        save_address(workspace, address)
        started.set()
        LOG.info("listens at %s", url)

    def close() -> None:
        remove_address(workspace, address.process)
        done = service.close(END_SECONDS)
        LOG.info("ended; %s", "every accepted request was answered" if done else "not every request was answered")

    server = Server(create_app(service, token), service, open_up, close, END_SECONDS)

    def follow() -> None:
        from components.serving.rack import Racks  # torch: seconds, in which the server answers already
        from components.serving.server.follow import Follower

        limit = count_memory() // 2 if options.full_mb is None else options.full_mb * 1_000_000
        follower = Follower(champions, Racks(most_full_bytes=limit), workspace, options.domain)
        service.metrics.watch_registry(lambda: follower.age)
        follower.start()
        announce(champions, url, token)

    threading.Thread(target=follow, name="open", daemon=True).start()
    server.run(sockets=[door])
    return 0


def count_memory() -> int:
    """Bytes of this machine's memory, or what its container may use of it."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    texts = [path.read_text().strip() for path in limits if path.exists()]
    return min([most, *(int(text) for text in texts if text.isdecimal())])


def require_token(host: str, file: Path | None) -> str:
    """The token; "" where none is needed. Raises WorkspaceError where other machines could ask without one."""
    if file is not None:
        return load_token(file)
    if is_loopback(host):
        return ""
    raise WorkspaceError(
        f"--host {host}",
        expected="a token, because other machines can reach this address",
        found="no --token-file",
        hint="Create one with `(umask 077; openssl rand -hex 32 > token)`, and name it: `--token-file token`.",
    )


def open_door(host: str, port: int | None) -> socket.socket:
    """The listening socket: at this port, or at the usual one or the next free one. Raises WorkspaceError."""
    ports = range(PORT, PORT + TRIED) if port is None else (port,)
    try:
        door = listen(host, ports)
    except OSError as error:
        hint = "Choose another with --host and --port."
        found = error.strerror or str(error)
        raise WorkspaceError(
            f"{host}, port {ports[0]}", expected="an address to listen at", found=found, hint=hint
        ) from None
    if door is None:
        raise WorkspaceError(
            f"port {ports[0]}",
            expected=f"a free port on {host}",
            found="one that another program uses",
            hint="Stop that program, choose another port with `--port`, or leave out the option.",
        )
    return door


def listen(host: str, ports: Sequence[int]) -> socket.socket | None:
    """A socket that listens at the first of the ports that is free; None where none is. Raises OSError for others."""
    for port in ports:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind, protocol)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(address)
            door.listen(BACKLOG)
        except OSError as error:
            door.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return door
    return None


def name_url(host: str, door: socket.socket) -> str:
    """By which programs of this machine reach the server."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{door.getsockname()[1]}"


def announce(champions: Champions, url: str, token: str) -> None:
    """Print the address and a command per domain, once the registry was read."""
    while not champions.ready:
        time.sleep(0.1)
    lines = [f"{len(champions)} domains at {url}; /docs describes the requests."]
    header = ' -H "Authorization: Bearer $(cat TOKEN_FILE)"' if token else ""
    names = sorted(champions)
    lines += [f"curl{header} --data-binary @IMAGE {url}/predict/{name}" for name in names[:SHOWN]]
    lines += [f"... and {len(names) - SHOWN} more: {url}/champions"] if len(names) > SHOWN else []
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # everything is answered; taking down torch in order would only take time
