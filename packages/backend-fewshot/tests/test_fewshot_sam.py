"""Segment Anything as an encoder, and which encoder is opened."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cellseg.errors import ConfigError, DataError, DeviceError, WeightsError
from cellseg.torch.masks import FoundMask
from cellseg.torch.sam.published import PUBLISHED
from cellseg.torch.sam.weights import Loaded, load_checkpoint
from cellseg_fewshot.encoder_names import ENCODERS, registered
from cellseg_fewshot.encoders import (
    EncoderSettings,
    base_weights,
    describe_encoder,
    open_encoder,
    restore_encoder,
)
from cellseg_fewshot.encoders import sam as sam_module
from cellseg_fewshot.encoders.sam import SamEncoder
from cellseg_fewshot.proposals import grid_points
from cellseg_fewshot.views import View

CPU = torch.device("cpu")


def opened(path: Path, **settings: Any) -> SamEncoder:
    encoder = open_encoder(EncoderSettings(checkpoint=path, **settings), CPU)
    assert isinstance(encoder, SamEncoder)
    return encoder


def scene(size: tuple[int, int] = (90, 120), channels: int = 1) -> NDArray[np.float32]:
    """Two discs ``(c, y, x)`` on noise."""
    y, x = np.indices(size)
    plane = np.random.default_rng(0).normal(0.2, 0.02, (channels, *size))
    for cy, cx in ((30, 30), (60, 85)):
        plane[:, (y - cy) ** 2 + (x - cx) ** 2 < 100] += 0.5
    return plane.astype(np.float32)


def square(y: int, x: int, side: int) -> FoundMask:
    return FoundMask(np.ones((side, side), bool), (y, x), 1.0)


def test_each_plane_is_encoded_once_whatever_is_asked(tiny_sam_checkpoint: Path) -> None:
    encoder = opened(tiny_sam_checkpoint)
    views = encoder.view([scene(), scene() * 0.5])
    assert encoder.calls == 2
    for view in views:
        found = view.answer(grid_points(view.size, 8))
        view.describe(found)
    assert encoder.calls == 2
    encoder.encode_crops([scene()[:, :50, :50], scene()[:, :20, :20], scene()[:, :9, :9]])
    assert encoder.calls == 5
    assert encoder.view([]) == [] and encoder.encode_crops([]) == []


def test_features_are_the_embedding_without_what_shows_padding(tiny_sam_checkpoint: Path) -> None:
    encoder = opened(tiny_sam_checkpoint)
    plane = scene((60, 128))
    (view,) = encoder.view([plane])
    model = encoder.model
    frame = model.frame((60, 128))
    with torch.no_grad():
        whole = model.encode(model.prepare(torch.from_numpy(plane)[None], frame))[0]
    assert view.features.values.shape == (32, 4, 8)  # 60 of 128 rows are 3.75 of 8 cells
    assert torch.equal(view.features.values, whole[:, :4])
    assert view.features.step == (16.0, 16.0)
    assert view.size == (60, 128)


def test_cells_cover_the_plane_at_any_size(tiny_sam_checkpoint: Path) -> None:
    for size in ((300, 211), (37, 90), (128, 128)):
        (view,) = opened(tiny_sam_checkpoint).view([scene(size)])
        for cells, step, length in zip(
            view.features.values.shape[1:], view.features.step, size, strict=True
        ):
            assert (cells - 1) * step < length <= cells * step + 1e-6


def test_masks_are_described_by_the_mean_of_their_cells(tiny_sam_checkpoint: Path) -> None:
    (view,) = opened(tiny_sam_checkpoint).view([scene((128, 128))])
    values = view.features.values
    both = replace(square(16, 32, 16), mask=np.ones((16, 32), bool))
    found = view.describe([square(16, 32, 16), both, square(20, 36, 2)])
    assert found.shape == (3, 32) and found.dtype == torch.float32
    assert torch.allclose(found[0], values[:, 1, 2], atol=1e-5)
    assert torch.allclose(found[1], values[:, 1, 2:4].mean(1), atol=1e-5)
    assert torch.allclose(found[2], values[:, 1, 2], atol=1e-5)


def test_crops_fill_the_square(tiny_sam_checkpoint: Path) -> None:
    encoder = opened(tiny_sam_checkpoint)
    crops = [scene()[:, 10:60, 10:60], scene()[:, :33, :33]]
    together = encoder.encode_crops(crops)
    for crop, found in zip(crops, together, strict=True):
        (view,) = encoder.view([crop])
        assert found.values.shape == (32, 8, 8)
        assert found.step == (crop.shape[1] / 8,) * 2
        assert torch.allclose(found.values, view.features.values, atol=1e-5)


def answers(view: View, points: NDArray[np.float32]) -> dict[tuple[Any, ...], float]:
    found = view.answer(points)
    by_pixels = {(m.corner, m.mask.shape, m.mask.tobytes()): m.score for m in found}
    assert len(by_pixels) == len(found), "no exact repetitions"
    return by_pixels


def test_points_are_answered_as_segment_anything_answers_them(
    tiny_sam: Any, tiny_sam_checkpoint: Path
) -> None:
    plane = scene((64, 128))
    encoder = opened(tiny_sam_checkpoint, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    (view,) = encoder.view([plane])
    point = np.array([[20.0, 71.5]], np.float32)
    found = view.answer(point)
    from segment_anything import SamPredictor

    predictor = SamPredictor(tiny_sam)
    image = encoder.model.prepare(torch.from_numpy(plane)[None], encoder.frame((64, 128)))
    with torch.no_grad():
        predictor.features = tiny_sam.image_encoder(image)
        predictor.is_image_set, predictor.original_size = True, (64, 128)
        predictor.input_size = (64, 128)
        masks, scores, _ = predictor.predict_torch(
            torch.tensor([[[71.0, 19.5]]]), torch.ones(1, 1), multimask_output=True
        )
    assert 1 <= len(found) <= 3
    wanted = [
        (mask.numpy(), float(score.clamp(0, 1)))
        for mask, score in zip(masks[0], scores[0], strict=True)
        if mask.any()
    ]
    assert len(found) == len(wanted)
    for one, (mask, score) in zip(found, wanted, strict=True):
        pixels = np.zeros((64, 128), bool)
        y, x = one.corner
        pixels[y : y + one.mask.shape[0], x : x + one.mask.shape[1]] = one.mask
        assert np.count_nonzero(pixels != mask) <= 0.002 * mask.size
        assert one.score == pytest.approx(score, abs=1e-4)


def test_repetitions_are_left_out(tiny_sam_checkpoint: Path) -> None:
    encoder = opened(tiny_sam_checkpoint, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    (view,) = encoder.view([scene()])
    points = grid_points(view.size, 3)
    once, twice = answers(view, points), answers(view, np.concatenate([points, points]))
    assert list(once) == list(twice)
    assert view.answer(np.zeros((0, 2), np.float32)) == []


def test_thresholds_leave_masks_out(tiny_sam_checkpoint: Path) -> None:
    points = grid_points((90, 120), 6)

    def count(**settings: float) -> int:
        (view,) = opened(tiny_sam_checkpoint, **settings).view([scene()])
        return len(answers(view, points))

    everything = count(pred_iou_thresh=0.0, stability_score_thresh=0.0)
    assert 0 < count() < everything
    assert count(stability_score_thresh=0.0) == count(
        pred_iou_thresh=0.88, stability_score_thresh=0.0
    )
    assert count(pred_iou_thresh=0.0, stability_score_thresh=1.0) < everything
    assert count(pred_iou_thresh=1.0, stability_score_thresh=0.0) < everything


def test_points_at_once_change_nothing(tiny_sam_checkpoint: Path) -> None:
    points = grid_points((90, 120), 4)
    one, many = (
        answers(opened(tiny_sam_checkpoint, points_per_batch=n).view([scene()])[0], points)
        for n in (1, 64)
    )
    assert abs(len(one) - len(many)) <= 1
    assert len(set(one) & set(many)) >= 0.8 * len(one)


def test_generalists_are_asked_with_the_thresholds_of_their_authors() -> None:
    thresholds = sam_module._thresholds
    assert thresholds("vit_b_lm") == (0.65, 0.7)
    assert thresholds("sam_vit_h_4b8939") == thresholds(None) == (0.88, 0.95)


def test_images_of_other_channels_are_refused(tiny_sam_checkpoint: Path) -> None:
    encoder = opened(tiny_sam_checkpoint)
    assert encoder.view([scene(channels=3)])
    for see in (encoder.view, encoder.encode_crops):
        with pytest.raises(DataError, match="1 or 3 channels, not 2") as caught:
            see([scene(channels=2)])
        assert "--channels" in str(caught.value.hint)


def test_half_precision_is_close_and_needs_a_device_that_has_it(
    tiny_sam_checkpoint: Path,
) -> None:
    views = [
        opened(tiny_sam_checkpoint, precision=p).view([scene()])[0] for p in ("bf16", "32-true")
    ]
    half, full = (view.features.values for view in views)
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert torch.nn.functional.cosine_similarity(half, full, 0).min() > 0.95
    with pytest.raises(DeviceError, match="--precision fp16"):
        opened(tiny_sam_checkpoint, precision="fp16")


def test_a_file_is_kept_by_the_model_whole(tiny_sam_checkpoint: Path) -> None:
    encoder = opened(tiny_sam_checkpoint)
    assert encoder.name == "tiny_sam.pth"
    assert [base.name for base in base_weights(encoder)] == ["tiny_sam.pth"]
    state = {name: tensor.clone() for name, tensor in encoder.state().items()}
    again = restore_encoder(describe_encoder(encoder), state, EncoderSettings(), CPU)
    assert again.name == encoder.name and base_weights(again) == base_weights(encoder)
    before, after = (e.view([scene()])[0].features.values for e in (encoder, again))
    assert torch.equal(before, after)
    state.pop("sam.mask_decoder.iou_token.weight")
    with pytest.raises(WeightsError, match="does not fit its description"):
        restore_encoder(describe_encoder(encoder), state, EncoderSettings(), CPU)


def test_published_weights_are_not_kept(
    tiny_sam_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def published(name: str, emit: Any) -> Loaded:
        asked.append(name)
        return replace(load_checkpoint(tiny_sam_checkpoint), name=name)

    monkeypatch.setattr(sam_module, "load_published", published)
    encoder = open_encoder(EncoderSettings(name="sam_vit_h_4b8939"), CPU)
    assert encoder.name == "sam_vit_h_4b8939" and encoder.state() == {}
    again = restore_encoder(
        describe_encoder(encoder), {}, EncoderSettings(pred_iou_thresh=0.5), CPU
    )
    assert asked == ["vit_h", "vit_h"]
    assert again.name == encoder.name
    assert isinstance(again, SamEncoder) and again.asking.pred_iou_thresh == 0.5


def test_every_encoder_of_segment_anything_is_published() -> None:
    names = [n for n in ENCODERS if n != "filters" and not n.startswith("sam2")]
    assert {registered(name) for name in names} <= set(PUBLISHED)


def test_a_file_and_a_name_must_agree(tiny_sam_checkpoint: Path) -> None:
    for name, held in (("sam_vit_h_4b8939", "tiny"), ("sam2.1_hiera_tiny", "not --encoder")):
        with pytest.raises(ConfigError, match=held) as caught:
            opened(tiny_sam_checkpoint, name=name)
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match="does nothing with --encoder filters"):
        opened(tiny_sam_checkpoint, name="filters")
    with pytest.raises(ConfigError, match="is a folder"):
        opened(tiny_sam_checkpoint.parent)
    with pytest.raises(WeightsError, match=r"nothing\.pth is missing"):
        opened(tiny_sam_checkpoint.with_name("nothing.pth"))


def test_a_file_of_a_generalist_gets_the_thresholds_of_the_name(
    tiny_sam_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sam_module, "load_checkpoint", lambda path: replace(load_checkpoint(path), name="vit_b")
    )
    encoder = opened(tiny_sam_checkpoint, name="vit_b_lm")
    assert encoder.name == "vit_b_lm"
    assert (encoder.asking.pred_iou_thresh, encoder.asking.stability_score_thresh) == (0.65, 0.7)
    again = restore_encoder(describe_encoder(encoder), encoder.state(), EncoderSettings(), CPU)
    assert isinstance(again, SamEncoder) and again.asking == encoder.asking


def test_a_file_that_is_called_like_a_generalist_is_asked_alike_ever_after(
    tiny_sam_checkpoint: Path, tmp_path: Path
) -> None:
    """As micro-SAM names the files that it downloads."""
    path = tmp_path / "vit_b_lm"
    path.write_bytes(tiny_sam_checkpoint.read_bytes())
    encoder = opened(path)
    again = restore_encoder(describe_encoder(encoder), encoder.state(), EncoderSettings(), CPU)
    assert isinstance(again, SamEncoder) and again.asking == encoder.asking


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"precision": "bf16"}, "--precision"),
        ({"pred_iou_thresh": 0.5}, "--pred-iou-thresh"),
        ({"stability_score_thresh": 0.5}, "--stability-score-thresh"),
        ({"points_per_batch": 8}, "--points-per-batch"),
    ],
)
def test_options_that_do_nothing_without_weights_are_refused(
    settings: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ConfigError, match=f"{flag}: nothing to do with the encoder filters"):
        open_encoder(EncoderSettings(**settings), CPU)


def test_a_model_brings_its_encoder(tiny_sam_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="a model brings its encoder"):
        restore_encoder({"kind": "filters"}, {}, EncoderSettings(name="filters"), CPU)
    with pytest.raises(WeightsError, match="kind 'other'"):
        restore_encoder({"kind": "other"}, {}, EncoderSettings(), CPU)


def test_the_settings_can_be_imported_without_torch() -> None:
    code = "import sys, cellseg_fewshot.encoders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_small_planes_are_seen_at_the_scale_of_tiles(tiny_sam_checkpoint: Path) -> None:
    encoder = opened(tiny_sam_checkpoint)
    (alone,) = encoder.view([scene((64, 64))])
    encoder.expect(128)
    (small,), (tile,) = (encoder.view([scene((n, n))]) for n in (64, 128))
    assert small.features.step == tile.features.step
    assert small.features.step[0] == 2 * alone.features.step[0]
    (crop,) = encoder.encode_crops([scene((64, 64))])
    assert crop.step == alone.features.step  # crops always fill the square
    again = restore_encoder(describe_encoder(encoder), encoder.state(), EncoderSettings(), CPU)
    (same,) = again.view([scene((64, 64))])
    assert same.features.step == small.features.step
