"""The report of a run: its numbers by hand, one file, and what a browser makes of it."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipelines import summary as command
from pipelines.console import main
from stfgan_xr import open_cube, pages, simulate, store, summary, viewer
from stfgan_xr.files import as_folder
from stfgan_xr.fusion import Quality
from stfgan_xr.grid import Window
from stfgan_xr.overviews import Pyramid
from stfgan_xr.rendering import index_of
from stfgan_xr.sensors import is_clear
from tests.browser import SIZES, browsing
from tests.conftest import CREDENTIALS
from tests.object_server import Objects


@pytest.fixture(scope="module")
def found(finished: Path) -> summary.Summary:
    """What is seen of the finished run."""
    return summary.summarise(as_folder(finished))


@pytest.fixture(scope="module")
def page(finished: Path, found: summary.Summary) -> str:
    """Its page."""
    return pages.to_html(found, {"seconds": "12"})


@pytest.fixture(scope="module")
def cube(finished: Path) -> xr.Dataset:
    return open_cube(finished / "fused.zarr").load()


def test_shares_of_each_day_are_those_of_the_flags_in_the_area(found: summary.Summary, cube: xr.Dataset) -> None:
    inside, qa = cube.aoi.values, cube.qa.values
    for number in range(8):
        flags = qa[number][inside]
        observed = (flags & int(Quality.OBSERVED)) != 0
        one_side = ((flags & int(Quality.EXTRAPOLATED)) != 0) & ~observed
        none = (flags & int(Quality.NODATA)) != 0
        assert found.kinds["observed"][number] == pytest.approx(observed.mean())
        assert found.kinds["one side"][number] == pytest.approx(one_side.mean())
        assert found.kinds["no value"][number] == pytest.approx(none.mean())
        assert sum(shares[number] for shares in found.kinds.values()) == pytest.approx(1)


def test_maps_are_means_over_the_days(found: summary.Summary, cube: xr.Dataset) -> None:
    nearest = np.minimum(cube.days_before.values, cube.days_after.values).astype(float)
    nearest[(cube.qa.values & int(Quality.NODATA)) != 0] = np.nan
    with np.errstate(invalid="ignore"):
        expected = np.where(cube.aoi.values, np.nanmean(nearest, axis=0), np.nan)
    np.testing.assert_allclose(found.maps["days to the nearest observation, mean"], expected, rtol=1e-5)
    ndvi = index_of("ndvi", {band: cube[band].values.astype(np.float64) for band in ("red", "nir")})
    change = found.maps["standard deviation over time of NDVI"]
    known = np.isfinite(change)
    assert known.mean() > 0.8
    np.testing.assert_allclose(change[known], ndvi.std(axis=0)[known], atol=2e-3)


def test_acquisitions_residuals_and_points_come_from_the_cubes(
    found: summary.Summary, finished: Path, cube: xr.Dataset
) -> None:
    landsat = open_cube(finished / "landsat.zarr").load()
    shares = [float(is_clear(day)[landsat.aoi.values].mean()) for day in landsat.qa.values]
    assert [a.clear for a in found.acquisitions] == pytest.approx(shares)
    assert sum(len(a.scenes) for a in found.acquisitions) == found.document["items"]["landsat"]
    residual = cube.residual_nir.values[np.isfinite(cube.residual_nir.values)]
    assert found.residuals["nir"] == pytest.approx((residual.mean(), math.sqrt((residual**2).mean())), rel=1e-5)
    change = found.maps["standard deviation over time of NDVI"]
    first = found.points[0]
    assert (change <= change[first.row, first.column]).sum() / np.isfinite(change).sum() == pytest.approx(
        0.99, abs=0.01
    )
    np.testing.assert_array_equal(first.series[0]["mean"], cube.nir.values[:, first.row, first.column])
    clear = is_clear(landsat.qa.values[:, first.row, first.column])
    np.testing.assert_array_equal(first.series[1], landsat.nir.values[clear, first.row, first.column])


def test_scores_are_those_of_predicted_pixels_against_the_truth(
    found: summary.Summary, demo_world: Path, cube: xr.Dataset
) -> None:
    assert found.truth is not None
    world = simulate.read_world(demo_world)
    off = []
    for day in found.truth.days:
        image = cube.sel(time=str(day))
        predicted = (image.qa.values & int(Quality.OBSERVED | Quality.NODATA)) == 0
        off.append((image.red.values - world.reflectance(day, ("red",))[0])[predicted])
    errors = np.concatenate(off)
    rmse, bias, _ = found.truth.scores["red"]
    assert (rmse, bias) == pytest.approx((math.sqrt((errors**2).mean()), errors.mean()), rel=1e-4)


def test_a_run_without_a_truth_or_an_area_has_a_report(finished: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    document = json.loads((run / "run.json").read_text())
    document["catalog"] = {"name": "planetary-computer", "truth": None}
    document["request"]["catalog"] = "<b>other</b>"
    (run / "run.json").write_text(json.dumps(document))
    (run / "items.json").unlink()
    command.write_report(as_folder(run))
    text = (run / "report.html").read_text()
    assert "Against the truth" not in text
    assert "planetary-computer" in text
    assert "<b>other" not in text
    assert "MiB" in text


def test_modis_is_shown_on_a_clear_day_far_from_observations(found: summary.Summary, finished: Path) -> None:
    modis = open_cube(finished / "modis.zarr").load()
    title, levels, _, fused = found.pairs["what MODIS saw, and what was fused"]
    cells = modis.sel(time=title.rpartition(" ")[2])
    hole = ~is_clear(cells.qa.values)
    assert ((levels == int(0.75 * 255)).all(axis=-1) | ~hole).all()
    assert levels.shape == (8, 8, 3)
    assert fused.shape == (128, 128, 3)


def test_a_finished_run_without_a_report_gets_one(
    finished: Path, demo_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from pipelines import fuse

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    options = ["--catalog", str(demo_world / "catalog.toml"), "--dates", "2020-03-01/2020-03-08", "--method", "delta"]
    monkeypatch.setattr(sys, "argv", ["command", *options, "--out", str(run)])
    with pytest.raises(SystemExit) as stop:
        main(fuse.command)
    assert not stop.value.code
    assert (run / "report.html").is_file()


def test_the_only_day_is_not_compared_with_itself(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = summary.open_pyramid

    def one_day(run: object, name: str) -> Pyramid:
        cube = whole(run, name).cube  # type: ignore[arg-type]
        return Pyramid({1: cube.isel(time=slice(2, 3)) if name == "fused" else cube})

    monkeypatch.setattr(summary, "open_pyramid", one_day)
    found = summary.summarise(as_folder(finished))
    assert list(found.pairs) == ["what MODIS saw, and what was fused"]
    assert "<b>1</b><span>day</span>" in pages.to_html(found)


def test_one_file_that_needs_nothing_else_and_is_the_same_each_time(page: str, found: summary.Summary) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]{1,60})', page)
    assert addresses
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert "http://www.w3.org" in page  # of SVG, a name and not an address
    assert not re.search(r"url\((?!#|\"?data:)|@import|<script src|<link rel=\"stylesheet", page)
    assert page == pages.to_html(found, {"seconds": "12"})
    for digest in (state["sha256"] for state in found.document["cubes"].values()):
        assert digest in page


def test_large_runs_are_seen_through_overviews_in_few_frames(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from stfgan_xr import overviews

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    monkeypatch.setattr(overviews, "MOST_PIXELS", 32)
    monkeypatch.setattr(overviews, "TILE", 64)
    monkeypatch.setattr(summary, "PIXELS", 32)
    monkeypatch.setattr(summary, "MOST_FRAMES", 3)
    command.write_overviews(as_folder(run))
    assert store.is_complete(run / "overviews" / "fused-4.zarr")
    found = summary.summarise(as_folder(run))
    assert [str(day)[-2:] for day in found.shown] == ["01", "05", "08"] or len(found.shown) == 3
    assert found.frames["true colour"][0].shape == (32, 32, 3)
    assert found.view.affine.a == 120
    assert "3 of 8 days" in pages.to_html(found)


@pytest.mark.parametrize("size", SIZES)
def test_in_a_browser(page: str, tmp_path: Path, size: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(page)
    with browsing(size) as (tab, complaints):
        tab.goto(path.as_uri())
        assert tab.title().startswith("Daily Landsat-like images, 8 days")
        assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        shown = ".player figure.on img"
        first = tab.get_attribute(shown, "src")
        tab.locator(".player input").fill("5")
        assert tab.inner_text(".player output") == "2020-03-06"
        assert tab.get_attribute(shown, "src") != first
        assert tab.locator(shown).count() == 1
        tab.select_option(".player select", "false colour")
        assert tab.get_attribute(shown, "alt") == "false colour, 2020-03-06"
        tab.click(".player button")
        tab.wait_for_function("document.querySelector('.player output').textContent !== '2020-03-06'")
        tab.click(".player button")
        tab.locator(".swipe input").first.fill("20")
        assert tab.evaluate("document.querySelector('.swipe').style.getPropertyValue('--at')") == "20%"
        tab.locator(".swipe").first.scroll_into_view_if_needed()
        box = tab.locator(".swipe").first.bounding_box()
        middle = box["y"] + box["height"] / 2
        tab.mouse.move(box["x"] + 0.3 * box["width"], middle)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.7 * box["width"], middle, steps=8)
        tab.mouse.up()
        assert tab.evaluate("document.querySelector('.swipe').style.getPropertyValue('--at')") == "70%"
        natural = "Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)"
        assert tab.evaluate(natural)
        tab.screenshot(path=tmp_path / f"{size}.png", full_page=True)
        tab.emulate_media(media="print")
        assert tab.locator(".player figure.sheet figcaption").first.is_visible()
        assert not tab.locator(".player button").is_visible()
        assert not tab.locator("details table").is_visible()
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert tab.locator("details table").is_visible()
        tab.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not tab.locator("details table").is_visible()
        assert complaints == []


def test_a_run_in_an_object_store_is_reported_and_browsed(
    finished: Path,
    tmp_path: Path,
    objects: Objects,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in finished.rglob("*"):
        if path.is_file():
            objects.stored[f"runs/run/{path.relative_to(finished)}"] = path.read_bytes()
    there, here = as_folder("s3://bucket/runs/run"), tmp_path / "seen.html"
    command.write_report(there)
    assert f"python -m pipelines.summary {there} --out report.html" in capsys.readouterr().out
    stored = objects.stored["runs/run/report.html"].decode()
    monkeypatch.setattr(sys, "argv", ["summary", str(there), "--out", str(here)])
    with pytest.raises(SystemExit) as stop:
        main(command.command)
    assert not stop.value.code
    assert here.read_text() == stored
    monkeypatch.setattr(command, "size_on_disk", lambda folder: None)
    assert stored.replace(str(there), str(finished)) == command.make_report(as_folder(finished))
    assert not any(secret in stored for secret in CREDENTIALS.values())
    shown, local = (viewer.Frames().view(viewer.layers_of([run])[0], ("nir",), 3, Window(0, 40, 0, 40))[0]["nir"]
                    for run in (there, as_folder(finished)))  # fmt: skip
    np.testing.assert_array_equal(shown, local)
