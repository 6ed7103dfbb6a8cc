"""The promote flow: find the versions, score both on the same test images, judge, move the alias.

`tessera approve` is the same flow with a person's word. `tessera rollback` is none: it moves an alias back in a second,
when something is wrong, and must not wait for an orchestrator.
"""

from components.data.store.versioning import hold_domain
from components.errors import PromotionError
from components.promotion import aliases, versions
from components.promotion.gates.base import Decision
from components.promotion.licences import judge_licences
from components.promotion.versions import Version
from components.records.history import Promotion
from components.reports import retrain_page
from components.tracking import outcomes
from components.tracking.store import Store
from components.workspace import Workspace
from flows.plan import Plan, load_checked_domain
from flows.processes.training import prepare
from flows.progress import report
from flows.steps.dispatch import find_pool
from flows.steps.history import describe_history, open_registry
from flows.steps.judge import Approval, describe_champion, score_folder
from flows.steps.tasks import (
    enter,
    gate_and_promote,
    named_flow,
    prepare_data,
    recording,
    run_all,
    score_challenger,
    score_champion,
    show,
    step,
    version_images,
)


@named_flow("promote", "promote {domain}")
def promote(
    domain: str, version: int | None = None, approval: Approval | None = None, workspace: str | None = None
) -> Promotion:
    """Judge a version (the challenger when none is named) against the present champion; promote it if it passes.

    Returns what `tessera promote --json` prints.

    Args:
        domain: name of a folder in data/.
        version: a registered version; the challenger when left out.
        approval: who agrees to that version and why, where the domain's gates ask for a person. What the other gates
            say is asked again, for the champion may be another by now.
        workspace: where data and state live; the worker's own when left out.
    """
    place = enter(workspace)
    report("stage", title="find the versions")
    challenger, champion = find_versions(place, domain, version, approval)
    if champion is not None and champion.version == challenger.version:
        licences = judge_licences(place, load_checked_domain(place, domain), champion)
        return _describe(domain, champion.version, describe_champion(champion.version, licences))
    with hold_domain(place, domain, f"promotion of {domain}", patience=-1):
        plan = version_images(place, domain)
        if find_pool(plan.domain) is None:
            prepare(plan.domain)
        prepare_data(plan, plan.create_stages())
        plan = plan.settle()
    with recording(plan, "promote") as parent:
        report("stage", title="score both on the same test images")
        orders = [(plan, parent, challenger.version)] * 2
        run_all(plan, [score_challenger, score_champion], orders)
        report("stage", title="gate")
        scores = score_folder(plan, challenger.version)
        decision, _ = gate_and_promote(plan, scores, challenger.version, approval)
        report("stage-done", title=f"gated version {challenger.version}", note=decision.verdict)
        outcome = _describe(domain, challenger.version, decision)
        publish(plan, parent, outcome)
    return outcome


@step("find versions")
def find_versions(
    workspace: Workspace, name: str, number: int | None, approval: Approval | None
) -> tuple[Version, Version | None]:
    """The challenger and the champion."""
    domain = load_checked_domain(workspace, name)
    if approval is not None:
        _require_approval(name, number, approval, asked=domain.gates.approval)
    open_registry(workspace, name)
    return aliases.require_challenger(name, number), versions.load_version(name, versions.CHAMPION)


def _require_approval(name: str, number: int | None, approval: Approval, asked: bool) -> None:
    """Raises PromotionError where the domain asks for no approval, or nobody gives one, or not to what."""
    what = f"approval of {name} version {number}"
    if number is None or not (approval.by.strip() and approval.reason.strip()):
        raise PromotionError(
            what,
            expected="to which version somebody agrees, who that is, and why",
            found=f"--by {approval.by!r} --reason {approval.reason!r}",
            hint="Give all three: the ledger keeps them.",
        )
    if not asked:
        raise PromotionError(
            what,
            expected="a domain that asks for approval",
            found="`gates.approval: false` in its domain.yaml",
            hint=f"Set it to true, or give `tessera promote {name} {number}`.",
        )


def _describe(domain: str, challenger: int, decision: Decision) -> Promotion:
    known = describe_history(domain)
    return Promotion(
        domain=domain,
        verdict=decision.verdict,
        reason=decision.reason,
        findings=decision.findings,
        warnings=decision.warnings,
        challenger_version=challenger,
        champion_version=known.champion_version,
        records=known.records,
        ledger_problems=known.ledger_problems,
    )


@step("publish verdict")
def publish(plan: Plan, parent: str, promotion: Promotion) -> None:
    """The verdict as a page of the flow run and in MLflow."""
    store = Store.open(plan.workspace)
    outcomes.log_verdict(store, parent, promotion)
    show("promote", plan.domain.name, retrain_page.describe_verdict(promotion), "Verdict and what each gate found")
