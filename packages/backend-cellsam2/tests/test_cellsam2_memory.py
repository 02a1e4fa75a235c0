"""Memories of the network: the ring of frames, absent objects, and what memories do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cellsam2_networks import assert_same, encode, images, make, one, points, remembered, zeros
from torch import Tensor

from cellseg.torch.sam2.model import build
from cellseg.torch.weights import seeded
from cellseg_cellsam2.memory import recall, within
from cellseg_cellsam2.model import CellSam2
from cellseg_cellsam2.parts import Answer, Memory

torch.set_num_threads(1)


@pytest.fixture
def model() -> CellSam2:
    return make()


def _counted(forward: Any, counts: list[int]) -> Any:
    def counting(pixels: Tensor, *given: Any, **named: Any) -> Any:
        counts.append(len(pixels))
        return forward(pixels, *given, **named)

    return counting


@torch.no_grad()
def test_objects_whose_slots_are_empty_are_new(model: CellSam2) -> None:
    encoded = encode(model, images(1))
    memory = remembered(model, encoded, zeros(2), [0, 5])
    memory.times[1] = memory.pointer_times[1] = -1
    asked, time = points(2), torch.full((2,), 6)
    together = model.answer(encoded, zeros(2), asked, memory, time)
    new = model.answer(encoded, zeros(1), one(asked, 1, 1))
    assert torch.allclose(together.masks[[1]], new.masks, atol=1e-5)
    old = model.answer(encoded, zeros(1), one(asked, 0, 1), memory.select(zeros(1)), time[:1])
    assert torch.allclose(together.masks[[0]], old.masks, atol=1e-5)
    assert not torch.allclose(together.masks[0], model.answer(encoded, zeros(2), asked).masks[0])


@torch.no_grad()
def test_the_ring_keeps_the_first_frame_and_the_latest_ones(model: CellSam2) -> None:
    encoded = encode(model, images(1))
    memory = remembered(model, encoded, zeros(2), [0, 4])
    assert [sorted(row) for row in memory.times.tolist()] == [[0, 3, 4, 5], [-1, -1, 4, 5]]
    assert memory.times[:, 0].tolist() == [0, 4]
    answer = model.answer(encoded, zeros(2), points(2))

    def remember(time: list[int], held: Memory) -> Memory:
        return model.remember(
            encoded, zeros(2), answer.masks[:, 0], answer.tokens[:, 0], zeros(2) == 0,
            torch.tensor(time), held,
        )  # fmt: skip

    later = remember([6, 5], memory)
    assert [sorted(row) for row in later.times.tolist()] == [[0, 4, 5, 6], [-1, -1, 4, 5]]
    assert not torch.equal(later.features[1], memory.features[1])  # frame 5 was replaced
    begun = remember([0, 4], memory)
    assert torch.equal(begun.times, memory.times)  # the first frame, shown once more
    for row in range(2):
        assert not torch.equal(begun.features[row, 0], memory.features[row, 0])
        assert torch.equal(begun.features[row, 1:], memory.features[row, 1:])


def test_frames_count_while_they_are_near_and_the_first_one_always() -> None:
    times = torch.tensor([[0, 7, 8, 9], [5, 3, 4, -1], [-1, -1, -1, -1], [2, 9, 10, 11]])
    counted = within(times, torch.tensor([10, 6, 3, 10]))
    assert counted.tolist() == [
        [True, True, True, True],
        [True, True, True, False],
        [False, False, False, False],
        [True, True, False, False],  # neither this frame nor a later one
    ]


@torch.no_grad()
def test_an_absent_object_is_remembered_as_absent_whatever_its_mask(model: CellSam2) -> None:
    encoded = encode(model, images(1))
    answer = model.answer(encoded, zeros(2), points(2))

    def remember(presence: Tensor) -> Memory:
        return model.remember(
            encoded, zeros(2), answer.masks[:, 0], answer.tokens[:, 0], presence, zeros(2)
        )

    absent = remember(torch.tensor([False, False]))
    assert torch.equal(absent.features[0], absent.features[1])
    assert torch.equal(absent.pointers[0], absent.pointers[1])
    mixed = remember(torch.tensor([-0.5, 0.5]))
    assert torch.allclose(mixed.features[0], absent.features[0], atol=1e-5)
    assert not torch.allclose(mixed.features[1], absent.features[1])


@torch.no_grad()
def test_absent_objects_of_an_image_are_encoded_once(
    model: CellSam2, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encode(model, images(2))
    image = torch.tensor([0, 1, 0, 1, 0, 1])
    answer = model.answer(encoded, image, points(6))
    present = torch.tensor([True, False, False, False, False, True])
    given = (answer.masks[:, 0], answer.tokens[:, 0])
    apart = [
        model.remember(encoded, image[[i]], given[0][[i]], given[1][[i]], present[[i]], zeros(1))
        for i in range(6)
    ]
    counts = []
    encoder = model.sam.memory_encoder
    monkeypatch.setattr(encoder, "forward", _counted(encoder.forward, counts))
    together = model.remember(encoded, image, *given, present, zeros(6))
    assert sum(counts) == 4
    assert_same(together, Memory.joined(apart))


@torch.no_grad()
def test_a_memory_acts_at_its_own_place_before_anything_is_learned() -> None:
    """Else a small network takes hours to find out that it can follow anything."""
    with seeded(0):
        model = CellSam2(build("nano", 128), "nano").eval()
        encoded = encode(model, torch.rand(1, 1, 128, 128))
        middles = torch.rand(32, 2) * 112 + 8
    low, high = torch.arange(32) * 4 + 2, torch.arange(8) * 16 + 8

    def distance(grid: Tensor) -> Tensor:
        y, x = (middles[:, i, None, None] for i in range(2))
        return ((grid[:, None] - y).square() + (grid - x).square()).sqrt()

    masks = torch.where(distance(low) < 9, 6.0, -6.0)
    tokens = torch.zeros(32, 64)
    memory = model.remember(encoded, zeros(32), masks, tokens, torch.ones(32).bool(), zeros(32))
    seen = model._look_back(
        encoded.embedding[zeros(32)], encoded.position, recall(memory, torch.ones_like(zeros(32)))
    )
    differs = (seen - seen.mean(0)).square().mean(1)
    far = distance(high)
    assert differs[far < 10].mean() > 20 * differs[far > 40].mean()
    assert differs[far < 10].mean() > 0.05


@torch.no_grad()
def test_half_precision_changes_little_and_halves_memories(model: CellSam2) -> None:
    asked, time = points(3), torch.ones(3, dtype=torch.int64)

    def follow() -> tuple[Answer, Memory]:
        encoded = encode(model, images(1))
        answer = model.answer(encoded, zeros(3), asked)
        memory = model.remember(
            encoded, zeros(3), answer.masks[:, 0], answer.tokens[:, 0], torch.ones(3).bool(),
            zeros(3),
        )  # fmt: skip
        return model.answer(encoded, zeros(3), None, memory, time), memory

    exact, _ = follow()
    with torch.autocast("cpu", torch.bfloat16):
        rough, memory = follow()
    assert memory.features.dtype == memory.pointers.dtype == torch.bfloat16
    assert rough.masks.dtype == torch.float32
    assert (rough.masks - exact.masks).abs().max() < 0.1 * exact.masks.abs().max()
