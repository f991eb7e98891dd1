"""Training from the command line, and the weights it leaves used by the others."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import calibrate, train
from pipelines.console import main
from stfgan_xr import fusion, store
from stfgan_xr.errors import InputError
from stfgan_xr.files import LocalFolder
from stfgan_xr.lease import LEASE, held
from stfgan_xr.predictors import objective
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.stages import Architecture
from tests.synthetic import Scene, day
from tests.test_stfgan import random_checkpoint

SMALL = ["--width", "2", "--steps", "4", "--batch", "1", "--patch", "48", "--region", "64", "--samples", "3"]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, command: Callable[..., None] = train.command) -> int:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    monkeypatch.setattr(train, "compute_here", lambda _: None)
    with pytest.raises(SystemExit) as stop:
        main(command)
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scene, folder = Scene(height=96, width=96, cloud=0.1), tmp_path_factory.mktemp("run")
    for name, dataset in (("landsat.zarr", scene.landsat), ("modis.zarr", scene.modis)):
        layout = store.dataset_layout(dataset, dataset.odc.geobox, scene.bands, tile=96, run=4)
        for task in store.write_tasks(dataset, folder / name, layout, store.prepare(folder / name, layout, {})):
            task.compute(scheduler="synchronous")
        store.seal(folder / name)
    return folder


def test_weights_of_the_command_fuse_a_cube(
    cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights"
    assert run(["--cube", str(cubes), "--out", str(out), *SMALL], monkeypatch) == 0
    assert "RMSE on the withheld days" in capsys.readouterr().out
    with (out / "training" / "losses.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (out / "training" / "losses.png").stat().st_size > 5000
    config = json.loads((out / "stfgan.json").read_text())
    assert config["width"] == 2
    assert config["bands"] == ["red", "nir"]
    landsat, modis = (store.open_cube(cubes / f"{name}.zarr") for name in ("landsat", "modis"))
    predictor = make("stfgan", ("red", "nir"), out / "stfgan.safetensors")
    fused = fusion.fuse(landsat, modis, predictor, [day(14)]).compute()
    assert np.isfinite(fused.red.values).mean() > 0.9


def test_weights_are_calibrated_anew_and_nothing_else_changes(
    cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights"
    assert run(["--cube", str(cubes), "--out", str(out), "--subsets", *SMALL], monkeypatch) == 0
    trained = json.loads((out / "stfgan.json").read_text())
    assert trained["uncertainty"]["bands"].keys() == {"red", "nir"}
    (out / "stfgan.json").write_text(json.dumps({name: trained[name] for name in trained if name != "uncertainty"}))
    landsat, modis = (store.open_cube(cubes / f"{name}.zarr") for name in ("landsat", "modis"))
    with pytest.raises(InputError, match=r"pipelines\.calibrate"):
        fusion.fuse(landsat, modis, make("stfgan", ("red", "nir"), out), [day(14)], uncertainty=True)
    capsys.readouterr()
    assert run([str(out), "--cube", str(cubes)], monkeypatch, calibrate.command) == 0
    assert "nir: 68 % of the errors" in capsys.readouterr().out
    assert json.loads((out / "stfgan.json").read_text()) == trained
    fused = fusion.fuse(landsat, modis, make("stfgan", ("nir",), out), [day(14)], uncertainty=True).compute()
    assert (np.isfinite(fused.std_nir.values) == np.isfinite(fused.nir.values)).all()


def test_the_command_starts_from_weights_and_is_patient(
    cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(objective, "RUNGS", (16,))
    weights, out = random_checkpoint(tmp_path / "weights", Architecture(("red", "nir"), 2)), tmp_path / "out"
    more = ["--from", str(weights), "--patience", "1", *SMALL[2:]]
    assert run(["--cube", str(cubes), "--out", str(out), *more], monkeypatch) == 0
    assert ", from 0." in capsys.readouterr().out
    config = json.loads((out / "stfgan.json").read_text())
    assert config["width"] == 2
    assert config["training"]["from"] == json.loads(weights.with_suffix(".json").read_text())["sha256"]
    assert config["training"]["patience"] == 1
    assert run(["--cube", str(cubes), "--out", str(out), *more, "--width", "4"], monkeypatch) == 2
    assert "was trained with width 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--cube"),
        (["--cube", "nowhere"], "no such cube"),
        (["--cube", "CUBES", "--gan", "magic"], "--gan"),
        (["--cube", "CUBES", "--schedule", "magic"], "--schedule"),
        (["--cube", "CUBES", "--bands", "blue"], "blue"),
        (["--cube", "CUBES", "--patch", "50"], "multiples"),
        (["--cube", "CUBES", "--patch", "512", "--region", "512"], "do not fit"),
        (["--pairs", "nowhere.toml"], "nowhere.toml"),
        (["--cube", "CUBES", "--from", "nowhere.safetensors"], "no such checkpoint"),
        (["--cube", "CUBES", "--patience", "-1"], "--patience"),
        (["--cube", "CUBES", "--minutes", "0"], "minutes"),
    ],
)
def test_bad_input_is_one_line(
    cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], named: str,
) -> None:  # fmt: skip
    given = [a.replace("CUBES", str(cubes)) for a in arguments]
    assert run([*given, "--out", str(tmp_path / "w")], monkeypatch) == 2
    err = capsys.readouterr().err.strip()
    assert named in err
    assert len(err.splitlines()) == 1


def test_a_folder_is_one_training_at_a_time(
    cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights"
    command = ["--cube", str(cubes), "--out", str(out), *SMALL]
    with held(LocalFolder(out)):
        assert run(command, monkeypatch) == 5
        assert f"is in use by process {os.getpid()}" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == [LEASE]
    assert not out.exists()
    assert run(command, monkeypatch) == 0
    assert not (out / LEASE).exists()
