"""Own rasters: what pairs.toml describes becomes cubes; what does not fit is one line that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from stfgan_xr import errors
from stfgan_xr.datasets import Coding, read_pairs
from stfgan_xr.rasters import write_cog
from stfgan_xr.sensors import FILL, Observation

HEAD = 'name = "here"\nbands = ["red", "nir"]\n'
FINE = '[fine]\npath = "fine/{date}_*.tif"\ndate_format = "%Y%m%d"\nscale = 1e-4\nnodata = -9999\n'
COARSE = '[coarse]\npath = "coarse/{date}.tif"\ndate_format = "%Y%j"\nscale = 1.0\nnodata_below = -1e30\n'


def grid(size: int, pixel: float) -> GeoBox:
    return GeoBox((size, size), Affine(pixel, 0, 480_000, 0, -pixel, 2_400_000), "EPSG:32650")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three fine days (one of them without values), four coarse days with a gap; ratio 7."""
    rng = np.random.default_rng(0)
    for side in ("fine", "coarse"):
        (tmp_path / side).mkdir()
    for day in ("20200301", "20200305", "20200309"):
        values = rng.integers(100, 6000, (2, 28, 28)).astype("int16")
        values[:, :3, :3] = -9999
        if day == "20200305":
            values[:] = -9999
        write_cog(tmp_path / "fine" / f"{day}_a.tif", values, grid(28, 70))
    for day in ("2020061", "2020062", "2020064", "2020069"):
        values = rng.random((2, 4, 4)).astype("float32")
        values[0, 0, 0] = -3.4e38
        write_cog(tmp_path / "coarse" / f"{day}.tif", values, grid(4, 490))
    (tmp_path / "pairs.toml").write_text(HEAD + FINE + COARSE)
    return tmp_path


def test_days_values_and_holes(folder: Path) -> None:
    pairs = read_pairs(folder / "pairs.toml")
    landsat, modis = pairs.landsat().compute(), pairs.modis().compute()
    assert [str(t)[:10] for t in landsat.time.values] == ["2020-03-01", "2020-03-09"]
    assert [str(t)[:10] for t in modis.time.values] == [f"2020-03-0{n}" for n in range(1, 10)]
    assert pairs.ratio == 7
    assert (landsat.red.values[:, :3, :3] == FILL).all()
    assert (landsat.qa.values[:, :3, :3] == int(Observation.FILL)).all()
    assert (landsat.qa.values[:, 3:, 3:] == 0).all()
    assert (modis.nir.values[2] == FILL).all()  # a day without a raster
    assert modis.qa.values[0, 0, 0] == int(Observation.FILL)  # one band lacks a value
    assert landsat.odc.geobox == grid(28, 70)


def test_a_choice_of_bands(folder: Path) -> None:
    assert set(read_pairs(folder / "pairs.toml").landsat(["nir"]).data_vars) == {"nir", "qa"}
    with pytest.raises(errors.InputError, match="swir1"):
        read_pairs(folder / "pairs.toml").landsat(["swir1"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (FINE + COARSE, "'bands' is missing"),
        (HEAD + FINE, "'coarse' is missing"),
        (HEAD + FINE.replace("scale = 1e-4\n", "") + COARSE, "'scale' is missing"),
        (HEAD + FINE + "colour = 1\n" + COARSE, "'colour' is unknown"),
        (HEAD + FINE.replace("1e-4", '"x"') + COARSE, "'scale'"),
        (HEAD + FINE.replace("{date}_*", "all") + COARSE, "'path'"),
        (HEAD + FINE.replace("%Y%m%d", "%Y") + COARSE, "'date_format'"),
        (HEAD + FINE.replace("fine/", "nowhere/") + COARSE, "finds no file"),
        (HEAD.replace('"red", ', "") + FINE + COARSE, "holds 2 bands"),
        (HEAD.replace('"red"', '"nir"') + FINE + COARSE, "'bands'"),
        ("this is no toml", "not a TOML file"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, text: str, named: str) -> None:
    (folder / "pairs.toml").write_text(text)
    with pytest.raises(errors.InputError, match=named) as found:
        read_pairs(folder / "pairs.toml")
    assert "\n" not in str(found.value)


def test_rasters_of_another_grid_are_refused_with_both_named(folder: Path) -> None:
    write_cog(folder / "fine" / "20200317_a.tif", np.ones((2, 28, 28), "int16"), grid(28, 60))
    with pytest.raises(errors.InputError, match=r"20200317.*60 m.*70 m"):
        read_pairs(folder / "pairs.toml")


def test_two_files_of_a_day_and_grids_that_are_not_nested(folder: Path) -> None:
    write_cog(folder / "fine" / "20200301_b.tif", np.ones((2, 28, 28), "int16"), grid(28, 70))
    with pytest.raises(errors.InputError, match="two files"):
        read_pairs(folder / "pairs.toml")
    (folder / "fine" / "20200301_b.tif").unlink()
    for path in (folder / "coarse").iterdir():
        write_cog(path, np.ones((2, 5, 5), "float32"), grid(5, 490))
    with pytest.raises(errors.InputError, match="not nested"):
        read_pairs(folder / "pairs.toml")


def test_nodata_is_compared_before_any_cast() -> None:
    values = np.array([-3.3999999521443642e38, 0.2], "float64")
    assert np.isnan(Coding(1.0, nodata_below=-1e30).reflectance(values, None)).tolist() == [True, False]
    single = values.astype("float32")
    assert np.isnan(Coding(1.0).reflectance(single, -3.3999999521443642e38)).tolist() == [True, False]


def test_the_two_real_sets(shared_data: Path) -> None:
    salton = read_pairs(shared_data / "pairs" / "salton_sea_nir" / "pairs.toml")
    assert (salton.ratio, salton.bands, salton.landsat().odc.geobox.crs.epsg) == (7, ("nir",), 32611)
    assert len(salton.landsat().time) == 12
    assert len(salton.modis().time) == 61
    kranj = read_pairs(shared_data / "pairs" / "kranj_l8_modis_daily" / "pairs.toml")
    assert kranj.ratio == 1
    assert len(kranj.bands) == 6
    cubes = kranj.landsat().compute(), kranj.modis().compute()
    means = [float(cube.nir.where(cube.nir != FILL).mean()) for cube in cubes]
    assert all(1500 < mean < 3000 for mean in means)  # the two scales became one
