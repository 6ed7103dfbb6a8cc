"""What answers the questions of a command: a child that loads the champion's adapter, or the server that has it.

with ask_child(workspace, "plates") as source:
    for group, reply in source.ask(groups, whole=False, extras=()):
        ...
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from components.serving.questions import Question
from flows.processes.answering import Answered, Answering

if TYPE_CHECKING:
    from components.models.adapter import AdapterMeta
    from components.promotion.versions import Version
    from components.records.decisions import PassRule
    from components.workspace import Workspace


@dataclass(frozen=True)
class Champion:
    """The version that answers, and what a command must know of it.

    adapter_sha256: of adapter.json where the registry knows it, else of the weights. task: its kind. annotation: what
    is answered: label, labels, mask or boxes. input: what one input is, as adapter.json says; None where that is
    unknown. meta: the whole record, where the adapter is here.
    """

    domain: str
    version: int
    adapter_sha256: str
    tuner: str
    task: str
    annotation: str
    classes: tuple[str, ...]
    thresholds: dict[str, float] | None
    decision: "PassRule | None"
    input: dict[str, str | int | float] | None
    warnings: tuple[str, ...]
    meta: "AdapterMeta | None" = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """What one input is: `picture`, `crop` or `either`."""
        return "either" if self.input is None else str(self.input["kind"])


class Source(Protocol):
    """Whatever answers."""

    @property
    def champion(self) -> Champion: ...

    def ask(self, groups: Iterable[list[Question]], *, whole: bool, extras: Sequence[str]) -> Iterator[Answered]:
        """Each group of questions about one picture with the reply to it, in order."""


@dataclass(frozen=True)
class Child:
    """A process that loads the adapter in `folder`."""

    champion: Champion
    folder: Path
    process: Answering

    def ask(self, groups: Iterable[list[Question]], *, whole: bool, extras: Sequence[str]) -> Iterator[Answered]:
        return self.process.ask(self.folder, groups, whole=whole, extras=extras)


@contextmanager
def ask_child(workspace: "Workspace", name: str, *, early: bool) -> Iterator[Child]:
    """The champion of the registry, in a process of its own. early: load torch while the champion is looked up.

    Raises PromotionError where there is no champion that the ledger explains, or its adapter is not the registered one.
    """
    with Answering(early=early) as process:
        from components.models.adapter import load_meta
        from components.promotion import aliases, versions
        from flows.steps.history import open_registry

        open_registry(workspace, name)
        version = aliases.require_champion(name)
        folder = versions.fetch_adapter(version, workspace.adapters)
        yield Child(describe_champion(version, load_meta(folder)), folder, process)


def describe_champion(version: "Version", meta: "AdapterMeta") -> Champion:
    """What a command must know of a registered version whose adapter is here."""
    from components.serving.describing import list_doubts

    known = version.adapter_json_sha256 or version.adapter_sha256
    return Champion(
        domain=version.domain,
        version=version.version,
        adapter_sha256=known,
        tuner=version.tuner,
        task=meta.task.kind,
        annotation=meta.task.annotation,
        classes=meta.classes,
        thresholds=dict(meta.thresholds) or None,
        decision=meta.decision,
        input=None if meta.input is None else meta.input.model_dump(mode="json"),
        warnings=list_doubts(meta, version.version, known),
        meta=meta,
    )
