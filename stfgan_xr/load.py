"""Scenes to a lazy Dataset of counts on one grid: read, mosaicked by day, decoded. The one file that uses stackstac."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import groupby
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import stackstac
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from stfgan_xr.catalog import Scene, Side
from stfgan_xr.days import to_datetime64
from stfgan_xr.errors import InputError
from stfgan_xr.rasters import READERS, Resampling
from stfgan_xr.sensors import FILL, SENSORS, Observation, Sensor, decode

RESAMPLING = {"fine": Resampling.cubic, "coarse": Resampling.bilinear}
"""Where a source does not lie on the grid already; quality layers always take the nearest."""


def _shim(scene: Scene, roles: Sequence[str], grid: GeoBox) -> dict[str, Any]:
    """What stackstac must see of a scene: an item that covers the grid, so that only our reader decides what is where.

    stackstac does not understand ``proj:code``, fails on ``proj:epsg: null``, makes NaT of a null ``datetime`` and
    reprojects footprints itself.
    """
    box = grid.boundingbox
    properties = {"datetime": f"{scene.day}T00:00:00Z", "proj:epsg": grid.crs.epsg if grid.crs else None}
    hrefs = dict(scene.assets)
    return {
        "type": "Feature",
        "id": scene.id,
        "bbox": [-180, -90, 180, 90],
        "properties": properties | {"proj:bbox": [box.left, box.bottom, box.right, box.top]},
        "assets": {role: {"href": hrefs[role]} for role in roles},
    }


def _stack(
    scenes: Sequence[Scene], roles: Sequence[str], grid: GeoBox, tile: int, resampling: Resampling, fill: int, dtype: str, reader: Any
) -> da.Array:
    """Raw values ``(scene, role, y, x)``, one chunk a tile."""
    box = grid.boundingbox
    stacked = stackstac.stack(
        [_shim(scene, roles, grid) for scene in scenes],
        assets=list(roles),
        epsg=grid.crs.epsg if grid.crs else None,
        resolution=abs(grid.affine.a),
        bounds=(box.left, box.bottom, box.right, box.top),
        snap_bounds=False,
        rescale=False,
        dtype=np.dtype(dtype),
        fill_value=np.dtype(dtype).type(fill),
        resampling=resampling,
        reader=reader,
        chunksize=(-1, -1, tile, tile),
        xy_coords=False,
        properties=False,
        band_coords=False,
        sortby_date=False,
    )
    values: da.Array = stacked.data
    return values


def _first_valid(counts: npt.NDArray[np.int16], qa: npt.NDArray[np.uint16]) -> npt.NDArray[np.int16]:
    """Of the scenes of a day the first that is not fill, pixel by pixel: bands and quality from the same scene."""
    chosen = np.argmax((qa & np.uint16(Observation.FILL)) == 0, axis=0)
    both = np.concatenate([counts, qa[:, None].view(np.int16)], axis=1)
    return np.asarray(np.take_along_axis(both, chosen[None, None], axis=0)[0])


def _mosaic(raw: npt.NDArray[Any], quality: npt.NDArray[Any], sensor: Sensor, bands: tuple[str, ...]) -> npt.NDArray[np.int16]:
    """Counts and observation bits ``(band + 1, y, x)`` of one day from raw ``(scene, role, y, x)``."""
    decoded = [decode(values, words, sensor, bands) for values, words in zip(raw, quality, strict=True)]
    return _first_valid(np.stack([counts for counts, _ in decoded]), np.stack([qa for _, qa in decoded]))


def _day(scenes: Sequence[Scene], side: Side, grid: GeoBox, bands: tuple[str, ...], tile: int) -> da.Array:
    """One day ``(band + 1, y, x)``; scenes of several sensors are mosaicked sensor by sensor, in their order."""
    parts = []
    for name, group in groupby(sorted(scenes, key=lambda s: s.sensor), key=lambda s: s.sensor):
        sensor, members = SENSORS[name], list(group)
        reader = READERS[side.signer]
        raw = _stack(members, bands, grid, tile, RESAMPLING[sensor.kind], sensor.fill, sensor.dtype, reader)
        roles = sensor.quality_roles(bands)
        quality = _stack(
            members, roles, grid, tile, Resampling.nearest, sensor.quality_fill, sensor.quality_dtype, reader
        )
        chunks = ((len(bands) + 1,), *raw.chunks[2:])
        parts.append(
            da.map_blocks(_mosaic, raw, quality, sensor, bands, dtype=np.int16, chunks=chunks, drop_axis=0, meta=np.empty((0, 0, 0), np.int16))
        )
    merged: da.Array = parts[0] if len(parts) == 1 else da.map_blocks(_merge, *parts, dtype=np.int16)
    return merged


def _merge(*parts: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    stacked = np.stack(parts)
    return _first_valid(stacked[:, :-1], stacked[:, -1].view(np.uint16))


def _nothing(count: int, shape: tuple[int, int], tile: int) -> da.Array:
    def empty(block_info: Any = None) -> npt.NDArray[np.int16]:
        found = np.full(block_info[None]["chunk-shape"], FILL, np.int16)
        found[-1] = np.int16(Observation.FILL)
        return found

    chunks = da.core.normalize_chunks((count, tile, tile), (count, *shape), dtype=np.int16)
    nothing: da.Array = da.map_blocks(empty, chunks=chunks, dtype=np.int16, meta=np.empty((0, 0, 0), np.int16))
    return nothing


def load(
    scenes: Sequence[Scene],
    grid: GeoBox,
    *,
    side: Side,
    bands: Sequence[str],
    days: Sequence[date] | None = None,
    tile: int = 1024,
) -> xr.Dataset:
    """Scenes as a lazy Dataset of counts: nothing is read until it is computed.

    Parameters
    ----------
    scenes
        From :func:`stfgan_xr.catalog.search`.
    grid
        Fine or coarse grid; its CRS must have an EPSG code.
    side
        The side of the catalog they were found in: how hrefs are signed.
    bands
        Names of the bands.
    days
        Days of the result; those without a scene are fill. By default the days of the scenes.
    tile
        Pixels along a chunk.

    Returns
    -------
    xarray.Dataset
        int16 counts ``(time, y, x)`` of each band and ``qa`` uint16 (:class:`stfgan_xr.sensors.Observation`); chunks
        ``(1, tile, tile)``.

    Raises
    ------
    InputError
        If the grid's CRS has no EPSG code.
    SourceError
        When computed: if an asset cannot be read. A failure never becomes a pixel.
    """
    if grid.crs is None or grid.crs.epsg is None:
        raise InputError("the grid's CRS has no EPSG code, which reading needs; choose --crs EPSG:n")
    names = tuple(bands)
    by_day = {day: list(group) for day, group in groupby(sorted(scenes, key=lambda s: s.day), key=lambda s: s.day)}
    wanted = sorted(by_day) if days is None else list(days)
    shape = (int(grid.shape[0]), int(grid.shape[1]))
    nothing = _nothing(len(names) + 1, shape, tile)
    images = da.stack([_day(by_day[d], side, grid, names, tile) if d in by_day else nothing for d in wanted])
    variables: dict[str, Any] = {b: (("time", "y", "x"), images[:, number]) for number, b in enumerate(names)}
    variables["qa"] = (("time", "y", "x"), images[:, -1].map_blocks(_as_words, dtype=np.uint16))
    return xr.Dataset(variables, {**xr_coords(grid), "time": to_datetime64(wanted)})


def _as_words(values: npt.NDArray[np.int16]) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(values).view(np.uint16)
