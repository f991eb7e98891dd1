"""A training run that is killed, wherever it is killed, ends as one that was not."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stfgan_xr import checkpoint, training
from stfgan_xr.errors import InputError
from tests.synthetic import Scene
from tests.test_training import ACQUIRED, RECIPE, Broken
from tests.training_run import LONG

FILES = ("stfgan.safetensors", "stfgan.json", "training/losses.csv")
ROOT = Path(__file__).parents[1]


def start(out: Path, *more: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.training_run", str(out), *map(str, more)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)


def kill_at(out: Path, rows: int, delay: float) -> int:
    """Kill a run from outside, a moment after it has written so many rows of losses."""
    losses = out / "training" / "losses.csv"
    before = losses.stat().st_ino if losses.is_file() else None
    with start(out) as process:
        while process.poll() is None:
            # A run that goes on writes its losses anew first.
            if losses.is_file() and losses.stat().st_ino != before and losses.read_bytes().count(b"\n") > rows:
                break
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
    return process.returncode


def contents(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What an unbroken run leaves."""
    out = tmp_path_factory.mktemp("whole")
    with start(out) as process:
        assert process.wait() == 0
    return contents(out)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_like_an_unbroken_one(
    whole: list[bytes], tmp_path: Path, kills: int
) -> None:
    draw = np.random.default_rng(kills)
    for number in range(kills):
        step = math.ceil((number + draw.random()) / kills * (LONG.steps - 1))
        if number % 2:  # in the middle of a save: six things are done to files in each
            with start(tmp_path, step, int(draw.integers(1, 7))) as process:
                process.wait()
            code = process.returncode
        else:
            code = kill_at(tmp_path, step, float(draw.uniform(0, 0.1)))
        assert code == -signal.SIGKILL, f"kill {number} came too late"
    with start(tmp_path) as process:
        assert process.wait() == 0
    assert contents(tmp_path) == whole
    assert len(list((tmp_path / "training").glob("state-*"))) == 2


def broken(number: int, *_: object) -> None:
    if number == 5:
        raise Broken


def test_torn_files_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(training, "SAVES", 4)
    scene = Scene(64, 64, acquired=ACQUIRED, cloud=0.15, gap=0.05)
    cubes, recipe = [(scene.landsat, scene.modis)], replace(RECIPE, patience=9)
    training.train(cubes, tmp_path / "whole", recipe, width=4)
    with pytest.raises(Broken):
        training.train(cubes, tmp_path / "torn", recipe, width=4, progress=broken)
    folder = tmp_path / "torn" / "training"
    (folder / "state-00000006.safetensors").write_bytes(b"whose JSON was not written any more")
    (folder / ".state-00000006.json.partial").write_bytes(b'{"half')
    # Cut where what is left of the number is that of an earlier step.
    with (folder / "losses.csv").open("a") as file:
        file.write("1")
    training.train(cubes, tmp_path / "torn", recipe, width=4)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")
    assert sorted(path.name for path in folder.iterdir()) == [
        "losses.csv", "state-00000012.json", "state-00000012.safetensors",
    ]  # fmt: skip


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    scene = Scene(64, 64, acquired=ACQUIRED, cloud=0.15, gap=0.05)
    cubes, recipe = [(scene.landsat, scene.modis)], replace(RECIPE, steps=2)
    training.train(cubes, tmp_path, recipe, width=4)
    state = checkpoint.resolve(tmp_path / "training")
    state.write_bytes(state.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="SHA-256"):
        training.train(cubes, tmp_path, recipe, width=4)


def test_a_state_of_an_earlier_version_is_refused_and_not_trained_over(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    scene = Scene(64, 64, acquired=ACQUIRED, cloud=0.15, gap=0.05)
    old = {"method": "stfgan-training", "bands": ["red"], "identity": {"seed": 3}, "step": 5, "total": 9}
    checkpoint.save(tmp_path / "training" / "state", {"a": np.zeros(1, np.float32)}, old)
    with pytest.raises(InputError, match="choose another --out"):
        training.train([(scene.landsat, scene.modis)], tmp_path, RECIPE, width=4)
