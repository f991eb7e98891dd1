"""The demo world as files: simulated Landsat and MODIS of a landscape with known truth, of any size."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import AGAIN, main, out
from stfgan_xr import days as calendar
from stfgan_xr import simulate
from stfgan_xr.errors import InputError
from stfgan_xr.files import LocalFolder
from stfgan_xr.grid import describe


def _day(text: str) -> date:
    (day,) = calendar.parse_dates(text)[:1]
    return day


def command(
    folder: Annotated[Path, typer.Option("--out", help="Folder to write; it must be empty or absent.")],
    size: Annotated[int, typer.Option(min=16, max=100_000, help="Fine pixels along a side.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another landscape.")] = 0,
    start: Annotated[str, typer.Option(help="First day.")] = "2020-02-01",
    days: Annotated[int, typer.Option(min=1, max=3660, help="Number of days.")] = 90,
) -> None:
    """Simulate a world and write what satellites would deliver of it, with a catalog that the other commands read."""
    LocalFolder(folder).check()
    if days < 20:
        raise InputError(f"--days {days}: at least 20, or no change falls within them")
    world = simulate.World(seed=seed, size=size, start=_day(start), days=days)
    made = simulate.ensure_world(world, folder)
    out.print(f"area   {describe(world.grid)}")
    out.print(f"days   {calendar.describe(calendar.day_range(world.start, world.last))}")
    out.print(f"truth  {world.abrupt().mean():.1%} of the pixels change abruptly")
    out.print(f"use    python -m pipelines.fuse --catalog {made / 'catalog.toml'} --dates ...", markup=False)


if __name__ == "__main__":
    main(command, AGAIN)
