"""Verifies that the ledger is whole and that it explains the present champion."""

from collections.abc import Sequence

from components.errors import PromotionError
from components.promotion.ledger import (
    META_TAG,
    MOVES,
    SETTLED,
    START,
    WEIGHTS_TAG,
    Ledger,
    Record,
    find_last_move,
    hash_text,
    is_sha256,
    load_ledger,
    parse_record,
)


def verify_records(domain: str, exported: Sequence[str] = ()) -> tuple[str, ...]:
    """What is wrong with the ledger, a sentence each; nothing when it is whole and explains the present champion.

    exported: the lines of an earlier export, which it must still begin with.
    """
    try:
        ledger = load_ledger(domain)
    except PromotionError as error:
        return (str(error),)
    gone = [f"the run {ledger.run_id} that holds the records was deleted: restore it"] if ledger.deleted else []
    numbers = range(1, max(ledger.last, ledger.settled) + 1)
    problems = gone + [f"record {number} is missing" for number in numbers if number not in ledger.texts]
    records: dict[int, Record] = {}
    for number, text in sorted(ledger.texts.items()):
        try:
            records[number] = parse_record(domain, number, text)
        except PromotionError:
            problems.append(f"record {number} is altered: it can no longer be read")
    problems += _check_chain(ledger, records) + _check_moves(records) + _check_champion(ledger)
    problems += _check_bindings(domain, records)
    return (*problems, *_compare_export(ledger, exported))


def _check_chain(ledger: Ledger, records: dict[int, Record]) -> list[str]:
    """An altered record shows in the one after it, or in the tag, which hold the hash of its original text."""
    problems, stored = [], ledger.texts
    for number, record in records.items():
        if record.number != number:
            problems.append(f"record {number} is altered: it calls itself record {record.number}")
        if number == 1 and record.before != START:
            problems.append("record 1 is altered: it is the first and yet names one before it")
        if number - 1 in stored and record.before != hash_text(stored[number - 1]):
            problems.append(f"record {number - 1} is altered: record {number} was written after another text")
    if ledger.settled in stored and hash_text(stored[ledger.settled]) != ledger.seal:
        problems.append(f"record {ledger.settled} is altered: the tag {SETTLED} was written after another text")
    if ledger.settled < ledger.last:
        problems.append(f"the tag {SETTLED} ends before record {ledger.last}: it was edited, or a move is under way")
    return problems


def _compare_export(ledger: Ledger, exported: Sequence[str]) -> list[str]:
    return [
        f"record {number} is not the one that was exported"
        for number, text in enumerate(exported, start=1)
        if ledger.texts.get(number, text) != text
    ]


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


def _check_champion(ledger: Ledger) -> list[str]:
    recorded = find_last_move(ledger)
    if ledger.champion == recorded:
        return []
    return [
        f"the champion is version {ledger.champion or 'none'} but the last record ends at {recorded or 'none'}: newer "
        "records are missing, the alias was moved by hand, or a move was interrupted"
    ]


def _check_bindings(domain: str, records: dict[int, Record]) -> list[str]:
    """The adapter that a version names must be the one that its records name."""
    import mlflow

    problems: list[str] = []
    for found in mlflow.MlflowClient().search_model_versions(f"name = '{domain}'", order_by=["version_number ASC"]):
        version, bound = int(found.version), found.tags.get(META_TAG, "")
        problems += [
            f"the tag {key} of version {version} is {text[:80]!r}, which is no sha256: it was edited"
            for key in (WEIGHTS_TAG, META_TAG)
            if (text := found.tags.get(key, "")) and not is_sha256(text)
        ]
        problems += [
            f"record {number} is of another adapter than version {version} names: adapter.json with sha256 "
            f"{record.adapter_json_sha256[:12]} then, {bound[:12] or 'none'} in the tag {META_TAG} now"
            for number, record in sorted(records.items())
            if record.to_version == version and record.adapter_json_sha256 not in ("", bound)
        ]
    return problems
