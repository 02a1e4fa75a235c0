"""From what was seen of the examples to what is remembered of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cellseg_fewshot.looking import Role, Seen
from cellseg_fewshot.memory import COMBINATIONS, Candidates, Memory, combination
from cellseg_fewshot.options import FewshotOptions
from cellseg_fewshot.priors import Prior
from cellseg_fewshot.similarity import Space, condensed, unit

_FAR = 1.25
"""What nobody pointed at is no object of the kind if it lies so many times farther from all
examples than these from each other."""
_USUAL = 0.9
"""How far examples lie from each other: the distance to the nearest other one of this part."""
_GOOD = 0.6
"""A mask is good that has this part of the quality of those of examples."""
_MOST_NEGATIVES = 512
_CERTAIN = 2.5
"""Logit of the typical example, by its similarity alone; and below 0 of what is none."""
_STEEPEST = 40.0
_SPREAD, _WORTH, _MAD = 0.15, 6.0, 1.4826
"""Of the quality: what to expect, as many examples as that weighs, and the standard deviation of a
normal distribution, in units of its median absolute deviation."""
_RIDGE = 0.1
"""Weight of the unit matrix beside the covariance of features, of maps of similarity."""


@dataclass(frozen=True, slots=True)
class Separation:
    """How well what was learned tells the examples from all else; each example by the others."""

    positives: NDArray[np.float64]
    """Scores of the examples."""
    negatives: NDArray[np.float64]
    """Scores of what is known to be none."""
    threshold: float
    unfound: tuple[int, ...]
    """Numbers of the examples that are not among the candidates."""


def remember_crops(seen: Seen, kinds: Sequence[int], occupancy: float) -> Memory:
    """One prototype of each class: the mean of the descriptors of its examples, of length 1."""
    prototypes = [seen.descriptors[seen.kinds == kind].astype(np.float64).mean(0) for kind in kinds]
    return replace(
        _sizes(seen, kinds),
        prototypes=unit(np.stack(prototypes)),
        prototype_kinds=np.array(kinds, np.int64),
        thresholds={combination(*counts): 0.5 for counts in COMBINATIONS},
        occupancy=occupancy,
    )


def remember(
    seen: Seen, kinds: Sequence[int], options: FewshotOptions, seed: int, judged: bool
) -> tuple[Memory, Separation]:
    """Prototypes, negatives, priors and thresholds, for the mode dense.

    Args:
        seen: everything in all windows; at least one example of each class.
        kinds: the classes, by rising number.
        options: those of the comparison count.
        seed: of the choice of prototypes, and of negatives where there are too many.
        judged: whether the quality of masks was learned from the examples (``Encoder.judges``).
    """
    shown = np.flatnonzero(seen.roles == Role.SHOWN)
    negatives = _negatives(seen, shown, options.background is not False, seed, judged)
    others = np.flatnonzero(~np.isin(seen.roles, (Role.SHOWN, Role.FOUND)))
    against = negatives if len(negatives) else others
    groups = [seen.descriptors[rows].astype(np.float64) for rows in (shown, against) if len(rows)]
    memory = replace(
        _sizes(seen, kinds),
        space=Space.of(*groups),
        peaks=_peaks(seen, kinds, options.background is not False),
    )
    assert memory.space is not None
    vectors = memory.space.vectors(seen.descriptors)
    known = _Known(memory, seen, vectors, options.prototypes or 0, seed)
    memory = known.of(shown, negatives)
    tried, unfound = _tried(seen, shown)
    rivals = negatives[np.isin(seen.roles[negatives], (Role.AVOIDED, Role.UNKNOWN))]
    found = seen.quality[tried[seen.roles[tried] == Role.FOUND]]
    quality, spread = _usual(found if len(found) else seen.quality[seen.roles == Role.UNKNOWN])
    rows = np.concatenate([tried, rivals])
    evidence = known.apart(rows, shown, negatives)
    own = evidence[np.arange(len(tried)), [kinds.index(k) for k in seen.kinds[tried]]]
    offset, slope = _scale(own, evidence[len(tried) :].max(1))
    memory = replace(memory, quality=quality, quality_spread=spread, offset=offset, slope=slope)
    # What the user drew has no quality of its own.
    worth = np.where(seen.roles[rows] == Role.SHOWN, quality, seen.quality[rows])
    looked = Candidates(seen.descriptors[rows], seen.measured[rows], worth)
    thresholds, separation = {}, None
    for counts in COMBINATIONS:
        scores = memory.combined(evidence, looked, *counts)
        positives = scores[np.arange(len(tried)), [kinds.index(k) for k in seen.kinds[tried]]]
        limit = separating(positives, scores[len(tried) :].max(1))
        thresholds[combination(*counts)] = limit
        if counts == (True, True):
            separation = Separation(positives, scores[len(tried) :].max(1), limit, unfound)
    assert separation is not None
    return replace(memory, thresholds=thresholds), separation


def separating(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """The threshold that tells positives from negatives best, with the highest mean of the two
    parts that are on their side. Where a range of thresholds does, it is a third of the way, by the
    logit, from the negatives to the positives: examples are more alike than what is like them.

    Args:
        positives: scores, 0 to 1, at least one.
        negatives: scores; without any, they are taken to be 0.05 or lower.

    Returns:
        0.05 to 0.95.
    """
    positives, negatives = (
        np.log(np.clip(x, 0.01, 0.99) / (1 - np.clip(x, 0.01, 0.99)))
        for x in (positives, negatives if len(negatives) else np.array([0.05]))
    )
    values = np.unique(np.concatenate([positives, negatives]))
    right = [(positives >= edge).mean() + (negatives < edge).mean() for edge in values]
    # A threshold anywhere above the value before it, up to this one, does the same.
    best = int(np.argmax(right))
    below = values[best - 1] if best else values[0] - 1
    limit = below + (values[best] - below) / 3
    return float(np.clip(1 / (1 + np.exp(-limit)), 0.05, 0.95))


def _sizes(seen: Seen, kinds: Sequence[int]) -> Memory:
    """A memory that knows no more than how large the examples are, and of which shape."""
    shown = seen.roles == Role.SHOWN
    areas = np.exp(seen.measured[shown, 0]).round()
    across = 2 * np.sqrt(areas / np.pi)
    return Memory(
        kinds=tuple(kinds),
        prototypes=np.zeros((0, seen.descriptors.shape[1])),
        prototype_kinds=np.zeros(0, np.int64),
        negatives=np.zeros((0, seen.descriptors.shape[1])),
        priors={k: Prior.of(seen.measured[shown & (seen.kinds == k)]) for k in kinds},
        diameters=(float(across.min()), float(np.median(across)), float(across.max())),
        areas=(int(areas.min()), int(areas.max())),
    )


def _negatives(
    seen: Seen, shown: NDArray[np.int64], background: bool, seed: int, judged: bool
) -> NDArray[np.int64]:
    """The masks that are certainly no object of the kind: what is to be left alone, and with
    ``background`` what lies far from all examples, wherever it is. Objects at which nobody pointed
    look like the examples, or are at least good masks where that was ``judged`` by the examples;
    they are not among them."""
    avoided = np.flatnonzero(seen.roles == Role.AVOIDED)
    if not background:
        return avoided
    apart = np.isin(seen.roles, (Role.WRONG, Role.AROUND, Role.UNKNOWN))
    found = seen.quality[seen.roles == Role.FOUND]
    if judged and len(found):
        apart &= (seen.roles != Role.UNKNOWN) | (seen.quality < _GOOD * np.median(found))
    others = np.flatnonzero(apart)
    if not len(others):
        return avoided
    place = Space.of(seen.descriptors.astype(np.float64)).place(seen.descriptors)
    own, far = place[shown], _nearest(place[others], place[shown])
    if len(shown) > 1:
        usual = float(np.quantile(_nearest(own, own, itself=False), _USUAL))
    else:
        usual = float(np.quantile(far, 0.25))
    certain = others[far > _FAR * usual]
    if len(certain) > _MOST_NEGATIVES:
        drawn = np.random.default_rng(seed).choice(len(certain), _MOST_NEGATIVES, replace=False)
        certain = certain[np.sort(drawn)]
    return np.concatenate([avoided, certain])


def _nearest(
    places: NDArray[np.float64], known: NDArray[np.float64], itself: bool = True
) -> NDArray[np.float64]:
    """The distance of each place to the nearest known one, or to the nearest but itself."""
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(known).query(places, k=[1 if itself else 2])
    found: NDArray[np.float64] = distances[:, 0]
    return found


@dataclass(frozen=True, slots=True)
class _Known:
    """What memories are made of."""

    memory: Memory
    """Without prototypes and negatives."""
    seen: Seen
    vectors: NDArray[np.float64]
    """Of everything seen."""
    prototypes: int
    seed: int

    def of(self, shown: NDArray[np.int64], negatives: NDArray[np.int64]) -> Memory:
        """The memory of these examples and negatives, given by their rows."""
        prototypes, kinds = [], []
        for kind in self.memory.kinds:
            mine = self.vectors[shown[self.seen.kinds[shown] == kind]]
            prototypes.append(condensed(mine, self.prototypes, self.seed))
            kinds += [kind] * len(prototypes[-1])
        return replace(
            self.memory,
            prototypes=np.concatenate(prototypes),
            prototype_kinds=np.array(kinds, np.int64),
            negatives=self.vectors[negatives],
        )

    def apart(
        self, rows: NDArray[np.int64], shown: NDArray[np.int64], negatives: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The evidence for masks, ``(n, classes)``, each without what is known of the example that
        it belongs to, and without itself. The only example of its class stays."""
        evidence = np.zeros((len(rows), len(self.memory.kinds)))
        belongs = self.seen.examples
        for example in np.unique(belongs[rows]):
            mine = np.flatnonzero(belongs[rows] == example)
            others, against = shown, negatives
            if example >= 0:
                others = shown[belongs[shown] != example]
                against = negatives[belongs[negatives] != example]
                if not set(self.seen.kinds[shown]) <= set(self.seen.kinds[others]):
                    others = shown
            memory = self.of(others, against)
            itself = rows[mine][:, None] == against[None]
            evidence[mine] = memory.compared(self.vectors[rows[mine]], itself)
        return evidence


def _tried(seen: Seen, shown: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """For each example the candidate that is most like it, or else the example itself; and the
    examples that are not among the candidates."""
    rows, unfound = [], []
    for row in shown:
        mine = np.flatnonzero((seen.roles == Role.FOUND) & (seen.examples == seen.examples[row]))
        if len(mine):
            rows.append(mine[np.argmax(seen.overlaps[mine])])
        else:
            rows.append(row)
            unfound.append(int(seen.examples[row]))
    return np.array(rows, np.int64), tuple(unfound)


def _usual(quality: NDArray[np.float64]) -> tuple[float, float]:
    """The median, and a spread that a few values change little."""
    if not len(quality):
        return 1.0, _SPREAD
    median, count = float(np.median(quality)), len(quality)
    own = _MAD * float(np.median(np.abs(quality - median)))
    return median, float(np.sqrt((count * own**2 + _WORTH * _SPREAD**2) / (count + _WORTH)))


def _scale(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> tuple[float, float]:
    """Offset and slope that bring the typical example to one logit, and the most similar of what
    is none to its opposite."""
    high = float(np.median(positives))
    low = float(np.quantile(negatives, 0.9)) if len(negatives) else float(positives.min()) - 0.5
    width = max(high - low, 2 * _CERTAIN / _STEEPEST)
    return high - width / 2, 2 * _CERTAIN / width


def _peaks(seen: Seen, kinds: Sequence[int], background: bool) -> NDArray[np.float64]:
    """A linear discriminant between cells in the examples of each class and cells around them."""
    count = float(seen.count[0])
    mean = seen.cells[-1] / count
    covariance = seen.cells[:-1] / count - np.outer(mean, mean)
    spread = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    correlation = covariance / np.outer(spread, spread) + _RIDGE * np.eye(len(spread))
    pooled = (seen.pooled - mean) / spread
    around = pooled[seen.roles == Role.AROUND]
    low = around.mean(0) if background and len(around) else np.zeros(len(mean))
    maps = []
    for kind in kinds:
        high = pooled[(seen.roles == Role.SHOWN) & (seen.kinds == kind)].mean(0)
        direction = np.linalg.solve(correlation, high - low)
        direction /= max(float(direction @ (high - low)), 1e-12)
        weights = direction / spread
        maps.append(np.append(weights, -direction @ low - weights @ mean))
    return np.stack(maps)
