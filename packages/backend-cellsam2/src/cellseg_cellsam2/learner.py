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

from cellseg.report.panels import write_panels
from cellseg.torch.optimisation import Rate
from cellseg_cellsam2.following import Followed
from cellseg_cellsam2.losses import TERMS
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.options import CellSam2Options
from cellseg_cellsam2.prompting import Chances
from cellseg_cellsam2.slots import Truth
from cellseg_cellsam2.unroll import Unrolled

_SHOWN = 4


@dataclass
class _Seen:
    """The last frame of a validated clip, to be drawn."""

    image: NDArray[np.float32]
    truth: NDArray[np.integer]
    found: NDArray[np.integer]


class CellSam2Learner(nn.Module):
    """What ``cellseg.torch.training.fit`` trains.

    Its parameters are those of the model that learn, and no others: what is frozen is in no
    checkpoint.

    Args:
        model: to be trained.
        learnt: names of its parameters that learn, by the group that learns at one rate, as
            ``lora.learning`` gives them.
        options: how it learns.
        seed: of the training.
    """

    monitor = "score"

    def __init__(
        self,
        model: CellSam2,
        learnt: Mapping[str, list[str]],
        options: CellSam2Options,
        seed: int,
    ) -> None:
        super().__init__()
        self.options, self.seed = options, seed
        model.recompute, model.chunk = options.recompute, options.objects_per_batch
        parameters = dict(model.named_parameters())
        self.learnt = nn.ParameterDict(
            {_key(name): parameters[name] for names in learnt.values() for name in names}
        )
        self.rates = rates(model, learnt, options)
        """How fast its parameters learn."""
        self._held = [model]  # in a list, torch does not find it
        self._seen: list[_Seen] = []

    @property
    def model(self) -> CellSam2:
        """All of it, what learns and what does not."""
        return self._held[0]

    def train(self, mode: bool = True) -> CellSam2Learner:
        """As of any module; the model goes along."""
        super().train(mode)
        self.model.train(mode)
        return self

    def training_step(self, batch: Any) -> Mapping[str, Tensor]:
        """All terms of the loss, weighted, and their sum."""
        model = self._on_device(batch)
        sums = Unrolled(model, self.options, batch, self._chances(batch)).run().sums
        terms = {
            f"loss_{name}": getattr(self.options, f"{name}_weight") * sums[name] for name in TERMS
        }
        # Several devices wait for the gradient of each parameter, also of those without a part.
        unused = 0 * torch.stack([each.sum() for each in self.learnt.values()]).sum()
        return {"loss": torch.stack(list(terms.values())).sum() + unused, **terms}

    def validation_step(self, batch: Any) -> Mapping[str, tuple[float, float]]:
        """How well the objects of the first frame of a clip are segmented and followed, without
        help; see ``following.Followed.run``."""
        model, truth = self._on_device(batch), Truth(batch)
        clip = Followed(model, truth, self.options.max_num_objects, self._chances(batch))
        figures = clip.run()
        image = batch["image"][-1].float().cpu().numpy()
        self._seen = [*self._seen[1 - _SHOWN :], _Seen(image, clip.wanted, clip.found)]
        return {name: (part, whole) for name, (part, whole) in figures.values.items()}

    def write_previews(self, directory: Path, epoch: int) -> None:
        """The last frames of the last clips of the validation."""
        panels = [(seen.image, seen.truth, seen.found) for seen in self._seen]
        if panels:
            write_panels(panels, directory / f"epoch-{epoch:04d}.png")
        self._seen.clear()

    def _chances(self, batch: Any) -> Chances:
        return Chances(self.seed, batch["index"].tolist())

    def _on_device(self, batch: Any) -> CellSam2:
        """The model, where the batch is; what learns is there already."""
        device = batch["image"].device
        if any(each.device != device for each in self.model.buffers()):
            self.model.to(device)
        return self.model


def rates(
    model: CellSam2, learnt: Mapping[str, list[str]], options: CellSam2Options
) -> tuple[Rate, ...]:
    """How fast the parameters of a ``CellSam2Learner`` learn.

    The blocks of the image encoder learn the slower the earlier they are (``layer_decay``), and
    what comes before them slower still.
    """
    by_group = {
        "lora": ("lora_lr", options.lora_lr),
        "base": ("base_lr", options.base_lr),
        "vision": ("vision_lr", options.vision_lr),
        "heads": ("head_lr", options.head_lr),
    }
    if options.use_lora:
        by_group["heads"] = by_group["lora"]
    blocks = len(model.sam.image_encoder.trunk.blocks)
    found: dict[tuple[str, float], set[str]] = {}
    for group in by_group:
        option, peak = by_group[group]
        for name in learnt.get(group, ()):
            slower = options.layer_decay ** _depth(name, blocks) if group == "vision" else 1.0
            found.setdefault((option, peak * slower), set()).add(f"learnt.{_key(name)}")
    return tuple(Rate(option, peak, frozenset(names)) for (option, peak), names in found.items())


def _key(name: str) -> str:
    """The name of a parameter within a ``ParameterDict``, which allows no dots."""
    return name.replace(".", "/")


def _depth(name: str, blocks: int) -> int:
    """Blocks of the image encoder after the one that a parameter is in; 0 beyond its trunk."""
    trunk = "sam.image_encoder.trunk."
    if not name.startswith(trunk):
        return 0
    part, _, rest = name.removeprefix(trunk).partition(".")
    return blocks - 1 - int(rest.partition(".")[0]) if part == "blocks" else blocks
