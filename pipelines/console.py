"""What all commands share: one-line errors, exit codes, plain or rich output."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

import click
import typer
from rich.console import Console

from stfgan_xr.errors import StfganError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)

INTERRUPTED, TERMINATED, UNEXPECTED = 130, 143, 1


def _complain(message: str) -> None:
    err.print(f"error: {message}", style="red", markup=False)


def _terminate(*_: Any) -> None:
    raise SystemExit(TERMINATED)


def main(command: Any) -> None:
    """Run a typer application or function as a program and turn every known error into one line and an exit code.

    Exit codes: 0 done, 1 unexpected, 2 bad input, 3 nothing to do, 4 the data source failed, 5 out of disk or memory,
    6 incomplete or damaged, 130 and 143 interrupted or terminated (resumable). ``STFGAN_XR_DEBUG=1`` adds tracebacks.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _terminate)
    app = command
    if not isinstance(app, typer.Typer):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
        app.command()(command)
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except StfganError as error:
        if os.environ.get("STFGAN_XR_DEBUG"):
            raise
        _complain(" ".join(str(error).split()))
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _complain(" ".join(error.format_message().split()))
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; the same command resumes")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("STFGAN_XR_DEBUG"):
            raise
        _complain(f"unexpected {type(error).__name__}: {error} (STFGAN_XR_DEBUG=1 shows where; please report it)")
        sys.exit(UNEXPECTED)
