"""Objects of all classes, by the method that the options name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cellseg_vista.instances.agglomerate import agglomerate
from cellseg_vista.instances.cluster import cluster
from cellseg_vista.instances.graph import Labels
from cellseg_vista.instances.maps import PixelMaps
from cellseg_vista.instances.mutex import mutex
from cellseg_vista.instances.watershed import watershed
from cellseg_vista.predict_options import VistaPredictOptions


@dataclass(frozen=True)
class Found:
    """The objects of one image."""

    labels: Labels
    """``(*s)``: 1, 2, … and 0 for background."""
    scores: Mapping[int, float] = field(default_factory=dict)
    """For each label the mean probability of its class, 0 to 1."""
    classes: Mapping[int, int] = field(default_factory=dict)
    """For each label the number of its class, from 1."""


def find_instances(
    maps: PixelMaps, options: VistaPredictOptions, spacing: tuple[float, ...] | None = None
) -> Found:
    """Cut the foreground into objects.

    A voxel is foreground where the probability to be no background exceeds
    ``foreground_threshold``, and belongs to the most probable of the other classes. Objects never
    cross classes, each foreground voxel belongs to one, and those below ``min_size`` voxels are
    dropped. The same maps give the same objects; memory grows with the voxels alone.

    Args:
        maps: of one image, ``(y, x)`` or ``(z, y, x)``.
        options: method and thresholds.
        spacing: voxel size, one number for each axis, in any unit; None means cubes.
    """
    from scipy.ndimage import find_objects

    shape = maps.distance.shape
    if spacing is None:
        spacing = (1.0,) * len(shape)
    labels = np.zeros(shape, np.int32)
    kinds = _kinds(maps.probabilities, options)
    scores: dict[int, float] = {}
    classes: dict[int, int] = {}
    count = 0
    for kind, box in enumerate(find_objects(kinds), 1):
        if box is None:
            continue
        mask = kinds[box] == kind
        distance = np.ascontiguousarray(maps.distance[box])
        embedding = np.ascontiguousarray(maps.embedding[(slice(None), *box)])
        if options.method == "watershed":
            pieces = watershed(mask, distance, embedding, options)
        elif options.method == "agglomerate":
            pieces = agglomerate(mask, distance, options)
        elif options.method == "cluster":
            pieces = cluster(mask, distance, embedding, options, spacing)
        else:
            pieces = mutex(mask, distance, embedding, options, spacing)
        sizes = np.bincount(pieces.ravel())
        kept = sizes >= max(options.min_size, 1)
        kept[0] = False
        table = np.where(kept, np.cumsum(kept) + count, 0).astype(np.int32)
        total = np.bincount(pieces.ravel(), maps.probabilities[(kind, *box)].ravel())
        for label, mean in zip(table[kept].tolist(), total[kept] / sizes[kept], strict=True):
            scores[label] = min(float(mean), 1.0)
            classes[label] = kind
        labels[box] = np.where(mask, table[pieces], labels[box])
        count += int(kept.sum())
    return Found(labels, scores, classes)


def _kinds(probabilities: NDArray[np.float32], options: VistaPredictOptions) -> NDArray[np.int32]:
    """The class of each voxel, 0 where there is nothing to segment."""
    foreground = probabilities[1:].sum(0) > options.foreground_threshold
    kinds = np.where(foreground, probabilities[1:].argmax(0) + 1, 0).astype(np.int32)
    if options.class_id is not None:
        kinds[kinds != options.class_id] = 0
    return kinds
