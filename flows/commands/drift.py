"""How far today's images are from those the champion was trained on; known once the data stages have run on them."""

from collections.abc import Mapping
from typing import Any

from components.data.checks.features import load_features
from components.data.manifest import load_frame
from components.data.store import proofs
from components.monitoring.drift import measure_drift
from components.promotion.versions import Version
from components.records.operations import Drift
from components.sealed import load_known, save_known
from components.tracking import artifacts
from components.tracking.store import Store
from components.workspace import Workspace


def find_drift(
    store: Store, workspace: Workspace, champion: Version, md5: str, locked: Mapping[str, Any]
) -> Drift | None:
    """Of the version `md5`, which is that of the images now; None where nothing is new or nothing is known yet.

    locked: what dvc.lock says. Measured once, from features that are there: no network is loaded here.
    """
    name = champion.domain
    made = proofs.find_manifest(locked, name, md5)
    if made is None or champion.data_version == md5:
        return None
    path, key = workspace.cache / "drift" / f"{name}.json", f"{made} {champion.run_id}"
    known = load_known(path) or {}
    if known.get("of") != key:
        seen, derived = path.with_suffix(".parquet"), workspace.derived(name)
        if not artifacts.fetch_manifest(store, champion.run_id, seen):
            return None
        frames = load_frame(seen), load_frame(derived / "manifest.parquet"), load_features(derived / "features.parquet")
        known = {"of": key, "drift": measure_drift(*frames).model_dump(mode="json")}
        save_known(path, known)
    return Drift.model_validate(known["drift"])
