"""Gates on how good the answers are: floor, improvement, costs, calibration; and warnings per class."""

import polars as pl

from components.domain.domain import Domain
from components.promotion.escapes import measure_escapes
from components.promotion.evidence import compare_frames, score_frame
from components.promotion.gates.base import STRICTEST, Context, require_limit
from components.promotion.gates.sentences import ask_for_groups, count, points, show, to_evidence
from components.promotion.statistics import (
    FEWEST_GROUPS,
    WORN_OUT,
    Interval,
    bootstrap,
    bootstrap_mean,
    correct_confidence,
    count_discordant,
    count_groups,
    groups_to_decide,
    mcnemar,
    widen,
    widening,
)
from components.records.outcomes import Finding, Verdict
from components.tasks import create_task


def check_floor(context: Context) -> Finding | None:
    """Is the challenger surely good enough to be used at all?"""
    domain, frame, task = context.domain, context.challenger, create_task(context.domain)
    chance, floor = task.chance(frame, domain.classes), domain.gates.floor
    score = score_frame(frame, domain)
    need = chance if floor is None else floor
    verdict: Verdict = "HOLD"
    if score.low is not None:
        verdict = "PROMOTE" if (score.low > chance if floor is None else score.low >= floor) else "REJECT"
    goal = f"{task.name_chance(domain.classes)}, {points(chance)}" if floor is None else f"the floor {floor}"
    verb = "is surely above" if verdict == "PROMOTE" else "is not surely above"
    images = f"{frame.height} test images of {count_groups(score.groups)}"
    reason = f"On {images} the {task.metric_words} {show(score)} {verb} {goal}."
    more = {} if score.low is not None else {"more_groups": float(FEWEST_GROUPS - score.groups)}
    reason += f" {ask_for_groups(score)}" if more else ""
    evidence = to_evidence(score) | {"floor": need, "images": float(frame.height), "groups": float(score.groups)} | more
    return Finding(gate="floor", verdict=verdict, reason=reason, evidence=evidence)


def check_improvement(context: Context) -> Finding | None:
    """Is the challenger surely better than the champion, on the very same images?"""
    if context.champion is None:
        return Finding(gate="improvement", verdict="PROMOTE", reason="First champion: floors only.", evidence={})
    effect, level, wear = _compare_corrected(context, context.champion)
    groups = context.challenger["group"].n_unique()
    evidence = to_evidence(effect) | {"images": float(context.challenger.height), "groups": float(groups)}
    evidence |= {"evaluations": context.evaluations, "confidence": level} | _count_changes(context, context.champion)
    metric = create_task(context.domain).metric_words
    change = f"Against the champion the {metric} changes by {show(effect, signed=True)}"
    worn = f" {_explain_wear(context, level)}" if wear >= WORN_OUT else ""
    if effect.is_above(0):
        reason = f"{change}: surely better.{worn}"
        return Finding(gate="improvement", verdict="PROMOTE", reason=reason, evidence=evidence)
    if effect.is_below(0):
        return Finding(gate="improvement", verdict="REJECT", reason=f"{change}: surely worse.{worn}", evidence=evidence)
    more = groups_to_decide(effect, groups)
    if more is None:
        advice = "The difference is too small for more test data of this kind to decide it."
    else:
        evidence = evidence | {"more_groups": float(more)}
        advice = f"Were it real, about {count(more, 'further test group')} would show it."
        advice = ask_for_groups(effect) if effect.low is None else advice
    return Finding(gate="improvement", verdict="HOLD", reason=f"{change}: undecided. {advice}{worn}", evidence=evidence)


def _compare_corrected(context: Context, champion: pl.DataFrame) -> tuple[Interval, float, float]:
    """The difference at the level that so many evaluations leave, that level, and how much wider the interval got."""
    effect = compare_frames(context.challenger, champion, context.domain)
    groups, asked = context.challenger["group"].n_unique(), context.domain.gates.confidence
    level = correct_confidence(asked, context.evaluations)
    return widen(effect, asked, level, groups, reach=(-1.0, 1.0)), level, widening(asked, level, groups)


def _count_changes(context: Context, champion: pl.DataFrame) -> dict[str, float | str]:
    """McNemar's test beside the interval: images that only one of the two has right."""
    ours, theirs = context.challenger.sort("id"), champion.sort("id")
    task = create_task(context.domain)
    gained, lost = count_discordant(task.hits(ours), task.hits(theirs))
    return {"only_challenger_right": gained, "only_champion_right": lost, "mcnemar_p": mcnemar(gained, lost)}


def _explain_wear(context: Context, level: float) -> str:
    return (
        f"The test set is worn out: at evaluation {context.evaluations:.3g} the interval must hold with "
        f"{100 * level:.2f} %, and a difference must be more than twice what a fresh set would show. "
        "Label new test groups."
    )


def check_costs(context: Context) -> Finding | None:
    """Do the mistakes cost more, each weighed as the domain says?"""
    domain, gates = context.domain, context.domain.gates
    if not gates.costs:
        return None
    task, challenger = create_task(domain), context.challenger.sort("id")
    ours, most = task.costs(challenger, gates, domain.classes)
    groups = challenger["group"].to_numpy()
    mean = bootstrap_mean(ours, groups, (0.0, most), gates.confidence)
    ends = f"not known, {count_groups(mean.groups)}"
    ends = ends if mean.low is None else f"between {mean.low:.3g} and {mean.high:.3g}"
    reason = f"Mistakes cost {mean.value:.3g} {task.cost_unit} ({ends}), a plain one being 1."
    evidence = to_evidence(mean)
    verdict: Verdict = "PROMOTE"
    if gates.max_cost is not None:
        evidence |= {"max_cost": gates.max_cost}
        verdict = "PROMOTE" if mean.value <= gates.max_cost else "REJECT"
        reason += f" That is {'within' if verdict == 'PROMOTE' else 'over'} the limit of {gates.max_cost:g}."
    if context.champion is not None:
        theirs, _ = task.costs(context.champion.sort("id"), gates, domain.classes)
        change = bootstrap_mean(ours - theirs, groups, (-most, most), gates.confidence)
        evidence |= {f"change/{end}": value for end, value in to_evidence(change).items()}
        compared, sentence = _judge_costs(change)
        reason += f" Against the champion {sentence}"
        verdict = min(verdict, compared, key=STRICTEST.index)
    return Finding(gate="costs", verdict=verdict, reason=reason, evidence=evidence)


def _judge_costs(change: Interval) -> tuple[Verdict, str]:
    """The verdict on a change of the mean cost per image, and the end of a sentence."""
    if change.low is None:
        return "HOLD", f"{change.value:+.3g}: undecided. {ask_for_groups(change)}"
    shown = f"{change.value:+.3g} ({change.low:+.3g} to {change.high:+.3g})"
    if change.is_above(0):
        return "REJECT", f"{shown}: surely more."
    return "PROMOTE", f"{shown}: {'surely less' if change.is_below(0) else 'not surely another amount'}."


def check_escapes(context: Context) -> Finding | None:
    """Do surely more images of other classes pass than the domain's `decision` allows?"""
    domain, frame = context.domain, context.challenger
    for label, asked in domain.decision.items():
        share, limit = measure_escapes(frame, label, domain.gates.confidence), asked.escape
        if share is None:
            reason = f"No test image of another class than {label}: nothing is known of escapes."
            return Finding(gate="escapes", verdict="HOLD", reason=reason, evidence={"limit": limit})
        evidence = to_evidence(share) | {"limit": limit}
        images = count(int((frame["label"] != label).sum()), "test image")
        start = (
            f"Of {images} of other classes {show(share)} {'is' if images.startswith('1 ') else 'are'} answered {label}"
        )
        if share.low is None:
            reason = f"{start}: undecided. {ask_for_groups(share)}"
            return Finding(gate="escapes", verdict="HOLD", reason=reason, evidence=evidence)
        over, within = share.is_above(limit), share.is_below(limit)
        words = "surely over" if over else "surely within" if within else "not surely within"
        reason = f"{start}: {words} the limit of {points(limit)}."
        return Finding(gate="escapes", verdict="REJECT" if over else "PROMOTE", reason=reason, evidence=evidence)
    return None


def check_calibration(context: Context) -> Finding | None:
    """Is a probability of 90 % right nine times in ten? The adapter's temperature is in these already."""
    limit = context.domain.gates.max_ece
    if limit is None:
        return None
    error = create_task(context.domain).frame_error(context.challenger, context.domain.classes)
    return require_limit("calibration", f"The calibration error is {error:.3f}", {"ece": error, "max_ece": limit})


def warn_of_classes(frame: pl.DataFrame, domain: Domain) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A sentence for each class whose own score is not surely above chance, and the names of those at chance.

    A class whose interval is not known is at chance where its score is not above it. frame: predictions of one split.
    """
    task, sentences, at_chance = create_task(domain), list[str](), list[str]()
    known = task.class_evidence(frame, domain.classes)
    for name in domain.classes:
        if name not in known:
            sentences.append(f"Class {name}: no test image, so nothing is known of it.")
            continue
        chance = task.chance(frame, domain.classes, of=name)
        score = bootstrap(known[name], domain.gates.confidence)
        if score.is_above(chance):
            continue
        shown = f"Class {name}: {task.class_words} {show(score)} on {count(len(known[name].groups), 'test image')}"
        if score.low is None:
            sentences.append(f"{shown}, too few groups to know whether that is better than guessing.")
        else:
            guess = task.name_chance(domain.classes, of=name)
            sentences.append(f"{shown}, not surely better than {guess}, {points(chance)}.")
        if score.low is not None or score.value <= chance:
            at_chance.append(name)
    return tuple(sentences), tuple(at_chance)
