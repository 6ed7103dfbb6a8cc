"""The licences that a version stands under: those of its backbone, its data and the code, as one chain."""

import difflib
from collections.abc import Collection, Iterable
from typing import Final, Literal

from components.domain.licences import UNKNOWN, normalise
from components.domain.strict import Strict

#: Identifiers of SPDX and of the hub, in lower case as timm and the hub write them. A licence need not be among them:
#: they only show what a mistyped one may have meant.
USUAL: Final = frozenset(
    {
        *("0bsd", "afl-3.0", "agpl-3.0", "agpl-3.0-only", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0"),
        *("bigscience-openrail-m", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda"),
        *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
        *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
        *("cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0"),
        *("cdla-sharing-1.0", "cvnets-license", "dinov3-license", "ecl-2.0", "epl-2.0", "eupl-1.2"),
        *("fair-noncommercial-research-license", "gemma", "gpl-2.0", "gpl-2.0-only", "gpl-3.0", "gpl-3.0-only"),
        *("isc", "lgpl-2.1", "lgpl-2.1-only", "lgpl-3.0", "lgpl-3.0-only", "mit", "mit-0", "mpl-2.0", "ms-pl"),
        *("ncsa", "nvidia-open-model-license", "odbl-1.0", "odc-by", "odc-by-1.0", "openrail", "openrail++", "osl-3.0"),
        *("other", "pddl-1.0", "postgresql", "python-2.0", "qwen-community-1.0", "sapiens2-license", "seer-license"),
        *("unlicense", "upl-1.0", "wtfpl", "zlib", UNKNOWN),
    }
)
#: Tessera's own, as pyproject.toml states it.
CODE: Final = "apache-2.0"
Role = Literal["backbone", "teacher", "data", "code"]
#: What to do about a link outside the licences allowed, by its role, and where its licence is unknown.
OTHERS: Final[dict[Role, str]] = {
    "backbone": "train on another backbone",
    "teacher": "train on another backbone",
    "data": "train on images under another licence",
}
UNSTATED: Final[dict[Role, str]] = OTHERS | {
    "backbone": "have the backbone state its licence in its file's metadata or its config.json, and retrain",
    "data": "state the licence of the images as `licence:` in domain.yaml and retrain",
}


class Link(Strict):
    """One thing that a version was made from, and its licence (`unknown` where nobody stated it).

    role: `teacher` is a network that the backbone was distilled from. name: empty for the code.
    """

    role: Role
    name: str
    licence: str

    def __str__(self) -> str:
        licence = f'"{self.licence}"' if ";" in self.licence else self.licence  # a text with the chain's own separator
        return f"{self.subject}: {licence}"

    @property
    def subject(self) -> str:
        return f"{self.role} {self.name}".strip()

    @staticmethod
    def of(role: Role, name: str, licence: str | None) -> "Link":
        """licence: as anybody wrote it; None where nobody did."""
        return Link(role=role, name=name, licence=normalise(licence))


Chain = tuple[Link, ...]


def describe_chain(chain: Iterable[Link]) -> str:
    """`backbone embedded: apache-2.0; data tiles: cc0-1.0; code: apache-2.0`."""
    return "; ".join(map(str, chain)) or "not recorded"


def find_outside(chain: Iterable[Link], allowed: Collection[str]) -> Chain:
    """The links whose licence is not allowed. allowed: as `normalise` writes them."""
    return tuple(link for link in chain if link.licence not in allowed)


def advise(outside: Iterable[Link]) -> str:
    """How to bring these links within the licences that are allowed."""
    known = ", ".join(dict.fromkeys(f"`{link.licence}`" for link in outside if link.licence != UNKNOWN))
    found = [(UNSTATED if link.licence == UNKNOWN else OTHERS).get(link.role) for link in outside]
    steps = list(dict.fromkeys(step for step in found if step))
    if known:
        steps.append(f"{'or, ' if steps else ''}if the terms allow your use, add {known} to `gates.licences`")
    text = "; ".join(steps)
    return f"{text[0].upper()}{text[1:]}."


def suggest(licence: str) -> tuple[str, ...]:
    """Usual identifiers close to one that is not usual itself, three at most; none where no usual one is close."""
    if licence in USUAL:
        return ()
    begun = sorted(usual for usual in USUAL if usual.startswith(licence))
    return tuple(dict.fromkeys([*begun, *difflib.get_close_matches(licence, sorted(USUAL), cutoff=0.65)]))[:3]
