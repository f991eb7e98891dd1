"""The report of a finished run: one page with pictures, maps, charts and where all of it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import AGAIN, main, out
from pipelines.cubes import Crew, write_blocks
from stfgan_xr import overviews
from stfgan_xr.files import Folder, LocalFolder, as_folder, check_file, write_text

REPORT = "report.html"


def write_overviews(folder: Folder, crew: Crew | None = None) -> None:
    """Write the overviews that the cubes of a run lack; small cubes need none."""
    crew = crew or Crew()
    for name in ("fused", "landsat"):
        for overview in overviews.prepare(folder, name):
            label = f"overviews of {name}.zarr"
            write_blocks(label, overview.tasks(), overview.pending, overview.layout, crew)
            crew.refuse_failed(folder)


def size_on_disk(folder: Folder) -> str | None:
    """Bytes of a local run folder, as a text."""
    if not isinstance(folder, LocalFolder):
        return None
    count = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())
    return f"{count / 2**20:,.1f} MiB"


def make_report(folder: Folder, statistics: dict[str, str] | None = None, crew: Crew | None = None) -> str:
    """The report of a finished run as HTML, after the overviews it is made from are written."""
    from stfgan_xr import pages, summary

    write_overviews(folder, crew)
    size = size_on_disk(folder)
    facts = {**(statistics or {}), **({"size on disk": size} if size else {})}
    return pages.to_html(summary.summarise(folder), facts)


def write_report(folder: Folder, statistics: dict[str, str] | None = None, crew: Crew | None = None) -> None:
    """Write ``report.html`` of a finished run into its folder."""
    folder.write(REPORT, make_report(folder, statistics, crew).encode())
    local = isinstance(folder, LocalFolder)
    hint = "open it in a browser" if local else f"to open it: python -m pipelines.summary {folder} --out {REPORT}"
    out.print(f"report: {folder}/{REPORT}, {hint}", markup=False, soft_wrap=True)


def command(
    run: Annotated[str, typer.Argument(help="Run folder of pipelines.fuse: a local one, or s3://bucket/prefix.")],
    file: Annotated[
        Path | None,
        typer.Option("--out", help="File to write it to instead: of a run in an object store, to look at it."),
    ] = None,
) -> None:
    """Write the report of a finished run, **report.html**, anew: pictures, maps, charts, scores and provenance.

    pipelines.fuse does it by itself; this is for runs made with --no-report, or by an earlier version.
    """
    folder = as_folder(run)
    if file is None:
        write_report(folder)
        return
    check_file(file)
    write_text(file, make_report(folder))
    out.print(f"report: {file}, open it in a browser", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(command, AGAIN)
