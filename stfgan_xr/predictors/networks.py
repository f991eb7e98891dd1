"""The two networks of STFGAN: a two-stream residual generator and its discriminator.

Zhang, Song, Han and Zhang (2021), "Remote Sensing Image Spatiotemporal Fusion Using a Generative Adversarial Network",
IEEE TGRS 59(5), doi 10.1109/TGRS.2020.3010530. Shapes in comments: ``n`` images, ``w`` width, ``b`` bands, ``h x v``
pixels of the fine grid.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

WIDTH = 64
COARSE_BLOCKS, FINE_BLOCKS = 16, 8
SCALE = 4
"""Fine pixels along a pixel of the coarse branch."""
REACH_FUSION = 4
REACH_FINE = 25
"""Fine pixels around an output pixel that the fine branch sees: 9x9 head, 17 layers of 3x3, 9x9 fusion."""
REACH_COARSE = 160
"""The same for the coarse branch, around whole cells of :data:`SCALE` pixels: 40 cells."""


DIFFERENCE_GAIN = 8.0


def _conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, size, stride, padding=size // 2)


class Residual(nn.Module):
    """Conv-BN-ReLU-Conv-BN plus its input; no activation after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = _conv(width, width, 3), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, w, h, v)`` to the same."""
        inner = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return x + self.norm2(self.conv2(inner))  # type: ignore[no-any-return]


class Branch(nn.Module):
    """A 9x9 head, residual blocks and a 3x3 layer, with a skip over all but the head."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.head = _conv(channels, width, 9)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.conv, self.norm = _conv(width, width, 3), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, v)`` to ``(n, w, h, v)``."""
        head = functional.relu(self.head(x), inplace=True)
        return head + self.norm(self.conv(self.blocks(head)))  # type: ignore[no-any-return]


class Upscale(nn.Module):
    """Twice the resolution by convolution and pixel shuffle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, 4 * width, 3)

    def expand(self, x: Tensor) -> Tensor:
        """``(n, w, h, v)`` to ``(n, 4w, h, v)``, before the shuffle."""
        return functional.relu(self.conv(x), inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, w, h, v)`` to ``(n, w, 2h, 2v)``."""
        return functional.pixel_shuffle(self.expand(x), 2)


def crop(x: Tensor, cut: int) -> Tensor:
    """Without ``cut`` rows and columns on every side of the last two axes."""
    return x[..., cut:-cut, cut:-cut] if cut else x


def shuffled_kernel(kernel: Tensor) -> Tensor:
    """The 5x5 kernel ``(4b, 4w, 5, 5)`` before a pixel shuffle that equals a 9x9 one ``(b, w, 9, 9)`` after it."""
    bands, width = kernel.shape[:2]
    padded = functional.pad(kernel, (1, 1, 1, 1))
    out, into, tap = torch.arange(2)[:, None, None], torch.arange(2)[:, None], torch.arange(5)
    index = (2 * tap + into - out + 1).flatten().to(kernel.device)  # 9x9 tap + 1 of (phase out, phase in, 5x5 tap)
    taps = padded[:, :, index][..., index].reshape(bands, width, 2, 2, 5, 2, 2, 5)
    return taps.permute(0, 2, 5, 1, 3, 6, 4, 7).reshape(4 * bands, 4 * width, 5, 5)


class Generator(nn.Module):
    """One stage of STFGAN.

    Parameters
    ----------
    bands
        Bands of every image.
    width
        Channels inside; 64 in the paper (2,366,086 parameters for six bands).
    planes
        Channels of the coarse branch; three images by default.
    outputs
        Channels of the result; ``bands`` by default.
    still
        Further channels, of the fine branch alone: the same on every day of an interval.

    Notes
    -----
    The fusion layer is linear, so ``fusion(cat(c, f)) = Wc c + (Wf f + bias)``: :meth:`share` gives the second part,
    once for an interval between fine images, and :meth:`finish` adds the first, day by day.
    """

    def __init__(
        self,
        bands: int = 6,
        width: int = WIDTH,
        *,
        planes: int | None = None,
        outputs: int | None = None,
        still: int = 0,
    ) -> None:
        super().__init__()
        self.bands, self.width, self.outputs = bands, width, outputs or bands
        self.coarse = Branch(planes or 3 * bands, width, COARSE_BLOCKS)
        self.upscale1, self.upscale2 = Upscale(width), Upscale(width)
        self.fine = Branch(2 * bands, width, FINE_BLOCKS)
        self.fusion = _conv(2 * width, self.outputs, 9)
        self.still = _conv(width, still, 3) if still else None

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Prediction ``(n, outputs, h, v)`` in [-1, 1].

        Parameters
        ----------
        coarse
            ``(n, 3b, h/4, v/4)`` coarse images before, on and after the target day, in [-1, 1].
        fine
            ``(n, 2b, h, v)`` fine images before and after, in [-1, 1].
        """
        upscaled = self.upscale2(self.upscale1(self.coarse(coarse)))  # (n, w, h, v)
        return torch.tanh(self.fusion(torch.cat([upscaled, self.fine(fine)], dim=1)))

    def share(self, fine: Tensor, cut: int = 0, still: bool = True) -> tuple[Tensor, Tensor | None]:
        """What does not depend on the day, before the hyperbolic tangent: ``(n, outputs, h - 2 cut, v - 2 cut)`` for
        :meth:`finish`, and the still channels, if there are any and they are wanted."""
        features, weight = self.fine(fine), self.fusion.weight[:, self.width :]
        shared = crop(functional.conv2d(features, weight, self.fusion.bias, padding=REACH_FUSION), cut)
        return shared, crop(self.still(features), cut) if still and self.still is not None else None

    def finish(self, coarse: Tensor, shared: Tensor, cut: int = 0) -> Tensor:
        """What the prediction is the hyperbolic tangent of, of the shape of ``shared``.

        Parameters
        ----------
        coarse
            ``(n, 3b, ...)`` with ``cut`` fine pixels more on every side than ``shared``.
        shared
            From :meth:`share`; one for all ``n`` or one for each.
        """
        extra = min(cut, REACH_FUSION)
        # The last shuffle is left out: a 9x9 kernel on shuffled channels is a 5x5 kernel on the unshuffled ones, and
        # the map of w channels at full size is never made.
        half = self.upscale2.expand(self.upscale1(self.coarse(coarse)))  # (n, 4w, h/2, v/2)
        kernel = shuffled_kernel(self.fusion.weight[:, : self.width])
        part = functional.conv2d(crop(half, (cut - extra) // 2), kernel, padding=2)  # (n, 4b, h/2, v/2)
        return crop(functional.pixel_shuffle(part, 2), extra) + shared

    def start_at_zero(self) -> None:
        """Let the last layers start at zero, so that the untrained network predicts no correction."""
        for layer in (self.fusion, self.still):
            for parameter in layer.parameters() if layer is not None else ():
                nn.init.zeros_(parameter)

    def start_at_differences(self) -> None:
        """Let the first layers begin with differences in time beside what they drew.

        Reflectances differ by some hundredths from day to day and by ten times that from place to place: from an
        ordinary start the layers learn for long to tell the two apart. The fine branch also begins with differences
        to the neighbours in one image, which tell how sharp it is.
        """
        over_coarse = ((-1, 1, 0), (0, 1, -1), (-1, 0, 1), (1, 1, 1))
        _add_patterns(self.coarse.head, over_coarse, self.bands)
        _add_patterns(self.fine.head, ((-1, 1), (1, 1), (1, 0), (0, 1)), self.bands)

    def fold(self) -> Generator:
        """A copy for inference: normalisation folded into the convolutions, channels last in memory."""
        folded = copy.deepcopy(self).eval()
        for module in folded.modules():
            for conv, norm in (("conv1", "norm1"), ("conv2", "norm2"), ("conv", "norm")):
                if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                    setattr(module, norm, nn.Identity())
        return folded.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class Discriminator(nn.Module):
    """Scores fine images: the higher, the more like observed ones (no sigmoid).

    Parameters
    ----------
    bands
        Bands of an image.
    width
        Channels of the first layer; 64 in the paper (5,217,153 parameters for six bands).
    spectral
        Spectral normalisation of every convolution, for the least-squares loss.
    """

    def __init__(self, bands: int = 6, width: int = WIDTH, *, spectral: bool = False) -> None:
        super().__init__()
        plan = ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2))  # (widths, stride) after the first layer
        wrap = nn.utils.parametrizations.spectral_norm if spectral else _identity
        layers: list[nn.Module] = [wrap(_conv(bands, width, 3)), nn.LeakyReLU(0.2, inplace=True)]
        channels = width
        for times, stride in plan:
            layers += [wrap(_conv(channels, times * width, 3, stride)), nn.BatchNorm2d(times * width)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            channels = times * width
        layers += [nn.AdaptiveAvgPool2d(1), wrap(_conv(channels, 16 * width, 1)), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, wrap(_conv(16 * width, 1, 1)))

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``(n,)`` of images ``(n, b, h, v)`` in [-1, 1]."""
        return self.layers(image).flatten()  # type: ignore[no-any-return]


def _add_patterns(head: nn.Module, patterns: tuple[tuple[int, ...], ...], bands: int) -> None:
    """Add to the centre of each filter a random mix of bands, with the signs of a pattern over the images in turn."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    middle = weight.shape[-1] // 2
    with torch.no_grad():
        for number in range(weight.shape[0]):
            pattern = torch.tensor(patterns[number % len(patterns)], dtype=weight.dtype)
            detail = pattern.count_nonzero() == 1
            gain = DIFFERENCE_GAIN if detail or pattern.sum() == 0 else 1.0
            mix = torch.randn(bands, dtype=weight.dtype) * gain / bands**0.5
            images = (pattern[:, None] * mix).reshape(-1)
            weight[number, : len(images), middle, middle] += images
            if detail:
                around = weight[number, : len(images), middle - 1 : middle + 2, middle - 1 : middle + 2]
                around -= images[:, None, None] / 9


def _identity(layer: nn.Module) -> nn.Module:
    return layer
