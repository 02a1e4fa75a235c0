"""Find the thresholds that suit labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cellseg import Emit
from cellseg.classes import UNKNOWN
from cellseg.data import Dataset, Image, Tiling
from cellseg.errors import ConfigError
from cellseg.events import Note
from cellseg.metrics import overlaps, score, tally
from cellseg.specs import CalibrateJob
from cellseg.torch.calibration import labelled_tiles, sizes_to_try
from cellseg.torch.devices import memory_errors
from cellseg.torch.frames import Frame
from cellseg_cellsam2.births import ask, choose_new, points_to_ask
from cellseg_cellsam2.candidates import Candidates
from cellseg_cellsam2.encoding import MEMORY_HINT, Encoder
from cellseg_cellsam2.predict import opened
from cellseg_cellsam2.predict_options import CellSam2PredictOptions

_TILES = 16
"""How many tiles are looked at, at most."""
_VALUES: Mapping[str, tuple[float, ...]] = {
    "heat_threshold": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "pred_iou": (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}
"""What is tried for each option, in this order."""
_SIZES = (0, 5, 10, 15, 30, 50, 100, 200, 400, 800)
_WORTH = 0.005
"""What another value must gain: validation images are few, and smaller gains mostly their luck."""
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Choice:
    """What segments the labelled images best."""

    options: CellSam2PredictOptions
    found: Mapping[str, object]
    """The options that were looked for."""
    before: Mapping[str, float]
    """``f1@0.50`` and ``mSA@0.50:0.95`` over all objects, with the options to start from."""
    after: Mapping[str, float]
    """The same with those found."""
    images: int
    """How many tiles were looked at."""

    def __str__(self) -> str:
        def shown(scores: Mapping[str, float]) -> str:
            return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())

        values = ", ".join(f"{name} {value}" for name, value in self.found.items())
        return (
            f"Thresholds: {values or 'all are given'}. Scores of single frames on {self.images}"
            f" pieces of the validation images: {shown(self.after)}; before calibration"
            f" {shown(self.before)}."
        )


@dataclass(frozen=True, slots=True)
class _Proposed:
    """What a tile's points were answered, and what is true."""

    frame: Frame
    answers: Candidates | None
    heat: NDArray[np.float32]
    """``(k,)``: of the peak of each answer; 1 for a grid."""
    truth: NDArray[np.uint32]
    """``(y, x)``."""

    def labels(self, options: CellSam2PredictOptions) -> NDArray[np.uint32]:
        """What ``find_new`` gives with these options."""
        found, nothing = self.answers, np.zeros(self.frame.size, bool)
        if found is not None:
            passed = found.ious >= options.pred_iou
            if options.use_heatmap:
                passed &= self.heat >= options.heat_threshold
            large = [np.count_nonzero(one.mask) >= options.min_size for one in found.masks]
            found = found.select(np.flatnonzero(passed & np.array(large, bool)).tolist())
            born = choose_new(found, self.frame, options, nothing)
            if born is not None:
                return born.labels
        return np.zeros(self.frame.size, np.uint32)


def calibrate(job: CalibrateJob[CellSam2PredictOptions], emit: Emit) -> Mapping[str, object]:
    """The thresholds of new objects that segment labelled images best; those of tracks stay.

    Images are cut into tiles as prediction cuts them, and a fixed number of tiles, evenly chosen,
    is looked at. Each is encoded once.

    Args:
        job: its options say whether the heatmap or a grid shows new objects.
        emit: told the scores before and after.

    Raises:
        ConfigError: there is no model; or an option of tracks is given.
        DataError: images have no labels, or too many channels.
        WeightsError, DeviceError: as for prediction.
    """
    if idle := job.options.of_tracks:
        raise ConfigError(
            f"{' and '.join(idle)}: nothing to do with calibration, which looks at single frames.",
            hint="Leave it out here, and give it to cellseg predict.",
        )
    encoder, _ = opened(job.options, job.device, job.model)
    choice = find_thresholds(encoder, job.samples, job.tiling, job.options, job.given)
    emit(Note(str(choice)))
    return choice.found


def find_thresholds(
    encoder: Encoder,
    samples: Dataset,
    tiling: Tiling,
    options: CellSam2PredictOptions,
    given: frozenset[str] = frozenset(),
) -> Choice:
    """The best values of ``heat_threshold``, ``pred_iou`` and ``min_size``, found one after the
    other, in two rounds.

    A value that gains next to nothing does not replace the one before. What counts is the mean of
    F1 at an IoU of 0.5 and of mSA, over all objects of all tiles; unknown pixels do not. Of
    ``min_size`` only values are tried that keep nearly all true objects.

    Args:
        encoder: the model.
        samples: with labels.
        tiling: how the images are cut.
        options: where to start from.
        given: names of options that stay as they are.

    Raises:
        DataError: there are no images, or one without labels.
    """
    with memory_errors(MEMORY_HINT), encoder.arithmetic():
        tiles = [
            _propose(encoder, tile.image, truth, options, given)
            for tile, truth in zip(*labelled_tiles(samples, tiling, _TILES), strict=True)
        ]
    values: dict[str, Sequence[float]] = {
        **_VALUES,
        "min_size": sizes_to_try((tile.truth for tile in tiles), _SIZES),
    }
    if not options.use_heatmap:
        del values["heat_threshold"]
    values = {name: each for name, each in values.items() if name not in given}
    seen: dict[CellSam2PredictOptions, Mapping[str, float]] = {}

    def measure(asked: CellSam2PredictOptions) -> Mapping[str, float]:
        if asked not in seen:
            tables = (overlaps(tile.labels(asked), tile.truth) for tile in tiles)
            found = score([tally(table.without_label(UNKNOWN)) for table in tables])
            seen[asked] = {name: found[name] for name in ("f1@0.50", "mSA@0.50:0.95")}
        return seen[asked]

    def quality(asked: CellSam2PredictOptions) -> float:
        return sum(measure(asked).values()) / 2

    best, sizes = options, values.get("min_size", ())
    if sizes and best.min_size > max(sizes):
        best = best.model_copy(update={"min_size": max(sizes)})
    for _ in range(_ROUNDS):
        before = best
        for name, each in values.items():
            tried = [best.model_copy(update={name: value}) for value in each]
            leader = max(tried, key=quality, default=best)  # the first of equals
            if quality(leader) > quality(best) + _WORTH:
                best = leader
        if best == before:
            break
    found = {name: getattr(best, name) for name in values}
    if not options.use_heatmap:
        found["use_heatmap"] = False
    return Choice(best, found, measure(options), measure(best), len(tiles))


def _propose(
    encoder: Encoder,
    image: Image,
    truth: NDArray[np.uint32],
    options: CellSam2PredictOptions,
    given: frozenset[str],
) -> _Proposed:
    """Ask with the lowest thresholds that will be tried."""
    frame = encoder.frame((image.shape[2], image.shape[3]))
    if image.min() == image.max():
        return _Proposed(frame, None, np.zeros(0, np.float32), truth)
    lowest = {
        name: min(getattr(options, name), *values)
        for name, values in (*_VALUES.items(), ("min_size", _SIZES))
        if name not in given
    }
    every = options.model_copy(update=lowest)
    encoded = encoder.encode([image])
    points, likely = points_to_ask(encoded.heat[0], frame, every, np.zeros(frame.size, bool))
    found = ask(encoder.model, encoded, 0, points, frame, every)
    if found is None:
        return _Proposed(frame, None, np.zeros(0, np.float32), truth)
    # The logits are not needed any more.
    small = replace(found, logits=found.logits[:, :0, :0])
    return _Proposed(frame, small, likely.cpu().numpy()[found.owner], truth)
