"""Brackets against a literal reference written with plain loops, and their independence of the tiling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfgan_xr import brackets
from stfgan_xr.days import to_number
from stfgan_xr.grid import Halo, Window
from stfgan_xr.sensors import Observation, is_clear, to_reflectance
from tests.synthetic import Scene, day

START = to_number(day(0))


def all_intervals(
    scene: Scene, window: Window, days: list[int], halo: Halo, reach: int = 64
) -> list[brackets.Interval]:
    landsat, modis = brackets.series(scene.landsat), brackets.series(scene.modis)
    numbers = [START + n for n in days]
    return list(brackets.intervals(landsat, modis, window, numbers, halo, scene.ratio, reach))


def test_every_pixel_takes_its_own_nearest_clear_observations() -> None:
    scene = Scene(height=32, width=32, cloud=0.5)
    resampled = np.random.default_rng(1).random(scene.landsat.qa.shape) < 0.5
    scene.landsat.qa.values |= np.where(resampled, Observation.RESAMPLED, 0).astype(np.uint16)
    clear = is_clear(scene.landsat.qa.values)
    red = to_reflectance(scene.landsat.red.values)
    window, days, reach = Window(0, 32, 0, 32), list(range(1, 38)), 12
    found = all_intervals(scene, window, days, Halo(), reach)
    assert [d - START for interval in found for d in interval.days] == days
    for interval in found:
        for target in (d - START for d in interval.days):
            for row, column in ((0, 0), (5, 17), (13, 30), (31, 31), (20, 8)):
                before = [
                    i for i, a in enumerate(scene.acquired) if target - reach <= a <= target and clear[i, row, column]
                ]
                after = [
                    i for i, a in enumerate(scene.acquired) if target < a <= target + reach and clear[i, row, column]
                ]
                assert interval.missing[row, column] == (not before and not after)
                assert interval.extrapolated[row, column] == (bool(before) != bool(after))
                if before or after:
                    one = before[-1] if before else after[0]
                    two = after[0] if after else before[-1]
                    assert interval.bracket.fine_before[0, row, column] == red[one, row, column]
                    assert interval.bracket.fine_after[0, row, column] == red[two, row, column]
                    marks = interval.bracket.resampled_before, interval.bracket.resampled_after
                    assert [m is not None and m[row, column] for m in marks] == [
                        resampled[one, row, column], resampled[two, row, column],
                    ]  # fmt: skip
                    assert interval.day_before[row, column] - START == scene.acquired[one]
                    assert interval.day_after[row, column] - START == scene.acquired[two]


def test_coarse_composite_is_the_mean_over_the_days_of_the_fine_pixels() -> None:
    scene = Scene(height=32, width=32, gap=0, cloud=0.5)
    coarse = to_reflectance(scene.modis.nir.values)
    for interval in all_intervals(scene, Window(0, 32, 0, 32), [15, 23], Halo(coarse=0)):
        for row in range(2):
            for column in range(2):
                used = interval.day_before[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] - START
                known = ~interval.missing[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
                expected = np.mean([coarse[d, row, column] for d in used[known]])
                assert interval.bracket.coarse_before[1, row, column] == pytest.approx(expected, abs=1e-6)


def test_days_that_share_their_observations_share_an_interval() -> None:
    scene = Scene(cloud=0)
    found = all_intervals(scene, Window(0, 96, 0, 64), list(range(0, 39)), Halo())
    lengths = [len(interval.days) for interval in found]
    assert lengths == [3, 8, 1, 7, 8, 8, 4]


def test_fully_clouded_day_does_not_cut_an_interval() -> None:
    scene = Scene(cloud=0)
    scene.landsat.qa.values[3] = 2
    found = all_intervals(scene, Window(0, 96, 0, 64), list(range(12, 27)), Halo())
    assert len(found) == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), fine=st.sampled_from([0, 4, 28]), coarse=st.sampled_from([1, 3]))
def test_a_block_sees_what_the_whole_image_sees(seed: int, fine: int, coarse: int) -> None:
    scene = Scene(height=96, width=96, seed=seed, cloud=0.6, gap=0.4)
    resampled = np.random.default_rng(seed).random(scene.landsat.qa.shape) < 0.5
    scene.landsat.qa.values |= np.where(resampled, Observation.RESAMPLED, 0).astype(np.uint16)
    halo, days = Halo(fine, coarse), [10, 13, 14, 25]
    whole = {d: i for i in all_intervals(scene, Window(0, 96, 0, 96), days, halo) for d in i.days}
    block = Window(32, 64, 48, 80)
    for interval in all_intervals(scene, block, days, halo):
        for target in interval.days:
            reference = whole[target]
            rows = slice(32, 64 + 2 * fine), slice(48, 80 + 2 * fine)
            cells = slice(2, 4 + 2 * coarse), slice(3, 5 + 2 * coarse)
            for name in (
                "fine_before", "fine_after", "day_before", "day_after", "resampled_before", "resampled_after",
            ):  # fmt: skip
                mine, theirs = getattr(interval.bracket, name), getattr(reference.bracket, name)[..., rows[0], rows[1]]
                if name.startswith("day"):  # the day of a pixel without any observation means nothing
                    known = ~interval.missing
                    inner = slice(fine, mine.shape[0] - fine)
                    mine, theirs = mine[inner, inner][known], theirs[inner, inner][known]
                np.testing.assert_array_equal(mine, theirs, err_msg=name)
            for name in ("coarse_before", "coarse_after"):
                expected = getattr(reference.bracket, name)[..., cells[0], cells[1]]
                np.testing.assert_array_equal(getattr(interval.bracket, name), expected, err_msg=name)
            np.testing.assert_array_equal(
                interval.coarse.on(target), reference.coarse.on(target)[..., cells[0], cells[1]]
            )


@given(
    values=st.lists(st.one_of(st.none(), st.floats(0, 1, width=32)), min_size=1, max_size=60), reach=st.integers(1, 20)
)
@settings(max_examples=100, deadline=None)
def test_gaps_in_time_against_plain_loops(values: list[float | None], reach: int) -> None:
    found = brackets.fill_in_time(np.array([np.nan if v is None else v for v in values], "float32"), reach)
    for i, value in enumerate(values):
        before = next((j for j in range(i, max(i - reach, 0) - 1, -1) if values[j] is not None), None)
        after = next((j for j in range(i, min(i + reach, len(values) - 1) + 1) if values[j] is not None), None)
        if value is not None:
            assert found[i] == np.float32(value)
        elif before is not None and after is not None:
            left, right = values[before], values[after]
            assert left is not None
            assert right is not None
            assert found[i] == pytest.approx(left + (right - left) * (i - before) / (after - before), abs=1e-5)
        elif before is None and after is None:
            assert np.isnan(found[i])
        else:
            assert found[i] == np.float32(values[before if before is not None else after])  # type: ignore[index]


@given(seed=st.integers(0, 1000), share=st.floats(0.0, 1.0), radius=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_nearest_valid_cell_by_brute_force(seed: int, share: float, radius: int) -> None:
    valid = np.random.default_rng(seed).random((9, 11)) < share
    rows, columns, found = brackets.nearest_valid(valid, radius)
    places = np.argwhere(valid)
    for row in range(9):
        for column in range(11):
            distances = ((places - (row, column)) ** 2).sum(axis=1)
            near = len(places) and distances.min() <= radius**2
            assert found[row, column] == bool(near)
            if near:
                chosen = (rows[row, column] - row) ** 2 + (columns[row, column] - column) ** 2
                assert valid[rows[row, column], columns[row, column]]
                assert chosen == distances.min()


@given(first=st.integers(-50, 10), length=st.integers(1, 80), size=st.integers(1, 13))
def test_mirror_is_numpys_symmetric(first: int, length: int, size: int) -> None:
    axis = np.arange(size)
    padded = np.pad(axis, (100, 100), mode="symmetric")
    np.testing.assert_array_equal(
        brackets.mirror(first, first + length, size), padded[first + 100 : first + length + 100]
    )


def test_clear_pixel_without_a_value_is_missing_not_filled() -> None:
    scene = Scene(cloud=0, acquired=(3, 19))
    scene.landsat.red.values[0, 5, 7] = -32768  # a clear word over a hole: a contradiction in the data
    (interval,) = all_intervals(scene, Window(0, 96, 0, 64), [10], Halo())
    assert interval.missing[5, 7]
    assert interval.missing.sum() == 1


def test_no_landsat_in_reach_leaves_everything_missing() -> None:
    (interval,) = all_intervals(Scene(acquired=(3,)), Window(0, 96, 0, 64), [30, 31], Halo(), reach=5)
    assert interval.missing.all()
