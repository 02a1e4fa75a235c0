"""How to search. Light: the command line builds its help from it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from cellseg.options import Options

DEFAULT_TRIALS = 20


class SearchOptions(Options):
    """What every search takes, whatever is tried."""

    panels: ClassVar = {
        "Search": ("trials", "sampler", "prune"),
        "Running": ("workers", "storage", "study"),
        "Kept": ("keep_models", "keep_trials"),
    }

    trials: int | None = Field(None, ge=1)
    """How many points to try, failures included. By default 20; a grid always tries all of its
    points."""
    sampler: Literal["random", "grid", "tpe"] = "random"
    """Where to look: random points, all points of a grid, or where the trials so far promise most
    (tree-structured Parzen estimators)."""
    prune: bool | None = None
    """Stop trials early that validate worse than half of the others after the same epoch. By
    default yes, but for grids. For backends whose validations have a score to go by."""
    workers: int = Field(1, ge=1)
    """How many trials to run at once on this computer, each in a process of its own."""
    storage: str | None = None
    """The database that keeps the trials: an address of SQLAlchemy, such as
    postgresql+psycopg://user@host/name. Searches on several computers share it. By default
    study.db in the output folder."""
    study: str | None = Field(None, min_length=1)
    """The name of the search in the database. By default that of the output folder."""
    keep_models: int = Field(1, ge=1)
    """How many of the best trials keep their models and checkpoints; of the others only options,
    curves and reports stay."""
    keep_trials: bool = False
    """Keep the models and checkpoints of all trials."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> SearchOptions:
        if self.sampler == "grid" and self.trials is not None:
            raise ValueError("--trials does nothing with --sampler grid, which tries all points")
        if self.study is not None and self.storage is None:
            raise ValueError("--study names a search in the database of --storage: give both")
        if self.keep_trials:
            self.refuse_idle(["keep_models"], "--keep-trials keeps all models")
        return self

    @property
    def pruned(self) -> bool:
        """Whether trials are stopped early."""
        return self.sampler != "grid" if self.prune is None else self.prune
