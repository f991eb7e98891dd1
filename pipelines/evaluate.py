"""How good the methods are: withheld Landsat days, given triplets, or the truth of a simulated world."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import xarray as xr
from rich import box
from rich.table import Table as Drawn

from pipelines.console import AGAIN, err, main, one_of, out
from pipelines.report import TRUTH_DAYS, facts
from stfgan_xr import changes, evaluation, fusion, reporting, store
from stfgan_xr.benchmarks import NAMES as SETS
from stfgan_xr.benchmarks import Benchmark, Split, read_benchmark
from stfgan_xr.brackets import band_names
from stfgan_xr.checkpoint import read_config
from stfgan_xr.errors import InputError, NothingToDo
from stfgan_xr.files import Folder, as_folder, check_file, write_json, write_text
from stfgan_xr.grid import Halo, ratio_of
from stfgan_xr.predictors import Bracket, CoarseWindow, Prediction, memory_of
from stfgan_xr.predictors.methods import METHODS, TRAINED, USUAL, make
from stfgan_xr.predictors.uncertainty import known
from stfgan_xr.simulate import world_of

if TYPE_CHECKING:
    from stfgan_xr.landscape import World
    from stfgan_xr.predictors import Predictor

SHOWN = ("rmse", "skill", "cc", "ssim", "sam", "ergas", "bias")
ALL = "all"
"""Named as a method: every one there is, with what each costs."""
FROM, COMPARED, WRITTEN = "What to score on", "Methods", "What to write"
"""Panels of --help."""
BLOCK = 1024
"""Pixels along the block whose memory is stated."""


@dataclass
class Clock:
    """Seconds that a method took, and the megapixels times days that it gave."""

    seconds: float = 0.0
    given: float = 0.0

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What some work gives; its time is added."""
        begun = time.perf_counter()
        found = work(*arguments)
        self.seconds += time.perf_counter() - begun
        return found


@dataclass(frozen=True, eq=False)
class Timed:
    """A method that counts its seconds, and is otherwise what it is."""

    predictor: Predictor
    clock: Clock = field(default_factory=Clock)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.predictor, name)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return self.predictor.bands

    @property
    def halo(self) -> Halo:
        """What it must see beyond a block."""
        return self.predictor.halo

    @property
    def fit(self) -> Callable[[Any], Timed]:
        """Of a method that is fitted before a run; others have none."""
        fit: Callable[[Any], Predictor] = self.predictor.fit  # type: ignore[attr-defined]
        return lambda spectra: Timed(self.clock.run(fit, spectra), self.clock)

    def prepare(self, bracket: Bracket) -> Any:
        """Everything that does not depend on the target day."""
        return self.clock.run(self.predictor.prepare, bracket)

    def predict(self, prepared: Any, coarse: CoarseWindow) -> Prediction:
        """The target days."""
        found: Prediction = self.clock.run(self.predictor.predict, prepared, coarse)
        self.clock.given += found.mean[:, 0].size / 1e6
        return found

    def cost(self) -> dict[str, float | str | None]:
        """Seconds a megapixel and day, MiB that it states for a block, and whether tiles show."""
        sides = (BLOCK + 2 * self.halo.fine,) * 2
        return {
            "seconds": self.clock.seconds / self.clock.given if self.clock.given else None,
            "memory_mib": memory_of(self.predictor, *sides, 1) / 2**20,
            # Halos of networks are measured: what lies beyond is less than a count.
            "tiles": "1 count" if hasattr(self.predictor, "sha256") else "the same",
        }


def _cubes(run: Folder | None, pairs: Path | None) -> tuple[xr.Dataset, xr.Dataset]:
    if (run is None) == (pairs is None):
        raise InputError("name a run folder, own rasters with --pairs, or a --benchmark; one of them")
    if pairs is not None:
        from stfgan_xr.datasets import read_pairs

        found = read_pairs(pairs)
        return found.landsat(), found.modis()
    assert run is not None
    return store.open_cube(run / "landsat.zarr"), store.open_cube(run / "modis.zarr")


def _models(models: Sequence[Path]) -> dict[str, Path]:
    """Weights by the method that they are of."""
    found: dict[str, Path] = {}
    for model in models:
        method = read_config(model)["method"]
        if method in found:
            raise InputError(f"--model: {found[method]} and {model} are both of {method}; give one")
        if method not in TRAINED:
            raise InputError(f"--model: {model} is of {method!r}; choose weights of {', '.join(TRAINED)}")
        found[method] = model
    return found


def _predictors(
    names: Sequence[str] | None, models: Mapping[str, Path], bands: tuple[str, ...], ratio: int
) -> dict[str, Predictor]:
    """The methods asked for; without any the usual ones and those of the weights given, STFGAN only if it can be.

    Of all methods those without weights are left out, too.
    """
    every = list(names or ()) == [ALL]
    if names and not every:
        unknown = [name for name in names if name not in METHODS]
        if unknown:
            raise InputError(f"--method {unknown[0]!r} is unknown; choose from {', '.join(METHODS)}")
        unused = sorted(models.keys() - set(names))
        if unused:
            raise InputError(f"--model: {models[unused[0]]} is of {unused[0]}, which is not among the methods named")
        return {name: make(name, bands, models.get(name), ratio) for name in names}
    found: dict[str, Predictor] = {}
    given = {name: make(name, bands, model, ratio) for name, model in models.items()}
    for name in METHODS if every else dict.fromkeys((*USUAL, *models)):
        try:
            made = given[name] if name in given else make(name, bands, None, ratio)
            found[name] = Timed(made) if every else made
        except InputError as error:
            err.print(f"{name} is left out: {error}", markup=False)
    return found


def _against_truth(run: Folder, world: World, predictors: Mapping[str, Predictor], count: int) -> evaluation.Table:
    """Scores of the run's own cube and of the other methods on days spread over it."""
    landsat, modis = _cubes(run, None)
    cube = store.open_cube(run / "fused.zarr")
    days = evaluation.spread(evaluation.fused_days(cube), count)
    document = json.loads(run.read("run.json") or b"")
    request = document["request"]
    weights = document.get("adaptation", {}).get("weights", request["model"])
    method = document.get("guard", {}).get("used", request["method"])
    bands = next(iter(predictors.values())).bands
    fused: dict[str, xr.Dataset] = {}
    for name, predictor in predictors.items():
        same = method == name and getattr(predictor, "sha256", weights) == weights
        options = {name: request[name] for name in ("bracket_days", "keep_observed")}
        lazy = fusion.fuse(landsat, modis, predictor, days, uncertainty=known(predictor) is not None, **options)
        stored = [variable for variable in (*bands, "qa", *(f"std_{band}" for band in bands)) if variable in cube]
        fused[name] = cube[stored] if same else lazy.compute()
    return evaluation.evaluate_truth(fused, world.reflectance, days, _classes(world, landsat, bands))


def _classes(world: World, landsat: xr.Dataset, bands: Sequence[str]) -> Any:
    abrupt, usable = world.abrupt(), evaluation.usable_days(landsat)

    def classes(day: date) -> Any:
        others = [world.reflectance(other, bands) for other in evaluation.around(usable, day) if other is not None]
        return changes.of_truth(abrupt, world.reflectance(day, bands), others)

    return classes


def _withheld(
    landsat: xr.Dataset, modis: xr.Dataset, predictors: Mapping[str, Predictor], triplets: str | None,
    benchmark: Benchmark | None,
) -> evaluation.Table:  # fmt: skip
    if benchmark is not None:
        cases = tuple(evaluation.Triplet(*case) for case in benchmark.split.cases)
    else:
        cases = evaluation.triplets_from_text(triplets) if triplets else evaluation.withheld(landsat)
    if not cases:
        raise NothingToDo("fewer than three acquisitions are clear enough to withhold one; name some with --triplets")
    return evaluation.evaluate_triplets(landsat, modis, predictors, cases)


def _show_split(split: Split) -> None:
    """Where the publication's training would not be fair to its own cases."""
    for case, days in split.violations.items():
        found = ", ".join(map(str, days))
        fair = f"the published training uses {found}, which is not fair" if days else "the published training is fair"
        out.print(f"{evaluation.Triplet(*case)}: {fair}", markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _draw(title: str, table: evaluation.Table, ratio_note: str) -> Drawn:
    drawn = Drawn(title=title, caption=ratio_note, title_justify="left", caption_justify="left")
    drawn.add_column("method")
    for name in SHOWN:
        drawn.add_column(name, justify="right")
    for method, result in table.items():
        drawn.add_row(method, *(_number(result.mean.get(name)) for name in SHOWN))
    return drawn


def _draw_cases(table: evaluation.Table) -> Drawn:
    drawn = Drawn(title="RMSE of each case", title_justify="left")
    drawn.add_column("day")
    for method in table:
        drawn.add_column(method, justify="right")
    first = next(iter(table.values()))
    for number, row in enumerate(first.rows):
        drawn.add_row(str(row.triplet or row.day), *(_number(r.rows[number].scores.rmse) for r in table.values()))
    return drawn


def _draw_parts(kind: str, found: Mapping[str, Any], counts: Mapping[str, int] | None = None) -> Drawn:
    """RMSE of parts, from means by method and part, with their pixels where these are counted."""
    drawn = Drawn(title=f"RMSE of each {kind}", title_justify="left")
    for name in (kind, *(["pixels"] if counts else []), *found):
        drawn.add_column(name, justify="left" if name == kind else "right")
    for part in next(iter(found.values())):
        count = [str(counts[part])] if counts else []
        drawn.add_row(part, *count, *(_number(means[part]["rmse"]) for means in found.values()))
    return drawn


def _draw_all(title: str, table: evaluation.Table, costs: Mapping[str, Mapping[str, Any]]) -> Drawn:
    """One row a method: RMSE, also of each class of change, and cost."""
    note = f"rmse also by class; s/Mpx of a day, here, where intervals have few; MiB: of {BLOCK} x {BLOCK} pixels"
    drawn = Drawn(
        title=title,
        caption=note,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    classes = list(next(iter(table.values())).class_means)
    for name in ("method", "rmse", *classes, "s/Mpx", "MiB", "tiles"):
        drawn.add_column(name, justify="left" if name in ("method", "tiles") else "right")
    for name, result in table.items():
        cost, means = costs[name], result.class_means
        seconds = "-" if cost["seconds"] is None else f"{cost['seconds']:.2f}"
        scores = (_number(result.mean.get("rmse")), *(_number(means[of]["rmse"]) for of in classes))
        drawn.add_row(name, *scores, seconds, f"{cost['memory_mib']:.0f}", cost["tiles"])
    return drawn


def _show(title: str, table: evaluation.Table, note: str) -> None:
    pixels = next(iter(table.values())).class_pixels
    out.print(_draw_cases(table))
    out.print(_draw_parts("band", {method: result.band_means for method, result in table.items()}))
    if pixels:
        out.print(_draw_parts("class", {method: result.class_means for method, result in table.items()}, pixels))
    out.print(_draw(title, table, note))


def command(
    run_folder: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Run folder of pipelines.fuse or pipelines.cubes; also s3://bucket/prefix."),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="pairs.toml of own rasters, instead of a run folder.", rich_help_panel=FROM)
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help=f"Public set instead of a run folder: {', '.join(SETS)}.", rich_help_panel=FROM)
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the benchmark set.", rich_help_panel=FROM)] = None,
    split: Annotated[
        str | None, typer.Option(help="Its cases: stfgan (cia, lgc), flood (lgc), leave-one-out.", rich_help_panel=FROM)
    ] = None,
    triplets: Annotated[
        str | None,
        typer.Option(help="Cases t1/tp/t2, a comma list. Default: leave each day out.", rich_help_panel=FROM),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One of {', '.join(METHODS)}; may be repeated. all: every one and its cost. "
            f"Default: {', '.join(USUAL)}.",
            autocompletion=one_of((*METHODS, ALL)),
            rich_help_panel=COMPARED,
        ),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="Weights of a method, which they state; may be repeated. Default: those of the package.",
            rich_help_panel=COMPARED,
        ),
    ] = None,
    bands: Annotated[str | None, typer.Option(help="Comma list of bands. Default: all.", rich_help_panel=FROM)] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to a file.", rich_help_panel=WRITTEN)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write all scores, their conventions and origin to a .html or .md file.", rich_help_panel=WRITTEN
        ),
    ] = None,
    truth: Annotated[
        bool, typer.Option(help="Score a simulated run against its truth (not with --triplets).", rich_help_panel=FROM)
    ] = True,
    picture: Annotated[
        Path | None, typer.Option(help="Write a PNG: before, fused days, truth, after.", rich_help_panel=WRITTEN)
    ] = None,
) -> None:
    """Score methods: on withheld Landsat days, on given triplets, or against the truth of the demo.

    For example `python -m pipelines.evaluate run --method all`: every method on the days of a run of your own.

    A case t1/tp/t2 uses the acquisitions of t1 and t2 and the coarse series only: nothing acquired on tp or between.
    Scores are means over bands of the pixels clear on all three days, in reflectance. With --benchmark the output says
    of which cases the published training sees the target or a day around it; pipelines.train does not.
    """
    render = reporting.renderer(report) if report is not None else None
    for path in (json_file, report, picture):
        if path is not None:
            check_file(path)
    if picture is not None and run_folder is None:
        raise InputError("--picture needs a run folder with a fused cube")
    run = as_folder(run_folder) if run_folder else None
    chosen = read_benchmark(benchmark, root, split) if benchmark or root or split else None
    if chosen is not None and (run or pairs or triplets):
        raise InputError("--benchmark goes alone: without a run folder, --pairs and --triplets")
    landsat, modis = chosen.testing() if chosen is not None else _cubes(run, pairs)
    names = tuple(part.strip() for part in bands.split(",")) if bands else band_names(landsat)
    absent = [name for name in names if name not in landsat]
    if absent:
        raise InputError(f"--bands: {absent[0]} is not there; choose from {', '.join(band_names(landsat))}")
    predictors = _predictors(method, _models(model or ()), names, ratio_of(landsat.odc.geobox, modis.odc.geobox))
    world = world_of(run) if truth and not triplets and run is not None else None
    if world is not None and run is not None:
        table = _against_truth(run, world, predictors, TRUTH_DAYS)
        title, note = "Means against the truth, all pixels", "skill: gain over the better of linear and delta"
    else:
        table = _withheld(landsat, modis, predictors, triplets, chosen)
        title, note = (
            "Means over the cases",
            "skill: gain over the better of linear and delta; ergas with h/l of the cubes",
        )
    costs = {name: predictor.cost() for name, predictor in predictors.items() if isinstance(predictor, Timed)}
    if costs:
        out.print(_draw_all(title, table, costs))
    else:
        _show(title, table, note)
    if chosen is not None and chosen.split.published:
        _show_split(chosen.split)
    if json_file is not None or report is not None:
        stated = facts(run, (landsat, modis), predictors, table, world)
        if json_file is not None:
            of_set = ({"benchmark": chosen.facts()} if chosen else {}) | ({"cost": costs} if costs else {})
            write_json(json_file, evaluation.to_json(table) | {"report": stated.to_json()} | of_set)
        if report is not None and render is not None:
            write_text(report, render(reporting.sections(table, stated)))
            out.print(f"report: {report}", markup=False, soft_wrap=True)
    if picture is not None and run is not None:
        _picture(picture, run, world)


def _picture(path: Path, run: Folder, world: World | None) -> None:
    from stfgan_xr.plots import run_picture

    landsat, cube = store.open_cube(run / "landsat.zarr"), store.open_cube(run / "fused.zarr")

    def image(day: date) -> Any:
        return None if world is None else world.reflectance(day, ("red", "green", "blue"))

    run_picture(path, landsat, cube, image if world is not None else None)
    out.print(f"picture: {path}")


if __name__ == "__main__":
    main(command, AGAIN)
