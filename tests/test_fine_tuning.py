"""Training that starts from weights, is checked on withheld days while it goes on, and adapts weights to a place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stfgan_xr import checkpoint, training
from stfgan_xr.errors import Diverged, InputError
from stfgan_xr.learning import Recipe
from stfgan_xr.predictors.stages import Architecture, Network
from stfgan_xr.predictors.stfgan import load, restore
from stfgan_xr.state import weights_of
from tests.synthetic import Scene
from tests.test_stfgan import random_checkpoint
from tests.test_training import ACQUIRED, RECIPE, Broken, Damped, losses

TINY = replace(RECIPE, steps=2, learning_rate=1e-5, distorted=False)
FOUR = ("green", "red", "nir", "swir1")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(64, 64, acquired=ACQUIRED, cloud=0.15, gap=0.05)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some for red and nir."""
    return random_checkpoint(tmp_path_factory.mktemp("weights"), Architecture(("red", "nir"), 4))


@pytest.fixture(scope="module")
def of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some for any of four bands."""
    path = random_checkpoint(tmp_path_factory.mktemp("weights"), Architecture(FOUR, 4))
    return checkpoint.save(path, checkpoint.load_tensors(path), checkpoint.read_config(path) | {"subsets": True})


def train(scene: Scene, out: Path, recipe: Recipe = TINY, **settings: Any) -> dict[str, Any]:
    return training.train([(scene.landsat, scene.modis)], out, recipe, **settings)


def distance(one: Path, other: Path) -> float:
    a, b = (checkpoint.load_tensors(path) for path in (one, other))
    return max(float(np.abs(a[name] - b[name]).max()) for name in a if "running" not in name)


def test_training_starts_from_weights_and_says_which(scene: Scene, weights: Path, tmp_path: Path) -> None:
    facts = train(scene, tmp_path / "a", weights=weights)
    config = checkpoint.read_config(tmp_path / "a")
    assert config["training"]["from"] == checkpoint.read_config(weights)["sha256"]
    assert (config["width"], config["anchor"], config["bands"]) == (4, "progress", ["red", "nir"])
    assert 0 < distance(weights, tmp_path / "a") < 1e-3  # two small steps away, where fresh weights are far off
    assert {"from", "stfgan", "progress"} <= facts["withheld"]["rmse"].keys()
    assert facts["withheld"]["rmse"]["from"] == pytest.approx(facts["withheld"]["rmse"]["stfgan"], rel=0.3)


def test_a_broken_run_from_weights_resumes_like_an_unbroken_one(scene: Scene, weights: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=5)

    def broken(number: int, *_: Any) -> None:
        if number == 3:
            raise Broken

    train(scene, tmp_path / "whole", recipe, weights=weights)
    with pytest.raises(Broken):
        train(scene, tmp_path / "broken", recipe, weights=weights, progress=broken)
    train(scene, tmp_path / "broken", recipe, weights=weights)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert (tmp_path / "broken/stfgan.safetensors").read_bytes() == (tmp_path / "whole/stfgan.safetensors").read_bytes()
    with pytest.raises(InputError, match="another from"):
        train(scene, tmp_path / "whole", recipe, width=4)


def test_weights_of_more_bands_are_trained_on_those_of_the_cubes(scene: Scene, of_four: Path, tmp_path: Path) -> None:
    train(scene, tmp_path, weights=of_four)
    config = checkpoint.read_config(tmp_path)
    assert config["bands"] == list(FOUR)
    assert config["subsets"] is True
    assert load(tmp_path, ("red", "nir")).bands == ("red", "nir")
    assert restore(tmp_path).architecture.bands == FOUR
    kept = tmp_path / "one"
    train(scene, kept, replace(TINY, distorted=True), weights=of_four, bands=("nir",))
    assert checkpoint.read_config(kept)["bands"] == list(FOUR)


def test_samples_of_fewer_bands_lie_at_their_places(scene: Scene) -> None:
    place = training.corpus([(scene.landsat, scene.modis)])[0]
    triplet, window, halo = (
        training.samples.triplets([place])[0],
        training.gate.Window(0, 64, 0, 64),
        training.Halo(16, 2),
    )
    own = training.samples.read(place, triplet, window, halo)
    among = training.samples.read(place, triplet, window, halo, bands=("nir", "blue", "red"))
    assert own is not None
    assert among is not None
    assert np.array_equal(among.target[[2, 0]], own.target)
    assert np.array_equal(among.coarse[:, [2, 0]], own.coarse)
    assert np.array_equal(among.fine[[2, 0, 5, 3]], own.fine)
    assert not among.clear[1].any()
    assert (among.target[1] == 5000).all()


def test_the_shipped_weights_are_named_shipped(
    scene: Scene, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_FOLDER", tmp_path / "package")
    with pytest.raises(InputError, match="no weights"):
        train(scene, tmp_path / "out", weights="shipped")
    checkpoint.save(tmp_path / "package/stfgan", checkpoint.load_tensors(weights), checkpoint.read_config(weights))
    assert train(scene, tmp_path / "out", weights="shipped")["from"] == checkpoint.read_config(weights)["sha256"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"width": 8}, "was trained with width 4"),
        ({"schedule": "progressive"}, "schedule same-grid"),
        ({"anchor": "none"}, "anchor progress"),
        ({"bands": ("nir",)}, "trained for the bands red, nir"),
        ({"bands": ("red", "blue")}, "trained for the bands red, nir"),
        ({"weights": "absent.safetensors"}, "no such checkpoint"),
    ],
    ids=str,
)
def test_what_the_weights_are_not_is_refused(
    scene: Scene, weights: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        train(scene, tmp_path, **({"weights": weights} | settings))


def test_weights_of_other_bands_than_the_cubes_are_refused(of_four: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not blue, swir2"):
        train(Scene(64, 64, bands=("blue", "swir2"), acquired=ACQUIRED), tmp_path, weights=of_four)


PATIENT = replace(RECIPE, steps=12, patience=3, learning_rate=3e-3)


def test_the_best_checked_weights_are_kept(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVES", 12)
    facts = train(scene, tmp_path / "patient", replace(PATIENT, patience=99), width=4)
    rows = losses(tmp_path / "patient")
    checked = [float(row["rmse_withheld"]) for row in rows]
    assert len(checked) == 12
    assert {row["rmse_withheld_anchor"] for row in rows} == {rows[0]["rmse_withheld_anchor"]}
    assert facts["best"]["step"] == int(np.argmin(checked)) + 1
    assert facts["best"]["rmse"] == pytest.approx(min(checked))
    train(scene, tmp_path / "plain", replace(PATIENT, patience=0), width=4)
    assert losses(tmp_path / "plain") == rows  # checks and patience change nothing in the training itself
    assert (distance(tmp_path / "plain", tmp_path / "patient") == 0) == (facts["best"]["step"] == 12)


def test_training_ends_when_checks_do_not_improve(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVES", 12)

    def checked(name: str, patience: int, *scores: float) -> dict[str, Any]:
        found = iter([0.6, *scores])  # the anchor's first
        monkeypatch.setattr(training, "rmse", lambda *_: next(found))
        return train(scene, tmp_path / name, replace(PATIENT, patience=patience), width=4)

    facts = checked("a", 3, 0.5, 0.4, 0.41, 0.42, 0.3, 0.5, 0.6, 0.7)
    assert facts["steps"] == len(losses(tmp_path / "a")) == 8
    assert facts["best"] == {"rmse": 0.3, "step": 5, "waited": 3}
    assert checked("b", 1, 0.5, 0.4, 0.35, 0.34, 0.2, 0.5)["steps"] == 6
    assert checked("c", 1, 0.5, 0.4, 0.35, 0.34, 0.2, 0.1, 0.3)["steps"] == 7
    assert distance(tmp_path / "a", tmp_path / "b") == 0
    assert distance(tmp_path / "a", tmp_path / "c") > 0


@pytest.mark.parametrize("at", [4, pytest.param(7, marks=pytest.mark.slow)])
def test_a_broken_patient_run_resumes_like_an_unbroken_one(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(training, "SAVES", 6)

    def broken(number: int, *_: Any) -> None:
        if number == at:
            raise Broken

    whole = train(scene, tmp_path / "whole", PATIENT, width=4)
    with pytest.raises(Broken):
        train(scene, tmp_path / "broken", PATIENT, width=4, progress=broken)
    assert train(scene, tmp_path / "broken", PATIENT, width=4) == whole
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for name in ("stfgan.safetensors", "stfgan.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_patience_without_anything_withheld_is_refused(tmp_path: Path) -> None:
    few = Scene(64, 64, acquired=(3, 12, 20), cloud=0.1)
    with pytest.raises(InputError, match="patience needs withheld"):
        train(few, tmp_path, PATIENT, width=4)
    assert json.loads(json.dumps(train(few, tmp_path, TINY, width=4)))["withheld"]["blocks"] == 0
    with pytest.raises(InputError, match="out of range"):
        Recipe(patience=-1)


QUICK = replace(RECIPE, steps=60, learning_rate=3e-3, distorted=False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adaptations of few, large steps."""
    monkeypatch.setattr(training, "adaptation", lambda *_: QUICK)


def untrained(folder: Path) -> Path:
    """Weights that give their anchor."""
    torch.manual_seed(0)
    network = Network(Architecture(("red", "nir"), 4))
    return checkpoint.save(folder / "untrained", weights_of(network), network.architecture.to_config())


def adapt(scene: Scene, weights: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return training.adapt([(scene.landsat, scene.modis)], weights, out, 0.01, **settings)


def test_adapted_weights_that_are_better_are_used_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "adaptation", lambda *_: replace(QUICK, steps=120, learning_rate=1e-2))
    damped = Damped(64, 64, acquired=ACQUIRED, cloud=0.1, gap=0)
    weights = untrained(tmp_path)
    found = adapt(damped, weights, tmp_path / "adapted")
    assert found["used"]
    errors = found["withheld"]["rmse"]
    assert errors["stfgan"] < min(errors["from"], errors["progress"])
    assert errors.keys() == {"stfgan", "from", "progress", "delta", "linear", "persistence"}
    assert found["weights"] == found["adapted"] == checkpoint.read_config(tmp_path / "adapted")["sha256"]
    assert found["from"] == checkpoint.read_config(weights)["sha256"]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "adapted").rglob("*")}
    assert adapt(damped, weights, tmp_path / "adapted") == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "adapted").rglob("*")} == files


def test_adapted_weights_that_are_not_better_are_not_used(scene: Scene, weights: Path, tmp_path: Path) -> None:
    found = adapt(scene, weights, tmp_path / "adapted")  # random weights: a few gentle steps cannot mend them
    errors = found["withheld"]["rmse"]
    assert not found["used"]
    assert errors["stfgan"] >= min(errors["from"], errors["progress"])
    assert found["weights"] == found["from"] == checkpoint.read_config(weights)["sha256"] != found["adapted"]
    assert "not smaller than that of" in found["why"]
    with pytest.raises(InputError, match="another minutes"):
        training.adapt([(scene.landsat, scene.modis)], weights, tmp_path / "adapted", 7.0)


@pytest.mark.usefixtures("quick")
def test_withheld_acquisitions_do_not_change_adapted_weights(
    scene: Scene, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "adaptation", lambda *_: replace(QUICK, steps=4))
    other = Scene(64, 64, acquired=ACQUIRED, cloud=0.15, gap=0.05)
    place = training.corpus([(scene.landsat, scene.modis)])[0]
    withheld = [place.landsat.days.index(day) for day in place.withheld]
    other.landsat.red.values[withheld] = 4321
    one, two = adapt(scene, weights, tmp_path / "a"), adapt(other, weights, tmp_path / "b")
    assert one["adapted"] == two["adapted"]
    assert one["withheld"] != two["withheld"]


@pytest.mark.usefixtures("quick")
def test_a_broken_adaptation_is_gone_on_with(
    scene: Scene, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "adaptation", lambda *_: replace(QUICK, steps=6))
    seen: list[int] = []

    def broken(number: int, *_: Any) -> None:
        if number == 4:
            raise Broken

    whole = adapt(scene, weights, tmp_path / "whole")
    with pytest.raises(Broken):
        adapt(scene, weights, tmp_path / "broken", progress=broken)
    assert adapt(scene, weights, tmp_path / "broken", progress=lambda number, *_: seen.append(number)) == whole
    assert seen[0] > 1


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"acquired": (3, 20)}, "clear enough to be withheld"),
        ({"acquired": (3, 12, 20)}, "clear enough to be withheld"),
        ({"acquired": ACQUIRED, "cloud": 1.0}, "clear enough to be withheld"),
        ({"acquired": ACQUIRED, "height": 8, "width": 8, "ratio": 8}, "narrower than a patch"),
    ],
    ids=str,
)
def test_without_enough_to_adapt_to_the_weights_stay(
    weights: Path, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    found = adapt(Scene(**({"height": 64, "width": 64} | settings)), weights, tmp_path / "adapted")
    assert not found["used"]
    assert why in found["why"]
    assert found["weights"] == checkpoint.read_config(weights)["sha256"]


@pytest.mark.usefixtures("quick")
def test_an_adaptation_that_diverges_leaves_the_weights(
    scene: Scene, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any) -> dict[str, float]:
        raise Diverged("training diverged in step 0; lower the learning rate")

    monkeypatch.setattr(training, "train_step", diverge)
    found = adapt(scene, weights, tmp_path)
    assert not found["used"]
    assert "diverged" in found["why"]
