"""Prompts as a user would give them: a point or a box at first, then clicks where it went wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from cellseg.torch.frames import Frame
from cellseg.torch.regions import boxes_of, random_pixels

_AROUND = 3
"""Pixels about the box of an object within which a click lands that corrects nothing."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What shows the objects of one image, in pixels of the image."""

    points: Tensor | None = None
    """``(p, k, 2)`` int64, x and y of pixels."""
    labels: Tensor | None = None
    """``(p, k)``, of each point: 1 on the object, 0 beside it, -1 for none."""
    boxes: Tensor | None = None
    """``(p, 4)`` float32: x and y where the box begins, and where it ends."""
    masks: Tensor | None = None
    """``(p, 1, m, m)``: logits of an answer before."""

    def with_clicks(self, points: Tensor, labels: Tensor) -> Prompts:
        """These, and more points."""
        if self.points is not None and self.labels is not None:
            points = torch.cat([self.points, points], dim=1)
            labels = torch.cat([self.labels, labels], dim=1)
        return replace(self, points=points, labels=labels)

    def in_square(self, frame: Frame) -> dict[str, Tensor | None]:
        """As arguments of ``MicroSam.answer``, which counts to the middle of the pixels."""
        y, x = frame.factor
        points, boxes = self.points, self.boxes
        if points is not None:
            scale = torch.tensor([x, y], device=points.device)
            points = (points + 0.5) * scale - 0.5
        if boxes is not None:
            boxes = boxes * torch.tensor([x, y, x, y], device=boxes.device) - 0.5
        return {"points": points, "labels": self.labels, "boxes": boxes, "masks": self.masks}


def choose_objects(labels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Masks ``(p, y, x)`` of at most so many random objects of an image.

    Args:
        labels: ``(y, x)`` integers, 0 for background.
        most: how many.
        generator: on the CPU; the same state gives the same objects.
    """
    ids = labels.unique()
    ids = ids[ids > 0]
    order = torch.randperm(len(ids), generator=generator)[:most].to(ids.device)
    return labels == ids[order][:, None, None]


def first_points(objects: Tensor, generator: torch.Generator) -> Prompts:
    """A random point on each object."""
    points, _ = _draw(objects, generator)
    return Prompts(points[:, None], torch.ones_like(points[:, :1]))


def first_boxes(objects: Tensor, distortion: float, generator: torch.Generator) -> Prompts:
    """The box around each object, each edge moved outwards by up to ``distortion`` of its side."""
    boxes = boxes_of(objects)
    y, x = objects.shape[1:]
    moved = torch.rand(boxes.shape, generator=generator).to(boxes.device) * distortion
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes + moved * sides * torch.tensor([-1, -1, 1, 1], device=boxes.device)
    ends = torch.tensor([x, y, x, y], device=boxes.device, dtype=boxes.dtype)
    return Prompts(boxes=boxes.clamp(min=0).minimum(ends))


def clicks(
    objects: Tensor, found: Tensor, known: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A click on what was missed of each object, and one on what was wrongly taken for it.

    Where nothing was missed, it goes anywhere on the object; where nothing was wrong, beside the
    object (or anywhere off it, where there is no room).

    Args:
        objects: ``(p, y, x)`` bool.
        found: the same, as the model answered.
        known: ``(y, x)`` bool; there is no click elsewhere.
        generator: on the CPU; the same state gives the same clicks.

    Returns:
        Points ``(p, 2, 2)``, x and y; and their labels ``(p, 2)``: 1, and 0, or -1 for no point
        where all pixels are of the object.
    """
    missed = _or_else(objects & ~found, objects)
    free = ~objects & known
    wrong = _or_else(_or_else(found & free, _around(objects) & free), free)
    on, _ = _draw(missed, generator)
    off, there = _draw(wrong, generator)
    labels = torch.stack([torch.ones_like(there).long(), there.long() - 1], dim=1)
    return torch.stack([on, off], dim=1), labels


def _or_else(regions: Tensor, others: Tensor) -> Tensor:
    """Each region, or the other one where it is empty."""
    return torch.where(regions.flatten(1).any(1)[:, None, None], regions, others)


def _around(objects: Tensor) -> Tensor:
    """The boxes of objects, a little larger, as masks."""
    _, height, width = objects.shape
    boxes = boxes_of(objects)
    boxes[:, :2] -= _AROUND
    boxes[:, 2:] += _AROUND
    y = torch.arange(height, device=objects.device)[None, :, None]
    x = torch.arange(width, device=objects.device)[None, None, :]
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def _draw(regions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random pixel of each region, each as likely: see ``random_pixels``."""
    return random_pixels(
        regions, torch.rand(len(regions), generator=generator, dtype=torch.float64)
    )
