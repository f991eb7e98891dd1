"""The report of a run as one HTML page that holds all it shows: no scripts, styles or pictures from elsewhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from stfgan_xr import days as calendar
from stfgan_xr import plots
from stfgan_xr.overviews import spread_steps
from stfgan_xr.summary import KINDS, Acquisition, Point, Summary, outline

Array = npt.NDArray[Any]

QUALITY = 72
"""Of the pictures as WebP; 0 to 100."""
CHART = 6.4, 2.2
"""Inches of a chart: its text is readable on a phone, which shows it a third smaller, and on a desk, a half larger."""
SHEET = 6
"""Days that stand for all on paper."""
MOST_OUTLINES = 8
GREY = "<p>Grey: no usable value.</p>"


@dataclass(frozen=True)
class Part:
    """A section: its anchor, title and HTML."""

    anchor: str
    title: str
    body: str


def to_html(found: Summary, statistics: Mapping[str, str] | None = None) -> str:
    """The page of a run.

    Parameters
    ----------
    found
        What is shown.
    statistics
        Further facts of how it was made, by name.
    """
    title = f"Daily Landsat-like images, {calendar.describe(found.days)}"
    parts = [part for part in _parts(found, statistics or {}) if part.body]
    links = " ".join(f'<a href="#{part.anchor}">{escape(part.title)}</a>' for part in parts)
    body = "\n".join(
        f'<section id="{part.anchor}"><h2>{escape(part.title)}</h2>\n{part.body}</section>' for part in parts
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>\n{_asset("report.css")}</style>\n</head>\n<body>\n'
        f"<h1>{escape(title)}</h1>\n<p>{escape(found.name)}</p>\n{_tiles(found)}\n<nav>{links}</nav>\n{body}\n"
        f"<script>\n{_asset('report.js')}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return resources.files("stfgan_xr").joinpath("web", name).read_text(encoding="utf-8")


def _parts(found: Summary, statistics: Mapping[str, str]) -> Iterable[Part]:
    yield Part("asked", "What was asked", _asked(found))
    yield Part("images", "Images", _player(found))
    yield Part("compare", "Compare", "\n".join(_swipe(label, *pair) for label, pair in found.pairs.items()) + GREY)
    yield Part("where", "Where", _where(found))
    yield Part("when", "When it was seen", _when(found))
    yield Part("quality", "Quality and uncertainty", _quality(found))
    yield Part("points", "Points through time", _points(found))
    yield Part("scores", "Scores", _scores(found))
    yield Part("made", "How it was made", _made(found, statistics))


# ---------------------------------------------------------------- small parts


def _tiles(found: Summary) -> str:
    document = found.document
    used = sum(acquisition.clear > 0 for acquisition in found.acquisitions)
    values = {
        f"{document.get('coverage', float('nan')):.1%}": "of the pixels have a value",
        str(len(found.days)): "days" if len(found.days) > 1 else "day",
        f"{used}": "Landsat days with clear pixels",
        _method(found): "method",
        f"{abs(found.grid.affine.a):g} m": f"pixels, {found.grid.shape.x} × {found.grid.shape.y}",
    }
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in values.items())
    return f'<div class="tiles">{tiles}</div>'


def _method(found: Summary) -> str:
    request = found.document.get("request", {})
    return str(found.document.get("guard", {}).get("used", request.get("method", "unknown")))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, caption: str = "") -> str:
    def cells(row: Sequence[str], kind: str) -> str:
        numbers = [' class="n"' if at >= left else "" for at in range(len(row))]
        return "".join(f"<{kind}{number}>{escape(text)}</{kind}>" for number, text in zip(numbers, row, strict=True))

    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if header else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{named}{head}<tbody>{body}</tbody></table></div>'


def _figure(figure: Any, small: bool = False) -> str:
    return f'<div class="wide{" small" if small else ""}">{plots.to_svg(figure)}</div>'


def _picture(levels: Array) -> str:
    """Levels ``(y, x, 3)`` as the address of a picture that holds them."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "WEBP", quality=QUALITY, method=3)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ---------------------------------------------------------------- sections


def _asked(found: Summary) -> str:
    request = found.document.get("request", {})
    catalog = (found.document.get("catalog") or {}).get("name") or request.get("pairs") or "unknown"
    items = found.document.get("items", {})
    rows = {
        "Days": calendar.describe(found.days),
        "Area": _area(found.grid),
        "Imagery": f"{catalog}"
        + (f": {items['landsat']} Landsat and {items['modis']} MODIS scenes" if "landsat" in items else ""),
        "Bands": ", ".join(request.get("bands", [])),
        "Method": _method(found)
        + ("" if _method(found) == request.get("method") else f" (asked: {request['method']})"),
        "Landsat is looked for": f"up to {request.get('bracket_days', '?')} days on either side of a day",
        "A clear observation of a day": "is the product there" if request.get("keep_observed") else "is predicted anew",
    }
    return _table((), rows.items(), 2)


def _area(grid: GeoBox) -> str:
    crs = f"EPSG:{grid.crs.epsg}" if grid.crs and grid.crs.epsg else "a CRS without EPSG code"
    height, width = (int(side) for side in grid.shape)
    size = abs(float(grid.affine.a))
    return (
        f"{width} × {height} pixels of {size:g} m in {crs}: {width * size / 1000:.1f} × {height * size / 1000:.1f} km"
    )


def _player(found: Summary) -> str:
    sheet = set(spread_steps(len(found.shown), SHEET))
    images = []
    for composite, frames in found.frames.items():
        first = composite == next(iter(found.frames))
        for at, levels in enumerate(frames):
            kinds = ("on " if first and at == 0 else "") + ("sheet" if first and at in sheet else "")
            images.append(
                f'<figure class="{kinds}" data-composite="{composite}" data-at="{at}">'
                f'<img alt="{composite}, {found.shown[at]}" src="{_picture(levels)}">'
                f"<figcaption>{found.shown[at]}</figcaption></figure>"
            )
    marks = "".join(_mark(found, number, point) for number, point in enumerate(found.points, 1))
    options = "".join(f"<option>{escape(name)}</option>" for name in found.frames)
    days = escape(json.dumps([str(day) for day in found.shown]))
    note = (
        f"<p>{len(found.shown)} of {len(found.days)} days, spread over all.</p>"
        if len(found.shown) < len(found.days)
        else ""
    )
    return (
        f'{note}<div class="player" data-days="{days}"><div class="frames">{"".join(images)}{marks}</div>'
        f'<div class="bar"><button type="button">Play</button>'
        f'<input type="range" min="0" max="{len(found.shown) - 1}" value="0" step="1" aria-label="day">'
        f"<output>{found.shown[0]}</output>"
        f'<select aria-label="composite">{options}</select></div></div>'
        "<p>Numbers mark the points of the charts below."
        + " False colour shows near infrared as red: plants are red." * ("false colour" in found.frames)
        + "</p>"
    )


def _mark(found: Summary, number: int, point: Point) -> str:
    height, width = found.grid.shape
    style = f"left:{100 * (point.column + 0.5) / width:.2f}%;top:{100 * (point.row + 0.5) / height:.2f}%"
    return f'<span class="mark" style="{style}">{number}</span>'


def _swipe(label: str, left: str, left_levels: Array, right: str, right_levels: Array) -> str:
    return (
        f"<h3>{escape(label[0].upper() + label[1:])}</h3>"
        f'<div class="swipe"><img class="base" alt="{escape(right)}" src="{_picture(right_levels)}">'
        f'<img class="top" alt="{escape(left)}" src="{_picture(left_levels)}"><div class="line"></div>'
        f'<span class="a">{escape(left)}</span><span class="b">{escape(right)}</span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{escape(label)}"></div>'
    )


def _where(found: Summary) -> str:
    scenes: dict[str, npt.NDArray[np.float64]] = {}
    for acquisition in found.acquisitions:
        for scene in acquisition.scenes:
            ground = outline(scene, found.grid)
            label = scene.place or scene.platform or scene.collection
            if ground is not None and label not in scenes and len(scenes) < MOST_OUTLINES:
                scenes[label] = np.array(ground.exterior.coords)
    box = found.grid.boundingbox
    inside = np.ones((1, 1), bool) if found.inside is None else found.inside
    figure, (axes,) = plots.figure_of(1, 6, 3.6)
    plots.footprints(axes, inside, (box.left, box.bottom, box.right, box.top), scenes)
    box = found.grid.extent.to_crs("EPSG:4326").boundingbox
    share = "" if found.inside is None else f"; the area asked for (filled) is {found.inside.mean():.0%} of it"
    text = (
        f"The grid covers {box.left:.3f} to {box.right:.3f} degrees east and {box.bottom:.3f} to {box.top:.3f} "
        f"degrees north{share}." + " Outlines are those of the Landsat scenes by path and row." * bool(scenes)
    )
    return f"<p>{escape(text)}</p>{_figure(figure, small=True)}"


def _when(found: Summary) -> str:
    figure, (axes,) = plots.figure_of(1, *CHART)
    fine = [a.day for a in found.acquisitions], [a.clear for a in found.acquisitions]
    plots.draw_calendar(axes, fine, _trimmed(*found.coarse), found.days)
    axes.legend(fontsize=8, ncols=3, **plots.ABOVE)
    rows = [(str(a.day), f"{a.clear:.0%}", _sensors(a), str(len(a.scenes) or "")) for a in found.acquisitions]
    listed = _table(("day", "clear", "sensor", "scenes"), rows, 3)
    gap = _longest_gap(found)
    before = [a.day for a in found.acquisitions if a.clear > 0 and a.day <= found.days[0]]
    after = [a.day for a in found.acquisitions if a.clear > 0 and a.day >= found.days[-1]]
    bracket = (
        f"The last observation up to the first day is of {before[-1] if before else 'no day'}, the first from the last "
        f"day on of {after[0] if after else 'no day'}; the longest time without a clear Landsat pixel is {gap} days."
    )
    text = "Bars: share of the area that a Landsat day shows clearly. Line: share of MODIS cells with a usable value."
    return (
        f"<p>{escape(text)} {escape(bracket)}</p>{_figure(figure)}"
        f"<details><summary>All {len(rows)} Landsat days</summary>{listed}</details>"
    )


def _trimmed(days: list[date], shares: list[float]) -> tuple[list[date], list[float]]:
    """Without the days before the first and after the last with any value."""
    known = [at for at, share in enumerate(shares) if share > 0]
    part = slice(known[0], known[-1] + 1) if known else slice(0)
    return days[part], shares[part]


def _sensors(acquisition: Acquisition) -> str:
    return ", ".join(sorted({scene.platform or scene.sensor for scene in acquisition.scenes}))


def _longest_gap(found: Summary) -> int:
    seen = [a.day for a in found.acquisitions if a.clear > 0]
    return max(((b - a).days for a, b in pairwise(seen)), default=0)


def _quality(found: Summary) -> str:
    figure, (axes,) = plots.figure_of(1, *CHART)
    plots.draw_kinds(axes, found.days, found.kinds)
    defined = _table((), [(kind, meaning) for kind, meaning in KINDS.items()], 2)
    drawn = []
    for label, values in found.maps.items():
        part, (one,) = plots.figure_of(1, 4.2, 3.6)
        plots.value_map(one, values, label)
        drawn.append(_figure(part, small=True))
    unsure = any(label.startswith("uncertainty") for label in found.maps)
    hint = (
        "" if unsure else "<p>With <code>--uncertainty</code> a run also holds a standard deviation of every value.</p>"
    )
    rows = [(band, f"{mean:+.4f}", f"{spread:.4f}") for band, (mean, spread) in found.residuals.items()]
    residual = _table(("band", "mean", "root mean square"), rows, 1, "Fused cell means minus MODIS, in reflectance")
    maps = f'<div class="maps">{"".join(drawn)}</div>'
    return f"{_figure(figure)}{defined}{hint}{maps}{residual}"


def _points(found: Summary) -> str:
    parts = []
    for number, point in enumerate(found.points, 1):
        figure, (axes,) = plots.figure_of(1, *CHART)
        plots.draw_series(axes, *point.series)
        place = f"{point.latitude:.5f}, {point.longitude:.5f}; row {point.row}, column {point.column}; {point.why}"
        parts.append(f"<h3>Point {number}</h3><p>{escape(place)}</p>{_figure(figure)}")
    return "".join(parts)


def _scores(found: Summary) -> str:
    parts = []
    if found.truth is not None:
        days = ", ".join(map(str, found.truth.days))
        height, width = found.truth.window.shape
        text = f"Predicted pixels against the truth of the simulated world, {days}, over {width} × {height} pixels."
        rows = [(band, *(f"{value:.4f}" for value in values)) for band, values in found.truth.scores.items()]
        parts.append(f"<p>{escape(text)}</p>{_table(('band', 'RMSE', 'bias', 'correlation'), rows)}")
    for name in ("guard", "adaptation"):
        withheld = found.document.get(name, {}).get("withheld")
        if withheld and withheld.get("rmse"):
            rows = [(method, f"{rmse:.4f}") for method, rmse in withheld["rmse"].items()]
            text = f"Observations that the methods were not given (--{'guard' if name == 'guard' else 'adapt'})"
            parts.append(_table(("method", "RMSE"), rows, 1, f"{text}, {withheld['blocks']} blocks"))
    parts.append(
        "<p>All scores of all methods, on withheld observations or against the truth:</p>"
        f"<pre>python -m pipelines.evaluate {escape(found.name)} --report scores.html</pre>"
    )
    return "".join(parts)


def _made(found: Summary, statistics: Mapping[str, str]) -> str:
    document = found.document
    cubes = document.get("cubes", {})
    digests = [(name, str(state.get("blocks", "")), str(state.get("sha256", ""))) for name, state in cubes.items()]
    fused = cubes.get("fused.zarr", {}).get("identity", {})
    weights = fused.get("model")
    rows = [*statistics.items(), *([("weights, SHA-256", str(weights))] if weights else [])]
    rows += [("items.json, SHA-256", str(document["items"]["sha256"]))] if "items" in document else []
    versions = [("stfgan_xr", str(document.get("stfgan_xr", ""))), *document.get("versions", {}).items()]
    request = escape(json.dumps(document.get("request", {}), indent=1, sort_keys=True))
    return (
        f"{_table((), rows, 2)}{_table(('cube', 'blocks', 'SHA-256'), digests, 3)}"
        f"{_table(('package', 'version'), versions, 2)}"
        f"<details><summary>The request as run.json holds it</summary><pre>{request}</pre></details>"
    )
