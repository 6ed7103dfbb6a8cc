"""YOLO's files: finds the label file of each picture, and the file that names the classes."""

import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from components.data.sources.names import SUFFIXES
from components.domain.layouts import Yolo
from components.domain.reading import read_yaml
from components.errors import DataError, TesseraError

TEXTS = ("classes.txt", "obj.names")
LARGEST = 1_000_000  # bytes of a file that names classes


def suggest_yolo(raw: Path, files: Sequence[str]) -> Yolo | None:
    """The layout, if pictures have text files with YOLO lines beside them or in `labels`; else None."""
    pictures = [path for path in files if path.lower().endswith(SUFFIXES)]
    texts = {path for path in files if path.lower().endswith(".txt")}
    images, labels = _find_bases(pictures, texts)
    pairs = pair_labels(pictures, texts, images, labels)
    looked = [path for path in list(dict.fromkeys(pairs.values()))[:200] if (raw / path).stat().st_size][:20]
    alike = sum(_looks_like_shares(raw / path) for path in looked)
    if not looked or alike <= len(looked) // 2:
        return None
    names = find_names_files(raw, files)
    chosen = next(iter(names)) if len({tuple(sorted(each.items())) for each in names.values()}) == 1 else None
    return Yolo(images=images or ".", labels=labels or ".", names=chosen)


def _find_bases(pictures: Sequence[str], texts: Iterable[str]) -> tuple[str, str]:
    """The sibling folders `images` and `labels`, if they hold all pictures and labels; else the top folder for both."""
    parents = {path.split("/images/")[0] if "/images/" in path else "" for path in (f"/{p}" for p in pictures)}
    parent = next(iter(parents)).removeprefix("/") if len(parents) == 1 else ""
    images, labels = posixpath.join(parent, "images"), posixpath.join(parent, "labels")
    beside = all(path.startswith(f"{images}/") for path in pictures)
    if beside and any(path.startswith(f"{labels}/") for path in texts):
        return images, labels
    return _find_other_bases(pictures, texts) or ("", "")


def _find_other_bases(pictures: Sequence[str], texts: Iterable[str]) -> tuple[str, str] | None:
    """Two folders with other names (`Images` and `Labels`, `JPEGImages` and `labels`) that hold the same stems."""
    stems = {posixpath.splitext(path)[0] for path in pictures}
    written = [posixpath.splitext(path)[0] for path in texts if posixpath.splitext(path)[0] not in stems]
    tops = [sorted({stem.partition("/")[0] for stem in found if "/" in stem}) for found in (stems, written)]
    for images in tops[0]:
        for labels in tops[1]:
            inner = {stem.partition("/")[2] for stem in written if stem.startswith(f"{labels}/")}
            found = sum(stem.partition("/")[2] in inner for stem in stems)
            if images != labels and 2 * found > len(stems):
                return images, labels
    return None


def pair_labels(pictures: Sequence[str], texts: set[str], images: str, labels: str) -> dict[str, str]:
    """The label file of every picture that has one.

    It lies at the same place below `labels`, in the folder `labels` beside the picture's `images`, beside the picture,
    or, where `labels` has no sub-folders, anywhere in `labels` with the picture's stem.
    """
    flat = all(posixpath.dirname(path) == labels for path in texts if path.startswith(f"{labels}/" if labels else ""))
    pairs = {}
    for picture in pictures:
        stem = posixpath.splitext(picture)[0]
        parts = stem.split("/")
        places = [posixpath.join(labels, posixpath.relpath(stem, images or "."))]
        if "images" in parts[:-1]:
            last = len(parts) - 2 - parts[-2::-1].index("images")
            places.append("/".join([*parts[:last], "labels", *parts[last + 1 :]]))
        places += [stem, *([posixpath.join(labels, parts[-1])] if flat else [])]
        if found := next((f"{place}.txt" for place in places if f"{place}.txt" in texts), None):
            pairs[picture] = found
    return pairs


def _looks_like_shares(file: Path) -> bool:
    """Whether the first line is a class number followed by at least four numbers between 0 and 1."""
    with file.open("rb") as opened:
        first = opened.read(4096).decode("utf-8-sig", "replace").strip().partition("\n")[0].split()
    try:
        numbers = [float(part) for part in first]
    except ValueError:
        return False
    return len(numbers) >= 5 and numbers[0] == int(numbers[0]) >= 0 and all(-0.1 <= n <= 1.1 for n in numbers[1:5])


# Names


def find_names_files(raw: Path, files: Iterable[str]) -> dict[str, dict[int, str]]:
    """For every file that names classes, its names by number; the preferred file comes first."""
    found = {}
    for path in sorted(files, key=lambda path: (not path.endswith((".yaml", ".yml")), path.count("/"), path)):
        name = posixpath.basename(path).lower()
        if name.endswith((".yaml", ".yml", ".names")) or name in TEXTS:
            try:
                found[path] = load_facts(raw / path, path)["names"]
            except TesseraError:
                continue
    return found


def refuse_bad_names(raw: Path, files: Iterable[str]) -> None:
    """Raise the DataError of the first bad file among those that should name the classes, such as `data.yaml`."""
    for path in files:
        name = posixpath.basename(path).lower()
        if name in (*TEXTS, "data.yaml", "data.yml", "dataset.yaml") or name.endswith(".names"):
            load_facts(raw / path, path)


def load_facts(file: Path, path: str) -> dict[str, Any]:
    """The content of data.yaml with `names` as {number: name}; from a text file (one name per line) only `names`.

    Raises DataError for names that are missing or ambiguous, DomainError for a file that is not valid YAML.
    """
    if file.stat().st_size > LARGEST:
        raise _no_names(path, f"{file.stat().st_size:,} bytes")
    if file.suffix.lower() in (".yaml", ".yml"):
        facts = read_yaml(file)
        if "names" not in facts:
            raise _no_names(path, "no key `names`")
        return facts | {"names": _check_names(facts.get("names"), facts.get("nc"), path)}
    try:
        lines = file.read_text(encoding="utf-8-sig").strip().splitlines()
    except UnicodeDecodeError:
        raise _no_names(path, "other bytes than UTF-8 text") from None
    return {"names": _check_names([line.strip() for line in lines], None, path)}


def _check_names(names: object, count: object, path: str) -> dict[int, str]:
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not numbered:
        raise _no_names(path, repr(names)[:80])
    checked: dict[int, str] = {}
    for key, name in numbered.items():
        if isinstance(name, bool):
            raise _no_names(path, f"{name} for the number {key}: YAML reads yes, no, on and off without quotes so")
        if not str(key).strip().isdecimal() or isinstance(key, bool) or not str(name).strip() or isinstance(name, dict):
            raise _no_names(path, f"{key!r}: {name!r}"[:80])
        if int(key) in checked:
            raise _no_names(path, f"the number {int(key)} for {checked[int(key)]!r} and {name!r}")
        same = next((number for number, other in checked.items() if other == str(name).strip()), None)
        if same is not None:
            raise _no_names(path, f"{str(name).strip()!r} under the numbers {same} and {key}")
        checked[int(key)] = str(name).strip()
    if isinstance(count, int) and count != len(checked):
        raise _no_names(path, f"{len(checked)} names and `nc: {count}`")
    return checked


def _no_names(path: str, found: str) -> DataError:
    hint = (
        "Write `names: [first, second]` (data.yaml), or one name per line (classes.txt), in the order of the numbers."
    )
    return DataError(path, expected="one name for each class number", found=found, hint=hint)
