"""Which version of a domain's adapter is live: three aliases on one MLflow registered model named as the domain.

    champion    serves
    challenger  was registered last and awaits the gates
    previous    served before the champion; `rollback` goes back to it

The aliases follow the ledger's records; `contest` explains why an alias alone cannot decide.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from components.errors import PromotionError
from components.models.adapter import Origin
from components.promotion.ledger import (
    LEDGER,
    MOVES,
    SETTLED,
    Ledger,
    create_ledger,
    find_last_move,
    find_last_record,
    find_lost_ledger,
    hash_text,
    load_ledger,
    load_model,
    parse_record,
)
from components.promotion.versions import (
    CHALLENGER,
    CHAMPION,
    LOGGED,
    PREVIOUS,
    TAG,
    Version,
    find_versions,
    load_version,
    read_binding,
    require_version,
)
from components.workspace import Workspace

LOCK_SECONDS = 60
PATIENCE = 1.0  # seconds in which whoever overwrote an alias has put it right


def register_challenger(
    domain: str,
    run_id: str,
    model_uri: str,
    *,
    adapter_sha256: str,
    tuner: str,
    data_version: str,
    git_commit: str = "",
    description: str = "",
    origin: Origin | None = None,
) -> int:
    """Register a logged model as a new version and point `challenger` at it; returns the version.

    origin: what its licences hold for, which becomes tags.

    An adapter that its run has registered already, by a process that was killed before it set the alias, keeps its
    version.
    """
    import mlflow

    client = mlflow.MlflowClient()
    known = find_versions(domain, adapter_sha256) if run_id else []
    version = next((there.version for there in known if there.run_id == run_id), None)
    if version is None:
        tags = {"tuner": tuner, "data_version": data_version, "git_commit": git_commit}
        tags |= {"adapter_sha256": adapter_sha256, "adapter_json_sha256": read_binding(model_uri)}
        tags |= {} if origin is None else origin.model_dump()
        _create_model(client, domain)
        created = client.create_model_version(
            domain,
            source=model_uri,
            run_id=run_id,
            tags={f"{TAG}{key}": value for key, value in tags.items() if value},
            description=description or f"{tuner} · data {data_version[:8]}",
            model_id=model_uri.removeprefix("models:/") if model_uri.startswith(LOGGED) else None,
        )
        version = int(created.version)  # MLflow types it str here and int elsewhere
    point_challenger(domain, version)
    return version


def point_challenger(domain: str, version: int) -> None:
    """Make a registered version the one that is judged next."""
    import mlflow

    _set_alias(mlflow.MlflowClient(), domain, CHALLENGER, version)


def is_moving(domain: str) -> bool:
    """Whether a move is under way, or was when its process died."""
    ledger = load_ledger(domain)
    return ledger.settled < ledger.last


def complete_move(workspace: Workspace, domain: str) -> None:
    """End a move that was interrupted; one under way is waited for. Every move begins with this by itself."""
    with lock_domain(workspace, domain):
        pass


def require_champion(domain: str) -> Version:
    """The version that serves. Raises PromotionError where there is none, or it is not the one that the ledger ends at.

    A version that no record explains must not answer, so nothing is served in place of a champion moved by hand.
    """
    if (trouble := find_trouble(domain)) is not None:
        raise trouble
    champion = load_version(domain, CHAMPION)
    if champion is None:
        raise PromotionError(
            f"prediction with {domain}",
            expected="a champion",
            found="none",
            hint=f"Train and promote one with `tessera retrain {domain}`.",
        )
    return champion


def require_challenger(domain: str, number: int | None) -> Version:
    """The version of that number, or the challenger where there is none. Raises PromotionError."""
    if number is not None:
        return require_version(domain, number)
    challenger = load_version(domain, CHALLENGER)
    if challenger is None:
        raise PromotionError(
            f"promotion in {domain}",
            expected="a registered challenger",
            found="none",
            hint=f"Train one with `tessera retrain {domain}`.",
        )
    return challenger


def find_trouble(domain: str) -> PromotionError | None:
    """Why the alias `champion` is not where the ledger's last record left it, and the command that restores it.

    None where all is well, or a move is under way. Where a process that resumed late may be about to correct the alias,
    it gets the time.
    """
    ledger = load_ledger(domain)
    if ledger.champion != find_last_move(ledger):
        time.sleep(PATIENCE)
        ledger = load_ledger(domain)
    return explain_champion(ledger)


def explain_champion(ledger: Ledger) -> PromotionError | None:
    """The same of a ledger as it was read."""
    domain = ledger.domain
    if not ledger.run_id and (lost := find_lost_ledger(domain)):
        return PromotionError(
            f"champion of {domain}",
            expected="the registered model whose moves a ledger records",
            found=f"none: it was deleted in MLflow, which cannot be undone; the records are parameters of run {lost}",
            hint=f"Train and promote one with `tessera retrain {domain}`, which begins a new ledger.",
        )
    there, recorded = ledger.champion, find_last_move(ledger)
    if there == recorded or ledger.settled < ledger.last:
        return None
    found = f"at version {there}: it was moved by hand" if there else "no such alias: it was deleted by hand"
    hint = f"`tessera ledger restore {domain}` puts it back"
    hint += f"; then `tessera promote {domain} {there}` judges version {there}." if there else "."
    if recorded is not None and load_version(domain, recorded) is None:
        found += f", and version {recorded} was deleted, which MLflow cannot undo"
        hint = f"Promote another with `tessera promote {domain} VERSION`, or train one: `tessera retrain {domain}`."
    return PromotionError(
        f"champion of {domain}",
        expected=f"the alias `champion` at version {recorded}, where the last record of the ledger left it"
        if recorded
        else "no alias `champion`, because no record of the ledger made one",
        found=found,
        hint=hint,
    )


def restore_champion(workspace: Workspace, domain: str) -> Version | None:
    """Put the aliases back to where the ledger's last move left them; returns the champion, None where there was none.

    No record is written, because the last one says it already. Raises PromotionError where its version was deleted.
    """
    import mlflow

    with lock_domain(workspace, domain) as ledger:
        client, last = mlflow.MlflowClient(), find_last_record(ledger)
        if last is None:
            if ledger.champion is not None:
                client.delete_registered_model_alias(domain, CHAMPION)
            return None
        champion = require_version(domain, last.to_version)
        before = last.from_version
        _set_aliases(client, domain, before if before and load_version(domain, before) else None, champion.version)
        return require_version(domain, champion.version)


@contextmanager
def lock_domain(workspace: Workspace, domain: str) -> Iterator[Ledger]:
    """Hold the domain's promotion lock, for threads and processes alike; the system frees it if the holder dies.

    Yields the ledger, after what others left half done was ended.
    """
    from filelock import FileLock, Timeout

    path = workspace.state / "locks" / f"{domain}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise PromotionError(
            f"promotion of {domain}",
            expected="no other promotion of this domain at work",
            found=f"one that has held {path} for more than {LOCK_SECONDS} s",
            hint="Try again once it is done.",
        ) from None
    try:
        yield follow_records(domain)
    finally:
        lock.release()


def follow_records(domain: str) -> Ledger:
    """Make the aliases what the newest records say, whoever wrote them; returns the ledger they agree with.

    It is read again after the aliases were set: who slept in between, for however long, puts right what he overwrote.
    """
    import mlflow

    client, ledger = mlflow.MlflowClient(), load_ledger(domain)
    done = ledger.settled
    while done < ledger.last:
        new = [parse_record(domain, number, text) for number, text in sorted(ledger.texts.items()) if number > done]
        moves = [record for record in new if record.action in MOVES]
        if moves:
            _set_aliases(client, domain, moves[-1].from_version, moves[-1].to_version)
        done = ledger.last
        settled = f"{done} {hash_text(ledger.texts[done])}"
        _write(partial(client.set_registered_model_tag, domain, SETTLED, settled))
        ledger = load_ledger(domain)
    return ledger


def read_champion(ledger: Ledger) -> Version | None:
    """The champion now, to be read after the ledger: a move since then has taken the next record's number.

    Where the alias is not what the ledger ends at, somebody who woke up late may be about to put it right; what was
    moved by hand stays.
    """
    champion = load_version(ledger.domain, CHAMPION)
    if (champion and champion.version) != find_last_move(ledger):
        time.sleep(PATIENCE)
        champion = load_version(ledger.domain, CHAMPION)
    return champion


def _set_aliases(client: Any, domain: str, before: int | None, after: int) -> None:
    """`previous` first: should it stop there, what serves is still the old champion, which works."""
    if before is not None:
        _set_alias(client, domain, PREVIOUS, before)
    _set_alias(client, domain, CHAMPION, after)


def _set_alias(client: Any, domain: str, alias: str, version: int) -> None:
    _write(lambda: client.set_registered_model_alias(domain, alias, str(version)))


def _write(change: Callable[[], object]) -> None:
    """An alias or a tag: several writers that make it for the first time meet a unique constraint on a database, and
    the losers write again.
    """
    from mlflow.exceptions import MlflowException

    for pause in (0.05, 0.2, 0.5):
        try:
            change()
            return
        except MlflowException as error:
            if "UNIQUE" not in str(error).upper():
                raise
            time.sleep(pause)
    change()


def _create_model(client: Any, domain: str) -> None:
    """The registered model and, by the same write, its ledger: of several that create it the first one's is the one."""
    from mlflow.exceptions import MlflowException

    if (model := load_model(domain)) is not None:
        if LEDGER not in model.tags and not model.aliases:  # made by hand, and never used
            client.set_registered_model_tag(domain, LEDGER, create_ledger(domain))
        return
    run_id = create_ledger(domain)
    try:
        client.create_registered_model(domain, tags={LEDGER: run_id}, description=write_note(domain))
    except MlflowException as error:
        client.delete_run(run_id)
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def write_note(domain: str) -> str:
    return (
        f"Adapters of the domain `{domain}`. The alias `champion` serves, `challenger` was trained last, `previous` "
        f"served before. Every move is in the ledger: `tessera history {domain}` reads it, `tessera ledger verify "
        f"{domain}` proves it."
    )
