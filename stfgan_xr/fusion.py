"""Fusion: a predictor over blocks of a region and its days, as a lazy Dataset or written block by block."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import IntFlag
from functools import cached_property, partial
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import Delayed, delayed
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from stfgan_xr import store
from stfgan_xr.brackets import FILL_DAYS, DatasetSeries, Interval, intervals, reach_cells, series, spectra
from stfgan_xr.days import describe as describe_days
from stfgan_xr.days import from_number, to_datetime64, to_number, to_numbers
from stfgan_xr.errors import InputError, ResourceError
from stfgan_xr.grid import Window, coarse_grid, describe, ratio_of, tile_step
from stfgan_xr.lineage import Lineage
from stfgan_xr.predictors import (
    Prediction,
    Predictor,
    cloud_reach,
    cropped,
    fitted,
    is_fitted,
    memory_of,
    tells_spread,
    wants_archive,
)
from stfgan_xr.predictors.uncertainty import SHARES, Calibrated, Uncertainty, calibrated
from stfgan_xr.rendering import as_table
from stfgan_xr.sensors import FILL, SCALE, from_reflectance, to_reflectance

AGE_CLASSES = (0, 4, 8, 16, 32, 64)
"""Upper bounds in days of the age classes 0 to 5; older is 6, none is 7."""
NO_AGE = 255
BASE_MEMORY = 450 * 2**20
"""Bytes of a worker process with its libraries loaded and nothing read."""
DAYS_AT_ONCE = 4

Arrays = dict[str, npt.NDArray[Any]]


class Quality(IntFlag):
    """Bits of the ``qa`` variable of a fused cube. Bits 8-10 and 11-13 hold the age class before and after."""

    OBSERVED = 1
    EXTRAPOLATED = 2
    COARSE_FILLED_IN_TIME = 4
    COARSE_FILLED_IN_SPACE = 8
    COARSE_LOW_QUALITY = 16
    INPUT_CLIPPED = 32
    BORDER = 64
    NODATA = 128


BEFORE_SHIFT, AFTER_SHIFT = 8, 11


@dataclass(frozen=True)
class Options:
    """How blocks are fused.

    Attributes
    ----------
    bracket_days
        Landsat observations further from a day than this are not used.
    keep_observed
        A clear observation of the day itself is the product there; off, every pixel is predicted.
    fitted
        Digest of what a method is fitted to, if it is.
    """

    bracket_days: int = 64
    keep_observed: bool = True
    fitted: str = ""


def fused_variables(
    bands: Sequence[str], uncertainty: Uncertainty | None = None, spread: bool = False
) -> dict[str, store.Variable]:
    """The variables of a fused cube: bands, ``qa``, ages in days, the coarse residual of each band and, where they are
    known, its standard deviation, and the spread of what is predicted from before and from after."""
    flags = {flag.name or "": flag.value for flag in Quality}
    age = {"units": "days", "long_name": f"days to the nearest clear observation, {NO_AGE} or more: {NO_AGE}"}
    variables = {band: store.reflectance_variable(band) for band in bands}
    variables["qa"] = store.flag_variable(flags, Quality.NODATA, "how the pixel was made")
    for name in ("days_before", "days_after"):
        variables[name] = store.Variable("uint8", NO_AGE, attributes=age)
    for band in bands:
        variables[f"residual_{band}"] = store.reflectance_variable(f"{band} mean of fused minus coarse", store.COARSE)
    if uncertainty is not None:
        for band, widths in zip(bands, uncertainty.intervals, strict=True):
            variable = store.reflectance_variable(f"standard deviation of {band}")
            stated = {f"interval_{share * 100:.0f}": width for share, width in zip(SHARES, widths, strict=True)}
            variables[f"std_{band}"] = replace(variable, attributes={**variable.attributes, **stated})
    if spread:
        for band in bands:
            variables[f"spread_{band}"] = store.reflectance_variable(
                f"difference of {band} predicted from before and from after"
            )
    return variables


def _variables(predictor: Predictor) -> dict[str, store.Variable]:
    return fused_variables(predictor.bands, _uncertainty(predictor), tells_spread(predictor))


def _uncertainty(predictor: Predictor) -> Uncertainty | None:
    return predictor.uncertainty if isinstance(predictor, Calibrated) else None


def _age_classes() -> npt.NDArray[np.uint16]:
    """The class of every age from 0 to :data:`NO_AGE`."""
    found = np.searchsorted(np.array(AGE_CLASSES), np.arange(NO_AGE + 1)).astype(np.uint16)
    found[NO_AGE] = len(AGE_CLASSES) + 1
    return found


def _age(days: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    # Where one side is missing both hold the other, so its age is negative; as a whole number without sign it is large.
    return np.minimum(days.view(np.uint32), np.uint32(NO_AGE)).astype(np.uint8)


_BEFORE, _AFTER = (_age_classes() << np.uint16(shift) for shift in (BEFORE_SHIFT, AFTER_SHIFT))


def _cell_sums(pixels: npt.NDArray[Any], ratio: int) -> npt.NDArray[np.int64]:
    """Sums ``(cy, cx)`` over cells of whole numbers."""
    height, width = (side // ratio for side in pixels.shape)
    rows = np.add.reduce(pixels.reshape(height, ratio, width * ratio), axis=1, dtype=np.int64)
    sums: npt.NDArray[np.int64] = rows.reshape(height, width, ratio).sum(axis=2)
    return sums


def _expand(cells: npt.NDArray[Any], ratio: int) -> npt.NDArray[Any]:
    return cells.repeat(ratio, axis=-2).repeat(ratio, axis=-1)


def _grow(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    # Bilinear interpolation draws on the neighbouring cells: a hole reaches half a cell into them.
    height, width = cells.shape[-2:]
    padded = np.pad(cells, [(0, 0)] * (cells.ndim - 2) + [(1, 1), (1, 1)])
    parts = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    grown: npt.NDArray[np.bool_] = np.logical_or.reduce(parts)
    return grown


def _border(window: Window, shape: tuple[int, int], reach: int) -> npt.NDArray[np.bool_]:
    """Pixels of a window closer to the edge of the grid than ``reach``."""
    rows, columns = np.arange(window.top, window.bottom), np.arange(window.left, window.right)
    near_rows = (rows < reach) | (rows >= shape[0] - reach)
    near_columns = (columns < reach) | (columns >= shape[1] - reach)
    return near_rows[:, None] | near_columns[None, :]


@dataclass(frozen=True)
class _Canvas:
    """The arrays of a block while they are filled, and what its days have in common."""

    arrays: Arrays
    bands: tuple[str, ...]
    ratio: int
    needs_coarse: bool
    border: npt.NDArray[np.bool_]
    uncertainty: Uncertainty | None

    @classmethod
    def empty(cls, window: Window, shape: tuple[int, int], count: int, predictor: Predictor, ratio: int) -> _Canvas:
        cells = window.cells(ratio).shape
        arrays = {
            name: np.full((count, *(cells if v.dims == store.COARSE else window.shape)), v.fill, v.dtype)
            for name, v in _variables(predictor).items()
        }
        needs_coarse = predictor.halo.coarse > 0
        # Only the mirrored pixels that a block's own halo shows to the predictor count.
        border = _border(window, shape, predictor.halo.fine)
        return cls(arrays, predictor.bands, ratio, needs_coarse, border, _uncertainty(predictor))

    def paint(
        self, at: int, day: int, which: int, interval: Interval, prediction: Prediction, number: int, keep: bool
    ) -> None:
        """Day ``day``, the ``which``-th of an interval and ``number``-th of a prediction, into time step ``at``."""
        values = prediction.mean[number]
        clipped = prediction.clipped[number] if prediction.clipped is not None else None
        gaps, nodata = interval.gaps, interval.missing.copy()
        if self.needs_coarse and gaps.missing[which].any():
            nodata |= _expand(_grow(gaps.missing[which]), self.ratio)
        observed = (interval.day_before == day) & ~interval.missing if keep else np.zeros_like(nodata)
        if observed.any():
            nodata &= ~observed
            values = np.where(observed, cropped(interval.bracket.fine_before, interval.bracket.halo.fine), values)
        nodata |= ~np.isfinite(values.sum(axis=0))
        hidden = bool(nodata.any())
        for band, value in zip(self.bands, values, strict=True):
            counts = from_reflectance(value)
            if hidden:
                counts[nodata] = FILL
            self.arrays[band][at] = counts
        ages = _age(day - interval.day_before), _age(interval.day_after - day)
        self.arrays["qa"][at] = self._quality(ages, which, interval, observed, nodata, clipped)
        for name, age in zip(("days_before", "days_after"), ages, strict=True):
            self.arrays[name][at] = np.where(nodata, np.uint8(NO_AGE), age)
        self._residual(at, interval.coarse.on(day), gaps.missing[which], interval.bracket.halo.coarse, hidden)
        if self.uncertainty is not None and prediction.std is not None:
            self._deviation(at, prediction.std[number], self.uncertainty.observed, observed, nodata)
        if prediction.spread is not None:
            told = ~nodata & ~observed & ~interval.extrapolated
            for band, spread in zip(self.bands, prediction.spread[number], strict=True):
                self.arrays[f"spread_{band}"][at] = from_reflectance(np.where(told, spread, np.float32(np.nan)))

    def _deviation(self, at: int, std: Any, of_observation: Sequence[float], observed: Any, nodata: Any) -> None:
        for band, values, own in zip(self.bands, std, of_observation, strict=True):
            # Rounded up: no pixel is certain.
            counts = np.ceil(np.where(observed, np.float32(own), values) * np.float32(1 / SCALE)).clip(1, -FILL - 1)
            self.arrays[f"std_{band}"][at] = np.where(nodata, FILL, counts)

    def _quality(self, ages: Any, which: int, interval: Interval, observed: Any, nodata: Any, clipped: Any) -> Any:
        qa: npt.NDArray[np.uint16] = self.border * np.uint16(Quality.BORDER)
        qa |= interval.extrapolated * np.uint16(Quality.EXTRAPOLATED)
        if clipped is not None:
            qa |= clipped * np.uint16(Quality.INPUT_CLIPPED)
        if self.needs_coarse:
            gaps = interval.gaps
            cells = gaps.in_time[which] * np.uint16(Quality.COARSE_FILLED_IN_TIME)
            cells |= gaps.in_space[which] * np.uint16(Quality.COARSE_FILLED_IN_SPACE)
            cells |= gaps.low_quality[which] * np.uint16(Quality.COARSE_LOW_QUALITY)
            if cells.any():
                qa |= _expand(cells, self.ratio)
        if observed.any():
            qa[observed] = Quality.OBSERVED
        before, after = ages
        qa |= _BEFORE[before]
        qa |= _AFTER[after]
        qa[nodata] = Quality.NODATA
        return qa

    def _residual(self, at: int, coarse: Any, missing: Any, halo: int, hidden: bool) -> None:
        inner = slice(halo, -halo) if halo else slice(None)
        for number, band in enumerate(self.bands):
            counts = self.arrays[band][at]
            # Summed as whole numbers: a sum of floats would depend on the shape of the block.
            count = np.array(self.ratio**2)
            if hidden:
                known = counts != FILL
                count = _cell_sums(known, self.ratio)
                counts = np.where(known, counts, np.int16(0))
            mean = _cell_sums(counts, self.ratio) * SCALE / np.maximum(count, 1)
            departure = np.where((count > 0) & ~missing, mean - coarse[number, inner, inner], np.nan)
            self.arrays[f"residual_{band}"][at] = from_reflectance(departure)


_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.I)


def _predictions(
    predictor: Predictor, prepared: Any, interval: Interval, days: Sequence[int], most: int = DAYS_AT_ONCE
) -> Iterator[tuple[tuple[int, ...], Prediction]]:
    """Predictions of some days at once, of half as many where memory does not suffice: no day depends on the others."""
    for start in range(0, len(days), most):
        batch = tuple(days[start : start + most])
        try:
            found = predictor.predict(prepared, replace(interval.coarse, days=batch))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
                raise
            if len(batch) == 1:
                raise ResourceError(
                    "too little memory for one day of a block; choose a smaller --tile or fewer --workers"
                ) from None
            yield from _predictions(predictor, prepared, interval, batch, -(-len(batch) // 2))
        else:
            yield batch, found


def fuse_block(
    landsat: DatasetSeries,
    modis: DatasetSeries,
    predictor: Predictor,
    window: Window,
    days: Sequence[int],
    options: Options,
    lineage: Lineage | None = None,
) -> Arrays:
    """The arrays of one block of a fused cube, as they are stored.

    Parameters
    ----------
    landsat, modis
        What the block reads from.
    predictor
        The method.
    window
        Fine pixels of the block, from a multiple of :func:`stfgan_xr.grid.tile_step`.
    days
        Target days since 1970-01-01.
    options
        Bracket range and treatment of observed pixels.
    lineage
        Notes what the block is computed from.

    Returns
    -------
    dict
        For each of :func:`fused_variables` its values.
    """
    ratio = landsat.shape[0] // modis.shape[0]
    canvas = _Canvas.empty(window, landsat.shape, len(days), predictor, ratio)
    at = 0
    for interval in _intervals(landsat, modis, predictor, window, days, options):
        if lineage is not None:
            lineage.add(interval)
        if interval.missing.all() and not options.keep_observed:
            at += len(interval.days)
            continue
        prepared = predictor.prepare(interval.bracket)
        done = 0
        for batch, prediction in _predictions(predictor, prepared, interval, interval.days):
            for number, day in enumerate(batch):
                canvas.paint(at, day, done + number, interval, prediction, number, options.keep_observed)
                at += 1
            done += len(batch)
    return canvas.arrays


def _intervals(
    landsat: DatasetSeries, modis: DatasetSeries, predictor: Predictor, window: Window, days: Any, options: Options
) -> Iterator[Interval]:
    return intervals(
        landsat, modis, window, days, predictor.halo, landsat.shape[0] // modis.shape[0], options.bracket_days,
        archive=wants_archive(predictor), cloud_reach=cloud_reach(predictor),
    )  # fmt: skip


def _lineage(
    block: str, sources: tuple[Any, Any], predictor: Predictor, window: Window, days: Sequence[int], options: Options
) -> dict[str, Any]:
    """What the record of a block would say of its inputs, were it made now; nothing is predicted."""
    lineage = Lineage(FILL_DAYS)
    for interval in _intervals(*sources, predictor, window, days, options):
        lineage.add(interval)
    return {"block": block, **lineage.notes(options.fitted)}


def _grid(dataset: xr.Dataset) -> GeoBox:
    grid = dataset.odc.geobox
    if not isinstance(grid, GeoBox):
        raise InputError("the Dataset has no georeference; open it with open_cube, or assign spatial_ref, y and x")
    return grid


def _write_block(
    path: store.Where, layout: store.Layout, block: store.Block, permit: store.Permit | None,
    sources: tuple[Any, Any], predictor: Predictor, window: Window, days: Sequence[int], options: Options,
) -> dict[str, Any]:  # fmt: skip
    """Fuse and write one block; counted are the pixels of the area. Outside of it nothing is read or computed."""
    inside = store.inside(path, block.window)
    if inside is not None and not inside.any():
        nothing = store.fill(layout, block)
        return store.write_block(path, layout, block, nothing, permit, outside=True, pixels=0, valid=0)
    lineage = Lineage(FILL_DAYS)
    arrays = fuse_block(*sources, predictor, window, days, options, lineage)
    valid = (arrays["qa"] & np.uint16(Quality.NODATA)) == 0
    inside = np.ones(block.window.shape, bool) if inside is None else inside
    open_ = (arrays["qa"] & np.uint16(Quality.EXTRAPOLATED)) != 0
    open_ &= (arrays["days_after"] == NO_AGE) & inside
    return store.write_block(
        path, layout, block, arrays, permit, pixels=int(inside.sum()) * len(valid), valid=int((valid & inside).sum()),
        open=[int(day.sum()) for day in open_], **lineage.notes(options.fitted),
    )  # fmt: skip


def _fitted(predictor: Predictor, landsat: DatasetSeries) -> Predictor:
    return fitted(predictor, spectra(landsat)) if is_fitted(predictor) else predictor


def provisional(
    records: Iterable[Mapping[str, Any]], layout: store.Layout, bracket_days: int, until: date
) -> list[date]:
    """Days with pixels that were predicted from before alone, and that a later acquisition may still reach.

    Parameters
    ----------
    records
        Of the blocks of the cube.
    layout
        Its layout.
    bracket_days
        How far an observation may be away.
    until
        The last day of which there is imagery: what may still come is later.
    """
    counts = dict.fromkeys(layout.days, 0)
    blocks = {block.name: block for block in layout.blocks()}
    for record in records:
        block = blocks[record["block"]]
        for day, count in zip(layout.days[block.first : block.last], record.get("open", ()), strict=False):
            counts[day] += count
    return [day for day, count in counts.items() if count and (until - day).days < bracket_days]


@dataclass(frozen=True)
class Job:
    """A fusion that is ready to run: what to read, how, and the layout of the result.

    Attributes
    ----------
    landsat, modis
        Fine and coarse series on nested grids.
    predictor
        The method.
    layout
        Grid, days, variables, tile and run of the result.
    options
        How blocks are fused.
    """

    landsat: DatasetSeries
    modis: DatasetSeries
    predictor: Predictor
    layout: store.Layout
    options: Options

    def _repr_html_(self) -> str:
        layout, halo = self.layout, self.predictor.halo
        count = sum(1 for _ in layout.blocks())
        return as_table(
            f"Fusion by {type(self.predictor).__name__}",
            {
                "grid": describe(layout.grid),
                "days": describe_days(layout.days),
                "variables": ", ".join(layout.variables),
                "blocks": f"{count} of {layout.tile} x {layout.tile} pixels and {layout.run} days",
                "halo": f"{halo.fine} pixels, {halo.coarse} cells, {halo.days} days",
                "result": f"{layout.size() / 1e6:,.1f} MB before compression",
                "memory of a worker": f"about {self.memory() / 2**30:.1f} GiB",
            },
        )

    @cached_property
    def ready(self) -> Job:
        """With the global part of the method fitted to a sample of the whole area, if it has one: that reads pixels."""
        if self.options.fitted or not is_fitted(self.predictor):
            return self
        sample = spectra(self.landsat)
        digest = hashlib.sha256(sample.tobytes()).hexdigest()
        options = replace(self.options, fitted=digest)
        return replace(self, predictor=fitted(self.predictor, sample), options=options)

    def block(self, block: store.Block, predictor: Any = None) -> Delayed:
        """The arrays of one block as a task, which gets just the part of the series that it needs."""
        days = self._days(block)
        work = partial(fuse_block, window=block.window, days=days, options=self.options)
        method = self.predictor if predictor is None else predictor
        task: Delayed = delayed(work, pure=False)(*self._sources(block.window, days), method)
        return task

    def _days(self, block: store.Block) -> list[int]:
        return [to_number(day) for day in self.layout.days[block.first : block.last]]

    def _task(self, function: Any, block: store.Block) -> Delayed:
        """``function(sources, predictor=..., window=..., days=..., options=...)``, to be called on a worker."""
        days = self._days(block)
        work = partial(function, predictor=self.predictor, window=block.window, days=days, options=self.options)
        # Dask looks for tasks within arguments, each day of a layout included, but not within a function.
        task: Delayed = delayed(work, pure=False)(self._sources(block.window, days))
        return task

    def _sources(self, window: Window, days: Sequence[int]) -> tuple[Any, Any]:
        halo, ratio = self.predictor.halo, self.layout.ratio
        reach = self.options.bracket_days
        cells = window.cells(ratio).pad(reach_cells(halo, ratio))
        first, last = days[0] - reach, days[-1] + reach
        if wants_archive(self.predictor):
            first, last = min([first, *self.landsat.days]), max([last, *self.landsat.days])
        fine = self.landsat.crop(cells.pixels(ratio), first, last)
        more = FILL_DAYS + halo.days
        coarse = self.modis.crop(cells, first - more, last + more)
        return fine, coarse

    def write_tasks(
        self, path: store.Where, pending: Iterable[store.Block], permit: store.Permit | None = None
    ) -> Iterator[Delayed]:
        """One task for each block: fuse, write whole shards, return the record. Without blocks nothing is read.

        ``permit`` as in :func:`stfgan_xr.store.write_block`.
        """
        for block in pending:
            yield self.ready._task(partial(_write_block, path, self.layout, block, permit), block)

    def lineage_tasks(self, blocks: Iterable[store.Block]) -> Iterator[Delayed]:
        """One task for each block: what its record would say of its inputs. Without blocks nothing is read."""
        for block in blocks:
            yield self.ready._task(partial(_lineage, block.name), block)

    def reads(self, block: store.Block) -> dict[str, Window]:
        """The pixels and the cells that a block sees, each on its own grid."""
        ratio = self.layout.ratio
        cells = block.window.cells(ratio).pad(reach_cells(self.predictor.halo, ratio))
        return {"landsat": cells.pixels(ratio), "modis": cells}

    def memory(self) -> float:
        """Bytes a worker needs for one block, roughly: its arrays, its inputs with halo, and the network's maps."""
        layout, halo, bands = self.layout, self.predictor.halo, len(self.predictor.bands)
        height, width = (min(side, layout.tile) for side in layout.shape)
        days = min(layout.run, len(layout.days))
        # Arrays of the block, once as arrays and once while a shard is encoded.
        sizes = (np.dtype(v.dtype).itemsize for v in layout.variables.values() if v.dims == store.FINE)
        block = height * width * days * sum(sizes) * 1.5
        sides = (height + 2 * halo.fine, width + 2 * halo.fine)
        near = sides[0] * sides[1]
        margin = 2 * reach_cells(halo, layout.ratio) * layout.ratio
        wide = (height + margin) * (width + margin)
        acquisitions = min(len(self.landsat.days), days + 2 * self.options.bracket_days)
        fine = near * 4 * bands * 8 + wide * (acquisitions + 12)
        coarse_days = days + 2 * (self.options.bracket_days + FILL_DAYS)
        coarse = wide / layout.ratio**2 * coarse_days * bands * 4 * 6
        if wants_archive(self.predictor):  # as it is read, and with its gaps filled
            fine += near * 4 * bands * 2 * len(self.landsat.days)
        return block + fine + coarse + memory_of(self.predictor, *sides, days) + BASE_MEMORY

    def lazy(self) -> xr.Dataset:
        """The result as a Dataset of dask arrays, one chunk a block, decoded to reflectance."""
        # Fitted once for all blocks, and not before values are asked for.
        method = delayed(_fitted, pure=False)(self.predictor, self.landsat) if is_fitted(self.predictor) else None
        blocks = {block: self.block(block, method) for block in self.layout.blocks()}
        variables = {
            name: (variable.dims, self._assemble(name, variable, blocks), dict(variable.attributes))
            for name, variable in self.layout.variables.items()
        }
        return _decoded(variables, self.layout)

    def _assemble(self, name: str, variable: store.Variable, blocks: Mapping[store.Block, Any]) -> Any:
        scale = self.layout.scale(variable)
        nested: dict[int, dict[int, dict[int, da.Array]]] = {}
        for block, task in blocks.items():
            shape = (block.last - block.first, *(side // scale for side in block.window.shape))
            part = da.from_delayed(task[name], shape, variable.dtype)
            nested.setdefault(block.first, {}).setdefault(block.window.top, {})[block.window.left] = part
        return da.block([[list(row.values()) for row in times.values()] for times in nested.values()])


def _decoded(variables: Mapping[str, Any], layout: store.Layout) -> xr.Dataset:
    coordinates = dict(xr_coords(layout.grid)) | {"time": to_datetime64(layout.days)}
    coarse = xr_coords(coarse_grid(layout.grid, layout.ratio))
    coordinates |= {"yc": coarse["y"].values, "xc": coarse["x"].values}
    decoded = {}
    for name, (dims, values, attributes) in variables.items():
        scaled = attributes.get("_FillValue") == FILL
        kept = {k: v for k, v in attributes.items() if k not in ("_FillValue", "scale_factor", "add_offset")}
        lazy = values.map_blocks(to_reflectance, dtype=np.float32) if scaled else values
        decoded[name] = (dims, lazy, kept | {"grid_mapping": "spatial_ref"})
    return xr.Dataset(decoded, coordinates)


def plan(
    landsat: xr.Dataset,
    modis: xr.Dataset,
    predictor: Predictor,
    days: Sequence[date] | None = None,
    *,
    bracket_days: int = 64,
    keep_observed: bool = True,
    uncertainty: bool = False,
    tile: int = 1024,
    run: int = 32,
) -> Job:
    """Check the inputs against each other and lay out the blocks; reads no pixels. Arguments as in :func:`fuse`."""
    if uncertainty:
        predictor = calibrated(predictor)
    fine_grid, coarse = _grid(landsat), _grid(modis)
    ratio = ratio_of(fine_grid, coarse)
    for name, dataset in (("landsat", landsat), ("modis", modis)):
        absent = [band for band in predictor.bands if band not in dataset]
        if absent:
            raise InputError(
                f"{name} has no band {', '.join(absent)}, which the method needs; it has {list(dataset.data_vars)}"
            )
    if days is None:
        days = [from_number(number) for number in to_numbers(modis["time"].values)]
    if len(days) == 0:  # an array has no truth value
        raise InputError("no days to fuse")
    side = store.tile_for((int(fine_grid.shape[0]), int(fine_grid.shape[1])), tile_step(ratio), tile)
    variables = _variables(predictor)
    layout = store.Layout(fine_grid, tuple(days), variables, side, min(run, len(days)), ratio)
    return Job(
        series(landsat, predictor.bands), series(modis, predictor.bands), predictor, layout,
        Options(bracket_days, keep_observed),
    )  # fmt: skip


def fuse(
    landsat: xr.Dataset,
    modis: xr.Dataset,
    predictor: Predictor,
    days: Sequence[date] | None = None,
    *,
    bracket_days: int = 64,
    keep_observed: bool = True,
    uncertainty: bool = False,
    residuals: bool = True,
    tile: int = 1024,
    run: int = 32,
) -> xr.Dataset:
    """A Landsat-like image of every day, lazily: nothing is computed until values are asked for.

    Parameters
    ----------
    landsat
        Fine cube ``(time, y, x)`` of acquisition days: from :func:`stfgan_xr.open_cube`, or any Dataset of
        reflectance or counts with the bands, ``qa`` and a georeference.
    modis
        Coarse cube of every day on a nested grid (cells of whole fine pixels over the same ground).
    predictor
        The method, from :func:`stfgan_xr.predictors.methods.make`.
    days
        Target days; by default those of ``modis``.
    bracket_days
        Landsat observations further from a day than this are not used.
    keep_observed
        A clear observation of the day itself is the product there; off, every pixel is predicted.
    uncertainty
        With the standard deviation of every pixel.
    residuals
        With ``residual_<band>``. They lie on the coarse grid, so cutting ``x`` and ``y`` does not cut them: without
        them a window costs just the blocks that it touches.
    tile, run
        Pixels along a block and days of a block. A block is computed whole: small ones answer quickly.

    Returns
    -------
    xarray.Dataset
        float32 reflectance of the bands with NaN where there is nothing to predict from, ``qa``
        (:class:`Quality`), ``days_before``, ``days_after`` (days to the clear observations used, 255: none) and
        ``residual_<band>`` ``(time, yc, xc)``, the cell mean of the result minus the coarse image; ``aoi`` if
        ``landsat`` has it. With ``uncertainty`` also ``std_<band>``, whose attributes ``interval_68`` and
        ``interval_95`` are the half widths of the intervals that hold 68 % and 95 % of the errors, in standard
        deviations; an observation that is the product has one deviation everywhere. Of a predictor from
        :func:`stfgan_xr.predictors.with_spread` also ``spread_<band>``, the absolute difference of what is predicted
        from before alone and from after alone; NaN where there are not both, and of observations that are the product.

    Raises
    ------
    InputError
        If bands are absent, the grids are not nested, or the method's uncertainty is asked for and not known.
    """
    fused = plan(
        landsat, modis, predictor, days,
        bracket_days=bracket_days, keep_observed=keep_observed, uncertainty=uncertainty, tile=tile, run=run,
    ).lazy()  # fmt: skip
    if not residuals:
        fused = fused.drop_dims(("yc", "xc"))
    return fused.assign_coords(aoi=landsat["aoi"]) if "aoi" in landsat.coords else fused
