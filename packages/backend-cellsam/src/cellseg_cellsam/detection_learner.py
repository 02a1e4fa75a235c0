"""Stage 1: the model together with the losses of its boxes, for ``cellseg.torch``'s training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torchvision.ops import box_convert  # noqa: TID253

from cellseg.torch.frames import Frame
from cellseg.torch.masks import suppress
from cellseg.torch.optimisation import Rate
from cellseg_cellsam.box_losses import box_losses, unknown_at
from cellseg_cellsam.box_pairs import Costs
from cellseg_cellsam.box_panels import BoxPanel, write_box_panels
from cellseg_cellsam.box_scores import box_scores
from cellseg_cellsam.detector import Detected
from cellseg_cellsam.matching import match
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.options import CellSamOptions
from cellseg_cellsam.stage_learner import StageLearner, key_of
from cellseg_cellsam.targets import objects_of

_SHOWN = 4
_LEAST = 0.01
"""Score of the boxes that are validated, at least."""
_SEVERAL = 4
"""Answers that one cell teaches in the layers before the last one; see ``matching.match``."""
_OVERLAP = 0.7
"""IoU of two boxes of which validation drops one."""
_TRUNK = "sam.image_encoder."
_NECK = f"{_TRUNK}neck."


class DetectionLearner(StageLearner):
    """What ``cellseg.torch.training.fit`` trains in stage 1; see ``StageLearner``."""

    monitor = "score"

    def __init__(
        self, model: CellSam, learnt: Sequence[str], options: CellSamOptions, frame: Frame
    ) -> None:
        super().__init__(model, learnt, options, frame)
        model.recompute = options.recompute
        self.rates = rates(learnt, options)
        """How fast its parameters learn."""
        self._changing = [m for m in model.modules() if _learns(m)]
        self._through = any(_in_trunk(name) for name in learnt)
        self._costs = Costs(
            options.class_cost,
            options.bbox_cost,
            options.giou_cost,
            options.detection_focal_alpha,
            options.detection_focal_gamma,
        )
        self._seen: list[BoxPanel] = []

    def train(self, mode: bool = True) -> DetectionLearner:
        """As of any module; what learns of the model goes along."""
        super().train(mode)
        for module in self._changing:
            module.training = mode
        return self

    def detect(self, batch: Mapping[str, Tensor]) -> Detected:
        """The boxes of the batch's images ``image (n, c, y, x)``; a gradient reaches the trunk only
        if some of it learns."""
        with torch.set_grad_enabled(self._through and torch.is_grad_enabled()):
            features = self.model.trunk(self.prepared(batch["image"]))
        return self.model.detect(features)

    def training_step(self, batch: Any) -> Mapping[str, Tensor]:
        """``loss_class``, ``loss_box`` and ``loss_giou``, weighted, and their sum ``loss``."""
        options, detected = self.options, self.detect(batch)
        if not options.auxiliary_loss:
            detected = replace(detected, logits=detected.logits[-1:], boxes=detected.boxes[-1:])
        cells = [self._in_network(each) for each in self._cells(batch)]
        losses = box_losses(
            detected,
            cells,
            match(detected, cells, self._costs, _SEVERAL),
            unknown_at(detected.boxes, batch["known"], self._frame),
            alpha=options.detection_focal_alpha,
            gamma=options.detection_focal_gamma,
        )
        terms = {
            "loss_class": options.ce_loss_weight * losses.classes,
            "loss_box": options.bbox_loss_weight * losses.boxes,
            "loss_giou": options.giou_loss_weight * losses.giou,
        }
        return self.summed(terms)

    def validation_step(self, batch: Any) -> Mapping[str, tuple[float, float]]:
        """Means over the patches that have cells, of boxes at IoU 0.5: ``score``, the average
        precision; ``box_recall@0.5``, the share of the cells that any box finds; and
        ``box_f1@0.5``, at the threshold of the score that suits the patch best.

        Of boxes that overlap by more than 0.7 the best is taken. Those whose centre lies where
        nothing is known are right if they find a cell, and not wrong if they find none.
        """
        detected = self.detect(batch)
        scores, boxes = detected.best()
        unknown = unknown_at(detected.boxes[-1], batch["known"], self._frame)
        totals = [0.0, 0.0, 0.0]
        counted = 0
        for image, truth in enumerate(self._cells(batch)):
            likely = (scores[image] >= _LEAST).nonzero()[:, 0]
            places = boxes[image] * self._frame.side
            kept = likely[suppress(places[likely], scores[image][likely], _OVERLAP)]
            found = scores[image][kept], places[kept]
            if len(truth):
                result = box_scores([(*found, truth)], ignored=[unknown[image][kept]])
                figures = result.average_precision, result.recall, result.f1
                totals = [a + b for a, b in zip(totals, figures, strict=True)]
                counted += 1
            shown = found[1][~unknown[image][kept]][: len(truth)]
            self._remember(batch["image"][image], truth, shown)
        names = (self.monitor, "box_recall@0.5", "box_f1@0.5")
        return {name: (x, float(counted)) for name, x in zip(names, totals, strict=True)}

    def write_previews(self, directory: Path, epoch: int) -> None:
        """The last patches of the validation, each with its best boxes: as many as there are
        cells, so that they can be compared from the first epoch on."""
        if self._seen:
            write_box_panels(self._seen, directory / f"epoch-{epoch:04d}.png")
        self._seen.clear()

    def _cells(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """The true boxes of each patch, in pixels of the square."""
        return [objects_of(labels, self._frame).boxes for labels in batch["labels"]]

    def _in_network(self, boxes: Tensor) -> Tensor:
        return box_convert(boxes / self._frame.side, "xyxy", "cxcywh")

    def _remember(self, image: Tensor, truth: Tensor, found: Tensor) -> None:
        factor = image.new_tensor(self._frame.factor).flip(0).repeat(2)
        true, given = ((each / factor).cpu().numpy() for each in (truth, found))
        panel = BoxPanel(image.float().cpu().numpy(), true, given)
        self._seen = [*self._seen[1 - _SHOWN :], panel]


def rates(learnt: Sequence[str], options: CellSamOptions) -> tuple[Rate, ...]:
    """How fast the parameters of a ``DetectionLearner`` learn: the trunk at
    ``backbone_learning_rate``, the others at ``stage1_learning_rate``."""
    trunk = frozenset(f"learnt.{key_of(name)}" for name in learnt if _in_trunk(name))
    others = frozenset(f"learnt.{key_of(name)}" for name in learnt) - trunk
    found = (
        Rate("stage1_learning_rate", options.stage1_learning_rate, others),
        Rate("backbone_learning_rate", options.backbone_learning_rate, trunk),
    )
    return tuple(rate for rate in found if rate.names)


def _in_trunk(name: str) -> bool:
    return name.startswith(_TRUNK) and not name.startswith(_NECK)


def _learns(module: nn.Module) -> bool:
    """Whether a module trains; batch norms keep their statistics, which are no parameters."""
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return not batch_norm and any(each.requires_grad for each in module.parameters())
