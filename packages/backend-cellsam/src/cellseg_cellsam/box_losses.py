"""How wrong the answers of the detector are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torchvision.ops import (  # noqa: TID253
    box_convert,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from cellseg.torch.frames import Frame
from cellseg_cellsam.detector import Detected
from cellseg_cellsam.matching import Matches


@dataclass(frozen=True, slots=True)
class BoxLosses:
    """Terms without weights, each a scalar float32; means over the layers."""

    classes: Tensor
    """Focal loss (Lin et al., arXiv:1708.02002), summed over the answers, per match."""
    boxes: Tensor
    """L1 distance of ``cx cy w h``, summed over the four, per match."""
    giou: Tensor
    """1 - generalised IoU (Rezatofighi et al., arXiv:1902.09630), per match."""


def box_losses(
    detected: Detected,
    cells: Sequence[Tensor],
    matches: Matches,
    ignored: Tensor,
    *,
    alpha: float,
    gamma: float,
) -> BoxLosses:
    """Compare the answers with the cells that they are matched to.

    Each layer is divided by its number of matches in the batch, by 1 where there is none, and their
    mean is taken: neither many cells nor many layers make it larger.

    Args:
        detected: the answers of the layers that learn.
        cells: of each image, ``(k, 4)``, ``cx cy w h``, 0..1 of the square.
        matches: of the answers.
        ignored: ``(layers, n, q)`` bool, answers that teach nothing unless they are matched.
        alpha: weight of cells in the focal loss, 0..1.
        gamma: its exponent.
    """
    logits, boxes = detected.logits.float(), detected.boxes.float()
    pairs = torch.bincount(matches.layers, minlength=len(logits)).clamp(min=1)
    shares = 1 / (pairs * len(logits))
    chosen = matches.layers, matches.images, matches.queries
    real = torch.zeros_like(logits)
    real[chosen] = 1
    teaching = ~ignored | real.bool()
    focal = sigmoid_focal_loss(logits, real, alpha=alpha, gamma=gamma)
    wanted = _wanted(cells, matches).to(boxes.dtype)
    found = boxes[chosen]
    corners = (box_convert(each, "cxcywh", "xyxy") for each in (found, wanted))
    return BoxLosses(
        (torch.where(teaching, focal, 0).sum((1, 2)) * shares).sum(),
        ((found - wanted).abs().sum(-1) * shares[matches.layers]).sum(),
        (generalized_box_iou_loss(*corners) * shares[matches.layers]).sum(),
    )


def unknown_at(boxes: Tensor, known: Tensor, frame: Frame) -> Tensor:
    """Which boxes have their centre where nothing is known of the image, ``(..., n, q)`` bool.

    Outside of the image it is known that there is nothing.

    Args:
        boxes: ``(..., n, q, 4)``, ``cx cy w h``, 0..1 of the square.
        known: ``(n, y, x)`` bool.
        frame: of the images.
    """
    n, height, width = known.shape
    factor = boxes.new_tensor(frame.factor).flip(0)
    pixels = (boxes[..., :2].detach().float() * frame.side / factor).floor().nan_to_num().long()
    x, y = pixels.unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    image = torch.arange(n, device=known.device)[:, None].expand_as(x)
    return inside & ~known[image, y.clamp(0, height - 1), x.clamp(0, width - 1)]


def _wanted(cells: Sequence[Tensor], matches: Matches) -> Tensor:
    """``(m, 4)``: the cell of each match."""
    starts, total = [], 0
    for each in cells:
        starts.append(total)
        total += len(each)
    first = torch.tensor(starts, device=matches.images.device)
    return torch.cat(list(cells))[first[matches.images] + matches.cells]
