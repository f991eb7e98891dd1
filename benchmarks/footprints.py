"""Peak memory of a worker against what is predicted, for blocks of several shapes and methods.

Each shape is measured in a process of its own, which fuses two blocks of random cubes with the libraries of the command
loaded.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from stfgan_xr import fusion, store
from stfgan_xr.grid import RATIO, coarse_grid
from stfgan_xr.predictors.methods import make

ROOT = Path(__file__).parents[1]
BANDS = ("red", "nir")
START, MARGIN = date(2020, 1, 1), 16


@dataclass(frozen=True)
class Shape:
    """A method, the sides of the area and of a block in pixels, and the days of a block."""

    method: str
    side: int
    tile: int
    days: int


SHAPES = (
    Shape("delta", 256, 256, 16), Shape("delta", 512, 512, 32), Shape("delta", 1024, 512, 16),
    Shape("delta", 1024, 1024, 8), Shape("delta", 1024, 1024, 32), Shape("linear", 1024, 1024, 16),
    Shape("progress", 512, 512, 32), Shape("progress", 1024, 1024, 8), Shape("progress", 1024, 512, 8),
    Shape("stfgan", 256, 256, 4), Shape("stfgan", 512, 256, 4), Shape("stfgan", 512, 512, 2),
)  # fmt: skip


def _write(path: Path, layout: store.Layout) -> None:
    rng = np.random.default_rng(0)
    for block in store.prepare(path, layout, {}):
        arrays = store.fill(layout, block)
        for band in BANDS:
            arrays[band][:] = rng.integers(200, 4000, arrays[band].shape)
        arrays["qa"][:] = 0
        store.write_block(path, layout, block, arrays)
    store.seal(path)


def write_cubes(folder: Path, side: int, days: int) -> None:
    """Random cubes of an area, clear everywhere, with an acquisition every eighth day."""
    grid = GeoBox((side, side), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    every = [START + timedelta(days=n) for n in range(-MARGIN, days + MARGIN)]
    variables = store.observation_variables(BANDS)
    _write(folder / "landsat.zarr", store.Layout(grid, tuple(every[::8]), variables, min(side, 512), 1))
    coarse = coarse_grid(grid)
    _write(folder / "modis.zarr", store.Layout(coarse, tuple(every), variables, side // RATIO, 16))


def fuse(folder: Path, shape: Shape) -> dict[str, float]:
    """Fuse two blocks; bytes that are predicted and that were taken at most."""
    import pipelines.fuse
    import stfgan_xr.load  # noqa: F401  (what the command has loaded counts)

    landsat, modis = (store.open_cube(folder / f"{name}.zarr") for name in ("landsat", "modis"))
    days = [START + timedelta(days=n) for n in range(shape.days)]
    method = make(shape.method, BANDS, ratio=RATIO)
    job = fusion.plan(landsat, modis, method, days, bracket_days=MARGIN, tile=shape.tile, run=shape.days)
    out = folder / "fused.zarr"
    for task in job.write_tasks(out, store.prepare(out, job.layout, {})[:2]):
        task.compute(scheduler="synchronous")
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    assert pipelines.fuse.TILE
    return {"predicted": job.memory(), "peak": 1024.0 * int(peak[1])}


def measure(folder: Path, shapes: tuple[Shape, ...] = SHAPES) -> list[dict[str, Any]]:
    """All shapes, one after the other."""
    found = []
    for number, shape in enumerate(shapes):
        inner = folder / f"shape-{number}"
        write_cubes(inner, shape.side, shape.days)
        there = "import sys; from benchmarks import footprints; footprints.show(*sys.argv[1:])"
        command = [sys.executable, "-c", there, str(inner), json.dumps(asdict(shape))]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        row = asdict(shape) | json.loads(done.stdout)
        print(row, file=sys.stderr, flush=True)
        found.append(row)
    return found


def show(folder: str, shape: str) -> None:
    """What a process of :func:`measure` does."""
    print(json.dumps(fuse(Path(folder), Shape(**json.loads(shape)))))
