"""Which config file, backend and reader a command line means, before Typer parses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from cellseg.errors import DataError, UsageError
from cellseg.locations import Location, is_remote, location
from cellseg.options import Options, read_config
from cellseg.plugins import Plugins
from cellseg.specs import DatasetSpec, TrainerSpec
from cellseg.workflows.train_settings import TrainSettings
from cellseg_cli.arguments import Arguments
from cellseg_cli.flags import Group, spelled, value_flags

_OWN_VALUES = (
    "-o",
    "--output",
    "--config",
    "--model",
    "--backend",
    "--preset",
    "--format",
    "--images",
)
_OWN_SWITCHES = ("--json", "--quiet", "--verbose", "--overwrite", "--offline", "--help")


def complete_trainer() -> list[str]:
    """Names for the shell to complete ``--backend`` with; a broken plugin is just left out."""
    return sorted(Plugins().all(TrainerSpec))


ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of 'option: value' lines; flags win over it."),
]
LabelledImages = Annotated[
    Location, typer.Argument(metavar="DATA", help="Images with labels.", show_default=False)
]
Mirror = Annotated[
    str,
    typer.Option(
        "--mirror",
        help="An address or a folder with files of the same names, to get them from; by default "
        "what CELLSEG_MIRROR says.",
        show_default=False,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Get and replace files that are not as expected.")
]
TrainerName = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="What to train. Its own options join this list: --backend NAME --help.",
        autocompletion=complete_trainer,
    ),
]


def preset_flag(trainer: TrainerSpec[Any] | None) -> Any:
    """The annotation of ``--preset``: its help names the presets of the trainer, if it has any."""
    names = list(trainer.presets) if trainer is not None else []
    text = "Start from a named set of options of the backend; flags and --config win over it."
    option = typer.Option(
        "--preset",
        metavar="NAME",
        help=text + (f" One of: {', '.join(names)}." if names else ""),
        hidden=trainer is not None and not names,
        autocompletion=lambda: names,
    )
    return Annotated[str | None, option]


@dataclass(frozen=True)
class Line:
    """A command line, and what it refers to."""

    arguments: Arguments

    @cached_property
    def plugins(self) -> Plugins:
        """The installed plugins, looked up when first needed."""
        return Plugins()

    @cached_property
    def file(self) -> Path | None:
        """The config file."""
        given = self.arguments.value("--config")
        return Path(given) if given else None

    @cached_property
    def configured(self) -> Mapping[str, object]:
        """What the config file says."""
        return read_config(self.file) if self.file else {}

    @cached_property
    def preset(self) -> Mapping[str, object]:
        """The options of the preset that ``--preset``, or else the config file, names.

        Raises:
            ConfigError: the trainer has no such preset.
        """
        name = self.chosen("preset")
        trainer = self.trainer() if name is not None else None
        if name is None or trainer is None:
            return {}
        from cellseg.workflows.presets import CHOICES, preset_options

        chosen = {option: self.chosen(option, trainer.aliases) for option in CHOICES}
        return preset_options(self.plugins, trainer, name, chosen)

    def chosen(self, name: str, aliases: Mapping[str, str] | None = None) -> str | None:
        """The value of a flag, or else of that key of the config file, by any of its names."""
        names = [name, *(alias for alias, option in (aliases or {}).items() if option == name)]
        value = self.arguments.value(*(flag for each in names for flag in spelled(each)))
        value = value or next((str(v) for n in names if (v := self.configured.get(n))), None)
        return value or None

    def trainer(self) -> TrainerSpec[Any] | None:
        """The trainer that ``--backend`` names; None only while the command is just shown.

        Raises:
            UsageError: neither the line nor the config file names one.
        """
        name = self.chosen("backend")
        if name is not None:
            return self.plugins.get(TrainerSpec, name)
        if self.arguments.only_shown:
            return None
        installed = sorted(self.plugins.all(TrainerSpec))
        if not installed:
            hint = "None is installed yet: uv pip install cellseg-vista"
        else:
            hint = f"Installed: {', '.join(installed)}. See: cellseg backends"
        raise UsageError("Missing --backend: what should be trained?", hint=hint)

    def existing(
        self,
        models: Iterable[type[Options]],
        aliases: Mapping[str, str] | None = None,
        *,
        anywhere: bool = False,
    ) -> Path | None:
        """The first positional argument that is there: the data, the images or the model; an
        address only where it may be ``anywhere``."""
        takes, switches = value_flags(models, aliases)
        words = self.arguments.positionals({*takes, *_OWN_VALUES}, {*switches, *_OWN_SWITCHES})
        paths = (location(word) if anywhere else Path(word) for word in words)
        return next((path for path in paths if is_remote(path) or path.exists()), None)

    def reader(
        self,
        models: Sequence[type[Options]],
        preset: Mapping[str, object] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> Group:
        """The options of the reader that the line names, or that reads the data it names.

        Without either, these are the options that all readers have. The reader of a ``preset``
        comes after one that the line names. ``aliases`` are other names of options of ``models``.
        """
        preset = preset or {}
        from cellseg.readers import reader_for
        from cellseg.readers.options import ReaderOptions

        name = self.chosen("reader", aliases) or str(preset.get("reader", "auto"))
        if name != "auto":
            return _of_reader(self.plugins.get(DatasetSpec, name), preset)
        path = self.existing(models, aliases, anywhere=True)
        if path is not None:
            try:
                return _of_reader(reader_for(self.plugins, path, name), preset)
            except DataError:
                if not self.arguments.only_shown:
                    raise
        return Group(ReaderOptions, "Reading", preset)

    def training(
        self,
        ahead: Sequence[Group] = (),
        preset: Mapping[str, object] | None = None,
        without: frozenset[str] = frozenset(),
    ) -> tuple[list[Group], Group]:
        """The options of a command that trains, and among them those of the reader.

        Args:
            ahead: the command's own.
            preset: what stands in for the defaults, if not what ``--preset`` names.
            without: settings of a training that do not become flags.
        """
        trainer, preset = self.trainer(), self.preset if preset is None else preset
        groups = [*ahead, Group(TrainSettings, "Training", preset, without=without)]
        aliases = trainer.aliases if trainer is not None else {}
        if trainer is not None:
            panel = f"Backend: {trainer.name}"
            groups.append(Group(trainer.options, panel, preset, aliases=aliases))
        reader = self.reader([group.model for group in groups], preset, aliases)
        groups.insert(len(ahead) + 1, reader)
        return groups, reader


def _of_reader(spec: DatasetSpec[Any], preset: Mapping[str, object]) -> Group:
    return Group(spec.options, f"Reading: {spec.name}", preset, aliases=spec.aliases)
