"""EFAST's weights (Senty et al. 2024) on delta: an observation counts less where its image has clouds near by.

Masks miss the haze around clouds and the edges of shadows. Delta weighs the observations before and after by closeness
in time; here each is weighed as well by the distance to the nearest pixel that is not clear in its own image, up to a
reach from which on distance makes no difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket, CoarseWindow, Prediction
from stfgan_xr.predictors.simple import Changed, delta, detail, spreads, to_tensors, weight_after


@dataclass(frozen=True)
class Prepared:
    """What delta knows, and how far each observation ``(y, x)`` is to be trusted, above 0 and up to 1."""

    known: Changed
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class EFAST:
    """Delta with weights by the distance to clouds.

    Attributes
    ----------
    bands
        Names of the bands.
    cloud_reach
        Fine pixels from which on a cloud makes no difference.
    spread
        Predictions tell by how much the two sides differ.
    """

    bands: tuple[str, ...]
    cloud_reach: int = 32
    spread: bool = False

    @property
    def halo(self) -> Halo:
        """The reach of clouds, and the cell that interpolation needs."""
        return Halo(fine=self.cloud_reach, coarse=1)

    def prepare(self, bracket: Bracket) -> Prepared:
        """The bracket of the block and the trust in its observations.

        Raises
        ------
        InputError
            If the bracket does not tell how far clouds are.
        """
        if bracket.cloud_before is None or bracket.cloud_after is None:
            raise InputError("efast needs distances to clouds: take brackets with cloud_reach")
        inner = slice(self.cloud_reach, -self.cloud_reach)
        before, after = (
            torch.from_numpy(distance[inner, inner]).clamp(max=self.cloud_reach) / self.cloud_reach
            for distance in (bracket.cloud_before, bracket.cloud_after)
        )
        pair = to_tensors(bracket, torch.device("cpu")).crop(0)
        return Prepared(Changed(pair, detail(pair)), before, after)

    def predict(self, prepared: Prepared, coarse: CoarseWindow) -> Prediction:
        """Mean ``(day, band, y, x)`` of the target days."""
        with torch.inference_mode():
            mean = np.stack([self._on(prepared, coarse, day).numpy() for day in coarse.days])
        return Prediction(mean, spread=spreads(prepared.known.pair, coarse) if self.spread else None)

    def _on(self, prepared: Prepared, coarse: CoarseWindow, day: int) -> Tensor:
        known = prepared.known
        weight = weight_after(known.pair, day)
        before, after = (1 - weight) * prepared.before, weight * prepared.after
        total = before + after
        share = torch.where(total > 0, after / total, weight)
        return delta(known.pair, known.detail, share, torch.from_numpy(coarse.on(day)))
