from __future__ import annotations

import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import assume, given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.geom import box
from pyproj import CRS

from stfgan_xr import grid
from stfgan_xr.aoi import read_aoi
from stfgan_xr.errors import InputError
from stfgan_xr.grid import Window

UTM = "EPSG:32650"
BOXES = st.tuples(st.floats(114.1, 119.5), st.floats(-60, 60), st.floats(0.01, 0.3), st.floats(0.01, 0.3))


def area_of(west: float, south: float, width: float, height: float) -> grid.Geometry:
    return box(west, south, west + width, south + height, "EPSG:4326")


def some_grid(
    height: int, width: int, pixel: float = 30.0, left: float = 195.0, top: float = 2500335.0, crs: str = UTM
) -> GeoBox:
    return GeoBox((height, width), Affine(pixel, 0, left, 0, -pixel, top), crs)


@given(BOXES)
def test_edges_lie_at_the_phase_and_sides_hold_whole_cells(where: tuple[float, float, float, float]) -> None:
    found = grid.nested_grid(area_of(*where), crs=UTM)
    ground = found.boundingbox
    assert {edge % 480 for edge in (ground.left, ground.bottom, ground.right, ground.top)} == {15.0}
    assert found.shape.x % 16 == found.shape.y % 16 == 0
    assert tuple(found.affine)[:6] == (30, 0, ground.left, 0, -30, ground.top)


@given(BOXES)
def test_the_grid_covers_its_area_and_not_a_cell_more(where: tuple[float, float, float, float]) -> None:
    area = area_of(*where)
    ground = grid.nested_grid(area, crs=UTM).boundingbox
    asked = area.to_crs(UTM, resolution=0.01).boundingbox
    for low, high in (
        (ground.left, asked.left),
        (ground.bottom, asked.bottom),
        (asked.right, ground.right),
        (asked.top, ground.top),
    ):
        assert 0 <= high - low < 480


@given(BOXES, st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_grids_of_overlapping_areas_share_their_pixels_and_cells(
    where: tuple[float, float, float, float], dx: float, dy: float
) -> None:
    west, south, width, height = where
    first = grid.nested_grid(area_of(west, south, width, height), crs=UTM)
    second = grid.nested_grid(area_of(west + dx * width, south + dy * height, width, height), crs=UTM)
    column, row = ~first.affine @ (second.affine.c, second.affine.f)
    assert (column % 16, row % 16) == (0, 0)
    coarse = ~grid.coarse_grid(first).affine @ (second.affine.c, second.affine.f)
    assert all(float(value).is_integer() for value in coarse)


@given(st.sampled_from([(30.0, 15.0, 16), (30.0, 0.0, 16), (10.0, 0.0, 50), (20.0, 0.0, 25), (30.0, 15.0, 7)]), BOXES)
def test_other_pixels_phases_and_ratios_nest_too(
    kind: tuple[float, float, int], where: tuple[float, float, float, float]
) -> None:
    resolution, phase, ratio = kind
    fine = grid.nested_grid(area_of(*where), crs=UTM, resolution=resolution, phase=phase, ratio=ratio)
    coarse = grid.coarse_grid(fine, ratio)
    assert grid.ratio_of(fine, coarse) == ratio
    assert tuple(coarse.boundingbox) == tuple(fine.boundingbox)
    assert fine.boundingbox.left % (resolution * ratio) == phase


def test_the_zone_is_that_of_the_middle_of_the_area() -> None:
    assert grid.nested_grid(read_aoi("113.9,22.5,114.05,22.6")).crs.epsg == 32649  # type: ignore[union-attr]
    assert grid.nested_grid(read_aoi("113.95,22.5,114.1,22.6")).crs.epsg == 32650  # type: ignore[union-attr]
    assert grid.nested_grid(read_aoi("-44.1,-20.1,-44.0,-20.0")).crs.epsg == 32623  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("longitude", "latitude", "epsg"),
    [
        (-180.0, 10.0, 32601),
        (179.999, 10.0, 32660),
        (180.0, 10.0, 32660),
        (0.0, 0.0, 32631),
        (-0.001, -0.001, 32630),
        (5.999, 1.0, 32631),
        (6.0, 1.0, 32632),
        (114.0, 22.5, 32650),
        (113.999, 22.5, 32649),
    ],
)
def test_utm_zones(longitude: float, latitude: float, epsg: int) -> None:
    assert grid.utm_epsg(longitude, latitude) == epsg


@given(st.floats(-180, 180), st.floats(-80, 84))
def test_the_central_meridian_of_the_zone_is_within_three_degrees(longitude: float, latitude: float) -> None:
    epsg = grid.utm_epsg(longitude, latitude)
    assert epsg // 100 == 326
    assert abs((epsg % 100) * 6 - 183 - longitude) <= 3 + 1e-9


def test_null_island_has_a_grid() -> None:
    found = grid.nested_grid(read_aoi("-0.01,-0.01,0.02,0.02"))
    assert found.crs is not None
    assert found.crs.epsg == 32631
    assert found.boundingbox.left % 480 == 15


@pytest.mark.parametrize("text", ["EPSG:32650", "epsg:32650", CRS.from_epsg(32650).to_wkt(), "EPSG:5070", "EPSG:2193"])
def test_projected_systems_in_metres_are_taken(text: str) -> None:
    assert grid.parse_crs(text).is_projected


@pytest.mark.parametrize("text", ["EPSG:4326", "EPSG:2263", "EPSG:99999999", "nonsense", "EPSG:", "EPSG:4978", ""])
def test_other_systems_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="--crs") as caught:
        grid.parse_crs(text)
    assert "\n" not in str(caught.value)


def test_an_area_that_is_too_large_is_refused() -> None:
    with pytest.raises(InputError, match="200000 a side"):
        grid.nested_grid(read_aoi("80,20,160,60"), crs="EPSG:3857")


def test_an_area_that_the_projection_does_not_reach_is_refused() -> None:
    with pytest.raises(InputError):
        grid.nested_grid(read_aoi("-100,-90,-99,-89"), crs="EPSG:3857")


def test_a_grid_that_does_not_hold_whole_cells_has_no_coarse_grid() -> None:
    with pytest.raises(InputError, match="33 x 32"):
        grid.coarse_grid(some_grid(32, 33))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60))
def test_the_ratio_of_nested_grids_is_found(rows: int, columns: int, ratio: int) -> None:
    fine = some_grid(rows * ratio, columns * ratio)
    assert grid.ratio_of(fine, grid.coarse_grid(fine, ratio)) == ratio


@pytest.mark.parametrize(
    "coarse",
    [
        some_grid(4, 6, 480.0, left=225.0),
        some_grid(4, 6, 480.0, top=2500365.0),
        some_grid(5, 6, 480.0),
        some_grid(4, 5, 480.0),
        some_grid(4, 6, 463.3127),
        some_grid(4, 6, 480.0, crs="EPSG:32649"),
        some_grid(128, 192, 15.0),
    ],
    ids=["east", "south", "rows", "columns", "pixel", "crs", "finer"],
)
def test_grids_that_are_not_nested_are_refused_with_both_named(coarse: GeoBox) -> None:
    fine = some_grid(64, 96)
    with pytest.raises(InputError, match="not nested") as caught:
        grid.ratio_of(fine, coarse)
    assert grid.describe(fine) in str(caught.value)
    assert grid.describe(coarse) in str(caught.value)


def test_a_grid_is_described_by_size_pixel_corner_and_crs() -> None:
    assert grid.describe(some_grid(64, 96)) == "96 x 64 pixels of 30 m from (195, 2.50034e+06) in EPSG:32650"


@given(st.integers(0, 90), st.integers(0, 90), st.integers(1, 40))
def test_tiles_cover_each_pixel_exactly_once(height: int, width: int, size: int) -> None:
    seen = np.zeros((height, width), int)
    for tile in grid.tiles((height, width), size):
        assert 0 < tile.shape[0] <= size
        assert 0 < tile.shape[1] <= size
        assert (tile.top % size, tile.left % size) == (0, 0)
        seen[tile.slices] += 1
    assert (seen == 1).all()


WINDOWS = st.builds(
    lambda top, left, height, width: Window(top, top + height, left, left + width),
    st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 60), st.integers(1, 60),
)  # fmt: skip


@given(WINDOWS, st.integers(0, 30))
def test_padding_adds_on_every_side_and_can_be_taken_back(window: Window, n: int) -> None:
    padded = window.pad(n)
    assert padded.shape == (window.shape[0] + 2 * n, window.shape[1] + 2 * n)
    assert padded.pad(-n) == window


@given(WINDOWS, st.integers(1, 20))
def test_cells_and_pixels_are_the_same_ground(window: Window, ratio: int) -> None:
    assert window.pixels(ratio).cells(ratio) == window
    assert window.pixels(ratio).shape == (window.shape[0] * ratio, window.shape[1] * ratio)


@given(WINDOWS, st.integers(2, 20))
def test_a_window_without_whole_cells_has_none(window: Window, ratio: int) -> None:
    assume(any(edge % ratio for edge in (window.top, window.bottom, window.left, window.right)))
    with pytest.raises(ValueError, match="whole cells"):
        window.cells(ratio)


@given(WINDOWS, st.integers(1, 60), st.integers(1, 60))
def test_clipping_keeps_the_pixels_inside_the_grid(window: Window, height: int, width: int) -> None:
    inside = {
        (row, column)
        for row in range(window.top, window.bottom)
        for column in range(window.left, window.right)
        if 0 <= row < height and 0 <= column < width
    }
    clipped = window.clip((height, width))
    assert clipped.clip((height, width)) == clipped
    rows, columns = range(clipped.top, clipped.bottom), range(clipped.left, clipped.right)
    assert {(row, column) for row in rows for column in columns} == inside


@given(st.integers(1, 200))
def test_blocks_start_on_whole_cells_of_both_kinds(ratio: int) -> None:
    step = grid.tile_step(ratio)
    assert step % 16 == step % ratio == 0
    assert step == math.lcm(16, ratio)


def test_the_georeference_states_the_grid() -> None:
    assert grid.georeference(some_grid(64, 96)) == {
        "proj:code": "EPSG:32650",
        "spatial:transform": [30.0, 0.0, 195.0, 0.0, -30.0, 2500335.0],
        "spatial:dimensions": ["y", "x"],
        "spatial:shape": [64, 96],
        "spatial:bbox": [195.0, 2498415.0, 3075.0, 2500335.0],
    }


def test_the_georeference_of_a_crs_without_code_is_its_wkt() -> None:
    sinusoidal = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
    found = grid.georeference(some_grid(4, 6, 463.3, crs=sinusoidal))
    assert "proj:code" not in found
    assert CRS.from_wkt(found["proj:wkt2"]) == CRS.from_user_input(sinusoidal)


@pytest.mark.parametrize(
    ("text", "epsg"),
    [("179.5,-17,-179.6,-16.8", 32660), ("179.6,-17,-179.5,-16.8", 32601), ("179.9,65,-179,65.3", 32601)],
)
def test_the_grid_of_an_area_across_180_degrees_is_as_small_as_the_area(text: str, epsg: int) -> None:
    found = grid.nested_grid(read_aoi(text))
    assert found.crs is not None
    assert found.crs.epsg == epsg
    west, south, east, north = map(float, text.split(","))
    metres = (east + 360 - west) * 111_320 * np.cos(np.radians((south + north) / 2))
    assert metres < found.shape.x * 30 < 1.1 * metres + 2 * 480
    # Its corners come back to where they were asked for, on either side of the line.
    corners = found.boundingbox.polygon.to_crs("EPSG:4326", resolution=1000).geom
    longitudes = [(x + 360) % 360 for x, _ in corners.exterior.coords]
    assert min(longitudes) <= west
    assert max(longitudes) >= east + 360
