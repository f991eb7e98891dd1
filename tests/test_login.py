"""Images behind a login: the same bytes as the files, and no secret where it does not belong."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from http.cookiejar import CookieJar
from pathlib import Path

import numpy as np
import pytest
from rasterio._env import del_gdal_config
from rasterio.windows import Window

from benchmarks import images, servers
from stfgan_xr import catalog, rasters, remote
from stfgan_xr.aoi import read_aoi
from stfgan_xr.errors import SourceError
from stfgan_xr.grid import nested_grid
from stfgan_xr.load import load, reader_of
from stfgan_xr.rasters import AssetReader, are_there, write_cog
from stfgan_xr.remote import Login, RangeFile, look
from stfgan_xr.scenes import is_allowed
from tests import test_hdf5, viirs
from tests.range_server import BEARER, DATA, DOOR, HOSTS, PASSWORD, SIGNED, Server, serving
from tests.test_rasters import spec, whole
from tests.test_remote import GRID, VALUES, write_plain

HINT = "put `machine 127.0.0.2 login NAME password WORD` in ~/.netrc"
LOGIN = Login(DOOR, HINT, "EARTHDATA_TOKEN", DATA)
ALLOWED = partial(is_allowed, hosts=tuple(f"http://{host}" for host in HOSTS))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_cog(tmp_path / "packed.tif", VALUES, GRID, 0)
    write_plain(tmp_path / "plain.tif")
    with serving(tmp_path, tmp_path / "log") as running:
        yield running


@pytest.fixture(autouse=True)
def _a_new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(rasters, "PAUSE", 0.01)
    monkeypatch.setattr(rasters, "_KNOWN", {})
    monkeypatch.setattr(remote, "_COOKIES", CookieJar())
    monkeypatch.setattr(remote, "_REFUSED", {})
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("EARTHDATA_TOKEN", raising=False)
    monkeypatch.delenv("CPL_DEBUG", raising=False)
    yield
    for name in ("GDAL_HTTP_HEADERS", "CPL_DEBUG"):  # rasterio keeps what it found in the environment
        del_gdal_config(name)


@pytest.fixture
def user(tmp_path: Path) -> Callable[..., None]:
    """Write the user's file of logins."""

    def write(name: str, password: str = PASSWORD, more: str = "") -> None:
        (tmp_path / "netrc").write_text(f"machine {DOOR} login {name} password {password}\n{more}")

    return write


def image(url: str, login: Login = LOGIN, allowed: Callable[[str], bool] = ALLOWED) -> AssetReader:
    return AssetReader(
        url=url, spec=spec(GRID), resampling=rasters.Resampling.nearest, dtype=np.dtype("uint16"), fill_value=0,
        allowed=allowed, login=login,
    )  # fmt: skip


def refused(asset: AssetReader) -> str:
    """The error of a read, which holds no secret and no second line."""
    with pytest.raises(SourceError) as caught:
        whole(asset)
    text, chain = str(caught.value), caught.value
    assert "\n" not in text
    while chain is not None:
        assert "canary" not in str(chain)
        chain = chain.__cause__ or chain.__context__  # type: ignore[assignment]
    return text


@pytest.mark.parametrize("name", ["packed.tif", "plain.tif"])
def test_a_login_gives_the_bytes_of_the_file(server: Server, user: Callable[..., None], name: str) -> None:
    user("ann")
    asset = image(server.url(f"login-60/{name}"))
    np.testing.assert_array_equal(whole(asset), VALUES)
    np.testing.assert_array_equal(asset.read(Window(0, 0, 64, 64)), VALUES[:64, :64])
    assert [len(server.sent(host)) for host in (DATA, DOOR)] == [4, 1]  # twice to the login's door, back, and in
    signed = server.sent(SIGNED)
    assert {request["method"] for request in signed} == {"GET"}
    assert len(signed) > 2
    assert "canary" not in asset.url + repr(rasters._KNOWN)


def test_secrets_go_to_their_host_only(
    server: Server, user: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    user("ann", more="default login everybody password canary-default\n")
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "X-Secret: canary-header")
    np.testing.assert_array_equal(whole(image(server.url("login-60/plain.tif"))), VALUES)
    assert all(request["authorization"] is None for request in server.sent() if request["host"] != DOOR)
    assert {request["x-secret"] for request in server.sent() if request["host"] != DATA} == {None}
    assert {request["cookie"] for request in server.sent() if request["host"] != DATA} == {None}


def test_many_at_once_log_in_once(server: Server, user: Callable[..., None]) -> None:
    user("ann")
    urls = [server.url(f"login-60/plain.tif?number={number}") for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        places = list(pool.map(lambda url: look(url, ALLOWED, LOGIN), urls))
    assert all(place.address.startswith(f"http://{SIGNED}") for place in places)
    assert len(server.sent(DOOR)) == 1


def test_the_process_has_one_login_and_no_file_of_it(server: Server, user: Callable[..., None], tmp_path: Path) -> None:
    user("ann")
    whole(image(server.url("login-60/plain.tif")))
    whole(image(server.url("login-60/packed.tif")))
    assert len(server.sent(DOOR)) == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"packed.tif", "plain.tif", "netrc", "log", "log.sent"}


# ---------------------------------------------------------------- who is not let in


def test_a_wrong_password_is_said_once_and_not_sent_again(server: Server, user: Callable[..., None]) -> None:
    user("ann", "canary-wrong")
    said = refused(image(server.url("login-60/plain.tif")))
    assert f"login-60/plain.tif cannot be read: {DOOR} refuses the login: {HINT}" in said
    urls = [server.url(f"login-60/plain.tif?number={number}") for number in range(16)]
    with pytest.raises(SourceError, match="refuses the login"):
        are_there(urls, lambda **options: AssetReader(**options, allowed=ALLOWED, login=LOGIN))
    assert len(server.sent(DOOR)) == 1
    user("ann")  # another one is tried at once
    np.testing.assert_array_equal(whole(image(server.url("login-60/plain.tif"))), VALUES)


def test_without_a_login_the_door_is_not_asked(server: Server, tmp_path: Path) -> None:
    for text in ("", f"machine {DATA}x login ann password {PASSWORD}\n", f"default login ann password {PASSWORD}\n"):
        (tmp_path / "netrc").write_text(text)
        assert f"{DOOR} asks for a login: {HINT}" in refused(image(server.url("login-60/plain.tif")))
    (tmp_path / "netrc").unlink()
    assert f"{DOOR} asks for a login: {HINT}" in refused(image(server.url("login-60/plain.tif")))
    assert server.sent(DOOR) == []


def test_a_netrc_that_cannot_be_read_is_said_without_its_words(server: Server, user: Callable[..., None]) -> None:
    user("ann", "canary word")
    said = refused(image(server.url("login-60/plain.tif")))
    assert said.endswith("netrc, line 2: write machine HOST login NAME password WORD")


def test_a_page_instead_of_a_login_is_an_error(server: Server, user: Callable[..., None]) -> None:
    user("bob")
    said = refused(image(server.url("login-60/plain.tif")))
    assert f"{DOOR} does not go on (HTTP 200); the login may be wrong, or terms not accepted: {HINT}" in said
    assert len(server.sent(DOOR)) == 1


def test_terms_not_accepted_are_named(server: Server, user: Callable[..., None]) -> None:
    user("eve")
    said = refused(image(server.url("login-60/plain.tif")))
    assert said.endswith(f"{DATA} wants its terms accepted first, at http://{DOOR}:{server.port}/terms?client=1")
    assert len(server.sent(DOOR)) == 1


def test_a_login_on_a_host_that_is_not_allowed_is_not_asked(server: Server, user: Callable[..., None]) -> None:
    user("ann")
    only = partial(is_allowed, hosts=(f"http://{DATA}",))
    assert f"leads to http://{DOOR}, which is not among" in refused(
        image(server.url("login-60/plain.tif"), LOGIN, only)
    )
    both = partial(is_allowed, hosts=(f"http://{DATA}", f"http://{DOOR}"))
    assert f"leads to http://{SIGNED}, which is" in refused(image(server.url("login-60/plain.tif"), LOGIN, both))
    assert server.sent(SIGNED) == []


def test_a_host_that_netrc_names_is_sent_its_password_by_all_who_ask(server: Server, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine {DATA} login ann password {PASSWORD}\n")
    url = server.url("basic/plain.tif")
    np.testing.assert_array_equal(whole(image(url, remote.NO_LOGIN)), VALUES)
    assert len(RangeFile(url).read()) == (tmp_path / "plain.tif").stat().st_size
    (tmp_path / "netrc").write_text(f"default login ann password {PASSWORD}\n")
    assert "401" in refused(image(server.url("basic/packed.tif"), remote.NO_LOGIN))


# ---------------------------------------------------------------- tokens


def test_a_token_needs_no_login(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARTHDATA_TOKEN", BEARER)
    np.testing.assert_array_equal(whole(image(server.url("login-60/plain.tif"))), VALUES)
    assert {request["authorization"] for request in server.sent(DATA)} == {f"Bearer {BEARER}"}
    assert {request["authorization"] for request in server.sent(SIGNED)} == {None}
    assert server.sent(DOOR) == []


def test_a_token_that_is_refused_gives_way_to_the_login(
    server: Server, user: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EARTHDATA_TOKEN", "canary-old")
    assert f"the token of EARTHDATA_TOKEN is refused: {HINT}" in refused(image(server.url("login-60/plain.tif")))
    user("ann")
    np.testing.assert_array_equal(whole(image(server.url("login-60/plain.tif"))), VALUES)
    assert all("old" not in str(request) for request in server.sent() if request["host"] != DATA)


def test_a_token_goes_to_its_hosts_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARTHDATA_TOKEN", BEARER)
    other = Login(DOOR, HINT, "EARTHDATA_TOKEN", "*.earthdatacloud.nasa.gov")
    assert f"{DOOR} asks for a login" in refused(image(server.url("login-60/plain.tif"), other))
    assert {request["authorization"] for request in server.sent()} == {None}
    monkeypatch.setenv("EARTHDATA_TOKEN", "canary\r\nX: 1")
    assert refused(image(server.url("login-60/plain.tif"))).startswith("EARTHDATA_TOKEN in the environment is no token")


# ---------------------------------------------------------------- signed addresses end


@pytest.mark.parametrize("name", ["packed.tif", "plain.tif"])
def test_a_signed_address_that_ends_is_asked_for_anew(server: Server, user: Callable[..., None], name: str) -> None:
    user("ann")
    asset = image(server.url(f"login-0.4/{name}"))
    for column in range(0, 320, 16):  # some before, some after
        found = asset.read(Window(column, 0, 16, 320))
        np.testing.assert_array_equal(found, VALUES[:, column : column + 16])
        if column in (96, 192):
            time.sleep(0.5)
    assert len({request["path"] for request in server.sent(SIGNED)}) > 2
    assert len(server.sent(DOOR)) == 1


def test_a_signed_address_that_is_over_at_once_is_an_error_in_the_end(
    server: Server, user: Callable[..., None]
) -> None:
    user("ann")
    said = refused(image(server.url("login-0/plain.tif")))
    assert "login-0/plain.tif cannot be read: HTTP response code: 403" in said
    assert len(server.sent(SIGNED)) <= 1 + rasters.RENEWALS


def test_an_end_in_the_middle_of_a_file_of_ranges_is_an_error_that_passes(
    server: Server, user: Callable[..., None]
) -> None:
    user("ann")
    place = look(server.url("login-0.3/plain.tif"), ALLOWED, LOGIN)
    file = RangeFile(place.address, place.tag)
    raw = file.read(16)
    time.sleep(0.4)
    with pytest.raises(OSError, match="HTTP response code: 403") as caught:
        file.prefetch([(2 * file.BLOCK, 16)])
    assert "canary" not in str(caught.value)
    assert raw[:2] in (b"II", b"MM")


def test_a_field_of_hdf5_behind_a_login_is_the_local_one(
    server: Server, user: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user("ann")
    monkeypatch.setattr(RangeFile, "BLOCK", 2**11)
    viirs.write(tmp_path / "a.h5", test_hdf5.AFFINE, test_hdf5.fields())
    local = test_hdf5.reader(f"{tmp_path}/a.h5#{test_hdf5.FIELD}")
    url = server.url(f"login-0.2/a.h5#{test_hdf5.FIELD}")
    asset = test_hdf5.reader(url, allowed=ALLOWED, login=LOGIN)
    for row in range(0, 96, 24):
        window = Window(0, row, 112, 24)
        np.testing.assert_array_equal(asset.read(window), local.read(window))
        time.sleep(0.15)
    assert len({request["path"] for request in server.sent(SIGNED)}) > 1
    assert len(server.sent(DOOR)) == 1


def test_nothing_secret_reaches_the_log(
    server: Server, user: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    user("ann")
    monkeypatch.setenv("CPL_DEBUG", "ON")
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "Authorization: canary")
    with caplog.at_level(logging.DEBUG):
        whole(image(server.url("login-60/plain.tif")))
        whole(image(server.url("ok/plain.tif")))
        refused(image(server.url("login-0/plain.tif")))
    assert "CURL_INFO_HEADER" in caplog.text
    assert "canary" not in caplog.text


def test_what_gdal_is_listened_to_for_is_not_shown(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        whole(image(server.url("ok/plain.tif")))
    assert "CURL_INFO" not in caplog.text


# ---------------------------------------------------------------- redirects while GDAL reads


@pytest.mark.parametrize("name", ["packed.tif", "plain.tif"])
@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_a_redirect_in_the_middle_of_a_read_gives_no_pixel(
    server: Server, first: int, name: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_cog(other / "packed.tif", VALUES[::-1].copy(), GRID, 0)
    images.write_plain(other / "plain.tif", VALUES[::-1].copy())
    with serving(other, other / "log") as canary:
        only = partial(is_allowed, hosts=(f"http://{DATA}",))
        asset = image(server.url(f"then-{DOOR}-{canary.port}-{first}/{name}"), remote.NO_LOGIN, only)
        before = len(server.requests(f"then-{DOOR}-{canary.port}-{first}/{name}"))
        try:
            np.testing.assert_array_equal(whole(asset), VALUES)
            assert len(server.requests(f"then-{DOOR}-{canary.port}-{first}/{name}")) - before <= first
        except SourceError as error:
            assert f"leads to http://{DOOR}, which is not among the hosts" in str(error)  # noqa: PT017
        assert all(not any(request[key] for key in ("authorization", "cookie")) for request in canary.sent())


# ---------------------------------------------------------------- whole runs


def behind_login(server: Server, world: Path, folder: Path) -> str:
    """The demo's catalog with its images behind the login; the path of its TOML."""
    toml = Path(servers.behind(server, world, folder, "login-1"))
    hosts = json.dumps([f"http://{host}" for host in HOSTS])
    text = toml.read_text().replace(
        'hosts = ["http://127.0.0.1"]', f'hosts = {hosts}\nlogin_host = "{DOOR}"\nlogin = "{HINT}"'
    )
    toml.write_text(text)
    return str(toml)


def test_a_run_behind_a_login_has_the_content_of_the_files(
    demo_world: Path, user: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "place").mkdir()
    with servers.place(tmp_path / "place", demo_world) as at:
        toml = behind_login(at.server, demo_world, at.new("login"))
        assert servers.write_cubes(toml, at.new("stranger")) == 4
        assert servers.chunks(at.new("stranger")) == 0
        user("ann")
        assert servers.write_cubes(toml, at.new("run")) == 0
        assert servers.digests(at.new("run")) == servers.digests(at.good)
        files = [path for path in at.new("run").rglob("*") if path.is_file()]
        assert not any(word in path.read_bytes() for path in files for word in (b"canary", PASSWORD.encode()))
        assert len(at.server.sent(DOOR)) == 1


def test_a_graph_holds_no_secret(demo_world: Path, user: Callable[..., None], tmp_path: Path, server: Server) -> None:
    user("ann")
    known = catalog.open_catalog(behind_login(server, demo_world, tmp_path / "login")).fine
    assert known is not None
    area = read_aoi(demo_world / "aoi.geojson")
    found = catalog.search(known, area, date(2020, 3, 1), date(2020, 3, 2), 114.0, ["red"])
    graph = load(found, nested_grid(area), side=known, bands=["red"]).__dask_graph__()
    assert PASSWORD.encode() not in pickle.dumps(dict(graph))
    assert reader_of(known)(
        url="http://127.0.0.1/a.tif", spec=None, resampling=None, dtype="u1", fill_value=0
    ).login == Login(DOOR, HINT)
