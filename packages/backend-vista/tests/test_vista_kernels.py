"""The Triton kernels equal the plain loop, in Triton's interpreter, and compile for GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from triton_interpreter import run_interpreted  # noqa: E402

from cellseg_vista.losses import Margins, discriminative  # noqa: E402

CASES = {
    "odd sizes and ids with gaps": {"size": (5, 13), "n": 2, "e": 5},
    "several classes in a volume": {"size": (3, 5, 7), "n": 2, "classes": 3, "cells": 9},
    "one channel, one axis": {"size": (67,), "n": 1, "e": 1},
    "one object": {"size": (6, 11), "n": 1, "cells": 1},
    "an empty sample": {"size": (4, 9), "empty": 1},
    "nothing at all": {"size": (4, 9), "n": 1, "cells": 0},
    "runs across tiles": {"size": (2, 90), "n": 1, "runs": True},
    "channels last": {"size": (6, 7), "n": 2, "last": True, "e": 6},
    "half precision": {"size": (5, 13), "n": 1, "half": True},
}


def compare(size, half=False, last=False, runs=False, empty=None, **given):
    """Largest differences to the loop, over the largest number: of the terms, of the gradient."""
    from test_vista_losses import both, case

    embedding, labels, weights = case(size=size, **given)
    if empty is not None:
        labels[empty] = 0
    if runs:
        labels = labels.sort().values
    if last:
        embedding = embedding.to(memory_format=torch.channels_last)
    if half:
        embedding = embedding.bfloat16()
    found = both(embedding, labels, weights, Margins(push_reach=0.6))
    return [float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30))
            for a, b in zip(*found, strict=True)]  # fmt: skip


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[float]]:
    """The differences of all cases."""
    return run_interpreted(Path(__file__))


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_loop(name: str, interpreted: dict[str, list[float]]) -> None:
    value, gradient = interpreted[name]
    assert value < 1e-6
    assert gradient < (5e-3 if "half" in CASES[name] else 1e-6)


def test_kernels_are_for_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        is_cuda = True
        dtype = torch.float32

    assert discriminative._work(torch.zeros(1)).__name__.endswith("blocks")
    assert discriminative._work(OnGpu()).__name__.endswith("kernels")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert discriminative._work(OnGpu()).__name__.endswith("blocks")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["_means", "_pulls", "_gradient"])
def test_kernels_compile_for_gpus(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cellseg_vista.losses import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(["share", "mean", "slopes", "of_pull", "of_mean"], "*fp32")
    types |= dict.fromkeys(["total", "pull", "drag"], "*fp64")
    types |= {"embedding": "*bf16", "result": "*bf16", "index": "*i32"}
    types |= {"delta_v": "fp32", "epsilon": "fp32"}
    function = getattr(kernels, kernel)
    sizes = {"WIDE": 16, "LONG": 128}
    signature = {a: types.get(a, "constexpr" if a in sizes else "i32") for a in function.arg_names}
    source = ASTSource(function, signature, constexprs=sizes)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]


if __name__ == "__main__":
    from cellseg_vista.losses import kernels

    torch.set_num_threads(1)
    discriminative._work = lambda embedding: kernels
    kernels._TILE = 128
    print(json.dumps({name: compare(**given) for name, given in CASES.items()}))
