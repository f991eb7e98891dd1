"""A landscape with known truth: six bands of a seeded region around Shenzhen on any day.

Parcels with their own phenology, a city, forest and water; soil moisture and water colour that drift; a flood, clearing
and building with their dates. What satellites would see of it is in :mod:`stfgan_xr.simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry, point

from stfgan_xr.days import to_number
from stfgan_xr.grid import LANDSAT_PHASE, RATIO, RESOLUTION, Window
from stfgan_xr.sensors import BANDS

MARGIN = 64
"""Fine pixels of truth beyond the grid, for coarse pixels and scenes that reach over its edge."""
CENTRE = (114.06, 22.55)
CRS = "EPSG:32650"

Float = npt.NDArray[np.float32]
Truth = Callable[[date, Sequence[str], Window], npt.NDArray[np.floating[Any]]]
"""Gives the true reflectance ``(band, y, x)`` of a day, bands and window, such as :meth:`World.reflectance`."""
Bool = npt.NDArray[np.bool_]

SEA, RIVER, FOREST, CITY, CROP, BARE = range(6)

# Reflectance of pure covers in the order of BANDS, after the USGS spectral library, rounded.
_SPECTRA = {
    "soil": (0.09, 0.13, 0.18, 0.25, 0.33, 0.28),
    "green": (0.025, 0.06, 0.035, 0.46, 0.20, 0.09),
    "forest": (0.02, 0.04, 0.025, 0.33, 0.14, 0.06),
    "water": (0.06, 0.07, 0.045, 0.02, 0.012, 0.008),
    "roof": (0.19, 0.22, 0.25, 0.28, 0.30, 0.27),
    "road": (0.09, 0.10, 0.11, 0.13, 0.15, 0.14),
}
SPECTRA = {name: np.array(values, np.float32) for name, values in _SPECTRA.items()}


def _smooth(rng: np.random.Generator, shape: tuple[int, int], spacing: float) -> Float:
    """Smooth noise with features of about ``spacing`` pixels, mean 0 and deviation about 1."""
    small = [math.ceil(side / spacing) + 4 for side in shape]
    lattice = rng.standard_normal(small).astype(np.float32)
    rows, columns = (np.arange(side, dtype=np.float32) / spacing + 1 for side in shape)
    along = _cubic_axis(lattice, rows, 0)
    return _cubic_axis(along, columns, 1)


def _cubic_axis(values: Float, at: Float, axis: int) -> Float:
    """Cubic B-spline along one axis: smooth, and cheap where the result is large."""
    base = np.floor(at).astype(int)
    t = (at - base).astype(np.float32)
    weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    shape = (-1, 1) if axis == 0 else (1, -1)
    parts = [np.take(values, base - 1 + k, axis=axis) * w.reshape(shape) for k, w in enumerate(weights)]
    return np.asarray(sum(parts), np.float32) * np.float32(1.4)


def _fractal(rng: np.random.Generator, shape: tuple[int, int], spacing: float, octaves: int = 4) -> Float:
    parts = [_smooth(rng, shape, max(spacing / 2**k, 3)) / 2**k for k in range(octaves)]
    return np.asarray(sum(parts), np.float32)


def _parcels(rng: np.random.Generator, shape: tuple[int, int], spacing: float) -> npt.NDArray[np.int32]:
    """Number of the parcel of each pixel: cells of a bent, jittered lattice (a Voronoi diagram without its cost)."""
    rows, columns = (axis.astype(np.float32) for axis in np.indices(shape, dtype=np.float32))
    angle = 0.6 * _smooth(rng, shape, 220)
    bend = _smooth(rng, shape, 90) * spacing * 0.5
    across = (columns * np.cos(angle * 0.2) + rows * 0.25 + bend) / spacing
    down = (rows * np.cos(angle * 0.2) - columns * 0.25 - bend) / (spacing * 1.7)
    count = int(max(shape) * 2 / spacing) + 40
    jitter = rng.uniform(0.15, 0.85, (2, count, count)).astype(np.float32)
    base_down, base_across = np.floor(down).astype(np.int32), np.floor(across).astype(np.int32)
    best, number = np.full(shape, np.inf, np.float32), np.zeros(shape, np.int32)
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            r, c = (base_down + y) % count, (base_across + x) % count
            distance = (base_down + y + jitter[0, r, c] - down) ** 2 + (base_across + x + jitter[1, r, c] - across) ** 2
            nearer = distance < best
            best = np.where(nearer, distance, best)
            number = np.where(nearer, r * count + c, number)
    return np.unique(number, return_inverse=True)[1].reshape(shape).astype(np.int32)


@dataclass(frozen=True)
class Layers:
    """What does not change from day to day; each ``(rows, columns)`` of grid plus margin, or one value a parcel."""

    cover: npt.NDArray[np.uint8]
    parcel: npt.NDArray[np.int32]
    texture: Float
    bright: Float
    height: Float
    flood_plain: Bool
    cleared: npt.NDArray[np.int32]
    built: npt.NDArray[np.int32]
    crops: Float
    flood_day: int
    flood_heights: tuple[float, float]


NEVER = np.int32(2**30)


@dataclass(frozen=True)
class World:
    """A simulated region and range of days; the same parameters give the same world everywhere.

    Attributes
    ----------
    seed
        Of the landscape and of everything that is random.
    size
        Fine pixels along a side, rounded up to whole coarse cells.
    start, days
        First day and number of days.
    cloudiness
        Share of Landsat passes that are more than a little cloudy.
    noise
        Standard deviation of the sensors' noise in reflectance (fine; the coarse is half as noisy again).

    >>> World(size=64).reflectance(date(2020, 3, 1)).shape
    (6, 64, 64)
    """

    seed: int = 0
    size: int = 512
    start: date = date(2020, 2, 1)
    days: int = 90
    cloudiness: float = 0.6
    noise: float = 0.002

    @property
    def grid(self) -> GeoBox:
        """The fine grid: that of :func:`stfgan_xr.grid.nested_grid` for :attr:`area`."""
        side = math.ceil(self.size / RATIO) * RATIO
        cell = RESOLUTION * RATIO
        centre = point(*CENTRE, "EPSG:4326").to_crs(CRS).coords[0]
        left, top = (round((value - sign * side * RESOLUTION / 2) / cell) * cell + LANDSAT_PHASE
                     for value, sign in zip(centre, (1, -1), strict=True))  # fmt: skip
        return GeoBox((side, side), Affine(RESOLUTION, 0, left, 0, -RESOLUTION, top), CRS)

    @property
    def area(self) -> Geometry:
        """The area of interest in EPSG:4326, a little inside the grid."""
        inner = self.grid.boundingbox.buffered(-RESOLUTION * 4, -RESOLUTION * 4)
        return inner.polygon.to_crs("EPSG:4326", resolution=1000.0)

    @property
    def last(self) -> date:
        """The last day."""
        return self.start + timedelta(days=self.days - 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return int(self.grid.shape[0]), int(self.grid.shape[1])

    def rng(self, *key: int) -> np.random.Generator:
        """Random numbers of one purpose."""
        return np.random.default_rng([self.seed, *key])

    def reflectance(self, day: date, bands: Sequence[str] = BANDS, window: Window | None = None) -> Float:
        """The truth of a day.

        Parameters
        ----------
        day
            Any day; abrupt changes lie within the world's own.
        bands
            Names of bands.
        window
            Part of the grid; it may reach :data:`MARGIN` pixels beyond. By default the grid.

        Returns
        -------
        numpy.ndarray
            float32 reflectance ``(band, y, x)``.
        """
        view = self.on(day, window or Window(0, self.shape[0], 0, self.shape[1]))
        return np.stack([view.band(band) for band in bands])

    def on(self, day: date, window: Window) -> Day:
        """A day over a window, to take bands from one by one."""
        cut = window.top + MARGIN, window.bottom + MARGIN, window.left + MARGIN, window.right + MARGIN
        if min(cut) < 0 or cut[1] > self.shape[0] + 2 * MARGIN or cut[3] > self.shape[1] + 2 * MARGIN:
            raise ValueError(f"{window} reaches more than {MARGIN} pixels beyond the world")
        return Day(self, day, (slice(cut[0], cut[1]), slice(cut[2], cut[3])))

    def abrupt(self) -> Bool:
        """Where the land changes abruptly within the world's days: ``(y, x)``."""
        layers, inner = static_layers(self), (slice(MARGIN, -MARGIN),) * 2
        changed: Bool = (layers.cleared < NEVER) | (layers.built < NEVER) | layers.flood_plain
        return changed[inner]


def _events(
    world: World, cover: npt.NDArray[np.uint8], parcel: npt.NDArray[np.int32], city: Float
) -> list[npt.NDArray[np.int32]]:
    """Day of clearing and of building of each pixel, or NEVER: whole parcels, built on near the city."""
    rng, count = world.rng(7), int(parcel.max()) + 1
    land = np.bincount(parcel.ravel(), np.isin(cover, (CROP, FOREST)).ravel(), count) / np.bincount(
        parcel.ravel(), minlength=count
    )
    near = np.bincount(parcel.ravel(), city.ravel(), count) / np.bincount(parcel.ravel(), minlength=count)
    first, last = to_number(world.start) + 8, to_number(world.last) - 8
    days = []
    for share, liking in ((0.022, rng.random(count)), (0.012, near + 0.3 * rng.random(count))):
        liking = np.where(land > 0.9, liking, -np.inf)
        chosen = np.argsort(-liking)[: max(1, round(share * count))]
        day = np.full(count, NEVER, np.int32)
        day[chosen] = rng.integers(min(first, last), max(first, last) + 1, chosen.size)
        days.append(np.where(np.isin(cover, (CROP, FOREST)), day[parcel], NEVER).astype(np.int32))
    return days


def _cover(rng: np.random.Generator, shape: tuple[int, int], height: Float) -> tuple[npt.NDArray[np.uint8], Float]:
    city = _fractal(rng, shape, 160) - 0.35 * height
    river = np.abs(_fractal(rng, shape, 260, 3) + 0.15 * height)
    cover = np.full(shape, CROP, np.uint8)
    cover[_smooth(rng, shape, 40) > 2.0] = BARE
    cover[height > np.quantile(height, 0.72)] = FOREST
    cover[(city > np.quantile(city, 0.80)) & (height < np.quantile(height, 0.85))] = CITY
    cover[river < 0.022] = RIVER
    cover[height < np.quantile(height, 0.10)] = SEA
    return cover, city


@lru_cache(maxsize=2)
def static_layers(world: World) -> Layers:
    """The static layers of a world, made once per process."""
    shape = (world.shape[0] + 2 * MARGIN, world.shape[1] + 2 * MARGIN)
    rng = world.rng(1)
    height = _fractal(rng, shape, 240)
    cover, city = _cover(rng, shape, height)
    parcel = _parcels(world.rng(2), shape, float(world.rng(3).uniform(9, 16)))
    cleared, built = _events(world, cover, parcel, city)
    count = int(parcel.max()) + 1
    heights = float(np.quantile(height, 0.08)), float(np.quantile(height, 0.30))
    low = (cover == CROP) & (height < heights[1]) & (_smooth(world.rng(4), shape, 120) > 0.6)
    noise = world.rng(5)
    texture = 1 + 0.07 * noise.standard_normal(shape, np.float32) + 0.05 * _smooth(noise, shape, 5)
    crops = world.rng(6).random((6, count), np.float32)
    bright = _city_brightness(world.rng(8), shape)
    flood_day = to_number(world.start) + int(
        world.rng(9).integers(world.days // 4, max(world.days // 2, world.days // 4 + 1))
    )
    return Layers(
        cover, parcel, texture.astype(np.float32), bright, height, low, cleared, built, crops, flood_day, heights
    )


def _city_brightness(rng: np.random.Generator, shape: tuple[int, int]) -> Float:
    """0 on streets, else the brightness of the roof: blocks of buildings on a street grid."""
    blocks = rng.uniform(0.35, 1.5, (shape[0] // 3 + 2, shape[1] // 4 + 2)).astype(np.float32)
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    roofs = blocks[rows // 3][:, columns // 4]
    street = (rows % 9 == 0)[:, None] | (columns % 12 == 0)[None, :]
    return np.where(street, np.float32(0), roofs)


@dataclass(frozen=True)
class Day:
    """One day of a world over a window of grid plus margin; what its bands share is computed once."""

    world: World
    day: date
    at: tuple[slice, slice]

    @cached_property
    def shared(self) -> dict[str, Any]:
        """Covers and their state on the day, ``(y, x)`` each."""
        layers, number = static_layers(self.world), to_number(self.day)
        cover, parcel = layers.cover[self.at], layers.parcel[self.at]
        moisture = self._drift(0.6, 11) * 0.12
        cleared, built = number >= layers.cleared[self.at], number >= layers.built[self.at]
        season = 0.9 + 0.1 * math.sin(2 * math.pi * (number % 365 - 110) / 365)
        return {
            "green": self._vegetation(layers)[parcel],
            "soil": (0.85 + 0.3 * layers.crops[5])[parcel] * (1 - moisture),
            "forest": season + 0.05 * self._drift(0.5, 12),
            "murky": 1 + 0.25 * self._drift(0.9, 13),
            "is_forest": cover == FOREST,
            "is_bare": (cover == BARE) | cleared,
            "is_city": (cover == CITY) | built,
            "is_wet": np.isin(cover, (SEA, RIVER)) | self._flooded(layers),
        }

    def band(self, name: str) -> Float:
        """float32 reflectance ``(y, x)`` of one band."""
        layers, on = static_layers(self.world), self.shared
        texture, bright = layers.texture[self.at], layers.bright[self.at]
        pure = {key: values[BANDS.index(name)] for key, values in SPECTRA.items()}
        bare = pure["soil"] * on["soil"]
        value = on["green"] * pure["green"] + (1 - on["green"]) * bare
        value = np.where(on["is_forest"], on["forest"] * pure["forest"] + (1 - on["forest"]) * bare, value)
        value = np.where(on["is_bare"], bare * np.float32(1.1), value)
        roofs = np.where(bright > 0, pure["roof"] * bright, pure["road"])
        value = np.where(on["is_city"], roofs, value) * texture
        value = np.where(on["is_wet"], pure["water"] * on["murky"] * (0.97 + 0.03 * texture), value)
        return np.asarray(np.clip(value, 0.002, 0.9), np.float32)

    def _vegetation(self, layers: Layers) -> Float:
        """Green cover of each parcel: double logistic, one or two crops a year, harvest within days."""
        kind, shift, amplitude, length, second, _ = layers.crops
        day = self.day.timetuple().tm_yday
        total = np.full(kind.shape, 0.08, np.float32) + 0.1 * (kind < 0.15)
        for offset, grown in ((30.0, np.ones_like(kind)), (190.0, second > 0.4)):
            sown = offset + 70 * shift
            harvest = sown + 75 + 40 * length
            for year in (-365, 0, 365):
                rise = 1 / (1 + np.exp(-np.clip((day - year - sown) / 7, -30, 30)))
                fall = 1 / (1 + np.exp(np.clip((day - year - harvest) / 1.5, -30, 30)))
                total += (0.35 + 0.5 * amplitude) * grown * rise * fall
        return np.asarray(np.clip(total, 0, 0.95), np.float32)

    def _drift(self, speed: float, key: int) -> Float:
        """A field that is smooth in space and time, about -1 to 1, the same for any window."""
        rng, number = self.world.rng(key), to_number(self.day)
        rows, columns = (np.arange(part.start, part.stop, dtype=np.float32) for part in self.at)
        total = np.zeros((rows.size, columns.size), np.float32)
        for _ in range(4):
            down, across = rows * np.float32(rng.normal(0, 1 / 90)), columns * np.float32(rng.normal(0, 1 / 90))
            down = down + np.float32(rng.uniform(0, 6.3) + rng.normal(0, speed / 4) * number)
            # sin(a + b) as outer products: the whole field for the price of its edges.
            total += np.outer(np.sin(down), np.cos(across)) + np.outer(np.cos(down), np.sin(across))
        return np.asarray(total / 4, np.float32)

    def _flooded(self, layers: Layers) -> Bool:
        """The flood rises in two days, stands for a week and recedes from the higher ground over ten days."""
        level = float(np.interp(to_number(self.day) - layers.flood_day, [-1, 1, 8, 18], [0.0, 1.0, 1.0, 0.0]))
        bottom, top = layers.flood_heights
        below = layers.height[self.at] < bottom + level * (top - bottom)
        return np.asarray(layers.flood_plain[self.at] & below & (level > 0), bool)
