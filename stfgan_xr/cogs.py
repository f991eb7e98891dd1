"""Cloud optimised GeoTIFFs of any size, written window by window: GDAL and QGIS open them without being told more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.shutil import copy
from rasterio.windows import Window as RasterWindow

from stfgan_xr.errors import ResourceError
from stfgan_xr.grid import Window

BLOCK = 512
_COLOURS = {"red": ColorInterp.red, "green": ColorInterp.green, "blue": ColorInterp.blue}


@dataclass(frozen=True)
class Content:
    """What the bands of a file are.

    Attributes
    ----------
    names
        A description of each band; ``red``, ``green`` and ``blue`` are also shown as such.
    dtype
        Of all bands.
    nodata
        The value that means nothing, if there is one.
    scale
        A value times this is the quantity; stated only if it is not 1.
    overviews
        How overviews are made, ``average`` or ``nearest``.
    """

    names: tuple[str, ...]
    dtype: str
    nodata: float | None = None
    scale: float = 1.0
    overviews: str = "average"


def _describe(target: Any, content: Content, tags: dict[str, str]) -> None:
    target.descriptions = content.names
    if content.scale != 1:
        target.scales = (content.scale,) * len(content.names)
        target.offsets = (0.0,) * len(content.names)
    if set(_COLOURS) <= set(content.names):
        target.colorinterp = tuple(_COLOURS.get(name, ColorInterp.undefined) for name in content.names)
    target.update_tags(**tags)


@contextmanager
def writing(
    path: Path, grid: GeoBox, content: Content, tags: dict[str, str] | None = None
) -> Iterator[Callable[[Window, npt.NDArray[Any]], None]]:
    """Write a file window by window; it appears at ``path`` when the context is left without an error.

    Parameters
    ----------
    path
        File to write, in a folder that is there.
    grid
        Its grid.
    content
        Its bands.
    tags
        Metadata of the file.

    Yields
    ------
    Callable
        Writes values ``(band, y, x)`` of a window of the grid.

    Raises
    ------
    ResourceError
        If it cannot be written.
    """
    plain, partial = (path.with_name(f".{path.name}.{part}.tif") for part in ("plain", "partial"))
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": len(content.names), "height": int(grid.shape[0]), "width": int(grid.shape[1]),
        "dtype": content.dtype, "crs": rasterio.crs.CRS.from_wkt(grid.crs.to_wkt()) if grid.crs else None,
        "transform": grid.affine, "nodata": content.nodata, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK,
        "compress": "deflate", "zlevel": 1, "bigtiff": "if_safer", "photometric": "minisblack",
    }  # fmt: skip
    try:
        with rasterio.open(plain, "w", **profile) as target:
            _describe(target, content, tags or {})
            yield lambda window, values: target.write(values, window=_raster_window(window))
        copy(
            plain, partial, driver="COG", compress="deflate", predictor="2", blocksize=BLOCK, bigtiff="if_safer",
            overview_resampling=content.overviews,
        )  # fmt: skip
        partial.replace(path)
    except RasterioError as error:
        raise ResourceError(f"cannot write {path}: {error}; make room or choose another --out") from error
    finally:
        for left in (plain, partial):
            left.unlink(missing_ok=True)


def _raster_window(window: Window) -> RasterWindow:
    height, width = window.shape
    return RasterWindow(window.left, window.top, width, height)
