"""The learned methods as they are described, in double precision with plain loops and SciPy: the judges of the fast ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage, signal
from torch import nn

from tests.literal import Array, Case, raised


def convolved(image: Array, layer: nn.Conv2d) -> Array:
    """A layer without padding."""
    assert layer.bias is not None
    weight, bias = (value.detach().numpy().astype(float) for value in (layer.weight, layer.bias))
    return (
        np.stack([sum(signal.correlate(x, w, mode="valid") for x, w in zip(image, one, strict=True)) for one in weight])
        + bias[:, None, None]
    )


def cut(image: Array, border: int) -> Array:
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border] if border else image


def three_layers(image: Array, layers: Sequence[nn.Conv2d]) -> Array:
    first, second, last = layers
    return convolved(np.maximum(convolved(np.maximum(convolved(image, first), 0), second), 0), last)


def up(case: Case, cells: Array, margin: int, step: int = 1) -> Array:
    """Bilinear values of ``(band, cy, cx)`` cells, on the block with a margin, in pixels of ``step``."""
    rows, columns = ((side - 2 * case.margin + 2 * margin) // step for side in case.shape)
    return np.stack([raised(band, (rows, columns), case.ratio // step, case.halo, margin // step) for band in cells])


def weighed(image: Array, known: Sequence[Array], start: Sequence[Array]) -> Array:
    """``w (K1 + T2 - T1) + (1 - w) (K3 + T2 - T3)`` with ``w = (1 / |T2 - T1|) / (1 / |T2 - T1| + 1 / |T2 - T3|)``."""
    found = np.empty_like(image)
    for at in np.ndindex(*image.shape):
        since, until = (float(image[at] - other[at]) for other in start)
        w = (
            0.5
            if since == until == 0
            else (1.0 if since == 0 else 0.0 if until == 0 else (1 / abs(since)) / (1 / abs(since) + 1 / abs(until)))
        )
        found[at] = w * (known[0][at] + since) + (1 - w) * (known[1][at] + until)
    return found


def stfdcnn(case: Case, network: Any) -> Array:
    first, second = (
        [m for m in net.layers if isinstance(m, nn.Conv2d)] for net in (network.mapping, network.resolving)
    )

    def added(image: Array, layers: Sequence[nn.Conv2d]) -> Array:
        return cut(image, 8) + three_layers(2 * image - 1, layers)

    mapped = [added(up(case, cells, 44, 4), first) for cells in (*case.cells, case.target)]
    fine = [cut(image, case.margin - 12) for image in case.fine]
    averages = [
        image.reshape(len(image), image.shape[1] // 4, 4, image.shape[2] // 4, 4).mean((2, 4)) for image in fine
    ]
    middle = weighed(mapped[2], averages, mapped[:2])

    def resolved(image: Array) -> Array:
        rows, columns = (4 * (side - 6) + 16 for side in image.shape[1:])
        return added(np.stack([raised(band, (rows, columns), 4, 3, 8) for band in image]), second)

    return weighed(resolved(middle), [cut(image, 12) for image in fine], [resolved(image) for image in averages])


def by_cells(case: Case) -> Array:
    """Weight of the earlier observation by the mean coarse changes."""
    since, until = (up(case, np.abs(case.target - cells).mean(0)[None], 0) for cells in case.cells)
    return (1 / since) / (1 / since + 1 / until)


def stfnet(case: Case, network: Any) -> Array:
    fine = [cut(image, case.margin - 8) for image in case.fine]

    def change(stream: Any, coarse: Array, image: Array) -> Array:
        seen = np.concatenate([up(case, coarse, 8) * 10, 2 * image - 1])
        return three_layers(seen, [stream.conv1, stream.conv2, stream.conv3])

    since = change(network.before, case.target - case.cells[0], fine[0])
    until = change(network.after, case.cells[1] - case.target, fine[1])
    w = by_cells(case)
    return w * (cut(fine[0], 8) + since) + (1 - w) * (cut(fine[1], 8) - until)


def leaky(image: Array) -> Array:
    return np.where(image > 0, image, 0.2 * image)


def block(image: Array, layers: Any) -> Array:
    return leaky(cut(convolved(image, layers.past), 2) + convolved(leaky(convolved(image, layers.conv1)), layers.conv2))


def through(image: Array, layers: Any) -> Array:
    for one in layers:
        image = block(image, one)
    return image


def ganstfm(case: Case, network: Any) -> Array:
    coarse = through(2 * up(case, case.target, 16) - 1, network.coarse)
    sides = []
    for image in case.fine:
        seen = cut(image, case.margin - 16)
        features = np.concatenate([through(2 * seen - 1, network.fine), coarse])
        sides.append(cut(seen, 16) + convolved(through(features, network.joined), network.last))
    before, after = (cut(day, case.margin) for day in (case.bracket.day_before, case.bracket.day_after))
    return np.where(np.abs(case.day - before) <= np.abs(after - case.day), *sides)


def ms_ssim(one: Array, other: Array, weights: Sequence[float]) -> float:
    """Of two images of one band, windows of 11 pixels and deviation 1.5 that lie inside."""
    total = 1.0
    for number, weight in enumerate(weights):

        def mean(image: Array) -> Array:
            return cut(ndimage.gaussian_filter(image, 1.5, truncate=5 / 1.5, mode="nearest"), 5)

        m1, m2 = mean(one), mean(other)
        v1, v2, shared = mean(one * one) - m1 * m1, mean(other * other) - m2 * m2, mean(one * other) - m1 * m2
        value = (2 * shared + 0.03**2) / (v1 + v2 + 0.03**2)
        if number == len(weights) - 1:
            value = value * (2 * m1 * m2 + 0.01**2) / (m1 * m1 + m2 * m2 + 0.01**2)
        total *= float(value.mean()) ** weight
        one, other = (i.reshape(i.shape[0] // 2, 2, i.shape[1] // 2, 2).mean((1, 3)) for i in (one, other))
    return total


def spstfm(case: Case, atoms: Array, code: Any) -> Array:
    """``code(dictionary, signal)`` gives the coefficients of a signal."""

    def change(coarse: Array) -> Array:
        image = up(case, coarse, 4)
        total, count = np.zeros_like(image), np.zeros_like(image)
        for band in range(len(image)):
            unit = atoms[band] / np.linalg.norm(atoms[band], axis=1, keepdims=True)
            for top in range(0, image.shape[1] - 6, 4):
                for left in range(0, image.shape[2] - 6, 4):
                    place = band, slice(top, top + 7), slice(left, left + 7)
                    weights = code(unit[:, 49:], image[place].reshape(-1))
                    total[place] += (weights @ unit[:, :49]).reshape(7, 7)
                    count[place] += 1
        return cut(total, 4) / cut(count, 4)

    since, until = change(case.target - case.cells[0]), change(case.cells[1] - case.target)
    w, m = by_cells(case), case.margin
    return w * (cut(case.fine[0], m) + since) + (1 - w) * (cut(case.fine[1], m) - until)
