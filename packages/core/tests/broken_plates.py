"""An OME-Zarr plate in which almost every well has a fault of its own, and their repair."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import engine_fakes
import numpy as np
import zarr

SIZE = (96, 128)
WHOLE = ("A/01/0", "A/01/1", "B/01/0", "B/03/1", "C/01/0", "C/01/1", "C/03/0")
"""Fields that can be segmented in the broken plate."""
FAULTS = {
    "A/02": "this well of the plate is missing",
    "A/03": "this well of the plate is empty",
    "B/01/1": "is no OME-Zarr image",
    "B/02/0": "cannot be read",
    "B/02/1": "the level 0 is missing",
    "B/03/0": "is cut short",
    "C/02/0": "NaN or infinite",
    "C/02/1": "the chunk 0/1/1 is missing",
}
"""What is wrong with the others; a well that is missing counts once, as nothing is known of it."""
WELLS = [f"{row}/0{column}" for row in "ABC" for column in (1, 2, 3)]


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Discs, float32, ``(c, y, x)``; zarr writes no chunk that is all 0."""
    return engine_fakes.discs(size, seed=seed)[0].astype(np.float32) + 1


def whole_plate(path: Path) -> Path:
    """A plate of 9 wells with the fields 0 and 1 each; the last well has only one."""
    zarr.open_group(path, mode="w", zarr_format=2).attrs["plate"] = {
        "wells": [{"path": well} for well in WELLS]
    }
    for number, well in enumerate(WELLS):
        fields = (0,) if well == "C/03" else (0, 1)
        group = zarr.open_group(path / well, mode="w", zarr_format=2)
        group.attrs["well"] = {"images": [{"path": str(field)} for field in fields]}
        for field in fields:
            size = (80, 100) if well == "C/01" and field else SIZE
            write_field(path / well / str(field), pixels(10 * number + field, size))
    return path


def write_field(path: Path, image: np.ndarray) -> None:
    """An OME-Zarr 0.4 image ``(c, y, x)`` in chunks of 64."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    separated = {"name": "v2", "separator": "/"}
    group.create_array("0", data=image, chunks=(1, 64, 64), chunk_key_encoding=separated)
    axes = [{"name": "c", "type": "channel"}] + [{"name": a, "type": "space"} for a in "yx"]
    scale = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": datasets, "version": "0.4"}]


def broken_plate(path: Path) -> Path:
    """The plate with each of the ``FAULTS``."""
    whole_plate(path)
    shutil.rmtree(path / "A" / "02")
    attributes = path / "A" / "03" / ".zattrs"
    attributes.write_text(json.dumps({"well": {"images": []}}))
    shutil.rmtree(path / "B" / "01" / "1")
    metadata = path / "B" / "02" / "0" / ".zattrs"
    metadata.write_text(metadata.read_text()[:100])
    shutil.rmtree(path / "B" / "02" / "1" / "0")
    chunk = path / "B" / "03" / "0" / "0" / "0" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    dark = pixels(0)
    dark[0, :9, :9] = np.nan
    write_field(path / "C" / "02" / "0", dark)
    (path / "C" / "02" / "1" / "0" / "0" / "1" / "1").unlink()
    return path


def mended(path: Path) -> Path:
    """The same plate without the faults, in place."""
    shutil.rmtree(path)
    return whole_plate(path)
