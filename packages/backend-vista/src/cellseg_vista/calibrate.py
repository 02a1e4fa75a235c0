"""Find the thresholds of the prediction that score best on the validation patches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg.metrics import THRESHOLDS, Tally, overlaps, tally
from cellseg.torch.devices import resolve_device
from cellseg_vista.instances import PixelMaps, find_instances
from cellseg_vista.learner import pixel_maps
from cellseg_vista.network import Network
from cellseg_vista.patches import ValidationPatches
from cellseg_vista.predict_options import Vista2dPredictOptions

_TRIED: Mapping[str, tuple[float, ...]] = {
    "seed_threshold": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "foreground_threshold": (0.3, 0.4, 0.5, 0.6, 0.7),
    "bandwidth": (0.0, 0.5, 0.75, 1.0, 1.5),
    "min_size": (0, 15, 30, 60, 120),
}
_ROUNDS = 2
_WORTH = 0.01
"""What another value must gain: validation images are few, and smaller gains mostly their luck."""
Pair = tuple[PixelMaps, NDArray[np.integer]]


def calibrate(network: Network, patches: ValidationPatches, device: str) -> dict[str, object]:
    """The best ``Vista2dPredictOptions``, one after the other, each in turn.

    The score is the mean of the F1 at an IoU of 0.5 and of its mean over ``THRESHOLDS``, pooled
    over all patches. A value that gains next to nothing does not replace the one before.

    Args:
        network: trained.
        patches: from the validation images.
        device: where to run the network.
    """
    return search(_predict(network, patches, device)).model_dump()


def search(pairs: list[Pair]) -> Vista2dPredictOptions:
    """The best options for pairs of the network's maps and true labels ``(y, x)``."""
    best = Vista2dPredictOptions()
    score = _score(pairs, best)
    for _ in range(_ROUNDS):
        before = best
        for name, values in _TRIED.items():
            tried = [best.model_copy(update={name: value}) for value in values]
            scores = [_score(pairs, options) for options in tried]
            if max(scores) > score + _WORTH:
                score = max(scores)
                best = tried[scores.index(score)]
        if best == before:
            break
    return best


def _predict(network: Network, patches: ValidationPatches, device: str) -> list[Pair]:
    network = network.eval().to(where := resolve_device(device))
    pairs = []
    with torch.inference_mode():
        for index in range(len(patches)):
            item = patches[index]
            (maps,) = pixel_maps(network(item["image"].to(where)))
            pairs.append((maps, item["labels"][0].numpy()))
    network.to("cpu")
    return pairs


def _score(pairs: list[Pair], options: Vista2dPredictOptions) -> float:
    total = Tally(
        thresholds=THRESHOLDS,
        matched=(0,) * len(THRESHOLDS),
        matched_iou=(0.0,) * len(THRESHOLDS),
    )
    for maps, truth in pairs:
        total += tally(overlaps(find_instances(maps, options)[0], truth))
    objects = total.n_true + total.n_pred
    mean = sum(total.matched) / len(THRESHOLDS)
    return (total.matched[0] + mean) / objects if objects else 0.0
