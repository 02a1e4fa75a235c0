"""What the settings of ``cellseg predict`` say about tracking, and the report of tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cellseg.engine.items import Item
from cellseg.errors import ConfigError
from cellseg.outputs.result import Result
from cellseg.ranges import Ranges
from cellseg.specs import PredictorSpec
from cellseg.workflows.predict_settings import PredictSettings


def tracked(
    settings: PredictSettings, predictor: PredictorSpec[Any], items: Sequence[Item]
) -> list[Item]:
    """The images, each knowing whether its objects are followed.

    Raises:
        ConfigError: tracking is asked for where there is nothing to track, or goes together with
            other settings badly.
    """
    if settings.track and predictor.track is None:
        raise ConfigError(
            f"--track: the backend {predictor.name!r} segments each frame by itself.",
            hint="Leave it out, and link the labels over time with cellseg track.",
        )
    movies = [item for item in items if item.movie]
    if settings.track and not movies:
        raise ConfigError(
            "--track does nothing: none of the images is a movie.",
            hint="Leave it out; or, if a movie was read as a stack or as channels, say what its "
            "axes are, such as --axes TYX.",
        )
    if settings.track is False or predictor.track is None or not movies:
        return list(items)
    _refuse(settings, items, movies[0])
    return [replace(item, tracked=item.movie) for item in items]


def tracking_notes(items: Sequence[Item], workers: int) -> list[str]:
    """What is said before movies are tracked."""
    movies = [item for item in items if item.tracked]
    if not movies:
        return []
    notes = [f"Objects are followed over the frames of {len(movies)} movie(s)."]
    places = sum(len(item.places) for item in movies)
    if places < workers and len(movies) == len(items):
        notes.append(
            f"{places} place(s) in the grid of tiles are followed, each by one process: no more "
            f"than {places} of the {workers} workers have something to do."
        )
    return notes


def write_page(item: Item, result: Result) -> None:
    """Write the report of a movie's tracks where it has a place."""
    if item.page is None or result.tracks is None:
        return
    from cellseg.report.tracks import write_tracks_page

    images = [sample.image for sample in item.frames]
    write_tracks_page(
        item.page, item.name, images, result.frames, result.tracks, spacing=item.spacing
    )


def _refuse(settings: PredictSettings, items: Sequence[Item], first: Item) -> None:
    """Raise a ConfigError for what a tracker cannot take into account."""
    alone = "Or segment each frame by itself: --no-track"
    if settings.output_probs:
        raise ConfigError(
            f"--output-probs: {first.name} is a movie whose objects are followed, which gives no "
            "probabilities.",
            hint=f"Leave it out. {alone}",
        )
    if settings.prompts is not None:
        raise ConfigError(
            f"--prompts show objects of single frames, but those of {first.name} are found and "
            "followed.",
            hint=f"Leave it out. {alone}",
        )
    if settings.batch_size > 1 and all(item.movie for item in items):
        raise ConfigError(
            "--batch-size does nothing: the frames of a movie are followed one by one.",
            hint=f"Leave it out. {alone}",
        )
    for item in items:
        if item.movie and item.times is not None and len(Ranges.of("", item.times).spans) > 1:
            raise ConfigError(
                f"--batch-time {settings.batch_time}: objects are followed from frame to frame, "
                "so there can be no gaps between the frames.",
                hint=f"Give a single range. {alone}",
            )
