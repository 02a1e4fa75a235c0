"""Train a detector of cells, then the masks of what it finds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from cellseg import Emit, Tiling, Trained, TrainJob
from cellseg.events import Note
from cellseg.files import remove, remove_leftovers
from cellseg.patches import PatchGrid, PatchSampler
from cellseg.torch.devices import resolve_device, threads
from cellseg.torch.loaders import Loaders
from cellseg.torch.lora import merge_lora, merged_name
from cellseg.torch.patches import TrainingPatches, ValidationPatches
from cellseg.torch.pixels import check_pixels
from cellseg.torch.training import Fit, fit
from cellseg.torch.weights import FILE, load_weights
from cellseg_cellsam.advice import (
    of_crowd,
    of_data,
    of_skipped,
    of_start,
    refuse_idle_patience,
    refuse_start,
)
from cellseg_cellsam.description import Description
from cellseg_cellsam.learning import adapt, of_stage1, of_stage2
from cellseg_cellsam.options import CellSamOptions
from cellseg_cellsam.predict_options import CellSamPredictOptions
from cellseg_cellsam.stages import Finished, Numbered, job_of, shares_of
from cellseg_cellsam.stored import save_model
from cellseg_cellsam.targets import Targets
from cellseg_cellsam.weights import start

_LARGE = 0.95
"""Cells that are larger than this share of all are large."""


def train(job: TrainJob[CellSamOptions], emit: Emit) -> Trained:
    """Train (or resume) both stages, and leave the model of the best validation of the last one in
    ``job.model``; each starts from the best one of the stage before.

    Raises:
        ConfigError: images of other than 1 or 3 channels, or normalised to other than 0 to 1; a
            stage that could learn nothing of use; more epochs asked for than there are.
        DataError: no image has the objects that patches need.
        WeightsError: the weights to start from cannot be had or read.
        CellsegError: as ``cellseg.torch.training.fit`` says.
    """
    with threads(job.options.threads):
        return _Training(job, emit).run()


class _Training:
    def __init__(self, job: TrainJob[CellSamOptions], emit: Emit) -> None:
        self.job, self.emit, self.options = job, emit, job.options
        self.shares = shares_of(job)
        self.extent = 0
        """Of a large cell, in pixels; known when there is something to train on."""

    def run(self) -> Trained:
        """All of it."""
        job, options = self.job, self.options
        remove_leftovers(job.model)
        check_pixels(job.train, "Segment Anything")
        refuse_idle_patience(job)
        self._tell(of_data(job))
        self.start = start(options, job.seed, self.emit)
        self.model = self.start.model
        refuse_start(options, self.start, self.shares)
        self._tell(of_start(options, self.start, self.shares))
        learnt: list[str] = []
        calibrated: dict[str, object] = {}
        if job.epochs:
            self.loaders = self._loaders()
            learnt, calibrated = self._both()
        self.model.to("cpu").eval()
        save_model(self.model, self._description(), job.model)
        return Trained(
            trainable=tuple(dict.fromkeys(learnt)),
            calibrated=calibrated,
            tiling=_tiling(options.patch_size, self.extent),
            base_weights=(self.start.base,) if self.start.base is not None else (),
        )

    def _tell(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.emit(Note(text))

    def _both(self) -> tuple[list[str], dict[str, object]]:
        """Names of the tensors that learned, and the options of prediction that suit."""
        (first, second), options = self.shares, self.options
        done = None
        if first and options.stage == "both":
            done = Finished.load(self.job.checkpoint)
            if done is not None:
                kept = self.job.checkpoint / "stage1"
                load_weights(self.model, kept / "model" / FILE)
        if first and done is None:
            done = self._stage1(first, second)
        if done is None:
            done = Finished(steps=0, epochs=0, learnt=(), calibrated={})
        if not second:
            return [*done.learnt], {**done.calibrated}
        names, calibrated = self._stage2(second, done)
        return [*done.learnt, *names], calibrated

    def _stage1(self, epochs: int, later: int) -> Finished:
        from cellseg_cellsam.detection_learner import DetectionLearner

        options, model = self.options, self.model
        adapt(model, options, self.job.seed)
        names = of_stage1(model, options)
        learner = DetectionLearner(model, names, options, self._frame())
        batch = options.batch_size * options.accumulate * options.devices
        each = 1 if options.fast_dev_run else later * math.ceil(self.loaders.epoch_samples / batch)
        numbered = Numbered(name="stage1", later=each if later else 0)
        fitted = self._fit(learner, numbered, epochs, options.stage1_patience)
        model.to("cpu").eval()
        merge_lora(model)
        done = Finished(
            steps=fitted.step,
            epochs=fitted.epochs,
            learnt=tuple(dict.fromkeys(merged_name(name) for name in names)),
            calibrated=self._calibrate(masks=False),
        )
        if options.stage == "both":
            kept = self.job.checkpoint / "stage1"
            save_model(model, self._description(stage2=False), kept / "model")
            done.save(self.job.checkpoint)
            for file in kept.glob("step-*.ckpt"):  # nothing goes on from there any more
                remove(file)
        return done

    def _stage2(self, epochs: int, done: Finished) -> tuple[Sequence[str], dict[str, object]]:
        from cellseg_cellsam.mask_learner import MaskLearner

        options, model = self.options, self.model
        names = of_stage2(model, options)
        learner = MaskLearner(model, names, options, self._frame())
        numbered = Numbered(name="stage2", steps=done.steps, epochs=done.epochs)
        self._fit(learner, numbered, epochs, options.stage2_patience)
        model.to("cpu").eval()
        return names, self._calibrate(masks=True)

    def _fit(self, learner: Any, numbered: Numbered, epochs: int, patience: int) -> Fit:
        job = job_of(self.job, numbered.name, epochs, patience)
        remove_leftovers(job.previews)
        return fit(learner, self.loaders, job, self.emit, numbered)

    def _calibrate(self, *, masks: bool) -> dict[str, object]:
        if not self.job.val or not self.options.calibrate:
            return {}
        if masks and not self._boxes_trained:
            return {}
        from cellseg_cellsam.calibrate import find_box_threshold
        from cellseg_cellsam.encoding import Encoder

        options, side = CellSamPredictOptions(), self.options.patch_size
        model = self.model.to(resolve_device(self.job.device)).eval()
        encoder, tiling = Encoder.of(model, side, options), _tiling(side, self.extent)
        choice = find_box_threshold(encoder, self.job.val, tiling, options, masks=masks)
        self.emit(Note(f"Stage {2 if masks else 1}: {choice}"))
        model.to("cpu")
        return dict(choice.stored)

    @property
    def _boxes_trained(self) -> bool:
        return self.start.boxes_trained or self.shares[0] > 0

    def _description(self, *, stage2: bool = True) -> Description:
        model = self.model
        return Description(
            model_type=self.start.model_type,
            architecture=model.architecture.to_dict(),
            detector=model.sizes.to_dict(),
            field=self.options.patch_size,
            draws_boxes=model.draws_boxes,
            boxes_trained=self._boxes_trained,
            masks_trained=self.start.masks_trained or (stage2 and self.shares[1] > 0),
            licence=self.start.licence,
        )

    def _frame(self) -> Any:
        side = self.options.patch_size
        return self.model.frame((side, side), side)

    def _loaders(self) -> Loaders:
        job, options = self.job, self.options
        make = Targets(options.min_instance_size)
        val = None
        if job.val:
            grid = PatchGrid(job.val, options.patch_shape)
            val = ValidationPatches(grid, make, options.val_patches)
        sampler = PatchSampler.of(job.train, options, job.seed)
        self.extent = sampler.extent(_LARGE)
        self._tell(of_skipped(sampler.skipped))
        if self.shares[0]:
            self._tell(of_crowd(sampler.crowd(), self.model.sizes.queries))
        return Loaders(
            train=TrainingPatches(sampler, make, options.augmenting, job.seed),
            epoch_samples=options.patches_per_image * len(job.train),
            val=val,
            val_batches=len(val) if val else 0,
        )


def _tiling(side: int, extent: int) -> Tiling:
    """Tiles that show as much as a training patch. Beside the core lies half of a large cell, so
    that a cell is seen as such from both sides of a border; at least an eighth of the tile, and at
    most a fourth."""
    halo = min(max(side // 8, (extent + 1) // 2), side // 4)
    core = side - 2 * halo
    return Tiling(core=(1, core, core), halo=(0, halo, halo))
