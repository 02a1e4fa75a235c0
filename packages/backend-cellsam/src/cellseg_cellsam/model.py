"""Segment Anything with a detector on the features of its image encoder, in one module."""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model import SegmentAnything
from cellseg_cellsam.detector import Detected, Detector
from cellseg_cellsam.sizes import DetectorSizes


class CellSam(SegmentAnything):
    """Segment Anything, and a detector of cells that shares its image encoder.

    Parameters are those of ``segment_anything`` under ``sam.``, and the detector's under
    ``detector.``. They start random. The encoder's trunk is what both share; its neck, which the
    detector does not see, prepares for the mask decoder.

    Args:
        architecture: the sizes of Segment Anything; it has no decoder of micro-SAM's.
        sizes: of the detector.
        draws_boxes: the mask decoder gets each box as a drawing too, in place of a mask of before.
            From random weights it learns quickly which box is meant by that, and very slowly by
            the corners alone, as Segment Anything was made.

    Raises:
        ConfigError, PluginError: as for ``SegmentAnything``.
    """

    def __init__(
        self, architecture: Architecture, sizes: DetectorSizes, draws_boxes: bool = False
    ) -> None:
        super().__init__(architecture)
        self.sizes, self.draws_boxes = sizes, draws_boxes
        self.detector = Detector(architecture.trunk_channels, sizes)

    def detect(self, features: Tensor) -> Detected:
        """The boxes of the cells of images.

        Args:
            features: of the trunk, ``(n, trunk_channels, grid, grid)``.
        """
        return self.detector(features)

    def segment(self, embedding: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """A mask for each box of one image.

        Args:
            embedding: ``(1, out_channels, grid, grid)``.
            boxes: ``(p, 4)``, ``x0 y0 x1 y1`` in pixels of the square.

        Returns:
            Logits ``(p, m, m)`` with ``m = 4 * grid``, and the IoU that the model estimates
            ``(p,)``.
        """
        masks = None
        if self.draws_boxes:
            masks = drawing(boxes, self.architecture.side, self.architecture.mask_side)
        logits, iou = self.answer(embedding, boxes=boxes, masks=masks, multimask=False)
        return logits[:, 0], iou[:, 0]


def drawing(boxes: Tensor, side: int, pixels: int) -> Tensor:
    """Boxes as pictures, ``(p, 1, pixels, pixels)``: 1 inside, -1 outside, in between where an edge
    passes through a pixel.

    Args:
        boxes: ``(p, 4)``, ``x0 y0 x1 y1`` in pixels of a square.
        side: of the square, in pixels.
        pixels: along a side of the pictures.
    """
    low, high = (boxes * (pixels / side)).split(2, dim=1)
    at = torch.arange(pixels, device=boxes.device, dtype=boxes.dtype)
    ends = torch.minimum(high[..., None], at + 1) - torch.maximum(low[..., None], at)
    x, y = ends.clamp(0, 1).unbind(1)
    return (2 * y[:, :, None] * x[:, None] - 1)[:, None]
