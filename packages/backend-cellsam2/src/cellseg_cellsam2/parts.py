"""What the parts of the backend hand to each other. Objects of all videos of a batch lie in one
flat axis ``o``; an index says of which image each is."""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the image encoder says of ``n`` images; ``g`` is a sixteenth of the input's side."""

    embedding: Tensor
    """``(n, d, g, g)``."""
    position: Tensor
    """``(1, d, g, g)``: the encoding of the places of ``embedding``."""
    fine: tuple[Tensor, Tensor]
    """``(n, d / 8, 4g, 4g)`` and ``(n, d / 4, 2g, 2g)``, for the mask decoder."""
    heat: Tensor
    """``(n, 4g, 4g)`` logits: whether the middle of a cell is there."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Points, boxes and earlier masks for ``o`` objects, in pixels of the square input."""

    points: Tensor
    """``(o, p, 2)`` float32, x and y. A box is its first and its last corner."""
    kinds: Tensor
    """``(o, p)`` int32: 1 on the object, 0 beside it, 2 and 3 the corners of a box, -1 none."""
    masks: Tensor | None = None
    """``(o, 4g, 4g)`` logits of an earlier answer, or None."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the mask decoder says of ``o`` objects. Masks are raw logits, also of absent objects."""

    masks: Tensor
    """``(o, 4, 4g, 4g)`` logits: token 0 is the single mask; 1 and 2 are the daughters of a cell
    that divides."""
    ious: Tensor
    """``(o, 4)``: the IoU that each mask is thought to have, 0 to 1."""
    presence: Tensor
    """``(o,)`` logits: whether the object is in the image."""
    division: Tensor
    """``(o,)`` logits: whether it divides between the frame before and this one."""
    tokens: Tensor
    """``(o, 4, d)``: the output tokens of the masks, of which pointers are made."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of ``o`` objects: a ring of the latest frames, and the first one for good.

    Slot 0 is the first frame of an object, the others are its latest frames, in any order;
    ``times`` says of which frame each is. Objects may have begun in different frames.
    """

    features: Tensor
    """``(o, s, m, g, g)``."""
    times: Tensor
    """``(o, s)`` int64: the frame of each slot, -1 where it is empty."""
    pointers: Tensor
    """``(o, p, d)``."""
    pointer_times: Tensor
    """``(o, p)`` int64, in the same way."""

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.times)

    def select(self, which: Tensor) -> Memory:
        """Some of the objects, ``(k,)`` int64; one may be taken several times, as by daughters."""
        return Memory(
            self.features[which],
            self.times[which],
            self.pointers[which],
            self.pointer_times[which],
        )

    @staticmethod
    def joined(parts: list[Memory]) -> Memory:
        """All objects, one after the other."""
        return Memory(
            torch.cat([part.features for part in parts]),
            torch.cat([part.times for part in parts]),
            torch.cat([part.pointers for part in parts]),
            torch.cat([part.pointer_times for part in parts]),
        )
