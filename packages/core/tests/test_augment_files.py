"""Where augmented data sets are written, what their images are called, and what cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from cellseg.errors import ConfigError, DataError, StorageError
from cellseg.intensity import restored
from cellseg.ome.image import write_image
from cellseg.options import parse
from cellseg.outputs.pairs import Pair, write_pair
from cellseg.outputs.result import Result
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.workflows.augment import augment
from cellseg.workflows.augment_settings import AugmentSettings

plugins = Plugins([])
KILLED = """
import os, signal, sys
from pathlib import Path
from cellseg.plugins import Plugins
from cellseg.workflows.augment import augment
kill = lambda event: os.kill(os.getpid(), signal.SIGKILL)
augment(Plugins([]), Path(sys.argv[1]), Path(sys.argv[2]), emit=kill)
"""


def cells(folder: Path, names: tuple[str, ...] = ("a", "b"), **kwargs: object) -> Path:
    labels = np.zeros((1, 32, 32), np.uint8)
    labels[0, 8:20, 8:20] = 1
    for seed, name in enumerate(names):
        image = np.random.default_rng(seed).integers(0, 200, (1, 1, 32, 32)).astype(np.uint8)
        write_pair(Pair(name, image, labels, **kwargs), folder, "tif")  # type: ignore[arg-type]
    return folder


def run(data: Path, out: Path, **options: object) -> None:
    augment(plugins, data, out, parse(AugmentSettings, {"copies": 1, **options}))


def names(folder: Path) -> list[str]:
    return [sample.name for sample in open_dataset(plugins, folder, "auto", {}, labelled=True)]


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    data = cells(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "new").symlink_to("to/be/made")
    run(data, tmp_path / "link")
    run(data, tmp_path / "new")
    assert names(tmp_path / "empty") == names(tmp_path / "to/be/made")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "new").is_symlink()


def test_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = cells(tmp_path / "data")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path("."), Path("../here"), tmp_path / "here"):
        with pytest.raises(DataError, match="cannot be replaced") as error:
            run(data, out)
        assert f"--output {out / 'augmented'}" in (error.value.hint or "")
    run(data, Path("out"))
    assert names(tmp_path / "here" / "out") == ["a", "a_aug1", "b", "b_aug1"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file is a file, not a folder"):
        run(cells(tmp_path / "data"), tmp_path / "file" / "deep" / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_what_a_kill_left_is_removed_by_the_next_command(tmp_path: Path) -> None:
    data = cells(tmp_path / "data")
    code = [sys.executable, "-c", KILLED, str(data), str(tmp_path / "out")]
    assert subprocess.run(code).returncode == -9
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".part-")]
    assert len(left) == 1 and not (tmp_path / "out").exists()
    other = tmp_path / ".part-7-mine"
    other.mkdir()
    run(data, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "data", "out"]


def test_names_that_would_be_one_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("x/one", "x_one"):
            file[f"{name}/raw"], file[f"{name}/label"] = np.eye(40), np.eye(40, dtype=np.uint8)
    said = "would be called x_one, x_one_aug1: the first of these names is for x/one and x_one"
    with pytest.raises(DataError, match=said) as error:
        run(tmp_path / "a.h5", tmp_path / "out")
    assert "Rename one" in (error.value.hint or "")


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")
def test_a_name_that_is_no_unicode_is_changed(tmp_path: Path) -> None:
    data = cells(tmp_path / "data")
    for kind in ("images", "labels"):
        strange = os.fsdecode(b"caf\xe9.tif")
        (data / kind / "a.tif").rename(data / kind / strange)
    for format in ("tif", "ome-zarr", "hdf5"):
        run(data, tmp_path / format, format=format)
        assert names(tmp_path / format) == ["b", "b_aug1", "caf_", "caf__aug1"]


def test_where_all_images_validate_there_is_nothing_to_do(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["val/raw"], file["val/label"] = np.eye(40), np.eye(40, dtype=np.uint8)
    with pytest.raises(DataError, match="All images are for validation"):
        run(tmp_path / "a.h5", tmp_path / "out")


def test_the_depth_is_swapped_where_voxels_are_cubes(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 99, (1, 24, 24, 24)).astype(np.uint8)
    for name, depth in (("cubes", 0.55), ("flat", 2.0)):
        pair = Pair("v", image, (image[0] > 50).astype(np.uint8), (depth, 0.5, 0.5))
        write_pair(pair, tmp_path / name, "tif")
    run(tmp_path / "cubes", tmp_path / "out", swap_depth_probability=0.5)
    with pytest.raises(ConfigError, match=r"voxels of v are no cubes, but 2 x 0\.5 x 0\.5 µm"):
        run(tmp_path / "flat", tmp_path / "none", swap_depth_probability=0.5)


def test_an_option_without_its_change_is_refused() -> None:
    with pytest.raises(ConfigError, match="--gain-noise-range does nothing with --gain-noise-prob"):
        parse(AugmentSettings, {"gain_noise_range": 0.1})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_floats_are_clipped_to_what_their_type_holds(dtype: str) -> None:
    block = np.array([-1, 0.5, 2], np.float32).reshape(1, 1, 1, 3)
    most = float(np.finfo(dtype).max)
    found = restored(block, (0.0,), (1 / most,), np.dtype(dtype)).ravel()
    assert found.dtype == dtype and np.isfinite(found).all()
    np.testing.assert_allclose(found.astype(float) / most, [-1, 0.5, 1], rtol=1e-3)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64"])
def test_the_smaller_levels_do_not_wrap_around(tmp_path: Path, dtype: str) -> None:
    most = np.iinfo(dtype).max
    image = np.full((1, 1, 700, 20), most, dtype)
    result = Result("a", (np.zeros(image.shape[1:], np.uint32),), ())
    write_image(tmp_path / "a.zarr", image, result)
    import zarr

    level = zarr.open_array(tmp_path / "a.zarr" / "1", mode="r")[...]
    assert level.shape[-2:] == (350, 10) and (level >= most - most // 1000).all()
