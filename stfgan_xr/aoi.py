"""The area of interest: a GeoJSON file or ``west,south,east,north``, checked before anything is asked of a server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from odc.geo.geom import BoundingBox, Geometry, box, unary_union
from shapely import make_valid
from shapely import unary_union as shapely_union
from shapely.affinity import translate

from stfgan_xr.errors import InputError

WGS84 = "EPSG:4326"
LARGEST_FILE = 32 * 2**20
_SURFACES = {"Polygon", "MultiPolygon"}


def _from_numbers(text: str) -> Geometry | None:
    parts = text.split(",")
    if len(parts) != 4:
        return None
    try:
        west, south, east, north = (float(part) for part in parts)
    except ValueError:
        return None
    if west <= 180 and east >= -180 and 0 < east + 360 - west < 180 and south < north:  # else a mistake
        return unary_union([box(west, south, 180, north, WGS84), box(-180, south, east, north, WGS84)])
    if not (west < east and south < north):  # also true of NaN
        raise InputError(
            f"--aoi {text!r}: write west,south,east,north in degrees, with south < north, and west > east only across "
            "180 degrees"
        )
    return box(west, south, east, north, WGS84)


def _geometries(node: Any, where: str) -> list[dict[str, Any]]:
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "FeatureCollection":
        return [found for feature in _members(node, "features", where) for found in _geometries(feature, where)]
    if kind == "Feature":
        return _geometries(node["geometry"], where) if node.get("geometry") else []
    if kind == "GeometryCollection":
        return [found for part in _members(node, "geometries", where) for found in _geometries(part, where)]
    if isinstance(kind, str) and "coordinates" in node:
        return [node]
    raise InputError(f"--aoi {where}: not GeoJSON; a geometry, Feature or FeatureCollection is needed")


def _members(node: dict[str, Any], key: str, where: str) -> list[Any]:
    members = node.get(key) or []
    if not isinstance(members, list):
        raise InputError(f"--aoi {where}: not GeoJSON; its {key} are not a list")
    return members


def _finite(coordinates: Any, deep: int = 0) -> bool:
    """Whether nested lists hold finite numbers only; what else they hold is left to shapely."""
    if isinstance(coordinates, list):
        return deep > 4 or all(_finite(part, deep + 1) for part in coordinates)
    return not isinstance(coordinates, float) or math.isfinite(coordinates)


def valid(area: Geometry) -> Geometry:
    """An area whose rings neither cross themselves nor each other."""
    # buffer(0) alone would drop half of a ring that crosses itself; after make_valid it drops stray lines only.
    return area if area.is_valid else Geometry(make_valid(area.geom), area.crs).buffer(0)


def _from_file(path: Path) -> Geometry:
    if not path.is_file():
        raise InputError(f"--aoi {path}: no such file; give a GeoJSON file or west,south,east,north")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"--aoi {path}: larger than {LARGEST_FILE >> 20} MiB; simplify the polygon")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError also of numbers of thousands of digits
        raise InputError(f"--aoi {path}: not GeoJSON ({str(error).splitlines()[0]})") from None
    found = _geometries(document, str(path))
    if not found:
        raise InputError(f"--aoi {path}: empty; it holds no geometry")
    wrong = sorted({geometry["type"] for geometry in found} - _SURFACES)
    if wrong:
        raise InputError(f"--aoi {path}: holds a {wrong[0]}; only Polygon and MultiPolygon enclose an area")
    if not all(_finite(geometry["coordinates"]) for geometry in found):
        raise InputError(f"--aoi {path}: not on Earth; a coordinate is not a finite number")
    try:
        union = unary_union(valid(Geometry(geometry, WGS84)) for geometry in found)
    except Exception as error:  # shapely raises many types for broken coordinates
        raise InputError(f"--aoi {path}: its coordinates cannot be read ({str(error).splitlines()[0]})") from None
    if union is None:
        raise InputError(f"--aoi {path}: empty; it holds no geometry")
    return union


def _check(area: Geometry, where: str) -> Geometry:
    bounds: BoundingBox = area.boundingbox
    if area.is_empty or not all(math.isfinite(v) for v in bounds) or area.area == 0:
        raise InputError(f"--aoi {where}: empty; it encloses no area")
    if bounds.left < -180 or bounds.right > 180 or bounds.bottom < -90 or bounds.top > 90:
        sides = max(map(abs, (bounds.left, bounds.right))), max(map(abs, (bounds.bottom, bounds.top)))
        raise InputError(
            f"--aoi {where}: not on Earth in degrees (bounds {tuple(round(v, 3) for v in bounds)}); "
            + "latitude and longitude look swapped: " * (sides[0] <= 90 < sides[1] <= 180)
            + "GeoJSON wants longitude, latitude, and areas cut where they cross 180 degrees"
        )
    return valid(area)


def read_aoi(text: str | Path) -> Geometry:
    """The area named by ``--aoi`` as one polygon or multipolygon in EPSG:4326.

    Parameters
    ----------
    text
        Path of a GeoJSON file (geometry, Feature or FeatureCollection; RFC 7946: longitude, latitude in degrees) or
        ``"west,south,east,north"``, with west > east across 180 degrees.

    Raises
    ------
    InputError
        If the file is missing, is not GeoJSON, is empty, not on Earth or encloses no area.

    >>> read_aoi("113.75,22.45,114.60,22.86").boundingbox.left
    113.75
    """
    area = _from_numbers(str(text))
    if area is None:
        area = _from_file(Path(text))
    return _check(area, str(text))


def parts(area: Geometry) -> list[Any]:
    """The polygons of an area, as shapely has them."""
    return list(getattr(area.geom, "geoms", [area.geom]))


def joined(area: Geometry) -> Geometry:
    """An area with its parts on both sides of 180 degrees put together, if RFC 7946 had it cut there.

    >>> joined(read_aoi("178,-20,-179,-18")).boundingbox.right
    181.0
    """
    bounds = area.boundingbox
    polygons = parts(area)
    if bounds.left != -180 or bounds.right != 180 or any(p.bounds[2] - p.bounds[0] >= 180 for p in polygons):
        return area
    east = [translate(polygon, 360) if polygon.bounds[0] < 0 else polygon for polygon in polygons]
    return Geometry(shapely_union(east), WGS84)


def middle(area: Geometry) -> tuple[float, float]:
    """Longitude and latitude of the middle of an area's bounds, in degrees, also across 180 degrees.

    >>> middle(read_aoi("178,-20,-179,-18"))
    (179.5, -19.0)
    """
    bounds = joined(area).boundingbox
    longitude = (bounds.left + bounds.right) / 2
    return longitude - 360 if longitude > 180 else longitude, (bounds.bottom + bounds.top) / 2
