"""Which model a job uses, which images it takes, and how it cuts them into tiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from cellseg.bundle import Bundle
from cellseg.data import Dataset, Tiling
from cellseg.errors import DataError, UsageError
from cellseg.options import Options
from cellseg.plugins import Plugins
from cellseg.specs import DatasetSpec, PredictorSpec


class ModelSettings(Protocol):
    """The settings that name a model."""

    @property
    def model(self) -> Path | None:
        """A run or a model."""

    @property
    def backend(self) -> str | None:
        """Whose own weights to use where there is no model."""


class PolaritySettings(ModelSettings, Protocol):
    """The settings that say how images become a model's input."""

    @property
    def polarity(self) -> Literal["as-is", "bright", "dark"] | None:
        """Whether objects are bright or dark, where the model does not know."""


class TileSettings(Protocol):
    """The settings that change a model's own tiling; None leaves it as it is."""

    @property
    def tile_size(self) -> int | None:
        """Height and width of the core."""

    @property
    def tile_depth(self) -> int | None:
        """Depth of the core."""

    @property
    def halo(self) -> int | None:
        """Around it, in plane."""

    @property
    def halo_depth(self) -> int | None:
        """Around it, along z."""


def predictor_for(
    plugins: Plugins, settings: ModelSettings, bundle: Bundle | None
) -> PredictorSpec[Any]:
    """The predictor of a model, or else of the backend that is named.

    Raises:
        UsageError: neither is given, or they do not go together.
        UnknownPluginError: the backend has none.
    """
    if bundle is None:
        if settings.backend is None:
            raise UsageError(
                "Which model? Neither --model nor --backend is given.",
                hint="Give --model RUN after cellseg train, or --backend NAME for published "
                "weights; cellseg backends lists them.",
            )
        return plugins.get(PredictorSpec, settings.backend)
    if settings.backend not in (None, bundle.backend):
        raise UsageError(
            f"{settings.model} is a model of the backend {bundle.backend!r}, "
            f"not of {settings.backend!r}.",
            hint="Leave out --backend.",
        )
    return plugins.get(PredictorSpec, bundle.backend)


def check_images(samples: Dataset, images: Path, bundle: Bundle | None) -> None:
    """Raise a DataError unless there are images, none is empty, and the model takes them."""
    if not len(samples):
        raise DataError(f"There are no images in {images}.")
    for sample in samples:
        if min(sample.image.shape) < 1:
            raise DataError(f"{sample.name}: the image is empty, its shape {sample.image.shape}.")
        found = sample.image.shape[0]
        if bundle is not None and found != bundle.channels:
            names = f" ({', '.join(sample.channels)})" if sample.channels else ""
            raise DataError(
                f"{sample.name}: the image has {found} channel(s){names}, but the model was "
                f"trained with {bundle.channels}.",
                hint="Pick as many with --channels."
                if found > bundle.channels
                else f"It needs images with {bundle.channels} channels, or another model.",
            )


def as_trained(
    reading: Mapping[str, object], reader: DatasetSpec[Any], bundle: Bundle | None
) -> dict[str, object]:
    """Options of a reader, and the channels of the training where none are given."""
    if bundle and bundle.channel_selection and "channels" in reader.options.model_fields:
        return {"channels": bundle.channel_selection, **reading}
    return dict(reading)


def identity_of(
    images: Path,
    model: tuple[PredictorSpec[Any], Path | None, Bundle | None],
    reader: DatasetSpec[Any],
    options: Options,
    reading: Options,
) -> dict[str, object]:
    """What must be the same when a job is resumed: path, model, reader, and their options.

    Args:
        images: the path that was given.
        model: its predictor, its directory and its bundle.
        reader: of the images.
        options: of the predictor.
        reading: of the reader.
    """
    predictor, directory, bundle = model
    return {
        "images": str(images.resolve()),
        "backend": predictor.name,
        "model": str(directory.resolve()) if directory else None,
        "weights": bundle.weights if bundle else None,
        "reader": reader.name,
        **{f"option {k}": v for k, v in options.model_dump(mode="json").items()},
        **{f"reader option {k}": v for k, v in reading.model_dump(mode="json").items()},
    }


def is_volumetric(predictor: PredictorSpec[Any], bundle: Bundle | None) -> bool:
    """Whether the model sees volumes, and not planes one by one."""
    return "3d" in predictor.tasks and (bundle is None or bundle.volumetric)


def tiling_for(
    settings: TileSettings,
    bundle: Bundle | None,
    predictor: PredictorSpec[Any],
    volumetric: bool,
) -> Tiling:
    """The tiling of the user, or else of the model, or else of the predictor's card.

    Raises:
        UsageError: a depth is given for a model that sees single planes.
    """
    if not volumetric and (settings.tile_depth is not None or settings.halo_depth is not None):
        raise UsageError(
            "--tile-depth and --halo-depth are for models that segment volumes; this one "
            "segments plane by plane."
        )
    liked = bundle.tiling if bundle and bundle.tiling else predictor.tiling
    size, halo, depth, halo_depth = (
        settings.tile_size,
        settings.halo,
        settings.tile_depth,
        settings.halo_depth,
    )
    return Tiling(
        core=(
            liked.core[0] if depth is None else depth,
            liked.core[1] if size is None else size,
            liked.core[2] if size is None else size,
        ),
        halo=(
            liked.halo[0] if halo_depth is None else halo_depth,
            liked.halo[1] if halo is None else halo,
            liked.halo[2] if halo is None else halo,
        ),
    )
