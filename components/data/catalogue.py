"""data/README.md: the domains and the layouts, made from their own files by `python -m components.data table`."""

import inspect

from components.domain.domain import Domain
from components.domain.layouts import LAYOUTS
from components.domain.reading import load_domain
from components.workspace import Workspace

HEAD = """# Domains

Made from the `domain.yaml` files by `python -m components.data table`; do not edit.

| domain | what | task | classes | layout | images' source | licence |
|---|---|---|---|---|---|---|
"""

LAYOUTS_HEAD = """
## Bringing images in

`tessera import FOLDER --domain NAME` makes a domain, and the same command with another folder adds to it: `+30 -0 ~1`
counts the files added, removed and changed (`--json`: `added`, `removed`, `changed`, `kept`). Nothing that is in
place goes away by adding. Tables, COCO files and lists of splits of the same path are merged, where both have the
same columns and say the same of a picture that both list. Any other file of the same path needs the same content;
`--force` lets the new one take its place. Where the folder is the whole set, `--replace` makes the domain the same as
the folder. It refuses to drop or overwrite pictures that no named version (`tessera version NAME`) holds, unless
`--force` is given, too. Images that a clone has not fetched yet are fetched first.

`tessera remove NAME` takes the images and all that was made of them out of the workspace, under the same condition.
The ledger, the registered models, named versions and DVC's cache and remote stay, and `splits.csv`, so that a later
import of the same images cannot put a training image into the test. `tessera schema` lists every key of domain.yaml.

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
