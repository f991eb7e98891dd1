"""Sensors made alike: linear adjustments of reflectance, published ones, or fitted where two series overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from stfgan_xr.errors import SourceError
from stfgan_xr.sensors import BANDS, FILL, NOT_CLEAR, SCALE, Observation

Counts = npt.NDArray[np.int16]

CAUTION = 10.0
"""A gain counts as told where cells differ by more than this many times the variance that the fit leaves; over even
ground, where they differ by noise only, it stays 1."""
PRIOR_CELLS = 10
"""Weight of an offset of 0 in a fit."""
ROUNDS, OUTLIER = 20, 4.685
"""A fit is made so often. Cells count the less in the next, the further off they lie, and not at all beyond this many
robust standard deviations (Tukey's biweight, of 95 per cent efficiency)."""
GAINS, LARGEST_OFFSET = (0.5, 2.0), 0.1
"""Beyond these two products are not of the same kind."""
_UNUSABLE = NOT_CLEAR | Observation.SNOW | Observation.LOW_QUALITY


@dataclass(frozen=True)
class Linear:
    """reflectance -> gain * reflectance + offset."""

    gain: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Fit:
    """A fitted adjustment: of how many cells, and the root mean square difference of reflectance before and after."""

    linear: Linear
    cells: int
    before: float
    after: float

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self.linear) | {"cells": self.cells, "rmsd_before": self.before, "rmsd_after": self.after}


def fit_of(document: Mapping[str, Any]) -> Fit:
    """The reverse of :meth:`Fit.plain`."""
    linear = Linear(float(document["gain"]), float(document["offset"]))
    return Fit(linear, int(document["cells"]), float(document["rmsd_before"]), float(document["rmsd_after"]))


def _table(gains: tuple[float, ...], offsets: tuple[float, ...]) -> dict[str, Linear]:
    return {band: Linear(gain, offset) for band, gain, offset in zip(BANDS, gains, offsets, strict=True)}


ROY_2016 = "Roy et al. 2016, doi:10.1016/j.rse.2015.12.024, table 2: surface reflectance, ETM+ to OLI"
HLS = "HLS User Guide v2.0, bandpass adjustment (Claverie et al. 2018, doi:10.1016/j.rse.2018.09.002): MSI to OLI"
BANDPASS: Mapping[str, tuple[str, Mapping[str, Linear]]] = {
    "landsat-7": (
        ROY_2016,
        _table((0.8474, 0.8483, 0.9047, 0.8462, 0.8937, 0.9071), (0.0003, 0.0088, 0.0061, 0.0412, 0.0254, 0.0172)),
    ),
    "sentinel-2a": (
        HLS,
        _table((0.9778, 1.0053, 0.9765, 0.9983, 0.9987, 1.003), (-0.004, -0.0009, 0.0009, -0.0001, -0.0011, -0.0012)),
    ),
    "sentinel-2b": (
        HLS,
        _table((0.9778, 1.0075, 0.9761, 0.9966, 1.000, 0.9867), (-0.004, -0.0008, 0.001, 0.000, -0.0003, 0.0004)),
    ),
}
"""Source and coefficients that bring a platform's bands to those of OLI. HLS is adjusted already."""


def bandpass(sensor: str, platform: str) -> tuple[str, Mapping[str, Linear]] | None:
    """Published coefficients that bring a scene to OLI's bands; None if it has them already, or none are published.

    >>> bandpass("landsat-tm", "landsat-7")[1]["red"]
    Linear(gain=0.9047, offset=0.0061)
    >>> bandpass("hls-s30", "sentinel-2a") is None
    True
    """
    return None if sensor.startswith("hls") else BANDPASS.get(platform)


@lru_cache(maxsize=64)
def _adjusted(linear: Linear) -> Counts:
    # One entry for each count, indexed by the count read as unsigned.
    counts = np.arange(65536, dtype=np.uint16).view(np.int16)
    moved = np.floor(counts.astype(np.float64) * linear.gain + linear.offset / SCALE + 0.5)
    return np.where(counts == FILL, FILL, moved.clip(FILL + 1, 32767)).astype(np.int16)


def adjust(counts: Counts, linear: Linear) -> Counts:
    """Adjusted counts, half up; fill stays fill.

    >>> adjust(np.array([1000, -32768], "int16"), Linear(0.9, 0.01)).tolist()
    [1000, -32768]
    """
    return _adjusted(linear)[counts.view(np.uint16)]


def adjust_dataset(dataset: xr.Dataset, linears: Mapping[str, Linear]) -> xr.Dataset:
    """A Dataset of counts, lazy or not, with some bands adjusted."""
    options: dict[str, Any] = {"dask": "parallelized", "output_dtypes": [np.int16], "keep_attrs": True}
    return dataset.assign(
        {band: xr.apply_ufunc(adjust, dataset[band], kwargs={"linear": linears[band]}, **options) for band in linears}
    )


def fit(reference: Counts, other: Counts) -> Fit:
    """The adjustment that brings counts to those of a reference, where both have a value.

    Robust least squares of the reference on the other, with a gain of 1 and an offset of 0 as prior.

    Parameters
    ----------
    reference, other
        Counts of one shape.

    >>> rng = np.random.default_rng(0)
    >>> values = rng.integers(0, 5000, 1000)
    >>> round(fit((1.1 * values + 50).astype("int16"), values.astype("int16")).linear.gain, 3)
    1.1
    """
    both = (reference != FILL) & (other != FILL)
    wanted, given = reference[both] * SCALE, other[both] * SCALE
    if not wanted.size:
        return Fit(Linear(), 0, 0.0, 0.0)
    weights, spread = np.ones(wanted.shape), 0.0
    for _ in range(ROUNDS):  # without the prior, which would hold a bad start
        away = _away(_least_squares(wanted, given, weights, 0.0), wanted, given)
        spread = max(1.4826 * float(np.median(away)), SCALE)
        weights = (1 - np.minimum(away / (OUTLIER * spread), 1) ** 2) ** 2
    linear = _least_squares(wanted, given, weights, spread)
    away = _away(linear, wanted, given)
    return Fit(linear, int((weights > 0).sum()), _rms(wanted - given), _rms(away))


def _away(linear: Linear, wanted: npt.NDArray[np.float64], given: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    away: npt.NDArray[np.float64] = np.abs(wanted - linear.gain * given - linear.offset)
    return away


def _rms(values: npt.NDArray[np.float64]) -> float:
    return round(float(np.sqrt(np.mean(values**2))), 6)


def _least_squares(
    wanted: npt.NDArray[np.float64], given: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], spread: float
) -> Linear:
    total = weights.sum()
    middle_wanted, middle_given = weights @ wanted / total, weights @ given / total
    across, along = given - middle_given, wanted - middle_wanted
    prior = CAUTION * total * spread**2 + 1e-12  # of even ground without noise
    gain = (weights * across @ along + prior) / (weights * across @ across + prior)
    offset = (middle_wanted - gain * middle_given) * total / (total + PRIOR_CELLS)
    return Linear(round(float(gain), 6), round(float(offset), 6))


def fit_datasets(reference: xr.Dataset, other: xr.Dataset) -> dict[str, Fit]:
    """The adjustment of each band of a Dataset of counts to a reference on the same days and grid.

    Cells count where both are of full quality and free of snow.

    Raises
    ------
    SourceError
        If a band would have to be changed so much that the two cannot be the same kind of product.
    """
    usable = ((reference["qa"].values | other["qa"].values) & np.uint16(_UNUSABLE)) == 0
    found = {}
    for band in (str(name) for name in reference.data_vars if name != "qa"):
        theirs, ours = (np.where(usable, each[band].values, np.int16(FILL)) for each in (reference, other))
        found[band] = fit(theirs, ours)
        linear = found[band].linear
        if not GAINS[0] <= linear.gain <= GAINS[1] or abs(linear.offset) > LARGEST_OFFSET:
            raise SourceError(
                f"the two coarse series do not fit together: {band} of the second would need gain {linear.gain:g} and "
                f"offset {linear.offset:g}; check their catalogs"
            )
    return found
