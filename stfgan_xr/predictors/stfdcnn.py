"""STFDCNN (Song et al. 2018, doi 10.1109/TGRS.2017.2732003): two convolutional networks in a row, each followed by a
weighting.

The first maps the coarse image to the fine one averaged over 4 x 4 pixels, the second that to the fine one; each adds
to its interpolated input. What either says of the target day is its change since and until the observations, added to
these, the smaller change counting more, pixel by pixel and band by band.

Both are trained side by side, on the observations before and after a day and, the first, on the day itself; the last
layers start at nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stfgan_xr.predictors.learned import Fusion, Sides, Term, later, masked_mse
from stfgan_xr.predictors.networks import SCALE, crop
from stfgan_xr.predictors.pairs import Batch, Pair, Targets, average, usable
from stfgan_xr.predictors.resample import upsample

REACH = 8
"""Pixels around one that a network sees: 9 x 9, 5 x 5 and 5 x 5."""
MIDDLE = REACH // SCALE + 1
"""Averaged pixels beyond the block that the second network's input is interpolated from."""


class Mapping(nn.Module):
    """Three layers that add to their input."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(bands, width, 9), nn.ReLU(inplace=True),
            nn.Conv2d(width, width // 2, 5), nn.ReLU(inplace=True),
            last_layer(width // 2, bands),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """``(n, b, h, v)`` to ``(n, b, h - 16, v - 16)``, reflectance."""
        return crop(image, REACH) + self.layers(image * 2 - 1)  # type: ignore[no-any-return]


def last_layer(channels: int, bands: int) -> nn.Conv2d:
    """A 5 x 5 layer that starts at nothing."""
    layer = nn.Conv2d(channels, bands, 5)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class Started:
    """What is the same on every day of an interval.

    Attributes
    ----------
    averages, mapped
        ``(n, 2b, ...)`` fine images averaged and what the first network makes of the coarse ones, before and after,
        with :data:`MIDDLE` averaged pixels on every side.
    resolved
        ``(n, 2b, y, x)`` what the second network makes of the averages.
    """

    pair: Pair
    averages: Tensor
    mapped: Tensor
    resolved: Tensor


def weigh(image: Tensor, known: Tensor, start: Tensor) -> Sides:
    """The change to an image since and until two others, added to what is known of these days.

    Parameters
    ----------
    image
        ``(n, b, h, v)`` of the target day, from a network.
    known
        ``(n, 2b, h, v)`` observed before and after.
    start
        ``(n, 2b, h, v)`` of their days, from the network.
    """
    changes = [image - other for other in start.chunk(2, dim=1)]
    before, after = (seen + change for seen, change in zip(known.chunk(2, dim=1), changes, strict=True))
    return Sides(before, after, later(*(change.abs() for change in changes)))


class STFDCNN(Fusion):
    """The networks of STFDCNN; 87,206 parameters each for six bands."""

    method, columns, usual, unit = "stfdcnn", ("mse_stage1", "mse_stage2"), 64, SCALE
    fine_reach = SCALE * MIDDLE
    coarse_reach = SCALE * (MIDDLE + REACH)

    def __init__(self, bands: int, width: int) -> None:
        super().__init__(bands, width)
        self.mapping, self.resolving = Mapping(bands, width), Mapping(bands, width)

    @property
    def floats(self) -> tuple[int, int]:
        """The networks' results, and the widest layer."""
        return 4 * self.bands, 2 * self.width

    def _map(self, pair: Pair, coarse: Tensor) -> Tensor:
        """What the first network makes of a coarse image ``(n, b, cy, cx)``."""
        return self.mapping(pair.up(coarse, self.coarse_reach, SCALE))  # type: ignore[no-any-return]

    def _resolve(self, pair: Pair, averages: Tensor) -> Tensor:
        """What the second network makes of averages ``(n, b, ...)``."""
        rows, columns = (side + 2 * REACH for side in pair.shape)
        start = (-REACH, -REACH)
        return self.resolving(upsample(averages, (rows, columns), ratio=SCALE, halo=MIDDLE, start=start))  # type: ignore[no-any-return]

    def start(self, pair: Pair) -> Started:
        """Both networks on the days of the observations."""
        averages = average(pair.cut(self.fine_reach), SCALE)
        mapped = [self._map(pair, coarse) for coarse in (pair.coarse_before, pair.coarse_after)]
        resolved = [self._resolve(pair, image) for image in averages.chunk(2, dim=1)]
        return Started(pair, averages, torch.cat(mapped, dim=1), torch.cat(resolved, dim=1))

    def sides(self, started: Started, targets: Targets) -> Sides:
        """Both networks on target days."""
        pair = started.pair
        middle = weigh(self._map(pair, targets.coarse), started.averages, started.mapped).image
        return weigh(self._resolve(pair, middle), pair.cut(0), started.resolved)

    def terms(self, batch: Batch, number: int) -> list[Term]:
        """Errors of the first network on all three days and of the second on those of the observations."""
        started = self.start(batch.pair)
        before, after = started.averages.chunk(2, dim=1)
        truth = torch.cat([crop(before, MIDDLE), average(batch.target, SCALE), crop(after, MIDDLE)], dim=1)
        of_before, of_after = started.mapped.chunk(2, dim=1)
        mapped = torch.cat([of_before, self._map(batch.pair, batch.targets.coarse), of_after], dim=1)
        whole = usable(batch.clear, SCALE)
        return [
            Term("mse_stage1", masked_mse(crop(mapped, MIDDLE), truth, whole.repeat(1, 3, 1, 1))),
            Term("mse_stage2", masked_mse(started.resolved, batch.pair.cut(0), batch.clear.repeat(1, 2, 1, 1))),
        ]
