"""What a gate is asked and what it answers: the context, a finding per gate, the decision over all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from components.domain.domain import Domain
from components.domain.strict import Strict
from components.records.images import ValidationSummary
from components.records.licences import Chain
from components.records.outcomes import Finding, Verdict

STRICTEST: tuple[Verdict, ...] = ("REJECT", "HOLD", "PROMOTE")


class Decision(Strict):
    """The verdict over all gates; more_groups is how many further test groups would decide a HOLD, where known.

    warnings: classes that are not surely recognised better than by guessing.
    """

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    more_groups: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """The evidence: predictions of the test split, of the challenger and, on the same images, of the champion.

    evaluations: which comparison on these test groups this is (`ledger.count_evaluations`), 1 for the first. manifest:
    id, group and split of every sample. validation: validation.json. serving: latency_ms_p50 and memory_mb, where they
    were measured. lineage: what the challenger was made from, by name; an empty text is unknown. approved: who agreed
    to the promotion, and why. licences: of all that the challenger was made from.
    """

    domain: Domain
    challenger: pl.DataFrame
    champion: pl.DataFrame | None
    adapter_bytes: int
    manifest: pl.DataFrame
    validation: ValidationSummary
    lineage: Mapping[str, str]
    licences: Chain
    serving: Mapping[str, float] = field(default_factory=dict)
    version: int = 0
    approved: str = ""
    evaluations: float = 1.0
    trained: bool = True  # False where the backbone's weights are random: the machinery is tried, not the method


def require_limit(gate: str, measured: str, numbers: dict[str, float]) -> Finding:
    """The finding of a limit. measured: the start of its sentence; numbers: what was found, and the limit."""
    value, limit = numbers.values()
    fits = value <= limit
    reason = f"{measured}, {'within' if fits else 'over'} the limit of {limit:g}."
    return Finding(gate=gate, verdict="PROMOTE" if fits else "REJECT", reason=reason, evidence={**numbers})
