"""How near the engine is to what the machine can do: ``python -m benchmarks.engine --json FILE``, some twenty minutes.

Every figure is a ratio within the run. Seconds are those of the processor, of all threads of this process, on one
thread of torch, so that they mean something on a machine that others use; those of two processes are of a clock, and
mean nothing unless two cores are idle. What is measured against:

* ``peak``: multiply-adds a second of the fastest of some plain convolutions;
* ``codec``: what compresses the chunks of a cube, given their bytes and nothing else to do;
* GDAL: the same images warped or read whole, by the same settings, and nothing else done.
"""

from __future__ import annotations

import cProfile
import itertools
import json
import platform
import pstats
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import rasterio
import torch
import typer
import xarray as xr
import zarr
from odc.geo.xr import xr_coords
from rasterio.vrt import WarpedVRT
from rich.table import Table
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import weights
from pipelines.console import main, out
from stfgan_xr import catalog, checkpoint, fusion, load, rasters, simulate, store
from stfgan_xr.allocation import give_back_freed, keep_freed
from stfgan_xr.brackets import intervals, series
from stfgan_xr.cluster import compute_here, connect, cores, run
from stfgan_xr.days import day_range, to_datetime64, to_number
from stfgan_xr.errors import InputError
from stfgan_xr.grid import RATIO, Halo, Window, coarse_grid
from stfgan_xr.landscape import CENTRE
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.networks import Generator
from stfgan_xr.predictors.stfgan import STFGAN
from stfgan_xr.sensors import BANDS, SENSORS

RESULTS = Path(__file__).parent / "results" / "engine.json"
PAGE = Path(__file__).parent / "engine.md"
START, EVERY = date(2020, 2, 1), 16
FULL = 64
"""Channels of the paper's network."""
HALO = Halo(fine=96, coarse=7)
"""Of the shipped weights: random ones are given the same."""
CONVOLUTIONS = ((64, 64, 3, 256), (64, 64, 3, 128), (128, 128, 3, 128), (256, 256, 3, 64))
"""Channels in and out, kernel and side of the image."""


def processor() -> float:
    """Seconds of the processor that this process has used, in all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Least seconds of some repeats, after one that does not count if there are several."""
    found = []
    for _ in range(repeats + (repeats > 1)):
        begun = processor()
        work()
        found.append(processor() - begun)
    return min(found[repeats > 1 :])


# ---------------------------------------------------------------- the machine


def convolution_peak() -> float:
    """Multiply-adds a second."""
    rates = []
    with torch.inference_mode():
        for into, outof, kernel, side in CONVOLUTIONS:
            image = torch.randn(1, into, side, side).to(memory_format=torch.channels_last)
            weight = torch.randn(outof, into, kernel, kernel).to(memory_format=torch.channels_last)
            times = 2**25 // side**2 // into

            def work(image: Any = image, weight: Any = weight, times: int = times, around: int = kernel // 2) -> None:
                for _ in range(times):
                    functional.conv2d(image, weight, padding=around)

            rates.append(times * side**2 * into * outof * kernel**2 / seconds(work))
    return max(rates)


def memory_copy() -> float:
    """Bytes a second."""
    source = np.ones(2**26, np.uint8)
    target = np.empty_like(source)
    return source.nbytes / seconds(lambda: np.copyto(target, source))


def codec_seconds(path: Path, names: Iterable[str]) -> tuple[float, int]:
    """Seconds that the codec of a cube needs for all its chunks, and their bytes; they are cut out beforehand."""
    spent, size = 0.0, 0
    for name in names:
        array: Any = zarr.open_array(path / name, mode="r")
        codec = array.compressors[0]._blosc_codec
        values = array[...]
        for corner in itertools.product(*(range(0, n, c) for n, c in zip(values.shape, array.chunks, strict=True))):
            part = tuple(slice(at, at + c) for at, c in zip(corner, array.chunks, strict=True))
            chunk = np.ascontiguousarray(values[part])
            spent += seconds(lambda chunk=chunk, codec=codec: codec.encode(chunk), 1)
            size += chunk.nbytes
    return spent, size


# ---------------------------------------------------------------- cubes


@dataclass(frozen=True)
class Place:
    """A simulated place without clouds: Landsat every sixteen days, MODIS every day, as cubes on disk."""

    folder: Path
    days: tuple[date, ...]

    @classmethod
    def make(cls, folder: Path, size: int, count: int) -> Place:
        """Of so many pixels a side and days."""
        world = simulate.World(size=size, start=START, days=count)
        days = day_range(START, START + timedelta(days=count - 1))
        grid, coarse = world.grid, coarse_grid(world.grid, RATIO)
        fine_days = tuple(sorted({*days[::EVERY], days[-1]}))
        fine, cells = [], []
        for day in days:
            image = world.reflectance(day)
            if day in fine_days:
                fine.append(image)
            cells.append(image.reshape(len(BANDS), size // RATIO, RATIO, size // RATIO, RATIO).mean((2, 4)))
        place = cls(folder, days)
        for name, box, when, images in (("landsat", grid, fine_days, fine), ("modis", coarse, days, cells)):
            counts = np.rint(np.stack(images, axis=1) * 1e4).astype(np.int16)
            variables: dict[str, Any] = {b: (("time", "y", "x"), v) for b, v in zip(BANDS, counts, strict=True)}
            variables["qa"] = (("time", "y", "x"), np.zeros(counts.shape[1:], np.uint16))
            cube = xr.Dataset(variables, {**xr_coords(box), "time": to_datetime64(when)})
            layout = store.dataset_layout(cube, box, BANDS, tile=1024, run=1 if name == "landsat" else EVERY)
            target = folder / f"{name}.zarr"
            for task in store.write_tasks(cube, target, layout, store.prepare(target, layout, {})):
                task.compute(scheduler="synchronous")
            store.seal(target)
        return place

    def cubes(self) -> tuple[xr.Dataset, xr.Dataset]:
        """Landsat and MODIS."""
        return store.open_cube(self.folder / "landsat.zarr"), store.open_cube(self.folder / "modis.zarr")

    def tasks(self, name: str, method: Any, tile: int, days: Sequence[date] | None = None, run: int = 32) -> Fusing:
        """A fusion of all days, or of some, into a cube of this folder."""
        when = self.days if days is None else days
        job = fusion.plan(*self.cubes(), method, when, keep_observed=False, tile=tile, run=run)
        target = self.folder / f"{name}.zarr"
        store.remove(target)
        return Fusing(target, job, store.prepare(target, job.layout, {}))


@dataclass(frozen=True)
class Fusing:
    """A fusion into a cube, block by block."""

    target: Path
    job: fusion.Job
    pending: list[store.Block]

    def __call__(self, seal: bool = True) -> None:
        """All blocks that are left, in this process, and the seal."""
        for task in self.job.write_tasks(self.target, self.pending):
            task.compute(scheduler="synchronous")
        if seal:
            store.seal(self.target)

    @property
    def work(self) -> float:
        """Megapixels times days."""
        return float(np.prod(self.job.layout.shape)) * len(self.job.layout.days) / 1e6


def random_weights(folder: Path, width: int) -> STFGAN:
    """A predictor of some width with the halo of the shipped weights."""
    path = weights(folder, width)
    config = checkpoint.read_config(path)
    tensors = checkpoint.load_tensors(path, None)
    checkpoint.save(path, tensors, config | {"halo": {"fine": HALO.fine, "coarse": HALO.coarse}})
    return STFGAN.open(path)


# ---------------------------------------------------------------- the network


@contextmanager
def _network_timed() -> Iterator[list[float]]:
    """Seconds of each call of the generators, and of nothing around them."""
    spent = list[float]()

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            begun = processor()
            try:
                return method(*arguments, **options)
            finally:
                spent.append(processor() - begun)

        return call

    kept = Generator.share, Generator.finish
    Generator.share, Generator.finish = timed(kept[0]), timed(kept[1])  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        Generator.share, Generator.finish = kept  # type: ignore[method-assign]


def network(folder: Path, quick: bool) -> dict[str, float]:
    """The generators of full width within one block of sixteen days, against the peak."""
    size = 128 if quick else 512
    place = Place.make(folder / "network", size, EVERY + 1)
    predictor = random_weights(folder, 16 if quick else FULL)
    days = [to_number(day) for day in place.days[1:-1]]
    sources = (series(cube, BANDS) for cube in place.cubes())
    (interval,) = intervals(*sources, Window(0, size, 0, size), days, predictor.halo, RATIO)

    def work() -> None:
        predictor.predict(predictor.prepare(interval.bracket), interval.coarse)

    with FlopCounterMode(display=False) as counter, _network_timed() as spent:
        work()
    first = sum(spent)
    with _network_timed() as spent:
        work()
    adds = counter.get_total_flops() / 2
    return {"network_of_peak": adds / min(first, sum(spent)) / convolution_peak()}


def allocation(folder: Path, quick: bool) -> dict[str, float]:
    """The shipped network on a block of sixteen days, with freed memory given back as Dask has it, over kept."""
    size = 128 if quick else 512
    place, predictor = Place.make(folder, size, EVERY + 1), make("stfgan", BANDS)
    days = [to_number(day) for day in place.days[1:-1]]
    sources = (series(cube, BANDS) for cube in place.cubes())
    (interval,) = intervals(*sources, Window(0, size, 0, size), days, predictor.halo, RATIO)
    spent = []
    for choose in (give_back_freed, keep_freed):
        if not choose():
            return {}
        spent.append(seconds(lambda: predictor.predict(predictor.prepare(interval.bracket), interval.coarse), 2))
    return {"giving_back_over_keeping": spent[0] / spent[1]}


def sharing(quick: bool) -> dict[str, float]:
    """A generator of full width on halo-free windows: sixteen days in whole, and with the fine half shared."""
    torch.manual_seed(0)
    side, width = (64, 16) if quick else (256, FULL)
    generator = Generator(len(BANDS), width).fold()
    fine = torch.rand(1, 2 * len(BANDS), side, side).to(memory_format=torch.channels_last) * 2 - 1
    days = torch.rand(EVERY, 3 * len(BANDS), side // 4, side // 4).to(memory_format=torch.channels_last) * 2 - 1
    with torch.inference_mode():
        whole, parts = [], []

        def alone() -> None:
            whole[:] = [generator(day[None], fine) for day in days]

        def shared() -> None:
            half = generator.share(fine)[0]
            parts[:] = [torch.tanh(generator.finish(day[None], half)) for day in days]

        gain = seconds(alone, 2) / seconds(shared, 2)
        off = max(float((one - other).abs().max()) for one, other in zip(whole, parts, strict=True))
    if off > 1e-5:
        raise SystemExit(f"sharing changes pixels by {off:.1e}")
    return {"sharing_gain": gain, "sharing_difference": off}


def halos(folder: Path, quick: bool) -> dict[str, float]:
    """Seconds of the generators with the halo that is exact for any weights over those with the shipped weights' own,
    by tile."""
    place = Place.make(folder / "halos", 128 if quick else 1024, EVERY + 1)
    exact, measured = STFGAN.open(weights(folder / "exact", 16)), random_weights(folder / "measured", 16)
    found = {}
    for tile in (64, 128) if quick else (256, 512, 1024):
        spent = []
        for predictor in (exact, measured):
            days, window = [to_number(day) for day in place.days[1:5]], Window(0, tile, 0, tile)
            sources = (series(cube, BANDS) for cube in place.cubes())
            (interval,) = intervals(*sources, window, days, predictor.halo, RATIO)
            with _network_timed() as calls:
                predictor.predict(predictor.prepare(interval.bracket), interval.coarse)
            spent.append(sum(calls))
        found[f"exact_halo_over_measured_{tile}"] = spent[0] / spent[1]
    return found


# ---------------------------------------------------------------- the pipeline


def pipeline(folder: Path, quick: bool) -> dict[str, float]:
    """Cubes on disk to a complete fused cube, against the generators within: full width, and the shipped weights."""
    found = {}
    for name, size in (("full", 128 if quick else 512), ("shipped", 128 if quick else 1024)):
        predictor = random_weights(folder, 16 if quick else FULL) if name == "full" else make("stfgan", BANDS)
        place = Place.make(folder / name, size, EVERY + 1)
        fusing = place.tasks("fused", predictor, size, place.days[:-1])
        with _network_timed() as spent:
            whole = seconds(fusing, 1)
        key = "pipeline_over_network" + ("" if name == "full" else f"_{name}")
        found[key] = whole / sum(spent)
        found[f"seconds_a_megapixel_and_day_{name}"] = whole / fusing.work
    shards = (path.stat().st_size for path in fusing.target.glob("*/c/**/*") if path.is_file())
    return found | {"bytes_a_pixel_and_day": sum(shards) / fusing.work / 1e6}


STAGES = {
    "brackets: reading, decoding, composites": ("brackets.py", ("intervals",)),
    "generators, the fine half, once an interval": ("networks.py", ("share",)),
    "generators, each day": ("networks.py", ("finish",)),
    "anchor, once an interval": ("progress.py", ("of",)),
    "anchor, each day": ("stages.py", ("anchor", "corrected")),
    "packing and flags": ("fusion.py", ("paint",)),
    "digest": ("blocks.py", ("digest",)),
    "encoding and writing": ("blocks.py", ("write_block",)),
}
"""Where to look for the parts of a block's time: file and functions."""


def profile(folder: Path, quick: bool) -> dict[str, Any]:
    """Shares of the time of blocks of sixteen days, delta's and with the shipped weights."""
    size = 128 if quick else 512
    place = Place.make(folder, size, EVERY + 1)
    found = {}
    for method in ("delta", "stfgan"):
        fusing, watch = place.tasks("fused", make(method, BANDS), size, place.days[:-1]), cProfile.Profile(processor)
        watch.enable()
        fusing()
        watch.disable()
        lines: dict[Any, Any] = pstats.Stats(watch).stats  # type: ignore[attr-defined]
        total = sum(line[2] for line in lines.values())
        shares = {
            stage: sum(line[3] for key, line in lines.items() if key[0].endswith(file) and key[2] in names) / total
            for stage, (file, names) in STAGES.items()
        }
        shares["encoding and writing"] -= shares["digest"]
        found[method] = shares | {"all else": 1 - sum(shares.values())}
    return {"profile": found}


def delta(folder: Path, quick: bool) -> dict[str, float]:
    """Delta from cubes on disk to a complete cube, against the codec alone."""
    size, count, tile = (256, 32, 128) if quick else (1024, 128, 1024)
    place = Place.make(folder / "delta", size, count)
    fusing = place.tasks("fused", make("delta", BANDS), tile)
    whole = seconds(fusing, 1)
    alone, encoded = codec_seconds(fusing.target, fusing.job.layout.variables)
    return {
        "delta_of_codec": alone / whole,
        "codec_megabytes_a_second": encoded / alone / 1e6,
        "delta_megapixels_a_second": fusing.work / whole,
    }


def flat(folder: Path, quick: bool) -> dict[str, float]:
    """Seconds a megapixel and day with delta: of many blocks against one, and of many days against sixteen of them."""
    tile, side = (64, 4) if quick else (256, 8)
    method = make("delta", BANDS)

    def cost(place: Place, name: str, pending: slice) -> float:
        fusing = place.tasks(name, method, tile, run=EVERY)
        some = Fusing(fusing.target, fusing.job, fusing.pending[pending])
        share = len(some.pending) / len(fusing.pending)
        return seconds(lambda: some(seal=False), 1) / fusing.work / share

    wide = Place.make(folder / "wide", tile * side, EVERY)
    long = Place.make(folder / "long", tile, (2 if quick else 23) * EVERY)
    inner, middle = side * side // 2 + side // 2, len(long.days) // EVERY // 2
    cost(wide, "warm", slice(2))
    one = float(np.mean([cost(wide, f"one-{number}", slice(inner, inner + 1)) for number in range(5)]))
    single = peak_memory()
    many = cost(wide, "many", slice(None))
    few = float(np.mean([cost(long, f"few-{number}", slice(middle, middle + 1)) for number in range(5)]))
    year = cost(long, "year", slice(None))
    return {
        f"blocks_{side**2}_over_1": many / one,
        f"days_{len(long.days)}_over_16": year / few,
        "memory_many_over_one": peak_memory() / single,
    }


def peak_memory() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def processes(folder: Path, quick: bool) -> dict[str, float]:
    """Blocks a second of two processes over those of one, by the clock; nothing where two cores are not idle."""
    busy = psutil.cpu_percent(3) / 100 * cores()
    if cores() < 2 or busy > 0.2:
        out.print(f"two processes are not measured: of {cores()} cores {busy:.1f} are busy", style="yellow")
        return {}
    size, tile = (512, 128) if quick else (1024, 256)
    place = Place.make(folder / "processes", size, EVERY + 1)
    method, spent = make("stfgan", BANDS), []
    for count in (1, 2):
        fusing = place.tasks(f"fused-{count}", method, tile, place.days[:EVERY], EVERY)
        with connect(workers=count) as client:
            warm, rest = fusing.pending[:4], fusing.pending[4:]
            list(run(fusing.job.write_tasks(fusing.target, warm), client))
            begun = time.perf_counter()
            list(run(fusing.job.write_tasks(fusing.target, rest), client))
            spent.append(time.perf_counter() - begun)
    return {"two_processes_over_one": spent[0] / spent[1]}


# ---------------------------------------------------------------- loading


def loading(folder: Path, quick: bool) -> dict[str, float]:
    """Cubes from local images, against the slower of GDAL (reading, warping) and codec, for Landsat and for MODIS."""
    world = simulate.World(size=128 if quick else 1024, start=START, days=12)
    source = catalog.open_catalog(str(simulate.ensure_world(world, folder / "world") / "catalog.toml"))
    found = {}
    for name, side, grid in (
        ("landsat", source.fine, world.grid),
        ("modis", source.coarse, coarse_grid(world.grid, RATIO)),
    ):
        scenes = catalog.search(side, world.area, START, world.last, CENTRE[0])
        days = sorted({scene.day for scene in scenes})
        cube = load.load(scenes, grid, side=side, bands=BANDS, days=days)
        target = folder / f"loaded-{name}.zarr"
        layout = store.dataset_layout(cube, grid, BANDS, tile=1024, run=1 if name == "landsat" else EVERY)
        pending = store.prepare(target, layout, {})

        def write(cube: Any = cube, target: Path = target, layout: Any = layout, pending: Any = pending) -> None:
            for task in store.write_tasks(cube, target, layout, pending):
                task.compute(scheduler="synchronous")

        whole = seconds(write, 1)
        gdal = seconds(lambda scenes=scenes, grid=grid: _warped(scenes, grid), 1)
        codec = codec_seconds(target, layout.variables)[0]
        found[f"loading_{name}"] = max(gdal, codec) / whole
    return found


def _warped(scenes: Sequence[Any], grid: Any) -> None:
    """All images of some scenes on a grid, by GDAL alone."""
    for scene in scenes:
        sensor = SENSORS[scene.sensor]
        for role in (*BANDS, *sensor.quality_roles(BANDS)):
            kind = load.RESAMPLING[sensor.kind] if role in BANDS else rasters.Resampling.nearest
            with rasterio.open(scene.href(role)) as source:
                if rasters.same_crs(source.crs.to_wkt(), grid.crs.epsg) and rasters.whole_shift(
                    source.transform, grid.affine
                ):
                    source.read(1)
                    continue
                options = {"tolerance": rasters.TOLERANCE, "XSCALE": 1, "YSCALE": 1, "SAMPLE_STEPS": "ALL"}
                height, width = grid.shape
                with WarpedVRT(
                    source, crs=f"EPSG:{grid.crs.epsg}", transform=grid.affine, width=width, height=height,
                    resampling=kind, **options,
                ) as warped:  # fmt: skip
                    warped.read(1)


# ---------------------------------------------------------------- all of it

PARTS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "network": network,
    "allocation": allocation,
    "sharing": lambda _, quick: sharing(quick),
    "halos": halos,
    "pipeline": pipeline,
    "profile": profile,
    "delta": delta,
    "flat": flat,
    "processes": processes,
    "loading": loading,
}


HEADLINES = (
    ("network_of_peak", "generators of full width, of the convolution peak", "at least 0.80"),
    ("sharing_gain", "16 days of a generator without sharing its fine half, over with it", "at least 4.0"),
    ("giving_back_over_keeping", "the shipped network with freed memory given back, as Dask has it, over kept", ""),
    ("pipeline_over_network", "cubes to a complete cube, over the generators alone, full width", "at most 1.15"),
    ("pipeline_over_network_shipped", "the same with the shipped weights (a quarter of the width)", ""),
    ("delta_of_codec", "codec alone over delta from cubes to a complete cube", "at least 0.35"),
    ("loading_landsat", "the slower of GDAL and codec alone, over cubes from local images: Landsat", "at least 0.70"),
    ("loading_modis", "the same of MODIS", "at least 0.70"),
    ("blocks_64_over_1", "a megapixel and day within 64 blocks, over one of them alone", "at most 1.10"),
    ("days_368_over_16", "the same of 368 days over 16 of them", "at most 1.10"),
    ("memory_many_over_one", "peak memory of the process after all of these, over that after one block", "1"),
    ("two_processes_over_one", "two processes over one, by the clock, two idle cores", "at least 1.8"),
    ("exact_halo_over_measured_1024", "exact halos over those measured for the weights, tiles of 1024", ""),
)
MILLION_KM2 = 1e12 / 30**2 / 1e6
"""Megapixels."""


def page(figures: dict[str, Any], plans: dict[str, Any]) -> str:
    """The figures as Markdown."""
    machine = figures["machine"]
    lines = [
        "# The engine",
        "`python -m benchmarks.engine` and `python -m benchmarks.plans` write this page. All are ratios of seconds of",
        "the processor within one run, on one thread, unless a clock is named.",
        "",
        f"Machine: {machine['processor']}, {machine['cores']} cores. A core does {machine['peak_gigamacs']:.0f}e9",
        f"multiply-adds a second in convolutions and copies {machine['copy_gigabytes']:.1f} GB/s.",
        f"torch {machine['torch']}, Python {machine['python']}.",
        "",
        "| | measured | wanted |",
        "|---|---|---|",
    ]
    for name, text, wanted in HEADLINES:
        value = f"{figures[name]:.2f}" if name in figures else "not measured"
        lines.append(f"| `{name}`: {text} | {value} | {wanted} |")
    if "profile" in figures:
        lines += ["", "## Where the time goes", "| one block of sixteen days | delta | stfgan |", "|---|---|---|"]
        shares = figures["profile"]
        lines += [
            f"| {stage} | {shares['delta'][stage]:.0%} | {shares['stfgan'][stage]:.0%} |" for stage in shares["delta"]
        ]
    lines += _costs(figures)
    if plans:
        lines += ["", "## Plans", "| run | blocks | plan, s | a task, ms | peak, MiB |", "|---|---|---|---|---|"]
        for name, found in plans.items():
            if name != "cluster":
                cells = f"{found['plan_seconds']:.1f} | {found['task_milliseconds']:.1f} | {found['peak_mib']:.0f}"
                lines.append(f"| {name} | {found['blocks']:,} | {cells} |")
        cluster = plans["cluster"]
        lines += [
            "",
            f"A task costs client and scheduler {cluster['scheduler_milliseconds']:.1f} ms; at most "
            f"{cluster['tasks_ahead']} are in the graph of two workers.",
        ]
    return "\n".join(lines) + "\n"


def _costs(figures: dict[str, Any]) -> list[str]:
    if "seconds_a_megapixel_and_day_shipped" not in figures:
        return []
    spent, size = figures["seconds_a_megapixel_and_day_shipped"], figures["bytes_a_pixel_and_day"]
    hours, result = spent * MILLION_KM2 * 365 / 3600, size * MILLION_KM2 * 365 / 1e6
    return [
        "",
        "## Cost of a million square kilometres and a year",
        f"With the shipped weights, six bands and tiles of 1024 pixels: {spent:.2f} s of a core a megapixel and day,",
        f"so **{hours:,.0f} core-hours**; {size:.1f} bytes a pixel and day, so **{result:.1f} TB** of result. With p",
        f"for a core-hour and s for a TB and month: {hours:,.0f} p, and {result:.1f} s a month. At p = 0.04 and",
        f"s = 23 (of large providers, in dollars) that is {hours * 0.04:,.0f} once, and {result * 23:,.0f} a month.",
        "Reading imagery over a network is not in it. GPU-hours are not measured.",
    ]


def command(
    to: Annotated[Path, typer.Option("--json", help="File of the figures.")] = RESULTS,
    only: Annotated[list[str] | None, typer.Option(help=f"Some parts: {', '.join(PARTS)}; others are kept.")] = None,
    quick: Annotated[bool, typer.Option(help="Small, to try the script: its figures mean little.")] = False,
) -> None:
    """Measure the engine against the machine it runs on."""
    if unknown := set(only or ()) - PARTS.keys():
        raise InputError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    compute_here(1)
    figures: dict[str, Any] = json.loads(to.read_text(encoding="utf-8")) if only and to.is_file() else {}
    figures["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": cores(),
        "peak_gigamacs": convolution_peak() / 1e9,
        "copy_gigabytes": memory_copy() / 1e9,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for name in only or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            begun = time.perf_counter()
            figures |= PARTS[name](Path(scratch), quick)
            out.print(f"{name}: {time.perf_counter() - begun:.0f} s by the clock", highlight=False)
        to.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if to == RESULTS:
        plans = RESULTS.with_name("plans.json")
        found = json.loads(plans.read_text(encoding="utf-8")) if plans.is_file() else {}
        PAGE.write_text(page(figures, found), encoding="utf-8")
    table = Table("figure", "value", box=None)
    for name, value in figures.items():
        if not isinstance(value, dict):
            table.add_row(name, f"{value:.3g}")
    out.print(table)


if __name__ == "__main__":
    main(command)
