"""SAM 2 as an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cellseg.download import Remote
from cellseg.errors import ConfigError, DataError, WeightsError
from cellseg.events import Event
from cellseg.specs import BaseWeights, PublishedModel
from cellseg.torch.sam2 import weights as weights_module
from cellseg.torch.sam2.model import build
from cellseg.torch.sam2.weights import holds_sam2
from cellseg.torch.weights import seeded
from cellseg_fewshot.encoders import (
    EncoderSettings,
    base_weights,
    describe_encoder,
    open_encoder,
    restore_encoder,
)
from cellseg_fewshot.encoders.asked import Asking
from cellseg_fewshot.encoders.sam2 import Sam2Encoder
from cellseg_fewshot.options import FewshotOptions
from cellseg_fewshot.proposals import grid_points
from cellseg_fewshot.refine import refine

pytest.importorskip("sam2")

CPU = torch.device("cpu")
NAME = "sam2.1_hiera_tiny"


def tiny() -> Any:
    """SAM 2 with a square of 128 pixels, random weights and masks that are not empty."""
    with seeded(0):
        model: Any = build("nano")
        torch.nn.init.normal_(model.no_mem_embed)
    return model.eval()


@pytest.fixture
def encoder() -> Sam2Encoder:
    return Sam2Encoder(
        tiny(),
        config="nano",
        name=NAME,
        published=True,
        asking=Asking(0.0, 0.0, 16),
        dtype=torch.float32,
        device=CPU,
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file as SAM 2 publishes its own."""
    model = tiny()
    for parameter in model.parameters():
        parameter.data.add_(0.01)
    path = tmp_path / "finetuned.pt"
    torch.save({"model": model.state_dict()}, path)
    return path


def scene(size: tuple[int, int] = (128, 128), channels: int = 3) -> NDArray[np.float32]:
    y, x = np.indices(size)
    plane = np.random.default_rng(0).uniform(0.1, 0.3, (channels, *size))
    plane[:, (y - 40) ** 2 + (x - 70) ** 2 < 200] += 0.5
    return plane.astype(np.float32)


def test_points_are_answered_as_sam_2_answers_them(encoder: Sam2Encoder) -> None:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    plane = scene()
    predictor = SAM2ImagePredictor(encoder.model)
    predictor._bb_feat_sizes = [(32, 32), (16, 16), (8, 8)]
    predictor.set_image(plane.transpose(1, 2, 0))
    masks, scores, _ = predictor.predict(
        np.array([[70.0, 40.0]]), np.array([1]), multimask_output=True
    )
    (view,) = encoder.view([plane])
    assert torch.allclose(view.features.values, predictor.get_image_embedding()[0], atol=1e-4)
    found = view.answer(np.array([[40.5, 70.5]], np.float32))
    wanted = [(m > 0, s) for m, s in zip(masks, scores, strict=True) if m.any()]
    assert len(found) == len(wanted) > 0
    for one, (mask, score) in zip(found, wanted, strict=True):
        pixels = np.zeros(mask.shape, bool)
        y, x = one.corner
        pixels[y : y + one.mask.shape[0], x : x + one.mask.shape[1]] = one.mask
        assert np.count_nonzero(pixels != mask) <= 0.002 * mask.size
        assert one.score == pytest.approx(float(score), abs=1e-4)


def test_planes_fill_the_square_whatever_their_shape(encoder: Sam2Encoder) -> None:
    views = encoder.view([scene((60, 90), 1), scene((60, 90), 1)])
    assert encoder.calls == 2
    for view in views:
        assert view.size == (60, 90)
        assert view.features.values.shape == (64, 8, 8)
        assert view.features.step == (7.5, 11.25)
        found = view.answer(grid_points(view.size, 3))
        assert found
        for one in found:
            assert all(
                c + n <= m for c, n, m in zip(one.corner, one.mask.shape, (60, 90), strict=True)
            )
        assert view.describe(found).shape == (len(found), 64)
    assert torch.equal(views[0].features.values, views[1].features.values)


def test_each_image_of_a_batch_gets_its_own_answers(encoder: Sam2Encoder) -> None:
    planes = [scene(), scene()[:, ::-1].copy()]
    points = np.array([[40.5, 70.5]], np.float32)
    for together, plane in zip(encoder.view(planes), planes, strict=True):
        (alone,) = encoder.view([plane])
        (one, other) = (
            [(m.corner, m.mask.shape) for m in view.answer(points)] for view in (together, alone)
        )
        assert one == other


def test_crops_are_encoded_in_one_batch(encoder: Sam2Encoder) -> None:
    found = encoder.encode_crops([scene()[:, :64, :64], scene()[:, :20, :20]])
    assert [one.step for one in found] == [(8.0, 8.0), (2.5, 2.5)]
    assert encoder.calls == 2


def test_other_channels_are_refused(encoder: Sam2Encoder) -> None:
    with pytest.raises(DataError, match="1 or 3 channels, not 2"):
        encoder.view([scene(channels=2)])


def test_a_file_says_that_it_holds_sam_2(checkpoint: Path, tiny_sam_checkpoint: Path) -> None:
    assert holds_sam2(torch.load(checkpoint, weights_only=True))
    assert not holds_sam2(torch.load(tiny_sam_checkpoint, weights_only=True))
    encoder = open_encoder(EncoderSettings(checkpoint=checkpoint), CPU)
    assert isinstance(encoder, Sam2Encoder) and encoder.name == "finetuned.pt"
    assert [base.name for base in base_weights(encoder)] == ["finetuned.pt"]
    assert (encoder.asking.pred_iou_thresh, encoder.asking.stability_score_thresh) == (0.8, 0.95)
    for name in ("sam_vit_b_01ec64", "sam2.1_hiera_large"):
        with pytest.raises(ConfigError, match=f"not --encoder {name}"):
            open_encoder(EncoderSettings(checkpoint=checkpoint, name=name), CPU)  # type: ignore[arg-type]


def test_weights_of_a_file_are_kept_by_the_model(checkpoint: Path) -> None:
    encoder = open_encoder(EncoderSettings(checkpoint=checkpoint), CPU)
    state = dict(encoder.state())
    again = restore_encoder(describe_encoder(encoder), state, EncoderSettings(), CPU)
    one, other = (each.view([scene()])[0].features.values for each in (encoder, again))
    assert again.name == encoder.name and torch.equal(one, other)
    assert base_weights(again) == base_weights(encoder)
    del state["no_mem_embed"]
    with pytest.raises(WeightsError, match=r"does not fit SAM 2\.1"):
        restore_encoder(describe_encoder(encoder), state, EncoderSettings(), CPU)


def test_published_weights_are_fetched_and_not_kept(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Remote] = []
    digests = ["ab"]

    def fetched(
        model: PublishedModel, remote: Remote, emit: Callable[[Event], None]
    ) -> tuple[Path, BaseWeights]:
        asked.append(remote)
        return checkpoint, BaseWeights(
            name=remote.name, source=remote.url, licence=model.licence, sha256=digests[-1]
        )

    monkeypatch.setattr(weights_module, "fetch_weights", fetched)
    monkeypatch.setattr(weights_module, "build", lambda name, side: tiny())
    encoder = open_encoder(EncoderSettings(name=NAME), CPU)
    assert asked[0].url.endswith("segment_anything_2/092824/sam2.1_hiera_tiny.pt")
    assert base_weights(encoder)[0].licence == "Apache-2.0"
    assert encoder.state() == {}
    again = restore_encoder(describe_encoder(encoder), {}, EncoderSettings(), CPU)
    assert again.name == NAME and len(asked) == 2
    digests.append("cd")
    with pytest.raises(WeightsError, match="not those that the model"):
        restore_encoder(describe_encoder(encoder), {}, EncoderSettings(), CPU)


def test_refinement_is_refused(encoder: Sam2Encoder) -> None:
    options = FewshotOptions(encoder=NAME, refine=True)
    with pytest.raises(ConfigError, match=f"--refine does not work with {NAME}"):
        refine(encoder, [], options, 0, lambda event: None, lambda: False)
