"""Objects that points and boxes show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg import Segmentation
from cellseg.data import Prompt
from cellseg.torch.frames import Frame
from cellseg.torch.mask_painting import painted
from cellseg.torch.masks import FoundMask, restore_masks, score_masks
from cellseg_microsam.model import MicroSam
from cellseg_microsam.thresholds import Resolved


@dataclass(frozen=True, slots=True)
class Prompted:
    """One encoded image, ready to answer prompts."""

    model: MicroSam
    embedding: Tensor
    """``(1, channels, grid, grid)``."""
    frame: Frame
    options: Resolved

    def answers(
        self,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        *,
        multimask: bool = False,
        stable: bool = False,
    ) -> list[FoundMask | None]:
        """The mask of each prompt, ``prompts_per_batch`` at a time.

        Args:
            points: ``(p, k, 2)``, x and y in pixels of the image; continuous: the middle of the
                first pixel is at 0.5.
            labels: ``(p, k)``: 1 on the object, 0 beside it.
            boxes: ``(p, 4)``, x and y of the first and of the last corner, in the same coordinates.
            multimask: take the one of three answers that the model thinks best of.
            stable: multiply scores by how stable the mask is, as micro-SAM ranks answers.

        Returns:
            As many as prompts, in their order; None where the mask is empty. Scores are the IoU
            with the true mask as the model estimates it, which may lie beyond 0 to 1.
        """
        device = self.embedding.device
        if points is not None and labels is not None:
            points, labels = self._in_square(points).to(device), labels.to(device)
        if boxes is not None:
            boxes = self._in_square(boxes.view(-1, 2, 2)).flatten(1).to(device)
        given = points if points is not None else boxes
        assert given is not None
        found: list[FoundMask | None] = []
        for start in range(0, len(given), self.options.prompts_per_batch):
            chunk = slice(start, start + self.options.prompts_per_batch)
            logits, iou = self.model.answer(
                self.embedding,
                points=None if points is None else points[chunk],
                labels=None if labels is None else labels[chunk],
                boxes=None if boxes is None else boxes[chunk],
                multimask=multimask,
            )
            best = iou.argmax(1)
            every = torch.arange(len(best), device=best.device)
            logits, scores = logits[every, best].float(), iou[every, best].float()
            measured = score_masks(logits, self.frame, self.options.stability_score_offset)
            if stable:
                scores = scores * measured.stability
            there = measured.areas > 0
            masks = iter(restore_masks(logits[there], self.frame, scores[there]))
            found += [next(masks) if full else None for full in there.tolist()]
        return found

    def _in_square(self, places: Tensor) -> Tensor:
        """Places ``(..., 2)`` of the image, x and y, as Segment Anything names those of the square:
        the middle of its first pixel is at 0."""
        y, x = self.frame.factor
        return places * torch.tensor([x, y]) - 0.5


def find_instances(prompted: Prompted, prompts: Sequence[Prompt]) -> Segmentation:
    """Objects that the user shows: one for each prompt; where two overlap, the better score wins.

    Args:
        prompted: the tile.
        prompts: in coordinates of the tile, and within it; their z does not matter.

    Returns:
        Labels ``(1, y, x)`` uint32, by falling score, and the score of each, 0 to 1: the estimated
        IoU.
    """
    groups: defaultdict[tuple[int, bool], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        # Those of one kind are answered together: padding would change the answers.
        groups[len(prompt.points), prompt.box is not None].append(prompt)
    found: list[FoundMask | None] = []
    for (count, boxed), group in groups.items():
        points = [[(x, y) for _, y, x in one.points] for one in group]
        boxes = [[x for corner in one.box for x in corner[:0:-1]] for one in group if one.box]
        found += prompted.answers(
            torch.tensor(points, dtype=torch.float32) if count else None,
            torch.tensor([one.positive for one in group], dtype=torch.float32) if count else None,
            torch.tensor(boxes, dtype=torch.float32) if boxed else None,
            multimask=prompted.options.multimask and count == 1 and not boxed,
        )
    return painted([one for one in found if one is not None], prompted.frame.size)
