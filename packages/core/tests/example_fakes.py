"""A backend that learns from examples: what is as bright as they are, and not as what is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np
from pydantic import Field

import cellseg as cs
from cellseg.errors import ConfigError, InterruptedRunError
from cellseg.files import write_atomic


class ShownOptions(cs.Options):
    margin: float = Field(0.25, ge=0)
    """How much darker an object may be than the darkest example, as a part of it."""
    refuse: bool = False
    """Whether to refuse before the first step."""


class ShownPredictOptions(cs.Options):
    scored: bool = False
    """Whether to give scores."""


def learn(job: cs.TrainJob[ShownOptions], emit: cs.Emit) -> cs.Trained:
    """Writes what it was given, and the lowest mean brightness of an example."""
    assert not job.train and not job.val and job.epochs in (0, 1)
    if job.options.refuse:
        raise ConfigError("--refuse: refused.")
    log = job.model / "calls.txt"
    if job.interrupted():
        (job.checkpoint / "state").write_text("here")
        raise InterruptedRunError("Stopped.")
    seen, means = [], {}
    for image in job.examples:
        for one in image.examples:
            z, y, x = one.corner
            shape = (1, 1) if one.mask is None else one.mask.shape
            window = slice(z, z + 1), slice(y, y + shape[0]), slice(x, x + shape[1])
            pixels = image.sample.image[(slice(0, 1), *window)][0, 0]
            mean = float(pixels[one.mask].mean() if one.mask is not None else pixels.mean())
            means.setdefault(one.kind, []).append(mean)
            seen.append([image.sample.name, one.kind, one.positive, *one.corner, *shape])
    emit(cs.Progress(1, 1))
    found = {
        "means": {str(kind): sorted(values) for kind, values in sorted(means.items())},
        "margin": job.options.margin,
        "seen": seen,
        "classes": list(job.classes),
    }
    write_atomic(job.model / "shown.json", json.dumps(found))
    write_atomic(job.checkpoint / "state", "done")
    emit(cs.Checkpointed(1))
    assert not log.exists()
    return cs.Trained(classes=job.classes)


def load(job: cs.PredictJob[ShownPredictOptions]) -> cs.Predictor:
    """Connected pixels that are about as bright as the darkest example of a class."""
    import cc3d

    if job.model is None:
        raise ConfigError("shown needs a model.")
    known = json.loads((job.model / "shown.json").read_text())
    positive = {int(kind): min(v) for kind, v in known["means"].items() if kind != "0"}
    negative = min(known["means"].get("0", [np.inf]))
    lowest = min(positive.values())

    def segment(tile: cs.Tile) -> cs.Segmentation:
        mask = tile.image[0] > lowest * (1 - known["margin"])
        mask &= tile.image[0] < negative * 0.9
        labels = cc3d.connected_components(mask, connectivity=26)
        ids = np.unique(labels[labels > 0]).tolist()
        scores = {i: 0.5 for i in ids} if job.options.scored else {}
        classes = {i: 1 for i in ids} if known["classes"] else {}
        return cs.Segmentation(labels, scores, classes)

    def predict(tiles: Sequence[cs.Tile]) -> Sequence[cs.Segmentation]:
        return [segment(tile) for tile in tiles]

    return predict


@cs.hookimpl
def cellseg_trainers():
    yield cs.TrainerSpec(
        name="shown",
        summary="Learn from examples",
        options=ShownOptions,
        train=learn,
        examples=True,
        aliases={"training_tag": "tag"},
    )


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(
        name="shown",
        summary="Find what is as bright",
        options=ShownPredictOptions,
        load=load,
        tiling=cs.Tiling((1, 64, 64), (0, 16, 16)),
    )


def plugins() -> cs.plugins.Plugins:
    from cellseg.plugins import Plugins

    found = Plugins(installed=())
    found.register(sys.modules[__name__], "fakes")
    return found
