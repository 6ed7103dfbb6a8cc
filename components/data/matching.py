"""Do two pictures show one thing? Points matched under a similarity, then every part of the overlap compared.

Points alone (SIFT, https://doi.org/10.1023/B:VISI.0000029664.99615.94; inliers of a similarity by RANSAC) would join
pictures that merely share a frame, a fixture or a printed label. So the second picture is laid over the first, the fit
refined first, because copies may be sheared, and the overlap is cut into cells: the agreement is the share of cells in
which both hold the same detail. Light and shade are divided out beforehand, which makes exposures alike. A mirrored
picture costs no second look at it: mirroring only reorders a SIFT descriptor.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from components.data.images import FORMATS

METHOD = 1  # counts up when the same pictures would match otherwise: what was seen before is looked at again
SIDE = 192  # pixels of the longer side: enough points, 15 ms
POINTS = 300
CELL = 16  # pixels: an object of a tenth of the picture's area covers a dozen cells
SHADE = 8.0  # pixels: what changes more slowly is light
GRAIN = 1.5  # pixels: what changes faster is noise, or a fit that is off by one
MIN_CONTRAST = 2.0  # grey levels: less detail is noise of the camera
MIN_INLIERS = 8  # of 400 pairs of different tissue none had more than 4
MIN_OVERLAP = 1 / 3  # of the smaller picture: less may be a printed label, or the next tile's margin
AGREES = 0.5  # correlation within a cell
BLANK = 0.01  # square of the local contrast: below this a cell holds no detail
MIN_CELLS = 4
REACH = 3.0  # pixels between a point and where the fit wants it
SLACK = 16.0  # pixels within which the refined fit looks for more matches
RATIO = 0.8  # of distances to the nearest and second nearest descriptor, as Lowe has it
MAX_ZOOM = 3.0

#: Of a descriptor (rows, columns, directions): rows and directions reversed, as a mirror does.
MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].ravel()


@dataclass(frozen=True)
class Sketch:
    """What is kept of a picture to compare it: its detail (h, w) in 1/32 of the local contrast, points, descriptors."""

    detail: NDArray[np.int8]
    points: NDArray[np.float32]
    descriptors: NDArray[np.uint8]


@dataclass(frozen=True)
class Match:
    """How well two pictures fit: points in place, and the share of the overlap that agrees (0 where nothing fits)."""

    inliers: int = 0
    agreement: float = 0.0


def read_grey(path: Path, side: int = SIDE) -> NDArray[np.uint8]:
    """The upright picture in grey, its longer side `side` pixels."""
    with Image.open(path, formats=FORMATS) as opened:
        opened.draft("L", (2 * side, 2 * side))
        grey = ImageOps.exif_transpose(opened).convert("RGB").convert("L")
    zoom = side / max(grey.size)
    size = max(round(grey.width * zoom), CELL), max(round(grey.height * zoom), CELL)
    return np.asarray(grey.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))


def create_sketch(grey: NDArray[np.uint8]) -> Sketch:
    """Detail and points of a grey picture."""
    import cv2

    detail = _flatten(grey)
    sift = cv2.SIFT.create(nfeatures=POINTS, contrastThreshold=0.02)
    found, descriptors = sift.detectAndCompute(np.clip(128 + detail * 40, 0, 255).astype(np.uint8), None)
    if descriptors is None:
        found, descriptors = (), np.zeros((0, 128), np.float32)
    points = np.array([point.pt for point in found], dtype=np.float32).reshape(-1, 2)
    return Sketch(np.clip(np.rint(detail * 32), -127, 127).astype(np.int8), points, descriptors.astype(np.uint8))


def match_sketches(first: Sketch, second: Sketch) -> Match:
    """Wherever the second picture lies in the first: turned, moved, smaller, larger or mirrored."""
    import cv2

    if min(len(first.points), len(second.points)) < MIN_INLIERS:
        return Match()
    best: tuple[int, Any, NDArray[np.float32], NDArray[np.float32], bool] | None = None
    units = _unit(first.descriptors), _unit(second.descriptors)
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
            break  # a picture is not its own mirror image
    if best is None:
        return Match()
    inliers, fit, here, there, mirrored = best
    detail = np.ascontiguousarray(second.detail[:, ::-1]) if mirrored else second.detail
    return Match(inliers, max(_agreement(first.detail, detail, each) for each in _refine(fit, here, there)))


def match_turned(first: Sketch, second: Sketch, turn: int) -> Match:
    """For pictures without points: the second turned as `turn_picture` does, and laid over the whole of the first."""
    import cv2

    height, width = first.detail.shape
    turned = cv2.resize(np.ascontiguousarray(turn_picture(second.detail, turn)), (width, height))
    return Match(0, _agreement(first.detail, turned, np.eye(3)))


def turn_picture(picture: NDArray[Any], turn: int) -> NDArray[Any]:
    """One of the eight ways a picture (..., h, w) can lie on a square: quarter turns, and mirrored from 4 on."""
    turned = np.rot90(picture, turn % 4, axes=(-2, -1))
    return turned if turn < 4 else turned[..., ::-1]


def _flatten(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The picture less its shade, in units of its local contrast."""
    import cv2

    picture = grey.astype(np.float32)
    detail = picture - cv2.GaussianBlur(picture, (0, 0), SHADE)
    contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), SHADE))
    return np.asarray(detail / (contrast + MIN_CONTRAST), dtype=np.float32)


def _match_points(
    first: Sketch, second: Sketch, units: tuple[NDArray[np.float32], NDArray[np.float32]], mirrored: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Places in both pictures of the points that are each other's nearest, and clearly so."""
    here, there = units
    alike = here @ (there[:, MIRRORED] if mirrored else there).T
    rows = np.arange(len(alike))
    nearest = alike.argmax(axis=1)
    top = alike[rows, nearest]
    alike[rows, nearest] = -1
    clear = np.flatnonzero((1 - top) < RATIO**2 * (1 - alike.max(axis=1)))
    alike[rows, nearest] = top
    chosen = clear[alike[:, nearest[clear]].argmax(axis=0) == clear]  # few are clear: fewer columns to look through
    points = second.points[nearest[chosen]]
    if mirrored:
        points = np.array([second.detail.shape[1] - 1, 0], np.float32) + points * np.array([-1, 1], np.float32)
    return first.points[chosen], points


def _unit(descriptors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RootSIFT (Arandjelovic and Zisserman 2012): dot products are Hellinger's."""
    values = descriptors.astype(np.float32)
    return np.asarray(np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1)), dtype=np.float32)


def _refine(fit: NDArray[np.float64], here: NDArray[np.float32], there: NDArray[np.float32]) -> list[NDArray[Any]]:
    """The similarity, and what shear and perspective make of it by the matches it nearly explains."""
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


def _agreement(here: NDArray[np.int8], there: NDArray[np.int8], fit: NDArray[Any]) -> float:
    """Share of the cells of the overlap that correlate; 0 where the overlap is too small to tell.

    Blank cells, in which neither picture has detail, say nothing and are left out.
    """
    import cv2

    height, width = here.shape
    size = (width, height)
    laid = cv2.warpPerspective(there.astype(np.float32), fit, size)
    covered = _cells(cv2.warpPerspective(np.ones_like(there, np.uint8), fit, size, flags=cv2.INTER_NEAREST))
    first, second = (
        _cells(cv2.GaussianBlur(picture.astype(np.float32) / 32, (0, 0), GRAIN)) for picture in (here, laid)
    )
    inside = covered.min(axis=1) > 0
    smaller = min(len(inside), there.size * abs(float(np.linalg.det(fit[:2, :2]))) / CELL**2)
    if inside.sum() < MIN_OVERLAP * smaller:
        return 0.0
    first, second = (cells[inside] - cells[inside].mean(axis=1, keepdims=True) for cells in (first, second))
    one, two = (first * first).mean(axis=1), (second * second).mean(axis=1)
    seen = np.maximum(one, two) > BLANK
    if seen.sum() < MIN_CELLS:
        return 0.0
    correlation = (first * second).mean(axis=1)[seen] / np.sqrt(np.maximum(one * two, 1e-6))[seen]
    return float((correlation > AGREES).mean())


def _cells(picture: NDArray[Any]) -> NDArray[Any]:
    """(h, w) as (cells, CELL * CELL); what is left over at the edges is left out."""
    rows, columns = picture.shape[0] // CELL, picture.shape[1] // CELL
    cut = picture[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    return cut.swapaxes(1, 2).reshape(-1, CELL * CELL)
