"""The methods by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stfgan_xr.errors import InputError
from stfgan_xr.grid import RATIO
from stfgan_xr.predictors import Predictor
from stfgan_xr.predictors.efast import EFAST
from stfgan_xr.predictors.estarfm import ESTARFM
from stfgan_xr.predictors.fitfc import FitFC
from stfgan_xr.predictors.fsdaf import FSDAF
from stfgan_xr.predictors.progress import Progress
from stfgan_xr.predictors.robot import ROBOT
from stfgan_xr.predictors.simple import Delta, Linear, Persistence
from stfgan_xr.predictors.starfm import STARFM

_SIMPLE: dict[str, Callable[..., Predictor]] = {
    "persistence": Persistence,
    "linear": Linear,
    "delta": Delta,
    "efast": EFAST,
}
_OF_RATIO: dict[str, Callable[..., Predictor]] = {
    "progress": Progress,
    "starfm": STARFM,
    "estarfm": ESTARFM,
    "fitfc": FitFC,
    "fsdaf": FSDAF,
    "robot": ROBOT,
}
USUAL = ("stfgan", "progress", "persistence", "linear", "delta")
"""Methods that are compared if none is named."""
METHODS = tuple(dict.fromkeys((*USUAL, *_SIMPLE, *_OF_RATIO)))
"""Names of the methods, the default first."""


def make(method: str, bands: Sequence[str], model: str | Path | None = None, ratio: int | None = None) -> Predictor:
    """The predictor of a method for some bands.

    Parameters
    ----------
    method
        One of :data:`METHODS`.
    bands
        Names of the bands, in the order of the cubes.
    model
        Checkpoint of a trained method; by default the weights that come with the package.
    ratio
        Fine pixels along a coarse cell of the data; by default what the weights were trained for.

    Raises
    ------
    InputError
        If the method is unknown, the model cannot be read or was trained for other bands.

    >>> make("delta", ["red", "nir"]).bands
    ('red', 'nir')
    """
    if method != "stfgan" and method in METHODS and model is not None:
        raise InputError(f"--model: {method} has no weights; leave it out")
    if method in _SIMPLE:
        simple: Predictor = _SIMPLE[method](tuple(bands))
        return simple
    if method in _OF_RATIO:
        return _OF_RATIO[method](tuple(bands), RATIO if ratio is None else ratio)
    if method == "stfgan":
        from stfgan_xr.predictors.stfgan import load

        return load(model, tuple(bands), ratio)
    raise InputError(f"--method {method!r} is unknown; choose one of {', '.join(METHODS)}")
