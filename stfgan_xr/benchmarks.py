"""Benchmark sets of the field: CIA and LGC as they are published, and folders of pairs named alike.

CIA (Coleambally) and LGC (Lower Gwydir) are those of Emelyanova et al. 2013 (doi 10.1016/j.rse.2013.02.007; data at
doi 10.4225/08/5111AC0BF1229 and 10.4225/08/5111AD2B7FEE6): six bands of int16, reflectance x 10000, in ENVI files in a
folder for each date. A ``folder`` holds ``landsat_YYYYMMDD.tif`` and ``modis_YYYYMMDD.tif`` of the same kind.

All of them give MODIS resampled to the pixels of Landsat. The coarse series is made from it as the mean over cells of
:data:`CELL` x :data:`CELL` pixels, 400 m on CIA and LGC. Cells of 20 pixels, 500 m, would not fill the crops that
STFGAN is scored on, which are multiples of 16, nor fit weights for 16; and the means of 400 m lose less of MODIS' own
463 m. For a coarse series on its own grid, or left as it is (ratio 1), describe the rasters in a ``pairs.toml``
(:mod:`stfgan_xr.datasets`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from stfgan_xr.datasets import counts_dataset, refuse_other_grid
from stfgan_xr.days import day_range
from stfgan_xr.errors import InputError
from stfgan_xr.grid import Window, coarse_grid
from stfgan_xr.rasters import ENVI, read_image
from stfgan_xr.sensors import BANDS, FILL, MOD09GA

CELL = 16
"""Pixels along a cell of the coarse series."""
PIXEL = 25.0
"""Metres along a pixel of CIA and LGC, and of images that do not state it."""
LEAVE_ONE_OUT = "leave-one-out"
"""The split that every set has: each day from the one before and the one after."""
NAMES = ("cia", "lgc", "folder")
"""The sets."""

Triplet = tuple[date, date, date]
"""A case: the days t1, tp (the target) and t2, before, of and after the prediction."""
Counts = npt.NDArray[np.int16]
logger = logging.getLogger(__name__)


def consecutive(days: Iterable[date]) -> tuple[Triplet, ...]:
    """All triplets of days that follow each other.

    >>> [[day.day for day in triplet] for triplet in consecutive([date(2020, 1, n) for n in (1, 3, 8, 9)])]
    [[1, 3, 8], [3, 8, 9]]
    """
    days = sorted(days)
    return tuple(zip(days, days[1:], days[2:], strict=False))


@dataclass(frozen=True)
class Split:
    """Which days test, and what its publication trains on.

    Attributes
    ----------
    name
        Its name.
    cases
        The triplets that test.
    published
        The triplets that train in the publication.
    """

    name: str
    cases: tuple[Triplet, ...]
    published: tuple[Triplet, ...] = ()

    @property
    def violations(self) -> dict[Triplet, tuple[date, ...]]:
        """Days that the published training uses though they lie strictly between t1 and t2 of a case, by case.

        A case without any is fair: neither its target nor anything acquired around it was trained on.
        """
        used = sorted({day for triplet in self.published for day in triplet})
        return {case: tuple(day for day in used if case[0] < day < case[2]) for case in self.cases}

    @property
    def withheld(self) -> frozenset[date]:
        """Days of which fair training sees no fine image: those strictly between t1 and t2 of a case.

        >>> split = Split("one", consecutive(date(2020, 1, n) for n in (1, 3, 8)))
        >>> split.withheld == {date(2020, 1, n) for n in range(2, 8)}
        True
        """
        return frozenset(day for first, _, last in self.cases for day in day_range(first, last)[1:-1])


@dataclass(frozen=True)
class _Names:
    """How files of a side are called: an expression whose group tells the day, its format, and days to add to it."""

    expression: str
    date_format: str
    later: int = 0


@dataclass(frozen=True)
class _Published:
    """A published set.

    Attributes
    ----------
    days
        Days of its pairs.
    shape
        Rows and columns of its images.
    crop
        The part that STFGAN is trained and scored on; all splits use it.
    fine, coarse
        How its files are called.
    splits
        The cases of each split, and the days that are kept out of its published training.
    """

    days: tuple[date, ...]
    shape: tuple[int, int]
    crop: Window
    fine: tuple[_Names, ...]
    coarse: tuple[_Names, ...]
    splits: Mapping[str, tuple[tuple[Triplet, ...], frozenset[date]]]


def _days(text: str) -> tuple[date, ...]:
    return tuple(date.fromisoformat(day) for day in text.split())


def _cases(*texts: str) -> tuple[Triplet, ...]:
    return tuple((first, target, last) for first, target, last in map(_days, texts))


_MODIS = (_Names(r"MOD09GA_A(\d{7})\.sur_refl", "%Y%j"), _Names(r"MOD_(\d{8})", "%Y%m%d"))
_PUBLISHED: Mapping[str, _Published] = {
    "cia": _Published(
        days=_days(
            "2001-10-08 2001-10-17 2001-11-02 2001-11-09 2001-11-25 2001-12-04 2002-01-05 2002-01-12 2002-02-13 "
            "2002-02-22 2002-03-10 2002-03-17 2002-04-02 2002-04-11 2002-04-18 2002-04-27 2002-05-04"
        ),
        shape=(2040, 1720),
        crop=Window(20, 1812, 106, 1386),
        # Landsat passes in the morning, when it is still the day before in UTC, which is what its names tell.
        fine=(_Names(r"L7\d093084_084(\d{8})_HRF_modtran_surf_ref_agd66", "%Y%m%d", later=1),),
        coarse=_MODIS,
        splits={
            "stfgan": (
                _cases(
                    "2001-11-02 2001-11-09 2001-11-25",
                    "2002-02-22 2002-03-10 2002-03-17",
                    "2002-02-22 2002-03-17 2002-04-18",
                    "2002-04-11 2002-04-18 2002-04-27",
                ),
                frozenset(),
            )
        },
    ),
    "lgc": _Published(
        days=_days(
            "2004-04-16 2004-05-02 2004-07-05 2004-08-06 2004-08-22 2004-10-25 2004-11-26 2004-12-12 2004-12-28 "
            "2005-01-13 2005-01-29 2005-02-14 2005-03-02 2005-04-03"
        ),
        shape=(2720, 3200),
        crop=Window(40, 2600, 32, 3104),
        fine=(_Names(r"(\d{8})_TM", "%Y%m%d"),),
        coarse=_MODIS,
        splits={
            "stfgan": (_cases("2004-12-28 2005-01-13 2005-01-29"), frozenset()),
            "flood": (_cases("2004-11-26 2004-12-12 2004-12-28"), frozenset(_days("2004-12-12"))),
        },
    ),
}
_EXTENSION = r"(?:\.(?:bil|bsq|bip|int|img|dat|tiff?))?"
_TIFF = (".tif", ".tiff")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark set and a split of it, from :func:`read_benchmark`.

    Attributes
    ----------
    name
        One of :data:`NAMES`.
    split
        What tests and trains.
    fine, coarse
        Files by day.
    shape
        Rows and columns of every image.
    grid
        Where they lie, or would if the upper left corner were the origin.
    crop
        The part that is used: whole cells.
    placed
        Whether images that state another place are refused.
    """

    name: str
    split: Split
    fine: Mapping[date, Path] = field(repr=False)
    coarse: Mapping[date, Path] = field(repr=False)
    shape: tuple[int, int]
    grid: GeoBox
    crop: Window
    placed: bool = False

    def testing(self) -> tuple[xr.Dataset, xr.Dataset]:
        """Counts ``(time, y, x)`` in memory to predict the cases from: Landsat on their days, MODIS on every day.

        Days of MODIS without an image are all fill.

        Raises
        ------
        InputError
            If an image cannot be read or does not fit the set; it is named.
        """
        return self._cubes({day for case in self.split.cases for day in case})

    def training(self) -> tuple[xr.Dataset, xr.Dataset]:
        """The same to train on by the fair protocol: Landsat on the days that are not :attr:`Split.withheld`.

        Raises
        ------
        InputError
            Also if fewer than three such days are left.
        """
        days = set(self.fine) - self.split.withheld
        if len(days) < 3:
            raise InputError(
                f"--split {self.split.name} of {self.name} leaves {len(days)} days to train on, three are needed; "
                "choose a split that tests fewer"
            )
        return self._cubes(days)

    def facts(self) -> dict[str, Any]:
        """What was chosen as JSON values, and of each case the days in :attr:`Split.violations`."""
        found = {"/".join(map(str, case)): [str(day) for day in days] for case, days in self.split.violations.items()}
        return {"name": self.name, "split": self.split.name, "violations": found}

    def _cubes(self, days: Iterable[date]) -> tuple[xr.Dataset, xr.Dataset]:
        chosen = sorted(days)
        fine = self.grid[self.crop.slices]
        coarse, every = coarse_grid(fine, CELL), day_range(min(self.coarse), max(self.coarse))
        landsat = np.stack([self._counts(self.fine[day]) for day in chosen])
        modis = np.full((len(every), len(BANDS), *coarse.shape), FILL, np.int16)
        for day, path in self.coarse.items():
            modis[every.index(day)] = cell_means(self._counts(path))
        return counts_dataset(landsat, BANDS, fine, chosen), counts_dataset(modis, BANDS, coarse, every)

    def _counts(self, path: Path) -> Counts:
        values, grid = _read(path, self.shape)
        if self.placed and grid is not None:
            refuse_other_grid(path, grid, self.grid)
        counts = values[:, *self.crop.slices]
        if (counts == FILL).all():
            crop = f"rows {self.crop.top} to {self.crop.bottom} and columns {self.crop.left} to {self.crop.right}"
            raise InputError(f"{path}: holds no reflectance x 10000 in {crop}; copy it anew")
        return counts


def cell_means(counts: Counts) -> Counts:
    """Means over cells of :data:`CELL` x :data:`CELL` pixels, of their pixels that are not fill.

    Parameters
    ----------
    counts
        ``(band, y, x)`` of whole cells; FILL where there are no data.

    >>> image = np.full((1, 16, 32), FILL, "int16")
    >>> image[0, 0, 0], image[0, 9, 15] = 100, 203
    >>> cell_means(image).tolist()
    [[[152, -32768]]]
    """
    bands, height, width = counts.shape
    cells = counts.reshape(bands, height // CELL, CELL, width // CELL, CELL)
    known = cells != FILL
    count = known.sum(axis=(2, 4))
    total = cells.sum(axis=(2, 4), where=known, dtype=np.int64)
    return np.where(count > 0, np.rint(total / np.maximum(count, 1)), FILL).astype(np.int16)


def read_benchmark(name: str | None, root: Path | None, split: str | None) -> Benchmark:
    """Find the files of a benchmark set; their numbers are read by :class:`Benchmark`.

    Parameters
    ----------
    name
        One of :data:`NAMES`.
    root
        Folder of the set; files are found by their names at any depth, whatever else lies there.
    split
        ``stfgan`` (CIA, LGC), ``flood`` (LGC) or ``leave-one-out``.

    Raises
    ------
    InputError
        If the name or the split is unknown, or files are missing, there twice, or do not go together.
    """
    if name not in NAMES:
        raise InputError(f"--benchmark {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if root is None or not root.is_dir():
        raise InputError(f"--root {root}: no such folder; name that of {name} with --root")
    return _folder(root, split) if name == "folder" else _published(name, root, split)


def _choose(name: str, split: str | None, days: Sequence[date]) -> Split:
    """A split of a set by its name."""
    known = _PUBLISHED[name].splits if name in _PUBLISHED else {}
    if split == LEAVE_ONE_OUT:
        return Split(split, consecutive(days))
    if split is None or split not in known:
        raise InputError(f"--split {split!r}: {name} has {', '.join((*known, LEAVE_ONE_OUT))}; choose one")
    cases, unused = known[split]
    published = consecutive(day for day in days if day not in unused)
    return Split(split, cases, tuple(triplet for triplet in published if triplet not in cases))


def _published(name: str, root: Path, split: str | None) -> Benchmark:
    published = _PUBLISHED[name]
    chosen = _choose(name, split, published.days)
    sides = {}
    for side, names in (("Landsat", published.fine), ("MODIS", published.coarse)):
        files = _find(root, names)
        absent = [str(day) for day in published.days if day not in files]
        if absent:
            raise InputError(
                f"--root {root}: {len(absent)} of the {len(published.days)} {side} images of {name} are not there: "
                f"{', '.join(absent)}; unpack the archive there with its names"
            )
        sides[side] = {day: files[day] for day in published.days}
    grid = _local(published.shape)
    return Benchmark(name, chosen, sides["Landsat"], sides["MODIS"], published.shape, grid, published.crop)


def _folder(root: Path, split: str | None) -> Benchmark:
    fine, coarse = (_find(root, [_Names(rf"{side}_(\d{{8}})", "%Y%m%d")], r"\.tiff?") for side in ("landsat", "modis"))
    if len(fine) < 3:
        raise InputError(f"--root {root}: holds {len(fine)} files landsat_YYYYMMDD.tif, three days are needed")
    absent = [f"modis_{day:%Y%m%d}.tif" for day in fine if day not in coarse]
    if absent:
        raise InputError(f"--root {root}: {', '.join(absent)} is not there; every Landsat day needs its MODIS image")
    chosen = _choose("folder", split, list(fine))
    first = next(iter(fine.values()))
    values, grid = _read(first, None)
    shape = values.shape[1:]
    crop = Window(0, shape[0] // CELL * CELL, 0, shape[1] // CELL * CELL)
    if not all(crop.shape):
        raise InputError(f"{first}: {shape[1]} x {shape[0]} pixels are less than a cell of {CELL} x {CELL}")
    if crop.shape != shape:
        logger.warning("%s: of %d x %d pixels those in whole cells of %d count", root, shape[1], shape[0], CELL)
    return Benchmark("folder", chosen, fine, coarse, shape, grid or _local(shape), crop, placed=grid is not None)


def _local(shape: tuple[int, int]) -> GeoBox:
    # Pairs of the archives have rows and columns in common; what their headers may say of a place is not needed.
    return GeoBox(shape, Affine(PIXEL, 0, 0, 0, -PIXEL, 0), None)


def _find(root: Path, names: Sequence[_Names], extension: str = _EXTENSION) -> dict[date, Path]:
    """Files of a side by day, ascending."""
    found: dict[date, Path] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        for name in names:
            match = re.fullmatch(name.expression + extension, path.name, re.IGNORECASE | re.ASCII)
            if match is None:
                continue
            day = _day(match[1], name, path)
            if day in found:
                raise InputError(f"--root: two files for {day}, {found[day]} and {path}; leave one of them there")
            found[day] = path
    return dict(sorted(found.items()))


def _day(text: str, name: _Names, path: Path) -> date:
    try:
        return datetime.strptime(text, name.date_format).date() + timedelta(days=name.later)
    except (ValueError, OverflowError):
        raise InputError(f"{path}: {text!r} in its name is not a day; rename it or take it away") from None


def _read(path: Path, shape: tuple[int, int] | None) -> tuple[Counts, GeoBox | None]:
    """Counts ``(band, y, x)`` of an image of reflectance x 10000, with FILL, and its grid if it states one.

    What counts is what MOD09GA calls valid, -0.01 to 1.6; pixels of exactly 0 in all bands are edges without data.
    """
    values, grid, nodata = read_image(path, *(() if path.suffix.lower() in _TIFF else (ENVI,)))
    expected = (len(BANDS), *(shape or values.shape[1:]))
    if values.shape != expected or values.dtype not in (np.int16, np.uint16):
        raise InputError(
            f"{path}: holds {_describe(values.shape)} of {values.dtype}, not {_describe(expected)} of int16 "
            "(reflectance x 10000); other rasters can be described in a pairs.toml, for --pairs"
        )
    least, greatest = MOD09GA.valid
    valid = (values >= least) & (values <= greatest) & values.any(axis=0)
    if nodata is not None:
        valid &= values != nodata
    return np.where(valid, values.astype(np.int16), np.int16(FILL)), grid


def _describe(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} bands of {shape[1]} rows x {shape[2]} columns"
