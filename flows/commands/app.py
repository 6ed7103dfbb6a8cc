"""What all commands share: options, exit codes, errors as one paragraph, and `--json`.

Exit codes: 0 done, 1 a check or gate said no, 2 bad usage or input. With `--json` stdout holds one JSON object and
nothing else; everything a person reads goes elsewhere.
"""

import json
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from components.domain.strict import Strict
    from components.errors import TesseraError
    from components.workspace import Workspace

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="DIR",
        envvar="TESSERA_WORKSPACE",
        help="Where data and state live; default the repository.",
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of domain.yaml, e.g. training.epochs=5."),
]
DomainArgument = Annotated[str, typer.Argument(metavar="DOMAIN", help="Name of a folder in data/.")]
Printed = TypeVar("Printed", bound="Strict")  # what a command prints


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from components.data.store.versioning import git_commit

        typer.echo(f"tessera {version('tessera')} (commit {git_commit()})")
        raise typer.Exit()


@app.callback()
def _main(
    workspace: WorkspaceOption = None,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print Tessera's own version and stop."),
    ] = False,
) -> None:
    """Versioned image datasets in, promoted and served vision adapters out."""
    if workspace is not None:
        os.environ["TESSERA_WORKSPACE"] = str(workspace)


def execute(
    act: "Callable[[Workspace], Printed | None]",
    show: "Callable[[Printed], None]",
    as_json: bool,
    workspace: Path | None,
    failed: "Callable[[Printed], int]" = lambda _: 0,
    full_too: bool = False,
    joins: bool = True,
) -> None:
    """Run `act`, show its record or print it as JSON, and exit with the right code; a user's error is one paragraph.

    failed: the exit code for the record; True is 1. full_too: also in a workspace that cannot be written. joins:
    use the servers of a `tessera up` of the workspace.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's way of pressing Ctrl-C
    from components.errors import TesseraError, WorkspaceError
    from components.workspace import DISK_TROUBLE, describe_disk_trouble, find_workspace

    answer = _own_stdout() if as_json else None
    place = find_workspace(workspace)
    try:
        with suppress(WorkspaceError) if full_too else nullcontext():
            for note in place.activate():
                typer.echo(f"tessera: {note}", err=True)
        if joins:
            from flows.server.address import join_services

            join_services(place)
        record = act(place)
    except TesseraError as error:
        _refuse(error, answer)
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        _refuse(describe_disk_trouble(place.root, error), answer)
    except KeyboardInterrupt:
        typer.echo("tessera: interrupted; the same command goes on where this one stopped.", err=True)
        raise typer.Exit(130) from None
    if record is None:
        return
    if answer is not None:
        answer.write(json.dumps(record.model_dump(mode="json"), indent=1) + "\n")
        answer.flush()
    else:
        from flows.progress import make_harmless

        show(make_harmless(record))
    raise typer.Exit(int(failed(record)))


def _refuse(error: "TesseraError", answer: Any) -> NoReturn:
    """One paragraph on stderr, the same as JSON where that was asked for, and the error's exit code."""
    from components.errors import make_visible

    if answer is not None:
        from components.records.fields import ErrorRecord, Refused

        answer.write(json.dumps(Refused(error=ErrorRecord.of(error)).model_dump(mode="json")) + "\n")
        answer.flush()
    typer.echo(f"tessera: {make_visible(str(error))}", err=True)
    raise typer.Exit(error.exit_code) from None


def shower(name: str, module: str = "console") -> Callable[[Any], None]:
    """The function of the console by that name, loaded when there is something to show."""

    def show(record: Any) -> None:
        from importlib import import_module

        getattr(import_module(f"flows.commands.{module}"), name)(record)

    return show


def watched(as_json: bool) -> AbstractContextManager[None]:
    """Draw what goes on; Prefect's own console lines would cut through it, and its server gets them all the same."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from flows.commands.screen import live, tell
    from flows.progress import listening

    return listening(tell) if as_json else live()


def _own_stdout() -> Any:
    """Keep stdout for the one JSON object: whatever any library or child prints goes to stderr."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answer
