"""The outcome of a retrain or promotion with its run, and the latest one of a domain."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.tracking.artifacts import RESULT_FILE
from components.tracking.candidates import summarise_row
from components.tracking.pages import DATA, NOTE, describe_outcome, link_prefect
from components.tracking.store import TAG, create_tags, log_metrics, refusals, set_tags


def log_result(run_id: str, outcome: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
    """Leave the whole outcome with the parent run; `find_retrain` finds it from now on.

    outcome: as `tessera retrain --json` prints it. files: report and pictures to keep beside it.
    """
    import mlflow

    text = json.dumps(outcome, indent=1, ensure_ascii=False, allow_nan=False)
    best = next((row for row in outcome.get("candidates", ()) if row.get("selected")), None)
    verdict = str(outcome.get("verdict") or "")
    winner = "" if best is None else f"{best['tuner']} · seed {best['seed']}"
    with refusals():
        client = mlflow.MlflowClient()
        client.log_text(run_id, text, RESULT_FILE)
        for path in files:
            client.log_artifact(run_id, str(path))
        run, there = client.get_run(run_id), [item.path for item in client.list_artifacts(run_id, DATA)]
        pages = [path for path in (*(path.name for path in files), *there) if path.endswith(".html")]
        note = describe_outcome(outcome, run.info.experiment_id, run_id, pages)
        tags = create_tags(verdict=verdict, winner=winner)
        tags |= {NOTE: note + link_prefect(run.data.tags.get(f"{TAG}prefect"))}
        if best is not None:
            log_metrics(client, run_id, summarise_row(best), step=0, when=int(time.time() * 1000))
        if best is not None and "run_id" in best:
            client.set_tag(best["run_id"], f"{TAG}selected", "true")
        client.update_run(run_id, name=f"{verdict or 'retrain'} {winner}".strip())
        for key, value in (tags | {f"{TAG}result": RESULT_FILE}).items():  # last: the result is there and whole
            client.set_tag(run_id, key, value)


def log_verdict(run_id: str, outcome: Mapping[str, Any]) -> None:
    """What a promotion came to. It is no result of a retrain, which `find_retrain` would find."""
    import mlflow

    verdict, told = str(outcome["verdict"]), json.dumps(outcome, indent=1, ensure_ascii=False, allow_nan=False)
    with refusals():
        client = mlflow.MlflowClient()
        run = client.get_run(run_id)
        note = describe_outcome(outcome, run.info.experiment_id, run_id, ())
        note += link_prefect(run.data.tags.get(f"{TAG}prefect"))
        client.log_text(run_id, told, "verdict.json")
        client.update_run(run_id, name=f"{verdict} version {outcome['challenger_version']}")
        set_tags(client, run_id, create_tags(verdict=verdict) | {NOTE: note})


def find_retrain(domain: str, verdict_key: str) -> dict[str, Any] | None:
    """The outcome of the latest finished retrain with this key; None without one."""
    return _load_latest(domain, f"AND tags.`{TAG}verdict_key` = '{verdict_key}'")


def load_last_result(domain: str) -> dict[str, Any] | None:
    """The outcome of the domain's latest finished retrain, whatever it was of."""
    return _load_latest(domain)


def _load_latest(domain: str, condition: str = "") -> dict[str, Any] | None:
    import mlflow

    with refusals():
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(domain)
        if experiment is None:
            return None
        wanted = f"attributes.status = 'FINISHED' AND tags.`{TAG}result` = '{RESULT_FILE}' {condition}"
        runs = client.search_runs([experiment.experiment_id], wanted, order_by=["attributes.end_time DESC"])
        if not runs:
            return None
        record: dict[str, Any] = mlflow.artifacts.load_dict(f"{runs[0].info.artifact_uri}/{RESULT_FILE}")
        return record
