"""Delta by another clock: how far a cell has come between its observations is read from the coarse series.

Delta written as ``F1 + up(C2 - C1) + w (F3 - F1 - up(C3 - C1))`` takes fine detail from the two observations in the
proportion ``w`` that has passed of the time between them. What changes abruptly, a harvest, a fire or a flood, has
changed wholly or not at all on any day. Here ``w`` is replaced by the progress ``p`` of the cell, the least-squares
solution of ``C2 - C1 = p (C3 - C1)`` over the bands with ``w`` as prior. The noise that decides between data and prior
is measured in each bracket: by how much the coarse change of the cells around differs from the mean fine change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket, CoarseWindow, Prediction
from stfgan_xr.predictors.simple import BracketTensors, share_of_time, to_tensors, weight_after

AROUND = 2
"""Cells on each side that the noise of a cell is measured over."""
NOISE_SHARE, LEAST_NOISE = 0.35, 0.002
"""Part of the mean square difference of coarse and fine change that is noise of one coarse image, and reflectance that
this noise is at least."""
CAUTION = 8.0
"""As many times the noise, in squares and a band, as a change must be to outweigh the calendar."""
SMOOTHING, REACH = 1.5, 4
"""Days of the Gaussian that the coarse level is smoothed by, and days on either side that it sees: its noise from day
to day would become the image's. Progress is read from the day itself: events are not shared with the days before."""
CELLS = AROUND + 1
"""Coarse halo: the noise around the cells that a bilinear value comes from."""


def halo(ratio: int) -> Halo:
    """What the method sees beyond a block.

    >>> halo(16)
    Halo(fine=48, coarse=3, days=4)
    """
    return Halo(fine=CELLS * ratio, coarse=CELLS, days=REACH)


def smoothed(coarse: CoarseWindow, day: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The coarse level ``(band, cy, cx)`` of a day: a Gaussian mean of the days around it."""
    first, last = coarse.series_days[0], coarse.series_days[-1]
    near = [other for other in range(day - REACH, day + REACH + 1) if first <= other <= last]
    weights = np.exp(-0.5 * ((np.array(near) - day) / SMOOTHING) ** 2)
    # One day after the other: a sum whose order does not depend on how many days a block holds.
    total = np.zeros(coarse.series.shape[1:], np.float32)
    for other, weight in zip(near, (weights / weights.sum()).astype(np.float32), strict=True):
        total += weight * coarse.on(other)
    return total


def cells_of(image: Tensor, ratio: int) -> Tensor:
    """Means ``(..., cy, cx)`` over cells of an image that starts and ends with whole ones."""
    flat = image.reshape(-1, 1, *image.shape[-2:])
    return functional.avg_pool2d(flat, ratio).reshape(*image.shape[:-2], *(s // ratio for s in image.shape[-2:]))


def evidence(change: Tensor, fine_change: Tensor) -> Tensor:
    """Weight ``(..., band, cy, cx)`` of each band's departure in the progress of a cell, if all cells around are known.

    Parameters
    ----------
    change
        ``(..., band, CY, CX)`` coarse change from before to after.
    fine_change
        Mean fine change of the same cells.
    """
    square = ((change - fine_change) ** 2).reshape(-1, 1, *change.shape[-2:])
    around = functional.avg_pool2d(square, 2 * AROUND + 1, stride=1)
    inner = change[..., AROUND:-AROUND, AROUND:-AROUND]
    noise = NOISE_SHARE * around.reshape(inner.shape) + LEAST_NOISE**2
    told = (inner**2 / noise).sum(-3, keepdim=True) + CAUTION * change.shape[-3]
    return inner / noise / told


@dataclass(frozen=True)
class Pace:
    """What of a bracket tells how far its cells have come, on the block and some cells around.

    Attributes
    ----------
    before, change, weight
        ``(band, cy, cx)`` coarse image before, its change until after, and :func:`evidence`.
    day_before, day_after
        ``(y, x)`` days of the fine observations on the same ground.
    ratio
        Fine pixels along a cell.
    beyond
        Cells that the bracket's coarse images have beyond these, on every side.
    """

    before: Tensor
    change: Tensor
    weight: Tensor
    day_before: Tensor
    day_after: Tensor
    ratio: int
    beyond: int

    @classmethod
    def of(cls, whole: BracketTensors, cells: int) -> Pace:
        """Of a bracket whose halo holds ``cells + AROUND`` cells of both kinds."""
        ratio, wide = whole.ratio, whole.crop((cells + AROUND) * whole.ratio)
        spare = whole.halo.coarse - cells - AROUND

        def inner(coarse: Tensor, cut: int) -> Tensor:
            return coarse[..., cut : coarse.shape[-2] - cut, cut : coarse.shape[-1] - cut]

        change = inner(whole.coarse_after - whole.coarse_before, spare)
        weight = evidence(change, cells_of(wide.fine_after - wide.fine_before, ratio))
        near = wide.crop(cells * ratio)
        beyond = spare + AROUND
        before = inner(whole.coarse_before, beyond)
        return cls(before, inner(change, AROUND), weight, near.day_before, near.day_after, ratio, beyond)

    def lead(self, day: int, coarse: Tensor) -> Tensor:
        """How far cells are ahead of the calendar on a day: ``(cy, cx)``, added to the share of time that has passed.

        Parameters
        ----------
        day
            Days since 1970-01-01.
        coarse
            ``(band, cy, cx)`` coarse image of the day on the cells of the pace.
        """
        # Pixels with one observation or none are of no use here, and the days of those without any mean nothing.
        both = (self.day_after > self.day_before).to(coarse.dtype)
        share = cells_of(both * share_of_time(self.day_before, self.day_after, day), self.ratio)
        passed = share / cells_of(both, self.ratio).clamp(min=1e-6)
        departure = coarse - self.before - passed * self.change
        return (passed + (self.weight * departure).sum(-3)).clamp(0, 1) - passed

    def lead_within(self, day: int, coarse: Tensor) -> Tensor:
        """:meth:`lead` on all cells ``(CY, CX)`` of a bracket, zero beyond those known."""
        cut = slice(self.beyond, -self.beyond)
        return functional.pad(self.lead(day, coarse[..., cut, cut]), [self.beyond] * 4)


@dataclass(frozen=True)
class Prepared:
    """What is the same on every day of an interval: the block's bracket, its pace with one cell around, and what the
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

    def prepare(self, bracket: Bracket) -> Prepared:
        """The evidence of an interval.

        Raises
        ------
        InputError
            If the bracket has another ratio, of which halo and cells would be others.
        """
        if bracket.ratio != self.ratio:
            raise InputError(f"progress was made for cells of {self.ratio} pixels, the data has {bracket.ratio}")
        whole = to_tensors(bracket, torch.device("cpu"))
        pair = whole.crop(0)
        detail = pair.fine_after - pair.fine_before - pair.up(whole.coarse_after - whole.coarse_before)
        return Prepared(pair, Pace.of(whole, 1), detail)

    def predict(self, prepared: Prepared, coarse: CoarseWindow) -> Prediction:
        """Mean ``(day, band, y, x)`` of the target days."""
        with torch.inference_mode():
            return Prediction(np.stack([self._on(prepared, coarse, day).numpy() for day in coarse.days]))

    def _on(self, prepared: Prepared, coarse: CoarseWindow, day: int) -> Tensor:
        pair = prepared.pair
        lead = prepared.pace.lead_within(day, torch.from_numpy(coarse.on(day)))
        progress = (weight_after(pair, day) + pair.up(lead)).clamp(0, 1)
        level = pair.up(torch.from_numpy(smoothed(coarse, day)) - pair.coarse_before)
        return pair.fine_before + level + progress * prepared.detail
