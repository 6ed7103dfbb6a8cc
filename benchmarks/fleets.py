"""Adapters and champions made in milliseconds, for what asks how many are served and not how well they answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from components.models.adapter import AdapterMeta, InputMeta, load_meta
from components.models.backbones import Backbone
from components.models.network import create_network
from components.models.tuners import create_tuners
from components.models.weights import save_adapter
from components.promotion import aliases, contest, versions
from components.promotion.ledger import Record
from components.tasks import CLASSIFICATION
from components.tasks.base import Task
from components.tracking import artifacts
from components.tracking.store import Store
from components.workspace import Workspace

CLASSES = ("good", "crack", "pit")


def write_adapter(
    folder: Path,
    backbone: Backbone,
    tuner: Mapping[str, Any],
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
    task: Task = CLASSIFICATION,
    **facts: Any,
) -> Path:
    """An adapter of weights that are random in every part, so that each answers in its own way; returns its folder.

    facts: further fields of its record.
    """
    (made,) = create_tuners([tuner])
    network = create_network(backbone, made, len(classes), seed, task)
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.trainable_parameters().items():
            spread = 0.05 if name.startswith("head.") else 0.02
            parameter.add_(spread * torch.randn(parameter.shape, generator=dice))
    meta = AdapterMeta.describe(
        network,
        backbone,
        made,
        classes=classes,
        data_version="0123456789abcdef0123456789abcdef.dir",
        split_sha256="s",
        git_commit="c0ffee",
        seed=seed,
        metrics={},
        inputs=InputMeta(kind="picture", fit=task.fit, max_megapixels=100, min_side=16),
        task=task,
    ).model_copy(update=facts)
    save_adapter(folder, network, meta)
    return folder


def promote_adapter(workspace: Workspace, store: Store, domain: str, adapter: Path) -> versions.Version:
    """The adapter as a registered version of the domain and its champion, by a record in the ledger."""
    before = versions.load_version(domain, versions.CHAMPION)
    meta = load_meta(adapter)
    with store.client() as client:
        run_id = client.create_run(store.ensure_experiment(domain)).info.run_id
    uri = artifacts.log_model(store, run_id, adapter)
    facts = {"adapter_sha256": meta.adapter_sha256, "tuner": meta.label, "data_version": meta.data_version}
    version = aliases.register_challenger(domain, run_id, uri, **facts, origin=meta.origin)
    moved = Record(
        action="promote",
        from_version=before.version if before else None,
        to_version=version,
        verdict="PROMOTE",
        reason="by hand, for a trial",
    )
    champion = contest.settle(workspace, domain, moved)
    assert champion is not None
    return champion
