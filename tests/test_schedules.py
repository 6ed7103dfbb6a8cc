"""prefect.yaml says what the domain files say."""

import yaml
from conftest import TINY

from components.domain.reading import load_domain, parse_domain
from components.domain.settings import Schedule
from components.workspace import REPOSITORY
from flows.server.schedules import FLOWS, POOL, describe_flows, describe_schedule, render_prefect_yaml


def test_prefect_yaml_is_up_to_date() -> None:
    """Fix with: python -m flows.server.schedules > prefect.yaml"""
    domain = load_domain(REPOSITORY / "data" / "surface_defects" / "domain.yaml")
    text = (REPOSITORY / "prefect.yaml").read_text()
    assert text == render_prefect_yaml([domain])
    entries = yaml.safe_load(text)["deployments"]
    assert [entry["entrypoint"] for entry in entries] == [f"flows.{name}.{name}" for name in FLOWS]
    assert [entry["parameters"] for entry in entries] == [{"domain": domain.name}] * len(FLOWS)
    assert domain.schedule is not None
    assert [entry["schedules"][0]["cron"] for entry in entries if entry["schedules"]] == [domain.schedule.cron]


def test_only_training_goes_to_the_domains_own_pool() -> None:
    domain = parse_domain(TINY | {"work_pool": "gpu"}, "tests")
    pools = {entry["entrypoint"].rpartition(".")[2]: entry["work_pool"]["name"] for entry in describe_flows(domain)}
    assert pools == {"retrain": POOL, "promote": POOL, "reproduce": "gpu"}


def test_an_interval_is_in_seconds() -> None:
    assert describe_schedule(Schedule(interval_hours=1.5)) == {"interval": 5400.0, "timezone": "UTC"}
