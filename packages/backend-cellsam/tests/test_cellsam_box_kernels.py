"""Overlaps and costs of all pairs of boxes equal plain loops in float64: in torch, and in the
Triton kernels, in Triton's interpreter; and these compile for GPUs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
ops = pytest.importorskip("torchvision.ops")

from triton_interpreter import run_interpreted  # noqa: E402

from cellseg_cellsam import box_pairs  # noqa: E402
from cellseg_cellsam.box_pairs import Costs, matching_costs, pairwise_overlaps  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "one program": {},
    "several programs": {"layers": 1, "queries": 18, "cells": 17},
    "one pair": {"layers": 1, "images": 1, "queries": 1, "cells": 1},
    "half precision": {"half": True},
    "not contiguous": {"turned": True},
    "other costs": {"costs": Costs(2.0, 0.5, 3.0, 0.6, 1.5)},
    "class alone": {"costs": Costs(1.0, 0.0, 0.0)},
    "logits far from 0": {"scale": 30.0},
    "no cells": {"cells": 0},
    "no queries": {"queries": 0},
}


def made(
    layers: int = 2,
    images: int = 2,
    queries: int = 9,
    cells: int = 5,
    half: bool = False,
    turned: bool = False,
    scale: float = 2.0,
    costs: Costs | None = None,
) -> tuple[Any, ...]:
    """Logits, boxes and true boxes (``cx cy w h``), and costs."""
    generator = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(layers, images, queries, generator=generator)
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.5 + 0.1
    truth = torch.rand(images, cells, 4, generator=generator) * 0.5 + 0.1
    if half:
        logits, boxes = logits.bfloat16(), boxes.bfloat16()
    if turned:
        logits = logits.transpose(1, 2).contiguous().transpose(1, 2)
        boxes = boxes.transpose(-1, -2).contiguous().transpose(-1, -2)
    return logits, boxes, truth, costs or Costs()


def in_double(logits: Any, boxes: Any, truth: Any, costs: Costs) -> Any:
    """The costs, one pair at a time."""
    total = torch.zeros(*logits.shape, truth.shape[1], dtype=torch.float64)
    for layer, image, query, cell in torch.cartesian_prod(
        *(torch.arange(length) for length in total.shape)
    ).tolist():
        z = float(logits[layer, image, query])
        p, found, wanted = 1 / (1 + math.exp(-z)), boxes[layer, image, query], truth[image, cell]
        yes, no = math.log1p(math.exp(-z)), math.log1p(math.exp(z))
        focal = costs.alpha * (1 - p) ** costs.gamma * yes
        focal -= (1 - costs.alpha) * p**costs.gamma * no
        corners = (ops.box_convert(x.double()[None], "cxcywh", "xyxy") for x in (found, wanted))
        giou = float(ops.generalized_box_iou(*corners))
        far = float((found.double() - wanted.double()).abs().sum())
        total[layer, image, query, cell] = (
            costs.classes * focal + costs.boxes * far - costs.giou * giou
        )
    return total


def largest(difference: Any) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


def kernel_differences(**given: Any) -> tuple[float, float, float]:
    """The largest differences of the kernels to loops in float64: costs, IoU, generalised IoU."""
    from cellseg_cellsam import box_kernels

    logits, boxes, truth, costs = made(**given)
    total = box_kernels.costs(logits, boxes, truth, costs)
    corners = [ops.box_convert(x, "cxcywh", "xyxy") for x in (boxes[0], truth.to(boxes.dtype))]
    found = box_kernels.overlaps(*corners)
    wanted = [
        torch.stack([each(a.double(), b.double()) for a, b in zip(*corners, strict=True)])
        for each in (ops.box_iou, ops.generalized_box_iou)
    ]
    differences = (a - b for a, b in zip(found, wanted, strict=True))
    return largest(total - in_double(logits, boxes, truth, costs)), *map(largest, differences)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[float]]:
    """The differences in all cases."""
    pytest.importorskip("triton")
    return run_interpreted(Path(__file__))


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_loops_in_double(name: str, interpreted: dict[str, list[float]]) -> None:
    assert max(interpreted[name]) <= 3e-5


@pytest.mark.parametrize("name", CASES)
def test_torch_equals_loops_in_double(name: str) -> None:
    given = made(**CASES[name])
    total = matching_costs(*given)
    assert total.dtype == torch.float32
    assert largest(total - in_double(*given)) <= 3e-5


def test_overlaps_equal_torchvision_for_each_image() -> None:
    first, second = torch.rand(3, 11, 4), torch.rand(3, 6, 4)
    first[..., 2:] += first[..., :2]
    second[..., 2:] += second[..., :2]
    iou, giou = pairwise_overlaps(first, second)
    for image in range(3):
        a, b = first[image], second[image]
        torch.testing.assert_close(iou[image], ops.box_iou(a, b))
        torch.testing.assert_close(giou[image], ops.generalized_box_iou(a, b))


def test_boxes_without_area_overlap_nothing() -> None:
    points = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1]]])
    iou, giou = pairwise_overlaps(points, points)
    assert not iou.any()
    assert giou.isfinite().all()


def test_kernels_are_for_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from cellseg_cellsam import box_kernels

    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(box_kernels, "overlaps", lambda *given: "overlaps")
    monkeypatch.setattr(box_kernels, "costs", lambda *given: "costs")
    logits, boxes, truth, costs = made()
    assert matching_costs(logits.as_subclass(OnGpu), boxes, truth, costs) == "costs"
    assert pairwise_overlaps(boxes[0].as_subclass(OnGpu), truth) == "overlaps"
    monkeypatch.setattr(box_pairs, "find_spec", lambda name: None)
    plain = matching_costs(logits.as_subclass(OnGpu), boxes, truth, costs)
    assert plain.shape == (*logits.shape, truth.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_overlaps", "_costs"])
def test_kernels_compile_for_gpus(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cellseg_cellsam import box_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(
        ["first", "second", "ious", "gious", "logits", "boxes", "truth", "totals"], "*fp32"
    ) | dict.fromkeys(["of_class", "of_box", "of_giou", "alpha", "gamma"], "fp32")
    sizes = {"ROWS": kernels._ROWS, "COLUMNS": kernels._COLUMNS}
    function = getattr(kernels, name)
    signature = {a: types.get(a, "constexpr" if a in sizes else "i32") for a in function.arg_names}
    source = ASTSource(function, signature, constexprs=sizes)
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert made.asm["cubin"]
    assert made.metadata.shared < 48 * 1024


if __name__ == "__main__":
    from cellseg_cellsam import box_kernels

    torch.set_num_threads(1)
    box_kernels._ROWS = box_kernels._COLUMNS = 16
    print(json.dumps({name: kernel_differences(**given) for name, given in CASES.items()}))
