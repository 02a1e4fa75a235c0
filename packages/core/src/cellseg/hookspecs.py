"""The four hooks. A plugin implements those it has something to offer for.

Name the module that implements them in your ``pyproject.toml``:

    [project.entry-points.cellseg]
    mybackend = "my_package.plugin"

Give a trainer and a predictor the name of the entry point: cellseg imports your module only when
that name is asked for. ``examples/cellseg-otsu`` is a complete plugin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy

from cellseg.specs import DatasetSpec, ExporterSpec, PredictorSpec, TrainerSpec

PROJECT = "cellseg"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def cellseg_datasets() -> Iterable[DatasetSpec[Any]]:  # type: ignore[empty-body]
    """Offer ways to read images: ``yield DatasetSpec(name="nd2", open=..., recognises=...)``."""


@hookspec
def cellseg_trainers() -> Iterable[TrainerSpec[Any]]:  # type: ignore[empty-body]
    """Offer ways to train a model: ``yield TrainerSpec(name="mybackend", train=train, ...)``."""


@hookspec
def cellseg_predictors() -> Iterable[PredictorSpec[Any]]:  # type: ignore[empty-body]
    """Offer ways to segment images: ``yield PredictorSpec(name="mybackend", load=load, ...)``."""


@hookspec
def cellseg_exporters() -> Iterable[ExporterSpec[Any]]:  # type: ignore[empty-body]
    """Offer formats for trained models: ``yield ExporterSpec(name="onnx", export=export, ...)``."""
