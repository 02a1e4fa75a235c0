"""One normalisation for training and prediction: measured here, stored in the model's bundle.

This module is light; the numbers are measured in ``cellseg.intensity``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from cellseg.data import ZYX, Dataset, LazyArray, Sample
from cellseg.errors import ConfigError, DataError
from cellseg.parts import Crop
from cellseg.sampling_options import Method, NormaliseOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellseg.equalise import Equaliser


class Statistics(BaseModel):
    """What normalising one image takes: ``(value - shift) * scale`` for each channel.

    With a stain transform, channels and values are those of the stains. A constant channel has
    scale 0: it becomes 0. An inverted channel has a negative scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shift: tuple[float, ...]
    """For each channel, in units of the raw pixels."""
    scale: tuple[float, ...]
    """For each channel, per unit of the raw pixels."""

    def of(self, channels: slice) -> Statistics:
        """The statistics of some of the channels."""
        return Statistics(shift=self.shift[channels], scale=self.scale[channels])


class Normaliser(BaseModel):
    """How images become float32 for a model. It is stored with the model, as JSON.

    The steps are, in this order: stains, method with inversion, CLAHE, gamma. All but the method
    are left out unless they are asked for.

    **Stains.** With ``hed``, red, green and blue become 0, haematoxylin, and a mixture of eosin and
    DAB (``cellseg.stains``). Whatever is measured is measured on these.

    **Method.** Values become ``(value - shift) * scale``:

    * ``percentile``: the two percentiles become 0 and 1 (the default, 1 and 99.8, is that of
      most published cell models). Exact for every type of pixel, and linear in between ranks as
      ``numpy.percentile``.
    * ``min-max``: the darkest and brightest pixel become 0 and 1.
    * ``z-score``: the mean becomes 0 and the (population) standard deviation 1.
    * ``none``: the raw numbers as float32.

    Nothing is clipped. Inverting maps percentile and min-max results ``v`` to ``1 - v`` and
    z-scores to ``-v``. A constant image becomes 0, also when inverted.

    **CLAHE.** Percentile and min-max results are clipped to 0 to 1, and the histograms of the
    surroundings of each pixel equalised (``cellseg.equalise``), each channel and plane by itself.
    The cells are those of the whole image, whatever block of it is asked for.

    **Gamma.** Unless it is 1, percentile and min-max results are clipped to 0 to 1 and raised to
    it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Method = "percentile"
    percentiles: tuple[float, float] = (1.0, 99.8)
    channels: Literal["each", "together"] = "each"
    pixels: Literal["all", "non-zero"] = "all"
    inverted: tuple[bool, ...] = ()
    """For each channel whether dark becomes bright; one value is for all; empty inverts none."""
    dataset: Statistics | None = None
    """Statistics of the training images, for each image to come; None: each image has its own."""
    stain_transform: Literal["none", "hed"] = "none"
    stain_eosin: float = 0.0
    stain_dab: float = 0.0
    clahe: bool = False
    clahe_kernel: int = 128
    clahe_clip: float = 0.01
    gamma: float = 1.0

    @property
    def special(self) -> tuple[str, ...]:
        """The steps besides the method and the inversion, as flags of the command line."""
        mixed = "".join(
            f" --stain-{name} {share:g}"
            for name, share in (("eosin", self.stain_eosin), ("dab", self.stain_dab))
            if share
        )
        steps = {
            f"--stain-transform hed{mixed}": self.stain_transform == "hed",
            f"--clahe --clahe-kernel {self.clahe_kernel} --clahe-clip {self.clahe_clip:g}": (
                self.clahe
            ),
            f"--gamma {self.gamma:g}": self.gamma != 1,
        }
        return tuple(step for step, taken in steps.items() if taken)

    @classmethod
    def fit(cls, options: NormaliseOptions, samples: Dataset) -> Normaliser:
        """Measure on the training images what the options leave to them.

        Each image is read at most as often as its statistics take, in blocks; nothing is read
        where the options say it all (scope ``image``, polarity not ``measure``).

        Args:
            options: how to normalise.
            samples: training images; with polarity ``measure`` they need labels.

        Raises:
            DataError: pixels are not finite, numbers of channels differ, no object tells the
                polarity, or images are not in red, green and blue that are to be taken apart into
                stains.
        """
        normaliser = cls(
            method=options.normalise,
            percentiles=(options.percentile_low, options.percentile_high),
            channels=options.normalise_channels,
            pixels=options.normalise_pixels,
            stain_transform=options.stain_transform,
            stain_eosin=options.stain_eosin,
            stain_dab=options.stain_dab,
            clahe=options.clahe,
            clahe_kernel=options.clahe_kernel,
            clahe_clip=options.clahe_clip,
            gamma=options.gamma,
        )
        seen = [replace(s, image=normaliser._seen(s.image, s.name)) for s in samples]
        if options.polarity == "dark":
            normaliser = normaliser.model_copy(update={"inverted": (True,)})
        elif options.polarity == "measure":
            from cellseg.polarity import measure_polarity

            normaliser = normaliser.model_copy(update={"inverted": measure_polarity(seen)})
        if options.normalise_scope == "image":
            return normaliser
        statistics = normaliser._measure([s.image for s in seen], [s.name for s in seen])
        return normaliser.model_copy(update={"dataset": statistics})

    def statistics(self, image: LazyArray, name: str = "") -> Statistics:
        """What ``apply`` needs for the blocks of one image, whatever else it needs.

        Args:
            image: ``(c, z, y, x)``, any integer or float type, read in blocks of at most 2^22
                voxels: once for 8 and 16 bits, twice for 32, four times for 64 (once where all
                fits in a block). Those of a data set are not measured again.
            name: what errors call the image.

        Raises:
            DataError: pixels are NaN or infinite, the channels are not those of the training, or
                what is to be taken apart into stains is not in red, green and blue.
        """
        image = self._seen(image, name)
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

    def equaliser(
        self, image: LazyArray, statistics: Statistics, name: str = ""
    ) -> Equaliser | None:
        """What ``apply`` needs besides for the blocks of one image; None without CLAHE.

        Args:
            image: ``(c, z, y, x)``, all of it, raw. Nothing is read yet; later the surroundings
                of each block are.
            statistics: of all its channels.
            name: what errors call the image.
        """
        if not self.clahe:
            return None
        from cellseg.equalise import Equaliser

        linear = self.model_copy(update={"clahe": False, "gamma": 1.0})
        known = NormalisedImage(image, linear, name, statistics)
        return Equaliser(known, self.clahe_kernel, self.clahe_clip)

    def apply(
        self,
        block: NDArray[Any],
        statistics: Statistics,
        equaliser: Equaliser | None = None,
        corner: ZYX = (0, 0, 0),
    ) -> NDArray[np.float32]:
        """Normalise any block of an image; every block of it with the same statistics.

        Args:
            block: ``(c, z, y, x)``, any integer or float type; it is not changed. With a stain
                transform or CLAHE it has all channels of the image.
            statistics: of the image, one value for each channel of the block.
            equaliser: of the image, where there is CLAHE.
            corner: where the block begins in the image that the equaliser is of, ``(z, y, x)``;
                without one it does not matter.

        Returns:
            A new float32 array of the same shape, finite.

        Raises:
            DataError: pixels are NaN or infinite, or are no colours.
            ValueError: there is CLAHE, but no equaliser.
        """
        import numpy as np

        from cellseg.intensity import rescaled

        block = np.asarray(block)
        if self.stain_transform == "hed":
            from cellseg.stains import separated

            block = separated(block, self.stain_eosin, self.stain_dab)
        out = rescaled(block, statistics.shift, statistics.scale)
        if self.clahe:
            if equaliser is None:
                raise ValueError("CLAHE needs the equaliser of the image: Normaliser.equaliser()")
            equaliser.apply(out, corner)
        if self.gamma != 1:
            np.clip(out, 0, 1, out=out)
            np.power(out, np.float32(self.gamma), out=out)
        return out

    def restore(
        self, block: NDArray[np.float32], statistics: Statistics, dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        """Undo ``apply``: rounded to whole numbers for integers, clipped to what ``dtype`` holds.

        Args:
            block: ``(c, z, y, x)``, normalised, and perhaps changed since; it is not changed here.
            statistics: that it was normalised with. A channel of scale 0 comes back constant.
            dtype: of the raw image.

        Returns:
            A new array of the same shape and of ``dtype``. With a gamma other than 1, what it
            clipped stays so.

        Raises:
            ConfigError: there is a stain transform or CLAHE, which cannot be undone.
        """
        import numpy as np

        from cellseg.intensity import restored

        for flag in ("--stain-transform", "--clahe"):
            if any(step.startswith(flag) for step in self.special):
                raise ConfigError(
                    f"{flag} cannot be undone: an image that was normalised with it has no way "
                    "back to the raw one.",
                    hint=f"Leave {flag} out here.",
                )
        if self.gamma != 1:
            block = np.power(np.clip(block, 0, 1), np.float32(1 / self.gamma))
        return restored(block, statistics.shift, statistics.scale, dtype)

    def _seen(self, image: LazyArray, name: str) -> LazyArray:
        """The image that is measured and rescaled: its stains, or itself."""
        if self.stain_transform == "none":
            return image
        from cellseg.stains import Stains, check_colours

        check_colours(image, _name(image, name))
        return Stains(image, self.stain_eosin, self.stain_dab, _name(image, name))

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
    image, whole, offset = sample.image, None, [0, 0, 0]
    if isinstance(image, Crop):
        whole, offset[image.axis] = image.whole, image.start
    z, y, x = offset
    seen = NormalisedImage(image, normaliser, sample.name, measured=whole, offset=(z, y, x))
    return replace(sample, image=seen)


@dataclass(slots=True)
class NormalisedImage:
    """A lazy ``(c, z, y, x)`` image that comes normalised; picklable if its image is."""

    raw: LazyArray
    normaliser: Normaliser
    name: str = ""
    _statistics: Statistics | None = None
    measured: LazyArray | None = None
    """The image whose statistics count, where ``raw`` is a part of it; None: ``raw``."""
    offset: ZYX = (0, 0, 0)
    """Where ``raw`` begins in ``measured``."""
    _equaliser: Equaliser | None = field(default=None, init=False, repr=False)

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
            self._statistics = self.normaliser.statistics(self._whole, self.name)
        return self._statistics

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.float32]:
        """The block under ``key``, normalised.

        Raises:
            DataError: the file is damaged, or holds pixels that are NaN or infinite.
        """
        try:
            return self._block(key)
        except DataError as error:
            if self.name and self.name not in str(error):
                raise DataError(f"{self.name}: {error}", hint=error.hint) from error
            raise

    def _block(self, key: tuple[slice, ...]) -> NDArray[np.float32]:
        normaliser, statistics = self.normaliser, self.statistics
        if normaliser.stain_transform == "none" and not normaliser.clahe:
            return normaliser.apply(self.raw[key], statistics.of(key[0]))
        if self._equaliser is None:
            self._equaliser = normaliser.equaliser(self._whole, statistics, self.name)
        starts = (part.indices(n)[0] for part, n in zip(key[1:], self.shape[1:], strict=True))
        z, y, x = (a + b for a, b in zip(starts, self.offset, strict=True))
        block = self.raw[(slice(0, self.shape[0]), *key[1:])]
        return normaliser.apply(block, statistics, self._equaliser, (z, y, x))[key[0]]

    @property
    def _whole(self) -> LazyArray:
        return self.raw if self.measured is None else self.measured


def _name(image: LazyArray, name: str) -> str:
    return name or str(getattr(image, "where", "The image"))
