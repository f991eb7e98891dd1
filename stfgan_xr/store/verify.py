"""Whether every file of a cube is what was written, and how it is made again where it is not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stfgan_xr.errors import SourceError
from stfgan_xr.files import Folder, as_folder
from stfgan_xr.store.blocks import (
    blocks_of,
    digest,
    parse_record,
    record_of,
    records,
    sealed,
    set_state,
    shard_of,
)  # fmt: skip
from stfgan_xr.store.groups import COMPLETE, WRITING, Gone, Where, open_array, state_of
from stfgan_xr.store.layout import COARSE, Block
from stfgan_xr.store.template import FIXED

MISSING = "missing"


@dataclass(frozen=True)
class Damage:
    """Something of a cube that is missing or not what was written.

    Attributes
    ----------
    key
        The file, named from the cube on.
    why
        What is wrong with it.
    block
        Name of the block it belongs to; None for what was written when the cube was created, and for the seal.
    """

    key: str
    why: str
    block: str | None = None

    def __str__(self) -> str:
        return f"{self.key}: {self.why}"


def check_frame(path: Where) -> list[Damage]:
    """What is wrong with a cube beside its blocks: metadata, coordinates and area.

    Raises
    ------
    InputError
        If there is no cube, or its root is damaged.
    """
    folder = as_folder(path)
    state_of(folder)
    return list(_fixed(folder))


def _fixed(folder: Folder) -> Iterator[Damage]:
    try:
        expected = dict(json.loads(folder.read(FIXED) or b"null"))
    except (ValueError, TypeError):
        yield Damage(FIXED, "missing or damaged")
        return
    for key, sha256 in expected.items():
        content = folder.read(key)
        if content is None:
            yield Damage(key, MISSING)
        elif hashlib.sha256(content).hexdigest() != sha256:
            yield Damage(key, "is not what was written")


def check_seal(path: Where) -> list[Damage]:
    """Whether the blocks of a complete cube, each of them whole, are those it was sealed with."""
    folder = as_folder(path)
    state = state_of(folder)
    if state["status"] != COMPLETE or sealed(records(folder)) == state.get("sha256"):
        return []
    # None of them can be told from the others, so none is believed.
    why = "is not of the blocks that the cube was sealed with"
    return [Damage(record_of(block.name), why, block.name) for block in blocks_of(folder)]


def check_block(path: Where, block: Block) -> list[Damage]:
    """What is wrong with a block: its record, and every shard of every variable.

    Raises
    ------
    SourceError
        If an object store cannot be read: that says nothing about the block.
    """
    folder, key = as_folder(path), record_of(block.name)
    content = folder.read(key)
    if content is None:
        return [Damage(key, MISSING, block.name)]
    record = parse_record(block.name, content)
    if record is None:
        return [Damage(key, "is no record", block.name)]
    state, found = state_of(folder)["layout"], list[Damage]()

    def values() -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in sorted(state["variables"]):
            read = _read(folder, name, block, state["ratio"])
            if isinstance(read, Damage):
                found.append(read)
            else:
                yield name, read

    differs = digest(values()) != record["sha256"]
    return found or ([Damage(key, "is not of the values that are there", block.name)] if differs else [])


def _read(folder: Folder, name: str, block: Block, ratio: int) -> npt.NDArray[Any] | Damage:
    """A variable of a block, or what is wrong with it."""
    shard = name
    try:
        with folder.reading():
            array = open_array(folder, name, True)
            coarse = getattr(array.metadata, "dimension_names", None) == COARSE
            region = slice(block.first, block.last), *block.window.cells(ratio if coarse else 1).slices
            shard = shard_of(array, name, region)
            return np.asarray(array[region])
    except Gone:
        return Damage(shard, MISSING, block.name)
    except SourceError:
        raise
    except Exception as error:  # whatever a codec makes of bytes that are not its own
        return Damage(shard, f"cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:100]})", block.name)


def check(path: Where) -> list[Damage]:
    """Everything that is missing or damaged of a cube, block by block.

    Parameters
    ----------
    path
        The cube.

    Returns
    -------
    list of Damage
        Empty if every file of it is what was written; blocks that were not written yet are missing.

    Raises
    ------
    InputError
        If there is no cube, or its root is damaged.
    SourceError
        If an object store cannot be read.
    """
    found = check_frame(path)
    blocks = [damage for block in blocks_of(path) for damage in check_block(path, block)]
    return found + (blocks or check_seal(path))


def reopen(path: Where, damages: Iterable[Damage]) -> None:
    """Take back what is damaged, so that the run's own command, or ``verify --repair``, writes just that again.

    Until then the cube is unfinished, which is what readers are told. When it is sealed again, it must be what it was.
    """
    folder = as_folder(path)
    state = state_of(folder)
    set_state(folder, state | {"status": WRITING, "reopened": state.get("sha256", state.get("reopened"))})
    for name in sorted({damage.block for damage in damages if damage.block}):
        folder.delete_file(record_of(name))
