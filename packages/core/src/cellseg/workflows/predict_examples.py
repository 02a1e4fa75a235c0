"""What ``cellseg predict --examples`` learns before it segments anything, and where it keeps it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.bundle import FILE as BUNDLE_FILE
from cellseg.bundle import Bundle
from cellseg.engine.state import WorkDir
from cellseg.errors import ConfigError, DataError, InterruptedRunError, UsageError
from cellseg.events import Emit, Event, Failed, Note
from cellseg.files import remove
from cellseg.normalise import Normaliser
from cellseg.options import flag, parse, refuse_unknown, unaliased
from cellseg.plugins import Plugins
from cellseg.readers import reader_for
from cellseg.runs import FILE as RUN_FILE
from cellseg.runs import Request, RunDir
from cellseg.specs import PredictorSpec, TrainerSpec
from cellseg.workflows.example_settings import learner_of
from cellseg.workflows.predict_selection import Place
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import Plan, begin, refuse_clashes, resume
from cellseg.workflows.train_data import material_of, refuse_idle
from cellseg.workflows.train_settings import TrainSettings

RUN = "examples"
"""The run directory, in the work directory of the prediction."""
_PAUSE = 0.2
"""Seconds between two looks at whether another process has learned."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A training on examples, checked and not begun."""

    plan: Plan
    places: frozenset[Place]
    """Where the examples lie."""
    expected: Bundle
    """What is known of the model before it is there."""

    @property
    def identity(self) -> dict[str, object]:
        """What must be the same when a prediction is resumed."""
        request = self.plan.request
        return {
            "examples": request.examples,
            "example_images": str(request.data.resolve()),
            "normalisation of the examples": request.normaliser,
            **{f"option {name}": value for name, value in request.options.items()},
            **{f"example reader option {k}": v for k, v in request.reader_options.items()},
        }

    def reusable(self, work: WorkDir) -> bool:
        """Whether an earlier prediction has learned just this."""
        run = RunDir(work.path / RUN)
        if not (run.model / BUNDLE_FILE).exists() or not (run.path / RUN_FILE).exists():
            return False
        return _identity(run.request()) == _identity(self.plan.request)


def lesson_of(
    plugins: Plugins,
    images: Path,
    settings: PredictSettings,
    options: Mapping[str, object],
    reader_options: Mapping[str, object],
) -> tuple[Lesson | None, dict[str, object]]:
    """What is to be learned, if examples are given, and the options of the predictor that remain.

    Args:
        plugins: where to find the backend and the reader.
        images: the images to segment, in which the examples lie unless the settings say otherwise.
        settings: core's options.
        options: those of the predictor and of the trainer, by name.
        reader_options: those of the reader.

    Raises:
        CellsegError: something is missing, or does not go together; nothing has been written.
    """
    spec = learner_of(plugins, settings.backend) if settings.backend is not None else None
    if settings.examples is None:
        for name in options if spec is not None else ():
            if spec is not None and name in spec.options.model_fields:
                raise ConfigError(f"{flag(name)} does nothing without --examples.")
        return None, dict(options)
    if settings.backend is None:
        raise UsageError(
            "--examples: which backend is to learn from them?", hint="Give --backend NAME."
        )
    predictor = plugins.get(PredictorSpec, settings.backend)
    if spec is None:
        trainers = plugins.all(TrainerSpec)
        able = sorted(name for name, one in trainers.items() if one.examples)
        raise ConfigError(
            f"--examples: the backend {settings.backend!r} does not learn from examples.",
            hint=f"Backends that do: {', '.join(able)}." if able else "No installed backend does.",
        )
    given = unaliased(options, spec.aliases)
    own = {name: value for name, value in given.items() if name in spec.options.model_fields}
    rest = {name: value for name, value in given.items() if name not in own}
    known = [*predictor.options.model_fields, *predictor.aliases, *spec.options.model_fields]
    refuse_unknown(rest, known, spec.name)
    chosen = parse(spec.options, own, spec.name)
    where = settings.example_images or images
    reader = reader_for(plugins, where, settings.reader)
    read = parse(reader.options, unaliased(reader_options, reader.aliases), reader.name)
    refuse_clashes(settings, read, chosen, predictor.options())
    training = parse(TrainSettings, _training(settings, reader.name))
    refuse_idle(spec, training, read)
    material = material_of(plugins, spec, where, training, reader.name, read)
    plan = Plan.of(plugins, spec, where, training, (reader, read), chosen, material)
    first = material.train[0]
    expected = Bundle(
        backend=spec.name,
        channels=first.image.shape[0],
        channel_names=first.channels,
        channel_selection=plan.request.reader_options.get("channels"),
        volumetric=any(sample.image.shape[1] > 1 for sample in material.train),
        normaliser=Normaliser.model_validate(plan.request.normaliser),
        classes=material.classes,
    )
    return Lesson(plan, material.places, expected), rest


def learned(
    plugins: Plugins,
    lesson: Lesson,
    work: WorkDir,
    emit: Emit,
    interrupted: Callable[[], bool],
) -> Path:
    """Learn in the work directory of a prediction, unless it or another process has done so.

    Args:
        plugins: where to find the backend.
        lesson: what to learn.
        work: of the prediction, which has begun.
        emit: gets the notes.
        interrupted: asked after each step, and while another process learns.

    Returns:
        The run directory.

    Raises:
        InterruptedRunError: stopped; what was learned so far is kept.
        CellsegError: of the kind that says what is wrong; see ``cellseg.errors``.
    """
    run = RunDir(work.path / RUN)

    def told(event: Event) -> None:
        # Steps of the training are no tiles.
        if isinstance(event, Note | Failed):
            emit(event)

    waiting = False
    while True:
        if not work.started:
            raise DataError(
                f"{work.path}: another process could not learn from the examples.",
                hint="What it said tells why.",
            )
        with work.lock(RUN) as alone:
            if alone:
                try:
                    _learn(plugins, lesson, run, told, interrupted)
                except (InterruptedRunError, KeyboardInterrupt):
                    raise _stopped() from None
                return run.path
        if interrupted():
            raise _stopped()
        if not waiting:
            emit(Note("Another process learns from the examples; waiting for it."))
            waiting = True
        time.sleep(_PAUSE)


def _learn(
    plugins: Plugins,
    lesson: Lesson,
    run: RunDir,
    emit: Emit,
    interrupted: Callable[[], bool],
) -> None:
    if (run.model / BUNDLE_FILE).exists():
        emit(Note("Uses what was learned from the examples before."))
        return
    emit(Note("Learns from the examples."))
    if (run.path / RUN_FILE).exists():
        device = lesson.plan.settings.device
        resume(plugins, run.path, device=device, emit=emit, interrupted=interrupted)
        return
    if run.path.exists():  # a process was killed as it made it
        remove(run.path)
    begin(plugins, lesson.plan, run.path, emit, interrupted)


def _training(settings: PredictSettings, reader: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "examples": settings.examples,
        "tag": settings.tag,
        "negative_tag": settings.negative_tag,
        "reader": reader,
        "device": settings.device,
    }
    return values | ({"polarity": settings.polarity} if settings.polarity else {})


def _identity(request: Request) -> dict[str, Any]:
    """What makes one training another."""
    values = request.model_dump(mode="json")
    for name in ("device", "examples"):  # what the file shows is in the digest
        values["settings"].pop(name, None)
    return values


def _stopped() -> InterruptedRunError:
    return InterruptedRunError(
        "Stopped while it learned from the examples.", hint="Go on with --resume."
    )
