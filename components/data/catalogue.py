"""data/README.md: the table of domains, made from their files by `python -m components.data table`."""

from components.domain import Domain, load_domain
from components.workspace import Workspace

HEAD = """# Domains

Made from the `domain.yaml` files by `python -m components.data table`; do not edit.

| domain | what | task | classes | layout | images' source | licence |
|---|---|---|---|---|---|---|
"""


def render_table(workspace: Workspace) -> str:
    """Every domain of the workspace as one line of a Markdown table."""
    files = sorted((workspace.root / "data").glob("*/domain.yaml"))
    return HEAD + "".join(_line(load_domain(path)) for path in files)


def _line(domain: Domain) -> str:
    classes = ", ".join(domain.classes)
    cells = (domain.title or domain.name, domain.task, classes, domain.layout.kind, domain.source, domain.licence)
    texts = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    return f"| [{domain.name}]({domain.name}/domain.yaml) | {' | '.join(texts)} |\n"
