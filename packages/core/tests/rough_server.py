"""A server on loopback that misbehaves as told, for tests of downloads."""

from __future__ import annotations

import gzip
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

BODY = np.random.default_rng(0).integers(0, 256, 3_500_000, np.uint8).tobytes()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``body`` at every path but those in ``files`` and ``moved``.

    What goes wrong is asked of ``plan``, one word a request:

    * a number: this answer, with Retry-After if ``retry_after`` says how long.
    * ``cut``: half of the rest comes. ``corrupt``: one bit is wrong. ``shift``: another part.
    * ``silent``: no length is told. ``chunked``: neither, but the end is. ``cut-chunked``: not even
      that.
    * ``gzip``: packed, though nobody asked. ``stall``: half, and then nothing for ``seconds``.
    * ``long``: ten bytes more than promised. ``short``: ten bytes fewer than promised.
    * ``slow``: after ``seconds``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.files: dict[str, bytes] = {}
        self.moved: dict[str, str] = {}
        self.plan: list[str] = []
        self.etag = '"one"'
        self.ranges = True
        self.retry_after = ""
        self.seconds = 0.5
        self.token = ""
        """Asked for, unless empty."""
        self.seen: list[dict[str, str]] = []
        """The headers of each request, and its path."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def elsewhere(self) -> str:
        """The same server under another name."""
        return f"http://localhost:{self.server_address[1]}"

    def asked(self, name: str) -> int:
        """How often a file was asked for."""
        return sum(seen["path"] == f"/{name}" for seen in self.seen)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.seen.append({**headers, "path": self.path})
        if self.path in server.moved:
            self._answer(302, {"Location": server.moved[self.path]})
            return
        fault = server.plan.pop(0) if server.plan else ""
        if fault.isdecimal():
            self._answer(int(fault), {"Retry-After": server.retry_after})
            return
        if server.token and headers.get("authorization") != f"Bearer {server.token}":
            self._answer(401)
            return
        if server.files and self.path[1:] not in server.files:
            self._answer(404)
            return
        if fault == "slow":
            time.sleep(server.seconds)
        self._send(fault, server.files.get(self.path[1:], server.body))

    def _answer(self, code: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, fault: str, body: bytes) -> None:
        server, start = self.server, 0
        asked = self.headers.get("Range", "")
        fresh = self.headers.get("If-Range", server.etag) == server.etag
        if asked and server.ranges and fresh:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self._answer(416, {"Content-Range": f"bytes */{len(body)}"})
                return
            self.send_response(206)
            shift = 7 if fault == "shift" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        rest = body[start:]
        if fault == "gzip":
            rest = gzip.compress(rest[:1000])
            self.send_header("Content-Encoding", "gzip")
        if fault.endswith("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
        elif fault != "silent":
            length = len(rest) + {"long": -10, "short": 10}.get(fault, 0)
            self.send_header("Content-Length", str(length))
        self.close_connection = fault in ("silent", "long", "short", "cut-chunked")
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            time.sleep(server.seconds if fault == "stall" else 0)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault == "corrupt":
            self.wfile.write(rest[:-1] + bytes([rest[-1] ^ 1]))
        elif fault.endswith("chunked"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(rest), rest))
            self.wfile.write(b"0\r\n\r\n" if fault == "chunked" else b"")
        else:
            self.wfile.write(rest)


@contextmanager
def started() -> Iterator[Server]:
    """A server that runs until the end of the block."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
