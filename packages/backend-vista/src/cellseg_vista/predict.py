"""Segment tiles with a trained vista model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch  # noqa: TID253

from cellseg import PredictJob, Predictor, Segmentation, Tile
from cellseg.data import Image
from cellseg.errors import ConfigError, DataError, WeightsError
from cellseg.torch.devices import memory_errors, resolve_device
from cellseg_vista.description import Description
from cellseg_vista.instances import PixelMaps, find_instances, pixel_maps
from cellseg_vista.network import Network
from cellseg_vista.predict_options import VistaPredictOptions
from cellseg_vista.windows import segment_windows


def load(job: PredictJob[VistaPredictOptions], dims: int) -> Predictor:
    """A predictor of single planes or of volumes.

    A volume may be one plane deep. A tile without any contrast is background. Voxels count as those
    of the training images: the thresholds were found on them, and many files give no size.

    Args:
        job: with a model, the directory that training left.
        dims: 2 for vista2d, 3 for vista3d.

    Raises:
        WeightsError: there is no model, or it is damaged or of the other backend.
        ConfigError: the model has no class of the number ``class_id``.
        DeviceError: the device is not there.
    """
    name = f"vista{dims}d"
    if job.model is None:
        raise WeightsError(
            f"{name} has no published weights: train a model first.",
            hint=f"cellseg train --backend {name} IMAGES --output run",
        )
    device = resolve_device(job.device)
    described = Description.load(job.model)
    classes = described.classes
    network = Network.load(job.model).to(device)
    architecture = network.architecture
    spaced = len(described.spacing) in (0, dims)
    if architecture.dims != dims or len(classes) > architecture.num_classes or not spaced:
        raise WeightsError(
            f"{job.model} holds a network of {architecture.dims} dimensions and"
            f" {architecture.num_classes} classes, which is no {name} of {len(classes)} classes.",
            hint="The directory is damaged, or was put together by hand: train again.",
        )
    options = job.options
    if options.class_id is not None and options.class_id >= len(classes):
        known = ", ".join(f"{i} {name}" for i, name in enumerate(classes) if i)
        raise ConfigError(f"--class-id {options.class_id}: the model's classes are {known}.")

    def look(images: Image) -> list[PixelMaps]:
        """Maps of images ``(n, c, z, y, x)``."""
        if dims == 2:
            images = images[:, :, 0]
        mixed = torch.autocast(device.type, torch.bfloat16, options.precision == "bf16-mixed")
        hint = "Use smaller tiles: --tile-size, --tile-depth."
        with torch.inference_mode(), memory_errors(hint), mixed:
            maps = network(torch.from_numpy(np.ascontiguousarray(images)).to(device))
            return pixel_maps(maps, len(classes))

    def predict(tiles: Sequence[Tile]) -> Sequence[Segmentation]:
        for tile in tiles:
            _check(tile, architecture.channels, dims)
        seeing = [tile.image.min() < tile.image.max() for tile in tiles]
        if options.patch_size is None and any(seeing):
            shown = [tile.image for tile, sees in zip(tiles, seeing, strict=True) if sees]
            maps = iter(look(np.stack(shown)))
        results = []
        for tile, sees in zip(tiles, seeing, strict=True):
            shape, spacing = tile.image.shape[1:], described.spacing or tile.spacing[3 - dims :]
            if not sees:
                found = _nothing(shape, len(classes))
            elif options.patch_size is not None:
                found = segment_windows(
                    tile.image, lambda image: look(image[None])[0], options, spacing
                )
            else:
                seen = next(maps)
                objects = find_instances(seen, options, spacing)
                found = Segmentation(
                    objects.labels.reshape(shape),
                    objects.scores,
                    objects.classes,
                    seen.probabilities.reshape(-1, *shape),
                )
            results.append(
                Segmentation(
                    found.labels,
                    found.scores,
                    found.classes if len(classes) > 2 else {},
                    found.probabilities if job.probabilities else None,
                )
            )
        return results

    return predict


def _check(tile: Tile, channels: int, dims: int) -> None:
    if tile.image.shape[0] != channels:
        raise DataError(
            f"This model was trained on {channels} channels, not {tile.image.shape[0]}.",
            hint="Choose the same channels with --channels.",
        )
    if dims == 2 and tile.image.shape[1] != 1:
        raise DataError(
            f"vista2d segments single planes, not volumes of {tile.image.shape[1]} planes."
        )


def _nothing(shape: tuple[int, ...], classes: int) -> Segmentation:
    """Background alone, for certain."""
    probabilities = np.zeros((classes, *shape), np.float32)
    probabilities[0] = 1
    return Segmentation(np.zeros(shape, np.int32), {}, {}, probabilities)
