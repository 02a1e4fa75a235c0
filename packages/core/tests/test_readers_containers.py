from __future__ import annotations

import multiprocessing
import operator
import pickle
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from cellseg.errors import DataError
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, reader_for

DATA = Path(__file__).parents[3] / "../shared/data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the repository")
plugins = Plugins()
VOLUME = np.random.default_rng(0).integers(1, 999, (6, 30, 40)).astype(np.uint16)
KINDS = ["hdf5", "zarr"]


def write(kind: str, path: Path, arrays: dict[str, np.ndarray], **attributes: object) -> Path:
    path = path.with_suffix(".h5" if kind == "hdf5" else ".zarr")
    root = h5py.File(path, "w") if kind == "hdf5" else zarr.open_group(path, mode="w")
    for name, pixels in arrays.items():
        chunks = tuple(min(n, 16) for n in pixels.shape)
        if kind == "hdf5":
            array = root.create_dataset(name, data=pixels, chunks=chunks, compression="gzip")
        else:
            array = root.create_array(name, data=pixels, chunks=chunks)
        for key, value in attributes.items():
            array.attrs[key] = value
    if kind == "hdf5":
        root.close()
    return path


def read(path: Path, labelled: bool = True, **options: object):
    return open_dataset(plugins, path, "auto", options, labelled)


@pytest.mark.parametrize("kind", KINDS)
def test_one_volume_by_key(tmp_path: Path, kind: str) -> None:
    arrays = {"raw": VOLUME, "labels": VOLUME + 1, "volumes/em": VOLUME + 2}
    path = write(kind, tmp_path / "a", arrays)
    assert reader_for(plugins, path).name == kind
    with pytest.raises(DataError, match="ambiguous"):
        read(path)
    (sample,) = read(path, axes="ZYX")
    assert sample.name == "a"
    assert np.array_equal(sample.image[:, 1:3, 5:20][0], VOLUME[1:3, 5:20])
    assert np.array_equal(pickle.loads(pickle.dumps(sample)).labels[:], VOLUME + 1)
    (sample,) = read(path, axes="ZYX", raw_key="volumes/em", label_key="labels")
    assert np.array_equal(sample.image[:][0], VOLUME + 2)
    assert read(path, labelled=False, axes="TYX")[5].name == "a#5"


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_key_lists_the_keys(tmp_path: Path, kind: str) -> None:
    path = write(kind, tmp_path / "a", {"image": VOLUME, "truth/cells": VOLUME})
    with pytest.raises(DataError, match="no array 'raw'") as error:
        read(path)
    assert "image, truth/cells" in error.value.hint and "--raw-key" in error.value.hint
    with pytest.raises(DataError, match="neither label nor labels") as error:
        read(path, raw_key="image")
    assert "truth/cells" in error.value.hint and "--label-key" in error.value.hint
    with pytest.raises(DataError, match="no array 'gt'"):
        read(path, raw_key="image", label_key="gt")
    (sample,) = read(path, raw_key="image", label_key="truth/cells", axes="ZYX")
    assert sample.labels.shape == (6, 30, 40)
    path = write(kind, tmp_path / "b", {"raw": VOLUME, "label": VOLUME, "labels": VOLUME})
    with pytest.raises(DataError, match="both label and labels"):
        read(path, axes="ZYX")


@pytest.mark.parametrize("kind", KINDS)
def test_pre_split_containers(tmp_path: Path, kind: str) -> None:
    arrays = {
        f"{split}/{name}/{key}": VOLUME
        for split, names in {"train": "ab", "val": "c", "test": "d"}.items()
        for name in names
        for key in ("raw", "label")
    }
    samples = read(write(kind, tmp_path / "a", arrays), axes="ZYX")
    assert [(s.name, s.split) for s in samples] == [
        ("train/a", "train"),
        ("train/b", "train"),
        ("val/c", "val"),
    ]
    arrays = {
        f"{s}/{k}/{n}": VOLUME for s in ("train", "val") for k in ("raw", "label") for n in "ab"
    }
    samples = read(write(kind, tmp_path / "b", arrays), axes="ZYX")
    assert [(s.name, s.split) for s in samples] == [
        ("train/a", "train"),
        ("train/b", "train"),
        ("val/a", "val"),
        ("val/b", "val"),
    ]
    arrays = {f"{s}/{k}": VOLUME for s in ("train", "val") for k in ("raw", "label")}
    samples = read(write(kind, tmp_path / "c", arrays), axes="ZYX")
    assert [(s.name, s.split) for s in samples] == [("train", "train"), ("val", "val")]


@pytest.mark.parametrize("kind", KINDS)
def test_several_volumes_and_each_one_without_a_partner(tmp_path: Path, kind: str) -> None:
    arrays = {"a/raw": VOLUME, "a/label": VOLUME, "b/raw": VOLUME, "c/raw": VOLUME}
    path = write(kind, tmp_path / "a", arrays)
    assert [s.name for s in read(path, labelled=False, axes="ZYX")] == ["a", "b", "c"]
    with pytest.raises(DataError) as error:
        read(path, axes="ZYX")
    assert "/b: has neither" in str(error.value) and "/c: has neither" in str(error.value)
    arrays = {"a/raw": VOLUME, "a/label": VOLUME, "d/label": VOLUME}
    with pytest.raises(DataError, match="labels without 'raw' in: d"):
        read(write(kind, tmp_path / "c", arrays), axes="ZYX")
    arrays = {"raw/a": VOLUME, "label/a": VOLUME, "raw/b": VOLUME, "label/c": VOLUME}
    with pytest.raises(DataError, match="without labels: b; labels without an image: c"):
        read(write(kind, tmp_path / "b", arrays), axes="ZYX")


@pytest.mark.parametrize("kind", KINDS)
def test_axes_and_sizes_from_attributes(tmp_path: Path, kind: str) -> None:
    volume = {"raw": VOLUME, "label": VOLUME}
    path = write(kind, tmp_path / "a", volume, element_size_um=[0.3, 0.1, 0.2])
    (sample,) = read(path)
    assert sample.image.shape == (1, 6, 30, 40) and sample.spacing == (0.3, 0.1, 0.2)
    path = write(kind, tmp_path / "b", {"raw": VOLUME}, axes="cyx")
    assert read(path, labelled=False)[0].image.shape == (6, 1, 30, 40)
    path = write(kind, tmp_path / "c", {"raw": VOLUME[0]})
    assert read(path, labelled=False)[0].image.shape == (1, 1, 30, 40)
    path = write(kind, tmp_path / "d", {"raw": VOLUME.astype(np.complex64)}, axes="zyx")
    with pytest.raises(DataError, match="complex64"):
        read(path, labelled=False)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_that_differ_name_both(tmp_path: Path, kind: str) -> None:
    path = write(kind, tmp_path / "a", {"raw": VOLUME, "label": VOLUME[:, :9]}, axes="zyx")
    with pytest.raises(DataError, match=r"label and .*raw differ in shape.*6 x 9 x 40.*6 x 30 x"):
        read(path)


def test_a_folder_of_files(tmp_path: Path) -> None:
    for name in "ba":
        write("hdf5", tmp_path / name, {"raw": VOLUME, "label": VOLUME}, axes="zyx")
    assert [s.name for s in read(tmp_path)] == ["a", "b"]
    (tmp_path / "a.h5").write_bytes((tmp_path / "b.h5").read_bytes()[:-100])
    (tmp_path / "c.h5").write_bytes(b"")
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert "a.h5: cannot be read" in str(error.value) and "c.h5" in str(error.value)


def test_a_missing_chunk_of_a_zarr_container(tmp_path: Path) -> None:
    path = write("zarr", tmp_path / "a", {"raw": VOLUME, "label": VOLUME * 0}, axes="zyx")
    (sample,) = read(path)
    assert sample.labels[:].max() == 0
    (path / "raw/c/0/1/1").unlink()
    with pytest.raises(DataError, match="c/0/1/1 is missing"):
        sample.image[:]
    assert read(path, allow_missing_chunks=True)[0].image[:].min() == 0


def test_a_zarr_array_by_itself(tmp_path: Path) -> None:
    zarr.save_array(tmp_path / "a.zarr", VOLUME[0])
    assert np.array_equal(read(tmp_path / "a.zarr", labelled=False)[0].image[:][0, 0], VOLUME[0])
    with pytest.raises(DataError, match="single array"):
        read(tmp_path / "a.zarr")


@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_near_one_patch(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.h5" if kind == "hdf5" else "a.zarr")
    root = h5py.File(path, "w") if kind == "hdf5" else zarr.open_group(path, mode="w")
    create = root.create_dataset if kind == "hdf5" else root.create_array
    array = create("raw", shape=(256, 4096, 4096), chunks=(8, 128, 128), dtype="uint16")
    array.attrs["axes"] = "zyx"
    array[:8, :512, :512] = 1
    if kind == "hdf5":
        root.close()
    (sample,) = read(
        path, labelled=False, **({} if kind == "hdf5" else {"allow_missing_chunks": 1})
    )
    _ = sample.image[:, :1, :8, :8]
    tracemalloc.start()
    for corner in (0, 200, 3000):
        block = sample.image[:, :8, corner : corner + 512, corner : corner + 512]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * block.nbytes


@real
def test_real_volumes() -> None:
    (fly,) = read(DATA / "flyem_medulla/flyem_medulla_dev.h5")
    assert fly.image.shape == (1, 100, 250, 250) and fly.spacing == pytest.approx((0.01,) * 3)
    assert len(np.unique(fly.labels[:])) == 296
    (bodies,) = read(DATA / "flyem_medulla", label_key="labels_bodies")
    assert len(np.unique(bodies.labels[:])) == 232
    (nuclei,) = read(DATA / "plantseg_nuclei3d/1135_mini.h5")
    assert nuclei.spacing == pytest.approx((0.284, 0.127, 0.127), abs=1e-3)
    assert read(DATA / "plantseg_ovule3d/sample_ovule.h5")[0].image.shape == (1, 32, 128, 128)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_open_the_files_again(tmp_path: Path, start: str) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {start}")
    images = []
    for kind in KINDS:
        path = write(kind, tmp_path / "a", {"raw": VOLUME}, axes="zyx")
        images += [sample.image for sample in read(path, labelled=False)]
    assert all(np.array_equal(image[:][0], VOLUME) for image in images)
    take = operator.itemgetter((slice(None),))
    with multiprocessing.get_context(start).Pool(2) as pool:
        blocks = pool.map(take, images * 10)
    assert all(np.array_equal(block[0], VOLUME) for block in blocks)
