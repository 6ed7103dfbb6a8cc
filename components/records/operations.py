"""What the commands on servers and installations print: status, doctor, deploy, down."""

from pathlib import Path
from typing import Literal

from components.domain.strict import Strict
from components.records.fields import Count, ErrorRecord, Number, Seconds, Share
from components.records.licences import Chain
from components.records.outcomes import Score, Verdict


class Check(Strict):
    """One finding of `tessera doctor`; `hint` is empty when there is nothing to fix."""

    name: str
    state: Literal["ok", "warning", "error"]
    found: str
    hint: str = ""


class Diagnosis(Strict):
    """What `tessera doctor --json` prints; ok unless one check is an error."""

    ok: bool
    workspace: Path
    checks: tuple[Check, ...]


Change = Literal["created", "changed", "unchanged", "removed", "unreadable"]


class Deployed(Strict):
    """One thing on the Prefect server, and what deploying did to it."""

    kind: Literal["work pool", "deployment", "automation", "domain"]
    name: str
    change: Change
    note: str = ""


class Deployment(Strict):
    """What `tessera deploy --json` prints."""

    deployed: tuple[Deployed, ...]


class Stopped(Strict):
    """What `tessera down --json` prints; False where nothing was up."""

    stopped: bool


class Drift(Strict):
    """How far new images lie from what a model has seen.

    new: images that were not seen. images: how many of them were looked at. share: of these, what is unlike all that
    was seen; None where it cannot be known. expected: that share without any drift. classes: each one's share among
    what was seen, and among what is new.
    """

    new: Count
    images: Count
    share: Share | None
    expected: Share
    classes: dict[str, tuple[Share, Share]]


class Ended(Strict):
    """A retrain that ended. state: as Prefect names it. when: an ISO time in UTC."""

    state: str
    when: str | None


class Pool(Strict):
    """A work pool of Prefect. retrains: whether retrains themselves wait in it."""

    name: str
    retrains: bool
    paused: bool
    workers_online: tuple[str, ...]


class DomainRow(Strict):
    """One domain in `tessera status`; all but its name and `error` are None where it cannot be read.

    data_version, data_name, files: of the images as they are now. champion_data: the data version of the champion.
    rolled_back_from: the version that was rolled back to reach the champion; None where that was promoted.
    champion_trouble: the alias was moved past the ledger. licences: of all that the champion was made from.
    licences_outside: the links that the domain's gate `licences` would reject. verdict, last_seconds: of the last
    finished retrain. running, next_run: ISO times.
    """

    domain: str
    data_version: str | None = None
    data_name: str | None = None
    files: Count | None = None
    champion_version: Number | None = None
    champion_data: str | None = None
    rolled_back_from: Number | None = None
    champion_trouble: ErrorRecord | None = None
    champion_score: Score | None = None
    licences: Chain = ()
    licences_outside: Chain = ()
    drift: Drift | None = None
    verdict: Verdict | None = None
    last_seconds: Seconds | None = None
    work_pool: str | None = None
    last_run: Ended | None = None
    running: str | None = None
    next_run: str | None = None
    error: ErrorRecord | None = None


class Status(Strict):
    """What `tessera status --json` prints.

    mlflow: the tracking URI, its password hidden. prefect: the server's URL, and why it does not answer; None without
    one.
    """

    workspace: Path
    mlflow: str
    prefect: str | None
    pools: tuple[Pool, ...]
    domains: tuple[DomainRow, ...]
