"""The methods with trained weights: against their literal versions, over tiles with masks, and trained by the one loop."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.linear_model import orthogonal_mp
from torch import nn

from pipelines import train as train_command
from pipelines import verify
from stfgan_xr import checkpoint, fusion, open_cube, training
from stfgan_xr.brackets import series
from stfgan_xr.errors import InputError
from stfgan_xr.fusion import Options, fuse_block
from stfgan_xr.grid import Halo, Window
from stfgan_xr.predictors import Predictor, learned, memory_of, with_spread
from stfgan_xr.predictors.ganstfm import GANSTFM, STRUCTURE, cosine_loss, ms_ssim
from stfgan_xr.predictors.learned import Fusion, Learned
from stfgan_xr.predictors.methods import TRAINED, make, trainable
from stfgan_xr.predictors.pairs import Batch
from stfgan_xr.predictors.spstfm import AREA, SPSTFM, matching_pursuit, rebuilt
from stfgan_xr.predictors.stfdcnn import STFDCNN
from stfgan_xr.predictors.stfnet import StfNet
from tests import literal_networks
from tests.literal import Case
from tests.random_weights import BANDS, KINDS, random_weights
from tests.synthetic import Scene, chunkings, day
from tests.test_commands import run as run  # the fixture
from tests.test_networks import parameters
from tests.test_stfgan import Place
from tests.test_training import ACQUIRED, RECIPE, Broken, Damped
from tests.test_windowed import made, predicted

NAMES = tuple(KINDS)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def opened(folder: Path, name: str, ratio: int = 16) -> Learned:
    found = make(name, BANDS, random_weights(folder, name, ratio))
    assert isinstance(found, Learned)
    return found


def test_sizes_are_those_of_the_papers() -> None:
    assert parameters(STFDCNN(6, STFDCNN.usual).mapping) == parameters(STFDCNN(6, STFDCNN.usual).resolving) == 87_206
    assert parameters(StfNet(6, StfNet.usual)) == 92_716
    assert SPSTFM(6, SPSTFM.usual).atoms.shape == (6, 256, 2 * 7 * 7)
    assert [block.conv1.out_channels for block in GANSTFM(6, GANSTFM.usual).fine] == [16, 32, 64, 128]


@pytest.mark.parametrize("ratio", [8, 16])
@pytest.mark.parametrize("name", NAMES)
def test_each_is_what_its_description_says(tmp_path: Path, name: str, ratio: int) -> None:
    method = opened(tmp_path, name, ratio)
    bracket, coarse = made(ratio, method.halo, ratio, (2, 3), 0)
    case, network = Case(bracket, coarse), method._loaded()
    if name == "spstfm":
        atoms = network.atoms.numpy().astype(float)
        expected = literal_networks.spstfm(case, atoms, lambda d, s: orthogonal_mp(d.T, s, n_nonzero_coefs=3))
    else:
        expected = getattr(literal_networks, name)(case, network)
    found = predicted(method, bracket, coarse)
    assert np.abs(found - expected).max() <= 1e-5
    for image in (bracket.fine_before, bracket.fine_after):  # it does something
        margin = bracket.halo.fine
        assert np.abs(found - literal_networks.cut(image, margin)).mean() > 1e-3


def test_codes_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    atoms, signals = rng.normal(size=(2, 40, 20)), rng.normal(size=(2, 30, 20))
    atoms /= np.linalg.norm(atoms, axis=2, keepdims=True)
    chosen, weights = matching_pursuit(torch.from_numpy(atoms), torch.from_numpy(signals), 3)
    found = torch.zeros(2, 30, 40, dtype=torch.float64).scatter(2, chosen, weights).numpy()
    for number in range(2):
        expected = orthogonal_mp(atoms[number].T, signals[number].T, n_nonzero_coefs=3)
        np.testing.assert_allclose(found[number], expected.T, atol=1e-5)
    again = rebuilt(torch.from_numpy(atoms), chosen, weights).numpy()
    np.testing.assert_allclose(again, found @ atoms, atol=1e-9)


def test_a_signal_that_is_nothing_has_a_code_that_is_nothing() -> None:
    atoms = torch.ones(1, 4, 6, dtype=torch.float64)  # all the same: nothing to choose, nothing to solve
    _, weights = matching_pursuit(atoms, torch.zeros(1, 2, 6, dtype=torch.float64), 3)
    assert (weights == 0).all()
    chosen, weights = matching_pursuit(atoms, torch.ones(1, 2, 6, dtype=torch.float64), 3)
    np.testing.assert_allclose(rebuilt(atoms, chosen, weights).numpy(), 1, atol=1e-6)


@pytest.mark.parametrize(("size", "scales"), [(16, 1), (32, 2), (64, 3)])
def test_structure_is_the_multi_scale_similarity(size: int, scales: int) -> None:
    rng = np.random.default_rng(size)
    one = rng.uniform(0.1, 0.5, (2, 3, size, size)).astype(np.float32)
    other = (one + rng.normal(0, 0.05, one.shape)).astype(np.float32)
    found = float(ms_ssim(torch.from_numpy(one), torch.from_numpy(other)))
    weights = np.array(STRUCTURE[:scales]) / sum(STRUCTURE[:scales])
    pairs = [
        (a.astype(float), b.astype(float))
        for a, b in zip(one.reshape(-1, size, size), other.reshape(-1, size, size), strict=True)
    ]
    assert found == pytest.approx(np.mean([literal_networks.ms_ssim(a, b, weights) for a, b in pairs]), abs=1e-5)
    if scales == 1:
        settings: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        judged = [structural_similarity(a, b, data_range=1, **settings) for a, b in pairs]
        assert found == pytest.approx(np.mean(judged), abs=1e-5)


def batch_of(name: str, scene: Scene, tmp_path: Path) -> tuple[Fusion, Batch]:
    """The networks of some weights, and a batch as they are trained on."""
    path = random_weights(tmp_path, name)
    recipe = replace(RECIPE, batch=3)
    plan = training._plan([(scene.landsat, scene.modis)], tmp_path / "out", recipe, path, method=name)
    network = plan.method.restore(path)
    assert isinstance(network, Fusion)
    return network, training._draw(plan, plan.pool(), training.Step(0, 10, recipe))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(64, 64, acquired=ACQUIRED, cloud=0.15, gap=0.05)


def squared(error: Any, clear: Any) -> float:
    return float(np.mean(np.asarray(error)[np.asarray(clear)] ** 2) * 4)


def test_losses_of_stfnet_are_errors_of_both_changes_and_their_sum(scene: Scene, tmp_path: Path) -> None:
    network, batch = batch_of("stfnet", scene, tmp_path)
    found = {term.name: float(term.loss) for term in network.terms(batch, 0)}
    since, until = network.changes(network.start(batch.pair), batch.targets)
    before, after = batch.pair.cut(0).chunk(2, dim=1)
    assert found["mse_before"] == pytest.approx(squared(since - batch.target + before, batch.clear), rel=1e-5)
    assert found["mse_after"] == pytest.approx(squared(until - after + batch.target, batch.clear), rel=1e-5)
    assert found["mse_whole"] == pytest.approx(squared(since + until - after + before, batch.clear), rel=1e-5)


def test_losses_of_stfdcnn_are_errors_of_both_networks(scene: Scene, tmp_path: Path) -> None:
    network, batch = batch_of("stfdcnn", scene, tmp_path)
    found = {term.name: float(term.loss) for term in network.terms(batch, 0)}
    pair, clear = batch.pair, batch.clear.numpy()
    observed = pair.cut(0).chunk(2, dim=1)
    whole = clear.reshape(3, 2, 8, 4, 8, 4).all((3, 5))
    errors, of_two = [], []
    for coarse, fine in (
        (pair.coarse_before, observed[0]),
        (batch.targets.coarse, batch.target),
        (pair.coarse_after, observed[1]),
    ):
        mapped = network.mapping(pair.up(coarse, 32, 4))
        errors.append(mapped.numpy() - fine.numpy().reshape(3, 2, 8, 4, 8, 4).mean((3, 5)))
    started = network.start(pair)
    for resolved, fine in zip(started.resolved.chunk(2, dim=1), observed, strict=True):
        of_two.append((resolved - fine).numpy())
    assert found["mse_stage1"] == pytest.approx(squared(np.stack(errors), np.stack([whole] * 3)), rel=1e-4)
    assert found["mse_stage2"] == pytest.approx(squared(np.stack(of_two), np.stack([clear] * 2)), rel=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_losses_of_ganstfm_by_their_formulas(scene: Scene, tmp_path: Path, number: int) -> None:
    network, batch = batch_of("ganstfm", scene, tmp_path)
    terms = {term.name: term for term in network.terms(batch, number)}
    started = network.start(batch.pair)
    features = (started.before, started.after)[number]
    image = batch.pair.cut(0).chunk(2, dim=1)[number]
    result = network._from(image, features, network._coarse(batch.pair, batch.targets)).numpy()
    assert not batch.clear.all()
    truth = np.where(batch.clear, batch.target, result)  # what is not clear shows the prediction
    lengths = np.linalg.norm(result, axis=1) * np.linalg.norm(truth, axis=1)
    assert float(terms["cosine"].loss) == pytest.approx(1 - np.mean((result * truth).sum(1) / lengths), abs=1e-5)
    of_result, of_truth = (
        np.stack([literal_networks.through(2 * i.astype(float) - 1, network.fine) for i in images])
        for images in (result, truth)
    )
    assert float(terms["feature"].loss) == pytest.approx(np.mean((of_result - of_truth) ** 2), rel=1e-3)
    weights = np.array(STRUCTURE[:2]) / sum(STRUCTURE[:2])
    pairs = zip(result.reshape(-1, 32, 32).astype(float), truth.reshape(-1, 32, 32).astype(float), strict=True)
    similar = np.mean([literal_networks.ms_ssim(a, b, weights) for a, b in pairs])
    assert float(terms["structure"].loss) == pytest.approx(1 - similar, abs=1e-5)
    seen = terms["structure"].seen(torch.from_numpy(result))
    assert torch.equal(seen[:, :2], torch.from_numpy(result) * 2 - 1)
    assert torch.equal(seen[:, 2:], batch.pair.up(batch.targets.coarse, 0) * 2 - 1)
    assert float(cosine_loss(torch.tensor([[[[3.0]], [[0.0]]]]), torch.tensor([[[[1.0]], [[1.0]]]]))) == pytest.approx(
        1 - 0.5**0.5
    )


def test_scores_of_critics_count_each_scale_alike(scene: Scene) -> None:
    torch.manual_seed(0)
    (critic,) = GANSTFM(2, 2).critics(True)
    images = torch.rand(2, 4, 64, 64) * 2 - 1
    critic.eval()
    with torch.inference_mode():
        scores, alone = critic(images), []
        for layers in critic.scales:
            alone.append(layers(images).mean())
            images = torch.nn.functional.avg_pool2d(images, 2)
    assert float(scores.mean()) == pytest.approx(float(torch.stack(alone).mean()), abs=1e-6)
    for layer in critic.scales[0]:
        if isinstance(layer, nn.Conv2d):
            assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) < 1.5


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_dictionaries_are_as_good_as_those_of_scikit_learn() -> None:
    """Of signals that are sums of two of twelve patterns, and noise."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(12, 2 * AREA))
    weights = np.zeros((600, 12))
    for row in weights:
        row[rng.choice(12, 2, replace=False)] = rng.normal(0, 1, 2)
    signals = (weights @ patterns * 0.01 + rng.normal(0, 0.001, (600, 2 * AREA))).astype(np.float32)
    network = SPSTFM(1, 16)
    network._pairs = lambda batch, draw: torch.from_numpy(signals)[None]  # type: ignore[method-assign, assignment]
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for number in range(150):
        optimiser.zero_grad()
        terms = network.terms(None, number)  # type: ignore[arg-type]
        (terms[0].loss + terms[1].loss).backward()
        optimiser.step()
    found = float((terms[0].loss + terms[1].loss).detach()) / 8
    other = MiniBatchDictionaryLearning(16, transform_algorithm="omp", transform_n_nonzero_coefs=3, fit_algorithm="cd", alpha=0.01, max_iter=60, random_state=0)  # fmt: skip
    codes = other.fit_transform(signals)
    judge = float(np.mean((codes @ other.components_ - signals) ** 2))
    assert found < 1.1 * judge
    assert found < 0.1 * float(np.mean(signals**2))


@pytest.mark.parametrize(
    ("ratio", "cells", "sizes"), [(16, (8, 5), (32, 48)), (7, (32, 32), (112,)), (1, (70, 85), (32,))]
)
@pytest.mark.parametrize("name", NAMES)
def test_tiles_give_the_whole_image(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    ratio: int,
    cells: tuple[int, int],
    sizes: tuple[int, ...],
) -> None:
    monkeypatch.setattr(learned, "STRIP", 60)
    predictor, place = opened(tmp_path, name, ratio), Place(cells, ratio)
    whole = place.predict(predictor, place.whole)
    for size in sizes:
        assert np.abs(place.tiled(predictor, size) - whole).max() <= 1e-5
    monkeypatch.setattr(learned, "STRIP", 10_000)
    assert np.abs(place.predict(predictor, place.whole) - whole).max() <= 1e-5


@pytest.mark.parametrize("ratio", [16, 8])
@pytest.mark.parametrize("name", NAMES)
def test_tiles_and_runs_do_not_show(tmp_path: Path, name: str, ratio: int) -> None:
    """Ten chunkings of each ratio, clouds and gaps in all of them."""
    cubes, method = (
        Scene(height=7 * 16, width=6 * 16, ratio=ratio, seed=ratio, cloud=0.5, gap=0.3),
        opened(tmp_path, name, ratio),
    )
    landsat, modis = (series(cube, BANDS) for cube in (cubes.landsat, cubes.modis))
    start = landsat.days[0] - 3
    days = [start + n for n in range(9, 21)]
    expected = fuse_block(landsat, modis, method, Window(0, 112, 0, 96), days, Options(keep_observed=False))
    assert np.mean(expected["red"] != -32768) > 0.5
    for window, first, last in chunkings((112, 96), 12):
        found = fuse_block(landsat, modis, method, window, days[first:last], Options(keep_observed=False))
        for band in BANDS:
            part = expected[band][first:last, *window.slices]
            np.testing.assert_array_equal(found[band] == -32768, part == -32768)
            assert np.abs(found[band].astype(int) - part).max() <= 1
        np.testing.assert_array_equal(found["qa"], expected["qa"][first:last, *window.slices])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_clear_has_no_part_in_any_pixel(tmp_path: Path, name: str) -> None:
    """Other values under the clouds and in the gaps: the same result."""
    cubes, method = Scene(height=96, width=96, seed=4, cloud=0.5, gap=0.3), opened(tmp_path, name)
    window, days = Window(16, 80, 16, 64), [3, 8, 12]
    found = []
    for spoil in (False, True):
        pair = [cube.copy(deep=True) for cube in (cubes.landsat, cubes.modis)]
        for cube in pair if spoil else ():
            for band in BANDS:
                cube[band].values[cube.qa.values != 0] = 9999
        landsat, modis = (series(cube, BANDS) for cube in pair)
        found.append(fuse_block(landsat, modis, method, window, [landsat.days[0] + n for n in days], Options()))
    for variable, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][variable])


@pytest.mark.parametrize("name", NAMES)
def test_a_predictor_travels_tells_its_spread_and_its_memory(tmp_path: Path, name: str) -> None:
    method = opened(tmp_path, name)
    assert isinstance(method, Predictor)
    sent = pickle.dumps(method)
    assert len(sent) < 1000
    assert pickle.loads(sent) == method
    bracket, coarse = made(3, method.halo, 16, (2, 2), 0)
    plain, told = (p.predict(p.prepare(bracket), coarse) for p in (method, with_spread(method)))
    np.testing.assert_array_equal(plain.mean, told.mean)
    assert plain.spread is None
    assert told.spread is not None
    assert told.spread.shape == told.mean.shape
    assert told.spread.max() > 0
    assert (
        memory_of(method, 1024, 1024, 1) < memory_of(method, 2048, 1024, 1) < 2 * memory_of(method, 1024, 1024, 1) + 1
    )
    with pytest.raises(InputError, match=f"{name} was made for cells of 16 pixels, the data has 8"):
        method.prepare(made(3, Halo(16, 4), 8, (2, 2), 0)[0])


def test_weights_are_of_one_method_and_its_bands(tmp_path: Path) -> None:
    path = random_weights(tmp_path, "stfnet")
    for name in TRAINED:
        if name != "stfnet":
            with pytest.raises(InputError, match=f"holds 'stfnet', not '{name}'"):
                make(name, BANDS, path)
    with pytest.raises(InputError, match="trained for the bands red, nir"):
        make("stfnet", ("nir",), path)
    with pytest.raises(InputError, match="no weights of 'stfnet' come with the package"):
        make("stfnet", BANDS)
    checkpoint.annotate(path, width=8)
    with pytest.raises(InputError, match="the architecture needs"):
        make("stfnet", BANDS, path)
    checkpoint.annotate(path, width="wide")
    with pytest.raises(InputError, match="whole numbers"):
        make("stfnet", BANDS, path)
    with pytest.raises(InputError, match="out of range"):
        trainable("stfnet", BANDS, 16, {"width": 1})
    with pytest.raises(InputError, match="no weights to train"):
        trainable("delta", BANDS, 16, {})


SMALL = replace(RECIPE, steps=10)


def train(scene: Scene, out: Path, name: str, recipe: training.Recipe, **settings: Any) -> dict[str, Any]:
    more = {"width": KINDS[name][1]} | settings
    return training.train([(scene.landsat, scene.modis)], out, recipe, method=name, **more)


class Even(Damped):
    """Land of hardly any texture: its change can be read from the coarse image."""

    def truth(self, number: int) -> Any:
        return 0.2 + self.base / 20 + np.float32(0.08 * np.sin(number * 1.3))


def test_a_short_training_lowers_the_losses_of_ganstfm(tmp_path: Path) -> None:
    """It starts at persistence and knows one coarse image: to beat it in reflectance takes longer than a test."""
    even = Even(64, 64, acquired=ACQUIRED, cloud=0.1, gap=0)
    train(even, tmp_path, "ganstfm", replace(SMALL, steps=60, learning_rate=3e-3, gan="lsgan", warm_up=1 / 500))
    with (tmp_path / "training" / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    content = [sum(float(row[name]) for name in GANSTFM.columns) for row in rows]
    assert np.mean(content[-10:]) < np.mean(content[:5])
    assert all(float(row["critic_stage1"]) > 0 for row in rows[1:])


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_short_training_beats_persistence(tmp_path: Path, name: str) -> None:
    damped = Damped(64, 64, acquired=ACQUIRED, cloud=0.1, gap=0)
    recipe = replace(SMALL, steps=80, learning_rate=3e-3)
    facts = train(damped, tmp_path, name, recipe, width={"spstfm": 48}.get(name, KINDS[name][1]))
    errors = facts["withheld"]["rmse"]
    assert errors[name] < errors["persistence"]
    config = checkpoint.read_config(tmp_path)
    assert (config["method"], config["training"]) == (name, facts)
    assert config["uncertainty"]["bands"].keys() == {"red", "nir"}
    with (tmp_path / "training" / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {*KINDS[name][0].columns} <= rows[0].keys()
    assert all(np.isfinite(float(row[column])) for row in rows for column in KINDS[name][0].columns)
    assert "critic_stage1" not in rows[0]
    method = make(name, BANDS, tmp_path)
    fused = fusion.fuse(damped.landsat, damped.modis, method, [day(14)], uncertainty=True).compute()
    assert np.isfinite(fused.red.values).mean() > 0.9
    assert float(fused.std_red.mean()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_run_resumes_like_an_unbroken_one(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(training, "SAVES", 5)
    recipe = replace(SMALL, gan=training.RECIPES[name].gan, warm_up=0.2)

    def broken(number: int, *_: Any) -> None:
        if number == 5:
            raise Broken

    train(scene, tmp_path / "whole", name, recipe)
    with pytest.raises(Broken):
        train(scene, tmp_path / "broken", name, recipe, progress=broken)
    train(scene, tmp_path / "broken", name, recipe)
    for file in (f"{name}.safetensors", f"{name}.json", "training/losses.csv"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    with pytest.raises(InputError, match="another"):
        train(scene, tmp_path / "whole", name, replace(recipe, seed=8))


def test_training_goes_on_from_weights_of_the_same_method_only(scene: Scene, tmp_path: Path) -> None:
    path = random_weights(tmp_path, "stfnet")
    facts = train(scene, tmp_path / "on", "stfnet", replace(SMALL, steps=2), weights=path)
    assert facts["from"] == checkpoint.read_config(path)["sha256"]
    assert {"from", "stfnet"} <= facts["withheld"]["rmse"].keys()
    with pytest.raises(InputError, match="holds 'stfnet', not 'stfdcnn'"):
        train(scene, tmp_path / "other", "stfdcnn", SMALL, weights=path)
    with pytest.raises(InputError, match="was trained with width 6"):
        train(scene, tmp_path / "wide", "stfnet", SMALL, weights=path, width=8)
    with pytest.raises(InputError, match="stfnet has no critics"):
        train(scene, tmp_path / "gan", "stfnet", replace(SMALL, gan="lsgan"))
    with pytest.raises(InputError, match="for the bands they were trained on"):
        train(scene, tmp_path / "some", "stfnet", replace(SMALL, subsets=True))
    with pytest.raises(InputError, match="stfnet has none"):
        train(scene, tmp_path / "stages", "stfnet", SMALL, schedule="progressive")


def test_the_commands_train_and_fuse_by_it(
    demo_world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """And what was made by weights is repaired by them."""
    monkeypatch.setattr(train_command, "compute_here", lambda _: None)
    few = ["--steps", "2", "--batch", "1", "--patch", "32", "--region", "32", "--samples", "1", "--width", "4"]
    out = tmp_path / "weights"
    asked = ["--method", "stfnet", "--cube", str(finished), "--bands", "red,nir", "--out", str(out)]
    code, text, err = run(*asked, *few, command=train_command.command)
    assert code == 0, err
    assert "stfnet.safetensors" in "".join(text.split())
    assert (out / "training" / "losses.png").stat().st_size > 5000
    fuse = [
        "--catalog", str(demo_world / "catalog.toml"), "--dates", "2020-03-01/2020-03-02", "--bands", "red,nir",
        "--model", str(out / "stfnet.safetensors"), "--out", str(tmp_path / "run"), "--no-report",
    ]  # fmt: skip
    assert run(*fuse, "--method", "stfdcnn")[0] == 2
    code, _, err = run(*fuse, "--method", "stfnet")
    assert code == 0, err
    made_by = json.loads((tmp_path / "run" / "run.json").read_text())
    assert made_by["request"]["model"] == checkpoint.read_config(out)["sha256"]
    cube = open_cube(tmp_path / "run" / "fused.zarr")
    assert np.isfinite(cube.nir.values).mean() > 0.9
    for file in (tmp_path / "run" / "fused.zarr" / "red" / "c").rglob("*"):
        if file.is_file():
            file.unlink()
    assert run(str(tmp_path / "run"), "--repair", command=verify.command)[0] == 0
    np.testing.assert_array_equal(open_cube(tmp_path / "run" / "fused.zarr").red.values, cube.red.values)
    refused = [["--adapt"], ["--guard"]]
    for more in refused:
        assert run(*fuse[:-3], "--out", str(tmp_path / "other"), "--method", "stfnet", *more)[0] == 2
