"""The model together with its losses and its validation, for ``cellseg.torch``'s training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor, nn  # noqa: TID253

from cellseg.metrics import THRESHOLDS, overlaps, tally
from cellseg.report.panels import write_panels
from cellseg.torch.frames import Frame
from cellseg_microsam.ais import find_instances
from cellseg_microsam.interactive import Prompting, Session, painted
from cellseg_microsam.losses import MapsDice, maps_loss
from cellseg_microsam.model import MicroSam
from cellseg_microsam.options import MicrosamOptions
from cellseg_microsam.thresholds import Resolved

_SHOWN = 4
_LEARNING: Mapping[str, tuple[str, ...]] = {
    "full": ("image_encoder", "prompt_encoder", "mask_decoder", "decoder"),
    "interactive": ("image_encoder", "prompt_encoder", "mask_decoder"),
    "instances": ("image_encoder", "decoder"),
    "decoder": ("decoder",),
}
"""The parts of a model that learn in each mode."""
_MAPS = ("foreground", "center", "boundary")


def learning_parts(model: MicroSam, options: MicrosamOptions) -> dict[str, nn.Module]:
    """The parts of the model that learn, by name; those that the user freezes left out."""
    parts: dict[str, nn.Module] = {}
    for name in _LEARNING[options.mode]:
        if name not in options.freeze:
            part = model.decoder if name == "decoder" else getattr(model.sam, name)
            assert part is not None
            parts[name] = part
    return parts


@dataclass
class _Seen:
    """A validated patch, to be drawn."""

    image: NDArray[np.float32]
    truth: NDArray[np.integer]
    found: NDArray[np.integer]


class MicrosamLearner(nn.Module):
    """What ``cellseg.torch.training.fit`` trains.

    Its weights are those of the parts that learn. The others are frozen, kept in evaluation, and
    held outside of the module: they are in no checkpoint, and nothing can change them.

    Args:
        model: to be trained.
        options: what learns, and how objects are prompted.
        frame: of the patches.
        segmenting: how validation makes objects of the decoder's maps.
    """

    monitor = "score"

    def __init__(
        self, model: MicroSam, options: MicrosamOptions, frame: Frame, segmenting: Resolved
    ) -> None:
        super().__init__()
        self.options, self.segmenting = options, segmenting
        parts = learning_parts(model, options)
        learnt = {name for name, each in model.named_parameters() if each.requires_grad}
        model.eval().requires_grad_(False)
        for name, part in parts.items():
            prefix = name if name == "decoder" else f"sam.{name}"
            for inner, parameter in part.named_parameters():
                parameter.requires_grad_(f"{prefix}.{inner}" in learnt)
        model.recompute, model.compiled = options.recompute, options.compile
        self.parts = nn.ModuleDict(parts)
        self._held, self._frame = [model], frame  # in a list, torch does not find it
        self._prompting = Prompting(model, frame, options)
        self._seen: list[_Seen] = []

    @property
    def model(self) -> MicroSam:
        """All of it, what learns and what does not."""
        return self._held[0]

    @property
    def _prompted(self) -> bool:
        return self.options.mode in ("full", "interactive")

    @property
    def _mapped(self) -> bool:
        return self.options.mode != "interactive"

    def embeddings(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The embeddings of the batch's images, computed unless they are in it.

        Args:
            batch: ``image (n, c, y, x)``, or ``embedding (n, channels, grid, grid)``.
        """
        if "embedding" in batch:
            return batch["embedding"]
        model, images = self.model, batch["image"]
        if model.device != images.device:
            model.to(images.device)
        learns = "image_encoder" in self.parts and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            return model.encode(model.prepare(images, self._frame))

    def maps(self, embeddings: Tensor) -> Tensor:
        """What the decoder says of patches, ``(n, 3, y, x)``."""
        return self.model.maps(embeddings, self._frame)

    def training_step(self, batch: Any) -> Mapping[str, Tensor]:
        """All terms of the loss, and their sum.

        Of each batch the embeddings are computed once. Batches in turn begin with points and with
        boxes.
        """
        embeddings = self.embeddings(batch)
        terms: dict[str, Tensor] = {}
        if self._mapped:
            terms |= _map_terms(maps_loss(self.maps(embeddings), batch["maps"], batch["known"]))
        if self._prompted:
            turn = int(batch["index"][0]) // self.options.batch_size
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            session = self._prompt(embeddings, batch, turn % 2 == 1, generator)
            terms |= _answer_terms(session, self._unused(embeddings))
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def validation_step(self, batch: Any) -> Mapping[str, tuple[float, float]]:
        """How good the decoder's maps are, and the answers to prompts.

        The soft Dice of each map over all patches; ``f1@0.5``, and ``mean_f1`` over
        ``THRESHOLDS``, of the objects that ``segmenting`` makes of the maps; the mean IoU of the
        first answers, to a point each, and of the last; and ``score``: the mean over the patches
        that have objects of the mean Dice of the three maps, of the mean of first and last IoU, or
        of both where both are trained.
        """
        embeddings = self.embeddings(batch)
        labels = batch["labels"].cpu().numpy()
        found = np.zeros_like(labels)
        results: dict[str, tuple[float, float]] = {}
        quality: list[float] = []
        if self._prompted:
            generator = torch.Generator().manual_seed(int(batch["index"][0]))
            session = self._prompt(embeddings, batch, False, generator)
            results |= _answer_results(session)
            quality += _answer_quality(session)
            if session.answers:
                found[0] = painted(session.answers[0], batch["labels"][0]).cpu().numpy()
        if self._mapped:
            maps = self.maps(embeddings)
            dice = MapsDice.of(maps, batch["maps"], batch["known"], pooled=False)
            results |= _map_results(dice)
            if labels.any():
                quality.append(float(dice.scores.mean()))
            known = batch["known"].cpu().numpy()
            found = find_instances(maps[0].float().cpu().numpy(), self.segmenting)[0][None]
            found = np.where(known, found, 0)
            results |= _object_results(found, labels)
        score = sum(quality) / len(quality) if quality else 0.0
        results["score"] = (score, float(bool(quality)))
        image = batch["image"][0].cpu().numpy()
        self._seen = [*self._seen[1 - _SHOWN :], _Seen(image, labels[0], found[0])]
        return results

    def write_previews(self, directory: Path, epoch: int) -> None:
        """The last patches of the validation: what the decoder finds or, where none is trained,
        the last answers to prompts."""
        panels = [(seen.image, seen.truth, seen.found) for seen in self._seen]
        if panels:
            write_panels(panels, directory / f"epoch-{epoch:04d}.png")
        self._seen.clear()

    def _prompt(
        self, embeddings: Tensor, batch: Any, by_boxes: bool, generator: torch.Generator
    ) -> Session:
        return self._prompting(
            embeddings, batch["labels"], batch["known"], by_boxes=by_boxes, generator=generator
        )

    def _unused(self, embeddings: Tensor) -> Tensor:
        """0, and a gradient of 0 for what may have had no part in a step: several devices wait
        for the gradient of each parameter."""
        sums = [embeddings.float().sum()]
        for name in ("prompt_encoder", "mask_decoder"):
            if name in self.parts:
                sums += [each.sum() for each in self.parts[name].parameters()]
        return 0 * torch.stack(sums).sum()


def _map_terms(losses: Tensor) -> dict[str, Tensor]:
    return {f"loss_{name}": loss for name, loss in zip(_MAPS, losses, strict=True)}


def _answer_terms(session: Session, nothing: Tensor) -> dict[str, Tensor]:
    mask, iou = session.losses or (nothing, nothing)
    return {"loss_mask": mask + nothing, "loss_iou": iou}


def _map_results(dice: MapsDice) -> dict[str, tuple[float, float]]:
    both, each = dice.both.sum(0).tolist(), dice.each.sum(0).tolist()
    return {f"dice_{name}": (both[i], each[i]) for i, name in enumerate(_MAPS)}


def _answer_results(session: Session) -> dict[str, tuple[float, float]]:
    return {
        name: (float(sum(float(each.sum()) for each in ious)), float(sum(map(len, ious))))
        for name, ious in (("iou_first", session.first), ("iou_last", session.last))
    }


def _answer_quality(session: Session) -> list[float]:
    if not session.first:
        return []
    return [float((torch.cat(session.first) + torch.cat(session.last)).mean() / 2)]


def _object_results(
    found: NDArray[np.integer], truth: NDArray[np.integer]
) -> dict[str, tuple[float, float]]:
    total = tally(overlaps(found, truth))
    both = float(total.n_true + total.n_pred)
    return {
        "f1@0.5": (2.0 * total.matched[0], both),
        "mean_f1": (2.0 * sum(total.matched) / len(THRESHOLDS), both),
    }
