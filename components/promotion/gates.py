"""When may a challenger become champion? Each gate is one function of the evidence; the strictest word wins.

    floor        REJECT unless surely at the floor or above (better than guessing, where none is set); HOLD where the
                 test set has so few groups that nothing is sure
    improvement  PROMOTE a first champion or where surely better than the champion, REJECT where surely worse;
                 else HOLD, and how many further test groups would decide. Looks at one test set are counted and
                 the level corrected for them
    slices       REJECT where a slice (a class, or what a column of the manifest says) is surely worse by more than the
                 margin; HOLD where it is surely worse and its estimate is beyond the margin
    costs        REJECT where mistakes cost surely more than the champion's or, at the estimate, than the limit; HOLD
                 where too few groups are there to know the former
    calibration  REJECT a calibration error over the limit
    latency, memory, size   REJECT what is over the limit, one image at a time on the device that judges
    data         REJECT where validation of the images said no
    split        REJECT where a group or an image is on two sides
    lineage      REJECT what cannot be traced to its data, split, backbone, code and settings
    approval     HOLD until a person agrees, where the domain asks for it

"Surely" means that the whole confidence interval agrees (`gates.confidence` of the domain). Of one or two groups there
is no interval, and nothing is sure. A class that is not surely recognised better than by guessing is a warning. A gate
that has nothing to say returns None; `gates.use` of the domain picks some. To add one, write a function and its row in
GATES.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.domain.domain import Domain
from components.domain.strict import Strict
from components.errors import DomainError, PromotionError
from components.promotion.statistics import (
    FEWEST_GROUPS,
    WORN_OUT,
    Interval,
    Ints,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_score,
    correct_confidence,
    count_discordant,
    count_groups,
    groups_to_decide,
    mcnemar,
    widen,
    widening,
)
from components.records import PROBABILITY
from components.training.metrics import expected_calibration_error

Verdict = Literal["PROMOTE", "HOLD", "REJECT"]
STRICTEST: tuple[Verdict, ...] = ("REJECT", "HOLD", "PROMOTE")
BYTES_PER_MB = 1_000_000
TAKEN_FOR_GRANTED = ("data", "split", "lineage")  # in the findings, and in the reason only where they say no


class Finding(Strict):
    """What one gate found: a sentence for the auditor and the numbers behind it."""

    gate: str
    verdict: Verdict
    reason: str
    evidence: dict[str, float | str]


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

    looks: which comparison on these test groups this is (`ledger.count_looks`), 1 for the first. manifest: id, group
    and split of every sample. validation: validation.json. serving: latency_ms_p50 and memory_mb, where they were
    measured. lineage: what the challenger was made from, by name; an empty text is unknown. approved: who agreed to
    the promotion, and why.
    """

    domain: Domain
    challenger: pl.DataFrame
    champion: pl.DataFrame | None
    adapter_bytes: int
    manifest: pl.DataFrame
    validation: Mapping[str, Any]
    lineage: Mapping[str, str]
    serving: Mapping[str, float] = field(default_factory=dict)
    version: int = 0
    approved: str = ""
    looks: float = 1.0
    trained: bool = True  # False where the backbone's weights are random: the machinery is tried, not the method


def check_floor(context: Context) -> Finding | None:
    """Is the challenger surely good enough to be used at all?"""
    domain, frame = context.domain, context.challenger
    chance = 1 / len(domain.classes)
    floor = domain.gates.floor
    score = score_frame(frame, domain)
    need = chance if floor is None else floor
    verdict: Verdict = "HOLD"
    if score.low is not None:
        verdict = "PROMOTE" if (score.low > chance if floor is None else score.low >= floor) else "REJECT"
    goal = f"guessing among {len(domain.classes)} classes, {_points(chance)}" if floor is None else f"the floor {floor}"
    verb = "is surely above" if verdict == "PROMOTE" else "is not surely above"
    images = f"{frame.height} test images of {count_groups(score.groups)}"
    reason = f"On {images} the balanced accuracy {_show(score)} {verb} {goal}."
    more = {} if score.low is not None else {"more_groups": float(FEWEST_GROUPS - score.groups)}
    reason += f" {_ask_for_groups(score)}" if more else ""
    evidence = _evidence(score) | {"floor": need, "images": float(frame.height), "groups": float(score.groups)} | more
    return Finding(gate="floor", verdict=verdict, reason=reason, evidence=evidence)


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
    if effect.is_above(0):
        reason = f"{told}: surely better.{worn}"
        return Finding(gate="improvement", verdict="PROMOTE", reason=reason, evidence=evidence)
    if effect.is_below(0):
        return Finding(gate="improvement", verdict="REJECT", reason=f"{told}: surely worse.{worn}", evidence=evidence)
    more = groups_to_decide(effect, groups)
    if more is None:
        advice = "The difference is too small for more test data of this kind to decide it."
    else:
        evidence = evidence | {"more_groups": float(more)}
        advice = f"Were it real, about {_count(more, 'further test group')} would show it."
        advice = _ask_for_groups(effect) if effect.low is None else advice
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
        sentences.append(f"Beyond the margin, on too few groups to know more: {_list_effects(unknown, effects)}.")
    if watched:
        sentences.append(f"To watch, beyond the margin but within chance: {_list_effects(watched, effects)}.")
    evidence = {f"{name}/{end}": value for name, effect in effects.items() for end, value in _evidence(effect).items()}
    return Finding(gate="slices", verdict=verdict, reason=" ".join(sentences), evidence={**evidence, "margin": margin})


def check_costs(context: Context) -> Finding | None:
    """Do the mistakes cost more, each weighed as the domain says?"""
    domain, gates = context.domain, context.domain.gates
    if not gates.costs:
        return None
    most = max([1.0, *(cost for row in gates.costs.values() for cost in row.values())])
    ours = _count_costs(context.challenger, domain)
    groups = context.challenger.sort("id")["group"].to_numpy()
    mean = bootstrap_mean(ours, groups, (0.0, most), gates.confidence)
    told = f"not known, {count_groups(mean.groups)}"
    told = told if mean.low is None else f"between {mean.low:.3g} and {mean.high:.3g}"
    reason = f"Mistakes cost {mean.value:.3g} an image ({told}), a plain one being 1."
    evidence = _evidence(mean)
    verdict: Verdict = "PROMOTE"
    if gates.max_cost is not None:
        evidence |= {"max_cost": gates.max_cost}
        verdict = "PROMOTE" if mean.value <= gates.max_cost else "REJECT"
        reason += f" That is {'within' if verdict == 'PROMOTE' else 'over'} the limit of {gates.max_cost:g}."
    if context.champion is not None:
        differences = ours - _count_costs(context.champion, domain)
        change = bootstrap_mean(differences, groups, (-most, most), gates.confidence)
        evidence |= {f"change/{end}": value for end, value in _evidence(change).items()}
        compared, sentence = _judge_costs(change)
        reason += f" Against the champion {sentence}"
        verdict = min(verdict, compared, key=STRICTEST.index)
    return Finding(gate="costs", verdict=verdict, reason=reason, evidence=evidence)


def _judge_costs(change: Interval) -> tuple[Verdict, str]:
    """change: of the cost of an image."""
    if change.low is None:
        return "HOLD", f"{change.value:+.3g}: undecided. {_ask_for_groups(change)}"
    told = f"{change.value:+.3g} ({change.low:+.3g} to {change.high:+.3g})"
    if change.is_above(0):
        return "REJECT", f"{told}: surely more."
    return "PROMOTE", f"{told}: {'surely less' if change.is_below(0) else 'not surely another amount'}."


def _count_costs(frame: pl.DataFrame, domain: Domain) -> NDArray[np.float64]:
    """What the answer for each image costs, in the order of their ids."""
    pairs = frame.sort("id").select("label", "predicted").iter_rows()
    return np.array([domain.gates.cost(*pair) for pair in pairs])


def check_calibration(context: Context) -> Finding | None:
    """Is a probability of 90 % right nine times in ten? The adapter's temperature is in these already."""
    limit = context.domain.gates.max_ece
    if limit is None:
        return None
    chances = context.challenger.select(f"{PROBABILITY}{name}" for name in context.domain.classes).to_numpy()
    error = expected_calibration_error(_encode(context.challenger["label"], context.domain), chances)
    return _limit("calibration", f"The calibration error is {error:.3f}", {"ece": error, "max_ece": limit})


def check_latency(context: Context) -> Finding | None:
    """Is one image answered fast enough here?"""
    limit = context.domain.gates.max_latency_ms
    if limit is None:
        return None
    took = context.serving["latency_ms_p50"]
    return _limit("latency", f"One image takes {took:.3g} ms", {"latency_ms_p50": took, "max_latency_ms": limit})


def check_memory(context: Context) -> Finding | None:
    """Does the model that serves fit into the memory there is?"""
    limit = context.domain.gates.max_memory_mb
    if limit is None:
        return None
    took = context.serving["memory_mb"]
    return _limit("memory", f"Serving takes {took:.0f} MB", {"memory_mb": took, "max_memory_mb": limit})


def check_size(context: Context) -> Finding | None:
    """Does the adapter fit the limit of whoever deploys it?"""
    limit = context.domain.gates.max_adapter_mb
    if limit is None:
        return None
    size = context.adapter_bytes / BYTES_PER_MB
    return _limit("size", f"The adapter takes {size:.3g} MB", {"adapter_mb": size, "max_adapter_mb": limit})


def check_data(context: Context) -> Finding:
    """Did the images pass their own checks?"""
    found, problems = context.validation, context.validation["problems"]
    passed = bool(found["ok"]) and not problems
    aside = len(found["quarantined"])
    reason = f"Validation passed {found['fit']} of {found['images']} images and put {aside} aside."
    if not passed:
        reason = f"Validation said no: {'; '.join(problems) or 'it did not end well'}."
    numbers: dict[str, float | str] = {"images": float(found["images"]), "fit": float(found["fit"])}
    numbers |= {"quarantined": float(aside), "problems": float(len(problems))}
    return Finding(gate="data", verdict="PROMOTE" if passed else "REJECT", reason=reason, evidence=numbers)


def check_split(context: Context) -> Finding:
    """Is what was tested surely not what was learned? Near duplicates have been made one group before."""
    leaks = {column: _find_straddlers(context.manifest, column) for column in ("group", "id")}
    evidence: dict[str, float | str] = {f"{column}s_on_two_sides": float(len(found)) for column, found in leaks.items()}
    evidence |= {"groups": float(context.manifest["group"].n_unique())}
    guilty = [f"{column} {name}" for column, found in leaks.items() for name in found]
    if guilty:
        reason = f"On two sides of the split: {', '.join(guilty[:3])}{' and more' if len(guilty) > 3 else ''}."
        return Finding(gate="split", verdict="REJECT", reason=reason, evidence=evidence)
    reason = (
        f"None of {_count(context.manifest['group'].n_unique(), 'group')} and no image is on two sides of the split."
    )
    return Finding(gate="split", verdict="PROMOTE", reason=reason, evidence=evidence)


def _find_straddlers(manifest: pl.DataFrame, column: str) -> list[str]:
    sides = manifest.group_by(column).agg(pl.col("split").n_unique())
    return sorted(sides.filter(pl.col("split") > 1)[column])


def check_lineage(context: Context) -> Finding:
    """Can an auditor go from the version back to everything it was made from?"""
    missing = sorted(name for name, value in context.lineage.items() if value in ("", "unknown"))
    known: dict[str, float | str] = {name: value for name, value in context.lineage.items() if name not in missing}
    evidence = known | {"missing": float(len(missing))}
    if missing:
        reason = f"It cannot be traced: {', '.join(missing)} unknown."
        return Finding(gate="lineage", verdict="REJECT", reason=reason, evidence=evidence)
    return Finding(gate="lineage", verdict="PROMOTE", reason=f"Known: {', '.join(context.lineage)}.", evidence=evidence)


def check_approval(context: Context) -> Finding | None:
    """Does a person agree, where the domain asks for one?"""
    if not context.domain.gates.approval:
        return None
    if context.approved:
        return Finding(
            gate="approval", verdict="PROMOTE", reason=f"Approved by {context.approved}.", evidence={"asked": 1.0}
        )
    command = f"tessera approve {context.domain.name} {context.version} --by NAME --reason WHY"
    reason = f"A person must approve it: `{command}`."
    return Finding(gate="approval", verdict="HOLD", reason=reason, evidence={"asked": 1.0})


def _limit(gate: str, told: str, numbers: dict[str, float]) -> Finding:
    """numbers: what was found, and what it may be at most."""
    value, limit = numbers.values()
    fits = value <= limit
    reason = f"{told}, {'within' if fits else 'over'} the limit of {limit:g}."
    return Finding(gate=gate, verdict="PROMOTE" if fits else "REJECT", reason=reason, evidence={**numbers})


GATES: dict[str, Callable[[Context], Finding | None]] = {
    "floor": check_floor,
    "improvement": check_improvement,
    "slices": check_slices,
    "costs": check_costs,
    "calibration": check_calibration,
    "latency": check_latency,
    "memory": check_memory,
    "size": check_size,
    "data": check_data,
    "split": check_split,
    "lineage": check_lineage,
    "approval": check_approval,
}


def decide(context: Context) -> Decision:
    """REJECT if any gate rejects, else HOLD if any holds, else PROMOTE.

    Raises PromotionError when the evidence is empty or the two models were not scored on the same images.
    """
    _require_evidence(context)
    used = (*(context.domain.gates.use or GATES), "approval")
    findings = tuple(finding for name in GATES if name in used and (finding := GATES[name](context)) is not None)
    verdict = min((finding.verdict for finding in findings), key=STRICTEST.index)
    decisive = [finding for finding in findings if finding.verdict == verdict]
    told = [finding for finding in decisive if verdict != "PROMOTE" or finding.gate not in TAKEN_FOR_GRANTED]
    reason = " ".join(finding.reason for finding in told)
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


def warn_of_classes(frame: pl.DataFrame, domain: Domain) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A sentence for each class whose recall is not surely above that of guessing, and the names of those at chance.

    A class of which too few groups are there to know is at chance only where its recall is. frame: predictions of one
    split.
    """
    chance, sentences, at_chance = 1 / len(domain.classes), [], []
    for name in domain.classes:
        rows = frame.filter(pl.col("label") == name)
        if rows.is_empty():
            sentences.append(f"Class {name}: no test image, so nothing is known of it.")
            continue
        recall = score_frame(rows, domain)
        if recall.is_above(chance):
            continue
        told = f"Class {name}: recall {_show(recall)} on {_count(rows.height, 'test image')}"
        if recall.low is None:
            sentences.append(f"{told}, too few groups to know whether that is better than guessing.")
        else:
            sentences.append(f"{told}, not surely better than guessing among {len(domain.classes)}, {_points(chance)}.")
        if recall.low is not None or recall.value <= chance:
            at_chance.append(name)
    return tuple(sentences), tuple(at_chance)


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
    for column in ("label", *context.domain.slices):
        name = "class" if column == "label" else column
        for (value,), ours in sorted(context.challenger.group_by(column), key=lambda item: str(item[0][0])):
            theirs = champion.join(ours.select("id"), on="id", how="semi")
            effects[f"{name}={value}"] = compare_frames(ours, theirs, context.domain)
    return effects


def _judge_slice(effect: Interval, margin: float) -> Verdict:
    if effect.is_below(-margin):
        return "REJECT"
    return "HOLD" if effect.value < -margin and effect.is_below(0) else "PROMOTE"


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
            hint="Filter the predictions to the test split; give the domain test groups where there are none.",
        )
    same = ["id", "label", "group"]
    if theirs is not None and not ours.select(same).sort("id").equals(theirs.select(same).sort("id")):
        shared = ours.join(theirs, on=same, how="semi").height
        raise PromotionError(
            f"champion of {context.domain.name}",
            expected=f"predictions for the same {ours.height} test images, labels and groups as the challenger",
            found=f"{theirs.height} rows, of which {shared} agree",
            hint="Score the champion again on the present test split.",
        )


def _encode(names: pl.Series, domain: Domain) -> Ints:
    """Class names to their numbers in the domain."""
    known = {name: number for number, name in enumerate(domain.classes)}
    if strangers := sorted(set(names) - set(known)):
        raise PromotionError(
            f"predictions of {domain.name}",
            expected=f"the classes {', '.join(domain.classes)}",
            found=f"{names.name} {', '.join(map(str, strangers))}",
            hint="Score the model again with the classes of the present domain.yaml.",
        )
    return np.array([known[name] for name in names], dtype=np.int64)


def _evidence(interval: Interval) -> dict[str, float | str]:
    if interval.low is None or interval.high is None:
        return {"value": interval.value, "interval": f"not known ({count_groups(interval.groups)})"}
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _ask_for_groups(interval: Interval) -> str:
    """What to do about an interval that is not known."""
    lack = FEWEST_GROUPS - interval.groups
    return (
        f"An interval needs {FEWEST_GROUPS} test groups at least and there {'is' if interval.groups == 1 else 'are'} "
        f"{interval.groups}: label {lack} more, or declare the groups in domain.yaml if these are not all."
    )


def _points(share: float, signed: bool = False) -> str:
    """0.0523 -> "5.2 %"; differences carry their sign and are percentage points."""
    return f"{100 * share:+.1f} points" if signed else f"{100 * share:.1f} %"


def _show(interval: Interval, signed: bool = False) -> str:
    value = _points(interval.value, signed)
    if interval.low is None or interval.high is None:
        return f"{value} (interval not known, {count_groups(interval.groups)})"
    return f"{value} (between {_points(interval.low, signed)} and {_points(interval.high, signed)})"


def _list_effects(names: list[str], effects: dict[str, Interval]) -> str:
    return ", ".join(f"{name} {_show(effects[name], signed=True)}" for name in names)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
