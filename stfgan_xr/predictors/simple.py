"""The methods without a window: persistence, linear and delta, the bar every other method has to clear.

Delta is the mean of ``F1 + up(C2 - C1)`` and ``F3 + up(C2 - C3)`` weighted by closeness in time; it is also the anchor
that STFGAN corrects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket, CoarseWindow, Prediction
from stfgan_xr.predictors.resample import upsample

NO_HALO, ONE_CELL = Halo(fine=0, coarse=0), Halo(fine=0, coarse=1)


@dataclass(frozen=True)
class BracketTensors:
    """A :class:`~stfgan_xr.predictors.Bracket` as tensors, cut to the block plus ``margin`` fine pixels."""

    fine_before: Tensor
    fine_after: Tensor
    coarse_before: Tensor
    coarse_after: Tensor
    day_before: Tensor
    day_after: Tensor
    ratio: int
    halo: Halo
    margin: int

    def up(self, coarse: Tensor, points: int = 1) -> Tensor:
        """Coarse cells ``(..., cy, cx)``, or ``points`` along each, at the fine pixels of the block plus margin."""
        rows, columns = self.day_before.shape
        start, halo = (-self.margin, -self.margin), self.halo.coarse * points
        return upsample(coarse, (rows, columns), ratio=self.ratio // points, halo=halo, start=start)

    def crop(self, margin: int) -> BracketTensors:
        """The same with a smaller margin."""
        cut = self.margin - margin
        if cut == 0:
            return self
        inner = slice(cut, -cut)
        names = ("fine_before", "fine_after", "day_before", "day_after")
        return replace(self, margin=margin, **{name: getattr(self, name)[..., inner, inner] for name in names})


def to_tensors(bracket: Bracket, device: torch.device) -> BracketTensors:
    """The arrays of a bracket on a device, with the whole fine halo as margin."""
    names = ("fine_before", "fine_after", "coarse_before", "coarse_after", "day_before", "day_after")
    tensors = {name: torch.from_numpy(getattr(bracket, name)).to(device) for name in names}
    return BracketTensors(**tensors, ratio=bracket.ratio, halo=bracket.halo, margin=bracket.halo.fine)


def share_of_time(day_before: Tensor, day_after: Tensor, day: int) -> Tensor:
    """Share of the time between two days that has passed on a day, held within 0 to 1."""
    return ((day - day_before) / (day_after - day_before).clamp(min=1)).clamp(0, 1)


def weight_after(pair: BracketTensors, day: int) -> Tensor:
    """Weight ``(y, x)`` of the later observation: 0 on the day of the earlier one, 1 on its own, held outside."""
    return share_of_time(pair.day_before, pair.day_after, day)


def linear(pair: BracketTensors, day: int) -> Tensor:
    """Fine reflectance ``(band, y, x)`` interpolated in time."""
    return torch.lerp(pair.fine_before, pair.fine_after, weight_after(pair, day)[None])


def detail(pair: BracketTensors) -> Tensor:
    """What the fine change between the observations has that the coarse one has not: ``(band, y, x)``."""
    return pair.fine_after - pair.fine_before - pair.up(pair.coarse_after - pair.coarse_before)


def delta(pair: BracketTensors, detail: Tensor, share: Tensor, coarse: Tensor, out: Tensor | None = None) -> Tensor:
    """Linear interpolation plus the coarse image's departure from its own: ``(band, y, x)``.

    ``share`` ``(y, x)`` is the weight of the later observation, such as :func:`weight_after`. Algebraically the
    weighted mean of ``F1 + up(C2 - C1)`` and ``F3 + up(C2 - C3)`` (EFAST without its cloud weights, Senty et al.
    2024), written with :func:`detail`, which is the same on every day, so that a day costs one interpolation.
    """
    return torch.addcmul(pair.fine_before + pair.up(coarse - pair.coarse_before), share[None], detail, out=out)


def moved(pair: BracketTensors, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Each observation ``(band, y, x)`` plus the coarse change since or until a day."""
    return (
        pair.fine_before + pair.up(coarse - pair.coarse_before),
        pair.fine_after + pair.up(coarse - pair.coarse_after),
    )


def spreads(pair: BracketTensors, coarse: CoarseWindow) -> npt.NDArray[np.float32]:
    """By how much :func:`moved` observations differ on the target days, ``(day, band, y, x)``."""
    with torch.inference_mode():
        sides = (moved(pair, torch.from_numpy(coarse.on(day))) for day in coarse.days)
        return np.stack([(after - before).abs().numpy() for before, after in sides])


@dataclass(frozen=True)
class Persistence:
    """The observation nearest in time; of two equally near the earlier."""

    bands: tuple[str, ...]
    halo: Halo = NO_HALO

    def prepare(self, bracket: Bracket) -> BracketTensors:
        """The bracket as tensors."""
        return to_tensors(bracket, torch.device("cpu"))

    def _on(self, pair: BracketTensors, day: int) -> Tensor:
        before = (day - pair.day_before).abs() <= (pair.day_after - day).abs()
        return torch.where(before, pair.fine_before, pair.fine_after)

    def predict(self, prepared: BracketTensors, coarse: CoarseWindow) -> Prediction:
        """Mean ``(day, band, y, x)`` of the target days."""
        with torch.inference_mode():
            return Prediction(torch.stack([self._on(prepared, day) for day in coarse.days]).numpy())


@dataclass(frozen=True)
class Linear(Persistence):
    """The observations before and after, interpolated in time."""

    def _on(self, pair: BracketTensors, day: int) -> Tensor:
        return linear(pair, day)


@dataclass(frozen=True)
class Changed:
    """A bracket and its :func:`detail`."""

    pair: BracketTensors
    detail: Tensor


@dataclass(frozen=True)
class Delta:
    """Each observation plus the coarse change since or until then, weighted by closeness in time.

    Attributes
    ----------
    bands
        Names of the bands.
    spread
        Predictions tell by how much the two differ.
    """

    bands: tuple[str, ...]
    halo: Halo = ONE_CELL
    spread: bool = False

    def prepare(self, bracket: Bracket) -> Changed:
        """The bracket and what is the same on all its days."""
        pair = to_tensors(bracket, torch.device("cpu"))
        return Changed(pair, detail(pair))

    def predict(self, prepared: Changed, coarse: CoarseWindow) -> Prediction:
        """Mean ``(day, band, y, x)`` of the target days."""
        pair, detail = prepared.pair, prepared.detail
        with torch.inference_mode():
            mean = detail.new_empty(len(coarse.days), *detail.shape)
            for image, day in zip(mean, coarse.days, strict=True):
                delta(pair, detail, weight_after(pair, day), torch.from_numpy(coarse.on(day)), out=image)
        return Prediction(mean.numpy(), spread=spreads(pair, coarse) if self.spread else None)
