"""Fine-tune SAM 2 to segment and track cells, or train a small network to."""

from __future__ import annotations

from cellseg import Emit, Tiling, Trained, TrainJob
from cellseg.errors import ConfigError
from cellseg.events import Note
from cellseg.files import remove_leftovers
from cellseg.specs import BaseWeights
from cellseg.torch.devices import resolve_device, threads
from cellseg.torch.loaders import Loaders
from cellseg.torch.lora import merged_name
from cellseg.torch.pixels import check_pixels
from cellseg.torch.sam2.sizes import RANDOM
from cellseg.torch.training import fit
from cellseg.torch.weights import seeded
from cellseg_cellsam2.augmenting import ClipAugmentation
from cellseg_cellsam2.clips import ClipGrid, ClipSampler, longest_side
from cellseg_cellsam2.encoding import Encoder
from cellseg_cellsam2.learner import CellSam2Learner
from cellseg_cellsam2.lora import add_lora, learning
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.options import CellSam2Options
from cellseg_cellsam2.predict_options import CellSam2PredictOptions
from cellseg_cellsam2.stored import save
from cellseg_cellsam2.targets import TrainingClips, ValidationClips, collated
from cellseg_cellsam2.weights import make_model


def train(job: TrainJob[CellSam2Options], emit: Emit) -> Trained:
    """Train (or resume), and leave the model of the best validation in ``job.model``.

    Raises:
        ConfigError: images of other than 1 or 3 channels, or normalised to other than 0 to 1;
            clips of several frames where there are no tracks.
        DataError: no movie is long enough, or a file cannot be read.
        WeightsError: the weights to start from cannot be had or read.
        CellsegError: as ``cellseg.torch.training.fit`` says.
    """
    with threads(job.options.threads):
        return _Training(job, emit).run()


class _Training:
    def __init__(self, job: TrainJob[CellSam2Options], emit: Emit) -> None:
        self.job, self.emit, self.options = job, emit, job.options

    def run(self) -> Trained:
        """All of it."""
        job, options = self.job, self.options
        remove_leftovers(job.model)
        check_pixels(job.train, "SAM 2")
        side = options.patch_size or min(longest_side(job.train), options.resolution)
        loaders = self._loaders(side) if job.epochs else None
        model, bases = self._start()
        learnt = learning(model, use_lora=options.use_lora, freeze_encoder=options.freeze_encoder)
        learner = CellSam2Learner(model, learnt, options, job.seed)
        calibrated: dict[str, object] = {}
        if loaders is not None:
            fit(learner, loaders, job, self.emit)
            if job.val and options.calibrate:
                calibrated = self._calibrate(learner, side)
        model.to("cpu").eval()
        save(
            model,
            job.model,
            scale=options.resolution / side,
            num_frames=options.num_frames,
            use_lora=options.use_lora,
        )
        names = [name for names in learnt.values() for name in names]
        return Trained(
            trainable=tuple(dict.fromkeys(merged_name(name) for name in names)),
            calibrated=calibrated,
            tiling=_tiling(side),
            base_weights=bases,
        )

    def _start(self) -> tuple[CellSam2, tuple[BaseWeights, ...]]:
        job, options = self.job, self.options
        model, bases = make_model(
            options.model_type, options.resolution, job.seed, options.checkpoint, self.emit
        )
        if any(sample.classes for sample in job.train):
            self.emit(Note("The classes of the objects are not learned: cellsam2 has none."))
        named = options.model_type
        default = CellSam2Options.model_fields["model_type"].default
        if options.checkpoint is not None and named not in (default, model.size):
            raise ConfigError(
                f"--checkpoint {options.checkpoint}: holds a {model.size}, not a {named}.",
                hint="Leave --model-type out: the file says itself how large the model is.",
            )
        if model.size in RANDOM and options.checkpoint is None and options.use_lora:
            self.emit(
                Note(
                    f"{model.size} has random weights, which stay as they are with --use-lora: it"
                    " will learn little. Train all of it: --preset scratch, or --no-use-lora."
                )
            )
        if options.use_lora:
            with seeded(job.seed):
                add_lora(model, options.lora_rank, options.lora_alpha, options.lora_dropout)
        return model, bases

    def _calibrate(self, learner: CellSam2Learner, side: int) -> dict[str, object]:
        from cellseg_cellsam2.calibrate import find_thresholds

        options = CellSam2PredictOptions()
        learner.eval().to(resolve_device(self.job.device))
        learner.model.to(resolve_device(self.job.device))
        encoder = Encoder.of(learner.model, self.options.resolution / side, options)
        choice = find_thresholds(encoder, self.job.val, _tiling(side), options)
        self.emit(Note(str(choice)))
        return dict(choice.found)

    def _loaders(self, side: int) -> Loaders:
        job, options = self.job, self.options
        length, least = options.num_frames, options.min_instance_size
        sampler = ClipSampler(
            job.train,
            length=length,
            side=side,
            division_share=options.division_share,
            least=least,
            seed=job.seed,
            cache=options.cache << 20,
        )
        self._tell(sampler)
        val = None
        if job.val:
            grid = ClipGrid(job.val, length=length, side=side)
            val = ValidationClips(grid, options.resolution, least, options.val_clips)
        augment = ClipAugmentation(options)
        return Loaders(
            train=TrainingClips(sampler, augment, options.resolution, least, job.seed),
            epoch_samples=options.clips_per_epoch or len(sampler),
            val=val,
            val_batches=len(val) if val else 0,
            collate=collated,
        )

    def _tell(self, sampler: ClipSampler) -> None:
        """Name what is not trained on."""
        if sampler.skipped:
            listed = ", ".join(sampler.skipped[:5]) + (", ..." if len(sampler.skipped) > 5 else "")
            self.emit(
                Note(
                    f"Not trained on, for want of {self.options.num_frames} frames one after the"
                    f" other (--num-frames): {listed}"
                )
            )
        if self.options.num_frames > 1 and not sampler.divisions:
            self.emit(Note("No cell divides in the training movies: divisions are not learned."))


def _tiling(side: int) -> Tiling:
    """Tiles that show as much as a training clip, an eighth of it beside the core."""
    halo = side // 8
    core = side - 2 * halo
    return Tiling(core=(1, core, core), halo=(0, halo, halo))
