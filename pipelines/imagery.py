"""From a request to lazy imagery: catalogs searched, what was found kept, MODIS and VIIRS joined."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from pipelines.console import err, out
from stfgan_xr import days as calendar
from stfgan_xr import store
from stfgan_xr.aoi import WGS84, middle, read_aoi
from stfgan_xr.errors import InputError, NothingToDo
from stfgan_xr.files import Folder, as_folder
from stfgan_xr.grid import RATIO, coarse_grid, describe, nested_grid, parse_crs, ratio_of, tile_step
from stfgan_xr.region import Region
from stfgan_xr.rendering import as_table
from stfgan_xr.scenes import ITEMS
from stfgan_xr.sensors import BANDS

if TYPE_CHECKING:
    from stfgan_xr.catalog import Catalog
    from stfgan_xr.datasets import Pairs
    from stfgan_xr.scenes import Scene, Side

COARSE_MARGIN = 16
"""Coarse days read beyond the bracket range, to interpolate gaps at its ends."""
COARSE_RUN = 16
"""Days of a coarse block."""
LOOKED_BACK = (48, 400, 4000)
"""Days before today within which the newest coarse imagery is looked for, one after the other."""
FINE_TILE, COARSE_TILE = 1024, 512
RUN, AREA = "run.json", "area.geojson"


def tile_of(grid: GeoBox, ratio: int, largest: int = FINE_TILE) -> int:
    """Side of a block on a fine grid."""
    return store.tile_for((int(grid.shape[0]), int(grid.shape[1])), tile_step(ratio), largest)


@dataclass(frozen=True)
class Request:
    """What a run was asked for, before anything is looked up.

    Attributes
    ----------
    days
        Target days; none as long as only :attr:`period` is known.
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
    bandpass
        Bring Landsat 7 and Sentinel-2 to the bands of OLI.
    area
        The area itself where it is known already, instead of ``aoi``.
    period
        So many days up to the newest coarse imagery; a run that has days goes on from these. Catalogs are searched each
        time.
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
    bandpass: bool = False
    area: Geometry | None = None
    period: int | None = None

    @classmethod
    def recorded(cls, document: Mapping[str, Any], area: Geometry | None) -> Request:
        """The request of a run folder, from what ``run.json`` and ``area.geojson`` keep of it."""
        days, identity = recorded_days(document), document["request"]
        pairs = Path(identity["pairs"]) if identity["pairs"] else None
        names = ("bracket_days", "catalog", "coarse_catalog", "crs", "max_cloud", "allow_missing", "bandpass")
        return cls(
            days, tuple(identity["bands"]), pairs=pairs, collections=tuple(identity["collections"]), area=area,
            **{name: identity[name] for name in names},
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """JSON values that must be the same for a run folder to be gone on with."""
        aoi = self.aoi
        if aoi and Path(aoi).is_file():
            aoi = hashlib.sha256(Path(aoi).read_bytes()).hexdigest()
        return {
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
            "bandpass": self.bandpass,
        }


def recorded_days(document: Mapping[str, Any]) -> tuple[date, ...]:
    """The days of a run from its ``run.json``; none of an empty one."""
    stated = document.get("dates", document.get("request", {}).get("dates", ()))
    return tuple(date.fromisoformat(day) for day in stated)


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
    until
        The last day of either's imagery.
    void
        Days of ``landsat`` that a run was given, and that have no scene any more.
    scenes
        By cube what each of its days is made of; empty with pairs.
    treated
        By day what is done to the coarse scenes besides.
    """

    landsat: xr.Dataset
    modis: xr.Dataset
    grid: GeoBox
    ratio: int
    bands: tuple[str, ...]
    origin: dict[str, Any]
    region: Region | None = None
    until: date = date.max
    void: tuple[date, ...] = ()
    scenes: Mapping[str, Mapping[date, Sequence[Scene]]] = field(default_factory=dict)
    treated: Mapping[date, str] = field(default_factory=dict)

    @property
    def acquired(self) -> list[date]:
        """Days with Landsat imagery, ascending."""
        days = (calendar.from_number(number) for number in calendar.to_numbers(self.landsat["time"].values))
        return sorted(set(days) - set(self.void))

    def _repr_html_(self) -> str:
        def described(days: Sequence[date]) -> str:
            return f"{len(days)} days" + (f", {calendar.describe(days)}" if days else "")

        modis = [calendar.from_number(number) for number in calendar.to_numbers(self.modis["time"].values)]
        found = self.origin.get("items", {})
        return as_table(
            "Imagery, read when it is asked for",
            {
                "from": (self.origin.get("catalog") or self.origin["pairs"])["name"],
                "grid": describe(self.grid),
                "bands": ", ".join(self.bands),
                "Landsat": described(self.acquired),
                "MODIS": f"{described(modis)}, a cell is {self.ratio} x {self.ratio} pixels",
                **({"scenes": f"{found['landsat']} Landsat, {found['modis']} MODIS"} if found else {}),
            },
        )

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
    max_cloud: float | None = None, allow_missing: bool = False, bandpass: bool = False,
) -> Request:  # fmt: skip
    """Check the options against each other, as far as that needs nothing from outside."""
    if pairs is not None:
        given = {
            "--aoi": aoi, "--catalog": catalog, "--coarse-catalog": coarse_catalog, "--crs": crs,
            "--collections": collections,
        }  # fmt: skip
        wrong = [name for name, value in given.items() if value] + ["--max-cloud"] * (max_cloud is not None)
        wrong += ["--allow-missing"] * allow_missing + ["--bandpass"] * bandpass
        if wrong:
            raise InputError(f"{wrong[0]} does not go with --pairs, which brings its own grid and imagery")
        from stfgan_xr.datasets import read_pairs

        found = read_pairs(pairs)
        days = calendar.parse_dates(dates) if dates else _all_days(found)
        return Request(days, parse_bands(bands, found.bands), bracket_days, pairs=pairs)
    if dates is None:
        raise InputError("--dates is missing; for example --dates 2020-03-01/2020-03-31, or P30D")
    period = calendar.parse_period(dates)
    days = () if period else calendar.parse_dates(dates)
    if crs is not None:
        parse_crs(crs)
    if aoi is not None:
        read_aoi(aoi)
    if max_cloud is not None and not 0 <= max_cloud <= 100:  # older releases of typer let NaN pass
        raise InputError(f"--max-cloud {max_cloud}: must be a percentage, 0 to 100")
    named = tuple(name.strip() for name in (collections or "").split(",") if name.strip())
    return Request(
        days, parse_bands(bands), bracket_days, aoi, catalog or "planetary-computer", coarse_catalog, crs,
        collections=named, max_cloud=max_cloud, allow_missing=allow_missing, bandpass=bandpass, period=period,
    )  # fmt: skip


def with_days(request: Request, document: Mapping[str, Any]) -> Request:
    """The request with the days that a run is to have now.

    Parameters
    ----------
    request
        What was asked for.
    document
        The ``run.json`` of its folder; empty if there is none.

    Raises
    ------
    InputError
        If the run has other days than these at their beginning.
    NothingToDo
        If there is no coarse imagery that could say which days are the newest.
    """
    stored = recorded_days(document)
    if request.period is None:
        if stored and request.pairs and stored != request.days:
            raise InputError(
                f"--dates: the run has {calendar.describe(stored)}, and one of --pairs cannot be given others; choose "
                "another --out or add --overwrite"
            )
        return replace(request, days=calendar.grown(stored, request.days))
    newest = _newest(request)
    if stored:
        return replace(request, days=calendar.prolonged(stored, newest))
    return replace(request, days=calendar.day_range(newest - timedelta(days=request.period - 1), newest))


def _newest(request: Request) -> date:
    """The newest day that has coarse imagery over the area."""
    from stfgan_xr import continuity
    from stfgan_xr.catalog import search

    fine = open_catalog(request.catalog or "")
    coarse = open_catalog(request.coarse_catalog) if request.coarse_catalog else fine
    side, area, today = _sides(request, fine, coarse)[1], _area(request, fine), date.today() + timedelta(days=1)
    longitude, _ = middle(area)
    # A file that has all items is read once, an API is not asked for years.
    for back in LOOKED_BACK if side.api else (calendar.LONGEST,):
        span = area, today - timedelta(days=back), today, longitude, request.bands
        found = search(side, *span)
        if side.successor and continuity.is_needed(side, found, today):
            found = (*found, *search(_successor(request, side), *span))
        if found:
            return max(scene.day for scene in found)
    raise NothingToDo(f"no MODIS imagery in catalog {side.catalog} over the area up to {today}; check --aoi")


def _all_days(pairs: Pairs) -> tuple[date, ...]:
    coarse = pairs.modis()
    numbers = calendar.to_numbers(coarse["time"].values)
    return calendar.day_range(calendar.from_number(numbers[0]), calendar.from_number(numbers[-1]))


def _search(
    request: Request, folder: Folder, catalogs: tuple[Catalog, Catalog], keep: bool
) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Scenes of both sides: those of items.json if a run of this request left one, else found and kept there."""
    from stfgan_xr.scenes import read_scenes, save_scenes

    # Without a run.json nothing says what request the items were found for, and a period is searched anew each time.
    stated = _recorded(folder)
    if request.period is None and stated and recorded_days(stated) == request.days:
        kept = read_scenes(folder)
        if kept is not None and are_of(folder, stated):
            return kept
    names = " and ".join(dict.fromkeys(catalog.name for catalog in catalogs))
    err.print(f"searching {names} for imagery of {calendar.describe(request.days)}", markup=False)
    found = _find(request, catalogs)
    err.print(f"found {len(found[0])} Landsat and {len(found[1])} MODIS scenes", markup=False)
    cloud = "" if request.max_cloud is None else f" of at most {request.max_cloud:g} % cloud"
    for name, scenes, side in (
        (f"Landsat imagery{cloud}", found[0], catalogs[0]),
        ("MODIS imagery", found[1], catalogs[1]),
    ):
        if not scenes:
            raise NothingToDo(
                f"no {name} in catalog {side.name} over the area within {request.bracket_days} days of "
                f"{calendar.describe(request.days)}; check --aoi and --dates, or widen --bracket-days"
            )
    if keep:
        save_scenes(folder, *found)
    return found


def _find(request: Request, catalogs: tuple[Catalog, Catalog]) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    from stfgan_xr import continuity
    from stfgan_xr.catalog import search

    fine, coarse = _sides(request, *catalogs)
    area, bands = _area(request, catalogs[0]), request.bands
    longitude, _ = middle(area)
    reach = timedelta(days=request.bracket_days)
    first, last = request.days[0] - reach, request.days[-1] + reach
    landsat = search(fine, area, first, last, longitude, bands, request.max_cloud)
    margin = timedelta(days=COARSE_MARGIN)
    span = area, first - margin, last + margin, longitude, bands
    modis = search(coarse, *span)
    if coarse.successor and continuity.is_needed(coarse, modis, last):
        modis, viirs = continuity.search_on(modis, (coarse, _successor(request, coarse)), *span)
        if not viirs:
            raise NothingToDo(f"{_names(coarse)} ends, and its successor {coarse.successor} has nothing over the area")
        modis = (*modis, *viirs)
    return landsat, modis


def _names(side: Side) -> str:
    return ", ".join(collection.name for collection in side.collections)


def _missing(request: Request, folder: Folder, parts: Sequence[tuple[Sequence[Scene], Side]]) -> list[dict[str, str]]:
    """Assets that are not there: those of run.json if a run of this request left one, else looked for."""
    from stfgan_xr.load import missing_assets

    kept = _kept(request, folder, "missing")
    if kept is not None:
        return list(kept["assets"])
    return [
        {"id": name, "asset": role}
        for scenes, side in parts
        for name, role in missing_assets(scenes, side, request.bands)
    ]


def _recorded(folder: Folder) -> dict[str, Any]:
    """The run.json of a folder; empty if there is none."""
    content = folder.read(RUN)
    return {} if content is None else dict(json.loads(content))


def are_of(folder: Folder, document: Mapping[str, Any]) -> bool:
    """Whether the items of a folder are those that its run.json was written for: a search that was killed is not."""
    stated, content = document.get("items", {}).get("sha256"), folder.read(ITEMS)
    return stated is None or content is None or hashlib.sha256(content).hexdigest() == stated


def _kept(request: Request, folder: Folder, key: str) -> Any:
    """What an earlier run of the request wrote down in run.json; None if there is nothing, or it may be others now."""
    stated = _recorded(folder)
    settled = request.period is None and recorded_days(stated) == request.days
    return stated.get(key) if settled else None


def _without(scenes: Sequence[Scene], missing: Sequence[dict[str, str]], name: str) -> tuple[Scene, ...]:
    absent = {asset["id"] for asset in missing}
    left = tuple(scene for scene in scenes if scene.id not in absent)
    if scenes and not left:
        raise NothingToDo(f"each of the {len(scenes)} {name} scenes lacks an asset; check the catalog")
    return left


def _sides(request: Request, fine: Catalog, coarse: Catalog) -> tuple[Side, Side]:
    if fine.fine is None:
        raise InputError(f"catalog {fine.name} has no fine imagery; name one that has with --catalog")
    if coarse.coarse is None:
        raise InputError(f"catalog {coarse.name} has no coarse imagery; name one that has with --coarse-catalog")
    names = [{collection.name for collection in side.collections} for side in (fine.fine, coarse.coarse)]
    later = open_catalog(coarse.coarse.successor).coarse if coarse.coarse.successor and request.collections else None
    names.append({collection.name for collection in later.collections} if later else set())
    unknown = [name for name in request.collections if not any(name in known for known in names)]
    if unknown:
        known = ", ".join(sorted(set.union(*names)))
        raise InputError(f"--collections: {unknown[0]!r} is in neither catalog; there are {known}")
    chosen = [[name for name in request.collections if name in known] for known in names[:2]]
    return fine.fine.select(chosen[0], request.bands), coarse.coarse.select(chosen[1], request.bands)


def _area(request: Request, fine: Catalog) -> Geometry:
    if request.area is not None:
        return request.area
    if not request.aoi and fine.aoi is None:
        raise InputError("--aoi is missing; give a GeoJSON file or west,south,east,north")
    return read_aoi(request.aoi or str(fine.aoi))


def read_area(folder: Folder) -> Geometry | None:
    """The area of a run folder; None if its imagery has no catalog."""
    content = folder.read(AREA)
    return None if content is None else Geometry(json.loads(content), WGS84)


def _successor(request: Request, coarse: Side) -> Side:
    """The side that goes on after a coarse one."""
    catalog = open_catalog(coarse.successor)
    if catalog.coarse is None:
        raise InputError(f"catalog {catalog.name} follows {coarse.catalog}, but has no coarse imagery")
    known = {collection.name for collection in catalog.coarse.collections}
    side = catalog.coarse.select([name for name in request.collections if name in known], request.bands)
    twice = {collection.name for collection in side.collections} & {c.name for c in coarse.collections}
    if twice:
        raise InputError(
            f"catalog {catalog.name} follows {coarse.catalog}, but has its collection {min(twice)} as well"
        )
    return side


def _from_catalog(request: Request, folder: Folder, keep: bool) -> Source:
    from stfgan_xr.load import load

    fine = open_catalog(request.catalog or "")
    coarse = open_catalog(request.coarse_catalog) if request.coarse_catalog else fine
    sides = _sides(request, fine, coarse)
    area = _area(request, fine)
    grid = nested_grid(area, crs=request.crs, phase=sides[0].phase)
    landsat, both = _search(request, folder, (fine, coarse), keep)
    if keep and request.area is None:
        folder.write_json(AREA, area.json)
    items = folder.read(ITEMS) or b"" if keep else b""
    origin = {
        "catalog": {"name": fine.name, "path": str(fine.folder), "truth": str(fine.truth) if fine.truth else None},
        "coarse_catalog": coarse.name,
        "items": {"sha256": hashlib.sha256(items).hexdigest(), "landsat": len(landsat), "modis": len(both)},
    }
    own = {collection.name for collection in sides[1].collections}
    modis, viirs = ([s for s in both if (s.collection in own) == mine] for mine in (True, False))
    parts = {"Landsat": (landsat, sides[0]), "MODIS": (modis, sides[1])}
    if viirs:
        parts["VIIRS"] = viirs, _successor(request, sides[1])
    if request.allow_missing:
        parts = _leave_out(request, folder, parts, origin)
    if request.bandpass:
        origin["bandpass"] = _bandpass(landsat, request.bands)
    scenes = {
        "landsat.zarr": _by_day(parts["Landsat"][0]),
        "modis.zarr": _by_day([scene for name, (found, _) in parts.items() if name != "Landsat" for scene in found]),
    }
    axis = _axis(folder if keep else None, scenes["landsat.zarr"])
    modis_cube = _coarse(request, folder, coarse_grid(grid), parts, origin, keep)
    return Source(
        load(parts["Landsat"][0], grid, side=sides[0], bands=request.bands, days=axis, tile=tile_of(grid, RATIO),
             to_oli=request.bandpass),
        modis_cube, grid, RATIO, request.bands, origin, Region(grid, area), max(max(days) for days in scenes.values()),
        tuple(day for day in axis if day not in scenes["landsat.zarr"]), scenes, _treated(origin, modis_cube),
    )  # fmt: skip


def _by_day(scenes: Sequence[Scene]) -> dict[date, list[Scene]]:
    found: dict[date, list[Scene]] = {}
    for scene in scenes:
        found.setdefault(scene.day, []).append(scene)
    return found


def _axis(folder: Folder | None, scenes: Mapping[date, Any]) -> list[date]:
    """Days of the Landsat cube: those that it has stay where they are, new ones come after them."""
    there = folder is not None and store.is_there(folder / "landsat.zarr")
    stored = store.days_of(folder / "landsat.zarr") if folder is not None and there else []
    return [*stored, *sorted(set(scenes) - set(stored))]


def _treated(origin: Mapping[str, Any], modis: xr.Dataset) -> dict[date, str]:
    """By day the fit that VIIRS is brought to MODIS by."""
    found = origin.get("continuity")
    if found is None:
        return {}
    fits, last = json.dumps(found["bands"], sort_keys=True), date.fromisoformat(found["last"] or "1970-01-01")
    days = (calendar.from_number(number) for number in calendar.to_numbers(modis["time"].values))
    return {day: fits for day in days if day > last}


Parts = dict[str, tuple[Sequence["Scene"], "Side"]]


def _leave_out(request: Request, folder: Folder, parts: Parts, origin: dict[str, Any]) -> Parts:
    """The parts without scenes that lack an asset; those are noted."""
    missing = _missing(request, folder, list(parts.values()))
    scenes = len({asset["id"] for asset in missing})
    origin["missing"] = {"scenes": scenes, "assets": missing}
    if missing:
        count = sum(len(scenes) for scenes, _ in parts.values())
        err.print(
            f"{scenes} of {count} scenes are left out: {len(missing)} of their assets are not "
            f"there, first {missing[0]['asset']} of {missing[0]['id']}",
            markup=False,
        )
    return {name: (_without(scenes, missing, name), side) for name, (scenes, side) in parts.items()}


def _bandpass(landsat: Sequence[Scene], bands: Sequence[str]) -> dict[str, Any]:
    """What is done to each platform, for run.json; null where nothing is published or needed."""
    from stfgan_xr.harmonise import bandpass

    found = {}
    for sensor, platform in sorted({(scene.sensor, scene.platform) for scene in landsat}):
        published = bandpass(sensor, platform)
        found[f"{sensor} {platform}".strip()] = published and {
            "source": published[0], "bands": {band: asdict(published[1][band]) for band in bands},
        }  # fmt: skip
    return found


def _coarse(
    request: Request, folder: Folder, grid: GeoBox, parts: Parts, origin: dict[str, Any], keep: bool
) -> xr.Dataset:
    """The daily coarse series: MODIS, and VIIRS where that goes on."""
    from stfgan_xr import continuity
    from stfgan_xr.harmonise import fit_of
    from stfgan_xr.load import load

    margin = timedelta(days=request.bracket_days + COARSE_MARGIN)
    start, end = request.days[0] - margin, request.days[-1] + margin
    # Whole blocks, counted from the first day: where they begin and end does not change as the run is given more days.
    blocks = -(-((end - start).days + 1) // COARSE_RUN)
    every_day = calendar.day_range(start, start + timedelta(days=blocks * COARSE_RUN - 1))

    def daily(name: str) -> xr.Dataset:
        scenes, side = parts[name]
        return load(scenes, grid, side=side, bands=request.bands, days=every_day, tile=COARSE_TILE)

    if "VIIRS" not in parts:
        return daily("MODIS")
    (modis, first), (viirs, second) = parts["MODIS"], parts["VIIRS"]
    # The fit stays as it was found: a run that is added to does not change its scale from night to night.
    found = _recorded(folder).get("continuity")
    if found is None:
        days = continuity.compared_days(modis, viirs)
        sides = first, second
        fits = continuity.compare(modis, viirs, grid, sides=sides, bands=request.bands) if keep and modis else {}
        found = {
            "last": max(scene.day for scene in modis).isoformat() if modis else None,
            "catalog": second.catalog,
            "collections": [collection.name for collection in second.collections],
            "days": [day.isoformat() for day in days],
            "bands": {band: fit.plain() for band, fit in fits.items()},
        }
        _say(found, first)
    origin["continuity"] = found
    if found["last"] is None:
        return daily("VIIRS")
    fits = {band: fit_of(document) for band, document in found["bands"].items()}
    return continuity.join(daily("MODIS"), daily("VIIRS"), date.fromisoformat(found["last"]), fits)


def _say(found: dict[str, Any], first: Side) -> None:
    later = f"{', '.join(found['collections'])} of catalog {found['catalog']}"
    if found["last"] is None:
        out.print(f"coarse: {later}; {_names(first)} has ended", markup=False)
        return
    out.print(f"coarse: {_names(first)} until {found['last']}, then {later}", markup=False)
    for band, fit in found["bands"].items():
        out.print(
            f"  {band} x {fit['gain']:.3f} {fit['offset']:+.4f}: differs by {fit['rmsd_after']:.4f}, as it is "
            f"{fit['rmsd_before']:.4f} ({fit['cells']} cells)",
            markup=False,
        )
    if not found["days"]:
        out.print("  no day has both: they are joined as they are", markup=False)


def _from_pairs(request: Request) -> Source:
    from stfgan_xr.datasets import read_pairs

    assert request.pairs is not None
    pairs = read_pairs(request.pairs)
    landsat, modis = pairs.landsat(request.bands), pairs.modis(request.bands)
    ratio = ratio_of(landsat.odc.geobox, modis.odc.geobox)
    origin = {"pairs": {"name": pairs.name, "path": str(request.pairs.resolve())}}
    until = calendar.from_number(max(calendar.to_numbers(cube["time"].values).max() for cube in (landsat, modis)))
    return Source(landsat, modis, landsat.odc.geobox, ratio, request.bands, origin, until=until)


def open_source(request: Request, folder: str | Path | Folder, keep: bool = True) -> Source:
    """Find the imagery of a request; the scenes found are kept in ``items.json``.

    No pixels are read but, where MODIS ends, those that VIIRS is compared with it by; without ``keep`` not even those.
    """
    return _from_pairs(request) if request.pairs else _from_catalog(request, as_folder(folder), keep)
