from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

import cellseg as cs
from cellseg.bundle import Bundle
from cellseg.errors import (
    ConfigError,
    DataError,
    DeviceError,
    InterruptedRunError,
    UnknownPluginError,
)
from cellseg.normalise import Normaliser
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.splits import Splits
from cellseg.testing import blobs
from cellseg.workflows.export import export
from cellseg.workflows.train import refuse_clashes, resume, train
from cellseg.workflows.train_settings import TrainSettings


@pytest.fixture
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data", range(5))


def write(folder: Path, seeds: range, dtype: str = "uint16") -> Path:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in seeds:
        sample = blobs(seed)
        assert sample.labels is not None
        image = (100 + 1000 * sample.image[0, 0, :, :].clip(0)).astype(dtype)  # type: ignore
        tifffile.imwrite(folder / f"images/{seed}.tif", image)
        labels = sample.labels[0, :, :].astype(np.uint16)  # type: ignore
        tifffile.imwrite(folder / f"labels/{seed}.tif", labels)
    return folder


def settings(**values: object) -> TrainSettings:
    return TrainSettings.model_validate({"epochs": 2, **values})


def test_training_leaves_a_run_that_remembers_itself(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    run = train(plugins, "otsu", data, tmp_path / "run", settings=settings(seed=3))
    assert {path.name for path in run.path.iterdir()} == {
        "run.json", "config.yaml", "splits.json", "events.jsonl",
        "checkpoint", "previews", "report.html", "model",
    }  # fmt: skip
    splits = Splits.load(run.splits)
    assert len(splits.train) == 4 and len(splits.val) == 1
    bundle = Bundle.load(run.model)
    assert bundle.backend == "otsu" and bundle.trained_on == splits.train
    assert set(bundle.weights) == {"threshold.json"}
    assert bundle.normaliser.model_dump(mode="json") == run.request().normaliser
    config = yaml.safe_load(run.config.read_text())
    assert config["backend"] == "otsu" and config["seed"] == 3 and config["sigma"] == 1.0
    steps = [event.step for event in run.events() if isinstance(event, cs.Progress)]
    assert steps == list(range(1, 9))


def test_an_interrupted_run_ends_like_an_undisturbed_one(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    whole = train(plugins, "otsu", data, tmp_path / "whole", settings=settings())
    with pytest.raises(InterruptedRunError):
        train(
            plugins, "otsu", data, tmp_path / "run", settings=settings(), interrupted=lambda: True
        )
    assert (tmp_path / "run/report.html").exists()
    run = resume(plugins, tmp_path / "run")
    assert (run.model / "threshold.json").read_text() == (
        whole.model / "threshold.json"
    ).read_text()
    steps = [event.step for event in run.events() if isinstance(event, cs.Progress)]
    assert steps == list(range(1, 9))


def test_a_finished_run_is_left_alone_unless_told_to_train_longer(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    run = train(plugins, "otsu", data, tmp_path / "run", settings=settings())
    before = run.log.read_text()
    notes: list[cs.Event] = []
    resume(plugins, run.path, emit=notes.append)
    assert run.log.read_text() == before
    assert "finished" in str(notes)
    resume(plugins, run.path, epochs=3)
    assert max(e.step for e in run.events() if isinstance(e, cs.Progress)) == 12
    resume(plugins, run.path, emit=notes.append)
    assert "all 3 epochs" in str(notes[-1])


def test_a_stopped_run_may_end_early_and_go_on_later(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stop = iter([False] * 4)
    with pytest.raises(InterruptedRunError):
        train(plugins, "otsu", data, run, settings=settings(), interrupted=lambda: next(stop, True))
    notes: list[cs.Event] = []
    resume(plugins, run, epochs=1)
    resume(plugins, run, emit=notes.append)
    assert "all 1 epochs" in str(notes[-1])
    ended = resume(plugins, run, epochs=2)
    steps = [event.step for event in ended.events() if isinstance(event, cs.Progress)]
    assert steps == list(range(1, 9))


def test_a_fast_development_run_is_finished(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    run = train(plugins, "otsu", data, tmp_path / "run", settings=settings())
    request = json.loads((run.path / "run.json").read_text())
    request["options"]["fast_dev_run"] = True
    (run.path / "run.json").write_text(json.dumps(request))
    notes: list[cs.Event] = []
    resume(plugins, run.path, emit=notes.append)
    assert "fast development run, and finished" in str(notes)
    with pytest.raises(ConfigError, match="cannot be trained longer"):
        resume(plugins, run.path, epochs=9)


def test_splits_are_given_back(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    first = train(plugins, "otsu", data, tmp_path / "a", settings=settings(seed=1))
    second = train(
        plugins, "otsu", data, tmp_path / "b", settings=settings(seed=2, splits=first.splits)
    )
    assert Splits.load(second.splits) == Splits.load(first.splits)


def test_blocks_train_and_validate_on_parts_of_each_image(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    asked = settings(split="blocks", val_gap=4, val_fraction=0.25)
    first = train(plugins, "otsu", data, tmp_path / "a", settings=asked)
    splits = Splits.load(first.splits)
    assert splits.train == tuple(f"{i}[y:0-43]" for i in range(5))
    assert splits.val == tuple(f"{i}[y:48-63]" for i in range(5))
    assert Bundle.load(first.model).trained_on == splits.train
    second = train(plugins, "otsu", data, tmp_path / "b", settings=settings(splits=first.splits))
    assert Splits.load(second.splits) == splits
    assert (second.model / "threshold.json").read_text() == (
        first.model / "threshold.json"
    ).read_text()
    with pytest.raises(InterruptedRunError):
        train(plugins, "otsu", data, tmp_path / "c", settings=asked, interrupted=lambda: True)
    third = resume(plugins, tmp_path / "c")
    assert Bundle.load(third.model).trained_on == splits.train


def test_samples_of_weight_0_stay_out_of_the_training(
    plugins: Plugins, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*args: object, weights: dict[str, float], **kwargs: object) -> list[cs.Sample]:
        samples = open_dataset(*args, **kwargs)  # type: ignore[arg-type]
        return [replace(s, weight=weights.get(s.name, 1.0)) for s in samples]

    for weights in ({"2": 0.0}, {"2": -1.0}):
        monkeypatch.setattr(
            "cellseg.workflows.train_data.open_dataset", partial(opened, weights=weights)
        )
        asked = settings(split="full")
        if weights["2"] < 0:
            with pytest.raises(DataError, match="2 has the weight -1"):
                train(plugins, "otsu", data, tmp_path / "b", settings=asked)
            continue
        run = train(plugins, "otsu", data, tmp_path / "a", settings=asked)
        assert Bundle.load(run.model).trained_on == ("0", "1", "3", "4")
        assert "2" in Splits.load(run.splits).train


def test_one_training_takes_one_table_of_classes(
    plugins: Plugins, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*args: object, **kwargs: object) -> list[cs.Sample]:
        first, *others = open_dataset(*args, **kwargs)  # type: ignore[arg-type]
        return [replace(first, classes=("background", "cell")), *others]

    monkeypatch.setattr("cellseg.workflows.train_data.open_dataset", opened)
    message = "1 has no classes, but 0 has the classes background, cell"
    with pytest.raises(DataError, match=message) as error:
        train(plugins, "otsu", data, tmp_path / "run", settings=settings(split="full"))
    assert "collection" in str(error.value.hint) and not (tmp_path / "run").exists()


def test_validation_images_of_ones_own(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    val = write(tmp_path / "val", range(10, 12))
    run = train(plugins, "otsu", data, tmp_path / "run", settings=settings(val=val))
    splits = Splits.load(run.splits)
    assert len(splits.train) == 5 and len(splits.val) == 2
    (tmp_path / "link").symlink_to(data)
    for same in (data, data / "images" / "..", tmp_path / "link"):
        with pytest.raises(DataError, match="also a training image"):
            train(plugins, "otsu", data, tmp_path / "leak", settings=settings(val=same))
    assert not (tmp_path / "leak").exists()


def test_one_reader_reads_all_and_other_images_leave_nothing_to_split(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    import zarr

    box = tmp_path / "val.zarr"
    group = zarr.open_group(box, mode="w")
    group["raw"], group["labels"] = np.zeros((2, 64, 64), "u1"), np.zeros((2, 64, 64), "u1")
    keys = {"raw_key": "raw", "label_key": "labels", "axes": "TYX"}
    for images, val, read in ((data, box, {}), (box, data, keys)):
        asked = settings(val=val)
        with pytest.raises(ConfigError, match=r"--val .* is read as"):
            train(plugins, "otsu", images, tmp_path / "run", settings=asked, reader_options=read)
    with pytest.raises(ValueError, match="--val and --val-fraction exclude each other"):
        settings(val=data, val_fraction=0.3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"backend": "otzu"}, UnknownPluginError, "No trainer called 'otzu'"),
        ({"options": {"sigam": 1}}, ConfigError, "unknown option 'sigam'"),
        ({"options": {"sigma": -1}}, ConfigError, "--sigma"),
        ({"reader_options": {"chanels": "0"}}, ConfigError, "unknown option 'chanels'"),
        ({"data": Path("nowhere")}, DataError, "nowhere"),
    ],
)
def test_a_wrong_request_leaves_nothing_behind(
    plugins: Plugins,
    data: Path,
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    values: dict[str, object] = {"backend": "otsu", "data": data, **changes}
    with pytest.raises(error, match=message):
        train(plugins, out=tmp_path / "run", settings=settings(), **values)  # type: ignore
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [ConfigError, DataError, DeviceError])
def test_what_the_trainer_refuses_before_its_first_step_leaves_nothing_behind(
    plugins: Plugins, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type
) -> None:
    def refuses(job: cs.TrainJob[Any], emit: cs.Emit) -> cs.Trained:
        for step in range(job.epochs):
            emit(cs.Progress(step + 1, job.epochs, {}))
        raise error("no")

    strict = replace(plugins.get(cs.TrainerSpec, "otsu"), train=refuses)
    get = plugins.get
    monkeypatch.setattr(
        plugins, "get", lambda kind, name: strict if kind is cs.TrainerSpec else get(kind, name)
    )
    with pytest.raises(error):
        train(plugins, "otsu", data, tmp_path / "run", settings=settings(epochs=0))
    assert not (tmp_path / "run").exists()
    with pytest.raises(error):
        train(plugins, "otsu", data, tmp_path / "run", settings=settings(epochs=1))
    assert (tmp_path / "run").exists(), "a step was done"


def test_images_with_other_channels_are_refused(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    tifffile.imwrite(data / "images/1.tif", image, photometric="rgb")
    with pytest.raises(DataError, match="channels") as error:
        train(plugins, "otsu", data, tmp_path / "run", settings=settings())
    assert "--channels" in str(error.value.hint)


def test_two_options_of_one_name_are_refused() -> None:
    class Clash(cs.Options):
        seed: int = 0
        """Mine."""

    with pytest.raises(cs.PluginError, match="both have an option 'seed'"):
        refuse_clashes(TrainSettings(), Clash())


@pytest.mark.parametrize("gamma", [1.0, 2.1])
def test_export_says_which_steps_a_file_lacks(
    plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gamma: float
) -> None:
    def write_file(job: cs.ExportJob[Any], emit: cs.Emit) -> Path:
        job.target.write_text("x")
        return job.target

    spec: cs.ExporterSpec[Any] = cs.ExporterSpec(
        name="file",
        summary="Writes a file.",
        options=cs.NoOptions,
        backend="otsu",
        export=write_file,
    )
    monkeypatch.setattr(Plugins, "exporter", lambda *asked: spec)
    (tmp_path / "model").mkdir()
    Bundle(backend="otsu", normaliser=Normaliser(gamma=gamma)).save(tmp_path / "model")
    notes: list[cs.Event] = []
    export(plugins, tmp_path / "model", "file", tmp_path / "out", emit=notes.append)
    texts = [note.text for note in notes if isinstance(note, cs.Note)]
    assert len(texts) == (gamma != 1)
    assert all("trained with --gamma 2.1" in text for text in texts)


def test_export_packs_a_bundle(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    import zipfile

    run = train(plugins, "otsu", data, tmp_path / "run", settings=settings())
    target = export(plugins, run.path, "zip", tmp_path / "model.zip")
    with zipfile.ZipFile(target) as packed:
        assert json.loads(packed.read("bundle.json"))["backend"] == "otsu"
        assert "threshold.json" in packed.namelist()
    with pytest.raises(DataError, match="exists"):
        export(plugins, run.path, "zip", target)
    export(plugins, run.path, "zip", target, overwrite=True)
    with pytest.raises(UnknownPluginError, match="No exporter 'zp'"):
        export(plugins, run.path, "zp", tmp_path / "other")
