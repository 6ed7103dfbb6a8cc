"""`tessera predict`: the champion's answer for images on disk."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from components.errors import DataError, PromotionError
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
from flows.steps.asking_server import Moved, Server, find_server

if TYPE_CHECKING:
    from components.serving.folders import Summary
    from components.serving.saliency import Overlays

MOST_MOVES = 3  # promotions in a row through which a command begins anew


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
    saliency: Path | None = None,
    server: Server | None = None,
) -> Predictions:
    """The answer for every image, or for every box in it; a row with `error` where one cannot be answered.

    paths: files, and folders of them; `-` for stdin. boxes: texts `x0,y0,x1,y1` in the one image. boxes_file: boxes of
    many. whole: images for a champion of crops are crops already. out: a table of all answers, whose rows are not in
    the record then; or, of masks or boxes, a folder or one file. polygons: outlines of masks instead of run lengths.
    saliency: a folder for drawings of what speaks for the answers. server: asked instead of a process of our own, as
    far as it sends what the files hold.

    Raises DataError where nothing can be asked, boxes are missing or not wanted, or an option has no meaning for the
    champion; PromotionError where there is no champion that the ledger explains, or its adapter is not the registered
    one.
    """
    with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
        asked = read_questions(paths, boxes, boxes_file, Path(folder))
        for _ in range(MOST_MOVES):
            try:
                with ExitStack() as stack:
                    source = _open_source(stack, workspace, name, out, server, polygons=polygons)
                    questions = [one for one in asked.questions if isinstance(one, Question)]
                    return _answer(_Request(asked, questions, source, whole, saliency), out, workspace, polygons)
            except Moved:
                say(f"{name} has another champion than a moment ago; everything is asked of the new one.")
                server = find_server(workspace, name, say) if server else None
    what, hint = f"prediction with {name}", "Try again once promotions have come to an end."
    raise PromotionError(what, expected="one champion for all answers", found=f"{MOST_MOVES} in a row", hint=hint)


def predict_here(workspace: Workspace, name: str, **options: Any) -> Predictions:
    """The same by the workspace's running server, where it serves the domain; warnings go to stderr."""
    server = find_server(workspace, name, say)
    if server is None:
        from flows.plan import load_checked_domain

        load_checked_domain(workspace, name)  # a typo is reported before torch is loaded
    predictions = predict(workspace, name, server=server, **options)
    for warning in predictions.warnings:
        say(f"warning: {warning}")
    return predictions


def _open_source(
    stack: ExitStack, workspace: Workspace, name: str, out: Path | None, server: Server | None, *, polygons: bool
) -> Source:
    """What answers: the server, where it sends all that is to be written, else a child."""
    begun = out is not None and (out.exists() or name_journal(out).exists())  # maybe nothing has to be asked
    if server is None or polygons or not (out is None or is_table(server.champion.annotation, out)):
        return stack.enter_context(ask_child(workspace, name, early=not begun))

    def open_child() -> Source:
        child = stack.enter_context(ask_child(workspace, name, early=True))
        if (child.champion.version, child.champion.adapter_sha256) != (champion.version, champion.adapter_sha256):
            raise Moved
        return child

    champion = server.champion
    return replace(server, instead=open_child)


def say(text: str) -> None:
    typer.echo(f"tessera: {text}", err=True)


@dataclass(frozen=True)
class _Request:
    """What is asked of whom. saliency: the folder of drawings."""

    asked: Asked
    questions: Sequence[Question]
    source: Source
    whole: bool
    saliency: Path | None


def _answer(request: _Request, out: Path | None, workspace: Workspace, polygons: bool) -> Predictions:
    champion = request.source.champion
    check_boxes(champion.task, champion.annotation, champion.kind, request.questions, request.whole)
    require_files(champion.annotation, champion.task, out, polygons=polygons)
    with Counter(len(request.asked.questions)) as counter:
        watch = _Watch(counter, request)
        if out is not None and is_table(champion.annotation, out):
            return _answer_table(request, out, watch)
        return _answer_all(request, out, workspace, watch, polygons=polygons)


class _Watch:
    """Draws how far the answers are, and their saliency where that is asked for."""

    def __init__(self, counter: Counter, request: _Request) -> None:
        self.counter, self.count = counter, counter.count
        self.overlays = _open_overlays(request)
        self.extras = ("saliency",) if self.overlays else ()

    def see(self, question: Question, said: dict[str, Any]) -> None:
        if self.overlays is not None:
            self.overlays.draw(question, said)

    def wants(self, question: Question) -> bool:
        return self.overlays is not None and not self.overlays.name(question).exists()


def _open_overlays(request: _Request) -> "Overlays | None":
    if request.saliency is None:
        return None
    from components.serving.saliency import Overlays, require_saliency

    champion = request.source.champion
    require_saliency(request.saliency, champion.annotation, champion.task)
    return Overlays(request.saliency, request.questions)


def _answer_table(request: _Request, out: Path, watch: _Watch) -> Predictions:
    """All answers in one file; the record has no rows."""
    from components.serving.folders import open_table
    from components.serving.rows import list_columns

    champion, asked = request.source.champion, request.asked.questions
    columns = list_columns(champion.annotation, champion.classes)

    def ask(groups: Iterator[list[Question]]) -> Iterator[tuple[list[Question], dict[str, Any]]]:
        return request.source.ask(groups, whole=request.whole, extras=watch.extras)

    with open_table(out, columns, champion.version, champion.adapter_sha256) as table:
        try:
            summary = table.answer(asked, ask, watch)
        except KeyboardInterrupt:
            watch.counter.clear()
            kept = f"{len(table.journal):,} answers are kept in {name_journal(out)}"
            say(f"interrupted; {kept}, and the same command goes on from there.")
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


def _answer_all(
    request: _Request, out: Path | None, workspace: Workspace, watch: _Watch, *, polygons: bool
) -> Predictions:
    """The rows themselves, and the files of masks or boxes."""
    source, questions = request.source, request.questions
    answers: list[dict[str, Any]] = []
    extras = (*watch.extras, *(("class_map", "found") if out is not None else ()))
    for group, reply in source.ask(group_questions(questions), whole=request.whole, extras=extras):
        answers += reply["answers"]
        for question, said in zip(group, reply["answers"], strict=True):
            watch.see(question, said)
        watch.count(len(group), sum("error" in said for said in reply["answers"]))
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
