"""The conformance tests of training: part of ``cellseg.testing.BackendTests``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cellseg.errors import InterruptedRunError
from cellseg.events import Checkpointed, Event, Progress
from cellseg.specs import Trained, TrainerSpec, TrainJob
from cellseg.synthetic import blobs
from cellseg.tracker_testing import moving_blobs


@dataclass(frozen=True)
class Once:
    """A training, and what came of it."""

    job: TrainJob[Any]
    trained: Trained
    events: tuple[Event, ...]

    @classmethod
    def of(cls, trainer: TrainerSpec[Any], job: TrainJob[Any]) -> Once:
        """Train."""
        events = list[Event]()
        return cls(job, trainer.train(job, events.append), tuple(events))


class TrainerTests:
    """What every trainer must prove."""

    backend: ClassVar[str]
    shape: ClassVar[tuple[int, int, int]]

    @classmethod
    def _job(cls, trainer: TrainerSpec[Any], path: Path, epochs: int) -> TrainJob[Any]:
        raise NotImplementedError  # BackendTests has it

    def test_training_reports_and_leaves_a_model(self, once: Once) -> None:
        """Steps grow from 1, a checkpoint is reported, and the model is there."""
        assert isinstance(once.trained, Trained)
        steps = [event.step for event in once.events if isinstance(event, Progress)]
        assert steps == list(range(1, len(steps) + 1)) and steps, "steps count from 1, one by one"
        assert any(isinstance(event, Checkpointed) for event in once.events)
        assert any(once.job.model.iterdir()), "training must leave a model"

    def test_training_changes_what_it_declares(
        self, trainer: TrainerSpec[Any], tmp_path: Path, once: Once
    ) -> None:
        """All the tensors in ``Trained.trainable`` change, and no other."""
        if not list(once.job.model.glob("*.safetensors")):
            pytest.skip("this model has no safetensors")
        before = self._job(trainer, tmp_path / "0", 0)
        trainer.train(before, lambda event: None)
        old, new = _tensors(before.model), _tensors(once.job.model)
        assert old.keys() == new.keys(), "training must not add or drop tensors"
        changed = {name for name in old if not np.array_equal(old[name], new[name])}
        assert changed == set(once.trained.trainable)

    def test_resume_equals_one_go(
        self, trainer: TrainerSpec[Any], tmp_path: Path, twice: Once
    ) -> None:
        """One epoch, and one more after a resume, equal two epochs bit for bit."""
        parts = self._job(trainer, tmp_path / "a", 2)
        first, second = list[Event](), list[Event]()
        trainer.train(replace(parts, epochs=1, model=made(tmp_path / "b")), first.append)
        trainer.train(parts, second.append)
        last = max(event.step for event in first if isinstance(event, Progress))
        assert min(event.step for event in second if isinstance(event, Progress)) == last + 1
        assert _bytes(parts.model) == _bytes(twice.job.model)

    def test_interrupt_saves_the_state(
        self, trainer: TrainerSpec[Any], tmp_path: Path, once: Once
    ) -> None:
        """A training stopped after its first step resumes to the same model."""
        parts = self._job(trainer, tmp_path, 1)
        with pytest.raises(InterruptedRunError):
            trainer.train(replace(parts, interrupted=lambda: True), lambda event: None)
        assert any(parts.checkpoint.iterdir()), "an interrupt must leave a checkpoint"
        trainer.train(parts, lambda event: None)
        assert _bytes(parts.model) == _bytes(once.job.model)

    def test_images_without_objects_can_be_trained_with(
        self, trainer: TrainerSpec[Any], tmp_path: Path
    ) -> None:
        """An empty image among the others, and empty validation, are no error."""
        if trainer.examples:
            pytest.skip(f"{self.backend} gets only images in which examples lie")
        job = self._job(trainer, tmp_path, 1)
        empty = [blobs(9, self.shape, 0)]
        if "tracking" in trainer.tasks:
            empty = moving_blobs(9, self.shape, 4, 0)
        trainer.train(replace(job, train=[*job.train, *empty], val=empty), lambda event: None)
        assert any(job.model.iterdir())


def made(path: Path) -> Path:
    """A new folder."""
    path.mkdir(parents=True)
    return path


def _tensors(model: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    files: Sequence[Path] = sorted(model.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _bytes(model: Path) -> dict[str, bytes]:
    return {
        file.relative_to(model).as_posix(): file.read_bytes()
        for file in sorted(model.rglob("*"))
        if file.is_file()
    }
