"""Moves of the alias `champion`: a version judged until its verdict takes effect, a way back, and the record of each.

MLflow has no compare-and-set for aliases: of two promoters that check first and set then, the worse one may win. So the
record in the ledger decides (`ledger.append`), which one process alone can write, after it read the ledger and then the
champion; the aliases follow it (`aliases.follow_records`), and the tag `tessera.settled` names the last record that
they follow. The next process completes an interrupted move. A process that resumes late fails to write its record,
because the number is taken, or sets the aliases again right after it overwrote them. `judge_until_settled` judges again
where another process was faster.

The file lock of the workspace, and the turn that `flows.server.turns` takes from a Prefect server for machines that
share one, spare promoters work that would be in vain; correctness does not rest on them. An alias that was moved by
hand is never touched, and `verify.verify_records` reports it. All functions use the store that this process opened
last.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import polars as pl

from components.errors import ChampionMoved, PromotionError
from components.promotion.aliases import follow_records, lock_domain, read_champion, write_note
from components.promotion.gates.base import Context, Decision
from components.promotion.gates.decide import decide
from components.promotion.ledger import (
    MOST_CHARACTERS,
    Ledger,
    Record,
    append,
    count_evaluations,
    find_user,
    hash_text,
    load_ledger,
    load_records,
    parse_record,
    shorten,
    write_evidence,
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
from components.tracking import artifacts
from components.tracking.pages import link_candidates
from components.tracking.store import Store
from components.workspace import Workspace

SHOWN, MOST_WHY = 10, 300  # records on the model's page, and characters of their reasons
Turn = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Contest:
    """A challenger against whoever is champion.

    context: the challenger's side of the evidence. score: the predictions of a champion on the same test images.
    who: answers for the verdict. turn: held around the verdict's writes. again: called before a second judgement.
    """

    workspace: Workspace
    store: Store
    challenger: Version
    context: Context
    score: Callable[[Version], pl.DataFrame]
    data_version: str
    git_commit: str
    who: str | None = None
    turn: Turn = nullcontext
    again: Callable[[], None] = lambda: None

    def settle(self) -> tuple[Decision | None, Version | None]:
        """Judge and let the verdict take effect, both anew where another process moved the champion in between.

        Returns the decision (None where the challenger is the champion already) and the champion there is now. A
        verdict that moves nothing is recorded too, because it was an evaluation of the test set all the same.
        """
        decisions = list[Decision]()

        def judge(champion: Version | None) -> Record:
            if decisions:
                self.again()
            decisions.append(self.decide(champion))
            return self._record(decisions[-1], champion)

        name = self.challenger.domain
        record, champion = judge_until_settled(self.workspace, name, self.challenger.version, judge, self.turn)
        if record is None:
            return None, champion
        describe_model(name)
        return decisions[-1], champion

    def decide(self, champion: Version | None) -> Decision:
        """The gates' decision against this champion, which is scored for it."""
        rival = None if champion is None else self.score(champion)
        pair = (None if champion is None else champion.version, self.challenger.version)
        groups = self.context.challenger["group"].n_unique()
        number = count_evaluations(load_records(self.challenger.domain), pair, groups)
        return decide(replace(self.context, champion=rival, evaluations=number))

    def _record(self, decision: Decision, champion: Version | None) -> Record:
        """The record of a decision; its evidence is kept beside the challenger's run before it."""
        text = write_evidence(decision.model_dump(mode="json"))
        evidence = hash_text(text)
        artifacts.log_evidence(self.store, self.challenger.run_id, evidence, text)
        groups = next((int(found.evidence["groups"]) for found in decision.findings if "groups" in found.evidence), 0)
        return Record(
            who=self.who or find_user(),
            action="promote" if decision.verdict == "PROMOTE" else "judge",
            from_version=None if champion is None else champion.version,
            to_version=self.challenger.version,
            verdict=decision.verdict,
            reason=decision.reason,
            evidence_sha256=evidence,
            data_version=self.data_version,
            git_commit=self.git_commit,
            test_groups=groups,
        )


def judge_until_settled(
    workspace: Workspace,
    domain: str,
    version: int,
    judge: Callable[[Version | None], Record],
    turn: Turn = nullcontext,
) -> tuple[Record | None, Version | None]:
    """Judge `version` against the champion, and again whenever the champion moved before the verdict took effect.

    Returns the record that was settled (None where the version is the champion already) and the champion there is now.
    Only a move by another process makes it judge again, so of all that contest at once one always succeeds. turn: held
    around the verdict's writes, beside the workspace's lock.
    """
    while True:
        champion = load_version(domain, CHAMPION)
        if champion is not None and champion.version == version:
            return None, champion
        record = judge(champion)
        try:
            with turn():
                return record, settle(workspace, domain, record)
        except ChampionMoved:
            continue


def settle(workspace: Workspace, domain: str, record: Record) -> Version | None:
    """Write a record and let the aliases follow it, if the champion still is its `from_version`; returns the champion.

    A `promote` record makes `to_version` the champion, a `judge` record moves nothing. Settling the same record twice,
    as after an interruption, is one record. Raises ChampionMoved when the champion is another than expected,
    PromotionError when there is no such version.
    """
    with lock_domain(workspace, domain) as ledger:
        champion = read_champion(ledger)
        target = require_version(domain, record.to_version)
        if _is_settled(ledger, record, champion):
            return champion
        _require_expected(domain, champion, record.from_version)
        lineage = {
            "data_version": record.data_version or target.data_version,
            "git_commit": record.git_commit or target.git_commit,
        }
        _write(ledger, record.model_copy(update=lineage))
        return champion if record.action == "judge" else require_version(domain, record.to_version)


def _is_settled(ledger: Ledger, record: Record, champion: Version | None) -> bool:
    """Whether an earlier attempt has done it: the champion is the one, or the last record is the same judgement."""
    if record.action == "promote":
        return champion is not None and champion.version == record.to_version
    if not ledger.texts:
        return False
    last = parse_record(ledger.domain, ledger.last, ledger.texts[ledger.last])
    return (last.to_version, last.evidence_sha256) == (record.to_version, record.evidence_sha256)


def rollback(
    workspace: Workspace,
    domain: str,
    reason: str,
    who: str | None = None,
    check: Callable[[Version], None] = lambda _: None,
) -> Version:
    """Exchange champion and previous, with one record; returns the new champion.

    check: called with the version to go back to before anything is written; raises where it may not serve.

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
        check(previous)
        record = Record(
            who=who or find_user(),
            action="rollback",
            from_version=champion.version,
            to_version=previous.version,
            reason=reason,
            data_version=previous.data_version,
            git_commit=previous.git_commit,
        )
        _write(ledger, record)
        return require_version(domain, previous.version)


def describe_model(domain: str) -> None:
    """Write on MLflow's pages who serves, what happened last, and the last verdict on a version; the ledger decides."""
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
    lines += ["", heading, "", *map(_describe, reversed(records[-SHOWN:]))]
    client.update_registered_model(domain, "\n".join(lines)[:MOST_CHARACTERS])
    if records and records[-1].verdict:
        client.set_model_version_tag(domain, str(records[-1].to_version), "verdict", records[-1].verdict)


def _describe(record: Record) -> str:
    """A line of a list: MLflow's tables have no space between columns."""
    before = f"version {record.from_version}" if record.from_version else "no champion"
    done = {
        "promote": f"promoted version {record.to_version} in place of {before}",
        "rollback": f"went back to version {record.to_version} from {before}",
        "judge": f"{record.verdict} for version {record.to_version} against {before}",
    }[record.action]
    why = shorten(" ".join(record.reason.split()), MOST_WHY)
    return f"- {record.when[:16].replace('T', ' ')} UTC, {record.who}: **{done}**. {why}"


def _write(ledger: Ledger, record: Record) -> None:
    """Write the record, which decides and names the adapter by its hash, and then what follows from it."""
    bound = require_bound(ledger, require_version(ledger.domain, record.to_version))
    append(ledger, record.model_copy(update={"adapter_json_sha256": bound}))
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
