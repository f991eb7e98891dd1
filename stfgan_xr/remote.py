"""What is asked of an image's server before GDAL is: GDAL follows every redirect and ignores ``Retry-After``."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import groupby
from typing import Any
from urllib.parse import urljoin, urlsplit

from stfgan_xr.errors import SourceError

TIMEOUTS = {"GDAL_HTTP_CONNECTTIMEOUT": "20", "GDAL_HTTP_TIMEOUT": "60"}
"""Seconds, by the names of GDAL's own settings, which a user may set in the environment."""
LONGEST_WAIT = 120.0
"""Seconds waited at most because a server asks for it (``Retry-After``)."""
MOST_REDIRECTS = 10
SLOW_SECONDS, SLOW_BYTES = 30.0, 1000.0
"""An answer that takes longer than this, at so many bytes a second, is given up; GDAL is told the same."""
_QUERY = re.compile(r"\?[^\s'\"]*")


def redact(text: str) -> str:
    """A text without the queries of its addresses, which may hold tokens.

    >>> redact("https://a.example/b.tif?sig=secret: no such host")
    'https://a.example/b.tif no such host'
    """
    return _QUERY.sub("", text)


def is_remote(url: str) -> bool:
    """Whether an address is not a local path."""
    return urlsplit(url).scheme in ("http", "https", "s3")


class Busy(OSError):
    """A server that asks for patience."""

    def __init__(self, status: int, wait: float) -> None:
        super().__init__(f"HTTP response code: {status}")
        self.wait = wait


def seconds_asked(header: str | None) -> float:
    """What a ``Retry-After`` header asks for, in seconds or as a date, up to a limit; 0 if it states neither."""
    text = (header or "").strip()
    if text.isdecimal():
        return min(float(text), LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    left = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(left.total_seconds(), 0.0), LONGEST_WAIT)


_connections = threading.local()


def _session() -> Any:
    """The connections of this thread."""
    import requests

    if not hasattr(_connections, "session"):
        _connections.session = requests.Session()
    return _connections.session


def _timeout() -> tuple[float, ...]:
    """Seconds to connect, and between two answers."""
    return tuple(float(os.environ.get(name, default)) for name, default in TIMEOUTS.items())


def _user_headers() -> dict[str, str]:
    """What the user has GDAL send, such as a bearer token."""
    parts = re.split(r"\r\n|,", os.environ.get("GDAL_HTTP_HEADERS", ""))
    return {name.strip(): value.strip() for name, _, value in (part.partition(":") for part in parts) if value}


def look(address: str, allowed: Callable[[str], bool]) -> str:
    """Ask for the first byte of an image.

    Parameters
    ----------
    address
        Signed http or https address.
    allowed
        Whether a redirect may lead to an address.

    Returns
    -------
    str
        The entity tag, if it identifies the bytes; else empty.

    Raises
    ------
    SourceError
        If it redirects to where it may not.
    OSError
        If it does not answer with one byte.
    """
    first, common = urlsplit(address).netloc, {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
    place = address
    for _ in range(MOST_REDIRECTS):
        headers = common | (_user_headers() if urlsplit(place).netloc == first else {})
        # Neither redirects nor bodies: a server that ignores the range would send the whole image.
        options: dict[str, Any] = {"allow_redirects": False, "stream": True, "timeout": _timeout()}
        with _session().get(place, headers=headers, **options) as answer:
            status, found = answer.status_code, answer.headers
            if answer.is_redirect:
                place = urljoin(place, found["Location"])
                if not allowed(place):
                    parts = urlsplit(place)
                    raise SourceError(
                        f"{redact(address)} leads to {parts.scheme}://{parts.hostname}, which is not among the hosts "
                        "of its catalog; if it should be, add it to hosts"
                    )
                continue
            if status in (429, 503):
                raise Busy(status, seconds_asked(found.get("Retry-After")))
            if status == 200:
                raise OSError("its server sends the whole file instead of the part asked for")
            if status != 206:
                raise OSError(f"HTTP response code: {status}")
            next(answer.iter_content(64), b"")  # else the connection cannot be used again
            tag = str(found.get("ETag", ""))
            return tag if tag.startswith('"') else ""
    raise OSError(f"more than {MOST_REDIRECTS} redirects")


def within(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that itself waits without end; TimeoutError if it takes longer."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no token within {seconds:g} s")
    return results[0]


def _body(raw: Any) -> bytes:
    """All of an answer, unless it comes too slowly: timeouts of sockets let a few bytes a second pass."""
    from urllib3.exceptions import HTTPError

    parts, count, start = [], 0, time.monotonic()
    try:
        while part := raw.read1(2**20):
            parts.append(part)
            count += len(part)
            if time.monotonic() - start > SLOW_SECONDS + count / SLOW_BYTES:
                raise OSError(f"it comes too slowly: {count} bytes in {SLOW_SECONDS:g} s")
    except HTTPError as error:
        raise OSError(f"its answer breaks off ({type(error).__name__})") from None
    return b"".join(parts)


class RangeFile(io.RawIOBase):
    """A remote file as one of Python's, read-only: what is read is asked for in blocks, which are kept.

    Parameters
    ----------
    address
        Where its bytes are (http or https; redirects are not followed).
    tag
        Entity tag that it must still have, or empty.

    Notes
    -----
    Not for several threads at once. Reading raises OSError where a server does not answer with exactly the bytes that
    were asked for.
    """

    BLOCK = 2**16
    MOST_BLOCKS = 1024
    """Of :data:`BLOCK` bytes, kept at a time."""

    def __init__(self, address: str, tag: str = "") -> None:
        self._address, self._tag = address, tag
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._place = 0
        self._size: int | None = None
        self._fetch(0, 1)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size or 0}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        """The byte that is read next."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as the file goes."""
        assert self._size is not None
        count = max(min(len(buffer), self._size - self._place), 0)
        self.prefetch([(self._place, count)])
        for first in range(self._place - self._place % self.BLOCK, self._place + count, self.BLOCK):
            block = self._blocks[first // self.BLOCK]
            start, stop = max(first, self._place), min(first + len(block), self._place + count)
            buffer[start - self._place : stop - self._place] = block[start - first : stop - first]
        self._place += count
        return count

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask for what is missing of some ranges (offset and length), neighbours together."""
        wanted = {n for first, count in ranges for n in range(first // self.BLOCK, -(-(first + count) // self.BLOCK))}
        for number in wanted & self._blocks.keys():
            self._blocks.move_to_end(number)
        missing = sorted(wanted - self._blocks.keys())
        for _, run in groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in run]
            self._fetch(numbers[0], numbers[-1] + 1)
        while len(self._blocks) > max(self.MOST_BLOCKS, len(wanted)):
            self._blocks.popitem(last=False)

    def _fetch(self, first: int, last: int) -> None:
        start, stop = first * self.BLOCK, last * self.BLOCK
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if self._tag:
            headers["If-Match"] = self._tag
        options: dict[str, Any] = {"allow_redirects": False, "stream": True, "timeout": _timeout()}
        with _session().get(self._address, headers=headers, **options) as answer:
            if answer.status_code in (429, 503):
                raise Busy(answer.status_code, seconds_asked(answer.headers.get("Retry-After")))
            if answer.status_code != 206:
                raise OSError(f"HTTP response code: {answer.status_code}")
            said = answer.headers.get("Content-Range", "")
            body = _body(answer.raw)
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", said)
        if match is None:
            raise OSError(f"its server sends a part without saying which ({said!r})")
        begin, end, size = (int(number) for number in match.groups())
        if self._size not in (None, size):
            raise OSError(f"it changed while it was read: {self._size} bytes before, {size} now")
        self._size = size
        if begin != start or end + 1 != min(stop, size) or len(body) != end + 1 - begin:
            raise OSError(
                f"its server sends bytes {begin}-{end} of {size}, {len(body)} of them, for {start}-{stop - 1}"
            )
        for number in range(first, last):
            offset = (number - first) * self.BLOCK
            self._blocks[number] = body[offset : offset + self.BLOCK]
