"""Look-alikes: pairs of pictures whose thumbnails match in one of eight orientations, as candidates for duplicates.

Two conditions hold for a pair. The 64-bit perceptual hashes (signs of the lowest 8 x 8 cosine coefficients of a 32 x 32
grey picture, https://www.phash.org) of one picture and of one of the other's eight orientations differ in few bits. And
their detail correlates, because in blank pictures the lowest coefficients only describe the illumination.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.data.checks.pictures import THUMBNAIL

LOW = 8  # coefficients with u + v below this may be illumination, so they are not detail
MIN_DETAIL = 2.0  # grey levels, root mean square; photographs of uniformly dark tiles still have 3 and more
MIN_CORRELATION = 0.7  # correlation of detail; 0.6 to 0.8 give nearly the same candidates on photographs of tiles
CHUNK = 256  # rows of a distance matrix at a time: 100 MB for 50,000 pictures
TURNS = 8
MOST_LOOK_ALIKES = 8  # most candidates per picture
POINTS = -1  # in place of an orientation: matched points determine the placement of the second picture


class LookAlike(NamedTuple):
    """Pictures i < j: the second, in orientation `turn`, looks like the first."""

    i: int
    j: int
    turn: int


def find_look_alikes(greys: NDArray[np.float32], bits: int) -> list[LookAlike]:
    """Pairs of grey thumbnails (N, THUMBNAIL, THUMBNAIL) that match in one of eight orientations.

    bits: largest number of bits in which the hashes of a pair may differ.
    """
    spectra = cosine_transform(greys)
    low, details = spectra[:, :8, :8], detail_of(spectra)
    strength = np.linalg.norm(details, axis=(1, 2))
    lying = hash_spectra(low)
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for turn in range(TURNS):
        turned = hash_spectra(turn_spectra(low, turn))
        for i, j in _find_close(lying, turned, bits):
            strong = strength[i] * strength[j] >= MIN_CORRELATION  # blank pictures never correlate
            i, j = i[strong], j[strong]
            for start in range(0, len(i), CHUNK):
                a, b = i[start : start + CHUNK], j[start : start + CHUNK]
                agree = np.einsum("nuv,nuv->n", details[a], turn_spectra(details[b], turn))
                for *pair, value in zip(a.tolist(), b.tolist(), agree.tolist(), strict=True):
                    if value >= max(MIN_CORRELATION, best.get((pair[0], pair[1]), (0.0, 0))[0]):
                        best[pair[0], pair[1]] = value, turn
    return _nearest_look_alikes(best)


def find_alike_parts(greys: NDArray[np.float32], rows: Sequence[int], count: int) -> list[LookAlike]:
    """For parts of one design (`rows`), the pictures whose thumbnails match best after the mean part is subtracted.

    Hashes and features mainly describe the design, so a copy is not among the nearest by them.
    """
    if not rows:
        return []
    details = detail_of(cosine_transform(greys))
    mean, spread = details[rows].mean(axis=0), np.maximum(details[rows].std(axis=0), 1e-6)
    turned = [_directions((turn_spectra(details, turn) - mean) / spread) for turn in range(TURNS)]
    found: dict[tuple[int, int], int] = {}
    for start in range(0, len(rows), CHUNK):
        part = np.asarray(rows[start : start + CHUNK])
        alike = np.stack([turned[0][part] @ each.T for each in turned])  # (TURNS, rows, N)
        alike[:, np.arange(len(part)), part] = -2
        best, turns = alike.max(axis=0), alike.argmax(axis=0)
        nearest = np.argsort(-best, axis=1, kind="stable")[:, : min(count, len(greys) - 1)]
        for row, others, ways in zip(part.tolist(), nearest.tolist(), turns.tolist(), strict=True):
            for other in others:
                turn = ways[other] if row < other or ways[other] >= 4 else -ways[other] % 4  # the inverse orientation
                found.setdefault((min(row, other), max(row, other)), turn)
    return [LookAlike(i, j, turn) for (i, j), turn in sorted(found.items())]


def _directions(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Arrays (N, ...) as vectors (N, D) of unit length."""
    flat = values.reshape(len(values), -1)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), np.float32)


def _find_close(
    lying: NDArray[np.uint64], turned: NDArray[np.uint64], bits: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Indices i < j whose hashes, j's in one orientation, differ in at most `bits` bits."""
    for start in range(0, len(lying), CHUNK):
        near = np.bitwise_count(lying[start : start + CHUNK, None] ^ turned[start:]) <= bits
        row, column = np.nonzero(np.triu(near, 1))
        yield start + row, start + column


def _nearest_look_alikes(best: dict[tuple[int, int], tuple[float, int]]) -> list[LookAlike]:
    """The pairs that are among the MOST_LOOK_ALIKES nearest of at least one of their pictures."""
    counts: dict[int, int] = {}
    kept = []
    for (i, j), (_, turn) in sorted(best.items(), key=lambda item: (-item[1][0], item[0])):
        if min(counts.get(i, 0), counts.get(j, 0)) < MOST_LOOK_ALIKES:
            kept.append(LookAlike(i, j, turn))
            counts[i], counts[j] = counts.get(i, 0) + 1, counts.get(j, 0) + 1
    return sorted(kept)


def cosine_transform(greys: NDArray[np.float32]) -> NDArray[np.float32]:
    """The orthonormal two-dimensional DCT-II of pictures (N, S, S)."""
    k = np.arange(THUMBNAIL)
    basis = np.cos(np.pi * (2 * k[None, :] + 1) * k[:, None] / (2 * THUMBNAIL)) * np.sqrt(2 / THUMBNAIL)
    basis[0] /= np.sqrt(2)
    matrix = basis.astype(np.float32)
    return np.asarray(matrix @ greys @ matrix.T, dtype=np.float32)


def turn_spectra(spectra: NDArray[np.float32], turn: int) -> NDArray[np.float32]:
    """The cosine transforms (N, U, U), or their lowest coefficients, after turning the pictures as `turn_picture` does.

    A transposed picture has a transposed spectrum, and a mirror changes the signs of every second coefficient.
    """
    signs = np.where(np.arange(spectra.shape[-1]) % 2, -1, 1).astype(np.float32)
    for _ in range(turn % 4):
        spectra = spectra.swapaxes(1, 2) * signs[:, None]
    return spectra if turn < 4 else spectra * signs


def hash_spectra(spectra: NDArray[np.float32]) -> NDArray[np.uint64]:
    """One 64-bit hash per spectrum: which of the lowest 8 x 8 coefficients, without the mean, exceed their median."""
    low = spectra[:, :8, :8].reshape(len(spectra), 64).copy()
    low[:, 0] = 0
    above = low > np.median(low[:, 1:], axis=1, keepdims=True)
    return np.packbits(above, axis=1).view(">u8").astype(np.uint64).ravel()


def detail_of(spectra: NDArray[np.float32]) -> NDArray[np.float32]:
    """The detail (N, S, S): coefficients finer than illumination, scaled to unit length if there is enough detail.

    By Parseval's theorem, the dot product of two details is the correlation of the pictures' detail.
    """
    order = np.add.outer(np.arange(THUMBNAIL), np.arange(THUMBNAIL))
    detail = np.where(order >= LOW, spectra, 0)
    norm = np.linalg.norm(detail, axis=(1, 2), keepdims=True)
    return np.asarray(detail / np.maximum(norm, MIN_DETAIL * THUMBNAIL), dtype=np.float32)
