"""How an image lies in the square that a Segment Anything model looks at.

The image is scaled so that its longer side fills the square, and padded at the bottom and at the
right. Everything that goes in (points, boxes) or comes out (logits, feature maps) passes through
one ``Frame``, so that images that are not square stay aligned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253


@dataclass(frozen=True, slots=True)
class Frame:
    """The place of an image of ``size`` in a square of ``side`` pixels."""

    size: tuple[int, int]
    """Of the image, ``(y, x)`` in pixels."""
    scaled: tuple[int, int]
    """Of the image within the square, ``(y, x)``; it begins in the upper left corner."""
    side: int
    """Of the square."""

    @classmethod
    def fit(cls, size: tuple[int, int], side: int, field: int = 0) -> Frame:
        """As large as it fits.

        Args:
            size: of the image, ``(y, x)``.
            side: of the square.
            field: pixels that the square shows at least along a side: a smaller image leaves
                some of it empty, instead of being magnified more than those of the training.
        """
        factor = side / max(*size, field)
        y, x = (max(1, int(length * factor + 0.5)) for length in size)
        return cls((size[0], size[1]), (y, x), side)

    @property
    def factor(self) -> tuple[float, float]:
        """Pixels of the square for a pixel of the image, ``(y, x)``."""
        return self.scaled[0] / self.size[0], self.scaled[1] / self.size[1]

    def place(self, images: Tensor) -> Tensor:
        """Images in the square.

        Args:
            images: ``(n, c, y, x)`` of ``size``, floating.

        Returns:
            ``(n, c, side, side)``; bilinear, without aliasing; 0 where there is no image.
        """
        if self.scaled != self.size:
            images = torch.nn.functional.interpolate(
                images, self.scaled, mode="bilinear", align_corners=False, antialias=True
            )
        bottom, right = self.side - self.scaled[0], self.side - self.scaled[1]
        return torch.nn.functional.pad(images, (0, right, 0, bottom))

    def restore(self, maps: Tensor) -> Tensor:
        """Maps of the square (logits, distances) as maps of the image, as Segment Anything does it:
        brought to ``side``, cut, and brought to ``size``, both bilinearly.

        Args:
            maps: ``(n, k, m, m)``, floating.

        Returns:
            ``(n, k, y, x)`` of ``size``.
        """
        interpolate = torch.nn.functional.interpolate
        if maps.shape[-1] != self.side:
            maps = interpolate(maps, (self.side,) * 2, mode="bilinear", align_corners=False)
        maps = maps[..., : self.scaled[0], : self.scaled[1]]
        if self.scaled != self.size:
            maps = interpolate(maps, self.size, mode="bilinear", align_corners=False)
        return maps
