"""Probabilities of the classes: asked for, checked, streamed to the outputs, and resumed."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from engine_fakes import blobs, digest, discs, likelihood, plugins

from cellseg.engine.plan import Plan
from cellseg.engine.probabilities import StitchedProbabilities
from cellseg.engine.records import Record, save
from cellseg.engine.tile import TileLabels, no_objects
from cellseg.errors import (
    ConfigError,
    DataError,
    InterruptedRunError,
    PartialError,
    PluginError,
    UsageError,
)
from cellseg.normalise import Normaliser
from cellseg.ome.write import write_new
from cellseg.options import parse
from cellseg.outputs.hdf5 import write_hdf5
from cellseg.outputs.images import write_tiff_probabilities
from cellseg.outputs.result import Result
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

HERE = Path(__file__).parent
FORMATS = ("tiff", "hdf5", "ome-zarr", "csv")
HALF = 2.0**-11
"""How far float16 is off a number between 0.5 and 1, at most."""


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def images(tmp_path):
    """A plane of one tile, a volume of many, and a movie."""
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "a.npy", discs((100, 90)))
    np.save(folder / "b.npy", blobs((30, 150, 130), seed=1))
    for frame in range(2):
        np.save(folder / f"m#{frame:03d}.npy", discs((170, 180), seed=2 + frame))
    return folder


def run(images, out, interrupted=lambda: False, options=None, **values):
    given = {
        "backend": "likely", "reader": "npy", "output": out, "output_probs": True,
        "format": FORMATS, **values,
    }  # fmt: skip
    return predict(
        plugins(),
        images,
        parse(PredictSettings, given),
        options=options or {},
        reader_options={},
        emit=lambda event: None,
        interrupted=interrupted,
    )


def expected(file):
    """What the predictor says of the whole image."""
    image, normaliser = np.load(file), Normaliser()
    return likelihood(normaliser.apply(image, normaliser.statistics(image, "image"))[0])


def test_every_image_format_gets_them_and_the_labels_stay_as_they_were(images, tmp_path):
    out, without = tmp_path / "out", tmp_path / "without"
    summary = run(images, out)
    run(images, without, output_probs=False)
    made = digest(out)
    labels = {n: d for n, d in made.items() if "_probabilities" not in n and ".h5" not in n}
    assert len(labels) > 20
    assert labels == {n: d for n, d in digest(without).items() if ".h5" not in n}
    assert out / "b_probabilities.tif" in summary.outputs
    volume = expected(images / "b.npy")
    movie = np.stack([expected(images / f"m#{i:03d}.npy") for i in range(2)])[:, :, 0]
    plane = expected(images / "a.npy")[:, 0]
    for name, truth, axes in (("a", plane, "cyx"), ("b", volume, "czyx"), ("m", movie, "tcyx")):
        with tifffile.TiffFile(out / f"{name}_probabilities.tif") as file:
            assert file.series[0].axes.lower() == axes
            tiff = file.asarray()
        with h5py.File(out / f"{name}.h5") as file:
            assert file["probabilities"].attrs["axes"] == axes
            hdf5 = file["probabilities"][:]
            assert file["labels"].shape == truth.shape[:-3] * (axes[0] == "t") + (
                truth.shape[1:] if axes[0] == "c" else truth.shape[2:]
            )
        group = zarr.open_group(str(out / f"{name}.ome.zarr" / "cells_probabilities"), mode="r")
        for array in (tiff, hdf5, group["0"][:]):
            assert array.dtype == np.float32 and array.shape == truth.shape
            np.testing.assert_allclose(array, truth, atol=HALF)
            channel = axes.index("c")
            np.testing.assert_allclose(array.sum(channel), 1, atol=1e-3)
        names = [axis["name"] for axis in group.attrs["multiscales"][0]["axes"]]
        assert names == list(axes)
        assert next(c["label"] for c in group.attrs["omero"]["channels"]) == "class 0"


@pytest.mark.parametrize("stop", [1, 12, 60, 110])
def test_a_resumed_prediction_ends_with_the_same_bytes(images, tmp_path, stop):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(images, whole)
    asked = iter([False] * stop)
    with pytest.raises(InterruptedRunError):
        run(images, parts, interrupted=lambda: next(asked, True))
    run(images, parts, resume=True)
    assert digest(parts) == digest(whole)


@pytest.mark.slow
def test_several_processes_end_with_the_same_bytes(images, tmp_path):
    run(images, tmp_path / "one")
    run(images, tmp_path / "two", workers=2)
    assert digest(tmp_path / "two") == digest(tmp_path / "one")


def test_a_damaged_record_is_made_again(images, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(images, whole)
    asked = iter([False] * 45)
    with pytest.raises(InterruptedRunError):
        run(images, parts, interrupted=lambda: next(asked, True))
    record = sorted(parts.rglob("*.tile"))[2]
    data = bytearray(record.read_bytes())
    data[-20] ^= 255
    record.write_bytes(data)
    run(images, parts, resume=True)
    assert digest(parts) == digest(whole)


def test_a_resume_with_or_without_them_is_refused(images, tmp_path):
    asked = iter([False] * 5)
    with pytest.raises(InterruptedRunError):
        run(images, tmp_path / "out", interrupted=lambda: next(asked, True))
    with pytest.raises(ConfigError, match="--output-probs"):
        run(images, tmp_path / "out", resume=True, output_probs=False)


def test_halves_of_a_tile_bring_theirs(images, tmp_path):
    run(images, tmp_path / "out", options={"fits": 100_000})
    found = tifffile.imread(tmp_path / "out" / "b_probabilities.tif")
    np.testing.assert_allclose(found, expected(images / "b.npy"), atol=HALF)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_beside_labels_in_the_image_itself(tmp_path, version):
    import ngio

    path = tmp_path / "image.zarr"
    pixels = blobs((5, 150, 130))[0]
    ngio.create_ome_zarr_from_array(
        store=str(path), array=pixels, pixelsize=0.5, axes_names=["z", "y", "x"],
        levels=2, ngff_version=version,
    )  # fmt: skip
    known = plugins()
    from cellseg import builtin

    known.register(builtin, "builtin")
    settings = parse(PredictSettings, {"backend": "likely", "output_probs": True})
    summary = predict(known, path, settings, emit=lambda event: None)
    assert summary.outputs == (path / "labels" / "cells", path / "cells_probabilities")
    image = ngio.open_ome_zarr_container(str(path / "cells_probabilities")).get_image()
    assert image.shape == (3, 5, 150, 130) and image.dimensions.axes == ("c", "z", "y", "x")
    normaliser = Normaliser()
    truth = likelihood(normaliser.apply(pixels[None], normaliser.statistics(pixels[None], ""))[0])
    np.testing.assert_allclose(image.get_array(), truth, atol=HALF)
    assert ngio.open_ome_zarr_container(str(path)).list_labels() == ["cells"]


@pytest.mark.parametrize("format", ["tiff", "hdf5", "ome-zarr"])
def test_evaluation_takes_the_labels_beside_them(images, tmp_path, format):
    from cellseg import builtin
    from cellseg.workflows.evaluate_pairs import label_pairs
    from cellseg.workflows.evaluate_settings import EvaluateSettings

    for name in ("a", "b"):
        run(images, tmp_path / name, format=(format,))
    known = plugins()
    known.register(builtin, "builtin")
    pairs = label_pairs(known, tmp_path / "a", tmp_path / "b", EvaluateSettings())
    assert [pair.name.split("#")[0].split(".")[0] for pair in pairs] == ["a", "b", "m", "m"]


def test_an_image_named_as_the_probabilities_of_another_is_refused(images, tmp_path):
    np.save(images / "a_probabilities.npy", discs((50, 60)))
    with pytest.raises(DataError, match=r"a_probabilities\.tif: would be written twice, for a and"):
        run(images, tmp_path / "out", format=("tiff",))
    assert not (tmp_path / "out").exists()
    run(images, tmp_path / "out", format=("tiff",), output_probs=False)


def test_a_backend_without_them_is_named_before_any_work(images, tmp_path):
    with pytest.raises(ConfigError, match=r"--output-probs: the backend 'flat'"):
        run(images, tmp_path / "out", backend="flat")
    with pytest.raises(UsageError, match="csv cannot hold"):
        run(images, tmp_path / "out", format=("csv", "geojson"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("none", "returned no probabilities"),
        ("list", "as list, not numpy"),
        ("double", "of type float64"),
        ("classes", r"of shape \(1, 3, "),
        ("low", "from -0.1 to"),
        ("high", "to 1.2, not from 0 to 1"),
        ("nan", "nan"),
    ],
)
def test_probabilities_that_are_none_are_a_broken_backend(images, tmp_path, fault, said):
    with pytest.raises(PluginError, match=said):
        run(images, tmp_path / "out", options={"fault": fault})


def test_probabilities_that_nobody_asked_for_are_refused(images, tmp_path):
    with pytest.raises(PluginError, match="not asked for"):
        run(images, tmp_path / "out", options={"fault": "unasked"}, output_probs=False)


def test_tiles_that_fail_write_nothing(images, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_text(" ".join(str(n) for n in range(100_000)))
    with pytest.raises(PartialError):
        run(images, tmp_path / "out", options={"bad": str(bad)}, retries=0)
    assert not digest(tmp_path / "out")


def test_a_dry_run_counts_them(images, tmp_path):
    with_them, without = (
        run(images, tmp_path / "out", dry_run=True, output_probs=wanted) for wanted in (True, False)
    )
    assert with_them.memory > without.memory
    voxels = sum(np.load(file).size for file in images.glob("*.npy"))
    one_more = with_them.disk - without.disk
    assert one_more >= 2 * 4 * voxels * 3, "two classes, in three formats"
    assert str(tmp_path / "out" / "b_probabilities.tif") in with_them.lines()[1]
    assert with_them.to_dict()["disk_bytes"] == with_them.disk


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A volume of 8 classes in records: 32 MiB of probabilities, and what they are."""
    folder = tmp_path_factory.mktemp("records")
    plan = Plan((32, 256, 256), (16, 64, 64), (0, 0, 0))
    ramp = np.linspace(0, 1, 256, dtype=np.float16)
    records = []
    for tile in range(len(plan)):
        box = plan.core_box(tile)
        block = np.empty((8, *box.shape), np.float16)
        block[:] = ramp[None, None, None, box.slices[2]]
        block *= (np.arange(8, dtype=np.float16) / 8)[:, None, None, None]
        labels = TileLabels(np.zeros(box.shape, np.uint16), {}, no_objects(), block)
        save(folder / f"{tile}.tile", labels)
        records.append(Record(folder / f"{tile}.tile"))
    truth = np.float32(ramp)[None] * (np.arange(8) / 8)[:, None]
    return plan, records, truth


def write_zarr(result, path):
    write_new(result, path, "cells")


@pytest.mark.parametrize("write", [write_tiff_probabilities, write_hdf5, write_zarr])
def test_writing_holds_blocks_and_not_the_volume(stored, tmp_path, write):
    plan, records, truth = stored
    likely = StitchedProbabilities(plan, records)
    labels = np.zeros((1, 1, 1), np.uint32)
    result = Result(
        name="v",
        frames=[np.broadcast_to(labels, plan.shape)],
        objects=[no_objects()],
        block=plan.core,
        classes=tuple("abcdefgh"),
        probabilities=[likely],
    )
    small = replace(result, frames=[result.frames[0][:1]], probabilities=[likely[:8, :1, :64, :64]])
    write(replace(small, frames=[small.frames[0][:, :64, :64]]), tmp_path / "small")  # imports
    tracemalloc.start()
    write(result, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 << 20, f"{peak / 2**20:.1f} MiB"
    if write is write_hdf5:
        with h5py.File(tmp_path / "out") as file:
            found = file["probabilities"][:, 17, 200]
            assert list(file["probabilities"].attrs["classes"]) == list(result.classes)
    elif write is write_zarr:
        group = zarr.open_group(str(tmp_path / "out" / "cells_probabilities"), mode="r")
        found = group["0"][:, 17, 200]
        assert group.attrs["omero"]["channels"][3]["label"] == "d"
    else:
        found = tifffile.imread(tmp_path / "out")[:, 17, 200]
        with tifffile.TiffFile(tmp_path / "out") as file:
            assert 'Name="d"' in file.ome_metadata
    np.testing.assert_allclose(found, truth, atol=HALF)


def test_any_block_reads_as_the_whole(stored):
    plan, records, truth = stored
    likely = StitchedProbabilities(plan, records)
    rng = np.random.default_rng(0)
    for _ in range(20):
        low = rng.integers(0, [7, 31, 250, 250])
        high = low + rng.integers(1, [2, 20, 90, 90])
        key = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        block = likely[key]
        assert block.shape == tuple(
            min(b, n) - a for a, b, n in zip(low, high, likely.shape, strict=True)
        )
        row = truth[key[0], None, None, key[3]]
        np.testing.assert_allclose(block, np.broadcast_to(row, block.shape), atol=HALF)


def test_smaller_levels_are_means(tmp_path):
    rng = np.random.default_rng(0)
    likely = rng.random((2, 3, 601, 530)).astype(np.float16)
    result = Result(
        name="v",
        frames=[np.zeros((3, 601, 530), np.uint32)],
        objects=[no_objects()],
        block=(1, 256, 256),
        spacing=(2.0, 0.5, 0.25),
        probabilities=[likely],
    )
    write_zarr(result, tmp_path / "out.zarr")
    group = zarr.open_group(str(tmp_path / "out.zarr" / "cells_probabilities"), mode="r")
    half = group["1"][:]
    assert half.shape == (2, 3, 301, 265)
    full = likely.astype(np.float32)
    np.testing.assert_allclose(
        half[:, :, :300], full[:, :, :600].reshape(2, 3, 300, 2, 265, 2).mean((3, 5)), rtol=1e-5
    )
    np.testing.assert_allclose(
        half[:, :, 300], full[:, :, 600].reshape(2, 3, 265, 2).mean(3), rtol=1e-5
    )
    scales = [
        d["coordinateTransformations"][0]["scale"]
        for d in group.attrs["multiscales"][0]["datasets"]
    ]
    assert scales[:2] == [[1.0, 2.0, 0.5, 0.25], [1.0, 2.0, 1.0, 0.5]]
