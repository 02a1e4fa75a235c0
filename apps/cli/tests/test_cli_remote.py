"""Addresses on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from remote_sites import below, upload, web_site
from test_readers_ome_zarr import add_label, write

from cellseg.testing import blobs

BASE = "memory://test-cli"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for seed in range(4):
        sample = blobs(seed)
        assert sample.labels is not None
        image = (1 + 200 * np.asarray(sample.image[:][:, 0]).clip(0)).clip(0, 255)
        write(root / f"i{seed}.zarr", image.astype(np.uint8), "cyx")
        add_label(root / f"i{seed}.zarr", "truth", np.asarray(sample.labels[:])[0], "yx")
    return root


@pytest.fixture(scope="module")
def there(images: Path) -> str:
    return upload(images, "images", BASE)


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_train_resume_calibrate_and_predict(cellseg, images, there, tmp_path) -> None:
    run = tmp_path / "run"
    done = cellseg(
        "train", there, "-o", run, "--backend", "otsu", "--epochs", 1, "--val", f"{there}/i3.zarr",
        "--label", "truth",
    )  # fmt: skip
    assert done.code == 4 and "is also a training image" in done.err
    done = cellseg(
        "train", there, "-o", run, "--backend", "otsu", "--epochs", 1, "--label", "truth"
    )
    assert done.code == 0, done.err
    assert json.loads((run / "run.json").read_text())["data"] == there
    done = cellseg("resume", run, "--epochs", 2)
    assert done.code == 0, done.err
    done = cellseg("calibrate", run, there)
    assert done.code == 3 and "has no calibration" in done.err  # which is asked for after reading
    done = cellseg("predict", f"{there}/i0.zarr", "--model", run, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["outputs"] == [f"{there}/i0.zarr/labels/cells"]
    assert f"{tmp_path}/cache/cellseg/work" in done.err
    done = cellseg("predict", there, "--model", run, "-o", f"{BASE}/out", "--work", tmp_path / "w")
    assert done.code == 0 and f"Written to {BASE}/out" in done.out
    assert len({name.split("/")[0] for name in below(f"{BASE}/out")}) == 4
    done = cellseg(
        "evaluate", f"{BASE}/out", images, "--truth-key", "truth", "--json",
        "--report", tmp_path / "report.html", "--images", there,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["pooled"]["f1@0.50"] > 0.5
    done = cellseg("predict", f"{there}/i0.zarr", "--model", run)
    assert done.code == 2 and f"{there}/i0.zarr/labels/cells exists already" in done.err


def test_looking_at_data(cellseg, images, there, tmp_path) -> None:
    done = cellseg("check-data", there, "--label", "truth", "--json")
    assert done.code in (0, 4), done.err
    assert len(json.loads(done.out)["files"]) == 4
    out = tmp_path / "more"
    done = cellseg("augment", there, "-o", out, "--label", "truth", "--copies", 1)
    assert done.code == 0, done.err
    config = tmp_path / "config.yaml"
    config.write_text(f"output: {BASE}/configured\nbackend: otsu\n")
    done = cellseg("predict", images / "i1.zarr", "--config", config)
    assert done.code == 0, done.err
    assert zarr.open_group(f"{BASE}/configured/i1.ome.zarr", mode="r")["labels/cells/0"].shape


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["train", "DATA", "-o", "s3://b/run", "--backend", "otsu"], "s3://b/run: what"),
        (["tune", "DATA", "-o", "s3://b/t", "--backend", "otsu"], "s3://b/t: what"),
        (["cross-validate", "DATA", "-o", "s3://b/t", "--backend", "otsu"], "s3://b/t: what"),
        (["augment", "DATA", "-o", "s3://b/more"], "s3://b/more: what"),
        (["predict", "DATA", "--model", "s3://b/run"], "s3://b/run: a model must be on this"),
        (["predict", "DATA", "--backend", "otsu", "-o", "x", "--prompts", "s3://b/p.csv"],
         "s3://b/p.csv: what --prompts names must be on this computer"),
        (["export", "s3://b/run", "-o", "x", "--format", "zip"], "s3://b/run: this argument must"),
        (["report", "s3://b/run"], "s3://b/run: this argument must be on this computer"),
        (["resume", "s3://b/run"], "s3://b/run: this argument must be on this computer"),
        (["embed", "DATA", "--backend", "otsu", "-o", "s3://b/x"], "--output names must be on"),
        (["track", "DATA", "-o", "s3://b/x"], "--output names must be on this computer"),
        (["calibrate", "DATA", "--backend", "otsu", "-o", "s3://b/x"], "--output names must be"),
        (["predict", "DATA", "--backend", "otsu", "-o", "s3://b/x", "--format", "csv"],
         "--format csv: only OME-Zarr can be written to s3://b/x"),
    ],
)  # fmt: skip
def test_what_must_be_on_this_computer(cellseg, there, line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cellseg(*[there + "/i1.zarr" if word == "DATA" else word for word in line])
    assert done.code == 2, done.err
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_a_slip_in_an_address(cellseg, images) -> None:
    done = cellseg("predict", "s33://b/x.zarr", "--backend", "otsu")
    assert done.code == 3 and "Did you mean s3://?" in done.err
    done = cellseg(
        "predict", images / "i1.zarr", "--backend", "otsu", "-o", "https://me:sesame@host/x"
    )
    assert done.code == 3 and "sesame" not in done.err and "password" in done.err


def test_reading_by_http(cellseg, images, tmp_path) -> None:
    with web_site(images) as site:
        where = f"{site.address}/i1.zarr"
        done = cellseg("predict", where, "--backend", "otsu")
        assert done.code == 2 and "nothing can be written by http" in done.err
        done = cellseg("predict", where, "--backend", "otsu", "-o", tmp_path / "far")
        assert done.code == 0, done.err
    assert cellseg("predict", images / "i1.zarr", "--backend", "otsu", "-o", tmp_path / "near")
    assert (tmp_path / "far/i1.csv").read_text() == (tmp_path / "near/i1.csv").read_text()
