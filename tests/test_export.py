"""What is exported equals the cube, read back by GDAL, xarray, pystac and Pillow, and passes their validators."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import rioxarray  # noqa: F401 (its accessor)
import xarray as xr
from PIL import Image
from pystac.validation.local_validator import get_local_schema_cache
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rio_cogeo import cog_validate
from shapely.geometry import mapping

from pipelines import export as command
from pipelines.console import main
from stfgan_xr import export, stac, store
from stfgan_xr.aoi import read_aoi
from stfgan_xr.files import as_folder
from stfgan_xr.fusion import Quality
from stfgan_xr.grid import Window
from stfgan_xr.overviews import open_pyramid
from stfgan_xr.region import Region
from stfgan_xr.sensors import BANDS, FILL
from tests.browser import browsing
from tests.synthetic import grid

KEYS = {"reflectance": BANDS, "qa": ("qa",), "ages": ("days_before", "days_after")}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process; its exit code, stdout and stderr."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as stop:
            main(command.command, command.AFTER)
        signal.signal(signal.SIGTERM, before)
        seen = capsys.readouterr()
        return int(stop.value.code or 0), seen.out, seen.err

    return run


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of the finished run as COGs."""
    folder = tmp_path_factory.mktemp("export") / "out"
    folder.mkdir()
    run = as_folder(finished)
    counts = store.open_counts(finished / "fused.zarr")
    subset = export.select(run, [export.days_of(counts)[n] for n in (1, 2, 7)])
    origin = export.origin_of(run, "small")
    stac.save(folder, list(export.write_cogs(subset, folder, origin)), origin)
    return folder


def cog(folder: Path, day: str, key: str) -> Path:
    return folder / "small" / f"small_2020-03-{day}" / f"small_2020-03-{day}_{key}.tif"


@pytest.mark.parametrize("key", KEYS)
def test_gdal_reads_the_values_place_scale_and_names_of_the_cube(exported: Path, finished: Path, key: str) -> None:
    counts = store.open_counts(finished / "fused.zarr")
    with rasterio.open(cog(exported, "03", key)) as found:
        assert found.descriptions == KEYS[key]
        for number, name in enumerate(KEYS[key], 1):
            np.testing.assert_array_equal(found.read(number), counts[name].values[2])
        assert found.crs.to_epsg() == 32650
        assert tuple(found.transform)[:6] == tuple(counts.odc.geobox.affine)[:6]
        assert found.tags()["DATE"] == "2020-03-03"
        assert found.nodata == {"reflectance": FILL, "qa": None, "ages": 255}[key]
        if key == "reflectance":
            assert found.scales == (1e-4,) * 6
            assert found.offsets == (0.0,) * 6
            assert [c.name for c in found.colorinterp[:3]] == ["blue", "green", "red"]


@pytest.mark.parametrize("key", KEYS)
def test_files_are_valid_cogs(exported: Path, key: str) -> None:
    valid, errors, warnings = cog_validate(cog(exported, "02", key), quiet=True)
    assert (valid, errors, warnings) == (True, [], [])


def test_a_large_file_has_overviews_and_is_valid(tmp_path: Path) -> None:
    from stfgan_xr import cogs
    from stfgan_xr.grid import tiles

    values = np.random.default_rng(0).integers(0, 9000, (2, 700, 1100)).astype("int16")
    with cogs.writing(tmp_path / "a.tif", grid(700, 1100), cogs.Content(("a", "b"), "int16", FILL, 1e-4)) as write:
        for window in tiles((700, 1100), 512):
            write(window, values[(slice(None), *window.slices)])
    assert cog_validate(tmp_path / "a.tif", quiet=True) == (True, [], [])
    with rasterio.open(tmp_path / "a.tif") as found:
        assert found.overviews(1) == [2, 4]
        np.testing.assert_array_equal(found.read(), values)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_failed_file_leaves_nothing(tmp_path: Path) -> None:
    from stfgan_xr import cogs

    with (
        pytest.raises(ZeroDivisionError),
        cogs.writing(tmp_path / "a.tif", grid(64, 64), cogs.Content(("a",), "int16")),
    ):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def validator() -> JsonSchemaSTACValidator:
    """The schemas of STAC that come with pystac, and of the extensions where a folder of them is named."""
    found = JsonSchemaSTACValidator()
    found.schema_cache = dict(get_local_schema_cache())
    folder = os.environ.get("STFGAN_XR_STAC_SCHEMAS")
    for address in stac.EXTENSIONS if folder else ():
        name, version = address.split("/")[3:5]
        found.schema_cache[address] = json.loads((Path(folder or "") / name / version / "schema.json").read_text())
    return found


def test_the_catalog_is_valid_by_the_schemas_of_stac(exported: Path) -> None:
    checks = validator()
    catalog = pystac.Catalog.from_file(str(exported / "catalog.json"))
    items = list(catalog.get_items(recursive=True))
    assert len(items) == 3
    for thing in (catalog, *catalog.get_children(), *items):
        kind = pystac.STACObjectType.ITEM if isinstance(thing, pystac.Item) else thing.STAC_OBJECT_TYPE
        checks.validate_core(thing.to_dict(), kind, "1.1.0")


@pytest.mark.skipif(
    "STFGAN_XR_STAC_SCHEMAS" not in os.environ,
    reason="STFGAN_XR_STAC_SCHEMAS names no folder of <extension>/<version>/schema.json",
)
@pytest.mark.parametrize("address", stac.EXTENSIONS)
def test_items_are_valid_by_the_schema_of_each_extension(exported: Path, address: str) -> None:
    checks = validator()
    for item in pystac.Catalog.from_file(str(exported / "catalog.json")).get_items(recursive=True):
        checks.validate_extension(item.to_dict(), pystac.STACObjectType.ITEM, "1.1.0", address)


def test_the_catalog_moves_and_says_what_its_files_are(exported: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(exported, moved)
    (item,) = (
        i
        for i in pystac.Catalog.from_file(str(moved / "catalog.json")).get_items(recursive=True)
        if i.id.endswith("-03")
    )
    assert item.properties["start_datetime"] == "2020-03-03T00:00:00Z"
    assert item.properties["end_datetime"] == "2020-03-03T23:59:59Z"
    asset = item.assets["reflectance"]
    path = Path(asset.get_absolute_href() or "")
    assert path.is_relative_to(moved)
    assert asset.extra_fields["file:size"] == path.stat().st_size
    assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(path.read_bytes()).hexdigest()
    bands = asset.extra_fields["bands"]
    assert [band["name"] for band in bands] == list(BANDS)
    assert [band["eo:common_name"] for band in bands] == ["blue", "green", "red", "nir08", "swir16", "swir22"]
    with rasterio.open(path) as file:
        assert item.properties["proj:code"] == f"EPSG:{file.crs.to_epsg()}"
        assert item.properties["proj:shape"] == list(file.shape)
        assert item.properties["proj:transform"] == list(file.transform)[:6]
        values = file.read(3)
        assert bands[2]["statistics"]["valid_percent"] == pytest.approx(100 * (values != FILL).mean(), abs=1e-3)
        assert bands[2]["raster:scale"] == file.scales[2]
        assert bands[2]["nodata"] == file.nodata
        west, south, east, north = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    np.testing.assert_allclose(item.bbox, (west, south, east, north), atol=1e-5)


def test_a_part_by_days_bands_and_area(
    finished: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    counts = store.open_counts(finished / "fused.zarr")
    box = counts.odc.geobox.extent.boundingbox
    middle = counts.odc.geobox.extent.centroid.buffer(700).to_crs("EPSG:4326")
    aoi = tmp_path / "part.geojson"
    aoi.write_text(json.dumps(mapping(middle.geom)))
    options = ("--out", tmp_path / "out", "--dates", "2020-03-04/2020-03-06/P2D", "--bands", "nir,red", "--aoi", aoi)
    code, out, _ = call(finished, *options, "--format", "cog", "--format", "netcdf")
    assert code == 0, out
    (first, second) = sorted((tmp_path / "out").rglob("*_reflectance.tif"))
    inside = Region(counts.odc.geobox, read_aoi(aoi)).inside(Window(0, 128, 0, 128))
    with rasterio.open(second) as found:
        assert found.descriptions == ("red", "nir")
        assert 40 < found.width < 60
        top, left = (round(v / 30) for v in (box.top - found.bounds.top, found.bounds.left - box.left))
        rows, columns = slice(top, top + found.height), slice(left, left + found.width)
        expected = np.where(inside, counts.nir.values[5], FILL)
        np.testing.assert_array_equal(found.read(2), expected[rows, columns])
        assert (found.read(2) != FILL).sum() == ((counts.nir.values[5] != FILL) & inside).sum() > 0
    with xr.open_dataset(tmp_path / "out" / "run.nc", engine="h5netcdf", mask_and_scale=False) as packed:
        np.testing.assert_array_equal(packed.nir.values[1], expected[rows, columns])
        assert (packed.qa.values[:, ~inside[rows, columns]] == Quality.NODATA).all()
    assert "2020-03-04" in first.name


def test_netcdf_opens_anywhere(finished: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call(finished, "--out", tmp_path / "out", "--format", "netcdf")
    assert code == 0
    (path,) = (tmp_path / "out").iterdir()
    assert str(path) in out.replace("\n", "")
    cube = store.open_cube(finished / "fused.zarr")
    with xr.open_dataset(path, engine="h5netcdf", decode_coords="all") as found:
        np.testing.assert_allclose(found.nir.values, cube.nir.values, atol=1e-6)
        np.testing.assert_array_equal(found.qa.values, cube.qa.values)
        assert (found.time.values == cube.time.values).all()
        assert found.rio.crs.to_epsg() == 32650
        np.testing.assert_array_equal(found.x.values, cube.x.values)
        assert found.qa.attrs["flag_meanings"].split()[0] == "observed"
    with rasterio.open(f"netcdf:{path}:nir") as gdal:
        assert gdal.crs.to_epsg() == 32650
        assert tuple(gdal.transform)[:6] == tuple(cube.odc.geobox.affine)[:6]
        assert gdal.nodata == FILL
        assert gdal.scales[0] == pytest.approx(1e-4)
        np.testing.assert_array_equal(gdal.read(4), store.open_counts(finished / "fused.zarr").nir.values[3])


def test_a_film_has_a_frame_a_day(finished: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    assert call(finished, "--out", tmp_path / "out", "--format", "gif")[0] == 0
    with Image.open(tmp_path / "out" / "run.gif") as film:
        assert film.n_frames == 8
        assert film.size == (640, 640)
        frames = []
        for number in (0, 7):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB"), float))
    assert np.abs(frames[0] - frames[1]).mean() > 1


def test_an_mp4_holds_the_pictures_and_plays_in_a_browser(
    finished: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed ([film])")
    assert call(finished, "--out", tmp_path / "out", "--format", "mp4")[0] == 0
    path = tmp_path / "out" / "run.mp4"
    run = as_folder(finished)
    subset = export.select(run)
    pictures = list(export.frames(open_pyramid(run, "fused"), subset.steps, subset.window, export.MP4_PIXELS))
    with av.open(str(path)) as film:
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(shown) == len(pictures) == 8
    assert shown[0].shape == (1024, 1024, 3)
    off = [
        np.abs(image.astype(float) - np.asarray(picture)).mean() for image, picture in zip(shown, pictures, strict=True)
    ]
    assert max(off) < 5
    assert np.abs(np.asarray(pictures[0], float) - np.asarray(pictures[7], float)).mean() > 2 * max(off)
    page = tmp_path / "page.html"
    page.write_text(f'<!doctype html><link rel="icon" href="data:,"><video src="{path.as_uri()}"></video>')
    with browsing("desktop") as (tab, complaints):
        tab.goto(page.as_uri())
        tab.wait_for_function("document.querySelector('video').readyState >= 2")
        facts = "(v => [v.videoWidth, v.videoHeight, v.duration])(document.querySelector('video'))"
        assert tab.evaluate(facts) == [1024, 1024, pytest.approx(3.2, abs=0.05)]
        assert complaints == []


def test_a_film_of_odd_sizes_is_made_even(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed ([film])")
    export.write_mp4((Image.new("RGB", (33, 17), colour) for colour in ("red", "blue")), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as film:
        first, second = (frame.to_ndarray(format="rgb24")[:16, :32] for frame in film.decode(video=0))
    np.testing.assert_allclose(first.mean((0, 1)), (255, 0, 0), atol=12)
    np.testing.assert_allclose(second.mean((0, 1)), (0, 0, 255), atol=12)


def test_without_its_library_mp4_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    code, _, err = call(finished, "--out", tmp_path / "out", "--format", "mp4")
    assert code == 2
    assert "MP4 needs PyAV: pip install 'stfgan_xr[film]'" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dates", "2021-01-01"), "has no 2021-01-01; it holds 2020-03-01 to 2020-03-08"),
        (("--bands", "red,thermal"), "has no thermal; it holds blue"),
        (("--aoi", "10,10,11,11"), "lies outside of"),
        (("--format", "shapefile"), "choose from cog, netcdf, gif, mp4"),
    ],
)
def test_what_is_not_there_is_named(
    finished: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], options: tuple[str, ...], message: str
) -> None:
    code, _, err = call(finished, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["cog", "netcdf"])
def test_what_was_interrupted_is_overwritten(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., tuple[int, str, str]],
    kind: str,
) -> None:
    read, days = export.Subset.read, iter(range(100))

    def interrupted(do: Callable[..., Any]) -> Callable[..., Any]:
        def late(*arguments: Any) -> Any:
            if next(days) > 3:
                raise KeyboardInterrupt
            return do(*arguments)

        return late

    monkeypatch.setattr(export.Subset, "read", interrupted(read))
    options = ("--out", tmp_path / "out", "--format", kind, "--dates", "2020-03-01/2020-03-08/P2D")
    code, _, err = call(finished, *options)
    assert code == 130
    assert "start again with --overwrite" in err
    assert list((tmp_path / "out").iterdir())
    monkeypatch.setattr(export.Subset, "read", read)
    assert call(finished, *options)[0] == 2
    assert call(finished, *options, "--overwrite")[0] == 0
    assert not [path for path in (tmp_path / "out").rglob("*") if "partial" in path.name]


def test_only_an_export_is_overwritten(
    finished: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for options in ((), ("--overwrite",)):
        code, _, err = call(finished, "--out", folder, "--format", "gif", *options)
        assert code == 2
        assert "choose another folder" in err
    assert (folder / "thesis.txt").read_text() == "years of work"
    (folder / "thesis.txt").unlink()
    assert call(finished, "--out", folder, "--format", "gif", "--dates", "2020-03-01/2020-03-02")[0] == 0
    (folder / "thesis.nc").write_text("years of work")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, _, err = call(finished, "--out", folder, "--overwrite", "--dates", "2020-03-01")
    assert code == 2
    assert "holds thesis.nc, which is no export of this run" in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "thesis.nc").unlink()
    assert call(finished, "--out", folder, "--overwrite", "--dates", "2020-03-01")[0] == 0
    (image,) = folder.rglob("*_qa.tif")
    image.with_name(f"{image.name}.aux.xml").write_text("statistics that QGIS left")
    noted = folder / finished.name / "notes.txt"
    noted.write_text("years of work")
    assert call(finished, "--out", folder, "--overwrite", "--dates", "2020-03-01")[0] == 2
    noted.unlink()
    assert call(finished, "--out", folder, "--overwrite", "--dates", "2020-03-01")[0] == 0
    assert {path.name for path in folder.iterdir()} == {"catalog.json", finished.name}
