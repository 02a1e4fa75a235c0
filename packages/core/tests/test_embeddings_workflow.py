"""``embed`` end to end: which labels belong to which images, and what the tables hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import embedding_fakes as fakes
import engine_fakes
import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import tifffile
from embedding_fakes import rows, run, segment, skipped, vectors

from cellseg.classes import encoded
from cellseg.data import Tiling
from cellseg.engine.plan import Plan
from cellseg.errors import ConfigError, DataError, UsageError
from cellseg.events import Event, Note, Progress

BOTH = ("embeddings_mean.parquet", "embeddings_mean_std_max.parquet")
FILES = sorted([*BOTH, "manifest.parquet", "schema.json", "skipped.csv", "summary.json"])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return fakes.write_images(tmp_path / "images")


def test_what_predict_wrote_is_embedded_with_its_ids(images: Path, tmp_path: Path) -> None:
    segment(images, tmp_path / "out")
    events: list[Event] = []
    summary = run(images, tmp_path / "emb", labels=tmp_path / "out", events=events)
    out = tmp_path / "emb"
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == FILES
    manifest = rows(out)
    assert [row["row"] for row in manifest] == list(range(len(manifest)))
    assert summary.objects == len(manifest) > 50
    assert (summary.images, summary.without_objects, summary.dimension) == (3, 1, 4)
    known = ("area", "centroid_z", "centroid_y", "centroid_x")
    known += tuple(f"{axis}_{end}" for end in ("min", "max") for axis in "zyx")
    for image in ("a", "big"):
        with (tmp_path / "out" / f"{image}.csv").open(newline="") as file:
            objects = [
                {k: float(v) for k, v in r.items() if k in ("id", *known)}
                for r in csv.DictReader(file)
            ]
        ours = [{k: row[k] for k in ("id", *known)} for row in manifest if row["image"] == image]
        assert ours == objects
    reason = {
        "image": "blank",
        "frame": "",
        "objects": "0",
        "status": "skipped",
        "reason": "has no objects",
    }
    assert skipped(out) == [reason]
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == sorted(set(steps))
    assert steps[-1] == next(e.total for e in events if isinstance(e, Progress))
    assert any("110" in event.text for event in events if isinstance(event, Note))


def test_the_numbers_are_those_of_the_voxels(images: Path, tmp_path: Path) -> None:
    segment(images, tmp_path / "out")
    out = tmp_path / "emb"
    run(images, out, labels=tmp_path / "out", options={"steps": (1.0, 7.0, 5.5)}, tile_size=64)
    manifest = rows(out)
    tables = [vectors(out), *(vectors(out, BOTH[1], f"emb_{kind}") for kind in "msx")]
    for image in ("a", "big"):
        pixels = tifffile.imread(images / f"{image}.tif")[None, None]
        labels = tifffile.imread(tmp_path / "out" / f"{image}.tif")[None]
        low, high = np.percentile(pixels, (1, 99.8))
        normalised = ((pixels - low) / (high - low)).astype(np.float32)
        plan = Plan.cut((1, *pixels.shape[2:]), Tiling((8, 64, 64), (8, 24, 24)), False)
        assert (len(plan) > 1) == (image == "big")
        wanted = fakes.oracle(normalised, labels, plan, fakes.LookOptions(steps=(1.0, 7.0, 5.5)))
        own = [row for row in manifest if row["image"] == image]
        assert [row["id"] for row in own] == sorted(wanted)
        for row in own:
            mean, deviation, highest = wanted[row["id"]]
            for table, values in zip(tables, (mean, mean, deviation, highest), strict=True):
                np.testing.assert_allclose(table[row["row"]], values, rtol=1e-5, atol=1e-6)
    keys = ["row", "image", "id"]
    for name in BOTH:
        assert (
            pq.read_table(out / name)
            .select(keys)
            .equals(pq.read_table(out / "manifest.parquet").select(keys))
        )


def test_the_schema_says_how_the_tables_were_made(images: Path, tmp_path: Path) -> None:
    segment(images, tmp_path / "out")
    out = tmp_path / "emb"
    run(images, out, labels=tmp_path / "out", tile_size=96, halo=8, polarity="dark")
    schema = json.loads((out / "schema.json").read_text())
    assert (schema["dimension"], schema["rows"]) == (4, len(rows(out)))
    for name, about in schema["files"].items():
        assert about["columns"] == pq.read_schema(out / name).names
    assert schema["files"][BOTH[1]]["columns"][-1] == "emb_x_0003"
    assert schema["backend"] == "look"
    assert schema["tiling"] == {"core": [8, 96, 96], "halo": [8, 8, 8]}
    assert schema["normaliser"]["inverted"] == [True]
    assert schema["options"]["steps"] == [1, 4, 4]
    assert schema["labels"] == str(tmp_path / "out")
    assert set(schema["versions"]) >= {"python", "numpy", "cellseg-core"}
    kinds = dict(
        zip(schema["files"][BOTH[0]]["columns"], pq.read_schema(out / BOTH[0]).types, strict=True)
    )
    assert kinds["emb_m_0000"] == pyarrow.float32()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["objects"] == schema["rows"]


def test_one_pooling_alone_and_nothing_stale(images: Path, tmp_path: Path) -> None:
    segment(images, tmp_path / "out")
    out = tmp_path / "emb"
    run(images, out, labels=tmp_path / "out")
    both = vectors(out)
    with pytest.raises(UsageError, match=r"manifest\.parquet exists"):
        run(images, out, labels=tmp_path / "out", pooling=("mean",))
    run(images, out, labels=tmp_path / "out", pooling=("mean",), overwrite=True)
    assert not (out / BOTH[1]).exists(), "it would be of another embedding"
    np.testing.assert_array_equal(vectors(out), both)


def test_movies_have_frames(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    frames = np.stack([engine_fakes.discs((80, 90), seed=seed)[0, 0] for seed in range(3)])
    frames[1] = 0
    tifffile.imwrite(folder / "m.tif", frames, metadata={"axes": "TYX"}, ome=True)
    segment(folder, tmp_path / "out")
    run(folder, tmp_path / "emb", labels=tmp_path / "out")
    manifest = rows(tmp_path / "emb")
    assert {row["image"] for row in manifest} == {"m"}
    assert [row["frame"] for row in manifest] == sorted(row["frame"] for row in manifest)
    assert {row["frame"] for row in manifest} == {0, 2}
    with (tmp_path / "out" / "m.csv").open(newline="") as file:
        table = [(int(row["frame"]), int(row["id"])) for row in csv.DictReader(file)]
    assert [(row["frame"], row["id"]) for row in manifest] == table
    assert [(row["image"], row["frame"]) for row in skipped(tmp_path / "emb")] == [("m", "1")]
    assert json.loads((tmp_path / "emb" / "summary.json").read_text())["images"] == 3


@pytest.mark.parametrize(("backend", "planes"), [("look", 1), ("deeplook", 6)])
def test_volumes_plane_by_plane_or_whole(tmp_path: Path, backend: str, planes: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = engine_fakes.blobs((6, 60, 70), fill=0.1)
    tifffile.imwrite(folder / "v.tif", image[0], metadata={"axes": "ZYX"}, ome=True)
    segment(folder, tmp_path / "out", backend="deeplook")
    labels = tifffile.imread(tmp_path / "out" / "v.tif")
    fakes.CALLS.clear()
    options = {"steps": (float(planes), 4.0, 4.0)}
    run(folder, tmp_path / "emb", labels=tmp_path / "out", backend=backend, options=options)
    assert {shape[1] for call in fakes.CALLS for shape in call} == {planes}
    manifest = rows(tmp_path / "emb")
    assert [row["area"] for row in manifest] == np.bincount(labels.ravel())[1:].tolist()
    assert {row["z_max"] - row["z_min"] for row in manifest} - {1}, "none spans several planes"


def test_classes_come_from_the_data_set(tmp_path: Path) -> None:
    """Where ids carry classes, the manifest has both; ids alone need not be unique."""
    import h5py

    plain = np.zeros((40, 40), np.uint32)
    plain[2:10, 2:10], plain[20:30, 20:30] = 1, 2
    kinds = np.where(plain == 2, 2, 1) * (plain > 0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["label"] = np.ones((40, 40), np.uint8), plain
        file["class"] = kinds.astype(np.uint8)
    reading = {"class_key": "class", "class_names": "nucleus,debris"}
    run(tmp_path / "a.h5", tmp_path / "emb", reading=reading)
    assert int(encoded(plain, 2).max()) > 1 << 28
    found = [(row["id"], row["class"], row["area"]) for row in rows(tmp_path / "emb")]
    assert found == [(1, "nucleus", 64), (2, "debris", 100)]
    assert pq.read_schema(tmp_path / "emb" / BOTH[0]).names[:4] == ["row", "image", "id", "class"]
    with pytest.raises(ConfigError, match="--class-key of the reader 'hdf5' does nothing"):
        run(tmp_path / "a.h5", tmp_path / "b", reading=reading, labels=tmp_path / "a.h5")


def test_patterns_and_draws(tmp_path: Path) -> None:
    pixels = engine_fakes.discs((90, 140))[0, 0]
    plate = fakes.write_plate(tmp_path / "p.zarr", ["B/03", "B/04", "C/03"], pixels)
    segment(plate, None)

    def taken(name: str, **values: object) -> list[str]:
        run(plate, tmp_path / name, **values)
        return list(dict.fromkeys(row["image"] for row in rows(tmp_path / name)))

    assert taken("wells", include=("B/*",), exclude=("*/1",)) == ["B/03/0", "B/04/0"]
    left = {row["image"]: row["reason"] for row in skipped(tmp_path / "wells")}
    assert left == {
        "B/03/1": "--exclude */1",
        "B/04/1": "--exclude */1",
        "C/03/0": "--include",
        "C/03/1": "--include",
    }
    drawn = taken("drawn", most_images=3)
    assert len(drawn) == 3
    assert drawn == taken("again", most_images=3, seed=42)
    assert any(drawn != taken(f"other{seed}", most_images=3, seed=seed) for seed in range(3))
    taken("few", most_objects=5)
    assert len(rows(tmp_path / "few")) == 6 * 5
    some = skipped(tmp_path / "few")[0]
    assert (some["status"], some["reason"]) == ("left out", "--most-objects 5")
    assert int(some["objects"]) + 5 == len(rows(tmp_path / "wells")) // 2
    with pytest.raises(DataError, match=r"--include D/\*: fits no image") as error:
        taken("none", include=("D/*",))
    assert "B/03/0" in str(error.value.hint)
    with pytest.raises(DataError, match="leave none of 6"):
        taken("none", include=("B/*",), exclude=("*",))
    with pytest.raises(ConfigError, match="--seed does nothing"):
        taken("none", seed=7)
    assert not (tmp_path / "none").exists()


def test_no_objects_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", np.zeros((50, 60), np.uint8))
    segment(folder, tmp_path / "out")
    summary = run(folder, tmp_path / "emb", labels=tmp_path / "out")
    assert (summary.objects, summary.dimension) == (0, 4)
    for name in BOTH:
        assert pq.read_table(tmp_path / "emb" / name).num_rows == 0
    assert "emb_m_0003" in pq.read_schema(tmp_path / "emb" / BOTH[0]).names


def test_rows_of_many_images_share_groups(images: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A group of rows for each image would make the files large; few rows must change nothing."""
    segment(images, tmp_path / "out")
    run(images, tmp_path / "emb", labels=tmp_path / "out")
    assert pq.ParquetFile(tmp_path / "emb" / BOTH[1]).num_row_groups == 1
    monkeypatch.setattr("cellseg.embeddings.tables._NUMBERS", 1)
    run(images, tmp_path / "small", labels=tmp_path / "out")
    assert pq.ParquetFile(tmp_path / "small" / BOTH[1]).num_row_groups > 2, "of one row each"
    for name in (*BOTH, "manifest.parquet"):
        assert pq.read_table(tmp_path / "emb" / name).equals(
            pq.read_table(tmp_path / "small" / name)
        )
