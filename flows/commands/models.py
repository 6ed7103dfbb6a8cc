"""Commands on candidates and champions: retrain, compare, promote, history, predict."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.app import (
    DomainArgument,
    JsonOption,
    OverridesOption,
    WorkspaceOption,
    app,
    execute,
    shower,
    watched,
)

if TYPE_CHECKING:
    from components.domain.strict import Strict
    from components.records.exports import ModelExport
    from components.records.history import (
        History,
        LedgerExport,
        LedgerReport,
        Promotion,
        Reproduced,
        Restored,
        RolledBack,
    )
    from components.records.images import Created
    from components.records.outcomes import Comparison, Outcome
    from components.workspace import Workspace

ledger_app = typer.Typer(no_args_is_help=True, help="The record of every promotion: verify, export or restore it.")
app.add_typer(ledger_app, name="ledger")


@app.command()
def demo(
    task: Annotated[
        str | None, typer.Option("--task", help="The task of the bundled domain: classification, or segmentation.")
    ] = None,
    data_only: Annotated[bool, typer.Option("--data-only", help="Make and import the images, then stop.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make a bundled domain, retrain it, promote the best adapter and predict with it."""

    def act(place: "Workspace") -> "Created | Outcome":
        from components.records.outcomes import Demonstrated
        from flows.commands import demo as steps

        name = steps.choose_domain(task)
        with watched(as_json):
            made = steps.create_domain(place, name)
        if data_only:
            return made
        outcome = _retrain(place, name, [], False, as_json)
        if outcome.status == "unchanged" or outcome.champion_version is None:
            return outcome
        answers = steps.predict_samples(place, name)
        picture = steps.draw_samples(place, name, answers)
        return Demonstrated(**dict(outcome), predictions=answers.predictions, picture=picture)

    execute(act, shower("show_demo"), as_json, workspace, failed=_was_held)


@app.command()
def retrain(
    domain: DomainArgument,
    overrides: OverridesOption = None,
    force: Annotated[bool, typer.Option("--force", help="Train again even if nothing changed.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train every candidate, gate the best, promote it if it passes."""

    def act(place: "Workspace") -> "Outcome":
        return _retrain(place, domain, overrides or [], force, as_json)

    execute(act, shower("show_retrain"), as_json, workspace, failed=_was_held)


@app.command()
def compare(domain: DomainArgument, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show what every candidate of the last retrain reached and cost, and draw it."""

    def act(place: "Workspace") -> "Comparison":
        from flows.steps.compare import compare as run

        return run(place, domain)

    execute(act, shower("show_comparison"), as_json, workspace)


@app.command()
def promote(
    domain: DomainArgument,
    version: Annotated[int | None, typer.Argument(help="A registered version; the challenger when left out.")] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Judge a version against the champion on the same images; promote it if it passes."""

    def act(place: "Workspace") -> "Promotion":
        promotion: Promotion = _run_flow("promote", place, domain, as_json, version=version)
        return promotion

    execute(act, shower("show_records"), as_json, workspace, failed=lambda promotion: promotion.verdict != "PROMOTE")


@app.command()
def approve(
    domain: DomainArgument,
    version: Annotated[int, typer.Argument(help="The version that was held for approval.")],
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who agrees; the ledger keeps it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the ledger.")],
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Agree to a version that `gates.approval` holds; it is promoted if the other gates still agree."""

    def act(place: "Workspace") -> "Promotion":
        from flows.steps.judge import Approval

        approval = Approval(by, reason)
        promotion: Promotion = _run_flow("promote", place, domain, as_json, version=version, approval=approval)
        return promotion

    execute(act, shower("show_records"), as_json, workspace, failed=lambda promotion: promotion.verdict != "PROMOTE")


@app.command()
def reproduce(
    domain: DomainArgument,
    version: Annotated[int, typer.Argument(help="A registered version.")],
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="How far scores may be apart on another kind of machine; "
            "default what chance would explain on so many held-out images.",
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train a version again from the images, code, settings and seed it names; say whether it is the same."""

    def act(place: "Workspace") -> "Reproduced":
        reproduced: Reproduced = _run_flow("reproduce", place, domain, as_json, version=version, tolerance=tolerance)
        return reproduced

    execute(act, shower("show_reproduced"), as_json, workspace, failed=lambda outcome: outcome.verdict != "PASS")


@app.command()
def rollback(
    domain: DomainArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the ledger.")] = "rolled back by hand",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make the previous champion the champion again."""

    def act(place: "Workspace") -> "RolledBack":
        from flows.plan import load_checked_domain
        from flows.steps.history import rollback as run

        return run(place, load_checked_domain(place, domain), reason)

    execute(act, shower("show_records"), as_json, workspace)


@app.command()
def history(
    domain: DomainArgument,
    at: Annotated[str | None, typer.Option("--at", metavar="DATE", help="Who was champion then?")] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Who was champion, when and why."""

    def act(place: "Workspace") -> "History":
        from flows.steps.history import describe_history, describe_history_at, open_registry, require_ledger

        require_ledger(place, domain)
        open_registry(place, domain)
        return describe_history(domain) if at is None else describe_history_at(domain, at)

    execute(act, shower("show_records"), as_json, workspace)


@ledger_app.command("verify")
def verify_ledger(
    domain: DomainArgument,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="An earlier export, which it must begin with.")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Find records that were altered, removed or reordered, and a champion that no record explains."""

    def act(place: "Workspace") -> "LedgerReport":
        from flows.steps.history import open_registry, require_ledger
        from flows.steps.history import verify_ledger as run

        require_ledger(place, domain)
        open_registry(place, domain)
        return run(place, domain, against)

    execute(act, shower("show_ledger"), as_json, workspace, failed=lambda report: bool(report.problems))


@ledger_app.command("restore")
def restore_ledger(domain: DomainArgument, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Put the alias `champion` back to where the last record left it, after somebody moved it by hand."""

    def act(place: "Workspace") -> "Restored":
        from flows.plan import load_checked_domain
        from flows.steps.history import open_registry, restore

        load_checked_domain(place, domain)
        open_registry(place, domain)
        return restore(place, domain)

    execute(act, shower("show_restored"), as_json, workspace)


@ledger_app.command("export")
def export_ledger(
    domain: DomainArgument,
    file: Annotated[Path, typer.Argument(help="Where to write it, one JSON record per line.")],
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the ledger as it is stored, one line per record: each names the sha256 of the line before."""

    def act(place: "Workspace") -> "LedgerExport":
        from flows.steps.history import export_ledger as run
        from flows.steps.history import open_registry, require_ledger

        require_ledger(place, domain)
        open_registry(place, domain)
        return run(domain, file)

    execute(act, shower("show_ledger_export"), as_json, workspace)


@app.command()
def predict(
    domain: DomainArgument,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files, or folders: all images below them, sorted; - reads names, or one image, from stdin."
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="X0,Y0,X1,Y1", help="A box in the one image, in pixels; may be given again."),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option("--boxes", metavar="FILE", help="Boxes of many images: csv, COCO .json or VOC .xml.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="The champion was trained on crops, and each image is such a crop already.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER|FILE",
            help="Write the answers here. A .csv, .parquet or .jsonl has one row per image or box asked about, and the "
            "same command goes on where it was stopped. Masks and boxes: also a folder with drawings and COCO (boxes: "
            "VOC, YOLO and csv, too), or a .json (COCO; of boxes its results list). Of boxes, a .csv has a line per "
            "box found.",
        ),
    ] = None,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Segmentation: outlines instead of run lengths in the COCO file.")
    ] = False,
    saliency: Annotated[
        Path | None,
        typer.Option("--saliency", metavar="DIR", help="Draw what speaks for each answer, one PNG per image."),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Ask the domain's champion about images, or boxes in them; exit code 0 only if all were answered.

    A running `tessera serve` of the workspace is asked where it serves the domain."""
    from flows.commands.predict import exit_code
    from flows.commands.predict import predict_here as run

    options: dict[str, Any] = {"boxes": box or [], "boxes_file": boxes, "whole": whole}
    act = partial(run, name=domain, paths=images or [], out=out, polygons=polygons, saliency=saliency, **options)
    execute(act, shower("show_predictions", "answers"), as_json, workspace, failed=exit_code)


@app.command("export-model")
def export_model(
    domain: DomainArgument,
    place: Annotated[
        list[str],
        typer.Argument(metavar="[VERSION] DIR", help="A registered version (default the champion), and a new folder."),
    ],
    int8: Annotated[
        bool,
        typer.Option("--int8", help="A graph of 8-bit weights as well, if the test images say that it may be used."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Write nothing: check the export that is in DIR already.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a version as ONNX, with what is needed to run it without Tessera; exit code 1 if int8 is refused."""
    from flows.commands import export_model as steps

    def act(home: "Workspace") -> "ModelExport":
        from flows.steps.history import require_ledger

        version, folder = steps.read_place(place)
        require_ledger(home, domain)  # of a domain that was removed, its versions remain
        if verify:
            return steps.verify_export(home, domain, version, folder)
        return steps.export_model(home, domain, version, folder, int8=int8)

    execute(act, shower("show_model_export"), as_json, workspace, failed=steps.exit_code)


def _was_held(record: "Strict") -> bool:
    """A gate said no."""
    from components.records.outcomes import Outcome

    return isinstance(record, Outcome) and record.status in ("held", "rejected")


def _retrain(place: "Workspace", domain: str, overrides: list[str], force: bool, as_json: bool) -> "Outcome":
    """Look first whether the answer is known: that takes seconds and needs no Prefect server.

    Where it cannot be known Prefect's server and the data stages begin at once, in processes of their own, while this
    one loads what comes next; where it is likely not known, for nothing lies where a retrain leaves it, the server
    does: a wrong guess costs time alone.
    """
    with watched(as_json):
        from flows.plan import create_plan, load_checked_domain
        from flows.progress import report
        from flows.server.prefect_boot import EmbeddedPrefect, require_named_server

        report("stage", title="look for changes")
        checked = load_checked_domain(place, domain, overrides)  # a typo is reported before a server starts
        require_named_server()
        certain = force or not place.has_results()
        server = EmbeddedPrefect(place) if certain else None
        plan = create_plan(place, checked)
        stages = plan.begin_stages() if certain else plan.create_stages()
        if server is None and not (stages.fresh and plan.settle().folder.exists()):
            server = EmbeddedPrefect(place)
        from flows.processes.training import prepare
        from flows.steps.beginning import begin

        begun = begin(plan, force, stages)
        if begun.known is not None:
            return begun.known
        if plan.domain.work_pool is None:
            prepare(plan.domain)
        outcome: Outcome = _start(server, "retrain", place, domain, begun, overrides=overrides, force=force)
        return outcome


def _run_flow(name: str, place: "Workspace", domain: str, as_json: bool, **parameters: Any) -> Any:
    """A flow on a version; a typo in the domain or its number is reported before a server starts."""
    with watched(as_json):
        from components.promotion.aliases import require_challenger
        from flows.plan import load_checked_domain
        from flows.processes.training import prepare
        from flows.server.prefect_boot import EmbeddedPrefect, require_named_server
        from flows.steps.history import open_registry

        checked = load_checked_domain(place, domain)
        open_registry(place, domain)
        require_challenger(domain, parameters["version"])
        require_named_server()
        server = EmbeddedPrefect(place)
        if name == "promote" and checked.work_pool is None:
            prepare(checked)
        return _start(server, name, place, domain, **parameters)


def _start(server: Any, name: str, place: "Workspace", domain: str, begun: Any = None, **parameters: Any) -> Any:
    """The flow in flows/NAME.py, on the Prefect server that is configured or the one that was brought along.

    begun: the `Beginning` of a retrain, which goes on from there.
    """
    from importlib import import_module

    from flows.progress import report
    from flows.server.prefect_boot import EmbeddedPrefect, require_server

    report("stage", title="start Prefect")
    server = server or EmbeddedPrefect(place)
    server.use()
    require_server()
    module = import_module(f"flows.{name}")
    run = getattr(module, name) if begun is None else partial(module.go_on, begun)
    server.wait()
    from prefect import tags

    with tags("tessera", domain):  # as a deployment's runs have them: by these `status` and `doctor` find them
        return run(domain=domain, workspace=str(place.root), **parameters)
