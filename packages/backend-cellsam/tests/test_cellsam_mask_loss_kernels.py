"""The Triton kernels of the mask losses equal a plain oracle, in Triton's interpreter, and compile
for GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("torchvision")
pytest.importorskip("segment_anything")

from mask_loss_oracle import gradient, masks, oracle  # noqa: E402
from triton_interpreter import run_interpreted  # noqa: E402

from cellseg_cellsam import mask_losses  # noqa: E402
from cellseg_cellsam.mask_losses import MaskLosses  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "one program": {},
    "several programs": {"side": 9},
    "other focal loss": {"alpha": 0.7, "gamma": 3.5},
    "no exponent": {"gamma": 0.0},
    "no boundary": {"boundary": False},
    "half precision": {"half": True},
    "not contiguous": {"turned": True},
    "no masks": {"count": 0},
}


class OnGpu(torch.Tensor):
    """Claims to be on a GPU."""

    is_cuda = True


def by_kernels(logits: Any, targets: Any, known: Any, **given: Any) -> tuple[Any, ...]:
    found = MaskLosses.of(logits.as_subclass(OnGpu), targets, known, **given)
    return tuple(
        term.as_subclass(torch.Tensor)
        for term in (found.focal, found.dice, found.boundary, found.iou)
    )


def compare(
    count: int = 2, side: int = 5, half: bool = False, turned: bool = False, **given: Any
) -> dict[str, float]:
    """The largest differences of the kernels' losses and gradient to those in float64."""
    logits, targets, known = masks(count, side)
    if half:
        logits = logits.bfloat16()
    if turned:
        logits, targets = (
            each.transpose(1, 2).contiguous().transpose(1, 2) for each in (logits, targets)
        )
    pairs = list(zip(by_kernels(logits, targets, known, **given),
                     oracle(logits, targets, known, **given), strict=True))  # fmt: skip
    grad = gradient(by_kernels, logits, targets, known, **given)
    assert grad.dtype == logits.dtype
    pairs.append((grad, gradient(oracle, logits, targets, known, **given)))
    names = ("focal", "dice", "boundary", "iou", "gradient")
    return {
        name: float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        for name, (a, b) in zip(names, pairs, strict=True)
    }


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """The differences in all cases."""
    return run_interpreted(Path(__file__))


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_oracle(name: str, interpreted: dict[str, dict[str, float]]) -> None:
    rounding = 2**-8 if name == "half precision" else 1e-5  # a unit of bfloat16 below 1
    found = interpreted[name]
    assert found.pop("gradient") <= rounding
    assert max(found.values()) <= 1e-5


def test_kernels_are_for_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from cellseg_cellsam import mask_loss_kernels

    given = []

    def sums(logits: Any, *rest: Any) -> Any:
        given.append(rest[-3:])
        return torch.ones(len(logits), mask_losses.SUMS)

    monkeypatch.setattr(mask_loss_kernels, "pixel_sums", sums)
    logits, targets, known = masks(2, 8)
    plain = MaskLosses.of(logits, targets, known, gamma=3.0)
    assert not given
    assert by_kernels(logits, targets, known, gamma=3.0)[1].tolist() == [0.0, 0.0]
    assert given == [(0.25, 3.0, True)]
    monkeypatch.setattr(mask_losses, "find_spec", lambda name: None)
    assert by_kernels(logits, targets, known, gamma=3.0)[1].equal(plain.dice)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["_sums", "_gradient"])
def test_kernels_compile_for_gpus(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cellseg_cellsam import mask_loss_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    maps = ["targets", "known", "inner", "sums", "wanted"]
    types = dict.fromkeys(maps, "*fp32") | dict.fromkeys(["alpha", "gamma", "squared"], "fp32")
    types |= dict.fromkeys(["logits", "gradient"], "*bf16")
    sizes = {"BOUNDARY": True, "SUMS": mask_losses.SUMS, "PIXELS": kernels._PIXELS}
    function = getattr(kernels, kernel)
    signature = {a: types.get(a, "constexpr" if a in sizes else "i32") for a in function.arg_names}
    source = ASTSource(function, signature, constexprs=sizes)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]


if __name__ == "__main__":
    from cellseg_cellsam import mask_loss_kernels

    torch.set_num_threads(1)
    mask_loss_kernels._PIXELS = 32
    print(json.dumps({name: compare(**given) for name, given in CASES.items()}))
