"""Learning from examples, as a run."""

from __future__ import annotations

import pytest
from example_fakes import plugins
from shown_data import (
    POINT,
    changed,
    invert,
    learned,
    shown,
    trained,
    write_data,
    write_examples,
)

from cellseg.bundle import Bundle
from cellseg.errors import ConfigError, DataError, InterruptedRunError
from cellseg.options import parse, read_config
from cellseg.plugins import Plugins
from cellseg.runs import RunDir
from cellseg.splits import Splits
from cellseg.workflows.init import init
from cellseg.workflows.predict_settings import PredictSettings
from cellseg.workflows.train import resume, samples_of, train
from cellseg.workflows.train_settings import TrainSettings


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def examples(data, tmp_path):
    return write_examples(data, tmp_path / "examples.geojson")


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
    assert "val_fraction" not in page and "has been reported" not in page
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


def test_the_config_file_of_init_can_be_used(data, examples, tmp_path):
    path = init(plugins(), "shown", tmp_path / "config.yaml")
    config = read_config(path)
    own = {k: v for k, v in config.items() if k in TrainSettings.model_fields}
    rest = {k: v for k, v in config.items() if k in ("margin", "refuse")}
    assert own.keys() | rest.keys() | {"backend"} == config.keys()
    own["examples"] = examples
    assert len(learned(trained(data / "images", tmp_path / "run", rest, **own).model)["seen"]) == 2


def test_labels_are_examples_where_no_file_is_given(data, tmp_path):
    run = trained(data, tmp_path / "run")
    assert len(learned(run.model)["seen"]) == 18 and learned(run.model)["classes"] == []
    other = trained(data / "images", tmp_path / "other", examples=data / "labels")
    assert learned(other.model) == learned(run.model)
    assert other.request().examples == run.request().examples
    with pytest.raises(DataError, match="has no folder labels/") as caught:
        trained(data / "images", tmp_path / "none")
    assert str(caught.value.hint).endswith("show some objects: --examples FILE.")


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
    assert [s.name for s in samples_of(plugins(), RunDir(tmp_path / "run"))[0]] == ["1"]
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


def test_polarity_is_measured_on_the_examples(data, examples, tmp_path):
    invert(data)
    run = trained(data / "images", tmp_path / "run", examples=examples, polarity="measure")
    assert Bundle.load(run.model).normaliser.inverted == (True,)
    changed(examples, lambda features: features.clear())
    changed(examples, lambda features: features.append(shown(POINT, "nucleus")))
    with pytest.raises(DataError, match="no labelled objects to measure"):
        trained(data / "images", tmp_path / "other", examples=examples, polarity="measure")
