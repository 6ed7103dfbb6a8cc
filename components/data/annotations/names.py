"""Class names: finds names that look alike, and joins labels under one class where the domain says so (`rename`)."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import yaml

from components.data.manifest import Reading
from components.records.boxes import LabelledBox

#: Characters that look like a dash or a minus.
DASHES = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
#: Format characters, such as zero width space, soft hyphen and byte order mark; fillers; variation selectors.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u2064\u3164\ufe00-\ufe0f\ufeff]"
)


#: Cyrillic and Greek letters, and the Latin letters that they look like.
TWINS = str.maketrans("асеорхуіѕјԁАВЕКМНОРСТХΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "aceopxyisjdABEKMHOPCTXABEZHIKMNOPTYXo")


def _without_gaps(name: str) -> str:
    """Remove blanks, underscores and dashes; between digits, where they may have a meaning, keep one blank."""
    return re.sub(r"(?<=\d) (?=\d)", "\0", re.sub(r"[\s_-]+", " ", name).strip()).replace(" ", "").replace("\0", " ")


def _as_number(name: str) -> str:
    return repr(float(name)) if re.fullmatch(r"[-+]?\d+(\.\d*)?", name) else name


#: Differences between two names that may mean the same class, in the order in which they are removed.
STEPS: dict[str, Callable[[str], str]] = {
    "invisible characters": lambda name: INVISIBLE.sub("", name),
    "kinds of dashes": lambda name: DASHES.sub("-", name),
    "Unicode form": lambda name: unicodedata.normalize("NFKC", name),
    "letters of another alphabet": lambda name: name.translate(TWINS) if re.search("[A-Za-z]", name) else name,
    "the form of a number": _as_number,
    "punctuation at an end": lambda name: name.strip(".,;:!'\"") or name,
    "spaces": _without_gaps,
    "case": str.casefold,
}


def find_alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that become equal after all STEPS; each group keeps the order of `names`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_fold(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def warn_of_alike(counts: Mapping[str, int]) -> list[str]:
    """One warning per group of classes that look alike, with the line to write if they are one class.

    counts: number of images per class. The warning proposes to keep the class with the most images.
    """
    warnings = []
    for group in find_alike(counts):
        kept = max(group, key=lambda name: (counts[name], _is_plain(name)))
        others = {name: kept for name in group if name != kept}
        shown = ", ".join(f"{_show(name)} ({counts[name]})" for name in group)
        # safe_dump writes escapes, so that an editor shows the difference
        line = yaml.safe_dump({"rename": others}, default_flow_style=True, width=10_000).strip()[1:-1]
        warnings.append(
            f"Classes whose names differ in {' and '.join(_differences(group))} alone: {shown}. If they are one class, "
            f"write `{line}` into domain.yaml and take {', '.join(map(_show, others))} out of `classes`."
        )
    return warnings


def rename_labels(reading: Reading, rename: Mapping[str, str]) -> Reading:
    """The reading with every label replaced as `rename` says."""
    if not rename:
        return reading
    rows = [
        replace(
            row,
            label=rename.get(row.label, row.label) if row.label else None,
            labels=None if row.labels is None else [rename.get(label, label) for label in row.labels],
            regions=None if row.regions is None else row.regions.rename(rename),
            objects=None if row.objects is None else [_rename(each, rename) for each in row.objects],
        )
        for row in reading.rows
    ]
    return replace(reading, rows=rows)


def _rename(each: LabelledBox, rename: Mapping[str, str]) -> LabelledBox:
    return each._replace(label=rename.get(each.label, each.label))


def _fold(name: str, but: str = "") -> str:
    for step, take_away in STEPS.items():
        name = name if step == but else take_away(name)
    return name


def _differences(group: list[str]) -> list[str]:
    """The steps that are needed to make the names of a group equal."""
    return [step for step in STEPS if len({_fold(name, step) for name in group}) > 1] or ["characters that look alike"]


def _is_plain(name: str) -> bool:
    return name.isprintable() and unicodedata.is_normalized("NFC", name) and name == name.strip()


def _show(name: str) -> str:
    """The name in quotes; characters that cannot be distinguished by eye are written as escapes."""
    return repr(name) if _is_plain(name) and not DASHES.search(name) else ascii(name)
