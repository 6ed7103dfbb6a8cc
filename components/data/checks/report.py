"""validation.html: one self-contained file that needs no scripts, no network and no Tessera.

It contains no time, host or absolute path, so that the same images give the same bytes.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import polars as pl

from components.data.accounts import count_objects
from components.data.checks.boxes import SMALL, Measured, choose_pictures, create_drawn, measure_objects
from components.data.checks.class_maps import (
    choose_colour,
    choose_shown,
    create_overlay,
    find_background,
    format_share,
    measure_coverage,
)
from components.data.checks.outliers import HINTS
from components.data.checks.pictures import create_thumbnail
from components.data.checks.validation import Quarantined, Validated, find_large_groups
from components.data.manifest import SPLITS
from components.tasks.base import by_class
from components.tasks.box_matches import SIZES

MAX_PAIRS = 50
MAX_GROUPS = 5
MAX_LOOKS = 24  # outliers per kind
MAX_LISTED = 1000  # quarantined rows per kind
MAX_SUSPECTS = 50
MAX_THUMBNAILS = 300  # thumbnails of quarantined rows; further rows are listed without one
SAMPLES = 8  # pictures per class
SIDE = 112
MOST_DRAWN = 160  # pictures with boxes, of all classes together
DRAWN = 240  # pixels of the longer side of pictures with boxes, which are shown at their size: outlines stay sharp

STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#f4f4f1;color:#1d2327;font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1060px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;margin:0 0 4px;letter-spacing:-.01em}h2{font-size:18px;margin:40px 0 10px}
h3{font-size:15px;margin:22px 0 6px}a{color:#2a5d80}.todo{padding-left:20px;max-width:90ch}.todo li{margin:5px 0}
p{margin:6px 0;max-width:78ch}.quiet{color:#626b70}code{font:13px ui-monospace,Menlo,Consolas,monospace}
.verdict{margin:18px 0;padding:14px 18px;border-radius:8px;border-left:6px solid #2c7a4b;background:#e7f2ea}
.verdict.no{border-color:#b3261e;background:#fbe9e7}.verdict b{font-size:17px}
.warn{margin:10px 0;padding:10px 16px;border-left:6px solid #c28a00;background:#fdf4da;border-radius:8px}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:18px 0}
.card{background:#fff;border:1px solid #dfe1dd;border-radius:8px;padding:10px 18px;min-width:130px}
.card b{display:block;font-size:24px;font-variant-numeric:tabular-nums}.card span{color:#626b70;font-size:13px}
table{border-collapse:collapse;width:100%;background:#fff;border:1px solid #dfe1dd}
th,td{padding:7px 12px;text-align:left;vertical-align:top;border-top:1px solid #e8e9e6}
th{font-size:13px;color:#626b70;font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.mid{vertical-align:middle;width:28%}td.path{overflow-wrap:anywhere;min-width:210px;max-width:340px}img{display:block;max-width:112px;max-height:112px;image-rendering:auto}
.bar{height:10px;background:#3f6f8f;border-radius:3px;min-width:2px}
.drawn{display:flex;flex-wrap:wrap;gap:8px;margin:6px 0 18px}.drawn img{max-width:none;max-height:none}
.row{display:flex;flex-wrap:wrap;gap:8px;margin:6px 0 18px}.row img{height:84px;width:auto}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:14px}svg{width:100%}
table.q{table-layout:fixed}.q th:nth-child(1){width:138px}.q th:nth-child(2){width:290px}.q th:nth-child(3){width:110px}
figure{margin:0;background:#fff;border:1px solid #dfe1dd;border-radius:8px;
padding:12px 14px 8px}figcaption{font-size:13px;color:#626b70}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:12px}
.pair{background:#fff;border:1px solid #dfe1dd;border-radius:8px;padding:10px;display:flex;gap:10px}
.pair div{width:50%;font-size:12px;overflow-wrap:anywhere}.pair.mixed{border-color:#c28a00}
tr.kind td{background:#f0f1ee;padding:10px 12px}
td.gap{color:#b3261e}td.why{max-width:520px;overflow-wrap:anywhere}
.looks{display:grid;grid-template-columns:repeat(auto-fill,minmax(180px,1fr));gap:12px}
.look{background:#fff;border:1px solid #dfe1dd;border-radius:8px;padding:10px;font-size:12px;overflow-wrap:anywhere}
.look img{margin-bottom:6px}
.none{width:112px;height:60px;background:#ecece8;color:#8b9296;font-size:11px;display:flex;align-items:center;
justify-content:center;text-align:center}
@media print{body{background:#fff}main{padding:0}}
"""


def render_report(validated: Validated, raw: Path, split: pl.DataFrame | None = None) -> str:
    """The page as HTML. split: the fit rows with their column `split`, for the table of classes."""
    domain = validated.domain
    title = f"Validation of {domain.title or domain.name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(domain.description)}</p>' if domain.description else "",
        _verdict(validated),
        _counts(validated),
        _todo(validated),
        _classes(validated, raw, split),
        _objects(validated),
        _charts(validated),
        _quarantine(validated, raw),
        _outliers(validated, raw),
        _suspects(validated, raw),
        _groups(validated, raw),
        _pairs(validated, raw),
    ]
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    head = f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head>'
    return f"{head}\n<body><main>{body}</main></body></html>\n"


def _verdict(validated: Validated) -> str:
    warnings = "".join(f'<div class="warn">{escape(text)}</div>' for text in validated.warnings)
    if validated.ok:
        text = f"{validated.fit.height:,} {_noun(validated)} may be trained on."
        return f'<div class="verdict"><b>Fit.</b> {text}</div>{warnings}'
    problems = "".join(f"<li>{escape(_sentence(str(problem)))}</li>" for problem in validated.problems)
    head = "<b>Not fit.</b> Nothing is trained on these images until this is fixed:"
    return f'<div class="verdict no">{head}<ul>{problems}</ul></div>{warnings}'


def _noun(validated: Validated) -> str:
    """The word for the samples: pictures or crops."""
    return "crops" if validated.fit["crop"].null_count() < validated.fit.height else "images"


def _counts(validated: Validated) -> str:
    numbers = (
        (f"{_noun(validated)} read", validated.images),
        ("fit", validated.fit.height),
        ("in quarantine", len(validated.quarantined)),
        ("groups", validated.fit["group"].n_unique()),
        ("near-duplicate pairs", len(validated.near_duplicates) - len(validated.sisters)),
        ("pairs that share a picture", len(validated.sisters)),
        ("suspicious labels", len(validated.suspects)),
    )
    cards = "".join(f'<div class="card"><b>{value:,}</b><span>{name}</span></div>' for name, value in numbers)
    return f'<div class="cards">{cards}</div>'


def _todo(validated: Validated) -> str:
    """The list of what to do: one line per kind of problem with a link to its pictures, the most frequent first."""
    lines = [
        f'<li><a href="#{_anchor(hint)}">{len(items):,} in quarantine</a>: expected {escape(_kind(items))}. '
        f"<b>{escape(hint)}</b></li>"
        for hint, items in _by_hint(validated).items()
    ]
    for kind in dict.fromkeys(item.kind for item in validated.outliers):
        number = sum(item.kind == kind for item in validated.outliers)
        lines.append(f'<li><a href="#looks">{number:,} {kind}</a> compared with the rest. <b>{HINTS[kind]}</b></li>')
    if validated.suspects:
        number = len(validated.suspects)
        lines.append(
            f'<li><a href="#labels">{number:,} labels may be wrong</a>. <b>Look, and correct those that are.</b></li>'
        )
    return f"<h2>What to do</h2><ul class=todo>{''.join(lines)}</ul>" if lines else ""


def _classes(validated: Validated, raw: Path, split: pl.DataFrame | None) -> str:
    most = max((counts["images"] for counts in validated.classes.values()), default=1) or 1
    sides, coverage = _count_sides(split), measure_coverage(validated.fit, validated.domain)
    boxed = "objects" in validated.fit.columns
    lines = []
    for label, counts in validated.classes.items():
        cells = "".join(_side_cell(sides.get((label, side))) for side in SPLITS) if sides else ""
        cells = f'<td class="n">{counts["images"]:,}</td><td class="n">{counts["groups"]:,}</td>{cells}'
        if coverage:
            cells += f'<td class="n">{format_share(coverage.shares.get(label, 0.0))}</td>'
        bar = f'<div class="bar" style="width:{100 * counts["images"] / most:.1f}%"></div>'
        name = _swatch(label, validated) + escape(label) if coverage or boxed else escape(label)
        lines.append(f'<tr><td>{name}</td>{cells}<td class="mid">{bar}</td></tr>')
    head = f'<tr><th>class</th><th class="n">{_noun(validated)}</th><th class="n">groups</th>'
    head += "".join(f'<th class="n">{side}</th>' for side in SPLITS) if sides else ""
    head += '<th class="n">pixels</th>' if coverage else ""
    note = f"Each split as {_noun(validated)} / groups; only groups count as independent."
    note = f"<p>{note}</p>" if sides else ""
    note += f"<p>{escape(coverage.describe())}</p>" if coverage else ""
    note += "<p>An image counts for every class of which it shows an object.</p>" if boxed else ""
    samples = "".join(_samples(validated, raw, label) for label in validated.classes)
    samples += _drawn_samples(validated, raw, None) if boxed else ""
    return f"<h2>Classes</h2>{note}<table>{head}<th></th></tr>{''.join(lines)}</table>{samples}"


def _count_sides(split: pl.DataFrame | None) -> dict[tuple[str, str], tuple[int, int]]:
    """The number of images and groups by class and split."""
    if split is None:
        return {}
    counted = by_class(split).group_by("label", "split").agg(pl.len(), pl.col("group").n_unique())
    return {(label, side): (images, groups) for label, side, images, groups in counted.rows()}


def _side_cell(counts: tuple[int, int] | None) -> str:
    return f'<td class="n">{counts[0]:,} / {counts[1]:,}</td>' if counts else '<td class="n gap">none</td>'


def _samples(validated: Validated, raw: Path, label: str) -> str:
    """Sample pictures of one class, evenly spread over its rows; class maps, if there are any, are drawn over them."""
    if "class_map" in validated.fit.columns:
        return _mapped_samples(validated, raw, label)
    if "objects" in validated.fit.columns:
        return _drawn_samples(validated, raw, label)
    rows = by_class(validated.fit).filter(pl.col("label") == label)
    if rows.is_empty():
        return ""
    chosen = sorted({int(place) for place in np.linspace(0, rows.height - 1, SAMPLES)})
    pictures = "".join(
        _picture(raw, path, crop, validated) for path, crop in rows[chosen].select("path", "crop").rows()
    )
    return f'<p class="quiet">{escape(label)}</p><div class="row">{pictures}</div>'


def _mapped_samples(validated: Validated, raw: Path, label: str) -> str:
    domain, rows = validated.domain, choose_shown(validated.fit, label, validated.domain)
    if rows.is_empty():
        return ""
    chosen = sorted({int(place) for place in np.linspace(0, rows.height - 1, SAMPLES)})
    overlays = (
        create_overlay(raw / path, data, 2 * SIDE, domain)
        for path, data in rows[chosen].select("path", "class_map").rows()
    )
    alone = " and nothing else" if label == find_background(domain) else ""
    title = f'<p class="quiet">{_swatch(label, validated)}{escape(label)}{alone}</p>'
    return f'{title}<div class="row">{"".join(map(_embed, overlays))}</div>'


def _drawn_samples(validated: Validated, raw: Path, label: str | None) -> str:
    """Sample pictures of one class with all their boxes, or of none: pictures without any object."""
    rows = choose_pictures(validated.fit, label, max(2, min(SAMPLES, MOST_DRAWN // len(validated.classes))))
    if rows.is_empty():
        return ""
    drawn = (create_drawn(raw, row, DRAWN, validated.domain) for row in rows.iter_rows(named=True))
    name = "no object at all" if label is None else _swatch(label, validated) + escape(label)
    return f'<p class="quiet">{name}</p><div class="drawn">{"".join(map(_embed, drawn))}</div>'


def _swatch(label: str, validated: Validated) -> str:
    """The colour in which a class is drawn."""
    colour = "".join(f"{channel:02x}" for channel in choose_colour(label, validated.domain))
    return f'<span style="background:#{colour};border-radius:2px;display:inline-block;width:11px;height:11px"></span> '


def _objects(validated: Validated) -> str:
    """Objects by class and size, and how many a picture shows."""
    domain = validated.domain
    measured, counts = measure_objects(validated.fit, domain), count_objects(validated.fit, domain)
    if measured is None or counts is None or measured.objects.is_empty():
        return ""
    head = '<tr><th>class</th><th class="n">objects</th>'
    head += "".join(f'<th class="n">{name}</th>' for name in SIZES) + '<th class="n">side, px</th>'
    head += f'<th class="n">side at {domain.img_size}</th>' if domain.img_size else ""
    lines = "".join(f"<tr>{_object_cells(measured, label, validated)}</tr>" for label in domain.classes)
    note = (
        "Sizes as COCO counts them: small objects have an area below 32 x 32 pixels of the picture, large ones above "
    )
    note += "96 x 96. A side is the root of the area: the middle one, and between which ones eight of ten lie."
    if domain.img_size:
        note += f" On the canvas of the training, {domain.img_size} pixels, objects below {SMALL} are hardly found."
    ignored = [
        f"{count:,} {kind}" for kind, count in (("difficult", counts.difficult), ("crowd", counts.crowd)) if count
    ]
    note += f" Ignored in training and scoring, dashed in the pictures: {' and '.join(ignored)}." if ignored else ""
    note += f" {counts.empty:,} of {counts.pictures:,} images show no object."
    sides = np.log10(measured.objects["side"].to_numpy())
    charts = (
        _histogram(sides, float(sides.min()), float(sides.max()), "side of an object in pixels", "objects", power=True),
        _histogram(measured.each.astype(np.float64), 0.0, float(measured.each.max()), "objects in an image"),
    )
    table = f"<table>{head}</tr>{lines}</table>"
    return f'<h2 id="objects">Objects</h2><p>{escape(note)}</p>{table}<div class="charts">{"".join(charts)}</div>'


def _object_cells(measured: Measured, label: str, validated: Validated) -> str:
    found = measured.objects.filter(pl.col("label") == label)
    areas = found["area"].to_numpy()
    numbers = [len(areas), *(int(((areas >= low) & (areas < high)).sum()) for low, high in SIZES.values())]
    cells = f"<td>{_swatch(label, validated)}{escape(label)}</td>"
    cells += "".join(f'<td class="n">{number:,}</td>' for number in numbers)
    columns = ("side", "canvas") if validated.domain.img_size else ("side",)
    return cells + "".join(f'<td class="n">{_describe_sides(found[name].to_numpy())}</td>' for name in columns)


def _describe_sides(sides: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> str:
    """`33 (28 to 41)`: the median, and the first and the last tenth."""
    if not len(sides):
        return ""
    low, middle, high = np.quantile(sides, [0.1, 0.5, 0.9])
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _charts(validated: Validated) -> str:
    if validated.fit.is_empty():
        return ""
    files = validated.fit.unique("path", maintain_order=True)
    sides = np.sqrt((files["width"] * files["height"]).to_numpy().astype(np.float64))
    looks = [validated.pictures[path] for path in files["path"]]
    bright = np.array([picture.brightness for picture in looks])
    sharp = np.log10(np.maximum([picture.sharpness for picture in looks], 0.1))
    charts = (
        _histogram(sides, float(sides.min()), float(sides.max()), "side in pixels (root of the area)"),
        _histogram(bright, 0.0, 255.0, "mean brightness, 0 to 255"),
        _histogram(sharp, float(sharp.min()), float(sharp.max()), "sharpness (square of the Laplacian)", power=True),
    )
    return f'<h2>Size, brightness and sharpness of the files</h2><div class="charts">{"".join(charts)}</div>'


def _histogram(
    values: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    low: float,
    high: float,
    caption: str,
    noun: str = "files",
    *,
    power: bool = False,
) -> str:
    """A histogram with 24 bins as inline SVG. power: the values are logarithms to base 10."""
    high = high if high > low else low + 1
    first, last = (f"{10**end:,.4g}" if power else f"{end:.0f}" for end in (low, high))
    counts, _ = np.histogram(values, bins=24, range=(low, high))
    top = max(int(counts.max()), 1)
    bars = "".join(
        f'<rect x="{15 * i}" y="{90 - height:.1f}" width="13" height="{height:.1f}" fill="#3f6f8f"/>'
        for i, height in enumerate((counts * 90 / top).tolist())
    )
    axis = '<line x1="0" y1="90.5" x2="360" y2="90.5" stroke="#9aa1a5"/>'
    ends = f'<text x="0" y="106">{first}</text><text x="360" y="106" text-anchor="end">{last}</text>'
    svg = f'<svg viewBox="0 0 360 110" font-size="12" fill="#626b70" role="img">{bars}{axis}{ends}</svg>'
    return f"<figure>{svg}<figcaption>{escape(caption)}; the tallest bar is {top:,} {noun}</figcaption></figure>"


def _quarantine(validated: Validated, raw: Path) -> str:
    """The table of quarantined files, grouped by what to do."""
    if not validated.quarantined:
        return "<h2>Quarantine</h2><p>Empty: every image could be used.</p>"
    rows, shown = list[str](), 0
    head = "<tr><th>picture</th><th>file</th><th>label</th><th>why it is not used</th></tr>"
    for hint, items in _by_hint(validated).items():
        count = f"<span class=quiet>({len(items):,})</span>"
        rows.append(f'<tr class=kind id="{_anchor(hint)}"><td colspan=4><b>{escape(hint)}</b> {count}</td></tr>')
        for item in items[:MAX_LISTED]:
            rows.append(_quarantine_row(item, raw, validated, shown < MAX_THUMBNAILS))
            shown += 1
        if len(items) > MAX_LISTED:
            rows.append(f"<tr><td colspan=4>And {len(items) - MAX_LISTED:,} more.</td></tr>")
    note = (
        "<p>These are left out of training. Fix the files, import them again, and they come back. "
        "The whole list is in <code>validation.json</code>.</p>"
    )
    return f"<h2>Quarantine</h2>{note}<table class=q>{head}{''.join(rows)}</table>"


def _by_hint(validated: Validated) -> dict[str, list[Quarantined]]:
    """Quarantined files by what to do, the most frequent first.

    One entry per file and reason: twelve crops of one damaged file are one thing to fix.
    """
    listed = {(item.path, item.reason): item for item in reversed(validated.quarantined)}
    kinds: dict[str, list[Quarantined]] = {}
    for item in reversed(listed.values()):
        kinds.setdefault(item.reason.hint, []).append(item)
    return dict(sorted(kinds.items(), key=lambda kind: -len(kind[1])))


def _kind(items: Sequence[Quarantined]) -> str:
    """What was expected of these files; if each names another file or size, that of the first one."""
    expected = list(dict.fromkeys(item.reason.expected for item in items))
    return expected[0] if len(expected) == 1 else f"{expected[0]}, and similar"


def _anchor(hint: str) -> str:
    return f"q{hashlib.sha256(hint.encode()).hexdigest()[:8]}"


def _outliers(validated: Validated, raw: Path) -> str:
    if not validated.outliers:
        return ""
    parts = []
    for kind in dict.fromkeys(item.kind for item in validated.outliers):
        items = [item for item in validated.outliers if item.kind == kind]
        cards = "".join(
            f'<div class="look">{_picture(raw, item.path, None, validated)}<code>{escape(item.path)}</code>'
            f"<br>{escape(item.found)}</div>"
            for item in items[:MAX_LOOKS]
        )
        more = f", the furthest {MAX_LOOKS} of them shown" if len(items) > MAX_LOOKS else ""
        title = f"<h3>{kind.capitalize()} <span class=quiet>({len(items):,}{more})</span></h3>"
        parts.append(f'{title}<p>{escape(HINTS[kind])}</p><div class="looks">{cards}</div>')
    note = "<p>Compared with the domain's own pictures. These pictures are used all the same.</p>"
    return f'<h2 id="looks">Unlike the rest</h2>{note}{"".join(parts)}'


def _quarantine_row(item: Quarantined, raw: Path, validated: Validated, shown: bool) -> str:
    picture = _picture(raw, item.path, item.crop, validated) if shown else ""
    crop = f" <span class=quiet>{escape(str(item.crop))}</span>" if item.crop else ""
    label = escape(item.label or "")
    why = f"Expected {escape(item.reason.expected)}.<br>Found {escape(item.reason.found)}."
    file = f'<td class="path"><code>{escape(item.path)}</code>{crop}</td>'
    return f"<tr><td>{picture}</td>{file}<td>{label}</td><td class=why>{why}</td></tr>"


def _groups(validated: Validated, raw: Path) -> str:
    """Sample pictures of every group that holds a large share of the images."""
    large = find_large_groups(validated.fit)
    if not large:
        return ""
    parts = []
    for name, count in large[:MAX_GROUPS]:
        rows = validated.fit.filter(pl.col("group") == name).unique("id", maintain_order=True)
        chosen = sorted({int(place) for place in np.linspace(0, rows.height - 1, 2 * SAMPLES)})
        pictures = "".join(
            _picture(raw, path, crop, validated) for path, crop in rows[chosen].select("path", "crop").rows()
        )
        title = f"{escape(name[:40])} <span class=quiet>({count:,} images, {len(chosen)} shown)</span>"
        parts.append(f'<h3>{title}</h3><div class="row">{pictures}</div>')
    note = (
        "<p>A group is in one split as a whole. If these pictures are not one thing, correct the group "
        "column, or write <code>groups: {near_duplicates: report}</code> in <code>domain.yaml</code>.</p>"
    )
    return f'<h2 id="groups">Large groups</h2>{note}{"".join(parts)}'


def _pairs(validated: Validated, raw: Path) -> str:
    """Pairs that show one thing, then pairs that share a picture."""
    kinds = [[pair for pair in validated.near_duplicates if (pair in validated.sisters) == sister] for sister in (0, 1)]
    joined = validated.domain.groups.near_duplicates == "join"
    fate = "share a group and are in one split" if joined else "are only shown, and may be in two splits"
    notes = (
        f"Pictures that look like one thing taken twice {fate}.",
        f"These parts of one design also agree in what the design does not explain, such as parts cut from one piece. "
        f"They may be different parts, so different labels are not a mistake; they {fate}.",
    )
    titles = ("Near duplicates", "Pairs that share a picture")
    return "".join(
        _pair_cards(title, note, pairs, validated, raw)
        for title, note, pairs in zip(titles, notes, kinds, strict=True)
        if pairs
    )


def _pair_cards(title: str, note: str, pairs: Sequence[tuple[str, str]], validated: Validated, raw: Path) -> str:
    labels: dict[str, set[str]] = {}  # by path, of all crops of the picture
    for path, label in validated.fit.select("path", "label").rows():
        labels.setdefault(path, set()).add(label)
    shown = sorted(pairs, key=lambda pair: bool(labels[pair[0]] & labels[pair[1]]))[:MAX_PAIRS]
    cards = []
    for pair in shown:
        sides = "".join(_half(raw, path, ", ".join(sorted(labels[path])), validated) for path in pair)
        mixed = "" if pair in validated.sisters or labels[pair[0]] & labels[pair[1]] else " mixed"
        cards.append(f'<div class="pair{mixed}">{sides}</div>')
    note = f"<p>{note} Shown are {len(shown)} of {len(pairs):,} pairs, different labels first.</p>"
    return f'<h2>{title}</h2>{note}<div class="pairs">{"".join(cards)}</div>'


def _suspects(validated: Validated, raw: Path) -> str:
    if not validated.judgement:
        return ""
    title, note = '<h2 id="labels">Labels that may be wrong</h2>', f"<p>{escape(validated.judgement.note)}</p>"
    if not validated.suspects:
        return f"{title}{note}"
    shown = validated.suspects[:MAX_SUSPECTS]
    note += (
        "<p>Nothing was changed: look, and correct the label where it is wrong. The score is the probability that the "
        f"given label is right; shown are the {len(shown)} lowest of {len(validated.suspects):,}.</p>"
    )
    rows = "".join(
        f'<tr><td>{_picture(raw, each.path, each.crop, validated)}</td><td class="path">'
        f"<code>{escape(each.path)}</code>{_box(each.crop)}</td><td>{escape(each.given)}</td>"
        f"<td><b>{escape(each.suggested)}</b></td>"
        f'<td class="n">{each.score:.2f}</td><td>{escape(_sentence(each.why))}.</td></tr>'
        for each in shown
    )
    head = "<tr><th>picture</th><th>file</th><th>label</th><th>rather</th><th>score</th><th>why</th></tr>"
    return f"{title}{note}<table>{head}{rows}</table>"


def _box(crop: Sequence[int] | None) -> str:
    """The corners of a crop, to distinguish it from other crops of the same picture."""
    return f" <span class=quiet>{' '.join(map(str, crop))}</span>" if crop else ""


def _half(raw: Path, path: str, label: str, validated: Validated) -> str:
    return f"<div>{_picture(raw, path, None, validated)}<b>{escape(label)}</b><br>{escape(path)}</div>"


def _picture(raw: Path, path: str, crop: Sequence[int] | None, validated: Validated) -> str:
    box = (crop[0], crop[1], crop[2], crop[3]) if crop else None
    return _embed(create_thumbnail(raw / path, box, SIDE, validated.domain.validation.max_megapixels))


def _embed(data: bytes | None) -> str:
    """A JPEG as an image element."""
    if data is None:
        return '<div class="none">cannot be shown</div>'
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
