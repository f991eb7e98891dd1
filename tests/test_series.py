"""A real series, 43 Landsat items over Boulder on 32 different grids, from a server to a lazy cube: nothing is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from stfgan_xr import load as subject
from stfgan_xr.aoi import middle, read_aoi
from stfgan_xr.catalog import search
from stfgan_xr.grid import nested_grid
from stfgan_xr.load import load
from stfgan_xr.rasters import AssetReader, whole_shift
from stfgan_xr.scenes import Scene, Side
from stfgan_xr.sensors import BANDS
from tests.test_catalog import Api, boulder, pc_side, served

AREA = "-105.8,39.9,-105.3,40.2"
"""West of Boulder: the left edges of path 33 cross it, path 34 covers it."""


@pytest.fixture(scope="module")
def items(shared_data: Path) -> list[dict[str, Any]]:
    return boulder(shared_data)


@pytest.fixture(scope="module")
def side() -> Side:
    return pc_side("fine").select(None, BANDS)


@pytest.fixture(scope="module")
def scenes(items: list[dict[str, Any]], side: Side) -> tuple[Scene, ...]:
    area = read_aoi(AREA)
    api = Api([item | {"links": []} for item in reversed(items)])
    with served(api) as (url, _):
        api.url = url
        return search(replace(side, api=url), area, date(2024, 6, 1), date(2024, 11, 30), middle(area)[0])


@pytest.fixture(scope="module")
def grid(side: Side) -> GeoBox:
    return nested_grid(read_aoi(AREA), phase=side.phase)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    urls: list[str] = []
    monkeypatch.setattr(AssetReader, "read", lambda self, window: urls.append(self.url))
    yield urls
    assert not urls


def solar_days(items: list[dict[str, Any]]) -> list[np.datetime64]:
    """Of UTC and four minutes a degree at the middle of the area, in whole milliseconds."""
    utc = np.array([item["properties"]["datetime"].rstrip("Z") for item in items], "datetime64[ms]")
    return sorted((utc + np.timedelta64(round(-105.55 * 240_000), "ms")).astype("datetime64[D]"))


def lattice(item: dict[str, Any]) -> tuple[float, float, int, int]:
    """Left, top, rows and columns of an item."""
    properties = item["properties"]
    assert (properties["proj:epsg"], properties["proj:transform"][0], properties["proj:transform"][4]) == (
        32613,
        30,
        -30,
    )
    return properties["proj:transform"][2], properties["proj:transform"][5], *properties["proj:shape"]


def test_the_series_is_as_varied_as_it_should_be(items: list[dict[str, Any]]) -> None:
    assert len(items) == 43
    assert len({tuple(item["properties"]["proj:shape"]) for item in items}) == 8
    assert len({tuple(item["properties"]["proj:transform"]) for item in items}) == 32


def test_it_plans_to_the_solar_days_on_one_grid(
    items: list[dict[str, Any]], scenes: tuple[Scene, ...], side: Side, grid: GeoBox, opened: list[str]
) -> None:
    cube = load(scenes, grid, side=side, bands=BANDS)
    expected = solar_days(items)
    assert len(set(expected)) == 43
    np.testing.assert_array_equal(cube.time.values.astype("datetime64[D]"), expected)
    assert cube.odc.geobox == grid
    assert dict(cube.sizes) == {"time": 43, "y": grid.shape.y, "x": grid.shape.x}
    assert set(cube.data_vars) == {*BANDS, "qa"}


def test_the_one_grid_is_that_of_utm_and_covers_the_area(grid: GeoBox) -> None:
    west, south, east, north = map(float, AREA.split(","))
    x, y = Transformer.from_crs(4326, 32613, always_xy=True).transform([west, west, east, east], [south, north] * 2)
    assert grid.crs is not None
    assert grid.crs.epsg == 32613
    box = grid.boundingbox
    assert box.left <= min(x) < box.left + 480
    assert box.right - 480 < max(x) <= box.right
    assert box.bottom <= min(y) < box.bottom + 480
    assert box.top - 960 < max(y) <= box.top  # the northern edge is curved upwards


def test_every_scene_lies_on_it_by_whole_pixels(
    items: list[dict[str, Any]], scenes: tuple[Scene, ...], grid: GeoBox
) -> None:
    assert {scene.id for scene in scenes} == {item["id"] for item in items}
    stated = {item["id"]: lattice(item) for item in items}
    for scene in scenes:
        left, top, *_ = stated[scene.id]
        assert (left % 30, top % 30) == (grid.affine.c % 30, grid.affine.f % 30) == (15, 15)
        assert scene.crs == "EPSG:32613"
        assert scene.transform is not None
        shift = whole_shift(type(grid.affine)(*scene.transform), grid.affine)
        assert shift == ((top - grid.affine.f) / 30, (grid.affine.c - left) / 30)


def test_the_plan_holds_each_scene_where_it_lies(
    items: list[dict[str, Any]], scenes: tuple[Scene, ...], side: Side, grid: GeoBox, opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    planned: dict[str, tuple[float, ...]] = {}
    stack = subject._stack

    def note(shims: list[dict[str, Any]], *arguments: Any, **options: Any) -> Any:
        planned.update({shim["id"]: shim["properties"]["proj:bbox"] for shim in shims})
        return stack(shims, *arguments, **options)

    monkeypatch.setattr(subject, "_stack", note)
    load(scenes, grid, side=side, bands=BANDS)
    margin, box = 10 * 30, grid.boundingbox
    expected = {}
    for item in items:
        left, top, rows, columns = lattice(item)
        west, east = max(left - margin, box.left), min(left + 30 * columns + margin, box.right)
        expected[item["id"]] = west, max(top - 30 * rows - margin, box.bottom), east, min(top + margin, box.top)
    assert planned == expected
    # Path 33 begins within the area, at another place on each pass.
    starts = {bounds[0] for name, bounds in planned.items() if "_033" in name}
    assert len(starts) > 5
    assert min(starts) > box.left
    assert {bounds for name, bounds in planned.items() if "_034" in name} == {tuple(box)}


def test_tiles_that_a_scene_does_not_reach_are_not_asked_of_it(
    scenes: tuple[Scene, ...], side: Side, grid: GeoBox, opened: list[str]
) -> None:
    east_only = [scene for scene in scenes if scene.place == "033_032"]
    cube = load(east_only, grid, side=side, bands=("red",), tile=256)
    assert isinstance(cube, xr.Dataset)
    west = cube.red[:, :256, :256]  # 7.7 km from the western edge; path 33 starts 14 km from it
    assert (west.compute().values == subject.FILL).all()
