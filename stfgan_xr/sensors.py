"""Sensors as data: how the numbers of each product become reflectance and quality.

A cube holds one coding for all sensors: ``int16`` reflectance x 10000 (:data:`SCALE`, :data:`FILL`) and a ``uint16``
word of :class:`Observation` bits.

Sources: Landsat 8-9 Collection 2 Level 2 Science Product Guide (LSDS-1619), Landsat 4-7 (LSDS-1618), MCD43A4 v6.1 user
guide (BRDF/Albedo band mandatory quality).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
"""All bands, in the order used everywhere."""

SCALE = 1e-4
"""Reflectance of one count of a cube."""

FILL = -32768
"""The count of a cube that means: no value."""

Kind = Literal["fine", "coarse"]
Array = npt.NDArray[np.generic]


class Observation(IntFlag):
    """Bits of the ``qa`` variable of ``landsat.zarr`` and ``modis.zarr``, the same for every sensor."""

    FILL = 1
    CLOUD = 2
    CIRRUS = 4
    SHADOW = 8
    DILATED_CLOUD = 16
    SATURATED = 32
    SNOW = 64
    WATER = 128
    LOW_QUALITY = 256


NOT_CLEAR = (
    Observation.FILL
    | Observation.CLOUD
    | Observation.CIRRUS
    | Observation.SHADOW
    | Observation.DILATED_CLOUD
    | Observation.SATURATED
)
"""An observation with any of these bits is not used (SNOW and LOW_QUALITY stay, flagged)."""


@dataclass(frozen=True)
class Sensor:
    """One product family.

    Attributes
    ----------
    name
        Short name used in catalogs and messages.
    kind
        Which side of the fusion it serves.
    dtype
        Numpy type of the raw bands.
    scale, offset
        reflectance = raw * scale + offset.
    fill
        Raw value that means no data; given to the reader as ``src_nodata``.
    valid
        Least and greatest raw value that is a measurement; others become fill.
    resolution, phase
        Pixel size and offset of pixel edges in metres, of the product's own projection.
    platforms
        Platforms as STAC names them; empty where the collection tells enough.
    quality
        Roles of the quality layers; ``{band}`` stands for one layer a band.
    quality_dtype, quality_fill
        Type of the quality words, and the word that means no data.
    composite_day
        True where the day is stated by the product's start, not by the moment of the overpass.
    saturation_bits
        Bit of the saturation word for each band (empty where there is none).
    """

    name: str
    kind: Kind
    dtype: str
    scale: float
    offset: float
    fill: int
    valid: tuple[int, int]
    resolution: float
    phase: float
    platforms: tuple[str, ...]
    quality: tuple[str, ...]
    quality_dtype: str
    quality_fill: int
    composite_day: bool = False
    saturation_bits: tuple[tuple[str, int], ...] = ()

    def quality_roles(self, bands: Sequence[str]) -> tuple[str, ...]:
        """Roles of the quality layers for some bands.

        >>> MCD43A4.quality_roles(["red", "nir"])
        ('quality_red', 'quality_nir')
        """
        if self.quality == ("quality_{band}",):
            return tuple(f"quality_{band}" for band in bands)
        return self.quality


_OLI_SATURATION = tuple((band, bit) for band, bit in zip(BANDS, (1, 2, 3, 4, 5, 6), strict=True))
_TM_SATURATION = tuple((band, bit) for band, bit in zip(BANDS, (0, 1, 2, 3, 4, 6), strict=True))

LANDSAT_OLI = Sensor(
    "landsat-oli", "fine", "uint16", 2.75e-5, -0.2, 0, (1, 65535), 30.0, 15.0,
    ("landsat-8", "landsat-9"), ("qa_pixel", "qa_radsat"), "uint16", 1, saturation_bits=_OLI_SATURATION,
)  # fmt: skip
"""Landsat 8 and 9 OLI, Collection 2 Level 2 surface reflectance."""

LANDSAT_TM = Sensor(
    "landsat-tm", "fine", "uint16", 2.75e-5, -0.2, 0, (1, 65535), 30.0, 15.0,
    ("landsat-4", "landsat-5", "landsat-7"), ("qa_pixel", "qa_radsat"), "uint16", 1, saturation_bits=_TM_SATURATION,
)  # fmt: skip
"""Landsat 4, 5 (TM) and 7 (ETM+), Collection 2 Level 2 surface reflectance."""

MCD43A4 = Sensor(
    "mcd43a4", "coarse", "int16", 1e-4, 0.0, 32767, (0, 32766), 463.312716527778, 0.0,
    (), ("quality_{band}",), "uint8", 255, composite_day=True,
)  # fmt: skip
"""MODIS MCD43A4 v6.1: daily nadir BRDF-adjusted reflectance, 16-day window, dated by its middle (ninth) day."""

SENSORS: Mapping[str, Sensor] = {sensor.name: sensor for sensor in (LANDSAT_OLI, LANDSAT_TM, MCD43A4)}

# QA_PIXEL bits of Collection 2 (LSDS-1619 table 6-2): cirrus (2) is unused by Landsat 4-7 and stays 0 there.
_QA_PIXEL = (
    (0, Observation.FILL),
    (1, Observation.DILATED_CLOUD),
    (2, Observation.CIRRUS),
    (3, Observation.CLOUD),
    (4, Observation.SHADOW),
    (5, Observation.SNOW),
    (7, Observation.WATER),
)


@lru_cache
def _count_table(sensor: Sensor) -> npt.NDArray[np.int16]:
    # One entry for each of the 65,536 raw words, indexed by the word read as unsigned.
    raw = np.arange(65536, dtype=np.uint16).view(sensor.dtype).astype(np.int64)
    # Rounded on whole numbers of 1e-8 reflectance, so that no binary fraction decides a tie.
    scale, offset = round(sensor.scale * 1e8), round(sensor.offset * 1e8)
    counts = np.floor_divide(2 * (raw * scale + offset) + 10_000, 20_000)
    low, high = sensor.valid
    usable = (raw != sensor.fill) & (raw >= low) & (raw <= high) & (np.abs(counts) < 32768)
    return np.where(usable, counts, FILL).astype(np.int16)


def to_counts(raw: Array, sensor: Sensor) -> npt.NDArray[np.int16]:
    """Raw values as counts of a cube (reflectance x 10000, half up); fill and invalid values become :data:`FILL`.

    >>> to_counts(np.array([0, 7273, 43636], dtype="uint16"), LANDSAT_OLI).tolist()
    [-32768, 0, 10000]
    """
    if raw.dtype != np.dtype(sensor.dtype):
        raise TypeError(f"{sensor.name} holds {sensor.dtype}, not {raw.dtype}")
    return _count_table(sensor)[raw.view(np.uint16)]


def to_reflectance(counts: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Counts of a cube as float32 reflectance, fill as NaN (masked before scaling)."""
    return np.where(counts == FILL, np.float32(np.nan), counts.astype(np.float32) * np.float32(SCALE))


def from_reflectance(reflectance: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Reflectance as counts of a cube, NaN as fill; values are held within -3.2767 to 3.2767.

    >>> from_reflectance(np.array([0.1234, np.nan, 9.0], dtype="float32")).tolist()
    [1234, -32768, 32767]
    """
    # Held within range before the product, which could overflow.
    counts = np.rint(np.clip(reflectance, -32767 * SCALE, 32767 * SCALE) * np.float32(1 / SCALE))
    return np.where(np.isnan(counts), np.float32(FILL), counts).astype(np.int16)


def landsat_observation(
    qa_pixel: npt.NDArray[np.uint16], qa_radsat: npt.NDArray[np.uint16], sensor: Sensor, bands: tuple[str, ...]
) -> npt.NDArray[np.uint16]:
    """Observation bits from QA_PIXEL and QA_RADSAT words; saturation counts in the bands that are used only."""
    found = np.zeros(qa_pixel.shape, np.uint16)
    for bit, meaning in _QA_PIXEL:
        found |= ((qa_pixel >> np.uint16(bit)) & np.uint16(1)) * np.uint16(meaning)
    mask = np.uint16(sum(1 << bit for band, bit in sensor.saturation_bits if band in bands))
    found |= ((qa_radsat & mask) != 0) * np.uint16(Observation.SATURATED)
    return found


def mcd43a4_observation(quality: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Observation bits from the mandatory quality layers ``(band, y, x)``: 0 full, 1 magnitude inversion, else fill.

    A cell is FILL where no band has a value; LOW_QUALITY where any band has a magnitude inversion. Single bands
    without a value are fill in that band (:func:`mcd43a4_usable`).
    """
    fill = np.asarray((quality > 1).all(axis=0), bool)
    low = np.asarray((quality == 1).any(axis=0), bool) & ~fill
    found = np.where(fill, np.uint16(Observation.FILL), np.uint16(0))
    return np.where(low, np.uint16(Observation.LOW_QUALITY), found).astype(np.uint16)


def mcd43a4_usable(quality: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where a band of MCD43A4 holds a measurement."""
    return quality <= 1


def decode(
    raw: Array, quality: Array, sensor: Sensor, bands: tuple[str, ...]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16]]:
    """Counts ``(band, y, x)`` and observation bits ``(y, x)`` of one scene; where those say FILL, no band has a value.

    Parameters
    ----------
    raw
        Raw values ``(band, y, x)``.
    quality
        Quality words ``(role, y, x)``, in the order of :meth:`Sensor.quality_roles`.
    sensor, bands
        What they are.
    """
    counts = to_counts(raw, sensor)
    if sensor.kind == "coarse":
        words = quality.astype(np.uint8)
        return np.where(mcd43a4_usable(words), counts, np.int16(FILL)), mcd43a4_observation(words)
    words_16 = quality.astype(np.uint16)
    observation = landsat_observation(words_16[0], words_16[1], sensor, bands)
    # A pixel that lacks a band is no observation, whatever its word says; one that its word calls fill has no values.
    hole = np.asarray((counts == FILL).any(axis=0), bool)
    observation |= np.where(hole, np.uint16(Observation.FILL), np.uint16(0))
    fill = (observation & np.uint16(Observation.FILL)) != 0
    return np.where(fill, np.int16(FILL), counts), observation


def is_clear(observation: npt.NDArray[np.uint16]) -> npt.NDArray[np.bool_]:
    """Where an observation can be used."""
    clear: npt.NDArray[np.bool_] = (observation & np.uint16(NOT_CLEAR)) == 0
    return clear
