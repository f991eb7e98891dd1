"""The report of a finished run: one page with pictures, maps, charts and where all of it comes from."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.console import AGAIN, main, out
from pipelines.cubes import Crew, write_blocks
from stfgan_xr import overviews
from stfgan_xr.files import Folder, LocalFolder, as_folder

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


def write_report(folder: Folder, statistics: dict[str, str] | None = None, crew: Crew | None = None) -> None:
    """Write ``report.html`` of a finished run, after the overviews it is made from."""
    from stfgan_xr import pages, summary

    write_overviews(folder, crew)
    size = size_on_disk(folder)
    facts = {**(statistics or {}), **({"size on disk": size} if size else {})}
    folder.write(REPORT, pages.to_html(summary.summarise(folder), facts).encode())
    out.print(f"report: {folder}/{REPORT}, open it in a browser", markup=False, soft_wrap=True)


def command(
    run: Annotated[str, typer.Argument(help="Run folder of pipelines.fuse: a local one, or s3://bucket/prefix.")],
) -> None:
    """Write the report of a finished run, **report.html**, anew: pictures, maps, charts, scores and provenance.

    pipelines.fuse does it by itself; this is for runs made with --no-report, or by an earlier version.
    """
    write_report(as_folder(run))


if __name__ == "__main__":
    main(command, AGAIN)
