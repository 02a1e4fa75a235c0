"""Tiles that are looked at once, so that thresholds can be tried without the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg import Tile
from cellseg.classes import UNKNOWN
from cellseg.data import Dataset, Tiling
from cellseg.objects import ObjectIndex
from cellseg.torch.calibration import labelled_tiles
from cellseg.torch.devices import memory_errors
from cellseg.torch.frames import Frame
from cellseg.torch.masks import FoundMask, suppress
from cellseg_cellsam.box_scores import Found
from cellseg_cellsam.boxes import Boxes, apart, boxes_at_once, masks_of, proposed
from cellseg_cellsam.encoding import MEMORY_HINT, Encoder
from cellseg_cellsam.predict import combined
from cellseg_cellsam.predict_options import CellSamPredictOptions

_TILES = 16
"""How many tiles are looked at, at most."""
_PER_CELL, _PER_TILE = 3, 10
"""Boxes that are segmented, at most, for each true object and for each tile. With more of them
three of four are wrong."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A tile, and all boxes in it."""

    embedding: Tensor | None
    """``(1, out_channels, grid, grid)``; None where no masks are wanted."""
    frame: Frame
    found: Boxes
    truth: NDArray[np.uint32]
    """``(y, x)``."""


def look(encoder: Encoder, samples: Dataset, tiling: Tiling, *, masks: bool) -> list[Seen]:
    """All boxes of a fixed number of tiles, evenly chosen, without any threshold.

    Args:
        encoder: the model.
        samples: with labels; normalised.
        tiling: how prediction will cut the images.
        masks: keep what ``segmented`` needs.

    Raises:
        DataError: there are no images, or one without labels.
    """
    tiles, truths = labelled_tiles(samples, tiling, _TILES)
    with torch.inference_mode(), memory_errors(MEMORY_HINT):
        return [_seen(encoder, *pair, masks) for pair in zip(tiles, truths, strict=True)]


def _seen(encoder: Encoder, tile: Tile, truth: NDArray[np.uint32], masks: bool) -> Seen:
    features, frame = encoder.trunk([tile]), encoder.frame(tile)
    (found,) = proposed(encoder, features, frame, 0.0)
    if tile.image.min() == tile.image.max():  # prediction finds nothing there
        found = found[0][:0], found[1][:0]
    return Seen(encoder.embed(features) if masks else None, frame, found, truth)


def compared(tile: Seen, box_nms: float) -> Found:
    """Scores and boxes found, and true boxes, in pixels of the image; without boxes that lie by
    more than half in what is unknown."""
    scores, boxes = apart(tile.found, box_nms)
    y, x = tile.frame.factor
    boxes = boxes.cpu() / torch.tensor([x, y, x, y])
    objects = ObjectIndex.of(tile.truth[None])
    corners = np.concatenate([objects.low[:, :0:-1], objects.high[:, :0:-1]], 1)
    known = torch.ones(len(boxes), dtype=torch.bool)
    unknown = tile.truth == UNKNOWN
    if unknown.any():
        for index, (x0, y0, x1, y1) in enumerate(boxes.round().long().tolist()):
            part = unknown[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
            known[index] = bool(2 * np.count_nonzero(part) <= part.size)
    return scores.cpu()[known], boxes[known], torch.from_numpy(corners).float()


@dataclass(frozen=True, slots=True)
class Segmented:
    """The boxes of a tile, and their masks."""

    frame: Frame
    scores: Tensor
    """``(k,)``, falling; on the CPU, as all here."""
    boxes: Tensor
    masks: Mapping[float, Sequence[FoundMask | None]]
    """By the threshold of their pixels, in the order of the boxes."""
    ious: Tensor
    truth: NDArray[np.uint32]

    def labels(self, options: CellSamPredictOptions) -> NDArray[np.uint32]:
        """What prediction gives with these options."""
        high = (self.scores >= options.box_threshold).nonzero()[:, 0]
        kept = high[suppress(self.boxes[high], self.scores[high], options.box_nms)]
        masks = self.masks[options.mask_threshold]
        chosen = [masks[index] for index in kept.tolist()]
        found = combined(chosen, self.ious[kept], self.frame.size, options)
        return np.asarray(found.labels[0], np.uint32)


def segmented(
    encoder: Encoder,
    seen: Sequence[Seen],
    options: CellSamPredictOptions,
    values: Mapping[str, Sequence[float]],
    lowest: float | None = None,
) -> list[Segmented]:
    """The masks of all boxes that any of the options to be tried can take.

    Args:
        encoder: the model.
        seen: tiles, with embeddings.
        options: where to start from.
        values: what else will be tried for ``box_nms`` and ``mask_threshold``.
        lowest: ``box_threshold`` that will be tried; None for any that so many boxes pass as are
            worth trying.
    """
    ious = sorted({options.box_nms, *values.get("box_nms", ())})
    thresholds = tuple(sorted({options.mask_threshold, *values.get("mask_threshold", ())}))
    boxes = [_any(tile.found, ious) for tile in seen]
    if lowest is None:
        lowest = _lowest(boxes, seen)
    model = encoder.model
    chunk = boxes_at_once(model.architecture, model.device, options.boxes_per_batch)
    tiles = []
    with torch.inference_mode(), memory_errors(MEMORY_HINT):
        for tile, (scores, places) in zip(seen, boxes, strict=True):
            assert tile.embedding is not None
            chosen = scores[scores >= lowest], places[scores >= lowest]
            masks, found = masks_of(model, tile.embedding, chosen, tile.frame, thresholds, chunk)
            of = dict(zip(thresholds, masks, strict=True))
            kept, places = (one.cpu() for one in chosen)
            tiles.append(Segmented(tile.frame, kept, places, of, found, tile.truth))
    return tiles


def _any(found: Boxes, ious: Sequence[float]) -> Boxes:
    """The boxes that are kept with any of these overlaps, by falling score."""
    scores, boxes = found
    kept = torch.cat([suppress(boxes, scores, iou) for iou in ious]).unique()
    return scores[kept], boxes[kept]


def _lowest(boxes: Sequence[Boxes], seen: Sequence[Seen]) -> float:
    """A threshold that so many boxes pass as are worth trying."""
    scores = torch.cat([scores.cpu() for scores, _ in boxes])
    cells = sum(len(ObjectIndex.of(tile.truth[None])) for tile in seen)
    most = _PER_CELL * cells + _PER_TILE * len(seen)
    if len(scores) <= most:
        return 0.0
    return float(scores.sort(descending=True).values[most - 1])
