"""All commands as one program: ``stfgan-xr NAME`` and ``python -m pipelines NAME`` are ``python -m pipelines.NAME``.

By itself it lists the commands, and a shell completes their names, options and the values of some.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib import import_module

import typer

from pipelines.console import program, run

COMMANDS = {
    "fuse": "From an area and dates to a Landsat-like image of every day.",
    "view": "Browse the cubes of a run in a local web page.",
    "export": "GeoTIFFs with a STAC catalog, NetCDF, films.",
    "summary": "Write the report of a run anew.",
    "evaluate": "Score methods on withheld days, benchmark sets or a known truth.",
    "verify": "Check every chunk of a run against its record, and repair it.",
    "train": "Train a method on cubes of your own.",
    "calibrate": "Measure anew how far weights are off.",
    "cubes": "Write the Landsat and MODIS cubes alone.",
    "catalogs": "List the catalogs, or show what is understood of a STAC item.",
    "demo": "Simulate a world of any size, with a catalog of its images.",
}
"""The commands, and what the list of them says."""


def _named() -> str:
    """The command that is to be run, or of which a shell asks what it takes."""
    asked = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS")
    words = asked.split() if asked else sys.argv
    return words[1] if len(words) > 1 else ""


def listed(named: str = "") -> typer.Typer:
    """All commands as one program: with the arguments of one of them, as to import all takes seconds."""
    app = typer.Typer(
        pretty_exceptions_enable=False, rich_markup_mode="markdown",
        help="Daily Landsat-like cubes of any region from Landsat and MODIS. `stfgan-xr COMMAND --help` says what a "
        "command takes.",
    )  # fmt: skip
    for name, about in COMMANDS.items():
        command = import_module(f"pipelines.{name}").command if name == named else _later
        if command is not _later:
            program(command)
        app.command(name, short_help=about)(command)
    return app


def _later() -> None:
    """A command whose arguments nobody asked for."""


def start() -> None:
    """Run the command that is named, as ``python -m`` does; else list them, or answer a shell."""
    named, is_asked = _named(), "_STFGAN_XR_COMPLETE" in os.environ
    if named not in COMMANDS or is_asked:
        sys.argv += [] if named or is_asked else ["--help"]
        run(listed(named))
    del sys.argv[1]
    runpy.run_module(f"pipelines.{named}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    start()
