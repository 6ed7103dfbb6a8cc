"""Many promoters at once, and promoters killed: against a real MLflow store, by processes that are really killed.

Processes are forked from this one, which has imported MLflow but never opens their store: an import takes seconds.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # loaded here, once for all children
import pytest
from servers import Servers, find_postgres
from tiny import promote

from components.errors import ChampionMoved
from components.promotion import aliases, contest, ledger, verify
from components.promotion.contest import judge_until_settled
from components.promotion.ledger import Record
from components.promotion.versions import CHAMPION, PREVIOUS, Version, load_version
from components.tracking.store import Store
from components.workspace import Workspace

FORK = get_context("fork")
PROMOTERS = 8
ROUNDS = int(os.environ.get("TESSERA_ROUNDS", "6"))  # TESSERA_ROUNDS=50 is the whole claim, and takes minutes
DOMAINS = max(1, ROUNDS // 10)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    if find_postgres() is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    with ExitStack() as stack:
        yield Servers(tmp_path, stack).start_postgres("mlflow")("postgresql+pg8000", "mlflow")


def work(uri: str, place: Workspace, act: Callable[[], Any], answer: Any = None) -> None:
    """In a forked child: connect, act, and hand over what came of it."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    Store.open(place)
    made = act()
    if answer is not None:
        answer.send(made)


def fork(uri: str, place: Workspace, act: Callable[[], Any], answer: Any = None) -> Any:
    process = FORK.Process(target=work, args=(uri, place, act, answer))
    process.start()
    return process


def ask(uri: str, place: Workspace, act: Callable[[], Any]) -> Any:
    """What `act` gives in a process of its own; this one stays without a connection to fork."""
    answer, end = FORK.Pipe(duplex=False)
    process = fork(uri, place, act, end)
    end.close()  # so that a child that died is an EOFError here
    made = answer.recv()
    process.join()
    return made


def register(domain: str, versions: int) -> None:
    for _ in range(versions):
        aliases.register_challenger(domain, "", "file:///nowhere", adapter_sha256="", tuner="vpt", data_version="d")


def judge(round_: int, version: int, champion: Version | None) -> Record:
    """As good as the round says: no order of arrival is the order of merit."""
    named = 0 if champion is None else champion.version
    better = champion is None or merit(round_, version) > merit(round_, named)
    verdict = "PROMOTE" if better else "HOLD"
    return Record(
        action="promote" if better else "judge",
        from_version=None if champion is None else champion.version,
        to_version=version,
        verdict=verdict,
        reason=f"{round_} {named}",
        evidence_sha256=f"{round_}/{version}/{named}",
    )


def merit(round_: int, version: int) -> int:
    return Random(round_).sample(range(PROMOTERS), PROMOTERS)[version - 1]


def compete(place: Workspace, names: list[str], number: int, gate: Any) -> None:
    """One promoter with one version of every domain: all at once, round after round."""
    try:
        for round_ in range(ROUNDS):
            gate.wait(300)
            judge_until_settled(place, names[round_ % DOMAINS], number, partial(judge, round_, number))
    except BaseException:
        gate.abort()  # nobody waits for one that failed
        raise


def describe(domain: str) -> tuple[int | None, int | None, tuple[str, ...], list[tuple[str, int | None, int, str]]]:
    champion, previous = load_version(domain, CHAMPION), load_version(domain, PREVIOUS)
    records = [(r.action, r.from_version, r.to_version, r.reason) for r in ledger.load_records(domain)]
    numbers = [found and found.version for found in (champion, previous)]
    return numbers[0], numbers[1], verify.verify_records(domain), records


@pytest.mark.slow
@pytest.mark.parametrize("lock", ["one lock", "no common lock"])
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_eight_promoters_never_lose_an_update(
    tmp_path: Path, store: str, lock: str, request: pytest.FixtureRequest
) -> None:
    """The lock spares work, the ledger decides: so it holds on machines that share nothing but MLflow, too."""
    uri, place = request.getfixturevalue(store), Workspace(tmp_path)
    names = [f"{lock.split()[0]}{k}" for k in range(DOMAINS)]
    places = [place if lock == "one lock" else Workspace(tmp_path / str(number)) for number in range(PROMOTERS)]
    ask(uri, place, lambda: [register(name, PROMOTERS) for name in names])
    gate = FORK.Barrier(PROMOTERS)
    running = [fork(uri, own, partial(compete, own, names, number, gate)) for number, own in enumerate(places, start=1)]
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * PROMOTERS
    for champion, previous, problems, records in ask(uri, place, lambda: [describe(name) for name in names]):
        assert problems == ()  # every record starts from where the one before ended, the last one at the champion
        before = None
        for round_, told in groupby(records, key=lambda record: int(record[3].split()[0])):
            judged, first = list(told), before
            for action, judged_against, version, reason in judged:
                assert reason == f"{round_} {judged_against or 0}"  # by the verdict that was given against it
                assert judged_against == before
                if action == "promote":
                    assert before is None or merit(round_, version) > merit(round_, before)  # never a worse one
                    before = version
            assert {first, *(record[2] for record in judged)} >= set(range(1, PROMOTERS + 1))  # nobody's is lost
            assert merit(round_, before or 0) == PROMOTERS - 1
        assert champion == before
        assert previous == [record for record in records if record[0] == "promote"][-1][1]


def stop_at(write: int, how: signal.Signals) -> None:
    """From now on this process ends or freezes itself before the write of that number, as the power might."""
    left = iter(range(1, write + 1))
    for name in ("log_param", "set_registered_model_alias", "set_registered_model_tag"):
        real = getattr(mlflow.MlflowClient, name)

        def write_or_stop(*arguments: Any, real: Any = real) -> Any:
            if next(left, None) == write:
                os.kill(os.getpid(), how)
            return real(*arguments)

        setattr(mlflow.MlflowClient, name, write_or_stop)


@pytest.mark.slow
def test_a_move_killed_at_any_write_is_ended_or_never_was(tmp_path: Path, sqlite: str) -> None:
    """Before each of a promotion's four writes, and between a rollback's aliases; what comes next finds all whole."""
    place, moves = Workspace(tmp_path), {"promote": (2, 3), "rollback": (2, 1)}
    kills = [*(("promote", write) for write in range(1, 6)), ("rollback", 3)]

    def prepare() -> None:
        for action, write in kills:
            register(f"{action}{write}", 3)
            for before, after in ((None, 1), (1, 2)):
                promote(place, f"{action}{write}", after, expected=before, reason="first")

    def move_and_die(action: str, write: int) -> None:
        stop_at(write, signal.SIGKILL)
        domain = f"{action}{write}"
        if action == "promote":
            promote(place, domain, 3, expected=2, reason="better")
        else:
            contest.rollback(place, domain, "worse in use")

    def look(action: str, write: int) -> tuple[bool, Any]:
        domain = f"{action}{write}"
        interrupted = aliases.is_moving(domain)
        aliases.complete_move(place, domain)
        assert not aliases.is_moving(domain)
        return interrupted, describe(domain)

    ask(sqlite, place, prepare)
    for action, write in kills:
        process = fork(sqlite, place, partial(move_and_die, action, write))
        process.join()
        assert process.exitcode == (-signal.SIGKILL if write < 5 else 0)
    told = ask(sqlite, place, lambda: [look(*kill) for kill in kills])
    for (action, write), (interrupted, (champion, previous, problems, records)) in zip(kills, told, strict=True):
        before, after = moves[action]
        assert interrupted == (1 < write < 5)
        assert problems == ()
        assert (champion, previous, len(records)) == ((before, 1, 2) if write < 2 else (after, before, 3))


@pytest.mark.slow
def test_who_was_frozen_and_wakes_up_overwrites_nothing(tmp_path: Path, sqlite: str) -> None:
    """A promoter of another machine, no common lock: frozen before each of its writes for as long as others promote."""
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    freezes = range(1, 5)

    def prepare() -> None:
        for write in freezes:
            register(f"frozen{write}", 4)
            for before, after in ((None, 1), (1, 2)):
                promote(here, f"frozen{write}", after, expected=before, reason="first")

    def freeze_and_wake(write: int) -> None:
        stop_at(write, signal.SIGSTOP)
        with suppress(ChampionMoved):
            promote(there, f"frozen{write}", 3, expected=2, reason="better")

    def promote_meanwhile(write: int) -> None:
        found = load_version(f"frozen{write}", CHAMPION)
        aliases.complete_move(here, f"frozen{write}")
        champion = load_version(f"frozen{write}", CHAMPION)
        assert (found and found.version, champion and champion.version) == (
            3 if write == 4 else 2,
            2 if write == 1 else 3,
        )
        promote(here, f"frozen{write}", 4, expected=champion and champion.version, reason="better still")

    ask(sqlite, here, prepare)
    for write in freezes:
        process = fork(sqlite, there, partial(freeze_and_wake, write))
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        ask(sqlite, here, partial(promote_meanwhile, write))
        os.kill(process.pid, signal.SIGCONT)
        process.join()
        assert process.exitcode == 0
        champion, previous, problems, records = ask(sqlite, here, partial(describe, f"frozen{write}"))
        assert problems == ()
        assert [(r[1], r[2]) for r in records[2:]] == ([(2, 4)] if write == 1 else [(2, 3), (3, 4)])
        assert (champion, previous) == (4, records[-1][1])


@pytest.mark.slow
def test_the_lock_of_a_killed_promoter_is_free(tmp_path: Path, sqlite: str) -> None:
    place = Workspace(tmp_path)
    ask(sqlite, place, lambda: register("tiles", 1))

    def hold() -> None:
        with aliases.lock_domain(place, "tiles"):
            (tmp_path / "held").touch()
            time.sleep(60)

    process = fork(sqlite, place, hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.02)
    process.kill()
    process.join()
    begun = time.monotonic()
    ask(sqlite, place, lambda: promote(place, "tiles", 1, expected=None, reason="first").version)
    assert time.monotonic() - begun < aliases.LOCK_SECONDS / 2
