"""The folded attention against Segment Anything's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
segment_anything = pytest.importorskip("segment_anything.modeling.image_encoder")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from cellseg.torch.attention import FoldedAttention, fold_attention  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def theirs(heads: int = 2, width: int = 24, size: tuple[int, int] = (6, 6), **more: Any) -> Any:
    """Segment Anything's attention, with relative positions that matter."""
    attention = segment_anything.Attention(width, heads, input_size=size, **more)
    for name, parameter in attention.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter)
    return attention


def compare(attention: Any, x: Any) -> None:
    """The same result and the same gradient of each parameter and of the input."""
    folded = FoldedAttention(copy.deepcopy(attention))
    assert list(folded.state_dict()) == list(attention.state_dict())
    weights = torch.randn(x.shape)
    found = []
    for module in (attention, folded):
        given = x.clone().requires_grad_()
        out = module(given)
        (out * weights).sum().backward()
        found.append((out, given.grad, {n: p.grad for n, p in module.named_parameters()}))
    (out, d_x, grads), (ours, our_d_x, our_grads) = found
    torch.testing.assert_close(ours, out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(our_d_x, d_x, rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(our_grads[name], grad, rtol=1e-4, atol=1e-4, msg=name)


def test_the_result_and_the_gradient_are_the_same() -> None:
    compare(theirs(use_rel_pos=True), torch.randn(3, 6, 6, 24))


def test_without_relative_positions() -> None:
    compare(theirs(use_rel_pos=False), torch.randn(2, 6, 6, 24))


def test_a_grid_that_is_not_square() -> None:
    compare(theirs(size=(4, 9), use_rel_pos=True), torch.randn(2, 4, 9, 24))


@pytest.mark.parametrize("grid", [(3, 8), (9, 6), (1, 1)], ids=str)
def test_positions_are_interpolated_for_another_grid(grid: tuple[int, int]) -> None:
    compare(theirs(use_rel_pos=True), torch.randn(2, *grid, 24))


def test_a_whole_encoder_with_windows_and_padding() -> None:
    encoder = segment_anything.ImageEncoderViT(
        img_size=80,
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        out_chans=8,
        use_rel_pos=True,
        window_size=3,  # does not divide 5
        global_attn_indexes=(1,),
    )
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folded = copy.deepcopy(encoder)
    fold_attention(folded)
    folded.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), encoder(x), rtol=1e-4, atol=1e-4)


def test_half_precision_is_as_near_as_theirs() -> None:
    attention = theirs(use_rel_pos=True)
    folded, x = FoldedAttention(attention), torch.randn(2, 6, 6, 24)
    exact = attention(x)
    with torch.autocast("cpu", torch.bfloat16):
        half, ours = attention(x), folded(x)
    assert ours.dtype == half.dtype == torch.bfloat16
    assert (ours - exact).abs().max() < 2 * (half - exact).abs().max()


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, list | tuple) else [result]:
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.untyped_storage().nbytes() // 4)
        return result


def test_nothing_is_as_large_as_all_pairs_of_tokens() -> None:
    side, heads = 16, 2
    attention = theirs(heads, 32, (side, side), use_rel_pos=True)
    x = torch.randn(1, side, side, 32, requires_grad=True)
    pairs = heads * side**4
    numbers = {}
    for name, module in (("theirs", attention), ("ours", FoldedAttention(attention))):
        with Largest() as largest:
            module(x).sum().backward()
        numbers[name] = largest.numbers
    assert numbers["theirs"] >= pairs
    assert numbers["ours"] < pairs / 4
