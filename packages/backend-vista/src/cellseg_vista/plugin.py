"""The vista backends: their cards. Everything heavy is imported when a card is used."""

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
from cellseg_vista.diagnosis import checks
from cellseg_vista.export_options import (
    BioimageioOptions,
    OnnxOptions,
    Pt2Options,
    TorchscriptOptions,
)
from cellseg_vista.options import Vista2dOptions, Vista3dOptions
from cellseg_vista.predict_options import Vista2dPredictOptions, Vista3dPredictOptions
from cellseg_vista.presets import PRESETS_2D, PRESETS_3D
from cellseg_vista.published import VISTA3D

_2D = "2D network with class, distance and embedding heads; trains from scratch"
_3D = "3D network for volumes, nuclei to neurites: class, distance and embedding heads"


@hookimpl
def cellseg_trainers() -> Iterator[TrainerSpec[Vista2dOptions] | TrainerSpec[Vista3dOptions]]:
    """Train from random weights, or from a VISTA3D encoder."""

    def train_2d(job: TrainJob[Vista2dOptions], emit: Emit) -> Trained:
        from cellseg_vista.train import train

        return train(job, emit, 2)

    def train_3d(job: TrainJob[Vista3dOptions], emit: Emit) -> Trained:
        from cellseg_vista.train import train

        return train(job, emit, 3)

    yield TrainerSpec(
        name="vista2d", summary=_2D, options=Vista2dOptions, train=train_2d, presets=PRESETS_2D
    )
    yield TrainerSpec(
        name="vista3d",
        summary=_3D,
        options=Vista3dOptions,
        train=train_3d,
        tasks=frozenset({"3d"}),
        models=(VISTA3D,),
        presets=PRESETS_3D,
    )


@hookimpl
def cellseg_predictors() -> Iterator[
    PredictorSpec[Vista2dPredictOptions] | PredictorSpec[Vista3dPredictOptions]
]:
    """Segment with a model that was trained before."""

    yield PredictorSpec(
        name="vista2d",
        summary=_2D,
        options=Vista2dPredictOptions,
        checks=checks,
        load=_load_2d,
        calibrate=_calibrate_2d,
        # Multiples of 32, so that the coarse levels of up to 6 see all tiles alike; the halo covers
        # what the default network sees around a pixel.
        tiling=Tiling(core=(1, 1024, 1024), halo=(0, 96, 96)),
        probabilities=True,
    )
    yield PredictorSpec(
        name="vista3d",
        summary=_3D,
        options=Vista3dPredictOptions,
        checks=checks,
        load=_load_3d,
        calibrate=_calibrate_3d,
        tiling=Tiling(core=(128, 128, 128), halo=(16, 16, 16)),
        tasks=frozenset({"3d"}),
        probabilities=True,
    )


@hookimpl
def cellseg_exporters() -> Iterator[ExporterSpec[Any]]:
    """Write the network in a form that needs no cellseg."""

    def pt2(job: ExportJob[Pt2Options], emit: Emit) -> Path:
        from cellseg_vista.export import export_pt2

        return export_pt2(job, emit)

    def torchscript(job: ExportJob[TorchscriptOptions], emit: Emit) -> Path:
        from cellseg_vista.export import export_torchscript

        return export_torchscript(job, emit)

    def onnx(job: ExportJob[OnnxOptions], emit: Emit) -> Path:
        from cellseg_vista.export import export_onnx

        return export_onnx(job, emit)

    def bioimageio(job: ExportJob[BioimageioOptions], emit: Emit) -> Path:
        from cellseg_vista.export import export_bioimageio

        return export_bioimageio(job, emit)

    for backend in ("vista2d", "vista3d"):
        yield ExporterSpec(
            name="pt2",
            summary="the network as a torch.export program; its outputs are checked",
            options=Pt2Options,
            export=pt2,
            backend=backend,
        )
        yield ExporterSpec(
            name="torchscript",
            summary="the network as TorchScript, which PyTorch calls deprecated; checked likewise",
            options=TorchscriptOptions,
            export=torchscript,
            backend=backend,
        )
        yield ExporterSpec(
            name="onnx",
            summary="the network as one ONNX file, checked in ONNX Runtime",
            options=OnnxOptions,
            export=onnx,
            backend=backend,
        )
        yield ExporterSpec(
            name="bioimageio",
            summary="a bioimage.io model package, tested offline",
            options=BioimageioOptions,
            export=bioimageio,
            backend=backend,
        )


def _load_2d(job: PredictJob[Vista2dPredictOptions]) -> Predictor:
    from cellseg_vista.predict import load

    return load(job, 2)


def _load_3d(job: PredictJob[Vista3dPredictOptions]) -> Predictor:
    from cellseg_vista.predict import load

    return load(job, 3)


def _calibrate_2d(job: CalibrateJob[Vista2dPredictOptions], emit: Emit) -> Mapping[str, object]:
    from cellseg_vista.recalibrate import recalibrate

    return recalibrate(job, emit, 2)


def _calibrate_3d(job: CalibrateJob[Vista3dPredictOptions], emit: Emit) -> Mapping[str, object]:
    from cellseg_vista.recalibrate import recalibrate

    return recalibrate(job, emit, 3)
