"""The microsam backend: its cards. Everything heavy is imported when a card is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cellseg import (
    Emit,
    PredictJob,
    Predictor,
    PredictorSpec,
    Tiling,
    Trained,
    TrainerSpec,
    TrainJob,
    hookimpl,
)
from cellseg.specs import CalibrateJob, Embedder
from cellseg_microsam.options import MicrosamOptions
from cellseg_microsam.predict_options import MicrosamPredictOptions
from cellseg_microsam.presets import PRESETS
from cellseg_microsam.published import base_weights

_SUMMARY = "Segment Anything for microscopy (micro-SAM): automatic, or by points and boxes"
_ALIASES = {
    "patch_shape": "patch_size",
    "n_epochs": "epochs",
    "min_instances_per_patch": "min_instances",
    "normalize_lower_percentile": "percentile_low",
    "normalize_upper_percentile": "percentile_high",
    "val_split": "val_fraction",
    "train_val_split": "val_fraction",
    "save_validation_predictions_frequency": "preview_every",
    "n_objects_per_batch": "n_objects",
    "n_sub_iteration": "n_sub_iterations",
    "mask_prob": "mask_probability",
}
"""Names that users of the older trainer know."""


@hookimpl
def cellseg_trainers() -> Iterator[TrainerSpec[MicrosamOptions]]:
    """Fine-tune a published model, or train a small one."""

    def train(job: TrainJob[MicrosamOptions], emit: Emit) -> Trained:
        from cellseg_microsam.train import train

        return train(job, emit)

    yield TrainerSpec(
        name="microsam",
        summary=_SUMMARY,
        options=MicrosamOptions,
        train=train,
        weights=base_weights(),
        presets=PRESETS,
        aliases=_ALIASES,
    )


@hookimpl
def cellseg_predictors() -> Iterator[PredictorSpec[MicrosamPredictOptions]]:
    """Segment with a fine-tuned or a published model."""

    def load(job: PredictJob[MicrosamPredictOptions]) -> Predictor:
        from cellseg_microsam.predict import load

        return load(job)

    def calibrate(job: CalibrateJob[MicrosamPredictOptions], emit: Emit) -> Mapping[str, object]:
        from cellseg_microsam.calibrate import calibrate

        return calibrate(job, emit)

    def embed(job: PredictJob[MicrosamPredictOptions]) -> Embedder:
        from cellseg_microsam.predict import load_embedder

        return load_embedder(job)

    yield PredictorSpec(
        name="microsam",
        summary=_SUMMARY,
        options=MicrosamPredictOptions,
        load=load,
        calibrate=calibrate,
        embed=embed,
        prompts=True,
        link_slices=True,
        tiling=Tiling(core=(1, 1024, 1024), halo=(0, 64, 64)),
    )
