"""Presets: named sets of options that a backend offers for its trainings."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from cellseg.errors import ConfigError, PluginError
from cellseg.options import Options, parse, unaliased
from cellseg.plugins import Plugins
from cellseg.readers import AUTO
from cellseg.readers.options import ReaderOptions
from cellseg.specs import DatasetSpec, TrainerSpec
from cellseg.splits import SplitOptions
from cellseg.workflows.train_settings import TrainSettings

CHOICES = ("reader", "split", "splits", "val")
"""Options that say how to read and what to validate on: a choice of the user takes the place of the
preset's, with all that goes with it."""


def preset_options(
    plugins: Plugins,
    spec: TrainerSpec[Any],
    name: str,
    chosen: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The options in a preset: of core, of a reader and of the trainer, by name.

    Args:
        plugins: where to find the reader.
        spec: the trainer whose preset it is.
        name: of the preset.
        chosen: what the user gave of ``CHOICES``. With another reader, what only the preset's
            reader knows is left out; with another way to validate, all that the preset says of
            splits.

    Raises:
        ConfigError: the trainer has no such preset.
        PluginError: the preset sets an option that nobody has.
    """
    if name not in spec.presets:
        if not spec.presets:
            raise ConfigError(
                f"--preset {name}: the backend {spec.name!r} has no presets.",
                hint=f"Leave it out. Its options: cellseg train --backend {spec.name} --help",
            )
        close = get_close_matches(name, spec.presets, n=1)
        meant = f"Did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"--preset {name}: the backend {spec.name!r} has no preset of that name.",
            hint=f"{meant}It has: {', '.join(spec.presets)}.",
        )
    values = dict(spec.presets[name])
    own = str(values.get("reader", AUTO))
    always = {*TrainSettings.model_fields, *spec.options.model_fields}
    for option in values:
        if option not in always | set(options_of_reader(plugins, own).model_fields):
            raise PluginError(
                f"The preset {name!r} of the backend {spec.name!r} sets {option!r}, which is no "
                f"option of cellseg train, of the reader {own!r} or of the backend."
            )
    given = {option: v for option, v in (chosen or {}).items() if v is not None}
    reader = str(given.get("reader", own))
    if reader != own:
        usable = always | set(options_of_reader(plugins, reader).model_fields)
        values = {option: v for option, v in values.items() if option in usable - {"reader"}}
    split = values.get("split", SplitOptions.model_fields["split"].default)
    if given.get("split", split) != split or given.keys() & {"splits", "val"}:
        of_splits = {*SplitOptions.model_fields, "val"}
        values = {option: v for option, v in values.items() if option not in of_splits}
    return values


def with_preset(plugins: Plugins, backend: str, name: str, **changes: object) -> dict[str, Any]:
    """What ``cellseg.workflows.train.train`` takes by keyword, for a preset with some changes.

        train(plugins, "vista3d", data, out, **with_preset(plugins, "vista3d", "snemi3d", epochs=9))

    Args:
        plugins: where to find the backend and the reader.
        backend: name of a trainer.
        name: one of its presets.
        changes: options of core, of the reader and of the trainer, by their names or by those that
            the trainer has for them; they win over the preset.

    Raises:
        ConfigError: there is no such preset, or an option has a value that is not allowed or is
            given under two names.
        PluginError: the preset sets an option that nobody has.
    """
    spec = plugins.get(TrainerSpec, backend)
    wanted = unaliased(changes, spec.aliases)
    chosen = {option: wanted[option] for option in CHOICES if option in wanted}
    values = spec.options.over(preset_options(plugins, spec, name, chosen), wanted)
    core, own = TrainSettings.model_fields, spec.options.model_fields
    return {
        "settings": parse(TrainSettings, {n: v for n, v in values.items() if n in core}),
        "options": {n: v for n, v in values.items() if n in own},
        "reader_options": {n: v for n, v in values.items() if n not in core and n not in own},
    }


def options_of_reader(plugins: Plugins, reader: str) -> type[Options]:
    """The options of a reader; with ``auto``, those that all readers have."""
    return ReaderOptions if reader == AUTO else plugins.get(DatasetSpec, reader).options
