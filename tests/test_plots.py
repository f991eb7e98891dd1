"""Pictures hold what they should: pixels, titles, and nothing is left open."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.image import imread

from stfgan_xr import fusion, plots, rendering
from stfgan_xr.predictors.methods import make
from tests.synthetic import Scene, day


@pytest.mark.parametrize("bands", [("red", "nir"), ("blue", "green", "red")])
@pytest.mark.parametrize("known", [True, False])
def test_picture_of_a_run(tmp_path: Path, bands: tuple[str, ...], known: bool) -> None:
    scene = Scene(bands=bands)
    cube = fusion.fuse(scene.landsat, scene.modis, make("delta", bands), [day(n) for n in range(8, 20)])

    def truth(when: date) -> np.ndarray:
        return scene.truth((when - day(0)).days)[::-1]

    plots.run_picture(tmp_path / "a.png", scene.landsat, cube.compute(), truth if known else None)
    image = imread(tmp_path / "a.png")
    assert image.shape[1] > 1000
    assert image.shape[0] > (900 if known and len(bands) == 3 else 300)
    assert image[..., :3].std() > 0.1
    assert pyplot.get_fignums() == []


def test_quicklook_shows_holes_in_grey_and_stretches_the_rest() -> None:
    image = np.linspace(0.1, 0.3, 3 * 64, dtype="float32").reshape(3, 8, 8)
    image[:, 2, 3] = np.nan
    axes = plots.quicklook(Figure().subplots(), image, rendering.stretch_of([image]), "now")
    shown = np.asarray(axes.images[0].get_array())
    assert shown[2, 3].tolist() == [0.75, 0.75, 0.75]
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert axes.get_title() == "now"


def test_time_series_marks_clear_observations_only() -> None:
    scene = Scene(cloud=0.5)
    cube = fusion.fuse(scene.landsat, scene.modis, make("linear", scene.bands), [day(n) for n in range(5, 30)])
    axes = plots.time_series(Figure().subplots(), cube, scene.landsat, "nir", 20, 30)
    line, points = axes.lines
    assert len(line.get_xdata()) == 25
    assert len(points.get_xdata()) == int((scene.landsat.qa.values[:, 20, 30] == 0).sum())


def test_calendar_of_clear_shares() -> None:
    scene = Scene(cloud=0.5)
    axes = plots.calendar(Figure().subplots(), scene.landsat)
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, (scene.landsat.qa.values == 0).mean(axis=(1, 2)))


def test_loss_curves_show_errors_checks_and_gradients_with_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["step", "mse_anchor", "mse_stage1", "mse_stage2", "gradient_ratio_stage1", "rmse_withheld"]
    rows = [[n, 0.02, 0.1 / (n + 1), 0.2 / (n + 1), "" if n % 5 else 0.01, "" if n % 10 else 0.03] for n in range(60)]
    text = "\n".join(",".join(map(str, row)) for row in [names, *rows])
    (tmp_path / "losses.csv").write_text(text + "\n")
    shown: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (shown.append(self), save(self, *a, **k)))
    plots.loss_curves(tmp_path / "losses.csv", tmp_path / "losses.png")
    errors, checks, gradients, critics = shown[0].axes
    assert [line.get_label() for line in errors.lines] == ["anchor", "stage 1", "stage 2"]
    assert errors.get_yscale() == "log"
    assert [len(axes.lines) for axes in (checks, gradients, critics)] == [1, 1, 0]
    assert checks.lines[0].get_xdata().tolist() == [1, 11, 21, 31, 41, 51]
    assert "withheld" in checks.get_ylabel()
    assert "gradient" in gradients.get_ylabel()
    assert {axes.get_xlabel() for axes in shown[0].axes} == {"step"}


def test_loss_curves_of_a_short_file(tmp_path: Path) -> None:
    rows = "\n".join(f"{n},{1 / (n + 1)},{0.5 if n % 2 else ''}" for n in range(50))
    (tmp_path / "losses.csv").write_text("step,mse_stage1,critic_stage1\n" + rows + "\n")
    plots.loss_curves(tmp_path / "losses.csv", tmp_path / "losses.png")
    assert imread(tmp_path / "losses.png")[..., :3].std() > 0.02


def test_triptych_has_one_stretch_for_all() -> None:
    dark, bright = np.full((3, 8, 8), 0.1, "float32"), np.full((3, 8, 8), 0.3, "float32")
    parts = plots.triptych(Figure().subplots(1, 3), dark, (dark + bright) / 2, bright, ("a", "b", "c"))
    shown = [float(np.asarray(axes.images[0].get_array()).mean()) for axes in parts]
    assert shown[0] < shown[1] < shown[2]
    assert [axes.get_title() for axes in parts] == ["a", "b", "c"]


def test_time_series_shades_the_interval_of_95_per_cent() -> None:
    scene = Scene()
    cube = fusion.fuse(
        scene.landsat, scene.modis, make("linear", scene.bands), [day(n) for n in range(5, 30)]
    ).compute()
    cube["std_nir"] = xr.full_like(cube.nir, 0.01).assign_attrs(interval_95=2.5)
    axes = plots.time_series(Figure().subplots(), cube, scene.landsat, "nir", 20, 30)
    (band,) = axes.collections
    at = band.get_paths()[0].vertices[:, 1]
    mean = cube.nir.values[:, 20, 30]
    assert at.min() == pytest.approx(mean.min() - 0.025, abs=1e-6)
    assert at.max() == pytest.approx(mean.max() + 0.025, abs=1e-6)


def test_calendar_shows_days_asked_for_and_the_coarse_series() -> None:
    scene = Scene(cloud=0.5)
    axes = plots.calendar(Figure().subplots(), scene.landsat, scene.modis, [day(3), day(9)])
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_ydata(), (scene.modis.qa.values == 0).mean(axis=(1, 2)))
    assert "days asked for" in [patch.get_label() for patch in axes.patches]
