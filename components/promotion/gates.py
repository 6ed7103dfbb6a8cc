"""When may a challenger become champion? Each gate is one function of the evidence; the strictest word wins.

    floor        REJECT unless surely at the floor or above (better than guessing, where none is set)
    improvement  PROMOTE a first champion or where surely better than the champion, REJECT where surely worse;
                 else HOLD, and how many further test groups would decide. Looks at one test set are counted and
                 the level corrected for them
    slices       REJECT where a slice is surely worse by more than the margin; HOLD where it is surely worse and
                 its estimate is beyond the margin
    size         REJECT an adapter over the limit

"Surely" means that the whole confidence interval agrees (`gates.confidence` of the domain). A gate that has nothing
to say returns None; `gates.use` of the domain picks some. To add one, write a function and its row in GATES.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from components.domain import Domain, Strict
from components.errors import DomainError, PromotionError
from components.promotion.statistics import (
    WORN_OUT,
    Interval,
    Ints,
    bootstrap_difference,
    bootstrap_score,
    correct_confidence,
    count_discordant,
    groups_to_decide,
    mcnemar,
    widen,
    widening,
)

Verdict = Literal["PROMOTE", "HOLD", "REJECT"]
STRICTEST: tuple[Verdict, ...] = ("REJECT", "HOLD", "PROMOTE")
BYTES_PER_MB = 1_000_000


class Finding(Strict):
    """What one gate found: a sentence for the auditor and the numbers behind it."""

    gate: str
    verdict: Verdict
    reason: str
    evidence: dict[str, float | str]


class Decision(Strict):
    """The verdict over all gates; more_groups is how many further test groups would decide a HOLD, where known."""

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    more_groups: int | None = None


@dataclass(frozen=True)
class Context:
    """The evidence: predictions of the test split, of the challenger and, on the same images, of the champion.

    looks: which comparison on these test groups this is (`ledger.count_looks`), 1 for the first.
    """

    domain: Domain
    challenger: pl.DataFrame
    champion: pl.DataFrame | None
    adapter_bytes: int
    looks: float = 1.0
    trained: bool = True  # False where the backbone's weights are random: the machinery is tried, not the method


def check_floor(context: Context) -> Finding | None:
    """Is the challenger surely good enough to be used at all?"""
    domain, frame = context.domain, context.challenger
    chance = 1 / len(domain.classes)
    floor = domain.gates.floor
    score = score_frame(frame, domain)
    need = chance if floor is None else floor
    passed = score.low > chance if floor is None else score.low >= floor
    goal = f"guessing among {len(domain.classes)} classes, {_points(chance)}" if floor is None else f"the floor {floor}"
    groups = frame["group"].n_unique()
    verb = "is surely above" if passed else "is not surely above"
    reason = (
        f"On {frame.height} test images of {_count(groups, 'group')} the balanced accuracy {_show(score)} "
        f"{verb} {goal}."
    )
    evidence = _evidence(score) | {"floor": need, "images": float(frame.height), "groups": float(groups)}
    return Finding(gate="floor", verdict="PROMOTE" if passed else "REJECT", reason=reason, evidence=evidence)


def check_improvement(context: Context) -> Finding | None:
    """Is the challenger surely better than the champion, on the very same images?"""
    if context.champion is None:
        return Finding(gate="improvement", verdict="PROMOTE", reason="First champion: floors only.", evidence={})
    effect, level, wear = _compare_corrected(context, context.champion)
    groups = context.challenger["group"].n_unique()
    evidence = _evidence(effect) | {"images": float(context.challenger.height), "groups": float(groups)}
    evidence |= {"looks": context.looks, "confidence": level} | _count_changes(context, context.champion)
    told = f"Against the champion the balanced accuracy changes by {_show(effect, signed=True)}"
    worn = f" {_explain_wear(context, level)}" if wear >= WORN_OUT else ""
    if effect.low > 0:
        reason = f"{told}: surely better.{worn}"
        return Finding(gate="improvement", verdict="PROMOTE", reason=reason, evidence=evidence)
    if effect.high < 0:
        return Finding(gate="improvement", verdict="REJECT", reason=f"{told}: surely worse.{worn}", evidence=evidence)
    more = groups_to_decide(effect, groups)
    if more is None:
        advice = "The difference is too small for more test data of this kind to decide it."
    else:
        evidence = evidence | {"more_groups": float(more)}
        advice = f"Were it real, about {_count(more, 'further test group')} would show it."
    return Finding(gate="improvement", verdict="HOLD", reason=f"{told}: undecided. {advice}{worn}", evidence=evidence)


def _compare_corrected(context: Context, champion: pl.DataFrame) -> tuple[Interval, float, float]:
    """The difference at the level that so many looks leave, that level, and how much wider it made the interval."""
    effect = compare_frames(context.challenger, champion, context.domain)
    groups, asked = context.challenger["group"].n_unique(), context.domain.gates.confidence
    level = correct_confidence(asked, context.looks)
    return widen(effect, asked, level, groups, reach=(-1.0, 1.0)), level, widening(asked, level, groups)


def _count_changes(context: Context, champion: pl.DataFrame) -> dict[str, float | str]:
    """McNemar's test beside the interval: images that only one of the two has right."""
    ours, theirs = context.challenger.sort("id"), champion.sort("id")
    columns = (ours["label"], ours["predicted"], theirs["predicted"])
    gained, lost = count_discordant(*(_encode(column, context.domain) for column in columns))
    return {"only_challenger_right": gained, "only_champion_right": lost, "mcnemar_p": mcnemar(gained, lost)}


def _explain_wear(context: Context, level: float) -> str:
    return (
        f"The test set is worn out: at look {context.looks:.3g} the interval must hold with {100 * level:.2f} %, and a "
        "difference must be more than twice what a fresh set would show. Label new test groups."
    )


def check_slices(context: Context) -> Finding | None:
    """Does any slice (a site, a camera, a scanner) pay for the overall gain?

    HOLD asks for certainty of *some* loss and an estimate beyond the margin; an estimate alone does not hold, since of
    ten small slices one is always unlucky and nothing would ever be promoted. It is named in the reason all the same.
    """
    if context.champion is None or not context.domain.slices:
        return None
    margin = context.domain.gates.slice_margin
    effects = _compare_slices(context, context.champion)
    verdicts = {name: _judge_slice(effect, margin) for name, effect in effects.items()}
    verdict: Verdict = min(verdicts.values(), key=STRICTEST.index)
    blamed = [name for name in effects if verdicts[name] == verdict]
    watched = [name for name in effects if verdicts[name] == "PROMOTE" and effects[name].value < -margin]
    sentences = [_explain_slices(verdict, blamed, effects, margin)]
    if watched:
        sentences.append(f"To watch, beyond the margin but within chance: {_list_effects(watched, effects)}.")
    evidence = {f"{name}/{end}": value for name, effect in effects.items() for end, value in _evidence(effect).items()}
    return Finding(gate="slices", verdict=verdict, reason=" ".join(sentences), evidence={**evidence, "margin": margin})


def check_size(context: Context) -> Finding | None:
    """Does the adapter fit the limit of whoever deploys it?"""
    limit = context.domain.gates.max_adapter_mb
    if limit is None:
        return None
    size = context.adapter_bytes / BYTES_PER_MB
    fits = size <= limit
    reason = f"The adapter takes {size:.3g} MB, {'within' if fits else 'over'} the limit of {limit:g} MB."
    evidence: dict[str, float | str] = {"adapter_mb": size, "max_adapter_mb": limit}
    return Finding(gate="size", verdict="PROMOTE" if fits else "REJECT", reason=reason, evidence=evidence)


GATES: dict[str, Callable[[Context], Finding | None]] = {
    "floor": check_floor,
    "improvement": check_improvement,
    "slices": check_slices,
    "size": check_size,
}


def decide(context: Context) -> Decision:
    """REJECT if any gate rejects, else HOLD if any holds, else PROMOTE.

    Raises PromotionError when the evidence is empty or the two models were not scored on the same images.
    """
    _require_evidence(context)
    used = context.domain.gates.use or tuple(GATES)
    findings = tuple(finding for name in GATES if name in used and (finding := GATES[name](context)) is not None)
    verdict = min((finding.verdict for finding in findings), key=STRICTEST.index)
    decisive = [finding for finding in findings if finding.verdict == verdict]
    reason = " ".join(finding.reason for finding in decisive)
    if not context.trained:
        reason += " The backbone carries random weights, so this tries the machinery and says nothing about the method."
    more = [finding.evidence["more_groups"] for finding in decisive if "more_groups" in finding.evidence]
    more_groups = int(more[0]) if more and verdict == "HOLD" else None
    return Decision(verdict=verdict, reason=reason, findings=findings, more_groups=more_groups)


def require_gates(domain: Domain, where: str) -> None:
    """Raise DomainError for a gate that does not exist, and where no gate is left that always has a word."""
    names = domain.gates.use or tuple(GATES)
    if unknown := [name for name in names if name not in GATES]:
        raise DomainError(
            f"{where}: gates.use",
            expected=f"gates among {', '.join(GATES)}",
            found=", ".join(unknown),
            mend="Name some of these, or leave `use` out for all.",
        )
    if not set(names) & {"floor", "improvement"}:
        raise DomainError(
            f"{where}: gates.use",
            expected="`floor` or `improvement` among the gates, without which nothing speaks for a promotion",
            found=", ".join(names),
            mend="Add `improvement`.",
        )


def score_frame(frame: pl.DataFrame, domain: Domain) -> Interval:
    """Balanced accuracy of a predictions frame with the domain's confidence."""
    labels, predicted = _encode(frame["label"], domain), _encode(frame["predicted"], domain)
    groups = frame["group"].to_numpy()
    return bootstrap_score(labels, predicted, groups, len(domain.classes), domain.gates.confidence)


def compare_frames(challenger: pl.DataFrame, champion: pl.DataFrame, domain: Domain) -> Interval:
    """Challenger minus champion in balanced accuracy, over frames of the same images in any order."""
    ours, theirs = challenger.sort("id"), champion.sort("id")
    return bootstrap_difference(
        _encode(ours["label"], domain),
        _encode(ours["predicted"], domain),
        _encode(theirs["predicted"], domain),
        ours["group"].to_numpy(),
        len(domain.classes),
        domain.gates.confidence,
    )


def _compare_slices(context: Context, champion: pl.DataFrame) -> dict[str, Interval]:
    """`column=value` -> the difference within that slice; a slice is what the challenger's rows say it is."""
    effects = {}
    for column in context.domain.slices:
        for (value,), ours in sorted(context.challenger.group_by(column), key=lambda item: str(item[0][0])):
            theirs = champion.join(ours.select("id"), on="id", how="semi")
            effects[f"{column}={value}"] = compare_frames(ours, theirs, context.domain)
    return effects


def _judge_slice(effect: Interval, margin: float) -> Verdict:
    if effect.high < -margin:
        return "REJECT"
    return "HOLD" if effect.value < -margin and effect.high < 0 else "PROMOTE"


def _explain_slices(verdict: Verdict, blamed: list[str], effects: dict[str, Interval], margin: float) -> str:
    limit = f"the margin of {_points(margin)}"
    if verdict == "REJECT":
        return f"Surely worse by more than {limit}: {_list_effects(blamed, effects)}."
    if verdict == "HOLD":
        return f"Surely worse, and at the estimate by more than {limit}: {_list_effects(blamed, effects)}."
    return f"None of {_count(len(effects), 'slice')} is surely worse beyond {limit}."


def _require_evidence(context: Context) -> None:
    ours, theirs = context.challenger, context.champion
    if ours.is_empty() or set(ours["split"]) != {"test"}:
        raise PromotionError(
            f"challenger of {context.domain.name}",
            expected="predictions of the test split alone",
            found=f"{ours.height} rows of {', '.join(sorted(set(ours['split']))) or 'no split'}",
            mend="Filter the predictions to the test split; give the domain test groups where there are none.",
        )
    same = ["id", "label", "group"]
    if theirs is not None and not ours.select(same).sort("id").equals(theirs.select(same).sort("id")):
        shared = ours.join(theirs, on=same, how="semi").height
        raise PromotionError(
            f"champion of {context.domain.name}",
            expected=f"predictions for the same {ours.height} test images, labels and groups as the challenger",
            found=f"{theirs.height} rows, of which {shared} agree",
            mend="Score the champion again on the present test split.",
        )


def _encode(names: pl.Series, domain: Domain) -> Ints:
    """Class names to their numbers in the domain."""
    known = {name: number for number, name in enumerate(domain.classes)}
    if strangers := sorted(set(names) - set(known)):
        raise PromotionError(
            f"predictions of {domain.name}",
            expected=f"the classes {', '.join(domain.classes)}",
            found=f"{names.name} {', '.join(map(str, strangers))}",
            mend="Score the model again with the classes of the present domain.yaml.",
        )
    return np.array([known[name] for name in names], dtype=np.int64)


def _evidence(interval: Interval) -> dict[str, float | str]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _points(share: float, signed: bool = False) -> str:
    """0.0523 -> "5.2 %"; differences carry their sign and are percentage points."""
    return f"{100 * share:+.1f} points" if signed else f"{100 * share:.1f} %"


def _show(interval: Interval, signed: bool = False) -> str:
    shown = [_points(end, signed) for end in (interval.value, interval.low, interval.high)]
    return f"{shown[0]} (between {shown[1]} and {shown[2]})"


def _list_effects(names: list[str], effects: dict[str, Interval]) -> str:
    return ", ".join(f"{name} {_show(effects[name], signed=True)}" for name in names)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
