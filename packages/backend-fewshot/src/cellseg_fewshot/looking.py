"""What is seen in a window with examples: descriptors of them, of all candidates, and of what lies
around the examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import torch  # noqa: TID253
from numpy.typing import ArrayLike, NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.mask_pooling import pool_masks
from cellseg.torch.masks import FoundMask, shared_pixels
from cellseg_fewshot.memory import Candidates
from cellseg_fewshot.priors import measure
from cellseg_fewshot.views import Encoder, Shown, View

CROPS = 8
"""Crops that are encoded at once."""
SAME = 0.5
"""IoU from which a candidate is an example."""
_PART = 0.25
"""A candidate that shares more than this of itself, or of an example, and is not the same, is a
fragment or a merger of it."""
_GAP = 0.15
_REACH = 0.8
"""The surroundings of an example lie between these, in radii of a disc of its area."""


class Role(IntEnum):
    """What a mask is known to be."""

    SHOWN = 0
    """An example, as the user gave it."""
    FOUND = 1
    """A candidate that is an example."""
    AVOIDED = 2
    """An example of what is to be left alone, or a candidate that is one."""
    WRONG = 3
    """A candidate that is a part of an example, or more than it."""
    AROUND = 4
    """The surroundings of an example."""
    UNKNOWN = 5
    """Any other candidate: perhaps an object of the kind, which nobody has pointed at."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is remembered of a window, or of several, until everything is seen."""

    descriptors: NDArray[np.float32]
    """``(n, d)`` of the masks below."""
    measured: NDArray[np.float64]
    """``(n, 3)``: see ``cellseg_fewshot.priors``."""
    quality: NDArray[np.float64]
    """``(n,)``; 1 where nobody asked the encoder."""
    roles: NDArray[np.int64]
    """``(n,)``: of ``Role``."""
    examples: NDArray[np.int64]
    """``(n,)``: the number of the example that the mask is, is a part of, or lies around; -1 for
    none."""
    kinds: NDArray[np.int64]
    """``(n,)``: the class of that example, 0 of those to be left alone and of none."""
    overlaps: NDArray[np.float64]
    """``(n,)``: its IoU with that example."""
    pooled: NDArray[np.float32]
    """``(n, f)``: the mean of the feature map under each mask; no columns in the mode crop."""
    cells: NDArray[np.float64]
    """``(f + 1, f)``: of all cells of the feature maps, the sums of products, and the sum."""
    count: NDArray[np.int64]
    """``(1,)``: how many cells."""

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """All of several windows."""
        values = {each.name: [getattr(part, each.name) for part in parts] for each in fields(cls)}
        summed = ("cells", "count")
        return cls(
            **{n: sum(v[1:], v[0]) if n in summed else np.concatenate(v) for n, v in values.items()}
        )

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Seen:
        """What ``tensors`` gave."""
        return cls(**{each.name: tensors[each.name].numpy() for each in fields(cls)})

    def tensors(self) -> dict[str, Tensor]:
        """To be written to a file."""
        return {
            each.name: torch.from_numpy(np.ascontiguousarray(getattr(self, each.name)))
            for each in fields(self)
        }

    def candidates(self, which: NDArray[np.integer] | NDArray[np.bool_]) -> Candidates:
        """Some of the masks, as candidates."""
        return Candidates(self.descriptors[which], self.measured[which], self.quality[which])


def look(view: View, shown: Sequence[Shown], candidates: Sequence[FoundMask], first: int) -> Seen:
    """Describe the examples in a plane, the candidates, and what lies around the examples.

    Args:
        view: the plane.
        shown: the examples in it.
        candidates: masks that the encoder proposes, none of them empty.
        first: the number of the first example.
    """
    around = [
        (ring, number)
        for number, one in enumerate(shown)
        if (ring := _surroundings(one.mask, shown, view.size)) is not None
    ]
    masks = [*(one.mask for one in shown), *candidates, *(ring for ring, _ in around)]
    roles = [Role.SHOWN if one.kind else Role.AVOIDED for one in shown]
    examples, overlaps = list(range(len(shown))), [1.0] * len(shown)
    for role, example, overlap in _known(candidates, shown):
        roles.append(role)
        examples.append(example)
        overlaps.append(overlap)
    roles += [Role.AROUND] * len(around)
    examples += [number for _, number in around]
    overlaps += [0.0] * len(around)
    quality = [1.0] * len(shown) + [one.score for one in candidates] + [1.0] * len(around)
    features = view.features.values.detach().float().cpu()
    cells = features.flatten(1).double().numpy()
    return Seen(
        view.describe(masks).numpy(),
        measure(masks),
        np.array(quality, np.float64),
        np.array(roles, np.int64),
        np.array([first + e if e >= 0 else -1 for e in examples], np.int64),
        np.array([shown[e].kind if e >= 0 else 0 for e in examples], np.int64),
        np.array(overlaps, np.float64),
        pool_masks(masks, features, view.features.step).numpy(),
        np.concatenate([cells @ cells.T, cells.sum(1)[None]]),
        np.array([cells.shape[1]], np.int64),
    )


def look_at_crops(
    encoder: Encoder,
    plane: NDArray[np.float32],
    shown: Sequence[Shown],
    occupancy: float,
    first: int,
) -> Seen:
    """Describe the examples in a plane alone, each by a crop around it, for the mode crop.

    Args:
        encoder: encodes the crops.
        plane: ``(c, y, x)``.
        shown: the examples in it, all of what is looked for.
        occupancy: part of a crop that the object fills.
        first: the number of the first example.
    """
    from cellseg_fewshot.crop import describe_crops

    masks, count = [one.mask for one in shown], len(shown)
    return Seen(
        describe_crops(encoder, plane, masks, occupancy, CROPS).cpu().numpy(),
        measure(masks),
        np.ones(count),
        np.full(count, Role.SHOWN, np.int64),
        np.arange(first, first + count),
        np.array([one.kind for one in shown], np.int64),
        np.ones(count),
        np.zeros((count, 0), np.float32),
        np.zeros((1, 0)),
        np.zeros(1, np.int64),
    )


def box(mask: FoundMask) -> tuple[slice, slice]:
    """Where a mask lies."""
    (y, x), (height, width) = mask.corner, mask.mask.shape
    return slice(y, y + height), slice(x, x + width)


def _known(
    candidates: Sequence[FoundMask], shown: Sequence[Shown]
) -> list[tuple[Role, int, float]]:
    """Of each candidate what it is, the example that says so, and the IoU with it."""
    areas = [int(np.count_nonzero(one.mask.mask)) for one in shown]
    found = []
    for one in candidates:
        area = int(np.count_nonzero(one.mask))
        shared = {
            number: shared_pixels(shown[number].mask, one)
            for number in _touching(shown, one.corner, np.add(one.corner, one.mask.shape))
        }
        ious = {n: s / (area + areas[n] - s) for n, s in shared.items()}
        parts = {n: s / min(area, areas[n]) for n, s in shared.items()}
        best, nearest = (max(x, key=x.__getitem__, default=-1) for x in (ious, parts))
        if best >= 0 and ious[best] >= SAME:
            role = Role.FOUND if shown[best].kind else Role.AVOIDED
            found.append((role, best, ious[best]))
        elif nearest >= 0 and parts[nearest] > _PART:
            found.append((Role.WRONG, nearest, ious[nearest]))
        else:
            found.append((Role.UNKNOWN, -1, 0.0))
    return found


def _surroundings(
    mask: FoundMask, shown: Sequence[Shown], size: tuple[int, int]
) -> FoundMask | None:
    """A ring around an example, without any other; None where there is no place for one."""
    from scipy.ndimage import distance_transform_edt

    radius = float(np.sqrt(mask.mask.sum() / np.pi))
    near, far = max(1.5, _GAP * radius), max(4.0, _REACH * radius)
    reach = int(np.ceil(far)) + 1
    low = [max(0, corner - reach) for corner in mask.corner]
    high = [
        min(length, corner + side + reach)
        for length, corner, side in zip(size, mask.corner, mask.mask.shape, strict=True)
    ]
    distance = distance_transform_edt(~_within(mask, low, high))
    ring = (distance > near) & (distance <= far)
    for number in _touching(shown, low, high):
        ring &= ~_within(shown[number].mask, low, high)
    return FoundMask(ring, (low[0], low[1]), 1.0) if ring.any() else None


def _touching(shown: Sequence[Shown], low: ArrayLike, high: ArrayLike) -> list[int]:
    """Which examples have a box that overlaps one from ``low`` to ``high``."""
    lows = np.array([one.mask.corner for one in shown]).reshape(-1, 2)
    highs = lows + np.array([one.mask.mask.shape for one in shown]).reshape(-1, 2)
    found: list[int] = np.flatnonzero(((lows < high) & (highs > low)).all(1)).tolist()
    return found


def _within(mask: FoundMask, low: Sequence[int], high: Sequence[int]) -> NDArray[np.bool_]:
    """What a part of the plane, which the mask touches, shows of it."""
    part = np.zeros(np.subtract(high, low), bool)
    begin = np.maximum(mask.corner, low)
    end = np.minimum(np.add(mask.corner, mask.mask.shape), high)
    there, here = (
        tuple(slice(a, b) for a, b in zip(begin - start, end - start, strict=True))
        for start in (low, mask.corner)
    )
    part[there] = mask.mask[here]
    return part
