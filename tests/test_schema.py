"""`tessera schema` knows every key that a domain file may have, and editors may trust its JSON schema."""

import json
from typing import Any

import jsonschema
import pytest
import yaml
from samples import make_domain
from typer.testing import CliRunner

from components.domain.domain import Domain
from components.domain.layouts import LAYOUTS
from components.models.tuners import TUNERS
from components.tasks import TASKS
from components.workspace import REPOSITORY
from flows.commands.cli import app
from flows.commands.schema import create_schema, describe_keys

SHIPPED = sorted((REPOSITORY / "data").glob("*/domain.yaml"))


def test_every_key_has_a_meaning_and_a_default() -> None:
    keys = {row["key"]: row for row in describe_keys()}
    assert [key for key, row in keys.items() if not row["meaning"].endswith(".")] == []
    assert [key for key, row in keys.items() if not row["default"]] == []
    options = {f"layout({kind}).{name}" for kind, layout in LAYOUTS.items() for name in layout.model_fields}
    options |= {f"task({kind}).{name}" for kind, task in TASKS.items() for name in task.model_fields}
    options |= {f"candidates({kind}).{name}" for kind, tuner in TUNERS.items() for name in tuner.model_fields}
    assert keys.keys() >= options | Domain.model_fields.keys() | {"training.epochs", "gates.costs", "search.trials"}
    assert keys["training.epochs"]["default"] == str(make_domain().training.epochs)
    assert keys["training.dtype"]["allowed"] == "auto | float32 | bfloat16"
    assert keys["split.val"]["allowed"] == "> 0, < 0.5"
    assert (keys["decision"]["default"], keys["decision.<class>.escape"]["allowed"]) == ("none", "> 0, < 1")


@pytest.mark.parametrize("file", SHIPPED, ids=[path.parent.name for path in SHIPPED])
def test_shipped_domains_keep_the_schema(file: Any) -> None:
    jsonschema.validate(yaml.safe_load(file.read_text()), create_schema())


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"candidates": ["linear", {"kind": "vpt", "num_prompts": 5}]}, True),
        ({"candidates": [{"kind": "vpt", "prompts": 5}]}, False),
        ({"candidates": ["magic"]}, False),
        ({"layout": {"kind": "csv", "label": "grade"}}, True),
        ({"layout": "magic"}, False),
        ({"task": {"kind": "multilabel"}}, True),
        ({"task": "magic"}, False),
        ({"split": "given"}, True),
        ({"split": {"val": 0.7}}, False),
        ({"decision": {"good": {"escape": 0.01, "abstain": True}}}, True),
        ({"decision": {"good": {"abstain": True}}}, False),
        ({"epochs": 3}, False),
    ],
)
def test_the_schema_refuses_what_the_domain_refuses(change: dict[str, Any], fits: bool) -> None:
    facts = {"name": "tiles", "task": "classification", "classes": ["good", "bad"], "layout": "folders"} | change
    checker = jsonschema.Draft202012Validator(create_schema())
    assert checker.is_valid(facts) == fits, list(checker.iter_errors(facts))


def test_the_command_prints_80_columns_or_the_schema() -> None:
    shown = CliRunner().invoke(app, ["schema"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "training.checkpoint_seconds: 10.0" in shown.stdout
    assert json.loads(CliRunner().invoke(app, ["schema", "--json"]).stdout) == create_schema()
