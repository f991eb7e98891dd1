"""Images that are cut, changed, hostile or too large: an error, and never a wrong pixel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from benchmarks.figures import Figure
from benchmarks.servers import ROOT, impatient
from stfgan_xr import catalog, scenes
from stfgan_xr.aoi import read_aoi
from stfgan_xr.errors import SourceError
from stfgan_xr.rasters import AssetReader, Resampling, write_cog
from tests import test_hdf5, viirs
from tests.range_server import serving
from tests.test_rasters import spec, whole

SIDE = 320
GRID = GeoBox((SIDE, SIDE), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
VALUES = np.random.default_rng(0).integers(1, 65535, (SIDE, SIDE)).astype("uint16")


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
