"""Components of masks, and masks without holes and specks: against SciPy and scikit-image, in
Triton's interpreter, too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage import morphology

torch = pytest.importorskip("torch")

from triton_interpreter import run_interpreted  # noqa: E402

from cellseg.torch import components  # noqa: E402
from cellseg.torch.components import (  # noqa: E402
    connected_components,
    fill_holes_and_remove_specks,
)


def _spiral(side: int) -> np.ndarray:
    """One component that is as long as can be."""
    mask = np.zeros((side, side), bool)
    top, left, bottom, right = 0, 0, side - 1, side - 1
    while top <= bottom and left <= right:
        mask[top, left : right + 1] = mask[top : bottom + 1, right] = True
        mask[bottom, left : right + 1] = True
        mask[top + 2 : bottom + 1, left] = True
        if top + 2 <= bottom:
            mask[top + 2, left : left + 2] = True
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    return mask


def _random(shape: tuple[int, int, int], share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def _masks() -> dict[str, np.ndarray]:
    checks = np.indices((13, 12)).sum(0) % 2 == 0
    return {
        "noise": _random((3, 13, 17), 0.5),
        "dense noise": _random((2, 17, 15), 0.62),
        "sparse noise": _random((3, 16, 16), 0.1),
        "as wide as a block": _random((2, 3, 128), 0.55),
        "wider than blocks": _random((1, 3, 301), 0.8),
        "a column": _random((4, 50, 1), 0.6),
        "single pixels": _random((90, 1, 1), 0.5),
        "chessboards": np.stack([checks, ~checks]),
        "spirals": np.stack([_spiral(17), ~_spiral(17)]),
        "full and empty": np.stack([np.ones((11, 13), bool), np.zeros((11, 13), bool)] * 2),
        "blobs": ndimage.gaussian_filter(_random((2, 30, 24), 0.5).astype(float), (0, 2, 2)) > 0.5,
        "no masks": np.zeros((0, 8, 8), bool),
        "no pixels": np.zeros((3, 0, 8), bool),
    }


def _scipy(masks: np.ndarray, connectivity: int) -> np.ndarray:
    """Mask by mask."""
    found, count = np.zeros(masks.shape, int), 0
    for one, target in zip(masks, found, strict=True):
        if one.size:
            pieces, more = ndimage.label(one, np.ones((3, 3)) if connectivity == 8 else None)
            target[one] = pieces[one] + count
            count += more
    return found


def compare(name: str, connectivity: int, turned: bool = False) -> int:
    """In how many pixels the kernels differ from SciPy."""
    from cellseg.torch.components_kernels import label

    masks = torch.from_numpy(_masks()[name])
    masks = masks.transpose(1, 2) if turned else masks
    found = label(masks, connectivity)  # type: ignore[arg-type]
    assert found.dtype == torch.int32 and found.shape == masks.shape
    return int((found.numpy() != _scipy(masks.numpy(), connectivity)).sum())


@pytest.fixture(scope="module")
def interpreted() -> dict[str, int]:
    pytest.importorskip("triton")
    return run_interpreted(Path(__file__))


@pytest.mark.parametrize("name", _masks())
def test_kernels_equal_scipy(name: str, interpreted: dict[str, int]) -> None:
    found = {case: wrong for case, wrong in interpreted.items() if case.startswith(name)}
    assert found and not any(found.values()), found


@pytest.mark.parametrize("name", _masks())
def test_components_equal_those_of_each_mask(name: str) -> None:
    masks = _masks()[name]
    for connectivity in (4, 8):
        found = connected_components(torch.from_numpy(masks), connectivity)
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(found, _scipy(masks, connectivity))


@pytest.mark.parametrize("name", [n for n in _masks() if not n.startswith("no ")])
@pytest.mark.parametrize("size", [1, 6, 40])
def test_holes_and_specks_equal_scikit_image(name: str, size: int) -> None:
    masks = _masks()[name]
    found = fill_holes_and_remove_specks(torch.from_numpy(masks), size, 0)
    # Background beyond the border makes what touches it one large area.
    for one, filled in zip(masks, found.numpy(), strict=True):
        around = np.pad(one, 1)
        around = np.pad(around, size + 1)
        empty = morphology.remove_small_holes(around, max_size=size, connectivity=1)
        np.testing.assert_array_equal(filled, empty[size + 2 : -size - 2, size + 2 : -size - 2])
    found = fill_holes_and_remove_specks(torch.from_numpy(masks), 0, size)
    for one, kept in zip(masks, found.numpy(), strict=True):
        large = morphology.remove_small_objects(one, max_size=size, connectivity=2)
        pieces = ndimage.label(one, np.ones((3, 3)))[0]
        sizes = np.bincount(pieces.ravel())[1:]
        if len(sizes):
            large |= pieces == sizes.argmax() + 1
        np.testing.assert_array_equal(kept, large)


def test_holes_are_filled_first_and_a_speck_may_go_with_them() -> None:
    ring = np.zeros((1, 12, 12), bool)
    ring[0, 1:8, 1:8] = True
    ring[0, 2:7, 2:7] = False
    ring[0, 4, 4] = True  # in its middle
    ring[0, 10, 10] = True  # beside it
    given = torch.from_numpy(ring.copy())
    cleaned = fill_holes_and_remove_specks(given, 24, 1).numpy()
    assert cleaned[0, 1:8, 1:8].all() and cleaned.sum() == 49
    assert fill_holes_and_remove_specks(given, 23, 1).sum() == 24
    assert fill_holes_and_remove_specks(given, 0, 144).sum() == 24
    nothing = fill_holes_and_remove_specks(given, 0, 0)
    nothing[:] = False
    np.testing.assert_array_equal(given, ring)  # as it was


def test_many_masks_are_cleaned_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.from_numpy(_random((7, 30, 20), 0.6))
    whole = fill_holes_and_remove_specks(masks, 3, 5)
    sizes = []
    count = connected_components

    def counted(masks: torch.Tensor, connectivity: int) -> torch.Tensor:
        sizes.append(len(masks))
        return count(masks, connectivity)  # type: ignore[arg-type]

    monkeypatch.setattr(components, "connected_components", counted)
    monkeypatch.setattr(components, "_PIXELS", 1200)
    assert torch.equal(fill_holes_and_remove_specks(masks, 3, 5), whole)
    assert max(sizes) == 2
    assert fill_holes_and_remove_specks(masks[:0], 3, 5).shape == (0, 30, 20)


def test_kernels_are_for_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from cellseg.torch import components_kernels

    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(components_kernels, "label", lambda masks, connectivity: connectivity)
    masks = torch.ones(1, 4, 4, dtype=torch.bool)
    assert connected_components(masks, 4).amax() == 1
    assert connected_components(masks.as_subclass(OnGpu), 4) == 4
    monkeypatch.setattr(components, "find_spec", lambda name: None)
    assert connected_components(masks.as_subclass(OnGpu), 4).amax() == 1


def test_what_is_no_mask_is_refused() -> None:
    masks = torch.ones(1, 4, 4, dtype=torch.bool)
    for wrong in (masks[0], masks.float()):
        with pytest.raises(ValueError, match="mask"):
            connected_components(wrong)
        with pytest.raises(ValueError, match="mask"):
            fill_holes_and_remove_specks(wrong, 1, 1)
    with pytest.raises(ValueError, match="holes=-1"):
        fill_holes_and_remove_specks(masks, -1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_point", "_unite 4", "_unite 8", "_find"])
def test_kernels_compile_for_gpus(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cellseg.torch import components_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(components_kernels, name.split()[0])
    types = {"pixels": "*u8", "parents": "*i32", "roots": "*i32"}
    sizes = {"BLOCK": components_kernels._BLOCK, "CORNERS": name.endswith("8")}
    given = {a: sizes[a] for a in function.arg_names if a in sizes}
    signature = {a: "constexpr" if a in sizes else types.get(a, "i32") for a in function.arg_names}
    source = ASTSource(function, signature, constexprs=given)
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert made.asm["cubin"]
    assert ("atom" in made.asm["ptx"]) == name.startswith("_unite")


if __name__ == "__main__":
    from cellseg.torch import components_kernels

    torch.set_num_threads(1)
    components_kernels._BLOCK = 128
    results = {f"{n}, {c}": compare(n, c) for n in _masks() for c in (4, 8)}
    results["noise, turned"] = compare("noise", 8, turned=True)
    print(json.dumps(results))
