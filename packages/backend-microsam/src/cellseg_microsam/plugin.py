"""The microsam backend: its cards. Everything heavy is imported when a card is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cellseg import (
    Emit,
    ExporterSpec,
    ExportJob,
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
from cellseg.torch.sam.published import PUBLISHED
from cellseg_microsam.diagnosis import checks
from cellseg_microsam.export_options import NativeOptions, OnnxOptions, PackageOptions
from cellseg_microsam.options import MicrosamOptions
from cellseg_microsam.predict_options import MicrosamPredictOptions
from cellseg_microsam.presets import PRESETS

_SUMMARY = "Segment Anything for microscopy (micro-SAM): automatic, or by points and boxes"
_ALIASES = {
    "images_dir": "images",
    "labels_dir": "labels",
    "val_zarr_path": "val",
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
        models=tuple(PUBLISHED.values()),
        presets=PRESETS,
        aliases=_ALIASES,
    )


@hookimpl
def cellseg_predictors() -> Iterator[PredictorSpec[MicrosamPredictOptions]]:
    """Segment with a fine-tuned or a published model."""

    yield PredictorSpec(
        name="microsam",
        summary=_SUMMARY,
        options=MicrosamPredictOptions,
        checks=checks,
        load=_load,
        calibrate=_calibrate,
        embed=_embed,
        prompts=True,
        link_slices=True,
        tiling=Tiling(core=(1, 1024, 1024), halo=(0, 64, 64)),
    )


@hookimpl
def cellseg_exporters() -> Iterator[ExporterSpec[Any]]:
    """Write the model for other software."""

    def native(job: ExportJob[NativeOptions], emit: Emit) -> Path:
        from cellseg_microsam.export import export_native

        return export_native(job, emit)

    def onnx(job: ExportJob[OnnxOptions], emit: Emit) -> Path:
        from cellseg_microsam.export import export_onnx

        return export_onnx(job, emit)

    def bioimageio(job: ExportJob[PackageOptions], emit: Emit) -> Path:
        from cellseg_microsam.export import export_bioimageio

        return export_bioimageio(job, emit)

    yield ExporterSpec(
        name="micro-sam",
        summary="micro-SAM's own format, for its napari plugin and command line; read back by it",
        options=NativeOptions,
        export=native,
        backend="microsam",
    )
    yield ExporterSpec(
        name="onnx",
        summary="the decoder of masks as one ONNX file, checked in ONNX Runtime",
        options=OnnxOptions,
        export=onnx,
        backend="microsam",
    )
    yield ExporterSpec(
        name="bioimageio",
        summary="a bioimage.io package of encoder and decoder, tested offline",
        options=PackageOptions,
        export=bioimageio,
        backend="microsam",
    )


def _load(job: PredictJob[MicrosamPredictOptions]) -> Predictor:
    from cellseg_microsam.predict import load

    return load(job)


def _calibrate(job: CalibrateJob[MicrosamPredictOptions], emit: Emit) -> Mapping[str, object]:
    from cellseg_microsam.calibrate import calibrate

    return calibrate(job, emit)


def _embed(job: PredictJob[MicrosamPredictOptions]) -> Embedder:
    from cellseg_microsam.predict import load_embedder

    return load_embedder(job)
