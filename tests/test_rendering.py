"""Indices by their published formulas, and what a screen shows of reflectance."""

from __future__ import annotations

import numpy as np
import pytest

from stfgan_xr.errors import InputError
from stfgan_xr.rendering import INDICES, index_of, indices_of, shade, stretch_of
from stfgan_xr.sensors import BANDS

PIXEL = {"blue": 0.03, "green": 0.06, "red": 0.04, "nir": 0.30, "swir1": 0.2, "swir2": 0.10}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ndvi", (0.30 - 0.04) / (0.30 + 0.04)),
        ("evi", 2.5 * (0.30 - 0.04) / (0.30 + 6 * 0.04 - 7.5 * 0.03 + 1)),
        ("ndwi", (0.06 - 0.30) / (0.06 + 0.30)),
        ("nbr", (0.30 - 0.10) / (0.30 + 0.10)),
    ],
)
def test_indices_by_hand(name: str, expected: float) -> None:
    image = {band: np.full((2, 3), value, "float32") for band, value in PIXEL.items()}
    image["nir"][0, 0] = np.nan
    found = index_of(name, image)
    assert np.isnan(found[0, 0])
    np.testing.assert_allclose(found.ravel()[1:], expected, rtol=1e-5)
    assert found.dtype == np.float32


def test_an_index_without_a_positive_denominator_is_nothing() -> None:
    dark = {"red": np.array([0.0, -0.1, 0.1], "float32"), "nir": np.array([0.0, 0.05, 0.1], "float32")}
    found = index_of("ndvi", dark)
    assert np.isnan(found).tolist() == [True, True, False]


def test_a_normalised_difference_stays_within_one_where_noise_is_below_zero() -> None:
    water = {"red": np.array([0.012, -0.001], "float32"), "nir": np.array([-0.011, 0.002], "float32")}
    assert index_of("ndvi", water).tolist() == [-1.0, 1.0]  # by the formula alone -23 and 3


def test_indices_are_offered_by_bands_and_refused_by_name() -> None:
    assert indices_of(BANDS) == tuple(INDICES)
    assert indices_of(["green", "nir"]) == ("ndwi",)
    with pytest.raises(InputError, match="unknown"):
        index_of("savi", {})
    with pytest.raises(InputError, match="there is no swir2"):
        index_of("nbr", {"nir": np.zeros(1, "float32")})


def test_a_screen_shows_the_stretch_and_greys_holes() -> None:
    image = np.linspace(0, 1, 64, dtype="float32").reshape(1, 8, 8)
    image[0, 7, 7] = np.nan
    shown = shade(image, (0.25, 0.75))
    assert shown.shape == (8, 8, 3)
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert shown[7, 6].tolist() == [1, 1, 1]
    assert shown[7, 7].tolist() == [0.75] * 3
    assert stretch_of([np.full((3, 8, 8), np.nan, "float32")]) == (0.0, 1.0)
