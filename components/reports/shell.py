"""The HTML page around report and card: one file that needs no network, with its style and pictures in it.

It is light or dark as the reader's system is; pictures stay light.
Everything here takes texts as they are and escapes them, except for what is called HTML.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.records.outcomes import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours of all our pages, light or dark as the reader's system is.
PALETTE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1f2328;--quiet:#59636e;--link:#0969da;--rule:#d0d7de;--thin:#eaeef2;
--best:#f6f8fa;--warn:#fff8c5;--edge:#d4a72c;--bar:#afb8c1;--PROMOTE:#1a7f37;--HOLD:#9a6700;--REJECT:#cf222e}
@media(prefers-color-scheme:dark){
:root{--paper:#0d1117;--ink:#e6edf3;--quiet:#9198a1;--link:#58a6ff;--rule:#3d444d;--thin:#21262d;
--best:#161b22;--warn:#2e2510;--edge:#9e6a03;--bar:#484f58;--PROMOTE:#3fb950;--HOLD:#d29922;--REJECT:#f85149}}
"""

VIEWPORT = '<meta name="viewport" content="width=device-width, initial-scale=1">'  # a phone shows the page at its width
STYLE = (
    PALETTE
    + """\
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem}
html{background:var(--paper);color:var(--ink)}a{color:var(--link)}
table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{padding:.35rem .6rem;text-align:right}
td:first-child,th:first-child{text-align:left}
th{border-bottom:2px solid var(--rule)}td{border-bottom:1px solid var(--thin)}
tr.best{font-weight:600;background:var(--best)}.verdict{font-size:1.3rem;font-weight:700}
.warning{background:var(--warn);border:1px solid var(--edge);padding:.5rem .8rem}
dt{color:var(--quiet)}dd{margin:0 0 .4rem;overflow-wrap:anywhere}code{font-size:.9em}img{width:100%}
.wide{overflow-x:auto}.wide td{white-space:nowrap}
.bar{background:var(--bar);height:8px;position:relative;width:160px;border-radius:4px;display:inline-block}
.bar i{position:absolute;height:8px;background:var(--link);border-radius:4px}
.bar b{position:absolute;width:2px;height:14px;top:-3px;background:var(--ink)}
"""
)


def render_page(title: str, body: str, style: str = "", head: str = "") -> str:
    """A whole page. body: HTML. style: CSS of this page, after the CSS that all pages share. head: HTML of its head."""
    head = f'<meta charset="utf-8">{VIEWPORT}{head}<title>{html.escape(title)}</title><style>{STYLE}{style}</style>'
    return f'<!doctype html><html lang="en">{head}{body}</html>'


def render_verdict(verdict: Verdict, reason: str, warnings: Iterable[str]) -> str:
    """The verdict in its colour, why, and what to look after."""
    head = f'<p class="verdict" style="color:var(--{verdict})">{verdict}</p><p>{html.escape(reason)}</p>'
    return head + "".join(map(render_warning, warnings))


def render_warning(text: str) -> str:
    return f'<p class="warning">{html.escape(text)}</p>'


def render_section(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """A headline, and names with their values."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts)
    return f"<h2>{html.escape(title)}</h2><dl>{items}</dl>"


def render_row(cells: Sequence[str], tag: str = "td") -> str:
    """A row of a table. tag: "th" for its head."""
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def render_links(elsewhere: Mapping[str, str], **here: Path) -> str:
    """Other pages on the same subject: on servers, and beside this one on the disk of the machine that wrote it."""
    pages = dict(elsewhere) | {f"{name} (on the machine of the retrain)": path.as_uri() for name, path in here.items()}
    links = [f'<a href="{html.escape(page)}">{html.escape(name)}</a>' for name, page in pages.items()]
    return f"<dt>see also</dt><dd>{' · '.join(links)}</dd>"


def embed_picture(png: bytes, alt: str) -> str:
    """An image element with the picture in it. alt: what it shows, for who cannot see it."""
    encoded = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">'


def embed_figure(figure: "Figure", alt: str) -> str:
    """The same of a figure that is not on disk."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return embed_picture(buffer.getvalue(), alt)
