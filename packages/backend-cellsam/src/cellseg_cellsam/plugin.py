"""The cellsam backend: its cards. Everything heavy is imported when a card is used."""

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
from cellseg.specs import CalibrateJob
from cellseg.torch.sam.published import PUBLISHED
from cellseg_cellsam.diagnosis import checks
from cellseg_cellsam.export_options import OnnxOptions, SamOptions
from cellseg_cellsam.options import CellSamOptions
from cellseg_cellsam.predict_options import CellSamPredictOptions
from cellseg_cellsam.presets import PRESETS

_SUMMARY = "finds boxes of cells, then segments them; Segment Anything trained in two stages"
_ALIASES = {
    "total_epochs_s1": "stage1_epochs",
    "total_epochs_s2": "stage2_epochs",
    "k_folds": "folds",
}
"""Names that users of CellSAM's training module know."""


@hookimpl
def cellseg_trainers() -> Iterator[TrainerSpec[CellSamOptions]]:
    """Train the detector, then the masks."""

    def train(job: TrainJob[CellSamOptions], emit: Emit) -> Trained:
        from cellseg_cellsam.train import train

        return train(job, emit)

    yield TrainerSpec(
        name="cellsam",
        summary=_SUMMARY,
        options=CellSamOptions,
        train=train,
        models=tuple(PUBLISHED.values()),
        presets=PRESETS,
        aliases=_ALIASES,
        epochs=lambda options: options.wanted_epochs,
    )


@hookimpl
def cellseg_predictors() -> Iterator[PredictorSpec[CellSamPredictOptions]]:
    """Segment with a trained model."""

    yield PredictorSpec(
        name="cellsam",
        summary=_SUMMARY,
        options=CellSamPredictOptions,
        checks=checks,
        load=_load,
        calibrate=_calibrate,
        link_slices=True,
        tiling=Tiling(core=(1, 384, 384), halo=(0, 64, 64)),
    )


@hookimpl
def cellseg_exporters() -> Iterator[ExporterSpec[Any]]:
    """Write the model for other software."""

    def sam(job: ExportJob[SamOptions], emit: Emit) -> Path:
        from cellseg_cellsam.export import export_sam

        return export_sam(job, emit)

    def onnx(job: ExportJob[OnnxOptions], emit: Emit) -> Path:
        from cellseg_cellsam.export import export_onnx

        return export_onnx(job, emit)

    yield ExporterSpec(
        name="sam",
        summary="Segment Anything itself, without the detector, as its own tools read it",
        options=SamOptions,
        export=sam,
        backend="cellsam",
    )
    yield ExporterSpec(
        name="onnx",
        summary="two ONNX files, from images to boxes and from boxes to masks, checked",
        options=OnnxOptions,
        export=onnx,
        backend="cellsam",
    )


def _load(job: PredictJob[CellSamPredictOptions]) -> Predictor:
    from cellseg_cellsam.predict import load

    return load(job)


def _calibrate(job: CalibrateJob[CellSamPredictOptions], emit: Emit) -> Mapping[str, object]:
    from cellseg_cellsam.calibrate import calibrate

    return calibrate(job, emit)
