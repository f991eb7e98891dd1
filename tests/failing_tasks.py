"""Tasks for tests of where they run; of little code, as workers that are started again load it anew."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from stfgan_xr.errors import SourceError


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise SourceError(f"block {number} cannot be read")


def fail_oddly(number: int) -> int:
    raise ZeroDivisionError(f"in block {number}: https://a.example/b.tif?sig=secret")


def fail_until(mark: str, count: int) -> int:
    """Fails at first; attempts are counted in a file, as they may be made in different processes."""
    with Path(mark).open("a") as file:
        file.write("x")
    if len(Path(mark).read_text()) < count:
        raise OSError("not yet")
    return count


def die(number: int) -> int:
    os._exit(number)


def hang(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def starve(number: int) -> int:
    raise MemoryError


def pages() -> int:
    """Pages that this process touches for the first time while it makes and drops large arrays."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        len(b"x" * 2**25)  # not numpy's: it asks for huge pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
