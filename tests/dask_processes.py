"""Schedulers and workers as a person starts them: processes of their own, joined over TCP on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

HIDE = """
import os
import sys


def _refuse(event, arguments):
    if event == "open" and os.path.normpath(str(arguments[0])).startswith({hidden!r}):
        raise FileNotFoundError(2, "not on this machine", str(arguments[0]))


sys.addaudithook(_refuse)
"""
OTHER_NUMPY = """
import importlib.metadata as metadata

metadata.version = lambda name, real=metadata.version: "1.0.0" if name == "numpy" else real(name)
"""


def until(answer: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not answer():
        assert time.monotonic() < end, f"not so after {seconds:g} s"
        time.sleep(0.05)


class Joined:
    """A scheduler and the workers that were started for it, each in a working folder of its own."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.processes = folder, dict[str, subprocess.Popen[bytes]]()
        self.environment = os.environ | {"DASK_LOGGING__DISTRIBUTED": "info"} | environment
        said = folder / "scheduler.json"
        more = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--no-show"]
        self._start("scheduler", [*more, "--scheduler-file", str(said)])
        until(said.exists)
        self.address = str(json.loads(said.read_text())["address"])

    def _start(self, name: str, arguments: list[str]) -> None:
        where = self.folder / name
        where.mkdir()
        command = [sys.executable, "-m", "dask", name.split("-")[0], *arguments]
        with (where / "log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=where, stdout=log, stderr=log, start_new_session=True, env=self.environment
            )

    def worker(self, number: int, hidden: Path | None = None, preload: str = "", threads: int = 1) -> None:
        """Start a worker that cannot read files of a folder, and runs a script first."""
        name = f"worker-{number}"
        script = self.folder / f"{name}.py"
        script.write_text(preload + ("" if hidden is None else HIDE.format(hidden=str(hidden))))
        own = self.folder / name
        more = ["--host", "127.0.0.1", "--nthreads", str(threads), "--no-nanny", "--no-dashboard", "--name", name]
        self._start(name, [self.address, *more, "--local-directory", str(own), "--preload", str(script)])

    def kill(self, name: str) -> None:
        """End a process at once."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def has(self, count: int) -> Callable[[], bool]:
        """Whether so many workers have joined."""
        from distributed import Client

        def answer() -> bool:
            with Client(self.address, set_as_default=False) as client:
                return len(client.nthreads()) == count

        return answer


@contextmanager
def joined(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Joined]:
    """A scheduler for workers to join; all of them end with it."""
    folder.mkdir(parents=True, exist_ok=True)
    running = Joined(folder, environment or {})
    try:
        yield running
    finally:
        for name in reversed(running.processes):
            running.kill(name)
