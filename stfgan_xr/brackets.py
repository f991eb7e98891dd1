"""What a block sees: the clear observations before and after each day, pixel by pixel, and the coarse series around it.

Pairs are not chosen by hand nor per tile: every pixel takes its own latest clear observation before and earliest after
a day. Coarse composites are built from the same days, so that coarse and fine describe the same moment. Nothing here
depends on how an area is cut into blocks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy import ndimage

from stfgan_xr.days import to_numbers
from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo, Window
from stfgan_xr.predictors import Archive, Bracket, CoarseWindow
from stfgan_xr.sensors import BANDS, Observation, is_clear, to_reflectance

FILL_DAYS = 16
"""A coarse gap is interpolated between valid days at most this far away."""
FILL_CELLS = 8
"""What remains takes the nearest valid cell at most this far away."""
NONE = -1

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int16]


class Series(Protocol):
    """A time series of images that blocks read windows of."""

    @property
    def days(self) -> tuple[int, ...]:
        """Days since 1970-01-01, ascending."""
        ...

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole grid."""
        ...

    def read(self, indices: Sequence[int], window: Window) -> Float:
        """Reflectance ``(time, band, y, x)`` with NaN, for a window inside the grid."""
        ...

    def qa(self, indices: Sequence[int], window: Window) -> npt.NDArray[np.uint16]:
        """Observation bits ``(time, y, x)``."""
        ...


@dataclass(frozen=True)
class DatasetSeries:
    """A :class:`Series` over a counts or reflectance Dataset, or over a part of one that starts at ``corner``."""

    dataset: xr.Dataset
    bands: tuple[str, ...]
    whole: tuple[int, int]
    corner: tuple[int, int] = (0, 0)

    @cached_property
    def days(self) -> tuple[int, ...]:
        """Days since 1970-01-01."""
        return tuple(int(day) for day in to_numbers(self.dataset["time"].values))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole grid."""
        return self.whole

    def _cut(self, name: str, indices: Sequence[int], window: Window) -> npt.NDArray[Any]:
        top, left = self.corner
        rows = slice(window.top - top, window.bottom - top)
        columns = slice(window.left - left, window.right - left)
        picked = self.dataset[name].isel(time=_as_slice(indices), y=rows, x=columns)
        return np.asarray(picked.values)

    def read(self, indices: Sequence[int], window: Window) -> Float:
        """Reflectance ``(time, band, y, x)`` with NaN."""
        parts = [self._cut(band, indices, window) for band in self.bands]
        return np.stack([to_reflectance(p) if p.dtype == np.int16 else p.astype(np.float32) for p in parts], axis=1)

    def qa(self, indices: Sequence[int], window: Window) -> npt.NDArray[np.uint16]:
        """Observation bits ``(time, y, x)``; without a ``qa`` variable, FILL where a band has no value."""
        if "qa" in self.dataset:
            return self._cut("qa", indices, window).astype(np.uint16)
        return _any_nan(self.read(indices, window), 1).astype(np.uint16) * np.uint16(Observation.FILL)

    def select(self, days: Sequence[int]) -> Self:
        """The series of some of its days only."""
        wanted = set(days)
        return replace(self, dataset=self.dataset.isel(time=[i for i, day in enumerate(self.days) if day in wanted]))

    def crop(self, window: Window, first: int, last: int) -> Self:
        """The part that a block needs: a window, and the days from ``first`` to ``last``."""
        inside = window.clip(self.whole)
        rows, columns = inside.slices
        times = slice(bisect_left(self.days, first), bisect_right(self.days, last))
        part = self.dataset.isel(time=times, y=rows, x=columns)
        return replace(self, dataset=part, corner=(inside.top, inside.left))


def series(dataset: xr.Dataset, bands: Sequence[str] | None = None) -> DatasetSeries:
    """A series over a Dataset of counts or reflectance with dims ``(time, y, x)``.

    Parameters
    ----------
    dataset
        What :func:`stfgan_xr.store.open_cube` or :func:`stfgan_xr.load.load` give.
    bands
        Names of the bands to read; by default those present, in the order of :data:`stfgan_xr.sensors.BANDS`.
    """
    names = tuple(bands) if bands is not None else band_names(dataset)
    absent = [name for name in names if name not in dataset]
    if absent:
        raise InputError(f"there is no band {', '.join(absent)}; there are {', '.join(band_names(dataset))}")
    # Without what says where pixels lie: a block knows its window, and all of this travels with it.
    part = dataset[[*names, *(["qa"] if "qa" in dataset else [])]].reset_coords(drop=True)
    if not part.indexes["time"].is_monotonic_increasing:
        part = part.sortby("time")  # which copies what is in memory
    return DatasetSeries(part, names, (dataset.sizes["y"], dataset.sizes["x"]))


SPECTRA, PLACES, PLACE = 20_000, 64, 32
"""Of a sample of spectra: pixels at most, windows they are taken from, and pixels along one."""


def spectra(landsat: Series) -> Float:
    """A sample ``(pixel, band)`` of the clear observations of a fine series, from places and days of a fixed seed."""
    draw = np.random.default_rng(0)
    rows, columns = (min(PLACE, side) for side in landsat.shape)
    found = [np.empty((0, len(landsat.bands)), np.float32)]
    for _ in range(PLACES if landsat.days else 0):
        index = [int(draw.integers(len(landsat.days)))]
        top, left = (
            int(draw.integers(side - part + 1)) for side, part in zip(landsat.shape, (rows, columns), strict=True)
        )
        window = Window(top, top + rows, left, left + columns)
        clear = is_clear(landsat.qa(index, window)[0])
        if clear.any():
            values = landsat.read(index, window)[0][:, clear].T
            found.append(values[~_any_nan(values, 1)])
    whole = np.concatenate(found)
    return whole[np.sort(draw.permutation(len(whole))[:SPECTRA])]


def band_names(dataset: xr.Dataset) -> tuple[str, ...]:
    """Bands of a Dataset: the known ones in their order, then others as they come."""
    images = [str(n) for n, v in dataset.data_vars.items() if v.dims == ("time", "y", "x")]
    no_bands = {"qa", "days_before", "days_after", *(f"{of}_{name}" for of in ("std", "spread") for name in images)}
    others = [n for n in images if n not in BANDS and n not in no_bands]
    return tuple(band for band in BANDS if band in images) + tuple(others)


def _any_nan(values: Float, axis: int) -> Bool:
    return np.asarray(np.isnan(values).any(axis=axis), bool)


def _as_slice(indices: Sequence[int]) -> slice | list[int]:
    # A run of indices is read as a slice: lazily indexed arrays then read one region.
    if len(indices) and list(indices) == list(range(indices[0], indices[0] + len(indices))):
        return slice(indices[0], indices[0] + len(indices))
    return list(indices)


@dataclass(frozen=True)
class Interval:
    """Target days that share their observations before and after.

    Attributes
    ----------
    days
        Target days, as days since 1970-01-01.
    bracket
        The observations, with halo.
    coarse
        The coarse series around the days, with halo.
    day_before, day_after
        ``(y, x)`` int32 days of the observations used in the block.
    extrapolated
        ``(y, x)`` where only one side has an observation.
    missing
        ``(y, x)`` where neither has.
    gaps
        What became of the coarse cells of the block on each day.
    reach
        The first and the last day on which another acquisition could be chosen by a pixel that counts.
    """

    days: tuple[int, ...]
    bracket: Bracket
    coarse: CoarseWindow
    day_before: npt.NDArray[np.int32]
    day_after: npt.NDArray[np.int32]
    extrapolated: Bool
    missing: Bool
    gaps: CoarseGaps
    reach: tuple[int, int]


@dataclass(frozen=True)
class CoarseGaps:
    """Per day and coarse cell: filled in time, in space, of low quality, or without a value; each ``(day, cy, cx)``."""

    in_time: Bool
    in_space: Bool
    low_quality: Bool
    missing: Bool

    def select(self, days: Sequence[int], window: tuple[slice, slice]) -> CoarseGaps:
        """Some days, by index, and a window."""
        parts = (self.in_time, self.in_space, self.low_quality, self.missing)
        return CoarseGaps(*(part[:, *window][list(days)] for part in parts))


def mirror(first: int, last: int, size: int) -> npt.NDArray[np.int64]:
    """Indices ``first`` to ``last`` of an axis of ``size`` that is mirrored at its edges, as often as needed.

    The edge pixel itself is repeated (numpy's ``symmetric``): only then is the mirrored fine image the one whose cell
    means are the mirrored coarse image.

    >>> mirror(-3, 5, 3).tolist()
    [2, 1, 0, 0, 1, 2, 2, 1]
    """
    folded = np.arange(first, last) % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def _mirrored(array: npt.NDArray[Any], inside: Window, target: Window, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """``array`` over ``inside`` (a part of the grid) as ``target``, which may reach beyond the grid."""
    if target == target.clip(shape):
        return np.ascontiguousarray(array[..., *_relative(target, inside)])
    rows = mirror(target.top, target.bottom, shape[0]) - inside.top
    columns = mirror(target.left, target.right, shape[1]) - inside.left
    return np.ascontiguousarray(array[..., rows[:, None], columns])


def _offsets(radius: int) -> list[tuple[int, int]]:
    # By distance, then row, then column: a fixed order, so that ties do not depend on the tiling.
    reach = range(-radius, radius + 1)
    found = [(y * y + x * x, y, x) for y in reach for x in reach if 0 < y * y + x * x <= radius * radius]
    return [(y, x) for _, y, x in sorted(found)]


def nearest_valid(valid: Bool, radius: int = FILL_CELLS) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Bool]:
    """Row and column of the nearest valid cell of each cell, and where there is one within ``radius`` cells.

    >>> rows, columns, found = nearest_valid(np.array([[True, False, False]]), radius=1)
    >>> columns.tolist(), found.tolist()
    ([[0, 0, 2]], [[True, True, False]])
    """
    height, width = valid.shape
    indices: npt.NDArray[np.int64] = np.indices(valid.shape)
    rows, columns = indices[0], indices[1]
    found = valid.copy()
    for down, right in _offsets(radius):
        if found.all():
            break
        open_rows, open_columns = np.nonzero(~found)
        from_rows, from_columns = open_rows + down, open_columns + right
        inside = (from_rows >= 0) & (from_rows < height) & (from_columns >= 0) & (from_columns < width)
        hit = np.zeros(open_rows.shape, bool)
        hit[inside] = valid[from_rows[inside], from_columns[inside]]
        at = open_rows[hit], open_columns[hit]
        rows[at], columns[at], found[at] = from_rows[hit], from_columns[hit], True
    return rows, columns, found


def fill_in_time(values: Float, reach: int = FILL_DAYS) -> Float:
    """Gaps of a daily series ``(day, ...)``: linear between the nearest valid days at most ``reach`` away.

    With a valid day on one side only, that day's value is held.

    >>> fill_in_time(np.array([1, np.nan, 3, np.nan], dtype="float32")).tolist()
    [1.0, 2.0, 3.0, 3.0]
    """
    gap = np.isnan(values)
    if not gap.any():
        return values
    count = values.shape[0]
    index = np.arange(count, dtype=np.int32).reshape(-1, *[1] * (values.ndim - 1))
    before = np.maximum.accumulate(np.where(gap, np.int32(-1), index), axis=0)
    after = np.minimum.accumulate(np.where(gap, np.int32(count), index)[::-1], axis=0)[::-1]
    has_before = (before >= 0) & (index - before <= reach)
    has_after = (after < count) & (after - index <= reach)
    value_before = np.take_along_axis(values, np.clip(before, 0, None), axis=0)
    value_after = np.take_along_axis(values, np.clip(after, None, count - 1), axis=0)
    weight = ((index - before) / np.maximum(after - before, 1)).astype(np.float32)
    both = value_before + (value_after - value_before) * weight
    one = np.where(has_before, value_before, np.where(has_after, value_after, np.float32(np.nan)))
    return np.where(gap, np.where(has_before & has_after, both, one), values).astype(np.float32)


def _fill_in_space(values: Float) -> tuple[Float, Bool]:
    """Cells without a value in any band take the nearest complete cell; ``(day, band, cy, cx)`` and where it did."""
    filled, where = values, np.zeros((values.shape[0], *values.shape[2:]), bool)
    valid = ~_any_nan(values, 1)
    for day in np.flatnonzero(~valid.all(axis=(1, 2)) & valid.any(axis=(1, 2))):
        rows, columns, found = nearest_valid(valid[day])
        where[day] = found & ~valid[day]
        if filled is values:
            filled = values.copy()
        filled[day] = values[day][:, rows, columns]
    return filled, where


@dataclass
class _Coarse:
    """The coarse series of a block with all gaps filled that may be, over the cells of ``inside``."""

    inside: Window
    first_day: int
    values: Float
    gaps: CoarseGaps

    def on(self, day: int) -> Float:
        values: Float = self.values[day - self.first_day]
        return values


def _read_coarse(modis: Series, cells: Window, first: int, last: int) -> _Coarse:
    inside = cells.clip(modis.shape)
    start, stop = first - FILL_DAYS, last + FILL_DAYS + 1
    indices = [i for i, day in enumerate(modis.days) if start <= day < stop]
    values = np.full((stop - start, len(modis.bands), *inside.shape), np.nan, np.float32)
    qa = np.full((stop - start, *inside.shape), Observation.FILL, np.uint16)
    if indices:
        at = np.array([modis.days[i] - start for i in indices])
        values[at], qa[at] = modis.read(indices, inside), modis.qa(indices, inside)
    values[np.broadcast_to(~is_clear(qa)[:, None], values.shape)] = np.nan
    in_time = fill_in_time(values)
    in_space, where = _fill_in_space(in_time)
    by_time = _any_nan(np.where(np.isnan(in_time), np.float32(0), values), 1)
    missing = _any_nan(in_space, 1)
    low_quality = (qa & np.uint16(Observation.LOW_QUALITY)) != 0
    gaps = CoarseGaps(by_time, where, low_quality, missing)
    return _Coarse(inside, start, in_space, gaps)


@dataclass
class _Fine:
    """The fine observations of a block: clear masks over ``inside``, bands read on demand over ``near``."""

    landsat: Series
    inside: Window
    near: Window
    clear: dict[int, Bool] = field(default_factory=dict)
    resampled: dict[int, Bool] = field(default_factory=dict)
    images: dict[int, Float] = field(default_factory=dict)

    @classmethod
    def read(cls, landsat: Series, inside: Window, near: Window, first: int, last: int) -> Self:
        fine = cls(landsat, inside, near)
        for index, day in enumerate(landsat.days):
            if first <= day <= last:
                qa = landsat.qa([index], inside)[0]
                clear = is_clear(qa)
                if clear.any():
                    fine.clear[index] = clear
                    if (resampled := (qa & Observation.RESAMPLED) != 0).any():
                        fine.resampled[index] = resampled
        return fine

    def composite(self, order: Sequence[int]) -> Index:
        """For each pixel of ``inside`` the first of the acquisitions that is clear, or :data:`NONE`."""
        chosen = np.full(self.inside.shape, NONE, np.int16)
        for index in order:
            open_ = chosen == NONE
            if not open_.any():
                break
            chosen[open_ & self.clear[index]] = index
        return chosen

    def gather(self, chosen: Index) -> Float:
        """Reflectance ``(band, y, x)`` over ``near`` of the chosen acquisitions; NaN where there is none."""
        out = np.full((len(self.landsat.bands), *self.near.shape), np.nan, np.float32)
        for index in np.unique(chosen[chosen != NONE]):
            np.copyto(out, self._image(int(index)), where=chosen == index)
        return out

    def cloud_distances(self, chosen: Index, reach: int) -> Float:
        """Pixels ``(y, x)`` over ``inside``, at most ``reach``, to what is not clear in the chosen acquisitions."""
        out = np.full(self.inside.shape, reach, np.float32)
        for index in np.unique(chosen[chosen != NONE]):
            here, clear = chosen == index, self.clear[int(index)]
            if not clear.all():
                out[here] = np.minimum(ndimage.distance_transform_edt(clear), reach)[here]
        return out

    def is_resampled(self, chosen: Index) -> Bool:
        """Where ``(y, x)`` over ``inside`` the chosen acquisitions were interpolated from another grid."""
        out = np.zeros(self.inside.shape, bool)
        for index, resampled in self.resampled.items():
            out |= resampled & (chosen == index)
        return out

    def _image(self, index: int) -> Float:
        if index not in self.images:
            while len(self.images) > 3:  # an interval shares most of its days with the last one, not with older ones
                del self.images[next(iter(self.images))]
            self.images[index] = self.landsat.read([index], self.near)[0]
        return self.images[index]


@dataclass(frozen=True)
class _Choice:
    """Acquisitions before and after, per pixel; where one side has none both hold the other."""

    before: Index
    after: Index
    extrapolated: Bool

    def same(self, other: _Choice) -> bool:
        return np.array_equal(self.before, other.before) and np.array_equal(self.after, other.after)


def _choose(fine: _Fine, day: int, bracket_days: int) -> _Choice:
    days = fine.landsat.days
    earlier = [i for i in sorted(fine.clear, reverse=True) if day - bracket_days <= days[i] <= day]
    later = [i for i in sorted(fine.clear) if day < days[i] <= day + bracket_days]
    before, after = fine.composite(earlier), fine.composite(later)
    one = (before == NONE) != (after == NONE)
    return _Choice(np.where(before == NONE, after, before), np.where(after == NONE, before, after), one)


def _candidates(fine: _Fine, day: int, bracket_days: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    near = [i for i in fine.clear if abs(fine.landsat.days[i] - day) <= bracket_days]
    return tuple(i for i in near if fine.landsat.days[i] <= day), tuple(i for i in near if fine.landsat.days[i] > day)


def _runs(fine: _Fine, days: Sequence[int], bracket_days: int) -> Iterator[tuple[list[int], _Choice]]:
    """Target days in runs that choose the same acquisitions in every pixel."""
    run: list[int] = []
    choice, candidates = None, None
    for day in days:
        now = _candidates(fine, day, bracket_days)
        if now != candidates:
            fresh = _choose(fine, day, bracket_days)
            if choice is not None and not fresh.same(choice):
                yield run, choice
                run = []
            choice, candidates = fresh, now
        run.append(day)
    if choice is not None:
        yield run, choice


def _coarse_composite(coarse: _Coarse, chosen: Index, days: Sequence[int], ratio: int) -> tuple[Float, Bool]:
    """Coarse reflectance ``(band, cy, cx)`` on the days of the chosen fine pixels, their mean over each cell, and where
    there is any.

    Cells none of whose pixels has an observation take the days of the nearest cell that has, then 0.
    """
    height, width = coarse.inside.shape
    used = [int(i) for i in np.unique(chosen[chosen != NONE])]
    blocks = chosen.reshape(height, ratio, width, ratio)
    counts = np.array([(blocks == i).sum(axis=(1, 3)) for i in used], np.float32).reshape(len(used), height, width)
    rows, columns, _ = nearest_valid(counts.sum(axis=0) > 0)
    counts = counts[:, rows, columns]
    total: Float = np.zeros((len(coarse.values[0]), height, width), np.float32)
    weight: Float = np.zeros((height, width), np.float32)
    for count, index in zip(counts, used, strict=True):
        values = coarse.on(days[index])
        known = count * ~np.isnan(values).any(axis=0)
        total += np.where(known > 0, values, np.float32(0)) * known
        weight += known
    return (total / np.maximum(weight, 1)).astype(np.float32), weight > 0


def _acquired(chosen: Index, days: Sequence[int], none: int) -> npt.NDArray[np.int32]:
    table = np.array([*days, none], np.int32)  # NONE is -1 and picks the last entry
    return table[chosen]


def intervals(
    landsat: Series,
    modis: Series,
    window: Window,
    days: Sequence[int],
    halo: Halo,
    ratio: int,
    bracket_days: int = 64,
    archive: bool = False,
    cloud_reach: int = 0,
) -> Iterator[Interval]:
    """The target days of a block in runs that share their observations, with everything a predictor needs.

    Parameters
    ----------
    landsat, modis
        Fine and coarse series on nested grids; ``modis.shape * ratio == landsat.shape``.
    window
        Fine pixels of the block: whole coarse cells.
    days
        Target days since 1970-01-01, ascending.
    halo
        What the predictor must see beyond the block.
    ratio
        Fine pixels along a coarse cell.
    bracket_days
        Observations further from a target day are not used.
    archive
        Brackets hold all observations of the series as well, however far.
    cloud_reach
        Fine pixels, at most ``halo.fine``, up to which brackets hold distances to clouds; 0: they hold none.

    Yields
    ------
    Interval
        In the order of the days; together they hold every day once.
    """
    place = _Place.of(window, halo, ratio, landsat.shape, modis.shape)
    ends = (min(days) - bracket_days, max(days) + bracket_days)
    first, last = (min([*landsat.days, *ends]), max([*landsat.days, *ends])) if archive else ends
    fine = _Fine.read(landsat, place.inside, place.near, first, last)
    used = [landsat.days[i] for i in fine.clear]
    reach = (min([*used, min(days) - halo.days]), max([*used, max(days) + halo.days]))
    coarse = _read_coarse(modis, place.wide, *reach)
    everything = _archive(place, fine, coarse) if archive else None
    for run, choice in _runs(fine, days, bracket_days):
        interval = _interval(place, fine, coarse, run, choice, everything)
        interval = replace(
            interval, reach=(first, last) if archive else _reach(choice, landsat.days, run, bracket_days)
        )
        yield _with_clouds(interval, place, fine, choice, cloud_reach) if cloud_reach else interval


def _reach(choice: _Choice, days: Sequence[int], run: Sequence[int], bracket_days: int) -> tuple[int, int]:
    """What an acquisition further away than the observations of all pixels shows is chosen by none of them."""
    before, after = _acquired(choice.before, days, run[-1] + 1), _acquired(choice.after, days, run[0])
    first = int(before.min()) if (before <= run[0]).all() else run[0] - bracket_days
    last = int(after.max()) if (after > run[-1]).all() else run[-1] + bracket_days
    return first, last


def _with_clouds(interval: Interval, place: _Place, fine: _Fine, choice: _Choice, reach: int) -> Interval:
    """An interval whose bracket tells how far clouds are."""
    before, after = (
        place.fine(fine.cloud_distances(chosen, reach), place.inside) for chosen in (choice.before, choice.after)
    )
    return replace(interval, bracket=replace(interval.bracket, cloud_before=before, cloud_after=after))


def _archive(place: _Place, fine: _Fine, coarse: _Coarse) -> Archive:
    """All acquisitions with a clear pixel in the block's window, and the coarse images of their days."""
    near = _relative(place.near, place.inside)
    seen = sorted(index for index, clear in fine.clear.items() if clear[near].any())
    days = tuple(fine.landsat.days[index] for index in seen)
    images = np.full((len(days), len(fine.landsat.bands), *place.near.shape), np.nan, np.float32)
    for image, index in zip(images, seen, strict=True):
        clear = fine.clear[index][near]
        image[:, clear] = fine.landsat.read([index], place.near)[0][:, clear]
    cells = [coarse.on(day) for day in days]
    along = np.stack(cells) if cells else np.empty((0, *coarse.values.shape[1:]), np.float32)
    return Archive(days, place.fine(images, place.near), place.coarse(along))


def reach_cells(halo: Halo, ratio: int) -> int:
    """Coarse cells beyond a block that are read: the halo of either resolution, and what gaps are filled from."""
    return max(halo.coarse, -(-halo.fine // ratio)) + FILL_CELLS


@dataclass(frozen=True)
class _Place:
    """Where a block and its surroundings lie; ``inside`` and ``near`` are the parts of the grid that are read.

    ``wide`` are the cells read, ``inside`` the fine pixels under them (clear masks), ``near`` the block with its fine
    halo (bands).
    """

    window: Window
    halo: Halo
    ratio: int
    shape: tuple[int, int]
    coarse_shape: tuple[int, int]
    wide: Window
    inside: Window
    near: Window

    @classmethod
    def of(cls, window: Window, halo: Halo, ratio: int, shape: tuple[int, int], coarse_shape: tuple[int, int]) -> Self:
        wide = window.cells(ratio).pad(reach_cells(halo, ratio))
        near = window.pad(halo.fine).clip(shape)
        return cls(window, halo, ratio, shape, coarse_shape, wide, wide.pixels(ratio).clip(shape), near)

    def fine(self, array: npt.NDArray[Any], over: Window) -> npt.NDArray[Any]:
        """A fine array over a read window as the block with its halo, mirrored beyond the grid."""
        return _mirrored(array, over, self.window.pad(self.halo.fine), self.shape)

    def on_grid(self, known: Bool) -> Bool:
        """A mask over ``near`` as the block with its halo: False beyond the grid, where nothing was observed."""
        target = self.window.pad(self.halo.fine)
        out = np.zeros(target.shape, bool)
        out[_relative(self.near, target)] = known
        return out

    def coarse(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A coarse array over the cells read as those of the block with its halo."""
        target = self.window.cells(self.ratio).pad(self.halo.coarse)
        return _mirrored(array, self.wide.clip(self.coarse_shape), target, self.coarse_shape)


@dataclass(frozen=True)
class _Side:
    """One side of a bracket: images over ``near`` and the cells read, days and what was resampled over ``inside``, and
    missing pixels."""

    image: Float
    composite: Float
    composed: Bool
    acquired: npt.NDArray[np.int32]
    missing: Bool
    resampled: Bool


def _side(place: _Place, fine: _Fine, coarse: _Coarse, chosen: Index, none: int) -> _Side:
    days = fine.landsat.days
    composite, composed = _coarse_composite(coarse, chosen, days, place.ratio)
    image = fine.gather(chosen[_relative(place.near, place.inside)])
    filled = _fill_fine(image, composite, place.near, coarse.inside, place.ratio)
    acquired, resampled = _acquired(chosen, days, none), fine.is_resampled(chosen)
    return _Side(filled, composite, composed, acquired, _any_nan(image, 0), resampled)


def _marks(place: _Place, side: _Side) -> Bool | None:
    """What of a side was resampled, as the block with its halo; None if nothing is, whatever lies further out."""
    marks = place.fine(side.resampled, place.inside)
    return marks if marks.any() else None


def _interval(
    place: _Place, fine: _Fine, coarse: _Coarse, run: Sequence[int], choice: _Choice, archive: Archive | None
) -> Interval:
    before, after = (_side(place, fine, coarse, chosen, run[0]) for chosen in (choice.before, choice.after))
    halo, block = place.halo, _relative(place.window, place.inside)
    series_days = tuple(range(run[0] - halo.days, run[-1] + halo.days + 1))
    start = series_days[0] - coarse.first_day
    values = coarse.values[start : start + len(series_days)]
    cells = _relative(place.window.cells(place.ratio), coarse.inside)
    bracket = Bracket(
        fine_before=place.fine(before.image, place.near),
        fine_after=place.fine(after.image, place.near),
        coarse_before=place.coarse(before.composite),
        coarse_after=place.coarse(after.composite),
        day_before=place.fine(before.acquired, place.inside),
        day_after=place.fine(after.acquired, place.inside),
        ratio=place.ratio,
        halo=halo,
        known=place.on_grid(~(before.missing | after.missing)),
        coarse_known=place.coarse(before.composed & after.composed),
        archive=archive,
        resampled_before=_marks(place, before),
        resampled_after=_marks(place, after),
    )
    return Interval(
        days=tuple(run),
        bracket=bracket,
        coarse=CoarseWindow(
            tuple(run), place.coarse(np.nan_to_num(values)), series_days, place.coarse(~_any_nan(values, 1))
        ),
        day_before=before.acquired[block],
        day_after=after.acquired[block],
        extrapolated=choice.extrapolated[block],
        missing=(before.missing | after.missing)[_relative(place.window, place.near)],
        gaps=coarse.gaps.select([day - coarse.first_day for day in run], cells),
        reach=(run[0], run[-1]),
    )


def _relative(window: Window, outer: Window) -> tuple[slice, slice]:
    top, left = window.top - outer.top, window.left - outer.left
    height, width = window.shape
    return slice(top, top + height), slice(left, left + width)


def _fill_fine(image: Float, composite: Float, near: Window, cells: Window, ratio: int) -> Float:
    """Pixels without an observation take the coarse value of their cell, so that a network sees no hole."""
    gap = _any_nan(image, 0)
    if not gap.any():
        return image
    rows, columns = np.nonzero(gap)
    at = (rows + near.top) // ratio - cells.top, (columns + near.left) // ratio - cells.left
    filled = image.copy()
    filled[:, rows, columns] = composite[:, *at]
    return filled
