"""Links the objects of any label images over time, and writes them with the ids of their tracks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cellseg.data import Labels, Sample
from cellseg.engine.failures import named
from cellseg.errors import DataError, InterruptedRunError, PartialError, UsageError
from cellseg.events import Emit, Failed, Note, Progress
from cellseg.files import refuse_to_replace, remove_leftovers
from cellseg.linking.labels import LinkedLabels
from cellseg.linking.link import Links, link
from cellseg.locks import LOCK, sole
from cellseg.outputs.formats import Output, output_for, tracks_beside
from cellseg.outputs.result import Result
from cellseg.outputs.write import write
from cellseg.plugins import Plugins
from cellseg.workflows.output_folder import output_folder
from cellseg.workflows.track_movies import LabelMovie, images_of, label_movies
from cellseg.workflows.track_settings import TrackSettings

_FILES = (".tif", ".tiff", ".h5", ".hdf5", ".csv", ".parquet", ".geojson", ".zarr", ".geff")
_MANY = 0.5
"""Tracks that begin in mid-movie and last one frame, as a share of all, from which something is
wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackSummary:
    """What was linked and written."""

    movies: int
    frames: int
    objects: int
    """In all frames."""
    tracks: int
    divisions: int
    outputs: tuple[Path, ...]
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {
            "outputs": [str(path) for path in self.outputs],
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """For people."""
        first = (
            f"{self.tracks} tracks with {self.divisions} divisions, of {self.objects} objects in "
            f"{self.frames} frames of {self.movies} movie(s), {self.seconds:.1f} s"
        )
        return [first, *(f"Written: {path}" for path in self.outputs)]


@dataclass(frozen=True, slots=True)
class _Job:
    """A movie and where it goes."""

    movie: LabelMovie
    outputs: tuple[Output, ...]
    page: Path | None

    @property
    def paths(self) -> list[Path]:
        tables = [tracks_beside(output) for output in self.outputs]
        found = [output.path for output in self.outputs]
        found += [table for table in tables if table is not None]
        return list(dict.fromkeys([*found, *([self.page] if self.page else [])]))


def track(
    plugins: Plugins,
    labels: Path,
    settings: TrackSettings,
    *,
    emit: Emit = lambda event: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> TrackSummary:
    """Link the objects of every movie of label images at a path.

    Two frames are in memory at a time, and the measurements of all objects of one movie.

    Args:
        plugins: where to find readers.
        labels: a stack, a container, a folder of these, or folders with a file for each frame.
        settings: how to link, and what to write.
        emit: gets a ``Progress`` for each frame, and notes.
        interrupted: asked after each frame; True stops. Movies that are written stay.

    Raises:
        DataError: the labels or images cannot be read, or are no movies.
        PartialError: some movies cannot be read, or are none; the others are written.
        PluginError: laptrack is not installed.
        UsageError: there is no output folder, or results are in it already, or they would replace
            the labels or images.
        StorageError: the disk is full, or permission is missing.
        InterruptedRunError: ``interrupted()`` said so.
    """
    began = time.monotonic()
    folder = output_folder(settings.output, _FILES, "each movie gets its files there")
    movies, problems = label_movies(plugins, labels, settings)
    images = images_of(plugins, settings.images, movies) if settings.images else None
    jobs = [_job(movie, folder, settings) for movie in movies]
    read = {path for movie in movies for path in movie.files}
    read |= {one.path for own in images or () for one in own if one.path is not None}
    refuse_to_replace(read, (path for job in jobs for path in job.paths))
    if not settings.overwrite:
        _refuse_to_overwrite(jobs)
    for movie in movies:
        size = " x ".join(map(str, movie.frames[0].shape))
        emit(
            Note(
                f"{movie.name}: {len(movie.frames)} frames of {size} (z, y, x), "
                f"{movie.names[0]} to {movie.names[-1]}"
            )
        )
    with sole(folder, folder / LOCK, emit=emit):
        if not settings.overwrite:
            _refuse_to_overwrite(jobs)  # again: another process may have written them
        for path in (path for job in jobs for path in job.paths):
            remove_leftovers(path.parent, {path.name})
        for name, why in problems.items():
            emit(Failed(name, why))
        return _link_all(jobs, images, settings, emit, interrupted, began, problems)


def _link_all(
    jobs: Sequence[_Job],
    images: Sequence[Sequence[Sample]] | None,
    settings: TrackSettings,
    emit: Emit,
    interrupted: Callable[[], bool],
    began: float,
    failed: dict[str, str],
) -> TrackSummary:
    """Link one movie after the other, and write it; ``failed`` tells of those left out."""

    def pause() -> None:
        if interrupted():
            raise InterruptedRunError(
                "Stopped; movies that are written stay.", hint="Start again with --overwrite."
            )

    total = sum(len(job.movie.frames) for job in jobs)
    step = objects = tracks = divisions = 0
    done: list[_Job] = []
    for number, job in enumerate(jobs):

        def frames(movie: LabelMovie = job.movie) -> Iterator[Labels]:
            nonlocal step
            for one in movie.frames:
                pause()
                yield one[tuple(slice(0, length) for length in one.shape)]
                step += 1
                emit(Progress(step, total))

        try:
            links = link(frames(), settings, job.movie.spacing, job.movie.names)
        except (DataError, MemoryError) as error:
            if len(jobs) == 1 and not failed:
                raise
            name, why = job.movie.name, str(error)
            if isinstance(error, MemoryError):
                why = f"{name}: the memory does not suffice to link it."
            failed[name] = why
            emit(Failed(name, why))
            continue
        done.append(job)
        for note in _notes(job.movie, links, settings):
            emit(Note(note))
        result = _result(job.movie, links, pause)
        for output in job.outputs:
            write(result, output)
        if job.page is not None:
            from cellseg.report.tracks import write_tracks_page

            shown = [sample.image for sample in images[number]] if images else None
            write_tracks_page(
                job.page, job.movie.name, shown, result.frames, links.lineage, job.movie.spacing
            )
        objects += result.count
        tracks += len(links.lineage.tracks)
        divisions += len(links.lineage.divisions)
    if not done:
        raise DataError(named(failed))
    if failed:
        raise PartialError(
            f"{len(failed)} movie(s) failed and are not written, {len(done)} are: {named(failed)}",
            failed,
            hint="Mend them, and start again with --overwrite.",
        )
    return TrackSummary(
        movies=len(jobs),
        frames=total,
        objects=objects,
        tracks=tracks,
        divisions=divisions,
        outputs=tuple(path for job in jobs for path in job.paths),
        seconds=time.monotonic() - began,
    )


def _job(movie: LabelMovie, folder: Path, settings: TrackSettings) -> _Job:
    formats = tuple(dict.fromkeys(settings.format)) or ("tiff", "csv")
    outputs = tuple(output_for(one, folder, movie.name, settings.label_name) for one in formats)
    page = outputs[0].path.with_name(f"{Path(movie.name).name}_tracks.html")
    return _Job(movie, outputs, page if settings.report else None)


def _refuse_to_overwrite(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        for path in job.paths:
            if path.exists():
                raise UsageError(
                    f"{path} exists already.",
                    hint="Replace it with --overwrite, or write elsewhere with --output.",
                )


def _result(movie: LabelMovie, links: Links, pause: Callable[[], None]) -> Result:
    """The movie with the ids of tracks, its objects in their order."""
    order = [of_track.argsort() for of_track in links.tracks]
    return Result(
        movie.name,
        [LinkedLabels(*frame) for frame in zip(movie.frames, links.ids, links.tracks, strict=True)],
        [one.chosen(at) for one, at in zip(links.objects, order, strict=True)],
        movie=True,
        spacing=movie.spacing,
        ids=[of_track[at] for of_track, at in zip(links.tracks, order, strict=True)],
        tracks=links.lineage,
        pause=pause,
    )


def _notes(movie: LabelMovie, links: Links, settings: TrackSettings) -> list[str]:
    """What looks wrong with the tracks."""
    all_tracks = links.lineage.tracks
    if not all_tracks:
        return [f"{movie.name}: there are no objects."]
    brief = sum(track.begin == track.end and track.begin > 0 for track in all_tracks)
    if brief <= _MANY * len(all_tracks):
        return []
    way = (
        "further than --max-distance from frame to frame"
        if settings.method == "laptrack"
        else "too far to overlap themselves: try --method laptrack"
    )
    return [
        f"{movie.name}: {brief} of {len(all_tracks)} tracks are seen once. Are these frames of one "
        f"movie, in the right order? Or the objects move {way}."
    ]
