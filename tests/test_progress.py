"""Progress: its formula written out pixel by pixel, a change that comes at once, and real imagery."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from stfgan_xr.brackets import intervals, series
from stfgan_xr.datasets import read_pairs
from stfgan_xr.errors import InputError
from stfgan_xr.grid import Window
from stfgan_xr.predictors import Bracket, CoarseWindow
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.progress import Progress, halo, points
from stfgan_xr.predictors.simple import Delta, Linear

BANDS = ("red", "nir")
FIRST, LAST, DAY = 18_000, 18_016, 18_006


def random_bracket(rng: np.random.Generator, cells: int, ratio: int) -> tuple[Bracket, CoarseWindow]:
    """Anything at all, of a block of ``cells x cells``: the coarse series has noise, and steps in some cells."""
    side, wide = (cells + 6) * ratio, cells + 6
    images = rng.uniform(0, 0.5, (2, 2, side, side)).astype("float32")
    coarse = rng.uniform(0, 0.5, (2, 2, wide, wide)).astype("float32")
    days = [rng.integers(FIRST, FIRST + 3, (side, side)), rng.integers(LAST - 3, LAST + 1, (side, side))]
    bracket = Bracket(*images, *coarse, *(d.astype("int32") for d in days), ratio, halo(ratio))
    span = tuple(range(DAY - 4, DAY + 5))
    images = rng.uniform(0, 0.5, (2, wide, wide)) + 0.05 * rng.standard_normal((9, 2, wide, wide))
    images[rng.integers(2, 7) :] += 0.4 * (rng.random((wide, wide)) < 0.4)
    return bracket, CoarseWindow((DAY,), images.astype("float32"), span)


def bilinear(field: npt.NDArray[np.float64], row: int, column: int, ratio: int, halo: int = 3) -> float:
    """The value of a field of cells, ``halo`` of them around the block, at a pixel of the block."""
    y, x = ((at + 0.5) / ratio - 0.5 + halo for at in (row, column))
    top, left = math.floor(y), math.floor(x)
    down, across = y - top, x - left
    return float(
        (1 - down) * ((1 - across) * field[top, left] + across * field[top, left + 1])
        + down * ((1 - across) * field[top + 1, left] + across * field[top + 1, left + 1])
    )


def below(distance: float) -> float:
    """Part of a Gaussian of 0.7 cells that lies less far than this."""
    return 0.5 * (1 + math.erf(distance / (0.7 * math.sqrt(2))))


def part_seen(at: tuple[float, float], cell: tuple[int, int], count: int) -> float:
    """How much of a point (in cells) a coarse cell sees: the cell's box behind the Gaussian."""
    (y, x), (row, column) = at, cell
    down = below(row + 1 - y) - below(row - y)
    return down * (below(column + 1 - x) - below(column - x)) / count**2


def around(row: int, column: int) -> list[tuple[int, int]]:
    return [(r, c) for r in range(row - 1, row + 2) for c in range(column - 1, column + 2)]


def within(row: int, column: int, count: int) -> list[tuple[int, int]]:
    return [(row * count + i, column * count + j) for i in range(count) for j in range(count)]


def literal_misfit(
    cell: tuple[int, int], look: npt.NDArray[np.float64], change: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.float64]:
    """Mean square ``(band,)`` of what coarse change has more than cells would see of the fine, around a cell."""
    bands = len(change)
    misfit = np.zeros(bands)
    for band in range(bands):
        for other in around(*cell):
            near = [point for neighbour in around(*other) for point in within(*neighbour, count)]
            parts = [part_seen(((y + 0.5) / count, (x + 0.5) / count), other, count) for y, x in near]
            moved = [look[bands + band][point] - look[band][point] for point in near]
            expected = sum(part * by for part, by in zip(parts, moved, strict=True)) / sum(parts)
            misfit[band] += (change[band][other] - expected) ** 2 / 9
    return misfit


def literal_lead(
    cell: tuple[int, int], look: npt.NDArray[np.float64], change: npt.NDArray[np.float64],
    departure: npt.NDArray[np.float64], misfit: npt.NDArray[np.float64], count: int,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Lead ``(count, count)`` of the points of a cell, from looks of points and changes and departures of cells."""
    bands = len(change)

    def place(point: tuple[int, int]) -> tuple[float, float]:
        return (point[0] + 0.5) / count, (point[1] + 0.5) / count

    def moved(point: tuple[int, int], band: int) -> float:
        return float(look[bands + band][point] - look[band][point])

    noise = 3 * misfit + 0.006**2

    def together(one: tuple[int, int], two: tuple[int, int]) -> float:
        (a, b), (c, d) = place(one), place(two)
        unlike = sum((look[n][one] - look[n][two]) ** 2 for n in range(2 * bands)) / (2 * bands)
        return 0.04 * math.exp(-((a - c) ** 2 + (b - d) ** 2) / 2) + 0.06 * math.exp(-unlike / (2 * 0.03**2))

    known = [point for other in around(*cell) for point in within(*other, count)]
    covariance = np.array([[together(one, two) for two in known] for one in known])
    seen = [(other, band) for other in around(*cell) for band in range(bands)]
    weight = np.array([[part_seen(place(p), other, count) * moved(p, band) for other, band in seen] for p in known])
    spread = weight.T @ covariance @ weight + np.diag([noise[band] for _, band in seen])
    told = np.linalg.solve(spread, np.array([departure[band][other] for other, band in seen]))
    lead = covariance @ weight @ told
    return np.array([lead[known.index(point)] for point in within(*cell, count)]).reshape(count, count)


def literal_rise(
    cell: tuple[int, int], series: npt.NDArray[np.float64], before: npt.NDArray[np.float64],
    calendar: npt.NDArray[np.float64], misfit: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:  # fmt: skip
    """What the level of a cell has gained ``(band,)``, from nine days of coarse images and the calendar's change."""
    weights = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    weights /= weights.sum()
    known = [(band, *other) for other in around(*cell) for band in range(len(before))]
    noise, moved, departure = [], {}, {}
    for place in known:
        days = [float(image[place]) for image in series]
        seconds = [(a - 2 * b + c) ** 2 for a, b, c in zip(days, days[1:], days[2:], strict=False)]
        noise.append(2 * sorted(seconds)[3] / (6 * 0.455))
        moved[place] = sum(weight * value for weight, value in zip(weights, days, strict=True)) - days[4]
        departure[place] = days[4] - before[place] - calendar[place]
    mean = sum(noise) / len(noise)
    left = sum(weight**2 for weight in weights)
    part = min(1, (1 - 2 * weights[4] + left) * mean / (sum(by**2 for by in moved.values()) / len(known)))
    departure = {place: departure[place] + part * moved[place] for place in known}
    power = sum(by**2 for by in departure.values()) / len(known)
    doubt = 3 * mean * (1 - part + part * left) + 0.05 * misfit.mean()
    gain = max(power - doubt, 0) / power
    return np.array([calendar[b, *cell] + gain * departure[b, *cell] for b in range(len(before))])


def literal(bracket: Bracket, coarse: CoarseWindow) -> npt.NDArray[np.float64]:
    """The method as it is described, with plain loops."""
    ratio, wide = bracket.ratio, bracket.coarse_before.shape[-1]
    share = (DAY - bracket.day_before) / np.maximum(bracket.day_after - bracket.day_before, 1)
    share = share.clip(0, 1)
    fine = (bracket.fine_after - bracket.fine_before).astype(float)
    change = (bracket.coarse_after - bracket.coarse_before).astype(float)
    departure = coarse.on(DAY).astype(float) - bracket.coarse_before
    calendar = np.zeros_like(change)
    for row in range(wide):
        for column in range(wide):
            cell = (slice(row * ratio, (row + 1) * ratio), slice(column * ratio, (column + 1) * ratio))
            calendar[:, row, column] = share[cell].mean() * change[:, row, column]
    departure -= calendar
    count = points(ratio)
    step = ratio // count
    images = np.concatenate([bracket.fine_before, bracket.fine_after]).astype(float)
    look = np.array(
        [
            [
                [
                    image[row * step : (row + 1) * step, column * step : (column + 1) * step].mean()
                    for column in range(wide * count)
                ]
                for row in range(wide * count)
            ]
            for image in images
        ]
    )
    lead, rise = np.zeros((wide * count, wide * count)), np.zeros_like(change)
    images, before = coarse.series.astype(float), bracket.coarse_before.astype(float)
    for row in range(2, wide - 2):
        for column in range(2, wide - 2):
            at = (slice(row * count, (row + 1) * count), slice(column * count, (column + 1) * count))
            misfit = literal_misfit((row, column), look, change, count)
            lead[at] = literal_lead((row, column), look, change, departure, misfit, count)
            rise[:, row, column] = literal_rise((row, column), images, before, calendar, misfit)
    side, edge = fine.shape[-1] - 6 * ratio, 3 * ratio
    out = np.zeros((2, side, side))
    for row in range(side):
        for column in range(side):
            at = row + edge, column + edge
            progress = min(max(share[at] + bilinear(lead, row, column, step, 3 * count), 0), 1)
            for band in range(2):
                detail = fine[band][at] - bilinear(change[band], row, column, ratio)
                out[band, row, column] = (
                    bracket.fine_before[band][at] + bilinear(rise[band], row, column, ratio) + progress * detail
                )
    return out


@pytest.mark.parametrize(("seed", "cells", "ratio"), [(0, 1, 16), (1, 3, 7), (2, 5, 1), (3, 2, 6)])
def test_it_is_what_its_description_says(seed: int, cells: int, ratio: int) -> None:
    bracket, coarse = random_bracket(np.random.default_rng(seed), cells, ratio)
    method = Progress(BANDS, ratio)
    found = method.predict(method.prepare(bracket), coarse).mean[0]
    np.testing.assert_allclose(found, literal(bracket, coarse), atol=2e-5)


def test_where_nothing_is_told_it_is_delta() -> None:
    bracket, coarse = random_bracket(np.random.default_rng(5), 3, 16)
    still = replace(coarse, series=np.broadcast_to(bracket.coarse_before, coarse.series.shape).copy())
    same = replace(bracket, coarse_after=bracket.coarse_before)
    method, delta = Progress(BANDS), Delta(BANDS)
    found = method.predict(method.prepare(same), still).mean
    np.testing.assert_allclose(found, delta.predict(delta.prepare(same), still).mean[..., 48:-48, 48:-48], atol=1e-6)


@pytest.mark.parametrize("event", [3, 8, 13])
def test_what_changes_at_once_has_changed_wholly_or_not_at_all(event: int) -> None:
    """A field in each cell is harvested on a day; MODIS sees its share of the cell, with noise."""
    rng = np.random.default_rng(0)
    side, wide = 10 * 16, 10
    before = rng.uniform(0.05, 0.4, (2, side, side)).astype("float32")
    harvested = np.kron(rng.random((40, 40)) < 0.4, np.ones((4, 4), bool))
    after = np.where(harvested, before + np.array([0.1, -0.12])[:, None, None], before).astype("float32")

    def seen(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        mean = image.reshape(2, wide, 16, wide, 16).mean((2, 4))
        return (mean + 0.002 * rng.standard_normal(mean.shape)).astype("float32")

    days = [np.full((side, side), day, "int32") for day in (FIRST, LAST)]
    bracket = Bracket(before, after, seen(before), seen(after), *days, 16, halo(16))
    span = range(FIRST - 4, LAST + 5)
    truth = [after if day >= FIRST + event else before for day in span]
    coarse = CoarseWindow(tuple(range(FIRST + 1, LAST)), np.stack([seen(image) for image in truth]), tuple(span))
    inner = slice(48, -48)
    expected = np.stack([truth[day - span[0]] for day in coarse.days])[..., inner, inner]
    method = Progress(BANDS)
    errors = {"progress": method.predict(method.prepare(bracket), coarse).mean - expected}
    for name, other in (("delta", Delta(BANDS)), ("linear", Linear(BANDS))):
        errors[name] = other.predict(other.prepare(bracket), coarse).mean[..., inner, inner] - expected
    rmse = {name: float(np.sqrt((error**2).mean())) for name, error in errors.items()}
    assert rmse["progress"] < 0.5 * rmse["delta"]
    assert rmse["delta"] < rmse["linear"]


def test_real_imagery_is_predicted_better_than_by_the_better_of_linear_and_delta(shared_data: Path) -> None:
    """All 165 triplets of the Salton Sea within 50 days, each judged by the better of the two in hindsight."""
    pairs = read_pairs(shared_data / "pairs" / "salton_sea_nir" / "pairs.toml")
    fine, coarse = series(pairs.landsat().compute()), series(pairs.modis().compute())
    window = Window(0, 140, 0, 140)
    known = {day: (fine.qa([n], window)[0] == 0) for n, day in enumerate(fine.days)}
    days = [day for day, clear in known.items() if clear.mean() > 0.1]
    methods = {"progress": Progress(("nir",), 7), "linear": Linear(("nir",)), "delta": Delta(("nir",))}
    rmse: dict[str, list[float]] = {name: [] for name in methods}
    for a, before in enumerate(days):
        for after in days[a + 2 :]:
            for target in (day for day in days if before < day < after <= before + 50):
                truth = fine.read([fine.days.index(target)], window)[0]
                for name, method in methods.items():
                    interval = next(
                        intervals(fine.select([before, after]), coarse, window, [target], method.halo, 7, 64)
                    )
                    valid = known[target] & ~interval.missing & ~interval.extrapolated & ~np.isnan(truth).any(0)
                    valid &= ~np.kron(interval.gaps.missing[0], np.ones((7, 7), bool))
                    mean = method.predict(method.prepare(interval.bracket), interval.coarse).mean[0]
                    cut = (mean.shape[-1] - 140) // 2
                    mean = mean[..., cut : cut + 140, cut : cut + 140]
                    rmse[name].append(float(np.sqrt(((mean - truth)[:, valid] ** 2).mean())))
    found = {name: np.array(values) for name, values in rmse.items()}
    bar = np.minimum(found["linear"], found["delta"])
    assert len(bar) == 165
    assert bar.mean() == pytest.approx(0.0290, abs=1e-4)
    assert found["progress"].mean() <= bar.mean()
    assert np.quantile(found["progress"] / bar, 0.9) <= 1.02
    assert (found["progress"] / bar).max() <= 1.08


def test_other_ratios_and_weights_are_refused() -> None:
    bracket, _ = random_bracket(np.random.default_rng(0), 2, 8)
    with pytest.raises(InputError, match="cells of 16 pixels, the data has 8"):
        make("progress", BANDS).prepare(bracket)
    with pytest.raises(InputError, match="no weights"):
        make("progress", BANDS, "model.safetensors")
    assert make("progress", BANDS, ratio=8).halo == halo(8)
