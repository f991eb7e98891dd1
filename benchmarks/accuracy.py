"""Accuracy of the methods without weights, on demo worlds with known truth and on real imagery.

Each case is judged by B, the better of linear and delta in hindsight. Worlds have seeds from 101 on: methods were tuned
on others. Of the real imagery (``../shared/data``, skipped where absent) all triplets within fifty days are scored.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from pipelines.console import main, out
from stfgan_xr import simulate, store
from stfgan_xr.brackets import DatasetSeries, Interval, intervals, series
from stfgan_xr.datasets import read_pairs
from stfgan_xr.days import from_number
from stfgan_xr.grid import Window
from stfgan_xr.predictors import Predictor
from stfgan_xr.predictors.methods import make

METHODS = ("linear", "delta", "progress")
STARTS = (date(2019, 2, 1), date(2019, 5, 15), date(2019, 8, 1), date(2020, 3, 1), date(2020, 9, 15))
REAL = Path(__file__).parents[2] / "shared" / "data" / "pairs" / "salton_sea_nir" / "pairs.toml"
RESULTS = Path(__file__).parent / "results" / "accuracy.json"
Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """A day predicted: where it is from, days from the observation before to the one after, and errors by method.

    ``abrupt`` are the errors where the land changes at once, if there are such pixels.
    """

    place: str
    day: str
    span: int
    rmse: dict[str, float]
    abrupt: dict[str, float]


def _predict(
    fine: DatasetSeries, coarse: DatasetSeries, method: Predictor, day: int, ratio: int
) -> tuple[Interval, Float]:
    window = Window(0, fine.shape[0], 0, fine.shape[1])
    interval = next(intervals(fine, coarse, window, [day], method.halo, ratio))
    mean = method.predict(method.prepare(interval.bracket), interval.coarse).mean[0]
    cut = (mean.shape[-1] - fine.shape[1]) // 2
    return interval, mean[..., cut : mean.shape[-2] - cut, cut : mean.shape[-1] - cut]


def _usable(interval: Interval, ratio: int) -> Bool:
    """Where both observations and the coarse image have a value."""
    found: Bool = ~(interval.missing | interval.extrapolated)
    return found & ~np.kron(interval.gaps.missing[0], np.ones((ratio, ratio), bool))


def _rmse(errors: dict[str, Float], where: Bool) -> dict[str, float]:
    return {name: float(np.sqrt((error[:, where] ** 2).mean())) for name, error in errors.items()}


def _score(
    place: str,
    fine: DatasetSeries,
    coarse: DatasetSeries,
    day: int,
    truth: Float,
    known: Bool,
    abrupt: Bool,
    ratio: int,
) -> Case | None:
    errors, where, span = {}, known, 0
    for name in METHODS:
        interval, mean = _predict(fine, coarse, make(name, fine.bands, ratio=ratio), day, ratio)
        errors[name] = mean - truth
        where = where & _usable(interval, ratio)
        span = int(np.median(interval.day_after - interval.day_before))
    if where.mean() < 0.3:
        return None
    changed = where & abrupt
    return Case(
        place, str(from_number(day)), span, _rmse(errors, where), _rmse(errors, changed) if changed.sum() > 50 else {}
    )


def simulated(folder: Path, worlds: int, size: int, targets: int) -> Iterator[Case]:
    """Days of worlds between acquisitions that are thinned to none, half or a third."""
    for seed in range(101, 101 + worlds):
        start = STARTS[(seed - 101) % len(STARTS)]
        world = simulate.World(seed=seed, size=size, start=start, days=104)
        toml = simulate.ensure_world(world, folder / f"world-{seed}") / "catalog.toml"
        run = folder / f"run-{seed}"
        dates = f"{start}/{start + timedelta(days=103)}"
        command = [sys.executable, "-m", "pipelines.cubes", "--catalog", str(toml), "--dates", dates]
        subprocess.run([*command, "--bracket-days", "1", "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
        fine, coarse = (series(store.open_counts(run / f"{name}.zarr")) for name in ("landsat", "modis"))
        rng, abrupt = np.random.default_rng(seed), world.abrupt()
        for number in range(targets):
            kept = fine.days[:: 1 + number % 3]
            at = int(rng.integers(0, len(kept) - 1))
            if kept[at + 1] - kept[at] < 2:
                continue
            day = int(rng.integers(kept[at] + 1, kept[at + 1]))
            truth = world.reflectance(from_number(day))
            case = _score(
                f"world {seed}", fine.select(kept), coarse, day, truth, np.ones(abrupt.shape, bool), abrupt, 16
            )
            if case is not None:
                yield case


def real() -> Iterator[Case]:
    """All triplets of the Salton Sea of at most fifty days."""
    pairs = read_pairs(REAL)
    fine, coarse = series(pairs.landsat().compute()), series(pairs.modis().compute())
    window = Window(0, fine.shape[0], 0, fine.shape[1])
    clear = {day: np.asarray(fine.qa([n], window)[0] == 0) for n, day in enumerate(fine.days)}
    days = [day for day, seen in clear.items() if seen.mean() > 0.1]
    for a, before in enumerate(days):
        for after in days[a + 2 :]:
            for day in (day for day in days if before < day < after <= before + 50):
                truth = fine.read([fine.days.index(day)], window)[0]
                known = clear[day] & ~np.isnan(truth).any(axis=0)
                truth, nowhere = np.nan_to_num(truth), np.zeros_like(known)
                case = _score(
                    "salton sea", fine.select([before, after]), coarse, day, truth, known, nowhere, pairs.ratio
                )
                if case is not None:
                    yield case


def summary(cases: list[Case]) -> list[dict[str, Any]]:
    """By method: mean error, mean and worst ratio to B, the share of cases up to 1.02 B, and the ratio where abrupt."""
    bar = np.array([min(case.rmse["linear"], case.rmse["delta"]) for case in cases])
    rows = []
    for name in METHODS:
        rmse = np.array([case.rmse[name] for case in cases])
        sudden = [c.abrupt[name] / min(c.abrupt["linear"], c.abrupt["delta"]) for c in cases if c.abrupt]
        rows.append(
            {
                "method": name, "cases": len(cases), "rmse": float(rmse.mean()), "bar": float(bar.mean()),
                "mean_ratio": float((rmse / bar).mean()), "worst_ratio": float((rmse / bar).max()),
                "up_to_1.02": float((rmse / bar <= 1.02).mean()),
                "abrupt_ratio": float(np.mean(sudden)) if sudden else None,
            }
        )  # fmt: skip
    return rows


def _show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table("method", "RMSE", "/ B", "worst", "<= 1.02", "abrupt", title=title, title_justify="left", box=None)
    for row in rows:
        sudden = row["abrupt_ratio"]
        table.add_row(
            row["method"], f"{row['rmse']:.4f}", f"{row['mean_ratio']:.3f}", f"{row['worst_ratio']:.3f}",
            f"{row['up_to_1.02']:.0%}", "" if sudden is None else f"{sudden:.3f}",
        )  # fmt: skip
    out.print(table)


def command(
    worlds: Annotated[int, typer.Option(min=0, help="Demo worlds, seeds from 101 on.")] = 5,
    size: Annotated[int, typer.Option(min=64, help="Pixels along a world.")] = 256,
    targets: Annotated[int, typer.Option(min=1, help="Days of each world.")] = 12,
    to: Annotated[Path, typer.Option(help="File of the figures.")] = RESULTS,
) -> None:
    """Score linear, delta and progress on worlds they were not tuned on, and on real imagery."""
    document = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cases in (
            (f"{worlds} demo worlds", list(simulated(Path(folder), worlds, size, targets))),
            ("Salton Sea, near infrared", list(real()) if REAL.is_file() else []),
        ):
            if cases:
                rows = summary(cases)
                _show(f"{name}, {len(cases)} cases, B {rows[0]['bar']:.4f}", rows)
                document[name] = {"methods": rows, "cases": [vars(case) for case in cases]}
    if document:
        to.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(command)
