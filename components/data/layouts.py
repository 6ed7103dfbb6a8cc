"""Raw trees to rows: one reader a layout, and the dict that names them.

A reader only says what the tree says; whether files can be decoded is validation's business. What one file
gets wrong becomes that row's `problem` and ends in quarantine; what makes the whole tree doubtful (no images,
an unknown class, a path that leads out of raw/) is a DataError. No reader opens a file it did not find by
walking raw/ itself, so nothing outside it is ever read.
"""

import difflib
import posixpath
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

import polars as pl
from PIL import Image

from components.data.crops import draw_background, find_boxes, read_ids, square_around
from components.data.images import SUFFIXES, UNDECODABLE, Box, reason
from components.data.manifest import Row, SupportsDigest, create_rows, hash_file
from components.data.tree import Index, require_inside, resolve_inside, walk_files
from components.domain import Csv, Domain, Folders, Instances, Layout, Voc
from components.errors import DataError

Reader = Callable[[Any, Path, tuple[str, ...]], list[Row]]


def read_rows(domain: Domain, raw: Path, digests: SupportsDigest | None = None) -> pl.DataFrame:
    """All samples of the raw folder as rows.parquet holds them, unvalidated.

    `digests` knows the hashes of files that did not change (`Digests`); without it all are read.

    Raises DataError when the tree does not fit the layout, or holds a label that is no class of the domain.
    """
    require_raw(raw)
    columns = tuple(dict.fromkeys([*([domain.group] if domain.group else []), *domain.slices]))
    if columns and domain.layout.kind != "csv":
        raise DataError(
            f"layout {domain.layout.kind}",
            expected="no columns for `group` and `slices`, which only the layout csv has",
            found=", ".join(columns),
            mend="Describe the images in a table with the layout csv, or remove these keys.",
        )
    rows = READERS[domain.layout.kind](domain.layout, raw, columns)
    if not rows:
        _misfit(raw, domain.layout, "at least one image", "none")
    _require_known_labels(rows, domain, raw)
    return create_rows(_without_shared_masks(rows), domain, raw, digests)


def find_classes(layout: Layout, raw: Path) -> list[str]:
    """The labels a raw folder holds, sorted: what a new domain may write as its classes."""
    require_raw(raw)
    if isinstance(layout, Instances):
        return sorted((layout.background, layout.label))
    return sorted({row.label for row in READERS[layout.kind](layout, raw, ()) if row.label})


def guess_layout(raw: Path) -> str | None:
    """The kind of layout a folder looks like, None when it looks like none."""
    suggested = suggest_layout(raw)
    return suggested.kind if suggested else None


def suggest_layout(raw: Path) -> Layout | None:
    """The layout a folder looks like, with the names of its sub-folders or its table filled in."""
    files = walk_files(raw) if raw.is_dir() else []
    holds: dict[str, set[str]] = {}
    for path in files:
        holds.setdefault(posixpath.dirname(path), set()).add(posixpath.splitext(path)[1].lower())
    pictures = [folder for folder, suffixes in sorted(holds.items()) if suffixes & set(SUFFIXES)]
    annotations = [folder for folder, suffixes in sorted(holds.items()) if ".xml" in suffixes]
    if pictures and annotations:
        return Voc(images=pictures[0] or ".", annotations=annotations[0] or ".")
    tables = [path for path in files if path.endswith(".csv")]
    if tables:
        return Csv(table=min(tables, key=lambda path: (path.count("/"), path)))
    if "instances" in pictures and len(pictures) == 2:
        return Instances(images=next(folder for folder in pictures if folder != "instances"))
    parents = Counter(posixpath.dirname(folder) for folder in pictures if folder)
    masks = next((parent for parent in ("masks", "ground_truth") if parent in parents), None)
    best = max((parent for parent in parents if parent != masks), key=lambda parent: parents[parent], default=None)
    return Folders(images=best or ".", masks=masks) if best is not None and parents[best] >= 2 else None


def require_raw(raw: Path) -> None:
    """Raise DataError unless there is a raw folder with something in it."""
    if raw.is_dir() and any(raw.iterdir()):
        return
    found = "an empty folder" if raw.is_dir() else "no such folder"
    mend = "Bring images in with `tessera import`, or fetch a recorded version with `dvc pull`."
    raise DataError(f"raw images {raw}", expected="a folder of images", found=found, mend=mend)


# Readers


def read_folders(layout: Folders, raw: Path, _columns: tuple[str, ...]) -> list[Row]:
    """A row an image below a class folder. A class that has a folder of masks needs one for each image."""
    base = _folder(raw, layout.images, layout)
    masks = _Masks(raw, _folder(raw, layout.masks, layout)) if layout.masks else None
    rows = []
    for path in walk_files(raw, base):
        inner = posixpath.relpath(path, base or ".")
        label, _, rest = inner.partition("/")
        if masks and (path == masks.base or path.startswith(f"{masks.base}/")):
            continue
        if not rest:
            if path.lower().endswith(SUFFIXES):
                mend = "Move it into the folder of its class."
                rows.append(Row(path=path, problem=reason("an image inside a class folder", "one beside them", mend)))
            continue
        problem = _not_an_image(path)
        mask = masks.find(label, rest) if masks and not problem else None
        rows.append(Row(path=path, label=label, mask=mask, problem=problem))
    if not any(row.label for row in rows):
        _misfit(raw, layout, f"one folder a class with images in {layout.images!r}", "no such folders")
    return rows


def read_csv(layout: Csv, raw: Path, columns: tuple[str, ...]) -> list[Row]:
    """A row a line of the table. A bare file name is looked for everywhere below the table's folder."""
    table = resolve_inside(layout.table, "", "layout.table")
    frame = _read_table(layout, raw, table)
    wanted = (layout.image, layout.label, *(c for c in (layout.mask, layout.boxes) if c), *columns)
    if missing := [name for name in wanted if name not in frame.columns]:
        mend = "Name one of these columns in domain.yaml, or add it; the separator must be a comma."
        found = f"the columns {', '.join(map(repr, frame.columns))}"
        raise DataError(f"table {table}", expected=f"the columns {', '.join(missing)}", found=found, mend=mend)
    base = posixpath.dirname(table)
    index = Index(walk_files(raw), base)
    return [
        _csv_row(layout, record, index, f"{table}, line {line}", columns)
        for line, record in enumerate(frame.to_dicts(), 2)
    ]


def read_voc(layout: Voc, raw: Path, _columns: tuple[str, ...]) -> list[Row]:
    """A row an annotated object, cut out by its box. A picture annotated as empty gives no row."""
    images, annotations = _folder(raw, layout.images, layout), _folder(raw, layout.annotations, layout)
    pictures = [path for path in walk_files(raw, images) if path.lower().endswith(SUFFIXES)]
    files = [path for path in walk_files(raw, annotations) if path.lower().endswith(".xml")]
    if not pictures or not files:
        _misfit(raw, layout, f"images in {layout.images!r} and .xml files in {layout.annotations!r}", "none")
    index, rows, seen = Index(pictures, images), list[Row](), set[str]()
    for path in files:
        found = _voc_rows(path, raw, index)
        seen.update(row.path for row in found)
        seen.update(index.find(posixpath.splitext(posixpath.basename(path))[0]))
        rows += found
    mend = "Add its annotation file, or remove the picture."
    problem = reason("an annotation file of the same name", "none", mend)
    return rows + [Row(path=path, problem=problem) for path in pictures if path not in seen]


def read_instances(layout: Instances, raw: Path, _columns: tuple[str, ...]) -> list[Row]:
    """A row an instance, and as many of background, cut out as squares; the id mask becomes the row's mask."""
    images, instances = _folder(raw, layout.images, layout), _folder(raw, layout.instances, layout)
    pictures = [path for path in walk_files(raw, images) if path.lower().endswith(SUFFIXES)]
    index = Index(walk_files(raw, instances), instances)
    if not pictures or not index.files:
        _misfit(raw, layout, f"images in {layout.images!r} and id masks in {layout.instances!r}", "none")
    return [row for path in pictures for row in _instance_rows(path, layout, raw, index)]


READERS: dict[str, Reader] = {
    "folders": read_folders,
    "csv": read_csv,
    "voc": read_voc,
    "instances": read_instances,
}


# Folders


class _Masks:
    """Masks by class and stem: `<base>/<class>/<same stem>.*`."""

    def __init__(self, raw: Path, base: str) -> None:
        self.base = base
        self.files = {posixpath.splitext(path)[0]: path for path in walk_files(raw, base)}
        self.labels = {posixpath.relpath(stem, base).split("/")[0] for stem in self.files}

    def find(self, label: str, rest: str) -> str | None:
        """The mask of an image; a name that is not there where it has none, for validation to say so."""
        stem = posixpath.join(self.base, label, posixpath.splitext(rest)[0])
        return self.files.get(stem, f"{stem}.png") if label in self.labels else None


def _without_shared_masks(rows: list[Row]) -> list[Row]:
    """Give a problem to pictures that claim one mask between them, as `a.jpg` and `a.png` in one folder do."""
    claims: dict[str, set[str]] = {}
    for row in rows:
        if row.mask and not row.crop:
            claims.setdefault(row.mask, set()).add(row.path)
    mend = "Rename one image and give it its own mask."
    return [
        Row(path=row.path, label=row.label, columns=row.columns, problem=reason("its own mask", found, mend))
        if len(others := claims.get(row.mask or "", set())) > 1
        and (found := f"the mask {row.mask} shared by {', '.join(sorted(others))}")
        else row
        for row in rows
    ]


# Csv


def _read_table(layout: Csv, raw: Path, table: str) -> pl.DataFrame:
    """The table as text, without blanks around names and values."""
    if not (raw / table).is_file():
        _misfit(raw, layout, f"the table {table}", "no such file")
    require_inside(raw, raw / table)
    try:
        frame = pl.read_csv(raw / table, infer_schema=False, encoding="utf8")
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        found = "an empty file" if (raw / table).stat().st_size == 0 else " ".join(str(error).split())[:200]
        mend = "Save it as comma-separated UTF-8 text with a header line."
        raise DataError(f"table {table}", expected="a csv table", found=found, mend=mend) from None
    if frame.is_empty():
        mend = "Write one line an image below the header."
        raise DataError(f"table {table}", expected="at least one row", found="a header alone", mend=mend)
    return frame.rename(lambda name: name.strip()).with_columns(pl.all().str.strip_chars().replace("", None))


def _csv_row(layout: Csv, record: dict[str, str | None], index: "Index", where: str, columns: tuple[str, ...]) -> Row:
    image, label = record[layout.image], record[layout.label]
    for name, value in ((layout.image, image), (layout.label, label)):
        if not value:
            mend = "Fill it in, or remove the line."
            raise DataError(where, expected=f"a value in column {name!r}", found="an empty cell", mend=mend)
    path, problem = _csv_path(str(image), index, where)
    mask = record[layout.mask] if layout.mask else None
    boxes, box_problem = _parse_boxes(record[layout.boxes] if layout.boxes else None)
    return Row(
        path=path,
        label=label,
        mask=_csv_path(mask, index, where)[0] if mask else None,
        boxes=boxes,
        columns={name: record[name] for name in columns},
        problem=problem or box_problem,
    )


def _csv_path(text: str, index: "Index", where: str) -> tuple[str, str | None]:
    """A file the table names, relative to raw/, and what is wrong with it."""
    path = resolve_inside(text, index.base, where)
    if path in index.files:
        return path, _not_an_image(path)
    found = index.find(text) if "/" not in text else []
    if len(found) > 1:
        mend = "Write the path from the table's folder instead of the bare name."
        raise DataError(where, expected=f"one file {text!r}", found=", ".join(found[:4]), mend=mend)
    if found:
        return found[0], None
    return path, reason(f"the listed image {text}", "no such file", "Add the image, or remove its line.")


def _parse_boxes(text: str | None) -> tuple[list[Box], str | None]:
    """`x0 y0 x1 y1; x0 y0 x1 y1` as numbers."""
    boxes = []
    for part in (text or "").split(";"):
        numbers = re.fullmatch(r"\s*(-?\d{1,9})\s+(-?\d{1,9})\s+(-?\d{1,9})\s+(-?\d{1,9})\s*", part)
        if numbers:
            boxes.append((int(numbers[1]), int(numbers[2]), int(numbers[3]), int(numbers[4])))
        elif part.strip():
            mend = "Write whole pixels, several boxes joined by `;`."
            return [], reason("boxes as `x0 y0 x1 y1`", repr(part.strip()), mend)
    return boxes, None


# Voc


def _voc_rows(path: str, raw: Path, index: "Index") -> list[Row]:
    """The objects of one annotation file; one row with a problem when it cannot be read."""
    stem = posixpath.splitext(posixpath.basename(path))[0]
    try:
        root = _parse_xml((raw / path).read_bytes())
        named = (root.findtext("filename") or "").strip()
        found = index.find(named) or index.find(stem)
        if len(found) != 1:
            files = ", ".join(found[:4]) or "no such file"
            problem = reason(f"one picture {named or stem!r}", files, "Correct <filename>, or add the picture.")
            return [Row(path=path, problem=problem)]
        return [Row(path=found[0], label=label, crop=crop) for label, crop in map(_parse_object, root.iter("object"))]
    except (ElementTree.ParseError, ValueError, OverflowError, OSError) as error:
        mend = "Export the annotation again."
        picture = next(iter(index.find(stem)), path)
        return [Row(path=picture, problem=reason(f"a Pascal VOC annotation {path}", _brief(error), mend))]


def _parse_xml(data: bytes) -> ElementTree.Element:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # nothing VOC needs, and how small files blow up
        raise ValueError("a document type or entity declaration")
    return ElementTree.fromstring(data)


def _parse_object(element: ElementTree.Element) -> tuple[str, Box]:
    """Name and box; VOC counts pixels from 1 and includes the last, though some tools start at 0."""
    label, box = (element.findtext("name") or "").strip(), element.find("bndbox")
    if not label or box is None:
        raise ValueError("an object without a name or a bndbox")
    texts = [box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")]
    if None in texts:
        raise ValueError("a bndbox without xmin, ymin, xmax and ymax")
    x0, y0, x1, y1 = (round(float(text or "")) for text in texts)
    return label, (x0 - (x0 > 0), y0 - (y0 > 0), x1, y1)


# Instances


def _instance_rows(path: str, layout: Instances, raw: Path, index: "Index") -> list[Row]:
    found = index.find(posixpath.splitext(posixpath.basename(path))[0])
    if len(found) != 1:
        mend = "Add the id mask, or remove the picture."
        problem = reason("one id mask of the same name", ", ".join(found[:4]) or "none", mend)
        return [Row(path=path, problem=problem)]
    try:
        ids = read_ids(raw / found[0])
    except (Image.DecompressionBombError, *UNDECODABLE) as error:
        mend = "Save instance ids as one 8- or 16-bit channel, 0 = background."
        return [Row(path=path, problem=reason(f"an id mask {found[0]}", _brief(error), mend))]
    around = (square_around(box, ids.shape[1], ids.shape[0]) for box in find_boxes(ids))
    squares = list(dict.fromkeys(around))  # two instances in one place are one crop
    empty = draw_background(ids, [x1 - x0 for x0, _, x1, _ in squares], hash_file(raw / path) or "0")
    labelled = [(layout.label, crop) for crop in squares] + [(layout.background, crop) for crop in empty]
    return [Row(path=path, label=label, mask=found[0], crop=crop) for label, crop in labelled]


# Folders and refusals


def _folder(raw: Path, text: str, layout: Layout) -> str:
    """A folder the layout names; DataError when it is not there."""
    path = resolve_inside(text, "", f"layout {layout.kind}")
    if not (raw / path).is_dir():
        _misfit(raw, layout, f"a folder {text!r}", "no such folder")
    require_inside(raw, raw / path)
    return path


def _misfit(raw: Path, layout: Layout, expected: str, found: str) -> NoReturn:
    """Raise the DataError of a tree that is not what the layout says, with what it looks like instead."""
    guess = suggest_layout(raw)
    looks = f" This looks like {_describe(guess)}." if guess and guess != layout else ""
    mend = f"Correct `layout` in domain.yaml, or the folder.{looks}"
    raise DataError(f"{raw} as layout {layout.kind}", expected=expected, found=found, mend=mend)


def _describe(layout: Layout) -> str:
    changed = layout.model_dump(exclude_defaults=True)
    return f"`layout: {{{', '.join(f'{key}: {value}' for key, value in {'kind': layout.kind, **changed}.items())}}}`"


def _not_an_image(path: str) -> str | None:
    if path.lower().endswith(SUFFIXES):
        return None
    found = f"a {posixpath.splitext(path)[1] or 'nameless'} file"
    return reason(f"an image ({', '.join(SUFFIXES)})", found, "Move it out of the raw folder, or convert it.")


def _require_known_labels(rows: list[Row], domain: Domain, raw: Path) -> None:
    counts = Counter(row.label for row in rows if row.label and row.label not in domain.classes)
    if not counts:
        return
    label, count = counts.most_common(1)[0]
    first = next(row.path for row in rows if row.label == label)
    close = difflib.get_close_matches(label, domain.classes, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    guess = suggest_layout(raw)
    if guess and guess.kind != domain.layout.kind:
        hint += f" This looks like {_describe(guess)}."
    raise DataError(
        f"label {label!r} ({count} times, first at {first})",
        expected=f"one of the classes {', '.join(domain.classes)}",
        found=", ".join(sorted(map(repr, counts))),
        mend=f"Add it to `classes` in domain.yaml, or rename or remove it.{hint}",
    )


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
