"""``cellseg embed`` from the command line, after ``cellseg predict``, with a made-up backend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

SEER = '''
"""A backend that sees brightness, for the tests."""

import numpy as np

import cellseg as cs


class SeerOptions(cs.Options):
    gain: float = 1.0
    """What brightness is multiplied by."""


def load(job):
    import cc3d

    def segment(tile):
        mask = tile.image[0] > 0.5
        return cs.Segmentation(cc3d.connected_components(mask, connectivity=26))

    return lambda tiles: [segment(tile) for tile in tiles]


def embed(job):
    def look(tile):
        bright = tile.image[0] * np.float32(job.options.gain)
        return cs.Features(np.stack([bright, 0 * bright + 1]), (1.0, 1.0, 1.0))

    return lambda tiles: [look(tile) for tile in tiles]


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(
        name="seer", summary="Sees", options=SeerOptions, load=load, embed=embed
    )
'''


@pytest.fixture
def seer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "site", "seer", "seer_backend", SEER))


def test_predict_then_embed(cellseg, seer, data, tmp_path) -> None:
    out, emb = tmp_path / "out", tmp_path / "emb"
    assert cellseg("predict", data / "images", "--backend", "seer", "-o", out).code == 0
    line = ("embed", data / "images", "--backend", "seer", "--labels", out, "-o", emb)
    done = cellseg(*line, "--json", "--gain", 3)
    assert done.code == 0, done.err
    manifest = pq.read_table(emb / "manifest.parquet")
    assert done.json["objects"] == manifest.num_rows > 10
    assert done.json["dimension"] == 2
    assert str(emb / "manifest.parquet") in done.json["outputs"]
    assert json.loads((emb / "schema.json").read_text())["options"] == {"gain": 3}
    table = pq.read_table(emb / "embeddings_mean_std_max.parquet")
    one = table.to_pylist()[0]
    pixels = tifffile.imread(data / "images" / f"{one['image']}.tif").astype(float)
    low, high = np.percentile(pixels, (1, 99.8))
    own = tifffile.imread(out / f"{one['image']}.tif") == one["id"]
    seen = 3 * (pixels - low)[own] / (high - low)
    assert one["emb_m_0000"] == pytest.approx(seen.mean(), rel=1e-5)
    assert one["emb_s_0000"] == pytest.approx(seen.std(), rel=1e-4)
    assert one["emb_x_0000"] == pytest.approx(seen.max(), rel=1e-5)
    assert "--overwrite" in cellseg(*line).err
    again = cellseg(*line, "--overwrite", "--pooling", "mean", "--most-objects", 2)
    assert again.code == 0 and f"Written to {emb}" in again.out
    assert not (emb / "embeddings_mean_std_max.parquet").exists()


def test_the_labels_are_core_and_not_the_readers(cellseg, seer, data, tmp_path) -> None:
    """Both have an option of that name; the one flag means the labels of the objects."""
    page = cellseg("embed", data, "--backend", "seer", "--help").out
    assert page.count("--labels ") - page.count("Give --labels ") == 1
    assert "--gain" in page and "--label-suffix" in page
    assert cellseg("embed", data, "--backend", "seer", "-o", tmp_path / "own").code == 0
    config = tmp_path / "c.yaml"
    config.write_text(f"backend: seer\nlabels: {data / 'labels'}\npooling: [mean]\n")
    done = cellseg("embed", data / "images", "--config", config, "-o", tmp_path / "named")
    assert done.code == 0, done.err
    name = "embeddings_mean.parquet"
    own, named = (pq.read_table(tmp_path / folder / name) for folder in ("own", "named"))
    assert own.equals(named)


def test_the_exit_codes(cellseg, seer, data, tmp_path) -> None:
    out = tmp_path / "labels"
    out.mkdir()
    for file in (data / "labels").iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    next(iter(sorted(out.iterdir()))).unlink()
    line = ("embed", data / "images", "--backend", "seer", "--labels", out)
    done = cellseg(*line, "-o", tmp_path / "a")
    assert done.code == 9
    assert "has no label image in" in done.err and "--resume" in done.err
    assert pq.read_table(tmp_path / "a" / "manifest.parquet").num_rows
    blind = cellseg("embed", data, "--backend", "otsu", "-o", tmp_path / "b")
    assert blind.code == 3
    assert "'otsu' gives no vectors" in blind.err and "seer" in blind.err
    assert cellseg(*line, "-o", tmp_path / "b", "--include", "x*").code == 4
    assert cellseg("embed", data, "-o", tmp_path / "b").code == 2
    assert cellseg(*line).code == 2
    assert not (tmp_path / "b").exists()
