"""The reproduce flow: a registered version trained again from what it names, and where the two first differ.

Everything comes from the version's own record: the images by their DVC hash, the manifest with its splits, the job
with settings and seed, and the code, which is this one where its hash is the same and else its commit out of git.
"""

import io
import json
import math
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import polars as pl

from components.data.store.versions import restore_copy
from components.domain.domain import Domain
from components.errors import PromotionError
from components.keys import read_code
from components.models.adapter import load_meta
from components.promotion import versions
from components.promotion.evidence import score_frame
from components.promotion.versions import Version
from components.records.history import Reproduced
from components.records.jobs import Job, Result, load_predictions, load_result
from components.tasks import create_task
from components.tasks.base import by_class
from components.tracking import artifacts
from components.workspace import REPOSITORY, Workspace
from flows.processes.training import run_recorded
from flows.progress import report
from flows.server.links import point_to
from flows.steps.history import open_registry
from flows.steps.tasks import enter, named_flow, require, show, step, turn

HELD_OUT = ("val", "test")
#: The share of answers that may be others on another kind of machine, where the scores are no worse for it.
CHANGED = 0.05


@named_flow("reproduce", "reproduce {domain} version {version}")
def reproduce(domain: str, version: int, tolerance: float | None = None, workspace: str | None = None) -> Reproduced:
    """Train the version again in a scratch folder and compare; the folder stays where the two differ.

    Returns what `tessera reproduce --json` prints.

    Args:
        domain: name of a folder in data/.
        version: a registered version.
        tolerance: how far the scores of the held-out images may be apart where the machines are of different
            kinds; what chance would explain on so many images when left out.
        workspace: where data and state live; the worker's own when left out.
    """
    place = enter(workspace)
    scratch = place.state / "reproduce" / f"{domain}-{version}"
    with turn(place, "reproduce", scratch.name):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        report("stage", title=f"restore what version {version} was made from")
        found, before, job = find_record(place, domain, version, scratch)
        code = restore_code(place, scratch)
        restore_images(place, job["data_version"], scratch)
        report("stage", title="train it again")
        after = train_again(job, f"version {version} again", code, scratch)
        recorded = Job.model_validate(job).domain
        known = compare(place, found, recorded, before, after, tolerance)
        passed = known["verdict"] == "PASS"
        outcome = Reproduced(
            **known,
            scratch=None if passed else scratch,
            data_version=job["data_version"],
            code="this code" if code == REPOSITORY else "its commit",
        )
        if passed:
            shutil.rmtree(scratch)
        report("stage-done", title=f"trained version {version} again", note=outcome.verdict)
        show(
            "reproduce",
            domain,
            render_comparison(outcome, before, after, create_task(recorded).metric),
            "Is it the same when trained again",
        )
    return outcome


@step("find its record")
def find_record(workspace: Workspace, name: str, number: int, scratch: Path) -> tuple[Version, Result, dict[str, Any]]:
    """The version, what its training left, and what that was told; the manifest comes along, as a file."""
    store = open_registry(workspace, name)
    found = versions.require_version(name, number)
    point_to(store, found.run_id, f"{name}-{number}")
    before = require(load_result(artifacts.fetch_training(store, found.run_id, scratch)), "result")
    artifacts.fetch_file(store, found.run_id, "predictions.parquet", scratch / "predictions.parquet")
    job: dict[str, Any] = json.loads((scratch / "training" / "job.json").read_text())
    job.pop("beside", None)  # what else the retrain was to train has no say here
    return found, before.model_copy(update={"folder": scratch}), job


@step("restore images")
def restore_images(workspace: Workspace, data_version: str, scratch: Path) -> None:
    restore_copy(workspace, data_version, scratch / "raw")


@step("train again", retries=1)
def train_again(job: dict[str, Any], name: str, code: Path, scratch: Path) -> Result:
    places = {"raw": "raw", "cache": "cache", "folder": "again", "manifest": "data/manifest.parquet"}
    result = run_recorded(job | {key: str(scratch / place) for key, place in places.items()}, name, code)
    if result is None:
        raise PromotionError(
            name,
            expected="a training that ends",
            found=f"one that stopped; its log is {scratch / 'again' / 'log.txt'}",
            hint="Read the log.",
        )
    return result


@step("restore code")
def restore_code(workspace: Workspace, scratch: Path) -> Path:
    """The folder of the code that trained it: this code where its hash is the same, else its commit."""
    told = json.loads((scratch / "training" / "code.json").read_text())
    ours = read_code(workspace.cache).training
    if told["code_sha256"] == ours:
        return REPOSITORY
    commit = str(told["git_commit"])
    done = subprocess.run(["git", "archive", commit, "components"], cwd=REPOSITORY, capture_output=True, check=False)
    if done.returncode != 0:  # `unknown`, or `<commit>+dirty`: nobody has that code any more
        raise PromotionError(
            "the code of the training",
            expected=f"code with the sha256 {told['code_sha256'][:12]}, here or as a commit of this repository",
            found=f"{ours[:12]} here, and the commit {commit!r} cannot be had",
            hint="Check out the code it was trained with, where that was committed.",
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(scratch / "code", filter="data")
    return scratch / "code"


@step("compare")
def compare(
    workspace: Workspace, version: Version, domain: Domain, before: Result, after: Result, tolerance: float | None
) -> dict[str, Any]:
    """PASS where the weights are the same bits, or the machines differ and the scores are within the tolerance."""
    same_machine = before.environment == after.environment
    exact = after.adapter_sha256 == version.adapter_sha256
    facts: dict[str, Any] = {"domain": version.domain, "version": version.version}
    facts |= {"bit_equal": exact, "same_machine": same_machine, "differs": None}
    if exact:
        return facts | {"verdict": "PASS", "reason": "The weights are the same, bit for bit."}
    differs = facts["differs"] = _find_difference(workspace, domain, version, before, after)
    if before.split_sha256 != after.split_sha256:
        return facts | {"verdict": "FAIL", "reason": differs}
    then, now = (pl.concat(load_predictions(result.folder, side) for side in HELD_OUT) for result in (before, after))
    apart, chance = measure_difference(domain, then, now)
    allowed = chance if tolerance is None else tolerance
    within, why = "within" if apart <= allowed else "beyond", "by chance" if tolerance is None else "as asked for"
    machine = "Other weights on the same kind of machine" if same_machine else "Another kind of machine"
    reason = (
        f"{machine}. By {create_task(domain).metric_words} they are {apart:.4f} apart on {now.height} held-out images, "
        f"{within} the {allowed:.4f} allowed {why}. {differs}"
    )
    passed = not same_machine and apart <= allowed
    facts |= {"apart": apart, "tolerance": allowed, "images": now.height}
    return facts | {"verdict": "PASS" if passed else "FAIL", "reason": reason}


def measure_difference(domain: Domain, then: pl.DataFrame, now: pl.DataFrame) -> tuple[float, float]:
    """How far scores of the same images are apart, and how far chance would put them.

    Chance is one answer in twenty being another, for better or worse: each moves its class's score by one image. Two
    standard errors of that, and at least one image of the smallest class: far for a dozen images, hardly for thousands.
    It is stated before and not taken from the answers that did change: the more went wrong, the more would be allowed.
    Of class maps, an answer is that of a picture for one of the classes that it shows.
    """
    scores = [score_frame(frame, domain).value for frame in (then, now)]
    sizes = by_class(then)["label"].value_counts()["count"].to_list()
    chance = 2 * math.sqrt(CHANGED * sum(1 / size for size in sizes))
    return abs(scores[1] - scores[0]), max(chance, 1 / min(sizes)) / len(sizes)


def _find_difference(workspace: Workspace, domain: Domain, version: Version, before: Result, after: Result) -> str:
    """The first step at which the two trainings part, in the order in which things are made."""
    for what, one, other in (
        ("the split", before.split_sha256, after.split_sha256),
        ("the backbone", before.backbone["sha256"], after.backbone["sha256"]),
    ):
        if one != other:
            return f"They part at {what}: {one[:12]} then, {other[:12]} now."
    other_facts = [
        f"{key} {before.environment.get(key, 'unknown')} then, {after.environment.get(key, 'unknown')} now"
        for key in sorted(before.environment.keys() | after.environment.keys())
        if before.environment.get(key) != after.environment.get(key)
    ]
    kind = f" The machines differ: {'; '.join(other_facts)}." if other_facts else ""
    for row, again in zip(before.history, after.history, strict=False):
        for key in sorted(row.keys() & again.keys()):
            if row[key] != again[key]:
                return f"They part at epoch {row['epoch']:.0f}: {key} {row[key]!r} then, {again[key]!r} now.{kind}"
    adapter = versions.fetch_adapter(version, workspace.adapters)
    if load_meta(adapter).adapter_sha256 == before.adapter_sha256 != after.adapter_sha256:
        return f"Every epoch's numbers agree, the weights do not; {_describe_predictions(domain, before, after)}.{kind}"
    return f"The registered weights are not those that its own training left.{kind}"


def _describe_predictions(domain: Domain, before: Result, after: Result) -> str:
    then, now = (load_predictions(result.folder, "test") for result in (before, after))
    return create_task(domain).describe_gap(then, now)


def render_comparison(outcome: Reproduced, before: Result, after: Result, metric: str) -> str:
    """The verdict, and what both trainings came to."""
    rows = [
        (key, f"{before.metrics[key]:.4f}", f"{after.metrics[key]:.4f}")
        for key in (f"{side}/{metric}" for side in HELD_OUT)
    ]
    rows += [("weights, sha256", before.adapter_sha256[:12], after.adapter_sha256[:12])]
    keys = sorted(before.environment.keys() | after.environment.keys())
    rows += [(key, before.environment.get(key, "unknown"), after.environment.get(key, "unknown")) for key in keys]
    lines = [
        f"# {outcome.domain} version {outcome.version}, trained again: {outcome.verdict}",
        "",
        outcome.reason,
        "",
        "| | then | now |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"By {outcome.code}, from data version `{outcome.data_version}`.",
        *([f"What it left is in `{outcome.scratch}`."] if outcome.scratch else []),
    ]
    return "\n".join(lines)
