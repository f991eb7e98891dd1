"""Peak memory of the main command on demo worlds, by size and number of days.

``python -m benchmarks.memory --size 4096 --days 32 --workers 2`` simulates the world, writes its cubes and fuses them
as a user would, watches the resident memory of the command and its workers, and adds one row to
``benchmarks/results/memory.json``. Memory does not depend on how busy the machine is; no time is quoted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from pipelines.console import main, out
from stfgan_xr import simulate

RESULTS = Path(__file__).parent / "results" / "memory.json"
EVERY = 0.05


def watch(command: list[str]) -> dict[str, float]:
    """Run a command; greatest resident MiB of any one of its processes and of all together."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = {"one_process_mib": 0.0, "all_mib": 0.0}
    while process.poll() is None:
        sizes = _resident(process.pid)
        if sizes:
            peak["one_process_mib"] = max(peak["one_process_mib"], max(sizes))
            peak["all_mib"] = max(peak["all_mib"], sum(sizes))
        time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {name: round(value) for name, value in peak.items()}


def _resident(pid: int) -> list[float]:
    try:
        parent = psutil.Process(pid)
        return [p.memory_info().rss / 2**20 for p in (parent, *parent.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _append(row: dict[str, Any]) -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    same = ("size", "days", "workers", "method")
    rows = [old for old in rows if any(old[key] != row[key] for key in same)] + [row]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def command(
    size: Annotated[int, typer.Option(help="Fine pixels a side.")] = 4096,
    days: Annotated[int, typer.Option(help="Days to fuse.")] = 32,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    method: Annotated[str, typer.Option(help="Method.")] = "delta",
    bracket_days: Annotated[int, typer.Option(help="As in pipelines.fuse.")] = 16,
    keep: Annotated[Path | None, typer.Option(help="Folder for worlds and runs; default: temporary.")] = None,
) -> None:
    """Measure the peak memory of one run and add it to benchmarks/results/memory.json."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        start = date(2020, 2, 1)
        world = simulate.World(size=size, start=start, days=days + 32)
        catalog = simulate.ensure_world(world, folder / f"world-{size}-{days}") / "catalog.toml"
        first, last = start + timedelta(days=16), start + timedelta(days=15 + days)
        arguments = ["--catalog", str(catalog), "--dates", f"{first}/{last}", "--method", method]
        arguments += ["--bracket-days", str(bracket_days), "--workers", str(workers), "--no-report"]
        arguments += ["--out", str(folder / f"run-{size}-{days}-{workers}-{method}")]
        peak = watch([sys.executable, "-m", "pipelines.fuse", *arguments])
    row = {"size": size, "days": days, "workers": workers, "method": method, "bracket_days": bracket_days, **peak}
    _append(row)
    out.print_json(data=row)


if __name__ == "__main__":
    main(command)
