"""Catalogs: where imagery is found. The one file that searches STAC APIs and static catalogs."""

from __future__ import annotations

import json
import logging
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
    from pystac_client import Client
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
    """One collection of a side.

    Attributes
    ----------
    name
        As the server calls it.
    sensors
        Names of the sensors it may hold.
    assets
        Names of the asset of each role (band or quality layer); of several the first that an item has.
    also
        Names that other servers give to the same collection.
    since, until
        First and last year of its imagery; None: it goes on.
    misstated
        Facts of the coding (scale, offset, nodata) that the server is known to state wrongly, so that they are not
        compared.
    unreadable
        Why its images cannot be read and what to use instead; empty if they can.
    """

    name: str
    sensors: tuple[str, ...]
    assets: tuple[tuple[str, tuple[str, ...]], ...]
    also: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None
    misstated: tuple[str, ...] = ()
    unreadable: str = ""

    def asset(self, item: Mapping[str, Any], role: str) -> Mapping[str, Any] | None:
        """The asset of a role, or None."""
        names = dict(self.assets).get(role, ())
        return next((item["assets"][name] for name in names if name in item["assets"]), None)


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
    default
        Collections that are searched if none are named; empty: all.
    login
        What a user needs before images can be read.
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
    default: tuple[str, ...] = ()
    login: str = "none"

    def select(self, names: Sequence[str] | None, bands: Sequence[str]) -> Side:
        """The side with some of its collections only, by default those of :attr:`default`.

        Raises
        ------
        InputError
            If a collection is unknown, cannot be read, or lacks one of the bands.
        """
        known = {collection.name: collection for collection in self.collections}
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise InputError(f"catalog {self.catalog} has no collection {unknown[0]!r}; it has {', '.join(known)}")
        chosen = tuple(known[name] for name in names or self.default or known)
        for collection in chosen:
            _check_collection(self, collection, bands)
        return replace(self, collections=chosen)

    @property
    def phase(self) -> float:
        """Where pixel edges of its first collection lie, in metres modulo the pixel size."""
        return SENSORS[self.collections[0].sensors[0]].phase


def _check_collection(side: Side, collection: Collection, bands: Sequence[str]) -> None:
    if collection.unreadable:
        raise InputError(f"catalog {side.catalog}: {collection.name} cannot be read: {collection.unreadable}")
    has = [band for band in BANDS if band in dict(collection.assets)]
    lacking = [band for band in bands if band not in has]
    if lacking:
        raise InputError(
            f"catalog {side.catalog}: {collection.name} has no {', '.join(lacking)}; add --bands {','.join(has)}"
        )


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


_SIDE_KEYS = {
    "api", "static", "signer", "hosts", "timeout", "retries", "page", "collections", "default", "login",
}  # fmt: skip
_COLLECTION_KEYS = {"sensors", "assets", "also", "since", "until", "misstated", "unreadable"}


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


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise InputError(f"--catalog {where} has an unknown key {unknown[0]}; known: {', '.join(sorted(known))}")


def _side(table: Any, key: str, file: str, name: str, folder: Path) -> Side:
    where = f"{file}: [{key}]"
    if not isinstance(table, dict):
        raise InputError(f"--catalog {where} must be a table")
    _refuse_unknown(table, _SIDE_KEYS, where)
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
    default = _texts(table, "default", where)
    for wrong in (given for given in default if given not in collections):
        raise InputError(f"--catalog {where}: default names {wrong!r}, which is none of its collections")
    return Side(
        name, tuple(_collection(collection, t, key, where) for collection, t in collections.items()),
        address if "api" in table else None, address if "static" in table else None, signer,
        _texts(table, "hosts", where), _value(table, "timeout", (int, float), 60, where),
        _value(table, "retries", int, 5, where), _value(table, "page", int, 250, where), default,
        _value(table, "login", str, "none", where),
    )  # fmt: skip


def _collection(name: str, table: Any, kind: str, where: str) -> Collection:
    where = f"{where}: collection {name}"
    if not isinstance(table, dict):
        raise InputError(f"--catalog {where} must be a table")
    _refuse_unknown(table, _COLLECTION_KEYS, where)
    sensors, assets = _texts(table, "sensors", where), _value(table, "assets", dict, {}, where)
    for key, found in (("sensors", sensors), ("assets", assets)):
        if not found:
            raise InputError(f"--catalog {where}: {key} is missing")
    fitting = [sensor.name for sensor in SENSORS.values() if sensor.kind == kind]
    for sensor in sensors:
        if sensor not in fitting:
            raise InputError(f"--catalog {where}: sensor {sensor!r} is no {kind} sensor; choose {', '.join(fitting)}")
    roles = {*BANDS, *(role for sensor in sensors for role in SENSORS[sensor].quality_roles(BANDS))}
    names = {role: (asset,) if isinstance(asset, str) else asset for role, asset in assets.items()}
    for role, asset in names.items():
        if role not in roles or not isinstance(asset, list | tuple) or not all(isinstance(n, str) for n in asset):
            raise InputError(
                f"--catalog {where}: asset {role} = {assets[role]!r}; give its name; roles: {', '.join(sorted(roles))}"
            )
    years = {key: _value(table, key, int, None, where) if key in table else None for key in ("since", "until")}
    return Collection(
        name, sensors, tuple((role, tuple(asset)) for role, asset in names.items()), _texts(table, "also", where),
        years["since"], years["until"], _texts(table, "misstated", where), _value(table, "unreadable", str, "", where),
    )  # fmt: skip


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


def _below(max_cloud: float) -> dict[str, Any]:
    """CQL2 for items of at most so much cloud, or of which none is stated."""
    cloud = {"property": "eo:cloud_cover"}
    stated = {"op": "<=", "args": [cloud, max_cloud]}
    return {"op": "or", "args": [{"op": "isNull", "args": [cloud]}, stated]}


def _filters(client: Client) -> bool:
    """Whether a server says that it takes filters in the form of :func:`_below`."""
    from pystac_client.conformance import ConformanceClasses

    return client.conforms_to(ConformanceClasses.FILTER) and any(
        uri.endswith("/cql2-json") for uri in client.get_conforms_to()
    )


def _matched(page: Any) -> int | None:
    """Items of all pages together, where a page states that, as the API's context extension or as OGC writes it."""
    if not isinstance(page, dict):
        return None
    context = page.get("context")
    found = page.get("numberMatched", context.get("matched") if isinstance(context, dict) else None)
    return found if isinstance(found, int) else None


def _check_whole(side: Side, stated: Sequence[int], came: int) -> None:
    """Refuse an answer of fewer items than its pages state; items may be added or deleted while it is read."""
    if stated and came < min(stated):
        raise SourceError(
            f"catalog {side.catalog} ({side.api}): {min(stated)} items match, but only {came} came; "
            "run the same command again, or set another page in the catalog's TOML"
        )


def _from_api(
    side: Side, area: Geometry, first: date, last: date, max_cloud: float | None = None
) -> Iterator[dict[str, Any]]:
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

    stated: list[int] = []

    class CountingIO(StacApiIO):
        # The pages of a search end before one without items, whatever it states.
        def read_json(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            page = super().read_json(*arguments, **options)
            if (matched := _matched(page)) is not None:
                stated.append(matched)
            return page

    names = [collection.name for collection in side.collections]
    span = f"{first}T00:00:00Z/{last}T23:59:59Z"
    came = set()
    try:
        # Client.open replaces the timeout of the stac_io by its own.
        client = Client.open(str(side.api), stac_io=CountingIO(max_retries=_retry(side)), timeout=side.timeout)
        filters: dict[str, Any] = {}
        if max_cloud is not None and _filters(client):
            filters = {"filter": _below(max_cloud), "filter_lang": "cql2-json"}
        found = client.search(
            collections=names, intersects=_searched(area).json, datetime=span, limit=side.page, **filters
        )
        for item in found.items_as_dicts():
            came.add((str(item.get("collection")), str(item.get("id"))))
            yield item
    except known as error:
        raise SourceError(f"catalog {side.catalog} ({side.api}) does not answer: {_one_line(error)}") from None
    _check_whole(side, stated, len(came))


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
    candidates = (SENSORS[name] for name in collection.sensors)
    return next((sensor for sensor in candidates if _may_be(item, sensor)), None)


def _may_be(item: Mapping[str, Any], sensor: Sensor) -> bool:
    if sensor.keeps_offset is not None and sensor.keeps_offset != _keeps_offset(item):
        return False
    return not sensor.platforms or _platform(item) in sensor.platforms


def _keeps_offset(item: Mapping[str, Any]) -> bool:
    """Whether the numbers of a Sentinel-2 image still hold the offset that came with processing baseline 04.00."""
    properties = item["properties"]
    applied = properties.get("earthsearch:boa_offset_applied", False)
    baseline = properties.get("s2:processing_baseline") or properties.get("processing:version")
    if baseline is None:
        raise SourceError(f"item {item['id']}: states no processing baseline, on which its offset depends")
    return float(baseline) >= 4 and not applied


def _platform(item: Mapping[str, Any]) -> str:
    properties = item["properties"]
    return str(properties.get("platform") or properties.get("eo:platform") or "").lower().replace("_", "-")


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


def _check_coding(
    item: Mapping[str, Any], role: str, asset: Mapping[str, Any], sensor: Sensor, misstated: Sequence[str] = ()
) -> None:
    """What STAC states of scale, offset and fill must be what the sensor's guide says; stating nothing is fine."""
    stated = {**asset, **(asset.get("raster:bands") or asset.get("bands") or [{}])[0]}
    ours_by_key = {"scale": sensor.scale, "offset": sensor.offset, "nodata": sensor.fill}
    for key, ours in ((key, ours) for key, ours in ours_by_key.items() if key not in misstated):
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


def is_allowed(address: str, hosts: tuple[str, ...]) -> bool:
    """Whether an address lies on one of a side's hosts.

    >>> is_allowed("https://a.example/x.tif", ("*.example",)), is_allowed("http://a.example/x.tif", ("*.example",))
    (True, False)
    """
    parts = urlsplit(address)
    return "@" not in parts.netloc and _is_allowed(parts, hosts)


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
        collection = next((c for c in side.collections if item.get("collection") in (c.name, *c.also)), None)
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
    name, properties = str(item["id"]), item["properties"]
    assets: dict[str, str] = {}
    for role in (*bands, *sensor.quality_roles(bands)):
        asset = collection.asset(item, role)
        if asset is None:
            wanted = " or ".join(dict(collection.assets).get(role, (role,)))
            raise SourceError(f"item {name} of catalog {side.catalog} has no asset {wanted!r} ({role})")
        if role in bands:
            _check_coding(item, role, asset, sensor, collection.misstated)
        href = str(asset["href"])
        check_href(href, side, name)
        assets[role] = href if side.signer == "none" else href.split("?")[0]
    stated = {**properties, **(collection.asset(item, bands[0]) or {})}
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
    side: Side,
    area: Geometry,
    first: date,
    last: date,
    longitude: float,
    bands: Sequence[str] = BANDS,
    max_cloud: float | None = None,
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
    max_cloud
        Per cent of cloud beyond which a scene is left out; scenes that state none stay.

    Raises
    ------
    SourceError
        If the catalog does not answer or its answer is not whole, or an item is not what it should be.
    """
    composite = any(SENSORS[sensor].composite_day for c in side.collections for sensor in c.sensors)
    padding = COMPOSITE_PADDING if composite else FINE_PADDING
    searched = first - padding, last + padding
    items = _from_api(side, area, *searched, max_cloud) if side.api else _from_static(side, area)
    scenes = [scene for item in items if (scene := to_scene(item, side, longitude, bands)) is not None]
    # Before twins are dropped, as a server does.
    clear = (s for s in scenes if max_cloud is None or s.cloud is None or s.cloud <= max_cloud)
    found = deduplicate(scene for scene in clear if first <= scene.day <= last)
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
