"""What a run of several processes survives: kills of its workers and of schedulers, and requests to end; counted.

``python -m benchmarks.faults --rows 9,16`` runs it. Workers note which blocks they begin, and some of them carry a trap
(:class:`benchmarks.survival.Trap`): this module is loaded by them as a preload of Dask.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import survival
from benchmarks.survival import ROOT, Plan, contents, reader, torn
from stfgan_xr import store
from tests.dask_processes import Joined, joined

NOTES = "STFGAN_XR_NOTES"
"""Names the folder where workers note what they begin, and find traps."""
SLOW = 0.5
"""Seconds that a block takes longer in workers: without them most moments of a run lie between blocks."""
PATIENCE = 3600.0
"""Seconds after which a run is said to hang."""
HUNG = -1


# ---------------------------------------------------------------- in a worker


def dask_setup(_: Any) -> None:
    """What a worker does first: note its blocks, and take a trap if one is left."""
    if (notes := os.environ.get(NOTES)) is None:
        return
    changes = survival.Changes(_taken(Path(notes)), Path(notes) / "blocks.log")
    changes.watch_files()
    changes.note_blocks(SLOW)


def _taken(notes: Path) -> survival.Trap:
    for path in sorted(notes.glob("trap-*.json")):
        with suppress(FileNotFoundError):
            text = path.read_text()
            path.unlink()
            return survival.Trap(**json.loads(text))
    return survival.Trap()


# ---------------------------------------------------------------- of the run


def _command(plan: Plan, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.fuse", *plan.arguments, "--out", str(out), *more]


def _noting(notes: Path) -> dict[str, str]:
    notes.mkdir(exist_ok=True)
    return os.environ | {NOTES: str(notes), "DASK_DISTRIBUTED__WORKER__PRELOAD": "['benchmarks.clusters']"}


def _start(plan: Plan, out: Path, notes: Path, *more: str) -> psutil.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": ROOT}
    return psutil.Popen(_command(plan, out, *more), env=_noting(notes), **quiet)


def _ended(process: psutil.Popen) -> tuple[int, str]:
    """Exit code and last words of a command, when it is at its end; of one that hangs, :data:`HUNG`."""
    try:
        _, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        for one in [*process.children(recursive=True), process]:
            one.kill()
        return HUNG, process.communicate()[1].decode()[-2000:]
    return int(process.returncode), err.decode()[-2000:]


def _workers(process: psutil.Process) -> list[psutil.Process]:
    """Worker processes of a command: those that a nanny keeps."""
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def _records(out: Path) -> dict[Path, int]:
    """Records of blocks that are there, and the files they are."""
    found = {}
    for path in out.glob(f"*.zarr/{store.RECORDS}/t*.json"):
        with suppress(FileNotFoundError):
            found[path] = path.stat().st_ino
    return found


def begun(notes: Path) -> list[tuple[int, str]]:
    """Processes and the blocks that they began, or ``died``, in order."""
    log = notes / "blocks.log"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [(int(pid), what) for pid, _, what in (line.partition(" ") for line in lines)]


def repeated(lines: list[tuple[int, str]], killed: set[int]) -> int:
    """The most blocks that one killed process began and that were begun again later."""
    most = 0
    for pid in killed:
        last = {what: number for number, (one, what) in enumerate(lines) if one == pid and what != "died"}
        most = max(most, sum(any(w == what for _, w in lines[number + 1 :]) for what, number in last.items()))
    return most


# ---------------------------------------------------------------- workers


def worker_kills(plan: Plan, count: int, seed: int = 0, most: int = 4) -> dict[str, Any]:
    """Runs of two workers that are killed, half of them at a change of a file and half at a moment; then run again."""
    draw, done = random.Random(seed), 0
    found = {"at_changes_of_files": 0, "runs": 0, "ended_without_resuming": 0, "hung": 0, "same": 0, "unreadable": 0,
             "torn": 0, "most_blocks_repeated_by_a_kill": 0}  # fmt: skip
    seen: dict[str, int] = {}
    while done < count and found["runs"] < count:
        number, left = found["runs"], min(most, count - done)
        out, notes = plan.folder / f"workers-{number}", plan.folder / f"workers-{number}.notes"
        with reader(out, plan.good, seen):
            code, killed, err = _killed_workers(plan, out, notes, draw, left)
            by_trap = {pid for pid, what in begun(notes) if what == "died"}
            found["at_changes_of_files"] += len(by_trap)
            done += len(killed | by_trap)
            wrong = torn(out)
            found["unreadable"] += wrong[0]
            found["torn"] += wrong[1]
            found["most_blocks_repeated_by_a_kill"] = max(
                found["most_blocks_repeated_by_a_kill"], repeated(begun(notes), killed | by_trap)
            )
            found["ended_without_resuming"] += code == 0
            found["hung"] += code == HUNG
            # A block whose workers were killed three times is given up: the next run makes it.
            if code not in (0, 6):
                print(code, err, file=sys.stderr)
            ended = plan.finish(out) == 0 and plan.same(out)
        found["same"] += ended
        found["runs"] += 1
        shutil.rmtree(out)
    return {"kills": done, **found, **{f"reader_{key}": value for key, value in seen.items()}}


def _killed_workers(plan: Plan, out: Path, notes: Path, draw: random.Random, most: int) -> tuple[int, set[int], str]:
    """A run some of whose workers are killed: its exit code, those that were killed from here, and its last words."""
    notes.mkdir()
    for number in range(most // 2):
        trap = survival.Trap(draw.randint(1, 16), draw.choice(["before", "half", "after"]))
        (notes / f"trap-{number}.json").write_text(json.dumps(vars(trap)))
    process, killed = _start(plan, out, notes, "--workers", "2"), set[int]()
    asked = time.monotonic()
    while process.poll() is None and len(killed) < most - most // 2 and time.monotonic() < asked + PATIENCE:
        time.sleep(draw.uniform(0.2, 2))
        workers = [worker for worker in _workers(process) if worker.pid not in killed]
        if begun(notes) and workers:
            chosen = draw.choice(workers)
            with suppress(psutil.NoSuchProcess):
                chosen.kill()
                killed.add(chosen.pid)
    code, err = _ended(process)
    return code, killed, err


# ---------------------------------------------------------------- schedulers


@contextmanager
def dask(folder: Path, workers: int = 2, threads: int = 1) -> Iterator[Joined]:
    """A scheduler with workers that note their blocks, each in a process of its own."""
    folder.mkdir()
    with joined(folder, _noting(folder / "notes") | {"PYTHONPATH": str(ROOT)}) as running:
        for number in range(workers):
            running.worker(number, preload="from benchmarks.clusters import dask_setup\n", threads=threads)
        yield running


class _Ends:
    """What became of runs that were ended from outside, and gone on with at once in this process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.codes, self.slowest = list[int](), 0.0
        self.found = {"same": 0, "unreadable": 0, "torn": 0, "finished_blocks_repeated": 0, "processes_left": 0}

    def end(self, process: psutil.Popen, out: Path, how: Any, wanted: int) -> None:
        """End a run by a function when it has recorded so many blocks; then go on with it."""
        asked = time.monotonic()
        while process.poll() is None and len(_records(out)) < wanted and time.monotonic() < asked + PATIENCE:
            time.sleep(0.01)
        crew = [] if process.poll() is not None else process.children(recursive=True)
        how()
        asked = time.monotonic()
        code, err = _ended(process)
        self.slowest = max(self.slowest, time.monotonic() - asked)
        self.codes.append(code)
        if code not in (5, 143, -9):
            print(code, err, file=sys.stderr)
        before, wrong = _records(out), torn(out)
        # At once: what its workers still do, they do beside the run that goes on.
        self.found["same"] += self.plan.finish(out) == 0 and self.plan.same(out)
        after = _records(out)
        for key, value in (
            ("unreadable", wrong[0]), ("torn", wrong[1]),
            ("finished_blocks_repeated", sum(after.get(path) != inode for path, inode in before.items())),
            ("processes_left", len(psutil.wait_procs(crew, timeout=60)[1])),
        ):  # fmt: skip
            self.found[key] += value
        shutil.rmtree(out)

    def told(self) -> dict[str, Any]:
        return {"exit_codes": sorted(set(self.codes)), "slowest_seconds": round(self.slowest, 1), **self.found}


def scheduler_kills(plan: Plan, count: int, seed: int = 0) -> dict[str, Any]:
    """Runs whose scheduler, a process of its own, is killed."""
    draw, ends = random.Random(seed), _Ends(plan)
    for number in range(count):
        out, folder = plan.folder / f"scheduler-{number}", plan.folder / f"scheduler-{number}.dask"
        with dask(folder) as running:
            process = _start(plan, out, folder / "notes", "--scheduler", running.address)
            ends.end(process, out, partial(running.kill, "scheduler"), draw.randint(1, 10))
    return ends.told()


def command_kills(plan: Plan, count: int, seed: int = 0) -> dict[str, Any]:
    """Runs of two workers whose own process is killed, and with it the scheduler of its LocalCluster."""
    return _ended_commands(plan, count, "kill", seed)


def command_terms(plan: Plan, count: int, seed: int = 0) -> dict[str, Any]:
    """Runs of two workers that are asked to end."""
    return _ended_commands(plan, count, "terminate", seed)


def _ended_commands(plan: Plan, count: int, how: str, seed: int) -> dict[str, Any]:
    draw, ends = random.Random(seed), _Ends(plan)
    for number in range(count):
        out, notes = plan.folder / f"{how}-{number}", plan.folder / f"{how}.notes"
        process = _start(plan, out, notes, "--workers", "2")
        ends.end(process, out, getattr(process, how), draw.randint(1, 10))
    return ends.told()


# ---------------------------------------------------------------- 16 the same


def repeats(plan: Plan, count: int = 5) -> dict[str, Any]:
    """The run again, with one and two workers, as processes and as threads."""
    found = [plan.digests]
    for number in range(count - 1):
        plan.finish(plan.folder / f"again-{number}")
        found.append(contents(plan.folder / f"again-{number}"))
    for number in (1, 2):
        out = plan.folder / f"processes-{number}"
        subprocess.run(_command(plan, out, "--workers", str(number)), check=True, capture_output=True)
        found.append(contents(out))
    with dask(plan.folder / "threads.dask", 1, 2) as running:
        command = _command(plan, plan.folder / "threads", "--scheduler", running.address)
        subprocess.run(command, check=True, capture_output=True)
        found.append(contents(plan.folder / "threads"))
    return {"runs": len(found), "different": len(set(found))}
