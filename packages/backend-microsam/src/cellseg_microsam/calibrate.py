"""Find the thresholds of automatic segmentation that suit labelled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from cellseg import Emit, Tile
from cellseg.classes import UNKNOWN
from cellseg.errors import ConfigError
from cellseg.events import Note
from cellseg.metrics import overlaps, score, tally
from cellseg.specs import CalibrateJob
from cellseg.torch.calibration import labelled_tiles, sizes_to_try
from cellseg.torch.devices import memory_errors
from cellseg.torch.masks import FoundMask
from cellseg_microsam import ais, amg, apg
from cellseg_microsam.encoding import MEMORY_HINT, Encoder
from cellseg_microsam.predict import decoded
from cellseg_microsam.predict_options import MicrosamPredictOptions, Mode
from cellseg_microsam.prompted import Prompted
from cellseg_microsam.thresholds import Resolved, resolve

_TILES: Mapping[Mode, int] = {"ais": 16, "apg": 8, "amg": 4}
"""How many tiles are looked at, at most: answers to prompts cost more than a watershed."""
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
_DISTANCES = ("center_distance_threshold", "boundary_distance_threshold")
"""Seeds pass both of them: while one is far off, the other does nothing."""
_GRIDS: Mapping[Mode, Mapping[str, tuple[float, ...]]] = {
    "ais": {
        "center_distance_threshold": _THRESHOLDS,
        "boundary_distance_threshold": _THRESHOLDS,
        "foreground_threshold": _THRESHOLDS,
        "distance_smoothing": (0.0, 0.8, 1.2, 1.6, 2.0, 3.0),
    },
    "apg": {
        "center_distance_threshold": (0.3, 0.5, 0.7),
        "boundary_distance_threshold": (0.3, 0.5, 0.7),
        "foreground_threshold": (0.3, 0.5, 0.7),
        "distance_smoothing": (0.0, 1.6),
    },
    "amg": {
        "pred_iou_thresh": (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.88, 0.92),
        "stability_score_thresh": (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    },
}
"""What is tried for each option beside what is there, in this order."""
_SIZES = (0, 10, 15, 25, 50, 100, 200, 400, 800, 1600)
_WORTH = 0.005
"""What another value must gain: validation images are few, and smaller gains mostly their luck."""
_ROUNDS = 2

Pair = tuple[NDArray[np.float32], NDArray[np.uint32]]
"""The decoder's maps ``(3, y, x)`` of an image, and its true labels ``(y, x)`` with ``UNKNOWN``."""
Segment = Callable[[int, Resolved], NDArray[np.uint32]]
"""The labels ``(y, x)`` that a tile, by its number, gets."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What segments the labelled images best."""

    options: Resolved
    before: Mapping[str, float]
    """``f1@0.50`` and ``mSA@0.50:0.95`` over all objects, with the options to start from."""
    after: Mapping[str, float]
    """The same with those found."""
    images: int
    """How many tiles were looked at."""

    @property
    def stored(self) -> dict[str, object]:
        """The options as a bundle keeps them."""
        return self.options.stored

    def __str__(self) -> str:
        def shown(scores: Mapping[str, float]) -> str:
            return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())

        return (
            f"Segments by {self.options.mode}. Scores on {self.images} pieces of the validation"
            f" images: {shown(self.after)}; before calibration {shown(self.before)}."
        )


def calibrate(job: CalibrateJob[MicrosamPredictOptions], emit: Emit) -> Mapping[str, object]:
    """The options that segment labelled images best.

    Images are cut into tiles as prediction cuts them, and a fixed number of tiles, evenly chosen,
    is looked at. Each is encoded once.

    Args:
        job: its options name the way to segment; ``auto`` takes ais where there is a decoder.
        emit: told the scores before and after.

    Raises:
        ConfigError: prompts of the user have no thresholds to find, or options do nothing.
        DataError: images have no labels, or too many channels.
        WeightsError, DeviceError: as for prediction.
    """
    if job.options.segmentation_mode == "prompts":
        raise ConfigError(
            "--segmentation-mode prompts: it has no thresholds to find.",
            hint="Choose ais, apg or amg.",
        )
    encoder = Encoder.open(job.options, job.device, job.model)
    mode = encoder.mode(job.options)
    if idle := job.options.unused(mode):
        raise ConfigError(f"{' and '.join(idle)}: nothing to do with {mode}, which is calibrated.")
    start = resolve(job.options, mode, encoder.model_type, encoder.model.device.type)
    tiles, truths = labelled_tiles(job.samples, job.tiling, _TILES[mode])
    with torch.inference_mode(), memory_errors(MEMORY_HINT):
        if mode == "ais":
            maps = [decoded(encoder, encoder.encode([tile]), tile) for tile in tiles]
            choice = search(list(zip(maps, truths, strict=True)), start, job.given)
        elif mode == "apg":
            choice = _search(_apg(encoder, tiles, start), truths, start, job.given)
        else:
            choice = _search(_amg(encoder, tiles, start, job.given), truths, start, job.given)
    emit(Note(str(choice)))
    return choice.stored


def search(pairs: Sequence[Pair], start: Resolved, given: frozenset[str] = frozenset()) -> Choice:
    """The best thresholds of ais for the decoder's maps of some images.

    Both distances are moved together at first; then one option after the other is improved, in two
    rounds. A value that gains next to nothing does not replace the one before. What counts is the
    mean of F1 at an IoU of 0.5 and of mSA, over all objects of all images; unknown pixels do not.
    Of ``min_size`` only values are tried that keep nearly all true objects.

    Args:
        pairs: maps and truth of each image.
        start: where to start from.
        given: names of options that stay as they are.
    """

    def segment(number: int, options: Resolved) -> NDArray[np.uint32]:
        return ais.find_instances(pairs[number][0], options)[0]

    return _search(segment, [truth for _, truth in pairs], start, given)


def _search(
    segment: Segment,
    truths: Sequence[NDArray[np.uint32]],
    start: Resolved,
    given: frozenset[str],
) -> Choice:
    seen: dict[Resolved, Mapping[str, float]] = {}

    def measure(options: Resolved) -> Mapping[str, float]:
        if options not in seen:
            tallies = [
                tally(overlaps(segment(i, options), truth).without_label(UNKNOWN))
                for i, truth in enumerate(truths)
            ]
            found = score(tallies)
            seen[options] = {name: found[name] for name in ("f1@0.50", "mSA@0.50:0.95")}
        return seen[options]

    def quality(options: Resolved) -> float:
        return sum(measure(options).values()) / 2

    sizes = sizes_to_try(truths, _SIZES)
    grids = {**_GRIDS[start.mode], "min_size": sizes}
    grids = {name: values for name, values in grids.items() if name not in given}
    best = start
    if "min_size" in grids and sizes and best.min_size > max(sizes):
        best = best.changed(min_size=max(sizes))
    steps = [[{name: value} for value in values] for name, values in grids.items()]
    if grids.keys() >= {*_DISTANCES}:
        steps.insert(0, [dict.fromkeys(_DISTANCES, value) for value in grids[_DISTANCES[0]]])
    for _ in range(_ROUNDS):
        before = best
        for step in steps:
            tried = [best.changed(**values) for values in step]
            leader = max(tried, key=quality, default=best)  # the first of equals
            if quality(leader) > quality(best) + _WORTH:
                best = leader
        if best == before:
            break
    return Choice(best, measure(start), measure(best), len(truths))


def _apg(encoder: Encoder, tiles: Sequence[Tile], start: Resolved) -> Segment:
    """Segments by apg; what a point was answered is kept."""
    images, maps = [], []
    for tile in tiles:
        embedding = encoder.encode([tile])
        images.append(Prompted(encoder.model, embedding, encoder.frame(tile), start))
        maps.append(decoded(encoder, embedding, tile))
    known: list[dict[tuple[int, int], FoundMask | None]] = [{} for _ in tiles]

    def segment(number: int, options: Resolved) -> NDArray[np.uint32]:
        points = [(int(y), int(x)) for y, x in apg.find_points(maps[number], options)]
        new = [point for point in points if point not in known[number]]
        answers = apg.answered(images[number], np.array(new, np.int64).reshape(-1, 2))
        known[number].update(zip(new, answers, strict=True))
        found = apg.chosen(
            [known[number][point] for point in points], images[number].frame.size, options
        )
        return np.asarray(found.labels[0], np.uint32)

    return segment


def _amg(
    encoder: Encoder, tiles: Sequence[Tile], start: Resolved, given: frozenset[str]
) -> Segment:
    """Segments by amg; what the grids of points were answered is kept."""
    iou, stability = (
        min((getattr(start, name), *(values if name not in given else ())))
        for name, values in _GRIDS["amg"].items()
    )
    proposals = []
    for tile in tiles:
        image = Prompted(encoder.model, encoder.encode([tile]), encoder.frame(tile), start)
        proposals.append(amg.propose(image, iou, stability))

    def segment(number: int, options: Resolved) -> NDArray[np.uint32]:
        return np.asarray(amg.selected(proposals[number], options).labels[0], np.uint32)

    return segment
