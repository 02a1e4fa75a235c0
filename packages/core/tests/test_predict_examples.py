"""Learning from examples, as the first part of a prediction."""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path

import example_fakes
import pytest
import tifffile
from example_fakes import plugins
from shown_data import changed, invert, learned, trained, write_data, write_examples

from cellseg.engine.state import WorkDir
from cellseg.errors import ConfigError, DataError, InterruptedRunError, UsageError, WeightsError
from cellseg.events import Note
from cellseg.options import parse
from cellseg.plugins import Plugins
from cellseg.runs import RunDir
from cellseg.workflows.predict import predict
from cellseg.workflows.predict_settings import PredictSettings

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def examples(data, tmp_path):
    return write_examples(data, tmp_path / "examples.geojson")


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


def test_what_was_learned_of_other_pixels_is_not_used_again(data, examples, tmp_path):
    out, image = tmp_path / "out", data / "images/1.tif"
    predicted(data, out, examples=examples)
    pixels = tifffile.imread(image)
    tifffile.imwrite(image, pixels[::-1, ::-1])
    with pytest.raises(ConfigError, match="began with --examples sha256"):
        predicted(data, out, examples=examples, resume=True)
    _, told = predicted(data, out, examples=examples, overwrite=True)
    assert not told.said("Uses what")
    tifffile.imwrite(data / "images/2.tif", pixels)  # where no examples are
    _, told = predicted(data, out, examples=examples, overwrite=True)
    assert told.said("Uses what was learned")


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
    out = tmp_path / "new" / "out"
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
    summary, events = predicted(data, out, examples=examples, dry_run=True)
    assert summary.dry_run and summary.images == 3
    assert events == ["2 example(s) (nucleus: 2) in 1 image(s)."]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_missing_weights_leave_nothing_unless_something_was_learned(
    data, examples, tmp_path, monkeypatch
):
    def offline(job, emit=None):
        raise WeightsError("no network")

    out = tmp_path / "new" / "out"
    with monkeypatch.context() as patched:
        patched.setattr(example_fakes, "learn", offline)
        with pytest.raises(WeightsError, match="no network"):
            predicted(data, out, examples=examples)
        assert not out.parent.exists()
    with monkeypatch.context() as patched:
        patched.setattr(example_fakes, "load", offline)
        with pytest.raises(WeightsError, match="no network"):
            predicted(data, out, examples=examples)
    _, events = predicted(data, out, examples=examples, resume=True)
    assert events.said("Uses what was learned from the examples before.")


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


def test_what_was_found_can_be_an_example(data, examples, tmp_path):
    out = tmp_path / "out"
    predicted(data, out, examples=examples, format=["geojson", "tiff"])
    run = trained(data / "images", tmp_path / "run", examples=out / "2.geojson")
    seen = learned(run.model)["seen"]
    assert [one[0] for one in seen] == ["2"] * 6
    other = trained(data / "images", tmp_path / "other", examples=out / "2.tif")
    assert learned(other.model)["means"] == learned(run.model)["means"]


def test_polarity_applies_to_the_examples_too(data, examples, tmp_path):
    invert(data)
    out = tmp_path / "out"
    summary, _ = predicted(data, out, examples=examples, polarity="dark")
    assert summary.objects == 18
    assert min(learned(out / ".cellseg/examples/model")["means"]["1"]) > 0.8


def test_only_backends_that_learn_from_examples_take_them(data, examples, tmp_path):
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
