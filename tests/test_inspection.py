"""Every recorded item and collection of real servers through our own path, and the command that shows it."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyproj import CRS

from pipelines import catalogs
from pipelines.console import main
from stfgan_xr.catalog import known_catalogs, open_catalog
from stfgan_xr.inspection import collections, understand
from stfgan_xr.sensors import BANDS, SENSORS
from tests import viirs

DATA = Path(__file__).parents[2] / "shared" / "data" / "stac"
LANDSAT = "planetarycomputer.microsoft.com/landsat-c2-l2/LC09_{}_02_{}.json"
STACTOOLS = "files/stactools-packages+"

# File, sensor, solar or stated day, EPSG code (0: sinusoidal, without a code). Read off the files by hand: days of
# Landsat are those of datetime + longitude / 15 hours.
ITEMS: list[tuple[str, str, str, int]] = [
    ("earth-search.aws.element84.com/landsat-c2-l2/LC08_L2SP_033032_20231008_02_T1.json", "landsat-oli", "2023-10-08", 32613),
    (LANDSAT.format("L2SR_084082_20250722", "T1"), "landsat-oli", "2025-07-23", 32657),
    (LANDSAT.format("L2SR_084074_20250722", "T1"), "landsat-oli", "2025-07-23", 32658),
    (LANDSAT.format("L2SR_084073_20250722", "T1"), "landsat-oli", "2025-07-23", 32658),
    (LANDSAT.format("L2SR_084072_20250722", "T2"), "landsat-oli", "2025-07-23", 32658),
    (LANDSAT.format("L2SP_084069_20250722", "T2"), "landsat-oli", "2025-07-23", 32658),
    (LANDSAT.format("L2SP_084068_20250722", "T2"), "landsat-oli", "2025-07-23", 32658),
    (LANDSAT.format("L2SR_084067_20250722", "T1"), "landsat-oli", "2025-07-23", 32658),
    (LANDSAT.format("L2SR_084060_20250722", "T1"), "landsat-oli", "2025-07-23", 32658),
    (LANDSAT.format("L2SR_084057_20250722", "T1"), "landsat-oli", "2025-07-23", 32659),
    (LANDSAT.format("L2SR_084056_20250722", "T1"), "landsat-oli", "2025-07-23", 32659),
    (LANDSAT.format("L2SP_090091_20250310", "T1"), "landsat-oli", "2025-03-11", 32655),
    ("planetarycomputer.microsoft.com/modis-09A1-061/MYD09A1.A2025057.h35v10.061.2025066034638.json", "mod09a1", "2025-02-26", 0),
    ("planetarycomputer.microsoft.com/modis-43A4-061/MCD43A4.A2025061.h35v10.061.2025070035331.json", "mcd43a4", "2025-03-02", 0),
    (f"{STACTOOLS}landsat/LC09_L2SP_010065_20220129_02_T1.json", "landsat-oli", "2022-01-29", 32617),
    (f"{STACTOOLS}landsat/LE07_L2SP_021030_20100109_02_T1.json", "landsat-tm", "2010-01-09", 32616),
    (f"{STACTOOLS}landsat/LC08_L2SP_047027_20201204_02_T1.json", "landsat-oli", "2020-12-04", 32610),
    ("files/opendatacube+odc-stac/LE07_L2SP_044033_20210329_20210424_02_T1_SR.json", "landsat-tm", "2021-03-29", 32610),
    ("files/opendatacube+odc-stac/LC08_L2SP_028030_20200114_20200824_02_T1_SR.json", "landsat-oli", "2020-01-14", 32615),
    (f"{STACTOOLS}modis/MCD43A4.A2022032.h14v10.061.json", "mcd43a4", "2022-02-01", 0),
    (f"{STACTOOLS}modis/MOD09Q1.A2022033.h10v10.061.json", "mod09q1", "2022-02-02", 0),
    (f"{STACTOOLS}modis/MYD09Q1.A2022025.h02v08.061.json", "mod09q1", "2022-01-25", 0),
    (f"{STACTOOLS}modis/MOD09A1.A2022033.h19v10.061.json", "mod09a1", "2022-02-02", 0),
    (f"{STACTOOLS}modis/MYD09A1.A2022025.h09v08.061.json", "mod09a1", "2022-01-25", 0),
    (f"{STACTOOLS}hls/HLS.S30.T19LDD.2022166T144741.v2.0.json", "hls-s30", "2022-06-15", 32619),
    (f"{STACTOOLS}hls/HLS.L30.T19LDD.2022165T144027.v2.0.json", "hls-l30", "2022-06-14", 32619),
]  # fmt: skip
# Part of the asset's file name of each band, from the product guides.
OLI = {"blue": "B2", "green": "B3", "red": "B4", "nir": "B5", "swir1": "B6", "swir2": "B7"}
TM = {"blue": "B1", "green": "B2", "red": "B3", "nir": "B4", "swir1": "B5", "swir2": "B7"}
MODIS = {"blue": "3", "green": "4", "red": "1", "nir": "2", "swir1": "6", "swir2": "7"}
FILES: dict[str, dict[str, str]] = {
    "landsat-oli": {band: f"SR_{number}" for band, number in OLI.items()},
    "landsat-tm": {band: f"SR_{number}" for band, number in TM.items()},
    "mcd43a4": {band: f"Reflectance_Band{number}" for band, number in MODIS.items()},
    "mod09a1": {band: f"sur_refl_b0{number}" for band, number in MODIS.items()},
    "mod09q1": {"red": "sur_refl_b01", "nir": "sur_refl_b02"},
    "hls-l30": {"blue": "B02", "green": "B03", "red": "B04", "nir": "B05", "swir1": "B06", "swir2": "B07"},
    "hls-s30": {"blue": "B02", "green": "B03", "red": "B04", "nir": "B8A", "swir1": "B11", "swir2": "B12"},
}
LANDSAT_QUALITY = {"qa_pixel": "QA_PIXEL.TIF", "qa_radsat": "QA_RADSAT.TIF"}
QUALITY: dict[str, dict[str, str]] = {
    "landsat-oli": LANDSAT_QUALITY,
    "landsat-tm": LANDSAT_QUALITY,
    "mcd43a4": {
        f"quality_{band}": f"BRDF_Albedo_Band_Mandatory_Quality_Band{number}.tif" for band, number in MODIS.items()
    },
    "mod09a1": {"state": "sur_refl_state_500m.tif"},
    "mod09q1": {"state": "sur_refl_state_250m.tif"},
    "hls-l30": {"fmask": "Fmask.tif"},
    "hls-s30": {"fmask": "Fmask.tif"},
}
CODING = {
    "landsat": (2.75e-5, -0.2, 0), "mcd43a4": (1e-4, 0, 32767), "mod09": (1e-4, 0, -28672), "hls": (1e-4, 0, -9999),
}  # fmt: skip


def items(path: Path) -> Iterator[dict[str, Any]]:
    document = json.loads(path.read_text())
    found = document.get("features", [document]) if isinstance(document, dict) else document
    yield from (item for item in found if item.get("type") == "Feature")


def check(item: dict[str, Any], sensor: str, day: str, epsg: int | None) -> None:
    """Of an item without a CRS ``epsg`` is None, of a sinusoidal one 0."""
    found = understand(item)
    assert found.get("unused") is None, found
    assert (found["id"], found["sensor"], found["day"]) == (item["id"], sensor, day)
    if epsg is None:
        assert found["crs"] == ""
    else:
        assert CRS(found["crs"]).to_epsg() == (epsg or None)
        assert epsg or "inusoidal" in CRS(found["crs"]).to_wkt()
    hrefs = {asset["href"] for asset in item["assets"].values()}
    assert {band: FILES[sensor][band] in facts["href"] for band, facts in found["bands"].items()} == dict.fromkeys(
        FILES[sensor], True
    )
    assert found["quality"].keys() == QUALITY[sensor].keys()
    for role, href in found["quality"].items():
        assert href in hrefs
        assert href.endswith(QUALITY[sensor][role])
    coding = next(values for name, values in CODING.items() if sensor.startswith(name))
    for facts in found["bands"].values():
        assert facts["href"] in hrefs
        assert (facts["scale"], facts["offset"], facts["nodata"]) == coding


@pytest.mark.parametrize(("file", "sensor", "day", "epsg"), ITEMS, ids=lambda value: Path(value).stem if isinstance(value, str) and "/" in value else "")  # fmt: skip
def test_a_recorded_item_is_understood(shared_data: Path, file: str, sensor: str, day: str, epsg: int) -> None:
    (item,) = items(shared_data / "stac" / file)
    check(item, sensor, day, epsg)


def test_the_table_holds_every_recorded_item(shared_data: Path) -> None:
    folder = shared_data / "stac"
    others = {
        "boulder_series",
        "landsat-c2-l2-pc",
        "cmr_hlsl30",
        "MOD13Q1",
        "LC08_L2SR_081119",
        "template",
        "collection",
    }
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.json")}
    assert {file for file in found if not any(part in file for part in others)} == {file for file, *_ in ITEMS}


def landsat_day(item: dict[str, Any]) -> str:
    """UTC and four minutes a degree at the middle of its bounds, in whole milliseconds."""
    west, _, east, _ = item["bbox"]
    middle = (west + east) / 2 if west <= east else (west + east) / 2 + 180
    utc = np.datetime64(item["properties"]["datetime"].rstrip("Z"), "ms")
    return str((utc + np.timedelta64(round(middle * 240_000), "ms")).astype("datetime64[D]"))


@pytest.mark.parametrize("number", range(43))
def test_each_item_of_the_series_is_understood(shared_data: Path, number: int) -> None:
    item = list(items(shared_data / "stac/series/pc_landsat-c2-l2_boulder_series.json"))[number]
    day = f"{item['id'][17:21]}-{item['id'][21:23]}-{item['id'][23:25]}"  # passed before noon
    assert landsat_day(item) == day
    check(item, "landsat-oli", day, 32613)


@pytest.mark.parametrize(("number", "epsg"), [(0, 32655), (1, 32655), (2, 32655), (3, 32656)])
def test_a_list_of_items_is_understood(shared_data: Path, number: int, epsg: int) -> None:
    found = list(items(shared_data / "stac/files/stac-geoparquet/landsat-c2-l2-pc.json"))
    assert len(found) == 4
    check(found[number], "landsat-oli", "2024-04-18", epsg)


def exchanged(shared_data: Path, name: str) -> list[dict[str, Any]]:
    """Items of the recorded answers of a server."""
    with gzip.open(shared_data / f"stac/exchanges/{name}.json.gz") as file:
        answers = [exchange["response"]["json"] for exchange in json.load(file)]
    return [item for answer in answers for item in answer.get("features", ())]


@pytest.mark.parametrize(
    ("name", "count"), [("pc_fallback_landsat-c2-l2_items", 10), ("pc_collection_and_item_landsat-c2-l2", 1)]
)
def test_items_of_recorded_answers_are_understood(shared_data: Path, name: str, count: int) -> None:
    found = exchanged(shared_data, name)
    assert len(found) == count
    for item in found:
        check(item, "landsat-oli", landsat_day(item), item["properties"]["proj:epsg"])


@pytest.mark.parametrize(
    ("name", "sensor", "day"),
    [
        ("pc_collection_and_item_modis-09A1-061", "mod09a1", "2025-02-26"),
        ("pc_collection_and_item_modis-43A4-061", "mcd43a4", "2025-03-02"),
    ],
)
def test_modis_of_recorded_answers_is_understood(shared_data: Path, name: str, sensor: str, day: str) -> None:
    (item,) = exchanged(shared_data, name)
    check(item, sensor, day, 0)


@pytest.mark.parametrize(("name", "count", "advice"), [("pc_search_landsat-8-c2-l2_intersects_page", 250, "use landsat-c2-l2"), ("pc_search_paging", 20, "pipelines.catalogs lists")])  # fmt: skip
def test_items_of_other_collections_say_what_to_do(shared_data: Path, name: str, count: int, advice: str) -> None:
    found = exchanged(shared_data, name)
    assert len(found) == count
    for item in found:
        said = understand(item)
        assert said["id"] == item["id"]
        assert f"collection {item['collection']!r} is in none of the catalogs: " in said["unused"]
        assert advice in said["unused"]


@pytest.mark.parametrize("number", range(10))
def test_items_of_cmr_state_no_grid_and_are_understood(shared_data: Path, number: int) -> None:
    found = list(items(shared_data / "stac/files/pystac-client/cmr_hlsl30_v1.5_item_collection.json"))
    assert len(found) == 10
    item = found[number]
    # All passed at about half past nine to half past ten in the evening of UTC: on the western side of the date line it
    # was the morning of the next day.
    stated = datetime.strptime(item["assets"]["B04"]["href"].split(".")[-5][:7], "%Y%j").date()
    check(item, "hls-l30", (stated + timedelta(days=item["bbox"][0] > 0)).isoformat(), None)
    assert understand(item)["catalog"] == "nasa-lpcloud"


def sentinel_2(shared_data: Path) -> dict[str, Any]:
    found = exchanged(shared_data, "earthsearch_multi_collections")
    (item,) = [feature for feature in found if feature["collection"] == "sentinel-2-l2a"]
    return item


@pytest.mark.parametrize(
    ("baseline", "applied", "offset"),
    [("05.09", True, 0.0), ("05.09", False, -0.1), ("04.00", None, -0.1), ("03.01", None, 0.0), ("03.01", False, 0.0)],
)
def test_the_offset_of_sentinel_2_follows_baseline_and_what_was_taken_off(
    shared_data: Path, baseline: str, applied: bool | None, offset: float
) -> None:
    item = sentinel_2(shared_data)
    item["properties"] |= {"s2:processing_baseline": baseline, "earthsearch:boa_offset_applied": applied}
    found = understand(item)
    assert found["sensor"] == ("sentinel-2-offset" if offset else "sentinel-2")
    assert {band: (f["href"][-7:-4], f["offset"]) for band, f in found["bands"].items()} == {
        band: (number, offset) for band, number in zip(BANDS, ("B02", "B03", "B04", "B8A", "B11", "B12"), strict=True)
    }


def test_a_sentinel_2_item_without_a_baseline_is_unused(shared_data: Path) -> None:
    item = sentinel_2(shared_data)
    del item["properties"]["s2:processing_baseline"]
    assert "baseline" in understand(item)["unused"]


def test_the_landsat_of_earth_search_beside_it_is_understood(shared_data: Path) -> None:
    (item,) = [i for i in exchanged(shared_data, "earthsearch_multi_collections") if i["collection"] == "landsat-c2-l2"]
    check(item, "landsat-oli", "2023-10-08", 32613)


@pytest.mark.parametrize(
    ("file", "reasons"),
    [
        (
            "files/opendatacube+odc-stac/LC08_L2SR_081119_20200101_20200823_02_T2.json",
            ("no asset 'blue'", "it has ANG.txt, ", "SR_B2.TIF", "a catalog of your own (TOML) can name them"),
        ),
        (
            "planetarycomputer.microsoft.com/modis-13Q1-061/MOD13Q1.A2025049.h35v10.061.2025070114834.json",
            ("in none of the catalogs", "index of vegetation of 16 days", "use modis-43A4-061"),
        ),
    ],
)
def test_what_is_not_understood_says_why_and_what_to_do(shared_data: Path, file: str, reasons: tuple[str, ...]) -> None:
    (item,) = items(shared_data / "stac" / file)
    found = understand(item)
    assert found["id"] == item["id"]
    assert [reason for reason in reasons if reason not in found["unused"]] == []
    assert "\n" not in found["unused"]


def test_a_collection_is_no_item(shared_data: Path) -> None:
    paths = sorted((shared_data / "stac").rglob("collection.json"))
    assert paths
    for path in paths:
        found = understand(json.loads(path.read_text()))
        assert found["unused"] == "a Collection, not an item; give one of its items"


@pytest.mark.parametrize(("collection", "reason"), [("MCD43A4.v061", "HDF4"), ("MOD09GA_061", "HDF4")])
def test_formats_that_cannot_be_read_are_named_with_what_to_use(collection: str, reason: str) -> None:
    item = {"id": "x", "collection": collection, "properties": {}, "assets": {}}
    assert understand(item)["unused"].startswith(reason)


@pytest.mark.parametrize("asset", ["data", "001.2024071062011.h5"])
@pytest.mark.parametrize("collection", ["VNP43MA4_002", "VJ143MA4_002", "VNP43IA4.v002"])
def test_viirs_of_one_file_is_understood_by_field(asset: str, collection: str) -> None:
    product = collection[:8]
    name = f"{product}.A2024061.h28v06.002.2024070062011"
    href = f"https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected/{product}.002/{name}/{name}.h5"
    item = viirs.item(Path(href), date(2024, 3, 1), "h28v06", (110.0, 20.0, 117.0, 30.0))
    item |= {"id": name, "collection": collection, "assets": {"browse": {"href": "b.jpg"}, asset: {"href": href}}}
    found = understand(item)
    channels = {"red": "I1", "nir": "I2", "swir1": "I3"} if "IA4" in product else viirs.CHANNEL
    assert (found["sensor"], found["day"]) == (product.lower().replace("vj143", "vnp43"), "2024-03-01")
    assert {b: facts["field"].rpartition("/")[2] for b, facts in found["bands"].items()} == {
        band: f"Nadir_Reflectance_{channel}" for band, channel in channels.items()
    }
    assert {facts["href"] for facts in found["bands"].values()} == {href}
    assert found["bands"]["red"]["nodata"] == 32767


@pytest.mark.parametrize("item", [{}, {"id": "x"}, {"collection": "landsat-c2-l2"}, [], "text", None, {"id": "x", "collection": "hls2-l30", "assets": None, "properties": []}])  # fmt: skip
def test_anything_else_is_unused(item: Any) -> None:
    assert understand(item)["unused"]


@pytest.mark.parametrize("name", known_catalogs())
def test_recorded_collections_have_the_assets_that_catalogs_name(shared_data: Path, name: str) -> None:
    catalog, hosts = open_catalog(name), {"planetary-computer": "planetarycomputer.microsoft.com", "earth-search": "earth-search.aws.element84.com"}  # fmt: skip
    for side in (catalog.fine, catalog.coarse):
        for collection in side.collections if side else ():
            path = shared_data / "stac" / hosts.get(name, "-") / collection.name / "collection.json"
            if not path.is_file():
                continue
            recorded = json.loads(path.read_text())
            missing = [role for role, names in collection.assets if not set(names) & set(recorded["item_assets"])]
            assert missing == []
            assert int(recorded["extent"]["temporal"]["interval"][0][0][:4]) == collection.since
            for role, names in collection.assets:
                facts = (recorded["item_assets"][names[0]].get("raster:bands") or [{}])[0]
                if role in BANDS and "scale" in facts:
                    assert facts["scale"] == SENSORS[collection.sensors[0]].scale


def test_every_collection_has_all_roles_of_its_sensors() -> None:
    for side, collection in collections():
        if collection.unreadable:
            continue
        for sensor in (SENSORS[name] for name in collection.sensors):
            bands = [band for band in BANDS if band in dict(collection.assets)]
            assert tuple(bands) == sensor.bands, (side.catalog, collection.name)
            assert set(sensor.quality_roles(bands)) <= set(dict(collection.assets)), (side.catalog, collection.name)


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stop:
        main(catalogs.command)
    return int(stop.value.code or 0)


def test_the_command_prints_json_that_is_whole(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared_data / "stac" / "files/stac-geoparquet/landsat-c2-l2-pc.json"
    assert run("inspect", str(path), monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out) == [understand(item) for item in items(path)]


def test_the_command_lists_every_catalog_with_its_login(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert all(f"login {name}: " in shown for name in known_catalogs())
    listed = [line for line in shown.splitlines() if not line.startswith("login ")]
    assert {line.split()[0] for line in listed[1:] if not line.startswith(" ")} == set(known_catalogs())
    assert max(map(len, listed)) <= 80


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "absent.json"], ["dance"], ["inspect", "text.json"]])
def test_bad_use_of_the_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.json").write_text("no json")
    assert run(*arguments, monkeypatch=monkeypatch) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
