"""Benchmark sets: small files with the names and formats of the published ones become cubes; what is wrong is named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from pipelines import evaluate, train
from pipelines.console import main
from stfgan_xr import benchmarks, errors
from stfgan_xr.benchmarks import read_benchmark
from stfgan_xr.grid import Window
from stfgan_xr.rasters import write_cog
from stfgan_xr.sensors import BANDS, FILL, Observation

SHAPE, CROP = (68, 60), Window(2, 66, 6, 54)
"""Of the small sets: a crop of 64 x 48 pixels, 4 x 3 cells."""
ORDER = {"bil": (1, 0, 2), "bsq": (0, 1, 2), "bip": (1, 2, 0)}
CIA_FOLDERS = [
    "2001_281_08oct",
    "2001_290_17oct",
    "2001_306_02nov",
    "2001_313_09nov",
    "2001_329_25nov",
    "2001_338_04dec",
    "2002_005_05jan",
    "2002_012_12jan",
    "2002_044_13feb",
    "2002_053_22feb",
    "2002_069_10mar",
    "2002_076_17mar",
    "2002_092_02apr",
    "2002_101_11apr",
    "2002_108_18apr",
    "2002_117_27apr",
    "2002_124_04may",
]
LGC_FOLDERS = [
    "2004_107_Apr16",
    "2004_123_May02",
    "2004_187_Jul05",
    "2004_219_Aug06",
    "2004_235_Aug22",
    "2004_299_Oct25",
    "2004_331_Nov26",
    "2004_347_Dec12",
    "2004_363_Dec28",
    "2005_013_Jan13",
    "2005_029_Jan29",
    "2005_045_Feb14",
    "2005_061_Mar02",
    "2005_093_Apr03",
]


def header(shape: tuple[int, ...], **changes: Any) -> str:
    bands, lines, samples = shape
    fields = {
        "description": "{\n  scaled down}", "samples": samples, "lines": lines, "bands": bands, "header offset": 0,
        "file type": "ENVI Standard", "data type": 2, "sensor type": "Unknown",
        "byte order": 0, "wavelength units": "Unknown",
    }  # fmt: skip
    fields |= {name.replace("_", " "): value for name, value in changes.items()}
    return "ENVI\n" + "".join(f"{name} = {value}\n" for name, value in fields.items())


def envi(path: Path, values: npt.NDArray[np.int16], interleave: str, head: str = ".hdr", **changes: Any) -> None:
    """An ENVI file as ENVI writes it, its header with ``head`` instead of the extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values.transpose(ORDER[interleave]).astype(">i2" if changes.get("byte_order") else "<i2").tofile(path)
    path.with_suffix(head).write_text(header(values.shape, interleave=interleave, **changes))


def image(day: date, shape: tuple[int, int] = SHAPE) -> npt.NDArray[np.int16]:
    """Counts that tell band, row, column and day, and change at the same pace everywhere."""
    rows, columns = np.indices(shape)
    number = (day - date(2001, 1, 1)).days % 1000
    return np.stack([1000 * band + 10 * rows + columns + number for band in range(1, 7)]).astype(np.int16)


def day_of(folder: str) -> date:
    year, number, _ = folder.split("_")
    return date(int(year), 1, 1) + timedelta(days=int(number) - 1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published sets, but for their size."""
    sets = {name: replace(known, shape=SHAPE, crop=CROP) for name, known in benchmarks._PUBLISHED.items()}
    monkeypatch.setattr(benchmarks, "_PUBLISHED", sets)


@pytest.fixture(scope="module")
def cia_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive") / "CIA"
    for folder in CIA_FOLDERS:
        day = day_of(folder)
        # One of the published Landsat files is called L72.
        name = f"L7{2 if day == date(2002, 3, 10) else 1}093084_084{day - timedelta(days=1):%Y%m%d}"
        landsat = root / "Landsat" / folder / f"{name}_HRF_modtran_surf_ref_agd66.bil"
        envi(landsat, image(day), "bil", map_info="{UTM, 1, 1, 378000, 6170000, 25, 25, 55, South}")
        envi(root / "MODIS" / folder / f"MOD09GA_A{day:%Y%j}.sur_refl.int", image(day), "bsq")
    (root / "readme.txt").write_text("about the data")
    return root


@pytest.fixture
def cia(cia_once: Path, tmp_path: Path) -> Path:
    """A small CIA that may be spoiled."""
    return Path(shutil.copytree(cia_once, tmp_path / "CIA"))


@pytest.fixture
def lgc(tmp_path: Path) -> Path:
    root = tmp_path / "LGC"
    for folder in LGC_FOLDERS:
        day = day_of(folder)
        envi(root / "Landsat" / folder / f"{day:%Y%m%d}_TM.int", image(day), "bsq")
        envi(root / "MODIS" / folder / f"MOD09GA_A{day:%Y%j}.sur_refl.int", image(day), "bsq")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "shenzhen"
    root.mkdir()
    for number in (1, 9, 17, 25):
        for side in ("landsat", "modis"):
            day = date(2020, 3, number)
            write_cog(root / f"{side}_{day:%Y%m%d}.tif", image(day, (40, 35)), grid(40, 35), nodata=-9999)
    return root


def grid(height: int, width: int, left: float = 480_000) -> GeoBox:
    return GeoBox((height, width), Affine(30, 0, left, 0, -30, 2_400_000), "EPSG:32650")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; its exit code, stdout and stderr."""

    def call(command: Callable[..., None], *arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main(command)
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


def test_cia_is_read_as_it_is_published(cia_once: Path) -> None:
    landsat, modis = read_benchmark("cia", cia_once, "stfgan").testing()
    days = [str(time)[:10] for time in landsat.time.values]
    # Names tell the day in UTC: 20011101 is 2 November there.
    assert days == [
        "2001-11-02", "2001-11-09", "2001-11-25", "2002-02-22", "2002-03-10", "2002-03-17", "2002-04-11", "2002-04-18",
        "2002-04-27",
    ]  # fmt: skip
    assert set(landsat.data_vars) == {*BANDS, "qa"}
    assert dict(landsat.sizes) == {"time": 9, "y": 64, "x": 48}
    # 2 November is day 305 from the start of 2001: third band, row 2 + 5, column 6 + 7 of the file.
    assert int(landsat.red.values[0, 5, 7]) == 3000 + 10 * 7 + 13 + 305
    assert (landsat.qa.values == 0).all()
    assert landsat.odc.geobox == GeoBox((64, 48), Affine(25, 0, 6 * 25, 0, -25, -2 * 25), None)
    assert dict(modis.sizes) == {"time": 209, "y": 4, "x": 3}
    assert modis.odc.geobox == GeoBox((4, 3), Affine(400, 0, 150, 0, -400, -50), None)
    # The mean of rows 2..17 is 9.5, of columns 6 + 16 .. 6 + 31 29.5; 8 October is day 280.
    assert int(modis.nir.values[0, 0, 1]) == round(4000 + 95 + 29.5 + 280)
    assert (modis.nir.values[1] == FILL).all()  # 9 October has no image
    assert (modis.qa.values[1] == int(Observation.FILL)).all()


def test_where_published_splits_are_not_fair_is_computed(cia_once: Path, lgc: Path) -> None:
    split = read_benchmark("cia", cia_once.parent, "stfgan").split
    days = [[str(day) for day in found] for found in split.violations.values()]
    between = ["2002-03-10", "2002-03-17", "2002-04-02", "2002-04-11"]
    assert days == [["2001-11-09"], ["2002-03-10"], between, ["2002-04-18"]]
    assert len(split.published) == 15 - 3  # one of the four cases is not of consecutive days
    assert [*read_benchmark("lgc", lgc, "stfgan").split.violations.values()] == [(date(2005, 1, 13),)]
    flood = read_benchmark("lgc", lgc, "flood").split
    assert [*flood.violations.values()] == [()]
    assert flood.published[6] == (date(2004, 11, 26), date(2004, 12, 28), date(2005, 1, 13))


def test_training_sees_no_day_inside_a_case(cia_once: Path) -> None:
    landsat, modis = read_benchmark("cia", cia_once, "stfgan").training()
    withheld = {"2001-11-09", "2002-03-10", "2002-03-17", "2002-04-02", "2002-04-11", "2002-04-18"}
    assert {str(time)[:10] for time in landsat.time.values} == {str(day_of(name)) for name in CIA_FOLDERS} - withheld
    assert modis.sizes["time"] == 209
    with pytest.raises(errors.InputError, match="leaves 2 days to train on"):
        read_benchmark("cia", cia_once, "leave-one-out").training()


def test_lgc_with_what_copies_of_it_look_like(lgc: Path) -> None:
    """Upper case, headers after the extension, other interleaves and byte orders, GeoTIFF, no-data values and edges."""
    first, second, third, fourth = (next((lgc / "Landsat" / name).glob("*.int")) for name in LGC_FOLDERS[:4])
    first.rename(first.with_suffix(".INT"))
    first.with_suffix(".hdr").rename(first.with_suffix(".HDR"))
    second.with_suffix(".hdr").rename(second.with_suffix(".int.hdr"))
    values = image(day_of(LGC_FOLDERS[2]))
    values[:, 2:5, 6:9], values[:, 10, 10], values[1, 11, 11], values[:, 30, 30] = 0, -999, 16001, 500
    envi(third, values, "bip", byte_order=1, data_ignore_value=500)
    fourth.unlink()
    fourth.with_suffix(".hdr").unlink()
    write_cog(fourth.with_suffix(".tif"), image(day_of(LGC_FOLDERS[3])), GeoBox(SHAPE, Affine.scale(25), None))
    modis = next((lgc / "MODIS" / LGC_FOLDERS[0]).glob("*.int"))
    for suffix in (".int", ".hdr"):
        modis.with_suffix(suffix).rename(modis.with_name("MOD_20040416").with_suffix(suffix))
    landsat, _ = read_benchmark("lgc", lgc, "leave-one-out").testing()
    for number in range(4):
        wanted = image(day_of(LGC_FOLDERS[number]))[(slice(None), *CROP.slices)]
        counts, clear = (
            landsat.to_dataarray().sel(variable=list(BANDS)).values[:, number],
            landsat.qa.values[number] == 0,
        )
        np.testing.assert_array_equal(counts[:, clear], wanted[:, clear])
        assert (~clear).sum() == (9 + 1 + 1 + 1 if number == 2 else 0)


def test_a_folder_of_pairs(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    benchmark = read_benchmark("folder", folder, "leave-one-out")
    assert "35 x 40 pixels those in whole cells" in caplog.text
    landsat, modis = benchmark.testing()
    assert [[day.day for day in case] for case in benchmark.split.cases] == [[1, 9, 17], [9, 17, 25]]
    assert landsat.odc.geobox == grid(40, 35)[:32, :32]
    assert modis.sizes == {"time": 25, "y": 2, "x": 2}
    write_cog(folder / "modis_20200309.tif", image(date(2020, 3, 9), (40, 35)), grid(40, 35, 480_030))
    with pytest.raises(errors.InputError, match=r"modis_20200309.*480030.*480000"):
        benchmark.testing()


def test_methods_are_scored_by_the_command(
    cia_once: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    asked = [
        "--benchmark",
        "cia",
        "--root",
        cia_once,
        "--split",
        "stfgan",
        "--method",
        "linear",
        "--method",
        "persistence",
    ]
    code, out, err = run(evaluate.command, *asked, "--json", tmp_path / "scores.json")
    assert code == 0, err
    assert "2001-11-02/2001-11-09/2001-11-25: the published training uses 2001-11-09, which is not fair" in " ".join(
        out.split()
    )
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["benchmark"]["name"] == "cia"
    assert found["benchmark"]["violations"]["2002-02-22/2002-03-10/2002-03-17"] == ["2002-03-10"]
    rows = found["linear"]["rows"]
    assert [row["triplet"] for row in rows] == list(found["benchmark"]["violations"])
    # Counts grow by one a day: linear is right, the nearest day is off by the days in between.
    assert all(row["rmse"] < 1e-6 and row["pixels"] == 64 * 48 for row in rows)
    off = [row["rmse"] for row in found["persistence"]["rows"]]
    assert off == pytest.approx([7e-4, 7e-4, 23e-4, 7e-4], abs=1e-6)


@pytest.mark.slow
def test_weights_are_trained_on_a_benchmark(
    cia_once: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    small = ["--width", "2", "--steps", "2", "--batch", "1", "--patch", "48", "--region", "48", "--samples", "2"]
    asked = ["--benchmark", "cia", "--root", cia_once, "--split", "stfgan"]
    code, _, err = run(train.command, *asked, "--out", tmp_path / "w", *small)
    assert code == 0, err
    assert (tmp_path / "w" / "stfgan.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--benchmark", "cia"], "--root None: no such folder"),
        (["--benchmark", "cia", "--root", "nowhere", "--split", "stfgan"], "--root nowhere"),
        (["--benchmark", "ahb", "--root", "CIA"], "choose one of cia, lgc, folder"),
        (["--root", "CIA", "--split", "stfgan"], "--benchmark None"),
        (["--benchmark", "cia", "--root", "CIA"], "cia has stfgan, leave-one-out"),
        (["--benchmark", "cia", "--root", "CIA", "--split", "flood"], "--split 'flood'"),
        (["--benchmark", "lgc", "--root", "CIA", "--split", "flood"], "14 of the 14 Landsat images of lgc"),
        (["--benchmark", "folder", "--root", "CIA", "--split", "leave-one-out"], "0 files landsat_YYYYMMDD.tif"),
    ],
)
def test_bad_input_is_one_line(
    cia_once: Path, run: Callable[..., tuple[int, str, str]], arguments: list[str], named: str
) -> None:
    given = [str(cia_once) if argument == "CIA" else argument for argument in arguments]
    for command in (evaluate.command, train.command):
        code, _, err = run(command, *given)
        assert code == 2
        assert named in " ".join(err.split())
        assert len(err.strip().splitlines()) == 1


def test_a_benchmark_goes_alone(cia_once: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    asked = ["--benchmark", "cia", "--root", cia_once, "--split", "stfgan"]
    assert run(evaluate.command, *asked, "--pairs", "pairs.toml")[0] == 2
    assert run(evaluate.command, *asked, "--triplets", "2001-11-02/2001-11-09/2001-11-25")[0] == 2
    assert "one of them" in run(train.command, *asked, "--pairs", "pairs.toml")[2]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lines": 67}, "67 rows"),
        ({"lines": 69}, "bytes, its header promises"),
        ({"lines": 10**6, "samples": 10**6}, "not a readable ENVI image"),
        ({"lines": -1}, "not a readable ENVI image"),
        ({"bands": 5}, "5 bands"),
        ({"bands": 10**9}, "not a readable ENVI image"),
        ({"header_offset": 2}, "from byte 2"),
        ({"header_offset": "two"}, "from byte two"),
        ({"header_offset": -2}, "not a readable ENVI image"),
        ({"header_offset": 10**30}, "not a readable ENVI image"),
        ({"data_type": 1}, "of uint8, not 6 bands"),
        ({"data_type": 4}, "bytes, its header promises"),
        ({"data_type": "one"}, "not a readable ENVI image"),
        ({"interleave": "magic"}, "interleave in its header is 'magic'"),
        ({"file_compression": 1}, "not a readable ENVI image"),
    ],
)
def test_headers_that_do_not_fit_are_named(cia: Path, changes: dict[str, Any], named: str) -> None:
    broken = next((cia / "MODIS" / "2001_313_09nov").glob("*.hdr"))
    broken.write_text(header((6, *SHAPE), **{"interleave": "bsq"} | changes))
    with pytest.raises(errors.InputError, match=named) as found:
        read_benchmark("cia", cia, "stfgan").testing()
    assert str(broken.with_suffix(".int")) in str(found.value)
    assert "\n" not in str(found.value)


def test_an_image_without_values_is_named(cia: Path) -> None:
    empty = next((cia / "Landsat" / "2001_313_09nov").glob("*.bil"))
    envi(empty, np.zeros((6, *SHAPE), np.int16), "bil")
    with pytest.raises(errors.InputError, match=r"20011108_HRF.*holds no reflectance x 10000 in rows 2 to 66"):
        read_benchmark("cia", cia, "stfgan").testing()


def test_missing_and_doubled_files_are_named(cia: Path, lgc: Path, folder: Path) -> None:
    landsat = next((cia / "Landsat" / "2002_053_22feb").glob("*.bil"))
    landsat.with_suffix(".hdr").unlink()
    with pytest.raises(errors.InputError, match=r"20020221_HRF.*\.hdr"):
        read_benchmark("cia", cia, "stfgan").testing()
    landsat.unlink()
    with pytest.raises(errors.InputError, match="1 of the 17 Landsat images of cia are not there: 2002-02-22"):
        read_benchmark("cia", cia, "stfgan")
    envi(lgc / "again" / "20040416_TM.bil", image(date(2004, 4, 16)), "bil")
    with pytest.raises(errors.InputError, match=r"two files for 2004-04-16.*\.int and .*\.bil"):
        read_benchmark("lgc", lgc, "flood")
    shutil.rmtree(lgc / "again")
    (lgc / "20049999_TM.int").touch()
    with pytest.raises(errors.InputError, match="'20049999' in its name is not a day"):
        read_benchmark("lgc", lgc, "flood")
    (folder / "modis_20200309.tif").unlink()
    with pytest.raises(errors.InputError, match=r"modis_20200309\.tif is not there"):
        read_benchmark("folder", folder, "leave-one-out")
    for name in ("landsat_20200301.tif", "modis_20200309.tif"):
        write_cog(folder / name, np.ones((3, 40, 35), "float32"), grid(40, 35))
    with pytest.raises(errors.InputError, match=r"3 bands .* of float32, not 6 bands .* --pairs"):
        read_benchmark("folder", folder, "leave-one-out")
