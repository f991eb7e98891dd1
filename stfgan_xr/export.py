"""A fused cube as files that other programs open: cloud optimised GeoTIFFs with a STAC catalog, NetCDF-CF, a film.

Values are copied as they are stored, never resampled: what is exported equals the cube.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import numpy.typing as npt
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from PIL import Image, ImageDraw

from stfgan_xr import __version__, cogs, stac, store
from stfgan_xr.brackets import band_names
from stfgan_xr.errors import InputError
from stfgan_xr.files import Folder
from stfgan_xr.fusion import NO_AGE, Quality
from stfgan_xr.grid import Window, tiles
from stfgan_xr.overviews import Pyramid, days_of, spread_steps, window_of
from stfgan_xr.region import Region
from stfgan_xr.rendering import composites_of, shade, stretch_of
from stfgan_xr.sensors import FILL, SCALE

Array = npt.NDArray[Any]

TILE = 1024
"""Pixels along a window that is read and written at once, of INNER_DAYS days."""
GIF_PIXELS, MP4_PIXELS, FRAME_MILLISECONDS = 640, 1080, 400
STRETCH_DAYS = 3
"""Days, spread over all, whose brightness decides that of a film."""


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


def groups(steps: Sequence[int]) -> list[tuple[int, ...]]:
    """Consecutive steps within one run of stored days, so that a chunk is decoded once.

    >>> groups([6, 7, 8, 9, 12])
    [(6, 7), (8, 9), (12,)]
    """
    runs = groupby(enumerate(steps), lambda pair: (pair[1] // store.INNER_DAYS, pair[1] - pair[0]))
    return [tuple(step for _, step in same) for _, same in runs]


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
    for steps in groups(subset.steps):
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


def to_netcdf(subset: Subset, path: Path) -> Iterator[tuple[int, ...]]:
    """Write one NetCDF-4 file with CF attributes, packed as the cube is; yields steps that are written.

    Parameters
    ----------
    subset
        What is exported.
    path
        File to write; it is there when all steps are.
    """
    rows, columns = subset.window.slices
    frame = subset.counts.drop_vars([name for name in (*subset.counts.data_vars, store.AOI) if name in subset.counts])
    frame = frame.isel(time=list(subset.steps), y=rows, x=columns)
    frame.attrs = {
        "Conventions": "CF-1.11",
        "title": str(subset.counts.attrs.get("title", "")),
        "institution": f"made by stfgan_xr {__version__}",
    }
    partial = path.with_name(f".{path.name}.partial")
    time = {"units": "days since 1970-01-01", "dtype": "int32"}
    frame.to_netcdf(partial, engine="h5netcdf", encoding={"time": time}, unlimited_dims=[])
    with h5netcdf.File(partial, "a") as file:
        for name in (name for part in subset.parts().values() for name in part.variables):
            _add_variable(file, name, subset.counts[name])
        for steps in groups(subset.steps):
            first = subset.steps.index(steps[0])
            for part in subset.parts().values():
                for window in tiles(subset.window.shape, TILE):
                    values = subset.read(part.variables, steps, window)
                    for name, array in zip(part.variables, values, strict=True):
                        file[name][(slice(first, first + len(steps)), *window.slices)] = array
            yield steps
    partial.replace(path)


def _add_variable(file: h5netcdf.File, name: str, stored: xr.DataArray) -> None:
    """An empty variable, packed as it is stored."""
    sizes = tuple(file.dimensions[dim].size for dim in store.FINE)
    # Only variables with a value that means nothing say so.
    attributes = dict(stored.attrs)
    fill = attributes.pop("_FillValue", None)
    variable = file.create_variable(
        name, store.FINE, stored.dtype, fillvalue=None if fill is None else stored.dtype.type(fill),
        chunks=tuple(min(pair) for pair in zip(sizes, (store.INNER_DAYS, 256, 256), strict=True)),
        compression="gzip", compression_opts=4, shuffle=True,
    )  # fmt: skip
    attributes.pop("coordinates", None)
    variable.attrs.update(attributes | {"grid_mapping": "spatial_ref"})


def frames(pyramid: Pyramid, steps: Sequence[int], window: Window, pixels: int) -> Iterator[Image.Image]:
    """The days as pictures in true colour, or in the first composite that the bands allow, each with its date.

    Parameters
    ----------
    pyramid
        The fused cube.
    steps, window
        Time steps and pixels shown.
    pixels
        Most pixels along a side; small areas are enlarged by a whole number.
    """
    bands = next(iter(composites_of(band_names(pyramid.cube)).values()))
    known = days_of(pyramid.cube)

    def images(some: Sequence[int]) -> Iterator[Array]:
        view = pyramid.view(bands, slice(some[0], some[-1] + 1), window, pixels)
        return (np.stack(image) for image in zip(*(view.values[band] for band in bands), strict=True))

    stretch = stretch_of([image for n in spread_steps(len(steps), STRETCH_DAYS) for image in images([steps[n]])])
    for some in groups(steps):
        for step, image in zip(some, images(some), strict=True):
            frame = Image.fromarray((shade(image, stretch) * 255).astype(np.uint8))
            zoom = max(1, pixels // max(frame.size))
            frame = frame.resize((frame.width * zoom, frame.height * zoom), Image.Resampling.NEAREST)
            _caption(frame, str(known[step]))
            yield frame


def write_gif(pictures: Iterable[Image.Image], path: Path) -> None:
    """Write pictures as an animated GIF.

    Parameters
    ----------
    pictures
        See :func:`frames`.
    path
        File to write.
    """
    others = iter(pictures)
    first = next(others)
    partial = path.with_name(f".{path.name}.partial")
    first.save(partial, "GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0, optimize=False)
    partial.replace(path)


def check_mp4() -> None:
    """Refuse to write MP4 where the library for it is not installed.

    Raises
    ------
    InputError
        If it is not.
    """
    if find_spec("av") is None:
        raise InputError("MP4 needs PyAV: pip install 'stfgan_xr[film]'; GIF needs nothing else")


def write_mp4(pictures: Iterable[Image.Image], path: Path) -> None:
    """Write pictures as an MP4 of H.264, which browsers, slides and phones play.

    Parameters
    ----------
    pictures
        See :func:`frames`.
    path
        File to write.

    Raises
    ------
    InputError
        If PyAV is not installed.
    """
    check_mp4()
    import av

    partial = path.with_name(f".{path.name}.partial")
    # What players need to begin lies at the start of the file.
    with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as film:
        stream = film.add_stream("libx264", rate=Fraction(1000, FRAME_MILLISECONDS), options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            # Colours are stored for two by two pixels.
            even = picture.crop((0, 0, picture.width // 2 * 2, picture.height // 2 * 2))
            if number == 0:
                stream.width, stream.height = even.size
            film.mux(stream.encode(av.VideoFrame.from_image(even)))
        film.mux(stream.encode(None))
    partial.replace(path)


def _caption(frame: Image.Image, text: str) -> None:
    draw, size = ImageDraw.Draw(frame), max(10, frame.width // 24)
    left, top, right, bottom = draw.textbbox((size // 2, size // 2), text, font_size=size)
    draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=(0, 0, 0))
    draw.text((size // 2, size // 2), text, font_size=size, fill=(255, 255, 255))
