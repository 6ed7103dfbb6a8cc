"""data/README.md: the domains and the layouts, written from their own files by `python -m components.data table`."""

import inspect

from components.domain.domain import Domain
from components.domain.layouts import LAYOUTS
from components.domain.reading import load_domain
from components.workspace import Workspace

HEAD = """# Domains

Generated from the `domain.yaml` files by `python -m components.data table`; do not edit.

| domain | what | task | classes | layout | images' source | licence |
|---|---|---|---|---|---|---|
"""

LAYOUTS_HEAD = """
## Bringing images in

`tessera import FOLDER --domain NAME` creates a domain, and the same command with another folder adds to it: `+30 -0 ~1`
counts the files added, removed and changed (`--json`: `added`, `removed`, `changed`, `kept`). Adding never removes a
file. Tables, COCO files and lists of splits with the same path are merged, if both have the same columns and agree on
the pictures that both list. Any other file with the same path must have the same content; `--force` replaces it. If the
folder is the whole set, `--replace` makes the domain identical to the folder. It refuses to drop or overwrite pictures
that no named version (`tessera version NAME`) holds, unless `--force` is given as well. Images that a clone has not
fetched yet are fetched first.

`tessera remove NAME` removes the images and everything derived from them from the workspace, under the same condition.
The ledger, the registered models, named versions and DVC's cache and remote stay, and so does `splits.csv`, so that a
later import of the same images cannot put a training image into test. `tessera schema` lists every key of domain.yaml.

## Layouts

The values of `layout:` in domain.yaml and of `tessera import --layout`. Write the name alone, or the name with options:
`layout: {kind: folders, images: images, masks: masks}`.
"""


def render_table(workspace: Workspace) -> str:
    """The text of data/README.md: a Markdown table with one line per domain, then a description of each layout."""
    files = sorted((workspace.root / "data").glob("*/domain.yaml"))
    return HEAD + "".join(_line(load_domain(path)) for path in files) + LAYOUTS_HEAD + "".join(map(_explain, LAYOUTS))


def _explain(kind: str) -> str:
    """The paragraph of a layout: the docstring of its record, and its options with their defaults."""
    record = LAYOUTS[kind]
    options = {name: field.default for name, field in record.model_fields.items() if name != "kind"}
    listed = ", ".join(f"`{name}: {value if value else 'none'}`" for name, value in options.items())
    return f"\n**{kind}** {' '.join((inspect.getdoc(record) or '').split())} Options: {listed}.\n"


def _line(domain: Domain) -> str:
    classes = ", ".join(domain.classes)
    cells = (domain.title or domain.name, domain.task_kind, classes, domain.layout.kind, domain.source, domain.licence)
    texts = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
    return f"| [{domain.name}]({domain.name}/domain.yaml) | {' | '.join(texts)} |\n"
