"""A complete cellseg backend: learns one threshold, labels what is above it."""

import json

from pydantic import Field

import cellseg as cs


class OtsuOptions(cs.Options):
    sigma: float = Field(1.0, ge=0)
    """Width of the Gaussian blur applied first, in pixels."""
    min_size: int = Field(20, ge=0)
    """Objects of fewer pixels are dropped."""


def train(job: cs.TrainJob[OtsuOptions], emit: cs.Emit) -> cs.Trained:
    from skimage.filters import threshold_otsu

    from cellseg.files import write_atomic

    state = job.checkpoint / "state.json"
    seen = json.loads(state.read_text()) if state.exists() else []
    total = job.epochs * len(job.train)
    for step in range(len(seen), total):
        sample = job.train[step % len(job.train)]
        seen.append(float(threshold_otsu(sample.image[:, :, :, :])))
        emit(cs.Progress(step + 1, total, {"train/threshold": seen[-1]}))
        write_atomic(state, json.dumps(seen))
        emit(cs.Checkpointed(step + 1))
        if job.interrupted():
            raise cs.InterruptedRunError("Stopped; the state is saved.")
    write_atomic(job.model / "threshold.json", json.dumps(sum(seen) / len(seen) if seen else 0.5))
    return cs.Trained()


def load(job: cs.PredictJob[OtsuOptions]) -> cs.Predictor:
    from skimage.filters import gaussian
    from skimage.measure import label
    from skimage.morphology import remove_small_objects

    threshold = json.loads((job.model / "threshold.json").read_text()) if job.model else 0.5

    def segment(tile: cs.Tile) -> cs.Segmentation:
        blurred = gaussian(tile.image[0], (0, job.options.sigma, job.options.sigma))
        cells = label(blurred > threshold)
        return cs.Segmentation(remove_small_objects(cells, max_size=job.options.min_size - 1))

    return lambda tiles: [segment(tile) for tile in tiles]


def checks():
    from cellseg.diagnosis import needed

    yield needed("scikit-image", "skimage")


@cs.hookimpl
def cellseg_trainers():
    yield cs.TrainerSpec(name="otsu", summary="Learn a threshold", options=OtsuOptions, train=train)


@cs.hookimpl
def cellseg_predictors():
    yield cs.PredictorSpec(
        name="otsu",
        summary="Threshold and label",
        options=OtsuOptions,
        checks=checks,
        load=load,
    )
