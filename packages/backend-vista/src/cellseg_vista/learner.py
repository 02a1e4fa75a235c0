"""The network together with its losses and its validation, for ``cellseg.torch``'s training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from cellseg.metrics import THRESHOLDS, Tally, overlaps, tally
from cellseg_vista.instances import PixelMaps, find_instances
from cellseg_vista.losses import Margins, discriminative_loss, semantic_loss
from cellseg_vista.network import Maps, Network
from cellseg_vista.options import Vista2dOptions
from cellseg_vista.predict_options import Vista2dPredictOptions

_SHOWN = 4


@dataclass
class _Seen:
    """A validated patch, to be drawn."""

    image: NDArray[np.float32]
    truth: NDArray[np.integer]
    found: NDArray[np.int32]


class Vista2dLearner(nn.Module):
    """What ``cellseg.torch.training.fit`` trains; the weights are those of ``network``."""

    monitor = "mean_f1"

    def __init__(self, network: Network, options: Vista2dOptions) -> None:
        super().__init__()
        self.network, self.options = network, options
        self._margins = Margins(options.delta_v, options.delta_d, options.push_reach)
        self._seen: list[_Seen] = []

    def training_step(self, batch: Any) -> Mapping[str, Tensor]:
        """All terms of the loss, and their weighted sum."""
        return self._losses(self.network(batch["image"]), batch)

    def validation_step(self, batch: Any) -> Mapping[str, tuple[float, float]]:
        """The loss, and how well predicted cells match true ones: F1 at an IoU of 0.5, and its
        mean over ``THRESHOLDS``."""
        maps = self.network(batch["image"])
        count = len(batch["image"])
        scores = {"loss": (float(self._losses(maps, batch)["loss"]) * count, float(count))}
        total = Tally(thresholds=THRESHOLDS, matched=(0,) * 10, matched_iou=(0.0,) * 10)
        for image, truth, found in zip(
            batch["image"], batch["labels"], pixel_maps(maps), strict=True
        ):
            labels, _ = find_instances(found, Vista2dPredictOptions())
            true = truth.cpu().numpy()
            total += tally(overlaps(labels, true))
            if len(self._seen) >= _SHOWN:
                self._seen.pop(0)
            self._seen.append(_Seen(image.cpu().numpy(), true, labels))
        both = float(total.n_true + total.n_pred)
        scores["f1@0.5"] = (2.0 * total.matched[0], both)
        scores["mean_f1"] = (2.0 * sum(total.matched) / len(THRESHOLDS), both)
        return scores

    def write_previews(self, directory: Path, epoch: int) -> None:
        """The last patches of the validation, truth in blue under prediction in orange."""
        from cellseg_vista.previews import write_preview

        panels = [(seen.image, seen.truth, seen.found) for seen in self._seen]
        if panels:
            write_preview(panels, directory / f"epoch-{epoch:04d}.png")
        self._seen.clear()

    def _losses(self, maps: Maps, batch: Any) -> dict[str, Tensor]:
        options, labels = self.options, batch["labels"]
        semantic = semantic_loss(
            maps.semantic, (labels > 0).long(), options.ce_weight, options.dice_weight
        )
        emphasis = 1 + (options.weight_contact - 1) * batch["contact"].float()
        distance = F.binary_cross_entropy_with_logits(
            maps.distance[:, 0].float(), batch["distance"], emphasis
        )
        terms = discriminative_loss(maps.embedding, labels, batch["weight"], self._margins)
        loss = (
            semantic
            + options.weight_distance * distance
            + options.weight_pull * terms.pull
            + options.weight_push * terms.push
            + options.weight_norm * terms.norm
        )
        return {
            "loss": loss,
            "semantic": semantic,
            "distance": distance,
            "pull": terms.pull,
            "push": terms.push,
        }


def pixel_maps(maps: Maps) -> list[PixelMaps]:
    """The network's output as numpy arrays, one for each image of the batch."""
    foreground = maps.semantic.float().softmax(1)[:, 1].cpu().numpy()
    distance = maps.distance[:, 0].float().sigmoid().cpu().numpy()
    embedding = maps.embedding.float().cpu().numpy()
    return [PixelMaps(f, d, e) for f, d, e in zip(foreground, distance, embedding, strict=True)]
