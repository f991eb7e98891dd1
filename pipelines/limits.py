"""What a run will need of memory and disk, held against what there is before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from stfgan_xr import store
from stfgan_xr.cluster import memory_left, memory_of_workers
from stfgan_xr.errors import ResourceError
from stfgan_xr.files import Folder
from stfgan_xr.grid import tile_step

if TYPE_CHECKING:
    from distributed import Client

    from stfgan_xr.fusion import Job

STORED = 0.5
"""Stored bytes of a byte of counts, roughly: what is written is certain to need more than half of it."""
SMALLEST_TILE = 64


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def check_memory(job: Job, workers: int, client: Client | None, own: bool) -> None:
    """Refuse a fusion whose blocks do not fit into memory.

    Parameters
    ----------
    job
        The fusion.
    workers
        Processes that fuse at the same time.
    client, own
        The cluster, if there is one, and whether it runs on this machine.

    Raises
    ------
    ResourceError
        With the options that would make it fit.
    """
    if client is not None and not own:
        left, workers = memory_of_workers(client), 1
    else:
        left = memory_left()
    need = job.memory()
    if left is None or need * workers <= left:
        return
    side = job.layout.tile // 2
    while side >= SMALLEST_TILE and _memory(job, side) * workers > left:
        side //= 2
    ways = [f"--tile {side}"] if side >= SMALLEST_TILE else []
    ways += [f"--workers {int(left // need)}"] if workers > 1 and left >= need else []
    raise ResourceError(
        f"a worker needs about {size(need)} of memory for a block of {job.layout.tile} x {job.layout.tile} pixels"
        + (f", {workers} of them {size(need * workers)}" if workers > 1 else "")
        + f", and there are {size(left)}; "
        + (f"choose {' or '.join(ways)}" if ways else "use a machine with more, or fewer --bands")
    )


def _memory(job: Job, largest: int) -> float:
    side = store.tile_for(job.layout.shape, tile_step(job.layout.ratio), largest)
    return replace(job, layout=replace(job.layout, tile=side)).memory()


def bytes_to_write(folder: Folder, layouts: Mapping[str, store.Layout]) -> float:
    """Bytes that the cubes of a run will still take, before compression."""
    total = 0.0
    for name, layout in layouts.items():
        share = 1.0
        if store.is_there(folder / name):
            blocks, there = [block.name for block in layout.blocks()], store.recorded_blocks(folder / name)
            share = sum(name not in there for name in blocks) / max(1, len(blocks))
        total += share * layout.size()
    return total


def check_disk(folder: Folder, layouts: Mapping[str, store.Layout]) -> None:
    """Refuse a run whose cubes do not fit on the disk.

    Raises
    ------
    ResourceError
        With both sizes.
    """
    left, need = folder.free(), bytes_to_write(folder, layouts)
    if left is not None and STORED * need > left:
        raise ResourceError(
            f"{folder}: the cubes still need about {size(STORED * need)} ({size(need)} before compression), and "
            f"{size(left)} are free; make room, choose another --out, or fewer --dates or --bands"
        )
