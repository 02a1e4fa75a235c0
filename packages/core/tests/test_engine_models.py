"""Predictions with a model's bundle, and of images that hold their own labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cellseg.bundle import Bundle
from cellseg.data import Sample, Tiling
from cellseg.errors import DataError, PluginError, UsageError
from cellseg.normalise import Normaliser, normalised
from cellseg.options import parse
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import engine_fakes

    return engine_fakes


def run(images, reader_options=None, options=None, **values):
    import engine_fakes

    return predict(
        engine_fakes.plugins(),
        images,
        parse(PredictSettings, values),
        options=options or {},
        reader_options=reader_options or {},
        emit=lambda event: None,
    )


def model(folder, **values):
    bundle = Bundle(
        backend="flat",
        channels=1,
        normaliser=Normaliser(method="none"),
        tiling=Tiling((1, 64, 64), (0, 16, 16)),
        classes=("dead", "alive"),
    ).model_copy(update=values)
    folder.mkdir(parents=True)
    bundle.save(folder)
    return folder


def write_tiff(path, image, **values):
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, **values)


def read(path):
    import tifffile

    return tifffile.imread(path)


def test_the_bundle_says_how(tmp_path, fakes):
    image = fakes.discs((150, 160))[0, 0]
    write_tiff(tmp_path / "in" / "a.tif", image)
    bundle = model(tmp_path / "run" / "model", predict={"scored": True})
    summary = run(tmp_path / "in", model=tmp_path / "run", output=tmp_path / "out", dry_run=True)
    assert summary.planned[0].tiles == 9
    assert summary.planned[0].tile_shape == (1, 1, 96, 96)
    run(tmp_path / "in", model=tmp_path / "run", output=tmp_path / "out")
    first = (tmp_path / "out" / "a.csv").read_text().splitlines()[1].split(",")
    assert first[-3:-1] == ["0.75", "alive"]
    run(tmp_path / "in", model=bundle, output=tmp_path / "two", options={"scored": False})
    assert ",," in (tmp_path / "two" / "a.csv").read_text().splitlines()[1]
    # Raw numbers as the bundle says: everything below 0.5 is background.
    write_tiff(tmp_path / "dim" / "a.tif", (image > 0).astype(np.float32) * 0.4)
    assert run(tmp_path / "dim", model=bundle, output=tmp_path / "three").objects == 0
    assert run(tmp_path / "dim", backend="flat", output=tmp_path / "four").objects > 50


def test_tiles_are_normalised_as_the_whole_image_was_in_training(tmp_path, fakes):
    """Also where that takes the surroundings of each pixel, and by several processes."""
    rng = np.random.default_rng(0)
    image = (rng.random((150, 160)) * np.linspace(2000, 60000, 160)).astype(np.uint16)
    write_tiff(tmp_path / "in" / "a.tif", image)
    normaliser = Normaliser(inverted=(True,), clahe=True, clahe_kernel=32, gamma=1.5)
    bundle = model(tmp_path / "model", normaliser=normaliser)
    whole = normalised(Sample(name="a", image=image[None, None]), normaliser).image
    expected = whole[:, :, :, :][0, 0] > 0.5
    linear = Normaliser(inverted=(True,), gamma=1.5)
    plain = linear.apply(image[None, None], linear.statistics(image[None, None]))[0, 0] > 0.5
    assert 0.1 < (expected != plain).mean(), "it makes a difference"
    for name, values in (("one", {}), ("two", {"workers": 2}), ("single", {"tile_size": 256})):
        run(tmp_path / "in", model=bundle, output=tmp_path / name, **values)
        np.testing.assert_array_equal(read(tmp_path / name / "a.tif") > 0, expected)


def test_channels_must_be_those_of_the_training(tmp_path, fakes):
    one = fakes.discs((60, 70))[0, 0]
    image = np.stack([np.zeros_like(one), one])
    write_tiff(tmp_path / "in" / "a.tif", image, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(DataError, match=r"a.* 2 channel.*trained with 1"):
        run(tmp_path / "in", model=model(tmp_path / "m1"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    chosen = model(tmp_path / "m2", channel_selection="1")
    assert run(tmp_path / "in", model=chosen, output=tmp_path / "out").objects > 5
    given = run(tmp_path / "in", {"channels": "0"}, model=chosen, output=tmp_path / "zero")
    assert given.objects == 0


def test_model_and_backend_must_agree(tmp_path, fakes):
    write_tiff(tmp_path / "in" / "a.tif", fakes.discs((60, 70))[0, 0])
    with pytest.raises(UsageError, match="'flat'"):
        run(tmp_path / "in", model=model(tmp_path / "m"), backend="deep", output=tmp_path / "o")
    with pytest.raises(PluginError, match="gone"):
        other = model(tmp_path / "n", backend="gone")
        run(tmp_path / "in", model=other, output=tmp_path / "o")


def test_a_movie_stays_a_movie(tmp_path, fakes):
    frames = np.stack([fakes.discs((100, 110), seed=s)[0, 0] for s in range(3)])
    write_tiff(tmp_path / "in" / "m.tif", frames, imagej=True, metadata={"axes": "TYX"})
    run(tmp_path / "in", backend="flat", output=tmp_path / "out")
    labels = read(tmp_path / "out" / "m.tif")
    assert labels.shape == (3, 100, 110)
    assert ((labels > 0) == (frames > 0)).all()


def test_labels_go_into_the_images_themselves(tmp_path, fakes):
    import ngio

    path = tmp_path / "data" / "img.zarr"
    image = np.stack([fakes.discs((200, 210), seed=s)[0, 0] for s in range(2)])[:, None]
    ngio.create_ome_zarr_from_array(
        store=str(path), array=image, pixelsize=0.5, axes_names=list("tcyx"), levels=2
    )
    summary = run(path, backend="flat")
    assert summary.outputs == (path / "labels" / "cells",)
    opened = ngio.open_ome_zarr_container(str(path))
    labels = opened.get_label("cells").get_as_numpy()
    assert ((labels > 0) == (image[:, 0] > 0)).all()
    assert [p.name for p in (tmp_path / "data").iterdir() if p.name[0] != "."] == ["img.zarr"]
    with pytest.raises(UsageError, match="cells exists"):
        run(path, backend="flat")
    run(path, backend="flat", label_name="more")
    assert sorted(ngio.open_ome_zarr_container(str(path)).list_labels()) == ["cells", "more"]
    run(path, backend="flat", overwrite=True)
    with pytest.raises(UsageError, match="--output"):
        run(path, backend="flat", format=("csv",), overwrite=True)
    # And elsewhere, in other formats, if asked.
    run(path, backend="flat", output=tmp_path / "out", format=("tiff", "ome-zarr"))
    assert (read(tmp_path / "out" / "img.tif") == labels).all()
    assert (tmp_path / "out" / "img.ome.zarr" / "labels" / "cells").is_dir()


def test_a_real_plate(tmp_path, real_data, fakes):
    shutil.copytree(real_data / "ome_zarr" / "dsb2018_plate.zarr", tmp_path / "plate.zarr")
    summary = run(tmp_path / "plate.zarr", backend="flat", tile_size=64, halo=24)
    assert summary.images == 6
    assert summary.objects > 50
    for row in "BC":
        for column in ("03", "04", "05"):
            labels = tmp_path / "plate.zarr" / row / column / "0" / "labels"
            assert "cells" in json.loads((labels / ".zattrs").read_text())["labels"]
            assert "nuclei_gt" in json.loads((labels / ".zattrs").read_text())["labels"]
    run(tmp_path / "plate.zarr", backend="flat", output=tmp_path / "out", tile_size=64, halo=24)
    assert len(list((tmp_path / "out").rglob("*.tif"))) == 6
