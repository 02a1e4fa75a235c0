"""Crops around objects lie where the method says, and are pooled with the mask as it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from numpy.typing import NDArray  # noqa: E402

from cellseg.errors import ConfigError  # noqa: E402
from cellseg.torch.masks import FoundMask  # noqa: E402
from cellseg_fewshot.crop import crop_around, describe_crops  # noqa: E402
from cellseg_fewshot.memory import Memory  # noqa: E402
from cellseg_fewshot.predict import find_objects, resolve  # noqa: E402
from cellseg_fewshot.predict_options import FewshotPredictOptions  # noqa: E402
from cellseg_fewshot.priors import Prior  # noqa: E402
from cellseg_fewshot.views import FeatureMap  # noqa: E402


class Cells:
    """An encoder whose features are the crop, brought to a grid, and its square."""

    def __init__(self, grid: int = 8) -> None:
        self.grid = grid
        self.batches: list[int] = []

    def encode_crops(self, crops: Sequence[NDArray[np.float32]]) -> list[FeatureMap]:
        self.batches.append(len(crops))
        return [self.encoded(crop) for crop in crops]

    def encoded(self, crop: NDArray[np.float32]) -> FeatureMap:
        s = crop.shape[1]
        assert crop.shape[1:] == (s, s)
        image = torch.from_numpy(crop)[None]
        values = torch.nn.functional.interpolate(image, (self.grid,) * 2, mode="bilinear")[0]
        return FeatureMap(torch.cat([values, values**2]), (s / self.grid, s / self.grid))


def plane(size: tuple[int, int], channels: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((channels, *size), dtype=np.float32)


def ragged(shape: tuple[int, int], corner: tuple[int, int], seed: int = 0) -> FoundMask:
    """A mask that touches all sides of its box."""
    mask = np.random.default_rng(seed).random(shape) < 0.7
    mask[[0, -1], [0, -1]] = True
    return FoundMask(mask, corner, 1.0)


@pytest.mark.parametrize(
    ("shape", "corner", "occupancy", "side", "begin"),
    [
        ((10, 10), (50, 60), 0.2, 22, (44, 54)),  # sqrt(100 / 0.2) = 22.4
        ((10, 10), (50, 60), 1.0, 10, (50, 60)),
        ((40, 5), (20, 70), 0.8, 40, (20, 53)),  # as long as the box, if that is longer
        ((10, 10), (2, 0), 0.2, 22, (0, 0)),  # at the border
        ((10, 10), (88, 109), 0.2, 22, (78, 98)),
        ((10, 10), (2, 109), 0.05, 44, (0, 76)),
    ],
)
def test_crops_lie_around_objects(
    shape: tuple[int, int], corner: tuple[int, int], occupancy: float, side: int,
    begin: tuple[int, int],
) -> None:  # fmt: skip
    image = plane((100, 120))
    mask = FoundMask(np.ones(shape, bool), corner, 1.0)
    crop, inside = crop_around(image, mask, occupancy)
    y, x = begin
    np.testing.assert_array_equal(crop, image[:, y : y + side, x : x + side])
    whole = np.zeros((100, 120), bool)
    whole[corner[0] : corner[0] + shape[0], corner[1] : corner[1] + shape[1]] = True
    np.testing.assert_array_equal(inside, whole[y : y + side, x : x + side])


def test_the_area_is_that_of_the_mask_not_of_its_box() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4], mask[:, 4] = True, True
    crop, inside = crop_around(plane((100, 100)), FoundMask(mask, (40, 40), 1.0), 0.1)
    assert crop.shape == (2, 13, 13)  # sqrt(17 / 0.1) = 13.04
    assert inside.sum() == 17


def test_empty_lines_of_a_box_do_not_count() -> None:
    tight = FoundMask(np.ones((3, 4), bool), (20, 30), 1.0)
    loose = np.zeros((12, 15), bool)
    loose[2:5, 9:13] = True
    for one, other in zip(
        crop_around(plane((60, 60)), tight, 0.3),
        crop_around(plane((60, 60)), FoundMask(loose, (18, 21), 1.0), 0.3),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("occupancy", [0.05, 0.2, 0.8])
@pytest.mark.parametrize("grid", [8, 64])
def test_vectors_are_means_weighted_with_the_mask(occupancy: float, grid: int) -> None:
    """Where crops are square: the mask is interpolated to the grid as torch does it."""
    image, encoder = plane((200, 180)), Cells(grid)
    masks = [ragged((15, 9), (90, 80)), ragged((7, 7), (0, 173), 1), ragged((30, 30), (169, 0), 2)]
    found = describe_crops(encoder, image, masks, occupancy, 2)
    assert (found.shape, found.dtype) == ((3, 4), torch.float32)
    for vector, mask in zip(found, masks, strict=True):
        crop, inside = crop_around(image, mask, occupancy)
        values = encoder.encoded(crop).values.double()
        weights = torch.nn.functional.interpolate(
            torch.from_numpy(inside)[None, None].double(), (grid, grid), mode="bilinear"
        )[0, 0]
        oracle = (values * weights).sum((1, 2)) / weights.sum()
        torch.testing.assert_close(vector.double(), oracle, rtol=1e-5, atol=1e-6)


def test_padding_of_crops_that_cannot_be_square_does_not_count() -> None:
    image = plane((20, 100))
    mask = FoundMask(np.ones((18, 40), bool), (2, 30), 1.0)
    crop, inside = crop_around(image, mask, 0.3)
    side = 48  # sqrt(720 / 0.3) = 48.99
    assert (crop.shape, inside.shape) == ((2, side, side), (side, side))
    np.testing.assert_array_equal(crop[:, :20], image[:, :, 26:74])
    np.testing.assert_array_equal(crop[:, 20:], np.repeat(image[:, 19:, 26:74], 28, 1))
    np.testing.assert_array_equal(np.argwhere(inside)[[0, -1]], [[2, 4], [19, 43]])

    class Marked(Cells):
        """Features that tell the row of the cell."""

        def encoded(self, crop: NDArray[np.float32]) -> FeatureMap:
            values = torch.arange(16.0)[:, None].expand(16, 16)[None]
            return FeatureMap(values, (3.0, 3.0))

    # Cells of 3 pixels: the middles of rows 0 to 6 (1.5 to 19.5) show the plane, and that of row 0
    # is pixel 1, where the mask has not begun.
    samples = np.array([0.0, 1, 1, 1, 1, 1, 1])
    found = describe_crops(Marked(), image, [mask], 0.3, 1)
    assert found.item() == pytest.approx((samples * np.arange(7)).sum() / samples.sum())

    class Poisoned(Cells):
        def encoded(self, crop: NDArray[np.float32]) -> FeatureMap:
            found = super().encoded(crop)
            found.values[:, 4:] = torch.inf  # middles from 27 on
            return found

    assert describe_crops(Poisoned(), image, [mask], 0.3, 1).isfinite().all()


def test_grids_may_reach_beyond_the_crop() -> None:
    class Wide(Cells):
        def encoded(self, crop: NDArray[np.float32]) -> FeatureMap:
            values = torch.arange(16.0).reshape(1, 4, 4)
            return FeatureMap(values, (crop.shape[1] / 3.2, crop.shape[1] / 3.2))

    # The middles of the last cells lie beyond the crop.
    mask = FoundMask(np.ones((20, 20), bool), (10, 10), 1.0)
    found = describe_crops(Wide(), plane((40, 40)), [mask], 1.0, 1)
    assert found.item() == pytest.approx(np.arange(16).reshape(4, 4)[:3, :3].mean())


def test_masks_between_the_cells_are_pooled_by_their_pixels() -> None:
    line = FoundMask(np.ones((64, 1), bool), (0, 8), 1.0)
    image, encoder = plane((64, 64)), Cells(4)
    values = encoder.encoded(image).values
    found = describe_crops(encoder, image, [line], 1.0, 1)
    torch.testing.assert_close(found[0], values[:, :, 0].mean(1))


def test_how_many_crops_are_encoded_together_changes_nothing() -> None:
    image = plane((90, 70))
    masks = [ragged((5 + k, 4 + k), (6 * k, 5 * k), k) for k in range(7)]
    once = Cells()
    whole = describe_crops(once, image, masks, 0.2, 7)
    assert once.batches == [7]
    for batch, batches in ((1, [1] * 7), (3, [3, 3, 1]), (50, [7])):
        encoder = Cells()
        assert torch.equal(describe_crops(encoder, image, masks, 0.2, batch), whole)
        assert encoder.batches == batches
    assert torch.equal(describe_crops(Cells(), image, masks[::-1], 0.2, 2), whole.flip(0))


def test_no_masks_and_masks_of_nothing() -> None:
    encoder = Cells()
    assert describe_crops(encoder, plane((20, 20)), [], 0.2, 4).shape == (0, 0)
    assert encoder.batches == []
    nothing = FoundMask(np.zeros((2, 2), bool), (3, 3), 1.0)
    with pytest.raises(ValueError, match="no place"):
        describe_crops(encoder, plane((20, 20)), [nothing], 0.2, 4)


def test_of_candidates_with_much_the_same_box_the_best_one_is_encoded() -> None:
    notched = np.ones((10, 10), bool)
    notched[5, 5] = False

    class Proposing:
        size = (60, 60)

        def answer(self, points: NDArray[np.float32]) -> list[FoundMask]:
            return [
                FoundMask(notched, (20, 20), 0.5),
                FoundMask(np.ones((10, 10), bool), (20, 20), 0.9),
                FoundMask(np.ones((10, 10), bool), (20, 21), 0.8),
                FoundMask(np.ones((10, 10), bool), (20, 27), 0.7),
            ]

    memory = Memory(
        kinds=(1,),
        prototypes=np.full((1, 4), 0.5),
        prototype_kinds=np.array([1]),
        negatives=np.zeros((0, 4)),
        priors={1: Prior(np.array([4.6, 1.0, 0.0]), np.ones(3))},
        occupancy=0.2,
    )
    finding = resolve(FewshotPredictOptions(similarity_threshold=0.0), memory)
    encoder = Cells()
    found = find_objects(encoder, Proposing(), plane((60, 60)), 1.0, memory, finding)  # type: ignore
    assert encoder.batches == [2] and len(found.scores) == 2
    with pytest.raises(ConfigError, match="--points-per-side 0: nothing is left"):
        resolve(FewshotPredictOptions(points_per_side=0), memory)
    assert resolve(FewshotPredictOptions(points_per_side=0, blobs=True), memory).blobs


def test_vectors_are_those_of_segment_anythings_predictor(
    tiny_sam: Any, tiny_sam_checkpoint: Path
) -> None:
    from segment_anything import SamPredictor

    from cellseg_fewshot.encoders import EncoderSettings, open_encoder

    image = np.random.default_rng(0).integers(0, 256, (3, 150, 140), dtype=np.uint8)
    mask = ragged((70, 64), (40, 10), 3)
    occupancy = mask.mask.sum() / 128.5**2  # crops of 128 pixels, which are not resized
    settings = EncoderSettings(checkpoint=tiny_sam_checkpoint)
    encoder = open_encoder(settings, torch.device("cpu"))
    scaled = image.astype(np.float32) / 255
    crop, inside = crop_around(scaled, mask, occupancy)
    assert crop.shape == (3, 128, 128)

    predictor = SamPredictor(tiny_sam)
    predictor.set_image((crop * 255).round().astype(np.uint8).transpose(1, 2, 0))
    features = predictor.features[0].double()
    weights = torch.nn.functional.interpolate(
        torch.from_numpy(inside)[None, None].double(), features.shape[1:], mode="bilinear"
    )[0, 0]
    oracle = (features * weights).sum((1, 2)) / weights.sum()
    found = describe_crops(encoder, scaled, [mask], occupancy, 1)[0]
    torch.testing.assert_close(found.double(), oracle, rtol=1e-4, atol=1e-5)
    assert encoder.calls == 1
