"""The network together with its losses and its validation, for ``cellseg.torch``'s training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional as F  # noqa: TID253

from cellseg.metrics import THRESHOLDS, Tally, overlaps, tally
from cellseg_vista.instances import find_instances, pixel_maps
from cellseg_vista.losses import Margins, discriminative_loss, semantic_loss
from cellseg_vista.network import Maps, Network
from cellseg_vista.options import VistaOptions
from cellseg_vista.predict_options import VistaPredictOptions
from cellseg_vista.scoring import NOTHING, is_dense, quality

_SHOWN = 4


@dataclass
class _Seen:
    """A validated patch, to be drawn."""

    image: NDArray[np.float32]
    truth: NDArray[np.integer]
    found: NDArray[np.int32]


class VistaLearner(nn.Module):
    """What ``cellseg.torch.training.fit`` trains; the weights are those of ``network``.

    Args:
        network: to be trained.
        options: weights and margins of the losses.
        spacing: voxel size along each spatial axis.
        kinds: how many classes the data has, background included.
        segmenting: how validation makes objects of the network's maps.
    """

    def __init__(
        self,
        network: Network,
        options: VistaOptions,
        spacing: Sequence[float],
        kinds: int,
        segmenting: VistaPredictOptions,
    ) -> None:
        super().__init__()
        self.network, self.options, self.segmenting = network, options, segmenting
        self._spacing, self._kinds = tuple(spacing), kinds
        # In dense volumes most objects run out of the patch, and few small pieces match none.
        self.monitor = "mean_f1" if len(self._spacing) == 2 else "score"
        self._margins = Margins(options.delta_v, options.delta_d, options.push_reach, self._spacing)
        weights = torch.tensor(options.class_weights) if options.class_weights else None
        self.register_buffer("_class_weights", weights, persistent=False)
        self._seen: list[_Seen] = []

    def training_step(self, batch: Any) -> Mapping[str, Tensor]:
        """All terms of the loss, and their weighted sum."""
        self._seen.clear()  # of a validation that was not drawn
        return self._losses(self.network(batch["image"]), batch)

    def validation_step(self, batch: Any) -> Mapping[str, tuple[float, float]]:
        """The losses, the share of voxels of the right class (of those that the semantic loss does
        not leave out), and how well the objects that are predicted, foreground included, match the
        true ones where those are known: ``f1@0.5``, ``mean_f1`` and ``msa`` over ``THRESHOLDS``,
        the adapted Rand error ``are``, and ``score``, their ``quality``; of ``msa`` and ``score``
        the mean over the batches that have objects."""
        maps = self.network(batch["image"])
        count = float(len(batch["image"]))
        terms = self._losses(maps, batch)
        results = {
            name: (float(terms[name]) * count, count) for name in ("loss", "loss_sem", "loss_ins")
        }
        known = batch["classes"] >= 0
        learned = known & (batch["classes"] != self.options.ignore_index)
        right = maps.semantic[:, : self._kinds].argmax(1) == batch["classes"]
        results["accuracy"] = (float((right & learned).sum()), float(learned.sum()))
        total = NOTHING
        for image, labels, there, found in zip(
            batch["image"], batch["labels"], known, pixel_maps(maps, self._kinds), strict=True
        ):
            truth = labels.cpu().numpy()
            seen = find_instances(found, self.segmenting, self._spacing).labels
            seen = np.where(there.cpu().numpy(), seen, 0)
            total += tally(overlaps(seen, truth))
            self._seen = [*self._seen[1 - _SHOWN :], _Seen(image.cpu().numpy(), truth, seen)]
        dense = is_dense(int(known.sum()), int((batch["labels"] > 0).sum()))
        return results | _scored(total, dense)

    def write_previews(self, directory: Path, epoch: int) -> None:
        """The last patches of the validation, with what is true and what is found."""
        from cellseg.report.panels import write_panels

        panels = [(seen.image, seen.truth, seen.found) for seen in self._seen]
        if panels:
            write_panels(panels, directory / f"epoch-{epoch:04d}.png")
        self._seen.clear()

    def _losses(self, maps: Maps, batch: Any) -> dict[str, Tensor]:
        terms = self._terms(maps, batch)
        weight, share = 1.0, 1.0
        for coarse in maps.coarse:
            weight /= 2
            share += weight
            for name, value in self._terms(coarse, batch).items():
                terms[name] = terms[name] + weight * value
        return {name: value / share for name, value in terms.items()}

    def _terms(self, maps: Maps, batch: Any) -> dict[str, Tensor]:
        options = self.options
        semantic = semantic_loss(
            maps.semantic,
            batch["classes"],
            class_weights=self._class_weights,
            ignore_index=options.ignore_index,
        )
        emphasis = 1 + (options.weight_contact - 1) * batch["contact"].float()
        known = batch["classes"] >= 0
        distance = F.binary_cross_entropy_with_logits(
            maps.distance[:, 0].float(), batch["distance"], emphasis * known, reduction="sum"
        ) / known.sum().clamp(min=1)
        terms = discriminative_loss(maps.embedding, batch["labels"], batch["weight"], self._margins)
        loss_sem = options.ce_weight * semantic.ce + options.dice_weight * semantic.dice
        loss_ins = (
            options.weight_pull * terms.pull
            + options.weight_push * terms.push
            + options.weight_norm * terms.norm
        )
        return {
            "loss": loss_sem + options.weight_distance * distance + loss_ins,
            "loss_sem": loss_sem,
            "loss_ce": semantic.ce,
            "loss_dice": semantic.dice,
            "loss_distance": distance,
            "loss_ins": loss_ins,
            "loss_pull": terms.pull,
            "loss_push": terms.push,
        }


def _scored(total: Tally, dense: bool) -> dict[str, tuple[float, float]]:
    both = float(total.n_true + total.n_pred)
    pairs = total.together_true + total.together_pred
    results = {
        "f1@0.5": (2.0 * total.matched[0], both),
        "mean_f1": (2.0 * sum(total.matched) / len(THRESHOLDS), both),
        "are": (pairs - 2 * total.together_both, pairs),
        "msa": (0.0, 0.0),
        "score": (0.0, 0.0),
    }
    if total.n_true:
        unions = [both - matched for matched in total.matched]
        msa = sum(m / u for m, u in zip(total.matched, unions, strict=True)) / len(THRESHOLDS)
        results |= {"msa": (msa, 1.0), "score": (quality(total, dense), 1.0)}
    return results
