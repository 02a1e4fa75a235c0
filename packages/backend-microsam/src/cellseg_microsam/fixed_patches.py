"""Patches that are the same in every epoch, and the versions of each that are encoded."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cellseg.augment import Augmentation
from cellseg.classes import UNKNOWN
from cellseg.data import Dataset
from cellseg.errors import DataError
from cellseg.patches import Patch, PatchGrid
from cellseg.splits import weighted
from cellseg.torch.patches import ValidationPatches
from cellseg_microsam.options import MicrosamOptions

_GOLDEN = (5**0.5 - 1) / 2


@dataclass
class FixedPatches:
    """Patches of the training images that lie on a grid and hold enough objects.

    Args:
        samples: with labels; images normalised. Those of weight 0 are left out.
        options: size of the patches, and what they must hold.
        most: how many at most; evenly spread over the images.

    Raises:
        DataError: no patch has enough objects, or a file cannot be read.
    """

    samples: Dataset
    options: MicrosamOptions
    most: int
    shares: NDArray[np.float64] | None = field(init=False, default=None)
    """How often each is seen, where the images have different weights; the sum is 1."""

    def __post_init__(self) -> None:
        samples = weighted(self.samples)
        self._grid = PatchGrid(samples, self.options.patch_shape)
        self._chosen: list[int] = []
        self.checksum = 0
        """Of all pixels and labels."""
        weights = {sample.name: sample.weight for sample in samples}
        chances: list[float] = []
        # In this order the first few are spread over all, however many they turn out to be.
        for number in sorted(range(len(self._grid)), key=lambda i: i * _GOLDEN % 1):
            patch = self._grid[number]
            if enough(patch.labels, self.options):
                self._chosen.append(number)
                chances.append(weights[patch.name])
                self.checksum = checksum(patch, self.checksum)
                if len(self._chosen) == self.most:
                    break
        if not self._chosen:
            wanted, smallest = self.options.min_instances, self.options.min_instance_size
            side = self.options.patch_size
            raise DataError(
                f"No patch of {side} x {side} pixels on a grid over the images has {wanted} objects"
                f" of {smallest} pixels.",
                hint="Lower --min-instances or --min-instance-size, or enlarge --patch-size.",
            )
        if len(set(chances)) > 1:
            self.shares = np.array(chances) / sum(chances)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Patch:
        patch: Patch = self._grid[self._chosen[index]]
        return patch


def enough(labels: NDArray[np.uint32], options: MicrosamOptions) -> bool:
    """Whether a patch holds the objects that options ask for."""
    if not options.use_min_instance_sampler:
        return True
    ids, sizes = np.unique(labels, return_counts=True)
    large = (ids != 0) & (ids != UNKNOWN) & (sizes >= options.min_instance_size)
    return int(np.count_nonzero(large)) >= options.min_instances


def checksum(patch: Patch, before: int = 0) -> int:
    """Of pixels and labels of a patch, after others."""
    return zlib.crc32(patch.labels.tobytes(), zlib.crc32(patch.image.tobytes(), before))


class Versions:
    """All patches that are encoded: each one of the training as it is and in augmented copies,
    then those of the validation.

    Args:
        fixed: of the training.
        val: of the validation, or None.
        options: how many copies, and how they are augmented.
        seed: another one gives other copies.
    """

    def __init__(
        self,
        fixed: FixedPatches,
        val: ValidationPatches | None,
        options: MicrosamOptions,
        seed: int,
    ) -> None:
        self._fixed, self._val, self._seed = fixed, val, seed
        self._augment, self.copies = Augmentation(options), options.copies

    def __len__(self) -> int:
        return self.trained + (len(self._val) if self._val else 0)

    @property
    def trained(self) -> int:
        """How many of them, the first ones, are of the training."""
        return len(self._fixed) * self.copies

    def read(
        self, numbers: Iterable[int]
    ) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.uint32]]]:
        """Number, image ``(c, 1, y, x)`` and labels ``(1, y, x)`` of some of them; what is asked
        for in order is read once."""
        at, patch = -1, None
        for number in numbers:
            if number >= self.trained:
                assert self._val is not None
                own = self._val.patch(number - self.trained)
                yield number, own.image, own.labels
                continue
            index, copy = divmod(number, self.copies)
            if index != at or patch is None:
                at, patch = index, self._fixed[index]
            image, labels = patch.image, patch.labels
            if copy:
                rng = np.random.default_rng((self._seed, index, copy, 3))
                image, labels = self._augment(image, labels, rng)
            yield number, image, labels

    def checksum(self) -> int:
        """Of all that they are made of."""
        result = self._fixed.checksum
        for index in range(len(self._val) if self._val else 0):
            assert self._val is not None
            result = checksum(self._val.patch(index), result)
        return result
