"""A model on its device, that sees tiles."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg import Tile
from cellseg.errors import ConfigError
from cellseg.torch.devices import arithmetic, resolve_device
from cellseg.torch.frames import Frame
from cellseg.torch.pixels import check_plane, continued
from cellseg_cellsam.description import Description
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.predict_options import CellSamPredictOptions

MEMORY_HINT = (
    "Segment fewer boxes at once: --boxes-per-batch; compute with less: --precision bf16; or cut"
    " smaller tiles."
)
"""What helps where the memory does not suffice."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model, and how it looks at tiles."""

    model: CellSam
    """On its device, set to evaluation."""
    field: int
    """As in ``Frame.fit``: side of a training patch in pixels of the image, or 0 where none is
    known. Such patches filled the square; smaller tiles are continued by their reflection."""
    dtype: torch.dtype
    """Of the arithmetic of the image encoder."""

    @classmethod
    def of(cls, model: CellSam, field: int, options: CellSamPredictOptions) -> Encoder:
        """A model on its device, which is set to evaluation.

        Raises:
            DeviceError: the device cannot compute in the precision that the options ask for.
        """
        dtype = arithmetic(options.precision, model.device)
        model.eval().compiled = options.compile
        return cls(model, field, dtype)

    @classmethod
    def open(cls, options: CellSamPredictOptions, device: str, model: Path | None) -> Encoder:
        """Load a model that training left.

        Args:
            options: how to compute.
            device: as users name it.
            model: the directory.

        Raises:
            ConfigError: there is none, as no weights for cellsam are published under a licence for
                all uses; or it has not learned both boxes and masks.
            WeightsError: its weights are missing or damaged.
            DeviceError: the device is not there, or cannot compute in the precision.
        """
        if model is None:
            raise ConfigError(
                "cellsam segments with trained models only, and none is given.",
                hint="Give one: --model RUN; or train it: cellseg train IMAGES LABELS --backend"
                " cellsam -o RUN",
            )
        where = resolve_device(device)
        arithmetic(options.precision, where)
        from cellseg_cellsam.stored import load_model

        network, description = load_model(model)
        check_learned(description, model)
        return cls.of(network.requires_grad_(False).to(where), description.field, options)

    def frame(self, tile: Tile) -> Frame:
        """The place of a tile in the square."""
        y, x = tile.image.shape[2:]
        return self.model.frame((y, x), self.field)

    def trunk(self, tiles: Sequence[Tile]) -> Tensor:
        """What the shared part of the network sees in planes of one shape, in one call.

        Returns:
            ``(n, trunk_channels, grid, grid)`` float32, for ``model.detect`` and ``embed``.

        Raises:
            DataError: the images have neither 1 nor 3 channels, or more than one plane.
        """
        for tile in tiles:
            check_plane(tile.image, "Segment Anything", "cellsam")
        images = np.stack([tile.image[:, 0] for tile in tiles]).astype(np.float32, copy=False)
        frame = self.frame(tiles[0])
        if self.field:
            images = continued(images, max(*images.shape[2:], self.field))
            frame = self.model.frame((images.shape[2], images.shape[3]))
        prepared = self.model.prepare(torch.from_numpy(images).to(self.model.device), frame)
        with self._arithmetic():
            return self.model.trunk(prepared).float()

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings ``(n, out_channels, grid, grid)`` float32 of what ``trunk`` gives."""
        with self._arithmetic():
            return self.model.neck(features).float()

    def _arithmetic(self) -> AbstractContextManager[None]:
        where = self.model.device.type
        low = self.dtype != torch.float32
        context: AbstractContextManager[None] = torch.autocast(where, self.dtype, enabled=low)
        return context


def check_learned(description: Description, model: Path, *, boxes: bool = True) -> None:
    """Refuse a model of which a part is still random.

    Args:
        description: of the model.
        model: where it is.
        boxes: whether its detector is needed, too.

    Raises:
        ConfigError: it has not learned to segment boxes, or to find them.
    """
    for learned, what, stage in (
        (description.boxes_trained or not boxes, "find boxes", 1),
        (description.masks_trained, "segment boxes", 2),
    ):
        if not learned:
            raise ConfigError(
                f"--model {model}: this model has not learned to {what}; it started from random"
                f" weights, and stage {stage} of the training was left out.",
                hint="Train both stages: cellseg train --backend cellsam --stage both",
            )
