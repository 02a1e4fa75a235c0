"""Measuring a label image block by block: its ids, their sizes, and the pieces they are in."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cellseg.checks.blocks import BUDGET, Block, blocks
from cellseg.classes import UNKNOWN
from cellseg.data import LazyArray

_Box = NDArray[np.int64]
"""``(n, 6)``: first and last index along z, y, x, both inclusive, as z0 z1 y0 y1 x0 x1."""


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """The objects of a label image. A piece is a connected part (8- or 26-connected) of an id."""

    ids: NDArray[np.int64]
    """``(n,)``: every value but 0 and ``classes.UNKNOWN``, ascending."""
    sizes: NDArray[np.int64]
    """``(n,)``: voxels of each id."""
    extents: NDArray[np.int64]
    """``(n, 3)``: bounding box of the id's largest piece in voxels, z y x."""
    at_rim: NDArray[np.bool_]
    """``(n,)``: whether that piece touches the border of the image."""
    piece_ids: NDArray[np.int64]
    """``(m,)``: index into ``ids`` for each piece."""
    piece_sizes: NDArray[np.int64]
    """``(m,)``: voxels of each piece."""
    voxels: int
    """Of the whole image."""
    unknown: int
    """How many of them have no known label."""
    fingerprint: str
    """Equal for two label images exactly when shape and values are (to 2^-128)."""

    @property
    def pieces(self) -> NDArray[np.int64]:
        """``(n,)``: how many pieces each id is in."""
        return np.bincount(self.piece_ids, minlength=len(self.ids)).astype(np.int64)


def measure_labels(labels: LazyArray, budget: int = BUDGET) -> LabelFigures:
    """Read the integers ``labels`` ``(z, y, x)`` once, in blocks of about ``budget`` voxels.

    Blocks overlap by one slice, in which their pieces are matched, so that the result is that of
    labelling the connected parts of the whole image.

    Raises:
        DataError: a part cannot be read.
    """
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    digest = blake2b(str(shape).encode(), digest_size=16)
    pieces, unknown = _Pieces(shape), 0
    for where in blocks(shape, budget):
        z, y, x = (slice(max(side.start - 1, 0), side.stop) for side in where)
        block = labels[z, y, x].astype(np.int64)
        own = tuple(slice(int(side.start > 0), None) for side in where)
        digest.update(np.ascontiguousarray(block[own]).data)
        nowhere = block == UNKNOWN
        unknown += int(np.count_nonzero(nowhere[own]))
        block[nowhere] = 0
        pieces.add(block, (z, y, x), where)
    return pieces.figures(digest.hexdigest(), unknown)


class _Pieces:
    """The connected parts seen so far, and which of them are one across a block's border."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.total = 0
        self.values: list[NDArray[np.int64]] = []
        self.sizes: list[NDArray[np.int64]] = []
        self.boxes: list[_Box] = []
        self.edges: list[NDArray[np.int64]] = []
        # The last slices of earlier blocks along z, y and x, by where the block starts across.
        self.faces: tuple[dict[tuple[int, ...], NDArray[np.int64]], ...] = ({}, {}, {})

    def add(self, block: NDArray[np.int64], near: Block, own: Block) -> None:
        parts, count = cc3d.connected_components(
            block, connectivity=26, return_N=True, out_dtype=np.uint32
        )
        values = np.zeros(count + 1, np.int64)
        values[parts.reshape(-1)] = block.reshape(-1)
        inner = parts[tuple(slice(int(side.start > 0), None) for side in own)]
        self.values.append(values[1:])
        self.sizes.append(np.bincount(inner.reshape(-1), minlength=count + 1)[1:])
        self.boxes.append(_boxes(parts, near))
        numbered = np.where(parts > 0, parts + np.int64(self.total), 0)
        self.total += count
        for axis, faces in enumerate(self.faces):
            across = tuple(side.start for i, side in enumerate(own) if i != axis)
            if own[axis].start:
                self._match(faces.pop(across), numbered.take(0, axis))
            if own[axis].stop < self.shape[axis]:
                faces[across] = numbered.take(-1, axis)

    def _match(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        both = (old > 0) & (new > 0)
        if both.any():
            self.edges.append(np.unique(np.stack([old[both], new[both]]), axis=1) - 1)

    def figures(self, fingerprint: str, unknown: int) -> LabelFigures:
        values = np.concatenate(self.values, dtype=np.int64)
        sizes = np.concatenate(self.sizes, dtype=np.int64)
        boxes = np.concatenate(self.boxes, dtype=np.int64)
        if self.edges:
            values, sizes, boxes = self._merged(values, sizes, boxes)
        ids, index = np.unique(values, return_inverse=True)
        # The largest piece of each id comes last, and so is the one that is kept.
        order = np.argsort(sizes, kind="stable")
        largest = np.zeros(len(ids), np.int64)
        largest[index[order]] = order
        box = boxes[largest]
        rim = np.zeros(len(ids), np.bool_)
        for axis, length in enumerate(self.shape):
            if length > 1:
                rim |= (box[:, 2 * axis] == 0) | (box[:, 2 * axis + 1] == length - 1)
        return LabelFigures(
            ids=ids,
            sizes=np.bincount(index, weights=sizes, minlength=len(ids)).astype(np.int64),
            extents=box[:, 1::2] - box[:, 0::2] + 1,
            at_rim=rim,
            piece_ids=index.astype(np.int64),
            piece_sizes=sizes,
            voxels=int(np.prod(self.shape)),
            unknown=unknown,
            fingerprint=fingerprint,
        )

    def _merged(
        self, values: NDArray[np.int64], sizes: NDArray[np.int64], boxes: _Box
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], _Box]:
        old, new = np.concatenate(self.edges, axis=1)
        graph = coo_array((np.ones(len(old), np.bool_), (old, new)), shape=(self.total,) * 2)
        count, root = connected_components(graph, directed=False)
        merged_values = np.zeros(count, np.int64)
        merged_values[root] = values
        merged_sizes = np.zeros(count, np.int64)
        np.add.at(merged_sizes, root, sizes)
        merged = np.empty((count, 6), np.int64)
        for side, join, start in ((0, np.minimum, np.iinfo(np.int64).max), (1, np.maximum, -1)):
            merged[:, side::2] = start
            for axis in range(3):
                join.at(merged[:, 2 * axis + side], root, boxes[:, 2 * axis + side])
        return merged_values, merged_sizes, merged


def _boxes(parts: NDArray[np.uint32], near: Block) -> _Box:
    found = cc3d.statistics(parts, no_slice_conversion=True)["bounding_boxes"]
    boxes: _Box = np.asarray(found, np.int64).reshape(-1, 6)[1:]
    boxes += np.repeat([side.start for side in near], 2)
    return boxes
