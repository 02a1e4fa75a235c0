"""Segment Anything with the decoder for automatic segmentation, in one module."""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.errors import ConfigError
from cellseg.torch.frames import Frame
from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model import SegmentAnything
from cellseg_microsam.unetr import UnetrDecoder


class MicroSam(SegmentAnything):
    """Segment Anything, and micro-SAM's decoder (doi:10.1038/s41592-024-02580-4).

    Parameters are those of ``segment_anything`` under ``sam.``, and micro-SAM's ``decoder_state``
    under ``decoder.``. They start random.

    Raises:
        ConfigError, PluginError: as for ``SegmentAnything``.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.decoder = (
            None
            if architecture.unetr is None
            else UnetrDecoder(
                architecture.out_channels, architecture.unetr, transposed=architecture.transposed
            )
        )

    def logits(self, embeddings: Tensor) -> Tensor:
        """What the decoder says, before the sigmoid, ``(n, 3, side, side)`` of the square.

        Raises:
            ConfigError: the model has no decoder.
        """
        if self.decoder is None:
            raise ConfigError("The model has no decoder for automatic segmentation.")
        return self.decoder(embeddings)

    def maps(self, embeddings: Tensor, frame: Frame) -> Tensor:
        """What the decoder says of images.

        Args:
            embeddings: ``(n, out_channels, grid, grid)``.
            frame: of the images.

        Returns:
            ``(n, 3, y, x)``, each 0..1: probability of the foreground; distance to the centre of
            the object, 1 at its farthest; nearness to its boundary, 1 at the boundary.
        """
        return frame.restore(torch.sigmoid(self.logits(embeddings)))
