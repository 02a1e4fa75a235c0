"""Whether objects are brighter or darker than what surrounds them, measured from labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.classes import UNKNOWN
from cellseg.data import Dataset, Labels, Sample
from cellseg.errors import DataError
from cellseg.intensity import NOT_FINITE

_RIM = 7  # pixels around the objects

Mask: TypeAlias = NDArray[np.bool_]


def measure_polarity(samples: Dataset) -> tuple[bool, ...]:
    """For each channel whether objects are darker than what surrounds them.

    The medians of the objects and of a rim of 7 pixels around them are compared in up to two
    windows of at most 1024² pixels in each of up to 32 images; the majority decides.

    Raises:
        DataError: there are no labels, or no object with surroundings in those windows.
    """
    votes: NDArray[np.int64] | None = None
    for sample in samples[:: max(len(samples) // 32, 1)][:32]:
        for window, objects, rim in _windows_with_objects(sample):
            vote = _darker(sample, window, objects, rim)
            if votes is not None and len(votes) != len(vote):
                raise DataError(f"{sample.name} has {len(vote)} channels, others {len(votes)}.")
            votes = vote if votes is None else votes + vote
    if votes is None:
        raise DataError(
            "--polarity measure found no labelled objects to measure.",
            hint="State the polarity: --polarity bright or --polarity dark.",
        )
    return tuple(bool(vote > 0) for vote in votes)


def _windows_with_objects(sample: Sample) -> Iterator[tuple[tuple[slice, ...], Mask, Mask]]:
    """Windows of one plane, where in them objects are, and where the rim; ``(y, x)``."""
    if sample.labels is None:
        raise DataError(
            f"{sample.name} has no labels, which --polarity measure needs.",
            hint="State the polarity: --polarity bright or --polarity dark.",
        )
    z, y, x = sample.labels.shape
    corners = list(itertools.product(range(z), range(0, y, 1024), range(0, x, 1024)))
    found = 0
    for at in np.random.default_rng(0).permutation(len(corners))[:48]:
        pz, py, px = corners[at]
        window = (slice(pz, pz + 1), slice(py, min(py + 1024, y)), slice(px, min(px + 1024, x)))
        objects, rim = _objects_and_rim(sample.labels[window][0])
        if rim.any():
            yield window, objects, rim
            found += 1
        if found == 2:
            return


def _objects_and_rim(labels: Labels) -> tuple[Mask, Mask]:
    """Voxels whose label is not known are neither."""
    import cv2

    objects: Mask = (labels > 0) & (labels != UNKNOWN)
    kernel = np.ones((2 * _RIM + 1,) * 2, np.uint8)
    rim: Mask = (cv2.dilate(objects.astype(np.uint8), kernel) > 0) & (labels == 0)
    return objects, rim


def _darker(
    sample: Sample, window: tuple[slice, ...], objects: Mask, rim: Mask
) -> NDArray[np.int64]:
    """For each channel 1 where the objects are darker than their rim, -1 where brighter."""
    planes = sample.image[(slice(0, sample.image.shape[0]), *window)][:, 0]
    differences = [np.median(p[rim].astype(float)) - np.median(p[objects]) for p in planes]
    if not np.isfinite(differences).all():
        raise DataError(f"{sample.name}: pixels are NaN or infinite.", hint=NOT_FINITE)
    return np.sign(differences).astype(np.int64)
