"""What the commands on versions print: history, promote, approve, rollback, ledger, reproduce."""

from pathlib import Path
from typing import Literal

from components.domain.strict import Strict
from components.records.fields import Count, Md5, Number, Share
from components.records.outcomes import Finding, Verdict


class Move(Strict):
    """One record of the ledger: who moved the alias `champion`, or judged, when and why.

    when: an ISO time in UTC. previous, version: the champion before, and the version moved to or judged. verdict: None
    for what was not judged. test_groups: of how many test groups the judgement is; 0 where nothing was judged.
    """

    number: Number
    when: str
    who: str
    action: Literal["promote", "rollback", "judge"]
    previous: Number | None
    version: Number
    verdict: Verdict | None
    reason: str
    data_version: str
    git_commit: str
    evidence_sha256: str
    test_groups: Count


class History(Strict):
    """What `tessera history --json` prints. ledger_problems: what is wrong with the ledger; empty where it is whole."""

    domain: str
    verdict: Verdict | None = None
    champion_version: Number | None
    records: tuple[Move, ...]
    ledger_problems: tuple[str, ...]


class HistoryAt(History):
    """What `tessera history --at --json` prints. champion_at: the champion at that moment; None where none was."""

    at: str
    champion_at: Number | None


class RolledBack(History):
    """What `tessera rollback --json` prints."""

    reason: str


class Promotion(History):
    """What `tessera promote --json` and `tessera approve --json` print: the judgement, and the history after it."""

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    challenger_version: Number


class LedgerReport(Strict):
    """What `tessera ledger verify --json` prints. notes: what cannot be proven."""

    domain: str
    records: Count
    problems: tuple[str, ...]
    notes: tuple[str, ...]


class LedgerExport(Strict):
    """What `tessera ledger export --json` prints."""

    domain: str
    records: Count
    file: Path


class Restored(Strict):
    """What `tessera ledger restore --json` prints. found: where the alias was; None where nothing was to be done."""

    domain: str
    champion_version: Number | None
    found: str | None


class Reproduced(Strict):
    """What `tessera reproduce --json` prints.

    differs: the first step at which both trainings differ; None where the weights are the same bits. apart: difference
    of the scores on `images` held-out images, `tolerance` how much is allowed; None where they were not compared.
    scratch: what the second training left; None where it passed. code: `this code` or `its commit`.
    """

    domain: str
    version: Number
    verdict: Literal["PASS", "FAIL"]
    reason: str
    bit_equal: bool
    same_machine: bool
    differs: str | None
    apart: float | None = None
    tolerance: Share | None = None
    images: Count | None = None
    scratch: Path | None
    data_version: Md5
    code: Literal["this code", "its commit"]
