"""Objects of a patch at the resolution of the masks that prompts are answered with."""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.torch.frames import Frame

_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class MaskTargets:
    """What masks should be."""

    objects: Tensor
    """``(k, m, m)`` float32, 0 to 1: the share of the known area of each pixel that is of the
    object; 0 where nothing is known."""
    known: Tensor
    """``(m, m)`` float32, 0 to 1: the share of each pixel that lies in the image and is known."""

    @classmethod
    def of(cls, labels: Tensor, known: Tensor, ids: Tensor, frame: Frame, side: int) -> MaskTargets:
        """Areas within each pixel, exactly: a pixel of the image that lies in several of the mask's
        is divided between them.

        Args:
            labels: ``(y, x)`` int64.
            known: ``(y, x)`` bool, True where there is an object.
            ids: ``(k,)``, labels of the objects that are wanted.
            frame: of the patch.
            side: of the masks, ``m``.
        """
        device = labels.device
        down = _shares(frame.size[0], frame.scaled[0], frame.side, side).to(device)
        along = _shares(frame.size[1], frame.scaled[1], frame.side, side).to(device).T
        with torch.autocast(device.type, enabled=False):
            area = down @ known.float() @ along
            objects = down @ (labels == ids[:, None, None]).float() @ along
        there = area > _EPS
        shares = torch.where(there, objects / area.clamp(min=_EPS), 0.0)
        return cls(shares.clamp(0, 1), torch.where(there, area.clamp(max=1), 0.0))


def _shares(length: int, scaled: int, square: int, side: int) -> Tensor:
    """Which share of each pixel of the mask is of each pixel of the image, along one axis:
    ``(side, length)``, rows of sum 1, but for those that reach beyond the image."""
    step = square / side
    edges = torch.arange(length + 1, dtype=torch.float64) * (scaled / length)
    starts = torch.arange(side, dtype=torch.float64)[:, None] * step
    low, high = edges[:-1].maximum(starts), edges[1:].minimum(starts + step)
    return ((high - low).clamp(min=0) / step).float()
