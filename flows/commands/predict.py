"""`tessera predict`: the champion's answer for images on disk."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError
from components.promotion import aliases, versions
from components.records.boxes import FoundBox
from components.records.fields import ErrorRecord
from components.records.images import LeftOut
from components.records.maps import decode_map
from components.records.predictions import Answer, BoxesAnswer, LabelsAnswer, MapAnswer, Predictions, Unanswered
from components.tasks.base import describe_answer
from components.workspace import Workspace

if TYPE_CHECKING:
    from components.models.adapter import AdapterMeta
    from components.serving.questions import Asked, Question

UNBOUND = (
    "Version {version} is not bound: it was registered before the registry and the ledger kept the sha256 of "
    "adapter.json, so only its weights are proven, not its classes and temperature."
)

#: The record of an answer, by a key that only such answers have.
KINDS: Mapping[str, type[Answer]] = {"areas": MapAnswer, "objects": BoxesAnswer, "labels": LabelsAnswer}


def predict(
    workspace: Workspace,
    name: str,
    paths: Sequence[Path],
    *,
    boxes: Sequence[str] = (),
    boxes_file: Path | None = None,
    whole: bool = False,
    out: Path | None = None,
    polygons: bool = False,
) -> Predictions:
    """The answer for every image, or for every box in it; a row with `error` where one cannot be answered.

    paths: files, and folders of them. boxes: texts `x0,y0,x1,y1` in the one image. boxes_file: boxes of many.
    whole: images for a champion of crops are crops already. out: where answers are written that are masks or boxes: a
    folder, or one file. polygons: outlines of masks instead of run lengths.

    Raises DataError where nothing can be asked, boxes are missing or not wanted, or `out` or `polygons` have no meaning
    for the champion; PromotionError where there is no champion that the ledger explains, or its adapter is not the
    registered one.
    """
    from components.models.adapter import load_meta
    from components.serving.questions import ask, parse_box, require_boxes
    from flows.processes.answering import Answering
    from flows.steps.history import open_registry

    with Answering() as child:  # loads torch while the champion is looked up
        asked = ask(paths, [parse_box(text, f"--box {text}") for text in boxes], boxes_file)
        open_registry(workspace, name)
        champion = aliases.require_champion(name)
        adapter = versions.fetch_adapter(champion, workspace.adapters)
        questions = [one for one in asked.questions if not isinstance(one, DataError)]
        meta = load_meta(adapter)
        require_boxes(meta, questions, whole=whole)
        _require_files(meta, out, polygons=polygons)
        reply = child.ask(adapter, questions, whole=whole)
    rows = _describe_all(asked.questions, reply["answers"], champion.version)
    outcome = _summarise(name, champion, meta, asked, rows, reply["doubt"])
    if out is None:
        return outcome
    pairs = zip(questions, reply["answers"], strict=True)
    answers = {question.path: answer for question, answer in pairs if "error" not in answer}
    if meta.task.annotation == "mask":
        return _write_maps(outcome, answers, meta, out, polygons=polygons)
    return _write_boxes(outcome, answers, meta, out, workspace)


def _summarise(
    name: str, champion: versions.Version, meta: "AdapterMeta", asked: "Asked", rows: Sequence[Answer], doubt: str
) -> Predictions:
    """The rows with all that holds for them together. doubt: what the predictor warns of; may be empty."""
    failed = [row.error for row in rows if row.error is not None]
    unbound = "" if champion.adapter_json_sha256 else UNBOUND.format(version=champion.version)
    answered = Predictions(
        domain=name,
        version=champion.version,
        tuner=champion.tuner,
        thresholds=dict(meta.thresholds) or None,
        decision=meta.decision,
        input=None if meta.input is None else meta.input.model_dump(mode="json"),
        predictions=tuple(rows),
        answered=len(rows) - len(failed),
        failed=len(failed),
        ignored=tuple(LeftOut(path=path, reason=reason) for path, reason in sorted(asked.ignored.items())),
        notes=dict(asked.notes),
        warnings=tuple(warning for warning in (doubt, unbound) if warning),
    )
    return answered if answered.answered else Unanswered(**dict(answered), error=failed[0])


def _describe_all(
    asked: "Sequence[Question | DataError]", answers: Sequence[Mapping[str, Any]], version: int
) -> list[Answer]:
    """A row per question, in order; answers: those of the questions that could be asked."""
    given = iter(answers)
    pairs = [(one, {"error": one.to_dict()} if isinstance(one, DataError) else next(given)) for one in asked]
    return [_describe(one, answer, version) for one, answer in pairs]


def _describe(asked: "Question | DataError", answer: Mapping[str, Any], version: int) -> Answer:
    """One row of the table; `label` is the answer as one text."""
    if "error" in answer:
        path, box = (asked.what, None) if isinstance(asked, DataError) else (asked.path, asked.box)
        error = ErrorRecord.model_validate(answer["error"])
        return Answer(path=path, box=box, crop=None, label=None, probabilities=None, model_version=version, error=error)
    if isinstance(asked, DataError):
        raise ValueError("what cannot be asked has no answer")
    facts = {"path": asked.path, "box": asked.box, "crop": answer["crop"], "label": describe_answer(answer["answer"])}
    facts |= {**answer["answer"], "probabilities": answer["probabilities"], "model_version": version, "error": None}
    form = next((form for key, form in KINDS.items() if key in facts), Answer)
    return form.model_validate(facts)


def _require_files(meta: "AdapterMeta", out: Path | None, *, polygons: bool) -> None:
    """Raise DataError where the champion's answers cannot be written in this form."""
    from components.serving.writing import FORMS, require_target

    task = meta.task
    if polygons and (task.annotation != "mask" or out is None):
        raise DataError(
            "--polygons",
            expected="a champion that answers masks, and `--out`, where their outlines are written",
            found="no `--out`" if task.annotation == "mask" else f"one of the task {task.kind}",
            hint="Name a file: `--out FILE.json`." if task.annotation == "mask" else "Leave it out.",
        )
    if out is None:
        return
    if task.annotation not in FORMS:
        raise DataError(
            f"--out {out}",
            expected="a champion that answers masks or boxes, of which files can be made",
            found=f"one of the task {task.kind}",
            hint="Leave it out; `--json` prints the answers.",
        )
    require_target(out, FORMS[task.annotation])


def _write_maps(
    outcome: Predictions, answers: Mapping[str, Mapping[str, Any]], meta: "AdapterMeta", out: Path, *, polygons: bool
) -> Predictions:
    """The outcome with the files that were written for its rows. answers: of the pictures that were answered."""
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


def _write_boxes(
    outcome: Predictions,
    answers: Mapping[str, Mapping[str, Any]],
    meta: "AdapterMeta",
    out: Path,
    workspace: Workspace,
) -> Predictions:
    """The outcome with the files that were written for its rows, and what is in them. answers: as above."""
    from components.domain.reading import load_domain
    from components.serving.box_files import Answered, write_boxes
    from components.serving.ids import choose_ids
    from components.serving.writing import CSV

    rows = enumerate(outcome.predictions, 1)
    pictures = {number: Path(row.path) for number, row in rows if isinstance(row, BoxesAnswer)}
    answered = [
        Answered(path, [FoundBox(*one) for one in answers[path.as_posix()]["found"]]) for path in pictures.values()
    ]
    domain = load_domain(workspace.domain_file(outcome.domain))
    ids = choose_ids(pictures, meta.classes, domain, workspace.raw(outcome.domain))
    drawn = write_boxes(out, answered, meta.classes, ids)
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


def exit_code(outcome: Predictions) -> int:
    """0 where every image was answered, 1 where some were not, 2 where none was."""
    return 2 if not outcome.answered else 1 if outcome.failed else 0
