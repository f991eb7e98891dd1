"""What each part of STFGAN's training is worth: variants trained alike on the corpus, scored on unseen worlds.

Every variant sees the same samples in the same order (``make weights`` makes the corpus) and is scored on the same ones
of the worlds of ``benchmarks.accuracy``, against B, the better of linear and delta of each sample.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from benchmarks.accuracy import FIRST_SEED, unseen
from pipelines.console import err, main, out
from stfgan_xr import samples, simulate, store, training
from stfgan_xr.cluster import compute_here
from stfgan_xr.grid import Halo
from stfgan_xr.learning import Gan, Recipe, Run, Step, train_step
from stfgan_xr.predictors.objective import TrainedSTFGAN, predict
from stfgan_xr.predictors.pairs import Batch, Targets
from stfgan_xr.predictors.stages import AnchorName, Architecture, Schedule, anchor
from stfgan_xr.samples import Sample

RESULTS = Path(__file__).parent / "results" / "ablations.json"
DOCUMENT = Path(__file__).parent / "ablations.md"
RATIO = 16


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    anchor: AnchorName = "progress"
    gan: Gan = "none"
    schedule: Schedule = "same-grid"
    width: int = 16


VARIANTS = (
    Variant("shipped: corrects progress, MSE"),
    Variant("+ adversarial (wgan-clip)", gan="wgan-clip"),
    Variant("+ adversarial (lsgan)", gan="lsgan"),
    Variant("corrects delta", anchor="delta"),
    Variant("paper's form (no anchor)", anchor="none"),
    Variant("paper's form + adversarial", anchor="none", gan="wgan-clip"),
    Variant("progressive schedule", schedule="progressive"),
    Variant("width 8", width=8),
    Variant("width 32", width=32),
)


class _Straight(np.random.Generator):
    """Turns nothing."""

    def integers(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        return np.zeros(1, int)


def _samples(places: list[tuple[Path, Path]], count: int, halo: Halo, seed: int, distorted: bool) -> list[Sample]:
    cubes, truths = [], []
    for world, run in places:
        cubes.append(tuple(store.open_counts(run / f"{name}.zarr").load() for name in ("landsat", "modis")))
        truths.append(simulate.read_world(world).reflectance)
    found = training.corpus([(fine, coarse) for fine, coarse in cubes], None, truths)
    return list(samples.collect(found, count, 192, halo, seed, (4, 64), distorted=distorted))


def _whole(sample: Sample, halo: Halo, name: AnchorName) -> Batch:
    batch = training.to_batch([sample], halo, RATIO, _Straight(np.random.PCG64(0)), "cpu")
    return TrainedSTFGAN(Architecture(("any",), anchor=name)).clocked(batch)


def _error(result: torch.Tensor, target: torch.Tensor, clear: torch.Tensor) -> float:
    return float((result - target)[clear].square().mean().sqrt())


def _bar(sample: Sample, halo: Halo) -> float:
    """The better of linear and delta."""
    batch = _whole(sample, halo, "delta")
    pair = batch.pair
    # Where the coarse series stands still delta is linear.
    still = Targets.by_calendar(batch.targets.days, pair.coarse_before)
    images = (anchor(pair, batch.targets, 0), anchor(replace(pair, coarse_after=pair.coarse_before), still, 0))
    return min(_error(found.image, batch.target, batch.clear) for found in images)


def _scored(run: Run, test: list[Sample], halo: Halo, bars: list[float]) -> list[dict[str, float]]:
    """RMSE of both stages, each at its own resolution, against B."""
    network = run.result.eval()
    with torch.inference_mode():
        found = [predict(network, _whole(sample, halo, network.architecture.anchor), settled=True) for sample in test]
    ratios = (
        np.array([[_error(s.result, s.target, s.clear) for s in stages] for stages in found]) / np.array(bars)[:, None]
    )
    return [{"mean": float(r.mean()), "worst": float(r.max())} for r in ratios.T]


def _trained(variant: Variant, pool: list[Sample], halo: Halo, steps: int) -> Run:
    recipe = Recipe(
        gan=variant.gan, steps=steps, batch=4, patch=96, margin=halo.fine, optimiser="adam", learning_rate=1e-3,
        decay="cosine", average=0.99, seed=1,
    )  # fmt: skip
    bands = tuple(f"band{number}" for number in range(len(pool[0].target)))
    method = TrainedSTFGAN(Architecture(bands, variant.width, variant.schedule, variant.anchor, RATIO))
    run = Run(method, recipe, "cpu")
    for number in range(steps):
        step = Step(number, steps, recipe)
        draw = step.random()
        chosen = draw.integers(len(pool), size=recipe.batch)
        patches = [samples.cut(pool[int(index)], recipe.patch, RATIO, draw) for index in chosen]
        train_step(run, step, training.to_batch(patches, halo, RATIO, draw, "cpu"))
        run.step += 1
    return run


def document(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Ablations",
        f"`python -m benchmarks.ablations` trains each variant for {figures['steps']} steps on the same samples of the",
        f"corpus (worlds 1 to 16), in the same order, and scores it on {figures['samples']} samples of unseen worlds",
        "(from 301 on) with brackets of 4 to 64 days. RMSE over B, the better of linear and delta of each one: of the",
        "first stage, which is what one stage would give (of the progressive schedule at 120 m), and of both.",
        "",
        "| variant | parameters | one stage: RMSE / B | two stages: RMSE / B | worst |",
        "|---|---|---|---|---|",
    ]
    for row in figures["variants"]:
        scores = f"{row['stage1']['mean']:.3f} | {row['stage2']['mean']:.3f} | {row['stage2']['worst']:.3f}"
        lines.append(f"| {row['name']} | {row['parameters'] / 1e6:.2f} M | {scores} |")
    return "\n".join(lines) + "\n"


def command(
    corpus: Annotated[Path, typer.Option(help="Worlds and runs to train on, as of make weights.")] = Path(
        "build/corpus"
    ),
    folder: Annotated[Path, typer.Option(help="Where unseen worlds are kept.")] = Path("build/unseen"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of each variant.")] = 300,
    worlds: Annotated[int, typer.Option(min=1, help="Unseen worlds.")] = 5,
    to: Annotated[Path, typer.Option(help="File of the figures.")] = RESULTS,
) -> None:
    """Train each variant alike and score it."""
    compute_here(torch.get_num_threads())
    halo = Halo(fine=16, coarse=2)
    runs = sorted(corpus.glob("run-*"))
    pool = _samples([(corpus / f"world-{run.name[4:]}", run) for run in runs], 30 * len(runs), halo, 7, True)
    seeds = range(FIRST_SEED, FIRST_SEED + worlds)
    places = [(folder / f"world-{seed}", unseen(folder, seed, 256)[1]) for seed in seeds]
    test = _samples(places, 10 * worlds, halo, 5, False)
    bars = [_bar(sample, halo) for sample in test]
    rows, table = [], Table("variant", "parameters", "stage 1 / B", "stage 2 / B", "worst", "time", box=None)
    for variant in VARIANTS:
        begun = time.monotonic()
        run = _trained(variant, pool, halo, steps)
        spent = time.monotonic() - begun
        first, second = _scored(run, test, halo, bars)
        count = sum(parameter.numel() for parameter in run.network.parameters())
        rows.append({**vars(variant), "parameters": count, "stage1": first, "stage2": second, "seconds": spent})
        share = spent / rows[0]["seconds"]
        cells = (f"{first['mean']:.3f}", f"{second['mean']:.3f}", f"{second['worst']:.3f}", f"{share:.1f} x")
        table.add_row(variant.name, f"{count / 1e6:.2f} M", *cells)
        err.print(variant.name, *cells, highlight=False)
        figures = {"steps": steps, "samples": len(test), "variants": rows}
        to.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if to == RESULTS:
        DOCUMENT.write_text(document(figures), encoding="utf-8")
    out.print(table)


if __name__ == "__main__":
    main(command)
