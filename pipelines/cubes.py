"""Imagery of an area and range of days as cubes: ``landsat.zarr`` and ``modis.zarr`` of a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import xarray as xr

from pipelines.console import Log, err, main, one_of, out, track
from pipelines.imagery import (
    AREA,
    COARSE_RUN,
    COARSE_TILE,
    RUN,
    Source,
    make_request,
    open_source,
    recorded_days,
    tile_of,
    with_days,
)  # fmt: skip
from pipelines.limits import check_disk
from stfgan_xr import overviews, scenes, store
from stfgan_xr.cluster import ATTEMPTS, Failed, connect, cores, memory_left, run
from stfgan_xr.deployments import KINDS, make_fit, model_sent, versions
from stfgan_xr.errors import IncompleteError, InputError
from stfgan_xr.files import Folder, as_folder
from stfgan_xr.grid import describe
from stfgan_xr.lease import LEASE, Lease, held, refuse_others
from stfgan_xr.scenes import ITEMS
from stfgan_xr.sensors import BANDS

if TYPE_CHECKING:
    from distributed import Client

    from stfgan_xr.fusion import Job


MOST_WORKERS = 8
"""Of a cluster that grows, unless --workers says how many."""
BLOCK_MINUTES = 240.0
"""Generous: a large block of a wide network on a few slow cores is no task that hangs."""
WHAT, IMAGERY, METHOD, RUNNING = "What", "Imagery", "Method", "Running"
"""Panels of --help."""


def _complete_catalog(incomplete: str) -> list[str]:
    from stfgan_xr.catalog import known_catalogs

    return one_of(known_catalogs())(incomplete)


Aoi = Annotated[
    str | None,
    typer.Option(
        help="Area: a GeoJSON file, or west,south,east,north in degrees. Default: of the demo, all of it.",
        rich_help_panel=WHAT,
    ),
]
Dates = Annotated[
    str | None,
    typer.Option(
        help="Days: one, START/END (both included) as 2020-01-01/2020-01-31, START/END/P8D (every eighth), a comma "
        "list, or P30D: the last thirty days that have MODIS, and on later nights those that came since. Needed unless "
        "--pairs is given.",
        rich_help_panel=WHAT,
    ),
]
CatalogName = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        help="Where to search: planetary-computer, nasa-lpcloud, earth-search, usgs-landsatlook, demo, or "
        "the path of a TOML of your own. Default: planetary-computer.",
        autocompletion=_complete_catalog,
        rich_help_panel=IMAGERY,
    ),
]
CoarseCatalogName = Annotated[
    str | None,
    typer.Option("--coarse-catalog", help="Where to search for MODIS, if elsewhere.", rich_help_panel=IMAGERY),
]
PairsFile = Annotated[
    Path | None,
    typer.Option(
        "--pairs", help="pairs.toml of your own co-registered rasters, instead of a catalog.", rich_help_panel=IMAGERY
    ),
]
Out = Annotated[
    str, typer.Option("--out", help="Run folder: a local one, or s3://bucket/prefix.", rich_help_panel=WHAT)
]
Bands = Annotated[
    str | None,
    typer.Option(
        help=f"Comma list of bands. Default: all ({','.join(BANDS)}, or those of --pairs).", rich_help_panel=WHAT
    ),
]
Crs = Annotated[
    str | None, typer.Option(help="Projected CRS, EPSG:n. Default: the UTM zone of the area.", rich_help_panel=IMAGERY)
]
BracketDays = Annotated[
    int,
    typer.Option(
        min=1,
        max=250,
        help="Landsat observations more days away from a day than this are not used.",
        rich_help_panel=IMAGERY,
    ),
]
Collections = Annotated[
    str | None,
    typer.Option(
        "--collections",
        help="Comma list of collections of either side (python -m pipelines.catalogs lists them).",
        rich_help_panel=IMAGERY,
    ),
]
MaxCloud = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        help="Landsat scenes of more cloud than this percentage are not used. Default: all are.",
        rich_help_panel=IMAGERY,
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Leave out scenes with an asset that is not there, and list them in run.json.",
        rich_help_panel=IMAGERY,
    ),
]
Bandpass = Annotated[
    bool,
    typer.Option(
        "--bandpass",
        help="Bring Landsat 7 and Sentinel-2 to the bands of OLI, by published coefficients (in run.json).",
        rich_help_panel=IMAGERY,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=4096,
        help="Worker processes; of a cluster that grows, the most of them. Default: one, where torch uses all cores; "
        f"with --cluster local as many as cores and memory allow, with others {MOST_WORKERS}.",
        rich_help_panel=RUNNING,
    ),
]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a running Dask scheduler, tcp://host:port.", rich_help_panel=RUNNING)
]
ClusterKind = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Start workers: local, cuda (one a GPU), slurm, pbs, lsf or sge (batch jobs), gateway, kubernetes. The "
        "last six take their options from Dask's own configuration.",
        autocompletion=one_of(KINDS),
        rich_help_panel=RUNNING,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete what the run folder holds and start again.", rich_help_panel=RUNNING)
]
BlockMinutes = Annotated[
    float,
    typer.Option(
        min=0.001,
        help=f"A block that takes longer is tried again; after {ATTEMPTS} times it is left out and reported.",
        rich_help_panel=RUNNING,
    ),
]


def cube_layouts(source: Source) -> dict[str, tuple[xr.Dataset, store.Layout]]:
    """The two cubes of a run by name, with their Datasets: one Landsat day, or sixteen MODIS days, a block."""
    coarse = source.modis.odc.geobox
    coarse_tile = store.tile_for((int(coarse.shape[0]), int(coarse.shape[1])), 1, COARSE_TILE)
    tile = tile_of(source.grid, source.ratio)
    fine = store.dataset_layout(source.landsat, source.grid, source.bands, tile=tile, run=1)
    fine = replace(fine, void=source.void)
    modis = store.dataset_layout(source.modis, coarse, source.bands, tile=coarse_tile, run=COARSE_RUN)
    return {"landsat.zarr": (source.landsat, fine), "modis.zarr": (source.modis, modis)}


def megapixels(layout: store.Layout) -> float:
    """Pixels of a typical block times its days, in millions."""
    height, width = (min(side, layout.tile) for side in layout.shape)
    return height * width * min(layout.run, len(layout.days)) / 1e6


@dataclass
class Crew:
    """Who does the work of a run, and what became of it.

    Attributes
    ----------
    client
        Workers; None: this process.
    minutes
        How long a block may take.
    lease
        Of the run folder, without which nothing more is written.
    failed
        Blocks that were given up, by cube.
    changes
        What was written, by cube.
    """

    client: Client | None = None
    minutes: float | None = None
    lease: Lease | None = None
    failed: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def permit(self) -> store.Permit | None:
        """What a worker asks before it writes: whether this run still holds the folder."""
        return None if self.lease is None else partial(refuse_others, self.lease.folder, self.lease.token)

    def refuse_failed(self, folder: Folder) -> None:
        """Raise :class:`IncompleteError` if blocks were given up."""
        if self.failed:
            count = sum(len(blocks) for blocks in self.failed.values())
            name, (first, *_) = next(iter(self.failed.items()))
            raise IncompleteError(
                f"{count} blocks failed {ATTEMPTS} times and are listed in {folder / RUN}, first {name} "
                f"{first['block']} ({first['why']}); the same command tries them again"
            )


def write_blocks(
    name: str, tasks: Iterable[Any], pending: Sequence[store.Block], layout: store.Layout, crew: Crew, label: str = ""
) -> None:
    """Run the tasks of a cube's blocks and show how far they are; those that are given up are noted."""
    if not pending:
        return
    failed = list[dict[str, str]]()
    results = run(tasks, crew.client, crew.minutes)
    for result in track(label or name, results, len(pending), megapixels(layout)):
        if crew.lease is not None:
            crew.lease.check()
        if isinstance(result, Failed):
            failed.append({"block": pending[result.number].name, "why": result.why})
            crew.failed[name] = failed


def _inputs(source: Source, name: str, layout: store.Layout) -> dict[str, dict[str, str]]:
    """By block and day what the block is made from: a digest of the scenes that touch it."""
    from stfgan_xr.load import footprint

    if name not in source.scenes:
        return {block.name: {} for block in layout.blocks()}
    bounds = {scene: footprint(scene, layout.grid) for day in layout.days for scene in source.scenes[name].get(day, ())}
    found, known = dict[str, dict[str, str]](), dict[tuple[Any, ...], str]()
    for block in layout.blocks():
        box = layout.grid[block.window.slices].boundingbox
        made = {}
        for day in layout.days[block.first : block.last]:
            touching = [s for s in source.scenes[name].get(day, ()) if (b := bounds[s]) and _overlap(b, box.bbox)]
            if touching:
                key = day, *(scene.id for scene in touching)  # most tiles see the same ones
                if key not in known:
                    known[key] = scenes.digest(touching, source.treated.get(day, ""))
                made[day.isoformat()] = known[key]
        found[block.name] = made
    return found


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def changes_of(before: dict[str, dict[str, Any]], inputs: dict[str, dict[str, str]], pending: Any) -> dict[str, Any]:
    """What a cube of imagery is given, for ``run.json``: days added, of them those that came late, days that became
    others, and those whose scenes are gone.

    Parameters
    ----------
    before
        The records that were there, by block.
    inputs
        What each block is made from now.
    pending
        The blocks that are written.
    """
    known = {day for record in before.values() for day in record.get("inputs", {})}
    added, changed, gone = set[str](), set[str](), set[str]()
    for block in pending:
        old, new = before.get(block.name, {}).get("inputs", {}), inputs[block.name]
        added |= new.keys() - known
        changed |= {day for day in (new.keys() | old.keys()) & known if new.get(day) != old.get(day)}
    everything = {day for made in inputs.values() for day in made}
    gone = {day for day in known if day not in everything}
    last = max(known, default="")
    found = {
        "added": sorted(added), "late": sorted(day for day in added if day < last), "changed": sorted(changed - gone),
        "withdrawn": sorted(gone),
    }  # fmt: skip
    return {"blocks": len(pending), "of": len(inputs), **{key: days for key, days in found.items() if days}}


def records_of(path: Folder) -> dict[str, dict[str, Any]]:
    """The records of a cube by block; none of a cube that is not there.

    Raises
    ------
    IncompleteError
        If one is damaged: what its block was made from, nobody knows.
    """
    return {record["block"]: record for record in store.records(path)} if store.is_there(path) else {}


def write_cubes(source: Source, folder: Folder, crew: Crew) -> dict[str, dict[str, Any]]:
    """Write what is missing of both cubes, or made from scenes that are others now, and seal them; their states.

    Raises
    ------
    IncompleteError
        If blocks were given up; all others are written.
    """
    identity: dict[str, Any] = {
        key: source.origin[key] for key in ("catalog", "coarse_catalog", "pairs") if key in source.origin
    }
    regions = {"landsat.zarr": source.region, "modis.zarr": source.cells}
    for name, (dataset, layout) in cube_layouts(source).items():
        path, inputs = folder / name, _inputs(source, name, layout)
        before = records_of(path)
        stale = [block for block, record in before.items() if record.get("inputs") != inputs.get(block)]
        pending = store.prepare(path, layout, identity, region=regions[name], stale=stale)
        crew.changes[name] = changes_of(before, inputs, pending)
        tasks = store.write_tasks(dataset, path, layout, pending, inputs, crew.permit)
        write_blocks(name, tasks, pending, layout, crew)
    crew.refuse_failed(folder)
    return {name: store.seal(folder / name) for name in regions}


def _settings(method: Any) -> Any:
    """What of a method decides on its pixels, as JSON: not where its weights lie, nor what computes them."""
    if isinstance(found := getattr(method, "digest", None), str):
        return found
    if is_dataclass(method):
        names = [part.name for part in fields(method) if part.name not in ("path", "device")]
        return {"type": type(method).__name__, **{name: _settings(getattr(method, name)) for name in names}}
    if isinstance(method, list | tuple):
        return [_settings(part) for part in method]
    return method if isinstance(method, str | int | float | None) else type(method).__name__


def write(job: Job, path: str | Path | Folder, client: Client | None = None) -> xr.Dataset:
    """Write a planned fusion as a cube, with its progress shown, and open it.

    Blocks of it that are there already are kept: that they were made in the same way is checked, that they are of the
    same imagery is for the caller to see to.

    Parameters
    ----------
    job
        From :func:`stfgan_xr.fusion.plan`.
    path
        Of the cube: a local folder, or ``s3://bucket/prefix``.
    client
        Workers that do it; by default this process does.

    Raises
    ------
    InputError
        If another cube is there.
    IncompleteError
        If blocks were given up; all others are written.
    """
    folder, crew = as_folder(path), Crew(client)
    options = {"bracket_days": job.options.bracket_days, "keep_observed": job.options.keep_observed}
    found = _settings(job.predictor)
    identity = options | (found if isinstance(found, dict) else {"type": found})
    pending = store.prepare(folder, job.layout, identity)
    with model_sent(client, job.predictor):
        write_blocks(str(folder), job.write_tasks(folder, pending), pending, job.layout, crew)
    if crew.failed:
        blocks = crew.failed[str(folder)]
        raise IncompleteError(
            f"{folder}: {len(blocks)} blocks failed {ATTEMPTS} times, first {blocks[0]['block']} ({blocks[0]['why']}); "
            "the same call tries them again"
        )
    store.seal(folder)
    return store.open_cube(folder)


@contextmanager
def noting_failures(folder: Folder, document: dict[str, Any], crew: Crew) -> Iterator[None]:
    """Within it, blocks that are given up get into ``run.json``."""
    try:
        yield
    except IncompleteError:
        if crew.failed:
            folder.write_json(RUN, document | {"status": "incomplete", "failed": crew.failed})
        raise


def parse_run(content: bytes) -> dict[str, Any] | None:
    """What a ``run.json`` says; None if it is damaged."""
    try:
        document = json.loads(content)
        recorded_days(document)
        whole = isinstance(document["request"], dict) and isinstance(document["status"], str)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(document) if whole else None


def check_folder(folder: Folder, wanted: dict[str, Any], overwrite: bool = False) -> dict[str, Any]:
    """The run.json of a folder that was made with the same request, or an empty one.

    Raises
    ------
    InputError
        If the folder holds a run with another request; the difference is named.
    """
    content = folder.read(RUN)
    if overwrite and content is not None:
        for name in ("landsat.zarr", "modis.zarr", "fused.zarr"):
            store.remove(folder / name)
        overviews.remove(folder)
        (folder / "adapted").delete(last="adaptation.json")
        for name in (ITEMS, AREA, RUN, "report.html"):
            folder.delete_file(name)
        return {}
    if content is None:
        return {}
    if (document := parse_run(content)) is None:
        raise InputError(f"{folder / RUN} is damaged; choose another --out or add --overwrite")
    stored, plain = document["request"], json.loads(json.dumps(wanted))
    # A folder that holds only cubes knows no method yet; a fusion goes on with it.
    shared = stored.keys() & plain.keys()
    store.refuse_difference(folder, {k: stored[k] for k in shared}, {k: plain[k] for k in shared})
    return document


@dataclass(frozen=True)
class Staff:
    """Who is to do the work of a run.

    Attributes
    ----------
    workers
        Worker processes, if that was said.
    scheduler
        Address of a scheduler that is there.
    cluster
        Kind of a cluster to start; with none of the three, this process does it all.
    minutes
        How long they may take for a block.

    Raises
    ------
    InputError
        If the kind is unknown, or both a scheduler and a kind are named.
    """

    workers: int | None = None
    scheduler: str | None = None
    cluster: str | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.cluster is not None and self.cluster not in KINDS:
            raise InputError(
                f"--cluster {self.cluster!r} is unknown; choose {', '.join(KINDS[:-1])} or {KINDS[-1]}, or name a "
                "running --scheduler"
            )
        if self.cluster is not None and self.scheduler is not None:
            raise InputError("--scheduler names a cluster that is there, --cluster starts one: choose one of them")

    @property
    def own(self) -> bool:
        """Whether they are processes of this machine that share its memory."""
        return self.scheduler is None and self.cluster in (None, "local")

    def count(self, need: float = 0.0) -> int:
        """How many workers there are to be, of which each needs some bytes of memory."""
        if not self.own:
            return self.workers or MOST_WORKERS
        if self.workers is not None:
            return min(self.workers, 4 * cores())  # no more than cores make sense of
        if self.cluster is None:
            return 1
        return max(1, min(cores(), int(memory_left() // need) if need else cores()))

    @contextmanager
    def gathered(self, folder: Folder, lease: Lease | None = None, need: float = 0.0) -> Iterator[Crew]:
        """Within it they are there and fit for the work of a run folder.

        Parameters
        ----------
        folder
            The run folder.
        lease
            By which it is held; without one it is only read.
        need
            Bytes of memory that each of them needs.

        Raises
        ------
        InputError
            If they cannot be had, have other versions, or do not see the folder.
        """
        with connect(self.count(need), self.scheduler, self.cluster or "local") as client:
            if client is not None:
                err.print(f"dashboard: {client.dashboard_link}", markup=False, soft_wrap=True)
                known = (RUN, folder.read(RUN) or b"") if lease is None else (LEASE, lease.token.encode())
                make_fit(client, folder, *known)
            yield Crew(client, self.minutes, lease)


def command(
    dates: Dates = None,
    aoi: Aoi = None,
    catalog: CatalogName = None,
    coarse_catalog: CoarseCatalogName = None,
    pairs: PairsFile = None,
    out_folder: Out = "run",
    bands: Bands = None,
    crs: Crs = None,
    bracket_days: BracketDays = 64,
    collections: Collections = None,
    max_cloud: MaxCloud = None,
    allow_missing: AllowMissing = False,
    bandpass: Bandpass = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    cluster: ClusterKind = None,
    block_minutes: BlockMinutes = BLOCK_MINUTES,
    overwrite: Overwrite = False,
    log: Log = "text",
) -> None:
    """Find Landsat and MODIS of an area and days and write them as Zarr cubes; the same command again resumes."""
    request = make_request(
        dates, aoi, catalog, coarse_catalog, pairs, bands, crs, bracket_days, collections, max_cloud,
        allow_missing, bandpass,
    )  # fmt: skip
    folder, staff = as_folder(out_folder), Staff(workers, scheduler, cluster, block_minutes)
    folder.check()
    with held(folder) as lease:
        document = check_folder(folder, request.identity(), overwrite)
        fused = "method" in document.get("request", {})
        request = with_days(request, document)
        if fused and (request.period or request.days != recorded_days(document)):
            raise InputError(f"{folder} holds a fusion, which pipelines.fuse gives more days; choose another --out")
        source = open_source(request, folder)
        days = f"{len(source.acquired)} Landsat days, {len(source.modis.time)} MODIS days"
        out.print(f"grid: {describe(source.grid)}; {days}")
        check_disk(folder, {name: layout for name, (_, layout) in cube_layouts(source).items()})
        with staff.gathered(folder, lease) as crew:
            if not fused:
                facts = {"request": request.identity(), "versions": versions(), "status": "cubes"}
                document = facts | {"dates": [day.isoformat() for day in request.days]} | source.origin
                folder.write_json(RUN, document)
            with noting_failures(folder, document, crew):
                write_cubes(source, folder, crew)
    out.print(
        f"done: {folder / 'landsat.zarr'} and {folder / 'modis.zarr'}; open them with stfgan_xr.open_cube",
        markup=False,
    )


if __name__ == "__main__":
    main(command)
