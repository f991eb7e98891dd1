"""The methods with windows as they are described, pixel by pixel with plain loops: slow, and the judge of the fast ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import interpolate, optimize, stats

from stfgan_xr.predictors import Bracket, CoarseWindow

Array = npt.NDArray[Any]
FIRST, DAY, LAST = 18_000, 18_006, 18_016


def weights(place: int, ratio: int, halo: int, cells: int, shift: int = 0) -> list[tuple[int, float]]:
    """Cells and weights of a bilinear value at the centre of a fine pixel, along an axis."""
    at = (place + shift + 0.5) / ratio - 0.5 + halo
    low = math.floor(at)
    part = at - low
    return [(min(max(low, 0), cells - 1), 1 - part), (min(max(low + 1, 0), cells - 1), part)]


def raised(cells: Array, shape: tuple[int, int], ratio: int, halo: int, margin: int) -> Array:
    """Bilinear values of ``(cy, cx)`` cells at the pixels of a block with a margin."""
    out = np.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            for r, wr in weights(row - margin, ratio, halo, cells.shape[0]):
                for c, wc in weights(column - margin, ratio, halo, cells.shape[1]):
                    out[row, column] += wr * wc * float(cells[r, c])
    return out


class Case:
    """A bracket and a day as plain arrays in double precision, everything on the fine grid."""

    def __init__(self, bracket: Bracket, coarse: CoarseWindow, day: int = DAY) -> None:
        self.bracket, self.coarse, self.day = bracket, coarse, day
        self.margin, self.ratio, self.halo = bracket.halo.fine, bracket.ratio, bracket.halo.coarse
        self.fine = [bracket.fine_before.astype(float), bracket.fine_after.astype(float)]
        self.cells = [bracket.coarse_before.astype(float), bracket.coarse_after.astype(float)]
        self.target = coarse.on(day).astype(float)
        self.shape = bracket.day_before.shape
        self.known = np.ones(self.cells[0].shape[1:], bool)
        if bracket.coarse_known is not None:
            self.known = self.known & bracket.coarse_known
        self.usable = np.ones(self.shape, bool) if bracket.known is None else bracket.known
        self.usable = self.usable & (self.up(~self.known) == 0)
        self.known_today = self.known
        if coarse.known is not None:
            self.known_today = self.known & coarse.known[day - coarse.series_days[0]]
        self.usable_today = self.usable & (self.up(~self.known_today) == 0)

    def up(self, cells: Array) -> Array:
        if cells.ndim == 3:
            return np.stack([self.up(band) for band in cells])
        return raised(np.asarray(cells, float), self.shape, self.ratio, self.halo, self.margin)

    def pixels(self) -> list[tuple[int, int]]:
        m = self.margin
        return [(r, c) for r in range(m, self.shape[0] - m) for c in range(m, self.shape[1] - m)]

    def image(self, values: dict[tuple[int, int], Array]) -> Array:
        """Values by pixel as ``(band, y, x)`` without margin."""
        m, (rows, columns) = self.margin, self.shape
        out = np.full((len(self.fine[0]), rows - 2 * m, columns - 2 * m), np.nan)
        for (row, column), value in values.items():
            out[:, row - m, column - m] = value
        return out

    def window(self, row: int, column: int, radius: int, usable: Array) -> list[tuple[int, int, float]]:
        """Usable pixels around one, and their distance, near ones first."""
        found = []
        for down in range(-radius, radius + 1):
            for right in range(-radius, radius + 1):
                if usable[row + down, column + right]:
                    found.append((down * down + right * right, down, right))
        return [(row + d, column + r, math.sqrt(square)) for square, d, r in sorted(found)]

    def share(self, row: int, column: int) -> float:
        before, after = int(self.bracket.day_before[row, column]), int(self.bracket.day_after[row, column])
        return min(max((self.day - before) / max(after - before, 1), 0.0), 1.0)

    def nearest_side(self, row: int, column: int) -> int:
        before, after = int(self.bracket.day_before[row, column]), int(self.bracket.day_after[row, column])
        return 0 if abs(self.day - before) <= abs(after - self.day) else 1


def estarfm(case: Case, radius: int, classes: int = 4, count: int = 20) -> Array:
    fine, coarse = case.fine, [case.up(cells) for cells in case.cells]
    bands = range(len(fine[0]))
    changes = [case.up(case.target - cells) for cells in case.cells]
    out = {}
    for row, column in case.pixels():
        if not case.usable_today[row, column]:
            continue
        window = case.window(row, column, radius, case.usable)
        deviation = [[np.std([image[b, r, c] for r, c, _ in window]) for b in bands] for image in fine]
        alike = []
        for r, c, distance in window:
            near = [
                abs(fine[k][b, r, c] - fine[k][b, row, column]) < 2 * deviation[k][b] / classes
                for k in (0, 1) for b in bands
            ]  # fmt: skip
            if all(near) and len(alike) < count:
                alike.append((r, c, distance))
        weight = []
        for r, c, distance in alike:
            x = [fine[k][b, r, c] for k in (0, 1) for b in bands]
            y = [coarse[k][b, r, c] for k in (0, 1) for b in bands]
            together = 0.0 if np.std(x) * np.std(y) == 0 else float(np.corrcoef(x, y)[0, 1])
            weight.append(1 / ((1 - together) * (1 + distance / radius) + 1e-7))
        weight = [w / sum(weight) for w in weight]
        today = case.window(row, column, radius, case.usable_today)
        value = np.zeros(len(bands))
        for b in bands:
            mean = [np.mean([change[b, r, c] for r, c, _ in today]) for change in changes]
            one = [fine[k][b, row, column] + mean[k] for k in (0, 1)]
            if len(alike) > 5:
                x = [coarse[k][b, r, c] for k in (0, 1) for r, c, _ in alike]
                y = [fine[k][b, r, c] for k in (0, 1) for r, c, _ in alike]
                moved = abs(np.mean(x[len(alike) :]) - np.mean(x[: len(alike)]))
                line = stats.linregress(x, y)
                told = moved >= 0.02 and line.pvalue <= 0.05 and 0 < line.slope <= 5
                slope = line.slope if told else 1.0
                left = [(w, r, c) for w, (r, c, _) in zip(weight, alike, strict=True) if case.usable_today[r, c]]
                total = sum(w for w, _, _ in left)
                one = [
                    fine[k][b, row, column]
                    + (slope * sum(w * changes[k][b, r, c] for w, r, c in left) / total if left else 0.0)
                    for k in (0, 1)
                ]
            apart = [abs(m) for m in mean]
            share = apart[0] / sum(apart) if sum(apart) else 0.5
            value[b] = (1 - share) * one[0] + share * one[1]
            if not 0 <= value[b] <= 1 and alike:
                levels = [sum(w * fine[k][b, r, c] for w, (r, c, _) in zip(weight, alike, strict=True)) for k in (0, 1)]
                value[b] = (1 - share) * levels[0] + share * levels[1]
        out[row, column] = value
    return case.image(out)


def starfm(case: Case, radius: int, pairs: int, classes: int = 4, count: int = 20) -> Array:
    fine, coarse, target = case.fine, [case.up(cells) for cells in case.cells], case.up(case.target)
    out = {}
    for row, column in case.pixels():
        if not case.usable_today[row, column]:
            continue
        value = np.zeros(len(fine[0]))
        window = case.window(row, column, radius, case.usable)
        sides = (0, 1) if pairs == 2 else (case.nearest_side(row, column),)
        for b in range(len(value)):
            found = []
            for k in sides:
                deviation = np.std([fine[k][b, r, c] for r, c, _ in window])
                apart = abs(fine[k][b] - coarse[k][b])
                moved = abs(coarse[k][b] - target[b])
                kept = 0
                for r, c, distance in window:
                    near = abs(fine[k][b, r, c] - fine[k][b, row, column]) < 2 * deviation / classes
                    near &= bool(apart[r, c] < apart[row, column] + math.sqrt(0.005**2 + 0.005**2))
                    if not near or kept == count:
                        continue
                    kept += 1
                    if case.usable_today[r, c] and moved[r, c] < moved[row, column] + math.sqrt(2) * 0.005:
                        product = apart[r, c] * moved[r, c] * (1 + distance / radius)
                        found.append((product, fine[k][b, r, c] + target[b, r, c] - coarse[k][b, r, c]))
            most = max((1 / product for product, _ in found if product > 0), default=1.0)
            weight = [1 / product if product > 0 else most for product, _ in found]
            if found:
                value[b] = sum(w * v for w, (_, v) in zip(weight, found, strict=True)) / sum(weight)
            else:
                own = [fine[k][b, row, column] + target[b, row, column] - coarse[k][b, row, column] for k in (0, 1)]
                share = case.share(row, column)
                value[b] = (1 - share) * own[0] + share * own[1] if pairs == 2 else own[sides[0]]
        out[row, column] = value
    return case.image(out)


def most_similar(case: Case, k: int, row: int, column: int, radius: int, count: int) -> list[tuple[int, int, float]]:
    """The pixels that differ least, differences within a part in two thousand being equal."""
    image = (case.bracket.fine_before, case.bracket.fine_after)[k]
    keyed = []
    reach = range(-radius, radius + 1)
    around = sorted(((d, r) for d in reach for r in reach), key=lambda at: (at[0] ** 2 + at[1] ** 2, at))
    for number, (down, right) in enumerate(around):
        r, c = row + down, column + right
        if case.usable[r, c]:
            square = np.float32(0)
            for band in image:
                square += (band[r, c] - band[row, column]) ** 2
            level = int(np.array(square, np.float32).view(np.int32)) & ~0xFFF
            keyed.append((level + number, r, c, math.hypot(down, right)))
    return [(r, c, distance) for _, r, c, distance in sorted(keyed)[:count]]


def smoothed(case: Case, k: int, values: Array, row: int, column: int, radius: int, count: int) -> Array:
    total, sums = 0.0, np.zeros(len(values))
    for r, c, distance in most_similar(case, k, row, column, radius, count):
        if case.usable_today[r, c]:
            weight = 1 / (1 + distance / radius)
            total, sums = total + weight, sums + weight * values[:, r, c]
    return sums / total


def keys(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def fitfc(case: Case, radius: int, count: int = 20) -> Array:
    sides = [_fitted(case, k) for k in (0, 1)]
    out = {}
    for row, column in case.pixels():
        if case.usable_today[row, column]:
            k = case.nearest_side(row, column)
            out[row, column] = smoothed(case, k, sides[k], row, column, radius, count)
    return case.image(out)


def _fitted(case: Case, k: int) -> Array:
    bands, (height, width) = len(case.target), case.known.shape
    slope, level, residual = (np.zeros((bands, height, width)) for _ in range(3))
    for row in range(1, height - 1):
        for column in range(1, width - 1):
            near = [
                (r, c) for r in range(row - 1, row + 2) for c in range(column - 1, column + 2) if case.known_today[r, c]
            ]
            for b in range(bands):
                x = np.array([case.cells[k][b, r, c] for r, c in near])
                y = np.array([case.target[b, r, c] for r, c in near])
                told = len(x) > 0 and np.var(x) > 1e-10
                a = float(np.mean((x - x.mean()) * (y - y.mean())) / np.var(x)) if told else 1.0
                slope[b, row, column] = a
                level[b, row, column] = y.mean() - a * x.mean() if len(x) else 0.0
                residual[b, row, column] = (
                    case.target[b, row, column] - a * case.cells[k][b, row, column] - level[b, row, column]
                )
    out = np.zeros((bands, *case.shape))
    for row in range(case.shape[0]):
        for column in range(case.shape[1]):
            if not case.usable_today[row, column]:
                continue
            y, x = ((at - case.margin + 0.5) / case.ratio - 0.5 + case.halo for at in (row, column))
            cell = tuple((at - case.margin) // case.ratio + case.halo for at in (row, column))
            total, added = 0.0, np.zeros(bands)
            for r in range(math.floor(y) - 1, math.floor(y) + 3):
                for c in range(math.floor(x) - 1, math.floor(x) + 3):
                    if case.known_today[r, c]:
                        weight = keys(y - r) * keys(x - c)
                        total, added = total + weight, added + weight * residual[:, r, c]
            out[:, row, column] = slope[:, *cell] * case.fine[k][:, row, column] + level[:, *cell]
            out[:, row, column] += added / max(total, 0.25)
    return out


def fsdaf(case: Case, radius: int, centres: Sequence[Sequence[float]], count: int = 20) -> Array:
    sides = [_by_classes(case, k, radius, centres) for k in (0, 1)]
    out = {}
    for row, column in case.pixels():
        if case.usable_today[row, column]:
            k = case.nearest_side(row, column)
            own = case.fine[k][:, row, column]
            out[row, column] = own + smoothed(case, k, sides[k], row, column, radius, count)
    return case.image(out)


def _by_classes(case: Case, k: int, radius: int, centres: Sequence[Sequence[float]]) -> Array:
    """The change of every pixel near the block, ``(band, Y, X)``."""
    ratio, bands, (height, width) = case.ratio, len(case.target), case.known.shape
    fine, change = case.fine[k], case.target - case.cells[k]
    distance = [sum((fine[b] - centre[b]) ** 2 for b in range(bands)) for centre in centres]
    classes = np.argmin(distance, axis=0)
    pixels = {
        (r, c): [(y, x) for y in range(r * ratio, (r + 1) * ratio) for x in range(c * ratio, (c + 1) * ratio)]
        for r in range(height) for c in range(width)
    }  # fmt: skip
    fractions = np.zeros((height, width, len(centres)))
    for cell, inside in pixels.items():
        of = [classes[at] for at in inside if case.usable[at]]
        fractions[cell] = [of.count(number) / max(len(of), 1) for number in range(len(centres))]
    moved = np.zeros((len(centres), bands, height, width))
    for row in range(4, height - 4):
        for column in range(4, width - 4):
            around = [(r, c) for r in range(row - 4, row + 5) for c in range(column - 4, column + 5)]
            for b in range(bands):
                moved[:, b, row, column] = _class_changes(case, around, fractions, change[b])
    near, out = -(-radius // ratio), np.zeros((bands, *case.shape))
    shape = case.shape
    by_class = np.zeros((bands, *shape))
    maps = np.stack([[raised(m, shape, ratio, case.halo, case.margin) for m in of_class] for of_class in moved])
    for row in range(shape[0]):
        for column in range(shape[1]):
            by_class[:, row, column] = maps[classes[row, column], :, row, column]
    for row in range(case.halo - near, height - case.halo + near):
        for column in range(case.halo - near, width - case.halo + near):
            inside = [at for at in pixels[row, column] if case.usable_today[at]]
            if not inside:
                continue
            for b in range(bands):
                rest = 0.0
                if case.known_today[row, column]:
                    rest = change[b, row, column] - np.mean([by_class[b][at] for at in inside])
                parts = []
                for at in inside:
                    same = [classes[y, x] for y, x, _ in case.window(*at, ratio // 2, case.usable)]
                    alike = same.count(classes[at]) / len(same)
                    departure = abs(_spline(case, b, *at) - fine[b][at] - by_class[b][at])
                    parts.append(alike * departure + (1 - alike) * abs(rest))
                mean = float(np.mean(parts))
                for at, part in zip(inside, parts, strict=True):
                    out[b][at] = by_class[b][at] + (rest * part / mean if mean > 0 else rest)
    return out


def _class_changes(case: Case, around: list[tuple[int, int]], fractions: Array, change: Array) -> Array:
    used = set()
    for number in range(fractions.shape[2]):
        ranked = sorted(around, key=lambda cell: -fractions[(*cell, number)])[:20]
        pure = [cell for cell in ranked if fractions[(*cell, number)] > 0 and case.known_today[cell]]
        if pure:
            values, cut = sorted(change[cell] for cell in pure), int(0.1 * len(pure))
            low, high = values[cut], values[len(values) - 1 - cut]
            used |= {cell for cell in pure if low <= change[cell] <= high}
    chosen = [cell for cell in around if cell in used]
    mean = float(np.mean([change[cell] for cell in chosen])) if chosen else 0.0
    rows = [fractions[cell] for cell in chosen]
    prior = math.sqrt(1e-3) * np.eye(fractions.shape[2])
    wanted = [change[cell] - mean for cell in chosen]
    found, *_ = np.linalg.lstsq(np.vstack([*rows, prior]), np.array([*wanted, *[0.0] * len(prior)]), rcond=None)
    return mean + found


def _spline(case: Case, band: int, row: int, column: int) -> float:
    """By an interpolator of all 64 cells, or as weights of each cell where some are unknown."""
    y, x = ((at - case.margin + 0.5) / case.ratio - 0.5 + case.halo for at in (row, column))
    cells = [
        (r, c) for r in range(math.floor(y) - 3, math.floor(y) + 5) for c in range(math.floor(x) - 3, math.floor(x) + 5)
    ]
    known = np.array([case.known_today[cell] for cell in cells], float)
    values = np.array([case.target[band][cell] for cell in cells]) * known
    both = interpolate.RBFInterpolator(
        np.array(cells, float), np.column_stack([values, known]), kernel="thin_plate_spline"
    )
    value, weight = both([[y, x]])[0]
    return float(value / max(weight, 0.25))


def robot(case: Case, step: int) -> Array:
    archive = case.bracket.archive
    assert archive is not None
    days, margin, ratio = archive.days, case.margin, case.ratio
    images = _filled(archive.fine.astype(float), days)
    clear = ~np.isnan(archive.fine).any(1)
    there = ~np.isnan(archive.coarse).any(1)
    stored = np.nan_to_num(archive.coarse.astype(float))
    shares = np.array([[case.share(r, c) for c in range(case.shape[1])] for r in range(case.shape[0])])
    near = (1 - shares) * case.fine[0] + shares * case.fine[1]
    mixed, lacking, weight_sum = np.zeros_like(near), np.zeros_like(near), np.zeros(case.shape)
    raised_days = np.stack([case.up(image) for image in stored])
    target = case.up(case.target)
    for top in range(0, case.shape[0] - step, step):
        for left in range(0, case.shape[1] - step, step):
            rows, columns = slice(top, top + 2 * step), slice(left, left + 2 * step)
            cell = tuple(slice(at // ratio + 1, (at + 2 * step) // ratio + 1) for at in (top, left))
            usable = case.usable[rows, columns]
            used = [
                n for n in range(len(days))
                if usable.any() and (clear[n][rows, columns] & usable).sum() >= 0.5 * usable.sum() and there[n][cell].all()
            ]  # fmt: skip
            found = np.zeros(len(days))
            if used:
                parts = [
                    ([images[n][:, rows, columns][:, usable] for n in used], near[:, rows, columns][:, usable], 1.0)
                ]
                if case.known_today[cell].all():
                    parts.append(([stored[n][:, *cell] for n in used], case.target[:, *cell], float(ratio)))
                found[used] = _nonnegative(parts)
            for r in range(2 * step):
                for c in range(2 * step):
                    # A tent over the window: four of them add up to 1 at every pixel of the block.
                    weight = (1 - abs((r + 0.5) / step - 1)) * (1 - abs((c + 0.5) / step - 1))
                    at = top + r, left + c
                    weight_sum[at] += weight * bool(used)
                    mixed[:, *at] += weight * np.tensordot(found, images[:, :, *at], 1)
                    if abs(found.sum() - 1) > 0.02:
                        lacking[:, *at] += weight * (target[:, *at] - np.tensordot(found, raised_days[:, :, *at], 1))
    out = {}
    for at in case.pixels():
        if case.usable_today[at] and weight_sum[at] > 1 - 1e-6:
            out[at] = (mixed + lacking)[:, *at]
    assert margin == step
    return case.image(out)


def _filled(images: Array, days: Sequence[int]) -> Array:
    out = images.copy()
    for row in range(images.shape[2]):
        for column in range(images.shape[3]):
            seen = [n for n in range(len(days)) if not np.isnan(images[n, :, row, column]).any()]
            for b in range(images.shape[1]):
                if seen:
                    at, values = [days[n] for n in seen], [images[n, b, row, column] for n in seen]
                    out[:, b, row, column] = np.interp(days, at, values)
                else:
                    out[:, b, row, column] = 0
    return out


def _nonnegative(parts: list[tuple[list[Array], Array, float]]) -> Array:
    rows, wanted = [], []
    for images, image, factor in parts:
        low, high = np.mean([i.min() for i in images]), np.mean([i.max() for i in images])
        scale = factor / max(high - low, 1e-6)
        rows.append(np.column_stack([scale * (i.ravel() - low) for i in images]))
        wanted.append(scale * (image.ravel() - low))
    matrix, right = np.vstack(rows), np.concatenate(wanted)
    found, _ = optimize.nnls(matrix, right)
    if found.sum() <= 2:
        return found
    # A row as heavy as it takes, towards a sum of 2.
    heavy = 1e5
    found, _ = optimize.nnls(np.vstack([matrix, np.full((1, matrix.shape[1]), heavy)]), np.append(right, 2 * heavy))
    return found
