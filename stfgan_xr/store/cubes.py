"""Cubes as Datasets that are read lazily."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from stfgan_xr.days import from_number, to_numbers
from stfgan_xr.errors import IncompleteError
from stfgan_xr.files import Folder, as_folder
from stfgan_xr.sensors import to_reflectance
from stfgan_xr.store.blocks import missing_blocks
from stfgan_xr.store.groups import COMPLETE, Where, decoding, open_array, open_group, state_of, status
from stfgan_xr.store.template import AOI

Array = npt.NDArray[Any]
Decode = Callable[[Any], Array]
OPENED = 3
"""How often a cube is opened whose state changes meanwhile."""


class _Stored(BackendArray):
    """A stored array, decoded while it is read: counts become float32 reflectance, filled values NaN."""

    def __init__(self, folder: Folder, array: zarr.Array[Any], decode: Decode | None) -> None:
        self.folder, self.array, self.decode = folder, array, decode
        self.shape = array.shape
        self.dtype = decode(np.empty(0, array.dtype)).dtype if decode else array.dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        with self.folder.reading(), decoding(self.folder, self.array.name.strip("/")):
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
            stored = _Stored(folder, open_array(folder, AOI, True), _truth)
            found[name] = xr.Variable(_dims(array), indexing.LazilyIndexedArray(stored), attributes)
    days = np.asarray(group["time"][...]).astype("datetime64[D]").astype("datetime64[ns]")  # type: ignore[index]
    return found | {"time": xr.Variable(("time",), days, {"standard_name": "time"})}


def _open_dataset(folder: Folder, decode: bool, allow_incomplete: bool) -> xr.Dataset:
    for _ in range(OPENED):
        state = state_of(folder)
        try:
            dataset = _open_as(folder, state, decode, allow_incomplete)
        except IncompleteError:
            if state_of(folder) == state:
                raise
        else:
            if state_of(folder) == state:
                return dataset
    raise IncompleteError(f"{folder} is being written again and again; open it again when that has ended")


def _open_as(folder: Folder, state: Mapping[str, Any], decode: bool, allow_incomplete: bool) -> xr.Dataset:
    """A cube of a state: if it is of another one by now, this may be half of each."""
    complete = state["status"] == COMPLETE
    if not complete and not allow_incomplete:
        missing = missing_blocks(folder)
        raise IncompleteError(
            f"{folder} is unfinished: {len(missing)} blocks are missing"
            + (f", first {missing[0]}" if missing else "")
            + "; run the same command again to finish it, or pass allow_incomplete=True"
        )
    group = open_group(folder)
    with folder.reading(), decoding(folder, "its metadata"):
        variables = {
            name: _variable(folder, open_array(folder, name, complete), decode) for name in state["layout"]["variables"]
        }
        return _in_order(xr.Dataset(variables, _coordinates(folder, group), dict(group.attrs)), state)


def _order(days: Sequence[date], state: Mapping[str, Any]) -> list[int]:
    """Time steps that a reader sees, by day: those that came late lie at the end of the axis."""
    void = state.get("void", [])
    return sorted((n for n, day in enumerate(days) if day.isoformat() not in void), key=lambda n: days[n])


def _in_order(dataset: xr.Dataset, state: Mapping[str, Any]) -> xr.Dataset:
    days = [from_number(number) for number in to_numbers(dataset["time"].values)]
    order = _order(days, state)
    if "provisional" in state:
        text = "whether a later acquisition may still change the day"
        settled = np.array([day.isoformat() in state["provisional"] for day in days])
        dataset = dataset.assign_coords(provisional=("time", settled, {"long_name": text}))
    return dataset if order == list(range(len(days))) else dataset.isel(time=order)


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
        has the coordinate ``aoi``, true inside: ``cube.where(cube.aoi)``, and a fused one ``provisional (time)``, true
        on days that a later acquisition may still change: ``cube.sel(time=~cube.provisional)``.

    Raises
    ------
    InputError
        If there is no cube at ``path``.
    IncompleteError
        If it is unfinished, or being added to; the message counts the missing blocks. When values are read, if a shard
        is gone.
    SourceError
        If an object store cannot be read, also when values are.
    """
    return _open_dataset(as_folder(path), True, allow_incomplete)


def open_counts(path: Where, *, allow_incomplete: bool = False) -> xr.Dataset:
    """A cube as it is stored: int16 counts, without decoding."""
    return _open_dataset(as_folder(path), False, allow_incomplete)


def _slabs(array: zarr.Array[Any], order: Sequence[int]) -> Iterator[Any]:
    if array.ndim == 0:
        yield ...
    elif _dims(array)[:1] == ("time",) and list(order) != list(range(array.shape[0])):
        for step in order:
            yield slice(step, step + 1)
    else:
        step = array.chunks[0]
        for start in range(0, array.shape[0], step):
            yield slice(start, start + step)


def content_digest(path: Where) -> str:
    """sha256 over all decoded arrays and coordinates, as readers see them; it does not depend on chunks or compression,
    nor on the order in which days were added."""
    folder, found = as_folder(path), hashlib.sha256()
    group, state = open_group(folder), state_of(folder)
    whole = {*state["layout"]["variables"], AOI} if status(group) == COMPLETE else set()
    order = _order([date.fromisoformat(day) for day in state["identity"]["days"]], state)
    found.update(json.dumps(state.get("provisional", [])).encode())
    with folder.reading():
        for name, listed in sorted(group.arrays()):
            array = open_array(folder, name, True) if name in whole else listed
            timed = _dims(array)[:1] == ("time",)
            shape = (len(order), *array.shape[1:]) if timed else array.shape
            found.update(f"{name} {array.dtype} {shape}".encode())
            for part in _slabs(array, order):
                with decoding(folder, name):
                    found.update(np.ascontiguousarray(array[part]).tobytes())
    return found.hexdigest()
