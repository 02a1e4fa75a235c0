"""Other names of options, that users of other tools know: what they may be, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cellseg.errors import PluginError
from cellseg.options import Options, given_twice, parse
from cellseg.plugins import Plugins
from cellseg.specs import DatasetSpec, ExporterSpec, PredictorSpec, Spec, TrainerSpec
from cellseg.workflows.train_settings import TrainSettings


def check_aliases(plugins: Plugins, spec: Spec[Any]) -> None:
    """See whether each other name in ``spec.aliases`` is of an option that exists.

    Args:
        plugins: where to find the readers, all of which are imported.
        spec: a card of any kind.

    Raises:
        PluginError: an alias is no name, is an option itself, or is of an option that neither
            core, nor a reader, nor the plugin has.
    """
    known = {name for model in _together(plugins, spec) for name in model.model_fields}
    whose = f"The {spec.noun} {spec.name!r}"
    for alias, option in spec.aliases.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", alias):
            raise PluginError(f"{whose} has the alias {alias!r}; use a-z, 0-9 and underscores.")
        if alias in known:
            raise PluginError(f"{whose} has the alias {alias!r}, which is an option itself.")
        if option not in known:
            raise PluginError(
                f"{whose} calls {option!r} also {alias!r}, but neither cellseg, nor a reader, nor "
                f"the {spec.noun} has such an option."
            )


def _together(plugins: Plugins, spec: Spec[Any]) -> Iterator[type[Options]]:
    """The option classes that may stand on one command line with those of ``spec``."""
    yield spec.options
    if isinstance(spec, TrainerSpec):
        yield TrainSettings
    if isinstance(spec, PredictorSpec):
        from cellseg.workflows.predict_settings import PredictSettings

        yield PredictSettings
    if not isinstance(spec, DatasetSpec | ExporterSpec):
        yield from (reader.options for reader in plugins.all(DatasetSpec).values())


def sorted_out(
    spec: TrainerSpec[Any],
    settings: TrainSettings,
    reader_options: Mapping[str, object],
    options: Mapping[str, object],
) -> tuple[TrainSettings, dict[str, object], dict[str, object]]:
    """What was given, with the aliases among ``options`` put where their option belongs.

    Args:
        spec: the trainer, which has the aliases.
        settings: core's options.
        reader_options: options of the reader, by name.
        options: options of the trainer by name, and any others by an alias.

    Returns:
        The settings, the options of the reader and those of the trainer, all by their own names.

    Raises:
        ConfigError: an option is given under two names, or a value for core is not allowed.
    """
    core: dict[str, object] = settings.model_dump(exclude_unset=True)
    read: dict[str, object] = dict(reader_options)
    own: dict[str, object] = {}
    for name, value in options.items():
        option, place = spec.aliases.get(name, name), own
        if option != name and option not in spec.options.model_fields:
            place = core if option in TrainSettings.model_fields else read
        if option in place:
            other = next((n for n in options if spec.aliases.get(n, n) == option), option)
            raise given_twice(option if other == name else other, name)
        place[option] = value
    return parse(TrainSettings, core), read, own
