"""A model that needs no training: it finds bright rectangles, and segments whatever is in a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sam_fakes import small_architecture
from scipy import ndimage
from torch import Tensor

from cellseg.torch.weights import seeded
from cellseg_cellsam.detector import Detected
from cellseg_cellsam.encoding import Encoder
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.predict_options import CellSamPredictOptions
from cellseg_cellsam.sizes import DetectorSizes

QUERIES = 64
Found = Sequence[tuple[float, tuple[float, float, float, float]]]
"""Scores and boxes, ``x0 y0 x1 y1``, in pixels of the square."""


class Drawn(CellSam):
    """The trunk hands the image on. The detector answers with ``found``, the same for all images,
    or with bright rectangles, whose score is their brightness. A mask is its box; where
    ``outlines`` are given, by the score of a box, it is what they say at the pixels of the mask."""

    def __init__(self, side: int = 64) -> None:
        with seeded(0):
            super().__init__(small_architecture(side=side), DetectorSizes.named("tiny"))
        self.found: Found | None = None
        self.iou = 0.9
        self.encoded: list[int] = []
        self.answered: list[int] = []

    def trunk(self, prepared: Tensor) -> Tensor:
        self.encoded.append(len(prepared))
        pixels = prepared * self.sam.pixel_std + self.sam.pixel_mean
        return (pixels / 255 * (prepared != 0))[:, :1]  # which is 0 in the padding

    def neck(self, features: Tensor) -> Tensor:
        return features

    def detect(self, features: Tensor) -> Detected:
        side = features.shape[-1]
        logits = torch.full((1, len(features), QUERIES), -30.0)
        boxes = torch.zeros(1, len(features), QUERIES, 4)
        for i, image in enumerate(features[:, 0].numpy()):
            found = _rectangles(image) if self.found is None else self.found
            for j, (score, (x0, y0, x1, y1)) in enumerate(found):
                logits[0, i, j] = torch.tensor(score).logit(1e-6)
                box = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
                boxes[0, i, j] = torch.tensor(box) / side
        return Detected(logits, boxes)

    def answer(self, embedding: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        boxes = given["boxes"]
        assert len(embedding) == 1 and not given["multimask"]
        self.answered.append(len(boxes))
        at = (torch.arange(self.architecture.mask_side) + 0.5) * self.architecture.patch / 4
        x0, y0, x1, y1 = (one[:, None] for one in boxes.T)
        wide, high = torch.minimum(at - x0, x1 - at), torch.minimum(at - y0, y1 - at)
        logits = torch.minimum(wide[:, None], high[:, :, None]) / 4
        return logits[:, None], torch.full((len(boxes), 1), self.iou)


def _rectangles(image: np.ndarray) -> Found:
    pieces, _ = ndimage.label(image > 0.2)
    found = []
    for index, (y, x) in enumerate(ndimage.find_objects(pieces), 1):
        score = float(image[pieces == index].max())
        found.append((min(score, 0.99), (x.start, y.start, x.stop, y.stop)))
    return found


def drawn_encoder(side: int = 64, field: int = 0, **options: Any) -> Encoder:
    """An encoder of a ``Drawn`` model."""
    return Encoder.of(Drawn(side), field, CellSamPredictOptions(**options))
