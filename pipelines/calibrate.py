"""How far weights are off, measured anew on withheld days and written into their JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import AGAIN, main, out
from stfgan_xr import checkpoint, gate, store, training
from stfgan_xr.cluster import compute_here, cores
from stfgan_xr.errors import NothingToDo
from stfgan_xr.files import as_folder
from stfgan_xr.predictors.methods import open_predictor
from stfgan_xr.simulate import world_of


def command(
    model: Annotated[Path, typer.Argument(help="Weights (.safetensors).")],
    cube: Annotated[list[str], typer.Option(help="Run folder with landsat.zarr and modis.zarr; may be repeated.")],
    truth: Annotated[bool, typer.Option(help="Against the truth of simulated runs.")] = True,
    seed: Annotated[int, typer.Option(help="Of the pixels that are drawn.")] = 0,
) -> None:
    """Calibrate the standard deviation of what weights predict, as pipelines.train does at its end.

    Every fifth acquisition is withheld and predicted. Only the .json file beside the weights changes.
    """
    compute_here(cores())
    predictor = open_predictor(model)
    folders = [as_folder(run) for run in cube]
    cubes = [(store.open_cube(run / "landsat.zarr"), store.open_cube(run / "modis.zarr")) for run in folders]
    worlds = [world_of(run) if truth else None for run in folders]
    truths = [None if world is None else world.reflectance for world in worlds]
    known = gate.calibrate(predictor, training.corpus(cubes, predictor.bands, truths), seed)
    if known is None:
        raise NothingToDo("no withheld acquisition is clear anywhere; give cubes with fewer clouds")
    checkpoint.annotate(model, uncertainty=known.to_config())
    for band, (low, high) in zip(known.bands, known.intervals, strict=True):
        out.print(f"{band}: 68 % of the errors are within {low:.2f} standard deviations, 95 % within {high:.2f}")


if __name__ == "__main__":
    main(command, AGAIN)
