"""A training run as a process of its own, to be killed: ``python -m tests.training_run OUT [STEP EVENT]``.

With ``STEP`` and ``EVENT`` it kills itself (SIGKILL): after that step, before it opens, renames or removes one of the
files of its state or checkpoint for the ``EVENT``-th time.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stfgan_xr import training
from tests.synthetic import Scene
from tests.test_training import ACQUIRED, RECIPE

LONG = replace(RECIPE, steps=40, gan="wgan-clip", warm_up=0.1, patience=99)


class Killer:
    """Counts what is done to files once it is armed, and kills its process."""

    def __init__(self, step: int, event: int) -> None:
        self.step, self.left, self.armed = step, event, False
        sys.addaudithook(self.hook)

    def shown(self, number: int, *_: Any) -> None:
        self.armed = number >= self.step

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event in ("open", "os.rename", "os.remove"):
            name = str(arguments[0]).rpartition("/")[2]
            self.left -= "state-" in name or "stfgan." in name
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def main(out: str, step: str | None = None, event: str | None = None) -> None:
    torch.set_num_threads(1)
    scene = Scene(64, 64, acquired=ACQUIRED, cloud=0.15, gap=0.05)
    shown = Killer(int(step), int(event)).shown if step and event else None
    training.train([(scene.landsat, scene.modis)], Path(out), LONG, width=4, progress=shown)


if __name__ == "__main__":
    main(*sys.argv[1:])
