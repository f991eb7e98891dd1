"""What is understood of any STAC item: through the catalogs of the package, without opening an image."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stfgan_xr.catalog import known_catalogs, open_catalog
from stfgan_xr.errors import InputError, SourceError
from stfgan_xr.scenes import Collection, Scene, Side, is_hdf5, to_scene
from stfgan_xr.sensors import BANDS, SENSORS, field_of

LARGEST_FILE = 64 * 2**20
_EVERYWHERE = ("*", "http://*")
_OTHERWISE = {
    r"(MOD|MYD|modis-)13[AQC]": "an index of vegetation of 16 days, not reflectance of a day; use modis-43A4-061, or "
    "modis-09Q1-061 for red and nir of 250 m",
    r"landsat.*-l1|landsat-8-c2-l2": "use landsat-c2-l2, surface reflectance of Landsat 4 to 9",
}
"""Collections one might try, by a pattern of their names, and what to use instead."""


def collections() -> Iterator[tuple[Side, Collection]]:
    """Every collection of the catalogs of the package, with the side it belongs to; the demo's last."""
    for name in sorted(known_catalogs(), key=lambda name: name == "demo"):
        catalog = open_catalog(name)
        for side in filter(None, (catalog.fine, catalog.coarse)):
            yield from ((side, collection) for collection in side.collections)


def read_items(path: Path) -> dict[str, Any] | list[Any]:
    """An item, or the items of a FeatureCollection or JSON list.

    Raises
    ------
    InputError
        If the file is missing, too large or not JSON of such a kind.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the JSON of a STAC item")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path}: larger than {LARGEST_FILE >> 20} MiB; not a STAC item")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
    if not isinstance(document, list | dict):
        raise InputError(f"{path}: not a STAC item, nor a list of them")
    return document


def understand(item: Mapping[str, Any]) -> dict[str, Any]:
    """What is understood of an item, as JSON values.

    Parameters
    ----------
    item
        A STAC item as a dict.

    Returns
    -------
    dict
        ``id``, ``catalog``, ``collection``, ``sensor``, ``day``, ``crs``, ``quality`` (role -> href) and ``bands``:
        name -> ``href``, ``scale``, ``offset``, ``nodata`` (and ``field`` of an HDF-EOS5 file); or ``id`` and
        ``unused``, the reason.

    Notes
    -----
    The day of a fine scene is the solar day at the middle of the item; a run takes that of its area. Addresses are not
    held against the hosts of a catalog here.
    """
    name = item.get("id") if isinstance(item, Mapping) else None
    try:
        fitting = [
            (side, collection)
            for side, collection in collections()
            if item.get("collection") in (collection.name, *collection.also)
        ]
        if not fitting:
            return {"id": name, "unused": _unknown(item)}
        return _first_scene(item, fitting)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        return {"id": name, "unused": f"malformed: {error!r}"}


def _unknown(item: Mapping[str, Any]) -> str:
    """Why an item is of no collection of the catalogs, and what to do."""
    if item.get("type") in ("Catalog", "Collection"):
        return f"a {item['type']}, not an item; give one of its items"
    name = item.get("collection")
    instead = next((text for pattern, text in _OTHERWISE.items() if re.match(pattern, str(name))), None)
    advice = instead or "python -m pipelines.catalogs lists what is; a catalog of your own (TOML) can name others"
    return f"collection {name!r} is in none of the catalogs: {advice}"


def _first_scene(item: Mapping[str, Any], fitting: list[tuple[Side, Collection]]) -> dict[str, Any]:
    """The scene that the first catalog makes of it which can, else the first reason why not."""
    reasons = []
    for side, collection in fitting:
        if collection.unreadable:
            reasons.append(collection.unreadable)
            continue
        anywhere = replace(side, collections=(collection,), hosts=_EVERYWHERE, static="/catalog.json", signer="none")
        local = _placed(item)
        bands = [band for band in BANDS if band in dict(collection.assets)]
        try:
            scene = to_scene(local, anywhere, _longitude(item), bands)
        except SourceError as error:
            own = "; a catalog of your own (TOML) can name them" if "has no asset" in str(error) else ""
            reasons.append(f"{error}{own}")
            continue
        if scene is not None:
            return _plain(scene, item, side, collection, bands)
        reasons.append(f"platform {item['properties'].get('platform')!r} is none of {', '.join(collection.sensors)}")
    return {"id": item["id"], "unused": reasons[0]}


def _placed(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item with relative addresses made absolute, as if it lay at the root: only catalogs know where they are."""
    assets = {
        key: {**asset, "href": str(asset["href"]) if "://" in str(asset["href"]) else f"/{key}"}
        for key, asset in item["assets"].items()
    }
    return {**item, "assets": assets}


def _longitude(item: Mapping[str, Any]) -> float:
    box = item.get("bbox")
    if not box:
        return 0.0
    west, east = float(box[0]), float(box[len(box) // 2])
    return (west + east) / 2 if west <= east else ((west + east + 360) / 2 + 180) % 360 - 180


def _plain(
    scene: Scene, item: Mapping[str, Any], side: Side, collection: Collection, bands: list[str]
) -> dict[str, Any]:
    sensor = SENSORS[scene.sensor]

    def href(role: str) -> str:
        asset = collection.asset(item, role)
        return str(asset["href"]) if asset is not None else ""

    def coded(band: str) -> dict[str, Any]:
        field = field_of(sensor, band) if is_hdf5(href(band)) else ""
        facts = {"href": href(band), "scale": sensor.scale, "offset": sensor.offset, "nodata": sensor.fill}
        return facts | ({"field": field} if field else {})

    return {
        "id": scene.id,
        "catalog": side.catalog,
        "collection": scene.collection,
        "sensor": scene.sensor,
        "day": scene.day.isoformat(),
        "crs": scene.crs,
        "bands": {band: coded(band) for band in bands},
        "quality": {role: href(role) for role in sensor.quality_roles(bands)},
    }
