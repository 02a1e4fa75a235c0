"""Files that several processes want, and what is noted of them for later."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rough_server import BODY, Server, started

from cellseg.download import Fetched, Remote, Settings, fetch, sums
from cellseg.download.notes import note_of, read_note
from cellseg.errors import WeightsError
from cellseg.events import Event, Note

SHA256 = hashlib.sha256(BODY).hexdigest()
QUICK = Settings(pause=0.01, timeout=5, error=WeightsError)
SCRIPT = """
import sys
from pathlib import Path
from cellseg.download import Remote, Settings, fetch
url, folder, checksum = sys.argv[1:]
remote = Remote(url=url, name="a", checksum=checksum)
got = fetch(remote, Path(folder), Settings(pause=0.01), print, noting=True)
print("FRESH" if got.fresh else "THERE")
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with started() as made:
        yield made


def ignored(event: Event) -> None:
    """Where nobody looks."""


def remote(server: Server, checksum: str = "") -> Remote:
    return Remote(url=f"{server.url}/a", name="a", checksum=checksum)


def get(server: Server, folder: Path, settings: Settings = QUICK, checksum: str = "") -> Fetched:
    return fetch(remote(server, checksum), folder, settings, ignored, noting=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def process(server: Server, folder: Path, checksum: str = "") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SCRIPT, f"{server.url}/a", str(folder), checksum]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def until(something: object) -> None:
    end = time.monotonic() + 30
    while not something():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_threads_get_a_file_once(server, tmp_path) -> None:
    server.plan, server.seconds = ["slow"], 0.3
    got: list[Fetched] = []
    events: list[Event] = []

    def work() -> None:
        got.append(fetch(remote(server), tmp_path, QUICK, events.append, noting=True))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.fresh for each in got].count(True) == 1 and len(got) == 4
    assert {each.sha256 for each in got} == {SHA256}
    assert server.asked("a") == 1
    assert any(isinstance(event, Note) and "waiting" in event.text for event in events)
    assert names(tmp_path) == [".a.cellseg.json", "a"], "no lock stays"


def test_processes_get_a_file_once(server, tmp_path) -> None:
    server.plan, server.seconds = ["slow"], 1.5
    both = [process(server, tmp_path) for _ in range(2)]
    said = sorted(each.communicate(timeout=60)[0].split()[-1] for each in both)
    assert said == ["FRESH", "THERE"]
    assert server.asked("a") == 1 and names(tmp_path) == [".a.cellseg.json", "a"]


def test_a_killed_download_is_continued_by_who_waited(server, tmp_path) -> None:
    server.plan, server.seconds = ["stall"], 60
    killed = process(server, tmp_path, f"sha256:{SHA256}")
    part = tmp_path / ".part-a"
    until(lambda: part.exists() and part.stat().st_size == len(BODY) // 2)
    events: list[Event] = []
    got: list[Fetched] = []

    def wait() -> None:
        file = remote(server, f"sha256:{SHA256}")
        got.append(fetch(file, tmp_path, QUICK, events.append, noting=True))

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: any(isinstance(event, Note) for event in events))
    assert server.asked("a") == 1, "it waits"
    killed.send_signal(signal.SIGKILL)
    waiting.join(60)
    killed.communicate()
    assert got[0].fresh and got[0].path.read_bytes() == BODY
    assert server.seen[-1]["range"] == f"bytes={len(BODY) // 2}-"
    assert names(tmp_path) == [".a.cellseg.json", "a"]


def test_what_came_first_is_noted_and_later_copies_compared_with_it(server, tmp_path) -> None:
    assert get(server, tmp_path).fresh
    noted = read_note(tmp_path / "a")
    assert noted is not None and noted.sha256 == SHA256 and noted.size == len(BODY)
    (tmp_path / "a").unlink()
    server.body, server.etag = BODY[::-1], '"two"'
    with pytest.raises(WeightsError, match=f"instead of {SHA256}, noted on {noted.date}") as error:
        get(server, tmp_path)
    assert "nobody published a checksum" in str(error.value) and "--force" in error.value.hint
    assert names(tmp_path) == [".a.cellseg.json"]
    assert get(server, tmp_path, replace(QUICK, force=True)).fresh
    noted = read_note(tmp_path / "a")
    assert noted is not None and noted.sha256 == hashlib.sha256(server.body).hexdigest()


def test_a_file_that_was_changed_here_is_refused(server, tmp_path) -> None:
    path = get(server, tmp_path).path
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"is there, but is not the file expected: .*noted on"):
        get(server, tmp_path)
    path.write_bytes(BODY)  # the same content at another time
    assert get(server, tmp_path).sha256 == SHA256
    assert server.asked("a") == 1


def test_a_noted_file_is_not_read_again(server, tmp_path, monkeypatch) -> None:
    checksum = f"sha256:{SHA256}"
    get(server, tmp_path, checksum=checksum)
    read: list[Path] = []

    def counted(path: Path, file: Remote) -> dict[str, str]:
        read.append(path)
        return sums.sums_of(path, file)

    monkeypatch.setattr("cellseg.download.sums_of", counted)
    got = get(server, tmp_path, checksum=checksum)
    assert (got.sha256, got.compared, got.fresh, read) == (SHA256, True, False, [])
    os.utime(tmp_path / "a")
    get(server, tmp_path, checksum=checksum)
    assert len(read) == 1, "its time is another, so it is read"
    get(server, tmp_path, checksum=f"{checksum} md5-prefix:{hashlib.md5(BODY).hexdigest()[:6]}")
    assert len(read) == 2, "its publisher says something else now"
    get(server, tmp_path, checksum=f"{checksum} md5-prefix:{hashlib.md5(BODY).hexdigest()[:6]}")
    assert len(read) == 2


def test_a_file_of_others_is_compared_and_noted_as_it_is_used(server, tmp_path) -> None:
    """Such as one that another program put there."""
    (tmp_path / "a").write_bytes(BODY)
    assert not get(server, tmp_path, checksum=f"sha256:{SHA256}").fresh
    assert read_note(tmp_path / "a") is not None and server.seen == []
    note_of(tmp_path / "a").unlink()
    (tmp_path / "a").write_bytes(BODY[:-1])
    with pytest.raises(WeightsError, match="is not the file expected"):
        get(server, tmp_path, checksum=f"sha256:{SHA256}")
    assert names(tmp_path) == ["a"], "no note, and it is left alone"


def test_a_wrong_file_leaves_nothing_behind(server, tmp_path) -> None:
    server.plan = ["corrupt"]
    with pytest.raises(WeightsError, match="What came was removed"):
        get(server, tmp_path, checksum=f"sha256:{SHA256}")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_read_each_time(server, tmp_path, monkeypatch) -> None:
    (tmp_path / "a").write_bytes(BODY)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions mean nothing to root
    events: list[Event] = []
    fetch(remote(server), tmp_path, QUICK, events.append, noting=True)
    assert names(tmp_path) == ["a"]
    assert any(isinstance(event, Note) and "cannot be written" in event.text for event in events)


def test_a_damaged_note_is_told(server, tmp_path) -> None:
    get(server, tmp_path)
    for text in ("{", "[]", json.dumps({"sha256": 5})):
        note_of(tmp_path / "a").write_text(text)
        with pytest.raises(WeightsError, match="is damaged") as error:
            get(server, tmp_path)
        assert str(note_of(tmp_path / "a")) in error.value.hint


def test_a_copy_at_an_address_is_compared_with_the_manifest_there(server, tmp_path) -> None:
    settings = replace(QUICK, mirror=f"{server.url}/")
    server.files = {"a": BODY}
    assert get(server, tmp_path / "without", settings).fresh, "a mirror needs no manifest"
    manifest = {"files": [{"file": "b", "sha256": "0"}, {"file": "a", "sha256": "0" * 64}]}
    server.files["manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(WeightsError, match=f"instead of {'0' * 64}"):
        get(server, tmp_path / "got", settings)
    assert names(tmp_path / "got") == []
    manifest["files"][1]["sha256"] = SHA256
    server.files["manifest.json"] = json.dumps(manifest).encode()
    assert get(server, tmp_path / "got", settings).fresh
    assert names(tmp_path / "got") == [".a.cellseg.json", "a"]
    server.files["manifest.json"] = b"<html>"
    with pytest.raises(WeightsError, match=r"manifest\.json: is damaged"):
        get(server, tmp_path / "more", settings)
    server.plan = ["500"] * 9
    with pytest.raises(WeightsError, match=r"manifest\.json: cannot be downloaded: .* 500"):
        get(server, tmp_path / "more", replace(settings, retries=1))
    assert names(tmp_path / "more") == []


def test_a_mirror_that_cannot_be_read_is_named(server, tmp_path) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "a" / "b").mkdir(parents=True)
    with pytest.raises(WeightsError, match="mirror/a: there is no such file"):
        get(server, tmp_path / "got", replace(QUICK, mirror=str(mirror)))
    (mirror / "manifest.json").mkdir()
    with pytest.raises(WeightsError, match=r"manifest\.json: cannot be read: Is a directory"):
        get(server, tmp_path / "got", replace(QUICK, mirror=str(mirror)))


def test_a_copy_is_compared_with_the_manifest_of_its_mirror(server, tmp_path) -> None:
    """Where nobody published a checksum, that is all there is to find damage by."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "a").write_bytes(BODY[:-1] + b"x")
    manifest = {"files": [{"file": "a", "sha256": SHA256}]}
    (mirror / "manifest.json").write_text(json.dumps(manifest))
    settings = replace(QUICK, mirror=str(mirror))
    with pytest.raises(WeightsError, match=f"instead of {SHA256}"):
        get(server, tmp_path / "got", settings)
    assert names(tmp_path / "got") == []
    (mirror / "a").write_bytes(BODY)
    assert get(server, tmp_path / "got", settings).fresh
    (tmp_path / "got/a").unlink()
    for text in ("{", json.dumps({"files": [{"file": "a", "sha256": f"{'0' * 64} rot13:1"}]})):
        (mirror / "manifest.json").write_text(text)
        with pytest.raises(WeightsError, match=r"manifest\.json: is damaged"):
            get(server, tmp_path / "got", settings)
