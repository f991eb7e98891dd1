"""What is asked of an image's server before GDAL is: where its bytes are, in which version, and who may read them.

GDAL follows every redirect, ignores ``Retry-After``, and keeps no login: it is only given where redirects end.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import groupby
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urldefrag, urljoin, urlsplit

from stfgan_xr.errors import SourceError

if TYPE_CHECKING:
    from requests import Response

TIMEOUTS = {"GDAL_HTTP_CONNECTTIMEOUT": "20", "GDAL_HTTP_TIMEOUT": "60"}
"""Seconds, by the names of GDAL's own settings, which a user may set in the environment."""
LONGEST_WAIT = 120.0
"""Seconds waited at most because a server asks for it (``Retry-After``)."""
MOST_REDIRECTS, MOST_COOKIES = 10, 100
SLOW_SECONDS, SLOW_BYTES = 30.0, 1000.0
"""An answer that takes longer than this, at so many bytes a second, is given up; GDAL is told the same."""
REFUSAL_SECONDS = 60.0
"""For so long a name and password that were refused are not sent again: services lock accounts after a few tries."""
_SECRET = re.compile(r"\?[^\s'\"]*|(?<=://)[^\s'\"/@]*@|(?<=authorization:).*|(?<=cookie:).*", re.IGNORECASE)
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


def redact(text: str) -> str:
    """A text without what may hold tokens: queries and logins of addresses, and headers of logins.

    >>> redact("https://a.example/b.tif?sig=secret: no such host")
    'https://a.example/b.tif no such host'
    """
    return _SECRET.sub("", text)


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
    except (ValueError, OverflowError):
        return 0.0
    left = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(left.total_seconds(), 0.0), LONGEST_WAIT)


@dataclass(frozen=True)
class Place:
    """Where the bytes of an image are.

    Attributes
    ----------
    address
        Where redirects end, empty if there are none. It may be signed: for opening only, not to be shown or stored.
    tag
        The entity tag, if it identifies the bytes; else empty.
    """

    address: str = field(default="", repr=False)
    tag: str = ""


@dataclass(frozen=True)
class Login:
    """How the servers of a catalog know their users.

    Attributes
    ----------
    host
        Where they send those that are not logged in, which takes a name and a password of ``~/.netrc``; empty: nowhere.
    hint
        What a user has to do.
    token
        Environment variable of a bearer token that may take their place; empty: none.
    token_hosts
        Pattern of the hosts that are sent it.
    """

    host: str = ""
    hint: str = ""
    token: str = ""
    token_hosts: str = ""


NO_LOGIN = Login()


def netrc_file() -> str | None:
    """The user's file of logins, which ``NETRC`` may name."""
    paths = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    return next((path for path in map(os.path.expanduser, paths) if Path(path).is_file()), None)


def _netrc() -> netrc | None:
    found = netrc_file()
    return netrc(found) if found else None


def named(host: str) -> tuple[str, str] | None:
    """Name and password of a host that ``~/.netrc`` names; its ``default`` would go to anybody and counts for none."""
    try:
        known = _netrc()
    except (NetrcParseError, OSError, UnicodeDecodeError):
        return None
    entry = known.hosts.get(host) if known and host != "default" else None
    return (entry[0], entry[2]) if entry else None


def _user_headers() -> dict[str, str]:
    """What the user has GDAL send, such as a bearer token."""
    parts = re.split(r"\r\n|,", os.environ.get("GDAL_HTTP_HEADERS", ""))
    return {name.strip(): value.strip() for name, _, value in (part.partition(":") for part in parts) if value}


def _basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def _token(login: Login, host: str) -> str:
    """The token that a host is sent, or nothing.

    Raises
    ------
    SourceError
        If there is something else in its place, which must not reach a message.
    """
    if not login.token or not fnmatchcase(host, login.token_hosts):
        return ""
    found = os.environ.get(login.token, "").strip()
    if found and not _PRINTABLE.fullmatch(found):
        raise SourceError(f"{login.token} in the environment is no token")
    return found


# ---------------------------------------------------------------- one request

_connections = threading.local()
_COOKIES, _COOKIES_LOCK = CookieJar(), threading.Lock()
"""Logins of this process; each thread has connections of its own, but need not log in again."""


def _session() -> Any:
    import requests

    if not hasattr(_connections, "session"):
        session = requests.Session()
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        _connections.session = session
    return _connections.session


def _timeout() -> tuple[float, ...]:
    """Seconds to connect, and between two answers."""
    return tuple(float(os.environ.get(name, default)) for name, default in TIMEOUTS.items())


def _authorization(address: str) -> dict[str, str]:
    """What a host is sent that ``~/.netrc`` names."""
    known = named(urlsplit(address).hostname or "")
    return _basic(*known) if known else {}


def _ask(address: str, headers: dict[str, str]) -> AbstractContextManager[Response]:
    """The answer to a request: without following redirects and, for servers that send all, without its body."""
    cookies = CookieJar()
    with _COOKIES_LOCK:
        for cookie in _COOKIES:
            cookies.set_cookie(cookie)
    answer: Response = _session().get(
        address,
        headers={"Accept-Encoding": "identity"} | headers,
        cookies=cookies,
        auth=lambda request: request,  # else the default of netrc is sent to any host
        timeout=_timeout(),
        allow_redirects=False,
        stream=True,
    )
    with _COOKIES_LOCK:
        if len(_COOKIES) > MOST_COOKIES:
            _COOKIES.clear()
        for cookie in answer.cookies:
            _COOKIES.set_cookie(cookie)
    return answer


def _found(answer: Response) -> str:
    """The entity tag of an answer of one byte.

    Raises
    ------
    OSError
        If it is another answer.
    """
    status = answer.status_code
    if status in (429, 503):
        raise Busy(status, seconds_asked(answer.headers.get("Retry-After")))
    if status == 200:
        raise OSError("its server sends the whole file instead of the part asked for")
    if status != 206:
        raise OSError(f"HTTP response code: {status}")
    next(answer.iter_content(64), b"")  # else the connection cannot be used again
    tag = str(answer.headers.get("ETag", ""))
    return tag if tag.startswith('"') else ""


# ---------------------------------------------------------------- the way to the bytes


class _LoginAsked(Exception):
    """The way leads to the login; whether in spite of a token."""


_LOGIN_LOCK = threading.Lock()
_REFUSED: dict[str, tuple[tuple[str, str], str, float]] = {}
"""Of each login host the name and password that it refused last, why, and when."""


def look(address: str, allowed: Callable[[str], bool], login: Login = NO_LOGIN) -> Place:
    """Ask for the first byte of an image, wherever redirects lead.

    Parameters
    ----------
    address
        http or https address, signed if its server wants that.
    allowed
        Whether a redirect may lead to an address.
    login
        How its catalog's servers know their users.

    Raises
    ------
    SourceError
        If it redirects to where it may not, or the login fails, with what to do.
    OSError
        If it does not answer with one byte.
    """
    try:
        return _walk(address, allowed, login)
    except _LoginAsked as asked:
        tried = bool(asked.args[0])
    # One at a time: where another thread has logged in meanwhile, its cookie does.
    with _LOGIN_LOCK:
        return _walk(address, allowed, login, _secret(login, redact(address), tried))


def _secret(login: Login, name: str, tried: bool) -> tuple[str, str]:
    """Name and password for a login.

    Raises
    ------
    SourceError
        If there are none, or they were just refused.
    """
    try:
        _netrc()
    except NetrcParseError as error:  # whose own words may be the password
        where = f"{error.filename}, line {error.lineno}"
        raise SourceError(f"{where}: write machine HOST login NAME password WORD") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"the netrc file cannot be read ({type(error).__name__})") from None
    found = named(login.host)
    if found is None:
        why = f"the token of {login.token} is refused" if tried else f"{login.host} asks for a login"
        raise SourceError(f"{name} cannot be read: {why}: {login.hint}")
    refused, why, moment = _REFUSED.get(login.host, (None, "", 0.0))
    if refused == found and time.monotonic() - moment < REFUSAL_SECONDS:
        raise SourceError(f"{name} cannot be read: {why}")
    return found


def _walk(address: str, allowed: Callable[[str], bool], login: Login, secret: tuple[str, str] | None = None) -> Place:
    """Where redirects lead; past the login only with a name and a password for it."""
    place, first, token = address, urlsplit(address), ""
    for _ in range(MOST_REDIRECTS):
        here = urlsplit(place)
        at_login = bool(login.host) and here.hostname == login.host
        if at_login and secret is None:
            raise _LoginAsked(bool(token))
        headers = _user_headers() if here.netloc == first.netloc else {}
        token = "" if at_login else _token(login, here.hostname or "")
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        headers |= _basic(*secret) if at_login and secret else _authorization(place)
        with _ask(place, headers | {"Range": "bytes=0-0"}) as answer:
            if answer.is_redirect:
                place = _next(place, answer, allowed, redact(address))
                continue
            if login.host and (at_login or here.hostname == first.hostname):
                why = _refusal(answer, at_login, login, allowed)
                if why and at_login and secret:
                    _REFUSED[login.host] = secret, why, time.monotonic()
                if why:
                    raise SourceError(f"{redact(address)} cannot be read: {why}")
            tag = _found(answer)
        return Place(str(answer.url) if place != address else "", tag)
    raise OSError(f"more than {MOST_REDIRECTS} redirects")


def _next(place: str, answer: Response, allowed: Callable[[str], bool], name: str) -> str:
    """Where an answer leads."""
    there = urldefrag(urljoin(place, answer.headers["Location"])).url
    if not allowed(there):
        parts = urlsplit(there)
        raise SourceError(
            f"{name} leads to {parts.scheme}://{parts.hostname}, which is not among the hosts of its catalog; "
            "if it should be, add it to hosts"
        )
    return there


def _refusal(answer: Response, at_login: bool, login: Login, allowed: Callable[[str], bool]) -> str:
    """Why an answer means that a server does not know or not want the user, and what to do; else empty."""
    status, host = answer.status_code, urlsplit(str(answer.url)).hostname
    if status not in (401, 403) and not (at_login and status < 429):
        return ""
    if terms := _terms(answer, allowed):
        return f"{host} wants its terms accepted first, at {terms}"
    if at_login and status == 401:
        return f"{host} refuses the login: {login.hint}"
    return f"{host} does not go on (HTTP {status}); the login may be wrong, or terms not accepted: {login.hint}"


def _terms(answer: Response, allowed: Callable[[str], bool]) -> str:
    """Where a user can accept the terms of a server, if it says so as Earthdata does."""
    try:
        found = json.loads(next(answer.iter_content(4096), b"")).get("resolution_url")
    except (ValueError, AttributeError, OSError):
        return ""
    return found if isinstance(found, str) and _PRINTABLE.fullmatch(found) and allowed(found) else ""


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


class _Shared:
    """Blocks of files that state what version they are of, for all readers of a process: each field of a file is
    opened anew, and begins with the same blocks."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._blocks: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()

    def get(self, key: tuple[str, str, int]) -> bytes | None:
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def keep(self, key: tuple[str, str, int], block: bytes) -> None:
        with self._lock:
            self._blocks[key] = block
            while len(self._blocks) > self._most:
                self._blocks.popitem(last=False)


class RangeFile(io.RawIOBase):
    """A remote file as one of Python's, read-only: what is read is asked for in blocks, which are kept.

    Parameters
    ----------
    address
        Where its bytes are (http or https; redirects are not followed).
    tag
        Entity tag that it must still have, or empty.
    name
        What the file is called, whatever its address is signed with.

    Notes
    -----
    Not for several threads at once. Reading raises OSError where a server does not answer with exactly the bytes that
    were asked for.
    """

    BLOCK = 2**16
    MOST_BLOCKS = 1024
    """Of :data:`BLOCK` bytes, kept at a time."""
    SHARED = _Shared(1024)

    def __init__(self, address: str, tag: str = "", name: str = "") -> None:
        self._address, self._tag, self._name = address, tag, name
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
        missing = sorted(number for number in wanted - self._blocks.keys() if not self._take(number))
        for _, run in groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in run]
            self._fetch(numbers[0], numbers[-1] + 1)
        while len(self._blocks) > max(self.MOST_BLOCKS, len(wanted)):
            self._blocks.popitem(last=False)

    def _take(self, number: int) -> bool:
        """Whether another reader has asked for a block before; then it is there."""
        block = self.SHARED.get((self._name, self._tag, number)) if self._name and self._tag else None
        if block is not None:
            self._blocks[number] = block
        return block is not None

    def _fetch(self, first: int, last: int) -> None:
        start, stop = first * self.BLOCK, last * self.BLOCK
        own = urlsplit(self._name).netloc == urlsplit(self._address).netloc  # what the user sends is for that host only
        headers = (_user_headers() if own else {}) | _authorization(self._address)
        headers |= {"Range": f"bytes={start}-{stop - 1}"}
        if self._tag:
            headers["If-Match"] = self._tag
        with _ask(self._address, headers) as answer:
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
            if self._name and self._tag:
                self.SHARED.keep((self._name, self._tag, number), self._blocks[number])
