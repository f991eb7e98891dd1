"""Delta by another clock: how far a cell has come between its observations is read from the coarse series.

Delta written as ``F1 + up(C2 - C1) + w (F3 - F1 - up(C3 - C1))`` takes fine detail from the two observations in the
proportion ``w`` that has passed of the time between them. What changes abruptly, a harvest, a fire or a flood, has
changed wholly or not at all on any day. Here ``w`` is replaced by the progress ``p`` of the ground: ``w`` and a lead
that makes the cells around depart from the calendar as the coarse image of the day does (:func:`gains`). A cell holds
more than one parcel; which of them it was shows in the bands, in the cells around and in what looks alike. The noise
that decides between data and calendar is measured in each bracket: by how much the coarse change of the cells around
differs from the mean fine change.

The level ``C2`` is noisy as well, and a fine image would take over its noise. It is smoothed in time as far as the
series varies from day to day without an event, and brought towards the calendar as far as its departure is no larger
than noise (:meth:`Pace.rise`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket, CoarseWindow, Prediction
from stfgan_xr.predictors.simple import BracketTensors, detail, share_of_time, to_tensors, weight_after

Float = npt.NDArray[np.float32]

AROUND = 1
"""Cells on each side whose departures tell of the points of a cell, and that the noise of a cell is measured over."""
NOISE_SHARE, LEAST_NOISE = 3.0, 0.006
"""Times the mean square difference of coarse and fine change that the noise of a departure has, and reflectance that
it is at least."""
TOGETHER, ALIKE = 0.04, 0.06
"""Variance of the lead that all ground around shares, and that only ground shares which looks alike."""
LIKENESS = 0.03
"""Reflectance that images of alike ground differ by."""
SPREAD = 0.7
"""Cells (deviation of a Gaussian) that a coarse cell sees beyond its edges: point spread and resampling of MODIS."""
POINTS = 4
"""At most so many points along a cell."""
SMOOTHING, REACH = 1.5, 4
"""Days of the Gaussian that the coarse level is smoothed by, where all that it loses is noise, and days on either side
that it sees. Progress is read from the day itself: events are not shared with the days before."""
UNSTEADY = 2.0
"""Times the variance of second differences that the noise of a day has: composites of neighbouring days share some."""
DAY_DOUBT, CHANGE_DOUBT = 3.0, 0.05
"""Times a level's noise, and the mean square difference of coarse and fine change, that the noise of departures has."""
CELLS = 2 * AROUND + 1
"""Coarse halo: what is seen of the cells that the points around a block lie in."""


def halo(ratio: int) -> Halo:
    """What the method sees beyond a block.

    >>> halo(16)
    Halo(fine=48, coarse=3, days=4)
    """
    return Halo(fine=CELLS * ratio, coarse=CELLS, days=REACH)


def gaussian(days: Sequence[int], day: int) -> Float:
    """Weights of days around one, of sum 1."""
    weights = np.exp(-0.5 * ((np.array(days) - day) / SMOOTHING) ** 2)
    return np.asarray(weights / weights.sum(), np.float32)


def smoothed(coarse: CoarseWindow, day: int) -> Float:
    """The coarse level ``(band, cy, cx)`` of a day: a Gaussian mean of the days around it."""
    first, last = coarse.series_days[0], coarse.series_days[-1]
    near = [other for other in range(day - REACH, day + REACH + 1) if first <= other <= last]
    weights = gaussian(near, day)
    # One day after the other: a sum whose order does not depend on how many days a block holds.
    total = np.zeros(coarse.series.shape[1:], np.float32)
    for other, weight in zip(near, weights, strict=True):
        total += weight * coarse.on(other)
    return total


def noise_of_days(images: Float) -> Float:
    """Variance of the noise of single days, ``(band, cy, cx)``, from ``(day, band, cy, cx)`` of days in a row.

    By the median of squared second differences: a step from one day to the next, as a flood makes it, does not count.
    For white noise of variance 1 they have one of 6, and the median of their squares is 0.455 of it.

    >>> noise_of_days(np.float32([0, 0, 0, 0, 9, 9, 9, 9]).reshape(8, 1, 1, 1)).item()
    0.0
    """
    if len(images) < 3:
        return np.zeros_like(images[0])
    squares = np.diff(images, 2, axis=0) ** 2
    return np.asarray(np.median(squares, axis=0) / (6 * 0.455), np.float32)


def cells_of(image: Tensor, ratio: int) -> Tensor:
    """Means ``(..., cy, cx)`` over cells of an image that starts and ends with whole ones."""
    flat = image.reshape(-1, 1, *image.shape[-2:])
    return functional.avg_pool2d(flat, ratio).reshape(*image.shape[:-2], *(s // ratio for s in image.shape[-2:]))


def points(ratio: int) -> int:
    """Points along a cell: as many as its pixels can be shared out to, at most :data:`POINTS`.

    >>> points(16), points(15), points(7)
    (4, 3, 1)
    """
    return max(count for count in range(1, POINTS + 1) if ratio % count == 0)


def neighbours(cells: Tensor) -> Tensor:
    """Each cell with those around it: ``(CY, CX, ...)`` to ``(cy, cx, 9, ...)``."""
    across = 2 * AROUND + 1
    rows, columns = (side - 2 * AROUND for side in cells.shape[:2])
    shifted = [cells[top : top + rows, left : left + columns] for top in range(across) for left in range(across)]
    return torch.stack(shifted, dim=2)


def split(image: Tensor, count: int) -> Tensor:
    """Points ``(channel, y, x)`` by cell: ``(cy, cx, count^2, channel)``, ``count`` along a cell."""
    channels, rows, columns = image.shape
    parts = image.reshape(channels, rows // count, count, columns // count, count)
    return parts.permute(1, 3, 2, 4, 0).reshape(rows // count, columns // count, count**2, channels)


@cache
def seen(count: int) -> tuple[Tensor, Tensor]:
    """Of the points of a cell and those around it: squared distances in cells, and their shares in the cells.

    The share ``(points, cells)`` is how much of a point a coarse cell sees, a box behind a Gaussian.
    """
    across = 2 * AROUND + 1
    centre = (torch.arange(across * count) + 0.5) / count
    edges = torch.arange(across + 1.0)
    below = 0.5 * (1 + torch.erf((edges - centre[:, None]) / (SPREAD * math.sqrt(2))))

    def by_cell(of_axis: Tensor) -> tuple[Tensor, Tensor]:
        """Values along an axis ``(points, n)`` at all points, in the order of :func:`neighbours` and :func:`split`."""
        both = (of_axis[:, None].expand(-1, len(of_axis), -1), of_axis[None].expand(len(of_axis), -1, -1))
        first, second = (split(values.permute(2, 0, 1), count).flatten(0, 2) for values in both)
        return first, second

    (rows, columns), (down, right) = by_cell(centre[:, None]), by_cell(below[:, 1:] - below[:, :-1])
    distance = (rows - rows.T) ** 2 + (columns - columns.T) ** 2
    return distance, (down[:, :, None] * right[:, None, :]).flatten(1) / count**2


def misfit_of(images: Tensor, change: Tensor, count: int) -> Tensor:
    """How far coarse change is from what cells see of the fine: mean squares ``(band, cy, cx)`` over the cells around.

    Parameters
    ----------
    images
        ``(2 band, y, x)`` both fine images averaged to points, with twice :data:`AROUND` cells more on every side.
    change
        ``(band, CY, CX)`` coarse change from before to after, with :data:`AROUND` cells more on every side.
    count
        Points along a cell.
    """
    before, after = neighbours(split(images, count)).flatten(2, 3).chunk(2, dim=-1)
    share = seen(count)[1].to(images.device)
    share = share[:, share.shape[1] // 2]
    expected = torch.einsum("yxpb,p->byx", after - before, share / share.sum())
    return functional.avg_pool2d((change - expected)[:, None] ** 2, 2 * AROUND + 1, stride=1)[:, 0]


def gains(images: Tensor, misfit: Tensor, count: int) -> Tensor:
    """What the departures of the cells around tell of the lead of points: ``(cy, cx, points, cells and bands)``.

    The lead is taken for a Gaussian process whose points vary together where they lie near one another, and more so
    where they look alike in both images: parcels of a kind ripen and are harvested together. A cell's departure is
    the sum of lead times change over the points it sees, plus noise (Rasmussen and Williams 2006, equation 2.25).

    Parameters
    ----------
    images
        ``(2 band, y, x)`` both fine images averaged to points, with :data:`AROUND` cells more on every side.
    misfit
        ``(band, cy, cx)`` :func:`misfit_of` the cells, which the noise of departures is taken from.
    count
        Points along a cell.
    """
    distance, share = (tensor.to(images.device) for tensor in seen(count))
    bands, cells, noise = len(misfit), share.shape[1], NOISE_SHARE * misfit + LEAST_NOISE**2
    own = slice(cells // 2 * count**2, (cells // 2 + 1) * count**2)
    near = TOGETHER * torch.exp(-distance / 2)
    rows = []
    looks = neighbours(split(images, count)).flatten(2, 3)
    for look, variance in zip(looks, noise.permute(1, 2, 0), strict=True):  # a row of cells at a time: memory
        unlike = torch.cdist(look, look, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        covariance = near + ALIKE * torch.exp(-unlike / (4 * bands * LIKENESS**2))
        change = look[..., bands:] - look[..., :bands]
        weight = (share[None, :, :, None] * change[:, :, None, :]).flatten(2)
        told = covariance @ weight
        spread = weight.mT @ told + torch.diag_embed(variance.repeat(1, cells))
        rows.append(torch.linalg.solve(spread, told[:, own].mT).mT)
    return torch.stack(rows)


@dataclass(frozen=True)
class Pace:
    """What of a bracket tells how far its ground has come, on the block and some cells around.

    Attributes
    ----------
    before, change
        ``(band, CY, CX)`` coarse image before and its change until after, with :data:`AROUND` more cells around.
    misfit
        ``(band, cy, cx)`` :func:`misfit_of`.
    gain
        :func:`gains`.
    day_before, day_after
        ``(y, x)`` days of the fine observations on the ground of ``before``.
    ratio
        Fine pixels along a cell.
    beyond
        Cells that the bracket's coarse images have beyond those of ``gain``, on every side.
    """

    before: Tensor
    change: Tensor
    misfit: Tensor
    gain: Tensor
    day_before: Tensor
    day_after: Tensor
    ratio: int
    beyond: int

    @classmethod
    def of(cls, whole: BracketTensors, cells: int) -> Pace:
        """Of a bracket whose halo holds ``cells + 2 AROUND`` cells of both kinds."""
        ratio, near, count = whole.ratio, cells + AROUND, points(whole.ratio)
        spare = whole.halo.coarse - near

        def inner(coarse: Tensor) -> Tensor:
            return coarse[..., spare : coarse.shape[-2] - spare, spare : coarse.shape[-1] - spare]

        before, change = inner(whole.coarse_before), inner(whole.coarse_after - whole.coarse_before)
        wide, seen = whole.crop((near + AROUND) * ratio), whole.crop(near * ratio)
        images = cells_of(torch.cat([wide.fine_before, wide.fine_after]), ratio // count)
        misfit, cut = misfit_of(images, change, count), AROUND * count
        gain = gains(images[:, cut:-cut, cut:-cut], misfit, count)
        return cls(before, change, misfit, gain, seen.day_before, seen.day_after, ratio, spare + AROUND)

    def on(self, coarse: CoarseWindow, day: int) -> tuple[Tensor, Tensor]:
        """What the coarse series tells of a day on all cells of the bracket, zero beyond those known.

        Parameters
        ----------
        coarse
            On the cells of the bracket, with :data:`REACH` days around.
        day
            Days since 1970-01-01.

        Returns
        -------
        tuple
            :meth:`rise` ``(band, cy, cx)`` and :meth:`lead` ``(points cy, points cx)``.
        """
        spare = self.beyond - AROUND
        inner = coarse.crop(spare)
        passed = self._passed(day)
        rise, lead = self.rise(inner, day, passed), self.lead(self._known(inner.on(day)), passed)
        around = [functional.pad(rise, [self.beyond] * 4), functional.pad(lead, [self.beyond * points(self.ratio)] * 4)]
        return around[0], around[1]

    def _known(self, image: Float) -> Tensor:
        return torch.from_numpy(image).to(self.before.device)

    def _passed(self, day: int) -> Tensor:
        """The share ``(CY, CX)`` of the time between the observations that has passed, on the cells of ``before``."""
        # Pixels with one observation or none are of no use here, and the days of those without any mean nothing.
        both = (self.day_after > self.day_before).to(self.before.dtype)
        share = cells_of(both * share_of_time(self.day_before, self.day_after, day), self.ratio)
        return share / cells_of(both, self.ratio).clamp(min=1e-6)

    def lead(self, coarse: Tensor, passed: Tensor) -> Tensor:
        """How far points are ahead of the calendar on a day: ``(y, x)``, added to the share of time that has passed.

        Parameters
        ----------
        coarse
            ``(band, CY, CX)`` coarse image of the day on the cells of ``before``.
        passed
            ``(CY, CX)`` share of time.
        """
        departure = neighbours((coarse - self.before - passed * self.change).permute(1, 2, 0)).flatten(2)
        lead = (self.gain @ departure[..., None])[..., 0]
        rows, columns, count = *lead.shape[:2], points(self.ratio)
        return lead.reshape(rows, columns, count, count).permute(0, 2, 1, 3).reshape(rows * count, columns * count)

    def rise(self, coarse: CoarseWindow, day: int, passed: Tensor) -> Tensor:
        """The coarse level of a day less that before: ``(band, cy, cx)``, without what is but noise.

        The noise of days is that of the series around the day (:func:`noise_of_days`), the same for a cell and those
        around it. The level is smoothed in time as far as that changes it by no more than such noise does, and its
        departure from the calendar is multiplied by the share of its power that is not noise (a Wiener filter).

        Parameters
        ----------
        coarse
            On the cells of ``before``.
        day
            Days since 1970-01-01.
        passed
            ``(CY, CX)`` share of time.
        """
        first, last = coarse.series_days[0], coarse.series_days[-1]
        days = range(max(day - REACH, first), min(day + REACH, last) + 1)
        images = np.stack([coarse.on(near) for near in days])
        weights, own = gaussian(days, day), days.index(day)
        still = float((weights**2).sum())  # of the noise of a day, what smoothing leaves
        lost = 1 - 2 * float(weights[own]) + still

        def around(cells: Tensor) -> Tensor:
            """Cells ``(band, CY, CX)`` with those around them, ``(cy, cx, 9, band)``."""
            return neighbours(cells.permute(1, 2, 0))

        raw, smooth, varied = (self._known(i) for i in (images[own], smoothed(coarse, day), noise_of_days(images)))
        noise = UNSTEADY * around(varied).mean((2, 3), keepdim=True)
        moved = around(smooth - raw)
        part = (lost * noise / (moved**2).mean((2, 3), keepdim=True).clamp(min=1e-12)).clamp(max=1)
        departure = around(raw - self.before - passed * self.change) + part * moved
        power = (departure**2).mean((2, 3))
        doubt = DAY_DOUBT * (noise * (1 - part + part * still))[..., 0, 0] + CHANGE_DOUBT * self.misfit.mean(dim=0)
        gain = (power - doubt).clamp(min=0) / power.clamp(min=1e-12)
        cut = slice(AROUND, -AROUND)
        calendar = (passed * self.change)[:, cut, cut]
        return calendar + gain * departure[:, :, departure.shape[2] // 2].permute(2, 0, 1)


@dataclass(frozen=True)
class Prepared:
    """What is the same on every day of an interval: the block's bracket, its pace with a cell around, and what the
    fine change has that the coarse one has not."""

    pair: BracketTensors
    pace: Pace
    detail: Tensor


@dataclass(frozen=True)
class Progress:
    """Delta at the progress of the coarse series instead of the date's.

    Attributes
    ----------
    bands
        Names of the bands.
    ratio
        Fine pixels along a coarse cell.
    """

    bands: tuple[str, ...]
    ratio: int = 16

    @property
    def halo(self) -> Halo:
        """What it sees beyond a block."""
        return halo(self.ratio)

    def memory(self, rows: int, columns: int, days: int) -> int:
        """Bytes for a block with its halo, roughly: two images, and the covariances of a row of cells."""
        covariance = 4 * ((2 * AROUND + 1) * points(self.ratio)) ** 4
        return 8 * rows * columns * len(self.bands) + 10 * -(-columns // self.ratio) * covariance

    def prepare(self, bracket: Bracket) -> Prepared:
        """The evidence of an interval.

        Raises
        ------
        InputError
            If the bracket has another ratio, of which halo and cells would be others.
        """
        bracket.refuse_other(self.ratio, "progress")
        whole = to_tensors(bracket, torch.device("cpu"))
        pair = whole.crop(0)
        return Prepared(pair, Pace.of(whole, 1), detail(pair))

    def predict(self, prepared: Prepared, coarse: CoarseWindow) -> Prediction:
        """Mean ``(day, band, y, x)`` of the target days."""
        pair, detail = prepared.pair, prepared.detail
        with torch.inference_mode():
            mean = detail.new_empty(len(coarse.days), *detail.shape)
            for image, day in zip(mean, coarse.days, strict=True):
                rise, lead = prepared.pace.on(coarse, day)
                progress = (weight_after(pair, day) + pair.up(lead, points(pair.ratio))).clamp(0, 1)
                torch.addcmul(pair.fine_before + pair.up(rise), progress, detail, out=image)
        return Prediction(mean.numpy())
