"""Accuracy against B, the better of linear and delta of each case in hindsight: worlds with known truth, real imagery.

Worlds have seeds from 301 on: weights were trained on seeds 1 to 16, and constants chosen on 1 to 10 and 101 to 105.
Those of :data:`LOOKED_AT` were scored on the way as well, so the others have scores of their own.
Of the Salton Sea (``../shared/data``, skipped where absent) all triplets within fifty days and each day with its
nearest neighbours are scored; of Pucallpa three composites of real Landsat imagery with simulated coarse images.
Protocol: nothing acquired on the target day or strictly between the bracketing days is used.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
import typer
from affine import Affine
from odc.geo.geobox import GeoBox
from rich.table import Table
from scipy import ndimage

from pipelines.console import err, main, out
from stfgan_xr import simulate, store, training
from stfgan_xr.brackets import DatasetSeries, Interval, intervals, series, spectra
from stfgan_xr.checkpoint import read_config, resolve, shipped
from stfgan_xr.datasets import counts_dataset, read_pairs
from stfgan_xr.days import from_number, to_number
from stfgan_xr.grid import Window
from stfgan_xr.landscape import World
from stfgan_xr.metrics import scores
from stfgan_xr.predictors import Bracket, Predictor, cloud_reach, cropped, fitted, is_fitted, wants_archive
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.resample import upsample
from stfgan_xr.samples import Distortion
from stfgan_xr.sensors import BANDS, from_reflectance, is_clear

METHODS = ("linear", "delta", "progress", "stfgan")
ORACLE, PICK = "oracle", "pick"
"""Progress with the true mean of every cell: what is left to those who know nothing finer. And the best of it and both
observations in each pixel: what is left to those who know exactly which of them have changed already."""
Methods = Callable[[tuple[str, ...], int], Mapping[str, Predictor]]
"""Predictors by name for bands and a ratio; linear and delta are among them."""
FIRST_SEED = 301
LOOKED_AT = frozenset({301, 304, 306, 311, 316, 317})
"""Seeds that choices were looked at on: the part of the weights' corrections that counts (301, 306, 311, 316, and the
Salton Sea), and what mended the level of progress (304, 317)."""
STARTS = (date(2019, 2, 1), date(2019, 5, 15), date(2019, 8, 1), date(2020, 3, 1), date(2020, 9, 15))
SPANS = ((4, 8), (9, 16), (17, 32), (33, 64))
"""Days from the acquisition before to the one after; one case of each in a world."""
FAULTS = {
    "coarse images half a cell off": {"shift": (0.35, 0.35)},
    "coarse images 3 % too bright": {"gain": 1.03},
    "coarse images hazy (0.01)": {"haze": 0.01},
}
"""What is wrong with the six bands of some of the worlds, to see what it costs."""
WITH_FAULTS = 6
"""Worlds that these are tried on."""
SUBSETS = {"six bands": BANDS, "four bands": BANDS[:4], "near infrared": ("nir",)}
CHANGED = 0.05
"""Reflectance (root mean square over bands) by which a pixel of abrupt change must differ from one of its bracketing
days to count as changed."""
DATA = Path(__file__).parents[2] / "shared" / "data"
SALTON, PUCALLPA = DATA / "pairs" / "salton_sea_nir" / "pairs.toml", DATA / "landsat" / "pucallpa_8bit"
RESULTS, DOCUMENT = Path(__file__).parent / "results" / "accuracy.json", Path(__file__).parent / "accuracy.md"
SHOWN = ("rmse", "ssim", "sam", "ergas")
Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """A day predicted: where, days from the acquisition before to the one after, and scores by method.

    ``abrupt`` is the RMSE where the land changes at once within the world's days, ``changed`` where it has done so
    since or until the bracketing days; empty where there are no fifty such pixels.
    """

    place: str
    day: str
    span: int
    scores: dict[str, dict[str, float]]
    abrupt: dict[str, float] = field(default_factory=dict)
    changed: dict[str, float] = field(default_factory=dict)

    def bar(self, name: str = "rmse") -> float:
        """The better of linear and delta."""
        return min(self.scores[method][name] for method in ("linear", "delta"))


def usual(model: Path | None, stand_in: str = "stfgan") -> Methods:
    """:data:`METHODS`, stfgan with some weights, or what a guard chose in its place."""

    def methods(bands: tuple[str, ...], ratio: int) -> Mapping[str, Predictor]:
        used = {name: stand_in if name == "stfgan" else name for name in METHODS}
        return {name: make(use, bands, model if use == "stfgan" else None, ratio) for name, use in used.items()}

    return methods


@dataclass(frozen=True)
class Scene:
    """What is known of a place, how a case of it is named, and what is compared."""

    name: str
    fine: DatasetSeries
    coarse: DatasetSeries
    ratio: int
    methods: Methods
    fault: Distortion | None = None

    def predict(self, predictor: Predictor, kept: Sequence[int], day: int) -> tuple[Interval, Float]:
        """A method's image of a day from the acquisitions kept."""
        window, known = Window(0, self.fine.shape[0], 0, self.fine.shape[1]), self.fine.select(kept)
        if is_fitted(predictor):
            predictor = fitted(predictor, spectra(known))
        more = {"archive": wants_archive(predictor), "cloud_reach": cloud_reach(predictor)}
        interval = next(intervals(known, self.coarse, window, [day], predictor.halo, self.ratio, **more))
        bracket, coarse = interval.bracket, interval.coarse
        if self.fault is not None:
            bracket, coarse, _ = self.fault.seen(interval, bracket.fine_before, 0.5)
        return interval, predictor.predict(predictor.prepare(bracket), coarse).mean[0]

    def score(
        self, before: int, day: int, after: int, truth: Float, known: Bool, parts: dict[str, Bool] | None = None,
        alone: bool = False,
    ) -> Case | None:  # fmt: skip
        """A case, from all acquisitions but those inside the bracket, or from the two days ``alone``."""
        kept = [d for d in self.fine.days if (d in (before, after) if alone else d <= before or d >= after)]
        images, where = {}, known
        for name, predictor in self.methods(self.fine.bands, self.ratio).items():
            interval, images[name] = self.predict(predictor, kept, day)
            where = where & _usable(interval, self.ratio) & np.isfinite(images[name]).all(axis=0)
        if where.mean() < 0.1:
            return None
        if "progress" in images:
            images[ORACLE] = oracle(images["progress"], truth, where, self.ratio)
            images[PICK] = pick(images["progress"], interval.bracket, truth)
        found = {name: scores(image, truth, where, self.ratio) for name, image in images.items()}
        values = {name: _known({key: getattr(score, key) for key in SHOWN}) for name, score in found.items()}
        sums = {
            part: {name: _rmse(image - truth, where & mask) for name, image in images.items()}
            for part, mask in (parts or {}).items()
            if (where & mask).sum() > 50
        }
        return Case(self.name, str(from_number(day)), after - before, values, **sums)


def _known(values: dict[str, float | None]) -> dict[str, float]:
    """Without what is not defined, as a spectral angle of one band."""
    return {key: float(value) for key, value in values.items() if value is not None}


def _usable(interval: Interval, ratio: int) -> Bool:
    """Where both observations and the coarse image have a value."""
    found: Bool = ~(interval.missing | interval.extrapolated)
    return found & ~np.kron(interval.gaps.missing[0], np.ones((ratio, ratio), bool))


def _rmse(error: Float, where: Bool) -> float:
    return float(np.sqrt((error[:, where] ** 2).mean()))


def oracle(image: Float, truth: Float, where: Bool, ratio: int) -> Float:
    """An image brought to the true mean of each cell, over the pixels in question, without steps between cells."""

    def means(pixels: Float) -> Float:
        rows, columns = (side // ratio for side in where.shape)
        cells = np.where(where, pixels, 0).reshape(-1, rows, ratio, columns, ratio).sum((2, 4))
        return cells / np.maximum(where.reshape(rows, ratio, columns, ratio).sum((1, 3)), 1)

    found = image
    for _ in range(10):
        missing = torch.from_numpy(means(truth - found).astype(np.float32))
        found = found + upsample(missing, where.shape, ratio=ratio, halo=0).numpy()
    return found


def pick(image: Float, bracket: Bracket, truth: Float) -> Float:
    """An image, or either observation where that is nearer to the truth over all bands."""
    ends = (cropped(end, bracket.halo.fine) for end in (bracket.fine_before, bracket.fine_after))
    choices = np.stack([image, *ends])
    best = ((choices - truth) ** 2).sum(axis=1).argmin(axis=0)
    return np.take_along_axis(choices, best[None, None], axis=0)[0]


def unseen(folder: Path, seed: int, size: int) -> tuple[World, Path]:
    """An unseen world and a run folder with its cubes; they are made once."""
    start = STARTS[(seed - FIRST_SEED) % len(STARTS)]
    world, run = simulate.World(seed=seed, size=size, start=start, days=104), folder / f"run-{seed}"
    toml = simulate.ensure_world(world, folder / f"world-{seed}") / "catalog.toml"
    command = [sys.executable, "-m", "pipelines.cubes", "--catalog", str(toml), "--dates", f"{start}/{world.last}"]
    subprocess.run(
        [*command, "--bracket-days", "1", "--out", str(run)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return world, run


def _fault(bands: int, seed: int, shift: tuple[float, float] = (0, 0), gain: float = 1, haze: float = 0) -> Distortion:
    gains, offsets = np.full(bands, gain, np.float32), np.zeros(bands, np.float32)
    return Distortion(tuple(range(bands)), shift, gains, offsets, haze=haze, seed=seed)


def simulated(
    folder: Path, worlds: int, size: int, bands: Sequence[str], methods: Methods, fault: dict[str, Any] | None = None
) -> Iterator[Case]:
    """A day of each world for each length of the bracket."""
    for seed in range(FIRST_SEED, FIRST_SEED + worlds):
        world, run = unseen(folder, seed, size)
        fine, coarse = (series(store.open_counts(run / f"{name}.zarr"), bands) for name in ("landsat", "modis"))
        scene, draw, sudden = (
            Scene(f"world {seed}", fine, coarse, 16, methods, _fault(len(bands), seed, **fault) if fault else None),
            np.random.default_rng(seed),
            world.abrupt(),
        )
        for least, most in SPANS:
            pairs = [(a, b) for a in fine.days for b in fine.days if least <= b - a <= most]
            before, after = pairs[int(draw.integers(len(pairs)))]
            day = int(draw.integers(before + 1, after))
            truth, *around = (world.reflectance(from_number(d), bands) for d in (day, before, after))
            moved = [np.sqrt(((truth - image) ** 2).mean(axis=0)) > CHANGED for image in around]
            parts = {"abrupt": sudden, "changed": sudden & (moved[0] | moved[1])}
            case = scene.score(before, day, after, truth, np.ones(sudden.shape, bool), parts)
            if case is not None:
                yield case
        err.print(f"world {seed}, {len(bands)} bands: done", highlight=False)


def _clear(fine: DatasetSeries) -> dict[int, Bool]:
    """Where the images of a place hold a value, by day, if a tenth does."""
    window = Window(0, fine.shape[0], 0, fine.shape[1])
    seen = {day: is_clear(fine.qa([number], window)[0]) for number, day in enumerate(fine.days)}
    return {day: clear for day, clear in seen.items() if clear.mean() > 0.1}


def _observed(fine: DatasetSeries, clear: dict[int, Bool], day: int) -> tuple[Float, Bool]:
    image = fine.read([fine.days.index(day)], Window(0, fine.shape[0], 0, fine.shape[1]))[0]
    return np.nan_to_num(image), clear[day] & ~np.isnan(image).any(axis=0)


def salton_sea(methods: Methods) -> Scene:
    """The Salton Sea."""
    pairs = read_pairs(SALTON)
    fine, coarse = series(pairs.landsat().compute()), series(pairs.modis().compute())
    return Scene("salton sea", fine, coarse, pairs.ratio, methods)


def salton(methods: Methods, nearest: bool) -> Iterator[Case]:
    """Triplets of the Salton Sea of at most fifty days, or each day with its neighbours."""
    scene = salton_sea(methods)
    yield from _triplets(scene, _clear(scene.fine), nearest)


def _triplets(scene: Scene, clear: dict[int, Bool], nearest: bool = False) -> Iterator[Case]:
    days = sorted(clear)
    for a, before in enumerate(days):
        for b in range(a + 2, a + 3 if nearest else len(days)):
            if b >= len(days) or (not nearest and days[b] > before + 50):
                continue
            for day in days[a + 1 : b]:
                case = scene.score(before, day, days[b], *_observed(scene.fine, clear, day), alone=not nearest)
                if case is not None:
                    yield case


def adapted(folder: Path, model: Path | None, minutes: float) -> Iterator[Case]:
    """The Salton Sea by halves: triplets of one half, predicted as ``fuse --adapt --guard`` does on the other.

    Weights are adapted to the acquisitions of the other half and used if they beat those they came from and progress
    on its withheld days; else the unadapted ones if these beat progress there; else progress.
    """
    pairs = read_pairs(SALTON)
    landsat, modis = pairs.landsat().compute(), pairs.modis().compute()
    scene = salton_sea(usual(model))
    clear = _clear(scene.fine)
    middle = sorted(clear)[len(clear) // 2]
    for number, inside in enumerate((lambda day: day < middle, lambda day: day >= middle)):
        # Of so few acquisitions one is withheld: it must not be one of clouds.
        other = landsat.isel(time=[n for n, day in enumerate(scene.fine.days) if day in clear and not inside(day)])
        trained = folder / f"adapted-{number}-{minutes:g}"
        found = training.adapt([(other, modis)], "shipped" if model is None else model, trained, minutes)
        if "withheld" not in found:
            err.print(f"half {number + 1}: not adapted, {found['why']}", highlight=False)
            continue
        errors = found["withheld"]["rmse"]
        used = trained / "stfgan.safetensors" if found["used"] else model
        beaten = errors["stfgan" if found["used"] else "from"] < errors["progress"]
        err.print(f"half {number + 1}: {found['why']}; {'the weights' if beaten else 'progress'} used", highlight=False)
        half = replace(scene, methods=usual(used, "stfgan" if beaten else "progress"))
        yield from _triplets(half, {day: where for day, where in clear.items() if inside(day)})


def given(methods: Methods, triplets: Sequence[tuple[date, date, date]]) -> Iterator[Case]:
    """Some triplets of the Salton Sea."""
    scene = salton_sea(methods)
    clear = _clear(scene.fine)
    for before, day, after in (map(to_number, triplet) for triplet in triplets):
        case = scene.score(before, day, after, *_observed(scene.fine, clear, day))
        if case is not None:
            yield case


def pucallpa(methods: Methods) -> Iterator[Case]:
    """Composites of real Landsat imagery as if ten days apart, coarse images averaged from them, with noise.

    The values are stretched for display: only what they are to B means something.
    """
    bands, images = ("green", "red", "nir", "swir1"), []
    for file in sorted(PUCALLPA.glob("*.tif")):
        with rasterio.open(file) as source:
            swir1, nir, red, green = source.read()[:4, : source.height // 16 * 16, : source.width // 16 * 16]
        images.append(np.stack([green, red, nir, swir1]).astype(np.float32) / 510)
    start, draw = to_number(date(2000, 1, 1)), np.random.default_rng(0)
    days = [start + 10 * number for number in range(len(images))]
    every = range(days[0], days[-1] + 1)
    means = np.stack([_coarse(image) for image in images])
    daily = np.stack([_between(means, (day - start) / 10) for day in every])
    daily += draw.normal(0, 0.003, daily.shape)
    grids = [GeoBox(array.shape[-2:], Affine(pixel, 0, 0, 0, -pixel, 0), "EPSG:32618")
             for array, pixel in ((images[0], 30), (daily, 480))]  # fmt: skip
    fine, coarse = (
        series(counts_dataset(from_reflectance(array), bands, grid, [from_number(day) for day in on]))
        for array, grid, on in ((np.stack(images), grids[0], days), (daily, grids[1], every))
    )
    scene = Scene("pucallpa", fine, coarse, 16, methods)
    for before, day, after, truth in zip(days, days[1:], days[2:], images[1:], strict=False):
        case = scene.score(before, day, after, truth, (truth > 0).all(axis=0), alone=True)
        if case is not None:
            yield case


def _coarse(image: Float) -> Float:
    """Cells of 16 pixels, behind a point spread function of half a cell."""
    blurred = ndimage.gaussian_filter(image, (0, 5, 5))
    bands, rows, columns = image.shape
    return np.asarray(blurred.reshape(bands, rows // 16, 16, columns // 16, 16).mean((2, 4)), np.float32)


def _between(images: Float, at: float) -> Float:
    first = min(int(at), len(images) - 2)
    return np.asarray(images[first] + (at - first) * (images[first + 1] - images[first]), np.float32)


@dataclass(frozen=True)
class Group:
    """Cases of one kind: a title, a key for files, and what makes them."""

    key: str
    title: str
    cases: Callable[[], Iterator[Case]]


def groups(
    folder: Path, worlds: int, size: int, model: Path | None, bands: Sequence[str], minutes: float
) -> list[Group]:
    """All kinds that can be scored here, ``bands`` being those of the weights."""
    found = [
        Group(
            f"worlds, {name}",
            f"{worlds} demo worlds, {name}",
            partial(simulated, folder, worlds, size, subset, usual(model)),
        )
        for name, subset in SUBSETS.items()
        if set(subset) <= set(bands)
    ]
    if set(BANDS) <= set(bands):
        few = min(worlds, WITH_FAULTS)
        found += [
            Group(
                f"worlds, {name}",
                f"{few} demo worlds, six bands, {name}",
                partial(simulated, folder, few, size, BANDS, usual(model), fault),
            )
            for name, fault in FAULTS.items()
        ]
    if SALTON.is_file():
        found += [
            Group("salton sea", "Salton Sea, triplets within fifty days", partial(salton, usual(model), nearest=False)),
            Group(
                "salton sea, adapted",
                "Salton Sea by halves, each with weights adapted to the other and guarded",
                partial(adapted, folder, model, minutes),
            ),
            Group(
                "salton sea, nearest",
                "Salton Sea, each day from its neighbours",
                partial(salton, usual(model), nearest=True),
            ),
        ]
    if PUCALLPA.is_dir():
        found.append(Group("pucallpa", "Pucallpa, real Landsat with simulated coarse", partial(pucallpa, usual(model))))
    return found


def summary(cases: list[Case]) -> list[dict[str, Any]]:
    """By method: mean scores; RMSE against B: of means, mean, worst, the share up to 1.02, and where abrupt."""
    bar = np.array([case.bar() for case in cases])
    rows = []
    for name in cases[0].scores:
        rmse = np.array([case.scores[name]["rmse"] for case in cases])
        row: dict[str, Any] = {"method": name, "cases": len(cases), "bar": float(bar.mean())}
        for key in SHOWN:
            known = [case.scores[name][key] for case in cases if key in case.scores[name]]
            row[key] = float(np.mean(known)) if known else None
        row |= {
            "of_means": float(rmse.mean() / bar.mean()), "mean_ratio": float((rmse / bar).mean()),
            "worst_ratio": float((rmse / bar).max()), "up_to_1.02": float((rmse / bar <= 1.02).mean()),
        }  # fmt: skip
        for part in ("abrupt", "changed"):
            errors = [getattr(case, part) for case in cases if getattr(case, part)]
            ratios = [found[name] / min(found["linear"], found["delta"]) for found in errors]
            row[f"{part}_ratio"] = float(np.mean(ratios)) if ratios else None
        rows.append(row)
    return rows


def by_span(cases: list[Case]) -> list[dict[str, Any]]:
    """Mean RMSE against B for brackets of some lengths."""
    found = []
    for least, most in SPANS:
        chosen = [case for case in cases if least <= case.span <= most]
        if chosen:
            ratios = {m: float(np.mean([c.scores[m]["rmse"] / c.bar() for c in chosen])) for m in cases[0].scores}
            found.append({"days": f"{least} to {most}", "cases": len(chosen), **ratios})
    return found


COLUMNS = (
    ("RMSE", "rmse", "{:.4f}"), ("mean RMSE / mean B", "of_means", "{:.3f}"),
    ("mean of RMSE / B", "mean_ratio", "{:.3f}"), ("worst", "worst_ratio", "{:.3f}"),
    ("up to 1.02 B", "up_to_1.02", "{:.0%}"), ("abrupt / B", "abrupt_ratio", "{:.3f}"),
    ("changed / B", "changed_ratio", "{:.3f}"), ("SSIM", "ssim", "{:.4f}"), ("SAM", "sam", "{:.3f}"),
    ("ERGAS", "ergas", "{:.3f}"),
)  # fmt: skip


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    shown = [column for column in COLUMNS if any(row[column[1]] is not None for row in rows)]
    lines = ["| method | " + " | ".join(title for title, *_ in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row['method']} | " + " | ".join(_cell(row[key], form) for _, key, form in shown) + " |")
    return lines


PREFACE = """# Accuracy

Made by `{command}`; the figures of every case are in `results/accuracy.json`.
Weights: `{sha256}`, of {bands}.

B is the better of linear and delta of each case, in hindsight. RMSE is of reflectance, over the pixels with a value of
every method, averaged over bands. Abrupt: pixels of a world that change at once, as a flood or a harvest does, on some
day; changed: those that have done so since or until a bracketing day. Best is an SSIM of 1; SAM is in degrees, ERGAS
with h/l of the cubes. Oracle: progress brought to the true mean of every coarse cell; what is left to it is detail that
no coarse image shows. Pick: in each pixel the nearest to the truth of progress and both observations, noise included;
what is left to it where the land changed is change that came and went between the observations, and their blur.

Trained on: demo worlds of the seeds 1 to 16 and nothing else. Scored here: demo worlds of the seeds from {seed} on,
`pairs/salton_sea_nir` (without 2020-11-26) and `landsat/pucallpa_8bit`, which no weights have seen; the constants of
progress were chosen on worlds 1 to 10 and on the Salton Sea itself. The worlds {looked_at} and the
Salton Sea were also scored when it was chosen how much of the weights' corrections counts, and how the level of
progress is smoothed; where a group holds others as well, those have a table of their own.

"""


def document(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    weights = results["weights"]
    lines = PREFACE.format(
        command=results["command"],
        sha256=weights["sha256"][:12],
        bands=", ".join(weights["bands"]),
        seed=FIRST_SEED,
        looked_at=", ".join(map(str, sorted(LOOKED_AT))),
    ).splitlines()
    for found in results["groups"].values():
        cases = [Case(**case) for case in found["cases"]]
        lines += [f"## {found['title']}: {len(cases)} cases, B {np.mean([case.bar() for case in cases]):.4f}", ""]
        lines += [*_table(summary(cases)), ""]
        fresh = [case for case in cases if case.place not in {f"world {seed}" for seed in LOOKED_AT}]
        if 0 < len(fresh) < len(cases):
            lines += [f"The {len(fresh)} cases of worlds that nothing was looked at on:", ""]
            lines += [*_table(summary(fresh)), ""]
        spans = by_span(cases)
        if len(spans) > 1:
            lines += ["| days of the bracket | cases | " + " | ".join(f"{m} / B" for m in cases[0].scores) + " |"]
            lines += ["|---" * (len(cases[0].scores) + 2) + "|"]
            for row in spans:
                values = " | ".join(f"{row[method]:.3f}" for method in cases[0].scores)
                lines.append(f"| {row['days']} | {row['cases']} | {values} |")
            lines.append("")
    return "\n".join(lines)


def _show(title: str, cases: list[Case]) -> None:
    rows = summary(cases)
    table = Table("method", "RMSE", "/ B", "worst", "<= 1.02", "abrupt", "changed", title_justify="left", box=None)
    table.title = f"{title}, {len(cases)} cases, B {rows[0]['bar']:.4f}"
    for row in rows:
        cells = [_cell(row[key], form) for _, key, form in COLUMNS if key in
                 ("rmse", "mean_ratio", "worst_ratio", "up_to_1.02", "abrupt_ratio", "changed_ratio")]  # fmt: skip
        table.add_row(row["method"], *cells)
    out.print(table)


def command(
    worlds: Annotated[int, typer.Option(min=0, help=f"Demo worlds, seeds from {FIRST_SEED} on.")] = 20,
    size: Annotated[int, typer.Option(min=64, help="Pixels along a world.")] = 256,
    model: Annotated[Path | None, typer.Option(help="Weights of stfgan. Default: those of the package.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where worlds are kept between runs.")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training on each half of the Salton Sea.")] = 3,
    to: Annotated[Path, typer.Option(help="File of the figures.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="Markdown of the figures.")] = DOCUMENT,
) -> None:
    """Score linear, delta, progress and stfgan on worlds none was made on, and on real imagery."""
    config = read_config(shipped() if model is None else resolve(model))
    results: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.accuracy", *(f"--worlds {worlds}" for _ in range(worlds != 20))]),
        "weights": {key: config[key] for key in ("sha256", "bands")},
        "groups": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for group in groups(folder or Path(temporary), worlds, size, model, config["bands"], minutes):
            cases = list(group.cases())
            if cases:
                _show(group.title, cases)
                results["groups"][group.key] = {"title": group.title, "cases": [asdict(case) for case in cases]}
                to.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                page.write_text(document(results), encoding="utf-8")


if __name__ == "__main__":
    main(command)
