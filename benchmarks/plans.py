"""What a run of a province, a country and ten years costs before and beside its pixels: ``python -m benchmarks.plans``.

Cubes of the size are planned, created and cut into tasks; what they would be computed from are arrays of one value
that take no memory. Seconds are those of the processor. The scheduler's share is that of tasks that do nothing.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from affine import Affine
from dask.delayed import delayed
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rich.table import Table

from pipelines.console import main, out
from stfgan_xr import fusion, store
from stfgan_xr.cluster import AHEAD, connect, run
from stfgan_xr.days import day_range, to_datetime64
from stfgan_xr.grid import RATIO, coarse_grid
from stfgan_xr.predictors.methods import make
from stfgan_xr.sensors import BANDS

RESULTS = Path(__file__).parent / "results" / "plans.json"
TILE, TASKS = 1024, 1000
START = date(2020, 1, 1)
AREAS = {  # square kilometres, days
    "10,240 x 10,240 pixels, a year": ((10_240 * 0.03) ** 2, 365),
    "province, a year": (180_000, 365),
    "province, ten years": (180_000, 3652),
    "country, a year": (9_600_000, 365),
}


def _cube(grid: GeoBox, days: tuple[date, ...]) -> xr.Dataset:
    shape = (len(days), *grid.shape)
    variables: dict[str, Any] = {b: (("time", "y", "x"), np.broadcast_to(np.int16(0), shape)) for b in BANDS}
    variables["qa"] = (("time", "y", "x"), np.broadcast_to(np.uint16(0), shape))
    return xr.Dataset(variables, {**xr_coords(grid), "time": to_datetime64(days)})


def _measure(area: float, count: int) -> dict[str, float]:
    side = max(1, int((area * 1e6) ** 0.5 / 30) // TILE) * TILE
    grid = GeoBox((side, side), Affine(30, 0, 300_015, 0, -30, 4_000_005), "EPSG:32650")
    days = day_range(START, START + timedelta(days=count - 1))
    cubes = _cube(grid, days[::8]), _cube(coarse_grid(grid, RATIO), days)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        job = fusion.plan(*cubes, make("stfgan", BANDS), days, tile=TILE)
        pending = store.prepare(Path(folder) / "fused.zarr", job.layout, {})
        planned = time.process_time()
        made = sum(len(task.__dask_graph__()) for task in islice(job.write_tasks(Path(folder), pending), TASKS))
        spent = time.process_time() - planned
    return {
        "blocks": len(pending),
        "plan_seconds": planned - begun,
        "task_milliseconds": 1e3 * spent / min(TASKS, len(pending)),
        "tasks_a_block": made / min(TASKS, len(pending)),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _scheduler() -> dict[str, float]:
    """Milliseconds of both the client and the scheduler for a task that does nothing, by the processor."""
    with connect(workers=2) as client:
        assert client is not None
        list(run([delayed(os.getpid)() for _ in range(10)], client))
        begun = time.process_time()
        list(run((delayed(os.getpid, pure=False)() for _ in range(TASKS)), client))
        return {
            "scheduler_milliseconds": 1e3 * (time.process_time() - begun) / TASKS,
            "tasks_ahead": AHEAD * sum(client.nthreads().values()),
        }


def command(
    only: Annotated[str | None, typer.Option(help="One area in this process, as JSON.", hidden=True)] = None,
    to: Annotated[Path, typer.Option(help="File of the figures.")] = RESULTS,
) -> None:
    """Plan runs of several sizes, each in a process of its own."""
    if only is not None:
        sys.stdout.write(json.dumps(_measure(*AREAS[only])))
        return
    figures: dict[str, Any] = {"cluster": _scheduler()}
    table = Table("run", "blocks", "plan, s", "a task, ms", "tasks a block", "peak, MiB", box=None)
    for name in AREAS:
        command = [sys.executable, "-m", "benchmarks.plans", "--only", name]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        figures[name] = found
        table.add_row(name, *(f"{value:,.4g}" for value in found.values()))
    to.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    out.print(table)
    cluster = figures["cluster"]
    out.print(f"a task through the scheduler: {cluster['scheduler_milliseconds']:.2g} ms; at most "
              f"{cluster['tasks_ahead']} of two workers are in its graph")  # fmt: skip


if __name__ == "__main__":
    main(command)
