"""The Triton kernel of masked pooling equals a plain oracle, in Triton's interpreter, and compiles
for GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("segment_anything")

from mask_proposals import proposals  # noqa: E402
from triton_interpreter import run_interpreted  # noqa: E402

from cellseg.torch import mask_pooling  # noqa: E402
from cellseg.torch.frames import Frame  # noqa: E402
from cellseg.torch.mask_pooling import pool_logits  # noqa: E402

CASES = {
    "one program": {},
    "several masks, cells and channels": {"masks": 21, "channels": 40},
    "not all channels": {"channels": 19},
    "two logits in a cell": {"factor": 2},
    "cells of one logit": {"factor": 1},
    "half precision": {"half": True},
    "not contiguous": {"turned": True},
    "another threshold": {"threshold": -1.5},
    "nothing there": {"threshold": 50.0},
    "no masks": {"masks": 0},
}


def compare(
    masks: int = 6,
    channels: int = 5,
    factor: int = 4,
    half: bool = False,
    turned: bool = False,
    threshold: float = 0.0,
) -> float:
    """The largest difference of the kernel's vectors to sums in float64."""
    from cellseg.torch import mask_pooling_kernels

    logits = proposals(max(masks, 6), 32)[:masks, :30, :25]
    rows, columns = -(-30 // factor), -(-25 // factor)
    features = torch.randn(channels, rows, columns, generator=torch.Generator().manual_seed(1))
    if half:
        logits, features = logits.bfloat16(), features.bfloat16()
    if turned:
        logits = logits.transpose(1, 2).contiguous().transpose(1, 2)
        features = features.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    pooled = mask_pooling_kernels.pool(logits, features, factor, threshold)
    assert pooled.shape == (masks, channels)
    above = (logits.float() > threshold).double()
    each = features.double().repeat_interleave(factor, 1).repeat_interleave(factor, 2)[:, :30, :25]
    oracle = torch.einsum("nyx,dyx->nd", above, each) / above.sum((1, 2)).clamp(min=1)[:, None]
    return float((pooled - oracle).abs().max()) if masks else 0.0


@pytest.fixture(scope="module")
def interpreted() -> dict[str, float]:
    """The differences in all cases."""
    return run_interpreted(Path(__file__))


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_sums_in_double(name: str, interpreted: dict[str, float]) -> None:
    assert interpreted[name] <= 1e-5


def test_kernel_is_for_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from cellseg.torch import mask_pooling_kernels

    class OnGpu(torch.Tensor):
        is_cuda = True

    given = []

    def kernel(logits: torch.Tensor, features: torch.Tensor, *rest: object) -> torch.Tensor:
        given.append((tuple(logits.shape), tuple(features.shape), *rest))
        return torch.full((len(logits), len(features)), 7.0)

    monkeypatch.setattr(mask_pooling_kernels, "pool", kernel)
    logits, features = torch.ones(2, 64, 64), torch.ones(3, 16, 16)
    frame = Frame.fit((27, 64), 64)
    assert pool_logits(logits, features, frame).unique().tolist() == [1.0]
    assert not given
    found = pool_logits(logits.as_subclass(OnGpu), features, frame, 0.5)
    assert found.unique().tolist() == [7.0]
    assert given == [((2, 27, 64), (3, 7, 16), 4, 0.5)]
    monkeypatch.setattr(mask_pooling, "find_spec", lambda name: None)
    plain = pool_logits(logits.as_subclass(OnGpu), features, frame)
    assert plain.unique().tolist() == [1.0]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [32, 256])
def test_kernel_compiles_for_gpus(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cellseg.torch import mask_pooling_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(["logits", "features", "pooled"], "*fp32") | {"threshold": "fp32"}
    sizes = {
        "FACTOR": 4, "MASKS": kernels._MASKS, "CELLS": kernels._CELLS, "CHANNELS": channels,
    }  # fmt: skip
    function = kernels._pool
    signature = {a: types.get(a, "constexpr" if a in sizes else "i32") for a in function.arg_names}
    source = ASTSource(function, signature, constexprs=sizes)
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert made.asm["cubin"]
    assert "tf32" not in made.asm["ptx"]  # the vectors are not rounded to 10 bits


if __name__ == "__main__":
    from cellseg.torch import mask_pooling_kernels

    torch.set_num_threads(1)
    mask_pooling_kernels._CHANNELS = 16
    print(json.dumps({name: compare(**given) for name, given in CASES.items()}))
