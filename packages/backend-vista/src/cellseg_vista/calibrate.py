"""Find the method and the thresholds of the prediction that score best on validation patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset  # noqa: TID253

from cellseg.classes import UNKNOWN
from cellseg.data import Dataset, Tiling
from cellseg.metrics import overlaps, tally
from cellseg.patches import PatchGrid
from cellseg.torch.devices import memory_errors, resolve_device
from cellseg.torch.patches import Grid
from cellseg_vista.instances import PixelMaps, find_instances, pixel_maps
from cellseg_vista.network import Network
from cellseg_vista.predict_options import USED, Method, VistaPredictOptions
from cellseg_vista.scoring import NOTHING, is_dense, quality

_MAIN: Mapping[Method, tuple[str, Sequence[float]]] = {
    "watershed": ("bandwidth", (0.0, 0.5, 0.75, 1.0, 1.5)),
    "agglomerate": (
        "join_threshold",
        (0.2, 0.25, 0.3, 0.35, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8),
    ),
    "cluster": ("bandwidth", (0.5, 0.75, 1.0, 1.5, 2.0)),
    "mutex": ("bandwidth", (0.5, 0.75, 1.0, 1.5, 2.0)),
}
"""The option that matters most to each method, and what is tried for it beside the default."""
_STEADY = ("join_threshold",)
_SEEDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_FOREGROUND = (0.3, 0.4, 0.5, 0.6, 0.7)
_SIZES = {2: (0, 15, 30, 60, 120), 3: (0, 50, 100, 200, 500)}
_ROUNDS = 2
_OTHERS = ("class_id", "precision")
"""What is not searched for, and changes what is found."""
_WORTH = 0.01
"""What another value must gain: validation images are few, and smaller gains mostly their luck."""
MOST_VOXELS = 1 << 21
"""How much of the validation patches is looked at: this bounds time and memory."""
PLANE = 512
"""Of the pieces of planes that are looked at, in pixels."""
_GOLDEN = 0.6180339887

Pair = tuple[PixelMaps, NDArray[np.integer]]
"""The network's maps of a patch, and the true labels ``(*s)`` with ``UNKNOWN``."""
OptionsT = TypeVar("OptionsT", bound=VistaPredictOptions)


@dataclass(frozen=True)
class Choice:
    """What predicts the validation patches best."""

    options: VistaPredictOptions
    scores: Mapping[str, float]
    """The ``quality`` that each method reaches with the best value of its main option."""
    reached: float
    """The ``quality`` of the options."""
    before: float | None = None
    """That of the options to start from, where there were any."""
    pieces: int = 0
    """How many were looked at."""

    @property
    def stored(self) -> dict[str, object]:
        """The options as the bundle stores them: without those that the method does not use."""
        names = {"method", "foreground_threshold", "min_size", *USED[self.options.method]}
        return self.options.model_dump(include=names)

    @property
    def tried(self) -> str:
        """The scores in words."""
        return ", ".join(f"{name} {score:.3f}" for name, score in self.scores.items())

    def __str__(self) -> str:
        return f"Segments by {self.options.method}. Scores on the validation images: {self.tried}."


def pieces(samples: Dataset, tiling: Tiling) -> Grid:
    """Pieces of the images as large as prediction will see them: thresholds depend on it."""
    grids = []
    for sample in samples:
        shape = tuple(min(n, m) for n, m in zip(sample.image.shape[1:], tiling.core, strict=True))
        grids.append(PatchGrid([sample], (shape[0], shape[1], shape[2])))
    return ConcatDataset(grids)


class Patches(Protocol):
    """Batches of one validation patch each: ``image``, ``labels``, and ``classes`` below 0 where
    nothing is known."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int, /) -> Mapping[str, torch.Tensor]:
        """The batch of one patch."""


def calibrate(
    network: Network,
    patches: Patches,
    device: str,
    options_class: type[VistaPredictOptions],
    spacing: Sequence[float],
    classes: int,
) -> Choice:
    """The options that predict the validation patches best.

    Only patches of ``MOST_VOXELS`` in all are looked at, or a single larger one, evenly chosen.

    Args:
        network: trained.
        patches: from the validation images.
        device: where to run the network.
        options_class: of the backend's prediction.
        spacing: voxel size along each axis of the network.
        classes: how many the data has, background included.

    Raises:
        DeviceError: the memory does not suffice.
    """
    hint = "The training is done: cellseg resume RUN --device cpu goes on from here."
    pairs = look(network, patches, device, classes, hint)
    return search(pairs, options_class, tuple(spacing))


def search(
    pairs: Sequence[Pair],
    options_class: type[VistaPredictOptions],
    spacing: tuple[float, ...],
    start: VistaPredictOptions | None = None,
    given: frozenset[str] = frozenset(),
) -> Choice:
    """The best options for pairs of the network's maps and the truth.

    Each method (the watershed with either flood) is tried with its main option. The best one is
    then improved option by option, each in turn. A value that gains next to nothing does not
    replace the one before. Of ``join_threshold``, beyond which all objects run together at once,
    a value counts with its neighbours, so that the one chosen stands away from the brink.

    Args:
        pairs: at least one.
        options_class: of the backend's prediction.
        spacing: voxel size along each axis.
        start: what others must gain on; None searches from the defaults.
        given: names of the options of ``start`` that stay as they are; only methods that use them
            are tried.
    """
    score = _scorer(pairs, spacing)
    best, reached = start or options_class(), -1.0 if start is None else score(start)
    before = None if start is None else reached
    kept = {} if start is None else {name: getattr(start, name) for name in {*_OTHERS, *given}}
    scores: dict[str, float] = {}
    for method in _methods(start, given):
        main, values = _MAIN[method]
        firsts = [options_class(**{**kept, "method": method})]
        if "flood" in USED[method] and "flood" not in given:
            firsts.append(_with(firsts[0], "flood", "embedding"))
        for first in firsts:
            tried = [first, *(_with(first, main, v) for v in values if main not in given)]
            if main in _STEADY:
                tried.sort(key=lambda options: getattr(options, main))
            best, reached = _better(tried, score, best, reached, steady=main in _STEADY)
            scores[method] = max(scores.get(method, 0.0), *map(score, tried))
    reached = score(best)
    main, values = _MAIN[best.method]
    grids: dict[str, Sequence[object]] = {"foreground_threshold": _FOREGROUND}
    if "seed_threshold" in USED[best.method]:
        grids = {"seed_threshold": _SEEDS, **grids}
    if main not in _STEADY:
        grids[main] = values
    grids["min_size"] = _SIZES[len(spacing)]
    grids = {name: grid for name, grid in grids.items() if name not in given}
    for _ in range(_ROUNDS):
        so_far = best
        for name, grid in grids.items():
            tried = [_with(best, name, value) for value in grid]
            best, reached = _better(tried, score, best, reached)
        if best == so_far:
            break
    return Choice(best, scores, score(best), before, len(pairs))


def _methods(start: VistaPredictOptions | None, given: frozenset[str]) -> list[Method]:
    """Those to try: the one that is given, or all that use what is given."""
    if start is not None and "method" in given:
        return [start.method]
    if start is not None and "bandwidth" in given and start.bandwidth == 0:
        return ["watershed"]  # the others cannot do without
    own = {name for names in USED.values() for name in names} & given
    return [method for method in _MAIN if own <= {*USED[method]}]


def _with(options: OptionsT, name: str, value: object) -> OptionsT:
    return options.model_copy(update={name: value})


def _better(
    tried: Sequence[OptionsT], score: Any, best: OptionsT, reached: float, steady: bool = False
) -> tuple[OptionsT, float]:
    scores = [score(options) for options in tried]
    if steady:
        around = [scores[max(i - 1, 0) : i + 2] for i in range(len(scores))]
        scores = [sum(values) / len(values) for values in around]
    if max(scores) > reached + _WORTH:
        return tried[scores.index(max(scores))], max(scores)
    return best, reached


def look(
    network: Network,
    patches: Patches,
    device: str,
    classes: int,
    hint: str,
    precision: str = "32-true",
) -> list[Pair]:
    """What the network says of some patches, and the truth.

    Args:
        network: trained.
        patches: of which ``MOST_VOXELS`` in all are looked at, or a single larger one.
        device: where to run it.
        classes: how many the data has, background included.
        hint: what to do if the memory does not suffice.
        precision: as ``VistaPredictOptions`` has it.

    Raises:
        DeviceError: the memory does not suffice.
    """
    network = network.eval().to(where := resolve_device(device))
    pairs: list[Pair] = []
    left = MOST_VOXELS
    mixed = torch.autocast(where.type, torch.bfloat16, precision == "bf16-mixed")
    with torch.inference_mode(), memory_errors(hint), mixed:
        # In this order the first few are spread over all, however many they turn out to be.
        for number in sorted(range(len(patches)), key=lambda i: i * _GOLDEN % 1):
            item = patches[number]
            truth = item["labels"][0].numpy().astype(np.uint32)
            left -= truth.size
            if pairs and left < 0:
                break
            (maps,) = pixel_maps(network(item["image"].to(where)), classes)
            truth[item["classes"][0].numpy() < 0] = UNKNOWN
            pairs.append((maps, truth))
    network.to("cpu")
    return pairs


def _scorer(pairs: Sequence[Pair], spacing: tuple[float, ...]) -> Any:
    """Options to their ``quality``, pooled over all patches; unknown voxels do not count."""
    known = sum(int((truth != UNKNOWN).sum()) for _, truth in pairs)
    filled = sum(int(((truth != UNKNOWN) & (truth > 0)).sum()) for _, truth in pairs)
    dense = is_dense(known, filled)
    seen: dict[str, float] = {}

    def score(options: VistaPredictOptions) -> float:
        key = options.model_dump_json()
        if key not in seen:
            total = NOTHING
            for maps, truth in pairs:
                found = find_instances(maps, options, spacing).labels
                total += tally(overlaps(found, truth).without_label(UNKNOWN))
            seen[key] = quality(total, dense)
        return seen[key]

    return score
