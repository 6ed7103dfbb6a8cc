"""When may a challenger become champion? Each gate is one function of the evidence; the strictest word wins.

    floor        REJECT unless surely at the floor or above (better than guessing, where none is set); HOLD where the
                 test set has so few groups that nothing is sure
    improvement  PROMOTE a first champion or where surely better than the champion, REJECT where surely worse;
                 else HOLD, and how many further test groups would decide. Evaluations of one test set are
                 counted and the level corrected for them
    slices       REJECT where a slice (a class, or what a column of the manifest says) is surely worse by more than the
                 margin; HOLD where it is surely worse and its estimate is beyond the margin
    costs        REJECT where mistakes cost surely more than the champion's or, at the estimate, than the limit; HOLD
                 where too few groups are there to know the former
    escapes      REJECT where surely more images of other classes pass than the domain's `decision` allows; HOLD where
                 too few groups are there to know
    calibration  REJECT a calibration error over the limit
    latency, memory, size   REJECT what is over the limit, one image at a time on the device that judges
    data         REJECT where validation of the images said no
    split        REJECT where a group or an image is in two splits
    lineage      REJECT what cannot be traced to its data, split, backbone, code and settings
    licences     REJECT where the licence of the backbone, the data or the code is not among those the domain allows
    approval     HOLD until a person approves, where the domain asks for it

"Surely" means that the whole confidence interval agrees (`gates.confidence` of the domain). Of one or two groups there
is no interval, and nothing is sure. A class that is not surely recognised better than by guessing is a warning. A gate
that has nothing to judge returns None, for example where no limit is set; `gates.use` of the domain picks some, beside
`licences` and `approval`, which judge wherever the domain sets them. To add one, write a function and its row in GATES.
"""

from collections.abc import Callable

from components.domain.domain import Domain
from components.errors import DomainError
from components.promotion.evidence import require_evidence
from components.promotion.gates.base import STRICTEST, Context, Decision
from components.promotion.gates.integrity import check_approval, check_data, check_lineage, check_split
from components.promotion.gates.licences import check_licences
from components.promotion.gates.quality import (
    check_calibration,
    check_costs,
    check_escapes,
    check_floor,
    check_improvement,
    warn_of_classes,
)
from components.promotion.gates.serving import check_latency, check_memory, check_size
from components.promotion.gates.slices import check_slices
from components.records.outcomes import Finding

ALWAYS = ("licences", "approval")  # whatever `gates.use` picks
#: In the findings, and in the reason only where they say no.
TAKEN_FOR_GRANTED = ("data", "split", "lineage", "licences")


GATES: dict[str, Callable[[Context], Finding | None]] = {
    "floor": check_floor,
    "improvement": check_improvement,
    "slices": check_slices,
    "costs": check_costs,
    "escapes": check_escapes,
    "calibration": check_calibration,
    "latency": check_latency,
    "memory": check_memory,
    "size": check_size,
    "data": check_data,
    "split": check_split,
    "lineage": check_lineage,
    "licences": check_licences,
    "approval": check_approval,
}


def decide(context: Context) -> Decision:
    """REJECT if any gate rejects, else HOLD if any holds, else PROMOTE.

    Raises PromotionError when the evidence is empty or the two models were not scored on the same images.
    """
    require_evidence(context)
    used = (*(context.domain.gates.use or GATES), *ALWAYS)
    findings = tuple(finding for name in GATES if name in used and (finding := GATES[name](context)) is not None)
    verdict = min((finding.verdict for finding in findings), key=STRICTEST.index)
    decisive = [finding for finding in findings if finding.verdict == verdict]
    named = [finding for finding in decisive if verdict != "PROMOTE" or finding.gate not in TAKEN_FOR_GRANTED]
    reason = " ".join(finding.reason for finding in named)
    warnings, at_chance = warn_of_classes(context.challenger, context.domain)
    if at_chance:
        reason += f" Not surely better than guessing: {', '.join(at_chance)}."
    if context.approved and verdict != "PROMOTE":
        reason += f" Approved by {context.approved}, in vain."
    if not context.trained:
        reason += " The backbone carries random weights, so this tries the machinery and says nothing about the method."
    more = [finding.evidence["more_groups"] for finding in decisive if "more_groups" in finding.evidence]
    more_groups = int(more[0]) if more and verdict == "HOLD" else None
    return Decision(verdict=verdict, reason=reason, findings=findings, more_groups=more_groups, warnings=warnings)


def require_gates(domain: Domain, where: str) -> None:
    """Raise DomainError for a gate that does not exist, and where no gate is left that always has a word."""
    names = domain.gates.use or tuple(GATES)
    if unknown := [name for name in names if name not in GATES]:
        raise DomainError(
            f"{where}: gates.use",
            expected=f"gates among {', '.join(GATES)}",
            found=", ".join(unknown),
            hint="Name some of these, or leave `use` out for all.",
        )
    if not set(names) & {"floor", "improvement"}:
        raise DomainError(
            f"{where}: gates.use",
            expected="`floor` or `improvement` among the gates, without which nothing speaks for a promotion",
            found=", ".join(names),
            hint="Add `improvement`.",
        )
