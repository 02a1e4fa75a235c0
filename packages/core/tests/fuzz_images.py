"""Small valid images of every kind that cellseg reads, to be damaged (see ``fuzz_targets``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

PIXELS = (np.arange(48 * 48) % 251).astype(np.uint16).reshape(48, 48)
LABELS = np.kron(np.arange(9).reshape(3, 3), np.ones((16, 16), int)).astype(np.uint16)


def make_tiff(name: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tifffile.imwrite(folder / name, PIXELS, **options)
        return folder / name

    return make


def make_jpeg_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", PIXELS.astype(np.uint8), compression="jpeg", tile=(16, 16))
    return folder / "a.tif"


def make_raster(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import imagecodecs

        kind = "png" if name.endswith("png") else "jpeg"
        pixels = PIXELS.astype(np.uint8)
        (folder / name).write_bytes(getattr(imagecodecs, f"{kind}_encode")(pixels))
        return folder / name

    return make


def make_folder(folder: Path) -> Path:
    for kind, array in (("images", PIXELS), ("labels", LABELS)):
        (folder / kind).mkdir()
        tifffile.imwrite(folder / kind / "a.tif", array, compression="lzw")
    return folder


def make_ome_group(path: Path, pixels: Any, format: Any = 2) -> Path:
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=format)
    made = group.create_array("0", shape=pixels.shape, chunks=(24, 24), dtype=pixels.dtype)
    made[:] = pixels
    transform = [{"type": "scale", "scale": [0.5, 0.5]}]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    datasets = [{"path": "0", "coordinateTransformations": transform}]
    about: dict[str, Any] = {"axes": axes, "datasets": datasets}
    if format == 2:
        group.attrs.update({"multiscales": [{"version": "0.4", **about}]})
    else:
        group.attrs.update({"ome": {"version": "0.5", "multiscales": [about]}})
    return path


def make_ome_zarr(format: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = make_ome_group(folder / "a.ome.zarr", PIXELS, format)
        labels = make_ome_group(path / "labels/cells", LABELS, format)
        assert labels.is_dir()
        return path

    return make


def make_plate(folder: Path) -> Path:
    path = folder / "plate.zarr"
    image = make_ome_group(path / "A/1/0", PIXELS)
    for group, about in (
        (path, {"plate": {"wells": [{"path": "A/1"}]}}),
        (image.parent, {"well": {"images": [{"path": "0", "acquisition": 1}]}}),
    ):
        (group / ".zgroup").write_text('{"zarr_format": 2}')
        (group / ".zattrs").write_text(json.dumps(about))
    return path


def make_zarr(**options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import zarr

        group = zarr.open_group(
            folder / "a.zarr", mode="w", zarr_format=options.get("zarr_format", 3)
        )
        more = {k: v for k, v in options.items() if k != "zarr_format"}
        for name, pixels in (("raw", PIXELS), ("label", LABELS)):
            made = group.create_array(
                name, shape=pixels.shape, chunks=(24, 24), dtype=pixels.dtype, **more
            )
            made[:] = pixels
        return folder / "a.zarr"

    return make


def make_hdf5(name: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import h5py

        with h5py.File(folder / name, "w") as file:
            file.create_dataset("raw", data=PIXELS, **options)
            file.create_dataset("label", data=LABELS, **options).attrs["axes"] = "YX"
        return folder / name

    return make


def make_cremi(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "sample_A.hdf", "w") as file:
        for key, dtype in (("raw", np.uint8), ("labels/neuron_ids", np.uint64)):
            data = np.ones((4, 24, 24), dtype)
            made = file.create_dataset(f"volumes/{key}", data=data)
            made.attrs["resolution"] = (40.0, 4.0, 4.0)
    return folder / "sample_A.hdf"


def make_snemi3d(folder: Path) -> Path:
    volume = np.stack([PIXELS.astype(np.uint8)] * 3)
    for name, dtype in (("train-input", np.uint8), ("train-labels", np.uint16)):
        tifffile.imwrite(folder / f"{name}.tif", volume.astype(dtype), photometric="minisblack")
    return folder


def make_nifti(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import nibabel

        volume = np.arange(16 * 12 * 8, dtype=np.int16).reshape(16, 12, 8)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / name)
        return folder / name

    return make


def make_nnunet(folder: Path) -> Path:
    import nibabel

    for place, name in (("imagesTr", "a_0000"), ("labelsTr", "a")):
        (folder / place).mkdir()
        volume = np.zeros((8, 8, 4), np.uint8)
        volume[2:5, 2:5] = 1
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / place / f"{name}.nii.gz")
    about = {"labels": {"background": 0, "cell": 1}, "channel_names": {"0": "dapi"}}
    (folder / "dataset.json").write_text(json.dumps(about))
    (folder / "split.json").write_text('{"train": ["a"], "val": []}')
    return folder


def make_ctc(folder: Path) -> Path:
    from ctc_data import write_sequence

    write_sequence(folder / "movie")
    return folder / "movie"


def make_collection(folder: Path) -> Path:
    (folder / "cells").mkdir()
    make_folder(folder / "cells")
    (folder / "datasets.yaml").write_text(
        "datasets:\n  - path: cells\n    name: one\n    weight: 2\n    class_name: cell\n"
        "    options: {axes: YX}\nclasses: [background, cell]\n"
    )
    return folder
