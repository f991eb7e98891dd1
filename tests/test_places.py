"""Areas of any size at any place: tiny, huge, on the limit of two zones, across 180 degrees, south, far north."""

from __future__ import annotations

import logging
import time
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj import Geod, Transformer

from pipelines import cubes
from stfgan_xr import store
from stfgan_xr.aoi import middle, read_aoi
from stfgan_xr.catalog import search
from stfgan_xr.errors import InputError
from stfgan_xr.grid import coarse_grid, nested_grid
from stfgan_xr.load import load
from stfgan_xr.rasters import write_cog
from stfgan_xr.scenes import Collection, Scene, Side
from stfgan_xr.sensors import BANDS, FILL
from tests.test_aoi import HOLE, SQUARE, polygon, saved
from tests.test_catalog import Api, at, landsat_item, served
from tests.test_rasters import exact, positions, smooth

DAY = date(2020, 3, 1)


def epsg(grid: GeoBox) -> int | None:
    assert grid.crs is not None
    return grid.crs.epsg


# ---------------------------------------------------------------- shapes and sizes


def metre(longitude: float, latitude: float) -> dict[str, Any]:
    """A square of one metre."""
    side = 1 / 111_320
    return polygon([[longitude, latitude], [longitude + side, latitude], [longitude + side, latitude + side], [longitude, latitude + side], [longitude, latitude]])  # fmt: skip


@pytest.mark.parametrize(
    "place", [(114.05, 22.55), (-70.0, -33.4), (179.99999, -17.0), (0.0, 0.0), (25.0, 71.0)], ids=str
)
def test_an_area_of_a_metre_is_at_least_one_cell(tmp_path: Path, place: tuple[float, float]) -> None:
    grid = nested_grid(read_aoi(saved(tmp_path, metre(*place))))
    assert grid.shape.x in (16, 32)
    assert grid.shape.y in (16, 32)
    x, y = Transformer.from_crs(4326, epsg(grid), always_xy=True).transform(*place)
    assert grid.boundingbox.left <= x <= grid.boundingbox.right
    assert grid.boundingbox.bottom <= y <= grid.boundingbox.top
    assert min(coarse_grid(grid).shape) >= 1


def test_a_point_on_the_border_of_cells_is_one_cell() -> None:
    point = Geometry({"type": "Point", "coordinates": [117.0, 0.0]}, "EPSG:4326")  # 500 km, 0 km in its zone
    for phase, resolution in ((0, 30), (20, 30), (0, 10)):
        assert tuple(nested_grid(point, phase=phase, resolution=resolution).shape) == (16, 16)


def test_a_run_over_a_metre_is_a_run(demo_world: Path, tmp_path: Path) -> None:
    longitude, latitude = middle(read_aoi(demo_world / "aoi.geojson"))
    area = saved(tmp_path, metre(longitude, latitude))
    out = tmp_path / "run"
    cubes.command(dates="2020-03-01/2020-03-02", catalog=str(demo_world / "catalog.toml"), aoi=str(area), bands="red", bracket_days=8, out_folder=out)  # fmt: skip
    fine, coarse = (store.open_cube(out / f"{name}.zarr") for name in ("landsat", "modis"))
    assert fine.sizes["x"] == 16 * coarse.sizes["x"]
    assert bool(coarse.red.notnull().any())


def test_holes_and_parts_keep_the_bounds_of_the_whole(tmp_path: Path) -> None:
    plain = nested_grid(read_aoi(saved(tmp_path, polygon(SQUARE))))
    assert nested_grid(read_aoi(saved(tmp_path, polygon(SQUARE, HOLE)))) == plain
    south = [[x, y if y < 40.5 else 40.1] for x, y in SQUARE]
    north = [[x, y if y > 40.5 else 40.9] for x, y in SQUARE]
    apart = {"type": "MultiPolygon", "coordinates": [[south], [north]]}
    assert nested_grid(read_aoi(saved(tmp_path, apart))) == plain
    bow = polygon([[10, 40], [11, 41], [11, 40], [10, 41], [10, 40]])
    assert nested_grid(read_aoi(saved(tmp_path, bow))) == plain


CONTINENTS = ["-18,-35,52,38", "60,10,150,55", "-180,-60,180,70", "-82,-56,-34,13", "-170,15,-50,83"]


@pytest.mark.parametrize("area", CONTINENTS)
def test_a_continent_is_refused_at_once(area: str) -> None:
    polygon = read_aoi(area)
    nested_grid(read_aoi("114,22,114.1,22.1"))  # pyproj reads its database
    refused = pytest.raises(InputError, match=r"needs \d+ x \d+ pixels of 30 m, .* at most 200000 a side: split it")
    started = time.process_time()
    with refused as caught:
        nested_grid(polygon)
    assert time.process_time() - started < 1
    assert "\n" not in str(caught.value)


def test_refusing_a_continent_takes_little_memory() -> None:
    area = read_aoi(CONTINENTS[0])
    tracemalloc.start()
    with pytest.raises(InputError, match="split it"):
        nested_grid(area)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(("area", "exits"), [(CONTINENTS[0], "split it"), ("-180,84,180,90", "EPSG:3413")])
def test_no_server_is_asked_for_what_has_no_grid(tmp_path: Path, area: str, exits: str) -> None:
    with served(lambda *_: (500, {})) as (url, asked):
        side = '[{0}]\napi = "{1}"\n[{0}.collections.x]\nsensors = ["{2}"]\n[{0}.collections.x.assets]\nred = "red"\n'
        text = 'name = "mine"\n' + side.format("fine", url, "landsat-oli") + side.format("coarse", url, "mcd43a4")
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(InputError, match=exits) as caught:
            cubes.command(dates="2020-03-01", catalog=str(tmp_path / "mine.toml"), aoi=area, bands="red", bracket_days=8, out_folder=tmp_path / "run")  # fmt: skip
        assert asked == []
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("area", "crs", "warned"),
    [
        ("0,45,12,50", None, False), ("114,22,115,23", None, False), ("-10,35,30,60", None, True),
        ("90,-5,118,5", None, True), ("-10,35,30,60", "EPSG:3035", False), ("170,-20,-165,-10", None, True),
        ("178,-20,-178,-10", None, False), ("0,70,40,80", None, False),
    ],
)  # fmt: skip
def test_areas_too_wide_for_their_zone_are_warned_of(
    area: str, crs: str | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    polygon = read_aoi(area)
    with caplog.at_level(logging.WARNING):
        grid = nested_grid(polygon, crs=crs)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    # Ground below the pixel in a corner, on the ellipsoid.
    wgs84, worst = Geod(ellps="WGS84"), 0.0
    back = Transformer.from_crs(epsg(grid), 4326, always_xy=True)
    for part in getattr(polygon.geom, "geoms", [polygon.geom]):
        west, south, east, north = part.bounds
        for corner in ((west, south), (east, south), (west, north), (east, north)):
            x, y = Transformer.from_crs(4326, epsg(grid), always_xy=True).transform(*corner)
            ring = [back.transform(x + a * 30, y + b * 30) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
            worst = max(worst, abs(900 / abs(wgs84.polygon_area_perimeter(*zip(*ring, strict=True))[0]) - 1))
    assert (worst > 0.04) == warned
    if warned:
        assert f"{100 * worst:.0f} %" in caplog.text
        assert "--crs" in caplog.text


# ---------------------------------------------------------------- far north and south, across 180 degrees


@pytest.mark.parametrize("area", ["20,60,20.2,60.1", "25,71,25.4,71.1", "-60,83.3,-59,83.9", "-44.1,-20.1,-44,-20", "-70.7,-53.2,-70.5,-53", "166,-78,166.5,-77.8"])  # fmt: skip
def test_grids_far_north_and_south_cover_their_area(area: str) -> None:
    west, south, east, north = map(float, area.split(","))
    grid = nested_grid(read_aoi(area))
    assert epsg(grid) == 32601 + int(((west + east) / 2 + 180) // 6)
    to = Transformer.from_crs(4326, epsg(grid), always_xy=True)
    x, y = to.transform(*np.meshgrid(np.linspace(west, east, 9), np.linspace(south, north, 9)))
    box = grid.boundingbox
    assert box.left <= x.min()
    assert x.max() <= box.right
    assert box.bottom <= y.min()
    assert y.max() <= box.top
    assert grid.shape.x * 30 < np.ptp(x) + 2 * 480 + 1
    assert (box.top < 0) == (north < 0)  # northern zones have negative northings south of the equator


@pytest.mark.parametrize(("area", "crs"), [("0,80,1,85", "EPSG:3413"), ("-180,83,180,90", "EPSG:3413"), ("0,-82,1,-79", "EPSG:3031"), ("-180,-90,180,-85", "EPSG:3031")])  # fmt: skip
def test_beyond_utm_a_fitting_system_is_named_which_works(area: str, crs: str) -> None:
    with pytest.raises(InputError, match=f"choose --crs {crs}"):
        nested_grid(read_aoi(area))
    grid = nested_grid(read_aoi(area), crs=crs)
    west, south, east, north = map(float, area.split(","))
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(*np.meshgrid(np.linspace(west, east, 73), np.linspace(south, north, 9)))  # fmt: skip
    box = grid.boundingbox
    assert box.left - 1 <= x.min() < box.left + 480
    assert box.right - 480 < x.max() <= box.right + 1
    assert box.bottom - 1 <= y.min() < box.bottom + 480
    assert box.top - 480 < y.max() <= box.top + 1


def test_the_pole_is_in_the_middle_of_its_grid() -> None:
    box = nested_grid(read_aoi("-180,85,180,90"), crs="EPSG:3995").boundingbox
    assert box.left == pytest.approx(-box.right, abs=960)
    assert box.bottom == pytest.approx(-box.top, abs=960)
    assert box.right == pytest.approx(Transformer.from_crs(4326, 3995, always_xy=True).transform(90, 85)[0], abs=480)


def test_across_180_degrees_a_server_is_asked_for_two_polygons() -> None:
    api = Api([landsat_item() | {"stac_version": "1.0.0", "links": [], "geometry": None}])
    with served(api) as (url, _):
        api.url = url
        search(at(url, kind="fine"), read_aoi("179.9,-17.1,-179.9,-16.9"), DAY, DAY, 180.0, BANDS)
    (query,) = api.queries
    sent = query["intersects"]
    assert sent["type"] == "MultiPolygon"
    boxes = sorted((min(x for x, _ in ring), max(x for x, _ in ring)) for (ring,) in sent["coordinates"])
    assert boxes == [(-180, -179.9), (179.9, 180)]


# ---------------------------------------------------------------- Landsat of two zones


def scene_at(folder: Path, name: str, longitude: float, latitude: float, zone: int, side: int = 260) -> tuple[Scene, np.ndarray, GeoBox]:  # fmt: skip
    x, y = Transformer.from_crs(4326, zone, always_xy=True).transform(longitude, latitude)
    left, top = round(x / 30) * 30 + 15 - 30 * (side // 2), round(y / 30) * 30 + 15 + 30 * (side // 2)
    box = GeoBox((side, side), Affine(30, 0, left, 0, -30, top), f"EPSG:{zone}")
    values = smooth(np.random.default_rng(zone), (side, side)).astype("uint16")
    words = np.full((side, side), 21824, "uint16")  # clear
    saturation = np.zeros((side, side), "uint16")
    assets = []
    for role, image in (("red", values), ("qa_pixel", words), ("qa_radsat", saturation)):
        write_cog(folder / f"{name}-{role}.tif", image, box)
        assets.append((role, str(folder / f"{name}-{role}.tif")))
    moment = f"{DAY}T02:00:00+00:00"
    made = Scene(
        name, "l", "landsat-oli", "landsat-8", DAY, moment, "", tuple(assets), place=name, crs=f"EPSG:{zone}",
        shape=(side, side), transform=tuple(box.affine)[:6],
    )  # fmt: skip
    return made, values, box


@pytest.mark.parametrize(
    ("area", "own", "other"),
    [
        ("113.99,22.5,114.02,22.52", 32650, 32649), ("179.99,-17.01,-179.995,-16.99", 32660, 32601),
        ("179.995,-17.01,-179.98,-16.99", 32601, 32660), ("179.99,66.0,-179.97,66.01", 32601, 32660),
    ],
)  # fmt: skip
def test_of_two_zones_the_own_one_is_raw_and_the_other_the_exact_warp(
    tmp_path: Path, area: str, own: int, other: int
) -> None:
    polygon = read_aoi(area)
    grid, (longitude, latitude) = nested_grid(polygon), middle(polygon)
    assert epsg(grid) == own
    side = Side("mine", (Collection("l", ("landsat-oli",), ()),), static=str(tmp_path / "catalog.json"))
    for zone in (own, other):
        scene, values, box = scene_at(tmp_path, f"z{zone}", longitude, latitude, zone)
        cube = load([scene], grid, side=side, bands=("red",)).compute().red.values[0]
        rows, columns = positions(box, grid)
        if zone == own:
            np.testing.assert_allclose(rows, np.rint(rows), atol=1e-6)
            r, c = np.rint(rows).astype(int), np.rint(columns).astype(int)
            assert min(r.min(), c.min()) >= 0
            dn = values[r, c].astype(float)
        else:
            dn = exact(values, rows, columns, "cubic")
            assert not np.isnan(dn).any()
        assert (cube != FILL).all()
        # One count of the image is 0.275 counts of reflectance.
        assert np.abs(cube - (dn * 0.275 - 2000)).max() <= (0.5 if zone == own else 1)
