"""What a model directory says beside the weights. Light: torch is not imported."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cellseg.errors import WeightsError
from cellseg.files import write_atomic
from cellseg.limits import MOST_JSON, read_bytes

_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool}

DescriptionT = TypeVar("DescriptionT", bound="ModelDescription")


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What loading a model needs to know, and the weights do not say; fields are what JSON holds.

    A backend inherits it as a frozen dataclass with fields of its own.
    """

    BACKEND: ClassVar[str]
    """Whose models it describes; the file is called like it."""

    @classmethod
    def file(cls) -> str:
        """The name of the file in a model's directory."""
        return f"{cls.BACKEND}.json"

    def check(self, file: Path) -> None:
        """For subclasses: refuse what does not fit together; types are right already.

        Args:
            file: that it was read from, for messages.

        Raises:
            WeightsError, ValueError, TypeError, KeyError: it does not.
        """

    def save(self, directory: Path) -> None:
        """Write the file into the model's directory."""
        write_atomic(directory / self.file(), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls: type[DescriptionT], directory: Path) -> DescriptionT:
        """Read what ``save`` wrote.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        file = directory / cls.file()
        try:
            description = cls(**json.loads(read_bytes(file, MOST_JSON, WeightsError)))
            for each in fields(cls):
                kind = _KINDS.get(str(each.type))
                if kind is not None and not isinstance(getattr(description, each.name), kind):
                    raise WeightsError(f"{file}: {each.name} is no {each.type}.")
            description.check(file)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise WeightsError(
                f"{file} cannot be read: {error}",
                hint=f"Give the directory of a {cls.BACKEND} model of this version.",
            ) from error
        return description
