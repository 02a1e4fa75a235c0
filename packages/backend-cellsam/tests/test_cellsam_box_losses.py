"""The losses of boxes: their scale, and what teaches nothing."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cellseg.torch.frames import Frame  # noqa: E402
from cellseg_cellsam.box_losses import BoxLosses, box_losses, unknown_at  # noqa: E402
from cellseg_cellsam.box_pairs import Costs  # noqa: E402
from cellseg_cellsam.detector import Detected  # noqa: E402
from cellseg_cellsam.matching import match  # noqa: E402


def drawn(layers: int = 1, images: int = 1, queries: int = 6) -> Detected:
    generator = torch.Generator().manual_seed(7)
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.3 + 0.2
    return Detected(torch.randn(layers, images, queries, generator=generator), boxes)


def cells_of(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.rand(count, 4, generator=generator) * 0.3 + 0.2 for count in counts]


def losses(
    detected: Detected, cells: list[torch.Tensor], ignored: torch.Tensor | None = None
) -> BoxLosses:
    none = torch.zeros_like(detected.logits, dtype=torch.bool)
    return box_losses(
        detected,
        cells,
        match(detected, cells, Costs()),
        none if ignored is None else ignored,
        alpha=0.25,
        gamma=2.0,
    )


def values(found: BoxLosses) -> list[float]:
    return [float(found.classes), float(found.boxes), float(found.giou)]


def test_one_cell_by_hand() -> None:
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]]])
    detected = Detected(torch.tensor([[[0.0, -2.0]]]), boxes)
    found = losses(detected, [torch.tensor([[0.6, 0.5, 0.2, 0.2]])])
    p = 1 / (1 + math.exp(2))
    wanted = 0.25 * 0.5**2 * math.log(2) - 0.75 * p**2 * math.log(1 - p)
    assert float(found.classes) == pytest.approx(wanted, rel=1e-5)
    assert float(found.boxes) == pytest.approx(0.1, rel=1e-5)
    assert float(found.giou) == pytest.approx(1 - 1 / 3, rel=1e-5)


def test_twice_the_images_leave_the_losses() -> None:
    detected, cells = drawn(2, 1), cells_of(3)
    twice = Detected(detected.logits.repeat(1, 2, 1), detected.boxes.repeat(1, 2, 1, 1))
    wanted = values(losses(detected, cells))
    assert values(losses(twice, cells * 2)) == pytest.approx(wanted, rel=1e-5)


def test_layers_that_say_the_same_leave_the_losses() -> None:
    detected, cells = drawn(1, 2), cells_of(3, 2)
    thrice = Detected(detected.logits.repeat(3, 1, 1), detected.boxes.repeat(3, 1, 1, 1))
    wanted = values(losses(detected, cells))
    assert values(losses(thrice, cells)) == pytest.approx(wanted, rel=1e-5)


def test_images_without_objects_teach_the_class_alone() -> None:
    detected = drawn(2, 2)
    detected.logits.requires_grad_()
    found = losses(detected, cells_of(0, 0))
    assert float(found.boxes) == float(found.giou) == 0
    found.classes.backward()
    assert (detected.logits.grad > 0).all()


def test_ignored_answers_teach_nothing_unless_matched() -> None:
    detected, cells = drawn(1, 1), cells_of(2)
    matched = match(detected, cells, Costs()).queries
    detected.logits.requires_grad_()
    ignored = torch.ones_like(detected.logits, dtype=torch.bool)
    losses(detected, cells, ignored).classes.backward()
    teaching = detected.logits.grad[0, 0].nonzero()[:, 0]
    assert sorted(teaching.tolist()) == sorted(matched.tolist())


def test_half_precision_is_computed_in_full() -> None:
    detected = drawn(1, 1)
    half = Detected(detected.logits.bfloat16(), detected.boxes.bfloat16())
    found = losses(half, cells_of(2))
    assert found.classes.dtype == found.boxes.dtype == found.giou.dtype == torch.float32
    full = losses(Detected(half.logits.float(), half.boxes.float()), cells_of(2))
    assert values(found) == values(full)


def test_unknown_is_looked_up_at_the_centre() -> None:
    frame = Frame.fit((20, 40), 80)  # the square is twice as large; its lower half is empty
    known = torch.ones(2, 20, 40, dtype=torch.bool)
    known[1, 5:10, 30:] = False
    centres = [(0.8, 0.2), (0.74, 0.2), (0.76, 0.2), (0.8, 0.26), (0.8, 0.7), (-0.2, 0.2)]
    boxes = torch.tensor([[*centre, 0.5, 0.5] for centre in centres]).expand(3, 2, -1, 4)
    found = unknown_at(boxes, known, frame)
    assert found.shape == (3, 2, 6)
    assert not found[:, 0].any()
    assert found[:, 1].tolist() == [[True, False, True, False, False, False]] * 3
