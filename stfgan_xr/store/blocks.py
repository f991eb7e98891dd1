"""A cube's life: created or gone on with, written block by block, sealed, removed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from dask.delayed import Delayed, delayed

from stfgan_xr.errors import IncompleteError, InputError
from stfgan_xr.files import Folder, ObjectFolder, as_folder
from stfgan_xr.grid import Window, georeference, tiles
from stfgan_xr.region import Region
from stfgan_xr.sensors import is_clear
from stfgan_xr.store.groups import (
    COMPLETE,
    CREATING,
    MEND,
    ROOT,
    WRITING,
    Fresh,
    Where,
    decoding,
    open_array,
    open_group,
    opened,
    state_of,
    status,
)  # fmt: skip
from stfgan_xr.store.layout import Block, Layout
from stfgan_xr.store.template import AOI, RECORDS, template

Array = npt.NDArray[Any]
Permit = Callable[[], None]
"""Raises if a block must not be written any more; it travels to workers."""


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
    stale: Collection[str] = (),
) -> list[Block]:
    """Create a cube, or go on with the one that is there; the blocks still to be written, in order.

    A cube grows if the layout has more days than it: those that are there stay where they are. While blocks of it are
    to be written it is unfinished for its readers, although what they hold of before stays until it is written over.

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
    stale
        Names of blocks that are to be written again, as what they were made from is not what it was.

    Raises
    ------
    InputError
        If a cube with another identity is there, or one whose days are not the first of the layout's; the difference is
        named.
    """
    folder, wanted = as_folder(path), json.loads(json.dumps(full_identity(layout, identity, region), sort_keys=True))
    folder.sweep()
    if is_there(folder):
        _go_on(folder, layout, wanted, attributes or {}, region, stale)
    else:
        with folder.writing(), folder.building() as new:
            new.delete(last=ROOT)
            _create(new, template(layout, wanted, attributes or {}, region))
    done = recorded(folder)
    return [block for block in layout.blocks() if block.name not in done]


def _go_on(
    folder: Folder, layout: Layout, wanted: dict[str, Any], attributes: Any, region: Region | None, stale: Any
) -> None:
    """Bring all of a cube but its blocks to a layout, and take back the records of blocks to be written again.

    Killed anywhere, the same comes of the next call: first the root says that the cube is unfinished, and until it is
    sealed again that it grows, so that what lies beside the blocks is looked at once more.
    """
    state = state_of(folder)
    before, days = state["identity"], wanted["days"]
    refuse_difference(folder, {**before, "days": None}, {**wanted, "days": None})
    if before["days"] != days[: len(before["days"])]:
        refuse_difference(folder, {"days": before["days"]}, {"days": days})
    void = [day.isoformat() for day in layout.void]
    kept = {block.name for block in layout.blocks()} - set(stale)
    obsolete = recorded(folder) - kept
    if before["days"] != days or state.get("void", []) != void or obsolete:
        state = {"status": WRITING, "layout": state["layout"], "identity": wanted, "growing": True}
        set_state(folder, state | ({"void": void} if void else {}))
    if "growing" in state or "reopened" in state:
        _restore(folder, template(layout, wanted, attributes, region))
    for name in sorted(obsolete):
        folder.delete_file(record_of(name))


_UNFINISHED = {"zarr_format": 3, "node_type": "group", "attributes": {"stfgan_xr": {"status": CREATING}}}
"""Root of what is no cube yet, or no more."""


def _create(folder: Folder, files: Mapping[str, bytes]) -> None:
    folder.write_json(ROOT, _UNFINISHED)
    for key, content in files.items():  # its own root last: from there on it is a cube
        folder.write(key, content)


def _restore(folder: Folder, files: Mapping[str, bytes]) -> None:
    """Write again what belongs to a reopened cube beside its blocks and is damaged."""
    for key, content in files.items():
        if key != ROOT and folder.read(key) != content:
            folder.write(key, content)


def set_state(folder: Folder, state: Mapping[str, Any], attributes: Mapping[str, Any] | None = None) -> None:
    """Exchange what the root of a cube states, and further attributes with it, in one step."""
    root = json.loads(folder.read(ROOT) or b"{}")
    root.setdefault("attributes", {}).update({**(attributes or {}), "stfgan_xr": dict(state)})
    folder.write_json(ROOT, root)


def is_there(path: Where) -> bool:
    """Whether a cube is there, finished or not."""
    folder = as_folder(path)
    return folder.exists() and status(open_group(folder)) != CREATING


def remove(path: Where) -> None:
    """Delete a cube, if there is one; a reader sees it whole or not at all."""
    folder = as_folder(path)
    if isinstance(folder, ObjectFolder) and folder.read(ROOT) is not None:
        folder.write_json(ROOT, _UNFINISHED)
    folder.delete(last=ROOT)


def recorded(folder: Folder) -> set[str]:
    """Names of the blocks that have a record."""
    return {name.removesuffix(".json") for name in folder.names(RECORDS) if re.fullmatch(r"t.*\.json", name)}


def parse_record(name: str, content: bytes) -> dict[str, Any] | None:
    """A block's record, or None if it is damaged."""
    try:
        record = json.loads(content)
    except ValueError:
        return None
    whole = isinstance(record, dict) and record.get("block") == name and isinstance(record.get("sha256"), str)
    return record if whole else None


def records(path: Where) -> list[dict[str, Any]]:
    """The records of a cube's blocks, in the order of their names.

    Raises
    ------
    IncompleteError
        If one is damaged.
    """
    folder = as_folder(path)
    names = sorted(recorded(folder))
    found = []
    for name, content in zip(names, folder.read_all([record_of(name) for name in names]), strict=True):
        record = parse_record(name, content)
        if record is None:
            raise IncompleteError(f"{folder} is damaged: {record_of(name)} is no record; {MEND}")
        found.append(record)
    return found


def record_of(name: str) -> str:
    """Where the record of a block lies."""
    return f"{RECORDS}/{name}.json"


def shard_of(array: zarr.Array[Any], name: str, region: Sequence[slice]) -> str:
    """Where the shard lies that a region of an array is, or begins with."""
    places = [part.start // side for part, side in zip(region, array.shards or array.chunks, strict=True)]
    return "/".join((name, "c", *map(str, places)))


def digest(arrays: Iterable[tuple[str, Array]]) -> str:
    """SHA-256 of a block's arrays, which come in the order of their names."""
    found = hashlib.sha256()
    for name, values in arrays:
        found.update(name.encode())
        found.update(np.ascontiguousarray(values))  # type: ignore[arg-type]  # a buffer
    return found.hexdigest()


def write_block(
    path: Where, layout: Layout, block: Block, arrays: Mapping[str, Array], permit: Permit | None = None, **notes: Any
) -> dict[str, Any]:
    """Write one block, whole shards of every variable, then its record.

    Parameters
    ----------
    arrays
        For each variable of the layout the block's values.
    permit
        Called before anything is written.
    notes
        Further JSON values for the record.

    Returns
    -------
    dict
        The record.
    """
    folder = as_folder(path)
    if permit is not None:
        permit()
    with folder.writing():
        group = zarr.open_group(Fresh(opened(folder, False)), mode="r+", zarr_format=3)
    written = []
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
        written.append(shard_of(array, name, region))
    folder.settle(written)
    record = {"block": block.name, "sha256": digest(sorted(arrays.items())), **notes}
    folder.write_json(record_of(block.name), record)
    return record


def note(path: Where, record: Mapping[str, Any]) -> None:
    """Exchange what the record of a block says besides its digest."""
    as_folder(path).write_json(record_of(record["block"]), dict(record))


def recorded_blocks(path: Where) -> set[str]:
    """Names of the blocks of a cube that have a record."""
    return recorded(as_folder(path))


def inside(path: Where, window: Window) -> Array | None:
    """Whether each pixel of a window lies inside the area a cube was made for; None if it was made for none."""
    folder = as_folder(path)
    if folder.read(f"{AOI}/zarr.json") is None:
        return None
    with folder.reading():
        array = open_array(folder, AOI, True)
        with decoding(folder, AOI):
            return np.asarray(array[window.slices]).astype(bool)


def _write_block_of_counts(
    path: Where, layout: Layout, block: Block, arrays: Mapping[str, Array], inputs: Mapping[str, str] | None,
    permit: Permit | None,
) -> dict[str, Any]:  # fmt: skip
    notes = {} if inputs is None else {"inputs": dict(inputs)}
    return write_block(path, layout, block, arrays, permit, clear=int(is_clear(arrays["qa"]).sum()), **notes)


def write_tasks(
    dataset: xr.Dataset,
    path: Where,
    layout: Layout,
    pending: Iterable[Block],
    inputs: Mapping[str, Mapping[str, str]] | None = None,
    permit: Permit | None = None,
) -> Iterator[Delayed]:
    """One task for each pending block of a lazy Dataset of counts: compute and write it, return the record.

    ``inputs`` says of each block, by name, what it is made from: it goes into the record. ``permit`` as in
    :func:`write_block`.
    """
    for block in pending:
        rows, columns = block.window.slices
        part = dataset.isel(time=slice(block.first, block.last), y=rows, x=columns)
        arrays = {name: part[name].data for name in layout.variables}
        yield delayed(_write_block_of_counts, pure=False)(
            path, layout, block, arrays, inputs and inputs[block.name], permit
        )  # fmt: skip


def seal(
    path: Where, facts: Mapping[str, Any] | None = None, attributes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Mark a cube complete if all its blocks are recorded; its state, with count and digest of the records.

    Parameters
    ----------
    facts
        What the state is to say besides.
    attributes
        Attributes of the group that are to be exchanged.

    Raises
    ------
    IncompleteError
        If blocks are missing.
    """
    folder = as_folder(path)
    state, missing = state_of(folder), missing_blocks(folder)
    if missing:
        raise IncompleteError(
            f"{folder}: {len(missing)} blocks are missing, first {missing[0]}; run the same command again"
        )
    if state["status"] == COMPLETE and all(state.get(key) == value for key, value in (facts or {}).items()):
        return state
    written = records(folder)
    found = sealed(written)
    state.pop("growing", None)
    if state.pop("reopened", None) not in (None, found):
        raise IncompleteError(
            f"{folder}: blocks that were made again are not those that were there, as other versions of the libraries "
            "may make them; make the run again with --overwrite"
        )
    state |= {**(facts or {}), "status": COMPLETE, "blocks": len(written), "sha256": found}
    set_state(folder, state, attributes)
    return state


def sealed(records: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of all blocks of a cube, from their records in the order of their names."""
    found = hashlib.sha256()
    for record in records:
        found.update(record["sha256"].encode())
    return found.hexdigest()


def blocks_of(path: Where) -> list[Block]:
    """All blocks of a cube that is there, in order."""
    state = state_of(as_folder(path))
    days, shape = len(state["identity"]["days"]), state["identity"]["grid"][-2:]
    run, tile = state["layout"]["run"], state["layout"]["tile"]
    return [
        Block(window, first, min(first + run, days))
        for first in range(0, days, run)
        for window in tiles((shape[0], shape[1]), tile)
    ]


def days_of(path: Where) -> list[date]:
    """The days of a cube in the order of its axis, also those that there is nothing for any more."""
    return [date.fromisoformat(day) for day in state_of(as_folder(path))["identity"]["days"]]


def layout_facts(path: Where) -> dict[str, Any]:
    """Tile, run of days, ratio and names of the variables that a cube was created with."""
    return dict(state_of(as_folder(path))["layout"])


def variables_of(path: Where) -> list[str]:
    """Names of the variables that the blocks of a cube hold."""
    return list(state_of(as_folder(path))["layout"]["variables"])


def missing_blocks(path: Where) -> list[str]:
    """Names of the blocks of a cube that have no record."""
    folder = as_folder(path)
    done = recorded(folder)
    return [block.name for block in blocks_of(folder) if block.name not in done]


def is_complete(path: Where) -> bool:
    """Whether a cube is there and complete."""
    folder = as_folder(path)
    return is_there(folder) and state_of(folder)["status"] == COMPLETE


def identity_of(path: Where) -> dict[str, Any]:
    """The parameters a cube was made with, and the digest of its blocks (None while it is unfinished)."""
    state = state_of(as_folder(path))
    return {**state["identity"], "sha256": state.get("sha256") if state["status"] == COMPLETE else None}
