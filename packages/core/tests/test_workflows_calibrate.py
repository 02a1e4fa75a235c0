from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import tifffile

import cellseg as cs
from cellseg.bundle import Bundle
from cellseg.errors import ConfigError, DataError, PluginError, StorageError, UsageError
from cellseg.files import locked
from cellseg.locks import LOCK
from cellseg.options import read_config
from cellseg.plugins import Plugins
from cellseg.specs import CalibrateJob, DatasetSpec
from cellseg.splits import Splits
from cellseg.testing import blobs
from cellseg.workflows.calibrate import Calibration, calibrate
from cellseg.workflows.calibrate_settings import CalibrateSettings
from cellseg.workflows.train import train
from cellseg.workflows.train_settings import TrainSettings


class FakeOptions(cs.Options):
    threshold: float = 0.5
    """Brighter pixels are foreground."""
    method: Literal["plain", "fancy"] = "plain"
    """How."""
    extra: int = 0
    """More of it."""

    @classmethod
    def over(cls, stored: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
        if given.get("method", stored.get("method")) != stored.get("method"):
            stored = {}
        return {**stored, **given}


def fake_train(job: cs.TrainJob[cs.NoOptions], emit: cs.Emit) -> cs.Trained:
    (job.model / "weights").write_text("1")
    return cs.Trained(calibrated={"threshold": 0.9, "method": "plain"})


def search(job: CalibrateJob[FakeOptions], emit: cs.Emit) -> dict[str, object]:
    """The threshold at which most pixels are right."""
    if "threshold" in job.given:
        return {"method": job.options.method}

    def right(threshold: float) -> float:
        good = total = 0
        for sample in job.samples:
            assert sample.labels is not None
            image, labels = sample.image[(slice(None),) * 4], sample.labels[(slice(None),) * 3]
            good += int(((image[0] > threshold) == (labels > 0)).sum())
            total += labels.size
        return good / total

    best = max((0.1, 0.5, 0.9), key=right)
    emit(cs.Note(f"before {right(job.options.threshold):.2f}, after {right(best):.2f}"))
    return {"threshold": best, "method": job.options.method}


Search = Callable[[CalibrateJob[Any], cs.Emit], Mapping[str, object]]


@pytest.fixture
def jobs() -> list[CalibrateJob[Any]]:
    return []


@pytest.fixture
def plugins(jobs: list[CalibrateJob[Any]]) -> Plugins:
    return make(jobs)


def make(jobs: list[CalibrateJob[Any]], found: Search = search) -> Plugins:
    """A backend that can be calibrated, and one that cannot."""

    def recorded(job: CalibrateJob[Any], emit: cs.Emit) -> Mapping[str, object]:
        jobs.append(job)
        return found(job, emit)

    def load(job: cs.PredictJob[FakeOptions]) -> cs.Predictor:
        raise NotImplementedError

    module: Any = ModuleType("fakes")
    module.cellseg_trainers = cs.hookimpl(
        lambda: [
            cs.TrainerSpec(name=name, summary="Fake", train=fake_train) for name in ("fake", "bare")
        ]
    )
    module.cellseg_predictors = cs.hookimpl(
        lambda: [
            cs.PredictorSpec(
                name="fake",
                summary="Fake",
                options=FakeOptions,
                load=load,
                calibrate=recorded,
                tiling=cs.Tiling(core=(1, 48, 48)),
                aliases={"cutoff": "threshold"},
            ),
            cs.PredictorSpec(name="bare", summary="Fake", options=FakeOptions, load=load),
        ]
    )
    plugins = Plugins(installed=())
    plugins.register(module, "fakes")
    return plugins


def write(folder: Path, seeds: range, gain: int = 1000) -> Path:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in seeds:
        sample = blobs(seed)
        assert sample.labels is not None
        image = (2000 + gain * sample.image[0, 0, :, :].clip(0)).astype("uint16")  # type: ignore
        tifffile.imwrite(folder / f"images/i{seed}.tif", image)
        labels = sample.labels[0, :, :].astype(np.uint16)  # type: ignore
        tifffile.imwrite(folder / f"labels/i{seed}.tif", labels)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data", range(4))


@pytest.fixture
def run(plugins: Plugins, data: Path, tmp_path: Path) -> Path:
    return trained(plugins, data, tmp_path / "run")


def trained(plugins: Plugins, data: Path, out: Path, backend: str = "fake", **values: Any) -> Path:
    settings = TrainSettings.model_validate({"epochs": 1, **values})
    return train(plugins, backend, data, out, settings=settings).path


def found(
    plugins: Plugins, model: Path | None = None, data: Path | None = None, **values: Any
) -> Calibration:
    notes = values.pop("notes", [])
    options, reading = values.pop("options", {}), values.pop("reading", {})
    return calibrate(
        plugins,
        CalibrateSettings.model_validate(values),
        model=model,
        data=data,
        options=options,
        reader_options=reading,
        emit=notes.append,
    )


def test_a_run_is_calibrated_on_what_it_validated_on(
    plugins: Plugins, run: Path, jobs: list[CalibrateJob[Any]]
) -> None:
    before = json.loads((run / "model/bundle.json").read_text())
    notes: list[cs.Event] = []
    done = found(plugins, run, notes=notes)
    after = json.loads((run / "model/bundle.json").read_text())
    assert before["predict"] == {"threshold": 0.9, "method": "plain"}
    assert after["predict"] == {"threshold": 0.5, "method": "plain"} == done.options
    assert {**after, "predict": before["predict"]} == before, "nothing else changes"
    assert done.before == before["predict"] and done.written == run / "model/bundle.json"
    assert done.lines()[0] == "threshold: 0.5 (was 0.9)" and done.images == 1
    assert "after 1.00" in str(notes[-1])
    (job,) = jobs
    assert [s.name for s in job.samples] == list(Splits.load(run / "splits.json").val)
    assert job.options.threshold == 0.9 and job.given == frozenset()
    assert job.model == run / "model" and job.tiling == cs.Tiling(core=(1, 48, 48))


def test_a_run_that_trains_is_not_calibrated(plugins: Plugins, run: Path) -> None:
    before = (run / "model" / "bundle.json").read_bytes()
    with locked(run / LOCK), pytest.raises(StorageError, match=f"{run}: process {os.getpid()} "):
        found(plugins, run)
    assert (run / "model" / "bundle.json").read_bytes() == before
    found(plugins, run)
    assert (run / "model" / "bundle.json").read_bytes() != before


def test_images_come_as_prediction_would_bring_them(
    plugins: Plugins, run: Path, tmp_path: Path, jobs: list[CalibrateJob[Any]]
) -> None:
    other = write(tmp_path / "other", range(8, 10), gain=5000)
    found(plugins, run, other)
    bundle = Bundle.load(run / "model")
    raw = tifffile.imread(other / "images/i8.tif")[None, None]
    expected = bundle.normaliser.apply(raw, bundle.normaliser.statistics(raw))
    image = jobs[0].samples[0].image[(slice(None),) * 4]
    assert image.dtype == np.float32 and np.array_equal(image, expected)
    assert [s.name for s in jobs[0].samples] == ["i8", "i9"]


def test_given_options_stay_and_are_kept(
    plugins: Plugins, run: Path, jobs: list[CalibrateJob[Any]]
) -> None:
    done = found(plugins, run, options={"extra": 3})
    assert done.options == {"threshold": 0.5, "method": "plain", "extra": 3}
    assert jobs[-1].given == {"extra"} and jobs[-1].options.extra == 3
    found(plugins, run, options={"cutoff": 0.25})
    assert jobs[-1].given == {"threshold"}, "an alias"
    assert Bundle.load(run / "model").predict == {"threshold": 0.25, "method": "plain", "extra": 3}
    found(plugins, run, options={"method": "fancy"})
    assert Bundle.load(run / "model").predict == {"threshold": 0.5, "method": "fancy"}, (
        "what was for another method is not kept"
    )


def test_a_backend_must_keep_its_word(
    run: Path, jobs: list[CalibrateJob[Any]], tmp_path: Path
) -> None:
    before = (run / "model/bundle.json").read_bytes()
    for result, message in (
        ({"threshold": 0.1}, "changes 'threshold', which was given"),
        ({"treshold": 0.1}, "not allowed: unknown option 'treshold'"),
        ({"method": "other"}, "not allowed: --method"),
    ):
        plugins = make(jobs, lambda job, emit, result=result: result)  # type: ignore[misc]
        with pytest.raises(PluginError, match=message):
            found(plugins, run, options={"threshold": 0.2})
    assert (run / "model/bundle.json").read_bytes() == before


def test_a_dry_run_writes_nothing(plugins: Plugins, run: Path, tmp_path: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = found(plugins, run, dry_run=True, output=tmp_path / "c.yaml")
    assert done.options["threshold"] == 0.5 and done.written is None
    assert "--dry-run" in done.lines()[-1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files


def test_a_file_for_predict_instead_of_the_bundle(
    plugins: Plugins, run: Path, tmp_path: Path
) -> None:
    before, target = (run / "model/bundle.json").read_bytes(), tmp_path / "new" / "c.yaml"
    found(plugins, run, output=target)
    assert read_config(target) == {"backend": "fake", "threshold": 0.5, "method": "plain"}
    assert (run / "model/bundle.json").read_bytes() == before
    with pytest.raises(DataError, match="exists already"):
        found(plugins, run, output=target)


def test_published_weights_are_calibrated_into_a_file(
    plugins: Plugins, data: Path, tmp_path: Path, jobs: list[CalibrateJob[Any]]
) -> None:
    for image in (data / "images").iterdir():
        tifffile.imwrite(image, 9000 - tifffile.imread(image))
    with pytest.raises(UsageError, match="no model to keep"):
        found(plugins, data=data, backend="fake")
    target = tmp_path / "c.yaml"
    asked: dict[str, Any] = {"backend": "fake", "output": target, "polarity": "dark"}
    found(plugins, None, data, options={"extra": 1}, reading={"channels": "0"}, **asked)
    assert jobs[0].model is None and len(jobs[0].samples) == 4
    assert read_config(target) == {
        "backend": "fake", "polarity": "dark", "channels": "0",
        "threshold": 0.5, "method": "plain", "extra": 1,
    }  # fmt: skip


def test_training_images_are_refused(plugins: Plugins, run: Path, data: Path) -> None:
    train_names = Splits.load(run / "splits.json").train
    with pytest.raises(DataError, match=f"was trained on {train_names[0]}, ") as error:
        found(plugins, run, data)
    assert "Leave DATA out" in str(error.value.hint)
    with pytest.raises(DataError, match="was trained on"):
        found(plugins, run / "model", data)
    assert found(plugins, run / "model").images == 1


def test_parts_of_training_images_are_refused(
    plugins: Plugins, data: Path, tmp_path: Path, jobs: list[CalibrateJob[Any]]
) -> None:
    run = trained(plugins, data, tmp_path / "run", split="blocks", val_gap=4)
    with pytest.raises(DataError, match="was trained on i0, i1, i2, i3"):
        found(plugins, run, data)
    found(plugins, run)
    assert [s.name for s in jobs[0].samples] == [f"i{i}[y:51-63]" for i in range(4)]


def test_other_images_of_the_same_names_are_pointed_out(
    plugins: Plugins, run: Path, data: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other", range(6))
    notes: list[cs.Event] = []
    found(plugins, run, other, notes=notes)
    named = ", ".join(Splits.load(run / "splits.json").train)
    (note,) = [note.text for note in notes if isinstance(note, cs.Note) and "names" in note.text]
    assert f"The names of 3 image(s) are also those of training images: {named}." in note
    notes.clear()
    found(plugins, run, write(tmp_path / "new", range(7, 9)), notes=notes)
    assert "names" not in str(notes)
    moved = data.rename(tmp_path / "moved")
    notes.clear()
    found(plugins, run, moved, notes=notes)
    assert any("The names of 3 image(s)" in str(note) for note in notes)
    shutil.rmtree(moved)
    with pytest.raises(DataError, match="there is no such file or folder"):
        found(plugins, run)


def test_a_backend_without_calibration_names_those_with_one(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    run = trained(plugins, data, tmp_path / "bare", backend="bare")
    with pytest.raises(ConfigError, match="'bare' has no calibration") as error:
        found(plugins, run)
    assert error.value.hint == "Backends that have one: fake."


def test_what_is_missing_or_would_be_ignored(
    plugins: Plugins, run: Path, data: Path, tmp_path: Path, jobs: list[CalibrateJob[Any]]
) -> None:
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({}, UsageError, "Which model"),
        ({"backend": "fake", "output": tmp_path / "c"}, UsageError, "Which images"),
        ({"model": run, "backend": "bare"}, UsageError, "is a model of the backend 'fake'"),
        ({"model": run, "reader": "folder"}, UsageError, "are those of the run"),
        ({"model": run, "reading": {"channels": "0"}}, UsageError, "are those of the run"),
        ({"model": run, "polarity": "dark"}, ConfigError, "--polarity"),
        ({"model": run, "options": {"treshold": 1}}, ConfigError, "unknown option 'treshold'"),
        ({"model": alone}, DataError, "is a model without its run"),
        ({"model": run, "output": data / "labels/i0.tif/c.yaml"}, StorageError, "is a file, not"),
        ({"model": tmp_path}, DataError, "is no trained model"),
        ({"model": run, "data": data / "images"}, DataError, "has no folder labels"),
    ]
    for values, kind, message in cases:
        with pytest.raises(kind, match=message):
            found(plugins, **values)
    assert not jobs, "all of it is known before the search"
    full = trained(plugins, data, tmp_path / "full", split="full")
    with pytest.raises(DataError, match="kept no images for validation"):
        found(plugins, full)


def test_images_of_other_channels_are_refused(plugins: Plugins, run: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", range(7, 9))
    for image in (other / "images").iterdir():
        pixels = tifffile.imread(image)
        tifffile.imwrite(image, np.stack([pixels, pixels]), metadata={"axes": "CYX"})
    with pytest.raises(DataError, match="trained with 1"):
        found(plugins, run, other)
    found(plugins, run, other, reading={"channels": "1"})


def test_channels_under_another_name_of_the_reader_are_kept(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    folder = plugins.get(DatasetSpec, "folder")
    module: Any = ModuleType("banded")
    spec = replace(folder, name="banded", aliases={"bands": "channels"})
    module.cellseg_datasets = cs.hookimpl(lambda: [spec])
    plugins.register(module, "banded")
    target = tmp_path / "c.yaml"
    asked: dict[str, Any] = {"backend": "fake", "reader": "banded", "output": target}
    found(plugins, None, data, reading={"bands": "0"}, **asked)
    assert read_config(target)["channels"] == "0"


def test_memory_that_runs_out_halves_the_tiles(data: Path, tmp_path: Path) -> None:
    jobs: list[CalibrateJob[Any]] = []

    def short(job: CalibrateJob[Any], emit: cs.Emit) -> Mapping[str, object]:
        if job.tiling.core[2] > 64:
            try:
                raise RuntimeError("CUDA out of memory")
            except RuntimeError as error:
                raise cs.errors.DeviceError("The GPU's memory does not suffice.") from error
        return search(job, emit)

    notes: list[str] = []
    tiling = cs.Tiling(core=(1, 100, 200))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cellseg.workflows.calibrate.tiling_for", lambda *given: tiling)
        done = found(make(jobs, short), data=data, backend="fake", dry_run=True, notes=notes)
    assert done.options["threshold"] == 0.5
    assert [job.tiling.core for job in jobs] == [(1, 100, n) for n in (200, 100)] + [(1, 100, 50)]
    assert sum("Out of memory: once more, with tiles of" in str(note) for note in notes) == 2


def test_memory_that_never_suffices_is_a_device_error(data: Path) -> None:
    def never(job: CalibrateJob[Any], emit: cs.Emit) -> Mapping[str, object]:
        raise MemoryError

    with pytest.raises(cs.errors.DeviceError, match="not even for small tiles") as error:
        found(make([], never), data=data, backend="fake", dry_run=True)
    assert "--device" in str(error.value.hint)
