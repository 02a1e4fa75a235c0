from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from cellseg.data import Sample
from cellseg.errors import DataError, UnknownPluginError
from cellseg.hookspecs import hookimpl
from cellseg.options import NoOptions
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for
from cellseg.specs import DatasetSpec, ExporterSpec, ExportJob

plugins = Plugins([])
NAMES = ("folder", "tiff", "ome-zarr", "plate", "zarr", "hdf5")


def with_reader(samples: list[Sample]) -> Plugins:
    card = DatasetSpec(
        name="mine", summary="mine", open=lambda *_: samples, recognises=lambda path: True
    )
    some = Plugins([])
    some.register(SimpleNamespace(cellseg_datasets=hookimpl(lambda: [card])), "mine")
    return some


def test_all_readers_are_there_and_importing_them_is_light() -> None:
    assert set(NAMES) <= set(plugins.all(DatasetSpec))
    code = (
        "import sys, cellseg.builtin, cellseg.readers, cellseg.readers.options;"
        "from cellseg.plugins import Plugins; from cellseg.specs import DatasetSpec;"
        "Plugins([]).all(DatasetSpec);"
        "heavy = {'numpy', 'tifffile', 'zarr', 'h5py', 'ngio'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_needs_exactly_one(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 9), np.uint8))
    assert reader_for(plugins, tmp_path).name == "folder"
    assert reader_for(plugins, tmp_path / "a.tif").name == "tiff"
    assert reader_for(plugins, tmp_path, "tiff").name == "tiff"
    with pytest.raises(DataError, match="folder and mine"):
        reader_for(with_reader([]), tmp_path)
    (tmp_path / "b.czi").write_bytes(b"x")
    with pytest.raises(DataError, match="is no image that a reader recognises") as error:
        reader_for(plugins, tmp_path / "b.czi")
    assert all(name in error.value.hint for name in NAMES)
    (tmp_path / "c.nd2").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        reader_for(plugins, tmp_path / "c.nd2")
    with pytest.raises(UnknownPluginError, match="No dataset called 'tif'"):
        reader_for(plugins, tmp_path, "tif")


def test_what_a_reader_owes_is_checked(tmp_path: Path) -> None:
    image = np.zeros((1, 1, 8, 9))
    good = Sample(name="a", image=image, labels=np.zeros((1, 8, 9), np.uint8))

    def opened(*samples: Sample):
        return open_dataset(with_reader(list(samples)), tmp_path, "mine", {}, True)

    assert len(opened(good)) == 1
    for bad, message in (
        (replace(good, labels=None), "has no labels"),
        (replace(good, labels=np.zeros((1, 9, 8), int)), r"\(1, 9, 8\)"),
        (replace(good, labels=np.zeros((1, 8, 9))), "labels are float64"),
    ):
        with pytest.raises(DataError, match=message):
            opened(bad)
    with pytest.raises(DataError, match="several images are called a"):
        opened(good, good)
    with pytest.raises(DataError, match="holds no images"):
        opened()


def test_zip_packs_the_bundle_first_and_the_same_each_time(tmp_path: Path) -> None:
    from cellseg.bundle import Bundle

    model = tmp_path / "model"
    (model / "a").mkdir(parents=True)
    (model / "a/weights.bin").write_bytes(bytes(range(256)) * 50)
    Bundle(backend="otsu").save(model)
    card = plugins.get(ExporterSpec, "zip")
    events: list[object] = []
    targets = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for target in targets:
        job = ExportJob(options=NoOptions(), model=model, target=target)
        assert card.export(job, events.append) == target
    with zipfile.ZipFile(targets[0]) as archive:
        assert archive.namelist() == ["bundle.json", "a/weights.bin"]
        archive.extractall(tmp_path / "out")
    assert targets[0].read_bytes() == targets[1].read_bytes()
    assert Bundle.find(tmp_path / "out")[1].backend == "otsu"
    (model / "bundle.json").unlink()
    with pytest.raises(DataError):
        card.export(ExportJob(options=NoOptions(), model=model, target=tmp_path / "3.zip"), print)
    assert not (tmp_path / "3.zip").exists()
