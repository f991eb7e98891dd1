"""The arithmetic of STFGAN's two stages: regions, inputs, anchors; the same for training and prediction.

``schedule="same-grid"``: stage 1 predicts the fine image from coarse images resampled to a quarter of the fine
resolution; stage 2 predicts it again from fine images averaged to that resolution, with the stage-1 result as the one
of the target day. ``schedule="progressive"`` (as in STFDCNN, Song et al. 2018): stage 1 predicts the averaged fine
image, stage 2 the fine one. ``anchor="delta"`` is ours: the stages predict corrections of
:func:`stfgan_xr.predictors.simple.delta`, so that an untrained network equals
it; ``anchor="none"`` is the paper's form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stfgan_xr import checkpoint
from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket
from stfgan_xr.predictors.networks import REACH_COARSE, SCALE, Generator, crop
from stfgan_xr.predictors.resample import upsample

METHOD = "stfgan"
Schedule = Literal["same-grid", "progressive"]
AnchorName = Literal["delta", "none"]
SCHEDULES: tuple[Schedule, ...] = ("same-grid", "progressive")
ANCHORS: tuple[AnchorName, ...] = ("delta", "none")

FINE_MARGIN = 28
"""Fine pixels that a stage needs of its fine images (25), as whole pixels of the coarse branch."""
COARSE_MARGIN = REACH_COARSE + SCALE
LARGEST_CORRECTION = 0.5
GENTLE = 0.01
"""Scale before the last tanh of an anchored network. The last layer sums thousands of inputs, so a step of an optimiser
that sets the size of its steps itself would move the result by more than the error that is to be corrected."""


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint must state to be rebuilt.

    Attributes
    ----------
    bands
        Names of the bands.
    width
        Channels inside the generators.
    schedule, anchor
        See the module's text.
    ratio
        Fine pixels along a coarse cell in training.
    """

    bands: tuple[str, ...]
    width: int = 64
    schedule: Schedule = "same-grid"
    anchor: AnchorName = "delta"
    ratio: int = 16

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if self.anchor not in ANCHORS:
            raise InputError(f"anchor {self.anchor!r}: choose one of {', '.join(ANCHORS)}")
        if not (1 <= self.width <= 512 and 1 <= self.ratio <= 512 and 1 <= len(self.bands) <= 64):
            raise InputError(f"width {self.width}, ratio {self.ratio}, {len(self.bands)} bands: out of range")

    @property
    def step(self) -> int:
        """Fine pixels along a pixel of the stage-1 result."""
        return SCALE if self.schedule == "progressive" else 1

    @property
    def unit(self) -> int:
        """Fine pixels that the networks' regions are whole multiples of."""
        return SCALE * self.step

    def exact_halo(self, ratio: int) -> Halo:
        """The halo with which tiles give the whole image's pixels for any weights.

        >>> Architecture(("nir",)).exact_halo(16), Architecture(("nir",), schedule="progressive").exact_halo(16)
        (Halo(fine=192, coarse=21, days=0), Halo(fine=276, coarse=52, days=0))
        """
        fine = COARSE_MARGIN + FINE_MARGIN * self.step
        pixels = COARSE_MARGIN * (1 + self.step)
        return Halo(fine=fine, coarse=-(-(2 * pixels + ratio) // (2 * ratio)))

    def to_config(self) -> dict[str, Any]:
        """For the JSON side of a checkpoint."""
        names = ("width", "schedule", "anchor", "ratio")
        return {"method": METHOD, "bands": list(self.bands)} | {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """From the JSON side of a checkpoint; anything else in it is left alone."""
        checkpoint.require(config, METHOD)
        width, ratio = config.get("width"), config.get("ratio")
        if type(width) is not int or type(ratio) is not int:
            raise InputError(f"the checkpoint's width and ratio must be whole numbers, not {width!r} and {ratio!r}")
        schedule, anchor = str(config.get("schedule")), str(config.get("anchor"))
        return cls(tuple(config["bands"]), width, cast(Schedule, schedule), cast(AnchorName, anchor), ratio)


class Network(nn.Module):
    """Both stages: :func:`start` once for an interval, :func:`stage1` and :func:`stage2` for batches of days."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        bands, width = len(architecture.bands), architecture.width
        self.first, self.second = Generator(bands, width), Generator(bands, width)
        if architecture.anchor == "delta":
            for stage in (self.first, self.second):
                stage.start_at_differences()
                stage.start_at_zero()

    def fold(self) -> Network:
        """A copy for inference."""
        folded = Network(self.architecture)
        folded.first, folded.second = self.first.fold(), self.second.fold()
        return folded.eval()


@dataclass(frozen=True)
class Margins:
    """Fine pixels beyond the block, on every side, of what the stages read and give; multiples of 4.

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
    def within(cls, architecture: Architecture, halo: Halo, ratio: int) -> Margins:
        """The margins that a halo has room for."""
        step = architecture.step
        fine1 = halo.fine // SCALE * SCALE
        even = max(SCALE, 2 * step)  # whole pixels at half the resolution of the stage-1 result
        result1 = max(fine1 - FINE_MARGIN * step, 0) // even * even
        # Half a cell at the edge has no neighbour to interpolate with.
        held = min(result1 + COARSE_MARGIN * step, halo.coarse * ratio - ratio // 2)
        coarse1 = max(held // architecture.unit, -(-result1 // architecture.unit)) * architecture.unit
        return cls(fine1, coarse1, result1, min(fine1, FINE_MARGIN))

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
    """

    fine: Tensor
    coarse_before: Tensor
    coarse_after: Tensor
    day_before: Tensor
    day_after: Tensor
    ratio: int
    coarse_halo: int
    margins: Margins

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the block."""
        rows, columns = self.fine.shape[-2:]
        return rows - 2 * self.margins.fine1, columns - 2 * self.margins.fine1

    def up(self, coarse: Tensor, margin: int, step: int = 1) -> Tensor:
        """Coarse cells ``(n, b, cy, cx)`` on the block plus ``margin`` fine pixels, pixels of ``step``."""
        rows, columns = ((side + 2 * margin) // step for side in self.shape)
        return upsample(
            coarse, (rows, columns), ratio=self.ratio, halo=self.coarse_halo, start=(-margin, -margin), step=step
        )

    def cut(self, margin: int) -> Tensor:
        """The fine images of the block plus ``margin``."""
        return crop(self.fine, self.margins.fine1 - margin)


@dataclass(frozen=True)
class Started:
    """What is the same on every day of an interval."""

    pair: Pair
    shared1: Tensor
    shared2: Tensor
    averages: Tensor


def to_pair(bracket: Bracket, margins: Margins, unit: int, device: torch.device) -> Pair:
    """A bracket on a device; its far edges are mirrored to multiples of ``unit`` (not seen by its block)."""
    rest = [(-(side - 2 * bracket.halo.fine)) % unit for side in bracket.day_before.shape]
    cut = bracket.halo.fine - margins.fine1

    def fine(array: np.ndarray[Any, Any]) -> Tensor:
        padded = np.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, n) for n in rest], mode="symmetric")
        return crop(torch.from_numpy(padded).to(device), cut)[None]

    images = torch.cat([fine(bracket.fine_before), fine(bracket.fine_after)], dim=1)
    cells = [torch.from_numpy(array).to(device)[None] for array in (bracket.coarse_before, bracket.coarse_after)]
    acquired = [fine(array) for array in (bracket.day_before, bracket.day_after)]
    return Pair(images, cells[0], cells[1], acquired[0], acquired[1], bracket.ratio, bracket.halo.coarse, margins)


def scaled(reflectance: Tensor) -> Tensor:
    """Reflectance as the networks see it: clipped to [0, 1], then in [-1, 1], channels last."""
    return (reflectance.clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)


def average(image: Tensor, step: int) -> Tensor:
    """Means over ``step x step`` pixels."""
    return functional.avg_pool2d(image, step) if step > 1 else image


def position(pair: Pair, days: Tensor, margin: int) -> Tensor:
    """Where each day lies between the observations of a pixel: ``(n, 1, y, x)``, 0 before to 1 after."""
    day_before = crop(pair.day_before, pair.margins.fine1 - margin)
    span = (crop(pair.day_after, pair.margins.fine1 - margin) - day_before).clamp(min=1)
    return ((days[:, None, None] - day_before) / span).clamp(0, 1)[:, None]


def fade(weight: Tensor) -> Tensor:
    """How much of a correction counts at a :func:`position`: all half way, nothing on the days of the observations.

    There the anchor is as good as the observation; where only one side has one, nothing tells how far it may be off.
    """
    return 4 * weight * (1 - weight)


def anchor(pair: Pair, days: Tensor, coarse: Tensor, margin: int) -> Tensor:
    """:func:`stfgan_xr.predictors.simple.delta` for a batch of days, ``(n, b, y, x)`` with ``margin``.

    Parameters
    ----------
    days
        ``(n,)`` target days since 1970-01-01.
    coarse
        ``(n, b, cy, cx)`` coarse images of the target days.
    """
    before, after = pair.cut(margin).chunk(2, dim=1)
    change_before = pair.up(coarse - pair.coarse_before, margin)
    change_after = pair.up(coarse - pair.coarse_after, margin)
    return torch.lerp(before + change_before, after + change_after, position(pair, days, margin))


def start(network: Network, pair: Pair) -> Started:
    """The fine branches of both stages, and the averages of the fine images."""
    step, margins = network.architecture.step, pair.margins
    cut = margins.fine1 - margins.result1
    shared1 = network.first.share(scaled(average(pair.fine, step)), cut // step)
    shared2 = network.second.share(scaled(pair.cut(margins.fine2)), margins.fine2)
    return Started(pair, shared1, shared2, average(pair.cut(margins.result1), SCALE))


def _triple(before: Tensor, target: Tensor, after: Tensor) -> Tensor:
    shape = target.shape
    return scaled(torch.cat([before.expand(shape), target, after.expand(shape)], dim=1))


def _corrected(base: Tensor, raw: Tensor, share: Tensor) -> Tensor:
    return base + LARGEST_CORRECTION * share * torch.tanh(GENTLE * raw.float())


def _image(raw: Tensor) -> Tensor:
    return (torch.tanh(raw.float()) + 1) / 2


@dataclass(frozen=True)
class Middle:
    """What stage 2 starts from; no gradient runs back.

    Attributes
    ----------
    image
        ``(n, b, ...)`` the stage-1 result averaged to the resolution of the coarse branch, with ``margins.result1``.
    base
        ``(n, b, y, x)`` what stage 2 corrects: the stage-1 result at full resolution on the block; None without anchor.
    share
        ``(n, 1, y, x)`` of :func:`fade` on the block; None without anchor.
    """

    image: Tensor
    base: Tensor | None = None
    share: Tensor | None = None


def stage1(network: Network, started: Started, days: Tensor, coarse: Tensor) -> tuple[Tensor, Middle]:
    """Reflectance ``(n, b, ...)`` of stage 1 on the block plus ``margins.result1``, and what stage 2 needs of it.

    Parameters
    ----------
    days
        ``(n,)`` target days since 1970-01-01.
    coarse
        ``(n, b, cy, cx)`` coarse images of the target days.
    """
    architecture, pair = network.architecture, started.pair
    margins, step = pair.margins, architecture.step
    images = (pair.up(i, margins.coarse1, SCALE * step) for i in (pair.coarse_before, coarse, pair.coarse_after))
    raw = network.first.finish(_triple(*images), started.shared1, (margins.coarse1 - margins.result1) // step)
    if architecture.anchor == "none":
        result = _image(raw)
        return result, Middle(average(result.detach(), SCALE // step))
    delta, share = anchor(pair, days, coarse, margins.result1), fade(position(pair, days, margins.result1))
    base = average(delta, step)
    result = _corrected(base, raw, average(share, step))
    sharpened = _sharpened(delta, base, result.detach(), pair)
    return result, Middle(average(result.detach(), SCALE // step), sharpened, crop(share, margins.result1))


def _sharpened(delta: Tensor, base: Tensor, result: Tensor, pair: Pair) -> Tensor:
    """The stage-1 result on the block at full resolution: the anchor plus the correction, interpolated."""
    margin = pair.margins.result1
    if result.shape == delta.shape:
        return crop(result, margin)
    correction = functional.interpolate(result - base, size=delta.shape[-2:], mode="bilinear")
    return crop(delta + correction, margin)


def stage2(network: Network, started: Started, middle: Middle) -> Tensor:
    """Reflectance ``(n, b, y, x)`` of stage 2 on the block."""
    before, after = started.averages.chunk(2, dim=1)
    triple = _triple(before, middle.image, after)
    raw = network.second.finish(triple, started.shared2, started.pair.margins.result1)
    return _image(raw) if middle.base is None or middle.share is None else _corrected(middle.base, raw, middle.share)


def outside(pair: Pair, coarse: Tensor) -> Tensor:
    """Where an input of a pixel of the block lies outside [0, 1]: ``(n, y, x)``."""

    def off(image: Tensor) -> Tensor:
        return ((image < 0) | (image > 1)).any(dim=1)

    fixed = off(pair.cut(0)) | off(pair.up(pair.coarse_before, 0)) | off(pair.up(pair.coarse_after, 0))
    return fixed | off(pair.up(coarse, 0))
