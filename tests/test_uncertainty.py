"""Standard deviations: the formula by hand, tiles, calibration on made data, bad JSON, the variables of a cube."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from stfgan_xr import evaluation, fusion, gate, samples, store
from stfgan_xr.brackets import band_names, intervals, series
from stfgan_xr.errors import InputError
from stfgan_xr.fusion import Quality
from stfgan_xr.grid import Window
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.stages import Architecture
from stfgan_xr.predictors.stfgan import STFGAN
from stfgan_xr.predictors.uncertainty import CAUSES, Calibrated, Causes, Uncertainty, calibrated, fit, reach
from tests.synthetic import Scene, day
from tests.test_stfgan import Place, random_checkpoint

BANDS = ("red", "nir")
KNOWN = Uncertainty(
    BANDS,
    ((4e-6, 1e-6, 0.1, 0.2, 1e-4, 0.3, 2e-6), (1e-5, 2e-6, 0.3, 0.05, 1e-3, 0.2, 3e-6)),
    ((0.8, 2.0), (0.7, 2.1)),
    (0.004, 0.006),
)


def fused(scene: Scene, method: str, days: range, **options: Any) -> xr.Dataset:
    predictor = Calibrated(make(method, scene.bands, ratio=scene.ratio), KNOWN)
    targets = [day(n) for n in days]
    return fusion.fuse(scene.landsat, scene.modis, predictor, targets, uncertainty=True, **options).compute()


def test_the_causes_by_hand() -> None:
    scene = Scene(cloud=0, gap=0, acquired=(3, 19), days=25)
    result = fused(scene, "delta", range(7, 8)).isel(time=0)
    landsat, coarse = (np.stack([d[b].values for b in BANDS]) / 1e4 for d in (scene.landsat, scene.modis))
    row, column, weight = 31, 47, 4 / 16  # the last pixel of a cell both ways: half a pixel from the corner of four
    for at, band in enumerate(BANDS):
        before, after = landsat[at, :, row, column]
        share = (0.5 + 0.5 / 16, 0.5 - 0.5 / 16)
        cells = np.einsum("tyx,y,x->t", coarse[at, :, 1:3, 2:4], share, share)
        first, last, now = cells[3], cells[19], cells[7]
        texture = [
            (landsat[at, n, row, column] - landsat[at, n, row - 1 : row + 2, column - 1 : column + 2].mean()) ** 2
            for n in (0, 1)
        ]
        mean = (1 - weight) * (before + now - first) + weight * (after + now - last)
        between = weight * (1 - weight)
        causes = (
            1, between * 16, between * (after - before - last + first) ** 2,
            (1 - weight) * texture[0] + weight * texture[1], mean**2,
            ((1 - weight) * (now - first) + weight * (now - last)) ** 2, 0,
        )  # fmt: skip
        expected = np.sqrt(np.dot(KNOWN.variance[at], causes))
        assert result[f"std_{band}"].values[row, column] == pytest.approx(expected, abs=1.2e-4)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99), tile=st.sampled_from([64, 128]), run=st.integers(1, 9),
    method=st.sampled_from(["delta", "progress"]),
)  # fmt: skip
def test_tiles_and_runs_do_not_change_a_single_pixel(seed: int, tile: int, run: int, method: str) -> None:
    scene = Scene(height=192, width=144, seed=seed, cloud=0.5, gap=0.3)
    whole = fused(scene, method, range(6, 16), tile=1024, run=32)
    parts = fused(scene, method, range(6, 16), tile=tile, run=run)
    xr.testing.assert_identical(whole, parts)


def test_tiles_of_stfgan_have_the_deviation_of_the_whole_image(tmp_path: Path) -> None:
    predictor = Calibrated(STFGAN.open(random_checkpoint(tmp_path, Architecture(BANDS, 4))), KNOWN)
    assert predictor.halo == predictor.predictor.halo
    place = Place((8, 5), 16)

    def std(window: Window) -> Any:
        bracket, coarse = place.bracket(window, predictor.halo)
        found = predictor.predict(predictor.prepare(bracket), coarse)
        np.testing.assert_array_equal(found.mean, place.predict(predictor.predictor, window))
        return found.std

    whole = std(place.whole)
    np.testing.assert_allclose(std(Window(32, 96, 16, 80)), whole[..., 32:96, 16:80], atol=1e-5)


def test_every_value_has_a_deviation_above_zero_and_nothing_else_changes() -> None:
    scene = Scene(cloud=0.4, gap=0.3, acquired=(3, 12, 27))
    result = fused(scene, "progress", range(0, 38), bracket_days=12)
    plain = fusion.fuse(
        scene.landsat, scene.modis, make("progress", BANDS), [day(n) for n in range(38)], bracket_days=12
    ).compute()
    xr.testing.assert_identical(result[list(plain.data_vars)], plain)
    observed = (result.qa.values & Quality.OBSERVED) != 0
    assert np.isnan(result.red.values).any()
    for band, own in zip(BANDS, KNOWN.observed, strict=True):
        std = result[f"std_{band}"].values
        np.testing.assert_array_equal(np.isnan(std), np.isnan(result[band].values))
        assert np.nanmin(std) >= 0.0001
        np.testing.assert_allclose(std[observed], own, atol=1.01e-4)
        assert result[f"std_{band}"].attrs["interval_95"] == KNOWN.intervals[BANDS.index(band)][1]
    assert band_names(result) == BANDS


def test_the_middle_of_a_long_interval_is_less_sure_than_its_ends() -> None:
    scene = Scene(cloud=0, gap=0, acquired=(3, 35))
    of_time = replace(KNOWN, variance=((4e-6, 1e-6, 0.1, 0, 0, 0, 2e-6),) * 2)
    predictor = Calibrated(make("progress", BANDS), of_time)
    targets = [day(n) for n in range(3, 39)]
    found = fusion.fuse(scene.landsat, scene.modis, predictor, targets, keep_observed=False, uncertainty=True)
    by_day = found.std_nir.mean(("y", "x")).values
    assert by_day[16] > 1.5 * by_day[1] > 1.5 * by_day[0]
    assert by_day[16] > 1.5 * by_day[31]
    assert (np.diff(by_day[32:]) > 0).all()  # from the last observation on


def test_calibration_finds_the_coefficients_that_made_the_errors() -> None:
    rng = np.random.default_rng(0)
    causes = rng.exponential(1, (len(CAUSES), 200_000)) * np.array([[1e-3], [9], [0.01], [1e-4], [0.1], [1e-3], [0]])
    causes[0], causes[6] = 1, 0
    true = np.array([1e-5, 2e-6, 2e-3, 0.3, 0, 0.05, 0])
    errors = np.sqrt(true @ causes) * rng.standard_normal(causes.shape[1])
    found, (low, high) = fit(causes, errors)
    np.testing.assert_allclose(np.array(found) * causes.mean(axis=1), true * causes.mean(axis=1), atol=1e-6)
    assert found[6] == 0  # never seen
    assert (low, high) == pytest.approx((0.994, 1.96), abs=0.02)
    exact, widths = fit(causes, np.zeros(causes.shape[1]))
    assert exact[0] > 0
    assert min(widths) > 0


class Restless(Scene):
    """Every pixel changes from day to day, more so towards the right, as nothing can predict."""

    def truth(self, number: int) -> Any:
        rng, sizes = np.random.default_rng(number), np.linspace(0.005, 0.05, self.base.shape[-1])
        return (self.base + sizes * rng.standard_normal(self.base.shape)).astype("float32")


@pytest.mark.parametrize("known", [True, False])
def test_intervals_hold_on_withheld_days(known: bool) -> None:
    scene = Restless(128, 128, acquired=tuple(range(1, 40, 3)), cloud=0.1, gap=0)

    def truth(when: date, bands: Any, window: Window) -> Any:
        return scene.truth((when - day(0)).days)[:, *window.slices]

    fine, coarse = series(scene.landsat, BANDS), series(scene.modis, BANDS)
    place = samples.Place(fine, coarse, samples.withhold(fine.days), truth if known else None)
    found = gate.calibrate(make("delta", BANDS), [place])
    assert found is not None
    # The made observations are rounded to counts and nothing else.
    assert found.observed == pytest.approx((3e-5, 3e-5) if known else (gate.OBSERVED,) * 2, rel=0.2)
    cases = [evaluation.Triplet(day(n - 3), day(n), day(n + 3)) for n in (10, 25)]
    methods = {"sure": Calibrated(make("delta", BANDS), found), "delta": make("delta", BANDS)}
    table = evaluation.evaluate_triplets(scene.landsat, scene.modis, methods, cases)
    mean = table["sure"].mean
    assert mean["coverage_68"] == pytest.approx(0.68, abs=0.05)
    assert mean["coverage_95"] == pytest.approx(0.95, abs=0.03)
    assert mean["rmse_surest"] < mean["rmse_least_sure"]  # type: ignore[operator]
    stated = evaluation.to_json(table)
    assert stated["sure"]["mean"]["coverage_68"] == mean["coverage_68"]
    assert stated["sure"]["bands"]["nir"]["rmse_surest"] is not None
    assert stated["delta"]["mean"]["coverage_68"] is None
    assert stated["delta"]["mean"]["rmse"] == stated["sure"]["mean"]["rmse"]


def test_without_a_withheld_day_nothing_is_known() -> None:
    scene = Scene(acquired=(3, 19))
    place = samples.Place(series(scene.landsat, BANDS), series(scene.modis, BANDS))
    assert gate.calibrate(make("delta", BANDS), [place]) is None
    with pytest.raises(InputError, match="uncertainty of delta is not known"):
        calibrated(make("delta", BANDS))
    with pytest.raises(InputError, match="uncertainty of progress"):
        fusion.fuse(scene.landsat, scene.modis, make("progress", BANDS), uncertainty=True)


def test_json_round_trip_and_some_of_the_bands() -> None:
    config = json.loads(json.dumps(KNOWN.to_config()))
    assert Uncertainty.from_config(config, BANDS) == KNOWN
    assert Uncertainty.from_config(config, ("nir", "red")) == KNOWN.of(("nir", "red"))
    assert KNOWN.of(("nir",)).variance == KNOWN.variance[1:]
    assert KNOWN.digest != replace(KNOWN, observed=(0.004, 0.007)).digest


BAD = [
    ("variance", [1e-5] * 6), ("variance", [1e-5] * 6 + [-1e-9]), ("variance", [1e-5] * 6 + [float("nan")]),
    ("variance", [1e-5] * 6 + [float("inf")]), ("variance", [0.0] + [1e-5] * 6), ("variance", [True] * 7),
    ("variance", ["1"] * 7), ("variance", [10**400] * 7), ("variance", None), ("variance", {"0": 1}),
    ("intervals", [0.8]), ("intervals", [2.0, 0.8]), ("intervals", [0, 2.0]), ("intervals", 2),
    ("observed", 0), ("observed", -0.1), ("observed", [0.1]), ("observed", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_numbers_are_refused(name: str, value: Any) -> None:
    config = KNOWN.to_config()
    config["bands"]["nir"][name] = value
    with pytest.raises(InputError, match="uncertainty") as caught:
        Uncertainty.from_config(json.loads(json.dumps(config)), BANDS)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("config", [None, [], {}, {"causes": list(CAUSES)}, {"causes": ["x"], "bands": {}},
                                    {"causes": list(CAUSES), "bands": {"red": 1, "nir": []}},
                                    {"causes": list(CAUSES), "bands": {"blue": {}}}, KNOWN.to_config() | {"causes": ["1"]}])  # fmt: skip
def test_what_is_no_uncertainty_is_refused(config: Any) -> None:
    with pytest.raises(InputError, match="uncertainty"):
        Uncertainty.from_config(config, BANDS)


def test_a_written_cube_holds_what_the_lazy_one_gives(tmp_path: Path) -> None:
    scene, path = Scene(height=128, width=128, cloud=0.4, gap=0.3), tmp_path / "fused.zarr"
    predictor = Calibrated(make("progress", BANDS), KNOWN)
    targets = [day(n) for n in range(5, 21)]
    job = fusion.plan(scene.landsat, scene.modis, predictor, targets, uncertainty=True, tile=64, run=8)
    plain = fusion.plan(scene.landsat, scene.modis, make("progress", BANDS), targets, tile=64, run=8)
    assert job.layout.size() - plain.layout.size() == 2 * 2 * 16 * 128 * 128
    assert job.memory() > plain.memory()
    for task in job.write_tasks(path, store.prepare(path, job.layout, {})):
        task.compute(scheduler="synchronous")
    store.seal(path)
    cube = store.open_cube(path)
    assert cube.std_red.dtype == np.float32
    assert cube.std_red.attrs["long_name"] == "standard deviation of red reflectance"
    assert cube.std_red.attrs["interval_68"] == 0.8
    assert band_names(cube) == BANDS
    xr.testing.assert_equal(cube.load(), fused(scene, "progress", range(5, 21)))
    with pytest.raises(InputError, match="variables"):
        store.prepare(path, plain.layout, {})


def test_causes_are_none_negative_and_of_every_pixel() -> None:
    scene = Scene(cloud=0.5, gap=0.2)
    predictor, window = make("progress", BANDS), Window(0, 96, 0, 64)
    fine, coarse = series(scene.landsat, BANDS), series(scene.modis, BANDS)
    days = fine.days[0] + np.arange(4, 20)
    for interval in intervals(fine, coarse, window, days.tolist(), reach(predictor), 16):
        image = torch.full((2, 96, 64), 0.3)
        for when in interval.days:
            found = list(Causes.of(interval.bracket).on(when, torch.from_numpy(interval.coarse.on(when)), image))
            assert len(found) == len(CAUSES)
            assert all(cause.expand(image.shape).min() >= 0 for cause in found)
