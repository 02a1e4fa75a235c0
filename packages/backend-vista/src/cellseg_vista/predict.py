"""Segment tiles with a trained vista2d model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch  # noqa: TID253

from cellseg import PredictJob, Predictor, Segmentation, Tile
from cellseg.errors import DataError, WeightsError
from cellseg.torch.devices import memory_errors, resolve_device
from cellseg_vista.instances import find_instances
from cellseg_vista.learner import pixel_maps
from cellseg_vista.network import Network
from cellseg_vista.predict_options import Vista2dPredictOptions


def load(job: PredictJob[Vista2dPredictOptions]) -> Predictor:
    """A predictor of single planes."""
    if job.model is None:
        raise WeightsError(
            "vista2d has no published weights: train a model first.",
            hint="cellseg train --backend vista2d IMAGES --output run",
        )
    device = resolve_device(job.device)
    network = Network.load(job.model).to(device)
    channels = network.architecture.channels

    def predict(tiles: Sequence[Tile]) -> Sequence[Segmentation]:
        images = np.stack([tile.image for tile in tiles])
        if images.shape[1] != channels:
            raise DataError(
                f"This model was trained on {channels} channels, not {images.shape[1]}.",
                hint="Choose the same channels with --channels.",
            )
        if images.shape[2] != 1:
            raise DataError("vista2d segments single planes, not volumes.")
        with torch.inference_mode(), memory_errors("Use smaller tiles: --tile-size 512."):
            maps = network(torch.from_numpy(np.ascontiguousarray(images[:, :, 0])).to(device))
        results = []
        for image, plane in zip(images, pixel_maps(maps), strict=True):
            if image.min() == image.max():  # without contrast there is nothing to see
                results.append(Segmentation(np.zeros(image.shape[1:], np.int32)))
                continue
            labels, scores = find_instances(plane, job.options)
            results.append(Segmentation(labels[None], scores))
        return results

    return predict
