"""The methods with windows: against their literal versions, over tiles with masks, and where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import optimize

from stfgan_xr import evaluation, fusion, store
from stfgan_xr.brackets import intervals, series, spectra
from stfgan_xr.datasets import read_pairs
from stfgan_xr.days import to_datetime64
from stfgan_xr.errors import InputError
from stfgan_xr.files import as_folder
from stfgan_xr.fusion import Options, fuse_block
from stfgan_xr.grid import Halo, Window
from stfgan_xr.predictors import Archive, Bracket, CoarseWindow, Predictor, fitted, wants_archive, with_spread
from stfgan_xr.predictors.efast import EFAST
from stfgan_xr.predictors.estarfm import ESTARFM
from stfgan_xr.predictors.fitfc import FitFC
from stfgan_xr.predictors.fsdaf import FSDAF
from stfgan_xr.predictors.methods import METHODS, make
from stfgan_xr.predictors.robot import ROBOT, mixture
from stfgan_xr.predictors.starfm import STARFM
from stfgan_xr.predictors.windows import most_similar, window_deviations, window_means
from stfgan_xr.sensors import BANDS as SIX
from stfgan_xr.simulate import world_of
from tests import literal
from tests.literal import DAY, FIRST, LAST, Case
from tests.synthetic import Scene, chunkings, day
from tests.test_evaluation import CASES

BANDS = ("red", "nir")
CENTRES = ((0.1, 0.15), (0.2, 0.3), (0.35, 0.3))


def made(
    seed: int, halo: Halo, ratio: int, cells: tuple[int, int], holes: float, archive: bool = False
) -> tuple[Bracket, CoarseWindow]:
    """A bracket of few kinds of land that change as the coarse images do, with holes, and a day of the series."""
    rng = np.random.default_rng(seed)
    shape = (cells[0] * ratio + 2 * halo.fine, cells[1] * ratio + 2 * halo.fine)
    wide = (2, cells[0] + 2 * halo.coarse, cells[1] + 2 * halo.coarse)
    level, change = rng.uniform(0.2, 0.35, wide), rng.normal(0.06, 0.03, wide)
    coarse = [(level + part * change + rng.normal(0, 0.005, wide)).astype(np.float32) for part in (0, 1, 0.4)]
    up = [[literal.raised(band, shape, ratio, halo.coarse, halo.fine) for band in image] for image in coarse]
    kinds = rng.integers(0, 3, (-(-shape[0] // 3), -(-shape[1] // 3))).repeat(3, 0).repeat(3, 1)[: shape[0], : shape[1]]
    texture = np.array([(-0.1, 0.05), (0.0, -0.04), (0.12, 0.1)])[kinds].transpose(2, 0, 1)
    before, after = (
        (image + texture * gain + rng.normal(0, 0.01, (2, *shape))).astype(np.float32)
        for image, gain in zip(np.array(up[:2]), (1.0, 1.3), strict=True)
    )
    days = [rng.integers(FIRST, FIRST + 3, shape), rng.integers(LAST - 3, LAST + 1, shape)]
    known, cells_known, today = (rng.random(of) >= share for of, share in ((shape, holes), (wide[1:], holes / 20), (wide[1:], holes / 20)))  # fmt: skip
    bracket = Bracket(
        before, after, coarse[0], coarse[1], *(d.astype(np.int32) for d in days), ratio, halo, known, cells_known,
        _archive(rng, before, after, coarse, holes) if archive else None,
    )  # fmt: skip
    return bracket, CoarseWindow((DAY,), coarse[2][None], (DAY,), today[None])


def _archive(rng: np.random.Generator, before: Any, after: Any, coarse: Any, holes: float) -> Archive:
    days = (FIRST - 30, FIRST - 10, FIRST, LAST, LAST + 20)
    shares = (-0.5, -0.2, 0, 1, 1.4)
    fine = np.stack([before + s * (after - before) + rng.normal(0, 0.02, before.shape) for s in shares]).astype(
        np.float32
    )
    fine[np.broadcast_to(rng.random((5, 1, *before.shape[1:])) < holes, fine.shape)] = np.nan
    images = np.stack([coarse[0] + s * (coarse[1] - coarse[0]) for s in shares])
    images += rng.normal(0, 0.02, images.shape)
    images[1, :, :3, :3] = np.nan if holes else images[1, :, :3, :3]
    return Archive(days, fine, images.astype(np.float32))


def predicted(method: Any, bracket: Bracket, coarse: CoarseWindow) -> Any:
    return method.predict(method.prepare(bracket), coarse).mean[0]


def agree(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.isfinite(found).mean() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


HOLES = [(0, 4, 0.0), (1, 4, 0.2), (2, 7, 0.1)]


@pytest.mark.parametrize(("seed", "ratio", "holes"), HOLES)
def test_estarfm_is_what_its_description_says(seed: int, ratio: int, holes: float) -> None:
    method = ESTARFM(BANDS, ratio, radius=5)
    bracket, coarse = made(seed, method.halo, ratio, (2, 3), holes)
    prepared = method.prepare(bracket)
    assert 0.1 < (prepared.slope != 1).float().mean() < 1
    assert (prepared.similar.found > 5).float().mean() > 0.1
    agree(predicted(method, bracket, coarse), literal.estarfm(Case(bracket, coarse), 5))


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize(("seed", "ratio", "holes"), HOLES)
def test_starfm_is_what_its_description_says(seed: int, ratio: int, holes: float, pairs: Any) -> None:
    method = STARFM(BANDS, ratio, radius=4, classes=4, pairs=pairs)
    bracket, coarse = made(seed, method.halo, ratio, (2, 3), holes)
    agree(predicted(method, bracket, coarse), literal.starfm(Case(bracket, coarse), 4, pairs))


@pytest.mark.parametrize(("seed", "ratio", "holes"), HOLES)
def test_fitfc_is_what_its_description_says(seed: int, ratio: int, holes: float) -> None:
    method = FitFC(BANDS, ratio, radius=5)
    bracket, coarse = made(seed, method.halo, ratio, (2, 3), holes)
    agree(predicted(method, bracket, coarse), literal.fitfc(Case(bracket, coarse), 5))


@pytest.mark.parametrize(("seed", "ratio", "holes"), [(0, 4, 0.0), (1, 4, 0.2)])
def test_fsdaf_is_what_its_description_says(seed: int, ratio: int, holes: float) -> None:
    method = FSDAF(BANDS, ratio, radius=3, classes=3, centres=CENTRES)
    bracket, coarse = made(seed, method.halo, ratio, (2, 2), holes)
    agree(predicted(method, bracket, coarse), literal.fsdaf(Case(bracket, coarse), 3, CENTRES))


@pytest.mark.parametrize(("seed", "ratio", "holes"), [(0, 4, 0.0), (1, 4, 0.2), (2, 7, 0.2), (3, 16, 0.1)])
def test_robot_is_what_its_description_says(seed: int, ratio: int, holes: float) -> None:
    method = ROBOT(BANDS, ratio)
    bracket, coarse = made(
        seed, method.halo, ratio, (method.step // ratio, 2 * method.step // ratio), holes, archive=True
    )
    agree(predicted(method, bracket, coarse), literal.robot(Case(bracket, coarse), method.step))


def test_weights_of_a_mixture_are_the_best_that_are_allowed() -> None:
    rng = np.random.default_rng(0)
    images, wanted = rng.normal(0.2, 0.3, (40, 30, 4)), rng.normal(0.45, 0.5, (40, 30))
    matrix, right = images.transpose(0, 2, 1) @ images, (images * wanted[..., None]).sum(1)
    found = mixture(torch.from_numpy(matrix), torch.from_numpy(right)).numpy()
    assert (found.sum(1) > 1.999).any()
    assert (found.sum(1) < 1.9).any()
    for of, square, product in zip(found, matrix, right, strict=True):
        best = optimize.minimize(
            lambda a, q=square, b=product: (a @ q @ a / 2 - a @ b, q @ a - b), np.full(4, 0.25), jac=True, method="SLSQP",
            bounds=[(0, None)] * 4, constraints={"type": "ineq", "fun": lambda a: 2 - a.sum()}, options={"ftol": 1e-14},
        )  # fmt: skip
        np.testing.assert_allclose(of, best.x, atol=1e-4)


def test_sums_over_windows_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(0.3, 0.2, (2, 15, 18)).astype(np.float32)
    usable = rng.random((15, 18)) < 0.6
    means = window_means(torch.from_numpy(image), torch.from_numpy(usable), 3)
    deviations = window_deviations(torch.from_numpy(image), torch.from_numpy(usable), 3)
    for row in range(9):
        for column in range(12):
            part = slice(row, row + 7), slice(column, column + 7)
            values = image[:, *part][:, usable[part]].astype(float)
            np.testing.assert_allclose(means[:, row, column], values.mean(1), atol=1e-6)
            np.testing.assert_allclose(deviations[:, row, column], values.std(1), atol=1e-6)


def test_of_equally_similar_pixels_the_nearest_are_taken() -> None:
    image, usable = torch.zeros(1, 9, 9), torch.ones(9, 9, dtype=torch.bool)
    usable[3, 4] = False
    found = most_similar(image, usable, 4, 4)
    places = [(int(p) // 9, int(p) % 9) for p in found.places(slice(0, 1))[0]]
    assert places == [(4, 4), (4, 3), (4, 5), (5, 4)]


@lru_cache
def scene(ratio: int, cloud: float = 0.5) -> Scene:
    return Scene(height=7 * 16, width=6 * 16, ratio=ratio, seed=ratio, cloud=cloud, gap=0.3)


def small(name: str, ratio: int) -> Predictor:
    """A method with windows that are small against the tiles of a test."""
    chosen = make(name, BANDS, ratio=ratio)
    method = chosen if name == "robot" else replace(chosen, radius=6)  # type: ignore[type-var]
    return fitted(method, spectra(series(scene(ratio).landsat, BANDS)))


WINDOWED = ("starfm", "estarfm", "fitfc", "fsdaf", "robot")


@pytest.mark.parametrize("ratio", [16, 8])
@pytest.mark.parametrize("name", WINDOWED)
def test_tiles_and_runs_do_not_change_a_single_pixel(name: str, ratio: int) -> None:
    """Ten chunkings of each ratio, clouds and gaps in all of them."""
    whole, landsat, modis = (
        small(name, ratio),
        *(series(cube, BANDS) for cube in (scene(ratio).landsat, scene(ratio).modis)),
    )
    start = landsat.days[0] - 3
    days = [start + n for n in range(9, 21)]
    expected = fuse_block(landsat, modis, whole, Window(0, 112, 0, 96), days, Options(keep_observed=False))
    assert np.mean(expected["red"] != -32768) > 0.5
    for window, first, last in chunkings((112, 96), 12):
        found = fuse_block(landsat, modis, whole, window, days[first:last], Options(keep_observed=False))
        rows, columns = window.slices
        for variable, values in found.items():
            part = expected[variable][first:last]
            part = part[:, rows, columns] if part.shape[1] == 112 else part[:, *window.cells(ratio).slices]
            np.testing.assert_array_equal(values, part, err_msg=f"{variable} {window}")


@pytest.mark.slow
@pytest.mark.parametrize("name", WINDOWED)
def test_tiles_of_whole_cubes_do_not_change_a_single_pixel_with_windows_as_they_come(name: str) -> None:
    cubes = Scene(height=256, width=192, seed=5, cloud=0.5, gap=0.3)
    method, days = make(name, BANDS), [day(n) for n in range(8, 20)]
    whole, parts = (
        fusion.fuse(cubes.landsat, cubes.modis, method, days, tile=tile, run=run).compute()
        for tile, run in ((1024, 32), (64, 5))
    )
    xr.testing.assert_identical(whole, parts)


def test_observations_near_their_clouds_count_less() -> None:
    """Distances and weights by hand, and the same in any tile."""
    cubes = Scene(height=96, width=64, seed=3, cloud=0.2, gap=0, acquired=(3, 19), days=25)
    cubes.landsat.nir.values[1] += 300  # so that it matters which of the two counts more
    landsat, modis, method = series(cubes.landsat, BANDS), series(cubes.modis, BANDS), EFAST(BANDS, cloud_reach=20)
    image, target = Window(0, 96, 0, 64), landsat.days[0] + 5
    interval = next(intervals(landsat, modis, image, [target], method.halo, 16, cloud_reach=20))
    bracket, coarse, inner = interval.bracket, interval.coarse, slice(20, -20)
    found = predicted(method, bracket, coarse)
    alone = []
    for where in ("before", "after"):
        own = {of: getattr(bracket, f"{of}_{where}") for of in ("fine", "coarse", "day")}
        twice = {f"{of}_{slot}": values for of, values in own.items() for slot in ("before", "after")}
        alone.append(predicted(method, replace(bracket, **twice), coarse))
    cloudy = [np.argwhere(landsat.qa([number], image)[0] != 0) for number in (0, 1)]
    both, shares = (landsat.qa([0, 1], image) == 0).all(0), []
    assert bracket.cloud_before is not None
    assert bracket.cloud_after is not None
    for row, column in np.argwhere(both)[::97]:
        distance = [min(np.sqrt(((at - (row, column)) ** 2).sum(1)).min(), 20) for at in cloudy]
        assert bracket.cloud_before[inner, inner][row, column] == pytest.approx(distance[0])
        assert bracket.cloud_after[inner, inner][row, column] == pytest.approx(distance[1])
        shares.append(distance[1] * 5 / (distance[1] * 5 + distance[0] * 11))
        expected = (1 - shares[-1]) * alone[0][:, row, column] + shares[-1] * alone[1][:, row, column]
        np.testing.assert_allclose(found[:, row, column], expected, atol=1e-6)
    assert np.ptp(shares) > 0.3
    whole = fuse_block(landsat, modis, method, image, [target], Options())
    part = fuse_block(landsat, modis, method, Window(16, 48, 32, 64), [target], Options())
    for variable in (*BANDS, "qa"):
        np.testing.assert_array_equal(part[variable], whole[variable][:, 16:48, 32:64])


@pytest.mark.parametrize("name", WINDOWED)
def test_what_is_not_clear_has_no_part_in_any_pixel(name: str) -> None:
    """Other values under the clouds and in the gaps: the same result."""
    method, cubes = small(name, 16), scene(16)
    spoiled = [cube.copy(deep=True) for cube in (cubes.landsat, cubes.modis)]
    for cube in spoiled:
        for band in BANDS:
            cube[band].values[cube.qa.values != 0] = 9999
    landsat, modis = (series(cube, BANDS) for cube in (cubes.landsat, cubes.modis))
    others = [series(cube, BANDS) for cube in spoiled]
    window, days = Window(16, 80, 16, 64), [landsat.days[0] + n for n in (3, 8, 12)]
    expected = fuse_block(landsat, modis, method, window, days, Options())
    found = fuse_block(*others, method, window, days, Options())
    for variable, values in expected.items():
        np.testing.assert_array_equal(values, found[variable])


def test_a_long_gap_of_the_coarse_series_is_left_out_of_windows() -> None:
    """Where no coarse value can be made up nothing is told, and around it the rest of the windows is taken."""
    cubes = Scene(height=224, width=64, cloud=0, gap=0, days=60, acquired=(3, 50))
    cubes.modis.qa.values[8:45, :12] = 1
    landsat, modis = series(cubes.landsat, BANDS), series(cubes.modis, BANDS)
    window, days = Window(0, 224, 0, 64), [landsat.days[0] + 23]
    for name in WINDOWED:
        method = make(name, BANDS) if name == "robot" else replace(make(name, BANDS), radius=6)  # type: ignore[type-var]
        found = fuse_block(landsat, modis, fitted(method, spectra(landsat)), window, days, Options())
        # What is filled reaches over eight cells, what is interpolated half a cell less.
        valid = found["red"][0] != -32768
        assert not valid[:64].any()
        assert valid[80:].all()


@pytest.mark.parametrize("name", WINDOWED)
def test_a_block_without_any_observation_is_nodata(name: str) -> None:
    cubes, other = Scene(height=32, width=32, cloud=1.0, acquired=(3, 19), days=25), scene(16)
    landsat, modis = series(cubes.landsat, BANDS), series(cubes.modis, BANDS)
    method = make(name, BANDS) if name == "robot" else replace(make(name, BANDS), radius=4)  # type: ignore[type-var]
    ready = fitted(method, spectra(series(other.landsat, BANDS)))
    found = fuse_block(landsat, modis, ready, Window(0, 32, 0, 32), [landsat.days[0] + 5], Options())
    assert (found["red"] == -32768).all()


@pytest.mark.slow
def test_on_the_demo_world_each_is_better_than_persistence_and_estarfm_than_starfm(finished: Path) -> None:
    world = world_of(as_folder(finished))
    assert world is not None
    landsat, modis = (store.open_cube(finished / f"{name}.zarr").compute() for name in ("landsat", "modis"))
    seen = evaluation.usable_days(landsat, 0.6)
    before, after = seen[0], max(d for d in seen if (d - seen[0]).days <= 32)
    middle = before + (after - before) / 2
    pair = landsat.sel(time=to_datetime64((before, after)))
    errors = {}
    for name in ("persistence", *WINDOWED[:-1]):
        found = fusion.fuse(pair, modis, make(name, SIX), [middle]).compute()
        image = np.stack([found[band].values[0] for band in SIX])
        errors[name] = float(np.sqrt(np.nanmean((image - world.reflectance(middle, SIX)) ** 2)))
    assert max(errors.values()) == errors["persistence"], errors
    assert errors["estarfm"] < errors["starfm"], errors


def test_the_archive_holds_every_acquisition_however_far() -> None:
    cubes = Scene(cloud=0.3, gap=0, days=160, acquired=(3, 20, 27, 150))
    landsat, modis = series(cubes.landsat, BANDS), series(cubes.modis, BANDS)
    method = make("robot", BANDS)
    assert wants_archive(method)
    target = landsat.days[0] + 20
    interval = next(intervals(landsat, modis, Window(0, 96, 0, 64), [target], method.halo, 16, 16, archive=True))
    archive = interval.bracket.archive
    assert archive is not None
    assert archive.days == landsat.days
    inner = archive.fine[:, :, 16:-16, 16:-16]
    for number in range(4):
        image = landsat.read([number], Window(0, 96, 0, 64))[0]
        clear = landsat.qa([number], Window(0, 96, 0, 64))[0] == 0
        np.testing.assert_array_equal(np.isfinite(inner[number]).all(0), clear)
        np.testing.assert_array_equal(inner[number][:, clear], image[:, clear])
    few = interval.bracket.within(Halo(fine=8, coarse=1))
    assert few.archive is not None
    assert few.archive.fine.shape[-2:] == few.fine_before.shape[-2:]


def test_real_imagery_is_predicted_as_well_as_by_others(shared_data: Path) -> None:
    pairs = read_pairs(shared_data / "pairs" / "salton_sea_nir" / "pairs.toml")
    of = ("nir",)
    methods = {
        "estarfm": ESTARFM(of, 7, 7),
        "starfm": STARFM(of, 7, 7),
        "fitfc": FitFC(of, 7, 7),
        "fsdaf": FSDAF(of, 7, 7),
    }
    table = evaluation.evaluate_triplets(
        pairs.landsat().compute(), pairs.modis().compute(), methods, evaluation.triplets_from_text(CASES)
    )
    most = {"estarfm": 0.0380, "starfm": 0.0392, "fitfc": 0.0425, "fsdaf": 0.0425}
    for name, result in table.items():
        assert result.mean["rmse"] <= most[name], name  # type: ignore[operator]


def test_classes_are_those_of_the_sample_whatever_its_order() -> None:
    rng = np.random.default_rng(0)
    kinds = np.array([(0.05, 0.1), (0.1, 0.4), (0.3, 0.3)], np.float32)
    spectra_ = kinds[rng.integers(0, 3, 600)] + rng.normal(0, 0.005, (600, 2)).astype(np.float32)
    method = FSDAF(BANDS, classes=3)
    first, second = method.fit(spectra_).centres, method.fit(rng.permutation(spectra_)).centres
    np.testing.assert_allclose(first, kinds, atol=2e-3)
    np.testing.assert_allclose(first, second, atol=1e-9)


def test_a_sample_is_of_clear_pixels_and_always_the_same() -> None:
    cubes = scene(16)
    found = spectra(series(cubes.landsat, BANDS))
    np.testing.assert_array_equal(found, spectra(series(cubes.landsat.chunk(time=2, y=40, x=40), BANDS)))
    clear = np.stack([cubes.landsat[band].values[cubes.landsat.qa.values == 0] for band in BANDS], 1)
    known = {tuple(row) for row in clear}
    assert len(found) > 1000
    assert {tuple(row) for row in np.rint(found * 1e4).astype(int)} <= known


@pytest.mark.parametrize("name", ["delta", "starfm", "fitfc", "fsdaf"])
def test_the_spread_is_that_of_predictions_from_either_side_alone(name: str) -> None:
    method: Any = make(name, BANDS, ratio=4)
    if name != "delta":
        method = replace(method, radius=3, **({"centres": CENTRES, "classes": 3} if name == "fsdaf" else {}))
    bracket, coarse = made(4, method.halo, 4, (2, 2), 0.1)
    before = {name: getattr(bracket, f"{name}_before") for name in ("fine", "coarse", "day")}
    after = {name: getattr(bracket, f"{name}_after") for name in ("fine", "coarse", "day")}
    alone = []
    for side in (before, after):
        twice = {f"{of}_{where}": values for of, values in side.items() for where in ("before", "after")}
        alone.append(predicted(method, replace(bracket, **twice), coarse))
    told = with_spread(method)
    found = told.predict(told.prepare(bracket), coarse)
    np.testing.assert_array_equal(found.mean[0], predicted(method, bracket, coarse))
    finite = np.isfinite(found.mean[0])
    assert found.spread is not None
    assert finite.mean() > 0.1
    np.testing.assert_allclose(found.spread[0][finite], np.abs(alone[1] - alone[0])[finite], atol=1e-6)


@pytest.mark.parametrize("name", ["efast", "estarfm"])
def test_a_spread_is_told_where_both_sides_are_seen(name: str) -> None:
    cubes = Scene(height=64, width=64, seed=2, cloud=0.2, gap=0, acquired=(3, 19), days=25)
    landsat, modis = series(cubes.landsat, BANDS), series(cubes.modis, BANDS)
    method: Any = make(name, BANDS) if name == "efast" else replace(make(name, BANDS), radius=4)  # type: ignore[type-var]
    window, days = Window(0, 64, 0, 64), [landsat.days[0] + 5, landsat.days[0] + 16]
    plain = fuse_block(landsat, modis, method, window, days, Options())
    found = fuse_block(landsat, modis, with_spread(method), window, days, Options())
    for variable, values in plain.items():
        np.testing.assert_array_equal(values, found[variable])
    both = (landsat.qa([0, 1], window) == 0).all(0)
    told = found["spread_nir"] != -32768
    np.testing.assert_array_equal(told[0], both)
    assert not told[1].any()  # the observation of that day, or one side
    assert found["spread_nir"][0][both].max() > 100


def test_what_is_missing_or_does_not_fit_is_said() -> None:
    bracket, _ = made(0, ROBOT(BANDS).halo, 16, (1, 1), 0)
    with pytest.raises(InputError, match="archive=True"):
        ROBOT(BANDS).prepare(bracket)
    with pytest.raises(InputError, match="fitted"):
        FSDAF(BANDS).prepare(bracket)
    with pytest.raises(InputError, match="starfm was made for cells of 8 pixels, the data has 16"):
        STARFM(BANDS, 8).prepare(bracket)
    with pytest.raises(InputError, match="not enough for 5 classes"):
        FSDAF(BANDS).fit(np.full((100, 2), 0.2, np.float32))
    for name in ("robot", "linear", "progress"):
        with pytest.raises(InputError, match="does not predict from before and after"):
            with_spread(make(name, BANDS))
    assert set(WINDOWED) < set(METHODS)
