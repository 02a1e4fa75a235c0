from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

pytest.importorskip("optuna")

from example_fakes import plugins as example_plugins
from shown_data import write_data, write_examples
from tuning_fakes import Parabola

from cellseg.bundle import Bundle
from cellseg.errors import ConfigError, DataError, InterruptedRunError
from cellseg.events import Event, Note
from cellseg.plugins import Plugins
from cellseg.readers import open_dataset
from cellseg.runs import RunDir
from cellseg.splits import Splits, held_out
from cellseg.testing import blobs
from cellseg.workflows.judge import judge
from cellseg.workflows.train import train
from cellseg.workflows.train_settings import TrainSettings
from cellseg.workflows.tune import Tuned, resume_tune, tune
from cellseg.workflows.tune_settings import TuneSettings


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in range(6):
        sample = blobs(seed)
        assert sample.labels is not None
        image = (100 + 1000 * sample.image[0, 0, :, :].clip(0)).astype("uint16")  # type: ignore
        tifffile.imwrite(folder / f"images/{seed}.tif", image)
        labels = sample.labels[0, :, :].astype(np.uint16)  # type: ignore
        tifffile.imwrite(folder / f"labels/{seed}.tif", labels)
    return folder


def searched(
    plugins: Plugins, data: Path, out: Path, space: dict[str, object], **values: Any
) -> Tuned:
    core = {name: values.pop(name) for name in list(values) if name in TrainSettings.model_fields}
    return tune(
        plugins,
        "otsu",
        data,
        out,
        space=space,
        training=TrainSettings.model_validate({"epochs": 1, **core}),
        settings=TuneSettings.model_validate({"trials": 4, **values.pop("how", {})}),
        **values,
    )


def test_a_search_leaves_all_that_it_found(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    space = {"min_size": "0..5000", "predict.sigma": [0.0, 1.0]}
    found = searched(plugins, data, out, space, test_fraction=0.2)
    assert found.count("complete") == 4 and found.best is not None
    splits = Splits.load(out / "splits.json")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 1, 1)
    for trial in found.trials:
        assert Splits.load(out / trial.folder / "splits.json") == splits
    assert found.score == found.best.scores["f1@0.50"]
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [0, 1, 2, 3]
    assert [float(row["score"]) for row in rows] == [trial.score for trial in found.trials]
    assert "f1@0.75" in rows[0]
    models = [path.parent.name for path in out.glob("trials/*/model")]
    assert models == [f"{found.best.number:04d}"]
    bundle = Bundle.load(out / found.best.folder / "model")
    assert bundle.predict["sigma"] == found.options["predict.sigma"]
    assert not set(bundle.trained_on) & {*splits.val, *splits.test}
    predict = yaml.safe_load((out / "predict.yaml").read_text())
    assert predict == {"sigma": found.options["predict.sigma"]}
    page = (out / "report.html").read_text()
    assert "is optimistic" in page and "judged once" in page
    run = RunDir(out / found.best.folder)
    [held] = held_out(open_dataset(plugins, data, "auto", {}, labelled=True), splits)
    judged = judge(plugins, run.path, [held])
    assert found.test is not None and found.test["images"] == 1
    assert found.test["score"] == judged.scores["f1@0.50"]
    assert held.name in splits.test


def test_the_best_options_train_again(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    searched(plugins, data, out, {"sigma": [0.5, 0.6]}, how={"trials": 2}, seed=7)
    config = yaml.safe_load((out / "best.yaml").read_text())
    assert config.pop("backend") == "otsu" and config["sigma"] in (0.5, 0.6) and config["seed"] == 7
    core = {name: config.pop(name) for name in list(config) if name in TrainSettings.model_fields}
    run = train(
        plugins, "otsu", data, tmp_path / "run", settings=TrainSettings(**core), options=config
    )
    assert Splits.load(run.splits) == Splits.load(out / "splits.json")


def test_one_model_where_only_prediction_is_searched(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    how = {"sampler": "grid", "trials": None}
    del how["trials"]
    found = tune(
        plugins, "otsu", data, out,
        space={"predict.min_size": [0, 4000], "predict.sigma": [0.0, 1.0]},
        training=TrainSettings(epochs=1),
        settings=TuneSettings.model_validate(how),
    )  # fmt: skip
    assert len(found.trials) == 4 and found.options["predict.min_size"] == 0
    assert min(trial.score or 0.0 for trial in found.trials) == 0.0
    assert list(out.glob("**/run.json")) == [out / "trained/run.json"]
    assert Bundle.load(out / "trained/model").predict["min_size"] == 0


def test_a_stopped_search_goes_on(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    calls = iter([False] * 9)
    with pytest.raises(InterruptedRunError) as stopped:
        searched(plugins, data, out, {"sigma": "0..3"}, interrupted=lambda: next(calls, True))
    assert stopped.value.hint == f"Go on with: cellseg resume {out}"
    assert "not finished" in (out / "report.html").read_text()
    with pytest.raises(DataError, match="already holds a search") as again:
        searched(plugins, data, out, {"sigma": "0..3"})
    assert "cellseg resume" in str(again.value.hint)
    found = resume_tune(plugins, out)
    assert found.count("complete") == 4
    assert len({trial.options["sigma"] for trial in found.trials}) == 4
    assert resume_tune(plugins, out).trials == found.trials


def test_trials_without_their_database_are_not_begun_anew(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    calls = iter([False] * 9)
    with pytest.raises(InterruptedRunError):
        searched(plugins, data, out, {"sigma": "0..3"}, interrupted=lambda: next(calls, True))
    (out / "study.db").unlink()
    with pytest.raises(DataError, match=r"no search called 'search', but .* holds trials"):
        resume_tune(plugins, out)


def test_a_test_that_is_stopped_or_fails_is_done_by_resume(
    plugins: Plugins, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cellseg.workflows import judge as judging

    out, real = tmp_path / "out", judging.judge

    def go(error: Exception) -> Tuned:
        def fails(plugins: Plugins, model: Path, samples: Any, **values: Any) -> Any:
            raise error

        monkeypatch.setattr(judging, "judge", fails)
        try:
            if out.exists():
                return resume_tune(plugins, out)
            space: dict[str, object] = {"sigma": [1.0]}
            return searched(plugins, data, out, space, test_fraction=0.2, how={"trials": 1})
        finally:
            monkeypatch.setattr(judging, "judge", real)

    with pytest.raises(InterruptedRunError, match="all trials are done"):
        go(InterruptedRunError("Stopped."))
    assert "Best options" in (out / "report.html").read_text()
    failed = go(DataError("the images are gone"))
    assert failed.test is not None and "the images are gone" in failed.test["error"]
    found = resume_tune(plugins, out)
    assert found.test is not None and "error" not in found.test and found.test["images"] == 1


@pytest.mark.parametrize(
    ("space", "how", "core", "message"),
    [
        ({"sigm": [1.0]}, {}, {}, "unknown option"),
        ({"sigma": [-1.0]}, {}, {}, "--sigma"),
        ({"val_fraction": "0.1..0.5"}, {}, {}, "cannot be searched"),
        ({"device": ["cpu"]}, {}, {}, "changes no score"),
        ({"examples": ["a.csv"]}, {}, {}, "learns from labelled images"),
        ({"sigma": "0..1"}, {"sampler": "grid", "trials": None}, {}, "has no end"),
        ({"sigma": [1.0]}, {"metric": "f1@0.5"}, {}, "no such score"),
        ({"sigma": [1.0]}, {"metric": "n_true"}, {}, "counts objects"),
        ({"seed": [1, 2]}, {}, {"seed": 3}, "also given a value"),
        ({"sigma": [1.0]}, {}, {"split": "full"}, "nothing to score"),
    ],
)
def test_nothing_is_made_where_something_is_wrong(
    plugins: Plugins,
    data: Path,
    tmp_path: Path,
    space: dict[str, object],
    how: dict[str, Any],
    core: dict[str, Any],
    message: str,
) -> None:
    settings = {name: value for name, value in {"trials": 3, **how}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        tune(
            plugins, "otsu", data, tmp_path / "out", space=space,
            settings=TuneSettings.model_validate(settings), training=TrainSettings(**core),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_trial_that_fails_says_why(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = searched(plugins, data, out, {"channels": ["0", "9"], "sigma": [1.0, 2.0]}, seed=1)
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert len(failed) == 2 and all("9" in trial.message for trial in failed)
    assert found.count("complete") == 2
    page = (out / "report.html").read_text()
    assert "Failures" in page and f"Trial {failed[0].number}" in page


def test_two_folders_share_one_search(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    how = {"storage": f"sqlite:///{tmp_path / 'both.db'}", "study": "both"}
    first = searched(plugins, data, tmp_path / "a", {"sigma": "0..3"}, how=how)
    notes: list[Event] = []
    second = searched(plugins, data, tmp_path / "b", {"sigma": "0..3"}, how=how, emit=notes.append)
    assert [t.options for t in second.trials] == [t.options for t in first.trials]
    assert not (tmp_path / "b/trials").exists()
    assert any(isinstance(note, Note) and "Joins" in note.text for note in notes)
    with pytest.raises(DataError, match="another search called 'both'"):
        searched(plugins, data, tmp_path / "c", {"sigma": "0..2"}, how=how)
    assert not (tmp_path / "c").exists()


def test_a_function_can_be_searched(plugins: Plugins, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = tune(
        plugins, "experiments", None, out,
        space={"x": [1.0, 3.0, 5.0], "kind": ["a", "b"]},
        settings=TuneSettings(sampler="grid"), objective=Parabola(),
    )  # fmt: skip
    assert found.options == {"x": 3.0, "kind": "a"} and len(found.trials) == 6
    assert "experiments" in (out / "report.html").read_text()
    assert json.loads((out / "tune.json").read_text())["data"] is None
    assert resume_tune(plugins, out, objective=Parabola()).trials == found.trials
    with pytest.raises(ConfigError, match="Python function"):
        resume_tune(plugins, out)


def test_examples_train_and_other_images_score(tmp_path: Path) -> None:
    shown = write_data(tmp_path / "data")
    examples = write_examples(shown, tmp_path / "examples.geojson")
    out = tmp_path / "out"
    found = tune(
        example_plugins(), "shown", shown, out,
        space={"margin": [0.0, 0.5, 0.9]}, settings=TuneSettings(sampler="grid"),
        training=TrainSettings(examples=examples),
    )  # fmt: skip
    assert found.count("complete") == 3 and found.options == {"margin": 0.5}
    assert Splits.load(out / "splits.json") == Splits(train=("1",), val=("0", "2"))
    assert found.best is not None and found.best.scores["n_true"] > 4
    config = yaml.safe_load((out / "best.yaml").read_text())
    assert config["examples"] == str(examples) and config["margin"] == 0.5


def test_examples_in_all_images_need_others_to_score(tmp_path: Path) -> None:
    shown, other = write_data(tmp_path / "data"), write_data(tmp_path / "other")
    space: dict[str, object] = {"margin": [0.5]}
    with pytest.raises(DataError, match="none is left to score on"):
        tune(example_plugins(), "shown", shown, tmp_path / "out", space=space)
    with pytest.raises(DataError, match="these are the images with the examples"):
        tune(
            example_plugins(), "shown", shown, tmp_path / "out", space=space,
            training=TrainSettings(val=shown),
        )  # fmt: skip
    found = tune(
        example_plugins(), "shown", shown, tmp_path / "out", space=space,
        training=TrainSettings(val=other), settings=TuneSettings(trials=1),
    )  # fmt: skip
    assert found.count("complete") == 1
    assert "val" not in yaml.safe_load((tmp_path / "out/best.yaml").read_text())
    with pytest.raises(ConfigError, match="learns in one go"):
        tune(example_plugins(), "shown", shown, tmp_path / "no", space={"epochs": [1, 2]})


def test_options_that_do_nothing_with_examples_are_refused(tmp_path: Path) -> None:
    shown = write_data(tmp_path / "data")
    with pytest.raises(ConfigError, match="--val-fraction does nothing"):
        tune(
            example_plugins(), "shown", shown, tmp_path / "out", space={"margin": [0.5]},
            training=TrainSettings(val_fraction=0.5),
        )  # fmt: skip


def test_other_images_can_validate(plugins: Plugins, data: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other")
    out = tmp_path / "out"
    found = searched(plugins, data, out, {"sigma": [1.0, 2.0]}, how={"trials": 2}, val=other)
    assert found.count("complete") == 2
    splits = Splits.load(out / "splits.json")
    assert len(splits.train) == 6 and splits.val == ("0", "1", "2")


def test_options_of_the_search_that_do_nothing_are_refused(
    plugins: Plugins, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--prune does nothing"):
        searched(plugins, data, tmp_path / "a", {"predict.sigma": [1.0]}, how={"prune": True})
    with pytest.raises(ConfigError, match="metric does nothing"):
        tune(
            plugins, "me", None, tmp_path / "b", space={"x": [1.0]}, objective=Parabola(),
            settings=TuneSettings(metric="f1@0.50"),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
