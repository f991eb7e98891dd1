"""Days: what ``--dates`` accepts, day numbers, and the local solar day of an acquisition.

Everywhere in this package a day is a :class:`datetime.date` towards the user and a whole number of days since
1970-01-01 in arrays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np
import numpy.typing as npt

from stfgan_xr.errors import InputError

EPOCH = date(1970, 1, 1)
LONGEST = 366 * 50
_STEP = re.compile(r"P(\d{1,9})D")


def to_number(day: date) -> int:
    """Days since 1970-01-01.

    >>> to_number(date(2020, 3, 1))
    18322
    """
    return (day - EPOCH).days


def from_number(number: int) -> date:
    """The day that is ``number`` days after 1970-01-01.

    >>> from_number(18322)
    datetime.date(2020, 3, 1)
    """
    return EPOCH + timedelta(days=int(number))


def to_datetime64(days: Iterable[date]) -> npt.NDArray[np.datetime64]:
    """Days as the ``datetime64[ns]`` coordinate of a cube, shape ``(time,)``."""
    return np.array([np.datetime64(day, "ns") for day in days], dtype="datetime64[ns]")


def to_numbers(times: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Day numbers of a ``datetime64`` coordinate, shape ``(time,)``."""
    return np.asarray(times).astype("datetime64[D]").astype(np.int64)


def day_range(first: date, last: date, step: int = 1) -> tuple[date, ...]:
    """Every ``step``-th day from ``first`` to ``last``, both included."""
    return tuple(first + timedelta(days=n) for n in range(0, (last - first).days + 1, step))


def _parse_day(text: str, whole: str) -> date:
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise InputError(
            f"--dates {whole!r}: {text.strip()!r} is not a day; write YYYY-MM-DD, START/END, START/END/P8D or a list"
        ) from None


def parse_dates(text: str) -> tuple[date, ...]:
    """The days that ``--dates`` names, ascending and without repeats.

    Accepts one day, ``start/end`` (both included), ``start/end/P8D`` and a comma list.

    Raises
    ------
    InputError
        If a day is malformed, the range is reversed or longer than fifty years.

    >>> [day.isoformat() for day in parse_dates("2020-02-28/2020-03-01")]
    ['2020-02-28', '2020-02-29', '2020-03-01']
    >>> len(parse_dates("2020-01-01/2020-12-31/P8D"))
    46
    """
    if "/" not in text:
        return tuple(sorted({_parse_day(part, text) for part in text.split(",")}))
    first_text, last_text, *rest = text.split("/")
    first, last = _parse_day(first_text, text), _parse_day(last_text, text)
    step = 1
    if rest:
        match = _STEP.fullmatch(rest[0]) if len(rest) == 1 else None
        if match is None or int(match[1]) == 0:
            raise InputError(
                f"--dates {text!r}: the step must look like P8D (a number of days), not {'/'.join(rest)!r}"
            )
        step = int(match[1])
    if last < first:
        raise InputError(f"--dates {text!r}: the end lies before the start; write START/END")
    if (last - first).days > LONGEST:
        raise InputError(f"--dates {text!r}: longer than fifty years; split the request")
    return day_range(first, last, step)


def parse_period(text: str) -> int | None:
    """The number of days that ``--dates P30D`` asks for, which end with the newest imagery; None for other texts.

    Raises
    ------
    InputError
        If it is none, or longer than fifty years.

    >>> parse_period("P30D"), parse_period("2020-03-01")
    (30, None)
    """
    match = _STEP.fullmatch(text.strip())
    if match is None:
        return None
    if not 0 < int(match[1]) <= LONGEST:
        raise InputError(f"--dates {text!r}: the number of days must be from 1 to {LONGEST}")
    return int(match[1])


def grown(stored: Sequence[date], wanted: Sequence[date]) -> tuple[date, ...]:
    """The days of a run that is gone on with: those that it has, and more at their end.

    Raises
    ------
    InputError
        If the days that it has are not the first of those that are wanted.

    >>> len(grown(parse_dates("2020-03-01/2020-03-04"), parse_dates("2020-03-01/2020-03-09")))
    9
    """
    if tuple(wanted[: len(stored)]) == tuple(stored):
        return tuple(wanted)
    raise InputError(
        f"--dates: the run has {describe(stored)}, which are not the first of {describe(wanted)}; a run may be given "
        "more days at its end, for others choose another --out or add --overwrite"
    )


def prolonged(stored: Sequence[date], last: date) -> tuple[date, ...]:
    """The days of a run that has every day, prolonged to ``last``.

    Raises
    ------
    InputError
        If it has not every day.

    >>> prolonged(parse_dates("2020-03-01/2020-03-04"), date(2020, 3, 5))[-1].isoformat()
    '2020-03-05'
    """
    if tuple(stored) != day_range(stored[0], stored[-1]):
        raise InputError(
            f"--dates: the run has {describe(stored)}, but not every day, so it is not known which come next; name all "
            "of its days, or choose another --out"
        )
    return day_range(stored[0], max(last, stored[-1]))


def solar_day(moment: datetime, longitude: float) -> date:
    """The local solar day of an acquisition: UTC shifted by four minutes a degree of longitude.

    Using one longitude for a whole run (the centre of its area) keeps all scenes of a pass on the same day although
    UTC midnight may fall within the pass.

    >>> solar_day(datetime(2025, 3, 10, 23, 53, tzinfo=UTC), 146.7).isoformat()
    '2025-03-11'
    """
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware.astimezone(UTC) + timedelta(hours=longitude / 15)).date()


def describe(days: Sequence[date]) -> str:
    """A short text for logs and messages.

    >>> describe(parse_dates("2020-03-01/2020-03-31"))
    '31 days, 2020-03-01 to 2020-03-31'
    """
    if len(days) == 1:
        return days[0].isoformat()
    return f"{len(days)} days, {days[0].isoformat()} to {days[-1].isoformat()}"
