"""Near duplicates: the same thing photographed, saved, turned, cut or exposed again, which no split may tear apart.

Candidates come cheap, and a pair counts only when `matching` has seen both pictures. Look-alikes: 64-bit perceptual
hashes (signs of the lowest 8 x 8 cosine coefficients of a 32 x 32 grey picture, https://www.phash.org) of a picture as
it lies and of the other's eight turns and mirrors differ in few bits, and their detail correlates, because the lowest
coefficients of blank tiles say only how the lamp falls. Neighbours: nearest in a frozen backbone's features, a few
ranks at a time; who has found a relative looks further.

What the pictures of a set share anyway (a fixture, a background, a design) makes no duplicates: the agreement of
arbitrary pairs is measured first, and a pair has to stand out from it.

A set that grew is searched for what is new in it. Of old pictures only those with relatives look around again; to the
others a new picture is a neighbour where it is nearer than those that they were compared with before.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from components.data.images import THUMBNAIL
from components.data.matching import Match, Sketch, create_sketch, match_sketches, match_turned

Pair = tuple[str, str]  # contents, the smaller first
Matches = dict[Pair, Match]

LOW = 8  # coefficients with u + v below this may be light and shade: no detail
MIN_DETAIL = 2.0  # grey levels, root mean square; real photographs of even dark tiles have 3 and more
MIN_CORRELATION = 0.7  # of detail; 0.6 to 0.8 give much the same candidates on photographs of tiles
CHUNK = 256  # rows of a distance matrix at a time: 100 MB for 50,000 pictures
TURNS = 8
MOST_LOOK_ALIKES = 8  # for each picture
RANKS, ROUNDS = 3, 4  # neighbours a round
ARBITRARY = 96  # pairs that tell what any two pictures share
MIN_AGREEMENT = 0.7  # of 100 true pairs of tissue, sheared ones too, 95 have more; of others none has any
KEEP_EVERY = 10_000  # pairs
SKETCHES = 10_000  # kept in memory: 80 KB each


class LookAlike(NamedTuple):
    """Pictures i < j; the second, turned so, looks like the first."""

    i: int
    j: int
    turn: int


class Known(NamedTuple):
    """Pairs that were looked at before, and the contents among which a search came to its end."""

    matches: Mapping[Pair, Match]
    searched: Set[str]


NOTHING = Known({}, frozenset())


@dataclass(frozen=True)
class Found:
    """Every pair that was looked at, the agreement that was asked for, the pairs that reach it, what is searched."""

    matches: Matches
    needed: float
    searched: Set[str]

    @property
    def near(self) -> list[Pair]:
        return sorted(pair for pair, match in self.matches.items() if match.agreement >= self.needed)


class Pictures(NamedTuple):
    """Pictures by content, sorted; thumbnails (N, THUMBNAIL, THUMBNAIL), features (N, D), and how to read one."""

    contents: Sequence[str]
    greys: NDArray[np.float32]
    features: NDArray[np.float32]
    read: Callable[[int], NDArray[np.uint8]]


def find_near_duplicates(
    pictures: Pictures, bits: int, known: Known = NOTHING, keep: Callable[[Found], None] = lambda found: None
) -> Found:
    """Look at every candidate that is not `known` from an earlier search, as far as it could join two groups.

    keep: told now and then what was found so far, for the case that this ends early.
    """
    search = _Search(pictures, known, keep)
    order = range(min(len(pictures.contents), ARBITRARY + 1))
    search.look([LookAlike(i, j, -1) for i, j in pairwise(order)])
    shared = [search.matches[pictures.contents[i], pictures.contents[j]].agreement for i, j in pairwise(order)]
    # Where nine pictures make three groups a third of all pairs are duplicates; half of them never are.
    search.needed = max(MIN_AGREEMENT, (1 + float(np.median(shared or [0]))) / 2)
    search.join()
    new = np.array([content not in known.searched for content in pictures.contents], dtype=bool)
    search.look(find_look_alikes(pictures.greys, bits, new))
    directions = standardise(pictures.features)
    newcomers = find_newcomers(directions, new, search.places())
    search.look(search.pair(pair for pair in newcomers if pair[0] not in search.related))
    nearest = dict[int, list[int]]()
    for start in range(0, RANKS * ROUNDS, RANKS):
        rows = sorted(search.related.union(np.flatnonzero(new).tolist()) if start == 0 else search.related)
        missing = [row for row in rows if row not in nearest]
        nearest |= zip(missing, find_neighbours(directions, missing, RANKS * ROUNDS).tolist(), strict=True)
        search.look(search.pair((row, other) for row in rows for other in nearest[row][start : start + RANKS]))
    return Found(search.matches, search.needed, frozenset(pictures.contents))


class _Search:
    """What was looked at so far, and which pictures are joined by it."""

    def __init__(self, pictures: Pictures, known: Known, keep: Callable[[Found], None]) -> None:
        self.pictures, self.keep = pictures, keep
        self.place = {content: index for index, content in enumerate(pictures.contents)}
        self.searched = known.searched & self.place.keys()
        self.matches: Matches = {pair: match for pair, match in known.matches.items() if self.place.keys() >= set(pair)}
        self.parent = list(range(len(pictures.contents)))
        self.related: set[int] = set()
        self.needed: float = np.inf  # nothing is joined before it is known what any two pictures share
        self.sketch: Callable[[int], Sketch] = lru_cache(SKETCHES)(lambda index: create_sketch(pictures.read(index)))

    def look(self, candidates: Sequence[LookAlike]) -> None:
        """Match those candidates that are new, and whose pictures are not joined yet."""
        names = self.pictures.contents
        new = [each for each in candidates if (names[each.i], names[each.j]) not in self.matches]
        new = [each for each in new if self.root(each.i) != self.root(each.j)]
        # OpenCV and numpy free the interpreter; threads of BLAS beside ours only wait for one another, on full cores.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
            new = keep_close(new, len(names))
            for start in range(0, len(new), KEEP_EVERY):
                part = new[start : start + KEEP_EVERY]
                for each, match in zip(part, pool.map(self._match, part), strict=True):
                    self.matches[names[each.i], names[each.j]] = match
                self.keep(Found(self.matches, self.needed, self.searched))
        self.join()

    def join(self) -> None:
        for (first, second), match in self.matches.items():
            if match.agreement >= self.needed:
                i, j = self.place[first], self.place[second]
                self.related |= {i, j}
                self.parent[self.root(i)] = self.root(j)

    def root(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def places(self) -> NDArray[np.int64]:
        """(M, 2): the pairs that were looked at."""
        return np.array([[self.place[first], self.place[second]] for first, second in self.matches], np.int64).reshape(
            -1, 2
        )

    @staticmethod
    def pair(rows: Iterable[tuple[int, int]]) -> list[LookAlike]:
        """Each pair once, in order."""
        return [LookAlike(i, j, -1) for i, j in sorted({(min(pair), max(pair)) for pair in rows})]

    def _match(self, each: LookAlike) -> Match:
        first, second = self.sketch(each.i), self.sketch(each.j)
        found = match_sketches(first, second)
        if each.turn >= 0 and found.agreement < self.needed:
            turned = match_turned(first, second, each.turn)
            return max(found, turned, key=lambda match: match.agreement)
        return found


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


def find_newcomers(
    directions: NDArray[np.float32], new: NDArray[np.bool_], known: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Old rows and the new ones, at most RANKS, that belong to the RANKS nearest of those they were compared with.

    known: the pairs (M, 2) that were looked at. What is new has to be nearer than the last of these RANKS, or than the
    farthest where a row was compared with fewer; a row that was compared with none gets none.
    """
    row, other = np.concatenate([known, known[:, ::-1]]).T
    alike = np.einsum("nd,nd->n", directions[row], directions[other])
    order = np.lexsort((-alike, row))
    there, first, counts = np.unique(row[order], return_index=True, return_counts=True)
    nearness = np.full(len(directions), np.inf)
    nearness[there] = alike[order][first + np.minimum(counts, RANKS) - 1]
    old, fresh = np.flatnonzero(~new), np.flatnonzero(new)
    found = list[tuple[int, int]]()
    for start in range(0, len(old) if len(fresh) else 0, CHUNK):
        part = old[start : start + CHUNK]
        alike = directions[part] @ directions[fresh].T
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, :RANKS]
        nearer = np.take_along_axis(alike, nearest, axis=1) > nearness[part, None]
        rows, ranks = np.nonzero(nearer)
        found += zip(part[rows].tolist(), fresh[nearest[rows, ranks]].tolist(), strict=True)
    return found


def find_look_alikes(greys: NDArray[np.float32], bits: int, new: NDArray[np.bool_]) -> list[LookAlike]:
    """Pairs of (N, THUMBNAIL, THUMBNAIL) grey pictures that look alike in one of eight positions, one of them new."""
    spectra = cosine_transform(greys)
    low, details = spectra[:, :8, :8], detail_of(spectra)
    strength = np.linalg.norm(details, axis=(1, 2))
    lying = hash_spectra(low)
    every, fresh, old = np.arange(len(greys)), np.flatnonzero(new), np.flatnonzero(~new)
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for turn in range(TURNS):
        turned = hash_spectra(turn_spectra(low, turn))
        for i, j in chain(_find_close(lying, turned, bits, fresh, every), _find_close(lying, turned, bits, old, fresh)):
            strong = strength[i] * strength[j] >= MIN_CORRELATION  # no two blank pictures correlate
            i, j = i[strong], j[strong]
            for start in range(0, len(i), CHUNK):
                a, b = i[start : start + CHUNK], j[start : start + CHUNK]
                agree = np.einsum("nuv,nuv->n", details[a], turn_spectra(details[b], turn))
                for *pair, value in zip(a.tolist(), b.tolist(), agree.tolist(), strict=True):
                    if value >= max(MIN_CORRELATION, best.get((pair[0], pair[1]), (0.0, 0))[0]):
                        best[pair[0], pair[1]] = value, turn
    return _nearest_look_alikes(best)


def _find_close(
    lying: NDArray[np.uint64],
    turned: NDArray[np.uint64],
    bits: int,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows i and columns j > i whose hashes, j's turned, differ in no more than so many bits; both are sorted."""
    for start in range(0, len(rows), CHUNK):
        i = rows[start : start + CHUNK, None]
        j = columns[np.searchsorted(columns, i[0, 0]) :]
        near = (np.bitwise_count(lying[i] ^ turned[j]) <= bits) & (j > i)
        row, column = np.nonzero(near)
        yield i[row, 0], j[column]


def _nearest_look_alikes(best: dict[tuple[int, int], tuple[float, int]]) -> list[LookAlike]:
    """Those that are among the nearest of one of their two."""
    counts: dict[int, int] = {}
    kept = []
    for (i, j), (_, turn) in sorted(best.items(), key=lambda item: (-item[1][0], item[0])):
        if min(counts.get(i, 0), counts.get(j, 0)) < MOST_LOOK_ALIKES:
            kept.append(LookAlike(i, j, turn))
            counts[i], counts[j] = counts.get(i, 0) + 1, counts.get(j, 0) + 1
    return sorted(kept)


def cosine_transform(greys: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal two-dimensional DCT-II of (N, S, S)."""
    k = np.arange(THUMBNAIL)
    basis = np.cos(np.pi * (2 * k[None, :] + 1) * k[:, None] / (2 * THUMBNAIL)) * np.sqrt(2 / THUMBNAIL)
    basis[0] /= np.sqrt(2)
    matrix = basis.astype(np.float32)
    return np.asarray(matrix @ greys @ matrix.T, dtype=np.float32)


def turn_spectra(spectra: NDArray[np.float32], turn: int) -> NDArray[np.float32]:
    """Cosine transforms (N, U, U), or their lowest coefficients, of the pictures turned as `turn_picture` does.

    A transposed picture has a transposed spectrum, and a mirror changes the signs of every second coefficient.
    """
    signs = np.where(np.arange(spectra.shape[-1]) % 2, -1, 1).astype(np.float32)
    for _ in range(turn % 4):
        spectra = spectra.swapaxes(1, 2) * signs[:, None]
    return spectra if turn < 4 else spectra * signs


def hash_spectra(spectra: NDArray[np.float32]) -> NDArray[np.uint64]:
    """One 64-bit hash a spectrum: which of the lowest 8 x 8 coefficients exceed their median, mean left out."""
    low = spectra[:, :8, :8].reshape(len(spectra), 64).copy()
    low[:, 0] = 0
    above = low > np.median(low[:, 1:], axis=1, keepdims=True)
    return np.packbits(above, axis=1).view(">u8").astype(np.uint64).ravel()


def detail_of(spectra: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, S, S): everything finer than light and shade, of unit length where there is enough of it.

    By Parseval the dot product of two is the correlation of their detail.
    """
    order = np.add.outer(np.arange(THUMBNAIL), np.arange(THUMBNAIL))
    detail = np.where(order >= LOW, spectra, 0)
    norm = np.linalg.norm(detail, axis=(1, 2), keepdims=True)
    return np.asarray(detail / np.maximum(norm, MIN_DETAIL * THUMBNAIL), dtype=np.float32)


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
