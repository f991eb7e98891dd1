"""Exchanges recorded with real STAC APIs, replayed by a server on loopback: what was recorded comes out again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pystac_client import Client, ItemSearch

from stfgan_xr.aoi import read_aoi
from stfgan_xr.catalog import open_catalog, search
from tests.test_catalog import Api, served

PC = "https://planetarycomputer.microsoft.com/api/stac/v1"
EARTH_SEARCH = "https://earth-search.aws.element84.com/v1"
LONGMONT = {"type": "Point", "coordinates": [-105.1019, 40.1672]}
CHATHAM = [
    [-177.0002548, -45.2413329],
    [-176.7533258, -45.2410666],
    [-176.4223072, -44.2514167],
    [-177.0002505, -44.2528774],
]


def recorded(folder: Path, name: str) -> list[dict[str, Any]]:
    """The exchanges of a file, in their order: request and response."""
    with gzip.open(folder / "stac" / "exchanges" / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        found: list[dict[str, Any]] = json.load(file)
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".json.gz") for path in (folder / "stac" / "exchanges").glob("*.json.gz"))


def items(exchanges: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items of all pages."""
    return [item for exchange in exchanges for item in exchange["response"]["json"].get("features", ())]


def without_links(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Links lead to the server that replays."""
    return [{key: value for key, value in item.items() if key != "links"} for item in found]


def local(document: Any, url: str) -> Any:
    """A document whose links lead to another server; addresses of assets stay."""
    if isinstance(document, list):
        return [local(part, url) for part in document]
    if not isinstance(document, dict):
        return document
    made = {key: local(value, url) for key, value in document.items()}
    for link in made.get("links", ()):
        link["href"] = link["href"].replace("https://", f"{url}/")
    return made


class Replay:
    """Answers what was recorded, once the request is the recorded one to the last key; anything else is not there."""

    def __init__(self, exchanges: Sequence[dict[str, Any]]) -> None:
        self.answers = {self._key(**e["request"]): e["response"] for e in exchanges}
        self.url, self.unknown = "", list[str]()

    @staticmethod
    def _key(method: str, url: str, body: Any) -> str:
        # A search without a query is the landing page, with or without its slash.
        return f"{method} {url.removeprefix('https://').rstrip('/')} {json.dumps(body, sort_keys=True)}"

    def __call__(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        key = self._key(method, path.removeprefix("/"), json.loads(body) if body else None)
        if key not in self.answers:
            self.unknown.append(key)
            return 404, {"description": "not recorded"}
        answer = self.answers[key]
        return answer["status"]["code"], local(answer["json"], self.url)

    def at(self, address: str) -> str:
        return address.replace("https://", f"{self.url}/")


@pytest.fixture(scope="module")
def replay(shared_data: Path) -> Iterator[Replay]:
    answer = Replay([exchange for name in names(shared_data) for exchange in recorded(shared_data, name)])
    with served(answer) as (url, _):
        answer.url = url
        yield answer
    assert not answer.unknown


def test_every_recorded_file_is_replayed_below(shared_data: Path) -> None:
    collections = {f"pc_collection_and_item_{name}" for name in COLLECTIONS}
    searches = {"earthsearch_multi_collections", "pc_search_paging", "pc_search_landsat-8-c2-l2_intersects_page"}
    assert set(names(shared_data)) == collections | searches | {"pc_fallback_landsat-c2-l2_items"}


COLLECTIONS = ("landsat-c2-l2", "modis-09A1-061", "modis-43A4-061")


@pytest.mark.parametrize("name", COLLECTIONS)
def test_the_recorded_item_of_a_collection_comes_out(replay: Replay, shared_data: Path, name: str) -> None:
    expected = items(recorded(shared_data, f"pc_collection_and_item_{name}"))
    found = ItemSearch(replay.at(f"{PC}/collections/{name}/items"), method="GET", limit=1, max_items=1)
    assert without_links(list(found.items_as_dicts())) == without_links(expected)
    assert len(expected) == 1


def test_the_items_of_a_collection_come_out(replay: Replay, shared_data: Path) -> None:
    expected = items(recorded(shared_data, "pc_fallback_landsat-c2-l2_items"))
    client = Client.open(replay.at(f"{PC}/"))
    found = islice(client.get_collection("landsat-c2-l2").get_items(), len(expected))
    assert [item.id for item in found] == [item["id"] for item in expected]
    assert len(expected) == 10


def test_the_pages_of_the_planetary_computer_come_out(replay: Replay, shared_data: Path) -> None:
    first, second = recorded(shared_data, "pc_search_paging")
    client = Client.open(replay.at(f"{PC}/"))
    found = client.search(collections=["naip"], bbox=(-73.21, 43.99, -73.12, 44.05), limit=10, max_items=20)
    pages = [page["features"] for page in found.pages_as_dicts()]
    assert [without_links(page) for page in pages] == [without_links(items([e])) for e in (first, second)]
    assert without_links(list(found.items_as_dicts())) == without_links(items([first, second]))
    assert len({item["id"] for page in pages for item in page}) == 20


def test_a_page_of_250_items_comes_out(replay: Replay, shared_data: Path) -> None:
    expected = items(recorded(shared_data, "pc_search_landsat-8-c2-l2_intersects_page"))
    area = {"type": "Polygon", "coordinates": [[*CHATHAM, CHATHAM[0]]]}
    client = Client.open(replay.at(PC))
    found = client.search(collections=["landsat-8-c2-l2"], intersects=area, max_items=250)
    assert without_links(list(found.items_as_dicts())) == without_links(expected)
    assert len(expected) == 250


def test_the_items_of_two_collections_come_out_and_the_empty_page_ends_them(replay: Replay, shared_data: Path) -> None:
    pages = recorded(shared_data, "earthsearch_multi_collections")
    both = ["sentinel-2-l2a", "landsat-c2-l2"]
    found = ItemSearch(
        replay.at(f"{EARTH_SEARCH}/search"), collections=both, intersects=LONGMONT, datetime="2023-10-08"
    )
    assert without_links(list(found.items_as_dicts())) == without_links(items(pages))
    assert pages[0]["response"]["json"]["numberMatched"] == 2
    assert items(pages[1:]) == []


def test_the_recorded_pages_of_earth_search_are_a_whole_answer_to_our_search(shared_data: Path) -> None:
    first, last = recorded(shared_data, "earthsearch_multi_collections")
    landing, asked = Api([]), list[dict[str, Any]]()

    def answer(method: str, path: str, body: bytes) -> tuple[int, Any]:
        if method == "GET":
            return 200, landing.landing()
        asked.append(json.loads(body))
        exchange = last if "next" in asked[-1] else first
        return 200, local(exchange["response"]["json"], landing.url)

    side = open_catalog("earth-search").fine
    assert side is not None
    landsat = tuple(collection for collection in side.collections if collection.name == "landsat-c2-l2")
    with served(answer) as (url, _):
        landing.url = url
        day, here = date(2023, 10, 8), replace(side, api=url, retries=0, collections=landsat)
        found = search(here, read_aoi("-105.2,40.1,-105.0,40.2"), day, day, -105.1)
    assert [scene.id for scene in found] == ["LC08_L2SP_033032_20231008_02_T1"]
    assert [query.get("next") for query in asked] == [None, last["request"]["body"]["next"]]
