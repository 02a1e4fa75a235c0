"""Options of normalisation, patches and augmentation; light, as the command line shows them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cellseg.data import ZYX
from cellseg.options import Options, flag

Method = Literal["percentile", "min-max", "z-score", "none"]


class NormaliseOptions(Options):
    """How raw pixels become the float32 numbers that a network sees, in training and prediction."""

    panels: ClassVar = {
        "Normalisation": (
            "normalise",
            "percentile_low",
            "percentile_high",
            "normalise_channels",
            "normalise_pixels",
            "normalise_scope",
            "polarity",
            "stain_transform",
            "stain_eosin",
            "stain_dab",
            "clahe",
            "clahe_kernel",
            "clahe_clip",
            "gamma",
        )
    }

    normalise: Method = "percentile"
    """percentile maps two percentiles to 0 and 1, min-max the darkest and brightest pixel, z-score
    the mean to 0 and the standard deviation to 1; values beyond are kept, not clipped. none keeps
    the numbers as they are."""
    percentile_low: float = Field(1.0, ge=0, lt=100)
    """Percentile that becomes 0, for --normalise percentile."""
    percentile_high: float = Field(99.8, gt=0, le=100)
    """Percentile that becomes 1, for --normalise percentile."""
    normalise_channels: Literal["each", "together"] = "each"
    """Normalise each channel by itself, or all by the same numbers, which keeps their ratios."""
    normalise_pixels: Literal["all", "non-zero"] = "all"
    """Pixels that the statistics come from: non-zero leaves the empty rim of a mosaic out."""
    normalise_scope: Literal["image", "dataset"] = "image"
    """Statistics of each image by itself, or of all training images together; the latter are
    stored in the model and used for prediction too."""
    polarity: Literal["as-is", "bright", "dark", "measure"] = "as-is"
    """Whether objects are brighter than what surrounds them: dark inverts the image, so that they
    become bright; measure finds out for each channel from the training labels; bright and as-is
    leave the image alone. The answer is stored in the model and used for prediction too."""
    stain_transform: Literal["none", "hed"] = "none"
    """hed takes red, green and blue of stained tissue apart into stains, before all else:
    haematoxylin becomes the second channel, --stain-eosin and --stain-dab what the third holds,
    and the first is 0. Nuclei become bright."""
    stain_eosin: float = Field(0.0, ge=0)
    """How much eosin the third channel holds, with --stain-transform hed."""
    stain_dab: float = Field(0.0, ge=0)
    """How much DAB (diaminobenzidine, brown) it holds. With neither it is 0, and there is nothing
    but the nuclei. Of both, only the ratio counts where --normalise-channels is each; with
    together they count as they are."""
    clahe: bool = False
    """Equalise the histograms of the surroundings of each pixel, with limited contrast, in each
    channel and plane by itself, once 0 and 1 are where --normalise puts them; values beyond are
    clipped."""
    clahe_kernel: int = Field(128, ge=8)
    """Side in pixels of the cells that histograms are made of, with --clahe; it is fitted to the
    image so that all cells are of one size."""
    clahe_clip: float = Field(0.01, gt=1 / 256, le=1)
    """Largest share of a cell's pixels in one of the 256 bins of its histogram, with --clahe: the
    higher, the more contrast. 1 sets no limit; 1/256 would change nothing."""
    gamma: float = Field(1.0, gt=0, le=100)
    """Raise the normalised values, clipped to 0 to 1, to this power, after all else: above 1
    darkens what is dim, below 1 brightens it."""

    @model_validator(mode="after")
    def _fits_together(self) -> NormaliseOptions:
        if self.percentile_low >= self.percentile_high:
            raise ValueError(
                f"--percentile-low {self.percentile_low:g} must be below --percentile-high "
                f"{self.percentile_high:g}"
            )
        fields = NormaliseOptions.model_fields
        changed = {name for name in fields if getattr(self, name) != fields[name].default}
        if self.normalise != "percentile" and changed & {"percentile_low", "percentile_high"}:
            raise ValueError(
                "--percentile-low and --percentile-high go with --normalise percentile, not "
                f"{self.normalise}"
            )
        if self.normalise == "none":
            for name in ("normalise_channels", "normalise_pixels", "normalise_scope"):
                if name in changed:
                    raise ValueError(f"--{name.replace('_', '-')} does nothing with none")
            if self.polarity in ("dark", "measure"):
                raise ValueError(
                    f"--polarity {self.polarity} needs a --normalise other than none: an image is "
                    "inverted as it is normalised"
                )
        if self.stain_transform == "none":
            self.refuse_idle(("stain_eosin", "stain_dab"), "only with --stain-transform hed")
        if not self.clahe:
            self.refuse_idle(("clahe_kernel", "clahe_clip"), "only with --clahe")
        if self.normalise in ("z-score", "none"):
            self.refuse_idle(
                ("clahe", "gamma"),
                f"works on values from 0 to 1, which --normalise {self.normalise} does not give; "
                "percentile and min-max do",
            )
        return self


class PatchOptions(Options):
    """Which pieces of the training images a network sees."""

    panels: ClassVar = {
        "Patches": (
            "patch_size",
            "patch_depth",
            "patches_per_image",
            "min_instances",
            "min_instance_size",
            "balance_classes",
            "cache",
            "cache_rate",
        )
    }

    patch_size: int = Field(256, ge=16, le=16384)
    """Height and width of a training patch in pixels; smaller images are padded."""
    patch_depth: int = Field(1, ge=1, le=16384)
    """Planes of a training patch; 1 trains on single planes."""
    patches_per_image: int = Field(8, ge=1)
    """Patches of an epoch, for each training image."""
    min_instances: int = Field(1, ge=0)
    """Objects that a training patch holds at least; images without such a place are left out. 0
    takes patches anywhere."""
    min_instance_size: int = Field(25, ge=1)
    """Pixels that an object must have inside the patch to count for --min-instances."""
    balance_classes: bool = True
    """Draw patches around objects of each class of an image equally often, so that rare classes
    are seen, rather than around each object equally often. Does nothing where there is one class,
    or with --min-instances 0."""
    cache: int = Field(512, ge=0)
    """Memory in MiB, for each loader process, that keeps decoded pieces of compressed files; 0
    decodes them anew for each patch."""
    cache_rate: float | None = Field(None, ge=0, le=1)
    """Share of the training images, rounded up, that are kept decoded in memory, however large they
    are: the first ones. If not given, --cache decides."""

    @model_validator(mode="after")
    def _one_way_to_cache(self) -> PatchOptions:
        if self.cache_rate is not None and self.cache != type(self).model_fields["cache"].default:
            raise ValueError("--cache and --cache-rate exclude each other")
        return self

    @property
    def patch_shape(self) -> ZYX:
        """Of a training patch, ``(z, y, x)`` in voxels."""
        return self.patch_depth, self.patch_size, self.patch_size


class AugmentOptions(Options):
    """Random changes of the training patches. Each has a probability; 0 turns it off."""

    panels: ClassVar = {
        "Augmentation": (
            "flip_probability",
            "rotate90_probability",
            "swap_depth_probability",
            "affine_probability",
            "affine_rotation",
            "affine_scale",
            "affine_shear",
            "elastic_probability",
            "elastic_strength",
            "elastic_spacing",
            "blur_probability",
            "blur_sigma",
            "noise_probability",
            "noise_sigma",
            "gain_noise_probability",
            "gain_noise_range",
            "brightness_probability",
            "brightness_range",
            "contrast_probability",
            "contrast_range",
            "gamma_probability",
            "gamma_range",
            "augment_slices",
        )
    }

    flip_probability: float = Field(0.5, ge=0, le=1)
    """Mirror a patch, drawn for each axis; the depth counts, if there is one."""
    rotate90_probability: float = Field(0.5, ge=0, le=1)
    """Turn a patch by 90, 180 or 270 degrees in the plane (180 where it is not square)."""
    swap_depth_probability: float = Field(0.0, ge=0, le=1)
    """Exchange the depth of a patch with its height or width. Only for volumes whose voxels are
    cubes and that look alike from all sides, with patches as deep as wide; then 0.5 suits."""
    affine_probability: float = Field(0.3, ge=0, le=1)
    """Rotate, scale and shear a patch in the plane; what comes from outside it is background."""
    affine_rotation: float = Field(15.0, ge=0, le=180)
    """Largest rotation in degrees, either way."""
    affine_scale: float = Field(1.25, ge=1, le=4)
    """Largest magnification, and its inverse the smallest."""
    affine_shear: float = Field(5.0, ge=0, le=45)
    """Largest shear in degrees, either way."""
    elastic_probability: float = Field(0.2, ge=0, le=1)
    """Deform a patch smoothly in the plane."""
    elastic_strength: float = Field(3.0, ge=0)
    """Standard deviation of the deformation in pixels, at most a fourth of its spacing."""
    elastic_spacing: float = Field(48.0, ge=4)
    """Distance in pixels over which the deformation changes."""
    blur_probability: float = Field(0.1, ge=0, le=1)
    """Blur a patch in the plane, as if it were out of focus."""
    blur_sigma: float = Field(1.5, gt=0, le=50)
    """Largest standard deviation of the blur in pixels."""
    noise_probability: float = Field(0.2, ge=0, le=1)
    """Add Gaussian noise."""
    noise_sigma: float = Field(0.3, ge=0)
    """Largest standard deviation of the noise, in standard deviations of the patch."""
    gain_noise_probability: float = Field(0.0, ge=0, le=1)
    """Multiply what each pixel has above the darkest of its channel by a random factor of its
    own."""
    gain_noise_range: float = Field(0.05, gt=0, lt=1)
    """Largest difference of that factor from 1, either way."""
    brightness_probability: float = Field(0.3, ge=0, le=1)
    """Make each channel of a patch brighter or darker."""
    brightness_range: float = Field(0.3, ge=0)
    """Largest shift of the brightness either way, in standard deviations of the patch."""
    contrast_probability: float = Field(0.3, ge=0, le=1)
    """Stretch or squeeze each channel of a patch about its mean."""
    contrast_range: float = Field(1.5, ge=1)
    """Largest factor of the contrast, and its inverse the smallest."""
    gamma_probability: float = Field(0.2, ge=0, le=1)
    """Bend the grey values of each channel of a patch between its minimum and maximum."""
    gamma_range: float = Field(1.5, ge=1)
    """Largest exponent, and its inverse the smallest."""
    augment_slices: Literal["same", "each"] = "same"
    """Planes of a stack: the same change for all, so that objects stay whole through the depth; or
    one of its own for each, for stacks of unrelated planes. Noise always differs."""

    @model_validator(mode="after")
    def _does_not_fold(self) -> AugmentOptions:
        if self.elastic_strength > self.elastic_spacing / 4:
            raise ValueError(
                f"--elastic-strength {self.elastic_strength:g} tears objects apart with "
                f"--elastic-spacing {self.elastic_spacing:g}: at most a fourth of it"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> AugmentOptions:
        if self.swap_depth_probability and self.augment_slices == "each":
            raise ValueError(
                "--swap-depth-probability and --augment-slices each exclude each other: single "
                "planes have no depth"
            )
        fields = type(self).model_fields
        for chance in (name for name in fields if name in AugmentOptions.model_fields):
            change, _, rest = chance.rpartition("_")
            if rest != "probability" or getattr(self, chance):
                continue
            for name in AugmentOptions.model_fields:
                amount = name.startswith(f"{change}_") and name != chance
                if amount and getattr(self, name) != fields[name].default:
                    raise ValueError(f"{flag(name)} does nothing with {flag(chance)} 0")
        return self
