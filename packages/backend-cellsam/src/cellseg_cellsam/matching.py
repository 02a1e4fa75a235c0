"""Which answer of the detector stands for which cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID253
from scipy.optimize import linear_sum_assignment
from torch import Tensor  # noqa: TID253

from cellseg_cellsam.box_pairs import Costs, matching_costs
from cellseg_cellsam.detector import Detected

_HOPELESS = 1e6
"""Cost of an answer that is not a number."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Pairs of an answer and a cell, of all layers and images; all ``(m,)`` int64."""

    layers: Tensor
    images: Tensor
    queries: Tensor
    cells: Tensor
    """Number of the cell within its image."""


def match(detected: Detected, cells: Sequence[Tensor], costs: Costs, several: int = 1) -> Matches:
    """Match answers to cells one to one at the least cost, in each layer and image by itself (Kuhn,
    doi:10.1002/nav.3800020109; Carion et al., arXiv:2005.12872).

    In the layers before the last one a cell may have ``several`` answers, all cells of an image
    equally many, as far as there are queries (Jia et al., arXiv:2207.13080).

    Of more cells than queries as many are matched as there are queries. Answers that are not finite
    are matched last, so that the loss can show them.

    Args:
        detected: the answers.
        cells: of each image, ``(k, 4)``, ``cx cy w h``, 0..1 of the square.
        costs: of matching.
        several: answers for a cell in the layers before the last one, at least 1.
    """
    device = detected.logits.device
    counts = [len(each) for each in cells]
    found: list[list[np.ndarray]] = [[np.zeros(0, np.int64)] * 4]
    if any(counts):
        padded = torch.nn.utils.rnn.pad_sequence(list(cells), batch_first=True)
        table = matching_costs(detected.logits, detected.boxes, padded, costs)
        costly = np.nan_to_num(table.cpu().numpy(), nan=_HOPELESS, posinf=_HOPELESS)
        layers, images, queries, _ = costly.shape
        for layer, image in np.ndindex(layers, images):
            count = counts[image]
            if count:
                times = 1 if layer == layers - 1 else max(1, min(several, queries // count))
                here = np.tile(costly[layer, image, :, :count], times)
                rows, columns = linear_sum_assignment(here)
                columns %= count
                found.append([np.full_like(rows, layer), np.full_like(rows, image), rows, columns])
    parts = (np.concatenate(part) for part in zip(*found, strict=True))
    return Matches(*(torch.from_numpy(part).to(device) for part in parts))
