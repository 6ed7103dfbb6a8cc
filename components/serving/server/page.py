"""The page at `/` for people: three files of ours, which load nothing from elsewhere.

The policy in their header allows no other script, so that nothing in an image, a file name or an answer can become one.
They hold nothing secret, so they are sent without a token; the page asks for it where the server wants one.
"""

import json
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Response

from components.data.batches.colours import choose_colours
from components.reports.shell import PALETTE

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
COLOURS = 21  # of classes, before they repeat

router = APIRouter(include_in_schema=False)


@router.get("/")
def show_page() -> Response:
    return _send("page.html")


@router.get("/page.css")
def show_style() -> Response:
    return _send("page.css")


@router.get("/page.js")
def show_script() -> Response:
    return _send("page.js")


def _send(name: str) -> Response:
    return Response(
        render_file(name), media_type=f"{KINDS[name]}; charset=utf-8", headers={"Content-Security-Policy": POLICY}
    )


@cache
def render_file(name: str) -> str:
    """One of the three files; the style begins with the colours of reports, the script with those of classes."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    if name == "page.css":
        return PALETTE + text
    if name == "page.js":
        names = [str(place) for place in range(COLOURS)]
        colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in choose_colours(names, None).values()]
        return f"const CLASS_COLOURS = {json.dumps(colours)};\n{text}"
    return text
