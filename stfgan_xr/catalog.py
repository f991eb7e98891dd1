"""Catalogs: where imagery is found. The one file that searches STAC APIs and static catalogs."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from odc.geo.geom import Geometry

from stfgan_xr import days as calendar
from stfgan_xr.errors import InputError, SourceError
from stfgan_xr.files import write_json
from stfgan_xr.sensors import SENSORS, Sensor

LARGEST_TOML = 2**20
FINE_PADDING, COMPOSITE_PADDING = 1, 8
"""Days searched beyond the range asked for: solar days differ from UTC days, composites from their ``datetime``."""
_COMPOSITE_DAY = re.compile(r"\.A(\d{4})(\d{3})\.")


@dataclass(frozen=True)
class Collection:
    """One collection of a side: the sensors it may hold, and the asset of each role (band or quality layer)."""

    name: str
    sensors: tuple[str, ...]
    assets: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Side:
    """The fine or the coarse half of a catalog.

    Attributes
    ----------
    catalog
        Name of the catalog, for messages.
    api, static
        Address of a STAC API, or path or address of a static catalog's root; one of them.
    collections
        What to search.
    signer
        ``none`` or ``planetary-computer``.
    hosts
        Patterns of hosts that assets may lie on; local assets must lie below the static catalog's folder.
    timeout, retries
        Seconds before a request is given up, and how often it is made again.
    """

    catalog: str
    collections: tuple[Collection, ...]
    api: str | None = None
    static: str | None = None
    signer: str = "none"
    hosts: tuple[str, ...] = ()
    timeout: float = 60
    retries: int = 5


@dataclass(frozen=True)
class Catalog:
    """Where the two sides of a fusion come from; ``aoi`` and ``truth`` are files beside a catalog that has them."""

    name: str
    fine: Side | None
    coarse: Side | None
    folder: Path
    aoi: Path | None = None
    truth: Path | None = None


@dataclass(frozen=True)
class Scene:
    """One image of one sensor on one day.

    Attributes
    ----------
    id, collection, sensor
        What it is; ``sensor`` is a name of :data:`stfgan_xr.sensors.SENSORS`.
    day
        Its day: local solar for fine scenes, the stated one for composites.
    moment, created
        ISO texts of acquisition and processing (empty if not stated).
    assets
        Unsigned absolute href of each role.
    cloud
        Cloud cover in percent, if stated.
    """

    id: str
    collection: str
    sensor: str
    day: date
    moment: str
    created: str
    assets: tuple[tuple[str, str], ...]
    cloud: float | None = None
    tier: str = ""
    place: str = field(default="")

    def href(self, role: str) -> str:
        """Address of a band or quality layer."""
        return dict(self.assets)[role]


def known_catalogs() -> tuple[str, ...]:
    """Names of the catalogs that come with the package."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in files("catalogs").iterdir() if p.name.endswith(".toml")))


def open_catalog(name: str) -> Catalog:
    """A catalog by name, or by the path of its TOML.

    Raises
    ------
    InputError
        If it is unknown, or its file is missing or malformed; the key is named.

    >>> open_catalog("earth-search").coarse is None
    True
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"--catalog {name}: no such file")
        if path.stat().st_size > LARGEST_TOML:
            raise InputError(f"--catalog {name}: larger than {LARGEST_TOML >> 20} MiB")
        return _parse(path.read_bytes(), name, path.resolve().parent)
    if name not in known_catalogs():
        raise InputError(f"--catalog {name!r} is unknown; choose {', '.join(known_catalogs())}, or give a path ending in .toml")
    return _parse(files("catalogs").joinpath(f"{name}.toml").read_bytes(), name, Path())


def _parse(raw: bytes, where: str, folder: Path) -> Catalog:
    try:
        document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--catalog {where}: not TOML ({error})") from None
    name = str(document.get("name") or where)
    fine, coarse = (_side(document[k], where, k, name, folder) if k in document else None for k in ("fine", "coarse"))
    if fine is None and coarse is None:
        raise InputError(f"--catalog {where}: has neither [fine] nor [coarse]")
    extra = {key: folder / str(document[key]) if key in document else None for key in ("aoi", "truth")}
    return Catalog(name, fine, coarse, folder, **extra)


_SIDE_KEYS = {"api", "static", "signer", "hosts", "timeout", "retries", "collections"}


def _side(table: Any, where: str, key: str, name: str, folder: Path) -> Side:
    if not isinstance(table, dict):
        raise InputError(f"--catalog {where}: {key} must be a table")
    unknown = sorted(set(table) - _SIDE_KEYS)
    if unknown:
        raise InputError(f"--catalog {where}: [{key}] has an unknown key {unknown[0]}")
    if ("api" in table) == ("static" in table):
        raise InputError(f"--catalog {where}: [{key}] needs api or static, one of them")
    collections = table.get("collections")
    if not isinstance(collections, dict) or not collections:
        raise InputError(f"--catalog {where}: [{key}] has no collections")
    static = table.get("static")
    if static is not None and not urlsplit(str(static)).scheme:
        static = str((folder / str(static)).resolve())
    signer = str(table.get("signer", "none"))
    if signer not in ("none", "planetary-computer"):
        raise InputError(f"--catalog {where}: [{key}] signer {signer!r} is unknown; none or planetary-computer")
    return Side(
        name, tuple(_collection(c, t, where) for c, t in collections.items()), table.get("api"), static, signer,
        tuple(map(str, table.get("hosts", ()))), float(table.get("timeout", 60)), int(table.get("retries", 5)),
    )  # fmt: skip


def _collection(name: str, table: Any, where: str) -> Collection:
    for key, kind in (("sensors", list), ("assets", dict)):
        if not isinstance(table, dict) or not isinstance(table.get(key), kind) or not table[key]:
            raise InputError(f"--catalog {where}: collection {name} lacks {key}")
    unknown = [sensor for sensor in table["sensors"] if sensor not in SENSORS]
    if unknown:
        raise InputError(f"--catalog {where}: collection {name}: sensor {unknown[0]!r} is unknown; {', '.join(SENSORS)}")
    return Collection(name, tuple(table["sensors"]), tuple((str(k), str(v)) for k, v in table["assets"].items()))


def _items(side: Side, area: Geometry, first: date, last: date) -> Iterator[dict[str, Any]]:
    span = f"{first}T00:00:00Z/{last}T23:59:59Z"
    names = [collection.name for collection in side.collections]
    yield from _from_api(side, area, span, names) if side.api else _from_static(side, area, first, last, names)


def _from_api(side: Side, area: Geometry, span: str, names: list[str]) -> Iterator[dict[str, Any]]:
    import requests
    from pystac_client import Client
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO
    from urllib3 import Retry

    # One 429 or 5xx raises at once by default, and a POST is never repeated.
    retry = Retry(total=side.retries, backoff_factor=0.5, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None)
    try:
        client = Client.open(str(side.api), stac_io=StacApiIO(max_retries=retry), timeout=side.timeout)
        yield from client.search(collections=names, intersects=area.json, datetime=span, limit=250).items_as_dicts()
    except (APIError, requests.RequestException, OSError, ValueError, KeyError) as error:
        text = re.sub(r"\?\S*", "", str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise SourceError(f"catalog {side.catalog} ({side.api}) does not answer: {text[:300]}") from None


def _from_static(side: Side, area: Geometry, first: date, last: date, names: list[str]) -> Iterator[dict[str, Any]]:
    import pystac
    from pystac.errors import STACError

    try:
        root = pystac.Catalog.from_file(str(side.static))
        for collection in root.get_children():
            if collection.id in names:
                for item in collection.get_items(recursive=True):
                    yield _absolute(item.to_dict(include_self_link=True, transform_hrefs=False), item.get_self_href())
    except (STACError, OSError, ValueError, KeyError) as error:
        raise SourceError(f"catalog {side.catalog}: {side.static} cannot be read: {str(error).splitlines()[0]}") from None


def _absolute(item: dict[str, Any], base: str | None) -> dict[str, Any]:
    for asset in item["assets"].values():
        href = str(asset["href"])
        if not urlsplit(href).scheme and base:
            asset["href"] = urljoin(base, href) if urlsplit(base).scheme else str((Path(base).parent / href).resolve())
    return item


def _sensor(item: Mapping[str, Any], collection: Collection) -> Sensor | None:
    platform = str(item["properties"].get("platform", "")).lower()
    for name in collection.sensors:
        sensor = SENSORS[name]
        if not sensor.platforms or platform in sensor.platforms:
            return sensor
    return None


def _moment(item: Mapping[str, Any]) -> str:
    properties = item["properties"]
    return str(properties.get("datetime") or properties.get("start_datetime") or "")


def _day(item: Mapping[str, Any], sensor: Sensor, longitude: float) -> date:
    """A composite's stated day, from its id; the local solar day of any other scene."""
    if sensor.composite_day:
        match = _COMPOSITE_DAY.search(item["id"])
        if match:
            return date(int(match[1]), 1, 1) + timedelta(days=int(match[2]) - 1)
        stated = item["properties"].get("start_datetime") or _moment(item)
        return date.fromisoformat(stated[:10])
    return calendar.solar_day(_parse_moment(_moment(item), item["id"]), longitude)


def _parse_moment(text: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
    except ValueError:
        raise SourceError(f"item {name}: datetime {text!r} cannot be read") from None


def _check_coding(item: Mapping[str, Any], role: str, asset: Mapping[str, Any], sensor: Sensor) -> None:
    """What STAC states of scale, offset and fill must be what the sensor's guide says."""
    stated = (asset.get("raster:bands") or asset.get("bands") or [{}])[0]
    ours = {"scale": sensor.scale, "offset": sensor.offset, "nodata": sensor.fill}
    names = {"scale": ("scale", "raster:scale"), "offset": ("offset", "raster:offset"), "nodata": ("nodata",)}
    for key, value in ours.items():
        found = next((stated[name] for name in names[key] if stated.get(name) is not None), None)
        if found is not None and abs(float(found) - value) > 1e-12:
            raise SourceError(f"item {item['id']}, {role}: {key} is {found} there, {value} for {sensor.name}")


def check_href(href: str, side: Side, name: str) -> None:
    """Refuse addresses outside a side's hosts or, for local files, outside its catalog's folder."""
    parts = urlsplit(href)
    if parts.scheme in ("http", "https", "s3"):
        host = parts.hostname or ""
        if not any(fnmatch.fnmatch(host, pattern) for pattern in side.hosts):
            raise SourceError(f"item {name}: host {host!r} is not among the hosts of catalog {side.catalog}")
        return
    root = Path(side.static).parent if side.static and not urlsplit(side.static).scheme else None
    if parts.scheme or root is None or not Path(href).resolve().is_relative_to(root.resolve()):
        raise SourceError(f"item {name}: {href.split('?')[0]!r} is neither on the web nor below its catalog")


def to_scene(item: Mapping[str, Any], side: Side, longitude: float, bands: Sequence[str]) -> Scene | None:
    """What we understand of an item, or None if its platform is none of the collection's sensors.

    Raises
    ------
    SourceError
        If a needed asset is missing, lies on another host, or its stated coding differs from the sensor's.
    """
    collection = next((c for c in side.collections if c.name == item.get("collection")), None)
    sensor = _sensor(item, collection) if collection else None
    if collection is None or sensor is None:
        return None
    roles = (*bands, *sensor.quality_roles(bands))
    names = dict(collection.assets)
    assets = []
    for role in roles:
        asset = item["assets"].get(names.get(role, ""))
        if asset is None:
            raise SourceError(f"item {item['id']} of catalog {side.catalog} has no asset {names.get(role, role)!r} ({role})")
        if role in bands:
            _check_coding(item, role, asset, sensor)
        check_href(asset["href"], side, item["id"])
        assets.append((role, str(asset["href"])))
    properties = item["properties"]
    place = "_".join(str(properties.get(f"landsat:wrs_{k}", "")) for k in ("path", "row"))
    return Scene(
        item["id"], collection.name, sensor.name, _day(item, sensor, longitude), _moment(item),
        str(properties.get("created") or properties.get("updated") or ""), tuple(assets),
        properties.get("eo:cloud_cover"), str(properties.get("landsat:collection_category", "")), place,
    )  # fmt: skip


def _same_image(scene: Scene) -> tuple[Any, ...]:
    """Scenes that agree in this are the same image, processed more than once."""
    if scene.place.strip("_"):
        return scene.sensor, scene.day, scene.place, scene.moment[:16]
    return scene.sensor, scene.day, re.sub(r"\.\d{13}$", "", scene.id)


def deduplicate(scenes: Iterable[Scene]) -> tuple[Scene, ...]:
    """One scene an image (tier 1 before 2, then the newest processing), in an order that does not depend on the input's."""
    best: dict[tuple[Any, ...], Scene] = {}
    # The last one kept wins: sorted so that tier 1 and later processing come last.
    for scene in sorted(scenes, key=lambda s: (s.tier != "T2", s.created, s.id)):
        best[_same_image(scene)] = scene
    return tuple(sorted(best.values(), key=lambda s: (s.day, s.moment, s.id)))


def search(side: Side, area: Geometry, first: date, last: date, longitude: float, bands: Sequence[str]) -> tuple[Scene, ...]:
    """Scenes of a side over an area, from ``first`` to ``last`` day, both included.

    Parameters
    ----------
    side
        Where to search.
    area
        Polygon in EPSG:4326.
    longitude
        Of the middle of the area, for local solar days.
    bands
        Bands whose assets must be there.

    Raises
    ------
    SourceError
        If the catalog does not answer, or an item is not what it should be.
    """
    composite = any(SENSORS[sensor].composite_day for c in side.collections for sensor in c.sensors)
    padding = timedelta(days=COMPOSITE_PADDING if composite else FINE_PADDING)
    found = []
    for item in _items(side, area, first - padding, last + padding):
        if _overlaps(item, area):
            scene = to_scene(item, side, longitude, bands)
            if scene is not None and first <= scene.day <= last:
                found.append(scene)
    return deduplicate(found)


def _overlaps(item: Mapping[str, Any], area: Geometry) -> bool:
    west, south, east, north = item["bbox"][:2] + item["bbox"][len(item["bbox"]) // 2 :][:2]
    box = area.boundingbox
    return bool(west <= box.right and east >= box.left and south <= box.top and north >= box.bottom)


def save_scenes(path: Path, fine: Sequence[Scene], coarse: Sequence[Scene]) -> None:
    """Write ``items.json``: the same scenes give the same bytes."""
    write_json(path, {name: [_plain(s) for s in scenes] for name, scenes in (("fine", fine), ("coarse", coarse))})


def _plain(scene: Scene) -> dict[str, Any]:
    return asdict(scene) | {"day": scene.day.isoformat(), "assets": dict(scene.assets)}


def read_scenes(path: Path) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """The scenes of an ``items.json``: fine, coarse."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        fine, coarse = (
            tuple(Scene(**{**s, "day": date.fromisoformat(s["day"]), "assets": tuple(s["assets"].items())}) for s in document[k])
            for k in ("fine", "coarse")
        )
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); choose another --out or add --overwrite") from None
    return fine, coarse
