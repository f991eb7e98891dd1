"""What a training run keeps on disk, so that it may be killed at any time: its state, its losses, its best weights.

A state is two files. Each save writes them under a new name, the JSON last, and deletes the ones before only then, so
whenever a run is killed the newest JSON has its tensors. The losses hold one row a step; those of steps after the state
are repeated, so they are cut off.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from stfgan_xr import checkpoint
from stfgan_xr.errors import InputError
from stfgan_xr.files import write_text
from stfgan_xr.learning import Run
from stfgan_xr.predictors.learned import Method, shapes

if TYPE_CHECKING:
    from torch import nn

Tensors = dict[str, npt.NDArray[Any]]
CRITICS = ("critic", "adversarial", "gradient_ratio")


def columns(method: Method) -> tuple[str, ...]:
    """Columns of the losses of a method.

    What is called ``mse`` is in the networks' units (four times reflectance's), ``rmse`` in reflectance.
    """
    judged = [f"{name}_stage{n}" for n in range(1, 1 + len(method.critics(False))) for name in CRITICS]
    return ("step", "learning_rate", "mse_anchor", *method.columns, *judged, "rmse_withheld", "rmse_withheld_anchor")


def weights_of(network: nn.Module) -> Tensors:
    """Weights and statistics of a network, copied: it may be trained on."""
    state = network.state_dict()
    return {name: state[name].detach().cpu().numpy().copy() for name in shapes(network)}


@dataclass
class Best:
    """The averaged network at the check that went best.

    Attributes
    ----------
    rmse
        Of that check; None before the first.
    step
        Steps done by then.
    waited
        Checks since then.
    weights
        As from :func:`weights_of`.
    """

    rmse: float | None = None
    step: int = 0
    waited: int = 0
    weights: Tensors = field(default_factory=dict)

    def see(self, run: Run, rmse: float) -> None:
        """Take note of a check."""
        if self.rmse is None or rmse < self.rmse:
            self.rmse, self.step, self.waited, self.weights = rmse, run.step, 0, weights_of(run.result)
        else:
            self.waited += 1

    @property
    def facts(self) -> dict[str, Any]:
        """All but the weights, for JSON."""
        return {"rmse": self.rmse, "step": self.step, "waited": self.waited}


class Folder:
    """The files of a training run: its state, its losses and the finished checkpoint.

    Parameters
    ----------
    out
        The folder; made when something is written.
    method
        What is trained; the checkpoint has its name.
    identity
        JSON values that must be the same for a run to be gone on with, ``bands`` among them.
    """

    def __init__(self, out: Path, method: Method, identity: Mapping[str, Any]) -> None:
        self.checkpoint = out / f"{method.name}.safetensors"
        self.columns = columns(method)
        self.training = out / "training"
        self.losses = self.training / "losses.csv"
        self.identity = dict(identity)

    def refuse_other(self, identity: Mapping[str, Any]) -> None:
        """Refuse what an earlier run left, if it was another one.

        Raises
        ------
        InputError
            With the names of what differs.
        """
        differing = [name for name, value in self.identity.items() if identity.get(name) != value]
        if differing:
            raise InputError(f"{self.training}: holds a run with another {', '.join(differing)}; choose another --out")

    def resume(self, run: Run, best: Best) -> int | None:
        """Restore a run that was broken off; its total number of steps, or None where there is none.

        Raises
        ------
        InputError
            If the folder holds a run of another recipe, other weights or other cubes, or its state is damaged.
        """
        newest = max(self.training.glob("state*.json"), default=None)  # also those of earlier versions, to refuse them
        if newest is None:
            return None
        config = checkpoint.read_config(newest)
        self.refuse_other(config["identity"])
        tensors = checkpoint.load_tensors(newest)
        run.restore(tensors, config["step"])
        best.rmse, best.step, best.waited = (config["best"][name] for name in ("rmse", "step", "waited"))
        best.weights = {name[5:]: value for name, value in tensors.items() if name.startswith("best.")}
        return int(config["total"])

    def save(self, run: Run, total: int, best: Best) -> None:
        """Keep the state of a run instead of the one before."""
        facts = {"method": "stfgan-training", "bands": self.identity["bands"], "identity": self.identity}
        facts |= {"step": run.step, "total": total, "best": best.facts}
        tensors = run.tensors() | {f"best.{name}": value for name, value in best.weights.items()}
        kept = checkpoint.save(self.training / f"state-{run.step:08d}", tensors, facts)
        # In order of their names the JSON goes before its tensors.
        for path in sorted(self.training.glob("state-*")):
            if path.stem != kept.stem:
                path.unlink()

    def keep_losses(self, before: int) -> None:
        """Forget the losses of step ``before`` and later ones, which are going to be repeated."""
        self.training.mkdir(parents=True, exist_ok=True)
        header = io.StringIO(newline="")
        csv.DictWriter(header, self.columns).writeheader()
        rows = self.losses.read_bytes().decode().splitlines(keepends=True) if self.losses.is_file() else []
        write_text(self.losses, header.getvalue() + "".join(rows[1 : before + 1]))

    def add_losses(self, number: int, losses: Mapping[str, float]) -> None:
        """Append the losses of a step."""
        with self.losses.open("a", newline="") as file:
            values = {name: f"{value:.9g}" for name, value in losses.items()}
            csv.DictWriter(file, self.columns, restval="").writerow({"step": number} | values)
