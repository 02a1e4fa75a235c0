"""Writes the probabilities of the classes as OME-Zarr images, a channel for each class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.ome.write import (
    Layout,
    chunk_of,
    consolidate_again,
    level_array,
    multiscales,
    new_group,
    new_layout,
    write_group,
)
from cellseg.outputs.formats import PROBABILITIES
from cellseg.outputs.images import place, with_classes
from cellseg.outputs.result import Result, boxes


def write_probabilities_into(result: Result, container: Path, label_name: str) -> None:
    """Write the image ``LABELNAME_probabilities`` into the OME-Zarr image of the labels.

    Raises:
        StorageError: the disk is full, or permission is missing; nothing is left behind.
    """
    with new_group(container / (label_name + PROBABILITIES)) as temporary:
        write_probabilities(result, temporary, new_layout(result, container))
    consolidate_again(container)


def write_probabilities(result: Result, group: Path, layout: Layout) -> None:
    """Write an OME-Zarr image of probabilities: float32, precise to 11 bits.

    Args:
        result: the probabilities, and the names of the classes.
        group: where to.
        layout: the levels of labels that are written anew.
    """
    layout = with_channels(layout)
    attributes = multiscales(layout, result.name + PROBABILITIES)
    write_group(group, attributes | {"omero": _channels(result)}, layout.version)
    count = result.probabilities[0].shape[0]
    arrays = [
        level_array(group, level, layout, result, np.float32, count) for level in layout.levels
    ]
    for frame, kind, box, values in result.probability_blocks(chunk_of(result.block, result.shape)):
        key, block = place(layout.names, frame, box.slices, values, kind)
        arrays[0][key] = block
    for number in range(1, len(arrays)):
        _halve(result, layout, (arrays[number - 1], arrays[number]), number)


def with_channels(layout: Layout) -> Layout:
    """The layout of an image with channels, by that of its labels."""
    at = with_classes(layout.names).index("c")
    axes, channel = layout.axes, {"name": "c", "type": "channel"}
    levels = (
        replace(level, scale=(*level.scale[:at], 1.0, *level.scale[at:])) for level in layout.levels
    )
    return replace(layout, axes=(*axes[:at], channel, *axes[at:]), levels=tuple(levels))


def _channels(result: Result) -> dict[str, Any]:
    """What viewers show the classes as."""
    count = result.probabilities[0].shape[0]
    names = result.classes if len(result.classes) == count else [f"class {i}" for i in range(count)]
    window = {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0}
    return {
        "channels": [
            {"label": name, "color": "FFFFFF", "window": window, "active": number == 0}
            for number, name in enumerate(names)
        ]
    }


def _halve(result: Result, layout: Layout, arrays: tuple[Any, Any], number: int) -> None:
    """Fill a level with the means of 2 x 2 voxels of the one before it."""
    source, target = arrays
    above, here = layout.levels[number - 1].shape, layout.levels[number].shape
    for frame, array in enumerate(result.probabilities):
        for kind in range(array.shape[0]):
            for box in boxes(here, chunk_of(result.block, here)):
                result.pause()
                z, *plane = box.slices
                y, x = (
                    slice(2 * s.start, min(2 * s.stop, n))
                    for s, n in zip(plane, above[1:], strict=True)
                )
                key, _ = place(
                    layout.names, frame, (z, y, x), np.zeros((1, 1, 1), np.float32), kind
                )
                block = np.asarray(source[key])
                block = block.reshape(z.stop - z.start, y.stop - y.start, x.stop - x.start)
                key, means = place(layout.names, frame, box.slices, halved(block), kind)
                target[key] = means


def halved(block: NDArray[Any]) -> NDArray[np.float32]:
    """The means of 2 x 2 voxels of each plane of ``(z, y, x)``; odd edges are repeated."""
    depth, height, width = block.shape
    even = np.pad(block, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    pairs = even.reshape(depth, even.shape[1] // 2, 2, even.shape[2] // 2, 2)
    return np.asarray(pairs.mean((2, 4), dtype=np.float32))
