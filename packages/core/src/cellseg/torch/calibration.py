"""What backends look at to find the thresholds of prediction that suit labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cellseg.data import Dataset, Tile, Tiling
from cellseg.engine.plan import Plan
from cellseg.errors import DataError
from cellseg.objects import ObjectIndex, as_ids

_LOST = 0.02
"""The part of the true objects that a limit of size may drop."""


def labelled_tiles(
    samples: Dataset, tiling: Tiling, most: int
) -> tuple[list[Tile], list[NDArray[np.uint32]]]:
    """Planes evenly chosen from all tiles of all images, with the true labels ``(y, x)`` of each.

    Args:
        samples: with labels.
        tiling: how prediction cuts images.
        most: how many tiles to choose, at most.

    Raises:
        DataError: an image has no labels, or there are none.
    """
    plans = []
    for sample in samples:
        if sample.labels is None:
            raise DataError(f"{sample.name} has no labels to calibrate with.")
        _, z, y, x = sample.image.shape
        plans.append(Plan.cut((z, y, x), tiling, volumetric=False))
    every = [(i, n) for i, plan in enumerate(plans) for n in range(len(plan))]
    if not every:
        raise DataError("There are no images to calibrate with.")
    count = min(most, len(every))
    tiles, truths = [], []
    for image, number in (every[i * len(every) // count] for i in range(count)):
        sample, box = samples[image], plans[image].read_box(number)
        assert sample.labels is not None
        pixels = np.asarray(sample.image[(slice(0, sample.image.shape[0]), *box.slices)])
        tiles.append(Tile(image=pixels, spacing=sample.spacing))
        truths.append(as_ids(sample.labels[box.slices], sample.name)[0])
    return tiles, truths


def sizes_to_try(truths: Iterable[NDArray[np.uint32]], sizes: Sequence[int]) -> tuple[int, ...]:
    """The limits among ``sizes``, in pixels, that keep nearly all true objects.

    Args:
        truths: labels ``(y, x)`` of tiles; objects that are cut by the rim of a tile count only
            where it holds no others.
        sizes: limits that may be tried.

    Returns:
        Those that suit; none where there is no object.
    """
    found: list[int] = []
    for truth in truths:
        index = ObjectIndex.of(truth[None])
        high = np.array((1, *truth.shape))
        whole = ((index.low[:, 1:] > 0) & (index.high[:, 1:] < high[1:])).all(1)
        found += (index.sizes[whole] if whole.any() else index.sizes).tolist()
    if not found:
        return ()
    limit = float(np.quantile(found, _LOST))
    return tuple(size for size in sizes if size <= limit)
