"""Who was champion, when and why: the ledger as commands show it, its verification, and rollback."""

from datetime import UTC, datetime, time
from functools import partial
from pathlib import Path

from components.domain.domain import Domain
from components.errors import PromotionError
from components.files import write_whole
from components.promotion import aliases, contest, ledger, verify, versions
from components.promotion.licences import require_licences
from components.records.history import History, HistoryAt, LedgerExport, LedgerReport, Move, Restored, RolledBack
from components.records.outcomes import Outcome
from components.tracking.store import Store
from components.workspace import Workspace
from flows.server.events import emit_promoted
from flows.server.turns import promotion_turn


def require_ledger(workspace: Workspace, name: str) -> None:
    """Raise DomainError unless the domain is here, or was removed and left a ledger."""
    from flows.plan import load_checked_domain

    if not workspace.domain_file(name).exists() and workspace.has_results():
        Store.open(workspace)
        if ledger.load_texts(name):
            return
    load_checked_domain(workspace, name)


def open_registry(workspace: Workspace, name: str) -> Store:
    """The workspace's store, after a promotion that was killed between its writes was completed."""
    store = Store.open(workspace)
    if not aliases.is_moving(name):
        return store
    with promotion_turn(name):
        aliases.complete_move(workspace, name)
    champion = versions.load_version(name, versions.CHAMPION)
    if champion is not None:  # the process that was killed may not have reported it
        emit_promoted(champion)
    return store


def rollback(workspace: Workspace, domain: Domain, reason: str) -> RolledBack:
    """Exchange champion and previous; returns the history.

    No gate judges it but `licences`: Raises PromotionError where the version is outside the licences allowed.
    """
    name, check = domain.name, partial(require_licences, workspace, domain)
    open_registry(workspace, name)
    with promotion_turn(name):
        champion = contest.rollback(workspace, name, reason, check=check)
    contest.describe_model(name)
    emit_promoted(champion)
    return RolledBack(**dict(describe_history(name)), reason=f"rolled back to version {champion.version}")


def find_faults(workspace: Workspace, name: str) -> tuple[str, ...]:
    """What is wrong with a domain's champion: it was moved by hand, or its adapter is not the registered one."""
    try:
        trouble = aliases.find_trouble(name)
        champion = None if trouble else versions.load_version(name, versions.CHAMPION)
        kept = ledger.load_ledger(name)
    except PromotionError as error:
        return (str(error),)
    faults = [] if trouble is None else [str(trouble)]
    if kept.deleted:
        hint = f"`mlflow runs restore --run-id {kept.run_id}` brings it back."
        faults.append(f"ledger of {name}: its run {kept.run_id} was deleted, so that nothing can be promoted. {hint}")
    return (*faults, *(versions.find_damage(champion, workspace.adapters) if champion else ()))


def restore(workspace: Workspace, name: str) -> Restored:
    """Set the aliases to what the ledger's last record says."""
    trouble = aliases.find_trouble(name)
    with promotion_turn(name):
        champion = aliases.restore_champion(workspace, name)
    if trouble is not None:
        contest.describe_model(name)
        if champion is not None:
            emit_promoted(champion)
    version = None if champion is None else champion.version
    return Restored(domain=name, champion_version=version, found=None if trouble is None else trouble.found)


def describe_history_at(name: str, when: str) -> HistoryAt:
    """Who was champion at a moment, an ISO date (its end) or time, in UTC where it names no zone.

    Raises PromotionError for a text that is neither, and for a day that is yet to come.
    """
    now = datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(when)
        if "T" not in when and " " not in when:
            moment = datetime.combine(moment.date(), time.max.replace(microsecond=0))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        found = "" if moment.date() <= now.date() else "a day that is yet to come"
    except ValueError:
        found = "neither"
    if found:
        raise PromotionError(
            f"--at {when!r}",
            expected="a past date or time such as 2026-11-24 or 2026-11-24T15:30+01:00",
            found=found,
            hint="Write it in that form.",
        )
    record = ledger.find_champion(ledger.load_records(name), moment)
    at, champion = min(moment, now).isoformat(timespec="seconds"), None if record is None else record.to_version
    return HistoryAt(**dict(describe_history(name)), at=at, champion_at=champion)


def verify_ledger(workspace: Workspace, name: str, export: Path | None) -> LedgerReport:
    """What is wrong with the ledger, and with the adapters that served by its records.

    export: an earlier export, which the ledger must still begin with. notes: what cannot be proven, because it is older
    than what proves it, or was deleted.
    """
    try:
        lines = export.read_text(encoding="utf-8").splitlines() if export else []
    except (OSError, UnicodeDecodeError) as error:
        raise PromotionError(
            f"--against {export}",
            expected=f"a file that `tessera ledger export {name} FILE` wrote",
            found=str(error),
            hint="Name that file.",
        ) from None
    kept = ledger.load_ledger(name)
    problems, notes = list(verify.verify_records(name, lines)), list[str]()
    for number in sorted(ledger.find_served(kept)):
        version = versions.load_version(name, number)
        if version is None:
            notes.append(f"version {number} was deleted in MLflow: its adapter cannot be proven")
            continue
        problems += versions.find_damage(version, workspace.adapters)
        if not version.adapter_json_sha256:
            notes.append(f"version {number} is not bound: only its weights can be proven, not its classes")
    return LedgerReport(domain=name, records=len(kept.texts), problems=tuple(problems), notes=tuple(notes))


def export_ledger(name: str, file: Path) -> LedgerExport:
    """Write the records as they are stored, one per line."""
    texts = [text for _, text in sorted(ledger.load_texts(name).items())]
    try:
        file.parent.stat()  # a folder that is not there is a mistyped one
        write_whole(file, "".join(f"{text}\n" for text in texts).encode())
    except OSError as error:
        raise PromotionError(
            f"ledger of {name}",
            expected=f"a file that can be written at {file}",
            found=str(error),
            hint="Name a file in a folder that exists.",
        ) from None
    return LedgerExport(domain=name, records=len(texts), file=file.resolve())


def mark_unchanged(name: str, known: Outcome) -> Outcome:
    """An earlier retrain's outcome as the answer now; the champion may have moved since."""
    champion = versions.load_version(name, versions.CHAMPION)
    version = None if champion is None else champion.version
    return known.model_copy(update={"status": "unchanged", "champion_version": version})


def describe_history(name: str) -> History:
    """What `history` and `rollback` print, and `promote` beside its verdict."""
    champion = versions.load_version(name, versions.CHAMPION)
    moves = [
        Move(
            number=record.number,
            when=record.when,
            who=record.who,
            action=record.action,
            previous=record.from_version,
            version=record.to_version,
            verdict=record.verdict or None,
            reason=record.reason,
            data_version=record.data_version,
            git_commit=record.git_commit,
            evidence_sha256=record.evidence_sha256,
            test_groups=record.test_groups,
        )
        for record in ledger.load_records(name)
    ]
    return History(
        domain=name,
        champion_version=None if champion is None else champion.version,
        records=tuple(moves),
        ledger_problems=tuple(verify.verify_records(name)),
    )
