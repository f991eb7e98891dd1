"""What a run survives: kills of its processes, damage, full disks, little memory; counted.

``python -m benchmarks.faults --rows 9,10,11,12,16`` runs it. Runs are forked from a server that has the libraries
loaded; a fork is a whole ``pipelines.fuse``: search, cubes, fusion, seal.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import fuse, verify
from pipelines.console import main
from stfgan_xr import fusion, store
from stfgan_xr.errors import InputError
from stfgan_xr.files import LocalFolder
from stfgan_xr.sensors import Observation

ROOT = Path(__file__).parents[1]
NAMES = fuse.CUBES
CHAIN = 5
"""Kills of one run before it may end."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["benchmarks.survival", "stfgan_xr.load", "stfgan_xr.catalog", "distributed"])


@dataclass(frozen=True)
class Trap:
    """What happens to a run on its way.

    Attributes
    ----------
    at
        The change of a file (written, renamed, linked, deleted) at which it kills itself.
    when
        ``before`` the change, ``after`` it, or ``half``: before it, with half of the new file lost.
    largest
        Bytes that a file may have.
    """

    at: int | None = None
    when: str = "before"
    largest: int | None = None


class Changes:
    """Counts what a process does to files, notes the blocks it begins, and kills it where the trap says."""

    def __init__(self, trap: Trap, log: Path) -> None:
        self.trap, self.log, self.count = trap, log, 0

    def watch(self, owner: Any, name: str) -> None:
        """Watch a function that changes files."""
        real = getattr(owner, name)

        def changed(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            here = self.count == self.trap.at
            if here and self.trap.when == "half" and name == "replace":
                os.truncate(arguments[0], Path(arguments[0]).stat().st_size // 2)
            if here and self.trap.when != "after":
                self._die()
            result = real(*arguments, **options)
            if here:
                self._die()
            return result

        setattr(owner, name, changed)

    def _die(self) -> None:
        self.note("died")
        os.kill(os.getpid(), signal.SIGKILL)

    def watch_files(self) -> None:
        """Watch all that this process does to files from now on."""
        for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "link")):
            self.watch(owner, name)

    def note(self, line: str) -> None:
        """Add a line to the log, after this process's number."""
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {line}\n")

    def note_blocks(self, slow: float = 0.0) -> None:
        """Note each block that this process begins, which then takes longer by some seconds."""

        def noted(real: Callable[..., Any]) -> Callable[..., Any]:
            def begun(path: Any, layout: Any, block: Any, *rest: Any, **more: Any) -> Any:
                self.note(f"{Path(str(path)).name} {block.name}")
                time.sleep(slow)
                return real(path, layout, block, *rest, **more)

            return begun

        fusion._write_block = noted(fusion._write_block)
        store.blocks.write_block = noted(store.blocks.write_block)


def _run(arguments: list[str], trap: Trap, log: Path, command: Callable[..., None]) -> None:
    """In a forked process: a command that goes into a trap."""
    os.setpgid(0, 0)
    changes = Changes(trap, log)
    changes.watch_files()
    changes.note_blocks()
    if trap.largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (trap.largest, trap.largest))
    output = os.open(log.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["command", *arguments]
    try:
        main(command)
    finally:
        changes.note(f"changes {changes.count}")


@dataclass(frozen=True)
class Plan:
    """A run that is repeated: its arguments, what it makes when nothing happens, in how many changes of files."""

    folder: Path
    arguments: tuple[str, ...]
    good: Path
    digests: tuple[str, ...]
    changes: int
    seconds: float

    def start(self, out: Path, trap: Trap | None = None, command: Callable[..., None] = fuse.command) -> Any:
        """Start it in a process of its own."""
        arguments = [str(out), "--repair"] if command is verify.command else [*self.arguments, "--out", str(out)]
        process = SERVER.Process(target=_run, args=(arguments, trap or Trap(), out.with_suffix(".log"), command))
        process.start()
        return process

    def finish(self, out: Path, trap: Trap | None = None, command: Callable[..., None] = fuse.command) -> int:
        """Run it to its end; the exit code."""
        process = self.start(out, trap, command)
        process.join()
        return int(process.exitcode)

    def same(self, out: Path) -> bool:
        """Whether a folder holds what an unbroken run makes."""
        return contents(out) == self.digests


def contents(out: Path) -> tuple[str, ...]:
    """sha256 of all decoded arrays of the three cubes."""
    return tuple(store.content_digest(out / name) for name in NAMES)


def make_plan(world: Path, folder: Path, days: str = "2020-03-01/2020-03-04") -> Plan:
    """The run of a world that everything here happens to: a band, four days, a block a tile."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ("--catalog", str(world / "catalog.toml"), "--dates", days, "--bands", "red", "--method", "delta")
    arguments += ("--bracket-days", "6", "--tile", "64")
    empty = Plan(folder, arguments, folder / "good", (), 0, 0.0)
    if empty.finish(folder / "first"):  # forks are quick from the second on
        raise SystemExit((folder / "first.txt").read_text())
    started = time.monotonic()
    empty.finish(folder / "good")
    seconds = time.monotonic() - started
    changes = int(re.findall(r"changes (\d+)", (folder / "good.log").read_text())[-1])
    plan = Plan(folder, arguments, folder / "good", contents(folder / "good"), changes, seconds)
    if not plan.same(folder / "first"):
        raise SystemExit("two runs without failures differ")
    return plan


# ---------------------------------------------------------------- 9 kills


def torn(out: Path) -> tuple[int, int]:
    """Cubes of a folder that cannot be opened, and files in them that are there and wrong."""
    unreadable = wrong = 0
    for name in NAMES:
        try:
            if (out / name).exists():
                wrong += sum(damage.why != "missing" for damage in store.check(out / name))
        except Exception:
            unreadable += 1
    return unreadable, wrong


def _read(out: Path, good: Path, found: Any, stop: Any) -> None:
    """In a process of its own: read what is there, again and again, and hold it against what is to come."""
    whole = {name: store.open_counts(good / name).load() for name in NAMES}
    counts = {"reads": 0, "wrong_pixels": 0, "unreadable": 0}
    while not stop.is_set():
        for name in NAMES:
            try:
                cube = store.open_counts(out / name, allow_incomplete=True).load()
            except InputError:  # not there yet, or gone again
                continue
            except Exception as error:
                print(type(error), error, file=sys.stderr)
                counts["unreadable"] += 1
                continue
            counts["reads"] += 1
            for key, values in cube.data_vars.items():
                fill = int(values.attrs.get("_FillValue", _FILLS.get((name, str(key)), fusion.NO_AGE)))
                right = (values.values == whole[name][key].values) | (values.values == fill)
                counts["wrong_pixels"] += int((~right).sum())
        time.sleep(0.3)
    found.put(counts)


_FILLS = {
    ("landsat.zarr", "qa"): Observation.FILL, ("modis.zarr", "qa"): Observation.FILL,
    ("fused.zarr", "qa"): fusion.Quality.NODATA,
}  # fmt: skip


@contextmanager
def reader(out: Path, good: Path, total: dict[str, int]) -> Iterator[None]:
    """A reader of a folder while others write it; what it saw is added up."""
    found, stop = SERVER.Queue(), SERVER.Event()
    process = SERVER.Process(target=_read, args=(out, good, found, stop))
    process.start()
    try:
        yield
    finally:
        stop.set()
        counts = found.get(timeout=60)
        process.join()
        for key, count in counts.items():
            total[key] = total.get(key, 0) + count


def repeated(log: Path, before: int) -> tuple[int, int]:
    """Blocks that a run began although they were begun before, and lines of its log."""
    lines = [line.partition(" ")[2] for line in log.read_text().splitlines()] if log.exists() else []
    lines = [line for line in lines if ".zarr " in line]
    return len(set(lines[before:]) & set(lines[:before])), len(lines)


def kills(plan: Plan, count: int, seed: int = 0) -> dict[str, Any]:
    """Runs that are killed again and again, at changes of files and at moments, then left to end."""
    draw, done = random.Random(seed), 0
    found = {"runs": 0, "same": 0, "unreadable": 0, "torn": 0, "most_blocks_repeated_by_a_kill": 0}
    seen: dict[str, int] = {}
    while done < count:
        out = plan.folder / f"killed-{found['runs']}"
        lines, killed = 0, 0
        with reader(out, plan.good, seen):
            for number in range(4 * CHAIN):
                if killed == CHAIN or done == count:
                    break
                process = _killed(plan, out, draw, by_time=bool(number % 2))
                twice, lines = repeated(out.with_suffix(".log"), lines)
                found["most_blocks_repeated_by_a_kill"] = max(found["most_blocks_repeated_by_a_kill"], twice)
                if process.exitcode != -signal.SIGKILL:
                    break  # it was at its end already
                done, killed = done + 1, killed + 1
                unreadable, wrong = torn(out)
                found["unreadable"] += unreadable
                found["torn"] += wrong
            code = plan.finish(out)
            twice, _ = repeated(out.with_suffix(".log"), lines)
            found["most_blocks_repeated_by_a_kill"] = max(found["most_blocks_repeated_by_a_kill"], twice)
        found["runs"] += 1
        found["same"] += code == 0 and plan.same(out) and torn(out) == (0, 0)
        shutil.rmtree(out)
    return {"kills": done, **found, **{f"reader_{key}": value for key, value in seen.items()}}


def _killed(plan: Plan, out: Path, draw: random.Random, by_time: bool) -> Any:
    if by_time:
        process = plan.start(out)
        process.join(draw.uniform(0, plan.seconds / 2))
        if process.is_alive():
            process.kill()
    else:
        process = plan.start(out, Trap(draw.randint(1, plan.changes // 3), draw.choice(["before", "half", "after"])))
    process.join()
    return process


def terms(plan: Plan, count: int, seed: int = 0) -> dict[str, Any]:
    """Runs that a batch scheduler asks to end, and which are run again."""
    draw, codes, slowest, same = random.Random(seed), list[int](), 0.0, 0
    for number in range(count):
        out = plan.folder / f"ended-{number}"
        process = plan.start(out)
        # Not before main listens: a signal ends a process that has just begun.
        while not out.exists() and process.is_alive():
            time.sleep(0.005)
        process.join(draw.uniform(0, plan.seconds * 0.8))
        asked = time.monotonic()
        if process.is_alive():
            process.terminate()
            process.join()
            slowest = max(slowest, time.monotonic() - asked)
            codes.append(process.exitcode)
        same += plan.finish(out) == 0 and plan.same(out)
        shutil.rmtree(out)
    return {
        "ended_with_143": codes.count(143), "asked": len(codes), "slowest_seconds": round(slowest, 1), "same": same,
        "runs": count,
    }  # fmt: skip


# ---------------------------------------------------------------- 10 damage


def chunks(out: Path) -> list[Path]:
    """All files of pixels and coordinates of a run."""
    return sorted(path for path in out.glob("*.zarr/*/c/**/*") if path.is_file())


def hurt(path: Path, how: str, draw: random.Random) -> None:
    """Delete, cut or flip one bit of a file."""
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def damages(plan: Plan, count: int, seed: int = 0, at_once: int = 20) -> dict[str, Any]:
    """Chunks that are deleted, cut or changed by one bit: found by verify, and made again byte by byte."""
    draw, done, found, mended, false = random.Random(seed), 0, 0, 0, 0
    hows = ("deleted", "cut", "flipped")
    while done < count:
        out = plan.folder / "hurt"
        shutil.copytree(plan.good, out)
        chosen = draw.sample(chunks(out), min(at_once, count - done))
        whole = {path: path.read_bytes() for path in chosen}
        for number, path in enumerate(chosen):
            hurt(path, hows[number % 3], draw)
        named = {
            str(out / name / damage.key)
            for name, some in verify.look_at(LocalFolder(out), NAMES).items()
            for damage in some
        }
        found += sum(str(path) in named for path in chosen)
        false += len(named - {str(path) for path in chosen})
        code = plan.finish(out, command=verify.command)
        mended += sum(code == 0 and path.is_file() and path.read_bytes() == content for path, content in whole.items())
        done += len(chosen)
        if code:
            print(out.with_suffix(".txt").read_text()[-1500:], file=sys.stderr)
        shutil.rmtree(out)
    return {"found": found, "repaired_to_the_byte": mended, "named_without_cause": false}


# ---------------------------------------------------------------- 11 disks


def limits(plan: Plan, count: int, seed: int = 0) -> dict[str, Any]:
    """Runs on which a limit of the size of files comes down, and that go on without it."""
    draw = random.Random(seed)
    sizes = sorted({path.stat().st_size for path in plan.good.rglob("*") if path.is_file()})
    found = {"exit_5": 0, "torn": 0, "unreadable": 0, "same": 0, "no_limit": 0}
    for number in range(count):
        out = plan.folder / f"limit-{number}"
        _limited(plan, out, Trap(largest=draw.randint(sizes[len(sizes) // 4], sizes[-1] - 1)), found)
        shutil.rmtree(out)
    return found


def _limited(plan: Plan, out: Path, trap: Trap, found: dict[str, int], grow: Callable[[], None] | None = None) -> None:
    code = plan.finish(out, trap)
    found["exit_5" if code == 5 else "no_limit"] += 1
    if code not in (0, 5):
        print(code, out.with_suffix(".txt").read_text()[-1500:], file=sys.stderr)
    unreadable, wrong = torn(out)
    found["torn"] += wrong
    found["unreadable"] += unreadable
    if grow is not None:
        grow()
    found["same"] += plan.finish(out) == 0 and plan.same(out)


def small_disks(plan: Plan, count: int, seed: int = 0) -> dict[str, Any] | None:
    """The same on file systems that are too small, then grown; None where none can be mounted."""
    try:
        subprocess.run(["unshare", "-rm", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    asked = {
        "folder": str(plan.folder), "arguments": plan.arguments, "digests": plan.digests, "count": count, "seed": seed,
    }  # fmt: skip
    there = "import sys; from benchmarks import survival; survival.on_small_disks(sys.argv[1])"
    command = ["unshare", "-rm", sys.executable, "-c", there, json.dumps(asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    return dict(json.loads(done.stdout))


def on_small_disks(text: str) -> None:
    """What :func:`small_disks` does in a mount namespace of its own."""
    asked = json.loads(text)
    folder, draw = Path(asked["folder"]), random.Random(asked["seed"])
    plan = Plan(folder, tuple(asked["arguments"]), folder / "good", tuple(asked["digests"]), 0, 0.0)
    whole = sum(-(-path.stat().st_size // 4096) * 4096 for path in plan.good.rglob("*") if path.is_file())
    found = {"exit_5": 0, "torn": 0, "unreadable": 0, "same": 0, "no_limit": 0}
    disk = folder / "disk"
    disk.mkdir()
    for _ in range(asked["count"]):
        size = draw.randint(64 << 10, whole)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=True)

        def grow() -> None:
            subprocess.run(["mount", "-o", f"remount,size={4 * whole}", str(disk)], check=True)

        # The log lies beside the run: not on the small disk.
        out = disk / "run"
        logs = folder / "small.log"
        (disk / "run.log").symlink_to(logs)
        (disk / "run.txt").symlink_to(logs.with_suffix(".txt"))
        _limited(plan, out, Trap(), found, grow)
        subprocess.run(["umount", str(disk)], check=True)
    print(json.dumps(found))
