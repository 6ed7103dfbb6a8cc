"""What can be predicted of an image: `ls` of this folder is the list of tasks.

A task is a strict record with a literal `kind` and its options. It defines everything that depends on the task, except
the network's head (components/models/heads). To add one, write a file here and one there, and add one word to `Member`
and one entry to `HEADS`; the tests enumerate both. Importing this package imports no torch.

    create_task(domain)              # `task: multilabel`, or a mapping with its options
    create_task(domain).evidence(predictions, domain.classes).scores(np.ones((1, 40)))
"""

import difflib
from typing import Annotated, get_args

from pydantic import Field, ValidationError

from components.domain.domain import Domain
from components.domain.reading import explain
from components.errors import DomainError
from components.tasks.base import Annotation, Task
from components.tasks.classification import ClassificationTask
from components.tasks.multilabel import MultilabelTask

__all__ = ["CLASSIFICATION", "TASKS", "Member", "Task", "TaskRecord", "choose_kind", "create_task"]

Member = ClassificationTask | MultilabelTask
TaskRecord = Annotated[Member, Field(discriminator="kind")]

#: kind -> its record, read from the union so that there is one list only.
TASKS: dict[str, type[Member]] = {member.model_fields["kind"].default: member for member in get_args(Member)}

#: The task of code that speaks of one label per image and has no domain: tests and benchmarks of tuners.
CLASSIFICATION = ClassificationTask()


def create_task(domain: Domain, where: str = "") -> Member:
    """The domain's task, its options and all that the domain must be for it checked. `where` opens the error message.

    Raises DomainError for an unknown kind or option, and where layout, classes or costs do not fit the task.
    """
    record = {"kind": domain.task} if isinstance(domain.task, str) else dict(domain.task)
    kind, where = record.get("kind"), where or f"domain {domain.name}"
    if kind not in TASKS:
        close = difflib.get_close_matches(str(kind), TASKS, 1)
        raise DomainError(
            f"{where}: task",
            expected=f"a task among {', '.join(TASKS)}",
            found="no kind" if kind is None else f"{kind}",
            hint=f"{f'Did you mean {close[0]!r}? ' if close else ''}Name one of these.",
        )
    try:
        task = TASKS[kind].model_validate(record)
    except ValidationError as error:
        raise explain(error, f"{where}: task", TASKS[kind]) from None
    if misfit := task.find_misfit(domain):
        expected, found, hint = misfit
        raise DomainError(where, expected=expected, found=found, hint=hint)
    return task


def choose_kind(annotation: Annotation) -> str:
    """The task of a new domain whose pictures are annotated so."""
    return next(kind for kind, task in TASKS.items() if task.annotation == annotation)
