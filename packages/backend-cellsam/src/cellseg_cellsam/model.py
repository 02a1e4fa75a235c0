"""Segment Anything with a detector on the features of its image encoder, in one module."""

from __future__ import annotations

from torch import Tensor  # noqa: TID253

from cellseg.torch.sam.architecture import Architecture
from cellseg.torch.sam.model import SegmentAnything
from cellseg_cellsam.detector import Detected, Detector
from cellseg_cellsam.sizes import DetectorSizes


class CellSam(SegmentAnything):
    """Segment Anything, and a detector of cells that shares its image encoder.

    Parameters are those of ``segment_anything`` under ``sam.``, and the detector's under
    ``detector.``. They start random. The encoder's trunk is what both share; its neck, which the
    detector does not see, prepares for the mask decoder.

    Args:
        architecture: the sizes of Segment Anything; it has no decoder of micro-SAM's.
        sizes: of the detector.

    Raises:
        ConfigError, PluginError: as for ``SegmentAnything``.
    """

    def __init__(self, architecture: Architecture, sizes: DetectorSizes) -> None:
        super().__init__(architecture)
        self.sizes = sizes
        self.detector = Detector(architecture.trunk_channels, sizes)

    def detect(self, features: Tensor) -> Detected:
        """The boxes of the cells of images.

        Args:
            features: of the trunk, ``(n, trunk_channels, grid, grid)``.
        """
        return self.detector(features)
