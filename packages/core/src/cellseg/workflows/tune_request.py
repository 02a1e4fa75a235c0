"""A search on disk: what was asked for, and where everything is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cellseg.errors import DataError
from cellseg.files import write_atomic
from cellseg.locations import Location
from cellseg.locks import LOCK
from cellseg.tuning.space import Space
from cellseg.workflows.tune_settings import TuneSettings

FILE = "tune.json"


class TuneRequest(BaseModel):
    """What a search was asked to do: enough to go on with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    backend_version: str = ""
    cellseg_version: str = ""
    data: Location | None = None
    """None where a Python function is searched."""
    space: Space
    search: dict[str, Any]
    """How to search: what was given of ``TuneSettings``."""
    seed: int = 0
    settings: dict[str, Any] = {}
    """What was given of the training's settings."""
    reader: str = ""
    reader_options: dict[str, Any] = {}
    """What was given of the reader's options."""
    options: dict[str, Any] = {}
    """What was given of the backend's options."""
    splits: dict[str, Any] = {}
    """What trains, validates and tests."""

    @property
    def how(self) -> TuneSettings:
        """How to search."""
        return TuneSettings.model_validate(self.search)

    @property
    def function(self) -> bool:
        """Whether a Python function is searched."""
        return self.data is None

    def digest(self) -> str:
        """The same for searches that can share a database; on other computers paths differ."""
        own = {"workers", "storage", "study", "keep_models", "keep_trials"}
        told = self.model_dump(mode="json", exclude={"data", "backend_version", "cellseg_version"})
        told["search"] = {k: v for k, v in told["search"].items() if k not in own}
        told["settings"] = {
            k: v
            for k, v in told["settings"].items()
            if k not in ("val", "splits", "examples", "device")
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TuneDir:
    """A search on disk.

    out/
        tune.json     what was asked for
        splits.json   what trains, validates and tests, in all trials
        study.db      the trials, unless another database keeps them
        trials/0007/  a run for each trial; error.txt where one failed
        trained/      the one model, where only options of prediction are searched
        trials.csv    all trials with their scores
        best.yaml     the best options, as cellseg train --config takes them
        predict.yaml  the best options of prediction, where some are searched
        report.html   the table, the best options, what matters
    """

    path: Path

    @property
    def file(self) -> Path:
        """What was asked for."""
        return self.path / FILE

    @property
    def splits(self) -> Path:
        """What trains, validates and tests."""
        return self.path / "splits.json"

    @property
    def trained(self) -> Path:
        """The run that all trials share, where only options of prediction are searched."""
        return self.path / "trained"

    @property
    def best(self) -> Path:
        """The best options of training."""
        return self.path / "best.yaml"

    @property
    def predict(self) -> Path:
        """The best options of prediction."""
        return self.path / "predict.yaml"

    @property
    def table(self) -> Path:
        """All trials."""
        return self.path / "trials.csv"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    def check_free(self) -> None:
        """Refuse a directory that already holds a search, or anything else.

        Raises:
            DataError: it does.
        """
        if self.file.exists():
            raise DataError(
                f"{self.path} already holds a search.",
                hint=f"Go on with it: cellseg resume {self.path}; or choose another --output.",
            )
        if self.path.exists() and (not self.path.is_dir() or not self._is_scrap()):
            raise DataError(
                f"{self.path} exists and is not empty.", hint="Choose another --output."
            )

    @property
    def lock(self) -> Path:
        """What is there while processes search here; they share it."""
        return self.path / LOCK

    def _is_scrap(self) -> bool:
        """Whether the folder holds nothing, or what a search left that was killed as it began."""
        left = [entry for entry in self.path.iterdir() if entry != self.lock]
        return not left or (
            self.lock.exists()
            and all(one == self.splits or one.name.startswith(".part-") for one in left)
        )

    def save(self, request: TuneRequest) -> None:
        """Write down what is asked for.

        Raises:
            StorageError: it cannot be written.
        """
        write_atomic(self.file, request.model_dump_json(indent=2) + "\n")

    def request(self) -> TuneRequest:
        """Read back what was asked for.

        Raises:
            DataError: this is no search, or its ``tune.json`` is damaged.
        """
        try:
            return TuneRequest.model_validate_json(self.file.read_bytes())
        except FileNotFoundError:
            raise DataError(
                f"{self.path} is not a search: it has no {FILE}.",
                hint="Give the directory that cellseg tune wrote.",
            ) from None
        except (OSError, ValidationError) as error:
            raise DataError(f"{self.file} cannot be read: {str(error).splitlines()[0]}") from error
