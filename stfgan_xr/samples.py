"""Training samples: acquisitions with known targets, their brackets as in production, and patches cut from them.

A target day's own acquisition and everything acquired strictly inside its bracket are left out, so a sample shows what
a prediction would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stfgan_xr.brackets import DatasetSeries, Interval, intervals
from stfgan_xr.errors import InputError, NothingToDo
from stfgan_xr.grid import Halo, Window, tile_step
from stfgan_xr.sensors import from_reflectance, is_clear, to_reflectance

LEAST_CLEAR = 0.2
"""Part of a sample's target that must be usable."""


@dataclass(frozen=True)
class Place:
    """A region's two series and the acquisitions that training must not see.

    Attributes
    ----------
    landsat, modis
        Fine and coarse series on nested grids.
    withheld
        Days kept for the final comparison.
    """

    landsat: DatasetSeries
    modis: DatasetSeries
    withheld: frozenset[int] = frozenset()

    @property
    def ratio(self) -> int:
        """Fine pixels along a coarse cell."""
        return self.landsat.shape[0] // self.modis.shape[0]

    @property
    def days(self) -> tuple[int, ...]:
        """Acquisitions that training may use."""
        return tuple(day for day in self.landsat.days if day not in self.withheld)


@dataclass(frozen=True)
class Triplet:
    """Target day ``target`` predicted from acquisitions up to ``before`` and from ``after`` on."""

    place: int
    before: int
    target: int
    after: int


@dataclass(frozen=True)
class Sample:
    """A region on one target day, compact; ``margin`` fine pixels and ``cells`` coarse cells on every side.

    Attributes
    ----------
    fine
        ``(2b, Y, X)`` int16 counts before and after.
    coarse
        ``(3, b, CY, CX)`` reflectance before, on and after the target day.
    days
        ``(2, Y, X)`` int16 days of the fine images less the target day.
    target
        ``(b, y, x)`` int16 counts of the region without margin.
    clear
        ``(y, x)`` where the target counts.
    """

    fine: npt.NDArray[np.int16]
    coarse: npt.NDArray[np.float32]
    days: npt.NDArray[np.int16]
    target: npt.NDArray[np.int16]
    clear: npt.NDArray[np.bool_]


def withhold(days: Sequence[int], every: int = 5) -> frozenset[int]:
    """Every fifth acquisition, never the first or last, for the final comparison.

    >>> sorted(withhold(range(100, 112)))
    [103, 108]
    """
    return frozenset(day for number, day in enumerate(sorted(days)[1:-1]) if number % every == every // 2)


def triplets(places: Sequence[Place], span: tuple[int, int] = (2, 96), widest: int = 2) -> tuple[Triplet, ...]:
    """All targets with their nearest acquisitions, and with the next ones instead.

    Parameters
    ----------
    span
        Least and greatest number of days from ``before`` to ``after``.
    widest
        How many acquisitions away ``before`` and ``after`` may lie from the target.
    """
    found = []
    for number, place in enumerate(places):
        days = place.days
        for at in range(1, len(days) - 1):
            for left in range(1, widest + 1):
                for right in range(1, widest + 1):
                    if (
                        at >= left
                        and at + right < len(days)
                        and span[0] <= days[at + right] - days[at - left] <= span[1]
                    ):
                        found.append(Triplet(number, days[at - left], days[at], days[at + right]))
    return tuple(found)


def interval_of(place: Place, triplet: Triplet, window: Window, halo: Halo, bracket_days: int = 64) -> Interval:
    """What a predictor would see of a triplet."""
    seen = [day for day in place.days if day <= triplet.before or day >= triplet.after]
    known = place.landsat.select(seen)
    return next(intervals(known, place.modis, window, [triplet.target], halo, place.ratio, bracket_days))


def read(place: Place, triplet: Triplet, window: Window, halo: Halo, bracket_days: int = 64) -> Sample | None:
    """The sample of a triplet over a window, or None where too little of it is clear."""
    index = [place.landsat.days.index(triplet.target)]
    clear = is_clear(place.landsat.qa(index, window)[0])
    if clear.mean() < LEAST_CLEAR:
        return None
    interval = interval_of(place, triplet, window, halo, bracket_days)
    target = place.landsat.read(index, window)[0]
    coarse_missing = np.kron(interval.gaps.missing[0], np.ones((place.ratio, place.ratio), bool))
    clear &= ~(interval.missing | interval.extrapolated | coarse_missing | np.isnan(target).any(axis=0))
    if clear.mean() < LEAST_CLEAR:
        return None
    bracket = interval.bracket
    coarse = np.stack([bracket.coarse_before, interval.coarse.on(triplet.target), bracket.coarse_after])
    days = np.stack([bracket.day_before, bracket.day_after]) - triplet.target
    fine = from_reflectance(np.concatenate([bracket.fine_before, bracket.fine_after]))
    return Sample(fine, coarse, days.astype(np.int16), from_reflectance(np.nan_to_num(target)), clear)


def windows(shape: tuple[int, int], size: int, ratio: int, draw: np.random.Generator) -> Window:
    """A random window of at most ``size`` pixels a side, on the grid that blocks start on."""
    step = tile_step(ratio)
    sides = [min(size, side // step * step) for side in shape]
    if min(sides) < step:
        raise InputError(f"a grid of {shape[1]} x {shape[0]} pixels is smaller than a training patch of {step} pixels")
    top, left = (int(draw.integers(0, (side - s) // step + 1)) * step for side, s in zip(shape, sides, strict=True))
    return Window(top, top + sides[0], left, left + sides[1])


def collect(
    places: Sequence[Place], count: int, region: int, halo: Halo, seed: int, span: tuple[int, int] = (2, 96)
) -> Iterator[Sample]:
    """``count`` samples of random triplets and regions, the same for the same seed.

    Raises
    ------
    NothingToDo
        If there is no triplet, or none is clear enough.
    """
    choices = triplets(places, span)
    if not choices:
        raise NothingToDo(
            f"no three acquisitions within {span[1]} days of each other to train on; give longer cubes or a wider span"
        )
    draw = np.random.default_rng(seed)
    found, tried = 0, 0
    while found < count:
        if tried >= 20 * (found + 5):
            raise NothingToDo(
                f"only {found} of {tried} training samples were clear enough; give cubes with fewer clouds"
            )
        tried += 1
        triplet = choices[int(draw.integers(len(choices)))]
        place = places[triplet.place]
        sample = read(place, triplet, windows(place.landsat.shape, region, place.ratio, draw), halo)
        if sample is not None:
            found += 1
            yield sample


def cut(sample: Sample, patch: int, ratio: int, draw: np.random.Generator) -> Sample:
    """A random patch of a sample, of ``patch`` pixels without margin, clear enough if ten tries find one."""
    step = tile_step(ratio)
    rows, columns = sample.clear.shape
    for _ in range(10):
        top, left = (int(draw.integers(0, (side - patch) // step + 1)) * step for side in (rows, columns))
        if sample.clear[top : top + patch, left : left + patch].mean() >= LEAST_CLEAR:
            break
    return _cut(sample, Window(top, top + patch, left, left + patch), ratio)


def _cut(sample: Sample, window: Window, ratio: int) -> Sample:
    margin = sample.fine.shape[-1] - sample.clear.shape[-1]
    cells = sample.coarse.shape[-1] - sample.clear.shape[-1] // ratio
    whole = window.cells(ratio)

    def part(array: npt.NDArray[Any], place: Window, more: int) -> npt.NDArray[Any]:
        return array[..., place.top : place.bottom + more, place.left : place.right + more]

    return Sample(
        fine=part(sample.fine, window, margin),
        coarse=part(sample.coarse, whole, cells),
        days=part(sample.days, window, margin),
        target=part(sample.target, window, 0),
        clear=part(sample.clear, window, 0),
    )


def stack(samples: Sequence[Sample]) -> dict[str, npt.NDArray[Any]]:
    """A batch of patches of one size: reflectance as float32, one array for each field."""
    fields = {
        name: np.stack([getattr(s, name) for s in samples]) for name in ("fine", "coarse", "days", "target", "clear")
    }
    return fields | {name: to_reflectance(fields[name]) for name in ("fine", "target")}


def turn(batch: dict[str, npt.NDArray[Any]], draw: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """Every image of a batch turned by quarters and flipped, the same way in all fields."""
    turns, flips = draw.integers(0, 4, len(batch["clear"])), draw.integers(0, 2, len(batch["clear"]))

    def one(image: npt.NDArray[Any], quarters: int, flip: int) -> npt.NDArray[Any]:
        turned = np.rot90(image, quarters, axes=(-2, -1))
        return turned[..., ::-1] if flip else turned

    return {
        name: np.stack([one(image, q, f) for image, q, f in zip(images, turns, flips, strict=True)])
        for name, images in batch.items()
    }
