"""A config file for one backend, with every option, what it does, and its default."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cellseg.errors import DataError
from cellseg.files import write_atomic
from cellseg.options import Options
from cellseg.plugins import Plugins
from cellseg.readers import AUTO
from cellseg.specs import TrainerSpec
from cellseg.workflows.example_settings import UNSPLIT
from cellseg.workflows.presets import options_of_reader, preset_options
from cellseg.workflows.train_settings import TrainSettings

_WIDTH = 88


def config_text(plugins: Plugins, backend: str, preset: str | None = None) -> str:
    """The text of a config file for ``cellseg train --config``: flat YAML, all defaults.

    Args:
        plugins: where to find the backend.
        backend: name of a trainer.
        preset: a preset of it, whose values stand in for the defaults.

    Raises:
        UnknownPluginError: there is no such trainer.
        PluginError: it is broken.
        ConfigError: it has no such preset.
    """
    spec = plugins.get(TrainerSpec, backend)
    given = preset_options(plugins, spec, preset) if preset is not None else {}
    each = "Each has its default here" if preset is None else f"The preset {preset}, and defaults"
    lines = [
        f"# Options of: cellseg train DATA -o RUN --config THIS_FILE  ({spec.summary})",
        f"# {each}; change what you like, and delete the rest if you like.",
        "# Flags win over this file. The options of a reader may be added, under their names.",
        "",
        f"backend: {backend}",
    ]
    aliases = spec.aliases
    idle = UNSPLIT if spec.examples else ()
    lines += _section("Training", TrainSettings, given, aliases, idle)
    if given.keys() - TrainSettings.model_fields.keys() - spec.options.model_fields.keys():
        reader = str(given.get("reader", AUTO))
        lines += _section(f"Reader {reader}", options_of_reader(plugins, reader), given, aliases)
    lines += _section(f"Backend {backend}", spec.options, given, aliases)
    return "\n".join(lines) + "\n"


def init(
    plugins: Plugins,
    backend: str,
    target: Path,
    *,
    preset: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write :func:`config_text` to the file ``target``.

    Raises:
        DataError: the file is there already.
        StorageError: it cannot be written.
        PluginError: there is no such trainer, or it is broken.
        ConfigError: it has no such preset.
    """
    text = config_text(plugins, backend, preset)
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists.", hint="Add --overwrite, or choose another --output.")
    write_atomic(target, text)
    return target


def entry(name: str, value: object) -> str:
    """An option and its value, as a line of a config file."""
    return f"{_flow(name)}: {_flow(value)}"


def _section(
    default_panel: str,
    model: type[Options],
    given: Mapping[str, object],
    aliases: Mapping[str, str],
    without: Collection[str] = (),
) -> list[str]:
    """The options of one class, under its headings."""
    panels: dict[str, list[str]] = {}
    for name in (name for name in model.model_fields if name not in without):
        panels.setdefault(model.panel_of(name) or default_panel, []).append(name)
    values = {**model().model_dump(mode="json"), **given}
    lines: list[str] = []
    for panel, names in panels.items():
        lines += ["", f"# --- {panel} ---"]
        for name in names:
            also = [alias for alias, option in aliases.items() if option == name]
            lines += ["", *_help(model, name, also), entry(name, values[name])]
    return lines


def _help(model: type[Options], name: str, also: Sequence[str]) -> Sequence[str]:
    text = " ".join((model.model_fields[name].description or "").replace("``", "").split())
    text += f" (also {', '.join(also)})" if also else ""
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _flow(value: object) -> str:
    """``value`` as YAML on one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return str(text).removesuffix("...\n").rstrip()
