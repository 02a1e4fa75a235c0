"""Scores a model on labelled images: the prediction stays in memory, and nothing is left on disk.

It is what ``cellseg predict --model`` and then ``cellseg evaluate`` say of the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cellseg.bundle import Bundle
from cellseg.data import Dataset, LazyArray, Sample
from cellseg.engine.items import Item, Recipe, make_items
from cellseg.engine.run import Prediction, Share
from cellseg.errors import DataError, PartialError
from cellseg.events import Emit
from cellseg.metrics import Scores, Tally, score
from cellseg.options import NoOptions, parse, unaliased
from cellseg.outputs.result import Result
from cellseg.plugins import Plugins
from cellseg.specs import DatasetSpec, PredictJob
from cellseg.workflows.evaluate import tally_arrays
from cellseg.workflows.evaluate_settings import EvaluateSettings
from cellseg.workflows.evaluate_text import mean_of
from cellseg.workflows.models import check_images, is_volumetric, predictor_for, tiling_for
from cellseg.workflows.predict_objects import normaliser_of, refinement_of
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.predict_tracking import tracked


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The scores of a model, named as in ``cellseg.metrics.score``: ``f1@0.50``, ``ctc_seg``."""

    scores: Mapping[str, float]
    """Of all objects and voxels of all images together: ratios of sums, not means of ratios."""
    per_image: Mapping[str, Mapping[str, float]]
    """The scores of each image, by the name of its sample, in the order of the samples; each frame
    of a movie is an image. NaN where nothing can be measured."""
    mean: Mapping[str, float] = field(default_factory=dict)
    """Means over the images, as ``Evaluation.mean``: images without any object, true or predicted,
    are left out."""


def judge(
    plugins: Plugins,
    model: Path,
    samples: Dataset,
    *,
    options: Mapping[str, object] | None = None,
    device: str = "auto",
    settings: EvaluateSettings | None = None,
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Judged:
    """Segment labelled images with a model, and score the labels against theirs.

    Tiles, halos, stitching, tracking and normalisation are those of ``cellseg predict --model``
    with no other flag; the scores are those of ``cellseg evaluate``.

    Args:
        plugins: where to find the backend.
        model: a run or a model.
        samples: as a reader gives them (not normalised), with labels; parts of volumes are images
            of their own. A movie that the backend tracks is tracked over the frames that are there.
        options: of the predictor; they go before those that were calibrated with the model.
        device: where to compute.
        settings: thresholds, and what to leave out of the scores.
        emit: gets a Progress for each tile, and a Failed for each that could not be done.
        interrupted: asked after each tile; True means stop.

    Raises:
        DataError: there are no samples, two have one name, one has no labels or no pixels, or
            their channels are not those of the model.
        ConfigError: an option is unknown or not allowed.
        PartialError: some tiles failed; then there are no scores.
        InterruptedRunError: stopped.
        CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
    """
    rules = settings or EvaluateSettings()
    truth = _truth(samples)
    tallies: dict[str, Tally] = {}

    def take(item: Item, result: Result) -> None:
        for sample, found in zip(item.frames, result.frames, strict=True):
            tallies[sample.name] = tally_arrays(found, truth[sample.name], rules)

    with TemporaryDirectory(prefix="cellseg-judge-") as work:
        recipe, items = _resolved(plugins, model, samples, options or {}, device, Path(work))
        prediction = Prediction(recipe, items, Share(), emit, interrupted, take)
        prediction.load()
        try:
            prediction.run()
        except PartialError as error:  # whose hint is of a prediction that can be resumed
            raise PartialError(f"{model} cannot be judged: {error}") from error
    ordered = {name: tallies[name] for name in truth}
    per_image = {name: score([one]) for name, one in ordered.items()}
    return Judged(
        scores=score(ordered.values()),
        per_image=per_image,
        mean=mean_of_images(list(per_image.values())),
    )


def mean_of_images(images: Sequence[Scores]) -> Scores:
    """The mean of each score, over the images that have any object, true or predicted, and it."""
    there = [one for one in images if one["n_true"] or one["n_pred"]]
    return mean_of(there, images[0]) if images else {}


def lower_is_better(name: str) -> bool:
    """Whether a score of this name counts errors."""
    return name in ("are", "voi_split", "voi_merge") or name.startswith(("fp@", "fn@"))


def _truth(samples: Sequence[Sample]) -> dict[str, LazyArray]:
    truth: dict[str, LazyArray] = {}
    for sample in samples:
        if sample.labels is None:
            raise DataError(f"{sample.name} has no labels to judge a model by.")
        if sample.name in truth:
            raise DataError(f"Two images are called {sample.name!r}.")
        truth[sample.name] = sample.labels
    return truth


def _resolved(
    plugins: Plugins,
    model: Path,
    samples: Dataset,
    options: Mapping[str, object],
    device: str,
    work: Path,
) -> tuple[Recipe, list[Item]]:
    """What ``cellseg predict --model`` does with images, as it does it when no flag is given."""
    directory, bundle = Bundle.find(model)
    settings = PredictSettings(model=model, device=device)
    predictor = predictor_for(plugins, settings, bundle)
    check_images(samples, model, bundle)
    volumetric = is_volumetric(predictor, bundle)
    wanted = predictor.options.over(bundle.predict, unaliased(options, predictor.aliases))
    tiling = tiling_for(settings, bundle, predictor, volumetric)
    here: DatasetSpec[Any] = DatasetSpec(
        name="in-memory",
        summary="Images that are open already",
        open=lambda path, reading, labelled: samples,
        recognises=lambda path: False,
    )
    recipe = Recipe(
        predictor=predictor,
        job=PredictJob(
            options=parse(predictor.options, wanted, predictor.name),
            device=device,
            model=directory,
        ),
        reader=here,
        images=model,
        reader_options=NoOptions(),
        normaliser=normaliser_of(settings, bundle),
        tiling=tiling,
        volumetric=volumetric,
        stitch_overlap=settings.stitch_overlap,
        classes=bundle.classes,
        work=work,
        refinement=refinement_of(settings, predictor, volumetric),
    )
    items = tracked(settings, predictor, make_items(samples, tiling, volumetric))
    return recipe, [replace(item, outputs=()) for item in items]
