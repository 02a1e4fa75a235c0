"""Trainers whose own options say how many epochs there are."""

from __future__ import annotations

from typing import Any

import pytest

from cellseg.errors import ConfigError
from cellseg.options import Options
from cellseg.specs import TrainerSpec
from cellseg.workflows.train_data import with_epochs
from cellseg.workflows.train_settings import TrainSettings


class Staged(Options):
    first_epochs: int | None = None
    """Of the first stage."""
    other: int = 3
    """Something else."""


def spec(**values: Any) -> TrainerSpec[Staged]:
    train: Any = print
    return TrainerSpec(name="staged", summary="", options=Staged, train=train, **values)


STAGED = spec(epochs=lambda options: options.first_epochs)


def test_a_trainer_without_such_options_leaves_it_to_epochs() -> None:
    settings = TrainSettings(epochs=7)
    assert with_epochs(spec(), settings, Staged(first_epochs=5)) is settings


def test_options_that_ask_for_nothing_leave_it_to_epochs() -> None:
    assert with_epochs(STAGED, TrainSettings(epochs=7), Staged()).epochs == 7
    assert with_epochs(STAGED, TrainSettings(), Staged()) == TrainSettings()


def test_what_the_options_ask_for_is_what_the_run_has() -> None:
    found = with_epochs(STAGED, TrainSettings(), Staged(first_epochs=5))
    assert found.epochs == 5
    assert with_epochs(STAGED, TrainSettings(epochs=5), Staged(first_epochs=5)).epochs == 5


def test_another_number_of_epochs_is_refused() -> None:
    told = "--epochs 7 contradicts --first-epochs, with which there are 5"
    with pytest.raises(ConfigError, match=told):
        with_epochs(STAGED, TrainSettings(epochs=7), Staged(first_epochs=5, other=2))
