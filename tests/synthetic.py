"""Small cubes with a known formula, for tests of what works on cubes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from odc.geo.xr import xr_coords
from shapely.geometry import Polygon
from shapely.geometry import box as shapely_box

from stfgan_xr.days import to_datetime64
from stfgan_xr.grid import Window, coarse_grid
from stfgan_xr.region import Region
from stfgan_xr.sensors import FILL, Observation

START = date(2020, 1, 1)


def day(number: int) -> date:
    """The ``number``-th day of the synthetic calendar."""
    return START + timedelta(days=number)


def grid(height: int, width: int) -> GeoBox:
    """A north-up 30 m grid in UTM 50N."""
    return GeoBox((height, width), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")


def corner(box: GeoBox, side: int = 50) -> Region:
    """A triangle with a hole: the upper left of a grid, ``side`` pixels along its short sides."""
    left, top, pixel = box.affine.c, box.affine.f, box.affine.a
    legs, hole = side * pixel, [left + 5 * pixel, top - 8 * pixel, left + 9 * pixel, top - 5 * pixel]
    triangle = Polygon([(left, top), (left + legs, top), (left, top - legs)]).difference(shapely_box(*hole))
    return Region(box, Geometry(triangle, box.crs).to_crs("EPSG:4326"))


def counts(
    values: npt.NDArray[np.floating],
    qa: npt.NDArray[np.integer],
    days: Sequence[date],
    box: GeoBox,
    bands: Sequence[str],
) -> xr.Dataset:
    """A counts Dataset from reflectance ``(time, band, y, x)`` and observation bits ``(time, y, x)``."""
    hole = (qa & int(Observation.FILL)) != 0
    variables = {}
    for number, band in enumerate(bands):
        stored = np.where(hole, FILL, np.rint(values[:, number] * 1e4)).astype("int16")
        variables[band] = (("time", "y", "x"), stored)
    variables["qa"] = (("time", "y", "x"), qa.astype("uint16"))
    return xr.Dataset(variables, {**xr_coords(box), "time": to_datetime64(days)})


class Scene:
    """A change that comes and goes over random texture, seen by both sensors with clouds and gaps."""

    def __init__(
        self,
        height: int = 96,
        width: int = 64,
        ratio: int = 16,
        bands: tuple[str, ...] = ("red", "nir"),
        days: int = 40,
        acquired: Sequence[int] = (3, 11, 12, 19, 27, 35),
        cloud: float = 0.35,
        gap: float = 0.15,
        seed: int = 0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.bands, self.ratio, self.fine = bands, ratio, grid(height, width)
        self.coarse = coarse_grid(self.fine, ratio)
        self.base = self.rng.random((len(bands), height, width)).astype("float32") * 0.4 + 0.05
        self.acquired, self.count, self.cloud, self.gap = acquired, days, cloud, gap
        self.landsat = self._landsat()
        self.modis = self._modis()

    def truth(self, number: int) -> npt.NDArray[np.float32]:
        """Reflectance ``(band, y, x)`` of a day."""
        slope = np.linspace(0.5, 1, self.base.shape[-1], dtype="float32")
        return (self.base + 0.1 * np.sin(number / 6) * slope).astype("float32")

    def _holes(
        self, count: int, shape: tuple[int, int], share: float, size: int, bit: Observation
    ) -> npt.NDArray[np.uint16]:
        small = tuple(-(-side // size) for side in shape)
        mask = self.rng.random((count, *small)) < share
        return (mask.repeat(size, 1).repeat(size, 2)[:, : shape[0], : shape[1]] * int(bit)).astype("uint16")

    def _landsat(self) -> xr.Dataset:
        shape = (int(self.fine.shape[0]), int(self.fine.shape[1]))
        qa = self._holes(len(self.acquired), shape, self.cloud, 12, Observation.CLOUD)
        values = np.array([self.truth(n) for n in self.acquired])
        return counts(values, qa, [day(n) for n in self.acquired], self.fine, self.bands)

    def _modis(self) -> xr.Dataset:
        height, width = (int(side) for side in self.coarse.shape)
        qa = self._holes(self.count, (height, width), self.gap, 1, Observation.FILL)
        shape = (len(self.bands), height, self.ratio, width, self.ratio)
        values = np.array([self.truth(n).reshape(shape).mean((2, 4)) for n in range(self.count)])
        return counts(values, qa, [day(n) for n in range(self.count)], self.coarse, self.bands)


def chunkings(shape: tuple[int, int], days: int, count: int = 10) -> Iterator[tuple[Window, int, int]]:
    """Random windows of one to three steps of 16 pixels in a grid, each with the first and last of some of the days."""
    rng = np.random.default_rng(0)

    def part(side: int) -> tuple[int, int]:
        start = int(rng.integers(0, side // 16 - 1)) * 16
        return start, min(start + int(rng.integers(1, 4)) * 16, side)

    for _ in range(count):
        window, first = Window(*part(shape[0]), *part(shape[1])), int(rng.integers(0, days - 3))
        yield window, first, first + int(rng.integers(1, 4))
