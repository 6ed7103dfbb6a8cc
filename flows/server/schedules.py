"""What `tessera deploy` creates on a Prefect server: pools, deployments, schedules, and automations.

    retrain/<domain>          on the pool `tessera`: data stages, gates, promotion; a CPU is enough
    promote/<domain>          on the pool `tessera`, for a person to start
    reproduce/<domain>        on the domain's own pool if it has one, because it is mostly a training
    run_order/<pool>          on each pool that a domain.yaml names: only what needs the GPU
    automations               retrain when a data version is named; mark a run as crashed when its heartbeat stops

Names follow from the domains, so deploying again changes only what has changed, and what no domain needs any more is
removed. Nothing depends on paths of the deploying machine: a worker works in its own TESSERA_WORKSPACE, with the
`flows` that are installed there.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import yaml

from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.domain.settings import Schedule
from components.errors import TesseraError
from components.records.operations import Change, Deployed, Deployment
from components.workspace import REPOSITORY, Workspace
from flows.server.address import JOB_ENV
from flows.server.prefect_boot import require_server

POOL = "tessera"  # the pool of retrains
TAG = "tessera"
#: The flows by the name of their file in flows/, with a description.
FLOWS = {
    "retrain": "train every candidate, gate the best, promote it if it passes.",
    "promote": "judge a version, or the challenger, against the champion; promote it if it passes.",
    "reproduce": "train a version again from its record and compare the results.",
}
VERSIONED = "tessera.data.versioned"
HEARTBEAT = "prefect.flow-run.heartbeat"
#: A flow run without a heartbeat for this time is marked as crashed.
SILENCE_SECONDS = 90
#: Variables of a process pool for the command, its environment and its folder. Anyone who may start a run could replace
#: them, and nothing here needs that.
FIXED = ("command", "env", "working_dir")
MARK = "tessera:"  # precedes, in a description, the hash of what was deployed


@dataclass(frozen=True)
class Domains:
    """The domains of a workspace: those that could be read, and by name why the others could not."""

    read: list[Domain]
    unread: dict[str, TesseraError]


def load_domains(workspace: Workspace) -> Domains:
    """Every domain of the workspace that has images; domains that only describe a public set are left out.

    A domain.yaml with a mistake does not prevent loading the others.
    """
    read, unread = list[Domain](), dict[str, TesseraError]()
    for path in sorted((workspace.root / "data").glob("*/domain.yaml")):
        if not (path.parent / "raw.dvc").exists():
            continue
        try:
            read.append(load_domain(path))
        except TesseraError as error:
            unread[path.parent.name] = error
    return Domains(read, unread)


def list_pools(domains: Sequence[Domain]) -> list[str]:
    """The pool of retrains, then the pools that train candidates."""
    return [POOL, *sorted({domain.work_pool for domain in domains if domain.work_pool} - {POOL})]


def describe_deployments(domains: Sequence[Domain]) -> dict[str, Any]:
    """The content of prefect.yaml as a mapping; the committed file holds it for the bundled domain."""
    return {"name": "tessera", "deployments": _entries(domains)}


def _entries(domains: Sequence[Domain]) -> list[dict[str, Any]]:
    entries = [entry for domain in domains for entry in describe_flows(domain)]
    pools = sorted({domain.work_pool for domain in domains if domain.work_pool})
    text = "One candidate of a retrain, on this pool's workers. A retrain starts it, not a person."
    return [*entries, *(_describe("flows.steps.dispatch.run_order", pool, text, [TAG], pool) for pool in pools)]


def describe_flows(domain: Domain) -> list[dict[str, Any]]:
    """The deployments that a person can start, in Prefect's UI or with `prefect deployment run retrain/<domain>`."""
    title, pools = domain.title or domain.name, {"reproduce": domain.work_pool or POOL}
    entries = [
        _describe(f"flows.{flow}.{flow}", domain.name, f"{title}: {text}", [TAG, domain.name], pools.get(flow, POOL))
        for flow, text in FLOWS.items()
    ]
    for entry in entries:
        entry["parameters"] = {"domain": domain.name}
    if domain.schedule and _has_clock(domain.schedule):
        entries[0]["schedules"] = [describe_schedule(domain.schedule)]
    return entries


def _describe(entrypoint: str, name: str, description: str, tags: list[str], pool: str) -> dict[str, Any]:
    """One entry of prefect.yaml."""
    return {
        "name": name,
        "entrypoint": entrypoint,
        "description": description,
        "tags": tags,
        "parameters": {},
        "work_pool": {"name": pool},
        "schedules": [],
    }


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """A schedule in the form of prefect.yaml."""
    if schedule.cron is not None:
        return {"cron": schedule.cron, "timezone": schedule.timezone}
    return {"interval": (schedule.interval_hours or 0) * 3600, "timezone": schedule.timezone}


def _has_clock(schedule: Schedule) -> bool:
    return schedule.cron is not None or schedule.interval_hours is not None


def deploy(workspace: Workspace) -> Deployment:
    """Update the configured Prefect server from the domain files, and report the changes.

    While a domain cannot be read, nothing is removed from the server, because it may belong to that domain.
    """
    require_server()
    from prefect.client.orchestration import get_client

    domains = load_domains(workspace)
    with get_client(sync_client=True) as client:
        done = [_apply_pool(client, pool) for pool in list_pools(domains.read)]
        open_pools = {pool.name for pool in client.read_work_pools() if _takes_env(pool.base_job_template)}
        entries = [_add_env(entry, open_pools) for entry in _entries(domains.read)]
        done += _apply_deployments(client, entries, keep=bool(domains.unread))
        done += _apply_automations(client, domains.read, keep=bool(domains.unread))
    unread = [
        Deployed(kind="domain", name=name, change="unreadable", note=str(error))
        for name, error in domains.unread.items()
    ]
    return Deployment(deployed=(*done, *unread))


def _apply_pool(client: Any, name: str) -> Deployed:
    """Create a pool, or close its template. Its limits, its type and the rest of its template are left unchanged."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.workers.process import ProcessWorker

    known = {pool.name: pool for pool in client.read_work_pools()}
    usual = ProcessWorker.get_default_base_job_template()
    if (pool := known.get(name)) is None:
        made, template = "Created by `tessera deploy`.", close_template(usual)
        client.create_work_pool(WorkPoolCreate(name=name, type="process", description=made, base_job_template=template))
        return Deployed(kind="work pool", name=name, change="created")
    there = pool.base_job_template
    if pool.type != "process" or (closed := close_template(there or usual)) == there:
        return Deployed(kind="work pool", name=name, change="unchanged")
    client.update_work_pool(name, WorkPoolUpdate(base_job_template=closed))
    note = "the job variables of a run can no longer replace command, environment or folder"
    return Deployed(kind="work pool", name=name, change="changed", note=note)


def close_template(template: dict[str, Any]) -> dict[str, Any]:
    """The job template of a process pool without the variables in FIXED: the server refuses runs that set them.

    A command, environment or folder that an administrator wrote into the template stays.
    """
    job, variables = dict(template["job_configuration"]), dict(template["variables"])
    properties = dict(variables.get("properties", {}))
    for name in FIXED:
        default = properties.pop(name, {}).get("default")
        if not isinstance(job.get(name), str) or "{{" in job[name]:
            job[name] = job[name] if isinstance(job.get(name), dict) else default
    job["env"] = JOB_ENV | (job["env"] or {})
    required = [name for name in variables.get("required", []) if name in properties]
    closed = {"properties": properties, "additionalProperties": False} | ({"required": required} if required else {})
    kept = {key: value for key, value in variables.items() if key != "required"}
    return template | {"job_configuration": job, "variables": kept | closed}


def _takes_env(template: dict[str, Any]) -> bool:
    return "env" in template.get("variables", {}).get("properties", {})


def _add_env(entry: dict[str, Any], pools: set[str]) -> dict[str, Any]:
    """Add the environment of every run to a deployment whose pool's template does not contain it."""
    pool = entry["work_pool"]
    return entry | {"work_pool": pool | {"job_variables": {"env": dict(JOB_ENV)}}} if pool["name"] in pools else entry


def _apply_deployments(client: Any, entries: Sequence[dict[str, Any]], *, keep: bool) -> list[Deployed]:
    """Create, change and remove deployments. A hash in the description records what a deployment was made from,
    including the flow's parameters; a deployment with an equal hash is left unchanged."""
    from prefect.client.schemas.filters import DeploymentFilter

    there = {}
    for found in client.read_deployments(deployment_filter=DeploymentFilter.model_validate({"tags": {"all_": [TAG]}})):
        flow_name = client.read_flow(found.flow_id).name
        there[f"{flow_name}/{found.name}"] = found
    deployed = []
    for entry in entries:
        flow = _load_flow(entry["entrypoint"])
        name, mark = f"{flow.name}/{entry['name']}", _hash(entry | {"form": flow.parameters.model_dump(mode="json")})
        known = there.pop(name, None)
        variables = entry["work_pool"].get("job_variables", {})
        if known is not None and mark in (known.description or "") and known.job_variables == variables:
            deployed.append(Deployed(kind="deployment", name=name, change="unchanged", note=_when(entry)))
            continue
        _create_deployment(flow, entry, mark)
        if known is not None:
            _drop_planned(client, known)
        change: Change = "created" if known is None else "changed"
        deployed.append(Deployed(kind="deployment", name=name, change=change, note=_when(entry)))
    for name, left in there.items():
        if not keep:
            client.delete_deployment(left.id)
        deployed.append(Deployed(kind="deployment", name=name, change=_leaving(keep)))
    return deployed


def _leaving(keep: bool) -> Change:
    """What deploying does to an object that no readable domain needs."""
    return "unchanged" if keep else "removed"


def _load_flow(entrypoint: str) -> Any:
    from importlib import import_module

    module, _, name = entrypoint.rpartition(".")
    return getattr(import_module(module), name)


def _create_deployment(flow: Any, entry: dict[str, Any], mark: str) -> None:
    """Create a deployment; one of the same name is replaced as a whole, including its schedules."""
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    pool = entry["work_pool"]
    deployment = RunnerDeployment.from_flow(
        flow,
        name=entry["name"],
        description=f"{entry['description']}\n\n{mark}",
        tags=entry["tags"],
        parameters=entry["parameters"],
        schedules=[_native_schedule(schedule) for schedule in entry["schedules"]],
        work_pool_name=pool["name"],
        job_variables=pool.get("job_variables", {}),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.apply()


def _drop_planned(client: Any, before: Any) -> None:
    """Delete the runs that the previous schedule had planned, late ones too; Prefect itself would keep them."""
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

    after = client.read_deployment(before.id)
    for run in client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["SCHEDULED"]}}}),
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [before.id]}}),
    ):
        if run.auto_scheduled and run.created < after.updated:
            client.delete_flow_run(run.id)


def _native_schedule(schedule: dict[str, Any]) -> Any:
    from prefect.schedules import Cron, Interval

    if "cron" in schedule:
        return Cron(schedule["cron"], timezone=schedule["timezone"])
    return Interval(schedule["interval"], timezone=schedule["timezone"])


def _when(entry: dict[str, Any]) -> str:
    """A deployment's schedule in a few words."""
    if not entry["schedules"]:
        return ""
    schedule = entry["schedules"][0]
    return schedule["cron"] if "cron" in schedule else f"every {schedule['interval'] / 3600:g} h"


def _hash(record: dict[str, Any]) -> str:
    return MARK + hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


# Automations


def describe_automations(domains: Sequence[Domain]) -> list[dict[str, Any]]:
    """Name, description, trigger and action of each automation, in the form of Prefect's API."""
    silent = {
        "name": "tessera: runs that went silent",
        "description": "Without it, a flow run whose process, worker or machine is gone would stay Running for ever.",
        "trigger": {
            "type": "event",
            "after": [HEARTBEAT],
            "expect": [
                HEARTBEAT,
                *(f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")),
            ],
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "for_each": ["prefect.resource.id"],
            "posture": "Proactive",
            "threshold": 1,
            "within": SILENCE_SECONDS,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": f"No heartbeat for {SILENCE_SECONDS} s: its process, worker or machine is gone.",
            }
        ],
    }
    return [silent, *(_describe_trigger(d) for d in domains if d.schedule is not None and d.schedule.on_version)]


def _describe_trigger(domain: Domain) -> dict[str, Any]:
    return {
        "name": f"tessera: retrain {domain.name} on a new data version",
        "description": f"`tessera version {domain.name}` emits {VERSIONED}.",
        "trigger": {
            "type": "event",
            "expect": [VERSIONED],
            "match": {"prefect.resource.id": name_resource(domain.name)},
            "posture": "Reactive",
            "threshold": 1,
            "within": 0,
        },
        "actions": [{"type": "run-deployment", "source": "selected", "deployment": f"retrain/{domain.name}"}],
    }


def name_resource(domain: str) -> str:
    """The name of a domain as the resource of Prefect events."""
    return f"tessera.domain.{domain}"


def _apply_automations(client: Any, domains: Sequence[Domain], *, keep: bool) -> list[Deployed]:
    there = {automation.name: automation for automation in client.read_automations()}
    there = {name: automation for name, automation in there.items() if name.startswith("tessera: ")}
    deployed = []
    for record in describe_automations(domains):
        name, mark = record["name"], _hash(record)
        known = there.pop(name, None)
        if known is not None and mark in known.description and known.enabled:
            deployed.append(Deployed(kind="automation", name=name, change="unchanged"))
            continue
        automation = _create_automation(client, record, mark)
        if known is None:
            client.create_automation(automation)
        else:
            client.update_automation(known.id, automation)
        deployed.append(Deployed(kind="automation", name=name, change="created" if known is None else "changed"))
    for name, left in there.items():
        if not keep:
            client.delete_automation(left.id)
        deployed.append(Deployed(kind="automation", name=name, change=_leaving(keep)))
    return deployed


def _create_automation(client: Any, record: dict[str, Any], mark: str) -> Any:
    """An automation as Prefect's own model. An action names a deployment by its id, which only the server knows."""
    from prefect.events.schemas.automations import AutomationCore

    actions = []
    for action in record["actions"]:
        if "deployment" in action:
            found = client.read_deployment_by_name(action["deployment"])
            action = {key: value for key, value in action.items() if key != "deployment"} | {"deployment_id": found.id}
        actions.append(action)
    trigger = record["trigger"] | {"within": timedelta(seconds=record["trigger"]["within"])}
    facts = {"name": record["name"], "description": f"{record['description']} {mark}"}
    return AutomationCore.model_validate(facts | {"trigger": trigger, "actions": actions})


def render_prefect_yaml(domains: Sequence[Domain]) -> str:
    """prefect.yaml for `prefect deploy --all`."""
    head = "# Written from data/*/domain.yaml (flows/server/schedules.py); a test keeps the two the same.\n"
    return head + yaml.safe_dump(describe_deployments(domains), sort_keys=False, width=120)


if __name__ == "__main__":
    sys.stdout.write(render_prefect_yaml([load_domain(REPOSITORY / "data" / "surface_defects" / "domain.yaml")]))
