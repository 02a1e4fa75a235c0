"""A config file for one backend, with every option, what it does, and its default."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from cellseg.errors import DataError
from cellseg.files import write_atomic
from cellseg.options import Options
from cellseg.plugins import Plugins
from cellseg.specs import TrainerSpec
from cellseg.workflows.train_settings import TrainSettings

_WIDTH = 88


def config_text(plugins: Plugins, backend: str) -> str:
    """The text of a config file for ``cellseg train --config``: flat YAML, all defaults.

    Args:
        plugins: where to find the backend.
        backend: name of a trainer.

    Raises:
        UnknownPluginError: there is no such trainer.
        PluginError: it is broken.
    """
    spec = plugins.get(TrainerSpec, backend)
    lines = [
        f"# Options of: cellseg train DATA -o RUN --config THIS_FILE  ({spec.summary})",
        "# Each has its default here; change what you like, and delete the rest if you like.",
        "# Flags win over this file. The options of a reader may be added, under their names.",
        "",
        f"backend: {backend}",
    ]
    lines += _section("Training", TrainSettings)
    lines += _section(f"Backend {backend}", spec.options)
    return "\n".join(lines) + "\n"


def init(plugins: Plugins, backend: str, target: Path, *, overwrite: bool = False) -> Path:
    """Write :func:`config_text` to the file ``target``.

    Raises:
        DataError: the file is there already.
        StorageError: it cannot be written.
        PluginError: there is no such trainer, or it is broken.
    """
    text = config_text(plugins, backend)
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists.", hint="Add --overwrite, or choose another --output.")
    write_atomic(target, text)
    return target


def _section(default_panel: str, model: type[Options]) -> list[str]:
    """The options of one class, under its headings."""
    panels: dict[str, list[str]] = {}
    for name in model.model_fields:
        panels.setdefault(model.panel_of(name) or default_panel, []).append(name)
    defaults = model().model_dump(mode="json")
    lines: list[str] = []
    for panel, names in panels.items():
        lines += ["", f"# --- {panel} ---"]
        for name in names:
            lines += ["", *_help(model, name), _entry(name, defaults[name])]
    return lines


def _help(model: type[Options], name: str) -> Sequence[str]:
    text = " ".join((model.model_fields[name].description or "").replace("``", "").split())
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _entry(name: str, value: object) -> str:
    return f"{_flow(name)}: {_flow(value)}"


def _flow(value: object) -> str:
    """``value`` as YAML on one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").rstrip()
