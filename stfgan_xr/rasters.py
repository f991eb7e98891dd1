"""Rasters: the one file that opens images. Reading of remote and local assets, small rasters of one's own, COG out."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Interleaving
from rasterio.enums import Resampling as Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from stfgan_xr.errors import InputError, SourceError
from stfgan_xr.hdf5 import Field, open_field
from stfgan_xr.means import area_means
from stfgan_xr.remote import (
    NO_LOGIN,
    SLOW_BYTES,
    SLOW_SECONDS,
    TIMEOUTS,
    Login,
    Place,
    RangeFile,
    is_remote,
    look,
    named,
    netrc_file,
    redact,
    within,
)

DRIVER, ENVI = "GTiff", "ENVI"
LARGEST_BLOCK = 64 * 2**20
"""Decoded bytes of one internal block: beyond this a small file could claim any amount of memory."""
LARGEST_RASTER = 8 * 2**30
"""Decoded bytes of a raster that is read whole."""
LARGEST_SIDE = 1_000_000
SMALL = 512
ATTEMPTS = 8
"""How often a remote image is opened, on top of GDAL's own retries of single requests."""
PATIENCE = 300.0
"""Seconds after which no further attempt is made."""
PAUSE, LONGEST_PAUSE = 1.0, 8.0
"""Seconds before the second attempt, doubled for each further one up to the longest."""
RENEWALS = 3
"""How often a refused read asks for another token."""
MOST_KNOWN, LOOKS_AT_ONCE = 10_000, 16
TOKEN_SECONDS = 120.0
"""After which a token service is given up; planetary-computer has no timeout of its own."""
TOLERANCE = 1e-6
"""Source pixels that GDAL's warp may be off. At its default of 0.125 MODIS is off by up to 22 counts and depends on the
tile; at 1e-3 rough texture is still off by 3.5 and 0.6 % of pixels depend on the tile by 1; at 1e-6 none does, at 0.4 s
a megapixel instead of 0.1."""
CUT_STEP, CUT_MARGIN = 16, 4
"""Pixels of the grid between the points that say where a tile is needed, and source pixels added around."""
TORN = 100 * CUT_STEP
"""Source pixels between two such points that lie on both sides of the edge of the Earth."""
_LOCAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
_REMOTE = (
    _LOCAL
    | TIMEOUTS
    | {
        "GDAL_HTTP_LOW_SPEED_TIME": f"{SLOW_SECONDS:.0f}",
        "GDAL_HTTP_LOW_SPEED_LIMIT": f"{SLOW_BYTES:.0f}",
        "GDAL_HTTP_MAX_RETRY": "2",
        "GDAL_HTTP_RETRY_DELAY": "0.5",
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    }
)
# With more threads GDAL 3.10 returns zeros without an error when a range request of an uncompressed remote image fails.
_SAFE = {"GDAL_NUM_THREADS": "1"}
_FAILURES = (RasterioError, CRSError, CPLE_BaseError, OSError)
# Not there, or not for us: asking again changes nothing. 403 may be an expired token, 412 another version; 408 and 429
# pass.
_FINAL = re.compile(r"response code: 4(?!03|08|12|29)\d\d|does not exist in the file system")
_FORBIDDEN = re.compile(r"response code: 403")
_ABSENT = re.compile(r"response code: (404|410)|NoSuchKey|key does not exist|does not exist in the file system")
_CHANGED = re.compile(r"response.code[:=] ?412")
# Of S3: what a user can do something about.
_DENIED = re.compile(
    r"Access ?Denied|credentials|AWS_SECRET_ACCESS_KEY|InvalidAccessKeyId|SignatureDoesNotMatch|code: 403", re.I
)


class _Redaction(logging.Filter):
    """Keeps signed addresses out of what GDAL and urllib3 have to say."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


_heard = threading.local()
# GDAL opens an image whose projection or position it could not fetch, as if none were stated, and only warns.
_LOST = re.compile(r"tag ignored|IO error")
# GDAL follows redirects, which nothing can turn off, to wherever they lead; where they lead was found out before.
_HEADERS = "CURL_INFO_HEADER_IN"
_LED = re.compile(rf"{_HEADERS}: HTTP/\S+ 30[12378]")


def _listen(logger: logging.Logger) -> None:
    """Note what GDAL could not read or read elsewhere, whatever the user wants to see of it: it is only logged."""
    enabled, handle = logger.isEnabledFor, logger.handle
    tells_headers = logger.name in ("rasterio._env", "rasterio._err")

    def is_heard(level: int) -> bool:
        # What else is told below a warning, such as each setting of GDAL, is much for small images.
        least = logging.DEBUG if tells_headers and getattr(_heard, "headers", False) else logging.WARNING
        return level >= least or enabled(level)

    def note(record: logging.LogRecord) -> None:
        text = record.getMessage()
        if _LOST.search(text):
            getattr(_heard, "lost", []).append(text)
        elif _LED.search(text):
            getattr(_heard, "lost", []).append("it redirects while it is read")
        asked = _HEADERS not in text or "CPL_DEBUG" in os.environ
        if asked and enabled(record.levelno):
            handle(record)

    vars(logger).update(isEnabledFor=is_heard, handle=note)


for _name in ("rasterio", *(f"rasterio.{p}" for p in ("_base", "_env", "_err", "_io", "_warp", "env", "session"))):
    logging.getLogger(_name).addFilter(_Redaction())
    _listen(logging.getLogger(_name))
for _name in ("urllib3.connectionpool", "urllib3.util.retry"):
    logging.getLogger(_name).addFilter(_Redaction())


def _chain(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error) or type(error).__name__
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """What went wrong, in one line without queries; GDAL's own words where rasterio only points at them."""
    lines = [text.splitlines()[0] for text in _chain(error) if "See previous exception" not in text]
    return redact(lines[0] if lines else str(error))


_KNOWN: dict[str, Place] = {}
"""Where each address that was looked at in this process leads."""
NOWHERE = Place()


class _Expired(OSError):
    """A signed address that redirects led to is refused by now: it is asked for anew."""


@contextmanager
def _environment(url: str, again: bool, place: Place = NOWHERE) -> Iterator[None]:
    """GDAL's settings for an address; what the user set in the environment stays, unless it does harm."""
    chosen = {name: value for name, value in (_REMOTE if is_remote(url) else _LOCAL).items() if name not in os.environ}
    if is_remote(url):
        chosen |= _SAFE
    if url.startswith("http"):
        chosen |= _credentials(url, place) | _headers_heard()
    if again:
        # GDAL remembers failures: without this a second attempt sends no request.
        chosen["CPL_VSIL_CURL_NON_CACHED"] = "/vsicurl/:/vsis3/"
        # Ranges that GDAL asks for side by side are not retried one by one.
        chosen["GDAL_HTTP_MULTIRANGE"] = "SERIAL"
    _heard.headers = url.startswith("http")
    try:
        with rasterio.Env(**chosen):
            yield
    finally:
        _heard.headers = False


def _credentials(url: str, place: Place) -> dict[str, str]:
    """What GDAL sends beside the address: what is meant for another host than the one it asks, it does not."""
    # Parts of two versions must not become one image.
    match = f"If-Match: {place.tag}\r\n" if place.tag else ""
    moved = bool(place.address) and urlsplit(place.address).netloc != urlsplit(url).netloc
    chosen = {"GDAL_HTTP_HEADERS": match} if moved or "GDAL_HTTP_HEADERS" not in os.environ else {}
    if place.address:
        chosen["CPL_VSIL_CURL_USE_HEAD"] = "NO"  # a signature holds for GET only
    if "GDAL_HTTP_NETRC" not in os.environ:
        # The default entry of ~/.netrc goes to any host, and signed addresses are refused with it.
        file = netrc_file() if named(urlsplit(place.address or url).hostname or "") else None
        chosen |= {"GDAL_HTTP_NETRC": "YES", "GDAL_HTTP_NETRC_FILE": file} if file else {"GDAL_HTTP_NETRC": "NO"}
    return chosen


def _headers_heard() -> dict[str, str]:
    """Have GDAL log the headers that come, beside what the user wants it to."""
    wanted = os.environ.get("CPL_DEBUG")
    everything = wanted is not None and wanted.upper() in ("", "ON", "YES", "TRUE", "1")
    chosen = {} if everything else {"CPL_DEBUG": ",".join(filter(None, (wanted, _HEADERS)))}
    return chosen | {"CPL_CURL_VERBOSE": "YES"}


def _block_bytes(source: Any) -> int:
    together = source.count if source.interleaving == Interleaving.pixel else 1
    blocks = zip(source.block_shapes, source.dtypes, strict=True)
    return max(int(height * width * np.dtype(dtype).itemsize * together) for (height, width), dtype in blocks)


def _check_size(source: Any, name: str) -> None:
    """Refuse what declares absurd sizes, before any of it is decoded."""
    if max(source.shape) > LARGEST_SIDE:
        raise SourceError(f"{name}: {source.width} x {source.height} pixels; larger than any image of a sensor")
    if (size := _block_bytes(source)) > LARGEST_BLOCK:
        raise SourceError(
            f"{name}: its internal blocks hold {size >> 20} MiB, over {LARGEST_BLOCK >> 20} MiB; "
            "not a cloud-optimised image, convert it (gdal_translate -of COG)"
        )


@lru_cache(maxsize=64)
def _crs(text: str) -> CRS:
    return CRS.from_user_input(text)


@lru_cache(maxsize=64)
def _transformer(epsg: int, wkt: str) -> Transformer:
    # Each read of a small area needs one, and they are costly to make.
    return Transformer.from_crs(epsg, wkt, always_xy=True)


@lru_cache(maxsize=256)
def same_crs(wkt: str, epsg: int) -> bool:
    """Whether a CRS, as WKT or ``EPSG:n``, is that of a code."""
    return bool(_crs(wkt) == _crs(f"EPSG:{epsg}"))


def whole_shift(source: Affine, target: Affine) -> tuple[int, int] | None:
    """Rows and columns from a source grid to a target grid that differ by whole pixels, or None."""
    sizes = [(source.a, target.a), (source.e, target.e)]
    if source.b or source.d or any(abs(one - other) > 1e-9 * abs(other) for one, other in sizes):
        return None
    rows, columns = (target.f - source.f) / source.e, (target.c - source.c) / source.a
    near = round(rows), round(columns)
    return near if abs(rows - near[0]) < 1e-3 and abs(columns - near[1]) < 1e-3 else None


def _under(
    source: Any, rows: npt.NDArray[Any], columns: npt.NDArray[Any], margin: int
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The window of a source that holds some positions and a margin around them; None if there is none."""
    placed = np.isfinite(rows) & np.isfinite(columns)
    if not placed.any():
        return None
    (top, bottom), (left, right) = (
        (max(math.floor(at[placed].min()) - margin, 0), min(math.ceil(at[placed].max()) + margin, side))
        for at, side in ((rows, source.height), (columns, source.width))
    )
    return ((top, bottom), (left, right)) if top < bottom and left < right else None


@dataclass(frozen=True)
class Cut:
    """A piece of an image: values ``(y, x)``, affine and the WKT of its CRS."""

    values: npt.NDArray[Any]
    affine: Affine
    crs: str

    def shift(self, other: Cut) -> tuple[int, int] | None:
        """Rows and columns from here to another piece of the same lattice; None if it is of another."""
        return whole_shift(self.affine, other.affine) if self.crs == other.crs else None


def _neighbours(cuts: Sequence[Cut]) -> list[list[Cut]]:
    """Pieces of one lattice side by side, from the left; what lies across the edge of the Earth is no neighbour."""
    groups: list[list[Cut]] = []
    for cut in sorted(cuts, key=lambda cut: cut.affine.c):
        for group in groups:
            shift = group[0].shift(cut)
            if shift and shift[1] <= max((group[0].shift(c) or (0, 0))[1] + c.values.shape[1] for c in group):
                group.append(cut)
                break
        else:
            groups.append([cut])
    return groups


def _joined(group: Sequence[Cut], fill: float) -> Cut:
    """Neighbouring pieces as one."""
    shifts = [group[0].shift(cut) or (0, 0) for cut in group]
    top, left = (min(shift[axis] for shift in shifts) for axis in (0, 1))
    ends = (max(s[axis] + c.values.shape[axis] for s, c in zip(shifts, group, strict=True)) for axis in (0, 1))
    bottom, right = ends
    values = np.full((bottom - top, right - left), fill, group[0].values.dtype)
    for (row, column), cut in zip(shifts, group, strict=True):
        height, width = cut.values.shape
        part = values[row - top : row - top + height, column - left : column - left + width]
        np.copyto(part, cut.values, where=part == fill)
    return Cut(values, group[0].affine * Affine.translation(left, top), group[0].crs)


class AssetReader:
    """One asset on a target grid: the reader protocol of stackstac.

    An asset is a GeoTIFF, or one field of an HDF-EOS5 file: ``address#field``.

    A source on the target's own lattice is read as it is; others are warped, by :data:`TOLERANCE` and with a kernel of
    fixed scale, which GDAL would estimate anew for each window, or averaged by area. Each read opens the asset anew, so
    that readers can be shared by threads and sent to other processes.

    Parameters
    ----------
    url
        Unsigned address or path.
    spec
        Target grid (:class:`stackstac.raster_spec.RasterSpec`).
    resampling
        For sources on another lattice.
    dtype, fill_value
        Type of the asset, and its value that means no data; outside of the asset everything is fill.
    coding
        Scale and offset that a field of HDF-EOS5 must state, if it states any.
    allowed
        Whether redirects may lead to an address; by default they stay on their host.
    login
        How its servers know their users.
    """

    def __init__(
        self, *, url: str, spec: Any, resampling: Resampling, dtype: np.dtype[Any], fill_value: float,
        coding: tuple[float, float] | None = None, allowed: Callable[[str], bool] | None = None,
        login: Login = NO_LOGIN, **_: Any,
    ) -> None:  # fmt: skip
        self.url, mark, field = url.partition("#HDFEOS/")
        self.field = mark[1:] + field
        self.spec, self.resampling, self.coding = spec, resampling, coding
        self.dtype, self.fill_value = np.dtype(dtype), fill_value
        self.allowed, self.login = allowed or self._same_host, login

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def address(self) -> str:
        """Where the asset is opened."""
        return self.url

    def renew(self) -> bool:
        """After a refusal: whether another attempt with :meth:`address` makes sense."""
        return False

    def close(self) -> None:
        """Nothing stays open."""

    def read(self, window: RasterWindow, **_: Any) -> npt.NDArray[Any]:
        """The raw values of a window of the target grid, ``(rows, columns)``.

        Raises
        ------
        SourceError
            If the asset cannot be opened or read, is no single-band GeoTIFF or field of the expected type, or claims
            blocks of more than 64 MiB.
        """
        found: npt.NDArray[Any] = self._ask(window, self._on_grid)
        return found

    def cut(self, window: RasterWindow) -> Cut | None:
        """The asset's own pixels under a window of the target grid and some around; None if it lies elsewhere."""
        found: Cut | None = self._ask(window, self._cut)
        return found

    def _ask(self, window: RasterWindow, action: Callable[[Any, RasterWindow], Any]) -> Any:
        top, left = int(window.row_off), int(window.col_off)
        rows, columns = f"{top}-{top + int(window.height)}", f"{left}-{left + int(window.width)}"
        return self._insist(
            lambda again: self._attempt(window, again, action), f" (rows {rows}, columns {columns} of the grid)"
        )

    def is_there(self) -> bool:
        """Whether there is something at its address, which is looked at but not opened.

        Raises
        ------
        SourceError
            If that cannot be found out.
        """
        return bool(self._insist(self._find, ""))

    def _insist(self, attempt: Callable[[bool], Any], where: str) -> Any:
        """The result of an attempt, which is told whether it is made again; what may pass is waited for."""
        until, refused = time.monotonic() + PATIENCE, 0
        for count in range(ATTEMPTS):
            try:
                return attempt(count > 0)
            except _FAILURES as error:
                _KNOWN.pop(self.url, None)
                reason, said = _reason(error), " ".join(_chain(error))
                over = count + 1 == ATTEMPTS or time.monotonic() > until
                if over or not is_remote(self.url) or _FINAL.search(said):
                    break
                if _FORBIDDEN.search(said):
                    refused += 1
                    if refused > RENEWALS or not (isinstance(error, _Expired) or self.renew()):
                        break
                pause = min(PAUSE * 2**count, LONGEST_PAUSE) * random.uniform(0.5, 1.5)
                time.sleep(max(pause, getattr(error, "wait", 0.0)))
        if _CHANGED.search(said):
            reason = "it changed while it was read"
        if _ABSENT.search(said):
            reason = f"it is not there ({reason})"
        elif self.url.startswith("s3:") and _DENIED.search(said):
            reason += "; its bucket is requester-pays: set AWS credentials and AWS_REQUEST_PAYER=requester"
        raise SourceError(f"{redact(self.url)} cannot be read: {reason}{where}")

    def _find(self, again: bool) -> bool:
        if not is_remote(self.url):
            return Path(self.url).is_file()
        try:
            if self.url.startswith("s3:"):
                with _environment(self.url, again), rasterio.open(self.url, driver=DRIVER, sharing=False):
                    return True
            self._look()
        except _FAILURES as error:
            if _ABSENT.search(" ".join(_chain(error))):
                return False
            raise
        return True

    def _look(self) -> Place:
        """Find out where it is."""
        if len(_KNOWN) >= MOST_KNOWN:
            _KNOWN.clear()
        found = _KNOWN[self.url] = look(self.address(), self.allowed, self.login)
        return found

    def _attempt(self, window: RasterWindow, again: bool, action: Callable[[Any, RasterWindow], Any]) -> Any:
        place = (_KNOWN.get(self.url) or self._look()) if self.url.startswith("http") else NOWHERE
        address = place.address or self.address()
        try:
            if self.field:
                return self._open_field(address, place.tag, window, action)
            with _environment(self.url, again, place):
                return self._open(address, window, action)
        except _FAILURES as error:
            if place.address and _FORBIDDEN.search(" ".join(_chain(error))):
                raise _Expired(str(error)) from error
            raise

    def _same_host(self, address: str) -> bool:
        here, there = urlsplit(self.url), urlsplit(address)
        return (here.scheme, here.netloc) == (there.scheme, there.netloc)

    def _open(self, address: str, window: RasterWindow, action: Callable[[Any, RasterWindow], Any]) -> Any:
        lost: list[str] = []
        _heard.lost = lost
        with rasterio.open(address, driver=DRIVER, sharing=False) as source:
            name = redact(self.url)
            _ = source.crs, source.transform  # fetched when they are asked for
            if lost:
                raise OSError(lost[0])
            _check_size(source, name)
            if source.count != 1:
                raise SourceError(f"{name} holds {source.count} bands, expected one")
            if np.dtype(source.dtypes[0]) != self.dtype:
                raise SourceError(f"{name} holds {source.dtypes[0]}, expected {self.dtype}")
            if source.crs is None or source.transform.is_identity:
                raise SourceError(f"{name} has no coordinate reference system or no position in it")
            found = action(source, window)
            if lost:
                raise OSError(lost[0])
            return found

    def _open_field(
        self, address: str, tag: str, window: RasterWindow, action: Callable[[Any, RasterWindow], Any]
    ) -> Any:
        """The same for a field of an HDF-EOS5 file, of which a piece is cut out."""
        remote, name = self.url.startswith("http"), redact(self.url)
        if is_remote(self.url) and not remote:
            raise SourceError(f"{name}: HDF5 is read over https or from disk only")
        with (
            RangeFile(address, tag, self.url) if remote else Path(address).open("rb") as file,
            open_field(file, self.field, name) as field,
        ):
            self._check_field(field, name)
            cut = self._cut(field, window)
        if action == self._cut:
            return cut
        if cut is None:
            return np.full((int(window.height), int(window.width)), self.fill_value, self.dtype)
        with _in_memory(cut) as source:
            return action(source, window)

    def _check_field(self, field: Field, name: str) -> None:
        if field.dtype != self.dtype:
            raise SourceError(f"{name} holds {field.dtype}, expected {self.dtype}")
        expected = {"_FillValue": float(self.fill_value)}
        if self.coding:
            expected |= {"scale_factor": self.coding[0], "add_offset": self.coding[1]}
        for key, ours in expected.items():
            stated = field.stated(key)
            if stated is not None and not abs(stated - ours) <= 1e-6 * max(abs(ours), 1e-3):  # stated as float32
                raise SourceError(f"{name}: {key} of {self.field} is {stated:g} there, expected {ours:g}")

    def _on_grid(self, source: Any, window: RasterWindow) -> npt.NDArray[Any]:
        same = same_crs(source.crs.to_wkt(), self.spec.epsg)
        shift = whole_shift(source.transform, self.spec.transform) if same else None
        if shift is not None:
            return self._copy(source, window, shift)
        return self._average(source, window) if self.resampling == Resampling.average else self._warp(source, window)

    def _cut(self, source: Any, window: RasterWindow) -> Cut | None:
        rows, columns = self._corners(source, window, CUT_STEP)
        if np.abs(np.diff(columns, axis=1)).max(initial=0) > TORN:
            columns = np.linspace(0, source.width, columns.size).reshape(columns.shape)
        under = _under(source, rows, columns, CUT_MARGIN)
        if under is None:
            return None
        (top, _), (left, _) = under
        affine = source.transform * Affine.translation(left, top)
        return Cut(source.read(1, window=under), affine, source.crs.to_wkt())

    def _copy(self, source: Any, window: RasterWindow, shift: tuple[int, int]) -> npt.NDArray[Any]:
        top, left = int(window.row_off) + shift[0], int(window.col_off) + shift[1]
        height, width = int(window.height), int(window.width)
        out = np.full((height, width), self.fill_value, self.dtype)
        rows, columns = (max(top, 0), min(top + height, source.height)), (max(left, 0), min(left + width, source.width))
        if rows[0] < rows[1] and columns[0] < columns[1]:
            part = source.read(1, window=(rows, columns))
            out[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left] = part
        return out

    def _corners(self, source: Any, window: RasterWindow, step: int = 1) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Rows and columns of the source at the corners of a window's pixels, or of every few."""
        here, there = self.spec.transform, source.transform
        right, down = (np.append(np.arange(0, int(n), step), int(n)) for n in (window.width, window.height))
        x, y = np.meshgrid(
            here.c + here.a * (int(window.col_off) + right), here.f + here.e * (int(window.row_off) + down)
        )
        if not same_crs(source.crs.to_wkt(), self.spec.epsg):
            x, y = _transformer(self.spec.epsg, source.crs.to_wkt()).transform(x, y)
        back = ~there
        return back.d * x + back.e * y + back.f, back.a * x + back.b * y + back.c

    def _average(self, source: Any, window: RasterWindow) -> npt.NDArray[Any]:
        rows, columns = self._corners(source, window)
        out = np.full((int(window.height), int(window.width)), self.fill_value, self.dtype)
        under = _under(source, rows, columns, 0)
        if under is not None:
            values = source.read(1, window=under)
            means = area_means(values, values != self.fill_value, rows - under[0][0], columns - under[1][0])
            known = np.isfinite(means)
            # Halves go up, whatever the last bits of a sum are, which depend on the window.
            out[known] = np.floor(means[known] + 0.5 + 1e-6) if self.dtype.kind in "iu" else means[known]
        return out

    def _warp(self, source: Any, window: RasterWindow) -> npt.NDArray[Any]:
        height, width = self.spec.shape
        with WarpedVRT(
            source,
            crs=_crs(f"EPSG:{self.spec.epsg}"),
            transform=self.spec.transform,
            width=width,
            height=height,
            resampling=self.resampling,
            src_nodata=self.fill_value,
            nodata=self.fill_value,
            tolerance=TOLERANCE,
            XSCALE=1,
            YSCALE=1,
            # By default 21 points a side say which part of the source is needed; across 180 degrees they miss some.
            SAMPLE_STEPS="ALL",
        ) as warped:
            found: npt.NDArray[Any] = warped.read(1, window=window)
            return found


class PlanetaryComputerReader(AssetReader):
    """Assets of the Planetary Computer: signed just before opening, so that no token outlives its hour."""

    def address(self) -> str:
        """The signed address."""
        import planetary_computer

        try:
            return str(within(TOKEN_SECONDS, planetary_computer.sign_url, self.url))
        except ValueError as error:  # an answer that holds no token; failed requests are an OSError already
            raise OSError(f"no token for it ({type(error).__name__})") from None

    def renew(self) -> bool:
        """Drop all tokens: the next attempt asks for a new one."""
        from planetary_computer.sas import TOKEN_CACHE

        held = bool(TOKEN_CACHE)
        TOKEN_CACHE.clear()
        return held


class TilesReader(AssetReader):
    """An image that comes in tiles, which are joined before they are resampled: their borders leave no seam.

    Parameters
    ----------
    url
        Addresses of the tiles, one a line.
    part
        Reader of a single tile.
    options
        Of :class:`AssetReader`.
    """

    def __init__(self, *, url: str, part: Callable[..., AssetReader], **options: Any) -> None:
        super().__init__(url=url, **options)
        self.parts = [part(url=one, **options) for one in url.split("\n")]

    def read(self, window: RasterWindow, **_: Any) -> npt.NDArray[Any]:
        """The raw values of a window of the target grid, ``(rows, columns)``; errors are those of a tile."""
        found = np.full((int(window.height), int(window.width)), self.fill_value, self.dtype)
        cuts = [cut for part in self.parts if (cut := part.cut(window)) is not None]
        for group in _neighbours(cuts):
            joined = _joined(group, self.fill_value)
            with _in_memory(joined) as source:
                np.copyto(found, self._on_grid(source, window), where=found == self.fill_value)
        return found


@contextmanager
def _in_memory(cut: Cut) -> Iterator[Any]:
    height, width = cut.values.shape
    profile = {"driver": DRIVER, "count": 1, "height": height, "width": width, "dtype": cut.values.dtype}
    with MemoryFile() as memory:
        with memory.open(crs=_crs(cut.crs), transform=cut.affine, **profile) as target:
            target.write(cut.values, 1)
        with memory.open(driver=DRIVER) as source:
            yield source


READERS: Mapping[str, type[AssetReader]] = {"none": AssetReader, "planetary-computer": PlanetaryComputerReader}
"""The reader of each signer of a catalog."""


def are_there(urls: Sequence[str], reader: Callable[..., AssetReader]) -> list[bool]:
    """Whether there is something at each address, as a kind of reader finds it; a few are asked at a time.

    Raises
    ------
    SourceError
        If that cannot be found out of one.
    """
    plain = {"spec": None, "resampling": Resampling.nearest, "dtype": "u1", "fill_value": 0}
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        try:
            return list(pool.map(lambda url: reader(url=url, **plain).is_there(), urls))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _block(side: int) -> int:
    """Side of an internal tile: a multiple of 16, no larger than a small image needs."""
    return min(256, -(-side // 16) * 16)


def write_cog(path: Path, array: npt.NDArray[Any], grid: GeoBox, nodata: float | None = None) -> None:
    """Write ``(y, x)`` or ``(band, y, x)`` as a GeoTIFF: small images tiled and compressed, larger ones as COG.

    Parameters
    ----------
    path
        File to write.
    array
        Values.
    grid
        Their grid.
    nodata
        Value stated as no data, if any.
    """
    bands = array if array.ndim == 3 else array[None]
    count, height, width = bands.shape
    profile: dict[str, Any] = {
        "driver": DRIVER, "count": count, "height": height, "width": width, "dtype": bands.dtype,
        "crs": _crs(grid.crs.to_wkt()) if grid.crs else None, "transform": grid.affine, "nodata": nodata,
        "compress": "deflate", "zlevel": 1, "tiled": True, "blockxsize": _block(width), "blockysize": _block(height),
    }  # fmt: skip
    if max(height, width) > SMALL:  # a smaller one needs no overviews, and is valid as it is
        profile = {k: v for k, v in profile.items() if k not in ("zlevel", "tiled", "blockxsize", "blockysize")}
        profile |= {"driver": "COG", "blocksize": 512}
    with rasterio.open(path, "w", **profile) as target:
        target.write(bands)


def read_raster(path: Path) -> tuple[npt.NDArray[Any], GeoBox, float | None]:
    """A whole GeoTIFF: values ``(band, y, x)``, grid and stated nodata.

    Raises
    ------
    InputError
        If the file is missing, no raster, without a georeference or too large.
    """
    values, grid, nodata = read_image(path)
    if grid is None:
        raise InputError(f"{path}: has no coordinate reference system or no position in it")
    return values, grid, nodata


def read_image(path: Path, driver: str = DRIVER) -> tuple[npt.NDArray[Any], GeoBox | None, float | None]:
    """A whole raster that may lie nowhere: values ``(band, y, x)``, grid if it states one, and stated nodata.

    Parameters
    ----------
    path
        The file; of an ENVI image its numbers, with the header beside it as ``.hdr`` (instead of the extension or after
        it, in any case).
    driver
        ``GTiff`` or ``ENVI`` (https://www.nv5geospatialsoftware.com/docs/enviheaderfiles.html).

    Raises
    ------
    InputError
        If the file is missing, no raster of that kind or too large, or an ENVI header does not fit the file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    beside = {"GDAL_DISABLE_READDIR_ON_OPEN": "FALSE", "GDAL_PAM_ENABLED": "NO"} if driver == ENVI else {}
    try:
        with _environment(str(path), False), rasterio.Env(**beside), _open_anywhere(path, driver) as source:
            _check_size(source, str(path))
            size = source.width * source.height * sum(np.dtype(dtype).itemsize for dtype in source.dtypes)
            if size > LARGEST_RASTER:
                raise InputError(
                    f"{path}: holds {size / 2**30:.0f} GiB, over {LARGEST_RASTER >> 30}; cut it to your area"
                )
            if driver == ENVI:
                _check_header(source.tags(ns="ENVI"), size, path)
            placed = source.crs is not None and not source.transform.is_identity
            grid = GeoBox(source.shape, source.transform, source.crs.to_wkt()) if placed else None
            return source.read(), grid, source.nodata
    except _FAILURES as error:
        kind = "ENVI image, of which the header (.hdr) lies beside" if driver == ENVI else "GeoTIFF"
        raise InputError(f"{path}: not a readable {kind} ({_reason(error)})") from None
    except SourceError as error:
        raise InputError(str(error)) from None


def _open_anywhere(path: Path, driver: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, driver=driver)


def _check_header(header: Mapping[str, str], size: int, path: Path) -> None:
    """Refuse what GDAL reads all the same: zeros for what a short file lacks, and unknown interleaves as BSQ."""
    if header.get("interleave", "").lower() not in ("bil", "bsq", "bip"):
        raise InputError(f"{path}: interleave in its header is {header.get('interleave')!r}, not bil, bsq or bip")
    offset = header.get("header_offset", "0")
    if not offset.isdecimal() or int(offset) + size > path.stat().st_size:
        raise InputError(
            f"{path}: holds {path.stat().st_size} bytes, its header promises {size} from byte {offset} on; copy it anew"
        )
