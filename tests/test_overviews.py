"""Overviews hold the means that plain loops give, and a view reads the level that fits what is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.viewer import make
from stfgan_xr import overviews, store
from stfgan_xr.cluster import run
from stfgan_xr.files import as_folder
from stfgan_xr.grid import Window
from stfgan_xr.sensors import FILL, is_clear
from tests.synthetic import Scene, corner, grid


def plain_mean(counts: np.ndarray, factor: int) -> np.ndarray:
    days, height, width = counts.shape
    out = np.full((days, -(-height // factor), -(-width // factor)), FILL, counts.dtype)
    for day, y, x in np.ndindex(*out.shape):
        cell = counts[day, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        known = [int(v) for v in cell.ravel() if v != FILL]
        if known:
            out[day, y, x] = np.rint(sum(known) / len(known))
    return out


@pytest.mark.parametrize("shape", [(8, 8), (9, 6), (3, 17)])
def test_means_of_the_pixels_that_have_a_value(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(-2000, 16000, (3, *shape)).astype("int16")
    counts[rng.random(counts.shape) < 0.5] = FILL
    counts[0, :4, :4] = FILL
    found = overviews.reduce_mean(counts, 4, FILL)
    np.testing.assert_array_equal(found, plain_mean(counts, 4))
    assert found[0, 0, 0] == FILL


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose Landsat cube is too large to be looked at without overviews."""
    monkeypatch.setattr(overviews, "MOST_PIXELS", 40)
    monkeypatch.setattr(overviews, "TILE", 64)
    scene = Scene(height=176, width=400, acquired=(3, 11, 12, 19))
    layout = store.dataset_layout(scene.landsat, grid(176, 400), scene.bands, tile=192, run=1)
    path = tmp_path / "landsat.zarr"
    for block in store.prepare(path, layout, {}, region=corner(grid(176, 400), 100)):
        rows, columns = block.window.slices
        part = scene.landsat.isel(time=slice(block.first, block.last), y=rows, x=columns)
        store.write_block(path, layout, block, {name: part[name].values for name in layout.variables})
    store.seal(path)
    return tmp_path


def build(folder: Path) -> int:
    written = 0
    for overview in overviews.prepare(as_folder(folder), "landsat"):
        written += len(list(run(overview.tasks(), None)))
    return written


def test_overviews_are_cubes_of_means_written_once(folder: Path) -> None:
    assert build(folder) > 0
    assert build(folder) == 0
    counts, small = store.open_counts(folder / "landsat.zarr"), store.open_counts(folder / "overviews/landsat-4.zarr")
    for band in ("red", "nir"):
        np.testing.assert_array_equal(small[band].values, plain_mean(counts[band].values, 4))
    np.testing.assert_array_equal(small.qa.values, counts.qa.values[:, 2::4, 2::4])
    smaller = store.open_counts(folder / "overviews/landsat-16.zarr")
    np.testing.assert_array_equal(smaller.red.values, plain_mean(small.red.values, 4))
    assert tuple(smaller.odc.geobox.affine)[:6] == (480, 0, 480_015, 0, -480, 2_400_015)


def test_a_run_that_changed_gets_other_overviews(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(folder)
    known = store.identity_of
    monkeypatch.setattr(store, "identity_of", lambda path: known(path) | {"overview_of": "another"})
    assert overviews.open_pyramid(as_folder(folder), "landsat").levels.keys() == {1}
    assert build(folder) > 0
    overviews.remove(as_folder(folder))
    assert list((folder / "overviews").iterdir()) == []


def test_a_view_takes_the_finest_level_it_may_read_whole(folder: Path) -> None:
    build(folder)
    pyramid = overviews.open_pyramid(as_folder(folder), "landsat")
    assert pyramid.levels.keys() == {1, 4, 16}
    assert [pyramid.level(Window(0, n, 0, n)) for n in (40, 41, 160, 161)] == [1, 4, 4, 16]
    cube = pyramid.cube
    near = pyramid.view(["red"], slice(2, 4), Window(50, 60, 30, 50), pixels=100)
    np.testing.assert_array_equal(near.values["red"], cube.red.values[2:4, 50:60, 30:50])
    assert (near.grid.affine.c, near.grid.affine.f) == (480_015 + 30 * 30, 2_400_015 - 50 * 30)
    far = pyramid.view(["red", "qa"], slice(0, 1), Window(8, 100, 0, 100), pixels=13)
    assert far.grid.affine.a == 30 * 8
    expected = cube.red.values[0, 8:104, 0:104].reshape(12, 8, 13, 8)
    means = np.nanmean(np.nanmean(expected.reshape(12, 2, 4, 13, 2, 4), axis=(2, 5)), axis=(1, 3))
    np.testing.assert_allclose(far.values["red"][0], means, atol=1e-4)
    assert far.values["qa"].shape == far.values["red"].shape


def test_clear_shares_are_those_of_the_area(folder: Path) -> None:
    cube = store.open_cube(folder / "landsat.zarr")
    inside, clear = cube.aoi.values, is_clear(cube.qa.values)
    expected = [float(day[inside].mean()) for day in clear]
    exact = overviews.clear_shares(overviews.open_pyramid(as_folder(folder), "landsat"))
    np.testing.assert_allclose(exact, expected)
    build(folder)
    near = overviews.clear_shares(overviews.open_pyramid(as_folder(folder), "landsat"))
    sampled, area = clear[:, 2::4, 2::4][:, 2::4, 2::4], inside[8::16, 8::16]
    np.testing.assert_allclose(near, [float(day[area].mean()) for day in sampled])


def test_the_cube_of_the_benchmark_is_one_block_everywhere(tmp_path: Path) -> None:
    make(tmp_path, 2048, 2)
    pyramid = overviews.open_pyramid(as_folder(tmp_path), "fused")
    assert sorted(pyramid.levels) == [1, 4]
    red = pyramid.cube.red.values
    np.testing.assert_array_equal(red, np.tile(red[:, :1024, :1024], (1, 2, 2)))
    assert pyramid.view(["red"], slice(0, 1)).values["red"].shape == (1, 512, 512)
