"""`tessera schema`: every key of domain.yaml with its default and meaning, from the records that check it."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from components.domain.domain import Domain
from components.domain.layouts import LAYOUTS
from components.models.tuners import TUNERS, Tuner
from components.tasks import TASKS, TaskRecord


def describe_keys() -> list[dict[str, str]]:
    """`{"key": "training.epochs", "default": "20", "allowed": ">= 1", "meaning": ...}`, in the order of the records.

    The options of a task, layout or candidate are `task(multilabel).kind`, `layout(csv).table`, `candidates(vpt).deep`.
    """
    return list(_describe(Domain, ""))


def create_schema() -> dict[str, Any]:
    """The JSON schema of domain.yaml, for editors: with the options of task and candidates, and the short forms."""
    schema: dict[str, Any] = Domain.model_json_schema()
    tuners = TypeAdapter(Tuner).json_schema(ref_template="#/$defs/{model}")
    tasks = TypeAdapter(TaskRecord).json_schema(ref_template="#/$defs/{model}")
    schema["$defs"] |= tuners.pop("$defs") | tasks.pop("$defs")
    keys = schema["properties"]
    keys["candidates"]["items"] = {"anyOf": [{"enum": list(TUNERS)}, tuners]}
    keys["task"] = {"description": keys["task"]["description"], "anyOf": [{"enum": list(TASKS)}, tasks]}
    for key, words in (("layout", list(LAYOUTS)), ("split", ["given"])):
        described = {name: keys[key].pop(name) for name in ("description", "default") if name in keys[key]}
        keys[key] = {"anyOf": [{"enum": words}, keys[key]], **described}
    return schema


def _describe(record: type[BaseModel], before: str) -> Iterator[dict[str, str]]:
    for name, field in record.model_fields.items():
        key = f"{before}{name}"
        nested = next((part for part in (field.annotation, *get_args(field.annotation)) if _is_record(part)), None)
        if name == "layout":
            yield _describe_field(key, field, allowed=" | ".join(LAYOUTS))
            for kind, layout in LAYOUTS.items():
                yield from _describe(layout, f"layout({kind}).")
        elif name == "task":
            yield _describe_field(key, field, allowed=" | ".join(TASKS))
            for kind, task in TASKS.items():
                yield from _describe(task, f"task({kind}).")
        elif name == "candidates":
            yield _describe_field(key, field, default=", ".join(item["kind"] for item in field.default))
            for kind, tuner in TUNERS.items():
                yield from _describe(tuner, f"candidates({kind}).")
        elif nested is not None:
            yield _describe_field(key, field, default="as below" if field.default else "none")
            yield from _describe(nested, f"{key}.<class>." if get_origin(field.annotation) is Mapping else f"{key}.")
        else:
            yield _describe_field(key, field)


def _is_record(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def _describe_field(key: str, field: FieldInfo, *, default: str = "", allowed: str = "") -> dict[str, str]:
    meaning = " ".join((field.description or "").split())
    facts = {"key": key, "default": default or _write(field), "allowed": allowed or _list_allowed(field)}
    return facts | {"meaning": meaning}


def _write(field: FieldInfo) -> str:
    """A default as YAML has it."""
    value = field.get_default()
    if value is PydanticUndefined:
        return "required"
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def _list_allowed(field: FieldInfo) -> str:
    """Words and limits, as the field checks them."""
    parts = (field.annotation, *get_args(field.annotation))
    words = [word for part in parts for word in (part, *get_args(part)) if isinstance(word, str)]
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [(sign, getattr(item, name, None)) for item in field.metadata for name, sign in signs.items()]
    limits = [f"{sign} {limit}" for sign, limit in found if limit is not None]
    return " | ".join(dict.fromkeys(words)) or ", ".join(limits)
