"""ESTARFM (Zhu et al. 2010, doi 10.1016/j.rse.2010.05.032): similar pixels share the coarse change, converted to fine.

Similar are the nearest twenty pixels of a window that differ from its centre by less than ``2 std / classes`` in every
band of both dates. They weigh as much as fine and coarse go together there, and as they are near. What they say of the
coarse change is multiplied by the slope of fine on coarse over them, where that can be told. The predictions from
either side weigh as little as the coarse image of their day differs from the target day's over the window.

Only the weighted sum of the coarse change and the means over windows belong to a day.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy import stats
from torch import Tensor

from stfgan_xr.predictors import Bracket, CoarseWindow
from stfgan_xr.predictors.windowed import Ground, TwoSided
from stfgan_xr.predictors.windows import (
    Likeness,
    Similar,
    nearest_similar,
    strips,
    weighted_means,
    window_deviations,
    window_means,
)

LEAST_CANDIDATES = 6
"""With fewer similar pixels the mean change of the window is taken."""
LEAST_CHANGE, SIGNIFICANT, STEEPEST = 0.02, 0.05, 5.0
"""Of the slope: mean coarse change in reflectance, level of the F-test, and what it is at most."""


@dataclass(frozen=True)
class Prepared:
    """What is the same on every day of an interval.

    Attributes
    ----------
    ground
        The bracket.
    similar, weights
        The similar pixels and their weights ``(y, x, count)``.
    slope
        ``(band, y, x)`` of fine on coarse.
    """

    ground: Ground
    similar: Similar
    weights: Tensor
    slope: Tensor


@dataclass(frozen=True)
class ESTARFM(TwoSided):
    """The enhanced spatial and temporal adaptive reflectance fusion model; needs observations before and after.

    Attributes
    ----------
    classes
        Of the land, more of them make similar pixels more alike.
    count
        Similar pixels at most.
    """

    classes: int = 4
    count: int = 20

    def memory(self, rows: int, columns: int, days: int) -> int:
        """Bytes for a block with its halo, roughly."""
        return rows * columns * (44 * len(self.bands) * 3 + 6 * self.count) + 2**26

    def prepare(self, bracket: Bracket) -> Prepared:
        """Similar pixels, their weights, and the slope."""
        ground = self.ground(bracket)
        with torch.inference_mode():
            tests = [
                Likeness(image, tolerance * (2 / self.classes))
                for images in ground.fine
                for image, tolerance in zip(
                    images, window_deviations(images, ground.usable, self.radius), strict=True
                )
            ]  # fmt: skip
            similar = nearest_similar(tests, ground.usable, self.radius, self.count)
            return Prepared(ground, similar, self._weights(ground, similar), _slopes(ground, similar))

    def _weights(self, ground: Ground, similar: Similar) -> Tensor:
        together = _correlation(ground).reshape(-1)
        weights = torch.empty(similar.numbers.shape, device=together.device)
        for strip in strips(*similar.shape):
            apart = 1 + similar.distances(strip).double() / self.radius
            costs = (1 - together[similar.places(strip)]) * apart + 1e-7
            found = similar.there(strip) / costs
            weights[strip] = (found / found.sum(1, keepdim=True).clamp(min=1e-30)).reshape(weights[strip].shape)
        return weights

    def _on(self, prepared: Prepared, coarse: CoarseWindow, day: int) -> tuple[Tensor, Tensor | None]:
        ground, similar = prepared.ground, prepared.similar
        today = ground.on(coarse, day)
        pair, rich = ground.pair, similar.found >= LEAST_CANDIDATES
        changes = [pair.up(today.image - other) for other in (pair.coarse_before, pair.coarse_after)]
        means = [window_means(change, today.usable, self.radius) for change in changes]
        shared = _shared(prepared, torch.cat(changes), today.usable).chunk(2)
        before, after = (
            ground.inner(fine) + torch.where(rich, prepared.slope * own, mean.float())
            for fine, own, mean in zip(ground.fine, shared, means, strict=True)
        )
        total = means[0].abs() + means[1].abs()
        # 1 / |change| of either side, normalised.
        share = torch.where(total > 0, means[0].abs() / total, 0.5).float()
        found = torch.lerp(before, after, share)
        beyond = ((found < 0) | (found > 1)) & (similar.found > 0)
        if beyond.any():
            levels = _shared(prepared, torch.cat(ground.fine), ground.usable)
            bands = len(found)
            found = torch.where(beyond, torch.lerp(levels[:bands], levels[bands:], share), found)
        found.masked_fill_(~ground.inner(today.usable), torch.nan)
        return found, (after - before).abs() if self.spread else None


def _shared(prepared: Prepared, images: Tensor, usable: Tensor) -> Tensor:
    """Weighted means ``(band, y, x)`` of images ``(band, Y, X)`` over the similar pixels that are of use."""
    weights = prepared.weights
    return weighted_means(images, usable, prepared.similar, lambda strip: weights[strip].flatten(0, 1))


def _correlation(ground: Ground) -> Tensor:
    """Of fine and coarse over bands and both dates, ``(Y, X)`` float64; 0 where either is constant."""
    fine, coarse = (torch.cat(images).double() for images in (ground.fine, ground.coarse))
    fine, coarse = fine - fine.mean(0), coarse - coarse.mean(0)
    spread = (fine.square().sum(0) * coarse.square().sum(0)).sqrt()
    return torch.where(spread > 1e-10, (fine * coarse).sum(0) / spread.clamp(min=1e-10), 0.0)


@lru_cache(maxsize=1)
def _least_explained(count: int) -> Tensor:
    """Share of the variance that a line through ``2 n`` points must explain to be significant, for n up to a count."""
    points = 2 * torch.arange(count + 1, dtype=torch.float64)
    critical = torch.from_numpy(stats.f.isf(SIGNIFICANT, 1, (points - 2).clamp(min=1).numpy()))
    return critical / (critical + (points - 2).clamp(min=1))


def _slopes(ground: Ground, similar: Similar) -> Tensor:
    """Slope ``(band, y, x)`` of fine on coarse over the similar pixels of both dates, 1 where it cannot be told."""
    bands = len(ground.fine[0])
    table = torch.cat([*ground.coarse, *ground.fine]).flatten(1).T.contiguous()
    slopes = torch.empty((bands, *similar.shape), device=table.device)
    for strip in strips(*similar.shape):
        places, there = similar.places(strip), similar.there(strip)
        sums = torch.zeros((6, len(places), bands), dtype=torch.float64, device=table.device)
        # One after the other: what is decided by the sums must not depend on the tile.
        for place, counts in zip(places.T, there.T, strict=True):
            before, after, *fine = (part * counts[:, None] for part in torch.split(table[place].double(), bands, dim=1))
            sums[5] += after - before
            for x, y in zip((before, after), fine, strict=True):
                for total, part in zip(sums, (x, y, x * x, x * y, y * y), strict=False):
                    total += part
        slopes[:, strip] = _slope(sums, similar.found[strip].reshape(-1), similar.numbers.shape[-1]).T.reshape(
            bands, -1, similar.shape[1]
        )
    return slopes


def _slope(sums: Tensor, found: Tensor, count: int) -> Tensor:
    """From sums ``(6, pixel, band)`` of x, y, x x, x y, y y and the coarse change."""
    points = 2 * found[:, None].clamp(min=1).double()
    x, y, xx, xy, yy, change = sums
    xx, xy, yy = xx - x * x / points, xy - x * y / points, yy - y * y / points
    slope = xy / xx.clamp(min=1e-12)
    least = _least_explained(count).to(sums.device)[found.long()][:, None]
    told = (2 * change.abs() >= LEAST_CHANGE * points) & (xx > 1e-12) & (xy * xy >= least * xx * yy)
    told &= (slope > 0) & (slope <= STEEPEST) & (found[:, None] >= LEAST_CANDIDATES)
    return torch.where(told, slope, 1.0).float()
