"""STFGAN as a predictor: two generators in a row, the part between two fine images computed once.

Zhang, Song, Han and Zhang (2021), "Remote Sensing Image Spatiotemporal Fusion Using a Generative Adversarial Network",
IEEE TGRS 59(5), doi 10.1109/TGRS.2020.3010530. The arithmetic is in :mod:`stfgan_xr.predictors.stages`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from stfgan_xr import checkpoint
from stfgan_xr.errors import InputError, ResourceError
from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket, CoarseWindow, Prediction
from stfgan_xr.predictors.learned import shapes
from stfgan_xr.predictors.networks import SCALE
from stfgan_xr.predictors.pairs import Pair, Targets, to_pair
from stfgan_xr.predictors.progress import Pace
from stfgan_xr.predictors.simple import to_tensors
from stfgan_xr.predictors.stages import (
    FINE_MARGIN,
    METHOD,
    Architecture,
    Network,
    Started,
    margins_within,
    outside,
    stage1,
    stage2,
    start,
)
from stfgan_xr.predictors.uncertainty import Uncertainty

DAY_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Memory that the days of one batch may take."""


@dataclass(frozen=True)
class Prepared:
    """:class:`Started`, the bracket's pace, and the block's true size ``(rows, columns)``."""

    started: Started
    pace: Pace | None
    size: tuple[int, int]


@lru_cache(maxsize=8)
def _facts(path: Path, sha256: str) -> dict[str, Any]:
    config = checkpoint.read_config(path)
    if config["sha256"] != sha256:
        raise InputError(f"{path}: the checkpoint changed since it was opened; start again")
    return config


def measured_halo(config: Mapping[str, Any]) -> Halo | None:
    """The halo that a checkpoint states for its own ratio, or None.

    Raises
    ------
    InputError
        If it is none, or less than the anchor alone needs.
    """
    stated = config.get("halo")
    if stated is None:
        return None
    sizes: list[Any] = [stated.get(name) for name in ("fine", "coarse")] if isinstance(stated, dict) else []
    if not sizes or any(type(size) is not int or not 0 < size <= 4096 for size in sizes) or sizes[0] % SCALE:
        raise InputError(
            f"the checkpoint's halo must be a multiple of {SCALE} fine pixels and whole cells, not {stated!r}"
        )
    architecture = Architecture.from_config(config)
    least = architecture.halo(0, architecture.ratio)
    if sizes[0] < least.fine or sizes[1] < least.coarse:
        raise InputError(
            f"the checkpoint's halo, {sizes[0]} pixels and {sizes[1]} cells, is smaller than the {least.fine} pixels "
            f"and {least.coarse} cells that its anchor needs"
        )
    return Halo(fine=sizes[0], coarse=sizes[1])


def restore(path: str | PathLike[str], sha256: str | None = None) -> Network:
    """The network of a checkpoint, on the CPU, not folded.

    Raises
    ------
    InputError
        See :func:`stfgan_xr.checkpoint.load_tensors`.
    """
    network = Network(Architecture.from_config(checkpoint.read_config(path)))
    tensors = checkpoint.load_tensors(path, shapes(network), sha256)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()}, strict=False)
    return network.eval()


@lru_cache(maxsize=4)
def _network(path: Path, sha256: str, device: str) -> Network:
    return restore(path, sha256).fold().to(torch.device(device))


@dataclass(frozen=True)
class STFGAN:
    """The predictor of a checkpoint; it travels as path and hash, and its weights are loaded once in a process.

    Attributes
    ----------
    path, sha256
        The tensors file and its hash; see :meth:`open`.
    ratio
        Fine pixels along a coarse cell of the data.
    subset
        Bands of the data, if they are not all of the weights'.
    device
        ``"auto"`` takes a GPU if there is one.
    dtype
        ``"auto"``: bfloat16 on a GPU, float32 on a CPU.
    uncertainty
        Of the bands, if the checkpoint was calibrated; see :func:`stfgan_xr.predictors.uncertainty.calibrated`.
    """

    path: Path
    sha256: str
    ratio: int = 16
    subset: tuple[str, ...] | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    uncertainty: Uncertainty | None = None

    @classmethod
    def open(cls, path: str | PathLike[str], ratio: int | None = None, **settings: Any) -> STFGAN:
        """A predictor from a checkpoint; ``ratio`` by default as in training, ``settings`` are attributes.

        Raises
        ------
        InputError
            If the checkpoint is not one of STFGAN, or damaged.
        """
        file = checkpoint.resolve(path).absolute()
        config = checkpoint.read_config(file)
        architecture = Architecture.from_config(config)
        measured_halo(config)
        predictor = cls(file, config["sha256"], architecture.ratio if ratio is None else ratio, **settings)
        if "uncertainty" in config:
            known = Uncertainty.from_config(config["uncertainty"], architecture.bands)
            if set(predictor.bands) <= set(known.bands):
                predictor = replace(predictor, uncertainty=known.of(predictor.bands))
        _network(file, predictor.sha256, predictor._device)  # a damaged file is refused here, not in a worker
        return predictor

    @property
    def architecture(self) -> Architecture:
        """What the checkpoint states."""
        return Architecture.from_config(_facts(self.path, self.sha256))

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return self.architecture.bands if self.subset is None else self.subset

    @property
    def _places(self) -> list[int]:
        return [self.architecture.bands.index(band) for band in self.bands]

    @property
    def halo(self) -> Halo:
        """The halo measured for the weights, or the exact one where none was measured."""
        exact = self.architecture.exact_halo(self.ratio)
        measured = measured_halo(_facts(self.path, self.sha256))
        if measured is None:
            return exact
        if self.ratio == self.architecture.ratio:
            return replace(exact, fine=min(exact.fine, measured.fine), coarse=min(exact.coarse, measured.coarse))
        return self.architecture.halo(min(measured.fine, exact.fine) - FINE_MARGIN * self.architecture.step, self.ratio)

    def memory(self, rows: int, columns: int, days: int) -> int:
        """Bytes for a block with its halo, roughly: what is kept for an interval, and a batch of days."""
        kept = 4 * self.architecture.width + 8 * len(self.bands)
        day = self._day_bytes(rows, columns)
        return 4 * rows * columns * kept + min(days * day, max(day, DAY_BYTES[torch.device(self._device).type]))

    @property
    def _device(self) -> str:
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    def _autocast(self) -> torch.autocast:
        kind = torch.device(self._device).type
        # Without matrix units for it, bfloat16 on a CPU is 17 to 490 times slower than float32.
        wanted = kind == "cuda" if self.dtype == "auto" else self.dtype == "bfloat16"
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=wanted)

    def warm(self) -> None:
        """Load the weights now, so that the first block does not wait for them."""
        self._loaded()

    def _loaded(self) -> Network:
        return _network(self.path, self.sha256, self._device)

    def prepare(self, bracket: Bracket) -> Prepared:
        """The fine branches of both stages.

        Raises
        ------
        InputError
            If the data have another ratio than the predictor was opened for: its halo would be another one.
        """
        architecture = self.architecture
        if bracket.ratio != self.ratio:
            raise InputError(
                f"the predictor was opened for {self.ratio} fine pixels a cell, the data have {bracket.ratio}"
            )
        device = torch.device(self._device)
        margins = margins_within(architecture, bracket.halo, bracket.ratio)
        rows, columns = (side - 2 * bracket.halo.fine for side in bracket.day_before.shape)
        with torch.inference_mode():
            pace = architecture.pace(to_tensors(bracket, device), margins.result1)
            count = len(architecture.bands)
            pair = to_pair(bracket, margins, architecture.unit, device, self._places, count)
            with self._autocast():
                return Prepared(start(self._loaded(), pair), pace, (rows, columns))

    def predict(self, prepared: Prepared, coarse: CoarseWindow) -> Prediction:
        """The target days, in batches of bounded memory."""
        batch = self._batch(prepared.started.pair)
        parts = [self._days(prepared, coarse, days) for days in _chunks(coarse.days, batch)]
        means, clipped = zip(*parts, strict=True)
        return Prediction(np.concatenate(means), clipped=np.concatenate(clipped))

    def _batch(self, pair: Pair) -> int:
        rows, columns = (side + 2 * pair.margins.coarse1 for side in pair.shape)
        return max(1, DAY_BYTES[torch.device(self._device).type] // self._day_bytes(rows, columns))

    def _day_bytes(self, rows: int, columns: int) -> int:
        """Of one day: twice the widest layer, in float32."""
        return 8 * rows * columns * self.architecture.width // self.architecture.step**2

    def _days(
        self, prepared: Prepared, coarse: CoarseWindow, days: tuple[int, ...]
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        try:
            return self._run(prepared, coarse, days)
        except torch.OutOfMemoryError:
            if len(days) == 1:
                raise ResourceError(
                    "the GPU has too little memory for one day of a block; choose a smaller --tile"
                ) from None
        halves = [self._days(prepared, coarse, part) for part in _chunks(days, -(-len(days) // 2))]
        return np.concatenate([mean for mean, _ in halves]), np.concatenate([where for _, where in halves])

    def _run(
        self, prepared: Prepared, coarse: CoarseWindow, days: tuple[int, ...]
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        pair, (rows, columns), places = prepared.started.pair, prepared.size, self._places
        with torch.inference_mode():
            targets = Targets.of(prepared.pace, coarse, days, torch.device(self._device))
            targets = targets.placed(places, len(self.architecture.bands))
            with self._autocast():
                middle = stage1(self._loaded(), prepared.started, targets)[1]
                mean = stage2(self._loaded(), prepared.started, middle)
            clipped = outside(pair, targets.coarse)
        return mean[:, places, :rows, :columns].cpu().numpy(), clipped[..., :rows, :columns].cpu().numpy()


def load(model: str | PathLike[str] | None, bands: tuple[str, ...], ratio: int | None = None) -> STFGAN:
    """The predictor of a checkpoint, or of the weights that come with the package, for some bands.

    Raises
    ------
    InputError
        If the checkpoint is missing, damaged, of another method or of other bands.
    """
    path = checkpoint.shipped(bands) if model is None else checkpoint.resolve(model)
    config = checkpoint.read_config(path)
    checkpoint.require(config, METHOD, bands)
    return STFGAN.open(path, ratio, subset=None if tuple(config["bands"]) == bands else bands)


def _chunks(days: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    for first in range(0, len(days), size):
        yield days[first : first + size]
