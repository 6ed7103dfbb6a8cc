"""data/README.md: the domains and the layouts, made from their own files by `python -m components.data table`."""

import inspect

from components.domain import LAYOUTS, Domain, load_domain
from components.workspace import Workspace

HEAD = """# Domains

Made from the `domain.yaml` files by `python -m components.data table`; do not edit.

| domain | what | task | classes | layout | images' source | licence |
|---|---|---|---|---|---|---|
"""

LAYOUTS_HEAD = """
## Layouts

What `layout:` in domain.yaml and `tessera import --layout` may say. Write the name alone, or the name and its options:
`layout: {kind: folders, images: images, masks: masks}`.
"""


def render_table(workspace: Workspace) -> str:
    """Every domain of the workspace as one line of a Markdown table, then what each layout looks like."""
    files = sorted((workspace.root / "data").glob("*/domain.yaml"))
    return HEAD + "".join(_line(load_domain(path)) for path in files) + LAYOUTS_HEAD + "".join(map(_explain, LAYOUTS))


def _explain(kind: str) -> str:
    """A layout in its own words, and its options with their defaults."""
    record = LAYOUTS[kind]
    options = {name: field.default for name, field in record.model_fields.items() if name != "kind"}
    listed = ", ".join(f"`{name}: {value if value else 'none'}`" for name, value in options.items())
    return f"\n**{kind}** {' '.join((inspect.getdoc(record) or '').split())} Options: {listed}.\n"


def _line(domain: Domain) -> str:
    classes = ", ".join(domain.classes)
    cells = (domain.title or domain.name, domain.task, classes, domain.layout.kind, domain.source, domain.licence)
    texts = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    return f"| [{domain.name}]({domain.name}/domain.yaml) | {' | '.join(texts)} |\n"
