"""What training can refuse before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from cellseg import ConfigError, TrainJob
from cellseg.torch.checkpoints import Checkpoints
from cellseg_microsam.options import MicrosamOptions

_ENDINGS = (".pt", ".pth")


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
