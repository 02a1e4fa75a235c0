"""Segment tiles, and describe them, with a model of micro-SAM's kind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg import PredictJob, Predictor, Segmentation, Tile
from cellseg.data import Features
from cellseg.errors import ConfigError
from cellseg.specs import Embedder
from cellseg.torch.devices import memory_errors
from cellseg_microsam import ais, amg, apg, prompted
from cellseg_microsam.encoding import MEMORY_HINT, Encoder
from cellseg_microsam.predict_options import MicrosamPredictOptions, Mode
from cellseg_microsam.prompted import Prompted
from cellseg_microsam.thresholds import Resolved, resolve


def load(job: PredictJob[MicrosamPredictOptions]) -> Predictor:
    """A predictor of single planes.

    A batch is encoded in one call, each tile once. Without prompts, a tile without any contrast is
    background, and is not encoded; with them, one without any prompt is not.

    Raises:
        ConfigError: options that exclude each other, that do nothing, or that the model cannot do.
        WeightsError: the weights are missing or damaged.
        DeviceError: the device is not there, or cannot compute in the precision.
    """
    options = job.options
    encoder = Encoder.open(options, job.device, job.model)
    mode = encoder.mode(options)
    device = encoder.model.device.type
    ways: dict[Mode, Resolved] = {
        way: resolve(options, way, encoder.model_type, device) for way in (mode, "prompts")
    }

    def mode_of(tile: Tile) -> Mode:
        if tile.prompts is None:
            if mode == "prompts":
                raise ConfigError(
                    "--segmentation-mode prompts: there are none.",
                    hint="Give a file of points or boxes: --prompts.",
                )
            if options.segmentation_mode == "auto" and (idle := options.unused(mode)):
                raise ConfigError(
                    f"{' and '.join(idle)}: nothing to do without --prompts, as the model segments"
                    f" by {mode} then.",
                )
            return mode
        if options.segmentation_mode not in ("auto", "prompts"):
            raise ConfigError(
                f"--prompts: with --segmentation-mode {mode} they do nothing.",
                hint="Add --segmentation-mode prompts.",
            )
        if idle := options.unused("prompts"):
            raise ConfigError(f"{' and '.join(idle)}: nothing to do with --prompts.")
        encoder.check_answers("--prompts")
        return "prompts"

    def predict(tiles: Sequence[Tile]) -> Sequence[Segmentation]:
        modes = [mode_of(tile) for tile in tiles]
        seen = [
            bool(tile.prompts) if way == "prompts" else bool(tile.image.min() < tile.image.max())
            for tile, way in zip(tiles, modes, strict=True)
        ]
        shown = [tile for tile, sees in zip(tiles, seen, strict=True) if sees]
        with torch.inference_mode(), _advice(tiles):
            embeddings = iter(encoder.encode(shown) if shown else ())
            return [
                _found(encoder, next(embeddings)[None], tile, ways[way])
                if sees
                else Segmentation(np.zeros(tile.image.shape[1:], np.uint32))
                for tile, way, sees in zip(tiles, modes, seen, strict=True)
            ]

    return predict


def decoded(encoder: Encoder, embedding: Tensor, tile: Tile) -> NDArray[np.float32]:
    """The decoder's maps ``(3, y, x)`` of one tile."""
    maps = encoder.model.maps(embedding, encoder.frame(tile))[0]
    found: NDArray[np.float32] = maps.float().cpu().numpy()
    return found


def _found(encoder: Encoder, embedding: Tensor, tile: Tile, options: Resolved) -> Segmentation:
    if options.mode == "ais":
        labels, scores = ais.find_instances(decoded(encoder, embedding, tile), options)
        return Segmentation(labels[None], scores)
    image = Prompted(encoder.model, embedding, encoder.frame(tile), options)
    if options.mode == "apg":
        return apg.find_instances(image, decoded(encoder, embedding, tile))
    if options.mode == "amg":
        return amg.find_instances(image)
    return prompted.find_instances(image, tile.prompts or ())


def _advice(tiles: Sequence[Tile]) -> AbstractContextManager[None]:
    """Several tiles may be too many for the memory: then the caller tries fewer."""
    return memory_errors(MEMORY_HINT) if len(tiles) == 1 else nullcontext()


def load_embedder(job: PredictJob[MicrosamPredictOptions]) -> Embedder:
    """What gives the embedding of each tile, without the part that shows only padding.

    Raises:
        ConfigError, WeightsError, DeviceError: as for ``load``; all options that say how to find
            objects do nothing here.
    """
    if idle := job.options.unused():
        raise ConfigError(
            f"{' and '.join(idle)}: nothing to do with embeddings of objects, which are known.",
            hint="Leave it out; the objects are those of the labels.",
        )
    encoder = Encoder.open(job.options, job.device, job.model)

    def embed(tiles: Sequence[Tile]) -> Sequence[Features]:
        if not tiles:
            return []
        frame = encoder.frame(tiles[0])
        with torch.inference_mode(), _advice(tiles):
            embeddings = encoder.encode(tiles).cpu().numpy()
        cell = frame.side / embeddings.shape[-1]
        y, x = (int(np.ceil(length / cell)) for length in frame.scaled)
        step = (1.0, cell / frame.factor[0], cell / frame.factor[1])
        return [Features(one[:, None, :y, :x].copy(), step) for one in embeddings]

    return embed
