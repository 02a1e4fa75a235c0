"""What a tracker knows between two frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.errors import DataError
from cellseg_cellsam2.parts import Memory

EVER = -(1 << 40)
"""Longer ago than any frame."""


@dataclass(frozen=True, slots=True)
class TrackingState:
    """The tracks that may go on, at most ``max_gap`` frames after they were last seen."""

    time: int = 0
    """The next frame."""
    next_id: int = 1
    size: tuple[int, int] | None = None
    """Of the tiles, ``(y, x)``; None before the first one."""
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """``(o,)``."""
    missed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """``(o,)``: frames since each was last seen; 0 for those of the last frame."""
    began: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """``(o,)``: of daughters the first frame that shows two of them; else ``EVER``."""
    seen: Tensor | None = None
    """``(o, 4g, 4g)`` bool, over the square: the mask of each where it was last seen; None where
    there is no track."""
    memory: Memory | None = None
    """Of the ``o`` objects; None where there is none."""

    def remembered(self, which: Tensor | None = None) -> Memory | None:
        """The memory of some tracks, ``(k,)`` int64, or of all, with 16 bits as it is kept."""
        if self.memory is None or which is None:
            return self.memory
        return self.memory.select(which)

    def with_memory(self, memory: Memory) -> TrackingState:
        """The same with another memory of the same tracks."""
        return replace(self, memory=narrowed(memory))

    def without(self, lost: NDArray[np.int64], most: int) -> TrackingState:
        """After one more frame, these tracks, which it does not show, and no others.

        Args:
            lost: their places.
            most: frames after which a track is forgotten.
        """
        kept = lost[self.missed[lost] < most]
        state = replace(
            self,
            time=self.time + 1,
            ids=self.ids[kept],
            missed=self.missed[kept] + 1,
            began=self.began[kept],
            seen=None,
            memory=None,
        )
        if not len(kept) or self.seen is None or self.memory is None:
            return state
        which = torch.from_numpy(kept).to(self.seen.device)
        return replace(state, seen=self.seen[which], memory=self.memory.select(which))

    def joined(
        self,
        ids: NDArray[np.int64],
        began: NDArray[np.int64],
        seen: Tensor,
        memory: Memory,
    ) -> TrackingState:
        """With more tracks, which the last frame shows."""
        more = replace(
            self,
            ids=np.concatenate([self.ids, ids]),
            missed=np.concatenate([self.missed, np.zeros_like(ids)]),
            began=np.concatenate([self.began, began]),
            seen=seen if self.seen is None else torch.cat([self.seen, seen]),
        )
        held = [] if self.memory is None else [self.memory]
        return replace(more, memory=Memory.joined([*held, narrowed(memory)]))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, for ``of_arrays``."""
        found: dict[str, NDArray[Any]] = {
            "time": np.array(self.time),
            "next_id": np.array(self.next_id),
            "size": np.array(self.size or (), np.int64),
            "ids": self.ids,
            "missed": self.missed,
            "began": self.began,
        }
        if self.memory is not None and self.seen is not None:
            found["seen_side"] = np.array(self.seen.shape[-1])
            found["seen"] = np.packbits(self.seen.cpu().numpy())
            for name in Memory.__dataclass_fields__:
                values: Tensor = getattr(self.memory, name).cpu()
                if values.dtype == torch.bfloat16:  # numpy does not know it
                    found[f"{name}.bfloat16"] = values.view(torch.int16).numpy()
                else:
                    found[name] = values.numpy()
        return found

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> TrackingState:
        """What ``arrays`` gave.

        Raises:
            DataError: some of it is missing, or does not belong together.
        """
        try:
            size = tuple(int(n) for n in arrays["size"])
            ids, missed, began = arrays["ids"], arrays["missed"], arrays["began"]
            seen, memory = None, None
            if len(ids):
                side = int(arrays["seen_side"])
                bits = np.unpackbits(arrays["seen"], count=len(ids) * side * side)
                seen = torch.from_numpy(bits.astype(bool).reshape(-1, side, side)).to(device)
                memory = Memory(
                    *(_tensor(arrays, name).to(device) for name in Memory.__dataclass_fields__)
                )
                if not len(memory) == len(seen) == len(missed) == len(began):
                    raise ValueError("its parts are of different numbers of objects")
            return cls(
                int(arrays["time"]),
                int(arrays["next_id"]),
                (size[0], size[1]) if size else None,
                np.asarray(ids, np.int64),
                np.asarray(missed, np.int64),
                np.asarray(began, np.int64),
                seen,
                memory,
            )
        except (KeyError, ValueError, IndexError) as error:
            raise DataError(
                f"The saved state of the tracker cannot be used: {error}.",
                hint="Predict from the first frame again: leave out --resume.",
            ) from error


def narrowed(memory: Memory) -> Memory:
    """With features of 16 bits, as SAM 2 itself keeps them."""
    return replace(memory, features=memory.features.bfloat16())


def _tensor(arrays: Mapping[str, NDArray[Any]], name: str) -> Tensor:
    half = arrays.get(f"{name}.bfloat16")
    if half is not None:
        return torch.from_numpy(np.array(half)).view(torch.bfloat16)
    return torch.from_numpy(np.array(arrays[name]))
