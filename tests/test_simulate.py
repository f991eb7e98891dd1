"""The demo world: reproducible, on the grid it claims, coded as the real products, true where it is clear."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio

from stfgan_xr import errors, simulate
from stfgan_xr.aoi import read_aoi
from stfgan_xr.grid import Window, nested_grid
from stfgan_xr.landscape import MARGIN, World
from stfgan_xr.sensors import BANDS

WORLD = World(size=128, start=date(2020, 2, 10), days=40)
DAY = date(2020, 3, 1)


@pytest.mark.parametrize("size", [64, 128, 500, 4096])
def test_the_grid_is_that_of_its_area(size: int) -> None:
    world = World(size=size)
    assert nested_grid(world.area) == world.grid
    assert world.shape == (-(-size // 16) * 16,) * 2


def test_the_default_area_lies_in_two_zones() -> None:
    box = World().area.boundingbox
    assert box.left < 114 < box.right


def test_the_same_seed_is_the_same_world_and_another_is_not() -> None:
    first = World(size=64).reflectance(DAY)
    np.testing.assert_array_equal(first, World(size=64).reflectance(DAY))
    assert np.abs(first - World(size=64, seed=1).reflectance(DAY)).mean() > 0.02


def test_a_window_is_a_cut_of_the_whole() -> None:
    whole = WORLD.reflectance(DAY)
    part = WORLD.reflectance(DAY, ("nir", "red"), Window(10, 50, 33, 128))
    np.testing.assert_array_equal(part, whole[[3, 2], 10:50, 33:128])
    wide = WORLD.reflectance(DAY, window=Window(-MARGIN, 128 + MARGIN, -MARGIN, 128 + MARGIN))
    np.testing.assert_array_equal(wide[:, MARGIN:-MARGIN, MARGIN:-MARGIN], whole)
    with pytest.raises(ValueError, match="beyond the world"):
        WORLD.reflectance(DAY, window=Window(-MARGIN - 1, 10, 0, 10))


def test_reflectance_is_plausible_and_vegetation_grows() -> None:
    world = World(size=256)
    early, late = world.reflectance(date(2020, 2, 5)), world.reflectance(date(2020, 4, 25))
    for image in (early, late):
        assert image.dtype == np.float32
        assert 0.002 <= image.min() < 0.03
        assert 0.3 < image.max() <= 0.9
    ndvi = [(i[3] - i[2]) / (i[3] + i[2]) for i in (early, late)]
    assert ndvi[1].mean() - ndvi[0].mean() > 0.1
    assert np.corrcoef(early[2].ravel(), early[1].ravel())[0, 1] > 0.8  # green and red go together


def test_a_few_per_cent_change_abruptly_and_visibly() -> None:
    world = World(size=256)
    abrupt = world.abrupt()
    assert 0.01 < abrupt.mean() < 0.12
    days = [world.reflectance(date(2020, 2, 1 + n) if n < 29 else date(2020, 3, n - 28)) for n in range(0, 58, 2)]
    step = np.abs(np.diff(np.stack(days), axis=0)).max(axis=(0, 1))
    assert step[abrupt].mean() > 3 * step[~abrupt].mean()


def test_scenes_are_coded_as_collection_2(demo_world: Path) -> None:
    world = simulate.read_world(demo_world)
    compared = 0
    for path in sorted((demo_world / "landsat-c2-l2").glob("LC0?_L2SP_121*_T1.json")):
        item = json.loads(path.read_text())
        with rasterio.open(path.parent / item["assets"]["nir08"]["href"]) as source:
            raw, at, nodata = source.read(1), source.transform, source.nodata
        with rasterio.open(path.parent / item["assets"]["qa_pixel"]["href"]) as source:
            word = source.read(1)
        assert (raw.dtype, nodata) == (np.uint16, 0)
        assert (at.c % 30, at.f % 30) == (15, 15)
        np.testing.assert_array_equal(raw == 0, word == 1)
        truth = world.reflectance(
            date.fromisoformat(item["properties"]["datetime"][:10]), ("nir",),
            Window(-MARGIN, world.shape[0] + MARGIN, -MARGIN, world.shape[1] + MARGIN),
        )[0]  # fmt: skip
        top, left = (MARGIN + round(n / 30) for n in (world.grid.affine.f - at.f, at.c - world.grid.affine.c))
        part = truth[top : top + raw.shape[0], left : left + raw.shape[1]]
        clear = np.isin(word, (21824, 21952))[: part.shape[0], : part.shape[1]]
        if clear.sum() > 500:
            error = raw[: part.shape[0], : part.shape[1]][clear] * 2.75e-5 - 0.2 - part[clear]
            compared += 1
            assert np.sqrt((error**2).mean()) < 0.02
    assert compared >= 3


def test_overlapping_rows_of_a_pass_hold_the_same_values(demo_world: Path) -> None:
    folder = demo_world / "landsat-c2-l2"
    for north in sorted(folder.glob("LC0?_L2SP_12?044_*_T1.json"))[:3]:
        south = folder / north.name.replace("044_", "045_")
        images = []
        for path in (north, south):
            item = json.loads(path.read_text())
            with rasterio.open(path.parent / item["assets"]["red"]["href"]) as source:
                images.append((source.read(1), source.transform.f))
        (first, top), (second, below) = images
        offset = round((top - below) / 30)
        assert 0 < offset < first.shape[0]
        np.testing.assert_array_equal(first[offset:], second[: first.shape[0] - offset])


def test_modis_is_the_mean_of_the_truth_in_the_sinusoidal_lattice(demo_world: Path) -> None:
    folder, world = demo_world / "modis-43A4-061", simulate.read_world(demo_world)
    found, expected = [], []
    at = simulate._sinusoidal(world)
    truth = world.reflectance(DAY, ("nir",))[0]
    for path in sorted(folder.glob(f"MCD43A4.A{DAY:%Y%j}.*.json")):
        item = json.loads(path.read_text())
        with rasterio.open(folder / item["assets"]["Nadir_Reflectance_Band2"]["href"]) as source:
            raw, transform = source.read(1), source.transform
        assert raw.dtype == np.int16
        assert abs(((transform.c + 20015109.354) / 463.312716527778) % 1 - 0.5) > 0.49
        columns = round((transform.c - at.grid.affine.c) / transform.a)
        for row in range(raw.shape[0]):
            for column in range(raw.shape[1]):
                y, x = (
                    at.rows[row, column + columns] * 4 + 1.5 - MARGIN,
                    at.columns[row, column + columns] * 4 + 1.5 - MARGIN,
                )
                if raw[row, column] != 32767 and 10 < y < 118 and 10 < x < 118:
                    found.append(raw[row, column] * 1e-4)
                    y0, x0 = round(y), round(x)
                    expected.append(truth[y0 - 8 : y0 + 8, x0 - 8 : x0 + 8].mean())
    assert len(found) > 20
    assert np.corrcoef(found, expected)[0, 1] > 0.9
    assert abs(np.mean(found) - np.mean(expected)) < 0.02


def test_another_world_does_not_overwrite(demo_world: Path, tmp_path: Path) -> None:
    assert simulate.ensure_world(simulate.read_world(demo_world), demo_world) == demo_world
    with pytest.raises(errors.InputError, match="another demo world"):
        simulate.ensure_world(World(size=64, days=30), demo_world)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(errors.InputError, match="not empty"):
        simulate.ensure_world(World(size=64, days=30), tmp_path)
    with pytest.raises(errors.InputError, match="no demo world"):
        simulate.read_world(tmp_path)


def test_the_area_file_is_geojson_that_leads_back_to_the_grid(demo_world: Path) -> None:
    world = simulate.read_world(demo_world)
    assert nested_grid(read_aoi(str(demo_world / "aoi.geojson"))) == world.grid
    assert world == World(size=128, start=date(2020, 2, 10), days=40)
    assert set(BANDS) == {"blue", "green", "red", "nir", "swir1", "swir2"}
