"""The manifest: one row a sample, and the schema that every later step may rely on.

    rows.parquet      what the layout says; a row the layout could not make sense of carries its `problem`
    valid.parquet     the fit rows, with upright sizes and groups that near duplicates share
    manifest.parquet  the same with `split`

Frames are eager (pandera skips data checks on lazy ones) and sorted by (path, id), so that the same images
give the same bytes.
"""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from components.data.images import Box
from components.domain import Domain
from components.errors import DataError

if TYPE_CHECKING:
    from pandera.polars import DataFrameSchema

SPLITS = ("train", "val", "test")
BOXES = pl.List(pl.List(pl.Int64))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sample as a layout reads it; paths are posix, relative to raw/."""

    path: str
    label: str | None = None
    mask: str | None = None
    boxes: Sequence[Box] = ()
    crop: Box | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    problem: str | None = None


def row_columns(domain: Domain) -> dict[str, pl.DataType]:
    """Names and types of rows.parquet."""
    text = pl.String()
    columns: dict[str, pl.DataType] = {"id": text, "path": text, "label": text, "group": text, "mask": text}
    columns |= {"boxes": BOXES, "crop": pl.List(pl.Int64)}
    return columns | dict.fromkeys(domain.slices, text) | {"problem": text}


def manifest_columns(domain: Domain, *, split: bool) -> list[str]:
    """Names of the columns of valid.parquet, and of manifest.parquet where `split`."""
    first = ["id", "path", "label", "width", "height", "group", "mask", "boxes", "crop", *domain.slices]
    return [*first, "split"] if split else first


class SupportsDigest(Protocol):
    """Something that knows the sha256 of a file by its path below raw/."""

    def __getitem__(self, path: str) -> str | None: ...


def create_rows(rows: Iterable[Row], domain: Domain, raw: Path, known: SupportsDigest | None = None) -> pl.DataFrame:
    """The frame of rows.parquet: ids are the files' contents, numbered where a file is cut into crops."""
    digests: dict[str, str | None] = {}
    crops: Counter[str] = Counter()
    records = []
    for row in rows:
        if row.path not in digests:
            digests[row.path] = known[row.path] if known else hash_file(raw / row.path)
        identity = digests[row.path]
        if identity and row.crop:
            identity, crops[row.path] = f"{identity}#{crops[row.path]}", crops[row.path] + 1
        record: dict[str, Any] = {"id": identity, "path": row.path, "label": row.label, "problem": row.problem}
        record |= {"mask": row.mask, "group": row.columns.get(domain.group) if domain.group else None}
        record |= {"boxes": [list(box) for box in row.boxes], "crop": list(row.crop) if row.crop else None}
        records.append(record | {name: row.columns.get(name) for name in domain.slices})
    return pl.DataFrame(records, schema=row_columns(domain)).sort("path", "id", maintain_order=True)


def hash_file(path: Path) -> str | None:
    """sha256 of a file's bytes; None where there is no file to read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def create_schema(domain: Domain, *, split: bool) -> "DataFrameSchema":
    """What a manifest of this domain must keep, as pandera checks it."""
    import pandera.polars as pa  # one second of import, wanted only where frames are checked

    columns = {
        "id": pa.Column(pl.String, pa.Check.str_matches(r"^[0-9a-f]{64}(#[0-9]+)?$"), unique=True),
        "path": pa.Column(pl.String, pa.Check.str_length(min_value=1)),
        "label": pa.Column(pl.String, pa.Check.isin(domain.classes)),
        "width": pa.Column(pl.Int64, pa.Check.ge(domain.validation.min_side)),
        "height": pa.Column(pl.Int64, pa.Check.ge(domain.validation.min_side)),
        "group": pa.Column(pl.String, pa.Check.str_length(min_value=1)),
        "mask": pa.Column(pl.String, nullable=True),
        "boxes": pa.Column(BOXES),
        "crop": pa.Column(pl.List(pl.Int64), nullable=True),
        **{name: pa.Column(pl.String) for name in domain.slices},
    }
    checks = [pa.Check(_is_sorted, name="sorted by path and id")]
    if split:
        columns["split"] = pa.Column(pl.String, pa.Check.isin(SPLITS))
        checks.append(pa.Check(_keeps_groups_together, name="every group in one split"))
    return pa.DataFrameSchema(columns, checks=checks, strict=True)


def require_manifest(frame: pl.DataFrame, domain: Domain, what: str, *, split: bool) -> pl.DataFrame:
    """The frame itself when it keeps the schema; DataError with every failed check otherwise."""
    if failures := find_failures(frame, create_schema(domain, split=split)):
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        mend = "Run the data stages again with `dvc repro`; domain.yaml may have changed since."
        found = "; ".join(failures[:5]) + more
        raise DataError(what, expected="a manifest that keeps its schema", found=found, mend=mend)
    return frame


def find_failures(frame: pl.DataFrame, schema: "DataFrameSchema") -> list[str]:
    """Every check that failed and for what, as far as pandera can list them."""
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
    """Read manifest.parquet (or valid.parquet, `split=False`) and hold it to the schema."""
    return require_manifest(load_frame(path), domain, str(path), split=split)


def load_frame(path: Path) -> pl.DataFrame:
    """Read one of the stages' parquet files; DataError when it is missing or damaged."""
    expected, mend = "a parquet file of the data stages", "Run `dvc repro`, or `tessera retrain`, which does."
    try:
        return pl.read_parquet(path, hive_partitioning=False)
    except FileNotFoundError:
        raise DataError(str(path), expected=expected, found="no such file", mend=mend) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        found = " ".join(str(error).split())[:200]
        raise DataError(str(path), expected=expected, found=found, mend=mend) from None


def save_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write parquet whose bytes depend on the frame alone."""
    buffer = io.BytesIO()
    frame.rechunk().write_parquet(buffer, compression="zstd", statistics=False)
    save_bytes(buffer.getvalue(), path)


def save_bytes(data: bytes, path: Path) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _is_sorted(data: "object") -> bool:
    frame: pl.DataFrame = data.lazyframe.collect()  # type: ignore[attr-defined]
    return frame.select("path", "id").equals(frame.select("path", "id").sort("path", "id"))


def _keeps_groups_together(data: "object") -> bool:
    frame: pl.DataFrame = data.lazyframe.collect()  # type: ignore[attr-defined]
    return bool((frame.group_by("group").agg(pl.col("split").n_unique())["split"] == 1).all())
