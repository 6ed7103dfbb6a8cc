"""Splits by hash of the group: an image keeps its side for as long as its group keeps its name.

Each group draws one number in [0, 1) from sha256 of `seed:group`; the first `test` share of that range is the
test split, the next `val` share the validation split. Nothing depends on which other groups there are, so data
may grow without moving what is there: a test image of last year is never trained on this year. The price is
that the shares are kept on average only, and that a class of few groups may miss a split. Then `require_floors`
says so and names a seed that serves all classes; changing the seed is a decision, which the file records.
"""

import hashlib
from collections.abc import Mapping

import polars as pl

from components.data.manifest import SPLITS
from components.domain import Domain, Split
from components.errors import CheckFailed

SEEDS_TRIED = 1000


def assign_splits(frame: pl.DataFrame, split: Split) -> pl.DataFrame:
    """The frame with a column `split`."""
    sides = {group: side_of(group, split) for group in frame["group"].unique().to_list()}
    return frame.with_columns(pl.col("group").replace_strict(sides, return_dtype=pl.String).alias("split"))


def side_of(group: str, split: Split) -> str:
    """The split of one group, by itself alone."""
    digest = hashlib.sha256(f"{split.seed}:{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < split.test else "val" if place < split.test + split.val else "train"


def count_groups(frame: pl.DataFrame, classes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Groups by class and split: `counts["crack"]["test"]`."""
    found = frame.group_by("label", "split").agg(pl.col("group").n_unique()).rows()
    counts = {label: dict.fromkeys(SPLITS, 0) for label in classes}
    for label, side, groups in found:
        counts[label][side] = groups
    return counts


def find_seed(groups: Mapping[str, set[str]], split: Split) -> int | None:
    """The smallest seed that gives every class a group in every split, None when none of the first ones does."""
    rarest_first = sorted(groups.values(), key=len)
    if len(rarest_first[0]) < len(SPLITS):
        return None
    for seed in range(SEEDS_TRIED):
        trial = split.model_copy(update={"seed": seed})
        if all(len({side_of(group, trial) for group in members}) == len(SPLITS) for members in rarest_first):
            return seed
    return None


def require_floors(frame: pl.DataFrame, domain: Domain) -> None:
    """Raise CheckFailed unless every class has a group in every split."""
    counts = count_groups(frame, domain.classes)
    gaps = [
        f"class {label!r} has no group in {' and '.join(missing)} ({sum(sides.values())} groups in all)"
        for label, sides in counts.items()
        if (missing := [name for name in SPLITS if not sides[name]])
    ]
    if not gaps:
        return
    raise CheckFailed(
        f"split of {domain.name}",
        expected="at least one group of every class in train, val and test",
        found="; ".join(gaps),
        mend="Add images from further groups (lots, patients, slides), or change `split` in domain.yaml."
        + _advise_seed(frame, domain),
    )


def _advise_seed(frame: pl.DataFrame, domain: Domain) -> str:
    groups = {label: set(frame.filter(pl.col("label") == label)["group"].to_list()) for label in domain.classes}
    seed = find_seed(groups, domain.split)
    if seed is None:
        return f" None of the first {SEEDS_TRIED} seeds serves every class with these shares."
    return f" `split.seed: {seed}` serves every class, but moves images that were placed before."
