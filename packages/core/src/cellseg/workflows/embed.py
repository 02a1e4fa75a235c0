"""Describes the objects of label images by vectors, from what a model sees in the images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path

from cellseg.embeddings.describe import Describer
from cellseg.embeddings.parts import Parts
from cellseg.embeddings.run import Embedded, Embedding, Failure
from cellseg.embeddings.tables import SKIPPED
from cellseg.embeddings.units import Unit, ahead, grouped, read_tile, read_units
from cellseg.engine.failures import named
from cellseg.engine.items import Item
from cellseg.engine.state import WorkDir, check_startable
from cellseg.errors import DataError, InterruptedRunError, PartialError
from cellseg.events import Emit, Failed, Note, Progress
from cellseg.files import make_folder
from cellseg.locks import LOCK, sole
from cellseg.plugins import Plugins
from cellseg.readers import describe
from cellseg.workflows.embed_outputs import Result, all_there, refuse_to_overwrite, write_outputs
from cellseg.workflows.embed_request import Request, renumbered, resolve
from cellseg.workflows.embed_settings import EmbedSettings
from cellseg.workflows.embed_summary import EmbedSummary

WORK = ".cellseg-embed"
_SHOWN = 3
"""Images that are described before the work begins."""


def _never() -> bool:
    return False


def embed(
    plugins: Plugins,
    images: Path,
    settings: EmbedSettings,
    *,
    options: Mapping[str, object] | None = None,
    reader_options: Mapping[str, object] | None = None,
    emit: Emit,
    interrupted: Callable[[], bool] = _never,
) -> EmbedSummary:
    """Describe every object of label images by a vector, and write tables of them.

    Args:
        plugins: the installed plugins.
        images: file, folder or container.
        settings: model or backend, labels, which images, poolings, tiles.
        options: the predictor's options; those that were calibrated with the model do not count.
        reader_options: the reader's options.
        emit: gets progress, notes and failures.
        interrupted: asked after each tile; True means stop, keeping the images that are done.

    Raises:
        CellsegError: as the classes in ``cellseg.errors`` say; nothing is left behind by a
            request that is invalid.
        PartialError: some images failed; the tables hold all others.
    """
    began = time.monotonic()
    request = resolve(plugins, images, settings, dict(options or {}), dict(reader_options or {}))
    work = WorkDir(request.output / WORK, "embedding")
    with ExitStack() as held:
        done = settings.resume and work.summary() is not None
        if not done or (work.path / LOCK).exists():  # else nothing is to be written, or tidied up
            held.enter_context(sole(request.output, work.path / LOCK, emit=emit))
        return _embed(request, settings, work, emit, interrupted, began)


def _embed(
    request: Request,
    settings: EmbedSettings,
    work: WorkDir,
    emit: Emit,
    interrupted: Callable[[], bool],
    began: float,
) -> EmbedSummary:
    check_startable(work, resume=settings.resume, overwrite=settings.overwrite, shard=False)
    again = work.started and settings.resume
    if again:
        work.join(request.identity)
        request = renumbered(request, work)
        known = work.summary()
        if known is not None:
            summary = all_there(EmbedSummary.from_dict(known), request.output)
            emit(Note("All of it is done already."))
            return summary
    elif not settings.overwrite:
        refuse_to_overwrite(request.output)
    for note in _notes(request.selection.items):
        emit(Note(note))
    assert request.predictor.embed is not None
    describer = Describer(request.predictor.embed(request.job), request.predictor.name)
    make_folder(request.output)
    if not again:
        work.start(request.identity)
        request = renumbered(request, work)
    parts = Parts(work.path / "parts")
    failures = _run(request, describer, parts, emit, interrupted)
    done = [unit for unit in request.units if parts.has(unit.number)]
    failed = dict(request.unreadable)
    failed |= {item.name: str(problem) for item, problem in request.problems}
    failed |= {failure.unit.name: failure.reason for failure in failures}
    if not done and all(failure.data for failure in failures):
        raise DataError(named(failed))
    if not done:
        raise PartialError(
            f"All images failed: {named(failed)}", failed, hint="Try again with --resume."
        )
    dimension = _dimension(request, describer, parts, done)
    summary = write_outputs(request, Result(done, parts, failures, dimension, began))
    if failed:
        raise PartialError(
            f"{len(failed)} image(s) failed, and are not in the tables: {named(failed)}",
            failed,
            hint=f"Try them again with --resume. All are listed in {request.output / SKIPPED}.",
        )
    work.complete(summary.to_dict())
    shutil.rmtree(work.path / "parts")
    return summary


def _run(
    request: Request,
    describer: Describer,
    parts: Parts,
    emit: Emit,
    interrupted: Callable[[], bool],
) -> list[Failure]:
    """Do the images that are left; gives those that cannot be done."""
    units, settings = request.units, request.settings
    begin = [0, *accumulate(len(unit.plan) for unit in units)]
    first = {unit.number: before for unit, before in zip(units, begin, strict=False)}
    failures: list[Failure] = []
    step = 0

    def reached(unit: Unit, tiles: int) -> None:
        nonlocal step
        if first[unit.number] + tiles > step:
            step = first[unit.number] + tiles
            emit(Progress(step, begin[-1]))

    def done(unit: Unit, found: Embedded) -> None:
        parts.save(unit.number, found)
        reached(unit, len(unit.plan))

    def failed(failure: Failure) -> None:
        failures.append(failure)
        emit(Failed(failure.unit.name, failure.reason))

    for name, why in request.unreadable.items():
        emit(Failed(name, why))
    for item, problem in request.problems:
        emit(Failed(item.name, str(problem)))
    embedding = Embedding(
        describer,
        "mean-std-max" in settings.pooling,
        done=done,
        failed=failed,
        seen=lambda unit, tile: reached(unit, tile + 1),
    )
    left = [unit for unit in units if not parts.has(unit.number)]
    arrivals = read_units(
        left, request.normaliser, settings.most_objects, settings.seed, embedding.given_up
    )
    stopped = InterruptedRunError(
        "Stopped; all finished images are kept.", hint="Go on with --resume."
    )
    try:
        for group in grouped(ahead(arrivals), settings.batch_size):
            embedding.take(group)
            for note in describer.notes:
                emit(Note(note))
            describer.notes.clear()
            if interrupted():
                raise stopped
    except KeyboardInterrupt:
        raise stopped from None
    return failures


def _dimension(request: Request, describer: Describer, parts: Parts, done: Sequence[Unit]) -> int:
    """The length of the vectors, also where there is no object at all."""
    if describer.dimension is not None:
        return describer.dimension
    for unit in done:
        found = parts.load(unit.number)
        if len(found):
            return int(found.mean.shape[1])
    tile, _ = read_tile(done[0], 0, request.normaliser)
    return len(describer([tile])[0].values)


def _notes(items: Sequence[Item]) -> list[str]:
    """How the images are understood."""
    notes = describe([frame for item in items[:_SHOWN] for frame in item.frames])
    if len(items) > _SHOWN:
        notes.append(f"... and {len(items) - _SHOWN} more image(s).")
    return notes
