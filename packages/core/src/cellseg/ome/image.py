"""Writes an image and its labels as one OME-Zarr, with the levels that viewers want."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cellseg.intensity import restored
from cellseg.ome.probabilities import halved, with_channels
from cellseg.ome.write import (
    Layout,
    level_array,
    multiscales,
    new_layout,
    write_group,
    write_into,
)
from cellseg.outputs.result import Result


def write_image(
    path: Path, image: NDArray[Any], labels: Result, channels: tuple[str, ...] = ()
) -> None:
    """Write an OME-Zarr image (of version 0.4) that holds its labels, under ``labels/label``.

    Args:
        path: the container to make; it does not exist yet.
        image: ``(c, z, y, x)``, any numbers; they are stored as they are.
        labels: its labels, with the name and the voxel size.
        channels: their names, or none.

    Raises:
        StorageError: the disk is full, or permission is missing.
    """
    layout = new_layout(labels)
    if len(image) > 1 or channels:
        layout = with_channels(layout)
    attributes = multiscales(layout, labels.name)
    if channels:
        attributes |= {"omero": {"channels": _described(image, channels)}}
    write_group(path, attributes, layout.version)
    _write_levels(path, image, layout, labels)
    write_into(labels, path, "label")


def _write_levels(path: Path, image: NDArray[Any], layout: Layout, labels: Result) -> None:
    import zarr

    smaller = image
    for number, level in enumerate(layout.levels):
        if number:
            means = halved(smaller.reshape(-1, *smaller.shape[2:]))
            means = means.reshape(len(image), *level.shape)
            # Means of numbers near the end of a type may round to more than it holds.
            smaller = restored(means, (0.0,) * len(image), (1.0,) * len(image), image.dtype)
        # A chunk of an image that is not on disk counts as lost, not as black.
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = level_array(path, level, layout, labels, image.dtype.type, len(image))
            array[...] = smaller.reshape(array.shape)


def _described(image: NDArray[Any], channels: tuple[str, ...]) -> list[dict[str, Any]]:
    """What viewers show the channels as."""
    described = []
    for name, values in zip(channels, image, strict=True):
        low, high = float(values.min()), float(values.max())
        window = {"min": low, "max": high, "start": low, "end": high}
        described.append({"label": name, "color": "FFFFFF", "window": window, "active": True})
    return described
