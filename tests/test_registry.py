"""Against a real MLflow store (SQLite): one a module, since making its schema takes seconds, and a model a test."""

import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tiny import promote

from components.errors import PromotionError
from components.promotion import aliases, contest, ledger, verify
from components.promotion.aliases import register_challenger
from components.promotion.contest import rollback
from components.promotion.ledger import Record
from components.promotion.versions import CHALLENGER, CHAMPION, PREVIOUS, load_version
from components.workspace import Workspace

Register = Callable[..., int]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def workspace(mlflow_workspace: Workspace) -> Workspace:
    return mlflow_workspace


@pytest.fixture
def domain() -> str:
    return f"domain{next(NUMBERS)}"


@pytest.fixture
def register(domain: str, tmp_path: Path) -> Register:
    def register_one(**facts: str) -> int:
        known = {"adapter_sha256": "a" * 64, "tuner": "vapt", "data_version": "d41d8cd98f00b204e9800998ecf8427e.dir"}
        return register_challenger(domain, "", tmp_path.as_uri(), **{**known, **facts})

    return register_one


def edit(workspace: Workspace, domain: str, number: int, text: str | None) -> None:
    """As only somebody with the database in hand can: MLflow itself offers no way."""
    run_id, key = ledger.load_ledger(domain).run_id, f"{number:06d}"
    with closing(sqlite3.connect(workspace.state / "mlflow" / "mlflow.db")) as store, store:
        store.execute("DELETE FROM params WHERE run_uuid = ? AND key = ?", (run_id, key))
        if text is not None:
            store.execute("INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)", (run_id, key, text))


def test_registering_numbers_the_versions_and_moves_challenger(
    workspace: Workspace, domain: str, register: Register
) -> None:
    assert load_version(domain, CHALLENGER) is None
    assert [register(), register(tuner="linear", git_commit="c0ffee")] == [1, 2]
    version = load_version(domain, CHALLENGER)
    assert version is not None
    assert (version.version, version.tuner, version.git_commit) == (2, "linear", "c0ffee")
    assert version.aliases == ("challenger",)
    assert load_version(domain, 1) is not None
    assert load_version(domain, 3) is None
    assert load_version(domain, CHAMPION) is None


def test_promotion_moves_the_aliases_and_leaves_a_record(workspace: Workspace, domain: str, register: Register) -> None:
    first, second = register(), register()
    promote(workspace, domain, first, expected=None, reason="First champion: floors only.")
    champion = promote(
        workspace, domain, second, expected=first, reason="surely better", evidence_sha256="e" * 64, who="ada"
    )
    assert champion.version == second
    assert champion.aliases == ("challenger", "champion")
    previous = load_version(domain, PREVIOUS)
    assert previous is not None
    assert previous.version == first
    one, two = ledger.load_records(domain)
    assert (one.from_version, one.to_version, two.from_version, two.to_version) == (None, 1, 1, 2)
    assert (two.who, two.action, two.verdict, two.evidence_sha256) == ("ada", "promote", "PROMOTE", "e" * 64)
    assert two.data_version == champion.data_version
    assert (one.test_groups, two.test_groups) == (0, 0)  # nothing was judged
    assert verify.verify_records(domain) == ()


def test_previous_is_set_before_champion(
    workspace: Workspace, domain: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies between the two leaves a champion that works: the old one."""
    import mlflow

    for version, before in ((register(), None), (register(), 1)):
        promote(workspace, domain, version, expected=before, reason="better")
    moved, move = [], mlflow.MlflowClient.set_registered_model_alias

    def note(client: mlflow.MlflowClient, name: str, alias: str, version: str) -> None:
        moved.append((alias, version))
        move(client, name, alias, version)

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", note)
    promote(workspace, domain, register(), expected=2, reason="better")
    rollback(workspace, domain, "worse in use")
    moves = [("challenger", "3"), ("previous", "2"), ("champion", "3"), ("previous", "3"), ("champion", "2")]
    assert moved == moves
    assert ledger.load_records(domain)[-1].test_groups == 0  # a rollback judges nothing


def test_the_models_page_says_what_serves_and_why(workspace: Workspace, domain: str, register: Register) -> None:
    import mlflow

    first, second = register(), register()
    promote(workspace, domain, first, expected=None, reason="first", who="ada")
    promote(workspace, domain, second, expected=first, reason="better | by far\nand away " * 40)
    contest.describe_model(domain)
    page = mlflow.MlflowClient().get_registered_model(domain).description
    assert "**Champion: version 2.**" in page
    newest, oldest = [line for line in page.splitlines() if line.startswith("- 2")]
    assert "**promoted version 2 in place of version 1**. better | by far and away" in newest
    assert oldest.endswith(" UTC, ada: **promoted version 1 in place of no champion**. first")
    judge(workspace, domain, 1, 2, 40)
    rollback(workspace, domain, "worse in use")
    contest.describe_model(domain)
    told = [
        line for line in mlflow.MlflowClient().get_registered_model(domain).description.splitlines() if "**" in line
    ]
    assert "**went back to version 1 from version 2**. worse in use" in told[1]
    assert "**HOLD for version 1 against version 2**" in told[2]


def test_the_list_of_experiments_says_what_serves(workspace: Workspace, domain: str, register: Register) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.create_experiment(domain)
    promote(workspace, domain, register(), expected=None, reason="first")
    contest.describe_model(domain)
    assert client.get_experiment(experiment).tags["champion"] == "version 1"
    page = client.get_registered_model(domain).description
    assert f"(#/experiments/{experiment}/runs?viewStateShareKey=candidates&" in page


def test_a_stale_expectation_is_refused(workspace: Workspace, domain: str, register: Register) -> None:
    first, second, third = register(), register(), register()
    promote(workspace, domain, second, expected=None, reason="first")
    for stale in (None, first):
        with pytest.raises(PromotionError, match="champion version 2: somebody else moved it"):
            promote(workspace, domain, third, expected=stale, reason="judged against another")
    assert len(ledger.load_records(domain)) == 1


def test_saying_it_twice_is_one_promotion(workspace: Workspace, domain: str, register: Register) -> None:
    first = register()
    for _ in range(2):
        assert promote(workspace, domain, first, expected=None, reason="first").version == first
    assert len(ledger.load_records(domain)) == 1


def test_a_version_that_does_not_exist(workspace: Workspace, domain: str, register: Register) -> None:
    register()
    with pytest.raises(PromotionError, match=f"{domain} version 7: expected a registered version"):
        promote(workspace, domain, 7, expected=None, reason="")


def test_rollback_goes_back_and_forth(workspace: Workspace, domain: str, register: Register) -> None:
    first, second = register(), register()
    promote(workspace, domain, first, expected=None, reason="first")
    with pytest.raises(PromotionError, match="champion version 1, previous none"):
        rollback(workspace, domain, "too early")
    promote(workspace, domain, second, expected=first, reason="better")
    assert rollback(workspace, domain, "false alarms on line 3", who="ada").version == first
    assert rollback(workspace, domain, "it was the lamp").version == second
    records = ledger.load_records(domain)
    assert [(r.action, r.from_version, r.to_version) for r in records[2:]] == [("rollback", 2, 1), ("rollback", 1, 2)]
    assert records[2].reason == "false alarms on line 3"
    assert verify.verify_records(domain) == ()


@pytest.mark.parametrize("field", ["number", "before", "when", "who"])
def test_a_stored_record_without_what_the_ledger_adds_is_none(field: str) -> None:
    facts = {"number": 1, "when": "2026-11-24T15:30:00+00:00", "before": ledger.START, "who": "ada"}
    rest = {"action": "promote", "from_version": None, "to_version": 1, "reason": "first"}
    assert ledger.parse_record("parts", 1, json.dumps(facts | rest)).who == "ada"
    with pytest.raises(PromotionError, match=f"found one without {field}"):
        ledger.parse_record("parts", 1, json.dumps({key: facts[key] for key in facts if key != field} | rest))


def test_rollback_of_a_domain_without_a_model(workspace: Workspace, domain: str) -> None:
    with pytest.raises(PromotionError, match="champion none, previous none"):
        rollback(workspace, domain, "nothing there")
    assert ledger.load_records(domain) == ()
    assert verify.verify_records(domain) == ()


def test_eight_threads_never_lose_an_update(workspace: Workspace, domain: str, register: Register) -> None:
    versions = [register() for _ in range(9)]
    promote(workspace, domain, versions[0], expected=None, reason="first")

    def attempt(version: int) -> bool:
        champion = load_version(domain, CHAMPION)
        assert champion is not None
        try:
            promote(workspace, domain, version, expected=champion.version, reason=f"judged: {champion.version}")
        except PromotionError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, versions[1:]))
    records = ledger.load_records(domain)
    assert sum(won) == len(records) - 1 >= 1
    assert {record.to_version for record in records[1:]} == {v for v, w in zip(versions[1:], won, strict=True) if w}
    assert all(record.reason == f"judged: {record.from_version}" for record in records[1:])
    assert verify.verify_records(domain) == ()


def test_threads_against_one_champion_have_one_winner(workspace: Workspace, domain: str, register: Register) -> None:
    versions = [register() for _ in range(8)]

    def attempt(version: int) -> bool:
        try:
            promote(workspace, domain, version, expected=None, reason="first")
        except PromotionError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, versions)) == 1
    assert len(ledger.load_records(domain)) == 1


@pytest.mark.slow
def test_processes_never_lose_an_update(workspace: Workspace, domain: str, register: Register) -> None:
    versions = [register() for _ in range(4)]
    code = (
        "import sys\nfrom pathlib import Path\nfrom components.tracking.store import Store\n"
        "from components.errors import *\nfrom components.promotion.contest import settle\n"
        "from components.promotion.ledger import Record\nfrom components.workspace import Workspace\n"
        "place = Workspace(Path(sys.argv[1])); Store.open(place); sys.stdin.readline()\n"
        "record = Record(action='promote', from_version=None, to_version=int(sys.argv[3]), reason='first')\n"
        "try: settle(place, sys.argv[2], record)\n"
        "except PromotionError: sys.exit(3)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(workspace.root), domain, str(v)], stdin=subprocess.PIPE)
        for v in versions
    ]
    for process in started:
        process.communicate(b"go\n")
    assert sorted(process.returncode for process in started) == [0, 3, 3, 3]
    assert verify.verify_records(domain) == ()


def test_registering_from_threads(workspace: Workspace, register: Register) -> None:
    """Model, version and alias are all new: MLflow's own unique constraints are met and survived."""
    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(lambda _: register(), range(6))) == [1, 2, 3, 4, 5, 6]


def promote_three(workspace: Workspace, domain: str, register: Register) -> None:
    expected = None
    for version in (register(), register(), register()):
        promote(workspace, domain, version, expected=expected, reason="better")
        expected = version


def test_an_altered_record_is_found(workspace: Workspace, domain: str, register: Register) -> None:
    promote_three(workspace, domain, register)
    for number, told in ((2, "record 3 was written"), (3, "the tag tessera.settled was written")):
        text = ledger.load_texts(domain)[number]
        edit(workspace, domain, number, text.replace("better", "bribed"))
        assert verify.verify_records(domain) == (f"record {number} is altered: {told} after another text",)
        edit(workspace, domain, number, text)
    assert verify.verify_records(domain) == ()
    edit(workspace, domain, 2, "not JSON")
    contest.describe_model(domain)  # says so, and does not fail
    assert "record 2 is altered: it can no longer be read" in verify.verify_records(domain)
    with pytest.raises(PromotionError, match="record 2"):
        ledger.load_records(domain)
    assert rollback(workspace, domain, "all the same").version == 2


def test_a_missing_record_is_found(workspace: Workspace, domain: str, register: Register) -> None:
    promote_three(workspace, domain, register)
    judge(workspace, domain, 1, 3, 40)
    third, fourth = (ledger.load_texts(domain)[number] for number in (3, 4))
    edit(workspace, domain, 4, None)  # it moved nothing, and is missed all the same
    assert verify.verify_records(domain) == ("record 4 is missing",)
    edit(workspace, domain, 4, fourth)
    edit(workspace, domain, 2, None)
    assert verify.verify_records(domain) == ("record 2 is missing",)
    edit(workspace, domain, 2, third)
    edit(workspace, domain, 3, ledger.load_texts(domain)[1])
    problems = verify.verify_records(domain)
    assert "record 2 is altered: it calls itself record 3" in problems
    assert "record 3 is altered: it calls itself record 1" in problems


def test_a_chain_written_anew_is_found_by_an_earlier_export(
    workspace: Workspace, domain: str, register: Register
) -> None:
    import mlflow

    promote_three(workspace, domain, register)
    exported = [text for _, text in sorted(ledger.load_texts(domain).items())]
    judge(workspace, domain, 1, 3, 40)
    assert verify.verify_records(domain, exported) == ()
    before = ledger.START
    for record in ledger.load_records(domain):
        text = record.model_copy(update={"before": before, "who": "eve"}).model_dump_json()
        edit(workspace, domain, record.number, text)
        before = ledger.hash_text(text)
    mlflow.MlflowClient().set_registered_model_tag(domain, ledger.SETTLED, f"4 {before}")
    assert verify.verify_records(domain) == ()
    told = tuple(f"record {number} is not the one that was exported" for number in (1, 2, 3))
    assert verify.verify_records(domain, exported) == told


def test_mlflow_itself_neither_alters_nor_deletes_a_record(
    workspace: Workspace, domain: str, register: Register
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    promote_three(workspace, domain, register)
    run_id = ledger.load_ledger(domain).run_id
    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        mlflow.MlflowClient().log_param(run_id, "000002", "bribed")
    mlflow.MlflowClient().delete_run(run_id)  # until `mlflow gc` it is all there
    assert verify.verify_records(domain) == (f"the run {run_id} that holds the records was deleted: restore it",)
    with pytest.raises(PromotionError, match=f"mlflow runs restore --run-id {run_id}"):
        rollback(workspace, domain, "where nothing can be recorded nothing moves")
    assert getattr(load_version(domain, CHAMPION), "version", None) == 3
    mlflow.MlflowClient().delete_registered_model_tag(domain, ledger.LEDGER)
    (problem,) = verify.verify_records(domain)
    assert "found no such tag" in problem


def test_a_model_made_by_hand_gets_a_ledger(workspace: Workspace, domain: str, register: Register) -> None:
    import mlflow

    mlflow.MlflowClient().create_registered_model(domain)
    promote_three(workspace, domain, register)
    assert verify.verify_records(domain) == ()


def test_an_alias_moved_by_hand_is_found(workspace: Workspace, domain: str, register: Register) -> None:
    import mlflow

    promote_three(workspace, domain, register)
    mlflow.MlflowClient().set_registered_model_alias(domain, "champion", "1")
    (problem,) = verify.verify_records(domain)
    assert "the champion is version 1 but the last record ends at 3" in problem
    promote(workspace, domain, 2, expected=1, reason="goes on from there")
    (problem,) = verify.verify_records(domain)
    assert "between records 3 and 4 the champion went from version 3 to 1 without a record" in problem


def test_a_long_reason_is_cut_and_fits_the_store(workspace: Workspace, domain: str, register: Register) -> None:
    promote(workspace, domain, register(), expected=None, reason='"\n' * 5000, who="ü" * 200)
    (record,) = ledger.load_records(domain)
    assert len(record.reason) == ledger.MOST_REASON
    assert record.reason.endswith("…")
    assert len(ledger.load_texts(domain)[1]) <= ledger.MOST_CHARACTERS
    assert verify.verify_records(domain) == ()


def test_a_record_that_cannot_fit_is_refused_before_anything_moves(
    workspace: Workspace, domain: str, register: Register
) -> None:
    with pytest.raises(PromotionError, match="at most 5000 characters"):
        promote(workspace, domain, register(), expected=None, reason="", who="x" * 6000)
    assert load_version(domain, CHAMPION) is None


def test_the_evidence_hash_ignores_the_order_of_keys() -> None:
    assert ledger.write_evidence({"a": 1, "b": [2]}) == ledger.write_evidence({"b": [2], "a": 1})
    assert ledger.write_evidence({"a": 1}) != ledger.write_evidence({"a": 2})


def test_who_is_the_user_or_what_the_service_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_USER", "nightly")
    assert ledger.find_user() == "nightly"
    monkeypatch.delenv("TESSERA_USER")
    monkeypatch.setattr(ledger.getpass, "getuser", lambda: (_ for _ in ()).throw(KeyError("uid not found")))
    assert ledger.find_user() == f"uid {os.getuid()}"


def test_records_are_readable_json(workspace: Workspace, domain: str, register: Register) -> None:
    promote(workspace, domain, register(), expected=None, reason="first")
    record = json.loads(ledger.load_texts(domain)[1])
    assert record["reason"] == "first"
    assert record["before"] == ledger.START


def test_a_lock_that_is_held_is_reported(workspace: Workspace, domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(aliases, "LOCK_SECONDS", 0.1)
    path = workspace.state / "locks" / f"{domain}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(path),
        pytest.raises(PromotionError, match="no other promotion"),
        aliases.lock_domain(workspace, domain),
    ):
        pass


def judge(workspace: Workspace, domain: str, version: int, expected: int | None, groups: int, sha: str = "e") -> None:
    facts = {"reason": "undecided", "verdict": "HOLD", "test_groups": groups, "evidence_sha256": sha * 64}
    contest.settle(workspace, domain, Record(action="judge", from_version=expected, to_version=version, **facts))


def test_a_judgement_is_recorded_once_and_moves_nothing(workspace: Workspace, domain: str, register: Register) -> None:
    first, second, third = register(), register(), register()
    promote(workspace, domain, first, expected=None, reason="first", test_groups=40)
    judge(workspace, domain, second, first, 40)
    judge(workspace, domain, second, first, 40)
    promote(workspace, domain, third, expected=first, reason="better", test_groups=40)
    records = ledger.load_records(domain)
    assert [(record.action, record.to_version) for record in records] == [("promote", 1), ("judge", 2), ("promote", 3)]
    assert verify.verify_records(domain) == ()
    assert rollback(workspace, domain, "back").version == first
    assert verify.verify_records(domain) == ()
    with pytest.raises(PromotionError, match="somebody else moved it"):
        judge(workspace, domain, second, third, 40, sha="f")


def test_evaluations_are_counted_by_pair_and_by_share_of_the_groups() -> None:
    def judged(number: int, champion: int | None, challenger: int, groups: int) -> ledger.Record:
        facts = {"when": "2026-01-01T00:00:00+00:00", "who": "ada", "action": "judge", "reason": ""}
        pair = {"from_version": champion, "to_version": challenger, "test_groups": groups}
        return ledger.Record(number=number, before=ledger.START, **facts, **pair)

    records = [judged(1, None, 1, 40), judged(2, 1, 2, 40), judged(3, 1, 2, 40), judged(4, 1, 3, 80)]
    assert ledger.count_evaluations([], (None, 1), 40) == 1
    assert ledger.count_evaluations(records, (1, 4), 80) == 2.5
    assert ledger.count_evaluations(records, (1, 3), 80) == 1.5
    assert ledger.count_evaluations(records, (1, 4), 40) == 3


def write_ledger(*moves: tuple[str, int | None, int, str], champion: int | None = None) -> ledger.Ledger:
    """In memory: action, from and to which version, and the adapter's hash, the oldest first."""
    facts = {"when": "2026-01-01T00:00:00+00:00", "who": "ada", "reason": "", "before": ledger.START}
    texts = {
        number: ledger.Record(
            number=number, action=action, from_version=before, to_version=after, adapter_json_sha256=sha, **facts
        ).model_dump_json()
        for number, (action, before, after, sha) in enumerate(moves, 1)
    }
    return ledger.Ledger("tiles", texts=texts, champion=champion)


def test_what_a_ledger_says_of_its_versions() -> None:
    moves = [
        ("promote", None, 1, "a"),
        ("judge", 1, 2, ""),
        ("promote", 1, 3, "c"),
        ("judge", 3, 1, ""),
        ("judge", 3, 4, "d"),
    ]
    found = write_ledger(*moves, champion=5)
    assert found.last == 5
    assert ledger.find_served(found) == {1, 3, 5}
    assert ledger.find_served(write_ledger(*moves)) == {1, 3}
    assert [ledger.find_binding(found, version) for version in (1, 2, 3, 4, 5)] == ["a", "", "c", "d", ""]
    assert ledger.find_last_move(found) == 3
    assert ledger.find_last_move(write_ledger(("judge", None, 1, ""))) is None
    damaged = replace(found, texts={**found.texts, 3: "{}"})
    assert ledger.find_last_move(damaged) == 1
    assert ledger.find_last_move(ledger.Ledger("tiles")) is None
    assert ledger.Ledger("tiles").last == 0


def test_the_champion_of_the_very_second_of_a_move_is_the_new_one() -> None:
    records = [ledger.parse_record("tiles", 1, write_ledger(("promote", None, 1, "")).texts[1])]
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert ledger.find_champion(records, moment) == records[0]
    assert ledger.find_champion(records, moment - timedelta(seconds=1)) is None


def test_texts_are_cut_and_hashes_known() -> None:
    assert [ledger.shorten(text, 3) for text in ("", "abc", "abcd")] == ["", "abc", "ab…"]
    assert [ledger.is_sha256(text) for text in ("a" * 64, "a" * 63, "a" * 65, "g" * 64, "A" * 64)] == [True] + [
        False
    ] * 4
    assert ledger.count_evaluations([], (None, 1), 0) == 1


def test_who_was_champion_then(workspace: Workspace, domain: str, register: Register) -> None:
    first, second = register(), register()
    promote(workspace, domain, first, expected=None, reason="first")
    between = datetime.now(UTC)
    time.sleep(1.1)  # records tell time in seconds
    promote(workspace, domain, second, expected=first, reason="better")
    records = ledger.load_records(domain)
    found = [ledger.find_champion(records, when) for when in (between - timedelta(days=1), between, datetime.now(UTC))]
    assert [record and record.to_version for record in found] == [None, first, second]
