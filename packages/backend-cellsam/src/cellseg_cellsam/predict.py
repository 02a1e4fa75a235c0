"""Segment tiles: find boxes, then the mask of each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg import PredictJob, Predictor, Segmentation, Tile
from cellseg.torch.devices import memory_errors
from cellseg.torch.frames import Frame
from cellseg.torch.mask_painting import painted, uncovered
from cellseg.torch.masks import FoundMask, ranked, suppress_masks
from cellseg_cellsam.boxes import Boxes, boxes_at_once, detected, masks_of
from cellseg_cellsam.encoding import MEMORY_HINT, Encoder
from cellseg_cellsam.predict_options import CellSamPredictOptions


def load(job: PredictJob[CellSamPredictOptions]) -> Predictor:
    """A predictor of single planes.

    A batch is encoded in one call, each tile once. A tile without any contrast is background, and
    is not encoded.

    Raises:
        ConfigError: there is no model.
        WeightsError: the weights are missing or damaged.
        DeviceError: the device is not there, or cannot compute in the precision.
    """
    encoder = Encoder.open(job.options, job.device, job.model)

    def predict(tiles: Sequence[Tile]) -> Sequence[Segmentation]:
        return segment(encoder, tiles, job.options)

    return predict


def segment(
    encoder: Encoder, tiles: Sequence[Tile], options: CellSamPredictOptions
) -> list[Segmentation]:
    """The cells of tiles of one shape, each with the score of its box.

    Args:
        encoder: the model.
        tiles: any number.
        options: thresholds, which are applied to each tile by itself.

    Returns:
        For each tile its labels ``(1, y, x)`` uint32, by falling score, and the score of each, 0 to
        1; no labels where there is no cell.

    Raises:
        DataError: tiles have neither 1 nor 3 channels, or more than one plane.
        DeviceError: the memory does not suffice for a single tile.
    """
    seen = [bool(tile.image.min() < tile.image.max()) for tile in tiles]
    shown = [tile for tile, sees in zip(tiles, seen, strict=True) if sees]
    with torch.inference_mode(), _advice(tiles):
        found = iter(_found(encoder, shown, options) if shown else ())
        return [
            next(found) if sees else Segmentation(np.zeros(tile.image.shape[1:], np.uint32))
            for tile, sees in zip(tiles, seen, strict=True)
        ]


def _found(
    encoder: Encoder, tiles: Sequence[Tile], options: CellSamPredictOptions
) -> list[Segmentation]:
    features, frame = encoder.trunk(tiles), encoder.frame(tiles[0])
    return [
        _segmented(encoder, features[index : index + 1], boxes, frame, options)
        for index, boxes in enumerate(detected(encoder, features, frame, options))
    ]


def _segmented(
    encoder: Encoder, features: Tensor, boxes: Boxes, frame: Frame, options: CellSamPredictOptions
) -> Segmentation:
    if not len(boxes[0]):
        return Segmentation(np.zeros((1, *frame.size), np.uint32))
    model, embedding = encoder.model, encoder.embed(features)
    chunk = boxes_at_once(model.architecture, model.device, options.boxes_per_batch)
    (masks,), ious = masks_of(model, embedding, boxes, frame, (options.mask_threshold,), chunk)
    return combined(masks, ious, frame.size, options)


def combined(
    masks: Sequence[FoundMask | None],
    ious: Tensor,
    size: tuple[int, int],
    options: CellSamPredictOptions,
) -> Segmentation:
    """The objects of a tile.

    Of masks that overlap by more than ``mask_nms`` the one with the best score stays, and those go
    of which better ones cover more than ``max_covered``; pixels of
    several go to the best one, whatever the order of the masks. What this cuts off from the rest of
    an object is background.

    Args:
        masks: with the scores of their boxes; None where there is none.
        ious: ``(k,)``, with the truth, as the model estimates them.
        size: of the tile, ``(y, x)``.
        options: thresholds.
    """
    good = ious >= (options.iou_threshold or -torch.inf)
    least = max(options.min_size, 1)
    large = [
        mask
        for mask, passes in zip(masks, good.tolist(), strict=True)
        if mask is not None and passes and np.count_nonzero(mask.mask) >= least
    ]
    large = [large[index] for index in ranked(large)]
    apart = [large[index] for index in suppress_masks(large, options.mask_nms)]
    kept = [apart[index] for index in uncovered(apart, size, options.max_covered)]
    return painted(
        kept, size, min_size=least, in_one_piece=True, without_holes=not options.keep_holes
    )


def _advice(tiles: Sequence[Tile]) -> AbstractContextManager[None]:
    """Several tiles may be too many for the memory: then the caller tries fewer."""
    return memory_errors(MEMORY_HINT) if len(tiles) == 1 else nullcontext()
