"""Segment still images, and track movies, with a model that training left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg import PredictJob, Predictor, Segmentation, Tile
from cellseg.errors import ConfigError
from cellseg.specs import TrackerMaker
from cellseg.torch.devices import memory_errors, resolve_device
from cellseg_cellsam2.births import find_new
from cellseg_cellsam2.encoding import MEMORY_HINT, Encoder, blank
from cellseg_cellsam2.parts import Encoded
from cellseg_cellsam2.predict_options import CellSam2PredictOptions
from cellseg_cellsam2.stored import load as load_model
from cellseg_cellsam2.tracker import CellTracker

_ON_GPU, _ON_CPU = 64, 16
"""Objects that go through the network at once."""


def load(job: PredictJob[CellSam2PredictOptions]) -> Predictor:
    """A predictor of single planes, in which every cell is new.

    A batch is encoded in one call, each tile once. A tile without any contrast is background, and
    is not encoded.

    Raises:
        ConfigError: options that do nothing here, or no model.
        WeightsError: the weights are missing or damaged.
        DeviceError: the device is not there, or cannot compute in the precision.
    """
    if idle := job.options.of_tracks:
        raise ConfigError(
            f"{' and '.join(idle)}: nothing to do where nothing is tracked.", hint="Leave it out."
        )
    encoder, _ = opened(job.options, job.device, job.model)

    def predict(tiles: Sequence[Tile]) -> Sequence[Segmentation]:
        found = [Segmentation(np.zeros(tile.image.shape[1:], np.uint32)) for tile in tiles]
        seen = [index for index, tile in enumerate(tiles) if not blank(tile)]
        if seen:
            with _advice(tiles), encoder.arithmetic():
                encoded = encoder.encode([tiles[index].image for index in seen])
                for number, index in enumerate(seen):
                    found[index] = segmented(encoder, encoded, number, tiles[index], job.options)
        return found

    return predict


def track(job: PredictJob[CellSam2PredictOptions]) -> TrackerMaker:
    """Loads the model once; makes trackers that share it.

    Raises:
        ConfigError: no model, or one that has not learned to track.
        WeightsError, DeviceError: as for ``load``.
    """
    encoder, frames = opened(job.options, job.device, job.model)
    if frames == 1:
        raise ConfigError(
            "The model was trained with --num-frames 1, and has not learned to track.",
            hint="Segment frame by frame with --no-track, and link the labels with cellseg track.",
        )

    def make(state: Mapping[str, NDArray[Any]] | None) -> CellTracker:
        return CellTracker(encoder.model, job.options, encoder.scale, state)

    return make


def opened(options: CellSam2PredictOptions, device: str, model: Path | None) -> tuple[Encoder, int]:
    """The model in a directory, and how many frames it was trained to follow cells over.

    Raises:
        ConfigError: there is no model.
        WeightsError, DeviceError: as for ``load``.
    """
    if model is None:
        raise ConfigError(
            "cellsam2 has no published weights that know cells.",
            hint="Train a model with cellseg train --backend cellsam2, and give it as --model.",
        )
    where = resolve_device(device)
    network, description = load_model(model, where)
    network.requires_grad_(False)
    network.chunk = options.objects_per_batch or (_ON_GPU if where.type == "cuda" else _ON_CPU)
    return Encoder.of(network, description.scale, options), description.num_frames


def segmented(
    encoder: Encoder, encoded: Encoded, number: int, tile: Tile, options: CellSam2PredictOptions
) -> Segmentation:
    """The cells of one of the encoded tiles: labels ``(1, y, x)`` uint32, by falling score."""
    y, x = tile.image.shape[2:]
    nothing = np.zeros((y, x), bool)
    born = find_new(encoder.model, encoded, number, encoder.frame((y, x)), options, nothing)
    if born is None:
        return Segmentation(np.zeros((1, y, x), np.uint32))
    scores = {i: min(max(one.score, 0.0), 1.0) for i, one in enumerate(born.found.masks, 1)}
    return Segmentation(born.labels[None], scores)


def _advice(tiles: Sequence[Tile]) -> AbstractContextManager[None]:
    """Several tiles may be too many for the memory: then the caller tries fewer."""
    return memory_errors(MEMORY_HINT) if len(tiles) == 1 else nullcontext()
