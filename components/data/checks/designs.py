"""Where one design is repeated, copies are told from other parts by what the design does not predict.

Any two parts of one design agree in most cells, so agreement alone says nothing there. What the design makes of a
picture is seen on its *strangers*: pictures of the same set, too far in features to be its duplicates. Laid over the
picture they predict it. What they do not predict (grain, scratches, dirt) is the picture's own, and two pictures are
duplicates only if these remainders correlate. Where strangers do not agree with the picture no design is shared, and
nothing is asked: a first test on thumbnails costs 1 ms per picture.
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

COARSE = 64  # pixels of the longer side at which a place is looked for
THUMB_SHADE = 2.0  # pixels of a thumbnail; what changes more slowly is light
FINE = 96  # pixels of the longer side at which it is refined
STEPS = 25  # of the refinement
TURNS = 8
CORRELATES = 0.3  # within a cell, of what the design leaves; by chance one cell in six does
TRACE = 0.0005  # square of the local contrast: below this nothing is left of a cell
RIDGE = 1e-3  # keeps a regression on nearly blank cells finite

CROWD = 1024  # pictures of a set, at most, that strangers are taken from
NEAR = 12  # nearest pictures in features, among which duplicates are looked for: these are no strangers
MANY, LAID = 24, 12  # strangers that are placed, and of these the best that are laid over the picture
FEW = 4  # strangers at least: with fewer no design is shared, or none that could be predicted
ALIKE = 0.5  # correlation of thumbnails; of 100 pictures of tissue, nuclei or boards 95 stay under .46, cells reach .8
SHARED = 0.35  # agreement from which a stranger shares the design: half of what a duplicate needs
RELATIVE = 0.9  # remaining agreement, given the other strangers, from which a stranger is a duplicate itself
PURGES = 4
KEPT = 64  # pictures whose strangers are kept in memory: 2 MB each
OUTLINES = 2000  # kept in memory: 0.1 MB each


class Outline(NamedTuple):
    """A picture at COARSE (h, w), of unit energy; its spectrum, zero padded as `_transform` does; and at FINE."""

    small: NDArray[np.float32]
    spectrum: NDArray[np.complex64]
    fine: NDArray[np.float32]


class Place(NamedTuple):
    """Where a picture lies on another one, both at COARSE, and how well they correlate there (at most 1)."""

    peak: float
    fit: Fit


class Stranger(NamedTuple):
    """A picture of the set laid over another one, and the share of cells in which the two agree."""

    number: int
    cells: Cells
    agreement: float


class Designs:
    """The strangers of every picture of a set.

    names: contents, sorted. greys: thumbnails (N, S, S). features: (N, D), which do not depend on the set, so that a
    set that grew leaves most pictures their strangers. sketch: returns the sketch of a picture.
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
        """A name for all that `measure` depends on, beside the two pictures and the code."""
        chosen = [f"{self.names[each]} {related(each)}" for each in self.choose(here)]
        return hashlib.sha256("\n".join([*chosen, fit.tobytes().hex()]).encode()).hexdigest()[:16]

    def measure(self, here: int, there: int, fit: Fit, related: Callable[[int], bool]) -> float | None:
        """Share of cells of a picture in which another one correlates with it beyond what strangers predict.

        fit: places of the other to places here. related: whether a stranger is known to be a duplicate of either.
        None where no design is shared.
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
        """At most MANY pictures, drawn with a chance of one in their rank of nearness in features: near ones share a
        design where it is rare in the set, far ones are no duplicates.

        Every picture has one draw by its name, and those with the least product of rank and draw are taken: so a
        newcomer to the set takes the place of one, or of none.
        """
        # In whole halvings, for a share that changed with every newcomer would change the choice of all.
        halvings = max(max(len(self.directions) - 1, 0).bit_length() - CROWD.bit_length() + 1, 0)
        crowd = len(self.directions) >> halvings
        order = np.argsort(-(self.directions[:crowd] @ self.directions[index]), kind="stable")
        order = order[order != index]
        order = order[min(max(NEAR >> halvings, 1), crowd // 2) :]
        ranks = np.arange(1, len(order) + 1)
        return [int(other) for other in order[np.argsort(ranks * self.draws[order], kind="stable")[:MANY]]]

    def _is_repeated(self, index: int) -> bool:
        """Do thumbnails of strangers resemble the picture's? One in six suffices to look at them closely."""
        chosen = self.choose(index)[: MANY // 2]
        if len(chosen) < FEW / 2:
            return False
        side = self.greys.shape[-1]
        spectra = [self.thumb(other)[1] for other in chosen]
        found = _correlate_turned(self.thumb(index)[0], spectra, side)
        peaks = np.sort(found.max(axis=(1, 2, 3)))[::-1]
        return bool(peaks[max(len(peaks) // 6 - 1, 0)] >= ALIKE)

    def _create_thumb(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.complex64]]:
        """The thumbnail without light and shade, and its spectrum."""
        small = _normalise(flatten(self.greys[index], THUMB_SHADE))
        return small, _transform([small], small.shape[0])[0]

    def _find_strangers(self, index: int) -> list[Stranger]:
        """Of the LAID pictures that fit best those that share the design, without those that turn out duplicates."""
        chosen, outline, sketch = self.choose(index), self.outline(index), self.sketch(index)
        places = find_places(outline, [self.outline(other) for other in chosen])
        best = sorted(zip(chosen, places, strict=True), key=lambda each: (-each[1].peak, each[0]))[:LAID]
        if len(best) < FEW or best[FEW - 1][1].peak < ALIKE:
            return []  # what thumbnails promised is not kept
        laid = []
        for other, place in best:
            detail = self.sketch(other).detail
            fit = refine_place(outline, self.outline(other), place, (sketch.detail.shape, detail.shape))
            agreement = measure_agreement(sketch.detail, detail, fit)
            if agreement >= SHARED:
                laid.append(Stranger(other, lay_cells(detail, fit, sketch.detail.shape), agreement))
        return _drop_relatives(to_cells(blur(sketch.detail)), laid)


def _drop_relatives(first: NDArray[np.float32], laid: list[Stranger]) -> list[Stranger]:
    """Without strangers that share with the picture what the other strangers do not predict."""
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
    """Once per picture."""
    small = _normalise(_shrink(sketch.detail, COARSE))
    return Outline(small, _transform([small], COARSE)[0], _shrink(sketch.detail, FINE))


def find_places(first: Outline, others: Sequence[Outline]) -> list[Place]:
    """Where each of the others lies on the first: the best of eight turns and of shifts up to half a side."""
    places = []
    for found in _correlate_turned(first.small, [other.spectrum for other in others], COARSE):
        turn, y, x = (int(at) for at in np.unravel_index(int(found.argmax()), found.shape))
        moved = np.eye(3)
        moved[:2, 2] = [-at if at <= COARSE // 2 else _padded(COARSE) - at for at in (x, y)]
        fit = np.linalg.inv(place_turn((first.small.shape[0], first.small.shape[1]), turn)) @ moved
        places.append(Place(float(found[turn, y, x]), fit))
    return places


def refine_place(first: Outline, other: Outline, place: Place, shapes: tuple[tuple[int, ...], ...]) -> Fit:
    """The affine fit at full size (h, w) of both that correlates most (Evangelidis and Psarakis 2008,
    https://doi.org/10.1109/TPAMI.2008.113); the place itself where the two have too little in common."""
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
        pass  # refined to a line
    here, there = (place_scale(each.fine.shape, shape) for each, shape in zip((first, other), shapes, strict=True))
    return np.asarray(here @ fit @ np.linalg.inv(there))


def measure_remaining(
    first: NDArray[np.float32], second: Cells, strangers: Sequence[Cells], component: bool = True
) -> float:
    """Share of cells in which two pictures correlate without what strangers laid over the first predict of them.

    first: (cells, CELL * CELL). Taken off are the strangers' mean, its slopes, which absorb a fit that is off by a
    fraction of a pixel, and with `component` that in which the strangers differ most from one another. 0 where too
    few cells hold anything else.
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
    """What strangers predict of each cell: their mean, its slopes, and their first principal component."""
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
    """Correlation of each of the others with the first in eight turns at every shift (K, TURNS, y, x) up to half a
    side; -1 beyond. Negative shifts count from the end."""
    from scipy.fft import irfft2

    turned = _transform([turn_picture(first, turn) for turn in range(TURNS)], side).conj()
    steps = np.arange(_padded(side))
    beyond = np.minimum(steps, len(steps) - steps) > side // 2
    found = np.asarray(irfft2(turned * np.stack(spectra)[:, None], overwrite_x=True), np.float32)
    found[:, :, beyond] = -1
    found[:, :, :, beyond] = -1
    return found


def _padded(side: int) -> int:
    """So that what is shifted by half a side meets nothing but zeros at the other end."""
    return 2 * (side - side // 4)


def _transform(pictures: Sequence[NDArray[np.float32]], side: int) -> NDArray[np.complex64]:
    """Spectra of pictures (h, w), zero padded to one size."""
    from scipy.fft import rfft2

    padded = np.zeros((len(pictures), _padded(side), _padded(side)), np.float32)
    for row, picture in zip(padded, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = picture
    return np.asarray(rfft2(padded), dtype=np.complex64)


def _normalise(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0, energy 1."""
    centred = small - small.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), np.float32)


def _shrink(detail: NDArray[np.int8], side: int) -> NDArray[np.float32]:
    import cv2

    zoom = side / max(detail.shape)
    size = max(round(detail.shape[1] * zoom), 1), max(round(detail.shape[0] * zoom), 1)
    return np.asarray(cv2.resize(detail.astype(np.float32) / 32, size, interpolation=cv2.INTER_AREA), np.float32)
