"""Training images on the fly: textures coloured, layered, lit, worn and photographed badly. No photograph is used.

    images = Images(seed=0)
    images.create_batch(step=7, count=48)      # (48, 128, 128, 3) uint8, the same at every call

A batch is a function of (seed, step) alone, which is what makes a resumed run the same run. Textures are dear
(about 4 ms) and images cheap (about 1 ms), so images are cut from a pool of textures of which a few are replaced
at every step; which texture lies in which place at which step is again arithmetic, not history.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from components.synthetic.textures import Grey, Rng, create_texture, draw_line, draw_shape, smooth

Image = NDArray[np.uint8]
POOL = 1024
RENEWED = 3  # textures replaced at each step
TEXTURE_SIDE = 256
# Haematoxylin, eosin, diaminobenzidine: Ruifrok and Johnston 2001, Anal Quant Cytol Histol 23(4), 291-299.
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])

cv2.setNumThreads(1)


class Pool:
    """Textures by place; the one at a place changes when its turn comes round."""

    def __init__(self, seed: int, size: int = POOL) -> None:
        self.seed, self.size = seed, size
        self._ages = np.full(size, -1)
        self._textures = np.zeros((size, TEXTURE_SIDE, TEXTURE_SIDE), np.uint8)

    def move_to(self, step: int) -> None:
        """Make the textures that belong to this step, as far as they are not there already."""
        ages = (step * RENEWED + self.size - 1 - np.arange(self.size)) // self.size
        for place in np.flatnonzero(ages != self._ages):
            rng = np.random.default_rng([self.seed, 0, int(place), int(ages[place])])
            self._textures[place] = create_texture(rng, TEXTURE_SIDE)
        self._ages = ages

    def draw(self, rng: Rng) -> Grey:
        return np.asarray(self._textures[rng.integers(self.size)])


class Images:
    """Batches of training images of `side` pixels."""

    def __init__(self, seed: int, side: int = 128, pool: int = POOL) -> None:
        self.seed, self.side = seed, side
        self._pool = Pool(seed, pool)
        self._noise = np.random.default_rng([seed, 2]).normal(0, 24, (2 * side, 2 * side, 3)).astype(np.int8)

    def create_batch(self, step: int, count: int) -> Image:
        """Images of this step, (count, side, side, 3) uint8; two in five are joined with another one."""
        self._pool.move_to(step)
        rng = np.random.default_rng([self.seed, 1, step])
        batch = np.stack([self.create_image(rng) for _ in range(count)])
        return join_images(rng, batch)

    def create_image(self, rng: Rng) -> Image:
        kinds = (self._layer, self._blend, self._scene, self._mixed, self._stained)
        image = kinds[rng.choice(5, p=(0.2, 0.2, 0.3, 0.1, 0.2))](rng)
        if rng.random() < 0.2:
            for _ in range(rng.integers(1, 5)):
                draw_line(rng, image, tuple(int(v) for v in rng.integers(0, 256, 3)))
        return photograph(rng, image, self._noise)

    def _grey(self, rng: Rng) -> Grey:
        """A texture at a random place, scale (0.35 to 2.8) and turn, sometimes sheared."""
        side, zoom, angle = self.side, np.exp(rng.uniform(-1.05, 1.03)), rng.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        turn[:, 0] *= rng.choice([-1, 1]) * np.exp(rng.normal(0, 0.15))
        centre = rng.uniform(0.15, 0.85, 2) * TEXTURE_SIDE
        matrix = np.hstack([turn, (centre - turn @ (side / 2, side / 2))[:, None]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cut = cv2.warpAffine(self._pool.draw(rng), matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(cut, np.uint8)

    def _layer(self, rng: Rng) -> Image:
        """One texture in the colours of a random palette."""
        return np.asarray(cv2.applyColorMap(self._grey(rng), create_palette(rng)), np.uint8)

    def _blend(self, rng: Rng) -> Image:
        """Two layers, parted by a threshold, hard or soft, on a third texture."""
        mask = (self._grey(rng).astype(np.float32) - rng.uniform(60, 195)) * np.exp(rng.uniform(-4.5, -0.5))
        return _over(self._layer(rng), self._layer(rng), np.clip(mask + 0.5, 0, 1).astype(np.float32))

    def _scene(self, rng: Rng) -> Image:
        """Things before a background: each kind of its own texture, rounded by shading, some with a shadow."""
        image = self._layer(rng)
        for _ in range(rng.integers(1, 4)):
            mask = np.zeros((self.side, self.side), np.uint8)
            kind, radius = int(rng.integers(4)), self.side * np.exp(rng.uniform(-3.3, -0.9))
            for _ in range(rng.integers(1, int(np.clip(12 * self.side / radius / 8, 3, 24)))):
                draw_shape(rng, mask, 255, float(radius * rng.uniform(0.6, 1.4)), kind)
            if rng.random() < 0.4:
                image = _cast_shadow(rng, image, mask)
            layer = _round_off(rng, self._layer(rng), mask) if rng.random() < 0.5 else self._layer(rng)
            image = _over(image, layer, np.asarray(mask / 255, np.float32))
        return image

    def _mixed(self, rng: Rng) -> Image:
        """Three textures through a random colour matrix."""
        stack = np.stack([self._grey(rng) for _ in range(3)], -1).astype(np.float32)
        matrix = rng.dirichlet((0.7, 0.7, 0.7), 3).astype(np.float32)
        return np.asarray(cv2.transform(stack, matrix), np.float32).astype(np.uint8)

    def _stained(self, rng: Rng) -> Image:
        """Dyes of uneven density over one another on a bright ground, as light sees them (Beer and Lambert)."""
        density = np.zeros((self.side, self.side, 3), np.float32)
        for dye in choose_dyes(rng):
            amount = (self._grey(rng) / np.float32(255)) ** np.float32(np.exp(rng.normal(0.3, 0.5)))
            density += amount[..., None] * dye * np.float32(np.exp(rng.normal(0.1, 0.5)))
        ground = np.float32(rng.uniform(200, 256)) * rng.uniform(0.92, 1, 3).astype(np.float32)
        return np.asarray(ground * np.exp(-density), np.float32).clip(0, 255).astype(np.uint8)


def choose_dyes(rng: Rng) -> NDArray[np.float32]:
    """Two or three optical densities (n, 3) in RGB: half near those of the pathologist's stains, half anything."""
    count = int(rng.integers(2, 4))
    dyes = (
        STAINS[rng.permutation(len(STAINS))[:count]] if rng.random() < 0.5 else rng.dirichlet((0.8,) * 3, count) * 1.5
    )
    return np.asarray(dyes * np.exp(rng.normal(0, 0.2, (count, 3))), np.float32)


def create_palette(rng: Rng) -> NDArray[np.uint8]:
    """256 colours, (256, 1, 3), through two to six random ones; near one hue as often as wild, a fifth grey."""
    count = int(rng.integers(2, 7))
    colours = rng.uniform(0, 255, (count, 3))
    kind = rng.random()
    if kind < 0.2:
        colours[:] = colours[:, :1]
    elif kind < 0.65:
        tint = rng.uniform(0.2, 1, 3)
        colours = np.sort(colours[:, :1], 0) * tint + rng.normal(0, 18, (count, 3))
    stops = np.sort(rng.uniform(0, 255, count))
    table = np.stack([np.interp(np.arange(256), stops, colours[:, i]) for i in range(3)], 1)
    return np.asarray(np.clip(table, 0, 255).astype(np.uint8)[:, None])


def photograph(rng: Rng, image: Image, noise: NDArray[np.int8]) -> Image:
    """Uneven light, a camera's tone and colours, blur, noise and JPEG, each by chance."""
    side = image.shape[0]
    if rng.random() < 0.35:
        lamp = 1 + rng.uniform(0.1, 0.6) * smooth(rng, side)
        image = cv2.convertScaleAbs(image * lamp[..., None])
    image = change_colours(rng, image)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), float(np.exp(rng.uniform(-0.9, 0.9))))
    if rng.random() < 0.1:
        small = int(side * rng.uniform(0.25, 0.7))
        image = cv2.resize(cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (side, side))
    if rng.random() < 0.4:
        row, column = rng.integers(0, side, 2)
        grain = noise[row : row + side, column : column + side] * rng.uniform(0.05, 1.0)
        image = np.clip(image + (grain if rng.random() < 0.5 else grain[..., :1]), 0, 255).astype(np.uint8)
    if rng.random() < 0.1:
        coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 80))])[1]
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(image, np.uint8)


def change_colours(rng: Rng, image: Image) -> Image:
    """Brightness, contrast and gamma, together and a little by channel; a quarter loses some or all of its colour."""
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    gamma, contrast = np.exp(rng.normal(0, 0.35) + rng.normal(0, 0.1, 3)), np.exp(rng.normal(0, 0.4))
    curve = (levels**gamma - 0.5) * contrast + 0.5 + rng.normal(0, 0.12) + rng.normal(0, 0.04, 3)
    image = cv2.LUT(image, np.clip(curve * 255, 0, 255).astype(np.uint8)[:, None])
    if rng.random() < 0.25:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        share = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.3, 0.9))
        image = cv2.addWeighted(grey, share, image, 1 - share, 0)
    return np.asarray(image, np.uint8)


def join_images(rng: Rng, batch: Image) -> Image:
    """Mixup (Zhang et al. 2018) on a fifth of the images, cutmix (Yun et al. 2019) on another fifth."""
    count, side = batch.shape[0], batch.shape[1]
    partners, choice, joined = rng.permutation(count), rng.random(count), batch.copy()
    for index in np.flatnonzero(choice < 0.2):
        share = float(rng.uniform(0.2, 0.8))
        joined[index] = cv2.addWeighted(batch[index], share, batch[partners[index]], 1 - share, 0)
    for index in np.flatnonzero(choice > 0.8):
        height, width = rng.integers(side // 5, side * 4 // 5, 2)
        top, left = rng.integers(0, side - height), rng.integers(0, side - width)
        window = (slice(top, top + height), slice(left, left + width))
        joined[index][window] = batch[partners[index]][window]
    return joined


def _over(below: Image, above: Image, mask: NDArray[np.float32]) -> Image:
    return np.asarray(cv2.blendLinear(above, below, mask, 1 - mask), np.uint8)


def _cast_shadow(rng: Rng, image: Image, mask: Grey) -> Image:
    shift = np.array([[1, 0, rng.uniform(-8, 8)], [0, 1, rng.uniform(-8, 8)]])
    moved = cv2.warpAffine(mask, shift, mask.shape[::-1])
    dark = 1 - cv2.GaussianBlur(moved, (0, 0), float(rng.uniform(1, 6))) * (rng.uniform(0.3, 0.8) / 255)
    return np.asarray(image * dark[..., None], np.uint8)


def _round_off(rng: Rng, layer: Image, mask: Grey) -> Image:
    """Light the layer as if the mask were inflated: height is the root of the distance to its edge."""
    height = np.sqrt(cv2.distanceTransform(mask, cv2.DIST_L2, 3)) * rng.uniform(0.5, 2)
    height = cv2.GaussianBlur(height.astype(np.float32), (0, 0), 1.5)
    angle = rng.uniform(0, 2 * np.pi)
    slope = cv2.Sobel(height, -1, 1, 0) * np.cos(angle) + cv2.Sobel(height, -1, 0, 1) * np.sin(angle)
    return np.asarray(cv2.convertScaleAbs(layer * np.clip(1 + 0.5 * slope, 0.2, 1.8)[..., None]), np.uint8)
