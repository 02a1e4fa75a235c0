"""Damaged input and places that cannot be written: one line that names the file, nothing half-made.

What is true of one command is true of all that read images, so each damage meets each of them.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import tifffile

from cellseg.bundle import Bundle
from cellseg.errors import CellsegError, ConfigError, DataError, PartialError, StorageError
from cellseg.options import parse, read_config
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.splits import Splits
from cellseg.testing import blobs
from cellseg.workflows.check import check
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import resume, train
from cellseg.workflows.train_settings import TrainSettings

Options: TypeAlias = dict[str, object]
EPOCHS = TrainSettings.model_validate({"epochs": 1})


def pixels(seed: int) -> tuple[Any, Any]:
    """An image and labels, ``(y, x)`` uint16."""
    sample = blobs(seed)
    assert sample.labels is not None
    image = 100 + 1000 * (np.asarray(sample.image)[0, 0] + 0.5).clip(0)
    return image.astype(np.uint16), np.asarray(sample.labels)[0].astype(np.uint16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in range(4):
        image, labels = pixels(seed)
        tifffile.imwrite(folder / f"images/{seed}.tif", image)
        tifffile.imwrite(folder / f"labels/{seed}.tif", labels)
    return folder


@pytest.fixture
def containers(tmp_path: Path) -> Path:
    """Two Zarr containers with ``raw`` and ``label``, in four chunks each."""
    import zarr

    for seed in range(2):
        group = zarr.open_group(tmp_path / f"data/{seed}.zarr", mode="w")
        for name, array in zip(("raw", "label"), pixels(seed), strict=True):
            group.create_array(name, data=array, chunks=(32, 32), dimension_names=("y", "x"))
    return tmp_path / "data"


def one_line(error: CellsegError, name: str) -> None:
    assert name in str(error), f"{error} does not name {name}"
    assert "\n" not in str(error) and "Traceback" not in str(error)
    assert "\n" not in (error.hint or "")


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def refused(path: Path, name: str, trained: bool = True) -> None:
    """Reading, checking and training all refuse ``path``, name the file and leave nothing.

    ``trained`` is False for what training with Otsu's threshold does not read: pixels of labels.
    """
    before = files(path.parent)
    with pytest.raises(DataError) as error:
        for sample in open_dataset(Plugins(), path, "auto", {}, labelled=True):
            assert sample.labels is not None
            sample.image[tuple(slice(0, n) for n in sample.image.shape)]
            sample.labels[tuple(slice(0, n) for n in sample.labels.shape)]
    one_line(error.value, name)
    check_refuses(path, name)
    if trained:
        train_refuses(path, name)
    assert files(path.parent) == before


def check_refuses(path: Path, name: str) -> None:
    report = check(Plugins(), path)
    assert not report.ok
    bad = [file for file in report.files if file.verdict == "error"]
    assert len(bad) == 1 and (name in str(bad[0].path) or name in bad[0].findings[0].message)
    assert all("\n" not in line for line in report.lines())


def train_refuses(path: Path, name: str) -> None:
    run = path.parent / "run"
    with pytest.raises(DataError) as error:
        train(Plugins(), "otsu", path, run, settings=EPOCHS)
    one_line(error.value, name)
    unfinished = files(run) if run.exists() else []
    assert not any(file.startswith("model/") for file in unfinished), "no model of damaged data"
    if run.exists():
        for file in sorted(run.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        run.rmdir()


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_truncated_tiff(data: Path, kind: str, compression: str | None, keep: float) -> None:
    file = data / kind / "2.tif"
    tifffile.imwrite(file, tifffile.imread(file), compression=compression)
    cut(file, keep)
    refused(data, f"{kind}/2.tif")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_file_of_zero_bytes(data: Path, kind: str) -> None:
    (data / kind / "1.tif").write_bytes(b"")
    refused(data, f"{kind}/1.tif")


def test_a_single_file_of_zero_bytes(tmp_path: Path) -> None:
    for name in ("a.tif", "a.h5", "a.png"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError) as error:
            open_dataset(Plugins(), tmp_path / name, "auto", {}, labelled=False)
        one_line(error.value, name)


def test_labels_of_another_shape(data: Path) -> None:
    tifffile.imwrite(data / "labels/3.tif", np.ones((64, 63), np.uint16))
    refused(data, "3")


def test_an_image_with_nan(data: Path) -> None:
    image = pixels(2)[0].astype(np.float32)
    image[10, 10] = np.nan
    tifffile.imwrite(data / "images/2.tif", image)
    check_refuses(data, "2")
    train_refuses(data, "2")


def a_chunk(array: Path) -> Path:
    return sorted(file for file in (array / "c").rglob("*") if file.is_file())[1]


@pytest.mark.parametrize(
    ("array", "damage"),
    [
        ("raw", Path.unlink),
        ("raw", lambda chunk: cut(chunk, 0.5)),
        ("label", lambda chunk: cut(chunk, 0.5)),
        ("raw", lambda chunk: chunk.write_bytes(b"")),
    ],
)
def test_zarr_with_a_bad_chunk(
    containers: Path, array: str, damage: Callable[[Path], object]
) -> None:
    damage(a_chunk(containers / "0.zarr" / array))
    refused(containers, f"0.zarr/{array}", trained=array == "raw")


def test_zarr_with_bad_metadata(containers: Path) -> None:
    cut(containers / "1.zarr/raw/zarr.json", 0.5)
    with pytest.raises(DataError) as error:
        open_dataset(Plugins(), containers, "zarr", {}, labelled=True)
    one_line(error.value, "1.zarr")


def test_yaml_with_a_typo(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("epochs: 3\nval_fractoin: 0.3\n")
    with pytest.raises(ConfigError) as error:
        parse(TrainSettings, read_config(config), str(config))
    one_line(error.value, "config.yaml")
    assert "'val_fractoin'" in str(error.value) and "val_fraction" in (error.value.hint or "")
    for text in ("epochs: [3", "- epochs", "epochs: 3\n\x00"):
        config.write_text(text)
        with pytest.raises(ConfigError) as error:
            read_config(config)
        one_line(error.value, "config.yaml")


@pytest.fixture
def model(data: Path, tmp_path: Path) -> Path:
    return train(Plugins(), "otsu", data, tmp_path / "good", settings=EPOCHS).path


@pytest.mark.parametrize("damage", ["empty", "cut", "nan"])
def test_predicting_damaged_images(data: Path, model: Path, tmp_path: Path, damage: str) -> None:
    """A bad image never comes out as an empty result."""
    file = data / "images/2.tif"
    if damage == "nan":
        image = pixels(2)[0].astype(np.float32)
        image[10, 10] = np.nan
        tifffile.imwrite(file, image)
    else:
        cut(file, 0.0 if damage == "empty" else 0.5)
    out = tmp_path / "out"
    settings = PredictSettings(model=model, output=out)
    with pytest.raises((DataError, PartialError)) as error:
        predict(Plugins(), data / "images", settings, emit=lambda event: None)
    one_line(error.value, "2")
    results = [name for name in files(out) if not name.startswith(".")] if out.exists() else []
    assert not any(Path(name).name.startswith("2") for name in results)
    if isinstance(error.value, PartialError):
        assert len([name for name in results if name.endswith(".tif")]) == 3, "the others are done"


# Places that cannot be written


def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, where this user may mount one."""
    if not sys.platform.startswith("linux"):
        pytest.skip("mounts a tmpfs, which only Linux has")
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"may not mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "size=256k")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "size=64k,ro")


def fill(disk: Path, leave: int) -> None:
    """Leave so many bytes (in pages) free."""
    state = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(state.f_bavail * state.f_frsize - leave))


def whole(folder: Path) -> None:
    """Nothing in a run is half-written, and no temporary file is left."""
    for file in folder.rglob("*"):
        assert not file.name.startswith(".part-"), file
        if file.suffix == ".json":
            json.loads(file.read_text())


def test_a_run_without_write_permission(data: Path, read_only_disk: Path) -> None:
    with pytest.raises(StorageError) as error:
        train(Plugins(), "otsu", data, read_only_disk / "run", settings=EPOCHS)
    one_line(error.value, "disk/run")
    assert not (read_only_disk / "run").exists()


def test_permission_denied(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where nothing can be mounted: the system refuses to make the directory."""
    mkdir = os.mkdir

    def refuse(path: Any, *args: Any, **kwargs: Any) -> None:
        if str(path).startswith(str(tmp_path / "run")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StorageError, match="permission denied") as error:
        train(Plugins(), "otsu", data, tmp_path / "run", settings=EPOCHS)
    one_line(error.value, "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "leave",
    [
        0,
        4096,
        2 * 4096,
        4 * 4096,
        6 * 4096,
    ],
)
def test_training_onto_a_full_disk(data: Path, small_disk: Path, leave: int) -> None:
    """However early the disk is full, what is there is whole; and with space, it goes on."""
    fill(small_disk, leave)
    run = small_disk / "run"
    with pytest.raises(StorageError, match="the disk is full") as error:
        train(Plugins(), "otsu", data, run, settings=EPOCHS)
    one_line(error.value, "disk/run")
    assert not list(run.rglob(".part-*"))
    whole(run)
    (small_disk / "filler").unlink()
    if (run / "run.json").exists():
        finished = resume(Plugins(), run)
    else:
        finished = train(Plugins(), "otsu", data, run, settings=EPOCHS)
    assert Bundle.load(finished.model).backend == "otsu"


def test_saving_splits_onto_a_full_disk(small_disk: Path) -> None:
    file = small_disk / "splits.json"
    Splits(train=("a",)).save(file)
    fill(small_disk, 0)
    with pytest.raises(StorageError) as error:
        Splits(train=tuple(map(str, range(10_000)))).save(file)
    one_line(error.value, "splits.json")
    assert Splits.load(file) == Splits(train=("a",)), "the old one is still there"
    assert files(small_disk) == ["filler", "splits.json"]


def test_predicting_onto_a_full_disk(data: Path, model: Path, small_disk: Path) -> None:
    fill(small_disk, 8 * 4096)
    out = small_disk / "out"
    with pytest.raises(StorageError, match="the disk is full") as error:
        predict(Plugins(), data / "images", PredictSettings(model=model, output=out), emit=print)
    one_line(error.value, "disk")
    for name in files(out):
        if name.endswith(".tif"):
            assert tifffile.imread(out / name).shape == (64, 64), "what is written is whole"
    (small_disk / "filler").unlink()
