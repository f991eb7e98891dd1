"""Imagery of an area and range of days as cubes: ``landsat.zarr`` and ``modis.zarr`` of a run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import xarray as xr
from odc.geo.geobox import GeoBox

from pipelines.console import err, main, out, track
from stfgan_xr import days as calendar
from stfgan_xr import store
from stfgan_xr.aoi import middle, read_aoi
from stfgan_xr.cluster import connect, cores, run
from stfgan_xr.errors import InputError, NothingToDo
from stfgan_xr.files import Folder, as_folder
from stfgan_xr.grid import RATIO, coarse_grid, describe, nested_grid, parse_crs, ratio_of, tile_step
from stfgan_xr.region import Region
from stfgan_xr.scenes import ITEMS
from stfgan_xr.sensors import BANDS

if TYPE_CHECKING:
    from distributed import Client

    from stfgan_xr.catalog import Catalog
    from stfgan_xr.datasets import Pairs
    from stfgan_xr.scenes import Scene, Side

COARSE_MARGIN = 16
"""Coarse days read beyond the bracket range, to interpolate gaps at its ends."""
RUN = "run.json"
FINE_TILE, COARSE_TILE, COARSE_RUN = 1024, 512, 16

Aoi = Annotated[str | None, typer.Option(help="GeoJSON file, or west,south,east,north in degrees.")]
Dates = Annotated[
    str | None, typer.Option(help="Days: one, START/END (both included), START/END/P8D, or a comma list.")
]
CatalogName = Annotated[str | None, typer.Option("--catalog", help="Catalog name, or path of a catalog's TOML.")]
CoarseCatalogName = Annotated[
    str | None, typer.Option("--coarse-catalog", help="Catalog of the coarse side, if another.")
]
PairsFile = Annotated[
    Path | None, typer.Option("--pairs", help="pairs.toml of your own co-registered rasters, instead of a catalog.")
]
Out = Annotated[str, typer.Option("--out", help="Run folder: a local one, or s3://bucket/prefix.")]
Bands = Annotated[
    str | None, typer.Option(help=f"Comma list of bands. Default: all ({','.join(BANDS)}, or those of --pairs).")
]
Crs = Annotated[str | None, typer.Option(help="Projected CRS, EPSG:n. Default: the UTM zone of the area.")]
BracketDays = Annotated[
    int, typer.Option(min=1, max=250, help="Landsat observations further from a day than this are not used.")
]
Collections = Annotated[
    str | None,
    typer.Option(
        "--collections", help="Comma list of collections of either side (python -m pipelines.catalogs lists them)."
    ),
]
MaxCloud = Annotated[
    float | None,
    typer.Option(
        min=0, max=100, help="Landsat scenes of more cloud than this percentage are not used. Default: all are."
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing", help="Leave out scenes with an asset that is not there, and list them in run.json."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Worker processes. Default: one; torch then uses all cores.")
]
Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler, tcp://host:port.")]
ClusterKind = Annotated[str, typer.Option("--cluster", help="local, or cuda (one worker per GPU through dask-cuda).")]
Overwrite = Annotated[bool, typer.Option(help="Delete what the run folder holds and start again.")]


@dataclass(frozen=True)
class Request:
    """What a run was asked for, before anything is looked up.

    Attributes
    ----------
    days
        Target days.
    bands
        Bands in their order; empty: all.
    bracket_days
        Range of Landsat days on either side.
    aoi, catalog, coarse_catalog, crs
        As given on the command line.
    pairs
        A pairs.toml instead of area and catalog.
    collections
        Collections to use instead of the default ones of their side.
    max_cloud
        Per cent of cloud beyond which a Landsat scene is left out.
    allow_missing
        Leave out scenes with an asset that is not there; else that is an error.
    """

    days: tuple[date, ...]
    bands: tuple[str, ...]
    bracket_days: int
    aoi: str | None = None
    catalog: str | None = None
    coarse_catalog: str | None = None
    crs: str | None = None
    pairs: Path | None = None
    collections: tuple[str, ...] = ()
    max_cloud: float | None = None
    allow_missing: bool = False

    def identity(self) -> dict[str, Any]:
        """JSON values that must be the same for a run folder to be gone on with."""
        aoi = self.aoi
        if aoi and Path(aoi).is_file():
            aoi = hashlib.sha256(Path(aoi).read_bytes()).hexdigest()
        return {
            "dates": [day.isoformat() for day in self.days],
            "bands": list(self.bands),
            "bracket_days": self.bracket_days,
            "aoi": aoi,
            "catalog": self.catalog,
            "coarse_catalog": self.coarse_catalog,
            "crs": self.crs,
            "pairs": str(self.pairs.resolve()) if self.pairs else None,
            "collections": list(self.collections),
            "max_cloud": self.max_cloud,
            "allow_missing": self.allow_missing,
        }


@dataclass(frozen=True)
class Source:
    """Lazy imagery of a request, on nested grids, and where it comes from.

    Attributes
    ----------
    landsat, modis
        Counts Datasets ``(time, y, x)``.
    grid
        The fine grid.
    ratio
        Fine pixels along a coarse cell.
    bands
        Bands of both.
    origin
        JSON values for run.json: catalog or pairs, and what was found.
    region
        The area on the fine grid; none with pairs.
    """

    landsat: xr.Dataset
    modis: xr.Dataset
    grid: GeoBox
    ratio: int
    bands: tuple[str, ...]
    origin: dict[str, Any]
    region: Region | None = None

    @property
    def cells(self) -> Region | None:
        """The area on the coarse grid."""
        return None if self.region is None else replace(self.region, ratio=self.ratio)


def parse_bands(text: str | None, known: Sequence[str] | None = None) -> tuple[str, ...]:
    """Bands of ``--bands`` in the order of ``known``; empty text means all of them."""
    known = known or BANDS
    if text is None:
        return tuple(known)
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [band for band in wanted if band not in known]
    if unknown or not wanted:
        raise InputError(
            f"--bands {text!r}: {', '.join(unknown) or 'no band'} is unknown; choose from {', '.join(known)}"
        )
    return tuple(band for band in known if band in wanted)


def open_catalog(name: str) -> Catalog:
    """A catalog by name or path; ``demo`` makes its world on first use."""
    from stfgan_xr import catalog

    if name == "demo":
        from stfgan_xr import simulate

        world = simulate.World()
        folder = simulate.default_folder(world)
        if not (folder / "catalog.toml").is_file():
            err.print(
                f"demo: simulating satellites over {world.size} x {world.size} pixels and {world.days} days, once"
            )
        return catalog.open_catalog(str(simulate.ensure_world(world, folder) / "catalog.toml"))
    return catalog.open_catalog(name)


def make_request(
    dates: str | None, aoi: str | None, catalog: str | None, coarse_catalog: str | None, pairs: Path | None,
    bands: str | None, crs: str | None, bracket_days: int, collections: str | None = None,
    max_cloud: float | None = None, allow_missing: bool = False,
) -> Request:  # fmt: skip
    """Check the options against each other, as far as that needs nothing from outside."""
    if pairs is not None:
        given = {
            "--aoi": aoi, "--catalog": catalog, "--coarse-catalog": coarse_catalog, "--crs": crs,
            "--collections": collections,
        }  # fmt: skip
        wrong = [name for name, value in given.items() if value] + ["--max-cloud"] * (max_cloud is not None)
        wrong += ["--allow-missing"] * allow_missing
        if wrong:
            raise InputError(f"{wrong[0]} does not go with --pairs, which brings its own grid and imagery")
        from stfgan_xr.datasets import read_pairs

        found = read_pairs(pairs)
        days = calendar.parse_dates(dates) if dates else _all_days(found)
        return Request(days, parse_bands(bands, found.bands), bracket_days, pairs=pairs)
    if dates is None:
        raise InputError("--dates is missing; for example --dates 2020-03-01/2020-03-31")
    days = calendar.parse_dates(dates)
    if crs is not None:
        parse_crs(crs)
    if aoi is not None:
        read_aoi(aoi)
    if max_cloud is not None and not 0 <= max_cloud <= 100:  # older releases of typer let NaN pass
        raise InputError(f"--max-cloud {max_cloud}: must be a percentage, 0 to 100")
    named = tuple(name.strip() for name in (collections or "").split(",") if name.strip())
    return Request(
        days, parse_bands(bands), bracket_days, aoi, catalog or "planetary-computer", coarse_catalog, crs,
        collections=named, max_cloud=max_cloud, allow_missing=allow_missing,
    )  # fmt: skip


def _all_days(pairs: Pairs) -> tuple[date, ...]:
    coarse = pairs.modis()
    numbers = calendar.to_numbers(coarse["time"].values)
    return calendar.day_range(calendar.from_number(numbers[0]), calendar.from_number(numbers[-1]))


def _search(
    request: Request, folder: Folder, catalogs: tuple[Catalog, Catalog], keep: bool
) -> tuple[tuple[Scene, ...], ...]:
    """Scenes of both sides: those of items.json if a run of this request left one, else found and kept there."""
    from stfgan_xr.catalog import search
    from stfgan_xr.scenes import read_scenes, save_scenes

    # Without a run.json nothing says what request the items were found for.
    if folder.read(RUN) is not None and (kept := read_scenes(folder)) is not None:
        return kept
    fine, coarse = catalogs
    sides = _sides(request, fine, coarse)
    area = read_aoi(_area(request, fine))
    longitude, _ = middle(area)
    reach = timedelta(days=request.bracket_days)
    margin = reach + timedelta(days=COARSE_MARGIN)
    first, last = request.days[0], request.days[-1]
    found = (
        search(sides[0], area, first - reach, last + reach, longitude, request.bands, request.max_cloud),
        search(sides[1], area, first - margin, last + margin, longitude, request.bands),
    )
    cloud = "" if request.max_cloud is None else f" of at most {request.max_cloud:g} % cloud"
    for name, scenes, side in ((f"Landsat imagery{cloud}", found[0], fine), ("MODIS imagery", found[1], coarse)):
        if not scenes:
            raise NothingToDo(
                f"no {name} in catalog {side.name} over the area within {request.bracket_days} days of "
                f"{calendar.describe(request.days)}; check --aoi and --dates, or widen --bracket-days"
            )
    if keep:
        save_scenes(folder, *found)
    return found


def _missing(
    request: Request, folder: Folder, sides: tuple[Side, Side], found: tuple[tuple[Scene, ...], ...]
) -> list[dict[str, str]]:
    """Assets that are not there: those of run.json if a run of this request left one, else looked for."""
    from stfgan_xr.load import missing_assets

    kept = folder.read(RUN)
    if kept is not None and "missing" in (document := json.loads(kept)):
        return list(document["missing"]["assets"])
    both = zip(found, sides, strict=True)
    return [
        {"id": name, "asset": role}
        for scenes, side in both
        for name, role in missing_assets(scenes, side, request.bands)
    ]


def _without(scenes: tuple[Scene, ...], missing: Sequence[dict[str, str]], name: str) -> tuple[Scene, ...]:
    absent = {asset["id"] for asset in missing}
    left = tuple(scene for scene in scenes if scene.id not in absent)
    if not left:
        raise NothingToDo(f"each of the {len(scenes)} {name} scenes lacks an asset; check the catalog")
    return left


def _sides(request: Request, fine: Catalog, coarse: Catalog) -> tuple[Side, Side]:
    if fine.fine is None:
        raise InputError(f"catalog {fine.name} has no fine imagery; name one that has with --catalog")
    if coarse.coarse is None:
        raise InputError(f"catalog {coarse.name} has no coarse imagery; name one that has with --coarse-catalog")
    names = [{collection.name for collection in side.collections} for side in (fine.fine, coarse.coarse)]
    unknown = [name for name in request.collections if not any(name in known for known in names)]
    if unknown:
        known = ", ".join(sorted(set.union(*names)))
        raise InputError(f"--collections: {unknown[0]!r} is in neither catalog; there are {known}")
    chosen = [[name for name in request.collections if name in known] for known in names]
    return fine.fine.select(chosen[0], request.bands), coarse.coarse.select(chosen[1], request.bands)


def _area(request: Request, fine: Catalog) -> str:
    if request.aoi:
        return request.aoi
    if fine.aoi is None:
        raise InputError("--aoi is missing; give a GeoJSON file or west,south,east,north")
    return str(fine.aoi)


def _from_catalog(request: Request, folder: Folder, keep: bool) -> Source:
    from stfgan_xr.load import load

    fine = open_catalog(request.catalog or "")
    coarse = open_catalog(request.coarse_catalog) if request.coarse_catalog else fine
    sides = _sides(request, fine, coarse)
    area = read_aoi(_area(request, fine))
    grid = nested_grid(area, crs=request.crs, phase=sides[0].phase)
    landsat, modis = _search(request, folder, (fine, coarse), keep)
    margin = timedelta(days=request.bracket_days + COARSE_MARGIN)
    every_day = calendar.day_range(request.days[0] - margin, request.days[-1] + margin)
    items = folder.read(ITEMS) or b"" if keep else b""
    origin = {
        "catalog": {"name": fine.name, "path": str(fine.folder), "truth": str(fine.truth) if fine.truth else None},
        "coarse_catalog": coarse.name,
        "items": {"sha256": hashlib.sha256(items).hexdigest(), "landsat": len(landsat), "modis": len(modis)},
    }
    if request.allow_missing:
        missing = _missing(request, folder, sides, (landsat, modis))
        scenes = len({asset["id"] for asset in missing})
        origin["missing"] = {"scenes": scenes, "assets": missing}
        if missing:
            err.print(
                f"{scenes} of {len(landsat) + len(modis)} scenes are left out: {len(missing)} of their assets are not "
                f"there, first {missing[0]['asset']} of {missing[0]['id']}",
                markup=False,
            )
        landsat, modis = _without(landsat, missing, "Landsat"), _without(modis, missing, "MODIS")
    return Source(
        load(landsat, grid, side=sides[0], bands=request.bands, tile=_tile(grid, RATIO)),
        load(modis, coarse_grid(grid), side=sides[1], bands=request.bands, days=every_day, tile=COARSE_TILE),
        grid, RATIO, request.bands, origin, Region(grid, area),
    )  # fmt: skip


def _from_pairs(request: Request) -> Source:
    from stfgan_xr.datasets import read_pairs

    assert request.pairs is not None
    pairs = read_pairs(request.pairs)
    landsat, modis = pairs.landsat(request.bands), pairs.modis(request.bands)
    ratio = ratio_of(landsat.odc.geobox, modis.odc.geobox)
    origin = {"pairs": {"name": pairs.name, "path": str(request.pairs.resolve())}}
    return Source(landsat, modis, landsat.odc.geobox, ratio, request.bands, origin)


def open_source(request: Request, folder: str | Path | Folder, keep: bool = True) -> Source:
    """Find the imagery of a request; reads no pixels. The scenes found are kept in ``items.json``."""
    return _from_pairs(request) if request.pairs else _from_catalog(request, as_folder(folder), keep)


def _tile(grid: GeoBox, ratio: int, largest: int = FINE_TILE) -> int:
    return store.tile_for((int(grid.shape[0]), int(grid.shape[1])), tile_step(ratio), largest)


def cube_layouts(source: Source) -> dict[str, tuple[xr.Dataset, store.Layout]]:
    """The two cubes of a run by name, with their Datasets: one Landsat day, or sixteen MODIS days, a block."""
    coarse = source.modis.odc.geobox
    coarse_tile = store.tile_for((int(coarse.shape[0]), int(coarse.shape[1])), 1, COARSE_TILE)
    fine = store.dataset_layout(source.landsat, source.grid, source.bands, tile=_tile(source.grid, source.ratio), run=1)
    modis = store.dataset_layout(source.modis, coarse, source.bands, tile=coarse_tile, run=COARSE_RUN)
    return {"landsat.zarr": (source.landsat, fine), "modis.zarr": (source.modis, modis)}


def megapixels(layout: store.Layout) -> float:
    """Pixels of a typical block times its days, in millions."""
    height, width = (min(side, layout.tile) for side in layout.shape)
    return height * width * min(layout.run, len(layout.days)) / 1e6


def write_blocks(
    label: str, tasks: Iterable[Any], pending: Sequence[store.Block], layout: store.Layout, client: Any
) -> None:
    """Run the tasks of a cube's blocks and show how far they are."""
    for _ in track(label, run(tasks, client), len(pending), megapixels(layout)):
        pass


def write_cubes(source: Source, folder: Folder, client: Client | None) -> dict[str, dict[str, Any]]:
    """Write what is missing of both cubes and seal them; their states."""
    states = {}
    identity = {"origin": source.origin}
    regions = {"landsat.zarr": source.region, "modis.zarr": source.cells}
    for name, (dataset, layout) in cube_layouts(source).items():
        path = folder / name
        pending = store.prepare(path, layout, identity, region=regions[name])
        write_blocks(name, store.write_tasks(dataset, path, layout, pending), pending, layout, client)
        states[name] = store.seal(path)
    return states


def check_folder(folder: Folder, wanted: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The run.json of a folder that was made with the same request, or an empty one.

    Raises
    ------
    InputError
        If the folder holds a run with another request; the difference is named.
    ResourceError
        If it lies in an object store that cannot be reached.
    """
    folder.check()
    content = folder.read(RUN)
    if overwrite and content is not None:
        for name in ("landsat.zarr", "modis.zarr", "fused.zarr"):
            store.remove(folder / name)
        for name in (ITEMS, RUN):
            folder.delete_file(name)
        return {}
    if content is None:
        return {}
    try:
        document: dict[str, Any] = json.loads(content)
        stored = document["request"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        raise InputError(f"{folder / RUN} is damaged; choose another --out or add --overwrite") from None
    plain = json.loads(json.dumps(wanted))
    # A folder that holds only cubes knows no method yet; a fusion goes on with it.
    shared = stored.keys() & plain.keys()
    store.refuse_difference(folder, {k: stored[k] for k in shared}, {k: plain[k] for k in shared})
    return document


def versions() -> dict[str, str]:
    """Versions of what computes the result."""
    from importlib.metadata import version

    return {name: version(name) for name in ("numpy", "xarray", "zarr", "dask", "torch", "rasterio", "stackstac")}


def default_workers(workers: int | None) -> int:
    """Worker processes: those asked for, but no more than cores make sense of."""
    return 1 if workers is None else min(workers, 4 * cores())


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
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Find Landsat and MODIS of an area and days and write them as Zarr cubes; the same command again resumes."""
    request = make_request(
        dates, aoi, catalog, coarse_catalog, pairs, bands, crs, bracket_days, collections, max_cloud,
        allow_missing,
    )  # fmt: skip
    folder = as_folder(out_folder)
    document = check_folder(folder, request.identity(), overwrite)
    source = open_source(request, folder)
    if not document:
        facts = {"request": request.identity(), "versions": versions(), "status": "cubes"}
        folder.write_json(RUN, facts | source.origin)
    out.print(
        f"grid: {describe(source.grid)}; {len(source.landsat.time)} Landsat days, {len(source.modis.time)} MODIS days"
    )
    with connect(default_workers(workers), scheduler) if workers or scheduler else nullcontext() as client:
        write_cubes(source, folder, client)
    out.print(
        f"done: {folder / 'landsat.zarr'} and {folder / 'modis.zarr'}; open them with stfgan_xr.open_cube",
        markup=False,
    )


if __name__ == "__main__":
    main(command)
