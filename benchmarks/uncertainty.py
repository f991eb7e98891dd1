"""Whether the standard deviations of predictions hold on simulated worlds that they were not calibrated on.

``python -m benchmarks.uncertainty --judge RUN...`` judges the weights that come with the package as they are, with
``--calibrate RUN...`` calibrated on these runs first, which other methods need. Runs are those of ``pipelines.cubes``
on demo worlds. Every fifth acquisition is left out of the runs that are judged; intervals, and the errors of the surest
and the least sure fifth of the pixels of each image, are judged against the truth where a pixel is predicted: on the
days left out, and on days spread over all.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from rich.table import Table

from pipelines.console import main, out
from stfgan_xr import evaluation, gate, samples, store, training
from stfgan_xr.brackets import band_names
from stfgan_xr.days import to_datetime64, to_number
from stfgan_xr.errors import InputError
from stfgan_xr.files import as_folder
from stfgan_xr.fusion import fuse
from stfgan_xr.landscape import World
from stfgan_xr.predictors import Predictor
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.uncertainty import Calibrated, calibrated
from stfgan_xr.simulate import world_of

RESULTS = Path(__file__).parent / "results" / "uncertainty.json"
SPREAD = 16
SCORES = ("rmse", "coverage_68", "coverage_95", "rmse_surest", "rmse_least_sure")


def opened(run: str) -> tuple[xr.Dataset, xr.Dataset, World]:
    """The fine and coarse cube of a run, and the world it was made from."""
    folder = as_folder(run)
    world = world_of(folder)
    if world is None:
        raise InputError(f"{run}: not a run of a simulated world")
    return store.open_cube(folder / "landsat.zarr"), store.open_cube(folder / "modis.zarr"), world


def judge(predictor: Predictor, run: str) -> dict[str, evaluation.Result]:
    """Scores of a run on the days left out, and on days spread over all."""
    landsat, modis, world = opened(run)
    acquired = evaluation.fused_days(landsat)
    numbers = samples.withhold([to_number(day) for day in acquired])
    withheld = [day for day in acquired if to_number(day) in numbers]
    seen = landsat.sel(time=to_datetime64([day for day in acquired if day not in withheld]))
    groups = {"withheld": withheld, "all": list(evaluation.spread(evaluation.fused_days(modis), SPREAD))}
    return {name: _scored(predictor, seen, modis, world, days) for name, days in groups.items()}


def _scored(
    predictor: Predictor, seen: xr.Dataset, modis: xr.Dataset, world: World, days: list[date]
) -> evaluation.Result:
    fused = fuse(seen, modis, predictor, days, uncertainty=True).compute()
    found = evaluation.evaluate_truth({"method": fused}, world.reflectance, days)["method"]
    # Images that are all observed or missing have nothing to judge.
    rows = [row for row in found.rows if row.classes["predicted"].pixels >= 1000]
    return replace(found, rows=tuple(rows))


def _means(found: list[evaluation.Result], bands: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Means over images, each weighted by its predicted pixels, of each band and of all."""
    parts = [row.classes["predicted"] for result in found for row in result.rows]
    weights = [part.pixels for part in parts]
    means = {
        band: {name: float(np.average([p.by_band[name][at] for p in parts], weights=weights)) for name in SCORES}
        for at, band in enumerate(bands)
    }
    return means | {"all": {name: float(np.mean([means[band][name] for band in bands])) for name in SCORES}}


def _draw(title: str, found: dict[str, dict[str, float]]) -> Table:
    drawn = Table(title=title, title_justify="left")
    for name in ("", *SCORES):
        drawn.add_column(name, justify="left" if not name else "right")
    for part, means in found.items():
        drawn.add_row(part, *(f"{means[name]:.4f}" for name in SCORES))
    return drawn


def command(
    judged: Annotated[list[str], typer.Option("--judge", help="Run to judge on; may be repeated.")],
    calibrate: Annotated[list[str] | None, typer.Option(help="Run to calibrate on; may be repeated.")] = None,
    method: Annotated[str, typer.Option(help="Method.")] = "stfgan",
    model: Annotated[Path | None, typer.Option(help="Weights of stfgan. Default: those of the package.")] = None,
) -> None:
    """Judge predicted standard deviations and write benchmarks/results/uncertainty.json."""
    landsat, modis, _ = opened(judged[0])
    bands = band_names(landsat)
    predictor: Predictor = make(method, bands, model, landsat.sizes["y"] // modis.sizes["y"])
    if calibrate:
        found = [opened(run) for run in calibrate]
        places = training.corpus([(f, c) for f, c, _ in found], bands, [world.reflectance for *_, world in found])
        known = gate.calibrate(predictor, places)
        if known is None:
            raise InputError("nothing to calibrate on")
        predictor = Calibrated(predictor, known)
    results = {Path(run).name: judge(predictor, run) for run in judged}
    groups = {
        f"{group} days": _means([found[group] for found in results.values()], bands) for group in ("withheld", "all")
    }
    of_runs = {run: _means([found["withheld"]], bands)["all"] for run, found in results.items()}
    for title, means in (groups | {"withheld days of each run": of_runs}).items():
        out.print(_draw(f"{method}: {title}", means))
    document: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    document[method] = {
        "uncertainty": calibrated(predictor).uncertainty.to_config(),
        "calibrated_on": [Path(run).name for run in calibrate or []],
        **groups,
        "runs": of_runs,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(command)
