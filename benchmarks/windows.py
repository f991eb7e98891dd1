"""What a window of a lazy fusion costs, beside the blocks that it touches: ``python -m benchmarks.windows RUN``.

Seconds are those of the processor, on one thread, so that they mean something on a machine that others use.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import dask
import typer

from pipelines.console import main, out
from stfgan_xr import fusion, open_cube
from stfgan_xr.cluster import compute_here
from stfgan_xr.grid import RATIO
from stfgan_xr.predictors.methods import make


def _seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def command(
    run: Annotated[Path, typer.Argument(help="A finished run, at least 256 pixels and 8 days.")],
    method: Annotated[str, typer.Option(help="The method.")] = "progress",
    tile: Annotated[int, typer.Option(help="Pixels along a block.")] = 64,
) -> None:
    """Compute windows of a lazy cube, and the blocks that they touch by themselves."""
    landsat, modis = open_cube(run / "landsat.zarr"), open_cube(run / "modis.zarr")
    fused = open_cube(run / "fused.zarr")
    days = [day.astype("datetime64[D]").item() for day in fused.time.values]
    bands = [name for name in fused.data_vars if f"residual_{name}" in fused]
    compute_here(1)
    job = fusion.plan(landsat, modis, make(method, bands, ratio=RATIO), days, tile=tile, run=1)
    lazy, side = job.lazy().drop_dims(("yc", "xc")), job.layout.tile
    windows = {
        "a part of one block": {"time": slice(7, 8), "y": slice(0, side // 2), "x": slice(0, side // 2)},
        "where four blocks meet": {"time": slice(7, 8), "y": slice(side - 8, side + 8), "x": slice(side - 8, side + 8)},
        "a pixel through time": {"time": slice(0, len(days)), "y": slice(5, 6), "x": slice(5, 6)},
    }
    out.print("| window | blocks | seconds | the blocks alone | ratio |\n|---|---|---|---|---|")
    with dask.config.set(scheduler="synchronous"):
        job.block(next(job.layout.blocks())).compute()  # libraries and weights are loaded
        for name, where in windows.items():
            touched = [
                block for block in job.layout.blocks()
                if where["time"].start < block.last and block.first < where["time"].stop
                and where["y"].start < block.window.bottom and block.window.top < where["y"].stop
                and where["x"].start < block.window.right and block.window.left < where["x"].stop
            ]  # fmt: skip
            alone = _seconds(lambda blocks=touched: [job.block(block).compute() for block in blocks])
            window = _seconds(lambda where=where: lazy.isel(where).compute())
            out.print(f"| {name} | {len(touched)} | {window:.2f} | {alone:.2f} | {window / alone:.2f} |")


if __name__ == "__main__":
    main(command)
