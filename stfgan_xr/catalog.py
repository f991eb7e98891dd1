"""Catalogs: where imagery is found. The one file that searches STAC APIs and static catalogs."""

from __future__ import annotations

import json
import logging
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from odc.geo.geom import Geometry, box

from stfgan_xr.days import solar_day
from stfgan_xr.errors import InputError, SourceError
from stfgan_xr.files import write_json
from stfgan_xr.sensors import BANDS, SENSORS, Sensor

if TYPE_CHECKING:
    import pystac
    from urllib3 import Retry

log = logging.getLogger(__name__)

LARGEST_TOML = 2**20
LARGEST_AREA = 40_000
"""Characters of an area sent to a server; larger ones are simplified, outwards."""
FINE_PADDING, COMPOSITE_PADDING = timedelta(days=1), timedelta(days=8)
"""Searched beyond the range asked for: solar days differ from UTC days, composites from their ``datetime``."""
SIGNERS = ("none", "planetary-computer")
_COMPOSITE_DAY = re.compile(r"\.A(\d{4})(\d{3})\.")
_PRODUCTION = re.compile(r"\.(\d{13})$")
_UNSAFE = re.compile(r"[\x00-\x20\\\"'<>|^`{}]")


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
    collections
        What to search.
    api, static
        Address of a STAC API, or path or address of a static catalog's root; one of them.
    signer
        ``none`` or ``planetary-computer``.
    hosts
        Patterns of hosts (or buckets) that assets may lie on, reached by https or s3; ``http://host`` allows http.
        Local assets must lie below the static catalog's folder.
    timeout, retries
        Seconds before a request is given up, and how often it is made again.
    page
        Items asked for at a time.
    """

    catalog: str
    collections: tuple[Collection, ...]
    api: str | None = None
    static: str | None = None
    signer: str = "none"
    hosts: tuple[str, ...] = ()
    timeout: float = 60
    retries: int = 5
    page: int = 250


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
    id, collection, sensor, platform
        What it is; ``sensor`` is a name of :data:`stfgan_xr.sensors.SENSORS`.
    day
        Its day: local solar for fine scenes, the stated one for composites.
    moment, created
        ISO texts of acquisition and processing in UTC (empty if not stated).
    assets
        Unsigned absolute href of each role.
    cloud
        Cloud cover in percent, if stated.
    tier, place
        Landsat tier, and path and row (empty if there is none).
    crs, shape, transform
        Its grid, if stated: ``EPSG:n`` or WKT, rows and columns, the six numbers of the affine.
    """

    id: str
    collection: str
    sensor: str
    platform: str
    day: date
    moment: str
    created: str
    assets: tuple[tuple[str, str], ...]
    cloud: float | None = None
    tier: str = ""
    place: str = ""
    crs: str = ""
    shape: tuple[int, int] | None = None
    transform: tuple[float, ...] | None = None

    def href(self, role: str) -> str:
        """Address of a band or quality layer."""
        return dict(self.assets)[role]


# ---------------------------------------------------------------- catalogs as TOML


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
            raise InputError(f"--catalog {name}: larger than {LARGEST_TOML >> 20} MiB; not a catalog")
        return _parse(path.read_bytes(), name, path.resolve().parent)
    if name not in known_catalogs():
        known = ", ".join(known_catalogs())
        raise InputError(f"--catalog {name!r} is unknown; choose {known}, or give a path ending in .toml")
    return _parse(files("catalogs").joinpath(f"{name}.toml").read_bytes(), name, Path())


def _parse(raw: bytes, where: str, folder: Path) -> Catalog:
    try:
        document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"--catalog {where}: not TOML ({error})") from None
    name = _value(document, "name", str, where, where)
    fine, coarse = (_side(document[k], k, where, name, folder) if k in document else None for k in ("fine", "coarse"))
    if fine is None and coarse is None:
        raise InputError(f"--catalog {where}: has neither [fine] nor [coarse]")
    beside = {k: folder / _value(document, k, str, "", where) if k in document else None for k in ("aoi", "truth")}
    return Catalog(name, fine, coarse, folder, **beside)


_SIDE_KEYS = {"api", "static", "signer", "hosts", "timeout", "retries", "page", "collections"}


def _value(table: Mapping[str, Any], key: str, kind: Any, default: Any, where: str) -> Any:
    """A value of a table of TOML, or the default if it is not there."""
    found = table.get(key, default)
    if not isinstance(found, kind) or isinstance(found, bool):
        raise InputError(f"--catalog {where}: {key} must not be {found!r}")
    return found


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    found = _value(table, key, list, [], where)
    if not all(isinstance(text, str) for text in found):
        raise InputError(f"--catalog {where}: {key} must be a list of texts, not {found!r}")
    return tuple(found)


def _side(table: Any, key: str, file: str, name: str, folder: Path) -> Side:
    where = f"{file}: [{key}]"
    if not isinstance(table, dict):
        raise InputError(f"--catalog {where} must be a table")
    unknown = sorted(set(table) - _SIDE_KEYS)
    if unknown:
        raise InputError(f"--catalog {where} has an unknown key {unknown[0]}; known: {', '.join(sorted(_SIDE_KEYS))}")
    if ("api" in table) == ("static" in table):
        raise InputError(f"--catalog {where} needs api or static, one of them")
    address = _value(table, "api" if "api" in table else "static", str, None, where)
    if "static" in table and not urlsplit(address).scheme:
        address = str((folder / address).resolve())
    signer = _value(table, "signer", str, "none", where)
    if signer not in SIGNERS:
        raise InputError(f"--catalog {where}: signer {signer!r} is unknown; choose {' or '.join(SIGNERS)}")
    for least, number in ((0, "retries"), (1, "page"), (0.001, "timeout")):
        if not _value(table, number, (int, float), least, where) >= least:
            raise InputError(f"--catalog {where}: {number} must be at least {least}, not {table[number]}")
    collections = _value(table, "collections", dict, {}, where)
    if not collections:
        raise InputError(f"--catalog {where}: collections are missing")
    return Side(
        name, tuple(_collection(collection, t, key, where) for collection, t in collections.items()),
        address if "api" in table else None, address if "static" in table else None, signer,
        _texts(table, "hosts", where), _value(table, "timeout", (int, float), 60, where),
        _value(table, "retries", int, 5, where), _value(table, "page", int, 250, where),
    )  # fmt: skip


def _collection(name: str, table: Any, kind: str, where: str) -> Collection:
    where = f"{where}: collection {name}"
    if not isinstance(table, dict):
        raise InputError(f"--catalog {where} must be a table")
    sensors, assets = _texts(table, "sensors", where), _value(table, "assets", dict, {}, where)
    for key, found in (("sensors", sensors), ("assets", assets)):
        if not found:
            raise InputError(f"--catalog {where}: {key} is missing")
    fitting = [sensor.name for sensor in SENSORS.values() if sensor.kind == kind]
    for sensor in sensors:
        if sensor not in fitting:
            raise InputError(f"--catalog {where}: sensor {sensor!r} is no {kind} sensor; choose {', '.join(fitting)}")
    roles = {*BANDS, *(role for sensor in sensors for role in SENSORS[sensor].quality_roles(BANDS))}
    for role, asset in assets.items():
        if role not in roles or not isinstance(asset, str):
            raise InputError(f"--catalog {where}: asset {role} = {asset!r}; roles are {', '.join(sorted(roles))}")
    return Collection(name, sensors, tuple(assets.items()))


# ---------------------------------------------------------------- searching


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\?[^\s'\"]*", "", lines[0])[:300]


def _retry(side: Side) -> Retry:
    """How often a request is made again: one 429 or 5xx raises at once by default, and a POST is never repeated."""
    from urllib3 import Retry

    status = [429, 500, 502, 503, 504]
    return Retry(
        total=side.retries, backoff_factor=0.5, backoff_jitter=0.5, status_forcelist=status, allowed_methods=None
    )


def _searched(area: Geometry) -> Geometry:
    """What a server is asked for: many refuse polygons of very many vertices."""
    if len(json.dumps(area.json)) <= LARGEST_AREA:
        return area
    outwards: Geometry = area.buffer(0.01).simplify(0.01) & box(-180, -90, 180, 90, str(area.crs))
    return outwards


def _not_stac() -> tuple[type[Exception], ...]:
    """What pystac raises for an answer that is no JSON, or JSON but not STAC."""
    from pystac.errors import STACError, STACTypeError

    return STACError, STACTypeError, ValueError, LookupError, TypeError, AttributeError


def _from_api(side: Side, area: Geometry, first: date, last: date) -> Iterator[dict[str, Any]]:
    import requests
    from pystac_client import Client
    from pystac_client.errors import ClientTypeError
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO

    known: tuple[type[Exception], ...] = (
        APIError,
        requests.RequestException,
        OSError,
        NotImplementedError,
        ClientTypeError,
    )
    known += _not_stac()

    names = [collection.name for collection in side.collections]
    span = f"{first}T00:00:00Z/{last}T23:59:59Z"
    try:
        # Client.open replaces the timeout of the stac_io by its own.
        client = Client.open(str(side.api), stac_io=StacApiIO(max_retries=_retry(side)), timeout=side.timeout)
        found = client.search(collections=names, intersects=_searched(area).json, datetime=span, limit=side.page)
        yield from found.items_as_dicts()
    except known as error:
        raise SourceError(f"catalog {side.catalog} ({side.api}) does not answer: {_one_line(error)}") from None


def _static_root(side: Side) -> pystac.Catalog:
    """The root of a static catalog; a local one is read below its own folder only."""
    import pystac
    from pystac_client.stac_api_io import StacApiIO

    root = str(side.static)
    local = None if urlsplit(root).scheme else Path(root).resolve().parent

    class StaticIO(StacApiIO):
        # StacApiIO makes clients of what it reads, which need an API.
        stac_object_from_dict = pystac.StacIO.stac_object_from_dict

        def read_text(self, source: Any, *arguments: Any, **options: Any) -> str:
            if local is not None and not Path(str(source)).resolve().is_relative_to(local):
                raise ValueError(f"it links to {source}, outside of its folder")
            return super().read_text(source, *arguments, **options)

    return pystac.Catalog.from_file(root, stac_io=StaticIO(max_retries=_retry(side), timeout=side.timeout))


def _from_static(side: Side, area: Geometry) -> Iterator[dict[str, Any]]:
    import requests
    from pystac_client.exceptions import APIError

    known: tuple[type[Exception], ...] = (APIError, requests.RequestException, OSError, *_not_stac())
    names = {collection.name for collection in side.collections}
    try:
        for collection in _static_root(side).get_children():
            for item in collection.get_items(recursive=True) if collection.id in names else ():
                document = item.to_dict(include_self_link=False, transform_hrefs=False)
                if _overlaps(document, area):
                    yield _absolute(document, item.get_self_href() or str(side.static))
    except known as error:
        reason = _one_line(error.__cause__ or error)  # pystac says only that a link does not resolve
        raise SourceError(f"catalog {side.catalog}: {side.static} cannot be read: {reason}") from None


def _absolute(item: dict[str, Any], base: str) -> dict[str, Any]:
    for asset in item["assets"].values():
        href = str(asset["href"])
        if not urlsplit(href).scheme:
            asset["href"] = urljoin(base, href) if urlsplit(base).scheme else str((Path(base).parent / href).resolve())
    return item


def _overlaps(item: Mapping[str, Any], area: Geometry) -> bool:
    """Whether the bounds of an item and an area meet; items may cross the antimeridian (west > east)."""
    bounds, numbers = area.boundingbox, item["bbox"]
    half = len(numbers) // 2
    west, south, east, north = numbers[0], numbers[1], numbers[half], numbers[half + 1]
    across = west <= bounds.right and east >= bounds.left
    if west > east:
        across = west <= bounds.right or east >= bounds.left
    return bool(across and south <= bounds.top and north >= bounds.bottom)


# ---------------------------------------------------------------- from items to scenes


def _sensor(item: Mapping[str, Any], collection: Collection) -> Sensor | None:
    platform = _platform(item)
    candidates = (SENSORS[name] for name in collection.sensors)
    return next((sensor for sensor in candidates if not sensor.platforms or platform in sensor.platforms), None)


def _platform(item: Mapping[str, Any]) -> str:
    return str(item["properties"].get("platform") or "").lower().replace("_", "-")


def _utc(text: Any, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        raise SourceError(f"item {name}: {text!r} is not a date and time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _first_stated(properties: Mapping[str, Any], keys: Sequence[str], name: str) -> str:
    """The first of some times that is stated, as ISO text in UTC; empty if none is."""
    found = next((properties[key] for key in keys if properties.get(key)), None)
    return "" if found is None else _utc(found, name).isoformat()


def _day(item: Mapping[str, Any], sensor: Sensor, longitude: float) -> date:
    """A composite's stated day, from its id; the local solar day of any other scene."""
    name, properties = item["id"], item["properties"]
    if not sensor.composite_day:
        return solar_day(_utc(properties.get("datetime") or properties.get("start_datetime"), name), longitude)
    match = _COMPOSITE_DAY.search(name)
    if match is None:
        raise SourceError(f"item {name}: its id states no day (.AYYYYDDD.), which a composite is dated by")
    day = date(int(match[1]), 1, 1) + timedelta(days=int(match[2]) - 1)
    start, end = (properties.get(key) for key in ("start_datetime", "end_datetime"))
    if (start and day < _utc(start, name).date()) or (end and day > _utc(end, name).date()):
        raise SourceError(f"item {name}: its id states {day}, its metadata {start} to {end}")
    return day


def _check_coding(item: Mapping[str, Any], role: str, asset: Mapping[str, Any], sensor: Sensor) -> None:
    """What STAC states of scale, offset and fill must be what the sensor's guide says; stating nothing is fine."""
    stated = {**asset, **(asset.get("raster:bands") or asset.get("bands") or [{}])[0]}
    for key, ours in (("scale", sensor.scale), ("offset", sensor.offset), ("nodata", sensor.fill)):
        found = next((stated[k] for k in (key, f"raster:{key}") if stated.get(k) is not None), ours)
        if not abs(float(found) - ours) <= 1e-12:
            raise SourceError(f"item {item['id']}, {role}: {key} is {found} there, {ours} for {sensor.name}")


def _is_allowed(parts: SplitResult, hosts: Iterable[str]) -> bool:
    for pattern in hosts:
        scheme, _, host = pattern.rpartition("://")
        schemes = (scheme,) if scheme else ("https", "s3")
        if parts.scheme in schemes and fnmatchcase((parts.hostname or "").lower(), host.lower()):
            return True
    return False


def check_href(href: str, side: Side, name: str) -> None:
    """Refuse addresses outside a side's hosts or, for local files, outside its catalog's folder.

    Raises
    ------
    SourceError
        Naming the item and its host or path.
    """
    try:
        parts = urlsplit(href)
        odd = bool(_UNSAFE.search(href) or "@" in parts.netloc)
    except ValueError:
        raise SourceError(f"item {name}: an asset's address is malformed") from None
    if parts.scheme in ("http", "https", "s3") and not odd:
        if not _is_allowed(parts, side.hosts):
            raise SourceError(
                f"item {name}: {parts.scheme}://{parts.hostname} is not among the hosts of {side.catalog}"
            )
        return
    root = Path(side.static).parent if side.static and not urlsplit(side.static).scheme else None
    if parts.scheme or root is None or "\0" in href or not Path(href).resolve().is_relative_to(root.resolve()):
        shown = href.split("?")[0]
        raise SourceError(f"item {name}: {shown!r} is neither on the hosts of {side.catalog} nor below its folder")


def to_scene(item: Mapping[str, Any], side: Side, longitude: float, bands: Sequence[str]) -> Scene | None:
    """What we understand of an item, or None if its platform is none of the collection's sensors.

    Raises
    ------
    SourceError
        If the item is malformed, a needed asset is missing or lies on another host, or its stated coding differs from
        the sensor's.
    """
    try:
        collection = next((c for c in side.collections if c.name == item.get("collection")), None)
        sensor = _sensor(item, collection) if collection else None
        if collection is None or sensor is None:
            return None
        return _scene(item, side, collection, sensor, longitude, bands)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        name = item.get("id") if isinstance(item, Mapping) else None
        raise SourceError(f"item {name} of catalog {side.catalog} is malformed: {error!r}") from None


def _scene(
    item: Mapping[str, Any], side: Side, collection: Collection, sensor: Sensor, longitude: float, bands: Sequence[str]
) -> Scene:
    name, properties, names = str(item["id"]), item["properties"], dict(collection.assets)
    assets: dict[str, str] = {}
    for role in (*bands, *sensor.quality_roles(bands)):
        asset = item["assets"].get(names.get(role, ""))
        if asset is None:
            raise SourceError(f"item {name} of catalog {side.catalog} has no asset {names.get(role, role)!r} ({role})")
        if role in bands:
            _check_coding(item, role, asset, sensor)
        href = str(asset["href"])
        check_href(href, side, name)
        assets[role] = href if side.signer == "none" else href.split("?")[0]
    stated = {**properties, **item["assets"][names[bands[0]]]}
    shape, transform = stated.get("proj:shape"), stated.get("proj:transform")
    cloud, path_row = properties.get("eo:cloud_cover"), [properties.get(f"landsat:wrs_{k}") for k in ("path", "row")]
    return Scene(
        name, collection.name, sensor.name, _platform(item), _day(item, sensor, longitude),
        _first_stated(properties, ("datetime", "start_datetime"), name),
        _first_stated(properties, ("landsat:product_generated", "created", "updated"), name),
        tuple(sorted(assets.items())), None if cloud is None else float(cloud),
        str(properties.get("landsat:collection_category") or ""), "_".join(str(k) for k in path_row if k), _crs(stated),
        (int(shape[0]), int(shape[1])) if shape else None, tuple(map(float, transform[:6])) if transform else None,
    )  # fmt: skip


def _crs(stated: Mapping[str, Any]) -> str:
    epsg = stated.get("proj:epsg")
    return str(stated.get("proj:code") or (f"EPSG:{epsg}" if epsg else None) or stated.get("proj:wkt2") or "")


# ---------------------------------------------------------------- which scenes count


def _same_image(scene: Scene) -> tuple[Any, ...]:
    """Scenes that agree in this are the same image, processed more than once."""
    place = scene.place or _PRODUCTION.sub("", scene.id)
    return scene.sensor, scene.platform, scene.day, place


def _merit(scene: Scene) -> tuple[Any, ...]:
    """Tier 1 before tier 2 before real time, then the later processing."""
    production = _PRODUCTION.search(scene.id)
    rank = {"RT": 0, "T2": 1}.get(scene.tier, 2)
    return rank, production[1] if production else "", scene.created, scene.id, scene.assets


def deduplicate(scenes: Iterable[Scene]) -> tuple[Scene, ...]:
    """One scene an image (tier 1 before 2, then the newest processing), in an order of their own."""
    best: dict[tuple[Any, ...], Scene] = {}
    for scene in sorted(scenes, key=_merit):
        best[_same_image(scene)] = scene
    return tuple(sorted(best.values(), key=lambda s: (s.day, s.moment, s.id)))


def search(
    side: Side, area: Geometry, first: date, last: date, longitude: float, bands: Sequence[str] = BANDS
) -> tuple[Scene, ...]:
    """Scenes of a side over an area, from ``first`` to ``last`` day, both included.

    Parameters
    ----------
    side
        Where to search.
    area
        Polygon in EPSG:4326.
    first, last
        Local solar days, or stated days of composites.
    longitude
        Of the middle of the area in degrees, for local solar days.
    bands
        Bands whose assets must be there.

    Raises
    ------
    SourceError
        If the catalog does not answer, or an item is not what it should be.
    """
    composite = any(SENSORS[sensor].composite_day for c in side.collections for sensor in c.sensors)
    padding = COMPOSITE_PADDING if composite else FINE_PADDING
    items = _from_api(side, area, first - padding, last + padding) if side.api else _from_static(side, area)
    scenes = [scene for item in items if (scene := to_scene(item, side, longitude, bands)) is not None]
    found = deduplicate(scene for scene in scenes if first <= scene.day <= last)
    log.info("%s: %d items, %d scenes from %s to %s", side.catalog, len(scenes), len(found), first, last)
    return found


def save_scenes(path: Path, fine: Sequence[Scene], coarse: Sequence[Scene]) -> None:
    """Write ``items.json``: the same scenes give the same bytes."""
    write_json(path, {name: [_plain(s) for s in scenes] for name, scenes in (("fine", fine), ("coarse", coarse))})


def _plain(scene: Scene) -> dict[str, Any]:
    return asdict(scene) | {"day": scene.day.isoformat(), "assets": dict(scene.assets)}


def _from_plain(document: dict[str, Any]) -> Scene:
    lists = {key: tuple(document[key]) if document[key] is not None else None for key in ("shape", "transform")}
    day, assets = date.fromisoformat(document["day"]), tuple(sorted(document["assets"].items()))
    return Scene(**{**document, **lists, "day": day, "assets": assets})


def read_scenes(path: Path) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """The scenes of an ``items.json``: fine, coarse.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        fine, coarse = (tuple(_from_plain(scene) for scene in document[side]) for side in ("fine", "coarse"))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({_one_line(error)}); choose another --out or add --overwrite") from None
    return fine, coarse
