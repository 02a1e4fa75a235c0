"""The tracker on a network with random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from cellseg import Tile
from cellseg_cellsam2.parts import Answer
from cellseg_cellsam2.predict_options import CellSam2PredictOptions
from cellseg_cellsam2.tracker import CellTracker
from cellseg_cellsam2.weights import make_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network() -> Any:
    """Random weights say of all pixels the same; this one says which are above the others."""
    model, _ = make_model("nano", 64, 0, None, lambda event: None)
    answer = model.answer

    def contrasting(*given: Any, **named: Any) -> Answer:
        found = answer(*given, **named)
        limits = found.masks.flatten(2).quantile(0.95, 2)[..., None, None]
        return replace(found, masks=1000 * (found.masks - limits))

    model.answer = contrasting
    return model.eval().requires_grad_(False)


_ANYTHING = {"pred_iou": 0.0, "presence_threshold": 0.01, "heat_threshold": 0.0, "min_size": 5}


def _noise(seed: int, shape: tuple[int, int] = (64, 64)) -> Tile:
    rng = np.random.default_rng(seed)
    return Tile(image=rng.random((1, 1, *shape), np.float32))


def test_a_real_network_resumes_exactly(network: Any) -> None:
    options = CellSam2PredictOptions(**_ANYTHING, division_threshold=0.01, box_nms=0.9)
    whole = CellTracker(network, options)
    expected = [whole.step(_noise(seed)) for seed in range(5)]
    first = CellTracker(network, options)
    found = [first.step(_noise(seed)) for seed in range(3)]
    second = CellTracker(network, options, state=first.state())
    found += [second.step(_noise(seed)) for seed in range(3, 5)]
    assert max(len(one.scores) for one in found) > 1
    for right, given in zip(expected, found, strict=True):
        np.testing.assert_array_equal(given.labels, right.labels)
        assert given.parents == right.parents and given.scores == right.scores
    assert second.state().keys() == whole.state().keys()
    for name, array in whole.state().items():
        np.testing.assert_array_equal(second.state()[name], array, err_msg=name)
        assert second.state()[name].dtype == array.dtype, name


def test_chunks_of_a_real_network_change_nothing(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CellSam2PredictOptions(**_ANYTHING, box_nms=0.9)
    found = []
    for chunk in (1, 64):
        monkeypatch.setattr(network, "chunk", chunk)
        tracker = CellTracker(network, options)
        found.append([tracker.step(_noise(seed)) for seed in range(4)])
    assert max(len(one.scores) for one in found[0]) > 1
    for one, other in zip(*found, strict=True):
        different = np.mean(one.labels != other.labels)
        assert different < 0.001, "apart from rounding"
