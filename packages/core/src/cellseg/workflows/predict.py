"""Segments images with a model: everything is resolved and checked before any work begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cellseg.bundle import Bundle
from cellseg.engine.cluster import Machines
from cellseg.engine.items import Item, Recipe, make_items
from cellseg.engine.numbering import numbered
from cellseg.engine.run import Prediction, Share, remove_leftovers
from cellseg.engine.state import WorkDir, check_startable
from cellseg.errors import (
    ConfigError,
    DataError,
    DeviceError,
    InterruptedRunError,
    UsageError,
    WeightsError,
)
from cellseg.events import Emit, Note
from cellseg.files import make_folder, refuse_to_replace, remove
from cellseg.locations import existing, remembered
from cellseg.locks import LOCK, sole
from cellseg.options import parse, unaliased
from cellseg.plugins import Plugins
from cellseg.readers import describe, open_readable, reader_for
from cellseg.specs import PredictJob
from cellseg.workflows.models import (
    as_trained,
    identity_of,
    is_volumetric,
    predictor_for,
    tiling_for,
)
from cellseg.workflows.predict_examples import RUN, Lesson, learned, lesson_of
from cellseg.workflows.predict_objects import (
    hole_notes,
    linking_notes,
    normaliser_of,
    prompts_of,
    refinement_of,
    refuse_unlinked,
)
from cellseg.workflows.predict_outputs import (
    formats_for,
    outputs_for,
    page_for,
    refuse_collisions,
    refuse_trackless,
)
from cellseg.workflows.predict_selection import places_of, prompt_notes, selection_of
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.predict_summary import PredictSummary, dry_run
from cellseg.workflows.predict_tracking import tracked, tracking_notes, write_page
from cellseg.workflows.readable import refuse_nothing, refuse_numbers, usable
from cellseg.workflows.work_folder import work_folder, work_notes

_SHOWN = 3
"""Images that are described before the work begins."""
_FREE = (
    "output",
    "work",
    "overwrite",
    "batch_size",
    "device",
    "workers",
    "scheduler",
    "slurm",
    "shard",
    "resume",
    "retries",
    "dry_run",
)
"""Settings that may change when a prediction is resumed: they do not change its results."""


def _never() -> bool:
    return False


def predict(
    plugins: Plugins,
    images: Path,
    settings: PredictSettings,
    *,
    options: Mapping[str, object] | None = None,
    reader_options: Mapping[str, object] | None = None,
    emit: Emit,
    interrupted: Callable[[], bool] = _never,
) -> PredictSummary:
    """Segment every image at a path and write the labels.

    Args:
        plugins: the installed plugins.
        images: file, folder or container.
        settings: model or backend, tiles, outputs.
        options: the predictor's options; they go before those that were calibrated with the model,
            which do not count where there are prompts.
        reader_options: the reader's options.
        emit: gets progress, notes and failures.
        interrupted: asked after each tile; True means stop, keeping what is done.

    Raises:
        CellsegError: as the classes in ``cellseg.errors`` say; nothing is left behind by a
            request that is invalid.
        PartialError: some images cannot be read, or tiles failed; these images are not written,
            all others are.
    """
    with ExitStack() as held:
        given, reading = dict(options or {}), dict(reader_options or {})
        return _predict(plugins, images, settings, given, reading, emit, interrupted, held)


def _predict(
    plugins: Plugins,
    images: Path,
    settings: PredictSettings,
    options: Mapping[str, object],
    reading: Mapping[str, object],
    emit: Emit,
    interrupted: Callable[[], bool],
    held: ExitStack,
) -> PredictSummary:
    """What ``predict`` does; ``held`` is closed when it is over."""
    began = time.monotonic()
    share = _share(settings)
    if not settings.dry_run:
        share.machines.warm_up()
    lesson, wanted = lesson_of(plugins, images, settings, options, reading)
    resolved = partial(_resolve, plugins, images, settings, wanted, reading, lesson)
    recipe, items, request, notes, unreadable = resolved()
    if settings.dry_run:
        for note in lesson.plan.material.notes if lesson else ():
            emit(Note(note))
        return replace(dry_run(items, recipe, settings), unreadable=unreadable)
    work = WorkDir(recipe.work, place=settings.output or images)
    new = [path for path in (work.path, *work.path.parents) if not path.exists()]
    done = settings.resume and work.summary() is not None
    if not done or (work.path / LOCK).exists():  # else nothing is to be written, or tidied up
        shared, place = settings.shard is not None, settings.output or images
        held.enter_context(sole(place, work.path / LOCK, shared=shared, emit=emit))
        if done:  # and a kill came before it was tidied up
            work.tidy()
    check_startable(
        work,
        resume=settings.resume,
        overwrite=settings.overwrite,
        shard=settings.shard is not None,
    )
    again = work.started and (settings.resume or settings.shard is not None)
    if again:
        work.join(request)
        items = numbered(work, items, unreadable)
        summary = work.summary()
        if summary is not None:
            with work.lock("complete"):
                pass  # what a killed process left of it goes
            _check_still_there(items)
            emit(Note("All of it is done already."))
            return _summary(items, summary["objects"], summary.get("tracks", {}), began)
    else:
        _refuse_to_overwrite(items, settings)
    for note in _notes(items, recipe, settings) + notes + work_notes(images, settings):
        emit(Note(note))
    begin = partial(Prediction, share=share, emit=emit, interrupted=interrupted, written=write_page)
    share.machines.check(recipe.job.device)
    if lesson is None:
        prediction = begin(recipe, items, unreadable=unreadable)
        prediction.load()
    if not again and settings.shard is None:
        new.insert(0, work.path)
    if settings.output is not None:
        make_folder(settings.output)
    if again or settings.shard is not None:
        make_folder(work.path)
        work.join(request)
    else:
        work.start(request, keep=(RUN,) if lesson and lesson.reusable(work) else ())
    if lesson is not None:
        try:
            run = learned(plugins, lesson, work, emit, interrupted)
            recipe, items, *_, unreadable = resolved(run)
            items = numbered(work, items, unreadable)
            prediction = begin(recipe, items, unreadable=unreadable)
            prediction.load()
        except (ConfigError, DataError, DeviceError, WeightsError) as error:
            # The request is invalid after all; another share may have removed what is new.
            kept = isinstance(error, WeightsError) and (work.path / RUN).exists()
            if not kept and new and new[-1].exists():  # what was learned is not thrown away
                remove(new[-1])
            raise
    elif (now := numbered(work, items, unreadable)) != items:  # another share found others
        items = now
        prediction = begin(recipe, items, unreadable=unreadable)
    try:
        objects = prediction.run()
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "Stopped; all finished tiles are kept.", hint="Go on with --resume."
        ) from None
    complete, tracks = len(objects) == len(items), prediction.tracks
    if complete:
        with work.lock("complete") as alone:
            if alone and work.summary() is None:
                if again or settings.shard is not None or not share.machines.here:
                    remove_leftovers(items)
                known = {"tracks": {str(i): n for i, n in tracks.items()}} if tracks else {}
                work.complete({"objects": {str(i): n for i, n in objects.items()}, **known})
    if lesson is not None:
        emit(Note(f"What was learned from the examples can be used again: --model {run}"))
    return _summary(items, objects, tracks, began)


@remembered()
def _resolve(
    plugins: Plugins,
    images: Path,
    settings: PredictSettings,
    options: Mapping[str, object],
    reader_options: Mapping[str, object],
    lesson: Lesson | None,
    run: Path | None = None,
) -> tuple[Recipe, list[Item], dict[str, object], list[str], dict[str, str]]:
    """How and what to segment, what must be the same on a resume, what is left out, and why images
    cannot be used.

    With examples, a first call knows no more of the model than the ``lesson`` says; what it says
    must be the same does not change when the ``run`` is there.
    """
    path = run or settings.model
    model, bundle = Bundle.find(path) if path is not None else (None, None)
    if lesson is not None and bundle is None:
        bundle = lesson.expected
    predictor = predictor_for(plugins, settings, bundle)
    if settings.output_probs and not predictor.probabilities:
        raise ConfigError(
            f"--output-probs: the backend {predictor.name!r} gives no probabilities.",
            hint="Leave it out.",
        )
    normaliser = normaliser_of(settings, bundle) if lesson is None else lesson.expected.normaliser
    volumetric = is_volumetric(predictor, bundle)
    refinement = refinement_of(settings, predictor, volumetric)
    wanted = unaliased(options, predictor.aliases)
    # What was calibrated is for objects that the model finds by itself.
    stored = bundle.predict if bundle and settings.prompts is None else {}
    parsed = parse(predictor.options, predictor.options.over(stored, wanted), predictor.name)
    if not images.exists():
        raise DataError(f"There is nothing at {images}.")
    reader = reader_for(plugins, images, settings.reader)
    reading = as_trained(unaliased(reader_options, reader.aliases), reader, bundle)
    parsed_reading = parse(reader.options, reading, reader.name)
    samples, unreadable = open_readable(reader, images, parsed_reading)
    samples = usable(samples, images, bundle, unreadable)
    tiling = tiling_for(settings, bundle, predictor, volumetric)
    items = make_items(samples, tiling, volumetric, unreadable)
    refuse_nothing(items, unreadable)
    refuse_numbers("batch_xy", settings.batch_xy, unreadable)
    prompts, shown = prompts_of(settings, predictor, items, unreadable)
    current = None if prompts is None else places_of(prompts)
    if lesson is not None:
        current = set(lesson.places)
    selection = selection_of(settings, items, predictor, volumetric, current)
    found, items = len(items), selection.of(items)
    notes = selection.notes(items, found) + prompt_notes(prompts, items)
    refuse_unlinked(settings, items)
    items = tracked(settings, predictor, items)
    formats = formats_for(settings, samples)
    refuse_trackless(items, formats)
    items = [replace(item, outputs=outputs_for(item, formats, settings)) for item in items]
    items = [replace(item, page=page_for(item)) for item in items]
    refuse_collisions(items)
    recipe = Recipe(
        predictor=predictor,
        job=PredictJob(
            options=parsed,
            device=settings.device,
            model=model,
            probabilities=settings.output_probs,
        ),
        reader=reader,
        images=images,
        reader_options=parsed_reading,
        normaliser=normaliser,
        tiling=tiling,
        volumetric=volumetric,
        stitch_overlap=settings.stitch_overlap,
        classes=bundle.classes if bundle else (),
        work=work_folder(images, settings),
        refinement=refinement,
        prompts=prompts,
    )
    named = {"examples", "example_images"}  # what they hold counts, and not how they are called
    request = settings.model_dump(mode="json", exclude={*_FREE, *named})
    request |= identity_of(images, (predictor, model, bundle), reader, parsed, parsed_reading)
    request |= {"track": predictor.track is not None and settings.track is not False}
    request |= {"prompts": shown, "format": list(formats), **selection.identity}
    request |= lesson.identity if lesson is not None else {}
    return recipe, items, request, notes, unreadable


def _share(settings: PredictSettings) -> Share:
    part, parts = (int(n) for n in (settings.shard or "1/1").split("/"))
    if part > parts:
        raise UsageError(f"--shard {settings.shard}: there are only {parts} shares.")
    if settings.shard and settings.overwrite:
        raise UsageError(
            "--shard and --overwrite exclude each other: one share would remove what another did.",
            hint="Remove the earlier results first, or write to another folder.",
        )
    return Share(
        batch_size=settings.batch_size,
        machines=Machines(
            workers=settings.workers, scheduler=settings.scheduler, slurm=settings.slurm
        ),
        shard=(part, parts),
        retries=settings.retries,
        retry_failed=settings.resume or settings.shard is None,
    )


def _refuse_to_overwrite(items: Sequence[Item], settings: PredictSettings) -> None:
    there = existing(path for item in items for path in item.files)
    refuse_to_replace(
        (frame.path for item in items for frame in item.frames if frame.path is not None), there
    )
    if there and not settings.overwrite:
        raise UsageError(
            f"{there[0]} exists already.",
            hint="Replace it with --overwrite, or write elsewhere with --output or --label-name.",
        )


def _check_still_there(items: Sequence[Item]) -> None:
    written = [path for item in items for path in item.files]
    there = set(existing(written))
    for path in written:
        if path not in there:
            raise UsageError(
                f"{path} was written, but is gone.", hint="Start anew with --overwrite."
            )


def _notes(items: Sequence[Item], recipe: Recipe, settings: PredictSettings) -> list[str]:
    """How the images are understood, where their tiles will cut objects, what is linked."""
    notes = describe([frame for item in items[:_SHOWN] for frame in item.frames])
    if len(items) > _SHOWN:
        notes.append(f"... and {len(items) - _SHOWN} more image(s).")
    for item in items:
        uncut = [
            axis
            for axis, tiles, halo in zip("zyx", item.plan.grid, item.plan.halo, strict=True)
            if tiles > 1 and not halo and not (axis == "z" and item.plan.core[0] == 1)
        ]
        if uncut:
            notes.append(f"{item.name}: without a halo along {', '.join(uncut)}, cells are cut.")
    notes += hole_notes(items, recipe.refinement)
    notes += tracking_notes(items, settings.workers)
    return notes + linking_notes(items, recipe.refinement, recipe.volumetric)


def _summary(
    items: Sequence[Item],
    objects: Mapping[Any, int],
    tracks: Mapping[Any, Sequence[int]],
    began: float,
) -> PredictSummary:
    done = {int(i) for i in objects}
    written = [item for item in items if item.index in done]
    return PredictSummary(
        images=len(written),
        objects=sum(objects.values()),
        outputs=tuple(path for item in written for path in item.files),
        tracks=sum(number for number, _ in tracks.values()) if tracks else None,
        divisions=sum(number for _, number in tracks.values()),
        seconds=time.monotonic() - began,
        complete=len(written) == len(items),
    )
