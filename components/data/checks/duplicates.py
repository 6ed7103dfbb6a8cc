"""Near duplicates: the same thing photographed, saved, turned, cut or exposed again, which no split may tear apart.

Candidates come cheap, and a pair counts only when `matching` has looked at both pictures. Look-alikes: thumbnails that
are alike in one of eight positions. Neighbours: nearest in a frozen backbone's features, a few ranks at a time; a
picture that has found a relative looks further.

What the pictures of a set share anyway makes no duplicates. A fixture or a background: the agreement of arbitrary pairs
is measured first, and a pair has to stand out from it. A design that is repeated: a pair has to agree in what `designs`
cannot predict from other pictures of that design.

The result is a function of the pictures and `bits` alone: a search of a set that grew, or one that was killed and
started again, finds what a search from the start finds. Looks and answers that are known from earlier are not
repeated.
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

RANKS, ROUNDS = 3, 4  # neighbours a round
ARBITRARY = 96  # pairs that tell what any two pictures share
MIN_REMAINING = 0.8  # of cells that two parts must agree in beyond their design; of 162 pairs of solar cells none did
CERTAIN = 0.95  # remaining agreement from which parts of one design are one part, not just cut from one piece
KEEP_EVERY = 10_000  # looks
SKETCHES = 7_000  # kept in memory: 0.12 MB each


class Look(NamedTuple):
    """One comparison: contents, the smaller first, and the turn of the second, or POINTS."""

    first: str
    second: str
    turn: int


class Question(NamedTuple):
    """What remains of the agreement of a picture with another one without the design that they share: their contents,
    and a name for what predicts the design."""

    here: str
    there: str
    strangers: str


Looks = Mapping[Look, Match]
Answers = Mapping[Question, float | None]  # None where no design is shared


@dataclass(frozen=True)
class Found:
    """Every look, every answer, and the pairs of near duplicates with what remains of their agreement without the
    design that they share (None where none is shared).

    among: names the pictures and bits of a search that came to its end; None for one that did not.
    """

    looks: Looks = field(default_factory=dict)
    near: Mapping[Pair, float | None] = field(default_factory=dict)
    among: str | None = None
    answers: Answers = field(default_factory=dict)


NOTHING = Found()


def is_certain(remaining: float | None) -> bool:
    """Whether near duplicates surely show one thing. Parts of one design may be sisters, cut from one piece."""
    return remaining is None or remaining >= CERTAIN


class Pictures(NamedTuple):
    """Pictures by content, sorted; thumbnails (N, THUMBNAIL, THUMBNAIL), features (N, D), and how to read one."""

    contents: Sequence[str]
    greys: NDArray[np.float32]
    features: NDArray[np.float32]
    read: Callable[[int], NDArray[np.uint8]]


def name_search(contents: Sequence[str], bits: int) -> str:
    """A name for all that the result depends on, apart from the code."""
    return hashlib.sha256("\n".join([str(bits), *contents]).encode()).hexdigest()[:16]


def find_near_duplicates(
    pictures: Pictures, bits: int, known: Found = NOTHING, keep: Callable[[Found], None] = lambda found: None
) -> Found:
    """Compare all candidates, as far as a pair could join two groups.

    known: an earlier search, of these or other pictures. keep: is called now and then with the looks so far, for the
    case that the process ends early.
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
    """What was looked at so far, and which pictures are joined by it."""

    def __init__(self, pictures: Pictures, known: Found, keep: Callable[[Found], None]) -> None:
        self.names, self.known, self.keep = pictures.contents, known, keep
        self.looks: dict[Look, Match] = {}
        self.answers: dict[Question, float | None] = {}
        self.near: dict[Pair, float | None] = {}
        self.refused: set[Pair] = set()
        self.needed: float = np.inf  # nothing is joined before it is known what any two pictures share
        self.parent = list(range(len(pictures.contents)))
        self.related: set[int] = set()
        self.repeated: set[int] = set()  # pictures whose design others share
        self.sketch: Callable[[int], Sketch] = lru_cache(SKETCHES)(lambda index: Sketch(pictures.read(index)))
        self.designs = Designs(pictures.contents, pictures.greys, pictures.features, self.sketch)

    def measure_shared(self) -> None:
        """What do arbitrary pictures share? Half of the rest is asked for on top."""
        arbitrary = [LookAlike(i, j, POINTS) for i, j in pairwise(range(min(len(self.names), ARBITRARY + 1)))]
        matches = self._match(arbitrary)
        # Where nine pictures make three groups a third of all pairs are duplicates; half of them never are.
        shared = float(np.median([match.agreement for match in matches] or [0]))
        self.needed = max(MIN_AGREEMENT, (1 + shared) / 2)
        self._join(dict(zip(arbitrary, matches, strict=True)))

    def look_around(self, directions: NDArray[np.float32]) -> None:
        """Every picture at its RANKS nearest; those with relatives further, round by round."""
        nearest = dict[int, list[int]]()
        for reach in range(RANKS, RANKS * ROUNDS + 1, RANKS):
            rows = range(len(self.names)) if reach == RANKS else sorted(self.related)
            missing = [row for row in rows if row not in nearest]
            nearest |= zip(missing, find_neighbours(directions, missing, RANKS * ROUNDS).tolist(), strict=True)
            pairs = {(min(row, other), max(row, other)) for row in rows for other in nearest[row][:reach]}
            self.look([LookAlike(i, j, POINTS) for i, j in sorted(pairs)])

    def look(self, candidates: Sequence[LookAlike]) -> None:
        """Match those candidates whose pictures are not joined yet: by points, else as their thumbnails look alike."""
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
        """The match of each, from memory where it is known."""
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
        """Join the pairs that agree, also in what the design that they may share does not predict.

        Joins are made when all are measured, so that the order and the number of threads do not matter.
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
        """What remains without the design that they may share, from memory where it is known."""

        def is_related(other: int) -> bool:
            return roots[other] in (roots[here], roots[there])

        question = Question(self.names[here], self.names[there], self.designs.name(here, fit, is_related))
        if question in self.known.answers:
            return {question: self.known.answers[question]}
        return {question: self.designs.measure(here, there, fit, is_related)}


def _run(work: Callable[[LookAlike], Result], items: Sequence[LookAlike]) -> list[Result]:
    """In as many threads as there are cores."""
    # OpenCV and numpy free the interpreter; threads of BLAS beside ours only wait for one another, on full cores.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, items))


def keep_close(pairs: Sequence[LookAlike], count: int) -> list[LookAlike]:
    """The pairs among `count` pictures in an order in which each picture's own come shortly after one another, so that
    it is sketched once, however many pictures there are: along the narrowest band of their graph
    (Cuthill and McKee 1969, https://doi.org/10.1145/800195.805928)."""
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
    """(N, D) of unit length, each feature standardised over the set."""
    if not len(features):
        return features
    spread = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    return np.asarray(spread / np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def find_neighbours(directions: NDArray[np.float32], rows: Sequence[int], count: int) -> NDArray[np.int64]:
    """Indices (len(rows), count) of what is nearest to each row by cosine among (N, D) of unit length."""
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
    """Groups after joining those that a pair connects; a joined group bears its smallest member's name."""
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
    """Exact duplicates: index -> the index kept in its stead, and index -> all that contradict one another."""
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
