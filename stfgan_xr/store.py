"""Cubes on a disk or in an object store: Zarr groups written block by block, so that a run can stop anywhere.

A cube is created whole from its :class:`Layout` with status ``writing``. A block is one spatial tile over a run of
days: whole shards of every variable, written by one task, then recorded in ``blocks/``. :func:`seal` sets the status to
``complete`` when every block has its record. Readers refuse a cube that is not complete, and a complete one without one
of its shards.

Nothing can be renamed in an object store: there a cube has the status ``creating`` until all of it is there, and again
while it is deleted. For everybody that is no cube, and the next run clears it away.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from dask.delayed import Delayed, delayed
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from stfgan_xr.days import to_number
from stfgan_xr.errors import IncompleteError, InputError
from stfgan_xr.files import Folder, LocalFolder, ObjectFolder, as_folder
from stfgan_xr.grid import Window, coarse_grid, georeference, tiles
from stfgan_xr.region import Region
from stfgan_xr.sensors import FILL, SCALE, Observation, to_reflectance

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

Array = npt.NDArray[Any]
Decode = Callable[[Any], Array]
Where = str | Path | Folder
"""A cube's name: a local folder, or ``s3://bucket/prefix``."""
ROOT = "zarr.json"
RECORDS = "blocks"  # a Zarr group of its own: other files in a group make zarr warn
CREATING = "creating"
AOI = "aoi"
FINE, COARSE = ("time", "y", "x"), ("time", "yc", "xc")
INNER_DAYS = 8
AOI_TILES = 4
"""Tiles along a shard of the area's pixels: few files, and a shard takes megabytes while it is made."""


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
        dims = () if coordinate.ndim == 0 else ({"y": "y", "x": "x"}.get(str(coordinate.dims[0]), "?"),)
        _create_coordinate(group, str(name), np.asarray(coordinate.values), dims, attributes)
    if any(variable.dims == COARSE for variable in layout.variables.values()):
        coarse = xr_coords(coarse_grid(layout.grid, layout.ratio))
        for name in ("y", "x"):
            standard = {"standard_name": f"projection_{name}_coordinate", "units": "metre"}
            _create_coordinate(group, f"{name}c", np.asarray(coarse[name].values), (f"{name}c",), standard)


class _Objects(ObjectStore[Any]):
    """The objects of a folder as Zarr sees them; it travels to workers as the folder, and is opened there."""

    def __init__(self, folder: ObjectFolder, *, read_only: bool = False) -> None:
        super().__init__(folder.store, read_only=read_only)
        self.folder = folder

    def with_read_only(self, read_only: bool = False) -> _Objects:
        return _Objects(self.folder, read_only=read_only)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # Not every store knows conditional requests; some ignore them and overwrite.
        if not await self.exists(key):
            await self.set(key, value)

    def __reduce__(self) -> Any:
        return _opened, (self.folder, self.read_only)


class _Complete(WrapperStore[Store]):
    """The store of a complete cube, where every shard is: zarr reads fill where one is not, here that is an error."""

    def __init__(self, store: Store, folder: Folder) -> None:
        super().__init__(store)
        self.folder = folder

    def _with_store(self, store: Store) -> _Complete:
        return _Complete(store, self.folder)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await self._store.get(key, prototype, byte_range)
        if "/c/" in key and not found:
            raise IncompleteError(f"{self.folder} is damaged: {key} is gone; make the run again with --overwrite")
        return found


def _opened(folder: Folder, read_only: bool) -> Store:
    if isinstance(folder, ObjectFolder):
        return _Objects(folder, read_only=read_only)
    assert isinstance(folder, LocalFolder)
    return LocalStore(folder.path, read_only=read_only)


def _template(
    folder: Folder, layout: Layout, identity: Mapping[str, Any], attributes: Mapping[str, Any], region: Region | None
) -> None:
    group = zarr.create_group(_opened(folder, False), attributes={"stfgan_xr": {"status": CREATING}})
    for name, variable in layout.variables.items():
        named = "spatial_ref aoi" if region is not None and variable.dims == FINE else "spatial_ref"
        _create_variable(group, name, variable, layout, named)
    _create_coordinates(group, layout)
    if region is not None:
        _create_aoi(group, layout, region)
    shape = {"tile": layout.tile, "run": layout.run, "ratio": layout.ratio, "variables": list(layout.variables)}
    group.create_group(RECORDS)
    # Last: from here on it is a cube.
    group.attrs.put(
        {"Conventions": "CF-1.11", **georeference(layout.grid), **attributes}
        | {"stfgan_xr": {"status": "writing", "layout": shape, "identity": dict(identity)}}
    )


def full_identity(layout: Layout, identity: Mapping[str, Any], region: Region | None = None) -> dict[str, Any]:
    """What makes two runs the same cube: the given parameters, the grid, the area, the days and the layout."""
    grid = georeference(layout.grid)
    return {
        **identity,
        "grid": [grid.get("proj:code") or grid.get("proj:wkt2"), *grid["spatial:transform"], *grid["spatial:shape"]],
        **({} if region is None else {"area": region.digest}),
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


def refuse_difference(path: Where, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` naming what differs between two sets of parameters."""
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    if keys:
        named = "; ".join(f"{key} was {_shorten(stored.get(key))}, now {_shorten(wanted.get(key))}" for key in keys)
        raise InputError(f"{path} was made with other parameters: {named}; choose another --out or add --overwrite")


def prepare(
    path: Where,
    layout: Layout,
    identity: Mapping[str, Any],
    attributes: Mapping[str, Any] | None = None,
    region: Region | None = None,
) -> list[Block]:
    """Create a cube, or go on with the one that is there; the blocks still to be written, in order.

    Parameters
    ----------
    path
        The Zarr group: a local folder, or a prefix of an object store (``s3://bucket/run/fused.zarr``).
    layout
        Its grid, days, variables and block shape.
    identity
        Parameters (JSON values) that must be the same for a run to go on.
    attributes
        Further attributes of the group.
    region
        The area it was made for, on its grid: written as the variable ``aoi``, true inside.

    Raises
    ------
    InputError
        If a cube with another identity is there; the difference is named.
    """
    folder, wanted = as_folder(path), json.loads(json.dumps(full_identity(layout, identity, region)))
    if _is_there(folder):
        refuse_difference(folder, _state(folder)["identity"], wanted)
    else:
        with folder.writing(), folder.building() as new:
            new.delete(last=ROOT)
            _template(new, layout, wanted, attributes or {}, region)
    done = _recorded(folder)
    return [block for block in layout.blocks() if block.name not in done]


def _is_there(folder: Folder) -> bool:
    return folder.exists() and _status(_open(folder)) != CREATING


def _status(group: zarr.Group) -> Any:
    state = group.attrs.get("stfgan_xr")
    return state.get("status") if isinstance(state, dict) else None


def remove(path: Where) -> None:
    """Delete a cube, if there is one; a reader sees it whole or not at all."""
    folder = as_folder(path)
    if isinstance(folder, ObjectFolder) and folder.read(ROOT) is not None:
        with folder.writing():
            zarr.open_group(_opened(folder, False), mode="r+", zarr_format=3).attrs["stfgan_xr"] = {"status": CREATING}
    folder.delete(last=ROOT)


def _recorded(folder: Folder) -> set[str]:
    """Names of the blocks that have a record."""
    return {name.removesuffix(".json") for name in folder.names(RECORDS) if re.fullmatch(r"t.*\.json", name)}


def records(path: Where) -> list[dict[str, Any]]:
    """The records of a cube's blocks, in the order of their names."""
    folder = as_folder(path)
    names = [f"{RECORDS}/{name}.json" for name in sorted(_recorded(folder))]
    return [json.loads(content) for content in folder.read_all(names)]


def _open(folder: Folder) -> zarr.Group:
    if isinstance(folder, LocalFolder) and not folder.path.is_dir():
        raise InputError(f"{folder}: no such cube")
    if isinstance(folder, ObjectFolder) and folder.read(ROOT) is None:
        raise InputError(f"{folder}: {'not a Zarr group' if folder.exists() else 'no such cube'}")
    with folder.reading():
        try:
            return zarr.open_group(_opened(folder, True), mode="r", zarr_format=3)
        except (zarr.errors.GroupNotFoundError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: not a Zarr group ({str(error).splitlines()[0]})") from None


def _state(folder: Folder) -> dict[str, Any]:
    group = _open(folder)
    if _status(group) == CREATING:
        raise InputError(f"{folder}: no such cube, only the rest of one that was being created or deleted")
    state = group.attrs.get("stfgan_xr")
    if not isinstance(state, dict) or not {"status", "layout", "identity"} <= set(state):
        raise InputError(f"{folder}: a Zarr group, but not a cube of stfgan_xr")
    return dict(state)


def _digest(arrays: Mapping[str, Array]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def write_block(path: Where, layout: Layout, block: Block, arrays: Mapping[str, Array], **notes: Any) -> dict[str, Any]:
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
    folder = as_folder(path)
    with folder.writing():
        group = zarr.open_group(_opened(folder, False), mode="r+", zarr_format=3)
    for name, variable in layout.variables.items():
        region = layout.region(variable, block)
        expected = tuple(part.stop - part.start for part in region)
        if arrays[name].shape != expected or arrays[name].dtype != np.dtype(variable.dtype):
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise ValueError(f"{name} of {block.name}: {found}, expected {variable.dtype} {expected}")
        with folder.writing():
            array = group[name]
            assert isinstance(array, zarr.Array)
            array.with_config({"write_empty_chunks": True})[region] = arrays[name]
    record = {"block": block.name, "sha256": _digest(arrays), **notes}
    folder.write_json(f"{RECORDS}/{block.name}.json", record)
    return record


def fill(layout: Layout, block: Block) -> dict[str, Array]:
    """The arrays of a block in which nothing has a value."""
    regions = {name: layout.region(variable, block) for name, variable in layout.variables.items()}
    return {
        name: np.full([part.stop - part.start for part in regions[name]], variable.fill, variable.dtype)
        for name, variable in layout.variables.items()
    }


def inside(path: Where, window: Window) -> Array | None:
    """Whether each pixel of a window lies inside the area a cube was made for; None if it was made for none."""
    folder = as_folder(path)
    with folder.reading():
        try:
            return np.asarray(_shards(folder, AOI, True)[window.slices]).astype(bool)
        except zarr.errors.ArrayNotFoundError:
            return None


def write_tasks(dataset: xr.Dataset, path: Where, layout: Layout, pending: Iterable[Block]) -> Iterator[Delayed]:
    """One task for each pending block of a lazy Dataset of counts: compute and write it, return the record."""
    for block in pending:
        rows, columns = block.window.slices
        part = dataset.isel(time=slice(block.first, block.last), y=rows, x=columns)
        arrays = {name: part[name].data for name in layout.variables}
        yield delayed(write_block, pure=False)(path, layout, block, arrays)


def seal(path: Where) -> dict[str, Any]:
    """Mark a cube complete if all its blocks are recorded; its state, with count and digest of the records.

    Raises
    ------
    IncompleteError
        If blocks are missing.
    """
    folder = as_folder(path)
    state, missing = _state(folder), missing_blocks(folder)
    if missing:
        raise IncompleteError(
            f"{folder}: {len(missing)} blocks are missing, first {missing[0]}; run the same command again"
        )
    if state["status"] == "complete":
        return state
    found, written = hashlib.sha256(), records(folder)
    for record in written:
        found.update(record["sha256"].encode())
    state |= {"status": "complete", "blocks": len(written), "sha256": found.hexdigest()}
    with folder.writing():
        zarr.open_group(_opened(folder, False), mode="r+", zarr_format=3).attrs["stfgan_xr"] = state
    return state


def missing_blocks(path: Where) -> list[str]:
    """Names of the blocks of a cube that have no record."""
    folder = as_folder(path)
    state, group = _state(folder), _open(folder)
    with folder.reading():
        first = group[state["layout"]["variables"][0]]
    assert isinstance(first, zarr.Array)
    days, height, width = first.shape
    run, tile = state["layout"]["run"], state["layout"]["tile"]
    done = _recorded(folder)
    names = (
        Block(window, t, min(t + run, days)).name
        for t in range(0, days, run)
        for window in tiles((height, width), tile)
    )
    return [name for name in names if name not in done]


def is_complete(path: Where) -> bool:
    """Whether a cube is there and complete."""
    folder = as_folder(path)
    return _is_there(folder) and _state(folder)["status"] == "complete"


def identity_of(path: Where) -> dict[str, Any]:
    """The parameters a cube was made with, and the digest of its blocks (None while it is unfinished)."""
    state = _state(as_folder(path))
    return {**state["identity"], "sha256": state.get("sha256")}


class _Stored(BackendArray):
    """A stored array, decoded while it is read: counts become float32 reflectance, filled values NaN."""

    def __init__(self, folder: Folder, array: zarr.Array[Any], decode: Decode | None) -> None:
        self.folder, self.array, self.decode = folder, array, decode
        self.shape = array.shape
        self.dtype = decode(np.empty(0, array.dtype)).dtype if decode else array.dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        with self.folder.reading():
            values = np.asarray(self.array[key])
        return self.decode(values) if self.decode else values


def _truth(values: Array) -> Array:
    return values.astype(bool)


def _dims(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    return getattr(array.metadata, "dimension_names", None) or ()


def _variable(folder: Folder, array: zarr.Array[Any], decode: bool) -> xr.Variable:
    dims = _dims(array)
    scaled = decode and "scale_factor" in array.attrs
    dropped = {"coordinates"} | ({"_FillValue", "scale_factor", "add_offset"} if scaled else set())
    attributes = {key: value for key, value in array.attrs.items() if key not in dropped}
    stored = _Stored(folder, array, to_reflectance if scaled else None)
    return xr.Variable(dims, indexing.LazilyIndexedArray(stored), attributes)


def _coordinates(folder: Folder, group: zarr.Group) -> dict[str, xr.Variable]:
    found = {}
    for name, array in group.arrays():
        if name in ("y", "x", "yc", "xc", "spatial_ref"):
            found[name] = xr.Variable(_dims(array), np.asarray(array[...]), dict(array.attrs))
        if name == AOI:
            attributes = {key: array.attrs[key] for key in ("long_name", "flag_values", "flag_meanings")}
            stored = _Stored(folder, _shards(folder, AOI, True), _truth)
            found[name] = xr.Variable(_dims(array), indexing.LazilyIndexedArray(stored), attributes)
    days = np.asarray(group["time"][...]).astype("datetime64[D]").astype("datetime64[ns]")  # type: ignore[index]
    return found | {"time": xr.Variable(("time",), days, {"standard_name": "time"})}


def _open_dataset(folder: Folder, decode: bool, allow_incomplete: bool) -> xr.Dataset:
    state = _state(folder)
    complete = state["status"] == "complete"
    if not complete and not allow_incomplete:
        missing = missing_blocks(folder)
        raise IncompleteError(
            f"{folder} is unfinished: {len(missing)} blocks are missing"
            + (f", first {missing[0]}" if missing else "")
            + "; run the same command again to finish it, or pass allow_incomplete=True"
        )
    group = _open(folder)
    with folder.reading():
        variables = {
            name: _variable(folder, _shards(folder, name, complete), decode) for name in state["layout"]["variables"]
        }
        return xr.Dataset(variables, _coordinates(folder, group), dict(group.attrs))


def _shards(folder: Folder, name: str, complete: bool) -> zarr.Array[Any]:
    whole = _opened(folder, True)
    return zarr.open_array(_Complete(whole, folder) if complete else whole, path=name, mode="r", zarr_format=3)


def open_cube(path: Where, *, allow_incomplete: bool = False) -> xr.Dataset:
    """A cube as float32 reflectance with NaN, read lazily: an index such as ``.isel(time=3)`` reads only that.

    Parameters
    ----------
    path
        ``landsat.zarr``, ``modis.zarr`` or ``fused.zarr`` of a run folder; ``s3://bucket/run/fused.zarr`` in an object
        store.
    allow_incomplete
        Open a cube whose blocks are not all written; missing ones are NaN.

    Returns
    -------
    xarray.Dataset
        Bands ``(time, y, x)``, ``qa`` and further variables; use ``.chunk()`` for dask arrays. A cube made for an area
        has the coordinate ``aoi``, true inside: ``cube.where(cube.aoi)``.

    Raises
    ------
    InputError
        If there is no cube at ``path``.
    IncompleteError
        If it is unfinished; the message counts the missing blocks. When values are read, if a shard is gone.
    SourceError
        If an object store cannot be read, also when values are.
    """
    return _open_dataset(as_folder(path), True, allow_incomplete)


def open_counts(path: Where, *, allow_incomplete: bool = False) -> xr.Dataset:
    """A cube as it is stored: int16 counts, without decoding."""
    return _open_dataset(as_folder(path), False, allow_incomplete)


def _slabs(array: zarr.Array[Any]) -> Iterator[Any]:
    if array.ndim == 0:
        yield ...
        return
    step = array.chunks[0]
    for start in range(0, array.shape[0], step):
        yield slice(start, start + step)


def content_digest(path: Where) -> str:
    """sha256 over all decoded arrays and coordinates; it does not depend on chunks or compression."""
    folder, found = as_folder(path), hashlib.sha256()
    group = _open(folder)
    whole = {*_state(folder)["layout"]["variables"], AOI} if _status(group) == "complete" else set()
    with folder.reading():
        for name, listed in sorted(group.arrays()):
            array = _shards(folder, name, True) if name in whole else listed
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            for part in _slabs(array):
                found.update(np.ascontiguousarray(array[part]).tobytes())
    return found.hexdigest()


def dataset_layout(dataset: xr.Dataset, grid: GeoBox, bands: Sequence[str], *, tile: int, run: int) -> Layout:
    """The layout of a cube of observations for a Dataset of counts."""
    days = tuple(np.asarray(dataset["time"].values).astype("datetime64[D]").tolist())
    return Layout(grid, days, observation_variables(bands), tile, run)
