"""What a team's installation is written down as, as far as it can be checked without a container engine.

The commands of both servers run as plain processes in test_orchestration.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders

from components.workspace import REPOSITORY

COMPOSE = [REPOSITORY / name / "compose.yaml" for name in ("mlflow", "prefect")]
IMAGES = [*REPOSITORY.glob("prefect/*.Dockerfile"), REPOSITORY / "mlflow" / "Dockerfile"]
POOL = json.loads((REPOSITORY / "prefect" / "kubernetes-pool.json").read_text())


@pytest.mark.parametrize("file", COMPOSE, ids=lambda path: path.parent.name)
def test_a_compose_file_asks_for_no_more_than_its_example_names(file: Path) -> None:
    """And has no secret in it: what is called so comes from the environment."""
    text = file.read_text()
    named = set(re.findall(r"^(\w+)=", file.with_name("example.env").read_text(), re.MULTILINE))
    assert {name for name, default in re.findall(r"\$\{(\w+)(:-)?", text) if not default} <= named
    services = yaml.safe_load(text)["services"]
    for service in services.values():
        for key, value in service.get("environment", {}).items():
            assert "${" in value or not re.search("PASSWORD|SECRET|LOGIN|ACCESS_KEY", key), key
        assert set(service.get("depends_on", {})) <= set(services)
        if "build" in service:
            assert (REPOSITORY / service["build"]["dockerfile"]).exists()


@pytest.mark.parametrize("file", IMAGES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_an_image_copies_is_there_and_it_does_not_run_as_root(file: Path) -> None:
    lines = file.read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((REPOSITORY / name).exists() for name in copied)
    assert [line for line in lines if line.startswith("USER") and "root" not in line]


def test_a_kubernetes_job_asks_for_a_gpu_and_keeps_its_caches() -> None:
    """The template as Prefect fills it, with every value from the variables' defaults or from Prefect itself."""
    jsonschema.Draft202012Validator.check_schema(POOL["variables"])
    known = POOL["variables"]["properties"]
    assert {found.name for found in find_placeholders(POOL["job_configuration"])} == set(known)
    given = {name: facts["default"] for name, facts in known.items() if "default" in facts}
    given |= {"command": "prefect flow-run execute", "name": "train", "labels": {"app": "tessera"}}
    pod = _fill(given)["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert _fill(given | {"gpus": 4})["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert container["envFrom"] == [{"secretRef": {"name": "tessera"}}]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["env"]["TESSERA_WORKSPACE"] in [mount["mountPath"] for mount in container["volumeMounts"]]


def _fill(values: dict[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = apply_values(POOL["job_configuration"], values)["job_manifest"]["spec"]
    return filled
