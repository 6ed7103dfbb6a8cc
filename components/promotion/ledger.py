"""Who was champion, when and why: an append-only, hash-chained list in the registered model's own tags.

It lives beside the aliases it explains, so it travels with the MLflow store and needs no store of its own. Tags can be
edited by whoever may write to MLflow; the chain cannot prevent that but shows it, as each record names the sha256 of
the one before. Cutting off the newest records leaves a whole chain, so the last one must also name the present champion
(`verify_records` checks all three).

    ledger.000001 = {"number": 1, "before": "000...", "action": "promote", "from_version": null, "to_version": 3, ...}
"""

import getpass
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, ValidationError

from components.domain import Strict
from components.errors import PromotionError

PREFIX = "ledger."
START = "0" * 64
#: MLflow 3.17 itself checks 100,000 characters, but its column is VARCHAR(5000) and PostgreSQL means it.
MOST_CHARACTERS = 5000
#: Leaves a record of any content well below that, also when every character needs an escape.
MOST_REASON = 1500


#: What moved the alias; a `judge` record says what was held back or rejected, and that the test set was looked at.
MOVES = ("promote", "rollback")
Action = Literal["promote", "rollback", "judge"]


class Record(Strict):
    """One move of the alias `champion`, or one judgement that did not move it.

    test_groups: how many test groups both were judged on; 0 where nothing was judged.
    """

    number: int = Field(ge=1)
    before: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the record before this one")
    when: str
    who: str
    action: Action
    from_version: int | None
    to_version: int
    verdict: str = ""
    reason: str
    evidence_sha256: str = ""
    data_version: str = ""
    git_commit: str = ""
    test_groups: int = Field(default=0, ge=0)


def append_record(
    domain: str,
    *,
    action: Action,
    from_version: int | None,
    to_version: int,
    reason: str,
    verdict: str = "",
    evidence_sha256: str = "",
    data_version: str = "",
    git_commit: str = "",
    test_groups: int = 0,
    who: str | None = None,
) -> Record:
    """Write the next record; the caller holds the domain's lock. A very long reason is cut and ends with …"""
    import mlflow

    stored = load_texts(domain)
    number = max(stored, default=0) + 1
    record = Record(
        number=number,
        before=_hash(stored[number - 1]) if stored else START,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        who=who or find_user(),
        action=action,
        from_version=from_version,
        to_version=to_version,
        verdict=verdict,
        reason=shorten(reason, MOST_REASON),
        evidence_sha256=evidence_sha256,
        data_version=data_version,
        git_commit=git_commit,
        test_groups=test_groups,
    )
    text = record.model_dump_json()
    _require_short(domain, text)
    mlflow.MlflowClient().set_registered_model_tag(domain, f"{PREFIX}{number:06d}", text)
    return record


def load_records(domain: str) -> tuple[Record, ...]:
    """All records, oldest first. Raises PromotionError for one that cannot be read."""
    return tuple(parse_record(domain, number, text) for number, text in sorted(load_texts(domain).items()))


def find_champion(records: Sequence[Record], when: datetime) -> Record | None:
    """The move that made the champion of that moment, None before the first."""
    moves = [record for record in records if record.action in MOVES and datetime.fromisoformat(record.when) <= when]
    return moves[-1] if moves else None


def count_looks(records: Sequence[Record], pair: tuple[int | None, int], groups: int) -> float:
    """How often these test groups were looked at to compare two versions, the look at `pair` (champion, challenger)
    included: 1 for the first.

    A group never changes its side, so test sets grow: a look at half of the present groups counts half, and fresh
    groups renew the set. Judging one pair again is no new look, and without a champion nothing is compared.
    """
    seen = {
        (record.from_version, record.to_version): record.test_groups
        for record in records
        if record.from_version is not None and record.test_groups
    }
    others = [looked for judged, looked in seen.items() if judged != pair]
    return 1 + sum(min(1.0, looked / max(1, groups)) for looked in others)


def verify_records(domain: str) -> tuple[str, ...]:
    """What is wrong with the ledger, a sentence each; nothing when it is whole and explains the present champion."""
    stored = load_texts(domain)
    problems = [
        f"record {number} is missing" for number in range(1, max(stored, default=0) + 1) if number not in stored
    ]
    records: dict[int, Record] = {}
    for number, text in sorted(stored.items()):
        try:
            records[number] = parse_record(domain, number, text)
        except PromotionError:
            problems.append(f"record {number} is altered: it can no longer be read")
    problems += _check_chain(stored, records) + _check_moves(records)
    return (*problems, *_check_champion(domain, records))


def load_texts(domain: str) -> dict[int, str]:
    """The raw records by number; empty where the domain has no registered model yet."""
    return {
        int(key.removeprefix(PREFIX)): value
        for key, value in _load_model_tags(domain).items()
        if key.startswith(PREFIX) and key.removeprefix(PREFIX).isdecimal()
    }


def parse_record(domain: str, number: int, text: str) -> Record:
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        raise PromotionError(
            f"ledger of {domain}, record {number}",
            expected="a record as Tessera writes it",
            found=f"{error.error_count()} faults, the first: {error.errors()[0]['msg']}",
            mend=f"Someone edited the model's tags: look at {PREFIX}{number:06d} of {domain} in MLflow.",
        ) from None


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


def hash_evidence(evidence: Mapping[str, Any]) -> str:
    """sha256 over canonical JSON, for `evidence_sha256`."""
    return _hash(json.dumps(evidence, sort_keys=True, separators=(",", ":"), allow_nan=False))


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


def _check_chain(stored: dict[int, str], records: dict[int, Record]) -> list[str]:
    """An altered record is told by the one after it, which holds the hash of what was there before."""
    problems = []
    for number, record in records.items():
        if record.number != number:
            problems.append(f"record {number} is altered: it calls itself record {record.number}")
        if number == 1 and record.before != START:
            problems.append("record 1 is altered: it is the first and yet names one before it")
        if number - 1 in stored and record.before != _hash(stored[number - 1]):
            problems.append(f"record {number - 1} is altered: record {number} was written after another text")
    return problems


def _check_moves(records: dict[int, Record]) -> list[str]:
    """Every record starts from the champion that the one before it left."""
    problems, before, champion = [], 0, None
    for number, record in sorted(records.items()):
        if 0 < before == number - 1 and record.from_version != champion:
            problems.append(
                f"between records {before} and {number} the champion went from version {champion} to "
                f"{record.from_version} without a record: it was moved by hand, or a move was interrupted"
            )
        before, champion = number, record.to_version if record.action in MOVES else record.from_version
    return problems


def _check_champion(domain: str, records: dict[int, Record]) -> list[str]:
    champion = _load_champion(domain)
    moves = [number for number, record in records.items() if record.action in MOVES]
    recorded = records[max(moves)].to_version if moves else None
    if champion == recorded:
        return []
    return [
        f"the champion is version {champion or 'none'} but the last record ends at {recorded or 'none'}: newer records "
        "are missing, the alias was moved by hand, or a move was interrupted"
    ]


def _load_model_tags(domain: str) -> dict[str, str]:
    model = load_model(domain)
    return dict(model.tags) if model is not None else {}


def _load_champion(domain: str) -> int | None:
    model = load_model(domain)
    version = model.aliases.get("champion") if model is not None else None
    return None if version is None else int(version)


def _require_short(domain: str, text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise PromotionError(
            f"ledger of {domain}",
            expected=f"a record of at most {MOST_CHARACTERS} characters, as the MLflow store allows",
            found=f"{len(text)} characters",
            mend="Shorten TESSERA_USER, the verdict or the reason.",
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
