"""What is asked of an image's server before GDAL is: GDAL follows every redirect and ignores ``Retry-After``."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

from stfgan_xr.errors import SourceError

TIMEOUTS = {"GDAL_HTTP_CONNECTTIMEOUT": "20", "GDAL_HTTP_TIMEOUT": "60"}
"""Seconds, by the names of GDAL's own settings, which a user may set in the environment."""
LONGEST_WAIT = 120.0
"""Seconds waited at most because a server asks for it (``Retry-After``)."""
MOST_REDIRECTS = 10
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
    """What a ``Retry-After`` header asks for, up to a limit; 0 if it states no seconds."""
    return min(float(header), LONGEST_WAIT) if header and header.strip().isdigit() else 0.0


_connections = threading.local()


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
    import requests

    if not hasattr(_connections, "session"):
        _connections.session = requests.Session()
    first, common = urlsplit(address).netloc, {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
    timeout = tuple(float(os.environ.get(name, default)) for name, default in TIMEOUTS.items())
    place = address
    for _ in range(MOST_REDIRECTS):
        headers = common | (_user_headers() if urlsplit(place).netloc == first else {})
        # Neither redirects nor bodies: a server that ignores the range would send the whole image.
        options: dict[str, Any] = {"allow_redirects": False, "stream": True, "timeout": timeout}
        with _connections.session.get(place, headers=headers, **options) as answer:
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
