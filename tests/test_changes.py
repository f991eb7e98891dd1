"""Classes of change: cases worked by hand, and that they share out all pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stfgan_xr import changes


def _pixel(*bands: float) -> np.ndarray:
    return np.array(bands)[:, None, None]


def _class(found: dict[str, np.ndarray]) -> str:
    (name,) = [name for name, mask in found.items() if mask.all()]
    return name


@pytest.mark.parametrize(
    ("before", "target", "after", "expected"),
    [
        ((0.20, 0.30), (0.21, 0.31), (0.20, 0.30), "unchanged"),
        # 0.02 in one of two bands is 0.014 over both; in both of them 0.02, which is the limit.
        ((0.20, 0.30), (0.22, 0.30), (0.20, 0.30), "unchanged"),
        ((0.25, 0.50), (0.2656, 0.5156), (0.25, 0.50), "unchanged"),
        # Half way of a change of 0.08.
        ((0.20, 0.30), (0.24, 0.34), (0.28, 0.38), "phenology"),
        # Near one observation, far from the other.
        ((0.20, 0.30), (0.20, 0.30), (0.28, 0.38), "phenology"),
        # A little beyond the later one: 0.01 is noise.
        ((0.20, 0.30), (0.29, 0.39), (0.28, 0.38), "phenology"),
        # Flooded and dry again: outside of the range.
        ((0.20, 0.30), (0.05, 0.03), (0.20, 0.30), "abrupt"),
        ((0.20, 0.30), (0.25, 0.35), (0.20, 0.30), "abrupt"),
        # Between the two, but these are 0.15 apart.
        ((0.20, 0.30), (0.25, 0.35), (0.35, 0.45), "abrupt"),
        # 0.12 in one of two bands is 0.085 over both.
        ((0.20, 0.30), (0.26, 0.30), (0.32, 0.30), "phenology"),
    ],
)
def test_observations_by_hand(
    before: tuple[float, ...], target: tuple[float, ...], after: tuple[float, ...], expected: str
) -> None:
    assert _class(changes.of_observations(_pixel(*before), _pixel(*target), _pixel(*after))) == expected


def test_the_course_of_time_does_not_matter() -> None:
    images = np.random.default_rng(0).random((3, 2, 16, 16)) * 0.15
    there, back = changes.of_observations(*images), changes.of_observations(*images[::-1])
    assert all((there[name] == back[name]).all() for name in there)
    assert all(mask.any() for mask in there.values())


@pytest.mark.parametrize(
    ("abrupt", "others", "expected"),
    [
        (False, [(0.2, 0.3), (0.21, 0.31)], "unchanged"),
        (False, [(0.2, 0.3), (0.24, 0.33)], "phenology"),
        (False, [(0.24, 0.33), (0.2, 0.3)], "phenology"),
        (False, [(0.24, 0.33)], "phenology"),
        (False, [], "unchanged"),
        (True, [(0.2, 0.3), (0.2, 0.3)], "abrupt"),
        (True, [(0.9, 0.9)], "abrupt"),
    ],
)
def test_truth_by_hand(abrupt: bool, others: list[tuple[float, ...]], expected: str) -> None:
    found = changes.of_truth(np.array([[abrupt]]), _pixel(0.2, 0.3), [_pixel(*other) for other in others])
    assert _class(found) == expected


@given(arrays(np.float32, (3, 2, 4, 4), elements=st.floats(0, 0.5, width=32) | st.just(float("nan"))))
def test_each_pixel_has_one_class(images: np.ndarray) -> None:
    for found in (
        changes.of_observations(*images),
        changes.of_truth(images[0, 0] > 0.4, images[1], [images[0], images[2]]),
    ):
        np.testing.assert_array_equal(sum(mask.astype(int) for mask in found.values()), 1)
        assert found.keys() == changes.TRUTH.keys() == changes.OBSERVED.keys()
