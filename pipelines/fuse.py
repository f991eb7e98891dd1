"""The main command: from an area and dates to a daily Landsat-like cube."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import cubes, updates
from pipelines.console import Log, Steps, main, one_of, out
from pipelines.imagery import RUN, Request, Source, make_request, open_source, recorded_days, with_days
from pipelines.limits import check_disk, check_memory, size
from pipelines.summary import REPORT, write_report
from stfgan_xr import __version__, fusion, store
from stfgan_xr import days as calendar
from stfgan_xr.cluster import compute_here, cores
from stfgan_xr.deployments import model_sent, versions
from stfgan_xr.errors import InputError, NothingToDo
from stfgan_xr.files import Folder, LocalFolder, as_folder
from stfgan_xr.grid import describe
from stfgan_xr.lease import Lease, held
from stfgan_xr.predictors import with_spread
from stfgan_xr.predictors.methods import METHODS, make
from stfgan_xr.predictors.uncertainty import calibrated
from stfgan_xr.region import Region

if TYPE_CHECKING:
    import xarray as xr

    from stfgan_xr.predictors import Predictor

Method = Annotated[
    str,
    typer.Option(help=f"One of {', '.join(METHODS)}.", autocompletion=one_of(METHODS), rich_help_panel=cubes.METHOD),
]
Model = Annotated[
    Path | None,
    typer.Option(help="Trained weights (.safetensors). Default: those of the package.", rich_help_panel=cubes.METHOD),
]


TILE = 1024
CUBES = ("landsat.zarr", "modis.zarr", "fused.zarr")
GUARD_BLOCKS = 20
"""Blocks of withheld acquisitions that --guard compares."""


@dataclass(frozen=True)
class Run:
    """A run folder and what is done in it.

    Attributes
    ----------
    model
        SHA-256 of the weights that were asked for; those of the predictor may be adapted from them.
    adapt
        Minutes that they are adapted for, if they are.
    guard
        Whether weights must beat their anchor on the run's own withheld acquisitions, or it is used.
    spread
        Whether the cube tells by how much predictions from before and from after differ.
    """

    folder: Folder
    request: Request
    method: str
    predictor: Predictor
    keep_observed: bool
    tile: int = TILE
    uncertainty: bool = False
    model: str | None = None
    adapt: float | None = None
    guard: bool = False
    spread: bool = False

    def identity(self) -> dict[str, Any]:
        """Parameters that must be the same for the folder to be gone on with."""
        return self.request.identity() | {
            "method": self.method,
            "model": self.model,
            "adapt": self.adapt,
            "guard": self.guard,
            "keep_observed": self.keep_observed,
            "uncertainty": calibrated(self.predictor).uncertainty.digest if self.uncertainty else None,
            **({"spread": True} if self.spread else {}),
        }

    @property
    def result(self) -> Folder:
        """The fused cube."""
        return self.folder / "fused.zarr"

    def job(self, landsat: xr.Dataset, modis: xr.Dataset) -> fusion.Job:
        """The fusion of two cubes, laid out: in blocks of the cube that is there, of few days if it is to grow."""
        predictor = with_spread(self.predictor) if self.spread else self.predictor
        job = fusion.plan(
            landsat, modis, predictor, self.request.days,
            bracket_days=self.request.bracket_days, keep_observed=self.keep_observed,
            uncertainty=self.uncertainty, tile=self.tile,
        )  # fmt: skip
        if store.is_there(self.result):
            days = store.layout_facts(self.result)["run"]
        elif self.request.period is not None:
            days = store.INNER_DAYS
        else:
            return job
        return replace(job, layout=replace(job.layout, run=days))

    def document(self, **more: Any) -> dict[str, Any]:
        """What ``run.json`` holds."""
        days = [day.isoformat() for day in self.request.days]
        facts = {"request": self.identity(), "dates": days, "stfgan_xr": __version__, "versions": versions()}
        return facts | more


def _show_plan(run: Run, source: Source) -> None:
    job = run.job(source.landsat, source.modis)
    layouts = {name: layout for name, (_, layout) in cubes.cube_layouts(source).items()} | {"fused.zarr": job.layout}
    acquired = source.acquired
    out.print(f"area    {describe(source.grid)}")
    out.print(f"days    {calendar.describe(run.request.days)}, at most {len(acquired) + 1} intervals")
    out.print(f"Landsat {len(acquired)} days with imagery" + (f", {calendar.describe(acquired)}" if acquired else ""))
    out.print(f"MODIS   {len(source.modis['time'])} days of {source.modis.odc.geobox.shape.x} x "
              f"{source.modis.odc.geobox.shape.y} cells")  # fmt: skip
    out.print(f"method  {run.method}, halo {run.predictor.halo.fine} pixels and {run.predictor.halo.coarse} cells")
    if run.adapt is not None:
        out.print(f"adapt   {run.adapt:g} minutes of training first")
    for name, layout in layouts.items():
        count = sum(1 for _ in layout.blocks())
        out.print(f"write   {name:13s}{count:6d} blocks of {layout.run} days, {size(layout.size())} before compression")
    out.print(f"memory  about {size(job.memory())} a worker")
    out.print("nothing was written; without --plan it is done")


def _say_done(run: Run, coverage: float, of: str) -> None:
    out.print(f"done: {run.result}, {calendar.describe(run.request.days)}, {coverage:.1%} of the {of} have a value")
    out.print(f"open it with  stfgan_xr.open_cube({str(run.result)!r})", markup=False, soft_wrap=True)
    out.print(f"look at it with  python -m pipelines.view {run.folder}", markup=False, soft_wrap=True)


def _coverage(path: Folder) -> float:
    """Share of the pixels of the area that have a value, from the records of the blocks."""
    records = store.records(path)
    return float(sum(r["valid"] for r in records) / max(sum(r["pixels"] for r in records), 1))


def _finished(run: Run, document: dict[str, Any]) -> bool:
    if document.get("status") != "complete" or not store.is_complete(run.result):
        return False
    if run.request.period is not None or recorded_days(document) != run.request.days:
        return False
    # Cubes that were deleted to save space are not missed, those that are unfinished are.
    if not all(store.is_complete(cube) for name in CUBES if store.is_there(cube := run.folder / name)):
        return False
    _refuse_empty(run, document["coverage"])
    out.print(f"nothing to do: {run.result} is complete for {calendar.describe(run.request.days)}")
    return True


def _refuse_empty(run: Run, coverage: float) -> None:
    if coverage == 0:
        raise NothingToDo(
            f"{run.result}: no pixel has a clear Landsat observation within {run.request.bracket_days} days and MODIS; "
            "widen --bracket-days or choose other --dates"
        )


def _adapted(run: Run, landsat: xr.Dataset, modis: xr.Dataset, ratio: int) -> tuple[Run, dict[str, Any]]:
    """The run with the better weights, its own or those adapted to its acquisitions, and what was found."""
    from stfgan_xr.predictors.stfgan import STFGAN
    from stfgan_xr.training import adapt

    assert isinstance(run.predictor, STFGAN)
    assert isinstance(run.folder, LocalFolder)
    assert run.adapt is not None
    compute_here(cores())
    folder = run.folder.path / "adapted"
    with Steps("adapting") as shown:
        found = adapt(
            [(landsat, modis)], run.predictor.path, folder, run.adapt, bands=run.request.bands, progress=shown
        )
    out.print(f"adapted weights are {'' if found['used'] else 'not '}used: {found['why']}", markup=False)
    if "withheld" in found:
        names = {"stfgan": "adapted", "from": "not adapted"}
        scores = ", ".join(f"{names.get(name, name)} {rmse:.4f}" for name, rmse in found["withheld"]["rmse"].items())
        out.print(f"RMSE on the withheld days ({found['withheld']['blocks']} blocks): {scores}")
    if found["used"]:
        run = replace(run, predictor=make(run.method, run.request.bands, folder / "stfgan.safetensors", ratio))
    return run, {"adaptation": found}


def _guarded(run: Run, landsat: xr.Dataset, modis: xr.Dataset, ratio: int) -> tuple[Run, dict[str, Any]]:
    """The run with progress in place of weights that do not beat it on withheld acquisitions, and what was found."""
    from stfgan_xr import gate, training
    from stfgan_xr.predictors.stfgan import STFGAN

    assert isinstance(run.predictor, STFGAN)
    compute_here(cores())
    places = training.corpus([(landsat, modis)], run.request.bands)
    scores = gate.compare(run.predictor, places, blocks=GUARD_BLOCKS)
    rmse, known = scores["rmse"], scores["blocks"] > 0
    used = not known or rmse["stfgan"] < rmse["progress"]
    values = ", ".join(f"{name} {value:.4f}" for name, value in rmse.items())
    what = (
        f"RMSE on withheld days ({scores['blocks']} blocks): {values}" if known else "no withheld day is clear enough"
    )
    out.print(f"{what}; {'the weights are' if used else 'progress is'} used", highlight=False)
    if not used:
        run = replace(run, method="progress", predictor=make("progress", run.request.bands, ratio=ratio))
    return run, {"guard": {"used": "stfgan" if used else "progress", "withheld": scores}}


def _execute(run: Run, source: Source, crew: cubes.Crew) -> dict[str, Any]:
    """Write what is missing of the cubes; what is to be said of it in ``run.json``."""
    states = cubes.write_cubes(source, run.folder, crew)
    landsat, modis = open_inputs(run.folder)
    asked, facts = run.identity(), dict[str, Any]()
    for wanted, step in ((run.adapt is not None, _adapted), (run.guard, _guarded)):
        if wanted:
            run, found = step(run, landsat, modis, source.ratio)
            facts |= found
    state = write_fused(run, asked, source, states, crew)
    return facts | {"cubes": states | {"fused.zarr": state}, "weights": str(getattr(run.predictor, "path", "")) or None}


def open_inputs(folder: Folder) -> tuple[xr.Dataset, xr.Dataset]:
    """The Landsat and MODIS cubes of a run folder."""
    return store.open_cube(folder / CUBES[0]), store.open_cube(folder / CUBES[1])


def write_fused(
    run: Run, asked: dict[str, Any], source: Source, states: dict[str, dict[str, Any]], crew: cubes.Crew
) -> dict[str, Any]:
    """Write what is missing of the fused cube; its state.

    Parameters
    ----------
    run
        With the method and weights that are used.
    asked
        Identity of the run as it was asked for.
    source
        Its imagery.
    states
        Of the cubes of the imagery.
    crew
        Who does it.
    """
    job, result = run.job(*open_inputs(run.folder)), run.result
    identity = asked | {"used": run.method, "model": getattr(run.predictor, "sha256", None)}
    attributes = {"title": f"Daily Landsat-like reflectance by {run.method}", "source": json.dumps(source.origin)}
    there = store.is_there(result)
    had = store.days_of(result) if there else []
    changes = updates.note_inputs(run.folder, result) if there else []
    with model_sent(crew.client, run.predictor):
        stale, compared = updates.stale_blocks(job, result, changes, crew) if there else ({}, 0)
        pending = store.prepare(result, job.layout, identity, attributes, source.region, stale)
        if not there:
            updates.note_inputs(run.folder, result)
        written = updates.describe_blocks(job.layout, pending, stale, had)
        crew.changes["fused.zarr"] = written | {"compared": compared}
        tasks = job.write_tasks(result, pending, crew.permit)
        cubes.write_blocks("fused.zarr", tasks, pending, job.layout, crew, f"fused.zarr ({run.method})")
    crew.refuse_failed(run.folder)
    updates.forget_versions(run.folder, result)
    days = fusion.provisional(store.records(result), job.layout, run.request.bracket_days, source.until)
    facts = {
        "inputs": {name: state["sha256"] for name, state in states.items()},
        "provisional": [day.isoformat() for day in days],
    }
    return store.seal(result, facts, attributes)


def _minutes(adapt: bool, minutes: float | None, method: str, folder: Folder) -> float | None:
    """How long weights are to be adapted, None if they are not."""
    if minutes is not None and not adapt:
        raise InputError("--adapt-minutes goes with --adapt")
    if not adapt:
        return None
    if method != "stfgan":
        raise InputError(f"--adapt goes with stfgan, not with {method}; leave it out")
    if not isinstance(folder, LocalFolder):
        raise InputError(f"--adapt: training needs a local run folder, not {folder}")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise InputError(f"--adapt-minutes {minutes}: must be positive")
    return 5.0 if minutes is None else minutes


def _opened(run: Run, model: Path | None, keep: bool = True) -> tuple[Run, Source]:
    """The run with a method for the ratio of its imagery, which is found."""
    source = open_source(run.request, run.folder, keep=keep)
    return replace(run, predictor=make(run.method, run.request.bands, model, source.ratio)), source


def _with_days(run: Run, document: dict[str, Any]) -> Run:
    """The run with the days that it is to have now.

    Raises
    ------
    InputError
        If it cannot be given these, or its weights depend on what it holds.
    """
    request, stored = with_days(run.request, document), recorded_days(document)
    if stored and stored != request.days:
        _refuse_choice(run)
    return replace(run, request=request)


def _refuse_choice(run: Run) -> None:
    if run.adapt is not None or run.guard:
        raise InputError(
            "--adapt and --guard choose weights by what a run holds, which changes with each day that is added: train "
            "them once with pipelines.train and name them with --model"
        )


def _write(
    run: Run, model: Path | None, lease: Lease, staff: cubes.Staff, nights: list[dict[str, Any]], report: bool
) -> tuple[float, Region | None]:
    """Write what is missing of the run, or others now; the share of its pixels that have a value, and its area."""
    started = time.monotonic()
    run, source = _opened(run, model)
    job = run.job(source.landsat, source.modis)
    layouts = {name: layout for name, (_, layout) in cubes.cube_layouts(source).items()}
    check_disk(run.folder, layouts | {"fused.zarr": job.layout})
    need = job.memory()
    with staff.gathered(run.folder, lease, need) as crew:
        check_memory(job, staff.count(need), crew.client, own=staff.own)
        # Not before all that may refuse it: it says what the folder is for.
        document = run.document(status="writing", nights=nights, **source.origin)
        run.folder.write_json(RUN, document)
        with cubes.noting_failures(run.folder, document, crew):
            facts = _execute(run, source, crew)
        coverage = _coverage(run.result)
        nights = [*nights, updates.night(crew, facts["cubes"]["fused.zarr"]["provisional"])][-updates.NIGHTS :]
        facts |= {"status": "complete", "coverage": coverage, "nights": nights}
        run.folder.write_json(RUN, run.document(**facts, **source.origin))
        written = any(changes["blocks"] for changes in crew.changes.values())
        if run.request.period is not None or len(nights) > 1:
            updates.say_night(nights[-1])
        if report and coverage > 0 and (written or run.folder.read(REPORT) is None):
            seconds = time.monotonic() - started
            write_report(run.folder, {"seconds of the last command that wrote to it": f"{seconds:,.0f}"}, crew)
    return coverage, source.region


def command(
    dates: cubes.Dates = None,
    aoi: cubes.Aoi = None,
    catalog: cubes.CatalogName = None,
    coarse_catalog: cubes.CoarseCatalogName = None,
    pairs: cubes.PairsFile = None,
    out_folder: cubes.Out = "run",
    method: Method = METHODS[0],
    model: Model = None,
    bands: cubes.Bands = None,
    crs: cubes.Crs = None,
    bracket_days: cubes.BracketDays = 64,
    collections: cubes.Collections = None,
    max_cloud: cubes.MaxCloud = None,
    allow_missing: cubes.AllowMissing = False,
    bandpass: cubes.Bandpass = False,
    keep_observed: Annotated[
        bool,
        typer.Option(
            help="Where Landsat saw the ground that day, take what it saw; or else predict that too.",
            rich_help_panel=cubes.METHOD,
        ),
    ] = True,
    spread: Annotated[
        bool,
        typer.Option(
            "--spread",
            help="Add spread_BAND: by how much the predictions from before and from after differ.",
            rich_help_panel=cubes.METHOD,
        ),
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty", help="Add the standard deviation of every pixel, std_BAND.", rich_help_panel=cubes.METHOD
        ),
    ] = False,
    adapt: Annotated[
        bool,
        typer.Option(
            "--adapt",
            help="First train the weights further on the run's own Landsat, and use those only if they are better.",
            rich_help_panel=cubes.METHOD,
        ),
    ] = False,
    adapt_minutes: Annotated[
        float | None, typer.Option(help="How long, with --adapt. Default: 5.", rich_help_panel=cubes.METHOD)
    ] = None,
    guard: Annotated[
        bool,
        typer.Option(
            "--guard",
            help="Use the method progress if it is better than the weights on withheld days of the run's own Landsat.",
            rich_help_panel=cubes.METHOD,
        ),
    ] = False,
    tile: Annotated[
        int,
        typer.Option(
            min=64,
            max=8192,
            help="Largest side of a block in Landsat pixels: smaller needs less memory.",
            rich_help_panel=cubes.RUNNING,
        ),
    ] = TILE,
    workers: cubes.Workers = None,
    scheduler: cubes.Scheduler = None,
    cluster: cubes.ClusterKind = None,
    block_minutes: cubes.BlockMinutes = cubes.BLOCK_MINUTES,
    report: Annotated[
        bool, typer.Option(help="Write report.html, the run in one page, at the end.", rich_help_panel=cubes.RUNNING)
    ] = True,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Show what would be read, computed and written, and stop.", rich_help_panel=cubes.RUNNING
        ),
    ] = False,
    overwrite: cubes.Overwrite = False,
    log: Log = "text",
) -> None:
    """Fuse Landsat and MODIS into a Landsat-like image of every day of an area.

    To try it, without an account: `python -m pipelines.fuse --catalog demo --dates 2020-03-01/2020-03-31 --out demo`

    For an area of your own: `python -m pipelines.fuse --aoi area.geojson --dates 2020-01-01/2020-01-31 --out run`. Add
    `--plan` first to see what it would read, compute and write. Look at the result with `python -m pipelines.view run`.

    The run folder holds area.geojson, items.json, landsat.zarr, modis.zarr, fused.zarr, run.json and report.html,
    overviews/ of large areas, and adapted/ with --adapt. The same command again resumes; a finished run is left alone;
    other parameters on the same folder are refused. More days at the end are added to a run. With --dates P30D the same
    command every night adds the new days, and makes again what late, reprocessed or later imagery changes.
    """
    staff = cubes.Staff(workers, scheduler, cluster, block_minutes)
    if method not in METHODS:
        raise InputError(f"--method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    request = make_request(
        dates, aoi, catalog, coarse_catalog, pairs, bands, crs, bracket_days, collections, max_cloud,
        allow_missing, bandpass,
    )  # fmt: skip
    folder, predictor = as_folder(out_folder), make(method, request.bands, model)
    minutes = _minutes(adapt, adapt_minutes, method, folder)
    own = getattr(predictor, "sha256", None)
    if guard and (method != "stfgan" or uncertainty):
        raise InputError("--guard goes with stfgan and without --uncertainty, which progress does not have")
    if spread:
        with_spread(predictor)  # refused before anything is searched
    run = Run(folder, request, method, predictor, keep_observed, tile, uncertainty, own, minutes, guard, spread)
    folder.check()
    document = {} if overwrite else cubes.check_folder(folder, run.identity())
    if request.period is None:
        run = _with_days(run, document)
    else:
        _refuse_choice(run)
    if _finished(run, document):
        if report and folder.read(REPORT) is None:
            write_report(folder)
        return
    if plan:
        _show_plan(*_opened(_with_days(run, document), model, keep=False))
        return
    with held(folder) as lease:
        # What it held may have changed before it was ours.
        document = cubes.check_folder(folder, run.identity(), overwrite)
        run = _with_days(run, document)
        if _finished(run, document):
            return
        coverage, region = _write(run, model, lease, staff, document.get("nights", []), report)
    _refuse_empty(run, coverage)
    _say_done(run, coverage, "pixels" if region is None else "pixels in the area")


if __name__ == "__main__":
    main(command)
