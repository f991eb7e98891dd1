"""Training STFGAN from cubes: one loop over patches, resumable, with a comparison on withheld days at the end.

Randomness comes from the seed and the number of the step only, so a resumed run repeats an unbroken one.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from stfgan_xr import checkpoint, gate, samples
from stfgan_xr.brackets import series
from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo, tile_step
from stfgan_xr.landscape import Truth
from stfgan_xr.learning import Batch, Recipe, Run, Step, train_step
from stfgan_xr.predictors.stages import AnchorName, Architecture, Margins, Pair, Schedule, Targets
from stfgan_xr.predictors.stfgan import STFGAN, restore, shapes

SAVES = 20
"""How often a run saves its state."""
LOSSES = (
    "step", "learning_rate", "mse_anchor",
    *(f"{name}_stage{n}" for n in (1, 2) for name in ("mse", "critic", "adversarial", "gradient_ratio")),
)  # fmt: skip
"""Columns of the losses; squared errors are in the networks' units (four times those of reflectance)."""


def corpus(
    cubes: Sequence[tuple[xr.Dataset, xr.Dataset]],
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


def halo_of(recipe: Recipe, ratio: int) -> Halo:
    """What training patches carry beyond their loss."""
    return Halo(fine=recipe.margin, coarse=-(-(2 * recipe.margin + ratio) // (2 * ratio)))


def to_batch(
    patches: Sequence[samples.Sample],
    halo: Halo,
    ratio: int,
    draw: np.random.Generator,
    device: str,
    anchor: AnchorName = "progress",
) -> Batch:
    """Patches turned at random, on a device, for networks with an anchor."""
    fields = samples.turn(samples.stack(patches), draw)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in fields.items()}
    before, day, after, level = tensors["coarse"].unbind(1)
    acquired = tensors["days"].to(torch.int32)
    pair = Pair(
        tensors["fine"], before, after, acquired[:, 0], acquired[:, 1], ratio, halo.coarse, Margins.same(halo.fine)
    )
    numbers = torch.zeros(len(patches), device=device)
    own = anchor == "progress"
    targets = Targets(numbers, day, level, tensors["lead"]) if own else Targets.by_calendar(numbers, day)
    return Batch(pair, targets, tensors["target"], tensors["clear"])


class Folder:
    """The files of a training run: its state, its losses and the finished checkpoint."""

    def __init__(self, out: Path, architecture: Architecture, recipe: Recipe, places: Sequence[samples.Place]) -> None:
        self.checkpoint = out / "stfgan.safetensors"
        self.state, self.losses = out / "training" / "state.safetensors", out / "training" / "losses.csv"
        data = [
            [*p.landsat.shape, len(p.landsat.days), p.landsat.days[0], p.landsat.days[-1], p.truth is not None]
            for p in places
        ]
        self.identity: dict[str, Any] = (
            architecture.to_config() | asdict(recipe) | {"span": list(recipe.span), "cubes": data}
        )

    def resume(self, run: Run) -> int | None:
        """Restore a run that was broken off; its total number of steps, or None where there is none.

        Raises
        ------
        InputError
            If the folder holds a run of another recipe or other cubes.
        """
        if not self.state.is_file():
            return None
        config = checkpoint.read_config(self.state)
        differing = [name for name, value in self.identity.items() if config["identity"].get(name) != value]
        if differing:
            raise InputError(
                f"{self.state.parent}: holds a run with another {', '.join(differing)}; choose another --out"
            )
        run.restore(checkpoint.load_tensors(self.state), config["step"])
        return int(config["total"])

    def save(self, run: Run, total: int) -> None:
        """Keep the state of a run."""
        facts = {"method": "stfgan-training", "bands": self.identity["bands"], "identity": self.identity}
        checkpoint.save(self.state, run.tensors(), facts | {"step": run.step, "total": total})

    def keep_losses(self, before: int) -> None:
        """Forget the losses of step ``before`` and later ones, which are going to be repeated."""
        self.losses.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if self.losses.is_file():
            with self.losses.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) < before]
        with self.losses.open("w", newline="") as file:
            writer = csv.DictWriter(file, LOSSES)
            writer.writeheader()
            writer.writerows(kept)

    def add_losses(self, number: int, losses: Mapping[str, float]) -> None:
        """Append the losses of a step."""
        with self.losses.open("a", newline="") as file:
            values = {name: f"{value:.9g}" for name, value in losses.items()}
            csv.DictWriter(file, LOSSES, restval="").writerow({"step": number} | values)


def _draw(pool: Sequence[samples.Sample], halo: Halo, architecture: Architecture, step: Step, device: str) -> Batch:
    draw, recipe = step.random(), step.recipe
    chosen = draw.integers(len(pool), size=recipe.batch)
    patches = [samples.cut(pool[int(index)], recipe.patch, architecture.ratio, draw) for index in chosen]
    return to_batch(patches, halo, architecture.ratio, draw, device, architecture.anchor)


def _pace(architecture: Architecture, recipe: Recipe, draw: Callable[[Step], Batch], device: str) -> int:
    """Steps that fit ``recipe.minutes``, from a few on a copy that is thrown away."""
    if recipe.minutes is None:
        return recipe.steps
    run, trials = Run(architecture, recipe, device), 5
    begun = 0.0
    for number in range(trials):
        if number == 1:  # the first one prepares kernels
            begun = time.monotonic()
        step = Step(trials // 2 + number, 2 * trials, recipe)
        train_step(run, step, draw(step))
    return max(10, int(recipe.minutes * 60 * (trials - 1) / (time.monotonic() - begun)))


def train(
    cubes: Sequence[tuple[xr.Dataset, xr.Dataset]],
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    truths: Sequence[Truth | None] | None = None,
    bands: Sequence[str] | None = None,
    width: int = 64,
    schedule: Schedule = "same-grid",
    anchor: AnchorName = "progress",
    half: bool = False,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train STFGAN and write ``stfgan.safetensors`` and ``stfgan.json`` to ``out``; the same call again resumes.

    Parameters
    ----------
    cubes
        Regions to train on, each ``(landsat, modis)``: counts or reflectance Datasets on nested grids.
    recipe
        How to train.
    truths
        Of each region, if it is simulated: what it truly looks like, to train towards instead of acquisitions.
    bands
        By default all of the cubes.
    width, schedule, anchor
        See :class:`stfgan_xr.predictors.stages.Architecture`.
    half
        Store the weights as float16.
    progress
        Called after each step with its number, their total and the losses.

    Returns
    -------
    dict
        The ``training`` part of the checkpoint's JSON: the recipe, the losses of the last steps, and the scores on
        the withheld acquisitions (:func:`stfgan_xr.gate.compare`).

    Raises
    ------
    InputError
        If the cubes differ in kind, are smaller than a patch, or ``out`` holds another run.
    NothingToDo
        If no three acquisitions are clear and close enough.
    """
    recipe = recipe or Recipe()
    places = corpus(cubes, bands, truths)
    ratio, device = places[0].ratio, "cuda" if torch.cuda.is_available() else "cpu"
    architecture = Architecture(places[0].landsat.bands, width, schedule, anchor, ratio)
    check_patch(recipe, architecture, places)
    folder = Folder(Path(out), architecture, recipe, places)
    halo = halo_of(recipe, ratio)
    pool = list(
        samples.collect(
            places, recipe.samples, recipe.region, halo, recipe.seed, recipe.span, recipe.distorted, recipe.subsets
        )
    )

    def draw(step: Step) -> Batch:
        return _draw(pool, halo, architecture, step, device)

    run = Run(architecture, recipe, device)
    total = folder.resume(run) or _pace(architecture, recipe, draw, device)
    folder.keep_losses(run.step)
    while run.step < total:
        step = Step(run.step, total, recipe)
        losses = train_step(run, step, draw(step))
        folder.add_losses(run.step, losses)
        run.step += 1
        if run.step % max(1, total // SAVES) == 0 or run.step == total:
            folder.save(run, total)
        if progress is not None:
            progress(run.step, total, losses)
    return _finish(run, folder, places, half)


def check_patch(recipe: Recipe, architecture: Architecture, places: Sequence[samples.Place]) -> None:
    """Refuse sizes that do not fit the grids."""
    step = tile_step(architecture.ratio)
    if recipe.patch % step or recipe.margin % architecture.unit:
        raise InputError(f"patches must be multiples of {step} pixels, their margin of {architecture.unit}")
    smallest = min(min(place.landsat.shape) for place in places)
    if recipe.patch > min(recipe.region, smallest // step * step):
        raise InputError(f"patches of {recipe.patch} pixels do not fit regions of {min(recipe.region, smallest)}")


def _finish(run: Run, folder: Folder, places: Sequence[samples.Place], half: bool) -> dict[str, Any]:
    """Write the checkpoint, measure its halo, and compare and calibrate it on the withheld acquisitions."""
    network, recipe = run.result, run.recipe
    kind = np.float16 if half else np.float32
    state = network.state_dict()
    tensors = {name: state[name].detach().cpu().numpy().astype(kind) for name in shapes(network)}
    config = network.architecture.to_config() | {"subsets": recipe.subsets}
    checkpoint.save(folder.checkpoint, tensors, config | {"training": asdict(recipe)})
    halo = gate.measure_halo(restore(folder.checkpoint), places, recipe.seed)
    config["halo"] = {"fine": halo.fine, "coarse": halo.coarse}
    checkpoint.save(folder.checkpoint, tensors, config | {"training": asdict(recipe)})
    predictor = STFGAN.open(folder.checkpoint)
    scores = gate.compare(predictor, places, recipe.seed)
    known = gate.calibrate(predictor, places, recipe.seed)
    config |= {} if known is None else {"uncertainty": known.to_config()}
    facts = asdict(recipe) | {"span": list(recipe.span), "steps": run.step, "withheld": scores}
    checkpoint.save(folder.checkpoint, tensors, config | {"training": facts})
    return facts
