"""Files of masks and boxes that `tessera predict --out` writes, and which forms an answer can have."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError
from components.records.predictions import Answer, BoxesAnswer, MapAnswer, Predictions
from components.serving.writing import CSV, FORMS, TABLES, require_target

if TYPE_CHECKING:
    from components.models.adapter import AdapterMeta
    from components.workspace import Workspace


def is_table(annotation: str, out: Path | None) -> bool:
    """Whether `out` gets one row per question. annotation: what is answered; of boxes, csv has a line per box."""
    suffix = "" if out is None else out.suffix.lower()
    return suffix in TABLES and not (suffix == CSV and annotation == "boxes")


def require_files(annotation: str, task: str, out: Path | None, *, polygons: bool) -> None:
    """Raise DataError where the champion's answers cannot be written in this form."""
    if polygons and (annotation != "mask" or out is None or is_table(annotation, out)):
        hint = "Name a file: `--out FILE.json`." if annotation == "mask" else "Leave it out."
        raise DataError(
            "--polygons",
            expected="a champion that answers masks, and `--out` with a folder or a .json, where their outlines are "
            "written",
            found=(f"`--out {out}`" if out else "no `--out`") if annotation == "mask" else f"one of the task {task}",
            hint=hint,
        )
    if out is not None:
        require_target(out, FORMS[annotation])


def write_files(
    outcome: Predictions,
    answers: Mapping[str, Mapping[str, Any]],
    meta: "AdapterMeta",
    out: Path,
    workspace: "Workspace",
    *,
    polygons: bool,
) -> Predictions:
    """The outcome with the files that were written for its rows. answers: of the pictures that were answered."""
    if meta.task.annotation == "mask":
        return write_maps(outcome, answers, meta, out, polygons=polygons)
    return write_boxes(outcome, answers, meta, out, workspace)


def write_maps(
    outcome: Predictions, answers: Mapping[str, Mapping[str, Any]], meta: "AdapterMeta", out: Path, *, polygons: bool
) -> Predictions:
    """The outcome with the files that were written for its rows. answers: of the pictures that were answered."""
    from components.records.maps import decode_map
    from components.serving.map_files import Answered, write_answers

    rows = [row for row in outcome.predictions if isinstance(row, MapAnswer)]
    answered = [
        Answered(
            Path(row.path),
            decode_map(base64.b64decode(answers[row.path]["class_map"])),
            {(part.label, part.box): part.confidence for part in row.components},
        )
        for row in rows
    ]
    background = meta.task.background_class
    files = write_answers(out, answered, meta.classes, background, polygons=polygons)
    written = [{"mask": file.mask, "overlay": file.overlay} for file in files]
    return _add_files(outcome, MapAnswer, written)


def write_boxes(
    outcome: Predictions,
    answers: Mapping[str, Mapping[str, Any]],
    meta: "AdapterMeta",
    out: Path,
    workspace: "Workspace",
) -> Predictions:
    """The outcome with the files that were written for its rows, and what is in them. answers: as above."""
    from components.domain.reading import load_domain
    from components.records.boxes import FoundBox
    from components.serving import box_files
    from components.serving.ids import choose_ids

    rows = enumerate(outcome.predictions, 1)
    pictures = {number: Path(row.path) for number, row in rows if isinstance(row, BoxesAnswer)}
    answered = [
        box_files.Answered(path, [FoundBox(*one) for one in answers[path.as_posix()]["found"]])
        for path in pictures.values()
    ]
    domain = load_domain(workspace.domain_file(outcome.domain))
    ids = choose_ids(pictures, meta.classes, domain, workspace.raw(outcome.domain))
    drawn = box_files.write_boxes(out, answered, meta.classes, ids)
    where = f"boxes in {out}" + ("" if out.suffix.lower() == CSV else f", {ids.words}")  # a table has no ids
    notes = {where: sum(len(one.found) for one in answered)}
    empty = sum(not one.found for one in answered)
    notes |= {"pictures without any box there": empty} if empty else {}
    noted = outcome.model_copy(update={"notes": {**outcome.notes, **notes}})
    return _add_files(noted, BoxesAnswer, [{"drawn": path} for path in drawn])


def _add_files(outcome: Predictions, kind: type[Answer], files: Sequence[Mapping[str, str | None]]) -> Predictions:
    """The outcome with the fields of `files`, one for each row of this kind."""
    left = iter(files)
    rows = [row.model_copy(update=next(left)) if isinstance(row, kind) else row for row in outcome.predictions]
    return outcome.model_copy(update={"predictions": tuple(rows)})
