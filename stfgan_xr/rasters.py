"""Rasters: the one file that opens images. Reading of remote and local assets, small rasters of one's own, COG out."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioError, RasterioIOError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from stfgan_xr.errors import InputError, SourceError

log = logging.getLogger(__name__)

DRIVER = "GTiff"
LARGEST_BLOCK = 64 * 2**20
"""Decoded bytes of one internal block: beyond this a small file could claim any amount of memory."""
LARGEST_SIDE = 1_000_000
SMALL = 512
_REMOTE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif,.TIF,.tiff",
}
# GDAL then returns zeros without an error when a range request of an uncompressed remote image fails.
_HARMFUL = ("GDAL_NUM_THREADS",)


def redact(href: str) -> str:
    """An address without its query, which may hold a token.

    >>> redact("https://a.example/b.tif?sig=secret")
    'https://a.example/b.tif'
    """
    return href.split("?", 1)[0]


def _one_line(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r"\?[^\s'\"]*", "", text)


@contextmanager
def _environment(href: str) -> Iterator[None]:
    remote = urlsplit(href).scheme in ("http", "https", "s3")
    for name in _HARMFUL if remote else ():
        os.environ.pop(name, None)
    with rasterio.Env(**(_REMOTE if remote else {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"})):
        yield


def _check_source(source: Any, href: str) -> None:
    if max(source.shape) > LARGEST_SIDE:
        raise SourceError(f"{redact(href)}: {source.width} x {source.height} pixels; larger than any image of a sensor")
    for (height, width), dtype in zip(source.block_shapes, source.dtypes, strict=True):
        if height * width * np.dtype(dtype).itemsize > LARGEST_BLOCK:
            raise SourceError(
                f"{redact(href)}: its blocks are {width} x {height} pixels, over {LARGEST_BLOCK >> 20} MiB; "
                "not a cloud-optimised image"
            )


@lru_cache(maxsize=64)
def _crs(text: str) -> CRS:
    return CRS.from_user_input(text)


def _whole_shift(source: Affine, target: Affine) -> tuple[int, int] | None:
    """Rows and columns from a source grid to a target grid that differ by whole pixels, or None."""
    if not np.allclose([source.a, source.b, source.d, source.e], [target.a, target.b, target.d, target.e], rtol=1e-9, atol=1e-9):
        return None
    columns, rows = (target.c - source.c) / source.a, (target.f - source.f) / source.e
    near = round(rows), round(columns)
    return near if abs(rows - near[0]) < 1e-3 and abs(columns - near[1]) < 1e-3 else None


class AssetReader:
    """One asset on a target grid: stackstac's reader protocol.

    A source on the target's own lattice is read as it is; others are warped: QA nearest, MODIS bilinear, Landsat of
    another zone cubic. GDAL's default warp is up to an eighth of a pixel off and depends on the window; with
    ``tolerance`` and ``XSCALE, YSCALE`` it does neither.

    Raises
    ------
    SourceError
        If the asset cannot be opened or read, is no GeoTIFF, or claims blocks of more than 64 MiB.
    """

    def __init__(
        self,
        *,
        url: str,
        spec: Any,
        resampling: Resampling,
        dtype: np.dtype[Any],
        fill_value: float,
        **_: Any,
    ) -> None:
        self.url, self.spec, self.resampling = url, spec, resampling
        self.dtype, self.fill_value = np.dtype(dtype), fill_value
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    @property
    def scale_offset(self) -> tuple[int, int]:
        """Values stay raw."""
        return 1, 0

    def address(self) -> str:
        """Where the asset is opened."""
        return self.url

    def read(self, window: RasterWindow, **_: Any) -> npt.NDArray[Any]:
        """The raw values of a window of the target grid, ``(rows, columns)``."""
        try:
            with _environment(self.url):
                return self._read(window)
        except (RasterioError, CRSError, OSError) as error:
            raise SourceError(f"{redact(self.url)} cannot be read: {_one_line(error)}") from None

    def _read(self, window: RasterWindow) -> npt.NDArray[Any]:
        with rasterio.open(self.address(), driver=DRIVER, sharing=False) as source:
            _check_source(source, self.url)
            if np.dtype(source.dtypes[0]) != self.dtype:
                raise SourceError(f"{redact(self.url)} holds {source.dtypes[0]}, expected {self.dtype}")
            shift = _whole_shift(source.transform, self.spec.transform) if source.crs == self.spec.epsg else None
            return self._copy(source, window, shift) if shift is not None else self._warp(source, window)

    def _copy(self, source: Any, window: RasterWindow, shift: tuple[int, int]) -> npt.NDArray[Any]:
        top, left = int(window.row_off) + shift[0], int(window.col_off) + shift[1]
        height, width = int(window.height), int(window.width)
        out = np.full((height, width), self.fill_value, self.dtype)
        rows, columns = (max(top, 0), min(top + height, source.height)), (max(left, 0), min(left + width, source.width))
        if rows[0] < rows[1] and columns[0] < columns[1]:
            part = source.read(1, window=((rows[0], rows[1]), (columns[0], columns[1])))
            out[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left] = part
        return out

    def _warp(self, source: Any, window: RasterWindow) -> npt.NDArray[Any]:
        height, width = self.spec.shape
        nearest = self.resampling == Resampling.nearest
        with WarpedVRT(
            source,
            crs=_crs(f"EPSG:{self.spec.epsg}"),
            transform=self.spec.transform,
            width=width,
            height=height,
            resampling=self.resampling,
            src_nodata=self.fill_value,
            nodata=self.fill_value,
            tolerance=1e-6 if nearest else 1e-3,
            XSCALE=1,
            YSCALE=1,
        ) as warped:
            found: npt.NDArray[Any] = warped.read(1, window=window)
            return found

    def close(self) -> None:
        """Nothing stays open."""


class PlanetaryComputerReader(AssetReader):
    """Assets of the Planetary Computer: signed just before opening, so that no token outlives its hour."""

    def address(self) -> str:
        """The signed address."""
        import planetary_computer

        return str(planetary_computer.sign_url(self.url))


READERS: Mapping[str, type[AssetReader]] = {"none": AssetReader, "planetary-computer": PlanetaryComputerReader}
"""The reader of each signer of a catalog."""


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
    """A whole raster: values ``(band, y, x)``, grid and stated nodata.

    Raises
    ------
    InputError
        If the file is missing, no raster, without a georeference or too large.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with rasterio.open(path, driver=DRIVER) as source:
            _check_source(source, str(path))
            if source.crs is None:
                raise InputError(f"{path}: has no coordinate reference system")
            grid = GeoBox(source.shape, source.transform, source.crs.to_wkt())
            return source.read(), grid, source.nodata
    except RasterioIOError as error:
        raise InputError(f"{path}: not a readable GeoTIFF ({_one_line(error)})") from None
    except SourceError as error:
        raise InputError(str(error)) from None
