"""What a run asked and found, in numbers and small pictures: one pass over overviews, in bounded memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo import geom
from odc.geo.geobox import GeoBox

from stfgan_xr import store
from stfgan_xr.brackets import band_names
from stfgan_xr.errors import InputError
from stfgan_xr.files import Folder
from stfgan_xr.fusion import NO_AGE, Quality
from stfgan_xr.grid import Window
from stfgan_xr.overviews import Pyramid, clear_shares, days_of, open_pyramid, spread_steps
from stfgan_xr.plots import read_series
from stfgan_xr.rendering import COMPOSITES, INDICES, Image, composites_of, index_of, indices_of, shade, stretch_of
from stfgan_xr.scenes import Scene, read_scenes
from stfgan_xr.sensors import is_clear
from stfgan_xr.simulate import world_of

Array = npt.NDArray[Any]

PIXELS = 640
"""Most pixels along a side of a picture."""
MOST_FRAMES = 40
"""Days that are shown, spread over all."""
STRETCH_DAYS = 3
QUANTILES = (0.99, 0.9, 0.5, 0.1)
"""Points are shown whose change over time is at these quantiles."""
FAR = 0.8
"""Of the mean age of the day that is furthest from observations: MODIS is shown on the clearest of such days."""
TRUTH_DAYS, TRUTH_PIXELS = 4, 384
KINDS = {
    "observed": "a clear Landsat observation of the day",
    "between": "predicted, with an observation before and after",
    "one side": "predicted from one side only",
    "no value": "nothing to predict from",
}
"""What a pixel of a day can be."""


@dataclass(frozen=True)
class Acquisition:
    """A day with fine imagery: how much of the area is clear, and the scenes it is made of."""

    day: date
    clear: float
    scenes: tuple[Scene, ...] = ()


@dataclass(frozen=True)
class Point:
    """A pixel through time: where it is, why it was chosen, and its values by label (see ``plots.read_series``)."""

    row: int
    column: int
    longitude: float
    latitude: float
    why: str
    band: str
    series: tuple[xr.Dataset, xr.DataArray]


@dataclass(frozen=True)
class Truth:
    """Scores against the truth of a simulated world: by band RMSE, bias and correlation of predicted pixels."""

    days: tuple[date, ...]
    window: Window
    scores: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Summary:
    """A run, as its report shows it.

    Attributes
    ----------
    name
        The run folder.
    document
        Its ``run.json``.
    grid, view
        The fine grid, and that of the pictures.
    days
        Days of the cube.
    acquisitions
        Days with fine imagery.
    coarse
        Days of the coarse series with the share of its cells that have a usable value.
    shown
        Days that are shown as pictures.
    frames
        By composite, levels ``(y, x, 3)`` uint8 of each shown day.
    pairs
        Images to compare, by what they are: titles and levels of two.
    kinds
        By :data:`KINDS` the share of the area on each day.
    maps
        By label, arrays ``(y, x)``: float, NaN where there is nothing to say.
    residuals
        By band mean and root mean square of the fused cell means minus the coarse image.
    points
        Pixels through time.
    inside
        Pixels of the pictures in the area; None: all.
    truth
        Scores, in a simulated world.
    """

    name: str
    document: dict[str, Any]
    grid: GeoBox
    view: GeoBox
    days: list[date]
    acquisitions: list[Acquisition]
    coarse: tuple[list[date], list[float]]
    shown: list[date]
    frames: dict[str, list[Array]]
    pairs: dict[str, tuple[str, Array, str, Array]]
    kinds: dict[str, list[float]]
    maps: dict[str, Array]
    residuals: dict[str, tuple[float, float]]
    points: list[Point]
    inside: Array | None
    truth: Truth | None


def summarise(run: Folder) -> Summary:
    """Look at a finished run.

    Memory holds one picture of eight days at a time, whatever the size of the cube, if its overviews were written
    (:func:`stfgan_xr.overviews.prepare`).

    Raises
    ------
    InputError, IncompleteError
        If there is no finished run.
    """
    fused, landsat = open_pyramid(run, "fused"), open_pyramid(run, "landsat")
    modis = store.open_cube(run / "modis.zarr")
    bands, days = band_names(fused.cube), days_of(fused.cube)
    seen = _Seen.of(fused, bands)
    pictures = _pictures(fused, bands, seen)
    chosen = _choose(seen)
    content = run.read("run.json")
    view = fused.view(bands[:1], slice(0, 1), pixels=PIXELS).grid
    return Summary(
        name=str(run),
        document=json.loads(content) if content else {},
        grid=fused.cube.odc.geobox,
        view=view,
        days=days,
        acquisitions=_acquisitions(run, landsat),
        coarse=(days_of(modis), clear_shares(Pyramid({1: modis}))),
        shown=[days[step] for step in pictures.steps],
        frames=pictures.frames,
        pairs=_pairs(fused, modis, seen, pictures.stretches),
        kinds=seen.kinds,
        maps=seen.maps(),
        residuals=dict(_residuals(fused.cube, bands)),
        points=[_point(fused.cube, landsat.cube, view, at, why) for at, why in chosen],
        inside=seen.inside,
        truth=_truth(run, fused.cube, bands),
    )


# ---------------------------------------------------------------- one pass over all days


@dataclass
class _Seen:
    """Sums over the days, at the pixels of the pictures."""

    inside: Array | None
    kinds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    days: int = 0
    known: Array = field(default_factory=lambda: np.zeros(()))
    observed: Array = field(default_factory=lambda: np.zeros(()))
    age: Array = field(default_factory=lambda: np.zeros(()))
    total: Array = field(default_factory=lambda: np.zeros(()))
    square: Array = field(default_factory=lambda: np.zeros(()))
    deviation: Array | None = None
    band: str = ""
    index: str = ""
    ages: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, fused: Pyramid, bands: Sequence[str]) -> _Seen:
        index = next(iter(indices_of(bands)), "")
        band = "nir" if "nir" in bands else bands[0]
        seen = cls(_inside(fused), band=band, index=index)
        followed = [n for n in bands if n in _needed(index, band)]
        names = [
            *followed,
            "qa",
            "days_before",
            "days_after",
            *([f"std_{band}"] if f"std_{band}" in fused.cube else []),
        ]
        for steps in _runs(fused.cube.sizes["time"]):
            values = fused.view(names, steps, pixels=PIXELS).values
            for number in range(steps.stop - steps.start):
                seen._add({name: array[number] for name, array in values.items()})
        return seen

    def _add(self, day: Mapping[str, Array]) -> None:
        qa = day["qa"]
        none = (qa & Quality.NODATA) != 0
        observed = ((qa & Quality.OBSERVED) != 0) & ~none
        one_side = ((qa & Quality.EXTRAPOLATED) != 0) & ~none & ~observed
        for kind, mask in zip(KINDS, (observed, ~none & ~observed & ~one_side, one_side, none), strict=True):
            self.kinds[kind].append(float(self._of_area(mask).mean()))
        nearest = np.minimum(day["days_before"], day["days_after"]).astype(np.float32)
        known = ~none & (nearest < NO_AGE)
        followed = index_of(self.index, day) if self.index else day[self.band]
        if not self.days:
            self.known, self.observed, self.age, self.total, self.square = (np.zeros(qa.shape) for _ in range(5))
        self.known += known
        self.observed += observed
        self.age += np.where(known, nearest, 0)
        self.total += np.nan_to_num(followed)
        self.square += np.nan_to_num(followed) ** 2
        std = day.get(f"std_{self.band}")
        if std is not None:
            self.deviation = np.nan_to_num(std) + (0 if self.deviation is None else self.deviation)
        ages = self._of_area(nearest)[self._of_area(known)]
        self.ages.append(float(ages.mean()) if ages.size else -1.0)
        self.days += 1

    def _of_area(self, values: Array) -> Array:
        return values[self.inside] if self.inside is not None else values

    def change(self) -> Array:
        """Standard deviation over time of what is followed; NaN where a day has no value or outside of the area."""
        count = max(self.days, 1)
        spread = np.sqrt(np.maximum(self.square / count - (self.total / count) ** 2, 0))
        whole = self.known == self.days
        return np.where(whole if self.inside is None else whole & self.inside, spread, np.nan)

    def maps(self) -> dict[str, Array]:
        known = np.where(self.known > 0, self.known, np.nan)
        found = {
            "share of the days observed": self.observed / self.days,
            "days to the nearest observation, mean": self.age / known,
            f"standard deviation over time of {self.index.upper() or self.band}": self.change(),
        }
        if self.deviation is not None:
            found[f"uncertainty: standard deviation of {self.band}, mean"] = self.deviation / known
        if (self.known < self.days).any():
            found["share of the days without a value"] = 1 - self.known / self.days
        return {
            label: values if self.inside is None else np.where(self.inside, values, np.nan)
            for label, values in found.items()
        }


def _needed(index: str, band: str) -> set[str]:
    return {band, *(INDICES[index].bands if index else ())}


def _runs(days: int) -> Iterator[slice]:
    for first in range(0, days, store.INNER_DAYS):
        yield slice(first, min(first + store.INNER_DAYS, days))


def _inside(fused: Pyramid) -> Array | None:
    """The area at the pixels of the pictures: those whose middle is inside."""
    if store.AOI not in fused.cube.coords:
        return None
    view = fused.view(["qa"], slice(0, 1), pixels=PIXELS)
    size = round(abs(view.grid.affine.a / fused.cube.odc.geobox.affine.a))
    height, width = view.values["qa"].shape[1:]
    rows = np.minimum(np.arange(height) * size + size // 2, fused.shape[0] - 1)
    columns = np.minimum(np.arange(width) * size + size // 2, fused.shape[1] - 1)
    inside = np.asarray(fused.cube[store.AOI].values, bool)[np.ix_(rows, columns)]
    return inside if inside.any() and not inside.all() else None


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class _Pictures:
    steps: list[int]
    frames: dict[str, list[Array]]
    stretches: dict[str, tuple[float, float]]


def _levels(image: Image, stretch: tuple[float, float]) -> Array:
    return np.asarray(shade(image, stretch) * 255, np.uint8)


def _images(fused: Pyramid, names: Sequence[str], step: int) -> dict[str, Array]:
    return {name: v[0] for name, v in fused.view(names, slice(step, step + 1), pixels=PIXELS).values.items()}


def _pictures(fused: Pyramid, bands: Sequence[str], seen: _Seen) -> _Pictures:
    composites = {name: rgb for name, rgb in composites_of(bands).items() if name != "shortwave"}
    names = sorted({band for rgb in composites.values() for band in rgb})
    steps = spread_steps(seen.days, MOST_FRAMES)
    samples = [_images(fused, names, steps[n]) for n in spread_steps(len(steps), STRETCH_DAYS)]
    stretches = {
        name: stretch_of([np.stack([sample[band] for band in rgb]) for sample in samples])
        for name, rgb in composites.items()
    }
    frames: dict[str, list[Array]] = {name: [] for name in composites}
    for run in _runs(seen.days):
        wanted = [step for step in steps if run.start <= step < run.stop]
        values = fused.view(names, run, pixels=PIXELS).values if wanted else {}
        for step in wanted:
            for name, rgb in composites.items():
                image = np.stack([values[band][step - run.start] for band in rgb])
                frames[name].append(_levels(image, stretches[name]))
    return _Pictures(steps, frames, stretches)


def _pairs(
    fused: Pyramid, modis: xr.Dataset, seen: _Seen, stretches: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[str, Array, str, Array]]:
    """The first and the last day; and MODIS beside the fused image of a day that is far from observations."""
    name, stretch = next(iter(stretches.items()))
    rgb = COMPOSITES.get(name, (name,))
    days, coarse_days = days_of(fused.cube), days_of(modis)

    def image(at: int) -> Array:
        values = _images(fused, list(rgb), at)
        return _levels(np.stack([values[band] for band in rgb]), stretch)

    pairs = {}
    if len(days) > 1:
        pairs["first and last day"] = str(days[0]), image(0), str(days[-1]), image(len(days) - 1)
    far = [n for n, age in enumerate(seen.ages) if days[n] in coarse_days and age >= FAR * max(seen.ages)]
    if far:
        cells = {n: modis[[*rgb, "qa"]].isel(time=coarse_days.index(days[n])).compute() for n in far}
        clear = {n: is_clear(np.asarray(found["qa"].values)) for n, found in cells.items()}
        best = max(far, key=lambda n: float(clear[n].mean()))
        seen_by_modis = np.stack([np.where(clear[best], cells[best][band].values, np.nan) for band in rgb])
        label = "what MODIS saw, and what was fused"
        levels = _levels(seen_by_modis.astype(np.float32), stretch)
        pairs[label] = f"MODIS, {days[best]}", levels, f"fused, {days[best]}", image(best)
    return pairs


# ---------------------------------------------------------------- points, residuals, acquisitions, truth


def _choose(seen: _Seen) -> list[tuple[tuple[int, int], str]]:
    """Pixels at quantiles of change, the most changing first; none twice."""
    change, found = seen.change(), dict[tuple[int, int], str]()
    if not np.isfinite(change).any():
        return []
    for quantile in QUANTILES:
        off = np.abs(change - np.nanquantile(change, quantile))
        row, column = np.unravel_index(int(np.nanargmin(off)), off.shape)
        found.setdefault((int(row), int(column)), f"changes more than {quantile:.0%} of the area")
    return list(found.items())


def _point(cube: xr.Dataset, landsat: xr.Dataset, view: GeoBox, at: tuple[int, int], why: str) -> Point:
    size = round(abs(view.affine.a / cube.odc.geobox.affine.a))
    row = min(at[0] * size + size // 2, cube.sizes["y"] - 1)
    column = min(at[1] * size + size // 2, cube.sizes["x"] - 1)
    bands = band_names(cube)
    band = "nir" if "nir" in bands else bands[0]
    where = geom.point(float(cube["x"].values[column]), float(cube["y"].values[row]), cube.odc.geobox.crs)
    longitude, latitude = where.to_crs("EPSG:4326").coords[0]
    return Point(row, column, longitude, latitude, why, band, read_series(cube, landsat, band, row, column))


def _residuals(cube: xr.Dataset, bands: Sequence[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    for band in bands:
        count, total, square = 0, 0.0, 0.0
        for steps in _runs(cube.sizes["time"]):
            values = np.asarray(cube[f"residual_{band}"].isel(time=steps).values, np.float64)
            known = values[np.isfinite(values)]
            count, total, square = count + known.size, total + float(known.sum()), square + float((known**2).sum())
        yield band, (total / count, math.sqrt(square / count)) if count else (math.nan, math.nan)


def _acquisitions(run: Folder, landsat: Pyramid) -> list[Acquisition]:
    kept = read_scenes(run)
    scenes = kept[0] if kept else ()
    return [
        Acquisition(day, clear, tuple(scene for scene in scenes if scene.day == day))
        for day, clear in zip(days_of(landsat.cube), clear_shares(landsat), strict=True)
    ]


def _truth(run: Folder, cube: xr.Dataset, bands: Sequence[str]) -> Truth | None:
    """Scores over the middle of a simulated world, on a few days."""
    try:
        world = world_of(run)
    except InputError:  # its files are gone
        return None
    if world is None or world.grid.crs != cube.odc.geobox.crs:
        return None
    offset = ~world.grid.affine * (cube.odc.geobox.affine.c, cube.odc.geobox.affine.f)
    top, left = (max(0, cube.sizes[axis] - TRUTH_PIXELS) // 2 for axis in ("y", "x"))
    rows, columns = (min(cube.sizes[axis], TRUTH_PIXELS) for axis in ("y", "x"))
    window = Window(top, top + rows, left, left + columns)
    days = days_of(cube)
    steps = spread_steps(len(days), TRUTH_DAYS)
    in_world = window.move(round(offset[1]), round(offset[0]))
    if in_world != in_world.clip(world.shape):
        return None
    pairs: dict[str, list[tuple[Array, Array]]] = {band: [] for band in bands}
    for step in steps:
        part = cube[[*bands, "qa"]].isel(time=step, y=window.slices[0], x=window.slices[1]).compute()
        predicted = (part["qa"].values & (Quality.OBSERVED | Quality.NODATA)) == 0
        for band, reference in zip(bands, world.reflectance(days[step], bands, in_world), strict=True):
            pairs[band].append((part[band].values[predicted], reference[predicted]))
    scores = {band: _score(*map(np.concatenate, zip(*found, strict=True))) for band, found in pairs.items()}
    return Truth(tuple(days[step] for step in steps), window, scores)


def _score(predicted: Array, reference: Array) -> tuple[float, float, float]:
    if predicted.size < 2:
        return math.nan, math.nan, math.nan
    off = predicted.astype(np.float64) - reference
    return float(np.sqrt((off**2).mean())), float(off.mean()), float(np.corrcoef(predicted, reference)[0, 1])


def outline(scene: Scene, grid: GeoBox) -> geom.Geometry | None:
    """The ground that a scene covers, in the CRS of a grid; None if it does not state it."""
    if not (scene.crs and scene.shape and scene.transform) or grid.crs is None:
        return None
    return GeoBox(scene.shape, Affine(*scene.transform[:6]), scene.crs).extent.to_crs(grid.crs)
