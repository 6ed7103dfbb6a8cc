"""The scores of a domain's versions as one small picture (SVG), with their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from components.records.outcomes import Score, Verdict
from components.reports.words import format_score

WIDTH, HEIGHT, EDGE = 260, 84, 8  # units of the picture
LEAST_SPAN = 0.05  # of scores from the lower edge to the upper one, so that noise does not look like a landslide


@dataclass(frozen=True)
class Point:
    """One version. verdict: of the gates when it was last judged; None where it never was. served: it was champion."""

    version: int
    tuner: str
    score: Score
    verdict: Verdict | None
    served: bool


def draw_trend(points: Sequence[Point], champion: int | None, words: str) -> str:
    """HTML: one dot per version in their order, with its interval; filled where the version was champion.

    champion: the version with a ring. words: what the score is. Nothing for no point.
    """
    if not points:
        return ""
    ends = [
        end for point in points for end in (point.score.value, point.score.low, point.score.high) if end is not None
    ]
    middle, span = (min(ends) + max(ends)) / 2, max(max(ends) - min(ends), LEAST_SPAN)
    step = (WIDTH - 4 * EDGE) / max(1, len(points) - 1)

    def high(value: float) -> float:
        return EDGE + (HEIGHT - 2 * EDGE) * (0.5 - (value - middle) / span)

    places = [
        (2 * EDGE + step * k if len(points) > 1 else WIDTH / 2, high(p.score.value)) for k, p in enumerate(points)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        _draw_point(point, x, y, high, point.version == champion) for point, (x, y) in zip(points, places, strict=True)
    )
    told = ", ".join(f"version {point.version} {point.score.value:.3f}" for point in points)
    ends_named = f"<span>version {points[0].version}</span>" + (
        f"<span>version {points[-1].version}</span>" if len(points) > 1 else ""
    )
    return (
        f'<figure class="trend"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{words} by version: {told}")}"><polyline points="{line}"/>{dots}</svg>'
        f"<figcaption>{ends_named}</figcaption></figure>"
    )


def _draw_point(point: Point, x: float, y: float, high: Callable[[float], float], now: bool) -> str:
    """A dot in the colour of its verdict, its interval as a line, and its numbers for who points at it."""
    score, bar, at = point.score, "", f'cx="{x:.1f}" cy="{y:.1f}"'
    if score.low is not None and score.high is not None:
        bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{high(score.low):.1f}" y2="{high(score.high):.1f}"/>'
    kind = f"{point.verdict or 'none'}{' served' if point.served else ''}"
    ring = f'<circle class="ring" {at} r="7"/>' if now else ""
    told = f"version {point.version}, {point.tuner}: {format_score(score)}, {point.verdict or 'not judged'}"
    return (
        f'<g class="{kind}"><title>{escape(told)}{", champion now" if now else ""}</title>{bar}{ring}'
        f'<circle class="dot" {at} r="3.5"/><circle class="wide" {at} r="12"/></g>'
    )
