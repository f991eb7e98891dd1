"""The weights that come with the package, on land that they have not seen, for all their bands and for some."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from stfgan_xr import checkpoint, evaluation, fusion, simulate, store
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.uncertainty import calibrated
from stfgan_xr.sensors import BANDS

DAYS = [date(2020, 3, 1) + timedelta(days=number) for number in range(8)]


@pytest.mark.parametrize("bands", [BANDS, BANDS[:4], ("nir",)])
def test_they_beat_linear_and_delta(demo_world: Path, finished: Path, bands: tuple[str, ...]) -> None:
    landsat, modis = (store.open_cube(finished / f"{name}.zarr") for name in ("landsat", "modis"))
    methods = ("linear", "delta", "stfgan")
    fused = {name: fusion.fuse(landsat, modis, make(name, bands), DAYS).compute() for name in methods}
    table = evaluation.evaluate_truth(fused, simulate.read_world(demo_world).reflectance, DAYS)
    skills = [row.scores.skill for row in table["stfgan"].rows]
    assert np.mean([skill for skill in skills if skill is not None]) > 0.05


def test_the_card_says_what_they_were_made_of() -> None:
    config = checkpoint.read_config(checkpoint.shipped())
    assert config["subsets"] is True
    assert config["training"]["withheld"]["skill"] > 0
    assert set(calibrated(make("stfgan", BANDS)).bands) == set(BANDS)
    assert sum(file.stat().st_size for file in checkpoint.shipped().parent.iterdir()) < 12e6
