"""Learning from examples: as a run, and as the first part of a prediction."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from example_fakes import plugins

from cellseg.bundle import Bundle
from cellseg.engine.state import WorkDir
from cellseg.errors import ConfigError, DataError, InterruptedRunError, UsageError
from cellseg.events import Note
from cellseg.options import parse, read_config
from cellseg.runs import RunDir
from cellseg.splits import Splits
from cellseg.testing import blobs
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import resume, samples_of, train
from cellseg.workflows.train_settings import TrainSettings

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in range(3):
        one = blobs(seed)
        image = (100 + 1000 * one.image[0, 0].clip(0)).astype(np.uint16)
        tifffile.imwrite(folder / f"images/{seed}.tif", image)
        tifffile.imwrite(folder / f"labels/{seed}.tif", one.labels[0].astype(np.uint16))
    return folder


@pytest.fixture
def examples(data, tmp_path):
    """The outlines of two discs of the image 1, and beside them a place to leave alone."""
    labels = tifffile.imread(data / "labels/1.tif")
    features = []
    for number in (1, 2):
        y, x = np.argwhere(labels == number).mean(0) + 0.5
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        ring = [[x + 4 * np.cos(t), y + 4 * np.sin(t)] for t in turn]
        features.append(shown({"type": "Polygon", "coordinates": [[*ring, ring[0]]]}, "nucleus"))
    path = tmp_path / "examples.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def shown(geometry, name):
    properties = {"classification": {"name": name}, "image": "1"}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def changed(path, change):
    values = json.loads(path.read_text())
    change(values["features"])
    path.write_text(json.dumps(values))


def learned(model):
    return json.loads((model / "shown.json").read_text())


def trained(data, out, options=None, **settings):
    return train(
        plugins(), "shown", data, out, settings=parse(TrainSettings, settings), options=options
    )


def test_a_run_learns_from_examples(data, examples, tmp_path):
    run = trained(data / "images", tmp_path / "run", examples=examples)
    found = learned(run.model)
    assert [one[0] for one in found["seen"]] == ["1", "1"]
    assert found["classes"] == ["background", "nucleus"]
    assert min(found["means"]["1"]) > 0.8  # normalised images, masks on the discs
    assert Splits.load(run.splits) == Splits(train=("1",), val=())
    bundle = Bundle.load(run.model)
    assert bundle.trained_on == ("1",) and bundle.classes == ("background", "nucleus")
    page = run.report.read_text()
    assert "finished" in page and "examples.geojson" in page
    assert "Everything was learned from the examples in 1 image;" in page
    assert "to validate" not in page and "alidation images" not in page
    assert [s.name for s in samples_of(plugins(), run)[0]] == ["1"]
    # What it was told can be told again, and finished is finished.
    config = read_config(run.config)
    known = {k: v for k, v in config.items() if k in TrainSettings.model_fields}
    other = {k: v for k, v in config.items() if k not in {*known, "backend", "margin", "refuse"}}
    again = train(
        plugins(),
        "shown",
        data / "images",
        tmp_path / "again",
        settings=parse(TrainSettings, known),
        reader_options=other,
    )
    assert learned(again.model) == found
    before = (run.model / "shown.json").stat().st_mtime_ns
    resume(plugins(), run.path)
    assert (run.model / "shown.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="--epochs does nothing"):
        resume(plugins(), run.path, epochs=3)


def test_labels_are_examples_where_no_file_is_given(data, tmp_path):
    run = trained(data, tmp_path / "run")
    assert len(learned(run.model)["seen"]) == 18 and learned(run.model)["classes"] == []
    other = trained(data / "images", tmp_path / "other", examples=data / "labels")
    assert learned(other.model) == learned(run.model)
    assert other.request().examples == run.request().examples


def test_a_stopped_run_goes_on_with_the_same_examples(data, examples, tmp_path):
    with pytest.raises(InterruptedRunError):
        train(
            plugins(),
            "shown",
            data / "images",
            tmp_path / "run",
            settings=TrainSettings(examples=examples),
            interrupted=lambda: True,
        )
    whole = examples.read_text()
    changed(examples, lambda features: features.pop())
    with pytest.raises(DataError, match="the examples, or the images they lie in, have changed"):
        resume(plugins(), tmp_path / "run")
    examples.write_text(whole)
    changed(examples, lambda features: features.reverse())  # the order does not matter
    run = resume(plugins(), tmp_path / "run")
    assert len(learned(run.model)["seen"]) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 3}, "--epochs does nothing with shown"),
        ({"val_fraction": 0.2}, "--val-fraction does nothing"),
        ({"split": "full"}, "--split does nothing"),
        ({"splits": "splits.json"}, "--splits does nothing"),
        ({"val": "elsewhere"}, "--val does nothing"),
    ],
)
def test_what_does_nothing_is_refused(data, examples, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        trained(data / "images", tmp_path / "run", examples=examples, **settings)
    assert not (tmp_path / "run").exists()


def test_labels_and_tags_that_do_nothing_are_refused(data, examples, tmp_path):
    with pytest.raises(ConfigError, match="--labels does nothing: --examples says"):
        train(
            plugins(),
            "shown",
            data,
            tmp_path / "run",
            settings=TrainSettings(examples=examples),
            reader_options={"labels": "labels"},
        )
    with pytest.raises(ConfigError, match="--tag does nothing without --examples"):
        parse(TrainSettings, {"tag": ["a"]})
    with pytest.raises(ConfigError, match="--negative-tag does nothing without --examples"):
        parse(PredictSettings, {"negative_tag": ["a"]})
    from cellseg.plugins import Plugins

    with pytest.raises(ConfigError, match="--examples: the backend 'otsu' learns from labelled"):
        train(Plugins(), "otsu", data, tmp_path / "run", settings=TrainSettings(examples=examples))
    assert not (tmp_path / "run").exists()


def test_negatives_tags_and_the_alias(data, examples, tmp_path):
    changed(
        examples,
        lambda features: features.extend(
            [
                shown({"type": "Point", "coordinates": [1, 1]}, "Ignore*"),
                shown({"type": "Point", "coordinates": [3, 1]}, "debris"),
            ]
        ),
    )
    run = train(
        plugins(),
        "shown",
        data / "images",
        tmp_path / "run",
        settings=TrainSettings(examples=examples, negative_tag=("debris",)),
        options={"training_tag": ["nucleus"]},
    )
    kinds = [(kind, positive) for _, kind, positive, *_ in learned(run.model)["seen"]]
    assert sorted(kinds) == [(0, False), (0, False), (1, True), (1, True)]
    assert run.request().settings["tag"] == ["nucleus"]


class Told(list):
    """Notes of a prediction."""

    def __call__(self, event):
        if isinstance(event, Note):
            self.append(event.text)

    def said(self, text):
        return any(text in note for note in self)


def predicted(data, out, options=None, reading=None, interrupted=lambda: False, **settings):
    told = Told()
    given = {"backend": "shown", "output": out, **settings}
    summary = predict(
        plugins(),
        data / "images",
        parse(PredictSettings, given),
        options=options,
        reader_options=reading,
        emit=told,
        interrupted=interrupted,
    )
    return summary, told


def labels(out):
    return {path.name: tifffile.imread(path).tolist() for path in sorted(out.glob("*.tif"))}


def test_predicting_learns_first(data, examples, tmp_path):
    out = tmp_path / "out"
    summary, told = predicted(data, out, {"margin": 0.3, "scored": True}, examples=examples)
    assert summary.objects == 18
    run = RunDir(out / ".cellseg" / "examples")
    assert told.said(f"--model {run.path}") and told.said("2 example(s) (nucleus: 2) in 1 image(s)")
    assert learned(run.model)["margin"] == 0.3 and run.report.exists()
    # The same as in two steps.
    two = trained(data / "images", tmp_path / "run", {"margin": 0.3}, examples=examples)
    predicted(data, tmp_path / "two", {"scored": True}, backend=None, model=two.path)
    predicted(data, tmp_path / "three", {"scored": True}, backend=None, model=run.path)
    assert labels(tmp_path / "two") == labels(tmp_path / "three") == labels(out)
    assert learned(run.model) == learned(two.model)


def test_learning_is_not_done_again(data, examples, tmp_path):
    out = tmp_path / "out"
    predicted(data, out, examples=examples)
    model = out / ".cellseg/examples/model/shown.json"
    before = model.stat().st_mtime_ns
    _, told = predicted(data, out, examples=examples, resume=True)
    assert told.said("done already")
    _, told = predicted(data, out, {"scored": True}, examples=examples, overwrite=True)
    assert told.said("Uses what was learned") and model.stat().st_mtime_ns == before
    # Other options of learning, and other examples, are refused or replace it.
    with pytest.raises(ConfigError, match=r"began with --option margin 0.25, not with .* 0.1"):
        predicted(data, out, {"scored": True, "margin": 0.1}, examples=examples, resume=True)
    with pytest.raises(ConfigError, match="no --polarity, not with --polarity dark"):
        predicted(data, out, {"scored": True}, examples=examples, resume=True, polarity="dark")
    with pytest.raises(ConfigError, match=r"began with .*--tag"):
        predicted(data, out, {"scored": True}, examples=examples, resume=True, tag=["nucleus"])
    _, told = predicted(data, out, {"margin": 0.1}, examples=examples, overwrite=True)
    assert not told.said("Uses what") and learned(model.parent)["margin"] == 0.1
    changed(examples, lambda features: features.pop())
    with pytest.raises(ConfigError, match="began with --examples sha256"):
        predicted(data, out, {"margin": 0.1}, examples=examples, resume=True)
    predicted(data, out, {"margin": 0.1}, examples=examples, overwrite=True)
    assert len(learned(model.parent)["seen"]) == 1


def test_an_interrupted_learning_goes_on(data, examples, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError, match="while it learned") as caught:
        predicted(data, out, examples=examples, interrupted=lambda: True)
    assert caught.value.hint == "Go on with --resume."
    with pytest.raises(UsageError, match="unfinished prediction"):
        predicted(data, out, examples=examples)
    summary, _ = predicted(data, out, examples=examples, resume=True)
    assert summary.objects == 18
    events = RunDir(out / ".cellseg/examples").events()
    assert events  # the same run


def test_invalid_requests_leave_nothing(data, examples, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    out = tmp_path / "out"
    bad = [
        ({"examples": examples, "model": tmp_path}, None, ConfigError, "exclude each other"),
        ({"example_images": data}, None, ConfigError, "nothing without --examples"),
        ({"examples": examples, "backend": None}, None, UsageError, "which backend"),
        ({"examples": tmp_path / "no.json"}, None, DataError, "no such file"),
        ({"examples": examples, "tag": ["x"]}, None, DataError, "There are: nucleus .2."),
        ({"examples": examples}, {"margim": 1}, ConfigError, "unknown option 'margim'"),
        ({"examples": examples}, {"margin": -1}, ConfigError, "--margin"),
        ({"examples": examples}, {"refuse": True}, ConfigError, "--refuse: refused"),
        ({"examples": examples, "output_probs": True}, None, ConfigError, "no probabilities"),
        ({"examples": examples, "prompts": examples}, None, ConfigError, "takes no prompts"),
    ]
    for settings, options, error, said in bad:
        with pytest.raises(error) as caught:
            predicted(data, out, options, **settings)
        told = f"{caught.value} {caught.value.hint}"
        assert said.replace(".2.", "(2)") in told.replace("\n", " "), told
    summary, _ = predicted(data, out, examples=examples, dry_run=True)
    assert summary.dry_run and summary.images == 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_examples_may_lie_in_other_images(data, examples, tmp_path):
    (tmp_path / "one" / "images").mkdir(parents=True)
    image = tifffile.imread(data / "images/1.tif")
    tifffile.imwrite(tmp_path / "one/images/1.tif", image)
    for path in (data / "images").glob("1.tif"):
        path.unlink()
    with pytest.raises(DataError, match="there is no image '1' among the images"):
        predicted(data, tmp_path / "out", examples=examples)
    summary, _ = predicted(
        data, tmp_path / "out", examples=examples, example_images=tmp_path / "one/images/1.tif"
    )
    assert summary.images == 2 and summary.objects == 12
    with pytest.raises(ConfigError, match="none of the images holds an example"):
        predicted(
            data,
            tmp_path / "o2",
            examples=examples,
            example_images=tmp_path / "one",
            batch_xy="current",
        )


def test_the_current_image_is_that_of_the_examples(data, examples, tmp_path):
    summary, _ = predicted(data, tmp_path / "out", examples=examples, batch_xy="current")
    assert summary.images == 1 and [path.stem for path in summary.outputs] == ["1", "1"]


def test_polarity_applies_to_the_examples_too(data, examples, tmp_path):
    for path in (data / "images").glob("*.tif"):
        image = tifffile.imread(path)
        tifffile.imwrite(path, (image.max() - image).astype(np.uint16))
    out = tmp_path / "out"
    summary, _ = predicted(data, out, examples=examples, polarity="dark")
    assert summary.objects == 18
    assert min(learned(out / ".cellseg/examples/model")["means"]["1"]) > 0.8


def test_only_backends_that_learn_from_examples_take_them(data, examples, tmp_path):
    from cellseg.plugins import Plugins

    with pytest.raises(ConfigError, match="'otsu' does not learn from examples"):
        predict(
            Plugins(),
            data / "images",
            PredictSettings(backend="otsu", examples=examples, output=tmp_path / "out"),
            emit=lambda event: None,
        )


def share(data, out, examples, number, ready):
    ready.wait()
    predicted(data, out, examples=examples, shard=f"{number}/3")


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_shares_that_start_at_once_learn_once(data, examples, tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    out = tmp_path / "out"
    processes = [
        context.Process(target=share, args=(data, out, examples, number, ready))
        for number in (1, 2, 3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    # The fake trainer logs one Progress; a second training would have logged another.
    log = (out / ".cellseg/examples/events.jsonl").read_text()
    assert log.count('"Progress"') == 1
    assert len(labels(out)) == 3


def test_another_process_is_waited_for(data, examples, tmp_path, monkeypatch):
    out = tmp_path / "out"
    work = WorkDir(out / ".cellseg")
    pauses = []

    with pytest.raises(InterruptedRunError):
        predicted(data, out, examples=examples, shard="1/2", interrupted=lambda: True)
    held = work.lock("examples")
    assert held.__enter__()

    def pause(seconds):
        pauses.append(seconds)
        held.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", pause)
    _, told = predicted(data, out, examples=examples, shard="1/2")
    assert told.said("waiting for it") and len(pauses) == 1


def test_processes_share_what_was_learned(data, examples, tmp_path):
    summary, _ = predicted(data, tmp_path / "out", examples=examples, workers=2)
    assert summary.objects == 18
