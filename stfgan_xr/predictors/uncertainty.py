"""How far a predicted reflectance may be off: a standard deviation of every pixel, calibrated on withheld days.

The variance of a band is a sum of :data:`CAUSES`, each with a coefficient that is not negative. They are found by
Gaussian likelihood, whatever the method: causes are read from what every method is given, and from its prediction.
Where the land changes at once errors are far greater than elsewhere, and nothing tells before where that is. So errors
have heavier tails than a Gaussian of that deviation, and the half widths of the intervals that hold 68 % and 95 % of
them are stated with it, in standard deviations: about 0.8 and 2, where a Gaussian has 1 and 2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize
from torch import Tensor
from torch.nn import functional

from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket, CoarseWindow, Prediction, Predictor, memory_of
from stfgan_xr.predictors.simple import BracketTensors, to_tensors, weight_after

CAUSES = {
    "constant": "1",
    "gap": "w (1 - w) days from the observation before to the one after, w the share of them that has passed",
    "detail": "w (1 - w) square of the fine change between the observations less the coarse one",
    "texture": "square of an observation less the mean of the 3 x 3 pixels around, interpolated in time",
    "brightness": "square of the prediction",
    "departure": "square of the coarse image less the one interpolated between the days of the observations",
    "age": "days to the observation, where only one side has one",
}
"""What makes predictions uncertain, in the order of the coefficients; reflectance and days."""
SHARES = (0.68, 0.95)
"""Parts of the errors that the intervals hold."""
LEAST = 1e-8
"""Least constant variance: that of one count."""
REACH = Halo(fine=1, coarse=1)
"""What causes are read from beyond a block."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Uncertainty:
    """The coefficients of a method.

    Attributes
    ----------
    bands
        Names of the bands.
    variance
        Of each band a coefficient for each of :data:`CAUSES`.
    intervals
        Of each band the half widths of the intervals of :data:`SHARES`, in standard deviations.
    observed
        Of each band the standard deviation of a fine observation.
    """

    bands: tuple[str, ...]
    variance: tuple[tuple[float, ...], ...]
    intervals: tuple[tuple[float, float], ...]
    observed: tuple[float, ...]

    def of(self, bands: Sequence[str]) -> Uncertainty:
        """The same for some of its bands, in their order."""
        places = [self.bands.index(band) for band in bands]
        return Uncertainty(
            tuple(bands),
            tuple(self.variance[at] for at in places),
            tuple(self.intervals[at] for at in places),
            tuple(self.observed[at] for at in places),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the coefficients."""
        return hashlib.sha256(json.dumps(self.to_config(), sort_keys=True).encode()).hexdigest()

    def to_config(self) -> dict[str, Any]:
        """For the JSON side of a checkpoint: by band, in the order of ``causes``."""
        facts = zip(self.bands, self.variance, self.intervals, self.observed, strict=True)
        return {
            "causes": list(CAUSES),
            "bands": {
                band: {"variance": list(variance), "intervals": list(intervals), "observed": observed}
                for band, variance, intervals, observed in facts
            },
        }

    @classmethod
    def from_config(cls, config: Any, bands: Sequence[str]) -> Uncertainty:
        """From the JSON side of a checkpoint for ``bands``, or those of them that it was calibrated for.

        Raises
        ------
        InputError
            If it is not of these causes and bands, or a number is not finite, negative, or zero where it must not be.
        """
        of_bands = config.get("bands") if isinstance(config, dict) else None
        whole = isinstance(of_bands, dict) and of_bands and set(of_bands) <= set(bands)
        if not isinstance(of_bands, dict) or not whole or config.get("causes") != list(CAUSES):
            raise InputError(
                f"the checkpoint's uncertainty must be of {', '.join(CAUSES)} and the bands {', '.join(bands)}; "
                "calibrate it again (python -m pipelines.calibrate)"
            )
        bands = [band for band in bands if band in of_bands]
        found = [of_bands[band] if isinstance(of_bands[band], dict) else {} for band in bands]
        variance = tuple(_numbers(facts.get("variance"), len(CAUSES)) for facts in found)
        intervals = tuple(_numbers(facts.get("intervals"), 2) for facts in found)
        observed = tuple(_numbers([facts.get("observed")], 1)[0] for facts in found)
        if not all(v[0] > 0 and 0 < low <= high for v, (low, high) in zip(variance, intervals, strict=True)):
            raise InputError("the checkpoint's uncertainty must have a constant above 0 and ascending intervals")
        if not all(observed):
            raise InputError("the checkpoint's uncertainty of an observation must be above 0")
        return cls(tuple(bands), variance, intervals, observed)  # type: ignore[arg-type]


def _numbers(given: Any, count: int) -> tuple[float, ...]:
    # True is an int, but no number; what is not a number is within no bounds.
    listed = isinstance(given, list) and len(given) == count and all(type(number) in (int, float) for number in given)
    if listed and all(0 <= number <= 1e6 for number in given):
        return tuple(float(number) for number in given)
    raise InputError(f"the checkpoint's uncertainty must hold {count} numbers of 0 to a million, not {given!r:.80}")


@dataclass(frozen=True)
class Causes:
    """What of a bracket tells how far predictions may be off, on the block.

    Attributes
    ----------
    pair
        The bracket without margin.
    detail, texture_before, texture_after
        ``(band, y, x)`` squares; see :data:`CAUSES`.
    """

    pair: BracketTensors
    detail: Tensor
    texture_before: Tensor
    texture_after: Tensor

    @classmethod
    def of(cls, bracket: Bracket) -> Causes:
        """Of a bracket whose halo holds :data:`REACH`."""
        near = to_tensors(bracket, torch.device("cpu")).crop(1)
        pair = near.crop(0)
        detail = pair.fine_after - pair.fine_before - pair.up(pair.coarse_after - pair.coarse_before)
        return cls(pair, detail**2, _texture(near.fine_before), _texture(near.fine_after))

    def on(self, day: int, coarse: Tensor, mean: Tensor) -> Iterator[Tensor]:
        """Each of :data:`CAUSES` on a day, ``(band, y, x)`` or of a shape that extends to it.

        Parameters
        ----------
        day
            Days since 1970-01-01.
        coarse
            ``(band, cy, cx)`` coarse image of the day on the cells of the bracket.
        mean
            ``(band, y, x)`` predicted reflectance of the day.
        """
        pair, weight = self.pair, weight_after(self.pair, day)
        between, span = weight * (1 - weight), pair.day_after - pair.day_before
        yield torch.ones_like(weight)
        yield between * span
        yield between * self.detail
        yield torch.lerp(self.texture_before, self.texture_after, weight)
        yield mean**2
        yield torch.lerp(pair.up(coarse - pair.coarse_before), pair.up(coarse - pair.coarse_after), weight) ** 2
        yield (span == 0) * (day - pair.day_before).abs().to(weight.dtype)


def _texture(image: Tensor) -> Tensor:
    """Squares ``(band, y, x)`` from an image with a margin of one pixel."""
    return (image[..., 1:-1, 1:-1] - functional.avg_pool2d(image, 3, stride=1)) ** 2


@dataclass(frozen=True)
class Prepared:
    """What a method keeps of an interval, and its :class:`Causes`."""

    own: Any
    causes: Causes


def reach(predictor: Predictor) -> Halo:
    """What a method and its causes see beyond a block."""
    own = predictor.halo
    return Halo(max(own.fine, REACH.fine), max(own.coarse, REACH.coarse), own.days)


def prepare(predictor: Predictor, bracket: Bracket) -> Prepared:
    """A bracket with the halo of :func:`reach` for a method that asks for less."""
    return Prepared(predictor.prepare(bracket.within(predictor.halo)), Causes.of(bracket))


def predict(predictor: Predictor, prepared: Prepared, coarse: CoarseWindow) -> Prediction:
    """What the method alone predicts."""
    return predictor.predict(prepared.own, coarse.crop(prepared.causes.pair.halo.coarse - predictor.halo.coarse))


@dataclass(frozen=True)
class Calibrated:
    """A method with the standard deviation of what it predicts."""

    predictor: Predictor
    uncertainty: Uncertainty

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        return self.predictor.bands

    @property
    def halo(self) -> Halo:
        """What it must see beyond a block."""
        return reach(self.predictor)

    def memory(self, rows: int, columns: int, days: int) -> int:
        """Bytes for a block: the method's own, and eight images for the causes."""
        return memory_of(self.predictor, rows, columns, days) + 32 * rows * columns * len(self.bands)

    def prepare(self, bracket: Bracket) -> Prepared:
        """Everything that does not depend on the target day."""
        return prepare(self.predictor, bracket)

    def predict(self, prepared: Prepared, coarse: CoarseWindow) -> Prediction:
        """The target days, with their standard deviation."""
        found = predict(self.predictor, prepared, coarse)
        with torch.inference_mode():
            days = zip(coarse.days, found.mean, strict=True)
            return replace(found, std=np.stack([self._std(prepared.causes, coarse, *day) for day in days]))

    def _std(self, causes: Causes, coarse: CoarseWindow, day: int, mean: npt.NDArray[np.float32]) -> Any:
        image = torch.from_numpy(mean)
        total = torch.zeros_like(image)
        factors = torch.tensor(self.uncertainty.variance)[..., None, None].unbind(1)  # each (band, 1, 1)
        for factor, cause in zip(factors, causes.on(day, torch.from_numpy(coarse.on(day)), image), strict=True):
            total += factor * cause
        return total.sqrt().numpy()


def known(predictor: Predictor) -> Uncertainty | None:
    """What is known of a method's uncertainty; None of a method without, or weights that were not calibrated."""
    return getattr(predictor, "uncertainty", None)


def calibrated(predictor: Predictor) -> Calibrated:
    """A method with its standard deviation, if its weights were calibrated.

    Raises
    ------
    InputError
        If they were not, or it has none.
    """
    if isinstance(predictor, Calibrated):
        return predictor
    found = known(predictor)
    if found is None:
        raise InputError(
            f"the uncertainty of {type(predictor).__name__.lower()} is not known: take stfgan with calibrated weights "
            "(python -m pipelines.calibrate)"
        )
    return Calibrated(predictor, found)


def fit(causes: Float, errors: Float) -> tuple[tuple[float, ...], tuple[float, float]]:
    """The coefficients of a band under which its errors are most likely if each is Gaussian, and its intervals.

    Parameters
    ----------
    causes
        ``(cause, pixel)`` of :data:`CAUSES`.
    errors
        ``(pixel,)`` of reflectance.

    Returns
    -------
    tuple
        A coefficient for each cause, and half widths in standard deviations.
    """
    # In units in which each cause has the mean 1 and the answer is about 1; what never occurs has no coefficient.
    sizes, square = causes.mean(axis=1), max(float(np.mean(errors**2)), LEAST)
    there = sizes > 0
    parts = causes[there] / sizes[there, None]
    squares = errors**2 / square

    def surprise(weights: Float) -> tuple[float, Float]:
        variance = weights @ parts
        return float(np.mean(np.log(variance) + squares / variance)), parts @ (
            (1 - squares / variance) / variance
        ) / len(squares)

    count = int(there.sum())
    bounds = [(LEAST / square, None), *[(0.0, None)] * (count - 1)]
    found = optimize.minimize(surprise, np.full(count, 1 / count), jac=True, bounds=bounds, method="L-BFGS-B").x
    coefficients = np.zeros(len(sizes))
    coefficients[there] = found * square / sizes[there]
    low, high = np.maximum(np.quantile(np.abs(errors) / np.sqrt(coefficients @ causes), SHARES), LEAST)
    return tuple(map(float, coefficients)), (float(low), float(high))


def calibrate(bands: Sequence[str], causes: Float, errors: Float, observed: Sequence[float]) -> Uncertainty:
    """:func:`fit` of each band.

    Parameters
    ----------
    causes, errors
        ``(cause, band, pixel)`` and ``(band, pixel)``.
    observed
        See :class:`Uncertainty`.
    """
    found = [fit(causes[:, at], errors[at]) for at in range(len(bands))]
    return Uncertainty(tuple(bands), tuple(of for of, _ in found), tuple(of for _, of in found), tuple(observed))
