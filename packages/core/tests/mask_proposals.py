"""Logits as a mask decoder gives them, and what Segment Anything makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from cellseg.torch.frames import Frame

FRAMES = {
    "the square itself": Frame((256, 256), (256, 256), 256),
    "smaller and not square": Frame.fit((125, 167), 256),
    "larger and not square": Frame.fit((375, 275), 256),
    "larger by a whole factor": Frame.fit((512, 384), 256),
    "smaller than the logits": Frame.fit((40, 25), 256),
    "with an empty margin": Frame.fit((75, 50), 256, field=128),
    "one row": Frame.fit((1, 90), 256),
    "logits of the square": Frame.fit((50, 64), 64),
}


def proposals(count: int = 12, samples: int = 64, seed: int = 0) -> Tensor:
    """``(count, samples, samples)``: discs with ragged outlines; the first are nothing, everything,
    noise, and one that is the threshold 0 almost everywhere."""
    random = torch.Generator().manual_seed(seed)
    middles = torch.rand(count, 2, 1, 1, generator=random) * samples
    radii = torch.rand(count, 1, 1, generator=random) * samples * 0.3 + 1
    y, x = torch.meshgrid(*[torch.arange(samples)] * 2, indexing="ij")
    logits = radii - ((y - middles[:, 0]) ** 2 + (x - middles[:, 1]) ** 2).sqrt()
    logits = logits.clamp(-15, 15) + torch.randn(logits.shape, generator=random) * 0.4
    logits[0], logits[1] = -20, 20
    logits[2] = torch.randn(samples, samples, generator=random)
    logits[3] = 0
    logits[3, samples // 3, samples // 4] = 1
    return logits


def measured(
    logits: Tensor, frame: Frame, offset: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Stability, masks and boxes, from logits at the size of the image."""
    from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score

    full = frame.restore(logits[:, None].float())[:, 0]
    masks = full > threshold
    return calculate_stability_score(full, threshold, offset), masks, batched_mask_to_box(masks)
