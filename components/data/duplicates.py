"""Near duplicates: the same thing photographed, saved or exposed again, which no split may tear apart.

Two pictures are near duplicates when their 64-bit perceptual hashes (signs of the lowest 8 x 8 cosine
coefficients of a 32 x 32 grey picture, https://www.phash.org) differ in few bits *and* their detail agrees.
The second half is needed because the lowest coefficients of blank tiles say only how the lamp falls, so that
by the hash alone all tiles under one lamp become one group. A picture without detail has nothing it could be
recognised by, and is nobody's near duplicate.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from components.data.images import THUMBNAIL

Grey = NDArray[np.float32]

LOW = 8  # coefficients with u + v below this may be light and shade: no detail
MIN_DETAIL = 2.0  # grey levels, root mean square; real photographs of even dark tiles have 3 and more
MIN_AGREEMENT = 0.7  # correlation of detail; 0.6 to 0.8 give much the same groups on photographs of tiles
CHUNK = 256  # rows of the distance matrix at a time: 100 MB for 50,000 pictures


def find_near_duplicates(greys: Sequence[Grey], bits: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of near duplicates among (THUMBNAIL, THUMBNAIL) grey pictures."""
    if len(greys) < 2:
        return []
    spectra = cosine_transform(np.stack(greys))
    hashes, details = hash_spectra(spectra), detail_of(spectra)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(hashes), CHUNK):
        rows = hashes[start : start + CHUNK, None]
        near = np.bitwise_count(rows ^ hashes[None, start:]) <= bits
        i, j = np.nonzero(np.triu(near, 1))
        i, j = i + start, j + start
        agree = np.einsum("nd,nd->n", details[i], details[j]) >= MIN_AGREEMENT
        pairs += zip(i[agree].tolist(), j[agree].tolist(), strict=True)
    return pairs


def cosine_transform(greys: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal two-dimensional DCT-II of (N, S, S)."""
    k = np.arange(THUMBNAIL)
    basis = np.cos(np.pi * (2 * k[None, :] + 1) * k[:, None] / (2 * THUMBNAIL)) * np.sqrt(2 / THUMBNAIL)
    basis[0] /= np.sqrt(2)
    matrix = basis.astype(np.float32)
    return np.asarray(matrix @ greys @ matrix.T, dtype=np.float32)


def hash_spectra(spectra: NDArray[np.float32]) -> NDArray[np.uint64]:
    """One 64-bit hash a spectrum: which of the lowest 8 x 8 coefficients exceed their median, mean left out."""
    low = spectra[:, :8, :8].reshape(len(spectra), 64).copy()
    low[:, 0] = 0
    above = low > np.median(low[:, 1:], axis=1, keepdims=True)
    return np.packbits(above, axis=1).view(">u8").astype(np.uint64).ravel()


def detail_of(spectra: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (N, S*S) of everything finer than light and shade, of unit length where there is enough of it.

    By Parseval their dot product is the correlation of detail.
    """
    order = np.add.outer(np.arange(THUMBNAIL), np.arange(THUMBNAIL))
    detail = np.where(order >= LOW, spectra, 0).reshape(len(spectra), -1)
    norm = np.linalg.norm(detail, axis=1, keepdims=True)
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
