"""StfNet (Liu et al. 2019, doi 10.1109/TGRS.2019.2907310): two streams predict the fine change since the observation
before and until the one after, from the coarse change and that observation.

Trained to both changes and to their sum, which both observations tell. The two predictions are weighted by the coarse
changes that they rest on, the smaller counting more. The last layers start at nothing. An observation's share of the
first layer, which is linear, is computed once an interval.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from stfgan_xr.predictors.learned import Fusion, Sides, Term, later_by_cells, masked_mse
from stfgan_xr.predictors.pairs import Batch, Pair, Targets
from stfgan_xr.predictors.stfdcnn import REACH, last_layer

GAIN = 10.0
"""Of coarse changes before the networks: reflectance differs by hundredths from day to day, by tenths within images."""


class Stream(nn.Module):
    """Three layers, from a coarse change and a fine image to a fine change."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.bands = bands
        self.conv1 = nn.Conv2d(2 * bands, width, 9)
        self.conv2 = nn.Conv2d(width, width // 2, 5)
        self.conv3 = last_layer(width // 2, bands)

    def share(self, fine: Tensor) -> Tensor:
        """The part of the first layer that sees the fine image ``(n, b, h, v)``."""
        return functional.conv2d(fine * 2 - 1, self.conv1.weight[:, self.bands :], self.conv1.bias)

    def forward(self, change: Tensor, shared: Tensor) -> Tensor:
        """The fine change ``(n, b, h - 16, v - 16)`` from the coarse one ``(n, b, h, v)``."""
        first = functional.conv2d(change * GAIN, self.conv1.weight[:, : self.bands]) + shared
        inner = functional.relu(self.conv2(functional.relu(first, inplace=True)), inplace=True)
        return self.conv3(inner)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Started:
    """A pair, and each stream's part of the first layer ``(n, w, ...)``."""

    pair: Pair
    shared_before: Tensor
    shared_after: Tensor


class StfNet(Fusion):
    """The networks of StfNet; 92,716 parameters for six bands."""

    method, columns, usual = "stfnet", ("mse_before", "mse_after", "mse_whole"), 32
    fine_reach = coarse_reach = REACH

    def __init__(self, bands: int, width: int) -> None:
        super().__init__(bands, width)
        self.before, self.after = Stream(bands, width), Stream(bands, width)

    @property
    def floats(self) -> tuple[int, int]:
        """The shared parts, and two wide layers."""
        return 2 * self.width, 3 * self.width

    def start(self, pair: Pair) -> Started:
        """What the observations add to the first layers."""
        before, after = pair.cut(REACH).chunk(2, dim=1)
        return Started(pair, self.before.share(before), self.after.share(after))

    def changes(self, started: Started, targets: Targets) -> tuple[Tensor, Tensor]:
        """Fine changes ``(n, b, y, x)`` from the observation before to the day, and from the day to the one after."""
        pair, coarse = started.pair, targets.coarse
        return (
            self.before(pair.up(coarse - pair.coarse_before, REACH), started.shared_before),
            self.after(pair.up(pair.coarse_after - coarse, REACH), started.shared_after),
        )

    def sides(self, started: Started, targets: Targets) -> Sides:
        """Each observation and its change."""
        before, after = started.pair.cut(0).chunk(2, dim=1)
        since, until = self.changes(started, targets)
        return Sides(before + since, after - until, later_by_cells(started.pair, targets.coarse))

    def terms(self, batch: Batch, number: int) -> list[Term]:
        """Errors of both changes and of their sum."""
        since, until = self.changes(self.start(batch.pair), batch.targets)
        before, after = batch.pair.cut(0).chunk(2, dim=1)
        return [
            Term("mse_before", masked_mse(since, batch.target - before, batch.clear)),
            Term("mse_after", masked_mse(until, after - batch.target, batch.clear)),
            Term("mse_whole", masked_mse(since + until, after - before, batch.clear)),
        ]
