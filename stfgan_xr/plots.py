"""Pictures: the one file that draws. Each function takes axes or a path and leaves nothing open."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from stfgan_xr.brackets import band_names
from stfgan_xr.days import to_datetime64
from stfgan_xr.overviews import Pyramid, clear_shares, days_of
from stfgan_xr.rendering import COMPOSITES, Image, shade, stretch_of
from stfgan_xr.sensors import is_clear

ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
"""Where a legend hides nothing."""
SCALE_BARS = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


def shown_bands(dataset: xr.Dataset) -> tuple[str, ...]:
    """True colour if the bands are there, else one band."""
    bands, colours = band_names(dataset), COMPOSITES["true colour"]
    return colours if set(colours) <= set(bands) else bands[:1]


def image_of(dataset: xr.Dataset, day: date, bands: Sequence[str]) -> Image:
    """Reflectance ``(band, y, x)`` of a day of a cube; observations that are not clear are NaN."""
    on_day = dataset[[*bands, *(["qa"] if "qa" in dataset else [])]].sel(time=to_datetime64([day])[0]).compute()
    image = np.stack([np.asarray(on_day[band].values, np.float32) for band in bands])
    if "qa" in on_day and "days_before" not in dataset:
        image[:, ~is_clear(np.asarray(on_day["qa"].values))] = np.nan
    return image


def quicklook(axes: Axes, image: Image, stretch: tuple[float, float], title: str = "") -> Axes:
    """Draw reflectance ``(1 or 3, y, x)``; pixels without a value are grey."""
    axes.imshow(shade(image, stretch), interpolation="nearest")
    return _bare(axes, title)


def _dated(axes: Axes) -> Axes:
    """Few dates, each once, along an axis of time."""
    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return axes


def _bare(axes: Axes, title: str) -> Axes:
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def triptych(
    axes: Sequence[Axes],
    before: Image,
    fused: Image,
    after: Image,
    titles: Sequence[str] = ("before", "fused", "after"),
) -> Sequence[Axes]:
    """Draw the observation before, the fused image and the observation after ``(1 or 3, y, x)`` with one stretch.

    >>> figure = Figure(figsize=(9, 3))
    >>> image = np.random.default_rng(0).random((3, 8, 8), np.float32)
    >>> [a.get_title() for a in triptych(figure.subplots(1, 3), image, image, image)]
    ['before', 'fused', 'after']
    """
    stretch = stretch_of([before, fused, after])
    for part, image, title in zip(axes, (before, fused, after), titles, strict=True):
        quicklook(part, image, stretch, title)
    return axes


def scale_bar(axes: Axes, metres: float, width: int) -> None:
    """A bar of a round length, about a quarter of an image of ``width`` pixels of ``metres``."""
    wanted = width * metres / 4
    length = max((bar for bar in SCALE_BARS if bar <= wanted), default=SCALE_BARS[0])
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length} m"
    height = axes.get_ylim()[0]
    axes.plot([0.04 * width, 0.04 * width + length / metres], [0.95 * height] * 2, color="white", linewidth=3)
    axes.text(0.04 * width, 0.92 * height, label, color="white", fontsize=8, va="bottom")


def error_map(axes: Axes, image: Image, truth: Image, limit: float = 0.05, title: str = "error") -> Axes:
    """Root mean square over bands of the difference to the truth, dark is 0 and bright is ``limit``."""
    error = np.sqrt(np.nanmean((image - truth) ** 2, axis=0))
    axes.imshow(error, vmin=0, vmax=limit, cmap="magma", interpolation="nearest")
    return _bare(axes, f"{title} (0 to {limit:g})")


def time_series(axes: Axes, cube: xr.Dataset, landsat: xr.Dataset, band: str, row: int, column: int) -> Axes:
    """A pixel through time: the fused cube as a line, its clear observations as points.

    Where the cube holds standard deviations the 95 % interval is shaded.
    """
    return draw_series(axes, *read_series(cube, landsat, band, row, column))


def read_series(
    cube: xr.Dataset, landsat: xr.Dataset, band: str, row: int, column: int
) -> tuple[xr.Dataset, xr.DataArray]:
    """A pixel's fused values (``mean`` and, where known, ``half`` of the 95 % interval), and its clear observations."""
    names = [band, *([f"std_{band}"] if f"std_{band}" in cube else [])]
    pixel = cube[names].isel(y=row, x=column).compute()
    found = xr.Dataset({"mean": pixel[band]})
    if len(names) == 2:
        found["half"] = pixel[names[1]] * float(cube[names[1]].attrs.get("interval_95", 2))
    points = landsat[[band, "qa"]].isel(y=row, x=column).compute()
    return found, points[band][is_clear(np.asarray(points["qa"].values))]


def draw_series(axes: Axes, fused: xr.Dataset, observed: xr.DataArray, label: str = "", colour: str = "C0") -> Axes:
    """Draw what :func:`read_series` gives."""
    mean, time = fused["mean"], fused["time"].values
    if "half" in fused:
        low, high = mean - fused["half"], mean + fused["half"]
        axes.fill_between(time, low.values, high.values, alpha=0.2, linewidth=0, color=colour, label="95 %")
    axes.plot(time, mean.values, linewidth=1, label="fused", color=colour)
    axes.plot(observed["time"].values, observed.values, "o", markersize=3.5, label="Landsat, clear", color="0.1")
    axes.set_ylabel(label or f"{observed.name} reflectance")
    axes.legend(fontsize=8, ncols=3, **ABOVE)
    return _dated(axes)


def calendar(axes: Axes, landsat: xr.Dataset, modis: xr.Dataset | None = None, days: Sequence[date] = ()) -> Axes:
    """Clear share of each acquisition as bars, of the area where the Dataset knows it.

    Parameters
    ----------
    landsat
        Fine series.
    modis
        Coarse series: its clear share of each day is a line.
    days
        Days asked for, shaded.
    """
    coarse = None if modis is None else (days_of(modis), clear_shares(Pyramid({1: modis})))
    return draw_calendar(axes, (days_of(landsat), clear_shares(Pyramid({1: landsat}))), coarse, days)


Shares = tuple[Sequence[date], Sequence[float]]
"""Days, and the clear share of each."""


def draw_calendar(axes: Axes, fine: Shares, coarse: Shares | None = None, days: Sequence[date] = ()) -> Axes:
    """Draw clear shares of days."""
    if days:
        first, last = to_datetime64([days[0]])[0], to_datetime64([days[-1]])[0]
        half = np.timedelta64(12, "h")
        axes.axvspan(first - half, last + half, color="0.9", label="days asked for")
    if coarse is not None:
        axes.plot(to_datetime64(coarse[0]), coarse[1], linewidth=1, color="C1", label="MODIS")
    axes.bar(to_datetime64(fine[0]), fine[1], width=np.timedelta64(20, "h"), label="Landsat")
    axes.set_ylabel("clear share")
    axes.set_ylim(0, 1)
    return _dated(axes)


def _clearest(landsat: xr.Dataset, days: Sequence[date]) -> date | None:
    """Of some acquisition days the one with the largest clear share."""
    shares = {d: float(is_clear(np.asarray(landsat["qa"].sel(time=to_datetime64([d])[0]).values)).mean()) for d in days}
    return max(shares, key=lambda d: (shares[d], d)) if shares else None


def _chosen(cube_days: Sequence[date], count: int) -> list[date]:
    steps = np.linspace(0, len(cube_days) - 1, min(count, len(cube_days)))
    return [cube_days[round(step)] for step in steps]


def _neighbours(landsat: xr.Dataset, days: Sequence[date]) -> tuple[date | None, date | None]:
    acquired = days_of(landsat)
    earlier, later = [d for d in acquired if d < days[0]], [d for d in acquired if d > days[-1]]
    return _clearest(landsat, earlier[-4:]), _clearest(landsat, later[:4])


def run_picture(
    path: Path, landsat: xr.Dataset, cube: xr.Dataset, truth: Callable[[date], Any] | None = None, count: int = 4
) -> None:
    """A picture of a run: the acquisition before, fused days, the acquisition after; below, truth and error if known.

    Parameters
    ----------
    path
        PNG to write.
    landsat, cube
        Reflectance Datasets of the run.
    truth
        Gives true-colour reflectance ``(3, y, x)`` of a day, in a simulated world.
    count
        Fused days shown.
    """
    bands, days = shown_bands(cube), _chosen(days_of(cube), count)
    before, after = _neighbours(landsat, days_of(cube))
    fused = [image_of(cube, day, bands) for day in days]
    real = [np.asarray(truth(day), np.float32) for day in days] if truth and len(bands) == 3 else []
    stretch = stretch_of(real or fused)
    figure = Figure(figsize=(3 * (count + 2), 3.3 * (3 if real else 1)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(3 if real else 1, len(days) + 2, squeeze=False)
    for axes, day, name in ((rows[0, 0], before, "Landsat before"), (rows[0, -1], after, "Landsat after")):
        if day is None:
            axes.axis("off")
        else:
            quicklook(axes, image_of(landsat, day, bands), stretch, f"{name}, {day}")
    metres = abs(float(cube["x"].values[1] - cube["x"].values[0])) if cube.sizes["x"] > 1 else 30.0
    for column, (day, image) in enumerate(zip(days, fused, strict=True), 1):
        scale_bar(quicklook(rows[0, column], image, stretch, f"fused, {day}"), metres, image.shape[-1])
        if real:
            quicklook(rows[1, column], real[column - 1], stretch, f"truth, {day}")
            error_map(rows[2, column], image, real[column - 1])
    for axes in rows[1:, [0, -1]].ravel():
        axes.axis("off")
    figure.savefig(path, dpi=100)


CURVES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "losses (squared errors: 4 x reflectance²)",
        "log",
        (
            ("mse_anchor", "anchor"),
            ("mse_stage1", "stage 1"),
            ("mse_stage2", "stage 2"),
            ("mse_before", "before"),
            ("mse_after", "after"),
            ("mse_whole", "whole"),
            ("mse_fine", "fine"),
            ("mse_coarse", "coarse"),
            ("feature", "feature"),
            ("cosine", "cosine"),
            ("structure", "structure"),
        ),
    ),
    (
        "RMSE on withheld days (reflectance)",
        "linear",
        (("rmse_withheld_anchor", "anchor"), ("rmse_withheld", "averaged weights")),
    ),
    (
        "adversarial / content gradient",
        "log",
        (("gradient_ratio_stage1", "stage 1"), ("gradient_ratio_stage2", "stage 2")),
    ),
    ("critic loss", "linear", (("critic_stage1", "stage 1"), ("critic_stage2", "stage 2"))),
)
"""Panels of the losses: what they show, the scale of it, and columns with their names."""
COLOURS = {
    "anchor": "0.4",
    "stage 1": "C0",
    "stage 2": "C1",
    "averaged weights": "C1",
    "before": "C0",
    "after": "C1",
    "whole": "C2",
    "fine": "C0",
    "coarse": "C1",
    "feature": "C0",
    "cosine": "C1",
    "structure": "C2",
}


def loss_curves(csv_path: Path, png_path: Path) -> None:
    """Losses of a training run over its steps: its terms and the error of the anchor as running means, the checks on
    withheld days, how much the adversarial part counts, and the critics' losses; panels without a value say so."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, axes in enumerate(figure.subplots(2, 2, sharex=True).flat):
        loss_curve(axes, csv_path, panel)
    figure.savefig(png_path, dpi=100)


def loss_curve(axes: Axes, csv_path: Path, panel: int = 0) -> Axes:
    """One panel of the losses in a ``losses.csv``: the number of one of :data:`CURVES`."""
    label, scale, columns = CURVES[panel]
    with csv_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for column, name in columns:
        known = [(int(row["step"]) + 1, float(row[column])) for row in rows if row.get(column)]
        known = [(step, value) for step, value in known if value > 0 or scale != "log"]
        if known:
            steps, values = (np.array(part) for part in zip(*known, strict=True))
            marker = "o" if len(steps) <= 100 else ""
            colour = COLOURS[name]
            axes.plot(steps, _smoothed(values), color=colour, marker=marker, markersize=3, linewidth=1, label=name)
    if axes.lines:
        axes.set_yscale(scale)
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "not measured in this run", transform=axes.transAxes, ha="center", color="0.4")
    axes.set_ylabel(label)
    axes.set_xlabel("step")
    return axes


def _smoothed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    width = max(1, len(values) // 50)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def footprints(
    axes: Axes, inside: npt.NDArray[np.bool_], bounds: Sequence[float], scenes: Mapping[str, npt.NDArray[np.float64]]
) -> Axes:
    """An area and the outlines of scenes around it.

    Parameters
    ----------
    axes
        Where to draw.
    inside
        Whether each pixel ``(y, x)`` lies in the area.
    bounds
        Left, bottom, right and top of these pixels, in metres.
    scenes
        Corners ``(n, 2)`` of each scene by its label, in metres.
    """
    left, bottom, right, top = (value / 1000 for value in bounds)
    area = np.where(inside, 1.0, np.nan)
    axes.imshow(area, extent=(left, right, bottom, top), cmap=ListedColormap(["#c6dbef"]), interpolation="nearest")
    axes.plot([left, right, right, left, left], [bottom, bottom, top, top, bottom], ":", color="0.3", label="grid")
    for number, (label, corners) in enumerate(scenes.items()):
        axes.plot(*(corners / 1000).T, linewidth=1, color=f"C{number % 10}", label=label)
    axes.set_aspect("equal")
    axes.autoscale()
    axes.margins(0.05)
    axes.set_xlabel("east, km")
    axes.set_ylabel("north, km")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return axes


def value_map(axes: Axes, values: npt.NDArray[Any], title: str) -> Axes:
    """A map of numbers ``(y, x)`` with its scale; grey is no value."""
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="0.85")
    known = values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(known, (1, 99))) if known.size else (0.0, 1.0)
    shown = axes.imshow(values, vmin=low, vmax=max(high, low + 1e-6), cmap=colours, interpolation="nearest")
    assert axes.figure is not None
    axes.figure.colorbar(shown, ax=axes, shrink=0.8)
    return _bare(axes, title)


def draw_kinds(axes: Axes, days: Sequence[date], kinds: Mapping[str, Sequence[float]]) -> Axes:
    """What the pixels of each day are, as stacked shares."""
    below, width = np.zeros(len(days)), np.timedelta64(24, "h")
    for (kind, shares), colour in zip(kinds.items(), ("C0", "C2", "C1", "0.6"), strict=False):
        axes.bar(to_datetime64(days), shares, width=width, bottom=below, label=kind, color=colour)
        below = below + np.asarray(shares)
    axes.set_ylabel("share of the area")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, ncols=4, **ABOVE)
    return _dated(axes)


def figure_of(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with a row of axes that nothing else holds, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def to_svg(figure: Figure) -> str:
    """A figure as SVG for a page: text stays text, and the same figure gives the same bytes."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stfgan_xr", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
