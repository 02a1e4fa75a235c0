"""The second stage of a training: the masks that boxes are answered with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.painting import paint
from cellseg.report.panels import write_panels
from cellseg.torch.frames import Frame
from cellseg.torch.optimisation import Rate
from cellseg_cellsam.mask_losses import MaskLosses
from cellseg_cellsam.mask_targets import MaskTargets
from cellseg_cellsam.mining import mining_weights
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.options import CellSamOptions
from cellseg_cellsam.prompts import drawn, noisy
from cellseg_cellsam.stage_learner import StageLearner
from cellseg_cellsam.targets import objects_of

_SHOWN = 4
_BOXES = 64
"""Boxes that validation asks for at once."""
_GOOD = 0.5


@dataclass
class _Seen:
    """A validated patch, to be drawn."""

    image: NDArray[np.float32]
    truth: NDArray[np.integer]
    found: NDArray[np.integer]


class MaskLearner(StageLearner):
    """What ``cellseg.torch.training.fit`` trains in the second stage; see ``StageLearner``.

    Images pass through the frozen trunk without a gradient, and through the neck with one. The
    gradient passes back through the prompt encoder and the mask decoder, which learn where
    ``learnt`` names them, and are frozen otherwise.

    A mask decoder with random weights learns nothing while the outlines count as much as the
    overlap: an empty mask has fewer wrong edges than a bad one. On patches of nuclei of 64 pixels,
    the tiny network, whose boxes were not drawn, was at a mean IoU of .42 after 290 steps without
    the boundary term, and at 0 with it.
    """

    monitor = "score"

    def __init__(
        self, model: CellSam, learnt: Sequence[str], options: CellSamOptions, frame: Frame
    ) -> None:
        super().__init__(model, learnt, options, frame)
        names = frozenset(name for name, _ in self.named_parameters())
        self.rates = (Rate("stage2_learning_rate", options.stage2_learning_rate, names),)
        """How fast its parameters learn."""
        self._seen: list[_Seen] = []

    @property
    def _estimates(self) -> bool:
        """Whether what estimates the IoU of a mask learns."""
        return self.options.stage2_type == "neck_and_decoder"

    def training_step(self, batch: Any) -> Mapping[str, Tensor]:
        """All terms of the loss, weighted, and their sum: means over the prompts of the batch.

        Args:
            batch: as ``Targets`` makes items, stacked.
        """
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        embeddings = self._embeddings(batch["image"])
        parts = [
            self._image(embeddings[i : i + 1], batch["labels"][i], batch["known"][i], generator)
            for i in range(len(embeddings))
        ]
        count = max(1, sum(prompts for prompts, _ in parts))
        sums = {name: torch.stack([each[name] for _, each in parts]).sum() for name in parts[0][1]}
        terms = {f"loss_{name}": total / count for name, total in sums.items()}
        return self.summed(terms)

    def validation_step(self, batch: Any) -> Mapping[str, tuple[float, float]]:
        """The mean IoU of the masks of true boxes, at the resolution of the patch, ``score``; and
        the share of objects for which it is at least .5, ``iou50``. Pixels that are not known do
        not count."""
        embeddings = self._embeddings(batch["image"])
        total, good, count = 0.0, 0.0, 0.0
        for i in range(len(embeddings)):
            labels, known = batch["labels"][i], batch["known"][i]
            found, scores, ious = self._answers(embeddings[i : i + 1], labels, known)
            total += float(ious.sum())
            good += float((ious >= _GOOD).sum())
            count += len(ious)
            painted = _painted(found, scores)
            image = batch["image"][i].float().cpu().numpy()
            self._seen = [*self._seen[1 - _SHOWN :], _Seen(image, labels.cpu().numpy(), painted)]
        return {"score": (total, count), "iou50": (good, count)}

    def write_previews(self, directory: Path, epoch: int) -> None:
        """The last patches of the validation: the masks of true boxes, where two overlap that of
        the higher estimated IoU."""
        panels = [(seen.image, seen.truth, seen.found) for seen in self._seen]
        if panels:
            write_panels(panels, directory / f"epoch-{epoch:04d}.png")
        self._seen.clear()

    def _embeddings(self, images: Tensor) -> Tensor:
        """``(n, out_channels, grid, grid)``; the trunk is frozen, the neck may learn."""
        with torch.no_grad():
            features = self.model.trunk(self.prepared(images))
        return self.model.neck(features)

    def _image(
        self, embedding: Tensor, labels: Tensor, known: Tensor, generator: torch.Generator
    ) -> tuple[int, dict[str, Tensor]]:
        """How many prompts one image has, and the sums of their weighted terms."""
        options = self.options
        objects = drawn(objects_of(labels, self._frame), options.boxes_per_image, generator)
        count = len(objects.ids)
        if not count:
            nothing = 0 * embedding.float().sum()
            names = ("focal", "dice", "boundary", *(("iou",) if self._estimates else ()))
            return 0, dict.fromkeys(names, nothing)
        boxes = noisy(objects.boxes, options.box_noise, self._frame.side, generator)
        logits, estimated = self.model.segment(embedding, boxes)
        wanted = MaskTargets.of(labels, known, objects.ids, self._frame, logits.shape[-1])
        losses = MaskLosses.of(
            logits,
            wanted.objects,
            wanted.known,
            alpha=options.focal_alpha,
            gamma=options.focal_gamma,
            boundary=options.boundary_loss_weight > 0,
        )
        terms = {
            "focal": options.focal_loss_weight * losses.focal,
            "dice": options.dice_loss_weight * losses.dice,
            "boundary": options.boundary_loss_weight * losses.boundary,
        }
        if self._estimates:
            error = (estimated.float() - losses.iou).square()
            terms["iou"] = options.iou_loss_weight * error
        weights = self._mined(torch.stack(list(terms.values())).sum(0))
        return count, {name: (weights * term).sum() for name, term in terms.items()}

    def _mined(self, losses: Tensor) -> Tensor:
        """How much each prompt of an image counts, ``(p,)``."""
        options = self.options
        weighted = options.online_hard_negative_mining_weighted
        if not (weighted or options.online_hard_negative_mining):
            return torch.ones_like(losses.detach())
        return mining_weights(losses, options.hard_share, options.hard_weight, weighted=weighted)

    def _answers(
        self, embedding: Tensor, labels: Tensor, known: Tensor
    ) -> tuple[NDArray[np.bool_], list[float], Tensor]:
        """Of all objects of one patch: masks ``(k, y, x)``, their estimated IoU 0 to 1, and the
        true one ``(k,)``."""
        objects = objects_of(labels, self._frame)
        masks, scores = [torch.zeros(0, *labels.shape, dtype=torch.bool)], []
        ious = [torch.zeros(0)]
        for boxes, ids in zip(objects.boxes.split(_BOXES), objects.ids.split(_BOXES), strict=True):
            if not len(ids):
                continue
            logits, estimated = self.model.segment(embedding, boxes)
            found = (self._frame.restore(logits.float()[:, None])[:, 0] > 0) & known
            truth = labels == ids[:, None, None]
            either = (found | truth).sum((1, 2)).clamp(min=1)
            ious.append(((found & truth).sum((1, 2)) / either).cpu())
            masks.append(found.cpu())
            scores += estimated.float().clamp(0, 1).tolist()
        return torch.cat(masks).numpy(), scores, torch.cat(ious)


def _painted(masks: NDArray[np.bool_], scores: Sequence[float]) -> NDArray[np.uint32]:
    """Masks ``(k, y, x)`` as labels ``(y, x)``."""
    shape = (1, *masks.shape[1:])
    whole = paint(list(masks[:, None]), [(0, 0, 0)] * len(masks), scores, shape)
    labels: NDArray[np.uint32] = whole.labels[0]
    return labels
