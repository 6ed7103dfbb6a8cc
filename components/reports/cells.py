"""Tables drawn as figures: numbers in cells, shaded by a share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ANNOTATED = 20  # rows; beyond it the numbers cover one another


def draw_cells(
    axes: "Axes",
    shares: NDArray[np.float64],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """shares: (len(rows), len(columns)) from 0 to 1. texts: of the same cells; only shares where there are many."""
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), list(columns), rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(rows)), list(rows), parse_math=False)
    if len(rows) > MOST_ANNOTATED:
        return
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
    for (row, column), share in np.ndenumerate(shares):
        if text := texts[row][column]:
            axes.text(column, row, text, color="white" if share > 0.5 else "black", **style)


def create_square(rows: int, title: str) -> "tuple[Figure, Axes]":
    """A figure for a table of so many rows and columns with two lines of text per cell."""
    from matplotlib.figure import Figure

    side = min(2 + (0.62 if rows <= MOST_ANNOTATED else 0.4) * rows, 24)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure, figure.subplots()
