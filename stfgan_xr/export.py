"""A fused cube as files that other programs open: cloud optimised GeoTIFFs with a STAC catalog, NetCDF-CF, a film.

Values are copied as they are stored, never resampled: what is exported equals the cube.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from stfgan_xr import __version__, cogs, stac, store
from stfgan_xr.brackets import band_names
from stfgan_xr.errors import InputError
from stfgan_xr.files import Folder
from stfgan_xr.fusion import NO_AGE, Quality
from stfgan_xr.grid import Window, tiles
from stfgan_xr.overviews import Pyramid, days_of, window_of
from stfgan_xr.region import Region
from stfgan_xr.rendering import composites_of, shade, stretch_of
from stfgan_xr.sensors import FILL, SCALE

Array = npt.NDArray[Any]

TILE = 1024
"""Pixels along a window that is read and written at once, of INNER_DAYS days."""
GIF_PIXELS, FRAME_MILLISECONDS = 400, 400


@dataclass(frozen=True)
class Part:
    """One kind of file of a day: the variables that are its bands, what they are, its title and STAC roles."""

    variables: tuple[str, ...]
    content: cogs.Content
    title: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Subset:
    """What is exported of a cube.

    Attributes
    ----------
    counts
        The cube as it is stored, all days and variables.
    bands
        Bands that are wanted.
    steps
        Its time steps that are wanted, in order.
    window
        Its pixels that are wanted.
    region
        Pixels of the cube's grid that are wanted; others are written as without a value. None: all.
    """

    counts: xr.Dataset
    bands: tuple[str, ...]
    steps: tuple[int, ...]
    window: Window
    region: Region | None = None

    @property
    def grid(self) -> GeoBox:
        """The grid of the window."""
        whole = self.counts.odc.geobox
        affine = whole.affine * Affine.translation(self.window.left, self.window.top)
        return GeoBox(self.window.shape, affine, whole.crs)

    @property
    def days(self) -> tuple[date, ...]:
        """The days that are wanted."""
        known = days_of(self.counts)
        return tuple(known[step] for step in self.steps)

    def parts(self) -> dict[str, Part]:
        """The files of a day by key."""
        reflectance = cogs.Content(self.bands, "int16", FILL, SCALE)
        flags = cogs.Content(("qa",), "uint16", overviews="nearest")
        ages = cogs.Content(("days_before", "days_after"), "uint8", NO_AGE, overviews="nearest")
        found = {
            "reflectance": Part(self.bands, reflectance, "Surface reflectance", ("data", "reflectance")),
            "qa": Part(("qa",), flags, f"How each pixel was made: bits {_bits()}", ("metadata",)),
            "ages": Part(ages.names, ages, "Days to the observations used", ("metadata",)),
        }
        deviations = tuple(f"std_{band}" for band in self.bands if f"std_{band}" in self.counts)
        if deviations:
            content = cogs.Content(deviations, "int16", FILL, SCALE)
            found["std"] = Part(deviations, content, "Standard deviation of the reflectance", ("metadata",))
        return found

    def read(self, variables: Sequence[str], steps: Sequence[int], window: Window) -> Array:
        """Stored values ``(variable, time, y, x)`` of consecutive steps and a window of :attr:`grid`."""
        place = window.move(self.window.top, self.window.left)
        rows, columns = place.slices
        part = self.counts[list(variables)].isel(time=slice(steps[0], steps[-1] + 1), y=rows, x=columns)
        values = np.stack([np.asarray(part[name].values) for name in variables])
        if self.region is not None:
            values[..., ~self.region.inside(place)] = _nothing(variables[0])
        return values


def _bits() -> str:
    return ", ".join(f"{flag.value} {(flag.name or '').lower()}" for flag in Quality)


def _nothing(variable: str) -> int:
    """The stored value of a pixel outside of what is wanted."""
    return {"qa": int(Quality.NODATA), "days_before": NO_AGE, "days_after": NO_AGE}.get(variable, FILL)


def select(
    run: Folder, days: Sequence[date] | None = None, bands: Sequence[str] | None = None, area: Geometry | None = None
) -> Subset:
    """A part of the fused cube of a run.

    Parameters
    ----------
    run
        The run folder.
    days, bands
        Those that are wanted, by default all.
    area
        An area in EPSG:4326: its rectangle is exported, and pixels outside of it are without a value.

    Raises
    ------
    InputError
        If the cube has not what is wanted; the message says what it has.
    """
    counts = store.open_counts(run / "fused.zarr")
    known, names = days_of(counts), band_names(counts)
    missing = [str(day) for day in days or () if day not in known]
    if missing:
        raise InputError(f"--dates: {run} has no {missing[0]}; it holds {known[0]} to {known[-1]} ({len(known)} days)")
    unknown = [band for band in bands or () if band not in names]
    if unknown:
        raise InputError(f"--bands: {run} has no {unknown[0]}; it holds {', '.join(names)}")
    wanted = set(days or known)
    steps = tuple(number for number, day in enumerate(known) if day in wanted)
    shape = (counts.sizes["y"], counts.sizes["x"])
    window, region = Window(0, shape[0], 0, shape[1]), None
    if area is not None:
        region = Region(counts.odc.geobox, area)
        window = _window_of(counts.odc.geobox, area).clip(shape)
        if min(window.shape) <= 0:
            raise InputError(f"--aoi lies outside of {run}, which covers {_bounds(counts.odc.geobox)} in degrees")
    chosen = tuple(band for band in names if bands is None or band in bands)
    return Subset(counts, chosen, steps, window, region)


def _bounds(grid: GeoBox) -> str:
    return ",".join(f"{value:.4f}" for value in stac.footprint(grid)[1])


def _window_of(grid: GeoBox, area: Geometry) -> Window:
    """The pixels whose rectangle holds an area."""
    assert grid.crs is not None
    return window_of(grid, area.to_crs(grid.crs, resolution=0.01).boundingbox.bbox)


def origin_of(run: Folder, name: str) -> stac.Origin:
    """What made the cube of a run, for its STAC catalog."""
    document = json.loads(run.read("run.json") or b"{}")
    request = document.get("request", {})
    method = document.get("guard", {}).get("used", request.get("method", "an unknown method"))
    catalog = (document.get("catalog") or {}).get("name") or "rasters of the user's own"
    return stac.Origin(
        name=name,
        title=f"Daily Landsat-like surface reflectance by {method}",
        lineage=f"Landsat and MODIS surface reflectance from {catalog}, fused by stfgan_xr with the method {method}",
        software={"stfgan_xr": str(document.get("stfgan_xr", __version__))},
    )


def _groups(steps: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Consecutive steps within one run of stored days, so that a chunk is decoded once."""
    for _, same in groupby(enumerate(steps), lambda pair: (pair[1] // store.INNER_DAYS, pair[1] - pair[0])):
        yield tuple(step for _, step in same)


def write_cogs(subset: Subset, folder: Path, origin: stac.Origin) -> Iterator[Any]:
    """Write the files of each day and yield its STAC item; days are written a few at a time.

    Parameters
    ----------
    subset
        What is exported.
    folder
        Where; days get folders of their own below the collection's.
    origin
        What made it.
    """
    days = dict(zip(subset.steps, subset.days, strict=True))
    for steps in _groups(subset.steps):
        paths = {step: folder / origin.name / f"{origin.name}_{days[step]}" for step in steps}
        for path in paths.values():
            path.mkdir(parents=True, exist_ok=True)
        assets: dict[int, dict[str, stac.Asset]] = {step: {} for step in steps}
        for key, part in subset.parts().items():
            files = {step: path / f"{path.name}_{key}.tif" for step, path in paths.items()}
            shares = _write_part(subset, part, files, {step: {"DATE": str(days[step])} for step in steps})
            for step, share in shares.items():
                assets[step][key] = stac.Asset(files[step], part.title, part.roles, part.content, share)
        for step in steps:
            yield stac.item(days[step], subset.grid, assets[step], origin)


def _write_part(
    subset: Subset, part: Part, files: Mapping[int, Path], tags: Mapping[int, dict[str, str]]
) -> dict[int, tuple[float, ...]]:
    """One kind of file of some consecutive days; the share of each band that has a value, in per cent."""
    steps, nothing = tuple(files), _nothing(part.variables[0])
    valid = np.zeros((len(steps), len(part.variables)), np.int64)
    with ExitStack() as stack:
        write: dict[int, Callable[[Window, Array], None]] = {
            step: stack.enter_context(cogs.writing(path, subset.grid, part.content, tags[step]))
            for step, path in files.items()
        }
        for window in tiles(subset.window.shape, TILE):
            values = subset.read(part.variables, steps, window)
            for number, step in enumerate(steps):
                write[step](window, values[:, number])
            given = (values & nothing) == 0 if part.variables == ("qa",) else values != nothing
            valid += given.sum(axis=(2, 3)).T
    pixels = subset.window.shape[0] * subset.window.shape[1]
    return {step: tuple(100 * float(n) / pixels for n in row) for step, row in zip(steps, valid, strict=True)}


def to_netcdf(subset: Subset, path: Path) -> None:
    """Write one NetCDF-4 file with CF attributes, packed as the cube is; a few days and a tile are read at a time.

    Parameters
    ----------
    subset
        What is exported.
    path
        File to write.
    """
    import dask

    names = [name for part in subset.parts().values() for name in part.variables]
    rows, columns = subset.window.slices
    dataset = subset.counts[names].isel(time=list(subset.steps), y=rows, x=columns)
    dataset = dataset.drop_vars([name for name in (store.AOI,) if name in dataset.coords])
    dataset = dataset.chunk({"time": store.INNER_DAYS, "y": TILE, "x": TILE})
    if subset.region is not None:
        inside = xr.DataArray(subset.region.inside(subset.window), dims=("y", "x"))
        dataset = dataset.map(lambda array: array.where(inside, array.dtype.type(_nothing(str(array.name)))))
    encoding: dict[str, dict[str, Any]] = {"time": {"units": "days since 1970-01-01", "dtype": "int32"}}
    for name in names:
        # Only variables with a value that means nothing say so; xarray wants it apart from the attributes.
        attributes = dict(subset.counts[name].attrs)
        fill = attributes.pop("_FillValue", None)
        dataset[name].attrs = attributes | {"grid_mapping": "spatial_ref"}
        sizes = zip(dataset[name].shape, (store.INNER_DAYS, 256, 256), strict=True)
        encoding[name] = {"zlib": True, "complevel": 4, "shuffle": True, "chunksizes": tuple(min(p) for p in sizes)}
        encoding[name]["_FillValue"] = None if fill is None else dataset[name].dtype.type(fill)
        dataset[name].attrs.pop("coordinates", None)
    dataset.attrs = {
        "Conventions": "CF-1.11",
        "title": str(subset.counts.attrs.get("title", "")),
        "institution": f"made by stfgan_xr {__version__}",
    }
    partial = path.with_name(f".{path.name}.partial")
    with dask.config.set(scheduler="synchronous"):
        dataset.to_netcdf(partial, engine="h5netcdf", encoding=encoding, unlimited_dims=[])
    partial.replace(path)


def write_gif(pyramid: Pyramid, steps: Sequence[int], window: Window, path: Path, pixels: int = 640) -> None:
    """Write the days as an animated GIF in true colour, or in the first composite that the bands allow.

    Parameters
    ----------
    pyramid
        The fused cube.
    steps, window
        Time steps and pixels shown.
    path
        File to write.
    pixels
        Most pixels along a side.
    """
    from PIL import Image

    bands = next(iter(composites_of(band_names(pyramid.cube)).values()))
    known = days_of(pyramid.cube)
    views = [pyramid.view(bands, slice(step, step + 1), window, pixels) for step in steps]
    images = [np.concatenate([view.values[band] for band in bands]) for view in views]
    stretch = stretch_of(images)
    frames = [Image.fromarray((shade(image, stretch) * 255).astype(np.uint8)) for image in images]
    zoom = max(1, GIF_PIXELS // max(frames[0].size))  # a small area is shown larger
    frames = [frame.resize((frame.width * zoom, frame.height * zoom), Image.Resampling.NEAREST) for frame in frames]
    for frame, step in zip(frames, steps, strict=True):
        _caption(frame, str(known[step]))
    partial = path.with_name(f".{path.name}.partial")
    frames[0].save(
        partial, "GIF", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0, optimize=False
    )
    partial.replace(path)


def _caption(frame: Any, text: str) -> None:
    from PIL import ImageDraw

    draw, size = ImageDraw.Draw(frame), max(10, frame.width // 24)
    left, top, right, bottom = draw.textbbox((size // 2, size // 2), text, font_size=size)
    draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=(0, 0, 0))
    draw.text((size // 2, size // 2), text, font_size=size, fill=(255, 255, 255))
