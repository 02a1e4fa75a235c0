"""What the configurations of experiments share: attributes that can be set, and are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cellseg.errors import ConfigError
from cellseg.options import refuse_unknown


class Configuration(BaseModel):
    """Named values, checked when they are given and whenever one is set.

    Raises:
        ConfigError: an unknown name, with the nearest one; or a value that is not allowed.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", validate_assignment=True, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any) -> None:
        refuse_unknown(values, type(self).model_fields, type(self).__name__)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _described(error, type(self).__name__) from None

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_unknown((name,), type(self).model_fields, type(self).__name__)
        before = dict(self.__dict__), set(self.model_fields_set)
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            object.__setattr__(self, "__dict__", before[0])
            object.__setattr__(self, "__pydantic_fields_set__", before[1])
            raise _described(error, type(self).__name__) from None

    def not_default(self) -> set[str]:
        """The names of the values that are not at their defaults."""
        fields = type(self).model_fields
        return {
            name
            for name, field in fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
        }

    def changed(self, **values: Any) -> Any:
        """A copy with other values; what a configuration within has is changed by a mapping.

        Raises:
            ConfigError: as when one is made.
        """
        merged: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        for name, value in values.items():
            old = getattr(self, name, None)
            if isinstance(old, Configuration) and isinstance(value, Mapping):
                value = old.changed(**value)
            merged[name] = value
        return type(self)(**merged)


def _described(error: ValidationError, where: str) -> ConfigError:
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        got = f" (got {item['input']!r})" if place else ""
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {message}{got}" if place else message)
    return ConfigError(f"{where}: {'; '.join(lines)}")
