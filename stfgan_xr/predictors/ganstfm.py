"""GAN-STFM (Tan et al. 2021, doi 10.1109/TGRS.2021.3050551): the fine image of a day from its coarse image and
the fine image of another day, judged by critics at several scales.

Of both images a stream of residual blocks finds features, from which residual blocks make the prediction. The loss
holds the squared difference of features, one minus the cosine of spectra, one minus the multi-scale structural
similarity, and the critics' least squares; each critic sees an image beside the coarse one.

Ours differs in this. **No switchable normalisation**: it takes statistics over the image that it is given, so that
every tile would be normalised by its own and edges would show; the blocks have no normalisation at all, and tiles give
the whole image. The features of the loss are those of the network's own fine stream, not of an autoencoder trained
before. The prediction is what is added to the fine image (nothing before training). The fine image is, pixel by pixel,
the observation nearest in time, of two equally near the earlier; both are encoded once an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from stfgan_xr.predictors.learned import Fusion, Sides, Term
from stfgan_xr.predictors.networks import crop
from stfgan_xr.predictors.pairs import Batch, Pair, Targets

BLOCKS = 4
"""Residual blocks of a stream, and as many after the streams."""
REACH = 2 * 2 * BLOCKS
"""Pixels around one that are seen: two 3 x 3 layers a block."""
SCALES = 3
"""Of the critics: the image, its half and its quarter."""
STRUCTURE = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales of structural similarity (Wang et al. 2003, doi 10.1109/ACSSC.2003.1292216)."""
WINDOW, SIGMA = 11, 1.5


class Block(nn.Module):
    """Two 3 x 3 layers beside a 1 x 1 layer."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3), nn.Conv2d(out, out, 3)
        self.past = nn.Conv2d(channels, out, 1)
        # Without normalisation the usual start would shrink differences to nothing from block to block.
        for layer, gain in ((self.conv1, 2.0), (self.conv2, 1.0), (self.past, 1.0)):
            nn.init.normal_(layer.weight, std=(gain / layer.weight[0].numel()) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, v)`` to ``(n, out, h - 4, v - 4)``."""
        inner = self.conv2(functional.leaky_relu(self.conv1(x), 0.2, inplace=True))
        return functional.leaky_relu(crop(self.past(x), 2) + inner, 0.2, inplace=True)


def blocks(widths: Sequence[int]) -> nn.Sequential:
    """Blocks from one width to the next."""
    return nn.Sequential(*(Block(one, other) for one, other in pairwise(widths)))


class Critic(nn.Module):
    """Scores patches of an image beside the coarse one, at several scales, spectrally normalised."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        normalised = nn.utils.parametrizations.spectral_norm
        self.scales = nn.ModuleList()
        for _ in range(SCALES):
            layers: list[nn.Module] = []
            for channels, out in ((2 * bands, width), (width, 2 * width), (2 * width, 4 * width)):
                layers += [normalised(nn.Conv2d(channels, out, 4, 2, padding=1)), nn.LeakyReLU(0.2, inplace=True)]
            self.scales.append(nn.Sequential(*layers, normalised(nn.Conv2d(4 * width, 1, 3, padding=1))))

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(n, patches)`` of ``(n, 2b, h, v)`` in [-1, 1], each scale counting as much as the others."""
        scores, most = [], 0
        for layers in self.scales:
            scores.append(layers(images).flatten(1))
            most = max(most, scores[-1].shape[1])
            images = functional.avg_pool2d(images, 2)
        # Means over all scores are then means over scales.
        return torch.cat([score.repeat_interleave(most // score.shape[1], dim=1) for score in scores], dim=1)


@dataclass(frozen=True)
class Started:
    """A pair, and features of its observations ``(n, w, ...)``."""

    pair: Pair
    before: Tensor
    after: Tensor


class GANSTFM(Fusion):
    """The generator of GAN-STFM; channels 16, 32, 64 and 128 of the streams are those of the publication."""

    method, columns, usual = "ganstfm", ("feature", "cosine", "structure"), 16
    fine_reach = coarse_reach = REACH

    def __init__(self, bands: int, width: int) -> None:
        super().__init__(bands, width)
        widths = [width * 2**number for number in range(BLOCKS)]
        self.coarse, self.fine = blocks([bands, *widths]), blocks([bands, *widths])
        self.joined = blocks([2 * widths[-1], *widths[::-1]])
        self.last = nn.Conv2d(width, bands, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    @property
    def floats(self) -> tuple[int, int]:
        """Features of both observations, and those that are joined and made of them."""
        return 16 * self.width, 48 * self.width

    def critics(self, spectral: bool) -> Sequence[nn.Module]:
        """One, always normalised."""
        return [Critic(self.bands, 4 * self.width)]

    def start(self, pair: Pair) -> Started:
        """Features of the observations."""
        before, after = (self.fine(image * 2 - 1) for image in pair.cut(REACH).chunk(2, dim=1))
        return Started(pair, before, after)

    def _from(self, image: Tensor, features: Tensor, coarse: Tensor) -> Tensor:
        """The prediction from one observation ``(n, b, y, x)``, its features and the day's."""
        return image + self.last(self.joined(torch.cat([features.expand_as(coarse), coarse], dim=1)))  # type: ignore[no-any-return]

    def _coarse(self, pair: Pair, targets: Targets) -> Tensor:
        return self.coarse(pair.up(targets.coarse, REACH) * 2 - 1)  # type: ignore[no-any-return]

    def _share(self, pair: Pair, targets: Targets) -> Tensor:
        """Where the observation after is nearer ``(n, 1, y, x)``, 0 or 1."""
        before, after = (crop(day, pair.margins.fine1) for day in (pair.day_before, pair.day_after))
        days = targets.days[:, None, None]
        return ((days - before).abs() > (after - days).abs())[:, None].to(pair.fine.dtype)

    def sides(self, started: Started, targets: Targets) -> Sides:
        """From either observation; the nearer one counts."""
        pair, coarse = started.pair, self._coarse(started.pair, targets)
        before, after = pair.cut(0).chunk(2, dim=1)
        return Sides(
            self._from(before, started.before, coarse),
            self._from(after, started.after, coarse),
            self._share(pair, targets),
        )

    def image(self, started: Started, targets: Targets) -> Tensor:
        """The prediction; a side that no pixel takes is not computed."""
        pair, share = started.pair, self._share(started.pair, targets)
        if bool(share.any()) != bool(share.all()):
            return self.sides(started, targets).image
        number = int(bool(share.any()))
        features = (started.before, started.after)[number]
        return self._from(pair.cut(0).chunk(2, dim=1)[number], features, self._coarse(pair, targets))

    def terms(self, batch: Batch, number: int) -> list[Term]:
        """Content and critics, from the observations before and after in turn."""
        pair, side = batch.pair, number % 2
        features = self.fine(pair.cut(REACH).chunk(2, dim=1)[side] * 2 - 1)
        result = self._from(pair.cut(0).chunk(2, dim=1)[side], features, self._coarse(pair, batch.targets))
        truth = torch.where(batch.clear, batch.target, result.detach())
        shown = torch.where(batch.clear, result, result.detach())
        coarse = pair.up(batch.targets.coarse, 0)
        return [
            Term("feature", self._feature_loss(shown, truth)),
            Term("cosine", cosine_loss(shown, truth)),
            Term(
                "structure", 1 - ms_ssim(shown, truth), result=result, truth=truth,
                seen=lambda image: torch.cat([image, coarse], dim=1) * 2 - 1,
            ),
        ]  # fmt: skip

    def _feature_loss(self, result: Tensor, truth: Tensor) -> Tensor:
        """Mean squared difference of the features of two images; the stream itself learns nothing from it."""
        weights = {name: value.detach() for name, value in self.fine.named_parameters()}
        of_result, of_truth = (functional_call(self.fine, weights, (image * 2 - 1,)) for image in (result, truth))
        return (of_result - of_truth).square().mean()  # type: ignore[no-any-return]


def cosine_loss(result: Tensor, truth: Tensor) -> Tensor:
    """One minus the mean cosine of the angle between the spectra of two images ``(n, b, y, x)``.

    >>> cosine_loss(torch.tensor([[1.0, 0.0]]).T[None, ..., None], torch.tensor([[1.0, 1.0]]).T[None, ..., None])
    tensor(0.2929)
    """
    return 1 - functional.cosine_similarity(result, truth, dim=1, eps=1e-6).mean()


@cache
def _window() -> Tensor:
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2))
    return (weights / weights.sum()).float()


def _smooth(image: Tensor) -> Tensor:
    """Gaussian means of all windows inside of images ``(n, b, y, x)``."""
    weights = _window().to(image)
    count = image.shape[1]
    down, across = weights.reshape(1, 1, -1, 1).expand(count, 1, -1, 1), weights.expand(count, 1, 1, -1)
    return functional.conv2d(functional.conv2d(image, down, groups=count), across, groups=count)


def ms_ssim(result: Tensor, truth: Tensor) -> Tensor:
    """Mean multi-scale structural similarity (Wang et al. 2003) of images ``(n, b, y, x)`` of a range of 1.

    As many of the five scales as windows of 11 pixels fit into, their weights brought to a sum of one.
    """
    fitting = 1
    while fitting < len(STRUCTURE) and min(result.shape[-2:]) // 2**fitting >= WINDOW:
        fitting += 1
    weights = [weight / sum(STRUCTURE[:fitting]) for weight in STRUCTURE[:fitting]]
    found = torch.ones(result.shape[:2], device=result.device)
    for number, weight in enumerate(weights):
        luminance, contrast = _similarity(result, truth)
        value = (luminance * contrast if number == fitting - 1 else contrast).mean((-2, -1))
        found = found * value.clamp(min=1e-6) ** weight
        result, truth = functional.avg_pool2d(result, 2), functional.avg_pool2d(truth, 2)
    return found.mean()


def _similarity(result: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, of every window."""
    small = 0.01**2, 0.03**2
    means = _smooth(result), _smooth(truth)
    variances = [_smooth(image.square()) - mean.square() for image, mean in zip((result, truth), means, strict=True)]
    shared = _smooth(result * truth) - means[0] * means[1]
    luminance = (2 * means[0] * means[1] + small[0]) / (means[0].square() + means[1].square() + small[0])
    return luminance, (2 * shared + small[1]) / (variances[0] + variances[1] + small[1])
