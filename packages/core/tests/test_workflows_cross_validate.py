"""Cross-validation: what is held out, what goes on after a stop, and what is compared."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
from level_fakes import Jobs, LevelOptions

import cellseg as cs
from cellseg.bundle import Bundle
from cellseg.data import Sample
from cellseg.errors import ConfigError, DataError, InterruptedRunError, PluginError, UsageError
from cellseg.plugins import Plugins
from cellseg.splits import Splits
from cellseg.synthetic import blobs
from cellseg.workflows.cross_validate import CrossValidation, cross_validate
from cellseg.workflows.cross_validate_settings import CrossValidateSettings
from cellseg.workflows.judge import judge
from cellseg.workflows.train_settings import TrainSettings


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def plugins(jobs: Jobs) -> Plugins:
    module: Any = ModuleType("fakes")
    module.cellseg_trainers = cs.hookimpl(
        lambda: [
            cs.TrainerSpec(
                name="level",
                summary="Fake",
                options=LevelOptions,
                train=jobs.trainer,
                epochs=lambda options: options.long_epochs,
                aliases={"n_epochs": "epochs"},
            ),
            cs.TrainerSpec(name="shown", summary="Fake", train=jobs.trainer, examples=True),
            cs.TrainerSpec(name="blind", summary="Fake", train=jobs.trainer),
        ]
    )
    module.cellseg_predictors = cs.hookimpl(
        lambda: [
            cs.PredictorSpec(name=name, summary="Fake", load=jobs.loader)
            for name in ("level", "shown")
        ]
    )
    plugins = Plugins(installed=())
    plugins.register(module, "fakes")
    return plugins


def write(folder: Path, number: int, frames: int = 1) -> Path:
    """Images of discs; of each a part is dark, so that the scores differ."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in range(number):
        pictures, truths = [], []
        for frame in range(frames):
            sample = blobs(100 * frame + seed, shape=(1, 64, 64))
            assert sample.labels is not None
            picture = 100 + 1000 * sample.image[0, 0, :, :].clip(0)  # type: ignore[index]
            picture[:, : 4 * seed] = 100
            pictures.append(picture.astype(np.uint16))
            truths.append(sample.labels[0, :, :].astype(np.uint16))  # type: ignore[index]
        axes = {"axes": "TYX"} if frames > 1 else {"axes": "YX"}
        for kind, values in (("images", pictures), ("labels", truths)):
            stack = np.stack(values) if frames > 1 else values[0]
            tifffile.imwrite(folder / kind / f"i{seed}.tif", stack, metadata=axes, imagej=True)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data", 9)


Go = Callable[..., CrossValidation]


@pytest.fixture
def go(plugins: Plugins, data: Path, tmp_path: Path) -> Go:
    def run(
        out: str = "cv",
        *,
        train: dict[str, object] | None = None,
        options: dict[str, object] | None = None,
        backend: str = "level",
        source: Path = data,
        emit: cs.Emit = lambda event: None,
        interrupted: Callable[[], bool] = lambda: False,
        **settings: object,
    ) -> CrossValidation:
        return cross_validate(
            plugins,
            backend,
            source,
            tmp_path / out,
            settings=CrossValidateSettings.model_validate({"folds": 3, **settings}),
            train_settings=TrainSettings.model_validate({"epochs": 1, **(train or {})}),
            options=options,
            emit=emit,
            interrupted=interrupted,
        )

    return run


def test_each_image_is_held_out_once_and_nothing_is_tuned_on_it(
    go: Go, plugins: Plugins, jobs: Jobs, tmp_path: Path
) -> None:
    found = go()
    names = {f"i{seed}" for seed in range(9)}
    held: list[str] = []
    for fold, job in zip(found.folds, jobs.train, strict=True):
        splits = Splits.load(fold.run / "splits.json")
        seen = {s.name for s in (*job.train, *job.val)}
        assert not seen & set(splits.test) and seen | set(splits.test) == names
        assert {s.name for s in job.val} == set(splits.val) and len(splits.val) == 1
        assert Bundle.load(fold.run / "model").trained_on == splits.train
        assert set(fold.judged.per_image) == set(fold.sources) == set(splits.test)
        held += splits.test
    assert sorted(held) == sorted(names)
    assert len({fold.run / "splits.json" for fold in found.folds}) == 3
    held_samples = [s for s in samples_at(plugins, tmp_path / "data") if s.name in held[:3]]
    again = judge(plugins, found.folds[0].run, held_samples)
    assert again.scores == found.folds[0].judged.scores


def samples_at(plugins: Plugins, data: Path) -> list[Sample]:
    from cellseg.readers import open_dataset

    return list(open_dataset(plugins, data, "auto", {}, labelled=True))


def test_the_figures_are_of_the_folds(go: Go, tmp_path: Path) -> None:
    found = go(before=True)
    scores = [fold.judged.scores["f1@0.50"] for fold in found.folds]
    spread = found.aggregated["f1@0.50"]
    assert len(set(scores)) > 1, "the folds differ, or this test says nothing"
    assert spread.mean == pytest.approx(np.mean(scores))
    assert spread.sd == pytest.approx(np.std(scores, ddof=1)) and spread.n == 3
    assert (spread.low, spread.high) == (min(scores), max(scores))
    values = json.loads((tmp_path / "cv/results.json").read_text())
    assert values["aggregated"]["f1@0.50"]["mean"] == pytest.approx(spread.mean)
    assert values["folds"][1]["scores"]["f1@0.50"] == scores[1]
    assert values == json.loads(json.dumps(found.to_dict(), allow_nan=False))
    rows = list(csv.DictReader((tmp_path / "cv/results.csv").open()))
    assert len([r for r in rows if r["model"] == "trained" and r["kind"] == "image"]) == 9
    [mean] = [r for r in rows if r["model"] == "trained" and r["kind"] == "mean"]
    assert float(mean["f1@0.50"]) == pytest.approx(spread.mean)
    assert any("f1@0.50" in line and f"{spread.mean:.3f}" in line for line in found.lines())


def test_before_is_the_model_of_no_epochs(go: Go, jobs: Jobs, tmp_path: Path) -> None:
    found = go(before=True, options={"long_epochs": 2, "gain": 1.0}, train={"epochs": 2})
    epochs = [job.epochs for job in jobs.train]
    assert epochs == [0, 2] * 3
    assert not list((tmp_path / "cv").glob("before-*")), "only its scores are kept"
    assert found.before is not None and found.before["f1@0.50"].mean == 0
    [comparison] = found.comparisons
    image = comparison.images["f1@0.50"]
    assert image.n == 9 and image.difference > 0.3 and image.p == pytest.approx(2 / 2**9)
    fold = comparison.folds["f1@0.50"]
    assert fold.n == 3 and fold.difference == pytest.approx(found.aggregated["f1@0.50"].mean)


def test_a_start_that_cannot_segment_is_told_before_any_training(
    go: Go, jobs: Jobs, tmp_path: Path
) -> None:
    jobs.refuses_untrained = True
    with pytest.raises(ConfigError, match=r"^--before: .* cannot segment: it is random") as error:
        go(before=True)
    assert error.value.hint == "Leave --before out."
    assert [job.epochs for job in jobs.train] == [0]
    assert not (tmp_path / "cv").exists()
    assert len(go().folds) == 3


def test_frames_of_a_movie_are_held_out_together_and_are_one_pair(go: Go, tmp_path: Path) -> None:
    movies = write(tmp_path / "movies", 6, frames=2)
    found = go(source=movies, before=True, folds=3)
    for fold in found.folds:
        assert len(fold.sources) == 4 and fold.test == 2
    assert found.comparisons[0].images["f1@0.50"].n == 6


def test_too_few_images_give_no_p(go: Go, tmp_path: Path) -> None:
    found = go(source=write(tmp_path / "few", 4), before=True, folds=2)
    assert math.isnan(found.comparisons[0].images["f1@0.50"].p)
    text = "\n".join(found.lines())
    assert "4 pairs cannot be tested" in text
    assert "4 pairs cannot be tested" in (tmp_path / "cv/report.html").read_text()


def test_a_stopped_one_ends_like_an_undisturbed_one(go: Go, jobs: Jobs, tmp_path: Path) -> None:
    whole = go("whole", before=True)
    jobs.train.clear()
    steps = count()
    with pytest.raises(InterruptedRunError) as stopped:
        go(before=True, interrupted=lambda: next(steps) >= 11)
    assert stopped.value.hint == "Go on with the same command and --resume."
    done = len(jobs.train)
    assert 1 < done < 6
    assert (tmp_path / "cv/fold-0/model/bundle.json").exists()
    found = go(before=True, resume=True)
    assert len(jobs.train) - done <= 7 - done, "finished folds are not trained again"
    assert found.aggregated == whole.aggregated and found.comparisons == whole.comparisons
    jobs.train.clear()
    again = go(before=True, resume=True)
    assert not jobs.train and again.aggregated == whole.aggregated


@pytest.mark.parametrize("after", [0, 1, 5, 6, 11, 16, 17])
def test_a_kill_at_any_place_is_survived(
    go: Go, jobs: Jobs, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL runs no handler: here an exception that nobody catches, at each write of a file."""

    class Killed(BaseException):
        pass

    whole = go("whole", before=True)
    from cellseg import files

    real, calls = files.write_atomic, count()

    def dies(path: Path, values: str | bytes) -> None:
        if next(calls) == after:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".part-1-{path.name}").write_text("half")
            raise Killed
        real(path, values)

    for module in (
        "cellseg.workflows.cross_validate_folds",
        "cellseg.workflows.cross_validate_results",
        "cellseg.splits",
    ):
        monkeypatch.setattr(f"{module}.write_atomic", dies)
    with pytest.raises(Killed):
        go(before=True)
    monkeypatch.undo()
    began = (tmp_path / "cv/cross_validation.json").exists()
    found = go(before=True, resume=began)
    assert found.to_dict()["aggregated"] == whole.to_dict()["aggregated"]
    assert not list((tmp_path / "cv").rglob(".part-*"))


def test_half_a_run_is_begun_again(go: Go, tmp_path: Path) -> None:
    go()
    for name in ("fold-1", "scores/fold-1.json", "results.json"):
        path = tmp_path / "cv" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "cv/fold-1/checkpoint").mkdir(parents=True)
    assert len(go(resume=True).folds) == 3


def test_it_goes_on_only_with_what_it_began_with(go: Go, data: Path, tmp_path: Path) -> None:
    go()
    with pytest.raises(UsageError, match="holds a cross-validation already") as there:
        go()
    assert there.value.hint and "--resume" in there.value.hint
    with pytest.raises(ConfigError, match="began with --epochs 1, not with 2"):
        go(resume=True, train={"epochs": 2})
    with pytest.raises(ConfigError, match="began with --gain"):
        go(resume=True, options={"gain": 2.0})
    with pytest.raises(ConfigError, match="began with --folds 3"):
        go(resume=True, folds=4)
    go(resume=True, train={"device": "cpu"})
    for kind in ("images", "labels"):
        (data / kind / "i0.tif").rename(data / kind / "new.tif")
    with pytest.raises(ConfigError, match="other images"):
        go(resume=True)
    with pytest.raises(UsageError, match="no cross-validation to resume"):
        go("none", resume=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match="not empty"):
        go("data")


def test_nothing_is_made_of_a_request_that_is_wrong(go: Go, tmp_path: Path) -> None:
    for values, kind, message in (
        ({"backend": "shown"}, ConfigError, "learns from a few examples"),
        ({"backend": "blind"}, PluginError, "blind"),
        ({"folds": 10}, ConfigError, r"--folds 10 is more than .*\(9\)"),
        ({"train": {"split": "full"}}, ConfigError, "--split does nothing in a cross-validation"),
        ({"train": {"test_fraction": 0.2}}, ConfigError, "--test-fraction does nothing"),
        ({"train": {"examples": "a.geojson"}}, ConfigError, "--examples does nothing"),
        ({"options": {"gian": 1}}, ConfigError, "unknown option 'gian'"),
        ({"options": {"refuse": True}}, ConfigError, "on purpose"),
        ({"options": {"refuse": True}, "before": True}, ConfigError, "on purpose"),
        ({"options": {"long_epochs": 3}}, ConfigError, "--epochs 1 contradicts --long-epochs"),
        ({"against": tmp_path / "data"}, DataError, "is no cross-validation"),
    ):
        with pytest.raises(kind, match=message) as error:
            go(**values)  # type: ignore[arg-type]
        assert not (tmp_path / "cv").exists(), (values, error)


def test_other_names_of_options_count(go: Go, jobs: Jobs) -> None:
    go(train={}, options={"gain": 1.5})
    assert {job.options.gain for job in jobs.train} == {1.5}


def test_one_against_another(go: Go, tmp_path: Path) -> None:
    other = go("other", options={"gain": 2.2})
    found = go(against=tmp_path / "other")
    [comparison] = found.comparisons
    assert comparison.other == str(tmp_path / "other")
    image = comparison.images["dice_foreground"]
    every = [
        fold.judged.per_image[name]["dice_foreground"]
        - one.judged.per_image[name]["dice_foreground"]
        for fold, one in zip(found.folds, other.folds, strict=True)
        for name in fold.sources
    ]
    assert image.n == 9 and image.difference == pytest.approx(np.mean(every))
    assert image.difference > 0
    turned = go("other", options={"gain": 2.2}, resume=True, against=tmp_path / "cv")
    assert turned.comparisons[0].images["dice_foreground"].difference == -image.difference
    with pytest.raises(DataError, match="has 3 folds, and this one 4"):
        go("third", folds=4, against=tmp_path / "other")
    with pytest.raises(DataError, match="fold 0 holds out other images"):
        go("third", train={"seed": 5}, against=tmp_path / "other")
    with pytest.raises(ConfigError, match="compared with itself"):
        go(resume=True, against=tmp_path / "cv")
    (tmp_path / "other/results.json").unlink()
    with pytest.raises(DataError, match="has not finished"):
        go("third", against=tmp_path / "other")
    assert not (tmp_path / "third").exists()


def test_steps_are_counted_over_all_folds(go: Go) -> None:
    events: list[cs.Event] = []
    go(before=True, emit=events.append)
    steps = [event for event in events if isinstance(event, cs.Progress)]
    assert [event.step for event in steps] == list(range(1, 16))
    assert {event.total for event in steps} == {15}
    notes = [event.text for event in events if isinstance(event, cs.Note)]
    assert any(note.startswith("Fold 1 (2 of 3): 5 source image(s) train, 1 val") for note in notes)
