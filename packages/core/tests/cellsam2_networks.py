"""A small ``CellSam2`` with random weights, and what is asked of it, for several test modules."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from cellseg.torch.sam2.model import build
from cellseg.torch.weights import seeded
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Encoded, Memory, Prompts

SIDE = 64
"""Pixels along a side of what it sees."""


def make(timed: bool = False, size: str = "nano") -> CellSam2:
    """A model that tells objects apart; pointers carry their age where ``timed``, as in the
    published sizes."""
    with seeded(0):
        sam: Any = build(size, SIDE)
        for token in (sam.no_mem_embed, sam.no_obj_ptr, sam.no_obj_embed_spatial):
            nn.init.normal_(token)
        nn.init.normal_(sam.maskmem_tpos_enc)
        if timed:
            sam.add_tpos_enc_to_obj_ptrs = sam.proj_tpos_enc_in_obj_ptrs = True
            sam.use_signed_tpos_enc_to_obj_ptrs = True
            sam.obj_ptr_tpos_proj = nn.Linear(sam.hidden_dim, sam.mem_dim)
        head = sam.sam_mask_decoder.pred_obj_score_head.layers[-1]
        nn.init.normal_(head.weight, std=4.0)
        nn.init.zeros_(head.bias)
        return CellSam2(sam, size).eval()


def images(count: int, seed: int = 0) -> Tensor:
    """Random grey planes ``(count, 1, SIDE, SIDE)``, 0 to 1."""
    with seeded(seed):
        return torch.rand(count, 1, SIDE, SIDE)


def encode(model: CellSam2, planes: Tensor) -> Encoded:
    """What the model makes of planes."""
    return model.encode(model.prepare(planes))


def points(count: int, each: int = 1, seed: int = 0) -> Prompts:
    """Random points on and beside objects, of all of which there are ``each``."""
    with seeded(seed):
        places = torch.rand(count, each, 2) * SIDE
        kinds = torch.randint(0, 2, (count, each), dtype=torch.int32)
    return Prompts(places, kinds)


def one(prompts: Prompts, index: int, number: int) -> Prompts:
    """The first points of one object."""
    masks = None if prompts.masks is None else prompts.masks[[index]]
    return Prompts(prompts.points[[index], :number], prompts.kinds[[index], :number], masks)


def zeros(count: int) -> Tensor:
    """``(count,)`` int64: image 0, or frame 0, of each object."""
    return torch.zeros(count, dtype=torch.int64)


def remembered(model: CellSam2, encoded: Encoded, image: Tensor, begins: list[int]) -> Memory:
    """Objects that were seen in all frames since they began, up to frame 5."""
    parts = []
    for index, begin in enumerate(begins):
        memory: Memory | None = None
        for frame in range(begin, 6):
            asked = points(1, seed=10 * index + frame)
            answer = model.answer(encoded, image[[index]], asked)
            memory = model.remember(
                encoded, image[[index]], answer.masks[:, 0], answer.tokens[:, 0],
                answer.presence, torch.tensor([frame]), memory,
            )  # fmt: skip
        assert memory is not None
        parts.append(memory)
    return Memory.joined(parts)


def assert_same(found: Any, wanted: Any, atol: float = 1e-5) -> None:
    """Compare two ``Answer`` or ``Memory``, up to rounding."""
    for field in fields(wanted):
        a, b = getattr(found, field.name), getattr(wanted, field.name)
        assert a.shape == b.shape, field.name
        assert torch.allclose(a, b, atol=atol), field.name
