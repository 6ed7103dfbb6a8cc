"""Clients of a server, in a process of their own, so that the server's processor time is the server's alone.

load = Load("http://127.0.0.1:8080", ["/predict/plates"], pictures, clients=32)
answers = load.run(2000)                       all of them, when the last one is there
with load.running(2000) as answers: ...        meanwhile; the list is filled at the end of the block
"""

import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

Form = str  # "bytes": the picture as the body; "mlflow": in the table that MLflow's servers take


@dataclass(frozen=True)
class Answered:
    """What became of one request.

    outcome: `answered` with 200, `failed` with another status, `refused` before it was accepted (by a closed port, a
    connection that was closed while it was idle, or 503), or `cut`: sent, and no answer. seconds: until the answer.
    """

    path: str
    outcome: str
    status: int
    seconds: float
    body: dict[str, Any]


@dataclass(frozen=True)
class Load:
    """So many clients, each with a connection of its own that it keeps; requests take paths and pictures in turn.

    rate: requests per second of all clients together, at most; None for as many as are answered.
    """

    url: str
    paths: Sequence[str]
    pictures: Sequence[Path]
    clients: int
    form: Form = "bytes"
    rate: float | None = None

    def run(self, requests: int) -> list[Answered]:
        with self.running(requests) as answers:
            pass
        return answers

    @contextmanager
    def running(self, requests: int) -> Iterator[list[Answered]]:
        answers: list[Answered] = []
        order = asdict(self) | {"pictures": [str(path) for path in self.pictures], "requests": requests}
        process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order))
        process.stdin.close()
        lines = list[str]()
        reader = threading.Thread(target=lines.extend, args=[process.stdout])  # a full pipe would stop the clients
        reader.start()
        try:
            yield answers
            reader.join()
            answers += [Answered(**json.loads(line)) for line in lines]
        finally:
            process.kill()
            process.wait()
            reader.join()


def write_pictures(folder: Path, number: int, side: int = 160) -> list[Path]:
    """JPEGs of noise that is smooth enough to be no burden for a decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    dice, paths = np.random.default_rng(0), []
    for place in range(number):
        coarse = Image.fromarray(dice.integers(0, 255, (10, 10, 3), dtype=np.uint8))
        paths.append(folder / f"{place:04}.jpg")
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def serve_order(order: dict[str, Any]) -> None:
    """What the process of the clients does: every answer is one line of JSON on stdout."""
    bodies = [_write_body(Path(path).read_bytes(), order["form"]) for path in order["pictures"]]
    numbers, lock, begun = count(), threading.Lock(), time.monotonic()

    def work() -> None:
        connection = None
        while True:
            with lock:
                number = next(numbers)
            if number >= order["requests"]:
                return
            if order["rate"]:
                time.sleep(max(0.0, begun + number / order["rate"] - time.monotonic()))
            path = order["paths"][number % len(order["paths"])]
            connection, answer = _ask(connection, order["url"], path, bodies[number % len(bodies)], order["form"])
            with lock:
                print(json.dumps(asdict(answer)), flush=True)
            if answer.outcome == "refused" and not order["rate"]:
                time.sleep(0.05)

    threads = [threading.Thread(target=work) for _ in range(order["clients"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _write_body(picture: bytes, form: Form) -> bytes:
    if form == "bytes":
        return picture
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(picture).decode()}]}).encode()


def _ask(
    connection: http.client.HTTPConnection | None, url: str, path: str, body: bytes, form: Form
) -> tuple[http.client.HTTPConnection | None, Answered]:
    begun = time.monotonic()
    fresh = connection is None
    try:
        if connection is None:
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            connection.connect()
        kind = "application/json" if form == "mlflow" else "image/jpeg"
        connection.request("POST", path, body, {"Content-Type": kind})
    except OSError:
        return None, Answered(path, "refused", 0, time.monotonic() - begun, {})
    try:
        answer = connection.getresponse()
        content = json.loads(answer.read() or b"null")
    except http.client.RemoteDisconnected:
        # A server that stops closes idle connections; a request that crosses this on its way was never read.
        return None, Answered(path, "cut" if fresh else "refused", 0, time.monotonic() - begun, {})
    except (OSError, ValueError, http.client.HTTPException):
        return None, Answered(path, "cut", 0, time.monotonic() - begun, {})
    outcome = {200: "answered", 503: "refused"}.get(answer.status, "failed")
    shown = content if isinstance(content, dict) else {"answers": content}
    return connection, Answered(path, outcome, answer.status, time.monotonic() - begun, shown)


if __name__ == "__main__":
    serve_order(json.load(sys.stdin))
