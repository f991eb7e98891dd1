"""Means of an image over the pixels of another grid, weighted by the area they share, however the grids are turned.

GDAL's ``average`` takes the upright rectangle between two opposite corners of a pixel: on UTM, where sinusoidal pixels
are sheared, MODIS of 250 m came up to 920 counts off.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

LONGEST = 256
"""Image pixels along a side; longer sides span the edge of a projection."""
AT_ONCE = 2**17
"""Sides handled together: bounds the memory."""

Numbers = npt.NDArray[np.float64]


def _crossings(start: Numbers, end: Numbers) -> Numbers:
    """Where whole numbers lie between two numbers, as shares of the way; the first axis is long enough for all."""
    low = np.floor(np.minimum(start, end))
    count = int((np.floor(np.maximum(start, end)) - low).max(initial=0))
    whole = low + np.arange(1, count + 1).reshape(-1, *(1,) * start.ndim)
    way = np.where(start == end, np.inf, end - start)
    return np.clip((whole - start) / way, 0, 1)


def _along(sums: Numbers, rows: tuple[Numbers, Numbers], columns: tuple[Numbers, Numbers]) -> Numbers:
    """Integrals of ``sums`` over rows along straight sides ``(start, end)``: exact, as each piece lies in one pixel."""
    (top, bottom), (left, right) = rows, columns
    whole_side = (np.abs(bottom - top) <= LONGEST) & (np.abs(right - left) <= LONGEST)  # NaN is not
    top, bottom, left, right = (np.where(whole_side, side, 0) for side in (top, bottom, left, right))
    ends = np.zeros((1, *top.shape)), np.ones((1, *top.shape))
    cuts = np.sort(np.concatenate([*ends, _crossings(top, bottom), _crossings(left, right)]), axis=0)
    total = np.zeros((len(sums), *top.shape))
    for before, after in pairwise(cuts):
        middle = (before + after) / 2
        row = np.floor(top + middle * (bottom - top)).clip(-1, sums.shape[1] - 2).astype(int) + 1
        column = (left + middle * (right - left)).clip(0, sums.shape[2] - 1)
        first = column.astype(int).clip(0, sums.shape[2] - 2)
        at = sums[:, row, first] + (column - first) * (sums[:, row, first + 1] - sums[:, row, first])
        total += at * ((after - before) * (bottom - top))
    return np.where(whole_side, total, np.nan)


def _strip(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_], rows: Numbers, columns: Numbers) -> Numbers:
    """Means within a few rows of pixels, by Green's theorem: integrals along their sides of sums from the left."""
    height, width = values.shape
    sums = np.zeros((2, height + 2, width + 1))  # nothing above and below
    np.cumsum(np.where(valid, values, 0), axis=1, dtype=float, out=sums[0, 1:-1, 1:])
    np.cumsum(valid, axis=1, dtype=float, out=sums[1, 1:-1, 1:])
    across = _along(sums, (rows[:, :-1], rows[:, 1:]), (columns[:, :-1], columns[:, 1:]))
    down = _along(sums, (rows[:-1], rows[1:]), (columns[:-1], columns[1:]))
    total, area = across[:, :-1] + down[:, :, 1:] - across[:, 1:] - down[:, :, :-1]
    means: Numbers = np.divide(total, area, out=np.full(area.shape, np.nan), where=np.abs(area) > 1e-6)
    return means


def area_means(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_], rows: Numbers, columns: Numbers) -> Numbers:
    """Mean of an image within each pixel of another grid.

    Parameters
    ----------
    values, valid
        The image ``(y, x)`` and which of its pixels count.
    rows, columns
        Where the corners ``(y + 1, x + 1)`` of the other grid's pixels lie in the image, whose first pixel reaches from
        0 to 1; not finite where they have no place in its projection.

    Returns
    -------
    numpy.ndarray
        Means ``(y, x)``; NaN where no pixel counts, and in pixels across the edge of a projection.

    >>> image = np.array([[1.0, 3.0], [5.0, 7.0]])
    >>> corners = np.array([[0.0, 0.0], [2.0, 2.0]]), np.array([[0.5, 1.5], [0.5, 1.5]])
    >>> area_means(image, image > 0, *corners)
    array([[4.]])
    """
    height, width = rows.shape[0] - 1, rows.shape[1] - 1
    found = np.full((height, width), np.nan)
    step = max(1, AT_ONCE // (width + 1))
    for top in range(0, height, step):
        corners = slice(top, top + step + 1)
        placed = rows[corners][np.isfinite(rows[corners])]
        first, last = max(placed.min(initial=np.inf), 0), min(placed.max(initial=-np.inf), values.shape[0])
        if first < last:
            part = slice(int(first), int(np.ceil(last)))
            found[top : top + step] = _strip(values[part], valid[part], rows[corners] - part.start, columns[corners])
    return found
