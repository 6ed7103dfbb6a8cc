"""Answers that are class maps, in words and numbers: areas, and connected components with their boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.records.maps import ClassMap
from components.records.objects import Component, find_components
from components.tasks.base import MapTask, name_labels


def describe_map(
    task: MapTask, classes: ClassMap, chances: NDArray[np.floating[Any]], names: Sequence[str], temperature: float
) -> dict[str, Any]:
    """The answer for one picture.

    classes: (H, W), what each pixel is answered. chances: (C, H, W), probabilities that are not calibrated yet. Returns
    `label`, the classes that occur as one text; `areas`, pixels by class; and `components`, of every class but the
    background: `label`, `box`, `area` in pixels and `confidence`, the mean probability of its pixels.
    """
    background = task.background_class
    counts = np.bincount(classes.reshape(-1), minlength=len(names))
    shown = [name for name, count in zip(names, counts, strict=True) if count and name != background]

    def describe(found: Component, number: int) -> dict[str, Any]:
        x0, y0, x1, y1 = found.box
        pixels = chances[:, y0:y1, x0:x1][:, found.mask].T.astype(np.float64)  # (M, C)
        sure = float(task.rescale(pixels, temperature)[:, number].mean())
        facts = {"label": names[number], "box": list(found.box), "area": found.area}
        return {**facts, "confidence": min(max(sure, 0.0), 1.0)}

    return {
        "label": name_labels(shown) if shown else str(background),
        "areas": {name: int(count) for name, count in zip(names, counts, strict=True)},
        "components": [
            describe(found, number)
            for number, name in enumerate(names)
            if name in shown
            for found in sorted(find_components(classes, number), key=lambda one: -one.area)
        ],
    }
