"""Objects that are prompted, answered and corrected, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.utils.checkpoint import checkpoint  # noqa: TID253

from cellseg.torch.frames import Frame
from cellseg_microsam.losses import AnswerLoss
from cellseg_microsam.model import MicroSam
from cellseg_microsam.options import MicrosamOptions
from cellseg_microsam.prompts import Prompts, choose_objects, clicks, first_boxes, first_points


@dataclass
class Session:
    """What came of prompting the objects of some images."""

    mask: list[Tensor] = field(default_factory=list)
    """For each turn the losses of its objects, ``(p,)``."""
    iou: list[Tensor] = field(default_factory=list)
    """The same of the estimated IoU."""
    first: list[Tensor] = field(default_factory=list)
    """For each image the true IoU of the first answers that the model would show, ``(p,)``."""
    last: list[Tensor] = field(default_factory=list)
    """The same of the last answers."""
    answers: list[Tensor] = field(default_factory=list)
    """For each image the last answers, ``(p, y, x)`` bool."""

    @property
    def losses(self) -> tuple[Tensor, Tensor] | None:
        """Means over all objects and turns; None where there was no object."""
        if not self.mask:
            return None
        return torch.cat(self.mask).mean(), torch.cat(self.iou).mean()


class Prompting:
    """Prompts objects as micro-SAM does in training (Archit et al. 2025,
    doi:10.1038/s41592-024-02580-4): first by one point or one box each, then by clicks where the
    answer before was wrong, now and then with that answer itself.

    Args:
        model: answers.
        frame: of the images.
        options: how many objects and turns.
    """

    def __init__(self, model: MicroSam, frame: Frame, options: MicrosamOptions) -> None:
        self._model, self._frame, self._options = model, frame, options

    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        known: Tensor,
        *,
        by_boxes: bool,
        generator: torch.Generator,
    ) -> Session:
        """Prompt the objects of each image; those without any are passed over.

        Args:
            embeddings: ``(n, c, grid, grid)``.
            labels: ``(n, y, x)`` integers, 0 for background.
            known: ``(n, y, x)`` bool; nothing counts elsewhere.
            by_boxes: show each object by a box at first, not by a point, of which the best of
                three answers counts.
            generator: on the CPU; its state decides all that is random.
        """
        session = Session()
        for embedding, ids, there in zip(embeddings.split(1), labels, known, strict=True):
            objects = choose_objects(ids, self._options.n_objects, generator)
            if len(objects):
                self._image(session, embedding, objects, there, by_boxes, generator)
        return session

    def _image(
        self,
        session: Session,
        embedding: Tensor,
        objects: Tensor,
        known: Tensor,
        by_boxes: bool,
        generator: torch.Generator,
    ) -> None:
        options = self._options
        prompts = (
            first_boxes(objects, options.box_distortion, generator)
            if by_boxes
            else first_points(objects, generator)
        )
        for turn in range(options.n_sub_iterations):
            low, estimated = self._answer(embedding, prompts, multimask=not by_boxes and turn == 0)
            loss = AnswerLoss.of(low, estimated, objects, known, self._frame)
            session.mask.append(loss.mask)
            session.iou.append(loss.iou)
            with torch.no_grad():
                shown = estimated.argmax(1)[:, None]
                reached = loss.true_iou.gather(1, shown)[:, 0]
                if turn == 0:
                    session.first.append(reached)
                each = torch.arange(len(objects), device=objects.device)
                found = loss.found[each, shown[:, 0]]
                if turn == options.n_sub_iterations - 1:
                    session.last.append(reached)
                    session.answers.append(found)
                    break
                prompts = prompts.with_clicks(*clicks(objects, found, known, generator))
                again = torch.rand((), generator=generator) < options.mask_probability
                masks = low[each, shown[:, 0]][:, None].detach().float() if again else None
                prompts = replace(prompts, masks=masks)

    def _answer(
        self, embedding: Tensor, prompts: Prompts, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        given = prompts.in_square(self._frame)

        def answer(embedding: Tensor) -> tuple[Tensor, Tensor]:
            answered: tuple[Tensor, Tensor] = self._model.answer(
                embedding, multimask=multimask, **given
            )
            return answered

        if self._options.recompute and torch.is_grad_enabled():
            again: tuple[Tensor, Tensor] = checkpoint(answer, embedding, use_reentrant=False)
            return again
        return answer(embedding)


def painted(masks: Sequence[Tensor] | Tensor, like: Tensor) -> Tensor:
    """Masks ``(p, y, x)`` as labels ``(y, x)`` int32, the later ones on top."""
    labels = torch.zeros_like(like, dtype=torch.int32)
    for number, mask in enumerate(masks, 1):
        labels[mask] = number
    return labels
