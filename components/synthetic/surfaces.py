"""Surface defects: a simulated domain, so that everything can be shown without real photographs.

    create_surface_defects(Path("data/surface_defects/raw"))        # 480 photographs, 48 lots, 6 classes

A surface is a height (in pixels) and an albedo. A texture creates both, a defect changes both, and one lamp
shades them: a groove gets a bright and a dark flank, and a crater a lit rim, because they are grooves and
craters. Then the optics blur the light, and the sensor adds shot and read noise.

Images of one lot share texture, lamp and camera and show different places of a part; lots differ. Therefore
the lot is the group that a split must not divide.

The same seed gives the same bytes on any machine: one generator per image, float64 throughout, one rounding at
the end, fixed JPEG settings, masks stored uncompressed (deflate output differs between builds of zlib).
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from components.errors import DataError
from components.files import whole_folder

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

SURFACES = ("ground", "brushed", "cast", "woven")
DEFECTS = ("scratch", "pit", "crack", "inclusion", "stain")
COLUMNS = ("image", "label", "mask", "boxes", "lot", "surface")
REFERENCE = 160.0  # all lengths below are pixels of a picture with this side, and scale with `size`


def create_surface_defects(
    folder: Path,
    *,
    lots: int = 48,
    images_per_lot: int = 10,
    size: int = 160,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write images/, masks/ and labels.csv into `folder`, which appears only when it is complete.

    progress(done, total) is called after every image. Raises DataError if the folder is not empty, for a
    size below 32 pixels, a seed below 0, or if no image is requested.
    """
    _require_possible(folder, lots=lots, images_per_lot=images_per_lot, size=size, seed=seed)
    with whole_folder(folder) as fresh:
        for name in ("images", "masks"):
            (fresh / name).mkdir(parents=True)
        rows: list[tuple[str, ...]] = []
        for number in range(lots):
            lot = create_lot(seed, number)
            for index, label in enumerate(lot_labels(seed, number, images_per_lot)):
                picture, mask = render(lot, label, size, np.random.default_rng([seed, number, index + 1]))
                rows.append(_save(fresh, f"lot{number:03d}_{index:02d}", picture, mask, label, lot))
                if progress:
                    progress(len(rows), lots * images_per_lot)
        _write_table(fresh / "labels.csv", rows)


# Lots


@dataclass(frozen=True)
class Lot:
    """The properties that the photographs of one lot share. Angles in radians, lengths in reference pixels."""

    number: int
    surface: str
    lay: float  # direction of the grinding marks, the brush or the warp
    pitch: float  # how coarse the texture is, 1 = as designed
    relief: float  # how strongly slopes are shaded: grazing light shows more
    contrast: float  # of the texture's own albedo
    variant: float  # 0..1, a further choice of each texture
    lamp: float  # direction the light comes from
    gradient: float
    vignette: float
    hot_spot: tuple[float, float, float, float]  # x, y in -0.5..0.5 of the side, radius in sides, strength
    exposure: float
    blur: float
    noise: float


def create_lot(seed: int, number: int) -> Lot:
    """The lot with this number. Consecutive lots have different surfaces, so that few lots contain all of them."""
    rng = np.random.default_rng([seed, number, 0])
    u = rng.uniform
    return Lot(
        number=number,
        surface=SURFACES[number % len(SURFACES)],
        lay=u(0, np.pi),
        pitch=u(0.75, 1.45),
        relief=u(0.55, 1.15),
        contrast=u(0.6, 1.3),
        variant=u(0, 1),
        lamp=u(0, 2 * np.pi),
        gradient=u(0.1, 0.55),
        vignette=u(0.1, 0.5),
        hot_spot=(u(-0.6, 0.6), u(-0.6, 0.6), u(0.15, 0.45), u(0.0, 1.0) ** 1.5),
        exposure=u(0.26, 0.72),
        blur=u(0.4, 0.75),
        noise=u(0.008, 0.022),
    )


def lot_labels(seed: int, number: int, images: int) -> list[str]:
    """The labels of a lot in shuffled order: `none` and every defect in turn, with another start in each lot."""
    turn = [DEFECTS[(i + 3 * number) % len(DEFECTS)] for i in range(len(DEFECTS))]
    labels = [("none", *turn)[i % 6] for i in range(images)]
    order = np.random.default_rng([seed, number, 0, 1]).permutation(images)
    return [labels[i] for i in order]


# A picture


@dataclass
class Scene:
    """The part under the camera during its simulation; textures and defects change it in place."""

    height: Array  # (S, S) pixels
    albedo: Array  # (S, S)
    scale: float  # pixels of this picture per reference pixel
    lot: Lot

    @property
    def size(self) -> int:
        return int(self.height.shape[0])


def render(lot: Lot, label: str, size: int, rng: Rng) -> tuple[NDArray[np.uint8], Mask]:
    """One photograph and the mask of its defects, both (size, size)."""
    scene = Scene(np.zeros((size, size)), np.ones((size, size)), size / REFERENCE, lot)
    TEXTURES[lot.surface](scene, rng)
    dust(scene, rng)
    mask = np.zeros((size, size), dtype=np.bool_)
    if label != "none":
        for _ in range(rng.choice([1, 2, 3], p=[0.6, 0.27, 0.13])):
            mask |= PAINTERS[label](scene, rng)
    return expose(scene, rng), mask


def _axes(size: int, angle: float) -> tuple[Array, Array]:
    """Coordinates along and across a direction, in pixels from the centre."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _streaks(rng: Rng, along: Array, across: Array, length: float, width: float, order: int = 1) -> Array:
    """Noise of unit deviation, stretched along a direction by any length."""
    u, v = along / length, across / width
    u, v = u - u.min() + rng.uniform(), v - v.min() + rng.uniform()
    lattice = rng.standard_normal((int(v.max()) + 3, int(u.max()) + 3))
    return np.asarray(ndimage.map_coordinates(lattice, [v, u], order=order, mode="grid-wrap"), dtype=np.float64)


def _grain(rng: Rng, size: int, sigma: float) -> Array:
    """Isotropic noise of unit deviation and a grain of `sigma` pixels."""
    if sigma > 3:
        along, across = _axes(size, rng.uniform(0, np.pi))
        return _streaks(rng, along, across, 2.5 * sigma, 2.5 * sigma, order=3) * 1.6
    noise = ndimage.gaussian_filter(rng.standard_normal((size, size)), sigma, mode="wrap")
    return np.asarray(noise / noise.std(), dtype=np.float64)


# Textures


def ground(scene: Scene, rng: Rng) -> None:
    """Short overlapping grinding marks, slightly curved, with a few deeper ones."""
    lot, size, px = scene.lot, scene.size, scene.scale * scene.lot.pitch
    for lean in (0.0, 0.10 * lot.variant):
        along, across = _axes(size, lot.lay + lean + rng.normal(0, 0.01))
        across = across + (lot.variant - 0.5) * 0.8 * along**2 / (2.0 * size)
        for width, length, gain in ((0.9, 26.0, 0.16), (1.9, 55.0, 0.22), (5.0, 110.0, 0.30)):
            scene.height += gain * px * _streaks(rng, along, across, length * px, width * px)
        deep = _streaks(rng, along, across, 70 * px, 1.3 * px)
        scene.height -= 0.9 * px * np.maximum(deep - 1.7, 0)
        scene.albedo *= 1 + 0.05 * lot.contrast * _streaks(rng, along, across, 90 * px, 2.5 * px)


def brushed(scene: Scene, rng: Rng) -> None:
    """Hairlines across the whole picture, visible by their sheen more than by their depth."""
    lot, size, px = scene.lot, scene.size, scene.scale * scene.lot.pitch
    along, across = _axes(size, lot.lay + rng.normal(0, 0.01))
    for width, length, gain in ((0.8, 90.0, 0.10), (1.6, 260.0, 0.08), (4.5, 600.0, 0.05), (14.0, 900.0, 0.03)):
        streak = _streaks(rng, along, across, length * px, width * px)
        scene.albedo *= 1 + gain * lot.contrast * streak
        scene.height += 1.2 * gain * px * streak
    hair = _streaks(rng, along, across, 130 * px, 1.0 * px)
    scene.albedo *= 1 + 0.16 * np.maximum(hair - 1.9, 0) - 0.14 * np.maximum(-hair - 1.9, 0)


def cast(scene: Scene, rng: Rng) -> None:
    """The skin of a casting: the sand's grain, soft hills, and small dark pores that are no defect."""
    lot, size, px = scene.lot, scene.size, scene.scale * scene.lot.pitch
    coarse = 0.7 + 0.6 * lot.variant
    for sigma, gain in ((0.9, 0.13), (1.8, 0.24), (4.0, 0.26 * coarse), (9.0, 0.40 * coarse)):
        scene.height += gain * px * _grain(rng, size, sigma * px)
    sparkle = np.maximum(_grain(rng, size, 0.7 * px) - 1.6, 0)
    scene.albedo *= 1 + 0.10 * lot.contrast * sparkle + 0.04 * _grain(rng, size, 10 * px)
    pores = np.maximum(_grain(rng, size, 1.1 * px) - 2.7 - 0.6 * (1 - lot.variant), 0)
    scene.albedo *= np.exp(-0.8 * pores)
    scene.height -= 0.6 * px * pores


def woven(scene: Scene, rng: Rng) -> None:
    """Warp and weft of a technical cloth, plain or twill; every thread differs slightly."""
    lot, size, px = scene.lot, scene.size, scene.scale * scene.lot.pitch
    along, across = _axes(size, lot.lay + rng.normal(0, 0.012))
    period, drift = 6.0 * px, 0.9 * px
    a = (along + drift * _grain(rng, size, 18 * px)) / period + rng.uniform(1000, 1001)
    b = (across + drift * _grain(rng, size, 18 * px)) / period + rng.uniform(1000, 1001)
    i, j = np.floor(a).astype(np.int64), np.floor(b).astype(np.int64)
    repeat = 2 if lot.variant < 0.5 else 3
    over = (i + j) % repeat == 0
    round_a, round_b = np.sin(np.pi * (a - i)), np.sin(np.pi * (b - j))
    warp, weft = round_a * (0.55 + 0.45 * round_b), round_b * (0.55 + 0.45 * round_a)
    scene.height += 1.5 * px * np.where(over, warp, weft)
    tone = rng.normal(0, 0.06 * lot.contrast, (2, 64))
    fibre_a = _streaks(rng, along, across, 1.0 * px, 5 * px)
    fibre_b = _streaks(rng, along, across, 5 * px, 1.0 * px)
    thread = np.where(over, tone[0][i % 64] + 0.06 * fibre_a, tone[1][j % 64] + 0.06 * fibre_b)
    scene.albedo *= (0.70 + 0.30 * np.where(over, round_a, round_b)) * (1 + thread)


def dust(scene: Scene, rng: Rng) -> None:
    """A few faint specks of dust, which are not a defect."""
    size, px = scene.size, scene.scale
    for _ in range(int(rng.integers(0, 4))):
        y, x = np.mgrid[:size, :size] - rng.uniform(0, size, 2)[:, None, None]
        speck = np.exp(-(x**2 + y**2) / (2 * (rng.uniform(0.5, 1.0) * px) ** 2))
        scene.albedo *= 1 + rng.uniform(-0.35, 0.35) * speck


# Defects: each function paints one into the scene and returns its mask


def scratch(scene: Scene, rng: Rng) -> Mask:
    """A thin groove with raised lips, and a core that glints or is dirty to a varying degree."""
    px, size = scene.scale, scene.size
    angle, length = rng.uniform(0, np.pi), rng.uniform(28, 125) * px
    t = np.linspace(-0.5, 0.5, 16)
    bow = rng.normal(0, 0.07) * length * 4 * t**2 + np.cumsum(rng.normal(0, 0.12, t.size)) * px
    middle = rng.uniform(0.2, 0.8, 2) * size
    x = middle[0] + length * t * np.cos(angle) - bow * np.sin(angle)
    y = middle[1] + length * t * np.sin(angle) + bow * np.cos(angle)
    width = max(rng.uniform(0.6, 1.25) * px, 0.6)
    distance, place = _stroke(x, y, np.full(t.size, width), size)
    pressure = np.sin(np.pi * np.clip(place, 0.01, 0.99)) ** 0.6
    pressure = pressure * (1 + 0.3 * np.sin(place * rng.uniform(15, 60)))
    core, lips = np.exp(-(distance**2)), np.exp(-(((distance - 1.8) / 0.7) ** 2))
    strength = rng.uniform(0.35, 1.0)
    scene.height *= 1 - 0.6 * strength * core
    scene.height += strength * 1.2 * width * pressure * (0.4 * lips - core)
    tone = rng.uniform(0.2, 0.8) if rng.uniform() < 0.65 else -rng.uniform(0.2, 0.45)
    scene.albedo *= 1 + strength * tone * pressure * core
    return distance < 1.7


def pit(scene: Scene, rng: Rng) -> Mask:
    """A small crater: a dark floor and a rim, lit on the side of the lamp."""
    px = scene.scale
    radius = max(rng.uniform(2.2, 6.5) * px, 1.6)
    distance = _blob(scene, rng, radius, stretch=rng.uniform(1.0, 1.6), ragged=0.15)
    strength = rng.uniform(0.45, 1.0)
    floor = _edge((distance - 1) * 2.2 * radius / px)
    lip = np.exp(-(((distance - 1.25) / 0.22) ** 2))
    scene.height *= 1 - 0.8 * floor
    scene.height += strength * px * (0.9 * lip - (1.0 + 0.25 * radius / px) * floor)
    scene.albedo *= 1 - strength * rng.uniform(0.35, 0.7) * floor
    return distance < 1.2


def crack(scene: Scene, rng: Rng) -> Mask:
    """A jagged dark path that forks and thins out."""
    mask = np.zeros_like(scene.height, dtype=np.bool_)
    heading, length = rng.uniform(0, 2 * np.pi), rng.uniform(35, 110) * scene.scale
    start = rng.uniform(0.25, 0.75, 2) * scene.size - 0.5 * length * np.array([np.cos(heading), np.sin(heading)])
    start = np.clip(start, 0.05 * scene.size, 0.95 * scene.size)  # starts inside, so that it is always visible
    width, strength = rng.uniform(0.65, 1.3) * scene.scale, rng.uniform(0.4, 0.95)
    todo = [(start[0], start[1], heading, length, width)]
    for depth in range(1 + int(rng.integers(0, 3))):
        x, y, heading, length, width = todo[min(depth, len(todo) - 1)]
        steps = max(int(length / (3.0 * scene.scale)), 4)
        turn = heading + rng.normal(0, 0.5, steps) + np.cumsum(rng.normal(0, 0.10, steps))
        stride = length / steps * rng.uniform(0.5, 1.5, steps)
        xs = x + np.cumsum(stride * np.cos(turn)) - stride[0] * np.cos(turn[0])
        ys = y + np.cumsum(stride * np.sin(turn)) - stride[0] * np.sin(turn[0])
        widths = np.maximum(width * np.linspace(1.15, 0.45, steps) * rng.uniform(0.7, 1.3, steps), 0.5)
        distance, _ = _stroke(xs, ys, widths, scene.size)
        gap = np.exp(-(distance**2))
        scene.albedo *= 1 - strength * gap
        scene.height = scene.height * (1 - 0.7 * gap) - strength * 0.5 * width * gap
        mask |= distance < 1.5
        fork = int(rng.integers(steps // 4, max(steps * 3 // 4, steps // 4 + 1)))
        side = 1 if rng.uniform() < 0.5 else -1
        todo.append((xs[fork], ys[fork], heading + side * rng.uniform(0.4, 1.0), length * 0.45, width * 0.8))
    return mask


def inclusion(scene: Scene, rng: Rng) -> Mask:
    """A foreign particle: its own tone and grain instead of the surface's, and a dark seam."""
    px = scene.scale
    radius = max(rng.uniform(4.0, 11) * px, 1.6)
    distance = _blob(scene, rng, radius, stretch=rng.uniform(1.0, 2.4), ragged=0.24)
    inside = _edge((distance - 1) * 2.0 * radius / px)
    strength = rng.uniform(0.5, 1.0)
    tone = -rng.uniform(0.2, 0.5) if rng.uniform() < 0.6 else rng.uniform(0.25, 0.6)
    own = 1 + strength * tone + 0.10 * _grain(rng, scene.size, 1.5 * px)
    scene.albedo = scene.albedo * (1 - inside) + scene.albedo.mean() * own * inside
    scene.albedo *= 1 - 0.3 * strength * np.exp(-(((distance - 1) / 0.14) ** 2))
    scene.height = scene.height * (1 - inside) + 0.4 * px * _grain(rng, scene.size, 1.6 * px) * inside
    return distance < 1.08


def stain(scene: Scene, rng: Rng) -> Mask:
    """A dried drop: faint, large, soft; darker towards its rim, with the texture showing through."""
    px = scene.scale
    radius = rng.uniform(14, 38) * px
    distance = _blob(scene, rng, radius, stretch=rng.uniform(1.0, 1.8), ragged=0.22)
    strength = rng.uniform(0.5, 1.0)
    film = _edge((distance - 1) * rng.uniform(8, 18))
    rim = np.exp(-(((distance - 0.93) / rng.uniform(0.05, 0.11)) ** 2))
    patches = 1 + 0.3 * _grain(rng, scene.size, 8 * px)
    tone = rng.uniform(0.14, 0.34) * (1 if rng.uniform() < 0.8 else -0.7)
    scene.albedo *= np.exp(-strength * (tone * film * patches + 0.7 * tone * rim))
    return distance < 1.1


def _edge(x: Array) -> Array:
    """A smooth step: 1 for negative x, 0 for positive x."""
    return np.asarray(0.5 - 0.5 * np.tanh(0.5 * x), dtype=np.float64)


def _blob(scene: Scene, rng: Rng, radius: float, stretch: float, ragged: float) -> Array:
    """Distance from a random middle in units of an irregular outline: 1 on the outline."""
    size = scene.size
    middle = rng.uniform(0.14, 0.86, 2) * (size - 1) - (size - 1) / 2
    angle = rng.uniform(0, np.pi)
    along, across = _axes(size, angle)
    along = along - (middle[0] * np.cos(angle) + middle[1] * np.sin(angle))
    across = across - (middle[1] * np.cos(angle) - middle[0] * np.sin(angle))
    along, across = along / np.sqrt(stretch), across * np.sqrt(stretch)
    theta = np.arctan2(across, along)
    outline = np.ones_like(theta)
    for order in range(2, 8):
        outline += ragged * rng.normal() / order**0.8 * np.cos(order * theta + rng.uniform(0, 2 * np.pi))
    return np.asarray(np.hypot(along, across) / (radius * np.maximum(outline, 0.45)), dtype=np.float64)


def _stroke(x: Array, y: Array, width: Array, size: int) -> tuple[Array, Array]:
    """Distance from a polyline in units of its local width (9 far away), and the place 0..1 along it."""
    distance, place = np.full((size, size), 9.0), np.zeros((size, size))
    for k in range(x.size - 1):
        reach = 4.5 * max(width[k], width[k + 1])
        left, right = np.clip([min(x[k : k + 2]) - reach, max(x[k : k + 2]) + reach + 1], 0, size).astype(int)
        top, bottom = np.clip([min(y[k : k + 2]) - reach, max(y[k : k + 2]) + reach + 1], 0, size).astype(int)
        if left >= right or top >= bottom:
            continue
        gy, gx = np.mgrid[top:bottom, left:right]
        dx, dy = x[k + 1] - x[k], y[k + 1] - y[k]
        t = np.clip(((gx - x[k]) * dx + (gy - y[k]) * dy) / (dx * dx + dy * dy + 1e-12), 0, 1)
        near = np.hypot(gx - x[k] - t * dx, gy - y[k] - t * dy) / (width[k] + t * (width[k + 1] - width[k]))
        window = np.s_[top:bottom, left:right]
        place[window] = np.where(near < distance[window], (k + t) / (x.size - 1), place[window])
        distance[window] = np.minimum(distance[window], near)
    return distance, place


TEXTURES: dict[str, Callable[[Scene, Rng], None]] = {
    "ground": ground,
    "brushed": brushed,
    "cast": cast,
    "woven": woven,
}
PAINTERS: dict[str, Callable[[Scene, Rng], Mask]] = {
    "scratch": scratch,
    "pit": pit,
    "crack": crack,
    "inclusion": inclusion,
    "stain": stain,
}


# Light and camera


def light(lot: Lot, size: int, rng: Rng) -> Array:
    """The brightness of a white plate at each place, by lamp and lens: gradient, hot spot, vignette."""
    jitter = rng.normal(0, 0.03, 4)
    towards, _ = _axes(size, lot.lamp)
    field = 1 + (lot.gradient + jitter[0]) * towards / size
    x, y, radius, strength = lot.hot_spot
    along, across = _axes(size, lot.lay)
    spread = 3.0 if lot.surface in ("ground", "brushed") else 1.0  # directional marks spread the lamp's reflection
    spot = (along / size - x - jitter[1]) ** 2 + ((across / size - y - jitter[2]) / spread) ** 2
    field += strength * np.exp(-spot / radius**2)
    right, down = _axes(size, 0.0)
    field *= 1 - 0.9 * lot.vignette * (right**2 + down**2) / (0.5 * size**2)
    return np.asarray(field * (1 + jitter[3]), dtype=np.float64)


def expose(scene: Scene, rng: Rng) -> NDArray[np.uint8]:
    """The photograph: shade the relief, blur by the optics, add shot and read noise, round once."""
    lot = scene.lot
    slope_y, slope_x = np.gradient(scene.height)
    facing = -(slope_x * np.cos(lot.lamp) + slope_y * np.sin(lot.lamp))
    shade = np.maximum(1 + lot.relief * facing, 0.08) + 0.5 * np.maximum(facing - 0.45, 0) ** 2
    radiance = lot.exposure * light(lot, scene.size, rng) * scene.albedo * shade
    radiance = ndimage.gaussian_filter(radiance, lot.blur * rng.uniform(0.9, 1.2), mode="nearest")
    noise = rng.standard_normal(radiance.shape) * lot.noise
    signal = radiance + noise * np.sqrt(np.maximum(radiance, 0) + 0.15)
    response = 1 - np.exp(-1.6 * np.maximum(signal, 0))  # the shoulder of a camera's curve
    return np.asarray(np.rint(np.clip(response * 1.12, 0, 1) * 255), dtype=np.uint8)


# Disk


def boxes_of(mask: Mask) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 (ends exclusive) of each connected part, touching corners count as connected."""
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(parts)]


def _save(folder: Path, name: str, picture: NDArray[np.uint8], mask: Mask, label: str, lot: Lot) -> tuple[str, ...]:
    image_path, mask_path = f"images/{name}.jpg", f"masks/{name}.png"
    Image.fromarray(picture).save(folder / image_path, quality=92, subsampling=0, optimize=False)
    bits = Image.fromarray(mask.astype(np.uint8) * 255).convert("1", dither=Image.Dither.NONE)
    bits.save(folder / mask_path, compress_level=0)
    boxes = ";".join(" ".join(map(str, box)) for box in boxes_of(mask))
    return image_path, label, mask_path, boxes, f"lot{lot.number:03d}", lot.surface


def _write_table(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _require_possible(folder: Path, *, lots: int, images_per_lot: int, size: int, seed: int) -> None:
    for name, value, least in (
        ("lots", lots, 1),
        ("images_per_lot", images_per_lot, 1),
        ("size", size, 32),
        ("seed", seed, 0),
    ):
        if value < least:
            raise DataError(name, expected=f"{least} or more", found=str(value), hint=f"Give a larger {name}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        expected, found = "a new folder", "one that is not empty"
        raise DataError(str(folder), expected=expected, found=found, hint="Remove it, or name another folder.")
