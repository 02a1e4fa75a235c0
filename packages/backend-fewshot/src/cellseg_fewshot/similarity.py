"""How similar descriptors are to what was learned: prototypes against negatives.

Raw features of large encoders have a cosine of .9 to whatever there is, because they share a mean
and few directions of large variance. So both are taken out first, as measured on the images of the
examples; only then do angles tell objects apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHRINKAGE = 0.2
"""Weight of the unit matrix beside the correlations, of which there are more than few examples
can tell."""
_TEMPERATURE = 0.1
"""The nearest neighbours count most: one that is this much more similar weighs e times as much."""
_STARTS = 10


@dataclass(frozen=True, slots=True)
class Space:
    """Where descriptors are compared: centred between what is looked for and all else, and with a
    spread within each of the two that is the same in all directions (as in linear discriminant
    analysis, Fisher, doi:10.1111/j.1469-1809.1936.tb02137.x)."""

    centre: NDArray[np.float64]
    """``(d,)``."""
    axes: NDArray[np.float64]
    """``(d, d)``: columns are directions."""

    @classmethod
    def of(cls, *groups: NDArray[np.float64]) -> Space:
        """From groups of descriptors that weigh as much as each other.

        Args:
            groups: each ``(n, d)``, not empty.
        """
        means = np.stack([group.mean(0) for group in groups])
        within = [group - mean for group, mean in zip(groups, means, strict=True)]
        # Where one group has too few to have a spread, the other speaks for both.
        spread = [each for each in within if len(each) > 2] or [np.concatenate(groups) - means[0]]
        variance = np.mean([(each**2).mean(0) for each in spread], axis=0)
        floor = 1e-6 * max(float(variance.max()), 1e-12)
        scale = 1 / np.sqrt(variance + floor)
        correlation = np.mean([(e * scale).T @ (e * scale) / len(e) for e in spread], axis=0)
        correlation = (1 - _SHRINKAGE) * correlation + _SHRINKAGE * np.eye(len(scale))
        values, vectors = np.linalg.eigh(correlation)
        return cls(means.mean(0), scale[:, None] * (vectors / np.sqrt(values)) @ vectors.T)

    def place(self, descriptors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Where descriptors lie, ``(n, d)``, at any distance from the centre."""
        found: NDArray[np.float64] = (descriptors.astype(np.float64) - self.centre) @ self.axes
        return found

    def vectors(self, descriptors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Their directions from the centre: unit vectors ``(n, d)``, 0 for the centre itself."""
        return unit(self.place(descriptors))


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors ``(n, d)`` of length 1; those of length 0 stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def nearness(
    vectors: NDArray[np.float64],
    known: NDArray[np.float64],
    left_out: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """The cosine to the nearest of known vectors, softly: the mean of the cosines, weighted by
    ``exp(cosine / 0.1)``.

    Args:
        vectors: ``(n, d)``, of length 1.
        known: ``(m, d)``, of length 1.
        left_out: ``(n, m)``: which of them do not count.

    Returns:
        ``(n,)``, -1 to 1; 0 where none counts.
    """
    cosines = vectors @ known.T
    counts = np.ones(cosines.shape, bool) if left_out is None else ~left_out
    highest = np.where(counts, cosines, -1.0).max(1, initial=-1.0, keepdims=True)
    weights = np.where(counts, np.exp((cosines - highest) / _TEMPERATURE), 0.0)
    total = weights.sum(1)
    found: NDArray[np.float64] = (weights * cosines).sum(1) / np.where(total > 0, total, 1)
    return found


def condensed(vectors: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float64]:
    """As many prototypes of some vectors, by k-means; themselves where there are no more.

    Args:
        vectors: ``(n, d)``, of length 1.
        count: how many; 0 keeps them all.
        seed: of the first choices.
    """
    if not count or len(vectors) <= count:
        return vectors
    from scipy.cluster.vq import kmeans2

    best, least = vectors[:count], np.inf
    for start in range(_STARTS):
        middles, which = kmeans2(
            vectors, count, minit="++", missing="warn", rng=np.random.default_rng((seed, start))
        )
        cost = float(((vectors - middles[which]) ** 2).sum())
        if cost < least:
            best, least = middles[np.unique(which)], cost
    return unit(best)
