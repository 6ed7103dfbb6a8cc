"""Splits last: growing data move nothing, no group straddles two sides, and what ties two sides belongs to neither."""

import hashlib

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import make_domain

from components.data.splits import (
    DIGITS,
    EXCLUDED,
    GUARD,
    Line,
    assign_splits,
    count_groups,
    groups_needed,
    interval_of,
    list_given,
    load_memory,
    require_floors,
    save_memory,
    warn_of_few_groups,
    warn_of_shares,
)
from components.domain.settings import Split
from components.errors import CheckFailed, DataError


def content(name):
    return hashlib.sha256(str(name).encode()).hexdigest()


def frame_of(names, labels="good"):
    labels = [labels] * len(names) if isinstance(labels, str) else labels
    columns = {"id": [content(name) for name in names], "path": [f"{name}.png" for name in names], "label": labels}
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def assign(names, labels="good", lots=None, pairs=(), memory=None, **split):
    pairs = [tuple(sorted((content(a), content(b)))) for a, b in pairs]
    return assign_splits(frame_of(names, labels), lots or [None] * len(names), pairs, memory or {}, Split(**split))


def sides_of(assigned):
    return {path.removesuffix(".png"): side for path, side in assigned.frame.select("path", "split").rows()}


# Growth


@st.composite
def histories(draw):
    """Images in the order they come: a class, perhaps a lot, near duplicates among those before, and versions."""
    count = draw(st.integers(2, 30))
    lots = draw(st.booleans())
    images = [
        (
            draw(st.sampled_from("abc")),
            f"lot{draw(st.integers(0, 5))}" if lots else None,
            draw(st.lists(st.integers(0, number - 1), max_size=2)) if number else [],
        )
        for number in range(count)
    ]
    ends = sorted({*draw(st.lists(st.integers(1, count), max_size=4)), count})
    gone = draw(st.sets(st.integers(0, count - 1), max_size=3))
    return images, ends, gone, draw(st.integers(0, 3))


@settings(max_examples=60)
@given(histories())
def test_nothing_old_moves_no_group_straddles_and_no_test_image_is_ever_trained_on(history):
    images, ends, gone, seed = history
    memory, seen = {}, {}
    for version, end in enumerate(ends):
        there = [number for number in range(end) if version == 0 or number not in gone]  # some are removed later
        pairs = [(number, near) for number in there for near in images[number][2] if near in there]
        assigned = assign(
            there,
            [images[number][0] for number in there],
            [images[number][1] for number in there],
            pairs,
            memory,
            seed=seed + version,
        )
        memory, sides = assigned.memory, sides_of(assigned)
        now = {str(number): sides.get(str(number), EXCLUDED) for number in there}
        assert {name: now[name] for name in seen if name in now} == {name: seen[name] for name in seen if name in now}
        seen |= now
        assert all(EXCLUDED in (now[str(a)], now[str(b)]) or now[str(a)] == now[str(b)] for a, b in pairs)
        assert {item.path.removesuffix(".png") for item in assigned.excluded} == {n for n in now if now[n] == EXCLUDED}
        for column in (assigned.frame["group"], [images[int(name)][1] or name for name in sides]):
            both = pl.DataFrame({"group": column, "split": assigned.frame["split"]})
            assert (both.group_by("group").agg(pl.col("split").n_unique())["split"] <= 1).all()


def test_an_excluded_image_joins_no_groups():
    """It ties two lots, one on each side: they keep names of their own."""
    first = assign(range(4), "a", ["lot0", "lot0", "lot0", "lot4"])
    lots = ["lot4" if number in (3, 8) else "lot0" for number in range(26)]
    grown = assign(range(26), "a", lots, [(25, 8)], first.memory)
    assert {item.path for item in grown.excluded} == {"8.png", "25.png"}
    assert (grown.frame.group_by("group").agg(pl.col("split").n_unique())["split"] == 1).all()


def test_one_import_excludes_nothing_and_is_the_same_in_any_order():
    names = [f"{number:02}" for number in range(40)]
    pairs = [(names[k], names[k + 1]) for k in range(0, 40, 4)]
    first = assign(names, pairs=pairs)
    assert first.excluded == ()
    assert sides_of(assign(names[::-1], pairs=pairs[::-1])) == sides_of(first)


def place(**sides):
    """A memory in which images of these names have these sides."""
    return {content(name)[:DIGITS]: Line("", side) for name, side in sides.items()}


def test_a_new_near_duplicate_takes_the_split_of_the_old_one():
    memory = place(a="train", b="val", c="test")
    assigned = assign(["a", "b", "c", "x", "y"], pairs=[("x", "c"), ("y", "x")], memory=memory)
    assert sides_of(assigned) == {"a": "train", "b": "val", "c": "test", "x": "test", "y": "test"}
    assert assigned.frame.filter(pl.col("split") == "test")["group"].n_unique() == 1


def test_what_ties_train_to_test_belongs_to_neither_and_stays_out():
    memory = place(a="train", c="test")
    bridge = assign(["a", "c", "x", "y"], pairs=[("x", "a"), ("x", "y"), ("y", "c")], memory=memory)
    assert sides_of(bridge) == {"a": "train", "c": "test"}
    assert {(item.path, item.reason) for item in bridge.excluded} == {
        ("x.png", "it connects test and train"),
        ("y.png", "it connects test and train"),
    }
    later = assign(["a", "x", "z"], pairs=[("x", "a"), ("z", "x")], memory=bridge.memory)
    assert sides_of(later) == {"a": "train"}
    assert {item.path for item in later.excluded} == {"x.png", "z.png"}


def test_of_old_neighbours_across_splits_the_less_protected_one_is_excluded():
    assigned = assign(["a", "c"], pairs=[("a", "c")], memory=place(a="train", c="test"))
    assert sides_of(assigned) == {"c": "test"}
    assert assigned.excluded[0].reason == "it was in train and shows the same as c.png, which is in test"


def test_a_lot_that_is_named_later_leaves_the_splits_that_guard_less():
    """A group column that comes after the split may put images of several splits into one lot."""
    memory = place(a="train", b="val", c="test", d="train", e="train", f="val", g="none")
    assigned = assign("abcdefg", lots=["L", "L", "L", "M", "N", "N", "N"], memory=memory)
    assert sides_of(assigned) == {"c": "test", "d": "train", "f": "val"}
    assert {item.path: item.reason for item in assigned.excluded} == {
        "a.png": "it was in train and shows the same as L, which is in test",
        "b.png": "it was in val and shows the same as L, which is in test",
        "e.png": "it was in train and shows the same as N, which is in val",
        "g.png": "it was excluded before",
    }


def test_an_excluded_image_does_not_exclude_the_rest_of_its_lot():
    memory = {content("a")[:DIGITS]: Line("L", "val"), content("b")[:DIGITS]: Line("L", EXCLUDED)}
    assert sides_of(assign(["a", "b", "new"], lots=["L"] * 3, memory=memory)) == {"a": "val", "new": "val"}


def test_a_lot_keeps_its_split_when_all_its_images_are_replaced():
    lots = [f"lot{number % 8}" for number in range(24)]
    first = assign(range(24), lots=lots)
    second = assign(range(100, 124), lots=lots, memory=first.memory)
    before, after = sides_of(first), sides_of(second)
    assert all(after[str(100 + number)] == before[str(number)] for number in range(24))


def test_an_image_that_returns_gets_its_split_again():
    first = assign(range(30))
    second = assign(range(10, 30), memory=first.memory)
    third = assign(range(30), memory=second.memory)
    assert sides_of(third) == sides_of(first)


# Shares


def test_groups_are_stratified_by_class():
    labels = ["common"] * 100 + ["rare"] * 8 + ["rarest"] * 3
    counts = count_groups(assign(range(111), labels).frame, ("common", "rare", "rarest"))
    assert counts == {
        "common": {"train": 60, "val": 15, "test": 25},
        "rare": {"train": 5, "val": 1, "test": 2},
        "rarest": {"train": 1, "val": 1, "test": 1},
    }


def test_groups_of_several_classes_serve_the_rarest_first():
    lots = [f"lot{number // 4:02}" for number in range(80)]
    labels = ["crack" if number % 4 == 0 and number < 20 else "good" for number in range(80)]
    counts = count_groups(assign(range(80), labels, lots).frame, ("good", "crack"))
    assert all(counts["crack"].values())
    assert counts["good"] == {"train": 12, "val": 3, "test": 5}


def test_excluded_images_are_no_groups_to_be_shared_out():
    """Four groups, beside many excluded images of their class: one each in val and test, as without those."""
    gone = [f"gone{number}" for number in range(40)]
    assigned = assign([*gone, *"abcd"], memory=place(**dict.fromkeys(gone, EXCLUDED)))
    assert sorted(sides_of(assigned).values()) == ["test", "train", "train", "val"]


def test_seed_decides_who_and_shares_decide_how_many():
    one, two = sides_of(assign(range(100))), sides_of(assign(range(100), seed=1))
    assert one != two
    assert sorted(one.values()) == sorted(two.values())
    assert list(sides_of(assign(range(100), test=0.4)).values()).count("test") == 40


def test_splits_are_pinned():
    """A change of these is a change of every split that is made anew."""
    assert "".join(side[1] for side in sides_of(assign(range(24))).values()) == "aaeerreerrraerrrrrrerarr"


def test_a_class_that_misses_a_split_is_named():
    domain = make_domain()
    assigned = assign(range(42), ["good"] * 40 + ["cracked"] * 2)
    with pytest.raises(CheckFailed, match=r"class 'cracked' has no group in .*2 groups in all.*splits\.csv"):
        require_floors(assigned.frame, domain)
    require_floors(assign(range(43), ["good"] * 40 + ["cracked"] * 3).frame, domain)


# The file


def test_the_file_comes_back_as_it_was_and_a_version_adds_lines_only(tmp_path):
    lots = [f'lot "{number % 5}", north' for number in range(40)]
    first = assign(range(20), lots=lots[:20])
    save_memory(first.memory, tmp_path / "splits.csv")
    before = (tmp_path / "splits.csv").read_text().splitlines()
    assert load_memory(tmp_path / "splits.csv") == first.memory
    save_memory(assign(range(40), lots=lots, memory=first.memory).memory, tmp_path / "splits.csv")
    after = (tmp_path / "splits.csv").read_text().splitlines()
    assert [line for line in after if line in set(before)] == before
    assert load_memory(tmp_path / "missing.csv") == {}


def test_the_format_of_the_file_is_pinned(tmp_path):
    """It is committed beside the data: 16 digits of each sha256, sorted, and a lot where one is named."""
    memory = {"fedcba9876543210": Line("", "test"), "0123456789abcdef": Line("lot, 7", "train")}
    save_memory(memory, tmp_path / "splits.csv")
    text = 'content,group,split\n0123456789abcdef,"lot, 7",train\nfedcba9876543210,,test\n'
    assert (tmp_path / "splits.csv").read_bytes() == text.encode()
    assert load_memory(tmp_path / "splits.csv") == memory
    assert list(assign(["a"], memory={}).memory) == ["ca978112ca1bbdca"]  # sha256 of "a" as every tool computes it


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "the columns of an empty file"),
        ("content,split\n", "the columns content, split"),
        ("content,group,split\n0123456789abcdef,,dev\n", "line 2: '0123456789abcdef,,dev'"),
        ("content,group,split\n0123456789abcdef,,val\n0123,,test\n", "line 3: '0123,,test'"),
        ("content,group,split\n0123456789abcdef,test\n", "line 2: '0123456789abcdef,test'"),
        (
            "content,group,split\n0123456789abcdef,,test\n0123456789abcdef,,train\n",
            "line 3: '0123456789abcdef,,train'",
        ),
        ("<<<<<<< HEAD\ncontent,group,split\n", "the columns <<<<<<< HEAD"),
        ('content,group,split\n0123456789abcdef,"lot,test\n', "unexpected end of data"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, found):
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(DataError, match=f"found {found}.*git checkout"):
        load_memory(tmp_path / "splits.csv")


# What the sides are worth


def test_intervals_are_wilsons():
    low, high = interval_of(10, 0.9)  # 9 of 10, as tables have it
    assert (low, high) == (pytest.approx(0.596, abs=1e-3), pytest.approx(0.982, abs=1e-3))


def test_too_few_test_groups_are_reported_with_how_many_are_needed():
    needed = groups_needed()
    assert (
        interval_of(needed)[1] - interval_of(needed)[0] <= 0.3 < interval_of(needed - 1)[1] - interval_of(needed - 1)[0]
    )
    told = warn_of_few_groups({"good": {"test": needed}, "crack": {"test": 5}})
    assert len(told) == 1
    assert "crack 5" in told[0]
    assert f"{needed} groups per class" in told[0]
    assert warn_of_few_groups({"good": {"test": needed}}) == []


def test_how_many_groups_decide_a_class():
    assert groups_needed() == 17
    assert interval_of(1) == (pytest.approx(0.1677, abs=1e-4), pytest.approx(0.9975, abs=1e-4))
    assert interval_of(17) == (pytest.approx(0.6779, abs=1e-4), pytest.approx(0.9747, abs=1e-4))
    assert warn_of_few_groups({"good": {"test": 0}, "crack": {"test": 17}}) == []
    (told,) = warn_of_few_groups({"good": {"test": 10}, "crack": {"test": 5}})
    assert "good 10, crack 5" in told
    assert "With 5, a recall of 90% is only known to be between 46% and 99%" in told
    (told,) = warn_of_few_groups({"good": {"test": 10}, "crack": {"test": 5}}, "AP50")
    assert "With 5, AP50 of 90% is known about as well as a share would be, between 46% and 99%" in told


def test_every_split_has_its_rank():
    assert sorted(GUARD, key=GUARD.__getitem__) == [EXCLUDED, "train", "val", "test"]


# A given split


def assign_given(given, memory=None, pairs=(), lots=None, **split):
    names = list(given)
    pairs = [tuple(sorted((content(a), content(b)))) for a, b in pairs]
    sides = {content(name): side for name, side in given.items()}
    return assign_splits(frame_of(names), lots or [None] * len(names), pairs, memory or {}, Split(**split), sides)


GIVEN = {f"{side}{number}": side for side in ("train", "val", "test") for number in range(12)}
NO_VAL = {name: side for name, side in GIVEN.items() if side != "val"}


def test_a_given_split_is_kept_as_it_stands():
    assigned = assign_given(GIVEN)
    assert sides_of(assigned) == GIVEN
    assert assigned.excluded == ()


def test_what_is_given_to_two_splits_leaves_the_less_protected_one():
    assigned = assign_given(GIVEN, pairs=[("train0", "test0"), ("val1", "test1"), ("train2", "val2")])
    assert {item.path for item in assigned.excluded} == {"train0.png", "val1.png", "train2.png"}
    assert "shows the same as test0.png, which is in test" in next(iter(assigned.excluded)).reason
    lots = ["L" if name in ("train5", "test5") else None for name in GIVEN]
    assert {item.path for item in assign_given(GIVEN, lots=lots).excluded} == {"train5.png"}


@pytest.mark.parametrize("seed", range(5))
def test_a_missing_val_is_drawn_from_train_alone_by_groups_and_remembered(seed):
    lots = [f"lot{name[-1]}" if side == "train" else None for name, side in NO_VAL.items()]
    assigned = assign_given(NO_VAL, pairs=[("train3", "test3")], lots=lots, seed=seed)
    sides = sides_of(assigned)
    assert {name for name, side in sides.items() if side == "test"} == {
        n for n, side in NO_VAL.items() if side == "test"
    }
    drawn = {name for name, side in sides.items() if side == "val"}
    assert drawn
    assert drawn < {name for name, side in NO_VAL.items() if side == "train"}
    lot = dict(zip(NO_VAL, lots, strict=True))
    assert not {lot[name] for name in drawn} & {lot[name] for name, side in sides.items() if side == "train"}
    assert "train3" not in sides
    assert sides_of(assign_given(NO_VAL, assigned.memory, [("train3", "test3")], lots, seed=seed + 1)) == sides


def test_a_given_split_that_contradicts_what_is_remembered_is_refused():
    memory = assign_given(GIVEN).memory
    with pytest.raises(DataError, match=r"1 images given to other splits, such as train0.png: test instead of train"):
        assign_given(GIVEN | {"train0": "test"}, memory)
    with pytest.raises(DataError, match=r"such as val0.png: train instead of val"):
        assign_given(GIVEN | {"val0": "train"}, memory)  # others are in val, so that none is drawn from train
    drawn = assign_given(NO_VAL).memory
    with pytest.raises(DataError, match=r"such as test0.png: test instead of val"):
        assign_given(NO_VAL, drawn | {content("test0")[:DIGITS]: Line("", "val")})
    moved = next(name for name in NO_VAL if drawn[content(name)[:DIGITS]].split == "val")
    assert sides_of(assign_given(NO_VAL, drawn))[moved] == "val"  # given to train, and drawn for val before


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((60, 15, 25), ""),
        ((60, 19, 21), ""),  # four points
        ((50, 25, 25), "train has 50% instead of 60%, val has 25% instead of 15%"),
        ((60, 6, 34), "val has 6% instead of 15%, test has 34% instead of 25%"),
    ],
)
def test_a_split_far_from_its_share_of_the_images_is_warned_of(counts, told):
    sides = [side for side, count in zip(("train", "val", "test"), counts, strict=True) for _ in range(count)]
    frame = pl.DataFrame({"id": [str(number) for number in range(100)], "split": sides})
    assert told in "".join(warn_of_shares(frame, Split()))
    assert bool(told) == bool(warn_of_shares(frame, Split()))
    assert warn_of_shares(frame, Split(given=True)) == []


def test_of_a_content_in_several_given_splits_the_most_protected_one_counts():
    rows = [("a", "train", None), ("a#0,0,8,8", "test", None), ("b", "val", None), ("b", "train", None)]
    rows += [("c", "train", None), ("c", "test", "damaged"), ("d", None, None)]
    rows = [(content(name[0]) + name[1:], side, problem) for name, side, problem in rows]
    frame = pl.DataFrame(rows, schema={"id": pl.String, "given": pl.String, "problem": pl.String}, orient="row")
    assert list_given(frame) == {content("a"): "test", content("b"): "val", content("c"): "train"}


def test_what_is_given_to_train_leaves_it_where_its_lot_is_remembered_in_test():
    """Where no val is given, groups of train are drawn for it: a lot whose old images are in test gives none."""
    memory = {content("old")[:DIGITS]: Line("L", "test")}
    names = {"old": "test", "new": "train", "a": "train", "b": "train", "c": "train"}
    assigned = assign_given(names, memory, lots=["L", "L", None, None, None])
    assert {item.path: item.reason for item in assigned.excluded} == {
        "new.png": "it was in train and shows the same as L, which is in test"
    }
    assigned = assign_given(
        {name: side for name, side in names.items() if name != "old"}, memory, lots=["L", *[None] * 3]
    )
    assert {item.path: item.reason for item in assigned.excluded} == {
        "new.png": "it is given to train, and its group is in test"
    }
    assert sorted(sides_of(assigned).values()) == ["train", "train", "val"]


@pytest.mark.parametrize(
    ("split", "hint"), [({}, "remove data/tiles/splits.csv"), ({"given": True}, "Remove `split: given`")]
)
def test_what_to_do_about_a_class_that_misses_a_split(split, hint):
    with pytest.raises(CheckFailed) as caught:
        require_floors(assign(range(2)).frame, make_domain(split=split))
    assert hint in caught.value.hint
