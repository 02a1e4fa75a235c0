"""What a grid of points is answered, kept so that thresholds can be tried without asking again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.mask_generation import point_grid
from cellseg.torch.masks import FoundMask, restore_masks, score_masks, suppress
from cellseg_microsam.amg import chosen, decoder
from cellseg_microsam.prompted import Prompted
from cellseg_microsam.thresholds import Resolved


@dataclass(frozen=True, slots=True)
class Proposals:
    """The masks of one image that may pass the thresholds."""

    size: tuple[int, int]
    """Of the image, ``(y, x)``."""
    masks: list[FoundMask]
    iou: Tensor
    """``(n,)`` as the model estimates it."""
    stability: Tensor
    """``(n,)``."""
    boxes: Tensor
    """``(n, 4)``, x and y of the first and of the last corner."""

    @classmethod
    def of(cls, prompted: Prompted, iou: float, stability: float) -> Proposals:
        """Ask once.

        Args:
            prompted: the image; its options say how many points, and the offset of the stability.
            iou: the lowest threshold that will be tried.
            stability: the same of the stability.
        """
        frame, options = prompted.frame, prompted.options
        decode = decoder(prompted)
        y, x = frame.scaled
        points = point_grid(options.points_per_side).float() * torch.tensor([x, y])
        masks: list[FoundMask] = []
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for chunk in points.split(options.prompts_per_batch):
            logits, estimates = (values.flatten(0, 1).float() for values in decode(chunk))
            likely = _above(estimates, iou)
            logits, estimates = logits[likely], estimates[likely]
            if not len(logits):
                continue
            found = score_masks(logits, frame, options.stability_score_offset)
            stable = (found.stability >= stability) & (found.areas > 0)
            if not stable.any():
                continue
            masks += restore_masks(logits[stable], frame, estimates[stable])
            kept.append((estimates[stable], found.stability[stable], found.boxes[stable]))
        if not kept:
            return cls(frame.size, [], torch.zeros(0), torch.zeros(0), torch.zeros(0, 4))
        estimates, stabilities, boxes = (torch.cat(each).cpu() for each in zip(*kept, strict=True))
        return cls(frame.size, masks, estimates, stabilities, boxes)

    def labels(self, options: Resolved) -> NDArray[np.uint32]:
        """The labels ``(y, x)`` that ``amg.find_instances`` gives with these options."""
        passed = _above(self.iou, options.pred_iou_thresh)
        passed &= self.stability >= options.stability_score_thresh
        which = torch.nonzero(passed)[:, 0]
        best = which[suppress(self.boxes[which], self.iou[which], options.nms_threshold)]
        found = chosen([self.masks[i] for i in best.tolist()], self.size, options)
        return np.asarray(found.labels[0], np.uint32)


def _above(iou: Tensor, threshold: float) -> Tensor:
    """Which pass; with a threshold of 0, all."""
    return iou > (threshold or -torch.inf)
