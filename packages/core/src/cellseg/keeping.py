"""Images and labels kept decoded in memory, where there is room for them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import fastremap
from numpy.typing import NDArray

from cellseg.data import LazyArray, Sample
from cellseg.normalise import NormalisedImage


def measured(sample: Sample) -> Sample:
    """The sample, once the statistics of its image are known; a damaged file is found."""
    if isinstance(sample.image, NormalisedImage):
        _ = sample.image.statistics
    return sample


def size(sample: Sample) -> int:
    """Bytes of its image and labels as they are stored, decoded."""
    assert sample.labels is not None
    return sum(
        math.prod(array.shape) * array.dtype.itemsize
        for array in (_raw(sample.image), sample.labels)
    )


def kept(sample: Sample) -> Sample:
    """The sample with image (before normalisation) and labels in memory."""
    assert sample.labels is not None
    image, pixels = sample.image, _whole(_raw(sample.image))
    labels = fastremap.refit(_whole(sample.labels))
    loaded = replace(image, raw=pixels) if isinstance(image, NormalisedImage) else pixels
    return replace(sample, image=loaded, labels=labels)


def _raw(image: LazyArray) -> LazyArray:
    return image.raw if isinstance(image, NormalisedImage) else image


def _whole(array: LazyArray) -> NDArray[Any]:
    return array[tuple(slice(0, length) for length in array.shape)]
