"""What is remembered of objects: how a frame gets into the ring, and what of it is attended to."""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg_cellsam2.parts import Memory


def first(features: Tensor, pointers: Tensor, time: Tensor, slots: int, kept: int) -> Memory:
    """A memory of one frame.

    Args:
        features: ``(o, m, g, g)``.
        pointers: ``(o, d)``.
        time: ``(o,)`` int64.
        slots: frames that fit.
        kept: pointers that fit.
    """
    return Memory(*_begin(features, time, slots), *_begin(pointers, time, kept))


def add(memory: Memory, features: Tensor, pointers: Tensor, time: Tensor) -> Memory:
    """The memory with one more frame, as in ``first``; a frame that is in it is replaced."""
    return Memory(
        *_put(memory.features, memory.times, features, time),
        *_put(memory.pointers, memory.pointer_times, pointers, time),
    )


def _begin(values: Tensor, time: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    times = torch.full((len(values), slots), -1, dtype=torch.int64, device=values.device)
    times[:, 0] = time
    empty = values.new_zeros((len(values), slots - 1, *values.shape[1:]))
    return torch.cat([values[:, None], empty], dim=1), times


def _put(held: Tensor, times: Tensor, values: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Slot 0 stays, but where it is the frame itself, or empty; of the others the oldest goes."""
    order = times.clone()
    latest = torch.iinfo(order.dtype).max
    order[:, 0] = torch.where(order[:, 0] < 0, -2, latest)
    order = torch.where(times == time[:, None], -3, order)
    slot = order.argmin(dim=1)
    if held.shape[1] == 1:  # nothing but the first frame is kept
        fits = order[:, 0] < 0
        rows = torch.arange(len(times), device=times.device)[fits]
        slot, values, time = slot[fits], values[fits], time[fits]
    else:
        rows = torch.arange(len(times), device=times.device)
    index = (rows, slot)
    return held.index_put(index, values.to(held.dtype)), times.index_put(index, time)


@dataclass(frozen=True, slots=True)
class Recalled:
    """What objects attend to that remember equally much; ``k`` frames and ``q`` pointers."""

    features: Tensor
    """``(o, k, m, g, g)``."""
    ages: Tensor
    """``(o, k)`` int64: how many frames ago; 0 for the first frame, however old it is."""
    pointers: Tensor
    """``(o, q, d)``."""
    pointer_ages: Tensor
    """``(o, q)`` int64."""


def within(times: Tensor, time: Tensor) -> Tensor:
    """Which slots count in the frame ``time``, ``(o, s)`` bool: the first frame always, others if
    they are earlier, and not too many frames ago. SAM 2 leaves out frames in the same way."""
    age = time[:, None] - times
    inside = (times >= 0) & (age > 0) & (age < times.shape[1])
    inside[:, 0] = times[:, 0] >= 0
    return inside


def recall(memory: Memory, time: Tensor) -> Recalled:
    """Of objects of which equally many slots count in the frame ``time``."""
    kept, told = within(memory.times, time), within(memory.pointer_times, time)
    ages = time[:, None] - memory.times
    ages[:, 0] = 0
    return Recalled(
        _some(memory.features, kept),
        _some(ages, kept),
        _some(memory.pointers, told),
        _some(time[:, None] - memory.pointer_times, told),
    )


def _some(values: Tensor, which: Tensor) -> Tensor:
    """The slots of each object that are meant, as many for each."""
    if bool(which.all()):
        return values
    return values[which].unflatten(0, (len(values), -1))
