"""Segment Anything as one module, against segment_anything's."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from sam_fakes import small_sam  # noqa: E402

from cellseg.errors import ConfigError, PluginError, WeightsError  # noqa: E402
from cellseg.torch.sam.architecture import Architecture  # noqa: E402
from cellseg.torch.sam.guard import check_segment_anything  # noqa: E402
from cellseg.torch.sam.model import SegmentAnything  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> SegmentAnything:
    torch.manual_seed(0)
    made = small_sam()
    for name, parameter in made.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(parameter)
    return made


@pytest.fixture
def theirs(model: SegmentAnything) -> Any:
    """segment_anything's model with the same weights, and its own attention."""
    from segment_anything.modeling import ImageEncoderViT
    from torch import nn

    a = model.architecture
    other = SegmentAnything(a)
    other.sam.image_encoder = ImageEncoderViT(
        img_size=a.side,
        patch_size=a.patch,
        embed_dim=a.embed_dim,
        depth=a.depth,
        num_heads=a.heads,
        mlp_ratio=a.mlp_ratio,
        out_chans=a.out_channels,
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        use_rel_pos=True,
        window_size=a.window,
        global_attn_indexes=a.global_attention,
    )
    other.load_state_dict(model.state_dict())
    return other.sam.eval()


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_names_are_of_the_published_sizes(name: str) -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        published = sam_model_registry[name]()
    found = Architecture.of_state(published.state_dict(), None)
    assert found == replace(Architecture.named(name), unetr=None)
    assert [b.window_size == 0 for b in published.image_encoder.blocks] == [
        i in found.global_attention for i in range(found.depth)
    ]


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_sizes_are_read_off_the_weights(name: str) -> None:
    architecture = replace(Architecture.named(name), unetr=None)
    with torch.device("meta"):
        model = SegmentAnything(architecture)
    found = Architecture.of_state(model.sam.state_dict(), None)
    assert found == architecture and found.closest == name
    assert Architecture.of(json.loads(json.dumps(found.to_dict()))) == found


def test_weights_of_something_else_are_refused(model: SegmentAnything) -> None:
    with pytest.raises(WeightsError, match="no weights of Segment Anything"):
        Architecture.of_state({"conv.weight": torch.zeros(1)}, None)
    with pytest.raises(WeightsError, match="no decoder_state"):
        Architecture.of_state(model.sam.state_dict(), {"conv.weight": torch.zeros(1)})
    state = {**model.sam.state_dict(), "mask_decoder.mask_tokens.weight": torch.zeros(2, 32)}
    with pytest.raises(WeightsError, match="gives 1 masks"):
        Architecture.of_state(state, None)


def test_a_model_has_the_name_of_the_one_that_it_resembles() -> None:
    for name in ("vit_b", "vit_l", "vit_h", "vit_t", "tiny", "small"):
        assert replace(Architecture.named(name), unetr=None).closest == name
    assert Architecture.named("vit_l_lm").closest == "vit_l"
    assert replace(Architecture.named("vit_l"), depth=3).closest == "vit_b"


def test_images_are_prepared_as_segment_anything_does(model: SegmentAnything, theirs: Any) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    image = torch.rand(2, 3, 40, 90)
    expected = theirs.preprocess(ResizeLongestSide(64).apply_image_torch(image * 255))
    frame = model.frame((40, 90))
    torch.testing.assert_close(model.prepare(image, frame), expected)
    grey = image[:, :1]
    torch.testing.assert_close(
        model.prepare(grey, frame), model.prepare(grey.expand(-1, 3, -1, -1), frame)
    )
    wild = torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 40, 90)
    torch.testing.assert_close(model.prepare(wild, frame), model.prepare(wild.clamp(0, 1), frame))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        model.prepare(torch.rand(1, 2, 40, 90), frame)


def test_images_are_encoded_as_segment_anything_does(model: SegmentAnything, theirs: Any) -> None:
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.image_encoder(x)
        torch.testing.assert_close(model.encode(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.sam.image_encoder(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("multimask", [True, False])
def test_prompts_are_answered_as_segment_anything_does(
    model: SegmentAnything, theirs: Any, multimask: bool
) -> None:
    from segment_anything import SamPredictor

    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 90, 3), np.uint8)
    predictor = SamPredictor(theirs)
    predictor.set_image(image)
    points = rng.uniform(0, 40, (5, 2, 2))
    boxes = np.concatenate([rng.uniform(0, 15, (5, 2)), rng.uniform(20, 40, (5, 2))], 1)
    placed = torch.from_numpy(predictor.transform.apply_coords(points, (40, 90))).float()
    placed_boxes = torch.from_numpy(predictor.transform.apply_boxes(boxes, (40, 90))).float()
    labels = torch.tensor([[1, 0], [1, 1], [1, -1], [0, 1], [1, 0]])
    given = [
        {"points": placed, "labels": labels},
        {"boxes": placed_boxes},
        {"points": placed, "labels": labels, "boxes": placed_boxes},
        {"points": placed, "labels": labels, "masks": torch.randn(5, 1, 16, 16)},
    ]
    for prompts in given:
        _, iou, logits = predictor.predict_torch(
            prompts.get("points"),
            prompts.get("labels"),
            prompts.get("boxes"),
            prompts.get("masks"),
            multimask_output=multimask,
            return_logits=True,
        )
        with torch.no_grad():
            ours, our_iou = model.answer(predictor.features, **prompts, multimask=multimask)
        assert ours.shape == (5, 3 if multimask else 1, 16, 16)
        torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(our_iou, iou, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="labels"):
        model.answer(predictor.features, points=placed, multimask=True)


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("with_mask", [True, False])
def test_answers_have_the_gradients_of_segment_anythings(
    model: SegmentAnything, prompts: int, with_mask: bool
) -> None:
    decoder, encoder = model.sam.mask_decoder, model.sam.prompt_encoder
    points, labels = 64 * torch.rand(prompts, 2, 2), torch.tensor([[1, 0]] * prompts)
    masks = torch.randn(prompts, 1, 16, 16) if with_mask else None
    weights, found = torch.randn(prompts, 3, 16, 16), []
    given = torch.randn(1, 32, 4, 4)
    for ours in (True, False):
        embedding = given.clone().requires_grad_()
        model.zero_grad()
        if ours:
            asked = {"points": points, "labels": labels, "masks": masks}
            logits, iou = model.answer(embedding, **asked, multimask=True)
        else:
            sparse, dense = encoder((points, labels), None, masks)
            logits, iou = decoder(embedding, encoder.get_dense_pe(), sparse, dense, True)
        ((logits * weights).sum() + iou.sum()).backward()
        parameters = [*decoder.named_parameters(), *encoder.named_parameters()]
        grads = {name: p.grad.clone() for name, p in parameters if p.grad is not None}
        found.append((embedding.grad, grads))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    for name, expected in found[1][1].items():
        if name in found[0][1]:
            torch.testing.assert_close(found[0][1][name], expected, rtol=1e-3, atol=1e-4, msg=name)
        else:
            assert not expected.any(), f"{name} has no part in the answer"


def test_positions_follow_the_weights(model: SegmentAnything) -> None:
    asked = {"points": torch.full((1, 1, 2), 30.0), "labels": torch.ones(1, 1), "multimask": True}
    embedding = torch.randn(1, 32, 4, 4)
    with torch.inference_mode():
        before = model.answer(embedding, **asked)[0]
    other = small_sam(seed=2)
    model.load_state_dict(other.state_dict())
    found = model.answer(embedding, **asked)[0]  # with a gradient, after inference
    torch.testing.assert_close(found, other.answer(embedding, **asked)[0])
    assert not torch.equal(found, before)


def test_recomputing_changes_no_gradient() -> None:
    model, x, grads = small_sam(depth=6), torch.randn(4, 3, 64, 64), []
    kept = []
    for model.recompute in (False, True):
        model.zero_grad()
        sizes: list[int] = []

        def keep(tensor: Any, sizes: list[int] = sizes) -> Any:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.encode(x).square().mean()
        kept.append(sum(sizes))
        loss.backward()
        grads.append([p.grad.clone() for p in model.sam.image_encoder.parameters()])
    assert kept[1] < kept[0] / 2
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.slow
def test_compiled_blocks_encode_the_same(model: SegmentAnything) -> None:
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.encode(x)
        model.compiled = True
        torch.testing.assert_close(model.encode(x), expected, rtol=1e-4, atol=1e-4)
    assert all(b._compiled_call_impl is not None for b in model.sam.image_encoder.blocks)


def test_vit_t_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mobile_sam", None)
    with pytest.raises(ConfigError, match="mobile_sam, which is not installed") as error:
        SegmentAnything(Architecture.named("vit_t_lm"))
    assert "git+https://" in error.value.hint


def test_the_package_that_squashes_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    check_segment_anything()

    def squashing(self: Any, image: Any) -> Any:
        size = self.get_preprocess_shape(image.shape[0], image.shape[1], self.target_length)
        return torch.nn.functional.interpolate(image, size, mode="bilinear")

    monkeypatch.setattr(ResizeLongestSide, "apply_image_torch", squashing)
    with pytest.raises(PluginError, match="squashes images") as error:
        SegmentAnything(Architecture.named("tiny"))
    assert "segment-anything-py>=1.0.1" in error.value.hint


def test_the_package_whose_masks_cannot_be_compared_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from segment_anything import SamAutomaticMaskGenerator

    def _process_crop(self: Any) -> None:
        """Has torch.zeros(len(boxes)) in it."""

    monkeypatch.setattr(SamAutomaticMaskGenerator, "_process_crop", _process_crop)
    with pytest.raises(PluginError):
        check_segment_anything()
