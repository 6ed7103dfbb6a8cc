"""The one entry: `tessera`. Every command is a thin shell; its work is a function elsewhere that returns a mapping.

Exit codes: 0 done, 1 a check or gate said no, 2 bad usage or input. With `--json` stdout holds one JSON object and
nothing else; everything a person reads goes elsewhere.
"""

import codecs
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

# Nothing heavy here: help must come in under half a second, so every command imports what it needs.

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

ledger_app = typer.Typer(no_args_is_help=True, help="The record of every promotion: verify, export or restore it.")
app.add_typer(ledger_app, name="ledger")

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

#: What tables and lines are made of, for terminals without it.
SIGNS = {"✓": "+", "►": ">", "·": "-", "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "’": "'", "─": "-"}
Outcome = Mapping[str, Any]
Action = Callable[[Any], Outcome]


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


@app.command()
def demo(
    data_only: Annotated[bool, typer.Option("--data-only", help="Make and import the images, then stop.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make the bundled domain, retrain it, promote the best adapter and predict with it."""

    def act(place: Any) -> Outcome:
        from flows.commands import demo as steps

        with _live(as_json):
            made = steps.create_domain(place)
        if data_only:
            return made
        outcome = _retrain(place, steps.DOMAIN, [], False, as_json)
        if outcome["status"] == "unchanged" or outcome["champion_version"] is None:
            return outcome
        return {**outcome, "predictions": steps.predict_samples(place)["predictions"]}

    def show(outcome: Outcome) -> None:
        from flows.commands import console

        if "status" not in outcome:
            console.OUT.print(f"{outcome['domain']}: {outcome['files']} files in {outcome['raw']}", markup=False)
            return
        console.show_retrain(outcome)
        if "predictions" in outcome:
            console.OUT.print()
            console.show_predictions({**outcome, "version": outcome["champion_version"]})

    _run(act, show, as_json, workspace, failed=lambda outcome: outcome.get("status") in ("held", "rejected"))


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="The folder, or the .zip or .tar archive, that holds the images.")],
    domain: Annotated[str, typer.Option("--domain", help="Name of the domain; a new one gets a domain.yaml.")],
    layout: Annotated[
        str | None,
        typer.Option("--layout", metavar="KIND", help="A kind, or '{kind: csv, image: file}'; guessed when left out."),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="The column that names the group (lot, patient, part).")
    ] = None,
    shards: Annotated[
        bool, typer.Option("--shards", help="Keep the images in tars, for sets past 100,000; it stays so.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make the domain's images the same as SOURCE, instead of adding to them.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite images, or with --replace drop those that no version holds.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Add a folder of images to a domain, or make it one, versioned by DVC."""

    def act(place: Any) -> Outcome:
        from components.data.accounts import explain_given, summarise
        from components.data.annotations.names import warn_of_alike
        from components.data.store import importing, versioning

        versioning.require_repository(place)
        with versioning.hold_domain(place, domain, f"tessera import of {domain}"):
            imported = importing.import_folder(
                place, source, domain, layout, group, shards=shards, replace=replace, force=force
            )
            versioning.register_domain(place, domain)
            version = versioning.record_version(place, domain)
            versioning.push_version(place, domain)
        known, read = imported.domain, imported.understood
        facts: dict[str, Any] = {"domain": domain, "layout": known.layout.kind, "classes": list(known.classes)}
        facts |= {"data_version": version.md5, "files": version.files, "raw": str(place.raw(domain))}
        facts |= {count: getattr(imported, count) for count in ("added", "removed", "changed", "kept")}
        facts |= {"pictures": read.pictures, "notes": dict(read.account.notes), "given_split": dict(read.account.given)}
        understood = summarise(known, read.rows)
        facts |= {"understood": understood, "hints": explain_given(read.account, known)}
        return facts | {"warnings": warn_of_alike(understood["classes"])}

    _run(act, _shower("show_import"), as_json, workspace)


@app.command()
def check(domain: DomainArgument, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Read, validate and split the images; say what is wrong with them."""

    def act(place: Any) -> Outcome:
        from flows.commands.check import check as run

        with _live(as_json):
            return run(place, domain)

    _run(act, _shower("show_check"), as_json, workspace, failed=lambda outcome: not outcome["ok"])


@app.command()
def remove(
    domain: DomainArgument,
    force: Annotated[bool, typer.Option("--force", help="Even if no named version holds the images.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Remove a domain's images and what was made of them; its ledger, models and named versions stay."""

    def act(place: Any) -> Outcome:
        from components.data.store.removing import remove_domain

        return remove_domain(place, domain, force=force)

    _run(act, _shower("show_removal"), as_json, workspace)


@app.command()
def schema(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Every key of domain.yaml with its default and meaning; --json is the JSON schema, for editors."""
    if as_json:
        from flows.commands.schema import create_schema

        typer.echo(json.dumps(create_schema(), indent=1))
        return
    from flows.commands.console import show_schema
    from flows.commands.schema import describe_keys

    show_schema(describe_keys())


@app.command()
def preview(
    domain: DomainArgument,
    images: Annotated[int, typer.Option("--images", min=1, max=200, help="How many, of all classes together.")] = 12,
    overrides: OverridesOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Draw a sheet of training images as augmentation will show them, with masks and boxes."""

    def act(place: Any) -> Outcome:
        from flows.commands.preview import preview as run

        with _live(as_json):
            return run(place, domain, overrides or [], images)

    def show(outcome: Outcome) -> None:
        from flows.commands import console

        console.OUT.print(outcome["path"], soft_wrap=True, markup=False)

    _run(act, show, as_json, workspace)


@app.command()
def export(
    domain: DomainArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    form: Annotated[str, typer.Option("--format", metavar="csv|coco", help="How the labels are written.")] = "csv",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the fit images with labels, groups and splits as COCO or csv, for other tools or another workspace."""

    def act(place: Any) -> Outcome:
        from components.data.manifest import load_manifest
        from components.data.store import exporting, versioning
        from components.data.store.shards import open_images
        from components.domain.reading import load_domain

        known = load_domain(place.domain_file(domain))
        versioning.require_repository(place)
        with versioning.hold_domain(place, domain, f"tessera export {domain}"):
            versioning.register_domain(place, domain)
            versioning.refresh(place, domain)
            manifest = load_manifest(place.derived(domain) / "manifest.parquet", known)
            return exporting.export_manifest(manifest, known, open_images(place, domain), folder, form)

    def show(outcome: Outcome) -> None:
        from flows.commands import console

        console.OUT.print(
            f"{domain}: {outcome['rows']} rows, {outcome['files']} files in {outcome['folder']}", markup=False
        )

    _run(act, show, as_json, workspace)


@app.command()
def version(
    domain: DomainArgument,
    message: Annotated[str, typer.Option("--message", "-m", help="What is new, for those who read the list.")] = "",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Record the images as they are, push them to the remote and name them DOMAIN@v1, v2, ..."""

    def act(place: Any) -> Outcome:
        from components.data.store.versioning import uses_git
        from components.data.store.versions import name_version
        from components.domain.reading import load_domain

        named, new = name_version(place, load_domain(place.domain_file(domain)), message)
        if new:
            from flows.server.events import tell_versioned

            tell_versioned(domain, named.model_dump(mode="json"))
        status = "named" if new else "unchanged"
        return {"domain": domain, "status": status, "git": uses_git(place), "version": named.model_dump(mode="json")}

    _run(act, _shower("show_version"), as_json, workspace)


@app.command()
def versions(domain: DomainArgument, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List the named versions of the images, with counts and what changed between them."""

    def act(place: Any) -> Outcome:
        from components.data.store import versioning
        from components.data.store.versions import list_versions
        from components.domain.reading import load_domain

        load_domain(place.domain_file(domain))
        versioning.require_repository(place)
        return {"domain": domain, "versions": [named.model_dump(mode="json") for named in list_versions(place, domain)]}

    _run(act, _shower("show_versions"), as_json, workspace)


@app.command()
def checkout(
    name: Annotated[str, typer.Argument(metavar="DOMAIN@vN", help="A name that `tessera versions` lists.")],
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Bring back the images of a named version, from the remote where they are not here."""

    def act(place: Any) -> Outcome:
        from components.data.store.versions import checkout_version
        from components.domain.reading import load_domain

        domain = load_domain(place.domain_file(name.partition("@")[0]))
        named = checkout_version(place, domain, name)
        return {"domain": domain.name, "raw": str(place.raw(domain.name)), "version": named.model_dump(mode="json")}

    _run(act, _shower("show_checkout"), as_json, workspace)


@app.command()
def retrain(
    domain: DomainArgument,
    overrides: OverridesOption = None,
    force: Annotated[bool, typer.Option("--force", help="Train again even if nothing changed.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train every candidate, gate the best, promote it if it passes."""

    def act(place: Any) -> Outcome:
        return _retrain(place, domain, overrides or [], force, as_json)

    _run(
        act,
        _shower("show_retrain"),
        as_json,
        workspace,
        failed=lambda outcome: outcome["status"] in ("held", "rejected"),
    )


@app.command()
def compare(domain: DomainArgument, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Show what every candidate of the last retrain reached and cost, and draw it."""

    def act(place: Any) -> Outcome:
        from flows.steps.compare import compare as run

        return run(place, domain)

    _run(act, _shower("show_comparison"), as_json, workspace)


@app.command()
def promote(
    domain: DomainArgument,
    version: Annotated[int | None, typer.Argument(help="A registered version; the challenger when left out.")] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Judge a version against the champion on the same images; promote it if it passes."""

    def act(place: Any) -> Outcome:
        return _run_flow("promote", place, domain, as_json, version=version)

    _run(act, _shower("show_records"), as_json, workspace, failed=lambda outcome: outcome["verdict"] != "PROMOTE")


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

    def act(place: Any) -> Outcome:
        from flows.steps.judge import Approval

        return _run_flow("promote", place, domain, as_json, version=version, approval=Approval(by, reason))

    _run(act, _shower("show_records"), as_json, workspace, failed=lambda outcome: outcome["verdict"] != "PROMOTE")


@app.command()
def reproduce(
    domain: DomainArgument,
    version: Annotated[int, typer.Argument(help="A registered version.")],
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="How far balanced accuracies may be apart on another kind of machine; "
            "default what chance would explain on so many held-out images.",
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Train a version again from the images, code, settings and seed it names; say whether it is the same."""

    def act(place: Any) -> Outcome:
        return _run_flow("reproduce", place, domain, as_json, version=version, tolerance=tolerance)

    def show(outcome: Outcome) -> None:
        from flows.commands import console

        console.OUT.print(f"{outcome['verdict']}  {outcome['reason']}", markup=False)

    _run(act, show, as_json, workspace, failed=lambda outcome: outcome["verdict"] != "PASS")


@app.command()
def rollback(
    domain: DomainArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the ledger.")] = "rolled back by hand",
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make the previous champion the champion again."""

    def act(place: Any) -> Outcome:
        from flows.plan import load_checked_domain
        from flows.steps.history import rollback as run

        load_checked_domain(place, domain)
        return run(place, domain, reason)

    _run(act, _shower("show_records"), as_json, workspace)


@app.command()
def history(
    domain: DomainArgument,
    at: Annotated[str | None, typer.Option("--at", metavar="DATE", help="Who was champion then?")] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Who was champion, when and why."""

    def act(place: Any) -> Outcome:
        from flows.steps.history import describe_history, find_champion_at, open_registry, require_ledger

        require_ledger(place, domain)
        open_registry(place, domain)
        return describe_history(domain) | ({} if at is None else find_champion_at(domain, at))

    _run(act, _shower("show_records"), as_json, workspace)


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

    def act(place: Any) -> Outcome:
        from flows.steps.history import open_registry, require_ledger
        from flows.steps.history import verify_ledger as run

        require_ledger(place, domain)
        open_registry(place, domain)
        return run(place, domain, against)

    _run(act, _shower("show_ledger"), as_json, workspace, failed=lambda outcome: bool(outcome["problems"]))


@ledger_app.command("restore")
def restore_ledger(domain: DomainArgument, as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Put the alias `champion` back to where the last record left it, after somebody moved it by hand."""

    def act(place: Any) -> Outcome:
        from flows.plan import load_checked_domain
        from flows.steps.history import open_registry, restore

        load_checked_domain(place, domain)
        open_registry(place, domain)
        return restore(place, domain)

    _run(act, _shower("show_restored"), as_json, workspace)


@ledger_app.command("export")
def export_ledger(
    domain: DomainArgument,
    file: Annotated[Path, typer.Argument(help="Where to write it, one JSON record a line.")],
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the ledger as it is stored, a line a record: each names the sha256 of the line before."""

    def act(place: Any) -> Outcome:
        from flows.steps.history import export_ledger as run
        from flows.steps.history import open_registry, require_ledger

        require_ledger(place, domain)
        open_registry(place, domain)
        return run(domain, file)

    _run(act, _shower("show_export"), as_json, workspace)


@app.command()
def predict(
    domain: DomainArgument,
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, or folders: all images below them, sorted.")
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
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Classify images, or boxes in them, with the domain's champion; exit code 0 only if all were answered."""
    from flows.commands.predict import exit_code
    from flows.commands.predict import predict as run

    def act(place: Any) -> Outcome:
        from flows.plan import load_checked_domain

        load_checked_domain(place, domain)
        outcome = run(place, domain, images or [], boxes=box or [], boxes_file=boxes, whole=whole)
        for warning in outcome["warnings"]:
            typer.echo(f"tessera: warning: {warning}", err=True)
        return outcome

    _run(act, _shower("show_predictions"), as_json, workspace, failed=exit_code)


@app.command()
def doctor(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Check the installation and say how to mend what is wrong."""

    def act(place: Any) -> Outcome:
        from flows.commands.doctor import doctor as run

        return run(place)

    # A full disk is among what it has to tell.
    _run(act, _shower("show_doctor"), as_json, workspace, failed=lambda outcome: not outcome["ok"], full_too=True)


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Draw it again every few seconds until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Every domain in one table: data, champion, last run and verdict, next run, workers."""

    def act(place: Any) -> Outcome:
        from flows.commands.status import status as run

        if watch and not as_json:
            from flows.commands import console
            from flows.progress import make_harmless

            console.watch(lambda: make_harmless(run(place)), console.draw_status)
        return run(place)

    _run(act, _shower("show_status"), as_json, workspace)


@app.command()
def deploy(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Bring the Prefect server to what the domain files say: pools, deployments, schedules, automations."""

    def act(place: Any) -> Outcome:
        from flows.server.schedules import deploy as run

        return {"deployed": [row.model_dump() for row in run(place)]}

    def unreadable(outcome: Outcome) -> bool:
        return any(row["change"] == "unreadable" for row in outcome["deployed"])

    _run(act, _shower("show_deployed"), as_json, workspace, failed=unreadable)


@app.command()
def up(
    prefect_port: Annotated[int | None, typer.Option("--prefect-port", help="4200 or the next free one.")] = None,
    mlflow_port: Annotated[int | None, typer.Option("--mlflow-port", help="5000 or the next free one.")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Run Prefect, MLflow and workers on loopback until Ctrl-C or `tessera down`; what crashes is started again."""

    def act(place: Any) -> Outcome:
        from flows.commands import console
        from flows.server.services import Ports, run_services

        # Unwrapped, so that the commands it prints can be copied.
        ports = Ports(prefect_port, mlflow_port)
        run_services(place, ports, lambda text: console.OUT.print(text, soft_wrap=True, highlight=False, markup=False))
        return {}

    _run(act, lambda _: None, False, workspace, joins=False)


@app.command()
def down(as_json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Stop what `tessera up` runs for this workspace."""

    def act(place: Any) -> Outcome:
        from flows.server.services import stop_services

        return {"stopped": stop_services(place)}

    def show(outcome: Outcome) -> None:
        typer.echo("Stopped." if outcome["stopped"] else "Nothing was up.")

    _run(act, show, as_json, workspace, joins=False)


def _retrain(place: Any, domain: str, overrides: list[str], force: bool, as_json: bool) -> dict[str, Any]:
    """Look first whether the answer is known: that takes seconds and needs no Prefect server.

    Where it cannot be known Prefect's server and the data stages begin at once, in processes of their own, while this
    one loads what comes next; where it is likely not known, for nothing lies where a retrain leaves it, the server
    does: a wrong guess costs time alone.
    """
    with _live(as_json):
        from flows.plan import create_plan, load_checked_domain, require_trainable
        from flows.progress import report
        from flows.server.prefect_boot import EmbeddedPrefect, require_named_server

        report("stage", title="look for changes")
        require_trainable(load_checked_domain(place, domain, overrides))  # a typo is told before a server starts
        require_named_server()
        certain = force or not place.has_results()
        server = EmbeddedPrefect(place) if certain else None
        plan = create_plan(place, domain, overrides)
        if certain:
            plan.begin_stages()
        elif not plan.folder.exists():
            server = EmbeddedPrefect(place)
        from components.tracking import runs
        from flows.processes.training import prepare
        from flows.steps.history import mark_unchanged

        runs.connect(place)
        known = None if force else runs.find_retrain(domain, plan.fingerprint)
        if known is not None:
            return mark_unchanged(domain, known)
        if plan.domain.work_pool is None:
            prepare(plan.domain)
        return _start(server, "retrain", place, domain, overrides=overrides, force=force)


def _run_flow(name: str, place: Any, domain: str, as_json: bool, **parameters: Any) -> dict[str, Any]:
    """A flow on a version; a typo in the domain or its number is reported before a server starts."""
    with _live(as_json):
        from components.promotion.registry import require_challenger
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


def _start(server: Any, name: str, place: Any, domain: str, **parameters: Any) -> dict[str, Any]:
    """The flow in flows/NAME.py, on the Prefect server that is configured or the one that was brought along."""
    from importlib import import_module

    from flows.progress import report
    from flows.server.prefect_boot import EmbeddedPrefect, require_server

    report("stage", title="start Prefect")
    server = server or EmbeddedPrefect(place)
    server.use()
    require_server()
    run = getattr(import_module(f"flows.{name}"), name)
    server.wait()
    from prefect import tags

    with tags("tessera", domain):  # as a deployment's runs have them: by these `status` and `doctor` find them
        outcome: dict[str, Any] = run(domain=domain, workspace=str(place.root), **parameters)
    return outcome


def _run(
    act: Action,
    show: Callable[[Outcome], None],
    as_json: bool,
    workspace: Path | None,
    failed: Callable[[Outcome], int] = lambda _: 0,
    full_too: bool = False,
    joins: bool = True,
) -> None:
    """Do it, show it, and end with the right exit code; an error a user can mend is one paragraph.

    failed: the exit code for an outcome; True is 1. full_too: also in a workspace that cannot be written. joins:
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
        outcome = act(place)
    except TesseraError as error:
        _refuse(error, answer)
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        _refuse(describe_disk_trouble(place.root, error), answer)
    except KeyboardInterrupt:
        typer.echo("tessera: interrupted; the same command goes on where this one stopped.", err=True)
        raise typer.Exit(130) from None
    if answer is not None:
        answer.write(json.dumps(outcome, indent=1) + "\n")
        answer.flush()
    elif outcome:
        from flows.progress import make_harmless

        show(make_harmless(outcome))
    raise typer.Exit(int(failed(outcome)))


def _refuse(error: Any, answer: Any) -> NoReturn:
    """One paragraph on stderr, the same as JSON where that was asked for, and the error's exit code."""
    from components.errors import make_visible

    if answer is not None:
        answer.write(json.dumps({"error": error.to_dict()}) + "\n")
        answer.flush()
    typer.echo(f"tessera: {make_visible(str(error))}", err=True)
    raise typer.Exit(error.exit_code) from None


def _shower(name: str) -> Callable[[Outcome], None]:
    def show(outcome: Outcome) -> None:
        from flows.commands import console

        getattr(console, name)(outcome)

    return show


def _live(as_json: bool) -> AbstractContextManager[None]:
    """Draw what goes on; Prefect's own console lines would cut through it, and its server gets them all the same."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from flows.commands.console import live, tell
    from flows.progress import listening

    return listening(tell) if as_json else live()


def _own_stdout() -> Any:
    """Keep stdout for the one JSON object: whatever any library or child prints goes to stderr."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answer


def main() -> None:
    """Console entry point."""
    # A command makes half a million small objects while it imports; looking for garbage among them took a quarter of
    # the processor time of `tessera status`.
    gc.set_threshold(100_000, 50, 100)
    codecs.register_error("tessera", _spell)
    os.environ.pop("PYTHONIOENCODING", None)  # it is about this terminal, not about what children write into pipes
    sys.stdout.reconfigure(line_buffering=True, errors="tessera")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="tessera")  # type: ignore[union-attr]
    app()


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Characters that the terminal's encoding lacks: our own signs in ASCII, others by their code."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(SIGNS.get(sign, sign.encode("ascii", "backslashreplace").decode()) for sign in lost), error.end


if __name__ == "__main__":
    main()
