"""ROBOT (Chen et al. 2023, ISPRS Journal of Photogrammetry and Remote Sensing): a day as a mixture of all acquisitions.

In overlapping windows weights of the acquisitions are sought, none negative and their sum 2 at most, with which the
coarse images of their days rebuild that of the target day, and the fine images the one interpolated in time. The same
mixture of fine images is the prediction. Where the weights do not add up to about 1, what the coarse mixture lacks is
added.

Windows start at every whole step of the grid and reach over two; of the four that hold a pixel each weighs the more the
nearer its centre, so neither windows nor tiles show. Products of acquisitions belong to the interval; a day costs
their products with it, the weights, and one weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Archive, Bracket, CoarseWindow
from stfgan_xr.predictors.resample import upsample
from stfgan_xr.predictors.simple import linear
from stfgan_xr.predictors.windowed import Day, Ground, Windowed
from stfgan_xr.predictors.windows import strips

STEP, ALIGNED = 22, 16
"""Fine pixels from window to window at most, and what tiles start at whole multiples of, besides cells."""
LEAST_CLEAR = 0.5
"""Part of the known pixels of a window that an acquisition must show to be used there."""
MOST, UNITY = 2.0, 0.02
"""Sum of the weights at most; by how much it may differ from 1 before the residual is added."""
RIDGE = 1e-10
"""Added to the diagonal, as a part of its greatest value."""
PIVOTS, HALVINGS = 100, 50
"""Steps to the weights at most, and to the price of their sum."""


def step_of(ratio: int) -> int:
    """Fine pixels from window to window: an even number of pixels and whole cells, which divides where tiles start.

    >>> [step_of(ratio) for ratio in (16, 7, 4, 1, 30)]
    [16, 14, 16, 16, 30]
    """
    cells, most = 1, ALIGNED // math.gcd(ALIGNED, ratio)
    while (2 * cells <= most and 2 * cells * ratio <= STEP) or cells * ratio % 2:
        cells *= 2
    return cells * ratio


@dataclass(frozen=True)
class Products:
    """Sums over windows of one kind of image of all acquisitions, in whose windows ``N`` values count.

    Attributes
    ----------
    count
        ``(window,)`` values.
    of_each, of_two
        ``(window, day)`` sums of the acquisitions and ``(window, day, day)`` of their products.
    low, high
        ``(window,)`` least and greatest value, means over the acquisitions that are used.
    """

    count: Tensor
    of_each: Tensor
    of_two: Tensor
    low: Tensor
    high: Tensor

    def _scale(self) -> Tensor:
        return 1 / (self.high - self.low).clamp(min=1e-6)

    def matrix(self) -> Tensor:
        """Products ``(window, day, day)`` of acquisitions normalised by low and high."""
        low, sums = self.low[:, None, None], self.of_each[:, :, None] + self.of_each[:, None]
        return (self.of_two - low * sums + low**2 * self.count[:, None, None]) * self._scale()[:, None, None] ** 2

    def right(self, products: Tensor, total: Tensor) -> Tensor:
        """Products ``(window, day)`` with an image so normalised, from those with the image and its sums."""
        low = self.low[:, None]
        centred = products - low * (self.of_each + total[:, None]) + low**2 * self.count[:, None]
        return centred * self._scale()[:, None] ** 2


@dataclass(frozen=True)
class Prepared:
    """What is the same on every day of an interval.

    Attributes
    ----------
    ground
        The bracket.
    images, coarse
        ``(day, band, Y, X)`` acquisitions, their gaps interpolated in time, and ``(day, band, CY, CX)`` coarse images
        of their days, 0 where there is none.
    used
        ``(window, day)``, which acquisitions may be used.
    on_pixels, on_cells
        Their products.
    windows
        Windows down and across.
    """

    ground: Ground
    images: Tensor
    coarse: Tensor
    used: Tensor
    on_pixels: Products
    on_cells: Products
    windows: tuple[int, int]


@dataclass(frozen=True)
class ROBOT(Windowed):
    """Robust optimisation of a mixture of all acquisitions; ``radius`` is of no meaning to it.

    Attributes
    ----------
    nearness
        How much the image interpolated in time counts against the coarse one.
    """

    nearness: float = 1.0
    archive: ClassVar[bool] = True

    @property
    def step(self) -> int:
        """Fine pixels from window to window."""
        return step_of(self.ratio)

    @property
    def halo(self) -> Halo:
        """The windows that hold a pixel of the block, and the cells that their pixels are interpolated from."""
        return Halo(fine=self.step, coarse=self.step // self.ratio + 1)

    def memory(self, rows: int, columns: int, days: int) -> int:
        """Bytes for a block with its halo, but for the acquisitions."""
        return 60 * rows * columns * len(self.bands) + 2**26

    def prepare(self, bracket: Bracket) -> Prepared:
        """The products of all acquisitions.

        Raises
        ------
        InputError
            If the bracket holds no archive.
        """
        if bracket.archive is None:
            raise InputError("robot needs all acquisitions: take brackets with archive=True")
        ground = self.ground(bracket)
        with torch.inference_mode():
            return self._prepared(ground, bracket.archive)

    def _prepared(self, ground: Ground, archive: Archive) -> Prepared:
        if not archive.days:  # one that shows nothing
            fine, coarse_ = ground.pair.fine_before.cpu(), ground.pair.coarse_before.cpu()
            archive = Archive((0,), *(np.full((1, *image.shape), np.nan, np.float32) for image in (fine, coarse_)))
        step, cells, device = self.step, self.step // self.ratio, ground.usable.device
        observed, coarse = (torch.from_numpy(images).to(device) for images in (archive.fine, archive.coarse))
        clear, there = ~observed.isnan().any(1), _inner(~coarse.isnan().any(1))
        images, coarse = filled_in_time(observed, archive.days), coarse.nan_to_num()
        # Counted, not summed: how much of a window an acquisition shows decides.
        shown, all_ = (_windows(_sums(part.double(), step)) for part in (clear & ground.usable, ground.usable[None]))
        whole = _windows(_sums(there.double(), cells)) == 4 * cells**2
        used = ((shown >= LEAST_CLEAR * all_) & (all_ > 0) & whole).flatten(1).T
        windows = (all_.shape[1], all_.shape[2])
        on_pixels = _products(images, ground.usable, step, used)
        on_cells = _products(_inner(coarse), torch.ones_like(there[0]), cells, used)
        return Prepared(ground, images, coarse, used, on_pixels, on_cells, windows)

    def _on(self, prepared: Prepared, coarse: CoarseWindow, day: int) -> tuple[Tensor, None]:
        ground, margin = prepared.ground, self.step
        today, near = ground.on(coarse, day), linear(ground.pair, day)
        weights = self._weights(prepared, today, near)
        maps = weights.T.reshape(-1, *prepared.windows).float()
        away = ((maps.sum(0) - 1).abs() > UNITY).float()
        found = torch.empty_like(ground.inner(near))
        columns = found.shape[-1]
        for strip in strips(*found.shape[1:]):
            own = self._interpolated(maps, strip, columns)
            images = prepared.images[:, :, strip.start + margin : strip.stop + margin, margin : margin + columns]
            found[:, strip] = _mixed(own, images)
            if away.any():
                parts = self._interpolated(torch.cat([away[None], maps * away]), strip, columns)
                found[:, strip] += self._lacking(prepared, today, parts, strip.start)
        # Where no acquisition can be used there is nothing to mix.
        none = (~prepared.used.any(1)).float().reshape(1, *prepared.windows)
        empty = self._interpolated(none, slice(0, found.shape[1]), columns)[0] > 0
        return found.masked_fill_(~ground.inner(today.usable) | empty, torch.nan), None

    def _interpolated(self, maps: Tensor, strip: slice, columns: int) -> Tensor:
        """Values of windows at the pixels of some rows; the centres of windows lie at whole steps."""
        half, shape = self.step // 2, (strip.stop - strip.start, columns)
        return upsample(maps, shape, ratio=self.step, halo=0, start=(half + strip.start, half))

    def _lacking(self, prepared: Prepared, today: Day, parts: Tensor, first: int) -> Tensor:
        """What the mixture of coarse images lacks, of the windows whose weights do not add up."""

        def up(image: Tensor) -> Tensor:
            shape = (parts.shape[1], parts.shape[2])
            return upsample(image, shape, ratio=self.ratio, halo=self.halo.coarse, start=(first, 0))

        total = parts[0] * up(today.image)
        for own, image in zip(parts[1:], prepared.coarse, strict=True):
            total -= own * up(image)
        return total

    def _weights(self, prepared: Prepared, today: Day, near: Tensor) -> Tensor:
        """Weights ``(window, day)`` of the acquisitions."""
        step, cells, used = self.step, self.step // self.ratio, prepared.used
        fine = _against(prepared.images, near, prepared.ground.usable, step)
        coarse = _against(_inner(prepared.coarse), _inner(today.image), _inner(torch.ones_like(today.known)), cells)
        # A window with a cell that is unknown on the day goes by the fine images alone.
        whole = (_windows(_sums(_inner(today.known)[None].double(), cells)) == 4 * cells**2).flatten().double()
        share = (self.ratio**2 * whole)[:, None]
        right = self.nearness**2 * prepared.on_pixels.right(*fine) + share * prepared.on_cells.right(*coarse)
        matrix = self.nearness**2 * prepared.on_pixels.matrix() + share[..., None] * prepared.on_cells.matrix()
        both = used[:, :, None] & used[:, None]
        return mixture(torch.where(both, matrix, 0.0), torch.where(used, right, 0.0))


def _inner(cells: Tensor) -> Tensor:
    """Cells under the block with its fine halo: without those around, which interpolation alone needs."""
    return cells[..., 1:-1, 1:-1]


def filled_in_time(images: Tensor, days: Sequence[int]) -> Tensor:
    """Gaps of acquisitions, linear in time between the observations before and after; beyond the last one it is held.

    Parameters
    ----------
    images
        ``(day, band, y, x)`` with NaN.
    days
        Of the acquisitions, ascending.

    Returns
    -------
    Tensor
        Of the same shape; 0 where no day has an observation.

    >>> images = torch.tensor([1.0, torch.nan, 5.0, torch.nan]).reshape(4, 1, 1, 1)
    >>> filled_in_time(images, (0, 1, 4, 9)).flatten().tolist()
    [1.0, 2.0, 5.0, 5.0]
    """
    gaps = images.isnan().any(1, keepdim=True)
    filled = images.clone()
    ahead, ahead_day = torch.full_like(images[:1], torch.nan)[0], torch.zeros_like(gaps[0], dtype=torch.int64)
    following = []
    for number in reversed(range(len(days))):
        ahead = torch.where(gaps[number], ahead, images[number])
        ahead_day = torch.where(gaps[number], ahead_day, days[number])
        following.append((ahead, ahead_day))
    behind, behind_day = torch.full_like(ahead, torch.nan), torch.zeros_like(ahead_day)
    for number, (after, after_day) in enumerate(reversed(following)):
        share = (days[number] - behind_day) / (after_day - behind_day).clamp(min=1)
        between = torch.lerp(behind, after, share.to(images.dtype).expand_as(behind))
        one = torch.where(behind.isnan(), after, behind)
        value = torch.where(between.isnan(), one, between)
        filled[number] = torch.where(gaps[number], value, images[number])
        behind = torch.where(gaps[number], behind, images[number])
        behind_day = torch.where(gaps[number], behind_day, days[number])
    return filled.nan_to_num_()


def _sums(maps: Tensor, side: int) -> Tensor:
    """Sums ``(day, by, bx)`` over square blocks of ``(day, y, x)``."""
    days, rows, columns = maps.shape
    return maps.reshape(days, rows // side, side, columns // side, side).sum((2, 4))


def _windows(blocks: Tensor) -> Tensor:
    """Sums ``(..., by - 1, bx - 1)`` over two by two of the last axes."""
    down = blocks[..., 1:, :] + blocks[..., :-1, :]
    return down[..., 1:] + down[..., :-1]


def _over_windows(blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sums over two by two blocks: ``(block, ...)`` of all blocks as ``(window, ...)``."""
    inner = blocks.shape[1:]
    return _windows(blocks.reshape(*shape, -1).permute(2, 0, 1)).flatten(1).T.reshape(-1, *inner)


def _rows_of_blocks(images: Tensor, usable: Tensor, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each row of blocks values ``(block, day, value)`` float64, 0 where unusable, and where they count
    ``(block, 1, value)``."""
    days, bands, rows, columns = images.shape
    for top in range(0, rows, side):
        part = images[:, :, top : top + side].reshape(days, bands, side, columns // side, side)
        mask = usable[top : top + side].reshape(side, columns // side, side).permute(1, 0, 2).reshape(-1, 1, 1, side**2)
        mask = mask.expand(-1, 1, bands, -1).reshape(len(mask), 1, -1)
        yield part.permute(3, 0, 1, 2, 4).reshape(columns // side, days, -1).double() * mask, mask


def _products(images: Tensor, usable: Tensor, side: int, used: Tensor) -> Products:
    """Of images ``(day, band, Y, X)`` over windows of two by two blocks of ``side``."""
    rows = list[tuple[Tensor, ...]]()
    for values, mask in _rows_of_blocks(images, usable, side):
        least = values.masked_fill(~mask, torch.inf).amin(2)
        most = values.masked_fill(~mask, -torch.inf).amax(2)
        rows.append((mask.sum((1, 2)).double(), values.sum(2), values @ values.mT, least, most))
    count, of_each, of_two, least, most = (torch.cat(part) for part in zip(*rows, strict=True))
    shape = (images.shape[2] // side, images.shape[3] // side)
    low, high = (
        _of_four(part.reshape(*shape, -1).permute(2, 0, 1), fold).flatten(1).T
        for part, fold in ((least, torch.minimum), (most, torch.maximum))
    )
    many = used.sum(1).clamp(min=1)
    return Products(
        *(_over_windows(part, shape) for part in (count, of_each, of_two)),
        *(torch.where(used, part, 0.0).sum(1) / many for part in (low, high)),
    )


def _of_four(blocks: Tensor, fold: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    down = fold(blocks[..., 1:, :], blocks[..., :-1, :])
    return fold(down[..., 1:], down[..., :-1])


def _against(images: Tensor, image: Tensor, usable: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Sums over windows of the products of images with one image ``(window, day)``, and of that ``(window,)``."""
    pairs = zip(_rows_of_blocks(images, usable, side), _rows_of_blocks(image[None], usable, side), strict=True)
    rows = [((values @ one.mT)[..., 0], one.sum((1, 2))) for (values, _), (one, _) in pairs]
    shape = (images.shape[2] // side, images.shape[3] // side)
    products, total = (_over_windows(torch.cat(part), shape) for part in zip(*rows, strict=True))
    return products, total


def _mixed(weights: Tensor, images: Tensor) -> Tensor:
    """Sums ``(band, y, x)`` of images ``(day, band, y, x)`` by weights ``(day, y, x)``."""
    total = torch.zeros_like(images[0])
    for weight, image in zip(weights, images, strict=True):
        total += weight * image
    return total


def mixture(matrix: Tensor, right: Tensor) -> Tensor:
    """Weights that are not negative, with a sum of :data:`MOST` at most, for which ``a M a / 2 - a b`` is least.

    Parameters
    ----------
    matrix
        ``(window, day, day)``, rows and columns of 0 for what may not be used.
    right
        ``(window, day)``.

    Returns
    -------
    Tensor
        ``(window, day)`` float64.

    >>> eye = torch.eye(2, dtype=torch.float64)[None]
    >>> mixture(eye, torch.tensor([[0.5, -1.0]]).double()).round(decimals=6).tolist()
    [[0.5, 0.0]]
    >>> mixture(eye, torch.tensor([[3.0, 2.0]]).double()).round(decimals=6).tolist()
    [[1.5, 0.5]]
    """
    # What may not be used, and what two acquisitions that are the same leave open, is 0.
    size = matrix.diagonal(dim1=-2, dim2=-1)
    least = RIDGE * size.amax(1, keepdim=True).clamp(min=1e-30)
    matrix = matrix + torch.diag_embed(torch.where(size > 0, least.expand_as(size), 1.0))
    weights = _not_negative(matrix, right)
    over = (weights.sum(1) > MOST).nonzero()[:, 0]
    if len(over):
        weights[over] = _within(matrix[over], right[over])
    return weights


def _within(matrix: Tensor, right: Tensor) -> Tensor:
    """The price of a unit of weight at which their sum is the most that is allowed, by halving."""
    low, high = torch.zeros_like(right[:, :1]), right.amax(1, keepdim=True)
    for _ in range(HALVINGS):
        price = (low + high) / 2
        beyond = _not_negative(matrix, right - price).sum(1, keepdim=True) > MOST
        low, high = torch.where(beyond, price, low), torch.where(beyond, high, price)
    return _not_negative(matrix, right - high)


def _not_negative(matrix: Tensor, right: Tensor) -> Tensor:
    """Least squares without negative weights, by block principal pivoting (Kim and Park 2011): all weights that are of
    the wrong sign change sides at once, or, where that does not help, the last one alone."""
    days = right.shape[1]
    weights, free = torch.zeros_like(right), right > 0
    open_ = torch.arange(len(right), device=right.device)
    best, patience = torch.full_like(open_, days + 1), torch.full_like(open_, 3)
    for _ in range(PIVOTS):
        if not len(open_):
            break
        part, own, among = matrix[open_], right[open_], free[open_]
        both = among[:, :, None] & among[:, None]
        system = torch.where(both, part, torch.eye(days, dtype=part.dtype, device=part.device))
        found = torch.linalg.solve(system, torch.where(among, own, 0.0))
        slope = (part @ found[..., None])[..., 0] - own
        wrong = torch.where(among, found < 0, slope < -1e-12 * own.abs().amax(1, keepdim=True))
        weights[open_] = found.clamp(min=0)
        many = wrong.sum(1)
        better = many < best[open_]
        patience[open_] = torch.where(better, 3, patience[open_] - 1)
        best[open_] = torch.minimum(best[open_], many)
        last = wrong & (wrong.flip(1).cumsum(1).flip(1) == 1)
        free[open_] = among ^ torch.where((patience[open_] > 0)[:, None], wrong, last)
        open_ = open_[many > 0]
    return weights
