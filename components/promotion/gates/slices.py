"""The gate on slices: no class, site, scanner or lot may lose for the overall gain."""

import math

import polars as pl

from components.promotion.evidence import compare_frames
from components.promotion.gates.base import STRICTEST, Context
from components.promotion.gates.sentences import count, list_effects, points, to_evidence
from components.promotion.statistics import Interval, bootstrap_difference
from components.records.outcomes import Finding, Verdict
from components.tasks import create_task
from components.tasks.base import has_labels


def check_slices(context: Context) -> Finding | None:
    """Does any slice (a class, a site, a scanner, a lot) pay for the overall gain?

    HOLD asks for certainty of *some* loss and an estimate beyond the margin; an estimate alone does not hold, since of
    ten small slices one is always unlucky and nothing would ever be promoted. It is named in the reason all the same.
    """
    if context.champion is None:
        return None
    margin = context.domain.gates.slice_margin
    effects = _compare_slices(context, context.champion)
    verdicts = {name: _judge_slice(effect, margin) for name, effect in effects.items()}
    verdict: Verdict = min(verdicts.values(), key=STRICTEST.index)
    blamed = [name for name in effects if verdicts[name] == verdict]
    watched = [
        name
        for name, effect in effects.items()
        if verdicts[name] == "PROMOTE" and effect.value < -margin and effect.low is not None
    ]
    unknown = [name for name, effect in effects.items() if effect.low is None and effect.value < -margin]
    sentences = [_explain_slices(verdict, blamed, effects, margin)]
    if unknown:
        sentences.append(f"Beyond the margin, on too few groups to know more: {list_effects(unknown, effects)}.")
    if watched:
        sentences.append(f"To watch, beyond the margin but within chance: {list_effects(watched, effects)}.")
    evidence = {
        f"{name}/{end}": value for name, effect in effects.items() for end, value in to_evidence(effect).items()
    }
    return Finding(gate="slices", verdict=verdict, reason=" ".join(sentences), evidence={**evidence, "margin": margin})


def _compare_slices(context: Context, champion: pl.DataFrame) -> dict[str, Interval]:
    """`column=value` -> the difference within that slice, which the challenger's rows define; classes come first, then
    sizes of objects.

    A slice in which nothing is to be found has no score and is left out.
    """
    domain, task = context.domain, create_task(context.domain)
    effects = dict[str, Interval]()
    for kind, measure in (("class", task.class_evidence), ("size", task.size_evidence)):
        ours, theirs = (measure(frame.sort("id"), domain.classes) for frame in (context.challenger, champion))
        for name in sorted(ours):
            effects[f"{kind}={name}"] = bootstrap_difference(ours[name], theirs[name], domain.gates.confidence)
    for column in domain.slices:
        for (value,), rows in sorted(context.challenger.group_by(column), key=lambda item: str(item[0][0])):
            if not has_labels(rows):
                continue
            rivals = champion.join(rows.select("id"), on="id", how="semi")
            effect = compare_frames(rows, rivals, domain)
            if not math.isnan(effect.value):
                effects[f"{column}={value}"] = effect
    return effects


def _judge_slice(effect: Interval, margin: float) -> Verdict:
    if effect.is_below(-margin):
        return "REJECT"
    return "HOLD" if effect.value < -margin and effect.is_below(0) else "PROMOTE"


def _explain_slices(verdict: Verdict, blamed: list[str], effects: dict[str, Interval], margin: float) -> str:
    limit = f"the margin of {points(margin)}"
    if verdict == "REJECT":
        return f"Surely worse by more than {limit}: {list_effects(blamed, effects)}."
    if verdict == "HOLD":
        return f"Surely worse, and at the estimate by more than {limit}: {list_effects(blamed, effects)}."
    return f"None of {count(len(effects), 'slice')} is surely worse beyond {limit}."
