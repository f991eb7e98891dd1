"""SPSTFM (Huang and Song 2012, doi 10.1109/TGRS.2012.2186638): sparse codes of the coarse change, in a dictionary of
pairs of coarse and fine changes, give the fine change.

Difference images are cut into patches of 7 x 7 pixels; each band has a dictionary of its own. Atoms are pairs of a fine
and a coarse patch, trained on the change between the observations: a pair is coded by orthogonal matching pursuit with
three atoms, atoms follow the gradient of what that leaves, and atoms that are hardly ever used are replaced by pairs
(for the publication's K-SVD: so batches, state and resume are those of all training). On a day the coarse changes since
the observation before and until the one after are coded by the coarse halves and rebuilt by the fine ones; patches
start every four pixels, on the grid that blocks start on, and are averaged where they overlap. The two predictions are
weighted by the coarse changes that they rest on, the smaller counting more.

Which atom comes next is decided in double precision, so that tiles agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stfgan_xr.predictors.learned import Fusion, Sides, Term, later_by_cells
from stfgan_xr.predictors.pairs import Batch, Pair, Targets

SIDE, STEP, MARGIN = 7, 4, 4
"""Pixels along a patch, from one to the next, and beyond the block that patches reach at most."""
AREA = SIDE * SIDE
ATOMS = 3
"""Of a code."""
PATCHES = 1024
"""Of a band in a step of training."""
FORGET, UNUSED = 0.99, 0.01
"""By what the count of an atom's uses fades in a step, and below which it is replaced."""
SIGNALS = 1 << 10
"""Patches that are coded at once."""


def matching_pursuit(atoms: Tensor, signals: Tensor, count: int = ATOMS) -> tuple[Tensor, Tensor]:
    """Sparse codes by orthogonal matching pursuit.

    Parameters
    ----------
    atoms
        ``(k, a, d)`` of ``k`` dictionaries; the next atom is the one of the largest product with what is left.
    signals
        ``(k, p, d)``.
    count
        Atoms of a code.

    Returns
    -------
    tuple
        Which atoms ``(k, p, count)``, and their weights.
    """
    products = signals @ atoms.mT  # (k, p, a)
    gram = atoms @ atoms.mT
    left, chosen = products.clone(), torch.empty((*signals.shape[:2], 0), dtype=torch.long, device=atoms.device)
    weights = products[..., :0]
    for _ in range(count):
        free = left.abs().scatter(-1, chosen, -1.0)
        chosen = torch.cat([chosen, free.argmax(-1, keepdim=True)], dim=-1)
        among = torch.stack([g[c] for g, c in zip(gram, chosen, strict=True)])  # (k, p, n, a)
        square = among.gather(-1, chosen[..., None, :].expand(*among.shape[:-1], chosen.shape[-1]))
        # Atoms that depend on one another have no solution: a trace of the identity makes it one.
        square = square + 1e-12 * torch.eye(chosen.shape[-1], dtype=square.dtype, device=square.device)
        weights = torch.linalg.solve(square, products.gather(-1, chosen)[..., None])[..., 0]
        left = products - (weights[..., None, :] @ among)[..., 0, :]
    return chosen, weights


def rebuilt(atoms: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Signals ``(k, p, d)`` of codes."""
    return torch.stack([(a[c] * w[..., None]).sum(-2) for a, c, w in zip(atoms, chosen, weights, strict=True)])


def patches(image: Tensor) -> Tensor:
    """All patches ``(b, p, 49)`` of images ``(n, b, h, v)``."""
    count, bands = image.shape[:2]
    found = functional.unfold(image, SIDE, stride=STEP).reshape(count, bands, AREA, -1)
    return found.permute(1, 0, 3, 2).reshape(bands, -1, AREA)


def joined(found: Tensor, count: int, shape: tuple[int, int]) -> Tensor:
    """Images ``(n, b, h, v)`` of patches ``(b, p, 49)``, means where they overlap."""
    bands = len(found)
    columns = found.reshape(bands, count, -1, AREA).permute(1, 0, 3, 2).reshape(count, bands * AREA, -1)
    ones = torch.ones((1, AREA, columns.shape[-1]), dtype=columns.dtype, device=columns.device)
    total = functional.fold(columns, shape, SIDE, stride=STEP)
    return total / functional.fold(ones, shape, SIDE, stride=STEP).clamp(min=1)


class SPSTFM(Fusion):
    """The dictionaries of SPSTFM; ``width`` is the number of atoms of each."""

    method, columns, usual, unit = "spstfm", ("mse_fine", "mse_coarse"), 256, STEP
    fine_reach, coarse_reach = 0, MARGIN
    used: Tensor

    def __init__(self, bands: int, width: int) -> None:
        super().__init__(bands, width)
        self.atoms = nn.Parameter(torch.randn(bands, width, 2 * AREA))
        self.register_buffer("used", torch.zeros(bands, width))

    @property
    def floats(self) -> tuple[int, int]:
        """Both observations, and what is coded of a strip."""
        return 2 * self.bands, 4 * self.bands * (2 * AREA + self.width) // STEP**2

    def dictionary(self) -> Tensor:
        """Atoms ``(b, a, 98)`` of length one, the fine half first."""
        return functional.normalize(self.atoms, dim=-1)

    def start(self, pair: Pair) -> Pair:
        """Nothing: what is coded depends on the day."""
        return pair

    def _change(self, coarse: Tensor) -> Tensor:
        """The fine change ``(n, b, y, x)`` of a coarse one ``(n, b, y + 8, x + 8)``."""
        atoms, signals = self.dictionary().double(), patches(coarse).double()
        fine, seen = atoms[..., :AREA], atoms[..., AREA:].contiguous()
        parts = [rebuilt(fine, *matching_pursuit(seen, part)) for part in torch.split(signals, SIGNALS, dim=1)]
        shape = coarse.shape[-2], coarse.shape[-1]
        found = joined(torch.cat(parts, dim=1), len(coarse), shape)
        return found[..., MARGIN:-MARGIN, MARGIN:-MARGIN].to(coarse.dtype)

    def sides(self, started: Pair, targets: Targets) -> Sides:
        """Each observation and its change."""
        before, after = started.cut(0).chunk(2, dim=1)
        since = self._change(started.up(targets.coarse - started.coarse_before, MARGIN))
        until = self._change(started.up(started.coarse_after - targets.coarse, MARGIN))
        return Sides(before + since, after - until, later_by_cells(started, targets.coarse))

    def terms(self, batch: Batch, number: int) -> list[Term]:
        """What codes of patch pairs leave of their fine and coarse halves."""
        draw = torch.Generator().manual_seed(number)
        pairs = self._pairs(batch, draw)
        self._replace(pairs, draw)
        atoms = self.dictionary()
        with torch.no_grad():
            chosen, weights = matching_pursuit(atoms.detach().double(), pairs.double())
        self.used.mul_(FORGET).add_(torch.stack([c.flatten().bincount(minlength=self.width) for c in chosen]))
        error = ((rebuilt(atoms, chosen, weights.to(atoms.dtype)) - pairs) * 2).square()
        return [Term("mse_fine", error[..., :AREA].mean()), Term("mse_coarse", error[..., AREA:].mean())]

    def _pairs(self, batch: Batch, draw: torch.Generator) -> Tensor:
        """Some pairs ``(b, p, 98)`` of fine and coarse patches, clear ones if there are any."""
        pair = batch.pair
        before, after = pair.cut(0).chunk(2, dim=1)
        fine, coarse = patches(after - before), patches(pair.up(pair.coarse_after - pair.coarse_before, 0))
        clear = patches(batch.clear.float()).amin((0, -1)) > 0
        order = torch.randperm(len(clear), generator=draw).to(clear.device)
        chosen = torch.cat([order[clear[order]], order[~clear[order]]])[:PATCHES]
        return torch.cat([fine, coarse], dim=-1)[:, chosen]

    @torch.no_grad()
    def _replace(self, pairs: Tensor, draw: torch.Generator) -> None:
        """Patch pairs in place of atoms that are hardly used; at first of all."""
        for atoms, used, signals in zip(self.atoms, self.used, pairs, strict=True):
            idle = (used < UNUSED).nonzero()[:, 0]
            chosen = torch.randint(signals.shape[0], (len(idle),), generator=draw).to(signals.device)
            atoms[idle] = functional.normalize(signals[chosen] + 1e-6, dim=-1)
            used[idle] = 1
