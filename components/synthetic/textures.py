"""Procedural grey textures, from which the training images of the embedded backbone are cut.

Each family is a function (rng, side) -> (side, side) float32 of any range. `create_texture` draws a family,
sometimes bends, lights or tilts the texture, and scales it to uint8. The families are those that are known to teach a
network about real images without any: noise with natural spectra, and dead leaves, whose occlusions give the statistics
of photographs (Baradad et al. 2021, arXiv:2106.05963); fractals (Kataoka et al. 2020, arXiv:2101.08515); and, for the
images of this project's users, cells, cracks, scratches, weaves and reaction-diffusion (Turing) patterns.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.float32]
Grey = NDArray[np.uint8]
Rng = np.random.Generator


def create_texture(rng: Rng, side: int) -> Grey:
    """One texture of a random family, (side, side) uint8."""
    names = tuple(TEXTURES)
    field = TEXTURES[names[rng.integers(len(names))]](rng, side)
    for chance, change in ((0.25, bend), (0.2, light), (0.15, tilt), (0.3, retone)):
        if rng.random() < chance:
            field = change(rng, _unit(field))
    return np.asarray(np.clip(_unit(field) * 255, 0, 255), np.uint8)


# Families


def noise(rng: Rng, side: int) -> Field:
    """Gaussian noise with the spectrum 1/f^a, sometimes stretched in one direction or limited to a band."""
    fy, fx = fft.fftfreq(side)[:, None] * side, fft.rfftfreq(side)[None] * side
    angle, stretch = rng.uniform(0, np.pi), 1.0 if rng.random() < 0.5 else np.exp(rng.uniform(0, 2.5))
    u, v = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    radius = np.sqrt((u * stretch) ** 2 + (v / stretch) ** 2)
    gain = (radius + 1) ** -rng.uniform(0.3, 2.6)
    if rng.random() < 0.35:
        centre, width = np.exp(rng.uniform(np.log(4), np.log(side / 3))), rng.uniform(0.15, 0.8)
        gain = np.exp(-(np.log((radius + 0.5) / centre) ** 2) / (2 * width**2))
    spectrum = fft.rfft2(rng.standard_normal((side, side), dtype=np.float32)) * gain.astype(np.float32)
    spectrum[0, 0] = 0
    return np.asarray(fft.irfft2(spectrum, s=(side, side)), np.float32)


def gratings(rng: Rng, side: int) -> Field:
    """Up to four gratings, some in a Gaussian window (Gabor), sine, square or saw, their phase bent by smooth noise."""
    x, y = _grid(side)
    total = np.zeros((side, side), np.float32)
    warp = smooth(rng, side) * rng.choice([0.0, 2.0, 8.0])
    for _ in range(rng.integers(1, 5)):
        angle, cycles = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(2), np.log(50)))
        phase = 2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) + warp + rng.uniform(0, 6.3)
        wave = (np.sin(phase), np.sign(np.sin(phase)), phase % (2 * np.pi) / np.pi - 1)[rng.integers(3)]
        if rng.random() < 0.4:
            cx, cy, width = *rng.uniform(0.1, 0.9, 2), rng.uniform(0.05, 0.3)
            wave = wave * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
        total += wave.astype(np.float32) * rng.uniform(0.3, 1)
    return total


def smooth(rng: Rng, side: int) -> Field:
    """Random numbers on a coarse grid, smoothly interpolated: clouds, gradients, uneven light."""
    coarse = rng.uniform(-1, 1, (rng.integers(2, 9), rng.integers(2, 9))).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.float32)


def voronoi(rng: Rng, side: int) -> Field:
    """Cells around points, random or nearly on a lattice: their shade, their depth, their walls or a mix."""
    if rng.random() < 0.3:
        step = int(rng.integers(8, 48))
        lattice = np.stack(np.meshgrid(np.arange(0, side, step), np.arange(0, side, step)), -1).reshape(-1, 2)
        points = lattice + rng.normal(0, step * rng.uniform(0.02, 0.3), lattice.shape)
    else:
        points = rng.uniform(0, side, (int(np.exp(rng.uniform(np.log(12), np.log(900)))), 2))
    seeds = np.full((side, side), 255, np.uint8)
    column, row = np.clip(points.astype(int), 0, side - 1).T
    seeds[row, column] = 0
    depth, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    shade = rng.uniform(0, 1, labels.max() + 1).astype(np.float32)[labels]
    walls = (cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0) * 1.0
    if rng.random() < 0.5:
        walls = cv2.GaussianBlur(walls, (0, 0), float(rng.uniform(0.6, 2.5)))
    a, b, c = rng.uniform(-1, 1, 3) * (rng.random(3) < 0.6) + (0.2, 0.1, 0.1)
    return np.asarray(a * shade + b * depth / depth.max() + c * walls, np.float32)


def leaves(rng: Rng, side: int) -> Field:
    """Dead leaves: shapes with power-law sizes that cover one another."""
    canvas = np.full((side, side), int(rng.integers(256)), np.uint8)
    kind, smallest = rng.integers(4), rng.uniform(2, 8)
    for _ in range(rng.integers(60, 260)):
        radius = float(min(smallest * rng.random() ** -0.6, side / 3))
        draw_shape(rng, canvas, int(rng.integers(256)), radius, int(kind))
    return canvas.astype(np.float32)


def julia(rng: Rng, side: int) -> Field:
    """Escape times of z^2 + c at a random zoom."""
    x, y = _grid(side)
    zoom = np.exp(rng.uniform(-2, 0.6))
    cx, cy = rng.uniform(-0.7, 0.7, 2)
    z = ((x - 0.5) * 3 * zoom + cx) + 1j * ((y - 0.5) * 3 * zoom + cy)
    z = z.astype(np.complex64)
    angle = rng.uniform(0, 2 * np.pi)
    edge = np.exp(1j * angle) / 2 - np.exp(2j * angle) / 4  # on the cardioid's edge the sets have most detail
    c = np.complex64(edge * rng.uniform(0.98, 1.12))
    times = np.zeros((side, side), np.float32)
    for _ in range(22):
        z = z * z + c
        inside = z.real**2 + z.imag**2 < 16
        times += inside
        z[~inside] = 4
    return np.asarray(times + 0.2 * np.minimum(np.abs(z), 4), np.float32)


def iterated(rng: Rng, side: int) -> Field:
    """Density of an iterated function system of a few random contractions."""
    maps = int(rng.integers(2, 7))
    matrices = rng.uniform(-1, 1, (maps, 2, 2))
    matrices *= (rng.uniform(0.35, 0.85, maps) / np.linalg.norm(matrices, 2, axis=(1, 2)))[:, None, None]
    shifts, points = rng.uniform(-1, 1, (maps, 2)), rng.uniform(-1, 1, (4096, 2))
    counts = np.zeros(side * side)
    for step in range(30):
        chosen = rng.integers(maps, size=len(points))
        points = np.einsum("nij,nj->ni", matrices[chosen], points) + shifts[chosen]
        if step == 8:
            low, span = points.min(0), np.ptp(points, axis=0) + 1e-6
        if step > 8:
            cells = np.clip((points - low) / span * side, 0, side - 1).astype(int)
            counts += np.bincount(cells[:, 1] * side + cells[:, 0], minlength=side * side)
    density = np.log1p(counts).reshape(side, side).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(density, (0, 0), float(rng.uniform(0.5, 1.5))), np.float32)


def turing(rng: Rng, side: int) -> Field:
    """Spots and labyrinths: short-range activation and long-range inhibition, iterated on noise."""
    field = rng.standard_normal((side, side), dtype=np.float32)
    near, ratio, bias = float(rng.uniform(1.2, 4)), float(rng.uniform(1.5, 2.2)), float(rng.uniform(-0.3, 0.3))
    for _ in range(10):
        near_sum = cv2.GaussianBlur(field, (0, 0), near)
        field = np.tanh(rng.uniform(4, 7) * (near_sum - cv2.GaussianBlur(field, (0, 0), near * ratio)) + bias)
    return np.asarray(field, np.float32)


def cells(rng: Rng, side: int) -> Field:
    """Round bodies with rim, nucleus and grains, crowded or sparse, under a little blur."""
    canvas = np.full((side, side), int(rng.integers(120, 256)), np.uint8)
    size, body, rim, core = rng.uniform(6, 34), *rng.integers(0, 256, 3)
    for _ in range(rng.integers(8, 160)):
        centre = tuple(int(v) for v in rng.uniform(-8, side + 8, 2))
        axes = tuple(int(v) for v in np.maximum(size * rng.uniform(0.6, 1.3, 2), 2))
        angle, drift = float(rng.uniform(0, 180)), int(rng.integers(-25, 25))
        cv2.ellipse(canvas, centre, axes, angle, 0, 360, _byte(body + drift), -1, cv2.LINE_AA)
        cv2.ellipse(canvas, centre, axes, angle, 0, 360, _byte(rim + drift), int(rng.integers(1, 3)), cv2.LINE_AA)
        inner = tuple(max(int(v * rng.uniform(0.25, 0.7)), 1) for v in axes)
        cv2.ellipse(canvas, centre, inner, angle, 0, 360, _byte(core + drift), -1, cv2.LINE_AA)
    grain = rng.standard_normal((side, side), dtype=np.float32) * rng.uniform(0, 25)
    return np.asarray(cv2.GaussianBlur(canvas + grain, (0, 0), float(rng.uniform(0.5, 2.2))), np.float32)


def blobs(rng: Rng, side: int) -> Field:
    """Soft spots, bright and dark, of one scale or many."""
    canvas = np.zeros((side, side), np.float32)
    for _ in range(rng.integers(1, 4)):
        dots = np.zeros((side, side), np.float32)
        row, column = rng.integers(side, size=(2, int(np.exp(rng.uniform(1, 6)))))
        dots[row, column] = rng.choice([-1.0, 1.0], len(row)) if rng.random() < 0.5 else 1.0
        spread = float(np.exp(rng.uniform(0.3, 2.6)))
        canvas += cv2.GaussianBlur(dots, (0, 0), spread) * spread**2
    return canvas + smooth(rng, side) * rng.uniform(0, 0.1)


def defects(rng: Rng, side: int) -> Field:
    """A plain or brushed ground with cracks, scratches, pits and chips."""
    ground = smooth(rng, side) * 20 + 128
    if rng.random() < 0.7:
        ground = ground + _unit(noise(rng, side)) * rng.uniform(10, 90)
    canvas = np.clip(ground, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(1, 9)):
        draw_line(rng, canvas, int(rng.integers(256)))
    for _ in range(rng.integers(0, 12)):
        draw_shape(rng, canvas, int(rng.integers(256)), float(np.exp(rng.uniform(0.5, 3))), int(rng.integers(4)))
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.4, 1.5))), np.float32)


def tangle(rng: Rng, side: int) -> Field:
    """Many overlapping lines: fibres, hair, roads, branches."""
    canvas = np.full((side, side), int(rng.integers(256)), np.uint8)
    for _ in range(rng.integers(10, 70)):
        draw_line(rng, canvas, int(rng.integers(256)))
    return canvas.astype(np.float32)


def lattice(rng: Rng, side: int) -> Field:
    """Regular patterns: checks, bricks, dots, weave, rings."""
    x, y = _grid(side)
    angle, cycles, squash = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(3), np.log(30))), rng.uniform(0.5, 1)
    u = cycles * (x * np.cos(angle) + y * np.sin(angle))
    v = cycles * squash * (y * np.cos(angle) - x * np.sin(angle))
    shift = u + 0.5 * (np.floor(v) % 2)
    joint = rng.uniform(0.05, 0.3)
    kind = rng.integers(5)
    if kind == 0:
        field = (np.floor(u) + np.floor(v)) % 2
    elif kind == 1:
        field = ((shift % 1 > joint) & (v % 1 > joint)) * (0.6 + 0.4 * np.sin(37 * np.floor(shift) + 91 * np.floor(v)))
    elif kind == 2:
        field = np.clip(((shift % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 - joint**2) * 20, 0, 1)
    elif kind == 3:
        field = np.where((np.floor(u) + np.floor(v)) % 2, np.abs(np.sin(np.pi * u)), np.abs(np.sin(np.pi * v)))
    else:
        field = np.sin(6.3 * cycles * np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 1)))
    return np.asarray(field, np.float32)


def glyphs(rng: Rng, side: int) -> Field:
    """Letters and digits of many sizes: strokes, corners and ends."""
    canvas = np.full((side, side), int(rng.integers(256)), np.uint8)
    for _ in range(rng.integers(3, 40)):
        text = "".join(chr(code) for code in rng.integers(33, 126, rng.integers(1, 8)))
        at = tuple(int(v) for v in rng.uniform(-20, side, 2))
        size, font, width = float(np.exp(rng.uniform(-1, 1.4))), int(rng.integers(8)), int(rng.integers(1, 6))
        cv2.putText(canvas, text, at, font, size, int(rng.integers(256)), width, cv2.LINE_AA)
    return canvas.astype(np.float32)


TEXTURES: dict[str, Callable[[Rng, int], Field]] = {
    "noise": noise,
    "gratings": gratings,
    "smooth": smooth,
    "voronoi": voronoi,
    "leaves": leaves,
    "julia": julia,
    "iterated": iterated,
    "turing": turing,
    "cells": cells,
    "blobs": blobs,
    "defects": defects,
    "tangle": tangle,
    "lattice": lattice,
    "glyphs": glyphs,
}


# Changes to a field in [0, 1]


def bend(rng: Rng, field: Field) -> Field:
    """Move every pixel along a smooth random vector field."""
    side = field.shape[0]
    strength = rng.uniform(0.02, 0.15) * side
    x, y = (_grid(side)[i] * side + strength * smooth(rng, side) for i in (0, 1))
    moved = cv2.remap(field, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    return np.asarray(moved, np.float32)


def light(rng: Rng, field: Field) -> Field:
    """Light the field, as a height, from one direction (Lambert)."""
    height = cv2.GaussianBlur(field, (0, 0), float(rng.uniform(0.6, 2)))
    angle, steep = rng.uniform(0, 2 * np.pi), rng.uniform(2, 20)
    dx, dy = cv2.Sobel(height, -1, 1, 0) * steep, cv2.Sobel(height, -1, 0, 1) * steep
    lit = (dx * np.cos(angle) + dy * np.sin(angle) + rng.uniform(0.5, 1.5)) / np.sqrt(dx**2 + dy**2 + 1)
    return np.asarray(lit + field * rng.uniform(0, 0.8), np.float32)


def tilt(rng: Rng, field: Field) -> Field:
    """Show the field as a plane in perspective."""
    side = field.shape[0]
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    seen = (corners + rng.uniform(-0.3, 0.3, (4, 2)) * side).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, seen)
    return np.asarray(cv2.warpPerspective(field, matrix, (side, side), borderMode=cv2.BORDER_REFLECT), np.float32)


def retone(rng: Rng, field: Field) -> Field:
    """Turn the field into ridges, steps, a soft threshold or rings."""
    kind = rng.integers(4)
    if kind == 0:
        return np.asarray(np.abs(field - rng.uniform(0.3, 0.7)), np.float32)
    if kind == 1:
        return np.asarray(np.floor(field * rng.integers(2, 8)), np.float32)
    if kind == 2:
        return np.asarray(np.tanh((field - rng.uniform(0.3, 0.7)) * rng.uniform(4, 30)), np.float32)
    return np.asarray(np.sin(field * rng.uniform(6, 30)), np.float32)


# Strokes and shapes


def draw_line(rng: Rng, canvas: NDArray[np.uint8], colour: int | tuple[int, ...]) -> None:
    """Draw a random walk that keeps its direction to a varying degree: from a scratch to a crack."""
    side = canvas.shape[0]
    wander, steps = rng.uniform(0, 0.7), int(rng.integers(2, 30))
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, wander, steps))
    step = rng.uniform(0.2, 1.6) * side / steps
    points = rng.uniform(0, side, 2) + np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1) * step, 0)
    width = int(np.exp(rng.uniform(0, 1.8)))
    cv2.polylines(canvas, [points.astype(np.int32)], False, colour, width, cv2.LINE_AA)


def draw_shape(rng: Rng, canvas: NDArray[np.uint8], colour: int | tuple[int, ...], radius: float, kind: int) -> None:
    """Draw a shape anywhere on the canvas. kind: 0 ellipse, 1 triangle to octagon, 2 box, 3 blob with wavy outline."""
    centre = rng.uniform(0, canvas.shape[0], 2)
    corners = (24, int(rng.integers(3, 9)), 4, 24)[kind]
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + (rng.uniform(0, 0.5, corners) if kind == 1 else 0)
    reach = np.full(corners, radius)
    if kind == 3:
        waves = rng.uniform(-0.25, 0.25, 3)[:, None] * np.sin(np.arange(1, 4)[:, None] * angles + rng.uniform(0, 6.3))
        reach = radius * (1 + waves.sum(0))
    x, y = reach * np.cos(angles), reach * np.sin(angles) * rng.uniform(0.4, 1)
    turn = rng.uniform(0, 2 * np.pi)
    points = centre + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)
    cv2.fillPoly(canvas, [points.astype(np.int32)], colour, cv2.LINE_AA)


def _grid(side: int) -> tuple[Field, Field]:
    """x and y of every pixel in [0, 1)."""
    line = np.arange(side, dtype=np.float32) / side
    return np.broadcast_to(line[None], (side, side)), np.broadcast_to(line[:, None], (side, side))


def _unit(field: Field) -> Field:
    """Scale to [0, 1], clipping beyond 2.5 deviations from the mean, so that few extremes do not flatten the rest."""
    low, high = max(field.min(), field.mean() - 2.5 * field.std()), min(field.max(), field.mean() + 2.5 * field.std())
    return np.asarray(np.clip((field - low) / max(high - low, 1e-6), 0, 1), np.float32)


def _byte(value: float) -> int:
    return int(min(max(value, 0), 255))
