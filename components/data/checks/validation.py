"""Validation: which rows can be trained on, why the others cannot, and whether the remaining ones are enough.

A bad image never becomes a black tensor: it is quarantined with its reason. A problem concerns the set as a whole (too
many images in quarantine, a class below its minimum) and stops the run after the report is written.
"""

import posixpath
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from components.data.accounts import count_objects
from components.data.annotations.names import warn_of_alike
from components.data.checks.boxes import compare_objects, unfit_objects, warn_of_objects
from components.data.checks.duplicates import Pair, find_repeats, join_groups
from components.data.checks.findings import inspect_changed
from components.data.checks.labels import Judgement
from components.data.checks.outliers import HINTS, Outlier, find_outliers
from components.data.checks.pictures import Picture, inspect_images, inspect_masks, unfit_boxes, unfit_crop
from components.data.manifest import manifest_columns, require_manifest
from components.data.sources.images import Box
from components.domain.domain import Domain
from components.errors import CheckFailed
from components.records.images import ClassCount, OutlierRow, QuarantinedFile, Suspect, ValidationSummary
from components.records.maps import measure_map
from components.records.reasons import Reason
from components.tasks import create_task
from components.tasks.base import by_class

HUGE = 0.5  # share of a class that one group should not exceed
FEW_PIXELS = 0.0005  # share of all labelled pixels below which a class is hardly seen
LARGE = 0.1  # share of all images that one group should not exceed

Record = dict[str, Any]  # one row of rows.parquet


@dataclass(frozen=True)
class Quarantined:
    """A row that is not used, and why."""

    path: str
    label: str | None
    crop: Box | None
    reason: Reason


@dataclass(frozen=True)
class Validated:
    """The result of validation: the fit rows, as valid.parquet holds them, and everything that the report shows."""

    domain: Domain
    images: int  # samples read
    fit: pl.DataFrame
    quarantined: tuple[Quarantined, ...]
    near_duplicates: tuple[tuple[str, str], ...]  # paths
    classes: dict[str, dict[str, int]]
    problems: tuple[Reason, ...]
    warnings: tuple[str, ...]
    pictures: dict[str, Picture]  # of every fit file
    outliers: tuple[Outlier, ...]
    sisters: frozenset[tuple[str, str]] = frozenset()  # those near_duplicates that may show different things
    judgement: Judgement | None = None  # the check of the labels, if images have one label and features exist

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def suspects(self) -> tuple[Suspect, ...]:
        """Labels that may be wrong."""
        return self.judgement.suspects if self.judgement else ()

    def to_record(self) -> ValidationSummary:
        """The content of validation.json."""
        listed = dict.fromkeys((item.path, item.reason) for item in self.quarantined)
        return ValidationSummary(
            domain=self.domain.name,
            ok=self.ok,
            images=self.images,
            fit=self.fit.height,
            quarantined=tuple(QuarantinedFile(path=path, reason=str(why), **vars(why)) for path, why in listed),
            groups=self.fit["group"].n_unique(),
            near_duplicate_pairs=self.near_duplicates,
            pairs_that_share_a_picture=tuple(sorted(self.sisters)),
            suspicious_labels=self.suspects,
            labels=self.judgement.to_record() if self.judgement else None,
            classes={label: ClassCount(**counts) for label, counts in self.classes.items()},
            objects=count_objects(self.fit, self.domain),
            problems=tuple(str(problem) for problem in self.problems),
            warnings=(*self.warnings, *_warn_of_looks(self.outliers)),
            outliers=tuple(OutlierRow(kind=item.kind, path=item.path, found=item.found) for item in self.outliers),
        )


def check_rows(
    rows: pl.DataFrame,
    raw: Path,
    domain: Domain,
    near: Sequence[Pair] = (),
    cache: Path | None = None,
    sisters: Set[Pair] = frozenset(),
) -> Validated:
    """Decode every image, quarantine unfit rows, join near duplicates, and check the minimum counts.

    near: near duplicates, by content. sisters: those of them that may show different things, such as parts cut from one
    piece. cache: a folder for what decoding found in fit files, so that later runs need not decode them again.
    """
    records = rows.to_dicts()
    pictures = _inspect(records, raw, domain, cache)
    reasons = find_unfit(records, pictures, raw, domain)
    reasons |= find_duplicates(records, reasons)
    fit = [record for index, record in enumerate(records) if index not in reasons]
    groups, pairs = group_rows(fit, near, domain)
    sister_pairs = frozenset(group_rows(fit, sorted(sisters), domain)[1])
    problems = _problems_of_columns(fit, domain)
    frame = _fit_frame(fit, groups, pictures, rows, domain)
    classes = count_classes(frame, domain)
    problems += _problems_of_counts(len(records), reasons, classes, domain)
    if not problems and frame.height:
        require_manifest(frame, domain, f"valid rows of {domain.name}", split=False)
    quarantined = tuple(_quarantined(records[index], why) for index, why in sorted(reasons.items()))
    seen = {record["path"]: pictures[record["path"]] for record in fit}
    outliers = find_outliers(seen)
    warnings = [
        *warn_of_alike({name: counts["images"] for name, counts in classes.items()}),
        *_warnings(fit, [pair for pair in pairs if pair not in sister_pairs], domain),
        *warn_of_huge_groups(frame),
        *_warn_of_turned(seen),
        *_warn_of_few_pixels(frame, domain),
        *warn_of_objects(frame, domain),
    ]
    return Validated(
        domain,
        len(records),
        frame,
        quarantined,
        tuple(pairs),
        classes,
        tuple(problems),
        tuple(warnings),
        seen,
        outliers,
        sister_pairs,
    )


def require_valid(validated: Validated, report: Path) -> None:
    """Raise CheckFailed with the first problem, if there is one."""
    if validated.ok:
        return
    more = f" ({len(validated.problems) - 1} more after this one)" if len(validated.problems) > 1 else ""
    first = validated.problems[0]
    hint = f"{first.hint} The pictures are in {report}."
    what, found = f"validation of {validated.domain.name}", first.found + more
    raise CheckFailed(what, expected=first.expected, found=found, hint=hint)


# Rows


def _inspect(records: list[Record], raw: Path, domain: Domain, cache: Path | None) -> dict[str, Picture]:
    """Decode every file once and inspect all its crops."""
    crops: dict[str, list[Box]] = {}
    for record in records:
        if record["problem"] is None:
            crops.setdefault(record["path"], []).extend(_crop_of(record))
    if cache is None:
        return inspect_images(raw, crops, domain.validation)
    digests = {record["path"]: _content(record) for record in records if record["id"]}
    return inspect_changed(raw, crops, digests, domain.validation, cache)


def find_unfit(records: list[Record], pictures: dict[str, Picture], raw: Path, domain: Domain) -> dict[int, Reason]:
    """The index of every row that is unfit by itself, and why."""
    paths = (record["mask"] for record in records if record["mask"] and record["problem"] is None)
    masks = inspect_masks(raw, paths, domain.validation)
    reasons = {}
    for index, record in enumerate(records):
        if record["problem"] is not None:
            reasons[index] = Reason(**record["problem"])
        elif why := _unfit(record, pictures[record["path"]], masks, domain):
            reasons[index] = why
    return reasons


def _unfit(
    record: Record, picture: Picture, masks: dict[str, tuple[int, int] | Reason], domain: Domain
) -> Reason | None:
    if picture.problem:
        return picture.problem
    if record["stated_size"] and record["stated_size"] != [picture.width, picture.height]:
        return _wrong_size(record["stated_size"], picture)
    if record["mask"]:
        mask = masks[record["mask"]]
        if isinstance(mask, Reason):
            return mask
        if mask != (picture.width, picture.height):
            expected, found = f"a mask of {picture.width} x {picture.height} pixels", f"{mask[0]} x {mask[1]}"
            found += f" in {record['mask']}" + (", and the picture is turned by EXIF" if picture.turned else "")
            return Reason(expected, found, "Export the mask again at the image's size.")
    if (data := record.get("class_map")) and measure_map(data) != (picture.width, picture.height):
        expected = f"annotations of a picture of {picture.width} x {picture.height} pixels"
        found = "{} x {}".format(*measure_map(data)) + (", and the picture is turned by EXIF" if picture.turned else "")
        return Reason(expected, found, "Annotate the picture as it is shown.")
    if (objects := record.get("objects")) and (why := unfit_objects(objects, picture.width, picture.height)):
        return why
    boxes = [(box[0], box[1], box[2], box[3]) for box in record["boxes"]]
    return unfit_boxes(boxes, picture.width, picture.height, "a box") or _unfit_crop(record, picture, domain)


def _wrong_size(stated: list[int], picture: Picture) -> Reason:
    """The reason for a picture whose size is not the annotated one: its boxes would be in the wrong places.

    This happens most easily if EXIF turns the picture.
    """
    expected = f"a picture of {stated[0]} x {stated[1]} pixels, as its annotation says"
    found = f"{picture.width} x {picture.height}" + (", turned by EXIF" if picture.turned else "")
    return Reason(expected, found, "Annotate the picture as it is shown, or put back the one that was annotated.")


def _unfit_crop(record: Record, picture: Picture, domain: Domain) -> Reason | None:
    size = picture.width, picture.height
    reasons = (unfit_crop(crop, size, domain.validation, flat=crop in picture.flat_crops) for crop in _crop_of(record))
    return next((why for why in reasons if why), None)


def find_duplicates(records: list[Record], unfit: Mapping[int, Reason]) -> dict[int, Reason]:
    """Rows whose content another row has, too, and why they are not used: they repeat the first, or contradict others.

    Whole files are compared first, then the remaining crops, for objects that were annotated twice.
    """
    fit = [index for index in range(len(records)) if index not in unfit]
    reasons = _duplicate_files(records, fit)
    return reasons | _duplicate_crops(records, [index for index in fit if index not in reasons])


def _duplicate_files(records: list[Record], fit: list[int]) -> dict[int, Reason]:
    """Rows of duplicate files. Crops of one file are compared as a whole, because they are one annotation."""
    units: dict[tuple[str, int], list[int]] = {}
    for index in fit:
        record = records[index]
        units.setdefault((record["path"], -1 if record["crop"] else index), []).append(index)
    rows = list(units.values())
    keys = [_content(records[members[0]]) for members in rows]
    labels = [tuple(sorted((str(records[i]["crop"]), _shown(records[i])) for i in members)) for members in rows]
    reasons = _explain_repeats([records[members[0]] for members in rows], keys, labels)
    return {index: why for unit, why in reasons.items() for index in rows[unit]}


def _shown(record: Record) -> Any:
    """What a row's annotation shows, to compare it with that of a copy."""
    if (objects := record.get("objects")) is not None:
        return compare_objects(objects)
    return record.get("class_map") or record["label"]


def _duplicate_crops(records: list[Record], fit: list[int]) -> dict[int, Reason]:
    cut = [index for index in fit if records[index]["crop"]]
    keys = [(_content(records[index]), *records[index]["crop"]) for index in cut]
    reasons = _explain_repeats([records[index] for index in cut], keys, [records[index]["label"] for index in cut])
    return {cut[place]: why for place, why in reasons.items()}


def _explain_repeats(records: list[Record], keys: Sequence[Hashable], labels: Sequence[Hashable]) -> dict[int, Reason]:
    repeats, conflicts = find_repeats(keys, labels)
    reasons = {index: _repeated(records[kept]) for index, kept in repeats.items()}
    for index, same in conflicts.items():
        reasons[index] = _contradicted([records[other] for other in same if other != index])
    return reasons


def _repeated(kept: Record) -> Reason:
    hint = "Nothing needs doing; remove the copy to keep this list short."
    return Reason("each picture once", f"the same content as {_name(kept)}, which is kept", hint)


def _contradicted(others: list[Record]) -> Reason:
    if others[0].get("objects") is not None:
        names = ", ".join(f"{_name(other)} ({_count_boxes(other)})" for other in others[:3])
        hint = "Decide which boxes are right and remove the other copy; all are left out until then."
        return Reason("the same boxes in copies of a picture", f"other boxes in the same content as {names}", hint)
    names = ", ".join(f"{_name(other)} ({other['label']})" for other in others[:3])
    hint = "Decide which label is right and remove the other copy; all are left out until then."
    return Reason("one label per picture", f"a label conflict: the same content as {names}", hint)


def _count_boxes(record: Record) -> str:
    """`3 objects: crack + rust`"""
    count = len(record["objects"])
    return f"{count:,} objects: {record['label']}" if count != 1 else f"1 object: {record['label']}"


# Groups


def group_rows(
    fit: list[Record], near: Sequence[Pair], domain: Domain
) -> tuple[list[str | None], list[tuple[str, str]]]:
    """The group of every fit row, and the near duplicates as pairs of paths.

    Near duplicates are joined into one group if the domain says so (`groups.near_duplicates`).
    """
    base = [record["group"] if domain.group else _content(record) for record in fit]
    named = [group for group in base if group]
    place = {index: order for order, index in enumerate(index for index, group in enumerate(base) if group)}
    first = {_content(fit[index]): index for index in reversed(place)}
    pairs = [(first[one], first[other]) for one, other in near if one in first and other in first]
    together = pairs if domain.groups.near_duplicates == "join" else []
    joined = iter(join_groups(named, [(place[i], place[j]) for i, j in together]))
    groups = [next(joined) if group else None for group in base]
    return groups, sorted((min(fit[i]["path"], fit[j]["path"]), max(fit[i]["path"], fit[j]["path"])) for i, j in pairs)


def count_classes(frame: pl.DataFrame, domain: Domain) -> dict[str, dict[str, int]]:
    """The number of images and groups of every class of the domain, also of classes without any."""
    found = by_class(frame).group_by("label").agg(pl.len().alias("images"), pl.col("group").n_unique().alias("groups"))
    counts = {label: {"images": images, "groups": groups} for label, images, groups in found.rows()}
    return {label: counts.get(label, {"images": 0, "groups": 0}) for label in domain.classes}


def _fit_frame(
    fit: list[Record], groups: list[str | None], pictures: dict[str, Picture], rows: pl.DataFrame, domain: Domain
) -> pl.DataFrame:
    sizes = [pictures[record["path"]] for record in fit]
    frame = pl.DataFrame(fit, schema=rows.schema).with_columns(
        pl.Series("width", [picture.width for picture in sizes], dtype=pl.Int64),
        pl.Series("height", [picture.height for picture in sizes], dtype=pl.Int64),
        pl.Series("group", groups, dtype=pl.String),
    )
    return frame.select(manifest_columns(domain, split=False)).sort("path", "id")


# Problems of the set as a whole


def _problems_of_columns(fit: list[Record], domain: Domain) -> list[Reason]:
    """A problem for each group or slice column with empty cells, because their values cannot be guessed."""
    names = dict.fromkeys([*(["group"] if domain.group else []), *domain.slices])
    problems = list[Reason]()
    for name in names:
        empty = [record["path"] for record in fit if not record[name]]
        if empty:
            column = domain.group if name == "group" else name
            found = f"{len(empty)} empty, first at {empty[0]}"
            hint = "Fill in the column, or remove it from domain.yaml."
            problems.append(Reason(f"a value in column {column!r} of every image", found, hint))
    return problems


def _problems_of_counts(
    images: int, reasons: Mapping[int, Reason], classes: dict[str, dict[str, int]], domain: Domain
) -> list[Reason]:
    floors = domain.validation
    problems = list[Reason]()
    if len(reasons) > floors.max_quarantined * images:
        expected = f"at most {floors.max_quarantined:.1%} of the images in quarantine (validation.max_quarantined)"
        found = f"{len(reasons)} of {images} ({len(reasons) / images:.1%})"
        hint = "Fix the files listed in the report, or raise the limit if they should be left out."
        problems.append(Reason(expected, found, hint))
    for label, counts in classes.items():
        for kind, floor in (("images", floors.min_images_per_class), ("groups", floors.min_groups_per_class)):
            if counts[kind] < floor:
                expected = f"at least {floor} {kind} of class {label!r} (validation.min_{kind}_per_class)"
                hint = "Add some, or remove the class from domain.yaml."
                problems.append(Reason(expected, str(counts[kind]), hint))
                break  # too few images are often also too few groups: one problem per class
    return problems


def _warnings(fit: list[Record], pairs: list[tuple[str, str]], domain: Domain) -> list[str]:
    """Warnings that a person should look at; they do not stop the run."""
    warnings = []
    labels: dict[str, set[str]] = {}
    for record in fit:
        labels.setdefault(record["path"], set()).add(record["label"])
    if domain.layout.kind == "folders":
        names = Counter(posixpath.splitext(posixpath.basename(record["path"]))[0] for record in fit)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            warnings.append(
                f"Names in more than one folder, with different pictures: {len(twice)} (such as {twice[0]!r}). "
                "They are distinguished by their folders; rename them if they should be one picture."
            )
    mixed = [pair for pair in pairs if not labels[pair[0]] & labels[pair[1]]]
    if mixed and create_task(domain).annotation != "boxes":  # copies of a scene may show other objects
        warnings.append(
            f"Near duplicates that carry different labels: {len(mixed)} pairs (first: {' and '.join(mixed[0])}). "
            "They show one thing, so a label may be wrong: look at them."
        )
    return warnings


def find_large_groups(frame: pl.DataFrame) -> list[tuple[str, int]]:
    """Groups with more than the share LARGE of the images (and more than two), with their counts, the largest first.

    Empty if there is only one group.
    """
    sizes = (
        frame.drop_nulls("group").unique("id").group_by("group").len().sort("len", "group", descending=[True, False])
    )
    floor = max(LARGE * int(sizes["len"].sum()), 2)
    return [(name, count) for name, count in sizes.rows() if count > floor] if sizes.height > 1 else []


def warn_of_huge_groups(frame: pl.DataFrame) -> list[str]:
    """Warnings about large groups. A group is in one split as a whole and counts as one independent observation: a
    large group leaves little choice for the splits, and one that holds most of a class decides that class's score."""
    large, whole = find_large_groups(frame), frame["id"].n_unique()
    hint = (
        "Look at the largest groups in the report. If they are not one thing, correct the group column, or do not join "
        "near duplicates (groups: {near_duplicates: report}); else add images from other groups."
    )
    warnings = []
    if large:
        listed = ", ".join(f"{name[:16]!r} {count} ({count / whole:.0%})" for name, count in large[:3])
        more = f" and {len(large) - 3} more" if len(large) > 3 else ""
        warnings.append(f"Groups of more than {LARGE:.0%} of the {whole:,} images: {listed}{more}. {hint}")
    rows = by_class(frame).select("id", "label", "group").drop_nulls("group")
    inside = rows.group_by("label", "group").len()
    totals = rows.group_by("label").len().rename({"len": "total"})
    huge = inside.join(totals, on="label").filter(pl.col("len") > HUGE * pl.col("total")).sort("label")
    if rows["group"].n_unique() > 1 and not huge.is_empty():
        listed = ", ".join(f"{count} of {total} of {label!r}" for label, _, count, total in huge.rows())
        warnings.append(f"One group holds most of a class, so that a split has hardly any of it: {listed}. {hint}")
    return warnings


def _warn_of_turned(pictures: dict[str, Picture]) -> list[str]:
    turned = [path for path, picture in pictures.items() if picture.turned]
    return [
        f"Turned upright by their EXIF orientation: {len(turned)} (first: {path}). "
        "Make sure that boxes and masks were drawn on the upright pictures."
        for path in turned[:1]
    ]


def _warn_of_few_pixels(frame: pl.DataFrame, domain: Domain) -> list[str]:
    """A line about classes that are hardly seen, where pixels have classes."""
    if "pixels" not in frame.columns or frame.is_empty():
        return []
    pixels = np.array(frame["pixels"].to_list(), np.int64).reshape(-1, len(domain.classes)).sum(axis=0)
    shares = pixels / max(int(pixels.sum()), 1)
    few = {name: share for name, share in zip(domain.classes, shares, strict=True) if 0 < share < FEW_PIXELS}
    if not few:
        return []
    listed = ", ".join(f"{name} {share:.4%}" for name, share in few.items())
    hint = "Shrinking the pictures to `img_size` may remove them: choose one at which they are some pixels wide."
    return [f"Classes in less than {FEW_PIXELS:.2%} of the labelled pixels: {listed}. {hint}"]


def _warn_of_looks(outliers: Sequence[Outlier]) -> list[str]:
    """One line per kind of outlier; the report shows the pictures instead."""
    warnings = []
    for kind, number in Counter(item.kind for item in outliers).items():
        first = next(item for item in outliers if item.kind == kind)
        warnings.append(
            f"Pictures {kind} compared with the rest: {number} (first: {first.path}, {first.found}). {HINTS[kind]}"
        )
    return warnings


def _content(record: Record) -> str:
    return str(record["id"]).partition("#")[0]


def _crop_of(record: Record) -> list[Box]:
    crop = record["crop"]
    return [(crop[0], crop[1], crop[2], crop[3])] if crop else []


def _name(record: Record) -> str:
    return f"{record['path']} {tuple(record['crop'])}" if record["crop"] else str(record["path"])


def _quarantined(record: Record, why: Reason) -> Quarantined:
    return Quarantined(record["path"], record["label"], next(iter(_crop_of(record)), None), why)
