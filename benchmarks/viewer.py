"""How fast maps of a cube larger than memory are drawn, and in how much memory: ``python -m benchmarks.viewer``.

The cube has real shards of a real size but one content: all blocks are links to the first, so that it is made in
seconds. What is read, decoded and drawn is what a run of that size would have; random texture of 1 % hardly compresses,
as land. Seconds are those of a clock and of the processor, which differ on a machine that others use.
"""

from __future__ import annotations

import json
import os
import resource
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from affine import Affine
from odc.geo.geobox import GeoBox

from pipelines.console import main, out
from stfgan_xr import overviews, store, viewer
from stfgan_xr.files import LocalFolder, write_json
from stfgan_xr.fusion import fused_variables
from stfgan_xr.grid import Window

FIRST = date(2020, 3, 1)


def _block(layout: store.Layout, block: store.Block) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for name, variable in layout.variables.items():
        shape = [part.stop - part.start for part in layout.region(variable, block)]
        if variable.dtype == "int16":
            slope = 2000 + 1000 * np.sin(np.arange(shape[-1]) / 40)
            found[name] = (slope + rng.normal(0, 100, shape)).astype("int16")
        else:
            found[name] = rng.integers(0, 9, shape).astype(variable.dtype)
    return found


def _linked(path: Path, layout: store.Layout, identity: dict[str, object]) -> None:
    """A complete cube of which each shard is the first."""
    if store.is_complete(path):
        return
    first, *others = store.prepare(path, layout, identity)
    store.write_block(path, layout, first, _block(layout, first))
    for block in others:
        for name, variable in layout.variables.items():
            side = layout.tile // layout.scale(variable)
            window = block.window.cells(layout.scale(variable))
            place = path / name / "c" / str(block.first // layout.run) / str(window.top // side)
            place.mkdir(parents=True, exist_ok=True)
            os.link(path / name / "c" / "0" / "0" / "0", place / str(window.left // side))
        record = json.loads((path / store.RECORDS / f"{first.name}.json").read_bytes())
        write_json(path / store.RECORDS / f"{block.name}.json", record | {"block": block.name})
    store.seal(path)


def make(folder: Path, size: int, days: int) -> None:
    """A fused cube of a size with its overviews."""
    calendar = tuple(FIRST + timedelta(days=n) for n in range(days))
    grid = GeoBox((size, size), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    layout = store.Layout(grid, calendar, fused_variables(("blue", "green", "red", "nir")), 1024, 32, 16)
    _linked(folder / "fused.zarr", layout, {"used": "benchmark"})
    digest = store.identity_of(folder / "fused.zarr")["sha256"]
    counts = store.open_counts(folder / "fused.zarr")
    for factor in overviews.factors((size, size)):
        target = folder / overviews.FOLDER / f"fused-{factor}.zarr"
        small = overviews.layout_of(counts, factor)
        if small.shape[0] % small.tile == 0:
            _linked(target, small, {"overview_of": digest, "factor": factor})
    for overview in overviews.prepare(LocalFolder(folder), "fused"):
        for task in overview.tasks():
            task.compute(scheduler="synchronous")


def command(
    folder: Annotated[Path, typer.Option("--out", help="Where the cube lies, and is left.")] = Path("build/viewer"),
    size: Annotated[int, typer.Option(help="Pixels along a side, a multiple of 1024.")] = 10_240,
    days: Annotated[int, typer.Option()] = 30,
) -> None:
    """Time frames of the whole cube and of parts of it, on days in a row and on days apart."""
    make(folder, size, days)
    pyramid = overviews.open_pyramid(LocalFolder(folder), "fused")
    layer = viewer.Layer("fused", pyramid, days=overviews.days_of(pyramid.cube))
    frames, rgb = viewer.Frames(), ("red", "green", "blue")
    seconds: dict[str, list[tuple[float, float]]] = {}
    for share in (1, 2, 4, 8):
        window = Window(0, size // share, 0, size // share)
        for step in range(days):
            kind = "other days" if step % store.INNER_DAYS == 0 else "next day"
            started = time.perf_counter(), time.process_time()
            values, _ = frames.view(layer, rgb, step, window)
            viewer.to_rgba(viewer.image_of("true colour", values, rgb), (0.0, 0.3))
            took = time.perf_counter() - started[0], time.process_time() - started[1]
            seconds.setdefault(f"1/{share} of a side, {kind}", []).append(took)
    for kind, found in seconds.items():
        clock, processor = np.median(found, axis=0)
        longest = max(clock for clock, _ in found)
        out.print(f"{kind:28s} median {clock:.3f} s (processor {processor:.3f} s), longest {longest:.3f} s")
    begun = time.perf_counter()
    pixel = pyramid.cube[list(rgb)].isel(y=size // 2, x=size // 2).compute()
    out.print(f"a pixel through {pixel.sizes['time']} days: {time.perf_counter() - begun:.3f} s")
    out.print(f"memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main(command)
