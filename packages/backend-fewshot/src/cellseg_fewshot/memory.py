"""What is remembered of the examples, and the score that a candidate gets from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cellseg_fewshot.magnification import Blobs
from cellseg_fewshot.priors import SHAPE, SIZE, Prior
from cellseg_fewshot.similarity import Space, nearness, unit

_MOST = 3.0
"""The quality of a mask changes the logit by no more."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is known of ``n`` masks."""

    descriptors: NDArray[np.floating]
    """``(n, d)``."""
    measured: NDArray[np.float64]
    """``(n, 3)``: see ``cellseg_fewshot.priors``."""
    quality: NDArray[np.floating]
    """``(n,)``: how good a mask each is by itself, 0 to 1."""
    cut: NDArray[np.bool_] | None = None
    """``(n,)``: which ones touch the border of the plane; None for none."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Prototypes and negatives, priors of size and shape, and what makes a score of them.

    The score of a candidate for a class is a probability, ``sigmoid(slope * (p - n - offset) -
    size - shape + quality)``: how similar it is to the prototypes of the class and how similar to
    what is known not to be one (``similarity.nearness``), the penalties of ``priors``, and how much
    better or worse a mask it is than those of the examples. ``offset`` and ``slope`` were found on
    the examples, each compared with the others.
    """

    kinds: tuple[int, ...]
    """The classes, by rising number."""
    prototypes: NDArray[np.float64]
    """``(m, d)``, of length 1."""
    prototype_kinds: NDArray[np.int64]
    """``(m,)``; rising."""
    priors: Mapping[int, Prior]
    """Of each class."""
    space: Space | None = None
    """Where vectors are compared; None, as in the mode crop, compares what the encoder gives with
    the one prototype of each class."""
    negatives: NDArray[np.float64]
    """``(k, d)``, of length 1."""
    offset: float = 0.0
    slope: float = 1.0
    quality: float = 1.0
    """What masks of the examples have, by the median."""
    quality_spread: float = 0.1
    """A mask that is worse by this is e times less probable."""
    peaks: NDArray[np.float64] | None = None
    """``(classes, d + 1)``: what makes a map of similarity of a feature map, the last column being
    added. It is near 1 in the examples, and near 0 around them."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """What separates best, by which priors count: see ``threshold``."""
    diameters: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """The smallest, the median and the largest of the examples, of discs of their area, pixels."""
    areas: tuple[int, int] = (1, 1)
    """The smallest and the largest of the examples, in pixels."""
    occupancy: float = 0.0
    """Part of a crop that the object fills, in the mode crop."""
    blobs: Blobs | None = None
    """What tells how large objects are in other images; None where nothing does."""

    def at(self, magnification: float) -> Memory:
        """The same for images in which objects are so many times larger."""
        if magnification == 1:
            return self
        grown = {kind: prior.at(magnification) for kind, prior in self.priors.items()}
        return replace(self, priors=grown)

    @property
    def mode(self) -> str:
        """``dense`` or ``crop``."""
        return "crop" if self.space is None else "dense"

    def evidence(self, descriptors: NDArray[np.floating]) -> NDArray[np.float64]:
        """How similar candidates are to each class and to nothing else, ``(n, classes)``: -2 to 2,
        or in the mode crop the cosine."""
        if self.space is None:
            return unit(descriptors.astype(np.float64)) @ self.prototypes.T
        return self.compared(self.space.vectors(descriptors))

    def compared(
        self, vectors: NDArray[np.float64], left_out: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """The same of vectors ``(n, d)`` in the space.

        Args:
            vectors: of length 1.
            left_out: ``(n, k)``: the negatives that do not count for each.
        """
        against = nearness(vectors, self.negatives, left_out)
        positive = [
            nearness(vectors, self.prototypes[self.prototype_kinds == kind]) for kind in self.kinds
        ]
        return np.stack(positive, 1) - against[:, None]

    def scores(
        self, candidates: Candidates, size_prior: bool, shape_prior: bool
    ) -> NDArray[np.float64]:
        """The score of candidates for each class, ``(n, classes)``, 0 to 1.

        In the mode crop it is the cosine, 0 where that is negative, and times ``exp(-penalty)``
        with priors.
        """
        return self.combined(
            self.evidence(candidates.descriptors), candidates, size_prior, shape_prior
        )

    def combined(
        self,
        evidence: NDArray[np.float64],
        candidates: Candidates,
        size_prior: bool,
        shape_prior: bool,
    ) -> NDArray[np.float64]:
        """The score, given what ``evidence`` says; arguments and result as of ``scores``."""
        penalties = np.zeros(evidence.shape)
        for column, kind in enumerate(self.kinds):
            for counts, features in ((size_prior, SIZE), (shape_prior, SHAPE)):
                if counts:
                    penalties[:, column] += self.priors[kind].penalty(
                        candidates.measured, features, candidates.cut
                    )
        if self.space is None:
            return np.clip(evidence, 0, 1) * np.exp(-penalties)
        better = (candidates.quality.astype(np.float64) - self.quality) / (self.quality_spread)
        better = np.clip(better, -_MOST, _MOST)
        logits = self.slope * (evidence - self.offset) - penalties + better[:, None]
        found: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
        return found

    def threshold(self, size_prior: bool, shape_prior: bool) -> float:
        """What separates examples from all else, given which priors count."""
        return self.thresholds[combination(size_prior, shape_prior)]


COMBINATIONS = tuple((size, shape) for size in (True, False) for shape in (True, False))


def combination(size_prior: bool, shape_prior: bool) -> str:
    """What ``Memory.thresholds`` calls priors that count together."""
    return "+".join(n for n, on in (("size", size_prior), ("shape", shape_prior)) if on) or "none"
