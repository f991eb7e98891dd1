"""Fusion: formulas by hand, flags, tiles against the whole image, stored against lazy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from stfgan_xr import errors, fusion, store
from stfgan_xr.brackets import reach_cells
from stfgan_xr.fusion import Quality
from stfgan_xr.grid import Window
from stfgan_xr.predictors import Bracket
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.simple import Changed, Delta
from stfgan_xr.region import Region
from tests.synthetic import Scene, corner, counts, day


def fused(scene: Scene, method: str = "delta", days: range = range(5, 33), **options: object) -> xr.Dataset:
    predictor = make(method, scene.bands, ratio=scene.ratio)
    targets = [day(n) for n in days]
    return fusion.fuse(scene.landsat, scene.modis, predictor, targets, **options).compute()  # type: ignore[arg-type]


def bilinear(cells: np.ndarray, row: int, column: int, ratio: int) -> float:
    """Bilinear value at a pixel's centre by the textbook, the edge cell repeated."""
    y, x = (row + 0.5) / ratio - 0.5, (column + 0.5) / ratio - 0.5
    y0, x0 = int(np.floor(y)), int(np.floor(x))
    total = 0.0
    for dy, wy in ((0, 1 - (y - y0)), (1, y - y0)):
        for dx, wx in ((0, 1 - (x - x0)), (1, x - x0)):
            r, c = (min(max(v, 0), size - 1) for v, size in zip((y0 + dy, x0 + dx), cells.shape, strict=True))
            total += wy * wx * float(cells[r, c])
    return total


@pytest.mark.parametrize("ratio", [16, 7, 1])
def test_delta_linear_and_persistence_by_hand(ratio: int) -> None:
    scene = Scene(height=4 * ratio * 4, width=3 * ratio * 4, ratio=ratio, cloud=0, gap=0, acquired=(3, 19), days=25)
    landsat, modis = scene.landsat.nir.values / 1e4, scene.modis.nir.values / 1e4
    results = {m: fused(scene, m, range(8, 14)).nir.values for m in ("delta", "linear", "persistence")}
    rng = np.random.default_rng(0)
    for target in range(8, 14):
        weight = (target - 3) / 16
        for row, column in zip(
            rng.integers(0, scene.fine.shape[0], 12), rng.integers(0, scene.fine.shape[1], 12), strict=True
        ):
            first, last = landsat[0, row, column], landsat[1, row, column]
            change_1 = bilinear(modis[target] - modis[3], row, column, ratio)
            change_3 = bilinear(modis[target] - modis[19], row, column, ratio)
            expected = (1 - weight) * (first + change_1) + weight * (last + change_3)
            assert results["delta"][target - 8, row, column] == pytest.approx(expected, abs=6e-5)
            between = (1 - weight) * first + weight * last
            assert results["linear"][target - 8, row, column] == pytest.approx(between, abs=6e-5)
            nearest = first if target <= 11 else last
            assert results["persistence"][target - 8, row, column] == pytest.approx(nearest, abs=6e-5)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 999),
    tile=st.sampled_from([64, 128]),
    run=st.integers(1, 12),
    method=st.sampled_from(["delta", "linear", "progress"]),
    ratio=st.sampled_from([16, 8]),
)
def test_tiles_and_runs_do_not_change_a_single_pixel(seed: int, tile: int, run: int, method: str, ratio: int) -> None:
    scene = Scene(height=192, width=144, ratio=ratio, seed=seed, cloud=0.5, gap=0.3)
    whole = fused(scene, method, range(6, 20), tile=1024, run=32)
    parts = fused(scene, method, range(6, 20), tile=tile, run=run)
    xr.testing.assert_identical(whole, parts)


def test_observed_pixels_are_the_observation() -> None:
    scene = Scene(cloud=0.3)
    result = fused(scene, "delta")
    for index, number in enumerate(scene.acquired):
        if 5 <= number < 33:
            observed = (result.qa.values[number - 5] & Quality.OBSERVED) != 0
            np.testing.assert_array_equal(observed, scene.landsat.qa.values[index] == 0)
            stored = scene.landsat.red.values[index]
            np.testing.assert_array_equal(np.rint(result.red.values[number - 5] * 1e4)[observed], stored[observed])
            assert (result.days_before.values[number - 5][observed] == 0).all()
    predicted = fused(scene, "linear", keep_observed=False)
    assert not (predicted.qa.values & Quality.OBSERVED).any()


def test_flags_and_ages_of_a_pixel_seen_from_one_side_only() -> None:
    scene = Scene(cloud=0, gap=0, acquired=(3, 19))
    result = fused(scene, "delta", range(1, 25))
    qa = result.qa.values[:, 10, 10]
    one_sided = [bool(word & Quality.EXTRAPOLATED) for word in qa]
    assert one_sided == [n < 3 or n > 19 for n in range(1, 25)]
    assert result.days_before.values[:, 10, 10].tolist() == [255] * 2 + list(range(16)) + list(range(6))
    assert result.days_after.values[0, 10, 10] == 2
    assert result.days_after.values[-1, 10, 10] == 255
    assert (qa[-1] >> 11) & 7 == 7  # none, which is not the same as old
    assert (qa[4] >> 8) & 7 == 1  # two days old


def test_nothing_near_becomes_nodata_in_every_band() -> None:
    scene = Scene(acquired=(3,), cloud=0)
    result = fused(scene, "delta", range(5, 33), bracket_days=10)
    gone = (result.qa.values & Quality.NODATA) != 0
    assert gone[9:].all()
    assert not gone[:9].any()
    np.testing.assert_array_equal(np.isnan(result.red.values), gone)
    assert (result.days_before.values[9:] == 255).all()


def test_coarse_gaps_are_flagged_and_long_ones_are_nodata() -> None:
    scene = Scene(cloud=0, gap=0, days=70, acquired=(3, 60))
    scene.modis.qa.values[10:12, 2, 1] = 1  # short: interpolated in time
    scene.modis.qa.values[20:, :, :] = 1  # from day 20 nothing: held for 16 days, then nodata
    result = fused(scene, "delta", range(5, 50))
    qa = result.qa.values
    assert (qa[5, 32:48, 16:32] & Quality.COARSE_FILLED_IN_TIME).all()
    assert not (qa[5, :32] & Quality.COARSE_FILLED_IN_TIME).any()
    assert (qa[20 - 5 : 36 - 5] & Quality.COARSE_FILLED_IN_TIME).all()
    assert (qa[36 - 5 :] & Quality.NODATA).all()
    assert np.isfinite(fused(scene, "linear", range(5, 50)).red.values).all()  # needs no coarse image


def test_residual_is_cell_mean_minus_coarse() -> None:
    scene = Scene(cloud=0, gap=0)
    result = fused(scene, "linear", range(14, 18))
    red = result.red.values.reshape(4, 6, 16, 4, 16).mean((2, 4))
    np.testing.assert_allclose(result.residual_red.values, red - scene.modis.red.values[14:18] / 1e4, atol=1.1e-4)


def test_delta_beats_linear_and_persistence_on_a_change_that_the_coarse_image_sees() -> None:
    scene = Scene(cloud=0.3, gap=0.1)
    truth = np.array([scene.truth(n) for n in range(5, 33)])
    error = {
        m: np.sqrt(np.nanmean((fused(scene, m).red.values - truth[:, 0]) ** 2))
        for m in ("delta", "linear", "persistence")
    }
    assert error["delta"] < error["linear"] < error["persistence"]


@pytest.mark.parametrize("kind", ["numpy", "dask", "stored"])
def test_lazy_and_written_cubes_agree_whatever_they_read_from(tmp_path: Path, kind: str) -> None:
    scene = Scene(height=128, width=128, cloud=0.4)
    landsat, modis = scene.landsat, scene.modis
    if kind == "dask":
        landsat, modis = landsat.chunk(time=1, y=48, x=48), modis.chunk(time=7)
    elif kind == "stored":
        landsat, modis = (stored(tmp_path / f"{n}.zarr", d) for n, d in (("l", landsat), ("m", modis)))
    job = fusion.plan(landsat, modis, make("delta", scene.bands), [day(n) for n in range(5, 25)], tile=64, run=8)
    path = tmp_path / "fused.zarr"
    pending = store.prepare(path, job.layout, {})
    assert len(pending) == 4 * 3
    records = [task.compute(scheduler="threads") for task in job.write_tasks(path, pending)]
    assert sum(r["pixels"] for r in records) == 128 * 128 * 20
    store.seal(path)
    xr.testing.assert_equal(store.open_cube(path).load(), fused(scene, "delta", range(5, 25)))


def test_outside_of_the_area_nothing_is_computed_and_inside_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingDelta, "prepared", 0)
    scene = Scene(height=192, width=192, cloud=0.4)
    region = corner(scene.fine, 100)
    landsat = stored(tmp_path / "l.zarr", scene.landsat, region)
    modis = stored(tmp_path / "m.zarr", scene.modis, replace(region, grid=scene.fine, ratio=16))
    targets, path = [day(n) for n in range(5, 25)], tmp_path / "fused.zarr"
    job = fusion.plan(landsat, modis, CountingDelta(scene.bands), targets, tile=64, run=20)
    pending = store.prepare(path, job.layout, {}, region=region)
    records = {b.name: task.compute() for b, task in zip(pending, job.write_tasks(path, pending), strict=True)}
    store.seal(path)
    expected = fused(scene, "delta", range(5, 25))
    inside = region.inside(Window(0, 192, 0, 192))
    assert sum(r["pixels"] for r in records.values()) == inside.sum() * 20
    assert sum(r["valid"] for r in records.values()) == (np.isfinite(expected.red.values) & inside).sum()
    cube = store.open_cube(path)
    for block in pending:
        rows, columns = block.window.slices
        if inside[rows, columns].any():
            assert "outside" not in records[block.name]
            xr.testing.assert_equal(cube.isel(y=rows, x=columns)[["red", "nir", "qa"]].drop_vars("aoi").load(),
                                    expected.isel(y=rows, x=columns)[["red", "nir", "qa"]])  # fmt: skip
        else:
            assert records[block.name]["outside"]
            assert np.isnan(cube.red[:, rows, columns]).all()
            assert (cube.qa[:, rows, columns] == int(Quality.NODATA)).all()
    assert sum("outside" in r for r in records.values()) == 6
    done = CountingDelta.prepared
    job.lazy().red.compute()
    assert CountingDelta.prepared - done > 2 * done
    lazy = fusion.fuse(landsat, modis, make("delta", scene.bands), targets)
    xr.testing.assert_equal(lazy.aoi, cube.aoi)


def stored(path: Path, dataset: xr.Dataset, region: Region | None = None) -> xr.Dataset:
    layout = store.dataset_layout(dataset, dataset.odc.geobox, ("red", "nir"), tile=64, run=3)
    for task in store.write_tasks(dataset, path, layout, store.prepare(path, layout, {}, region=region)):
        task.compute(scheduler="synchronous")
    store.seal(path)
    return store.open_cube(path)


class CountingDelta(Delta):
    """Delta that counts how often it is asked to prepare an interval."""

    prepared = 0

    def prepare(self, bracket: Bracket) -> Changed:
        CountingDelta.prepared += 1
        return super().prepare(bracket)


def test_a_window_of_a_lazy_result_computes_only_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingDelta, "prepared", 0)
    scene = Scene(height=256, width=256, cloud=0)
    targets = [day(n) for n in range(13, 18)]
    lazy = fusion.fuse(scene.landsat, scene.modis, CountingDelta(scene.bands), targets, tile=64)
    assert CountingDelta.prepared == 0
    assert lazy.red.isel(time=2, x=slice(0, 70), y=slice(0, 10)).compute().shape == (10, 70)
    assert CountingDelta.prepared == 2


def test_inputs_are_checked_against_each_other() -> None:
    scene = Scene()
    with pytest.raises(errors.InputError, match="landsat has no band swir1"):
        fusion.fuse(scene.landsat, scene.modis, make("delta", ("red", "swir1")))
    other = counts(np.zeros((40, 2, 5, 4)), np.zeros((40, 5, 4), int), [day(n) for n in range(40)],
                   scene.coarse[:5], scene.bands)  # fmt: skip
    with pytest.raises(errors.InputError, match="not nested"):
        fusion.fuse(scene.landsat, other, make("delta", scene.bands))
    with pytest.raises(errors.InputError, match="no days"):
        fusion.fuse(scene.landsat, scene.modis, make("delta", scene.bands), [])
    with pytest.raises(errors.InputError, match="no georeference"):
        fusion.fuse(scene.landsat.drop_vars(["spatial_ref", "x", "y"]), scene.modis, make("delta", scene.bands))


def test_a_window_of_a_lazy_cube_computes_just_the_blocks_that_it_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, asked, real = Scene(height=128, width=128), list[Window](), fusion.fuse_block

    def counted(*sources: object, window: Window, **more: object) -> object:
        asked.append(window)
        return real(*sources, window=window, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(fusion, "fuse_block", counted)
    targets = [day(n) for n in range(8, 24)]
    lazy = fusion.fuse(scene.landsat, scene.modis, make("delta", scene.bands), targets, tile=64, run=4, residuals=False)
    assert not asked
    one = lazy.isel(time=7, x=slice(0, 32), y=slice(64, 70)).compute()
    assert asked == [Window(64, 128, 0, 64)]  # once for all variables
    asked.clear()
    lazy[["red", "nir", "qa"]].isel(time=7, x=slice(60, 68), y=slice(60, 68)).compute()
    assert len(asked) == 4
    asked.clear()
    lazy.nir.isel(x=3, y=100).compute()  # a pixel through time: a tile's four runs of days
    assert asked == [Window(64, 128, 0, 64)] * 4
    xr.testing.assert_identical(one, lazy.compute().isel(time=7, x=slice(0, 32), y=slice(64, 70)))


def test_a_window_of_a_lazy_cube_reads_just_the_imagery_around_it() -> None:
    scene, read = Scene(height=64, width=1024, cloud=0, gap=0), list[tuple[int, ...]]()

    def noted(values: np.ndarray, block_info: dict[int, dict[str, tuple[int, ...]]]) -> np.ndarray:
        read.append(tuple(block_info[0]["chunk-location"]))
        return values

    chunked = scene.landsat.chunk(time=1, y=64, x=64)
    landsat = chunked.assign(
        {name: (("time", "y", "x"), chunked[name].data.map_blocks(noted, dtype=chunked[name].dtype, meta=np.array((), chunked[name].dtype))) for name in chunked}
    )  # fmt: skip
    lazy = fusion.fuse(landsat, scene.modis, make("delta", scene.bands), [day(19)], tile=64, bracket_days=9)
    read.clear()
    lazy.nir.isel(time=0, x=slice(320, 340)).compute()
    assert read
    times, _, columns = (set(axis) for axis in zip(*read, strict=True))
    reach = reach_cells(make("delta", scene.bands).halo, 16) * 16
    assert columns == set(range((320 - reach) // 64, -(-(384 + reach) // 64)))
    assert len(columns) < 8
    assert times == {1, 2, 3, 4}  # days 11, 12, 19 and 27
