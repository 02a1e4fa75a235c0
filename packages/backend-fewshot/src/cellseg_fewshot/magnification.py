"""How large objects appear in a plane, next to those of the examples.

Normalised by scale, the Laplacian of Gaussian of a blob is strongest at the scale of the blob
(Lindeberg 1998, doi:10.1023/A:1008045108935). So the scale at which the strongest answers of a
whole plane are highest tells the size of what is most marked in it. Whether these are the objects
shows in the planes of the examples, whose sizes are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.torch.masks import FoundMask

_STEP = 2**0.25
_SMALLEST, _LARGEST = 1.5, 64.0
"""Scales in pixels."""
_PART = 0.99
"""Of the answers of a plane, the lower part that does not count."""
_REDUCED = 4.0
"""Planes are reduced until a scale is no more than twice this."""
_AGREES = 0.6
"""Octaves between the size of the examples and what their planes tell, at most."""
_SAME = 1.5
"""Sizes that differ less are taken to be the same."""
_MOST = 6.0
_WEAKEST = 0.25
"""Answers weaker than this part of those in the planes of the examples are noise."""


@dataclass(frozen=True, slots=True)
class Blobs:
    """What the planes of the examples told."""

    sign: int
    """1 for objects brighter than what surrounds them, -1 for darker ones."""
    scale: float
    """Of the strongest answers, in pixels."""
    strength: float
    """Of these."""


def blobs_of(planes: Iterable[tuple[NDArray[np.float32], Sequence[FoundMask]]]) -> Blobs | None:
    """What tells the size of objects, or None where blobs do not.

    Args:
        planes: each ``(c, y, x)``, with the examples in it, at least one in all; gone through once.
    """
    inside, around, areas = 0.0, 0.0, []
    told: dict[int, list[tuple[float, float]]] = {1: [], -1: []}
    for plane, masks in planes:
        for sign in told if masks else ():
            if (one := _strongest(plane, sign)) is not None:
                told[sign].append(one)
        mean = plane.mean(0)
        for mask in masks:
            (y, x), (height, width) = mask.corner, mask.mask.shape
            reach = max(2, (height + width) // 8)
            low, left = max(0, y - reach), max(0, x - reach)
            box = mean[low : y + height + reach, left : x + width + reach]
            own = mean[y : y + height, x : x + width][mask.mask]
            inside += float(own.mean())
            around += float((box.sum() - own.sum()) / max(1, box.size - own.size))
            areas.append(own.size)
    sign = 1 if inside > around else -1
    if not told[sign]:
        return None
    scale, strength = np.exp(np.log(told[sign]).mean(0)).tolist()
    # A disc of diameter d answers most at d / sqrt(8).
    known = 2 * np.sqrt(np.median(areas) / np.pi) / np.sqrt(8)
    return Blobs(sign, scale, strength) if abs(np.log2(scale / known)) <= _AGREES else None


def magnification_of(plane: NDArray[np.float32], blobs: Blobs) -> float:
    """How many times larger objects are in a plane than the examples are, 1/6 to 6; 1 where they
    differ little, or where nothing in the plane tells.

    Args:
        plane: ``(c, y, x)``.
        blobs: of the planes of the examples.
    """
    found = _strongest(plane, blobs.sign)
    if found is None or found[1] < _WEAKEST * blobs.strength:
        return 1.0
    factor = found[0] / blobs.scale
    if 1 / _SAME < factor < _SAME:
        return 1.0
    return float(np.clip(factor, 1 / _MOST, _MOST))


def _strongest(plane: NDArray[np.float32], sign: int) -> tuple[float, float] | None:
    """The scale at which the strongest answers are highest, and how high; None where that is at
    either end of what is looked at."""
    import cv2

    image = np.ascontiguousarray(plane.mean(0), np.float32)
    largest = min(_LARGEST, min(image.shape) / 6)
    scales, answers = [], []
    scale = _SMALLEST / _STEP
    while scale <= largest * _STEP:
        factor = max(1, int(scale / _REDUCED))
        size = (max(1, image.shape[1] // factor), max(1, image.shape[0] // factor))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor > 1 else image
        sigma = scale / factor
        smooth = cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        answer = -sign * sigma**2 * cv2.Laplacian(smooth, cv2.CV_32F, ksize=1)
        scales.append(scale)
        answers.append(float(np.quantile(answer, _PART)))
        scale *= _STEP
    if len(scales) < 3:
        return None
    best = int(np.argmax(answers))
    if best in (0, len(scales) - 1) or answers[best] <= 0:
        return None
    low, high, over = answers[best - 1 : best + 2]
    bend = low - 2 * high + over
    shift = 0.0 if bend == 0 else 0.5 * (low - over) / bend
    return scales[best] * _STEP**shift, high
