"""The coding of each product against a truth written from the product guides, in whole numbers and fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stfgan_xr import sensors
from stfgan_xr.sensors import BANDS, FILL, LANDSAT_OLI, LANDSAT_TM, MCD43A4, Observation, Sensor

EVERY_WORD = np.arange(65536, dtype=np.uint16)
NO_WORD = np.zeros(65536, np.uint16)

# QA_PIXEL of Collection 2, from LSDS-1619 table 6-2 and LSDS-1618: bit and meaning.
QA_PIXEL = {0: "FILL", 1: "DILATED_CLOUD", 2: "CIRRUS", 3: "CLOUD", 4: "SHADOW", 5: "SNOW", 7: "WATER"}
# The number of each band on its instrument; QA_RADSAT bit n - 1 is band n.
BAND_NUMBER = {
    "landsat-oli": {"blue": 2, "green": 3, "red": 4, "nir": 5, "swir1": 6, "swir2": 7},
    "landsat-tm": {"blue": 1, "green": 2, "red": 3, "nir": 4, "swir1": 5, "swir2": 7},
}
UNUSABLE = {"FILL", "DILATED_CLOUD", "CIRRUS", "CLOUD", "SHADOW", "SATURATED"}


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def landsat_count(dn: int) -> int:
    return FILL if dn == 0 else half_up((dn * Fraction("0.0000275") - Fraction("0.2")) * 10_000)


def modis_count(dn: int) -> int:
    return half_up(dn * Fraction("0.0001") * 10_000) if 0 <= dn <= 32766 else FILL


def observation_of(names: set[str]) -> int:
    return sum(int(Observation[name]) for name in names)


@pytest.mark.parametrize("sensor", [LANDSAT_OLI, LANDSAT_TM], ids=lambda s: s.name)
def test_every_landsat_number_becomes_the_count_of_the_guide(sensor: Sensor) -> None:
    assert sensors.to_counts(EVERY_WORD, sensor).tolist() == [landsat_count(dn) for dn in range(65536)]


def test_every_modis_number_becomes_the_count_of_the_guide() -> None:
    numbers = range(-32768, 32768)
    assert sensors.to_counts(np.array(numbers, np.int16), MCD43A4).tolist() == [modis_count(dn) for dn in numbers]


def test_no_landsat_measurement_looks_like_fill() -> None:
    counts = sensors.to_counts(EVERY_WORD[1:], LANDSAT_OLI)
    assert counts.min() == -2000
    assert counts.max() == 16022
    assert bool((np.diff(counts.astype(int)) >= 0).all())


def test_ties_are_rounded_up() -> None:
    # 2.75e-5 x 10000 = 11/40 of a count a number: a tie falls on every 40th.
    ties = [dn for dn in range(1, 65536) if (dn * Fraction(11, 40) - 2000) % 1 == Fraction(1, 2)]
    assert len(ties) > 1000
    got = sensors.to_counts(np.array(ties, np.uint16), LANDSAT_OLI)
    assert got.tolist() == [math.ceil(dn * Fraction(11, 40) - 2000) for dn in ties]


@pytest.mark.parametrize(("sensor", "dtype"), [(LANDSAT_OLI, "int16"), (LANDSAT_OLI, "float32"), (MCD43A4, "uint16")])
def test_numbers_of_another_type_are_refused(sensor: Sensor, dtype: str) -> None:
    with pytest.raises(TypeError, match=sensor.name):
        sensors.to_counts(np.zeros(3, dtype), sensor)


def test_counts_keep_the_shape_and_take_strided_arrays() -> None:
    raw = np.arange(4 * 6 * 8, dtype=np.uint16).reshape(4, 6, 8)
    whole = sensors.to_counts(raw, LANDSAT_OLI)
    assert whole.shape == raw.shape
    np.testing.assert_array_equal(sensors.to_counts(raw[:, ::2, ::-1], LANDSAT_OLI), whole[:, ::2, ::-1])


@pytest.mark.parametrize("sensor", [LANDSAT_OLI, LANDSAT_TM], ids=lambda s: s.name)
def test_every_qa_pixel_word_is_read_as_the_guide_says(sensor: Sensor) -> None:
    expected = [observation_of({name for bit, name in QA_PIXEL.items() if word >> bit & 1}) for word in range(65536)]
    assert sensors.observation_of(np.stack([EVERY_WORD, NO_WORD]), sensor, BANDS).tolist() == expected


@pytest.mark.parametrize("bands", [BANDS, ("red", "nir"), ("swir1",), ("blue", "swir2")], ids="-".join)
@pytest.mark.parametrize("sensor", [LANDSAT_OLI, LANDSAT_TM], ids=lambda s: s.name)
def test_every_qa_radsat_word_is_read_as_the_guide_says(sensor: Sensor, bands: tuple[str, ...]) -> None:
    bits = [BAND_NUMBER[sensor.name][band] - 1 for band in bands]
    expected = [int(Observation.SATURATED) if any(word >> bit & 1 for bit in bits) else 0 for word in range(65536)]
    assert sensors.observation_of(np.stack([NO_WORD, EVERY_WORD]), sensor, bands).tolist() == expected


def test_pixel_and_saturation_words_add_up() -> None:
    both = sensors.observation_of(np.stack([EVERY_WORD, EVERY_WORD[::-1]]), LANDSAT_OLI, BANDS)
    pixel = sensors.observation_of(np.stack([EVERY_WORD, NO_WORD]), LANDSAT_OLI, BANDS)
    saturated = sensors.observation_of(np.stack([NO_WORD, EVERY_WORD[::-1]]), LANDSAT_OLI, BANDS)
    np.testing.assert_array_equal(both, pixel | saturated)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        (1, {"FILL"}),
        (21824, set()),
        (21952, {"WATER"}),
        (22280, {"CLOUD"}),
        (23888, {"SHADOW"}),
        (30048, {"SNOW"}),
        (54596, {"CIRRUS"}),
        (54852, {"CIRRUS"}),
        (55052, {"CIRRUS", "CLOUD"}),
    ],
)
def test_common_words_of_the_guide_mean_what_it_says(word: int, names: set[str]) -> None:
    got = sensors.observation_of(np.array([[word], [0]], np.uint16), LANDSAT_OLI, BANDS)
    assert got.tolist() == [observation_of(names)]


def test_clear_is_neither_fill_cloud_cirrus_shadow_dilated_nor_saturated() -> None:
    words = np.arange(512, dtype=np.uint16)
    expected = [not any(word & Observation[name] for name in UNUSABLE) for word in range(512)]
    assert sensors.is_clear(words).tolist() == expected
    kept = np.array([Observation.SNOW, Observation.WATER, Observation.LOW_QUALITY], np.uint16)
    assert sensors.is_clear(kept).all()


def test_every_mandatory_quality_value_of_one_band() -> None:
    words = np.arange(256, dtype=np.uint8)
    assert sensors.mcd43a4_usable(words).tolist() == [value in (0, 1) for value in range(256)]
    expected = [{0: 0, 1: int(Observation.LOW_QUALITY)}.get(value, int(Observation.FILL)) for value in range(256)]
    assert sensors.mcd43a4_observation(words[None]).tolist() == expected


def test_a_modis_cell_is_fill_only_where_no_band_has_a_value() -> None:
    values = np.array([0, 1, 2, 254, 255], np.uint8)
    first, second = (part.ravel() for part in np.meshgrid(values, values))
    got = sensors.mcd43a4_observation(np.stack([first, second]))
    for a, b, found in zip(first, second, got, strict=True):
        name = {"FILL"} if min(a, b) > 1 else {"LOW_QUALITY"} if 1 in (a, b) else set()
        assert found == observation_of(name), (a, b)


def test_decoding_modis_masks_each_band_by_its_own_quality() -> None:
    raw = np.array([[[100, 200, 300, 32767]], [[400, 500, 600, 700]]], np.int16)
    quality = np.array([[[0, 1, 255, 0]], [[255, 0, 255, 0]]], np.uint8)
    counts, observation = sensors.decode(raw, quality, MCD43A4, ("red", "nir"))
    assert counts.tolist() == [[[100, 200, FILL, FILL]], [[FILL, 500, FILL, 700]]]
    assert observation.tolist() == [[0, Observation.LOW_QUALITY, Observation.FILL, 0]]
    assert counts.dtype == np.int16
    assert observation.dtype == np.uint16


def test_decoding_landsat_makes_a_pixel_that_lacks_any_band_fill_in_all() -> None:
    raw = np.array([[[0, 7273, 7273, 20000, 7273]], [[9000, 0, 9000, 9000, 9000]]], np.uint16)
    quality = np.array([[[21824, 21824, 22280, 21824, 1]], [[0, 0, 0, 1 << 3, 0]]], np.uint16)
    counts, observation = sensors.decode(raw, quality, LANDSAT_OLI, ("red", "nir"))
    fill = [True, True, False, False, True]
    for band, words in zip(counts[:, 0].tolist(), raw[:, 0].tolist(), strict=True):
        assert band == [FILL if gone else landsat_count(dn) for dn, gone in zip(words, fill, strict=True)]
    assert observation.tolist() == [
        [Observation.FILL, Observation.FILL, Observation.CLOUD, Observation.SATURATED, Observation.FILL]
    ]
    assert counts.dtype == np.int16
    assert observation.dtype == np.uint16


def test_the_same_radsat_word_saturates_different_bands_on_the_two_instruments() -> None:
    raw, quality = np.full((1, 1, 1), 9000, np.uint16), np.array([[[21824]], [[1 << 3]]], np.uint16)
    assert sensors.decode(raw, quality, LANDSAT_OLI, ("red",))[1].item() == Observation.SATURATED
    assert sensors.decode(raw, quality, LANDSAT_TM, ("red",))[1].item() == 0
    assert sensors.decode(raw, quality, LANDSAT_TM, ("nir",))[1].item() == Observation.SATURATED


def every_count() -> npt.NDArray[np.int16]:
    return np.arange(-32768, 32768).astype(np.int16)


def test_every_count_survives_the_way_to_reflectance_and_back() -> None:
    reflectance = sensors.to_reflectance(every_count())
    assert reflectance.dtype == np.float32
    np.testing.assert_array_equal(sensors.from_reflectance(reflectance), every_count())


def test_reflectance_is_a_ten_thousandth_of_the_count_and_fill_is_nan() -> None:
    reflectance = sensors.to_reflectance(every_count())
    assert np.isnan(reflectance[0])
    np.testing.assert_allclose(reflectance[1:], np.arange(-32767, 32768) / 10_000, rtol=3e-7)


@given(st.floats(width=32, allow_nan=True, allow_infinity=True))
def test_any_reflectance_becomes_a_count_within_range_and_only_nan_becomes_fill(value: float) -> None:
    count = int(sensors.from_reflectance(np.array([value], np.float32))[0])
    if math.isnan(value):
        assert count == FILL
    else:
        assert abs(count - max(-32767.0, min(32767.0, value * 10_000))) <= 0.51


def test_quality_layers_of_a_request_follow_its_bands() -> None:
    assert MCD43A4.quality_roles(("nir", "blue")) == ("quality_nir", "quality_blue")
    assert LANDSAT_TM.quality_roles(("nir", "blue")) == ("qa_pixel", "qa_radsat")


# Written from the product guides, value by value, as texts of bits (most significant first) where they are bit fields.
SCENE_CLASS = {
    0: {"FILL"}, 1: {"SATURATED"}, 2: {"LOW_QUALITY"}, 3: {"SHADOW"}, 4: set(), 5: set(), 6: {"WATER"},
    7: {"LOW_QUALITY"}, 8: {"CLOUD"}, 9: {"CLOUD"}, 10: {"CIRRUS"}, 11: {"SNOW"},
}  # fmt: skip


def of_fmask(word: int) -> set[str]:
    """HLS v2.0 User Guide, table 9."""
    if word == 255:
        return {"FILL"}
    bits = f"{word:08b}"
    named = zip(bits[2:7], ("WATER", "SNOW", "SHADOW", "DILATED_CLOUD", "CLOUD"), strict=True)
    return {name for bit, name in named if bit == "1"} | ({"LOW_QUALITY"} if bits[:2] == "11" else set())


def of_mod09_state(word: int) -> set[str]:
    """MOD09 v6.1 User Guide, table of the state QA."""
    if word == 65535:
        return {"FILL"}
    bits = f"{word:016b}"
    internal_snow, adjacent, snow, internal_cloud = bits[0], bits[2], bits[3], bits[5]
    cirrus, aerosol, land, shadow, cloud = bits[6:8], bits[8:10], bits[10:13], bits[13], bits[14:16]
    said = {
        "SNOW": "1" in internal_snow + snow,
        "DILATED_CLOUD": adjacent == "1",
        "CLOUD": internal_cloud == "1" or cloud in ("01", "10"),
        "CIRRUS": cirrus in ("10", "11"),
        "LOW_QUALITY": aerosol == "11",
        "WATER": land in ("000", "011", "101", "110", "111"),
        "SHADOW": shadow == "1",
    }
    return {name for name, holds in said.items() if holds}


@pytest.mark.parametrize(
    ("sensor", "size", "meaning"),
    [
        (sensors.HLS_L30, 256, of_fmask),
        (sensors.HLS_S30, 256, of_fmask),
        (sensors.SENTINEL_2, 256, lambda word: SCENE_CLASS.get(word, {"FILL"})),
        (sensors.SENTINEL_2_OFFSET, 256, lambda word: SCENE_CLASS.get(word, {"FILL"})),
        (sensors.MOD09GA, 65536, of_mod09_state),
        (sensors.MOD09A1, 65536, of_mod09_state),
        (sensors.MOD09Q1, 65536, of_mod09_state),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_quality_word_is_read_as_its_guide_says(
    sensor: Sensor, size: int, meaning: Callable[[int], set[str]]
) -> None:
    words = np.arange(size, dtype=sensor.quality_dtype)
    expected = [observation_of(meaning(word)) for word in range(size)]
    assert sensors.observation_of(words[None], sensor, BANDS).tolist() == expected


@pytest.mark.parametrize(
    ("sensor", "low", "high", "fill", "scale", "offset"),
    [
        (sensors.HLS_L30, -9998, 32767, -9999, "0.0001", "0"),
        (sensors.HLS_S30, -9998, 32767, -9999, "0.0001", "0"),
        (sensors.SENTINEL_2, 1, 32767, 0, "0.0001", "0"),
        (sensors.SENTINEL_2_OFFSET, 1, 33767, 0, "0.0001", "-0.1"),
        (sensors.VNP43IA4, 0, 32766, 32767, "0.0001", "0"),
        (sensors.VNP43MA4, 0, 32766, 32767, "0.0001", "0"),
        (sensors.MOD09GA, -100, 16000, -28672, "0.0001", "0"),
        (sensors.MOD09A1, -100, 16000, -28672, "0.0001", "0"),
        (sensors.MOD09Q1, -100, 16000, -28672, "0.0001", "0"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_number_of_the_other_products_becomes_the_count_of_its_guide(
    sensor: Sensor, low: int, high: int, fill: int, scale: str, offset: str
) -> None:
    kind = np.iinfo(sensor.dtype)
    numbers = range(kind.min, kind.max + 1)
    expected = [
        half_up((dn * Fraction(scale) + Fraction(offset)) * 10_000) if low <= dn <= high and dn != fill else FILL
        for dn in numbers
    ]
    assert sensors.to_counts(np.array(numbers, sensor.dtype), sensor).tolist() == expected


def test_sensors_are_listed_by_their_names() -> None:
    assert all(sensor.name == name for name, sensor in sensors.SENSORS.items())
    assert len(sensors.SENSORS) == 12
