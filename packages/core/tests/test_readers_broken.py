"""Every reader of many images gives the good ones with the error about the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import broken_plates as plates
import h5py
import numpy as np
import pytest
import tifffile
import zarr

from cellseg.errors import DataError, UnreadableImagesError
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset, open_readable, reader_for

PIXELS = np.arange(2 * 20 * 30, dtype=np.uint8).reshape(2, 20, 30) + 1
NAMES = "abc"


def tiffs(root: Path) -> tuple[str, Callable[[], object]]:
    for name in NAMES:
        tifffile.imwrite(root / f"{name}.tif", PIXELS[0])
    return "b.tif", lambda: (root / "b.tif").write_bytes(b"II*\0")


def sequences(root: Path) -> tuple[str, Callable[[], object]]:
    for name in ("01", "02", "03"):
        (root / name).mkdir()
        for number in range(2):
            tifffile.imwrite(root / name / f"t00{number}.tif", PIXELS[0])
    return "t001.tif", lambda: (root / "02" / "t001.tif").write_bytes(b"")


def ome_zarrs(root: Path) -> tuple[str, Callable[[], object]]:
    for name in NAMES:
        plates.write_field(root / f"{name}.ome.zarr", PIXELS)
    return "b.ome.zarr", lambda: (root / "b.ome.zarr" / "0" / ".zarray").unlink()


def damaged_ome_zarrs(root: Path) -> tuple[str, Callable[[], object]]:
    ome_zarrs(root)
    return "b.ome.zarr", lambda: (root / "b.ome.zarr" / ".zattrs").write_text("{")


def zarrs(root: Path) -> tuple[str, Callable[[], object]]:
    for name in NAMES:
        group = zarr.open_group(root / f"{name}.zarr", mode="w", zarr_format=3)
        group.create_array("raw", data=PIXELS)
        group["raw"].attrs["axes"] = "zyx"
    return "b.zarr", lambda: (root / "b.zarr" / "raw" / "zarr.json").write_text("{")


def hdf5s(root: Path) -> tuple[str, Callable[[], object]]:
    for name in NAMES:
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["raw"] = PIXELS
            file["raw"].attrs["axes"] = "zyx"
    return "b.h5", lambda: (root / "b.h5").write_bytes(b"\x89HDF")


def niftis(root: Path) -> tuple[str, Callable[[], object]]:
    nibabel = pytest.importorskip("nibabel")
    for name in NAMES:
        nibabel.save(nibabel.Nifti1Image(PIXELS.T, np.eye(4)), root / f"{name}.nii.gz")
    return "b.nii.gz", lambda: (root / "b.nii.gz").write_bytes(b"")


def cremis(root: Path) -> tuple[str, Callable[[], object]]:
    for name in NAMES:
        with h5py.File(root / f"sample_{name.upper()}_20160501.hdf", "w") as file:
            file["volumes/raw"] = PIXELS
            file["volumes/raw"].attrs["resolution"] = (40.0, 4.0, 4.0)
    bad = root / "sample_B_20160501.hdf"
    return bad.name, lambda: bad.write_bytes(b"\x89HDF")


def collections(root: Path) -> tuple[str, Callable[[], object]]:
    for name in NAMES:
        (root / name).mkdir()
        tifffile.imwrite(root / name / "x.tif", PIXELS[0])
    listed = [{"path": name, "reader": "folder"} for name in NAMES]
    (root / "datasets.yaml").write_text(json.dumps({"datasets": listed}))
    return "x.tif", lambda: (root / "b" / "x.tif").write_bytes(b"II*\0")


MAKERS = [
    ("folder", tiffs),
    ("ctc", sequences),
    ("ome-zarr", ome_zarrs),
    ("ome-zarr", damaged_ome_zarrs),
    ("zarr", zarrs),
    ("hdf5", hdf5s),
    ("nifti", niftis),
    ("cremi", cremis),
    ("collection", collections),
]


@pytest.mark.parametrize(("name", "make"), MAKERS, ids=[make.__name__ for _, make in MAKERS])
def test_the_good_images_come_with_the_error(
    tmp_path: Path, name: str, make: Callable[[Path], tuple[str, Callable[[], object]]]
) -> None:
    plugins = Plugins()
    file, damage = make(tmp_path)
    whole = [sample.name for sample in open_dataset(plugins, tmp_path, "auto", {}, False)]
    damage()
    reader = reader_for(plugins, tmp_path)
    assert reader.name == name
    options = parse(reader.options, {}, name)
    samples, problems = open_readable(reader, tmp_path, options)
    broken = set(whole) - {sample.name for sample in samples}
    assert [sample.name for sample in samples] == [one for one in whole if one not in broken]
    assert len(problems) == 1 and broken
    (key,) = problems
    assert any(one.startswith(key) for one in broken)
    assert file in problems[key]
    with pytest.raises(UnreadableImagesError) as error:
        reader.open(tmp_path, options, False)
    assert str(error.value) == problems[key]  # one problem is told as it would be alone


def test_nothing_but_broken_images_is_a_plain_error(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.tif").write_bytes(b"II*\0")
    with pytest.raises(DataError, match="3 images cannot be used") as error:
        open_dataset(Plugins(), tmp_path, "auto", {}, False)
    assert not isinstance(error.value, UnreadableImagesError)


@pytest.mark.parametrize("make", [ome_zarrs, zarrs])
def test_a_damaged_first_container_hides_no_others(
    tmp_path: Path, make: Callable[[Path], tuple[str, Callable[[], object]]]
) -> None:
    make(tmp_path)
    first = min(tmp_path.iterdir())
    metadata = next(one for one in (first / ".zattrs", first / "zarr.json") if one.is_file())
    metadata.write_text("{")
    plugins = Plugins()
    reader = reader_for(plugins, tmp_path)
    samples, problems = open_readable(reader, tmp_path, reader.options())
    assert len(samples) == 2 and len(problems) == 1
