"""What the method knows of an encoder: planes it has seen, their features, and masks of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.masks import FoundMask


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Vectors on a grid over a plane; what shows only padding is left out."""

    values: Tensor
    """``(d, gy, gx)`` float32; the grid covers the plane, and its last cells may reach beyond."""
    step: tuple[float, float]
    """Pixels of the plane in a cell, ``(y, x)``: cell ``i`` covers ``i * step`` to
    ``(i + 1) * step``."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An example as a view has it."""

    mask: FoundMask
    """Its score does not count."""
    kind: int
    """Its class; 0 for what is to be left alone."""


class View(Protocol):
    """One plane that an encoder has seen, once."""

    @property
    def size(self) -> tuple[int, int]:
        """Of the plane, ``(y, x)``."""

    @property
    def features(self) -> FeatureMap:
        """What the encoder sees."""

    def describe(self, masks: Sequence[FoundMask]) -> Tensor:
        """A vector of each mask, ``(n, d)`` float32 on the CPU, pooled from the features of the
        plane without encoding anything again."""

    def answer(self, points: NDArray[np.float32]) -> list[FoundMask]:
        """Masks of the objects that points may mean: several for a point where it is ambiguous,
        none where the encoder finds nothing.

        Args:
            points: ``(n, 2)``, continuous, ``(y, x)`` in pixels of the plane.

        Returns:
            Masks in the order of the points, without exact repetitions; each has as its score how
            good a mask it is by itself, 0 to 1.
        """


class Encoder(Protocol):
    """A model that sees planes."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def calls(self) -> int:
        """How many planes and crops were encoded so far."""

    @property
    def judges(self) -> bool:
        """Whether the scores of its masks were learned from the examples, so that a good mask is
        likely an object like them, however else it looks."""

    @property
    def scales(self) -> bool:
        """Whether it brings planes to the size that it sees; others take them as they are."""

    @property
    def side(self) -> int:
        """Pixels along a side of what it sees at once at its best; crops are brought to it."""

    def expect(self, side: int) -> None:
        """Learn how many pixels along a side tiles have, at most: smaller planes, such as whole
        images, are then seen at the scale of tiles by encoders that scale planes."""

    def view(
        self, planes: Sequence[NDArray[np.float32]], larger: Sequence[float] | None = None
    ) -> list[View]:
        """See planes ``(c, y, x)`` of one shape, each encoded once.

        Args:
            planes: what to see.
            larger: of each, how many times larger its objects are than those that were fitted to;
                an encoder that has learned nothing of sizes sees all sizes alike.
        """

    def encode_crops(self, crops: Sequence[NDArray[np.float32]]) -> list[FeatureMap]:
        """The features of square crops ``(c, s, s)``, each of any size, in one batch; the step is
        in pixels of the crop."""

    def fit(self, shown: Sequence[tuple[NDArray[np.float32], Sequence[Shown]]], seed: int) -> None:
        """Learn from the examples what there is to learn before anything is compared, such as
        what is foreground; an encoder with nothing to learn does nothing.

        Args:
            shown: planes ``(c, y, x)`` with the examples in them.
            seed: of what is random.
        """

    def state(self) -> Mapping[str, Tensor]:
        """Tensors that a model must keep so that this encoder can be opened again: what was fitted,
        and weights that nobody publishes."""
