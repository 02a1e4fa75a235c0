"""What is foreground, learned from a few objects in images whose other objects nobody marked.

Pixels of the examples are positive and those right around them negative; all others are
unlabelled, and the risk over them is estimated as that of a mixture of both, never below 0
(Kiryo et al. 2017, arXiv:1703.00593). The networks are trained in folds, so that of each example
there is one that has not seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2  # noqa: TID253
import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253
from torch.nn.functional import binary_cross_entropy_with_logits, softplus  # noqa: TID253

from cellseg_fewshot.small_networks import Ensemble

FOLDS = 4
_PER_EXAMPLE = 1500
_UNLABELLED = 12000
_STEPS = 300
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Marked:
    """A plane in which some objects are known."""

    pixels: Sequence[NDArray[np.float32]]
    """``(d, y, x)``, filter responses to the plane, and to it brighter, darker, of more and of less
    contrast."""
    objects: Sequence[NDArray[np.bool_]]
    """``(y, x)`` of each example."""
    others: NDArray[np.bool_]
    """``(y, x)``: what is known not to be an object of interest."""


@dataclass(frozen=True, slots=True)
class _Pixels:
    """Pixels to learn from."""

    inside: Tensor
    inside_rim: Tensor
    inside_fold: Tensor
    around: Tensor
    around_rim: Tensor
    around_fold: Tensor
    unlabelled: Tensor


def learn_foreground(marked: Sequence[Marked], diameter: float, seed: int) -> Ensemble:
    """Networks with two outputs: whether a pixel lies in an object, and whether at a border.

    Args:
        marked: planes with examples; example ``i``, counted through all planes, is unknown to
            network ``i % FOLDS`` if there are at least two examples.
        diameter: of the examples, in pixels of the planes.
        seed: of the weights and of which pixels are drawn.

    Where examples cover all of their planes, all is foreground, and only borders are learned.
    """
    random = np.random.default_rng(seed)
    pixels = _draw(marked, diameter, random)
    parts = (pixels.inside, pixels.around, pixels.unlabelled)
    ensemble = Ensemble.create(torch.cat(parts), FOLDS, 32, 2, seed)
    inside, around, unlabelled = (ensemble.standardised(x) for x in parts)
    generator = torch.Generator().manual_seed(seed)
    prior = 0.0

    def batch(fold: Tensor) -> Tensor:
        picks = []
        for member in range(FOLDS):
            known = (fold != member).nonzero()[:, 0]
            known = known if len(known) else torch.arange(len(fold))
            picks.append(known[torch.randint(len(known), (_BATCH,), generator=generator)])
        return torch.stack(picks)

    def rim_loss(logits: Tensor, rim: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits[..., 1], rim)

    def loss(_: int) -> Tensor:
        i = batch(pixels.inside_fold)
        on = ensemble.logits(inside[i])
        known = softplus(-on[..., 0]).mean(1)
        rim = rim_loss(on, pixels.inside_rim[i])
        if len(around):
            a = batch(pixels.around_fold)
            off = ensemble.logits(around[a])
            known = known + softplus(off[..., 0]).mean(1)
            rim = rim + rim_loss(off, pixels.around_rim[a])
        if len(unlabelled):
            some = torch.randint(len(unlabelled), (_BATCH,), generator=generator)
        if prior:
            open_ = ensemble.logits(unlabelled[some])[..., 0]
            rest = softplus(open_).mean(1) - prior * softplus(on[..., 0]).mean(1)
            known = known + 2 * torch.relu(rest)
        return known.sum() + FOLDS * rim

    ensemble.train(loss, _STEPS // 2, 0.01)
    if len(unlabelled):
        prior = float(np.clip(_share(ensemble, pixels.unlabelled), 0.01, 0.5))
    ensemble.train(loss, _STEPS, 0.01)
    return ensemble


def _share(ensemble: Ensemble, unlabelled: Tensor) -> float:
    """How much of the unlabelled is foreground, as far as the networks know."""
    return float((ensemble.probabilities(unlabelled)[:, 0] > 0.5).float().mean())


def _draw(marked: Sequence[Marked], diameter: float, random: np.random.Generator) -> _Pixels:
    inside, around, unlabelled, number = [], [], [], 0
    reach = max(2, round(diameter / 5))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    for one in marked:
        tables = [x.reshape(len(x), -1) for x in one.pixels]
        known = np.logical_or.reduce([*one.objects, one.others])
        rings = [cv2.dilate(x.astype(np.uint8), disc).astype(bool) & ~known for x in one.objects]
        rims = [_rim(x, diameter) for x in one.objects]
        free = ~np.logical_or.reduce([known, *rings])
        most = _PER_EXAMPLE // len(tables)
        for table in tables:
            for fold, (mask, ring, rim) in enumerate(zip(one.objects, rings, rims, strict=True)):
                fold = (number + fold) % FOLDS
                inside.append(_some(table, mask, rim, fold, most, random))
                around.append(_some(table, ring, rim, fold, most, random))
            around.append(_some(table, one.others, np.zeros_like(known), -1, 4 * most, random))
            few = _UNLABELLED // (len(marked) * len(tables))
            unlabelled.append(_some(table, free, known, -1, few, random)[0])
        number += len(one.objects)
    tables = [[torch.cat(x) for x in zip(*part, strict=True)] for part in (inside, around)]
    return _Pixels(*tables[0], *tables[1], torch.cat(unlabelled))


def _some(
    table: NDArray[np.float32],
    where: NDArray[np.bool_],
    rim: NDArray[np.bool_],
    fold: int,
    most: int,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    index = np.flatnonzero(where)
    if len(index) > most:
        index = random.choice(index, most, replace=False)
    return (
        torch.from_numpy(np.ascontiguousarray(table[:, index].T)),
        torch.from_numpy(rim.ravel()[index].astype(np.float32)),
        torch.full((len(index),), fold),
    )


def _rim(mask: NDArray[np.bool_], diameter: float) -> NDArray[np.bool_]:
    """Pixels near the border of an object, on both sides."""
    reach = max(1, round(diameter / 20))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    image = mask.astype(np.uint8)
    return np.asarray(cv2.dilate(image, disc) != cv2.erode(image, disc))


def probabilities(
    ensemble: Ensemble, pixels: NDArray[np.float32], only: int | None = None
) -> NDArray[np.float32]:
    """``(2, y, x)``: whether a pixel lies in an object, and whether at a border.

    Args:
        ensemble: what ``learn_foreground`` gave.
        pixels: ``(d, y, x)``, filter responses.
        only: the number of one network; by default the mean of all.
    """
    table = torch.from_numpy(pixels.reshape(len(pixels), -1)).T
    found = ensemble.probabilities(table, only).T.reshape(2, *pixels.shape[1:])
    return np.ascontiguousarray(found.numpy())
