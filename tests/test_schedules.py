"""prefect.yaml says what the domain files say."""

import yaml

from components.domain import Schedule, load_domain
from components.workspace import REPOSITORY
from flows.schedules import describe_schedule, render_prefect_yaml


def test_prefect_yaml_is_up_to_date() -> None:
    """Mend with: python -m flows.schedules > prefect.yaml"""
    domain = load_domain(REPOSITORY / "data" / "surface_defects" / "domain.yaml")
    text = (REPOSITORY / "prefect.yaml").read_text()
    assert text == render_prefect_yaml([domain])
    (deployment,) = yaml.safe_load(text)["deployments"]
    assert domain.schedule is not None
    assert deployment["schedules"][0]["cron"] == domain.schedule.cron
    module, _, name = deployment["entrypoint"].rpartition(".")
    assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists()
    assert name == "retrain"


def test_an_interval_is_in_seconds() -> None:
    assert describe_schedule(Schedule(interval_hours=1.5)) == {"interval": 5400.0, "timezone": "UTC"}
