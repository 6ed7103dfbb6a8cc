"""Splits last: growing data move nothing, and a group never straddles two sides."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import make_domain

from components.data.splits import assign_splits, count_groups, find_seed, require_floors, side_of
from components.domain import Split
from components.errors import CheckFailed

groups = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40)


def frame_of(names, label="good"):
    return pl.DataFrame(
        {"group": names, "label": [label] * len(names)}, schema={"group": pl.String, "label": pl.String}
    )


@given(old=groups, new=groups, seed=st.integers(0, 5))
def test_adding_groups_moves_nothing_and_no_group_straddles(old, new, seed):
    split = Split(seed=seed)
    before = assign_splits(frame_of(old), split)
    after = assign_splits(frame_of([*new, *old]), split)
    assert after.tail(len(old))["split"].to_list() == before["split"].to_list()
    assert (after.group_by("group").agg(pl.col("split").n_unique())["split"] == 1).all()


def test_sides_are_pinned():
    """A change of these is a change of every split anybody ever made."""
    split = Split(val=0.15, test=0.25, seed=0)
    assert "".join(side_of(f"lot{number:03d}", split)[1] for number in range(24)) == "rrrerrrrrrrrrrrrrerrrrrr"


def test_shares_are_kept_on_average():
    split = Split(val=0.2, test=0.3)
    sides = [side_of(str(number), split) for number in range(4000)]
    assert sides.count("test") / 4000 == pytest.approx(0.3, abs=0.03)
    assert sides.count("val") / 4000 == pytest.approx(0.2, abs=0.03)


def test_raising_the_test_share_takes_no_image_out_of_test():
    names = [str(number) for number in range(500)]
    small = {name for name in names if side_of(name, Split(test=0.2)) == "test"}
    large = {name for name in names if side_of(name, Split(test=0.3)) == "test"}
    assert small < large


def test_a_class_that_misses_a_split_is_named_with_a_seed_that_serves():
    domain = make_domain()
    few = [f"g{number}" for number in range(4)]
    frame = pl.concat([frame_of([f"h{n}" for n in range(60)]), frame_of(few, "cracked")])
    unlucky = next(s for s in range(99) if {side_of(name, Split(seed=s)) for name in few} != {"train", "val", "test"})
    domain = make_domain(split={"seed": unlucky})
    with pytest.raises(CheckFailed, match=r"class 'cracked' has no group in .*4 groups in all") as caught:
        require_floors(assign_splits(frame, domain.split), domain)
    seed = find_seed({"good": {f"h{n}" for n in range(60)}, "cracked": set(few)}, domain.split)
    assert f"`split.seed: {seed}`" in str(caught.value)
    mended = make_domain(split={"seed": seed})
    assigned = assign_splits(frame, mended.split)
    require_floors(assigned, mended)
    assert all(count_groups(assigned, mended.classes)["cracked"].values())


def test_no_seed_helps_a_class_of_two_groups():
    assert find_seed({"good": {"a", "b", "c", "d"}, "cracked": {"a", "b"}}, Split()) is None
