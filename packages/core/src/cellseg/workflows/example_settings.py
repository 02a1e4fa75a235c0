"""The options that name examples, and who takes them. Light: the command line needs it for help."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from cellseg.errors import UnknownPluginError
from cellseg.options import Options, flag
from cellseg.plugins import Plugins
from cellseg.specs import TrainerSpec
from cellseg.splits import SplitOptions

UNSPLIT = ("epochs", "val", *SplitOptions.model_fields)
"""Settings of a training that do nothing where a model learns from examples."""


class ExampleOptions(Options):
    """What shows a backend that learns from a few examples what to look for."""

    panels: ClassVar = {"Examples": ("examples", "tag", "negative_tag")}

    examples: Path | None = None
    """A file that shows what to look for: GeoJSON, ROIs of ImageJ, a CSV table or a label image; or
    a folder with one for each image. For backends that learn from a few examples."""
    tag: tuple[str, ...] = ()
    """Class of the examples to look for; may be given several times. By default all that there
    are."""
    negative_tag: tuple[str, ...] = ()
    """Class of examples of what to leave alone; may be given several times. Examples that their
    file itself calls negative are left alone anyway."""

    @model_validator(mode="after")
    def _tags_need_examples(self) -> ExampleOptions:
        for name in ("tag", "negative_tag"):
            if getattr(self, name) and self.examples is None:
                raise ValueError(f"{flag(name)} does nothing without --examples")
        return self


def learner_of(plugins: Plugins, backend: str) -> TrainerSpec[Any] | None:
    """The trainer of a backend, if it learns from examples.

    Raises:
        PluginError: the backend cannot be imported.
    """
    try:
        spec = plugins.get(TrainerSpec, backend)
    except UnknownPluginError:
        return None
    return spec if spec.examples else None
