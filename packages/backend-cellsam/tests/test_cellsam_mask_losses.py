"""The losses of masks: as plain formulas have them, where pixels count, and what targets are."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("segment_anything")

from mask_loss_oracle import gradient, masks, oracle  # noqa: E402

from cellseg.torch.frames import Frame  # noqa: E402
from cellseg_cellsam.mask_losses import MaskLosses  # noqa: E402
from cellseg_cellsam.mask_targets import MaskTargets  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "as always": {},
    "other focal loss": {"alpha": 0.7, "gamma": 3.5},
    "no exponent": {"gamma": 0.0},
    "exponent below 1": {"gamma": 0.5},
    "no boundary": {"boundary": False},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def losses(*args: Any, **given: Any) -> tuple[Any, ...]:
    found = MaskLosses.of(*args, **given)
    return found.focal, found.dice, found.boundary, found.iou


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_plain_formulas(name: str) -> None:
    given = CASES[name]
    logits, targets, known = (each.double() for each in masks(3, 12))
    for ours, theirs in zip(
        losses(logits, targets, known, **given), oracle(logits, targets, known, **given),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    ours, theirs = (gradient(of, logits, targets, known, **given) for of in (losses, oracle))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_extreme_logits_have_finite_gradients() -> None:
    logits = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0]).repeat(2, 5, 1)
    targets = torch.stack([torch.zeros(5, 5), torch.ones(5, 5)])
    for gamma in (0.5, 2.0):
        found = gradient(losses, logits, targets, torch.ones(5, 5), gamma=gamma)
        assert torch.isfinite(found).all()


def test_half_precision_gets_a_gradient_of_its_own_type() -> None:
    logits, targets, known = masks(2, 8)
    assert gradient(losses, logits.bfloat16(), targets, known).dtype == torch.bfloat16


def test_mixed_precision_does_not_round_sums() -> None:
    logits, targets, known = masks(2, 8)
    plain = losses(logits, targets, known)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses(logits, targets, known)
    assert all(one.equal(other) for one, other in zip(plain, mixed, strict=True))


def test_a_perfect_mask_costs_nothing_and_a_wrong_one_all() -> None:
    targets = torch.zeros(1, 16, 16)
    targets[:, 4:12, 4:12] = 1
    for sign, dice, iou in ((1, 0.0, 1.0), (-1, 1.0, 0.0)):
        found = MaskLosses.of(sign * (80 * targets - 40), targets, torch.ones(16, 16))
        assert float(found.dice) == pytest.approx(dice, abs=0.01)
        assert float(found.iou) == iou
        # An inverted mask has the very same outline.
        assert float(found.boundary) == pytest.approx(0, abs=1e-4)
        assert (float(found.focal) < 1e-6) == (sign == 1)


def test_the_boundary_of_a_step_is_the_weight_of_sobels_operator() -> None:
    targets = torch.zeros(1, 5, 6)[:, :, :5].clone()
    targets[:, :, 2:] = 1  # edges in 2 of the 3 inner columns, of magnitude 4
    found = MaskLosses.of(torch.full_like(targets, -40.0), targets, torch.ones(5, 5))
    assert float(found.boundary) == pytest.approx(4 * 2 / 3, rel=1e-3)


def test_what_is_not_known_teaches_nothing() -> None:
    logits, targets, known = masks(2, 12)
    known = (known == 1).float()
    other = torch.where(known > 0, logits, -logits), torch.where(known > 0, targets, 1 - targets)
    for one, changed in zip(losses(logits, targets, known), losses(*other, known), strict=True):
        assert one.equal(changed)
    assert not gradient(losses, logits, targets, known)[:, known == 0].any()


def test_nothing_known_costs_nothing() -> None:
    logits, targets, known = masks(2, 8)
    found = MaskLosses.of(logits, targets, torch.zeros_like(known))
    assert not any(term.any() for term in (found.focal, found.dice, found.boundary, found.iou))
    assert not gradient(losses, logits, targets, torch.zeros_like(known)).any()


def test_prompts_do_not_depend_on_each_other() -> None:
    logits, targets, known = masks(4, 10)
    whole = losses(logits, targets, known)
    parts = losses(logits[2:3], targets[2:3], known)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one[2:3], other)


def area(size: tuple[int, int], side: int, square: int) -> tuple[Any, Any]:
    labels = torch.zeros(size, dtype=torch.int64)
    labels[1:4, 2:7], labels[5:, :3] = 1, 2
    known = torch.ones(size, dtype=torch.bool)
    known[0] = False
    frame = Frame.fit(size, square)
    return MaskTargets.of(labels, known, torch.tensor([1, 2]), frame, side), (labels, known, frame)


@pytest.mark.parametrize(("size", "side", "square"), [((8, 8), 4, 16), ((9, 14), 16, 64),
                                                      ((50, 31), 8, 32)])  # fmt: skip
def test_targets_keep_the_areas(size: tuple[int, int], side: int, square: int) -> None:
    """Also where pixels of the mask and of the image do not divide each other."""
    targets, (labels, known, frame) = area(size, side, square)
    pixel = (square / side) ** 2 / (frame.factor[0] * frame.factor[1])  # in those of the image
    found = (targets.objects * targets.known).sum((1, 2)) * pixel
    torch.testing.assert_close(found, torch.stack([(labels == i).sum() for i in (1, 2)]).float())
    torch.testing.assert_close(targets.known.sum() * pixel, known.sum().float())
    assert 0 <= targets.objects.min() and targets.objects.max() <= 1


def test_targets_are_averages_and_padding_is_not_known() -> None:
    labels = torch.zeros(4, 8, dtype=torch.int64)
    labels[0, 0], labels[2:, 4:] = 1, 2
    known = torch.ones(4, 8, dtype=torch.bool)
    known[0, 1] = False
    targets = MaskTargets.of(labels, known, torch.tensor([1, 2]), Frame.fit((4, 8), 8), 4)
    assert targets.known.tolist() == [[0.75, 1, 1, 1], [1] * 4, [0] * 4, [0] * 4]
    assert float(targets.objects[0, 0, 0]) == pytest.approx(1 / 3)
    assert targets.objects[1].tolist() == [[0] * 4, [0, 0, 1, 1], [0] * 4, [0] * 4]
