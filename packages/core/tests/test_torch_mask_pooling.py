"""Masked pooling equals plain sums in float64, over pixels and over the decoder's logits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from mask_proposals import FRAMES, proposals  # noqa: E402

from cellseg.torch import mask_pooling  # noqa: E402
from cellseg.torch.frames import Frame  # noqa: E402
from cellseg.torch.mask_pooling import pool_logits, pool_masks  # noqa: E402
from cellseg.torch.masks import FoundMask  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(count: int, size: tuple[int, int], seed: int = 0) -> list[FoundMask]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        shape = random.integers(1, 12, 2)
        y, x = random.integers(0, np.maximum(np.array(size) - shape, 1))
        mask = random.random(shape) < random.choice([0.2, 0.7, 1.0])
        mask.flat[random.integers(mask.size)] = True
        found.append(FoundMask(mask, (int(y), int(x)), 0.5))
    return found


def expected(
    masks: list[FoundMask], features: torch.Tensor, step: tuple[float, float]
) -> np.ndarray:
    """Pixel by pixel."""
    values = features.double().numpy()
    _, gy, gx = values.shape
    pooled = np.zeros((len(masks), len(values)))
    for row, one in zip(pooled, masks, strict=True):
        pixels = np.argwhere(one.mask) + one.corner
        for y, x in pixels:
            cell = int((y + 0.5) / step[0]), int((x + 0.5) / step[1])
            row += values[:, min(cell[0], gy - 1), min(cell[1], gx - 1)] / len(pixels)
    return pooled


@pytest.mark.parametrize(
    ("grid", "step"),
    [((8, 8), (5.0, 5.0)), ((7, 9), (40 / 7, 4.4)), ((80, 80), (0.5, 0.5)), ((1, 1), (64.0, 64.0))],
)
def test_every_pixel_counts_once(grid: tuple[int, int], step: tuple[float, float]) -> None:
    masks = drawn(40, (40, 40))
    features = torch.randn(6, *grid, generator=torch.Generator().manual_seed(1))
    pooled = pool_masks(masks, features, step)
    assert (pooled.shape, pooled.dtype) == ((40, 6), torch.float32)
    np.testing.assert_allclose(pooled, expected(masks, features, step), rtol=1e-5, atol=1e-6)


def test_pixels_beyond_the_grid_belong_to_its_last_cells() -> None:
    features = torch.arange(4.0).reshape(1, 2, 2)
    beyond = FoundMask(np.ones((6, 2), bool), (2, 5), 1.0)
    # Rows 2 and 3 lie in the upper cell, 4 to 7 in the lower one and below it.
    pooled = pool_masks([beyond], features, (4.0, 2.0))
    assert pooled.item() == pytest.approx((2 * 1 + 4 * 3) / 6)
    far = FoundMask(np.ones((3, 3), bool), (90, 70), 1.0)
    assert pool_masks([far], features, (4.0, 2.0)).tolist() == [[3.0]]


def test_what_is_pooled_together_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = drawn(30, (40, 40), seed=2)
    features = torch.randn(5, 10, 10, generator=torch.Generator().manual_seed(1))
    whole = pool_masks(masks, features, (4.0, 4.0))
    monkeypatch.setattr(mask_pooling, "_PAIRS", 5)
    assert torch.equal(pool_masks(masks, features, (4.0, 4.0)), whole)
    assert torch.equal(pool_masks(masks[::-1], features, (4.0, 4.0)), whole.flip(0))
    assert torch.equal(pool_masks(masks[7:8], features, (4.0, 4.0)), whole[7:8])


def test_half_precision_is_summed_in_single() -> None:
    features = torch.full((2, 50, 50), 1.0, dtype=torch.bfloat16)
    mask = FoundMask(np.ones((50, 50), bool), (0, 0), 1.0)
    pooled = pool_masks([mask], features, (1.0, 1.0))
    assert pooled.tolist() == [[1.0, 1.0]]


def test_no_masks_and_masks_of_nothing() -> None:
    features = torch.ones(3, 4, 4)
    assert pool_masks([], features, (4.0, 4.0)).shape == (0, 3)
    nothing = [
        FoundMask(np.zeros((2, 3), bool), (1, 1), 1.0),
        FoundMask(np.zeros((0, 3), bool), (1, 1), 1.0),
        FoundMask(np.ones((2, 3), bool), (1, 1), 1.0),
        FoundMask(np.zeros((2, 3), bool), (1, 1), 1.0),
    ]
    assert pool_masks(nothing, features, (4.0, 4.0))[:, 0].tolist() == [0, 0, 1, 0]
    logits = torch.full((2, 16, 16), -1.0)
    logits[1] = 1
    square = Frame((16, 16), (16, 16), 16)
    assert pool_logits(logits, features, square)[:, 0].tolist() == [0, 1]
    assert pool_logits(logits[:0], features, square).shape == (0, 3)


@pytest.mark.parametrize("step", [(0.0, 1.0), (1.0, -1.0)])
def test_steps_are_above_nothing(step: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no grid"):
        pool_masks([], torch.zeros(2, 3, 3), step)


@pytest.mark.parametrize(
    ("logits", "features"), [((2, 16, 12), (3, 4, 4)), ((2, 16, 16), (3, 3, 4)),
                             ((2, 16, 16), (3, 5, 5)), ((16, 16), (3, 4, 4))],
)  # fmt: skip
def test_logits_must_fit_the_grid(logits: tuple[int, ...], features: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="for features"):
        pool_logits(torch.zeros(logits), torch.zeros(features), Frame((16, 16), (16, 16), 16))


def pooled_logits(
    logits: torch.Tensor, features: torch.Tensor, frame: Frame, threshold: float
) -> np.ndarray:
    """Logit by logit."""
    values, answers = features.double().numpy(), logits.float().numpy()
    m, factor = answers.shape[-1], answers.shape[-1] // values.shape[-1]
    inside = [
        [i for i in range(m) if i == 0 or (i + 0.5) * frame.side / m < scaled]
        for scaled in frame.scaled
    ]
    pooled = np.zeros((len(answers), len(values)))
    for row, one in zip(pooled, answers, strict=True):
        places = [(y, x) for y in inside[0] for x in inside[1] if one[y, x] > threshold]
        for y, x in places:
            row += values[:, y // factor, x // factor] / len(places)
    return pooled


@pytest.mark.parametrize("threshold", [0.0, -1.5])
@pytest.mark.parametrize("factor", [4, 1, 16])
@pytest.mark.parametrize("name", FRAMES)
def test_logits_are_pooled_where_the_image_is(name: str, factor: int, threshold: float) -> None:
    logits, frame = proposals(6, 64, seed=3), FRAMES[name]
    side = 64 // factor
    features = torch.randn(5, side, side, generator=torch.Generator().manual_seed(1))
    found = pool_logits(logits, features, frame, threshold)
    assert (found.shape, found.dtype) == ((6, 5), torch.float32)
    oracle = pooled_logits(logits, features, frame, threshold)
    np.testing.assert_allclose(found, oracle, rtol=1e-4, atol=1e-5)


def test_padding_counts_neither_as_mask_nor_as_features(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, frame = proposals(6, 64, seed=3), Frame.fit((40, 96), 256)
    features = torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(1))
    before = pool_logits(logits, features, frame)
    logits[:, 28:] = 50
    features[:, 7:] = torch.inf
    assert torch.equal(pool_logits(logits, features, frame), before)
    monkeypatch.setattr(mask_pooling, "_LOGITS", 1)
    torch.testing.assert_close(pool_logits(logits, features, frame), before)


def test_both_agree_where_logits_are_pixels() -> None:
    """Cells of whole pixels of the image: nothing differs but the way."""
    frame = Frame((64, 64), (64, 64), 64)
    logits = proposals(8, 64, seed=4)[1:]
    features = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(1))
    masks = [FoundMask(one.numpy() > 0, (0, 0), 1.0) for one in logits]
    torch.testing.assert_close(
        pool_logits(logits, features, frame), pool_masks(masks, features, (4.0, 4.0))
    )
