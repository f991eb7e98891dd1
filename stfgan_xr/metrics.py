"""Scores of a predicted image against a reference: per band, then averaged over bands, in reflectance units.

Pixels that are masked, or without a value in any band of either image, are dropped and never set to zero. Conventions
differ between papers; those used here:

========================  ======================================================================================
``rmse``, ``mae``         of prediction minus truth
``bias``                  mean of prediction minus truth
``cc``                    Pearson correlation
``psnr``                  dB, for a peak of 1
``uiqi``                  universal image quality index over the whole band (Wang & Bovik 2002)
``ssim``                  11 x 11 Gaussian, sigma 1.5, data range 1 (Wang 2004)
``ssim_stretched``        the same after both bands are stretched by the truth's 2nd and 98th percentile
``sam``                   mean spectral angle in degrees; needs two bands
``ergas``                 ``100 / ratio * sqrt(mean((rmse / mean of truth) ** 2))`` (Wald 2000); needs two bands
``edge``, ``lbp``         texture of the APA framework (Zhu 2022): mean normalised difference of Roberts edges and of
                          local binary patterns; 0 is best, negative is too smooth
``skill``                 what is gained over the better of linear and delta: :func:`skill`
``coverage_68``, ``_95``  share of the pixels whose error is within the interval that is to hold 68 %, 95 % of them
``rmse_surest``,          of the fifth of the pixels with the smallest predicted standard deviation, and of the fifth
``rmse_least_sure``       with the greatest
========================  ======================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Image = npt.NDArray[np.floating[Any]]

SIGMA = 1.5
WINDOW = 11
STRONGEST_EDGES = 0.9
"""Edges above this quantile of the truth's are compared."""
_RADIUS = WINDOW // 2
_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


@dataclass(frozen=True)
class Scores:
    """Scores of one image, each averaged over its bands; None where a score is not defined.

    Attributes
    ----------
    rmse, bias, mae
        Reflectance.
    cc, ssim, ssim_stretched, uiqi
        1 is best.
    psnr
        dB; None for equal images.
    sam
        Degrees; None for one band.
    ergas
        None for one band.
    edge, lbp
        -1 to 1, 0 is best.
    skill
        1 is best, 0 is no gain; known by :func:`with_skill`.
    coverage_68, coverage_95, rmse_surest, rmse_least_sure
        Of predictions with a standard deviation; known by :func:`with_intervals`.
    pixels
        Pixels scored.
    by_band
        The scores of each band, in the order of the bands, by name; without ``sam`` and ``ergas``.
    """

    rmse: float | None = None
    cc: float | None = None
    ssim: float | None = None
    sam: float | None = None
    ergas: float | None = None
    bias: float | None = None
    mae: float | None = None
    psnr: float | None = None
    uiqi: float | None = None
    ssim_stretched: float | None = None
    edge: float | None = None
    lbp: float | None = None
    skill: float | None = None
    coverage_68: float | None = None
    coverage_95: float | None = None
    rmse_surest: float | None = None
    rmse_least_sure: float | None = None
    pixels: int = 0
    by_band: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


NAMES = tuple(found.name for found in fields(Scores) if found.name not in ("pixels", "by_band"))
"""Names of the scores."""


def scores(prediction: Image, truth: Image, mask: Bool | None = None, ratio: int = 16) -> Scores:
    """All scores of a predicted image.

    Parameters
    ----------
    prediction, truth
        Reflectance ``(band, y, x)``; NaN is no value.
    mask
        ``(y, x)``, True where pixels count; by default all that have a value in every band of both.
    ratio
        Fine pixels along a coarse cell, for ERGAS.

    Raises
    ------
    ValueError
        If the shapes differ.

    >>> truth = np.linspace(0.1, 0.4, 512).reshape(2, 16, 16)
    >>> found = scores(truth + 0.01, truth)
    >>> round(found.rmse, 6), round(found.bias, 6), round(found.psnr, 6), found.pixels
    (0.01, 0.01, 40.0, 256)
    """
    valid = _valid(prediction, truth, mask)
    found = sample_scores(prediction, truth, valid, ratio)
    if found.pixels == 0:
        return found
    images, references = (np.where(valid, image, np.nan).astype(np.float64) for image in (prediction, truth))
    texture = {
        name: np.array([measure(*pair, valid) for pair in zip(images, references, strict=True)])
        for name, measure in _IMAGE_SCORES.items()
    }
    return replace(found, **_band_means(texture), by_band={**found.by_band, **_by_band(texture)})


def sample_scores(prediction: Image, truth: Image, mask: Bool | None = None, ratio: int = 16) -> Scores:
    """The scores that do not look at a pixel's neighbours, for scattered masks; arguments as in :func:`scores`."""
    valid = _valid(prediction, truth, mask)
    if not valid.any():
        return Scores()
    samples = prediction[:, valid].astype(np.float64), truth[:, valid].astype(np.float64)
    bands = {name: score(*samples) for name, score in _SAMPLE_SCORES.items()}
    return Scores(
        **_band_means(bands), sam=_known(sam(*samples)), ergas=_known(ergas(*samples, ratio)),
        pixels=int(valid.sum()), by_band=_by_band(bands),
    )  # fmt: skip


def _band_means(found: Mapping[str, Float]) -> dict[str, Any]:
    # A band in which a score is not defined (a constant one has no correlation) is left out.
    return {name: _mean(values[~np.isnan(values)]) for name, values in found.items()}


def _mean(known: Float) -> float | None:
    return _known(float(known.mean())) if known.size else None


def _by_band(found: Mapping[str, Float]) -> dict[str, tuple[float | None, ...]]:
    return {name: tuple(_known(float(value)) for value in values) for name, values in found.items()}


def _valid(prediction: Image, truth: Image, mask: Bool | None) -> Bool:
    if prediction.ndim != 3 or prediction.shape != truth.shape or (mask is not None and mask.shape != truth.shape[1:]):
        shapes = f"{prediction.shape} and {truth.shape}" + ("" if mask is None else f", mask {mask.shape}")
        raise ValueError(f"images of one shape (band, y, x) are compared, not {shapes}")
    common = common_mask(prediction, truth)
    return common if mask is None else mask & common


def common_mask(*images: Image) -> Bool:
    """Where all bands of all images ``(band, y, x)`` have a value."""
    parts = [np.isfinite(image).all(axis=0) for image in images]
    return np.asarray(np.logical_and.reduce(parts), bool)


def skill(rmse: float | None, linear: float | None, delta: float | None) -> float | None:
    """``1 - rmse / min(linear, delta)``: what a method gains over the better nearly free one; None if unknown.

    >>> round(skill(0.03, 0.05, 0.04), 3)
    0.25
    """
    if rmse is None or linear is None or delta is None or min(linear, delta) == 0:
        return None
    return 1 - rmse / min(linear, delta)


def with_skill(found: Scores, linear: Scores | None, delta: Scores | None) -> Scores:
    """Scores with their skill, over all bands and in each, against those of linear and delta; as they are without."""
    if linear is None or delta is None:
        return found
    errors = zip(*(score.by_band.get("rmse", ()) for score in (found, linear, delta)), strict=True)
    return replace(
        found,
        skill=skill(found.rmse, linear.rmse, delta.rmse),
        by_band={**found.by_band, "skill": tuple(skill(*band) for band in errors)},
    )


def coverage(prediction: Float, truth: Float, half_width: Float) -> Float:
    """Share of the errors of ``(band, pixel)`` samples that are not greater than a half width, of each band.

    >>> coverage(np.zeros((1, 4)), np.array([[0.1, -0.2, 0.3, -0.4]]), np.full((1, 4), 0.25)).tolist()
    [0.5]
    """
    return np.asarray(np.mean(np.abs(prediction - truth) <= half_width, axis=1))


def fifths(prediction: Float, truth: Float, std: Float) -> tuple[Float, Float]:
    """Root mean square errors of ``(band, pixel)`` samples, of the fifth with the smallest predicted standard
    deviation and of the fifth with the greatest, of each band; not a number for fewer than five pixels."""
    order, count = np.argsort(std, axis=1, kind="stable"), std.shape[1] // 5
    if count == 0:
        return np.full(len(std), np.nan), np.full(len(std), np.nan)
    errors = np.take_along_axis(prediction - truth, order, axis=1)
    surest, least_sure = errors[:, :count], errors[:, -count:]
    return rmse(surest, np.zeros_like(surest)), rmse(least_sure, np.zeros_like(least_sure))


def with_intervals(
    found: Scores, prediction: Image, truth: Image, mask: Bool, std: Image, widths: tuple[Image, Image]
) -> Scores:
    """Scores with those of the predicted standard deviation.

    Parameters
    ----------
    found
        Scores of the prediction over ``mask``.
    std
        ``(band, y, x)`` standard deviation of the prediction.
    widths
        ``(band,)`` half widths of the intervals of 68 % and of 95 %, in standard deviations.
    """
    valid = _valid(prediction, truth, mask)
    if not valid.any():
        return found
    samples = prediction[:, valid].astype(np.float64), truth[:, valid].astype(np.float64)
    spread = std[:, valid].astype(np.float64)
    shares = {
        name: coverage(*samples, spread * width[:, None])
        for name, width in zip(("coverage_68", "coverage_95"), widths, strict=True)
    }
    bands = shares | dict(zip(("rmse_surest", "rmse_least_sure"), fifths(*samples, spread), strict=True))
    return replace(found, **_band_means(bands), by_band={**found.by_band, **_by_band(bands)})


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _divide(numerator: Float, denominator: Float) -> Float:
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def rmse(prediction: Float, truth: Float) -> Float:
    """Root mean square error of ``(band, pixel)`` samples, of each band.

    >>> rmse(np.array([[0.0, 0.0]]), np.array([[0.3, 0.4]])).tolist()
    [0.3535533905932738]
    """
    return np.sqrt(np.mean((prediction - truth) ** 2, axis=1, dtype=np.float64))


def bias(prediction: Float, truth: Float) -> Float:
    """Mean of prediction minus truth of ``(band, pixel)`` samples, of each band."""
    return np.asarray(np.mean(prediction - truth, axis=1))


def mae(prediction: Float, truth: Float) -> Float:
    """Mean absolute error of ``(band, pixel)`` samples, of each band."""
    return np.asarray(np.mean(np.abs(prediction - truth), axis=1))


def psnr(prediction: Float, truth: Float) -> Float:
    """Peak signal to noise ratio in dB for a peak of 1, of each band; not a number where both are equal."""
    errors = rmse(prediction, truth)
    return -20 * np.log10(np.where(errors > 0, errors, np.nan))


def _moments(prediction: Float, truth: Float) -> tuple[Float, Float, Float, Float, Float]:
    means = prediction.mean(axis=1), truth.mean(axis=1)
    departures = prediction - means[0][:, None], truth - means[1][:, None]
    covariance = np.mean(departures[0] * departures[1], axis=1)
    return *means, np.mean(departures[0] ** 2, axis=1), np.mean(departures[1] ** 2, axis=1), covariance


def cc(prediction: Float, truth: Float) -> Float:
    """Pearson correlation of ``(band, pixel)`` samples, of each band; not a number where one is constant."""
    _, _, variance, reference, covariance = _moments(prediction, truth)
    # A constant band leaves a variance of rounding errors only.
    varied = np.minimum(variance, reference) > 1e-20
    return _divide(covariance, np.sqrt(np.where(varied, variance * reference, 0)))


def uiqi(prediction: Float, truth: Float) -> Float:
    """Universal image quality index of ``(band, pixel)`` samples, over each whole band at once."""
    mean, other, variance, reference, covariance = _moments(prediction, truth)
    return _divide(4 * covariance * mean * other, (variance + reference) * (mean**2 + other**2))


def sam(prediction: Float, truth: Float) -> float:
    """Mean spectral angle in degrees of ``(band, pixel)`` samples; not a number for one band.

    >>> round(sam(np.array([[1.0], [0.0]]), np.array([[1.0], [1.0]])), 6)
    45.0
    """
    if len(truth) < 2:
        return math.nan
    lengths = np.linalg.norm(prediction, axis=0) * np.linalg.norm(truth, axis=0)
    cosine = _divide((prediction * truth).sum(axis=0), lengths)
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    known = ~np.isnan(angles)
    return float(angles[known].mean()) if known.any() else math.nan


def ergas(prediction: Float, truth: Float, ratio: int) -> float:
    """Relative global error of ``(band, pixel)`` samples; not a number for one band.

    ``1 / ratio`` is the fine over the coarse pixel size; errors are relative to the mean of the truth.
    """
    if len(truth) < 2:
        return math.nan
    relative = _divide(rmse(prediction, truth), truth.mean(axis=1))
    return 100 / ratio * math.sqrt(float(np.mean(relative**2)))


def _smooth(values: Float) -> Float:
    smoothed: Float = gaussian_filter(values, SIGMA, mode="reflect", truncate=_RADIUS / SIGMA)
    return smoothed


def ssim(prediction: Float, truth: Float, mask: Bool) -> float:
    """Structural similarity of one band ``(y, x)`` for a data range of 1.

    Local statistics are weighted by the Gaussian over valid pixels only (normalised convolution), and the map is
    averaged over valid pixels at least five pixels from the edge. Without a mask that is scikit-image's
    ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)``. Not a
    number for images under 11 pixels a side.
    """
    inner = np.zeros(mask.shape, bool)
    inner[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS] = mask[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    if min(mask.shape) < WINDOW or not inner.any():
        return math.nan
    left, right = np.where(mask, prediction, 0.0), np.where(mask, truth, 0.0)
    coverage = _smooth(mask.astype(np.float64))[inner]
    products = (left, right, left * left, right * right, left * right)
    mean, other, square, other_square, product = (_smooth(image)[inner] / coverage for image in products)
    first, second = 0.01**2, 0.03**2
    luminance = (2 * mean * other + first) / (mean**2 + other**2 + first)
    variances = square - mean**2 + other_square - other**2
    structure = (2 * (product - mean * other) + second) / (variances + second)
    return float(np.mean(luminance * structure))


def ssim_stretched(prediction: Float, truth: Float, mask: Bool) -> float:
    """:func:`ssim` after both are stretched by the truth's 2nd and 98th percentile and clipped to 0 and 1."""
    low, high = np.percentile(truth[mask], (2, 98))
    if high <= low:
        return math.nan
    left, right = (np.clip((image - low) / (high - low), 0, 1) for image in (prediction, truth))
    return ssim(left, right, mask)


def roberts(image: Float) -> Float:
    """Roberts edges of ``(y, x)``: ``|a - d| + |b - c|`` of each 2 x 2 pixels, shape ``(y - 1, x - 1)``.

    >>> roberts(np.array([[1.0, 2.0], [4.0, 8.0]])).tolist()
    [[9.0]]
    """
    return np.abs(image[:-1, :-1] - image[1:, 1:]) + np.abs(image[:-1, 1:] - image[1:, :-1])


def edge(prediction: Float, truth: Float, mask: Bool) -> float:
    """Mean of ``(P - T) / (P + T)`` over the truth's strongest tenth of Roberts edges, of one band ``(y, x)``."""
    whole = mask[:-1, :-1] & mask[1:, 1:] & mask[:-1, 1:] & mask[1:, :-1]
    predicted, true = roberts(prediction)[whole], roberts(truth)[whole]
    if true.size == 0:
        return math.nan
    strong = (true >= np.quantile(true, STRONGEST_EDGES)) & (true > 0)
    return _mean_difference(predicted[strong], true[strong])


def _mean_difference(predicted: Float, true: Float) -> float:
    if true.size == 0:
        return math.nan
    total = predicted + true
    return float(np.mean((predicted - true) / np.where(total > 0, total, 1)))


def _neighbours(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    height, width = array.shape
    return [array[1 + down : height - 1 + down, 1 + right : width - 1 + right] for down, right in _NEIGHBOURS]


def binary_patterns(image: Float) -> Float:
    """Local binary patterns of ``(y, x)``: a bit for each of eight neighbours that is greater, clockwise from the
    upper left, shape ``(y - 2, x - 2)``.

    >>> binary_patterns(np.array([[9.0, 0, 0], [0, 5, 9], [0, 0, 0]])).tolist()
    [[9.0]]
    """
    centre = image[1:-1, 1:-1]
    patterns = np.zeros(centre.shape)
    for bit, side in enumerate(_neighbours(image)):
        patterns += (side > centre) * 2.0**bit
    return patterns


def lbp(prediction: Float, truth: Float, mask: Bool) -> float:
    """Mean of ``(P - T) / (P + T)`` over local binary patterns of one band ``(y, x)``; 0 where both are 0."""
    whole = mask[1:-1, 1:-1] & np.logical_and.reduce(_neighbours(mask))
    return _mean_difference(binary_patterns(prediction)[whole], binary_patterns(truth)[whole])


_SAMPLE_SCORES = {"rmse": rmse, "bias": bias, "mae": mae, "cc": cc, "psnr": psnr, "uiqi": uiqi}
_IMAGE_SCORES = {"ssim": ssim, "ssim_stretched": ssim_stretched, "edge": edge, "lbp": lbp}


def seam(image: Image, tile: int, cell: int = 1) -> float | None:
    """How much more an image bends across the borders of its tiles than across those of other coarse cells.

    The median absolute second difference, along x and y and over bands, of the three pixels in a row that a border
    lies between. A seam lies along all of a border, strong edges of the ground at a few pixels: hence the median. Cells
    leave traces of their own in what is fused from them: hence only their borders are compared. The ground itself may
    happen to bend more there, so without a seam it is what an observation of the same ground gives, 1 or near it.

    Parameters
    ----------
    image
        Reflectance ``(band, y, x)``; where one of three has no value they do not count.
    tile
        Pixels along a tile; borders are at its multiples from the upper left.
    cell
        Pixels along a coarse cell.

    Returns
    -------
    float or None
        None if no border of tiles or of other cells lies in the image, or nothing bends there.

    >>> ground = np.random.default_rng(0).random((1, 256, 256))
    >>> seam(ground, 256, 16) is None, round(seam(ground, 64, 16), 1)
    (True, 1.0)
    """
    across: list[Image] = []
    elsewhere: list[Image] = []
    for axis in (1, 2):
        bends = np.abs(np.diff(np.moveaxis(image, axis, 0).astype(np.float64), 2, axis=0))
        middle = np.arange(1, image.shape[axis] - 1)
        of_tiles, of_cells = (np.isin(middle % side, (0, side - 1)) for side in (tile, cell))
        across.append(bends[of_tiles].ravel())
        elsewhere.append(bends[of_cells & ~of_tiles].ravel())
    found, usual = (_known_median(np.concatenate(parts)) for parts in (across, elsewhere))
    return found / usual if found is not None and usual else None


def _known_median(values: Image) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None
