"""Tiles to cells: overlaps, batches, shapes, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cellsam_drawn import drawn_encoder
from sam_fakes import draw_weights, small_architecture

from cellseg import PredictJob, Tile
from cellseg.errors import ConfigError, DataError, DeviceError, WeightsError
from cellseg.torch.weights import seeded
from cellseg_cellsam.description import Description
from cellseg_cellsam.encoding import Encoder
from cellseg_cellsam.model import CellSam
from cellseg_cellsam.predict import load, segment
from cellseg_cellsam.predict_options import CellSamPredictOptions
from cellseg_cellsam.sizes import DetectorSizes
from cellseg_cellsam.stored import save_model

LEFT, RIGHT = (8, 8, 40, 40), (28, 8, 60, 40)


def tile(image: np.ndarray) -> Tile:
    return Tile(image=image[None, None].astype(np.float32))


def noise(y: int, x: int, seed: int = 0) -> Tile:
    return tile(np.random.default_rng(seed).random((y, x)))


def rectangles(y: int, x: int, *places: tuple[float, tuple[int, int, int, int]]) -> np.ndarray:
    image = np.zeros((y, x), np.float32)
    for value, (x0, y0, x1, y1) in places:
        image[y0:y1, x0:x1] = value
    return image


def options(**values: Any) -> CellSamPredictOptions:
    return CellSamPredictOptions(**values)


def ends(mask: np.ndarray) -> tuple[int, int, int, int]:
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def make_model(seed: int = 0) -> CellSam:
    """Random weights that find and segment something."""
    with seeded(seed):
        model = CellSam(small_architecture(), DetectorSizes.named("tiny")).eval()
        for layer in model.detector.decoder:
            torch.nn.init.normal_(layer.score.weight, std=0.5)
            layer.score.bias.data.zero_()
            torch.nn.init.normal_(layer.box[-1].weight, std=0.2)
    draw_weights(model.sam, seed + 1)
    return model


def stored(path: Path, **values: Any) -> Path:
    model = make_model()
    described = Description(
        model_type="tiny",
        architecture=model.architecture.to_dict(),
        detector=model.sizes.to_dict(),
        **{"boxes_trained": True, "masks_trained": True, **values},
    )
    path.mkdir()
    save_model(model, described, path)
    return path


def job(path: Path | None, device: str = "cpu", **values: Any) -> PredictJob[Any]:
    return PredictJob(options=options(**values), device=device, model=path)


@pytest.mark.parametrize("scores", [(0.9, 0.6), (0.6, 0.9)])
@pytest.mark.parametrize("turned", [False, True])
def test_the_higher_score_keeps_the_overlap(scores: tuple[float, float], turned: bool) -> None:
    encoder = drawn_encoder()
    found = list(zip(scores, (LEFT, RIGHT), strict=True))
    encoder.model.found = found[::-1] if turned else found
    (result,) = segment(encoder, [noise(64, 64)], options())
    labels = result.labels[0]
    assert result.labels.dtype == np.uint32 and list(result.scores) == [1, 2]
    assert result.scores[1] == pytest.approx(0.9) and result.scores[2] == pytest.approx(0.6)
    left, right = labels[24, 12], labels[24, 56]
    assert {int(left), int(right)} == {1, 2} and left == (1 if scores[0] == 0.9 else 2)
    assert (labels[12:36, 32:36] == 1).all(), "the overlap"


def test_the_box_is_the_score_whatever_the_model_thinks_of_its_mask() -> None:
    encoder = drawn_encoder()
    encoder.model.found = [(0.9, LEFT)]
    encoder.model.iou = -0.1
    assert segment(encoder, [noise(64, 64)], options())[0].scores == {1: pytest.approx(0.9)}
    assert not segment(encoder, [noise(64, 64)], options(iou_threshold=0.1))[0].scores
    encoder.model.iou = 0.4
    assert segment(encoder, [noise(64, 64)], options(iou_threshold=0.4))[0].scores
    assert not segment(encoder, [noise(64, 64)], options(iou_threshold=0.41))[0].scores


def test_masks_that_are_nearly_the_same_are_one() -> None:
    encoder = drawn_encoder()
    encoder.model.found = [(0.6, (8, 8, 40, 40)), (0.9, (8, 8, 40, 32))]
    assert len(segment(encoder, [noise(64, 64)], options(box_nms=1.0))[0].scores) == 1
    loose = {"mask_nms": 1.0, "min_size": 0}
    both = segment(encoder, [noise(64, 64)], options(box_nms=1.0, max_covered=1.0, **loose))[0]
    assert len(both.scores) == 2
    (rim,) = segment(encoder, [noise(64, 64)], options(box_nms=1.0, max_covered=0.7, **loose))
    assert rim.scores == {1: pytest.approx(0.9)}  # four fifths of the other mask are covered
    few = segment(encoder, [noise(64, 64)], options(box_nms=0.6, mask_nms=1.0, min_size=0))[0]
    assert few.scores == {1: pytest.approx(0.9)}


def test_an_object_is_one_piece_without_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = drawn_encoder()
    encoder.model.found = [(0.9, (0, 0, 64, 64))]
    picture = torch.full((1, 1, 16, 16), -8.0)
    picture[..., 2:9, 2:9] = 8
    picture[..., 5, 5] = -8
    picture[..., 12:14, 12:14] = 8
    monkeypatch.setattr(
        encoder.model, "answer", lambda *_, **__: (picture, torch.ones(1, 1)), raising=False
    )
    (whole,) = segment(encoder, [noise(64, 64)], options())
    (open_,) = segment(encoder, [noise(64, 64)], options(keep_holes=True))
    assert whole.labels[0, 22, 22] == 1 and open_.labels[0, 22, 22] == 0
    assert not whole.labels[0, 44:].any() and whole.scores == {1: pytest.approx(0.9)}
    large = options(min_size=int((whole.labels > 0).sum()) + 1)
    assert not segment(encoder, [noise(64, 64)], large)[0].labels.any()


def test_what_has_no_cells_is_empty_and_without_contrast_not_looked_at() -> None:
    encoder = drawn_encoder()
    encoder.model.found = []
    blank = tile(np.full((48, 64), 0.5))
    results = segment(encoder, [noise(48, 64), blank], options())
    assert encoder.model.encoded == [1] and encoder.model.answered == []
    for found in results:
        assert found.labels.shape == (1, 48, 64) and found.labels.dtype == np.uint32
        assert not found.labels.any() and found.scores == {}
    assert segment(encoder, [], options()) == []


def test_every_image_of_a_batch_is_decided_by_itself() -> None:
    encoder = drawn_encoder()
    images = [
        rectangles(64, 64, (0.3, LEFT)),
        rectangles(64, 64, (0.9, (4, 4, 20, 20)), (0.6, (40, 40, 60, 60))),
        rectangles(64, 64, (0.7, (30, 4, 60, 20))),
    ]
    results = segment(encoder, [tile(image) for image in images], options())
    assert encoder.model.encoded == [3]
    assert [len(found.scores) for found in results] == [0, 2, 1]
    assert results[1].scores == {1: pytest.approx(0.9, abs=0.01), 2: pytest.approx(0.6, abs=0.01)}


@pytest.mark.parametrize("batch", [None, 1, 5])
def test_a_batch_equals_its_tiles(tmp_path: Path, batch: int | None) -> None:
    values = {"box_threshold": 0.3, "min_size": 1, "mask_nms": 0.9, "boxes_per_batch": batch}
    predict = load(job(stored(tmp_path / "m"), **values))
    tiles = [noise(48, 64, seed) for seed in range(3)]
    together = predict(tiles)
    for one, found in zip(tiles, together, strict=True):
        (alone,) = predict([one])
        assert (alone.labels != found.labels).mean() < 0.002
        np.testing.assert_allclose([*alone.scores.values()], [*found.scores.values()], atol=1e-4)
    assert any(found.scores for found in together)
    assert not np.array_equal(together[0].labels, together[1].labels)


@pytest.mark.parametrize("field", [0, 128])
@pytest.mark.parametrize("size", [(96, 128), (128, 96), (50, 70), (128, 128)])
def test_a_tile_that_is_not_square_stays_aligned(size: tuple[int, int], field: int) -> None:
    encoder = drawn_encoder(field=field)
    y, x = size
    corners = [(0, 0, 20, 24), (x - 24, 0, x, 20), (0, y - 20, 20, y), (x - 20, y - 20, x, y)]
    image = rectangles(y, x, *((0.95 - 0.1 * i, box) for i, box in enumerate(corners)))
    (found,) = segment(encoder, [tile(image)], options(box_threshold=0.3))
    assert found.labels.shape == (1, y, x)
    for box in corners:
        x0, y0, x1, y1 = box
        label = found.labels[0, (y0 + y1) // 2, (x0 + x1) // 2]
        assert label > 0
        np.testing.assert_allclose(ends(found.labels[0] == label), box, atol=4)
    assert len(found.scores) == 4


def test_a_model_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained models only") as caught:
        load(job(None))
    assert "cellseg train" in (caught.value.hint or "") and "--model" in (caught.value.hint or "")
    with pytest.raises(WeightsError, match=r"cellsam\.json"):
        load(job(tmp_path))


@pytest.mark.parametrize(
    ("untrained", "what"), [("boxes_trained", "find boxes"), ("masks_trained", "segment boxes")]
)
def test_random_parts_are_not_asked(tmp_path: Path, untrained: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load(job(stored(tmp_path / "m", **{untrained: False})))


def test_what_the_device_or_the_network_cannot_do_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "m")
    with pytest.raises(DeviceError, match="fp16"):
        load(job(path, precision="fp16"))
    predict = load(job(path))
    two = Tile(image=np.random.default_rng(0).random((2, 1, 32, 32), np.float32))
    with pytest.raises(DataError, match="1 or 3 channels, not 2"):
        predict([two])
    deep = Tile(image=np.random.default_rng(0).random((1, 2, 32, 32), np.float32))
    with pytest.raises(DataError, match="single planes"):
        predict([deep])


def test_half_precision_finds_about_the_same(tmp_path: Path) -> None:
    path = stored(tmp_path / "m")
    values = {"box_threshold": 0.3, "min_size": 1, "mask_nms": 0.9}
    exact, rough = (
        load(job(path, precision=precision, **values))([noise(64, 64)])[0]
        for precision in ("32-true", "bf16")
    )
    assert ((exact.labels > 0) == (rough.labels > 0)).mean() > 0.9


def test_a_small_tile_is_seen_as_large_as_in_training() -> None:
    encoder = Encoder.of(make_model(), 128, options())
    assert encoder.frame(noise(32, 64)).factor == (0.5, 0.5)
    assert encoder.trunk([noise(32, 64)] * 2).shape == (2, 32, 4, 4)
