"""Catalogs: where imagery is found. The one file that searches STAC APIs and static catalogs."""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from odc.geo.geom import Geometry, box

from stfgan_xr.aoi import parts
from stfgan_xr.errors import InputError, SourceError
from stfgan_xr.scenes import TOKENS, Collection, Scene, Side, deduplicate, is_allowed, one_line, to_scene
from stfgan_xr.sensors import BANDS, SENSORS

if TYPE_CHECKING:
    import pystac
    from pystac_client import Client
    from urllib3 import Retry

log = logging.getLogger(__name__)

LARGEST_TOML = 2**20
LARGEST_AREA = 40_000
"""Characters of an area sent to a server; larger ones are simplified, outwards."""
ESTIMATED = 100_000
"""Items from which on a stated number may be an estimate: pgstac's context_estimated_count, unless a server sets it."""
FINE_PADDING, COMPOSITE_PADDING = timedelta(days=1), timedelta(days=8)
"""Searched beyond the range asked for: solar days differ from UTC days, composites from their ``datetime``."""
SIGNERS = ("none", "planetary-computer")


@dataclass(frozen=True)
class Catalog:
    """Where the two sides of a fusion come from; ``aoi`` and ``truth`` are files beside a catalog that has them."""

    name: str
    fine: Side | None
    coarse: Side | None
    folder: Path
    aoi: Path | None = None
    truth: Path | None = None


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
    "api", "static", "signer", "hosts", "timeout", "retries", "page", "collections", "default", "login", "successor",
    "login_host", "token",
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
        _value(table, "login", str, "none", where), _successor(table, key, where, folder),
        _login_host(table, where), _token(table, where),
    )  # fmt: skip


def _login_host(table: Mapping[str, Any], where: str) -> str:
    host, hosts = str(_value(table, "login_host", str, "", where)), _texts(table, "hosts", where)
    if host and not any(is_allowed(f"{scheme}://{host}", hosts) for scheme in ("https", "http")):
        raise InputError(f"--catalog {where}: login_host {host!r} must be among its hosts")
    return host.lower()


def _token(table: Mapping[str, Any], where: str) -> str:
    token = str(_value(table, "token", str, "", where))
    if token and token not in TOKENS:
        raise InputError(f"--catalog {where}: token {token!r} is unknown; choose {' or '.join(TOKENS)}")
    return token


def _successor(table: Mapping[str, Any], key: str, where: str, folder: Path) -> str:
    """The catalog that goes on; a path is one beside the TOML that names it."""
    named = str(_value(table, "successor", str, "", where))
    if named and key == "fine":
        raise InputError(f"--catalog {where}: successor is for [coarse]")
    return str(folder / named) if named.endswith(".toml") else named


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
    since = _value(table, "since", int, None, where) if "since" in table else None
    until = _value(table, "until", date, None, where) if "until" in table else None
    return Collection(
        name, sensors, tuple((role, tuple(asset)) for role, asset in names.items()), _texts(table, "also", where),
        since, until, _texts(table, "misstated", where), _value(table, "unreadable", str, "", where),
    )  # fmt: skip


# ---------------------------------------------------------------- searching


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


def _from_api(
    side: Side, area: Geometry, first: date, last: date, max_cloud: float | None = None
) -> Iterator[dict[str, Any]]:
    """The items of an API, which is asked a second time where fewer come than it states.

    A number may be wrong without a word of it: pgstac keeps a count for a day, and with its setting context = auto it
    states the planner's estimate from :data:`ESTIMATED` on. The second question has other pages, so that what was lost
    at their borders comes, and another end by less than a second, so that it is counted anew. What came then is whole
    if it is as much as stated, or if only an estimate says otherwise and both answers hold the same.
    """
    seen: set[tuple[str, str]] = set()
    spans = f"{first}T00:00:00Z/{last}T23:59:59Z", f"{first}T00:00:00Z/{last}T23:59:59.5Z"
    for again, (page, span) in enumerate(zip((side.page, max(side.page // 2, 1)), spans, strict=True)):
        stated: list[int] = []
        before = len(seen)
        for item in _answer(side, area, span, page, max_cloud, stated):
            key = (str(item.get("collection")), str(item.get("id")))
            if not again or key not in seen:
                yield item
            seen.add(key)
        if not stated or len(seen) >= min(stated):  # items may be added or deleted while it is read
            return
    which = f"catalog {side.catalog} ({side.api})"
    if min(stated) < ESTIMATED or len(seen) > before:
        raise SourceError(
            f"{which}: {min(stated)} items match, but only {len(seen)} came, also when asked again; "
            "run the same command later, or set another page in the catalog's TOML"
        )
    log.warning("%s states %d items, %d came twice: taken as an estimate", which, min(stated), len(seen))


def _answer(
    side: Side, area: Geometry, span: str, page: int, max_cloud: float | None, stated: list[int]
) -> Iterator[dict[str, Any]]:
    """The items of all pages of a search; the numbers that the pages state are added to ``stated``."""
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

    class CountingIO(StacApiIO):
        # The pages of a search end before one without items, whatever it states.
        def read_json(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            document = super().read_json(*arguments, **options)
            if (matched := _matched(document)) is not None:
                stated.append(matched)
            return document

    names = [collection.name for collection in side.collections]
    try:
        # Client.open replaces the timeout of the stac_io by its own.
        client = Client.open(str(side.api), stac_io=CountingIO(max_retries=_retry(side)), timeout=side.timeout)
        filters: dict[str, Any] = {}
        if max_cloud is not None and _filters(client):
            filters = {"filter": _below(max_cloud), "filter_lang": "cql2-json"}
        found = client.search(collections=names, intersects=_searched(area).json, datetime=span, limit=page, **filters)
        yield from found.items_as_dicts()
    except known as error:
        raise SourceError(f"catalog {side.catalog} ({side.api}) does not answer: {one_line(error)}") from None


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
        reason = one_line(error.__cause__ or error)  # pystac says only that a link does not resolve
        raise SourceError(f"catalog {side.catalog}: {side.static} cannot be read: {reason}") from None


def _absolute(item: dict[str, Any], base: str) -> dict[str, Any]:
    for asset in item["assets"].values():
        href = str(asset["href"])
        if not urlsplit(href).scheme:
            asset["href"] = urljoin(base, href) if urlsplit(base).scheme else str((Path(base).parent / href).resolve())
    return item


def _overlaps(item: Mapping[str, Any], area: Geometry) -> bool:
    """Whether the bounds of an item and of a part of an area meet; items may cross the antimeridian (west > east)."""
    numbers = item["bbox"]
    half = len(numbers) // 2
    west, south, east, north = numbers[0], numbers[1], numbers[half], numbers[half + 1]
    for left, bottom, right, top in (part.bounds for part in parts(area)):
        sides = west <= right, east >= left
        if (any(sides) if west > east else all(sides)) and south <= top and north >= bottom:
            return True
    return False


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
