"""Find the thresholds that suit labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch  # noqa: TID253

from cellseg import Emit
from cellseg.classes import UNKNOWN
from cellseg.data import Dataset, Tiling
from cellseg.events import Note
from cellseg.metrics import overlaps, score, tally
from cellseg.specs import CalibrateJob
from cellseg.torch.calibration import sizes_to_try
from cellseg_cellsam.box_scores import Found, box_scores
from cellseg_cellsam.encoding import Encoder
from cellseg_cellsam.looking import Seen, Segmented, compared, look, segmented
from cellseg_cellsam.predict_options import CellSamPredictOptions

_VALUES: Mapping[str, tuple[float, ...]] = {
    "mask_threshold": (0.3, 0.4, 0.5, 0.6, 0.7),
    "box_nms": (0.5, 0.6, 0.7, 0.8, 0.9),
}
"""What is tried for each option, in this order."""
_SIZES = (0, 10, 15, 25, 50, 100, 200, 400, 800)
_COARSE, _FINE = 0.05, 0.01
"""Steps of ``box_threshold``."""
_WORTH = 0.005
"""What another value must gain: validation images are few, and smaller gains mostly their luck."""
_ROUNDS = 2
_F1, _BOTH = ("f1@0.50",), ("f1@0.50", "mSA@0.50:0.95")


@dataclass(frozen=True, slots=True)
class Choice:
    """What finds the objects of labelled images best."""

    options: CellSamPredictOptions
    """Those to start from, with what was found."""
    stored: Mapping[str, float]
    """What was found, as a bundle keeps it."""
    what: str
    """What was scored: ``boxes`` or ``masks``."""
    before: Mapping[str, float]
    """``f1@0.50`` over all objects, and for masks also ``mSA@0.50:0.95``, with the options to start
    from."""
    after: Mapping[str, float]
    """The same with those found."""
    images: int
    """How many tiles were looked at."""

    def __str__(self) -> str:
        def shown(scores: Mapping[str, float]) -> str:
            return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())

        values = ", ".join(f"{name} {value:.4g}" for name, value in self.stored.items())
        return (
            f"Thresholds: {values or 'all are given'}. Scores of {self.what} on {self.images}"
            f" pieces of the validation images: {shown(self.after)}; before calibration"
            f" {shown(self.before)}."
        )


def find_box_threshold(
    encoder: Encoder,
    samples: Dataset,
    tiling: Tiling,
    options: CellSamPredictOptions,
    masks: bool,
) -> Choice:
    """The ``box_threshold`` with which a model finds the cells of labelled images best.

    Images are cut into tiles as prediction cuts them, and a fixed number of tiles, evenly chosen,
    is looked at. Each is encoded once, and each box segmented once. What counts is F1 at an IoU of
    0.5, over all objects of all tiles; what is unknown does not. Where no mask fits a
    cell, the threshold is that of the boxes; where no box does, it stays.

    Args:
        encoder: the model.
        samples: with labels; normalised.
        tiling: how prediction will cut the images.
        options: the others.
        masks: score masks; otherwise boxes, for a model that has not learned to segment them yet.

    Raises:
        DataError: there are no images, or one without labels.
    """
    seen = look(encoder, samples, tiling, masks=masks)
    if not masks:
        return _by_boxes(seen, options)
    search = _Search(segmented(encoder, seen, options, {}), options)
    best = search.box_threshold(_by_boxes(seen, options).options)
    return search.choice(best, ("box_threshold",))


def calibrate(job: CalibrateJob[CellSamPredictOptions], emit: Emit) -> Mapping[str, object]:
    """The thresholds that segment labelled images best.

    ``box_threshold`` is found first, for the boxes and then for their masks, as by
    ``find_box_threshold``; then ``mask_threshold``, ``box_nms``, ``min_size`` and once more
    ``box_threshold``, one after the other, in two rounds. A value that gains next to nothing does
    not replace the one before. What counts is the mean of F1 at an IoU of 0.5 and of mSA. Of
    ``min_size`` only values are tried that keep nearly all true objects.

    Args:
        job: its options are where to start from; those given stay.
        emit: told the scores before and after.

    Raises:
        ConfigError: there is no model.
        DataError: images have no labels, or too many channels.
        WeightsError, DeviceError: as for prediction.
    """
    options, given = job.options, job.given
    encoder = Encoder.open(options, job.device, job.model)
    seen = look(encoder, job.samples, job.tiling, masks=True)
    values = {name: each for name, each in _VALUES.items() if name not in given}
    lowest = options.box_threshold if "box_threshold" in given else None
    search = _Search(segmented(encoder, seen, options, values, lowest), options)
    best = options
    if "box_threshold" not in given:
        best = search.box_threshold(_by_boxes(seen, options).options)
    sizes = sizes_to_try((tile.truth for tile in seen), _SIZES)
    grids: dict[str, Sequence[float]] = {**values, "min_size": sizes}
    if sizes and best.min_size > max(sizes) and "min_size" not in given:
        best = _changed(best, min_size=max(sizes))
    grids["box_threshold"] = search.thresholds(best.box_threshold)
    grids = {name: each for name, each in grids.items() if name not in given}
    for _ in range(_ROUNDS):
        before = best
        for name, each in grids.items():
            tried = [_changed(best, **{name: value}) for value in each]
            leader = max(tried, key=search.quality, default=best)  # the first of equals
            if search.quality(leader) > search.quality(best) + _WORTH:
                best = leader
        if best == before:
            break
    choice = search.choice(best, tuple(grids))
    emit(Note(str(choice)))
    return choice.stored


def _by_boxes(seen: Sequence[Seen], options: CellSamPredictOptions) -> Choice:
    """The threshold of the boxes themselves: between the last one taken and the first one left."""
    images = [compared(tile, options.box_nms) for tile in seen]
    best, threshold = box_scores(images), options.box_threshold
    if best.f1 > 0:
        scores = torch.cat([scores for scores, _, _ in images]).double()
        left = scores[scores < best.threshold]
        below = float(left.max()) if len(left) else 0.0
        threshold = _between(below, best.threshold)
    found = {"box_threshold": threshold}
    before, after = ({"f1@0.50": _f1(images, one)} for one in (options.box_threshold, threshold))
    return Choice(_changed(options, **found), found, "boxes", before, after, len(seen))


def _between(low: float, high: float) -> float:
    """A number above ``low``, up to ``high``, with as few decimals as tell it."""
    middle = (low + high) / 2
    for digits in range(2, 8):
        if low < round(middle, digits) <= high:
            return round(middle, digits)
    return high


def _f1(images: Sequence[Found], threshold: float) -> float:
    """F1 at an IoU of 0.5 of the boxes above a threshold."""
    chosen = [(s[s >= threshold], b[s >= threshold], t) for s, b, t in images]
    found, cells = (sum(len(one[part]) for one in chosen) for part in (0, 2))
    right = box_scores(chosen).recall * cells
    return 2 * right / max(found + cells, 1)


class _Search:
    """Scores of what options make of segmented boxes."""

    def __init__(self, tiles: Sequence[Segmented], start: CellSamPredictOptions) -> None:
        self._tiles, self._start = tiles, start
        self._known: dict[CellSamPredictOptions, Mapping[str, float]] = {}
        scores = torch.cat([tile.scores for tile in tiles])
        self._lowest = float(scores.min()) if len(scores) else 1.0

    def measure(self, options: CellSamPredictOptions) -> Mapping[str, float]:
        """``f1@0.50`` and ``mSA@0.50:0.95`` over all objects."""
        if options not in self._known:
            tables = (overlaps(tile.labels(options), tile.truth) for tile in self._tiles)
            found = score([tally(table.without_label(UNKNOWN)) for table in tables])
            self._known[options] = {name: found[name] for name in _BOTH}
        return self._known[options]

    def quality(self, options: CellSamPredictOptions, names: Sequence[str] = _BOTH) -> float:
        """The mean of some scores."""
        return sum(self.measure(options)[name] for name in names) / len(names)

    def thresholds(self, start: float) -> list[float]:
        """Those that are worth trying for boxes, in steps, and ``start``."""
        steps = (round(number * _COARSE, 2) for number in range(1, round(1 / _COARSE)))
        return sorted({*(step for step in steps if step >= self._lowest), start})

    def box_threshold(self, options: CellSamPredictOptions) -> CellSamPredictOptions:
        """The options with the ``box_threshold`` of the highest F1; of equals the middle one."""
        coarse = self._middle(options, self.thresholds(options.box_threshold))
        if self.measure(coarse)["f1@0.50"] == 0:
            return options
        at, around = coarse.box_threshold, round(_COARSE / _FINE)
        near = (round(at + step * _FINE, 4) for step in range(1 - around, around))
        fine = self._middle(options, [at, *(one for one in near if self._lowest <= one <= 1)])
        better = self.quality(fine, _F1) > self.quality(coarse, _F1)
        return fine if better else coarse

    def _middle(
        self, options: CellSamPredictOptions, values: Sequence[float]
    ) -> CellSamPredictOptions:
        tried = [_changed(options, box_threshold=value) for value in values]
        highest = max(self.quality(one, _F1) for one in tried)
        equals = [one for one in tried if self.quality(one, _F1) == highest]
        return equals[(len(equals) - 1) // 2]

    def choice(self, best: CellSamPredictOptions, names: Sequence[str]) -> Choice:
        """What was found for the options of these names."""
        found = {name: getattr(best, name) for name in names}
        before, after = self.measure(self._start), self.measure(best)
        return Choice(best, found, "masks", before, after, len(self._tiles))


def _changed(options: CellSamPredictOptions, **values: object) -> CellSamPredictOptions:
    return options.model_copy(update=values)
