"""Sensors as data: how the numbers of each product become reflectance and quality.

A cube holds one coding for all sensors: ``int16`` reflectance x 10000 (:data:`SCALE`, :data:`FILL`) and a ``uint16``
word of :class:`Observation` bits.

Sources: Landsat 8-9 Collection 2 Level 2 Science Product Guide (LSDS-1619), Landsat 4-7 (LSDS-1618), HLS v2.0 User
Guide (Fmask), Sentinel-2 Products Specification Document (scene classification; BOA_ADD_OFFSET since processing
baseline 04.00), MCD43A4 v6.1 and VNP43 v2 user guides (BRDF/Albedo band mandatory quality), MOD09 v6.1 User Guide
(state QA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    RESAMPLED = 512


NOT_CLEAR = (
    Observation.FILL
    | Observation.CLOUD
    | Observation.CIRRUS
    | Observation.SHADOW
    | Observation.DILATED_CLOUD
    | Observation.SATURATED
)
"""An observation with any of these bits is not used; SNOW and LOW_QUALITY stay, flagged, and RESAMPLED only says that a
fine image was interpolated from another grid, which blurs it."""


@dataclass(frozen=True)
class Flag:
    """What some values of a bit field of a quality layer mean.

    Attributes
    ----------
    meaning
        The bit of :class:`Observation`.
    first, width
        Lowest bit and number of bits of the field.
    values
        Values of the field that have the meaning.
    """

    meaning: Observation
    first: int
    width: int = 1
    values: tuple[int, ...] = (1,)


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
        Platforms as STAC names them, ``""`` where none may be stated; empty where the collection tells enough.
    quality
        Roles of the quality layers; ``{band}`` stands for one layer a band, of mandatory quality as MCD43A4 has it.
    quality_dtype, quality_fill
        Type of the quality words, and the word that means no data.
    flags
        What the words of the first quality layer mean.
    composite_day
        True where the day is stated by the id, not by the moment of the overpass.
    saturation_bits
        Bit of the second quality layer for each band (empty where there is none).
    bands
        Bands it has.
    keeps_offset
        For Sentinel-2: whether the numbers still hold the offset of processing baselines since 04.00.
    channels
        Names of the bands on the instrument, for products that come as HDF-EOS5 too; empty for others.
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
    flags: tuple[Flag, ...] = ()
    composite_day: bool = False
    saturation_bits: tuple[tuple[str, int], ...] = ()
    bands: tuple[str, ...] = BANDS
    keeps_offset: bool | None = None
    channels: tuple[tuple[str, str], ...] = ()

    @property
    def quality_per_band(self) -> bool:
        """Whether there is one quality layer a band."""
        return self.quality == (_PER_BAND,)

    def quality_roles(self, bands: Sequence[str]) -> tuple[str, ...]:
        """Roles of the quality layers for some bands.

        >>> MCD43A4.quality_roles(["red", "nir"])
        ('quality_red', 'quality_nir')
        """
        if self.quality_per_band:
            return tuple(f"quality_{band}" for band in bands)
        return self.quality


_PER_BAND = "quality_{band}"
_OLI_SATURATION = tuple((band, bit) for band, bit in zip(BANDS, (1, 2, 3, 4, 5, 6), strict=True))
_TM_SATURATION = tuple((band, bit) for band, bit in zip(BANDS, (0, 1, 2, 3, 4, 6), strict=True))

# QA_PIXEL bits of Collection 2 (LSDS-1619 table 6-2): cirrus (2) is unused by Landsat 4-7 and stays 0 there.
_QA_PIXEL = (
    Flag(Observation.FILL, 0),
    Flag(Observation.DILATED_CLOUD, 1),
    Flag(Observation.CIRRUS, 2),
    Flag(Observation.CLOUD, 3),
    Flag(Observation.SHADOW, 4),
    Flag(Observation.SNOW, 5),
    Flag(Observation.WATER, 7),
)
# Bit 0 is reserved for cirrus and not set; bits 6 and 7 tell the aerosol, 3 is high.
_FMASK = (
    Flag(Observation.CLOUD, 1),
    Flag(Observation.DILATED_CLOUD, 2),
    Flag(Observation.SHADOW, 3),
    Flag(Observation.SNOW, 4),
    Flag(Observation.WATER, 5),
    Flag(Observation.LOW_QUALITY, 6, 2, (3,)),
)
_SCENE_CLASSES = (
    Flag(Observation.FILL, 0, 8, (0, *range(12, 256))),
    Flag(Observation.SATURATED, 0, 8, (1,)),
    Flag(Observation.LOW_QUALITY, 0, 8, (2, 7)),  # dark areas, often topographic shadow; unclassified
    Flag(Observation.SHADOW, 0, 8, (3,)),
    Flag(Observation.WATER, 0, 8, (6,)),
    Flag(Observation.CLOUD, 0, 8, (8, 9)),
    Flag(Observation.CIRRUS, 0, 8, (10,)),
    Flag(Observation.SNOW, 0, 8, (11,)),
)
_MOD09_STATE = (
    Flag(Observation.CLOUD, 0, 2, (1, 2)),
    Flag(Observation.SHADOW, 2),
    Flag(Observation.WATER, 3, 3, (0, 3, 5, 6, 7)),
    Flag(Observation.LOW_QUALITY, 6, 2, (3,)),
    Flag(Observation.CIRRUS, 8, 2, (2, 3)),
    Flag(Observation.CLOUD, 10),
    Flag(Observation.SNOW, 12),
    Flag(Observation.DILATED_CLOUD, 13),
    Flag(Observation.SNOW, 15),
)

LANDSAT_OLI = Sensor(
    "landsat-oli", "fine", "uint16", 2.75e-5, -0.2, 0, (1, 65535), 30.0, 15.0,
    ("landsat-8", "landsat-9"), ("qa_pixel", "qa_radsat"), "uint16", 1, _QA_PIXEL, saturation_bits=_OLI_SATURATION,
)  # fmt: skip
"""Landsat 8 and 9 OLI, Collection 2 Level 2 surface reflectance."""

LANDSAT_TM = Sensor(
    "landsat-tm", "fine", "uint16", 2.75e-5, -0.2, 0, (1, 65535), 30.0, 15.0,
    ("landsat-4", "landsat-5", "landsat-7"), ("qa_pixel", "qa_radsat"), "uint16", 1, _QA_PIXEL,
    saturation_bits=_TM_SATURATION,
)  # fmt: skip
"""Landsat 4, 5 (TM) and 7 (ETM+), Collection 2 Level 2 surface reflectance."""

HLS_L30 = Sensor(
    "hls-l30", "fine", "int16", 1e-4, 0.0, -9999, (-9998, 32767), 30.0, 0.0,
    ("landsat-8", "landsat-9", ""), ("fmask",), "uint8", 255, _FMASK,
)  # fmt: skip
"""Harmonized Landsat Sentinel-2 v2.0, the Landsat part: nadir reflectance on Sentinel-2's tiles."""

HLS_S30 = replace(HLS_L30, name="hls-s30", platforms=("sentinel-2a", "sentinel-2b", "sentinel-2c", ""))
"""Harmonized Landsat Sentinel-2 v2.0, the Sentinel-2 part, with the narrow near infrared."""

SENTINEL_2 = Sensor(
    "sentinel-2", "fine", "uint16", 1e-4, 0.0, 0, (1, 65535), 10.0, 0.0,
    (), ("scl",), "uint8", 0, _SCENE_CLASSES, keeps_offset=False,
)  # fmt: skip
"""Sentinel-2 Level 2A, of processing baselines before 04.00 or with their offset taken off."""

SENTINEL_2_OFFSET = replace(SENTINEL_2, name="sentinel-2-offset", offset=-0.1, keeps_offset=True)
"""Sentinel-2 Level 2A as delivered since processing baseline 04.00 (25 January 2022)."""

MCD43A4 = Sensor(
    "mcd43a4", "coarse", "int16", 1e-4, 0.0, 32767, (0, 32766), 463.312716527778, 0.0,
    (), (_PER_BAND,), "uint8", 255, composite_day=True,
)  # fmt: skip
"""MODIS MCD43A4 v6.1: daily nadir BRDF-adjusted reflectance, 16-day window, dated by its middle (ninth) day."""

VNP43IA4 = replace(
    MCD43A4, name="vnp43ia4", bands=("red", "nir", "swir1"), channels=(("red", "I1"), ("nir", "I2"), ("swir1", "I3"))
)
"""VIIRS VNP43IA4 and VJ143IA4 v2: the same of the imagery bands I1 to I3."""

VNP43MA4 = replace(
    MCD43A4, name="vnp43ma4", resolution=926.625433055556,
    channels=(("blue", "M3"), ("green", "M4"), ("red", "M5"), ("nir", "M7"), ("swir1", "M10"), ("swir2", "M11")),
)  # fmt: skip
"""VIIRS VNP43MA4 and VJ143MA4 v2: the same of the moderate bands M3, M4, M5, M7, M10 and M11, at 1 km."""

MOD09GA = Sensor(
    "mod09ga", "coarse", "int16", 1e-4, 0.0, -28672, (-100, 16000), 463.312716527778, 0.0,
    (), ("state",), "uint16", 65535, _MOD09_STATE, composite_day=True,
)  # fmt: skip
"""MODIS MOD09GA and MYD09GA v6.1: daily surface reflectance; its state layer has cells of 1 km."""

MOD09A1 = replace(MOD09GA, name="mod09a1")
"""MODIS MOD09A1 and MYD09A1 v6.1: the best observation of eight days, dated by the first of them."""

MOD09Q1 = replace(MOD09GA, name="mod09q1", resolution=231.656358263958, bands=("red", "nir"))
"""MODIS MOD09Q1 and MYD09Q1 v6.1: the same of the two bands of 250 m."""

SENSORS: Mapping[str, Sensor] = {
    sensor.name: sensor
    for sensor in (
        LANDSAT_OLI, LANDSAT_TM, HLS_L30, HLS_S30, SENTINEL_2, SENTINEL_2_OFFSET,
        MCD43A4, VNP43IA4, VNP43MA4, MOD09GA, MOD09A1, MOD09Q1,
    )
}  # fmt: skip


def field_of(sensor: Sensor, role: str) -> str:
    """Path of a role's field in an HDF-EOS5 file; empty if the sensor does not come as such.

    >>> field_of(VNP43IA4, "quality_red")
    'HDFEOS/GRIDS/VIIRS_Grid_BRDF/Data Fields/BRDF_Albedo_Band_Mandatory_Quality_I1'
    """
    if not sensor.channels:
        return ""
    kind = "BRDF_Albedo_Band_Mandatory_Quality" if role.startswith("quality_") else "Nadir_Reflectance"
    channel = dict(sensor.channels)[role.removeprefix("quality_")]
    return f"HDFEOS/GRIDS/VIIRS_Grid_BRDF/Data Fields/{kind}_{channel}"


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
    found = counts.astype(np.float32)
    found *= np.float32(SCALE)
    found[counts == FILL] = np.nan
    return found


def from_reflectance(reflectance: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Reflectance as counts of a cube, NaN as fill; values are held within -3.2767 to 3.2767.

    >>> from_reflectance(np.array([0.1234, np.nan, 9.0], dtype="float32")).tolist()
    [1234, -32768, 32767]
    """
    # Held within range before the product, which could overflow; in place, as this is done to every pixel of every day.
    counts = np.clip(reflectance, -32767 * SCALE, 32767 * SCALE)
    counts *= np.float32(1 / SCALE)
    np.rint(counts, out=counts)
    counts[np.isnan(counts)] = FILL
    return np.asarray(counts, np.int16)


@lru_cache
def _word_table(sensor: Sensor) -> npt.NDArray[np.uint16]:
    # The observation bits of each of the 65,536 words of the first quality layer.
    words, found = np.arange(65536), np.zeros(65536, np.uint16)
    for flag in sensor.flags:
        field = (words >> flag.first) & ((1 << flag.width) - 1)
        found |= np.isin(field, flag.values) * np.uint16(flag.meaning)
    found[sensor.quality_fill] = Observation.FILL
    return found


def observation_of(words: Array, sensor: Sensor, bands: tuple[str, ...]) -> npt.NDArray[np.uint16]:
    """Observation bits ``(y, x)`` from quality words ``(role, y, x)`` of a sensor without quality layers of each band.

    Saturation counts in the bands that are used only.

    >>> observation_of(np.array([[21824], [0]], dtype="uint16"), LANDSAT_OLI, BANDS).tolist()
    [0]
    """
    found: npt.NDArray[np.uint16] = _word_table(sensor)[words[0]]
    mask = np.uint16(sum(1 << bit for band, bit in sensor.saturation_bits if band in bands))
    if mask:
        found = found | ((words[1] & mask) != 0) * np.uint16(Observation.SATURATED)
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
    if sensor.quality_per_band:
        words = quality.astype(np.uint8)
        return np.where(mcd43a4_usable(words), counts, np.int16(FILL)), mcd43a4_observation(words)
    observation = observation_of(quality, sensor, bands)
    # A pixel that lacks a band is no observation, whatever its word says; one that its word calls fill has no values.
    hole = np.asarray((counts == FILL).any(axis=0), bool)
    observation |= np.where(hole, np.uint16(Observation.FILL), np.uint16(0))
    fill = (observation & np.uint16(Observation.FILL)) != 0
    return np.where(fill, np.int16(FILL), counts), observation


def is_clear(observation: npt.NDArray[np.uint16]) -> npt.NDArray[np.bool_]:
    """Where an observation can be used."""
    clear: npt.NDArray[np.bool_] = (observation & np.uint16(NOT_CLEAR)) == 0
    return clear
