"""What STFGAN is trained to, and its halo: STFGAN as the training loop sees it.

Both stages are trained side by side, each with its own loss: no gradient runs between them, so this equals training one
after the other on the same patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket, CoarseWindow, Float
from stfgan_xr.predictors.learned import Examples, Term, masked_mse
from stfgan_xr.predictors.networks import SCALE, Discriminator, crop
from stfgan_xr.predictors.pairs import Batch, Targets, average, to_pair, usable
from stfgan_xr.predictors.simple import to_tensors
from stfgan_xr.predictors.stages import (
    METHOD,
    Architecture,
    Middle,
    Network,
    anchor,
    margins_within,
    stage1,
    stage2,
    start,
)
from stfgan_xr.predictors.stfgan import STFGAN, load, restore

FLOOR = 1e-4
"""Squared error (in the networks' units) of an image that is as good as noise allows."""
RUNGS = (16, 32, 48, 64, 80, 96, 112, 128, 144)
"""Pixels of a stage's own grid that its coarse branch is tried with."""
TOLERANCE = 1e-6
"""Reflectance within which a smaller halo must give the same."""


@dataclass(frozen=True)
class Stage:
    """Reflectance of a stage on patches without margin, the truth at its resolution, and where that is clear."""

    result: Tensor
    target: Tensor
    clear: Tensor


@dataclass(frozen=True)
class TrainedSTFGAN:
    """STFGAN of some architecture; a :class:`stfgan_xr.predictors.learned.Method`."""

    architecture: Architecture
    columns = ("mse_stage1", "mse_stage2")
    name = METHOD

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return self.architecture.bands

    @property
    def ratio(self) -> int:
        """Fine pixels along a coarse cell."""
        return self.architecture.ratio

    @property
    def unit(self) -> int:
        """Fine pixels that its regions are multiples of."""
        return self.architecture.unit

    def to_config(self) -> dict[str, Any]:
        """For the JSON side of a checkpoint."""
        return self.architecture.to_config()

    def network(self) -> Network:
        """Fresh generators."""
        return Network(self.architecture)

    def critics(self, spectral: bool) -> list[Discriminator]:
        """A fresh discriminator for each stage."""
        bands, width = len(self.bands), self.architecture.width
        return [Discriminator(bands, width, spectral=spectral) for _ in range(2)]

    def halo(self, margin: int) -> Halo:
        """The margin, and the cells that it is interpolated from."""
        return Halo(fine=margin, coarse=-(-(2 * margin + self.ratio) // (2 * self.ratio)))

    def terms(self, network: Network, batch: Batch, number: int, settled: bool) -> list[Term]:
        """The error of each stage, of which a critic sees the result."""
        batch = self.clocked(batch)
        found, stages = [], predict(network, batch, settled)
        weight = balance(batch) if self.architecture.anchor != "none" else None
        for which, stage in enumerate(stages, 1):
            squared = masked_mse(stage.result, stage.target, stage.clear)
            shown = squared.item()
            if weight is not None:
                squared = balanced_mse(stage.result, stage.target, stage.clear, weight)
            truth = torch.where(stage.clear, stage.target, stage.result.detach())
            found.append(Term(f"mse_stage{which}", squared, shown, stage.result, truth))
        return found

    def image(self, network: Network, batch: Batch) -> Tensor:
        """What stage 2 gives."""
        return predict(network, self.clocked(batch), True)[1].result

    def anchor(self, batch: Batch) -> Tensor:
        """What the stages correct, or would: progress or delta."""
        batch = self.clocked(batch)
        return anchor(batch.pair, batch.targets, 0).image

    def clocked(self, batch: Batch) -> Batch:
        """A batch whose days go by the clock of the anchor."""
        if self.architecture.anchor == "progress":
            return batch
        return replace(batch, targets=Targets.by_calendar(batch.targets.days, batch.targets.coarse))

    @property
    def corrects(self) -> bool:
        """Whether it has an anchor."""
        return self.architecture.anchor != "none"

    def shrunk(self, tensors: dict[str, Any], part: float) -> dict[str, Any]:
        """The day's last layers scaled: corrections are small, where the hyperbolic tangent is straight."""
        return {name: value * part if ".fusion." in name else value for name, value in tensors.items()}

    def measured_halo(self, network: Network, examples: Callable[[Halo], Examples], bands: Sequence[str]) -> Halo:
        """The smallest halo of a ladder with which blocks come out as with the exact one."""
        folded, exact = network.fold(), self.architecture.exact_halo(self.ratio)
        among, blocks = [self.bands.index(band) for band in bands], examples(exact)
        whole = [_block(folded, *block, among) for block in blocks]
        for halo in ladder(self.architecture):
            parts = [
                _block(folded, bracket.within(halo), coarse.crop(exact.coarse - halo.coarse), among)
                for bracket, coarse in blocks
            ]
            if max(float(np.abs(a - b).max()) for a, b in zip(whole, parts, strict=True)) <= TOLERANCE:
                return halo
        return exact

    def restore(self, path: str | PathLike[str], sha256: str | None = None) -> Network:
        """The networks of a checkpoint."""
        return restore(path, sha256)

    def predictor(self, path: Path, bands: tuple[str, ...], ratio: int) -> STFGAN:
        """The predictor of a checkpoint."""
        return load(path, bands, ratio)


def ladder(architecture: Architecture) -> Iterator[Halo]:
    """Halos to try, smallest first; the exact one last.

    >>> next(ladder(Architecture(("nir",))))
    Halo(fine=64, coarse=4, days=4)
    """
    exact = architecture.exact_halo(architecture.ratio)
    for rung in RUNGS:
        halo = architecture.halo(rung, architecture.ratio)
        if halo.fine < exact.fine and halo.coarse < exact.coarse:
            yield halo
    yield exact


def _block(network: Network, bracket: Bracket, coarse: CoarseWindow, among: Sequence[int]) -> Float:
    """The target days of a window with the bracket's halo, its bands at the places ``among`` the network's."""
    architecture, device, count = network.architecture, torch.device("cpu"), len(network.architecture.bands)
    with torch.inference_mode():
        margins = margins_within(architecture, bracket.halo, bracket.ratio)
        started = start(network, to_pair(bracket, margins, architecture.unit, device, among, count))
        pace = architecture.pace(to_tensors(bracket, device), margins.result1)
        targets = Targets.of(pace, coarse, coarse.days, device).placed(among, count)
        return stage2(network, started, stage1(network, started, targets)[1]).numpy()


def balance(batch: Batch) -> Tensor:
    """Weight ``(n,)`` of each image of a batch, of mean 1: the inverse of its anchor's error.

    A few images with abrupt change have errors many times those of the others and would alone decide every step.
    """
    with torch.no_grad():
        weight = 1 / (_errors(anchor(batch.pair, batch.targets, 0).image, batch.target, batch.clear) + FLOOR)
    return weight / weight.mean()


def balanced_mse(result: Tensor, target: Tensor, clear: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error with weights ``(n,)`` of the images."""
    return (weight * _errors(result, target, clear)).mean()


def _errors(result: Tensor, target: Tensor, clear: Tensor) -> Tensor:
    """Mean squared error of each image: ``(n,)``."""
    error = ((result - target) * 2).square() * clear
    return error.sum(dim=(1, 2, 3)) / clear.sum(dim=(1, 2, 3)).clamp(min=1)


def _true_middle(middle: Middle, batch: Batch) -> Middle:
    """The averaged truth in place of the stage-1 result, where it is known (the paper's training of stage 2)."""
    image, margin = middle.image.clone(), batch.pair.margins.result1 // SCALE
    known = usable(batch.clear, SCALE)
    inner = crop(image, margin)
    inner.copy_(torch.where(known, average(batch.target, SCALE), inner))
    return replace(middle, image=image)


def predict(network: Network, batch: Batch, settled: bool) -> tuple[Stage, Stage]:
    """Both stages on patches."""
    architecture = network.architecture
    started, step = start(network, batch.pair), architecture.step
    result, middle = stage1(network, started, batch.targets)
    if architecture.anchor == "none" and not settled:
        middle = _true_middle(middle, batch)
    inner = crop(result, batch.pair.margins.result1 // step)
    return (
        Stage(inner, average(batch.target, step), usable(batch.clear, step)),
        Stage(stage2(network, started, middle), batch.target, batch.clear),
    )
