"""Reading of images against answers computed without GDAL's warper: whole-pixel shifts, exact warps, hostile files."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.windows import Window
from stackstac.raster_spec import RasterSpec

from stfgan_xr import errors
from stfgan_xr.grid import SINUSOIDAL
from stfgan_xr.rasters import AssetReader, Resampling, read_raster, write_cog
from stfgan_xr.remote import redact

Array = np.ndarray[Any, Any]


def spec(grid: GeoBox) -> RasterSpec:
    box = grid.boundingbox
    assert grid.crs is not None
    return RasterSpec(
        grid.crs.epsg, (box.left, box.bottom, box.right, box.top), (grid.resolution.x, -grid.resolution.y)
    )


def reader(path: Path, grid: GeoBox, how: Resampling, dtype: str, fill: int) -> AssetReader:
    return AssetReader(url=str(path), spec=spec(grid), resampling=how, dtype=np.dtype(dtype), fill_value=fill)


def whole(asset: AssetReader) -> Array:
    height, width = asset.spec.shape
    return asset.read(Window(0, 0, width, height))


def positions(source: GeoBox, target: GeoBox, corners: bool = False) -> tuple[Array, Array]:
    """Rows and columns (in index units, centres at whole numbers) of the target's centres, or corners, in the source."""
    height, width = target.shape
    a, _, c, _, e, f = tuple(target.affine)[:6]
    shift = 0.0 if corners else 0.5
    x, y = np.meshgrid(c + a * (np.arange(width + corners) + shift), f + e * (np.arange(height + corners) + shift))
    transformer = Transformer.from_crs(CRS(target.crs.to_wkt()), CRS(source.crs.to_wkt()), always_xy=True)  # type: ignore[union-attr]
    east, north = transformer.transform(x, y)
    a, _, c, _, e, f = tuple(source.affine)[:6]
    return (north - f) / e - 0.5, (east - c) / a - 0.5


def cubic(t: Array) -> list[Array]:
    """Keys' kernel with a = -0.5 at the four neighbours of a fraction."""

    def weight(distance: Array) -> Array:
        d = np.abs(distance)
        near = 1.5 * d**3 - 2.5 * d**2 + 1
        far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return [weight(t - k) for k in (-1, 0, 1, 2)]


def linear(t: Array) -> list[Array]:
    return [1 - t, t]


def exact(values: Array, rows: Array, columns: Array, how: str) -> Array:
    """Interpolated values where the whole kernel lies inside, else NaN."""
    first = {"cubic": -1, "bilinear": 0}[how]
    kernel = {"cubic": cubic, "bilinear": linear}[how]
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, across = kernel(rows - top), kernel(columns - left)
    reach = len(down)
    inside = (top + first >= 0) & (top + first + reach <= values.shape[0])
    inside &= (left + first >= 0) & (left + first + reach <= values.shape[1])
    total = np.zeros(rows.shape)
    for i in range(reach):
        for j in range(reach):
            r = np.clip(top + first + i, 0, values.shape[0] - 1)
            c = np.clip(left + first + j, 0, values.shape[1] - 1)
            total += down[i] * across[j] * values[r, c]
    return np.where(inside, total, np.nan)


def exact_mean(values: Array, source: GeoBox, target: GeoBox, fill: int) -> Array:
    """Means within the target's pixels, each cut with shapely; NaN where one reaches beyond the source or all is fill."""
    rows, columns = (side + 0.5 for side in positions(source, target, corners=True))
    found = np.full(target.shape, np.nan)
    for i, j in np.ndindex(*found.shape):
        ring = [(columns[i + a, j + b], rows[i + a, j + b]) for a, b in ((0, 0), (0, 1), (1, 1), (1, 0))]
        pixel = shapely.Polygon(ring)
        left, top, right, bottom = pixel.bounds
        if min(left, top) < 0 or right > values.shape[1] or bottom > values.shape[0]:
            continue
        c, r = np.meshgrid(np.arange(int(left), int(np.ceil(right))), np.arange(int(top), int(np.ceil(bottom))))
        under = values[r, c].astype(float)
        area = shapely.area(shapely.intersection(shapely.box(c, r, c + 1, r + 1), pixel)) * (under != fill)
        if area.sum() > 0:
            found[i, j] = (area * under).sum() / area.sum()
    return found


def check_tiles(asset: AssetReader, whole_image: Array, rows: int, columns: int) -> None:
    """Parts of an image are the image, to the last bit."""
    height, width = whole_image.shape
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            part = asset.read(Window(left, top, min(columns, width - left), min(rows, height - top)))
            np.testing.assert_array_equal(part, whole_image[top : top + rows, left : left + columns])


def check_nearest(found: Array, words: Array, rows: Array, columns: Array, fill: int) -> None:
    """The word of the pixel that holds each point, fill outside; but for points within 1e-6 of an edge of two pixels."""
    r, c = np.floor(rows + 0.5).astype(int), np.floor(columns + 0.5).astype(int)
    inside = (r >= 0) & (r < words.shape[0]) & (c >= 0) & (c < words.shape[1])
    nearest = np.where(inside, words[r.clip(0, words.shape[0] - 1), c.clip(0, words.shape[1] - 1)], fill)
    away = (np.abs(rows % 1 - 0.5) > 1e-6) & (np.abs(columns % 1 - 0.5) > 1e-6)
    assert away.mean() > 0.99
    np.testing.assert_array_equal(found[away], nearest[away])


def smooth(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    y, x = np.indices(shape)
    waves = sum(np.sin(y * rng.uniform(0.05, 0.9) + x * rng.uniform(0.05, 0.9) + rng.uniform(0, 6)) for _ in range(5))
    return np.asarray(9000 + 1200 * waves + rng.integers(-300, 300, shape))


SINU = CRS.from_user_input(SINUSOIDAL)
PIXEL = 463.312716527778


def modis_like(x: float, y: float, side: int = 60, pixel: float = PIXEL) -> GeoBox:
    """A piece of the sinusoidal grid around a point."""
    column, row = round((x + 20015109.354) / pixel), round((10007554.677 - y) / pixel)
    origin = -20015109.354 + pixel * (column - side // 2), 10007554.677 - pixel * (row - side // 2)
    return GeoBox((side, side), Affine(pixel, 0, origin[0], 0, -pixel, origin[1]), SINU)


def modis_over_utm(rng: np.random.Generator, side: int = 60, pixel: float = PIXEL) -> tuple[GeoBox, GeoBox]:
    """A piece of MODIS somewhere on Earth, and 20 x 20 cells of 480 m in the middle of it."""
    longitude, latitude = rng.uniform(-179, 179), rng.uniform(-62, 66)
    zone = (32600 if latitude >= 0 else 32700) + min(int((longitude + 180) // 6) + 1, 60)
    east, north = Transformer.from_crs(4326, zone, always_xy=True).transform(longitude, latitude)
    x, y = Transformer.from_crs(CRS(zone), SINU, always_xy=True).transform(east, north)
    corner = round(east / 480) * 480 + 15 - 480 * 10, round(north / 480) * 480 + 15 + 480 * 10
    target = GeoBox((20, 20), Affine(480, 0, corner[0], 0, -480, corner[1]), f"EPSG:{zone}")
    return modis_like(x, y, side, pixel), target


@pytest.mark.parametrize("seed", range(20))
def test_modis_to_480_m_is_the_exact_bilinear_answer_and_does_not_depend_on_tiles(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = modis_over_utm(rng)
    values = smooth(rng, (60, 60)).astype("int16")
    write_cog(tmp_path / "a.tif", values, source)  # no nodata tag, as in some of the real files
    asset = reader(tmp_path / "a.tif", target, Resampling.bilinear, "int16", 32767)
    found = whole(asset)
    rows, columns = positions(source, target)
    expected = exact(values, rows, columns, "bilinear")
    known = ~np.isnan(expected)
    assert known.mean() > 0.9
    assert np.abs(found[known] - expected[known]).max() <= 1
    check_tiles(asset, found, 5, 7)
    words = rng.integers(0, 255, (60, 60)).astype("uint8")
    write_cog(tmp_path / "q.tif", words, source)
    asset = reader(tmp_path / "q.tif", target, Resampling.nearest, "uint8", 255)
    check_nearest(whole(asset), words, rows, columns, 255)
    check_tiles(asset, whole(asset), 7, 5)


def landsat_over_next_zone(rng: np.random.Generator, pixel: float, phase: float) -> tuple[GeoBox, GeoBox]:
    """A scene of 3.6 km near the limit of two zones, and 64 x 64 pixels of 30 m of the other zone within it."""
    latitude = rng.uniform(-60, 60)
    zones = (32649, 32650) if latitude >= 0 else (32749, 32750)
    east, north = Transformer.from_crs(4326, zones[0], always_xy=True).transform(114 + rng.uniform(-0.4, 0.4), latitude)
    side = round(3600 / pixel)
    origin = round(east / pixel) * pixel + phase - 1800, round(north / pixel) * pixel + phase + 1800
    source = GeoBox((side, side), Affine(pixel, 0, origin[0], 0, -pixel, origin[1]), f"EPSG:{zones[0]}")
    x, y = Transformer.from_crs(zones[0], zones[1], always_xy=True).transform(east, north)
    corner = round(x / 30) * 30 + phase - 30 * 32, round(y / 30) * 30 + phase + 30 * 32
    return source, GeoBox((64, 64), Affine(30, 0, corner[0], 0, -30, corner[1]), f"EPSG:{zones[1]}")


@pytest.mark.parametrize("seed", range(10))
def test_landsat_of_the_neighbouring_zone_is_the_exact_cubic_answer(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    source, target = landsat_over_next_zone(rng, 30, 15)
    values = smooth(rng, (120, 120)).astype("uint16")
    words = rng.integers(2, 65535, (120, 120)).astype("uint16")
    write_cog(tmp_path / "a.tif", values, source, 0)
    write_cog(tmp_path / "q.tif", words, source, 1)
    rows, columns = positions(source, target)
    expected = exact(values, rows, columns, "cubic")
    known = ~np.isnan(expected)
    assert known.mean() > 0.9
    asset = reader(tmp_path / "a.tif", target, Resampling.cubic, "uint16", 0)
    found = whole(asset)
    assert np.abs(found[known].astype(float) - expected[known]).max() <= 1
    check_tiles(asset, found, 32, 16)
    asset = reader(tmp_path / "q.tif", target, Resampling.nearest, "uint16", 1)
    check_nearest(whole(asset), words, rows, columns, 1)
    check_tiles(asset, whole(asset), 16, 32)


@pytest.mark.parametrize("seed", range(4))
def test_finer_sources_of_another_projection_are_averaged_by_exact_area(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(200 + seed)
    modis = modis_over_utm(rng, 120, PIXEL / 2)  # MOD09Q1
    pixel = float(rng.choice([10, 20]))  # Sentinel-2
    other, target = landsat_over_next_zone(rng, pixel, 0)
    for source, grid, dtype, fill in ((*modis, "int16", -28672), (other, target[20:40, 30:50], "uint16", 0)):
        values = smooth(rng, tuple(source.shape)).astype(dtype)
        values[rng.random(values.shape) < 0.05] = fill
        write_cog(tmp_path / "a.tif", values, source)
        asset = reader(tmp_path / "a.tif", grid, Resampling.average, dtype, fill)
        found, expected = whole(asset), exact_mean(values, source, grid, fill)
        known = ~np.isnan(expected)
        assert known.mean() > 0.9
        assert np.abs(found[known] - expected[known]).max() <= 0.51
        check_tiles(asset, found, 7, 5)


@pytest.mark.parametrize("seed", range(8))
def test_whole_pixel_shifts_are_the_raw_bytes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 65535, (70, 90)).astype("uint16")
    source = GeoBox((70, 90), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    write_cog(tmp_path / "a.tif", values, source, 0)
    down, across = (int(n) for n in rng.integers(-20, 40, 2))
    target = GeoBox((50, 60), Affine(30, 0, 480_015 + 30 * across, 0, -30, 2_400_015 - 30 * down), "EPSG:32650")
    found = whole(reader(tmp_path / "a.tif", target, Resampling.cubic, "uint16", 0))
    expected = np.zeros((50, 60), "uint16")
    for row in range(50):
        for column in range(60):
            r, c = row + down, column + across
            if 0 <= r < 70 and 0 <= c < 90:
                expected[row, column] = values[r, c]
    np.testing.assert_array_equal(found, expected)


def test_fill_never_bleeds_into_its_neighbours(tmp_path: Path) -> None:
    source = modis_like(11_713_000, 2_507_000)
    values = np.full((60, 60), 3000, "int16")
    values[20:40, 25:35] = 32767
    write_cog(tmp_path / "a.tif", values, source)
    target = GeoBox((20, 20), Affine(480, 0, 190_095, 0, -480, 2_500_815), "EPSG:32650")
    found = whole(reader(tmp_path / "a.tif", target, Resampling.bilinear, "int16", 32767))
    assert set(np.unique(found)) <= {2999, 3000, 3001, 32767}


def test_a_vrt_in_disguise_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.tif"
    grid = GeoBox((8, 8), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    write_cog(secret, np.full((8, 8), 4242, "uint16"), grid)
    (tmp_path / "a.tif").write_text(
        f'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(errors.SourceError, match=r"a\.tif"):
        whole(reader(tmp_path / "a.tif", grid, Resampling.nearest, "uint16", 0))
    with pytest.raises(errors.InputError):
        read_raster(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "options", [{"compress": "deflate"}, {}, {"tiled": True, "blockxsize": 128, "blockysize": 128}]
)
def test_a_truncated_file_is_an_error_never_pixels(tmp_path: Path, options: dict[str, Any]) -> None:
    grid = GeoBox((300, 300), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    values = np.random.default_rng(0).integers(1, 60000, (300, 300)).astype("uint16")
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "width": 300, "height": 300, "count": 1, "dtype": "uint16", "crs": "EPSG:32650"}
    with rasterio.open(path, "w", transform=grid.affine, **profile, **options) as target:
        target.write(values, 1)
    raw = path.read_bytes()
    for share in range(25):
        path.write_bytes(raw[: len(raw) * share // 25])
        with pytest.raises(errors.SourceError, match=r"a\.tif cannot be read"):
            whole(reader(path, grid, Resampling.nearest, "uint16", 0))


@pytest.mark.parametrize("code", [32650, 32651])
def test_outside_of_an_asset_everything_is_fill(tmp_path: Path, code: int) -> None:
    source = GeoBox((40, 40), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    write_cog(tmp_path / "a.tif", np.full((40, 40), 9, "uint16"), source)
    target = GeoBox((40, 40), Affine(30, 0, 580_035, 0, -30, 2_400_015), f"EPSG:{code}")
    assert (whole(reader(tmp_path / "a.tif", target, Resampling.cubic, "uint16", 7)) == 7).all()


def test_a_lattice_is_known_by_its_crs_not_by_its_code(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 60000, (20, 20)).astype("uint16")
    unnamed = CRS("+proj=utm +zone=50 +datum=WGS84 +units=m +no_defs")
    assert unnamed.to_authority() is None or unnamed.to_authority() == ("EPSG", "32650")
    source = GeoBox((20, 20), Affine(30, 0, 480_015, 0, -30, 2_400_015), unnamed)
    write_cog(tmp_path / "a.tif", values, source)
    target = GeoBox((20, 20), source.affine, "EPSG:32650")
    np.testing.assert_array_equal(whole(reader(tmp_path / "a.tif", target, Resampling.cubic, "uint16", 0)), values)


@pytest.mark.parametrize(("bands", "crs", "match"), [(2, "EPSG:32650", "holds 2 bands"), (1, None, "no coordinate")])
def test_an_asset_is_one_band_with_a_place(tmp_path: Path, bands: int, crs: str | None, match: str) -> None:
    grid = GeoBox((8, 8), Affine(30, 0, 480_015, 0, -30, 2_400_015), crs)
    write_cog(tmp_path / "a.tif", np.zeros((bands, 8, 8), "uint16"), grid)
    target = GeoBox((8, 8), grid.affine, "EPSG:32650")
    with pytest.raises(errors.SourceError, match=match):
        whole(reader(tmp_path / "a.tif", target, Resampling.nearest, "uint16", 0))


def test_a_file_that_claims_huge_blocks_is_refused_before_reading(tmp_path: Path) -> None:
    side = 20_000
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint8", "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": side // 16 * 16, "blockysize": side // 16 * 16, "SPARSE_OK": True}
    grid = GeoBox((8, 8), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    with rasterio.open(tmp_path / "a.tif", "w", crs="EPSG:32650", transform=grid.affine, **profile):
        pass
    with pytest.raises(errors.SourceError, match="64 MiB"):
        whole(reader(tmp_path / "a.tif", grid, Resampling.nearest, "uint8", 0))


def test_missing_file_and_wrong_type_name_the_asset(tmp_path: Path) -> None:
    grid = GeoBox((8, 8), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    with pytest.raises(errors.SourceError, match=r"none\.tif"):
        whole(reader(tmp_path / "none.tif", grid, Resampling.nearest, "uint8", 0))
    write_cog(tmp_path / "a.tif", np.zeros((8, 8), "float32"), grid)
    with pytest.raises(errors.SourceError, match="holds float32, expected uint16"):
        whole(reader(tmp_path / "a.tif", grid, Resampling.nearest, "uint16", 0))


def test_a_reader_is_picklable_and_shared_by_threads(tmp_path: Path) -> None:
    grid = GeoBox((64, 64), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    values = np.arange(64 * 64, dtype="uint16").reshape(64, 64)
    write_cog(tmp_path / "a.tif", values, grid)
    asset = pickle.loads(pickle.dumps(reader(tmp_path / "a.tif", grid, Resampling.nearest, "uint16", 0)))
    found: list[Array] = []
    threads = [threading.Thread(target=lambda: found.append(whole(asset))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for image in found:
        np.testing.assert_array_equal(image, values)


@pytest.mark.parametrize("side", [20, 300, 700])
def test_rasters_come_back_as_they_were_written(tmp_path: Path, side: int) -> None:
    grid = GeoBox((side, side + 3), Affine(30, 0, 480_015, 0, -30, 2_400_015), "EPSG:32650")
    values = np.random.default_rng(0).integers(0, 60000, (2, side, side + 3)).astype("uint16")
    write_cog(tmp_path / "a.tif", values, grid, 7)
    found, box, nodata = read_raster(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, values)
    assert (box, nodata) == (grid, 7)


def test_own_rasters_that_cannot_be_read_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="no such file"):
        read_raster(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("not an image")
    with pytest.raises(errors.InputError, match="not a readable GeoTIFF"):
        read_raster(tmp_path / "text.tif")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_an_image_without_a_position_is_bad_input(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:32650"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile):
        pass
    with pytest.raises(errors.InputError, match="no position"):
        read_raster(tmp_path / "a.tif")


def test_real_rasters_keep_a_crs_that_has_no_code(shared_data: Path) -> None:
    path = min((shared_data / "pairs/kranj_l8_modis_daily/landsat/filled").glob("*.tif"))
    values, grid, nodata = read_raster(path)
    assert values.shape == (6, *grid.shape)
    assert values.dtype == np.float32
    assert grid.crs is not None
    assert grid.crs.epsg is None
    assert nodata is not None


def test_tokens_do_not_show() -> None:
    assert redact("https://a.example/b.tif?sig=secret&se=1") == "https://a.example/b.tif"
    assert redact("no way through http://name:secret@proxy.example:3128 to b@a.example") == (
        "no way through http://proxy.example:3128 to b@a.example"
    )


@pytest.mark.parametrize("size", [10, 20])
def test_much_finer_sources_are_averaged_by_area(tmp_path: Path, size: int) -> None:
    # Sentinel-2 on 30 m: each pixel is the mean of what lies under it, weighted by area, without what is fill.
    side, rng = 240 // size * 3, np.random.default_rng(size)
    values = rng.integers(1, 12_000, (side, side)).astype("uint16")
    values[rng.random(values.shape) < 0.05] = 0
    source = GeoBox(values.shape, Affine(size, 0, 499_980, 0, -size, 2_500_020), "EPSG:32650")
    target = GeoBox((24, 24), Affine(30, 0, 499_980, 0, -30, 2_500_020), "EPSG:32650")
    write_cog(tmp_path / "s2.tif", values, source, 0)
    found = whole(reader(tmp_path / "s2.tif", target, Resampling.average, "uint16", 0))
    fine = values.repeat(size // 10, 0).repeat(size // 10, 1).astype(float).reshape(24, 3, 24, 3)
    known = fine > 0
    mean = fine.sum(axis=(1, 3)) / np.maximum(known.sum(axis=(1, 3)), 1)
    expected = np.where(known.any(axis=(1, 3)), mean, 0)
    assert np.abs(found - expected).max() <= 0.5 + 1e-6
    half = whole(reader(tmp_path / "s2.tif", target[:, 7:], Resampling.average, "uint16", 0))
    np.testing.assert_array_equal(half, found[:, 7:])
