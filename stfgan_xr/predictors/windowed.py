"""What the methods with moving windows have in common: their settings, and where of a block they may look.

Coarse images are taken to the fine grid bilinearly. A pixel is used, as a centre or in a window, if it holds a fine
observation, lies on the grid, and all coarse cells that its value is interpolated from are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stfgan_xr.grid import RATIO, Halo
from stfgan_xr.predictors import Bool, Bracket, CoarseWindow, Prediction
from stfgan_xr.predictors.simple import BracketTensors, to_tensors, weight_after


@dataclass(frozen=True)
class Day:
    """A target day of a block.

    Attributes
    ----------
    image
        ``(band, CY, CX)`` coarse reflectance.
    known
        ``(CY, CX)``, where it and the coarse images of the bracket are.
    usable
        ``(Y, X)``, pixels of use on that day.
    """

    image: Tensor
    known: Tensor
    usable: Tensor


@dataclass(frozen=True)
class Ground:
    """A bracket with its halo as margin, and where it may be used.

    Attributes
    ----------
    pair
        The bracket.
    usable
        ``(Y, X)``.
    known
        ``(CY, CX)``, where the coarse images of the bracket are.
    """

    pair: BracketTensors
    usable: Tensor
    known: Tensor

    @classmethod
    def of(cls, bracket: Bracket, device: torch.device) -> Ground:
        """Of a bracket, wherever it is known."""
        pair = to_tensors(bracket, device)
        usable = _mask(bracket.known, pair.day_before.shape, device)
        known = _mask(bracket.coarse_known, pair.coarse_before.shape[1:], device)
        return cls(pair, usable & _supported(pair, known), known)

    @property
    def fine(self) -> tuple[Tensor, Tensor]:
        """The fine images before and after, ``(band, Y, X)``."""
        return self.pair.fine_before, self.pair.fine_after

    @property
    def coarse(self) -> tuple[Tensor, Tensor]:
        """The coarse images before and after on the fine grid, ``(band, Y, X)``."""
        return self.pair.up(self.pair.coarse_before), self.pair.up(self.pair.coarse_after)

    def inner(self, image: Tensor) -> Tensor:
        """An image ``(..., Y, X)`` without the margin."""
        return self.near(image, 0)

    def near(self, image: Tensor, margin: int) -> Tensor:
        """An image ``(..., Y, X)`` with a smaller margin."""
        cut = self.pair.margin - margin
        part: Tensor = image[..., cut : image.shape[-2] - cut, cut : image.shape[-1] - cut]
        return part

    def on(self, coarse: CoarseWindow, day: int) -> Day:
        """A day on the cells of the bracket."""
        number = day - coarse.series_days[0]
        image = torch.from_numpy(coarse.on(day)).to(self.usable.device)
        if coarse.known is None or coarse.known[number].all():
            return Day(image, self.known, self.usable)
        known = self.known & torch.from_numpy(coarse.known[number]).to(self.usable.device)
        return Day(image, known, self.usable & _supported(self.pair, known))

    def before_is_nearer(self, day: int) -> Tensor:
        """Where the observation before is as near in time as the one after, or nearer: ``(y, x)`` of the block."""
        before, after = self.inner(self.pair.day_before), self.inner(self.pair.day_after)
        return (day - before).abs() <= (after - day).abs()


def _mask(known: Bool | None, shape: Sequence[int], device: torch.device) -> Tensor:
    if known is None:
        return torch.ones(tuple(shape), dtype=torch.bool, device=device)
    return torch.from_numpy(known).to(device)


def _supported(pair: BracketTensors, known: Tensor) -> Tensor:
    """Pixels ``(Y, X)`` all of whose cells are known."""
    return pair.up((~known).float()) == 0


@dataclass(frozen=True)
class Windowed:
    """Settings of a method with windows.

    Attributes
    ----------
    bands
        Names of the bands.
    ratio
        Fine pixels along a coarse cell.
    radius
        Fine pixels from the centre of a window to its edge.
    device
        ``"auto"`` takes a GPU if there is one.
    """

    bands: tuple[str, ...]
    ratio: int = RATIO
    radius: int = 25
    device: str = "auto"

    @property
    def halo(self) -> Halo:
        """The windows, and the cells that their pixels are interpolated from."""
        return Halo(fine=self.radius, coarse=-(-self.radius // self.ratio) + 1)

    def ground(self, bracket: Bracket) -> Ground:
        """A bracket on the device.

        Raises
        ------
        InputError
            If it has another ratio, of which halo and cells would be others.
        """
        bracket.refuse_other(self.ratio, type(self).__name__.lower())
        return Ground.of(bracket, torch.device(self._device))

    @property
    def _device(self) -> str:
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    def predict(self, prepared: Any, coarse: CoarseWindow) -> Prediction:
        """Mean ``(day, band, y, x)`` of the target days, NaN where nothing of the window is of use."""
        with torch.inference_mode():
            means, spreads = zip(*(self._on(prepared, coarse, day) for day in coarse.days), strict=True)
            told = [spread.cpu().numpy() for spread in spreads if spread is not None]
            return Prediction(np.stack([mean.cpu().numpy() for mean in means]), spread=np.stack(told) if told else None)

    def _on(self, prepared: Any, coarse: CoarseWindow, day: int) -> tuple[Tensor, Tensor | None]:
        """The mean ``(band, y, x)`` of a day and, if it is asked for, the spread."""
        raise NotImplementedError


@dataclass(frozen=True)
class TwoSided(Windowed):
    """Settings of a method that predicts from before and from after.

    Attributes
    ----------
    spread
        Predictions tell by how much the two differ, each taken alone.
    """

    spread: bool = False


@dataclass(frozen=True)
class OneSided(TwoSided):
    """Settings of a method that has one observation.

    Attributes
    ----------
    pairs
        1: the observation nearest in time, of two equally near the earlier; 2: from both, weighted by closeness in
        time, which the publications do not do.
    """

    pairs: Literal[1, 2] = 1

    def _on(self, prepared: Any, coarse: CoarseWindow, day: int) -> tuple[Tensor, Tensor | None]:
        ground: Ground = prepared.ground
        today = ground.on(coarse, day)
        share = ground.inner(weight_after(ground.pair, day))
        if self.pairs == 1:
            share = (~ground.before_is_nearer(day)).to(share.dtype)
        # A side that no pixel takes is not computed.
        sides = {
            number: self._from(prepared, number, today)
            for number, weight in enumerate((1 - share, share))
            if self.spread or bool((weight > 0).any())
        }
        found = torch.zeros_like(ground.inner(ground.pair.fine_before))
        for number, side in sides.items():
            weight = share if number else 1 - share
            found += torch.where(weight > 0, side * weight, 0.0)
        found.masked_fill_(~ground.inner(today.usable), torch.nan)
        return found, (sides[1] - sides[0]).abs() if self.spread else None

    def _from(self, prepared: Any, number: int, today: Day) -> Tensor:
        """What the observation before (0) or after (1) says, ``(band, y, x)``."""
        raise NotImplementedError
