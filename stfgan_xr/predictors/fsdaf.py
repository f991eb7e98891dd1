"""FSDAF (Zhu et al. 2016, doi 10.1016/j.rse.2015.11.016): changes of classes, and what is left shared out to pixels.

The land is classified by its fine image. The change of each class is what best explains the coarse change of the cells
around, by least squares over the cells where the classes are purest. What is left of a cell's change goes to its pixels
by ``H |S - T| + (1 - H) |R|``: where one class surrounds a pixel (``H`` near 1) by how much a thin-plate spline of the
coarse image (``S``) departs from the prediction by classes (``T``), elsewhere alike. The changes are smoothed over the
twenty pixels of a window that are most like its centre.

Classes are fitted once before a run, to a sample of the whole area; changes and splines are local, so that tiles agree.
The method has one observation: the one nearest in time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster import vq
from torch import Tensor

from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket, Float
from stfgan_xr.predictors.resample import upsample
from stfgan_xr.predictors.windowed import Day, Ground, OneSided
from stfgan_xr.predictors.windows import Similar, most_similar, smoothed, window_sums

Array = npt.NDArray[np.float64]
AROUND = 4
"""Cells on each side that class changes are read from, and that the spline passes through."""
PUREST = 20
"""Cells of the window that are used for each class."""
OUTLYING = 0.1
"""Share of these whose coarse change is too small, or too great, to be used."""
PRIOR = 1e-3
"""Weight of the mean change in that of a class, in cells: for classes that are hardly there."""


@dataclass(frozen=True)
class Side:
    """What one observation tells on every day.

    Attributes
    ----------
    fine, coarse
        ``(band, y, x)`` of the block and the cells around that similar pixels lie in, and ``(band, CY, CX)``.
    classes, homogeneity
        ``(y, x)`` of the same pixels: int64, and the share of those around that are of the same class.
    fractions
        ``(cell, around, class)`` of the cells around each, 1 in all of a cell.
    purest, there
        ``(cell, rank, class)`` which of the cells around are purest, and whether they hold the class at all.
    similar
        The similar pixels of the block.
    """

    fine: Tensor
    coarse: Tensor
    classes: Tensor
    homogeneity: Tensor
    fractions: Tensor
    purest: Tensor
    there: Tensor
    similar: Similar


@dataclass(frozen=True)
class Prepared:
    """What is the same on every day of an interval."""

    ground: Ground
    sides: tuple[Side, Side]


@dataclass(frozen=True)
class FSDAF(OneSided):
    """Flexible spatiotemporal data fusion.

    Attributes
    ----------
    count
        Similar pixels at most.
    classes
        Of the land.
    centres
        ``(class, band)`` mean reflectance of the classes, found by :meth:`fit`.
    """

    radius: int = 20
    count: int = 20
    classes: int = 5
    centres: tuple[tuple[float, ...], ...] | None = None

    @property
    def _cells(self) -> int:
        """Cells on each side of the block that similar pixels lie in."""
        return -(-self.radius // self.ratio)

    @property
    def halo(self) -> Halo:
        """The cells of similar pixels, one for interpolation, and the cells that class changes are read from."""
        cells = self._cells + 1 + AROUND
        return Halo(fine=cells * self.ratio, coarse=cells)

    def memory(self, rows: int, columns: int, days: int) -> int:
        """Bytes for a block with its halo, roughly."""
        return rows * columns * (4 * self.count + 120 * len(self.bands)) + 2**26

    def fit(self, spectra: Float) -> FSDAF:
        """With the classes of a sample ``(pixel, band)``, by k-means.

        Raises
        ------
        InputError
            If there are fewer different spectra than classes.
        """
        different = np.unique(spectra, axis=0).astype(np.float64)
        if len(different) < self.classes:
            raise InputError(
                f"fsdaf: {len(different)} different clear spectra are not enough for {self.classes} classes"
            )
        # From dark to bright in equal parts, and on from there: no chance in it.
        parts = np.array_split(different[np.argsort(different.sum(1), kind="stable")], self.classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class that lost all its pixels stays where it was
            found, _ = vq.kmeans2(spectra.astype(np.float64), np.array([p.mean(0) for p in parts]), minit="matrix")
        return replace(self, centres=tuple(map(tuple, found.tolist())))

    def prepare(self, bracket: Bracket) -> Prepared:
        """Classes and similar pixels of either side.

        Raises
        ------
        InputError
            If the method was not fitted.
        """
        if self.centres is None:
            raise InputError("fsdaf has no classes yet: take fitted(predictor, spectra), as stfgan_xr.fuse does")
        ground = self.ground(bracket)
        with torch.inference_mode():
            coarse = (ground.pair.coarse_before, ground.pair.coarse_after)
            before, after = (self._side(ground, *images) for images in zip(ground.fine, coarse, strict=True))
            return Prepared(ground, (before, after))

    def _side(self, ground: Ground, fine: Tensor, coarse: Tensor) -> Side:
        margin, around = self._cells * self.ratio, self.ratio // 2
        classes = torch.stack([(fine - c[:, None, None]).square().sum(0) for c in self._centres(fine)]).argmin(0)
        masks = torch.stack([(classes == number) & ground.usable for number in range(len(self.centres or ()))])
        counts = _cell_sums(masks.double(), self.ratio)
        fractions = _surroundings(counts / counts.sum(0).clamp(min=1)).permute(1, 2, 0).contiguous()
        # Stable: of equal fractions the order is that of the surroundings, in every tile.
        pure, order = fractions.sort(dim=1, descending=True, stable=True)
        same = torch.stack([window_sums(ground.near(mask, margin + around).long(), around) for mask in masks])
        own = ground.near(classes, margin)
        homogeneity = (same.gather(0, own[None])[0] / same.sum(0).clamp(min=1)).float()
        image, usable = (ground.near(part, self.radius) for part in (fine, ground.usable))
        similar = most_similar(image, usable, self.radius, self.count)
        purest, there = order[:, :PUREST], pure[:, :PUREST] > 0
        return Side(ground.near(fine, margin), coarse, own, homogeneity, fractions, purest, there, similar)

    def _centres(self, like: Tensor) -> Tensor:
        return torch.tensor(self.centres, dtype=like.dtype, device=like.device)

    def _from(self, prepared: Prepared, number: int, today: Day) -> Tensor:
        side, ground = prepared.sides[number], prepared.ground
        margin, spare = self._cells * self.ratio, self._cells * self.ratio - self.radius
        usable = ground.near(today.usable, margin)
        by_class = self._by_class(side, class_changes(side, today))
        residual = self._residual(side, today, by_class, usable)
        spline = _spline(today.image, today.known, self.ratio)
        share = side.homogeneity * (spline - side.fine - by_class).abs()
        share += (1 - side.homogeneity) * _expanded(residual.abs(), self.ratio)
        count = _cell_sums(usable[None].double(), self.ratio)
        mean = _cell_sums(share.double() * usable, self.ratio) / count.clamp(min=1)
        # Nothing to tell pixels apart by: all alike.
        part = torch.where(mean > 0, residual / mean.clamp(min=1e-12), residual).float()
        rest = _expanded(part, self.ratio) * torch.where(_expanded(mean, self.ratio) > 0, share, 1.0)
        inner = slice(spare, side.fine.shape[1] - spare), slice(spare, side.fine.shape[2] - spare)
        change = (by_class + rest)[:, *inner]
        own = slice(margin, side.fine.shape[1] - margin), slice(margin, side.fine.shape[2] - margin)
        return side.fine[:, *own] + smoothed(change, usable[inner], side.similar)

    def _by_class(self, side: Side, changes: Tensor) -> Tensor:
        """Changes ``(band, cell, class)`` at the pixels of their classes, interpolated between cells."""
        rows, columns = side.classes.shape
        cells, margin = self._cells + 1, self._cells * self.ratio
        shape = (rows // self.ratio + 2, columns // self.ratio + 2)
        found = torch.empty_like(side.fine)
        for out, change in zip(found, changes, strict=True):
            maps = change.T.reshape(-1, *shape).float()
            at = upsample(maps, (rows, columns), ratio=self.ratio, halo=cells, start=(-margin, -margin))
            out[:] = at.gather(0, side.classes[None])[0]
        return found

    def _residual(self, side: Side, today: Day, by_class: Tensor, usable: Tensor) -> Tensor:
        """What of the coarse change ``(band, cy, cx)`` the classes leave, 0 of unknown cells."""
        count = _cell_sums(usable[None].double(), self.ratio)
        explained = _cell_sums(by_class.double() * usable, self.ratio) / count.clamp(min=1)
        beyond = AROUND + 1
        change, known = (part[..., beyond:-beyond, beyond:-beyond] for part in (today.image - side.coarse, today.known))
        return torch.where(known & (count > 0), change - explained, 0.0)


def class_changes(side: Side, today: Day) -> Tensor:
    """Changes ``(band, cell, class)`` float64 that best explain those of the cells around."""
    around, known = _surroundings((today.image - side.coarse).double()), _surroundings(today.known[None])[0]
    used = torch.zeros(around.shape, dtype=torch.bool, device=around.device)
    ranks = side.purest.flatten(1)
    there = known.gather(1, ranks).reshape(side.there.shape) & side.there
    many = there.sum(1, keepdim=True)
    cut = (OUTLYING * many).long()
    for values, out in zip(around, used, strict=True):
        own = values.gather(1, ranks).reshape(there.shape)
        ordered = own.masked_fill(~there, torch.inf).sort(1).values
        low, high = (ordered.gather(1, at.clamp(min=0)) for at in (cut, many - 1 - cut))
        kept = there & (own >= low) & (own <= high)
        # Not by assignment: a cell may be purest for two classes, and left out for one of them.
        out[:] = torch.zeros_like(values).scatter_add_(1, ranks, kept.flatten(1).double()) > 0
    weight = used.double()
    mean = (weight * around).sum(2, keepdim=True) / weight.sum(2, keepdim=True).clamp(min=1)
    weighted = weight[..., None] * side.fractions
    matrix = side.fractions.mT @ weighted
    right = weighted.mT @ (around - mean)[..., None]
    matrix.diagonal(dim1=-2, dim2=-1).add_(PRIOR)
    found: Tensor = mean + torch.linalg.solve(matrix, right)[..., 0]
    return found


def _surroundings(cells: Tensor) -> Tensor:
    """``(band, CY, CX)`` as ``(band, cell, around)`` of those that have all cells around."""
    side = 2 * AROUND + 1
    return cells.unfold(1, side, 1).unfold(2, side, 1).reshape(len(cells), -1, side * side)


def _cell_sums(images: Tensor, ratio: int) -> Tensor:
    """Sums ``(band, cy, cx)`` over cells."""
    bands, rows, columns = images.shape
    return images.reshape(bands, rows // ratio, ratio, columns // ratio, ratio).sum((2, 4))


def _expanded(cells: Tensor, ratio: int) -> Tensor:
    """Cells at their pixels."""
    return cells.repeat_interleave(ratio, -2).repeat_interleave(ratio, -1).float()


def _spline(image: Tensor, known: Tensor, ratio: int) -> Tensor:
    """The coarse image at the pixels of its cells that have all cells around, by a thin-plate spline through the 64
    around each pixel; without the unknown ones."""
    table, count = spline_weights(ratio).to(image.device), len(image)
    shape = tuple(side - 2 * AROUND for side in image.shape[1:])
    values = _surroundings(torch.cat([image * known, known[None].to(image.dtype)])) @ table.T
    pixels = values.reshape(-1, *shape, ratio, ratio).permute(0, 1, 3, 2, 4)
    pixels = pixels.reshape(-1, shape[0] * ratio, shape[1] * ratio)[:, ratio:-ratio, ratio:-ratio]
    return pixels[:count] / pixels[count].clamp(min=0.25)


@lru_cache(maxsize=4)
def spline_weights(ratio: int) -> Tensor:
    """Weights ``(pixel of a cell, cell around)`` of the thin-plate spline through the 8 x 8 cells around a pixel.

    It passes through the cells' values at their centres, and is exact for planes:

    >>> weights = spline_weights(4)
    >>> weights.shape, bool((weights.sum(1) - 1).abs().max() < 1e-5)
    (torch.Size([16, 81]), True)
    """
    side = 2 * AROUND + 1
    at = (np.arange(ratio) + 0.5) / ratio - 0.5
    near = np.arange(-AROUND, AROUND + 1, dtype=np.int64)
    out = np.zeros((ratio, ratio, side, side), np.float64)
    halves = [(at < 0, near[:-1]), (at >= 0, near[1:])]
    for rows, down in halves:
        for columns, right in halves:
            if rows.any() and columns.any():
                centres, points = _grid(down, right), _grid(at[rows], at[columns])
                found = _kernel(points, centres) @ np.linalg.inv(_kernel(centres, centres, square=True))
                weights = found[:, : len(centres)].reshape(rows.sum(), columns.sum(), len(down), len(right))
                out[np.ix_(rows, columns, down + AROUND, right + AROUND)] = weights
    return torch.from_numpy(out.reshape(ratio * ratio, side * side)).float()


def _grid(down: npt.NDArray[Any], right: npt.NDArray[Any]) -> Array:
    return np.stack(np.meshgrid(down, right, indexing="ij"), -1).reshape(-1, 2).astype(np.float64)


def _kernel(points: Array, centres: Array, square: bool = False) -> Array:
    """The spline's equations: of points by centres and a plane, or the whole square system."""
    distance = ((points[:, None] - centres) ** 2).sum(2)
    radial = 0.5 * distance * np.log(np.where(distance > 0, distance, 1))
    plane = np.column_stack([np.ones(len(points)), points])
    if not square:
        return np.hstack([radial, plane])
    return np.block([[radial, plane], [plane.T, np.zeros((3, 3))]])
