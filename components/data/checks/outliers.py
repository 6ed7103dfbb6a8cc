"""Pictures that look unlike the rest of their domain: blurred, too dark, too bright. They get a warning and stay.

What is normal differs between domains (a smear is never as sharp as a casting), so there is no fixed limit: an outlier
is far from the domain's own median, both in robust deviations *and* by a visible amount.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.data.checks.pictures import Picture

Values = NDArray[np.float64]

FEWEST = 20  # fewest pictures for which a distribution is estimated
DEVIATIONS = 4.0  # standard deviations, estimated from the median absolute deviation
TIMES_LESS_SHARP = 4.0  # a blurred picture is at least this many times less sharp than the median
SHARE_MORE = 0.10  # an over- or underexposed picture has at least this share more clipped pixels than the median


@dataclass(frozen=True)
class Outlier:
    """A fit picture that a person should look at, and why."""

    kind: str
    path: str
    found: str


HINTS = {
    "blurred": "If the focus was lost, take the picture again or remove it; if the part is smooth, leave it.",
    "too dark": "If light was missing, expose it again or remove it; if the scene is dark, leave it.",
    "too bright": "If the sensor was saturated, expose it again or remove it; if the scene is bright, leave it.",
}


def find_outliers(pictures: Mapping[str, Picture]) -> tuple[Outlier, ...]:
    """The outliers among fit pictures (by path), the furthest of each kind first."""
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
    """Indices of values far above the median, the furthest first. least: least distance from the median that counts."""
    above = values - np.median(values)
    deviation = 1.4826 * float(np.median(np.abs(above)))
    far = np.flatnonzero(above > max(DEVIATIONS * deviation, least))
    return [int(index) for index in far[np.argsort(-above[far], kind="stable")]]


def _clipped(kind: str, path: str, share: float, shares: Values) -> Outlier:
    end = "black" if kind == "too dark" else "white"
    return Outlier(
        kind, path, f"{share:.0%} of the pixels are {end}, against {np.median(shares):.0%} in the median picture"
    )
