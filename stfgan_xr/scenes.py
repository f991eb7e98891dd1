"""Scenes: what is understood of a STAC item, which addresses may be opened, and which scenes count.

Nothing here asks a server; :mod:`stfgan_xr.catalog` does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from stfgan_xr.days import solar_day
from stfgan_xr.errors import InputError, SourceError
from stfgan_xr.files import Folder, as_folder, to_json
from stfgan_xr.sensors import BANDS, SENSORS, Sensor

_COMPOSITE_DAY = re.compile(r"\.A(\d{4})(\d{3})\.")
ITEMS = "items.json"
_PRODUCTION = re.compile(r"\.(\d{13})$")
_UNSAFE = re.compile(r"[\x00-\x20\\\"'<>|^`{}]")


def one_line(error: BaseException) -> str:
    """The first line of an error, without the queries of addresses."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\?[^\s'\"]*", "", lines[0])[:300]


def _file_name(asset: Mapping[str, Any]) -> str:
    return urlsplit(str(asset["href"])).path.rpartition("/")[2]


def is_hdf5(href: str) -> bool:
    """Whether an address is that of an HDF5 file, by its name."""
    return urlsplit(href).path.lower().endswith((".h5", ".hdf5"))


TOKENS: Mapping[str, str] = {"EARTHDATA_TOKEN": "*.earthdatacloud.nasa.gov"}
"""Environment variables that a catalog may name, and the hosts that are sent them: a TOML cannot have others sent."""


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
        Names of the asset of each role (band or quality layer); of several the first that an item has. A name with
        ``*`` is a pattern of the file's name, for servers that name assets by files.
    also
        Names that other servers give to the same collection.
    since
        First year of its imagery.
    until
        Last day of its imagery, as announced; None: it goes on.
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
    until: date | None = None
    misstated: tuple[str, ...] = ()
    unreadable: str = ""

    def asset(self, item: Mapping[str, Any], role: str) -> Mapping[str, Any] | None:
        """The asset of a role, or None."""
        for name in dict(self.assets).get(role, ()):
            for key, asset in item["assets"].items():
                if key == name or ("*" in name and fnmatchcase(_file_name(asset), name)):
                    found: Mapping[str, Any] = asset
                    return found
        return None


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
    login_host
        Where its servers send those that are not logged in: it takes a name and a password of ``~/.netrc``. One of
        the hosts; empty: nowhere.
    token
        Environment variable of a bearer token that they take instead, one of :data:`TOKENS`; empty: none.
    successor
        Of a coarse side: name or path of the catalog whose coarse side goes on where the imagery of this one ends.
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
    successor: str = ""
    login_host: str = ""
    token: str = ""

    @property
    def until(self) -> date | None:
        """Last day of its imagery, as announced; None: some of its collections goes on."""
        ends = [collection.until for collection in self.collections]
        return None if None in ends else max(day for day in ends if day)

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
    version
        What tells two versions of the same files apart, if stated: their checksums, else the time of the last change.
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
    version: str = ""

    def href(self, role: str) -> str:
        """Address of a band or quality layer."""
        return dict(self.assets)[role]


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
            has = ", ".join(sorted(map(str, item["assets"])))[:200] or "none"
            raise SourceError(f"item {name} of catalog {side.catalog} has no asset {wanted!r} ({role}); it has {has}")
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
        _version(item, [collection.asset(item, role) or {} for role in assets]),
    )  # fmt: skip


def _version(item: Mapping[str, Any], assets: Sequence[Mapping[str, Any]]) -> str:
    sums = [str(asset["file:checksum"]) for asset in assets if asset.get("file:checksum")]
    if len(sums) == len(assets):
        return hashlib.sha256(" ".join(sums).encode()).hexdigest()
    return str(item["properties"].get("updated") or "")


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


def save_scenes(folder: str | Path | Folder, fine: Sequence[Scene], coarse: Sequence[Scene]) -> None:
    """Write the ``items.json`` of a run folder: the same scenes give the same bytes."""
    as_folder(folder).write_json(
        ITEMS, {name: [_plain(s) for s in scenes] for name, scenes in (("fine", fine), ("coarse", coarse))}
    )


def digest(scenes: Iterable[Scene], treated: str = "") -> str:
    """What changes if some scenes, or what is done to them, become others: from their metadata, no pixel is read."""
    ordered = sorted(scenes, key=lambda scene: (scene.collection, scene.id))
    return hashlib.sha256(to_json([[_plain(scene) for scene in ordered], treated])).hexdigest()[:16]


def _plain(scene: Scene) -> dict[str, Any]:
    return asdict(scene) | {"day": scene.day.isoformat(), "assets": dict(scene.assets)}


def _from_plain(document: dict[str, Any]) -> Scene:
    lists = {key: tuple(document[key]) if document[key] is not None else None for key in ("shape", "transform")}
    day, assets = date.fromisoformat(document["day"]), tuple(sorted(document["assets"].items()))
    return Scene(**{**document, **lists, "day": day, "assets": assets})


def read_scenes(folder: str | Path | Folder) -> tuple[tuple[Scene, ...], tuple[Scene, ...]] | None:
    """The scenes of a run folder's ``items.json``, fine and coarse, or None if it has none.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    content = as_folder(folder).read(ITEMS)
    if content is None:
        return None
    try:
        document = json.loads(content)
        fine, coarse = (tuple(_from_plain(scene) for scene in document[side]) for side in ("fine", "coarse"))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder}/{ITEMS} is damaged ({one_line(error)}); choose another --out or add --overwrite"
        ) from None
    return fine, coarse
