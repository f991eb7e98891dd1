"""Files of others that are broken or meant to harm: areas, TOMLs, checkpoints and Zarr stores; what became of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from stfgan_xr import store
from stfgan_xr.aoi import LARGEST_FILE, read_aoi
from stfgan_xr.catalog import open_catalog
from stfgan_xr.datasets import read_pairs
from stfgan_xr.errors import StfganError
from stfgan_xr.predictors.stfgan import STFGAN
from tests import test_checkpoint

Counts = dict[str, int]
RING = [[114, 22], [115, 22], [115, 23], [114, 22]]


def polygon(coordinates: Any, **more: Any) -> bytes:
    """A GeoJSON polygon of any coordinates."""
    return json.dumps({"type": "Polygon", "coordinates": coordinates, **more}).encode()


AREAS: dict[str, bytes] = {
    "empty": b"",
    "no json": b"{",
    "not text": b"\xff\xfe\x00",
    "null": b"null",
    "a number": b"5",
    "a list": b"[]",
    "a word": b'"Polygon"',
    "no type": b"{}",
    "type a list": b'{"type": []}',
    "only a type": b'{"type": "Polygon"}',
    "nested lists": b"[" * 200_000,
    "nested objects": b'{"a":' * 100_000,
    "nested collections": b'{"type":"GeometryCollection","geometries":[' * 50_000,
    "nested coordinates": b'{"type":"Polygon","coordinates":' + b"[" * 500 + b"]" * 500 + b"}",
    "no features": b'{"type": "FeatureCollection", "features": []}',
    "features no list": b'{"type": "FeatureCollection", "features": {"a": 1}}',
    "feature without geometry": b'{"type": "Feature", "geometry": null}',
    "geometries a text": b'{"type": "GeometryCollection", "geometries": "abc"}',
    "a point": b'{"type": "Point", "coordinates": [114, 22]}',
    "a line": json.dumps({"type": "LineString", "coordinates": RING}).encode(),
    "coordinates null": polygon(None),
    "coordinates a text": polygon("114,22"),
    "coordinates objects": polygon([{}]),
    "ring of texts": polygon([[["114", "22"]] * 4]),
    "ring of two": polygon([RING[:2]]),
    "ring empty": polygon([[]]),
    "points of one": polygon([[[114]] * 4]),
    "not a number": polygon([[*RING[:2], [float("nan"), 1], RING[0]]]),
    "infinite": polygon([[*RING[:2], [float("inf"), 1], RING[0]]]),
    "huge": polygon([[[1e308, 1], [2, 1e308], [3, 3], [1e308, 1]]]),
    "off Earth": polygon([[[500, 22], [501, 22], [501, 23], [500, 22]]]),
    "no area": polygon([[[1, 1], [2, 2], [3, 3], [1, 1]]]),
    "metres": polygon([[[500_000, 2_400_000], [510_000, 2_400_000], [510_000, 2_410_000], [500_000, 2_400_000]]]),
    "numbers too long": b'{"type":"Polygon","coordinates":[[[' + b"9" * 5000 + b",1],[1,2],[2,2],[1,1]]]}",
    "too large": b" " * (LARGEST_FILE + 1),
}

GOOD = '[{side}]\nstatic = "catalog.json"\n[{side}.collections.a]\nsensors = ["oli"]\nassets = {{red = "red"}}\n'
CATALOGS: dict[str, bytes] = {
    "empty": b"",
    "no toml": b"[",
    "not text": b"\xff\xfe",
    "zeros": b"\0" * 100,
    "nested": b"a = " + b"[" * 50_000,
    "only a name": b'name = "a"',
    "name a number": b"name = 5",
    "fine a number": b'name = "a"\nfine = 5',
    "no address": b'name = "a"\n[fine]\n',
    "two addresses": b'name = "a"\n[fine]\napi = "b"\nstatic = "c"',
    "unknown key": b'name = "a"\n[fine]\nstatic = "c"\nrun = "rm"',
    "signer": b'name = "a"\n[fine]\nstatic = "c"\nsigner = "os.system"',
    "collections a list": b'name = "a"\n[fine]\nstatic = "c"\ncollections = [1]',
    "collection a number": b'name = "a"\n[fine]\nstatic = "c"\ncollections = {a = 1}',
    "timeout nan": b'name = "a"\n[fine]\nstatic = "c"\ntimeout = nan',
    "hosts numbers": b'name = "a"\n[fine]\nstatic = "c"\nhosts = [1]',
    "page none": b'name = "a"\n[fine]\nstatic = "c"\npage = 0',
    "twice": b'name = "a"\nname = "b"',
    "too large": b"#" * (2 << 20),
    "token": b'name = "a"\n[fine]\nstatic = "c"\ntoken = "HOME"\n[fine.collections.a]\nsensors = ["oli"]',
}
PAIRS: dict[str, bytes] = {
    "empty": b"",
    "no toml": b"= 1",
    "not text": b"\xff\xfe",
    "a name only": b'name = "a"',
    "nested": b"a = " + b"[" * 50_000,
    "bands a text": b'name = "a"\nbands = "red"\n[fine]\n[coarse]\n',
    "band a path": b'name = "a"\nbands = ["../x"]\n[fine]\n[coarse]\n',
    "too large": b"#" * (2 << 20),
    "scale nan": b'name="a"\nbands=["red"]\n[fine]\npath="{date}.tif"\ndate_format="%Y%j"\nscale=nan\n[coarse]\n',
    "format a command": b'name="a"\nbands=["red"]\n[fine]\npath="{date}.tif"\ndate_format="%c%p"\nscale=1\n[coarse]\n',
    "no files": b'name="a"\nbands=["red"]\n[fine]\npath="/{date}.tif"\ndate_format="%Y%j"\nscale=1.0\noffset=0.0\n'
    b"nodata=0\n"
    b'[coarse]\npath="{date}.tif"\ndate_format="%Y%j"\nscale=1.0\noffset=0.0\nnodata=0\n',
}


def tally(names: Iterable[str], attempt: Callable[[str], Any]) -> Counts:
    """How many were refused with a known error in one line, were taken, or ended in some other error."""
    counts = {"refused": 0, "taken": 0, "tracebacks": 0}
    for name in names:
        try:
            attempt(name)
        except StfganError as error:
            one_line = len(str(error)) < 1000
            counts["refused" if one_line else "tracebacks"] += 1
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            counts["tracebacks"] += 1
        else:
            print(f"{name}: taken")
            counts["taken"] += 1
    return counts


def areas(folder: Path) -> Counts:
    """Areas of ``--aoi``."""
    path = folder / "area.geojson"

    def attempt(name: str) -> None:
        path.write_bytes(AREAS[name])
        read_aoi(path)

    return tally(AREAS, attempt)


def tomls(folder: Path) -> Counts:
    """Catalogs, and pairs of own rasters."""
    path = folder / "file.toml"

    def attempt(name: str) -> None:
        kind, _, which = name.partition(": ")
        path.write_bytes((CATALOGS if kind == "catalog" else PAIRS)[which])
        open_catalog(str(path)) if kind == "catalog" else read_pairs(path)

    return tally([*(f"catalog: {name}" for name in CATALOGS), *(f"pairs: {name}" for name in PAIRS)], attempt)


def checkpoints(folder: Path) -> Counts:
    """Weights; what unpickles one of them leaves a mark."""
    marks = 0

    def attempt(name: str) -> None:
        nonlocal marks
        inner = folder / f"checkpoint-{abs(hash(name))}"
        path = test_checkpoint.write(inner)
        test_checkpoint.BAD[name](path)
        try:
            STFGAN.open(path)
        finally:
            marks += (inner / "mark").exists()

    return tally(test_checkpoint.BAD, attempt) | {"executed": marks}


def _cube(path: Path) -> None:
    grid = GeoBox((64, 64), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    days = tuple(date(2020, 1, 1) + timedelta(days=n) for n in range(2))
    layout = store.Layout(grid, days, store.observation_variables(("red",)), 64, 2)
    for block in store.prepare(path, layout, {}):
        store.write_block(path, layout, block, store.fill(layout, block))
    store.seal(path)


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda path: _edit(path / "zarr.json", lambda root: change(root["attributes"]["stfgan_xr"]))


def _array(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda path: _edit(path / "red" / "zarr.json", change)


def _codec(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda array: array["codecs"][0]["configuration"]["codecs"].insert(1, {"name": name, "configuration": {}})


def _inner(side: int) -> Callable[[dict[str, Any]], Any]:
    def change(array: dict[str, Any]) -> None:
        array["shape"] = [2, side, side]
        array["chunk_grid"]["configuration"]["chunk_shape"] = [2, side, side]
        array["codecs"][0]["configuration"]["chunk_shape"] = [2, side, side]

    return change


def _other(path: Path) -> None:
    shutil.rmtree(path)
    zarr.create_group(path).create_array("red", shape=(4, 4), dtype="f4")


def _old(path: Path) -> None:
    shutil.rmtree(path)
    zarr.create_group(path, zarr_format=2)


STORES: dict[str, Callable[[Path], Any]] = {
    "empty folder": lambda p: [shutil.rmtree(p), p.mkdir()],
    "a file": lambda p: [shutil.rmtree(p), p.write_text("x")],
    "another's": _other,
    "another version": _old,
    "root no json": lambda p: (p / "zarr.json").write_text("{"),
    "root a list": lambda p: (p / "zarr.json").write_text("[1]"),
    "root not text": lambda p: (p / "zarr.json").write_bytes(b"\xff"),
    "root nested": lambda p: (p / "zarr.json").write_text("[" * 100_000),
    "root an array": lambda p: shutil.copy(p / "red" / "zarr.json", p / "zarr.json"),
    "state a text": lambda p: _edit(p / "zarr.json", lambda root: root["attributes"].update(stfgan_xr="x")),
    "no layout": _state(lambda s: s.pop("layout")),
    "layout a list": _state(lambda s: s.update(layout=[])),
    "tile none": _state(lambda s: s["layout"].update(tile=0)),
    "tile a text": _state(lambda s: s["layout"].update(tile="64")),
    "run huge": _state(lambda s: s["layout"].update(run=10**12)),
    "days a number": _state(lambda s: s["identity"].update(days=5)),
    "grid huge": _state(lambda s: s["identity"]["grid"].__setitem__(-1, 10**9)),
    "grid a text": _state(lambda s: s["identity"].update(grid="x")),
    "variable elsewhere": _state(lambda s: s["layout"].update(variables=["../../red"])),
    "variable absent": _state(lambda s: s["layout"].update(variables=["nir"])),
    "variables many": _state(lambda s: s["layout"].update(variables=["red"] * 5000)),
    "status": _state(lambda s: s.update(status="done")),
    "array no json": lambda p: (p / "red/zarr.json").write_text("{"),
    "array gone": lambda p: (p / "red/zarr.json").unlink(),
    "floats": _array(lambda a: a.update(data_type="float64", fill_value=0.0)),
    "unknown type": _array(lambda a: a.update(data_type="object")),
    "unknown codec": _array(_codec("numcodecs.pickle")),
    "chunk of terabytes": _array(_inner(10**6)),
    "chunk none": _array(_inner(0)),
    "shard rubbish": lambda p: (p / "red/c/0/0/0").write_bytes(b"\x80\x04" * 500),
    "shard gone": lambda p: (p / "red/c/0/0/0").unlink(),
    "time gone": lambda p: shutil.rmtree(p / "time"),
}


def stores(folder: Path) -> Counts:
    """Zarr stores that say they are cubes."""
    good = folder / "good.zarr"
    _cube(good)

    def attempt(name: str) -> None:
        path = folder / "other.zarr"
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        shutil.copytree(good, path)
        STORES[name](path)
        values = store.open_cube(path).red.values
        assert values.shape == (2, 64, 64)
        assert np.isnan(values).all()

    return tally(STORES, attempt)
