"""``embed`` when something is wrong: broken images, broken embedders, stops, full disks."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import embedding_fakes as fakes
import engine_fakes
import numpy as np
import pyarrow.parquet as pq
import pytest

from cellseg.bundle import Bundle
from cellseg.errors import (
    ConfigError,
    DataError,
    DeviceError,
    InterruptedRunError,
    PartialError,
    PluginError,
    StorageError,
    UnknownPluginError,
    UsageError,
)
from cellseg.events import Event, Failed, Note, Progress
from cellseg.normalise import Normaliser
from cellseg.options import parse
from cellseg.workflows.embed import embed
from cellseg.workflows.embed_settings import EmbedSettings
from cellseg.workflows.embed_summary import EmbedSummary
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

TABLES = ("manifest.parquet", "embeddings_mean.parquet", "embeddings_mean_std_max.parquet")
SHAPES = {"a": (60, 70), "b": (60, 90), "c": (150, 160), "d": (60, 90)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, (name, shape) in enumerate(SHAPES.items()):
        np.save(folder / f"{name}.npy", engine_fakes.discs(shape, seed=seed))
    return folder


@pytest.fixture
def labels(images: Path, tmp_path: Path) -> Path:
    out = tmp_path / "labels"
    given = {"backend": "look", "reader": "npy", "output": out, "format": ("tiff",)}
    predict(fakes.plugins(), images, parse(PredictSettings, given), emit=lambda event: None)
    return out


def run(
    images: Path,
    out: Path,
    labels: Path | None,
    *,
    events: list[Event] | None = None,
    options: dict[str, object] | None = None,
    stop: int | None = None,
    **values: object,
) -> EmbedSummary:
    """With ``stop``, interrupted after so many tiles."""
    given = {"backend": "look", "reader": "npy", "output": out, "labels": labels, **values}
    seen: list[Event] = [] if events is None else events
    return embed(
        fakes.plugins(),
        images,
        parse(EmbedSettings, given),
        options=options or {},
        emit=seen.append,
        interrupted=lambda: (
            stop is not None and sum(isinstance(event, Progress) for event in seen) >= stop
        ),
    )


def named(out: Path) -> list[str]:
    column = pq.read_table(out / TABLES[0])["image"].to_pylist()
    return list(dict.fromkeys(column))


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in TABLES)


def reasons(out: Path) -> dict[str, tuple[str, str]]:
    with (out / "skipped.csv").open(newline="") as file:
        return {row["image"]: (row["status"], row["reason"]) for row in csv.DictReader(file)}


def test_a_broken_image_is_named_and_the_others_are_done(
    images: Path, labels: Path, tmp_path: Path
) -> None:
    run(images, tmp_path / "whole", labels)
    whole = (images / "b.npy").read_bytes()
    np.save(images / "b.npy", np.full((1, 1, *SHAPES["b"]), np.nan, np.float32))
    out, events = tmp_path / "emb", list[Event]()
    with pytest.raises(PartialError, match=r"1 image\(s\) failed.*b"):
        run(images, out, labels, events=events)
    assert [event.item for event in events if isinstance(event, Failed)] == ["b"]
    assert named(out) == ["a", "c", "d"]
    assert reasons(out)["b"][0] == "failed"
    assert json.loads((out / "summary.json").read_text())["failed"] == 1
    with pytest.raises(UsageError, match="unfinished embedding"):
        run(images, out, labels)
    (images / "b.npy").write_bytes(whole)
    fakes.CALLS.clear()
    summary = run(images, out, labels, resume=True)
    assert len(fakes.CALLS) == 1, "only the image that failed"
    assert (summary.failed, named(out), reasons(out)) == (0, ["a", "b", "c", "d"], {})
    assert same(out, tmp_path / "whole")
    assert not (out / ".cellseg-embed" / "parts").exists()


def test_an_image_that_the_model_fails_on(images: Path, labels: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    np.save(images / "b.npy", engine_fakes.discs((60, 90), radius=5, seed=1))
    normal = (np.load(images / "b.npy")[0] / 200).astype(np.float32)
    bad.write_text(str(int(normal.sum())))
    out = tmp_path / "emb"
    for batch in (1, 4):
        with pytest.raises(PartialError, match="b: ArithmeticError: the network exploded"):
            run(images, out, labels, options={"bad": str(bad)}, batch_size=batch, overwrite=True)
        assert named(out) == ["a", "c", "d"], "tiles of one batch are not all to blame"
    bad.write_text("")
    options: dict[str, object] = {"bad": str(bad)}
    run(images, out, labels, options=options, resume=True)
    assert named(out) == ["a", "b", "c", "d"]


def test_nothing_can_be_done(images: Path, labels: Path, tmp_path: Path) -> None:
    for name, shape in SHAPES.items():
        np.save(images / f"{name}.npy", np.full((1, 1, *shape), np.nan, np.float32))
    with pytest.raises(DataError, match=r"a: .*; b: .*; c: .*; d: "):
        run(images, tmp_path / "emb", labels)
    assert not (tmp_path / "emb" / TABLES[0]).exists()


def test_images_without_labels(images: Path, labels: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "whole", labels)
    (labels / "c.tif").rename(tmp_path / "c.tif")
    out, events = tmp_path / "emb", list[Event]()
    with pytest.raises(PartialError, match="c: has no label image in"):
        run(images, out, labels, events=events)
    assert isinstance(next(e for e in events if not isinstance(e, Note)), Failed), "before the work"
    assert named(out) == ["a", "b", "d"]
    (tmp_path / "c.tif").rename(labels / "c.tif")
    run(images, out, labels, resume=True)
    assert same(out, tmp_path / "whole")
    (tmp_path / "none").mkdir()
    (labels / "c.tif").rename(tmp_path / "none" / "c_cp_masks.tif")
    with pytest.raises(DataError, match=r"no image has usable labels: a: has no label image"):
        run(images, tmp_path / "no", tmp_path / "none")
    with pytest.raises(DataError, match="there is no such file or folder, wanted as the labels"):
        run(images, tmp_path / "no", tmp_path / "nowhere")
    assert not (tmp_path / "no").exists()


def test_labels_of_another_shape(images: Path, labels: Path, tmp_path: Path) -> None:
    (labels / "a.tif").write_bytes((labels / "c.tif").read_bytes())
    with pytest.raises(PartialError, match=r"a: the labels are \(1, 150, 160\), the image is"):
        run(images, tmp_path / "emb", labels)
    assert named(tmp_path / "emb") == ["b", "c", "d"]


@pytest.mark.parametrize("stop", [1, 14])
def test_a_stop_keeps_the_images_that_are_done(
    images: Path, labels: Path, tmp_path: Path, stop: int
) -> None:
    run(images, tmp_path / "whole", labels, tile_size=32, halo=8)
    tiles = len(fakes.CALLS)
    out = tmp_path / "emb"
    with pytest.raises(InterruptedRunError) as error:
        run(images, out, labels, stop=stop, tile_size=32, halo=8)
    assert "--resume" in str(error.value.hint)
    assert not (out / TABLES[0]).exists()
    kept = len(list((out / ".cellseg-embed" / "parts").glob("*.npz")))
    assert bool(kept) == (stop > 1)
    fakes.CALLS.clear()
    events: list[Event] = []
    run(images, out, labels, resume=True, tile_size=32, halo=8, batch_size=2, events=events)
    assert sum(map(len, fakes.CALLS)) < tiles or not kept
    assert same(out, tmp_path / "whole")
    steps = [(event.step, event.total) for event in events if isinstance(event, Progress)]
    assert steps[-1][0] == steps[-1][1]
    again = run(images, out, labels, resume=True, tile_size=32, halo=8, events=events)
    assert Note("All of it is done already.") in events
    assert again.objects == pq.read_table(out / TABLES[0]).num_rows
    out = out.rename(tmp_path / "moved")
    again = run(images, out, labels, resume=True, tile_size=32, halo=8, events=events)
    assert again.outputs[0] == out / TABLES[0]
    (out / TABLES[1]).unlink()
    with pytest.raises(UsageError, match="is gone"):
        run(images, out, labels, resume=True, tile_size=32, halo=8)


def test_a_resume_of_something_else_is_refused(images: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "emb"
    with pytest.raises(UsageError, match="There is no embedding to resume"):
        run(images, out, labels, resume=True)
    with pytest.raises(InterruptedRunError):
        run(images, out, labels, stop=1)
    with pytest.raises(ConfigError, match="this embedding began with no --halo, not with --halo 3"):
        run(images, out, labels, resume=True, halo=3)
    run(images, out, labels, overwrite=True, halo=3)


WRONG = {
    "count": "returned 0 instead of 1 results",
    "type": "returned a ndarray, not Features",
    "double": "returned features as float64, not float32",
    "flat": r"returned features of shape \(1, 15, 18\), not \(d, z, y, x\)",
    "empty": r"returned features of shape \(0, 1, 15, 18\)",
    "step": "returned features with the step",
    "short": "returned features that cover 1 x 56 x 72 of 1 x 60 x 70 voxels",
    "nan": "returned features that are NaN or infinite",
    "dimension": "returned vectors of . and of . numbers",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_embedder_that_breaks_its_contract(
    images: Path, labels: Path, tmp_path: Path, wrong: str
) -> None:
    with pytest.raises(PluginError, match=WRONG[wrong]) as error:
        run(images, tmp_path / "emb", labels, options={"wrong": wrong})
    assert "'look'" in str(error.value)
    assert not (tmp_path / "emb" / TABLES[0]).exists()


def test_garbage_beyond_the_tiles_end_does_not_matter(
    images: Path, labels: Path, tmp_path: Path
) -> None:
    run(images, tmp_path / "a", labels)
    run(images, tmp_path / "b", labels, options={"padding": 5})
    assert same(tmp_path / "a", tmp_path / "b")


def test_fewer_tiles_at_once_when_memory_runs_out(
    images: Path, labels: Path, tmp_path: Path
) -> None:
    tiles = {"tile_size": 32, "halo": 8}
    run(images, tmp_path / "one", labels, **tiles)
    events: list[Event] = []
    fits = {"fits": 6000}
    run(images, tmp_path / "two", labels, options=fits, batch_size=8, events=events, **tiles)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "Out of memory: 1 tile(s) at once from now on." in notes
    assert same(tmp_path / "one", tmp_path / "two")
    with pytest.raises(DeviceError, match="with a tile of 1 x 60 x 70 voxels") as error:
        run(images, tmp_path / "three", labels, options={"fits": 100})
    assert "--tile-size" in str(error.value.hint)


def test_batches_hold_tiles_of_several_images(images: Path, labels: Path, tmp_path: Path) -> None:
    fakes.CALLS.clear()
    run(images, tmp_path / "emb", labels, batch_size=2, exclude=("a", "c"))
    shapes = [[shape[2:] for shape in call] for call in fakes.CALLS]
    assert shapes[0] == [(60, 90), (60, 90)]
    assert all(len(set(call)) == 1 and len(call) <= 2 for call in shapes)
    run(images, tmp_path / "one", labels, exclude=("a", "c"))
    assert same(tmp_path / "emb", tmp_path / "one")


def test_who_can_embed_is_named(images: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'blind' gives no vectors") as error:
        run(images, tmp_path / "emb", labels, backend="blind")
    assert error.value.hint == "Backends that do: deeplook, look."


def test_what_is_asked_for_must_make_sense(images: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "emb"
    with pytest.raises(UsageError, match="Which model"):
        run(images, out, labels, backend=None)
    with pytest.raises(UnknownPluginError, match="looks"):
        run(images, out, labels, backend="looks")
    with pytest.raises(UsageError, match="--output is missing"):
        run(images, None, labels)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="give a folder"):
        run(images, tmp_path / "emb.parquet", labels)
    with pytest.raises(UsageError, match="--tile-depth"):
        run(images, out, labels, tile_depth=3)
    with pytest.raises(ConfigError, match="--pooling"):
        run(images, out, labels, pooling=("median",))
    with pytest.raises(ConfigError, match="unknown option 'stepz'"):
        run(images, out, labels, options={"stepz": 3})
    assert not out.exists()


def test_a_trained_model_brings_its_normaliser(images: Path, labels: Path, tmp_path: Path) -> None:
    """What the model is shown must be what it was trained on; and the tables say which it was."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "w.safetensors").write_bytes(b"")
    digest = hashlib.sha256().hexdigest()
    bundle = Bundle(
        backend="look",
        normaliser=Normaliser(method="none"),
        predict={"steps": [1, 2, 2]},
        weights={"w.safetensors": digest},
    )
    bundle.save(model)
    out = tmp_path / "emb"
    run(images, out, labels, backend=None, model=model)
    mean = pq.read_table(out / TABLES[1])["emb_m_0000"].to_numpy()
    assert mean.max() > 100, "raw pixels, 0 to 200"
    schema = json.loads((out / "schema.json").read_text())
    assert schema["model"] == str(model)
    assert schema["weights"] == {"w.safetensors": digest}
    assert schema["normaliser"]["method"] == "none"
    assert schema["options"]["steps"] == [1, 4, 4], "what was calibrated is for finding objects"
    with pytest.raises(ConfigError, match="--polarity"):
        run(images, tmp_path / "x", labels, backend=None, model=model, polarity="dark")
    bundle.model_copy(update={"channels": 2}).save(model)
    with pytest.raises(DataError, match="trained with 2"):
        run(images, tmp_path / "x", labels, backend=None, model=model)


def test_a_full_disk_leaves_no_half_written_table(
    images: Path, labels: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "emb"
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(StorageError, match="the disk is full"):
            run(images, out, labels)
    assert [path.name for path in out.iterdir()] == [".cellseg-embed"]
    run(images, out, labels, resume=True)
    assert named(out) == ["a", "b", "c", "d"]


def test_other_names_of_options(images: Path, labels: Path, tmp_path: Path) -> None:
    given = {"backend": "look", "reader": "npy", "output": tmp_path / "emb", "labels": labels}
    embed(
        fakes.plugins(),
        images,
        parse(EmbedSettings, given),
        options={"cells": (1, 2, 2)},
        reader_options={"bands": "0"},
        emit=lambda event: None,
    )
    schema = json.loads((tmp_path / "emb" / "schema.json").read_text())
    assert schema["options"]["steps"] == [1, 2, 2]
    assert schema["reader_options"]["channels"] == "0"
