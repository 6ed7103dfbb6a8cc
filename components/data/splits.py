"""Permanent splits: every group is assigned to a split once, and data/<domain>/splits.csv remembers it.

The file is committed beside raw.dvc, with one line per image (the first digits of its sha256). A split is therefore
versioned with its images, readable in a diff, and the same on a fresh clone. An image in the file never moves to
another split: not when images are added, not when new images join or connect old groups, not when shares or seed
change; shares and seed apply to new groups only. Lines of removed images stay, in case the images return.

A new group takes the split of the images that it is near to. Groups without such images are assigned in the order of a
hash of seed and name, those with the rarest classes first, each to the split in which its classes lack most: as
stratified as groups allow. An image that is near to groups in two different splits is excluded from both and reported.
If old images turn out to be near to each other across splits, the image in the less protected split is excluded: test
is protected more than validation, validation more than training. With `split: given`, a new image takes the split that
the tree or table names; an image of train that is near to one of test is excluded.

In this module `sides` maps a content to the name of its split, because `split` is the section of domain.yaml.
"""

import csv
import hashlib
import io
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from components.data.checks.duplicates import Pair, join_groups
from components.data.manifest import SPLITS
from components.data.sample_keys import content_of
from components.domain.domain import Domain
from components.domain.settings import Split
from components.errors import CheckFailed, DataError
from components.files import write_whole
from components.tasks.base import by_class

EXCLUDED = "none"
GUARD = {"test": 3, "val": 2, "train": 1, EXCLUDED: 0}
DIGITS = 16  # of a sha256: two of a million images share them with a probability of one in ten million
HEAD = ("content", "group", "split")
OFF = 0.05  # share of the images by which a split may miss its share without a warning
RECALL, WIDTH = 0.9, 0.3  # a class has enough test groups if the interval of this recall is not wider than this


class Line(NamedTuple):
    """What splits.csv stores for a content: its group if a column names it (lot, patient), else '', and its split."""

    group: str
    split: str


@dataclass(frozen=True)
class Excluded:
    """An image that may be in no split, and why."""

    path: str
    reason: str


GIVEN_HINT = (
    "Remove `split: given` from domain.yaml and remove splits.csv: then Tessera splits by groups. Or add images of the "
    "class to the splits that lack it."
)

Memory = Mapping[str, Line]  # the content of splits.csv, by the first digits of the content's sha256


@dataclass(frozen=True)
class Assigned:
    """frame: valid.parquet with the column `split`, without excluded images; each of its groups is in one split.

    memory: the new content of splits.csv.
    """

    frame: pl.DataFrame
    excluded: tuple[Excluded, ...]
    memory: Memory


def assign_splits(
    frame: pl.DataFrame,
    named: Sequence[str | None],
    pairs: Sequence[Pair],
    memory: Memory,
    split: Split,
    given: Mapping[str, str] | None = None,
) -> Assigned:
    """Assign every row of valid.parquet to a split.

    named: the group of each row as a column names it, None without one. pairs: near duplicates, by content. memory: the
    content of splits.csv. given: the published split of every content, which is kept; if no content is in val, groups
    of train are drawn for it.

    Raises DataError if `memory` contradicts `given`.
    """
    contents = [content_of(identity) for identity in frame["id"]]
    groups = dict(zip(contents, (group or "" for group in named), strict=True))
    near = [pair for pair in pairs if pair[0] in groups and pair[1] in groups]
    sides = {content: memory[content[:DIGITS]].split for content in groups if content[:DIGITS] in memory}
    paths = dict(zip(contents, frame["path"], strict=True))
    carve = _keep_given(sides, {content: given[content] for content in groups}, paths) if given else None
    reasons = _part_old(sides, groups, near, paths)
    for content in carve or ():
        if sides[content] == "train":
            del sides[content]  # assigned below to train or val
    fresh = _place_new(sides, groups, near, memory, reasons)
    for content in carve or ():
        if sides.get(content) == "test":  # a remembered image of its group is in test
            sides[content], reasons[content] = EXCLUDED, "it is given to train, and its group is in test"
    choices = SPLITS if carve is None else ("train", "val")
    labels = defaultdict[str, set[str]](set)
    for identity, label in by_class(frame).select("id", "label").iter_rows():
        labels[content_of(identity)].add(label)
    for content in contents:
        labels[content] = labels[content] or {""}  # a multilabel picture may have no label
    for members, side in _stratify(fresh, _name_groups(sides, groups, near), sides, labels, split, choices):
        sides |= dict.fromkeys(members, side)
    joined = _name_groups(sides, groups, near)
    placed = frame.with_columns(
        pl.Series("group", [joined[content] for content in contents], dtype=pl.String),
        pl.Series("split", [sides[content] for content in contents], dtype=pl.String),
    )
    excluded = [Excluded(path, reasons.get(content, "it was excluded before")) for path, content, side in
                zip(frame["path"], contents, placed["split"], strict=True) if side == EXCLUDED]  # fmt: skip
    lines = {content[:DIGITS]: Line(groups[content], side) for content, side in sides.items()}
    return Assigned(placed.filter(pl.col("split") != EXCLUDED), tuple(dict.fromkeys(excluded)), {**memory, **lines})


def list_given(rows: pl.DataFrame) -> dict[str, str]:
    """The split that rows.parquet names for each content; for a content in several splits, the most protected one."""
    given: dict[str, str] = {}
    for identity, side in rows.filter(pl.col("problem").is_null()).select("id", "given").drop_nulls().iter_rows():
        content = content_of(identity)
        given[content] = max(side, given.get(content, side), key=GUARD.__getitem__)
    return given


def _keep_given(sides: dict[str, str], given: Mapping[str, str], paths: Mapping[str, str]) -> list[str] | None:
    """Add new contents to `sides` with the split that the tree names; return those of train that may become val.

    Returns None if the tree names a val, so that none is drawn. Raises DataError for an old content in another split.
    """
    carves = "val" not in given.values()
    legal = {
        content: {side, EXCLUDED} | ({"val"} if carves and side == "train" else set())
        for content, side in given.items()
    }
    if wrong := [content for content, side in sides.items() if side not in legal[content]]:
        first = wrong[0]
        raise DataError(
            "split: given",
            expected="the splits that splits.csv remembers, or no splits.csv",
            found=f"{len(wrong):,} images given to other splits, such as {paths[first]}: {given[first]} instead of "
            f"{sides[first]}",
            hint="Remove `split: given` from domain.yaml; or remove splits.csv to use the given split from now on. "
            "Earlier scores can then not be compared with later ones.",
        )
    new = [content for content in given if content not in sides]
    sides |= {content: given[content] for content in new}
    return [content for content in new if given[content] == "train"] if carves else None


def _part_old(
    sides: dict[str, str], groups: Mapping[str, str], near: Sequence[Pair], paths: Mapping[str, str]
) -> dict[str, str]:
    """Exclude old contents that are near to a more protected split (in `sides`); return the reason by content."""
    reasons = {}
    known = defaultdict[str, set[str]](set)
    for content, side in sides.items():
        known[groups[content] or content].add(side)
    best = {group: max(found, key=GUARD.__getitem__) for group, found in known.items()}
    ties = [(a, sides[b], paths[b]) for pair in near if set(pair) <= set(sides) for a, b in (pair, pair[::-1])]
    ties += [(content, best[groups[content] or content], groups[content]) for content in sides]
    before = dict(sides)
    for content, side, what in ties:
        if EXCLUDED not in (before[content], side) and GUARD[before[content]] < GUARD[side]:
            sides[content] = EXCLUDED
            reasons[content] = f"it was in {before[content]} and shows the same as {what}, which is in {side}"
    return reasons


def _place_new(
    sides: dict[str, str],
    groups: Mapping[str, str],
    near: Sequence[Pair],
    memory: Memory,
    reasons: dict[str, str],
) -> list[list[str]]:
    """Add new contents to `sides` if they are near to one split; return the groups that are near to none."""
    lots = defaultdict[str, set[str]](set)
    for line in memory.values():
        if line.group and line.split != EXCLUDED:
            lots[line.group].add(line.split)
    new = sorted(content for content in groups if content not in sides)
    # Images of a lot that has a split take that split; images of a new lot stay together.
    homes = [f"lot {groups[c]}" if groups[c] and groups[c] not in lots else f"content {c}" for c in new]
    place = {content: index for index, content in enumerate(new)}
    joined = join_groups(homes, [(place[a], place[b]) for a, b in near if a in place and b in place])
    members, touched = defaultdict[str, list[str]](list), defaultdict[str, set[str]](set)
    for content, home in zip(new, joined, strict=True):
        members[home].append(content)
        touched[home] |= lots.get(groups[content], set())
    for a, b in (tie for pair in near for tie in (pair, pair[::-1])):
        if a in place and b in sides:
            touched[joined[place[a]]].add(sides[b])
    for home, found in touched.items():
        if found:
            side = next(iter(found)) if len(found) == 1 else EXCLUDED
            sides |= dict.fromkeys(members[home], side)
        if len(found) > 1:
            ties = " and ".join(sorted(found, key=GUARD.__getitem__, reverse=True))
            reasons |= dict.fromkeys(members[home], f"it connects {ties}")
        elif found == {EXCLUDED}:
            reasons |= dict.fromkeys(members[home], "it shows the same as an image that was excluded")
    return [members[home] for home, found in touched.items() if not found]


def _name_groups(sides: Mapping[str, str], groups: Mapping[str, str], near: Sequence[Pair]) -> dict[str, str]:
    """The group of every content with a split. Near contents in one split are one group with its smallest name."""
    placed = list(sides)
    index = {content: number for number, content in enumerate(placed)}
    together = [(a, b) for a, b in near if a in index and b in index and sides[a] == sides[b] != EXCLUDED]
    pairs = [(index[a], index[b]) for a, b in together]
    return dict(zip(placed, join_groups([groups[content] or content for content in placed], pairs), strict=True))


def _stratify(
    fresh: Sequence[Sequence[str]],
    joined: Mapping[str, str],
    sides: Mapping[str, str],
    labels: Mapping[str, set[str]],
    split: Split,
    choices: Sequence[str] = SPLITS,
) -> list[tuple[Sequence[str], str]]:
    """The split of every new group: the one in which its classes lack most of their share of all groups."""
    have = Counter[tuple[str, str]]()
    for _, side, label in {
        (joined[content], side, label) for content, side in sides.items() for label in labels[content]
    }:
        have[label, side] += 1
    classes = [set[str]().union(*(labels[content] for content in members)) for members in fresh]
    totals = Counter(label for found in classes for label in found)
    for (label, side), count in have.items():
        totals[label] += count if side in choices else 0
    wanted = {label: _share(total, split, choices) for label, total in totals.items()}
    order = sorted(
        zip(fresh, classes, strict=True),
        key=lambda item: (min(totals[label] for label in item[1]), _draw(min(item[0]), split.seed)),
    )
    placed = []
    for members, found in order:
        rarest = min(found, key=lambda label: (totals[label], label))
        lack = {
            side: (
                wanted[rarest][side] - have[rarest, side],
                sum((wanted[label][side] - have[label, side]) / totals[label] for label in found),
            )
            for side in choices
        }
        side = max(choices, key=lack.__getitem__)
        have.update((label, side) for label in found)
        placed.append((members, side))
    return placed


def _share(total: int, split: Split, choices: Sequence[str]) -> dict[str, float]:
    """The number of groups of a class that each split should have; at least one, if there are enough groups."""
    floor = 1 if total >= len(choices) else 0
    held = {side: max(floor, getattr(split, side) * total) for side in choices if side != "train"}
    return {"train": total - sum(held.values()), **held}


def _draw(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


# The file


def load_memory(file: Path) -> Memory:
    """Read splits.csv; empty if it does not exist yet. Raises DataError if the file is damaged."""
    if not file.exists():
        return {}
    try:
        rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(file, str(error)) from None
    if not rows or tuple(rows[0]) != HEAD:
        raise _damaged(file, f"the columns {', '.join(rows[0]) if rows else 'of an empty file'}")
    memory: dict[str, Line] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(HEAD) or len(row[0]) != DIGITS or row[2] not in GUARD or row[0] in memory:
            raise _damaged(file, f"line {number}: {','.join(row)[:80]!r}")
        memory[row[0]] = Line(row[1], row[2])
    return memory


def save_memory(memory: Memory, file: Path) -> None:
    """Write splits.csv, sorted by content, so that a diff shows only what was added."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([HEAD, *((content, *memory[content]) for content in sorted(memory))])
    write_whole(file, text.getvalue().encode())


def _damaged(file: Path, found: str) -> DataError:
    return DataError(
        str(file),
        expected=f"one line per image: {', '.join(HEAD)}, each content once, split one of {', '.join(GUARD)}",
        found=found,
        hint="Restore the file from git (`git checkout`). Without it every image is split anew.",
    )


# Whether the splits are large enough


def count_groups(frame: pl.DataFrame, classes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Groups by class and split: `counts["crack"]["test"]`."""
    found = frame.group_by("label", "split").agg(pl.col("group").n_unique()).rows()
    counts = {label: dict.fromkeys(SPLITS, 0) for label in classes}
    for label, side, groups in found:
        counts[label][side] = groups
    return counts


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
        hint=GIVEN_HINT
        if domain.split.given
        else f"Add images from further groups (lots, patients, slides), or remove data/{domain.name}/splits.csv to "
        "split everything anew. Earlier scores can then not be compared with later ones.",
    )


def interval_of(groups: int, recall: float = RECALL, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval (1927) of a recall that was measured on this number of groups; z = 1.96 gives 95 %."""
    centre = (recall + z * z / (2 * groups)) / (1 + z * z / groups)
    half = z / (1 + z * z / groups) * math.sqrt(recall * (1 - recall) / groups + z * z / (4 * groups * groups))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def groups_needed() -> int:
    """The number of test groups at which the interval of a class's recall is no wider than WIDTH."""
    count = 1
    while (ends := interval_of(count))[1] - ends[0] > WIDTH:
        count += 1
    return count


def warn_of_shares(frame: pl.DataFrame, split: Split) -> list[str]:
    """A warning if splits miss their share of the images by more than OFF, as large groups can cause.

    A given split gets no warning.
    """
    if split.given:
        return []
    wanted = {"train": 1 - split.val - split.test, "val": split.val, "test": split.test}
    counts = Counter(frame.unique("id")["split"].to_list())
    whole = max(counts.total(), 1)
    off = {side: share for side, share in wanted.items() if abs(counts[side] / whole - share) > OFF}
    if not off:
        return []
    listed = ", ".join(f"{side} has {counts[side] / whole:.0%} instead of {share:.0%}" for side, share in off.items())
    return [
        f"Splits off their share of the images by more than {OFF * 100:.0f} points: {listed}. Shares count groups, and "
        "groups are not divided: look at the largest groups in the report, or add images from other groups."
    ]


def warn_of_few_groups(counts: Mapping[str, Mapping[str, int]], score: str = "recall") -> list[str]:
    """A warning for classes with too few test groups: images of one group are not independent evidence.

    score: what a class is judged by. The interval is that of a share, which tells the order of any other score's.
    """
    needed = groups_needed()
    few = {label: sides["test"] for label, sides in counts.items() if 0 < sides["test"] < needed}
    if not few:
        return []
    worst = min(few.values())
    low, high = interval_of(worst)
    names = ", ".join(f"{label} {count}" for label, count in few.items())
    known = f"a recall of {RECALL:.0%} is only known to be"
    if score != "recall":
        known = f"{score} of {RECALL:.0%} is known about as well as a share would be,"
    return [
        f"Few groups in test: {names}. With {worst}, {known} between {low:.0%} "
        f"and {high:.0%}; {needed} groups per class narrow that to {WIDTH * 100:.0f} points."
    ]
