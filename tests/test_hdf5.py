"""VIIRS in HDF-EOS5: the grid that GDAL finds, the pixels of the same image as GeoTIFF, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS
from rasterio.windows import Window

from stfgan_xr import hdf5, rasters
from stfgan_xr.errors import SourceError
from stfgan_xr.grid import SINUSOIDAL
from stfgan_xr.rasters import AssetReader, Resampling, write_cog
from stfgan_xr.remote import RangeFile
from tests import viirs
from tests.range_server import Server, serving
from tests.test_rasters import spec

# A part of the lattice of the 1 km tiles, over Shenzhen.
AFFINE = Affine(viirs.PIXEL, 0, -20015109.354 + 34238 * viirs.PIXEL, 0, -viirs.PIXEL, 10007554.677 - 8085 * viirs.PIXEL)
SHAPE = (60, 110)
VALUES = np.random.default_rng(0).integers(0, 6000, SHAPE).astype("int16")
VALUES[20:30, 30:50] = 32767
GRID = GeoBox((96, 112), Affine(480, 0, 199_695, 0, -480, 2_500_335), "EPSG:32650")
FIELD = f"{viirs.FIELDS}/{viirs.REFLECTANCE}_M5"


def fields() -> dict[str, Any]:
    return viirs.fields_of({"red": np.where(VALUES == 32767, -32768, VALUES).astype("int16")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("viirs")
    viirs.write(made / "a.h5", AFFINE, fields())
    grid = GeoBox(SHAPE, AFFINE, CRS.from_user_input(SINUSOIDAL))
    write_cog(made / "a.tif", VALUES, grid)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, folder / "log") as running:
        yield running


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasters, "PAUSE", 0.01)
    monkeypatch.setattr(RangeFile, "BLOCK", 2**11)  # the file is small, and shall take several requests


def reader(url: str, how: Resampling = Resampling.bilinear, **more: Any) -> AssetReader:
    options: dict[str, Any] = {"dtype": np.dtype("int16"), "fill_value": 32767, "coding": (1e-4, 0.0)} | more
    return AssetReader(url=url, spec=spec(GRID), resampling=how, **options)


def whole(asset: AssetReader) -> Any:
    return asset.read(Window(0, 0, 112, 96))


def test_the_area_lies_where_the_image_is(folder: Path) -> None:
    found = whole(reader(f"{folder}/a.tif"))
    assert (found != 32767).mean() > 0.9
    assert (found == 32767).any()


@pytest.mark.parametrize("how", [Resampling.bilinear, Resampling.nearest])
def test_a_field_gives_the_pixels_of_the_same_image_as_geotiff(folder: Path, how: Resampling) -> None:
    np.testing.assert_array_equal(whole(reader(f"{folder}/a.h5#{FIELD}", how)), whole(reader(f"{folder}/a.tif", how)))


def test_a_field_does_not_depend_on_tiles(folder: Path) -> None:
    asset = reader(f"{folder}/a.h5#{FIELD}")
    found = whole(asset)
    for top in range(0, 96, 32):
        for left in range(0, 112, 28):
            np.testing.assert_array_equal(
                asset.read(Window(left, top, 28, 32)), found[top : top + 32, left : left + 28]
            )


def test_a_window_beside_the_image_is_fill(folder: Path) -> None:
    far = GeoBox((16, 16), Affine(480, 0, 199_695 + 480 * 2000, 0, -480, 2_500_335), "EPSG:32650")
    asset = reader(f"{folder}/a.h5#{FIELD}")
    asset.spec = spec(far)
    assert (asset.read(Window(0, 0, 16, 16)) == 32767).all()


def test_gdal_finds_the_same_grid(folder: Path) -> None:
    with rasterio.open(f'HDF5:"{folder}/a.h5"://{FIELD.replace(" ", "_")}') as theirs:
        assert theirs.transform.almost_equals(AFFINE, 1e-5)
        with Path(folder / "a.h5").open("rb") as file, hdf5.open_field(file, FIELD, "a.h5") as ours:
            assert ours.transform.almost_equals(theirs.transform, 1e-6)
            assert (ours.height, ours.width) == theirs.shape
            np.testing.assert_array_equal(ours.read(1, window=((0, 60), (0, 110))), theirs.read(1))


# ---------------------------------------------------------------- from a server


@pytest.mark.parametrize(
    "behaviour",
    ["ok", "fail-503-1", "late-503-1-1", "late-503-2-1", "reset-1", "half-1", "late-429-2-2", "etag-99", "random-3-20"],
)
def test_a_remote_field_is_the_local_one(server: Server, folder: Path, behaviour: str) -> None:
    found = whole(reader(server.url(f"{behaviour}/a.h5") + f"#{FIELD}"))
    np.testing.assert_array_equal(found, whole(reader(f"{folder}/a.h5#{FIELD}")))


@pytest.mark.parametrize(
    "behaviour", ["fail-404-99", "fail-403-99", "fail-503-99", "late-503-1-999", "late-404-2-999", "half-99", "whole-1-999"]
)  # fmt: skip
def test_what_stays_is_an_error_that_names_the_file(
    server: Server, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasters, "ATTEMPTS", 3)
    with pytest.raises(SourceError, match=f"{behaviour}/a.h5 cannot be read"):
        whole(reader(server.url(f"{behaviour}/a.h5?sig=canary") + f"#{FIELD}"))


def test_few_requests_are_made(server: Server) -> None:
    whole(reader(server.url("ok/a.h5?few=1") + f"#{FIELD}"))
    lines = [line for line in server.log.read_text().splitlines() if "few=1" in line]
    assert 2 < len(lines) <= 10
    assert {line.split()[1] for line in lines} == {"/ok/a.h5?few=1"}


def test_fields_of_a_file_share_what_they_both_need(server: Server, folder: Path) -> None:
    quality = f"{viirs.FIELDS}/{viirs.QUALITY}_M5"
    counts = []
    for mark in ("etag-99", "ok"):  # only a file with an entity tag is known to be the same
        url = server.url(f"{mark}/a.h5?shared={mark}")
        whole(reader(f"{url}#{FIELD}"))
        before = len(server.log.read_text().splitlines())
        found = whole(reader(f"{url}#{quality}", Resampling.nearest, dtype=np.dtype("uint8"), fill_value=255))
        counts.append(len(server.log.read_text().splitlines()) - before)
        assert (found == 0).mean() > 0.5
    assert counts[0] < counts[1]


def test_cut_anywhere_it_is_never_a_wrong_pixel(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasters, "ATTEMPTS", 1)
    size = (folder / "a.h5").stat().st_size
    for offset in np.linspace(0, size - 1, 12).astype(int):
        with pytest.raises(SourceError):
            whole(reader(server.url(f"cut-{offset}/a.h5") + f"#{FIELD}"))


def test_a_file_that_comes_too_slowly_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from stfgan_xr import remote

    monkeypatch.setattr(remote, "SLOW_SECONDS", 1.0)
    monkeypatch.setattr(rasters, "ATTEMPTS", 1)
    with pytest.raises(SourceError, match="too slowly"):
        whole(reader(server.url("drip-1-99/a.h5") + f"#{FIELD}"))


@pytest.mark.parametrize("block", [1000, 4096, 65536])
def test_a_range_file_reads_like_a_file(
    server: Server, folder: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RangeFile, "BLOCK", block)
    monkeypatch.setattr(RangeFile, "MOST_BLOCKS", 4)
    raw = (folder / "a.h5").read_bytes()
    rng = np.random.default_rng(block)
    file = RangeFile(server.url("ok/a.h5"))
    assert file.seek(0, 2) == len(raw)
    assert file.read(10) == b""
    for _ in range(60):
        start, count = int(rng.integers(0, len(raw))), int(rng.integers(1, 9000))
        file.seek(start)
        assert file.read(count) == raw[start : start + count]
    file.seek(0)
    assert file.readall() == raw


# ---------------------------------------------------------------- what may not be


def spoiled(folder: Path, change: Callable[[h5py.File], None]) -> str:
    path = viirs.write(folder / "spoiled.h5", AFFINE, fields())
    with h5py.File(path, "r+") as file:
        change(file)
    return f"{path}#{FIELD}"


def replaced(text: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[viirs.STRUCTURE]
        file[viirs.STRUCTURE] = np.bytes_(text)

    return change


def external(path: Path) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[FIELD]
        file.create_dataset(FIELD, SHAPE, "int16", external=[(str(path), 0, h5py.h5f.UNLIMITED)])

    return change


def virtual(path: Path) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(SHAPE, "int16")
        layout[:] = h5py.VirtualSource(str(path), FIELD, SHAPE)
        del file[FIELD]
        file.create_virtual_dataset(FIELD, layout)

    return change


def link(path: Path) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[FIELD]
        file[FIELD] = h5py.ExternalLink(str(path), FIELD)

    return change


def huge(file: h5py.File) -> None:
    del file[FIELD]
    file.create_dataset(FIELD, (40_000, 40_000), "int16", chunks=(40_000, 40_000), compression="gzip")


def stated(key: str, value: float) -> Callable[[h5py.File], None]:
    return lambda file: file[FIELD].attrs.modify(key, value)


def test_values_of_other_files_are_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x01\x02" * (SHAPE[0] * SHAPE[1]))
    for change, said in ((external(secret), "in another file"), (virtual(folder / "a.h5"), "in another file"),
                         (link(folder / "a.h5"), "is a link")):  # fmt: skip
        with pytest.raises(SourceError, match=said):
            whole(reader(spoiled(tmp_path, change)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (huge, "larger than any product"),
        (stated("scale_factor", 0.001), "scale_factor .* is 0.001 there, expected 0.0001"),
        (stated("_FillValue", -999), "_FillValue .* is -999 there, expected 32767"),
        (stated("add_offset", 5), "add_offset .* is 5 there, expected 0"),
        (replaced(viirs.structure(SHAPE, AFFINE, Projection="HE5_GCTP_GEO")), "not the sinusoidal"),
        (replaced(viirs.structure(SHAPE, AFFINE, ProjParams="(6378137,0)")), "on a sphere of 6378137"),
        (replaced(viirs.structure(SHAPE, AFFINE, XDim=99)), r"has \(60, 110\) cells, its grid \(60, 99\)"),
        (replaced(viirs.structure(SHAPE, AFFINE, LowerRightMtrs="(0,0)")), "corners"),
        (replaced("GROUP=GridStructure\nEND_GROUP=GridStructure\n"), "describes no grid"),
        (lambda file: file.__delitem__(viirs.STRUCTURE), "has no"),
        (lambda file: file.__delitem__(FIELD), "has no"),
    ],
)
def test_what_is_not_the_product_is_an_error_that_says_why(
    tmp_path: Path, change: Callable[[h5py.File], None], said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        whole(reader(spoiled(tmp_path, change)))


def test_other_files_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5 " * 100)
    for path in (tmp_path / "text.h5", tmp_path / "absent.h5", folder / "a.tif"):
        with pytest.raises(SourceError, match=f"{path.name} cannot be read"):
            whole(reader(f"{path}#{FIELD}"))
    with pytest.raises(SourceError, match="over https or from disk only"):
        whole(reader(f"s3://bucket/a.h5#{FIELD}"))
    with pytest.raises(SourceError, match="holds int16, expected uint8"):
        whole(reader(f"{folder}/a.h5#{FIELD}", dtype="uint8", fill_value=255))
