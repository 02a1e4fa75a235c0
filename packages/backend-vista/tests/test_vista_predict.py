"""Tiles to segmentations: windows, classes, probabilities, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellseg import PredictJob, Tile
from cellseg.errors import ConfigError, DataError, WeightsError
from cellseg_vista.calibrate import calibrate
from cellseg_vista.description import Description
from cellseg_vista.instances import PixelMaps
from cellseg_vista.network import Architecture, Network
from cellseg_vista.predict import load
from cellseg_vista.predict_options import Vista2dPredictOptions, Vista3dPredictOptions
from cellseg_vista.windows import segment_windows, window, window_plan

THREE = ("background", "nucleus", "fibre")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(path: Path, dims: int, classes: tuple[str, ...] = ("background", "cell")) -> Path:
    torch.manual_seed(0)
    network = Network(
        Architecture.planned(
            channels=1,
            feature_size=4,
            emb_dim=3,
            num_classes=4,
            dims=dims,
            encoder="unet",
            deep_supervision=0,
            levels=2,
            spacing=(1.0,) * dims,
            patch=(16,) * dims,
        )
    )
    path.mkdir()
    network.save(path)
    Description(classes).save(path)
    return path


def job(path: Path, dims: int, probabilities: bool = False, **values: Any) -> PredictJob[Any]:
    kind = Vista2dPredictOptions if dims == 2 else Vista3dPredictOptions
    values = {"foreground_threshold": 0.3, "min_size": 0, **values}
    return PredictJob(options=kind(**values), device="cpu", model=path, probabilities=probabilities)


def tile(*shape: int, seed: int = 0) -> Tile:
    return Tile(image=np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("patched", [False, True])
def test_labels_classes_and_probabilities_fit_together(
    dims: int, patched: bool, tmp_path: Path
) -> None:
    path = model(tmp_path / "m", dims, THREE)
    size = {"patch_size": (1, 16, 16) if dims == 2 else (8, 16, 16)} if patched else {}
    shown = tile(*((1, 33, 41) if dims == 2 else (9, 21, 27)))
    (found,) = load(job(path, dims, True, **size), dims)([shown])
    assert found.labels.shape == shown.image.shape[1:]
    assert found.probabilities is not None and found.probabilities.dtype == np.float32
    assert found.probabilities.shape == (3, *found.labels.shape)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    ids = set(np.unique(found.labels).tolist()) - {0}
    assert ids and ids == set(found.scores) == set(found.classes)
    kind = np.array([0, *(found.classes[i] for i in range(1, max(ids) + 1))])[found.labels]
    likely = found.probabilities[1:].argmax(0) + 1
    inside = found.probabilities[1:].sum(0) > 0.3
    np.testing.assert_array_equal(kind, np.where(inside, likely, 0))


def test_one_class_needs_no_numbers_and_unasked_probabilities_stay_away(tmp_path: Path) -> None:
    path = model(tmp_path / "m", 3)
    (found,) = load(job(path, 3), 3)([tile(8, 16, 16)])
    assert found.labels.any() and not found.classes and found.probabilities is None


def test_a_tile_without_contrast_is_background_among_others(tmp_path: Path) -> None:
    predict = load(job(model(tmp_path / "m", 3), 3, True), 3)
    flat = Tile(image=np.full((1, 8, 16, 16), 2.0, np.float32))
    seen = tile(8, 16, 16)
    first, second, third = predict([seen, flat, tile(8, 16, 16, seed=1)])
    assert not second.labels.any() and second.probabilities is not None
    assert (second.probabilities[0] == 1).all() and not second.probabilities[1:].any()
    np.testing.assert_array_equal(first.labels, predict([seen])[0].labels)
    assert third.labels.any() and third.probabilities is not None
    assert not np.array_equal(first.probabilities, third.probabilities), "one result for two tiles"


def test_a_volume_may_be_one_plane_deep(tmp_path: Path) -> None:
    (found,) = load(job(model(tmp_path / "m", 3), 3), 3)([tile(1, 20, 24)])
    assert found.labels.shape == (1, 20, 24) and found.labels.any()


def test_what_does_not_fit_is_an_error_that_says_so(tmp_path: Path) -> None:
    flat, deep = model(tmp_path / "2d", 2), model(tmp_path / "3d", 3)
    with pytest.raises(DataError, match="single planes"):
        load(job(flat, 2), 2)([tile(4, 16, 16)])
    with pytest.raises(DataError, match="1 channels, not 2"):
        load(job(deep, 3), 3)([Tile(image=np.zeros((2, 4, 16, 16), np.float32))])
    with pytest.raises(WeightsError, match="2 dimensions"):
        load(job(flat, 3), 3)
    with pytest.raises(ConfigError, match="1 cell"):
        load(job(deep, 3, class_id=2), 3)
    with pytest.raises(WeightsError, match="train a model first"):
        load(replace(job(deep, 3), model=None), 3)
    (deep / "vista.json").unlink()
    with pytest.raises(WeightsError, match=r"vista\.json"):
        load(job(deep, 3), 3)


def test_a_description_comes_back_or_says_what_is_wrong(tmp_path: Path) -> None:
    Description(THREE, (2.0, 1.0, 0.5)).save(tmp_path)
    assert Description.load(tmp_path) == Description(THREE, (2.0, 1.0, 0.5))
    (tmp_path / "vista.json").write_text('{"classes": ["background", "cell"]}')
    assert Description.load(tmp_path) == Description()
    for text in (
        "{",
        "[]",
        '{"classes": ["background"]}',
        '{"classes": [1, 2]}',
        '{"classes": ["a", "b"], "spacing": "x"}',
    ):
        (tmp_path / "vista.json").write_text(text)
        with pytest.raises(WeightsError, match=r"vista\.json"):
            Description.load(tmp_path)


def test_windows_cover_every_voxel_whatever_the_shape() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        shape = tuple(int(n) for n in rng.integers(1, 40, 3))
        size = tuple(int(n) for n in rng.integers(8, 20, 3))
        plan = window_plan(shape, size)
        cores, seen = np.zeros(shape, int), np.zeros(shape, int)
        for number in range(len(plan)):
            box, read = window(plan, size, number), plan.read_box(number)
            cores[plan.core_box(number).slices] += 1
            seen[box.slices] += 1
            assert box.shape == tuple(min(n, s) for n, s in zip(shape, size, strict=True))
            for low, start, stop, high in zip(
                box.start, read.start, read.stop, box.stop, strict=True
            ):
                assert 0 <= low <= start < stop <= high
        assert (cores == 1).all() and (seen >= 1).all()


def ramp(image: np.ndarray) -> PixelMaps:
    """A network that looks at each voxel alone; objects of one embedding are bars along z."""
    inside = np.clip(image[0], 0, 1)
    code = np.floor(image[0] * 0 + np.arange(image.shape[-1]) // 100)
    return PixelMaps(
        np.stack([1 - inside, inside]).astype(np.float32),
        inside.astype(np.float32),
        np.stack([code, code]).astype(np.float32),
    )


@pytest.mark.parametrize("aggregation", ["gaussian", "average", "max"])
def test_where_windows_agree_they_equal_the_whole(aggregation: str) -> None:
    image = np.full((1, 20, 40, 50), 0.1, np.float32)
    image[0, :, 4:12, 6:40], image[0, 3:15, 20:36, 5:45] = 0.9, 0.8
    options = Vista3dPredictOptions(patch_size=(8, 16, 16), aggregation=aggregation)
    found = segment_windows(image, ramp, options, (1.0, 1.0, 1.0))
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities[1], image[0], atol=1e-6)
    np.testing.assert_array_equal(found.labels > 0, image[0] > 0.5)
    assert len(np.unique(found.labels)) == 3, "an object across windows is one"
    assert found.scores == {1: pytest.approx(0.9), 2: pytest.approx(0.8)}


@pytest.mark.parametrize("aggregation", ["gaussian", "average", "max"])
def test_aggregation_is_what_its_name_says(aggregation: str) -> None:
    """Windows that each see their own number, along one axis."""

    def look(image: np.ndarray) -> PixelMaps:
        inside = np.full(image.shape[1:], next(values), np.float32)
        return PixelMaps(np.stack([1 - inside, inside]), inside, inside[None])

    image = np.zeros((1, 8, 8, 16), np.float32)
    options = Vista3dPredictOptions(patch_size=(8, 8, 8), aggregation=aggregation, min_size=0)
    # Cores of 4 of which the two at the border share a window with their neighbours.
    plan = window_plan((8, 8, 16), (8, 8, 8))
    boxes = list(dict.fromkeys(window(plan, (8, 8, 8), n) for n in range(len(plan))))
    values = iter(np.linspace(0.1, 0.9, len(boxes)).tolist() + [0.5] * len(plan))
    found = segment_windows(image, look, options, (1.0, 1.0, 1.0))
    assert found.probabilities is not None
    at = 7
    given = np.linspace(0.1, 0.9, len(boxes))
    near = [(v, at - b.start[2]) for v, b in zip(given, boxes, strict=True)
            if b.start[2] <= at < b.stop[2]]  # fmt: skip
    assert len(near) > 1
    if aggregation == "max":
        high, low = max(v for v, _ in near), max(1 - v for v, _ in near)
        expected = high / (high + low)
    else:
        weights = [
            1.0 if aggregation == "average" else np.exp(-0.5 * ((place - 3.5) / 1.0) ** 2)
            for _, place in near
        ]
        expected = np.average([v for v, _ in near], weights=weights)
    assert found.probabilities[1, 0, 0, at] == pytest.approx(expected, abs=1e-5)


def test_calibration_stores_what_its_method_uses(tmp_path: Path) -> None:
    network = Network.load(model(tmp_path / "m", 3))

    class Patches:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            labels = torch.zeros(1, 8, 16, 16, dtype=torch.int64)
            labels[:, :, 2:12, 2:9] = 1
            classes = (labels > 0).long()
            classes[:, :, 14:] = -100
            return {"image": torch.randn(1, 1, 8, 16, 16), "labels": labels, "classes": classes}

    stored = calibrate(network, Patches(), "cpu", Vista3dPredictOptions, (1.0, 1.0, 1.0), 2).stored
    assert {"method", "foreground_threshold", "min_size"} <= set(stored)
    assert not {"patch_size", "aggregation", "class_id"} & set(stored)
    assert Vista3dPredictOptions(**stored).method == stored["method"]


def test_calibration_looks_at_a_bounded_number_of_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of small and large images, in any order."""
    network = Network.load(model(tmp_path / "m", 2))
    monkeypatch.setattr("cellseg_vista.calibrate.MOST_VOXELS", 3000)

    def search(pairs: list[Any], kind: Any, spacing: tuple[float, ...]) -> Any:
        looked.extend(pairs)
        return kind()

    monkeypatch.setattr("cellseg_vista.calibrate.search", search)
    for sides in ([8, 64, 64, 64], [64, 8, 8, 8], [16] * 40):
        looked: list[Any] = []
        patches = [
            {
                "image": torch.randn(1, 1, side, side),
                "labels": torch.full((1, side, side), number + 1),
                "classes": torch.ones(1, side, side, dtype=torch.int64),
            }
            for number, side in enumerate(sides)
        ]
        calibrate(network, patches, "cpu", Vista2dPredictOptions, (1.0, 1.0), 2)
        sizes = [truth.size for _, truth in looked]
        assert len(sizes) == 1 or sum(sizes) <= 3000
        if sides == [16] * 40:
            places = sorted(int(truth.max()) for _, truth in looked)
            assert len(places) == 11 and max(np.diff([*places, 41])) <= 7


def test_half_precision_is_that_of_the_network_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shown, inside = model(tmp_path / "m", 3), tile(9, 21, 27), []
    maps = Network.maps

    def spied(self: Network, image: torch.Tensor) -> Any:
        found = maps(self, image)
        inside.append(found.semantic.dtype)
        return found

    monkeypatch.setattr(Network, "maps", spied)
    (full,) = load(job(path, 3, True), 3)([shown])
    (half,) = load(job(path, 3, True, precision="bf16-mixed"), 3)([shown])
    assert inside == [torch.float32, torch.bfloat16]
    assert half.probabilities is not None and half.probabilities.dtype == np.float32
    assert not np.array_equal(half.probabilities, full.probabilities)
    np.testing.assert_allclose(half.probabilities, full.probabilities, atol=0.02)


def test_voxels_count_as_those_of_the_training(tmp_path: Path) -> None:
    """Whatever size a file gives them, and where it gives none."""
    path = model(tmp_path / "m", 3)
    shown = tile(9, 21, 27)
    long = replace(shown, spacing=(4.0, 1.0, 1.0))

    def labels(*tiles: Tile) -> list[Any]:
        found = load(job(path, 3, method="mutex"), 3)(tiles)
        return [one.labels for one in found]

    even, flat = labels(shown, long)  # a model of before, which does not say
    assert not np.array_equal(even, flat)
    Description(spacing=(4.0, 1.0, 1.0)).save(path)
    for found in labels(shown, long):
        np.testing.assert_array_equal(found, flat)
    Description(spacing=(1.0, 1.0)).save(path)
    with pytest.raises(WeightsError):
        labels(shown)


def test_another_method_than_the_stored_one_takes_none_of_its_thresholds() -> None:
    stored = {"method": "watershed", "seed_threshold": 0.8, "min_size": 9, "flood": "embedding"}
    same = Vista3dPredictOptions.over(stored, {"bandwidth": 0.5})
    assert same == {**stored, "bandwidth": 0.5}
    other = Vista3dPredictOptions.over(stored, {"method": "mutex"})
    assert other == {"method": "mutex", "min_size": 9}
    Vista3dPredictOptions(**other)
