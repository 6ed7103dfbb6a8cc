"""What a retrain would do, decided before anything heavy starts: the domain, its candidates, its data, its name."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from components.data.batches.transforms import embed_augmentation, require_fit
from components.data.manifest import load_manifest
from components.data.splits import load_memory
from components.data.store import pipeline, versioning
from components.data.store.shards import open_images
from components.data.store.versioning import DataVersion
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.errors import DomainError
from components.models.embedded import load_card
from components.models.hub import EMBEDDED, choose_backbone
from components.models.tuners import Tuner, create_tuners
from components.promotion.gates.decide import require_gates
from components.records import Job
from components.training.search import Trial, choose_seed
from components.workspace import REPOSITORY, Workspace
from flows.progress import report

#: Keys of domain.yaml that describe or schedule; changing them changes no result.
UNRELATED = {"title", "description", "intended_use", "source", "licence", "citation", "schedule", "work_pool"}


#: Keys that `--set` may change for one run. All others are read from domain.yaml by the data stages, the schedules or
#: the pages, where an override of one run would be ignored.
OVERRIDABLE = {"augmentation", "backbone", "img_size", "candidates", "training", "search", "gates", "work_pool"}


@dataclass(frozen=True)
class Plan:
    """One retrain: everything its outcome depends on, and the fingerprint over it."""

    workspace: Workspace
    domain: Domain
    tuners: tuple[Tuner, ...]
    version: DataVersion
    code: str
    fingerprint: str
    base: str = ""  # fingerprint of all but splits.csv

    def settle(self) -> "Plan":
        """The plan with the splits as they are now, after the split stage has given new groups theirs."""
        return replace(self, fingerprint=_name_run(self.base, self.workspace.splits(self.domain.name)))

    @property
    def folder(self) -> Path:
        return self.workspace.runs(self.domain.name) / self.fingerprint[:16]

    @property
    def manifest(self) -> Path:
        return self.workspace.derived(self.domain.name) / "manifest.parquet"

    @property
    def validation_report(self) -> Path:
        return self.workspace.derived(self.domain.name) / "validation.html"

    def load_validation(self) -> dict[str, Any]:
        """What the validate stage found last."""
        record: dict[str, Any] = json.loads(self.validation_report.with_suffix(".json").read_text(encoding="utf-8"))
        return record

    def load_aside(self) -> list[dict[str, str]]:
        """Images that no side may have, and why: what the split stage found last."""
        found: list[dict[str, str]] = json.loads(self.manifest.with_name("aside.json").read_text(encoding="utf-8"))
        return found

    def load_manifest(self) -> pl.DataFrame:
        """The samples with their splits, held to the schema."""
        return load_manifest(self.manifest, self.domain)

    def begin_stages(self) -> None:
        """Let DVC work on the data stages from now on, unless it will be wanted again to push these images."""
        if versioning.find_remote_folder(self.workspace, self.domain.name) is not None:
            versioning.push_version(self.workspace, self.domain.name)
            pipeline.begin_stages(self.workspace, self.domain.name, self.version.md5, hash_code())

    def create_stages(self) -> pipeline.Stages:
        """The data stages for these images and this code, begun or not."""
        return pipeline.create_stages(self.workspace, self.domain.name, self.version.md5, hash_code())

    def create_jobs(self) -> dict[str, Job]:
        """One training job a candidate and seed, by its display name."""
        jobs = {}
        for tuner in self.tuners:
            for seed in self.domain.training.seeds:
                name = f"{tuner.label}-s{seed}"
                settings = tuner.model_dump(mode="json")
                jobs[name] = self._job(action="train", folder=self.folder / name, tuner=settings, seed=seed)
        return jobs

    def create_trial_job(self, label: str, trial: Trial, until_epoch: int) -> Job:
        """A trial of the candidate's search, up to a rung; one folder a trial, for it goes on from there."""
        return self._job(
            action="train",
            folder=self.folder / "search" / label / f"trial-{trial.number:03}",
            tuner=trial.tuner.model_dump(mode="json"),
            seed=choose_seed(self.domain.training),
            until_epoch=until_epoch,
        )

    def create_score_job(self, adapter: Path, folder: Path) -> Job:
        """Score an adapter that exists on this plan's test images."""
        return self._job(action="score", folder=folder, adapter=adapter)

    def _job(self, **facts: Any) -> Job:
        return Job(
            domain=self.domain,
            manifest=self.manifest,
            raw=open_images(self.workspace, self.domain.name),
            cache=self.workspace.cache,
            data_version=self.version.md5,
            git_commit=self.code,
            **facts,
        )


def load_checked_domain(workspace: Workspace, name: str, overrides: Sequence[str] = ()) -> Domain:
    """The domain, its candidates' options checked too. Raises DomainError; also for an override that nothing reads."""
    require_obeyed(overrides, workspace.domain_file(name))
    domain = load_domain(workspace.domain_file(name), overrides)
    if domain.backbone.endswith(".safetensors"):  # a relative path is one in the workspace
        domain = domain.model_copy(update={"backbone": str(workspace.root / Path(domain.backbone).expanduser())})
    create_tuners(domain.candidates, f"{workspace.domain_file(name)}: candidates")
    require_gates(domain, str(workspace.domain_file(name)))
    return domain


def require_obeyed(overrides: Sequence[str], file: Path) -> None:
    """Raise DomainError for an override of a key that is read from domain.yaml alone."""
    for text in overrides:
        key = text.partition("=")[0].strip().partition(".")[0]
        if key in Domain.model_fields.keys() - OVERRIDABLE:
            raise DomainError(
                f"--set {text!r}",
                expected=f"one of the keys that hold for one run alone: {', '.join(sorted(OVERRIDABLE))}",
                found=f"{key}, which is read from domain.yaml wherever it is used",
                hint=f"Change `{key}` in {file}, then run the command again without it.",
            )


def require_trainable(domain: Domain) -> None:
    """Raise DomainError for a task that can be checked but not learned yet."""
    if domain.task == "classification":
        return
    raise DomainError(
        f"training of {domain.name}",
        expected="task: classification, the one that training is built for",
        found=f"task: {domain.task}",
        hint="`tessera check` and `tessera export` work on it; to train, give each image one label and change `task`.",
    )


def create_plan(workspace: Workspace, name: str, overrides: Sequence[str] = ()) -> Plan:
    """Read the domain and record the version of its images as they are now."""
    domain = load_checked_domain(workspace, name, overrides)
    backbone, told = choose_backbone(domain.backbone)
    if told:
        domain = domain.model_copy(update={"backbone": backbone})
        report("note", text=told)
    domain = embed_augmentation(domain, workspace.domain_file(name).parent)
    if (img_size := known_size(domain)) is not None:
        require_fit(domain.augmentation, img_size)
    versioning.require_repository(workspace)
    versioning.register_domain(workspace, name)
    version = versioning.record_version(workspace, name)
    tuners = create_tuners(domain.candidates)
    _note_without_effect(tuners)
    facts = {
        "data": version.md5,
        "domain": domain.model_dump(mode="json", exclude=UNRELATED | {"candidates"}),
        "tuners": [tuner.model_dump(mode="json") for tuner in tuners],
        "backbone": _hash_backbone(domain.backbone),
        "code": hash_code(),
    }
    base = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    fingerprint = _name_run(base, workspace.splits(name))
    return Plan(workspace, domain, tuners, version, versioning.git_commit(), fingerprint, base)


def _name_run(base: str, splits: Path) -> str:
    """The fingerprint: of everything else, and of the split that every image has by splits.csv."""
    memory = sorted(load_memory(splits).items())
    return hashlib.sha256(json.dumps([base, memory]).encode()).hexdigest()


def _note_without_effect(tuners: Sequence[Tuner]) -> None:
    """Say which options of a candidate change nothing."""
    for tuner in tuners:
        if idle := sorted(tuner.without_effect & tuner.model_fields_set):
            text = f"Candidate {tuner.label}: {' and '.join(idle)} without effect, for it is solved to its optimum."
            report("note", text=text)


def hash_code() -> str:
    """Name of the code that results depend on: everything in components, wherever it is installed."""
    digest = hashlib.sha256()
    for path in sorted((REPOSITORY / "components").rglob("*.py")):
        digest.update(path.relative_to(REPOSITORY).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def known_size(domain: Domain) -> int | None:
    """The size of training images; None where the domain leaves it to a backbone that is not loaded here."""
    return domain.img_size or (load_card().img_size if domain.backbone == EMBEDDED else None)


def _hash_backbone(name: str) -> str:
    """A local weights file by its bytes, the embedded one by its card; a timm name says enough."""
    if name == EMBEDDED:
        return load_card().file_sha256
    path = Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".safetensors" and path.is_file() else name
