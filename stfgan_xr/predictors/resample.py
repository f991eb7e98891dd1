"""Bilinear resampling of coarse cells at exact positions, the same for every tiling."""

from __future__ import annotations

import torch
from torch import Tensor


def positions(count: int, start: int, step: int, ratio: int, halo: int) -> tuple[Tensor, Tensor]:
    """The last cell whose centre is not beyond the centre of each output pixel, and how far on to the next it lies;
    arguments as in :func:`upsample`, along one axis."""
    # The centre of output pixel j lies at (start + step (j + 1/2)) / ratio + halo - 1/2 in units of cells. Twice the
    # numerator is a whole number, so indices and weights are exact and do not depend on where the window starts.
    twice = 2 * start + step * (2 * torch.arange(count) + 1) + ratio * (2 * halo - 1)
    lower = torch.div(twice, 2 * ratio, rounding_mode="floor")
    weight = (twice - lower * 2 * ratio).to(torch.float32) / (2 * ratio)
    return lower, weight


def _along(coarse: Tensor, axis: int, count: int, start: int, step: int, ratio: int, halo: int) -> Tensor:
    """Values at output pixels along an axis (-2 or -1); arguments as in :func:`upsample`."""
    cells = coarse.shape[axis]
    if ratio % step:
        lower, weight = positions(count, start, step, ratio, halo)
        low, high = (coarse.index_select(axis, (lower + n).clamp(0, cells - 1).to(coarse.device)) for n in (0, 1))
        weight = weight.to(coarse.device, coarse.dtype)
        return torch.lerp(low, high, weight if axis == -1 else weight[:, None])
    # Pixels between the centres of two cells have the same weights everywhere: a product of cells and weights, several
    # times as fast as picking the cells of each pixel.
    begin, each = 2 * start + step + ratio * (2 * halo - 1), 2 * step
    first, last = begin // (2 * ratio), (begin + each * (count - 1)) // (2 * ratio)
    skipped = (begin - first * 2 * ratio) // each
    index = torch.arange(first, last + 2).clamp(0, cells - 1)
    weight = (begin % each + each * torch.arange(ratio // step)).to(torch.float32) / (2 * ratio)
    found, weight = coarse.index_select(axis, index.to(coarse.device)), weight.to(coarse.device, coarse.dtype)
    if axis == -1:
        return torch.lerp(found[..., :-1, None], found[..., 1:, None], weight).flatten(-2).narrow(-1, skipped, count)
    rows = torch.lerp(found[..., :-1, None, :], found[..., 1:, None, :], weight[:, None]).flatten(-3, -2)
    return rows.narrow(-2, skipped, count)


def upsample(
    coarse: Tensor, shape: tuple[int, int], *, ratio: int, halo: int, start: tuple[int, int] = (0, 0), step: int = 1
) -> Tensor:
    """Bilinear values of coarse cells at the centres of finer pixels.

    Parameters
    ----------
    coarse
        ``(..., cy, cx)`` cells of a block with ``halo`` cells on each side.
    shape
        Rows and columns of the result.
    ratio
        Fine pixels along a cell.
    start
        First row and column of the result in fine pixels from the block's corner (``-halo.fine`` for an array that
        carries the fine halo).
    step
        Fine pixels along a pixel of the result (4 for the 120 m grid of STFGAN).

    Returns
    -------
    Tensor
        ``(..., *shape)`` of the type of ``coarse``. Beyond the outermost cell centres the last cell is repeated.

    >>> cells = torch.tensor([[0.0, 4.0, 8.0]])
    >>> upsample(cells, (1, 4), ratio=4, halo=1, start=(2, 0)).tolist()
    [[2.5, 3.5, 4.5, 5.5]]
    """
    rows = _along(coarse, -2, shape[0], start[0], step, ratio, halo)
    return _along(rows, -1, shape[1], start[1], step, ratio, halo)
