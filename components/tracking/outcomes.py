"""The outcome of a retrain or promotion, logged to its run, and the latest outcome of a domain."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.tracking.artifacts import RESULT_FILE
from components.tracking.candidates import summarise_row
from components.tracking.pages import DATA, NOTE, describe_outcome, link_prefect
from components.tracking.store import TAG_PREFIX, Point, Store, create_tags, match_tags


def log_result(
    store: Store, run_id: str, outcome: Mapping[str, Any], files: Sequence[Path] = (), *, metric: str
) -> None:
    """Log the whole outcome to the parent run; `find_retrain` finds it from now on.

    outcome: as `tessera retrain --json` prints it. files: report and pictures to keep beside it. metric: name of the
    score of `outcome["candidates"]`.
    """
    text = json.dumps(outcome, indent=1, ensure_ascii=False, allow_nan=False)
    best = next((row for row in outcome.get("candidates", ()) if row.get("selected")), None)
    verdict = str(outcome.get("verdict") or "")
    winner = "" if best is None else f"{best['tuner']} · seed {best['seed']}"
    with store.client() as client:
        client.log_text(run_id, text, RESULT_FILE)
        for path in files:
            client.log_artifact(run_id, str(path))
        run, data = client.get_run(run_id), [item.path for item in client.list_artifacts(run_id, DATA)]
        pages = [path for path in (*(path.name for path in files), *data) if path.endswith(".html")]
        note = describe_outcome(outcome, run.info.experiment_id, run_id, pages)
        note += link_prefect(run.data.tags.get(f"{TAG_PREFIX}prefect"))
        if best is not None:
            store.log_metrics(run_id, [Point.now(0, summarise_row(best, metric))])
        if best is not None and "run_id" in best:
            store.set_tags(best["run_id"], create_tags(selected="true"))
        client.update_run(run_id, name=f"{verdict or 'retrain'} {winner}".strip())
    # The tag `result` comes last: it says that the result is there and whole.
    store.set_tags(run_id, create_tags(verdict=verdict, winner=winner, result=RESULT_FILE) | {NOTE: note})


def log_verdict(store: Store, run_id: str, outcome: Mapping[str, Any]) -> None:
    """Log the outcome of a promotion. It is not the result of a retrain, which `find_retrain` would find."""
    verdict, text = str(outcome["verdict"]), json.dumps(outcome, indent=1, ensure_ascii=False, allow_nan=False)
    with store.client() as client:
        run = client.get_run(run_id)
        note = describe_outcome(outcome, run.info.experiment_id, run_id, ())
        note += link_prefect(run.data.tags.get(f"{TAG_PREFIX}prefect"))
        client.log_text(run_id, text, "verdict.json")
        client.update_run(run_id, name=f"{verdict} version {outcome['challenger_version']}")
    store.set_tags(run_id, create_tags(verdict=verdict) | {NOTE: note})


def find_retrain(store: Store, domain: str, verdict_key: str) -> dict[str, Any] | None:
    """The outcome of the latest finished retrain with this key; None without one."""
    return _load_latest(store, domain, verdict_key=verdict_key)


def load_last_result(store: Store, domain: str) -> dict[str, Any] | None:
    """The outcome of the domain's latest finished retrain; None without one."""
    return _load_latest(store, domain)


def _load_latest(store: Store, domain: str, **tags: str) -> dict[str, Any] | None:
    condition = f"attributes.status = 'FINISHED' AND {match_tags(result=RESULT_FILE, **tags)}"
    runs = store.search_runs(domain, condition, max_results=1, order_by=["attributes.end_time DESC"])
    if not runs:
        return None
    with store.client() as client, tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(runs[0].info.run_id, RESULT_FILE, folder))
        outcome: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return outcome
