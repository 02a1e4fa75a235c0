"""Embeddings that are made once: what is kept, how often is encoded, and that training is the
same."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cellseg.augment import Augmentation  # noqa: E402
from cellseg.errors import DataError, InterruptedRunError, StorageError  # noqa: E402
from cellseg.events import Note, Progress  # noqa: E402
from cellseg.patches import PatchGrid  # noqa: E402
from cellseg.specs import TrainJob  # noqa: E402
from cellseg.testing import blobs  # noqa: E402
from cellseg.torch.loaders import Loaders  # noqa: E402
from cellseg.torch.patches import ValidationPatches  # noqa: E402
from cellseg.torch.sam.architecture import Architecture  # noqa: E402
from cellseg.torch.training import fit  # noqa: E402
from cellseg.torch.weights import seeded  # noqa: E402
from cellseg_microsam.cache import (  # noqa: E402
    CachedPatches,
    CachedValidation,
    Store,
    fill,
)
from cellseg_microsam.fixed_patches import FixedPatches, Versions  # noqa: E402
from cellseg_microsam.learner import MicrosamLearner  # noqa: E402
from cellseg_microsam.model import MicroSam  # noqa: E402
from cellseg_microsam.options import MicrosamOptions  # noqa: E402
from cellseg_microsam.patches import Targets, as_tensor  # noqa: E402
from cellseg_microsam.predict_options import MicrosamPredictOptions  # noqa: E402
from cellseg_microsam.thresholds import resolve  # noqa: E402
from cellseg_microsam.train import train  # noqa: E402

TINY: dict[str, Any] = {
    "model_type": "tiny",
    "mode": "decoder",
    "patch_size": 32,
    "n_samples": 8,
    "batch_size": 2,
    "copies": 3,
    "val_patches": 3,
    "learning_rate": 1e-3,
}


def options(**changes: Any) -> MicrosamOptions:
    return MicrosamOptions(**{**TINY, **changes})


def make_job(folder: Path, **changes: Any) -> TrainJob[MicrosamOptions]:
    for name in ("checkpoint", "model", "previews"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    job: TrainJob[Any] = TrainJob(
        options=options(),
        train=[blobs(1), blobs(2)],
        val=[blobs(3)],
        epochs=2,
        seed=0,
        device="cpu",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        previews=folder / "previews",
    )
    return replace(job, **changes)


# The store


def make_store(folder: Path, key: str = "a", count: int = 3, **changes: Any) -> Store:
    return Store(folder / "store", {"key": key}, count, (2, 4, 4), (8, 8), **changes)


def put(store: Store, *numbers: int) -> None:
    embeddings = torch.stack([torch.full((2, 4, 4), number + 0.5) for number in numbers])
    store.put(numbers, embeddings, [np.full((8, 8), number, np.uint32) for number in numbers])


def test_what_is_stored_comes_back_also_in_another_process(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert store.missing == [0, 1, 2]
    put(store, 2, 0)
    for seen in (store, make_store(tmp_path), pickle.loads(pickle.dumps(store))):
        assert seen.missing == [1]
        embedding, labels = seen.get(2)
        assert embedding.dtype == torch.float32 and (embedding == 2.5).all()
        assert labels.dtype == np.uint32 and (labels == 2).all()


@pytest.mark.parametrize("other", [{"key": "b"}, {"count": 4}, {"dtype": "float32"}])
def test_what_has_another_key_is_made_anew(tmp_path: Path, other: dict[str, Any]) -> None:
    put(make_store(tmp_path), 0, 1, 2)
    assert 0 in make_store(tmp_path, **other).missing


def test_a_store_that_was_not_finished_is_made_anew(tmp_path: Path) -> None:
    put(make_store(tmp_path), 0, 1, 2)
    (tmp_path / "store" / "key.json").unlink()
    assert make_store(tmp_path).missing == [0, 1, 2]


def test_too_small_a_disk_is_told_before(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(StorageError, match="embeddings take") as error:
        make_store(tmp_path)
    assert "--copies" in (error.value.hint or "")
    assert not (tmp_path / "store").exists()


# The patches


def test_patches_are_of_the_grid_with_objects_enough(tmp_path: Path) -> None:
    samples = [blobs(1), blobs(2), blobs(9, count=0)]
    grid = PatchGrid(samples, (1, 32, 32))
    counts = [sum(np.unique(p.labels[p.labels > 0], return_counts=True)[1] >= 25) for p in grid]
    for wanted in (0, 1, 2):
        fixed = FixedPatches(samples, options(min_instances=wanted), 100)
        assert len(fixed) == sum(count >= wanted for count in counts)
    every = options(use_min_instance_sampler=False)
    assert len(FixedPatches(samples, every, 100)) == len(grid)
    few = FixedPatches(samples, every, 4)
    assert len(few) == 4 and len({few[i].name for i in range(4)}) == 3, "spread over the images"


def test_no_patch_with_objects_enough_is_an_error() -> None:
    with pytest.raises(DataError, match="No patch of 32 x 32 pixels") as error:
        FixedPatches([blobs(9, count=0)], options(), 8)
    assert "--min-instances" in (error.value.hint or "")


def test_the_first_version_is_the_patch_and_the_others_are_augmented() -> None:
    fixed = FixedPatches([blobs(1)], options(), 8)
    versions = Versions(fixed, None, options(), seed=5)
    assert len(versions) == versions.trained == 3 * len(fixed)
    read = {number: (image, labels) for number, image, labels in versions.read(range(6))}
    for patch in (0, 1):
        np.testing.assert_array_equal(read[3 * patch][0], fixed[patch].image)
        np.testing.assert_array_equal(read[3 * patch][1], fixed[patch].labels)
        rng = np.random.default_rng((5, patch, 2, 3))
        image, labels = Augmentation(options())(fixed[patch].image, fixed[patch].labels, rng)
        np.testing.assert_array_equal(read[3 * patch + 2][0], image)
        np.testing.assert_array_equal(read[3 * patch + 2][1], labels)
        assert not np.array_equal(read[3 * patch + 1][0], read[3 * patch + 2][0])


def test_each_round_sees_each_patch_once_and_in_time_all_versions(tmp_path: Path) -> None:
    fixed = FixedPatches([blobs(1), blobs(2)], options(), 100)
    store = make_store(tmp_path)
    cached = CachedPatches(store, fixed, Targets(options()), 3, seed=0)
    count = len(fixed)
    rounds = [[cached.version(turn * count + i) for i in range(count)] for turn in range(3)]
    for seen in rounds:
        assert sorted(version // 3 for version in seen) == list(range(count))
    assert rounds[0] != rounds[1]
    assert sorted(version for seen in rounds for version in seen) == list(range(3 * count))


def test_images_are_drawn_by_their_weights(tmp_path: Path) -> None:
    samples = [replace(blobs(1), weight=9.0), blobs(2), replace(blobs(4), weight=0.0)]
    fixed = FixedPatches(samples, options(), 100)
    names = [fixed[i].name for i in range(len(fixed))]
    assert set(names) == {"blobs-1", "blobs-2"}
    cached = CachedPatches(make_store(tmp_path), fixed, Targets(options()), 3, seed=0)
    drawn = Counter(names[cached.version(i) // 3] for i in range(600))
    share = 9 * names.count("blobs-1") / (9 * names.count("blobs-1") + names.count("blobs-2"))
    assert drawn["blobs-1"] / 600 == pytest.approx(share, abs=0.06)


# Training


def count_encodings(monkeypatch: Any) -> list[int]:
    counts: list[int] = []
    encode = MicroSam.encode

    def counted(self: MicroSam, prepared: Any) -> Any:
        counts.append(len(prepared))
        return encode(self, prepared)

    monkeypatch.setattr(MicroSam, "encode", counted)
    return counts


def test_each_version_is_encoded_once_and_the_files_are_removed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    counts = count_encodings(monkeypatch)
    job = make_job(tmp_path, epochs=4)
    events: list[Any] = []
    train(job, events.append)
    patches = len(FixedPatches(job.train, job.options, 8))
    assert sum(counts) == 3 * patches + 3
    assert len([e for e in events if isinstance(e, Progress)]) == 16
    assert not (job.checkpoint / "embeddings").exists()
    assert any("Encoding" in e.text for e in events if isinstance(e, Note))


def test_an_interrupted_encoding_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    counts = count_encodings(monkeypatch)
    whole, parts = make_job(tmp_path / "a"), make_job(tmp_path / "b")
    train(whole, lambda event: None)
    every, counts[:] = sum(counts), []
    asked = iter([False, True])
    with pytest.raises(InterruptedRunError, match="Stopped after encoding 4 of") as error:
        train(replace(parts, interrupted=lambda: next(asked)), lambda event: None)
    assert error.value.hint == f"Go on with: cellseg resume {tmp_path / 'b'}"
    train(parts, lambda event: None)
    assert sum(counts) == every
    for name in ("weights.safetensors", "microsam.json"):
        assert (parts.model / name).read_bytes() == (whole.model / name).read_bytes()


def test_a_resumed_training_does_not_encode_again(tmp_path: Path, monkeypatch: Any) -> None:
    counts = count_encodings(monkeypatch)
    job = make_job(tmp_path)
    stop: list[bool] = []

    def watched(event: Any) -> None:
        stop.extend([True] * isinstance(event, Progress))

    with pytest.raises(InterruptedRunError, match="Stopped after step"):
        train(replace(job, interrupted=lambda: bool(stop)), watched)
    before = sum(counts)
    train(job, lambda event: None)
    assert sum(counts) == before


@pytest.mark.parametrize("change", ["images", "augmentation", "encoder"])
def test_other_images_options_or_weights_are_encoded_anew(
    change: str, tmp_path: Path, monkeypatch: Any
) -> None:
    counts = count_encodings(monkeypatch)
    job = make_job(tmp_path)
    with pytest.raises(InterruptedRunError):
        train(replace(job, interrupted=lambda: True), lambda event: None)
    assert sum(counts) == 2
    if change == "images":
        job = replace(job, train=[blobs(1), blobs(7)])
    elif change == "augmentation":
        job = replace(job, options=options(noise_sigma=0.1))
    else:
        job = replace(job, seed=1)
    counts.clear()
    train(job, lambda event: None)
    patches = len(FixedPatches(job.train, job.options, 8))
    assert sum(counts) == 3 * patches + 3


class Encoded:
    """The same samples as ``CachedPatches``, to be encoded anew each time."""

    def __init__(self, cached: CachedPatches, fixed: FixedPatches) -> None:
        self._cached, self._fixed = cached, fixed

    def __getitem__(self, index: int) -> Any:
        item = dict(self._cached[index])
        del item["embedding"]
        return {**item, "image": as_tensor(self._fixed[self._cached.version(index)].image)}


@pytest.mark.parametrize(
    ("dtype", "tolerance", "apart"), [("float32", 1e-5, 1e-3), ("float16", 5e-3, 0.5)]
)
def test_training_on_what_is_kept_equals_training_without(
    dtype: str, tolerance: float, apart: float, tmp_path: Path
) -> None:
    """Without augmentation, where both see the same patches."""
    chosen = options(copies=1, warmup_steps=0)
    make = Targets(chosen)
    fixed = FixedPatches([blobs(1), blobs(2)], chosen, 8)
    val = ValidationPatches(PatchGrid([blobs(3)], (1, 32, 32)), make, 3)
    versions = Versions(fixed, val, chosen, 0)

    def learner() -> MicrosamLearner:
        with seeded(0):
            model = MicroSam(Architecture.named("tiny"))
        segmenting = resolve(MicrosamPredictOptions(), "ais", "tiny")
        return MicrosamLearner(model, chosen, model.frame((32, 32), 32), segmenting)

    first = learner()
    store = Store(tmp_path / "store", {}, len(versions), (32, 8, 8), (32, 32), dtype)
    with torch.no_grad():
        fill(
            store,
            versions,
            lambda images: first.embeddings({"image": images}),
            4,
            lambda event: None,
            lambda: False,
        )
    cached = CachedPatches(store, fixed, make, 1, 0)
    results, weights = [], []
    for name, source, judged in (
        ("kept", cached, CachedValidation(store, val, versions.trained)),
        ("anew", Encoded(cached, fixed), val),
    ):
        module = learner()
        job = make_job(tmp_path / name, options=chosen)
        ended = fit(module, Loaders(source, 8, judged, len(judged)), job, lambda event: None)
        results.append(ended.metrics)
        weights.append(torch.cat([p.flatten() for p in module.parts["decoder"].parameters()]))
    for name, value in results[0].items():
        assert value == pytest.approx(results[1][name], abs=tolerance), name
    start = torch.cat([p.flatten() for p in learner().parts["decoder"].parameters()])
    moved = (weights[0] - start).norm()
    assert (weights[0] - weights[1]).norm() < apart * moved
