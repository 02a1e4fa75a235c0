"""Learning from examples and finding what is like them, with an encoder that is easy to foresee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from scipy import ndimage

from cellseg.data import Example, ExampleImage, Sample, Segmentation, Tile
from cellseg.errors import ConfigError, DataError, InterruptedRunError, WeightsError
from cellseg.events import Checkpointed, Event, Note, Progress
from cellseg.normalise import Normaliser, normalised
from cellseg.specs import PredictJob, Trained, TrainJob
from cellseg.torch.mask_pooling import pool_masks
from cellseg.torch.masks import FoundMask
from cellseg_fewshot import learn as learning
from cellseg_fewshot import predict as predicting
from cellseg_fewshot.options import FewshotOptions
from cellseg_fewshot.predict_options import FewshotPredictOptions
from cellseg_fewshot.stored import Stored
from cellseg_fewshot.views import FeatureMap


class ThresholdView:
    """Bright regions, each also without its rim."""

    def __init__(self, plane: np.ndarray) -> None:
        self.size = plane.shape[1:]
        smooth = ndimage.gaussian_filter(plane[0], 2)
        channels = [plane[0], smooth, ndimage.gaussian_gradient_magnitude(plane[0], 1)]
        self.features = FeatureMap(torch.from_numpy(np.stack(channels)).float(), (1.0, 1.0))
        self.labels, self.count = ndimage.label(plane[0] > 0.3)
        self.asked = 0

    def describe(self, masks: Sequence[FoundMask]) -> Any:
        return pool_masks(masks, self.features.values, self.features.step)

    def answer(self, points: np.ndarray) -> list[FoundMask]:
        self.asked += len(points)
        found, seen = [], set()
        for y, x in points.astype(int):
            label = self.labels[y, x]
            if label and label not in seen:
                seen.add(label)
                (box,) = ndimage.find_objects((self.labels == label).astype(int))
                mask = self.labels[box] == label
                core = ndimage.binary_erosion(mask)
                for part, score in ((mask, 0.9), (core, 0.6)):
                    if part.any():
                        found.append(FoundMask(part, (box[0].start, box[1].start), score))
        return found


class ThresholdEncoder:
    name, side, judges, scales = "thresholds", 1024, False, True

    def __init__(self) -> None:
        self.calls = 0
        self.fitted = 0

    def view(self, planes: Sequence[np.ndarray], larger: object = None) -> list[ThresholdView]:
        self.calls += len(planes)
        return [ThresholdView(plane) for plane in planes]

    def encode_crops(self, crops: Sequence[np.ndarray]) -> list[FeatureMap]:
        self.calls += len(crops)
        return [ThresholdView(crop).features for crop in crops]

    def fit(self, shown: object, seed: int) -> None:
        self.fitted += 1

    def expect(self, side: int) -> None: ...

    def state(self) -> Mapping[str, Any]:
        return {}


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> ThresholdEncoder:
    one = ThresholdEncoder()
    monkeypatch.setattr(learning, "open_encoder", lambda *_: one)
    monkeypatch.setattr(learning, "describe_encoder", lambda _: {"kind": "thresholds"})
    for module in (learning, predicting):
        monkeypatch.setattr(module, "restore_encoder", lambda *_: one)
    return one


def scene(seed: int = 0, shift: int = 0) -> Sample:
    """Discs: ten of brightness 1, ids 1 to 10; six of 0.5, ids 11 to 16; three large ones of 1,
    ids 17 to 19."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((1, 200, 220), np.uint32)
    image = rng.normal(0.05, 0.01, (1, *labels.shape))
    grid = np.indices(labels.shape[1:])
    places = [(20 + 36 * row, 20 + 36 * column + shift) for row in range(5) for column in range(5)]
    for number, place in enumerate(places[:19], 1):
        radius = 13 if number > 16 else 7 + number % 2
        inside = ((grid - np.array(place)[:, None, None]) ** 2).sum(0) <= radius**2
        labels[0, inside] = number
        image[0, 0, inside] += 0.5 if 10 < number <= 16 else 1.0
    return Sample(name=f"scene-{seed}", image=image.astype(np.float32), labels=labels)


def examples(sample: Sample, ids: Sequence[int], **values: Any) -> list[Example]:
    assert sample.labels is not None
    found = []
    for number in ids:
        labels = sample.labels[:, :, :][0]
        (box,) = ndimage.find_objects((labels == number).astype(int))
        corner = (0, box[0].start, box[1].start)
        found.append(
            Example(mask=labels[box] == number, corner=corner, where=f"object {number}", **values)
        )
    return found


def job(path: Path, images: Sequence[ExampleImage], classes: Any = (), **options: Any) -> Any:
    for name in ("checkpoint", "model", "previews"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return TrainJob(
        options=FewshotOptions(**options),
        train=[],
        val=[],
        epochs=1,
        seed=0,
        device="cpu",
        checkpoint=path / "checkpoint",
        model=path / "model",
        previews=path / "previews",
        examples=tuple(images),
        classes=classes,
    )


def learned(path: Path, shown: Sequence[Example], **options: Any) -> Trained:
    image = ExampleImage(sample=replace(scene(), labels=None), examples=tuple(shown))
    return learning.learn(job(path, [image], **options), lambda event: None)


def found(path: Path, trained: Trained, tiles: Sequence[Tile], **options: Any) -> Any:
    values = FewshotPredictOptions.over(trained.calibrated, options)
    chosen = FewshotPredictOptions(**values)
    return predicting.load(PredictJob(options=chosen, device="cpu", model=path / "model"))(tiles)


def ids(result: Segmentation, sample: Sample) -> set[int]:
    """Of the true objects that were found, with an IoU above 0.8."""
    assert sample.labels is not None
    truth, seen = sample.labels[0:1, :, :][0], result.labels[0]
    matched = set()
    for number in set(np.unique(seen).tolist()) - {0}:
        true = np.bincount(truth[seen == number]).argmax()
        mine, other = seen == number, truth == true
        if true and (mine & other).sum() > 0.8 * (mine | other).sum():
            matched.add(int(true))
        else:
            matched.add(-number)
    return matched


def test_all_that_is_like_the_examples_is_found(encoder: Any, tmp_path: Path) -> None:
    trained = learned(tmp_path, examples(scene(), range(1, 5)))
    other = scene(1, shift=5)
    (result,) = found(tmp_path, trained, [Tile(image=other.image[:, :, :, :])])
    assert ids(result, other) == set(range(1, 11)), "neither the dim nor the large ones"
    assert set(result.scores) == set(range(1, 11)) and min(result.scores.values()) > 0.5
    assert result.classes == {}


def test_tiles_are_encoded_once_and_candidates_are_not(encoder: Any, tmp_path: Path) -> None:
    trained = learned(tmp_path, examples(scene(), range(1, 5)))
    other = scene(1)
    tiles = [Tile(image=other.image[:, :, :, :]), Tile(image=other.image[:, :, :, :] * 0.9)]
    before = encoder.calls
    both = found(tmp_path, trained, [*tiles, Tile(image=np.full_like(tiles[0].image, 0.5))])
    assert encoder.calls == before + 2, "the tile without any contrast is not encoded"
    assert not both[2].labels.any() and both[2].labels.shape == (1, 200, 220)
    for tile, result in zip(tiles, both, strict=False):
        (alone,) = found(tmp_path, trained, [tile])
        np.testing.assert_array_equal(alone.labels, result.labels)
        assert alone.scores == result.scores


def test_an_image_without_candidates_gives_nothing(encoder: Any, tmp_path: Path) -> None:
    trained = learned(tmp_path, examples(scene(), range(1, 5)))
    dark = np.random.default_rng(0).normal(0, 0.01, (1, 1, 90, 120)).astype(np.float32)
    (result,) = found(tmp_path, trained, [Tile(image=dark)])
    assert not result.labels.any() and result.labels.shape == (1, 90, 120)
    assert not result.scores and not result.classes


def test_the_order_of_examples_and_images_does_not_matter(encoder: Any, tmp_path: Path) -> None:
    first, second = scene(0), scene(1, shift=3)
    images = [
        ExampleImage(sample=sample, examples=tuple(examples(sample, some)))
        for sample, some in ((first, (1, 2, 3)), (second, (4, 5)))
    ]
    turned = [replace(image, examples=image.examples[::-1]) for image in images[::-1]]
    for name, given in (("a", images), ("b", turned)):
        learning.learn(job(tmp_path / name, given, prototypes=2), lambda event: None)
    files = sorted(path.name for path in (tmp_path / "a/model").iterdir())
    assert files == ["fewshot.json", "memory.safetensors"]
    for name in files:
        assert (tmp_path / "a/model" / name).read_bytes() == (
            tmp_path / "b/model" / name
        ).read_bytes()


def test_negatives_lower_the_scores_of_what_is_like_them(encoder: Any, tmp_path: Path) -> None:
    sample = scene()
    dim = [*examples(sample, range(1, 5)), *examples(sample, range(11, 13))]
    without = learned(tmp_path / "a", dim)
    against = learned(
        tmp_path / "b", [*dim[:4], *(replace(one, positive=False, kind=1) for one in dim[4:])]
    )
    mixed = learned(tmp_path / "c", dim[:4])
    tile = Tile(image=scene(1).image[:, :, :, :])
    scores = {}
    for name, trained in (("a", without), ("b", against), ("c", mixed)):
        (result,) = found(tmp_path / name, trained, [tile], similarity_threshold=0.0)
        truth = scene(1).labels
        assert truth is not None
        at = {int(truth[result.labels == k].max()): s for k, s in result.scores.items()}
        scores[name] = np.mean([at.get(number, 0.0) for number in range(11, 17)])
    assert scores["b"] < 0.1 < 0.3 < scores["a"]
    assert scores["b"] <= scores["c"]
    (result,) = found(tmp_path / "b", against, [tile])
    assert ids(result, scene(1)) == set(range(1, 11))


def test_each_object_gets_its_class(encoder: Any, tmp_path: Path) -> None:
    sample = scene()
    shown = [*examples(sample, range(1, 5)), *examples(sample, range(11, 15), kind=2)]
    image = ExampleImage(sample=sample, examples=tuple(shown))
    names = ("background", "bright", "dim")
    trained = learning.learn(job(tmp_path, [image], names), lambda event: None)
    assert trained.classes == names
    other = scene(1, shift=4)
    (result,) = found(tmp_path, trained, [Tile(image=other.image[:, :, :, :])])
    assert ids(result, other) == set(range(1, 17))
    truth = other.labels[:, :, :]  # type: ignore[index]
    for label, kind in result.classes.items():
        assert kind == (1 if truth[result.labels == label].max() <= 10 else 2)
    assert set(result.classes) == set(result.scores)


def test_the_type_of_the_pixels_does_not_matter(encoder: Any, tmp_path: Path) -> None:
    sample = scene()
    pixels = np.round(np.clip(sample.image[:, :, :, :], 0, 1.25) * 200)
    raw = pixels / 321 - 4, (pixels * 300).astype(np.uint16), pixels.astype(np.uint8)
    results = []
    for values in raw:
        name = str(values.dtype)
        image = normalised(replace(sample, image=values), Normaliser())
        shown = ExampleImage(sample=image, examples=tuple(examples(sample, range(1, 5))))
        trained = learning.learn(job(tmp_path / name, [shown]), lambda event: None)
        results += found(tmp_path / name, trained, [Tile(image=image.image[:, :, :, :])])
    assert ids(results[0], sample) == set(range(1, 11))
    for other in results[1:]:
        np.testing.assert_array_equal(other.labels, results[0].labels)


def test_points_are_examples_too(encoder: Any, tmp_path: Path) -> None:
    points = [
        Example(corner=(0, 20, 20 + 36 * i), point=(20.5, 20.5 + 36 * i), where=f"point {i}")
        for i in range(4)
    ]
    trained = learned(tmp_path, points)
    other = scene(1)
    (result,) = found(tmp_path, trained, [Tile(image=other.image[:, :, :, :])])
    assert ids(result, other) == set(range(1, 11))
    with pytest.raises(DataError, match=r"point x.*finds no object"):
        beside = Example(corner=(0, 1, 1), point=(1.5, 1.5), where="point x")
        learned(tmp_path / "b", [*points, beside])


def test_an_interrupted_training_goes_on(encoder: Any, tmp_path: Path) -> None:
    images = [
        ExampleImage(sample=scene(seed), examples=tuple(examples(scene(seed), some)))
        for seed, some in ((0, (1, 2, 3)), (1, (4, 5)))
    ]
    events: list[Event] = []
    whole, parts = job(tmp_path / "a", images), job(tmp_path / "b", images)
    learning.learn(whole, events.append)
    assert [e.step for e in events if isinstance(e, Progress)] == [1, 2]
    assert [e.step for e in events if isinstance(e, Checkpointed)] == [1, 2]
    again: list[Event] = []
    with pytest.raises(InterruptedRunError):
        learning.learn(replace(parts, interrupted=lambda: True), lambda event: None)
    encoder.calls = 0
    learning.learn(parts, again.append)
    assert [e.step for e in again if isinstance(e, Progress)] == [2]
    assert encoder.calls == 2, "one window is left to see, and the other to draw"
    for path in whole.model.iterdir():
        assert path.read_bytes() == (parts.model / path.name).read_bytes()
    assert len(list(whole.previews.glob("*.png"))) == 2


def test_a_large_image_is_seen_as_it_will_be_cut(encoder: Any, tmp_path: Path) -> None:
    """An object is as large in training as in prediction, and only what holds examples is read."""
    labels = np.zeros((1, 1500, 1400), np.uint32)
    image = np.zeros((1, *labels.shape), np.float32)
    small = scene()
    labels[:, 1200:1400, 1100:1320] = small.labels[:, :, :]  # type: ignore[index]
    image[:, :, 1200:1400, 1100:1320] = small.image[:, :, :, :]
    shown = examples(Sample(name="large", image=image, labels=labels), range(1, 5))
    encoder.side = 400
    reads = []

    class Counted:
        shape, dtype = image.shape, image.dtype

        def __getitem__(self, key: Any) -> Any:
            reads.append([part.stop - part.start for part in key])
            return image[key]

    sample = Sample(name="large", image=Counted())
    given = job(tmp_path, [ExampleImage(sample=sample, examples=tuple(shown))])
    trained = learning.learn(given, lambda event: None)
    assert trained.tiling is not None
    _, core, _ = trained.tiling.core
    _, halo, _ = trained.tiling.halo
    assert core + 2 * halo <= 400 and halo >= 1.5 * 17
    assert max(max(read[2:]) for read in reads) <= core + 2 * halo
    (result,) = found(tmp_path, trained, [Tile(image=small.image[:, :, :, :])])
    assert ids(result, small) == set(range(1, 11))


def test_the_threshold_and_the_areas_are_those_of_the_examples(
    encoder: Any, tmp_path: Path
) -> None:
    notes: list[Event] = []
    image = ExampleImage(sample=scene(), examples=tuple(examples(scene(), range(1, 5))))
    trained = learning.learn(job(tmp_path, [image]), notes.append)
    sizes = [np.count_nonzero(one.mask) for one in image.examples]
    limit = trained.calibrated["similarity_threshold"]
    memory = Stored.load(tmp_path / "model").memory
    resolved = predicting.resolve(FewshotPredictOptions(), memory)
    assert resolved.areas == (min(sizes) // 2, 2 * max(sizes))
    assert limit == pytest.approx(memory.threshold(True, True), abs=1e-4)
    told = [event.text for event in notes if isinstance(event, Note)]
    assert len(told) == 1 and "Threshold of similarity" in told[0]


@pytest.mark.parametrize(
    ("shown", "classes", "options", "error", "message"),
    [
        ({"positive": False}, (), {}, DataError, "left alone"),
        ({}, ("background", "a", "b"), {}, DataError, "class b has no example"),
    ],
)
def test_examples_that_say_too_little(
    encoder: Any, tmp_path: Path, shown: Any, classes: Any, options: Any, error: Any, message: str
) -> None:
    image = ExampleImage(sample=scene(), examples=tuple(examples(scene(), (1, 2), **shown)))
    with pytest.raises(error, match=message):
        learning.learn(job(tmp_path, [image], classes, **options), lambda event: None)


def test_crop_knows_one_prototype_and_no_negatives(encoder: Any, tmp_path: Path) -> None:
    sample = scene()
    shown = examples(sample, range(1, 5))
    trained = learned(tmp_path, shown, mode="crop")
    assert trained.calibrated == {"similarity_threshold": 0.5}
    stored = Stored.load(tmp_path / "model")
    assert stored.memory.mode == "crop" and len(stored.memory.prototypes) == 1
    assert np.linalg.norm(stored.memory.prototypes) == pytest.approx(1)
    before = encoder.calls
    tile = Tile(image=sample.image[:, :, :, :])
    (result,) = found(tmp_path, trained, [tile])
    assert encoder.calls - before > len(result.scores), "each candidate is encoded"
    assert ids(result, sample) >= set(range(1, 11))
    (none,) = found(tmp_path, trained, [tile], similarity_threshold=1.0)
    assert not none.scores
    with pytest.raises(ConfigError, match="similarity-peaks"):
        found(tmp_path, trained, [tile], similarity_peaks=True)
    with pytest.raises(ConfigError, match="left alone"):
        avoided = [replace(one, positive=False) for one in examples(sample, (11,))]
        learned(tmp_path / "b", [*shown, *avoided], mode="crop")


def test_a_damaged_model_is_named(encoder: Any, tmp_path: Path) -> None:
    trained = learned(tmp_path, examples(scene(), range(1, 5)))
    (tmp_path / "model/memory.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"memory\.safetensors"):
        found(tmp_path, trained, [])
    (tmp_path / "model/fewshot.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"fewshot\.json has no 'encoder': another version"):
        found(tmp_path, trained, [])
    with pytest.raises(WeightsError, match="without examples"):
        predicting.load(PredictJob(options=FewshotPredictOptions(), device="cpu"))
