"""The vista2d backend: its cards. Everything heavy is imported when a card is used."""

from __future__ import annotations

from collections.abc import Iterator
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
from cellseg_vista.export_options import Pt2Options
from cellseg_vista.options import Vista2dOptions
from cellseg_vista.predict_options import Vista2dPredictOptions

_SUMMARY = "2D network with a foreground, a distance and an embedding head; trains from scratch"


@hookimpl
def cellseg_trainers() -> Iterator[TrainerSpec[Vista2dOptions]]:
    """Train from random weights."""

    def train(job: TrainJob[Vista2dOptions], emit: Emit) -> Trained:
        from cellseg_vista.train import train

        return train(job, emit)

    yield TrainerSpec(name="vista2d", summary=_SUMMARY, options=Vista2dOptions, train=train)


@hookimpl
def cellseg_predictors() -> Iterator[PredictorSpec[Vista2dPredictOptions]]:
    """Segment with a model that was trained before."""

    def load(job: PredictJob[Vista2dPredictOptions]) -> Predictor:
        from cellseg_vista.predict import load

        return load(job)

    yield PredictorSpec(
        name="vista2d",
        summary=_SUMMARY,
        options=Vista2dPredictOptions,
        load=load,
        # Multiples of 8, so that the coarse levels of the network see all tiles alike; the halo
        # covers what the network sees around a pixel.
        tiling=Tiling(core=(1, 1024, 1024), halo=(0, 96, 96)),
    )


@hookimpl
def cellseg_exporters() -> Iterator[ExporterSpec[Pt2Options]]:
    """Write the network as a PyTorch program that needs no cellseg."""

    def export(job: ExportJob[Pt2Options], emit: Emit) -> Path:
        from cellseg_vista.export import export

        return export(job, emit)

    yield ExporterSpec(
        name="pt2",
        summary="the network as a torch.export program; its outputs are checked",
        options=Pt2Options,
        export=export,
        backend="vista2d",
    )
