"""The gate on licences: those of backbone, data and code must be among the ones that the domain allows."""

from collections.abc import Collection

from components.promotion.gates.base import Context
from components.records.licences import Chain, advise, describe_chain, find_outside
from components.records.outcomes import Finding


def check_licences(context: Context) -> Finding | None:
    """Does all that the version was made from stand under a licence that is allowed?"""
    return judge_chain(context.licences, context.domain.gates.licences)


def judge_chain(chain: Chain, allowed: Collection[str] | None) -> Finding | None:
    """REJECT where a link is outside; `unknown` is a licence like others. None where no licences are set."""
    if allowed is None:
        return None
    outside, listed = find_outside(chain, allowed), ", ".join(allowed)
    evidence: dict[str, float | str] = {link.subject: link.licence for link in chain}
    evidence |= {"allowed": listed, "outside": float(len(outside))}
    if not outside:
        reason = f"All licences are allowed: {describe_chain(chain)}."
        return Finding(gate="licences", verdict="PROMOTE", reason=reason, evidence=evidence)
    reason = f"Outside the licences allowed ({listed}): {describe_chain(outside)}."
    whole = f" The chain: {describe_chain(chain)}." if outside != chain else ""
    return Finding(gate="licences", verdict="REJECT", reason=f"{reason}{whole} {advise(outside)}", evidence=evidence)
