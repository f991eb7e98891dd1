"""Classes of change: where nothing happened, where the land grew or withered, and where it changed at once.

Scores over a whole image are mostly those of pixels that stayed as they were. Changes are measured as the root mean
square over bands, in reflectance, so that the limits do not depend on the number of bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
Image = npt.NDArray[np.floating[Any]]

STILL = 0.02
"""Changes up to this are none: above the noise of surface reflectance, below a few days of growth."""
LARGE = 0.1
"""A change between two observations beyond this is no season's course: growth and harvest lie between, or a flood."""

TRUTH = {
    "unchanged": f"not abrupt, and the truth of the day is within {STILL} of that of both acquisitions",
    "phenology": f"not abrupt, and the truth of the day is more than {STILL} from that of either acquisition",
    "abrupt": "the simulated land changes at once (clearing, building, flood) on some day of the world's",
}
"""Definitions of the classes of :func:`of_truth`."""
OBSERVED = {
    "unchanged": f"T is within {STILL} of both F1 and F3",
    "phenology": "neither of the other two",
    "abrupt": f"not unchanged, and T is more than {STILL} outside the range of F1 and F3, or these differ by more than "
    f"{LARGE}",
}
"""Definitions of the classes of :func:`of_observations`."""


def _size(change: Image) -> npt.NDArray[np.float64]:
    """Root mean square over bands of ``(band, y, x)``."""
    return np.asarray(np.sqrt(np.mean(np.square(change, dtype=np.float64), axis=0)))


def of_truth(abrupt: Bool, truth: Image, others: Sequence[Image]) -> dict[str, Bool]:
    """Classes against a known truth.

    Parameters
    ----------
    abrupt
        ``(y, x)``, where the land is known to change at once.
    truth
        Reflectance ``(band, y, x)`` of the day.
    others
        The truth of the acquisitions around it; one or two images.

    Returns
    -------
    dict
        ``(y, x)`` masks that share no pixel, ``unchanged``, ``phenology`` and ``abrupt``: :data:`TRUTH`.

    >>> day, before = np.full((2, 1, 3), 0.2), np.array([[[0.2, 0.3, 0.2]], [[0.2, 0.2, 0.2]]])
    >>> found = of_truth(np.array([[False, False, True]]), day, [before])
    >>> {name: mask.tolist() for name, mask in found.items()}["phenology"]
    [[False, True, False]]
    """
    moved = np.logical_or.reduce([np.zeros_like(abrupt), *(_size(truth - other) > STILL for other in others)])
    return {"unchanged": ~abrupt & ~moved, "phenology": ~abrupt & moved, "abrupt": abrupt}


def of_observations(before: Image, target: Image, after: Image) -> dict[str, Bool]:
    """Classes of a case of real observations ``(band, y, x)``, by the size and the course of what was seen.

    No truth of change exists there: a field that grew and was harvested between the observations is ``abrupt`` for
    being outside of their range.

    Returns
    -------
    dict
        ``(y, x)`` masks that share no pixel, ``unchanged``, ``phenology`` and ``abrupt``: :data:`OBSERVED`. Pixels with
        NaN lie in ``phenology`` and must be masked.
    """
    still = (_size(target - before) <= STILL) & (_size(target - after) <= STILL)
    # Beyond the noise only: in some band nearly every pixel lies a little outside.
    outside = _size(target - np.clip(target, np.minimum(before, after), np.maximum(before, after)))
    abrupt = ~still & ((outside > STILL) | (_size(after - before) > LARGE))
    return {"unchanged": still, "phenology": ~still & ~abrupt, "abrupt": abrupt}
