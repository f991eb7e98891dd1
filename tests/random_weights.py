"""Checkpoints of the learned methods with weights at random."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stfgan_xr import checkpoint
from stfgan_xr.predictors.ganstfm import GANSTFM
from stfgan_xr.predictors.learned import Fusion, Trained
from stfgan_xr.predictors.spstfm import SPSTFM
from stfgan_xr.predictors.stfdcnn import STFDCNN
from stfgan_xr.predictors.stfnet import StfNet
from stfgan_xr.state import weights_of

BANDS = ("red", "nir")
KINDS: dict[str, tuple[type[Fusion], int]] = {
    "spstfm": (SPSTFM, 24), "stfdcnn": (STFDCNN, 6), "stfnet": (StfNet, 6), "ganstfm": (GANSTFM, 2),
}  # fmt: skip


def random_weights(folder: Path, name: str, ratio: int = 16, bands: tuple[str, ...] = BANDS) -> Path:
    """Weights that do something everywhere."""
    kind, width = KINDS[name]
    torch.manual_seed(1)
    method = Trained(kind, bands, width, ratio)
    network = method.network()
    for part in network.modules():
        if isinstance(part, nn.Conv2d) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)
            assert part.bias is not None
            nn.init.normal_(part.bias, std=0.01)
    return checkpoint.save(folder / f"{name}-{ratio}", weights_of(network), method.to_config())
