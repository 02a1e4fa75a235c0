"""What training can refuse before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from cellseg import ConfigError, TrainJob
from cellseg.normalise import NormalisedImage
from cellseg.torch.checkpoints import Checkpoints
from cellseg_microsam.options import MicrosamOptions

_ENDINGS = (".pt", ".pth")


def check_images(job: TrainJob[MicrosamOptions]) -> None:
    """Refuse images that Segment Anything cannot take.

    Raises:
        ConfigError: they have other than 1 or 3 channels, or are normalised to other than 0 to 1.
    """
    image = job.train[0].image
    channels = image.shape[0]
    if channels not in (1, 3):
        raise ConfigError(
            f"The images have {channels} channels, but Segment Anything takes 1 or 3.",
            hint="Pick them: --channels 0, or --channels 0,1,2.",
        )
    if not isinstance(image, NormalisedImage):
        return
    method = image.normaliser.method
    if method == "none":
        plane = image[:, :1, :, :]
        if -0.01 <= plane.min() and plane.max() <= 1.01:
            return
    if method in ("z-score", "none"):
        raise ConfigError(
            f"--normalise {method}: Segment Anything takes pixels from 0 to 1; what is beyond would"
            " be cut off.",
            hint="Use --normalise percentile, or min-max.",
        )


def export_target(job: TrainJob[MicrosamOptions]) -> Path | None:
    """The file to export to when training is done; None if none is asked for.

    Raises:
        ConfigError: it exists already, or its folder cannot be written to.
    """
    path, name = job.options.export_path, job.options.checkpoint_name
    if path is None:
        return None
    if path.suffix not in _ENDINGS:
        path = path / f"{name or job.checkpoint.parent.name}.pt"
    elif name is not None:
        raise ConfigError(
            f"--checkpoint-name {name} names the file in --export-path, but {path} is a file."
        )
    if path.exists() and Checkpoints.last(job.checkpoint) is None:
        raise ConfigError(
            f"--export-path: {path} exists already.", hint="Remove it, or choose another."
        )
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--export-path: {folder} cannot be written to.")
    return path
