"""One go at a training: from a checkpoint, or from nothing, to the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.bundle import Bundle
from cellseg.events import Emit, Event, Progress, Resumed
from cellseg.files import remove_leftovers, sha256_of, storage_errors
from cellseg.locks import WAIT, sole
from cellseg.normalise import Normaliser
from cellseg.options import Options
from cellseg.plugins import Plugins
from cellseg.runs import Request, RunDir
from cellseg.specs import TrainerSpec, TrainJob
from cellseg.workflows.train_data import Material
from cellseg.workflows.train_settings import TrainSettings


@dataclass(frozen=True)
class Session:
    """One go at a run: from the checkpoint, or from nothing, to the bundle."""

    plugins: Plugins
    run: RunDir
    request: Request
    settings: TrainSettings
    options: Options
    material: Material

    def go(self, emit: Emit, interrupted: Callable[[], bool], again: bool = False) -> None:
        """Train until the model is there.

        Args:
            emit: gets each event, after the run has recorded it.
            interrupted: asked after each step; True stops the training with its state saved.
            again: the run began earlier.

        Raises:
            CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
        """
        from cellseg.normalise import normalised
        from cellseg.report import write_run_report

        spec = self.plugins.get(TrainerSpec, self.request.backend)
        normaliser = Normaliser.model_validate(self.request.normaliser)
        shown = self.material.examples
        images = [normalised(sample, normaliser) for sample in self.material.train]
        job: TrainJob[Any] = TrainJob(
            options=self.options,
            train=[] if shown else images,
            val=[normalised(sample, normaliser) for sample in self.material.val],
            examples=tuple(
                replace(one, sample=image) for one, image in zip(shown, images, strict=False)
            ),
            classes=self.material.classes,
            epochs=self.settings.epochs,
            seed=self.settings.seed,
            device=self.settings.device,
            checkpoint=self.run.checkpoint,
            model=self.run.model,
            previews=self.run.previews,
            interrupted=interrupted,
        )
        if again:
            _remove_leftovers(self.run)
        started = not again

        def record(event: Event) -> None:
            nonlocal started
            if isinstance(event, Progress) and not started:
                # A model without it is none: nobody must take old numbers for those of new weights.
                with storage_errors(self.run.model):
                    (self.run.model / BUNDLE_FILE).unlink(missing_ok=True)
                self.run.record(Resumed(event.step - 1, self.settings.epochs))
                started = True
            self.run.record(event)
            emit(event)

        try:
            trained = spec.train(job, record)
            if not started:  # no more steps were asked for than had been done
                done = [each.step for each in self.run.events() if isinstance(each, Progress)]
                self.run.record(Resumed(max(done, default=0), self.settings.epochs))
            first = self.material.train[0]
            Bundle(
                backend=self.request.backend,
                backend_version=self.request.backend_version,
                cellseg_version=self.request.cellseg_version,
                options=self.request.options,
                predict=dict(trained.calibrated),
                channels=first.image.shape[0],
                channel_names=first.channels,
                channel_selection=self.request.reader_options.get("channels"),
                volumetric=any(sample.image.shape[1] > 1 for sample in self.material.train),
                spacing=first.spacing,
                normaliser=normaliser,
                tiling=trained.tiling,
                classes=trained.classes,
                base_weights=trained.base_weights,
                trained_on=tuple(sample.name for sample in self.material.train),
                weights=_checksums(self.run.model),
            ).save(self.run.model)
        finally:
            write_run_report(self.run)


def tidy(run: RunDir) -> None:
    """Bring a finished run to the state that it has when nobody disturbs it."""
    from cellseg.report import write_run_report

    with sole(run.path, run.lock, hint=WAIT):
        _remove_leftovers(run)
        write_run_report(run)


def _remove_leftovers(run: RunDir) -> None:
    for directory in (run.path, run.checkpoint, run.model, run.previews):
        remove_leftovers(directory)


def _checksums(model: Path) -> dict[str, str]:
    files = sorted(path for path in model.rglob("*") if path.is_file())
    return {
        file.relative_to(model).as_posix(): sha256_of(file)
        for file in files
        if file.name != BUNDLE_FILE
    }
