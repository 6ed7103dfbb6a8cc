"""`tessera doctor`: checks the installation. One row per check, with the command that fixes it."""

import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from components.errors import TesseraError
from components.processes import find_orphans
from components.records.operations import Check, Diagnosis
from components.workspace import (
    DISK_TROUBLE,
    QUIET,
    REPOSITORY,
    Workspace,
    describe_disk_trouble,
    require_writable,
)

MIN_FREE_GB = 2.0
#: Versions that install and then break, seen by measurement: package, first bad version, what happens.
KNOWN_BAD = (
    ("fastapi", (0, 151), "Prefect servers die at import"),
    ("sqlalchemy", (2, 1), "Prefect schedules never fire, silently"),
    ("albumentations", (2, 1), "no release under the MIT licence"),
)
#: On the command lines of what is started here, beside servers and workers.
OTHER_MARKS = ("components.training", "prefect.engine")


def doctor(workspace: Workspace) -> Diagnosis:
    """All checks; ok unless one is an error."""
    checks = tuple(_ask(check, workspace) for check in CHECKS)
    return Diagnosis(ok=all(check.state != "error" for check in checks), workspace=workspace.root, checks=checks)


def check_python(_: Workspace) -> Check:
    return Check(name="python", state="ok", found=f"Python {sys.version.split()[0]}")


def check_versions(_: Workspace) -> Check:
    """Known-bad versions are errors; others than the tried ones are worth a word."""
    for package, limit, harm in KNOWN_BAD:
        version = metadata.version(package)
        if tuple(int(part) for part in version.split(".")[:2]) >= limit:
            return Check(name="packages", state="error", found=f"{package} {version}: {harm}", hint="make install")
    strange = _differing_versions(REPOSITORY / "constraints.txt")
    if strange:
        found = f"{len(strange)} packages differ from constraints.txt: {', '.join(strange[:4])}"
        return Check(name="packages", state="warning", found=found, hint="make install")
    return Check(name="packages", state="ok", found="as constraints.txt says")


def _ask(check: Callable[[Workspace], Check], workspace: Workspace) -> Check:
    """A check that ends in an error has found it; one that cannot write has found that out."""
    try:
        return check(workspace)
    except TesseraError as error:
        trouble = error
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        trouble = describe_disk_trouble(workspace.root, error)
    return Check(name=check.__name__.removeprefix("check_"), state="error", found=str(trouble), hint=trouble.hint)


def check_workspace(workspace: Workspace) -> Check:
    require_writable(workspace.root)
    free = shutil.disk_usage(workspace.root).free / 1e9
    if free < MIN_FREE_GB:
        found = f"{free:.1f} GB free in {workspace.root}"
        return Check(name="workspace", state="warning", found=found, hint="Free some space.")
    return Check(name="workspace", state="ok", found=f"{workspace.root}, {free:.0f} GB free")


def check_repository(workspace: Workspace) -> Check:
    from components.data.store.versioning import require_repository

    require_repository(workspace)
    return Check(name="repository", state="ok", found="DVC with a default remote")


def check_domains(workspace: Workspace) -> Check:
    """Every domain.yaml, so that a second mistake is not hidden behind the first."""
    from flows.plan import load_checked_domain

    names = sorted(path.parent.name for path in (workspace.root / "data").glob("*/domain.yaml"))
    errors = list[TesseraError]()
    for name in names:
        try:
            load_checked_domain(workspace, name)
        except TesseraError as error:
            errors.append(error)
    if errors:
        found, hint = " ".join(map(str, errors)), "Correct these files; the other domains work on."
        return Check(name="domains", state="error", found=found, hint=hint)
    return Check(name="domains", state="ok", found=", ".join(names) or "none yet")


def check_store(workspace: Workspace) -> Check:
    from components.tracking.store import Store

    try:
        Store.open(workspace)
    except TesseraError as error:
        return Check(name="mlflow", state="error", found=str(error), hint=error.hint)
    return Check(name="mlflow", state="ok", found=workspace.tracking_uri)


def check_champions(workspace: Workspace) -> Check:
    """Every champion is where its ledger left it, and its adapter is the one that was registered."""
    from components.tracking.store import Store
    from flows.steps.history import find_faults

    try:
        Store.open(workspace)
    except TesseraError:
        return Check(name="champions", state="warning", found="not asked, because MLflow does not answer")
    names = sorted(path.parent.name for path in (workspace.root / "data").glob("*/domain.yaml"))
    faults = {name: find_faults(workspace, name) for name in names}
    if found := [f"{fault}" for told in faults.values() for fault in told]:
        hint = "; ".join(f"tessera ledger verify {name}" for name, told in faults.items() if told)
        return Check(name="champions", state="error", found=" ".join(found), hint=hint)
    return Check(name="champions", state="ok", found="as their ledgers say, their adapters whole")


def check_licences(workspace: Workspace) -> Check:
    """Every champion stands under licences that its domain allows, where it sets any: its gate judged it when it was
    promoted, perhaps under another domain.yaml."""
    from components.promotion.licences import find_outside_now
    from components.promotion.versions import CHAMPION, load_version
    from components.records.licences import Chain, advise, describe_chain
    from components.tracking.store import Store
    from flows.server.schedules import load_domains

    try:
        Store.open(workspace)
    except TesseraError:
        return Check(name="licences", state="warning", found="not asked, because MLflow does not answer")
    outside = dict[str, Chain]()
    for domain in load_domains(workspace).read:
        champion = load_version(domain.name, CHAMPION)
        if champion is not None and (found := find_outside_now(workspace, champion, domain)):
            outside[domain.name] = found
    if outside:
        listed = "; ".join(f"{name}: {describe_chain(chain)}" for name, chain in outside.items())
        hint = " ".join(f"{name}: {advise(chain)}" for name, chain in outside.items())
        return Check(name="licences", state="warning", found=f"outside `gates.licences`: {listed}", hint=hint)
    return Check(name="licences", state="ok", found="all champions within `gates.licences`, where it is set")


def check_device(_: Workspace) -> Check:
    """Asked of the driver's own tool, so that torch need not start."""
    tool = shutil.which("nvidia-smi")
    return Check(name="device", state="ok", found="an NVIDIA GPU" if tool else "no GPU: training runs on the CPU")


def check_backbone(_: Workspace) -> Check:
    """The embedded weights are whole; no torch is needed to know."""
    from components.models.embedded import load_card, require_embedded

    try:
        require_embedded()
    except TesseraError as error:
        return Check(name="backbone", state="error", found=str(error), hint=error.hint)
    return Check(name="backbone", state="ok", found=f"embedded, sha256 {load_card().file_sha256[:12]}")


def check_hub(_: Workspace) -> Check:
    """Out of reach is no fault: it decides what a domain that names no backbone gets."""
    from components.models.hub import DEFAULT, EMBEDDED, why_unreachable

    reason = why_unreachable()
    found = f"out of reach ({reason}); default backbone: {EMBEDDED}" if reason else f"default backbone: {DEFAULT}"
    return Check(name="hub", state="ok", found=found)


def check_remote(workspace: Workspace) -> Check:
    """Where the images go; whether that place is safe is a matter of where it is."""
    from components.data.store.versioning import describe_remote

    told = describe_remote(workspace)
    if str(workspace.root) in told:
        hint = "Name one elsewhere: `dvc remote add --default NAME s3://... (or a path, or ssh://...)`."
        return Check(name="remote", state="warning", found=f"{told}: on the disk of the images themselves", hint=hint)
    return Check(name="remote", state="ok", found=told)


def check_telemetry(_: Workspace) -> Check:
    """On only where somebody's environment says so: a workspace sets these for itself."""
    loud = sorted(key for key, value in QUIET.items() if os.environ.get(key, value) != value)
    if loud:
        found = f"not switched off by {', '.join(loud)} of your environment"
        return Check(name="telemetry", state="warning", found=found, hint=f"unset {' '.join(loud)}")
    return Check(name="telemetry", state="ok", found="off")


def check_orphans(workspace: Workspace) -> Check:
    """Trainings, servers and workers of this workspace whose starter is gone."""
    from flows.server.services import MARKS

    servers, others = (find_orphans(workspace.root, marks) for marks in (MARKS, OTHER_MARKS))
    if left := [*servers, *others]:
        found = f"{len(left)} processes nobody waits for: {', '.join(map(str, left))}"
        hints = (["tessera down"] if servers else []) + ([f"kill {' '.join(map(str, others))}"] if others else [])
        return Check(name="processes", state="warning", found=found, hint="; ".join(hints))
    return Check(name="processes", state="ok", found="none left over")


def check_prefect(_: Workspace) -> Check:
    """Does the configured server answer, do its schedules and slots move, and what became of yesterday's runs?"""
    from flows.server.prefect_boot import find_server, why_silent

    if (url := find_server()) is None:
        return Check(name="prefect", state="ok", found="embedded: a server of its own for each command")
    from prefect.exceptions import PrefectHTTPStatusError

    from flows.commands.troubles import find_troubles

    troubles, note = list[tuple[str, str]](), ""
    if (reason := why_silent(url)) is None:
        try:
            troubles, note = find_troubles()
        except PrefectHTTPStatusError as error:
            reason = str(error)
    if reason is not None:
        hint = "Start it, or correct PREFECT_API_URL and PREFECT_API_AUTH_STRING; unset the URL to work without one."
        return Check(name="prefect", state="error", found=f"{url}: {reason}", hint=hint)
    if troubles:
        found, hints = "; ".join(found for found, _ in troubles), " ".join(hint for _, hint in troubles)
        return Check(name="prefect", state="warning", found=found, hint=hints)
    return Check(name="prefect", state="ok", found=f"{url}: runs on time, slots with owners{note}")


def check_serving(workspace: Workspace) -> Check:
    """Does the running server of champions serve what the registry names?"""
    from flows.commands import served

    return served.check_serving(workspace)


CHECKS: tuple[Callable[[Workspace], Check], ...] = (
    check_python,
    check_versions,
    check_workspace,
    check_repository,
    check_domains,
    check_store,
    check_champions,
    check_licences,
    check_remote,
    check_prefect,
    check_serving,
    check_orphans,
    check_device,
    check_backbone,
    check_hub,
    check_telemetry,
)


def _differing_versions(constraints: Path) -> list[str]:
    wanted = dict(line.strip().split("==") for line in constraints.read_text().splitlines() if "==" in line)
    there = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    names = {name: name.lower().replace("_", "-") for name in wanted}
    return [f"{n} {there[names[n]]}" for n in wanted if names[n] in there and there[names[n]] != wanted[n]]
