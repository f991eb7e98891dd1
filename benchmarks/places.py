"""Grids, orders of items and dates that are odd, against exact answers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from benchmarks.figures import Figure
from stfgan_xr import catalog, scenes
from stfgan_xr.aoi import read_aoi
from stfgan_xr.errors import SourceError
from stfgan_xr.rasters import Resampling, write_cog
from stfgan_xr.sensors import BANDS
from tests.test_rasters import (
    reader,
    test_finer_sources_of_another_projection_are_averaged_by_exact_area,
    test_landsat_of_the_neighbouring_zone_is_the_exact_cubic_answer,
    test_modis_to_480_m_is_the_exact_bilinear_answer_and_does_not_depend_on_tiles,
    whole,
)

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
