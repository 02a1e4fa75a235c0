"""Objects that nobody follows yet: peaks of the heatmap, or points of a grid, that the decoder
answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253

from cellseg.torch.frames import Frame
from cellseg.torch.mask_generation import point_grid
from cellseg_cellsam2.candidates import Candidates, best, choose, numbered, painted
from cellseg_cellsam2.encoding import in_image, in_square
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Encoded, Prompts
from cellseg_cellsam2.predict_options import CellSam2PredictOptions

_PEAK = 5
"""A peak is the highest in a window with this many cells of the heatmap along each side."""
_OPEN = 0.5
"""The part of a new object that no known object may cover."""
_BACKGROUND = 0.5
"""A mask that answers a grid and covers more than this of a tile is no object."""


@dataclass(frozen=True, slots=True)
class Births:
    """New objects of a frame, the best first."""

    found: Candidates
    labels: NDArray[np.uint32]
    """``(y, x)``: what is visible of each, by its number, from 1."""


def find_peaks(heat: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Where the middles of cells are, and how probably.

    Args:
        heat: ``(m, m)`` logits, over the square.
        threshold: of the probability, 0 to 1.

    Returns:
        ``(n, 2)`` float32, x and y in cells of the heatmap, 0 being the middle of the first one;
        and ``(n,)`` float32, probabilities, falling. A plateau has one peak.
    """
    likely = heat.float().sigmoid()
    order = heat.float().flatten().argsort(stable=True)
    rank = torch.empty_like(likely).flatten()
    rank[order] = torch.arange(len(rank), dtype=rank.dtype, device=rank.device)
    rank = rank.view_as(likely)
    highest = torch.nn.functional.max_pool2d(rank[None], _PEAK, 1, _PEAK // 2)[0]
    y, x = ((rank == highest) & (likely >= threshold)).nonzero().unbind(1)
    values, order = likely[y, x].sort(descending=True, stable=True)
    return torch.stack([x, y], 1)[order].float(), values


def places_of(cells: Tensor, heat: Tensor, side: int) -> Tensor:
    """Where cells ``(n, 2)`` of a heatmap lie in the square of ``side`` pixels: their middles, 0
    being the middle of the first pixel."""
    return (cells + 0.5) * (side / heat.shape[-1]) - 0.5


def points_to_ask(
    heat: Tensor, frame: Frame, options: CellSam2PredictOptions, taken: NDArray[np.bool_]
) -> tuple[Tensor, Tensor]:
    """Where new objects may be: in the tile, and on no known object.

    Args:
        heat: ``(m, m)`` logits, over the square.
        frame: where the tile lies in it.
        options: the heatmap or a grid, and their thresholds.
        taken: ``(y, x)`` of the tile.

    Returns:
        Points ``(n, 2)`` of the square, x and y; and ``(n,)``, how probable each is, 1 for a grid.
    """
    if options.use_heatmap:
        cells, likely = find_peaks(heat, options.heat_threshold)
        places = places_of(cells, heat, frame.side)
    else:
        y, x = frame.size
        grid = point_grid(options.points_per_side) * torch.tensor([x, y])
        places = in_square(grid.to(heat.device), frame)
        likely = torch.ones(len(places), device=heat.device)
    pixels = in_image(places, frame).floor().long().cpu().numpy()
    y, x = frame.size
    inside = (pixels >= 0).all(1) & (pixels < (x, y)).all(1)
    inside[inside] = ~taken[pixels[inside, 1], pixels[inside, 0]]
    which = torch.from_numpy(inside).to(places.device)
    return places[which], likely[which]


def ask(
    model: CellSam2,
    encoded: Encoded,
    image: int,
    points: Tensor,
    frame: Frame,
    options: CellSam2PredictOptions,
) -> Candidates | None:
    """What the decoder answers to points, a chunk at a time; None where there is no point.

    Args:
        model: answers.
        encoded: of some images.
        image: which of them.
        points: ``(n, 2)`` of the square.
        frame: where the tile lies in it.
        options: thresholds.
    """
    parts = []
    for start in range(0, len(points), model.chunk):
        chunk = points[start : start + model.chunk]
        kinds = torch.ones(len(chunk), 1, dtype=torch.int32, device=points.device)
        which = torch.full((len(chunk),), image, dtype=torch.int64, device=points.device)
        answer = model.answer(encoded, which, Prompts(chunk[:, None], kinds))
        found = choose(answer, frame, options)
        parts.append(found.asked_by(np.arange(start, start + len(chunk))))
    return Candidates.joined(parts) if parts else None


def find_new(
    model: CellSam2,
    encoded: Encoded,
    image: int,
    frame: Frame,
    options: CellSam2PredictOptions,
    taken: NDArray[np.bool_],
) -> Births | None:
    """The objects of a tile that are not known yet; None where there is none.

    Args:
        model: answers.
        encoded: of some images.
        image: which of them.
        frame: where the tile lies in the square.
        options: thresholds.
        taken: ``(y, x)``: pixels of known objects, which stay theirs.
    """
    points, _ = points_to_ask(encoded.heat[image], frame, options, taken)
    found = ask(model, encoded, image, points, frame, options)
    return None if found is None else choose_new(found, frame, options, taken)


def choose_new(
    found: Candidates, frame: Frame, options: CellSam2PredictOptions, taken: NDArray[np.bool_]
) -> Births | None:
    """The new objects among the answers to points.

    Of those that overlap the best one stays. An answer that lies by half on a known object is that
    object; one that answers a grid, and covers half of the tile, is background.
    """
    most = frame.size[0] * frame.size[1] * (1.0 if options.use_heatmap else _BACKGROUND)
    new = []
    for i, one in enumerate(found.masks):
        (y, x), (height, width) = one.corner, one.mask.shape
        area = np.count_nonzero(one.mask)
        free = np.count_nonzero(one.mask & ~taken[y : y + height, x : x + width])
        if free > _OPEN * area and area <= most:
            new.append(i)
    if not new:
        return None
    found = found.select(new)
    found = found.select(best(found, options))
    drawn = painted(found.masks, frame.size, taken)
    labels, kept = numbered(drawn, len(found), options.min_size)
    return Births(found.select(kept), labels) if kept else None
