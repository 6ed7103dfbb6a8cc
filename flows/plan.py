"""What a retrain would do, decided before anything heavy starts: the domain, its candidates, its data, its keys."""

import atexit
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from components.data.batches.transforms import embed_augmentation, require_fit
from components.data.manifest import load_manifest
from components.data.splits import load_memory
from components.data.store import versioning
from components.data.store.pipeline import Stages
from components.data.store.shards import open_images
from components.data.store.versioning import DataVersion
from components.domain.canvas import ImgSize
from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.errors import DomainError
from components.files import hash_file
from components.keys import Code, candidate_key, manifest_key, read_code, score_key, trial_key, verdict_key
from components.models.embedded import load_card
from components.models.hub import EMBEDDED, choose_backbone
from components.models.repositories import fingerprint, resolve_name
from components.models.tuners import Tuner, create_tuners
from components.promotion.gates.decide import require_gates
from components.records.images import LeftOut, ValidationSummary
from components.records.jobs import Job
from components.records.licences import suggest
from components.tasks import Task, choose_fit, create_task
from components.tasks.base import DenseTask
from components.training.search import Trial, choose_seed, plan_rungs
from components.workspace import Workspace
from flows.progress import report

#: Keys that `--set` may change for one run. All others are read from domain.yaml by the data stages, the schedules or
#: the pages, where an override of one run would be ignored.
OVERRIDABLE = {"augmentation", "backbone", "img_size", "fit", "candidates", "training", "search", "gates", "work_pool"}


@dataclass(frozen=True)
class Plan:
    """One retrain: everything its outcome depends on, and the keys over it.

    code: git commit. sources: hashes of the code. backbone: `hash_backbone` of it. domain_sha256:
    of domain.yaml.
    manifest_sha256, verdict_key: empty until the manifest is known, by `with_manifest` or `settle`.
    """

    workspace: Workspace
    domain: Domain
    tuners: tuple[Tuner, ...]
    version: DataVersion
    code: str
    sources: Code
    backbone: str
    domain_sha256: str | None = None
    manifest_sha256: str = ""
    verdict_key: str = ""

    @property
    def manifest_key(self) -> str:
        """Key of the data stages' results, with splits.csv as it is now."""
        memory = [(content, *line) for content, line in load_memory(self.workspace.splits(self.domain.name)).items()]
        return manifest_key(self.version.md5, memory, self.settings, self.sources)

    @property
    def settings(self) -> dict[str, Any]:
        return self.domain.model_dump(mode="json")

    def with_manifest(self, sha256: str) -> "Plan":
        """The plan with all its keys, for a manifest that is known by its hash."""
        plan = replace(self, manifest_sha256=sha256)
        seeds = self.domain.training.seeds
        keys = [plan.candidate_key(tuner.model_dump(mode="json"), seed) for tuner in self.tuners for seed in seeds]
        return replace(plan, verdict_key=verdict_key(keys, self.settings, self.sources))

    def settle(self) -> "Plan":
        """The plan with the manifest as the data stages have left it. Raises LookupError where there is none."""
        if (sha256 := hash_file(self.manifest)) is None:
            raise LookupError(f"the data stages left no {self.manifest}")
        return self.with_manifest(sha256)

    def candidate_key(self, tuner: Mapping[str, Any], seed: int) -> str:
        """Key of one training. tuner: all its options. Raises ValueError before the manifest is known."""
        return candidate_key(self._manifest(), self.backbone, self.settings, self.sources, tuner, seed)

    def trial_key(self, own: Tuner, trial: Tuner) -> str:
        """Key of a trial in the search of the candidate `own`. Raises ValueError where the domain asks for none."""
        if self.domain.search is None:
            raise ValueError("the domain asks for no search")
        rungs = plan_rungs(self.domain.search, self.domain.training)
        training = self.candidate_key(trial.model_dump(mode="json"), choose_seed(self.domain.training))
        return trial_key(training, own.model_dump(mode="json"), rungs)

    def _manifest(self) -> str:
        if not self.manifest_sha256:
            raise ValueError("the manifest is not known yet")
        return self.manifest_sha256

    @property
    def folder(self) -> Path:
        """Report and model card of this retrain."""
        return self._folder(self.verdict_key)

    @property
    def scores(self) -> Path:
        """Scores of registered versions on this manifest."""
        return self._folder(score_key(self._manifest(), self.settings, self.sources))

    def _folder(self, key: str) -> Path:
        if not key:
            raise ValueError("the key is not known yet")
        return self.workspace.runs(self.domain.name) / key[:16]

    @property
    def manifest(self) -> Path:
        return self.workspace.derived(self.domain.name) / "manifest.parquet"

    @property
    def validation_report(self) -> Path:
        return self.workspace.derived(self.domain.name) / "validation.html"

    def load_validation(self) -> ValidationSummary:
        """What the validate stage found last."""
        text = self.validation_report.with_suffix(".json").read_text(encoding="utf-8")
        return ValidationSummary.model_validate_json(text)

    def load_aside(self) -> tuple[LeftOut, ...]:
        """Images that are excluded from all splits, and why: what the split stage found last."""
        text = self.manifest.with_name("aside.json").read_text(encoding="utf-8")
        return tuple(LeftOut.model_validate(row) for row in json.loads(text))

    def load_manifest(self) -> pl.DataFrame:
        """The samples with their splits, held to the schema."""
        return load_manifest(self.manifest, self.domain)

    def create_stages(self) -> Stages:
        """The data stages for these images and this code."""
        return Stages(self.workspace, self.domain.name, self.version.md5, self.sources.data)

    def begin_stages(self) -> Stages:
        """The same, on which DVC works from now on, unless it is needed first to push the images to a remote."""
        stages = self.create_stages()
        if versioning.find_remote_folder(self.workspace, self.domain.name) is not None:
            versioning.push_version(self.workspace, self.domain.name)
            atexit.register(stages.close)
            if not stages.fresh:
                stages.begin()
        return stages

    def holds(self) -> bool:
        """Whether images and domain.yaml still are what the plan was made from."""
        name = self.domain.name
        same = hash_file(self.workspace.domain_file(name)) == self.domain_sha256
        return same and versioning.record_version(self.workspace, name) == self.version

    def create_jobs(self) -> dict[str, Job]:
        """One training job per candidate and seed, by its display name."""
        jobs = {}
        for tuner in self.tuners:
            for seed in self.domain.training.seeds:
                name, options = f"{tuner.label}-s{seed}", tuner.model_dump(mode="json")
                folder = self._folder(self.candidate_key(options, seed)) / name
                jobs[name] = self._job(action="train", folder=folder, tuner=options, seed=seed)
        return jobs

    def create_trial_job(self, own: Tuner, trial: Trial, until_epoch: int) -> Job:
        """A trial in the search of the candidate `own`, up to a rung; each has one folder, to go on from there."""
        return self._job(
            action="train",
            folder=self._folder(self.trial_key(own, trial.tuner)) / f"trial-{trial.number:03}",
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
    domain = domain.model_copy(update={"backbone": resolve_name(domain.backbone, workspace.root)})
    domain = add_control(domain, create_task(domain, str(workspace.domain_file(name))))
    domain = domain.model_copy(update={"fit": choose_fit(domain)})  # written or not, it is one setting
    create_tuners(domain.candidates, f"{workspace.domain_file(name)}: candidates")
    require_gates(domain, str(workspace.domain_file(name)))
    return domain


def add_control(domain: Domain, task: Task) -> Domain:
    """The domain with the task's control among its candidates, for nobody can judge the others without it."""
    if task.control is None or any(candidate.get("kind") == task.control for candidate in domain.candidates):
        return domain
    return domain.model_copy(update={"candidates": (*domain.candidates, {"kind": task.control})})


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


def create_plan(workspace: Workspace, domain: Domain) -> Plan:
    """Record the version of the domain's images as they are now. domain: as `load_checked_domain` returns it."""
    name = domain.name
    domain_sha256 = hash_file(workspace.domain_file(name))
    backbone, told = choose_backbone(domain.backbone)
    if told:
        domain = domain.model_copy(update={"backbone": backbone})
        report("note", text=told)
    domain = embed_augmentation(domain, workspace.domain_file(name).parent)
    if (img_size := known_size(domain)) is not None:
        require_fit(domain.augmentation, img_size, create_task(domain).annotation)
    versioning.require_repository(workspace)
    versioning.register_domain(workspace, name)
    version = versioning.record_version(workspace, name)
    tuners = create_tuners(domain.candidates)
    _note_without_effect(tuners, create_task(domain))
    _note_mistyped(domain.gates.licences or ())
    sources, backbone = read_code(workspace.cache), hash_backbone(domain.backbone)
    return Plan(workspace, domain, tuners, version, versioning.git_commit(), sources, backbone, domain_sha256)


def _note_without_effect(tuners: Sequence[Tuner], task: Task) -> None:
    """Say which options of a candidate change nothing."""
    trained = isinstance(task, DenseTask)
    why = "its head is trained at the task's head_lr" if trained else "it is solved to its optimum"
    for tuner in tuners:
        useless = tuner.without_effect_trained if trained else tuner.without_effect
        if idle := sorted(useless & tuner.model_fields_set):
            report("note", text=f"Candidate {tuner.label}: {' and '.join(idle)} without effect, for {why}.")


def _note_mistyped(licences: Sequence[str]) -> None:
    """Report licences that may be mistyped; no error, because a licence may have any name."""
    for licence in licences:
        if close := suggest(licence):
            told = f"gates.licences names {licence}, which is compared as it is written"
            report("note", text=f"{told}. Known ones close to it: {', '.join(close)}.")


def known_size(domain: Domain) -> ImgSize | None:
    """The size of training images; None where the domain leaves it to a backbone that is not loaded here."""
    return domain.img_size or (ImgSize.of(load_card().img_size) if domain.backbone == EMBEDDED else None)


def hash_backbone(name: str) -> str:
    """The embedded one by its card; a file or a folder by its bytes, a repository by its commit; a timm name says
    enough."""
    return load_card().file_sha256 if name == EMBEDDED else fingerprint(name)
