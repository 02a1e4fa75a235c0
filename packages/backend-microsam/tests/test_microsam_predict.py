"""Tiles to segmentations: modes, encodings, precision, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellseg import PredictJob, Tile
from cellseg.data import Prompt
from cellseg.errors import ConfigError, DataError, DeviceError, WeightsError
from cellseg_microsam import weights
from cellseg_microsam.description import Description
from cellseg_microsam.model import MicroSam
from cellseg_microsam.predict import load
from cellseg_microsam.predict_options import MicrosamPredictOptions
from cellseg_microsam.stored import save_model

AIS = {
    "foreground_threshold": 0.35,
    "center_distance_threshold": 0.6,
    "boundary_distance_threshold": 0.6,
    "distance_smoothing": 0.0,
}
"""What finds several objects with the random weights below."""
APG = {**AIS, "segmentation_mode": "apg", "nms_threshold": 1.0, "min_size": 0}
AMG = {
    "segmentation_mode": "amg",
    "points_per_side": 4,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "nms_threshold": 1.0,
}
POINT = Prompt(points=((0.5, 20.0, 30.0),), positive=(True,))


Make = Callable[..., Path]


@pytest.fixture
def model(make_sam: Callable[..., Any]) -> Callable[..., Path]:
    """``model(path, decoder, prompts, field)``: a tiny model in a directory."""

    def make(path: Path, *, decoder: bool = True, prompts: bool = True, field: int = 0) -> Path:
        network = make_sam() if decoder else make_sam(unetr=None)
        described = Description(
            model_type="tiny",
            architecture=network.architecture.to_dict(),
            field=field,
            mode="full",
            has_decoder=decoder,
            prompts_trained=prompts,
        )
        path.mkdir()
        save_model(network, described, path)
        return path

    return make


def job(path: Path | None, device: str = "cpu", **values: Any) -> PredictJob[Any]:
    return PredictJob(options=MicrosamPredictOptions(**values), device=device, model=path)


def tile(y: int, x: int, seed: int = 0, channels: int = 1, **values: Any) -> Tile:
    image = np.random.default_rng(seed).random((channels, 1, y, x), np.float32)
    return Tile(image=image, **values)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tiles each call of the encoder has seen."""
    seen: list[int] = []
    encode = MicroSam.encode

    def spied(self: MicroSam, prepared: torch.Tensor) -> torch.Tensor:
        seen.append(len(prepared))
        return encode(self, prepared)

    monkeypatch.setattr(MicroSam, "encode", spied)
    return seen


@pytest.mark.parametrize("options", [AIS, APG, AMG, {"segmentation_mode": "prompts"}])
def test_a_batch_is_encoded_once_and_equals_its_tiles(
    options: dict[str, Any], tmp_path: Path, encodings: list[int], model: Make
) -> None:
    predict = load(job(model(tmp_path / "m"), **options))
    prompts = (POINT,) if "prompts" in options.values() else None
    tiles = [tile(48, 64, seed, prompts=prompts) for seed in (0, 1)]
    both = predict(tiles)
    assert encodings == [2]
    for one, found in zip(tiles, both, strict=True):
        ids = set(np.unique(found.labels).tolist()) - {0}
        assert found.labels.shape == (1, 48, 64) and found.labels.dtype == np.uint32
        assert ids and ids == set(found.scores) == set(range(1, max(ids) + 1))
        assert all(0 <= score <= 1 for score in found.scores.values())
        (alone,) = predict([one])
        assert (alone.labels != found.labels).mean() < 0.002
        np.testing.assert_allclose([*alone.scores.values()], [*found.scores.values()], atol=1e-4)
    assert not np.array_equal(both[0].labels, both[1].labels), "one result for two tiles"


def test_the_modes_differ_and_auto_takes_what_there_is(tmp_path: Path, model: Make) -> None:
    whole, plain = model(tmp_path / "a"), model(tmp_path / "b", decoder=False)
    shown = tile(64, 64)

    def labels(path: Path, **values: Any) -> np.ndarray:
        return load(job(path, **values))([shown])[0].labels

    ais, apg, amg = labels(whole, **AIS), labels(whole, **APG), labels(whole, **AMG)
    assert not np.array_equal(ais, apg) and not np.array_equal(apg, amg)
    np.testing.assert_array_equal(labels(whole, **AIS, segmentation_mode="ais"), ais)
    np.testing.assert_array_equal(labels(plain, **{**AMG, "segmentation_mode": "auto"}),
                                  labels(plain, **AMG))  # fmt: skip
    for mode in ("ais", "apg"):
        with pytest.raises(ConfigError, match="no decoder"):
            load(job(plain, segmentation_mode=mode))


def test_options_that_the_mode_of_auto_does_not_use_are_refused(
    tmp_path: Path, model: Make
) -> None:
    whole, plain = model(tmp_path / "a"), model(tmp_path / "b", decoder=False)
    with pytest.raises(ConfigError, match=r"--points-per-side.*ais"):
        load(job(whole, points_per_side=8))
    with pytest.raises(ConfigError, match=r"--foreground-threshold.*amg"):
        load(job(plain, foreground_threshold=0.4))
    predict = load(job(whole, multimask=True))  # which prompts use
    assert predict([tile(32, 32, prompts=(POINT,))])[0].labels.shape == (1, 32, 32)
    with pytest.raises(ConfigError, match=r"--multimask.*without --prompts.*ais"):
        predict([tile(32, 32)])
    predict = load(job(whole, min_size=9))
    with pytest.raises(ConfigError, match=r"--min-size.*--prompts"):
        predict([tile(32, 32, prompts=(POINT,))])


def test_prompts_are_taken_where_they_are_given(
    tmp_path: Path, encodings: list[int], model: Make
) -> None:
    path = model(tmp_path / "m")
    found, empty = load(job(path))([tile(48, 64, prompts=(POINT,)), tile(48, 64, 1, prompts=())])
    assert found.labels.any() and len(found.scores) == 1
    assert empty.labels.shape == (1, 48, 64) and not empty.labels.any() and not empty.scores
    assert encodings == [1], "a tile without a prompt is not encoded"
    with pytest.raises(ConfigError, match="there are none"):
        load(job(path, segmentation_mode="prompts"))([tile(48, 64)])
    with pytest.raises(ConfigError, match="--segmentation-mode ais"):
        load(job(path, segmentation_mode="ais"))([tile(48, 64, prompts=(POINT,))])


@pytest.mark.parametrize("options", [AIS, APG, AMG])
def test_a_tile_without_contrast_is_background_and_is_not_encoded(
    options: dict[str, Any], tmp_path: Path, encodings: list[int], model: Make
) -> None:
    predict = load(job(model(tmp_path / "m"), **options))
    flat = Tile(image=np.full((1, 1, 48, 64), 0.7, np.float32))
    first, second, third = predict([tile(48, 64), flat, tile(48, 64, 1)])
    assert encodings == [2]
    assert first.labels.any() and third.labels.any()
    assert second.labels.shape == (1, 48, 64) and not second.labels.any() and not second.scores
    assert not predict([flat])[0].labels.any() and encodings == [2]


@pytest.mark.parametrize("options", [AIS, APG, AMG, {}])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (150, 1), (2, 3), (129, 70)])
def test_any_size_comes_back(
    size: tuple[int, int], options: dict[str, Any], tmp_path: Path, model: Make
) -> None:
    box = ((0.0, 0.0, 0.0), (1.0, float(size[0]), float(size[1])))
    prompts = None if options else (Prompt(box=box),)
    path = model(tmp_path / "m", field=96)
    (found,) = load(job(path, **options))([tile(*size, prompts=prompts)])
    assert found.labels.shape == (1, *size)
    assert set(np.unique(found.labels).tolist()) - {0} == set(found.scores)


def test_three_channels_are_seen_and_other_numbers_refused(tmp_path: Path, model: Make) -> None:
    predict = load(job(model(tmp_path / "m"), **AIS))
    shown = tile(48, 64, channels=3)
    grey = Tile(image=shown.image[:1])
    assert not np.array_equal(predict([shown])[0].labels, predict([grey])[0].labels)
    repeated = Tile(image=np.repeat(shown.image[:1], 3, 0))
    assert (predict([repeated])[0].labels == predict([grey])[0].labels).all()
    with pytest.raises(DataError, match="1 or 3 channels, not 2") as error:
        predict([tile(48, 64, channels=2)])
    assert "--channels" in str(error.value.hint)
    with pytest.raises(DataError, match="2 planes"):
        predict([Tile(image=np.random.default_rng(0).random((1, 2, 48, 64), np.float32))])


def test_tiles_are_seen_as_large_as_patches_were_and_fill_the_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make
) -> None:
    seen = []
    prepare = MicroSam.prepare

    def spied(self: MicroSam, images: torch.Tensor, frame: Any) -> torch.Tensor:
        seen.append((images[0, 0].numpy(), frame))
        return prepare(self, images, frame)

    monkeypatch.setattr(MicroSam, "prepare", spied)
    shown = tile(40, 64)
    for name, field in (("smaller", 128), ("larger", 48), ("published", 0)):
        load(job(model(tmp_path / name, field=field)))([shown])
    for (image, frame), side in zip(seen[:2], (128, 64), strict=True):
        assert image.shape == (side, side) and frame.scaled == (64, 64)
        assert np.array_equal(image[:40, :64], shown.image[0, 0])
        assert np.array_equal(image[40:60], image[20:40][::-1]), "continued by its reflection"
    image, frame = seen[2]
    assert image.shape == (40, 64) and frame.scaled == (40, 64), "as Segment Anything was trained"


def test_half_precision_is_that_of_the_encoder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make
) -> None:
    inside, outside = [], []
    encode, maps = MicroSam.encode, MicroSam.maps

    def encoded(self: MicroSam, prepared: torch.Tensor) -> torch.Tensor:
        inside.append(encode(self, prepared))
        return inside[-1]

    def mapped(self: MicroSam, embeddings: torch.Tensor, frame: Any) -> torch.Tensor:
        outside.append(maps(self, embeddings, frame))
        return outside[-1]

    monkeypatch.setattr(MicroSam, "encode", encoded)
    monkeypatch.setattr(MicroSam, "maps", mapped)
    path = model(tmp_path / "m")
    for precision in ("32-true", "bf16"):
        load(job(path, precision=precision, **AIS))([tile(48, 64)])
    assert outside[0].dtype == outside[1].dtype == torch.float32
    assert not torch.equal(inside[0], inside[1].float()), "the precision does something"
    assert (outside[0] - outside[1]).abs().mean() < 0.01
    with pytest.raises(DeviceError, match="fp16"):
        load(job(path, precision="fp16"))


def test_compilation_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make
) -> None:
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **rest: asked.append(self))
    path = model(tmp_path / "m")
    load(job(path))([tile(32, 32)])
    assert not asked
    load(job(path, compile=True))([tile(32, 32)])
    assert asked


def test_options_that_exclude_each_other_are_refused(tmp_path: Path, model: Make) -> None:
    path = model(tmp_path / "m")
    with pytest.raises(ConfigError, match="--model-type and --model"):
        load(job(path, model_type="vit_b"))
    with pytest.raises(ConfigError, match="--checkpoint and --model"):
        load(job(path, checkpoint=tmp_path / "sam.pth"))
    with pytest.raises(ConfigError, match="no published weights"):
        load(job(None, model_type="tiny"))
    with pytest.raises(ConfigError, match="is a folder"):
        load(job(None, checkpoint=path))
    with pytest.raises(WeightsError):
        load(job(tmp_path))
    with pytest.raises(DeviceError):
        load(job(path, device="cuda:99"))


def test_weights_come_from_a_name_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make, make_sam: Callable[..., Any]
) -> None:
    network = make_sam()
    asked: list[object] = []

    def published(name: str, emit: Any) -> weights.Loaded:
        asked.append(name)
        return weights.Loaded(model=network, model_type=name)

    def checkpoint(path: Path) -> weights.Loaded:
        asked.append(path)
        return weights.Loaded(model=network, model_type="vit_b")

    monkeypatch.setattr(weights, "load_published", published)
    monkeypatch.setattr(weights, "load_checkpoint", checkpoint)
    file = tmp_path / "sam.pth"
    expected = load(job(model(tmp_path / "m"), **AIS))([tile(48, 64)])[0].labels
    for values in ({}, {"model_type": "vit_l_lm"}, {"checkpoint": file}):
        found = load(job(None, **AIS, min_size=0, **values))([tile(48, 64)])[0].labels
        np.testing.assert_array_equal(found, expected)
    assert asked == ["vit_b_lm", "vit_l_lm", file]
    load(job(None, checkpoint=file, model_type="vit_b_lm"))
    with pytest.raises(ConfigError, match="holds a vit_b, not a vit_l_lm"):
        load(job(None, checkpoint=file, model_type="vit_l_lm"))


def test_thresholds_are_those_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_sam: Callable[..., Any]
) -> None:
    """The generalists' objects have at least 100 pixels, unless the user says otherwise."""
    network = make_sam()
    monkeypatch.setattr(
        weights,
        "load_published",
        lambda name, emit: weights.Loaded(model=network, model_type=name),
    )

    def sizes(**values: Any) -> np.ndarray:
        labels = load(job(None, **AIS, **values))([tile(48, 64)])[0].labels
        return np.bincount(labels.ravel())[1:]

    every = sizes(model_type="vit_b")
    assert every.min() < 100 <= every.max()
    assert sizes(model_type="vit_b_lm").min() >= 100
    np.testing.assert_array_equal(sizes(model_type="vit_b_lm", min_size=0), every)


def test_a_model_that_never_learned_to_answer_is_not_asked(tmp_path: Path, model: Make) -> None:
    path = model(tmp_path / "m", prompts=False)
    for mode in ("apg", "amg", "prompts"):
        with pytest.raises(ConfigError, match="not trained"):
            load(job(path, segmentation_mode=mode))
    predict = load(job(path))
    assert predict([tile(32, 32)])[0].labels.shape == (1, 32, 32)
    with pytest.raises(ConfigError, match="--prompts"):
        predict([tile(32, 32, prompts=(POINT,))])


def test_out_of_memory_is_for_the_caller_unless_there_is_one_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make
) -> None:
    def full(self: MicroSam, prepared: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(MicroSam, "encode", full)
    predict = load(job(model(tmp_path / "m")))
    with pytest.raises(torch.OutOfMemoryError):
        predict([tile(32, 32), tile(32, 32, 1)])
    with pytest.raises(DeviceError) as error:
        predict([tile(32, 32)])
    assert "--prompts-per-batch" in str(error.value.hint)
