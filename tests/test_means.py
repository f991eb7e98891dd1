"""Means by area against shapely, for pixels of any shape and place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from stfgan_xr import means
from stfgan_xr.means import LONGEST, area_means

Array = np.ndarray[Any, Any]
IMAGE = np.random.default_rng(0).integers(-9000, 9000, (14, 17))
VALID = np.random.default_rng(1).random(IMAGE.shape) > 0.2


def lattice(
    a: float, b: float, c: float, d: float, e: float, f: float, height: int = 3, width: int = 4
) -> tuple[Array, Array]:
    """Rows and columns of the corners of a grid that an affine places on the image."""
    j, i = np.meshgrid(np.arange(width + 1.0), np.arange(height + 1.0))
    return d * j + e * i + f, a * j + b * i + c


def by_shapely(rows: Array, columns: Array) -> tuple[Array, Array]:
    """Means, and the area of valid pixels that they are of."""
    c, r = np.meshgrid(np.arange(IMAGE.shape[1]), np.arange(IMAGE.shape[0]))
    pixels = shapely.box(c, r, c + 1, r + 1)
    shared = np.zeros((rows.shape[0] - 1, rows.shape[1] - 1))
    found = np.full(shared.shape, np.nan)
    for i, j in np.ndindex(*found.shape):
        ring = [(columns[i + a, j + b], rows[i + a, j + b]) for a, b in ((0, 0), (0, 1), (1, 1), (1, 0))]
        area = shapely.area(shapely.intersection(pixels, shapely.Polygon(ring))) * VALID
        shared[i, j] = area.sum()
        if shared[i, j] > 0:
            found[i, j] = (area * IMAGE).sum() / area.sum()
    return found, shared


numbers = st.floats(-4, 4)


@settings(max_examples=150)
@given(numbers, numbers, st.floats(-5, 20), numbers, numbers, st.floats(-5, 18))
def test_means_are_those_of_exact_overlaps(a: float, b: float, c: float, d: float, e: float, f: float) -> None:
    if abs(a * e - b * d) < 0.05:  # no area
        return
    rows, columns = lattice(a, b, c, d, e, f)
    found = area_means(IMAGE, VALID, rows, columns)
    expected, shared = by_shapely(rows, columns)
    seen = shared > 1e-5
    np.testing.assert_allclose(found[seen], expected[seen], atol=0.01)
    assert np.isnan(found[shared == 0]).all()


def test_whole_pixels_are_plain_means() -> None:
    image = IMAGE[:12, :16]
    found = area_means(image, image > -9999, *lattice(4, 0, 0, 0, 4, 0))
    np.testing.assert_allclose(found, image.reshape(3, 4, 4, 4).mean(axis=(1, 3)), atol=1e-9)


def test_what_lies_outside_has_no_mean() -> None:
    assert np.isnan(area_means(IMAGE, VALID, *lattice(1, 0, 30, 0, 1, 0))).all()
    assert np.isnan(area_means(IMAGE, VALID, *lattice(1, 0, 0, 0, 1, 30))).all()
    assert np.isnan(area_means(IMAGE, np.zeros_like(VALID), *lattice(1, 0, 0, 0, 1, 0))).all()


@pytest.mark.parametrize("place", [np.nan, np.inf, -np.inf, LONGEST + 20.0, -1e6])
def test_pixels_across_the_edge_of_a_projection_have_none_and_the_others_do_not_notice(place: float) -> None:
    rows, columns = lattice(2, 0.1, 1, 0.1, 2, 1)
    expected = area_means(IMAGE, VALID, rows, columns)
    columns[1, 2] = place
    found = area_means(IMAGE, VALID, rows, columns)
    assert np.isnan(found[:2, 1:3]).all()
    np.testing.assert_array_equal(found[2], expected[2])
    np.testing.assert_array_equal(found[:, [0, 3]], expected[:, [0, 3]])


@pytest.mark.parametrize("at_once", [1, 20])
def test_strips_do_not_change_a_mean(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    rows, columns = lattice(0.9, 0.3, 1, -0.2, 1.1, 3, 9, 12)
    expected = area_means(IMAGE, VALID, rows, columns)
    monkeypatch.setattr(means, "AT_ONCE", at_once)
    np.testing.assert_allclose(area_means(IMAGE, VALID, rows, columns), expected, rtol=1e-12)
