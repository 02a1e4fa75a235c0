"""What training makes small: of the decoder's maps, and of the answers to prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.torch.frames import Frame

_EPS = 1e-7


def overlap(found: Tensor, wanted: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the soft Dice coefficient (Milletari et al., arXiv:1606.04797).

    Args:
        found: 0 to 1, floating.
        wanted: 0 to 1, of the same shape.
        axes: that are summed over.
    """
    both = 2 * (found * wanted).sum(axes)
    return both, found.square().sum(axes) + wanted.square().sum(axes)


@dataclass(frozen=True, slots=True)
class MapsDice:
    """Soft Dice of the decoder's three maps, as sums: ``(3,)`` or ``(n, 3)``."""

    both: Tensor
    each: Tensor

    @classmethod
    def of(cls, maps: Tensor, wanted: Tensor, known: Tensor, *, pooled: bool) -> MapsDice:
        """Compare maps with what they should be.

        The distances count in the true foreground alone (Archit et al. 2025,
        doi:10.1038/s41592-024-02580-4).

        Args:
            maps: ``(n, 3, y, x)``, 0 to 1: foreground, distance to the centre and to the boundary.
            wanted: the same, as ``targets.distance_maps`` gives them.
            known: ``(n, y, x)`` bool; the other pixels do not count.
            pooled: sum over all images, as for images of one batch.
        """
        where = torch.stack([known, *[known & (wanted[:, 0] > 0)] * 2], dim=1)
        axes = (0, 2, 3) if pooled else (2, 3)
        return cls(*overlap(maps.float() * where, wanted * where, axes))

    @property
    def scores(self) -> Tensor:
        """0 to 1; 0 where there is nothing to find."""
        return self.both / self.each.clamp(min=_EPS)


def maps_loss(maps: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """One minus the soft Dice of each of the three maps over a batch: ``(3,)``.

    Without objects they are 1, and have no gradient. Where all is known the sum is that of
    ``torch_em.loss.DiceBasedDistanceLoss(mask_distances_in_bg=True)``.
    """
    return 1 - MapsDice.of(maps, wanted, known, pooled=True).scores


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """How wrong the answers to prompts are, for each object."""

    mask: Tensor
    """``(p,)``: one minus the soft Dice of the best mask."""
    iou: Tensor
    """``(p,)``: squared error of the estimated IoU, the mean over the masks."""
    true_iou: Tensor
    """``(p, j)``: of each mask with the object."""
    found: Tensor
    """``(p, j, y, x)`` bool: the masks."""

    @classmethod
    def of(
        cls, logits: Tensor, estimated: Tensor, objects: Tensor, known: Tensor, frame: Frame
    ) -> AnswerLoss:
        """Compare answers with the true objects.

        Args:
            logits: ``(p, j, m, m)`` of the square.
            estimated: the IoU of each as the model estimates it, ``(p, j)``.
            objects: ``(p, y, x)`` bool.
            known: ``(y, x)`` bool; the other pixels do not count.
            frame: of the image.
        """
        wanted = objects.float()

        def dice(restored: Tensor) -> Tensor:
            both, each = overlap(restored.sigmoid() * known, wanted, (1, 2))
            return both / each.clamp(min=_EPS)

        # One mask after the other, and no graph but of the one that counts: they are large.
        best = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        masks = []
        with torch.no_grad():
            if logits.shape[1] > 1:
                scores = []
                for low in logits.split(1, dim=1):
                    restored = frame.restore(low.float())[:, 0]
                    scores.append(dice(restored))
                    masks.append((restored > 0) & known)
                best = torch.stack(scores, dim=1).argmax(1)
        chosen = logits.gather(1, best[:, None, None, None].expand(-1, 1, *logits.shape[2:]))
        restored = frame.restore(chosen.float())[:, 0]
        loss = 1 - dice(restored)
        found = torch.stack(masks or [(restored.detach() > 0) & known], dim=1)
        either = (found | objects[:, None]).sum((2, 3)).clamp(min=1)
        true = (found & objects[:, None]).sum((2, 3)) / either
        return cls(loss, (estimated.float() - true).square().mean(1), true, found)
