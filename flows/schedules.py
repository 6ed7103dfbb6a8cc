"""Deployments: one a domain of the workspace, its schedule from domain.yaml, on the domain's work pool."""

import sys
from collections.abc import Sequence
from typing import Any

import yaml

from components.domain import Domain, Schedule, load_domain
from components.workspace import REPOSITORY, Workspace

ENTRYPOINT = "flows/retrain.py:retrain"


def load_domains(workspace: Workspace) -> list[Domain]:
    """Every domain of the workspace that has images, by name; those that only describe a public set are left out."""
    files = sorted((workspace.root / "data").glob("*/domain.yaml"))
    return [load_domain(path) for path in files if (path.parent / "raw.dvc").exists()]


def describe_deployments(domains: Sequence[Domain]) -> dict[str, Any]:
    """What prefect.yaml says, as a mapping; the committed file is this for the bundled domain."""
    return {
        "name": "tessera",
        "deployments": [describe_deployment(domain) for domain in domains],
    }


def describe_deployment(domain: Domain) -> dict[str, Any]:
    """One entry of prefect.yaml: `prefect deployment run retrain/<domain>` starts it by hand."""
    return {
        "name": domain.name,
        "entrypoint": ENTRYPOINT,
        "description": domain.title or f"Retrain {domain.name}",
        "tags": ["tessera", domain.name],
        "parameters": {"domain": domain.name},
        "work_pool": {"name": domain.work_pool},
        "schedules": [describe_schedule(domain.schedule)] if domain.schedule else [],
    }


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """A schedule in prefect.yaml's words."""
    if schedule.cron is not None:
        return {"cron": schedule.cron, "timezone": schedule.timezone}
    return {"interval": (schedule.interval_hours or 0) * 3600, "timezone": schedule.timezone}


def deploy(workspace: Workspace) -> list[str]:
    """Create the work pools and deployments on the configured server; running it again changes nothing.

    Returns the names of the deployments.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.deployments.runner import RunnerDeployment

    domains = load_domains(workspace)
    with get_client(sync_client=True) as client:
        # A deployment needs its pool, so the pools come first.
        known = {pool.name for pool in client.read_work_pools()}
        for pool in sorted({domain.work_pool for domain in domains} - known):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    for domain in domains:
        entry = describe_deployment(domain)
        deployment = RunnerDeployment.from_entrypoint(
            str(REPOSITORY / ENTRYPOINT),
            name=domain.name,
            description=entry["description"],
            tags=entry["tags"],
            parameters=entry["parameters"] | {"workspace": str(workspace.root)},
            work_pool_name=domain.work_pool,
            job_variables={"working_dir": str(REPOSITORY), "env": {"TESSERA_WORKSPACE": str(workspace.root)}},
            **_native_schedule(domain.schedule),
        )
        deployment.apply()
    return [f"retrain/{domain.name}" for domain in domains]


def _native_schedule(schedule: Schedule | None) -> dict[str, Any]:
    from prefect.schedules import Cron, Interval

    if schedule is None:
        return {}
    if schedule.cron is not None:
        return {"schedule": Cron(schedule.cron, timezone=schedule.timezone)}
    return {"schedule": Interval((schedule.interval_hours or 0) * 3600, timezone=schedule.timezone)}


def render_prefect_yaml(domains: Sequence[Domain]) -> str:
    """prefect.yaml for `prefect deploy --all`."""
    head = "# Written from data/*/domain.yaml (flows/schedules.py); a test keeps the two the same.\n"
    return head + yaml.safe_dump(describe_deployments(domains), sort_keys=False, width=120)


if __name__ == "__main__":
    sys.stdout.write(render_prefect_yaml([load_domain(REPOSITORY / "data" / "surface_defects" / "domain.yaml")]))
