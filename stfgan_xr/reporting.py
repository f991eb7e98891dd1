"""A table of scores as one document, HTML or Markdown, with all that a reader needs to check it or make it again.

Conventions as formulas, what was used for what, definitions of the classes, versions and digests. There are no time
stamps, so the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from stfgan_xr import __version__
from stfgan_xr.brackets import band_names
from stfgan_xr.errors import InputError
from stfgan_xr.evaluation import Table, around, values
from stfgan_xr.grid import georeference


@dataclass(frozen=True)
class Score:
    """How a score is shown: its label, formula and best value, and the digits after its point."""

    label: str
    formula: str
    best: str
    digits: int = 4


SCORES = {
    "rmse": Score("RMSE", "√ mean (P − T)²", "0"),
    "bias": Score("Bias", "mean (P − T)", "0"),
    "mae": Score("MAE", "mean |P − T|", "0"),
    "cc": Score("CC", "σ_PT / (σ_P σ_T) (Pearson); a constant band is left out", "1"),
    "ssim": Score(
        "SSIM",
        "(2 μ_P μ_T + 0.01²) (2 σ_PT + 0.03²) / ((μ_P² + μ_T² + 0.01²) (σ_P² + σ_T² + 0.03²)): data_range 1, moments "
        "in an 11 × 11 Gaussian of σ 1.5 over the valid pixels, mean of the valid pixels at least 5 from the edge",
        "1",
    ),
    "ssim_stretched": Score(
        "SSIM, 2 % stretch", "SSIM after both are brought to 0..1 by the 2nd and 98th percentile of T, and clipped", "1"
    ),
    "psnr": Score("PSNR", "−20 log10 RMSE, in dB for a peak of 1; a band without error is left out", "∞", 2),
    "sam": Score("SAM", "mean of arccos(P·T / (‖P‖ ‖T‖)) over the vectors of all bands, in degrees, L2 norms", "0", 3),
    "ergas": Score("ERGAS", "100 (h/l) √ mean over bands of (RMSE / mean T)²", "0", 3),
    "uiqi": Score("UIQI", "4 σ_PT μ_P μ_T / ((σ_P² + σ_T²) (μ_P² + μ_T²)), over the whole band at once", "1"),
    "edge": Score(
        "Edge",
        "mean (R_P − R_T) / (R_P + R_T), R: Roberts edges, over the strongest tenth of R_T of 2 × 2 valid pixels",
        "0",
    ),
    "lbp": Score("LBP", "mean (B_P − B_T) / (B_P + B_T), B: local binary patterns of 3 × 3 valid pixels", "0"),
    "skill": Score("Skill", "1 − RMSE / min(RMSE of linear, RMSE of delta), of the same case, band or class", "1"),
    "coverage_68": Score("68 % interval", "share of the pixels with |P − T| ≤ k σ, k as calibrated for 68 %", "0.68"),
    "coverage_95": Score("95 % interval", "share of the pixels with |P − T| ≤ k σ, k as calibrated for 95 %", "0.95"),
    "rmse_surest": Score("RMSE, surest fifth", "of the fifth of the pixels with the smallest σ", "0"),
    "rmse_least_sure": Score("RMSE, least sure fifth", "of the fifth of the pixels with the greatest σ", "0"),
}
"""The scores of :data:`stfgan_xr.metrics.NAMES` in the order in which they are shown."""

PIXELS = (
    "Every method is scored over the same pixels: those that have a reference and to which every method gives a value "
    "in every band. All others are dropped, never set to zero. Reflectance is a number of which 1 is 100 %. "
    "P is the prediction, T the reference, μ, σ² and σ_PT their mean, variance and covariance; σ alone is the "
    "predicted standard deviation."
)
MEANS = (
    "A score is computed in each band, then averaged over the bands (SAM and ERGAS take all bands at once), then over "
    "the cases, all of one weight; the mean of a class weights each case by its pixels of the class. SSIM, Edge and "
    "LBP look at neighbours and are left out where a class scatters its pixels. A dash is a score that is not defined."
)
CLASSES = (
    "F1, T and F3 are the images of the days before, of the target and after. How far two of them differ in a pixel is "
    "√ mean over bands of (A − B)², in reflectance. The reference tells the classes, so that unchanged ones are by "
    "definition those that linear interpolation predicts well."
)
SEAM = (
    "The median absolute second difference of the three pixels in a row that a border of two tiles lies between, over "
    "that at the borders of other coarse cells, along x and y. Where tiles do not show it is near 1, or near what the "
    "ground itself shows at these pixels in the observations."
)
TRIPLETS = (
    "A case is predicted from the fine images of two days, before and after, and from the coarse series of all days. "
    "The fine image of the target day is the reference and nothing else; fine images of days between are not used.",
    "Methods that mix all observations (robot) also have those before and after the two.",
    "The reference of a pixel counts where all three days are clear.",
)
"""Protocol of cases of observations."""
TRAINED = "What a learned method was trained on stands in the .json file beside its weights; it is not checked here."


@dataclass(frozen=True)
class Case:
    """The days of a case; ``unused`` are acquisitions between ``before`` and ``after`` that no method was given."""

    before: date | None
    target: date
    after: date | None
    unused: tuple[date, ...] = ()


def cases(table: Table, acquired: Iterable[date]) -> tuple[Case, ...]:
    """The cases of a table, given the days of the fine series; without a triplet those nearest to the target."""
    days = tuple(acquired)
    found = []
    for row in next(iter(table.values())).rows:
        before, after = (row.triplet.before, row.triplet.after) if row.triplet else around(days, row.day)
        inside = (day for day in days if before and after and before < day < after and day != row.day)
        found.append(Case(before, row.day, after, tuple(inside)))
    return tuple(found)


@dataclass(frozen=True)
class Facts:
    """What a table of scores must state beside the scores.

    Attributes
    ----------
    command
        The command line that makes the document again.
    protocol
        Paragraphs: what was predicted from what, and what the reference is.
    cases
        See :func:`cases`.
    classes
        Definitions of the parts of the image by name.
    ratio
        Fine pixels along a coarse cell: h/l of ERGAS is 1 / ratio.
    cubes, weights
        SHA-256 of the cubes (:func:`digest`), and of the weights of learned methods.
    seams
        :func:`stfgan_xr.evaluation.seams` of the method whose cube is there.
    versions
        See :func:`versions`.
    """

    command: str
    protocol: tuple[str, ...]
    cases: tuple[Case, ...]
    classes: Mapping[str, str]
    ratio: int
    cubes: Mapping[str, str]
    weights: Mapping[str, str] = field(default_factory=dict)
    seams: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, with the conventions."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        formulas = {name: score.formula for name, score in SCORES.items()}
        return found | {"conventions": {"pixels": PIXELS, "means": MEANS, **formulas}}


def versions() -> dict[str, str]:
    """Versions of what computes the scores."""
    packages = {name: version(name) for name in ("numpy", "scipy", "torch", "xarray")}
    return {"stfgan_xr": __version__, "python": platform.python_version(), **packages}


def digest(cube: xr.Dataset) -> str:
    """SHA-256 of a cube: of its blocks where :func:`stfgan_xr.store.seal` recorded it, else of its grid and values."""
    sealed = cube.attrs.get("stfgan_xr", {}).get("sha256")
    if sealed:
        return str(sealed)
    names = [*band_names(cube), "qa"]
    found = hashlib.sha256(json.dumps([names, georeference(cube.odc.geobox)], sort_keys=True).encode())
    for number in range(cube.sizes["time"]):
        image = cube[names].isel(time=number).compute()
        found.update(str(image["time"].values.astype("datetime64[D]")).encode())
        for name in names:
            found.update(np.ascontiguousarray(image[name].values).tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Grid:
    """A table of texts; the first ``left`` columns name the row, or are text, and the others are numbers."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, lines of code and tables under it."""

    title: str
    text: tuple[str, ...] = ()
    code: str = ""
    grids: tuple[Grid, ...] = ()


def sections(table: Table, facts: Facts) -> tuple[Section, ...]:
    """The document of a table of scores."""
    return (
        Section("Means", (f"{len(facts.cases)} cases.", MEANS), grids=(_means(table),)),
        _bands(table),
        _classes(table, facts),
        _seams(facts),
        _cases(table, facts),
        _conventions(facts),
        _origin(facts),
    )


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:z.{digits}f}"


Means = Mapping[str, Mapping[str, float | None]]
"""Values by method and score."""


def _lines(key: str, found: Means) -> Iterator[tuple[str, ...]]:
    """A row of each score that any method has."""
    for name, score in SCORES.items():
        row = [of.get(name) for of in found.values()]
        if any(value is not None for value in row):
            yield score.label, *([key] if key else []), *(_number(value, score.digits) for value in row)


def _grid(caption: str, kind: str, parts: Mapping[str, Means]) -> Grid:
    """Scores of parts, all parts of a score together."""
    rows = [line for part, found in parts.items() for line in _lines(part, found)]
    order = [score.label for score in SCORES.values()]
    methods = tuple(next(iter(parts.values()), {}))
    return Grid(caption, ("score", kind, *methods), tuple(sorted(rows, key=lambda row: order.index(row[0]))), 2)


def _means(table: Table) -> Grid:
    rows = list(_lines("", {method: result.mean for method, result in table.items()}))
    missing = ("Share without a value", *(_number(result.missing) for result in table.values()))
    return Grid("Means over the cases", ("score", *table), (*rows, missing))


def _bands(table: Table) -> Section:
    names = next(iter(table.values())).bands
    parts = {name: {method: result.band_means[name] for method, result in table.items()} for name in names}
    return Section("Bands", grids=(_grid("Means over the cases, of each band", "band", parts),))


def _classes(table: Table, facts: Facts) -> Section:
    first = next(iter(table.values()))
    parts = {name: {method: result.class_means[name] for method, result in table.items()} for name in first.class_means}
    defined = tuple((name, facts.classes.get(name, ""), str(count)) for name, count in first.class_pixels.items())
    grids = (
        Grid("Classes, and their pixels in all cases", ("class", "where", "pixels"), defined, 2),
        _grid("Means over the cases, of each class", "class", parts),
    )
    return (
        Section("Change classes", (CLASSES,), grids=grids) if parts else Section("Change classes", ("None are known.",))
    )


def _seams(facts: Facts) -> Section:
    rows = tuple((method, _number(value)) for method, value in facts.seams.items())
    none = "No cube with several tiles was there to measure them in."
    grids = (Grid("Bending across the borders of tiles", ("image", "ratio"), rows),) if rows else ()
    return Section("Seams", (SEAM,) if rows else (SEAM, none), grids=grids)


def _cases(table: Table, facts: Facts) -> Section:
    names = [str(case.target) for case in facts.cases]
    if len(set(names)) < len(names):
        names = [f"{case.before}/{case.target}/{case.after}" for case in facts.cases]
    parts = {
        name: {method: values(result.rows[at].scores) for method, result in table.items()}
        for at, name in enumerate(names)
    }
    pixels = [row.scores.pixels for row in next(iter(table.values())).rows]
    days = tuple(
        (
            str(case.before or "-"),
            str(case.target),
            str(case.after or "-"),
            ", ".join(map(str, case.unused)) or "-",
            str(n),
        )
        for case, n in zip(facts.cases, pixels, strict=True)
    )
    header = ("before", "target", "after", "acquired between, not used", "pixels scored")
    grids = (Grid("Days of the fine series", header, days, 4), _grid("Scores of each case", "case", parts))
    return Section("Protocol and cases", facts.protocol, grids=grids)


def _conventions(facts: Facts) -> Section:
    rows = tuple((score.label, score.formula, score.best) for score in SCORES.values())
    ratio = f"h/l of ERGAS, the fine over the coarse pixel size, is 1/{facts.ratio}."
    return Section("Conventions", (PIXELS, ratio), grids=(Grid("Scores", ("score", "formula", "best"), rows, 3),))


def _origin(facts: Facts) -> Section:
    named = {
        ("Versions", "package", "version"): facts.versions,
        ("Cubes", "cube", "SHA-256"): facts.cubes,
        ("Weights", "method", "SHA-256"): facts.weights,
    }
    grids = (
        Grid(title, (key, value), tuple(found.items()), 2) for (title, key, value), found in named.items() if found
    )
    return Section("Made by", code=facts.command, grids=tuple(grids))


_STYLE = """
body{font:16px/1.45 system-ui,sans-serif;margin:1rem auto;padding:0 1rem;max-width:60rem;color:#111;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{padding:.2rem .6rem;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}tbody th{font-weight:400}thead th{border-color:#111}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f2f2f2;padding:.75rem}
@media print{body{font-size:10pt;margin:0;max-width:none}.wide{overflow:visible}
tr{break-inside:avoid}h2{break-after:avoid}}
"""
TITLE = "Scores of fused images"


def _html_row(cells: Sequence[str], left: int, head: bool) -> str:
    def cell(at: int, text: str) -> str:
        kind = "th" if head or at == 0 else "td"
        scope = "" if kind == "td" else ' scope="col"' if head else ' scope="row"'
        number = "" if at < left else ' class="n"'
        return f"<{kind}{scope}{number}>{escape(text)}</{kind}>"

    return f"<tr>{''.join(cell(at, text) for at, text in enumerate(cells))}</tr>"


def _html_grid(grid: Grid) -> str:
    head, caption = _html_row(grid.header, grid.left, True), escape(grid.caption)
    body = "\n".join(_html_row(row, grid.left, False) for row in grid.rows)
    table = f"<table>\n<caption>{caption}</caption>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="wide">\n{table}\n</div>'


def _html_section(section: Section) -> str:
    text = [f"<p>{escape(part)}</p>" for part in section.text]
    code = [f"<pre>{escape(section.code)}</pre>"] if section.code else []
    return "\n".join([f"<h2>{escape(section.title)}</h2>", *text, *code, *map(_html_grid, section.grids)])


def to_html(found: Sequence[Section]) -> str:
    """A document as one HTML page without scripts or other files."""
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{TITLE}</title>'
    head = f'<html lang="en">\n<head>\n{head}\n<style>{_STYLE}</style>\n</head>'
    body = "\n".join([f"<h1>{TITLE}</h1>", *map(_html_section, found)])
    return f"<!doctype html>\n{head}\n<body>\n{body}\n</body>\n</html>\n"


def _marked(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def _markdown_grid(grid: Grid) -> str:
    rule = [":--" if at < grid.left else "--:" for at in range(len(grid.header))]
    rows = [rule if row is rule else [_marked(text) for text in row] for row in (grid.header, rule, *grid.rows)]
    return f"**{_marked(grid.caption)}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_section(section: Section) -> str:
    code = [f"```\n{section.code}\n```"] if section.code else []
    parts = [f"## {section.title}", *map(_marked, section.text), *code, *map(_markdown_grid, section.grids)]
    return "\n\n".join(parts)


def to_markdown(found: Sequence[Section]) -> str:
    """A document as Markdown with tables of pipes."""
    return "\n\n".join([f"# {TITLE}", *map(_markdown_section, found)]) + "\n"


RENDERERS: dict[str, Callable[[Sequence[Section]], str]] = {".html": to_html, ".md": to_markdown}


def renderer(path: Path) -> Callable[[Sequence[Section]], str]:
    """What writes a document of a file's suffix.

    Raises
    ------
    InputError
        If no document has that suffix.
    """
    if path.suffix not in RENDERERS:
        raise InputError(f"{path}: a report ends in {' or '.join(RENDERERS)}")
    return RENDERERS[path.suffix]
