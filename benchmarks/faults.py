"""What may never happen: servers, files, processes, disks and grids that go wrong, and what became of the pixels.

``python -m benchmarks.faults`` prints one line a figure and writes them to ``benchmarks/results/faults.json`` and
``benchmarks/reliability.md``; the exit code is 1 if one fails. All servers are on loopback. With all counts it takes
about an hour on two busy cores.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import clusters, footprints, images, places, servers, survival, untrusted
from benchmarks.figures import RESULTS, Figure, keep, table
from pipelines.console import main

SOON = 10
"""Seconds within which a run that is asked to end, or has lost its scheduler, ends."""


@dataclass(frozen=True)
class Counts:
    """How often each thing is tried."""

    kills: int = 200
    worker_kills: int = 20
    scheduler_kills: int = 5
    damages: int = 100
    limits: int = 50


def survives(world: Path, folder: Path, rows: set[int], counts: Counts) -> Iterator[Figure]:
    """What a run survives."""
    if not rows & {9, 10, 11, 16}:
        return
    plan = survival.make_plan(world, folder / "runs")
    if 9 in rows and counts.kills:
        found = survival.kills(plan, counts.kills)
        wrong = ("unreadable", "torn", "reader_wrong_pixels", "reader_unreadable")
        passed = found["same"] == found["runs"] and not any(found[key] for key in wrong)
        passed &= found["most_blocks_repeated_by_a_kill"] <= 1
        yield Figure(9, f"kills of whole runs, by change of a file (of {plan.changes}) and by time", found.pop("kills"),
                     found, passed)  # fmt: skip
        found = survival.terms(plan, max(1, counts.kills // 10))
        passed = found["ended_with_143"] == found["asked"] and found["same"] == found["runs"]
        yield Figure(9, "SIGTERM", found.pop("asked"), found, passed and found["slowest_seconds"] < SOON)
    if 9 in rows:
        yield from _clusters(plan, counts)
    if 10 in rows:
        found = survival.damages(plan, counts.damages)
        passed = found["found"] == found["repaired_to_the_byte"] == counts.damages
        yield Figure(10, "chunks deleted, cut or with a flipped bit", counts.damages, found,
                     passed and not found["named_without_cause"])  # fmt: skip
    if 11 in rows:
        yield from _disks(plan, counts.limits)
    if 16 in rows:
        found = clusters.repeats(plan)
        yield Figure(16, "the same run, 1 and 2 workers, processes and threads", found.pop("runs"), found,
                     found["different"] == 1)  # fmt: skip


def _clusters(plan: survival.Plan, counts: Counts) -> Iterator[Figure]:
    """Runs of several processes, some of which end."""
    if counts.worker_kills:
        found = clusters.worker_kills(plan, counts.worker_kills)
        wrong = ("unreadable", "torn", "hung", "reader_wrong_pixels", "reader_unreadable")
        passed = found["same"] == found["runs"] and not any(found[key] for key in wrong)
        passed &= found["most_blocks_repeated_by_a_kill"] <= 1
        yield Figure(9, "kills of workers of a LocalCluster of two", found.pop("kills"), found, passed)
    for what, step, code in (
        ("kills of a scheduler with two workers", clusters.scheduler_kills, 5),
        ("kills of a run with the scheduler of its LocalCluster", clusters.command_kills, -9),
        ("SIGTERM to a run of two workers", clusters.command_terms, 143),
    ):
        if counts.scheduler_kills:
            found = step(plan, counts.scheduler_kills)
            wrong = ("unreadable", "torn", "finished_blocks_repeated", "processes_left")
            passed = found["same"] == counts.scheduler_kills and not any(found[key] for key in wrong)
            passed &= found["exit_codes"] == [code] and found["slowest_seconds"] < SOON
            yield Figure(9, what, counts.scheduler_kills, found, passed)


def _disks(plan: survival.Plan, count: int) -> Iterator[Figure]:
    """Half of the limits are small disks, where one can be mounted; else all are limits of the size of files."""
    small = survival.small_disks(plan, count // 2)
    rest = count if small is None else count - count // 2
    for what, tried, found in (
        ("disks that are full and grow", count // 2, small),
        ("limits of the size of files", rest, survival.limits(plan, rest)),
    ):
        if found is not None:
            passed = found["same"] == tried and not found["torn"] and not found["unreadable"] and found["exit_5"] > 0
            yield Figure(11, what, tried, found, passed)


def broken_files(folder: Path) -> Iterator[Figure]:
    """Files of others."""
    for step, what in (
        (untrusted.checkpoints, "broken and malicious checkpoints"), (untrusted.areas, "broken areas"),
        (untrusted.tomls, "broken TOMLs of catalogs and pairs"), (untrusted.stores, "foreign and broken Zarr stores"),
    ):  # fmt: skip
        inner = folder / what.replace(" ", "-")
        inner.mkdir()
        found = step(inner)
        tried = found["refused"] + found["taken"] + found["tracebacks"]
        passed = found["refused"] == tried and not found.get("executed")
        yield Figure(14, what, tried, found, passed)


def memory(folder: Path) -> Iterator[Figure]:
    """Peak memory against what is predicted."""
    found = footprints.measure(folder)
    ratios = [row["peak"] / row["predicted"] for row in found]
    low, high = min(ratios), max(ratios)
    shown = {"least_ratio": round(low, 2), "greatest_ratio": round(high, 2)}
    yield Figure(12, "shapes, peak memory as a share of the prediction", len(found), shown, 0.7 <= low <= high <= 1.15)


def figures(folder: Path, rows: set[int], counts: Counts) -> Iterator[Figure]:
    """All figures of the chosen rows."""
    world = servers.small_world(folder / "world")
    with ExitStack() as stack:
        at = servers.Place(folder, world, None, folder)
        if rows & {1, 2, 4, 15}:
            at = stack.enter_context(servers.place(folder, world))
        for row, steps in {
            1: (partial(servers.tokens, at),), 2: (partial(servers.random_faults, at),),
            3: tuple(partial(step, folder) for step in (images.cuts, images.changes, images.fields)),
            4: (partial(servers.missing, at),),
            5: tuple(partial(step, folder) for step in (places.shifts, places.warps)),
            6: (partial(places.orders, world, folder),), 12: (partial(memory, folder),),
            14: (
                partial(images.addresses, folder, world), partial(images.bombs, folder), partial(broken_files, folder),
            ),
            15: (partial(servers.secrets, at),), 17: (partial(places.dates, world),),
        }.items():  # fmt: skip
            for step in steps if row in rows else ():
                yield from step()
    yield from survives(world, folder, rows, counts)


ROWS = (1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 14, 15, 16, 17)


def command(
    rows: Annotated[str, typer.Option(help="Comma list of rows.")] = ",".join(map(str, ROWS)),
    kills: Annotated[int, typer.Option(min=0, help="Kills of whole runs.")] = Counts.kills,
    worker_kills: Annotated[int, typer.Option(min=0, help="Kills of workers.")] = Counts.worker_kills,
    scheduler_kills: Annotated[int, typer.Option(min=0, help="Kills of schedulers.")] = Counts.scheduler_kills,
    damages: Annotated[int, typer.Option(min=1, help="Chunks that are damaged.")] = Counts.damages,
    limits: Annotated[int, typer.Option(min=2, help="Disks that are full.")] = Counts.limits,
    to: Annotated[Path, typer.Option(help="File of the figures; reliability.md is written for the default.")] = RESULTS,
) -> None:
    """Measure what becomes of pixels when servers, files, processes, disks and catalogs go wrong."""
    wanted = {int(row) for row in rows.split(",")}
    counts = Counts(kills, worker_kills, scheduler_kills, damages, limits)
    asked = shlex.join(["python", "-m", "benchmarks.faults", *sys.argv[1:]])
    found = list[Figure]()
    with tempfile.TemporaryDirectory() as scratch:
        for figure in figures(Path(scratch), wanted, counts):
            found.append(figure)
            print(
                f"row {figure.row}, {figure.what}: {'ok' if figure.passed else 'FAILED'}", file=sys.stderr, flush=True
            )
            keep(found, asked, to)
    print(table(found), end="")
    if not all(figure.passed for figure in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    main(command)
