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


def _between(count: int, start: int, step: int, ratio: int, halo: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    lower, weight = positions(count, start, step, ratio, halo)
    return lower.clamp(0, cells - 1), (lower + 1).clamp(0, cells - 1), weight


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
    top, bottom, down = _between(shape[0], start[0], step, ratio, halo, coarse.shape[-2])
    left, right, across = _between(shape[1], start[1], step, ratio, halo, coarse.shape[-1])
    device = coarse.device
    down, across = down.to(device, coarse.dtype)[:, None], across.to(device, coarse.dtype)
    rows = torch.lerp(coarse[..., top.to(device), :], coarse[..., bottom.to(device), :], down)
    return torch.lerp(rows[..., left.to(device)], rows[..., right.to(device)], across)
