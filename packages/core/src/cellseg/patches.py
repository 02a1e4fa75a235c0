"""Training patches that hold objects, drawn from an index of where the objects are.

Patch ``i`` depends on the random seed and ``i`` alone, whichever process draws it and in whatever
order, so a resumed training sees the very patches that come next.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.classes import SHIFT, without_classes
from cellseg.data import ZYX, Dataset, Labels, Sample
from cellseg.errors import DataError
from cellseg.keeping import kept, measured, size
from cellseg.normalise import NormalisedImage
from cellseg.objects import ObjectIndex, as_ids
from cellseg.sampling_options import PatchOptions
from cellseg.splits import weighted

_TRIES = 8
_LOOKED_AT = 256  # patches of an image that are counted for a crowd
_SEARCHED = 2000  # objects of an image that are tried as the middle of a crowd


@dataclass(frozen=True, slots=True)
class Patch:
    """A piece of an image and of its labels."""

    image: NDArray[np.float32]
    """``(c, z, y, x)``."""
    labels: NDArray[np.uint32]
    """``(z, y, x)`` with the ids of the whole label image (see ``cellseg.classes``); 0 where
    padded. Plain ids are numbered anew in patches that have some of 2^28 and more."""
    name: str
    """Of the sample."""
    corner: ZYX
    """The voxel of the sample at the patch's origin; negative where the patch is padded."""


class PatchSampler:
    """Draws random patches with enough objects in them, each image as often as its weight says.

    An object counts where at least ``min_instance_size`` of its voxels lie in the patch. A random
    object is the anchor, and the patch lies anywhere around it; where that is not enough, another
    is tried, and in the end a place that is known to be good. Images smaller than the patch are
    padded on all sides with the mean of their background, and 0 in the labels.

    Args:
        samples: with labels; images normalised (``cellseg.normalise.normalised``). Those of weight
            0 are left out.
        shape: of the patches, ``(z, y, x)``.
        min_instances: how many objects a patch holds; 0 draws patches anywhere.
        min_instance_size: voxels of an object in the patch that make it count.
        balance_classes: draw the class of the anchor first, each class of the image alike.
        seed: another one gives other patches.
        cache: bytes of images and labels that may be kept decoded, as first come; what does not
            fit is read for each patch. Processes that are forked share them.
        cache_rate: the share of the samples, rounded up, that is kept instead, as first come.

    Raises:
        DataError: an image cannot be read or has no labels, or ids of a class without a name; a
            weight is negative; or no image has enough objects.
    """

    def __init__(
        self,
        samples: Dataset,
        shape: ZYX,
        *,
        min_instances: int = 1,
        min_instance_size: int = 25,
        balance_classes: bool = True,
        seed: int = 0,
        cache: int = 512 << 20,
        cache_rate: float | None = None,
    ) -> None:
        self.shape = shape
        self._wanted, self._seed = min_instances, seed
        self._all: list[Sample] = []
        self._images: list[_Image] = []
        skipped = []
        samples = weighted(samples)
        first = None if cache_rate is None else math.ceil(round(cache_rate * len(samples), 6))
        for number, sample in enumerate(samples):
            sample = _checked(sample)
            if size(sample) <= cache if first is None else number < first:
                sample = kept(sample)
                cache -= size(sample)
            self._all.append(measured(sample))
            assert sample.labels is not None
            index = ObjectIndex.of(sample.labels, sample.name)
            large = index.chosen(index.sizes >= min_instance_size)
            image = _Image(sample, large, min_instance_size, balance_classes)
            if image.find(shape, min_instances):
                self._images.append(image)
            else:
                skipped.append(sample.name)
        self.skipped: tuple[str, ...] = tuple(skipped)
        """Names of the images that have no place with enough objects."""
        if not self._images:
            listed = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
            raise DataError(
                f"No image has {min_instances} objects of {min_instance_size} pixels within a "
                f"patch of {' x '.join(map(str, shape))} (z, y, x): {listed or 'there is none'}.",
                hint="Lower --min-instances or --min-instance-size, or enlarge --patch-size.",
            )
        weights = [image.sample.weight for image in self._images]
        self._shares: NDArray[np.float64] | None = None
        if len(set(weights)) > 1:
            self._shares = np.cumsum(weights) / sum(weights)

    @classmethod
    def of(cls, samples: Dataset, options: PatchOptions, seed: int) -> PatchSampler:
        """A sampler as the options ask for."""
        return cls(
            samples,
            options.patch_shape,
            min_instances=options.min_instances,
            min_instance_size=options.min_instance_size,
            balance_classes=options.balance_classes,
            seed=seed,
            cache=options.cache << 20,
            cache_rate=options.cache_rate,
        )

    def __len__(self) -> int:
        """How many images patches are drawn from."""
        return len(self._images)

    def patch(self, index: int) -> Patch:
        """Patch ``index``, from 0 on without end; always the same one.

        Raises:
            DataError: the file cannot be read.
        """
        rng = np.random.default_rng([self._seed, index])
        image = self._images[self._drawn(rng)]
        for _ in range(_TRIES):
            corner = image.draw(self.shape, anchored=self._wanted > 0, rng=rng)
            labels = image.enough(corner, self.shape, self._wanted)
            if labels is not None:
                return cut(image.sample, corner, self.shape, labels)
        return cut(image.sample, image.good, self.shape)

    def _drawn(self, rng: np.random.Generator) -> int:
        """The number of a random image."""
        if self._shares is None:
            return int(rng.integers(len(self._images)))
        return min(
            int(self._shares.searchsorted(rng.random(), side="right")), len(self._images) - 1
        )

    def crowd(self) -> int:
        """How many objects a patch shows at most, whole or in part: of up to 256 patches of each
        image, evenly spread over it."""
        return max(image.crowd(self.shape) for image in self._images)

    def extent(self, share: float) -> int:
        """The length in pixels, along y or x, that this share of the objects does not exceed."""
        return int(np.quantile(np.concatenate([one.extents() for one in self._images]), share))

    def grid(self) -> PatchGrid:
        """Patches that cover all images, those without enough objects too."""
        return PatchGrid(self._all, self.shape)


class PatchGrid(Sequence[Patch]):
    """Patches that cover images without gaps, for validation; each is read when asked for.

    Args:
        samples: with labels; images normalised.
        shape: of the patches, ``(z, y, x)``. They overlap where it does not divide an image, and
            smaller images are padded as by ``PatchSampler``.

    Raises:
        DataError: an image has no labels, or some of another shape.
    """

    def __init__(self, samples: Dataset, shape: ZYX) -> None:
        self.shape = shape
        self._cuts = [(_checked(s), c) for s in samples for c in _covering(s, shape)]

    def __len__(self) -> int:
        return len(self._cuts)

    @property
    def corners(self) -> tuple[ZYX, ...]:
        """Where each patch begins in its image; negative where it is padded."""
        return tuple(corner for _, corner in self._cuts)

    def __getitem__(self, index: Any) -> Any:
        """Patch ``index``."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sample, corner = self._cuts[index]
        return cut(sample, corner, self.shape)


def cut(sample: Sample, corner: ZYX, shape: ZYX, labels: Labels | None = None) -> Patch:
    """The patch at ``corner``, padded where it reaches beyond the image.

    Args:
        sample: with labels, larger or smaller than the patch.
        corner: ``(z, y, x)`` in the sample; negative where the patch begins before it.
        shape: of the patch, ``(z, y, x)``.
        labels: what of the sample's labels lies under the patch, where that is read already.

    Raises:
        DataError: the file cannot be read, or ids are negative or do not fit in 32 bits.
    """
    window = _window(sample, corner, shape)
    image = sample.image[(slice(0, sample.image.shape[0]), *window)]
    image = image.astype(np.float32, copy=not isinstance(sample.image, NormalisedImage))
    if labels is None:
        assert sample.labels is not None
        labels = sample.labels[window]
    ids = as_ids(labels.copy(), sample.name)
    if not sample.classes:
        ids = without_classes(ids)
    if ids.shape != shape:
        inner = tuple(
            slice(part.start - a, part.stop - a) for part, a in zip(window, corner, strict=True)
        )
        padded = np.empty((len(image), *shape), np.float32)
        padded[:] = background(image, ids)[:, None, None, None]
        padded[(slice(None), *inner)] = image
        framed = np.zeros(shape, np.uint32)
        framed[inner] = ids
        image, ids = padded, framed
    return Patch(image, ids, sample.name, corner)


def background(image: NDArray[np.float32], labels: Labels) -> NDArray[np.float32]:
    """For each channel the mean of what is background; the minimum where nothing is.

    Args:
        image: ``(c, z, y, x)``.
        labels: ``(z, y, x)``; background is 0, so what is not known (``classes.UNKNOWN``) is none.
    """
    outside = labels == 0
    count = int(np.count_nonzero(outside))
    if count == 0:
        lowest: NDArray[np.float32] = image.min(axis=(1, 2, 3))
        return lowest
    return np.array([plane.mean(where=outside) for plane in image], np.float32)


class _Image:
    """An image that patches are drawn from, with its objects that are large enough."""

    def __init__(
        self, sample: Sample, objects: ObjectIndex, size: int, balanced: bool = True
    ) -> None:
        self.sample = sample
        self._objects, self._size = objects, size
        self._kinds: list[NDArray[np.intp]] = []
        if sample.classes:
            kinds = _classes(objects, sample)
            if balanced:
                self._kinds = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
        self.good: ZYX = (0, 0, 0)

    def find(self, shape: ZYX, wanted: int) -> bool:
        """Look for a place with enough objects, to fall back on."""
        if len(self._objects) < wanted:
            return False
        rng = np.random.default_rng(0)
        tried = (self.draw(shape, anchored=wanted > 0, rng=rng) for _ in range(_TRIES))
        for corner in itertools.chain(tried, self._crowds(shape, wanted)):
            if self.enough(corner, shape, wanted) is not None:
                self.good = corner
                return True
        return False

    def draw(self, shape: ZYX, *, anchored: bool, rng: np.random.Generator) -> ZYX:
        """A random corner; anchored to a random object, all of it in the patch if it fits."""
        chances = rng.random(4).tolist()
        anchor = self._anchor(chances[3]) if anchored else 0
        corner = []
        for axis, (least, most) in enumerate(self._range(shape)):
            if anchored:
                low = int(self._objects.low[anchor, axis])
                first, last = sorted((low, int(self._objects.high[anchor, axis]) - shape[axis]))
                least, most = max(least, min(first, most)), min(most, max(last, least))
            corner.append(least + int(chances[axis] * (most - least + 1)))
        return corner[0], corner[1], corner[2]

    def _anchor(self, chance: float) -> int:
        """The number of an object; of each class as often, where classes are balanced."""
        if len(self._kinds) < 2:
            return int(chance * len(self._objects))
        kind, rest = divmod(chance * len(self._kinds), 1)
        members = self._kinds[int(kind)]
        return int(members[int(rest * len(members))])

    def enough(self, corner: ZYX, shape: ZYX, wanted: int) -> Labels | None:
        """The labels of a patch that holds as many objects as wanted; None where it does not."""
        whole, partly = self._objects.seen(corner, shape)
        if whole + len(partly) < wanted:
            return None
        window = _window(self.sample, corner, shape)
        assert self.sample.labels is not None
        labels = self.sample.labels[window]
        origin = [part.start for part in window]
        for number in partly:
            if whole >= wanted:
                break
            whole += self._objects.visible(int(number), labels, origin) >= self._size
        return labels if whole >= wanted else None

    def crowd(self, shape: ZYX) -> int:
        """How many objects a patch shows at most, of some that are evenly spread."""
        corners = list(_covering(self.sample, shape))
        step = math.ceil(len(corners) / _LOOKED_AT)
        seen = (self._objects.seen(corner, shape) for corner in corners[::step])
        return max(whole + len(partly) for whole, partly in seen)

    def extents(self) -> NDArray[np.int64]:
        """The longer side of each object in the plane."""
        longest: NDArray[np.int64] = (self._objects.high - self._objects.low)[:, 1:].max(1)
        return longest

    def _range(self, shape: ZYX) -> list[tuple[int, int]]:
        """For each axis the least and the greatest corner: one where the image is no larger."""
        rooms = [n - m for n, m in zip(self.sample.image.shape[1:], shape, strict=True)]
        return [(room // 2, room // 2) if room < 0 else (0, room) for room in rooms]

    def _crowds(self, shape: ZYX, wanted: int) -> Iterator[ZYX]:
        """Corners of patches about an object and those nearest to it."""
        low, high = self._objects.low, self._objects.high
        limits = self._range(shape)
        for anchor in range(0, len(low), max(len(low) // _SEARCHED, 1)):
            together = np.maximum(high, high[anchor]) - np.minimum(low, low[anchor])
            nearest = np.argsort((together / shape).max(1), kind="stable")[: max(wanted, 1)]
            middle = (low[nearest].min(0) + high[nearest].max(0)) // 2
            z, y, x = (
                min(max(int(at) - extent // 2, least), most)
                for at, extent, (least, most) in zip(middle, shape, limits, strict=True)
            )
            yield z, y, x


def _checked(sample: Sample) -> Sample:
    if sample.labels is None:
        raise DataError(
            f"{sample.name} has no labels.", hint="Training and validation need labelled images."
        )
    if sample.labels.shape != sample.image.shape[1:]:
        raise DataError(
            f"{sample.name}: the labels are {sample.labels.shape} (z, y, x), but the image is "
            f"{sample.image.shape[1:]}.",
            hint="Each image needs labels of its own size.",
        )
    return sample


def _classes(objects: ObjectIndex, sample: Sample) -> NDArray[np.int64]:
    """The class of each object; plain ids are of class 1."""
    kinds: NDArray[np.int64] = np.maximum(objects.ids.astype(np.int64) >> SHIFT, 1)
    if len(kinds) and int(kinds.max()) >= len(sample.classes):
        raise DataError(
            f"{sample.name} has objects of class {int(kinds.max())}, but its classes end at "
            f"{len(sample.classes) - 1}: {', '.join(sample.classes)}.",
            hint="The reader must name each class; cellseg check-data lists them.",
        )
    return kinds


def _window(sample: Sample, corner: ZYX, shape: ZYX) -> tuple[slice, ...]:
    """What of the sample lies under the patch."""
    return tuple(
        slice(max(at, 0), min(at + extent, length))
        for at, extent, length in zip(corner, shape, sample.image.shape[1:], strict=True)
    )


def _covering(sample: Sample, shape: ZYX) -> Iterator[ZYX]:
    axes = []
    for length, extent in zip(sample.image.shape[1:], shape, strict=True):
        count = math.ceil(length / extent)
        room = length - extent
        axes.append([room // 2] if room < 0 else _even(room, count))
    z, y, x = axes
    yield from itertools.product(z, y, x)


def _even(room: int, count: int) -> list[int]:
    """``count`` whole numbers from 0 to ``room``, as evenly as they go."""
    return [room * i // max(count - 1, 1) for i in range(count)]
