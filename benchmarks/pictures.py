"""The pictures of docs/concepts.md, from a finished run of the demo: ``python -m benchmarks.pictures demo``.

``make demo DEMO=build/demo`` makes such a run; with ``--uncertainty`` the second picture shows that too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipelines.console import AGAIN, main, out
from stfgan_xr import open_cube, plots
from stfgan_xr.files import as_folder
from stfgan_xr.fusion import NO_AGE, Quality
from stfgan_xr.overviews import days_of
from stfgan_xr.rendering import index_of, stretch_of
from stfgan_xr.sensors import is_clear

TILE, HALO = 128, 32
"""Of the third picture; real blocks are larger."""


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 85})
    out.print(f"picture: {path}", markup=False)


def _place(fused: xr.Dataset) -> tuple[int, int]:
    """Row and column of a pixel that changes more than 99 % of them."""
    bands = {band: fused[band].values for band in ("red", "nir")}
    change = np.nan_to_num(np.ptp(index_of("ndvi", bands), axis=0))
    row, column = np.unravel_index(int(np.abs(change - np.quantile(change, 0.99)).argmin()), change.shape)
    return int(row), int(column)


def bracket(landsat: xr.Dataset, modis: xr.Dataset, fused: xr.Dataset, path: Path) -> None:
    """A day, the observations around it, and one pixel through time with its own observations before and after."""
    row, column = _place(fused)
    ages = fused[["days_before", "days_after"]].isel(y=row, x=column)
    known = (ages.days_before != NO_AGE) & (ages.days_after != NO_AGE)
    step = int((np.minimum(ages.days_before, ages.days_after).astype(int) * known).values.argmax())
    day = days_of(fused)[step]
    series, points = plots.read_series(fused, landsat, "nir", row, column)
    before = fused.time.values[step] - np.timedelta64(int(ages.days_before[step]), "D")
    after = fused.time.values[step] + np.timedelta64(int(ages.days_after[step]), "D")
    rgb = ("red", "green", "blue")
    images = {
        f"Landsat before (F1), {str(before)[:10]}": landsat.sel(time=before),
        f"MODIS (C2), {day}": modis.sel(time=str(day)),
        f"fused, {day}": fused.sel(time=str(day)),
        f"Landsat after (F3), {str(after)[:10]}": landsat.sel(time=after),
    }
    shown = {
        title: np.stack([np.asarray(one[band].values, np.float32) for band in rgb]) for title, one in images.items()
    }
    for title, one in images.items():
        if "Landsat" in title:
            shown[title][:, ~is_clear(np.asarray(one.qa.values))] = np.nan
    stretch = stretch_of([shown[f"fused, {day}"]])
    figure = Figure(figsize=(10, 5), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(1.5, 1))
    for at, (title, image) in enumerate(shown.items()):
        axes = plots.quicklook(figure.add_subplot(grid[0, at]), image, stretch, title)
        scale = image.shape[-1] / fused.sizes["x"]
        axes.plot(column * scale, row * scale, "o", markersize=9, markerfacecolor="none", markeredgecolor="white")
    axes = plots.draw_series(figure.add_subplot(grid[1, :]), series, points, "nir of the pixel in the ring")
    for when, word in ((before, "F1"), (fused.time.values[step], "the day"), (after, "F3")):
        axes.axvline(when, color="0.5", linewidth=0.8, linestyle=":")
        axes.annotate(word, (when, axes.get_ylim()[0]), (3, 4), textcoords="offset points", fontsize=8)
    _save(figure, path)


def quality(fused: xr.Dataset, path: Path) -> None:
    """What comes with each pixel of a day: how it was made, how far its observations are, how sure it is."""
    shares = ((fused.qa & int(Quality.OBSERVED)) != 0).mean(("y", "x")).values
    step = int(np.abs(shares - 0.5).argmin())
    one = fused.isel(time=step).load()
    nearest = np.minimum(one.days_before.values, one.days_after.values).astype(np.float32)
    maps: dict[str, Any] = {
        "qa: observed that day": ((one.qa.values & int(Quality.OBSERVED)) != 0).astype(np.float32),
        "days to the nearest observation": np.where(nearest == NO_AGE, np.nan, nearest),
        "residual_nir: fused minus MODIS": one.residual_nir.values,
    }
    if "std_nir" in one:
        maps["std_nir: standard deviation"] = one.std_nir.values
    figure = Figure(figsize=(3.2 * len(maps), 2.9), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        plots.value_map(axes, values, f"{title}")
    figure.suptitle(f"{days_of(fused)[step]}", fontsize=9)
    _save(figure, path)


def blocks(fused: xr.Dataset, path: Path) -> None:
    """The tiles of a cube, and what is read around one of them."""
    image = plots.image_of(fused, days_of(fused)[0], ("red", "green", "blue"))
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = plots.quicklook(figure.subplots(), image, stretch_of([image]), "")
    height, width = image.shape[1:]
    tile, halo = min(TILE, width // 4), min(HALO, width // 16)
    for edge in range(tile, max(width, height), tile):
        axes.axhline(edge, color="white", linewidth=1)
        axes.axvline(edge, color="white", linewidth=1)
    for far, style in ((0, "-"), (halo, "--")):
        place, size = (tile - far - 0.5, tile - far - 0.5), tile + 2 * far
        axes.add_patch(Rectangle(place, size, size, fill=False, color="yellow", linewidth=2, linestyle=style))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    _save(figure, path)


def command(
    run: Annotated[Path, typer.Argument(help="Run folder of the demo.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("docs"),
) -> None:
    """Draw the pictures of the concepts."""
    landsat, modis, fused = (open_cube(as_folder(run) / f"{name}.zarr") for name in ("landsat", "modis", "fused"))
    bracket(landsat, modis, fused, folder / "bracket.jpg")
    quality(fused, folder / "quality.jpg")
    blocks(fused, folder / "blocks.jpg")


if __name__ == "__main__":
    main(command, AGAIN)
