"""The cellsam2 backend: its cards. Everything heavy is imported when a card is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

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
from cellseg.specs import CalibrateJob, TrackerMaker
from cellseg.torch.sam2.sizes import PUBLISHED
from cellseg_cellsam2.diagnosis import checks
from cellseg_cellsam2.export_options import Sam2Options
from cellseg_cellsam2.options import CellSam2Options
from cellseg_cellsam2.predict_options import CellSam2PredictOptions
from cellseg_cellsam2.presets import PRESETS

_SUMMARY = "SAM 2 that segments and tracks cells, divisions included"
_ALIASES = {
    "num_epochs": "epochs",
    "gradient_clip": "clip",
    "loss_mask": "mask_weight",
    "loss_dice": "dice_weight",
    "loss_iou": "iou_weight",
    "loss_class": "class_weight",
    "loss_div": "division_weight",
    "loss_heatmap": "heatmap_weight",
    "num_correction_pt_per_frame": "correction_points",
    "prob_to_use_box_input": "box_probability",
}
"""Names that users of CellSAM2 know."""


@hookimpl
def cellseg_trainers() -> Iterator[TrainerSpec[CellSam2Options]]:
    """Fine-tune a published model, or train a small one."""

    def train(job: TrainJob[CellSam2Options], emit: Emit) -> Trained:
        from cellseg_cellsam2.train import train

        return train(job, emit)

    yield TrainerSpec(
        name="cellsam2",
        summary=_SUMMARY,
        options=CellSam2Options,
        train=train,
        tasks=frozenset({"2d", "tracking"}),
        models=tuple(PUBLISHED.values()),
        presets=PRESETS,
        aliases=_ALIASES,
    )


@hookimpl
def cellseg_predictors() -> Iterator[PredictorSpec[CellSam2PredictOptions]]:
    """Segment images and track movies with a trained model."""

    yield PredictorSpec(
        name="cellsam2",
        summary=_SUMMARY,
        options=CellSam2PredictOptions,
        checks=checks,
        load=_load,
        track=_track,
        calibrate=_calibrate,
        tasks=frozenset({"2d", "tracking"}),
        link_slices=True,
        tiling=Tiling(core=(1, 384, 384), halo=(0, 64, 64)),
    )


@hookimpl
def cellseg_exporters() -> Iterator[ExporterSpec[Sam2Options]]:
    """Write the model for SAM 2's own tools."""

    def sam2(job: ExportJob[Sam2Options], emit: Emit) -> Path:
        from cellseg_cellsam2.export import export_sam2

        return export_sam2(job, emit)

    yield ExporterSpec(
        name="sam2",
        summary="a checkpoint of SAM 2.1, for its own predictors; read back by it",
        options=Sam2Options,
        export=sam2,
        backend="cellsam2",
    )


def _load(job: PredictJob[CellSam2PredictOptions]) -> Predictor:
    from cellseg_cellsam2.predict import load

    return load(job)


def _track(job: PredictJob[CellSam2PredictOptions]) -> TrackerMaker:
    from cellseg_cellsam2.predict import track

    return track(job)


def _calibrate(job: CalibrateJob[CellSam2PredictOptions], emit: Emit) -> Mapping[str, object]:
    from cellseg_cellsam2.calibrate import calibrate

    return calibrate(job, emit)
