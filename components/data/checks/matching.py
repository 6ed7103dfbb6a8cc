"""Decides whether two pictures show one thing: matches points under a similarity, then compares the whole overlap.

Points alone (SIFT, https://doi.org/10.1023/B:VISI.0000029664.99615.94; inliers of a similarity by RANSAC) would join
pictures that only share a frame, a fixture or a printed label. Therefore the fit is refined (copies may be sheared),
the second picture is laid over the first, and the overlap is divided into cells. The agreement is the share of cells in
which both pictures have the same detail. Illumination is divided out first, so that exposures become comparable. A
mirrored picture needs no second set of points: mirroring only reorders a SIFT descriptor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.data.sources.images import MAX_MEGAPIXELS, open_picture

METHOD = 2  # increase when the same pictures would match differently: earlier comparisons are then repeated
SIDE = 192  # pixels of the longer side: gives enough points in 15 ms
POINTS = 300
CELL = 16  # pixels: an object of a tenth of the picture's area covers a dozen cells
SHADE = 8.0  # pixels: slower changes are illumination
GRAIN = 1.5  # pixels: faster changes are noise, or a fit that is off by one pixel
MIN_CONTRAST = 2.0  # grey levels: less detail is camera noise
MIN_INLIERS = 8  # of 400 pairs of different tissue none had more than 4
MIN_OVERLAP = 1 / 3  # of the smaller picture: less may be a printed label, or the margin of the next tile
AGREES = 0.5  # correlation above which a cell agrees
MIN_AGREEMENT = 0.7  # 95 of 100 true pairs of tissue, also sheared ones, have more; other pairs have 0
BLANK = 0.01  # squared local contrast below which a cell has no detail
MIN_CELLS = 4
REACH = 3.0  # pixels between a point and its place under the fit, at most
SLACK = 16.0  # pixels within which the refinement searches more matches
RATIO = 0.8  # of distances to the nearest and second nearest descriptor, as Lowe has it
MAX_ZOOM = 3.0

Fit = NDArray[np.float64]  # (3, 3): places (x, y, 1) of the second picture -> places of the first

#: Permutation of a descriptor (rows, columns, directions) under mirroring: rows and directions are reversed.
MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].ravel()


class Points(NamedTuple):
    """Places (N, 2) as x, y, and SIFT descriptors (N, 128) of the points."""

    places: NDArray[np.float32]
    descriptors: NDArray[np.uint8]


class Sketch:
    """The data by which a picture is compared: its detail (h, w) in 1/32 of the local contrast, and its points."""

    def __init__(self, grey: NDArray[np.uint8]) -> None:
        self.grey = grey
        self.detail = np.clip(np.rint(flatten(grey) * 32), -127, 127).astype(np.int8)
        self._points: Points | None = None

    @property
    def points(self) -> Points:
        """The points, computed at first use: they cost four times as much as the rest, and strangers need none."""
        if self._points is None:  # two threads may both compute the same points
            self._points = find_points(self.grey)
        return self._points


@dataclass(frozen=True)
class Match:
    """How well two pictures fit: the number of points in place, the share of the overlap that agrees (0 without a fit),
    and the fit, row by row: places of the second picture, turned or mirrored, to places of the first."""

    inliers: int = 0
    agreement: float = 0.0
    fit: tuple[float, ...] | None = None


def read_grey(path: Path, side: int = SIDE, max_megapixels: float = MAX_MEGAPIXELS) -> NDArray[np.uint8]:
    """The upright picture in grey, resized to a longer side of `side` pixels."""
    with open_picture(path, max_megapixels) as opened:
        opened.image.draft("L", (2 * side, 2 * side))
        picture = opened.decode()
        zoom = side / max(picture.size)
        width, height = (max(round(length * zoom), CELL) for length in picture.size)
        return np.asarray(picture.shrink((width, height), "L"))


def find_points(grey: NDArray[np.uint8]) -> Points:
    """The POINTS strongest points of a grey picture (h, w)."""
    import cv2

    detail = flatten(grey)
    sift = cv2.SIFT.create(nfeatures=POINTS, contrastThreshold=0.02)
    found, descriptors = sift.detectAndCompute(np.clip(128 + detail * 40, 0, 255).astype(np.uint8), None)
    if descriptors is None:
        found, descriptors = (), np.zeros((0, 128), np.float32)
    points = np.array([point.pt for point in found], dtype=np.float32).reshape(-1, 2)
    return Points(points, descriptors.astype(np.uint8))


def match_sketches(first: Sketch, second: Sketch) -> Match:
    """Match two pictures by points: the second may be turned, moved, smaller, larger or mirrored."""
    import cv2

    if min(len(first.points.places), len(second.points.places)) < MIN_INLIERS:
        return Match()
    best: tuple[int, Any, NDArray[np.float32], NDArray[np.float32], bool] | None = None
    units = _unit(first.points.descriptors), _unit(second.points.descriptors)
    for mirrored in (False, True):
        here, there = _match_points(first, second, units, mirrored)
        if len(here) < MIN_INLIERS:
            continue
        fit, inside = cv2.estimateAffinePartial2D(
            there, here, method=cv2.RANSAC, ransacReprojThreshold=REACH + 1, maxIters=500
        )
        inliers = 0 if fit is None else int(inside.sum())
        if (
            inliers >= MIN_INLIERS
            and 1 / MAX_ZOOM < np.hypot(*fit[:, 0]) < MAX_ZOOM
            and (not best or inliers > best[0])
        ):
            best = inliers, fit, here, there, mirrored
        if inliers > len(here) / 2:
            break  # a pair that matches need not be tried mirrored
    if best is None:
        return Match()
    inliers, fit, here, there, mirrored = best
    mirror = place_turn((second.detail.shape[0], second.detail.shape[1]), 4 if mirrored else 0)
    return _best_match(inliers, first, second, [each @ mirror for each in _refine(fit, here, there)])


def match_turned(first: Sketch, second: Sketch, turn: int) -> Match:
    """Match pictures without points: the second is turned as `turn_picture` does and laid over the whole first one."""
    height, width = second.detail.shape
    turned = (width, height) if turn % 2 else (height, width)
    fit = place_scale(turned, (first.detail.shape[0], first.detail.shape[1])) @ place_turn((height, width), turn)
    return _best_match(0, first, second, [fit])


def _best_match(inliers: int, first: Sketch, second: Sketch, fits: Sequence[Fit]) -> Match:
    agreements = [measure_agreement(first.detail, second.detail, fit) for fit in fits]
    best = int(np.argmax(agreements))
    return Match(inliers, agreements[best], tuple(fits[best].ravel().tolist()) if agreements[best] else None)


def turn_picture(picture: NDArray[Any], turn: int) -> NDArray[Any]:
    """The picture (..., h, w) in one of its eight orientations: quarter turns 0 to 3, mirrored from 4 on."""
    turned = np.rot90(picture, turn % 4, axes=(-2, -1))
    return turned if turn < 4 else turned[..., ::-1]


def place_turn(shape: tuple[int, int], turn: int) -> Fit:
    """The fit that maps places of a picture (h, w) to their places after `turn_picture`."""
    height, width = shape
    fit = np.eye(3)
    for _ in range(turn % 4):
        fit = np.array([[0.0, 1, 0], [-1, 0, width - 1], [0, 0, 1]]) @ fit
        height, width = width, height
    return fit if turn < 4 else np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ fit


def place_scale(shape: tuple[int, ...], size: tuple[int, ...]) -> Fit:
    """The fit that maps places under resizing from one (h, w) to another. A place is the middle of a square pixel."""
    y, x = size[0] / shape[0], size[1] / shape[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def flatten(grey: NDArray[Any], shade: float = SHADE) -> NDArray[np.float32]:
    """The picture without illumination, in units of its local contrast. shade: pixels; slower changes are removed."""
    import cv2

    picture = grey.astype(np.float32)
    detail = picture - cv2.GaussianBlur(picture, (0, 0), shade)
    contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), shade))
    return np.asarray(detail / (contrast + MIN_CONTRAST), dtype=np.float32)


def _match_points(
    first: Sketch, second: Sketch, units: tuple[NDArray[np.float32], NDArray[np.float32]], mirrored: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Places in both pictures of the points that are each other's nearest and pass the ratio test."""
    here, there = units
    alike = here @ (there[:, MIRRORED] if mirrored else there).T
    rows = np.arange(len(alike))
    nearest = alike.argmax(axis=1)
    top = alike[rows, nearest]
    alike[rows, nearest] = -1
    clear = np.flatnonzero((1 - top) < RATIO**2 * (1 - alike.max(axis=1)))
    alike[rows, nearest] = top
    chosen = clear[alike[:, nearest[clear]].argmax(axis=0) == clear]  # only clear columns: they are few
    points = second.points.places[nearest[chosen]]
    if mirrored:
        points = np.array([second.detail.shape[1] - 1, 0], np.float32) + points * np.array([-1, 1], np.float32)
    return first.points.places[chosen], points


def _unit(descriptors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RootSIFT (Arandjelovic and Zisserman 2012): dot products become Hellinger kernels."""
    values = descriptors.astype(np.float32)
    return np.asarray(np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1)), dtype=np.float32)


def _refine(fit: NDArray[np.float64], here: NDArray[np.float32], there: NDArray[np.float32]) -> list[NDArray[Any]]:
    """The similarity, and its refinements by shear and perspective, from the matches that it nearly explains."""
    import cv2

    fits = [np.vstack([fit, [0, 0, 1]])]
    near = np.linalg.norm(there @ fit[:, :2].T + fit[:, 2] - here, axis=1) < SLACK
    affine, _ = cv2.estimateAffine2D(
        there[near], here[near], method=cv2.RANSAC, ransacReprojThreshold=REACH, maxIters=500
    )
    if affine is not None:
        fits.append(np.vstack([affine, [0, 0, 1]]))
    if near.sum() >= 2 * MIN_INLIERS:
        perspective, _ = cv2.findHomography(there[near], here[near], cv2.RANSAC, REACH, maxIters=500)
        if perspective is not None:
            fits.append(perspective)
    return fits


def measure_agreement(here: NDArray[np.int8], there: NDArray[np.int8], fit: Fit) -> float:
    """The share of the overlap's cells that correlate; 0 if the overlap is too small.

    Cells in which neither picture has detail are not counted.
    """
    first, second = to_cells(blur(here)), lay_cells(there, fit, here.shape)
    inside = second.covered
    smaller = min(len(inside), there.size * abs(float(np.linalg.det(fit[:2, :2]))) / CELL**2)
    if inside.sum() < MIN_OVERLAP * smaller:
        return 0.0
    correlation = correlate(first[inside], second.detail[inside], BLANK)
    return float((correlation > AGREES).mean()) if len(correlation) >= MIN_CELLS else 0.0


class Cells(NamedTuple):
    """A picture laid over another one: its detail (cells, CELL * CELL), and which cells of the other it covers."""

    detail: NDArray[np.float32]
    covered: NDArray[np.bool_]


def lay_cells(detail: NDArray[np.int8], fit: Fit, shape: tuple[int, ...]) -> Cells:
    """The detail of a picture in the cells of another one of shape (h, w), under the fit."""
    import cv2

    size = (shape[1], shape[0])
    laid = cv2.warpPerspective(detail.astype(np.float32), fit, size)
    covered = cv2.warpPerspective(np.ones_like(detail, np.uint8), fit, size, flags=cv2.INTER_NEAREST)
    return Cells(to_cells(blur(laid)), to_cells(covered).min(axis=1) > 0)


def blur(detail: NDArray[Any]) -> NDArray[np.float32]:
    """The detail without grain, in units of the local contrast."""
    import cv2

    return np.asarray(cv2.GaussianBlur(detail.astype(np.float32) / 32, (0, 0), GRAIN), np.float32)


def correlate(first: NDArray[np.float32], second: NDArray[np.float32], blank: float) -> NDArray[np.float32]:
    """The correlation of each cell (cells, CELL * CELL) of two pictures, without the cells that are blank in both."""
    first, second = (cells - cells.mean(axis=1, keepdims=True) for cells in (first, second))
    one, two = (first * first).mean(axis=1), (second * second).mean(axis=1)
    seen = np.maximum(one, two) > blank
    return np.asarray((first * second).mean(axis=1)[seen] / np.sqrt(np.maximum(one * two, 1e-6))[seen], np.float32)


def to_cells(picture: NDArray[Any]) -> NDArray[Any]:
    """A picture (h, w) as cells (cells, CELL * CELL); pixels beyond the last whole cell are dropped."""
    rows, columns = picture.shape[0] // CELL, picture.shape[1] // CELL
    cut = picture[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    return cut.swapaxes(1, 2).reshape(-1, CELL * CELL)
