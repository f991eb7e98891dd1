"""The arithmetic of STFGAN's two stages: regions, inputs, anchors; the same for training and prediction.

``schedule="same-grid"``: stage 1 predicts the fine image from coarse images resampled to a quarter of the fine
resolution; stage 2 predicts it again from fine images averaged to that resolution, with the stage-1 result as the one
of the target day. ``schedule="progressive"`` (as in STFDCNN, Song et al. 2018): stage 1 predicts the averaged fine
image, stage 2 the fine one.

``anchor="progress"`` and ``"delta"`` are ours: the stages correct :mod:`stfgan_xr.predictors.progress` or
:func:`stfgan_xr.predictors.simple.delta`, and an untrained network equals it. The anchor is ``F1 + up(rise) + p D``
with the rise of the coarse level since ``C1``, ``D = F3 - F1 - up(C3 - C1)``, and the share ``p`` of the change that
has happened. A stage corrects each of these: ``n1`` and ``n3`` of the fine images where they were interpolated from
another grid, which blurs them; the fine branch finds these once for an interval, as weights of small filters of both
images, pixel by pixel, and as values, and they count as the images do. On the day it corrects ``p`` by ``q``, pixel by
pixel, and what is left by ``r``::

    result = anchor + (1 - p) n1 + p n3 + fade (q D + r)

Of an image on its own grid nothing tells how sharp the ground is that it shows, and it stays as it is.

``anchor="none"`` is the paper's form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from stfgan_xr import checkpoint
from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo
from stfgan_xr.predictors import progress
from stfgan_xr.predictors.networks import REACH_COARSE, SCALE, Generator, crop
from stfgan_xr.predictors.pairs import Margins, Pair, Targets, average, position
from stfgan_xr.predictors.progress import Pace
from stfgan_xr.predictors.simple import BracketTensors

METHOD = "stfgan"
Schedule = Literal["same-grid", "progressive"]
AnchorName = Literal["progress", "delta", "none"]
SCHEDULES: tuple[Schedule, ...] = ("same-grid", "progressive")
ANCHORS: tuple[AnchorName, ...] = ("progress", "delta", "none")

FINE_MARGIN = 28
"""Fine pixels that a stage needs of its fine images (25), as whole pixels of the coarse branch."""
COARSE_MARGIN = REACH_COARSE + SCALE
LARGEST_CORRECTION = 0.5
MOST_WEIGHT = 2.0
"""Of a filter in the correction of a fine image."""
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
    anchor: AnchorName = "progress"
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

    def halo(self, margin: int, ratio: int) -> Halo:
        """What must be seen beyond a block for the coarse branches to have ``margin`` fine pixels each.

        >>> Architecture(("nir",)).halo(32, 16), Architecture(("nir",), anchor="delta").halo(32, 16)
        (Halo(fine=80, coarse=5, days=4), Halo(fine=60, coarse=5, days=0))
        """
        fine, pixels = margin + FINE_MARGIN * self.step, margin * (1 + self.step)
        coarse, days = -(-(2 * pixels + ratio) // (2 * ratio)), 0
        if self.anchor == "progress":
            cells = -(-margin // ratio) + progress.CELLS
            fine, coarse, days = max(fine, cells * ratio), max(coarse, cells), progress.REACH
        return Halo(fine=-(-fine // SCALE) * SCALE, coarse=coarse, days=days)

    def pace(self, whole: BracketTensors, margin: int) -> Pace | None:
        """What the anchor knows of a bracket, for results with ``margin``; None where it follows the calendar."""
        return Pace.of(whole, -(-margin // whole.ratio) + 1) if self.anchor == "progress" else None

    def exact_halo(self, ratio: int) -> Halo:
        """The halo with which tiles give the whole image's pixels for any weights.

        >>> Architecture(("nir",)).exact_halo(16), Architecture(("nir",), schedule="progressive").exact_halo(16)
        (Halo(fine=224, coarse=21, days=4), Halo(fine=276, coarse=52, days=4))
        """
        return self.halo(COARSE_MARGIN, ratio)

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
        if architecture.anchor == "none":
            self.first, self.second = Generator(bands, width), Generator(bands, width)
            return
        more = {"outputs": bands + 1, "still": 2 * bands + 4 * len(_filters())}
        self.first = Generator(bands, width, planes=4 * bands, **more)
        self.second = Generator(bands, width, planes=3 * bands + 1, **more)
        for stage in (self.first, self.second):
            stage.start_at_differences()
            stage.start_at_zero()

    def fold(self) -> Network:
        """A copy for inference."""
        folded = Network(self.architecture)
        folded.first, folded.second = self.first.fold(), self.second.fold()
        return folded.eval()


def margins_within(architecture: Architecture, halo: Halo, ratio: int) -> Margins:
    """The margins that a halo has room for."""
    step = architecture.step
    fine1 = halo.fine // SCALE * SCALE
    even = max(SCALE, 2 * step)  # whole pixels at half the resolution of the stage-1 result
    result1 = max(fine1 - FINE_MARGIN * step, 0)
    if architecture.anchor == "progress":
        result1 = min(result1, max(min(halo.fine // ratio, halo.coarse) - progress.CELLS, 0) * ratio)
    result1 = result1 // even * even
    # Half a cell at the edge has no neighbour to interpolate with.
    held = min(result1 + COARSE_MARGIN * step, halo.coarse * ratio - ratio // 2)
    coarse1 = max(held // architecture.unit, -(-result1 // architecture.unit)) * architecture.unit
    return Margins(fine1, coarse1, result1, min(fine1, FINE_MARGIN))


@dataclass(frozen=True)
class Started:
    """What is the same on every day of an interval.

    Attributes
    ----------
    shared1, shared2
        From :meth:`stfgan_xr.predictors.networks.Generator.share`.
    still1, still2
        ``(n, 2b, ...)`` corrections of the fine images by each stage; None without anchor, or if none was resampled.
    averages
        ``(n, 2b, ...)`` fine images at the resolution of the coarse branch, with ``margins.result1``.
    detail
        ``(n, b, y, x)`` the fine change less the coarse one, with ``margins.result1``.
    """

    pair: Pair
    shared1: Tensor
    shared2: Tensor
    still1: Tensor | None
    still2: Tensor | None
    averages: Tensor
    detail: Tensor


def scaled(reflectance: Tensor) -> Tensor:
    """Reflectance as the networks see it: clipped to [0, 1], then in [-1, 1], channels last."""
    return (reflectance.clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)


def fade(weight: Tensor) -> Tensor:
    """How much of a day's correction counts at a :func:`position`: all half way, nothing on the days of observations.

    There the anchor is as good as the observation; where only one side has one, nothing tells how far it may be off.
    """
    return 2 * (weight * (1 - weight)).sqrt()


@dataclass(frozen=True)
class Anchor:
    """What the stages correct, on the block plus a margin; see the module's text.

    Attributes
    ----------
    image
        ``(n, b, y, x)`` reflectance.
    share
        ``(n, 1, y, x)`` of the change that has happened.
    fade
        ``(n, 1, y, x)`` of :func:`fade`.
    detail
        ``(n, b, y, x)`` of :class:`Started`.
    """

    image: Tensor
    share: Tensor
    fade: Tensor
    detail: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Anchor:
        """The same change to every part."""
        return Anchor(change(self.image), change(self.share), change(self.fade), change(self.detail))

    def corrected(self, raw: Tensor, still: Tensor | None) -> Tensor:
        """A stage's result from what its networks give."""
        of_day = torch.tanh(GENTLE * raw[:, -1:].float()) * self.detail + _bounded(raw[:, :-1])
        if still is None:
            return self.image + self.fade * of_day
        before, after = still.chunk(2, dim=1)
        return self.image + torch.lerp(before, after, self.share) + self.fade * of_day


def _bounded(raw: Tensor) -> Tensor:
    return LARGEST_CORRECTION * torch.tanh(GENTLE * raw.float())


def _detail(pair: Pair, margin: int) -> Tensor:
    before, after = pair.cut(margin).chunk(2, dim=1)
    return after - before - pair.up(pair.coarse_after - pair.coarse_before, margin)


def anchor(pair: Pair, targets: Targets, margin: int, detail: Tensor | None = None) -> Anchor:
    """The anchor of a batch of days with ``margin``; ``detail`` if it is known."""
    detail = _detail(pair, margin) if detail is None else detail
    passed = position(pair, targets.days, margin)
    points = targets.lead.shape[-1] // targets.coarse.shape[-1]
    share = (passed + pair.up(targets.lead, margin, points=points)).clamp(0, 1)
    before = pair.cut(margin).chunk(2, dim=1)[0]
    rise = targets.level - pair.coarse_before if targets.rise is None else targets.rise
    image = before + pair.up(rise, margin) + share * detail
    return Anchor(image, share, fade(passed), detail)


@cache
def _filters() -> Tensor:
    """Small filters ``(k, 5, 5)`` that a blurred or shifted image is mended with: second differences along both axes
    and across, what is coarser than they, and slopes."""
    none, smooth = torch.tensor([0.0, 1, 0]), torch.tensor([1.0, 2, 1]) / 4
    rough, slope = none - smooth, torch.tensor([-1.0, 0, 1]) / 2

    def grid(down: Tensor, across: Tensor) -> Tensor:
        return functional.pad(torch.outer(down, across), (1, 1, 1, 1))

    blurred = torch.outer(smooth, smooth)
    wider = functional.conv2d(functional.pad(blurred, (2, 2, 2, 2))[None, None], blurred[None, None])[0, 0]
    coarser = functional.pad(blurred, (1, 1, 1, 1)) - wider
    pairs = ((rough, none), (none, rough), (rough, rough), (slope, none), (none, slope))
    return torch.stack([*(grid(*pair) for pair in pairs), coarser])


def _mended(raw: Tensor, images: Tensor, cut: int) -> Tensor:
    """Corrections ``(n, 2b, y, x)`` of fine images from a network's still channels.

    Parameters
    ----------
    raw
        ``(n, channels, y, x)``.
    images
        ``(n, 2b, ...)`` with ``cut`` pixels more on every side.
    """
    filters, count = _filters().to(images), images.shape[1]
    border = filters.shape[-1] // 2
    fine = functional.pad(crop(images, max(cut - border, 0)), [max(border - cut, 0)] * 4, mode="replicate")
    found, weights = _bounded(raw[:, :count]), MOST_WEIGHT * torch.tanh(GENTLE * raw[:, count:].float())
    parts = weights.reshape(len(weights), 2, 2, len(filters), *weights.shape[-2:])
    of_before, of_after = parts.unbind(1)  # (n, own and other image, k, y, x)
    for number, kernel in enumerate(filters):  # one after the other: memory
        with torch.autocast(images.device.type, enabled=False):  # small differences of large values
            seen = functional.conv2d(fine.flatten(0, 1)[:, None], kernel[None, None]).reshape(found.shape)
        before, after = seen.chunk(2, dim=1)
        own_before, other_before = of_before[:, :, number, None].unbind(1)
        own_after, other_after = of_after[:, :, number, None].unbind(1)
        mended = (own_before * before + other_before * after, own_after * after + other_after * before)
        found = found + torch.cat(mended, dim=1)
    return found


def _marks(pair: Pair, resampled: Tensor, margin: int, step: int = 1) -> Tensor:
    """Where each channel of the fine images counts as resampled: ``(n, 2b, ...)``."""
    marks = average(crop(resampled, pair.margins.fine1 - margin), step)
    return marks.repeat_interleave(pair.fine.shape[1] // 2, dim=1)


def start(network: Network, pair: Pair) -> Started:
    """The fine branches of both stages, and the averages of the fine images."""
    step, margins = network.architecture.step, pair.margins
    cut = (margins.fine1 - margins.result1) // step
    images1, images2 = average(pair.fine, step), pair.cut(margins.fine2)
    resampled, still1, still2 = pair.resampled, None, None
    shared1, raw1 = network.first.share(scaled(images1), cut, still=resampled is not None)
    shared2, raw2 = network.second.share(scaled(images2), margins.fine2, still=resampled is not None)
    if resampled is not None and raw1 is not None and raw2 is not None:
        still1 = _mended(raw1, images1, cut) * _marks(pair, resampled, margins.result1, step)
        still2 = _mended(raw2, images2, margins.fine2) * _marks(pair, resampled, 0)
    averages, detail = average(pair.cut(margins.result1), SCALE), _detail(pair, margins.result1)
    return Started(pair, shared1, shared2, still1, still2, averages, detail)


def _stack(*images: Tensor) -> Tensor:
    """Images of a coarse branch as the networks see them; those that all days share are repeated."""
    count = max(len(image) for image in images)
    return scaled(torch.cat([image.expand(count, *image.shape[1:]) for image in images], dim=1))


def _image(raw: Tensor) -> Tensor:
    return (torch.tanh(raw.float()) + 1) / 2


@dataclass(frozen=True)
class Middle:
    """What stage 2 starts from; no gradient runs back.

    Attributes
    ----------
    image
        ``(n, b, ...)`` the stage-1 result averaged to the resolution of the coarse branch, with ``margins.result1``.
    share
        ``(n, 1, ...)`` of the anchor at that resolution; None without anchor.
    base
        What stage 2 corrects: the anchor on the block, with the stage-1 result for its image; None without anchor.
    """

    image: Tensor
    share: Tensor | None = None
    base: Anchor | None = None


def stage1(network: Network, started: Started, targets: Targets) -> tuple[Tensor, Middle]:
    """Reflectance ``(n, b, ...)`` of stage 1 on the block plus ``margins.result1``, and what stage 2 needs of it."""
    architecture, pair = network.architecture, started.pair
    margins, step = pair.margins, architecture.step
    images = [pair.coarse_before, targets.coarse, pair.coarse_after]
    if architecture.anchor != "none":
        images.append(targets.level)
    planes = _stack(*(pair.up(image, margins.coarse1, SCALE * step) for image in images))
    raw = network.first.finish(planes, started.shared1, (margins.coarse1 - margins.result1) // step)
    if architecture.anchor == "none":
        result = _image(raw)
        return result, Middle(average(result.detach(), SCALE // step))
    found = anchor(pair, targets, margins.result1, started.detail)
    base = found.map(lambda part: average(part, step))
    result = base.corrected(raw, started.still1)
    full = _sharpened(found.image, base.image, result.detach())
    inner = replace(found, image=full).map(lambda part: crop(part, margins.result1))
    return result, Middle(average(result.detach(), SCALE // step), average(found.share, SCALE), inner)


def _sharpened(image: Tensor, base: Tensor, result: Tensor) -> Tensor:
    """The stage-1 result at full resolution: the anchor's image plus the correction, interpolated."""
    if result.shape == image.shape:
        return result
    return image + functional.interpolate(result - base, size=image.shape[-2:], mode="bilinear")


def stage2(network: Network, started: Started, middle: Middle) -> Tensor:
    """Reflectance ``(n, b, y, x)`` of stage 2 on the block."""
    before, after = started.averages.chunk(2, dim=1)
    planes = _stack(before, middle.image, after, *(() if middle.share is None else (middle.share,)))
    raw = network.second.finish(planes, started.shared2, started.pair.margins.result1)
    if middle.base is None:
        return _image(raw)
    return middle.base.corrected(raw, started.still2)


def outside(pair: Pair, coarse: Tensor) -> Tensor:
    """Where an input of a pixel of the block lies outside [0, 1]: ``(n, y, x)``."""

    def off(image: Tensor) -> Tensor:
        return ((image < 0) | (image > 1)).any(dim=1)

    fixed = off(pair.cut(0)) | off(pair.up(pair.coarse_before, 0)) | off(pair.up(pair.coarse_after, 0))
    return fixed | off(pair.up(coarse, 0))
