"""Small data sets in the layout of the Cell Tracking Challenge, and results of tracking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellseg.engine.tile import Objects
from cellseg.outputs.result import Result
from cellseg.tracks import Lineage, Track

Row = Mapping[int, int]
"""Ids of a frame, and in which of ten places each lies."""
DIVIDING: tuple[Row, ...] = ({1: 0, 2: 5}, {1: 0, 2: 5}, {1: 0, 3: 5, 4: 6}, {3: 5, 4: 6})
"""A cell that leaves, and one that divides."""
DIVIDING_TRACKS = "1 0 2 0\n2 0 1 0\n3 2 3 2\n4 2 3 2\n"


def draw(row: Row, shape: tuple[int, ...] = (16, 60)) -> NDArray[np.uint16]:
    """Labels with a block of 8 x 5 voxels (and all planes but the last) for each id."""
    labels = np.zeros(shape, np.uint16)
    for number, place in row.items():
        where = (slice(0, max(1, shape[0] - 1)),) if len(shape) == 3 else ()
        labels[(*where, slice(4, 12), slice(6 * place, 6 * place + 5))] = number
    return labels


def image(
    labels: NDArray[np.uint16], seed: int = 0, dtype: type = np.uint16
) -> NDArray[np.generic]:
    """Bright objects on a noisy ground."""
    noise = np.random.default_rng(seed).integers(0, 40, labels.shape)
    return np.where(labels > 0, 150 + noise, noise).astype(dtype)


def write_sequence(
    root: Path,
    name: str = "01",
    rows: Sequence[Row] = DIVIDING,
    table: str | None = DIVIDING_TRACKS,
    *,
    shape: tuple[int, ...] = (16, 60),
    frame: str = "t{:03}",
    first: int = 0,
    dtype: type = np.uint16,
    rgb: bool = False,
    seed: int = 0,
) -> None:
    """Write ``NN`` and ``NN_GT/TRA``."""
    (root / name).mkdir(parents=True)
    truth = root / f"{name}_GT" / "TRA"
    truth.mkdir(parents=True)
    for number, row in enumerate(rows, first):
        labels = draw(row, shape)
        pixels = image(labels, seed + number, dtype)
        stem = frame.format(number)
        digits = stem[len(stem.rstrip("0123456789")) :]
        if rgb:
            pixels = np.stack([pixels, pixels // 2, pixels // 3], axis=-1)
        kind = "rgb" if rgb else "minisblack"
        tifffile.imwrite(root / name / f"{stem}.tif", pixels, photometric=kind, metadata=None)
        tifffile.imwrite(truth / f"man_track{digits}.tif", labels, compression="zlib")
    if table is not None:
        (truth / "man_track.txt").write_text(table)


def measured(labels: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], Objects]:
    """The ids of a frame ``(z, y, x)``, and its objects."""
    ids = np.unique(labels)
    ids = ids[ids > 0]
    voxels = [np.argwhere(labels == number) for number in ids]

    def rows(values: list[NDArray[np.generic]], dtype: type) -> NDArray[np.generic]:
        return np.array(values, dtype).reshape(-1, 3)

    objects = Objects(
        np.array([len(v) for v in voxels], np.int64),
        rows([v.mean(0) for v in voxels], np.float64),
        rows([v.min(0) for v in voxels], np.int32),
        rows([v.max(0) + 1 for v in voxels], np.int32),
        np.full(len(ids), np.nan, np.float32),
        np.zeros(len(ids), np.int32),
    )
    return ids.astype(np.uint32), objects


def tracked_result(
    rows: Sequence[Row], tracks: Sequence[Track], shape: tuple[int, int, int] = (1, 16, 60)
) -> Result:
    """A movie with tracks; ids may exceed uint16."""
    frames = []
    for row in rows:
        small = {rank: place for rank, place in enumerate(row.values(), 1)}
        ids = np.array([0, *row], np.uint32)
        frames.append(ids[draw(small, shape)])
    found = [measured(frame) for frame in frames]
    return Result(
        name="movie",
        frames=frames,
        objects=[objects for _, objects in found],
        movie=True,
        spacing=(2.0, 0.5, 0.5),
        ids=[ids for ids, _ in found],
        tracks=Lineage.of(tracks),
    )
