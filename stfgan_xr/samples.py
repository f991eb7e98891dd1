"""Training samples: acquisitions with known targets, their brackets as in production, and patches cut from them.

A target day's own acquisition and everything acquired strictly inside its bracket are left out, so a sample shows what
a prediction would have seen. Of a simulated world targets are the truth, of any day: acquisitions hold the noise and
the blur that a network should remove, and it would learn to predict them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from stfgan_xr.brackets import DatasetSeries, Interval, intervals
from stfgan_xr.days import from_number
from stfgan_xr.errors import InputError, NothingToDo
from stfgan_xr.grid import Halo, Window, tile_step
from stfgan_xr.landscape import Truth
from stfgan_xr.predictors import Bracket, CoarseWindow, cropped, progress
from stfgan_xr.predictors.pairs import ABSENT, placed
from stfgan_xr.predictors.simple import to_tensors
from stfgan_xr.sensors import from_reflectance, is_clear, to_reflectance

LEAST_CLEAR = 0.2
"""Part of a sample's target that must be usable."""
LENGTHS = (9, 17, 33, 65)
"""Days from which on a bracket counts as longer than those before."""
READERS = 4
"""Threads that read samples."""
DAYS_BETWEEN = 4
"""Targets of known truth between two acquisitions."""


@dataclass(frozen=True)
class Place:
    """A region's two series and the acquisitions that training must not see.

    Attributes
    ----------
    landsat, modis
        Fine and coarse series on nested grids.
    withheld
        Days kept for the final comparison.
    truth
        Of a simulated world: reflectance ``(band, y, x)`` of a day, bands and window.
    """

    landsat: DatasetSeries
    modis: DatasetSeries
    withheld: frozenset[int] = frozenset()
    truth: Truth | None = None

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
        ``(4, b, CY, CX)`` reflectance before, on and after the target day, and its level.
    lead, rise
        ``(1, points CY, points CX)`` and ``(b, CY, CX)`` of the target day; both as in
        :class:`stfgan_xr.predictors.pairs.Targets`.
    days
        ``(2, Y, X)`` int16 days of the fine images less the target day.
    resampled
        ``(2, Y, X)`` where the fine images were interpolated from another grid.
    target
        ``(b, y, x)`` int16 counts of the region without margin.
    clear
        ``(b, y, x)`` where the target counts.
    """

    fine: npt.NDArray[np.int16]
    coarse: npt.NDArray[np.float32]
    lead: npt.NDArray[np.float32]
    rise: npt.NDArray[np.float32]
    days: npt.NDArray[np.int16]
    resampled: npt.NDArray[np.bool_]
    target: npt.NDArray[np.int16]
    clear: npt.NDArray[np.bool_]


def withhold(days: Sequence[int], every: int = 5) -> frozenset[int]:
    """Every fifth acquisition, never the first or last, for the final comparison.

    >>> sorted(withhold(range(100, 112)))
    [103, 108]
    """
    return frozenset(day for number, day in enumerate(sorted(days)[1:-1]) if number % every == every // 2)


def triplets(places: Sequence[Place], span: tuple[int, int] = (2, 96)) -> tuple[Triplet, ...]:
    """All acquisitions as targets of all brackets around them; of a place of known truth, other days as well.

    Parameters
    ----------
    span
        Least and greatest number of days from ``before`` to ``after``.
    """
    found = []
    for number, place in enumerate(places):
        for before, after in combinations(place.days, 2):
            if span[0] <= after - before <= span[1]:
                days = _between(place, before, after) if place.truth is not None else place.days
                found += [Triplet(number, before, day, after) for day in days if before < day < after]
    return tuple(found)


def _between(place: Place, before: int, after: int) -> Iterator[int]:
    count = min(DAYS_BETWEEN, after - before - 1)
    for number in range(count):
        day = before + round((number + 1) * (after - before) / (count + 1))
        if day not in place.withheld:
            yield day


def interval_of(place: Place, triplet: Triplet, window: Window, halo: Halo, bracket_days: int = 64) -> Interval:
    """What a predictor would see of a triplet."""
    seen = [day for day in place.days if day <= triplet.before or day >= triplet.after]
    known = place.landsat.select(seen)
    return next(intervals(known, place.modis, window, [triplet.target], halo, place.ratio, bracket_days))


@dataclass(frozen=True)
class Unrest:
    """Change that nothing foretells: the ground's brightness wanders from the observation before to the one after.

    Between them it goes the way of a random walk, of which the middle of both is the best guess that there is, and no
    weight of either image better than its share of time. Simulated ground that is at rest would teach otherwise.

    Attributes
    ----------
    deviation
        Of the brightness, as a part of itself, over the whole bracket.
    scale
        Pixels (deviation of a Gaussian) that patterns are as large as; None: ground that looks alike wanders alike.
    colour
        ``(band,)`` by how much more or less each band does.
    """

    deviation: float
    scale: float | None
    colour: npt.NDArray[np.float32]

    @classmethod
    def drawn(cls, count: int, draw: np.random.Generator) -> Unrest:
        """One at random, of ``count`` bands."""
        scale = float(np.exp(draw.uniform(np.log(0.3), np.log(20)))) if draw.random() < 0.6 else None
        return cls(float(draw.uniform(0.01, 0.12)), scale, draw.normal(1, 0.4, count).astype(np.float32))

    def steps(self, image: npt.NDArray[np.float32], share: float, draw: np.random.Generator) -> list[Any]:
        """Change ``(y, x)`` from the day in question to the observation before, and to the one after.

        ``image`` ``(b, y, x)`` is what the ground looks like, ``share`` the part of the time that has passed.
        """
        parts = (share, 1 - share)
        return [np.float32(self.deviation * np.sqrt(part)) * self._pattern(image, draw) for part in parts]

    def _pattern(self, image: npt.NDArray[np.float32], draw: np.random.Generator) -> npt.NDArray[np.float32]:
        if self.scale is None:
            looks = np.tensordot(draw.standard_normal(len(image)).astype(np.float32), image, 1)
            knots = np.quantile(looks[::4, ::4], np.linspace(0, 1, 12))
            return np.interp(looks, knots, draw.standard_normal(12)).astype(np.float32)
        field = ndimage.gaussian_filter(draw.standard_normal(image.shape[1:], np.float32), self.scale, mode="wrap")
        return np.asarray(field / max(float(field.std()), 1e-6), np.float32)


@dataclass(frozen=True)
class Distortion:
    """What a sample is made harder or more varied by, so that weights hold on other land and other sensors.

    Attributes
    ----------
    bands
        Places of the bands that the sample has; the others are absent.
    shift
        Coarse cells down and to the right that the coarse series lies off.
    gain, offset
        ``(band,)`` of the coarse sensor against the fine one.
    contrast
        Factor of all reflectance.
    blur
        Pixels (deviation of a Gaussian) that the land itself is smoothed by, target included: not all land has the
        detail of the simulated one, and what is smooth in truth must stay so.
    noise
        Deviation of what is added to smoothed observations, which have lost their own. Mostly next to none: what is
        smooth and free of noise must not be taken for blurred and sharpened.
    haze
        Deviation of what each coarse image is off by, from day to day, in patches of a few cells.
    unrest
        See :class:`Unrest`.
    seed
        Of what is random in noise, haze and unrest.
    """

    bands: tuple[int, ...]
    shift: tuple[float, float] = (0.0, 0.0)
    gain: npt.NDArray[np.float32] | None = None
    offset: npt.NDArray[np.float32] | None = None
    contrast: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    haze: float = 0.0
    unrest: Unrest | None = None
    seed: int = 0

    @classmethod
    def drawn(cls, count: int, draw: np.random.Generator, distorted: bool, subsets: bool) -> Distortion:
        """One at random; with ``subsets`` of only some of ``count`` bands at times."""
        few = count
        if subsets and count > 1 and draw.random() < 0.35:
            few = 1 if draw.random() < 0.5 else int(draw.integers(1, count))
        bands = tuple(sorted(int(band) for band in draw.permutation(count)[:few]))
        if not distorted:
            return cls(bands)
        moved, changed, scaled, smooth, hazy, restless = draw.random(6) < (0.4, 0.4, 0.5, 0.75, 0.5, 0.5)
        shift = draw.uniform(-0.5, 0.5, 2) * moved
        gain = (1 + 0.03 * changed * draw.standard_normal(few)).astype(np.float32)
        offset = (0.005 * changed * draw.standard_normal(few)).astype(np.float32)
        contrast = float(draw.uniform(0.6, 1.3)) if scaled else 1.0
        blur, noise = float(draw.uniform(0.3, 2)) * smooth, float(10 ** draw.uniform(-4, -2.4)) * smooth
        haze, unrest = float(draw.uniform(0.002, 0.015)) * hazy, Unrest.drawn(few, draw)
        seed = int(draw.integers(1 << 31))
        return cls(
            bands, (float(shift[0]), float(shift[1])), gain, offset, contrast, blur, noise, haze,
            unrest if restless else None, seed,
        )  # fmt: skip

    def seen(
        self, interval: Interval, target: npt.NDArray[np.float32], share: float
    ) -> tuple[Bracket, CoarseWindow, npt.NDArray[np.float32]]:
        """Bracket, coarse window and target of an interval as distorted.

        ``share`` is the part of the time between the observations that has passed on the target day.
        """
        draw, bracket = np.random.default_rng(self.seed), interval.bracket
        before, target, after = (self._fine(image) for image in (bracket.fine_before, target, bracket.fine_after))
        coarse = [
            self._coarse(image) for image in (bracket.coarse_before, interval.coarse.series, bracket.coarse_after)
        ]
        if self.unrest is not None:
            # The day in question stays as it is and the observations wander away from it: so its target needs no field
            # of the halo, and the coarse days around it stay too.
            steps = self.unrest.steps(before, share, draw)
            before, after = (
                image * (1 + self.unrest.colour[:, None, None] * step)
                for image, step in zip((before, after), steps, strict=True)
            )
            means = [self._cells(step, bracket.ratio) for step in steps]
            coarse[0], coarse[2] = (
                image * (1 + self.unrest.colour[:, None, None] * mean)
                for image, mean in zip((coarse[0], coarse[2]), means, strict=True)
            )
        if self.noise:
            before, after = (
                image + np.float32(self.noise) * draw.standard_normal(image.shape, np.float32)
                for image in (before, after)
            )
        if self.haze:
            coarse = [image + np.float32(self.haze) * _haze(image.shape, draw) for image in coarse]
        bracket = replace(
            bracket, fine_before=before, fine_after=after, coarse_before=coarse[0], coarse_after=coarse[2]
        )
        return bracket, replace(interval.coarse, series=coarse[1]), target

    def _coarse(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Coarse images ``(..., b, cy, cx)`` with all bands, as the sensor is."""
        found = image[..., self.bands, :, :] * np.float32(self.contrast)
        if any(self.shift):
            found = ndimage.shift(found, (0,) * (found.ndim - 2) + self.shift, order=1, mode="nearest")
        if self.gain is not None and self.offset is not None:
            found = found * self.gain[:, None, None] + self.offset[:, None, None]
        return found.astype(np.float32)

    def _fine(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A fine image ``(b, y, x)`` with all bands, as the land is."""
        found = image[list(self.bands)] * np.float32(self.contrast)
        return ndimage.gaussian_filter(found, (0, self.blur, self.blur)) if self.blur else found

    def _cells(self, image: npt.NDArray[np.float32], ratio: int) -> npt.NDArray[np.float32]:
        """Means over cells, shifted as the coarse series is."""
        rows, columns = image.shape
        means = image.reshape(rows // ratio, ratio, columns // ratio, ratio).mean((1, 3))
        return np.asarray(ndimage.shift(means, self.shift, order=1, mode="nearest") if any(self.shift) else means)


def _haze(shape: tuple[int, ...], draw: np.random.Generator) -> npt.NDArray[np.float32]:
    """Of deviation 1 and ``shape`` ``(..., b, cy, cx)``: in patches of a few cells, mostly the same in all bands."""
    *days, _, rows, columns = shape
    field = draw.standard_normal((*days, 1, rows, columns)) + 0.5 * draw.standard_normal(shape)
    smooth = ndimage.gaussian_filter(field, (0,) * (field.ndim - 2) + (1.0, 1.0), mode="wrap")
    return np.asarray(smooth / max(float(smooth.std()), 1e-6), np.float32)


def target_of(place: Place, day: int, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The image of a day ``(b, y, x)``, the truth if it is known, and where it can be trusted ``(y, x)``."""
    if place.truth is not None:
        image = np.asarray(place.truth(from_number(day), place.landsat.bands, window), np.float32)
        return image, np.ones(image.shape[1:], bool)
    return observation_of(place, day, window)


def observation_of(place: Place, day: int, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The acquisition of a day ``(b, y, x)`` and where it is clear ``(y, x)``."""
    index = [place.landsat.days.index(day)]
    image = place.landsat.read(index, window)[0]
    return np.nan_to_num(image), is_clear(place.landsat.qa(index, window)[0]) & ~np.isnan(image).any(axis=0)


def read(
    place: Place,
    triplet: Triplet,
    window: Window,
    halo: Halo,
    distortion: Distortion | None = None,
    bands: Sequence[str] | None = None,
) -> Sample | None:
    """The sample of a triplet over a window, or None where too little of it is clear.

    ``bands`` are the networks', if they have more than the place; its own lie at their places among them.
    """
    target, clear = target_of(place, triplet.target, window)
    if clear.mean() < LEAST_CLEAR:
        return None
    cells = max(-(-halo.fine // place.ratio) + 1, halo.coarse) + 2 * progress.AROUND
    interval = interval_of(place, triplet, window, Halo(cells * place.ratio, cells, progress.REACH))
    coarse_missing = np.kron(interval.gaps.missing[0], np.ones((place.ratio, place.ratio), bool))
    clear &= ~(interval.missing | interval.extrapolated | coarse_missing)
    if clear.mean() < LEAST_CLEAR:
        return None
    names, own = place.landsat.bands if bands is None else bands, place.landsat.bands
    distortion = distortion or Distortion(tuple(range(len(own))))
    count, among = len(names), [names.index(own[number]) for number in distortion.bands]
    share = (triplet.target - triplet.before) / (triplet.after - triplet.before)
    bracket, series, target = distortion.seen(interval, target, share)
    pace = progress.Pace.of(to_tensors(bracket, torch.device("cpu")), cells - 2 * progress.AROUND)
    rise, lead = (found.numpy() for found in pace.on(series, triplet.target))
    level = progress.smoothed(series, triplet.target)
    coarse = np.stack([bracket.coarse_before, series.on(triplet.target), bracket.coarse_after, level])
    inner, cut = bracket.within(halo), cells - halo.coarse
    days = np.stack([inner.day_before, inner.day_after]) - triplet.target
    marks = (inner.resampled_before, inner.resampled_after)
    known = np.zeros((count, *clear.shape), bool)
    known[among] = clear

    def whole(image: npt.NDArray[np.float32], absent: float = ABSENT) -> npt.NDArray[np.float32]:
        return placed(torch.from_numpy(image), among, count, absent).numpy()

    return Sample(
        fine=from_reflectance(np.concatenate([whole(inner.fine_before), whole(inner.fine_after)])),
        coarse=whole(cropped(coarse, cut)),
        lead=cropped(lead[None], cut * progress.points(place.ratio)),
        rise=whole(cropped(rise, cut), 0),
        days=days.astype(np.int16),
        resampled=np.stack([np.zeros(days.shape[1:], bool) if m is None else m for m in marks]),
        target=from_reflectance(whole(target)),
        clear=known,
    )


def windows(shape: tuple[int, int], size: int, ratio: int, draw: np.random.Generator) -> Window:
    """A random window of at most ``size`` pixels a side, on the grid that blocks start on."""
    step = tile_step(ratio)
    sides = [min(size, side // step * step) for side in shape]
    if min(sides) < step:
        raise InputError(f"a grid of {shape[1]} x {shape[0]} pixels is smaller than a training patch of {step} pixels")
    top, left = (int(draw.integers(0, (side - s) // step + 1)) * step for side, s in zip(shape, sides, strict=True))
    return Window(top, top + sides[0], left, left + sides[1])


def collect(
    places: Sequence[Place],
    count: int,
    region: int,
    halo: Halo,
    seed: int,
    span: tuple[int, int] = (2, 96),
    distorted: bool = False,
    subsets: bool = False,
    bands: Sequence[str] | None = None,
) -> Iterator[Sample]:
    """``count`` samples of random triplets and regions, the same for the same seed.

    See :class:`Distortion` for what ``distorted`` and ``subsets`` make of them.

    ``bands`` as in :func:`read`.

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
    found, given = 0, _drawn(places, choices, region, seed, distorted, subsets)
    for tried, sample in enumerate(_ordered(partial(_read_drawn, places, halo, bands), given), 1):
        if sample is not None:
            found += 1
            yield sample
        if found == count:
            return
        if tried >= 20 * (found + 5):
            raise NothingToDo(
                f"only {found} of {tried} training samples were clear enough; give cubes with fewer clouds"
            )


Drawn = tuple[Triplet, Window, Distortion]


def _drawn(
    places: Sequence[Place], choices: Sequence[Triplet], region: int, seed: int, distorted: bool, subsets: bool
) -> Iterator[Drawn]:
    """Without end; short and long brackets are as likely as one another."""
    draw = np.random.default_rng(seed)
    lengths = np.digitize([triplet.after - triplet.before for triplet in choices], LENGTHS)
    classes = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    while True:
        alike = classes[int(draw.integers(len(classes)))]
        triplet = choices[int(alike[draw.integers(len(alike))])]
        place = places[triplet.place]
        window = windows(place.landsat.shape, region, place.ratio, draw)
        yield triplet, window, Distortion.drawn(len(place.landsat.bands), draw, distorted, subsets)


def _read_drawn(places: Sequence[Place], halo: Halo, bands: Sequence[str] | None, drawn: Drawn) -> Sample | None:
    triplet, window, distortion = drawn
    return read(places[triplet.place], triplet, window, halo, distortion, bands)


def _ordered(work: Callable[[Drawn], Sample | None], given: Iterator[Drawn]) -> Iterator[Sample | None]:
    """What ``work`` makes of each thing given, in that order, some of it ahead in threads: reading mostly waits."""
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[Future[Sample | None]] = deque()
        try:
            while True:
                while len(ahead) < 2 * READERS:
                    ahead.append(pool.submit(work, next(given)))
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def cut(sample: Sample, patch: int, ratio: int, draw: np.random.Generator) -> Sample:
    """A random patch of a sample, of ``patch`` pixels without margin, clear enough if ten tries find one."""
    step = tile_step(ratio)
    rows, columns = sample.clear.shape[1:]
    for _ in range(10):
        top, left = (int(draw.integers(0, (side - patch) // step + 1)) * step for side in (rows, columns))
        if sample.clear[:, top : top + patch, left : left + patch].any(axis=0).mean() >= LEAST_CLEAR:
            break
    return _cut(sample, Window(top, top + patch, left, left + patch), ratio)


def _cut(sample: Sample, window: Window, ratio: int) -> Sample:
    margin = sample.fine.shape[-1] - sample.clear.shape[-1]
    cells = sample.coarse.shape[-1] - sample.clear.shape[-1] // ratio
    whole, points = window.cells(ratio), progress.points(ratio)
    at_points = window.cells(ratio // points)

    def part(array: npt.NDArray[Any], place: Window, more: int) -> npt.NDArray[Any]:
        return array[..., place.top : place.bottom + more, place.left : place.right + more]

    return Sample(
        fine=part(sample.fine, window, margin),
        coarse=part(sample.coarse, whole, cells),
        lead=part(sample.lead, at_points, cells * points),
        rise=part(sample.rise, whole, cells),
        days=part(sample.days, window, margin),
        resampled=part(sample.resampled, window, margin),
        target=part(sample.target, window, 0),
        clear=part(sample.clear, window, 0),
    )


def stack(samples: Sequence[Sample]) -> dict[str, npt.NDArray[Any]]:
    """A batch of patches of one size: reflectance as float32, one array for each field."""
    fields = {field.name: np.stack([getattr(s, field.name) for s in samples]) for field in dataclass_fields(Sample)}
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
