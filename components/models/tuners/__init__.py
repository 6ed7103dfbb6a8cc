"""Tuners, the ways of fitting a frozen backbone to a domain: one file per method.

A tuner is a strict record with a literal `kind`, its options, and a function `apply(vit)` that returns the encoder to
train. To add one, write a file here and add its class to `Member`; tests enumerate the union (CONTRIBUTING.md has an
example). Importing this package does not import torch, so the command line checks candidates at once.

    create_tuners([{"kind": "linear"}, {"kind": "vpt", "num_prompts": 50}])
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError

from components.domain.reading import explain
from components.errors import DomainError
from components.models.tuners.adaptformer import AdaptFormerTuner
from components.models.tuners.bitfit import BitFitTuner
from components.models.tuners.dora import DoraTuner
from components.models.tuners.dtl import DtlTuner
from components.models.tuners.full import FullTuner
from components.models.tuners.linear import LinearTuner
from components.models.tuners.lora import LoraTuner
from components.models.tuners.pixels import PixelsTuner
from components.models.tuners.ssf import SsfTuner
from components.models.tuners.vapt import VaptTuner
from components.models.tuners.vpt import VptTuner

Member = (
    LinearTuner
    | FullTuner
    | BitFitTuner
    | LoraTuner
    | DoraTuner
    | AdaptFormerTuner
    | SsfTuner
    | VptTuner
    | VaptTuner
    | DtlTuner
    | PixelsTuner
)
Tuner = Annotated[Member, Field(discriminator="kind")]

#: kind to record, read from the union, so that there is only one list.
TUNERS: dict[str, type[Member]] = {member.model_fields["kind"].default: member for member in get_args(Member)}


def create_tuners(candidates: Sequence[Mapping[str, Any]], where: str = "candidates") -> tuple[Tuner, ...]:
    """Check the candidates of a domain. where: the beginning of the error message.

    Raises DomainError for an unknown kind or key, an illegal value, or two candidates with the same label.
    """
    tuners = tuple(_create_tuner(candidate, f"{where}.{index}") for index, candidate in enumerate(candidates))
    twice = [label for label, count in Counter(tuner.label for tuner in tuners).items() if count > 1]
    if twice:
        raise DomainError(
            where,
            expected="a different label for every candidate",
            found=f"{', '.join(twice)} more than once",
            hint="Remove one, or give each its own `name: ...`.",
        )
    return tuners


def _create_tuner(candidate: Mapping[str, Any], where: str) -> Tuner:
    kind = candidate.get("kind")
    if kind not in TUNERS:
        close = difflib.get_close_matches(str(kind), TUNERS, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise DomainError(
            where,
            expected=f"a kind among {', '.join(TUNERS)}",
            found="no kind" if kind is None else f"kind: {kind}",
            hint=f"{hint}Name one of these.",
        )
    try:
        return TUNERS[str(kind)].model_validate(candidate)
    except ValidationError as error:
        raise explain(error, where, TUNERS[str(kind)]) from None
