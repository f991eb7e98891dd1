"""What a fusion method is: a Predictor, in two steps so that nothing is computed twice.

``prepare`` sees what is constant between two Landsat days; ``predict`` is called for the days in between. Add a method
as one file of this folder and one line in :data:`METHODS`.

Some methods ask for more than a bracket: all observations of a block (``archive``), or spectra of the whole area, once
before a run (``fit``), so that what is fitted to them is the same in every tile. See :class:`Predictor`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


def cropped(array: npt.NDArray[Any], cut: int) -> npt.NDArray[Any]:
    """Without ``cut`` rows and columns on every side of the last two axes."""
    return np.ascontiguousarray(array[..., cut : array.shape[-2] - cut, cut : array.shape[-1] - cut])


def _cropped(array: npt.NDArray[Any] | None, cut: int) -> npt.NDArray[Any] | None:
    return None if array is None else cropped(array, cut)


@dataclass(frozen=True)
class Archive:
    """All fine observations of a block, with the halo of its bracket, and the coarse images of their days.

    Attributes
    ----------
    days
        Days since 1970-01-01, ascending.
    fine
        ``(day, band, Y, X)`` reflectance, NaN where it is not clear.
    coarse
        ``(day, band, CY, CX)`` reflectance, NaN where there is none.
    """

    days: tuple[int, ...]
    fine: Float
    coarse: Float


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
    known
        ``(Y, X)``, where the fine images hold an observation and lie on the grid: what methods with windows may use.
        None: everywhere.
    coarse_known
        ``(CY, CX)``, where both coarse images are known. None: everywhere.
    archive
        All observations, for methods that ask for them.
    cloud_before, cloud_after
        ``(Y, X)`` float32, for methods that ask for them: fine pixels from the observations to the nearest pixel that
        is not clear in the same image, exact up to the reach that was asked for.
    resampled_before, resampled_after
        ``(Y, X)``, where the fine images were interpolated from another grid, which blurred them. None: nowhere.
    """

    fine_before: Float
    fine_after: Float
    coarse_before: Float
    coarse_after: Float
    day_before: npt.NDArray[np.int32]
    day_after: npt.NDArray[np.int32]
    ratio: int
    halo: Halo
    known: Bool | None = None
    coarse_known: Bool | None = None
    archive: Archive | None = None
    cloud_before: Float | None = None
    cloud_after: Float | None = None
    resampled_before: Bool | None = None
    resampled_after: Bool | None = None

    def refuse_other(self, ratio: int, method: str) -> None:
        """Raise :class:`InputError` if a method was made for another ratio: halo and cells would be others."""
        if self.ratio != ratio:
            raise InputError(f"{method} was made for cells of {ratio} pixels, the data has {self.ratio}")

    def rows(self, strip: slice) -> Bracket:
        """Some rows of the block, whole cells, with the halo: images, days and what is known of them, no more."""
        fine = slice(strip.start, strip.stop + 2 * self.halo.fine)
        coarse = slice(strip.start // self.ratio, -(-strip.stop // self.ratio) + 2 * self.halo.coarse)
        return Bracket(
            self.fine_before[:, fine], self.fine_after[:, fine],
            self.coarse_before[:, coarse], self.coarse_after[:, coarse],
            self.day_before[fine], self.day_after[fine], self.ratio, self.halo,
            None if self.known is None else self.known[fine],
            None if self.coarse_known is None else self.coarse_known[coarse],
        )  # fmt: skip

    def within(self, halo: Halo) -> Bracket:
        """The same with a smaller halo."""
        fine, coarse = self.halo.fine - halo.fine, self.halo.coarse - halo.coarse
        archive = self.archive
        if archive is not None:
            archive = replace(archive, fine=cropped(archive.fine, fine), coarse=cropped(archive.coarse, coarse))
        return replace(
            self,
            halo=halo,
            fine_before=cropped(self.fine_before, fine),
            fine_after=cropped(self.fine_after, fine),
            day_before=cropped(self.day_before, fine),
            day_after=cropped(self.day_after, fine),
            coarse_before=cropped(self.coarse_before, coarse),
            coarse_after=cropped(self.coarse_after, coarse),
            known=_cropped(self.known, fine),
            coarse_known=_cropped(self.coarse_known, coarse),
            archive=archive,
            cloud_before=_cropped(self.cloud_before, fine),
            cloud_after=_cropped(self.cloud_after, fine),
            resampled_before=_cropped(self.resampled_before, fine),
            resampled_after=_cropped(self.resampled_after, fine),
        )


@dataclass(frozen=True)
class CoarseWindow:
    """The coarse series around target days: ``series`` ``(day, band, CY, CX)`` without NaN, on ``series_days``.

    ``series_days`` are the target days and ``halo.days`` on either side, every day, as days since 1970-01-01.
    ``known`` ``(day, CY, CX)`` tells which cells have a value, gaps that were filled included; None: all of them.
    """

    days: tuple[int, ...]
    series: Float
    series_days: tuple[int, ...]
    known: Bool | None = None

    def on(self, day: int) -> Float:
        """The coarse reflectance ``(band, CY, CX)`` of one day."""
        return self.series[day - self.series_days[0]]  # type: ignore[no-any-return]

    def crop(self, cut: int) -> CoarseWindow:
        """The same without ``cut`` cells on every side."""
        return replace(self, series=cropped(self.series, cut), known=_cropped(self.known, cut))


@dataclass(frozen=True)
class Prediction:
    """``mean`` ``(day, band, y, x)`` reflectance of the block without halo, its standard deviation or None, where an
    input was clipped ``(day, y, x)`` or None, and by how much what the observations before and after say, each alone,
    differs ``(day, band, y, x)``, or None."""

    mean: Float
    std: Float | None = None
    clipped: npt.NDArray[np.bool_] | None = None
    spread: Float | None = None


@runtime_checkable
class Predictor(Protocol):
    """A fusion method.

    It may have, besides: ``memory(rows, columns, days)``, see :func:`memory_of`; ``archive = True``, if brackets are to
    hold all observations; ``fit(spectra)``, if a part of it is fitted to a sample of the whole area (:func:`fitted`);
    ``spread``, true if its predictions hold one;
    ``cloud_reach``, fine pixels up to which brackets are to hold distances to clouds.

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


def wants_archive(predictor: Predictor) -> bool:
    """Whether a method asks for all observations of a block."""
    return bool(getattr(predictor, "archive", False))


def tells_spread(predictor: Predictor) -> bool:
    """Whether the predictions of a method hold their spread."""
    return bool(getattr(predictor, "spread", False))


def with_spread(predictor: Predictor) -> Predictor:
    """A method of two sides that tells their spread.

    Raises
    ------
    InputError
        If it has not two sides that could be told apart.
    """
    if not hasattr(predictor, "spread"):
        name = type(predictor).__name__.lower()
        raise InputError(
            f"--spread: {name} does not predict from before and after alone; "
            "delta, efast, starfm, estarfm, fitfc, fsdaf, spstfm, stfdcnn, stfnet and ganstfm do"
        )
    found: Predictor = replace(predictor, spread=True)  # type: ignore[type-var]
    return found


def cloud_reach(predictor: Predictor) -> int:
    """Fine pixels up to which a method asks for distances to clouds; 0: it does not."""
    return int(getattr(predictor, "cloud_reach", 0))


def is_fitted(predictor: Predictor) -> bool:
    """Whether a method has a part that is fitted once before a run."""
    return hasattr(predictor, "fit")


def fitted(predictor: Predictor, spectra: Float) -> Predictor:
    """A method with its global part fitted; one without is returned as it is.

    Parameters
    ----------
    predictor
        If it has a method ``fit(spectra)``, its result is returned.
    spectra
        ``(pixel, band)`` reflectance, a seeded sample of the observations of the whole area.
    """
    fit = getattr(predictor, "fit", None)
    return predictor if fit is None else fit(spectra)
