"""Pictures of a domain as they stand in figures: upright, small, and pixels alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.errors import DataError

TILE_PIXELS = 160
ANY_SIZE = 1e5  # megapixels: validation has applied the limit of the domain already


def load_tile(path: Path, crop: Sequence[int] | None) -> NDArray[np.uint8]:
    """(H, W, 3) the picture, or its part inside `crop`, shrunk to at most TILE_PIXELS. Raises DataError."""
    picture = load_upright(path, crop)
    picture.thumbnail((TILE_PIXELS, TILE_PIXELS))
    return np.asarray(picture)


def load_upright(path: Path, crop: Sequence[int] | None) -> Image.Image:
    """All its pixels in RGB. Nothing of the file's EXIF is in it, so that none gets into the tracking store.

    Raises DataError for a file that is no longer readable.
    """
    from components.data.sources.images import UNDECODABLE, read_picture

    try:
        picture = read_picture(path, ANY_SIZE)
    except UNDECODABLE as error:
        hint = "It was readable when it was validated: fetch the data version again."
        raise DataError(str(path), expected="a readable image", found=str(error), hint=hint) from None
    return picture if crop is None else picture.crop((crop[0], crop[1], crop[2], crop[3]))
