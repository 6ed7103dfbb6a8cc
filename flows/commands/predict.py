"""`tessera predict`: the champion's answer for images on disk."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from components.errors import DataError
from components.records.fields import ErrorRecord
from components.records.images import LeftOut
from components.records.predictions import Answer, Predictions, Unanswered
from components.serving.folder_journal import name_journal
from components.serving.questions import Asked, Question, check_boxes, group_questions
from components.serving.rows import describe
from components.workspace import Workspace
from flows.commands.counting import Counter
from flows.commands.predict_files import is_table, require_files, write_files
from flows.commands.predict_questions import read_questions
from flows.steps.asking import Champion, Source, ask_child

if TYPE_CHECKING:
    from components.serving.folders import Summary


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

    paths: files, and folders of them; `-` for stdin. boxes: texts `x0,y0,x1,y1` in the one image. boxes_file: boxes of
    many. whole: images for a champion of crops are crops already. out: a table of all answers, whose rows are not in
    the record then; or, of masks or boxes, a folder or one file. polygons: outlines of masks instead of run lengths.

    Raises DataError where nothing can be asked, boxes are missing or not wanted, or `out` or `polygons` have no meaning
    for the champion; PromotionError where there is no champion that the ledger explains, or its adapter is not the
    registered one.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-")))
        asked = read_questions(paths, boxes, boxes_file, folder)
        begun = out is not None and (out.exists() or name_journal(out).exists())  # maybe nothing has to be asked
        source: Source = stack.enter_context(ask_child(workspace, name, early=not begun))
        champion = source.champion
        questions = [one for one in asked.questions if isinstance(one, Question)]
        check_boxes(champion.task, champion.annotation, champion.kind, questions, whole)
        require_files(champion.annotation, champion.task, out, polygons=polygons)
        request = _Request(asked, questions, source, whole)
        if out is not None and is_table(champion.annotation, out):
            return _answer_table(request, out)
        return _answer_all(request, out, workspace, polygons=polygons)


@dataclass(frozen=True)
class _Request:
    """What is asked of whom."""

    asked: Asked
    questions: Sequence[Question]
    source: Source
    whole: bool


class _Watch:
    """Draws how far the answers are."""

    def __init__(self, counter: Counter) -> None:
        self.count = counter.count

    def see(self, place: int, question: Question, said: Mapping[str, Any]) -> None:
        pass

    def wants(self, place: int) -> bool:
        return False


def _answer_table(request: _Request, out: Path) -> Predictions:
    """All answers in one file; the record has no rows."""
    from components.serving.folders import open_table
    from components.serving.rows import list_columns

    champion, asked = request.source.champion, request.asked.questions
    columns = list_columns(champion.annotation, champion.classes)

    def ask(groups: Iterator[list[Question]]) -> Iterator[tuple[list[Question], dict[str, Any]]]:
        return request.source.ask(groups, whole=request.whole, extras=())

    with (
        open_table(out, columns, champion.version, champion.adapter_sha256) as table,
        Counter(len(asked)) as counter,
    ):
        try:
            summary = table.answer(asked, ask, _Watch(counter))
        except KeyboardInterrupt:
            counter.clear()
            kept = f"{len(table.journal):,} answers are kept in {name_journal(out)}"
            typer.echo(f"tessera: interrupted; {kept}, and the same command goes on from there.", err=True)
            raise typer.Exit(130) from None
    return _describe_table(request, out, summary, table.outdated)


def _describe_table(request: _Request, out: Path, summary: "Summary", outdated: int) -> Predictions:
    """The record of answers that are in a file. outdated: rows of another version that were there."""
    notes = {
        "answers known from before": summary.known,
        "rows of another version, whose images were asked again": outdated,
        "images without a label, because the model abstains": summary.abstained,
    }
    facts = {
        **_summarise(request.source.champion, request.asked),
        "answered": summary.answered,
        "failed": summary.failed,
        "notes": {**request.asked.notes, **{note: count for note, count in notes.items() if count}},
        "predictions": (),
        "table": out.as_posix(),
        "shown": dict(sorted(summary.shown.items())),
    }
    if summary.answered or summary.error is None:
        return Predictions(**facts)
    return Unanswered(**facts, error=ErrorRecord.of(summary.error))


def _answer_all(request: _Request, out: Path | None, workspace: Workspace, *, polygons: bool) -> Predictions:
    """The rows themselves, and the files of masks or boxes."""
    source, questions = request.source, request.questions
    answers: list[dict[str, Any]] = []
    with Counter(len(questions)) as counter:
        extras = ("class_map", "found") if out is not None else ()
        for group, reply in source.ask(group_questions(questions), whole=request.whole, extras=extras):
            answers += reply["answers"]
            counter.count(len(group), sum("error" in said for said in reply["answers"]))
    rows = _describe_all(request.asked.questions, answers, source.champion.version)
    failed = [row.error for row in rows if row.error is not None]
    facts = {
        **_summarise(source.champion, request.asked),
        "predictions": tuple(rows),
        "answered": len(rows) - len(failed),
        "failed": len(failed),
        "notes": dict(request.asked.notes),
    }
    outcome = Predictions(**facts) if len(failed) < len(rows) else Unanswered(**facts, error=failed[0])
    if out is None or source.champion.meta is None:
        return outcome
    pairs = zip(questions, answers, strict=True)
    answered = {question.path: said for question, said in pairs if "error" not in said}
    return write_files(outcome, answered, source.champion.meta, out, workspace, polygons=polygons)


def _summarise(champion: Champion, asked: Asked) -> dict[str, Any]:
    """What holds for all answers together."""
    return {
        "domain": champion.domain,
        "version": champion.version,
        "tuner": champion.tuner,
        "thresholds": champion.thresholds,
        "decision": champion.decision,
        "input": champion.input,
        "ignored": tuple(LeftOut(path=path, reason=reason) for path, reason in sorted(asked.ignored.items())),
        "warnings": champion.warnings,
    }


def _describe_all(
    asked: Sequence[Question | DataError], answers: Sequence[Mapping[str, Any]], version: int
) -> list[Answer]:
    """A row per question, in order; answers: those of the questions that could be asked."""
    given = iter(answers)
    pairs = [(one, {"error": one.to_dict()} if isinstance(one, DataError) else next(given)) for one in asked]
    return [describe(one, said, version) for one, said in pairs]


def exit_code(outcome: Predictions) -> int:
    """0 where every image was answered, 1 where some were not, 2 where none was."""
    return 2 if not outcome.answered else 1 if outcome.failed else 0
