"""Who was champion, when and why: an append-only, hash-chained list in the parameters of one MLflow run per domain.

MLflow accepts one value for a parameter of a run and has no call that alters or deletes it. So a record is its own
compare-and-set: of two processes that would write record 7 the database accepts one, and the other has to judge again.
No lease, clock or lock is trusted for that.

    000001 = {"number": 1, "before": "000...", "action": "promote", "from_version": null, "to_version": 3, ...}

Whoever can write to the database itself can still edit it. Each record names the sha256 of the one before, and a tag of
the registered model that of the last, so `verify.verify_records` finds what was altered, cut off or moved. A chain that
was rewritten as a whole, with the tag, is found only by comparison with an earlier export.
"""

import getpass
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, ValidationError

from components.domain.strict import Strict
from components.errors import ChampionMoved, PromotionError
from components.records.outcomes import Verdict
from components.tracking.pages import NOTE, link_run

EXPERIMENT = "tessera ledgers"  # with a blank, as no domain's name has
#: Tags of the registered model: the run that holds the records, and number and sha256 of the last one that the aliases
#: follow.
LEDGER, SETTLED = "tessera.ledger", "tessera.settled"
#: Tags of a version: the sha256 of its weights, and that of its adapter.json, which stands for the whole adapter.
WEIGHTS_TAG, META_TAG = "tessera.adapter_sha256", "tessera.adapter_json_sha256"
START = "0" * 64
#: MLflow takes 6000 characters for a parameter, and 5000 for a description whatever its own check says.
MOST_CHARACTERS = 5000
#: Leaves a record of any content well below that, also when every character needs an escape.
MOST_REASON = 1500


#: What moved the alias; a `judge` record says what was held back or rejected, and that the test set was evaluated.
MOVES = ("promote", "rollback")
Action = Literal["promote", "rollback", "judge"]


class Record(Strict):
    """One move of the alias `champion`, or one judgement that did not move it.

    from_version: the champion against which it was judged, None where there was none; a record is written only while
    that one serves. test_groups: how many test groups both were judged on; 0 where nothing was judged.
    adapter_json_sha256: of `to_version`, and so of its whole adapter; empty in records from before it was kept.
    number, before, when: given by `append`; a record that is not written yet has none.
    """

    number: int = Field(default=0, ge=0)
    before: str = Field(default=START, pattern=r"^[0-9a-f]{64}$", description="sha256 of the record before this one")
    when: str = ""
    who: str = Field(default_factory=lambda: find_user())
    action: Action
    from_version: int | None
    to_version: int
    verdict: Verdict | Literal[""] = ""
    reason: str
    evidence_sha256: str = ""
    data_version: str = ""
    git_commit: str = ""
    test_groups: int = Field(default=0, ge=0)
    adapter_json_sha256: str = ""


@dataclass(frozen=True)
class Ledger:
    """The records as they are stored, by number, and how far the aliases follow them: one state of both."""

    domain: str
    run_id: str = ""
    texts: Mapping[int, str] = field(default_factory=dict)
    settled: int = 0
    seal: str = ""
    champion: int | None = None
    deleted: bool = False
    page: str = ""

    @property
    def last(self) -> int:
        return max(self.texts, default=0)


def create_ledger(domain: str) -> str:
    """An empty one; returns the id of its run, for the tag that makes it the domain's."""
    import mlflow

    client = mlflow.MlflowClient()
    note = (
        f"Who was champion of `{domain}`, when and why: its parameters are the records, a hash chain. MLflow never lets"
        f" one be changed. `tessera history {domain}` reads them, `tessera ledger verify {domain}` proves them."
    )
    tags = {"tessera.role": "ledger", "tessera.domain": domain, NOTE: note}
    run_id = str(client.create_run(_find_experiment(client), tags=tags, run_name=f"ledger of {domain}").info.run_id)
    client.update_run(run_id, status="FINISHED")
    return run_id


def append(ledger: Ledger, record: Record) -> Record:
    """Write the record that follows the ledger as it was read; returns it with its number, the hash before it and the
    time. A very long reason is cut and ends with …

    Raises ChampionMoved where another process wrote one since.
    """
    number = ledger.last + 1
    written = record.model_copy(
        update={
            "number": number,
            "before": hash_text(ledger.texts[number - 1]) if ledger.texts else START,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "reason": shorten(record.reason, MOST_REASON),
        }
    )
    text = written.model_dump_json()
    _require_short(ledger.domain, text)
    _write_once(ledger, number, text)
    return written


def _write_once(ledger: Ledger, number: int, text: str) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    if ledger.deleted:
        raise PromotionError(
            f"ledger of {ledger.domain}",
            expected="a run of MLflow that takes records",
            found=f"the run {ledger.run_id}, which was deleted",
            hint=f"Restore it in MLflow, or by `mlflow runs restore --run-id {ledger.run_id}`.",
        )
    try:
        mlflow.MlflowClient().log_param(ledger.run_id, f"{number:06d}", text)
    except MlflowException:
        if load_texts(ledger.domain).get(number, text) == text:
            raise
        raise ChampionMoved(
            f"ledger of {ledger.domain}",
            expected=f"{number - 1} records, after which this one was to be written",
            found="more: somebody else was faster",
            hint="Look at what happened (`tessera history`), then give the command again.",
        ) from None


def load_records(domain: str) -> tuple[Record, ...]:
    """All records, oldest first. Raises PromotionError for one that cannot be read."""
    return tuple(parse_record(domain, number, text) for number, text in sorted(load_texts(domain).items()))


def find_champion(records: Sequence[Record], when: datetime) -> Record | None:
    """The move that made the champion of that moment, None before the first."""
    moves = [record for record in records if record.action in MOVES and datetime.fromisoformat(record.when) <= when]
    return moves[-1] if moves else None


def find_last_move(ledger: Ledger) -> int | None:
    """The champion that the ledger ends at; records that cannot be read are passed over."""
    record = find_last_record(ledger)
    return None if record is None else record.to_version


def find_last_record(ledger: Ledger) -> Record | None:
    """The last move; records that cannot be read are passed over, for `verify_records` reports them."""
    return next((record for record in _read_backwards(ledger) if record.action in MOVES), None)


def find_lost_ledger(domain: str) -> str:
    """The run that holds the records of a domain whose registered model was deleted; empty where there is none."""
    import mlflow
    from mlflow.entities import ViewType

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return ""
    wanted = f"tags.`tessera.domain` = '{domain}'"
    runs = client.search_runs([experiment.experiment_id], wanted, run_view_type=ViewType.ALL)
    return next((str(run.info.run_id) for run in runs if run.data.params), "")


def find_served(ledger: Ledger) -> set[int]:
    """Every version that was champion by a record, and the one that is by its alias."""
    moved = {record.to_version for record in _read_backwards(ledger) if record.action in MOVES}
    return moved | ({ledger.champion} if ledger.champion else set())


def find_binding(ledger: Ledger, version: int) -> str:
    """The adapter's hash that the ledger has for a version; empty where no record has one."""
    known = (record.adapter_json_sha256 for record in _read_backwards(ledger) if record.to_version == version)
    return next((found for found in known if found), "")


def _read_backwards(ledger: Ledger) -> Iterator[Record]:
    for number in sorted(ledger.texts, reverse=True):
        with suppress(PromotionError):
            yield parse_record(ledger.domain, number, ledger.texts[number])


def count_evaluations(records: Sequence[Record], pair: tuple[int | None, int], groups: int) -> float:
    """How often these test groups were used to compare two versions, the comparison of `pair` (champion, challenger)
    included: 1 for the first.

    A group never changes its split, so test sets grow: an evaluation on half of the present groups counts half, and
    fresh groups renew the set. Judging one pair again is no new evaluation, and without a champion nothing is compared.
    """
    seen = {
        (record.from_version, record.to_version): record.test_groups
        for record in records
        if record.from_version is not None and record.test_groups
    }
    others = [used for judged, used in seen.items() if judged != pair]
    return 1 + sum(min(1.0, used / max(1, groups)) for used in others)


def load_texts(domain: str) -> Mapping[int, str]:
    """The raw records by number; empty where the domain has no registered model yet."""
    return load_ledger(domain).texts


def load_ledger(domain: str) -> Ledger:
    """The ledger as it is now, an empty one where the domain has no registered model.

    Raises PromotionError where it has one whose records are out of reach.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    model = load_model(domain)
    if model is None:
        return Ledger(domain)
    run_id = model.tags.get(LEDGER, "")
    try:
        run = mlflow.MlflowClient().get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None
    if run is None:
        raise PromotionError(
            f"ledger of {domain}",
            expected=f"a run with its records, which the registered model's tag {LEDGER} names",
            found=f"no run {run_id}" if run_id else "no such tag",
            hint=f"Let it name the run `ledger of {domain}` of MLflow's experiment `{EXPERIMENT}`.",
        )
    number, _, seal = model.tags.get(SETTLED, "").partition(" ")
    champion = model.aliases.get("champion")
    return Ledger(
        domain,
        run_id,
        texts={int(key): text for key, text in run.data.params.items() if key.isdecimal()},
        settled=int(number) if number.isdecimal() else 0,
        seal=seal,
        champion=None if champion is None else int(champion),
        deleted=run.info.lifecycle_stage == "deleted",
        page=link_run(run.info.experiment_id, run_id),
    )


def parse_record(domain: str, number: int, text: str) -> Record:
    """A record out of its stored text. Raises PromotionError for one that `append` did not write."""
    try:
        record = Record.model_validate_json(text)
        missing = sorted({"number", "before", "when", "who"} - record.model_fields_set)
        found = f"one without {', '.join(missing)}" if missing else ""
    except ValidationError as error:
        found = f"{error.error_count()} faults, the first: {error.errors()[0]['msg']}"
    if found:
        raise PromotionError(
            f"ledger of {domain}, record {number}",
            expected="a record as Tessera writes it",
            found=found,
            hint=f"Someone edited MLflow's database: `tessera ledger verify {domain}` reports where.",
        )
    return record


def load_model(domain: str) -> Any:
    """The registered model as it is now, or None; MLflow says "does not exist" with an exception."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.MlflowClient().get_registered_model(domain)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def write_evidence(evidence: Mapping[str, Any]) -> str:
    """Canonical JSON, whose sha256 is a record's `evidence_sha256`."""
    return json.dumps(evidence, sort_keys=True, separators=(",", ":"), allow_nan=False)


def find_user() -> str:
    """Who is at work: TESSERA_USER, as a service would set it, or the login name."""
    if name := os.environ.get("TESSERA_USER"):
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return f"uid {os.getuid()}"


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def is_sha256(text: str) -> bool:
    """Whether a text out of the store may be used as a file name."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _find_experiment(client: Any) -> str:
    from mlflow.exceptions import MlflowException

    note = "One run a domain: the record of every promotion, as parameters. Delete none, for nothing else holds them."
    try:
        return str(client.create_experiment(EXPERIMENT, tags={NOTE: note}))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(client.get_experiment_by_name(EXPERIMENT).experiment_id)


def _require_short(domain: str, text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise PromotionError(
            f"ledger of {domain}",
            expected=f"a record of at most {MOST_CHARACTERS} characters, as the MLflow store allows",
            found=f"{len(text)} characters",
            hint="Shorten TESSERA_USER, the verdict or the reason.",
        )


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
