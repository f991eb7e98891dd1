"""The stores that Zarr sees: a folder of files or of objects, and the groups and arrays in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from stfgan_xr.errors import IncompleteError, InputError
from stfgan_xr.files import Folder, LocalFolder, ObjectFolder

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

Where = str | Path | Folder
"""A cube's name: a local folder, or ``s3://bucket/prefix``."""
ROOT = "zarr.json"
CREATING, WRITING, COMPLETE = "creating", "writing", "complete"
LARGEST_SIDE, MOST_VARIABLES = 1 << 20, 1000
LARGEST_CHUNK = 512 * 2**20
"""Decoded bytes of an inner chunk: beyond this a small file could claim any amount of memory."""
BROKEN = (
    zarr.errors.BaseZarrError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError,
)  # fmt: skip
"""What Zarr and its codecs raise of bytes that are not what they should be; RecursionError is among them."""
_NAME = re.compile(r"\w{1,100}")
MEND = "python -m pipelines.verify RUN --repair makes it again"
"""What to do about damage."""


class Objects(ObjectStore[Any]):
    """The objects of a folder as Zarr sees them; it travels to workers as the folder, and is opened there."""

    def __init__(self, folder: ObjectFolder, *, read_only: bool = False) -> None:
        super().__init__(folder.store, read_only=read_only)
        self.folder = folder

    def with_read_only(self, read_only: bool = False) -> Objects:
        return Objects(self.folder, read_only=read_only)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # Not every store knows conditional requests; some ignore them and overwrite.
        if not await self.exists(key):
            await self.set(key, value)

    def __reduce__(self) -> Any:
        return opened, (self.folder, self.read_only)


class Gone(IncompleteError):
    """A shard is not there."""


class Complete(WrapperStore[Store]):
    """The store of a complete cube, where every shard is: zarr reads fill where one is not, here that is an error."""

    def __init__(self, store: Store, folder: Folder) -> None:
        super().__init__(store)
        self.folder = folder

    def _with_store(self, store: Store) -> Complete:
        return Complete(store, self.folder)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await self._store.get(key, prototype, byte_range)
        if "/c/" in key and not found:
            raise Gone(f"{self.folder} is damaged: {key} is gone; {MEND}")
        return found


class Fresh(WrapperStore[Store]):
    """A store to write whole shards to: zarr reads the one that is there first, which may be damaged or half of one."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return None if "/c/" in key else await self._store.get(key, prototype, byte_range)


@contextmanager
def decoding(folder: Folder, what: str) -> Iterator[None]:
    """Within it, failures to understand what is stored are :class:`IncompleteError`."""
    try:
        yield
    except BROKEN as error:
        said = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise IncompleteError(f"{folder} is damaged: {what} cannot be read ({said}); {MEND}") from None


def opened(folder: Folder, read_only: bool) -> Store:
    """The store of a folder."""
    if isinstance(folder, ObjectFolder):
        return Objects(folder, read_only=read_only)
    assert isinstance(folder, LocalFolder)
    return LocalStore(folder.path.absolute(), read_only=read_only)  # it travels to workers with other working folders


def open_group(folder: Folder) -> zarr.Group:
    """The group of a cube, to read.

    Raises
    ------
    InputError
        If there is none.
    """
    if isinstance(folder, LocalFolder) and not folder.path.is_dir():
        raise InputError(f"{folder}: no such cube")
    if isinstance(folder, ObjectFolder) and folder.read(ROOT) is None:
        raise InputError(f"{folder}: {'not a Zarr group' if folder.exists() else 'no such cube'}")
    with folder.reading():
        try:
            return zarr.open_group(opened(folder, True), mode="r", zarr_format=3)
        except BROKEN as error:
            raise InputError(f"{folder}: not a Zarr group ({str(error).splitlines()[0]})") from None


def state_of(folder: Folder) -> dict[str, Any]:
    """What the root of a cube states: ``status``, ``layout``, ``identity``.

    Raises
    ------
    InputError
        If it is no cube of ours.
    """
    group = open_group(folder)
    if status(group) == CREATING:
        raise InputError(f"{folder}: no such cube, only the rest of one that was being created or deleted")
    state: Any = group.attrs.get("stfgan_xr")
    if not _is_state(state):
        raise InputError(f"{folder}: a Zarr group, but not a cube of stfgan_xr")
    return dict(state)


def _is_state(state: Any) -> bool:
    """Whether a root states what is needed to read its blocks."""
    try:
        layout, identity, known = state["layout"], state["identity"], state["status"] in (WRITING, COMPLETE)
        sizes = [layout["tile"], layout["run"], layout["ratio"], *identity["grid"][-2:], len(identity["days"])]
        names = layout["variables"]
        return (
            known
            and len(sizes) == 6
            and all(type(size) is int and 0 < size <= LARGEST_SIDE for size in sizes)
            and isinstance(names, list)
            and 0 < len(names) <= MOST_VARIABLES
            and all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
        )
    except (KeyError, TypeError, IndexError):
        return False


def status(group: zarr.Group) -> Any:
    """``creating``, ``writing`` or ``complete``; anything else, or None, is no cube of ours."""
    state = group.attrs.get("stfgan_xr")
    return state.get("status") if isinstance(state, dict) else None


def open_array(folder: Folder, name: str, complete: bool) -> zarr.Array[Any]:
    """An array of a cube to read; of a complete one, a shard that is not there is an error.

    Raises
    ------
    IncompleteError
        If it cannot be understood.
    InputError
        If no cube of ours has such an array.
    """
    whole = opened(folder, True)
    with decoding(folder, f"{name}/zarr.json"):
        array = zarr.open_array(Complete(whole, folder) if complete else whole, path=name, mode="r", zarr_format=3)
    size = math.prod(array.chunks) * array.dtype.itemsize
    if array.dtype.kind not in "iub" or size > LARGEST_CHUNK:
        raise InputError(
            f"{folder / name}: chunks of {array.chunks} {array.dtype}; a cube has whole numbers, and at most "
            f"{LARGEST_CHUNK >> 20} MiB in one"
        )
    return array
