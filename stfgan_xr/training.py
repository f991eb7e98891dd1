"""Training from cubes: one loop over patches for all methods, resumable, with a comparison on withheld days at the end.

Randomness comes from the seed and the number of the step only, so a resumed run repeats an unbroken one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from stfgan_xr import checkpoint, gate, samples
from stfgan_xr.brackets import band_names, series
from stfgan_xr.errors import Diverged, InputError, NothingToDo
from stfgan_xr.files import write_json
from stfgan_xr.grid import Halo, tile_step
from stfgan_xr.landscape import Truth
from stfgan_xr.learning import Recipe, Run, Step, rmse, train_step
from stfgan_xr.predictors.learned import Method
from stfgan_xr.predictors.methods import method_of, trainable
from stfgan_xr.predictors.pairs import Batch, Margins, Pair, Targets
from stfgan_xr.predictors.stages import METHOD, AnchorName, Schedule
from stfgan_xr.state import Best, Folder, weights_of

SAVES = 20
"""How often a run saves its state and is checked on withheld acquisitions."""
SHIPPED = "shipped"
"""Name of the weights that come with the package."""
RECIPES = {
    METHOD: Recipe(),
    "stfdcnn": Recipe(gan="none", optimiser="adam"),
    "stfnet": Recipe(gan="none", optimiser="adam"),
    "ganstfm": Recipe(gan="lsgan", optimiser="adam", learning_rate=2e-4),
    "spstfm": Recipe(gan="none", optimiser="adam", learning_rate=1e-3, steps=2000),
}
"""How each method is trained by default."""
IN_MEMORY = 4 << 30
"""Bytes of all cubes up to which they are read at once."""
Cubes = Sequence[tuple[xr.Dataset, xr.Dataset]]
Shown = Callable[[int, int, Mapping[str, float]], None]


def corpus(
    cubes: Cubes,
    bands: Sequence[str] | None = None,
    truths: Sequence[Truth | None] | None = None,
) -> tuple[samples.Place, ...]:
    """Regions to train on, each ``(landsat, modis)``; every fifth acquisition of each is withheld."""
    places = []
    for (landsat, modis), truth in zip(cubes, truths or [None] * len(cubes), strict=True):
        fine, coarse = series(landsat, bands), series(modis, bands)
        places.append(samples.Place(fine, coarse, samples.withhold(fine.days), truth))
    if len({(place.ratio, place.landsat.bands) for place in places}) != 1:
        raise InputError("the cubes differ in bands or in the ratio of their pixel sizes; train on cubes of one kind")
    return tuple(places)


def to_batch(
    patches: Sequence[samples.Sample],
    halo: Halo,
    ratio: int,
    draw: np.random.Generator,
    device: str,
) -> Batch:
    """Patches turned at random, on a device."""
    fields = samples.turn(samples.stack(patches), draw)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in fields.items()}
    before, day, after, level = tensors["coarse"].unbind(1)
    acquired = tensors["days"].to(torch.int32)
    pair = Pair(
        tensors["fine"], before, after, acquired[:, 0], acquired[:, 1], tensors["resampled"].float(),
        ratio, halo.coarse, Margins.same(halo.fine),
    )  # fmt: skip
    targets = Targets(torch.zeros(len(patches), device=device), day, level, tensors["lead"], tensors["rise"])
    return Batch(pair, targets, tensors["target"], tensors["clear"])


@dataclass(frozen=True)
class Plan:
    """A training run that is about to start or to be gone on with.

    Attributes
    ----------
    places
        Regions to train on; their bands may be some of the method's.
    weights
        Checkpoint that it starts from.
    folder
        Where it lives.
    """

    places: Sequence[samples.Place]
    method: Method
    recipe: Recipe
    weights: Path | None
    folder: Folder

    @property
    def halo(self) -> Halo:
        """Of the patches."""
        return self.method.halo(self.recipe.margin)

    def batch(self, patches: Sequence[samples.Sample], draw: np.random.Generator) -> Batch:
        """Patches as the networks take them."""
        return to_batch(patches, self.halo, self.method.ratio, draw, _device())

    def pool(self) -> list[samples.Sample]:
        """What patches are cut from."""
        recipe = self.recipe
        return list(
            samples.collect(
                self.places, recipe.samples, recipe.region, self.halo, recipe.seed, recipe.span, recipe.distorted,
                recipe.subsets, self.method.bands,
            )
        )  # fmt: skip

    def withheld(self) -> list[Batch]:
        """Patches of withheld acquisitions, always the same."""
        recipe = self.recipe
        found = gate.withheld_samples(self.places, recipe.patch, self.halo, recipe.seed, self.method.bands)
        return [self.batch([sample], np.random.default_rng(recipe.seed)) for sample in found]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _resolve(weights: str | Path, cubes: Cubes, bands: Sequence[str] | None, method: str = METHOD) -> Path:
    if weights == SHIPPED:
        return checkpoint.shipped(bands or band_names(cubes[0][0]), method)
    return checkpoint.resolve(weights)


def _bands_of(method: str, weights: Path, cubes: Cubes, bands: Sequence[str] | None) -> tuple[str, ...]:
    """The bands of the cubes that weights are trained on: those asked for, or all that both have."""
    config = checkpoint.read_config(weights)
    shared = [band for band in config["bands"] if all(band in cube for pair in cubes for cube in pair)]
    chosen = tuple(bands or shared or band_names(cubes[0][0]))
    checkpoint.require(config, method, chosen)
    return chosen


def _method(name: str, places: Sequence[samples.Place], weights: Path | None, stated: Mapping[str, Any]) -> Method:
    """That of the weights if there are any, else as stated, for the ratio of the places.

    Raises
    ------
    InputError
        If another one than the weights' is stated.
    """
    stated = {key: value for key, value in stated.items() if value is not None}
    place = places[0]
    if weights is None:
        return trainable(name, place.landsat.bands, place.ratio, stated)
    own = checkpoint.read_config(weights)
    differing = [f"{key} {own.get(key)}" for key, value in stated.items() if own.get(key) != value]
    if differing:
        raise InputError(f"{weights.name} was trained with {', '.join(differing)}: leave that out, or train without it")
    return method_of(name, own | {"ratio": place.ratio})


def _plan(
    cubes: Cubes,
    out: str | Path,
    recipe: Recipe,
    weights: str | Path | None,
    bands: Sequence[str] | None = None,
    truths: Sequence[Truth | None] | None = None,
    method: str = METHOD,
    **stated: Any,
) -> Plan:
    path = None if weights is None else _resolve(weights, cubes, bands, method)
    if sum(cube.nbytes for pair in cubes for cube in pair) <= IN_MEMORY:
        # A sample looks at every acquisition: opening shards again and again takes most of its time.
        cubes = [(landsat.compute(), modis.compute()) for landsat, modis in cubes]
    places = corpus(cubes, bands if path is None else _bands_of(method, path, cubes, bands), truths)
    chosen = _method(method, places, path, stated)
    check_recipe(recipe, chosen, places)
    data = [
        [*p.landsat.shape, len(p.landsat.days), p.landsat.days[0], p.landsat.days[-1], p.truth is not None]
        for p in places
    ]
    identity = chosen.to_config() | asdict(recipe) | {"span": list(recipe.span), "cubes": data}
    identity |= {
        "bands of the cubes": list(places[0].landsat.bands),
        "from": None if path is None else checkpoint.read_config(path)["sha256"],
    }
    return Plan(places, chosen, recipe, path, Folder(Path(out), chosen, identity))


def _draw(plan: Plan, pool: Sequence[samples.Sample], step: Step) -> Batch:
    draw, recipe = step.random(), step.recipe
    chosen = draw.integers(len(pool), size=recipe.batch)
    patches = [samples.cut(pool[int(index)], recipe.patch, plan.method.ratio, draw) for index in chosen]
    return plan.batch(patches, draw)


def _pace(plan: Plan, draw: Callable[[Step], Batch]) -> int:
    """Steps that fit ``recipe.minutes``, from a few on a copy that is thrown away."""
    recipe = plan.recipe
    if recipe.minutes is None:
        return recipe.steps
    run, trials = Run(plan.method, recipe, _device()), 5
    begun = 0.0
    for number in range(trials):
        if number == 1:  # the first one prepares kernels
            begun = time.monotonic()
        step = Step(trials // 2 + number, 2 * trials, recipe)
        train_step(run, step, draw(step))
    return max(10, int(recipe.minutes * 60 * (trials - 1) / (time.monotonic() - begun)))


def train(
    cubes: Cubes,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    method: str = METHOD,
    weights: str | Path | None = None,
    truths: Sequence[Truth | None] | None = None,
    bands: Sequence[str] | None = None,
    width: int | None = None,
    schedule: Schedule | None = None,
    anchor: AnchorName | None = None,
    half: bool = False,
    progress: Shown | None = None,
) -> dict[str, Any]:
    """Train a method and write ``METHOD.safetensors`` and ``METHOD.json`` to ``out``; the same call again resumes.

    Parameters
    ----------
    cubes
        Regions to train on, each ``(landsat, modis)``: counts or reflectance Datasets on nested grids.
    recipe
        How to train; by default :data:`RECIPES` of the method.
    method
        ``"stfgan"``, ``"stfdcnn"``, ``"stfnet"``, ``"ganstfm"`` or ``"spstfm"``.
    truths
        Of each region, if it is simulated: what it truly looks like, to train towards instead of acquisitions.
    weights
        Checkpoint to start from, or ``"shipped"``: that of the package. The architecture is its own. Cubes may lack
        bands of weights that work on any of theirs; the result keeps all of them.
    bands
        By default all of the cubes, or those that the weights have too.
    width
        Channels inside (``spstfm``: atoms); by default the publication's, or that of the weights.
    schedule, anchor
        Of STFGAN, see :class:`stfgan_xr.predictors.stages.Architecture`; by default its own, or those of the weights.
    half
        Store the weights as float16.
    progress
        Called after each step with its number, their total and the losses.

    Returns
    -------
    dict
        The ``training`` part of the checkpoint's JSON: the recipe, the number of steps, and the scores on the withheld
        acquisitions (:func:`stfgan_xr.gate.compare`; ``from`` are the weights it started from). With
        ``recipe.patience`` these acquisitions chose the weights, so the scores are somewhat too good.

    Raises
    ------
    InputError
        If the cubes differ in kind, are smaller than a patch, ``out`` holds another run, the weights cannot be read
        or are not what is stated, or no withheld acquisition is clear enough to be patient about.
    NothingToDo
        If no three acquisitions are clear and close enough.
    """
    stated = {"width": width, "schedule": schedule, "anchor": anchor}
    plan = _plan(cubes, out, recipe or RECIPES[method], weights, bands, truths, method, **stated)
    return _run(plan, half, progress)


def _run(plan: Plan, half: bool, progress: Shown | None, blocks: int = 200) -> dict[str, Any]:
    recipe, folder = plan.recipe, plan.folder
    checks = plan.withheld()
    if recipe.patience and not checks:
        raise InputError("patience needs withheld acquisitions that are clear; give longer cubes, or no patience")
    of_anchor = rmse(checks, plan.method.anchor)
    run, best = Run(plan.method, recipe, _device()), Best()
    if plan.weights is not None:
        run.begin(plan.method.restore(plan.weights, folder.identity["from"]))
    draw = partial(_draw, plan, plan.pool())
    total = folder.resume(run, best) or _pace(plan, draw)
    folder.keep_losses(run.step)
    while run.step < total and not 0 < recipe.patience <= best.waited:
        step = Step(run.step, total, recipe)
        losses = train_step(run, step, draw(step))
        number, run.step = run.step, run.step + 1
        saved = run.step % max(1, total // SAVES) == 0 or run.step == total
        if saved and checks:
            reached = rmse(checks, partial(_reached, run))
            losses |= {"rmse_withheld": reached, "rmse_withheld_anchor": of_anchor}
            if recipe.patience:
                best.see(run, reached)
        folder.add_losses(number, losses)
        if saved:
            folder.save(run, total, best)
        if progress is not None:
            progress(run.step, total, losses)
    return _finish(plan, run, best, half, blocks)


def _reached(run: Run, batch: Batch) -> Tensor:
    """What the averaged network gives."""
    return run.method.image(run.result.eval(), batch)


def check_recipe(recipe: Recipe, method: Method, places: Sequence[samples.Place]) -> None:
    """Refuse what a method has not, and sizes that do not fit the grids."""
    if recipe.gan != "none" and not method.critics(False):
        raise InputError(f"gan {recipe.gan!r}: {method.name} has no critics; choose none")
    if recipe.subsets and method.name != METHOD:
        raise InputError(f"subsets: weights of {method.name} are for the bands they were trained on; leave it out")
    if recipe.trust != 1 and not method.corrects:
        raise InputError(f"trust {recipe.trust}: {method.name} corrects no anchor; leave it out")
    step = tile_step(method.ratio)
    if recipe.patch % step or recipe.margin % method.unit:
        raise InputError(f"patches must be multiples of {step} pixels, their margin of {method.unit}")
    smallest = min(min(place.landsat.shape) for place in places)
    if recipe.patch > min(recipe.region, smallest // step * step):
        raise InputError(f"patches of {recipe.patch} pixels do not fit regions of {min(recipe.region, smallest)}")


def _finish(plan: Plan, run: Run, best: Best, half: bool, blocks: int) -> dict[str, Any]:
    """Write the checkpoint, measure its halo, and compare and calibrate it on the withheld acquisitions."""
    recipe, path, places = run.recipe, plan.folder.checkpoint, plan.places
    kind = np.float16 if half else np.float32
    tensors = plan.method.shrunk(best.weights or weights_of(run.result), recipe.trust)
    tensors = {name: value.astype(kind) for name, value in tensors.items()}
    fewer = len(places[0].landsat.bands) < len(plan.method.bands)
    subsets = recipe.subsets or fewer  # training on all bands alone unlearns what to do with some
    config = plan.method.to_config() | {"subsets": subsets}
    facts = asdict(recipe) | {"span": list(recipe.span), "steps": run.step}
    if plan.weights is not None:
        facts["from"] = plan.folder.identity["from"]
    if best.weights:
        facts["best"] = best.facts
    checkpoint.save(path, tensors, config | {"training": facts})
    method = plan.method
    halo = gate.measure_halo(method, method.restore(path), places, recipe.seed)
    config["halo"] = {"fine": halo.fine, "coarse": halo.coarse}
    checkpoint.save(path, tensors, config | {"training": facts})
    compared = partial(method.predictor, bands=places[0].landsat.bands, ratio=method.ratio)
    others = {} if plan.weights is None else {"from": compared(plan.weights)}
    predictor = compared(path)
    facts["withheld"] = gate.compare(predictor, places, recipe.seed, blocks, others=others, name=method.name)
    known = gate.calibrate(predictor, places, recipe.seed)
    config |= {} if known is None else {"uncertainty": known.to_config()}
    checkpoint.save(path, tensors, config | {"training": facts})
    return facts


def adaptation(cubes: Cubes, minutes: float, seed: int = 0) -> Recipe:
    """How weights are adapted: gentle steps without critics on patches that fit, all samples as they are.

    Nothing is chosen by checks on withheld acquisitions, which are few and decide in the end.

    Raises
    ------
    NothingToDo
        If a region is narrower than the smallest patch.
    """
    landsat, modis = cubes[0]
    step = tile_step(landsat.sizes["y"] // modis.sizes["y"])
    smallest = min(landsat.sizes[axis] for landsat, _ in cubes for axis in ("y", "x"))
    if smallest < step:
        raise NothingToDo(f"the area is narrower than a patch of {step} pixels")
    patch = max(min(smallest, 128) // step, 1) * step
    return Recipe(
        gan="none", minutes=minutes, batch=4, patch=patch, samples=64, region=2 * patch, optimiser="adam",
        decay="cosine", distorted=False, seed=seed,
    )  # fmt: skip


def adapt(
    cubes: Cubes,
    weights: str | Path,
    out: str | Path,
    minutes: float = 5.0,
    *,
    bands: Sequence[str] | None = None,
    seed: int = 0,
    progress: Shown | None = None,
) -> dict[str, Any]:
    """Train weights on with the acquisitions of a region that they are for, and tell whether that made them better.

    Every fifth acquisition is withheld: it is not trained on, and decides at the end. The same call again resumes; a
    finished adaptation is not repeated.

    Parameters
    ----------
    cubes, bands, progress
        As for :func:`train`.
    weights
        Checkpoint to start from, or ``"shipped"``.
    out
        Folder for the adapted weights, the state and ``adaptation.json``.
    minutes
        Length of the training proper.

    Returns
    -------
    dict
        ``used``: whether the adapted weights, ``out/stfgan.safetensors``, have a smaller error on the withheld
        acquisitions than both their anchor and the weights they came from; ``why``; ``weights``: SHA-256 of those to
        use; ``from`` and ``adapted``: of both; ``withheld``: the scores (:func:`stfgan_xr.gate.compare`); ``recipe``.
        Where the acquisitions are too few or too cloudy, only ``used`` (false), ``why``, ``weights`` and ``from``.

    Raises
    ------
    InputError
        If the weights cannot be read or are for other bands, or ``out`` holds another adaptation.
    """
    path = _resolve(weights, cubes, bands)
    sha256 = checkpoint.read_config(path)["sha256"]
    try:
        plan = _plan(cubes, out, adaptation(cubes, minutes, seed), path, bands)
        return _adapt(plan, sha256, progress)
    except (NothingToDo, Diverged) as error:
        return {"used": False, "why": str(error), "from": sha256, "weights": sha256}


def _adapt(plan: Plan, sha256: str, progress: Shown | None) -> dict[str, Any]:
    file = plan.folder.checkpoint.with_name("adaptation.json")
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_bytes())
        plan.folder.refuse_other(found["recipe"])
        return found
    if not plan.withheld():
        raise NothingToDo("no acquisition is clear enough to be withheld and decide")
    scores = _run(plan, False, progress, blocks=40)["withheld"]
    errors, own = scores["rmse"], plan.method.to_config()["anchor"]
    rivals = {"from": "the weights they began from", own if own in errors else "progress": "their anchor"}
    better = [text for name, text in rivals.items() if not errors["stfgan"] < errors[name]]
    smaller = "not smaller" if better else "smaller"
    adapted = checkpoint.read_config(plan.folder.checkpoint)["sha256"]
    found = {
        "used": not better,
        "why": f"their error is {smaller} than that of {' and '.join(better or rivals.values())}",
        "weights": sha256 if better else adapted,
        "from": sha256,
        "adapted": adapted,
        "withheld": scores,
        "recipe": plan.folder.identity,
    }
    write_json(file, found)
    return found
