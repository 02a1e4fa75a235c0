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
from cellseg.specs import BaseWeights
from cellseg.torch.weights import seeded
from cellseg_fewshot.encoders import (
    EncoderSettings,
    base_weights,
    describe_encoder,
    open_encoder,
    restore_encoder,
)
from cellseg_fewshot.encoders import sam2 as sam2_module
from cellseg_fewshot.encoders.asked import Asking
from cellseg_fewshot.encoders.sam2 import Sam2Encoder, build, holds_sam2
from cellseg_fewshot.options import FewshotOptions
from cellseg_fewshot.proposals import grid_points
from cellseg_fewshot.refine import refine

pytest.importorskip("sam2")

CPU = torch.device("cpu")
NAME = "sam2.1_hiera_tiny"


def tiny() -> Any:
    """SAM 2 with a square of 128 pixels, 1.4 M random weights and masks that are not empty."""
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.modeling.sam2_base import SAM2Base

    width, memory = 64, 16

    def attention(**more: Any) -> RoPEAttention:
        return RoPEAttention(
            embedding_dim=width, num_heads=1, downsample_rate=1, feat_sizes=(8, 8), **more
        )

    with seeded(0):
        layer = MemoryAttentionLayer(
            activation="relu",
            cross_attention=attention(kv_in_dim=memory, rope_k_repeat=True),
            d_model=width,
            dim_feedforward=64,
            dropout=0.0,
            pos_enc_at_attn=False,
            pos_enc_at_cross_attn_keys=True,
            pos_enc_at_cross_attn_queries=False,
            self_attention=attention(),
        )
        model = SAM2Base(
            image_encoder=ImageEncoder(
                trunk=Hiera(
                    embed_dim=16,
                    num_heads=1,
                    stages=(1, 1, 2, 1),
                    global_att_blocks=(3,),
                    window_spec=(8, 4, 8, 4),
                    window_pos_embed_bkg_spatial_size=(4, 4),
                ),
                neck=FpnNeck(
                    PositionEmbeddingSine(width),
                    d_model=width,
                    backbone_channel_list=[128, 64, 32, 16],
                    fpn_top_down_levels=[2, 3],
                    fpn_interp_model="nearest",
                ),
                scalp=1,
            ),
            memory_attention=MemoryAttention(
                d_model=width, pos_enc_at_input=True, layer=layer, num_layers=1
            ),
            memory_encoder=MemoryEncoder(
                out_dim=memory,
                in_dim=width,
                mask_downsampler=MaskDownSampler(
                    embed_dim=width, kernel_size=3, stride=2, padding=1
                ),
                fuser=Fuser(CXBlock(dim=width), num_layers=1),
                position_encoding=PositionEmbeddingSine(memory),
            ),
            image_size=128,
            directly_add_no_mem_embed=True,
            use_high_res_features_in_sam=True,
            multimask_output_in_sam=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            use_obj_ptrs_in_encoder=True,
            fixed_no_obj_ptr=True,
        )
        torch.nn.init.normal_(model.no_mem_embed)
    return model.eval()


@pytest.fixture
def encoder() -> Sam2Encoder:
    return Sam2Encoder(
        tiny(),
        config=NAME,
        name=NAME,
        published=True,
        asking=Asking(0.0, 0.0, 16),
        dtype=torch.float32,
        device=CPU,
    )


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as SAM 2 publishes its own, of a size that is then taken for the smallest one."""
    monkeypatch.setattr(sam2_module, "_SIZES", {(16, 5): NAME})
    monkeypatch.setattr(sam2_module, "build", lambda name: tiny())
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
        remote: Remote, licence: str, emit: Callable[[Event], None]
    ) -> tuple[Path, BaseWeights]:
        asked.append(remote)
        return checkpoint, BaseWeights(
            name=remote.name, source=remote.url, licence=licence, sha256=digests[-1]
        )

    monkeypatch.setattr(sam2_module, "fetch_weights", fetched)
    encoder = open_encoder(EncoderSettings(name=NAME), CPU)
    assert asked[0].url.endswith("segment_anything_2/092824/sam2.1_hiera_tiny.pt")
    assert base_weights(encoder)[0].licence == "Apache-2.0"
    assert encoder.state() == {}
    again = restore_encoder(describe_encoder(encoder), {}, EncoderSettings(), CPU)
    assert again.name == NAME and len(asked) == 2
    digests.append("cd")
    with pytest.raises(WeightsError, match="not those that the model"):
        restore_encoder(describe_encoder(encoder), {}, EncoderSettings(), CPU)


def test_a_size_that_nobody_published_is_refused(tmp_path: Path) -> None:
    torch.save({"model": tiny().state_dict()}, tmp_path / "mine.pt")
    with pytest.raises(WeightsError, match="5 blocks of width 16"):
        open_encoder(EncoderSettings(checkpoint=tmp_path / "mine.pt"), CPU)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam2_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package sam2") as caught:
        build(NAME)
    assert caught.value.hint is not None
    assert 'SAM2_BUILD_CUDA=0 uv pip install "cellseg-fewshot[sam2]"' in caught.value.hint


@pytest.mark.parametrize(("size", "name"), sorted(sam2_module._SIZES.items()))
def test_each_size_is_as_the_package_describes_it(size: tuple[int, int], name: str) -> None:
    trunk = sam2_module._config(name).model.image_encoder.trunk
    stages = trunk.get("stages", (2, 3, 16, 3))
    assert (trunk.get("embed_dim", 96), sum(stages)) == size


def test_it_is_built_whatever_hydra_is_used_for(tmp_path: Path) -> None:
    """Others' configurations neither matter nor suffer."""
    import sam2  # noqa: F401
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            mine = GlobalHydra.instance().hydra
            model = build(NAME)
            assert GlobalHydra.instance().hydra is mine
    finally:
        GlobalHydra.instance().hydra = before
    tensors = model.state_dict()
    assert holds_sam2(tensors)
    assert sam2_module._config_of(tensors, Path("file")) == NAME


def test_refinement_is_refused(encoder: Sam2Encoder) -> None:
    options = FewshotOptions(encoder=NAME, refine=True)
    with pytest.raises(ConfigError, match=f"--refine does not work with {NAME}"):
        refine(encoder, [], options, 0, lambda event: None, lambda: False)
