"""STARFM (Gao et al. 2006, doi 10.1109/TGRS.2006.872081): similar pixels, weighted by what speaks for them.

Each band for itself. Similar to the centre of a window is a pixel that differs from it by less than
``2 std / classes`` and whose fine and coarse values agree about as well as the centre's; on a target day it counts if
its coarse value has changed by little more than the centre's. Its weight is ``1 / (S T D)``: the difference ``S`` of
fine and coarse, the coarse change ``T``, and ``D = 1 + distance / radius``.

Which pixels are similar belongs to the interval. Of them the nearest are kept, twenty by default (the original has all
of the window): what a day needs is bounded so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from stfgan_xr.predictors import Bracket, CoarseWindow
from stfgan_xr.predictors.simple import weight_after
from stfgan_xr.predictors.windowed import Ground, TwoSided
from stfgan_xr.predictors.windows import STRIP, Likeness, Similar, nearest_similar, strips, window_deviations

FINE_NOISE, COARSE_NOISE = 0.005, 0.005
"""Uncertainty of the sensors, in reflectance."""


@dataclass(frozen=True)
class Prepared:
    """What is the same on every day of an interval.

    Attributes
    ----------
    ground
        The bracket.
    departure
        Of either side ``(band, Y, X)``: fine minus coarse.
    similar
        Of either side the similar pixels of each band.
    """

    ground: Ground
    departure: tuple[Tensor, Tensor]
    similar: tuple[tuple[Similar, ...], tuple[Similar, ...]]


@dataclass(frozen=True)
class STARFM(TwoSided):
    """The spatial and temporal adaptive reflectance fusion model.

    Attributes
    ----------
    classes
        Of the land, more of them make similar pixels more alike. Four are usual; but a band alone tells little, and in
        wide windows over fields with sharp edges neighbours of any kind pass then (``benchmarks/methods.md``).
    count
        Similar pixels at most, of a band and side.
    pairs
        2: both observations of the bracket; 1: the one nearest in time, of two equally near the earlier.
    """

    classes: int = 16
    count: int = 20
    pairs: Literal[1, 2] = 2

    def memory(self, rows: int, columns: int, days: int) -> int:
        """Bytes for a block with its halo, roughly."""
        return rows * columns * len(self.bands) * (4 * self.count + 100) + 2**26

    def prepare(self, bracket: Bracket) -> Prepared:
        """Similar pixels of either side."""
        ground = self.ground(bracket)
        with torch.inference_mode():
            before, after = (fine - coarse for fine, coarse in zip(ground.fine, ground.coarse, strict=True))
            similar = (
                self._similar(ground, ground.fine[0], before),
                self._similar(ground, ground.fine[1], after),
            )
            return Prepared(ground, (before, after), similar)

    def _similar(self, ground: Ground, images: Tensor, departure: Tensor) -> tuple[Similar, ...]:
        deviations = window_deviations(images, ground.usable, self.radius)
        found = []
        for image, tolerance, apart in zip(images, deviations, departure.abs(), strict=True):
            noise = torch.full_like(tolerance, math.hypot(FINE_NOISE, COARSE_NOISE))
            tests = [Likeness(image, tolerance * (2 / self.classes)), Likeness(apart, noise, upwards=True)]
            found.append(nearest_similar(tests, ground.usable, self.radius, self.count))
        return tuple(found)

    def _on(self, prepared: Prepared, coarse: CoarseWindow, day: int) -> tuple[Tensor, Tensor | None]:
        ground = prepared.ground
        today = ground.on(coarse, day)
        pair = ground.pair
        changes = tuple(pair.up(today.image - other) for other in (pair.coarse_before, pair.coarse_after))
        before, after = (ground.inner(fine + change) for fine, change in zip(ground.fine, changes, strict=True))
        near = ground.before_is_nearer(day)
        allowed = (None, None) if self.pairs == 2 else (near, ~near)
        share = ground.inner(weight_after(pair, day)) if self.pairs == 2 else (~near).float()
        found = torch.lerp(before, after, share[None].to(before.dtype))
        for band, out in enumerate(found):
            sides = [
                _Side(fine[band], departure[band], change[band], similar[band], where)
                for fine, departure, change, similar, where in zip(
                    ground.fine, prepared.departure, changes, prepared.similar, allowed, strict=True
                )
            ]
            _weigh(sides, today.usable, self.radius, out)
            if self.spread:
                for side, alone in zip(sides, (before, after), strict=True):
                    _weigh([replace(side, where=None)], today.usable, self.radius, alone[band])
        found.masked_fill_(~ground.inner(today.usable), torch.nan)
        return found, (after - before).abs() if self.spread else None


@dataclass(frozen=True)
class _Side:
    """A band of one side on a day: the fine image, its difference from the coarse one, and the coarse change until the
    day, each ``(Y, X)``; the similar pixels, and which centres ``(y, x)`` take them, None for all."""

    fine: Tensor
    departure: Tensor
    change: Tensor
    similar: Similar
    where: Tensor | None

    def candidates(self, usable: Tensor, strip: slice, margin: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the candidates ``(pixel, count)`` predict, the products ``S T D``, and which are left."""
        places, there = self.similar.places(strip), self.similar.there(strip)
        predicted, departure, change = (
            image.reshape(-1)[places] for image in (self.fine + self.change, self.departure, self.change)
        )
        change = change.abs()
        rows = slice(strip.start + margin, strip.stop + margin)
        own = self.change[rows, margin : self.change.shape[1] - margin].abs().reshape(-1, 1)
        left = there & usable.reshape(-1)[places] & (change < own + math.sqrt(2) * COARSE_NOISE)
        if self.where is not None:
            left &= self.where[strip].reshape(-1, 1)
        return predicted, departure.abs() * change * (1 + self.similar.distances(strip) / margin), left


def _weigh(sides: list[_Side], usable: Tensor, margin: int, out: Tensor) -> None:
    """Weighted means of the candidates of all sides, written where there are any."""
    for strip in strips(out.shape[0], out.shape[1], STRIP // 4):
        parts = zip(*(side.candidates(usable, strip, margin) for side in sides), strict=True)
        predicted, products, left = (torch.cat(part, dim=1) for part in parts)
        weights = torch.where(left & (products > 0), 1 / products, 0.0)
        most = weights.amax(1, keepdim=True)
        # No difference or no change: the largest weight of the others, or the same for all.
        weights = torch.where(left & (products == 0), torch.where(most > 0, most, 1.0), weights)
        total = weights.sum(1)
        mean = torch.where(left, weights * predicted, 0.0).sum(1) / total
        out[strip] = torch.where(total > 0, mean, out[strip].reshape(-1)).reshape(out[strip].shape)
