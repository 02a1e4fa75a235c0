"""A model that sees tiles at the scale of its training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg import Tile
from cellseg.data import Image
from cellseg.torch.devices import arithmetic
from cellseg.torch.frames import Frame
from cellseg.torch.pixels import check_plane
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Encoded
from cellseg_cellsam2.predict_options import CellSam2PredictOptions

MEMORY_HINT = (
    "Follow fewer objects at once: --objects-per-batch; compute with less: --precision bf16; or cut"
    " smaller tiles."
)
"""What helps where the memory does not suffice."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model, and how it looks at tiles."""

    model: CellSam2
    """On its device, set to evaluation."""
    scale: float
    """Pixels of the model's input for a pixel of the image, as in training. Larger tiles than fill
    the square at this scale are seen smaller."""
    dtype: torch.dtype
    """Of the arithmetic."""

    @classmethod
    def of(cls, model: CellSam2, scale: float, options: CellSam2PredictOptions) -> Encoder:
        """The model with the arithmetic that the options ask for.

        Raises:
            DeviceError: the device cannot compute in it.
        """
        return cls(model, scale, arithmetic(options.precision, model.device))

    def frame(self, size: tuple[int, int]) -> Frame:
        """The place of a tile of ``size``, ``(y, x)``, in the square."""
        return Frame.fit(size, self.model.side, round(self.model.side / self.scale))

    def encode(self, images: Sequence[Image]) -> Encoded:
        """What the encoder says of tiles ``(c, 1, y, x)`` of one shape, in one call.

        Where a tile does not fill the square, the rest is as dark as its median: in training it is
        the background. Reflections would be taken for the cells that they reflect.

        Raises:
            DataError: they have neither 1 nor 3 channels, or several planes.
        """
        for image in images:
            check_plane(image, "SAM 2", "cellsam2")
        planes = np.stack([image[:, 0] for image in images]).astype(np.float32, copy=False)
        frame = self.frame((planes.shape[2], planes.shape[3]))
        dark = np.median(planes, axis=(2, 3), keepdims=True)
        with self.arithmetic():
            shown, rest = (torch.from_numpy(x).to(self.model.device) for x in (planes - dark, dark))
            return self.model.encode(self.model.prepare(frame.place(shown) + rest))

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute in the precision asked for, without gradients."""
        kind, low = self.model.device.type, self.dtype != torch.float32
        with torch.inference_mode(), torch.autocast(kind, self.dtype, enabled=low):
            yield


def blank(tile: Tile) -> bool:
    """Whether there is nothing to see: no contrast at all."""
    return bool(tile.image.min() == tile.image.max())


def in_image(places: Tensor, frame: Frame) -> Tensor:
    """Places ``(..., 2)`` of the square, x and y, where 0 is the middle of the first pixel, in the
    image, where 0 is the edge of the first pixel."""
    y, x = frame.factor
    return (places + 0.5) / torch.tensor([x, y], device=places.device)


def in_square(places: Tensor, frame: Frame) -> Tensor:
    """The opposite of ``in_image``."""
    y, x = frame.factor
    return places * torch.tensor([x, y], device=places.device) - 0.5
