"""Scores of cases: the fair protocol, the numbers known for real data, the table against a truth."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipelines import evaluate
from pipelines.console import main
from stfgan_xr import errors, evaluation, fusion
from stfgan_xr.datasets import read_pairs
from stfgan_xr.metrics import Scores
from stfgan_xr.predictors.methods import METHODS, make
from tests.random_weights import random_weights
from tests.synthetic import Scene, day

CASES = (
    "2020-10-02/2020-10-12/2020-10-22,2020-10-07/2020-10-17/2020-10-27,"
    "2020-10-02/2020-10-22/2020-11-11,2020-10-02/2020-10-27/2020-11-21"
)


def test_real_pairs_give_the_scores_that_were_computed_by_others(shared_data: Path) -> None:
    pairs = read_pairs(shared_data / "pairs" / "salton_sea_nir" / "pairs.toml")
    methods = {name: make(name, ("nir",)) for name in ("delta", "linear", "persistence")}
    table = evaluation.evaluate_triplets(pairs.landsat(), pairs.modis(), methods, evaluation.triplets_from_text(CASES))
    rmse = {name: [row.scores.rmse for row in result.rows] for name, result in table.items()}
    np.testing.assert_allclose(rmse["persistence"], [0.0457, 0.0470, 0.0597, 0.0546], atol=2e-4)
    assert all(np.array(rmse["delta"]) <= np.array([0.0331, 0.0314, 0.0436, 0.0374]) + 1e-3)
    assert table["delta"].rows[0].scores.sam is None
    assert table["delta"].rows[0].scores.ergas is None


def test_nothing_between_or_on_the_target_day_is_used() -> None:
    scene = Scene(cloud=0, gap=0)
    case = [evaluation.Triplet(day(3), day(12), day(27))]
    methods = {"delta": make("delta", scene.bands)}
    honest = evaluation.evaluate_triplets(scene.landsat, scene.modis, methods, case)
    spoiled = scene.landsat.copy(deep=True)
    spoiled.red.values[1] = 9999  # day 11 lies inside the bracket
    again = evaluation.evaluate_triplets(spoiled, scene.modis, methods, case)
    assert honest["delta"].rows[0].scores == again["delta"].rows[0].scores
    only = scene.landsat.isel(time=[0, 4])
    fused = fusion.fuse(only, scene.modis, methods["delta"], [day(12)]).compute()
    error = np.stack([fused[b].values[0] - scene.landsat[b].values[2] / 1e4 for b in scene.bands])
    by_band = np.sqrt((error**2).mean(axis=(1, 2)))
    assert honest["delta"].mean["rmse"] == pytest.approx(float(by_band.mean()), abs=1e-6)


def test_withheld_days_are_consecutive_clear_ones() -> None:
    scene = Scene(cloud=0)
    scene.landsat.qa.values[2] = 2  # day 12 is all cloud
    cases = [str(case) for case in evaluation.withheld(scene.landsat)]
    assert cases[0] == f"{day(3)}/{day(11)}/{day(19)}"
    assert len(cases) == 3


def test_perfect_and_worse_predictions_against_a_truth() -> None:
    scene = Scene(cloud=0.3)
    days = [day(n) for n in range(8, 12)]
    fused = {
        name: fusion.fuse(scene.landsat, scene.modis, make(name, scene.bands), days) for name in ("delta", "linear")
    }

    def truth(when: date, bands: object, window: object) -> np.ndarray:
        return scene.truth((when - day(0)).days)

    table = evaluation.evaluate_truth({n: f.compute() for n, f in fused.items()}, truth, days)
    assert table["delta"].mean["rmse"] < table["linear"].mean["rmse"]  # type: ignore[operator]
    assert table["delta"].mean["skill"] == pytest.approx(0, abs=1e-6)
    exact = xr.Dataset({b: (("time", "y", "x"), np.array([scene.truth(n)[i] for n in range(8, 12)]))
                        for i, b in enumerate(scene.bands)}, {"time": scene.modis.time.values[8:12]})  # fmt: skip
    perfect = evaluation.evaluate_truth({"exact": exact}, truth, days)["exact"]
    assert perfect.mean["rmse"] == 0
    assert perfect.mean["ssim"] == pytest.approx(1)


def _table(case: evaluation.Triplet, *names: str) -> evaluation.Table:
    scene = Scene(cloud=0, gap=0)
    methods = {name: make(name, scene.bands) for name in names}
    return evaluation.evaluate_triplets(scene.landsat, scene.modis, methods, [case])


def test_bands_average_to_the_mean_and_classes_share_out_the_pixels() -> None:
    result = _table(evaluation.Triplet(day(3), day(12), day(27)), "persistence")["persistence"]
    assert list(result.band_means) == ["red", "nir"]
    for name in ("rmse", "bias", "mae", "cc", "ssim", "uiqi"):
        of_bands = [means[name] for means in result.band_means.values()]
        assert result.mean[name] == pytest.approx(np.mean(of_bands)), name  # type: ignore[arg-type]
    assert result.band_means["red"]["sam"] is None
    assert result.band_means["red"]["skill"] is not None  # linear and delta are known though not asked for
    assert result.class_pixels.keys() == {"unchanged", "phenology", "abrupt"}
    assert sum(result.class_pixels.values()) == result.rows[0].scores.pixels == 96 * 64


def test_the_mean_of_a_class_weights_each_case_by_its_pixels() -> None:
    few, many = Scores(rmse=0.1, skill=0.5, pixels=10), Scores(rmse=0.2, pixels=30)
    rows = [evaluation.Row(day(n), None, Scores(), classes={"abrupt": part}) for n, part in enumerate((few, many))]
    nothing = evaluation.Row(day(2), None, Scores(), classes={"abrupt": Scores()})
    result = evaluation.Result((*rows, nothing))
    assert result.class_means["abrupt"]["rmse"] == pytest.approx(0.175)
    assert result.class_means["abrupt"]["skill"] == 0.5
    assert result.class_means["abrupt"]["cc"] is None
    assert result.class_pixels == {"abrupt": 40}


def test_classes_are_scored_over_the_pixels_that_every_method_gives() -> None:
    truth = np.full((1, 2, 4, 4), 0.2, "float32")
    holed = truth.copy()
    holed[0, 0, 0] = np.nan
    axes = ("time", "y", "x")
    fused = {
        name: xr.Dataset({f"b{at}": (axes, image[:, at]) for at in range(2)}, {"time": [np.datetime64(day(0), "ns")]})
        for name, image in (("whole", truth), ("holed", holed))
    }
    upper = np.zeros((4, 4), bool)
    upper[:2] = True
    table = evaluation.evaluate_truth(fused, lambda *_: truth[0], [day(0)], lambda _: {"upper": upper})
    assert {name: result.class_pixels["upper"] for name, result in table.items()} == {"whole": 4, "holed": 4}
    assert {name: result.missing for name, result in table.items()} == {"whole": 0, "holed": 0.25}


@pytest.mark.parametrize(("step", "shows"), [(0.0, False), (0.05, True)])
def test_the_tiles_of_a_cube_show_if_they_differ(step: float, shows: bool) -> None:
    scene = Scene(height=128, width=128, cloud=0.2)
    tile = np.zeros((128, 128))
    tile[64:, :64] = tile[:64, 64:] = 1
    images = np.stack([scene.truth(n) for n in (5, 6)]) * 0.1 + step * tile
    variables = {band: (("time", "y", "x"), images[:, at]) for at, band in enumerate(scene.bands)}
    layout = {"tile": 64, "ratio": 16}
    cube = xr.Dataset(variables, {"time": scene.modis.time.values[5:7]}, {"stfgan_xr": {"layout": layout}})
    found = evaluation.seams("delta", cube, scene.landsat, [day(5), day(6)])
    assert found["observations"] == pytest.approx(1, abs=0.1)
    assert (found["delta"] > 1.5) == shows
    layout["tile"] = 128
    assert evaluation.seams("delta", cube, scene.landsat, [day(5)]) == {}


@pytest.mark.parametrize("text", ["2020-01-01", "2020-01-01/2020-01-03/2020-01-02", "a/b/c", ""])
def test_triplets_that_are_none(text: str) -> None:
    with pytest.raises(errors.InputError):
        evaluation.triplets_from_text(text)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit) as stop:
        main(evaluate.command)
    return int(stop.value.code or 0)


def test_the_command_writes_the_table_as_json(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = str(shared_data / "pairs" / "salton_sea_nir" / "pairs.toml")
    target = tmp_path / "out.json"
    code = run(
        ["--pairs", pairs, "--triplets", CASES.split(",")[0], "--method", "delta", "--json", str(target)], monkeypatch
    )
    assert code == 0
    found = json.loads(target.read_text())
    assert found["delta"]["rows"][0]["triplet"] == CASES.split(",")[0]
    assert {"rmse", "cc", "ssim", "sam", "ergas", "bias"} <= set(found["delta"]["mean"])
    assert found["delta"]["mean"]["sam"] is None
    assert found["delta"]["bands"]["nir"]["rmse"] == found["delta"]["mean"]["rmse"]
    assert found["delta"]["rows"][0]["bands"]["ssim"] == [found["delta"]["mean"]["ssim"]]
    pixels = [part["pixels"] for part in found["delta"]["classes"].values()]
    assert sum(pixels) == found["delta"]["rows"][0]["pixels"]
    assert found["report"]["cases"][0]["unused"] == ["2020-10-07", "2020-10-09", "2020-10-17"]
    assert found["report"]["command"].startswith("python -m pipelines.evaluate --pairs")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_all_methods_are_compared_with_what_they_cost(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, target = str(shared_data / "pairs" / "salton_sea_nir" / "pairs.toml"), tmp_path / "out.json"
    arguments = ["--pairs", pairs, "--triplets", CASES.split(",")[0], "--method", "all", "--json", str(target)]
    for name in ("stfnet", "stfdcnn"):
        arguments += ["--model", str(random_weights(tmp_path, name, bands=("nir",)))]
    assert run(arguments, monkeypatch) == 0
    found = json.loads(target.read_text())
    compared = set(METHODS) - {"spstfm", "ganstfm"}  # which have no weights
    assert set(found["cost"]) == compared
    assert compared <= set(found)
    for cost in found["cost"].values():
        assert cost["seconds"] > 0
        assert cost["memory_mib"] > 1
    assert found["cost"]["stfgan"]["tiles"] == found["cost"]["stfnet"]["tiles"] == "1 count"
    assert found["cost"]["estarfm"]["tiles"] == "the same"
    assert found["cost"]["delta"]["seconds"] < found["cost"]["starfm"]["seconds"]
    shown, said = capsys.readouterr()
    assert "ganstfm is left out: no weights" in said
    assert max(map(len, shown.splitlines())) <= 80
    rows = [line.replace("│", " ").split() for line in shown.splitlines()]
    for name in compared:
        (row,) = [row for row in rows if row[:1] == [name]]
        assert row[1] == f"{found[name]['mean']['rmse']:.4f}"
        assert row[2:5] == [f"{found[name]['classes'][of]['rmse']:.4f}" for of in ("unchanged", "phenology", "abrupt")]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "name a run folder"),
        (["nowhere"], "no such cube"),
        (["--pairs", "nowhere.toml"], "cannot be read"),
        (["--pairs", "PAIRS", "--method", "magic"], "magic"),
        (["--pairs", "PAIRS", "--triplets", "2020-10-02/2020-10-03/2020-10-22", "--method", "delta"], "no fine image"),
        (["--pairs", "PAIRS", "--bands", "red"], "--bands"),
        (["--pairs", "PAIRS", "--report", "scores.pdf"], ".html or .md"),
        (["--pairs", "PAIRS", "--report", "nowhere/scores.md"], "no folder nowhere"),
        (["--pairs", "PAIRS", "--json", "nowhere/scores.json"], "no folder nowhere"),
        (["--pairs", "PAIRS", "--json", "/"], "is a folder; name a file"),
        (["run", "--picture", "nowhere/picture.png"], "no folder nowhere"),
        (["--pairs", "PAIRS", "--picture", "picture.png"], "needs a run folder"),
        (["--pairs", "PAIRS", "--method", "stfgan", "--model", "none.safetensors"], "none.safetensors"),
        (["--pairs", "PAIRS", "--method", "delta", "--model", "WEIGHTS"], "is of stfnet, which is not among"),
        (["--pairs", "PAIRS", "--model", "WEIGHTS", "--model", "WEIGHTS"], "both of stfnet; give one"),
        (["--pairs", "PAIRS", "--method", "all", "--model", "WEIGHTS"], "trained for the bands red, nir, not nir"),
    ],
)
def test_bad_input_is_one_line(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    pairs = str(shared_data / "pairs" / "salton_sea_nir" / "pairs.toml")
    weights = str(random_weights(tmp_path, "stfnet")) if "WEIGHTS" in arguments else ""
    assert run([a.replace("PAIRS", pairs).replace("WEIGHTS", weights) for a in arguments], monkeypatch) == 2
    err = capsys.readouterr().err.strip()
    assert named in err
    assert len(err.splitlines()) == 1
