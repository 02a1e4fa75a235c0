"""Objects that are followed through the clips of a batch, and what the truth says of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg_cellsam2.parts import Memory
from cellseg_cellsam2.targets import Batch


@dataclass(frozen=True, slots=True)
class Truth:
    """The truth about the clips of a batch (see ``targets.collated``)."""

    batch: Batch

    @property
    def videos(self) -> int:
        """Clips in the batch."""
        return len(self.batch["index"])

    @property
    def frames(self) -> int:
        """Frames of each clip."""
        return len(self.batch["image"]) // self.videos

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.batch["image"].device

    def image(self, video: Tensor, frame: int) -> Tensor:
        """The image of each object ``(o,)`` in a frame."""
        return video * self.frames + frame

    def masks(self, track: Tensor, frame: int) -> Tensor:
        """``(o, side, side)`` bool: what is visible of objects, empty where ``track`` is -1."""
        batch = self.batch
        labels = batch["labels"][self.image(batch["video"][track], frame)]
        return (labels == batch["label"][track][:, None, None]) & (track >= 0)[:, None, None]

    def known(self, video: Tensor, frame: int) -> Tensor:
        """``(o, side, side)`` bool: the pixels whose labels are known."""
        return self.batch["labels"][self.image(video, frame)] >= 0

    def visible(self, track: Tensor, frame: int) -> Tensor:
        """``(o,)`` bool; not where ``track`` is -1."""
        return self.batch["present"][track, frame] & (track >= 0)

    def begun(self, frame: int) -> Tensor:
        """``(k,)`` bool: the objects that are visible in a frame for the first time."""
        present = self.batch["present"]
        return present[:, frame] & ~present[:, :frame].any(1)


@dataclass(frozen=True, slots=True)
class Fate:
    """What truly becomes of followed objects in a frame."""

    track: Tensor
    """``(o,)``: which object each is now: itself or, where only one daughter is visible, that one;
    -1 for none."""
    present: Tensor
    """``(o,)`` bool: whether it is visible, as one object."""
    divides: Tensor
    """``(o,)`` bool: whether two daughters are visible instead."""
    daughters: Tensor
    """``(o, 2)``, where it divides."""
    judged: Tensor
    """``(o,)`` bool: whether the frame shows if it divides."""

    @classmethod
    def of(cls, truth: Truth, track: Tensor, frame: int) -> Fate:
        """Of objects ``track (o,)``, -1 for none."""
        batch = truth.batch
        if not len(batch["label"]):
            nothing = torch.zeros_like(track, dtype=torch.bool)
            return cls(track, nothing, nothing, track[:, None].expand(-1, 2), nothing)
        ends = (batch["divides"][track] == frame) & (track >= 0)
        daughters = torch.where(ends[:, None], batch["daughters"][track], -1)
        divides = (daughters >= 0).all(1)
        alone = (daughters[:, 0] >= 0) & ~divides
        track = torch.where(alone, daughters[:, 0], track)
        present = truth.visible(track, frame) & ~divides
        return cls(track, present, divides, daughters, (present & ~alone) | divides)


@dataclass(frozen=True, slots=True)
class Slots:
    """Objects ``o`` that are followed, of all clips."""

    video: Tensor
    """``(o,)`` int64."""
    track: Tensor
    """``(o,)`` int64: which objects of the batch they are, -1 for none."""
    memory: Memory | None
    """None where nothing is remembered any more."""
    lost: Tensor
    """``(o,)`` bool: whether they were missing in the last frame."""

    def __len__(self) -> int:
        return len(self.video)

    @staticmethod
    def joined(one: Slots | None, other: Slots | None) -> Slots | None:
        """Both, the first one's first."""
        if one is None or other is None:
            return one or other
        memories = [each.memory for each in (one, other) if each.memory is not None]
        return Slots(
            torch.cat([one.video, other.video]),
            torch.cat([one.track, other.track]),
            Memory.joined(memories) if memories else None,
            torch.cat([one.lost, other.lost]),
        )
