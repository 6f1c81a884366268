"""A web server on this machine for tests, with ranges, counts and faults on demand; it also speaks enough of S3."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = Callable[[str, int, int], "int | str | None"]


class Loopback:
    """Serves `files` (path without its first slash → bytes) until it is closed.

    Attributes:
        url: where it is, without a last slash.
        files: what it serves; may be changed at any time.
        requests: (method, path, first byte, last byte) of every request; the bytes of a GET with a range only.
        fault: asked before every GET of a file with (path, number of this GET from 0, bytes wanted): a status to answer
            instead, "drop" to cut the connection in mid-body, "short" to end the body early but properly, "flip" to
            turn a bit over, "other" to answer with another range, "hang" to send nothing, "trickle" to send a byte now
            and then, or None.
        ranges: "yes", "no" (ignored, as by Python's own server) or "refused" (says so).
        tags: whether it tells ETag and Last-Modified.
        password: "user:password" that must be given, or None.
    """

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = files or {}
        self.requests: list[tuple[str, str, int | None, int | None]] = []
        self.fault: Fault | None = None
        self.ranges = "yes"
        self.tags = True
        self.retry_after: str | None = None
        self.queries: list[str] = []
        self.closed = threading.Event()
        self.connections: set[socket.socket] = set()
        self._gets = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def gets(self) -> list[tuple[int, int]]:
        """Ranges asked for: (first byte, last byte)."""
        return [(a, b) for method, _, a, b in self.requests if method == "GET" and a is not None and b is not None]

    def next_fault(self, path: str, wanted: int) -> int | str | None:
        """What goes wrong with this GET."""
        with self._lock:
            number, self._gets = self._gets, self._gets + 1
        return self.fault(path, number, wanted) if self.fault else None

    def close(self) -> None:
        """Ends it, and the connections that clients keep."""
        self.closed.set()
        self._server.shutdown()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    server_of: Loopback
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one piece
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.server_of.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.server_of.connections.discard(self.request)

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        owner, parts = self.server_of, urlsplit(self.path)
        path, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(found[1]), int(found[2] or 0)) if found else (None, None)
        owner.requests.append((self.command, path, first, last))
        owner.queries.append(parts.query)
        if "list-type" in query or "delimiter" in query:
            return self._send(200, _listing(owner.files, path.strip("/"), query), {"Content-Type": "application/xml"})
        if path not in owner.files:
            return self._directory(path)
        whole = owner.files[path]
        body, status = whole, 200
        headers = {"Content-Type": "application/octet-stream"}
        if owner.tags:
            headers |= {"ETag": f'"{hashlib.md5(whole).hexdigest()}"', "Last-Modified": formatdate(0, usegmt=True)}
        if owner.ranges == "yes":
            headers["Accept-Ranges"] = "bytes"
            if found and first is not None and last is not None:
                last = min(last or len(whole) - 1, len(whole) - 1)
                body, status = whole[first : last + 1], 206
                headers["Content-Range"] = f"bytes {first}-{last}/{len(whole)}"
        elif owner.ranges == "refused":
            headers["Accept-Ranges"] = "none"
        if head:
            return self._send(200, whole, headers, head=True)
        is_other = self.headers.get("If-Match", headers.get("ETag")) != headers.get("ETag")
        self._send_with(412 if is_other else owner.next_fault(path, len(body)), status, body, headers)

    def _send_with(self, fault: int | str | None, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send an answer with something wrong in it."""
        retry_after = self.server_of.retry_after
        if isinstance(fault, int):
            return self._send(fault, b"no", {"Retry-After": retry_after} if retry_after else {})
        if fault in ("hang", "trickle"):
            return self._dawdle(status, body, headers, fault)
        if fault == "short":
            body = body[: len(body) // 2]
        elif fault == "flip":
            body = bytes([*body[:-1], body[-1] ^ 1])
        elif fault == "other" and "Content-Range" in headers:
            headers["Content-Range"] = re.sub(r"\d+", lambda found: str(int(found[0]) + 1), headers["Content-Range"])
        self._send(status, body, headers, drop=fault == "drop")

    def _dawdle(self, status: int, body: bytes, headers: dict[str, str], fault: str) -> None:
        """Send nothing, or a byte now and then, until the server is closed or the client hangs up."""
        closed, sent = self.server_of.closed, 0
        if fault == "trickle":
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
        while not closed.wait(0.05) and fault == "trickle" and sent < len(body):
            self.wfile.write(body[sent : sent + 1])
            self.wfile.flush()
            sent += 1
        self.close_connection = True

    def _directory(self, path: str) -> None:
        inside = path.rstrip("/") + "/" if path.strip("/") else ""
        names = sorted({name[len(inside) :].partition("/") for name in self.server_of.files if name.startswith(inside)})
        links = "".join(f'<a href="{name}{slash}">{name}</a>\n' for name, slash, _ in names)
        if not links:
            return self._send(404, b"none", {})
        self._send(200, links.encode(), {"Content-Type": "text/html"}, head=self.command == "HEAD")

    def _send(self, status: int, body: bytes, headers: dict[str, str], head: bool = False, drop: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if head or self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 3] if drop else body)
        if drop:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def _listing(files: dict[str, bytes], bucket: str, query: dict[str, list[str]]) -> bytes:
    """What S3 answers to ListObjectsV2."""
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    keys = sorted(name[len(bucket) + 1 :] for name in files if name.startswith(f"{bucket}/{prefix}"))
    below = {key: delimiter and delimiter in key[len(prefix) :] for key in keys}
    parents = sorted({prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter for key in keys if below[key]})
    told = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(files[f'{bucket}/{key}'])}</Size>"
        f"<LastModified>2024-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass>"
        f"<ETag>&quot;{hashlib.md5(files[f'{bucket}/{key}']).hexdigest()}&quot;</ETag></Contents>"
        for key in keys
        if not below[key]
    ) + "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in parents)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys)}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{told}</ListBucketResult>"
    ).encode()
