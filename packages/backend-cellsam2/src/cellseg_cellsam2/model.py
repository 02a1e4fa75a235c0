"""SAM 2.1 that knows divisions and births, over flat batches of objects."""

from __future__ import annotations

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from cellseg_cellsam2.parts import Answer, Encoded, Memory, Prompts


class CellSam2(nn.Module):
    """A ``SAM2Base`` with a division token and head, and a heatmap head.

    Objects of all videos are in one axis; ``image (o,)`` int64 says of which image each is. Nothing
    that is said of one object depends on the others.
    """

    chunk: int = 64
    """Objects that go through memory attention and decoder at once; the results do not depend on
    it."""
    recompute: bool = False
    """Whether activations are computed again for the gradient instead of kept."""

    @property
    def side(self) -> int:
        """Pixels of the square input."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        raise NotImplementedError

    def prepare(self, images: Tensor) -> Tensor:
        """Planes ``(n, 1 or 3, side, side)``, 0..1, standardised as SAM 2 takes them ``(n, 3, side,
        side)``."""
        raise NotImplementedError

    def encode(self, prepared: Tensor) -> Encoded:
        """Each image once."""
        raise NotImplementedError

    def answer(
        self,
        encoded: Encoded,
        image: Tensor,
        prompts: Prompts | None = None,
        memory: Memory | None = None,
        time: Tensor | None = None,
    ) -> Answer:
        """What the decoder says of objects.

        Args:
            encoded: of ``n`` images.
            image: ``(o,)`` int64: the image of each object.
            prompts: that show the objects, or None for those that are only remembered.
            memory: of the same objects, or None where they are new.
            time: ``(o,)`` int64: the frame that the images are, for ages of memories; needed with
                ``memory``.
        """
        raise NotImplementedError

    def remember(
        self,
        encoded: Encoded,
        image: Tensor,
        masks: Tensor,
        tokens: Tensor,
        presence: Tensor,
        time: Tensor,
        memory: Memory | None = None,
    ) -> Memory:
        """The memory with this frame in it; the oldest frame but the first goes where it is full.

        Args:
            encoded: of ``n`` images.
            image: ``(o,)`` int64.
            masks: ``(o, 4g, 4g)`` logits of the mask that each object has.
            tokens: ``(o, d)``: the output token of that mask.
            presence: ``(o,)`` logits or bool: objects that are absent are remembered as such.
            time: ``(o,)`` int64: the frame.
            memory: of the same objects before, or None where they are new.
        """
        raise NotImplementedError
