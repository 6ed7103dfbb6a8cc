"""The running server of champions as what answers a command: several requests at a time, and no torch to load.

    server = find_server(workspace, "plates")       None where none runs, or it does not serve the domain
    for group, reply in server.ask(groups, whole=False, extras=()):
        ...

A server that is busy is asked again. Where it goes away, a child answers the rest. Nothing heavy is imported here, so
that one image is answered in a fraction of a second.
"""

import hashlib
import http.client
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from components.errors import DataError
from components.records.serving import ServedDomain, ServedDomains
from components.serving.address import Address, load_address
from components.serving.ahead import map_ahead
from components.serving.questions import AHEAD, Question, describe_unreadable
from flows.processes.answering import Answered
from flows.steps.asking import Champion, Source

if TYPE_CHECKING:
    from components.workspace import Workspace

THREADS = 8  # requests at a time
SECONDS = 60.0  # within which a request is answered, and for which a busy server is asked again
LOOK_SECONDS = 5.0  # within which it says what it serves
BUSY = (429, 503, 504)
#: Fields of a served answer that are those of an answer of the child.
FIELDS = ("labels", "objects", "counts", "areas", "components", "abstained")


class Away(Exception):  # noqa: N818  a state rather than an error
    """The server does not answer any more, or not this request; the message says how that was seen."""


class Moved(Exception):  # noqa: N818  a state rather than an error
    """The server has another champion than when the command began."""


@dataclass
class Server:
    """A server that serves the champion. instead: opens what answers the rest where it goes away; raises Moved where
    that has another champion. say: tells a person about it."""

    champion: Champion
    address: Address
    token: str = field(default="", repr=False)
    instead: Callable[[], Source] | None = None
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        self._mine = threading.local()  # each thread keeps a connection

    def ask(self, groups: Iterable[list[Question]], *, whole: bool, extras: Sequence[str]) -> Iterator[Answered]:
        """Each group of questions about one picture with the reply to it, in order. Raises Moved, and Away where
        nothing else answers."""
        left, asked = iter(groups), deque[list[Question]]()

        def take() -> Iterator[list[Question]]:
            for group in left:
                asked.append(group)
                yield group

        one = partial(self._answer, whole=whole, saliency="saliency" in extras)
        try:
            for reply in map_ahead(one, take(), threads=THREADS, ahead=AHEAD):
                yield asked.popleft(), reply
        except Away as why:
            if self.instead is None:
                raise
            self.say(f"the server at {self.address.url} {why}; another process answers the rest.")
            yield from self.instead().ask(chain(asked, left), whole=whole, extras=extras)

    def _answer(self, group: list[Question], *, whole: bool, saliency: bool) -> dict[str, Any]:
        """The reply to questions about one picture."""
        image = group[0].image
        assert isinstance(image, Path)
        try:
            data = image.read_bytes()
        except OSError as error:
            trouble = describe_unreadable(group[0].name or group[0].path, error).to_dict()
            return {"sha256": None, "answers": [{"error": trouble} for _ in group]}
        options = {"whole": "1"} if whole else {}
        options |= {"saliency": "1"} if saliency else {}
        return {"sha256": hashlib.sha256(data).hexdigest(), "answers": self._ask_boxes(group, data, options)}

    def _ask_boxes(self, group: list[Question], data: bytes, options: dict[str, str]) -> list[dict[str, Any]]:
        boxes = [("box", ",".join(map(str, one.box))) for one in group if one.box is not None]
        words = urlencode([*options.items(), *boxes, ("version", str(self.champion.version))])
        status, found = self._post(f"/predict/{quote(self.champion.domain)}?{words}", data)
        if status == 404:
            raise Moved
        if status == 422 and len(group) > 1:  # no box has an answer: each may have a reason of its own
            return [answer for one in group for answer in self._ask_boxes([one], data, options)]
        if status not in (200, 422):
            raise Away(f"answers with status {status}")
        try:
            return [
                _describe(one, said, saliency="saliency" in options)
                for one, said in zip(group, found if len(group) > 1 else [found], strict=True)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise Away(f"answers in another form ({error!r})") from None

    def _post(self, path: str, data: bytes) -> tuple[int, Any]:
        """Status and content; a busy server is asked again. Raises Away."""
        until = time.monotonic() + SECONDS
        while True:
            try:
                status, headers, content = self._request("POST", path, data)
                if status not in BUSY:
                    return status, json.loads(content)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Away(f"does not answer ({str(error) or type(error).__name__})") from None
            again = headers.get("Retry-After") or "1"
            if time.monotonic() > until:
                raise Away(f"is busy (status {status})")
            time.sleep(min(float(again), LOOK_SECONDS) if again.isdecimal() else 1.0)

    def _request(self, method: str, path: str, data: bytes = b"", seconds: float = SECONDS) -> tuple[int, Any, bytes]:
        """By the connection of this thread; one that the server has closed in the meantime is opened again."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        kept = getattr(self._mine, "connection", None)
        for connection in (kept, None) if kept else (None,):
            fresh = connection or self._connect(seconds)
            try:
                fresh.request(method, path, body=data or None, headers=headers)
                response = fresh.getresponse()
                answer = response.status, response.headers, response.read()
            except (OSError, http.client.HTTPException):
                fresh.close()
                self._mine.connection = None
                if connection is None:
                    raise
            else:
                self._mine.connection = fresh
                return answer
        raise AssertionError("the last connection either answers or raises")

    def _connect(self, seconds: float) -> http.client.HTTPConnection:
        place = urlsplit(self.address.url)
        return http.client.HTTPConnection(place.hostname or "", place.port, timeout=seconds)

    def look(self) -> ServedDomains:
        """What it serves. Raises OSError where it does not answer, ValueError for another answer."""
        try:
            status, _, content = self._request("GET", "/champions", seconds=LOOK_SECONDS)
        except http.client.HTTPException as error:
            raise ValueError(repr(error)) from None
        if status != 200:
            raise ValueError(f"status {status}")
        return ServedDomains.model_validate_json(content)


def find_server(workspace: "Workspace", name: str, say: Callable[[str], None]) -> Server | None:
    """The running server, where it serves the domain's champion without trouble."""
    address = load_address(workspace)
    if address is None:
        return None
    try:
        probe = Server(_NOBODY, address, address.read_token())
        served = probe.look()
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        say(f"the server at {address.url} is not asked, because it does not answer ({why}).")
        return None
    row = next((row for row in served.domains if row.domain == name and not row.trouble), None)
    champion = None if row is None else _describe_champion(row, served.stale)
    return None if champion is None else Server(champion, address, probe.token, say=say)


_NOBODY = Champion("", 0, "", "", "", "", (), None, None, None, ())


def _describe_champion(row: ServedDomain, stale: str) -> Champion | None:
    if row.version is None or row.adapter_sha256 is None or row.task is None or row.annotation is None:
        return None
    doubt = f"The server cannot read the registry ({stale}); version {row.version} may be the champion no longer."
    return Champion(
        domain=row.domain,
        version=row.version,
        adapter_sha256=row.adapter_sha256,
        tuner=row.tuner or "",
        task=row.task,
        annotation=row.annotation,
        classes=row.classes,
        thresholds=row.thresholds,
        decision=row.decision,
        input=row.details,
        warnings=(*row.warnings, *([doubt] if stale else [])),
    )


def _describe(question: Question, served: dict[str, Any], *, saliency: bool) -> dict[str, Any]:
    """An answer of the server as one of the child."""
    if "error" in served:
        said = served["error"]
        name = question.name or question.path  # the server calls it the image
        error = DataError(name, expected=said["expected"], found=said["found"], hint=said["hint"])
        return {"error": error.to_dict()}
    answer = {key: served[key] for key in FIELDS if key in served}
    facts = {"answer": answer, "label": served["label"], "crop": served.get("crop")}
    facts |= {"probabilities": served.get("probabilities")}
    return facts | ({"saliency": served.get("saliency")} if saliency else {})
