"""Moves of the alias `champion`: a version judged until its verdict takes effect, a way back, and the record of each.

MLflow has no compare-and-set for aliases: of two promoters that check first and set then, the worse one may win. So the
record in the ledger decides (`ledger.append_record`), which one process alone can write, after it read the ledger and
then the champion; the aliases follow it (`aliases.follow_records`), and the tag `tessera.settled` names the last record
that they follow. The next process completes an interrupted move. A process that resumes late fails to write its record,
because the number is taken, or sets the aliases again right after it overwrote them. `judge_until_settled` judges again
where another process was faster.

The file lock of the workspace, and the turn that `flows.server.turns` takes from a Prefect server for machines that
share one, spare promoters work that would be in vain; correctness does not rest on them. An alias that was moved by
hand is never touched, and `verify.verify_records` reports it. All functions use the store that this process
opened last.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from components.domain.strict import Strict
from components.errors import ChampionMoved, PromotionError
from components.promotion.aliases import follow_records, lock_domain, read_champion, write_note
from components.promotion.ledger import (
    MOST_CHARACTERS,
    Action,
    Ledger,
    Record,
    append_record,
    load_ledger,
    load_records,
    parse_record,
    shorten,
)
from components.promotion.versions import (
    CHAMPION,
    PREVIOUS,
    Version,
    load_version,
    name_version,
    require_bound,
    require_version,
)
from components.records.outcomes import Verdict
from components.tracking.pages import link_candidates
from components.workspace import Workspace

SHOWN, MOST_WHY = 10, 300  # records on the model's page, and characters of their reasons


class Judgement(Strict):
    """A verdict on one version, as the ledger keeps it; the fields are those of `ledger.Record`."""

    verdict: Verdict = "PROMOTE"
    reason: str
    evidence_sha256: str = ""
    data_version: str = ""
    git_commit: str = ""
    test_groups: int = 0
    who: str | None = None


def judge_until_settled(
    workspace: Workspace,
    domain: str,
    version: int,
    judge: Callable[[Version | None], Judgement],
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Judgement | None, Version | None]:
    """Judge `version` against the champion, and again whenever the champion moved before the verdict took effect.

    Returns the judgement that did (None where the version is the champion already) and the champion there is now. Only
    a move by somebody else makes it judge again, so of all who contest at once one always comes through. turn: held
    around the verdict's writes, beside the workspace's lock.
    """
    while True:
        champion = load_version(domain, CHAMPION)
        if champion is not None and champion.version == version:
            return None, champion
        judgement = judge(champion)
        expected = None if champion is None else champion.version
        settle = set_champion if judgement.verdict == "PROMOTE" else record_judgement
        try:
            with turn():
                return judgement, settle(workspace, domain, version, expected=expected, **judgement.model_dump())
        except ChampionMoved:
            continue


def set_champion(workspace: Workspace, domain: str, version: int, *, expected: int | None, **judgement: Any) -> Version:
    """Make `version` the champion if the champion still is `expected` (None: there is none), and record why.

    judgement: the fields of `Judgement`. Saying it twice is no error: a retry after an interruption finds its work
    done. Raises ChampionMoved when the champion is another than expected, PromotionError when there is no such version.
    """
    told = Judgement(**judgement)
    with lock_domain(workspace, domain) as ledger:
        champion = read_champion(ledger)
        target = require_version(domain, version)
        if champion is not None and champion.version == version:
            return champion
        _require_expected(domain, champion, expected)
        facts = told.model_dump() | {
            "data_version": told.data_version or target.data_version,
            "git_commit": told.git_commit or target.git_commit,
        }
        _record(ledger, "promote", expected, version, facts)
        return require_version(domain, version)


def record_judgement(
    workspace: Workspace, domain: str, version: int, *, expected: int | None, **judgement: Any
) -> Version | None:
    """Leave a record of a verdict that moved nothing; the same one twice, as after an interruption, is one record.

    Returns the champion, which is the one that was expected. Raises ChampionMoved when it is not.
    """
    told = Judgement(**judgement)
    with lock_domain(workspace, domain) as ledger:
        last = parse_record(domain, ledger.last, ledger.texts[ledger.last]) if ledger.texts else None
        champion = read_champion(ledger)
        if last is not None and (last.to_version, last.evidence_sha256) == (version, told.evidence_sha256):
            return champion
        _require_expected(domain, champion, expected)
        _record(ledger, "judge", expected, version, told.model_dump())
        return champion


def rollback(workspace: Workspace, domain: str, reason: str, who: str | None = None) -> Version:
    """Champion and previous change places, with one record; returns the new champion.

    Raises PromotionError when there is nothing to go back to.
    """
    with lock_domain(workspace, domain) as ledger:
        champion, previous = read_champion(ledger), load_version(domain, PREVIOUS)
        if champion is None or previous is None or champion.version == previous.version:
            raise PromotionError(
                f"rollback of {domain}",
                expected="a champion and, under the alias `previous`, the version that served before it",
                found=f"champion {name_version(champion)}, previous {name_version(previous)}",
                hint=f"Only a domain whose champion replaced another can go back: see `tessera history {domain}`.",
            )
        lineage = {"data_version": previous.data_version, "git_commit": previous.git_commit}
        _record(ledger, "rollback", champion.version, previous.version, {"reason": reason, "who": who, **lineage})
        return require_version(domain, previous.version)


def describe_model(domain: str) -> None:
    """MLflow's pages tell who serves, what happened last, and what was said of a version; the ledger is what counts."""
    import mlflow

    client, champion, trouble = mlflow.MlflowClient(), load_version(domain, CHAMPION), ""
    try:
        records = load_records(domain)
    except PromotionError as error:  # a rollback must not fail on what the page cannot show
        records, trouble = (), f" {error}"
    serving = f"**Champion: {name_version(champion)}.**"
    heading = f"{serving} The last records of [the ledger]({load_ledger(domain).page}):{trouble}"
    lines = [write_note(domain)]
    experiment = client.get_experiment_by_name(domain)
    if experiment is not None:
        lines += ["", f"[All candidates side by side]({link_candidates(experiment.experiment_id)})"]
        client.set_experiment_tag(experiment.experiment_id, CHAMPION, name_version(champion))
    lines += ["", heading, "", *map(_tell, reversed(records[-SHOWN:]))]
    client.update_registered_model(domain, "\n".join(lines)[:MOST_CHARACTERS])
    if records and records[-1].verdict:
        client.set_model_version_tag(domain, str(records[-1].to_version), "verdict", records[-1].verdict)


def _tell(record: Record) -> str:
    """A line of a list: MLflow's tables have no space between columns."""
    before = f"version {record.from_version}" if record.from_version else "no champion"
    done = {
        "promote": f"promoted version {record.to_version} in place of {before}",
        "rollback": f"went back to version {record.to_version} from {before}",
        "judge": f"{record.verdict} for version {record.to_version} against {before}",
    }[record.action]
    why = shorten(" ".join(record.reason.split()), MOST_WHY)
    return f"- {record.when[:16].replace('T', ' ')} UTC, {record.who}: **{done}**. {why}"


def _record(ledger: Ledger, action: Action, before: int | None, after: int, facts: dict[str, Any]) -> None:
    """The record, which decides and names the adapter by its hash, and then what follows from it."""
    bound = require_bound(ledger, require_version(ledger.domain, after))
    append_record(ledger, action=action, from_version=before, to_version=after, adapter_json_sha256=bound, **facts)
    follow_records(ledger.domain)


def _require_expected(domain: str, champion: Version | None, expected: int | None) -> None:
    found = None if champion is None else champion.version
    if found != expected:
        raise ChampionMoved(
            f"promotion in {domain}",
            expected=f"champion {'none' if expected is None else f'version {expected}'}, against which this was judged",
            found=f"champion {name_version(champion)}: somebody else moved it meanwhile",
            hint="Judge the challenger against the present champion: run the retrain again.",
        )
