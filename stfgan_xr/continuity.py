"""One daily coarse series across the end of MODIS: VIIRS goes on, brought to the scale of what it follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from stfgan_xr.catalog import search
from stfgan_xr.days import to_datetime64
from stfgan_xr.harmonise import Fit, Linear, adjust_dataset, fit_datasets
from stfgan_xr.load import load
from stfgan_xr.scenes import Scene, Side

OVERLAP = timedelta(days=48)
"""The last days of the first series that the second is compared on."""
MOST_DAYS, MOST_CELLS = 12, 256
"""Days compared, and cells along a side: more would cost reading and add nothing."""


def is_needed(side: Side, scenes: Sequence[Scene], last: date) -> bool:
    """Whether a day lies beyond the announced end of a side, and beyond its scenes as well."""
    return side.until is not None and last > side.until and all(scene.day < last for scene in scenes)


def search_on(
    found: Sequence[Scene],
    sides: tuple[Side, Side],
    area: Geometry,
    first: date,
    last: date,
    longitude: float,
    bands: Sequence[str],
) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Scenes of a side that ends and of the one that goes on.

    Parameters
    ----------
    found
        What the first side has over the area from ``first`` to ``last``.
    sides, area, first, last, longitude, bands
        As for :func:`stfgan_xr.catalog.search`.

    Returns
    -------
    tuple
        Scenes of both, also of days before ``first`` where the two are to be compared.

    Raises
    ------
    SourceError
        If a catalog does not answer, or an item is not what it should be.
    """
    if not found:
        return (), search(sides[1], area, first, last, longitude, bands)
    start = max(scene.day for scene in found) - OVERLAP
    earlier = search(sides[0], area, start, first - timedelta(days=1), longitude, bands) if start < first else ()
    return (*earlier, *found), search(sides[1], area, min(start, first), last, longitude, bands)


def compared_days(first: Sequence[Scene], second: Sequence[Scene]) -> list[date]:
    """Days that both series have, of the last ones of the first; spread evenly."""
    if not first or not second:
        return []
    last = max(scene.day for scene in first)
    common = sorted({scene.day for scene in first} & {scene.day for scene in second})
    near = [day for day in common if day > last - OVERLAP]
    chosen = np.unique(np.linspace(0, len(near) - 1, min(len(near), MOST_DAYS)).round().astype(int))
    return [near[n] for n in chosen]


def compare(
    first: Sequence[Scene], second: Sequence[Scene], grid: GeoBox, *, sides: tuple[Side, Side], bands: Sequence[str]
) -> dict[str, Fit]:
    """What brings the second series to the first, by band, from days that both have; reads them.

    Parameters
    ----------
    first, second
        Scenes of the two series.
    grid
        The coarse grid they are for.
    sides
        Where they were found.
    bands
        Names of the bands.

    Returns
    -------
    dict
        A fit of each band; of no cells, and no change, where no day has both.

    Raises
    ------
    SourceError
        If an image cannot be read, or the two differ beyond what sensors do.
    """
    days = compared_days(first, second)
    small = grid.zoom_out(-(-max(grid.shape) // MOST_CELLS))
    if not days:
        return {band: Fit(Linear(), 0, 0.0, 0.0) for band in bands}
    reference, other = (
        load([s for s in scenes if s.day in days], small, side=side, bands=bands, days=days).compute()
        for scenes, side in zip((first, second), sides, strict=True)
    )
    return fit_datasets(reference, other)


def join(first: xr.Dataset, second: xr.Dataset, last: date, fits: Mapping[str, Fit]) -> xr.Dataset:
    """The first series up to a day and the second, adjusted, from the day after; both on the same days and grid."""
    adjusted = adjust_dataset(second, {band: found.linear for band, found in fits.items()})
    (moment,) = to_datetime64([last])
    before, after = first["time"].values <= moment, second["time"].values > moment
    parts = [first.isel(time=before), adjusted.isel(time=after)]
    return xr.concat(parts, "time", data_vars="minimal", coords="minimal", compat="override", join="exact")
