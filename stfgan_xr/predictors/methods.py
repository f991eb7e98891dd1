"""The methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stfgan_xr import checkpoint
from stfgan_xr.errors import InputError
from stfgan_xr.grid import RATIO
from stfgan_xr.predictors import Predictor
from stfgan_xr.predictors.efast import EFAST
from stfgan_xr.predictors.estarfm import ESTARFM
from stfgan_xr.predictors.fitfc import FitFC
from stfgan_xr.predictors.fsdaf import FSDAF
from stfgan_xr.predictors.ganstfm import GANSTFM
from stfgan_xr.predictors.learned import Fusion, Method, Trained, open_weights
from stfgan_xr.predictors.objective import TrainedSTFGAN
from stfgan_xr.predictors.progress import Progress
from stfgan_xr.predictors.robot import ROBOT
from stfgan_xr.predictors.simple import Delta, Linear, Persistence
from stfgan_xr.predictors.spstfm import SPSTFM
from stfgan_xr.predictors.stages import METHOD as STFGAN
from stfgan_xr.predictors.stages import Architecture
from stfgan_xr.predictors.starfm import STARFM
from stfgan_xr.predictors.stfdcnn import STFDCNN
from stfgan_xr.predictors.stfgan import load
from stfgan_xr.predictors.stfnet import StfNet

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
_FUSIONS: dict[str, type[Fusion]] = {kind.method: kind for kind in (SPSTFM, STFDCNN, StfNet, GANSTFM)}
USUAL = ("stfgan", "progress", "persistence", "linear", "delta")
"""Methods that are compared if none is named."""
TRAINED = (STFGAN, *_FUSIONS)
"""Methods that have weights."""
METHODS = tuple(dict.fromkeys((*USUAL, *_SIMPLE, *_OF_RATIO, *_FUSIONS)))
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
    if method in METHODS and method not in TRAINED and model is not None:
        raise InputError(f"--model: {method} has no weights; leave it out")
    if method in _SIMPLE:
        simple: Predictor = _SIMPLE[method](tuple(bands))
        return simple
    if method in _OF_RATIO:
        return _OF_RATIO[method](tuple(bands), RATIO if ratio is None else ratio)
    if method == STFGAN:
        return load(model, tuple(bands), ratio)
    if method in _FUSIONS:
        return open_weights(_FUSIONS[method], model, bands, ratio)
    raise InputError(f"--method {method!r} is unknown; choose one of {', '.join(METHODS)}")


def trainable(method: str, bands: Sequence[str], ratio: int, stated: Mapping[str, Any]) -> Method:
    """A method to be trained for some bands.

    Parameters
    ----------
    method
        One of :data:`TRAINED`.
    ratio
        Fine pixels along a coarse cell.
    stated
        ``width``, and of STFGAN ``schedule`` and ``anchor``, where they are not the usual ones.

    Raises
    ------
    InputError
        If the method has no weights, or not what is stated.

    >>> trainable("stfnet", ["red", "nir"], 16, {}).to_config()
    {'method': 'stfnet', 'bands': ['red', 'nir'], 'width': 32, 'ratio': 16}
    """
    if method == STFGAN:
        return TrainedSTFGAN(Architecture(tuple(bands), ratio=ratio, **stated))
    kind = _fusion(method)
    others = sorted(stated.keys() - {"width"})
    if others:
        raise InputError(f"--{others[0]}: {method} has none; leave it out")
    return Trained(kind, tuple(bands), stated.get("width", kind.usual), ratio)


def method_of(method: str, config: Mapping[str, Any]) -> Method:
    """The method of a checkpoint's JSON side.

    Raises
    ------
    InputError
        If it is one of another method.
    """
    if method == STFGAN:
        return TrainedSTFGAN(Architecture.from_config(config))
    return Trained.from_config(_fusion(method), config)


def open_predictor(model: str | Path, bands: Sequence[str] | None = None, ratio: int | None = None) -> Predictor:
    """The predictor of a checkpoint of any method, by default for all of its bands.

    Raises
    ------
    InputError
        If the checkpoint cannot be read, or is of other bands.
    """
    config = checkpoint.read_config(model)
    return make(config["method"], bands or config["bands"], model, ratio)


def _fusion(method: str) -> type[Fusion]:
    if method not in _FUSIONS:
        raise InputError(f"--method {method!r} has no weights to train; choose one of {', '.join(TRAINED)}")
    return _FUSIONS[method]
