"""Prompts of a training: points and boxes on objects, points on background, correcting clicks.

Places are those of pixels of the square, 0 being the middle of the first one, as the model takes
them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.torch.regions import boxes_of, random_pixels
from cellseg_cellsam2.births import find_peaks, places_of
from cellseg_cellsam2.parts import Prompts
from cellseg_cellsam2.predict_options import CellSam2PredictOptions

_BOX_MOVED = 20.0  # pixels at most
_CLAMP = 32.0  # of the logits that are given back, as in SAM 2
_ERODED = 5  # as by two erosions with squares of 3 pixels
ON, BESIDE, NONE, FIRST, LAST = 1, 0, -1, 2, 3
"""Kinds of points: on the object, beside it, none, and the corners of a box."""


class Chances:
    """Random numbers of each clip by itself, so that clips of one batch do not depend on each
    other.

    Args:
        seed: of the training.
        clips: the number of each clip of the batch.
    """

    def __init__(self, seed: int, clips: Iterable[int]) -> None:
        self._generators = []
        for clip in clips:
            state = np.random.SeedSequence([seed, clip, 2]).generate_state(1, np.uint64)
            generator = torch.Generator()
            generator.manual_seed(int(state[0]) >> 1)
            self._generators.append(generator)

    def numbers(self, video: Tensor, each: int = 1) -> Tensor:
        """From 0 to below 1, ``(o, each)`` float64 on the CPU.

        Args:
            video: ``(o,)`` int64: the clip of each object.
            each: how many for an object.
        """
        video = video.cpu()
        counts = video.bincount(minlength=len(self._generators)).tolist()
        drawn = torch.cat(
            [
                torch.rand(count, each, generator=generator, dtype=torch.float64)
                for count, generator in zip(counts, self._generators, strict=True)
            ]
        )
        numbers = torch.empty_like(drawn)
        numbers[video.argsort(stable=True)] = drawn
        return numbers


def shown(
    objects: Tensor, video: Tensor, box_probability: float, box_noise: float, chances: Chances
) -> Prompts:
    """A random point on each object or, as often as ``box_probability`` says, a box around it.

    Args:
        objects: ``(o, side, side)`` bool, none empty.
        video: ``(o,)``: the clip of each.
        box_probability: 0 to 1.
        box_noise: how far the edges of boxes are moved at most, in lengths of the side.
        chances: of the clips.
    """
    device, side = objects.device, objects.shape[-1]
    numbers = chances.numbers(video, 6).to(device)
    points, _ = random_pixels(objects, numbers[:, 0])
    boxes = boxes_of(objects)
    boxes[:, 2:] -= 1  # the last pixel
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    most = (box_noise * sides).clamp(max=_BOX_MOVED)
    boxes = (boxes + (2 * numbers[:, 2:].float() - 1) * most).clamp(0, side - 1)
    by_point = torch.stack([points.float(), torch.zeros_like(points).float()], dim=1)
    boxed = numbers[:, 1] < box_probability
    kinds = torch.where(
        boxed[:, None],
        torch.tensor([FIRST, LAST], dtype=torch.int32, device=device),
        torch.tensor([ON, NONE], dtype=torch.int32, device=device),
    )
    return Prompts(torch.where(boxed[:, None, None], boxes.view(-1, 2, 2), by_point), kinds)


def corrected(
    prompts: Prompts,
    objects: Tensor,
    logits: Tensor,
    found: Tensor,
    known: Tensor,
    chances: Tensor,
    truth_probability: float,
) -> Prompts:
    """One click more where each answer is wrong, and the answer itself.

    The click lies anywhere in what was missed or wrongly taken; or on the object, where nothing is
    wrong, and as often as ``truth_probability`` says.

    Args:
        prompts: of the answers.
        objects: ``(o, side, side)`` bool, none empty.
        logits: ``(o, 4g, 4g)``: the answers.
        found: ``(o, side, side)`` bool: the same, as masks.
        known: ``(o, side, side)`` bool; there is no click elsewhere.
        chances: ``(o, 2)``, 0 to 1.
        truth_probability: 0 to 1.
    """
    chances = chances.to(objects.device)
    wrong = (found != objects) & known
    simple = ~wrong.flatten(1).any(1) | (chances[:, 0] < truth_probability)
    points, _ = random_pixels(torch.where(simple[:, None, None], objects, wrong), chances[:, 1])
    every = torch.arange(len(points), device=points.device)
    on = objects[every, points[:, 1], points[:, 0]]
    kinds = torch.where(on, ON, BESIDE).to(prompts.kinds.dtype)
    return Prompts(
        torch.cat([prompts.points, points[:, None].float()], dim=1),
        torch.cat([prompts.kinds, kinds[:, None]], dim=1),
        logits.detach().clamp(-_CLAMP, _CLAMP),
    )


def on_background(labels: Tensor, heat: Tensor, most: int, chances: Tensor) -> Tensor:
    """Points where nothing is, away from objects: first peaks of the heatmap, which are mistakes,
    then random ones.

    Args:
        labels: ``(side, side)``: 0 for background.
        heat: ``(4g, 4g)`` logits of the same image.
        most: how many points.
        chances: ``(most,)`` float64, 0 to 1.

    Returns:
        ``(n, 2)`` float32, x and y; none where there is no background.
    """
    taken = (labels != 0).float()[None]
    free = torch.nn.functional.max_pool2d(taken, _ERODED, 1, _ERODED // 2)[0] == 0
    cells, _ = find_peaks(heat.detach(), CellSam2PredictOptions().heat_threshold)
    peaks = places_of(cells, heat, len(labels))
    x, y = peaks.round().long().clamp(0, len(labels) - 1).unbind(1)
    peaks = peaks[free[y, x]][:most]
    random, there = random_pixels(free.expand(most, -1, -1), chances)
    return torch.cat([peaks, random[there].float()])[:most]
