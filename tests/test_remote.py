"""Remote images that come late, broken, forbidden or not at all: right bytes or an error, never pixels."""

from __future__ import annotations

import logging
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from stfgan_xr import rasters
from stfgan_xr.errors import SourceError
from stfgan_xr.rasters import AssetReader, PlanetaryComputerReader, Resampling, write_cog
from tests.range_server import Server, serving
from tests.test_rasters import spec, whole

with warnings.catch_warnings():
    # planetary-computer 1.0 configures pydantic in a way that pydantic 2 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    import planetary_computer
    from planetary_computer import sas

SIDE = 320
GRID = GeoBox((SIDE, SIDE), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
VALUES = np.random.default_rng(0).integers(1, 65535, (SIDE, SIDE)).astype("uint16")


def write_plain(path: Path) -> None:
    """Uncompressed, in small tiles: nothing but its length says whether a range arrived whole."""
    profile = {"driver": "GTiff", "count": 1, "height": SIDE, "width": SIDE, "dtype": "uint16", "crs": "EPSG:32650"}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", transform=GRID.affine, **profile, **tiles) as target:
        target.write(VALUES, 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    write_cog(folder / "packed.tif", VALUES, GRID, 0)
    write_plain(folder / "plain.tif")
    (folder / "text.tif").write_text("no image " * 400)
    with serving(folder, folder / "log") as running:
        yield running


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasters, "PAUSE", 0.01)


def remote(url: str, kind: type[AssetReader] = AssetReader) -> AssetReader:
    return kind(url=url, spec=spec(GRID), resampling=Resampling.nearest, dtype=np.dtype("uint16"), fill_value=0)


@pytest.mark.parametrize("name", ["packed.tif", "plain.tif"])
@pytest.mark.parametrize(
    "behaviour", ["ok", "fail-503-1", "fail-429-2", "fail-500-2", "late-503-1-1", "late-502-2-2", "reset-1", "half-1"]
)
def test_what_passes_is_asked_again_and_gives_the_same_bytes(server: Server, behaviour: str, name: str) -> None:
    np.testing.assert_array_equal(whole(remote(server.url(f"{behaviour}/{name}"))), VALUES)


def test_nothing_beside_the_image_is_asked_for(server: Server) -> None:
    whole(remote(server.url("ok/packed.tif?only=1")))
    asked = {line.split()[1] for line in server.log.read_text().splitlines() if "only=1" in line}
    assert asked == {"/ok/packed.tif?only=1"}


@pytest.mark.parametrize("name", ["packed.tif", "plain.tif"])
@pytest.mark.parametrize(
    "behaviour", ["fail-404-99", "fail-410-98", "fail-403-99", "fail-503-99", "late-503-1-999", "late-404-2-999", "reset-99", "half-99"]
)  # fmt: skip
def test_what_stays_is_an_error_that_names_the_image(server: Server, behaviour: str, name: str) -> None:
    with pytest.raises(SourceError, match=f"{behaviour}/{name} cannot be read") as caught:
        whole(remote(server.url(f"{behaviour}/{name}?sig=canary")))
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("behaviour", "most"), [("fail-404-77", 2), ("fail-403-77", 2), ("fail-503-77", rasters.ATTEMPTS)]
)
def test_only_what_may_pass_is_asked_again(server: Server, behaviour: str, most: int) -> None:
    with pytest.raises(SourceError):
        whole(remote(server.url(f"{behaviour}/plain.tif")))
    assert 1 <= len(server.requests(f"{behaviour}/plain.tif")) <= most


@pytest.mark.parametrize("threads", ["2", "ALL_CPUS"])
def test_threads_of_gdal_do_not_make_zeros_of_failures(
    server: Server, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With them, GDAL 3.10 reads an image of zeros where the third request fails.
    monkeypatch.setenv("GDAL_NUM_THREADS", threads)
    with pytest.raises(SourceError):
        whole(remote(server.url(f"late-503-2-{990 + len(threads)}/plain.tif")))


def test_a_page_instead_of_an_image_is_an_error(server: Server) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        whole(remote(server.url("ok/text.tif")))


def test_queries_do_not_reach_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError):
        whole(remote(server.url("fail-403-50/plain.tif?sig=canary")))
    assert "canary" not in caplog.text


@pytest.fixture
def signer(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Stand in for the Planetary Computer's signer: tokens in turn, each kept until it is dropped."""

    def use(tokens: list[str]) -> None:
        def sign(url: str, **_: Any) -> str:
            cache = sas.TOKEN_CACHE
            if "here" not in cache:
                cache["here"] = types.SimpleNamespace(token=tokens.pop(0) if len(tokens) > 1 else tokens[0])
            return f"{url}?sig={cache['here'].token}"

        monkeypatch.setattr(sas, "TOKEN_CACHE", {})
        monkeypatch.setattr(planetary_computer, "sign_url", sign)

    return use


def test_a_token_that_expires_is_renewed(server: Server, signer: Callable[[list[str]], None]) -> None:
    signer(["old", "new"])
    asset = remote(server.url("sig-new/plain.tif"), PlanetaryComputerReader)
    np.testing.assert_array_equal(whole(asset), VALUES)
    assert [line for line in server.requests("sig-new/plain.tif") if "sig=old" in line]
    assert "sig=" not in asset.url


def test_a_refusal_that_stays_is_an_error_without_the_token(
    server: Server, signer: Callable[[list[str]], None], caplog: pytest.LogCaptureFixture
) -> None:
    signer(["canary"])
    with pytest.raises(SourceError, match="403") as caught:
        whole(remote(server.url("sig-never/plain.tif"), PlanetaryComputerReader))
    assert "canary" not in str(caught.value) + caplog.text


def test_a_signer_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> str:
        raise ValueError("no token")

    monkeypatch.setattr(planetary_computer, "sign_url", refuse)
    with pytest.raises(SourceError, match=r"a\.tif cannot be read: no token"):
        whole(remote("https://x.blob.core.windows.net/a.tif", PlanetaryComputerReader))


def test_a_bucket_that_wants_to_be_paid_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CPL_AWS_CREDENTIALS_FILE", "none")
    with pytest.raises(SourceError, match="AWS_REQUEST_PAYER=requester"):
        whole(remote("s3://usgs-landsat/a.tif"))


@pytest.mark.parametrize(("status", "said", "hint"), [(404, "it is not there", 0), (403, "403", 1), (503, "503", 0)])
def test_only_a_refusal_by_a_bucket_is_about_who_pays(
    server: Server, status: int, said: str, hint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = {"AWS_S3_ENDPOINT": f"127.0.0.1:{server.port}", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}
    keys = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    for name, value in (store | keys).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match=said) as caught:
        whole(remote(f"s3://fail-{status}-66/plain.tif"))
    assert str(caught.value).count("requester-pays") == hint
