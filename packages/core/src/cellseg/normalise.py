"""One normalisation for training and prediction: measured here, stored in the model's bundle.

This module is light; the numbers are measured in ``cellseg.intensity``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from cellseg.data import Dataset, LazyArray, Sample
from cellseg.errors import DataError
from cellseg.parts import Crop
from cellseg.sampling_options import Method, NormaliseOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Statistics(BaseModel):
    """What normalising one image takes: ``(value - shift) * scale`` for each channel.

    A constant channel has scale 0: it becomes 0. An inverted channel has a negative scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: tuple[float, ...]
    """For each channel, in units of the raw pixels."""
    scale: tuple[float, ...]
    """For each channel, per unit of the raw pixels."""

    def of(self, channels: slice) -> Statistics:
        """The statistics of some of the channels."""
        return Statistics(shift=self.shift[channels], scale=self.scale[channels])


class Normaliser(BaseModel):
    """How images become float32 for a model. It is stored with the model, as JSON.

    * ``percentile``: the two percentiles become 0 and 1 (the default, 1 and 99.8, is that of
      most published cell models). Exact for every type of pixel, and linear in between ranks as
      ``numpy.percentile``.
    * ``min-max``: the darkest and brightest pixel become 0 and 1.
    * ``z-score``: the mean becomes 0 and the (population) standard deviation 1.
    * ``none``: the raw numbers as float32.

    Nothing is clipped. Inverting maps percentile and min-max results ``v`` to ``1 - v`` and
    z-scores to ``-v``. A constant image becomes 0, also when inverted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = "percentile"
    percentiles: tuple[float, float] = (1.0, 99.8)
    channels: Literal["each", "together"] = "each"
    pixels: Literal["all", "non-zero"] = "all"
    inverted: tuple[bool, ...] = ()
    """For each channel whether dark becomes bright; one value is for all; empty inverts none."""
    dataset: Statistics | None = None
    """Statistics of the training images, for each image to come; None: each image has its own."""

    @classmethod
    def fit(cls, options: NormaliseOptions, samples: Dataset) -> Normaliser:
        """Measure on the training images what the options leave to them.

        Each image is read at most as often as its statistics take, in blocks; nothing is read
        where the options say it all (scope ``image``, polarity not ``measure``).

        Args:
            options: how to normalise.
            samples: training images; with polarity ``measure`` they need labels.

        Raises:
            DataError: pixels are not finite, numbers of channels differ, or no object tells the
                polarity.
        """
        normaliser = cls(
            method=options.normalise,
            percentiles=(options.percentile_low, options.percentile_high),
            channels=options.normalise_channels,
            pixels=options.normalise_pixels,
        )
        if options.polarity == "dark":
            normaliser = normaliser.model_copy(update={"inverted": (True,)})
        elif options.polarity == "measure":
            from cellseg.polarity import measure_polarity

            normaliser = normaliser.model_copy(update={"inverted": measure_polarity(samples)})
        if options.normalise_scope == "image":
            return normaliser
        statistics = normaliser._measure([s.image for s in samples], [s.name for s in samples])
        return normaliser.model_copy(update={"dataset": statistics})

    def statistics(self, image: LazyArray, name: str = "") -> Statistics:
        """What ``apply`` needs for the blocks of one image.

        Args:
            image: ``(c, z, y, x)``, any integer or float type, read in blocks of at most 2^22
                voxels: once for 8 and 16 bits, twice for 32, four times for 64 (once where all
                fits in a block). Those of a data set are not measured again.
            name: what errors call the image.

        Raises:
            DataError: pixels are NaN or infinite, or the channels are not those of the training.
        """
        count = image.shape[0]
        if self.dataset is not None:
            if len(self.dataset.shift) != count:
                raise DataError(
                    f"{_name(image, name)} has {count} channels, but the normalisation was "
                    f"measured on {len(self.dataset.shift)}.",
                    hint="Pick the channels of the training with --channels.",
                )
            return self.dataset
        return self._measure([image], [name])

    def apply(self, block: NDArray[Any], statistics: Statistics) -> NDArray[np.float32]:
        """Normalise any block of an image; every block of it with the same statistics.

        Args:
            block: ``(c, z, y, x)``, any integer or float type; it is not changed.
            statistics: of the image, one value for each channel of the block.

        Returns:
            A new float32 array of the same shape, finite.

        Raises:
            DataError: pixels are NaN or infinite.
        """
        from cellseg.intensity import rescaled

        return rescaled(block, statistics.shift, statistics.scale)

    def restore(
        self, block: NDArray[np.float32], statistics: Statistics, dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        """Undo ``apply``: rounded to whole numbers for integers, clipped to what ``dtype`` holds.

        Args:
            block: ``(c, z, y, x)``, normalised, and perhaps changed since; it is not changed here.
            statistics: that it was normalised with. A channel of scale 0 comes back constant.
            dtype: of the raw image.

        Returns:
            A new array of the same shape and of ``dtype``.
        """
        from cellseg.intensity import restored

        return restored(block, statistics.shift, statistics.scale, dtype)

    def _measure(self, images: Sequence[LazyArray], names: Sequence[str]) -> Statistics:
        from cellseg.intensity import measure

        count = images[0].shape[0]
        if self.method == "none":
            return Statistics(shift=(0.0,) * count, scale=(1.0,) * count)
        inverted = self._inverted(count, _name(images[0], names[0]))
        lows, highs = measure(
            images,
            [_name(image, name) for image, name in zip(images, names, strict=True)],
            method=self.method,
            percentiles=self.percentiles,
            together=self.channels == "together",
            non_zero=self.pixels == "non-zero",
        )
        shift, scale = [], []
        for low, high, dark in zip(lows, highs, inverted, strict=True):
            width = high - low
            factor = 1 / width if width > 0 else 0.0
            flipped_from = low if self.method == "z-score" else high
            shift.append(flipped_from if dark else low)
            scale.append(-factor if dark else factor)
        return Statistics(shift=tuple(shift), scale=tuple(scale))

    def _inverted(self, count: int, name: str) -> tuple[bool, ...]:
        if len(self.inverted) <= 1:
            return (self.inverted or (False,)) * count
        if len(self.inverted) != count:
            raise DataError(
                f"{name} has {count} channels, but the polarity was measured on "
                f"{len(self.inverted)}.",
                hint="Pick the channels of the training with --channels.",
            )
        return self.inverted


def normalised(sample: Sample, normaliser: Normaliser) -> Sample:
    """The sample with an image that slices to normalised float32; still nothing is read.

    The statistics of the image are measured when it is first sliced, and kept. For a part of an
    image (``cellseg.parts``) they are those of the whole, as in prediction; they take no labels.
    """
    whole = sample.image.whole if isinstance(sample.image, Crop) else None
    return replace(
        sample, image=NormalisedImage(sample.image, normaliser, sample.name, measured=whole)
    )


@dataclass(slots=True)
class NormalisedImage:
    """A lazy ``(c, z, y, x)`` image that comes normalised; picklable if its image is."""

    raw: LazyArray
    normaliser: Normaliser
    name: str = ""
    _statistics: Statistics | None = None
    measured: LazyArray | None = None
    """The image whose statistics count, where ``raw`` is a part of it; None: ``raw``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(c, z, y, x)``."""
        return self.raw.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always float32."""
        import numpy as np

        return np.dtype(np.float32)

    @property
    def statistics(self) -> Statistics:
        """Those of the whole image, measured when first asked for."""
        if self._statistics is None:
            image = self.raw if self.measured is None else self.measured
            self._statistics = self.normaliser.statistics(image, self.name)
        return self._statistics

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.float32]:
        """The block under ``key``, normalised.

        Raises:
            DataError: the file is damaged, or holds pixels that are NaN or infinite.
        """
        statistics = self.statistics.of(key[0])
        try:
            return self.normaliser.apply(self.raw[key], statistics)
        except DataError as error:
            if self.name and self.name not in str(error):
                raise DataError(f"{self.name}: {error}", hint=error.hint) from error
            raise


def _name(image: LazyArray, name: str) -> str:
    return name or str(getattr(image, "where", "The image"))
