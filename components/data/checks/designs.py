"""Repeated designs: distinguishes copies of a picture from other parts of the same design.

Any two parts of one design agree in most cells, so agreement alone does not show that two pictures are duplicates. The
*strangers* of a picture (pictures of the same set, too far away in feature space to be its duplicates) show the design:
laid over the picture, they predict it. What they do not predict (grain, scratches, dirt) belongs to the picture alone,
and two pictures are duplicates only if these remainders correlate. If the strangers do not agree with the picture, no
design is shared and this test is skipped; a first test on thumbnails decides that in 1 ms per picture.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from components.data.checks.matching import (
    CELL,
    MIN_AGREEMENT,
    MIN_CELLS,
    Cells,
    Fit,
    Sketch,
    blur,
    correlate,
    flatten,
    lay_cells,
    measure_agreement,
    place_scale,
    place_turn,
    to_cells,
    turn_picture,
)

COARSE = 64  # pixels of the longer side when a placement is searched
THUMB_SHADE = 2.0  # pixels of a thumbnail: slower changes are illumination
FINE = 96  # pixels of the longer side when the placement is refined
STEPS = 25  # iterations of the refinement
TURNS = 8
CORRELATES = 0.3  # correlation of the remainders within a cell; by chance one cell in six reaches it
TRACE = 0.0005  # squared local contrast below which a cell has no remainder
RIDGE = 1e-3  # keeps the regression finite on nearly blank cells

CROWD = 1024  # strangers are drawn from at most this many pictures of the set
NEAR = 12  # the nearest pictures in feature space may be duplicates, so they are not strangers
MANY, LAID = 24, 12  # number of strangers that are placed, and of the best of these that are laid over the picture
FEW = 4  # fewest strangers that can predict a design; with fewer, no design is shared
ALIKE = 0.5  # correlation of thumbnails; of 100 pictures of tissue, nuclei or boards 95 stay under .46, cells reach .8
SHARED = 0.35  # least agreement of a stranger that shares the design: half of what a duplicate needs
RELATIVE = 0.9  # a stranger with at least this remaining agreement, given the other strangers, is itself a duplicate
PURGES = 4
KEPT = 64  # number of pictures whose strangers are kept in memory, 2 MB each
OUTLINES = 2000  # number of outlines kept in memory, 0.1 MB each


class Outline(NamedTuple):
    """A picture at COARSE (h, w) with unit energy, its zero-padded spectrum (`_transform`), and the picture at FINE."""

    small: NDArray[np.float32]
    spectrum: NDArray[np.complex64]
    fine: NDArray[np.float32]


class Place(NamedTuple):
    """The placement of a picture on another one, both at COARSE, and their correlation there (at most 1)."""

    peak: float
    fit: Fit


class Stranger(NamedTuple):
    """A picture of the set, laid over another one, and the share of cells in which the two agree."""

    number: int
    cells: Cells
    agreement: float


class Designs:
    """The strangers of every picture of a set.

    names: contents, sorted. greys: thumbnails (N, S, S). features: (N, D), independent of the set, so that most
    pictures keep their strangers when the set grows. sketch: returns the sketch of a picture.
    """

    def __init__(
        self,
        names: Sequence[str],
        greys: NDArray[np.float32],
        features: NDArray[np.float32],
        sketch: Callable[[int], Sketch],
    ) -> None:
        self.names, self.greys, self.sketch = names, greys, sketch
        self.directions = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-6)
        self.draws = np.array([1 + crc32(name.encode()) for name in names], np.float64)
        self.choose = lru_cache(None)(self._choose)
        self.thumb = lru_cache(OUTLINES)(self._create_thumb)
        self.outline = lru_cache(OUTLINES)(lambda index: create_outline(sketch(index)))
        self.strangers = lru_cache(KEPT)(self._find_strangers)
        self.is_repeated = lru_cache(None)(self._is_repeated)

    def name(self, here: int, fit: Fit, related: Callable[[int], bool]) -> str:
        """A name for everything that `measure` depends on besides the two pictures and the code."""
        chosen = [f"{self.names[each]} {related(each)}" for each in self.choose(here)]
        return hashlib.sha256("\n".join([*chosen, fit.tobytes().hex()]).encode()).hexdigest()[:16]

    def measure(self, here: int, there: int, fit: Fit, related: Callable[[int], bool]) -> float | None:
        """The share of cells in which two pictures correlate beyond the strangers' prediction; None without a design.

        fit: maps places of the picture `there` to places of the picture `here`. related: whether a stranger is known to
        be a duplicate of either picture.
        """
        if not self.is_repeated(here):
            return None
        strangers = [each for each in self.strangers(here) if each.number != there and not related(each.number)]
        if len(strangers) < FEW:
            return None
        detail = self.sketch(here).detail
        laid = lay_cells(self.sketch(there).detail, fit, detail.shape)
        return measure_remaining(to_cells(blur(detail)), laid, [each.cells for each in strangers])

    def _choose(self, index: int) -> list[int]:
        """Draw at most MANY strangers, each with probability 1 / (its rank by distance in feature space).

        Near pictures share the design even if it is rare in the set; far ones are not duplicates. Every picture has one
        random number derived from its name, and those with the smallest product of rank and number are taken. A picture
        that is added to the set therefore replaces at most one stranger.
        """
        # The share is halved in whole steps: a share that changed with every added picture would change all choices.
        halvings = max(max(len(self.directions) - 1, 0).bit_length() - CROWD.bit_length() + 1, 0)
        crowd = len(self.directions) >> halvings
        order = np.argsort(-(self.directions[:crowd] @ self.directions[index]), kind="stable")
        order = order[order != index]
        order = order[min(max(NEAR >> halvings, 1), crowd // 2) :]
        ranks = np.arange(1, len(order) + 1)
        return [int(other) for other in order[np.argsort(ranks * self.draws[order], kind="stable")[:MANY]]]

    def _is_repeated(self, index: int) -> bool:
        """Whether thumbnails of strangers resemble the picture's. One in six is enough for a closer comparison."""
        chosen = self.choose(index)[: MANY // 2]
        if len(chosen) < FEW / 2:
            return False
        side = self.greys.shape[-1]
        spectra = [self.thumb(other)[1] for other in chosen]
        found = _correlate_turned(self.thumb(index)[0], spectra, side)
        peaks = np.sort(found.max(axis=(1, 2, 3)))[::-1]
        return bool(peaks[max(len(peaks) // 6 - 1, 0)] >= ALIKE)

    def _create_thumb(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.complex64]]:
        """The thumbnail without illumination, and its spectrum."""
        small = _normalise(flatten(self.greys[index], THUMB_SHADE))
        return small, _transform([small], small.shape[0])[0]

    def _find_strangers(self, index: int) -> list[Stranger]:
        """Of the LAID pictures that fit best: those that share the design and are not duplicates."""
        chosen, outline, sketch = self.choose(index), self.outline(index), self.sketch(index)
        places = find_places(outline, [self.outline(other) for other in chosen])
        best = sorted(zip(chosen, places, strict=True), key=lambda each: (-each[1].peak, each[0]))[:LAID]
        if len(best) < FEW or best[FEW - 1][1].peak < ALIKE:
            return []  # the closer comparison does not confirm the thumbnails
        laid = []
        for other, place in best:
            detail = self.sketch(other).detail
            fit = refine_place(outline, self.outline(other), place, (sketch.detail.shape, detail.shape))
            agreement = measure_agreement(sketch.detail, detail, fit)
            if agreement >= SHARED:
                laid.append(Stranger(other, lay_cells(detail, fit, sketch.detail.shape), agreement))
        return _drop_relatives(to_cells(blur(sketch.detail)), laid)


def _drop_relatives(first: NDArray[np.float32], laid: list[Stranger]) -> list[Stranger]:
    """Remove strangers that share with the picture what the other strangers do not predict: they are duplicates."""
    for _ in range(PURGES):
        if len(laid) <= FEW:
            break
        cells = [each.cells for each in laid]
        others = [cells[:k] + cells[k + 1 :] for k in range(len(cells))]
        kept = [
            each
            for each, rest in zip(laid, others, strict=True)
            if each.agreement < MIN_AGREEMENT or measure_remaining(first, each.cells, rest, component=False) < RELATIVE
        ]
        if len(kept) == len(laid):
            break
        laid = kept
    return laid


def create_outline(sketch: Sketch) -> Outline:
    """The outline of a picture; computed once per picture."""
    small = _normalise(_shrink(sketch.detail, COARSE))
    return Outline(small, _transform([small], COARSE)[0], _shrink(sketch.detail, FINE))


def find_places(first: Outline, others: Sequence[Outline]) -> list[Place]:
    """The placement of each of the others on the first: the best of eight orientations and shifts up to half a side."""
    places = []
    for found in _correlate_turned(first.small, [other.spectrum for other in others], COARSE):
        turn, y, x = (int(at) for at in np.unravel_index(int(found.argmax()), found.shape))
        moved = np.eye(3)
        moved[:2, 2] = [-at if at <= COARSE // 2 else _padded(COARSE) - at for at in (x, y)]
        fit = np.linalg.inv(place_turn((first.small.shape[0], first.small.shape[1]), turn)) @ moved
        places.append(Place(float(found[turn, y, x]), fit))
    return places


def refine_place(first: Outline, other: Outline, place: Place, shapes: tuple[tuple[int, ...], ...]) -> Fit:
    """The affine fit at full size (h, w) with the highest correlation (Evangelidis and Psarakis 2008,
    https://doi.org/10.1109/TPAMI.2008.113); the given placement if the pictures have too little in common."""
    import cv2

    here, there = (place_scale(each.small.shape, each.fine.shape) for each in (first, other))
    fit = here @ place.fit @ np.linalg.inv(there)
    warp = np.linalg.inv(fit)[:2].astype(np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, STEPS, 1e-4)
    try:
        _, found = cv2.findTransformECC(
            first.fine, other.fine, warp, cv2.MOTION_AFFINE, criteria, np.ones_like(other.fine, np.uint8), 5
        )
        fit = np.linalg.inv(np.vstack([found, [0, 0, 1]]).astype(np.float64))
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
    except np.linalg.LinAlgError:
        pass  # the refinement collapsed to a line
    here, there = (place_scale(each.fine.shape, shape) for each, shape in zip((first, other), shapes, strict=True))
    return np.asarray(here @ fit @ np.linalg.inv(there))


def measure_remaining(
    first: NDArray[np.float32], second: Cells, strangers: Sequence[Cells], component: bool = True
) -> float:
    """The share of cells in which two pictures correlate after what strangers predict is removed from both.

    first: (cells, CELL * CELL). Removed are the strangers' mean, its slopes (they absorb a fit that is off by a
    fraction of a pixel) and, with `component`, the strangers' first principal component. Returns 0 if too few cells
    have a remainder.
    """
    regressors = np.stack([np.ones_like(first), *_predict(strangers, component)], axis=1)  # (cells, R, CELL * CELL)
    both = np.stack([first, second.detail], axis=1)
    gram = regressors @ regressors.swapaxes(1, 2) / CELL**2 + RIDGE * np.eye(regressors.shape[1], dtype=np.float32)
    weights = np.linalg.solve(gram, regressors @ both.swapaxes(1, 2) / CELL**2)
    left = both - weights.swapaxes(1, 2) @ regressors
    covered = second.covered & (np.sum([each.covered for each in strangers], axis=0) >= 2)
    correlation = correlate(left[covered, 0], left[covered, 1], TRACE)
    return float((correlation > CORRELATES).mean()) if len(correlation) >= MIN_CELLS else 0.0


def _predict(strangers: Sequence[Cells], component: bool) -> list[NDArray[np.float32]]:
    """The regressors for each cell: the strangers' mean, its slopes, and their first principal component."""
    covered = np.stack([each.covered for each in strangers]).astype(np.float32)[..., None]
    details = np.stack([each.detail for each in strangers])
    mean = (covered * details).sum(axis=0) / np.maximum(covered.sum(axis=0), 1)
    square = mean.reshape(-1, CELL, CELL)
    slopes = [np.gradient(square, axis=axis).reshape(mean.shape) for axis in (1, 2)]
    if not component:
        return [mean, *slopes]
    centred = (covered * (details - mean)).swapaxes(0, 1)  # (cells, strangers, CELL * CELL)
    _, vectors = np.linalg.eigh(centred @ centred.swapaxes(1, 2))
    first = (vectors[:, :, -1:].swapaxes(1, 2) @ centred)[:, 0]
    return [mean, *slopes, first * (CELL / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-6))]


def _correlate_turned(
    first: NDArray[np.float32], spectra: Sequence[NDArray[np.complex64]], side: int
) -> NDArray[np.float32]:
    """Correlation of each of the others with the first, in eight orientations and at every shift: (K, TURNS, y, x).

    Shifts of more than half a side have -1. Negative shifts count from the end of an axis.
    """
    from scipy.fft import irfft2

    turned = _transform([turn_picture(first, turn) for turn in range(TURNS)], side).conj()
    steps = np.arange(_padded(side))
    beyond = np.minimum(steps, len(steps) - steps) > side // 2
    found = np.asarray(irfft2(turned * np.stack(spectra)[:, None], overwrite_x=True), np.float32)
    found[:, :, beyond] = -1
    found[:, :, :, beyond] = -1
    return found


def _padded(side: int) -> int:
    """The padded side length at which a picture shifted by half a side overlaps only zeros at the other end."""
    return 2 * (side - side // 4)


def _transform(pictures: Sequence[NDArray[np.float32]], side: int) -> NDArray[np.complex64]:
    """Spectra of pictures (h, w), zero-padded to one size."""
    from scipy.fft import rfft2

    padded = np.zeros((len(pictures), _padded(side), _padded(side)), np.float32)
    for row, picture in zip(padded, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = picture
    return np.asarray(rfft2(padded), dtype=np.complex64)


def _normalise(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """The picture with mean 0 and energy 1."""
    centred = small - small.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), np.float32)


def _shrink(detail: NDArray[np.int8], side: int) -> NDArray[np.float32]:
    import cv2

    zoom = side / max(detail.shape)
    size = max(round(detail.shape[1] * zoom), 1), max(round(detail.shape[0] * zoom), 1)
    return np.asarray(cv2.resize(detail.astype(np.float32) / 32, size, interpolation=cv2.INTER_AREA), np.float32)
