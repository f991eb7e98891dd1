"""What a GPU does: the same pixels as the CPU, how fast, in how much memory, and through dask-cuda.

``python -m benchmarks.gpu`` takes under eight minutes and writes ``benchmarks/results/gpu-<device>.json``; without a
GPU it says so and exits 0. Speeds are ratios against what the same run measures: the matrix peak in bfloat16, the
network without sharing, and the network inside the whole pipeline. ``--device cpu --size 64`` tries the script itself.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from pipelines.console import main, out
from stfgan_xr import checkpoint, fusion, store
from stfgan_xr.brackets import intervals, series
from stfgan_xr.cluster import connect, run
from stfgan_xr.days import day_range, to_datetime64, to_number
from stfgan_xr.errors import InputError
from stfgan_xr.grid import RATIO, Window, coarse_grid
from stfgan_xr.predictors import CoarseWindow
from stfgan_xr.predictors.stages import Architecture, Network
from stfgan_xr.predictors.stfgan import STFGAN, shapes
from stfgan_xr.sensors import BANDS

RESULTS = Path(__file__).parent / "results"
START, DAYS = date(2020, 1, 1), 16
# Multiply-adds of a 30 m pixel and stage at full width (the design's arithmetic): coarse branch, fine branch, fusion.
COARSE, FINE, FUSION = 127_944, 688_896, 62_208


def region(size: int) -> tuple[xr.Dataset, xr.Dataset]:
    """A smooth region in memory: Landsat at both ends of sixteen days, MODIS every day."""
    rng = np.random.default_rng(0)
    grid = GeoBox.from_bbox((0, 0, size * 30, size * 30), "EPSG:32650", resolution=30)
    base = rng.random((len(BANDS), size // 8, size // 8)).repeat(8, 1).repeat(8, 2) * 0.4 + 0.03
    days = day_range(START, START + timedelta(days=DAYS))

    def cube(box: GeoBox, when: tuple[date, ...], scale: int) -> xr.Dataset:
        small = base.reshape(len(BANDS), size // scale, scale, size // scale, scale).mean((2, 4))
        waves = [1 + 0.2 * np.sin((to_number(day) - to_number(START)) / 5) for day in when]
        counts = {b: (("time", "y", "x"), np.array([small[i] * w * 1e4 for w in waves]).astype("int16"))
                  for i, b in enumerate(BANDS)}  # fmt: skip
        qa = (("time", "y", "x"), np.zeros((len(when), size // scale, size // scale), "uint16"))
        return xr.Dataset({**counts, "qa": qa}, {**xr_coords(box), "time": to_datetime64(when)})

    return cube(grid, (days[0], days[-1]), 1), cube(coarse_grid(grid, RATIO), days, RATIO)


def weights(folder: Path, width: int) -> Path:
    """A checkpoint of random weights, small enough that results stay within reflectance."""
    torch.manual_seed(0)
    network = Network(Architecture(BANDS, width))
    with torch.no_grad():
        for stage in (network.first, network.second):
            stage.fusion.weight.normal_(0, 1e-3)
    state = network.state_dict()
    tensors = {name: state[name].numpy() for name in shapes(network)}
    checkpoint.save(folder / "stfgan.safetensors", tensors, network.architecture.to_config())
    return folder / "stfgan.safetensors"


def timed(work: Callable[[], Any], device: str, repeats: int = 3) -> float:
    """Least seconds of some repeats, after one that is not counted."""
    found = []
    for number in range(repeats + 1):
        begun = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if number:
            found.append(time.perf_counter() - begun)
    return min(found)


def matrix_peak(device: str) -> float:
    """Multiply-adds a second of a large matrix product: bfloat16 on a GPU, float32 on a CPU."""
    side, kind = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a = torch.randn(side, side, device=device, dtype=kind)
    return side**3 / timed(lambda: a @ a, device, 10)


def network_speed(predictor: STFGAN, cubes: tuple[xr.Dataset, xr.Dataset], size: int, device: str) -> dict[str, float]:
    """Sixteen days of one block: shared over the interval, and prepared anew for every day."""
    landsat, modis = (series(cube, BANDS) for cube in cubes)
    days = [to_number(day) for day in day_range(START + timedelta(days=1), START + timedelta(days=DAYS - 1))]
    (interval,) = intervals(landsat, modis, Window(0, size, 0, size), days, predictor.halo, RATIO)
    one = CoarseWindow(tuple(days[:1]), interval.coarse.series, interval.coarse.series_days)

    def shared() -> None:
        predictor.predict(predictor.prepare(interval.bracket), interval.coarse)

    seconds = timed(shared, device)
    prepare = timed(lambda: predictor.prepare(interval.bracket), device)
    single = timed(lambda: predictor.predict(predictor.prepare(interval.bracket), one), device)
    pixels = size * size * len(days)
    width = predictor.architecture.width / 64
    # Halo-free count: what is wasted on the halo shows as a lower share.
    executed = size * size * (2 * FINE + FUSION + len(days) * 2 * (COARSE + FUSION / 2)) * width**2
    return {
        "megapixels_a_second": pixels / seconds / 1e6,
        "multiply_adds_a_second": executed / seconds,
        "prepare_share": prepare / seconds,
        "sharing_gain": single * len(days) / seconds,
    }


def agreement(path: Path, cubes: tuple[xr.Dataset, xr.Dataset], device: str) -> dict[str, dict[str, float]]:
    """Differences in counts (1e-4 reflectance) between the CPU in float32 and the device."""
    day = [START + timedelta(days=7)]

    def image(**settings: Any) -> np.ndarray[Any, Any]:
        fused = fusion.fuse(*cubes, STFGAN.open(path, **settings), day).compute()
        return np.stack([fused[band].values for band in BANDS])

    reference = image(device="cpu", dtype="float32")
    found = {}
    for kind in ("float32", "bfloat16") if device == "cuda" else ("float32",):
        off = np.abs(image(device=device, dtype=kind) - reference) * 1e4
        found[kind] = {"rmse": float(np.sqrt(np.mean(off**2))), "p999": float(np.quantile(off, 0.999))}
    return found


def pipeline(path: Path, cubes: tuple[xr.Dataset, xr.Dataset], folder: Path, kind: str) -> float:
    """Megapixels a second from cubes on disk to a fused cube on disk."""
    opened = []
    for name, cube in zip(("landsat", "modis"), cubes, strict=True):
        target = folder / f"{name}.zarr"
        layout = store.dataset_layout(cube, cube.odc.geobox, BANDS, tile=1024, run=1 if name == "landsat" else 16)
        for task in store.write_tasks(cube, target, layout, store.prepare(target, layout, {})):
            task.compute(scheduler="synchronous")
        store.seal(target)
        opened.append(store.open_cube(target))
    days = day_range(START + timedelta(days=1), START + timedelta(days=DAYS - 1))
    job = fusion.plan(opened[0], opened[1], STFGAN.open(path), days, keep_observed=False)
    result = folder / f"fused-{kind}.zarr"
    pending = store.prepare(result, job.layout, {})
    with connect(kind=kind) as client:
        begun = time.perf_counter()
        for _ in run(job.write_tasks(result, pending), client):
            pass
        seconds = time.perf_counter() - begun
    store.seal(result)
    height, width = job.layout.shape
    return height * width * len(days) / seconds / 1e6


def measure(device: str, size: int, width: int) -> dict[str, Any]:
    """All figures of one device."""
    small, large = region(min(size, 512)), region(size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = weights(folder, width)
        predictor = STFGAN.open(path, device=device)
        found: dict[str, Any] = {"device": device, "size": size, "width": width, "torch": torch.__version__}
        found["against_cpu_in_counts"] = agreement(path, small, device)
        peak = matrix_peak(device)
        speed = network_speed(predictor, large, size, device)
        found |= {"network": speed, "network_of_peak": speed["multiply_adds_a_second"] / peak}
        if device == "cuda":
            found["device"] = torch.cuda.get_device_name()
            found["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        whole = pipeline(path, large, folder, "local")
        found |= {"pipeline_megapixels_a_second": whole, "network_over_pipeline": speed["megapixels_a_second"] / whole}
        if device == "cuda":
            found["cuda_cluster"] = _cuda_cluster(path, large, folder)
    return found


def _cuda_cluster(path: Path, cubes: tuple[xr.Dataset, xr.Dataset], folder: Path) -> float | str:
    try:
        return pipeline(path, cubes, folder / "cluster", "cuda")
    except InputError as error:
        return str(error)


def command(
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the script.")] = "cuda",
    size: Annotated[int, typer.Option(help="Fine pixels along the region; a multiple of 16.")] = 2048,
    width: Annotated[int, typer.Option(help="Channels inside the networks.")] = 64,
) -> None:
    """Measure STFGAN on a GPU and write benchmarks/results/gpu-DEVICE.json."""
    if device == "cuda" and not torch.cuda.is_available():
        out.print("benchmarks.gpu needs a GPU that torch can use; there is none here, so there is nothing to measure")
        return
    found = measure(device, size, width)
    if device == "cuda":
        RESULTS.mkdir(exist_ok=True)
        name = found["device"].lower().replace(" ", "-")
        (RESULTS / f"gpu-{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    out.print_json(data=found)


if __name__ == "__main__":
    main(command)
