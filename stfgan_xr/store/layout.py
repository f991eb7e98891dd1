"""What is fixed when a cube is created: its variables, its grid and days, and the blocks it is written in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from stfgan_xr.grid import Window, tiles
from stfgan_xr.sensors import FILL, SCALE, Observation

FINE, COARSE = ("time", "y", "x"), ("time", "yc", "xc")


@dataclass(frozen=True)
class Variable:
    """One array of a cube: its type, the value that means nothing, its dims and attributes."""

    dtype: str
    fill: int
    dims: tuple[str, str, str] = FINE
    attributes: Mapping[str, Any] = field(default_factory=dict)


def reflectance_variable(name: str, dims: tuple[str, str, str] = FINE) -> Variable:
    """An int16 variable of reflectance x 10000 with CF attributes."""
    packing = {"_FillValue": FILL, "scale_factor": SCALE, "add_offset": 0.0}
    return Variable("int16", FILL, dims, packing | {"units": "1", "long_name": f"{name.replace('_', ' ')} reflectance"})


def flag_variable(flags: Mapping[str, int], fill: int, long_name: str) -> Variable:
    """A uint16 variable of CF flags."""
    meanings = " ".join(name.lower() for name in flags)
    return Variable(
        "uint16", fill, FINE, {"flag_masks": list(flags.values()), "flag_meanings": meanings, "long_name": long_name}
    )


def observation_variables(bands: Iterable[str]) -> dict[str, Variable]:
    """The variables of ``landsat.zarr`` and ``modis.zarr``: the bands and ``qa``."""
    flags = {flag.name or "": flag.value for flag in Observation}
    qa = flag_variable(flags, Observation.FILL, "state of the observation")
    return {band: reflectance_variable(band) for band in bands} | {"qa": qa}


@dataclass(frozen=True)
class Block:
    """A tile (in pixels of the cube's grid) over time steps ``first`` to ``last`` (half open): the unit of work."""

    window: Window
    first: int
    last: int

    @property
    def name(self) -> str:
        """Name of its record."""
        return f"t{self.first:05d}-{self.last:05d}_y{self.window.top:06d}_x{self.window.left:06d}"


@dataclass(frozen=True)
class Layout:
    """All that is fixed when a cube is created.

    Attributes
    ----------
    grid
        The grid of the ``y, x`` variables.
    days
        The days of its time axis.
    variables
        Its arrays by name.
    tile, run
        Pixels along a tile and days of a block; one block is one shard of every variable.
    ratio
        Pixels along a cell of the ``yc, xc`` variables.
    void
        Days of the axis that there is nothing for any more: readers do not see them.
    """

    grid: GeoBox
    days: tuple[date, ...]
    variables: Mapping[str, Variable]
    tile: int
    run: int
    ratio: int = 1
    void: tuple[date, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.grid.shape[0]), int(self.grid.shape[1])

    def blocks(self) -> Iterator[Block]:
        """All blocks: time runs outermost, tiles row by row."""
        for first in range(0, len(self.days), self.run):
            last = min(first + self.run, len(self.days))
            for window in tiles(self.shape, self.tile):
                yield Block(window, first, last)

    def scale(self, variable: Variable) -> int:
        """Pixels of the grid along a pixel of the variable."""
        return self.ratio if variable.dims == COARSE else 1

    def region(self, variable: Variable, block: Block) -> tuple[slice, slice, slice]:
        """Where a block of the variable lies in its array: always whole shards."""
        window = block.window.cells(self.scale(variable))
        return slice(block.first, block.last), *window.slices

    def size(self) -> int:
        """Bytes of all arrays before compression."""
        cells = len(self.days) * math.prod(self.shape)
        return sum(cells // self.scale(v) ** 2 * np.dtype(v.dtype).itemsize for v in self.variables.values())


def tile_for(shape: tuple[int, int], step: int, largest: int) -> int:
    """Tile side for a grid: a multiple of ``4 * step`` (so that a shard holds whole inner chunks) near ``largest``.

    Small grids get one tile.

    >>> tile_for((10240, 10240), 16, 1024), tile_for((512, 400), 16, 1024), tile_for((140, 140), 112, 1024)
    (1024, 512, 448)
    """
    unit = 4 * step
    needed = -(-max(shape) // unit) * unit
    return min(needed, max(largest // unit, 1) * unit)


def dataset_layout(dataset: xr.Dataset, grid: GeoBox, bands: Sequence[str], *, tile: int, run: int) -> Layout:
    """The layout of a cube of observations for a Dataset of counts."""
    days = tuple(np.asarray(dataset["time"].values).astype("datetime64[D]").tolist())
    return Layout(grid, days, observation_variables(bands), tile, run)


def fill(layout: Layout, block: Block) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a block in which nothing has a value."""
    regions = {name: layout.region(variable, block) for name, variable in layout.variables.items()}
    return {
        name: np.full([part.stop - part.start for part in regions[name]], variable.fill, variable.dtype)
        for name, variable in layout.variables.items()
    }
