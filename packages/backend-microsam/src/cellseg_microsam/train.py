"""Fine-tune a Segment Anything model, and find the thresholds that suit it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch  # noqa: TID253
from torch import nn  # noqa: TID253

from cellseg import ConfigError, Emit, Tiling, Trained, TrainJob
from cellseg.classes import UNKNOWN
from cellseg.events import Note
from cellseg.files import remove_leftovers
from cellseg.patches import PatchGrid, PatchSampler
from cellseg.sampling_options import AugmentOptions
from cellseg.torch.devices import memory_errors, resolve_device, threads
from cellseg.torch.loaders import Loaders, Numbered
from cellseg.torch.patches import TrainingPatches, ValidationPatches
from cellseg.torch.pixels import check_pixels
from cellseg.torch.sam.model_types import RANDOM, backbone
from cellseg.torch.training import fit
from cellseg.torch.weights import seeded
from cellseg_microsam.cache import (
    CachedPatches,
    CachedValidation,
    Store,
    encoder_checksum,
    fill,
)
from cellseg_microsam.checks import export_target
from cellseg_microsam.description import Description
from cellseg_microsam.fixed_patches import FixedPatches, Versions
from cellseg_microsam.learner import MicrosamLearner
from cellseg_microsam.model import MicroSam
from cellseg_microsam.options import MicrosamOptions
from cellseg_microsam.patches import Targets
from cellseg_microsam.predict_options import MicrosamPredictOptions
from cellseg_microsam.stored import save_model
from cellseg_microsam.thresholds import resolve
from cellseg_microsam.weights import Loaded, start

_ENCODED = {
    "precision",
    "copies",
    *(name for names in AugmentOptions.panels.values() for name in names),
}
"""Options that the embeddings depend on, beside what they are made of."""
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def train(job: TrainJob[MicrosamOptions], emit: Emit) -> Trained:
    """Train (or resume), and leave the model of the best validation in ``job.model``.

    Raises:
        ConfigError: images of other than 1 or 3 channels, or normalised to other than 0 to 1; an
            export that cannot be written, or that micro-SAM could not read.
        WeightsError: the weights to start from cannot be had or read.
        CellsegError: as ``cellseg.torch.training.fit`` says.
    """
    with threads(job.options.threads):
        return _Training(job, emit).run()


class _Training:
    def __init__(self, job: TrainJob[MicrosamOptions], emit: Emit) -> None:
        self.job, self.emit, self.options = job, emit, job.options
        self.frozen = self.options.mode == "decoder" or "image_encoder" in self.options.freeze

    def run(self) -> Trained:
        """All of it."""
        job, options = self.job, self.options
        remove_leftovers(job.model)
        check_pixels(job.train, "Segment Anything")
        target = export_target(job)
        loaded = self._start()
        model = loaded.model
        if options.peft != "none":
            self._adapt(model)
        side = options.patch_size
        segmenting = resolve(MicrosamPredictOptions(), "ais", loaded.model_type)
        learner = MicrosamLearner(model, options, model.frame((side, side), side), segmenting)
        calibrated: dict[str, object] = {}
        if job.epochs:
            calibrated = self._fit(learner, loaded)
        model.to("cpu").eval()
        learnt = _trainable(learner, options)
        self._save(model, loaded)
        stored = model.state_dict().keys()  # without what was merged into others
        if target is not None:
            from cellseg_microsam.export import write_microsam

            write_microsam(job.model, target)
            self.emit(Note(f"Also written for micro-SAM: {target}"))
        return Trained(
            trainable=tuple(name for name in learnt if name in stored),
            calibrated=calibrated,
            tiling=_tiling(side),
            base_weights=loaded.bases,
        )

    def _start(self) -> Loaded:
        options, emit = self.options, self.emit
        loaded = start(
            model_type=options.model_type,
            checkpoint=options.checkpoint,
            seed=self.job.seed,
            with_decoder=True,
            emit=emit,
        )
        loaded.model.requires_grad_(True)  # updates of an earlier training are weights like others
        if options.checkpoint is not None:
            loaded = _named(loaded, options)
        if self.options.export_path is not None and loaded.model_type in RANDOM:
            raise ConfigError(
                f"--export-path: micro-SAM has no network like {loaded.model_type!r}, which is"
                " cellseg's own.",
                hint="Leave it out, or fine-tune one of micro-SAM's: --model-type vit_b_lm.",
            )
        if any(sample.classes for sample in self.job.train):
            emit(Note("The classes of the objects are not learned: micro-SAM has none."))
        random = loaded.new_decoder or (loaded.model_type in RANDOM and options.checkpoint is None)
        if random and not loaded.new_decoder and self.frozen:
            emit(Note("The encoder has random weights, and is frozen: it will not learn."))
        if options.mode != "interactive":
            if loaded.new_decoder:
                emit(Note("The decoder starts from random weights: this model has none."))
            return loaded
        if random or not self.frozen:
            model = loaded.model
            model.decoder = None
            model.architecture = replace(model.architecture, unetr=None, transposed=False)
            if not random:
                emit(
                    Note(
                        "The model's decoder is left out: it does not fit an encoder that has"
                        " learned something else. Train it along: --mode full."
                    )
                )
        return loaded

    def _adapt(self, model: MicroSam) -> None:
        from cellseg_microsam.peft import apply_peft

        with seeded(self.job.seed):
            apply_peft(model, **_peft_values(self.options))

    def _fit(self, learner: MicrosamLearner, loaded: Loaded) -> dict[str, object]:
        job, options = self.job, self.options
        make = Targets(options)
        val = None
        if job.val:
            val = ValidationPatches(
                PatchGrid(job.val, options.patch_shape), make, options.val_patches
            )
        samples = options.n_samples or options.patches_per_image * len(job.train)
        store, train, judged = self._cached(learner, make, val, samples)
        if train is None:
            sampler = self._sampler()
            train = TrainingPatches(sampler, make, options, job.seed)
        loaders = Loaders(
            train=train,
            epoch_samples=samples,
            val=judged,
            val_batches=len(judged) if judged else 0,
        )
        fit(learner, loaders, job, self.emit)
        calibrated: dict[str, object] = {}
        if judged and options.calibrate and options.mode != "interactive":
            calibrated = self._calibrate(learner, judged, loaded)
        if store is not None:
            store.remove()
        return calibrated

    def _sampler(self) -> PatchSampler:
        """Draws patches; it names the images that it draws none from."""
        options = self.options
        if not options.use_min_instance_sampler:
            options = options.model_copy(update={"min_instances": 0})
        sampler = PatchSampler.of(self.job.train, options, self.job.seed)
        if sampler.skipped:
            listed = ", ".join(sampler.skipped[:5]) + (", ..." if len(sampler.skipped) > 5 else "")
            self.emit(Note(f"Not trained on, for want of objects (--min-instances): {listed}"))
        return sampler

    def _cached(
        self,
        learner: MicrosamLearner,
        make: Targets,
        val: ValidationPatches | None,
        samples: int,
    ) -> tuple[Store | None, Numbered | None, CachedValidation | ValidationPatches | None]:
        """What is trained and validated on where embeddings are kept, all of them computed."""
        job, options, model = self.job, self.options, learner.model
        if options.mode != "decoder" or not options.cache_embeddings:
            return None, None, val
        fixed = FixedPatches(job.train, options, samples)
        versions = Versions(fixed, val, options, job.seed)
        a = model.architecture
        side = options.patch_size
        store = Store(
            job.checkpoint / "embeddings",
            {
                "encoder": encoder_checksum(model.sam.image_encoder),
                "pixels": versions.checksum(),
                "options": options.model_dump(mode="json", include=_ENCODED),
                "seed": job.seed,
            },
            len(versions),
            (a.out_channels, a.grid, a.grid),
            (side, side),
        )
        device = resolve_device(job.device)
        dtype = _AUTOCAST.get(options.precision)

        def encode(images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
                return learner.embeddings({"image": images.to(device)}).cpu()

        with memory_errors(f"Try --batch-size {max(1, options.batch_size // 2)}."):
            fill(store, versions, encode, options.batch_size, self.emit, job.interrupted)
        model.to("cpu")
        train = CachedPatches(store, fixed, make, options.copies, job.seed)
        judged = CachedValidation(store, val, versions.trained) if val else None
        return store, train, judged

    def _calibrate(
        self,
        learner: MicrosamLearner,
        val: CachedValidation | ValidationPatches,
        loaded: Loaded,
    ) -> dict[str, object]:
        from cellseg_microsam.calibrate import search

        device = resolve_device(self.job.device)
        learner.eval().to(device)
        pairs = []
        hint = "The training is done: cellseg resume RUN --device cpu goes on from here."
        with torch.inference_mode(), memory_errors(hint):
            for number in range(len(val)):
                item = {name: tensor.to(device) for name, tensor in val[number].items()}
                (maps,) = learner.maps(learner.embeddings(item)).float().cpu().numpy()
                truth = item["labels"][0].cpu().numpy().astype(np.uint32)
                truth[~item["known"][0].cpu().numpy()] = UNKNOWN
                pairs.append((maps, truth))
        choice = search(pairs, resolve(MicrosamPredictOptions(), "ais", loaded.model_type))
        self.emit(Note(str(choice)))
        return choice.stored

    def _save(self, model: MicroSam, loaded: Loaded) -> None:
        options = self.options
        peft = loaded.peft
        if options.peft != "none":
            from cellseg_microsam.peft import merge_peft

            peft = None if merge_peft(model) else _peft_values(options)
        description = Description(
            model_type=loaded.model_type,
            architecture=model.architecture.to_dict(),
            field=options.patch_size,
            mode=options.mode,
            peft=peft,
            has_decoder=model.decoder is not None,
            prompts_trained=options.mode in ("full", "interactive")
            or (self.frozen and loaded.answers),
        )
        save_model(model, description, self.job.model)


def _named(loaded: Loaded, options: MicrosamOptions) -> Loaded:
    """What a file holds, called as the user does, where that is not the default.

    Raises:
        ConfigError: the file holds another architecture.
    """
    named = options.model_type
    if named in (MicrosamOptions.model_fields["model_type"].default, loaded.model_type):
        return loaded
    if backbone(loaded.model_type) != backbone(named):
        raise ConfigError(
            f"--checkpoint {options.checkpoint}: holds a {loaded.model_type}, not a {named}.",
            hint="Leave --model-type out: the file says itself how large the model is.",
        )
    return replace(loaded, model_type=named)


def _peft_values(options: MicrosamOptions) -> dict[str, Any]:
    return {
        "method": options.peft,
        "rank": options.lora_rank,
        "alpha": options.lora_alpha,
        "blocks": options.peft_blocks,
    }


def _trainable(learner: MicrosamLearner, options: MicrosamOptions) -> tuple[str, ...]:
    """Names of the tensors of the model that training may change, merging included."""
    names = []
    for name, part in learner.parts.items():
        prefix = name if name == "decoder" else f"sam.{name}"
        names += [f"{prefix}.{n}" for n, each in part.named_parameters() if each.requires_grad]
        for inner, module in part.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                names += [f"{prefix}.{inner}.{n}" for n, _ in module.named_buffers()]
    if options.peft != "none":
        from cellseg_microsam.peft import changed_by_merging

        names += changed_by_merging(learner.model)
    return tuple(names)


def _tiling(side: int) -> Tiling:
    """Tiles that show as much as a training patch, an eighth of it beside the core."""
    halo = side // 8
    core = side - 2 * halo
    return Tiling(core=(1, core, core), halo=(0, halo, halo))
