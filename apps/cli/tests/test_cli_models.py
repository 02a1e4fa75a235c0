"""``cellseg models``, ``--offline`` and tokens, with a made-up backend and a server on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rough_server import Server, started

TOKEN = "hf-9b1f3c-hush"
WEIGHTS = bytes(range(256)) * 5000
BACKEND = '''
"""A backend that starts from published models, for the tests."""

import os
import signal
from pathlib import Path

import cellseg as cs
from cellseg.download import Remote


def folder():
    return Path(os.environ["TOY_CACHE"])


def model(name, token="", checksum=""):
    file = Remote(url=f"{os.environ['TOY_URL']}/{name}", name=name, checksum=checksum)
    return cs.PublishedModel(
        name=name, licence="CC0-1.0", files=(file,), folder=folder, citation="doi:1", token=token
    )


class ToyOptions(cs.Options):
    start: str = "toy_a"
    """What to start from."""


MODELS = [model("toy_a", checksum="CHECKSUM"), model("toy_gated", token="TOY_TOKEN")]


def weights(name, emit):
    from cellseg.download.published import fetch_weights

    chosen = {each.name: each for each in MODELS}[name]
    return fetch_weights(chosen, chosen.files[0], emit)


def train(job, emit):
    path, base = weights(job.options.start, emit)
    (job.model / "weights").write_bytes(path.read_bytes()[:100])
    for step in range(1, job.epochs + 1):
        emit(cs.Progress(step, job.epochs))
    return cs.Trained(base_weights=(base,))


def load(job):
    import numpy as np

    weights(job.options.start, lambda event: None)
    return lambda tiles: [cs.Segmentation(np.ones(t.image.shape[1:], np.uint32)) for t in tiles]


@cs.hookimpl
def cellseg_trainers():
    yield cs.TrainerSpec(
        name="toy", summary="Toy", options=ToyOptions, train=train, models=tuple(MODELS)
    )


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(name="toy", summary="Toy", options=ToyOptions, load=load)
'''


@pytest.fixture
def server() -> Iterator[Server]:
    with started() as made:
        made.files = {"toy_a": WEIGHTS, "toy_gated": WEIGHTS[::-1]}
        yield made


@pytest.fixture
def toy(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install) -> Path:
    """Install the backend ``toy``; the folder of its models. Nothing else is installed."""
    from importlib.metadata import entry_points

    monkeypatch.setenv("TOY_URL", server.url)
    monkeypatch.setenv("TOY_CACHE", str(tmp_path / "cache"))
    for name in ("TOY_TOKEN", "CELLSEG_MIRROR", "CELLSEG_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    checksum = "sha256:" + hashlib.sha256(WEIGHTS).hexdigest()
    text = BACKEND.replace("CHECKSUM", checksum)
    site = install(tmp_path / "site", "toy", "toy_backend", text)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "toy_backend", raising=False)
    (mine,) = entry_points(group="cellseg", name="toy")
    monkeypatch.setattr("cellseg.plugins.entry_points", lambda group: [mine])
    return tmp_path / "cache"


def test_list_pull_path_verify_and_export(cellseg, toy: Path, server: Server, tmp_path) -> None:
    listed = cellseg("models", "list")
    assert listed.code == 0 and "CC0-1.0" in listed.out and "missing" in listed.out
    assert f"{server.url}/toy_a" in listed.out and "none published" in listed.out
    assert "wants a token, in TOY_TOKEN" in listed.out
    assert cellseg("models", "list", "--here").out == "There are none.\n"
    missing = cellseg("models", "path", "toy_a")
    assert missing.code == 6 and "cellseg models pull toy_a" in missing.err

    pulled = cellseg("models", "pull", "toy_a")
    assert pulled.code == 0, pulled.err
    assert "licence: CC0-1.0" in pulled.out and "Downloading" in pulled.err
    assert cellseg("models", "path", "toy_a").out == f"{toy / 'toy_a'}\n"
    assert cellseg("models", "path", "toy_a", "--json").json == [str(toy / "toy_a")]
    assert [m["state"] for m in cellseg("models", "list", "--json").json] == ["here", "missing"]

    verified = cellseg("models", "verify", "--json")
    assert verified.code == 0 and verified.json[0]["damaged"] is None
    mirror = tmp_path / "mirror"
    assert cellseg("models", "export-cache", mirror).code == 0
    (toy / "toy_a").write_bytes(WEIGHTS[:-1] + b"x")
    damaged = cellseg("models", "verify")
    assert damaged.code == 6 and str(toy / "toy_a") in damaged.err and "--force" in damaged.err
    assert (toy / "toy_a").exists()
    refused = cellseg("models", "verify", "--remove", "--json")
    assert refused.json["error"]["exit_code"] == 6 and not (toy / "toy_a").exists()

    asked = len(server.seen)
    again = cellseg("models", "pull", "toy_a", "--mirror", mirror, "--offline", "--json")
    assert again.json["models"][0]["files"][0]["downloaded"] is True, again.err
    assert len(server.seen) == asked, "the mirror serves it"


def test_what_is_asked_for_wrongly(cellseg, toy: Path) -> None:
    for words in ([], ["toy_a", "--all"]):
        assert cellseg("models", "pull", *words).code == 2
    done = cellseg("models", "pull", "toi_a")
    assert done.code == 2 and "Did you mean 'toy_a'?" in done.err
    assert cellseg("models", "list", "--backend", "toi").code == 5
    assert cellseg("models", "verify", "toy_a").code == 6, "it is not here"
    assert cellseg("models", "pull", "toy_a", "--token-file", "nowhere").code == 3


def test_a_training_starts_from_a_model_that_is_here(
    cellseg, toy: Path, server: Server, data: Path, tmp_path
) -> None:
    line = ["train", data, "--backend", "toy", "--epochs", "1"]
    refused = cellseg(*line, "-o", tmp_path / "no", "--offline")
    assert refused.code == 6 and server.seen == []
    for words in (str(toy / "toy_a"), f"{server.url}/toy_a", "export-cache"):
        assert words in refused.err
    assert "CELLSEG_OFFLINE" not in os.environ, "it was for that command alone"
    assert cellseg(*line, "-o", tmp_path / "first").code == 0
    assert server.asked("toy_a") == 1
    assert cellseg(*line, "-o", tmp_path / "second", "--offline").code == 0
    assert server.asked("toy_a") == 1
    bundle = json.loads((tmp_path / "second/model/bundle.json").read_text())
    (base,) = bundle["base_weights"]
    assert base["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    events = (tmp_path / "first/events.jsonl").read_text()
    assert "Getting toy_a" in events, "the log tells of the download, in words"
    images = data / "images" if (data / "images").exists() else data
    predict = ["predict", "--offline", images, "--model", tmp_path / "second"]
    assert cellseg(*predict, "-o", tmp_path / "out").code == 0


def test_a_mirror_in_the_environment_serves_trainings(
    cellseg, toy: Path, server: Server, data: Path, tmp_path, monkeypatch
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "toy_a").write_bytes(WEIGHTS)
    monkeypatch.setenv("CELLSEG_MIRROR", str(mirror))
    line = ["train", data, "--backend", "toy", "--epochs", "1", "--offline"]
    assert cellseg(*line, "-o", tmp_path / "run").code == 0
    assert server.seen == []
    (mirror / "toy_a").write_bytes(b"not it")
    (toy / "toy_a").unlink()
    refused = cellseg(*line, "-o", tmp_path / "other")
    assert refused.code == 6 and str(mirror / "toy_a") in refused.err
    (mirror / "toy_a").unlink()
    refused = cellseg(*line, "-o", tmp_path / "other")
    assert refused.code == 6 and f"{server.url}/toy_a" in refused.err


def test_a_token_is_nowhere_to_be_found(
    cellseg, toy: Path, server: Server, data: Path, tmp_path, monkeypatch
) -> None:
    """Not in what is printed, logged or written, whether it works or fails."""
    server.token = TOKEN
    monkeypatch.setenv("TOY_TOKEN", TOKEN)
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    line = ["train", data, "--backend", "toy", "--start", "toy_gated", "--epochs", "1"]
    said: list[str] = []

    def run(*words: object, code: int) -> None:
        done = cellseg(*words)
        said.append(done.out + done.err)
        assert done.code == code, done.err

    run("models", "pull", "toy_gated", "--json", code=0)
    assert server.seen[-1]["authorization"] == f"Bearer {TOKEN}", "it was sent"
    run(*line, "-o", tmp_path / "run", code=0)
    for fault in ("403", "404", "corrupt"):
        (toy / "toy_gated").unlink(missing_ok=True)
        server.plan = [fault]
        run(*line, "-o", tmp_path / f"run{fault}", "--json", code=6)
    run("models", "pull", "toy_gated", "--token-file", file, code=0)
    run("models", "list", "--json", code=0)
    run("models", "verify", code=0)
    (toy / "toy_gated").unlink()
    server.moved["/toy_gated"] = "/toy_gated"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *sys.path]))
    words = [sys.executable, "-m", "cellseg_cli.main", "models", "pull", "toy_gated", "-vv"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 6 and "Traceback" in done.stderr
    said.append(done.stdout + done.stderr)
    assert not any(TOKEN in text for text in said)
    file.unlink()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "command",
    ["train", "resume", "predict", "calibrate", "embed", "tune", "cross-validate"],
)
def test_every_command_that_may_download_can_stay_offline(cellseg, command: str) -> None:
    assert "--offline" in cellseg(command, "--help").out


def test_others_have_no_such_flag(cellseg) -> None:
    assert "--offline" not in cellseg("evaluate", "--help").out


def test_ctrl_c_ends_at_once_and_keeps_what_came(toy: Path, server: Server, tmp_path) -> None:
    server.plan, server.seconds = ["stall"], 60
    paths = [str(tmp_path / "site"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-m", "cellseg_cli.main", "models", "pull", "toy_a"]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    part = toy / ".part-toy_a"
    end = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == len(WEIGHTS) // 2):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "Interrupted" in said
    assert part.stat().st_size == len(WEIGHTS) // 2 and not (toy / "toy_a").exists()
