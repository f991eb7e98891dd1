"""The methods of the literature beside STFGAN: accuracy on real and simulated land, speed, memory.

Accuracy: four triplets of the Salton Sea whose scores by compiled code of others are known, each of its days with its
neighbours as bracket, and days of demo worlds that nothing was made on. The protocol is fair: nothing acquired on the
target day or strictly between the bracketing days is used. Windows are 15 x 15 pixels on the Salton Sea, as in the
scores of others, and as they come on worlds.

Those with weights of their own are first trained a little, on worlds of seeds 1 to 4, and scored on the others.

Speed: one thread, a demo world, each method in a process of its own: sixteen days between two observations, and one.
Seconds are of the processor. Other work slows them down; ratios within a table hold better.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from affine import Affine
from odc.geo.geobox import GeoBox

from benchmarks.accuracy import SALTON, Case, Methods, Scene, given, salton, simulated
from pipelines.console import err, main, out
from stfgan_xr import store, training
from stfgan_xr.brackets import intervals, series, spectra
from stfgan_xr.checkpoint import read_config, shipped
from stfgan_xr.datasets import counts_dataset
from stfgan_xr.days import to_number
from stfgan_xr.files import as_folder
from stfgan_xr.grid import RATIO, Window, coarse_grid
from stfgan_xr.landscape import World
from stfgan_xr.learning import Recipe
from stfgan_xr.predictors import Predictor, cloud_reach, fitted, is_fitted, wants_archive
from stfgan_xr.predictors.methods import METHODS, make
from stfgan_xr.sensors import BANDS, from_reflectance
from stfgan_xr.simulate import world_of

TRIPLETS = tuple(
    tuple(date(2020, *day) for day in days)
    for days in (
        ((10, 2), (10, 12), (10, 22)), ((10, 7), (10, 17), (10, 27)),
        ((10, 2), (10, 22), (11, 11)), ((10, 2), (10, 27), (11, 21)),
    )
)  # fmt: skip
OTHERS = {"delta": 0.0364, "estarfm": 0.0376, "starfm": 0.0388, "fitfc": 0.0421, "linear": 0.0427}
"""Mean RMSE of the four triplets by compiled code of others."""
TARGETS = {"estarfm": 20, "starfm": 40, "fitfc": 15, "fsdaf": 30, "robot": 5}
"""Seconds a megapixel and day that a method may take, over sixteen days."""
FOR_ONE_DAY = {"estarfm": 108, "starfm": 358, "fitfc": 54}
"""Seconds a megapixel that compiled C++ takes for one day on one thread of the same kind of processor."""
SIZE, DAYS, FIRST = 512, 16, date(2020, 3, 1)
FINE_DAYS = tuple(FIRST + timedelta(days=n) for n in (-64, -48, -32, -16, 0, DAYS + 1, 33, 49, 65, 81))
COARSE_DAYS = tuple(sorted({*FINE_DAYS, *(FIRST + timedelta(days=n) for n in range(DAYS + 2))}))
PARTS = ("triplets", "nearest", "worlds", "rest", "speed")
CLASSES = (4, 8, 16, 40)
"""Of STARFM, on land at rest."""
RESULTS, DOCUMENT = Path(__file__).parent / "results" / "methods.json", Path(__file__).parent / "methods.md"


LITTLE = Recipe(
    gan="none", batch=4, patch=64, samples=48, region=128, optimiser="adam", learning_rate=1e-3, decay="cosine",
    span=(4, 64), average=0.99, seed=1,
)  # fmt: skip
LEARNED: dict[str, tuple[Recipe, int]] = {
    "spstfm": (replace(LITTLE, steps=80), 256),
    "stfdcnn": (replace(LITTLE, steps=150), 32),
    "stfnet": (replace(LITTLE, steps=150), 32),
    "ganstfm": (replace(LITTLE, steps=150, gan="lsgan"), 4),
}
"""How the methods with weights are trained, and their width."""
CORPUS = (1, 2, 3, 4)
"""Seeds of the worlds that they are trained on."""


def trained(corpus: Path, folder: Path) -> dict[str, Path]:
    """Weights of :data:`LEARNED` by name; what is finished in the folder is not trained again."""
    found, runs = {}, [corpus / f"run-{seed}" for seed in CORPUS]
    for name, (recipe, width) in LEARNED.items():
        out = folder / f"weights-{name}"
        found[name] = out / f"{name}.safetensors"
        if "withheld" in (read_config(out)["training"] if found[name].is_file() else {}):
            continue
        begun = time.process_time()
        cubes = [tuple(store.open_counts(run / f"{of}.zarr").load() for of in ("landsat", "modis")) for run in runs]
        worlds = [world_of(as_folder(run)) for run in runs]
        truths = [None if world is None else world.reflectance for world in worlds]
        facts = training.train(cubes, out, recipe, method=name, truths=truths, width=width)  # type: ignore[arg-type]
        spent = time.process_time() - begun
        err.print(f"{name}: trained in {spent:.0f} s, {facts['withheld']['rmse']}", highlight=False)
    return found


def methods(
    bands: tuple[str, ...], ratio: int, radius: int | None = None, weights: Mapping[str, Path] | None = None
) -> Mapping[str, Predictor]:
    """All methods by name, and one-sided ones from both sides; windows of a radius if it is given."""
    known = weights or {}
    found = {
        name: make(name, bands, known.get(name), ratio) for name in METHODS if name in known or name not in LEARNED
    }
    for name in ("starfm", "estarfm", "fitfc", "fsdaf"):
        if radius is not None:
            found[name] = replace(found[name], radius=radius)  # type: ignore[type-var]
    for name, pairs, title in (
        ("starfm", 1, "starfm, one pair"), ("fitfc", 2, "fitfc, both sides"), ("fsdaf", 2, "fsdaf, both sides"),
    ):  # fmt: skip
        found[title] = replace(found[name], pairs=pairs)  # type: ignore[type-var]
    return found


def groups(worlds: int, size: int, folder: Path, corpus: Path) -> dict[str, tuple[str, Callable[[], Iterable[Case]]]]:
    """What is scored: a title, and what gives its cases."""
    small: Methods = partial(methods, radius=7)
    found: dict[str, tuple[str, Callable[[], Iterable[Case]]]] = {}
    if SALTON.is_file():
        found = {
            "triplets": ("Salton Sea, four triplets, windows 15 x 15", partial(given, small, TRIPLETS)),
            "nearest": ("Salton Sea, each day from its neighbours, windows 15 x 15", partial(salton, small, True)),
        }
    title = f"{worlds} demo worlds of {size} pixels, six bands, windows as they come"

    def unseen() -> Iterable[Case]:
        return simulated(folder, worlds, size, BANDS, partial(methods, weights=trained(corpus, folder)))

    return found | {"worlds": (title, unseen)}


def at_rest(size: int) -> dict[str, float]:
    """RMSE of methods with windows on a world that does not change, seen without noise: what they blur themselves."""
    image = World(seed=301, size=size, start=FIRST - timedelta(days=90), days=200).reflectance(FIRST, BANDS)
    means = image.reshape(len(BANDS), size // RATIO, RATIO, size // RATIO, RATIO).mean((2, 4))
    days = [FIRST + timedelta(days=number) for number in (0, 4, 8)]
    grid = GeoBox((size, size), Affine(30, 0, 0, 0, -30, 0), "EPSG:32650")
    fine, coarse = (
        series(counts_dataset(np.stack([from_reflectance(part)] * len(on)), BANDS, box, on))
        for part, box, on in ((image, grid, days[::2]), (means, coarse_grid(grid), days))
    )
    scene = Scene("at rest", fine, coarse, RATIO, methods)
    tried = {name: make(name, BANDS) for name in ("estarfm", "fitfc", "fsdaf", "delta")}
    for count in CLASSES:
        tried[f"starfm, {count} classes"] = replace(make("starfm", BANDS), classes=count)  # type: ignore[type-var]
    middle = to_number(days[1])
    found = {name: scene.predict(method, fine.days, middle)[1] for name, method in tried.items()}
    return {name: float(np.sqrt(((given - image) ** 2).mean())) for name, given in found.items()}


def region(folder: Path, size: int) -> Path:
    """A demo world: observations at both ends of seventeen days and eight before and after these, and the coarse image
    of the days between and of all observations."""
    path, draw = folder / "region.npz", np.random.default_rng(0)
    world = World(seed=301, size=size, start=FIRST - timedelta(days=90), days=200)
    fine, coarse = [], []
    for day in COARSE_DAYS:
        image = world.reflectance(day, BANDS)
        if day in FINE_DAYS:
            fine.append(image + draw.normal(0, 0.005, image.shape))
        means = image.reshape(len(BANDS), size // RATIO, RATIO, size // RATIO, RATIO).mean((2, 4))
        coarse.append(means + draw.normal(0, 0.003, means.shape))
    np.savez(path, fine=from_reflectance(np.stack(fine)), coarse=from_reflectance(np.stack(coarse)))
    return path


def measure(name: str, path: Path) -> dict[str, float]:
    """Seconds of a method a megapixel and day, and the peak memory of this process."""
    torch.set_num_threads(1)
    with np.load(path) as stored:
        images = [stored["fine"], stored["coarse"]]
    size = images[0].shape[-1]
    grid = GeoBox((size, size), Affine(30, 0, 0, 0, -30, 0), "EPSG:32650")
    fine, coarse = (
        series(counts_dataset(image, BANDS, box, on))
        for image, box, on in zip(images, (grid, coarse_grid(grid)), (FINE_DAYS, COARSE_DAYS), strict=True)
    )
    method = make(name, BANDS)
    if is_fitted(method):
        method = fitted(method, spectra(fine))
    targets = [to_number(FIRST + timedelta(days=number)) for number in range(1, DAYS + 1)]
    window = Window(0, size, 0, size)
    more = {"archive": wants_archive(method), "cloud_reach": cloud_reach(method)}
    interval = next(intervals(fine, coarse, window, targets, method.halo, RATIO, **more))
    begun = time.process_time()
    prepared = method.prepare(interval.bracket)
    between = time.process_time()
    # Four days at once, as blocks do.
    for first in range(0, DAYS, 4):
        method.predict(prepared, replace(interval.coarse, days=interval.days[first : first + 4]))
    ended = time.process_time()
    megapixels = size * size / 1e6
    each = (ended - between) / DAYS
    return {
        "sixteen_days": (ended - begun) / DAYS / megapixels,
        "one_day": (between - begun + each) / megapixels,
        "a_further_day": each / megapixels,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def speed(folder: Path, size: int, names: Iterable[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """:func:`measure` of methods, each in a process of its own."""
    path = region(folder, size)
    for name in names:
        command = [sys.executable, "-m", "benchmarks.methods", "--measure", name, "--region", str(path)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        found = json.loads(done.stdout)
        err.print(f"{name}: {found['sixteen_days']:.1f} s/Mpx/day", highlight=False)
        yield name, found


PREFACE = """\
# Methods of the literature beside STFGAN

`{command}`; weights {weights}. RMSE in reflectance; B is the better of linear and delta of each case in hindsight.
Nothing acquired on the target day or strictly between the bracketing days is used; `robot` also has the acquisitions
before and after these. Methods with weights of their own (`spstfm` to `ganstfm`) are on worlds only, trained for some
minutes. `starfm` takes both pairs, `fitfc` and `fsdaf` the nearer observation, as published; both sides:
weighted by closeness in time. Oracle: progress with the true mean of every cell; pick: in each pixel the best of
progress and both observations.

"""
REST = """\
`starfm` blurs by itself: an average over pixels whose band is within `2 std / classes` of the centre's, of which those
count most whose fine value is their coarse one. On land at rest, seen without noise, nothing but that is left. With the
usual four classes it is more than land changes in a few days, so that `persistence` is better on short brackets; it is
the formula's (`tests/literal.py`, pixel by pixel, gives the same), and falls faster than the number of classes grows.
Here sixteen are taken. `estarfm` corrects the centre's own value and blurs nothing.

"""
SPEED = """\
Windows as they come (51 x 51, `fitfc` and `fsdaf` 41 x 41); `robot` mixes ten acquisitions. C++: compiled code of
others. Peak memory is of the whole process, libraries included. Every method gives the pixels of the whole image in
any tiling (`tests/test_windowed.py`).

"""


def _means(cases: list[Case]) -> dict[str, float]:
    found = {name: float(np.mean([case.scores[name]["rmse"] for case in cases])) for name in cases[0].scores}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _accuracy_lines(key: str, found: dict[str, Any]) -> list[str]:
    cases = [Case(**case) for case in found["cases"]]
    lines = [f"## {found['title']}: {len(cases)} cases", ""]
    others = key == "triplets"
    each = [f"{case.day}" for case in cases] if len(cases) <= 9 else []
    columns = ["method", "mean RMSE", *(["code of others"] if others else []), "RMSE / B", *each]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, mean in _means(cases).items():
        ratio = np.mean([case.scores[name]["rmse"] / case.bar() for case in cases])
        known = [f"{OTHERS[name]:.4f}" if name in OTHERS else ""] if others else []
        single = [f"{case.scores[name]['rmse']:.4f}" for case in cases] if each else []
        lines.append("| " + " | ".join([name, f"{mean:.4f}", *known, f"{ratio:.3f}", *single]) + " |")
    return [*lines, ""]


def document(results: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = PREFACE.format(command=results["command"], weights=results["weights"][:12]).splitlines()
    for key, found in results["accuracy"].items():
        lines += _accuracy_lines(key, found)
    if results.get("rest"):
        lines += ["## Land at rest: RMSE of one image of a demo world between two that are the same", ""]
        lines += [*REST.splitlines(), "| method | RMSE |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in results["rest"].items()] + [""]
    if results["speed"]:
        side = results["size"]
        lines += [
            f"## Speed and memory: {side} x {side} pixels, six bands, one thread, CPU seconds a megapixel and day", "",
            *SPEED.splitlines(),
            "| method | over sixteen days | at most | one day alone | C++, one day | a further day | peak MiB |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name, row in ((name, results["speed"][name]) for name in METHODS if name in results["speed"]):
            target, other = (str(table.get(name, "")) for table in (TARGETS, FOR_ONE_DAY))
            lines.append(
                f"| {name} | {row['sixteen_days']:.2f} | {target} | {row['one_day']:.1f} | {other} | "
                f"{row['a_further_day']:.2f} | {row['peak_mib']:.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


def command(
    worlds: Annotated[int, typer.Option(min=0, help="Demo worlds, seeds from 301 on.")] = 4,
    size: Annotated[int, typer.Option(min=64, help="Pixels along a world.")] = 128,
    side: Annotated[int, typer.Option(min=64, help="Pixels along the region of the speed.")] = SIZE,
    folder: Annotated[Path | None, typer.Option(help="Where worlds are kept between runs.")] = None,
    corpus: Annotated[Path, typer.Option(help="Cubes of worlds to train on, by benchmarks/weights.sh.")] = Path(
        "build/corpus"
    ),
    measure_: Annotated[str | None, typer.Option("--measure", help="One method in this process, as JSON.")] = None,
    region_: Annotated[Path | None, typer.Option("--region", help="Of --measure.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Of the speed: some methods; the others are kept.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts of {', '.join(PARTS)}; the others are kept.")] = None,
) -> None:
    """Compare all methods and write benchmarks/methods.md."""
    if measure_ is not None and region_ is not None:
        print(json.dumps(measure(measure_, region_)))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"accuracy": {}, "speed": {}}
    results |= {"command": "python -m benchmarks.methods", "weights": read_config(shipped())["sha256"]}
    with tempfile.TemporaryDirectory() as scratch:
        for key, (title, cases) in groups(worlds, size, folder or Path(scratch), corpus).items():
            if key in (only or PARTS):
                results["accuracy"][key] = {"title": title, "cases": [asdict(case) for case in cases()]}
                _write(results)
        if "rest" in (only or PARTS):
            results["rest"] = at_rest(size)
            _write(results)
        if "speed" in (only or PARTS):
            results["size"] = side
            for name, row in speed(Path(scratch), side, method or [name for name in METHODS if name not in LEARNED]):
                results["speed"][name] = row
                _write(results)
    out.print(DOCUMENT.read_text(encoding="utf-8"), markup=False)


def _write(results: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(document(results), encoding="utf-8")


if __name__ == "__main__":
    main(command)
