"""Label maps: files beside the masks of a set that say which number or colour is which class.

They are tables (`class_dict.csv` with name, r, g, b; `_classes.csv` with Pixel Value, Class; `objectInfo150.txt`),
lines (`labelmap.txt` with name:r,g,b, `label_colors.txt` with r g b name), lists of names (`classes.txt`, `codes.txt`),
or JSON objects from names to numbers or the other way round.
"""

import csv
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from components.data.annotations.cells import decode, find_delimiter, find_encoding

NAMED = re.compile(r"class|label|colou?r|categor|codes|objectinfo|palette|legend|id2|dataset\.json", re.IGNORECASE)
SUFFIXES = (".csv", ".tsv", ".txt", ".json")
LARGEST = 200_000  # bytes of a label map
SHARE = 0.5  # least share of the values of the masks that a label map must name
#: What label maps call pixels of which nothing is known.
UNKNOWN = re.compile(r"(?i)void|unlabel+ed|ignored?|unknown|not[-_ ]labell?ed|don'?t[-_ ]?care|unclassified")
#: What they call pixels that show nothing.
BACKGROUND = re.compile(r"(?i)_?back[-_ ]?ground_?|bg|backgr|none|nothing|no[-_ ]?(?:defect|object|label)")
_COLUMNS = {
    "name": ("name", "class", "classname", "label", "labelname", "category"),
    "number": ("pixelvalue", "value", "id", "idx", "index", "classid", "labelid", "number", "gray", "grey", "trainid"),
    "red": ("r", "red"),
    "green": ("g", "green"),
    "blue": ("b", "blue"),
    "colour": ("color", "colour", "hex", "rgb"),
}
_LINES = (
    re.compile(r"(?P<name>[^:]+):(?P<r>\d+),(?P<g>\d+),(?P<b>\d+)(?::.*)?"),
    re.compile(r"(?P<r>\d+)[ \t,]+(?P<g>\d+)[ \t,]+(?P<b>\d+)[ \t,]+(?P<name>\D.*)"),
    re.compile(r"(?P<name>\D.*?)[ \t,:]+(?P<r>\d+)[ \t,]+(?P<g>\d+)[ \t,]+(?P<b>\d+)"),
    re.compile(r"(?P<number>\d+)\s*[\s,:;=]\s*(?P<name>\D.*)"),
    re.compile(r"(?P<name>\D.*?)\s*[\s,:;=]\s*(?P<number>\d+)"),
)

LabelMap = Mapping[int | str, str]  # the class of a number, or of a colour `#rrggbb`


def find_label_map(raw: Path, files: Iterable[str], numbers: Set[int], colours: Set[int]) -> LabelMap:
    """The label map that names most of the values of the masks; empty if none names at least SHARE of them.

    numbers, colours: values that occur in masks read as numbers, and read as colours 0xRRGGBB.
    """
    shown: dict[type, Set[int | str]] = {int: numbers - {0, 255}, str: {f"#{c:06x}" for c in colours} - {"#000000"}}
    best: tuple[float, LabelMap] = (SHARE, {})
    for path in sorted(files, key=lambda path: (path.count("/"), path)):
        name = posixpath.basename(path)
        if not name.lower().endswith(SUFFIXES) or not NAMED.search(name) or (raw / path).stat().st_size > LARGEST:
            continue
        for found in (_read(raw / path, numbers), _read_columns_of_numbers(raw / path)):
            values = shown[type(next(iter(found), 0))]
            share = len(values & found.keys()) / len(values) if values else 0.0
            if found and share >= best[0] and (share > best[0] or not best[1]):
                best = share, found
    return best[1]


def _read(file: Path, numbers: Set[int]) -> LabelMap:
    """The label map of a file; empty if it is none, or gives one name twice."""
    try:
        data = file.read_bytes()
        text = decode(data, find_encoding(data))
        found = _read_json(json.loads(text)) if file.suffix.lower() == ".json" else _read_text(text, numbers)
    except (ValueError, csv.Error, RecursionError):
        return {}
    return found if len(set(found.values())) == len(found) else {}


def _read_json(content: object) -> LabelMap:
    if not isinstance(content, dict):
        return {}
    for key in ("labels", "id2label", "names", "classes"):
        if isinstance(content.get(key), dict):
            return _read_json(content[key])
    if content and all(isinstance(value, int) and not isinstance(value, bool) for value in content.values()):
        return {number: name for name, number in content.items()}
    if content and all(key.isdecimal() and isinstance(name, str) for key, name in content.items()):
        return {int(number): name for number, name in content.items()}
    return {}


def _read_text(text: str, numbers: Set[int]) -> LabelMap:
    lines = [line.strip() for line in text.splitlines()]
    table = _read_table([line for line in lines if line])
    if table:
        return table
    plain = [line for line in lines if line and not line.startswith("#")]
    for form in _LINES:
        found = [form.fullmatch(line) for line in plain]
        if plain and None not in found:
            parts = [match.groupdict() for match in found if match]
            return {_value(part): part["name"].strip() for part in parts}
    return _number_lines(plain, numbers)


def _value(part: Mapping[str, str]) -> int | str:
    if "number" in part:
        return int(part["number"])
    return _hex(*(int(part[name]) for name in "rgb"))


def _hex(red: int, green: int, blue: int) -> str:
    if max(red, green, blue) > 255:
        raise ValueError("no colour")
    return f"#{red:02x}{green:02x}{blue:02x}"


def _read_columns_of_numbers(file: Path) -> LabelMap:
    """The numbers of a table that has colours as well."""
    try:
        data = file.read_bytes()
        lines = [line.strip() for line in decode(data, find_encoding(data)).splitlines() if line.strip()]
        found = {} if file.suffix.lower() == ".json" else _read_table(lines, colours=False)
    except (ValueError, csv.Error):
        return {}
    return found if len(set(found.values())) == len(found) else {}


def _read_table(lines: Sequence[str], *, colours: bool = True) -> LabelMap:
    """A table with a header that names the class and its number or colour; empty if it has none."""
    if len(lines) < 2:
        return {}
    rows = list(csv.reader(lines, delimiter=find_delimiter("\n".join(lines)), skipinitialspace=True))
    header = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in rows[0]]
    at = {key: next((header.index(word) for word in words if word in header), None) for key, words in _COLUMNS.items()}
    name, number, colour = at["name"], at["number"], at["colour"]
    rgb = [at[key] for key in ("red", "green", "blue")]
    if name is None or (None in rgb and number is None and colour is None):
        return {}
    found: dict[int | str, str] = {}
    for row in rows[1:]:
        cells = [cell.strip() for cell in row]
        if None not in rgb and colours:
            found[_hex(*(int(cells[place]) for place in rgb if place is not None))] = cells[name]
        elif colour is not None and colours and re.fullmatch(r"#[0-9a-fA-F]{6}", cells[colour]):
            found[cells[colour].lower()] = cells[name]
        elif number is not None and cells[number].isdecimal():
            found[int(cells[number])] = cells[name]
        else:
            return {}
    return found


def _number_lines(names: Sequence[str], numbers: Set[int]) -> LabelMap:
    """Names by their place: from 0 where one is the background or unknown, from 1 where the last number fits."""
    if not names or any(re.search(r"\d+\s+\d|[,;\t]", name) for name in names):
        return {}
    if any(BACKGROUND.fullmatch(name) or UNKNOWN.fullmatch(name) for name in names):
        return dict(enumerate(names))
    return dict(enumerate(names, 1)) if max(numbers - {255}, default=0) == len(names) else {}
