"""`tessera export-model`: a registered version as an ONNX graph that proves itself."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from components.data.store.shards import open_images
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.errors import DataError
from components.files import whole_folder
from components.models.adapter import load_meta
from components.promotion import aliases, versions
from components.promotion.licences import trace_version
from components.records.exports import Card, ExportJob, ModelExport
from components.tracking import artifacts
from components.tracking.store import Store
from components.workspace import Workspace
from flows.processes.exporting import export_adapter, require_libraries
from flows.steps.history import open_registry

CARD, GRAPH, INT8 = "card.json", "model.onnx", "model.int8.onnx"
FILES = frozenset({GRAPH, INT8, CARD, "prepare.py", "proofs", "__pycache__"})


def export_model(workspace: Workspace, name: str, version: int | None, folder: Path, *, int8: bool) -> ModelExport:
    """Write the export, which appears whole or not at all, and log it to the run of its version.

    Raises AdapterError where the libraries are missing or the export does not answer as Tessera does; DataError where
    the folder holds other files, or test images are missing on which int8 is judged; PromotionError where there is no
    such version.
    """
    require_libraries()
    _require_target(folder)
    store = open_registry(workspace, name)
    found = aliases.require_champion(name) if version is None else versions.require_version(name, version)
    adapter = versions.fetch_adapter(found, workspace.adapters)
    with tempfile.TemporaryDirectory() as place, whole_folder(folder) as fresh:
        job = _create_job(workspace, store, found, adapter, fresh, Path(place), int8=int8)
        job = job.model_copy(update={"licences": trace_version(workspace, found, _find_domain(workspace, name))})
        card = export_adapter(job)
        if found.run_id:
            artifacts.log_export(store, found.run_id, name, found.version, fresh, card.files[GRAPH])
    return _describe(name, found.version, folder, card, logged=found.run_id or None)


def _find_domain(workspace: Workspace, name: str) -> Domain | None:
    """The domain as it is here; None where it was removed, of which versions remain."""
    file = workspace.domain_file(name)
    return load_domain(file) if file.exists() else None


def _create_job(
    workspace: Workspace,
    store: Store,
    version: versions.Version,
    adapter: Path,
    folder: Path,
    place: Path,
    *,
    int8: bool,
) -> ExportJob:
    """With those images of the version's test split that are here. place: for the frame of them."""
    from components.serving.proofs import choose_proofs, find_tests

    job = ExportJob(adapter=adapter, folder=folder, domain=version.domain, version=version.version)
    file = place / "predictions.parquet"
    known = bool(version.run_id) and artifacts.fetch_predictions(store, version.run_id, file)
    if not known or not workspace.raw(version.domain).is_dir():
        if int8:
            found = "no images in the workspace" if known else "none known to MLflow"
            raise _lack_tests(version, found)
        return job
    raw = open_images(workspace, version.domain)
    tests = pl.read_parquet(file).filter(pl.col("split") == "test")
    job = job.model_copy(update={"proofs": choose_proofs(tests, raw, load_meta(adapter))})
    if not int8:
        return job
    here = find_tests(tests, raw)
    if here.is_empty():
        raise _lack_tests(version, f"none of {tests.height} in {raw}")
    here.write_parquet(place / "tests.parquet")
    return job.model_copy(update={"tests": place / "tests.parquet", "of": tests.height})


def _lack_tests(version: versions.Version, found: str) -> DataError:
    return DataError(
        f"--int8 of {version.domain} version {version.version}",
        expected="images of its test split, on which the quantised graph is judged",
        found=found,
        hint=f"Bring them back (`tessera versions {version.domain}` lists them), or leave out `--int8`.",
    )


def _require_target(folder: Path) -> None:
    """Raise DataError unless the folder is new, empty, or an earlier export."""
    others = [] if not folder.is_dir() else sorted({path.name for path in folder.iterdir()} - FILES)
    if others or (folder.exists() and not folder.is_dir()):
        found = f"a folder with {', '.join(others[:3])}" if others else "a file"
        expected = "a new or empty folder, or one of an earlier export"
        raise DataError(f"export to {folder}", expected=expected, found=found, hint="Name another one.")


def verify_export(workspace: Workspace, name: str, version: int | None, folder: Path) -> ModelExport:
    """Answer the proofs of an export again, and compare it with the registered version. Writes nothing.

    Raises DataError where the folder is no export.
    """
    require_libraries()
    card = _load_card(folder)
    open_registry(workspace, name)
    found = versions.require_version(name, card.version if version is None else version)
    problems = []
    said, registered = (card.domain, card.version), (name, found.version)
    if said != registered:
        problems.append(f"{CARD}: expected {name} version {found.version}; found {card.domain} version {card.version}")
    elif found.adapter_json_sha256 not in ("", card.adapter):
        registered_as = found.adapter_json_sha256[:12]
        problems.append(f"{CARD}: expected the adapter {registered_as}, which is registered; found {card.adapter[:12]}")
    command = [sys.executable, "-I", str(folder / "prepare.py"), "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        problems += json.loads(done.stdout)["problems"]
    except ValueError:
        problems.append(f"prepare.py: {(done.stderr.strip().splitlines() or ['it ended without a report'])[-1]}")
    return _describe(name, found.version, folder, card, problems=tuple(problems))


def _load_card(folder: Path) -> Card:
    try:
        return Card.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = error.strerror or "none" if isinstance(error, OSError) else "one that cannot be read"
        hint = "Name the folder of an export, or write one without `--verify`."
        raise DataError(f"export in {folder}", expected=f"its {CARD}", found=found, hint=hint) from None


def _describe(
    name: str, version: int, folder: Path, card: Card, *, logged: str | None = None, problems: tuple[str, ...] = ()
) -> ModelExport:
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    return ModelExport(
        domain=name, version=version, folder=folder, files=files, card=card, logged=logged, problems=problems
    )


def read_place(words: list[str]) -> tuple[int | None, Path]:
    """`[VERSION] DIR` of the command line. Raises DataError for anything else."""
    number, folder = (None, words[0]) if len(words) == 1 else (words[0], words[-1])
    if len(words) > 2 or (number is not None and not number.isdecimal()) or (number is None and folder.isdecimal()):
        hint = "Write `tessera export-model NAME DIR`, or `tessera export-model NAME VERSION DIR`."
        raise DataError("export-model", expected="[VERSION] DIR", found=" ".join(words), hint=hint)
    return None if number is None else int(number), Path(folder)


def exit_code(outcome: ModelExport) -> int:
    """1 where the gate of int8 said no, or an export does not verify."""
    return int(bool(outcome.problems) or (outcome.card.int8 is not None and not outcome.card.int8.kept))
