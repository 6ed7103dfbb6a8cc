"""Pictures that look unlike the rest of their domain: blurred, too dark, too bright. They are warned of, never removed.

What is normal differs between domains (a smear is never as sharp as a casting), so nothing is compared with a fixed
number: an outlier lies far from the domain's own median, in robust deviations *and* by an amount one can see.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.data.checks.pictures import Picture

Values = NDArray[np.float64]

FEWEST = 20  # pictures: fewer have no distribution
DEVIATIONS = 4.0  # of the normal distribution that the median absolute deviation stands for
TIMES_LESS_SHARP = 4.0  # than the median, at least
SHARE_MORE = 0.10  # of all pixels clipped more than in the median picture, at least


@dataclass(frozen=True)
class Outlier:
    """A fit picture that deserves a look, and why."""

    kind: str
    path: str
    found: str


MEND = {
    "blurred": "If the focus was lost, take the picture again or remove it; if the part is smooth, leave it.",
    "too dark": "If light was missing, expose it again or remove it; if the scene is dark, leave it.",
    "too bright": "If the sensor was saturated, expose it again or remove it; if the scene is bright, leave it.",
}


def find_outliers(pictures: Mapping[str, Picture]) -> tuple[Outlier, ...]:
    """Outliers among fit files by path, the furthest of each kind first."""
    if len(pictures) < FEWEST:
        return ()
    paths = sorted(pictures)
    sharp = np.array([pictures[path].sharpness for path in paths])
    dark = np.array([pictures[path].dark for path in paths])
    bright = np.array([pictures[path].bright for path in paths])
    least = np.log(np.maximum(sharp, 1e-3))
    median = float(np.median(sharp))
    return (
        *(
            Outlier("blurred", paths[i], f"sharpness {sharp[i]:.3g}, against {median:.3g} in the median picture")
            for i in _far(-least, np.log(TIMES_LESS_SHARP))
        ),
        *(_clipped("too dark", paths[i], dark[i], dark) for i in _far(dark, SHARE_MORE)),
        *(_clipped("too bright", paths[i], bright[i], bright) for i in _far(bright, SHARE_MORE)),
    )


def _far(values: Values, least: float) -> list[int]:
    """Indices of values far above the median, the furthest first."""
    above = values - np.median(values)
    deviation = 1.4826 * float(np.median(np.abs(above)))
    far = np.flatnonzero(above > max(DEVIATIONS * deviation, least))
    return [int(index) for index in far[np.argsort(-above[far], kind="stable")]]


def _clipped(kind: str, path: str, share: float, shares: Values) -> Outlier:
    end = "black" if kind == "too dark" else "white"
    return Outlier(
        kind, path, f"{share:.0%} of the pixels are {end}, against {np.median(shares):.0%} in the median picture"
    )
