import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import tiny
from tiny import CLASSES, create_domain, predict

from components.errors import DomainError, PromotionError
from components.promotion import evidence
from components.promotion.gates.base import Context, Decision, Finding
from components.promotion.gates.decide import GATES, decide, require_gates
from components.promotion.statistics import Interval, bootstrap
from components.tasks import create_task

TRUTH = [CLASSES[k % 3] for k in range(240)]


def spoil(share: float, seed: int = 0, rows: range = range(240)) -> list[str]:
    """The truth with a share of mistakes in some rows."""
    hit = np.random.default_rng(seed).random(240) < share
    return [CLASSES[(k + 1) % 3] if k in rows and hit[k] else name for k, name in enumerate(TRUTH)]


SITES = ["north" if k < 120 else "south" for k in range(240)]


def frame(predicted: list[str]) -> pl.DataFrame:
    rows = predict(TRUTH, predicted, [f"lot{k // 4:02}" for k in range(240)], site=SITES)
    return rows.with_columns((pl.col("predicted") == name).cast(float).alias(f"p_{name}") for name in CLASSES)


MANIFEST = pl.DataFrame({"id": ["a", "b", "c"], "group": ["x", "y", "y"], "split": ["train", "test", "test"]})
VALIDATION = tiny.create_validation(images=3)
LINEAGE = {"data_version": "d", "run_id": "r"}
FACTS = {"manifest": MANIFEST, "validation": VALIDATION, "lineage": LINEAGE, "licences": ()}
ALWAYS = ["data", "split", "lineage"]


def context(
    challenger: list[str], champion: list[str] | None = None, *, size: int = 1_000_000, **gates: object
) -> Context:
    rival = None if champion is None else frame(champion)
    serving = {"latency_ms_p50": 12.0, "memory_mb": 400.0}
    facts = FACTS | {"serving": serving, "version": 3}
    return Context(create_domain(gates=gates), frame(challenger), rival, adapter_bytes=size, **facts)


def finding(decision: Decision, gate: str) -> Finding:
    return next(found for found in decision.findings if found.gate == gate)


def test_a_first_good_challenger_is_promoted() -> None:
    decision = decide(context(spoil(0.1)))
    assert decision.verdict == "PROMOTE"
    assert [found.gate for found in decision.findings] == ["floor", "improvement", *ALWAYS]
    assert finding(decision, "improvement").reason == "First champion: floors only."
    assert "240 test images of 60 groups" in decision.reason
    assert "guessing among 3 classes, 33.3 %" in decision.reason


def test_guessing_is_rejected() -> None:
    guesses = [CLASSES[k] for k in np.random.default_rng(1).integers(0, 3, 240)]
    decision = decide(context(guesses))
    assert decision.verdict == "REJECT"
    assert "is not surely above guessing" in decision.reason


@pytest.mark.parametrize(("floor", "verdict"), [(0.80, "PROMOTE"), (0.90, "REJECT")])
def test_the_lower_end_must_reach_the_floor(floor: float, verdict: str) -> None:
    found = finding(decide(context(spoil(0.1), floor=floor)), "floor")
    assert found.verdict == verdict
    assert float(found.evidence["low"]) < 0.9 < float(found.evidence["high"])
    assert found.evidence["floor"] == floor


def test_surely_better_is_promoted_and_surely_worse_rejected() -> None:
    better = decide(context(spoil(0.02), spoil(0.3)))
    assert (better.verdict, finding(better, "improvement").verdict) == ("PROMOTE", "PROMOTE")
    worse = decide(context(spoil(0.3), spoil(0.02)))
    assert worse.verdict == "REJECT"
    assert "surely worse" in worse.reason
    assert float(finding(worse, "improvement").evidence["high"]) < 0


@pytest.mark.parametrize("swapped", [False, True])
def test_undecided_holds_and_says_how_many_groups_would_decide(swapped: bool) -> None:
    two = [spoil(0.10), spoil(0.13, seed=1)]
    decision = decide(context(*(two[::-1] if swapped else two)))
    evidence = finding(decision, "improvement").evidence
    assert (float(evidence["value"]) > 0) == swapped
    assert decision.verdict == "HOLD"
    assert decision.more_groups is not None
    assert decision.more_groups > 0
    assert f"about {decision.more_groups} further test groups" in decision.reason


def test_no_difference_holds_without_promising_anything() -> None:
    same = spoil(0.1)
    decision = decide(context(same, same))
    assert (decision.verdict, decision.more_groups) == ("HOLD", None)
    assert "too small" in decision.reason


def test_a_slice_that_pays_for_the_gain_is_rejected() -> None:
    champion = spoil(0.45, rows=range(120))
    challenger = spoil(0.35, seed=4, rows=range(120, 240))
    decision = decide(context(challenger, champion))
    found = finding(decision, "slices")
    assert (decision.verdict, found.verdict) == ("REJECT", "REJECT")
    assert "site=south" in found.reason
    assert "site=north" not in found.reason
    assert float(found.evidence["site=north/value"]) > 0 > float(found.evidence["site=south/high"])


def test_a_slice_surely_worse_but_maybe_within_the_margin_holds() -> None:
    challenger = spoil(0.12, seed=4, rows=range(120, 240))
    found = finding(decide(context(challenger, spoil(0.45, rows=range(120)), slice_margin=0.05)), "slices")
    assert found.verdict == "HOLD"
    assert float(found.evidence["site=south/value"]) < -0.05 < float(found.evidence["site=south/high"]) < 0


def test_an_unlucky_slice_is_named_but_does_not_hold() -> None:
    champion, challenger = spoil(0.3, rows=range(120)), list(TRUTH)
    for k in (0, 5, 10):
        challenger[k] = CLASSES[(k + 1) % 3]
    sites = ["tiny" if k in (0, 5, 10) or 130 <= k < 145 else name for k, name in enumerate(SITES)]
    ours, theirs = (
        frame(challenger),
        frame([name if k not in (0, 5, 10) else TRUTH[k] for k, name in enumerate(champion)]),
    )
    column = pl.Series("site", sites)
    decision = decide(Context(create_domain(), ours.with_columns(column), theirs.with_columns(column), 1, **FACTS))
    found = finding(decision, "slices")
    assert found.verdict == "PROMOTE"
    assert "To watch" in found.reason
    assert "site=tiny" in found.reason


@pytest.mark.parametrize(("size", "verdict"), [(2_000_000, "PROMOTE"), (2_000_001, "REJECT")])
def test_size(size: int, verdict: str) -> None:
    decision = decide(context(spoil(0.05), size=size, max_adapter_mb=2.0))
    assert decision.verdict == verdict
    assert finding(decision, "size").evidence["max_adapter_mb"] == 2.0


def test_the_strictest_gate_wins() -> None:
    decision = decide(context(spoil(0.10), spoil(0.13, seed=1), size=9_000_000, max_adapter_mb=1.0))
    assert finding(decision, "improvement").verdict == "HOLD"
    assert decision.verdict == "REJECT"
    assert decision.more_groups is None
    assert "over the limit" in decision.reason
    assert "undecided" not in decision.reason


EVERYTHING = {
    "max_adapter_mb": 2.0,
    "max_ece": 0.5,
    "max_latency_ms": 20.0,
    "max_memory_mb": 500.0,
    "costs": {"*": {"dark": 20}},
    "licences": ["mit"],
    "approval": True,
}
DECIDED = create_domain(gates=EVERYTHING, decision={"light": {"escape": 0.05}})


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_explains_itself_with_numbers(gate: str) -> None:
    decision = decide(replace(context(spoil(0.05), spoil(0.3)), domain=DECIDED))
    found = finding(decision, gate)
    assert found.reason.endswith(".")
    assert any(isinstance(value, float) for value in found.evidence.values())


def test_a_decision_is_json_and_back() -> None:
    decision = decide(context(spoil(0.05), spoil(0.3), max_adapter_mb=2.0))
    text = json.dumps(decision.model_dump(mode="json"), allow_nan=False)
    assert Decision.model_validate_json(text) == decision


def test_the_order_of_the_champions_rows_does_not_matter() -> None:
    one = context(spoil(0.05), spoil(0.3))
    assert one.champion is not None
    assert decide(replace(one, champion=one.champion.reverse())) == decide(one)


def test_other_images_are_refused() -> None:
    one = context(spoil(0.05), spoil(0.3))
    assert one.champion is not None
    fewer = replace(one, champion=one.champion.head(200))
    with pytest.raises(PromotionError, match=r"same 240 test images.*found 200 rows, of which 200 agree"):
        decide(fewer)
    relabelled = one.champion.with_columns(label=pl.lit("red"))
    with pytest.raises(PromotionError, match="of which 80 agree"):
        decide(replace(one, champion=relabelled))


def test_nothing_but_the_test_split_is_accepted() -> None:
    rows = frame(spoil(0.05))
    for wrong in (rows.clear(), rows.with_columns(split=pl.lit("val"))):
        with pytest.raises(PromotionError, match="predictions of the test split alone"):
            decide(replace(context(spoil(0.05)), challenger=wrong))


def test_a_foreign_class_is_refused() -> None:
    with pytest.raises(PromotionError, match="predicted blue"):
        decide(context(["blue", *TRUTH[1:]]))


def test_predictions_are_resampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks, in whatever order of rows; another answer, confidence or class list is another question."""
    drawn = list[Interval]()
    monkeypatch.setattr(evidence, "_SCORED", {})
    monkeypatch.setattr(evidence, "bootstrap", lambda *asked: drawn.append(bootstrap(*asked)) or drawn[-1])
    rows, domain = frame(spoil(0.1)), create_domain()
    for _ in range(2):
        assert evidence.score_frame(rows, domain) == evidence.score_frame(rows.reverse(), domain) == drawn[0]
    assert len(drawn) == 1
    evidence.score_frame(frame(spoil(0.1, seed=1)), domain)
    evidence.score_frame(rows, create_domain(gates={"confidence": 0.8}))
    evidence.score_frame(rows, create_domain(classes=[*CLASSES, "blue"]))
    assert len(drawn) == 4
    assert drawn[2].low > drawn[0].low


def test_random_weights_are_mentioned() -> None:
    one = context(spoil(0.05))
    assert "random weights" in decide(replace(one, trained=False)).reason


def test_gates_import_nothing_heavy() -> None:
    heavy = "('torch', 'mlflow', 'scipy')"
    code = f"import sys, components.promotion.gates.decide; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_repeated_evaluations_of_the_test_set_make_the_gate_stricter() -> None:
    first = context(spoil(0.04), spoil(0.13, seed=1))
    later = replace(first, evaluations=30.0)
    found = [finding(decide(one), "improvement") for one in (first, later)]
    assert found[0].verdict == "PROMOTE"
    assert found[1].verdict == "HOLD"
    assert float(found[1].evidence["low"]) < float(found[0].evidence["low"])
    assert float(found[1].evidence["confidence"]) > 0.9999
    assert "worn out" in found[1].reason
    assert "worn out" not in found[0].reason
    assert float(found[0].evidence["mcnemar_p"]) < 0.05


def test_a_domain_picks_its_gates() -> None:
    decision = decide(context(spoil(0.1), use=("floor",)))
    assert [found.gate for found in decision.findings] == ["floor"]


@pytest.mark.parametrize(("use", "told"), [(("flor",), "improvement, slices, costs"), (("size",), "improvement")])
def test_gates_that_cannot_judge_are_refused(use: tuple[str, ...], told: str) -> None:
    with pytest.raises(DomainError, match=told):
        require_gates(create_domain(gates={"use": use}), "domain.yaml")


def test_a_class_that_pays_for_the_gain_is_rejected() -> None:
    """No column says it: the class itself is a slice."""
    champion = [CLASSES[1] if k % 3 == 0 and k % 2 else name for k, name in enumerate(TRUTH)]
    challenger = [CLASSES[0] if k % 3 == 2 and k % 4 else name for k, name in enumerate(TRUTH)]
    found = finding(decide(context(challenger, champion)), "slices")
    assert found.verdict == "REJECT"
    assert "class=red" in found.reason
    assert "class=dark" not in found.reason


@pytest.mark.parametrize(
    ("limit", "gate"), [("max_ece", "calibration"), ("max_latency_ms", "latency"), ("max_memory_mb", "memory")]
)
def test_a_limit_is_kept_or_not(limit: str, gate: str) -> None:
    values = {"max_ece": 0.1, "max_latency_ms": 12.0, "max_memory_mb": 400.0}
    one = context(spoil(0.0), **{limit: values[limit]})
    assert decide(one).verdict == "PROMOTE"
    assert finding(decide(one), gate).verdict == "PROMOTE"
    unsure = one.challenger.with_columns(p_dark=0.8, p_light=0.1, p_red=0.1)
    slower = {key: 1.01 * value for key, value in one.serving.items()}
    worse = decide(replace(one, challenger=unsure, serving=slower))
    assert (worse.verdict, finding(worse, gate).verdict) == ("REJECT", "REJECT")
    assert "over the limit" in worse.reason


def test_a_missed_defect_costs_twenty_false_alarms() -> None:
    """The challenger is right more often, but what it gets wrong is what is dear."""
    alarms = [CLASSES[1] if name == "dark" and k % 4 else name for k, name in enumerate(TRUTH)]
    misses = [CLASSES[0] if name == "red" and k % 4 == 0 else name for k, name in enumerate(TRUTH)]
    costs = {"*": {"dark": 20}}
    decision = decide(context(misses, alarms, costs=costs))
    found = finding(decision, "costs")
    assert finding(decision, "improvement").verdict == "PROMOTE"
    assert found.verdict == "REJECT"
    assert float(found.evidence["value"]) == pytest.approx(20 * 20 / 240)
    assert float(found.evidence["change/value"]) == pytest.approx(20 * 20 / 240 - 60 / 240)
    assert finding(decide(context(alarms, misses, costs=costs, max_cost=1)), "costs").verdict == "PROMOTE"
    assert finding(decide(context(alarms, misses, costs=costs, max_cost=0.2)), "costs").verdict == "REJECT"


def test_costs_of_strange_classes_are_refused() -> None:
    with pytest.raises(DomainError, match=r"classes dark, light, red; found gates.costs speaks of blue"):
        create_task(create_domain(gates={"costs": {"*": {"blue": 20}}}))


def test_a_leak_bad_data_and_a_gap_in_the_lineage_are_rejected() -> None:
    one = context(spoil(0.0))
    leaky = MANIFEST.with_columns(split=pl.Series(["train", "val", "test"]))
    leak = finding(decide(replace(one, manifest=leaky)), "split")
    assert (leak.verdict, leak.reason) == ("REJECT", "In two splits: group y.")
    bad = finding(
        decide(replace(one, validation=VALIDATION.model_copy(update={"ok": False, "problems": ("too few",)}))), "data"
    )
    assert (bad.verdict, bad.reason) == ("REJECT", "Validation said no: too few.")
    gap = finding(decide(replace(one, lineage={"data_version": "d", "run_id": ""})), "lineage")
    assert (gap.verdict, gap.reason) == ("REJECT", "It cannot be traced: run_id unknown.")


@pytest.mark.parametrize(("limit", "verdict"), [(0.09, "REJECT"), (0.12, "PROMOTE")])
def test_the_limit_of_costs_is_for_the_estimate(limit: float, verdict: str) -> None:
    """Both limits lie within the interval, on either side of the estimate."""
    found = finding(decide(context(spoil(0.1), costs={"*": {"dark": 1}}, max_cost=limit)), "costs")
    low, value, high = (float(found.evidence[end]) for end in ("low", "value", "high"))
    assert low < 0.09 < value < 0.12 < high
    assert found.verdict == verdict


def test_other_groups_are_refused() -> None:
    one = context(spoil(0.05), spoil(0.3))
    assert one.champion is not None
    regrouped = one.champion.with_columns(group=pl.lit("lot00"))
    with pytest.raises(PromotionError, match=r"labels and groups as the challenger; found 240 rows, of which 4 agree"):
        decide(replace(one, champion=regrouped))


def regroup(one: Context, number: int) -> Context:
    """The same answers, of so many groups."""
    names = pl.Series("group", [f"lot{k * number // 240}" for k in range(240)])
    rival = None if one.champion is None else one.champion.with_columns(names)
    return replace(one, challenger=one.challenger.with_columns(names), champion=rival)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.6])
def test_nothing_passes_by_luck_on_one_or_two_groups(share: float, number: int) -> None:
    """However well it does: the gates hold and say what is missing."""
    costs = {"*": {"dark": 20}}
    first = decide(regroup(context(spoil(share)), number))
    assert (first.verdict, finding(first, "floor").verdict, first.more_groups) == ("HOLD", "HOLD", 3 - number)
    assert f"interval not known, {number} group" in first.reason
    assert f"label {3 - number} more" in first.reason
    second = decide(
        regroup(context(spoil(share), spoil(0.3, seed=2), costs=costs, use=("improvement", "costs")), number)
    )
    assert [found.verdict for found in second.findings] == ["HOLD", "HOLD"]
    assert "low" not in finding(second, "improvement").evidence
    assert finding(second, "improvement").evidence["interval"] == f"not known ({number} group{'s' * (number > 1)})"
    json.dumps(second.model_dump(mode="json"), allow_nan=False)
    assert decide(regroup(context(spoil(0.0)), 3)).verdict != "HOLD"


def test_a_slice_of_few_groups_is_named_and_does_not_hold() -> None:
    challenger = list(TRUTH)
    for k in range(0, 8, 2):
        challenger[k] = CLASSES[(k + 1) % 3]
    sites = pl.Series("site", ["tiny" if k < 8 else name for k, name in enumerate(SITES)])
    ours, theirs = (frame(rows).with_columns(sites) for rows in (challenger, spoil(0.3, rows=range(8, 240))))
    found = finding(decide(Context(create_domain(), ours, theirs, 1, **FACTS)), "slices")
    assert found.verdict == "PROMOTE"
    assert "on too few groups to know more: site=tiny -50.0 points (interval not known, 2 groups)" in found.reason
    assert "To watch" not in found.reason


def test_a_class_at_chance_is_named() -> None:
    """In the reason, and with its numbers in a warning; the others are not."""
    guesses = [CLASSES[k % 2] if name == "red" else name for k, name in enumerate(TRUTH)]  # never right
    decision = decide(context(guesses))
    assert decision.verdict == "PROMOTE"
    assert decision.reason.endswith("Not surely better than guessing: red.")
    (warning,) = decision.warnings
    assert warning.startswith("Class red: recall 0.0 % (between 0.0 % and ")
    assert warning.endswith("on 80 test images, not surely better than guessing among 3, 33.3 %.")
    assert decide(context(spoil(0.1))).warnings == ()


def test_a_class_of_few_groups_or_none_is_named() -> None:
    one = context(spoil(0.0))
    few = one.challenger.filter((pl.col("label") != "red") | (pl.col("group") < "lot02"))
    decision = decide(replace(one, challenger=few))
    assert decision.warnings == (
        "Class red: recall 100.0 % (interval not known, 2 groups) on 2 test images, too few groups to know whether "
        "that is better than guessing.",
    )
    assert "guessing: red" not in decision.reason
    wrong = few.with_columns(predicted=pl.when(pl.col("label") == "red").then(pl.lit("dark")).otherwise("predicted"))
    assert decide(replace(one, challenger=wrong)).reason.endswith("Not surely better than guessing: red.")
    none = one.challenger.filter(pl.col("label") != "red")
    assert decide(replace(one, challenger=none)).warnings == ("Class red: no test image, so nothing is known of it.",)


def test_a_person_must_agree_where_the_domain_asks() -> None:
    one = context(spoil(0.0), approval=True, use=("floor",))
    held = decide(one)
    assert held.verdict == "HOLD"
    assert "`tessera approve tiny 3 --by NAME --reason WHY`" in held.reason
    agreed = decide(replace(one, approved="ada: looked at the mistakes"))
    assert agreed.verdict == "PROMOTE"
    assert finding(agreed, "approval").reason == "Approved by ada: looked at the mistakes."
    refused = decide(replace(context(spoil(0.1), approval=True, floor=0.99), approved="ada: it will do"))
    assert refused.verdict == "REJECT"
    assert refused.reason.endswith("Approved by ada: it will do, in vain.")
