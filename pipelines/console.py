"""What all commands share: one-line errors, exit codes, progress on a terminal and plain lines, or JSON, elsewhere."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.models import OptionInfo, ParameterInfo

from stfgan_xr.errors import InputError, ResourceError, StfganError


class Said(Console):
    """A console that says the same as lines of JSON once :func:`choose_log` asks for them."""

    json = False

    @property
    def is_terminal(self) -> bool:
        """Whether bars and colours may be used."""
        return not self.json and super().is_terminal

    def print(self, *objects: Any, level: str = "info", facts: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Print a text; as JSON with a time, its level and further facts.

        In a pipe or a log a line stays a line, on a terminal it is broken between words.
        """
        if not self.json:
            if not self.is_terminal and all(isinstance(one, str) for one in objects):
                options.setdefault("soft_wrap", True)
            super().print(*objects, **options)
            return
        self.file.write(to_line(level, " ".join(map(str, objects)), facts or {}) + "\n")
        self.file.flush()

    def tell(self, lines: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Print some lines; as JSON they are one, with facts."""
        for line in ["; ".join(lines)] if self.json else lines:
            self.print(line, facts=facts, markup=False, soft_wrap=True)


def to_line(level: str, message: str, facts: Mapping[str, Any]) -> str:
    """A line of a log as JSON.

    >>> json.loads(to_line("info", "done", {"blocks": 3}))["blocks"]
    3
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "level": level, "message": " ".join(message.split()), **facts})


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return to_line(record.levelname.lower(), record.getMessage(), {"logger": record.name})


def choose_log(kind: str) -> str:
    """Speak as ``text``, or in lines of ``json``.

    Raises
    ------
    InputError
        If it is neither.
    """
    if kind not in ("text", "json"):
        raise InputError(f"--log {kind!r} is unknown; choose text or json")
    Said.json = kind == "json"
    if Said.json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_Lines())
    return kind


Log = Annotated[
    str,
    typer.Option(
        "--log", callback=choose_log, is_eager=True, help="text, or json: one JSON object a line.",
        rich_help_panel="Running",
    ),
]  # fmt: skip

out = Said(highlight=False, markup=False)
err = Said(stderr=True, highlight=False, markup=False, soft_wrap=True)

AGAIN = "nothing is kept; run the same command again"
"""What to do after an interruption of a command that does not resume."""
INTERRUPTED, TERMINATED, UNEXPECTED = 130, 143, 1
LINE_SECONDS = 10.0
LINES = 20
"""Plain lines of a training that is not on a terminal."""


def _complain(message: str) -> None:
    text = " ".join(message.split())
    err.print(text if Said.json else f"error: {text}", level="error", style="red", markup=False)


class Terminated(BaseException):
    """SIGTERM, as a batch scheduler sends it."""


INSIST = 10.0
"""Seconds after which a process that was asked to end, and has not, is asked again: some library caught the first."""


def _send(number: int, seconds: float) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _terminate(*_: Any) -> None:
    _send(signal.SIGTERM, INSIST)
    raise Terminated


_SIGNALS = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}


def _again(lost: Any) -> None:
    """What Python does with an exception that it cannot raise: one of a signal is raised a moment later."""
    if (number := _SIGNALS.get(lost.exc_type)) is None:
        sys.__unraisablehook__(lost)
        return
    # In a callback of the garbage collector, say, where errors end.
    _send(number, 0.05)


def _known(error: BaseException, then: str) -> int | None:
    """Exit code of an expected error, after its one line on stderr; None for others."""
    if isinstance(error, StfganError):
        _complain(str(error))
        return error.exit_code
    if isinstance(error, typer.Exit):
        return error.exit_code
    # typer brings its own copy of click since 0.24 or so: its errors are known by what they can do.
    if callable(text := getattr(error, "format_message", None)):
        _complain(str(text()))
        return 2
    if isinstance(error, MemoryError):
        _complain("out of memory; finished blocks are kept: choose a smaller --tile or fewer --workers")
        return ResourceError.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        _complain(f"interrupted; {then}")
        return INTERRUPTED
    if isinstance(error, Terminated):
        _complain(f"terminated; {then}")
        return TERMINATED
    return None


def one_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """What completes the value of an option in a shell.

    >>> one_of(["delta", "linear"])("d")
    ['delta']
    """
    known = tuple(names)

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


VALUES = {bool: "", int: "N", float: "X", Path: "PATH", str: "TEXT"}
"""What stands for the value of an option in its help, by type; a flag has none."""


def _leaf(hint: Any) -> Any:
    inner = [part for part in get_args(hint) if part is not type(None)]
    return _leaf(inner[0]) if inner else hint


def _name_values(command: Callable[..., Any]) -> None:
    """Let the help name values as users of a command line know them, and not by Python's types."""
    # Evaluated once: typer would make options of its own from texts.
    command.__annotations__ = get_type_hints(command, include_extras=True)
    for name, hint in command.__annotations__.items():
        for told in getattr(hint, "__metadata__", ()):
            if isinstance(told, ParameterInfo) and told.metavar is None:
                is_option = isinstance(told, OptionInfo)
                told.metavar = VALUES[_leaf(hint.__origin__)] if is_option else name.rstrip("s").upper()


def program(command: Callable[..., Any]) -> typer.Typer:
    """A function as a program whose arguments typer reads; ``app(standalone_mode=False)`` runs it."""
    _name_values(command)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(command)
    return app


def main(command: Callable[..., Any], then: str = "the same command resumes") -> None:
    """Run a function as a program: see :func:`program` and :func:`run`."""
    run(program(command), then)


def run(app: typer.Typer, then: str = AGAIN) -> None:
    """Run a program: every known error becomes one line and an exit code.

    Exit codes: 0 done, 1 unexpected, 2 bad input, 3 nothing to do, 4 the data source failed, 5 out of disk or memory,
    6 incomplete or damaged, 130 and 143 interrupted or terminated. ``STFGAN_XR_DEBUG=1`` adds tracebacks.

    Parameters
    ----------
    app
        The program.
    then
        What to do after an interruption, as its message says it.
    """
    Said.json = False
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # each retry is a warning there; the last failure is ours
    signal.signal(signal.SIGTERM, _terminate)
    before, sys.unraisablehook = sys.unraisablehook, _again
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # newer releases of typer swallow Ctrl-C and return its code
            _complain(f"interrupted; {then}")
    except SystemExit:
        raise
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending
        if os.environ.get("STFGAN_XR_DEBUG"):
            raise
        known = _known(error, then)
        if known is None:
            _complain(f"unexpected {type(error).__name__}: {error} (STFGAN_XR_DEBUG=1 shows where; please report it)")
        code = UNEXPECTED if known is None else known
    finally:
        sys.unraisablehook = before
    sys.exit(code)


def _shows_bars() -> bool:
    """On a terminal, and in a notebook, where rich draws through ipywidgets."""
    return err.is_terminal or err.is_jupyter


def _bars(label: str, results: Iterable[Any], total: int, megapixels: float, unit: str) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn(unit),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(compact=True), TextColumn("left"),
    )  # fmt: skip
    started = time.monotonic()
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(label, total=total, rate="")
        for done, result in enumerate(results, 1):
            rate = done * megapixels / max(time.monotonic() - started, 1e-3)
            progress.update(task, completed=done, rate=f"{rate:.3g} Mpx/s")
            yield result


def _lines(label: str, results: Iterable[Any], total: int, megapixels: float, unit: str) -> Iterator[Any]:
    started = last = time.monotonic()
    for done, result in enumerate(results, 1):
        now = time.monotonic()
        if done == total or now - last > LINE_SECONDS:
            elapsed = max(now - started, 1e-3)
            left = elapsed / done * (total - done)
            err.print(
                f"{label}: {done}/{total} {unit}, {done * megapixels / elapsed:.3g} Mpx/s, {left:.0f} s left",
                facts={"what": label, unit: done, "of": total, "seconds_left": round(left)},
            )
            last = now
        yield result


NO_TERMS = ("learning_rate", "mse_anchor", "critic", "adversarial", "gradient_ratio", "rmse")
"""What the names of losses begin with that are no terms of the method's own loss."""


class Steps:
    """Steps of a training: how many are done, how large the loss of the last ones is, and time left.

    Parameters
    ----------
    label
        What is being done.
    of_anchor
        The loss is the error of a second stage, shown as a share of its anchor's; else the sum of its terms is shown.
    """

    def __init__(self, label: str, of_anchor: bool = True) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.completed}/{task.total} steps"),
                   TextColumn("{task.fields[text]}"), TimeRemainingColumn(compact=True))  # fmt: skip
        self.label, self.of_anchor, self.recent = label, of_anchor, deque[tuple[float, float]](maxlen=100)
        self.bar = Progress(*columns, console=err) if _shows_bars() else None
        self.task = self.bar.add_task(label, total=None, text="") if self.bar else None
        self.first: tuple[float, int] | None = None

    def __enter__(self) -> Steps:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int, losses: Mapping[str, float]) -> None:
        """Show the losses of a step."""
        own = sum(value for name, value in losses.items() if not name.startswith(NO_TERMS))
        self.recent.append((losses["mse_stage2"] if self.of_anchor else own, losses["mse_anchor"]))
        ours, anchors = (sum(values) / len(self.recent) for values in zip(*self.recent, strict=True))
        ratio = (ours / max(anchors, 1e-12)) ** 0.5
        text = f"RMSE {ratio:.3f} of the anchor's" if self.of_anchor else f"loss {ours:.3g}"
        self.first = self.first or (time.monotonic(), done)  # a run that is resumed does not begin with none
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=total, text=text)
        elif done % max(1, total // LINES) == 0 or done == total:
            left = (time.monotonic() - self.first[0]) / max(done - self.first[1], 1) * (total - done)
            err.print(
                f"{self.label}: {done}/{total} steps, {text}" + f", {left:.0f} s left" * (done > self.first[1]),
                facts={"what": self.label, "steps": done, "of": total, "seconds_left": round(left)},
            )


def track(label: str, results: Iterable[Any], total: int, megapixels: float, unit: str = "blocks") -> Iterator[Any]:
    """Pass results on and show blocks done, pixels a second and time left.

    Parameters
    ----------
    label
        What is being made.
    results
        One result a block, as they finish.
    total
        Blocks expected.
    megapixels
        Pixels of one block and day, in millions, times its days.
    unit
        What is counted, if not blocks.
    """
    shown = _bars if _shows_bars() else _lines
    yield from shown(label, results, total, megapixels, unit)
