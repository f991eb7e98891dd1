"""What may never happen: servers, files, processes, disks and grids that go wrong, and what became of the pixels.

``python -m benchmarks.faults`` prints one line a figure and writes them to ``benchmarks/results/faults.json`` and
``benchmarks/reliability.md``; the exit code is 1 if one fails. All servers are on loopback. With all counts it takes
about an hour on two busy cores.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rasterio
import typer
from affine import Affine
from odc.geo.geobox import GeoBox
from rich.console import Console
from rich.table import Table

from benchmarks import footprints, survival, untrusted
from pipelines import cubes
from pipelines.console import err, main, out
from stfgan_xr import catalog, rasters, scenes, simulate, store
from stfgan_xr.aoi import read_aoi
from stfgan_xr.errors import SourceError, StfganError
from stfgan_xr.grid import nested_grid
from stfgan_xr.load import load
from stfgan_xr.rasters import AssetReader, Resampling, write_cog
from stfgan_xr.sensors import BANDS
from tests import test_hdf5, viirs
from tests.range_server import Server, serving
from tests.test_rasters import (
    reader,
    spec,
    test_finer_sources_of_another_projection_are_averaged_by_exact_area,
    test_landsat_of_the_neighbouring_zone_is_the_exact_cubic_answer,
    test_modis_to_480_m_is_the_exact_bilinear_answer_and_does_not_depend_on_tiles,
    whole,
)

RESULTS = Path(__file__).parent / "results" / "faults.json"
SIDE = 320
GRID = GeoBox((SIDE, SIDE), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
VALUES = np.random.default_rng(0).integers(1, 65535, (SIDE, SIDE)).astype("uint16")
ROOT = Path(__file__).parents[1]
CANARY = "canary"


@dataclass(frozen=True)
class Figure:
    """One measured promise: its row in the design's list of failures, what was tried, what came of it."""

    row: int
    what: str
    tried: int
    found: dict[str, Any]
    passed: bool


# ---------------------------------------------------------------- a world behind a server


@contextmanager
def impatient() -> Iterator[None]:
    """Short pauses between attempts, and no words of the commands."""
    names = {"PAUSE": 0.001, "LONGEST_PAUSE": 0.02}
    before = {name: getattr(rasters, name) for name in names}
    environment = {
        "GDAL_HTTP_RETRY_DELAY": "0.01",
        "GDAL_HTTP_PROXY": "127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,127.0.0.2,127.0.0.3,localhost",
    }
    kept = {name: os.environ.get(name) for name in environment}
    quiet = out.quiet, err.quiet
    try:
        for name, value in names.items():
            setattr(rasters, name, value)
        os.environ.update(environment)
        out.quiet = err.quiet = True
        yield
    finally:
        for name, value in before.items():
            setattr(rasters, name, value)
        for key, text in kept.items():
            os.environ.pop(key, None) if text is None else os.environ.update({key: text})
        out.quiet, err.quiet = quiet


@contextmanager
def signing(server: Server) -> Iterator[None]:
    """The Planetary Computer's signer, with the server's tokens for the server's files."""
    from planetary_computer import sas, settings

    found = settings.Settings.get()
    before = found.sas_url, sas.BLOB_STORAGE_DOMAIN
    found.sas_url, sas.BLOB_STORAGE_DOMAIN = server.url("token"), ""
    sas.TOKEN_CACHE.clear()
    try:
        yield
    finally:
        found.sas_url, sas.BLOB_STORAGE_DOMAIN = before
        sas.TOKEN_CACHE.clear()


def small_world(folder: Path) -> Path:
    """128 x 128 pixels and 40 days around the first of March 2020."""
    return simulate.ensure_world(simulate.World(size=128, start=date(2020, 2, 10), days=40), folder)


def behind(
    server: Server, world: Path, folder: Path, behaviour: str = "ok", signer: str = "none",
    keep: Callable[[str], bool] = lambda name: True, odd: dict[tuple[str, str], str] | None = None,
) -> str:  # fmt: skip
    """A catalog of a world whose assets lie on the server; the path of its TOML.

    Parameters
    ----------
    server, world, folder
        Of its files; where it is written.
    behaviour
        Of the server for its assets.
    signer
        Of both sides.
    keep
        Which items it has, by id.
    odd
        Other behaviours, by item and asset.
    """
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("*.tif"))
    for path in folder.glob("*/*.json"):
        document = json.loads(path.read_text())
        if path.name == "collection.json":
            links = document["links"]
            document["links"] = [k for k in links if k["rel"] != "item" or keep(Path(k["href"]).stem)]
        for name, asset in document.get("assets", {}).items():
            how = (odd or {}).get((document["id"], name), behaviour)
            asset["href"] = server.url(f"{how}/{path.parent.name}/{asset['href'].removeprefix('./')}")
        path.write_text(json.dumps(document))
    toml = folder / "catalog.toml"
    more = f'static = "catalog.json"\nhosts = ["http://127.0.0.1"]\nsigner = "{signer}"'
    toml.write_text(toml.read_text().replace('static = "catalog.json"', more))
    return str(toml)


def write_cubes(toml: str, folder: Path, allow_missing: bool = False) -> int:
    """The command ``pipelines.cubes`` for the red band of two days; its exit code."""
    try:
        cubes.command(
            dates="2020-03-01/2020-03-02", catalog=toml, bands="red", bracket_days=8, out_folder=folder,
            allow_missing=allow_missing,
        )  # fmt: skip
    except StfganError as error:
        return error.exit_code
    return 0


def digests(folder: Path) -> list[str]:
    """Of the pixels of both cubes."""
    return [store.content_digest(folder / name) for name in ("landsat.zarr", "modis.zarr")]


def blocks(folder: Path, name: str = "*.zarr") -> int:
    """Blocks that are recorded as written."""
    return len(list(folder.glob(f"{name}/{store.RECORDS}/t*.json")))


def chunks(folder: Path) -> int:
    """Files of pixels, recorded or not."""
    return len([path for path in folder.glob("*.zarr/red/c/**/*") if path.is_file()])


@dataclass(frozen=True)
class Place:
    """A world, its server, and what a run without any failure makes of it."""

    folder: Path
    world: Path
    server: Any
    good: Path

    def new(self, name: str) -> Path:
        """A folder that is not there yet."""
        return self.folder / name


@contextmanager
def place(folder: Path, world: Path | None = None) -> Iterator[Place]:
    """Make a world in a folder, serve it and write its cubes once."""
    world = world or small_world(folder / "world")
    with impatient(), serving(world, folder / "log") as server:
        good = folder / "good"
        if write_cubes(str(world / "catalog.toml"), good):
            raise SystemExit("the run without failures failed")
        yield Place(folder, world, server, good)


# ---------------------------------------------------------------- 1 tokens


def tokens(at: Place, seconds: float = 2, pause: float = 0.05) -> Iterator[Figure]:
    """Tokens that live two seconds in a job of more than twenty; and a refusal that stays."""
    with signing(at.server):
        how = f"clock-{seconds:g}-{pause:g}"
        toml = behind(at.server, at.world, at.new("clock"), how, "planetary-computer")
        started = time.monotonic()
        code = write_cubes(toml, at.new("clock-run"))
        took = time.monotonic() - started
        asked = [line for line in at.server.requests() if f" /{how}/" in line]
        given = len({line.split("sig=")[1].split()[0] for line in asked if "sig=" in line})
        same = code == 0 and digests(at.new("clock-run")) == digests(at.good)
        failed = blocks(at.good) - blocks(at.new("clock-run"))
        found = {"seconds": round(took, 1), "tokens": given, "failed_blocks": failed, "same_pixels": same}
        yield Figure(1, f"requests with tokens of {seconds:g} s", len(asked), found, same and given > 1)
        toml = behind(at.server, at.world, at.new("never"), "sig-never", "planetary-computer")
        code = write_cubes(toml, at.new("never-run"))
    found = {"exit_code": code, "blocks": blocks(at.new("never-run")), "files_of_pixels": chunks(at.new("never-run"))}
    yield Figure(1, "a refusal that stays", 1, found, list(found.values()) == [4, 0, 0])


# ---------------------------------------------------------------- 2 faults of servers


def random_faults(at: Place, seeds: int = 20, percent: int = 20) -> Iterator[Figure]:
    """Runs over a server that fails at random: the same pixels."""
    same = early = asked = most = 0
    for seed in range(seeds):
        how = f"random-{seed}-{percent}"
        toml = behind(at.server, at.world, at.new(how), how)
        code = write_cubes(toml, at.new(f"{how}-run"))
        same += code == 0 and digests(at.new(f"{how}-run")) == digests(at.good)
        lines = [line.split() for line in at.server.requests() if f" /{how}/" in line]
        asked += len(lines)
        # GDAL repeats single requests without regard to Retry-After; what is asked before an image is opened waits.
        early += sum(line[-1] == "early" for line in lines)
        most = max(most, max(int(line[3]) for line in lines))
    found = {"same_pixels": same, "requests": asked, "before_retry_after": early, "most_under_way": most}
    yield Figure(2, f"seeds of {percent} % failing requests", seeds, found, same == seeds)


# ---------------------------------------------------------------- 3 wrong bytes


def remote(url: str, hosts: tuple[str, ...] = ("http://127.0.0.1",)) -> AssetReader:
    """A reader of an image of :data:`VALUES`."""
    return AssetReader(
        url=url, spec=spec(GRID), resampling=Resampling.nearest, dtype=np.dtype("uint16"), fill_value=0,
        allowed=partial(scenes.is_allowed, hosts=hosts),
    )  # fmt: skip


def write_plain(path: Path, values: np.ndarray[Any, Any] = VALUES) -> None:
    """Uncompressed, in small tiles: nothing but its length says whether a range arrived whole."""
    profile = {"driver": "GTiff", "count": 1, "height": SIDE, "width": SIDE, "dtype": "uint16", "crs": "EPSG:32650"}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", transform=GRID.affine, **profile, **tiles) as target:
        target.write(values, 1)


KINDS = {"compressed": lambda path, values: write_cog(path, values, GRID, 0), "raw": write_plain}


def outcome(asset: AssetReader, *right: np.ndarray[Any, Any]) -> str:
    """Of a read: ``error``, ``right`` or ``wrong``."""
    try:
        values = whole(asset)
    except SourceError:
        return "error"
    return "right" if any(np.array_equal(values, one) for one in right) else "wrong"


def cuts(folder: Path, offsets: int = 50) -> Iterator[Figure]:
    """Files and connections that end too early: an error or the right pixels."""
    served = folder / "cuts"
    served.mkdir()
    raw = {}
    for kind, write in KINDS.items():
        write(served / f"{kind}.tif", VALUES)
        raw[kind] = (served / f"{kind}.tif").read_bytes()
    with impatient(), serving(served, folder / "cuts.log") as server:
        for how in ("files", "connections"):
            counts = {"error": 0, "right": 0, "wrong": 0}
            for kind, whole_file in raw.items():
                for number, offset in enumerate(np.linspace(0, len(whole_file) - 1, offsets).astype(int)):
                    path = f"cut-{offset}/{kind}.tif"
                    if how == "files":
                        path = f"ok/{kind}-{number}.tif"
                        (served / f"{kind}-{number}.tif").write_bytes(whole_file[:offset])
                    counts[outcome(remote(server.url(path)), VALUES)] += 1
            yield Figure(3, f"{how} cut, compressed and raw", 2 * offsets, counts, counts["wrong"] == 0)


def changes(folder: Path, requests: int = 6) -> Iterator[Figure]:
    """Bytes that are wrong, or of another version, from the n-th request on."""
    served, other = folder / "changes", VALUES[::-1].copy()
    served.mkdir()
    for kind, write in KINDS.items():
        write(served / f"{kind}.tif", VALUES)
        write(served / f"{kind}.tif.next", other)
    with impatient(), serving(served, folder / "changes.log") as server:
        for what, how, kinds in (
            ("other bytes, compressed", "garbage-{}-999", ["compressed"]),
            ("another version, with entity tags", "etag-{}", list(KINDS)),
            ("(not detectable) other bytes, raw", "garbage-{}-999", ["raw"]),
            ("(not detectable) another version, no tags, raw", "swap-{}", ["raw"]),
        ):
            counts = {"error": 0, "right": 0, "wrong": 0}
            for kind in kinds:
                for number in range(requests):
                    counts[outcome(remote(server.url(f"{how.format(number)}/{kind}.tif")), VALUES, other)] += 1
            yield Figure(3, what, requests * len(kinds), counts, counts["wrong"] == 0 or "not detectable" in what)


def fields(folder: Path, offsets: int = 50, requests: int = 6) -> Iterator[Figure]:
    """The same of fields of HDF5 files, which h5py reads over ranges."""
    served = folder / "fields"
    served.mkdir()
    first, other = (np.random.default_rng(seed).integers(0, 6000, test_hdf5.SHAPE).astype("int16") for seed in (0, 1))
    for name, counts in (("a.h5", first), ("a.h5.next", other)):
        viirs.write(served / name, test_hdf5.AFFINE, viirs.fields_of({"red": counts}))
    raw = (served / "a.h5").read_bytes()
    field = f"#{viirs.FIELDS}/{viirs.REFLECTANCE}_M5"

    def outcome_of(path: str) -> str:
        try:
            found = test_hdf5.whole(test_hdf5.reader(path + field))
        except SourceError:
            return "error"
        return "right" if any(np.array_equal(found, one) for one in right) else "wrong"

    right = [test_hdf5.whole(test_hdf5.reader(f"{served / name}{field}")) for name in ("a.h5", "a.h5.next")]
    with impatient(), serving(served, folder / "fields.log") as server:
        for how in ("files", "connections"):
            counts = {"error": 0, "right": 0, "wrong": 0}
            for number, offset in enumerate(np.linspace(0, len(raw) - 1, offsets).astype(int)):
                path = f"cut-{offset}/a.h5"
                if how == "files":
                    path = f"ok/cut-{number}.h5"
                    (served / f"cut-{number}.h5").write_bytes(raw[:offset])
                counts[outcome_of(server.url(path))] += 1
            yield Figure(3, f"{how} cut, HDF5", offsets, counts, counts["wrong"] == 0)
        for what, behaviour in (("other bytes, HDF5", "garbage-{}-999"), ("another version, HDF5", "etag-{}")):
            counts = {"error": 0, "right": 0, "wrong": 0}
            for number in range(requests):
                counts[outcome_of(server.url(f"{behaviour.format(number)}/a.h5"))] += 1
            yield Figure(3, what, requests, counts, counts["wrong"] == 0)


# ---------------------------------------------------------------- 4 what is not there

GONE = "fail-404-999999"


def missing(at: Place) -> Iterator[Figure]:
    """One of forty assets is not there: an error, or a run without its scene."""
    landsat = sorted(p.stem for p in at.world.glob("landsat*/LC*.json") if "20200301" in p.stem or "20200302" in p.stem)
    modis = sorted(p.stem for p in at.world.glob("modis*/MCD*.json") if ".A2020055" <= p.stem[7:16] <= ".A2020061")
    kept = {*landsat[:4], *modis[:14]}
    assets = 3 * len(landsat[:4]) + 2 * len(modis[:14])
    for kind, item, asset, role in (
        ("Landsat", landsat[1], "qa_pixel", "qa_pixel"),
        ("MODIS", modis[5], "Nadir_Reflectance_Band1", "red"),
    ):
        name = f"gone-{kind}"
        toml = behind(at.server, at.world, at.new(name), keep=kept.__contains__, odd={(item, asset): GONE})
        bare = behind(at.server, at.world, at.new(f"{name}-bare"), keep=(kept - {item}).__contains__)
        strict = write_cubes(toml, at.new(f"{name}-strict"))
        code = write_cubes(toml, at.new(f"{name}-run"), allow_missing=True)
        again = write_cubes(toml, at.new(f"{name}-run"), allow_missing=True)
        without = write_cubes(bare, at.new(f"{name}-bare-run"))
        document = json.loads((at.new(f"{name}-run") / "run.json").read_text())
        same = digests(at.new(f"{name}-run")) == digests(at.new(f"{name}-bare-run"))
        wanted = {"scenes": 1, "assets": [{"id": item, "asset": role}]}
        unfinished = store.missing_blocks(at.new(f"{name}-strict") / f"{kind.lower()}.zarr")
        found = {
            "strict_exit_code": strict, "allowed_exit_code": code, "listed": document["missing"] == wanted,
            "same_as_without_it": same, "strict_blocks_missing": len(unfinished),
        }  # fmt: skip
        passed = strict == 4 and not code + again + without and found["listed"] and same and bool(unfinished)
        yield Figure(4, f"assets, one of {kind} is gone", assets, found, passed)


# ---------------------------------------------------------------- 5 grids


def _odc(path: Path, source: GeoBox, target: GeoBox, folder: Path) -> np.ndarray[Any, Any]:
    import odc.stac
    import pystac

    box = source.geographic_extent
    properties = {
        "proj:epsg": source.crs.epsg, "proj:shape": list(source.shape), "proj:transform": list(source.affine)[:6]
    }  # fmt: skip
    extensions = ["https://stac-extensions.github.io/projection/v1.1.0/schema.json"]
    item = pystac.Item(
        "a", box.json, list(box.boundingbox.bbox), datetime(2020, 3, 1), properties,
        collection="c", stac_extensions=extensions,
    )  # fmt: skip
    bands = [{"data_type": "uint16", "nodata": 0}]
    item.add_asset("b", pystac.Asset(str(path), roles=["data"], extra_fields={"raster:bands": bands}))
    found = odc.stac.load([item], bands=["b"], geobox=target, resampling="cubic", dtype="uint16", nodata=0)
    return np.asarray(found["b"].values[0])


def shifts(folder: Path, count: int = 300) -> Iterator[Figure]:
    """Grids that differ by whole pixels: the raw bytes, which odc-stac reads too."""
    raw = other = 0
    for seed in range(count):
        rng = np.random.default_rng(seed)
        height, width = (int(n) for n in rng.integers(40, 120, 2))
        zone, east, north = (
            int(rng.integers(1, 60)),
            *(int(n) for n in rng.integers([8_000, 10_000], [25_000, 300_000])),
        )
        source = GeoBox((height, width), Affine(30, 0, 15 + 30 * east, 0, -30, 15 + 30 * north), f"EPSG:{32600 + zone}")
        values = rng.integers(1, 65535, (height, width)).astype("uint16")
        write_cog(folder / "shift.tif", values, source, 0)
        down, across = (int(n) for n in rng.integers(-20, 40, 2))
        target = GeoBox((50, 60), source.affine * Affine.translation(across, down), source.crs)
        found = whole(reader(folder / "shift.tif", target, Resampling.cubic, "uint16", 0))
        expected = np.pad(values, 80)[80 + down : 130 + down, 80 + across : 140 + across]
        raw += np.array_equal(found, np.pad(expected, ((0, 50 - len(expected)), (0, 60 - expected.shape[1]))))
        other += np.array_equal(found, _odc(folder / "shift.tif", source, target, folder))
    found = {"equal_to_raw_bytes": raw, "equal_to_odc_stac": other}
    yield Figure(5, "grids at whole pixels", count, found, raw == other == count)


_WARPS = {
    "MODIS to 480 m: 1 count, quality equal, tiles 0 off": (
        test_modis_to_480_m_is_the_exact_bilinear_answer_and_does_not_depend_on_tiles
    ),
    "Landsat of the next zone: 1 count, quality equal, tiles 0 off": (
        test_landsat_of_the_neighbouring_zone_is_the_exact_cubic_answer
    ),
    "means of finer MODIS and Sentinel-2: 0.51 counts, tiles 0 off": (
        test_finer_sources_of_another_projection_are_averaged_by_exact_area
    ),
}


def warps(folder: Path, count: int = 150) -> Iterator[Figure]:
    """Other grids: within one count of an exact answer, quality equal, independent of tiles."""
    for what, check in _WARPS.items():
        right = 0
        for seed in range(count):
            try:
                check(folder, 1000 + seed)
                right += 1
            except AssertionError:
                continue
        yield Figure(5, what, count, {"right": right}, right == count)


# ---------------------------------------------------------------- 6 order and twins


def orders(world: Path, folder: Path, count: int = 200) -> Iterator[Figure]:
    """Items in any order, some of them more than once: the same items.json."""
    known = catalog.open_catalog(str(world / "catalog.toml"))
    area = read_aoi(world / "aoi.geojson")
    longitude = area.centroid.coords[0][0]
    sides = [side for side in (known.fine, known.coarse) if side]
    items = {side: list(catalog._from_static(side, area)) for side in sides}
    seen, original, shuffled = set(), catalog._from_static, random.Random(0)

    def any_order(side: scenes.Side, _: Any) -> Iterator[dict[str, Any]]:
        chosen = items[side] + shuffled.choices(items[side], k=shuffled.randrange(1, len(items[side])))
        shuffled.shuffle(chosen)
        yield from chosen

    try:
        catalog._from_static = any_order
        for _ in range(count):
            found = [catalog.search(s, area, date(2020, 1, 1), date(2020, 12, 31), longitude, BANDS) for s in sides]
            scenes.save_scenes(folder, *found)
            seen.add(hashlib.sha256((folder / "items.json").read_bytes()).hexdigest())
    finally:
        catalog._from_static = original
    number = sum(map(len, items.values()))
    yield Figure(6, f"orders of {number} items, with twins", count, {"different": len(seen)}, len(seen) == 1)


# ---------------------------------------------------------------- 14 hostile addresses and files


def hostile(port: int) -> list[str]:
    """Addresses that no catalog may lead to; most of them lead to a canary's port."""
    there, good = f"127.0.0.1:{port}/ok/canary.tif", "landsateuwest.blob.core.windows.net"
    schemes = ["http", "https", "ftp", "file", "gopher", "ssh", "git", "data", "javascript", "HTTP", "s3", "gs"]
    made = [f"{scheme}://{there}" for scheme in schemes]
    handlers = ["curl", "s3", "az", "gs", "zip", "tar", "gzip", "mem", "sparse", "subfile", "curl_streaming", "stdin"]
    made += [f"/vsi{name}/http://{there}" for name in handlers]
    made += [f"/vsizip//vsi{name}/http://{there}" for name in handlers]
    drivers = ["VRT", "GTIFF_DIR:1", "HTTP", "WMS", "WCS", "STACIT", "ZARR", "NETCDF", "HDF5", "GTI", "DERIVED", "JPEG"]
    made += [f"{name}:http://{there}" for name in drivers] + [f'{name}:"/vsicurl/http://{there}"' for name in drivers]
    made += [f"vrt://http://{there}", f"vrt:///vsicurl/http://{there}?bands=1", f"zip+http://{there}"]
    made += [f"<VRTDataset><SourceFilename>/vsicurl/http://{there}</SourceFilename></VRTDataset>"]
    hosts = [
        f"{good}.example", f"x{good}@127.0.0.1:{port}", f"{good}@127.0.0.1:{port}", f"{good}:x@127.0.0.1:{port}",
        f"127.0.0.1:{port}#{good}", f"127.0.0.1:{port}?{good}", f"127.0.0.1:{port}\\@{good}", f"[::1]:{port}",
        f"[::ffff:127.0.0.1]:{port}", f"localhost:{port}", f"0:{port}", f"2130706433:{port}", f"0x7f000001:{port}",
        f"0177.0.0.1:{port}", f"127.1:{port}", "169.254.169.254", "metadata.google.internal", "", ":80", "[", "[::1",
        f"127.0.0.1%00.{good}:{port}", f"127.0.0.1:{port}%2f{good}", f"{good}%2eexample",
        "blob.core.windows.net.example",
        f"{good} .example", f"{good}\t.example", f"{good}\n.example", f"127.0.0.1:{port} {good}", "ｌocalhost",
    ]  # fmt: skip
    made += [f"{scheme}://{host}/ok/canary.tif" for scheme in ("http", "https", "s3") for host in hosts]
    files = [
        "/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "~/x.tif", "/proc/self/environ", "/dev/zero",
        "/dev/stdin",
        "C:\\x.tif", "\\\\127.0.0.1\\x\\y.tif", "x.tif\0.tif", "", ".", "..", "/", "|id", "$(id)", "`id`", "/tmp/x.tif",
    ]  # fmt: skip
    made += files + [f"/vsi{name}/{path}" for name in ("sparse", "subfile", "zip", "gzip") for path in files[:9]]
    return list(dict.fromkeys(made))


def addresses(folder: Path, world: Path, count: int = 200) -> Iterator[Figure]:
    """Hostile addresses in items, redirects and images: nothing is opened, and a canary is not asked."""
    served = folder / "hosts"
    served.mkdir()
    write_cog(served / "canary.tif", VALUES, GRID, 0)
    write_cog(served / "image.tif", VALUES, GRID, 0)
    known = catalog.open_catalog("planetary-computer").fine
    local = catalog.open_catalog(str(world / "catalog.toml")).fine
    assert known is not None
    assert local is not None
    item = next(catalog._from_static(local, read_aoi(world / "aoi.geojson")))
    with impatient(), serving(served, folder / "hosts.log") as server, serving(served, folder / "canary.log") as canary:
        hrefs = hostile(canary.port)[:count]
        refused = 0
        for href in hrefs:
            for side in (known, local, replace(known, hosts=("http://tiles.example", "*.example.com"))):
                item["assets"]["red"]["href"] = href
                try:
                    scenes.to_scene(item, side, 114.0, ("red",))
                except SourceError:
                    refused += 1
        hits = len(canary.requests())
        found = {"opened": 3 * len(hrefs) - refused, "canary_hits": hits}
        yield Figure(14, "hostile addresses in items", len(hrefs), found, found["opened"] == hits == 0)
        places = [f"to-{host}-{canary.port}/image.tif" for host in ("localhost", "127.0.0.2", "0", "127.1")]
        (served / "vrt.tif").write_text(
            f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><VRTRasterBand dataType="UInt16" band="1">'
            f"<SimpleSource><SourceFilename>/vsicurl/{canary.url('ok/canary.tif')}</SourceFilename></SimpleSource>"
            "</VRTRasterBand></VRTDataset>"
        )
        (served / "wms.tif").write_text(f"<GDAL_WMS><ServerUrl>{canary.url('ok/canary.tif')}</ServerUrl></GDAL_WMS>")
        (served / "text.tif").write_text(f"/vsicurl/{canary.url('ok/canary.tif')}\n")
        places += ["ok/vrt.tif", "ok/wms.tif", "ok/text.tif"]
        results = [outcome(remote(server.url(path)), VALUES) for path in places]
        stays = outcome(remote(server.url(f"to-127.0.0.1-{server.port}/image.tif")), VALUES)
        hits = len(canary.requests())
        found = {"opened": len(results) - results.count("error"), "canary_hits": hits, "allowed_redirect": stays}
        passed = found["opened"] == hits == 0 and stays == "right"
        yield Figure(14, "redirects and images that lead elsewhere", len(places), found, passed)


BOMBS: dict[str, dict[str, Any]] = {
    "one tile": {"width": 16000, "height": 16000, "tiled": True, "blockxsize": 16000, "blockysize": 16000},
    "one strip": {"width": 20000, "height": 20000, "blockysize": 20000},
    "one wide strip": {"width": 900_000, "height": 400, "blockysize": 400},
    "too wide": {"width": 2_000_000, "height": 16, "blockysize": 1},
    "too high": {"width": 16, "height": 2_000_000, "blockysize": 16},
    "many bands": {"width": 512, "height": 512, "count": 2000, "interleave": "pixel", "blockysize": 512},
    "doubles": {"width": 8192, "height": 8192, "dtype": "float64", "blockysize": 8192},
    "lzw": {"width": 20000, "height": 20000, "compress": "lzw", "blockysize": 20000},
    "zstd": {"width": 20000, "height": 20000, "compress": "zstd", "blockysize": 20000},
    "big tiff": {"width": 30000, "height": 30000, "blockysize": 30000, "BIGTIFF": "YES"},
}
_OPEN = r"""
import re, sys
from pathlib import Path
import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window
from stackstac.raster_spec import RasterSpec
from stfgan_xr.errors import SourceError
from stfgan_xr.rasters import AssetReader, Resampling
spec = RasterSpec(32650, (480015, 2398095, 481935, 2400015), (30, 30))
try:
    AssetReader(url=sys.argv[1], spec=spec, resampling=Resampling.nearest, dtype=np.dtype(sys.argv[2]),
                fill_value=0).read(Window(0, 0, 64, 64))
    print("opened", end=" ")
except SourceError:
    print("refused", end=" ")
# Not getrusage: what a process inherits from a large one that started it counts there.
print(int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def bombs(folder: Path, names: tuple[str, ...] = tuple(BOMBS)) -> Iterator[Figure]:
    """Small files that claim much memory: refused before it is taken."""
    refused = peak = largest = 0
    for name in names:
        path = folder / f"{name.replace(' ', '-')}.tif"
        profile: dict[str, Any] = {"driver": "GTiff", "count": 1, "dtype": "uint8", "compress": "deflate"} | BOMBS[name]
        with rasterio.open(path, "w", crs="EPSG:32650", transform=GRID.affine, SPARSE_OK=True, **profile):
            pass
        largest = max(largest, path.stat().st_size)
        command = [sys.executable, "-c", _OPEN, str(path), profile["dtype"]]
        word, mib = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
        refused, peak = refused + (word == "refused"), max(peak, int(mib))
    found = {"refused": refused, "peak_mib": peak, "largest_file_kib": largest >> 10}
    yield Figure(14, "images that claim much memory", len(names), found, refused == len(names) and peak < 300)


# ---------------------------------------------------------------- 15 secrets

_LOUD = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from planetary_computer import sas
sas.BLOB_STORAGE_DOMAIN = ""
from stfgan_xr import rasters
rasters.PAUSE, rasters.LONGEST_PAUSE = 0.001, 0.02
from pipelines import fuse
from pipelines.console import main
main(fuse.command)
"""


def secrets(at: Place, behaviours: tuple[str, ...] = ("clock-1-0", "sig-never")) -> Iterator[Figure]:
    """A token in whole runs with all logs on, one that ends well and one that does not: it shows nowhere."""
    hits = {"output_and_logs": 0, "files": 0, "graph": 0}
    sent, codes = 0, []
    for how in behaviours:
        toml = behind(at.server, at.world, at.new(f"secret-{how}"), how, "planetary-computer")
        folder = at.new(f"secret-{how}-run")
        command = [
            sys.executable,
            "-c",
            _LOUD,
            "--catalog",
            toml,
            "--dates",
            "2020-03-01",
            "--bands",
            "red",
            "--method",
            "delta",
        ]
        command += ["--bracket-days", "8", "--out", str(folder)]
        environment = os.environ | {"PC_SDK_SAS_URL": at.server.url("token"), "STFGAN_XR_DEBUG": "1", "CPL_DEBUG": "ON"}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
        codes.append(ended.returncode)
        hits["output_and_logs"] += (ended.stdout + ended.stderr).count(CANARY)
        hits["files"] += sum(CANARY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
        sent += sum(f" /{how}/" in line and CANARY in line for line in at.server.requests())
        known = catalog.open_catalog(toml)
        assert known.fine is not None
        kept = scenes.read_scenes(folder)
        assert kept is not None
        found = kept[0]
        grid = nested_grid(read_aoi(at.world / "aoi.geojson"))
        with signing(at.server):
            graph = load(found, grid, side=known.fine, bands=["red"], tile=128).__dask_graph__()
            hits["graph"] += repr(list(graph)).count(CANARY) + pickle.dumps(dict(graph)).count(CANARY.encode())
    passed = not any(hits.values()) and sent > 0 and codes == [0, 1][: len(codes)]
    yield Figure(15, "requests with a canary token", sent, hits, passed)


# ---------------------------------------------------------------- 17 dates


def dates(world: Path) -> Iterator[Figure]:
    """Leap days, the last millisecond, items without a moment, the date line."""
    known = catalog.open_catalog(str(world / "catalog.toml"))
    area = read_aoi(world / "aoi.geojson")
    fine, coarse = (next(catalog._from_static(side, area)) for side in (known.fine, known.coarse) if side)
    assert known.fine is not None
    assert known.coarse is not None
    wrong = tried = 0
    for text, longitude, expected in (
        ("2020-02-28T23:59:59.999Z", 0.0, "2020-02-28"), ("2020-02-28T23:59:59.999Z", 0.01, "2020-02-29"),
        ("2020-02-29T00:00:00Z", -0.01, "2020-02-28"), ("2019-02-28T23:59:59.999Z", 15.0, "2019-03-01"),
        ("2020-02-29T23:59:59.999Z", 114.0, "2020-03-01"), ("2100-02-28T23:00:00Z", 30.0, "2100-03-01"),
        ("2000-02-28T23:00:00Z", 30.0, "2000-02-29"), ("2019-12-31T23:59:59.999Z", 1.0, "2020-01-01"),
        ("2020-01-01T00:00:00Z", -1.0, "2019-12-31"), ("2020-01-01T12:30:00Z", 179.99, "2020-01-02"),
        ("2020-01-01T11:30:00Z", -179.99, "2019-12-31"), ("2020-01-01T11:30:00Z", 179.99, "2020-01-01"),
        ("2020-01-01T12:30:00Z", -179.99, "2020-01-01"), ("2020-06-30T23:59:59.999999Z", 0.0, "2020-06-30"),
    ):  # fmt: skip
        for key in ("datetime", "start_datetime"):
            other = {"datetime": None, "start_datetime": None, key: text}
            item = fine | {"properties": fine["properties"] | other}
            scene = scenes.to_scene(item, known.fine, longitude, ("red",))
            tried, wrong = tried + 1, wrong + (scene is None or scene.day.isoformat() != expected)
    for stated, expected in (("2020060", "2020-02-29"), ("2020366", "2020-12-31"), ("2019365", "2019-12-31")):
        start = date.fromisoformat(expected) - timedelta(days=8)
        moments = {
            "datetime": None,
            "start_datetime": f"{start}T00:00:00Z",
            "end_datetime": f"{expected}T23:59:59.999Z",
        }
        name = f"MCD43A4.A{stated}.h28v06.061.2021050035331"
        item = coarse | {"id": name, "properties": coarse["properties"] | moments}
        scene = scenes.to_scene(item, known.coarse, 114.0, ("red",))
        tried, wrong = tried + 1, wrong + (scene is None or scene.day.isoformat() != expected)
    for properties in ({"datetime": None}, {"datetime": "2019-02-29T00:00:00Z"}, {"datetime": "2020-01-01T24:00:01Z"}):
        item = fine | {"properties": {**fine["properties"], "start_datetime": None, **properties}}
        tried += 1
        try:
            scenes.to_scene(item, known.fine, 114.0, ("red",))
            wrong += 1
        except SourceError:
            continue
    for bbox, meets in (([179, -20, -179, -10], True), ([-179, -20, -170, -10], False), ([170, -20, 180, -10], True)):
        tried, wrong = (
            tried + 1,
            wrong + (catalog._overlaps({"bbox": bbox}, read_aoi("179.5,-18,179.9,-17")) is not meets),
        )
    yield Figure(17, "odd dates and places", tried, {"wrong": wrong}, wrong == 0)


# ---------------------------------------------------------------- 9, 10, 11, 16 processes, damage and disks


@dataclass(frozen=True)
class Counts:
    """How often each thing is tried."""

    kills: int = 200
    worker_kills: int = 20
    scheduler_kills: int = 5
    damages: int = 100
    limits: int = 50


def survives(world: Path, folder: Path, rows: set[int], counts: Counts) -> Iterator[Figure]:
    """What a run survives."""
    if not rows & {9, 10, 11, 16}:
        return
    plan = survival.make_plan(world, folder / "runs")
    if 9 in rows and counts.kills:
        found = survival.kills(plan, counts.kills)
        wrong = ("unreadable", "torn", "reader_wrong_pixels", "reader_unreadable")
        passed = found["same"] == found["runs"] and not any(found[key] for key in wrong)
        passed &= found["most_blocks_repeated_by_a_kill"] <= 1
        yield Figure(9, f"kills of whole runs, by change of a file (of {plan.changes}) and by time", found.pop("kills"),
                     found, passed)  # fmt: skip
        found = survival.terms(plan, max(1, counts.kills // 10))
        passed = found["ended_with_143"] == found["asked"] and found["same"] == found["runs"]
        yield Figure(9, "SIGTERM", found.pop("asked"), found, passed and found["slowest_seconds"] < 10)
    if 9 in rows and counts.worker_kills:
        found = survival.worker_kills(plan, counts.worker_kills)
        passed = found["same_without_resuming"] == found["runs"] and found["finished_blocks_repeated"] == 0
        yield Figure(9, "kills of one of two workers", found.pop("kills"), found, passed)
    if 9 in rows and counts.scheduler_kills:
        found = survival.scheduler_kills(plan, counts.scheduler_kills)
        passed = found["same"] == counts.scheduler_kills and found["finished_blocks_repeated"] == 0
        passed &= found["exit_codes"] == [5]
        yield Figure(9, "kills of the scheduler", found.pop("kills"), found, passed)
    if 10 in rows:
        found = survival.damages(plan, counts.damages)
        passed = found["found"] == found["repaired_to_the_byte"] == counts.damages
        yield Figure(10, "chunks deleted, cut or with a flipped bit", counts.damages, found,
                     passed and not found["named_without_cause"])  # fmt: skip
    if 11 in rows:
        yield from _disks(plan, counts.limits)
    if 16 in rows:
        found = survival.repeats(plan)
        yield Figure(16, "the same run, 1 and 2 workers, processes and threads", found.pop("runs"), found,
                     found["different"] == 1)  # fmt: skip


def _disks(plan: survival.Plan, count: int) -> Iterator[Figure]:
    """Half of the limits are small disks, where one can be mounted; else all are limits of the size of files."""
    small = survival.small_disks(plan, count // 2)
    rest = count if small is None else count - count // 2
    for what, tried, found in (
        ("disks that are full and grow", count // 2, small),
        ("limits of the size of files", rest, survival.limits(plan, rest)),
    ):
        if found is not None:
            passed = found["same"] == tried and not found["torn"] and not found["unreadable"] and found["exit_5"] > 0
            yield Figure(11, what, tried, found, passed)


def broken_files(folder: Path) -> Iterator[Figure]:
    """Files of others."""
    for step, what in (
        (untrusted.checkpoints, "broken and malicious checkpoints"), (untrusted.areas, "broken areas"),
        (untrusted.tomls, "broken TOMLs of catalogs and pairs"), (untrusted.stores, "foreign and broken Zarr stores"),
    ):  # fmt: skip
        inner = folder / what.replace(" ", "-")
        inner.mkdir()
        found = step(inner)
        tried = found["refused"] + found["taken"] + found["tracebacks"]
        passed = found["refused"] == tried and not found.get("executed")
        yield Figure(14, what, tried, found, passed)


def memory(folder: Path) -> Iterator[Figure]:
    """Peak memory against what is predicted."""
    found = footprints.measure(folder)
    ratios = [row["peak"] / row["predicted"] for row in found]
    low, high = min(ratios), max(ratios)
    shown = {"least_ratio": round(low, 2), "greatest_ratio": round(high, 2)}
    yield Figure(12, "shapes, peak memory as a share of the prediction", len(found), shown, 0.7 <= low <= high <= 1.15)


# ---------------------------------------------------------------- all of them


def figures(folder: Path, rows: set[int], counts: Counts) -> Iterator[Figure]:
    """All figures of the chosen rows."""
    world = small_world(folder / "world")
    with ExitStack() as stack:
        at = stack.enter_context(place(folder, world)) if rows & {1, 2, 4, 15} else Place(folder, world, None, folder)
        for row, steps in {
            1: (partial(tokens, at),), 2: (partial(random_faults, at),),
            3: (partial(cuts, folder), partial(changes, folder), partial(fields, folder)), 4: (partial(missing, at),),
            5: (partial(shifts, folder), partial(warps, folder)), 6: (partial(orders, world, folder),),
            12: (partial(memory, folder),),
            14: (partial(addresses, folder, world), partial(bombs, folder), partial(broken_files, folder)),
            15: (partial(secrets, at),), 17: (partial(dates, world),),
        }.items():  # fmt: skip
            for step in steps if row in rows else ():
                yield from step()
    yield from survives(world, folder, rows, counts)


ROWS = (1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 14, 15, 16, 17)
REPORT = Path(__file__).parent / "reliability.md"


def table(found: list[Figure]) -> str:
    """Figures in eighty columns."""
    made = Table(box=None, pad_edge=False, width=80)
    for name in ("row", "tried", "what", "found", ""):
        made.add_column(name, overflow="fold", justify="right" if name in ("row", "tried") else "left")
    for figure in found:
        said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in figure.found.items())
        made.add_row(str(figure.row), str(figure.tried), figure.what, said, "ok" if figure.passed else "FAILED")
    text = io.StringIO()
    Console(file=text, width=80).print(made)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


_TOP = """# Reliability, measured

What may never happen, tried on purpose; written by `make faults`. Each row was measured with the command that it names,
on the demo world, with servers on loopback. "Not detectable" rows are not held against the reader: none can tell wrong
bytes of the right length, or another version without an entity tag, in an image without checksums.

| row | tried | what | found | | command |
|---|---|---|---|---|---|
"""


def report(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = []
    for row in rows:
        said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row["found"].items())
        verdict = "ok" if row["passed"] else "**failed**"
        lines.append(
            f"| {row['row']} | {row['tried']} | {row['what']} | {said} | {verdict} | `{row.get('command', COMMAND)}` |"
        )
    return _TOP + "\n".join(lines) + "\n"


COMMAND = "python -m benchmarks.faults"


def command(
    rows: Annotated[str, typer.Option(help="Comma list of rows.")] = ",".join(map(str, ROWS)),
    kills: Annotated[int, typer.Option(min=0, help="Kills of whole runs.")] = Counts.kills,
    worker_kills: Annotated[int, typer.Option(min=0, help="Kills of workers.")] = Counts.worker_kills,
    scheduler_kills: Annotated[int, typer.Option(min=0, help="Kills of schedulers.")] = Counts.scheduler_kills,
    damages: Annotated[int, typer.Option(min=1, help="Chunks that are damaged.")] = Counts.damages,
    limits: Annotated[int, typer.Option(min=2, help="Disks that are full.")] = Counts.limits,
    to: Annotated[Path, typer.Option(help="File of the figures; reliability.md is written for the default.")] = RESULTS,
) -> None:
    """Measure what becomes of pixels when servers, files, processes, disks and catalogs go wrong."""
    wanted = {int(row) for row in rows.split(",")}
    counts = Counts(kills, worker_kills, scheduler_kills, damages, limits)
    asked = shlex.join(["python", "-m", "benchmarks.faults", *sys.argv[1:]])
    found = list[Figure]()
    with tempfile.TemporaryDirectory() as scratch:
        for figure in figures(Path(scratch), wanted, counts):
            found.append(figure)
            print(
                f"row {figure.row}, {figure.what}: {'ok' if figure.passed else 'FAILED'}", file=sys.stderr, flush=True
            )
            keep(found, asked, to)
    print(table(found), end="")
    if not all(figure.passed for figure in found):
        raise typer.Exit(1)


def keep(found: list[Figure], asked: str, to: Path) -> None:
    """Put figures in the place of earlier ones of the same."""
    old = json.loads(to.read_text(encoding="utf-8")) if to.is_file() else []
    new = {(figure.row, figure.what) for figure in found}
    rows = [row for row in old if (row["row"], row["what"]) not in new]
    rows += [vars(figure) | {"command": asked} for figure in found]
    rows.sort(key=lambda row: row["row"])
    to.parent.mkdir(exist_ok=True)
    to.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if to == RESULTS:
        REPORT.write_text(report(rows), encoding="utf-8")


if __name__ == "__main__":
    main(command)
