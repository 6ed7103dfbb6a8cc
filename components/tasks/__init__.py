"""What can be predicted of an image: `ls` of this folder is the list of tasks.

A task is a strict record with a literal `kind` and its options. It defines everything that depends on the task, except
the network's head (components/models/heads). To add one, write a file here and one there, and add one word to `Member`
and one entry to `HEADS`; the tests enumerate both. Importing this package imports no torch.

    create_task(domain)              # `task: multilabel`, or a mapping with its options
    create_task(domain).evidence(predictions, domain.classes).scores(np.ones((1, 40)))
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError

from components.domain.canvas import Fit
from components.domain.domain import Domain
from components.domain.reading import explain, parse_yaml
from components.errors import DomainError
from components.tasks.base import Annotation, Task
from components.tasks.classification import ClassificationTask
from components.tasks.detection import DetectionTask
from components.tasks.multilabel import MultilabelTask
from components.tasks.segmentation import SegmentationTask

__all__ = [
    "CLASSIFICATION",
    "TASKS",
    "Member",
    "Task",
    "TaskRecord",
    "choose_fit",
    "choose_kind",
    "create_task",
    "parse_task",
    "read_task",
    "write_task",
]

Member = ClassificationTask | MultilabelTask | SegmentationTask | DetectionTask
TaskRecord = Annotated[Member, Field(discriminator="kind")]

#: kind -> its record, read from the union so that there is one list only.
TASKS: dict[str, type[Member]] = {member.model_fields["kind"].default: member for member in get_args(Member)}

#: The task of code that speaks of one label per image and has no domain: tests and benchmarks of tuners.
CLASSIFICATION = ClassificationTask()


def create_task(domain: Domain, where: str = "") -> Member:
    """The domain's task, its options and all that the domain must be for it checked. `where` opens the error message.

    Raises DomainError for an unknown kind or option, and where layout, classes or costs do not fit the task.
    """
    where = where or f"domain {domain.name}"
    task = read_task(domain.task, f"{where}: task")
    if misfit := task.find_misfit(domain):
        expected, found, hint = misfit
        raise DomainError(where, expected=expected, found=found, hint=hint)
    _require_control(task, domain, where)
    return task


def read_task(written: str | Mapping[str, Any], where: str) -> Member:
    """A task from its kind, or from a mapping with its options. Raises DomainError for an unknown kind or option."""
    record = {"kind": written} if isinstance(written, str) else dict(written)
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in TASKS:
        close = difflib.get_close_matches(str(kind), TASKS, 1)
        raise DomainError(
            where,
            expected=f"a task among {', '.join(TASKS)}",
            found="no kind" if kind is None else f"{kind}",
            hint=f"{f'Did you mean {close[0]!r}? ' if close else ''}Name one of these.",
        )
    try:
        return TASKS[kind].model_validate(record)
    except ValidationError as error:
        raise explain(error, where, TASKS[kind]) from None


def parse_task(text: str, where: str = "--task") -> Member:
    """The task from a command line: its kind, or the mapping that domain.yaml would hold. Raises DomainError."""
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise DomainError(where, expected="legal YAML", found=str(error), hint="Correct it.") from None
    return read_task(raw if isinstance(raw, Mapping) else str(raw), where)


def write_task(task: Task) -> str | dict[str, Any]:
    """A task as domain.yaml holds it: its kind alone, or with the options that differ from the default."""
    options = task.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    return {"kind": task.kind, **options} if options else task.kind


def _require_control(task: Member, domain: Domain, where: str) -> None:
    """Raise DomainError where a candidate is the control of another task, for which it would compute nothing."""
    others = {other.control for other in TASKS.values()} - {None, task.control}
    if strange := [str(each["kind"]) for each in domain.candidates if each.get("kind") in others]:
        raise DomainError(
            f"{where}: candidates",
            expected=f"tuners for the task {task.kind}",
            found=f"{', '.join(strange)}, the control of tasks whose head reads the pixels",
            hint="Remove it from `candidates`.",
        )


def choose_fit(domain: Domain) -> Fit:
    """How the domain's pictures are put on the canvas of the training."""
    return domain.fit or read_task(domain.task, f"domain {domain.name}: task").fit


def choose_kind(annotation: Annotation) -> str:
    """The task of a new domain whose pictures are annotated so."""
    return next(kind for kind, task in TASKS.items() if task.annotation == annotation)
