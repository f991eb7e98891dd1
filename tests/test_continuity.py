"""The end of MODIS: VIIRS goes on, and nobody sees the change; the command picks, says and records it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from stfgan_xr import continuity, store
from stfgan_xr.aoi import read_aoi
from stfgan_xr.catalog import Catalog, open_catalog, search
from stfgan_xr.days import day_range
from stfgan_xr.grid import coarse_grid, nested_grid
from stfgan_xr.harmonise import Linear
from stfgan_xr.load import load
from stfgan_xr.sensors import BANDS, FILL
from tests import viirs

LAST, FIRST = date(2020, 3, 8), date(2020, 2, 24)
LINEARS = {
    band: Linear(gain, offset)
    for band, gain, offset in zip(BANDS, (0.9, 1.05, 1.1, 0.95, 1.0, 1.2), (0.01, -0.004, 0.0, 0.012, -0.01, 0.005), strict=True)
}  # fmt: skip


@pytest.fixture(scope="module")
def changed(demo_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed") / "world"
    return viirs.change_of_sensors(demo_world, folder, last=LAST, first=FIRST, linears=LINEARS)


@pytest.fixture(scope="module")
def catalogs(changed: Path) -> tuple[Catalog, Catalog]:
    first = open_catalog(str(changed))
    assert first.coarse is not None
    return first, open_catalog(first.coarse.successor)


def test_the_catalog_says_when_it_ends_and_who_goes_on(catalogs: tuple[Catalog, Catalog]) -> None:
    first, second = (catalog.coarse for catalog in catalogs)
    assert first is not None
    assert second is not None
    assert first.until == LAST
    assert second.until is None


def test_the_joined_series_is_the_one_that_never_ended(
    catalogs: tuple[Catalog, Catalog], demo_world: Path, changed: Path
) -> None:
    area = read_aoi(str(demo_world / "aoi.geojson"))
    grid = coarse_grid(nested_grid(area))
    span = date(2020, 2, 10), date(2020, 3, 20)
    sides = tuple(catalog.coarse for catalog in catalogs)
    found = [search(side, area, *span, 114.06) for side in sides if side]
    assert {scene.sensor for scene in found[1]} == {"vnp43ma4"}
    days = continuity.compared_days(*found)
    assert (days[0], days[-1]) == (FIRST, LAST)
    assert len(days) == 12
    fits = continuity.compare(*found, grid, sides=sides, bands=BANDS)
    for band, expected in LINEARS.items():
        assert fits[band].linear.gain == pytest.approx(expected.gain, abs=0.02)
        assert fits[band].after < 0.0004
        assert fits[band].cells > 100
    options = {"bands": BANDS, "days": day_range(*span)}
    parts = [load(scenes, grid, side=side, **options) for scenes, side in zip(found, sides, strict=True)]
    joined = continuity.join(parts[0], parts[1], LAST, fits).compute()
    whole_side = open_catalog(str(demo_world / "catalog.toml")).coarse
    whole = load(search(whole_side, area, *span, 114.06), grid, side=whole_side, **options).compute()
    xr.testing.assert_equal(joined.qa, whole.qa)
    for band in BANDS:
        assert joined[band].dtype == np.int16
        known = whole[band].values != FILL
        np.testing.assert_array_equal(joined[band].values != FILL, known)
        away = np.abs(joined[band].values.astype(int) - whole[band].values)[known]
        assert away.max() <= 12
        before = np.abs(
            joined[band].sel(time=slice(None, "2020-03-08")) - whole[band].sel(time=slice(None, "2020-03-08"))
        )
        assert int(before.max()) == 0


def test_days_are_compared_only_where_both_are(catalogs: tuple[Catalog, Catalog], demo_world: Path) -> None:
    area = read_aoi(str(demo_world / "aoi.geojson"))
    modis, viirs_ = (search(c.coarse, area, date(2020, 2, 10), date(2020, 3, 20), 114.06) for c in catalogs if c.coarse)
    assert continuity.compared_days(modis, ()) == continuity.compared_days((), viirs_) == []
    before = [scene for scene in modis if scene.day < FIRST]
    assert continuity.compared_days(before, viirs_) == []
    assert continuity.compared_days(modis, [s for s in viirs_ if s.day in (FIRST, LAST)]) == [FIRST, LAST]


def test_large_areas_are_compared_on_fewer_cells(
    catalogs: tuple[Catalog, Catalog], demo_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    area = read_aoi(str(demo_world / "aoi.geojson"))
    grid = coarse_grid(nested_grid(area))
    sides = [catalog.coarse for catalog in catalogs if catalog.coarse]
    found = [search(side, area, date(2020, 2, 10), date(2020, 3, 20), 114.06, ("nir",)) for side in sides]
    options = {"sides": tuple(sides), "bands": ("nir",)}
    whole = continuity.compare(*found, grid, **options)["nir"]
    monkeypatch.setattr(continuity, "MOST_CELLS", 2)  # of 1920 m: both are means
    fewer = continuity.compare(*found, grid, **options)["nir"]
    assert 20 < fewer.cells < whole.cells / 8
    assert fewer.linear.gain == pytest.approx(LINEARS["nir"].gain, abs=0.02)


# ---------------------------------------------------------------- the command


def run(command: str, toml: Path, out: Path, *options: str, dates: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"pipelines.{command}", "--catalog", str(toml), "--out", str(out), *options]
    line += [
        "--dates",
        dates,
        "--bands",
        "red,nir",
        "--bracket-days",
        "12",
        *(["--no-report"] if command == "fuse" else []),
    ]
    return subprocess.run(line, check=False, timeout=100, capture_output=True, text=True)


def recorded(out: Path) -> dict[str, object]:
    return json.loads((out / "run.json").read_text())


@pytest.fixture(scope="module")
def crossed(changed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("crossed") / "run"
    done = run("fuse", changed, out, "--method", "delta", dates="2020-03-05/2020-03-12")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_run_across_the_end_is_as_if_it_had_not_ended(
    crossed: tuple[Path, str], demo_world: Path, tmp_path: Path
) -> None:
    out, _ = crossed
    done = run(
        "fuse", demo_world / "catalog.toml", tmp_path / "run", "--method", "delta", dates="2020-03-05/2020-03-12"
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (store.open_counts(folder / "fused.zarr").load() for folder in (out, tmp_path / "run"))
    for band in ("red", "nir"):
        known = theirs[band].values != FILL
        np.testing.assert_array_equal(ours[band].values != FILL, known)
        assert np.abs(ours[band].values.astype(int) - theirs[band].values)[known].max() <= 15


def test_the_command_says_and_records_which_sensor_it_used(crossed: tuple[Path, str]) -> None:
    out, said = crossed
    said = " ".join(said.split())
    assert "modis-43A4-061 until 2020-03-08, then VNP43MA4_002 of catalog viirs" in said
    found = recorded(out)["continuity"]
    assert isinstance(found, dict)
    assert (found["last"], found["catalog"], found["collections"]) == ("2020-03-08", "viirs", ["VNP43MA4_002"])
    assert found["bands"].keys() == {"red", "nir"}
    assert found["bands"]["red"]["gain"] == pytest.approx(LINEARS["red"].gain, abs=0.01)
    assert found["bands"]["nir"]["offset"] == pytest.approx(LINEARS["nir"].offset, abs=0.003)
    assert found["bands"]["nir"]["rmsd_after"] < found["bands"]["nir"]["rmsd_before"]
    assert [found["days"][0], found["days"][-1], len(found["days"])] == [str(FIRST), str(LAST), 12]


def test_it_resumes_with_the_same_fit_without_reading_it_again(crossed: tuple[Path, str], changed: Path) -> None:
    out, _ = crossed
    before = recorded(out)
    done = run("fuse", changed, out, "--method", "delta", dates="2020-03-05/2020-03-12")
    assert (done.returncode, recorded(out)) == (0, before)
    assert "nothing to do" in done.stdout


def test_before_the_end_nothing_else_is_asked(changed: Path, tmp_path: Path) -> None:
    toml = changed.with_name("early.toml")
    toml.write_text(changed.read_text().replace('"viirs.toml"', '"absent.toml"'))
    done = run("cubes", toml, tmp_path / "run", dates="2020-02-14/2020-02-20")
    assert done.returncode == 0, done.stderr
    assert "continuity" not in recorded(tmp_path / "run")
    items = json.loads((tmp_path / "run" / "items.json").read_text())["coarse"]
    assert {item["sensor"] for item in items} == {"mcd43a4"}


def test_long_after_the_end_the_successor_serves_alone(demo_world: Path, tmp_path: Path) -> None:
    toml = viirs.change_of_sensors(
        demo_world, tmp_path / "world", last=date(2020, 2, 11), first=date(2020, 2, 10), linears=LINEARS
    )
    done = run("cubes", toml, tmp_path / "run", dates="2020-03-14")
    assert done.returncode == 0, done.stderr
    found = recorded(tmp_path / "run")["continuity"]
    assert isinstance(found, dict)
    assert (found["last"], found["bands"]) == (None, {})
    assert "modis-43A4-061 has ended" in done.stdout
    cube = store.open_counts(tmp_path / "run" / "modis.zarr")
    assert int((cube.red.sel(time="2020-03-14") != FILL).sum()) > 30


def test_a_plan_says_it_and_keeps_nothing(changed: Path, tmp_path: Path) -> None:
    done = run("fuse", changed, tmp_path / "run", "--plan", "--method", "delta", dates="2020-03-05/2020-03-12")
    assert done.returncode == 0, done.stderr
    assert "modis-43A4-061 until 2020-03-08, then VNP43MA4_002" in " ".join(done.stdout.split())
    assert not (tmp_path / "run").exists()


def test_a_successor_that_is_not_there_is_an_error_that_names_it(changed: Path, tmp_path: Path) -> None:
    toml = changed.with_name("other.toml")
    toml.write_text(changed.read_text().replace('"viirs.toml"', '"nowhere"'))
    done = run("cubes", toml, tmp_path / "run", dates="2020-03-05/2020-03-12")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
