"""A finished run as files for other programs: GeoTIFFs with a STAC catalog, NetCDF, or a film."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import main, one_of, out, track
from stfgan_xr import days as calendar
from stfgan_xr import export, stac
from stfgan_xr.aoi import read_aoi
from stfgan_xr.errors import InputError
from stfgan_xr.files import Folder, LocalFolder, as_folder
from stfgan_xr.overviews import open_pyramid

FORMATS = ("cog", "netcdf", "gif")


def _name(run: Folder) -> str:
    """The collection's name: that of the run folder, in signs that every program takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", str(run).rstrip("/").rpartition("/")[2]).strip("-") or "fused"


def _check(folder: Path, name: str, overwrite: bool) -> None:
    """Refuse a folder that holds anything; with ``overwrite`` all but an export of the same run, which is deleted."""
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not found:
        return
    if not overwrite:
        raise InputError(f"--out {folder}: holds something already; choose another folder or add --overwrite")
    foreign = [other for other in found if other not in ("catalog.json", name, f"{name}.nc", f"{name}.gif")]
    if name in found and not (folder / name / "collection.json").is_file():
        foreign.append(name)
    if foreign:
        raise InputError(
            f"--out {folder}: holds {foreign[0]}, which is no export of this run, and --overwrite deletes nothing "
            "else; choose another folder"
        )
    for own in found:
        path = folder / own
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write(subset: export.Subset, run: Folder, folder: Path, formats: Sequence[str]) -> None:
    name = _name(run)
    if "cog" in formats:
        origin = export.origin_of(run, name)
        height, width = subset.window.shape
        items = track("GeoTIFFs", export.write_cogs(subset, folder, origin), len(subset.steps), height * width / 1e6)
        catalog = stac.save(folder, list(items), origin)
        out.print(f"GeoTIFFs: {len(subset.steps)} days below {folder / name}, open them in QGIS or with GDAL")
        out.print(f"STAC:     {catalog}")
    if "netcdf" in formats:
        export.to_netcdf(subset, folder / f"{name}.nc")
        out.print(f"NetCDF:   {folder / f'{name}.nc'}, open it with xarray.open_dataset(...)", markup=False)
    if "gif" in formats:
        pyramid = open_pyramid(run, "fused")
        export.write_gif(pyramid, subset.steps, subset.window, folder / f"{name}.gif")
        out.print(f"film:     {folder / f'{name}.gif'}")


def command(
    run: Annotated[str, typer.Argument(help="Run folder of pipelines.fuse: a local one, or s3://bucket/prefix.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write; it must be empty or absent.")],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help=f"One of {', '.join(FORMATS)}; may be given several times. Default: cog.",
            autocompletion=one_of(FORMATS),
        ),
    ] = None,
    dates: Annotated[
        str | None, typer.Option(help="Days: one, START/END (both included), START/END/P8D, or a comma list.")
    ] = None,
    bands: Annotated[str | None, typer.Option(help="Comma list of bands. Default: all of the run.")] = None,
    aoi: Annotated[
        str | None, typer.Option(help="Part of the area: GeoJSON file, or west,south,east,north in degrees.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an export that the folder holds first.")
    ] = False,
) -> None:
    """Export the fused images of a run for QGIS, GDAL, xarray and everybody.

    **cog**: for each day cloud optimised GeoTIFFs of reflectance (bands named, scale and nodata stated), quality, ages
    and, where the run has them, standard deviations, with a static STAC catalog. **netcdf**: one NetCDF-CF file.
    **gif**: an animation.
    """
    LocalFolder(folder).check()
    wanted = formats or [FORMATS[0]]
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown:
        raise InputError(f"--format {unknown[0]!r} is unknown; choose from {', '.join(FORMATS)}")
    days = calendar.parse_dates(dates) if dates else None
    named = [band.strip() for band in bands.split(",") if band.strip()] if bands else None
    area = read_aoi(aoi) if aoi else None
    source = as_folder(run)
    subset = export.select(source, days, named, area)
    _check(folder, _name(source), overwrite)
    with LocalFolder(folder).writing():
        folder.mkdir(parents=True, exist_ok=True)
        _write(subset, source, folder, wanted)


if __name__ == "__main__":
    main(command, "what is written is not whole: start again with --overwrite")
