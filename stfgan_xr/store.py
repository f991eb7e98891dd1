"""Cubes on disk: Zarr groups written block by block, so that a run can stop anywhere and go on.

A cube is created whole from its :class:`Layout` with status ``writing``. A block is one spatial tile over a run of
days: whole shards of every variable, written by one task, then recorded in ``blocks/``. :func:`seal` sets the status to
``complete`` when every block has its record. Readers refuse a cube that is not complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from dask.delayed import Delayed, delayed
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import BloscCodec, Crc32cCodec

from stfgan_xr.days import to_number
from stfgan_xr.errors import IncompleteError, InputError, ResourceError
from stfgan_xr.files import write_json
from stfgan_xr.grid import Window, coarse_grid, georeference, tiles
from stfgan_xr.sensors import FILL, SCALE, Observation, to_reflectance

Array = npt.NDArray[Any]
RECORDS = "blocks"  # a Zarr group of its own: other files in a group make zarr warn
FINE, COARSE = ("time", "y", "x"), ("time", "yc", "xc")
INNER_DAYS = 8
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


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
    """

    grid: GeoBox
    days: tuple[date, ...]
    variables: Mapping[str, Variable]
    tile: int
    run: int
    ratio: int = 1

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


def _inner(shard: tuple[int, ...]) -> tuple[int, ...]:
    run, *sides = shard
    days = INNER_DAYS if run % INNER_DAYS == 0 else run
    return (days, *(side // 4 if side % 4 == 0 and side >= 256 else side for side in sides))


def _create_variable(group: zarr.Group, name: str, variable: Variable, layout: Layout) -> None:
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
        compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=variable.dims,
        # xarray takes spatial_ref for a coordinate only if a variable names it as one.
        attributes={**variable.attributes, "grid_mapping": "spatial_ref", "coordinates": "spatial_ref"},
    )


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
        dims = () if coordinate.ndim == 0 else ({"y": "y", "x": "x"}.get(str(coordinate.dims[0]), "?"),)
        _create_coordinate(group, str(name), np.asarray(coordinate.values), dims, attributes)
    if any(variable.dims == COARSE for variable in layout.variables.values()):
        coarse = xr_coords(coarse_grid(layout.grid, layout.ratio))
        for name in ("y", "x"):
            standard = {"standard_name": f"projection_{name}_coordinate", "units": "metre"}
            _create_coordinate(group, f"{name}c", np.asarray(coarse[name].values), (f"{name}c",), standard)


def _template(path: Path, layout: Layout, identity: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    group = zarr.create_group(path, overwrite=True)
    for name, variable in layout.variables.items():
        _create_variable(group, name, variable, layout)
    _create_coordinates(group, layout)
    shape = {"tile": layout.tile, "run": layout.run, "ratio": layout.ratio, "variables": list(layout.variables)}
    group.attrs.update(
        {"Conventions": "CF-1.11", **georeference(layout.grid), **attributes}
        | {"stfgan_xr": {"status": "writing", "layout": shape, "identity": dict(identity)}}
    )
    group.create_group(RECORDS)


def full_identity(layout: Layout, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same cube: the given parameters, the grid, the days and the layout."""
    grid = georeference(layout.grid)
    return {
        **identity,
        "grid": [grid.get("proj:code") or grid.get("proj:wkt2"), *grid["spatial:transform"], *grid["spatial:shape"]],
        "days": [day.isoformat() for day in layout.days],
        "variables": sorted(layout.variables),
        "tile": layout.tile,
        "run": layout.run,
    }


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    if isinstance(value, list) and len(text) > 60:
        return f"[{json.dumps(value[0])} ... {json.dumps(value[-1])}] ({len(value)})"
    return text if len(text) <= 60 else text[:57] + "..."


def refuse_difference(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` naming what differs between two sets of parameters."""
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    if keys:
        named = "; ".join(f"{key} was {_shorten(stored.get(key))}, now {_shorten(wanted.get(key))}" for key in keys)
        raise InputError(f"{path} was made with other parameters: {named}; choose another --out or add --overwrite")


def prepare(
    path: Path, layout: Layout, identity: Mapping[str, Any], attributes: Mapping[str, Any] | None = None
) -> list[Block]:
    """Create a cube, or go on with the one that is there; the blocks still to be written, in order.

    Parameters
    ----------
    path
        The Zarr group, a local folder.
    layout
        Its grid, days, variables and block shape.
    identity
        Parameters (JSON values) that must be the same for a run to go on.
    attributes
        Further attributes of the group.

    Raises
    ------
    InputError
        If a cube with another identity is there; the difference is named.
    """
    wanted = json.loads(json.dumps(full_identity(layout, identity)))
    if path.exists():
        refuse_difference(path, _state(path)["identity"], wanted)
    else:
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        with translated_disk_errors(path):
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            _template(partial, layout, wanted, attributes or {})
            partial.rename(path)
    done = {record.stem for record in (path / RECORDS).glob("t*.json")}
    return [block for block in layout.blocks() if block.name not in done]


class translated_disk_errors:
    """Turn a full, read-only or limited disk into :class:`~stfgan_xr.errors.ResourceError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise ResourceError(
                f"cannot write {self.path}: {os.strerror(error.errno or 0)}; finished blocks are kept: "
                "make room and run the same command again"
            ) from error
        if isinstance(error, PermissionError):
            raise ResourceError(f"cannot write {self.path}: permission denied; choose another --out") from error


def _open(path: Path) -> zarr.Group:
    if not path.is_dir():
        raise InputError(f"{path}: no such cube")
    try:
        return zarr.open_group(path, mode="r")
    except (zarr.errors.GroupNotFoundError, FileNotFoundError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a Zarr group ({str(error).splitlines()[0]})") from None


def _state(path: Path) -> dict[str, Any]:
    state = _open(path).attrs.get("stfgan_xr")
    if not isinstance(state, dict) or not {"status", "layout", "identity"} <= set(state):
        raise InputError(f"{path}: a Zarr group, but not a cube of stfgan_xr")
    return dict(state)


def _digest(arrays: Mapping[str, Array]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def write_block(path: Path, layout: Layout, block: Block, arrays: Mapping[str, Array], **notes: Any) -> dict[str, Any]:
    """Write one block, whole shards of every variable, then its record.

    Parameters
    ----------
    arrays
        For each variable of the layout the block's values.
    notes
        Further JSON values for the record.

    Returns
    -------
    dict
        The record.
    """
    group = zarr.open_group(path, mode="r+")
    for name, variable in layout.variables.items():
        array, region = group[name], layout.region(variable, block)
        assert isinstance(array, zarr.Array)
        expected = tuple(part.stop - part.start for part in region)
        if arrays[name].shape != expected or arrays[name].dtype != np.dtype(variable.dtype):
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise ValueError(f"{name} of {block.name}: {found}, expected {variable.dtype} {expected}")
        with translated_disk_errors(path):
            array.with_config({"write_empty_chunks": True})[region] = arrays[name]
    record = {"block": block.name, "sha256": _digest(arrays), **notes}
    with translated_disk_errors(path):
        write_json(path / RECORDS / f"{block.name}.json", record)
    return record


def write_tasks(dataset: xr.Dataset, path: Path, layout: Layout, pending: Iterable[Block]) -> Iterator[Delayed]:
    """One task for each pending block of a lazy Dataset of counts: compute and write it, return the record."""
    for block in pending:
        rows, columns = block.window.slices
        part = dataset.isel(time=slice(block.first, block.last), y=rows, x=columns)
        arrays = {name: part[name].data for name in layout.variables}
        yield delayed(write_block, pure=False)(path, layout, block, arrays)


def seal(path: Path) -> dict[str, Any]:
    """Mark a cube complete if all its blocks are recorded; its state, with count and digest of the records.

    Raises
    ------
    IncompleteError
        If blocks are missing.
    """
    group = zarr.open_group(path, mode="r+")
    state = _state(path)
    missing = missing_blocks(path)
    if missing:
        raise IncompleteError(
            f"{path}: {len(missing)} blocks are missing, first {missing[0]}; run the same command again"
        )
    if state["status"] == "complete":
        return state
    records = sorted((path / RECORDS).glob("t*.json"))
    found = hashlib.sha256()
    for record in records:
        found.update(json.loads(record.read_text(encoding="utf-8"))["sha256"].encode())
    state |= {"status": "complete", "blocks": len(records), "sha256": found.hexdigest()}
    with translated_disk_errors(path):
        group.attrs["stfgan_xr"] = state
    return state


def missing_blocks(path: Path) -> list[str]:
    """Names of the blocks of a cube that have no record."""
    state, group = _state(path), _open(path)
    first = group[state["layout"]["variables"][0]]
    assert isinstance(first, zarr.Array)
    days, height, width = first.shape
    run, tile = state["layout"]["run"], state["layout"]["tile"]
    done = {record.stem for record in (path / RECORDS).glob("t*.json")}
    names = (
        Block(window, t, min(t + run, days)).name
        for t in range(0, days, run)
        for window in tiles((height, width), tile)
    )
    return [name for name in names if name not in done]


def is_complete(path: Path) -> bool:
    """Whether a cube is there and complete."""
    return path.is_dir() and _state(path)["status"] == "complete"


def identity_of(path: Path) -> dict[str, Any]:
    """The parameters a cube was made with, and the digest of its blocks (None while it is unfinished)."""
    state = _state(path)
    return {**state["identity"], "sha256": state.get("sha256")}


class _Stored(BackendArray):
    """A stored array, decoded while it is read: counts become float32 reflectance, filled values NaN."""

    def __init__(self, array: zarr.Array[Any], decode: bool) -> None:
        self.array, self.decode = array, decode
        self.shape = array.shape
        self.dtype = np.dtype("float32") if decode else array.dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        values = np.asarray(self.array[key])
        return to_reflectance(values) if self.decode else values


def _dims(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    return getattr(array.metadata, "dimension_names", None) or ()


def _variable(array: zarr.Array[Any], decode: bool) -> xr.Variable:
    dims = _dims(array)
    scaled = decode and "scale_factor" in array.attrs
    dropped = {"coordinates"} | ({"_FillValue", "scale_factor", "add_offset"} if scaled else set())
    attributes = {key: value for key, value in array.attrs.items() if key not in dropped}
    return xr.Variable(dims, indexing.LazilyIndexedArray(_Stored(array, scaled)), attributes)


def _coordinates(group: zarr.Group) -> dict[str, xr.Variable]:
    found = {}
    for name, array in group.arrays():
        if name in ("y", "x", "yc", "xc", "spatial_ref"):
            found[name] = xr.Variable(_dims(array), np.asarray(array[...]), dict(array.attrs))
    days = np.asarray(group["time"][...]).astype("datetime64[D]").astype("datetime64[ns]")  # type: ignore[index]
    return found | {"time": xr.Variable(("time",), days, {"standard_name": "time"})}


def _open_dataset(path: Path, decode: bool, allow_incomplete: bool) -> xr.Dataset:
    state = _state(path)
    if state["status"] != "complete" and not allow_incomplete:
        missing = missing_blocks(path)
        raise IncompleteError(
            f"{path} is unfinished: {len(missing)} blocks are missing"
            + (f", first {missing[0]}" if missing else "")
            + "; run the same command again to finish it, or pass allow_incomplete=True"
        )
    group = _open(path)
    names = state["layout"]["variables"]
    variables = {name: _variable(group[name], decode) for name in names}  # type: ignore[arg-type]
    return xr.Dataset(variables, _coordinates(group), dict(group.attrs))


def open_cube(path: str | Path, *, allow_incomplete: bool = False) -> xr.Dataset:
    """A cube as float32 reflectance with NaN, read lazily: an index such as ``.isel(time=3)`` reads only that.

    Parameters
    ----------
    path
        ``landsat.zarr``, ``modis.zarr`` or ``fused.zarr`` of a run folder.
    allow_incomplete
        Open a cube whose blocks are not all written; missing ones are NaN.

    Returns
    -------
    xarray.Dataset
        Bands ``(time, y, x)``, ``qa`` and further variables; use ``.chunk()`` for dask arrays.

    Raises
    ------
    InputError
        If there is no cube at ``path``.
    IncompleteError
        If it is unfinished; the message counts the missing blocks.
    """
    return _open_dataset(Path(path), True, allow_incomplete)


def open_counts(path: str | Path, *, allow_incomplete: bool = False) -> xr.Dataset:
    """A cube as it is stored: int16 counts, without decoding."""
    return _open_dataset(Path(path), False, allow_incomplete)


def _slabs(array: zarr.Array[Any]) -> Iterator[Any]:
    if array.ndim == 0:
        yield ...
        return
    step = array.chunks[0]
    for start in range(0, array.shape[0], step):
        yield slice(start, start + step)


def content_digest(path: str | Path) -> str:
    """sha256 over all decoded arrays and coordinates; it does not depend on chunks or compression."""
    group, found = _open(Path(path)), hashlib.sha256()
    for name, array in sorted(group.arrays()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        for part in _slabs(array):
            found.update(np.ascontiguousarray(array[part]).tobytes())
    return found.hexdigest()


def dataset_layout(dataset: xr.Dataset, grid: GeoBox, bands: Sequence[str], *, tile: int, run: int) -> Layout:
    """The layout of a cube of observations for a Dataset of counts."""
    days = tuple(np.asarray(dataset["time"].values).astype("datetime64[D]").tolist())
    return Layout(grid, days, observation_variables(bands), tile, run)
