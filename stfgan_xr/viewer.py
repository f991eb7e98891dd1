"""A page that browses the cubes of runs: maps with a slider of days, bands and indices, a pixel's values through time.

Bokeh's server sends what is looked at and nothing else: a view of the overview that fits the screen, a few days of
which are kept, so that a cube of any size costs the same.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.events import DocumentReady, Tap
from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    BasicTickFormatter,
    BoxZoomTool,
    ColumnDataSource,
    CustomJS,
    LinearColorMapper,
    Range1d,
    WheelZoomTool,
)
from bokeh.models.annotations import ColorBar
from bokeh.models.widgets import Button, CategoricalSlider, Div, Select
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from bokeh.server.server import Server
from odc.geo import geom
from odc.geo.geobox import GeoBox

from stfgan_xr import store
from stfgan_xr.brackets import band_names
from stfgan_xr.days import to_datetime64
from stfgan_xr.errors import InputError
from stfgan_xr.files import Folder
from stfgan_xr.fusion import NO_AGE, Quality
from stfgan_xr.grid import Window, describe
from stfgan_xr.overviews import Pyramid, View, days_of, open_pyramid, window_of
from stfgan_xr.rendering import INDICES, composites_of, index_of, indices_of, shade, stretch_of
from stfgan_xr.sensors import is_clear

Array = npt.NDArray[Any]

PIXELS = 768
"""Most pixels along a side of a map."""
KEPT_VIEWS = 4
"""Views of eight days that are kept: at most some 60 MiB each."""
SETTLE_MILLISECONDS, FRAME_MILLISECONDS = 150, 400
FINGER = "if (matchMedia('(pointer: coarse)').matches) for (const bar of bars) bar.active_drag = null"
"""A finger scrolls the page, and does not get lost in a map; a tap on the tool lets it move the map."""
NONE = "nothing"
TEMPLATE = """{% block preamble %}<meta name="viewport" content="width=device-width, initial-scale=1">{% endblock %}"""
"""Without it a phone draws the page as wide as a desk's and shrinks it."""
PALETTE = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in Viridis256], np.uint8)


@dataclass(frozen=True)
class Layer:
    """Something to look at: a name, its cube, and whether only the nearest acquisition of a day is there."""

    name: str
    pyramid: Pyramid
    nearest: bool = False
    days: Sequence[date] = field(default=(), compare=False)

    def step(self, day: date) -> int | None:
        """The time step shown for a day."""
        if self.nearest:
            return min(range(len(self.days)), key=lambda n: abs((self.days[n] - day).days))
        return self.days.index(day) if day in self.days else None


def layers_of(runs: Sequence[Folder]) -> list[Layer]:
    """The fused cubes of some runs, and the Landsat and MODIS cubes of the first.

    Raises
    ------
    InputError
        If the runs are not on one grid.
    """
    found: list[Layer] = []
    for run in runs:
        pyramid = open_pyramid(run, "fused")
        if found and pyramid.cube.odc.geobox != found[0].pyramid.cube.odc.geobox:
            known = describe(found[0].pyramid.cube.odc.geobox)
            raise InputError(f"{run} is not on the grid of {runs[0]}, {known}; only runs of one area are compared")
        method = pyramid.cube.attrs["stfgan_xr"]["identity"].get("used", "fused")
        found.append(Layer(f"{method} ({run})", pyramid, days=days_of(pyramid.cube)))
    landsat, modis = open_pyramid(runs[0], "landsat"), Pyramid({1: store.open_cube(runs[0] / "modis.zarr")})
    found.append(Layer("Landsat, nearest day", landsat, nearest=True, days=days_of(landsat.cube)))
    return [*found, Layer("MODIS", modis, days=days_of(modis.cube))]


@dataclass
class Frames:
    """Views of layers, those looked at last kept for the days around."""

    kept: OrderedDict[tuple[Any, ...], View] = field(default_factory=OrderedDict)

    def view(self, layer: Layer, names: tuple[str, ...], step: int, window: Window) -> tuple[dict[str, Array], GeoBox]:
        """Values ``(y, x)`` of a time step, and their grid."""
        first = step - step % store.INNER_DAYS if not layer.nearest else step
        key = (layer.name, names, first, window)
        if key not in self.kept:
            last = min(first + (1 if layer.nearest else store.INNER_DAYS), len(layer.days))
            self.kept[key] = layer.pyramid.view(names, slice(first, last), window, PIXELS)
            while len(self.kept) > KEPT_VIEWS:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        view = self.kept[key]
        return {name: values[step - first] for name, values in view.values.items()}, view.grid


# ---------------------------------------------------------------- what is shown


def choices(pyramid: Pyramid) -> dict[str, tuple[str, ...]]:
    """What can be shown of a fused cube: its variables by label; several are a composite, or make an index."""
    bands = band_names(pyramid.cube)
    found: dict[str, tuple[str, ...]] = dict(composites_of(bands))
    found |= {INDICES[name].label: INDICES[name].bands for name in indices_of(bands)}
    found |= {band: (band,) for band in bands}
    found |= {f"standard deviation of {band}": (f"std_{band}",) for band in bands if f"std_{band}" in pyramid.cube}
    return found | {"days to the observations": ("days_before", "days_after")}


def image_of(label: str, values: Mapping[str, Array], names: Sequence[str]) -> Array:
    """What a label shows, ``(y, x)`` of one number or ``(3, y, x)`` of a composite."""
    index = {INDICES[name].label: name for name in INDICES}.get(label)
    if index is not None:
        return index_of(index, values)
    if tuple(names) == ("days_before", "days_after"):
        nearest = np.minimum(values["days_before"], values["days_after"]).astype(np.float32)
        return np.where(nearest < NO_AGE, nearest, np.nan)
    if len(names) == 3:
        return np.stack([values[name] for name in names])
    return np.asarray(values[names[0]], np.float32)


def to_rgba(image: Array, stretch: tuple[float, float]) -> Array:
    """An image as Bokeh wants it: uint32 ``(y, x)``, the first row at the bottom."""
    if image.ndim == 3:
        colours = (shade(image, stretch) * 255).astype(np.uint8)
    else:
        low, high = stretch
        hole = ~np.isfinite(image)
        at = np.clip((np.where(hole, low, image) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
        colours = PALETTE[at]
        colours[hole] = 191
    rgba = np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8)])
    return np.ascontiguousarray(rgba[::-1]).view(np.uint32)[..., 0]


# ---------------------------------------------------------------- the page


def _options(names: Iterable[str]) -> list[Any]:
    return list(names)


class Map:
    """One map: a figure, what it shows and how fast it came."""

    def __init__(self, layers: Mapping[str, Layer], ranges: tuple[Range1d, Range1d], grid: GeoBox, name: str) -> None:
        self.layers, self.image = layers, ColumnDataSource({"image": [], "x": [], "y": [], "dw": [], "dh": []})
        self.chosen = Select(
            title=f"{name} map", options=_options(layers), value=next(iter(layers)), name=f"layer-{name}", width=230
        )
        self.figure = figure(
            x_range=ranges[0], y_range=ranges[1], tools="pan,reset,save", name=f"map-{name}",
            aspect_ratio=float(grid.shape.x / grid.shape.y), sizing_mode="scale_width", min_width=280, max_width=720,
            toolbar_location="above", x_axis_label="east, m", y_axis_label="north, m", output_backend="canvas",
        )  # fmt: skip
        wheel = WheelZoomTool()
        self.figure.add_tools(wheel, BoxZoomTool(match_aspect=True))
        self.figure.toolbar.active_scroll = wheel
        self.figure.image_rgba("image", x="x", y="y", dw="dw", dh="dh", source=self.image)
        self.figure.grid.visible = False
        self.figure.axis.major_label_text_font_size = "8pt"
        self.figure.axis.formatter = BasicTickFormatter(use_scientific=False)
        self.figure.xaxis.ticker = BasicTicker(desired_num_ticks=3)  # few fit on a phone
        self.figure.title.text = ""  # type: ignore[union-attr]

    @property
    def layer(self) -> Layer | None:
        """The layer it shows."""
        return self.layers.get(str(self.chosen.value))

    def clear(self, why: str) -> None:
        """Show nothing, and say why."""
        self.image.data = {"image": [], "x": [], "y": [], "dw": [], "dh": []}
        self.figure.title.text = why  # type: ignore[union-attr]

    def show(self, rgba: Array, grid: GeoBox, title: str) -> None:
        """Show an image on its grid."""
        box = grid.boundingbox
        place = {"x": [box.left], "y": [box.bottom], "dw": [box.right - box.left], "dh": [box.top - box.bottom]}
        self.image.data = {"image": [rgba], **place}
        self.figure.title.text = title  # type: ignore[union-attr]


class Page:
    """All of a page of one visitor."""

    def __init__(self, layers: Sequence[Layer], document: Document) -> None:
        self.layers, self.document, self.frames = {layer.name: layer for layer in layers}, document, Frames()
        self.first = layers[0]
        self.grid = self.first.pyramid.cube.odc.geobox
        self.choices = choices(self.first.pyramid)
        self.stretches: dict[str, tuple[float, float]] = {}
        self.pending: Any = None
        self.playing: Any = None
        box = self.grid.boundingbox
        self.place = (box.left + box.right) / 2, (box.bottom + box.top) / 2
        self._build()

    def _build(self) -> None:
        box = self.grid.boundingbox
        self.ranges = ranges = Range1d(start=box.left, end=box.right), Range1d(start=box.bottom, end=box.top)
        other = {NONE: self.first, **self.layers}
        self.maps = Map(self.layers, ranges, self.grid, "left"), Map(other, ranges, self.grid, "right")
        self.marker = ColumnDataSource({"x": [], "y": []})
        self.names = [str(day) for day in self.first.days]
        self.day = CategoricalSlider(
            categories=self.names, value=self.names[0], title="day", name="day", sizing_mode="stretch_width"
        )
        self.play = Button(label="Play", name="play", width=80, align="end")
        self.what = Select(
            title="what is shown",
            options=_options(self.choices),
            value=next(iter(self.choices)),
            name="what",
            width=230,
        )
        self.bar = Div(name="legend", sizing_mode="stretch_width")
        self.text = Div(
            name="text",
            sizing_mode="stretch_width",
        )
        self.mapper = LinearColorMapper(palette=Viridis256, low=0, high=1)
        self.scale = ColorBar(
            color_mapper=self.mapper,
            height=12,
            width=180,
            location="bottom_left",
            orientation="horizontal",
            visible=False,
        )
        self._series()
        for part in self.maps:
            part.figure.scatter("x", "y", source=self.marker, marker="cross", size=18, line_width=3, color="white")
            part.figure.scatter("x", "y", source=self.marker, marker="cross", size=16, line_width=1, color="black")
            part.figure.on_event(Tap, self._tapped)
            part.chosen.on_change("value", lambda attr, old, new: self.refresh(anew=True))
        self.maps[0].figure.add_layout(self.scale)
        self.maps[1].figure.visible = False
        for bounds in ranges:
            bounds.on_change("start", lambda attr, old, new: self._moved())
            bounds.on_change("end", lambda attr, old, new: self._moved())
        self.day.on_change("value", lambda attr, old, new: self.refresh())
        self.what.on_change("value", lambda attr, old, new: self.refresh(anew=True))
        self.play.on_click(self._play)
        wrap = {"flex-wrap": "wrap", "gap": "8px"}
        chosen = (part.chosen for part in self.maps)
        several = len(self.names) > 1
        head = row(*[self.play] * several, self.what, *chosen, sizing_mode="stretch_width", styles=wrap)
        maps = row(*(part.figure for part in self.maps), sizing_mode="stretch_width", styles=wrap)
        series = column(self.text, self.chart, self.save, sizing_mode="stretch_width")
        edge = {"padding": "0 12px", "box-sizing": "border-box"}  # a slider's knob reaches beyond its line
        page = column(head, *[self.day] * several, maps, self.bar, series, sizing_mode="stretch_width", styles=edge)
        self.document.add_root(page)
        bars = [part.toolbar for part in (*(part.figure for part in self.maps), self.chart)]
        self.document.js_on_event(DocumentReady, CustomJS(args={"bars": bars}, code=FINGER))
        self.document.template = TEMPLATE  # type: ignore[assignment] # it takes texts too
        self.document.title = f"{self.first.name}, {len(self.first.days)} days"
        self.refresh()

    def _series(self) -> None:
        self.lines = [ColumnDataSource({"time": [], "value": []}) for _ in range(2)]
        self.interval = ColumnDataSource({"time": [], "low": [], "high": []})
        self.points = ColumnDataSource({"time": [], "value": []})
        self.chart = figure(
            x_axis_type="datetime", height=280, sizing_mode="stretch_width", tools="xpan,xwheel_zoom,reset,save",
            name="series", toolbar_location="above", x_range=self._times(), y_range=Range1d(start=0, end=1),
        )  # fmt: skip
        self.chart.varea("time", "low", "high", source=self.interval, alpha=0.2, legend_label="95 %")
        for source, colour, label in zip(self.lines, ("#1f77b4", "#d62728"), ("left", "right"), strict=True):
            self.chart.line("time", "value", source=source, color=colour, line_width=2, legend_label=label)
            self.chart.scatter("time", "value", source=source, color=colour, size=4)  # a day between gaps is no line
        self.chart.scatter("time", "value", source=self.points, color="black", size=6, legend_label="Landsat, clear")
        legend = self.chart.legend[0]
        legend.orientation, legend.label_text_font_size, legend.border_line_color = "horizontal", "8pt", None
        self.chart.add_layout(legend, "above")
        legend.spacing = 16
        self.entries: list[Any] = list(legend.items)
        self.save = Button(label="Save as CSV", name="csv", width=120)
        code = """
        const rows = ["series,day,value"];
        for (const [name, source] of Object.entries(sources))
          for (let i = 0; i < source.data.time.length; i++)
            rows.push([name, new Date(source.data.time[i]).toISOString().slice(0, 10), source.data.value[i]].join(","));
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([rows.join("\\n") + "\\n"], {type: "text/csv"}));
        link.download = "series.csv";
        link.click();
        """
        sources = {"left": self.lines[0], "right": self.lines[1], "landsat": self.points}
        self.save.js_on_click(CustomJS(args={"sources": sources}, code=code))

    def _times(self) -> Range1d:
        """The days of all layers."""
        days = [day for layer in self.layers.values() for day in layer.days if layer.nearest or layer is self.first]
        first, last = to_datetime64([min(days)])[0], to_datetime64([max(days)])[0]
        return Range1d(start=first - np.timedelta64(1, "D"), end=last + np.timedelta64(1, "D"))

    # ---- events

    def _moved(self) -> None:
        """The window changed: wait until it does not any more."""
        if self.pending is None:
            self.pending = self.document.add_timeout_callback(self._settled, SETTLE_MILLISECONDS)

    def _settled(self) -> None:
        self.pending = None
        self.refresh()

    def _play(self) -> None:
        if self.playing is not None:
            self.document.remove_periodic_callback(self.playing)
            self.playing, self.play.label = None, "Play"
        else:
            self.playing = self.document.add_periodic_callback(self._next, FRAME_MILLISECONDS)
            self.play.label = "Stop"

    def _next(self) -> None:
        self.day.value = self.names[(self._step() + 1) % len(self.names)]

    def _step(self) -> int:
        return self.names.index(str(self.day.value))

    def _tapped(self, event: Any) -> None:
        self.place = float(event.x), float(event.y)
        self._describe()

    # ---- drawing

    def _bounds(self) -> tuple[float, float, float, float]:
        across, up = self.ranges
        left, bottom, right, top = (float(v) for v in (across.start, up.start, across.end, up.end))  # type: ignore[arg-type]
        return left, bottom, right, top

    def _stretch(self, label: str, names: tuple[str, ...]) -> tuple[float, float]:
        if label not in self.stretches:
            height, width = self.first.pyramid.shape
            whole = Window(0, height, 0, width)
            values, _ = self.frames.view(self.first, names, 0, whole)
            image = image_of(label, values, names)
            self.stretches[label] = stretch_of([image if image.ndim == 3 else image[None]])
        return self.stretches[label]

    def refresh(self, anew: bool = False) -> None:
        """Draw the maps of the day, and the series where what is shown is another."""
        started = time.monotonic()
        day, label = self.first.days[self._step()], str(self.what.value)
        names = self.choices[label]
        stretch = self._stretch(label, names)
        for part in self.maps:
            part.figure.visible = part.chosen.value != NONE
            if part.figure.visible and part.layer is not None:
                self._draw(part, part.layer, day, label, names, stretch)
        self.mapper.update(low=stretch[0], high=stretch[1])
        self.scale.visible = not image_is_composite(label, names)
        self.bar.text = f"{label}, {day}: {1000 * (time.monotonic() - started):.0f} ms"
        if anew or len(self.lines[0].data["time"]) == 0:
            self._describe()
        else:
            self.text.text = self._state()

    def _draw(
        self, part: Map, layer: Layer, day: date, label: str, names: tuple[str, ...], stretch: tuple[float, float]
    ) -> None:
        step = layer.step(day)
        missing = [name for name in names if name not in layer.pyramid.cube]
        if step is None or missing:
            part.clear(f"no {missing[0]}" if missing else f"nothing on {day}")
            return
        grid = layer.pyramid.cube.odc.geobox
        window = window_of(grid, self._bounds()).clip(layer.pyramid.shape)
        if min(window.shape) <= 0:
            part.clear("outside of the area")
            return
        values, seen = self.frames.view(layer, names, step, window)
        part.show(to_rgba(image_of(label, values, names), stretch), seen, str(layer.days[step]))

    def _pixel(self, layer: Layer) -> tuple[int, int] | None:
        left, top = ~layer.pyramid.cube.odc.geobox.affine * self.place
        height, width = layer.pyramid.shape
        at = int(np.floor(top)), int(np.floor(left))
        return at if 0 <= at[0] < height and 0 <= at[1] < width else None

    def _values(self, layer: Layer, names: Sequence[str], at: tuple[int, int]) -> dict[str, Array]:
        part = layer.pyramid.cube[list(names)].isel(y=at[0], x=at[1])
        return {name: np.asarray(part[name].values) for name in names}

    def _followed(self) -> tuple[str, tuple[str, ...]]:
        """What the series shows: what the maps show, or near infrared for a composite."""
        label = str(self.what.value)
        names = self.choices[label]
        if image_is_composite(label, names):
            bands = band_names(self.first.pyramid.cube)
            band = "nir" if "nir" in bands else bands[0]
            return band, (band,)
        return label, names

    def _describe(self) -> None:
        """The series of the chosen pixel and its state on the day."""
        at = self._pixel(self.first)
        if at is None:
            return
        label, names = self._followed()
        self.marker.data = {"x": [self.place[0]], "y": [self.place[1]]}
        for source, part in zip(self.lines, self.maps, strict=True):
            self._line(source, part, label, names)
        self._interval(label, names, at)
        self._points(label, names, at)
        self._name_entries()
        self.chart.yaxis.axis_label = label
        self._fit()
        self.text.text = self._state()

    def _name_entries(self) -> None:
        """The legend names what is drawn, and nothing else."""
        names = ("95 %", *(str(part.chosen.value) for part in self.maps), "Landsat, clear")
        for entry, name, source in zip(self.entries, names, (self.interval, *self.lines, self.points), strict=True):
            entry.label, entry.visible = {"value": name}, len(source.data["time"]) > 0

    def _fit(self) -> None:
        """The axis of values holds all that is drawn."""
        drawn = [source.data[name] for source, name in (
            *((line, "value") for line in (*self.lines, self.points)), (self.interval, "low"), (self.interval, "high"),
        )]  # fmt: skip
        values = np.concatenate([np.asarray(part, np.float64) for part in drawn])
        values = values[np.isfinite(values)]
        if values.size:
            margin = max(0.05 * float(np.ptp(values)), 1e-3)
            self.chart.y_range.update(start=float(values.min()) - margin, end=float(values.max()) + margin)

    def _line(self, source: ColumnDataSource, part: Map, label: str, names: tuple[str, ...]) -> None:
        layer = part.layer
        at = self._pixel(layer) if layer is not None and part.chosen.value != NONE and not layer.nearest else None
        if layer is None or at is None or any(name not in layer.pyramid.cube for name in names):
            source.data = {"time": [], "value": []}
            return
        times = layer.pyramid.cube["time"].values
        source.data = {"time": times, "value": image_of(label, self._values(layer, names, at), names)}

    def _interval(self, label: str, names: tuple[str, ...], at: tuple[int, int]) -> None:
        std, cube = f"std_{names[0]}", self.first.pyramid.cube
        if len(names) > 1 or std not in cube:
            self.interval.data = {"time": [], "low": [], "high": []}
            return
        values = self._values(self.first, (*names, std), at)
        half = values[std] * float(cube[std].attrs.get("interval_95", 2))
        mean = values[names[0]]
        self.interval.data = {"time": cube["time"].values, "low": mean - half, "high": mean + half}

    def _points(self, label: str, names: tuple[str, ...], at: tuple[int, int]) -> None:
        landsat = next(layer for layer in self.layers.values() if layer.nearest)
        if any(name not in landsat.pyramid.cube for name in names):
            self.points.data = {"time": [], "value": []}
            return
        values = self._values(landsat, (*names, "qa"), at)
        clear = is_clear(values["qa"])
        shown = image_of(label, values, names)[clear]
        self.points.data = {"time": landsat.pyramid.cube["time"].values[clear], "value": shown}

    def _state(self) -> str:
        at = self._pixel(self.first)
        if at is None:
            return ""
        where = geom.point(*self.place, self.grid.crs).to_crs("EPSG:4326")
        longitude, latitude = where.coords[0]
        step = self._step()
        part = self.first.pyramid.cube[["qa", "days_before", "days_after"]].isel(time=step, y=at[0], x=at[1])
        qa = int(part["qa"].values)
        flags = ", ".join((flag.name or "").lower().replace("_", " ") for flag in Quality if qa & flag) or "predicted"
        ages = f"{_age(int(part['days_before'].values))} before, {_age(int(part['days_after'].values))} after"
        text = f"{latitude:.5f}, {longitude:.5f}; row {at[0]}, column {at[1]}; {self.first.days[step]}: {flags}; "
        return escape(text + f"observations {ages}. Click on a map for another pixel.")


def _age(days: int) -> str:
    return "none" if days == NO_AGE else f"{days} day{'s' * (days != 1)}"


def image_is_composite(label: str, names: Sequence[str]) -> bool:
    """Whether a label shows three bands as colours."""
    return len(names) == 3 and label not in {index.label for index in INDICES.values()}


def server(layers: Sequence[Layer], port: int) -> Server:
    """A server of the page on this machine only; ``start`` and run its loop.

    Parameters
    ----------
    layers
        See :func:`layers_of`.
    port
        Port of 127.0.0.1; 0 takes one that is free.

    Raises
    ------
    InputError
        If the port is taken.
    """

    def page(document: Document) -> None:
        Page(layers, document)

    build: Callable[[Document], None] = page
    try:
        made = Server({"/": Application(FunctionHandler(build))}, port=port, address="127.0.0.1")
    except OSError as error:
        raise InputError(f"--port {port}: {error.strerror or error}; choose another, or 0 for any") from None
    return made
