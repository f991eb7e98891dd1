from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stfgan_xr import days
from stfgan_xr.errors import InputError

DAYS = st.dates(date(1700, 1, 1), date(2250, 12, 31))


@given(DAYS)
def test_a_day_survives_the_way_to_its_number_and_back(day: date) -> None:
    assert days.from_number(days.to_number(day)) == day


@given(DAYS)
def test_a_days_number_grows_by_one_a_day(day: date) -> None:
    assert days.to_number(day + timedelta(days=1)) == days.to_number(day) + 1


def test_the_first_number_is_zero() -> None:
    assert days.to_number(date(1970, 1, 1)) == 0
    assert days.to_number(date(1969, 12, 31)) == -1


@given(st.lists(DAYS, max_size=20))
def test_coordinates_of_a_cube_give_the_same_numbers(some: list[date]) -> None:
    times = days.to_datetime64(some)
    assert times.dtype == np.dtype("datetime64[ns]")
    assert days.to_numbers(times).tolist() == [days.to_number(day) for day in some]


def test_times_within_a_day_have_that_days_number() -> None:
    times = np.array(["2020-02-29T23:59:59", "2020-03-01T00:00:00", "1969-12-31T12:00:00"], "datetime64[s]")
    assert days.to_numbers(times).tolist() == [18321, 18322, -1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-02-29", ["2020-02-29"]),
        ("2020-02-28/2020-03-01", ["2020-02-28", "2020-02-29", "2020-03-01"]),
        ("2021-02-28/2021-03-01", ["2021-02-28", "2021-03-01"]),
        ("1900-02-28/1900-03-01", ["1900-02-28", "1900-03-01"]),
        ("2000-02-28/2000-03-01", ["2000-02-28", "2000-02-29", "2000-03-01"]),
        ("2020-03-01/2020-03-01", ["2020-03-01"]),
        ("2020-02-21/2020-03-08/P8D", ["2020-02-21", "2020-02-29", "2020-03-08"]),
        ("2020-02-21/2020-03-07/P8D", ["2020-02-21", "2020-02-29"]),
        ("2020-01-01/2020-01-03/P30D", ["2020-01-01"]),
        ("2020-03-05, 2020-03-01,2020-03-05", ["2020-03-01", "2020-03-05"]),
        (" 2020-03-05 ", ["2020-03-05"]),
    ],
)
def test_dates_are_read(text: str, expected: list[str]) -> None:
    assert [day.isoformat() for day in days.parse_dates(text)] == expected


@given(DAYS, st.integers(0, 400), st.integers(1, 40))
def test_a_range_with_a_step_holds_every_nth_day_from_the_start(first: date, length: int, step: int) -> None:
    last = first + timedelta(days=length)
    found = days.parse_dates(f"{first}/{last}/P{step}D")
    assert found == days.day_range(first, last, step)
    assert found == tuple(d for d in days.parse_dates(f"{first}/{last}") if (d - first).days % step == 0)


@given(st.lists(DAYS, min_size=1, max_size=20))
def test_a_list_is_sorted_and_holds_each_day_once(some: list[date]) -> None:
    assert days.parse_dates(",".join(map(str, some))) == tuple(sorted(set(some)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "/",
        "//",
        "2020",
        "2020-03",
        "2021-02-29",
        "1900-02-29",
        "2020-13-01",
        "2020-04-31",
        "20-03-01",
        "01/03/2020",
        "2020-03-01,",
        "2020-03-01,tomorrow",
        "2020-03-01T00:00:00",
        "2020-03-01/",
        "/2020-03-01",
        "2020-03-02/2020-03-01",
        "2020-03-01/2020-03-09/8",
        "2020-03-01/2020-03-09/P0D",
        "2020-03-01/2020-03-09/P-1D",
        "2020-03-01/2020-03-09/P1M",
        "2020-03-01/2020-03-09/P8D/P8D",
        "2020-03-01/2020-03-09/P8D\n",
        "2020-03-01/2020-03-09/P99999999999999999999D",
        "1000-01-01/2020-01-01",
        "2020-03-01/..",
    ],
)
def test_dates_that_cannot_be_read_are_one_line_that_names_the_option(text: str) -> None:
    with pytest.raises(InputError, match="--dates") as caught:
        days.parse_dates(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


def test_fifty_years_are_the_longest_range() -> None:
    assert len(days.parse_dates("1980-01-01/2029-12-31")) == 18263
    with pytest.raises(InputError, match="fifty years"):
        days.parse_dates("1980-01-01/2030-12-31")


@pytest.mark.parametrize(
    ("moment", "longitude", "expected"),
    [
        ("2025-03-10T23:53:00", 146.7, "2025-03-11"),  # Australia, late in UTC
        ("2025-03-10T23:53:00", 0.0, "2025-03-10"),
        ("2025-03-11T00:01:00", 0.0, "2025-03-11"),
        ("2025-03-11T00:01:00", -0.5, "2025-03-10"),  # two minutes earlier
        ("2025-03-10T23:58:00", 0.5, "2025-03-11"),
        ("2025-03-10T23:57:59", 0.5, "2025-03-10"),
        ("2025-03-11T06:00:00", -155.0, "2025-03-10"),  # Hawaii in the evening
        ("2024-02-29T12:00:00", 180.0, "2024-03-01"),
        ("2024-02-29T11:59:59", 180.0, "2024-02-29"),
        ("2024-03-01T11:59:59", -180.0, "2024-02-29"),
        ("2024-03-01T12:00:00", -180.0, "2024-03-01"),
        ("2023-03-01T11:59:59", -180.0, "2023-02-28"),
        ("2020-12-31T20:00:00", 114.1, "2021-01-01"),
    ],
)
def test_the_solar_day_near_midnight_leap_days_and_the_date_line(moment: str, longitude: float, expected: str) -> None:
    naive = datetime.fromisoformat(moment)
    assert days.solar_day(naive, longitude).isoformat() == expected
    assert days.solar_day(naive.replace(tzinfo=UTC), longitude).isoformat() == expected


@given(st.datetimes(datetime(1980, 1, 1), datetime(2060, 1, 1)), st.floats(-180, 180), st.integers(-12, 14))
def test_the_solar_day_does_not_depend_on_the_time_zone_of_the_text(
    moment: datetime, longitude: float, hours: int
) -> None:
    aware = moment.replace(tzinfo=UTC)
    there = aware.astimezone(timezone(timedelta(hours=hours)))
    assert days.solar_day(there, longitude) == days.solar_day(aware, longitude)
    assert abs((days.solar_day(aware, longitude) - aware.date()).days) <= 1


@given(st.datetimes(datetime(1980, 1, 1), datetime(2060, 1, 1)))
def test_at_null_island_the_solar_day_is_the_utc_day(moment: datetime) -> None:
    assert days.solar_day(moment, 0.0) == moment.date()


@given(st.dates(date(1980, 1, 1), date(2060, 1, 1)), st.floats(-179, 179))
def test_a_morning_overpass_has_the_day_it_has_on_the_ground(day: date, longitude: float) -> None:
    moment = datetime(day.year, day.month, day.day, 10, 30, tzinfo=UTC) - timedelta(hours=longitude / 15)
    assert days.solar_day(moment, longitude) == day


def test_days_are_described() -> None:
    assert days.describe(days.parse_dates("2020-03-01")) == "2020-03-01"
    assert days.describe(days.parse_dates("2020-03-01,2020-03-09")) == "2 days, 2020-03-01 to 2020-03-09"
