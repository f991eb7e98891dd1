"""Nested grids: a fine grid whose pixels follow the fine source, and coarse cells of whole fine pixels.

A grid is an :class:`odc.geo.geobox.GeoBox`. The fine grid of an area starts on a multiple of ``ratio`` pixels from a
fixed origin of its zone, so two runs over overlapping areas share their pixels and cells, and no step after reading
resamples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj import CRS, Proj
from pyproj.exceptions import CRSError

from stfgan_xr.aoi import middle, parts
from stfgan_xr.errors import InputError

log = logging.getLogger(__name__)

RATIO = 16
RESOLUTION = 30.0
LANDSAT_PHASE = 15.0
LARGEST_SIDE = 200_000
SPHERE = 6371007.181
"""Radius in metres of the sphere that MODIS and VIIRS are projected from."""
SINUSOIDAL = f"+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R={SPHERE} +units=m +no_defs"
"""The projection of MODIS and VIIRS."""
MOST_DISTORTED = 0.04
"""Of the size of a pixel, without a warning; UTM reaches it 12 degrees from the middle of a zone at the equator."""
EQUAL_AREA = "choose an equal-area --crs, EPSG:3035 in Europe, EPSG:5070 in the USA, EPSG:3577 in Australia"
DENSE = 0.01
"""Degrees between the points of an area's edges when it is projected: they are then off by centimetres."""
# Blocks start on multiples of this many fine pixels: whole cells of the progressive schedule's coarsest grid.
NETWORK_STEP = 16


def utm_epsg(longitude: float, latitude: float) -> int:
    """EPSG code of the UTM zone that holds a point (degrees), always of the northern kind.

    Landsat Collection 2 uses northern zones with negative northings south of the equator. The southern ones lie
    10,000 km further north, which is no multiple of 30 m: every scene would be resampled.

    >>> utm_epsg(114.1, 22.6), utm_epsg(113.9, 22.6), utm_epsg(-44.0, -20.1)
    (32650, 32649, 32623)
    """
    zone = min(int((longitude + 180) // 6) + 1, 60)
    if not -90 <= latitude <= 90:
        raise ValueError(f"latitude {latitude} is not on Earth")
    return 32600 + zone


def parse_crs(text: str) -> CRS:
    """A projected CRS in metres from ``EPSG:n`` or WKT; anything else is an :class:`InputError`."""
    try:
        crs = CRS.from_user_input(text)
    except CRSError:
        raise InputError(
            f"--crs {text!r}: not a coordinate reference system; write EPSG:n, for example EPSG:32650"
        ) from None
    if not crs.is_projected or any(axis.unit_name != "metre" for axis in crs.axis_info):
        raise InputError(f"--crs {text!r}: pixels are metres here; choose a projected CRS such as EPSG:32650 (UTM 50N)")
    return crs


def _utm(area: Geometry) -> CRS:
    """The UTM zone of the middle of an area that UTM reaches."""
    bounds = area.boundingbox
    for beyond, limit, polar in ((bounds.top > 84, "84 N", 3413), (bounds.bottom < -80, "80 S", 3031)):
        if beyond:
            raise InputError(f"the area reaches beyond {limit}, where UTM ends; choose --crs EPSG:{polar}")
    return CRS.from_epsg(utm_epsg(*middle(area)))


def _distortion(area: Geometry, crs: CRS) -> float:
    """By what share of its size the ground that a pixel covers is off, at most."""
    worst = 0.0
    for west, south, east, north in (part.bounds for part in parts(area)):
        places = np.meshgrid(np.linspace(west, east, 5), np.linspace(south, north, 5))
        worst = max(worst, float(np.abs(Proj(crs).get_factors(*places).areal_scale - 1).max()))
    return worst


def nested_grid(
    area: Geometry,
    *,
    crs: str | None = None,
    resolution: float = RESOLUTION,
    phase: float = LANDSAT_PHASE,
    ratio: int = RATIO,
) -> GeoBox:
    """The fine grid of an area: north up, whole coarse cells, edges at ``phase`` modulo ``resolution``.

    Parameters
    ----------
    area
        Polygon in EPSG:4326 (:func:`stfgan_xr.aoi.read_aoi`).
    crs
        Projected CRS in metres; by default the UTM zone of the middle of the area's bounds, with a warning if the area
        is too wide for it.
    resolution, phase
        Fine pixel size and the offset of its edges from the CRS origin, both in metres (15 for Landsat Collection 2,
        0 for HLS and Sentinel-2).
    ratio
        Fine pixels along a coarse cell.

    Raises
    ------
    InputError
        If the area cannot be projected or needs more than 200,000 pixels a side, or lies where UTM ends and no CRS is
        given.

    >>> from stfgan_xr.aoi import read_aoi
    >>> grid = nested_grid(read_aoi("114.0,22.5,114.1,22.6"))
    >>> grid.crs.epsg, grid.shape.x % 16, grid.affine.c % 480
    (32650, 0, 15.0)
    """
    target = parse_crs(crs) if crs else _utm(area)
    bounds = area.boundingbox
    box = area.to_crs(target, resolution=max(DENSE, (bounds.right - bounds.left) / 1000)).boundingbox
    if not all(math.isfinite(value) for value in box):
        raise InputError(f"the area cannot be projected to {target.to_string()}; split it, or choose another --crs")
    cell = resolution * ratio
    left, bottom = (math.floor((low - phase) / cell) for low in (box.left, box.bottom))
    right, top = (math.ceil((high - phase) / cell) for high in (box.right, box.top))
    right, top = max(right, left + 1), max(top, bottom + 1)
    height, width = (top - bottom) * ratio, (right - left) * ratio
    if max(height, width) > LARGEST_SIDE:
        raise InputError(
            f"the area needs {width} x {height} pixels of {resolution:g} m, {width * height / 1e9:.1f} billion "
            f"a day; at most {LARGEST_SIDE} a side: split it"
        )
    if crs is None and (off := _distortion(area, target)) > MOST_DISTORTED:
        log.warning(
            "on %s a pixel of this area covers up to %.0f %% more or less ground than it should; %s, or split the area",
            target.to_string(), 100 * off, EQUAL_AREA,
        )  # fmt: skip
    affine = Affine(resolution, 0, left * cell + phase, 0, -resolution, top * cell + phase)
    return GeoBox((height, width), affine, target)


def _scaled(affine: Affine, ratio: int) -> Affine:
    a, b, c, d, e, f = tuple(affine)[:6]
    return Affine(a * ratio, b * ratio, c, d * ratio, e * ratio, f)


def coarse_grid(fine: GeoBox, ratio: int = RATIO) -> GeoBox:
    """The grid of coarse cells nested in a fine grid whose sides are multiples of ``ratio``."""
    height, width = fine.shape
    if height % ratio or width % ratio:
        raise InputError(f"a grid of {width} x {height} pixels does not hold whole cells of {ratio} pixels")
    return GeoBox((height // ratio, width // ratio), _scaled(fine.affine, ratio), fine.crs)


def ratio_of(fine: GeoBox, coarse: GeoBox) -> int:
    """Fine pixels along a coarse cell, if the two grids are nested and cover the same ground.

    Raises
    ------
    InputError
        If the CRS, the covered ground or the ratio does not fit, with both grids named.
    """
    ratio = round(fine.shape.x / coarse.shape.x) if coarse.shape.x else 0
    same_ground = _scaled(fine.affine, ratio).almost_equals(coarse.affine, precision=1e-3 * abs(fine.affine.a))
    if (
        fine.crs != coarse.crs
        or not same_ground
        or (coarse.shape.y * ratio, coarse.shape.x * ratio) != tuple(fine.shape)
    ):
        raise InputError(
            f"the grids are not nested: fine {describe(fine)}, coarse {describe(coarse)}; "
            "the coarse cells must be whole fine pixels over the same ground"
        )
    return ratio


def describe(grid: GeoBox) -> str:
    """A short text of a grid for messages: size, pixel and CRS."""
    height, width = grid.shape
    name = f"EPSG:{grid.crs.epsg}" if grid.crs and grid.crs.epsg else "a CRS without EPSG code"
    return (
        f"{width} x {height} pixels of {abs(grid.affine.a):g} m from ({grid.affine.c:g}, {grid.affine.f:g}) in {name}"
    )


def tile_step(ratio: int) -> int:
    """Fine pixels that block origins are a multiple of: whole coarse cells and whole cells of the network's grids.

    >>> tile_step(16), tile_step(7), tile_step(1)
    (16, 112, 16)
    """
    return math.lcm(NETWORK_STEP, ratio)


@dataclass(frozen=True)
class Halo:
    """What a predictor must see beyond its block.

    Attributes
    ----------
    fine
        Fine pixels on each side.
    coarse
        Coarse cells on each side.
    days
        Coarse days before the first and after the last target day.
    """

    fine: int = 0
    coarse: int = 1
    days: int = 0


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of rows and columns, half open; it may reach beyond its grid."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices, for an array that covers the whole grid."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def pad(self, n: int) -> Window:
        """The window with ``n`` more rows and columns on every side.

        >>> Window(16, 32, 0, 16).pad(4)
        Window(top=12, bottom=36, left=-4, right=20)
        """
        return Window(self.top - n, self.bottom + n, self.left - n, self.right + n)

    def move(self, rows: int, columns: int) -> Window:
        """The window further down and to the right."""
        return Window(self.top + rows, self.bottom + rows, self.left + columns, self.right + columns)

    def cells(self, ratio: int) -> Window:
        """The same ground in coarse cells; the window must hold whole cells."""
        edges = (self.top, self.bottom, self.left, self.right)
        if any(edge % ratio for edge in edges):
            raise ValueError(f"{self} does not hold whole cells of {ratio} pixels")
        return Window(*(edge // ratio for edge in edges))

    def pixels(self, ratio: int) -> Window:
        """The same ground in fine pixels, for a window of coarse cells."""
        return Window(*(edge * ratio for edge in (self.top, self.bottom, self.left, self.right)))

    def clip(self, shape: tuple[int, int]) -> Window:
        """The part inside a grid of ``shape``."""
        return Window(max(self.top, 0), min(self.bottom, shape[0]), max(self.left, 0), min(self.right, shape[1]))


def tiles(shape: tuple[int, int], size: int) -> Iterator[Window]:
    """Square tiles of ``size`` that cover a grid row by row; those at the far edges are cut.

    >>> [tile.shape for tile in tiles((40, 64), 32)]
    [(32, 32), (32, 32), (8, 32), (8, 32)]
    """
    height, width = shape
    for top in range(0, height, size):
        for left in range(0, width, size):
            yield Window(top, min(top + size, height), left, min(left + size, width))


def georeference(grid: GeoBox) -> dict[str, Any]:
    """The ``proj:`` and ``spatial:`` attributes of a cube (STAC projection and GeoZarr conventions)."""
    height, width = grid.shape
    box = grid.boundingbox
    epsg = grid.crs.epsg if grid.crs else None
    code = {"proj:code": f"EPSG:{epsg}"} if epsg else {"proj:wkt2": grid.crs.to_wkt() if grid.crs else None}
    return code | {
        "spatial:transform": [float(value) for value in tuple(grid.affine)[:6]],
        "spatial:dimensions": ["y", "x"],
        "spatial:shape": [int(height), int(width)],
        "spatial:bbox": [float(box.left), float(box.bottom), float(box.right), float(box.top)],
    }
