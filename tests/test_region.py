"""Pixels of an area: those whose centres shapely and GDAL find inside, however the grid is cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj import Transformer
from rasterio.features import geometry_mask
from shapely.geometry import MultiPolygon, Polygon, box

from stfgan_xr.aoi import joined, read_aoi
from stfgan_xr.grid import Window, coarse_grid, nested_grid, tiles
from stfgan_xr.region import Region

RING = box(114.0, 22.5, 114.06, 22.55)
AREAS = {
    "box": RING,
    "hole": Polygon(RING.exterior.coords, [box(114.013, 22.511, 114.041, 22.537).exterior.coords]),
    "island": Polygon(RING.exterior.coords, [box(114.01, 22.51, 114.05, 22.54).exterior.coords]).union(
        box(114.02, 22.52, 114.03, 22.53)
    ),
    "parts": MultiPolygon([box(114.0, 22.5, 114.01, 22.51), box(114.05, 22.53, 114.07, 22.55)]),
    "sliver": Polygon([(114.0, 22.5), (114.08, 22.551), (114.08, 22.5515)]),
    "star": Polygon([(114 + 0.03 * (1 + n % 2) * np.cos(n), 22.5 + 0.03 * (1 + n % 2) * np.sin(n)) for n in range(5)]),
}


def region(area: shapely.Geometry | Geometry | str, crs: str | None = None) -> Region:
    found = read_aoi(area) if isinstance(area, str) else area
    found = found if isinstance(found, Geometry) else Geometry(shapely.make_valid(found), "EPSG:4326")
    return Region(nested_grid(found, crs=crs), found)


def whole(found: Region, grid: GeoBox | None = None) -> np.ndarray:
    height, width = (grid or found.grid).shape
    return found.inside(Window(0, height, 0, width))


def centres(found: Region) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of the centres of all pixels."""
    (height, width), affine = found.grid.shape, found.grid.affine
    x, y = affine.c + affine.a * (np.arange(width) + 0.5), affine.f + affine.e * (np.arange(height) + 0.5)
    back = Transformer.from_crs(found.grid.crs, "EPSG:4326", always_xy=True)
    return back.transform(*np.meshgrid(x, y))


@pytest.mark.parametrize("area", AREAS.values(), ids=AREAS)
def test_pixels_are_inside_whose_centres_are(area: shapely.Geometry) -> None:
    """In degrees, where nothing was projected but the centres: edges are straight there."""
    found = region(area)
    expected = shapely.contains_xy(found.area.geom, *centres(found))
    ours = whole(found)
    assert ours.any()
    # A centre closer to the edge than 5 cm may fall on either side of it.
    near = shapely.dwithin(found.area.geom.boundary, shapely.points(*centres(found)), 5e-7)
    assert not ((ours != expected) & ~near).any()
    assert near.mean() < 0.01


@pytest.mark.parametrize("area", AREAS.values(), ids=AREAS)
def test_gdal_burns_the_same_pixels(area: shapely.Geometry) -> None:
    found = region(area)
    burnt = geometry_mask([found._polygon], found.grid.shape, found.grid.affine, invert=True)
    np.testing.assert_array_equal(whole(found), burnt)


@settings(max_examples=30)
@given(
    points=st.lists(st.tuples(st.floats(114, 114.05), st.floats(22.5, 22.55)), min_size=3, max_size=12),
    side=st.sampled_from([16, 48, 80, 1024]),
)
def test_any_polygon_in_any_windows_is_the_whole(points: list[tuple[float, float]], side: int) -> None:
    polygon = Polygon(points).buffer(0)
    if polygon.area < 1e-7:
        return
    found = region(polygon)
    (height, width), affine = found.grid.shape, found.grid.affine
    x, y = affine.c + affine.a * (np.arange(width) + 0.5), affine.f + affine.e * (np.arange(height) + 0.5)
    expected = shapely.contains_xy(found._polygon, *np.meshgrid(x, y))
    if expected.any():
        np.testing.assert_array_equal(whole(found), expected)
    pieces = np.zeros((height, width), bool)
    for window in tiles((height, width), side):
        pieces[window.slices] = found.inside(window)
    np.testing.assert_array_equal(pieces, whole(found))


@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:32660"])
def test_an_area_cut_at_180_degrees_is_one(crs: str) -> None:
    found = region("179.93,-17.05,-179.95,-16.95", crs)
    longitude, latitude = centres(found)
    expected = shapely.contains_xy(box(179.93, -17.05, 180.05, -16.95), longitude % 360, latitude)
    ours = whole(found)
    assert (ours != expected).mean() < 1e-3
    assert ours[:, 10:-10].sum(axis=1).max() == np.ptp(np.flatnonzero(ours.any(axis=0))) + 1 or ours.mean() > 0.8
    inner = expected & (np.abs(longitude % 360 - 180) < 0.01)
    assert ours[inner].all()  # no gap along 180 degrees


def test_parts_across_180_degrees_are_joined_without_a_seam() -> None:
    area = joined(read_aoi("178,-20,-179,-18"))
    assert area.geom.equals(box(178, -20, 181, -18))
    around = read_aoi("-180,-10,180,10")
    assert joined(around) is around


def test_edges_are_those_of_degrees_not_chords() -> None:
    """A parallel of 3 degrees is 900 m off its chord in UTM."""
    found = region("114,60,117,60.02")
    longitude, latitude = centres(found)
    expected = shapely.contains_xy(found.area.geom, longitude, latitude)
    ours = whole(found)
    differ = ours != expected
    assert differ.mean() < 1e-3
    assert (np.abs(latitude[differ] - 60).clip(max=abs(latitude[differ] - 60.02)) < 1e-5).all()


def test_cells_are_inside_that_hold_a_pixel_inside() -> None:
    found = region(AREAS["hole"])
    fine = whole(found)
    cells = whole(Region(found.grid, found.area, 16), coarse_grid(found.grid))
    height, width = fine.shape
    np.testing.assert_array_equal(cells, fine.reshape(height // 16, 16, width // 16, 16).any(axis=(1, 3)))
    assert not fine[~cells.repeat(16, 0).repeat(16, 1)].any()


@pytest.mark.parametrize("area", ["114.00002,22.50002,114.00004,22.50004", "114.00002,22.5,114.00004,22.51"])
def test_an_area_without_a_centre_takes_the_pixels_it_touches(area: str) -> None:
    found = region(area)
    ours = whole(found)
    assert 1 <= ours.any(axis=0).sum() <= 4
    assert ours.any(axis=1).sum() >= 1


def test_the_digest_is_that_of_the_area(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(shapely.geometry.mapping(RING)))
    assert region(str(path)).digest == region(RING).digest
    assert region(RING).digest != region(AREAS["hole"]).digest


def test_a_large_area_has_the_size_of_its_polygon() -> None:
    found = region(shapely.Point(114, 22.5).buffer(3, quad_segs=500))
    height, width = found.grid.shape
    assert height * width > 4e8
    pixels = sum(int(found.inside(window).sum()) for window in tiles((height, width), 1024))
    assert pixels * 900 == pytest.approx(found._polygon.area, rel=1e-6)
