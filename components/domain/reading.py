"""Reads and checks domain.yaml: unknown keys, wrong values and wrong overrides are errors that name the choices."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from components.domain.domain import Domain
from components.domain.layouts import LAYOUTS, Layout
from components.errors import DomainError, TesseraError


def load_domain(path: Path, overrides: Sequence[str] = ()) -> Domain:
    """Read and check one `domain.yaml`; `overrides` are `key.sub=value` texts with YAML values.

    Raises DomainError for a missing file, broken YAML, an unknown key or an illegal value.
    """
    if not path.is_file():
        known = sorted(p.parent.name for p in path.parent.parent.glob("*/domain.yaml"))
        raise DomainError(
            f"domain {path.parent.name!r}",
            expected=f"a file {path}",
            found=f"none; the domains here are: {', '.join(known) or 'none yet'}",
            hint="Name one of these, or create a new one with `tessera import FOLDER --domain NAME`.",
        )
    raw = read_yaml(path)
    for text in overrides:
        _override(raw, text)
    domain = parse_domain(raw, " with ".join([str(path), *(f"--set {text}" for text in overrides)]))
    if domain.name != path.parent.name:
        raise DomainError(
            str(path),
            expected=f"name: {path.parent.name}, as the folder is called",
            found=f"name: {domain.name}",
            hint="Rename the folder or change the name.",
        )
    return domain


def parse_domain(raw: Mapping[str, Any], where: str) -> Domain:
    """Check the mapping of a domain. where: the beginning of the error message. Raises DomainError."""
    try:
        return Domain.model_validate(raw)
    except ValidationError as error:
        raise explain(error, where, Domain) from None


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> DomainError:
    """Turn pydantic's report into one paragraph about the first and most informative mistake.

    An unknown key is more informative than a missing one, because it often is the missing key with a typo.
    """
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"]) or "the file"
    more = f" ({error.error_count() - 1} more after this one)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        expected, found = f"one of the keys {', '.join(known)}", f"the unknown key {key!r}"
        return DomainError(where, expected=expected, found=found + more, hint=f"{hint}Rename or remove it.")
    if first["type"] == "missing":
        return DomainError(where, expected=f"the key {key!r}", found="no such key" + more, hint="Add it.")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = message[0].lower() + message[1:]
    found = f"{key} = {first['input']!r}"
    return DomainError(where, expected=expected, found=found[:200] + more, hint=f"Change {key!r}.")


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The legal keys at the place of an unknown key, in nested models and in layouts by their kind."""
    fields = model.model_fields
    for part in loc[:-1]:
        if isinstance(part, str) and part in LAYOUTS:
            fields = LAYOUTS[part].model_fields
        elif isinstance(part, str) and part in fields:
            annotation = fields[part].annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            nested = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
            fields = nested.model_fields if nested else fields
    return list(fields)


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases (a few lines of them can expand beyond any memory) and without duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.get_mark()
            raise yaml.constructor.ConstructorError(None, None, "an alias", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            names = [self.construct_object(key) for key, _ in node.value]
            twice = next(name for name in names if names.count(name) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} twice", node.start_mark)
        return mapping


def parse_yaml(text: str) -> Any:
    """The value of a text in plain YAML. Raises ValueError that says what is wrong and where."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 99th of a month
        raise ValueError(" ".join(str(error).split())[:300]) from None


def read_yaml(path: Path, hint: str = "Correct that line.", kind: type[TesseraError] = DomainError) -> dict[str, Any]:
    """Read a mapping from a file in plain YAML. Raises an error of the class `kind`."""
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a UnicodeDecodeError is one
        raise kind(str(path), expected="legal YAML", found=str(error), hint=hint) from None
    if not isinstance(raw, dict):
        found = "an empty file" if raw is None else f"a {type(raw).__name__}"
        raise kind(str(path), expected="a mapping, `key: value` lines", found=found, hint=hint)
    return raw


def parse_layout(text: str, where: str = "--layout") -> Layout:
    """The layout from a command line: its kind, or the mapping that domain.yaml would hold. Raises DomainError."""
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise DomainError(where, expected="legal YAML", found=str(error), hint="Correct it.") from None
    facts = {"kind": raw} if isinstance(raw, str) else raw
    kinds = ", ".join(LAYOUTS)
    if not isinstance(facts, dict) or not isinstance(facts.get("kind"), str) or facts["kind"] not in LAYOUTS:
        kind = facts.get("kind") if isinstance(facts, dict) else raw
        close = difflib.get_close_matches(str(kind), LAYOUTS, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        found = f"{str(text)[:100]!r}"
        hint = (
            f"{hint}Write for example `--layout '{{kind: csv, image: file, label: grade}}'`; data/README.md lists all."
        )
        raise DomainError(where, expected=f"a kind ({kinds}), or a mapping with it", found=found, hint=hint)
    model = LAYOUTS[facts["kind"]]
    try:
        return model.model_validate(facts)
    except ValidationError as error:
        raise explain(error, where, model) from None


def write_layout(layout: Layout) -> str | dict[str, Any]:
    """A layout as domain.yaml holds it: its kind alone, or with the options that differ from the default."""
    options = layout.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    return {"kind": layout.kind, **options} if options else layout.kind


def render_layout(layout: Layout) -> str:
    """A layout as one line of YAML, as `--layout` and `layout:` take it."""
    written = write_layout(layout)
    text = yaml.safe_dump(written, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _override(raw: dict[str, Any], text: str) -> None:
    """Apply one override `a.b.c=value` to `raw`; a part that is a number selects an item of a list."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        hint = "Write for example `--set training.epochs=5`."
        raise DomainError(f"--set {text!r}", expected="key=value", found="no such form", hint=hint)
    *path, last = key.strip().split(".")
    try:
        parsed = parse_yaml(value)
        place: Any = raw
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = parsed
    except (ValueError, IndexError, TypeError, AttributeError):
        expected = "a key of domain.yaml, parts joined by dots, and a YAML value"
        hint = "Write for example `--set training.epochs=5` or `--set 'candidates=[linear, vapt]'`."
        raise DomainError(f"--set {text!r}", expected=expected, found="none", hint=hint) from None
