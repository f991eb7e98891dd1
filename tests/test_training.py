"""Training: the loss falls, the seed decides everything, and a broken run resumes as if it had not been."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stfgan_xr import checkpoint, gate, samples, training
from stfgan_xr.brackets import series
from stfgan_xr.days import from_number
from stfgan_xr.errors import InputError, NothingToDo
from stfgan_xr.grid import Halo, Window
from stfgan_xr.learning import Gan, Recipe
from stfgan_xr.predictors.objective import TrainedSTFGAN
from stfgan_xr.predictors.progress import Progress
from stfgan_xr.predictors.simple import Delta
from stfgan_xr.predictors.stages import AnchorName, Architecture, Schedule
from stfgan_xr.predictors.stfgan import STFGAN, restore
from tests.synthetic import Scene, day
from tests.test_stfgan import Place, random_checkpoint

RECIPE = Recipe(
    gan="none",
    optimiser="adam",
    steps=12,
    batch=2,
    patch=32,
    margin=16,
    samples=4,
    region=64,
    learning_rate=1e-3,
    span=(2, 40),
    seed=3,
)
ACQUIRED = (2, 7, 11, 15, 19, 24, 28, 33, 37)


class Damped(Scene):
    """Fast changes of which the coarse sensor sees half: delta is wrong in a way that can be learned."""

    def truth(self, number: int) -> Any:
        return self.base + np.float32(0.08 * np.sin(number * 1.3))

    def _modis(self) -> Any:
        modis = super()._modis()
        return modis.assign(
            {
                b: modis[b]
                .where(modis[b] < 0, modis[b].mean("time") + (modis[b] - modis[b].mean("time")) / 2)
                .astype("int16")
                for b in self.bands
            }
        )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(64, 64, acquired=ACQUIRED, cloud=0.15, gap=0.05)


def train(scene: Scene, out: Path, recipe: Recipe = RECIPE, **settings: Any) -> dict[str, Any]:
    return training.train([(scene.landsat, scene.modis)], out, recipe, **({"width": 4} | settings))


def losses(out: Path) -> list[dict[str, str]]:
    with (out / "training" / "losses.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_part_of_what_is_corrected_from_day_to_day_counts(scene: Scene, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=2, gan="none")
    for name, trust in (("all", 1.0), ("half", 0.5)):
        training.train([(scene.landsat, scene.modis)], tmp_path / name, replace(recipe, trust=trust), width=4)
    whole, half = (checkpoint.load_tensors(tmp_path / name / "stfgan.safetensors") for name in ("all", "half"))
    for name, value in whole.items():
        np.testing.assert_array_equal(half[name], value / 2 if ".fusion." in name else value)
    assert any(value.any() for name, value in whole.items() if ".fusion." in name)
    with pytest.raises(InputError, match="stfgan corrects no anchor"):
        training.train(
            [(scene.landsat, scene.modis)], tmp_path / "none", replace(recipe, trust=0.5), width=4, anchor="none"
        )
    with pytest.raises(InputError, match="between 0 and 1"):
        replace(recipe, trust=0.0)


def test_training_lowers_the_loss_below_the_anchor(tmp_path: Path) -> None:
    damped = Damped(64, 64, acquired=ACQUIRED, cloud=0.1, gap=0)
    facts = train(damped, tmp_path, replace(RECIPE, steps=60, learning_rate=3e-3))
    rows = losses(tmp_path)
    first, last = (
        np.mean([float(r["mse_stage2"]) / float(r["mse_anchor"]) for r in part]) for part in (rows[:5], rows[-10:])
    )
    assert last < first
    assert last < 0.9
    assert [int(row["step"]) for row in rows] == list(range(60))
    assert facts["withheld"]["rmse"].keys() == {"stfgan", "progress", "delta", "linear", "persistence"}
    config = checkpoint.read_config(tmp_path)
    assert config["training"] == facts
    assert STFGAN.open(tmp_path).halo == Halo(config["halo"]["fine"], config["halo"]["coarse"], 4)


@pytest.mark.parametrize("schedule", ["same-grid", pytest.param("progressive", marks=pytest.mark.slow)])
@pytest.mark.parametrize("gan", ["lsgan", pytest.param("wgan-clip", marks=pytest.mark.slow)])
def test_the_seed_decides_the_weights(scene: Scene, tmp_path: Path, gan: Gan, schedule: Schedule) -> None:
    recipe = replace(RECIPE, gan=gan, steps=3, warm_up=0.3)
    for out in ("a", "b"):
        train(scene, tmp_path / out, recipe, schedule=schedule)
    train(scene, tmp_path / "c", replace(recipe, seed=4), schedule=schedule)
    a, b, c = (checkpoint.load_tensors(tmp_path / out) for out in "abc")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not all(np.array_equal(a[name], c[name]) for name in a)


class Broken(Exception):
    pass


@pytest.mark.parametrize(("gan", "anchor", "at"), [("wgan-clip", "delta", 5), ("lsgan", "none", 9)])
def test_a_broken_run_resumes_like_an_unbroken_one(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gan: Gan, anchor: AnchorName, at: int
) -> None:
    monkeypatch.setattr(training, "SAVES", 4)
    recipe = replace(RECIPE, gan=gan, warm_up=0.2)

    def broken(number: int, total: int, _: Mapping[str, float]) -> None:
        if number == at:
            raise Broken

    train(scene, tmp_path / "whole", recipe, anchor=anchor)
    with pytest.raises(Broken):
        train(scene, tmp_path / "broken", recipe, anchor=anchor, progress=broken)
    assert not (tmp_path / "broken" / "stfgan.safetensors").exists()
    train(scene, tmp_path / "broken", recipe, anchor=anchor)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert (tmp_path / "broken/stfgan.safetensors").read_bytes() == (tmp_path / "whole/stfgan.safetensors").read_bytes()


def test_another_recipe_does_not_resume(scene: Scene, tmp_path: Path) -> None:
    train(scene, tmp_path, replace(RECIPE, steps=2))
    with pytest.raises(InputError, match="another seed"):
        train(scene, tmp_path, replace(RECIPE, steps=2, seed=9))


def test_minutes_become_steps(scene: Scene, tmp_path: Path) -> None:
    facts = train(scene, tmp_path, replace(RECIPE, minutes=0.01))
    assert facts["steps"] == len(losses(tmp_path)) >= 10


def test_half_precision_halves_the_file(scene: Scene, tmp_path: Path) -> None:
    train(scene, tmp_path, replace(RECIPE, steps=1), half=True)
    weights = sum(value.nbytes for value in checkpoint.load_tensors(tmp_path).values())
    size = (tmp_path / "stfgan.safetensors").stat().st_size
    assert size < weights / 2 + 100_000  # names and shapes are the rest
    assert STFGAN.open(tmp_path).bands == ("red", "nir")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"patch": 40}, "multiples of 16"), ({"margin": 6}, "multiples of"), ({"patch": 128}, "do not fit")],
)
def test_sizes_that_do_not_fit_are_refused(scene: Scene, tmp_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(scene, tmp_path, replace(RECIPE, **change))  # type: ignore[arg-type]


def test_cubes_of_two_kinds_are_refused(scene: Scene, tmp_path: Path) -> None:
    other = Scene(64, 64, ratio=8)
    with pytest.raises(InputError, match="differ"):
        training.train([(s.landsat, s.modis) for s in (scene, other)], tmp_path, RECIPE)


def test_two_acquisitions_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(NothingToDo, match="three acquisitions"):
        train(Scene(64, 64, acquired=(3, 20)), tmp_path)


def test_a_sample_never_sees_its_target_nor_what_lies_inside_its_bracket(scene: Scene) -> None:
    place = training.corpus([(scene.landsat, scene.modis)])[0]
    assert place.withheld
    assert not place.withheld & set(place.days)
    found = samples.triplets([place])
    assert found
    zero = day(0).toordinal() - day(0).replace(year=1970, month=1, day=1).toordinal()
    for triplet in found:
        sample = samples.read(place, triplet, Window(0, 64, 0, 64), Halo(16, 2))
        if sample is None:
            continue
        assert not {triplet.before, triplet.target, triplet.after} & place.withheld
        seen = set(np.unique(sample.days[:, 16:-16, 16:-16][:, sample.clear[0]] + triplet.target).tolist())
        assert not any(triplet.before < number < triplet.after for number in seen)
        assert seen <= {zero + number for number in ACQUIRED}


def test_patches_are_parts_of_their_samples(scene: Scene) -> None:
    place = training.corpus([(scene.landsat, scene.modis)])[0]
    halo = Halo(16, 2)
    sample = next(samples.collect([place], 1, 64, halo, 0))
    patch = samples._cut(sample, Window(16, 48, 32, 64), 16)
    assert patch.fine.shape == (4, 64, 64)
    assert patch.coarse.shape == (4, 2, 6, 6)
    assert patch.lead.shape == (1, 24, 24)
    assert np.array_equal(patch.target, sample.target[:, 16:48, 32:64])
    assert np.array_equal(patch.fine[:, 16:-16, 16:-16], sample.fine[:, 32:64, 48:80])
    assert np.array_equal(patch.coarse[..., 2:-2, 2:-2], sample.coarse[..., 3:5, 4:6])


@pytest.mark.parametrize(("name", "method"), [("delta", Delta), ("progress", Progress)])
def test_the_anchor_of_a_batch_is_the_predictor(scene: Scene, name: AnchorName, method: type[Delta]) -> None:
    place = training.corpus([(scene.landsat, scene.modis)])[0]
    halo, window = Halo(16, 2), Window(0, 64, 0, 64)
    triplet = samples.triplets([place])[0]
    sample = samples.read(place, triplet, window, halo)
    assert sample is not None
    batch = training.to_batch([sample], halo, 16, Still(), "cpu")  # type: ignore[arg-type]
    trained = TrainedSTFGAN(Architecture(place.landsat.bands, anchor=name))
    predictor = method(place.landsat.bands)
    interval = samples.interval_of(place, triplet, window, predictor.halo)
    expected = predictor.predict(predictor.prepare(interval.bracket), interval.coarse).mean
    # Samples hold whole counts.
    assert np.abs(trained.anchor(batch).numpy() - expected).max() < 3e-4
    observed = series(scene.landsat).select([triplet.target]).read([0], window)[0]
    assert np.abs(batch.target.numpy()[0] - observed)[sample.clear].max() < 1e-6


class Still:
    """Draws that turn nothing."""

    def integers(self, low: int, high: int, count: int) -> Any:
        return np.zeros(count, int)


def test_of_a_simulated_world_targets_are_its_truth_on_any_day(scene: Scene) -> None:
    def truth(on: date, bands: Sequence[str], window: Window) -> Any:
        return scene.truth((on - day(0)).days)[:, *window.slices]

    place = training.corpus([(scene.landsat, scene.modis)], None, [truth])[0]
    found = samples.triplets([place], (2, 12))
    assert {triplet.target for triplet in found} - set(place.landsat.days)
    assert not {triplet.target for triplet in found} & place.withheld
    assert all(triplet.before < triplet.target < triplet.after for triplet in found)
    triplet, window = found[0], Window(16, 48, 0, 64)
    sample = samples.read(place, triplet, window, Halo(16, 2))
    assert sample is not None
    assert np.abs(sample.target * 1e-4 - truth(from_number(triplet.target), place.landsat.bands, window)).max() <= 1e-4


def test_a_distorted_sample_is_what_it_says(scene: Scene) -> None:
    place = training.corpus([(scene.landsat, scene.modis)])[0]
    triplet, window, halo = samples.triplets([place])[0], Window(0, 64, 0, 64), Halo(16, 2)
    plain = samples.read(place, triplet, window, halo)
    changed = samples.Distortion((1,), gain=np.float32([1.1]), offset=np.float32([0.01]), contrast=0.5)
    sample = samples.read(place, triplet, window, halo, changed)
    assert plain is not None
    assert sample is not None
    assert not sample.clear[0].any()
    assert np.array_equal(sample.clear[1], plain.clear[1])
    assert (sample.target[0] == 5000).all()
    assert (sample.fine[[0, 2]] == 5000).all()
    assert np.abs(sample.target[1] - plain.target[1] / 2).max() <= 1
    assert np.abs(sample.coarse[:, 1] - (plain.coarse[:, 1] * 0.55 + 0.01)).max() < 1e-6
    shifted = samples.read(place, triplet, window, halo, samples.Distortion((0, 1), shift=(0.0, 0.5)))
    assert shifted is not None
    inner = plain.coarse[..., 1:-1]
    middle = (inner + plain.coarse[..., :-2]) / 2
    assert np.abs(shifted.coarse[:3, ..., 2:-2] - middle[:3, ..., 1:-1]).max() < 1e-6


@pytest.mark.parametrize("scale", [0.3, 4.0, None])
def test_restless_ground_wanders_with_time_and_the_coarse_images_with_it(scene: Scene, scale: float | None) -> None:
    place = training.corpus([(scene.landsat, scene.modis)])[0]
    triplet, window, halo = samples.triplets([place])[0], Window(0, 64, 0, 64), Halo(16, 2)
    plain = samples.read(place, triplet, window, halo)
    colour = np.array([1, 0.5], np.float32)
    ratios = []
    for seed in range(12):
        unrest = samples.Unrest(0.1, scale, colour)
        sample = samples.read(place, triplet, window, halo, samples.Distortion((0, 1), unrest=unrest, seed=seed))
        assert plain is not None
        assert sample is not None
        assert np.array_equal(sample.target, plain.target)
        assert np.array_equal(sample.coarse[[1, 3]], plain.coarse[[1, 3]])
        wandered = sample.fine / np.maximum(plain.fine, 1) - 1
        assert np.abs(wandered[1] - wandered[0] / 2).max() < 2e-3  # whole counts
        coarse = sample.coarse[[0, 2]] / plain.coarse[[0, 2]] - 1
        for number in range(2):
            expected = wandered[2 * number].reshape(6, 16, 6, 16).mean((1, 3))
            assert np.abs(coarse[number, 0, 1:-1, 1:-1] - expected).max() < 2e-3
        ratios.append(wandered[[0, 2]].std((1, 2)))
    share = (triplet.target - triplet.before) / (triplet.after - triplet.before)
    found = np.sqrt(np.mean(np.square(ratios), axis=0)) / np.sqrt([share, 1 - share])
    assert ((found > 0.05) & (found < 0.15)).all()


def test_haze_lies_on_the_coarse_images_alone_and_on_each_day_anew(scene: Scene) -> None:
    place = training.corpus([(scene.landsat, scene.modis)])[0]
    triplet, window, halo = samples.triplets([place])[0], Window(0, 64, 0, 64), Halo(16, 2)
    plain = samples.read(place, triplet, window, halo)
    hazy = samples.read(place, triplet, window, halo, samples.Distortion((0, 1), haze=0.01))
    assert plain is not None
    assert hazy is not None
    assert np.array_equal(hazy.fine, plain.fine)
    off = hazy.coarse[:3] - plain.coarse[:3]
    assert ((off.std((1, 2, 3)) > 0.004) & (off.std((1, 2, 3)) < 0.02)).all()
    assert abs(np.corrcoef(off.reshape(3, -1))[np.triu_indices(3, 1)]).max() < 0.6
    assert np.abs(hazy.coarse[3] - plain.coarse[3]).std() < off[1].std()  # the level is a mean over days


def test_the_measured_halo_is_enough_and_no_larger_than_needed(scene: Scene, tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, Architecture(("red", "nir"), 4))
    network = restore(path)
    with torch.no_grad():  # hardly any reach beyond the heads: a small halo must be found
        for generator in (network.first, network.second):
            for branch in (generator.coarse, generator.fine):
                for part in branch.modules():
                    if isinstance(part, torch.nn.BatchNorm2d):
                        part.weight.zero_()
    places = training.corpus([(scene.landsat, scene.modis)])
    halo = gate.measure_halo(TrainedSTFGAN(network.architecture), network, places)
    assert halo.fine < network.architecture.exact_halo(16).fine
    tensors = {name: value.numpy() for name, value in network.state_dict().items() if value.is_floating_point()}
    config = network.architecture.to_config() | {"halo": {"fine": halo.fine, "coarse": halo.coarse}}
    predictor = STFGAN.open(checkpoint.save(tmp_path / "small", tensors, config))
    place = Place((6, 6), 16)
    assert np.abs(place.tiled(predictor, 32) - place.predict(predictor, place.whole)).max() <= 1e-5
