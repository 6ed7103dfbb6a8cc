"""Near duplicates: the same thing photographed, saved, turned, cut or exposed again. They must be in one split.

Candidates are found cheaply, and a pair counts only if `matching` confirms it on both pictures. There are two kinds of
candidates: look-alikes, whose thumbnails match in one of eight orientations, and neighbours, the nearest pictures in a
frozen backbone's feature space. Neighbours are tried a few ranks at a time; a picture that has a duplicate tries more.

What all pictures of a set share does not make duplicates. For a common fixture or background, the agreement of
arbitrary pairs is measured first, and a pair must exceed it. For a repeated design, a pair must agree in what `designs`
cannot predict from other pictures of that design.

The result depends only on the pictures and on `bits`: a search of a set that grew, or one that was killed and
restarted, finds the same as a search from the start. Comparisons and answers from an earlier search are reused.
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from components.data.checks.designs import Designs
from components.data.checks.look_alikes import CHUNK, POINTS, LookAlike, find_alike_parts, find_look_alikes
from components.data.checks.matching import MIN_AGREEMENT, Fit, Match, Sketch, match_sketches, match_turned

Result = TypeVar("Result")
Pair = tuple[str, str]  # contents, the smaller first

RANKS, ROUNDS = 3, 4  # neighbours per round, and number of rounds
ARBITRARY = 96  # number of arbitrary pairs that measure what any two pictures share
MIN_REMAINING = 0.8  # share of cells in which duplicates agree beyond their design; no pair of 162 solar cells did
CERTAIN = 0.95  # remaining agreement above which two pictures show one part, not two parts cut from one piece
KEEP_EVERY = 10_000  # comparisons between two calls of `keep`
SKETCHES = 7_000  # number of sketches kept in memory, 0.12 MB each


class Look(NamedTuple):
    """One comparison: two contents, the smaller first, and the orientation of the second picture, or POINTS."""

    first: str
    second: str
    turn: int


class Question(NamedTuple):
    """Asks how much two pictures agree beyond the design that they share: their contents, and a name for what predicts
    the design."""

    here: str
    there: str
    strangers: str


Looks = Mapping[Look, Match]
Answers = Mapping[Question, float | None]  # None if no design is shared


@dataclass(frozen=True)
class Found:
    """All comparisons, all answers, and the near duplicates with their agreement beyond a shared design (None if no
    design is shared).

    among: the name of the pictures and bits if the search was completed, else None.
    """

    looks: Looks = field(default_factory=dict)
    near: Mapping[Pair, float | None] = field(default_factory=dict)
    among: str | None = None
    answers: Answers = field(default_factory=dict)


NOTHING = Found()


def is_certain(remaining: float | None) -> bool:
    """Whether near duplicates certainly show one thing. Parts of one design may also be sisters, cut from one piece."""
    return remaining is None or remaining >= CERTAIN


class Pictures(NamedTuple):
    """Pictures by content, sorted: thumbnails (N, THUMBNAIL, THUMBNAIL), features (N, D), and how to read a picture."""

    contents: Sequence[str]
    greys: NDArray[np.float32]
    features: NDArray[np.float32]
    read: Callable[[int], NDArray[np.uint8]]


def name_search(contents: Sequence[str], bits: int) -> str:
    """A name for everything that the result depends on, except the code."""
    return hashlib.sha256("\n".join([str(bits), *contents]).encode()).hexdigest()[:16]


def find_near_duplicates(
    pictures: Pictures, bits: int, known: Found = NOTHING, keep: Callable[[Found], None] = lambda found: None
) -> Found:
    """Find near duplicates; a candidate pair is compared only if it could join two groups.

    known: the result of an earlier search, of these or other pictures. keep: is called now and then with the result so
    far, in case the process ends early.
    """
    among = name_search(pictures.contents, bits)
    if known.among == among:
        return known
    directions = standardise(pictures.features)
    search = _Search(pictures, known, keep)
    search.measure_shared()
    search.look(find_look_alikes(pictures.greys, bits))
    search.look_around(directions)
    search.look(find_alike_parts(pictures.greys, sorted(search.repeated), RANKS))
    return Found(search.looks, search.near, among, search.answers)


class _Search:
    """The state of a search: the comparisons so far, and the pictures that they join."""

    def __init__(self, pictures: Pictures, known: Found, keep: Callable[[Found], None]) -> None:
        self.names, self.known, self.keep = pictures.contents, known, keep
        self.looks: dict[Look, Match] = {}
        self.answers: dict[Question, float | None] = {}
        self.near: dict[Pair, float | None] = {}
        self.refused: set[Pair] = set()
        self.needed: float = np.inf  # no pair is joined before `measure_shared` has set the threshold
        self.parent = list(range(len(pictures.contents)))
        self.related: set[int] = set()
        self.repeated: set[int] = set()  # pictures whose design others share
        self.sketch: Callable[[int], Sketch] = lru_cache(SKETCHES)(lambda index: Sketch(pictures.read(index)))
        self.designs = Designs(pictures.contents, pictures.greys, pictures.features, self.sketch)

    def measure_shared(self) -> None:
        """Measure the agreement of arbitrary pairs. A duplicate must exceed it by half of the distance that is left."""
        arbitrary = [LookAlike(i, j, POINTS) for i, j in pairwise(range(min(len(self.names), ARBITRARY + 1)))]
        matches = self._match(arbitrary)
        # The median is safe: even if nine pictures form three groups, only a third of all pairs are duplicates.
        shared = float(np.median([match.agreement for match in matches] or [0]))
        self.needed = max(MIN_AGREEMENT, (1 + shared) / 2)
        self._join(dict(zip(arbitrary, matches, strict=True)))

    def look_around(self, directions: NDArray[np.float32]) -> None:
        """Compare every picture with its RANKS nearest; those with duplicates also with further ones, in rounds."""
        nearest = dict[int, list[int]]()
        for reach in range(RANKS, RANKS * ROUNDS + 1, RANKS):
            rows = range(len(self.names)) if reach == RANKS else sorted(self.related)
            missing = [row for row in rows if row not in nearest]
            nearest |= zip(missing, find_neighbours(directions, missing, RANKS * ROUNDS).tolist(), strict=True)
            pairs = {(min(row, other), max(row, other)) for row in rows for other in nearest[row][:reach]}
            self.look([LookAlike(i, j, POINTS) for i, j in sorted(pairs)])

    def look(self, candidates: Sequence[LookAlike]) -> None:
        """Match the candidates whose pictures are not joined yet: by points, else in the thumbnails' orientation."""
        apart = [each._replace(turn=POINTS) for each in candidates if self.root(each.i) != self.root(each.j)]
        best = dict(zip(apart, self._match(apart), strict=True))
        turned = [each for each in candidates if each.turn != POINTS]
        turned = [
            each for each in turned if (match := best.get(each._replace(turn=POINTS))) and match.agreement < self.needed
        ]
        for each, match in zip(turned, self._match(turned), strict=True):
            pair = each._replace(turn=POINTS)
            best[pair] = max(best[pair], match, key=lambda one: one.agreement)
        self._join(best)

    def root(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def _match(self, looks: Sequence[LookAlike]) -> list[Match]:
        """The match of each candidate; known matches are reused."""
        keys = [self._name(each) for each in looks]
        self.looks |= {key: self.known.looks[key] for key in keys if key in self.known.looks}
        new = [each for each, key in zip(looks, keys, strict=True) if key not in self.looks]
        new = keep_close(new, len(self.names))
        for start in range(0, len(new), KEEP_EVERY):
            part = new[start : start + KEEP_EVERY]
            self.looks |= zip(map(self._name, part), _run(self._compare, part), strict=True)
            self.keep(Found({**self.known.looks, **self.looks}, answers={**self.known.answers, **self.answers}))
        return [self.looks[key] for key in keys]

    def _name(self, each: LookAlike) -> Look:
        return Look(self.names[each.i], self.names[each.j], each.turn)

    def _compare(self, each: LookAlike) -> Match:
        first, second = self.sketch(each.i), self.sketch(each.j)
        return match_sketches(first, second) if each.turn == POINTS else match_turned(first, second, each.turn)

    def _join(self, best: Mapping[LookAlike, Match]) -> None:
        """Join the pairs that agree; if they share a design, they must also agree beyond it.

        Pairs are joined after all are measured, so that neither the order nor the number of threads matters.
        """
        agreed = [each for each, match in best.items() if match.agreement >= self.needed]
        agreed = [each for each in agreed if (self.names[each.i], self.names[each.j]) not in self.refused]
        agreed = keep_close(agreed, len(self.names))
        roots = [self.root(index) for index in range(len(self.names))]

        def ask(each: LookAlike) -> dict[Question, float | None]:
            fit = np.array(best[each].fit).reshape(3, 3)
            return self._ask(each.i, each.j, fit, roots) | self._ask(each.j, each.i, np.linalg.inv(fit), roots)

        for each, answers in zip(agreed, _run(ask, agreed), strict=True):
            self.answers |= answers
            shares = [share for share in answers.values() if share is not None]
            remaining = float(np.mean(shares)) if shares else None
            pair = self.names[each.i], self.names[each.j]
            if remaining is not None:
                self.repeated |= {each.i, each.j}
            if remaining is not None and remaining < MIN_REMAINING:
                self.refused.add(pair)
                continue
            self.near[pair] = remaining
            self.related |= {each.i, each.j}
            self.parent[self.root(each.i)] = self.root(each.j)

    def _ask(self, here: int, there: int, fit: Fit, roots: Sequence[int]) -> dict[Question, float | None]:
        """The agreement of two pictures beyond a design that they may share; known answers are reused."""

        def is_related(other: int) -> bool:
            return roots[other] in (roots[here], roots[there])

        question = Question(self.names[here], self.names[there], self.designs.name(here, fit, is_related))
        if question in self.known.answers:
            return {question: self.known.answers[question]}
        return {question: self.designs.measure(here, there, fit, is_related)}


def _run(work: Callable[[LookAlike], Result], items: Sequence[LookAlike]) -> list[Result]:
    """Run `work` on every item, with one thread per core."""
    # OpenCV and numpy release the GIL. Further BLAS threads would only wait for one another and keep the cores busy.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, items))


def keep_close(pairs: Sequence[LookAlike], count: int) -> list[LookAlike]:
    """The pairs among `count` pictures, ordered so that the pairs of one picture follow one another closely.

    Each picture is then sketched only once, however many pictures there are. The order follows the narrowest band of
    the pairs' graph (Cuthill and McKee 1969, https://doi.org/10.1145/800195.805928).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    if not pairs:
        return []
    i, j, _ = np.array(pairs).T
    joined = coo_array((np.ones(2 * len(i)), (np.r_[i, j], np.r_[j, i])), shape=(count, count)).tocsr()
    place = np.argsort(reverse_cuthill_mckee(joined, symmetric_mode=True))
    ends = np.sort(place[np.stack([i, j])], axis=0)
    return [pairs[index] for index in np.lexsort(ends[::-1])]


def standardise(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features (N, D), each standardised over the set, then rows scaled to unit length."""
    if not len(features):
        return features
    spread = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    return np.asarray(spread / np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def find_neighbours(directions: NDArray[np.float32], rows: Sequence[int], count: int) -> NDArray[np.int64]:
    """Indices (len(rows), count) of the nearest vectors to each row, by cosine among (N, D) vectors of unit length."""
    count = max(min(count, len(directions) - 1), 0)
    found = np.zeros((len(rows), count), np.int64)
    for start in range(0, len(rows) if count else 0, CHUNK):
        part = np.asarray(rows[start : start + CHUNK])
        alike = directions[part] @ directions.T
        alike[np.arange(len(part)), part] = -2
        nearest = np.argpartition(-alike, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(alike, nearest, axis=1), axis=1, kind="stable")
        found[start : start + CHUNK] = np.take_along_axis(nearest, order, axis=1)
    return found


def join_groups(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """The groups after joining those that a pair connects; a joined group gets the smallest of its groups' names."""
    parent = {group: group for group in groups}
    for i, j in pairs:
        a, b = _root(parent, groups[i]), _root(parent, groups[j])
        parent[max(a, b)] = min(a, b)
    return [_root(parent, group) for group in groups]


def _root(parent: dict[str, str], group: str) -> str:
    while parent[group] != group:
        parent[group] = parent[parent[group]]
        group = parent[group]
    return group


def find_repeats(keys: Sequence[Hashable], labels: Sequence[Hashable]) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Exact duplicates: index to the index that is kept instead, and index to all that contradict one another."""
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    repeats, conflicts = dict[int, int](), dict[int, list[int]]()
    for same in members.values():
        if len({labels[index] for index in same}) > 1:
            conflicts |= dict.fromkeys(same, same)
        else:
            repeats |= dict.fromkeys(same[1:], same[0])
    return repeats, conflicts
