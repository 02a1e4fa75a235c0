"""Stores on loopback for tests: one that speaks S3, and a plain web server; and who asks what."""

from __future__ import annotations

import contextlib
import functools
import http.server
import logging
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BUCKET = "bucket"


@dataclass
class Requests:
    """What is asked of any server, in order: method and address without the host."""

    made: list[tuple[str, str]] = field(default_factory=list)

    def of(self, method: str, ending: str = "") -> list[str]:
        return [url for how, url in self.made if how == method and url.endswith(ending)]


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server, with credentials in the environment and one bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host.replace('0.0.0.0', '127.0.0.1')}:{port}"
    reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # what another server of this process was given
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        forget()
        files().mkdir(BUCKET)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop()
            forget()


def forget() -> None:
    """Let nothing go on with an endpoint of before."""
    import s3fs

    from cellseg import remote
    from cellseg.readers import zarr_array

    remote.filesystem.cache_clear()
    zarr_array._opened_at.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def files(address: str = f"s3://{BUCKET}") -> Any:
    """The store of an address, without caches."""
    import fsspec

    return fsspec.filesystem(address.partition("://")[0], use_listings_cache=False)


def upload(path: Path, name: str = "", base: str = f"s3://{BUCKET}") -> str:
    """Put a folder into a store; its address."""
    where, store = f"{base}/{name or path.name}", files(base)
    for file in path.rglob("*"):
        if file.is_file():
            store.pipe_file(f"{where}/{file.relative_to(path).as_posix()}", file.read_bytes())
    return where


def below(where: object) -> dict[str, bytes]:
    """All files below an address, by what comes after it."""
    store = files(str(where))
    start = store._strip_protocol(str(where)).rstrip("/") + "/"
    found = [key for key in store.find(start.rstrip("/")) if key.startswith(start)]
    return {key.removeprefix(start): store.cat_file(key) for key in found}


@contextlib.contextmanager
def counted() -> Iterator[Requests]:
    """Notes each request of this process."""
    import aiohttp

    requests = Requests()
    ask = aiohttp.ClientSession._request

    async def asked(self: Any, method: str, url: Any, **more: Any) -> Any:
        requests.made.append((method, "/" + str(url).split("/", 3)[3]))
        return await ask(self, method, url, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiohttp.ClientSession, "_request", asked)
        yield requests


@dataclass
class Site:
    """A plain web server: no listings, no parts of files."""

    root: Path
    address: str = ""
    asked: list[str] = field(default_factory=list)
    broken: int = 0
    """How many of the next requests get an error 503."""
    forbidden: str = ""
    """Files whose path has this in it get an error 403, and those that are not there, too."""
    cut: str = ""
    """Of files whose path has this in it, only the half is sent."""


@contextlib.contextmanager
def web_site(root: Path) -> Iterator[Site]:
    """Serve a folder on loopback."""
    site = Site(root)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            file = Path(self.translate_path(self.path))
            if site.broken:
                site.broken -= 1
                self.send_error(503)
            elif site.forbidden and (site.forbidden in self.path or not file.is_file()):
                self.send_error(403)
            elif file.is_dir():
                self.send_error(404)
            elif site.cut and site.cut in self.path:
                content = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
