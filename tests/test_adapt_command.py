"""``pipelines.fuse --adapt``: the weights that a run ends up with, what it says of them, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import cubes, fuse, verify
from stfgan_xr import checkpoint, errors, gate, open_cube, store, training
from stfgan_xr.files import LocalFolder
from stfgan_xr.fusion import fuse as fuse_cubes
from stfgan_xr.predictors import objective
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.stages import Architecture, Network
from stfgan_xr.state import weights_of
from tests.test_commands import run as run  # the fixture
from tests.test_training import RECIPE

BANDS = ("red", "nir")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that give their anchor."""
    torch.manual_seed(0)
    network = Network(Architecture(BANDS, 2))
    folder = tmp_path_factory.mktemp("weights")
    return checkpoint.save(folder / "untrained", weights_of(network), network.architecture.to_config())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adaptations of a few steps, of which the comparison says what a test wants."""
    recipe = replace(RECIPE, steps=4, samples=2, batch=1, distorted=False)
    monkeypatch.setattr(training, "adaptation", lambda cubes, minutes, *_: replace(recipe, seed=int(minutes)))
    monkeypatch.setattr(fuse, "compute_here", lambda _: None)
    monkeypatch.setattr(objective, "RUNGS", (16,))


def scores(own: float) -> Callable[..., dict[str, Any]]:
    rmse = {"stfgan": own, "progress": 0.02, "delta": 0.03, "linear": 0.04, "from": 0.021}
    return lambda *_, **__: {"blocks": 3, "pixels": 9, "rmse": rmse, "skill": 0.1}


def asked(demo_world: Path, weights: Path, out: Path, *more: str) -> list[str]:
    return [
        "--catalog", str(demo_world / "catalog.toml"), "--dates", "2020-03-01/2020-03-02", "--bands", "red,nir",
        "--model", str(weights), "--out", str(out), "--no-report", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("better", [True, False])
def test_the_cube_is_made_by_the_weights_that_the_withheld_days_choose(
    demo_world: Path, weights: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    monkeypatch.setattr(gate, "compare", scores(0.01 if better else 0.0205))
    out = tmp_path / "run"
    code, text, _ = run(*asked(demo_world, weights, out, "--adapt"))
    text = " ".join(text.split())
    assert code == 0
    assert f"adapted weights are {'' if better else 'not '}used" in text
    assert f"adapted {0.01 if better else 0.0205:.4f}, progress 0.0200" in text
    document = json.loads((out / "run.json").read_text())
    found = document["adaptation"]
    own = checkpoint.read_config(weights)["sha256"]
    adapted = checkpoint.read_config(out / "adapted")["sha256"]
    assert (found["from"], found["adapted"], found["used"]) == (own, adapted, better)
    assert found["withheld"]["rmse"]["delta"] == 0.03
    assert found["recipe"]["steps"] == 4
    assert document["request"]["adapt"] == 5
    assert document["request"]["model"] == own
    assert found["weights"] == (adapted if better else own)
    assert (adapted in (out / "fused.zarr/zarr.json").read_text()) == better
    chosen = make("stfgan", BANDS, out / "adapted/stfgan.safetensors" if better else weights)
    landsat, modis = (open_cube(out / f"{name}.zarr") for name in ("landsat", "modis"))
    days = fuse.calendar.parse_dates("2020-03-01/2020-03-02")
    expected = fuse_cubes(landsat, modis, chosen, days).compute()
    np.testing.assert_allclose(open_cube(out / "fused.zarr").nir.values, expected.nir.values, atol=1.01e-4)
    code, text, _ = run(*asked(demo_world, weights, out, "--adapt"))
    assert code == 0
    assert "nothing to do" in text
    code, _, err = run(*asked(demo_world, weights, out))
    assert code == 2
    assert "adapt was 5.0, now null" in err


def test_a_finished_adaptation_serves_a_run_that_was_broken_off_later(
    demo_world: Path, weights: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "compare", scores(0.01))
    out = tmp_path / "run"
    command = asked(demo_world, weights, out, "--adapt", "--adapt-minutes", "3")
    assert run(*command)[0] == 0
    before, content = json.loads((out / "run.json").read_text()), store.content_digest(out / "fused.zarr")
    kept = (out / "adapted" / "stfgan.safetensors").stat().st_mtime_ns
    store.remove(out / "fused.zarr")
    (out / "run.json").write_text(json.dumps(before | {"status": "writing"}))
    assert run(*command)[0] == 0
    after = json.loads((out / "run.json").read_text())
    assert [night["landsat.zarr"]["blocks"] for night in after.pop("nights")] == [10, 0]
    assert after == {name: value for name, value in before.items() if name != "nights"}
    assert store.content_digest(out / "fused.zarr") == content
    assert (out / "adapted" / "stfgan.safetensors").stat().st_mtime_ns == kept
    assert run(*command, "--overwrite", "--plan")[0] == 0
    assert (out / "adapted").exists()  # a plan deletes nothing
    cubes.check_folder(LocalFolder(out), {}, overwrite=True)
    assert not (out / "adapted").exists()


def test_without_withheld_acquisitions_the_run_goes_on_and_says_so(
    demo_world: Path, weights: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "run"
    code, text, _ = run(*asked(demo_world, weights, out, "--adapt", "--bracket-days", "4"))
    assert code == 0
    assert "adapted weights are not used: no acquisition is clear enough" in " ".join(text.split())
    found = json.loads((out / "run.json").read_text())["adaptation"]
    assert (found["used"], found["weights"]) == (False, checkpoint.read_config(weights)["sha256"])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--adapt-minutes", "3"], "--adapt-minutes goes with --adapt"),
        (["--adapt", "--adapt-minutes", "0"], "must be positive"),
        (["--adapt", "--adapt-minutes", "nan"], "must be positive"),
        (["--adapt", "--out", "s3://bucket/run"], "needs a local run folder"),
    ],
)
def test_adapt_used_wrongly_is_one_line(
    demo_world: Path, weights: Path, tmp_path: Path, run: Run, given: list[str], named: str
) -> None:
    code, _, err = run(*asked(demo_world, weights, tmp_path / "run", *given))
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert named in err
    assert not (tmp_path / "run").exists()


def test_a_method_without_weights_cannot_be_adapted(demo_world: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["--catalog", str(demo_world / "catalog.toml"), "--dates", "2020-03-01", "--out", str(tmp_path / "run")]
    code, _, err = run(*arguments, "--method", "delta", "--adapt")
    assert code == 2
    assert "--adapt goes with stfgan, not with delta" in err


@pytest.mark.parametrize("better", [True, False])
def test_a_guarded_run_uses_progress_where_the_weights_are_not_better(
    demo_world: Path, weights: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    monkeypatch.setattr(gate, "compare", scores(0.01 if better else 0.02))
    out = tmp_path / "run"
    code, text, _ = run(*asked(demo_world, weights, out, "--guard"))
    assert code == 0
    assert f"{'the weights are' if better else 'progress is'} used" in " ".join(text.split())
    document = json.loads((out / "run.json").read_text())
    assert document["guard"]["used"] == ("stfgan" if better else "progress")
    assert document["guard"]["withheld"]["rmse"]["delta"] == 0.03
    landsat, modis = (open_cube(out / f"{name}.zarr") for name in ("landsat", "modis"))
    chosen = make("stfgan", BANDS, weights) if better else make("progress", BANDS)
    days = fuse.calendar.parse_dates("2020-03-01/2020-03-02")
    expected = fuse_cubes(landsat, modis, chosen, days).compute()
    np.testing.assert_allclose(open_cube(out / "fused.zarr").nir.values, expected.nir.values, atol=1.01e-4)
    code, _, err = run(*asked(demo_world, weights, out))
    assert code == 2
    assert "guard was true, now false" in err


def test_a_guard_needs_weights(tmp_path: Path, run: Run, demo_world: Path, weights: Path) -> None:
    given = [*asked(demo_world, weights, tmp_path / "run", "--guard", "--method", "delta")]
    given.remove("--model")
    given.remove(str(weights))
    code, _, err = run(*given)
    assert code == 2
    assert "--guard goes with stfgan" in err


@pytest.mark.parametrize("option", ["--adapt", "--guard", "--uncertainty"])
def test_a_run_with_weights_is_repaired_to_the_byte_where_it_was_moved(
    demo_world: Path, weights: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(gate, "compare", scores(0.01 if option == "--adapt" else 0.5))
    given = asked(demo_world, weights, tmp_path / "made", option)
    if option == "--uncertainty":  # only the shipped weights know theirs
        del given[given.index("--model") : given.index("--model") + 2]
    assert run(*given)[0] == 0
    out = (tmp_path / "made").rename(tmp_path / "moved")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name in fuse.CUBES:
        shard = next(path for path in sorted((out / name / "nir/c").rglob("*")) if path.is_file())
        shard.write_bytes(before[shard][:-1])
    code, said, _ = run(str(out), command=verify.command)
    assert (code, said.count("/nir/c/")) == (6, 3)
    code, _, err = run(str(out), "--repair", command=verify.command)
    assert code == 0, err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("gone", [True, False])
def test_a_run_whose_adapted_weights_are_gone_or_others_is_not_repaired_by_others(
    demo_world: Path, weights: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    monkeypatch.setattr(gate, "compare", scores(0.01))
    out = tmp_path / "run"
    assert run(*asked(demo_world, weights, out, "--adapt"))[0] == 0
    shard = next(path for path in sorted((out / "fused.zarr/nir/c").rglob("*")) if path.is_file())
    shard.unlink()
    for suffix in (".json", ".safetensors"):
        (out / "adapted" / f"stfgan{suffix}").unlink()
        if not gone:
            shutil.copy(weights.with_suffix(suffix), out / "adapted" / f"stfgan{suffix}")
    code, _, err = run(str(out), "--repair", command=verify.command)
    assert code in (2, 6)
    assert err.strip().splitlines()[-1].startswith("error: "), err
    assert not shard.exists()
    with pytest.raises(errors.IncompleteError):
        open_cube(out / "fused.zarr")
