"""Sensors made alike: published coefficients as printed, and fits of known truth."""

from __future__ import annotations

import math
from datetime import date, timedelta
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from stfgan_xr import harmonise
from stfgan_xr.errors import SourceError
from stfgan_xr.harmonise import Linear, adjust, bandpass, fit, fit_datasets
from stfgan_xr.sensors import BANDS, FILL, Observation
from tests import synthetic

# As printed at hls.gsfc.nasa.gov/algorithms/bandpass-adjustment: OLI band, MSI band, S2A slope, offset, S2B slope, offset.
HLS = """
2 2 0.9778 -0.004 0.9778 -0.004
3 3 1.0053 -0.0009 1.0075 -0.0008
4 4 0.9765 0.0009 0.9761 0.001
5 8A 0.9983 -0.0001 0.9966 0.000
6 11 0.9987 -0.0011 1.000 -0.0003
7 12 1.003 -0.0012 0.9867 0.0004
"""
# As printed in table 2 of Roy et al. 2016, surface reflectance, ordinary least squares of OLI on ETM+.
ROY = """
0.0003 0.8474
0.0088 0.8483
0.0061 0.9047
0.0412 0.8462
0.0254 0.8937
0.0172 0.9071
"""


def printed(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


@pytest.mark.parametrize(("platform", "column"), [("sentinel-2a", 2), ("sentinel-2b", 4)])
@pytest.mark.parametrize("sensor", ["sentinel-2", "sentinel-2-offset"])
def test_coefficients_of_sentinel_2_are_those_printed(platform: str, column: int, sensor: str) -> None:
    source, found = bandpass(sensor, platform) or ("", {})
    assert "HLS" in source
    expected = {band: row[column : column + 2] for band, row in zip(BANDS, printed(HLS), strict=True)}
    assert {b: (f.gain, f.offset) for b, f in found.items()} == {
        band: (float(gain), float(offset)) for band, (gain, offset) in expected.items()
    }


def test_coefficients_of_etm_are_those_printed() -> None:
    source, found = bandpass("landsat-tm", "landsat-7") or ("", {})
    assert "Roy" in source
    assert [[f"{f.offset:.4f}", f"{f.gain:.4f}"] for f in found.values()] == printed(ROY)


@pytest.mark.parametrize(
    ("sensor", "platform"),
    [("landsat-oli", "landsat-8"), ("landsat-tm", "landsat-5"), ("hls-s30", "sentinel-2a"), ("sentinel-2", "sentinel-2c")],
)  # fmt: skip
def test_others_are_left_as_they_are(sensor: str, platform: str) -> None:
    assert bandpass(sensor, platform) is None


@pytest.mark.parametrize("linear", [Linear(), Linear(0.8474, 0.0003), Linear(1.25, -0.05), Linear(2, 1.5)])
def test_every_count_is_adjusted_half_up(linear: Linear) -> None:
    counts = np.arange(-32768, 32768).astype("int16")
    gain, offset = Fraction(str(linear.gain)), Fraction(str(linear.offset)) * 10_000
    expected = [min(max(math.floor(int(c) * gain + offset + Fraction(1, 2)), -32767), 32767) for c in counts[1:]]
    assert adjust(counts, linear).tolist() == [FILL, *expected]


@given(
    st.floats(0.7, 1.4), st.floats(-0.05, 0.05), st.floats(0, 0.01), st.floats(0, 0.2), st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_a_known_change_is_found_again(gain: float, offset: float, noise: float, outliers: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    given_ = rng.uniform(0.02, 0.45, 2000)
    wanted = gain * given_ + offset + noise * rng.standard_normal(2000)
    wanted = np.where(rng.random(2000) < outliers, rng.uniform(0, 1, 2000), wanted)
    found = fit(np.rint(wanted * 1e4).astype("int16"), np.rint(given_ * 1e4).astype("int16"))
    caution = abs(gain - 1) * harmonise.CAUTION * noise**2 / np.var(given_)  # what the prior takes of it
    assert found.linear.gain == pytest.approx(gain, abs=0.01 + noise + 1.3 * caution)
    assert found.linear.offset == pytest.approx(offset, abs=0.004 + noise)


def test_over_even_ground_only_the_offset_changes() -> None:
    rng = np.random.default_rng(0)
    wanted, other = (np.rint(2000 + level + 20 * rng.standard_normal(500)).astype("int16") for level in (150, 0))
    found = fit(wanted, other)
    assert found.linear.gain == pytest.approx(1, abs=0.05)
    assert 0.2 * found.linear.gain + found.linear.offset == pytest.approx(0.215, abs=0.001)
    assert found.after < found.before


def test_without_common_cells_nothing_changes() -> None:
    empty = np.full(9, FILL, "int16")
    assert fit(empty, np.arange(9, dtype="int16")) == harmonise.Fit(Linear(), 0, 0.0, 0.0)


def dataset(values: np.ndarray, qa: np.ndarray) -> xr.Dataset:
    days = [date(2020, 1, 1) + timedelta(days=n) for n in range(len(values))]
    return synthetic.counts(values[:, None], qa, days, synthetic.grid(*values.shape[1:]), ["red"])


def test_cells_that_either_cannot_trust_do_not_count() -> None:
    rng = np.random.default_rng(0)
    other = rng.uniform(0.05, 0.4, (3, 20, 20))
    qa = [np.zeros((3, 20, 20), int), np.zeros((3, 20, 20), int)]
    wanted = 1.1 * other
    for which, bit in ((0, Observation.CLOUD), (0, Observation.LOW_QUALITY), (1, Observation.SNOW), (1, Observation.FILL)):  # fmt: skip
        chosen = rng.random(wanted.shape) < 0.2
        qa[which][chosen] |= int(bit)
        wanted[chosen] = 0.9
    found = fit_datasets(dataset(wanted, qa[0]), dataset(other, qa[1]))["red"]
    assert found.linear.gain == pytest.approx(1.1, abs=0.005)
    assert found.cells <= int(((qa[0] | qa[1]) == 0).sum())


def test_series_that_cannot_be_one_are_refused() -> None:
    other = np.random.default_rng(0).uniform(0.05, 0.15, (3, 20, 20))
    clear = np.zeros((3, 20, 20), int)
    with pytest.raises(SourceError, match="red of the second would need gain"):
        fit_datasets(dataset(5 * other, clear), dataset(other, clear))
