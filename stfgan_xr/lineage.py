"""What a block of a fused cube was made from: a digest of all of it, and the days on which other imagery would count.

A cube that grows is brought up to date by comparisons. What changed in the cubes it is made from is told by their
records. The blocks that may have seen it are those whose own records, which keep :attr:`Lineage.landsat` and
:attr:`Lineage.modis`, hold its day. Their inputs are read again, and where the digest differs the block is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from stfgan_xr.grid import Window

if TYPE_CHECKING:
    from stfgan_xr.brackets import Interval

Days = tuple[int, int]
"""First and last day of a range, both included, since 1970-01-01."""


def _feed(into: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        into.update(f"{value.dtype} {value.shape}".encode())
        into.update(np.ascontiguousarray(value).tobytes())
    elif is_dataclass(value):
        for part in fields(value):
            _feed(into, getattr(value, part.name))
    elif _is_plain(value):
        into.update(repr(value).encode())
    else:
        raise TypeError(f"{type(value).__name__} in a digest: it is not known how to hold all of it")


def _is_plain(value: Any) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(number is None or isinstance(number, str | Real) for number in numbers)


@dataclass
class Lineage:
    """What the intervals of a block show to a method, gathered while it is fused.

    Attributes
    ----------
    reach
        Days before and after that the coarse series of an interval is read around what is used of it.
    landsat, modis
        Days on which another acquisition, or another coarse image, could make the block another; None before the first
        interval.

    >>> Lineage(16).digest() == Lineage(16).digest()
    True
    """

    reach: int
    landsat: Days | None = None
    modis: Days | None = None
    _sha256: Any = field(default_factory=hashlib.sha256, repr=False)

    def add(self, interval: Interval) -> None:
        """Note an interval."""
        _feed(self._sha256, replace(interval, reach=(0, 0)))  # how far it was looked for is no input
        first, last = interval.reach
        near = interval.coarse.series_days
        self.landsat = _around(self.landsat, (first, last))
        seen = min(first, near[0]) - self.reach, max(last, near[-1]) + self.reach
        self.modis = _around(self.modis, seen)

    def digest(self, fitted: str = "") -> str:
        """SHA-256 of all that was noted, and of what the method was fitted to."""
        whole = self._sha256.copy()
        whole.update(fitted.encode())
        return str(whole.hexdigest())

    def notes(self, fitted: str = "") -> dict[str, Any]:
        """What the record of the block keeps."""
        ranges = {"landsat": self.landsat, "modis": self.modis}
        return {"inputs": self.digest(fitted), "reads": {name: list(days) for name, days in ranges.items() if days}}


def _around(one: Days | None, other: Days) -> Days:
    return other if one is None else (min(one[0], other[0]), max(one[1], other[1]))


@dataclass(frozen=True)
class Change:
    """Something that became another in a cube that blocks read from.

    Attributes
    ----------
    cube
        ``landsat`` or ``modis``.
    days
        Its days.
    window
        Its pixels, on the cube's own grid.
    """

    cube: str
    days: Days
    window: Window


def touching(reads: Mapping[str, Any], windows: Mapping[str, Window], changes: Iterable[Change]) -> list[str]:
    """Of which cubes something changed that a block may have seen.

    Parameters
    ----------
    reads
        What the record of the block says.
    windows
        What it reads of each cube.
    changes
        What changed.

    >>> change = Change("modis", (5, 20), Window(0, 8, 0, 8))
    >>> touching({"modis": [20, 40]}, {"modis": Window(0, 4, 0, 4)}, [change])
    ['modis']
    >>> touching({"modis": [21, 40]}, {"modis": Window(0, 4, 0, 4)}, [change])
    []
    """
    found = set()
    for change in changes:
        days, window = reads.get(change.cube), windows[change.cube]
        if days and days[0] <= change.days[1] and change.days[0] <= days[1] and _meet(window, change.window):
            found.add(change.cube)
    return sorted(found)


def _meet(one: Window, other: Window) -> bool:
    rows = one.top < other.bottom and other.top < one.bottom
    return rows and one.left < other.right and other.left < one.right
