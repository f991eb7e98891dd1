from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stfgan_xr import aoi
from stfgan_xr.errors import InputError

SQUARE = [[10.0, 40.0], [11.0, 40.0], [11.0, 41.0], [10.0, 41.0], [10.0, 40.0]]
HOLE = [[10.25, 40.25], [10.25, 40.75], [10.75, 40.75], [10.75, 40.25], [10.25, 40.25]]


def polygon(*rings: list[Any]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def square(west: float, south: float, side: float = 1.0) -> dict[str, Any]:
    east, north = west + side, south + side
    return polygon([[west, south], [east, south], [east, north], [west, north], [west, south]])


def feature(geometry: dict[str, Any] | None) -> dict[str, Any]:
    return {"type": "Feature", "properties": {}, "geometry": geometry}


def collection(*geometries: dict[str, Any] | None) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": [feature(g) for g in geometries]}


def saved(folder: Path, document: Any) -> Path:
    path = folder / "area.geojson"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def refusal(text: str | Path) -> str:
    with pytest.raises(InputError, match="--aoi") as caught:
        aoi.read_aoi(text)
    assert "\n" not in str(caught.value)
    assert str(text) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        polygon(SQUARE),
        {"type": "MultiPolygon", "coordinates": [[SQUARE]]},
        feature(polygon(SQUARE)),
        collection(polygon(SQUARE)),
        collection(None, polygon(SQUARE)),
        {"type": "GeometryCollection", "geometries": [polygon(SQUARE)]},
        polygon([[*point, 120.0] for point in SQUARE]),
        polygon(SQUARE[::-1]),
    ],
    ids=["polygon", "multipolygon", "feature", "collection", "null-geometry", "geometries", "heights", "clockwise"],
)
def test_a_square_is_the_same_area_however_it_is_written(tmp_path: Path, document: dict[str, Any]) -> None:
    area = aoi.read_aoi(saved(tmp_path, document))
    assert area.crs is not None
    assert area.crs.epsg == 4326
    assert tuple(area.boundingbox) == (10, 40, 11, 41)
    assert area.area == pytest.approx(1)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    assert aoi.read_aoi(str(saved(tmp_path, polygon(SQUARE)))).area == pytest.approx(1)


def test_four_numbers_are_a_box() -> None:
    area = aoi.read_aoi(" 113.75, 22.45,114.60,22.86 ")
    assert tuple(area.boundingbox) == (113.75, 22.45, 114.60, 22.86)
    assert area.area == pytest.approx(0.85 * 0.41)


@given(st.floats(-180, 179), st.floats(-90, 89), st.floats(0.01, 1), st.floats(0.01, 1))
def test_any_box_on_earth_keeps_its_bounds(west: float, south: float, width: float, height: float) -> None:
    numbers = (west, south, west + width, south + height)
    assert tuple(aoi.read_aoi(",".join(map(repr, numbers))).boundingbox) == numbers


@pytest.mark.parametrize(
    "text",
    ["114.6,22.4,113.7,22.9", "113.7,22.9,114.6,22.4", "1,1,1,2", "1,1,2,1", "nan,0,1,1", "0,0,nan,1", "0,0,1,nan"],
)
def test_a_reversed_or_empty_box_is_refused(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize(
    ("text", "longitude"), [("178,-20,-179,-18", 179.5), ("179,-20,-178,-18", -179.5), ("170,60,-150,70", -170.0)]
)
def test_a_box_across_180_degrees_is_cut_there(tmp_path: Path, text: str, longitude: float) -> None:
    area = aoi.read_aoi(text)
    west, south, east, north = map(float, text.split(","))
    assert sorted(part.bounds for part in area.geom.geoms) == [(-180, south, east, north), (west, south, 180, north)]
    assert aoi.middle(area) == (longitude, (south + north) / 2)
    # The same area as GeoJSON wants it.
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(area.json))
    assert aoi.middle(aoi.read_aoi(path)) == aoi.middle(area)


def test_the_middle_of_an_area_elsewhere_is_that_of_its_bounds() -> None:
    assert aoi.middle(aoi.read_aoi("-180,-10,-170,10")) == (-175, 0)
    assert aoi.middle(aoi.read_aoi("170,-10,180,10")) == (175, 0)
    assert aoi.middle(aoi.read_aoi("-180,-10,180,10")) == (0, 0)


@pytest.mark.parametrize(
    "text", ["-181,0,1,1", "0,0,180.5,1", "0,-91,1,1", "0,0,1,90.1", "800000,2500000,900000,2600000"]
)
def test_a_box_off_earth_is_refused(text: str) -> None:
    assert "not on Earth" in refusal(text)


@pytest.mark.parametrize("text", ["0,0,inf,1", "-inf,0,1,1"])
def test_an_infinite_box_is_refused(text: str) -> None:
    refusal(text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nowhere.geojson")
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "somewhere"])
def test_text_that_is_neither_a_file_nor_four_numbers_is_refused(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize("text", ["", "not json", "{", '{"type": "Polygon",', "[" * 100_000])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    assert "not GeoJSON" in refusal(saved(tmp_path, text))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "area.geojson"
    path.write_bytes(b"\xff\xfe\x00II*\x00")
    assert "not GeoJSON" in refusal(path)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        3,
        None,
        "text",
        {"type": "Topology"},
        {"type": 7},
        {"type": "Polygon"},
        SQUARE,
        {"type": "FeatureCollection", "features": 5},
        {"type": "FeatureCollection", "features": ["here"]},
        {"type": "GeometryCollection", "geometries": True},
        feature(SQUARE),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_json_that_is_not_geojson_is_refused(tmp_path: Path, document: Any) -> None:
    assert "not GeoJSON" in refusal(saved(tmp_path, document))


@pytest.mark.parametrize(
    "document",
    [collection(), collection(None), feature(None), {"type": "GeometryCollection", "geometries": []}],
    ids=["collection", "null", "feature", "geometries"],
)
def test_an_empty_collection_is_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    assert "empty" in refusal(saved(tmp_path, document))


@pytest.mark.parametrize(
    ("kind", "coordinates"),
    [("Point", SQUARE[0]), ("LineString", SQUARE), ("MultiPoint", SQUARE), ("MultiLineString", [SQUARE])],
)
def test_what_encloses_no_area_is_refused_by_its_name(tmp_path: Path, kind: str, coordinates: Any) -> None:
    line = {"type": kind, "coordinates": coordinates}
    assert f"holds a {kind}" in refusal(saved(tmp_path, line))
    assert f"holds a {kind}" in refusal(saved(tmp_path, collection(polygon(SQUARE), line)))


def test_a_polygon_off_earth_is_refused(tmp_path: Path) -> None:
    assert "longitude, latitude" in refusal(saved(tmp_path, square(500_000, 4_000_000, 1000)))
    assert "swapped" not in refusal(saved(tmp_path, square(500_000, 4_000_000, 1000)))


@pytest.mark.parametrize("place", [(22.5, 113.9), (-33.4, 150.0), (45.0, -122.0), (-20.1, -44.0 - 47)])
def test_latitude_before_longitude_is_recognised(tmp_path: Path, place: tuple[float, float]) -> None:
    south, west = place
    assert "look swapped" in refusal(saved(tmp_path, square(*place)))
    assert "look swapped" in refusal(f"{south},{west},{south + 0.1},{west + 0.1}")


@pytest.mark.parametrize("text", ["179,22,181,23", "-181,0,1,1", "0,0,1,90.1,", "100,0,101,95"])
def test_other_places_off_earth_do_not_look_swapped(text: str) -> None:
    assert "swapped" not in refusal(text)


def test_a_hole_in_a_part_of_several_is_kept(tmp_path: Path) -> None:
    far = [[x + 5, y] for x, y in SQUARE]
    both = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [far]]}
    area = aoi.read_aoi(saved(tmp_path, both))
    assert area.area == pytest.approx(1.75)
    assert len(aoi.parts(area)) == 2


def test_an_island_in_a_hole_is_kept(tmp_path: Path) -> None:
    island = square(10.4, 40.4, 0.2)
    area = aoi.read_aoi(saved(tmp_path, collection(polygon(SQUARE, HOLE), island)))
    assert area.area == pytest.approx(0.79)


def test_a_star_drawn_in_one_line_keeps_its_points(tmp_path: Path) -> None:
    star = [[math.sin(4 * math.pi * n / 5), math.cos(4 * math.pi * n / 5)] for n in range(6)]
    area = aoi.read_aoi(saved(tmp_path, polygon(star)))
    assert area.is_valid
    assert tuple(area.boundingbox) == pytest.approx((-0.951, -0.809, 0.951, 1.0), abs=1e-3)
    # Without the pentagon in the middle, which the line goes around twice, as the OGC has it.
    pentagon = [math.tau / 5, ((3 - 5**0.5) / 2) ** 2 * 2.5]
    assert area.area == pytest.approx(1.12257 - pentagon[1] * math.sin(pentagon[0]), abs=1e-4)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", '"ten"', "null", "[]", "{}"])
def test_a_coordinate_that_is_no_number_is_refused(tmp_path: Path, value: str) -> None:
    refusal(saved(tmp_path, json.dumps(polygon(SQUARE)).replace("11.0", value, 1)))


@pytest.mark.parametrize(
    "coordinates", [[], [[]], [[[10, 40]]], [[[10, 40], [11, 41]]], 5, "x", {}, [SQUARE[0]]], ids=str
)
def test_broken_rings_are_refused(tmp_path: Path, coordinates: Any) -> None:
    refusal(saved(tmp_path, {"type": "Polygon", "coordinates": coordinates}))


def test_a_polygon_without_extent_is_refused(tmp_path: Path) -> None:
    flat = polygon([[10, 40], [11, 40], [12, 40], [10, 40]])
    assert "no area" in refusal(saved(tmp_path, flat))


def test_a_bow_tie_keeps_both_its_halves(tmp_path: Path) -> None:
    bow = polygon([[10, 40], [12, 42], [12, 40], [10, 42], [10, 40]])
    area = aoi.read_aoi(saved(tmp_path, bow))
    assert area.is_valid
    assert tuple(area.boundingbox) == (10, 40, 12, 42)
    assert area.area == pytest.approx(2)


def test_a_lopsided_bow_tie_keeps_its_bounds(tmp_path: Path) -> None:
    bow = polygon([[10, 40], [13, 43], [13, 40], [10, 41], [10, 40]])
    area = aoi.read_aoi(saved(tmp_path, bow))
    assert area.is_valid
    assert tuple(area.boundingbox) == (10, 40, 13, 43)


def test_holes_are_kept(tmp_path: Path) -> None:
    assert aoi.read_aoi(saved(tmp_path, polygon(SQUARE, HOLE))).area == pytest.approx(0.75)


def test_features_become_one_area(tmp_path: Path) -> None:
    document = collection(square(10, 40), square(10.5, 40), square(20, 40))
    area = aoi.read_aoi(saved(tmp_path, document))
    assert area.area == pytest.approx(2.5)
    assert tuple(area.boundingbox) == (10, 40, 21, 41)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aoi, "LARGEST_FILE", 10)
    assert "larger than" in refusal(saved(tmp_path, polygon(SQUARE)))
