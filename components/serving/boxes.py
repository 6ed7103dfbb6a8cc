"""Answers that are labelled boxes, in words and numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from components.records.boxes import FoundBox
from components.tasks.base import name_labels


def describe_boxes(found: Sequence[FoundBox], classes: Sequence[str]) -> dict[str, Any]:
    """The answer for one picture, made of the boxes that reach the threshold of their class.

    Returns `label`, the classes that occur as one text; `objects`, the most confident first: `label`, `box` (in pixels
    of the upright picture, ends exclusive) and `confidence`; and `counts`, the number of objects by class.
    """
    shown = [one for one in found if one.shown]
    counts = Counter(one.label for one in shown)
    return {
        "label": name_labels([name for name in classes if counts[name]]),
        "objects": [{"label": one.label, "box": list(one.box), "confidence": one.confidence} for one in shown],
        "counts": {name: counts[name] for name in classes},
    }
