"""Retrains in a team's installation: real servers with logins, images on S3, workers in workspaces of their own."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DOMAIN, TINY, Answer
from servers import SECRETS, Team, answers, find_postgres, find_processes, start_team, wait_until

from components.records.jobs import Job, load_result
from components.records.operations import Deployment, Status
from components.records.outcomes import Outcome
from components.workspace import Workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_postgres() is None, reason="no PostgreSQL here: apt-get install postgresql"),
]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Team]:
    with start_team(tmp_path_factory.mktemp("team"), images) as found:
        yield found


@pytest.fixture(scope="module")
def deployed(team: Team) -> Answer:
    return team.tessera("deploy")


@pytest.fixture(scope="module")
def worker(team: Team, deployed: Answer) -> Path:
    place = team.clone("worker")
    team.start_worker("worker", "gpu", place)
    return place


@pytest.fixture(scope="module")
def retrained(team: Team, worker: Path) -> Answer:
    return team.tessera("retrain", DOMAIN)


def test_deploying_reports_what_it_did_and_does_it_once(team: Team, deployed: Answer) -> None:
    assert deployed.code == 0, deployed.stderr
    deployed.read(Deployment)
    assert _changes(deployed) == {
        "tessera": "created",
        "gpu": "created",
        f"retrain/{DOMAIN}": "created",
        f"promote/{DOMAIN}": "created",
        f"reproduce/{DOMAIN}": "created",
        "run_order/gpu": "created",
        "tessera: runs that went silent": "created",
    }
    assert set(_changes(team.tessera("deploy")).values()) == {"unchanged"}


def test_a_domain_that_cannot_be_read_removes_nothing(team: Team, deployed: Answer) -> None:
    """Its deployments stay as they are, for nobody asked for their end, and its row says why."""
    file = team.head / "data" / DOMAIN / "domain.yaml"
    whole = file.read_text()
    file.write_text(whole + "trainig: {}\n")
    try:
        answer = team.tessera("deploy")
    finally:
        file.write_text(whole)
    assert answer.code == 1
    answer.read(Deployment)
    changes = _changes(answer)
    assert changes.pop(DOMAIN) == "unreadable"
    assert set(changes.values()) == {"unchanged"}
    assert set(_changes(team.tessera("deploy")).values()) == {"unchanged"}


def _changes(answer: Answer) -> dict[str, str]:
    return {row["name"]: row["change"] for row in answer.outcome["deployed"]}


def test_a_worker_elsewhere_trains_the_same_bits(team: Team, worker: Path, retrained: Answer) -> None:
    """The images come by hash from the remote, the manifest and the results go through MLflow."""
    assert retrained.code == 0, retrained.stderr
    retrained.read(Outcome)
    assert retrained.outcome["verdict"] == "PROMOTE"
    runs = team.runs("run_order")
    assert sorted(run["name"] for run in runs) == [f"train {DOMAIN} linear-s0", f"train {DOMAIN} vpt-deep-s0"]
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    shown = {(item["flow_run_id"], item["key"]) for item in team.ask("artifacts/filter")}
    for run in runs:
        assert (run["id"], f"mlflow-{DOMAIN}-{run['parameters']['order']['name']}") in shown
    assert list((worker / ".tessera" / "work").glob(f"{DOMAIN}-*/data/{DOMAIN}/raw/images/*.jpg"))
    assert not (worker / "data").exists()
    for row in retrained.outcome["candidates"]:
        assert _train_here(team, f"{row['tuner']}-s{row['seed']}") == row["adapter_sha256"]


def _train_here(team: Team, name: str) -> str:
    """Hash of the adapter that this process makes of the head's own images."""
    from components.training.run import do_job

    (place,) = (team.head / ".tessera" / "runs" / DOMAIN).glob(f"*/{name}")
    (order,) = (team.root / "worker" / ".tessera" / "work").glob(f"*/.tessera/runs/{DOMAIN}/*/{name}/job.json")
    head = Workspace(team.head)
    moved = {"raw": head.raw(DOMAIN), "manifest": head.derived(DOMAIN) / "manifest.parquet"}
    moved |= {"folder": team.root / "here" / name, "cache": head.cache}
    do_job(Job.model_validate_json(order.read_text()).model_copy(update=moved), lambda event, **facts: None)
    result = load_result(moved["folder"])
    assert result is not None
    assert load_result(place) is not None
    return result.adapter_sha256


def test_a_named_version_and_a_clock_start_retrains(team: Team, retrained: Answer) -> None:
    """An event gives one run, an interval many; all are done by the one worker, the answer being known, in seconds.

    What was late is caught up with, one after the other; a schedule that is taken out leaves no run behind.
    """
    _change(team, schedule={"interval_hours": 8 / 3600, "on_version": True})
    changes = _changes(team.tessera("deploy"))
    assert (changes[f"retrain/{DOMAIN}"], changes["run_order/gpu"]) == ("changed", "unchanged")
    assert changes[f"tessera: retrain {DOMAIN} on a new data version"] == "created"
    assert team.tessera("version", DOMAIN).outcome["status"] == "named"
    found = wait_until(lambda: [run for run in _retrains(team) if not run["auto_scheduled"]], 60, "the event's run")
    assert len(found) == 1
    wait_until(lambda: len(_late(team)) >= 2, 120, "late runs")
    wait_until(lambda: "late runs on pool tessera, which has 0 workers" in _ask_doctor(team), 120, "doctor's word")
    team.start_worker("retrainer", "tessera", team.head)
    done = wait_until(
        lambda: len(runs := [run for run in _retrains(team) if run["state_type"] == "COMPLETED"]) >= 3 and runs,
        300,
        "three retrains",
    )
    assert not {run["state_type"] for run in _retrains(team)} & {"FAILED", "CRASHED"}
    assert any(run["auto_scheduled"] for run in done)
    assert len(team.runs("run_order")) == len(retrained.outcome["candidates"])  # nothing was trained again
    _change(team)
    changes = _changes(team.tessera("deploy"))
    assert (changes[f"retrain/{DOMAIN}"], changes[f"tessera: retrain {DOMAIN} on a new data version"]) == (
        "changed",
        "removed",
    )
    assert not [run for run in _retrains(team) if run["state_type"] == "SCHEDULED"]
    status = team.tessera("status")
    status.read(Status)
    (row,) = status.outcome["domains"]
    assert (row["data_name"], row["champion_version"], row["verdict"]) == (f"{DOMAIN}@v1", 1, "PROMOTE")
    assert row["last_run"]["state"] == "Completed"
    assert {pool["name"]: pool["workers_online"] for pool in status.outcome["pools"]} == {
        "gpu": ["worker"],
        "tessera": ["retrainer"],
    }


def _change(team: Team, **changes: Any) -> None:
    file = team.head / "data" / DOMAIN / "domain.yaml"
    file.write_text(yaml.safe_dump(TINY | {"work_pool": "gpu"} | changes, sort_keys=False))


def _retrains(team: Team) -> list[dict[str, Any]]:
    """Those that the server started; one from the command line has no deployment."""
    return [run for run in team.runs("retrain") if run["deployment_id"]]


def _late(team: Team) -> list[dict[str, Any]]:
    return [run for run in _retrains(team) if run["state_name"] == "Late"]


def _ask_doctor(team: Team) -> str:
    return next(check["found"] for check in team.tessera("doctor").outcome["checks"] if check["name"] == "prefect")


def ends(team: Team, before: set[str]) -> list[str]:
    return sorted(state for run, state in team.states().items() if run not in before)


@pytest.mark.timeout(1200)
@pytest.mark.skipif("TESSERA_FAULTS" not in os.environ, reason="minutes of waiting: set TESSERA_FAULTS=1")
def test_killed_worker_and_restarted_server_cost_time_and_nothing_else(team: Team, retrained: Answer) -> None:
    """Worker, flow run and training killed outright at once, and the Prefect server restarted meanwhile: the run is
    called crashed within two minutes, the order is sent again, and a new worker goes on from the checkpoint."""
    before = {run["id"] for run in team.runs("run_order")}
    with team.retraining("candidates=[{kind: vpt, num_prompts: 2}]", "training.epochs=100") as retrain:
        worker = team.root / "worker"
        wait_until(lambda: list(worker.rglob("checkpoint.safetensors")), 240, "a checkpoint")
        (lost,) = {run["id"] for run in team.runs("run_order")} - before
        killed = time.monotonic()
        for name in ("prefect", "worker"):
            team.kill(name)
        for pid in find_processes("prefect.engine", worker) + find_processes("components.training", worker):
            with suppress(ProcessLookupError):  # a fork goes with the process that forked it
                os.kill(pid, signal.SIGKILL)
        for name in ("prefect", "worker"):
            team.again[name]()
        wait_until(lambda: answers(f"{team.prefect}/health"), 120, "Prefect again")
        wait_until(lambda: team.states()[lost] == "CRASHED", 180, "the lost run's end")
        waited = time.monotonic() - killed
        code = retrain.wait(400)
    assert code in (0, 1), (team.root / "retrain.log").read_text()[-3000:]
    assert ends(team, before) == ["COMPLETED", "CRASHED"]
    assert waited < 180
    for place in (team.head, worker):
        assert not find_processes("components.training", place)


@pytest.mark.timeout(1200)
@pytest.mark.skipif("TESSERA_FAULTS" not in os.environ, reason="minutes of waiting: set TESSERA_FAULTS=1")
def test_stores_that_are_away_for_a_while_are_waited_for(team: Team, retrained: Answer) -> None:
    """MLflow and PostgreSQL killed outright while a worker trains, back after half a minute and a minute: nothing is
    lost."""
    before = set(team.states())
    with team.retraining("candidates=[{kind: vpt, num_prompts: 3}]", "training.epochs=60") as retrain:
        wait_until(lambda: list((team.root / "worker").rglob("checkpoint.safetensors")), 240, "a checkpoint")
        for name in ("mlflow", "postgres"):
            team.kill(name)
        for name in ("postgres", "mlflow"):
            time.sleep(30)  # without its database Prefect hears no heartbeat, and after 90 s calls the run crashed
            team.again[name]()
        code = retrain.wait(600)
    outcome = team.read_answer()
    assert code in (0, 1), outcome
    assert ends(team, before) == ["COMPLETED"]
    assert outcome["candidates"][0]["tuner"] == "vpt-deep"


def test_the_champion_is_scored_on_the_pool(team: Team, retrained: Answer) -> None:
    """Not where the retrain runs, which may have no GPU: what is there came through MLflow."""
    before, runs = {run["id"] for run in team.runs("run_order")}, team.head / ".tessera" / "runs" / DOMAIN
    there = set(runs.glob("*/version-*"))  # an earlier test may have had the same version scored under other settings
    answer = team.tessera("retrain", DOMAIN, "--set", "candidates=[{kind: linear, strength: 0.02}]")
    assert answer.code in (0, 1), answer.stderr
    new = [run for run in team.runs("run_order") if run["id"] not in before]
    (run,) = [run for run in new if run["name"].startswith(f"score {DOMAIN} version-")]
    assert run["state_type"] == "COMPLETED"
    (place,) = set(runs.glob("*/version-*")) - there
    assert place.name == run["name"].rpartition(" ")[2]
    found = load_result(place)
    assert found is not None
    assert found.metrics["test/balanced_accuracy"] > 0
    assert not (place / "job.json").exists()


def test_a_retrain_that_is_stopped_takes_back_what_it_sent(team: Team, worker: Path, retrained: Answer) -> None:
    """Ctrl-C ends it, the candidate on the worker and the one that waits for a slot; the same command would go on."""
    before = set(team.states())
    candidates = "candidates=[{kind: vpt, num_prompts: 5}, {kind: vpt, num_prompts: 6, deep: false}]"
    with team.retraining(candidates, "training.epochs=300") as retrain:
        wait_until(lambda: list(worker.rglob("checkpoint.safetensors")), 240, "a checkpoint")
        os.kill(retrain.pid, signal.SIGTERM)  # as Ctrl-C, which a shell lets programs in the background ignore
        assert retrain.wait(60) == 130
    wait_until(lambda: ends(team, before) == ["CANCELLED", "CANCELLED"], 120, "the end of both runs")
    wait_until(lambda: not find_processes("components.training", worker), 60, "the end of the training")
    assert list(worker.rglob("checkpoint.safetensors"))


def test_secrets_are_written_nowhere(team: Team, retrained: Answer) -> None:
    """Not in logs, workspaces, artifacts, Prefect's or MLflow's database. What MLflow keeps of a password is a hash.

    The store's own log has the name of a key, as every request says it.
    """
    programs = find_postgres()
    assert programs is not None
    told = {str(path): path.read_bytes() for path in team.root.rglob("*") if path.is_file() and path.name != "s3.log"}
    for name, table in (("mlflow", b"experiments"), ("prefect", b"flow_run")):
        command = [str(programs / "pg_dump"), team.database("postgresql", name)]
        told[name] = subprocess.run(command, check=True, capture_output=True).stdout
        assert table in told[name]
    store = team.connect_s3()
    for entry in store.list_objects_v2(Bucket="mlflow")["Contents"]:
        told[f"s3/{entry['Key']}"] = store.get_object(Bucket="mlflow", Key=entry["Key"])["Body"].read()
    assert any(name.endswith("result.json") for name in told if name.startswith("s3/"))
    for value in SECRETS.values():
        secret = value.rpartition(":")[2].encode()
        assert not [name for name, content in told.items() if secret in content]
