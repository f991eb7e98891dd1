"""Brackets and days as tensors, one or a batch of them: what the networks of all trained methods see.

The same for training and prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stfgan_xr.predictors import Bracket, CoarseWindow
from stfgan_xr.predictors.networks import crop
from stfgan_xr.predictors.progress import Pace, smoothed
from stfgan_xr.predictors.resample import upsample


@dataclass(frozen=True)
class Margins:
    """Fine pixels beyond the block, on every side, of what the networks read and give; multiples of 4.

    Attributes
    ----------
    fine1, coarse1
        Fine and coarse images of stage 1.
    result1
        The result of stage 1, which is what the coarse branch of stage 2 reads.
    fine2
        Fine images of stage 2.
    """

    fine1: int
    coarse1: int
    result1: int
    fine2: int

    @classmethod
    def same(cls, margin: int) -> Margins:
        """The whole array everywhere, as in training."""
        return cls(margin, margin, margin, margin)


@dataclass(frozen=True)
class Pair:
    """A bracket, or a batch of them, as tensors whose sides are multiples of the network's unit.

    ``n`` is 1 for an interval whose days are batched, or one bracket for each day.

    Attributes
    ----------
    fine
        ``(n, 2b, y, x)`` reflectance before and after, with ``margins.fine1`` on every side.
    coarse_before, coarse_after
        ``(n, b, cy, cx)``.
    day_before, day_after
        ``(n, y, x)``.
    resampled
        ``(n, 2, y, x)`` 1 where the fine image before or after was interpolated from another grid, else 0; None:
        nowhere.
    """

    fine: Tensor
    coarse_before: Tensor
    coarse_after: Tensor
    day_before: Tensor
    day_after: Tensor
    resampled: Tensor | None
    ratio: int
    coarse_halo: int
    margins: Margins

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the block."""
        rows, columns = self.fine.shape[-2:]
        return rows - 2 * self.margins.fine1, columns - 2 * self.margins.fine1

    def up(self, coarse: Tensor, margin: int, step: int = 1, points: int = 1) -> Tensor:
        """Coarse cells ``(n, b, cy, cx)`` on the block plus ``margin`` fine pixels, pixels of ``step``.

        With ``points`` along a cell, ``(n, b, points cy, points cx)``.
        """
        rows, columns = ((side + 2 * margin) // step for side in self.shape)
        ratio, halo = self.ratio // points, self.coarse_halo * points
        return upsample(coarse, (rows, columns), ratio=ratio, halo=halo, start=(-margin, -margin), step=step)

    def cut(self, margin: int) -> Tensor:
        """The fine images of the block plus ``margin``."""
        return crop(self.fine, self.margins.fine1 - margin)


@dataclass(frozen=True)
class Targets:
    """Target days of a :class:`Pair`, one interval's or one for each of its brackets.

    Attributes
    ----------
    days
        ``(n,)`` days since 1970-01-01.
    coarse
        ``(n, b, cy, cx)`` coarse images of the days.
    level
        ``(n, b, cy, cx)`` :func:`stfgan_xr.predictors.progress.smoothed` of them.
    lead
        ``(n, 1, y, x)`` :meth:`stfgan_xr.predictors.progress.Pace.lead` of some points along each cell.
    rise
        ``(n, b, cy, cx)`` :meth:`stfgan_xr.predictors.progress.Pace.rise`; None: what the level has risen since the
        observation before. Lead and rise are zero where the result does not see them.
    """

    days: Tensor
    coarse: Tensor
    level: Tensor
    lead: Tensor
    rise: Tensor | None = None

    @classmethod
    def of(cls, pace: Pace | None, window: CoarseWindow, days: Sequence[int], device: torch.device) -> Targets:
        """Days of one interval, from its pace; without one as in :meth:`by_calendar`."""
        number = torch.tensor(days, device=device)
        coarse = torch.from_numpy(np.stack([window.on(day) for day in days])).to(device)
        if pace is None:
            return cls.by_calendar(number, coarse)
        level = torch.from_numpy(np.stack([smoothed(window, day) for day in days])).to(device)
        rise, lead = zip(*(pace.on(window, day) for day in days), strict=True)
        return cls(number, coarse, level, torch.stack(lead)[:, None], torch.stack(rise))

    @classmethod
    def by_calendar(cls, days: Tensor, coarse: Tensor) -> Targets:
        """Days of which delta makes its image: nothing runs ahead of the date, and the level is the day's own."""
        return cls(days, coarse, coarse, torch.zeros_like(coarse[:, :1]))

    def placed(self, among: Sequence[int], count: int) -> Targets:
        """With the bands at their places among ``count``; see :func:`placed`."""
        coarse, level = (placed(image, among, count) for image in (self.coarse, self.level))
        rise = None if self.rise is None else placed(self.rise, among, count, 0)
        return replace(self, coarse=coarse, level=level, rise=rise)


@dataclass(frozen=True)
class Batch:
    """Patches as tensors: what a prediction sees, and the truth where it is clear."""

    pair: Pair
    targets: Targets
    target: Tensor
    clear: Tensor


ABSENT = 0.5
"""Reflectance of bands that the data does not have: in the middle of what the networks see."""


def placed(image: Tensor, among: Sequence[int], count: int, absent: float = ABSENT) -> Tensor:
    """Bands ``(..., len(among), y, x)`` at their places among ``count``, the others ``absent``."""
    if list(among) == list(range(count)):
        return image
    found = torch.full((*image.shape[:-3], count, *image.shape[-2:]), absent, dtype=image.dtype, device=image.device)
    found[..., list(among), :, :] = image
    return found


def to_pair(
    bracket: Bracket, margins: Margins, unit: int, device: torch.device, among: Sequence[int], count: int
) -> Pair:
    """A bracket on a device, its bands at the places ``among`` of ``count``.

    Its far edges are mirrored to multiples of ``unit`` fine pixels, which its block does not see.
    """
    rest = [(-(side - 2 * bracket.halo.fine)) % unit for side in bracket.day_before.shape]
    cut = bracket.halo.fine - margins.fine1

    def fine(array: np.ndarray[Any, Any]) -> Tensor:
        padded = np.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, n) for n in rest], mode="symmetric")
        return crop(torch.from_numpy(padded).to(device), cut)[None]

    images = torch.cat(
        [placed(fine(image), among, count) for image in (bracket.fine_before, bracket.fine_after)], dim=1
    )
    both = (bracket.coarse_before, bracket.coarse_after)
    cells = [placed(torch.from_numpy(array).to(device)[None], among, count) for array in both]
    acquired = [fine(array) for array in (bracket.day_before, bracket.day_after)]
    marks = (bracket.resampled_before, bracket.resampled_after)
    resampled = None
    if any(mark is not None for mark in marks):
        nowhere = np.zeros(bracket.day_before.shape, np.float32)
        resampled = torch.stack([fine(nowhere if m is None else m.astype(np.float32)) for m in marks], dim=1)
    (before, after), (first, second) = cells, acquired
    return Pair(images, before, after, first, second, resampled, bracket.ratio, bracket.halo.coarse, margins)


def average(image: Tensor, step: int) -> Tensor:
    """Means over ``step x step`` pixels."""
    return functional.avg_pool2d(image, step) if step > 1 else image


def usable(clear: Tensor, step: int) -> Tensor:
    """Where every one of ``step x step`` pixels is clear: ``(n, b, y, x)``."""
    return average(clear.float(), step) == 1


def position(pair: Pair, days: Tensor, margin: int) -> Tensor:
    """Where each day lies between the observations of a pixel: ``(n, 1, y, x)``, 0 before to 1 after."""
    day_before = crop(pair.day_before, pair.margins.fine1 - margin)
    span = (crop(pair.day_after, pair.margins.fine1 - margin) - day_before).clamp(min=1)
    return ((days[:, None, None] - day_before) / span).clamp(0, 1)[:, None]
