"""What the learners of both stages have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg.torch.frames import Frame
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.options import CellSamOptions


class StageLearner(nn.Module):
    """A model of which some parameters learn.

    Its own parameters are these, and no others: what is frozen is in no checkpoint, and stays in
    evaluation.

    Args:
        model: to be trained; it is set to evaluation, and only ``learnt`` requires a gradient.
        learnt: names of its parameters that learn.
        options: how it learns.
        frame: of the patches.
    """

    def __init__(
        self, model: CellSam, learnt: Sequence[str], options: CellSamOptions, frame: Frame
    ) -> None:
        super().__init__()
        self.options, self._frame = options, frame
        model.eval().requires_grad_(False)
        parameters = dict(model.named_parameters())
        for name in learnt:
            parameters[name].requires_grad_(True)
        self.learnt = nn.ParameterDict({key_of(name): parameters[name] for name in learnt})
        self._held = [model]  # in a list, torch does not find it

    @property
    def model(self) -> CellSam:
        """All of it, what learns and what does not."""
        return self._held[0]

    def prepared(self, images: Tensor) -> Tensor:
        """Images ``(n, c, y, x)``, 0..1, as the encoder takes them; the model comes to where they
        are."""
        model = self.model
        if model.device != images.device:
            model.to(images.device)
        return model.prepare(images, self._frame)

    def summed(self, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Terms, which are weighted, and their sum ``loss``."""
        # Several devices wait for the gradient of each parameter, also of those without a part.
        unused = 0 * torch.stack([each.sum() for each in self.learnt.values()]).sum()
        return {"loss": torch.stack(list(terms.values())).sum() + unused, **terms}


def key_of(name: str) -> str:
    """The name of a parameter within a ``ParameterDict``, which allows no dots."""
    return name.replace(".", "/")
