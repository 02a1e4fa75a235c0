"""What servers, disks and settings do wrong, and what a download says of it."""

from __future__ import annotations

import errno
import hashlib
import urllib.request
from collections.abc import Iterator
from http.client import HTTPMessage
from pathlib import Path

import pytest
from rough_server import BODY, Server, started

from cellseg.download import Fetched, Remote, Settings, environment, fetch, offline
from cellseg.download import transfer as transfer_module
from cellseg.download.remote import Checksum
from cellseg.errors import CellsegError, ConfigError, DataError, StorageError, WeightsError
from cellseg.events import Event, Note, Progress

SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
QUICK = Settings(pause=0.01, timeout=5, retries=2)


def ignored(event: Event) -> None:
    """Where nobody looks."""


@pytest.fixture
def server() -> Iterator[Server]:
    with started() as made:
        yield made


def get(server: Server, folder: Path, settings: Settings = QUICK, **changes: object) -> Fetched:
    values = {"url": f"{server.url}/a", "name": "a", "checksum": SHA256, **changes}
    got = fetch(Remote(**values), folder, settings, ignored)
    assert got.path.read_bytes() == server.body
    assert [path.name for path in folder.iterdir()] == ["a"], "nothing is left behind"
    return got


def refused(server: Server, folder: Path, words: str, **changes: object) -> CellsegError:
    with pytest.raises(DataError, match=words) as error:
        get(server, folder, **changes)
    assert not (folder / "a").exists()
    return error.value


def test_a_server_that_falls_silent_is_given_up_and_asked_again(server, tmp_path) -> None:
    server.plan, server.seconds = ["stall"], 5
    get(server, tmp_path, Settings(pause=0.01, timeout=0.3))
    assert server.seen[-1]["range"] == f"bytes={len(BODY) // 2}-"


def test_a_slow_server_is_waited_for(server, tmp_path) -> None:
    server.plan, server.seconds = ["slow"], 0.4
    get(server, tmp_path)
    assert len(server.seen) == 1


def test_a_file_that_comes_packed_is_refused(server, tmp_path) -> None:
    server.plan = ["gzip"] * 9
    refused(server, tmp_path, "packed .gzip., which was not asked for", checksum="")
    assert list(tmp_path.iterdir()) == [] and len(server.seen) == 1


def test_a_promise_of_too_much_is_a_cut_that_ends(server, tmp_path) -> None:
    """It has all there is, and asks for the rest; the server says that there is none."""
    server.plan = ["short"]
    get(server, tmp_path)
    assert server.seen[-1]["range"] == f"bytes={len(BODY)}-"


def test_more_than_was_promised_is_not_taken(server, tmp_path) -> None:
    server.plan = ["long"]
    refused(server, tmp_path, r"its SHA256 is [0-9a-f]{64} instead of")
    assert list(tmp_path.iterdir()) == []


def test_more_than_is_expected_ends_at_once(server, tmp_path) -> None:
    server.plan = ["silent"]
    refused(server, tmp_path, "more than the 1000000 bytes that are expected", size=1_000_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["silent", "cut-chunked"])
def test_without_a_length_a_checksum_must_tell_whether_it_is_whole(
    server, tmp_path, fault: str
) -> None:
    server.plan, server.etag = [fault] * 9, ""
    words = "does not say how long" if fault == "silent" else "cannot be downloaded"
    refused(server, tmp_path, words, checksum="")
    server.plan = [fault]
    get(server, tmp_path)


def test_a_chunked_file_is_whole_when_its_end_came(server, tmp_path) -> None:
    server.plan = ["chunked"]
    assert get(server, tmp_path, checksum="").compared is False


def test_a_pause_that_the_server_asks_for_is_made(server, tmp_path, monkeypatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    server.plan, server.retry_after = ["429", "503"], "7"
    events: list[Event] = []
    remote = Remote(url=f"{server.url}/a", name="a", checksum=SHA256)
    fetch(remote, tmp_path, QUICK, events.append)
    assert slept == [7, 7]
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "429 Too Many Requests; trying again in 7 s" in notes[0]


def test_a_very_long_pause_is_cut(server, tmp_path, monkeypatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    server.plan, server.retry_after = ["503"], "86400"
    get(server, tmp_path)
    assert slept == [60]


def test_redirects_are_followed_but_not_in_circles(server, tmp_path) -> None:
    server.moved = {"/a": "/b", "/b": f"{server.elsewhere}/c"}
    get(server, tmp_path)
    assert [seen["path"] for seen in server.seen] == ["/a", "/b", "/c"]
    server.moved = {"/a": "/b", "/b": "/a"}
    (tmp_path / "a").unlink()
    refused(server, tmp_path, "redirected in circles")
    assert server.plan == []


def test_a_redirect_to_what_is_no_address_is_refused(server, tmp_path) -> None:
    server.moved = {"/a": "http://[broken/a"}
    refused(server, tmp_path, "redirected to, is none")


def test_a_network_that_is_gone_is_tried_again(server, tmp_path, monkeypatch) -> None:
    from http.client import HTTPResponse

    read, left = HTTPResponse.read1, [OSError(errno.ENETUNREACH, "Network is unreachable")]

    def broken(self: HTTPResponse, size: int) -> bytes:
        if left and size:
            raise left.pop()
        return read(self, size)

    monkeypatch.setattr(HTTPResponse, "read1", broken)
    get(server, tmp_path)
    assert len(server.seen) == 2


def test_a_redirect_from_https_to_http_is_refused() -> None:
    request = urllib.request.Request("https://data.invalid/a")
    with pytest.raises(Exception, match="which is not secure"):
        transfer_module._Redirects().redirect_request(
            request, None, 302, "Found", HTTPMessage(), "http://data.invalid/a"
        )


def test_a_full_disk_leaves_a_part_to_go_on_from(server, tmp_path, monkeypatch) -> None:
    """The room was there when it was asked for, and is gone when it is needed."""
    write = transfer_module.Meter.at

    def full(meter: object, size: int) -> None:
        write(meter, size)
        if size > 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(transfer_module.Meter, "at", full)
        with pytest.raises(StorageError, match=r"a: cannot be written: the disk is full"):
            get(server, tmp_path)
    assert not (tmp_path / "a").exists()
    assert {path.name for path in tmp_path.iterdir()} == {".part-a", ".part-a.json"}
    get(server, tmp_path)
    assert "range" in server.seen[-1], "what had come is not fetched again"


def test_all_checksums_must_be_right(server, tmp_path) -> None:
    both = f"{SHA256} md5:{MD5} md5-prefix:{MD5[:6]}"
    assert get(server, tmp_path, checksum=both).compared
    (tmp_path / "a").unlink()
    refused(server, tmp_path, "its MD5 is", checksum=f"{SHA256} md5:{'0' * 32}")
    words = f"its MD5 {MD5} does not start with 000000"
    refused(server, tmp_path, words, checksum=f"{SHA256} md5-prefix:000000")
    assert list(tmp_path.iterdir()) == []


def test_a_few_digits_find_damage_but_prove_nothing(server, tmp_path) -> None:
    got = get(server, tmp_path, checksum=f"md5-prefix:{MD5[:6]}")
    assert not got.compared
    assert str(Checksum.of("md5-prefix:01ec64")) == "md5 (6 digits)"
    for text in ("md5-prefix:01", "md5-prefix:xyz123", "xxh128-prefix:01ec64", "sha1:" + "0" * 40):
        assert not Checksum.of(text).valid, text


def test_offline_says_what_is_missing_and_where_it_would_lie(server, tmp_path) -> None:
    with offline():
        settings = environment(error=WeightsError)
        with pytest.raises(WeightsError, match="is missing, and nothing is downloaded") as error:
            get(server, tmp_path / "new", settings)
    assert str(tmp_path / "new/a") in str(error.value)
    hint = error.value.hint
    assert f"{server.url}/a" in hint and "CELLSEG_MIRROR" in hint and "export-cache" in hint
    assert not (tmp_path / "new").exists() and server.seen == []
    get(server, tmp_path)
    with offline():
        get(server, tmp_path, environment())
        with pytest.raises(DataError, match="is missing"):  # the mirror is another computer
            get(server, tmp_path / "b", environment(mirror=server.url))
    assert len(server.seen) == 1


def test_offline_a_folder_serves_as_a_mirror(server, tmp_path, monkeypatch) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "a").write_bytes(BODY)
    monkeypatch.setenv("CELLSEG_MIRROR", str(mirror))
    monkeypatch.setenv("CELLSEG_OFFLINE", "1")
    get(server, tmp_path / "got", environment())
    (mirror / "a").write_bytes(BODY[:-1] + b"x")
    with pytest.raises(DataError, match="its SHA256 is"):
        get(server, tmp_path / "more", environment())
    assert list((tmp_path / "more").iterdir()) == []
    (mirror / "a").unlink()
    with pytest.raises(DataError, match="no such file in the mirror") as error:
        get(server, tmp_path / "more", environment())
    assert str(mirror / "a") in str(error.value) and f"{server.url}/a" in str(error.value)
    assert server.seen == []


def test_a_mirror_at_an_address_that_lacks_the_file_is_named_with_the_source(
    server, tmp_path
) -> None:
    server.plan = ["404"]
    with pytest.raises(DataError, match="404") as error:
        get(server, tmp_path, Settings(mirror=server.elsewhere))
    assert f"{server.elsewhere}/a (a copy of {server.url}/a)" in str(error.value)


def test_what_the_environment_says_is_checked_and_given_back(monkeypatch) -> None:
    monkeypatch.setenv("CELLSEG_OFFLINE", "maybe")
    with pytest.raises(ConfigError, match="CELLSEG_OFFLINE=maybe"):
        environment()
    monkeypatch.setenv("CELLSEG_OFFLINE", "0")
    monkeypatch.setenv("CELLSEG_MIRROR", "/copies")
    assert not environment().offline and environment().mirror == "/copies"
    assert environment(mirror="/mine").mirror == "/mine"
    with offline():
        assert environment().offline
        with offline(False):
            assert environment().offline
    assert not environment().offline
    monkeypatch.delenv("CELLSEG_OFFLINE")
    with offline():
        pass
    assert not environment().offline


def test_progress_counts_what_a_resumed_download_has(server, tmp_path) -> None:
    server.plan = ["cut"]
    with pytest.raises(DataError):
        get(server, tmp_path, Settings(retries=0))
    events: list[Event] = []
    remote = Remote(url=f"{server.url}/a", name="a", checksum=SHA256)
    fetch(remote, tmp_path, QUICK, events.append)
    steps = [(e.step, e.total) for e in events if isinstance(e, Progress)]
    assert steps == [(2, 4), (3, 4), (4, 4)]
