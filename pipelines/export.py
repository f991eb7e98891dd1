"""A finished run as files for other programs: GeoTIFFs with a STAC catalog, NetCDF, or a film."""

from __future__ import annotations

import re
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.console import main, one_of, out, track
from stfgan_xr import days as calendar
from stfgan_xr import export, stac
from stfgan_xr.aoi import read_aoi
from stfgan_xr.errors import InputError
from stfgan_xr.files import Folder, LocalFolder, as_folder
from stfgan_xr.overviews import open_pyramid

FILMS = {"gif": (export.GIF_PIXELS, export.write_gif), "mp4": (export.MP4_PIXELS, export.write_mp4)}
AFTER = "what is written is not whole: start again with --overwrite"
FORMATS = ("cog", "netcdf", *FILMS)


def _name(run: Folder) -> str:
    """The collection's name: that of the run folder, in signs that every program takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", str(run).rstrip("/").rpartition("/")[2]).strip("-") or "fused"


def _is_own(name: str) -> re.Pattern[str]:
    """What an export writes below its folder, also one that was interrupted, and what GDAL and QGIS add to it."""
    name, kinds = re.escape(name), "|".join(("nc", *FILMS))
    day = rf"{name}_\d{{4}}-\d\d-\d\d"
    files = rf"\.?{day}(_\w+)?\.(json|tif)(\.(plain|partial)\.tif|\.aux\.xml)?"
    return re.compile(rf"catalog\.json|\.?{name}\.({kinds})(\.partial)?|{name}(/(collection\.json|{day}(/{files})?))?")


def _check(folder: Path, name: str, overwrite: bool) -> None:
    """Refuse a folder that holds anything; with ``overwrite`` all but an export of the same run, which is deleted."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if not found:
        return
    if not overwrite:
        raise InputError(f"--out {folder}: holds something already; choose another folder or add --overwrite")
    inner = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    foreign = [path for path in inner if not _is_own(name).fullmatch(path)]
    if foreign:
        raise InputError(
            f"--out {folder}: holds {foreign[0]}, which is no export of this run, and --overwrite deletes nothing "
            "else; choose another folder"
        )
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write(subset: export.Subset, run: Folder, folder: Path, formats: Sequence[str]) -> None:
    name, days = _name(run), len(subset.steps)
    height, width = subset.window.shape

    def told(label: str, results: Iterable[Any], total: int = days, unit: str = "days") -> Iterator[Any]:
        return track(label, results, total, days / total * height * width / 1e6, unit)

    if "cog" in formats:
        origin = export.origin_of(run, name)
        catalog = stac.save(folder, list(told("GeoTIFFs", export.write_cogs(subset, folder, origin))), origin)
        out.print(f"GeoTIFFs: {days} days below {folder / name}, open them in QGIS or with GDAL", markup=False)
        out.print(f"STAC:     {catalog}", markup=False)
    if "netcdf" in formats:
        path = folder / f"{name}.nc"
        deque(told("NetCDF", export.to_netcdf(subset, path), len(export.groups(subset.steps)), "parts"), maxlen=0)
        out.print(f"NetCDF:   {path}, open it with xarray.open_dataset(...)", markup=False)
    for kind, (pixels, write) in FILMS.items():
        if kind in formats:
            pictures = export.frames(open_pyramid(run, "fused"), subset.steps, subset.window, pixels)
            write(told(f"film, {kind}", pictures), folder / f"{name}.{kind}")
            out.print(f"film:     {folder / f'{name}.{kind}'}", markup=False)


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
    **gif**, **mp4**: a film of the days, for slides and web pages (mp4 needs `pip install 'stfgan_xr[film]'`).

    For example `python -m pipelines.export run --out files --format cog --format gif --dates 2020-01-05/2020-01-09`.
    """
    LocalFolder(folder).check()
    wanted = formats or [FORMATS[0]]
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown:
        raise InputError(f"--format {unknown[0]!r} is unknown; choose from {', '.join(FORMATS)}")
    if "mp4" in wanted:
        export.check_mp4()
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
    main(command, AFTER)
