"""Files of a run: the adapter, its predictions, the model to register, its card and the evidence of a verdict."""

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from components.errors import TrackingError
from components.files import whole_file
from components.models.adapter import hash_meta, load_meta
from components.records.jobs import SALIENCY_FILE, Result, write_result
from components.tracking.pages import CARDS, DATA, EVIDENCE, link_run
from components.tracking.runs import PARENT_TAG
from components.tracking.store import Store

RESULT_FILE = "result.json"
PREDICTIONS = "predictions.parquet"
EXPORT = "export"  # artifact folder of a version's export
EXPORT_TAG = "tessera.export_sha256"  # of a version: the sha256 of its model.onnx
MANIFEST_FILE = f"{DATA}/manifest.parquet"
SCORES = "scores"  # artifact folder of registered versions' predictions
MOST_DESCRIPTION = 5000  # characters: the store's column
TRAINING = "training"  # artifact folder of a training process: its job, its result and its code
CODE_FILE = f"{TRAINING}/code.json"
PYFUNC_FILE = Path(__file__).parents[1] / "serving" / "pyfunc.py"
#: What the served model needs beside Tessera itself, which is not on PyPI and must not be guessed from there.
REQUIREMENTS = ("mlflow", "torch", "timm", "safetensors", "pillow", "numpy", "polars", "pydantic", "scikit-learn")


def log_data(store: Store, parent: str, *files: Path) -> None:
    """Log the manifest, for workers that have none, and the validation report to the parent run."""
    with store.client() as client:
        for path in files:
            client.log_artifact(parent, str(path), DATA)


def fetch_file(store: Store, run_id: str, path: str, target: Path) -> None:
    """Download one artifact of a run to the file `target`, which is written whole or not at all."""
    with (
        store.client() as client,
        whole_file(target) as partial,
        tempfile.TemporaryDirectory(dir=target.parent) as folder,
    ):
        os.replace(client.download_artifacts(run_id, path, folder), partial)


def fetch_manifest(store: Store, run_id: str, target: Path) -> bool:
    """Download the manifest of a candidate's retrain; False where MLflow no longer has it."""
    run = store.read_or_none(lambda client: client.get_run(run_id))
    parent = run.data.tags.get(PARENT_TAG, "") if run else ""
    found = store.read_or_none(lambda client: client.list_artifacts(parent, DATA)) if parent else None
    if MANIFEST_FILE not in {item.path for item in found or ()}:
        return False
    fetch_file(store, parent, MANIFEST_FILE, target)
    return True


def fetch_candidate(store: Store, run_id: str, folder: Path) -> Result:
    """Download a worker's training into `folder`, as if it had been trained there; the result file comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_FILE).unlink(missing_ok=True)
    with store.client() as client:
        for name in ("adapter", "predictions.parquet", SALIENCY_FILE):
            client.download_artifacts(run_id, name, str(folder))
    return _fetch_result(store, run_id, f"{TRAINING}/{RESULT_FILE}", folder)


def log_score(store: Store, parent: str, name: str, folder: Path) -> None:
    """Log a registered version's predictions to the retrain that asked for them; the result file comes last."""
    with store.client() as client:
        for file in ("predictions.parquet", RESULT_FILE):
            client.log_artifact(parent, str(folder / file), f"{SCORES}/{name}")


def fetch_score(store: Store, parent: str, name: str, folder: Path) -> None:
    """Download what `log_score` logged into `folder`, as if it had been scored there."""
    fetch_file(store, parent, f"{SCORES}/{name}/predictions.parquet", folder / "predictions.parquet")
    _fetch_result(store, parent, f"{SCORES}/{name}/{RESULT_FILE}", folder)


def _fetch_result(store: Store, run_id: str, path: str, folder: Path) -> Result:
    partial = folder / f"{RESULT_FILE}.partial"
    fetch_file(store, run_id, path, partial)
    result = Result.model_validate(json.loads(partial.read_text()) | {"folder": str(folder)})
    write_result(result)
    partial.unlink()
    return result


def fetch_predictions(store: Store, run_id: str, target: Path) -> bool:
    """Download a candidate's predictions to the file `target`; False where its run has none."""
    found = store.read_or_none(lambda client: client.list_artifacts(run_id))
    if PREDICTIONS not in {item.path for item in found or ()}:
        return False
    fetch_file(store, run_id, PREDICTIONS, target)
    return True


def log_export(store: Store, run_id: str, domain: str, version: int, folder: Path, sha256: str) -> None:
    """Log an exported adapter to the run of its registered version, which gets the sha256 of model.onnx as a tag."""
    with store.client() as client:
        client.log_artifacts(run_id, str(folder), EXPORT)
        client.set_model_version_tag(domain, str(version), EXPORT_TAG, sha256)


def log_model(store: Store, run_id: str, adapter: Path) -> str:
    """Log an adapter folder to its run as a pyfunc from code; returns the model's URI for the registry."""
    import mlflow  # MlflowClient cannot log a model
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    meta = load_meta(adapter)
    # Every adapter has the column `box`: MLflow drops what it does not know, and a box must never be passed over.
    inputs = [ColSpec("string", "image"), ColSpec("string", "box", required=False)]
    kinds: dict[str, Any] = {"strings": Array(DataType.string)}
    outputs = [ColSpec(kinds.get(kind, kind), name) for name, kind in meta.outputs.items()]
    with _active_run(store, run_id), warnings.catch_warnings():
        # MLflow would run inference on an example to find what is stated here: the signature and the requirements.
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        logged = mlflow.pyfunc.log_model(
            name="model",  # its files are listed among the run's own, where adapter/ is taken
            python_model=str(PYFUNC_FILE),
            artifacts={"adapter": str(adapter)},
            pip_requirements=[f"{name}=={installed_version(name)}" for name in REQUIREMENTS],
            signature=ModelSignature(
                Schema(inputs), Schema(outputs), ParamSchema([ParamSpec("whole", "boolean", False)])
            ),
            metadata={
                "adapter_sha256": meta.adapter_sha256,
                "adapter_json_sha256": hash_meta(adapter),
                "tuner": meta.label,
                "task": meta.task.kind,
                "classes": list(meta.classes),
                "input": meta.input.kind if meta.input else "unknown",
            },
        )
    return str(logged.model_uri)


@contextmanager
def _active_run(store: Store, run_id: str) -> Iterator[None]:
    """Make the run the fluent API's active one, as `log_model` demands; its status and end stay as they were.

    MLflow alone would close a parent that still runs, and add the minutes since a training to its duration.
    """
    import mlflow

    with store.client() as client:
        before = client.get_run(run_id).info
        try:
            with mlflow.start_run(run_id=run_id, nested=True):
                yield
        finally:
            if before.status == "RUNNING":
                client.update_run(run_id, status="RUNNING")
            else:
                client.set_terminated(run_id, before.status, end_time=before.end_time)


def log_code(store: Store, run_id: str, code: Mapping[str, str]) -> None:
    """Log the code of a registered version's training: its commit, and the sha256 of what results depend on."""
    with store.client() as client:
        client.log_text(run_id, json.dumps(dict(code), indent=1), CODE_FILE)


def fetch_training(store: Store, run_id: str, folder: Path) -> Path:
    """Download job, result and code of a registered version's training, and `data/manifest.parquet`, into a folder.

    Returns the folder of the training's files. Raises TrackingError where the run has none.
    """
    with store.client() as client:
        parent = client.get_run(run_id).data.tags[PARENT_TAG]
        if CODE_FILE not in {item.path for item in client.list_artifacts(run_id, TRAINING)}:
            raise TrackingError(
                f"run {run_id}",
                expected=f"the artifact {CODE_FILE}, as a retrain leaves it with the version it registers",
                found="none",
                hint="Versions from before there were any cannot be trained again: retrain the domain.",
            )
        client.download_artifacts(parent, DATA, str(folder))  # whole folders: a file alone would lose its place
        return Path(client.download_artifacts(run_id, TRAINING, str(folder)))


def log_card(
    store: Store, run_id: str, domain: str, version: int, page: Path, text: Path, tags: Mapping[str, str]
) -> None:
    """Log the model card to the run, and make its text the description of the registered version.

    tags: what the list of versions shows beside the aliases.
    """
    _, _, words = text.read_text(encoding="utf-8").partition("\n\n")  # without the title: MLflow's list shows the start
    summary, _, rest = words.partition("\n\n")
    with store.client() as client:
        card = link_run(client.get_run(run_id).info.experiment_id, run_id, f"{CARDS}/{page.name}")
        description = f"{summary}\n\n[The same with its pictures]({card}), of the run.\n\n{rest}"
        for path in (page, text):
            client.log_artifact(run_id, str(path), CARDS)
        client.update_model_version(domain, str(version), description[:MOST_DESCRIPTION])
        for key, value in tags.items():
            client.set_model_version_tag(domain, str(version), key, value)


def log_evidence(store: Store, run_id: str, sha256: str, text: str) -> None:
    """Log the gates' findings on a version to its run, under the hash that its record in the ledger names."""
    with store.client() as client:
        client.log_text(run_id, text, f"{EVIDENCE}/{sha256}.json")
