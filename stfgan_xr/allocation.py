"""Whether memory that a process frees goes back to the system at once, or is kept for the next array.

A fusion makes and drops the same large arrays over and over. The C library takes large ones from the system and gives
them back each time, and Dask has workers give back small ones too, so that every page is zeroed and mapped again
(``python -m benchmarks.engine --only allocation`` says how long that takes). A process that keeps what it frees holds
what it held at its peak, no more.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_MOST = 2**31 - 1


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(None)
        return library.mallopt and library
    except (OSError, AttributeError, TypeError):  # macOS and Windows have no such thing, musl ignores it
        return None


def keep_freed() -> bool:
    """Let this process keep memory that it frees; whether it does. Only glibc can be told.

    >>> keep_freed() in (True, False)
    True
    """
    # One arena: those of other threads take large arrays from the system whatever they are told.
    return _set((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _MOST))


def give_back_freed() -> bool:
    """Let it give back again what it frees from now on, as Dask has its workers do."""
    return _set((_MMAP_MAX, 65536), (_TRIM_THRESHOLD, 65536))


def _set(*parameters: tuple[int, int]) -> bool:
    library = _library()
    return library is not None and all(library.mallopt(*parameter) for parameter in parameters)
