"""The settings of ``cellseg calibrate``. Light: the command line builds its help from them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from cellseg.options import Options


class CalibrateSettings(Options):
    """What ``cellseg calibrate`` can be told, apart from the backend's and the reader's options."""

    panels: ClassVar = {"Running": ("device", "dry_run")}

    backend: str | None = None
    """Backend to calibrate, where no model is given: its own published weights. Then --output says
    where to."""
    reader: str = "auto"
    """How to read the images; 'auto' looks at the files."""
    polarity: Literal["as-is", "bright", "dark"] | None = None
    """Whether objects are brighter or darker than what surrounds them: dark inverts the image,
    bright and as-is leave it alone. Only for published weights; a trained model has its own."""
    output: Path | None = None
    """A new YAML file for the options that are found, for cellseg predict --config. Without it,
    they become the defaults of the model itself."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    dry_run: bool = False
    """Only print what is found; write nothing."""
