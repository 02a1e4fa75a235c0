"""User-facing options: declared once, used by the CLI, config files, docs and Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cellseg.errors import ConfigError
from cellseg.locations import is_address, is_place, refuse_address, shown, takes_addresses
from cellseg.texts import did_you_mean
from cellseg.yaml_files import read_yaml

OptionsT = TypeVar("OptionsT", bound="Options")


class Options(BaseModel):
    """Base class for the options of a trainer, predictor, exporter or reader.

    Subclass it with plain fields. Each field becomes one ``--flag``; the string under a field
    becomes its help text; its constraints are checked everywhere. Options are flat (no nested
    models) and every field has a default. Shared groups are combined by inheritance.

        class TrainOptions(Options):
            panels: ClassVar = {"Optimiser": ("learning_rate",)}

            learning_rate: float = Field(1e-4, gt=0)
            \"\"\"Peak learning rate, reached after warm-up.\"\"\"
    """

    # Validators are built when first used: --help only reads the fields.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True
    )

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Headings of the help page, each with the fields under it."""

    @classmethod
    def panel_of(cls, field: str) -> str | None:
        """The heading that ``field`` stands under, or None for the command's default heading."""
        for base in cls.__mro__:
            for panel, fields in vars(base).get("panels", {}).items():
                if field in fields:
                    return str(panel)
        return None

    @classmethod
    def over(cls, stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
        """What the user gives, over what a model or a preset brings along.

        A class whose options depend on each other leaves those of ``stored`` out that are not meant
        for what was given.
        """
        return {**stored, **given}

    def refuse_idle(self, names: Iterable[str], why: str) -> None:
        """For validators: raise a ValueError that names the flags of those options that are not at
        their defaults, with which they do nothing."""
        fields = type(self).model_fields
        given = [flag(name) for name in names if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"{' and '.join(given)}: {why}")


class NoOptions(Options):
    """For plugins with nothing to configure."""


def flag(field: str) -> str:
    """The command-line spelling of an option: ``min_size`` is ``--min-size``."""
    return "--" + field.replace("_", "-")


def parse(model: type[OptionsT], values: Mapping[str, object], source: str = "") -> OptionsT:
    """Validate ``values`` as ``model``; errors name the flag, and the nearest name of a typo.

    Raises:
        ConfigError: an unknown option, or a value that is not allowed.
        UsageError: an address where only a path of this computer is allowed.
    """
    refuse_unknown(values, model.model_fields, source)
    for name, value in values.items():
        info = model.model_fields[name]
        if isinstance(value, str) and is_address(value) and is_place(info.annotation):
            if not takes_addresses(info.annotation, info.metadata):
                refuse_address(value, f"what {flag(name)} names")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(error, source)) from None


def unaliased(
    given: Mapping[str, object], aliases: Mapping[str, str], source: str = ""
) -> dict[str, object]:
    """``given`` with the option itself in place of each other name that it has.

    Args:
        given: options by name.
        aliases: other names, and the option that each is (``Spec.aliases``).
        source: what errors begin with, such as the config file.

    Raises:
        ConfigError: an option is given under two names.
    """
    renamed: dict[str, object] = {}
    used: dict[str, str] = {}
    for name, value in given.items():
        option = aliases.get(name, name)
        if option in renamed:
            raise given_twice(used[option], name, source)
        renamed[option], used[option] = value, name
    return renamed


def given_twice(one: str, other: str, source: str = "") -> ConfigError:
    """The error for two names of one option that are both given."""
    where = f"{source}: " if source else ""
    return ConfigError(
        f"{where}{one} and {other} are two names of one option.", hint="Give one of them."
    )


def refuse_unknown(given: Iterable[str], known: Iterable[str], source: str = "") -> None:
    """Raise a ConfigError for the first name in ``given`` that is not ``known``."""
    known = list(dict.fromkeys(known))
    for name in given:
        if name not in known:
            where = f"{source}: " if source else ""
            raise ConfigError(
                f"{where}unknown option {name!r}.",
                hint=did_you_mean(name, known, f"Known: {', '.join(known)}."),
            )


def read_config(path: Path) -> dict[str, object]:
    """The options in a YAML file: a flat mapping from option names to plain values.

    Raises:
        ConfigError: the file is missing, is not YAML (see ``read_yaml``), or is not a flat mapping.
    """
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: expected one 'option: value' a line.")
    return values


def _describe(error: ValidationError, source: str) -> str:
    lines = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        where = flag(str(item["loc"][0])) + ": " if item["loc"] else ""
        value = item["input"]
        value = shown(value) if isinstance(value, str) else value
        got = f" (got {value!r})" if item["loc"] else ""
        lines.append(f"{where}{message}{got}")
    return (f"{source}: " if source else "") + "; ".join(lines)
