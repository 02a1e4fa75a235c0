"""The Triton kernel finds what NumPy and Segment Anything find, in Triton's interpreter, and
compiles for GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("segment_anything")

from mask_proposals import measured, proposals  # noqa: E402
from triton_interpreter import run_interpreted  # noqa: E402

from cellseg.torch import masks  # noqa: E402
from cellseg.torch.frames import Frame  # noqa: E402
from cellseg.torch.mask_pixels import axes, count  # noqa: E402

SQUARE, SMALLER = Frame((64, 64), (64, 64), 64), Frame.fit((31, 42), 64)
CASES = {
    "the square itself": {"frame": SQUARE},
    "smaller and not square": {"frame": SMALLER},
    "larger and not square": {"frame": Frame.fit((94, 69), 64)},
    "smaller than the logits": {"frame": Frame.fit((10, 7), 64)},
    "with an empty margin": {"frame": Frame.fit((19, 13), 64, field=32)},
    "logits of the square": {"frame": Frame.fit((13, 16), 16)},
    "half precision": {"frame": SMALLER, "half": True},
    "not contiguous": {"frame": SMALLER, "turned": True},
    "another threshold": {"frame": SMALLER, "levels": (-0.5, -1.0, -1.5)},
    "no masks": {"frame": SQUARE, "masks": 0},
}


def compare(
    frame: Frame,
    half: bool = False,
    turned: bool = False,
    levels: tuple[float, float, float] = (1.0, 0.0, -1.0),
    masks: int = 6,
) -> dict[str, float]:
    """Largest differences of the kernel's counts to NumPy's, and to Segment Anything's."""
    from cellseg.torch import mask_kernels

    logits = proposals(6, 16)[:masks]
    logits = logits.bfloat16() if half else logits
    logits = logits.transpose(1, 2) if turned else logits
    axis = axes(frame, logits.shape[-1])
    areas, boxes = mask_kernels.count(logits, *axis, levels)
    ours = count(logits.float().numpy(), *axis, levels)
    stability, full, edges = measured(logits, frame, levels[0] - levels[1], levels[1])
    pairs = {
        "areas": (areas, torch.from_numpy(ours[0])),
        "boxes": (boxes, torch.from_numpy(ours[1])),
        "area of the peer": (areas[:, 1], full.sum((1, 2))),
        "stability of the peer": (areas[:, 0] / areas[:, 2].clamp(min=1), stability.nan_to_num()),
        "boxes of the peer": (boxes, edges),
    }
    return {
        name: float((a.double() - b).abs().max()) if a.numel() else 0.0
        for name, (a, b) in pairs.items()
    }


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """The differences in all cases."""
    return run_interpreted(Path(__file__))


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_its_peers(name: str, interpreted: dict[str, dict[str, float]]) -> None:
    assert interpreted[name] == dict.fromkeys(interpreted[name], 0.0)


def test_kernel_is_for_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from cellseg.torch import mask_kernels

    class OnGpu(torch.Tensor):
        is_cuda = True

    def kernel(logits: torch.Tensor, *given: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(logits), 3), 7), torch.full((len(logits), 4), 8)

    monkeypatch.setattr(mask_kernels, "count", kernel)
    logits, frame = torch.zeros(2, 64, 64), SQUARE
    assert masks.score_masks(logits, frame).areas.tolist() == [0, 0]
    found = masks.score_masks(logits.as_subclass(OnGpu), frame)
    assert found.areas.tolist() == [7, 7]
    assert found.boxes.tolist() == [[8.0] * 4] * 2
    monkeypatch.setattr(masks, "find_spec", lambda name: None)
    assert masks.score_masks(logits.as_subclass(OnGpu), frame).areas.tolist() == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("taps", [2, 3])
def test_kernel_compiles_for_gpus(
    taps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cellseg.torch import mask_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(["logits", "row_weights", "column_weights"], "*fp32")
    types |= dict.fromkeys(["row_first", "column_first", "areas", "edges"], "*i32")
    types |= dict.fromkeys(["upper", "middle", "lower"], "fp32")
    sizes = {"HIGH": taps, "WIDE": taps, "ROWS": 16, "COLUMNS": 128}
    function = mask_kernels._count
    signature = {a: types.get(a, "constexpr" if a in sizes else "i32") for a in function.arg_names}
    source = ASTSource(function, signature, constexprs=sizes)
    made = triton.compile(
        source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False}
    )
    assert made.asm["cubin"]
    assert "fma" not in made.asm["ptx"]


if __name__ == "__main__":
    from cellseg.torch import mask_kernels

    torch.set_num_threads(1)
    mask_kernels._COLUMNS = 32
    print(json.dumps({name: compare(**given) for name, given in CASES.items()}))
