"""The beginning of a retrain: what is known before anything is done."""

from components.data.store import proofs
from components.tracking import runs
from components.tracking.store import Store
from flows.plan import Plan


def know_manifest(plan: Plan) -> Plan:
    """The plan with all its keys where its manifest is known, without running a data stage.

    It is known where the stages are proven to change nothing, or where an earlier run recorded what they made of the
    same images, settings and code.
    """
    if proofs.are_fresh(plan.workspace, plan.domain.name, plan.version.md5, plan.sources.data):
        return plan.settle()
    if not plan.workspace.has_results():
        return plan
    known = runs.find_manifest(Store.open(plan.workspace), plan.domain.name, plan.manifest_key)
    return plan if known is None else plan.with_manifest(known)
