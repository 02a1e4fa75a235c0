"""What a model directory says beside the weights. Light: torch is not imported."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cellseg.errors import WeightsError
from cellseg.files import write_atomic
from cellseg.limits import MOST_JSON, read_bytes
from cellseg.specs import BaseWeights

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
    def find(cls, path: Path) -> tuple[Path, BaseWeights]:
        """The model directory in a run, or the path itself, and what a bundle says of weights that
        come from there. Nothing in it is read before it is compared with its checksums.

        Raises:
            WeightsError: there is no such model, or it is not what its training wrote.
            DataError: its ``bundle.json`` is damaged, or a link in it leads elsewhere.
        """
        from cellseg.bundle import FILE, Bundle
        from cellseg.torch.weights import FILE as WEIGHTS

        inside = path / "model"
        directory = inside if (inside / cls.file()).exists() else path
        if not (directory / cls.file()).exists():
            raise WeightsError(
                f"{path} holds no {cls.BACKEND} model.",
                hint="Give a file with weights, a finished run of cellseg train, or its model.",
            )
        sha256 = ""
        if (directory / FILE).exists():
            sha256 = Bundle.load_verified(directory).weights.get(WEIGHTS, "")
        return directory, BaseWeights(
            name=path.name, source=str(path), licence="as its source says", sha256=sha256
        )

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
