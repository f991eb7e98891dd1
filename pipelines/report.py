"""What a report of scores states beside them: protocol, digests, versions and the command line."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr

from stfgan_xr import changes, evaluation, reporting, store
from stfgan_xr.files import Folder
from stfgan_xr.grid import ratio_of

if TYPE_CHECKING:
    from stfgan_xr.landscape import World
    from stfgan_xr.predictors import Predictor

TRUTH_DAYS = 12
"""Days of a fused cube that are looked at, spread over it."""


def _truth_protocol(request: Mapping[str, Any], world: World) -> tuple[str, ...]:
    observed = (
        "a clear observation of the day itself is the product there"
        if request["keep_observed"]
        else "an observation of the day itself goes through the method like any other"
    )
    return (
        "A day is predicted from the coarse series of all days and, in each pixel, from its latest clear fine "
        f"observation up to that day and its earliest after, at most {request['bracket_days']} days away; {observed}.",
        f"The reference is the truth of a simulated world (seed {world.seed}, {world.shape[0]} x {world.shape[1]} "
        f"pixels, {world.start} to {world.last}, cloudiness {world.cloudiness}, noise {world.noise}).",
        "As before and after are named the nearest other acquisitions that are clear over "
        f"{evaluation.LEAST_CLEAR:.0%} of the image or more: the classes of change compare the truth of these days.",
    )


def facts(
    run: Folder | None,
    cubes: tuple[xr.Dataset, xr.Dataset],
    predictors: Mapping[str, Predictor],
    table: evaluation.Table,
    world: World | None,
) -> reporting.Facts:
    """The facts of a table of scores.

    Parameters
    ----------
    run
        The run folder, if there is one; seams are looked for in its fused cube.
    cubes
        Fine and coarse series that the methods were given.
    predictors
        The methods; those with weights know their SHA-256.
    table
        The scores.
    world
        The simulated world whose truth is the reference, None for cases of observations.
    """
    landsat, modis = cubes
    named, seams = {"landsat": landsat, "modis": modis}, dict[str, float]()
    request = json.loads(run.read("run.json") or b"{}").get("request", {}) if run is not None else {}
    if run is not None and store.is_complete(run / "fused.zarr"):
        named["fused"] = fused = store.open_cube(run / "fused.zarr")
        days = evaluation.spread(evaluation.fused_days(fused), TRUTH_DAYS)
        seams = evaluation.seams(request["method"], fused, landsat, days)
    weights = {name: getattr(predictor, "sha256", None) for name, predictor in predictors.items()}
    return reporting.Facts(
        command=shlex.join(["python", "-m", "pipelines.evaluate", *sys.argv[1:]]),
        protocol=(*(reporting.TRIPLETS if world is None else _truth_protocol(request, world)), reporting.TRAINED),
        cases=reporting.cases(
            table, evaluation.fused_days(landsat) if world is None else evaluation.usable_days(landsat)
        ),
        classes=changes.OBSERVED if world is None else evaluation.PREDICTED | changes.TRUTH,
        ratio=ratio_of(landsat.odc.geobox, modis.odc.geobox),
        cubes={name: reporting.digest(cube) for name, cube in named.items()},
        weights={name: sha256 for name, sha256 in weights.items() if sha256},
        seams=seams,
    )
