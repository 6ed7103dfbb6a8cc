"""`tessera predict`: the champion's answer for images on disk."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError
from components.promotion import aliases, versions
from components.records.fields import ErrorRecord
from components.records.images import LeftOut
from components.records.maps import decode_map
from components.records.predictions import Answer, LabelsAnswer, MapAnswer, Predictions, Unanswered
from components.tasks.base import describe_answer
from components.workspace import Workspace

if TYPE_CHECKING:
    from components.models.adapter import AdapterMeta
    from components.serving.questions import Asked, Question

UNBOUND = (
    "Version {version} is not bound: it was registered before the registry and the ledger kept the sha256 of "
    "adapter.json, so only its weights are proven, not its classes and temperature."
)


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
    whole: images for a champion of crops are crops already. out: where masks and drawings are written, or a COCO file
    that ends in .json. polygons: outlines in that file instead of run lengths.

    Raises DataError where nothing can be asked, or boxes are missing or not wanted; PromotionError where there is no
    champion that the ledger explains, or its adapter is not the registered one.
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
        if out is not None:
            _require_maps(meta, out)
        reply = child.ask(adapter, questions, whole=whole)
    rows = _describe_all(asked.questions, reply["answers"], champion.version)
    rows = _write_all(rows, questions, reply["answers"], meta, out, polygons=polygons) if out else rows
    return _summarise(name, champion, meta, asked, rows, reply["doubt"])


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
    form = MapAnswer if "areas" in facts else LabelsAnswer if "labels" in facts else Answer
    return form.model_validate(facts)


def _require_maps(meta: "AdapterMeta", out: Path) -> None:
    """Raise DataError unless the champion answers masks, of which files can be made."""
    if meta.task.annotation != "mask":
        raise DataError(
            f"--out {out}",
            expected="a champion that answers a mask for each picture",
            found=f"one of the task {meta.task.kind}",
            hint="Leave --out away; `--json` prints the answers.",
        )


def _write_all(
    rows: Sequence[Answer],
    questions: "Sequence[Question]",
    answers: Sequence[Mapping[str, Any]],
    meta: "AdapterMeta",
    out: Path,
    *,
    polygons: bool,
) -> list[Answer]:
    """The rows with the files that were written for them. questions, answers: of those that could be asked."""
    from components.serving.writing import Answered, write_answers

    maps = {
        question.path: base64.b64decode(answer["class_map"])
        for question, answer in zip(questions, answers, strict=True)
        if "error" not in answer
    }
    drawn = [row for row in rows if isinstance(row, MapAnswer)]
    answered = [
        Answered(Path(row.path), decode_map(maps[row.path]), {(c.label, c.box): c.confidence for c in row.components})
        for row in drawn
    ]
    background = meta.task.painting.background if meta.task.painting else None
    files = iter(write_answers(out, answered, meta.classes, background, polygons=polygons))
    return [
        row.model_copy(update={"mask": (file := next(files)).mask, "overlay": file.overlay})
        if isinstance(row, MapAnswer)
        else row
        for row in rows
    ]


def exit_code(outcome: Predictions) -> int:
    """0 where every image was answered, 1 where some were not, 2 where none was."""
    return 2 if not outcome.answered else 1 if outcome.failed else 0
