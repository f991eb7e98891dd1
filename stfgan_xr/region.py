"""An area on a grid: which pixels lie inside it, window by window, the same however the grid is cut into windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from stfgan_xr.aoi import joined, valid
from stfgan_xr.grid import DENSE, Window, tiles

Bool = npt.NDArray[np.bool_]
BOX, STRIDE = 32, 1024
"""Pixels along a part that is decided at once unless the edge of the area crosses it; pixels along what is held."""


@dataclass(frozen=True)
class Region:
    """An area on a grid. A pixel is inside if its centre is; of an area too narrow for any, all pixels it touches.

    Attributes
    ----------
    grid
        The fine grid.
    area
        The polygons, in EPSG:4326 (:func:`stfgan_xr.aoi.read_aoi`).
    ratio
        Pixels along a cell. A cell is inside if one of its pixels is.

    >>> from stfgan_xr.aoi import read_aoi
    >>> from stfgan_xr.grid import nested_grid
    >>> area = read_aoi("114.0,22.5,114.01,22.51")
    >>> grid = nested_grid(area)
    >>> inside = Region(grid, area).inside(Window(0, 48, 0, 64))
    >>> inside.shape, int(inside.sum())
    ((48, 64), 1265)
    """

    grid: GeoBox
    area: Geometry
    ratio: int = 1

    @cached_property
    def digest(self) -> str:
        """sha256 of the area as it was given."""
        return hashlib.sha256(shapely.to_wkb(self.area.geom, byte_order=1)).hexdigest()

    @cached_property
    def _polygon(self) -> Any:
        assert self.grid.crs is not None
        polygon = valid(joined(self.area).to_crs(self.grid.crs, resolution=DENSE)).geom
        shapely.prepare(polygon)
        return polygon

    @cached_property
    def _rule(self) -> Any:
        height, width = self.grid.shape
        wide = any(self._decide(window, _centres).any() for window in tiles((height, width), STRIDE))
        return _centres if wide else _touched

    def inside(self, window: Window) -> Bool:
        """Whether each pixel (or cell) of a window is inside."""
        found, ratio = np.zeros(window.shape, np.bool_), self.ratio
        for part in tiles(window.shape, max(STRIDE // ratio, 1)):
            pixels = self._decide(part.move(window.top, window.left).pixels(ratio), self._rule)
            height, width = part.shape
            found[part.slices] = pixels.reshape(height, ratio, width, ratio).any(axis=(1, 3))
        return found

    def _decide(self, window: Window, decide: Any) -> Bool:
        found = np.zeros(window.shape, np.bool_)
        y, x = self._edges(window)
        if not self._polygon.intersects(shapely.box(x[0], y[-1], x[-1], y[0])):
            return found
        rows, columns = (np.append(np.arange(0, side, BOX), side) for side in window.shape)
        top, left = y[rows], x[columns]
        boxes = shapely.box(left[None, :-1], top[1:, None], left[None, 1:], top[:-1, None])
        whole = shapely.contains_properly(self._polygon, boxes)
        for row, column in np.argwhere(shapely.intersects(self._polygon, boxes)):
            part = (slice(rows[row], rows[row + 1]), slice(columns[column], columns[column + 1]))
            y_edges, x_edges = (edges[at.start : at.stop + 1] for edges, at in zip((y, x), part, strict=True))
            found[part] = True if whole[row, column] else decide(self._polygon, y_edges, x_edges)
        return found

    def _edges(self, window: Window) -> tuple[Any, Any]:
        """Of the pixels of a window along y and x, from the grid's own origin: the same whatever the window."""
        affine = self.grid.affine
        return (
            affine.f + affine.e * np.arange(window.top, window.bottom + 1),
            affine.c + affine.a * np.arange(window.left, window.right + 1),
        )


def _centres(polygon: Any, y: Any, x: Any) -> Any:
    # Halves of whole multiples of 30 m are exact.
    return shapely.contains_xy(polygon, ((x[:-1] + x[1:]) / 2)[None, :], ((y[:-1] + y[1:]) / 2)[:, None])


def _touched(polygon: Any, y: Any, x: Any) -> Any:
    return shapely.intersects(polygon, shapely.box(x[None, :-1], y[1:, None], x[None, 1:], y[:-1, None]))
