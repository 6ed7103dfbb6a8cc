"""The outcome of a retrain or promotion, logged to its run, and the latest outcome of a domain."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from components.domain.strict import Strict
from components.records.history import Promotion
from components.records.outcomes import Outcome, read_outcome
from components.tasks.classification import ClassificationTask
from components.tracking.artifacts import RESULT_FILE
from components.tracking.candidates import summarise_row
from components.tracking.pages import DATA, NOTE, describe_outcome, describe_promotion, link_prefect
from components.tracking.store import TAG_PREFIX, Point, Store, create_tags, match_tags


def log_result(store: Store, run_id: str, outcome: Outcome, files: Sequence[Path] = ()) -> None:
    """Log the whole outcome to the parent run; `find_retrain` finds it from now on.

    files: report and pictures to keep beside it.
    """
    best = outcome.best
    winner = f"{best.tuner} · seed {best.seed}"
    with store.client() as client:
        client.log_text(run_id, write_record(outcome), RESULT_FILE)
        for path in files:
            client.log_artifact(run_id, str(path))
        run, data = client.get_run(run_id), [item.path for item in client.list_artifacts(run_id, DATA)]
        pages = [path for path in (*(path.name for path in files), *data) if path.endswith(".html")]
        note = describe_outcome(outcome, run.info.experiment_id, run_id, pages)
        note += link_prefect(run.data.tags.get(f"{TAG_PREFIX}prefect"))
        store.log_metrics(run_id, [Point.now(0, summarise_row(best, outcome.metric))])
        if best.run_id:
            store.set_tags(best.run_id, create_tags(selected="true"))
        client.update_run(run_id, name=f"{outcome.verdict} {winner}")
    # The tag `result` comes last: it says that the result is there and whole.
    store.set_tags(run_id, create_tags(verdict=outcome.verdict, winner=winner, result=RESULT_FILE) | {NOTE: note})


def write_record(record: Strict) -> str:
    """A record as JSON. Raises ValueError for a number that is none, which JSON cannot hold."""
    return json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)


def log_verdict(store: Store, run_id: str, promotion: Promotion) -> None:
    """Log the outcome of a promotion. It is not the result of a retrain, which `find_retrain` would find."""
    with store.client() as client:
        run = client.get_run(run_id)
        note = describe_promotion(promotion) + link_prefect(run.data.tags.get(f"{TAG_PREFIX}prefect"))
        client.log_text(run_id, write_record(promotion), "verdict.json")
        client.update_run(run_id, name=f"{promotion.verdict} version {promotion.challenger_version}")
    store.set_tags(run_id, create_tags(verdict=promotion.verdict) | {NOTE: note})


def find_retrain(store: Store, domain: str, verdict_key: str) -> Outcome | None:
    """The outcome of the latest finished retrain with this key; None without one."""
    return _load_latest(store, domain, verdict_key=verdict_key)


def load_last_result(store: Store, domain: str) -> Outcome | None:
    """The outcome of the domain's latest finished retrain; None without one."""
    return _load_latest(store, domain)


def _load_latest(store: Store, domain: str, **tags: str) -> Outcome | None:
    condition = f"attributes.status = 'FINISHED' AND {match_tags(result=RESULT_FILE, **tags)}"
    runs = store.search_runs(domain, condition, max_results=1, order_by=["attributes.end_time DESC"])
    if not runs:
        return None
    with store.client() as client, tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(runs[0].info.run_id, RESULT_FILE, folder))
        record = json.loads(path.read_text(encoding="utf-8"))
    return read_outcome(record, ClassificationTask.metric)
