"""Training data as an endless numbered stream: what sample ``i`` is depends on ``i`` alone.

So a resumed training goes on with the very sample that comes next, several processes share the
stream without drawing a sample twice, and loader processes change nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset, Sampler, default_collate  # noqa: TID253


class Numbered(Protocol):
    """Samples by number; for training any number from 0 on, for validation up to its length."""

    def __getitem__(self, index: int, /) -> Any:
        """Sample ``index``: always the same one."""


@dataclass(frozen=True)
class Loaders:
    """What a training reads. With several devices it is pickled, so keep to plain classes."""

    train: Numbered
    """Endless; each sample something that ``collate`` can stack."""
    epoch_samples: int
    """Samples in an epoch, over all devices; rounded up to whole steps."""
    val: Numbered | None = None
    """Each item a whole batch, for one call of ``validation_step``."""
    val_batches: int = 0
    """How many items ``val`` has."""
    collate: Callable[[list[Any]], Any] = default_collate
    """Makes a batch of samples."""


@dataclass(frozen=True)
class Share:
    """One process's part of the stream: batches of ``batch_size`` in turn with the others."""

    rank: int
    world: int
    batch_size: int

    def batch(self, start: int, number: int) -> list[int]:
        """The samples of this process's batch ``number``, counted from sample ``start``."""
        first = start + (number * self.world + self.rank) * self.batch_size
        return list(range(first, first + self.batch_size))


class _Forward(Sampler[list[int]]):  # type: ignore[misc]
    """The batches from ``start`` on, without end, in parts of at most ``most``."""

    def __init__(self, share: Share, start: int, most: int) -> None:
        self._share, self._start, self._most = share, start, most

    def __iter__(self) -> Iterator[list[int]]:
        number = 0
        while True:
            batch = self._share.batch(self._start, number)
            for first in range(0, len(batch), self._most):
                yield batch[first : first + self._most]
            number += 1


class _Items(Dataset[Any]):  # type: ignore[misc]
    def __init__(self, source: Numbered) -> None:
        self._source = source

    def __getitem__(self, index: int) -> Any:
        return self._source[index]


def stream(
    loaders: Loaders, share: Share, start: int, workers: int, pin: bool, most: int = 0
) -> Iterator[Any]:
    """Batches of training samples from sample ``start`` on, without end.

    Args:
        loaders: where samples come from.
        share: of this process.
        start: the number of the first sample.
        workers: processes that load them.
        pin: keep batches where a GPU gets them faster.
        most: samples of a batch that come at once, in parts one after the other; 0 is all.
    """
    return iter(
        DataLoader(
            _Items(loaders.train),
            batch_sampler=_Forward(share, start, most or share.batch_size),
            num_workers=workers,
            collate_fn=loaders.collate,
            pin_memory=pin,
            worker_init_fn=_one_thread,
        )
    )


def _one_thread(worker: int) -> None:
    """OpenCV's threads in each loader process would outnumber the cores."""
    import cv2

    cv2.setNumThreads(0)
