"""Scores: hand-computed cases, scikit-image where it shares the definition, masks and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from stfgan_xr import metrics
from stfgan_xr.metrics import scores, skill

OF_INTERVALS = ("coverage_68", "coverage_95", "rmse_surest", "rmse_least_sure")


def _images(bands: int = 3, height: int = 40, width: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = np.linspace(0, 3, height)[:, None] + np.linspace(0, 2, width)
    truth = 0.25 + 0.1 * np.sin(rows + np.arange(bands)[:, None, None]) + 0.02 * rng.random((bands, height, width))
    return truth + 0.03 * rng.standard_normal(truth.shape), truth


def _skimage_ssim(prediction: np.ndarray, truth: np.ndarray) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return float(np.mean([structural_similarity(p, t, **options) for p, t in zip(prediction, truth, strict=True)]))


def test_by_hand() -> None:
    prediction = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.5], [0.5, 0.9]]])
    truth = np.array([[[0.1, 0.1], [0.3, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])
    found = scores(prediction, truth, ratio=16)
    first, second = math.sqrt(0.02 / 4), math.sqrt(0.16 / 4)
    assert found.rmse == pytest.approx((first + second) / 2)
    assert found.bias == pytest.approx((0.0 + 0.1) / 2)
    assert found.mae == pytest.approx((0.05 + 0.1) / 2)
    # The second band's truth is constant: its correlation is not defined, and left out.
    assert found.cc == pytest.approx(np.corrcoef([0.1, 0.2, 0.3, 0.4], [0.1, 0.1, 0.3, 0.5])[0, 1])
    assert found.psnr == pytest.approx(-10 * (np.log10(first) + np.log10(second)))
    assert found.ergas == pytest.approx(100 / 16 * math.sqrt(((first / 0.25) ** 2 + (second / 0.5) ** 2) / 2))
    angles = [0.0, math.atan2(0.5, 0.1) - math.atan2(0.5, 0.2), 0.0, math.atan2(0.9, 0.4) - math.atan2(0.5, 0.5)]
    assert found.sam == pytest.approx(math.degrees(sum(angles) / 4), abs=1e-6)
    assert found.ssim is None
    assert found.pixels == 4


def test_uiqi_by_hand() -> None:
    prediction, truth = np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 4.0, 6.0]])
    # covariance 4/3, variances 2/3 and 8/3, means 2 and 4
    assert metrics.uiqi(prediction, truth) == pytest.approx(4 * (4 / 3) * 8 / ((10 / 3) * 20))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_image(seed: int) -> None:
    prediction, truth = _images(seed=seed)
    found = scores(prediction, truth)
    assert found.ssim == pytest.approx(_skimage_ssim(prediction, truth), abs=1e-12)
    peaks = [peak_signal_noise_ratio(t, p, data_range=1) for p, t in zip(prediction, truth, strict=True)]
    assert found.psnr == pytest.approx(np.mean(peaks))


def test_stretched_ssim_is_that_of_stretched_images() -> None:
    prediction, truth = _images(bands=1)
    low, high = np.percentile(truth, (2, 98))
    stretched = [np.clip((image - low) / (high - low), 0, 1) for image in (prediction, truth)]
    assert scores(prediction, truth).ssim_stretched == pytest.approx(_skimage_ssim(*stretched), abs=1e-12)


def test_masked_ssim_of_whole_windows_is_the_plain_one() -> None:
    prediction, truth = _images(bands=1, height=60)
    mask = np.ones((60, 32), bool)
    mask[:20] = False
    whole = np.zeros_like(mask)
    whole[25:55, 5:-5] = True
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "full": True}
    _, reference = structural_similarity(prediction[0], truth[0], **options)
    only_whole = metrics.ssim(prediction[0], truth[0], mask)
    # Valid pixels near the mask lean on fewer neighbours: close to, but not the same as, the plain map's mean.
    assert only_whole == pytest.approx(reference[whole].mean(), abs=0.02)


def test_masked_values_have_no_influence() -> None:
    prediction, truth = _images()
    mask = np.random.default_rng(1).random(truth.shape[1:]) < 0.7
    spoiled, other = prediction.copy(), truth.copy()
    spoiled[:, ~mask], other[:, ~mask] = 77.0, -5.0
    assert scores(spoiled, other, mask) == scores(prediction, truth, mask)
    spoiled[:, ~mask] = np.nan
    assert scores(spoiled, truth) == scores(prediction, truth, mask)


def test_infinite_values_are_dropped() -> None:
    prediction, truth = _images()
    prediction[0, 3, 4], truth[0, 3, 4] = np.inf, np.inf
    found = scores(prediction, truth)
    assert found.pixels == truth[0].size - 1
    assert found.rmse is not None


def test_a_band_without_a_value_drops_the_pixel_from_all() -> None:
    prediction, truth = _images()
    prediction[1, :10] = np.nan
    assert scores(prediction, truth).pixels == 30 * 32
    cut = scores(prediction[:, 10:], truth[:, 10:])
    assert scores(prediction, truth).rmse == pytest.approx(cut.rmse)


def test_equal_images() -> None:
    _, truth = _images()
    found = scores(truth, truth)
    assert (found.rmse, found.bias, found.mae, found.edge, found.lbp) == (0, 0, 0, 0, 0)
    assert [found.cc, found.ssim, found.ssim_stretched, found.uiqi] == pytest.approx([1] * 4)
    assert found.sam == pytest.approx(0, abs=1e-5)
    assert found.ergas == 0
    assert found.psnr is None


def test_scores_of_several_bands_are_none_for_one() -> None:
    prediction, truth = _images(bands=1)
    found = scores(prediction, truth)
    assert found.sam is None
    assert found.ergas is None
    assert None not in (found.rmse, found.cc, found.ssim, found.edge, found.lbp, found.psnr, found.uiqi)


def test_nothing_to_score() -> None:
    prediction, truth = _images()
    found = scores(prediction, np.full_like(truth, np.nan))
    assert found.pixels == 0
    assert all(getattr(found, name) is None for name in metrics.NAMES)


def test_constant_and_zero_images_give_no_warning() -> None:
    found = scores(np.zeros((2, 16, 16)), np.zeros((2, 16, 16)))
    assert found.rmse == 0
    assert (found.cc, found.sam, found.ergas, found.uiqi, found.ssim_stretched, found.edge) == (None,) * 6


def test_texture_scores_tell_smooth_from_noisy() -> None:
    prediction, truth = _images(height=64, width=64)
    smooth = np.stack([metrics._smooth(band) for band in truth])
    assert (scores(smooth, truth).edge or 0) < -0.2
    assert (scores(prediction, truth).edge or 0) > 0.05


def test_roberts_edges_and_patterns_by_hand() -> None:
    image = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]])
    assert metrics.roberts(image).tolist() == [[6, 6], [6, 7]]
    # Greater neighbours of 5, clockwise from the upper left: 6 (bit 3), 10 (bit 4), 8 (bit 5), 7 (bit 6).
    assert metrics.binary_patterns(image).tolist() == [[8 + 16 + 32 + 64]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.floats(-0.1, 0.1), st.floats(0.5, 2))
def test_invariances(seed: int, shift: float, gain: float) -> None:
    prediction, truth = _images(height=16, width=16, seed=seed)
    plain = scores(prediction, truth)
    moved = scores(prediction + shift, truth + shift)
    scaled = scores(prediction * gain, truth * gain)
    for name in ("rmse", "bias", "cc", "mae", "edge"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), abs=1e-9), name
    for name in ("cc", "sam", "ergas", "uiqi", "edge", "lbp", "ssim_stretched"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), abs=1e-9), name
    assert scaled.rmse == pytest.approx(gain * (plain.rmse or 0))
    swapped = scores(truth, prediction)
    assert swapped.bias == pytest.approx(-(plain.bias or 0))
    assert swapped.ssim == pytest.approx(plain.ssim)


def test_ratio_scales_ergas_only() -> None:
    prediction, truth = _images()
    fine, coarse = scores(prediction, truth, ratio=4), scores(prediction, truth, ratio=16)
    assert fine.ergas == pytest.approx(4 * (coarse.ergas or 0))
    assert fine.rmse == coarse.rmse


def test_skill() -> None:
    assert skill(0.02, 0.04, 0.05) == pytest.approx(0.5)
    assert skill(0.06, 0.04, 0.05) == pytest.approx(-0.5)
    assert skill(None, 0.04, 0.05) is None
    assert skill(0.01, 0.0, 0.05) is None


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"one shape \(band, y, x\)"):
        scores(np.zeros((1, 4, 4)), np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="mask"):
        scores(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), np.ones((3, 4), bool))


def test_bands_have_scores_of_their_own() -> None:
    prediction = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.5], [0.5, 0.9]]])
    truth = np.array([[[0.1, 0.1], [0.3, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])
    found = scores(prediction, truth).by_band
    assert found["rmse"] == pytest.approx((math.sqrt(0.02 / 4), 0.2))
    assert found["bias"] == pytest.approx((0, 0.1))
    assert found["mae"] == pytest.approx((0.05, 0.1))
    assert found["psnr"] == pytest.approx((-10 * math.log10(0.02 / 4), -20 * math.log10(0.2)))
    assert found["cc"][1] is None
    assert found.keys() == set(metrics.NAMES) - {"sam", "ergas", "skill", *OF_INTERVALS}


@pytest.mark.parametrize("name", ["rmse", "bias", "mae", "cc", "ssim", "ssim_stretched", "psnr", "uiqi", "edge", "lbp"])
def test_the_score_of_a_band_is_that_of_its_image_and_their_mean_the_score(name: str) -> None:
    prediction, truth = _images()
    found = scores(prediction, truth)
    alone = [getattr(scores(prediction[at : at + 1], truth[at : at + 1]), name) for at in range(3)]
    assert found.by_band[name] == pytest.approx(alone)
    assert getattr(found, name) == pytest.approx(np.mean(alone))


def test_skill_of_the_whole_and_of_each_band() -> None:
    truth = np.full((2, 4, 4), 0.2)
    found, linear, delta = (
        scores(truth + np.array(errors)[:, None, None], truth)
        for errors in ((0.02, 0.06), (0.04, 0.08), (0.06, 0.04))  # linear is better in the first band only
    )
    judged = metrics.with_skill(found, linear, delta)
    assert judged.skill == pytest.approx(1 - 0.04 / 0.05)
    assert judged.by_band["skill"] == pytest.approx((0.5, -0.5))
    assert metrics.with_skill(found, None, delta) == found


def test_the_skill_of_nothing_is_unknown() -> None:
    nothing = metrics.Scores()
    assert metrics.with_skill(nothing, nothing, nothing).skill is None


def _ground(side: int = 128) -> np.ndarray:
    return 0.2 + 0.02 * np.random.default_rng(3).standard_normal((2, side, side))


def test_seam_by_hand() -> None:
    # A slope with a step of 1 between the tiles and of 0.5 between other cells; it bends nowhere else.
    steps = np.cumsum([0, 0, 0.5, 0, 1, 0, 0.5, 0])
    image = np.broadcast_to(steps + np.arange(8) * 0.1, (1, 8, 8)).copy()
    assert metrics.seam(image + np.swapaxes(image, 1, 2), 4, 2) == pytest.approx(2)


def test_a_made_seam_shows_and_the_ground_alone_does_not() -> None:
    ground = _ground()
    assert metrics.seam(ground, 32, 16) == pytest.approx(1, abs=0.05)
    made = ground + 0.1 * (np.indices((128, 128)) // 32).sum(axis=0) % 0.2  # a checkerboard of tiles
    assert (metrics.seam(made, 32, 16) or 0) > 2
    assert metrics.seam(made[:, :32, :32], 32, 16) is None


def test_a_seam_is_seen_beside_holes_and_not_made_by_them() -> None:
    ground = _ground()
    ground[:, :, 40:64] = np.nan
    assert metrics.seam(ground, 32, 16) == pytest.approx(1, abs=0.07)
    assert metrics.seam(np.full_like(ground, np.nan), 32, 16) is None


def test_intervals_and_fifths_by_hand() -> None:
    truth = np.full((2, 2, 5), 0.3)
    errors = np.array([[0.001, -0.002, 0.003, -0.004, 0.005], [0.01, -0.02, 0.03, -0.04, 0.05]])
    prediction = truth + np.stack([errors, errors[::-1]])
    std = np.stack([np.linspace(0.01, 0.1, 10).reshape(2, 5), np.full((2, 5), 0.01)])
    mask = np.ones((2, 5), bool)
    widths = np.array([0.25, 1.5]), np.array([0.45, 3.5])
    plain = scores(prediction, truth, mask)
    found = metrics.with_intervals(plain, prediction, truth, mask, std, widths)
    # Of the first band half widths are 0.0025, 0.005 ... 0.025, then 0.0045 ... 0.045.
    assert found.by_band["coverage_68"] == pytest.approx((0.6, 0.6))
    assert found.by_band["coverage_95"] == pytest.approx((0.9, 0.8))
    assert found.coverage_68 == pytest.approx(0.6)
    surest, least_sure = math.sqrt((1 + 4) / 2) * 1e-3, math.sqrt((16 + 25) / 2) * 1e-2
    assert found.by_band["rmse_surest"][0] == pytest.approx(surest)
    assert found.by_band["rmse_least_sure"][0] == pytest.approx(least_sure)
    assert found.rmse == plain.rmse
    assert found.by_band["rmse"] == plain.by_band["rmse"]
    nothing = metrics.with_intervals(plain, prediction, truth, ~mask, std, widths)
    assert nothing == plain
    few = metrics.with_intervals(plain, prediction, truth, mask & (errors == 0.001), std, widths)
    assert few.rmse_surest is None
    assert few.coverage_68 == 1
