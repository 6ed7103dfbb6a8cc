"""Commands on servers and installations: status, doctor, deploy, serve, up, down."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.app import JsonOption, WorkspaceOption, app, execute, shower

if TYPE_CHECKING:
    from components.records.operations import Deployment, Diagnosis, Status, Stopped
    from components.workspace import Workspace


@app.command()
def doctor(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Check the installation and say how to fix what is wrong."""

    def act(place: "Workspace") -> "Diagnosis":
        from flows.commands.doctor import doctor as run

        return run(place)

    # A full disk is among what it has to tell.
    execute(act, shower("show_doctor"), as_json, workspace, failed=lambda diagnosis: not diagnosis.ok, full_too=True)


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Draw it again every few seconds until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Every domain in one table: data, champion, last run and verdict, next run, workers."""

    def act(place: "Workspace") -> "Status":
        from flows.commands.status import status as run

        if watch and not as_json:
            from flows.commands import console
            from flows.progress import make_harmless

            console.watch(lambda: make_harmless(run(place)), console.draw_status)
        return run(place)

    execute(act, shower("show_status"), as_json, workspace)


@app.command()
def deploy(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Bring the Prefect server to what the domain files say: pools, deployments, schedules, automations."""

    def act(place: "Workspace") -> "Deployment":
        from flows.server.schedules import deploy as run

        return run(place)

    def unreadable(deployment: "Deployment") -> bool:
        return any(row.change == "unreadable" for row in deployment.deployed)

    execute(act, shower("show_deployed"), as_json, workspace, failed=unreadable)


@app.command()
def serve(
    domain: Annotated[
        list[str] | None, typer.Option("--domain", metavar="NAME", help="Serve this one alone; may be given again.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Another than this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option("--port", help="8080 or the next free one.")] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="What it holds must be sent by every client.")
    ] = None,
    full_mb: Annotated[
        int | None,
        typer.Option(
            "--full-mb",
            min=1,
            help="Megabytes that champions of the tuner `full` may take; default half of the memory.",
        ),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Answer over HTTP with every domain's champion, until Ctrl-C; promotions and rollbacks are followed."""

    def act(place: "Workspace") -> None:
        from flows.commands.serve import serve as run

        run(place, domain or [], host, port, token_file, full_mb)

    execute(act, lambda _: None, False, workspace)


@app.command()
def up(
    prefect_port: Annotated[int | None, typer.Option("--prefect-port", help="4200 or the next free one.")] = None,
    mlflow_port: Annotated[int | None, typer.Option("--mlflow-port", help="5000 or the next free one.")] = None,
    serve_port: Annotated[int | None, typer.Option("--serve-port", help="8080 or the next free one.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Run Prefect, MLflow, workers and `tessera serve` on loopback until Ctrl-C or `tessera down`.

    What crashes is started again.
    """

    def act(place: "Workspace") -> None:
        from flows.commands import console
        from flows.commands.home import Home
        from flows.server.services import Ports, run_services

        # Unwrapped, so that the commands it prints can be copied.
        ports = Ports(prefect_port, mlflow_port, serve_port)
        run_services(
            place, ports, Home, lambda text: console.OUT.print(text, soft_wrap=True, highlight=False, markup=False)
        )

    execute(act, lambda _: None, False, workspace, joins=False)


@app.command()
def down(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Stop what `tessera up` runs for this workspace."""

    def act(place: "Workspace") -> "Stopped":
        from components.records.operations import Stopped
        from flows.server.services import stop_services

        return Stopped(stopped=stop_services(place))

    def show(record: "Stopped") -> None:
        typer.echo("Stopped." if record.stopped else "Nothing was up.")

    execute(act, show, as_json, workspace, joins=False)
