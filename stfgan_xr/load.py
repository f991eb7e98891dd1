"""Scenes to a lazy Dataset of counts on one grid: read, mosaicked by day, decoded. The one file that uses stackstac."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from itertools import groupby
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import stackstac
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from stfgan_xr.days import to_datetime64
from stfgan_xr.errors import InputError, SourceError
from stfgan_xr.harmonise import Linear, adjust, bandpass
from stfgan_xr.rasters import READERS, AssetReader, Resampling, TilesReader, are_there, same_crs, whole_shift
from stfgan_xr.remote import Login
from stfgan_xr.scenes import TOKENS, Scene, Side, check_href, is_allowed, is_hdf5
from stfgan_xr.sensors import FILL, SENSORS, Observation, Sensor, decode, field_of

RESAMPLING = {"fine": Resampling.cubic, "coarse": Resampling.bilinear}
"""Where a source does not lie on the grid already; quality layers always take the nearest."""
MUCH_FINER = 0.75
"""Sources with pixels smaller than this part of the grid's are averaged over them."""
FOOTPRINT_MARGIN = 10
"""Pixels added around a scene before deciding that a tile does not touch it: its curved edges are cut straight."""

Counts = npt.NDArray[np.int16]
Bounds = tuple[float, float, float, float]


def _whole(grid: GeoBox) -> Bounds:
    box = grid.boundingbox
    return box.left, box.bottom, box.right, box.top


def _is_utm(scene: Scene) -> bool:
    return scene.crs.startswith(("EPSG:326", "EPSG:327"))


def footprint(scene: Scene, grid: GeoBox) -> Bounds | None:
    """Left, bottom, right and top of a scene within a grid, in the grid's CRS; None if it lies outside.

    Only of scenes on UTM grids: sinusoidal tiles reach beyond the edge of the Earth, where bounds mean nothing.
    """
    if scene.shape is None or scene.transform is None or not _is_utm(scene):
        return _whole(grid)
    source = GeoBox(scene.shape, Affine(*scene.transform), scene.crs)
    step = max(scene.shape) * abs(source.affine.a) / 16
    box = source.extent.to_crs(f"EPSG:{_epsg(grid)}", resolution=step).boundingbox
    margin = FOOTPRINT_MARGIN * max(abs(source.affine.a), abs(grid.affine.a))
    left, bottom, right, top = _whole(grid)
    west, east = max(box.left - margin, left), min(box.right + margin, right)
    south, north = max(box.bottom - margin, bottom), min(box.top + margin, top)
    return (west, south, east, north) if west < east and south < north else None


def _images(scenes: Sequence[Scene], footprints: Sequence[Bounds]) -> list[tuple[list[Scene], Bounds]]:
    """Scenes that are one image, and its footprint: MODIS tiles of one satellite together, any other scene alone."""
    images: dict[str, tuple[list[Scene], Bounds]] = {}
    for scene, footprint in zip(scenes, footprints, strict=True):
        tiled = SENSORS[scene.sensor].kind == "coarse" and not _is_utm(scene)
        images.setdefault(f"tiles of {scene.platform}" if tiled else scene.id, ([], footprint))[0].append(scene)
    return list(images.values())


def _shim(scenes: Sequence[Scene], roles: Sequence[str], grid: GeoBox, footprint: Bounds) -> dict[str, Any]:
    """What stackstac must see of an image, in the grid's own CRS, so that only our reader decides what is where.

    stackstac does not understand ``proj:code``, fails on ``proj:epsg: null``, and makes NaT of a null ``datetime``.
    """
    properties = {"datetime": f"{scenes[0].day}T00:00:00Z", "proj:epsg": _epsg(grid), "proj:bbox": footprint}
    assets = {role: {"href": "\n".join(_address(scene, role) for scene in scenes)} for role in roles}
    return {"type": "Feature", "id": scenes[0].id, "properties": properties, "assets": assets}


def _address(scene: Scene, role: str) -> str:
    """Where the reader finds a band: a file, or a field of one."""
    href, field = scene.href(role), field_of(SENSORS[scene.sensor], role)
    return f"{href}#{field}" if field and is_hdf5(href) else href


def reader_of(side: Side) -> Callable[..., AssetReader]:
    """What reads the images of a side: signed, logged in for, and led by redirects as its catalog says."""
    login = Login(side.login_host, side.login, side.token, TOKENS.get(side.token, ""))
    return partial(READERS[side.signer], allowed=partial(is_allowed, hosts=side.hosts), login=login)


def _resampling(sensor: Sensor, grid: GeoBox) -> Resampling:
    much_finer = sensor.resolution < MUCH_FINER * abs(float(grid.affine.a))
    return Resampling.average if much_finer else RESAMPLING[sensor.kind]


def _is_interpolated(scene: Scene, grid: GeoBox) -> bool:
    """Whether a fine scene states another lattice than the grid's, so that it is interpolated."""
    sensor = SENSORS[scene.sensor]
    if sensor.kind != "fine" or scene.transform is None or _resampling(sensor, grid) == Resampling.average:
        return False
    return not same_crs(scene.crs, _epsg(grid)) or whole_shift(Affine(*scene.transform), grid.affine) is None


def _epsg(grid: GeoBox) -> int:
    """The code of a grid's CRS.

    Raises
    ------
    InputError
        If it has none: stackstac takes nothing else.
    """
    if grid.crs is None or grid.crs.epsg is None:
        raise InputError("the grid's CRS has no EPSG code, which reading needs; choose --crs EPSG:n")
    return int(grid.crs.epsg)


def _stack(items: Sequence[dict[str, Any]], grid: GeoBox, tile: int, **options: Any) -> da.Array:
    """Raw values ``(scene, role, y, x)``, one chunk a tile."""
    stacked = stackstac.stack(
        items,
        assets=list(items[0]["assets"]),
        epsg=_epsg(grid),
        resolution=abs(float(grid.affine.a)),
        bounds=_whole(grid),
        snap_bounds=False,
        rescale=False,
        chunksize=(-1, -1, tile, tile),
        xy_coords=False,
        properties=False,
        band_coords=False,
        sortby_date=False,
        **options,
    )
    values: da.Array = stacked.data
    return values


def _first_valid(counts: npt.NDArray[np.int16], qa: npt.NDArray[np.uint16]) -> Counts:
    """Of the scenes of a day the first that is not fill, pixel by pixel: bands and quality from the same scene.

    ``(scene, band, y, x)`` and ``(scene, y, x)`` become ``(band + 1, y, x)``, the quality last.
    """
    chosen = np.argmax((qa & np.uint16(Observation.FILL)) == 0, axis=0)
    both = np.concatenate([counts, qa[:, None].view(np.int16)], axis=1)
    found: Counts = np.take_along_axis(both, chosen[None, None], axis=0)[0]
    return found


def _mosaic(
    raw: npt.NDArray[Any],
    quality: npt.NDArray[Any],
    sensor: Sensor,
    bands: tuple[str, ...],
    interpolated: Sequence[bool],
) -> Counts:
    """Counts and observation bits ``(band + 1, y, x)`` of one day from raw ``(scene, role, y, x)``."""
    decoded = [decode(values, words, sensor, bands) for values, words in zip(raw, quality, strict=True)]
    marks = [np.uint16(Observation.RESAMPLED if moved else 0) for moved in interpolated]
    words = [np.where(qa & Observation.FILL, qa, qa | mark) for (_, qa), mark in zip(decoded, marks, strict=True)]
    return _first_valid(np.stack([counts for counts, _ in decoded]), np.stack(words).astype(np.uint16))


def _merge(*parts: Counts) -> Counts:
    """Mosaics of one day by several sensors as one."""
    stacked = np.stack(parts)
    return _first_valid(stacked[:, :-1], np.ascontiguousarray(stacked[:, -1]).view(np.uint16))


def _sensor_day(
    scenes: Sequence[Scene], footprints: Sequence[Bounds], side: Side, grid: GeoBox, bands: tuple[str, ...], tile: int
) -> da.Array:
    """One day of one sensor ``(band + 1, y, x)``."""
    sensor = SENSORS[scenes[0].sensor]
    images = _images(scenes, footprints)
    single = reader_of(side)
    reader = partial(TilesReader, part=single) if any(len(tiles) > 1 for tiles, _ in images) else single

    def stack(
        roles: Sequence[str], dtype: str, fill: int, resampling: Resampling, coding: tuple[float, float] | None = None
    ) -> da.Array:
        items = [_shim(tiles, roles, grid, footprint) for tiles, footprint in images]
        kind, opener = np.dtype(dtype), partial(reader, coding=coding)
        options = {"dtype": kind, "fill_value": kind.type(fill), "resampling": resampling, "reader": opener}
        return _stack(items, grid, tile, **options)

    raw = stack(bands, sensor.dtype, sensor.fill, _resampling(sensor, grid), (sensor.scale, sensor.offset))
    roles = sensor.quality_roles(bands)
    quality = stack(roles, sensor.quality_dtype, sensor.quality_fill, Resampling.nearest)
    meta = np.empty((0, 0, 0), np.int16)
    chunks = ((len(bands) + 1,), *raw.chunks[2:])
    interpolated = [_is_interpolated(tiles[0], grid) for tiles, _ in images]
    found: da.Array = da.map_blocks(
        _mosaic, raw, quality, sensor, bands, interpolated, chunks=chunks, drop_axis=0, meta=meta
    )
    return found


def _to_oli(values: Counts, linears: Sequence[Linear]) -> Counts:
    """Bands of ``(band + 1, y, x)`` adjusted; the quality stays."""
    bands = [adjust(band, linear) for band, linear in zip(values, linears, strict=False)]
    return np.stack([*bands, values[-1]])


def _day(
    scenes: Sequence[Scene], side: Side, grid: GeoBox, bands: tuple[str, ...], tile: int, to_oli: bool
) -> da.Array:
    """One day ``(band + 1, y, x)``; scenes of several platforms are mosaicked platform by platform."""
    touching = [(scene, found) for scene in scenes if (found := footprint(scene, grid)) is not None]
    parts = []
    for (sensor, platform), group in groupby(touching, key=lambda pair: (pair[0].sensor, pair[0].platform)):
        members, footprints = zip(*group, strict=True)
        part = _sensor_day(members, footprints, side, grid, bands, tile)
        if to_oli and (published := bandpass(sensor, platform)):
            linears = [published[1][band] for band in bands]
            part = da.map_blocks(_to_oli, part, linears, dtype=np.int16)
        parts.append(part)
    if not parts:
        return _nothing(len(bands) + 1, (int(grid.shape[0]), int(grid.shape[1])), tile)
    merged: da.Array = parts[0] if len(parts) == 1 else da.map_blocks(_merge, *parts, dtype=np.int16)
    return merged


def _nothing(count: int, shape: tuple[int, int], tile: int) -> da.Array:
    def empty(block_info: Any = None) -> Counts:
        found = np.full(block_info[None]["chunk-shape"], FILL, np.int16)
        found[-1] = np.int16(Observation.FILL)
        return found

    chunks = da.core.normalize_chunks((count, tile, tile), (count, *shape), dtype=np.int16)
    found: da.Array = da.map_blocks(empty, chunks=chunks, dtype=np.int16, meta=np.empty((0, 0, 0), np.int16))
    return found


def _as_words(values: Counts) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(values).view(np.uint16)


def _by_day(scenes: Sequence[Scene], side: Side, bands: tuple[str, ...]) -> dict[date, list[Scene]]:
    """Scenes of each day in the order they are mosaicked in, which is not that of the argument."""
    for scene in scenes:
        for role in (*bands, *SENSORS[scene.sensor].quality_roles(bands)):
            try:
                check_href(scene.href(role), side, scene.id)
            except KeyError:
                raise SourceError(
                    f"item {scene.id} was found without {role}; search for the bands to be read"
                ) from None
    ordered = sorted(scenes, key=lambda s: (s.day, s.sensor, s.moment, s.id))
    return {day: list(group) for day, group in groupby(ordered, key=lambda s: s.day)}


def missing_assets(scenes: Sequence[Scene], side: Side, bands: Sequence[str]) -> list[tuple[str, str]]:
    """Id and role of the assets of some scenes that are not where their catalog says; each address is looked at once.

    Parameters
    ----------
    scenes, side
        From :func:`stfgan_xr.catalog.search`, and where they were found.
    bands
        Names of the bands that are to be read.

    Raises
    ------
    SourceError
        If an address is not one its catalog may lead to, or does not say whether something is there.
    """
    _by_day(scenes, side, tuple(bands))
    pairs = [(scene, role) for scene in scenes for role in (*bands, *SENSORS[scene.sensor].quality_roles(bands))]
    found = are_there([scene.href(role) for scene, role in pairs], reader_of(side))
    return [(scene.id, role) for (scene, role), there in zip(pairs, found, strict=True) if not there]


def load(
    scenes: Sequence[Scene],
    grid: GeoBox,
    *,
    side: Side,
    bands: Sequence[str],
    days: Sequence[date] | None = None,
    tile: int = 1024,
    to_oli: bool = False,
) -> xr.Dataset:
    """Scenes as a lazy Dataset of counts: nothing is read until it is computed.

    Scenes of a day are mosaicked: each pixel comes from the first scene that has all bands there. A scene on the
    grid's own lattice is not resampled; others are cubic (Landsat) or bilinear (MODIS), or averaged where their pixels
    are much smaller (Sentinel-2, MOD09Q1); quality is the nearest. MODIS tiles are joined before that. Fine scenes that
    state another lattice are marked as ``RESAMPLED``.

    Parameters
    ----------
    scenes
        From :func:`stfgan_xr.catalog.search`.
    grid
        Fine or coarse grid; its CRS must have an EPSG code.
    side
        The side of the catalog they were found in: how hrefs are signed, and where they may lead.
    bands
        Names of the bands.
    days
        Days of the result; those without a scene are fill. By default the days of the scenes.
    tile
        Pixels along a chunk.
    to_oli
        Bring the bands of other sensors to those of OLI, by :data:`stfgan_xr.harmonise.BANDPASS`.

    Returns
    -------
    xarray.Dataset
        int16 counts ``(time, y, x)`` of each band (reflectance x 10000, fill -32768) and ``qa`` uint16
        (:class:`stfgan_xr.sensors.Observation`); chunks ``(1, tile, tile)``.

    Raises
    ------
    InputError
        If the grid's CRS has no EPSG code, or there is no day at all.
    SourceError
        If a scene's address is not one its catalog may lead to; when computed, if an asset cannot be read. A failure
        never becomes a pixel.
    """
    _epsg(grid)
    names = tuple(bands)
    by_day = _by_day(scenes, side, names)
    wanted = sorted(by_day) if days is None else list(days)
    if not wanted or not names:
        raise InputError("nothing to load: no scenes and no days, or no bands")
    nothing = _nothing(len(names) + 1, (int(grid.shape[0]), int(grid.shape[1])), tile)
    images = da.stack([_day(by_day[d], side, grid, names, tile, to_oli) if d in by_day else nothing for d in wanted])
    variables: dict[str, Any] = {b: (("time", "y", "x"), images[:, number]) for number, b in enumerate(names)}
    variables["qa"] = (("time", "y", "x"), images[:, -1].map_blocks(_as_words, dtype=np.uint16))
    return xr.Dataset(variables, {**xr_coords(grid), "time": to_datetime64(wanted)})
