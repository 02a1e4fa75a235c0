"""The losses equal plain loops, and behave where those of older systems do not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from cellseg_vista.losses import Margins, discriminative_loss, semantic_loss  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def case(seed: int = 0, n: int = 3, size: int = 12, cells: int = 5):
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(n, 4, size, size, generator=g, dtype=torch.float32) * 2
    labels = torch.randint(0, cells + 1, (n, size, size), generator=g) * 7
    weights = torch.rand(n, size, size, generator=g) + 0.1
    return embedding, labels, weights


def looped(embedding, labels, weights, margins):
    """The formulas, one cell and one pair at a time."""
    totals = []
    for e, truth, w in zip(embedding, labels, weights, strict=True):
        ids = [i for i in truth.unique().tolist() if i]
        if not ids:
            continue
        means, pulls, centres, radii = [], [], [], []
        for i in ids:
            inside = truth == i
            pixels, weight = e[:, inside].T, w[inside]
            mean = (pixels * weight[:, None]).sum(0) / weight.sum()
            pull = 0.0
            for p, pw in zip(pixels, weight, strict=True):
                pull = pull + pw * torch.relu((p - mean).norm() - margins.delta_v) ** 2
            pulls.append(pull / weight.sum())
            means.append(mean)
            centres.append(inside.nonzero().float().mean(0))
            radii.append((inside.sum() / torch.pi) ** 0.5)
        pushes = []
        for i in range(len(ids)):
            for j in range(i + 1, len(ids)):
                reach = margins.push_reach * (radii[i] + radii[j])
                if margins.push_reach and (centres[i] - centres[j]).norm() >= reach:
                    continue
                apart = (means[i] - means[j]).norm()
                pushes.append(torch.relu(2 * margins.delta_d - apart) ** 2)
        push = sum(pushes) / len(pushes) if pushes else torch.tensor(0.0)
        norm = sum(m.norm() for m in means) / len(means)
        totals.append((sum(pulls) / len(pulls), push, norm))
    return [sum(t[k] for t in totals) / len(totals) for k in range(3)]


@pytest.mark.parametrize("margins", [Margins(), Margins(0.2, 2.5), Margins(push_reach=0.4)])
@pytest.mark.parametrize("empty", [False, True])
def test_equals_the_loop(margins: Margins, empty: bool) -> None:
    embedding, labels, weights = case()
    if empty:
        labels[1] = 0
    embedding.requires_grad_()
    terms = discriminative_loss(embedding, labels, weights, margins)
    fast = (terms.pull, terms.push, terms.norm)
    slow = looped(embedding, labels, weights, margins)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    (one,) = torch.autograd.grad(sum(fast), embedding)
    (other,) = torch.autograd.grad(sum(slow), embedding)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_pull_does_not_grow_with_the_number_of_cells() -> None:
    """The same cell once, or 36 times beside each other, pulls as hard."""
    cell = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    one = discriminative_loss(cell, torch.ones(1, 6, 6).long(), torch.ones(1, 6, 6), Margins())
    labels = torch.arange(1, 37).reshape(6, 6).repeat_interleave(6, 0).repeat_interleave(6, 1)
    many = discriminative_loss(
        cell.repeat(1, 1, 6, 6), labels[None], torch.ones(1, 36, 36), Margins()
    )
    assert float(one.pull) > 0
    torch.testing.assert_close(one.pull, many.pull)


def test_the_scale_of_the_weights_does_not_matter() -> None:
    embedding, labels, weights = case()
    one = discriminative_loss(embedding, labels, weights, Margins())
    ten = discriminative_loss(embedding, labels, weights * 100, Margins())
    torch.testing.assert_close(one.pull, ten.pull)


def test_ids_do_not_matter_and_are_not_shared_between_images() -> None:
    embedding, labels, weights = case()
    one = discriminative_loss(embedding, labels, weights, Margins())
    other = labels.clone()
    other[labels == 7] = 2**40
    two = discriminative_loss(embedding, other, weights, Margins())
    torch.testing.assert_close((one.pull, one.push), (two.pull, two.push))
    parts = [
        discriminative_loss(embedding[i : i + 1], labels[i : i + 1], weights[i : i + 1], Margins())
        for i in range(3)
    ]
    torch.testing.assert_close(one.push, sum(p.push for p in parts) / 3)


def test_no_cells_at_all_give_zero_with_a_gradient() -> None:
    embedding, labels, weights = case()
    embedding.requires_grad_()
    terms = discriminative_loss(embedding, labels * 0, weights, Margins())
    total = terms.pull + terms.push + terms.norm
    assert float(total.detach()) == 0
    (gradient,) = torch.autograd.grad(total, embedding)
    assert not gradient.any()


def test_equal_pixels_have_a_finite_gradient() -> None:
    embedding = torch.zeros(1, 4, 8, 8, requires_grad=True)
    labels = torch.ones(1, 8, 8).long()
    labels[:, 4:] = 2
    terms = discriminative_loss(embedding, labels, torch.ones(1, 8, 8), Margins())
    (gradient,) = torch.autograd.grad(terms.pull + terms.push + terms.norm, embedding)
    assert torch.isfinite(gradient).all()


def test_large_cells_in_half_precision_are_summed_in_single() -> None:
    embedding = torch.full((1, 2, 256, 256), 3.0, dtype=torch.bfloat16)
    labels = torch.ones(1, 256, 256).long()
    terms = discriminative_loss(embedding, labels, torch.ones(1, 256, 256), Margins())
    assert float(terms.norm) == pytest.approx(3 * 2**0.5, rel=1e-4)
    assert float(terms.pull) == 0


def test_dice_counts_only_classes_that_are_there() -> None:
    sure = torch.zeros(1, 3, 4, 4)
    sure[:, 0] = 30
    nothing = torch.zeros(1, 4, 4).long()
    # All is background and said to be: no loss, though two classes do not occur.
    assert float(semantic_loss(sure, nothing)) == pytest.approx(0, abs=1e-4)
    wrong = nothing.clone()
    wrong[:, :2] = 1
    assert float(semantic_loss(sure, wrong, 0, 1)) == pytest.approx((1 / 3 + 1) / 2, abs=1e-3)
