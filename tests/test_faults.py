"""Short versions of benchmarks/faults.py, and what a server may do to a reader: an error or the right pixels."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from benchmarks import figures, images, places, servers
from pipelines import cubes, imagery
from stfgan_xr import rasters, store
from stfgan_xr.errors import InputError, SourceError
from stfgan_xr.rasters import READERS, Resampling, are_there
from stfgan_xr.remote import LONGEST_WAIT, seconds_asked, within
from stfgan_xr.simulate import SINUSOIDAL
from tests.range_server import Server, serving
from tests.test_rasters import reader, whole
from tests.test_remote import VALUES, remote, write_plain

# What rasterio says of an image whose tags did not come; the reader makes an error of it.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
OTHER = VALUES[::-1].copy()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    for name, values in (("{}.tif", VALUES), ("{}.tif.next", OTHER)):
        rasters.write_cog(folder / name.format("packed"), values, images.GRID, 0)
        images.write_plain(folder / name.format("plain"), values)
    with serving(folder, folder / "log") as running:
        yield running


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasters, "PAUSE", 0.001)
    monkeypatch.setattr(rasters, "LONGEST_PAUSE", 0.02)
    for name in ("TIMEOUT", "CONNECTTIMEOUT", "LOW_SPEED_TIME"):
        monkeypatch.setenv(f"GDAL_HTTP_{name}", "1")


@pytest.fixture(scope="module")
def at(demo_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Place]:
    with servers.place(tmp_path_factory.mktemp("faults"), demo_world) as found:
        yield found


def passed(figures: Iterator[figures.Figure]) -> None:
    found = list(figures)
    assert found
    assert all(figure.passed for figure in found), found


# ---------------------------------------------------------------- one image


@pytest.mark.parametrize("name", ["packed.tif", "plain.tif"])
@pytest.mark.parametrize(
    "behaviour",
    ["whole-0-1", "whole-2-1", "whole-3-1", "hang-2-1-3", "drip-2-1", "garbage-2-1", "late-503-2-2", "late-429-3-1"],
)
def test_what_passes_late_is_asked_again(server: Server, behaviour: str, name: str) -> None:
    np.testing.assert_array_equal(whole(remote(server.url(f"{behaviour}/{name}"))), VALUES)


@pytest.mark.parametrize("behaviour", ["hang-0-999-9", "hang-3-999-9", "drip-2-999"])
def test_a_server_that_never_ends_is_given_up(server: Server, behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasters, "PATIENCE", 1.5)
    start = time.monotonic()
    with pytest.raises(SourceError, match=r"plain\.tif cannot be read.*rows 0-320, columns 0-320"):
        whole(remote(server.url(f"{behaviour}/plain.tif")))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("behaviour", ["whole-0-999", "whole-2-999", "garbage-2-999"])
def test_a_server_that_stays_wrong_is_an_error(server: Server, behaviour: str) -> None:
    with pytest.raises(SourceError, match=r"packed\.tif cannot be read"):
        whole(remote(server.url(f"{behaviour}/packed.tif")))


def test_a_server_that_asks_for_patience_gets_it(server: Server) -> None:
    start = time.monotonic()
    np.testing.assert_array_equal(whole(remote(server.url("wait-429-1-1/plain.tif"))), VALUES)
    assert time.monotonic() - start >= 1
    assert not [line for line in server.requests("wait-429-1-1/plain.tif") if line.endswith("early")]


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seconds_asked("3") == 3
    assert seconds_asked("999999") == LONGEST_WAIT
    for text in (
        None,
        "",
        "-1",
        "nan",
        "soon",
        "\u00b2",
        "Fri, 31 Dec 1999 23:59:59 GMT",
        "Fri, 99 Dec 1999 23:59:59 GMT",
        f"Fri, 31 Dec 1999 23:59:59 +{'9' * 20}",
    ):
        assert seconds_asked(text) == 0


def test_patience_may_be_asked_for_until_a_moment() -> None:
    now = datetime.now(UTC)
    assert 8 < seconds_asked(format_datetime(now + timedelta(seconds=10), usegmt=True)) <= 10
    assert 8 < seconds_asked(format_datetime((now + timedelta(seconds=10)).replace(tzinfo=None))) <= 10
    assert seconds_asked(format_datetime(now + timedelta(days=1), usegmt=True)) == LONGEST_WAIT


@pytest.mark.parametrize("name", ["packed.tif", "plain.tif"])
@pytest.mark.parametrize("first", range(1, 5))
def test_two_versions_never_become_one_image(server: Server, first: int, name: str) -> None:
    found = whole(remote(server.url(f"etag-{first}/{name}")))
    assert np.array_equal(found, VALUES) or np.array_equal(found, OTHER)


def test_a_version_that_changes_between_two_reads_is_read_anew(server: Server) -> None:
    asset = remote(server.url("etag-03/plain.tif"))
    np.testing.assert_array_equal(asset.read(Window(0, 0, 64, 64)), VALUES[:64, :64])
    np.testing.assert_array_equal(whole(asset), OTHER)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("tag", [33550, 33922, 34735, 34736, 34737])
def test_an_image_whose_place_could_not_be_fetched_is_an_error(
    tmp_path: Path, tag: int, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GDAL ignores tags that it cannot fetch, with a warning; without some of them the image lies elsewhere.
    path = tmp_path / "a.tif"
    grid = GeoBox((60, 60), Affine(463.3, 0, 1.17e7, 0, -463.3, 2.5e6), SINUSOIDAL)
    rasters.write_cog(path, np.ones((60, 60), "uint16"), grid)
    raw = bytearray(path.read_bytes())
    start = int.from_bytes(raw[4:8], "little")
    entries = [start + 2 + 12 * n for n in range(int.from_bytes(raw[start : start + 2], "little"))]
    (entry,) = [at for at in entries if int.from_bytes(raw[at : at + 2], "little") == tag]
    raw[entry + 8 : entry + 12] = (1 << 30).to_bytes(4, "little")  # its values lie beyond the end
    path.write_bytes(raw)
    monkeypatch.setattr(logging.getLogger("rasterio._env"), "disabled", silent)
    target = GeoBox((10, 10), Affine(480, 0, 190_095, 0, -480, 2_500_815), "EPSG:32650")
    with pytest.raises(SourceError, match=r"a\.tif"):
        whole(reader(path, target, Resampling.bilinear, "uint16", 0))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2"])
def test_a_redirect_to_another_host_is_not_followed(server: Server, host: str, tmp_path: Path) -> None:
    write_plain(tmp_path / "plain.tif")
    with serving(tmp_path, tmp_path / "log") as canary:
        for asset in (
            images.remote(server.url(f"to-{host}-{canary.port}/plain.tif?sig=canary")),
            remote(server.url(f"to-{host}-{canary.port}/plain.tif")),
        ):
            with pytest.raises(SourceError, match=f"leads to http://{host}, which is not among the hosts") as caught:
                whole(asset)
            assert "sig" not in str(caught.value)
        assert canary.requests() == []


def test_a_redirect_to_an_allowed_host_is_followed(server: Server) -> None:
    np.testing.assert_array_equal(whole(images.remote(server.url(f"to-127.0.0.1-{server.port}/packed.tif"))), VALUES)


def test_what_is_there_is_told_from_what_is_not(server: Server, tmp_path: Path) -> None:
    write_plain(tmp_path / "a.tif")
    urls = [server.url(f"{how}/plain.tif") for how in ("ok", "fail-404-9", "fail-410-9", "fail-503-2", "reset-1")]
    urls += [str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]
    assert are_there(urls, READERS["none"]) == [True, False, False, True, True, True, False]
    with pytest.raises(SourceError, match="403"):
        are_there([*urls, server.url("fail-403-9/plain.tif")], READERS["none"])


def test_a_token_service_that_does_not_answer_is_given_up() -> None:
    with pytest.raises(TimeoutError, match=r"no token within 0\.05 s"):
        within(0.05, time.sleep, 5)


@pytest.mark.parametrize("step", [images.cuts, images.changes], ids=["cuts", "changes"])
def test_wrong_bytes_never_become_pixels(tmp_path: Path, step: Callable[..., Iterator[figures.Figure]]) -> None:
    passed(step(tmp_path, 3))


# ---------------------------------------------------------------- whole runs


def test_tokens_that_expire_in_the_middle_cost_no_pixel(at: servers.Place) -> None:
    passed(servers.tokens(at, seconds=0.5, pause=0.001))


def test_a_server_that_fails_at_random_gives_the_same_pixels(at: servers.Place) -> None:
    passed(servers.random_faults(at, seeds=1, percent=5))


def test_one_of_forty_assets_missing_is_an_error_or_a_run_without_its_scene(at: servers.Place) -> None:
    passed(servers.missing(at))


def test_a_run_goes_on_without_a_scene_that_came_back(at: servers.Place) -> None:
    item = next(at.world.glob("landsat*/LC*20200302*T1.json")).stem
    folder = at.new("back")
    toml = servers.behind(at.server, at.world, at.new("back-gone"), odd={(item, "red"): servers.GONE})
    assert servers.write_cubes(toml, folder, allow_missing=True) == 0
    before = servers.digests(folder)
    items = (folder / "items.json").read_bytes()
    assert item.encode() in items
    record = next(iter(sorted(folder.glob(f"landsat.zarr/{store.RECORDS}/t*.json"))))
    record.unlink()
    for path in at.new("back-gone").glob("*/*.json"):
        path.write_text(path.read_text().replace(servers.GONE, "ok"))
    state = json.loads((folder / "landsat.zarr" / "zarr.json").read_text())
    state["attributes"]["stfgan_xr"] |= {"status": "writing"}
    (folder / "landsat.zarr" / "zarr.json").write_text(json.dumps(state))
    assert servers.write_cubes(toml, folder, allow_missing=True) == 0
    assert record.is_file()
    assert servers.digests(folder) == before
    with pytest.raises(InputError, match="allow_missing was true, now false"):
        cubes.command(dates="2020-03-01/2020-03-02", catalog=toml, bands="red", bracket_days=8, out_folder=folder)


def test_what_is_missing_is_said_in_one_line(at: servers.Place, capsys: pytest.CaptureFixture[str]) -> None:
    item = next(at.world.glob("landsat*/LC*20200302*T1.json")).stem
    toml = servers.behind(at.server, at.world, at.new("said-gone"), odd={(item, "red"): servers.GONE})
    request = imagery.make_request("2020-03-01", None, toml, None, None, "red", None, 8, allow_missing=True)
    imagery.err.quiet = False
    source = imagery.open_source(request, at.new("said"))
    imagery.err.quiet = True
    assert source.origin["missing"] == {"scenes": 1, "assets": [{"id": item, "asset": "red"}]}
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if not line.strip().startswith(("searching ", "found "))]
    assert "1 of" in line
    assert f"red of {item}" in line


def test_allow_missing_does_not_go_with_pairs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--allow-missing does not go with --pairs"):
        imagery.make_request(None, None, None, None, tmp_path / "pairs.toml", None, None, 8, allow_missing=True)


def test_a_token_shows_nowhere(at: servers.Place) -> None:
    passed(servers.secrets(at, ("clock-1-0",)))


# ---------------------------------------------------------------- grids, orders, addresses, dates


def test_grids_at_whole_pixels_are_raw_bytes_and_those_of_odc_stac(tmp_path: Path) -> None:
    passed(places.shifts(tmp_path, 3))


def test_warps_are_exact_answers_of_any_tiles(tmp_path: Path) -> None:
    passed(places.warps(tmp_path, 3))


@pytest.mark.slow
@pytest.mark.parametrize("step", [places.shifts, places.warps], ids=["shifts", "warps"])
def test_hundreds_of_grids_are_right(tmp_path: Path, step: Callable[..., Iterator[figures.Figure]]) -> None:
    passed(step(tmp_path))


def test_items_in_any_order_give_the_same_record(demo_world: Path, tmp_path: Path) -> None:
    passed(places.orders(demo_world, tmp_path, 5))


def test_hostile_addresses_are_not_opened(demo_world: Path, tmp_path: Path) -> None:
    passed(images.addresses(tmp_path, demo_world))


def test_small_images_that_claim_much_memory_are_refused(tmp_path: Path) -> None:
    passed(images.bombs(tmp_path, ("one strip",)))


def test_odd_dates_are_the_days_they_should_be(demo_world: Path) -> None:
    passed(places.dates(demo_world))
