"""Fit-FC (Wang and Atkinson 2018, doi 10.1016/j.rse.2017.10.046): regression of coarse images, filtered and corrected.

Over three by three cells the coarse image of the day is regressed on that of the observation, and the line applied to
the fine image. What the regression leaves of a cell is added, interpolated by a bicubic. Both are smoothed over the
twenty pixels of a window that are most like its centre in the fine image, weighted by ``1 / (1 + distance / radius)``.

The method has one observation: the one nearest in time. Similar pixels and their weights belong to it; a day costs the
regression of cells and one weighted sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket
from stfgan_xr.predictors.resample import positions
from stfgan_xr.predictors.windowed import Day, Ground, OneSided
from stfgan_xr.predictors.windows import Similar, most_similar, smoothed

AROUND, CUBIC = 1, 2
"""Cells on each side of a regression, and of a bicubic value."""
LEAST_VARIANCE = 1e-10
"""Of a coarse image over the cells of a regression: below it the line has the slope 1."""


@dataclass(frozen=True)
class Prepared:
    """What is the same on every day of an interval: the bracket, and the similar pixels before and after."""

    ground: Ground
    similar: tuple[Similar, Similar]


@dataclass(frozen=True)
class FitFC(OneSided):
    """Regression model fitting, spatial filtering and residual compensation.

    Attributes
    ----------
    count
        Similar pixels at most.
    """

    radius: int = 20
    count: int = 20

    @property
    def halo(self) -> Halo:
        """The windows, and around the cells of their pixels those of the bicubic and of its residuals' regressions."""
        return Halo(fine=self.radius, coarse=-(-self.radius // self.ratio) + CUBIC + AROUND)

    def memory(self, rows: int, columns: int, days: int) -> int:
        """Bytes for a block with its halo, roughly."""
        return rows * columns * (4 * self.count + 50 * len(self.bands)) + 2**26

    def prepare(self, bracket: Bracket) -> Prepared:
        """Similar pixels of either side."""
        ground = self.ground(bracket)
        with torch.inference_mode():
            before, after = (most_similar(image, ground.usable, self.radius, self.count) for image in ground.fine)
            return Prepared(ground, (before, after))

    def _from(self, prepared: Prepared, number: int, today: Day) -> Tensor:
        ground, pair = prepared.ground, prepared.ground.pair
        other = (pair.coarse_before, pair.coarse_after)[number]
        return smoothed(_fitted(ground.fine[number], other, today, ground), today.usable, prepared.similar[number])


def _fitted(fine: Tensor, other: Tensor, today: Day, ground: Ground) -> Tensor:
    """The regression of cells applied to the fine image, plus the residual: ``(band, Y, X)``."""
    slope, level = regression(other, today.image, today.known)
    inner = slice(AROUND, -AROUND)
    residual = today.image[:, inner, inner] - slope * other[:, inner, inner] - level
    pair, ratio, (rows, columns) = ground.pair, ground.pair.ratio, fine.shape[-2:]
    spare = pair.halo.coarse - AROUND
    places = [
        torch.div(torch.arange(side, device=fine.device) - pair.margin + spare * ratio, ratio, rounding_mode="floor")
        for side in (rows, columns)
    ]
    own = [part[:, places[0]][:, :, places[1]] for part in (slope, level)]
    weight = today.known[inner, inner].to(residual.dtype)
    start = (-pair.margin, -pair.margin)
    added = bicubic(residual * weight, (rows, columns), ratio=ratio, halo=spare, start=start)
    if not bool(today.known.all()):
        added = added / bicubic(weight[None], (rows, columns), ratio=ratio, halo=spare, start=start).clamp(min=0.25)
    return own[0] * fine + own[1] + added


def regression(x: Tensor, y: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Lines ``y = slope x + level`` over the known cells of three by three.

    Parameters
    ----------
    x, y
        ``(band, CY, CX)``.
    known
        ``(CY, CX)``.

    Returns
    -------
    tuple
        ``(band, CY - 2, CX - 2)`` each. Where ``x`` hardly varies the slope is 1.

    >>> x = torch.arange(9.0).reshape(1, 3, 3)
    >>> slope, level = regression(x, 2 * x + 1, torch.ones(3, 3, dtype=torch.bool))
    >>> slope.item(), level.item()
    (2.0, 1.0)
    """
    weight = known.double()
    x, y = x.double() * weight, y.double() * weight
    count, sx, sy, sxx, sxy = (_around(part) for part in (weight[None], x, y, x * x, x * y))
    count = count.clamp(min=1)
    variance, covariance = sxx / count - (sx / count) ** 2, sxy / count - sx * sy / count**2
    slope = torch.where(variance > LEAST_VARIANCE, covariance / variance.clamp(min=LEAST_VARIANCE), 1.0)
    return slope.float(), ((sy - slope * sx) / count).float()


def _around(cells: Tensor) -> Tensor:
    """Sums over three by three cells, always in the same order."""
    rows, columns = cells.shape[-2] - 2 * AROUND, cells.shape[-1] - 2 * AROUND
    parts = [cells[:, y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def bicubic(
    coarse: Tensor, shape: tuple[int, int], *, ratio: int, halo: int, start: tuple[int, int] = (0, 0)
) -> Tensor:
    """Bicubic values (Keys 1981, a = -1/2) of coarse cells at the centres of fine pixels; as
    :func:`~stfgan_xr.predictors.resample.upsample`."""
    for axis, (count, first) in zip((-2, -1), zip(shape, start, strict=True), strict=True):
        lower, part = positions(count, first, 1, ratio, halo)
        part = part.to(coarse.device, coarse.dtype)
        part = part[:, None] if axis == -2 else part
        total = None
        for step in range(-1, 3):
            at = (lower + step).clamp(0, coarse.shape[axis] - 1).to(coarse.device)
            term = coarse.index_select(axis, at) * _keys(part - step)
            total = term if total is None else total + term
        assert total is not None
        coarse = total
    return coarse


def _keys(away: Tensor) -> Tensor:
    """Weight of a cell some cells away."""
    x = away.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
