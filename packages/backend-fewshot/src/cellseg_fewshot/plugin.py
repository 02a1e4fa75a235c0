"""The fewshot backend: its cards. Everything heavy is imported when a card is used."""

from __future__ import annotations

from collections.abc import Iterator

from cellseg import (
    Emit,
    PredictJob,
    Predictor,
    PredictorSpec,
    Tiling,
    Trained,
    TrainerSpec,
    TrainJob,
    hookimpl,
)
from cellseg_fewshot.diagnosis import checks
from cellseg_fewshot.encoder_names import published
from cellseg_fewshot.options import FewshotOptions
from cellseg_fewshot.predict_options import FewshotPredictOptions

_SUMMARY = "a handful of examples, no training: every similar object"
_TASKS = frozenset({"2d", "few-shot"})


@hookimpl
def cellseg_trainers() -> Iterator[TrainerSpec[FewshotOptions]]:
    """Learn from examples what to look for."""

    def train(job: TrainJob[FewshotOptions], emit: Emit) -> Trained:
        from cellseg_fewshot.learn import learn

        return learn(job, emit)

    yield TrainerSpec(
        name="fewshot",
        summary=_SUMMARY,
        options=FewshotOptions,
        train=train,
        tasks=_TASKS,
        examples=True,
        models=published(),
        aliases={"training_tag": "tag"},
    )


@hookimpl
def cellseg_predictors() -> Iterator[PredictorSpec[FewshotPredictOptions]]:
    """Find what is similar to the examples."""

    yield PredictorSpec(
        name="fewshot",
        summary=_SUMMARY,
        options=FewshotPredictOptions,
        checks=checks,
        load=_load,
        tasks=_TASKS,
        tiling=Tiling(core=(1, 1024, 1024), halo=(0, 64, 64)),
    )


def _load(job: PredictJob[FewshotPredictOptions]) -> Predictor:
    from cellseg_fewshot.predict import load

    return load(job)
