"""A web server of ranges that fails on demand. It runs in a process of its own: GDAL waits for it without letting go.

The first part of a path says how it behaves: ``ok``, ``fail-503-2`` (the first two requests), ``late-503-1-9`` (nine
requests after the first), ``reset-1`` (the connection breaks), ``half-1`` (half of the body), ``sig-new`` (403 without
that token). Each request is one line of the log file.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

SEEN: Counter[str] = Counter()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    log: Path

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        _, behaviour, name = parts.path.split("/", 2)
        count = SEEN[parts.path]
        SEEN[parts.path] += 1
        with self.log.open("a") as log:
            log.write(f"{self.command} {self.path} {self.headers.get('Range')}\n")
        kind, *numbers = behaviour.split("-")
        if kind == "reset" and count < int(numbers[0]):
            self.close_connection = True
            return self.connection.close()
        status = 200
        if kind == "fail" and count < int(numbers[1]):
            status = int(numbers[0])
        if kind == "late" and int(numbers[1]) <= count < int(numbers[1]) + int(numbers[2]):
            status = int(numbers[0])
        if kind == "sig" and f"sig={numbers[0]}" not in parts.query:
            status = 403
        if status == 200 and not (self.folder / name).is_file():
            status = 404
        if status != 200:
            return self._send(status, b"", {})
        return self._part((self.folder / name).read_bytes(), kind == "half" and count < int(numbers[0]))

    do_HEAD = do_GET

    def _part(self, raw: bytes, half: bool) -> None:
        match = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not match:
            return self._send(200, raw, {"Accept-Ranges": "bytes"}, half)
        first, last = int(match[1]), min(int(match[2] or len(raw)), len(raw) - 1)
        if first > last:
            return self._send(416, b"", {"Content-Range": f"bytes */{len(raw)}"})
        span = {"Content-Range": f"bytes {first}-{last}/{len(raw)}"}
        return self._send(206, raw[first : last + 1], span, half)

    def _send(self, status: int, body: bytes, headers: dict[str, str], half: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Handler.folder, Handler.log = Path(sys.argv[1]), Path(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
