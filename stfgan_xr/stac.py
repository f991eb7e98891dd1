"""A static STAC catalog of exported images: one item a day, with the fields of proj, raster, eo, processing and file.

STAC 1.1 with projection 2.0, raster 2.0, eo 2.0, processing 1.2 and file 2.1 (https://stac-extensions.github.io). The
fields are written as they stand there, as pystac's own classes are of earlier versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odc.geo.geobox import GeoBox

from stfgan_xr.cogs import Content
from stfgan_xr.grid import georeference

if TYPE_CHECKING:
    import pystac

_EXTENSIONS = {"projection": "v2.0.0", "raster": "v2.0.0", "eo": "v2.0.0", "processing": "v1.2.0", "file": "v2.1.0"}
EXTENSIONS = tuple(f"https://stac-extensions.github.io/{name}/{v}/schema.json" for name, v in _EXTENSIONS.items())
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
_COMMON = {
    "blue": ("blue", 0.48), "green": ("green", 0.56), "red": ("red", 0.65), "nir": ("nir08", 0.865),
    "swir1": ("swir16", 1.61), "swir2": ("swir22", 2.2),
}  # fmt: skip
"""Common name of eo and centre in micrometres (Landsat 8 OLI) of a band."""


@dataclass(frozen=True)
class Asset:
    """A file of a day: path, title, roles, bands and, of each band, the share of pixels with a value in per cent."""

    path: Path
    title: str
    roles: tuple[str, ...]
    content: Content | None = None
    valid_percent: tuple[float, ...] = ()
    media_type: str = COG_TYPE


@dataclass(frozen=True)
class Origin:
    """What made the images: the name of the catalog's collection, a title, how they were made, software by version."""

    name: str
    title: str
    lineage: str
    software: Mapping[str, str]


def multihash(path: Path) -> str:
    """SHA-256 of a file as the file extension wants it, a multihash.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     multihash(Path(file.name))[:10]
    '1220e3b0c4'
    """
    with path.open("rb") as file:
        return "1220" + hashlib.file_digest(file, "sha256").hexdigest()


def _band(name: str, content: Content, valid_percent: float) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "data_type": content.dtype}
    if content.nodata is not None:
        found["nodata"] = int(content.nodata)
    if content.scale != 1:
        found |= {"raster:scale": content.scale, "raster:offset": 0.0, "unit": "1"}
    if name in _COMMON:
        found |= {"eo:common_name": _COMMON[name][0], "eo:center_wavelength": _COMMON[name][1]}
    return found | {"statistics": {"valid_percent": round(valid_percent, 4)}}


def _asset(asset: Asset) -> pystac.Asset:
    import pystac

    extra: dict[str, Any] = {"file:size": asset.path.stat().st_size, "file:checksum": multihash(asset.path)}
    if asset.content is not None:
        pairs = zip(asset.content.names, asset.valid_percent, strict=True)
        extra["bands"] = [_band(name, asset.content, share) for name, share in pairs]
    return pystac.Asset(str(asset.path), asset.title, None, asset.media_type, list(asset.roles), extra)


def _moment(day: date, at: time = time()) -> datetime:
    return datetime.combine(day, at, UTC)


def _projection(grid: GeoBox) -> dict[str, Any]:
    stated = georeference(grid)
    code = {"proj:code": stated["proj:code"]} if "proj:code" in stated else {"proj:wkt2": stated["proj:wkt2"]}
    return code | {
        "proj:shape": stated["spatial:shape"],
        "proj:transform": stated["spatial:transform"],
        "proj:bbox": stated["spatial:bbox"],
    }


def footprint(grid: GeoBox) -> tuple[dict[str, Any], list[float]]:
    """The outline of a grid in degrees as GeoJSON, and its bounds."""
    outline = grid.extent.to_crs("EPSG:4326")
    box = outline.boundingbox
    return outline.json, [box.left, box.bottom, box.right, box.top]


def item(day: date, grid: GeoBox, assets: Mapping[str, Asset], origin: Origin) -> pystac.Item:
    """The item of a day; its assets must be written.

    Parameters
    ----------
    day
        The day.
    grid
        Grid of all assets.
    assets
        Files by key.
    origin
        What made them.
    """
    import pystac

    geometry, bounds = footprint(grid)
    start, end = _moment(day), _moment(day + timedelta(days=1)) - timedelta(seconds=1)
    properties = {
        "title": f"{origin.title}, {day}",
        "gsd": abs(float(grid.affine.a)),
        "processing:level": "L4",
        "processing:lineage": origin.lineage,
        "processing:software": dict(origin.software),
        **_projection(grid),
    }
    name = f"{origin.name}_{day}"
    made = pystac.Item(name, geometry, bounds, start, properties, start, end, list(EXTENSIONS))
    for key, asset in assets.items():
        made.add_asset(key, _asset(asset))
    return made


def save(folder: Path, items: Sequence[pystac.Item], origin: Origin) -> Path:
    """Write the catalog around items whose assets lie in ``folder``: relative links only, so that it can be moved.

    Returns
    -------
    Path
        ``catalog.json``.
    """
    import pystac

    boxes = [made.bbox for made in items if made.bbox]
    bounds = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    moments = [made.datetime for made in items if made.datetime]
    ends = max(moments) + timedelta(days=1) - timedelta(seconds=1)
    extent = pystac.Extent(pystac.SpatialExtent([bounds]), pystac.TemporalExtent([[min(moments), ends]]))
    collection = pystac.Collection(origin.name, origin.lineage, extent, origin.title, license="other")
    catalog = pystac.Catalog("exported", "Images exported by stfgan_xr", origin.title)
    catalog.add_child(collection)
    collection.add_items(items)
    catalog.normalize_hrefs(str(folder.resolve()))
    catalog.make_all_asset_hrefs_relative()
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"
