"""Pairs of your own: co-registered rasters, one file a day, described by a ``pairs.toml``.

The file names the bands and, for each side, where its rasters lie and how their numbers become reflectance::

    name = "my-place"
    bands = ["red", "nir"]            # of every raster, in this order
    [fine]
    path = "landsat/{date}_*.tif"     # relative to this file; * stands for anything within a name
    date_format = "%Y%m%d"            # of {date}: %Y %y %m %d %j %H %M %S and any other characters
    scale = 1e-4                      # reflectance = value * scale + offset
    offset = 0.0
    nodata = -9999                    # or nodata_below = -1e30, or neither: then the raster's own
    exclude = ["2020-11-26"]          # days to leave out
    [coarse]
    path = "modis/{date}.tif"
    date_format = "%Y%j"
    scale = 1e-4

The coarse cells must be whole fine pixels over the same ground; any ratio will do, also 1.
"""

from __future__ import annotations

import glob
import logging
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from stfgan_xr.days import day_range, to_datetime64
from stfgan_xr.errors import InputError, NothingToDo
from stfgan_xr.grid import describe, ratio_of
from stfgan_xr.rasters import read_raster
from stfgan_xr.sensors import FILL, Observation, from_reflectance

LARGEST_FILE = 2**20
"""Bytes of a pairs.toml; a longer one is not read."""
LARGEST_REFLECTANCE = 3.2
"""Absolute reflectance above this is no measurement (and would not fit the counts of a cube)."""
_DIGITS = {"Y": 4, "y": 2, "m": 2, "d": 2, "j": 3, "H": 2, "M": 2, "S": 2}
_BAND = re.compile(r"[A-Za-z]\w*")
_RESERVED = {"qa", "time", "x", "y", "xc", "yc", "spatial_ref", "days_before", "days_after"}
_TOP = {"name": str, "bands": list, "fine": dict, "coarse": dict}
_SIDE = {
    "path": str, "date_format": str, "scale": (int, float), "offset": (int, float),
    "nodata": (int, float), "nodata_below": (int, float), "exclude": list,
}  # fmt: skip
_NEEDED_TOP, _NEEDED_SIDE = ("bands", "fine", "coarse"), ("path", "date_format", "scale")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coding:
    """How the values of a side's rasters become reflectance.

    Attributes
    ----------
    scale, offset
        reflectance = value * scale + offset.
    nodata
        Value that means no data, beside the one that the raster states.
    nodata_below
        Values below it mean no data.
    """

    scale: float
    offset: float = 0.0
    nodata: float | None = None
    nodata_below: float | None = None

    def reflectance(self, values: npt.NDArray[Any], stated: float | None) -> npt.NDArray[np.float64]:
        """Values as reflectance, NaN where there are no data; ``stated`` is the raster's own nodata value.

        Comparisons are made before any rescaling, in float64, and once more with the nodata value as the raster's
        own type holds it (-3.4e38 is another number in float32).

        >>> Coding(1e-4, nodata=-1).reflectance(np.array([-1, 0, 2500], "int16"), None).tolist()
        [nan, 0.0, 0.25]
        """
        plain = values.astype(np.float64)
        missing = ~np.isfinite(plain)
        for nodata in (self.nodata, stated):
            if nodata is not None:
                missing |= plain == nodata
                if values.dtype == np.float32 and abs(nodata) <= np.finfo(np.float32).max:
                    missing |= plain == float(np.float32(nodata))
        if self.nodata_below is not None:
            missing |= plain < self.nodata_below
        return np.where(missing, np.nan, np.where(missing, 0.0, plain) * self.scale + self.offset)


@dataclass(frozen=True)
class Side:
    """The rasters of one side.

    Attributes
    ----------
    kind
        ``fine`` or ``coarse``.
    bands
        Names of the bands of every raster.
    files
        Path of each day, ascending.
    coding
        How values become reflectance.
    """

    kind: str
    bands: tuple[str, ...]
    files: Mapping[date, Path] = field(repr=False)
    coding: Coding

    @cached_property
    def grid(self) -> GeoBox:
        """The grid of its first raster, and so of all of them."""
        return _read(next(iter(self.files.values())), self.bands)[1]

    @cached_property
    def days(self) -> tuple[date, ...]:
        """Days on which any band has any value; reads and checks every raster once.

        Raises
        ------
        InputError
            If a raster's grid or number of bands differs.
        NothingToDo
            If no raster holds a value.
        """
        found = tuple(day for day, path in self.files.items() if self._holds_values(path))
        if not found:
            raise NothingToDo(
                f"none of the {len(self.files)} {self.kind} rasters holds a value; check nodata and scale"
            )
        return found

    def _holds_values(self, path: Path) -> bool:
        reflectance = self._reflectance(path)
        known = ~np.isnan(reflectance)
        beyond = int((np.abs(reflectance[known]) > LARGEST_REFLECTANCE).sum())
        if beyond:
            logger.warning(
                "%s: %d values beyond a reflectance of %g are taken for nodata; check [%s] scale and offset",
                path, beyond, LARGEST_REFLECTANCE, self.kind,
            )  # fmt: skip
        return int(known.sum()) > beyond

    def _reflectance(self, path: Path) -> npt.NDArray[np.float64]:
        values, grid, stated = _read(path, self.bands)
        refuse_other_grid(path, grid, self.grid)
        return self.coding.reflectance(values, stated)

    def counts(self, path: Path) -> npt.NDArray[np.int16]:
        """A raster as the counts ``(band, y, x)`` of a cube."""
        reflectance = self._reflectance(path)
        with np.errstate(invalid="ignore"):
            return from_reflectance(np.where(np.abs(reflectance) > LARGEST_REFLECTANCE, np.nan, reflectance))

    def dataset(self, days: Iterable[date], bands: Sequence[str]) -> xr.Dataset:
        """Lazy counts of some days, all fill on days without a raster."""
        known, wanted = set(self.days), tuple(days)
        height, width = (int(side) for side in self.grid.shape)
        shape = (len(self.bands), height, width)
        hole = da.full(shape, FILL, dtype=np.int16, chunks=shape)
        images = [
            da.from_delayed(delayed(self.counts, pure=False)(self.files[day]), shape, dtype=np.int16)
            if day in known
            else hole
            for day in wanted
        ]
        stack = da.stack(images)[:, [self.bands.index(band) for band in bands]]
        return counts_dataset(stack, bands, self.grid, wanted)


def counts_dataset(
    counts: npt.NDArray[np.int16] | da.Array, bands: Sequence[str], grid: GeoBox, days: Iterable[date]
) -> xr.Dataset:
    """Counts ``(time, band, y, x)`` as a Dataset; ``qa`` is FILL where any band has no value.

    Parameters
    ----------
    counts
        int16, reflectance x 10000, in memory or lazy.
    bands, grid, days
        What its other axes are.
    """
    variables = {band: (("time", "y", "x"), counts[:, number]) for number, band in enumerate(bands)}
    qa = (counts == FILL).any(axis=1).astype(np.uint16) * np.uint16(Observation.FILL)
    coordinates = {**xr_coords(grid), "time": to_datetime64(days)}
    return xr.Dataset(variables | {"qa": (("time", "y", "x"), qa)}, coordinates)


@dataclass(frozen=True)
class Pairs:
    """Fine and coarse rasters of one place, from :func:`read_pairs`.

    Attributes
    ----------
    name
        Name of the place.
    bands
        Names of the bands.
    fine, coarse
        The two sides.
    """

    name: str
    bands: tuple[str, ...]
    fine: Side
    coarse: Side

    @cached_property
    def ratio(self) -> int:
        """Fine pixels along a coarse cell.

        Raises
        ------
        InputError
            If the grids are not nested.
        """
        return ratio_of(self.fine.grid, self.coarse.grid)

    def landsat(self, bands: Sequence[str] | None = None) -> xr.Dataset:
        """Lazy counts ``(time, y, x)`` of the fine side, of the days that hold any value.

        Parameters
        ----------
        bands
            Names of the bands, by default all. ``qa`` is FILL where any of them has no value.

        Raises
        ------
        InputError
            If a band is unknown or a raster does not fit the others.
        """
        return self.fine.dataset(self.fine.days, self._choose(bands))

    def modis(self, bands: Sequence[str] | None = None) -> xr.Dataset:
        """Lazy counts ``(time, y, x)`` of the coarse side, every day from the first to the last, gaps all fill."""
        days = self.coarse.days
        return self.coarse.dataset(day_range(days[0], days[-1]), self._choose(bands))

    def _choose(self, bands: Sequence[str] | None) -> tuple[str, ...]:
        chosen = self.bands if bands is None else tuple(bands)
        unknown = [band for band in chosen if band not in self.bands]
        if unknown or not chosen:
            raise InputError(f"{self.name} has bands {', '.join(self.bands)}, not {', '.join(unknown) or 'none'}")
        return chosen


def read_pairs(path: str | Path) -> Pairs:
    """The pairs that a ``pairs.toml`` describes; reads and checks every raster once, one at a time.

    Parameters
    ----------
    path
        The TOML file; the form is described at the top of this module.

    Raises
    ------
    InputError
        If the file is not such a description, a side has no rasters or several for a day, a raster's grid or number
        of bands is another, or the two grids are not nested. The message names the file and the key.
    NothingToDo
        If the rasters of a side hold no values.
    """
    path = Path(path)
    document = _parse(path)
    _check_keys(document, _TOP, _NEEDED_TOP, str(path))
    bands = _bands(document["bands"], path)
    sides = {kind: _side(kind, document[kind], bands, path) for kind in ("fine", "coarse")}
    pairs = Pairs(document.get("name") or path.resolve().parent.name, bands, sides["fine"], sides["coarse"])
    if pairs.ratio < 1:
        raise InputError(f"{path}: the coarse rasters are finer than the fine ones; are the two sides exchanged?")
    _check_rasters(pairs)
    return pairs


def _check_rasters(pairs: Pairs) -> None:
    # Knowing the days takes a look into every raster, and finds those that do not fit.
    for side in (pairs.fine, pairs.coarse):
        logger.info("%s: %d %s days of %d rasters", pairs.name, len(side.days), side.kind, len(side.files))


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); --pairs takes a pairs.toml") from None
    if len(content) > LARGEST_FILE:
        raise InputError(f"{path}: larger than {LARGEST_FILE} bytes; --pairs takes a pairs.toml, not a raster")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a TOML file ({error})") from None


def _check_keys(table: Mapping[str, Any], known: Mapping[str, Any], needed: Iterable[str], where: str) -> None:
    """Refuse unknown keys first: a misspelt key is better named than the one it leaves out."""
    for key in table:
        if key not in known:
            raise InputError(f"{where}: key {key!r} is unknown; known are {', '.join(known)}")
    for key in needed:
        if key not in table:
            raise InputError(f"{where}: key {key!r} is missing")
    for key, value in table.items():
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise InputError(f"{where}: key {key!r} cannot be {value!r}")


def _bands(names: list[Any], path: Path) -> tuple[str, ...]:
    good = [name for name in names if isinstance(name, str) and _BAND.fullmatch(name) and name not in _RESERVED]
    if not names or good != names or len(set(names)) != len(names):
        raise InputError(f"{path}: key 'bands' must list different names such as red or nir, not {names!r}")
    return tuple(names)


def _side(kind: str, table: dict[str, Any], bands: tuple[str, ...], path: Path) -> Side:
    where = f"{path}: [{kind}]"
    _check_keys(table, _SIDE, _NEEDED_SIDE, where)
    if not (np.isfinite(table["scale"]) and table["scale"] != 0 and np.isfinite(table.get("offset", 0))):
        raise InputError(f"{where}: key 'scale' must be a number other than 0 and 'offset' a number")
    files = _find(table["path"], table["date_format"], path.parent, where)
    _exclude(files, table.get("exclude", []), where)
    if not files:
        raise InputError(f"{where}: key 'path' {table['path']!r} with {table['date_format']!r} finds no file")
    numbers = {key: float(table[key]) for key in ("scale", "offset", "nodata", "nodata_below") if key in table}
    return Side(kind, bands, dict(sorted(files.items())), Coding(**numbers))


def _exclude(files: dict[date, Path], days: list[Any], where: str) -> None:
    for day in days:
        try:
            excluded = day if type(day) is date else date.fromisoformat(day)
        except (TypeError, ValueError):
            raise InputError(f"{where}: key 'exclude' must list days as YYYY-MM-DD, not {day!r}") from None
        if files.pop(excluded, None) is None:
            logger.warning("%s: key 'exclude' names %s, for which there is no file", where, excluded)


def _date_patterns(date_format: str, where: str) -> tuple[str, str]:
    """Glob and regular expression of the days that a ``date_format`` writes."""
    parts = re.findall(r"%.|[^%]+|%$", date_format, flags=re.DOTALL)
    unknown = [part for part in parts if part[0] == "%" and part[1:] not in _DIGITS]
    if unknown:
        raise InputError(
            f"{where}: key 'date_format' holds {unknown[0]!r}; known are {', '.join('%' + key for key in _DIGITS)}"
        )
    has = {part[1] for part in parts if part[0] == "%"}
    if not (has & {"Y", "y"} and ("j" in has or {"m", "d"} <= has)):
        raise InputError(f"{where}: key 'date_format' {date_format!r} does not tell a day; write %Y-%m-%d or %Y%j")
    wild = "".join("?" * _DIGITS[part[1]] if part[0] == "%" else glob.escape(part) for part in parts)
    expression = "".join(rf"\d{{{_DIGITS[part[1]]}}}" if part[0] == "%" else re.escape(part) for part in parts)
    return wild, expression


def _find(pattern: str, date_format: str, folder: Path, where: str) -> dict[date, Path]:
    """Files of a pattern by day."""
    if "{date}" not in pattern:
        raise InputError(f"{where}: key 'path' {pattern!r} must hold {{date}}, which date_format describes")
    wild, expression = _date_patterns(date_format, where)
    root, pieces = _rooted(pattern, folder)
    search = "".join({"{date}": wild, "*": "*"}.get(piece, glob.escape(piece)) for piece in pieces)
    first = pieces.index("{date}")
    parts = [{"{date}": "(?P=date)", "*": "[^/]*"}.get(piece, re.escape(piece)) for piece in pieces]
    matcher = re.compile("".join([*parts[:first], f"(?P<date>{expression})", *parts[first + 1 :]]))
    files: dict[date, Path] = {}
    for found in sorted(root.glob(search)):
        match = matcher.fullmatch(found.relative_to(root).as_posix())
        if match is None:
            continue
        day = _day(match["date"], date_format, f"{where}: {found.name}")
        if day in files:
            raise InputError(f"{where}: key 'path' finds two files for {day}: {files[day].name} and {found.name}")
        files[day] = found
    return files


def _rooted(pattern: str, folder: Path) -> tuple[Path, list[str]]:
    """Where to search, and the pattern below it cut at ``{date}`` and ``*``."""
    path = Path(pattern)
    root = Path(path.anchor) if path.is_absolute() else folder
    below = path.relative_to(root) if path.is_absolute() else path
    return root, re.split(r"(\{date\}|\*)", below.as_posix())


def _day(text: str, date_format: str, where: str) -> date:
    try:
        return datetime.strptime(text, date_format).date()
    except ValueError:
        raise InputError(f"{where}: {text!r} is not a day in key 'date_format' {date_format!r}") from None


def _read(path: Path, bands: tuple[str, ...]) -> tuple[npt.NDArray[Any], GeoBox, float | None]:
    values, grid, nodata = read_raster(path)
    if len(values) != len(bands):
        raise InputError(f"{path}: holds {len(values)} bands, but key 'bands' names {len(bands)}: {', '.join(bands)}")
    return values, grid, nodata


def refuse_other_grid(path: Path, grid: GeoBox, first: GeoBox) -> None:
    """An :class:`InputError` that names both grids, unless they are the same to a thousandth of a pixel."""
    close = grid.affine.almost_equals(first.affine, precision=1e-3 * abs(first.affine.a))
    if grid.shape != first.shape or grid.crs != first.crs or not close:
        raise InputError(f"{path}: its grid is {describe(grid)}, that of the first raster {describe(first)}")
