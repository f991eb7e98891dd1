"""A web server of ranges that fails on demand. It runs in a process of its own: GDAL waits for it without letting go.

The first part of a path says how it behaves; FROM and COUNT are requests of that path, counted from 0:

========================  ==============================================================================================
``ok``                    as it should
``fail-STATUS-COUNT``     that status, at first
``late-STATUS-FROM-COUNT``  that status, later
``wait-STATUS-COUNT-S``   that status with ``Retry-After: S``; requests that come before are logged as ``early``
``reset-COUNT``           the connection breaks
``half-COUNT``            half of the body
``hang-FROM-COUNT-S``     no answer for S seconds, then the connection breaks
``drip-FROM-COUNT``       four bytes a second
``garbage-FROM-COUNT``    as many bytes as asked for, but others
``whole-FROM-COUNT``      the range is ignored: 200 and the whole file
``etag-FROM``             from then on the file ``NAME.next`` under another ETag; ``If-Match`` is honoured
``swap-FROM``             the same without any ETag
``to-HOST-PORT``          a redirect to ``ok`` on that host
``then-HOST-PORT-FROM``   the same from then on
``basic``                 401 without name and password of a user
``sig-TOKEN``             403 without that token
``cut-OFFSET``            the connection breaks at that byte of the file
``clock-N-S``             403 without a token of ``/token/...`` that was made less than N seconds ago; each takes S
``login-S``               as Earthdata: a redirect to an address signed for S seconds, for those that are logged in
``random-SEED-PERCENT``   that share of the requests fails, in one of many ways
========================  ==============================================================================================

Each request is one line of the log file: method, path, range, requests under way, seconds, remark. Beside it, in
``LOG.sent``, a line of JSON has the host that was asked and what it was sent to know the user by.

The server is three hosts: images lie on the first, the second knows who may log in (:data:`USERS`), signed addresses are
on the third, which refuses whatever else it is sent.
"""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

SEEN: Counter[str] = Counter()
NOT_BEFORE: dict[str, float] = {}
FAULTS = ("503", "429", "500", "wait", "reset", "half", "slow", "whole")
LOCK = threading.Lock()
DATA, DOOR, SIGNED = HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
USERS = {"ann": "granted", "eve": "no-terms", "bob": "page"}
"""What comes of their logins."""
PASSWORD, BEARER = "canary-word", "canary-bearer"


def spoil(raw: bytes) -> bytes:
    """As many bytes, and none of them right."""
    return bytes(value ^ 0x5A for value in raw)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # otherwise each header is a packet of its own
    folder: Path
    log: Path
    under_way = 0

    def do_GET(self) -> None:
        with LOCK:
            Handler.under_way += 1
            under_way = Handler.under_way
        try:
            self._answer(under_way)
        finally:
            with LOCK:
                Handler.under_way -= 1

    do_HEAD = do_GET

    def _answer(self, under_way: int) -> None:
        parts = urlsplit(self.path)
        with LOCK:
            count = SEEN[parts.path]
            SEEN[parts.path] += 1
        now = time.monotonic()
        remark = "early" if now < NOT_BEFORE.get(parts.path, 0) - 0.05 else "-"
        with LOCK, self.log.open("a") as log:
            log.write(f"{self.command} {self.path} {self.headers.get('Range')} {under_way} {now:.2f} {remark}\n")
        self._note()
        if parts.path in ("/oauth/authorize", "/login"):
            return self._authorize(parts.query) if parts.path != "/login" else self._login(parts.query)
        _, behaviour, name = parts.path.split("/", 2)
        if behaviour == "token":
            return self._token()
        kind, *numbers = behaviour.split("-")
        if kind == "random":
            kind, numbers, count = self._chance(int(numbers[0]), int(numbers[1]), parts.path, count)
        status = 200 if (self.folder / name).is_file() else 404
        first = int(numbers[0]) if numbers and numbers[0].isdigit() else 0
        inside = len(numbers) > 1 and numbers[1].isdigit() and first <= count < first + int(numbers[1])
        if kind == "reset" and count < first:
            return self._break()
        if kind == "hang" and inside:
            time.sleep(float(numbers[2]))
            return self._break()
        if kind in ("slow", "clock"):
            time.sleep(float(numbers[-1]))
        if kind in ("fail", "wait") and count < int(numbers[1]):
            status = first
        if kind == "late" and int(numbers[1]) <= count < int(numbers[1]) + int(numbers[2]):
            status = first
        if kind == "sig" and f"sig={numbers[0]}" not in parts.query:
            status = 403
        if kind == "clock" and not self._is_fresh(parts.query, float(numbers[0])):
            status = 403
        if kind == "basic" and self._user() is None:
            status = 401
        if kind == "login":
            return self._protected(behaviour, name)
        if kind == "signed" and (self.command == "HEAD" or not self._may(parts.query)):
            return self._send(403, b"", {})
        if kind == "to" or (kind == "then" and count >= int(numbers[2])):
            return self._send(302, b"", {"Location": f"http://{numbers[0]}:{numbers[1]}/ok/{name}"})
        if status != 200:
            if kind == "wait":
                NOT_BEFORE[parts.path] = now + float(numbers[2])
            return self._send(status, b"", {"Retry-After": numbers[2]} if kind == "wait" else {})
        tag, raw = {"etag": '"0"'}.get(kind), (self.folder / name).read_bytes()
        if kind in ("etag", "swap") and count >= first:
            tag, raw = tag and '"1"', (self.folder / f"{name}.next").read_bytes()
        if tag and self.headers.get("If-Match", tag) != tag:
            return self._send(412, b"", {"ETag": tag})
        body, status, headers = self._part(raw, kind == "whole" and inside)
        headers |= {"ETag": tag} if tag else {}
        if kind == "drip" and inside:
            return self._drip(status, body, headers)
        if kind == "cut":
            return self._cut(status, body, headers, first)
        wrong = kind == "garbage" and inside
        return self._send(status, spoil(body) if wrong else body, headers, kind == "half" and count < first)

    def _chance(self, seed: int, percent: int, path: str, count: int) -> tuple[str, list[str], int]:
        """What happens to a request does not depend on the order that requests of several files come in."""
        rng = random.Random(f"{seed} {path} {count}")
        if rng.random() * 100 >= percent:
            return "ok", [], 0
        fault = rng.choice(FAULTS)
        made = {"wait": ["503", "1", "1"], "reset": ["1"], "half": ["1"], "whole": ["0", "1"], "slow": ["0.2"]}
        return (fault, made[fault], 0) if fault in made else ("fail", [fault, "1"], 0)

    def _token(self) -> None:
        """A token as the Planetary Computer gives them; it states an hour, whatever its readers think of it."""
        expiry = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        token = f"se={expiry}&sig=canary{time.time():.3f}"
        self._send(200, json.dumps({"msft:expiry": expiry, "token": token}).encode(), {})

    # ------------------------------------------------------------ logins, as those of Earthdata

    def _host(self) -> str:
        return (self.headers.get("Host") or "").partition(":")[0]

    def _note(self) -> None:
        sent = {name.lower(): self.headers.get(name) for name in ("Authorization", "Cookie", "X-Secret")}
        line = json.dumps({"host": self._host(), "method": self.command, "path": self.path, **sent})
        with LOCK, Path(f"{self.log}.sent").open("a") as file:
            file.write(f"{line}\n")

    def _on(self, host: str, path: str) -> str:
        return f"http://{host}:{self.server.server_address[1]}/{path}"

    def _protected(self, behaviour: str, name: str) -> None:
        """On the host of images: on to the signed address, to the login, or to the terms."""
        if "session=no-terms" in self.headers.get("Cookie", ""):
            body = {"error_description": "EULA Acceptance Failure", "resolution_url": self._on(DOOR, "terms?client=1")}
            return self._send(403, json.dumps(body).encode(), {})
        if (
            "session=granted" in self.headers.get("Cookie", "")
            or self.headers.get("Authorization") == f"Bearer {BEARER}"
        ):
            seconds = behaviour.partition("-")[2]
            end = time.time() + float(seconds)
            there = self._on(SIGNED, f"signed-{seconds}/{name}?Expires={end}&Signature=canary-{end}")
            return self._send(303, b"", {"Location": there})
        state = urlencode({"client": 1, "state": f"{behaviour}/{name}"})
        return self._send(302, b"", {"Location": self._on(DOOR, f"oauth/authorize?{state}")})

    def _user(self) -> str | None:
        scheme, _, word = self.headers.get("Authorization", "").partition(" ")
        name, _, password = base64.b64decode(word).decode().partition(":") if scheme == "Basic" else ("", "", "")
        return name if name in USERS and password == PASSWORD else None

    def _authorize(self, query: str) -> None:
        """On the host of logins."""
        name = self._user()
        if name is None or self._host() != DOOR:
            return self._send(401, b"HTTP Basic: Access denied.", {"WWW-Authenticate": 'Basic realm="door"'})
        if USERS[name] == "page":
            return self._send(200, b"<html>Log in</html>", {})
        back = urlencode({"code": f"canary-{USERS[name]}", "state": parse_qs(query)["state"][0]})
        return self._send(302, b"", {"Location": self._on(DATA, f"login?{back}")})

    def _login(self, query: str) -> None:
        """On the host of images again."""
        found = parse_qs(query)
        cookie = f"session={found['code'][0].removeprefix('canary-')}; Path=/; HttpOnly"
        self._send(301, b"", {"Location": self._on(DATA, found["state"][0]), "Set-Cookie": cookie})

    def _may(self, query: str) -> bool:
        end = float((parse_qs(query).get("Expires") or ["0"])[0])
        known = any(self.headers.get(name) for name in ("Authorization", "Cookie", "X-Secret"))
        return f"canary-{end}" in query and time.time() < end and not known and self._host() == SIGNED

    def _is_fresh(self, query: str, seconds: float) -> bool:
        made = (parse_qs(query).get("sig") or ["canary0"])[0].removeprefix("canary")
        return time.time() - float(made) < seconds

    def _part(self, raw: bytes, ignore: bool) -> tuple[bytes, int, dict[str, str]]:
        match = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not match or ignore:
            return raw, 200, {"Accept-Ranges": "bytes"}
        first, last = int(match[1]), min(int(match[2] or len(raw)), len(raw) - 1)
        if first > last:
            return b"", 416, {"Content-Range": f"bytes */{len(raw)}"}
        return raw[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(raw)}"}

    def _head(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str], half: bool = False) -> None:
        self._head(status, body, headers)
        if self.command != "HEAD":
            self._write(body[: len(body) // 2] if half else body)
        if half:
            self.close_connection = True

    def _drip(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, body, headers)
        for start in range(0, len(body) if self.command != "HEAD" else 0, 4):
            if not self._write(body[start : start + 4]):
                return
            time.sleep(1)

    def _cut(self, status: int, body: bytes, headers: dict[str, str], offset: int) -> None:
        """As much of a body as lies before a byte of the file."""
        start = int(re.findall(r"\d+", headers.get("Content-Range", "0"))[0])
        self._head(status, body, headers)
        if self.command != "HEAD":
            self._write(body[: max(offset - start, 0)])
            self.close_connection |= start + len(body) > offset

    def _write(self, raw: bytes) -> bool:
        try:
            self.wfile.write(raw)
            self.wfile.flush()
        except OSError:  # the client gave up, as it should
            self.close_connection = True
            return False
        return True

    def _break(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that give up are what it is for."""


@dataclass(frozen=True)
class Server:
    """A server that runs, as its users see it."""

    port: int
    log: Path

    def url(self, path: str, host: str = DATA) -> str:
        return f"http://{host}:{self.port}/{path}"

    def sent(self, host: str = "") -> list[dict[str, str | None]]:
        """What each request of a host was sent to know the user by."""
        path = Path(f"{self.log}.sent")
        found = map(json.loads, path.read_text().splitlines() if path.is_file() else ())
        return [request for request in found if not host or request["host"] == host]

    def requests(self, path: str = "") -> list[str]:
        lines = self.log.read_text().splitlines()
        return [line for line in lines if not path or f" /{path} " in line or f" /{path}?" in line]


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[Server]:
    """A server of the files of a folder, in a process of its own."""
    log.touch()
    command = [sys.executable, str(Path(__file__).resolve()), str(folder), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()), log)
        finally:
            process.kill()


if __name__ == "__main__":
    Handler.folder, Handler.log = Path(sys.argv[1]), Path(sys.argv[2])
    first = Listener((DATA, 0), Handler)
    port = first.server_address[1]
    for other in HOSTS[1:]:
        threading.Thread(target=Listener((other, port), Handler).serve_forever, daemon=True).start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    first.serve_forever()
