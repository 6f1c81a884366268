"""``python -m benchmarks.range_server DIR LATENCY_MS``: a web server that answers by range, as late as a distant one.

It prints its port. Paths that begin with ``/bucket/`` are the same files, as S3 clients ask for them; signatures are
ignored. ``/__bytes`` tells how many bytes it has sent. Knows HTTP; knows nothing of what it serves.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit


class RangeServer:
    """Serves the files of a directory.

    Args:
        root: the directory.
        latency: seconds before an answer.
    """

    def __init__(self, root: Path, latency: float) -> None:
        self._root = root.resolve()
        self._latency = latency
        self._sent = 0

    async def serve(self) -> None:
        """Print the port, and answer until the process is ended."""
        server = await asyncio.start_server(self._answer_all, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head.decode("latin-1"), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        name = unquote(urlsplit(target).path).removeprefix("/bucket").lstrip("/")
        if name == "__bytes":
            body = str(self._sent).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        await asyncio.sleep(self._latency)
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root) or not path.is_file():
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        await self._send(path, method, headers, writer)

    async def _send(self, path: Path, method: str, headers: Mapping[str, str], writer: asyncio.StreamWriter) -> None:
        size = path.stat().st_size
        start, stop, status = 0, size, "200 OK"
        if "range" in headers:
            begin, _, end = headers["range"].removeprefix("bytes=").partition("-")
            start, stop = int(begin), min(int(end or size) + 1, size)
            status = f"206 Partial Content\r\nContent-Range: bytes {start}-{stop - 1}/{size}"
        about = f'ETag: "{size}"\r\nLast-Modified: Fri, 27 Nov 2026 00:00:00 GMT\r\nAccept-Ranges: bytes'
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {stop - start}\r\n{about}\r\n\r\n".encode())
        await writer.drain()
        if method == "GET" and stop > start:
            with open(path, "rb") as file:
                await asyncio.get_running_loop().sendfile(writer.transport, file, start, stop - start)
            self._sent += stop - start


if __name__ == "__main__":
    asyncio.run(RangeServer(Path(sys.argv[1]), float(sys.argv[2]) / 1e3).serve())
