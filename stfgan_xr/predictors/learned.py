"""What the methods with trained weights have in common: how they are trained, and how they predict.

:class:`Method` is all that the training loop knows of one. STFDCNN, StfNet, GAN-STFM and SPSTFM are each a
:class:`Fusion`: networks that predict from the observation before and from the one after. Invalid fine pixels are
filled from the coarse composites before they get here, as for STFGAN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stfgan_xr import checkpoint
from stfgan_xr.errors import InputError
from stfgan_xr.grid import RATIO, Halo
from stfgan_xr.predictors import Bracket, CoarseWindow, Prediction, Predictor
from stfgan_xr.predictors.pairs import Batch, Margins, Pair, Targets, to_pair
from stfgan_xr.predictors.uncertainty import Uncertainty

STRIP = 128
"""Rows of a block that networks work on at once, about: what is made for them does not grow with the block."""
Examples = Sequence[tuple[Bracket, CoarseWindow]]


@dataclass(frozen=True)
class Term:
    """A part of the loss of a step.

    Attributes
    ----------
    name
        Its column of the losses.
    loss
        What is minimised.
    shown
        What is written down; None: the loss.
    result, truth
        Images ``(n, b, y, x)`` that a critic tells apart; None: no critic does.
    seen
        An image as that critic sees it.
    """

    name: str
    loss: Tensor
    shown: float | None = None
    result: Tensor | None = None
    truth: Tensor | None = None
    seen: Callable[[Tensor], Tensor] = lambda image: image * 2 - 1


class Method(Protocol):
    """A method as the training loop sees it: networks, loss and prediction are what differs.

    Attributes
    ----------
    bands
        Of the networks.
    ratio
        Fine pixels along a coarse cell in training.
    """

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        ...

    @property
    def ratio(self) -> int:
        """Fine pixels along a coarse cell."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the terms of its loss."""
        ...

    @property
    def unit(self) -> int:
        """Fine pixels that patches and their margins are multiples of."""
        ...

    def to_config(self) -> dict[str, Any]:
        """What a checkpoint must state for it to be rebuilt."""
        ...

    def network(self) -> nn.Module:
        """Fresh networks."""
        ...

    def critics(self, spectral: bool) -> Sequence[nn.Module]:
        """Fresh critics, one for each term that has images; ``spectral``: normalised for the least-squares loss."""
        ...

    def halo(self, margin: int) -> Halo:
        """What training patches carry; ``margin`` is the recipe's wish, for networks that see too far."""
        ...

    def terms(self, network: Any, batch: Batch, number: int, settled: bool) -> list[Term]:
        """The loss of a batch in step ``number``; ``settled`` near the end."""
        ...

    def image(self, network: Any, batch: Batch) -> Tensor:
        """What is predicted of a batch, reflectance ``(n, b, y, x)``."""
        ...

    def anchor(self, batch: Batch) -> Tensor:
        """The simple image that a network must beat."""
        ...

    @property
    def corrects(self) -> bool:
        """Whether its networks correct an anchor."""
        ...

    def shrunk(self, tensors: dict[str, Any], part: float) -> dict[str, Any]:
        """Weights of which only a part of what they correct from day to day counts."""
        ...

    def measured_halo(self, network: Any, examples: Callable[[Halo], Examples], bands: Sequence[str]) -> Halo:
        """The smallest halo that is enough for some weights; ``examples`` gives blocks of ``bands`` with a halo."""
        ...

    def restore(self, path: str | PathLike[str], sha256: str | None = None) -> nn.Module:
        """The networks of a checkpoint, on the CPU."""
        ...

    def predictor(self, path: Path, bands: tuple[str, ...], ratio: int) -> Predictor:
        """The predictor of a checkpoint of it."""
        ...


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a checkpoint holds of a network: weights and statistics, no counters."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items() if value.is_floating_point()}


def masked_mse(result: Tensor, target: Tensor, clear: Tensor) -> Tensor:
    """Mean squared error over usable pixels and all bands, in the networks' units (reflectance times two)."""
    error = ((result - target) * 2).square() * clear
    return error.sum() / clear.sum().clamp(min=1)


def cells(reach: int, ratio: int) -> int:
    """Coarse cells beyond a block that bilinear values up to ``reach`` fine pixels beyond it need.

    >>> cells(0, 16), cells(8, 16), cells(44, 16)
    (1, 1, 4)
    """
    return -(-(2 * reach + ratio) // (2 * ratio))


@dataclass(frozen=True)
class Sides:
    """What the observations before and after say of days, each alone, and how much the later counts.

    Attributes
    ----------
    before, after
        ``(n, b, y, x)`` reflectance.
    share
        ``(n, 1 or b, y, x)``, 0 to 1.
    """

    before: Tensor
    after: Tensor
    share: Tensor

    @property
    def image(self) -> Tensor:
        """Their weighted mean."""
        return torch.lerp(self.before, self.after, self.share)


def later(before: Tensor, after: Tensor) -> Tensor:
    """Weight of the later of two predictions, ``(1 / after) / (1 / before + 1 / after)`` of the sizes of the changes
    that they rest on; a half where nothing changed.

    >>> later(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([3.0, 2.0, 0.0])).tolist()
    [0.25, 0.0, 0.5]
    """
    total = before + after
    return torch.where(total > 0, before / total, 0.5)


def later_by_cells(pair: Pair, coarse: Tensor) -> Tensor:
    """:func:`later` ``(n, 1, y, x)`` by the coarse change since and until a day ``(n, b, cy, cx)``, mean of bands."""
    changes = ((coarse - other).abs().mean(1, keepdim=True) for other in (pair.coarse_before, pair.coarse_after))
    return later(*(pair.up(change, 0) for change in changes))


class Fusion(nn.Module):
    """Networks of a method that predicts from before and from after.

    Parameters
    ----------
    bands
        How many.
    width
        Channels inside.
    """

    method: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    usual: ClassVar[int]
    """The publication's width."""
    unit: ClassVar[int] = 1
    fine_reach: ClassVar[int]
    coarse_reach: ClassVar[int]
    """Fine pixels around an output pixel that it sees of the fine and of the interpolated coarse images."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.bands, self.width = bands, width

    @property
    def floats(self) -> tuple[int, int]:
        """Numbers a pixel that are kept for an interval, and that are made for a day at once, roughly."""
        raise NotImplementedError

    def critics(self, spectral: bool) -> Sequence[nn.Module]:
        """None."""
        return ()

    def start(self, pair: Pair) -> Any:
        """Everything that does not depend on the target day."""
        raise NotImplementedError

    def sides(self, started: Any, targets: Targets) -> Sides:
        """Target days of what :meth:`start` gave."""
        raise NotImplementedError

    def image(self, started: Any, targets: Targets) -> Tensor:
        """The prediction ``(n, b, y, x)`` of target days."""
        return self.sides(started, targets).image

    def terms(self, batch: Batch, number: int) -> list[Term]:
        """The loss of a batch in a step."""
        raise NotImplementedError


@dataclass(frozen=True)
class Trained:
    """The :class:`Method` of a :class:`Fusion`.

    Attributes
    ----------
    kind
        The networks' class.
    width
        Channels inside.
    """

    kind: type[Fusion]
    bands: tuple[str, ...]
    width: int
    ratio: int = RATIO

    def __post_init__(self) -> None:
        if not (2 <= self.width <= 4096 and 1 <= self.ratio <= 512 and 1 <= len(self.bands) <= 64):
            raise InputError(f"width {self.width}, ratio {self.ratio}, {len(self.bands)} bands: out of range")

    @classmethod
    def from_config(cls, kind: type[Fusion], config: Mapping[str, Any]) -> Trained:
        """From the JSON side of a checkpoint.

        Raises
        ------
        InputError
            If it is one of another method, or does not state all.
        """
        checkpoint.require(config, kind.method)
        width, ratio = config.get("width"), config.get("ratio")
        if type(width) is not int or type(ratio) is not int:
            raise InputError(f"the checkpoint's width and ratio must be whole numbers, not {width!r} and {ratio!r}")
        return cls(kind, tuple(config["bands"]), width, ratio)

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.kind.method

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the terms of its loss."""
        return self.kind.columns

    @property
    def unit(self) -> int:
        """Fine pixels that its regions are multiples of."""
        return self.kind.unit

    def to_config(self) -> dict[str, Any]:
        """For the JSON side of a checkpoint."""
        return {"method": self.name, "bands": list(self.bands), "width": self.width, "ratio": self.ratio}

    def network(self) -> Fusion:
        """Fresh networks."""
        return self.kind(len(self.bands), self.width)

    def critics(self, spectral: bool) -> Sequence[nn.Module]:
        """Fresh critics."""
        return self.network().critics(spectral)

    def halo(self, margin: int = 0) -> Halo:
        """All that the networks see, whatever the margin."""
        return halo_of(self.kind, self.ratio)

    def terms(self, network: Fusion, batch: Batch, number: int, settled: bool) -> list[Term]:
        """The loss of a batch."""
        return network.terms(batch, number)

    def image(self, network: Fusion, batch: Batch) -> Tensor:
        """What is predicted of a batch."""
        return network.image(network.start(batch.pair), batch.targets)

    def anchor(self, batch: Batch) -> Tensor:
        """Each observation plus the coarse change, half and half."""
        pair = batch.pair
        before, after = pair.cut(0).chunk(2, dim=1)
        middle = (pair.coarse_before + pair.coarse_after) / 2
        return (before + after) / 2 + pair.up(batch.targets.coarse - middle, 0)

    corrects = False

    def shrunk(self, tensors: dict[str, Any], part: float) -> dict[str, Any]:
        """The weights themselves: there is nothing to shrink towards."""
        return tensors

    def measured_halo(self, network: Fusion, examples: Callable[[Halo], Examples], bands: Sequence[str]) -> Halo:
        """The exact one, which is small."""
        return self.halo()

    def restore(self, path: str | PathLike[str], sha256: str | None = None) -> Fusion:
        """The networks of a checkpoint, on the CPU."""
        network = self.network()
        tensors = checkpoint.load_tensors(path, shapes(network), sha256)
        network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()}, strict=False)
        return network.eval().requires_grad_(False)

    def predictor(self, path: Path, bands: tuple[str, ...], ratio: int) -> Learned:
        """The predictor of a checkpoint."""
        return Learned.open(self.kind, path, bands, ratio)


def halo_of(kind: type[Fusion], ratio: int) -> Halo:
    """What networks see beyond a block."""
    return Halo(fine=kind.fine_reach, coarse=cells(kind.coarse_reach, ratio))


def _pair(network: Fusion, bracket: Bracket, device: torch.device) -> Pair:
    margins, count = Margins.same(bracket.halo.fine), network.bands
    return to_pair(bracket, margins, network.unit, device, range(count), count)


def _on(network: Fusion, started: Any, targets: Targets, spread: bool) -> tuple[Tensor, Tensor | None]:
    """Mean and, if it is asked for, difference of the sides of a day, ``(b, y, x)``."""
    if not spread:
        return network.image(started, targets)[0], None
    sides = network.sides(started, targets)
    return sides.image[0], (sides.after - sides.before).abs()[0]


@lru_cache(maxsize=8)
def _network(kind: type[Fusion], path: Path, sha256: str, device: str) -> Fusion:
    trained = Trained.from_config(kind, checkpoint.read_config(path))
    return trained.restore(path, sha256).to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Learned:
    """The predictor of a checkpoint; it travels as path and hash, and its weights are loaded once in a process.

    Attributes
    ----------
    kind
        The networks' class.
    path, sha256
        The tensors file and its hash; see :meth:`open`.
    bands
        Of the data and the weights.
    ratio
        Fine pixels along a coarse cell of the data.
    width
        Channels inside.
    device
        ``"auto"`` takes a GPU if there is one.
    uncertainty
        Of the bands, if the checkpoint was calibrated.
    spread
        Predictions tell by how much those from before and from after differ.
    """

    kind: type[Fusion]
    path: Path
    sha256: str
    bands: tuple[str, ...]
    ratio: int
    width: int
    device: str = "auto"
    uncertainty: Uncertainty | None = None
    spread: bool = False

    @classmethod
    def open(
        cls, kind: type[Fusion], path: str | PathLike[str], bands: Sequence[str], ratio: int | None = None, **more: Any
    ) -> Learned:
        """A predictor from a checkpoint; ``ratio`` by default as in training.

        Raises
        ------
        InputError
            If the checkpoint is one of another method or of other bands, or damaged.
        """
        file = checkpoint.resolve(path).absolute()
        config = checkpoint.read_config(file)
        checkpoint.require(config, kind.method, bands)
        trained = Trained.from_config(kind, config)
        known = config.get("uncertainty")
        uncertainty = None if known is None else Uncertainty.from_config(known, trained.bands)
        chosen = trained.ratio if ratio is None else ratio
        found = cls(kind, file, config["sha256"], trained.bands, chosen, trained.width, uncertainty=uncertainty, **more)
        found._loaded()  # a damaged file is refused here, not in a worker
        return found

    @property
    def halo(self) -> Halo:
        """All that the networks see."""
        return halo_of(self.kind, self.ratio)

    @property
    def _device(self) -> str:
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    def _loaded(self) -> Fusion:
        return _network(self.kind, self.path, self.sha256, self._device)  # type: ignore[arg-type]

    def memory(self, rows: int, columns: int, days: int) -> int:
        """Bytes for a block with its halo, roughly: what is kept for an interval, and a strip of a day."""
        kept, made = self._loaded().floats
        return 4 * columns * (rows * kept + min(rows, STRIP + 2 * self.halo.fine) * made)

    def prepare(self, bracket: Bracket) -> list[tuple[slice, Any]]:
        """Strips of rows, and what of each does not depend on the target day.

        Raises
        ------
        InputError
            If the data have another ratio than the predictor was opened for: its halo would be another one.
        """
        bracket.refuse_other(self.ratio, self.kind.method)
        network, device = self._loaded(), torch.device(self._device)
        rows = bracket.day_before.shape[0] - 2 * bracket.halo.fine
        with torch.inference_mode():
            return [
                (strip, network.start(_pair(network, bracket.rows(strip), device)))
                for strip in _strips(rows, self.ratio, network.unit)
            ]

    def predict(self, prepared: list[tuple[slice, Any]], coarse: CoarseWindow) -> Prediction:
        """Mean ``(day, band, y, x)`` of the target days."""
        network, device = self._loaded(), torch.device(self._device)
        rows, width = prepared[-1][0].stop, coarse.series.shape[-1]
        halo = (coarse.series.shape[-2] - -(-rows // self.ratio)) // 2
        shape = len(coarse.days), len(self.bands), rows, (width - 2 * halo) * self.ratio
        mean = np.empty(shape, np.float32)
        spread = np.empty(shape, np.float32) if self.spread else None
        with torch.inference_mode():
            for strip, started in prepared:
                cells = slice(strip.start // self.ratio, -(-strip.stop // self.ratio) + 2 * halo)
                inside = ..., slice(strip.stop - strip.start), slice(shape[-1])
                for number, day in enumerate(coarse.days):  # one after the other: memory
                    image = torch.from_numpy(coarse.on(day)[:, cells]).to(device)[None]
                    targets = Targets.by_calendar(torch.tensor([day], device=device), image)
                    found, apart = _on(network, started, targets, self.spread)
                    mean[number, :, strip] = found[inside].cpu().numpy()
                    if spread is not None and apart is not None:
                        spread[number, :, strip] = apart[inside].cpu().numpy()
        return Prediction(mean, spread=spread)


def _strips(rows: int, ratio: int, unit: int) -> Iterator[slice]:
    """Rows of a block, whole cells and whole units at once.

    >>> list(_strips(300, 16, 4))
    [slice(0, 128, None), slice(128, 256, None), slice(256, 300, None)]
    """
    whole = math.lcm(ratio, unit)
    step = -(-STRIP // whole) * whole
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def open_weights(
    kind: type[Fusion], model: str | PathLike[str] | None, bands: Sequence[str], ratio: int | None
) -> Learned:
    """The predictor of a method from weights, which none comes with.

    Raises
    ------
    InputError
        See :meth:`Learned.open`.
    """
    path = checkpoint.shipped(bands, kind.method) if model is None else checkpoint.resolve(model)
    return Learned.open(kind, path, bands, ratio)
