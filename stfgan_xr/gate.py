"""What a trained network must show: the halo that its weights need, its scores on withheld acquisitions, and how far it
is off there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import nn

from stfgan_xr.grid import Halo, Window, tile_step, tiles
from stfgan_xr.predictors import Bracket, CoarseWindow, Predictor, uncertainty
from stfgan_xr.predictors.learned import Method
from stfgan_xr.predictors.progress import Progress
from stfgan_xr.predictors.simple import Delta, Linear, Persistence
from stfgan_xr.predictors.stages import METHOD
from stfgan_xr.predictors.uncertainty import Uncertainty
from stfgan_xr.samples import Place, Sample, Triplet, interval_of, observation_of, read, target_of, triplets, windows

BLOCK = 64
PIXELS = 2000
"""Of a block that uncertainty is calibrated on."""
OBSERVED = 0.01
"""Standard deviation of an observation where no truth tells it. Vermote et al. 2016 (doi 10.1016/j.rse.2016.04.008)
hold Landsat 8's reflectance against 0.005 + 5 %: this is that of land with a reflectance of 0.1."""


def _examples(places: Sequence[Place], halo: Halo, count: int, seed: int) -> Iterator[tuple[Bracket, CoarseWindow]]:
    choices, draw = triplets(places), np.random.default_rng([seed, 1])
    for _ in range(count):
        triplet: Triplet = choices[int(draw.integers(len(choices)))]
        place = places[triplet.place]
        window = windows(place.landsat.shape, max(BLOCK, tile_step(place.ratio)), place.ratio, draw)
        interval = interval_of(place, triplet, window, halo)
        yield interval.bracket, interval.coarse


def measure_halo(method: Method, network: nn.Module, places: Sequence[Place], seed: int = 0, count: int = 3) -> Halo:
    """The smallest halo that a method knows with which blocks of sample data come out as with the exact one.

    Parameters
    ----------
    network
        Of the method, trained, not folded.
    places
        Regions to draw the blocks from, of any of the network's bands.
    count
        Number of blocks.

    Returns
    -------
    Halo
        For the ratio the network was trained with.
    """
    return method.measured_halo(
        network, lambda halo: list(_examples(places, halo, count, seed)), places[0].landsat.bands
    )


def withheld_triplets(place: Place, number: int = 0) -> tuple[Triplet, ...]:
    """Each withheld acquisition with its nearest neighbours among those that training saw."""
    found = []
    for target in sorted(place.withheld):
        earlier, later = [d for d in place.days if d < target], [d for d in place.days if d > target]
        if earlier and later:
            found.append(Triplet(number, earlier[-1], target, later[0]))
    return tuple(found)


def _withheld(places: Sequence[Place], size: int, draw: np.random.Generator) -> list[tuple[Place, Triplet, Window]]:
    """All blocks of withheld acquisitions in random order."""
    cases = [
        (place, triplet, window)
        for number, place in enumerate(places)
        for triplet in withheld_triplets(place, number)
        for window in tiles(place.landsat.shape, size // tile_step(place.ratio) * tile_step(place.ratio))
    ]
    return [cases[at] for at in draw.permutation(len(cases))]


def withheld_samples(
    places: Sequence[Place], size: int, halo: Halo, seed: int, bands: Sequence[str], count: int = 24
) -> list[Sample]:
    """At most ``count`` samples of withheld acquisitions, all of ``size`` pixels a side, with the networks' bands."""
    cases = [
        case for case in _withheld(places, size, np.random.default_rng([seed, 3])) if case[2].shape == (size, size)
    ]
    found = (read(*case, halo, bands=bands) for case in cases[: 4 * count])
    return list(islice((sample for sample in found if sample is not None), count))


def _squared_errors(
    methods: Sequence[Predictor], place: Place, triplet: Triplet, window: Window
) -> tuple[list[float], int]:
    """The sum of each method's squared errors over a block, and how many values it is of."""
    sample = read(place, triplet, window, Halo(fine=0, coarse=1))
    if sample is None:
        return [0.0] * len(methods), 0
    sums, target = [], sample.target.astype(np.float32) * np.float32(1e-4)
    for method in methods:
        interval = interval_of(place, triplet, window, method.halo)
        mean = method.predict(method.prepare(interval.bracket), interval.coarse).mean[0]
        sums.append(float(np.square((mean - target)[sample.clear], dtype=np.float64).sum()))
    return sums, int(sample.clear.sum())


def compare(
    predictor: Predictor,
    places: Sequence[Place],
    seed: int = 0,
    blocks: int = 200,
    size: int = 256,
    others: Mapping[str, Predictor] | None = None,
    name: str = METHOD,
) -> dict[str, Any]:
    """Root mean squared errors on the withheld acquisitions, of the network and of what it must beat.

    Parameters
    ----------
    blocks, size
        At most so many blocks, of so many pixels a side, drawn at random.
    others
        Predictors by name to compare with, beside progress, delta, linear and persistence.
    name
        What the network's scores are called.

    Returns
    -------
    dict
        ``blocks``, ``pixels``, ``rmse`` by method (reflectance, over all clear pixels and bands) and ``skill``:
        1 - rmse / min(rmse of linear, rmse of delta).
    """
    cases = _withheld(places, size, np.random.default_rng([seed, 2]))[:blocks]
    methods: dict[str, Predictor] = {
        name: predictor,
        "progress": Progress(predictor.bands, places[0].ratio),
        "delta": Delta(predictor.bands),
        "linear": Linear(predictor.bands),
        "persistence": Persistence(predictor.bands),
        **(others or {}),
    }
    found = [_squared_errors(list(methods.values()), *case) for case in cases]
    count = sum(values for _, values in found)
    totals = np.sum([sums for sums, _ in found], axis=0) if found else np.zeros(len(methods))
    rmse = {of: float(np.sqrt(total / max(count, 1))) for of, total in zip(methods, totals, strict=True)}
    best = min(rmse["delta"], rmse["linear"])
    skill = 1 - rmse[name] / best if best else 0.0
    return {
        "blocks": sum(values > 0 for _, values in found),
        "pixels": count // len(predictor.bands),
        "rmse": rmse,
        "skill": skill,
    }


def _explained(
    predictor: Predictor, place: Place, triplet: Triplet, window: Window, draw: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Causes ``(cause, band, pixel)`` and errors ``(band, pixel)`` of pixels of a block, and errors of its observation
    where a truth tells them."""
    target, known = target_of(place, triplet.target, window)
    observed, clear = observation_of(place, triplet.target, window)
    interval = interval_of(place, triplet, window, uncertainty.reach(predictor))
    # Bilinear interpolation carries what stands for a missing cell into its neighbours.
    holes = ndimage.binary_dilation(interval.gaps.missing[0], np.ones((3, 3), bool))
    known = known & ~interval.missing & ~np.kron(holes, np.ones((place.ratio, place.ratio), bool))
    chosen = np.flatnonzero(known)
    rows, columns = np.unravel_index(draw.permutation(chosen)[:PIXELS], known.shape)
    with torch.inference_mode():
        prepared = uncertainty.prepare(predictor, interval.bracket)
        mean = uncertainty.predict(predictor, prepared, interval.coarse).mean[0]
        image, coarse = torch.from_numpy(mean), torch.from_numpy(interval.coarse.on(triplet.target))
        causes = [
            cause.expand(image.shape).numpy()[:, rows, columns]
            for cause in prepared.causes.on(triplet.target, coarse, image)
        ]
    noise = (observed - target)[:, clear] if place.truth is not None else np.empty((len(target), 0), np.float32)
    return np.stack(causes), (mean - target)[:, rows, columns], noise


def calibrate(
    predictor: Predictor, places: Sequence[Place], seed: int = 0, blocks: int = 200, size: int = 256
) -> Uncertainty | None:
    """How far a method is off on the withheld acquisitions: against the truth where it is known, else against them.

    Parameters
    ----------
    predictor
        Any method.
    blocks, size
        At most so many blocks, of so many pixels a side, drawn at random; each gives :data:`PIXELS` at most.

    Returns
    -------
    Uncertainty or None
        None without a usable pixel.
    """
    draw = np.random.default_rng([seed, 3])
    found = [_explained(predictor, *case, draw) for case in _withheld(places, size, draw)[:blocks]]
    if not sum(errors.shape[1] for _, errors, _ in found):
        return None
    causes, errors, noise = (np.concatenate(part, axis=-1).astype(np.float64) for part in zip(*found, strict=True))
    observed = np.sqrt((noise**2).mean(axis=1)) if noise.size else np.full(len(errors), OBSERVED)
    return uncertainty.calibrate(predictor.bands, causes, errors, observed.tolist())
