"""The viewer: what a layer shows by hand, and a real browser that loads, slides, clicks, compares and saves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from stfgan_xr import open_cube, viewer
from stfgan_xr.errors import InputError
from stfgan_xr.files import as_folder
from stfgan_xr.grid import Window
from stfgan_xr.overviews import Pyramid
from stfgan_xr.rendering import index_of
from tests.browser import SIZES, browsing, swipe


@pytest.fixture(scope="module")
def layers(finished: Path) -> list[viewer.Layer]:
    return viewer.layers_of([as_folder(finished)])


def test_layers_and_what_can_be_shown_of_them(layers: list[viewer.Layer], finished: Path) -> None:
    assert [layer.name for layer in layers] == [f"delta ({finished})", "Landsat, nearest day", "MODIS"]
    shown = viewer.choices(layers[0].pyramid)
    assert list(shown)[:7] == ["true colour", "false colour", "shortwave", "NDVI", "EVI", "NDWI", "NBR"]
    assert "standard deviation of red" not in shown
    assert layers[0].step(date(2020, 3, 4)) == 3
    assert layers[0].step(date(2021, 3, 4)) is None
    nearest = layers[1].step(date(2020, 3, 4))
    assert nearest is not None
    assert min(abs((d - date(2020, 3, 4)).days) for d in layers[1].days) == abs(
        (layers[1].days[nearest] - date(2020, 3, 4)).days
    )


def test_runs_of_other_areas_are_not_compared(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = viewer.open_pyramid
    cut = iter([slice(0, 128), slice(0, 64)])

    def opened(run: object, name: str) -> Pyramid:
        return Pyramid({1: whole(run, name).cube.isel(x=next(cut))})  # type: ignore[arg-type]

    monkeypatch.setattr(viewer, "open_pyramid", opened)
    with pytest.raises(InputError, match="not on the grid of"):
        viewer.layers_of([as_folder(finished)] * 2)


def test_frames_are_the_values_of_the_day_and_few_are_kept(layers: list[viewer.Layer], finished: Path) -> None:
    cube, frames = open_cube(finished / "fused.zarr"), viewer.Frames()
    for step in (0, 5, 7):
        for left in (0, 16, 32):
            window = Window(10, 40, left, left + 20)
            values, grid = frames.view(layers[0], ("red", "nir"), step, window)
            np.testing.assert_array_equal(values["nir"], cube.nir.values[step, 10:40, left : left + 20])
            assert grid.affine.c == cube.odc.geobox.affine.c + 30 * left
    assert len(frames.kept) == 3  # eight days are one view
    for top in range(10):
        frames.view(layers[0], ("red",), 0, Window(top, 40, 0, 20))
    assert len(frames.kept) == viewer.KEPT_VIEWS


def test_labels_show_indices_ages_and_composites() -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.random((4, 5)).astype("float32") for name in ("red", "nir", "green", "blue")}
    np.testing.assert_array_equal(viewer.image_of("NDVI", values, ("nir", "red")), index_of("ndvi", values))
    assert viewer.image_of("true colour", values, ("red", "green", "blue")).shape == (3, 4, 5)
    assert viewer.image_of("EVI", values, ("blue", "red", "nir")).shape == (4, 5)
    ages = {"days_before": np.array([[3, 255]], "uint8"), "days_after": np.array([[1, 255]], "uint8")}
    found = viewer.image_of("days to the observations", ages, ("days_before", "days_after"))
    assert found[0, 0] == 1
    assert np.isnan(found[0, 1])


def test_pixels_of_a_screen_have_the_first_row_at_the_bottom() -> None:
    image = np.array([[0.0, 1.0], [np.nan, 0.5]], "float32")
    found = viewer.to_rgba(image, (0.0, 1.0))
    bytes_of = [list(int(value).to_bytes(4, "little")) for value in (found[1, 0], found[1, 1], found[0, 0])]
    assert bytes_of[0] == [0x44, 0x01, 0x54, 255]  # the first colour of viridis
    assert bytes_of[1] == [0xFD, 0xE7, 0x25, 255] or bytes_of[1] == [0xFD, 0xE7, 0x24, 255]
    assert bytes_of[2] == [191, 191, 191, 255]


@pytest.fixture(scope="module")
def address(finished: Path) -> Iterator[str]:
    """The page of the finished run beside itself, served by another process; Ctrl-C ends it well."""
    command = [sys.executable, "-m", "pipelines.view", str(finished), str(finished), "--no-browser"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("viewer: http://127.0.0.1:"), line
        yield line.split()[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


LONG = 60_000
"""Milliseconds a browser is waited for on a busy machine."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", SIZES)
def test_in_a_browser(address: str, finished: Path, tmp_path: Path, size: str) -> None:
    cube: xr.Dataset = open_cube(finished / "fused.zarr")
    with browsing(size) as (tab, complaints):
        tab.set_default_timeout(LONG)
        tab.goto(address)
        tab.wait_for_selector(".bk-Figure canvas")
        tab.wait_for_selector("text=true colour, 2020-03-01")
        assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        if size == "phone":
            box = tab.locator(".bk-Figure canvas").first.bounding_box()
            middle = box["y"] + box["height"] / 2
            assert swipe(tab, box["x"] + box["width"] / 2, middle, middle - 200) > 50
            tab.evaluate("scrollTo(0, 0)")
        tab.locator(".noUi-handle").first.press("ArrowRight")
        tab.wait_for_selector("text=true colour, 2020-03-02")
        tab.locator("select").nth(0).select_option("NDVI")
        tab.wait_for_selector("text=NDVI, 2020-03-02")
        tab.click("button:has-text('Play')")
        tab.wait_for_selector("text=NDVI, 2020-03-04")
        tab.click("button:has-text('Stop')")
        tab.locator("select").nth(2).select_option("MODIS")
        box = tab.locator(".bk-Figure canvas").first.bounding_box()
        tab.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.4 * box["height"])
        place = tab.locator("text=/row \\d+, column \\d+/").first
        place.wait_for()
        tab.wait_for_timeout(1500)
        with tab.expect_download() as saving:
            tab.click("button:has-text('Save as CSV')")
        path = tmp_path / "series.csv"
        saving.value.save_as(path)
        words = place.inner_text().replace(",", "").replace(";", "").split()
        row, column = (int(words[words.index(name) + 1]) for name in ("row", "column"))
        left = [line.split(",") for line in path.read_text().splitlines() if line.startswith("left")]
        pixel = cube[["red", "nir"]].isel(y=row, x=column)
        expected = index_of("ndvi", {band: pixel[band].values for band in ("red", "nir")})
        assert [day for _, day, _ in left] == [f"2020-03-{n:02d}" for n in range(1, 9)]
        np.testing.assert_allclose([float(value) for _, _, value in left], expected, atol=1e-6)
        tab.screenshot(path=tmp_path / f"{size}.png", full_page=True)
        assert complaints == []
