"""What a team's installation is written down as, as far as it can be checked without a container engine.

The commands of both servers run as plain processes in test_orchestration.py.
"""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders

from components.serving.server.__main__ import END_SECONDS, read_options
from components.serving.server.app import create_app
from components.serving.server.champions import Champions
from components.serving.server.service import open_service
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


@pytest.fixture(scope="module")
def routes() -> set[str]:
    """The paths that the server of champions answers to a GET."""
    service = open_service(Champions())
    paths = create_app(service).openapi()["paths"]
    service.close(1)
    return {path for path, methods in paths.items() if "get" in methods}


def test_kubernetes_starts_a_server_that_is_and_asks_it_where_it_answers(routes: set[str]) -> None:
    deployment, service = yaml.safe_load_all((REPOSITORY / "prefect" / "kubernetes-serve.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asks = container[probe]["httpGet"]
        assert (asks["path"] in routes, asks["port"]) == (True, container["ports"][0]["name"])
    _require_command(container["args"], container["ports"][0]["containerPort"])
    token = Path(_read_option(container["args"], "--token-file"))
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {str(token.parent), container["env"][0]["value"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert pod["terminationGracePeriodSeconds"] > END_SECONDS + int(
        container["lifecycle"]["preStop"]["exec"]["command"][1]
    )
    assert {name for secret in container["envFrom"] for name in secret["secretRef"].values()} == {"tessera"}


def test_compose_serves_champions_to_whoever_has_the_token(routes: set[str]) -> None:
    compose = yaml.safe_load((REPOSITORY / "mlflow" / "compose.yaml").read_text())
    service = compose["services"]["serve"]
    _require_command(service["command"], int(service["ports"][0].partition(":")[2]))
    assert _read_option(service["command"], "--token-file") == f"/run/secrets/{service['secrets'][0]}"
    assert set(service["secrets"]) == set(compose["secrets"])
    asked = re.search(r"'http://127.0.0.1:(\d+)(/[^']+)'", service["healthcheck"]["test"][-1])
    assert asked is not None
    assert (f"--port={asked[1]}" in service["command"], asked[2] in routes) == (True, True)
    assert int(service["stop_grace_period"].removesuffix("s")) > END_SECONDS
    assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(compose["volumes"])


def test_kserve_starts_the_same_server(routes: set[str]) -> None:
    """The example of the documentation."""
    text = (REPOSITORY / "docs" / "serving.md").read_text()
    block, _, _ = text[text.index("    apiVersion: serving.kserve.io") :].partition("\n\n")
    example = yaml.safe_load(textwrap.dedent(block))
    predictor = example["spec"]["predictor"]
    (container,) = predictor["containers"]
    _require_command(container["args"], container["ports"][0]["containerPort"])
    assert container["readinessProbe"]["httpGet"]["path"] in routes
    assert Path(_read_option(container["args"], "--token-file")).parent == Path(
        container["volumeMounts"][0]["mountPath"]
    )
    assert container["volumeMounts"][0]["name"] == predictor["volumes"][0]["name"]


def _require_command(words: list[str], port: int) -> None:
    """A command line that `tessera serve` reads, at this port, for other machines."""
    assert words[:2] == ["tessera", "serve"]
    options = read_options(words[2:])
    assert (options.host, options.port) == ("0.0.0.0", port)


def _read_option(words: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))


def _fill(values: dict[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = apply_values(POOL["job_configuration"], values)["job_manifest"]["spec"]
    return filled
