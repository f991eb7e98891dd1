"""Items to scenes: recorded items of real servers, the demo world's static catalog, and servers on loopback."""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geom import Geometry

from stfgan_xr import catalog as subject
from stfgan_xr.aoi import middle, read_aoi
from stfgan_xr.catalog import Catalog, open_catalog, search
from stfgan_xr.errors import InputError, SourceError
from stfgan_xr.scenes import Scene, Side, check_href, deduplicate, read_scenes, save_scenes, to_scene
from stfgan_xr.sensors import BANDS

RECORDED = Path("stac") / "planetarycomputer.microsoft.com"
MODIS_NUMBER = {"blue": 3, "green": 4, "red": 1, "nir": 2, "swir1": 6, "swir2": 7}
LANDSAT_ASSET = {"blue": "blue", "green": "green", "red": "red", "nir": "nir08", "swir1": "swir16", "swir2": "swir22"}


def pc_side(kind: str) -> Side:
    found = getattr(open_catalog("planetary-computer"), kind)
    assert isinstance(found, Side)
    return found


def landsat_item(**properties: Any) -> dict[str, Any]:
    """An item as the Planetary Computer writes it."""
    coded = [{"scale": 2.75e-05, "nodata": 0, "offset": -0.2, "data_type": "uint16"}]
    base = "https://landsateuwest.blob.core.windows.net/landsat-c2/LC08"
    assets: dict[str, Any] = {
        name: {"href": f"{base}_{name}.TIF", "raster:bands": coded} for name in LANDSAT_ASSET.values()
    }
    assets |= {name: {"href": f"{base}_{name}.TIF"} for name in ("qa_pixel", "qa_radsat")}
    return {
        "type": "Feature", "id": "LC08_L2SP_121044_20200301_02_T1", "collection": "landsat-c2-l2",
        "bbox": [113.0, 22.0, 115.0, 24.0], "assets": assets,
        "properties": {"datetime": "2020-03-01T02:52:08Z", "platform": "landsat-8"} | properties,
    }  # fmt: skip


def scene_of(item: dict[str, Any], side: Side, bands: tuple[str, ...] = BANDS) -> Scene:
    west, east = item["bbox"][0], item["bbox"][2]
    scene = to_scene(item, side, (west + east) / 2, bands)
    assert scene is not None
    return scene


# ---------------------------------------------------------------- recorded items


def recorded(folder: Path, collection: str) -> list[dict[str, Any]]:
    paths = sorted(p for p in (folder / RECORDED / collection).glob("*.json") if p.name != "collection.json")
    assert paths
    return [json.loads(path.read_text()) for path in paths]


def boulder(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "stac/series/pc_landsat-c2-l2_boulder_series.json").read_text())[
        "features"
    ]
    return found


def test_recorded_landsat_items_become_scenes(shared_data: Path) -> None:
    for item in recorded(shared_data, "landsat-c2-l2") + boulder(shared_data):
        scene = scene_of(item, pc_side("fine"))
        assert (scene.id, scene.collection, scene.sensor) == (item["id"], "landsat-c2-l2", "landsat-oli")
        assert scene.tier == item["id"][-2:]
        assert scene.place == f"{item['id'][10:13]}_{item['id'][13:16]}"
        assert scene.cloud == item["properties"]["eo:cloud_cover"]
        assert {role for role, _ in scene.assets} == {*BANDS, "qa_pixel", "qa_radsat"}
        assert scene.platform == item["properties"]["platform"]
        for role, href in scene.assets:
            assert href == item["assets"][LANDSAT_ASSET.get(role, role)]["href"]
            assert "?" not in href


def test_the_boulder_series_has_43_days_which_are_those_of_the_ids(shared_data: Path) -> None:
    # Boulder is passed before noon, at 17 h UTC: the solar day is the UTC day, which is that of the id.
    scenes = [scene_of(item, pc_side("fine")) for item in boulder(shared_data)]
    assert len({scene.day for scene in scenes}) == 43
    assert all(scene.day.strftime("%Y%m%d") == scene.id.split("_")[3] for scene in scenes)
    assert len(deduplicate(scenes)) == 43


def test_recorded_scenes_over_australia_are_dated_by_their_solar_day(shared_data: Path) -> None:
    items = [item for item in recorded(shared_data, "landsat-c2-l2") if item["properties"]["datetime"][11:13] == "23"]
    assert items
    for item in items:
        scene = scene_of(item, pc_side("fine"))
        assert scene.day == date.fromisoformat(item["properties"]["datetime"][:10]) + timedelta(days=1)


def test_the_recorded_modis_item_has_the_day_of_its_id_not_of_its_datetime(shared_data: Path) -> None:
    for item in recorded(shared_data, "modis-43A4-061"):
        scene = scene_of(item, pc_side("coarse"))
        assert scene.sensor == "mcd43a4"
        assert scene.day.strftime("%Y%j") == item["id"].split(".")[1][1:]
        assert {role for role, _ in scene.assets} == {*BANDS, *(f"quality_{band}" for band in BANDS)}
        for band, number in MODIS_NUMBER.items():
            assert scene.href(band).endswith(f"_Nadir_Reflectance_Band{number}.tif")
            assert scene.href(f"quality_{band}").endswith(f"_BRDF_Albedo_Band_Mandatory_Quality_Band{number}.tif")


def test_bands_that_are_not_asked_for_are_not_looked_for(shared_data: Path) -> None:
    item = recorded(shared_data, "modis-43A4-061")[0]
    scene = scene_of(item, pc_side("coarse"), ("nir", "red"))
    assert {role for role, _ in scene.assets} == {"nir", "red", "quality_nir", "quality_red"}


def test_items_of_other_collections_are_no_scenes(shared_data: Path) -> None:
    for item in recorded(shared_data, "modis-09A1-061") + recorded(shared_data, "landsat-c2-l2"):
        assert to_scene(item, pc_side("coarse").select(None, BANDS), 0.0, BANDS) is None


# ---------------------------------------------------------------- what an item may say


@pytest.mark.parametrize(
    ("platform", "sensor"),
    [
        ("landsat-8", "landsat-oli"),
        ("LANDSAT-9", "landsat-oli"),
        ("landsat-7", "landsat-tm"),
        ("landsat-5", "landsat-tm"),
    ],
)
def test_the_platform_decides_the_sensor(platform: str, sensor: str) -> None:
    assert scene_of(landsat_item(platform=platform), pc_side("fine")).sensor == sensor


@pytest.mark.parametrize("platform", ["landsat-1", "sentinel-2a", "", None])
def test_items_of_other_platforms_are_no_scenes(platform: str | None) -> None:
    assert to_scene(landsat_item(platform=platform), pc_side("fine"), 114.0, BANDS) is None


@pytest.mark.parametrize(("key", "value"), [("scale", 1e-4), ("offset", 0.0), ("nodata", -9999)])
@pytest.mark.parametrize("where", ["raster:bands", "bands"])
def test_another_coding_is_refused_with_both_values_named(key: str, value: float, where: str) -> None:
    item = landsat_item()
    stated = item["assets"]["nir08"].pop("raster:bands")[0] | {key: value}
    item["assets"]["nir08"][where] = [stated]
    with pytest.raises(SourceError, match=key) as caught:
        scene_of(item, pc_side("fine"))
    ours = {"scale": "2.75e-05", "offset": "-0.2", "nodata": "0"}[key]
    assert item["id"] in str(caught.value)
    assert f"{value} there, {ours} for landsat-oli" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_coding_may_be_stated_as_stac_1_1_does_or_not_at_all() -> None:
    item = landsat_item()
    item["assets"]["red"] = {
        "href": item["assets"]["red"]["href"],
        "bands": [{"raster:scale": 2.75e-5, "raster:offset": -0.2}],
    }
    item["assets"]["blue"].pop("raster:bands")
    item["assets"]["green"]["raster:bands"] = []
    scene_of(item, pc_side("fine"))
    item["assets"]["red"]["bands"][0]["raster:scale"] = 1.0
    with pytest.raises(SourceError, match="scale"):
        scene_of(item, pc_side("fine"))


@pytest.mark.parametrize("asset", ["nir08", "qa_pixel", "qa_radsat"])
def test_a_missing_asset_is_refused(asset: str) -> None:
    item = landsat_item()
    del item["assets"][asset]
    with pytest.raises(SourceError, match=f"no asset '{asset}'") as caught:
        scene_of(item, pc_side("fine"))
    assert item["id"] in str(caught.value)


@pytest.mark.parametrize(
    "href",
    [
        "https://example.org/red.tif",
        "https://landsateuwest.blob.core.windows.net.example.org/red.tif",
        "https://user:landsateuwest.blob.core.windows.net@example.org/red.tif",
        "https://example.org/landsateuwest.blob.core.windows.net/red.tif",
        "s3://somewhere/red.tif",
        "http://127.0.0.1/red.tif",
        "https:///red.tif",
        "ftp://landsateuwest.blob.core.windows.net/red.tif",
        "file:///etc/passwd",
        "/etc/passwd",
        "/vsicurl/https://example.org/red.tif",
        "../red.tif",
        "red.tif",
    ],
)
def test_an_asset_on_another_host_is_refused(href: str) -> None:
    item = landsat_item()
    item["assets"]["red"]["href"] = href
    with pytest.raises(SourceError, match=item["id"]):
        scene_of(item, pc_side("fine"))


def test_a_refused_address_is_named_without_its_query() -> None:
    item = landsat_item()
    item["assets"]["red"]["href"] = "ftp://example.org/red.tif?sig=secret"
    with pytest.raises(SourceError) as caught:
        scene_of(item, pc_side("fine"))
    assert "secret" not in str(caught.value)


def test_local_assets_must_lie_below_the_catalog(tmp_path: Path) -> None:
    root = tmp_path / "world"
    root.mkdir()
    (tmp_path / "other").mkdir()
    side = replace(pc_side("fine"), api=None, static=str(root / "catalog.json"), hosts=())
    check_href(str(root / "a" / "red.tif"), side, "item")
    (root / "link").symlink_to(tmp_path / "other")
    for outside in (
        tmp_path / "red.tif", root / ".." / "red.tif", tmp_path / "world-2" / "red.tif", root / "link" / "red.tif", Path("red.tif")
    ):  # fmt: skip
        with pytest.raises(SourceError, match="below its folder"):
            check_href(str(outside), side, "item")
    with pytest.raises(SourceError, match=r"example\.org"):
        check_href("https://example.org/red.tif", side, "item")


@pytest.mark.parametrize("text", [None, "", "yesterday", "2020-13-01T00:00:00Z"])
def test_a_landsat_item_without_a_readable_moment_is_refused(text: str | None) -> None:
    with pytest.raises(SourceError, match=r"LC08_L2SP_121044_20200301_02_T1.* not a date and time"):
        scene_of(landsat_item(datetime=text), pc_side("fine"))


@pytest.mark.parametrize("text", ["2020-03-01T18:00:00Z", "2020-03-01T18:00:00", "2020-03-02T02:00:00+08:00"])
def test_moments_without_a_zone_are_utc(text: str) -> None:
    assert scene_of(landsat_item(datetime=text), pc_side("fine")).day == date(2020, 3, 2)


def test_a_composite_without_a_day_in_its_id_is_refused() -> None:
    side = pc_side("coarse")
    assets = {
        name: {"href": f"https://modiseuwest.blob.core.windows.net/{name}.tif"}
        for _, (name,) in side.collections[0].assets
    }
    item = {"id": "composite", "collection": "modis-43A4-061", "bbox": [0, 0, 1, 1], "assets": assets}
    with pytest.raises(SourceError, match=r"composite: its id states no day"):
        scene_of(item | {"properties": {"datetime": "2020-03-05T00:00:00Z"}}, side)


def test_signed_addresses_are_kept_unsigned() -> None:
    item = landsat_item()
    for asset in item["assets"].values():
        asset["href"] += "?st=2020&sig=secret"
    assert all(href.endswith(".TIF") for _, href in scene_of(item, pc_side("fine")).assets)


# ---------------------------------------------------------------- catalogs as files


def test_the_catalogs_of_the_package_open() -> None:
    known = ("demo", "earth-search", "nasa-lpcloud", "planetary-computer", "usgs-landsatlook")
    assert subject.known_catalogs() == known
    for name in subject.known_catalogs():
        assert open_catalog(name).name == name


def test_the_default_collections_are_used_unless_others_are_named() -> None:
    side = pc_side("fine")
    assert [c.name for c in side.select(None, BANDS).collections] == ["landsat-c2-l2"]
    assert side.select(None, BANDS).phase == 15
    both = side.select(["hls2-l30", "hls2-s30"], BANDS)
    assert [c.name for c in both.collections] == ["hls2-l30", "hls2-s30"]
    assert both.phase == 0


@pytest.mark.parametrize(
    ("catalog", "kind", "names", "bands", "named"),
    [
        ("planetary-computer", "coarse", ["modis-1"], BANDS, "no collection 'modis-1'; it has modis-43A4-061"),
        (
            "planetary-computer",
            "coarse",
            ["modis-09Q1-061"],
            BANDS,
            "has no blue, green, swir1, swir2; add --bands red,nir",
        ),
        (
            "nasa-lpcloud",
            "coarse",
            ["MCD43A4_061"],
            BANDS,
            "HDF4; use the GeoTIFFs of --coarse-catalog planetary-computer",
        ),
    ],
)
def test_collections_that_cannot_serve_are_refused_with_what_to_do(
    catalog: str, kind: str, names: list[str] | None, bands: tuple[str, ...], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        getattr(open_catalog(catalog), kind).select(names, bands)


def test_an_unknown_catalog_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(InputError, match="demo, earth-search, nasa-lpcloud, planetary-computer"):
        open_catalog("nowhere")


def test_a_missing_catalog_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_catalog(str(tmp_path / "my.toml"))


GOOD = """
[fine]
api = "https://example.org/stac"
hosts = ["example.org"]
[fine.collections.scenes]
sensors = ["landsat-oli"]
[fine.collections.scenes.assets]
red = "B4"
"""


def written(folder: Path, text: str) -> str:
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_users_catalog_opens(tmp_path: Path) -> None:
    found = open_catalog(written(tmp_path, GOOD))
    assert found.coarse is None
    assert found.fine is not None
    assert (found.fine.api, found.fine.hosts, found.fine.signer) == (
        "https://example.org/stac",
        ("example.org",),
        "none",
    )
    assert found.fine.collections[0].assets == (("red", ("B4",)),)


def test_logins_of_the_shipped_catalogs_are_among_their_hosts() -> None:
    nasa, usgs = open_catalog("nasa-lpcloud"), open_catalog("usgs-landsatlook")
    for side in (nasa.fine, nasa.coarse, usgs.fine):
        assert side is not None
        assert side.login_host in side.hosts
        assert not any(host.startswith("*") for host in side.hosts)
    assert nasa.fine is not None
    assert (nasa.fine.login_host, nasa.fine.token) == ("urs.earthdata.nasa.gov", "EARTHDATA_TOKEN")
    assert "`machine urs.earthdata.nasa.gov login NAME password WORD` in ~/.netrc" in nasa.fine.login
    assert "\n" not in nasa.fine.login


def test_paths_of_a_users_catalog_are_relative_to_it(tmp_path: Path) -> None:
    text = 'aoi = "a.geojson"\n' + GOOD.replace('api = "https://example.org/stac"', 'static = "sub/catalog.json"')
    found = open_catalog(written(tmp_path, text))
    assert found.fine is not None
    assert found.fine.static == str(tmp_path / "sub" / "catalog.json")
    assert found.aoi == tmp_path / "a.geojson"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("[fine]", "[fine", "TOML"),
        ("[fine", "[medium", "neither"),
        (GOOD, "fine = 3", "fine"),
        ("hosts =", "host =", "host"),
        ("api =", 'static = "catalog.json"\napi =', "api or static"),
        ('api = "https://example.org/stac"', "", "api or static"),
        ('api = "https://example.org/stac"', "api = 5", "api"),
        ('api = "https://example.org/stac"', "static = 5", "static"),
        ("hosts =", 'signer = "me"\nhosts =', "signer"),
        ("hosts =", 'login_host = "elsewhere.org"\nhosts =', "login_host"),
        ("hosts =", "login_host = 7\nhosts =", "login_host"),
        ("hosts =", 'token = "AWS_SECRET_ACCESS_KEY"\nhosts =', "token"),
        ('hosts = ["example.org"]', 'hosts = "example.org"', "hosts"),
        ('hosts = ["example.org"]', "hosts = 7", "hosts"),
        ('hosts = ["example.org"]', "hosts = [7]", "hosts"),
        ("hosts =", 'timeout = "long"\nhosts =', "timeout"),
        ("hosts =", "timeout = -1\nhosts =", "timeout"),
        ("hosts =", "timeout = [1]\nhosts =", "timeout"),
        ("hosts =", 'retries = "often"\nhosts =', "retries"),
        ("hosts =", "retries = -1\nhosts =", "retries"),
        ("hosts =", "page = 0\nhosts =", "page"),
        ("hosts =", "timeout = nan\nhosts =", "timeout"),
        (GOOD[GOOD.index("[fine.c") :], "", "collections"),
        (GOOD[GOOD.index("[fine.c") :], "collections = {}", "collections"),
        (GOOD[GOOD.index("[fine.c") :], "collections = ['scenes']", "collections"),
        (GOOD[GOOD.index("[fine.c") :], "collections = {scenes = 1}", "scenes"),
        ('sensors = ["landsat-oli"]', "", "sensors"),
        ('sensors = ["landsat-oli"]', "sensors = []", "sensors"),
        ('sensors = ["landsat-oli"]', 'sensors = ["landsat-1"]', "landsat-1"),
        ('sensors = ["landsat-oli"]', "sensors = [['a']]", "sensor"),
        ('red = "B4"', "", "assets"),
        ('red = "B4"', "red = 4", "red"),
        ('red = "B4"', 'rad = "B4"', "rad"),
    ],
)
def test_a_malformed_catalog_is_one_line_that_names_the_key(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputError, match=key) as caught:
        open_catalog(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_catalog_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not TOML"):
        open_catalog(str(tmp_path / "my.toml"))


# ---------------------------------------------------------------- the same image twice


def landsat_scene(**changes: Any) -> Scene:
    made = Scene(
        id="LC08_L2SP_121044_20200301_02_T1", collection="landsat-c2-l2", sensor="landsat-oli", platform="landsat-8",
        day=date(2020, 3, 1), moment="2020-03-01T02:52:08Z", created="2020-03-10T00:00:00Z",
        assets=(("red", "https://x/red"),), cloud=3.0, tier="T1", place="121_044",
    )  # fmt: skip
    return replace(made, **changes)


def modis_scene(day: date, tile: str, version: str, created: str = "") -> Scene:
    return Scene(
        id=f"MCD43A4.A{day:%Y%j}.{tile}.061.{version}", collection="modis-43A4-061", sensor="mcd43a4", platform="terra",
        day=day, moment=f"{day}T00:00:00Z", created=created, assets=(),
    )  # fmt: skip


def test_tier_1_wins_over_a_later_tier_2() -> None:
    better, worse = (
        landsat_scene(),
        landsat_scene(id="LC08_L2SP_121044_20200301_02_T2", tier="T2", created="2020-06-01T00:00:00Z"),
    )
    assert deduplicate([better, worse]) == deduplicate([worse, better]) == (better,)


def test_the_newest_processing_wins() -> None:
    old, new = landsat_scene(id="old"), landsat_scene(id="new", created="2021-01-01T00:00:00Z")
    assert deduplicate([old, new]) == deduplicate([new, old]) == (new,)


def test_of_two_productions_of_a_modis_tile_the_later_stays() -> None:
    day = date(2020, 3, 1)
    old, new = modis_scene(day, "h28v06", "2020070035331"), modis_scene(day, "h28v06", "2021070035331")
    assert deduplicate([new, old]) == (new,)


def test_different_images_all_stay() -> None:
    day = date(2020, 3, 1)
    different = [
        landsat_scene(),
        landsat_scene(id="row", place="121_045"),
        landsat_scene(id="path", place="122_044"),
        landsat_scene(id="day", day=date(2020, 3, 2)),
        landsat_scene(id="sensor", sensor="landsat-tm"),
        modis_scene(day, "h28v06", "2020070035331"),
        modis_scene(day, "h27v06", "2020070035331"),
        modis_scene(date(2020, 3, 2), "h28v06", "2020070035331"),
    ]
    assert set(deduplicate(different)) == set(different)


def many_scenes() -> list[Scene]:
    scenes = []
    for number in range(6):
        day = date(2020, 3, 1) + timedelta(days=number // 2)
        for tier in ("T1", "T2"):
            for month in (4, 6):
                name, made = f"LC08_{number % 2}_{day}_{tier}_{month}", f"2020-{month:02d}-01T00:00:00Z"
                place, moment = f"121_04{number % 2}", f"{day}T02:52:08Z"
                scenes.append(landsat_scene(id=name, day=day, moment=moment, tier=tier, created=made, place=place))
        scenes += [modis_scene(day, f"h2{number}v06", version) for version in ("2020070035331", "2020071035331")]
    # The same id, listed twice with different contents, as a server does while it is updated.
    return [
        *scenes,
        landsat_scene(cloud=None),
        landsat_scene(cloud=9.0),
        landsat_scene(assets=(("red", "https://y/red"),)),
    ]


@settings(max_examples=200)
@given(st.permutations(many_scenes()), st.lists(st.sampled_from(many_scenes()), max_size=10))
def test_the_order_and_repeats_of_an_answer_do_not_change_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, shuffled: list[Scene], again: list[Scene]
) -> None:
    expected, found = (tmp_path_factory.getbasetemp() / name for name in ("expected", "found"))
    if not expected.exists():
        save_scenes(expected, deduplicate(many_scenes()), ())
    save_scenes(found, deduplicate(shuffled + again), ())
    assert (found / "items.json").read_bytes() == (expected / "items.json").read_bytes()


# ---------------------------------------------------------------- items.json


def test_scenes_survive_being_written(tmp_path: Path) -> None:
    fine, coarse = (
        (landsat_scene(), landsat_scene(id="other", cloud=None)),
        (modis_scene(date(2020, 3, 1), "h28v06", "1"),),
    )
    assert read_scenes(tmp_path) is None
    save_scenes(tmp_path, fine, coarse)
    assert read_scenes(tmp_path) == (fine, coarse)


def _without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document["fine"][0].pop(key)


def _with(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document["fine"][0].update({key: value})


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.pop("fine"),
        lambda document: document.update(coarse=5),
        lambda document: document.update(coarse=["scene"]),
        lambda document: document.update(fine=None),
        _without("day"),
        _without("assets"),
        _without("id"),
        _with("day", "someday"),
        _with("day", 5),
        _with("assets", ["red"]),
        _with("assets", None),
        _with("unknown", 1),
    ],
    ids=[
        "no-side", "number", "texts", "null", "no-day", "no-assets", "no-id", "bad-day", "number-day", "list", "null-assets", "extra"
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    path = tmp_path / "items.json"
    save_scenes(tmp_path, (landsat_scene(),), ())
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="damaged"):
        read_scenes(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"[]", b"5", b"{", b"\xff\xfe"], ids=str)
def test_a_record_that_is_not_json_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "items.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match="damaged"):
        read_scenes(tmp_path)


# ---------------------------------------------------------------- the demo world

FIRST, LAST = date(2020, 2, 15), date(2020, 3, 10)


def demo(folder: Path) -> Catalog:
    return open_catalog(str(folder / "catalog.toml"))


def found_in(folder: Path, side: Side | None, first: date = FIRST, last: date = LAST) -> tuple[Scene, ...]:
    assert side is not None
    area = read_aoi(folder / "aoi.geojson")
    return search(side, area, first, last, area.centroid.coords[0][0], BANDS)


def demo_items(folder: Path, collection: str) -> list[dict[str, Any]]:
    return [
        json.loads(p.read_text()) for p in sorted((folder / collection).glob("*.json")) if p.name != "collection.json"
    ]


def days_between(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def test_the_demo_has_an_image_of_every_modis_day_asked_for(demo_world: Path) -> None:
    scenes = found_in(demo_world, demo(demo_world).coarse)
    assert sorted({scene.day for scene in scenes}) == days_between(FIRST, LAST)
    assert list(scenes) == sorted(scenes, key=lambda s: (s.day, s.moment, s.id))


def test_the_demo_has_the_landsat_days_of_its_items(demo_world: Path) -> None:
    expected = {i["id"].split("_")[3] for i in demo_items(demo_world, "landsat-c2-l2")}
    scenes = found_in(demo_world, demo(demo_world).fine)
    assert {f"{s.day:%Y%m%d}" for s in scenes} == {d for d in expected if f"{FIRST:%Y%m%d}" <= d <= f"{LAST:%Y%m%d}"}
    assert scenes


def test_the_demos_twins_lose(demo_world: Path) -> None:
    scenes = found_in(demo_world, demo(demo_world).fine, date(2020, 1, 1), date(2020, 12, 31))
    items = {item["id"]: item for item in demo_items(demo_world, "landsat-c2-l2")}
    twins = {name for name in items if name.endswith(("_old", "_T2"))}
    assert len(twins) == 2
    assert {scene.id for scene in scenes} == set(items) - twins
    assert {name.removesuffix("_old").replace("_T2", "_T1") for name in twins} <= {scene.id for scene in scenes}


def test_a_range_of_one_day_gives_that_day_only(demo_world: Path) -> None:
    day = date(2020, 3, 1)
    assert {scene.day for scene in found_in(demo_world, demo(demo_world).coarse, day, day)} == {day}


def test_an_area_elsewhere_has_no_scenes(demo_world: Path) -> None:
    side = demo(demo_world).coarse
    assert side is not None
    assert search(side, read_aoi("0,0,1,1"), FIRST, LAST, 0.5, BANDS) == ()


def test_the_demos_assets_are_files_below_it(demo_world: Path) -> None:
    for side in (demo(demo_world).fine, demo(demo_world).coarse):
        for scene in found_in(demo_world, side):
            for _, href in scene.assets:
                assert Path(href).is_file()
                assert Path(href).is_relative_to(demo_world)


def test_a_static_catalog_that_is_missing_or_broken_is_a_source_error(tmp_path: Path) -> None:
    side = replace(pc_side("fine"), api=None, static=str(tmp_path / "catalog.json"))
    for text in (None, "", "[]", "{}", '{"type": "Catalog"}', '{"type": "Feature"}'):
        if text is not None:
            (tmp_path / "catalog.json").write_text(text)
        with pytest.raises(SourceError, match="cannot be read") as caught:
            search(side, read_aoi("0,0,1,1"), FIRST, LAST, 0.5, BANDS)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- servers

Answer = Callable[[str, str, bytes], tuple[int, Any]]
"""Method, path with query, body: status, document."""


@contextmanager
def served(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(f"{self.command} {self.path}")
            status, document = answer(self.command, self.path, body)
            raw = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = _reply

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def at(url: str, retries: int = 0, kind: str = "coarse") -> Side:
    return replace(pc_side(kind), api=url, retries=retries, timeout=5)


def ask(side: Side) -> tuple[Scene, ...]:
    return search(side, read_aoi("113.9,22.5,114.1,22.6"), FIRST, LAST, 114.0, BANDS)


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
def test_a_server_that_only_fails_is_a_source_error_at_once(status: int) -> None:
    with served(lambda *_: (status, {"detail": "later"})) as (url, asked):
        start = time.monotonic()
        with pytest.raises(SourceError, match="does not answer") as caught:
            ask(at(url))
        assert time.monotonic() - start < 5
        assert len(asked) == 1
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b"5", b'{"type": "Catalog"}', b"\xff\xfe"], ids=str)
def test_a_server_that_answers_something_else_is_a_source_error(raw: bytes) -> None:
    with served(lambda *_: (200, raw)) as (url, _), pytest.raises(SourceError, match="does not answer"):
        ask(at(url))


def test_a_port_that_nobody_listens_at_is_a_source_error() -> None:
    with served(lambda *_: (200, {})) as (url, _):
        pass
    with pytest.raises(SourceError, match="does not answer"):
        ask(at(url))


class Api:
    """The smallest STAC API that pages: three items a page, a next link on every page but the last."""

    def __init__(
        self,
        items: list[dict[str, Any]],
        fail_every: int = 0,
        stated: dict[str, Any] | None = None,
        filters: bool = False,
    ) -> None:
        self.items, self.fail_every, self.count = items, fail_every, 0
        self.stated, self.filters, self.queries = stated or {}, filters, list[dict[str, Any]]()
        self.url = ""

    def __call__(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.count += 1
        if self.fail_every and self.count % self.fail_every == 1:
            return 503, {"detail": "busy"}
        if not urlsplit(path).path.startswith("/search"):
            return 200, self.landing()
        query = json.loads(body) if method == "POST" else {k: v[0] for k, v in parse_qs(urlsplit(path).query).items()}
        self.queries.append(query)
        if "filter" in query and not self.filters:
            return 400, {"description": "filter is unknown"}
        start = int(query.get("token", 0))
        names = query["collections"]
        chosen = [item for item in self.items if item["collection"] in names]
        links = []
        if start + 3 < len(chosen):
            token = {"token": str(start + 3)}
            links = [{"rel": "next", "href": f"{self.url}/search", "method": "POST", "merge": True, "body": token}]
        return 200, {"type": "FeatureCollection", "features": chosen[start : start + 3], "links": links} | self.stated

    def landing(self) -> dict[str, Any]:
        return {
            "type": "Catalog", "id": "tiny", "stac_version": "1.0.0", "description": "tiny",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
            + [
                "https://api.stacspec.org/v1.0.0-rc.2/item-search#filter",
                "http://www.opengis.net/spec/cql2/1.0/conf/cql2-json",
            ]
            * self.filters,
            "links": [
                {"rel": "self", "href": self.url, "type": "application/json"},
                {"rel": "root", "href": self.url, "type": "application/json"},
                {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": "POST"},
                {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": "GET"},
            ],
        }  # fmt: skip


def absolute(folder: Path, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as an API shows them: links to the root only, assets absolute."""
    made = copy.deepcopy(items)
    for item in made:
        item["links"] = []
        for asset in item["assets"].values():
            asset["href"] = str((folder / item["collection"] / asset["href"]).resolve())
    return made


@pytest.mark.parametrize("kind", ["fine", "coarse"])
def test_a_paging_api_gives_the_same_scenes_as_the_static_catalog(demo_world: Path, kind: str) -> None:
    side: Side = getattr(demo(demo_world), kind)
    items = absolute(demo_world, demo_items(demo_world, side.collections[0].name))
    api = Api(items[::-1])
    with served(api) as (url, asked):
        api.url = url
        # static stays: local assets must lie below its folder.
        found = found_in(demo_world, replace(side, api=url, retries=0))
    assert found == found_in(demo_world, side)
    assert len([line for line in asked if "/search" in line]) == -(-len(items) // 3)


def test_a_server_that_fails_now_and_then_is_asked_again(demo_world: Path) -> None:
    side = demo(demo_world).fine
    assert side is not None
    api = Api(absolute(demo_world, demo_items(demo_world, "landsat-c2-l2"))[:7], fail_every=3)
    with served(api) as (url, _):
        api.url = url
        found = found_in(demo_world, replace(side, api=url, retries=3), date(2020, 1, 1), date(2020, 12, 31))
    assert found


@pytest.mark.parametrize("came", [0, 5, 6, 7])
@pytest.mark.parametrize(
    "stated", [{"numberMatched": 7}, {"context": {"matched": 7, "returned": 3}}, {"numberMatched": 7, "context": {}}]
)
def test_an_answer_of_fewer_items_than_it_states_is_a_source_error(
    demo_world: Path, came: int, stated: dict[str, Any]
) -> None:
    side = demo(demo_world).fine
    assert side is not None
    api = Api(absolute(demo_world, demo_items(demo_world, "landsat-c2-l2"))[:came], stated=stated)
    with served(api) as (url, _):
        api.url = url
        if came == 7:
            assert found_in(demo_world, replace(side, api=url), date(2020, 1, 1), date(2020, 12, 31))
            return
        with pytest.raises(SourceError, match=f"7 items match, but only {came} came") as caught:
            found_in(demo_world, replace(side, api=url))
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_item_that_comes_twice_does_not_hide_another_that_does_not(demo_world: Path) -> None:
    side = demo(demo_world).fine
    assert side is not None
    items = absolute(demo_world, demo_items(demo_world, "landsat-c2-l2"))[:4]
    api = Api([*items, items[-1]], stated={"numberMatched": 5})
    with served(api) as (url, _):
        api.url = url
        with pytest.raises(SourceError, match="5 items match, but only 4 came"):
            found_in(demo_world, replace(side, api=url))


class Odd(Api):
    """Counts or loses items in a way that depends on what it is asked for and how often."""

    def __init__(
        self,
        items: list[dict[str, Any]],
        count: Callable[[dict[str, Any]], int],
        lost: Callable[[dict[str, Any], int], list[int]] = lambda query, search: [],
    ) -> None:
        super().__init__(items)
        self.count_of, self.lost, self.searches, self.all = count, lost, 0, items

    def __call__(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        query = json.loads(body) if body else {}
        if "collections" in query:
            self.searches += "token" not in query
            lost = self.lost(query, self.searches)
            self.items = [item for number, item in enumerate(self.all) if number not in lost]
            self.stated = {"numberMatched": self.count_of(query)}
        return super().__call__(method, path, body)


def asked_odd(folder: Path, api: Odd, **changes: Any) -> set[str]:
    side = demo(folder).fine
    assert side is not None
    with served(api) as (url, _):
        api.url = url
        found = found_in(folder, replace(side, api=url, **changes), date(2020, 1, 1), date(2020, 12, 31))
    return {scene.id for scene in found}


@pytest.fixture(scope="module")
def seven(demo_world: Path) -> list[dict[str, Any]]:
    return absolute(demo_world, demo_items(demo_world, "landsat-c2-l2"))[:7]


@pytest.mark.parametrize("number", [100_000, 3_500_000])
def test_an_estimate_is_not_held_against_an_answer_that_comes_twice(
    demo_world: Path, seven: list[dict[str, Any]], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    # pgstac with context = auto: the planner's number of rows.
    api = Odd(seven, lambda query: number)
    expected = asked_odd(demo_world, Odd(seven, lambda query: 7))
    assert asked_odd(demo_world, api, page=6) == expected
    first, second = (query for query in api.queries if "token" not in query)
    assert (first["limit"], second["limit"]) == (6, 3)
    assert f"states {number} items, 7 came twice" in caplog.text


def test_a_number_below_that_is_no_estimate(demo_world: Path, seven: list[dict[str, Any]]) -> None:
    with pytest.raises(SourceError, match="99999 items match, but only 7 came"):
        asked_odd(demo_world, Odd(seven, lambda query: 99_999))


@pytest.mark.parametrize("lost", [[0], [2, 3], [6], [0, 1, 2, 3, 4, 5, 6]], ids=str)
def test_what_is_lost_once_comes_the_second_time(
    demo_world: Path, seven: list[dict[str, Any]], lost: list[int]
) -> None:
    expected = asked_odd(demo_world, Odd(seven, lambda query: 7))
    api = Odd(seven, lambda query: 7, lambda query, search: lost if search == 1 else [])
    assert asked_odd(demo_world, api) == expected
    assert api.searches == 2


def test_what_is_lost_at_the_borders_of_pages_is_put_together(demo_world: Path, seven: list[dict[str, Any]]) -> None:
    api = Odd(seven, lambda query: 7, lambda query, search: [3] if query["limit"] == 250 else [1, 5])
    assert asked_odd(demo_world, api) == asked_odd(demo_world, Odd(seven, lambda query: 7))


def test_a_server_that_loses_other_items_each_time_is_refused_even_if_it_estimates(
    demo_world: Path, seven: list[dict[str, Any]]
) -> None:
    api = Odd(seven, lambda query: 200_000, lambda query, search: [search])
    with pytest.raises(SourceError, match="200000 items match, but only 7 came, also when asked again"):
        asked_odd(demo_world, api)


def test_a_count_of_yesterday_is_counted_anew(demo_world: Path, seven: list[dict[str, Any]]) -> None:
    # pgstac keeps the count of a search for a day; an item was deleted since.
    api = Odd(seven, lambda query: 8 if query["datetime"].endswith("T23:59:59Z") else 7)
    assert asked_odd(demo_world, api) == asked_odd(demo_world, Odd(seven, lambda query: 7))
    assert api.searches == 2


def test_an_answer_that_is_whole_is_asked_for_once(demo_world: Path, seven: list[dict[str, Any]]) -> None:
    api = Odd(seven, lambda query: 7)
    asked_odd(demo_world, api)
    assert api.searches == 1


@pytest.mark.parametrize(
    "stated", [{}, {"numberMatched": None}, {"numberMatched": "many"}, {"context": 7}, {"numberMatched": 1}]
)
def test_an_answer_that_states_no_number_or_a_smaller_one_is_taken_as_it_is(
    demo_world: Path, stated: dict[str, Any]
) -> None:
    side = demo(demo_world).fine
    assert side is not None
    api = Api(absolute(demo_world, demo_items(demo_world, "landsat-c2-l2")), stated=stated)
    with served(api) as (url, _):
        api.url = url
        assert found_in(demo_world, replace(side, api=url)) == found_in(demo_world, side)


# ---------------------------------------------------------------- cloud


def cloudy(side: Side | None, folder: Path, percent: float | None) -> tuple[Scene, ...]:
    assert side is not None
    return search(side, read_aoi(folder / "aoi.geojson"), date(2020, 1, 1), date(2020, 12, 31), 114.05, BANDS, percent)


@pytest.mark.parametrize("percent", [0, 3.13, 50, 100])
def test_scenes_of_more_cloud_are_left_out(demo_world: Path, percent: float) -> None:
    everything = cloudy(demo(demo_world).fine, demo_world, None)
    few = cloudy(demo(demo_world).fine, demo_world, percent)
    assert few == tuple(scene for scene in everything if (scene.cloud or 0) <= percent)
    assert (len(few) < len(everything)) == (percent < 100)


@pytest.mark.parametrize("filters", [True, False])
def test_a_server_is_asked_for_less_cloud_only_if_it_filters(demo_world: Path, filters: bool) -> None:
    side = demo(demo_world).fine
    assert side is not None
    api = Api(absolute(demo_world, demo_items(demo_world, "landsat-c2-l2")), filters=filters)
    with served(api) as (url, _):
        api.url = url
        found = cloudy(replace(side, api=url, retries=0), demo_world, 5)
        assert found == cloudy(side, demo_world, 5)
        cloud = {"property": "eo:cloud_cover"}
        sent = {"op": "or", "args": [{"op": "isNull", "args": [cloud]}, {"op": "<=", "args": [cloud, 5]}]}
        assert [(query.get("filter"), query.get("filter-lang")) for query in api.queries[:1]] == [
            (sent, "cql2-json") if filters else (None, None)
        ]
        api.queries.clear()
        cloudy(replace(side, api=url, retries=0), demo_world, None)
        assert not [query for query in api.queries if "filter" in query]


def test_scenes_that_state_no_cloud_are_kept(demo_world: Path) -> None:
    side = demo(demo_world).fine
    assert side is not None
    items = absolute(demo_world, demo_items(demo_world, "landsat-c2-l2"))[:3]
    for item, cover in zip(items, (None, 5.0, 5.1), strict=True):
        item["properties"]["eo:cloud_cover"] = cover
    del items[0]["properties"]["eo:cloud_cover"]
    api = Api(items, filters=True)
    with served(api) as (url, _):
        api.url = url
        found = cloudy(replace(side, api=url, retries=0), demo_world, 5)
    assert {scene.id: scene.cloud for scene in found} == {items[0]["id"]: None, items[1]["id"]: 5.0}


@pytest.mark.parametrize("key", ["id", "properties", "assets"])
def test_an_item_of_an_api_that_lacks_a_part_is_a_source_error(key: str) -> None:
    item = landsat_item() | {"stac_version": "1.0.0", "links": [], "geometry": None}
    api = Api([{name: value for name, value in item.items() if name != key}])
    with served(api) as (url, _):
        api.url = url
        with pytest.raises(SourceError) as caught:
            ask(at(url, kind="fine"))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- other servers, odd places


def test_the_recorded_item_of_earth_search_is_a_scene_in_its_bucket(shared_data: Path) -> None:
    side = open_catalog("earth-search").fine
    assert side is not None
    (path,) = (shared_data / "stac/earth-search.aws.element84.com/landsat-c2-l2").glob("LC*.json")
    scene = scene_of(json.loads(path.read_text()), side)
    assert (scene.sensor, scene.day, scene.crs) == ("landsat-oli", date(2023, 10, 8), "EPSG:32613")
    assert scene.created == "2023-10-17T16:22:27+00:00"
    assert all(href.startswith("s3://usgs-landsat/") for _, href in scene.assets)


def test_the_grid_of_a_recorded_scene_is_what_its_item_states(shared_data: Path) -> None:
    scene = scene_of(recorded(shared_data, "landsat-c2-l2")[-1], pc_side("fine"))
    assert scene.crs.startswith("EPSG:326")
    assert scene.transform is not None
    assert (scene.transform[0], scene.transform[2] % 30, scene.transform[5] % 30) == (30, 15, 15)
    modis = scene_of(recorded(shared_data, "modis-43A4-061")[0], pc_side("coarse"))
    assert "Sinusoidal" in modis.crs
    assert modis.shape == (2400, 2400)


@pytest.mark.parametrize(("start", "end"), [("2025-03-03", "2025-03-09"), ("2025-02-20", "2025-03-01")])
def test_a_composite_whose_id_and_metadata_disagree_is_refused(shared_data: Path, start: str, end: str) -> None:
    item = recorded(shared_data, "modis-43A4-061")[0]
    item["properties"] |= {"start_datetime": f"{start}T00:00:00Z", "end_datetime": f"{end}T23:59:59Z"}
    with pytest.raises(SourceError, match=f"2025-03-02.*{start}"):
        scene_of(item, pc_side("coarse"))


@pytest.mark.parametrize(
    ("bbox", "meets"),
    [
        ([170, -20, 180.1, -10], True), ([179, -20, -179, -10], True), ([-180, -20, 180, -10], True),
        ([-179, -20, -170, -10], False), ([170, -10, 180, 0], False), ([170, -20, 0, 180, -10, 900], True),
    ],
)  # fmt: skip
def test_items_across_the_antimeridian_are_found(bbox: list[float], meets: bool) -> None:
    assert subject._overlaps({"bbox": bbox}, read_aoi("179.5,-18,179.9,-17")) is meets


@pytest.mark.parametrize(
    ("bbox", "meets"),
    [
        ([170, -20, 180, -10], True), ([-180, -20, -170, -10], True), ([179, -20, -179, -10], True),
        ([-170, -20, -160, -10], False), ([0, -20, 10, -10], False), ([170, -10, 180, 0], False),
        ([160, -20, 179.4, -10], False), ([-179.4, -20, 170, -10], False), ([-180, -20, 180, -10], True),
    ],
)  # fmt: skip
def test_an_area_across_the_antimeridian_finds_what_lies_on_either_side(bbox: list[float], meets: bool) -> None:
    assert subject._overlaps({"bbox": bbox}, read_aoi("179.5,-18,-179.5,-17")) is meets


@pytest.mark.parametrize(
    ("area", "moment", "day"),
    [
        ("179.85,-17,179.95,-16.9", "2020-02-28T12:00:59Z", "2020-02-29"),
        ("179.85,-17,179.95,-16.9", "2020-02-28T12:00:00Z", "2020-02-28"),
        ("179.85,-17,179.95,-16.9", "2020-02-29T23:59:59.999Z", "2020-03-01"),
        ("-179.95,-17,-179.85,-16.9", "2020-03-01T11:59:00Z", "2020-02-29"),
        ("-179.95,-17,-179.85,-16.9", "2020-03-01T11:59:59.999Z", "2020-03-01"),
        ("-179.95,-17,-179.85,-16.9", "2020-12-31T23:59:59.999Z", "2020-12-31"),
        ("-179.95,-17,-179.85,-16.9", "2021-01-01T00:00:00Z", "2020-12-31"),
        ("179.9,-17,-179.8,-16.9", "2020-12-31T12:05:00Z", "2020-12-31"),  # its middle lies at 179.95 west
        ("179.8,-17,-179.9,-16.9", "2020-12-31T12:05:00Z", "2021-01-01"),
        ("-0.05,10,0.05,10.1", "2020-02-29T23:59:59.999Z", "2020-02-29"),
        ("-0.05,10,0.05,10.1", "2019-02-28T23:59:59.999999Z", "2019-02-28"),
    ],
)
@pytest.mark.parametrize("key", ["datetime", "start_datetime"])
def test_a_day_of_a_search_is_the_solar_day_of_its_area(area: str, moment: str, day: str, key: str) -> None:
    item = landsat_item(datetime=None) | {"stac_version": "1.0.0", "links": [], "geometry": None}
    item["properties"][key] = moment
    item["properties"].setdefault("datetime", None)
    api = Api([item])
    polygon, wanted, found = read_aoi(area), date.fromisoformat(day), {}
    with served(api) as (url, _):
        api.url = url
        for off in (-1, 0, 1):
            asked = wanted + timedelta(days=off)
            found[off] = search(at(url, kind="fine"), polygon, asked, asked, middle(polygon)[0], BANDS)
    assert {off: [scene.day for scene in scenes] for off, scenes in found.items()} == {-1: [], 0: [wanted], 1: []}
    # A server filters by the UTC time: what it is asked for must hold the scene.
    first, last = api.queries[1]["datetime"].split("/")
    assert first <= moment <= last


@pytest.mark.parametrize(("stated", "day"), [("2020060", "2020-02-29"), ("2020366", "2020-12-31"), ("2019365", "2019-12-31"), ("2021001", "2021-01-01")])  # fmt: skip
@pytest.mark.parametrize("longitude", [-179.9, 0.0, 179.9])
def test_a_composite_keeps_its_stated_day_anywhere(stated: str, day: str, longitude: float) -> None:
    side = pc_side("coarse").select(None, ("red",))
    roles = dict(side.collections[0].assets)
    assets = {name: {"href": f"https://modiseuwest.blob.core.windows.net/{name}.tif"} for (name,) in roles.values()}
    start = date.fromisoformat(day) - timedelta(days=8)
    item = {
        "id": f"MCD43A4.A{stated}.h00v10.061.2021050035331", "collection": "modis-43A4-061", "assets": assets,
        "properties": {"datetime": None, "start_datetime": f"{start}T00:00:00Z", "end_datetime": f"{day}T23:59:59.999Z"},
    }  # fmt: skip
    scene = to_scene(item, side, longitude, ("red",))
    assert scene is not None
    assert scene.day.isoformat() == day


def test_a_coastline_of_many_vertices_is_simplified_outwards() -> None:
    ring = [(114 + 0.3 * math.cos(t / 3000), 22 + 0.3 * math.sin(t / 3000)) for t in range(int(6000 * math.pi))]
    area = Geometry({"type": "Polygon", "coordinates": [[*ring, ring[0]]]}, "EPSG:4326")
    sent = subject._searched(area)
    assert len(json.dumps(sent.json)) < subject.LARGEST_AREA
    assert sent.contains(area)


def test_two_satellites_over_one_place_on_one_day_are_two_images() -> None:
    # Landsat 9 flew below Landsat 8 in November 2021, before it took its own orbit.
    eight = scene_of(landsat_item(**{"landsat:wrs_path": "121", "landsat:wrs_row": "044"}), pc_side("fine"))
    assert len(deduplicate([eight, replace(eight, platform="landsat-9"), replace(eight, created="2021")])) == 2


def test_a_final_scene_wins_over_a_real_time_one() -> None:
    scene = scene_of(landsat_item(**{"landsat:wrs_path": "121", "landsat:wrs_row": "044"}), pc_side("fine"))
    final, early = replace(scene, tier="T2", created="2020-03-20"), replace(scene, tier="RT", created="2020-03-21")
    assert deduplicate([early, final]) == (final,)


@pytest.mark.parametrize("link", ["../outside.json", "/etc/hosts", "http://127.0.0.1:9/collection.json"])
def test_a_local_catalog_does_not_lead_out_of_its_folder(tmp_path: Path, link: str) -> None:
    root = {"type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "x", "links": []}
    (tmp_path / "in").mkdir()
    (tmp_path / "outside.json").write_text(json.dumps(root))
    (tmp_path / "in" / "catalog.json").write_text(json.dumps(root | {"links": [{"rel": "child", "href": link}]}))
    side = replace(pc_side("fine"), api=None, static=str(tmp_path / "in" / "catalog.json"))
    with pytest.raises(SourceError, match="outside of its folder"):
        ask(side)


def test_plain_http_is_for_hosts_that_are_named_with_it() -> None:
    side = replace(pc_side("fine"), hosts=("tiles.example", "http://inside.example"))
    for href in ("https://tiles.example/a.tif", "http://inside.example/a.tif"):
        check_href(href, side, "item")
    for href in ("http://tiles.example/a.tif", "https://inside.example/a.tif"):
        with pytest.raises(SourceError, match="not among the hosts"):
            check_href(href, side, "item")
