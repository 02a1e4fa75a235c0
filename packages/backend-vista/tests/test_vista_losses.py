"""The losses equal plain loops, and behave where those of older systems do not."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from cellseg.classes import SHIFT, UNKNOWN  # noqa: E402
from cellseg_vista.losses import Margins, discriminative_loss, semantic_loss  # noqa: E402
from cellseg_vista.losses import discriminative as ours  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def case(seed: int = 0, n: int = 3, size=(12, 12), cells: int = 5, classes: int = 0, e: int = 4):
    """Random embeddings, ids with gaps, some of unknown label, and weights, some of them 0."""
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(n, e, *size, generator=g) * 2
    labels = torch.randint(0, cells + 1, (n, *size), generator=g) * 7
    if classes:
        # The class follows from the id, so that an object has one.
        labels = labels | ((labels // 7 % classes + 1) << SHIFT) * (labels > 0)
        labels[torch.rand(labels.shape, generator=g) < 0.1] = UNKNOWN
    weights = torch.rand(n, *size, generator=g) + 0.1
    weights[weights < 0.2] = 0
    return embedding, labels, weights


def looped(embedding, labels, weights, margins):
    """The formulas, one sample, class, object, voxel and pair at a time, in float64."""
    embedding, weights = embedding.double(), weights.double()
    axes = labels.ndim - 1
    spacing = torch.tensor(margins.spacing or (1.0,) * axes, dtype=torch.float64)
    ball = {1: 2.0, 2: math.pi, 3: 4 / 3 * math.pi}[axes]
    samples = []
    for e, truth, w in zip(embedding, labels, weights, strict=True):
        ids = [i for i in truth.unique().tolist() if i not in (0, UNKNOWN)]
        ids = [i for i in ids if w[truth == i].sum() > 0]
        classes = []
        for kind in sorted({max(i >> SHIFT, 1) for i in ids}):
            means, pulls, centres, radii = [], [], [], []
            for i in ids:
                if max(i >> SHIFT, 1) != kind:
                    continue
                inside = truth == i
                voxels, weight = e[:, inside].T, w[inside]
                mean = (voxels * weight[:, None]).sum(0) / weight.sum()
                pull = 0.0
                for v, vw in zip(voxels, weight, strict=True):
                    pull = pull + vw * torch.relu((v - mean).norm() - margins.delta_v) ** 2
                pulls.append(pull / weight.sum())
                means.append(mean)
                centres.append(inside.nonzero().double().mean(0) * spacing)
                radii.append((inside.sum() * spacing.prod() / ball) ** (1 / axes))
            pushes = []
            for i in range(len(means)):
                for j in range(i + 1, len(means)):
                    reach = margins.push_reach * (radii[i] + radii[j])
                    if margins.push_reach and (centres[i] - centres[j]).norm() >= reach:
                        continue
                    apart = (means[i] - means[j]).norm()
                    pushes.append(torch.relu(2 * margins.delta_d - apart) ** 2)
            push = sum(pushes) / len(pushes) if pushes else embedding.sum() * 0
            norm = sum(m.norm() for m in means) / len(means)
            classes.append((sum(pulls) / len(pulls), push, norm))
        if classes:
            samples.append([sum(c[k] for c in classes) / len(classes) for k in range(3)])
    if not samples:
        return [embedding.sum() * 0] * 3
    return [sum(s[k] for s in samples) / len(samples) for k in range(3)]


def both(embedding, labels, weights, margins):
    """Terms and gradient of each term, of ours and of the loop."""
    embedding = embedding.detach().requires_grad_()
    terms = discriminative_loss(embedding, labels, weights, margins)
    found = []
    for values in (
        (terms.pull, terms.push, terms.norm),
        looped(embedding, labels, weights, margins),
    ):
        slopes = [torch.autograd.grad(v, embedding, retain_graph=True)[0] for v in values]
        found.append((torch.stack(tuple(values)).detach(), torch.stack(slopes)))
    return found


MARGINS = [
    Margins(),
    Margins(0.2, 2.5),
    Margins(push_reach=0.4),
    Margins(push_reach=0.3, spacing=(1.0, 2.5)),
]


@pytest.mark.parametrize("margins", MARGINS, ids=str)
@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("empty", [False, True])
def test_equals_the_loop(margins: Margins, classes: int, empty: bool) -> None:
    embedding, labels, weights = case(classes=classes)
    if empty:
        labels[1] = 0
    (values, slopes), (true, true_slopes) = both(embedding, labels, weights, margins)
    torch.testing.assert_close(values.double(), true, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slopes, true_slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(41,), (5, 7), (3, 5, 4)])
def test_equals_the_loop_in_float64_to_the_last_digits(size: tuple[int, ...]) -> None:
    embedding, labels, weights = case(n=2, size=size, classes=3, cells=9)
    margins = Margins(push_reach=0.5, spacing=(2.0, 1.5, 1.0)[: len(size)])
    (values, slopes), (true, true_slopes) = both(embedding.double(), labels, weights, margins)
    torch.testing.assert_close(values, true, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(slopes, true_slopes, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_equals_the_loop_over_many_blocks_and_chunks(
    on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours.blocks, "on_cpu", lambda tensor: on_cpu)
    monkeypatch.setattr(ours.blocks, "_BLOCK", 37 if on_cpu else 2)
    monkeypatch.setattr(ours, "_PAIRS", 50)
    embedding, labels, weights = case(cells=20, classes=2)
    (values, slopes), (true, true_slopes) = both(embedding, labels, weights, Margins(0.1, 3))
    torch.testing.assert_close(values.double(), true, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slopes, true_slopes, rtol=1e-4, atol=1e-6)


def test_the_order_of_axes_in_memory_does_not_matter() -> None:
    embedding, labels, weights = case()
    last = embedding.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    one, two = (both(x, labels, weights, Margins())[0] for x in (embedding, last))
    torch.testing.assert_close(one, two)


def test_a_second_call_is_the_same_to_the_bit() -> None:
    embedding, labels, weights = case(size=(128, 128), cells=50)
    embedding.requires_grad_()
    found = []
    for _ in range(2):
        terms = discriminative_loss(embedding, labels, weights, Margins(push_reach=2))
        found.append(torch.autograd.grad(terms.pull + terms.push + terms.norm, embedding)[0])
    assert torch.equal(*found)


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
    other[labels == 7] = 2**28 - 2
    two = discriminative_loss(embedding, other, weights, Margins())
    torch.testing.assert_close((one.pull, one.push), (two.pull, two.push))
    parts = [
        discriminative_loss(embedding[i : i + 1], labels[i : i + 1], weights[i : i + 1], Margins())
        for i in range(3)
    ]
    torch.testing.assert_close(one.push, sum(p.push for p in parts) / 3)


def test_objects_of_different_classes_do_not_push() -> None:
    embedding = torch.zeros(1, 4, 2, 8)
    labels = torch.full((1, 2, 8), 5)
    labels[:, 1] = 6
    weights = torch.ones(1, 2, 8)
    same = discriminative_loss(embedding, labels, weights, Margins())
    assert float(same.push) == pytest.approx(9, rel=1e-4)
    labels[:, 1] |= 2 << SHIFT
    assert float(discriminative_loss(embedding, labels, weights, Margins()).push) == 0


def test_an_object_without_weight_is_left_out() -> None:
    embedding, labels, weights = case()
    weights[labels == 14] = 0
    one = discriminative_loss(embedding, labels, weights, Margins())
    two = discriminative_loss(embedding, torch.where(labels == 14, 0, labels), weights, Margins())
    torch.testing.assert_close((one.pull, one.push, one.norm), (two.pull, two.push, two.norm))


@pytest.mark.parametrize("label", [0, UNKNOWN])
def test_no_cells_at_all_give_zero_with_a_gradient(label: int) -> None:
    embedding, labels, weights = case()
    embedding.requires_grad_()
    terms = discriminative_loss(embedding, torch.full_like(labels, label), weights, Margins())
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_cells_in_half_precision_are_summed_in_single(dtype) -> None:
    embedding = torch.full((1, 2, 256, 256), 3.0, dtype=dtype, requires_grad=True)
    labels = torch.ones(1, 256, 256).long()
    with torch.autocast("cpu", torch.bfloat16):
        terms = discriminative_loss(embedding, labels, torch.ones(1, 256, 256), Margins())
    assert terms.norm.item() == pytest.approx(3 * 2**0.5, rel=1e-4)
    assert terms.pull.item() == 0
    (gradient,) = torch.autograd.grad(terms.norm * 2**16, embedding)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.5**0.5), rtol=1e-2, atol=0)


def test_what_does_not_fit_is_refused() -> None:
    embedding, labels, weights = case()
    with pytest.raises(ValueError, match="must be"):
        discriminative_loss(embedding, labels[:, None], weights, Margins())
    with pytest.raises(ValueError, match="1 spacings for 2"):
        discriminative_loss(embedding, labels, weights, Margins(spacing=(1.0,)))
    with pytest.raises(ValueError, match="the id 4294967296 is too large"):
        discriminative_loss(embedding, labels.clamp(min=2**32), weights, Margins())


def semantic_case(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 3, 4, 6, generator=g, dtype=torch.float64) * 2
    classes = torch.randint(0, 4, (2, 3, 4, 6), generator=g)  # class 4 does not occur
    classes[torch.rand(classes.shape, generator=g) < 0.2] = -100
    return logits.requires_grad_(), classes


@pytest.mark.parametrize("weights", [None, (0.1, 2.0, 0.0, 1.0, 3.0)])
@pytest.mark.parametrize("ignored", [-100, 0, 2])
def test_semantic_terms_equal_those_of_a_one_hot_loop(weights, ignored: int) -> None:
    logits, classes = semantic_case()
    weights = None if weights is None else torch.tensor(weights)
    terms = semantic_loss(logits, classes, class_weights=weights, ignore_index=ignored)
    truth = torch.where(classes == ignored, -100, classes)
    ce = F.cross_entropy(logits, truth, None if weights is None else weights.double())
    known = truth != -100
    scores = []
    for kind in range(5):
        if (truth == kind).any():
            p, t = logits.softmax(1)[:, kind][known], (truth == kind)[known].double()
            scores.append(1 - 2 * (p * t).sum() / (p.sum() + t.sum()))
    dice = sum(scores) / len(scores)
    torch.testing.assert_close(terms.ce.double(), ce, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.dice.double(), dice, rtol=1e-5, atol=1e-6)
    (one,) = torch.autograd.grad(terms.ce + 2 * terms.dice, logits)
    (other,) = torch.autograd.grad(ce + 2 * dice, logits)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("left", ["unknown", "ignored", "of no weight"])
def test_no_known_voxel_gives_no_loss_and_no_gradient(left: str) -> None:
    logits, classes = semantic_case()
    classes = torch.full_like(classes, -100 if left == "unknown" else 3)
    weights = torch.zeros(5) if left == "of no weight" else None
    terms = semantic_loss(
        logits, classes, class_weights=weights, ignore_index=3 if left == "ignored" else -100
    )
    total = terms.ce if left == "of no weight" else terms.ce + terms.dice
    assert float(total.detach()) == 0
    (gradient,) = torch.autograd.grad(total, logits)
    assert not gradient.any()


def test_dice_counts_only_classes_that_are_there() -> None:
    sure = torch.zeros(1, 3, 4, 4)
    sure[:, 0] = 30
    nothing = torch.zeros(1, 4, 4).long()
    # All is background and said to be: no loss, though two classes do not occur.
    terms = semantic_loss(sure, nothing)
    assert float(terms.ce + terms.dice) == pytest.approx(0, abs=1e-4)
    wrong = nothing.clone()
    wrong[:, :2] = 1
    assert float(semantic_loss(sure, wrong).dice) == pytest.approx((1 / 3 + 1) / 2, abs=1e-3)


def test_dice_of_millions_of_voxels_is_as_exact_as_that_of_a_few() -> None:
    logits = torch.randn(1, 2, 2**12, generator=torch.Generator().manual_seed(0))
    logits[:, 1] += 3
    classes = (torch.arange(2**12) % 7 > 0).long()[None]
    few = semantic_loss(logits, classes).dice
    many = semantic_loss(logits.repeat(1, 1, 2**9), classes.repeat(1, 2**9)).dice
    torch.testing.assert_close(many, few, rtol=1e-5, atol=0)


def test_class_weights_must_be_one_for_each_class() -> None:
    logits, classes = semantic_case()
    with pytest.raises(ValueError, match=r"class_weights has shape \(4,\), not \(5,\)"):
        semantic_loss(logits, classes, class_weights=torch.ones(4))
