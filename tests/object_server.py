"""An object store with S3's requests in a thread of this process, which fails as a test asks it to."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
DENIED = "<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>{key}</AWSAccessKeyId></Error>"
Fault = Callable[[str, str], str | None]


def always(fault: str, method: str, key: str, times: int = 10**6) -> Fault:
    """A fault of the first requests whose method and key are these (patterns)."""
    left = [times]

    def found(asked: str, name: str) -> str | None:
        if left[0] and re.fullmatch(method, asked) and re.search(key, name):
            left[0] -= 1
            return fault
        return None

    return found


@dataclass
class Objects:
    """What is stored, what was asked, and how the next request is to fail: a status, ``cut``, ``reset`` or ``hang``."""

    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    fault: Fault = lambda method, key: None
    secret: str = ""
    conditional: bool = True
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    objects: Objects
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # an answer in one piece: else each waits for an acknowledgement

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(self.objects.stored.get(self.key)):x}"')
        self.send_header("Last-Modified", "Wed, 25 Nov 2026 12:00:00 GMT")
        if status == 206:
            self.send_header("Content-Range", self.range)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def _error(self, status: int, code: str) -> None:
        self._answer(status, DENIED.format(key=self.objects.secret).replace("InvalidAccessKeyId", code).encode())

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        self.key = key
        query = parse_qs(url.query, keep_blank_values=True)
        self.objects.requests.append((self.command, key))
        fault = self.objects.fault(self.command, key)
        if fault == "reset":
            self.close_connection = True
        elif fault == "hang":
            time.sleep(0.5)
            self.close_connection = True
        elif fault and fault.isdecimal():
            self._error(int(fault), {"403": "InvalidAccessKeyId", "404": "NoSuchKey"}.get(fault, "SlowDown"))
        elif bucket != BUCKET:
            self._error(404, "NoSuchBucket")
        else:
            getattr(self, f"_{self.command.lower()}")(key, query, body, fault == "cut")

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _do

    def _put(self, key: str, query: dict[str, list[str]], body: bytes, cut: bool) -> None:
        if self.objects.conditional and self.headers.get("If-None-Match") == "*" and key in self.objects.stored:
            self._error(412, "PreconditionFailed")
            return
        self.objects.stored[key] = body
        self._answer(200)

    def _delete(self, key: str, query: dict[str, list[str]], body: bytes, cut: bool) -> None:
        self.objects.stored.pop(key, None)
        self._answer(204)

    def _post(self, key: str, query: dict[str, list[str]], body: bytes, cut: bool) -> None:
        gone = re.findall(r"<Key>(.*?)</Key>", body.decode())
        for name in gone:
            self.objects.stored.pop(name, None)
        deleted = "".join(f"<Deleted><Key>{escape(name)}</Key></Deleted>" for name in gone)
        self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def _get(self, key: str, query: dict[str, list[str]], body: bytes, cut: bool) -> None:
        if not key:
            self._list(query)
        elif key not in self.objects.stored:
            self._error(404, "NoSuchKey")
        elif asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            whole = self.objects.stored[key]
            first, last = asked.groups()
            start = int(first) if first else max(len(whole) - int(last), 0)
            stop = min(int(last) + 1, len(whole)) if first and last else len(whole)
            self.range = f"bytes {start}-{stop - 1}/{len(whole)}"
            self._answer(206, whole[start:stop], cut)
        else:
            self._answer(200, self.objects.stored[key], cut)

    _head = _get

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        keys, folders = [], set()
        for key in sorted(self.objects.stored):
            if key.startswith(prefix):
                head, found, _ = key[len(prefix) :].partition("/") if delimiter else (key, "", "")
                if found:
                    folders.add(f"{prefix}{head}/")
                else:
                    keys.append(key)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-25T12:00:00.000Z</LastModified>"
            f"<ETag>a</ETag><Size>{len(self.objects.stored[key])}</Size></Contents>"
            for key in keys
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        )
        self._answer(200, f"<ListBucketResult>{contents}{common}</ListBucketResult>".encode())


@contextmanager
def serving() -> Iterator[Objects]:
    """The store, while it runs."""
    objects = Objects()
    handler = type("Handler", (_Handler,), {"objects": objects})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    objects.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
