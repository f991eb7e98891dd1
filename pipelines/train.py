"""Train STFGAN or another method with weights on your own cubes, own rasters or simulated worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import xarray as xr

from pipelines.console import Steps, main, one_of, out
from stfgan_xr import store, training
from stfgan_xr.benchmarks import NAMES as SETS
from stfgan_xr.benchmarks import Benchmark, read_benchmark
from stfgan_xr.cluster import compute_here, cores
from stfgan_xr.errors import InputError
from stfgan_xr.files import LocalFolder, as_folder
from stfgan_xr.landscape import Truth
from stfgan_xr.learning import GANS
from stfgan_xr.lease import held
from stfgan_xr.plots import loss_curves
from stfgan_xr.predictors.methods import TRAINED
from stfgan_xr.predictors.stages import ANCHORS, SCHEDULES, AnchorName, Schedule
from stfgan_xr.predictors.stages import METHOD as STFGAN
from stfgan_xr.simulate import world_of

Cubes = tuple[xr.Dataset, xr.Dataset]


def _cubes(
    runs: list[str] | None, pairs: Path | None, benchmark: Benchmark | None, truth: bool
) -> tuple[list[Cubes], list[Truth | None]]:
    """The cubes to train on, and the truth of those that are simulated."""
    if bool(runs) + (pairs is not None) + (benchmark is not None) != 1:
        raise InputError("name run folders with --cube, own rasters with --pairs, or a --benchmark; one of them")
    if benchmark is not None:
        return [benchmark.training()], [None]
    if pairs is not None:
        from stfgan_xr.datasets import read_pairs

        found = read_pairs(pairs)
        return [(found.landsat(), found.modis())], [None]
    folders = [as_folder(run) for run in runs or []]
    cubes = [(store.open_cube(run / "landsat.zarr"), store.open_cube(run / "modis.zarr")) for run in folders]
    worlds = [world_of(run) if truth else None for run in folders]
    return cubes, [None if world is None else world.reflectance for world in worlds]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InputError(f"--{name} {value!r} is unknown; choose one of {', '.join(known)}")
    return value


FROM, NETWORK, TRAINING, RESULT = "What to learn from", "Network", "Training", "Result"
"""Panels of --help."""


def command(
    cube: Annotated[
        list[str] | None,
        typer.Option(help="Run folder with landsat.zarr and modis.zarr; may be repeated.", rich_help_panel=FROM),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="pairs.toml of own rasters, instead of run folders.", rich_help_panel=FROM)
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help=f"Public set instead of run folders: {', '.join(SETS)}.", rich_help_panel=FROM)
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the benchmark set.", rich_help_panel=FROM)] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of the benchmark: no day inside one of its test cases is trained on.", rich_help_panel=FROM),
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"One of {', '.join(TRAINED)}.", autocompletion=one_of(TRAINED), rich_help_panel=NETWORK)
    ] = TRAINED[0],
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for the weights and the run's state.", rich_help_panel=RESULT)
    ] = Path("weights"),
    bands: Annotated[
        str | None, typer.Option(help="Comma list of bands. Default: all of the cubes.", rich_help_panel=FROM)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Weights to start from (.safetensors), or shipped; the architecture is theirs.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=512,
            help="Channels inside the networks; spstfm: atoms. Default: the publication's.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help=f"Of stfgan: one of {', '.join(SCHEDULES)}. Default: same-grid.", rich_help_panel=NETWORK),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            help="What stfgan corrects: progress (default) or delta; none: the paper's form.", rich_help_panel=NETWORK
        ),
    ] = None,
    gan: Annotated[
        str | None,
        typer.Option(
            help=f"Adversarial part: one of {', '.join(GANS)}. Default: wgan-clip of stfgan, lsgan of ganstfm; the "
            "others have none.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps, unless --minutes is given. Default: 20000, spstfm: 2000.", rich_help_panel=TRAINING
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="As many steps as fit this time, measured at the start.", rich_help_panel=TRAINING),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Patches in a step.", rich_help_panel=TRAINING)] = 16,
    patch: Annotated[int, typer.Option(min=16, help="Fine pixels along a patch.", rich_help_panel=TRAINING)] = 256,
    margin: Annotated[
        int,
        typer.Option(
            min=0,
            help="Fine pixels around a patch that stfgan sees; the others see all they can.",
            rich_help_panel=TRAINING,
        ),
    ] = 16,
    samples: Annotated[int, typer.Option(min=1, help="Regions held in memory.", rich_help_panel=TRAINING)] = 400,
    region: Annotated[int, typer.Option(min=16, help="Fine pixels along a region.", rich_help_panel=TRAINING)] = 512,
    optimiser: Annotated[
        str | None,
        typer.Option(help="rmsprop or adam. Default: rmsprop of stfgan, adam of the others.", rich_help_panel=TRAINING),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Greatest learning rate. Default: 1e-4, ganstfm: 2e-4, spstfm: 1e-3.", rich_help_panel=TRAINING
        ),
    ] = None,
    decay: Annotated[
        str, typer.Option(help="Of the learning rate: step (the paper's) or cosine.", rich_help_panel=TRAINING)
    ] = "step",
    shortest: Annotated[
        int, typer.Option(min=2, help="Least days between the acquisitions around a target.", rich_help_panel=TRAINING)
    ] = 2,
    longest: Annotated[int, typer.Option(min=2, help="Greatest days between them.", rich_help_panel=TRAINING)] = 96,
    distorted: Annotated[
        bool, typer.Option(help="Distort samples at random, so that weights hold elsewhere.", rich_help_panel=TRAINING)
    ] = True,
    subsets: Annotated[
        bool, typer.Option("--subsets", help="Make weights that work on any of the bands.", rich_help_panel=TRAINING)
    ] = False,
    truth: Annotated[
        bool, typer.Option(help="Train towards the truth of simulated runs.", rich_help_panel=FROM)
    ] = True,
    trust: Annotated[
        float,
        typer.Option(
            help="Part of what is corrected from day to day that counts in the end: less than 1 for weights that are "
            "to work on other land than they learnt from.",
            rich_help_panel=TRAINING,
        ),
    ] = 1.0,
    patience: Annotated[
        int,
        typer.Option(
            min=0,
            help=f"End after so many of the {training.SAVES} checks without gain, and keep the "
            "weights of the best one. 0: never.",
            rich_help_panel=TRAINING,
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=TRAINING)] = 0,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16.", rich_help_panel=RESULT)] = False,
) -> None:
    """Train a method; the same command again resumes, with the losses of an unbroken run.

    For example `python -m pipelines.train --cube run --from shipped --minutes 30 --out weights` trains the shipped
    weights on with the imagery of a run.

    Every fifth acquisition is withheld and never trained on. Twenty times on the way the weights are checked on patches
    of those days, and at the end they and the simple methods are compared on them. The folder holds METHOD.safetensors,
    METHOD.json, and training/ with the state, losses.csv and losses.png. Use the weights with
    pipelines.fuse --method METHOD --model OUT/METHOD.safetensors.
    """
    LocalFolder(out_folder).check()
    _one_of("method", method, TRAINED)
    _one_of("schedule", schedule or SCHEDULES[0], SCHEDULES)
    _one_of("anchor", anchor or ANCHORS[0], ANCHORS)
    _one_of("gan", gan or GANS[0], GANS)
    _one_of("optimiser", optimiser or "adam", ("rmsprop", "adam"))
    _one_of("decay", decay, ("step", "cosine"))
    own: dict[str, Any] = {"gan": gan, "steps": steps, "optimiser": optimiser, "learning_rate": learning_rate}
    recipe = replace(
        training.RECIPES[method], minutes=minutes, batch=batch, patch=patch, margin=margin, samples=samples,
        region=region, decay=cast(Any, decay), span=(shortest, longest), distorted=distorted, subsets=subsets,
        patience=patience, trust=trust, seed=seed, **{name: value for name, value in own.items() if value is not None},
    )  # fmt: skip
    names = tuple(part.strip() for part in bands.split(",")) if bands else None
    chosen = read_benchmark(benchmark, root, split) if benchmark or root or split else None
    cubes, truths = _cubes(cube, pairs, chosen, truth)
    compute_here(cores())
    with held(LocalFolder(out_folder)):
        with Steps("training", of_anchor=method == STFGAN) as shown:
            facts = training.train(
                cubes, out_folder, recipe, method=method, weights=weights, truths=truths, bands=names, width=width,
                schedule=cast(Schedule | None, schedule), anchor=cast(AnchorName | None, anchor), half=half,
                progress=shown,
            )  # fmt: skip
        loss_curves(out_folder / "training" / "losses.csv", out_folder / "training" / "losses.png")
    _report(out_folder / f"{method}.safetensors", facts)


def _report(weights: Path, facts: Mapping[str, Any]) -> None:
    found = facts["withheld"]
    scores = ", ".join(f"{name} {value:.4f}" for name, value in found["rmse"].items())
    out.print(f"done: {weights} after {facts['steps']} steps")
    out.print(f"RMSE on the withheld days ({found['blocks']} blocks): {scores}")
    out.print(f"use them with  python -m pipelines.fuse --method {weights.stem} --model {weights} ...")


if __name__ == "__main__":
    main(command)
