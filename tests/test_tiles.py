"""MODIS in tiles: at their borders, at the edge of the Earth and across 180 degrees, against one image without borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from stfgan_xr.aoi import read_aoi
from stfgan_xr.errors import SourceError
from stfgan_xr.grid import coarse_grid, nested_grid
from stfgan_xr.load import load
from stfgan_xr.rasters import write_cog
from stfgan_xr.scenes import Collection, Scene, Side
from stfgan_xr.sensors import FILL, SENSORS, Observation
from tests.test_rasters import PIXEL, SINU, exact, exact_mean, positions, smooth

Array = np.ndarray[Any, Any]
DAY = date(2020, 3, 1)
EDGE = 20015109.354
"""Half the way around the sphere of MODIS, in metres."""


def side_of(folder: Path, sensor: str) -> Side:
    collection = Collection("modis", (sensor,), (("red", ("red",)),))
    return Side("mine", (collection,), static=str(folder / "catalog.json"))


def scene(
    folder: Path, name: str, values: Array, words: Array, source: GeoBox, sensor: str = "mcd43a4", **more: Any
) -> Scene:
    role = SENSORS[sensor].quality_roles(("red",))[0]
    for kind, image in (("red", values), (role, words)):
        write_cog(folder / f"{name}-{kind}.tif", image, source)
    assets = tuple((kind, str(folder / f"{name}-{kind}.tif")) for kind in ("red", role))
    moment = f"{DAY}T00:00:00+00:00"
    return replace(
        Scene(f"X.A2020061.{name}.061", "modis", sensor, "terra", DAY, moment, "", assets, crs=SINU.to_wkt()), **more
    )


def cut(
    folder: Path, values: Array, words: Array, source: GeoBox, pieces: Sequence[tuple[str, slice, slice]], sensor: str
) -> list[Scene]:
    """Parts of an image as scenes of their own."""
    made = []
    for name, rows, columns in pieces:
        corner = source.affine * Affine.translation(columns.start, rows.start)
        part = values[rows, columns]
        box = GeoBox(part.shape, corner, source.crs)
        made.append(scene(folder, name, part, words[rows, columns], box, sensor))
    return made


def quarters(row: int, column: int, side: int) -> list[tuple[str, slice, slice]]:
    below, right = slice(row, side), slice(column, side)
    above, left = slice(0, row), slice(0, column)
    return [("h0v0", above, left), ("h1v0", above, right), ("h0v1", below, left), ("h1v1", below, right)]


def area_grid(text: str, crs: str | None = None) -> GeoBox:
    return coarse_grid(nested_grid(read_aoi(text), crs=crs))


def source_over(grid: GeoBox, side: int, pixel: float) -> GeoBox:
    """A piece of the sinusoidal lattice around a grid."""
    middle = grid.affine * (grid.shape.x / 2, grid.shape.y / 2)
    x, y = Transformer.from_crs(CRS(grid.crs.to_wkt()), SINU, always_xy=True).transform(*middle)  # type: ignore[union-attr]
    column, row = round((x + EDGE) / pixel) - side // 2, round((EDGE / 2 - y) / pixel) - side // 2
    return GeoBox((side, side), Affine(pixel, 0, column * pixel - EDGE, 0, -pixel, EDGE / 2 - row * pixel), SINU)


@pytest.mark.parametrize("border", [(60, 60), (57, 62), (60, 200), (-1, 61)], ids=str)
@pytest.mark.parametrize(
    ("sensor", "area"),
    [("mcd43a4", "114.0,22.4,114.2,22.6"), ("mod09q1", "114.0,22.4,114.2,22.6"), ("mcd43a4", "-150.2,64.8,-149.9,65")],
)
def test_tile_borders_leave_no_seam(tmp_path: Path, sensor: str, area: str, border: tuple[int, int]) -> None:
    grid, product = area_grid(area), SENSORS[sensor]
    side = 120 if product.resolution > 300 else 240
    source = source_over(grid, side, product.resolution)
    rng = np.random.default_rng(side)
    values = smooth(rng, source.shape).astype("int16")
    values[rng.random(values.shape) < 0.03] = product.fill
    words = rng.integers(0, 2, values.shape).astype(product.quality_dtype)
    row, column = (min(max(at * side // 120, 0), side) for at in border)
    kept = [one for one in quarters(row, column, side) if values[one[1], one[2]].size]
    tiles = cut(tmp_path, values, words, source, kept, sensor)
    one = scene(tmp_path, "whole", values, words, source, sensor)
    where = side_of(tmp_path, sensor)
    whole = load([one], grid, side=where, bands=("red",)).compute()
    xr.testing.assert_identical(load(tiles, grid, side=where, bands=("red",)).compute(), whole)
    xr.testing.assert_identical(load(tiles[::-1], grid, side=where, bands=("red",), tile=19).compute(), whole)
    rough = np.where(values == product.fill, np.nan, values)
    expected = exact_mean(values, source, grid, int(product.fill)) if sensor == "mod09q1" else exact(rough, *positions(source, grid), "bilinear")  # fmt: skip
    known = ~np.isnan(expected)
    assert known.mean() > 0.8
    assert np.abs(whole.red.values[0][known] - expected[known]).max() <= 1


def test_a_tile_that_is_not_there_leaves_its_part_empty(tmp_path: Path) -> None:
    grid = area_grid("114.0,22.4,114.2,22.6")
    source = source_over(grid, 120, PIXEL)
    values = smooth(np.random.default_rng(0), source.shape).astype("int16")
    tiles = cut(tmp_path, values, np.zeros_like(values, "uint8"), source, quarters(60, 60, 120), "mcd43a4")
    where = side_of(tmp_path, "mcd43a4")
    rows, columns = positions(source, grid)
    found = load([tiles[0], tiles[3]], grid, side=where, bands=("red",)).compute()
    there = (rows < 59.4) & (columns < 59.4) | (rows > 59.6) & (columns > 59.6)
    away = (rows < 58) & (columns > 61) | (rows > 61) & (columns < 58)
    assert (found.red.values[0][there] != FILL).all()
    assert (found.red.values[0][away] == FILL).all()
    assert (found.qa.values[0][away] & int(Observation.FILL)).all()


def test_a_tile_that_cannot_be_read_is_an_error_with_its_name(tmp_path: Path) -> None:
    grid = area_grid("114.0,22.4,114.2,22.6")
    source = source_over(grid, 120, PIXEL)
    values = smooth(np.random.default_rng(0), source.shape).astype("int16")
    tiles = cut(tmp_path, values, np.zeros_like(values, "uint8"), source, quarters(60, 60, 120), "mcd43a4")
    (tmp_path / "h1v1-red.tif").unlink()
    with pytest.raises(SourceError, match=r"h1v1-red\.tif cannot be read"):
        load(tiles, grid, side=side_of(tmp_path, "mcd43a4"), bands=("red",)).compute()


def test_tiles_of_two_satellites_are_two_images(tmp_path: Path) -> None:
    grid = area_grid("114.0,22.4,114.2,22.6")
    source = source_over(grid, 120, PIXEL)
    ones = np.ones(source.shape, "int16")
    holes = ones * 3000
    holes[:, 40:50] = SENSORS["mod09a1"].fill
    zeros = np.zeros(source.shape, "uint16")
    terra = cut(tmp_path, holes, zeros, source, quarters(60, 60, 120), "mod09a1")
    aqua = [replace(s, id=f"Y{s.id}", platform="aqua") for s in cut(tmp_path, ones * 4000, zeros, source, [(f"aqua{n}", r, c) for n, r, c in quarters(60, 60, 120)], "mod09a1")]  # fmt: skip
    where = side_of(tmp_path, "mod09a1")
    found = load([*aqua, *terra], grid, side=where, bands=("red",)).compute().red.values[0]
    expected = load(terra, grid, side=where, bands=("red",)).compute().red.values[0]
    np.testing.assert_array_equal(found, np.where(expected == FILL, 4000, expected))
    assert set(np.unique(found)) == {3000, 4000}


def world(box: GeoBox, fill: int) -> Array:
    """A smooth function of longitude and latitude, the same on both sides of 180 degrees; fill where there is no Earth."""
    rows, columns = np.indices(box.shape) + 0.5
    x, y = box.affine.c + box.affine.a * columns, box.affine.f + box.affine.e * rows
    latitude = np.degrees(y / 6371007.181)
    longitude = np.degrees(x / (6371007.181 * np.cos(np.radians(latitude))))
    values = 3000 + 800 * np.cos(np.radians(longitude * 40)) + 400 * np.sin(np.radians(latitude * 40))
    return np.where(np.abs(longitude) <= 180, values, fill).astype("int16")


def tile(h: int, v: int, row: int, column: int, height: int, width: int) -> GeoBox:
    """A part of the tile ``hHHvVV`` of 2400 pixels."""
    left, top = (h * 2400 + column) * PIXEL - EDGE, EDGE / 2 - (v * 2400 + row) * PIXEL
    return GeoBox((height, width), Affine(PIXEL, 0, left, 0, -PIXEL, top), SINU)


@pytest.mark.parametrize(
    ("area", "crs"),
    [
        ("179.9,-17.1,-179.9,-16.9", None), ("179.9,-17.1,-179.8,-16.9", None), ("179.9,66.0,-179.7,66.1", None),
        ("179.7,66.0,180,66.1", None), ("-180,-17.1,-179.9,-16.9", None), ("179.9,-17.1,-179.9,-16.9", "EPSG:3832"),
    ],
)  # fmt: skip
def test_tiles_on_both_sides_of_180_degrees_and_partly_off_the_earth_are_one_image(
    tmp_path: Path, area: str, crs: str | None
) -> None:
    grid = area_grid(area, crs)
    latitude = read_aoi(area).boundingbox.top
    reach = EDGE * np.cos(np.radians(latitude)) / PIXEL  # pixels from Greenwich to the edge of the Earth
    row = int((90 - latitude) * 240)
    tiles = []
    for name, first in (("east", int(43200 + reach) - 400), ("west", int(43200 - reach) - 400)):
        box = tile(0, 0, row - 40, first, 260, 800)
        values = world(box, 32767)
        assert (values == 32767).any()
        assert (values != 32767).any()
        # Tiles meet within the strip as well.
        tiles += cut(tmp_path, values, np.zeros_like(values, "uint8"), box, [(f"{name}{n}", slice(0, 260), slice(400 * n, 400 * n + 400)) for n in (0, 1)], "mcd43a4")  # fmt: skip
    where = side_of(tmp_path, "mcd43a4")
    cube = load(tiles, grid, side=where, bands=("red",)).compute()
    found = cube.red.values[0].astype(float)
    height, width = grid.shape
    x, y = np.meshgrid(grid.affine.c + 480 * (np.arange(width) + 0.5), grid.affine.f - 480 * (np.arange(height) + 0.5))
    longitude, at = Transformer.from_crs(CRS(grid.crs.to_wkt()), 4326, always_xy=True).transform(x, y)  # type: ignore[union-attr]
    expected = 3000 + 800 * np.cos(np.radians(longitude * 40)) + 400 * np.sin(np.radians(at * 40))
    holes = found == FILL
    # A pixel of MODIS whose centre lies beyond the slanting edge holds nothing, so some cells on the line do not either.
    metres = (180 - np.abs(longitude)) * 111_195 * np.cos(np.radians(at))
    slant = np.pi * np.sin(np.radians(np.abs(at)))
    assert (metres[holes] < PIXEL / 2 * (1 + slant[holes]) + 1).all()
    assert np.abs(found - expected)[~holes].max() <= 8
    xr.testing.assert_identical(load(tiles, grid, side=where, bands=("red",), tile=17).compute(), cube)
