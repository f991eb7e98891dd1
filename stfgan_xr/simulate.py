"""The demo world as files: what Landsat 8/9 and MODIS would deliver of a known landscape, with a static STAC catalog.

Landsat scenes carry the coding of Collection 2 (uint16, 2.75e-5, -0.2, fill 0, QA_PIXEL, QA_RADSAT); path 121 lies in
UTM 50N on the lattice of the truth, path 122 in UTM 49N. MODIS images carry that of MCD43A4 v6.1 in the sinusoidal
projection. Shenzhen lies well inside tile h28v06, so the tile border through the area is moved here from its true
place; pixels keep their true lattice. Items show what real servers show: ``proj:epsg: null`` with ``proj:wkt2``,
``datetime`` off the composite day, missing nodata, reprocessed and tier 2 twins.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import platformdirs
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from scipy import ndimage

from stfgan_xr.days import day_range, to_number
from stfgan_xr.errors import InputError, ResourceError
from stfgan_xr.files import Folder, write_json, write_text
from stfgan_xr.grid import SINUSOIDAL, Window
from stfgan_xr.landscape import MARGIN, Day, World
from stfgan_xr.rasters import write_cog
from stfgan_xr.sensors import BANDS, LANDSAT_OLI, MCD43A4

__all__ = ["World", "default_folder", "ensure_world", "passes", "read_world", "world_of", "write_world"]

VERSION = 2
"""Raised whenever the same world would give other files."""
MODIS_PIXEL = 463.312716527778
MODIS_ORIGIN = (-20015109.354, 10007554.677)
ASSETS = {"blue": "blue", "green": "green", "red": "red", "nir": "nir08", "swir1": "swir16", "swir2": "swir22"}
MODIS_BAND = {"blue": 3, "green": 4, "red": 1, "nir": 2, "swir1": 6, "swir2": 7}

# What lies between the land and the sensor; of several, the one with the greatest number is stated.
CLEAR, CIRRUS, SHADOW, DILATED, CLOUD, OUTSIDE = range(6)

# QA_PIXEL words of Landsat 8-9 Collection 2 (LSDS-1619, table 6-3) in that order, over land and over water.
QA_FILL = 1
QA_WORDS = ((21824, 21952), (54596, 54596), (23888, 23952), (21826, 21890), (22280, 22280), (QA_FILL, QA_FILL))

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v1.1.0", "raster/v1.1.0", "eo/v1.1.0")
)

Float = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint16]


def default_folder(world: World) -> Path:
    """Where a world is kept between runs: the user's cache folder."""
    name = f"demo-{world.seed}-{world.size}-{world.start}-{world.days}-v{VERSION}"
    return platformdirs.user_cache_path("stfgan_xr") / name


def _parameters(world: World) -> dict[str, Any]:
    return asdict(world) | {"start": world.start.isoformat(), "version": VERSION}


def read_world(folder: Path) -> World:
    """The world whose files lie in a folder.

    Raises
    ------
    InputError
        If there is none.
    """
    path = folder / "world.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found.pop("version")
        return World(**found | {"start": date.fromisoformat(found["start"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: no demo world there ({type(error).__name__})") from None


def world_of(run: Folder) -> World | None:
    """The simulated world that a run was made from, if it was.

    Raises
    ------
    InputError
        If the world's files are gone.
    """
    content = run.read("run.json")
    catalog = (json.loads(content).get("catalog") or {}) if content is not None else {}
    return read_world(Path(catalog["truth"]).parent) if catalog.get("truth") else None


def _holds(folder: Path, world: World) -> bool:
    """Whether a folder holds a world's files; another world's are an error."""
    try:
        text = (folder / "world.json").read_text(encoding="utf-8")
        stored = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: world.json is unreadable ({type(error).__name__}); remove the folder") from None
    if stored != _parameters(world):
        raise InputError(f"{folder} holds another demo world ({stored}); remove it or choose another folder")
    return True


def ensure_world(world: World, folder: Path) -> Path:
    """Write a world's files, unless they are there; the folder.

    The files are written beside the folder and moved there at once, so that a folder is either whole or absent.

    Raises
    ------
    InputError
        If the folder holds something else.
    ResourceError
        If the files cannot be written.
    """
    if _holds(folder, world):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty; choose another folder")
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write_world(world, partial)
        _move(partial, folder, world)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ResourceError(f"{folder}: cannot write the demo world ({reason}); make room or choose another") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _move(partial: Path, folder: Path, world: World) -> None:
    try:
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError:  # another process was faster: its files are as good, if they are of the same world
        if not _holds(folder, world):
            raise


def write_world(world: World, folder: Path) -> None:
    """Write scenes, catalog, area and parameters into an existing folder; ``world.json`` last."""
    landsat, modis = folder / "landsat-c2-l2", folder / "modis-43A4-061"
    for path in (landsat, modis):
        path.mkdir()
    items = [list(_landsat_items(world, landsat)), list(_modis_items(world, modis))]
    for path, found in zip((landsat, modis), items, strict=True):
        _write_collection(world, path, found)
    links = [
        {"rel": "child", "href": f"./{p.name}/collection.json", "type": "application/json"} for p in (landsat, modis)
    ]
    root = {"rel": "root", "href": "./catalog.json", "type": "application/json"}
    catalog = {"type": "Catalog", "id": "stfgan-xr-demo", "stac_version": "1.0.0", "description": "Simulated imagery"}
    write_json(folder / "catalog.json", catalog | {"links": [root, *links]})
    feature = {"type": "Feature", "properties": {"name": "demo"}, "geometry": world.area.json}
    write_json(folder / "aoi.geojson", feature)
    write_text(folder / "catalog.toml", files("catalogs").joinpath("demo.toml").read_text(encoding="utf-8"))
    write_json(folder / "world.json", _parameters(world))


def _write_collection(world: World, folder: Path, items: list[dict[str, Any]]) -> None:
    box = world.area.boundingbox
    for item in items:
        item["links"] = [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "collection", "href": "./collection.json", "type": "application/json"},
        ]
        write_json(folder / f"{item['id']}.json", item)
    links = [{"rel": "item", "href": f"./{item['id']}.json", "type": "application/geo+json"} for item in items]
    extent = {
        "spatial": {"bbox": [[box.left, box.bottom, box.right, box.top]]},
        "temporal": {"interval": [[f"{world.start}T00:00:00Z", f"{world.last}T23:59:59Z"]]},
    }
    collection = {
        "type": "Collection", "id": folder.name, "stac_version": "1.0.0", "description": "Simulated",
        "license": "Apache-2.0",
        "extent": extent, "links": [{"rel": "root", "href": "../catalog.json", "type": "application/json"}, *links],
    }  # fmt: skip
    write_json(folder / "collection.json", collection)


@lru_cache
def _footprint(grid: GeoBox) -> dict[str, Any]:
    area = grid.extent.to_crs("EPSG:4326", resolution=grid.resolution.x * 200)
    box = area.boundingbox
    return {"geometry": area.json, "bbox": [box.left, box.bottom, box.right, box.top]}


# ---------------------------------------------------------------- Landsat


@dataclass(frozen=True)
class _Pass:
    """One overpass: what is random about it is drawn from its path and day."""

    world: World
    path: int
    platform: int
    day: date

    @property
    def rng(self) -> np.random.Generator:
        return self.world.rng(20, self.path, to_number(self.day))


def passes(world: World) -> Iterator[_Pass]:
    """Overpasses of paths 121 and 122: each seen every eight days by Landsat 8 and 9 in turn, a week apart."""
    for day in day_range(world.start, world.last):
        number = to_number(day)
        for path, phases in ((121, {3: 8, 11: 9}), (122, {10: 8, 2: 9})):
            if number % 16 in phases:
                yield _Pass(world, path, phases[number % 16], day)


def _wide(world: World) -> tuple[int, int]:
    return world.shape[0] + 2 * MARGIN, world.shape[1] + 2 * MARGIN


def _sky(overpass: _Pass) -> npt.NDArray[np.uint8]:
    """Cloud, the ring around it, shadow and thin cirrus over grid plus margin; OUTSIDE beyond the swath."""
    rng, shape = overpass.rng, _wide(overpass.world)
    cloudy = rng.random() < overpass.world.cloudiness
    share = rng.beta(1.2, 1.6) if cloudy else 0.06 * rng.random()
    field = _noise(rng, shape, 70) + 0.35 * _noise(rng, shape, 14)
    cloud = field > np.quantile(field, 1 - share)
    high = _noise(rng, shape, 110) > (1.6 if rng.random() < 0.3 else 9)
    sky = np.full(shape, CLEAR, np.uint8)
    dilated = ndimage.binary_dilation(cloud, iterations=3)
    for mask, state in ((high, CIRRUS), (np.roll(cloud, (7, -10), (0, 1)), SHADOW), (dilated, DILATED), (cloud, CLOUD)):
        sky[mask] = state
    sky[~_swath(overpass)] = OUTSIDE
    return sky


def _noise(rng: np.random.Generator, shape: Sequence[int], spacing: int) -> Float:
    small = rng.standard_normal([side // spacing + 4 for side in shape]).astype(np.float32)
    rows, columns = (np.arange(side, dtype=np.float32) / spacing + 1 for side in shape)
    along = _lerp(small, rows, 0)
    return _lerp(along, columns, 1)


def _lerp(values: Float, at: npt.NDArray[np.floating], axis: int) -> Float:
    base = np.floor(at).astype(int)
    t = at - base
    t = (t * t * (3 - 2 * t)).reshape((-1, 1) if axis == 0 else (1, -1)).astype(np.float32)
    lower, upper = np.take(values, base, axis=axis), np.take(values, base + 1, axis=axis)
    return np.asarray(lower + (upper - lower) * t, np.float32)


def _everywhere(world: World, day: date) -> Day:
    height, width = world.shape
    return world.on(day, Window(-MARGIN, height + MARGIN, -MARGIN, width + MARGIN))


def _seen(overpass: _Pass, surface: Float, sky: npt.NDArray[np.uint8], band: str) -> Float:
    """What the sensor measures of a band in a scene's own pixels, in reflectance; NaN stays."""
    number = BANDS.index(band)
    rng = overpass.world.rng(21, overpass.path, to_number(overpass.day), number)
    gain = np.float32(1 + 0.01 * rng.standard_normal())
    passed = np.ones(len(QA_WORDS), np.float32)
    passed[SHADOW], passed[CLOUD] = 0.45, 0
    added = np.zeros(len(QA_WORDS), np.float32)
    added[CIRRUS], added[CLOUD] = 0.03, (0.55, 0.56, 0.58, 0.62, 0.45, 0.35)[number]
    value = surface * (gain * passed)[sky] + added[sky]
    value += np.where(sky == CLOUD, np.float32(0.08) * _noise(rng, value.shape, 12), np.float32(0))
    value += np.float32(overpass.world.noise) * rng.standard_normal(value.shape, np.float32)
    return np.asarray(value, np.float32)


def _swath(overpass: _Pass) -> npt.NDArray[np.bool_]:
    """Inside the swath: path 121 covers the eastern three quarters of the area, path 122 the western; edges lean."""
    height, width = _wide(overpass.world)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    lean = 0.22 * (rows - height / 2)
    drift = overpass.rng.integers(-4, 5)
    east = columns + lean > width * 0.22 + drift
    return np.asarray(east if overpass.path == 121 else columns + lean < width * 0.78 + drift, bool)


@dataclass(frozen=True)
class _Frame:
    """Where a scene's pixels take their values from in grid plus margin."""

    grid: GeoBox
    rows: npt.NDArray[np.float64] | None
    columns: npt.NDArray[np.float64] | None
    cut: tuple[slice, slice] | None

    def sample(self, values: npt.NDArray[Any], order: Literal[0, 1], outside: float) -> npt.NDArray[Any]:
        if self.cut is not None:
            return values[self.cut]
        assert self.rows is not None
        assert self.columns is not None
        return np.asarray(
            ndimage.map_coordinates(
                values, [self.rows, self.columns], order=order, mode="constant", cval=outside, prefilter=False
            )
        )


def _frame(overpass: _Pass) -> _Frame:
    """A scene's grid: its origin moves by whole pixels from pass to pass."""
    world = overpass.world
    height, width = _wide(world)
    box = world.grid
    left, top = box.affine.c - MARGIN * 30, box.affine.f + MARGIN * 30
    down, across = (int(n) for n in overpass.rng.integers(2, 12, 2))
    if overpass.path == 121:
        cut = slice(down, height - 1), slice(across, width - 1)
        grid = GeoBox(
            (height - 1 - down, width - 1 - across), Affine(30, 0, left + 30 * across, 0, -30, top - 30 * down), box.crs
        )
        return _Frame(grid, None, None, cut)
    inner = GeoBox((height - 60, width - 60), Affine(30, 0, left + 900, 0, -30, top - 900), box.crs)
    bounds = inner.extent.to_crs("EPSG:32649", resolution=3000).boundingbox
    x0 = np.floor((bounds.left - 15) / 30) * 30 + 15 - 30 * across
    y0 = np.ceil((bounds.top - 15) / 30) * 30 + 15 + 30 * down
    shape = int((y0 - bounds.bottom) // 30) + 1, int((bounds.right - x0) // 30) + 1
    grid = GeoBox(shape, Affine(30, 0, x0, 0, -30, y0), "EPSG:32649")
    x, y = np.meshgrid(x0 + 30 * (np.arange(shape[1]) + 0.5), y0 - 30 * (np.arange(shape[0]) + 0.5))
    east, north = Transformer.from_crs("EPSG:32649", "EPSG:32650", always_xy=True).transform(x, y)
    return _Frame(grid, (top - north) / 30 - 0.5, (east - left) / 30 - 0.5, None)


def _landsat_images(overpass: _Pass, frame: _Frame) -> dict[str, Words]:
    """The layers of an overpass over its whole frame, by asset name."""
    # The land is interpolated, the sky is not: it is laid over it, with the noise, in the scene's own pixels, so that
    # a pixel that is stated as clear holds nothing of a cloud or shadow beside it.
    truth, sky = _everywhere(overpass.world, overpass.day), frame.sample(_sky(overpass), 0, OUTSIDE)
    water = frame.sample(truth.band("nir"), 1, np.nan) < 0.06
    hole, saturated = sky == OUTSIDE, np.zeros(sky.shape, np.uint16)
    bits, out = dict(LANDSAT_OLI.saturation_bits), {}
    for band in BANDS:
        raw = _seen(overpass, frame.sample(truth.band(band), 1, np.nan), sky, band)
        counts = np.rint((np.nan_to_num(raw) - LANDSAT_OLI.offset) / LANDSAT_OLI.scale).clip(1, 65535)
        saturated |= np.where(raw > 0.68, np.uint16(1 << bits[band]), np.uint16(0))
        hole |= np.isnan(raw)
        out[ASSETS[band]] = counts.astype(np.uint16)
    out |= {"qa_pixel": np.array(QA_WORDS, np.uint16)[sky, water.astype(np.uint8)], "qa_radsat": saturated}
    for name, image in out.items():
        image[hole] = QA_FILL if name == "qa_pixel" else 0
    return out


def _cloud_cover(words: Words) -> float:
    """Per cent of a scene's pixels that are cloud."""
    seen = words != QA_FILL
    return round(100 * float((words == QA_WORDS[CLOUD][0]).sum()) / max(int(seen.sum()), 1), 2)


def _landsat_items(world: World, folder: Path) -> Iterator[dict[str, Any]]:
    twins = True
    with ThreadPoolExecutor(2) as pool:
        for overpass in passes(world):
            frame = _frame(overpass)
            images = _landsat_images(overpass, frame)
            height = frame.grid.shape[0]
            for row, (top, bottom) in ((44, (0, int(height * 0.56))), (45, (int(height * 0.44), height))):
                grid = frame.grid[top:bottom, :]
                part = {name: image[top:bottom] for name, image in images.items()}
                cloud = _cloud_cover(part["qa_pixel"])
                item = _landsat_item(overpass, grid, row, "T1", "02", cloud)
                yield _write_scene(item, part, grid, folder, pool)
                if twins:  # the first scene was processed twice, and has a tier 2 twin: both must lose
                    worse = {
                        name: image + np.uint16(40 * (name in ASSETS.values())) * (image > 0)
                        for name, image in part.items()
                    }
                    worse = {name: image.astype(np.uint16) for name, image in worse.items()}
                    for tier, processing in (("T1", "01"), ("T2", "03")):
                        twin = _landsat_item(overpass, grid, row, tier, processing, cloud)
                        yield _write_scene(twin, worse, grid, folder, pool)
                    twins = False


def _write_scene(
    item: dict[str, Any], images: dict[str, Any], grid: GeoBox, folder: Path, pool: ThreadPoolExecutor
) -> dict[str, Any]:
    """Write an item's images; the item without what only the writing needs. An array named twice is written once."""
    hrefs, nodata, first = item.pop("_hrefs"), item.pop("_nodata"), dict[int, str]()
    for name, image in images.items():
        first.setdefault(id(image), name)
    jobs = [
        pool.submit(write_cog, folder / hrefs[name], images[name], grid, nodata.get(name)) for name in first.values()
    ]
    for job in jobs:
        job.result()
    for name, image in images.items():
        if first[id(image)] != name:
            shutil.copyfile(folder / hrefs[first[id(image)]], folder / hrefs[name])
    return item


def _landsat_item(overpass: _Pass, grid: GeoBox, row: int, tier: str, processing: str, cloud: float) -> dict[str, Any]:
    day, platform, path = overpass.day, overpass.platform, overpass.path
    name = f"LC0{platform}_L2SP_{path}{row:03d}_{day:%Y%m%d}_02_{tier}"
    processed = day + timedelta(days=12 * int(processing))
    stem = f"{name}_{processed:%Y%m%d}"
    coded = [{"scale": 2.75e-05, "nodata": 0, "offset": -0.2, "data_type": "uint16", "spatial_resolution": 30}]
    hrefs = {asset: f"{stem}_{asset}.tif" for asset in (*ASSETS.values(), "qa_pixel", "qa_radsat")}
    assets: dict[str, Any] = {
        asset: {"href": f"./{href}", "type": COG, "roles": ["data"]} for asset, href in hrefs.items()
    }
    for band, asset in ASSETS.items():
        assets[asset] |= {"raster:bands": coded, "eo:bands": [{"name": f"OLI_{band}", "common_name": asset}]}
    properties = {
        "datetime": f"{day}T02:5{row - 43}:08.935246Z", "created": f"{processed}T09:20:11.670692Z", "gsd": 30,
        "platform": f"landsat-{platform}", "instruments": ["oli", "tirs"],
        "proj:epsg": grid.crs.epsg if grid.crs else None,
        "proj:shape": list(grid.shape), "proj:transform": list(grid.affine)[:6], "eo:cloud_cover": cloud,
        "landsat:wrs_path": f"{path:03d}", "landsat:wrs_row": f"{row:03d}", "landsat:wrs_type": "2",
        "landsat:collection_category": tier, "landsat:collection_number": "02", "landsat:correction": "L2SP",
    }  # fmt: skip
    unique = name if (tier, processing) != ("T1", "01") else f"{name}_old"
    return _item(unique, "landsat-c2-l2", properties, assets, grid) | {
        "_hrefs": hrefs, "_nodata": dict.fromkeys(ASSETS.values(), 0) | {"qa_pixel": 1},
    }  # fmt: skip


def _item(
    name: str, collection: str, properties: dict[str, Any], assets: dict[str, Any], grid: GeoBox
) -> dict[str, Any]:
    return {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": list(EXTENSIONS), "id": name,
        "collection": collection, **_footprint(grid), "properties": properties, "assets": assets,
    }  # fmt: skip


# ---------------------------------------------------------------- MODIS


@dataclass(frozen=True)
class _Sinusoidal:
    """The MODIS pixels over the world, and where their centres lie in the truth, averaged four by four."""

    grid: GeoBox
    rows: npt.NDArray[np.float64]
    columns: npt.NDArray[np.float64]
    inside: npt.NDArray[np.bool_]


def _sinusoidal(world: World) -> _Sinusoidal:
    height, width = _wide(world)
    left, top = world.grid.affine.c - MARGIN * 30, world.grid.affine.f + MARGIN * 30
    whole = GeoBox((height, width), Affine(30, 0, left, 0, -30, top), world.grid.crs)
    box = whole.extent.to_crs(SINUSOIDAL, resolution=3000).boundingbox
    first = [int((box.left - MODIS_ORIGIN[0]) // MODIS_PIXEL) - 1, int((MODIS_ORIGIN[1] - box.top) // MODIS_PIXEL) - 1]
    shape = int((box.top - box.bottom) // MODIS_PIXEL) + 3, int((box.right - box.left) // MODIS_PIXEL) + 3
    x0, y0 = MODIS_ORIGIN[0] + first[0] * MODIS_PIXEL, MODIS_ORIGIN[1] - first[1] * MODIS_PIXEL
    grid = GeoBox(shape, Affine(MODIS_PIXEL, 0, x0, 0, -MODIS_PIXEL, y0), CRS.from_user_input(SINUSOIDAL))
    x, y = np.meshgrid(x0 + MODIS_PIXEL * (np.arange(shape[1]) + 0.5), y0 - MODIS_PIXEL * (np.arange(shape[0]) + 0.5))
    east, north = Transformer.from_crs(SINUSOIDAL, "EPSG:32650", always_xy=True).transform(x, y)
    down, across = (top - north) / 30, (east - left) / 30
    inside = (down > 9) & (down < height - 9) & (across > 9) & (across < width - 9)
    return _Sinusoidal(grid, down / 4 - 0.5, across / 4 - 0.5, inside)


def _spread(small: Float) -> Float:
    """What a detector sees around each 120 m cell: a box of a pixel, spread by a Gaussian."""
    # Five cells of which the outer two count half are a pixel's width, centred on a cell; four would lie 60 m off.
    for axis in (0, 1):
        small = ndimage.correlate1d(small, (0.125, 0.25, 0.25, 0.25, 0.125), axis)
    return np.asarray(ndimage.gaussian_filter(small, 1.2), np.float32)


def _modis_images(
    world: World, day: date, at: _Sinusoidal
) -> tuple[dict[str, npt.NDArray[np.int16]], npt.NDArray[np.uint8]]:
    """Counts by band, and the quality layer (the same for all bands): truth, spread, noise, gain, gaps."""
    rng, view = world.rng(30, to_number(day)), _everywhere(world, day)
    gains = 1 + 0.015 * world.rng(31).standard_normal(len(BANDS))
    counts = {}
    share = rng.beta(1, 6) if rng.random() > 0.03 else 1.0
    field = _noise(rng, at.grid.shape, 9)
    quality = np.where(field > np.quantile(field, 1 - share) if share < 1 else at.inside, 255, 0).astype(np.uint8)
    quality[(quality == 0) & (_noise(rng, at.grid.shape, 6) > 1.3)] = 1
    quality[~at.inside] = 255
    for number, band in enumerate(BANDS):
        truth = view.band(band)
        small = truth.reshape(truth.shape[0] // 4, 4, truth.shape[1] // 4, 4).mean((1, 3))
        seen = ndimage.map_coordinates(_spread(small), [at.rows, at.columns], order=1, mode="nearest")
        seen = seen * gains[number] + 1.5 * world.noise * rng.standard_normal(seen.shape)
        raw = np.rint(seen / MCD43A4.scale).clip(0, 32766)
        counts[band] = np.where(quality > 1, MCD43A4.fill, raw).astype(np.int16)
    return counts, quality


def _modis_items(world: World, folder: Path) -> Iterator[dict[str, Any]]:
    at = _sinusoidal(world)
    middle = at.grid.shape[1] // 2
    tiles = (("h28v06", slice(0, middle)), ("h29v06", slice(middle, None)))
    with ThreadPoolExecutor(2) as pool:
        for day in day_range(world.start, world.last):
            counts, quality = _modis_images(world, day, at)
            for tile, columns in tiles:
                grid = at.grid[:, columns]
                words = quality[:, columns]
                images: dict[str, Any] = {}
                for band, modis in MODIS_BAND.items():
                    images[f"Nadir_Reflectance_Band{modis}"] = counts[band][:, columns]
                    images[f"BRDF_Albedo_Band_Mandatory_Quality_Band{modis}"] = words
                yield _write_scene(_modis_item(day, tile, grid), images, grid, folder, pool)


def _modis_item(day: date, tile: str, grid: GeoBox) -> dict[str, Any]:
    name = f"MCD43A4.A{day:%Y%j}.{tile}.061.{day + timedelta(days=9):%Y%j}035331"
    assets: dict[str, Any] = {}
    nodata: dict[str, float] = {}
    number = to_number(day)
    for band, modis in MODIS_BAND.items():
        values, words = f"Nadir_Reflectance_Band{modis}", f"BRDF_Albedo_Band_Mandatory_Quality_Band{modis}"
        coded = {"data_type": "int16", "spatial_resolution": 500, "scale": 0.0001}
        assets[values] = {
            "href": f"./{name}_{values}.tif", "type": COG, "roles": ["data", "reflectance"], "raster:bands": [coded],
            "eo:bands": [{"name": values, "common_name": ASSETS[band]}],
        }  # fmt: skip
        assets[words] = {
            "href": f"./{name}_{words}.tif", "type": COG, "roles": ["data"], "eo:bands": [{"name": words}],
            "raster:bands": [{"data_type": "uint8", "spatial_resolution": 500}],
        }  # fmt: skip
        if number % 2:  # some files state their fill value, some do not
            nodata |= {values: MCD43A4.fill, words: MCD43A4.quality_fill}
    # The stated day is the id's; datetime lies almost four days later, or is null.
    span = {"start_datetime": f"{day}T00:00:00Z", "end_datetime": f"{day + timedelta(days=7)}T23:59:59Z"}
    moment = f"{day + timedelta(days=3)}T23:59:59.999500Z" if number % 5 else None
    # Platform and instruments are as empty, and the CRS is in the old form of WKT, as in recorded items.
    properties = span | {
        "datetime": moment, "platform": "", "instruments": [], "created": f"{day + timedelta(days=9)}T00:00:00Z",
        "modis:horizontal-tile": int(tile[1:3]), "modis:vertical-tile": int(tile[4:6]),
        "modis:tile-id": f"510{tile[1:3]}0{tile[4:6]}",
        "proj:epsg": None, "proj:wkt2": CRS.from_user_input(SINUSOIDAL).to_wkt("WKT1_GDAL"),
        "proj:shape": list(grid.shape), "proj:transform": list(grid.affine)[:6],
    }  # fmt: skip
    hrefs = {asset: value["href"][2:] for asset, value in assets.items()}
    return _item(name, "modis-43A4-061", properties, assets, grid) | {"_hrefs": hrefs, "_nodata": nodata}
