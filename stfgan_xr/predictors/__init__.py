"""What a fusion method is: a Predictor, in two steps so that nothing is computed twice.

``prepare`` sees what is constant between two Landsat days; ``predict`` is called for the days in between. Add a method
as one file of this folder and one line in :data:`METHODS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from stfgan_xr.grid import Halo

Float = npt.NDArray[np.float32]


def cropped(array: npt.NDArray[Any], cut: int) -> npt.NDArray[Any]:
    """Without ``cut`` rows and columns on every side of the last two axes."""
    return np.ascontiguousarray(array[..., cut : array.shape[-2] - cut, cut : array.shape[-1] - cut])


@dataclass(frozen=True)
class Bracket:
    """The observations before and after an interval, over a block and its halo.

    ``Y, X`` are the block's fine pixels plus ``halo.fine`` on each side; ``CY, CX`` its coarse cells plus
    ``halo.coarse`` on each side. Beyond the data both are mirrored. All values are reflectance without NaN: gaps are
    filled and their pixels end as nodata or flagged.

    Attributes
    ----------
    fine_before, fine_after
        ``(band, Y, X)`` latest clear observation at or before the interval, earliest at or after it. Where only one
        exists both hold it.
    coarse_before, coarse_after
        ``(band, CY, CX)`` coarse reflectance on the days of the fine pixels of the cell.
    day_before, day_after
        ``(Y, X)`` int32 days since 1970-01-01 of the fine observations.
    ratio
        Fine pixels along a coarse cell.
    halo
        The halo that the arrays carry.
    """

    fine_before: Float
    fine_after: Float
    coarse_before: Float
    coarse_after: Float
    day_before: npt.NDArray[np.int32]
    day_after: npt.NDArray[np.int32]
    ratio: int
    halo: Halo

    def within(self, halo: Halo) -> Bracket:
        """The same with a smaller halo."""
        fine, coarse = self.halo.fine - halo.fine, self.halo.coarse - halo.coarse
        return replace(
            self,
            halo=halo,
            fine_before=cropped(self.fine_before, fine),
            fine_after=cropped(self.fine_after, fine),
            day_before=cropped(self.day_before, fine),
            day_after=cropped(self.day_after, fine),
            coarse_before=cropped(self.coarse_before, coarse),
            coarse_after=cropped(self.coarse_after, coarse),
        )


@dataclass(frozen=True)
class CoarseWindow:
    """The coarse series around target days: ``series`` ``(day, band, CY, CX)`` without NaN, on ``series_days``.

    ``series_days`` are the target days and ``halo.days`` on either side, every day, as days since 1970-01-01.
    """

    days: tuple[int, ...]
    series: Float
    series_days: tuple[int, ...]

    def on(self, day: int) -> Float:
        """The coarse reflectance ``(band, CY, CX)`` of one day."""
        return self.series[day - self.series_days[0]]  # type: ignore[no-any-return]

    def crop(self, cut: int) -> CoarseWindow:
        """The same without ``cut`` cells on every side."""
        return replace(self, series=cropped(self.series, cut))


@dataclass(frozen=True)
class Prediction:
    """``mean`` ``(day, band, y, x)`` reflectance of the block without halo, its standard deviation or None, and where
    an input was clipped ``(day, y, x)`` or None."""

    mean: Float
    std: Float | None = None
    clipped: npt.NDArray[np.bool_] | None = None


@runtime_checkable
class Predictor(Protocol):
    """A fusion method.

    Attributes
    ----------
    bands
        Names of the bands, in the order of every array.
    halo
        What it must see beyond a block, so that tiles give the pixels of the whole image.
    """

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands."""
        ...

    @property
    def halo(self) -> Halo:
        """What it must see beyond a block."""
        ...

    def prepare(self, bracket: Bracket) -> Any:
        """Everything that does not depend on the target day."""
        ...

    def predict(self, prepared: Any, coarse: CoarseWindow) -> Prediction:
        """The target days of ``coarse``."""
        ...


def memory_of(predictor: Predictor, rows: int, columns: int, days: int) -> int:
    """Bytes that a method takes for days of a block with its halo, roughly: what it says, or two images.

    A method that needs more has a method ``memory(rows, columns, days)``.
    """
    stated = getattr(predictor, "memory", None)
    return 8 * rows * columns * len(predictor.bands) if stated is None else int(stated(rows, columns, days))
