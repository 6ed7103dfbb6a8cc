"""The manifest: one row per sample, and the schema that every later step relies on.

    rows.parquet      the samples as the layout's reader found them. A row that could not be read has a `problem`: what
                      was expected, what was found and how to fix it, one line each
    valid.parquet     the fit rows, with upright sizes, and with groups that join near duplicates
    manifest.parquet  the same with the column `split`

Frames are eager (pandera skips data checks on lazy ones) and sorted by (path, id), so that the same images
give the same bytes.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from components.data.sources.images import Box
from components.domain.domain import Domain
from components.errors import DataError
from components.files import hash_file, write_whole
from components.records.boxes import LabelledBox
from components.records.maps import Painting, Regions
from components.records.reasons import Reason
from components.sealed import SEAL, is_sealed, read_sealed, seal, warn_of_damage
from components.tasks import create_task
from components.tasks.base import Annotation

if TYPE_CHECKING:
    from pandera.polars import DataFrameSchema

SPLITS = ("train", "val", "test")
BOXES = pl.List(pl.List(pl.Int64))
REASON = pl.Struct({part: pl.String() for part in ("expected", "found", "hint")})  # null: nothing is wrong


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sample as a layout's reader found it; paths are POSIX paths relative to raw/.

    label: the label; `labels` instead where a picture has any number of them, `regions` where its pixels have,
    `objects` where its boxes have: none of them where the annotation says that nothing is there.
    stated_size: width and height that the annotation states; validation compares them with the picture's. several: the
    row's problem is a mask with several classes. further: more files of the mask, where it has one per object.
    """

    path: str
    label: str | None = None
    labels: Sequence[str] | None = None
    regions: Regions | None = None
    objects: Sequence[LabelledBox] | None = None
    mask: str | None = None
    boxes: Sequence[Box] = ()
    crop: Box | None = None
    stated_size: tuple[int, int] | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    problem: Reason | None = None
    several: bool = False
    further: Sequence[str] = ()


@dataclass(frozen=True)
class Reading:
    """What a layout's reader found in a raw folder.

    ignored: pictures that the reader leaves out, with the reason; `read_rows` adds those that no reader names. notes:
    counts of what was skipped or corrected, such as `{"crowd annotations (iscrowd: 1) left out": 3}`.
    """

    rows: list[Row]
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)


class SupportsDigest(Protocol):
    """An object that returns the sha256 of a file by its path below raw/."""

    def __getitem__(self, path: str) -> str | None: ...


@dataclass(frozen=True)
class Wanted:
    """What a reader must return: further columns, and of each picture a label, all its labels, its regions or objects.

    painting: how shapes and masks become regions; None unless the annotation is `mask`.
    """

    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()  # empty: all labels that occur
    annotation: Annotation = "label"
    painting: Painting | None = None
    rename: Mapping[str, str] = field(default_factory=dict)  # labels as written, to classes
    digests: SupportsDigest | None = None  # hashes that are known; None: read the file

    @property
    def many(self) -> bool:
        """Whether a row is a picture with all its labels."""
        return self.annotation == "labels"

    @property
    def boxed(self) -> bool:
        """Whether a row is a picture with all its labelled boxes."""
        return self.annotation == "boxes"


def row_columns(domain: Domain) -> dict[str, pl.DataType]:
    """Names and types of rows.parquet."""
    text = pl.String()
    columns: dict[str, pl.DataType] = {"id": text, "path": text, **create_task(domain).columns()}
    columns |= {
        "group": text,
        "mask": text,
        "boxes": BOXES,
        "crop": pl.List(pl.Int64),
        "stated_size": pl.List(pl.Int64),
    }
    columns |= {"given": text} if domain.split.given else {}
    return columns | dict.fromkeys(domain.slices, text) | {"problem": REASON}


def manifest_columns(domain: Domain, *, split: bool) -> list[str]:
    """Names of the columns of valid.parquet; with `split`, of manifest.parquet."""
    said = create_task(domain).columns()
    first = ["id", "path", *said, "width", "height", "group", "mask", "boxes", "crop", *domain.slices]
    return [*first, "split"] if split else first


def create_rows(rows: Iterable[Row], domain: Domain, raw: Path, known: SupportsDigest | None = None) -> pl.DataFrame:
    """The frame of rows.parquet. An id is the sha256 of the file, and of a crop also its box: `sha256#x0,y0,x1,y1`."""
    digests: dict[str, str | None] = {}
    task, records = create_task(domain), []
    for row in rows:
        if row.path not in digests:
            digests[row.path] = find_digest(raw, row.path, known)
        identity = digests[row.path]
        if identity and row.crop:
            identity = f"{identity}#{','.join(map(str, row.crop))}"
        record: dict[str, Any] = {
            "id": identity,
            "path": row.path,
            "problem": None if row.problem is None else asdict(row.problem),
        }
        record |= task.annotate(row, domain.classes)
        record |= {"mask": row.mask, "group": row.columns.get(domain.group) if domain.group else None}
        record |= {"boxes": [list(box) for box in row.boxes], "crop": list(row.crop) if row.crop else None}
        record |= {"stated_size": list(row.stated_size) if row.stated_size else None}
        record |= {"given": row.columns.get("split")} if domain.split.given else {}
        records.append(record | {name: row.columns.get(name) for name in domain.slices})
    return pl.DataFrame(records, schema=row_columns(domain)).sort("path", "id", maintain_order=True)


def find_digest(raw: Path, path: str, known: SupportsDigest | None) -> str | None:
    """The sha256 of a file below raw/, from `known` or else from its bytes; None if there is no such file."""
    return hash_file(raw / path) if known is None else known[path]


def create_schema(domain: Domain, *, split: bool) -> "DataFrameSchema":
    """The pandera schema of a manifest of this domain."""
    import pandera.polars as pa  # takes one second, so only where frames are checked

    said, checks = create_task(domain).checks(domain.classes)
    columns = {
        "id": pa.Column(pl.String, pa.Check.str_matches(r"^[0-9a-f]{64}(#\d+,\d+,\d+,\d+)?$"), unique=True),
        "path": pa.Column(pl.String, pa.Check.str_length(min_value=1)),
        **said,
        "width": pa.Column(pl.Int64, pa.Check.ge(domain.validation.min_side)),
        "height": pa.Column(pl.Int64, pa.Check.ge(domain.validation.min_side)),
        "group": pa.Column(pl.String, pa.Check.str_length(min_value=1)),
        "mask": pa.Column(pl.String, nullable=True),
        "boxes": pa.Column(BOXES),
        "crop": pa.Column(pl.List(pl.Int64), nullable=True),
        **{name: pa.Column(pl.String) for name in domain.slices},
    }
    checks = [pa.Check(_is_sorted, name="sorted by path and id"), *checks]
    if split:
        columns["split"] = pa.Column(pl.String, pa.Check.isin(SPLITS))
        checks.append(pa.Check(_keeps_groups_together, name="every group in one split"))
    return pa.DataFrameSchema(columns, checks=checks, strict=True)


def require_manifest(frame: pl.DataFrame, domain: Domain, what: str, *, split: bool) -> pl.DataFrame:
    """Return the frame if it fits its schema. Raises DataError with every failed check otherwise."""
    return require_schema(frame, create_schema(domain, split=split), what)


def require_schema(frame: pl.DataFrame, schema: "DataFrameSchema", what: str) -> pl.DataFrame:
    """Return the frame if it fits its schema. Raises DataError with every failed check otherwise."""
    if failures := find_failures(frame, schema):
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        hint = "Run the data stages again with `dvc repro`; domain.yaml may have changed since."
        found = "; ".join(failures[:5]) + more
        raise DataError(what, expected="a manifest that fits its schema", found=found, hint=hint)
    return frame


def find_failures(frame: pl.DataFrame, schema: "DataFrameSchema") -> list[str]:
    """The failed checks, each with the value that failed, as far as pandera lists them."""
    from pandera.errors import SchemaError, SchemaErrors

    try:
        schema.validate(frame, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.select("column", "check", "failure_case").unique(maintain_order=True)
        return [f"{column}: {check} failed for {case}" for column, check, case in cases.rows()]
    except pl.exceptions.SchemaError:  # pandera 0.35 cannot put cases of unlike types into one frame
        try:
            schema.validate(frame)
        except SchemaError as error:
            return [" ".join(str(error).split())[:300]]
    return []


def load_manifest(path: Path, domain: Domain, *, split: bool = True) -> pl.DataFrame:
    """Read manifest.parquet (or valid.parquet, with `split=False`) and check its schema. Raises DataError."""
    return require_manifest(load_frame(path), domain, str(path), split=split)


def load_samples(path: Path, domain: Domain) -> pl.DataFrame:
    """Read manifest.parquet without masks and boxes, which training does not use. Raises DataError."""
    unread = ["mask", "boxes"]
    schema = create_schema(domain, split=True).remove_columns(unread)
    return require_schema(load_frame(path).drop(unread, strict=False), schema, str(path))


def load_frame(path: Path) -> pl.DataFrame:
    """Read a parquet file of the data stages. Raises DataError if it is missing or damaged."""
    expected, hint = "a parquet file of the data stages", "Run `dvc repro`, or `tessera retrain`, which runs it."
    try:
        data = path.read_bytes()
        if is_sealed(data) is False:
            found = "bytes that contradict their checksum"
            raise DataError(str(path), expected=expected, found=found, hint=hint)
        return pl.read_parquet(io.BytesIO(data))
    except FileNotFoundError:
        raise DataError(str(path), expected=expected, found="no such file", hint=hint) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        found = " ".join(str(error).split())[:200]
        raise DataError(str(path), expected=expected, found=found, hint=hint) from None


def load_cache(path: Path, schema: Mapping[str, "pl.DataType | type[pl.DataType]"]) -> pl.DataFrame:
    """Read a cached table. It is empty if the file is missing, and, with a log line, if the file is damaged or of
    another version; the caller then rebuilds it.
    """
    empty = pl.DataFrame(schema=schema)
    if (data := read_sealed(path)) is None:
        return empty
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        warn_of_damage(path, " ".join(str(error).split())[:200])
        return empty
    if frame.schema != empty.schema:
        warn_of_damage(path, "it has other columns: another version wrote it")
        return empty
    return frame


def save_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write parquet whose bytes depend only on the frame, with a checksum of all bytes in its metadata."""
    buffer = io.BytesIO()
    frame.rechunk().write_parquet(buffer, compression="zstd", statistics=False, metadata={"seal": SEAL})
    write_whole(path, seal(buffer.getvalue()))


def _is_sorted(data: "object") -> bool:
    frame: pl.DataFrame = data.lazyframe.collect()  # type: ignore[attr-defined]
    return frame.select("path", "id").equals(frame.select("path", "id").sort("path", "id"))


def _keeps_groups_together(data: "object") -> bool:
    frame: pl.DataFrame = data.lazyframe.collect()  # type: ignore[attr-defined]
    return bool((frame.group_by("group").agg(pl.col("split").n_unique())["split"] == 1).all())
