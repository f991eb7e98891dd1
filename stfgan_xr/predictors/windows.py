"""Moving windows around every pixel: their sums, and the pixels in them that are like their centre.

Whether a pixel is like another is a decision, and a decision that turned on the last bit of a sum would differ from
tile to tile. So what decides is computed exactly: sums are of whole numbers, and ties go to the nearer pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

FIXED = 2.0**20
"""Whole numbers that a reflectance of 1 is counted as in sums."""
STRIP = 1 << 15
"""Pixels that are worked on at once: what is made for them stays in the processor's cache, whatever the tile."""
LOOKS = 1 << 18
"""Pairs of a pixel and one of its window that are looked at at once."""


@lru_cache(maxsize=8)
def offsets(radius: int) -> tuple[tuple[int, int], ...]:
    """Rows and columns from the centre of a square window, by distance, then row, then column.

    >>> offsets(1)[:3]
    ((0, 0), (-1, 0), (0, -1))
    """
    reach = range(-radius, radius + 1)
    return tuple(sorted(((y, x) for y in reach for x in reach), key=lambda at: (at[0] ** 2 + at[1] ** 2, at)))


@lru_cache(maxsize=8)
def distances(radius: int) -> Tensor:
    """Pixels from the centre of each of :func:`offsets`, float32."""
    return torch.tensor(offsets(radius), dtype=torch.float64).square().sum(1).sqrt().float()


def strips(rows: int, columns: int, pixels: int = STRIP) -> Iterator[slice]:
    """Rows of an image, as many at once as hold about that many pixels.

    >>> list(strips(5, 10, pixels=20))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, pixels // columns)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def window_sums(counts: Tensor, radius: int) -> Tensor:
    """Sums over square windows of whole numbers.

    Parameters
    ----------
    counts
        ``(..., Y, X)`` int64.
    radius
        Pixels from the centre of a window to its edge.

    Returns
    -------
    Tensor
        ``(..., Y - 2 radius, X - 2 radius)`` int64.

    >>> window_sums(torch.arange(9).reshape(3, 3), 1).tolist()
    [[36]]
    """
    side = 2 * radius + 1
    down = functional.pad(counts.cumsum(-2), (0, 0, 1, 0))
    across = functional.pad((down[..., side:, :] - down[..., :-side, :]).cumsum(-1), (1, 0))
    return across[..., side:] - across[..., :-side]


def fixed(values: Tensor) -> Tensor:
    """Reflectance as whole numbers, of which sums are exact."""
    return (values.double() * FIXED).round().long()


def window_means(image: Tensor, usable: Tensor, radius: int) -> Tensor:
    """Means ``(band, y, x)`` over the usable pixels of windows, float64; NaN of a window without any.

    Parameters
    ----------
    image, usable
        ``(band, Y, X)`` reflectance, and ``(Y, X)`` where it counts.
    radius
        Of the windows.
    """
    count = window_sums(usable.long(), radius).double()
    sums = (window_sums(fixed(band) * usable, radius) for band in image)
    return torch.stack([total.double() / (count * FIXED) for total in sums])


def window_deviations(image: Tensor, usable: Tensor, radius: int) -> Tensor:
    """Standard deviations ``(band, y, x)`` of the usable pixels of windows, float32; arguments as above."""
    count = window_sums(usable.long(), radius).double()
    found = []
    for band in image:
        values = fixed(band) * usable
        mean, square = (window_sums(part, radius).double() / count for part in (values, values * values))
        found.append(((square - mean * mean).clamp(min=0).sqrt() / FIXED).float())
    return torch.stack(found)


@dataclass(frozen=True)
class Likeness:
    """What a pixel of a window must fulfil: its value differs from the centre's by less than a tolerance.

    Attributes
    ----------
    values
        ``(Y, X)`` with the windows' radius as margin.
    tolerance
        ``(y, x)`` of the centres.
    upwards
        Smaller values fulfil it too.
    """

    values: Tensor
    tolerance: Tensor
    upwards: bool = False


@dataclass(frozen=True)
class Similar:
    """Similar pixels of every pixel of an image, in their order.

    Attributes
    ----------
    radius
        Of the windows they lie in: the image has it as margin.
    numbers
        ``(y, x, count)`` int16, numbers into :func:`offsets`.
    found
        ``(y, x)`` uint8, how many of them there are.
    """

    radius: int
    numbers: Tensor
    found: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns without margin."""
        return self.found.shape[0], self.found.shape[1]

    def there(self, strip: slice) -> Tensor:
        """Which of the numbers count, ``(pixel, count)`` of some rows."""
        slots = torch.arange(self.numbers.shape[-1], device=self.found.device)
        return slots < self.found[strip].reshape(-1, 1)

    def places(self, strip: slice) -> Tensor:
        """Indices ``(pixel, count)`` into the flattened image with margin, of some rows."""
        rows, columns = self.shape
        shifts, base = _places(self.radius, rows, columns, strip, self.numbers.device)
        return base[:, None] + shifts[self.numbers[strip].long()].reshape(len(base), -1)

    def distances(self, strip: slice) -> Tensor:
        """Pixels from the centre, ``(pixel, count)``."""
        table = distances(self.radius).to(self.numbers.device)
        return table[self.numbers[strip].long()].reshape(-1, self.numbers.shape[-1])


def _places(radius: int, rows: int, columns: int, strip: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    """Steps to the pixels of a window in the flattened image with margin, and the places of the centres of a strip."""
    wide = columns + 2 * radius
    shifts = torch.tensor([y * wide + x for y, x in offsets(radius)], device=device)
    down = torch.arange(strip.start + radius, strip.stop + radius, device=device) * wide
    return shifts, (down[:, None] + torch.arange(radius, radius + columns, device=device)).reshape(-1)


def nearest_similar(tests: Sequence[Likeness], usable: Tensor, radius: int, count: int) -> Similar:
    """The nearest usable pixels that fulfil all tests, at most ``count``; the centre is the first to be looked at.

    Parameters
    ----------
    tests
        One or more.
    usable
        ``(Y, X)``, with ``radius`` as margin like the values of the tests.
    """
    rows, columns = (side - 2 * radius for side in usable.shape)
    numbers = torch.zeros((rows, columns, count), dtype=torch.int16, device=usable.device)
    found = torch.zeros((rows, columns), dtype=torch.uint8, device=usable.device)
    for strip in strips(rows, columns, STRIP // 8):
        scan = _Scan(tests, usable, radius, strip, count)
        scan.together()
        scan.one_by_one()
        numbers[strip], found[strip] = scan.numbers.reshape(-1, columns, count), scan.found.reshape(-1, columns)
    return Similar(radius, numbers, found)


class _Scan:
    """The windows of a strip, from near to far. First all pixels look the same way at once, which is fast arithmetic;
    when few still need more, these go on alone."""

    def __init__(self, tests: Sequence[Likeness], usable: Tensor, radius: int, strip: slice, count: int) -> None:
        self.radius, self.count, self.next = radius, count, 0
        self.shape = (strip.stop - strip.start, usable.shape[1] - 2 * radius)
        wide = slice(strip.start, strip.stop + 2 * radius)
        self.values = torch.stack([test.values[wide] for test in tests])
        # Infinitely far from any centre: what is unusable fulfils no test.
        self.values[0].masked_fill_(~usable[wide], torch.inf)
        self.tolerance = torch.stack([test.tolerance[strip] for test in tests])
        self.upwards = [test.upwards for test in tests]
        self.centre = self._shifted(0, 0).contiguous()
        pixels = self.shape[0] * self.shape[1]
        self.found = torch.zeros(pixels, dtype=torch.int64, device=usable.device)
        self.numbers = torch.zeros((pixels, count), dtype=torch.int16, device=usable.device)
        self.open = torch.arange(pixels, device=usable.device)

    def _shifted(self, down: int, right: int) -> Tensor:
        rows, columns, radius = *self.shape, self.radius
        return self.values[..., radius + down : radius + down + rows, radius + right : radius + right + columns]

    def together(self) -> None:
        """All pixels, until an eighth is left that needs more."""
        around, pixels = offsets(self.radius), len(self.found)
        excess = torch.empty_like(self.centre)
        most = torch.empty((16, *self.shape), device=excess.device)
        one_sided = [number for number, upwards in enumerate(self.upwards) if upwards]
        while self.next < len(around) and len(self.open) > pixels // 8:
            part = around[self.next : self.next + len(most)]
            for number, at in enumerate(part):
                torch.sub(self._shifted(*at), self.centre, out=excess)
                kept = [excess[upwards].clone() for upwards in one_sided]
                excess.abs_()
                for upwards, signed in zip(one_sided, kept, strict=True):
                    excess[upwards] = signed
                torch.amax(excess.sub_(self.tolerance), dim=0, out=most[number])
            self._take((most[: len(part)] < 0).reshape(len(part), -1).T[self.open])

    def one_by_one(self) -> None:
        """The pixels that are left."""
        rows, columns = self.shape
        shifts, base = _places(self.radius, rows, columns, slice(0, rows), self.found.device)
        values = self.values.reshape(len(self.values), -1)
        centre, tolerance = (part.reshape(len(values), -1) for part in (self.centre, self.tolerance))
        while self.next < len(shifts) and len(self.open):
            step = min(max(LOOKS // len(self.open), 8), len(shifts) - self.next)
            at = (base[self.open, None] + shifts[self.next : self.next + step]).reshape(-1)
            kept = torch.arange(len(at), device=at.device)
            for number, upwards in enumerate(self.upwards):
                of = self.open[torch.div(kept, step, rounding_mode="floor")]
                difference = values[number][at] - centre[number][of]
                alike = ((difference if upwards else difference.abs()) < tolerance[number][of]).nonzero()[:, 0]
                kept, at = kept[alike], at[alike]
            passed = torch.zeros(len(self.open) * step, dtype=torch.bool, device=at.device)
            passed[kept] = True
            self._take(passed.reshape(-1, step))

    def _take(self, passed: Tensor) -> None:
        """What the open pixels saw of the next offsets, ``(pixel, offset)``."""
        rank = passed.cumsum(1) + self.found[self.open, None] - 1
        pixel, number = (passed & (rank < self.count)).nonzero(as_tuple=True)
        self.numbers[self.open[pixel], rank[pixel, number]] = (self.next + number).to(torch.int16)
        self.found[self.open] = (rank[:, -1] + 1).clamp(max=self.count)
        self.next += passed.shape[1]
        self.open = self.open[self.found[self.open] < self.count]


def most_similar(image: Tensor, usable: Tensor, radius: int, count: int) -> Similar:
    """The usable pixels of a window whose values differ least from the centre's, the least first.

    Differences are sums of squares over bands; those that agree to a part in two thousand go by distance.

    Parameters
    ----------
    image, usable
        ``(band, Y, X)`` and ``(Y, X)``, with ``radius`` (31 at most) as margin.
    count
        Of pixels at most.
    """
    rows, columns = (side - 2 * radius for side in usable.shape)
    numbers = torch.zeros((rows, columns, count), dtype=torch.int16, device=usable.device)
    found = torch.zeros((rows, columns), dtype=torch.uint8, device=usable.device)
    around, count = offsets(radius), min(count, (2 * radius + 1) ** 2)
    seen = image.masked_fill(~usable, torch.inf)
    for strip in strips(rows, columns, STRIP // 16):
        keys = _keys(seen, radius, strip, columns)
        least, which = keys.reshape(len(around), -1).T.contiguous().topk(count, largest=False)
        numbers[strip, :, :count] = which.to(torch.int16).reshape(-1, columns, count)
        found[strip] = (least < INFINITE).sum(1).to(torch.uint8).reshape(-1, columns)
    return Similar(radius, numbers, found)


INFINITE, NUMBER = 0x7F800000, 0xFFF
"""The bits of an infinite float32, and those that give way to the number of an offset."""


def _keys(seen: Tensor, radius: int, strip: slice, columns: int) -> Tensor:
    """Whole numbers ``(offset, y, x)`` in the order of the differences, then of the offsets.

    The bits of a float that is not negative are in the order of its value.
    """
    rows, around = strip.stop - strip.start, offsets(radius)
    middle = slice(strip.start + radius, strip.stop + radius), slice(radius, radius + columns)
    centre = seen[:, *middle].contiguous()
    keys = torch.empty((len(around), rows, columns), dtype=torch.float32, device=seen.device)
    square = torch.empty_like(centre)
    for number, (down, right) in enumerate(around):
        top, left = strip.start + radius + down, radius + right
        torch.sub(seen[:, top : top + rows, left : left + columns], centre, out=square)
        first, *others = square.square_()
        keys[number] = first
        for other in others:  # in this order on every tile
            keys[number] += other
    bits = keys.nan_to_num_(nan=torch.inf, posinf=torch.inf).view(torch.int32)
    bits.bitwise_and_(~NUMBER)
    bits += torch.arange(len(around), dtype=torch.int32, device=bits.device)[:, None, None]
    return bits


def weighted_means(images: Tensor, usable: Tensor, similar: Similar, weights: Callable[[slice], Tensor]) -> Tensor:
    """Weighted means ``(band, y, x)`` over the similar pixels that are of use.

    Parameters
    ----------
    images, usable
        ``(band, Y, X)`` and ``(Y, X)``.
    weights
        Gives those ``(pixel, count)`` of some rows, 0 where there is no similar pixel.
    """
    table = torch.cat([images * usable, usable[None].to(images.dtype)]).flatten(1).T.contiguous()
    found = torch.empty((len(images), *similar.shape), device=images.device)
    for strip in strips(*similar.shape):
        sums = functional.embedding_bag(similar.places(strip), table, mode="sum", per_sample_weights=weights(strip))
        means = sums[:, :-1] / sums[:, -1:].clamp(min=1e-12)
        found[:, strip] = means.T.reshape(len(images), -1, similar.shape[1])
    return found


def smoothed(images: Tensor, usable: Tensor, similar: Similar) -> Tensor:
    """:func:`weighted_means` by nearness: ``1 / (1 + distance / radius)``."""
    return weighted_means(
        images, usable, similar, lambda strip: similar.there(strip) / (1 + similar.distances(strip) / similar.radius)
    )
