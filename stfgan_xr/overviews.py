"""A cube seen from afar: overviews of it that are written once, and views that read no more than is looked at.

An overview is a cube like its original with pixels 4 or 16 times as large, in ``overviews/`` of the run folder: means
of the pixels that have a value for what is scaled (reflectance, deviations), the middle pixel for flags and ages. They
are for looking at and nothing else: a mean of overviews is not a mean of the cube.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from dask.delayed import Delayed, delayed
from odc.geo.geobox import GeoBox

from stfgan_xr import store
from stfgan_xr.days import from_number, to_numbers
from stfgan_xr.errors import IncompleteError, InputError
from stfgan_xr.files import Folder
from stfgan_xr.grid import Window, tiles
from stfgan_xr.sensors import is_clear

Array = npt.NDArray[Any]

FOLDER = "overviews"
STEP = 4
MOST_PIXELS = 1536
"""Pixels along a side that are read of one level for one view."""
TILE = 512


def factors(shape: tuple[int, int]) -> tuple[int, ...]:
    """Pixel sizes of the overviews that a cube needs, in its own pixels.

    >>> factors((512, 512)), factors((4000, 2000)), factors((10240, 10240))
    ((), (4,), (4, 16))
    """
    found, factor = [], 1
    while max(shape) / factor > MOST_PIXELS:
        factor *= STEP
        found.append(factor)
    return tuple(found)


def reduce_mean(counts: Array, factor: int, fill: int) -> Array:
    """Means over ``factor x factor`` pixels of ``(time, y, x)`` integers, of those that are not ``fill``.

    Cells at the far edges may be cut; cells without a value are ``fill``.
    """
    padded = _padded(counts, factor, fill)
    days, height, width = padded.shape
    shape = (days, height // factor, factor, width // factor, factor)
    valid = padded != fill
    count = valid.reshape(shape).sum(axis=(2, 4), dtype=np.int32)
    total = np.where(valid, padded, 0).reshape(shape).sum(axis=2, dtype=np.int32).sum(axis=3, dtype=np.int32)
    mean = np.rint(total / np.maximum(count, 1)).astype(counts.dtype)
    return np.asarray(np.where(count > 0, mean, counts.dtype.type(fill)))


def reduce_middle(values: Array, factor: int) -> Array:
    """The middle pixel of each ``factor x factor`` of ``(time, y, x)``."""
    return _padded(values, factor, None)[:, factor // 2 :: factor, factor // 2 :: factor]


def _padded(values: Array, factor: int, fill: float | None) -> Array:
    edges = [(0, 0), *((0, -side % factor) for side in values.shape[1:])]
    if not any(edge for _, edge in edges):
        return values
    return np.pad(values, edges, mode="edge") if fill is None else np.pad(values, edges, constant_values=fill)


def _reduced(array: Array, factor: int, attributes: Mapping[str, Any]) -> Array:
    fill = attributes.get("_FillValue")
    return reduce_middle(array, factor) if fill is None else reduce_mean(array, factor, int(fill))


def _grid(grid: GeoBox, factor: int) -> GeoBox:
    height, width = (-(-int(side) // factor) for side in grid.shape)
    return GeoBox((height, width), grid.affine * Affine.scale(factor), grid.crs)


def layout_of(counts: xr.Dataset, factor: int) -> store.Layout:
    """The layout of an overview of a cube of counts, in blocks of the cube's days."""
    grid = _grid(counts.odc.geobox, factor)
    variables = {
        str(name): store.Variable(str(array.dtype), int(array.attrs.get("_FillValue", 0)), attributes=dict(array.attrs))
        for name, array in counts.data_vars.items()
        if array.dims == store.FINE
    }
    run = int(counts.attrs["stfgan_xr"]["layout"]["run"])
    tile = store.tile_for((int(grid.shape[0]), int(grid.shape[1])), 16, TILE)
    return store.Layout(grid, tuple(days_of(counts)), variables, tile, run)


def _read(counts: xr.Dataset, name: str, days: range, window: Window, factor: int, tile: int) -> Array:
    """A window of an overview, read tile by tile and a few days at a time, so that memory stays small."""
    out: Array = np.empty((len(days), *window.shape), counts[name].dtype)
    shape = (counts.sizes["y"], counts.sizes["x"])
    step = max(tile // factor, 1)
    for part in tiles(window.shape, step):
        rows, columns = part.move(window.top, window.left).pixels(factor).clip(shape).slices
        for first in range(0, len(days), store.INNER_DAYS):
            last = min(first + store.INNER_DAYS, len(days))
            values = counts[name].isel(time=slice(days.start + first, days.start + last), y=rows, x=columns).values
            out[(slice(first, last), *part.slices)] = _reduced(values, factor, counts[name].attrs)
    return out


def _write_block(
    source: Folder, target: Folder, layout: store.Layout, block: store.Block, factor: int
) -> dict[str, Any]:
    counts = store.open_counts(source)
    tile = int(counts.attrs["stfgan_xr"]["layout"]["tile"])
    days = range(block.first, block.last)
    arrays = {name: _read(counts, name, days, block.window, factor, tile) for name in layout.variables}
    return store.write_block(target, layout, block, arrays)


def overview_folder(run: Folder, name: str, factor: int) -> Folder:
    """Where the overview of a cube of a run lies."""
    return run / FOLDER / f"{name}-{factor}.zarr"


@dataclass(frozen=True)
class Overview:
    """An overview to be written: where it comes from, where it goes, and the blocks it lacks."""

    source: Folder
    target: Folder
    layout: store.Layout
    factor: int
    pending: tuple[store.Block, ...]

    def tasks(self) -> Iterator[Delayed]:
        """One task for each block it lacks."""
        for block in self.pending:
            yield delayed(_write_block, pure=False)(self.source, self.target, self.layout, block, self.factor)


def prepare(run: Folder, name: str) -> Iterator[Overview]:
    """The overviews that a cube of a run lacks, finest first; each must be written before the next is asked for.

    Parameters
    ----------
    run
        The run folder.
    name
        ``fused`` or ``landsat``.
    """
    source, step = run / f"{name}.zarr", 1
    cube = store.open_counts(source)
    digest = cube.attrs["stfgan_xr"].get("sha256")
    for factor in factors((cube.sizes["y"], cube.sizes["x"])):
        target = overview_folder(run, name, factor)
        layout = layout_of(store.open_counts(source), factor // step)
        if not _is_of(target, digest):
            store.remove(target)
        pending = store.prepare(target, layout, {"overview_of": digest, "factor": factor})
        if pending:
            yield Overview(source, target, layout, factor // step, tuple(pending))
        store.seal(target)
        source, step = target, factor


def _is_of(target: Folder, digest: str) -> bool:
    try:
        return bool(store.identity_of(target).get("overview_of") == digest)
    except InputError:
        return True


def remove(run: Folder) -> None:
    """Delete the overviews of a run."""
    for name in ("fused", "landsat"):
        for factor in (STEP**level for level in range(1, 8)):  # more than any cube has
            store.remove(overview_folder(run, name, factor))


def window_of(grid: GeoBox, bounds: tuple[float, float, float, float]) -> Window:
    """The pixels of a grid that left, bottom, right and top touch."""
    left, bottom, right, top = bounds
    corners = [~grid.affine * (x, y) for x in (left, right) for y in (bottom, top)]
    columns, rows = zip(*corners, strict=True)
    return Window(
        int(np.floor(min(rows))), int(np.ceil(max(rows))), int(np.floor(min(columns))), int(np.ceil(max(columns)))
    )


def days_of(dataset: xr.Dataset) -> list[date]:
    """The days of a Dataset."""
    return [from_number(int(number)) for number in to_numbers(dataset["time"].values)]


def spread_steps(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` steps, with the first and the last.

    >>> spread_steps(31, 4), spread_steps(3, 4)
    ([0, 10, 20, 30], [0, 1, 2])
    """
    return list(range(count)) if count <= most else [round(n * (count - 1) / (most - 1)) for n in range(most)]


@dataclass(frozen=True)
class View:
    """What is seen of a cube: values by name, and the ground that they cover.

    Attributes
    ----------
    values
        Arrays ``(time, y, x)``: float32 reflectance with NaN, other variables as they are stored.
    grid
        Their grid; at the far edges its pixels may reach beyond the cube.
    """

    values: dict[str, Array]
    grid: GeoBox


@dataclass(frozen=True)
class Pyramid:
    """A cube with the overviews of it that are there: factor by factor, 1 is the cube itself."""

    levels: dict[int, xr.Dataset]

    @cached_property
    def cube(self) -> xr.Dataset:
        """The cube."""
        return self.levels[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the cube."""
        return self.cube.sizes["y"], self.cube.sizes["x"]

    def level(self, window: Window) -> int:
        """The finest level of which a window is small enough to be read at once, else the coarsest there is."""
        extent = max(window.shape)
        return min((f for f in self.levels if extent / f <= MOST_PIXELS), default=max(self.levels))

    def view(self, names: Sequence[str], steps: slice, window: Window | None = None, pixels: int = 768) -> View:
        """A window over some time steps, with pixels so large that no more than ``pixels`` lie along a side.

        Parameters
        ----------
        names
            Variables ``(time, y, x)``.
        steps
            Time steps.
        window
            Pixels of the cube; all of it by default. It grows to whole pixels of what is shown.
        pixels
            Most pixels along a side of the result.
        """
        window = (window or Window(0, self.shape[0], 0, self.shape[1])).clip(self.shape)
        factor = self.level(window)
        level = self.levels[factor]
        stride = -(-max(window.shape) // (factor * pixels))
        size = factor * stride
        outer = Window(window.top // size, -(-window.bottom // size), window.left // size, -(-window.right // size))
        rows, columns = outer.pixels(stride).clip((level.sizes["y"], level.sizes["x"])).slices
        part = level[list(names)].isel(time=steps, y=rows, x=columns)
        values = {name: _shrink(np.asarray(part[name].values), stride) for name in names}
        affine = self.cube.odc.geobox.affine * Affine.translation(outer.left * size, outer.top * size)
        grid = GeoBox(outer.shape, affine * Affine.scale(size), self.cube.odc.geobox.crs)
        return View(values, grid)


def _shrink(values: Array, factor: int) -> Array:
    if factor == 1:
        return values
    if values.dtype.kind != "f":
        return reduce_middle(values, factor)
    padded = _padded(values, factor, np.nan)
    parts = [padded[:, y::factor, x::factor] for y in range(factor) for x in range(factor)]
    mean = _sum(parts) / np.float32(factor**2)
    if not np.isnan(mean).any():
        return mean
    known = [np.isfinite(part) for part in parts]
    total = _sum([np.where(there, part, np.float32(0)) for there, part in zip(known, parts, strict=True)])
    with np.errstate(invalid="ignore"):
        return np.asarray(total / _sum([there.astype(np.float32) for there in known]), np.float32)


def _sum(parts: Sequence[Array]) -> Array:
    total = parts[0].astype(np.float32)
    for part in parts[1:]:
        total += part
    return total


def open_pyramid(run: Folder, name: str) -> Pyramid:
    """A cube of a run with its overviews; those of another cube, or unfinished ones, are left out.

    Raises
    ------
    InputError, IncompleteError
        If there is no such cube or it is unfinished.
    """
    cube = store.open_cube(run / f"{name}.zarr")
    digest, levels = cube.attrs["stfgan_xr"].get("sha256"), {1: cube}
    for factor in factors((cube.sizes["y"], cube.sizes["x"])):
        target = overview_folder(run, name, factor)
        try:
            if store.identity_of(target).get("overview_of") == digest:
                levels[factor] = store.open_cube(target)
        except (InputError, IncompleteError):
            break
    return Pyramid(levels)


def clear_shares(observed: Pyramid) -> list[float]:
    """Of each time step of a series of observations, the share of the area that is clear.

    The area is the coordinate ``aoi`` where there is one. Overviews are read where there are any.
    """
    coarsest = max(observed.levels)
    qa = observed.levels[coarsest]["qa"]
    inside = _inside(observed.cube, coarsest)
    shares = []
    for step in range(qa.sizes["time"]):
        clear = is_clear(np.asarray(qa.isel(time=step).values))
        shares.append(float(clear[inside].mean() if inside is not None and inside.any() else clear.mean()))
    return shares


def _inside(cube: xr.Dataset, factor: int) -> Array | None:
    if store.AOI not in cube.coords:
        return None
    inside = np.asarray(cube[store.AOI].values, np.uint8)[None]
    return np.asarray(reduce_middle(inside, factor)[0], bool)
