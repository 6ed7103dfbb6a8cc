"""The one path of every protocol, from the bytes of images to answers. No torch here.

    service = open_service(champions)
    answers = await service.ask("plates", [Asked(image)], id="7f3a")      a Served or a TesseraError per question
    service.close(30)

Pictures are decoded in a pool of threads and computed in the batcher's one thread. Answers that are large, as masks
are, are described in the pool again. Cancelling `ask` withdraws what is not computed yet.
"""

import asyncio
import io
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from components.data.sources.images import Box
from components.errors import DataError, PromotionError, TesseraError
from components.records.serving import Served
from components.serving.describing import describe
from components.serving.looks import Look
from components.serving.questions import Question, require_boxes
from components.serving.saliency import draw_saliency
from components.serving.server.answers import create_answer
from components.serving.server.batcher import Batcher, Full, Late
from components.serving.server.champions import Champion, Champions
from components.serving.server.metrics import Metrics
from components.tasks.base import DenseTask

Result = TypeVar("Result")
MOST_NAMED = 10  # domains in an error message
AGAIN_SECONDS = 2  # after which a server that starts, or its successor, may be asked again


@dataclass(frozen=True)
class Asked:
    """One question: the bytes of an image, and the box in it, if any. name: what error messages call it.

    Questions about one picture that follow one another and share its bytes object decode it once.
    """

    image: bytes = field(repr=False)
    box: Box | None = None
    name: str = "the image"


class Refusal(Exception):  # noqa: N818  an answer rather than a fault
    """A request that is refused as a whole. status: of HTTP. headers: further ones of the response."""

    def __init__(self, status: int, error: TesseraError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(error))
        self.status, self.error, self.headers = status, error, dict(headers or {})


class Service:
    """Answers questions by the champions. draining: set where new requests are refused while old ones are finished."""

    def __init__(self, champions: Champions, batcher: Batcher, metrics: Metrics) -> None:
        self.champions, self.batcher, self.metrics = champions, batcher, metrics
        self.draining = False
        self._rows = 0  # accepted and not answered yet
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")

    def close(self, seconds: float) -> bool:
        """Finish what was accepted. Returns whether that was done in these seconds."""
        self.draining = True
        done = self.batcher.close(seconds)
        self._pool.shutdown(wait=done, cancel_futures=True)
        return done

    def require_ready(self) -> None:
        """Raise Refusal (503) before the registry was read once, and while the server drains."""
        if self.draining:
            raise _refuse_for_now("a server that accepts requests", "one that ends and finishes what it has accepted")
        if not self.champions.ready:
            why = f": {self.champions.stale}" if self.champions.stale else ""
            raise _refuse_for_now("a server that has read the registry", f"one that starts{why}")

    def require_champion(self, domain: str, version: int | None = None) -> Champion:
        """The champion to ask. Raises Refusal: 404 where there is none, or the version is another one; 503."""
        champion = self.champions.get(domain)
        if champion is None or self.draining:
            self.require_ready()
        if champion is None:
            if trouble := self.champions.troubles.get(domain):
                raise _refuse_for_now(f"a champion of the domain {domain} that can be loaded", trouble)
            raise Refusal(404, _describe_unknown(domain, sorted(self.champions)))
        if version not in (None, champion.version):
            error = PromotionError(
                f"version {version} of {domain}",
                expected=f"the version that is served, {champion.version}",
                found="another one",
                hint="Only champions are served; leave the version out.",
            )
            raise Refusal(404, error)
        return champion

    async def ask(
        self,
        domain: str,
        asked: Sequence[Asked],
        *,
        version: int | None = None,
        champion: Champion | None = None,
        whole: bool = False,
        saliency: bool = False,
        id: str,
    ) -> list[Served | TesseraError]:
        """One item per question, in order: the answer, or why this question cannot be answered.

        champion: what `require_champion` returned, where the caller describes the answers by it: another one may be
        served meanwhile. id: of the request. Raises Refusal: 404 no such champion, 413 more questions than the queue
        has room for, 422 boxes missing or not wanted, 429 the queue is full, 503 starting or draining, 504 the deadline
        passed.
        """
        champion = champion or self.require_champion(domain, version)
        groups = _group(asked)
        try:
            require_boxes(champion.resident.meta, [one for group in groups for one in group], whole=whole)
        except DataError as error:
            raise Refusal(422, error) from None
        rows = len(asked) * (2 if saliency else 1)
        self._require_room(rows)
        until = time.monotonic() + self.batcher.deadline
        self._rows += rows
        try:
            parts = await _await_all([self._answer(champion, group, until, saliency, id) for group in groups])
        except Late:
            raise _refuse_late(self.batcher.deadline) from None
        finally:
            self._rows -= rows
        answers = [answer for part in parts for answer in part]
        failed = sum(isinstance(answer, TesseraError) for answer in answers)
        self.metrics.count_errors(domain, "image", failed)
        return answers

    def _require_room(self, rows: int) -> None:
        most = self.batcher.most_waiting
        if rows > most:
            hint = "Send them in several requests."
            error = DataError("the request", expected=f"at most {most} rows", found=f"{rows}", hint=hint)
            raise Refusal(413, error)
        try:
            self.batcher.require_room(self._rows + rows)
        except Full as full:
            raise refuse_full(f"room for {rows} more rows in the queue", full.retry_after) from None

    async def _answer(
        self, champion: Champion, questions: Sequence[Question], until: float, saliency: bool, request_id: str
    ) -> list[Served | TesseraError]:
        """Questions about one picture."""
        loop, resident = asyncio.get_running_loop(), champion.resident
        looks = await loop.run_in_executor(self._pool, lambda: list(resident.eye.look(questions)))
        pixels = [look.pixels for look in looks if look.pixels is not None]
        rows = [self.batcher.submit(champion, one, until) for one in pixels]
        maps = [self.batcher.explain(champion, one, until) for one in pixels] if saliency else []
        found = await _settle([*rows, *maps])
        pairs = zip(found[: len(rows)], found[len(rows) :] or [None] * len(rows), strict=True)

        def describe_all() -> list[Served | TesseraError]:
            return [look.trouble or _describe(champion, look, *next(pairs), request_id) for look in looks]

        if saliency or isinstance(resident.meta.task, DenseTask):
            return await loop.run_in_executor(self._pool, describe_all)
        return describe_all()


def open_service(champions: Champions) -> Service:
    """A service with a batcher that runs and metrics of its own."""
    metrics = Metrics(champions)
    batcher = Batcher(watch=metrics.watch_batch)
    metrics.watch_waiting(lambda: batcher.waiting)
    batcher.start()
    return Service(champions, batcher, metrics)


def refuse_full(expected: str, retry_after: int) -> Refusal:
    """429: there is no room now."""
    hint = f"Ask again in {retry_after} s, or with fewer requests at a time."
    error = TesseraError("the server", expected=expected, found="none now", hint=hint)
    return Refusal(429, error, {"Retry-After": str(retry_after)})


def _refuse_for_now(expected: str, found: str) -> Refusal:
    hint = f"Ask again in {AGAIN_SECONDS} s; /v2/health/ready says when it is ready."
    error = TesseraError("the server", expected=expected, found=found, hint=hint)
    return Refusal(503, error, {"Retry-After": str(AGAIN_SECONDS)})


def _refuse_late(seconds: float) -> Refusal:
    hint = "Ask again, with fewer requests at a time."
    return Refusal(504, TesseraError("the server", expected=f"an answer within {seconds:g} s", found="none", hint=hint))


def _describe_unknown(domain: str, known: Sequence[str]) -> PromotionError:
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return PromotionError(
        f"domain {domain}",
        expected=f"a domain with a champion: {', '.join(known[:MOST_NAMED]) or 'none is served'}{more}",
        found="none of this name",
        hint="GET /champions lists what is served; `tessera retrain NAME` makes a first champion.",
    )


def _group(asked: Sequence[Asked]) -> list[list[Question]]:
    """Questions by picture, in order. Those about one picture share one open file."""
    groups = []
    for _, same in groupby(asked, key=lambda one: id(one.image)):
        group = list(same)
        image = io.BytesIO(group[0].image)
        groups.append([Question(image, one.box, one.name) for one in group])
    return groups


async def _await_all(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results, in order. Where one fails or the caller is cancelled, the others are cancelled."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _settle(futures: Sequence[Future[Any]]) -> list[Any]:
    """What the futures return; a TesseraError where one raises it. Raises other errors. Cancelled with the caller."""
    found = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, TesseraError):
            raise one
    return found


def _describe(champion: Champion, look: Look, row: Any, grid: Any, request_id: str) -> Served | TesseraError:
    """grid: the saliency, if any. An error in the place of either is the answer."""
    for one in (row, grid):
        if isinstance(one, TesseraError):
            return one
    meta = champion.resident.meta
    drawn = None if grid is None else draw_saliency(grid, meta, look)
    return create_answer(champion, describe(meta, look, row), request_id, drawn)
