"""Images in a square, against what Segment Anything does to them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from cellseg.torch.frames import Frame  # noqa: E402

torch.set_num_threads(1)

SIZES = [(64, 64), (40, 90), (301, 77), (7, 200), (1, 3), (1000, 1500)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_images_lie_as_segment_anything_lays_them(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("segment_anything.utils.transforms")
    frame = Frame.fit(size, 64)
    assert frame.scaled == transforms.ResizeLongestSide.get_preprocess_shape(*size, 64)
    image = torch.rand(2, 3, *size)
    placed = frame.place(image)
    assert placed.shape == (2, 3, 64, 64)
    y, x = frame.scaled
    expected = transforms.ResizeLongestSide(64).apply_image_torch(image)
    torch.testing.assert_close(placed[..., :y, :x], expected)
    assert not placed[..., y:, :].any() and not placed[..., x:].any()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_come_back_as_segment_anything_brings_them(size: tuple[int, int]) -> None:
    modeling = pytest.importorskip("segment_anything.modeling")
    frame = Frame.fit(size, 64)
    logits = torch.randn(2, 3, 16, 16)
    sam = modeling.Sam.__new__(modeling.Sam)
    torch.nn.Module.__init__(sam)
    sam.image_encoder = torch.nn.Module()
    sam.image_encoder.img_size = 64
    expected = modeling.Sam.postprocess_masks(sam, logits, frame.scaled, frame.size)
    torch.testing.assert_close(frame.restore(logits), expected)


def test_there_and_back_keeps_every_place() -> None:
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(80.0), indexing="ij")
    image = torch.stack([y, x])[None] / 80
    frame = Frame.fit((30, 80), 160)
    back = frame.restore(frame.place(image))
    assert back.shape == image.shape
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(back[inner], image[inner], atol=2e-3, rtol=0)
    assert frame.factor == (2.0, 2.0)


def test_an_image_as_large_as_the_square_is_left_alone() -> None:
    image = torch.rand(1, 1, 32, 32)
    frame = Frame.fit((32, 32), 32)
    torch.testing.assert_close(frame.place(image), image, rtol=0, atol=0)
    torch.testing.assert_close(frame.restore(image), image, rtol=0, atol=0)


def test_small_images_are_not_magnified_beyond_the_field() -> None:
    assert Frame.fit((50, 100), 200).scaled == (100, 200)
    assert Frame.fit((50, 100), 200, field=400).scaled == (25, 50)
    assert Frame.fit((50, 800), 200, field=400).scaled == (13, 200), "a large one fills the square"


def test_a_very_thin_image_keeps_a_pixel() -> None:
    frame = Frame.fit((1, 1000), 64)
    assert frame.scaled == (1, 64)
    assert frame.restore(frame.place(torch.rand(1, 1, 1, 1000))).shape == (1, 1, 1, 1000)
