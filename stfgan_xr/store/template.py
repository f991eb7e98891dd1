"""All of a cube but its blocks: metadata, coordinates and the area, made in memory as the files they will be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr
from odc.geo.xr import xr_coords
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from stfgan_xr.days import to_number
from stfgan_xr.files import to_json
from stfgan_xr.grid import coarse_grid, georeference, tiles
from stfgan_xr.region import Region
from stfgan_xr.store.groups import ROOT
from stfgan_xr.store.layout import COARSE, FINE, Layout, Variable

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

Array = npt.NDArray[Any]
RECORDS = "blocks"  # a Zarr group of its own: other files in a group make zarr warn
FIXED = f"{RECORDS}/fixed.json"
"""Holds the SHA-256 of all files that are written when a cube is created, but for its root."""
AOI = "aoi"
INNER_DAYS = 8
AOI_TILES = 4
"""Tiles along a shard of the area's pixels: few files, and a shard takes megabytes while it is made."""


def _inner(shard: tuple[int, ...]) -> tuple[int, ...]:
    run, *sides = shard
    days = INNER_DAYS if run % INNER_DAYS == 0 else run
    return (days, *(side // 4 if side % 4 == 0 and side >= 256 else side for side in sides))


_COMPRESSORS = [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()]


def _create_variable(group: zarr.Group, name: str, variable: Variable, layout: Layout, coordinates: str) -> None:
    scale = layout.scale(variable)
    shape = (len(layout.days), *(side // scale for side in layout.shape))
    shard = (layout.run, layout.tile // scale, layout.tile // scale)
    group.create_array(
        name,
        shape=shape,
        dtype=variable.dtype,
        shards=shard,
        chunks=_inner(shard),
        fill_value=variable.fill,
        compressors=_COMPRESSORS,
        dimension_names=variable.dims,
        # xarray takes these for coordinates only if a variable names them as such.
        attributes={**variable.attributes, "grid_mapping": "spatial_ref", "coordinates": coordinates},
    )


def _create_aoi(group: zarr.Group, layout: Layout, region: Region) -> None:
    side = layout.tile * AOI_TILES
    array = group.create_array(
        AOI,
        shape=layout.shape,
        dtype="uint8",
        shards=(side, side),
        chunks=_inner((1, layout.tile, layout.tile))[1:],
        fill_value=0,
        compressors=_COMPRESSORS,
        dimension_names=FINE[1:],
        # xarray makes truth values of what has a dtype attribute that says so.
        attributes={
            "long_name": "inside the area of interest", "dtype": "bool", "flag_values": [0, 1],
            "flag_meanings": "outside inside", "grid_mapping": "spatial_ref", "coordinates": "spatial_ref",
        },
    )  # fmt: skip
    for window in tiles(layout.shape, side):
        array.with_config({"write_empty_chunks": True})[window.slices] = region.inside(window).astype("uint8")


def _create_coordinate(group: zarr.Group, name: str, values: Array, dims: Sequence[str], attributes: Any) -> None:
    array = group.create_array(
        name, shape=values.shape, dtype=values.dtype, dimension_names=tuple(dims), attributes=attributes
    )
    array[...] = values


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _create_coordinates(group: zarr.Group, layout: Layout) -> None:
    numbers = np.array([to_number(day) for day in layout.days], np.int64)
    time = {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian", "standard_name": "time"}
    _create_coordinate(group, "time", numbers, ("time",), time)
    for name, coordinate in xr_coords(layout.grid).items():
        attributes = {key: _plain(value) for key, value in coordinate.attrs.items()}
        if "crs" in attributes and layout.grid.crs is not None and layout.grid.crs.epsg is not None:
            # odc-geo gives what the CRS was made from, an EPSG code or the WKT of another cube: the same for both.
            attributes["crs"] = f"EPSG:{layout.grid.crs.epsg}"
        dims = () if coordinate.ndim == 0 else ({"y": "y", "x": "x"}.get(str(coordinate.dims[0]), "?"),)
        _create_coordinate(group, str(name), np.asarray(coordinate.values), dims, attributes)
    if any(variable.dims == COARSE for variable in layout.variables.values()):
        coarse = xr_coords(coarse_grid(layout.grid, layout.ratio))
        for name in ("y", "x"):
            standard = {"standard_name": f"projection_{name}_coordinate", "units": "metre"}
            _create_coordinate(group, f"{name}c", np.asarray(coarse[name].values), (f"{name}c",), standard)


def template(
    layout: Layout, identity: Mapping[str, Any], attributes: Mapping[str, Any], region: Region | None
) -> dict[str, bytes]:
    """The files of a cube without blocks by name, the group's own metadata last."""
    made: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(made))
    for name, variable in layout.variables.items():
        named = "spatial_ref aoi" if region is not None and variable.dims == FINE else "spatial_ref"
        _create_variable(group, name, variable, layout, named)
    _create_coordinates(group, layout)
    if region is not None:
        _create_aoi(group, layout, region)
    shape = {"tile": layout.tile, "run": layout.run, "ratio": layout.ratio, "variables": list(layout.variables)}
    group.create_group(RECORDS)
    group.attrs.put(
        {"Conventions": "CF-1.11", **georeference(layout.grid), **attributes}
        | {"stfgan_xr": {"status": "writing", "layout": shape, "identity": dict(identity)}}
    )
    found = {key: made[key].to_bytes() for key in sorted(made, key=lambda key: key == ROOT)}
    digests = {key: hashlib.sha256(content).hexdigest() for key, content in found.items() if key != ROOT}
    return {FIXED: to_json(digests), **found}
