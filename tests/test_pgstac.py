"""The demo world behind a real STAC API, pgstac: the same items, the same cubes, filters that the server applies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from odc.geo.geom import Geometry
from shapely.geometry import shape
from shapely.ops import unary_union

from stfgan_xr import catalog as subject
from stfgan_xr import store
from stfgan_xr.aoi import read_aoi
from stfgan_xr.catalog import open_catalog, search
from stfgan_xr.scenes import Scene, Side
from tests.range_server import Server, serving
from tests.test_catalog import demo, demo_items, found_in

pytestmark = pytest.mark.skipif(
    not os.environ.get("STFGAN_XR_PGSTAC"),
    reason="STFGAN_XR_PGSTAC names no STAC API; tests/servers/pgstac.sh start FOLDER starts one and prints its address",
)

COLLECTIONS = ("landsat-c2-l2", "modis-43A4-061")
UNSTATED = "landsat-unstated"
"""Copies of items, of which some state no cloud cover."""
YEAR = date(2020, 1, 1), date(2020, 12, 31)


def send(method: str, url: str, document: Any = None) -> Any:
    answer = requests.request(method, url, json=document, timeout=60)
    assert answer.ok or (method == "DELETE" and answer.status_code == 404), f"{url}: {answer.text}"
    return answer.json()


def load(api: str, collection: dict[str, Any], items: list[dict[str, Any]]) -> None:
    """Put a collection and its items in the place of what a former run left."""
    name = collection["id"]
    send("DELETE", f"{api}/collections/{name}")
    send("POST", f"{api}/collections", collection | {"links": []})
    documents = {item["id"]: item | {"links": [], "collection": name} for item in items}
    send("POST", f"{api}/collections/{name}/bulk_items", {"items": documents, "method": "insert"})


def remote(folder: Path, server: Server, name: str) -> list[dict[str, Any]]:
    """Items whose assets lie on a server."""
    items = demo_items(folder, name)
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = server.url(f"ok/{name}/{Path(asset['href']).name}")
    return items


def unstated(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Four items: little cloud, much cloud, none stated, null stated."""
    made = json.loads(json.dumps(items[:4]))
    for item, name in zip(made, ("clear", "cloudy", "missing", "null"), strict=True):
        item["id"] = name
        item["properties"].pop("eo:cloud_cover", None)
        item["properties"] |= {"clear": {"eo:cloud_cover": 4.5}, "cloudy": {"eo:cloud_cover": 90}}.get(name, {})
        item["properties"] |= {"eo:cloud_cover": None} if name == "null" else {}
        item["properties"]["landsat:wrs_path"] = str(100 + len(name))
    return list(made)


@pytest.fixture(scope="module")
def files(demo_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(demo_world, tmp_path_factory.mktemp("served") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def api(demo_world: Path, files: Server) -> str:
    """The address of the API, which holds the demo world."""
    address = os.environ["STFGAN_XR_PGSTAC"].rstrip("/")
    for name in COLLECTIONS:
        collection = json.loads((demo_world / name / "collection.json").read_text())
        items = remote(demo_world, files, name)
        load(address, collection, items)
        if name == COLLECTIONS[0]:
            load(address, collection | {"id": UNSTATED}, unstated(items))
    return address


@pytest.fixture(scope="module")
def toml(demo_world: Path, api: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's catalog: the demo's, read through the API three items at a time."""
    text = (demo_world / "catalog.toml").read_text(encoding="utf-8")
    text = text.replace('"aoi.geojson"', f'"{demo_world / "aoi.geojson"}"').replace('truth = "world.json"\n', "")
    text = text.replace('static = "catalog.json"', f'api = "{api}"\nhosts = ["http://127.0.0.1"]\npage = 3')
    path = tmp_path_factory.mktemp("catalog") / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def side_of(toml: Path, kind: str) -> Side:
    side = getattr(open_catalog(str(toml)), kind)
    assert isinstance(side, Side)
    return side


def at_home(scenes: tuple[Scene, ...], folder: Path, server: Server) -> list[Scene]:
    """Scenes as the static catalog gives them: their assets are files."""
    base = server.url("ok")
    return [
        replace(scene, assets=tuple((role, href.replace(base, str(folder))) for role, href in scene.assets))
        for scene in scenes
    ]


def fuse(toml: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.fuse", "--catalog", str(toml), "--dates", "2020-03-01/2020-03-08"]
    command += ["--method", "delta", "--out", str(out), "--no-report", *options]
    return subprocess.run(command, check=False, timeout=100, capture_output=True, text=True)


def digests(out: Path) -> list[str]:
    return [store.content_digest(out / name) for name in ("landsat.zarr", "modis.zarr", "fused.zarr")]


def test_a_run_through_the_api_gives_the_content_of_the_static_catalog(
    toml: Path, finished: Path, files: Server, tmp_path: Path
) -> None:
    done = fuse(toml, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "run") == digests(finished)
    assert files.requests()


@pytest.mark.parametrize("kind", ["fine", "coarse"])
@pytest.mark.parametrize("page", [1, 3, 250])
def test_pages_of_any_size_give_the_scenes_of_the_static_catalog(
    toml: Path, demo_world: Path, files: Server, kind: str, page: int
) -> None:
    found = found_in(demo_world, replace(side_of(toml, kind), page=page))
    assert at_home(found, demo_world, files) == list(found_in(demo_world, getattr(demo(demo_world), kind)))
    assert found


def test_the_server_pages_and_states_how_many_items_match(api: str, demo_world: Path) -> None:
    answer = send("POST", f"{api}/search", {"collections": [COLLECTIONS[0]], "limit": 3})
    assert len(answer["features"]) == 3
    assert subject._matched(answer) == len(demo_items(demo_world, COLLECTIONS[0]))
    assert "next" in {link["rel"] for link in answer["links"]}


def test_an_area_elsewhere_finds_nothing(toml: Path) -> None:
    for kind in ("fine", "coarse"):
        assert search(side_of(toml, kind), read_aoi("0,0,1,1"), *YEAR, 0.5) == ()


def test_a_triangle_that_touches_only_one_scene_finds_only_it(toml: Path, demo_world: Path) -> None:
    footprints = {item["id"]: shape(item["geometry"]) for item in demo_items(demo_world, COLLECTIONS[0])}
    alone = {
        name: part
        for name, own in footprints.items()
        if not (part := own - unary_union([other for key, other in footprints.items() if key != name])).is_empty
    }
    name, part = max(alone.items(), key=lambda pair: float(pair[1].area))
    middle = part.representative_point()
    reach = min(1e-5, 0.5 * middle.distance(part.boundary))
    corners = [(middle.x - reach, middle.y), (middle.x + reach, middle.y), (middle.x, middle.y + reach)]
    triangle = Geometry({"type": "Polygon", "coordinates": [[*corners, corners[0]]]}, "EPSG:4326")
    assert [scene.id for scene in search(side_of(toml, "fine"), triangle, *YEAR, 114.05)] == [name]


@pytest.mark.parametrize("percent", [0, 5, 7.2, 100])
def test_the_server_leaves_out_what_is_cloudier(toml: Path, demo_world: Path, files: Server, percent: float) -> None:
    area, side = read_aoi(demo_world / "aoi.geojson"), side_of(toml, "fine")
    came = {item["id"] for item in subject._from_api(side, area, *YEAR, max_cloud=percent)}
    items = demo_items(demo_world, COLLECTIONS[0])
    assert came == {item["id"] for item in items if item["properties"]["eo:cloud_cover"] <= percent}
    static = demo(demo_world).fine
    assert static is not None
    found, expected = (search(s, area, *YEAR, 114.05, max_cloud=percent) for s in (side, static))
    assert at_home(found, demo_world, files) == list(expected)


def test_the_server_keeps_what_states_no_cloud(toml: Path, demo_world: Path) -> None:
    side = side_of(toml, "fine")
    side = replace(side, collections=(replace(side.collections[0], name=UNSTATED),))
    area = read_aoi(demo_world / "aoi.geojson")
    came = {item["id"] for item in subject._from_api(side, area, *YEAR, max_cloud=10)}
    assert came == {"clear", "missing", "null"}
    found = {scene.id: scene.cloud for scene in search(side, area, *YEAR, 114.05, max_cloud=10)}
    assert found == {"clear": 4.5, "missing": None, "null": None}


def test_a_run_with_less_cloud_gives_the_content_of_the_static_catalog(
    toml: Path, demo_world: Path, tmp_path: Path
) -> None:
    for name, source in (("api", toml), ("static", demo_world / "catalog.toml")):
        little = ("--dates", "2020-03-01", "--bracket-days", "16", "--bands", "red,nir")
        done = fuse(source, tmp_path / name, "--max-cloud", "5", *little)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / name / "run.json").read_text())["request"]["max_cloud"] == 5
        scenes = json.loads((tmp_path / name / "items.json").read_text())["fine"]
        assert scenes
        assert max(scene["cloud"] for scene in scenes) <= 5
    assert digests(tmp_path / "api") == digests(tmp_path / "static")


def test_days_outside_the_range_do_not_come(toml: Path, demo_world: Path) -> None:
    area, day = read_aoi(demo_world / "aoi.geojson"), date(2020, 3, 1)
    came = {item["properties"]["datetime"][:10] for item in subject._from_api(side_of(toml, "fine"), area, day, day)}
    assert came == {day.isoformat()}
    near = {day + timedelta(days=n) for n in (-1, 0, 1)}
    assert {scene.day for scene in search(side_of(toml, "fine"), area, min(near), max(near), 114.05)} <= near


def test_a_count_that_the_server_keeps_after_a_deletion_is_counted_anew(
    toml: Path, api: str, demo_world: Path, files: Server
) -> None:
    name = "landsat-recounted"
    collection = json.loads((demo_world / COLLECTIONS[0] / "collection.json").read_text())
    load(api, collection | {"id": name}, remote(demo_world, files, COLLECTIONS[0]))
    side = side_of(toml, "fine")
    side = replace(side, collections=(replace(side.collections[0], name=name),))
    area = read_aoi(demo_world / "aoi.geojson")
    before = {item["id"] for item in subject._from_api(side, area, *YEAR)}
    gone = min(before)
    send("DELETE", f"{api}/collections/{name}/items/{gone}")
    query = {"collections": [name], "intersects": area.json, "datetime": "2020-01-01T00:00:00Z/2020-12-31T23:59:59Z"}
    assert subject._matched(send("POST", f"{api}/search", query)) == len(before)
    assert {item["id"] for item in subject._from_api(side, area, *YEAR)} == before - {gone}
