"""A server on loopback with files of weights, for tests of downloads."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import xxhash

from cellseg.download import Remote


@dataclass
class Site:
    """What is served, and what was asked for."""

    address: str
    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)

    def remote(self, name: str) -> Remote:
        """A file of the site, with its checksum."""
        checksum = xxhash.xxh128(self.files[name]).hexdigest()
        return Remote(url=f"{self.address}/{name}", name=name, checksum=f"xxh128:{checksum}")


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Site]:
    """Serve files by name, as they are when they are asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            site.asked.append(self.path[1:])
            body = files.get(self.path[1:])
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_address[1]}", files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
